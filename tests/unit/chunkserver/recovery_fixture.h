/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recovery_fixture.h: real chunkservers with a metadata service and an owner that are scripts.
 *
 *     meta (script) <------- cores 0, 1, 2 -------> stores      on the simulator's network
 *     owner (script) -----------+  ^--- PULL ---+
 *
 * Core i has slot i of the segment.
 */
#ifndef DLBLK_TESTS_RECOVERY_FIXTURE_H
#define DLBLK_TESTS_RECOVERY_FIXTURE_H

#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core.h"
#include "chunkserver/core_internal.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "dlblk/error.h"
#include "proto/control.pb-c.h"
#include "tests/sim/model_store.h"
#include "tests/sim/sim.h"

#define SERVERS           3u
#define VOLUME            5u
#define SEGMENT           9u
#define SECTORS           6000u /* more than a window */
#define ANSWERS           8192u
#define VERSION(sequence) (1ull << 40 | (sequence))

struct server;

/* What keeps a server's chunks: the model of the store (the default), or something else. */
struct backing {
    void (*init)(struct server *server, uint64_t seed);
    void (*open)(struct server *server); /* sets store */
    void (*crash)(struct server *server);
    void (*close)(struct server *server); /* after a stop */
    void (*fini)(struct server *server);
};

extern const struct backing model_backing;

struct server {
    struct sim_process process;
    const struct backing *backing;
    struct model_disk disk; /* of the model */
    void *rig;              /* of another one */
    uint32_t starts;
    struct chunk_store *store;
    struct chunkserver_core *core;
    uint8_t uuid[16];
    char name[16];
    struct link *meta; /* the metadata service's end */
    bool stopped;
    uint64_t scrub_period_ns; /* from its next start on */
    Dl__ScrubPosition scrub;  /* of the last heartbeat; the registration's answer has it */
    Dl__ScrubCounts scrub_counts;
    Dl__BadVolume bad_volume; /* the only one; volume 0: none */
};

/* What is asked of one server, and in which role. */
struct asker {
    struct fixture *fx;
    struct server *server;
    struct link *link;
    uint32_t life; /* of the server, when it was connected */
};

struct answer {
    uint64_t id;
    int status;
    uint32_t body_bytes, payload_bytes;
    uint8_t *body, *payload;
};

struct report {
    uint32_t slot, attempt, lease_epoch, cursor;
    bool done;
};

struct fixture {
    struct sim_world world;
    struct server servers[SERVERS];
    struct sim_process meta, owner;
    struct asker askers[2 * SERVERS]; /* clients, then chunkservers */
    uint64_t next_id;
    struct answer answers[ANSWERS];
    uint32_t answer_count;
    void *incoming;
    struct report reports[64];
    uint32_t report_count;
    bool hold_reports;
    bool hold_maps;
    uint32_t in_sync; /* what MAP_GET says: a bit for each slot */
    uint32_t down;    /* likewise */
    uint32_t maps;
    uint32_t map_changes_at; /* the config epoch rises before this answer to MAP_GET; 0: not */
    uint32_t config_epoch;
    uint32_t bad_messages; /* BAD_SECTORS */
    uint64_t bad_told, repaired_told, mismatches_told;
    struct chunk_key finding_key; /* of the last one */
    uint32_t finding_sector, finding_slot;
    bool hold_findings; /* they are not answered */
};

void run_for(struct fixture *fx, uint64_t duration_ns);
void server_up(struct server *server);
void server_crash(struct server *server);
struct chunkserver_core_stats stats_of(const struct server *server);
/* With the metadata service: all that run. */
void wait_registered(struct fixture *fx);
struct fixture *fixture_create_on(uint64_t seed, const struct backing *backing);
/* On the model of the store. */
struct fixture *fixture_create(uint64_t seed);
void fixture_destroy(struct fixture *fx);
struct answer *find_answer(struct fixture *fx, uint64_t id);
struct answer *wait_answer(struct fixture *fx, uint64_t id);
void asker_send(struct fixture *fx, struct asker *asker, struct frame_out *frame);
/* Connected: a client, or one who pulls. */
struct asker *asker_up(struct fixture *fx, uint32_t server_idx, bool client);
/* Content of a version: its low byte. */
uint64_t send_write(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset,
                    uint32_t length, uint32_t config_epoch, uint32_t attempt, uint64_t stable);
int write_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset,
              uint32_t length, uint32_t config_epoch, uint32_t attempt, uint64_t stable);
/* To these slots (a bit for each), under the first config epoch. */
void write_all(struct fixture *fx, uint32_t slots, uint64_t sequence, uint32_t offset,
               uint32_t length, uint64_t stable);
/* Zeroes; and that they may be forgotten, up to the sequence. */
int zero_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset, uint32_t length,
             uint32_t config_epoch);
int forget_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t config_epoch);
uint64_t send_read(struct fixture *fx, uint32_t slot, uint32_t offset, uint32_t length,
                   uint32_t config_epoch);
int read_now(struct fixture *fx, uint32_t slot, uint32_t config_epoch);
int stable_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t config_epoch,
               uint32_t attempt);
struct answer *pending_now(struct fixture *fx, uint32_t slot, uint32_t config_epoch,
                           uint32_t lease_epoch);
Dl__Pull pull_message(uint32_t slot, uint32_t config_epoch);
struct answer *pull_now(struct fixture *fx, uint32_t server_idx, const Dl__Pull *message);
int pull_status(struct fixture *fx, uint32_t server_idx, uint32_t config_epoch);
Dl__SlotTell in_sync_message(uint32_t slot, uint32_t config_epoch);
uint64_t send_meta(struct fixture *fx, uint32_t server_idx, uint16_t opcode,
                   const ProtobufCMessage *message);
uint64_t send_in_sync(struct fixture *fx, uint32_t slot, uint32_t config_epoch);
void tell_in_sync(struct fixture *fx, uint32_t slot, uint32_t config_epoch);
/* sources: a bit for each slot to pull from. */
uint64_t send_attempt(struct fixture *fx, uint32_t slot, uint32_t config_epoch, uint32_t attempt,
                      uint32_t incarnation, uint32_t sources);
void tell_attempt(struct fixture *fx, uint32_t slot, uint32_t attempt, uint32_t incarnation,
                  uint32_t sources);
Dl__FenceReply *fence_now(struct fixture *fx, uint32_t server_idx, uint32_t lease_epoch);
bool is_reported(const struct fixture *fx, uint32_t slot, uint32_t attempt);
void wait_reported(struct fixture *fx, uint32_t slot, uint32_t attempt);
struct chunk *chunk_of(struct fixture *fx, uint32_t slot);
/* On the model. */
struct model_sector sector_of(struct fixture *fx, uint32_t slot, uint32_t sector);
/* By what READ gives; both are in-sync. */
void assert_reads_same(struct fixture *fx, uint32_t a, uint32_t b);
/* On the model: by versions too. */
void assert_same(struct fixture *fx, uint32_t a, uint32_t b);
/* Data and holes, in both windows. */
void fill(struct fixture *fx, uint32_t slots);
/*
 * STABLE of an attempt comes at any moment around SLOT_TELL that ends the attempt: what is
 * confirmed is in S of the promoted slot, and stays, whatever the process does afterwards.
 */
void check_stable_around_promotion(const struct backing *backing);
/* For chunkserver_core_stop(); context is the server. */
void on_stopped(void *context, int err);
/* The metadata service is away for a second, and then another process. */
void meta_restart(struct fixture *fx);

#endif
