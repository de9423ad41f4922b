/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_index.h: index.h in memory, with all the freedom that the interface leaves to an
 * implementation.
 *
 * - Batches are applied in order, each at a random moment between its start and its completion.
 * - A get sees the state of some moment between its start and its completion: batches that were
 *   started after it may be in it, and a batch that was started before it may be missing, unless
 *   its completion had been reported.
 * - A flush makes durable what had completed when it was started, and sometimes more.
 * - fake_index_crash() keeps a random prefix of the batches since then, also of those that were
 *   still under way.
 * - Faults: gets, batches, flushes that fail; a stored value with a flipped bit.
 *
 * The object outlives the engine: close() only checks that nothing is under way,
 * fake_index_reopen() is the next life.
 *
 * Threads: one.
 */
#ifndef DLBLK_TESTS_FAKE_INDEX_H
#define DLBLK_TESTS_FAKE_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/engine/index.h"
#include "tests/unit/lib/fake_env.h"

struct fake_index_entry;
struct fake_index_event;

struct fake_index_map { /* sorted by key */
    struct fake_index_entry **entries;
    uint32_t count, capacity;
};

struct fake_index {
    struct index index;
    struct fake_env *env;
    struct fake_index_map current; /* with all batches that were applied */
    struct fake_index_map durable; /* as of the last flush */
    struct index_batch **batches;  /* since then, in order: applied ones, then those under way */
    uint32_t batch_count, batch_capacity;
    uint32_t applied_count;           /* of batches: applied to `current` */
    uint32_t reported_count;          /* of batches: on_done has run */
    struct fake_index_event **events; /* gets and flushes under way */
    uint32_t event_count, event_capacity;
    bool closed;
    bool held; /* nothing happens for the time being: a slow disk under the index */
    uint64_t bytes_written;
    /* faults: the next n of a kind fail with err */
    uint32_t fail_gets, fail_batches, fail_flushes;
    int fail_err;
    /* counters */
    uint64_t gets, batch_starts, flushes, operations, puts, merges, deletes;
    uint64_t batches_at_crash, batches_lost_at_crash;
};

void fake_index_init(struct fake_index *fake, struct fake_env *env);
void fake_index_fini(struct fake_index *fake);

void fake_index_crash(
    struct fake_index *fake); /* also for kill -9: the memtable dies with the process */
void fake_index_reopen(struct fake_index *fake);

/* Under way: started, not answered. */
uint32_t fake_index_gets(const struct fake_index *fake);
uint32_t fake_index_flushes(const struct fake_index *fake);
uint32_t fake_index_batches(const struct fake_index *fake);

/*
 * Look and change behind the engine's back.  The value is the fake's, valid until the next call
 * that changes it.
 */
const uint8_t *fake_index_peek(const struct fake_index *fake, const void *key, uint32_t key_bytes,
                               uint32_t *ret_value_bytes);
bool fake_index_flip_bit(struct fake_index *fake, const void *key, uint32_t key_bytes,
                         uint32_t byte, unsigned bit);
/* Take a batch that was not started, and make it durable at once.  No other may be under way. */
void fake_index_apply_now(struct fake_index *fake, struct index_batch *batch);
/* The idx-th key with this prefix; false: there are fewer. */
bool fake_index_key_at(const struct fake_index *fake, const void *prefix, uint32_t prefix_bytes,
                       uint32_t idx, uint8_t *ret_key, uint32_t *ret_key_bytes);
uint32_t fake_index_count(const struct fake_index *fake, const void *prefix, uint32_t prefix_bytes);

#endif
