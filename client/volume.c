/* SPDX-License-Identifier: Apache-2.0 */
/*
 * volume.c: requests of a volume: from the queue to pieces, and from the last piece to on_done.
 *
 *   submit --> queue -- room for it --> pieces, one operation each -- all ended --> done
 *                                                             done -- task --> on_done
 *
 * Pieces are made strictly in the order of submission, and each takes its place in the range lock
 * at once: so requests that overlap take effect in that order.  volume->order holds writes and
 * flushes; a flush is over when it is the first.
 */
#include "client/volume.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/read_op.h"
#include "client/resolve.h"
#include "client/volume_internal.h"
#include "client/write_op.h"
#include "common/align.h"
#include "common/text.h"

#define OPTIMAL_IO_BYTES (1u << 20)
#define FAILURE_EVENT_NS (1000 * CLIENT_NS_PER_MS)
#define BLOCKED_SHOWN_NS (1000 * CLIENT_NS_PER_MS)

void
client_volume_defer(struct client_volume *volume)
{
    env_defer(volume->core->env, &volume->task);
}

/* --- queues of requests --- */

static void
request_queue_push(struct request_queue *queue, struct dlblk_request *request)
{
    request_state_of(request)->next = NULL;
    if (queue->last != NULL)
        request_state_of(queue->last)->next = request;
    else
        queue->first = request;
    queue->last = request;
}

static struct dlblk_request *
request_queue_pop(struct request_queue *queue)
{
    struct dlblk_request *request = queue->first;

    if (request == NULL)
        return NULL;
    queue->first = request_state_of(request)->next;
    if (queue->first == NULL)
        queue->last = NULL;
    return request;
}

/* --- the end of requests --- */

static void
volume_count_done(struct client_volume *volume, const struct dlblk_request *request)
{
    switch (request->op) {
    case DLBLK_READ:
        volume->stats.reads++;
        volume->stats.bytes_read += request->length_bytes;
        return;
    case DLBLK_WRITE:
        volume->stats.writes++;
        volume->stats.bytes_written += request->length_bytes;
        return;
    case DLBLK_FLUSH:
        volume->stats.flushes++;
        return;
    case DLBLK_DISCARD:
        volume->stats.discards++;
        volume->stats.bytes_discarded += request->length_bytes;
        return;
    case DLBLK_WRITE_ZEROES:
        volume->stats.write_zeroes++;
        volume->stats.bytes_discarded += request->length_bytes;
        return;
    }
}

static void
volume_request_done(struct client_volume *volume, struct dlblk_request *request)
{
    struct request_state *state = request_state_of(request);

    if (request_is_ordered(request))
        list_remove(&state->order_node);
    request_queue_push(&volume->done, request);
    if (!volume->running_done)
        client_volume_defer(volume);
}

/* Flushes that have nothing in front of them any more. */
static void
volume_check_flushes(struct client_volume *volume)
{
    while (!list_is_empty(&volume->order)) {
        struct request_state *state = list_first_entry(&volume->order, struct request_state,
                                                       order_node);
        struct dlblk_request *request = list_entry((void **)(void *)state, struct dlblk_request,
                                                   dlblk_private[0]);

        if (request->op != DLBLK_FLUSH)
            return;
        if (volume->fenced && state->err == 0)
            state->err = volume->fence_err;
        volume_request_done(volume, request);
    }
}

void
client_volume_piece_done(struct client_volume *volume, struct dlblk_request *request, int err)
{
    struct request_state *state = request_state_of(request);
    bool ordered = request_is_ordered(request);

    dl_assert(state->pieces_pending > 0);
    /* What has come since we know of a newer owner may be of his making. */
    if (volume->fenced && err == 0)
        err = volume->fence_err;
    if (err != 0 && state->err == 0)
        state->err = err;
    if (--state->pieces_pending > 0)
        return;
    volume_request_done(volume, request);
    if (ordered)
        volume_check_flushes(volume);
}

/*
 * The callback may submit again, and free the request.  What it submits can be over at once (a read
 * of what is not allocated): that is for the next turn, or a caller who never has enough would keep
 * the thread for itself.
 */
static void
volume_run_done(struct client_volume *volume)
{
    struct request_queue round = volume->done;
    struct dlblk_request *request;

    volume->done = (struct request_queue){NULL, NULL};
    volume->running_done = true;
    while ((request = request_queue_pop(&round)) != NULL) {
        int err = request_state_of(request)->err;

        if (err == 0)
            volume_count_done(volume, request);
        dl_assert(volume->requests_in_flight > 0);
        volume->requests_in_flight--;
        request->on_done(request, err);
    }
    volume->running_done = false;
    if (volume->done.first != NULL)
        env_timer_start(volume->core->env, &volume->done_timer, 0);
}

static void
volume_on_done_timer(struct env_timer *timer)
{
    client_volume_defer(list_entry(timer, struct client_volume, done_timer));
}

/* --- pieces --- */

/* Room for one more operation? */
static bool
volume_may_start(struct client_volume *volume, const struct pool *pool, uint32_t bytes)
{
    if (pool->free_count == 0)
        return false; /* the end of one calls us again */
    /* One for each volume at least: what another one has in flight can wait for long. */
    if (volume->in_flight_bytes == 0 || client_core_may_admit(volume->core, bytes))
        return true;
    if (!list_is_linked(&volume->admission_node))
        list_push_back(&volume->core->admission, &volume->admission_node);
    return false;
}

static struct io_piece
io_piece_of(uint32_t segment, uint32_t offset_bytes, uint32_t length_bytes)
{
    uint32_t skip_bytes = offset_bytes & (WIRE_SECTOR_BYTES - 1);

    return (struct io_piece){
        .segment_idx = segment,
        .first_sector = sector_of_offset(offset_bytes),
        .sector_count = sectors_of_bytes(sector_round_up((uint64_t)skip_bytes + length_bytes)),
        .skip_bytes = skip_bytes,
        .length_bytes = length_bytes,
    };
}

static bool
volume_start_transfers(struct client_volume *volume, struct dlblk_request *request)
{
    struct request_state *state = request_state_of(request);
    bool write = request->op == DLBLK_WRITE;
    const struct pool *pool = write ? &volume->write_ops : &volume->read_ops;

    while (state->progress_bytes < request->length_bytes) {
        struct io_slice slice = {&request->iov[state->iov_idx], state->iov_skip_bytes};
        struct geometry_piece place = geometry_first_piece(
            &volume->geometry, request->offset_bytes + state->progress_bytes,
            request->length_bytes - state->progress_bytes);
        struct io_piece piece = io_piece_of(place.segment, place.offset_bytes, place.length_bytes);

        if (!volume_may_start(volume, pool, place.length_bytes))
            return false;
        piece.slice = slice;
        state->progress_bytes += place.length_bytes;
        if (state->progress_bytes < request->length_bytes) {
            slice = io_slice_advance(slice, place.length_bytes);
            state->iov_idx = (uint32_t)(slice.iov - request->iov);
            state->iov_skip_bytes = (uint32_t)slice.skip_bytes;
        }
        state->pieces_pending++;
        if (write)
            client_write_start(volume, request, &piece, 0);
        else
            client_read_start(volume, request, &piece);
    }
    return true;
}

/* Zeroes that cover only a part of their sector. */
static void
volume_start_partial_zeroes(struct client_volume *volume, struct dlblk_request *request,
                            uint64_t offset_bytes, uint64_t end_bytes)
{
    struct request_state *state = request_state_of(request);
    uint64_t sector_end = sector_round_down(offset_bytes) + WIRE_SECTOR_BYTES;
    uint64_t length_bytes = min_u64(end_bytes, sector_end) - offset_bytes;
    struct geometry_piece place = geometry_first_piece(&volume->geometry, offset_bytes,
                                                       length_bytes);
    struct io_piece piece = io_piece_of(place.segment, place.offset_bytes, place.length_bytes);

    dl_assert(place.length_bytes == length_bytes);
    state->progress_bytes += length_bytes;
    state->pieces_pending++;
    client_write_start(volume, request, &piece, WRITE_OP_CLEARS);
}

/*
 * Whole sectors, one stripe set after the other, one operation for each of its segments.  What no
 * segment exists of is passed over: nobody has written there, nor waits to.
 */
static void
volume_start_zero_slice(struct client_volume *volume, struct dlblk_request *request,
                        uint64_t offset_bytes, uint64_t end_bytes)
{
    const struct geometry *geometry = &volume->geometry;
    struct request_state *state = request_state_of(request);
    uint64_t set_end = min_u64(geometry_set_end(geometry, offset_bytes), end_bytes);
    struct geometry_slice slice = geometry_set_slice(geometry, offset_bytes, set_end,
                                                     state->iov_idx);

    if (slice.length_bytes > 0 && client_map_get(&volume->map, slice.segment) != NULL) {
        struct io_piece piece = io_piece_of(slice.segment, slice.offset_bytes, slice.length_bytes);

        state->pieces_pending++;
        client_write_start(volume, request, &piece, WRITE_OP_CLEARS | WRITE_OP_ZERO);
    }
    if (++state->iov_idx == geometry->stripe_width) {
        state->iov_idx = 0;
        state->progress_bytes += set_end - offset_bytes;
    }
}

uint64_t
client_volume_skip_unallocated(const struct client_volume *volume, uint64_t offset_bytes,
                               uint64_t end_bytes)
{
    const struct geometry *geometry = &volume->geometry;
    uint32_t set = geometry_set_of_offset(geometry, offset_bytes);
    struct segment *next = client_map_next(&volume->map, set * geometry->stripe_width);
    uint64_t start;

    if (next == NULL)
        return end_bytes;
    start = next->index / geometry->stripe_width * geometry->set_bytes;
    return start <= offset_bytes ? offset_bytes : min_u64(start, end_bytes);
}

static bool
volume_start_zeroes(struct client_volume *volume, struct dlblk_request *request)
{
    struct request_state *state = request_state_of(request);
    uint64_t end_bytes = request->offset_bytes + request->length_bytes;

    while (state->progress_bytes < request->length_bytes) {
        uint64_t offset_bytes = request->offset_bytes + state->progress_bytes;

        if (!volume_may_start(volume, &volume->write_ops, WIRE_SECTOR_BYTES))
            return false;
        if (state->iov_idx == 0 && offset_bytes % WIRE_SECTOR_BYTES == 0) {
            uint64_t inner_end = sector_round_down(end_bytes);
            uint64_t skipped = client_volume_skip_unallocated(volume, offset_bytes, inner_end);

            state->progress_bytes += skipped > offset_bytes ? skipped - offset_bytes : 0;
            if (skipped > offset_bytes)
                continue;
        }
        if (offset_bytes % WIRE_SECTOR_BYTES != 0 || end_bytes - offset_bytes < WIRE_SECTOR_BYTES)
            volume_start_partial_zeroes(volume, request, offset_bytes, end_bytes);
        else
            volume_start_zero_slice(volume, request, offset_bytes, sector_round_down(end_bytes));
    }
    return true;
}

/* Make pieces for what waits in the queue, as far as there is room. */
static void
volume_pump(struct client_volume *volume)
{
    struct dlblk_request *request;
    bool all;

    volume->pumping = true;
    while ((request = volume->queue.first) != NULL) {
        struct request_state *state = request_state_of(request);

        if (volume->fenced && state->err == 0)
            state->err = volume->fence_err;
        if (state->err != 0)
            all = true;
        else if (request->op == DLBLK_READ || request->op == DLBLK_WRITE)
            all = volume_start_transfers(volume, request);
        else
            all = volume_start_zeroes(volume, request);
        if (!all)
            break;
        (void)request_queue_pop(&volume->queue);
        client_volume_piece_done(volume, request, 0);
    }
    volume->pumping = false;
}

/* --- submission --- */

static int
volume_check_iov(const struct dlblk_request *request)
{
    uint64_t total_bytes = 0;

    if (request->length_bytes > DLBLK_REQUEST_BYTES_MAX || request->iov == NULL)
        return -EINVAL;
    for (uint32_t i = 0; i < request->iov_count; i++)
        total_bytes += request->iov[i].iov_len;
    return total_bytes == request->length_bytes ? 0 : -EINVAL;
}

static int
volume_check_request(const struct client_volume *volume, const struct dlblk_request *request)
{
    uint64_t block_mask = volume->geometry.logical_block_bytes - 1;

    if (volume->sm.state != VOLUME_OPEN)
        return -ESHUTDOWN;
    if (volume->fenced)
        return volume->fence_err;
    if (request->op == DLBLK_FLUSH)
        return 0;
    if (request->op < DLBLK_READ || request->op > DLBLK_WRITE_ZEROES)
        return -EINVAL;
    if (request->op != DLBLK_READ && (volume->flags & DLBLK_OPEN_READ_ONLY) != 0)
        return -DL_E_READ_ONLY;
    if (((request->offset_bytes | request->length_bytes) & block_mask) != 0)
        return -DL_E_ALIGNMENT;
    if (request->length_bytes == 0 || request->offset_bytes > volume->geometry.size_bytes ||
        request->length_bytes > volume->geometry.size_bytes - request->offset_bytes)
        return -DL_E_RANGE;
    if (request->op == DLBLK_READ || request->op == DLBLK_WRITE)
        return volume_check_iov(request);
    return 0;
}

void
client_volume_submit(struct client_volume *volume, struct dlblk_request *request)
{
    struct request_state *state = request_state_of(request);
    struct client_core *core = volume->core;

    memset(state, 0, sizeof(*state));
    state->volume = volume;
    state->err = volume_check_request(volume, request);
    state->deadline_ns = client_core_deadline_ns(core);
    state->pieces_pending = 1;
    volume->requests_in_flight++;
    if (request_is_ordered(request))
        list_push_back(&volume->order, &state->order_node);
    if (request->op == DLBLK_FLUSH) {
        volume_check_flushes(volume);
    } else if (state->err != 0) {
        client_volume_piece_done(volume, request, state->err);
    } else {
        request_queue_push(&volume->queue, request);
        if (volume->queue.first == request)
            volume_pump(volume);
        client_core_want_tick(core);
    }
}

/* --- fencing, time --- */

void
client_volume_fence(struct client_volume *volume, int err, const char *why)
{
    if (volume->fenced)
        return;
    dl_assert(err != 0);
    volume->fenced = true;
    volume->fence_err = err;
    volume->kick = true;
    client_core_event(volume->core, DLBLK_EVENT_ERROR,
                      "volume %s: %s: %s; all its I/O fails from now on", volume->name,
                      err == -DL_E_LEASE_OLD ? "taken over" : dl_err_str(err), why);
    client_volume_defer(volume);
}

/*
 * Every op in turn.  What is done to one can end it and others: those that are still to come stay
 * linked, in `round`, and can leave it.
 */
void
client_volume_abort_all(struct client_volume *volume, int err)
{
    struct list round;
    struct list *node;

    client_resolve_abort_all(volume, err);
    (void)client_stable_cancel(volume);
    list_init(&round);
    list_splice_back(&round, &volume->ops);
    while ((node = list_pop_front(&round)) != NULL) {
        list_push_back(&volume->ops, node);
        client_io_abort(list_entry(node, struct io_op, node), err);
    }
}

void
client_volume_check_ops(struct client_volume *volume)
{
    uint64_t now_ns = env_now_ns(volume->core->env);
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &volume->ops);
    while ((node = list_pop_front(&round)) != NULL) {
        struct io_op *op = list_entry(node, struct io_op, node);

        list_push_back(&volume->ops, node);
        if (op->err == 0)
            op->type->check(op, now_ns);
    }
}

static void
volume_run_kick(struct client_volume *volume)
{
    volume->kick = false;
    if (!volume->fenced)
        return;
    client_takeover_end(volume);
    client_allocate_cancel(volume);
    client_eject_cancel(volume);
    client_waits_cancel(volume);
    client_volume_abort_all(volume, volume->fence_err);
    /* What waits in the queue is failed by the pump. */
}

static void
volume_on_task(struct env_task *task)
{
    struct client_volume *volume = list_entry(task, struct client_volume, task);
    struct range_lock_entry *entry;

    if (volume->kick)
        volume_run_kick(volume);
    while ((entry = range_lock_next_ready(&volume->lock)) != NULL)
        entry->on_granted(entry);
    volume_run_done(volume);
    client_extents_run(volume);
    volume_pump(volume);
    client_takeover_run_changed(volume);
    client_eject_run(volume);
    if (volume->close != NULL)
        client_close_step(volume); /* may free the volume */
}

/*
 * Ops by age: those that are old enough to be looked at.  The young end of the list is not touched.
 */
static void
volume_check_old_ops(struct client_volume *volume, uint64_t now_ns)
{
    uint64_t check_ns = min_u64(VOLUME_SLOT_TIMEOUT_NS,
                                volume->core->options.eject_slow_ms * CLIENT_NS_PER_MS);
    struct list round;
    struct list kept;

    list_init(&round);
    list_init(&kept);
    while (!list_is_empty(&volume->ops)) {
        struct io_op *op = list_first_entry(&volume->ops, struct io_op, node);

        if (now_ns - op->start_ns < check_ns && now_ns < op->deadline_ns)
            break;
        list_remove(&op->node);
        list_push_back(&round, &op->node);
    }
    while (!list_is_empty(&round)) {
        struct io_op *op = list_first_entry(&round, struct io_op, node);

        list_remove(&op->node);
        list_push_back(&kept, &op->node);
        if (op->err == 0 && now_ns >= op->deadline_ns)
            client_io_abort(op, -DL_E_TIMEOUT);
        else if (op->err == 0)
            op->type->check(op, now_ns);
    }
    list_splice_back(&kept, &volume->ops);
    list_splice_back(&volume->ops, &kept);
}

static void
volume_run_retry(struct client_volume *volume, uint64_t now_ns)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &volume->retry);
    while ((node = list_pop_front(&round)) != NULL) {
        struct io_op *op = io_op_of_wait_node(node);

        if (op->retry_ns > now_ns)
            list_push_back(&volume->retry, node);
        else
            op->type->step(op);
    }
}

static void
volume_on_retry_timer(struct env_timer *timer)
{
    struct client_volume *volume = list_entry(timer, struct client_volume, retry_timer);
    uint64_t now_ns = env_now_ns(volume->core->env);
    uint64_t next_ns = UINT64_MAX;
    struct io_op *op;

    volume_run_retry(volume, now_ns);
    list_for_each_entry (op, &volume->retry, wait_node)
        if (op->retry_ns > now_ns && op->retry_ns < next_ns)
            next_ns = op->retry_ns;
    /* What is later than the next tick is that one's. */
    if (next_ns == UINT64_MAX || next_ns - now_ns > CLIENT_TICK_NS ||
        env_timer_armed(&volume->retry_timer))
        return;
    volume->retry_timer_ns = next_ns;
    env_timer_start(volume->core->env, &volume->retry_timer, next_ns - now_ns);
}

static void
volume_check_blocked(struct client_volume *volume, uint64_t now_ns)
{
    if (!volume->blocked || volume->blocked_ops > 0)
        return;
    volume->blocked = false;
    client_core_event(volume->core, DLBLK_EVENT_INFO, "volume %s goes on; it was blocked for %s",
                      volume->name, text_of_duration(now_ns - volume->blocked_since_ns).text);
}

/*
 * Requests that found no room in all their time.  (Once begun, each piece has a time of its own.)
 */
static void
volume_check_queue(struct client_volume *volume, uint64_t now_ns)
{
    for (struct dlblk_request *request = volume->queue.first; request != NULL;
         request = request_state_of(request)->next) {
        struct request_state *state = request_state_of(request);

        if (now_ns < state->deadline_ns)
            break;
        if (state->err == 0 && state->progress_bytes == 0)
            state->err = -DL_E_TIMEOUT;
    }
    if (volume->queue.first != NULL)
        client_volume_defer(volume);
}

void
client_volume_on_tick(struct client_volume *volume)
{
    uint64_t now_ns = env_now_ns(volume->core->env);

    volume_check_old_ops(volume, now_ns);
    volume_run_retry(volume, now_ns);
    volume_check_queue(volume, now_ns);
    client_eject_tick(volume);
    volume_check_blocked(volume, now_ns);
    client_allocate_tick(volume);
    client_stable_tick(volume);
    client_unsettled_tick(volume);
    client_takeover_tick(volume);
    client_waits_tick(volume);
    if (volume->close != NULL || !list_is_empty(&volume->extents))
        client_volume_defer(volume);
}

bool
client_volume_wants_tick(const struct client_volume *volume)
{
    return volume->op_count > 0 || volume->queue.first != NULL || volume->close != NULL ||
           volume->takeover != NULL || !list_is_empty(&volume->extents) ||
           volume->wanted.count > 0 || volume->map_wanted || volume->blocked ||
           volume->eject_wishes.count > 0 || !list_is_empty(&volume->writers) ||
           (volume->waits_said && !volume->fenced);
}

void
client_volume_on_server_failed(struct client_volume *volume)
{
    client_volume_check_ops(volume);
}

void
client_volume_on_server_up(struct client_volume *volume)
{
    volume_run_retry(volume, UINT64_MAX);
}

void
client_volume_on_admission(struct client_volume *volume)
{
    volume_pump(volume);
}

void
client_volume_on_meta_up(struct client_volume *volume)
{
    client_attach_on_meta_up(volume);
}

void
client_volume_on_changed(struct client_volume *volume, const Dl__VolumeChanged *changed)
{
    const Dl__Volume *news = changed->volume;
    char *name;

    if (changed->deleted) {
        client_volume_fence(volume, -DL_E_VOLUME_DELETED, "the metadata service says so");
        return;
    }
    if (news->lease_epoch > volume->lease_epoch) {
        client_volume_fence(volume, -DL_E_LEASE_OLD, "the metadata service has a newer owner");
        return;
    }
    name = strdup(news->name);
    if (name != NULL) {
        free(volume->name);
        volume->name = name;
        volume->attach_request.name = name; /* it may have to be sent again */
    }
    if (news->size_bytes <= volume->geometry.size_bytes)
        return;
    volume->geometry.size_bytes = news->size_bytes;
    if (volume->on_resize != NULL)
        volume->on_resize(volume->on_resize_context, news->size_bytes);
}

/* --- what can be seen from outside --- */

void
client_volume_get_geometry(const struct client_volume *volume,
                           struct dlblk_volume_geometry *ret_geometry)
{
    const struct geometry *geometry = &volume->geometry;

    *ret_geometry = (struct dlblk_volume_geometry){
        .id = volume->id,
        .size_bytes = geometry->size_bytes,
        .logical_block_bytes = geometry->logical_block_bytes,
        .atomic_bytes = max_u32(WIRE_SECTOR_BYTES, geometry->logical_block_bytes),
        .optimal_io_bytes = geometry->stripe_width > 1 ? geometry->stripe_unit_bytes
                                                       : OPTIMAL_IO_BYTES,
        .segment_bytes = geometry->segment_bytes,
        .read_only = (volume->flags & DLBLK_OPEN_READ_ONLY) != 0,
    };
}

void
client_volume_get_stats(const struct client_volume *volume, struct dlblk_volume_stats *ret_stats)
{
    struct dlblk_volume_stats stats = volume->stats;
    uint64_t now_ns = env_now_ns(volume->core->env);
    const struct io_op *op;
    char text[sizeof(stats.blocked)];
    bool shown = false;

    stats.in_flight = volume->requests_in_flight;
    stats.reconnects = volume->core->reconnects;
    stats.is_blocked = volume->blocked;
    list_for_each_entry (op, &volume->ops, node) {
        if (!op->type->waits_for(op, text, sizeof(text)))
            continue;
        stats.requests_waiting++;
        /* What holds the volume up says more than what waits behind it. */
        if ((op->blocked && !shown) ||
            (stats.blocked[0] == '\0' && now_ns - op->start_ns >= BLOCKED_SHOWN_NS))
            memcpy(stats.blocked, text, sizeof(text));
        shown = shown || op->blocked;
    }
    for (const struct dlblk_request *request = volume->queue.first; request != NULL;
         request = ((const struct request_state *)(const void *)request->dlblk_private)->next)
        stats.requests_waiting++;
    *ret_stats = stats;
}

void
client_volume_say_failure(struct client_volume *volume, const struct io_op *op,
                          const struct client_server *server)
{
    uint64_t now_ns = env_now_ns(volume->core->env);
    uint64_t offset_bytes = geometry_volume_offset(&volume->geometry, op->segment_idx,
                                                   (uint32_t)bytes_of_sectors(op->first_sector));
    const char *problem = server != NULL ? server->session.problem : "";

    if (volume->failure_event_ns != 0 && now_ns - volume->failure_event_ns < FAILURE_EVENT_NS) {
        volume->failures_unsaid++;
        return;
    }
    client_core_event(volume->core, DLBLK_EVENT_ERROR,
                      "volume %s: a %s at %lu (segment %u) failed after %s: %s%s%s%s%s "
                      "(%lu more since the last such event)",
                      volume->name, op->type->name, offset_bytes, op->segment_idx,
                      text_of_duration(now_ns - op->start_ns).text,
                      server != NULL ? client_server_name(server).text : "",
                      server != NULL ? ": " : "", dl_err_str(op->err),
                      problem[0] != '\0' ? ": " : "", problem, volume->failures_unsaid);
    volume->failure_event_ns = now_ns;
    volume->failures_unsaid = 0;
}

uint64_t
client_volume_id(const struct client_volume *volume)
{
    return volume->id;
}

uint32_t
client_volume_lease_epoch(const struct client_volume *volume)
{
    return volume->lease_epoch;
}

bool
client_volume_is_fenced(const struct client_volume *volume)
{
    return volume->fenced;
}

uint32_t
client_volume_unresolved_count(const struct client_volume *volume)
{
    return volume->unresolved_count;
}

void
client_volume_on_resize(struct client_volume *volume,
                        void (*on_resize)(void *context, uint64_t size_bytes), void *context)
{
    volume->on_resize = on_resize;
    volume->on_resize_context = context;
}

/* --- life --- */

static void
pool_abandon(struct pool *pool)
{
    /* A simulated crash: nobody gives anything back. */
    pool->free_count = pool->item_count;
    pool_fini(pool);
}

int
client_volume_init(struct client_volume *volume)
{
    size_t write_bytes = client_write_op_bytes(volume->map.slots_max);
    int err;

    list_init(&volume->ops);
    list_init(&volume->retry);
    list_init(&volume->order);
    list_init(&volume->admission_node);
    list_init(&volume->writers);
    list_init(&volume->idle);
    volume->task.fn = volume_on_task;
    volume->done_timer.fn = volume_on_done_timer;
    volume->retry_timer.fn = volume_on_retry_timer;
    range_lock_init(&volume->lock);
    list_init(&volume->resolves);
    list_init(&volume->extents);
    client_eject_init(volume);
    client_waits_init(volume);
    client_read_init(volume);
    err = client_allocate_init(volume);
    if (err == 0)
        err = pool_init(&volume->read_ops, client_read_op_bytes(), VOLUME_READ_OPS_MAX);
    if (err == 0)
        err = pool_init(&volume->write_ops, write_bytes, VOLUME_WRITE_OPS_MAX);
    if (err == 0)
        err = pool_init(&volume->fill_ops, client_read_op_bytes(),
                        2 * VOLUME_WRITE_OPS_MAX + VOLUME_RESOLVES_MAX + 1);
    if (err == 0)
        err = pool_init(&volume->own_ops, write_bytes, VOLUME_RESOLVES_MAX);
    return err;
}

static void
volume_fini(struct client_volume *volume)
{
    client_allocate_cancel(volume);
    client_eject_cancel(volume);
    client_waits_cancel(volume);
    client_meta_call_cancel(&volume->attach_call);
    client_takeover_end(volume);
    client_allocate_fini(volume);
    client_eject_fini(volume);
    client_stable_fini(volume);
    client_map_fini(&volume->map);
    free(volume->name);
    free(volume->close);
    free(volume);
}

void
client_volume_free(struct client_volume *volume)
{
    dl_assert(client_volume_is_quiet(volume));
    env_timer_stop(volume->core->env, &volume->done_timer);
    env_timer_stop(volume->core->env, &volume->retry_timer);
    env_timer_stop(volume->core->env, &volume->hedge_timer);
    list_remove(&volume->node);
    if (list_is_linked(&volume->admission_node))
        list_remove(&volume->admission_node);
    pool_fini(&volume->read_ops);
    pool_fini(&volume->write_ops);
    pool_fini(&volume->fill_ops);
    pool_fini(&volume->own_ops);
    volume_fini(volume);
}

void
client_volume_abandon(struct client_volume *volume)
{
    struct io_op *op;

    list_for_each_entry (op, &volume->ops, node)
        op->type->free(op);
    client_resolve_abandon_all(volume);
    client_takeover_abandon(volume);
    list_remove(&volume->node);
    pool_abandon(&volume->read_ops);
    pool_abandon(&volume->write_ops);
    pool_abandon(&volume->fill_ops);
    pool_abandon(&volume->own_ops);
    volume_fini(volume);
}
