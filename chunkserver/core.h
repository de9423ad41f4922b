/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h: the chunkserver's logic, without I/O: sessions of clients, requests on chunks, the
 * metadata service.
 *
 *     chunkserver_core_create(&core, env, store, &options);     begins to connect to the metadata
 *     service net_listen(net, &address, chunkserver_core_events(), core, ...); ...
 *     chunkserver_core_stop(core, on_stopped, context); chunkserver_core_destroy(core);
 *
 * What it serves: docs/protocol.md.  Clients are answered HELLO only after the metadata service has
 * taken this disk once in this life of the process: a disk that went back in time, or a copy of
 * one, must not be read.
 *
 * Memory:  operations and payload buffers come from pools made at create.  While a pool is used up
 *          the clients' links are paused: nothing is allocated for a request on the data path, and
 *          nothing is dropped.
 * Threads: one owner, the env's.  Blocks: never.
 * Errors:  of requests: to the peer that asked.  A violation of the protocol closes the link, with
 *          a line in the log.
 */
#ifndef DLBLK_CHUNKSERVER_CORE_H
#define DLBLK_CHUNKSERVER_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/chunk_store.h"
#include "common/address.h"
#include "common/env.h"

#define CHUNKSERVER_UUID_BYTES     16u
#define CHUNKSERVER_META_COUNT_MAX 8u

struct chunkserver_core;

/* Copied by create; strings too. */
struct chunkserver_options {
    uint8_t cluster_id[CHUNKSERVER_UUID_BYTES];
    uint8_t server_uuid[CHUNKSERVER_UUID_BYTES]; /* the disk's */
    uint8_t instance[CHUNKSERVER_UUID_BYTES];    /* random, of this process */
    uint64_t start_count;                        /* the disk's, raised by this start */
    uint64_t journal_position;                   /* at the start */
    struct dl_address metas[CHUNKSERVER_META_COUNT_MAX];
    size_t meta_count;
    const char *advertise;            /* "host:port" for clients */
    const char *host, *rack, *clique; /* labels; NULL: none */
    /* Zero: the default. */
    uint32_t operations_max;   /* reads, writes and stables, each; 1024 */
    size_t write_buffer_bytes; /* payload of writes under way; 16 MiB, at least 1 MiB */
    size_t read_buffer_bytes;  /* the same of reads */
    uint64_t
        scrub_period_ns; /* everything is read and compared once in so long; 0: only on demand */
};

/* -DL_E_NO_MEMORY */
int chunkserver_core_create(struct chunkserver_core **ret_core, struct env *env,
                            struct chunk_store *store, const struct chunkserver_options *options);
/*
 * After on_stopped has run, from outside of it.  Or at any time, if env and store are thrown away
 * as well (a simulated crash): links, timers and tasks are forgotten, requests of the store never
 * complete.  NULL is allowed.
 */
void chunkserver_core_destroy(struct chunkserver_core *core);

/* For the listener: the core is their first argument. */
const struct link_events *chunkserver_core_events(void);

/*
 * Finish the requests that are here, send their replies (to peers that take them), close the links,
 * stop the store; then on_stopped, with the store's result.  Connections that come meanwhile are
 * closed.
 */
void chunkserver_core_stop(struct chunkserver_core *core,
                           void (*on_stopped)(void *context, int err), void *context);

struct chunkserver_core_stats {
    uint64_t sessions, sessions_accepted;
    uint64_t reads, writes, stables;      /* requests that came */
    uint64_t reads_failed, writes_failed; /* answered with an error */
    uint64_t crc_wire_errors;             /* payloads damaged on their way here */
    uint64_t refused_lease, refused_epoch, refused_unknown;
    uint64_t refused_attempt;         /* NOT_YET, NOT_IN_SYNC */
    uint64_t fences, deletes, epochs; /* requests of the metadata service */
    uint64_t pendings;
    uint64_t pulls, pulls_failed;               /* of other chunkservers */
    uint64_t recoveries, recovery_pulls;        /* attempts begun here; answers merged */
    uint64_t recovery_failures, recovery_bytes; /* PULLs that failed; data that was pulled */
    uint32_t recoveries_running;
    uint64_t repairs, repairs_failed; /* ranges that clients complained of; sectors nobody had */
    uint64_t sectors_bad, sectors_repaired;
    uint64_t scrubs; /* of the whole disk, to the end */
    uint64_t sectors_scrubbed, mismatches;
    uint32_t sectors_left_bad;  /* as far as is known */
    uint64_t pauses;            /* times that a pool was used up */
    uint64_t violations;        /* links closed because of what they sent */
    uint64_t greetings_refused; /* another cluster's, another disk's, or too early */
    uint64_t replies_dropped;   /* to links that went away */
    uint64_t meta_connects;
    uint32_t operations_in_use;
    size_t write_buffer_used_bytes, read_buffer_used_bytes;
    uint32_t server_id; /* 0: not registered yet */
    bool registered;    /* at this moment */
};
void chunkserver_core_get_stats(const struct chunkserver_core *core,
                                struct chunkserver_core_stats *ret_stats);

#endif
