/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h: the metadata service without I/O: link events in, frames out, everything it promises
 * committed to a store first.
 *
 * The shell (daemon.c) or the simulator gives it an env for time, timers and links, and a store;
 * and attaches accepted links to meta_link_events:
 *
 *     core = meta_core_create(env, store, &options);   // loads; then options.on_ready
 *     net_listen(net, &address, &meta_link_events, core, &listener, &err);
 *
 * An orderly end: meta_core_stop(), its on_stopped, close the links, meta_core_destroy(), close the
 * store. A crash (simulator): store_memory_crash(), meta_core_destroy(), and the links and queued
 * tasks are forgotten.
 *
 * Threads: one owner, the loop.  Blocks: never.
 * Errors:  peers get error replies; what the core can't go on from is told by on_fatal.
 * Memory:  under 100 bytes per allocated segment; all else is bounded by limits.h.
 * State:   docs/metadata.md.
 */
#ifndef DLBLK_META_CORE_H
#define DLBLK_META_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"
#include "meta/limits.h"
#include "meta/store.h"

struct meta_core;

enum meta_log_level { META_LOG_DEBUG, META_LOG_INFO, META_LOG_WARNING, META_LOG_ERROR };

/* Zeroed: the defaults. */
struct meta_options {
    uint64_t heartbeat_ns;   /* servers report so often; 1 s */
    uint64_t server_down_ns; /* silent for so long: down; 5 s */
    uint64_t probe_ns;       /* an owner that doesn't answer for so long is dead; 1 s */
    uint64_t attach_wait_ns; /* for servers, if the client names no time; 30 s */
    uint64_t grace_ns; /* after the start, for owners to come back before they count as dead; 2 s */
    uint64_t hello_ns; /* a connection says HELLO within; 10 s */
    uint64_t silent_ns;           /* a connection without a byte for so long is closed; 5 s */
    uint64_t out_after_ns;        /* down for so long: its slots move to others; 10 min */
    uint32_t recovery_per_server; /* slots recovering onto, and as many from, a server; 4 */
    bool rebalance;               /* servers that have less than their share get slots of others */
    uint32_t servers_max;         /* META_SERVERS_MAX and so on; tests have smaller ones */
    uint32_t volumes_max;
    uint32_t segments_max;
    uint32_t sessions_max;
    uint64_t fence_bytes_max; /* of answers to FENCE that are kept; META_FENCE_BYTES_MAX */

    /* All may be NULL.  The state is loaded: requests are answered from now on. */
    void (*on_ready)(void *context);
    /*
     * The service can't go on (store failed or foreign, another one took over): nothing is answered
     * any more.  Once.
     */
    void (*on_fatal)(void *context, int err, const char *text, const char *hint);
    /* One line: "volume v1: attached by ..." */
    void (*on_log)(void *context, enum meta_log_level level, const char *component,
                   const char *text);
    void *context;
};

/* options may be NULL.  Loading starts at once; links that come meanwhile wait. */
struct meta_core *meta_core_create(struct env *env, struct store *store,
                                   const struct meta_options *options);
/*
 * Frees everything, as a crash does: no link is closed, no message sent.  The store must not
 * complete anything any more (crashed, or nothing is in flight); links must not be used afterwards.
 * NULL is allowed.
 */
void meta_core_destroy(struct meta_core *core);
/* Requests are refused from now on; on_stopped, in a later call, when no commit is in flight. */
void meta_core_stop(struct meta_core *core, void (*on_stopped)(void *context), void *context);

/* For link_listen: `core` is the struct meta_core. */
extern const struct link_events meta_link_events;

bool meta_core_is_serving(const struct meta_core *core);
/* Valid while serving. */
const uint8_t *meta_core_cluster_id(const struct meta_core *core);

struct meta_stats {
    uint64_t sessions, requests, replies_error, commits;
    uint64_t replies_unmatched; /* to nothing that was asked, or too late */
    uint64_t takeovers, fences_sent, fences_answered;
    uint64_t fence_bytes; /* of their answers that are kept now */
    uint64_t segments, volumes, servers_up;
};
void meta_core_get_stats(const struct meta_core *core, struct meta_stats *ret_stats);

/* The batch that makes an empty store a cluster's. */
void meta_cluster_init_batch(struct store_batch *batch, const uint8_t cluster_id[META_ID_BYTES],
                             uint64_t now_ms);

#endif
