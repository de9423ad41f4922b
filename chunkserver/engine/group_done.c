/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group_done.c: what happens to a group when its I/O is done: flush, acknowledgement, or what a
 * failed write asks for.
 *
 * Invariants 2 to 4 of group.c are kept here.
 */
#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

/* --- a data write failed --- */

void
group_queue_bad(struct engine *engine, struct extent extent)
{
    struct op *op = op_create(engine, RECORD_BAD, NULL);

    op_set_extents(engine, op, &extent, 1);
    list_push_back(&engine->urgent, &op->node);
}

static bool
extent_overlaps(struct extent a, struct extent b)
{
    return a.block < b.block + b.count && b.block < a.block + a.count;
}

static bool
op_has_failed(const struct group *group, const struct op *op)
{
    if ((op->kind != RECORD_WRITE && op->kind != RECORD_MERGE) || op->joined || op->barrier)
        return false;
    for (size_t i = 0; i < group->failed.count; i++)
        for (uint32_t j = 0; j < op->extent_count; j++)
            if (extent_overlaps(group->failed.items[i], op->extents[j]))
                return true;
    return false;
}

/*
 * The record may be on the disk, and its data may even be there: it must be said durably that it
 * never happened.
 */
static void
group_abort_op(struct engine *engine, struct group *group, struct op *op)
{
    struct op *abort_op = op_create(engine, RECORD_ABORT, NULL);

    op->aborted = true;
    group->aborts_missing++;
    abort_op->lsn = group->lsn;
    abort_op->number = op->record_idx;
    list_push_back(&engine->urgent, &abort_op->node);
    engine->counters.aborts++;
    write_retry(engine, op, abort_op);
}

static void
group_abort_failed(struct engine *engine, struct group *group)
{
    struct op *op;

    group->failing = true;
    engine->failed_count++;
    for (size_t i = 0; i < group->failed.count; i++)
        group_queue_bad(engine, group->failed.items[i]);
    list_for_each_entry (op, &group->ops, node)
        if (op_has_failed(group, op))
            group_abort_op(engine, group, op);
    dl_assert(group->aborts_missing > 0);
}

/* The blocks of an aborted record that are not bad. */
static void
group_return_aborted(struct engine *engine, const struct group *group, struct op *op)
{
    for (uint32_t i = 0; i < op->extent_count; i++) {
        for (uint32_t j = 0; j < op->extents[i].count; j++) {
            struct extent block = {.block = op->extents[i].block + j, .count = 1};
            bool bad = false;

            for (size_t k = 0; k < group->failed.count; k++)
                bad = bad || extent_overlaps(group->failed.items[k], block);
            if (!bad)
                alloc_return(&engine->alloc, block.block, 1);
        }
    }
    op->extent_count = 0;
}

/* --- acknowledge --- */

static void
group_release(struct engine *engine, struct group *group)
{
    dl_assert(list_is_empty(&group->ops));
    dl_assert(group->ios_pending == 0);
    if (group->failing)
        engine->failed_count--;
    group->failing = false;
    engine->group_count--;
    list_remove(&group->node);
    vec_clear(&group->freed);
    vec_clear(&group->worn);
    vec_clear(&group->failed);
    list_push_back(&engine->groups_free, &group->node);
}

/*
 * Only now, not when the replacing record was acknowledged: replay of a journal without the FREE
 * records would find both the old owner (in a leaf that is not written back) and the new one.
 */
void
group_apply_freed(struct engine *engine, struct group *group)
{
    bool reads = !list_is_empty(&engine->reads);

    for (size_t i = 0; i < group->freed.count; i++) {
        struct extent run = group->freed.items[i];

        alloc_free_durable(&engine->alloc, run.block, run.count, reads, engine->read_seq);
        if (engine->reclaim.candidates != NULL)
            reclaim_forget(engine, run.block, run.count);
        apply_bitmap(engine, run.block, group->lsn);
        engine->counters.blocks_freed += run.count;
    }
    for (size_t i = 0; i < group->worn.count; i++) {
        alloc_worn_durable(&engine->alloc, group->worn.items[i].count);
        apply_worn(engine, group->worn.items[i], group->lsn);
    }
}

/*
 * Apply all of the group; its ops go to `done`, to be finished when everything is in order.
 * Returns false if more leaves change than one turn should touch: then it goes on next turn.  The
 * group is durable, so what is seen of it meanwhile cannot go back.
 */
static bool
group_ack(struct engine *engine, struct group *group, struct list *done)
{
    struct op *op;

    dl_assert(group->lsn == engine->acked_lsn);
    engine->applying = true;
    list_for_each_entry (op, &group->ops, node) {
        if (op->aborted || op->applied == UINT32_MAX)
            continue;
        if (!apply_op(engine, op, group->lsn))
            return false;
        op->applied = UINT32_MAX;
    }
    engine->applying = false;
    dl_assert(engine->debt_sectors >= group->debt_sectors);
    engine->debt_sectors -= group->debt_sectors;
    while (!list_is_empty(&group->ops)) {
        op = list_first_entry(&group->ops, struct op, node);
        if (op->aborted)
            group_return_aborted(engine, group, op);
        list_remove(&op->node);
        list_push_back(done, &op->node);
    }
    group_apply_freed(engine, group);
    engine->acked_lsn = group->lsn + group->units;
    if (group->record_count > 0) {
        engine->records_lsn = engine->acked_lsn;
        engine->active_ns = env_now_ns(engine->env);
    }
    if (group->mark > engine->durable_mark)
        engine->durable_mark = group->mark;
    engine->stats.groups_acknowledged++;
    group_release(engine, group);
    return true;
}

static void
group_finish_ops(struct engine *engine, struct list *done)
{
    while (!list_is_empty(done)) {
        struct op *op = list_entry(list_pop_front(done), struct op, node);

        if (op->change != NULL && !change_is_done(engine, op)) {
            list_push_back(&engine->barriers_waiting, &op->node);
            continue;
        }
        op_finish(engine, op, op->err);
    }
}

/* The last group up to which all may be acknowledged (invariant 3); NULL: none. */
static struct group *
group_last_ackable(struct engine *engine)
{
    struct group *group, *last = NULL;
    uint64_t needed_lsn = 0;

    list_for_each_entry (group, &engine->groups, node) {
        if (group->state != GROUP_DURABLE || group->aborts_missing > 0)
            break;
        if (group->aborts_lsn > needed_lsn)
            needed_lsn = group->aborts_lsn;
        if (needed_lsn <= group->lsn)
            last = group;
    }
    return last;
}

void
group_ack_all(struct engine *engine)
{
    struct group *last = group_last_ackable(engine);
    uint64_t last_lsn;
    struct list done;

    if (last == NULL)
        return;
    list_init(&done);
    last_lsn = last->lsn;
    while (engine->acked_lsn <= last_lsn &&
           group_ack(engine, list_first_entry(&engine->groups, struct group, node), &done))
        ;
    if (engine->applying) {
        engine->counters.applied_in_slices++;
        engine_kick_later(engine);
    }
    engine_arm_idle(engine);
    group_finish_ops(engine, &done);
}

/* --- flush --- */

static void
group_set_durable(struct engine *engine, struct group *group)
{
    dl_assert(engine->unflushed_count > 0);
    group->state = GROUP_DURABLE;
    engine->unflushed_count--;
}

static void group_flush(struct engine *engine);

static void
group_on_flush(struct disk_io *io, int result)
{
    struct engine *engine = list_entry(io, struct engine, flush_io);
    struct group *group;

    engine->flushing = false;
    /* Never tried again: after a failed flush nobody knows what the disk has dropped. */
    if (result < 0) {
        engine->stats.media_errors++;
        engine_fail(engine, -DL_E_MEDIA_WRITE);
    }
    if (engine->stopped == 0) {
        list_for_each_entry (group, &engine->groups, node)
            if (group->state == GROUP_FLUSHING ||
                (DLBLK_MUTANT(wide_flush) && group->state == GROUP_WRITTEN))
                group_set_durable(engine, group);
        group_ack_all(engine);
        group_flush(engine);
    }
    engine_kick(engine);
}

static void
group_flush(struct engine *engine)
{
    struct group *group;
    bool any = false;

    if (engine->flushing)
        return;
    list_for_each_entry (group, &engine->groups, node) {
        if (group->state == GROUP_WRITTEN) {
            group->state = GROUP_FLUSHING;
            any = true;
        }
    }
    if (!any)
        return;
    engine->flushing = true;
    engine->flush_io = (struct disk_io){.kind = DISK_FLUSH, .on_done = group_on_flush};
    engine->stats.flushes++;
    disk_submit(engine->disk, &engine->flush_io);
}

/* The store has stopped: what the group's requesters get is the reason. */
static void
group_abandon(struct engine *engine, struct group *group)
{
    struct list ops;
    struct op *op;

    list_init(&ops);
    list_splice_back(&ops, &group->ops);
    list_for_each_entry (op, &ops, node)
        if (op->aborted)
            group_return_aborted(engine, group, op);
    for (size_t i = 0; i < group->freed.count; i++)
        alloc_queue_back(&engine->alloc, group->freed.items[i].block, group->freed.items[i].count,
                         false);
    for (size_t i = 0; i < group->worn.count; i++)
        alloc_queue_back(&engine->alloc, group->worn.items[i].block, group->worn.items[i].count,
                         true);
    group_release(engine, group);
    while (!list_is_empty(&ops))
        op_finish(engine, list_entry(list_pop_front(&ops), struct op, node), engine->stopped);
}

void
group_fail_all(struct engine *engine)
{
    struct group *group, *next;

    dl_assert(engine->stopped != 0);
    list_for_each_entry_safe (group, next, &engine->groups, node)
        if (group->ios_pending == 0)
            group_abandon(engine, group);
}

void
group_io_done(struct group *group)
{
    struct engine *engine = group->engine;

    dl_assert(group->ios_pending > 0);
    if (--group->ios_pending > 0)
        return;
    if (engine->stopped != 0) {
        group_abandon(engine, group);
        engine_kick(engine);
        return;
    }
    if (group->failed.count > 0)
        group_abort_failed(engine, group);
    group->state = GROUP_WRITTEN;
    if (engine->disk->write_through || DLBLK_MUTANT(skip_flush)) {
        group_set_durable(engine, group);
        group_ack_all(engine);
    } else {
        group_flush(engine);
    }
    engine_kick(engine);
}
