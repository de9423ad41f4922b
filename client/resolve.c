/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve.c: one range made alike.
 *
 *   START --- range granted ---> READ <--- another slot, or sector ---+
 *     |                           |  ^\-------------------------------+
 *     |              content here |  | the part is written, there is more
 *     |                           v  |
 *     +--- zeroes ------------> WRITE <--- next run --+
 *                                 |  \----------------+
 *                                 v
 *                               DONE
 *
 *   START  suspends: the range lock, or a task (nothing happens inside client_resolve_start())
 *   READ   suspends: a slot's answer, for as long as it is away
 *   WRITE  suspends: all slots' acknowledgements
 *
 * A run is a row of sectors that all have data, or all have none: the latter become a zero extent.
 * Where settling lacks room for so many versions all are written as data.
 * A range that no slot can deliver as a whole goes sector by sector: slots may have bad sectors in
 * different places.
 */
#include "client/resolve.h"

#include <stdlib.h>
#include <string.h>

#include "client/read_op.h"
#include "client/write_op.h"
#include "common/mutant.h"
#include "dlblk/error.h"

enum resolve_state { RESOLVE_START, RESOLVE_READ, RESOLVE_WRITE, RESOLVE_DONE };

static const struct sm_state resolve_states[] = {
    [RESOLVE_START] = {"START",
                       SM_EDGE(RESOLVE_READ) | SM_EDGE(RESOLVE_WRITE) | SM_EDGE(RESOLVE_DONE)},
    [RESOLVE_READ] = {"READ",
                      SM_EDGE(RESOLVE_READ) | SM_EDGE(RESOLVE_WRITE) | SM_EDGE(RESOLVE_DONE)},
    [RESOLVE_WRITE] = {"WRITE",
                       SM_EDGE(RESOLVE_READ) | SM_EDGE(RESOLVE_WRITE) | SM_EDGE(RESOLVE_DONE)},
    [RESOLVE_DONE] = {"DONE", SM_FINAL},
};
static const struct sm_table resolve_table = SM_TABLE("resolve", resolve_states);

struct resolve {
    struct sm sm;
    struct client_volume *volume;
    struct list node; /* volume->resolves */
    struct resolve_range range;
    struct range_lock_entry lock;
    struct env_task task;
    struct read_op *read; /* under way */
    struct write_op *write;
    uint32_t config_epoch; /* of the map that ranks and slot are about */
    uint32_t slot;         /* that is read */
    uint32_t first, count; /* the part of the range that is under way: all of it, or one sector */
    uint32_t failed;       /* bit per slot: can't deliver the part */
    uint32_t lacking;      /* ... and has a hole in it, in spite of what it lists */
    uint32_t written;      /* sectors of the range that are alike again */
    uint32_t run;          /* sectors being written */
    int err;
    uint8_t *buffer;
    uint8_t kinds[WINDOW_SECTORS];
};

static void resolve_step(struct resolve *resolve);

static uint32_t
resolve_bytes(const struct resolve *resolve)
{
    return resolve->range.sector_count * WIRE_SECTOR_BYTES;
}

static void
resolve_release_buffer(struct resolve *resolve)
{
    if (resolve->buffer != NULL)
        buffers_release(&resolve->volume->core->buffers, resolve->buffer, resolve_bytes(resolve));
}

/* --- reading --- */

static bool
resolve_may_read(const struct resolve *resolve, uint32_t slot)
{
    return segment_slot_is_read(&resolve->range.segment->slots[slot]) &&
           (resolve->failed & 1u << slot) == 0;
}

/* The highest rank; among equals one whose server is there.  READ_ANY_SLOT: all have failed. */
static uint32_t
resolve_choose(const struct resolve *resolve)
{
    const struct segment *segment = resolve->range.segment;
    uint64_t turn = DLBLK_MUTANT(client_resolve_lower_version) ? UINT64_MAX : 0;
    uint32_t best = READ_ANY_SLOT;
    bool best_is_up = false;

    for (uint32_t i = 0; i < segment->slot_count; i++) {
        bool is_up;

        if (!resolve_may_read(resolve, i))
            continue;
        is_up = client_session_is_up(
            &client_core_server(resolve->volume->core, segment->slots[i].server_id)->session);
        if (best != READ_ANY_SLOT &&
            ((resolve->range.ranks[i] ^ turn) < (resolve->range.ranks[best] ^ turn) ||
             (resolve->range.ranks[i] == resolve->range.ranks[best] && (best_is_up || !is_up))))
            continue;
        best = i;
        best_is_up = is_up;
    }
    return best;
}

static bool
resolve_slots_are_alike(const struct resolve *resolve)
{
    const struct segment *segment = resolve->range.segment;
    uint64_t rank = 0;

    for (uint32_t i = 0; i < segment->slot_count; i++) {
        if (!segment_slot_is_read(&segment->slots[i]))
            continue;
        if (rank != 0 && rank != resolve->range.ranks[i])
            return false;
        rank = resolve->range.ranks[i];
        if (rank == 0)
            return false;
    }
    return resolve->range.listed;
}

/*
 * What a slot lists as written can't be a hole: it does not have what it lists.  (Of a write that
 * was pulled it lists the range that holds the parts; what lies between them may have come from a
 * source without that write.)
 */
static bool
resolve_has_listed_holes(const struct resolve *resolve)
{
    return resolve->range.listed && resolve->range.ranks[resolve->slot] != 0 &&
           memchr(resolve->kinds + resolve->first, WIRE_SECTOR_HOLE, resolve->count) != NULL;
}

static void
resolve_on_read(struct read_op *read, int err)
{
    struct resolve *resolve = client_read_context(read);

    dl_assert(resolve->read == read);
    resolve->read = NULL;
    if (err == 0 && resolve_has_listed_holes(resolve)) {
        err = -DL_E_INDEX_CORRUPT;
        resolve->lacking |= 1u << resolve->slot;
    }
    if (err == 0) {
        if (resolve->err == 0)
            sm_move(&resolve->sm, RESOLVE_WRITE);
    } else if (resolve->err == 0 &&
               (err == -DL_E_CRC_DATA || err == -DL_E_MEDIA_READ || err == -DL_E_INDEX_CORRUPT)) {
        resolve->failed |= 1u << resolve->slot;
        sm_move(&resolve->sm, RESOLVE_READ);
    } else if (resolve->err == 0) {
        resolve->err = err;
    }
    resolve_step(resolve);
}

static void
resolve_start_read(struct resolve *resolve)
{
    struct read_own own = {
        .segment = resolve->range.segment,
        .first_sector = resolve->range.first_sector + resolve->first,
        .sector_count = resolve->count,
        .slot = resolve->slot,
        .buffer = resolve->buffer + bytes_of_sectors(resolve->first),
        .kinds = resolve->kinds + resolve->first,
        .deadline_ns = VOLUME_NO_DEADLINE,
        .pool = &resolve->volume->fill_ops,
        .on_done = resolve_on_read,
        .context = resolve,
    };

    resolve->read = client_read_start_own(resolve->volume, &own);
}

/* --- writing --- */

static void
resolve_on_write(struct write_op *write, int err)
{
    struct resolve *resolve = client_write_context(write);

    resolve->write = NULL;
    if (err != 0 && resolve->err == 0)
        resolve->err = err;
    if (err == 0)
        resolve->written += resolve->run;
    if (resolve->err == 0)
        sm_move(&resolve->sm, RESOLVE_WRITE);
    resolve_step(resolve);
}

static bool
resolve_is_data(const struct resolve *resolve, uint32_t sector)
{
    return resolve->kinds[sector] == WIRE_SECTOR_DATA;
}

/* Of the part, from where it has not been written yet. */
static uint32_t
resolve_count_runs(const struct resolve *resolve)
{
    uint32_t count = 1;

    for (uint32_t i = resolve->written + 1; i < resolve->first + resolve->count; i++)
        count += resolve_is_data(resolve, i) != resolve_is_data(resolve, i - 1);
    return count;
}

/* The next run.  (What has no data is zeroes in the buffer.)  Returns whether it is data. */
static bool
resolve_next_run(struct resolve *resolve)
{
    const struct segment_writer *writer = resolve->range.segment->writer;
    uint32_t end = resolve->first + resolve->count;
    uint32_t runs = resolve->range.zeroes ? 1 : resolve_count_runs(resolve);
    bool data = !resolve->range.zeroes && resolve_is_data(resolve, resolve->written);

    resolve->run = 1;
    if (runs == 1 ||
        (resolve->range.settles != 0 && writer != NULL && runs > client_stable_room(writer))) {
        resolve->run = end - resolve->written;
        return data || runs > 1;
    }
    while (resolve->written + resolve->run < end &&
           resolve_is_data(resolve, resolve->written + resolve->run) == data)
        resolve->run++;
    return data;
}

static void
resolve_start_write(struct resolve *resolve)
{
    struct resolve_range *range = &resolve->range;
    bool data = resolve_next_run(resolve);
    struct write_own own = {
        .segment = range->segment,
        .first_sector = range->first_sector + resolve->written,
        .sector_count = resolve->run,
        .buffer = data ? resolve->buffer + bytes_of_sectors(resolve->written) : NULL,
        .settles = range->settles,
        .on_done = resolve_on_write,
        .context = resolve,
    };

    client_write_start_own(resolve->volume, &own, &resolve->write);
}

/* --- the steps --- */

static void
resolve_finish(struct resolve *resolve)
{
    struct client_volume *volume = resolve->volume;
    struct resolve_range range = resolve->range;
    int err = resolve->err;

    dl_assert(resolve->read == NULL);
    dl_assert(resolve->write == NULL);
    if (range_lock_is_held(&resolve->lock))
        range_lock_release(&volume->lock, &resolve->lock);
    if (range_lock_has_ready(&volume->lock) || volume->close != NULL)
        client_volume_defer(volume);
    list_remove(&resolve->node);
    volume->resolve_count--;
    resolve_release_buffer(resolve);
    free(resolve);
    range.on_done(range.context, err);
}

/* From this sector of the range on, one by one. */
static void
resolve_go_on(struct resolve *resolve, uint32_t first)
{
    bool over = resolve->err != 0 || first == resolve->range.sector_count;

    resolve->first = first;
    resolve->count = 1;
    resolve->written = first;
    resolve->failed = 0;
    resolve->lacking = 0;
    sm_move(&resolve->sm, over ? RESOLVE_DONE : RESOLVE_READ);
}

/*
 * No slot can deliver the part.  A hole in an in-sync slot says that nothing was acknowledged
 * there: it is as good as any older content, and slots that list the same are not alike.
 */
static void
resolve_has_no_source(struct resolve *resolve)
{
    if (resolve->count > 1) {
        resolve_go_on(resolve, resolve->first);
        return;
    }
    if (resolve->lacking != 0) {
        resolve->kinds[resolve->first] = WIRE_SECTOR_HOLE;
        sm_move(&resolve->sm, RESOLVE_WRITE);
        return;
    }
    if (!resolve_slots_are_alike(resolve))
        resolve->err = -DL_E_MEDIA_READ;
    resolve_go_on(resolve, resolve->first + 1);
}

/*
 * What was written there while this waited for the range is read, and written again; zeroes would
 * replace it.
 */
static bool
resolve_comes_too_late(const struct resolve *resolve)
{
    const struct resolve_range *range = &resolve->range;

    return range->zeroes && !client_unsettled_is_left(range->segment, range->first_sector,
                                                      range->sector_count, range->settles);
}

static void
resolve_step(struct resolve *resolve)
{
    if (resolve->err == 0 && resolve->sm.state == RESOLVE_START && resolve_comes_too_late(resolve))
        resolve->err = -DL_E_STALE_MAP;
    if (resolve->err != 0 && resolve->sm.state != RESOLVE_DONE)
        sm_move(&resolve->sm, RESOLVE_DONE);
    for (;;) {
        switch ((enum resolve_state)resolve->sm.state) {
        case RESOLVE_START:
            sm_move(&resolve->sm, resolve->range.zeroes ? RESOLVE_WRITE : RESOLVE_READ);
            continue;
        case RESOLVE_READ:
            resolve->slot = resolve_choose(resolve);
            if (resolve->slot != READ_ANY_SLOT) {
                resolve_start_read(resolve);
                return; /* suspended: the slot's answer */
            }
            resolve_has_no_source(resolve);
            continue;
        case RESOLVE_WRITE:
            if (resolve->written < resolve->first + resolve->count) {
                resolve_start_write(resolve);
                return; /* suspended: acknowledgements */
            }
            resolve_go_on(resolve, resolve->first + resolve->count);
            continue;
        case RESOLVE_DONE:
            resolve_finish(resolve);
            return;
        }
    }
}

static void
resolve_on_granted(struct range_lock_entry *entry)
{
    resolve_step(list_entry(entry, struct resolve, lock));
}

static void
resolve_on_task(struct env_task *task)
{
    struct resolve *resolve = list_entry(task, struct resolve, task);

    if (resolve->err != 0 || !resolve->range.exclusive ||
        range_lock_acquire(&resolve->volume->lock, &resolve->lock, resolve->range.segment->index,
                           resolve->range.first_sector, resolve->range.sector_count, true))
        resolve_step(resolve);
}

struct resolve *
client_resolve_start(struct client_volume *volume, const struct resolve_range *range)
{
    struct resolve *resolve = calloc(1, sizeof(*resolve));

    dl_assert(client_resolve_may_start(volume));
    dl_assert(range->sector_count > 0);
    dl_assert(range->zeroes || range->sector_count <= WINDOW_SECTORS);
    if (resolve == NULL)
        return NULL;
    resolve->volume = volume;
    resolve->range = *range;
    resolve->config_epoch = range->segment->config_epoch;
    resolve->count = range->sector_count;
    if (!range->zeroes)
        resolve->buffer = buffers_acquire(&volume->core->buffers, resolve_bytes(resolve));
    if (!range->zeroes && resolve->buffer == NULL) {
        free(resolve);
        return NULL;
    }
    sm_init(&resolve->sm, &resolve_table, RESOLVE_START, range->segment->index);
    resolve->lock.on_granted = resolve_on_granted;
    resolve->task.fn = resolve_on_task;
    list_push_back(&volume->resolves, &resolve->node);
    volume->resolve_count++;
    env_defer(volume->core->env, &resolve->task);
    return resolve;
}

static void
resolve_abort(struct resolve *resolve, int err)
{
    if (resolve->err != 0)
        return;
    resolve->err = err;
    if (resolve->task.queued)
        return; /* it ends in its task */
    if (resolve->read != NULL)
        client_read_abort(resolve->read, err);
    else if (resolve->write != NULL)
        client_write_abort(resolve->write, err);
    else
        resolve_step(resolve);
}

void
client_resolve_check_maps(struct client_volume *volume)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &volume->resolves);
    while ((node = list_pop_front(&round)) != NULL) {
        struct resolve *resolve = list_entry(node, struct resolve, node);

        list_push_back(&volume->resolves, node);
        if (resolve->config_epoch == resolve->range.segment->config_epoch)
            continue;
        if (resolve->sm.state != RESOLVE_WRITE || DLBLK_MUTANT(client_drop_rewrite))
            resolve_abort(resolve, -DL_E_STALE_MAP);
    }
}

void
client_resolve_abort_all(struct client_volume *volume, int err)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &volume->resolves);
    while ((node = list_pop_front(&round)) != NULL) {
        list_push_back(&volume->resolves, node);
        resolve_abort(list_entry(node, struct resolve, node), err);
    }
}

void
client_resolve_abandon_all(struct client_volume *volume)
{
    struct resolve *resolve;
    struct resolve *following;

    list_for_each_entry_safe (resolve, following, &volume->resolves, node) {
        resolve_release_buffer(resolve);
        free(resolve);
    }
    volume->resolve_count = 0;
}
