/* SPDX-License-Identifier: Apache-2.0 */
/*
 * world.h: one engine on a fake disk and a fake index, driven by one seed, beside a model of what
 * it must hold.
 *
 *     world_open()  ... requests, turns ...  world_cut()  world_open() ...
 *
 * A failed check prints the seed, and how to see its history, and ends the process with status 1.
 */
#ifndef DLBLK_TESTS_CRASH_WORLD_H
#define DLBLK_TESTS_CRASH_WORLD_H

#include "chunkserver/engine/engine.h"
#include "tests/crash/model.h"
#include "tests/unit/lib/fake_disk.h"
#include "tests/unit/lib/fake_env.h"
#include "tests/unit/lib/fake_index.h"

#define WORLD_OPS_MAX 140u

/* What differs between histories, drawn from the seed. */
struct profile {
    uint32_t slabs;
    uint32_t journal_units;
    uint32_t volumes, chunks, chunk_sectors;
    uint64_t cache_bytes;
    uint32_t records_max;
    uint64_t reserve_bytes;
    bool write_through;
    uint32_t ops_max;
    uint32_t steps; /* between two cuts, at most */
    uint32_t cuts;
    unsigned turn_percent;       /* steps that let time pass rather than start something */
    unsigned large_percent;      /* of the writes: above 64 KiB */
    unsigned multi_percent;      /* of the writes: 2 to 16 sectors */
    unsigned zero_percent;       /* of the writes */
    unsigned hot_percent;        /* of the writes: to the first sectors of the chunk */
    unsigned burst_percent;      /* of the steps: many requests in one turn */
    unsigned slow_index_percent; /* of the steps: the index stands still for some time */
    unsigned idle_percent;       /* of the steps: some idle seconds */
    unsigned delete_percent;     /* of the other changes */
    unsigned fault_percent;      /* of the steps: a data write is going to fail */
};

/* How a life ended. */
#define CUTS(X)                                                                            \
    X(power, "power cut")                                                                  \
    X(kill, "death of the process alone")                                                  \
    X(kill_then_power, "death of the process, a recovery, a power cut soon after")         \
    X(power_in_recovery, "power cut, and another one during the recovery")                 \
    X(power_after_recovery, "power cut right after the recovery")                          \
    X(stopped, "power cut of an engine that a failed journal write or flush had stopped")  \
    X(index_failed, "power cut of an engine that a failed write of its index had stopped") \
    X(clean, "clean stop, power cut after it")

/* What was under way when a cut fell. */
#define UNDER_WAY(X)                                                                  \
    X(data_writes, "data writes on their way to the disk")                            \
    X(journal_writes, "a journal block on its way to the disk")                       \
    X(journal_multi, "a journal block of more than one unit on its way")              \
    X(flush, "a flush")                                                               \
    X(unflushed, "completed writes that no flush had covered")                        \
    X(torn, "a write that the cut tore")                                              \
    X(index_batch, "a write-back's batch")                                            \
    X(index_batch_lost, "write-backs that the index lost")                            \
    X(index_flush, "a flush of the index")                                            \
    X(index_get, "a leaf being loaded")                                               \
    X(small_write, "small writes")                                                    \
    X(multi_write, "writes of several sectors")                                       \
    X(large_write, "writes above 64 KiB")                                             \
    X(zero_write, "zero writes")                                                      \
    X(overlapping_writes, "two writes of the same sectors")                           \
    X(retry_in_flight, "a version that was sent twice")                               \
    X(late_write, "a version lower than an acknowledged one of its chunk")            \
    X(creation, "a chunk's creation")                                                 \
    X(deletion, "a chunk's deletion")                                                 \
    X(fence, "a fence")                                                               \
    X(epoch, "a config epoch")                                                        \
    X(stable, "a stable version")                                                     \
    X(read, "a read")                                                                 \
    X(write_kept, "an unacknowledged write that the recovery kept")                   \
    X(write_dropped, "an unacknowledged write that the recovery dropped")             \
    X(failing_data_write, "a data write that had failed and was not yet made up for") \
    X(full_disk, "a life in which a write had been refused for lack of space")

struct event_counts {
#define X(name, meaning) uint64_t cut_##name;
    CUTS(X)
#undef X
#define X(name, meaning) uint64_t way_##name;
    UNDER_WAY(X)
#undef X
#define X(name, meaning) \
    uint64_t life_##name; /* lives that ended with a cut and in which it happened */
    ENGINE_COUNTERS(X)
#undef X
    uint64_t cuts, recoveries, acknowledged, refused, steps, sectors_compared, checks, reads;
    uint64_t retries_of_dropped, retries_of_present, quiet_checks;
};

enum op_kind { OP_WRITE, OP_READ, OP_CHANGE };

struct world;

struct op {
    enum op_kind kind;
    struct world *world;
    struct model_chunk *chunk;   /* NULL: a fence */
    struct model_volume *volume; /* a fence */
    uint32_t incarnation;
    uint64_t number; /* grows with each start */
    bool retry, late, creates;
    uint64_t *version_at_start; /* read: per sector */
    bool known_at_start;        /* read: the chunk was there for sure */
    void *buffer;
    uint32_t *crcs;
    union {
        struct store_write write;
        struct store_read read;
        struct store_change change;
    };
};

struct world {
    uint64_t seed;
    struct fake_rng rng;
    struct profile profile;
    struct fake_env env;
    struct fake_disk disk;
    struct fake_index index;
    struct engine *engine;
    struct chunk_store *store;
    struct model model;
    struct op *ops[WORLD_OPS_MAX];
    uint32_t op_count;
    uint64_t op_number;
    uint64_t data_offset, data_end, journal_end; /* regions of the disk */
    bool refused_full;                           /* in this life */
    bool may_stop;                               /* a fault was set that stops the store */
    bool may_fail;                               /* data writes may have failed in this life */
    uint32_t life;
    struct event_counts *counts;
    bool trace;
};

void world_init(struct world *world, uint64_t seed, const struct profile *profile,
                struct event_counts *counts, bool trace);
void world_fini(struct world *world);

void world_trace(struct world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/*
 * A mutant is to be found: a failed check is what is hoped for, and ends the process with status 0.
 */
extern bool world_failure_is_success;
_Noreturn void world_fail(struct world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Recover, and compare everything. */
void world_open(struct world *world);
/* engine_open alone; what it returned. */
int world_try_open(struct world *world, struct dl_error *err);
/* What must hold after an engine_open that succeeded. */
void world_verify(struct world *world);
/* The process, or the machine, dies: requests are forgotten. */
void world_power_cut(struct world *world);
void world_kill(struct world *world);
/*
 * All requests are answered; then the engine is left alone until it is quiet, and the space must be
 * exact.
 */
void world_drain(struct world *world);
void world_quiet(struct world *world);
void world_stop(struct world *world);
void world_check_engine(struct world *world);

/* --- ops.c --- */
void op_write_new(struct world *world, struct model_chunk *chunk);
void op_write_retry(struct world *world, struct model_chunk *chunk);
void op_read(struct world *world, struct model_chunk *chunk, uint32_t offset, uint32_t length);
void op_change_random(struct world *world, struct model_chunk *chunk);
void op_forget_all(struct world *world);
/* Count what is under way. */
void op_count_under_way(struct world *world);

#endif
