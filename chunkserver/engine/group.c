/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group.c: operations become journal blocks; blocks are flushed and acknowledged in the order of
 * the journal.
 *
 *     ready, urgent --close--> WRITING --all I/O done--> WRITTEN --flush--> FLUSHING
 *                                 |                                           | done
 *       a data write failed:      |                                           v
 *       ABORT and BAD records <---'                             ack <------ DURABLE
 *       for the next group
 *
 * Invariants:
 * 1. At most JOURNAL_WINDOW groups are not acknowledged: replay takes more intact blocks behind a
 *    missing one for damage.
 * 2. A flush covers the groups that were WRITTEN when it was submitted, no others.  One is in
 *    flight.
 * 3. Groups are acknowledged in order.  One with an aborted record only together with the group
 *    that carries its ABORT (and so with all between): replay of a prefix without the ABORT would
 *    bring the record to life, or drop what is acknowledged.
 * 4. While such a group waits nothing is composed but groups with ABORTs, each when all before it
 *    is DURABLE; they come on top of the window, and say so in a flag.
 * 5. The mark in a block is acked_lsn when it was composed: every record below is flushed or
 *    aborted.
 * 6. Requests leave room in the ring for all that must follow: ring.c.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

#define THROTTLE_NS_MAX (20 * NS_PER_MS)

/* --- groups as objects --- */

static struct group *
group_create(struct engine *engine)
{
    struct list *node = list_pop_front(&engine->groups_free);
    struct group *group;

    if (node != NULL)
        return list_entry(node, struct group, node);
    group = calloc(1, sizeof(*group));
    dl_assert(group != NULL);
    group->buffer = aligned_alloc(UNIT_BYTES, JOURNAL_BYTES_MAX);
    dl_assert(group->buffer != NULL);
    group->engine = engine;
    list_init(&group->ops);
    return group;
}

static void
group_free_list(struct list *groups)
{
    while (!list_is_empty(groups)) {
        struct group *group = list_entry(list_pop_front(groups), struct group, node);

        vec_fini(&group->freed);
        vec_fini(&group->worn);
        vec_fini(&group->failed);
        free(group->ios);
        free(group->iovs);
        free(group->buffer);
        free(group);
    }
}

void
group_free_all(struct engine *engine)
{
    group_free_list(&engine->groups);
    group_free_list(&engine->groups_free);
}

/* --- compose --- */

static bool
op_is_write(const struct op *op)
{
    return op->kind == RECORD_WRITE || op->kind == RECORD_ZERO;
}

/* Data of it goes to the disk with its group. */
static bool
op_has_data(const struct op *op)
{
    return (op->kind == RECORD_WRITE || op->kind == RECORD_MERGE) && !op->joined && !op->barrier;
}

/* Blocks that the op may give up when it is applied. */
static uint32_t
op_debt(const struct op *op)
{
    if (op->barrier)
        return 0;
    if (op_is_write(op))
        return op->write->length_sectors;
    if (op->kind == RECORD_ATTEMPT)
        return op->attempt->leaf_count * LEAF_SECTORS;
    if (op->kind == RECORD_MERGE)
        return merge_of_write(op->write)->sector_count;
    return op->kind == RECORD_CLEAR ? LEAF_SECTORS : 0;
}

static uint32_t
op_record_bytes(const struct op *op)
{
    if (op->barrier)
        return 0;
    if (op->kind == RECORD_WRITE)
        return journal_record_bytes(op->kind, op->extent_count, op->write->length_sectors);
    if (op->kind == RECORD_MERGE)
        return journal_merge_bytes(merge_of_write(op->write)->run_count, op->extent_count,
                                   op->write->length_sectors);
    return journal_record_bytes(op->kind, op->extent_count, 0);
}

static struct group *
group_of_lsn(struct engine *engine, uint64_t lsn)
{
    struct group *group;

    list_for_each_entry (group, &engine->groups, node)
        if (group->lsn == lsn)
            return group;
    dl_unreachable();
}

static void
compose_write(struct journal_compose *compose, struct op *op)
{
    const struct store_write *write = op->write;
    struct journal_record record = {
        .kind = op->kind,
        .local_id = op->chunk->chunk->local_id,
        .number = write->config_epoch,
        .version = write->version,
        .stable_version = write->stable_version,
        .birth = write->birth,
        .offset_sectors = write->offset_sectors,
        .length_sectors = write->length_sectors,
        .flags = op->promotes ? RECORD_WRITE_PROMOTES : 0,
    };

    op->record_idx = journal_put_write(compose, &record, op->extents, op->extent_count,
                                       write->crcs);
}

static void
compose_merge(struct journal_compose *compose, struct op *op)
{
    const struct merge *merge = merge_of_write(op->write);
    struct journal_record record = {
        .kind = RECORD_MERGE,
        .local_id = op->chunk->chunk->local_id,
        .number = merge->request->attempt,
        .stable_version = merge->request->stable_version,
        .offset_sectors = merge->cursor,
        .length_sectors = op->write->length_sectors,
        .flags = merge_flags(merge),
    };

    op->record_idx = journal_put_merge(compose, &record, merge->runs, merge->run_count, op->extents,
                                       op->extent_count, op->write->crcs);
}

static void
compose_runs(struct journal_compose *compose, const struct op *op)
{
    journal_put_runs_begin(compose, op->kind);
    for (uint32_t i = 0; i < op->extent_count; i++) {
        uint32_t put = journal_put_run(compose, op->extents[i].block, op->extents[i].count);

        dl_assert(put == op->extents[i].count);
    }
    journal_put_runs_end(compose);
}

static void
compose_other(struct journal_compose *compose, struct op *op)
{
    struct journal_record record = {.kind = op->kind, .number = op->number, .lsn = op->lsn};
    record.version = op->version;
    record.stable_version = op->version;
    if (op->kind == RECORD_ATTEMPT) {
        record.config_epoch = op->attempt->change->config_epoch;
        record.lease_epoch = op->attempt->change->lease_epoch;
        record.step_count = op->attempt->step_count;
        memcpy(record.steps, op->attempt->steps, sizeof(record.steps));
    }
    if (op->chunk != NULL) {
        record.local_id = op->chunk->chunk->local_id;
        record.key = op->chunk->chunk->key;
    }
    if (op->kind == RECORD_FENCE)
        record.key.volume = op->volume->volume->volume;
    op->record_idx = journal_put(compose, &record);
}

/* Put the op's record into the group. */
static void
group_take_op(struct engine *engine, struct group *group, struct journal_compose *compose,
              struct op *op)
{
    uint32_t debt = op_debt(op);

    list_remove(&op->node);
    list_push_back(&group->ops, &op->node);
    group->debt_sectors += debt;
    engine->debt_sectors += debt;
    if (op->barrier)
        return;
    if (op_is_write(op)) {
        compose_write(compose, op);
    } else if (op->kind == RECORD_MERGE) {
        compose_merge(compose, op);
    } else if (op->kind == RECORD_BAD) {
        compose_runs(compose, op);
    } else {
        compose_other(compose, op);
    }
    if (op->kind == RECORD_ABORT) {
        struct group *target = group_of_lsn(engine, op->lsn);

        dl_assert(target->aborts_missing > 0);
        target->aborts_missing--;
        target->aborts_lsn = group->lsn;
    }
}

/* Aborts and bad blocks: before anything else. */
static void
group_take_urgent(struct engine *engine, struct group *group, struct journal_compose *compose,
                  struct journal_header *header)
{
    while (!list_is_empty(&engine->urgent)) {
        struct op *op = list_first_entry(&engine->urgent, struct op, node);

        if (op_record_bytes(op) > journal_room_bytes(compose))
            return;
        if (op->kind == RECORD_ABORT)
            header->flags |= JOURNAL_HAS_ABORT;
        group_take_op(engine, group, compose, op);
    }
}

/* Requests in the order of their start; FREE runs that wait get up to half of the block. */
static void
group_take_ready(struct engine *engine, struct group *group, struct journal_compose *compose)
{
    uint64_t free_bytes = engine->alloc.queued_blocks * sizeof(struct extent_disk) +
                          sizeof(struct record_extents_disk);
    uint32_t kept = free_bytes < compose->capacity_bytes / 2 ? (uint32_t)free_bytes
                                                             : compose->capacity_bytes / 2;

    while (!list_is_empty(&engine->ready)) {
        struct op *op = list_first_entry(&engine->ready, struct op, node);
        uint32_t room = journal_room_bytes(compose);

        /*
         * The largest record fits into the smallest block, but perhaps not beside all the others.
         */
        if (op_record_bytes(op) + (list_is_empty(&group->ops) ? 0 : kept) > room)
            return;
        if (!list_is_empty(&group->ops) && !ring_admits(engine, op_debt(op)))
            return;
        group_take_op(engine, group, compose, op);
    }
}

/* One record: of what may be used again, or of what is worn.  Returns false if nothing was put. */
static bool
group_take_queue(struct engine *engine, struct group *group, struct journal_compose *compose)
{
    struct extent run;
    bool worn, next_worn, any = false;

    if (!alloc_queue_peek(&engine->alloc, &run, &worn) ||
        journal_room_bytes(compose) <
            sizeof(struct record_extents_disk) + sizeof(struct extent_disk))
        return false;
    journal_put_runs_begin(compose, worn ? RECORD_BAD : RECORD_FREE);
    while (alloc_queue_peek(&engine->alloc, &run, &next_worn) && next_worn == worn) {
        uint32_t put = journal_put_run(compose, run.block, run.count);
        struct extent part = {.block = run.block, .count = put};
        int err;

        if (put == 0)
            break;
        alloc_queue_pop(&engine->alloc, put);
        err = worn ? vec_push(&group->worn, part) : vec_push(&group->freed, part);
        dl_assert(err == 0);
        any = true;
    }
    journal_put_runs_end(compose);
    return any;
}

static void
group_take_freed(struct engine *engine, struct group *group, struct journal_compose *compose)
{
    while (group_take_queue(engine, group, compose))
        ;
    if (DLBLK_MUTANT(reuse_before_durable)) {
        group_apply_freed(engine, group);
        vec_clear(&group->freed);
    }
}

/* --- submit --- */

static void
group_on_data(struct disk_io *io, int result)
{
    struct data_io *data = list_entry(io, struct data_io, io);
    struct group *group = data->group;

    if (result < 0) {
        int err = vec_push(&group->failed, data->extent);

        dl_assert(err == 0);
        group->engine->counters.data_write_errors++;
        group->engine->stats.media_errors++;
    }
    group_io_done(group);
}

static void
group_on_journal(struct disk_io *io, int result)
{
    struct group *group = list_entry(io, struct group, journal_io);
    struct engine *engine = group->engine;

    if (result < 0) {
        engine->stats.media_errors++;
        engine_fail(engine, -DL_E_MEDIA_WRITE);
    }
    group_io_done(group);
}

static void
group_reserve_ios(struct group *group, uint32_t extent_count)
{
    if (group->io_capacity < extent_count) {
        free(group->ios);
        free(group->iovs);
        group->io_capacity = extent_count * 2;
        group->ios = malloc(group->io_capacity * sizeof(struct data_io));
        group->iovs = malloc(group->io_capacity * sizeof(struct iovec));
        dl_assert(group->ios != NULL && group->iovs != NULL);
    }
    group->io_count = 0;
    group->iov_count = 0;
}

/* One more run of data, joined to the last one where the disk allows. */
static void
group_add_data(struct group *group, struct extent extent, const uint8_t *payload)
{
    struct data_io *last = group->io_count > 0 ? &group->ios[group->io_count - 1] : NULL;
    struct iovec *iov = &group->iovs[group->iov_count++];

    dl_assert(group->iov_count <= group->io_capacity);
    dl_assert(group->ios != NULL);
    iov->iov_base = (void *)(uintptr_t)payload;
    iov->iov_len = (size_t)extent.count * BLOCK_BYTES;
    if (last != NULL && last->extent.block + last->extent.count == extent.block &&
        last->extent.count + extent.count <= DATA_IO_BLOCKS_MAX) {
        last->extent.count += extent.count;
        last->io.iov_count++;
        return;
    }
    group->ios[group->io_count++] = (struct data_io){
        .io = {.kind = DISK_WRITE,
               .iov = iov,
               .iov_count = 1,
               .offset_bytes = engine_block_offset(group->engine, extent.block),
               .on_done = group_on_data},
        .engine = group->engine,
        .group = group,
        .extent = extent,
    };
}

static void
group_collect_data(struct group *group)
{
    uint32_t extent_count = 0;
    struct op *op;

    list_for_each_entry (op, &group->ops, node)
        if (op_has_data(op))
            extent_count += op->extent_count;
    group_reserve_ios(group, extent_count);
    list_for_each_entry (op, &group->ops, node) {
        const uint8_t *payload;

        if (!op_has_data(op))
            continue;
        payload = op->write->payload;
        for (uint32_t i = 0; i < op->extent_count; i++) {
            group_add_data(group, op->extents[i], payload);
            payload += (size_t)op->extents[i].count * BLOCK_BYTES;
        }
    }
}

static void
group_submit(struct engine *engine, struct group *group)
{
    struct disk_io *io = &group->journal_io;
    uint64_t place = group->lsn % engine->ring_units;

    group_collect_data(group);
    group->ios_pending = group->io_count + 1;
    io->kind = DISK_WRITE;
    io->iov_one.iov_base = group->buffer;
    io->iov_one.iov_len = (size_t)group->units * UNIT_BYTES;
    io->iov = &io->iov_one;
    io->iov_count = 1;
    io->offset_bytes = engine->superblock.geometry.ring_offset + place * UNIT_BYTES;
    io->on_done = group_on_journal;
    for (uint32_t i = 0; i < group->io_count; i++) {
        engine->stats.device_bytes_data += (uint64_t)group->ios[i].extent.count * BLOCK_BYTES;
        disk_submit(engine->disk, &group->ios[i].io);
    }
    engine->stats.device_bytes_journal += io->iov_one.iov_len;
    engine->stats.journal_blocks++;
    disk_submit(engine->disk, io);
}

/* --- close --- */

static void
group_start(struct engine *engine, struct group *group)
{
    group->state = GROUP_WRITING;
    group->lsn = engine->next_lsn;
    group->mark = DLBLK_MUTANT(mark_ahead) ? engine->next_lsn : engine->acked_lsn;
    group->debt_sectors = 0;
    group->aborts_missing = 0;
    group->aborts_lsn = 0;
    list_push_back(&engine->groups, &group->node);
    engine->group_count++;
}

/*
 * Compose and submit a group of at most capacity_units; with the requests that are ready, or
 * without.
 */
static void
group_close(struct engine *engine, uint32_t capacity_units, bool with_requests)
{
    struct group *group = group_create(engine);
    struct journal_header header = {.incarnation = engine->superblock.incarnation,
                                    .lsn = engine->next_lsn,
                                    .mark = engine->acked_lsn,
                                    .tail = engine->tail};
    struct journal_compose compose;
    bool nothing_asked;

    memcpy(header.disk_uuid, engine->superblock.disk_uuid, sizeof(header.disk_uuid));
    group_start(engine, group);
    header.mark = group->mark;
    journal_compose_init(&compose, group->buffer, capacity_units * UNIT_BYTES);
    group_take_urgent(engine, group, &compose, &header);
    if (with_requests)
        group_take_ready(engine, group, &compose);
    nothing_asked = compose.record_count == 0;
    group_take_freed(engine, group, &compose);
    group->units = journal_compose_seal(&compose, &header);
    group->record_count = nothing_asked ? 0 : compose.record_count;
    engine->next_lsn += group->units;
    engine->composed_mark = group->mark;
    engine->want_mark = false;
    engine->unflushed_count++;
    engine->counters.groups++;
    engine->counters.mark_blocks += nothing_asked;
    engine->counters.ring_wraps += group->lsn % engine->ring_units == 0 &&
                                   group->lsn > engine->ring_units;
    ring_add_stretch(engine, engine->next_lsn, compose.record_count);
    dl_trace("group", "close lsn %lu units %u records %u mark %lu", group->lsn, group->units,
             compose.record_count, group->mark);
    group_submit(engine, group);
}

static void
throttle_on_timer(struct env_timer *timer)
{
    struct engine *engine = list_entry(timer, struct engine, throttle_timer);

    engine->throttle_passed = true;
    engine_kick(engine);
}

/*
 * From three quarters of the ring on each group of requests waits a little, longer the fuller the
 * ring is.
 */
static bool
group_is_throttled(struct engine *engine)
{
    uint32_t fill = engine_fill_permille(engine);

    if (fill < 750 || engine->throttle_passed || engine->stopping)
        return false;
    if (!env_timer_armed(&engine->throttle_timer)) {
        engine->throttle_timer.fn = throttle_on_timer;
        engine->counters.throttles++;
        env_timer_start(engine->env, &engine->throttle_timer, (fill - 749) * THROTTLE_NS_MAX / 250);
    }
    return true;
}

/* Are there requests, and may they go into a group now? */
static bool
group_may_take_requests(struct engine *engine)
{
    if (list_is_empty(&engine->ready)) {
        engine->client_blocked = false;
        return false;
    }
    engine->client_blocked = !ring_admits(
        engine, op_debt(list_first_entry(&engine->ready, struct op, node)));
    if (engine->client_blocked) {
        engine->counters.ring_full_waits++;
        return false;
    }
    return !group_is_throttled(engine);
}

static bool
group_window_is_open(const struct engine *engine)
{
    if (engine->stopped != 0)
        return false;
    if (engine->failed_count > 0)
        return engine->unflushed_count == 0 && !list_is_empty(&engine->urgent);
    return engine->group_count < (DLBLK_MUTANT(wide_window) ? 8 : JOURNAL_WINDOW);
}

static bool
group_try_close(struct engine *engine)
{
    uint64_t to_end = engine->ring_units - engine->next_lsn % engine->ring_units;
    uint64_t room = engine->tail + engine->ring_units - engine->next_lsn;
    uint64_t capacity = engine->group_units_max;
    bool requests, inner;

    if (!group_window_is_open(engine))
        return false;
    requests = group_may_take_requests(engine);
    inner = !list_is_empty(&engine->urgent) || engine->want_mark || writeback_wants_block(engine);
    if (!requests && !inner)
        return false;
    capacity = capacity < to_end ? capacity : to_end;
    capacity = capacity < room ? capacity : room;
    if (capacity == 0) {
        /*
         * Invariant 6 keeps this from happening; if it does all the same, the disk is left as it
         * is.
         */
        dl_trace("group", "ring is full: tail %lu next %lu", engine->tail, engine->next_lsn);
        return false;
    }
    if (requests)
        engine->throttle_passed = false;
    group_close(engine, (uint32_t)capacity, requests);
    return true;
}

void
group_close_all(struct engine *engine)
{
    while (group_try_close(engine))
        ;
}
