/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recover.c: a slot that recovers: its attempts, and their ends.  The rules: docs/recovery.md.
 *
 *     STORE_ATTEMPT --> all that was started before is applied --> ATTEMPT record
 *
 * The ATTEMPT record has the steps.  When it is applied, what is above them is void, in the leaves
 * that may have something there; when it is replayed, in all leaves.
 *
 * Invariants:
 * 1. While an attempt is being begun nothing that is started later changes the chunk: writes and
 *    merges are answered with EPOCH_OLD.  So the leaves that are marked before the record is made
 *    are the right ones when it is applied.
 * 2. Attempts of one chunk are begun one after the other.
 */
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

bool
recover_is_beginning(const struct engine_chunk *chunk)
{
    return !list_is_empty(&chunk->attempts);
}

/* --- what will be void --- */

static void
mark_leaves(struct attempt *attempt, uint32_t first, uint32_t end)
{
    for (uint32_t leaf = first; leaf < end && leaf < attempt->chunk->leaf_count; leaf++) {
        uint64_t bit = UINT64_C(1) << (leaf % 64);

        attempt->leaf_count += (attempt->leaves[leaf / 64] & bit) == 0;
        attempt->leaves[leaf / 64] |= bit;
    }
}

/*
 * Of a chunk that was in-sync all that is above S is listed.  One that was recovering forgot what
 * was heard stable, and that can be above a step.
 */
static void
attempt_mark(struct attempt *attempt)
{
    const struct chunk *chunk = attempt->chunk->chunk;

    attempt->step_count = chunk_attempt_steps(chunk, attempt->steps);
    if (chunk->attempt != 0) {
        mark_leaves(attempt, 0, attempt->chunk->leaf_count);
        return;
    }
    for (uint32_t i = 0; i < chunk->pending_count; i++) {
        const struct pending_write *pending = &chunk->pending[i];

        mark_leaves(attempt, pending->offset_sectors / LEAF_SECTORS,
                    (pending->offset_sectors + pending->length_sectors - 1) / LEAF_SECTORS + 1);
    }
}

/* --- an attempt begins --- */

static void attempt_next(struct engine *engine, struct engine_chunk *chunk);

/* It is over; err goes to its requester. */
static void
attempt_end(struct attempt *attempt, int err)
{
    struct engine *engine = attempt->engine;
    struct engine_chunk *chunk = attempt->chunk;
    struct store_change *change = attempt->change;

    list_remove(&attempt->node);
    freelist_give(&engine->attempts_pool, attempt);
    attempt_next(engine, chunk);
    dl_assert(chunk->refs > 0);
    chunk->refs--;
    engine_finish_change_later(engine, change, err);
}

static void
attempt_on_record(struct store_change *barrier, int err)
{
    attempt_end(list_entry(barrier, struct attempt, barrier), err);
}

static void
attempt_make_record(struct attempt *attempt)
{
    struct engine *engine = attempt->engine;
    const struct store_change *change = attempt->change;
    bool begins = change->attempt > attempt->chunk->chunk->attempt;
    struct op *op;

    attempt->barrier.on_done = attempt_on_record;
    engine->requests++;
    if (begins)
        attempt_mark(attempt);
    else if (change->lease_epoch > chunk_table_fence(engine->chunks, change->key.volume))
        change_fence(engine, change->key.volume, change->lease_epoch, NULL);
    op = op_create(engine, begins ? RECORD_ATTEMPT : RECORD_EPOCH, attempt->chunk);
    op->attempt = attempt;
    op->number = begins ? change->attempt : change->config_epoch;
    op->change = &attempt->barrier;
    op_ready(engine, op);
    engine_kick(engine);
}

/* All that was started before is durable and applied, or aborted. */
static void
attempt_on_wait(struct store_change *barrier, int err)
{
    struct attempt *attempt = list_entry(barrier, struct attempt, barrier);

    if (err == 0 && attempt->chunk->chunk->state == CHUNK_DELETING)
        err = -DL_E_CHUNK_UNKNOWN;
    if (err != 0)
        attempt_end(attempt, err);
    else
        attempt_make_record(attempt);
}

/* The first of the chunk's attempts that wait; nothing if one is being begun. */
static void
attempt_next(struct engine *engine, struct engine_chunk *chunk)
{
    struct attempt *attempt;

    if (list_is_empty(&chunk->attempts))
        return;
    attempt = list_first_entry(&chunk->attempts, struct attempt, node);
    if (attempt->begun)
        return;
    attempt->begun = true;
    change_wait(engine, chunk, &attempt->barrier, attempt_on_wait);
}

/* The chunk of this incarnation; one of a lower is deleted first (rule 6).  NULL: there is none. */
static struct engine_chunk *
chunk_of_incarnation(struct engine *engine, const struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &change->key);

    if (chunk != NULL && chunk->incarnation < change->incarnation) {
        change_delete_chunk(engine, engine_chunk_of(chunk), NULL);
        chunk = NULL;
    }
    if (chunk != NULL)
        return engine_chunk_of(chunk);
    if (change->incarnation == 0)
        return NULL;
    return engine_chunk_create(engine, &change->key, change->incarnation, NULL);
}

int
recover_start_attempt(struct engine *engine, struct store_change *change)
{
    struct chunk *known = chunk_table_find(engine->chunks, &change->key);
    struct engine_chunk *chunk;
    struct attempt *attempt;

    if (change->attempt == 0 || change->config_epoch < change->attempt)
        return -DL_E_RANGE;
    if (known != NULL && change->config_epoch < known->config_epoch) {
        change_start_barrier(engine, change);
        return 0;
    }
    chunk = chunk_of_incarnation(engine, change);
    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    attempt = freelist_take(&engine->attempts_pool);
    memset(attempt, 0, sizeof(*attempt));
    attempt->engine = engine;
    attempt->chunk = chunk;
    attempt->change = change;
    list_init(&attempt->node);
    list_push_back(&chunk->attempts, &attempt->node);
    chunk->refs++;
    attempt_next(engine, chunk);
    return 0;
}

/* --- its end --- */

static void
start_record(struct engine *engine, struct store_change *change, enum record_kind kind,
             struct engine_chunk *chunk, uint32_t number)
{
    struct op *op = op_create(engine, kind, chunk);

    op->change = change;
    op->number = number;
    op->version = change->stable_version;
    op_ready(engine, op);
}

int
recover_start_report(struct engine *engine, struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &change->key);

    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk->attempt != change->attempt || change->attempt == 0 ||
        recover_is_beginning(engine_chunk_of(chunk)))
        return -DL_E_EPOCH_OLD;
    start_record(engine, change, RECORD_REPORT, engine_chunk_of(chunk), change->attempt);
    return 0;
}

int
recover_start_in_sync(struct engine *engine, struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &change->key);

    if (chunk != NULL && change->config_epoch < chunk->config_epoch) {
        change_start_barrier(engine, change);
        return 0;
    }
    /* Of a later life than this chunk: what it should have is not here. */
    if (chunk != NULL && chunk->incarnation < change->incarnation)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk == NULL) {
        if (change->incarnation == 0)
            return -DL_E_CHUNK_UNKNOWN;
        chunk = engine_chunk_create(engine, &change->key, change->incarnation, NULL)->chunk;
    }
    if (change->config_epoch > chunk->config_epoch)
        chunk->config_epoch = change->config_epoch;
    start_record(engine, change, RECORD_IN_SYNC, engine_chunk_of(chunk), change->config_epoch);
    return 0;
}
