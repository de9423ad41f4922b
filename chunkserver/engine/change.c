/* SPDX-License-Identifier: Apache-2.0 */
/*
 * change.c: durable changes without data: fences, stable versions, deletions.
 *
 * Invariants:
 * 1. A fence refuses older requests from its start on.  It is done when its record is durable and
 *    nothing that was accepted before is still under way: then nobody can be told of an older
 *    request's success any more.
 * 2. A deletion hides its chunk at its start.  It is done when its record is durable; the space
 *    follows (delete.c).
 */
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

/* --- done, or waiting for slow writes --- */

/* Does the change wait for this write? */
static bool
change_waits_for(const struct op *change_op, const struct op *slow)
{
    if (slow->start_seq > change_op->start_seq)
        return false;
    if (change_op->kind == RECORD_FENCE)
        return slow->chunk->chunk->key.volume == change_op->change->key.volume;
    return slow->chunk == change_op->chunk;
}

bool
change_is_done(const struct engine *engine, const struct op *op)
{
    const struct op *slow;

    dl_assert(op->change != NULL);
    if (op->kind != RECORD_FENCE && op->kind != RECORD_EPOCH)
        return true;
    if (engine->stopped != 0 || DLBLK_MUTANT(fence_early))
        return true;
    list_for_each_entry (slow, &engine->slow, slow_node)
        if (change_waits_for(op, slow))
            return false;
    return true;
}

void
change_check_waiting(struct engine *engine)
{
    struct op *op, *next;
    struct list done;

    list_init(&done);
    list_for_each_entry_safe (op, next, &engine->barriers_waiting, node) {
        if (!change_is_done(engine, op))
            continue;
        list_remove(&op->node);
        list_push_back(&done, &op->node);
    }
    while (!list_is_empty(&done))
        op_finish(engine, list_entry(list_pop_front(&done), struct op, node), engine->stopped);
}

/* --- start --- */

void
change_start_barrier(struct engine *engine, struct store_change *change)
{
    struct op *op = op_create(engine, RECORD_STABLE, NULL);

    op->barrier = true;
    op->change = change;
    op_ready(engine, op);
}

void
change_wait(struct engine *engine, struct engine_chunk *chunk, struct store_change *change,
            void (*on_done)(struct store_change *change, int err))
{
    struct op *op;

    *change = (struct store_change){.on_done = on_done};
    list_init(&change->node);
    engine->requests++;
    if (engine->stopped != 0) {
        engine_finish_change_later(engine, change, engine->stopped);
        return;
    }
    /* As an epoch's: it is done when no slow write of the chunk is left (change_is_done()). */
    op = op_create(engine, RECORD_EPOCH, chunk);
    op->barrier = true;
    op->change = change;
    op_ready(engine, op);
    engine_kick(engine);
}

void
change_start_record(struct engine *engine, struct store_change *change, enum record_kind kind,
                    struct engine_chunk *chunk, uint32_t number)
{
    struct op *op = op_create(engine, kind, chunk);

    op->change = change;
    op->number = number;
    op_ready(engine, op);
}

void
change_fence(struct engine *engine, uint64_t volume, uint32_t lease_epoch,
             struct store_change *change)
{
    struct op *op = op_create(engine, RECORD_FENCE, NULL);

    chunk_table_fence_raise(engine->chunks, volume, lease_epoch);
    op->volume = engine_volume_get(engine, volume);
    op->number = lease_epoch;
    op->change = change;
    op_ready(engine, op);
}

static int
change_start_stable(struct engine *engine, struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &change->key);
    struct op *op;

    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    /* Of another attempt than the chunk's: it says nothing. */
    if (change->attempt != chunk->attempt) {
        change_start_barrier(engine, change);
        return 0;
    }
    (void)chunk_stable_hear(chunk, change->attempt, change->stable_version);
    op = op_create(engine, RECORD_STABLE, engine_chunk_of(chunk));
    op->change = change;
    op->number = change->attempt;
    op->version = change->stable_version;
    op_ready(engine, op);
    return 0;
}

void
change_delete_chunk(struct engine *engine, struct engine_chunk *chunk, struct store_change *change)
{
    chunk_table_delete(engine->chunks, chunk->chunk);
    list_push_back(&engine->deletions, &chunk->deletion_node);
    change_start_record(engine, change, RECORD_DELETE, chunk, 0);
}

static void
change_start_delete(struct engine *engine, struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &change->key);

    /*
     * Unknown, or another one by now.  An earlier deletion of it may still be on its way to the
     * disk: wait for that.
     */
    if (chunk == NULL || chunk->incarnation > change->incarnation) {
        change_start_barrier(engine, change);
        return;
    }
    change_delete_chunk(engine, engine_chunk_of(chunk), change);
}

void
change_start(struct chunk_store *store, struct store_change *change)
{
    struct engine *engine = engine_of_store(store);
    int err = engine->stopped;

    dl_assert(!engine->stopping);
    list_init(&change->node);
    engine->requests++;
    if (err == 0) {
        switch (change->kind) {
        case STORE_FENCE:
            change_fence(engine, change->key.volume, change->lease_epoch, change);
            break;
        case STORE_STABLE:
            err = change_start_stable(engine, change);
            break;
        case STORE_DELETE:
            change_start_delete(engine, change);
            break;
        case STORE_IN_SYNC:
            err = recover_start_in_sync(engine, change);
            break;
        case STORE_ATTEMPT:
            err = recover_start_attempt(engine, change);
            break;
        case STORE_REPORT:
            err = recover_start_report(engine, change);
            break;
        case STORE_FORGET:
            forget_start(engine, change);
            break;
        }
    }
    if (err != 0)
        engine_finish_change_later(engine, change, err);
    engine_kick(engine);
}

/*
 * No record of its own: the chunk's next write carries it, or the chunk's record in the index, some
 * time.
 */
void
change_stable_heard(struct engine *engine, struct engine_chunk *chunk, uint32_t attempt,
                    uint64_t stable_version)
{
    if (!chunk_stable_hear(chunk->chunk, attempt, stable_version) || engine->stopped != 0)
        return;
    dirty_mark_unjournaled(engine, &chunk->dirty);
    engine_arm_idle(engine);
}
