/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write_op.c: one piece written to all slots.
 *
 *   START --> LOCKED --> FILL --> BUILT --> SLOTS --> ANSWERED --> DONE
 *     ^        |  |                ^         ^         |  |  ^
 *     +- (a) --+  +- (b) -> DONE   |         +-- (c) --+  v  |
 *                                  +--------- (d) --------+ HELD
 *
 *   (a) unsettled, and it covers sectors in part, or has no credit: let the range go, wait, once
 *       more
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
 *   HELD    suspends: another map, since slots that can't take it are to be ejected, or too few are
 *           in sync; or, a write of our own, the retry list
 *
 * Which slots failed, and what follows: docs/recovery.md, "How a slot fails".
 *
 *   A slot that is away, silent or slow goes on to be asked while it is ejected (eject.c): the
 *   write stays in SLOTS.  A new map is taken there: each slot of it is sent the write anew, as
 *   soon as what is still on its way to it is over.
 *   A slot that says that it can't is FAILED.  If another one has the write, it is ejected, at
 *   once; if none has when all have answered, the request fails, and nothing has changed.  If it
 *   can't be ejected, the request fails and its range is *unsettled* (unsettled.c): its version
 *   stays above S.
 *   Writes of our own never fail for what slots say: the same version is sent again, later.
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

#include "client/payload.h"
#include "client/read_op.h"
#include "common/align.h"
#include "common/mutant.h"
#include "dlblk/error.h"

/* Between tries to a slot that has not been told of its map yet; doubled up to the tick. */
#define POLL_MIN_NS (10 * CLIENT_NS_PER_MS)
#define POLL_MAX_NS CLIENT_TICK_NS

enum write_state {
    WRITE_START,
    WRITE_LOCKED,
    WRITE_FILL,
    WRITE_BUILT,
    WRITE_SLOTS,
    WRITE_ANSWERED,
    WRITE_HELD,
    WRITE_DONE,
};

static const struct sm_state write_states[] = {
    [WRITE_START] = {"START", SM_EDGE(WRITE_LOCKED) | SM_EDGE(WRITE_FILL) | SM_EDGE(WRITE_DONE)},
    [WRITE_LOCKED] = {"LOCKED", SM_EDGE(WRITE_START) | SM_EDGE(WRITE_FILL) | SM_EDGE(WRITE_DONE)},
    [WRITE_FILL] = {"FILL", SM_EDGE(WRITE_BUILT) | SM_EDGE(WRITE_DONE)},
    [WRITE_BUILT] = {"BUILT", SM_EDGE(WRITE_SLOTS) | SM_EDGE(WRITE_DONE)},
    [WRITE_SLOTS] = {"SLOTS", SM_EDGE(WRITE_ANSWERED)},
    [WRITE_ANSWERED] = {"ANSWERED", SM_EDGE(WRITE_SLOTS) | SM_EDGE(WRITE_BUILT) |
                                        SM_EDGE(WRITE_HELD) | SM_EDGE(WRITE_DONE)},
    [WRITE_HELD] = {"HELD", SM_EDGE(WRITE_ANSWERED)},
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
    /*
     * Under an older map: the answer does not count, and the slot that is here now comes after it
     */
    bool stale;
    int err;           /* FAILED: what it said */
    uint64_t since_ns; /* it has been asked for so long */
    uint64_t again_ns; /* AGAIN: not before */
    uint64_t poll_ns;  /* the last pause; 0: none yet */
};

struct write_op {
    struct io_op io;
    struct pool *pool;
    unsigned flags;
    struct segment_writer *writer;
    uint64_t sequence;   /* 0: none yet */
    uint64_t superseded; /* an earlier one of this op, with other bytes; 0: none */
    uint64_t settles;    /* of our own: the version that this one mends; 0: none */
    uint32_t config_epoch;
    uint32_t slot_count;
    uint32_t pending; /* slots that are not final */
    uint32_t slot_mask;
    bool touched;
    bool changed; /* the caller changed its buffer under way */
    bool giving_up;
    bool resend;  /* HELD: slots that failed are asked again when it comes from the retry list */
    bool said;    /* ... an event has told of it */
    int slot_err; /* of the first slot that failed for good */
    struct client_server *blamed;

    uint32_t fills_pending;
    struct read_op *fills[2];
    struct payload payload;
    struct iovec own_iov;
    write_op_fn on_done; /* NULL: a piece of a request */
    void *context;
    struct write_slot slots[];
};

static void write_op_step(struct io_op *io);
static void write_slot_send(struct write_slot *slot);

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

static bool
write_op_is_zero(const struct write_op *op)
{
    return (op->flags & WRITE_OP_ZERO) != 0;
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
    uint8_t *head = payload_head_place(&op->payload);
    uint8_t *tail = payload_tail_place(&op->payload);

    if (head != NULL)
        write_op_start_fill(op, 0, op->io.first_sector, head);
    if (tail != NULL)
        write_op_start_fill(op, 1, last, tail);
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

/* What settles ranges and takes over: it is for nobody but us. */
static bool
write_op_is_own(const struct write_op *op)
{
    return op->on_done != NULL;
}

/* Asked again after 10 ms, then less and less often. */
static void
write_slot_again(struct write_slot *slot)
{
    struct io_op *io = &slot->op->io;

    slot->state = SLOT_AGAIN;
    slot->poll_ns = slot->poll_ns == 0 ? POLL_MIN_NS : min_u64(slot->poll_ns * 2, POLL_MAX_NS);
    slot->again_ns = env_now_ns(io->volume->core->env) + slot->poll_ns;
    client_io_retry(io, slot->poll_ns);
}

static uint32_t
write_slot_place(const struct write_slot *slot)
{
    return (uint32_t)(slot - slot->op->slots);
}

static void
write_slot_want_eject(struct write_slot *slot, Dl__EjectReason reason, int err)
{
    client_eject_want(slot->op->io.volume, slot->op->io.segment, write_slot_place(slot), reason,
                      err);
}

static bool
write_slot_is_recovering(const struct write_slot *slot)
{
    const struct segment *segment = slot->op->io.segment;
    uint32_t place = write_slot_place(slot);

    return place < segment->slot_count &&
           segment->slots[place].state == DL__SLOT_STATE__SLOT_RECOVERING;
}

static uint32_t
write_op_count(const struct write_op *op, enum write_slot_state state)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < op->slot_count; i++)
        count += op->slots[i].state == state;
    return count;
}

/*
 * Slots that say that they can't, while others have it: out, without waiting for the rest.  That
 * more of them could not be ejected says nothing about fewer.
 */
static void
write_op_eject_failed(struct write_op *op)
{
    struct segment *segment = op->io.segment;
    uint32_t failed_mask = 0;

    if (op->slot_err == 0 || op->config_epoch != segment->config_epoch ||
        write_op_count(op, SLOT_ACKED) == 0)
        return;
    for (uint32_t i = 0; i < op->slot_count; i++)
        failed_mask |= op->slots[i].state == SLOT_FAILED ? 1u << i : 0;
    if (op->pending == 0 && client_eject_is_refused(segment) &&
        (segment->eject_mask & ~failed_mask) != 0)
        segment->eject_state = SEGMENT_EJECT_NONE;
    for (uint32_t i = 0; i < op->slot_count; i++)
        if (op->slots[i].state == SLOT_FAILED)
            write_slot_want_eject(&op->slots[i],
                                  op->slots[i].err == -DL_E_NO_SPACE
                                      ? DL__EJECT_REASON__EJECT_FULL
                                      : DL__EJECT_REASON__EJECT_ERROR,
                                  op->slots[i].err);
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

    frame_out_write(&slot->io.call.frame, request_id, &write, op->payload.crcs, op->payload.iovs,
                    zero ? 0 : op->payload.iov_count);
}

static void
write_slot_send(struct write_slot *slot)
{
    struct client_session *session = &slot->io.server->session;
    uint64_t request_id;

    if (!client_session_is_up(session)) {
        slot->state = SLOT_PARKED;
        slot_io_park(&slot->io);
        if (slot->io.server->failed != DL__EJECT_REASON__EJECT_NONE)
            write_slot_want_eject(slot, slot->io.server->failed, 0);
        if (slot->io.server->failed != DL__EJECT_REASON__EJECT_NONE &&
            client_eject_is_refused(slot->op->io.segment))
            client_io_block(&slot->op->io);
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

    volume->stats.crc_errors++;
    if (!payload_has_changed(&op->payload)) {
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
    slot->err = err;
    write_slot_end(slot,
                   DLBLK_MUTANT(client_ack_without_recovering) && write_slot_is_recovering(slot)
                       ? SLOT_ACKED
                       : SLOT_FAILED);
    if (client_core_ejects(op->io.volume->core))
        write_op_eject_failed(op);
    else if (!write_op_is_own(op))
        (void)write_op_give_up_waiting(op); /* it fails anyhow */
}

/* Whether the write goes on to ask the other slots when one has failed. */
static bool
write_op_goes_on(const struct write_op *op)
{
    return op->slot_err == 0 || write_op_is_own(op) || client_core_ejects(op->io.volume->core);
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
    case DL_E_STALE_MAP:
        client_map_refresh_now(op->io.volume, op->io.segment_idx);
        write_slot_again(slot);
        return;
    case DL_E_CHUNK_UNKNOWN:
        /* Under the first config epoch it would have come into being. */
        client_map_refresh(op->io.volume, op->io.segment_idx);
        write_slot_again(slot);
        return;
    case DL_E_NOT_YET:
    case DL_E_BUSY:
        write_slot_again(slot);
        return;
    case DL_E_NO_MEMORY:
        if (client_core_ejects(op->io.volume->core))
            write_slot_again(slot);
        else
            write_slot_fail(slot, err);
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

static void write_slot_renew(struct write_slot *slot);
static void write_op_send_again(struct write_op *op);

static void
write_op_on_slot(struct session_call *call, int err)
{
    struct write_slot *slot = list_entry(call, struct write_slot, io.call);
    struct write_op *op = slot->op;

    dl_assert(slot->state == SLOT_SENT);
    if (err == 0 || !write_slot_has_refused(err))
        op->touched = true;
    if (client_io_check_fence(&op->io, err) || op->giving_up || op->io.err != 0)
        write_slot_end(slot, err == 0 && !slot->stale ? SLOT_ACKED : SLOT_GIVEN_UP);
    else if (slot->stale && !(err == 0 && DLBLK_MUTANT(client_mix_epochs)))
        write_slot_renew(slot);
    else if (err != 0 && write_op_goes_on(op))
        write_slot_on_error(slot, err);
    else if (err != 0)
        write_slot_end(slot, SLOT_GIVEN_UP);
    else
        write_slot_end(slot, SLOT_ACKED);
    if (err == 0 && op->slot_err != 0)
        write_op_eject_failed(op);
    if (op->pending == 0)
        write_op_step(&op->io);
}

/* What the place is in the present map. */
static struct client_server *
write_slot_server(const struct write_slot *slot)
{
    const struct segment *segment = slot->op->io.segment;
    uint32_t place = write_slot_place(slot);

    if (place >= segment->slot_count || !segment_slot_is_written(&segment->slots[place]))
        return NULL;
    return client_core_server(slot->op->io.volume->core, segment->slots[place].server_id);
}

/* What was on its way under an older map is over: now to the slot that is here. */
static void
write_slot_renew(struct write_slot *slot)
{
    struct client_server *server = write_slot_server(slot);

    slot->stale = false;
    if (server == NULL) {
        write_slot_end(slot, SLOT_UNUSED);
        return;
    }
    if (slot->io.server != server)
        slot->tried = false;
    slot->io.server = server;
    write_slot_send(slot);
}

/*
 * To all slots of the map as it is now.  What is on its way to a slot that is still there is waited
 * for, and so is what a link would have to be closed for; nothing of it counts.
 */
static void
write_op_send(struct write_op *op)
{
    const struct segment *segment = op->io.segment;
    uint64_t now_ns = env_now_ns(op->io.volume->core->env);
    uint32_t place_count = max_u32(op->slot_count, segment->slot_count);

    dl_assert(place_count <= op->io.volume->map.slots_max);
    op->config_epoch = segment->config_epoch;
    op->slot_count = place_count;
    op->slot_mask = 0;
    op->slot_err = 0;
    op->resend = false;
    op->giving_up = false;
    op->pending = 0;
    client_io_unblock(&op->io);
    client_io_unwait(&op->io);
    for (uint32_t i = 0; i < place_count; i++)
        if (write_slot_server(&op->slots[i]) != NULL)
            op->slot_mask |= 1u << segment->slots[i].number;
    for (uint32_t i = 0; i < place_count; i++) {
        struct write_slot *slot = &op->slots[i];
        struct client_server *server = write_slot_server(slot);
        bool same = server != NULL && slot->io.server == server;
        bool waits = slot->state == SLOT_SENT || slot->state == SLOT_PARKED ||
                     slot->state == SLOT_AGAIN;

        if (DLBLK_MUTANT(client_mix_epochs) && same && slot->state == SLOT_ACKED)
            continue;
        if (!same || !waits)
            slot->since_ns = now_ns;
        slot->poll_ns = 0;
        slot->again_ns = 0;
        slot->stale = false;
        if (slot->state == SLOT_SENT)
            op->touched = true;
        if (slot->state == SLOT_SENT && (same || !slot_io_cancel(&slot->io))) {
            slot->stale = true;
            op->pending++;
            continue;
        }
        if (slot->state == SLOT_PARKED)
            (void)slot_io_cancel(&slot->io);
        slot->state = SLOT_UNUSED;
        if (server == NULL)
            continue;
        if (!same)
            slot->tried = false;
        slot->io.server = server;
        slot->state = SLOT_AGAIN;
        op->pending++;
    }
    write_op_send_again(op);
}

static void
write_op_send_again(struct write_op *op)
{
    uint64_t now_ns = env_now_ns(op->io.volume->core->env);

    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct write_slot *slot = &op->slots[i];

        if (slot->state != SLOT_AGAIN)
            continue;
        if (slot->again_ns <= now_ns)
            write_slot_send(slot);
        else
            client_io_retry(&op->io, slot->again_ns - now_ns);
    }
}

/* A write of our own that slots refused: the same version, once more. */
static void
write_op_resend(struct write_op *op)
{
    op->resend = false;
    op->slot_err = 0;
    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct write_slot *slot = &op->slots[i];

        if (slot->state != SLOT_FAILED)
            continue;
        slot->state = SLOT_AGAIN;
        slot->again_ns = 0;
        op->pending++;
    }
    write_op_send_again(op);
}

/* --- the steps --- */

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
    if (client_io_waits_for_resolution(&op->io))
        return WRITE_LOCKED;
    /* Nor may it keep the range while it waits for credit: what makes room is settling. */
    if (client_unsettled_overlaps(segment, op->io.first_sector, op->io.sector_count) &&
        (io_op_is_partial(&op->io) || !client_stable_has_credit(segment->writer))) {
        client_io_let_go(&op->io);
        return WRITE_START;
    }
    client_io_readmit(&op->io);
    client_allocate_ahead(volume, op->io.segment_idx);
    return WRITE_FILL;
}

static int
write_op_plan_fills(struct write_op *op)
{
    int err;

    if (write_op_is_zero(op))
        return 0; /* whole sectors, without a payload */
    payload_init(&op->payload, &op->io.volume->core->buffers, &op->io);
    err = payload_plan(&op->payload);
    if (err == 0)
        write_op_start_fills(op);
    return err;
}

static int
write_op_build(struct write_op *op)
{
    return write_op_is_zero(op) ? 0 : payload_build(&op->payload);
}

/*
 * What mends may use what is kept back for it; what mends the very version that S waits for has the
 * last place of the window for itself: with that one done there is room again.
 */
static enum stable_credit
write_op_credit(const struct write_op *op)
{
    uint64_t mended = write_op_is_own(op) ? op->settles : op->superseded;

    if (mended != 0 && mended == op->writer->stable + 1)
        return STABLE_CREDIT_LAST;
    return mended != 0 || write_op_is_own(op) ? STABLE_CREDIT_RESERVE : STABLE_CREDIT_ORDINARY;
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
    op->sequence = client_stable_take(op->writer, write_op_credit(op));
    if (op->sequence != 0)
        return true;
    if (write_op_is_own(op)) {
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
    int err;

    if (op->superseded != 0)
        return -DL_E_CRC_WIRE; /* it was a copy already */
    err = payload_copy(&op->payload);
    if (err != 0)
        return err;
    op->superseded = op->sequence;
    op->sequence = 0;
    op->changed = false;
    for (uint32_t i = 0; i < op->slot_count; i++)
        op->slots[i].tried = false;
    return 0;
}

/* Slots have failed, and the write can't go on without them: what it is to its user. */
static enum write_state
write_op_fail(struct write_op *op)
{
    struct client_volume *volume = op->io.volume;

    dl_assert(op->slot_err != 0);
    if (!write_op_is_own(op)) {
        op->io.err = op->slot_err;
        return WRITE_DONE;
    }
    if (!op->said)
        client_core_event(volume->core, DLBLK_EVENT_ERROR,
                          "volume %s: segment %u, sectors %u to %u: what was left undecided can't "
                          "be settled yet: %s: %s",
                          volume->name, op->io.segment_idx, op->io.first_sector,
                          op->io.first_sector + op->io.sector_count - 1,
                          client_server_name(op->blamed).text, dl_err_str(op->slot_err));
    op->said = true;
    op->resend = true;
    client_io_retry(&op->io, VOLUME_RETRY_NS);
    return WRITE_HELD;
}

/* Every slot is final. */
static enum write_state
write_op_judge(struct write_op *op)
{
    const struct segment *segment = op->io.segment;

    if (op->io.volume->fenced && op->io.err == 0)
        op->io.err = op->io.volume->fence_err;
    if (op->io.err != 0)
        return WRITE_DONE;
    if (op->changed) {
        op->io.err = write_op_copy_payload(op);
        return op->io.err == 0 ? WRITE_BUILT : WRITE_DONE;
    }
    if (op->config_epoch != segment->config_epoch)
        return WRITE_SLOTS;
    if (write_op_count(op, SLOT_FAILED) > 0) {
        if (op->resend)
            return WRITE_HELD;
        if (!client_core_ejects(op->io.volume->core) || write_op_count(op, SLOT_ACKED) == 0)
            return write_op_fail(op);
        write_op_eject_failed(op);
        return client_eject_is_refused(segment) ? write_op_fail(op) : WRITE_HELD;
    }
    dl_assert(write_op_count(op, SLOT_GIVEN_UP) == 0);
    /* A rewrite promises nothing to anybody: it makes alike what is there. */
    if (!write_op_is_own(op) && segment_in_sync_count(segment) < op->io.volume->min_write) {
        client_io_block(&op->io);
        return WRITE_HELD;
    }
    return WRITE_DONE;
}

/* Versions: on all slots, on none, or nobody knows where. */
static void
write_op_settle_versions(struct write_op *op)
{
    uint64_t sequences[2] = {op->superseded, op->sequence};
    struct unsettled_range range = {.first_sector = op->io.first_sector,
                                    .sector_count = op->io.sector_count,
                                    .zero = write_op_is_zero(op)};

    if (op->io.err == 0 && op->writer != NULL && op->writer->unsettled.count > 0)
        client_unsettled_cut(op->writer, op->io.first_sector, op->io.sector_count);
    for (unsigned i = 0; i < 2; i++) {
        if (sequences[i] == 0)
            continue;
        range.sequence = sequences[i];
        if (op->io.err != 0 && op->touched)
            client_unsettled_add(op->writer, &range);
        else
            client_stable_done(op->writer, sequences[i]);
    }
    if (op->io.err == 0 && op->sequence != 0 && write_op_is_zero(op))
        client_stable_zeroed(op->writer, op->sequence);
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
    payload_fini(&op->payload);
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
        if (io->err == 0 && !client_io_acquire(&op->io, true))
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
        client_io_unwait(io);
        sm_move(&io->sm, WRITE_ANSWERED);
        return true;
    case WRITE_ANSWERED:
        next = write_op_judge(op);
        sm_move(&io->sm, next);
        if (next == WRITE_SLOTS)
            write_op_send(op);
        return next == WRITE_BUILT || next == WRITE_DONE;
    case WRITE_HELD:
        sm_move(&io->sm, WRITE_ANSWERED);
        /* From the retry list, where nothing else brought it here. */
        if (op->resend && !list_is_linked(&io->wait_node) && io->err == 0 &&
            op->config_epoch == io->segment->config_epoch) {
            sm_move(&io->sm, WRITE_SLOTS);
            write_op_resend(op);
            return false; /* answers */
        }
        return true;
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

/* Why a slot that has not answered has failed by now; EJECT_NONE: it has not. */
static Dl__EjectReason
write_slot_failure(const struct write_slot *slot, uint64_t now_ns)
{
    const struct client_core *core = slot->op->io.volume->core;

    if (write_slot_is_final(slot))
        return DL__EJECT_REASON__EJECT_NONE;
    if (slot->state == SLOT_PARKED && slot->io.server->failed != DL__EJECT_REASON__EJECT_NONE)
        return slot->io.server->failed;
    if (write_slot_server(slot) == slot->io.server &&
        client_core_is_over(core, slot->since_ns, now_ns, core->options.eject_slow_ms))
        return DL__EJECT_REASON__EJECT_SLOW;
    return DL__EJECT_REASON__EJECT_NONE;
}

static void
write_op_check_slots(struct write_op *op, uint64_t now_ns)
{
    const struct segment *segment = op->io.segment;

    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct write_slot *slot = &op->slots[i];
        Dl__EjectReason reason = write_slot_failure(slot, now_ns);

        if (reason == DL__EJECT_REASON__EJECT_NONE)
            continue;
        if (DLBLK_MUTANT(client_ack_without_recovering) && write_slot_is_recovering(slot) &&
            slot_io_cancel(&slot->io)) {
            write_slot_end(slot, SLOT_ACKED);
            continue;
        }
        write_slot_want_eject(slot, reason, 0);
        if (client_eject_is_refused(segment))
            client_io_block(&op->io);
    }
    write_op_eject_failed(op);
}

/*
 * The map has changed: what is on its way under the old one does not count any more.  One that
 * waits for a server asks for the map: the server may be elsewhere by now.
 */
static void
write_op_check(struct io_op *io, uint64_t now_ns)
{
    struct write_op *op = write_op_of(io);

    if (io->sm.state == WRITE_HELD) {
        if (op->resend && op->config_epoch == io->segment->config_epoch)
            return; /* it has its time */
        client_io_unwait(io);
        if (op->config_epoch == io->segment->config_epoch)
            client_map_refresh(io->volume, io->segment_idx);
        write_op_step(io);
        return;
    }
    if (io->sm.state != WRITE_SLOTS || op->giving_up)
        return;
    if (op->config_epoch != io->segment->config_epoch) {
        write_op_send(op);
    } else {
        if (now_ns - io->start_ns >= VOLUME_SLOT_TIMEOUT_NS && write_op_has_parked(op))
            client_map_refresh(io->volume, io->segment_idx);
        write_op_check_slots(op, now_ns);
    }
    if (op->pending == 0)
        write_op_step(io);
}

/* A slot that the write waits for: why, and what is done about it. */
static void
write_slot_waits_for(const struct write_slot *slot, char *text, size_t text_bytes)
{
    const struct write_op *op = slot->op;
    const struct client_volume *volume = op->io.volume;
    const struct segment *segment = op->io.segment;
    const char *problem = slot->io.server->session.problem;
    char then[96] = "";

    if (segment->eject_state == SEGMENT_EJECT_REFUSED)
        (void)snprintf(then, sizeof(then), "; without it there would be fewer than %u copies",
                       volume->min_write);
    else if (segment->eject_state != SEGMENT_EJECT_NONE)
        (void)snprintf(then, sizeof(then), "; the metadata service is asked to go on without it%s",
                       client_core_is_connected(volume->core) ? "" : ", and can't be reached");
    (void)snprintf(text, text_bytes, "a write of segment %u waits for %s: %s%s", op->io.segment_idx,
                   client_server_name(slot->io.server).text,
                   slot->state == SLOT_FAILED ? dl_err_str(slot->err)
                   : problem[0] != '\0'       ? problem
                                              : "it does not answer",
                   then);
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

            if (slot->state != SLOT_PARKED && slot->state != SLOT_AGAIN &&
                !(slot->state == SLOT_SENT && io->blocked))
                continue;
            write_slot_waits_for(slot, text, text_bytes);
            return true;
        }
        return false;
    case WRITE_ANSWERED: /* on its way to HELD */
    case WRITE_HELD:
        for (uint32_t i = 0; i < op->slot_count; i++) {
            if (op->slots[i].state != SLOT_FAILED)
                continue;
            write_slot_waits_for(&op->slots[i], text, text_bytes);
            return true;
        }
        (void)snprintf(text, text_bytes,
                       "a write of segment %u waits: %u copies are in sync, and %u are needed",
                       io->segment_idx, segment_in_sync_count(io->segment), volume->min_write);
        return true;
    default:
        return false;
    }
}

static void
write_op_free(struct io_op *io)
{
    payload_fini(&write_op_of(io)->payload);
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
    client_io_begin_piece(&op->io, request, piece);
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
    op->settles = own->settles;
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
