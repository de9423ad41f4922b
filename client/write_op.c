/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write_op.c: one piece written to all slots.
 *
 *   START --> LOCKED --> FILL --> BUILT --> SLOTS --> ANSWERED --> DONE
 *     ^        |  |                ^         ^          |  |
 *     +- (a) --+  +- (b) -> DONE   |         +--- (c) --+  |
 *                                  +--------- (d) ---------+
 *
 *   (a) unsettled: let the range go, wait, once more
 *   (b) zeroes, and the segment is not allocated
 *   (c) the map has changed: again, to all its slots
 *   (d) the caller has changed its buffer: a copy becomes another version
 *
 *   START   suspends: earlier requests of overlapping ranges; or, after an unsettled range was
 *           met, the retry list
 *   LOCKED  suspends: allocation, or the takeover of the segment
 *   FILL    suspends: reads of sectors that the request covers in part
 *   BUILT   suspends: credit, when too many versions are above S
 *   SLOTS   suspends: answers; servers that are away (parked there); the retry list
 *
 * ANSWERED is where a slot that failed for good is judged.  Ejecting it belongs here: config epoch
 * + 1, then SLOTS again under the new map.  As long as slots are not ejected the request fails, and
 * if any slot may have taken it, its range is *unsettled* (unsettled.c) and its version stays above
 * S.
 *
 * Invariants
 *   1. The same version is always the same bytes: CRCs are computed once per version, each slot
 *      compares.
 *   2. Only acknowledgements under the segment's present config epoch count.
 *   3. When on_done runs no link has a frame of ours: the caller's buffer is not touched any more.
 *   4. `touched` is false only if no slot has, or can ever get, any version of this op.
 */
#include "client/write_op.h"

#include <stdio.h>
#include <string.h>

#include "client/read_op.h"
#include "common/align.h"
#include "common/crc32c.h"
#include "common/mutant.h"
#include "dlblk/error.h"

#define CRCS_INLINE 8u

enum write_state {
    WRITE_START,
    WRITE_LOCKED,
    WRITE_FILL,
    WRITE_BUILT,
    WRITE_SLOTS,
    WRITE_ANSWERED,
    WRITE_DONE,
};

static const struct sm_state write_states[] = {
    [WRITE_START] = {"START", SM_EDGE(WRITE_LOCKED) | SM_EDGE(WRITE_FILL) | SM_EDGE(WRITE_DONE)},
    [WRITE_LOCKED] = {"LOCKED", SM_EDGE(WRITE_START) | SM_EDGE(WRITE_FILL) | SM_EDGE(WRITE_DONE)},
    [WRITE_FILL] = {"FILL", SM_EDGE(WRITE_BUILT) | SM_EDGE(WRITE_DONE)},
    [WRITE_BUILT] = {"BUILT", SM_EDGE(WRITE_SLOTS) | SM_EDGE(WRITE_DONE)},
    [WRITE_SLOTS] = {"SLOTS", SM_EDGE(WRITE_ANSWERED)},
    [WRITE_ANSWERED] = {"ANSWERED",
                        SM_EDGE(WRITE_SLOTS) | SM_EDGE(WRITE_BUILT) | SM_EDGE(WRITE_DONE)},
    [WRITE_DONE] = {"DONE", SM_FINAL},
};
static const struct sm_table write_table = SM_TABLE("write", write_states);

enum write_slot_state {
    SLOT_UNUSED, /* takes no part in this write */
    SLOT_AGAIN,  /* to be sent when the op comes from the retry list */
    SLOT_PARKED, /* to be sent when its server is there */
    SLOT_SENT,
    SLOT_ACKED,    /* final */
    SLOT_FAILED,   /* final: it says that it can't */
    SLOT_GIVEN_UP, /* final: whether it has it is not known */
};

struct write_slot {
    struct slot_io io;
    struct write_op *op;
    enum write_slot_state state;
    bool tried; /* sent before: may have it */
};

struct write_op {
    struct io_op io;
    struct pool *pool;
    unsigned flags;
    struct segment_writer *writer;
    uint64_t sequence;   /* 0: none yet */
    uint64_t superseded; /* an earlier one of this op, with other bytes; 0: none */
    uint32_t config_epoch;
    uint32_t slot_count;
    uint32_t pending; /* slots that are not final */
    uint32_t slot_mask;
    bool touched;
    bool changed; /* the caller changed its buffer under way */
    bool giving_up;
    int slot_err; /* of the first slot that failed for good */
    struct client_server *blamed;

    uint32_t payload_count;
    uint32_t fills_pending;
    struct read_op *fills[2];
    uint8_t *bounce; /* sectors that are put together here: the first and the last, or all */
    uint32_t bounce_bytes;
    bool bounce_all;
    struct iovec payload[FRAME_PIECES_MAX];
    struct iovec own_iov;
    le32 *crcs;
    le32 crcs_inline[CRCS_INLINE];
    write_op_fn on_done; /* NULL: a piece of a request */
    void *context;
    struct write_slot slots[];
};

static void write_op_step(struct io_op *io);

static struct write_op *
write_op_of(struct io_op *io)
{
    return list_entry(io, struct write_op, io);
}

size_t
client_write_op_bytes(uint32_t slots_max)
{
    return sizeof(struct write_op) + slots_max * sizeof(struct write_slot);
}

static uint32_t
write_op_bytes(const struct write_op *op)
{
    return op->io.sector_count * WIRE_SECTOR_BYTES;
}

static bool
write_op_is_zero(const struct write_op *op)
{
    return (op->flags & WRITE_OP_ZERO) != 0;
}

/* --- payload --- */

static bool
write_op_head_is_partial(const struct write_op *op)
{
    return op->io.skip_bytes != 0;
}

static int
write_op_acquire_bounce(struct write_op *op, uint32_t bytes)
{
    op->bounce = buffers_acquire(&op->io.volume->core->buffers, bytes);
    op->bounce_bytes = bytes;
    return op->bounce != NULL ? 0 : -DL_E_NO_MEMORY;
}

static void
write_op_release_bounce(struct write_op *op)
{
    if (op->bounce != NULL)
        buffers_release(&op->io.volume->core->buffers, op->bounce, op->bounce_bytes);
    op->bounce = NULL;
}

/* Bytes of the request in its first sector, if that is partial; and in its last. */
static uint32_t
write_op_head_bytes(const struct write_op *op)
{
    if (!write_op_head_is_partial(op))
        return 0;
    return min_u32(op->io.length_bytes, WIRE_SECTOR_BYTES - op->io.skip_bytes);
}

static uint32_t
write_op_tail_bytes(const struct write_op *op)
{
    uint32_t tail_bytes = (op->io.skip_bytes + op->io.length_bytes) % WIRE_SECTOR_BYTES;

    return op->io.sector_count > 1 || !write_op_head_is_partial(op) ? tail_bytes : 0;
}

/* Where the first and the last sector are put together. */
static uint8_t *
write_op_head_place(const struct write_op *op)
{
    return op->bounce;
}

static uint8_t *
write_op_tail_place(const struct write_op *op)
{
    if (op->io.sector_count == 1)
        return op->bounce;
    return op->bounce + (op->bounce_all ? write_op_bytes(op) : 2 * WIRE_SECTOR_BYTES) -
           WIRE_SECTOR_BYTES;
}

/*
 * How the payload will be made: the whole sectors straight from the caller's memory, unless that is
 * in too many pieces; partial ones in a bounce buffer.
 */
static int
write_op_plan(struct write_op *op)
{
    uint32_t head_bytes = write_op_head_bytes(op);
    uint32_t tail_bytes = write_op_tail_bytes(op);
    uint32_t whole_bytes = op->io.length_bytes - head_bytes - tail_bytes;

    if (whole_bytes > 0 && io_slice_iovecs(io_slice_advance(op->io.slice, head_bytes), whole_bytes,
                                           op->payload, FRAME_PIECES_MAX - 2) == 0)
        op->bounce_all = true;
    if (op->bounce_all)
        return write_op_acquire_bounce(op, write_op_bytes(op));
    if (!io_op_is_partial(&op->io))
        return 0;
    return write_op_acquire_bounce(op, op->io.sector_count == 1 ? WIRE_SECTOR_BYTES
                                                                : 2 * WIRE_SECTOR_BYTES);
}

static void
write_op_build_payload(struct write_op *op)
{
    uint32_t head_bytes = write_op_head_bytes(op);
    uint32_t tail_bytes = write_op_tail_bytes(op);
    uint32_t whole_bytes = op->io.length_bytes - head_bytes - tail_bytes;
    struct io_slice tail = op->io.slice;

    op->payload_count = 0;
    if (op->bounce_all) {
        io_slice_copy_from(op->io.slice, op->bounce + op->io.skip_bytes, op->io.length_bytes);
        op->payload[op->payload_count++] = (struct iovec){.iov_base = op->bounce,
                                                          .iov_len = write_op_bytes(op)};
        return;
    }
    if (head_bytes > 0) {
        io_slice_copy_from(op->io.slice, write_op_head_place(op) + op->io.skip_bytes, head_bytes);
        op->payload[op->payload_count++] = (struct iovec){.iov_base = write_op_head_place(op),
                                                          .iov_len = WIRE_SECTOR_BYTES};
    }
    if (whole_bytes > 0)
        op->payload_count += io_slice_iovecs(io_slice_advance(op->io.slice, head_bytes),
                                             whole_bytes, op->payload + op->payload_count,
                                             FRAME_PIECES_MAX - 2);
    if (tail_bytes > 0) {
        tail = io_slice_advance(tail, head_bytes + whole_bytes);
        io_slice_copy_from(tail, write_op_tail_place(op), tail_bytes);
        op->payload[op->payload_count++] = (struct iovec){.iov_base = write_op_tail_place(op),
                                                          .iov_len = WIRE_SECTOR_BYTES};
    }
}

/* CRCs of the payload as it is now. */
static void
write_op_compute_crcs(const struct write_op *op, le32 *ret_crcs)
{
    const struct iovec *iov = op->payload;
    size_t at = 0;

    for (uint32_t i = 0; i < op->io.sector_count; i++) {
        uint32_t crc = 0;
        size_t left = WIRE_SECTOR_BYTES;

        while (left > 0) {
            size_t run = min_u64(left, iov->iov_len - at);

            crc = crc32c(crc, (const uint8_t *)iov->iov_base + at, run);
            left -= run;
            at += run;
            if (at == iov->iov_len) {
                iov++;
                at = 0;
            }
        }
        ret_crcs[i] = le32_of(crc);
    }
}

static int
write_op_make_crcs(struct write_op *op)
{
    op->crcs = op->crcs_inline;
    if (op->io.sector_count > CRCS_INLINE)
        op->crcs = buffers_acquire(&op->io.volume->core->buffers,
                                   op->io.sector_count * sizeof(le32));
    if (op->crcs == NULL)
        return -DL_E_NO_MEMORY;
    write_op_compute_crcs(op, op->crcs);
    return 0;
}

static void
write_op_release_memory(struct write_op *op)
{
    struct buffers *buffers = &op->io.volume->core->buffers;

    if (op->crcs != NULL && op->crcs != op->crcs_inline)
        buffers_release(buffers, op->crcs, op->io.sector_count * sizeof(le32));
    op->crcs = NULL;
    write_op_release_bounce(op);
}

/* --- partial sectors: their old content --- */

static void
write_op_on_fill(struct read_op *fill, int err)
{
    struct write_op *op = client_read_context(fill);

    op->fills[op->fills[0] == fill ? 0 : 1] = NULL;
    if (err != 0 && op->io.err == 0)
        op->io.err = err;
    dl_assert(op->fills_pending > 0);
    if (--op->fills_pending == 0)
        write_op_step(&op->io);
}

static void
write_op_start_fill(struct write_op *op, unsigned idx, uint32_t sector, uint8_t *place)
{
    struct read_own own = {
        .segment = op->io.segment,
        .first_sector = sector,
        .sector_count = 1,
        .slot = READ_ANY_SLOT,
        .buffer = place,
        .deadline_ns = op->io.deadline_ns,
        .pool = &op->io.volume->fill_ops,
        .on_done = write_op_on_fill,
        .context = op,
    };

    op->fills_pending++;
    op->fills[idx] = client_read_start_own(op->io.volume, &own);
}

static void
write_op_start_fills(struct write_op *op)
{
    uint32_t last = op->io.first_sector + op->io.sector_count - 1;

    if (write_op_head_bytes(op) > 0)
        write_op_start_fill(op, 0, op->io.first_sector, write_op_head_place(op));
    if (write_op_tail_bytes(op) > 0)
        write_op_start_fill(op, 1, last, write_op_tail_place(op));
}

/* --- slots --- */

static bool
write_slot_is_final(const struct write_slot *slot)
{
    return slot->state == SLOT_UNUSED || slot->state >= SLOT_ACKED;
}

static void
write_slot_end(struct write_slot *slot, enum write_slot_state state)
{
    struct write_op *op = slot->op;

    dl_assert(!write_slot_is_final(slot));
    slot->state = state;
    dl_assert(op->pending > 0);
    op->pending--;
}

static void
write_slot_again(struct write_slot *slot)
{
    slot->state = SLOT_AGAIN;
    if (!list_is_linked(&slot->op->io.wait_node))
        client_io_retry(&slot->op->io, 0);
}

static void
write_slot_build_frame(struct write_slot *slot, uint64_t request_id)
{
    const struct write_op *op = slot->op;
    const struct client_volume *volume = op->io.volume;
    const struct segment *segment = op->io.segment;
    uint32_t idx = (uint32_t)(slot - op->slots);
    bool zero = write_op_is_zero(op);
    struct data_write write = {
        .target = {.volume = volume->id,
                   .segment = segment->index,
                   .slot = segment->slots[idx].number,
                   .flags = (zero ? WRITE_ZERO : 0u) | (slot->tried ? WRITE_RETRY : 0u) |
                            ((op->flags & WRITE_OP_RESOLVE) != 0 ? WRITE_RESOLVE : 0u),
                   .config_epoch = op->config_epoch,
                   .lease_epoch = volume->lease_epoch,
                   .offset_sectors = op->io.first_sector,
                   .length_sectors = op->io.sector_count},
        .version = ((uint64_t)volume->lease_epoch << WIRE_VERSION_SEQUENCE_BITS | op->sequence) -
                   (DLBLK_MUTANT(client_reuse_version) && op->sequence % 16 == 15),
        .stable_version = client_stable_version(volume, segment),
        .snapshot_seq = volume->snapshot_seq,
        .attempt = segment->slots[idx].attempt,
        .slot_mask = op->slot_mask,
        .crc_count = zero ? 0 : op->io.sector_count,
    };

    frame_out_write(&slot->io.call.frame, request_id, &write, op->crcs, op->payload,
                    zero ? 0 : op->payload_count);
}

static void
write_slot_send(struct write_slot *slot)
{
    struct client_session *session = &slot->io.server->session;
    uint64_t request_id;

    if (!client_session_is_up(session)) {
        slot->state = SLOT_PARKED;
        slot_io_park(&slot->io);
        return;
    }
    request_id = client_session_begin(session, &slot->io.call, OP_WRITE);
    if (request_id == 0) {
        write_slot_again(slot);
        return;
    }
    write_slot_build_frame(slot, request_id);
    if (slot->tried)
        slot->op->io.volume->stats.retries++;
    slot->tried = true;
    slot->state = SLOT_SENT;
    client_session_send(&slot->io.call);
}

static void
write_slot_on_ready(struct slot_io *io)
{
    write_slot_send(list_entry(io, struct write_slot, io));
}

/* Slots that are not in flight will not get it any more; true: all are final. */
static bool
write_op_give_up_waiting(struct write_op *op)
{
    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct write_slot *slot = &op->slots[i];

        if (slot->state != SLOT_PARKED && slot->state != SLOT_AGAIN)
            continue;
        if (op->blamed == NULL)
            op->blamed = slot->io.server;
        (void)slot_io_cancel(&slot->io);
        write_slot_end(slot, SLOT_GIVEN_UP);
    }
    client_io_unwait(&op->io);
    return op->pending == 0;
}

/*
 * Nor will the others' answers be waited for, unless their link has our memory.  True: all are
 * final.
 */
static bool
write_op_give_up(struct write_op *op)
{
    op->giving_up = true;
    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct write_slot *slot = &op->slots[i];

        if (slot->state != SLOT_SENT)
            continue;
        op->touched = true;
        if (op->blamed == NULL)
            op->blamed = slot->io.server;
        if (slot_io_cancel(&slot->io))
            write_slot_end(slot, SLOT_GIVEN_UP);
    }
    return write_op_give_up_waiting(op);
}

/*
 * The slot says that it has not taken it.  (An earlier try that it may have taken has left
 * `touched` set.)
 */
static bool
write_slot_has_refused(int err)
{
    switch (-err) {
    case DL_E_CONNECTION_LOST:
    case DL_E_SHUTTING_DOWN:
    case DL_E_TIMEOUT:
    case DL_E_CANCELLED:
    case DL_E_MEDIA_WRITE:
    case DL_E_INTERNAL:
    case DL_E_NO_MEMORY:
        return false;
    default:
        return true;
    }
}

/* The payload did not match its CRCs when it arrived. */
static void
write_slot_on_wire_error(struct write_slot *slot)
{
    struct write_op *op = slot->op;
    struct client_volume *volume = op->io.volume;
    le32 crcs[WINDOW_SECTORS];

    volume->stats.crc_errors++;
    write_op_compute_crcs(op, crcs);
    if (memcmp(crcs, op->crcs, op->io.sector_count * sizeof(le32)) == 0) {
        client_core_event(
            volume->core, DLBLK_EVENT_WARNING,
            "volume %s: a write of segment %u was damaged on its way to %s; sent again",
            volume->name, op->io.segment_idx, client_server_name(slot->io.server).text);
        write_slot_send(slot);
        return;
    }
    client_core_event(volume->core, DLBLK_EVENT_WARNING,
                      "volume %s: a buffer was changed while it was being written (segment %u); "
                      "written again from a copy",
                      volume->name, op->io.segment_idx);
    op->changed = true;
    write_slot_end(slot, SLOT_GIVEN_UP);
    (void)write_op_give_up(op);
}

/* It says that it can't: the write fails. */
static void
write_slot_fail(struct write_slot *slot, int err)
{
    struct write_op *op = slot->op;

    if (op->slot_err == 0) {
        op->slot_err = err;
        op->blamed = slot->io.server;
    }
    write_slot_end(slot, SLOT_FAILED);
    (void)write_op_give_up_waiting(op); /* it fails anyhow */
}

static void
write_slot_on_error(struct write_slot *slot, int err)
{
    struct write_op *op = slot->op;

    switch (-err) {
    case DL_E_CONNECTION_LOST:
    case DL_E_SHUTTING_DOWN:
        if (DLBLK_MUTANT(client_ack_without_all)) {
            write_slot_end(slot, SLOT_ACKED);
            return;
        }
        slot->state = SLOT_PARKED;
        if (client_session_is_up(&slot->io.server->session))
            write_slot_again(slot); /* it goes down soon */
        else
            slot_io_park(&slot->io);
        return;
    case DL_E_EPOCH_OLD:
    case DL_E_CHUNK_UNKNOWN:
    case DL_E_STALE_MAP:
        client_map_refresh(op->io.volume, op->io.segment_idx);
        write_slot_again(slot);
        return;
    case DL_E_NOT_YET:
    case DL_E_BUSY:
        write_slot_again(slot);
        return;
    case DL_E_CRC_WIRE:
        /* Zeroes have no checksums: a server that finds fault with them is beyond help. */
        if (write_op_is_zero(op))
            write_slot_fail(slot, err);
        else
            write_slot_on_wire_error(slot);
        return;
    default:
        write_slot_fail(slot, err);
        return;
    }
}

static void
write_op_on_slot(struct session_call *call, int err)
{
    struct write_slot *slot = list_entry(call, struct write_slot, io.call);
    struct write_op *op = slot->op;

    dl_assert(slot->state == SLOT_SENT);
    if (err == 0 || !write_slot_has_refused(err))
        op->touched = true;
    if (err == 0)
        write_slot_end(slot, SLOT_ACKED);
    else if (client_io_check_fence(&op->io, err) || op->giving_up || op->io.err != 0 ||
             op->slot_err != 0)
        write_slot_end(slot, SLOT_GIVEN_UP);
    else
        write_slot_on_error(slot, err);
    if (op->pending == 0)
        write_op_step(&op->io);
}

/* To all slots of the map as it is now. */
static void
write_op_send(struct write_op *op)
{
    const struct segment *segment = op->io.segment;

    op->config_epoch = segment->config_epoch;
    op->slot_count = segment->slot_count;
    op->slot_mask = 0;
    op->giving_up = false;
    for (uint32_t i = 0; i < op->slot_count; i++)
        if (segment_slot_is_written(&segment->slots[i]))
            op->slot_mask |= 1u << i;
    op->pending = (uint32_t)__builtin_popcount(op->slot_mask);
    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct write_slot *slot = &op->slots[i];

        slot->state = SLOT_UNUSED;
        if ((op->slot_mask & 1u << i) == 0)
            continue;
        slot->io.server = client_core_server(op->io.volume->core, segment->slots[i].server_id);
        slot->state = SLOT_AGAIN;
        write_slot_send(slot);
    }
}

static void
write_op_send_again(struct write_op *op)
{
    for (uint32_t i = 0; i < op->slot_count; i++)
        if (op->slots[i].state == SLOT_AGAIN)
            write_slot_send(&op->slots[i]);
}

/* --- the steps --- */

static bool
write_op_acquire(struct write_op *op)
{
    return range_lock_is_held(&op->io.lock) ||
           range_lock_acquire(&op->io.volume->lock, &op->io.lock, op->io.segment_idx,
                              op->io.first_sector, op->io.sector_count, true);
}

/* The range is ours.  Returns the state to go to, or WRITE_LOCKED to wait. */
static enum write_state
write_op_on_locked(struct write_op *op)
{
    struct client_volume *volume = op->io.volume;
    struct segment *segment = client_map_get(&volume->map, op->io.segment_idx);

    if (!segment_is_allocated(segment)) {
        if ((op->flags & WRITE_OP_CLEARS) != 0)
            return WRITE_DONE; /* zeroes already */
        client_io_dismiss(&op->io);
        client_allocate_wait(volume, &op->io);
        return op->io.err == 0 ? WRITE_LOCKED : WRITE_DONE;
    }
    op->io.segment = segment;
    if (segment->state == SEGMENT_UNRESOLVED) {
        client_io_dismiss(&op->io);
        list_push_back(&segment->waiters, &op->io.wait_node);
        return WRITE_LOCKED;
    }
    if (io_op_is_partial(&op->io) &&
        client_unsettled_overlaps(segment, op->io.first_sector, op->io.sector_count)) {
        /* What settles it needs the range: let go, and come again. */
        range_lock_release(&volume->lock, &op->io.lock);
        if (range_lock_has_ready(&volume->lock))
            client_volume_defer(volume);
        client_io_retry(&op->io, 0);
        return WRITE_START;
    }
    client_io_readmit(&op->io);
    client_allocate_ahead(volume, op->io.segment_idx);
    return WRITE_FILL;
}

static int
write_op_plan_fills(struct write_op *op)
{
    int err = 0;

    if (!write_op_is_zero(op))
        err = write_op_plan(op);
    if (err == 0)
        write_op_start_fills(op);
    return err;
}

static int
write_op_build(struct write_op *op)
{
    if (write_op_is_zero(op))
        return 0;
    write_op_build_payload(op);
    return write_op_make_crcs(op);
}

/* False: it waits for credit. */
static bool
write_op_take_version(struct write_op *op)
{
    op->writer = client_stable_writer(op->io.volume, op->io.segment);
    if (op->writer == NULL) {
        op->io.err = -DL_E_NO_MEMORY;
        return true;
    }
    op->sequence = client_stable_take(op->writer, op->on_done != NULL);
    if (op->sequence != 0)
        return true;
    if (op->on_done != NULL) {
        /* What makes room is what this write is for: its owner tries again. */
        op->io.err = -DL_E_BUSY;
        return true;
    }
    list_push_back(&op->writer->credit_waiters, &op->io.wait_node);
    return false;
}

/*
 * The bytes that went out are not the bytes of this version everywhere: a copy, which nobody
 * changes, becomes another version.  The first one is over when the second is on all slots: it
 * covers the same sectors.
 */
static int
write_op_copy_payload(struct write_op *op)
{
    struct buffers *buffers = &op->io.volume->core->buffers;
    uint8_t *copy;
    size_t at = 0;

    if (op->superseded != 0)
        return -DL_E_CRC_WIRE; /* it was a copy already */
    copy = buffers_acquire(buffers, write_op_bytes(op));
    if (copy == NULL)
        return -DL_E_NO_MEMORY;
    for (uint32_t i = 0; i < op->payload_count; i++) {
        memcpy(copy + at, op->payload[i].iov_base, op->payload[i].iov_len);
        at += op->payload[i].iov_len;
    }
    dl_assert(at == write_op_bytes(op));
    write_op_release_bounce(op);
    op->bounce = copy;
    op->bounce_bytes = write_op_bytes(op);
    op->payload[0] = (struct iovec){.iov_base = copy, .iov_len = at};
    op->payload_count = 1;
    write_op_compute_crcs(op, op->crcs);
    op->superseded = op->sequence;
    op->sequence = 0;
    op->changed = false;
    for (uint32_t i = 0; i < op->slot_count; i++)
        op->slots[i].tried = false;
    return 0;
}

/* Every slot is final. */
static enum write_state
write_op_judge(struct write_op *op)
{
    bool all = true;

    if (op->io.volume->fenced && op->io.err == 0)
        op->io.err = op->io.volume->fence_err;
    if (op->io.err != 0)
        return WRITE_DONE;
    if (op->changed) {
        op->io.err = write_op_copy_payload(op);
        return op->io.err == 0 ? WRITE_BUILT : WRITE_DONE;
    }
    if (op->config_epoch != op->io.segment->config_epoch) {
        op->slot_err = 0;
        return WRITE_SLOTS;
    }
    for (uint32_t i = 0; i < op->slot_count; i++)
        all = all && (op->slots[i].state == SLOT_ACKED || op->slots[i].state == SLOT_UNUSED);
    if (!all) {
        /* Here a slot that failed would be ejected. */
        dl_assert(op->slot_err != 0);
        op->io.err = op->slot_err;
    }
    return WRITE_DONE;
}

/* Versions: on all slots, on none, or nobody knows where. */
static void
write_op_settle_versions(struct write_op *op)
{
    uint64_t sequences[2] = {op->superseded, op->sequence};

    if (op->io.err == 0 && op->writer != NULL && op->writer->unsettled.count > 0)
        client_unsettled_cut(op->writer, op->io.first_sector, op->io.sector_count);
    for (unsigned i = 0; i < 2; i++) {
        if (sequences[i] == 0)
            continue;
        if (op->io.err != 0 && op->touched)
            client_unsettled_add(op->writer, op->io.first_sector, op->io.sector_count,
                                 sequences[i]);
        else
            client_stable_done(op->writer, sequences[i]);
    }
}

static void
write_op_finish(struct write_op *op)
{
    struct client_volume *volume = op->io.volume;
    struct dlblk_request *request = op->io.request;
    int err = op->io.err;

    dl_assert(op->pending == 0);
    dl_assert(op->fills_pending == 0);
    for (uint32_t i = 0; i < op->slot_count; i++)
        dl_assert(slot_io_is_idle(&op->slots[i].io));
    if (!volume->fenced)
        write_op_settle_versions(op);
    if (err != 0 && request != NULL && !volume->fenced)
        client_volume_say_failure(volume, &op->io, op->blamed);
    write_op_release_memory(op);
    client_io_end(&op->io);
    if (op->on_done != NULL)
        op->on_done(op, err);
    pool_release(op->pool, op);
    if (request != NULL)
        client_volume_piece_done(volume, request, err);
}

/* Returns false if it suspends. */
static bool
write_op_step_once(struct write_op *op)
{
    struct io_op *io = &op->io;
    enum write_state next;

    switch ((enum write_state)io->sm.state) {
    case WRITE_START:
        if (io->err == 0 && !write_op_acquire(op))
            return false; /* earlier requests */
        sm_move(&io->sm, io->err == 0 ? WRITE_LOCKED : WRITE_DONE);
        return true;
    case WRITE_LOCKED:
        next = io->err == 0 ? write_op_on_locked(op) : WRITE_DONE;
        if (next == WRITE_LOCKED)
            return false; /* allocation, or the takeover of the segment */
        sm_move(&io->sm, next);
        if (next == WRITE_FILL) {
            io->err = write_op_plan_fills(op);
            return op->fills_pending == 0;
        }
        return next != WRITE_START; /* an unsettled range */
    case WRITE_FILL:
        if (io->err == 0)
            io->err = write_op_build(op);
        sm_move(&io->sm, io->err == 0 ? WRITE_BUILT : WRITE_DONE);
        return true;
    case WRITE_BUILT:
        if (io->err == 0 && !write_op_take_version(op))
            return false; /* credit */
        sm_move(&io->sm, io->err == 0 ? WRITE_SLOTS : WRITE_DONE);
        if (io->err == 0)
            write_op_send(op);
        return io->err != 0;
    case WRITE_SLOTS:
        if (op->pending > 0) {
            write_op_send_again(op);
            return false; /* answers */
        }
        sm_move(&io->sm, WRITE_ANSWERED);
        return true;
    case WRITE_ANSWERED:
        next = write_op_judge(op);
        sm_move(&io->sm, next);
        if (next == WRITE_SLOTS)
            write_op_send(op);
        return next != WRITE_SLOTS;
    case WRITE_DONE:
        write_op_finish(op);
        return false; /* gone */
    }
    dl_unreachable();
}

static void
write_op_step(struct io_op *io)
{
    struct write_op *op = write_op_of(io);

    while (write_op_step_once(op))
        ;
}

/* --- from outside --- */

static void
write_op_abort(struct io_op *io)
{
    struct write_op *op = write_op_of(io);
    struct read_op *fills[2] = {op->fills[0], op->fills[1]};
    int err = io->err;

    client_io_unwait(io);
    switch ((enum write_state)io->sm.state) {
    case WRITE_FILL:
        /* The op goes on with the end of the last one, which may be here: it is gone then. */
        if (fills[0] != NULL)
            client_read_abort(fills[0], err);
        if (fills[1] != NULL)
            client_read_abort(fills[1], err);
        return;
    case WRITE_SLOTS:
        if (write_op_give_up(op))
            write_op_step(io);
        return;
    default:
        write_op_step(io);
        return;
    }
}

static bool
write_op_has_parked(const struct write_op *op)
{
    for (uint32_t i = 0; i < op->slot_count; i++)
        if (op->slots[i].state == SLOT_PARKED)
            return true;
    return false;
}

/*
 * The map has changed: what is on its way under the old one does not count any more.  One that
 * waits for a server asks for the map: the server may be elsewhere by now.
 */
static void
write_op_check(struct io_op *io, uint64_t now_ns)
{
    struct write_op *op = write_op_of(io);

    if (io->sm.state != WRITE_SLOTS || op->giving_up)
        return;
    if (op->config_epoch == io->segment->config_epoch) {
        if (now_ns - io->start_ns >= VOLUME_SLOT_TIMEOUT_NS && write_op_has_parked(op))
            client_map_refresh(io->volume, io->segment_idx);
        return;
    }
    if (write_op_give_up(op))
        write_op_step(io);
}

static bool
write_op_waits_for(const struct io_op *io, char *text, size_t text_bytes)
{
    const struct write_op *op = list_entry(io, struct write_op, io);
    const struct client_volume *volume = io->volume;

    switch ((enum write_state)io->sm.state) {
    case WRITE_START:
        (void)snprintf(text, text_bytes, "a write of segment %u waits for %s", io->segment_idx,
                       list_is_linked(&io->wait_node) ? "a range that a failed write left undecided"
                                                      : "earlier requests of the same range");
        return true;
    case WRITE_LOCKED:
        if (io->segment != NULL)
            return client_takeover_waits_for(volume, text, text_bytes);
        (void)snprintf(text, text_bytes, "a write waits for segment %u to be allocated: %s",
                       io->segment_idx,
                       volume->allocate_error.code != 0 ? volume->allocate_error.text
                                                        : client_core_meta_problem(volume->core));
        return true;
    case WRITE_BUILT:
        (void)snprintf(text, text_bytes,
                       "a write of segment %u waits: too many newer than one that is not done",
                       io->segment_idx);
        return true;
    case WRITE_SLOTS:
        for (uint32_t i = 0; i < op->slot_count; i++) {
            const struct write_slot *slot = &op->slots[i];

            if (slot->state != SLOT_PARKED && slot->state != SLOT_AGAIN)
                continue;
            (void)snprintf(text, text_bytes, "a write of segment %u waits for %s: %s",
                           io->segment_idx, client_server_name(slot->io.server).text,
                           slot->io.server->session.problem);
            return true;
        }
        return false;
    default:
        return false;
    }
}

static void
write_op_free(struct io_op *io)
{
    write_op_release_memory(write_op_of(io));
}

static const struct io_op_type write_op_type = {
    .name = "write",
    .step = write_op_step,
    .abort = write_op_abort,
    .check = write_op_check,
    .waits_for = write_op_waits_for,
    .free = write_op_free,
};

static struct write_op *
write_op_create(struct client_volume *volume, struct pool *pool, uint32_t segment_idx)
{
    struct write_op *op = pool_acquire(pool);

    dl_assert(op != NULL);
    memset(op, 0, sizeof(*op));
    for (uint32_t i = 0; i < volume->map.slots_max; i++) {
        struct write_slot *slot = &op->slots[i];

        /* All but the frame's bytes, which are written before they are read. */
        memset(slot, 0, offsetof(struct write_slot, io.call.frame.head));
        memset(&slot->io.server, 0, sizeof(*slot) - offsetof(struct write_slot, io.server));
        slot->op = op;
        slot->io.call.on_done = write_op_on_slot;
        slot->io.on_ready = write_slot_on_ready;
    }
    sm_init(&op->io.sm, &write_table, WRITE_START, segment_idx);
    op->io.type = &write_op_type;
    op->io.volume = volume;
    op->io.segment_idx = segment_idx;
    op->pool = pool;
    return op;
}

void
client_write_start(struct client_volume *volume, struct dlblk_request *request,
                   const struct io_piece *piece, unsigned flags)
{
    struct write_op *op = write_op_create(volume, &volume->write_ops, piece->segment_idx);

    op->flags = flags;
    op->io.request = request;
    op->io.slice = piece->slice;
    op->io.first_sector = piece->first_sector;
    op->io.sector_count = piece->sector_count;
    op->io.skip_bytes = piece->skip_bytes;
    op->io.length_bytes = piece->length_bytes;
    op->io.deadline_ns = client_volume_piece_deadline(volume);
    client_io_begin(&op->io);
    client_io_readmit(&op->io);
    write_op_step(&op->io);
}

void
client_write_start_own(struct client_volume *volume, const struct write_own *own,
                       struct write_op **ret_op)
{
    struct write_op *op = write_op_create(volume, &volume->own_ops, own->segment->index);

    op->flags = WRITE_OP_RESOLVE | (own->buffer == NULL ? WRITE_OP_CLEARS | WRITE_OP_ZERO : 0);
    op->io.segment = own->segment;
    op->io.first_sector = own->first_sector;
    op->io.sector_count = own->sector_count;
    op->io.length_bytes = own->sector_count * WIRE_SECTOR_BYTES;
    op->io.deadline_ns = VOLUME_NO_DEADLINE;
    op->own_iov = (struct iovec){.iov_base = (void *)(uintptr_t)own->buffer,
                                 .iov_len = op->io.length_bytes};
    op->io.slice = (struct io_slice){&op->own_iov, 0};
    op->on_done = own->on_done;
    op->context = own->context;
    *ret_op = op;
    client_io_begin(&op->io);
    sm_move(&op->io.sm, WRITE_FILL);
    op->io.err = write_op_plan_fills(op);
    write_op_step(&op->io);
}

void *
client_write_context(const struct write_op *op)
{
    return op->context;
}

void
client_write_abort(struct write_op *op, int err)
{
    client_io_abort(&op->io, err);
}
