/* SPDX-License-Identifier: Apache-2.0 */
/* io_op.c: what every operation does at its beginning, while it waits, and at its end. */
#include "client/io_op.h"

#include <string.h>

#include "client/volume_internal.h"
#include "common/align.h"

/* --- the caller's iovecs --- */

struct io_slice
io_slice_advance(struct io_slice slice, uint64_t bytes)
{
    if (slice.iov == NULL)
        return slice;
    while (bytes > 0 && bytes >= slice.iov->iov_len - slice.skip_bytes) {
        bytes -= slice.iov->iov_len - slice.skip_bytes;
        slice.iov++;
        slice.skip_bytes = 0;
    }
    slice.skip_bytes += bytes;
    return slice;
}

/* The memory up to the end of the present iovec, at most length_bytes of it. */
static size_t
io_slice_run(const struct io_slice *slice, uint32_t length_bytes)
{
    return min_u64(slice->iov->iov_len - slice->skip_bytes, length_bytes);
}

void
io_slice_copy_from(struct io_slice slice, void *to, uint32_t length_bytes)
{
    uint8_t *target = to;

    if (slice.iov == NULL) {
        memset(to, 0, length_bytes);
        return;
    }
    while (length_bytes > 0) {
        size_t run = io_slice_run(&slice, length_bytes);

        if (run > 0)
            memcpy(target, (const uint8_t *)slice.iov->iov_base + slice.skip_bytes, run);
        target += run;
        length_bytes -= (uint32_t)run;
        slice.iov++;
        slice.skip_bytes = 0;
    }
}

void
io_slice_copy_to(struct io_slice slice, const void *from, uint32_t length_bytes)
{
    const uint8_t *source = from;

    while (length_bytes > 0) {
        size_t run = io_slice_run(&slice, length_bytes);

        if (run > 0)
            memcpy((uint8_t *)slice.iov->iov_base + slice.skip_bytes, source, run);
        source += run;
        length_bytes -= (uint32_t)run;
        slice.iov++;
        slice.skip_bytes = 0;
    }
}

void
io_slice_zero(struct io_slice slice, uint32_t length_bytes)
{
    while (length_bytes > 0) {
        size_t run = io_slice_run(&slice, length_bytes);

        if (run > 0)
            memset((uint8_t *)slice.iov->iov_base + slice.skip_bytes, 0, run);
        length_bytes -= (uint32_t)run;
        slice.iov++;
        slice.skip_bytes = 0;
    }
}

uint32_t
io_slice_iovecs(struct io_slice slice, uint32_t length_bytes, struct iovec *ret_iov,
                uint32_t iov_max)
{
    uint32_t count = 0;

    dl_assert(slice.iov != NULL);
    while (length_bytes > 0) {
        size_t run = io_slice_run(&slice, length_bytes);

        if (run > 0 && count == iov_max)
            return 0;
        if (run > 0)
            ret_iov[count++] = (struct iovec){
                .iov_base = (uint8_t *)slice.iov->iov_base + slice.skip_bytes, .iov_len = run};
        length_bytes -= (uint32_t)run;
        slice.iov++;
        slice.skip_bytes = 0;
    }
    return count;
}

/* --- life of an operation --- */

static void
io_on_granted(struct range_lock_entry *entry)
{
    struct io_op *op = list_entry(entry, struct io_op, lock);

    op->type->step(op);
}

void
client_io_begin(struct io_op *op)
{
    struct client_volume *volume = op->volume;

    op->lock.on_granted = io_on_granted;
    op->start_ns = env_now_ns(volume->core->env);
    list_init(&op->wait_node);
    list_init(&op->node);
    list_push_back(&volume->ops, &op->node);
    volume->op_count++;
    client_core_want_tick(volume->core);
}

void
client_io_begin_piece(struct io_op *op, struct dlblk_request *request, const struct io_piece *piece)
{
    op->request = request;
    op->slice = piece->slice;
    op->first_sector = piece->first_sector;
    op->sector_count = piece->sector_count;
    op->skip_bytes = piece->skip_bytes;
    op->length_bytes = piece->length_bytes;
    op->deadline_ns = client_volume_piece_deadline(op->volume);
    client_io_begin(op);
    client_io_readmit(op);
}

bool
client_io_acquire(struct io_op *op, bool exclusive)
{
    return range_lock_is_held(&op->lock) ||
           range_lock_acquire(&op->volume->lock, &op->lock, op->segment_idx, op->first_sector,
                              op->sector_count, exclusive);
}

bool
client_io_waits_for_resolution(struct io_op *op)
{
    if (op->segment->state != SEGMENT_UNRESOLVED)
        return false;
    client_io_dismiss(op);
    list_push_back(&op->segment->waiters, &op->wait_node);
    return true;
}

void
client_io_let_go(struct io_op *op)
{
    struct client_volume *volume = op->volume;

    range_lock_release(&volume->lock, &op->lock);
    if (range_lock_has_ready(&volume->lock))
        client_volume_defer(volume);
    client_io_retry(op, 0);
}

void
client_io_end(struct io_op *op)
{
    struct client_volume *volume = op->volume;

    dl_assert(!list_is_linked(&op->wait_node));
    client_io_unblock(op);
    if (range_lock_is_held(&op->lock))
        range_lock_release(&volume->lock, &op->lock);
    client_io_dismiss(op);
    list_remove(&op->node);
    dl_assert(volume->op_count > 0);
    volume->op_count--;
    if (range_lock_has_ready(&volume->lock) || volume->close != NULL ||
        (volume->queue.first != NULL && !volume->pumping))
        client_volume_defer(volume);
}

void
client_io_unwait(struct io_op *op)
{
    if (list_is_linked(&op->wait_node))
        list_remove(&op->wait_node);
}

void
client_io_retry(struct io_op *op, uint64_t delay_ns)
{
    struct client_volume *volume = op->volume;
    uint64_t now_ns = env_now_ns(volume->core->env);

    if (!list_is_linked(&op->wait_node)) {
        op->retry_ns = now_ns + delay_ns;
        list_push_back(&volume->retry, &op->wait_node);
    } else if (op->retry_ns > now_ns + delay_ns) {
        op->retry_ns = now_ns + delay_ns;
    }
    client_core_want_tick(volume->core);
    if (delay_ns == 0 || delay_ns > CLIENT_TICK_NS)
        return;
    if (!env_timer_armed(&volume->retry_timer) || volume->retry_timer_ns > now_ns + delay_ns) {
        volume->retry_timer_ns = now_ns + delay_ns;
        env_timer_start(volume->core->env, &volume->retry_timer, delay_ns);
    }
}

void
client_io_block(struct io_op *op)
{
    struct client_volume *volume = op->volume;
    char text[sizeof(volume->stats.blocked)] = "";

    if (op->blocked)
        return;
    op->blocked = true;
    volume->blocked_ops++;
    if (volume->blocked)
        return;
    volume->blocked = true;
    volume->blocked_since_ns = env_now_ns(volume->core->env);
    (void)op->type->waits_for(op, text, sizeof(text));
    client_core_event(volume->core, DLBLK_EVENT_WARNING, "volume %s is blocked: %s", volume->name,
                      text);
}

void
client_io_unblock(struct io_op *op)
{
    if (!op->blocked)
        return;
    op->blocked = false;
    dl_assert(op->volume->blocked_ops > 0);
    op->volume->blocked_ops--;
}

void
client_io_wake(struct list *waiters)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, waiters);
    while ((node = list_pop_front(&round)) != NULL) {
        struct io_op *op = io_op_of_wait_node(node);

        op->type->step(op);
    }
}

void
client_io_dismiss(struct io_op *op)
{
    dl_assert(op->volume->in_flight_bytes >= op->admitted_bytes);
    op->volume->in_flight_bytes -= op->admitted_bytes;
    if (op->admitted_bytes != 0)
        client_core_dismiss(op->volume->core, op->admitted_bytes);
    op->admitted_bytes = 0;
}

void
client_io_readmit(struct io_op *op)
{
    if (op->admitted_bytes != 0 || op->request == NULL)
        return;
    op->admitted_bytes = max_u32(op->length_bytes, WIRE_SECTOR_BYTES);
    if (op->length_bytes > WINDOW_BYTES)
        op->admitted_bytes = WIRE_SECTOR_BYTES; /* a zero extent: no payload */
    op->volume->in_flight_bytes += op->admitted_bytes;
    client_core_admit(op->volume->core, op->admitted_bytes);
}

void
client_io_abort(struct io_op *op, int err)
{
    dl_assert(err != 0);
    if (op->err != 0)
        return;
    op->err = err;
    op->type->abort(op);
}

bool
client_io_check_fence(struct io_op *op, int err)
{
    if (err == -DL_E_LEASE_OLD)
        client_volume_fence(op->volume, err, "a server has been told of a newer owner");
    return op->volume->fenced;
}
