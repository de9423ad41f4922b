/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stable.c: versions, S, and STABLE.
 *
 * Invariants of a writer
 *   1. confirmed <= stable <= segment->sequence_last, and sequence_last - stable <= STABLE_WINDOW.
 *   2. Bit (q mod STABLE_WINDOW) of `done` is set for a sequence q in (stable, sequence_last] if q
 *      is done; the bits of all others are clear.
 *   3. The bit of stable + 1 is clear: S is as high as it can be.
 *
 * Zero extents: a slot that was away pulls what is above its own S.  So zeroes may be forgotten by
 * the others only when no slot can come back with something older and an S below them: when all
 * slots are in-sync and have confirmed S durably, all under one map (docs/recovery.md, rule 25).
 * Whatever happens to the slots after that, it stays true.
 */
#include "client/stable.h"

#include <stdlib.h>
#include <string.h>

#include "client/volume_internal.h"
#include "common/mutant.h"
#include "proto/data.h"

#define SPARE_WRITERS_MAX 256u

/* --- sequences --- */

static bool
stable_bit(const struct segment_writer *writer, uint64_t sequence)
{
    uint64_t bit = sequence % STABLE_WINDOW;

    return (writer->done[bit / 64] >> bit % 64 & 1) != 0;
}

static void
stable_flip_bit(struct segment_writer *writer, uint64_t sequence)
{
    uint64_t bit = sequence % STABLE_WINDOW;

    writer->done[bit / 64] ^= 1ull << bit % 64;
}

/* Looked at when it has been idle for a while. */
static void
stable_is_busy(struct segment_writer *writer)
{
    writer->last_write_ns = env_now_ns(writer->volume->core->env);
    if (list_is_linked(&writer->idle_node))
        list_remove(&writer->idle_node);
    list_push_back(&writer->volume->idle, &writer->idle_node);
}

static uint32_t
stable_outstanding(const struct segment_writer *writer)
{
    dl_assert(writer->segment->sequence_last >= writer->stable);
    return (uint32_t)(writer->segment->sequence_last - writer->stable);
}

/*
 * While something is unsettled callers have only half of the window, unless they had more before.
 * Each write that takes a part out of an unsettled range can leave two pieces of it, and each piece
 * takes a version to be settled: so there is one for all of them, or there have been no such
 * writes.
 */
static uint32_t
stable_window(const struct segment_writer *writer, enum stable_credit credit)
{
    switch (credit) {
    case STABLE_CREDIT_RESERVE:
        return STABLE_WINDOW - 1;
    case STABLE_CREDIT_LAST:
        return STABLE_WINDOW;
    default:
        return (writer->unsettled.count > 0 ? STABLE_WINDOW / 2 : STABLE_WINDOW) - STABLE_RESERVE;
    }
}

uint64_t
client_stable_take(struct segment_writer *writer, enum stable_credit credit)
{
    struct segment *segment = writer->segment;

    if (stable_outstanding(writer) >= stable_window(writer, credit))
        return 0;
    segment->sequence_last++;
    dl_assert(segment->sequence_last >> WIRE_VERSION_SEQUENCE_BITS == 0);
    return segment->sequence_last;
}

bool
client_stable_has_credit(const struct segment_writer *writer)
{
    return stable_outstanding(writer) < stable_window(writer, STABLE_CREDIT_ORDINARY);
}

uint32_t
client_stable_room(const struct segment_writer *writer)
{
    uint32_t window = stable_window(writer, STABLE_CREDIT_RESERVE);
    uint32_t outstanding = stable_outstanding(writer);

    return outstanding < window ? window - outstanding : 0;
}

void
client_stable_done(struct segment_writer *writer, uint64_t sequence)
{
    uint64_t before = writer->stable;

    dl_assert(sequence > writer->stable);
    dl_assert(sequence <= writer->segment->sequence_last);
    dl_assert(!stable_bit(writer, sequence));
    stable_flip_bit(writer, sequence);
    while (writer->stable < writer->segment->sequence_last &&
           stable_bit(writer, writer->stable + 1)) {
        writer->stable++;
        stable_flip_bit(writer, writer->stable);
    }
    stable_is_busy(writer);
    if (writer->stable > before && !list_is_empty(&writer->credit_waiters))
        client_io_wake(&writer->credit_waiters);
}

/*
 * Nothing before the segment is resolved: a stable version of this lease is above all that the
 * leases before left pending, and would take it from the slots' lists.  If we died then, the next
 * owner would not learn that the runs which we had not got to may differ.
 */
uint64_t
client_stable_version(const struct client_volume *volume, const struct segment *segment)
{
    if (segment->writer == NULL || segment->writer->stable == 0)
        return 0;
    if (segment->state == SEGMENT_UNRESOLVED && !DLBLK_MUTANT(client_stable_before_resolved))
        return 0;
    if (DLBLK_MUTANT(client_stable_unacknowledged) && segment->sequence_last > 1)
        return (uint64_t)volume->lease_epoch << WIRE_VERSION_SEQUENCE_BITS |
               (segment->sequence_last - 1);
    return (uint64_t)volume->lease_epoch << WIRE_VERSION_SEQUENCE_BITS | segment->writer->stable;
}

/* --- writers --- */

struct segment_writer *
client_stable_writer(struct client_volume *volume, struct segment *segment)
{
    struct segment_writer *writer = segment->writer;

    if (writer != NULL)
        return writer;
    writer = volume->spare_writers;
    if (writer != NULL) {
        volume->spare_writers = writer->next_spare;
        volume->spare_writer_count--;
    } else {
        writer = malloc(sizeof(*writer));
    }
    if (writer == NULL)
        return NULL;
    memset(writer, 0, sizeof(*writer));
    writer->volume = volume;
    writer->segment = segment;
    writer->stable = segment->sequence_last; /* what was written before is confirmed */
    writer->confirmed = segment->sequence_last;
    writer->zeroed_sequence = segment->zeroed ? segment->sequence_last : 0;
    list_init(&writer->credit_waiters);
    list_push_back(&volume->writers, &writer->node);
    segment->writer = writer;
    return writer;
}

static void
stable_release_writer(struct segment_writer *writer)
{
    struct client_volume *volume = writer->volume;

    list_remove(&writer->node);
    if (list_is_linked(&writer->idle_node))
        list_remove(&writer->idle_node);
    vec_fini(&writer->unsettled);
    writer->segment->writer = NULL;
    if (volume->spare_writer_count >= SPARE_WRITERS_MAX) {
        free(writer);
        return;
    }
    writer->next_spare = volume->spare_writers;
    volume->spare_writers = writer;
    volume->spare_writer_count++;
}

/* --- zeroes --- */

bool
client_stable_slots_are_up(const struct client_volume *volume, const struct segment *segment)
{
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if (segment_slot_is_written(&segment->slots[i]) &&
            !client_session_is_up(
                &client_core_server(volume->core, segment->slots[i].server_id)->session))
            return false;
    return true;
}

void
client_stable_zeroed(struct segment_writer *writer, uint64_t sequence)
{
    writer->segment->zeroed = true;
    writer->forget_epoch = 0;
    if (sequence > writer->zeroed_sequence)
        writer->zeroed_sequence = sequence;
}

/* No slot is away, or has something to recover. */
static bool
segment_is_whole(const struct segment *segment)
{
    if (DLBLK_MUTANT(client_forget_zeroes_early))
        return true;
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if (segment->slots[i].state != DL__SLOT_STATE__SLOT_IN_SYNC &&
            segment->slots[i].state != DL__SLOT_STATE__SLOT_NONE)
            return false;
    return true;
}

/* Should the slots be told to forget zeroes, and could they? */
static bool
stable_wants_forget(const struct segment_writer *writer)
{
    const struct segment *segment = writer->segment;

    return segment->zeroed && segment->state == SEGMENT_READY && writer->confirmed > 0 &&
           writer->confirmed == segment->sequence_last &&
           writer->forget_epoch != segment->config_epoch && segment_is_whole(segment) &&
           client_stable_slots_are_up(writer->volume, segment);
}

/* All it wrote is stable, and every slot knows. */
static bool
stable_writer_is_over(const struct segment_writer *writer)
{
    return writer->confirmed == writer->segment->sequence_last && writer->stable_op == NULL &&
           writer->settle == NULL && writer->unsettled.count == 0 &&
           list_is_empty(&writer->credit_waiters) && !stable_wants_forget(writer);
}

void
client_stable_on_map(struct client_volume *volume, struct segment *segment)
{
    struct segment_writer *writer;

    if (!segment->zeroed || segment->writer != NULL || volume->fenced || volume->close != NULL ||
        !segment_is_whole(segment))
        return;
    writer = client_stable_writer(volume, segment);
    if (writer == NULL)
        return;
    stable_is_busy(writer);
    client_core_want_tick(volume->core);
}

/* --- STABLE --- */

struct stable_op;

struct stable_slot {
    struct slot_io io;
    struct stable_op *op;
};

struct stable_op {
    struct segment_writer *writer;
    uint64_t sequence;
    uint32_t config_epoch; /* of the map whose slots were told */
    bool forget;           /* ... that zeroes may be forgotten */
    uint32_t pending;
    uint32_t slot_count;
    int err;
    struct stable_slot slots[];
};

/*
 * Under another map there may be a slot that was not told: all are told again.  What was only for
 * the sake of zeroes is not tried twice.
 */
static void
stable_confirm_end(const struct stable_op *op)
{
    struct segment_writer *writer = op->writer;

    if (op->err != 0 && writer->confirmed == writer->stable)
        writer->forget_epoch = op->config_epoch;
    if (op->err != 0 || op->config_epoch != writer->segment->config_epoch ||
        op->sequence < writer->confirmed)
        return;
    writer->confirmed = op->sequence;
    writer->confirmed_epoch = op->config_epoch;
}

/* What could not be told under this map is told again after the next zeroes. */
static void
stable_forget_end(const struct stable_op *op)
{
    struct segment_writer *writer = op->writer;

    if (op->err != 0)
        writer->forget_epoch = op->config_epoch;
    else if (writer->zeroed_sequence <= op->sequence)
        writer->segment->zeroed = false;
}

static void
stable_op_end(struct stable_op *op)
{
    struct segment_writer *writer = op->writer;
    struct client_volume *volume = writer->volume;

    writer->stable_op = NULL;
    dl_assert(volume->stable_ops > 0);
    volume->stable_ops--;
    if (op->forget)
        stable_forget_end(op);
    else
        stable_confirm_end(op);
    if (op->err == -DL_E_LEASE_OLD)
        client_volume_fence(volume, op->err, "a server has been told of a newer owner");
    if (op->err == -DL_E_EPOCH_OLD)
        client_map_refresh(volume, writer->segment->index);
    free(op);
    if (stable_writer_is_over(writer))
        stable_release_writer(writer);
    if (volume->close != NULL)
        client_volume_defer(volume);
}

static void
stable_slot_done(struct stable_op *op, int err)
{
    if (err != 0 && (op->err == 0 || err == -DL_E_LEASE_OLD))
        op->err = err;
    dl_assert(op->pending > 0);
    if (--op->pending == 0)
        stable_op_end(op);
}

static void
stable_on_slot(struct session_call *call, int err)
{
    struct stable_slot *slot = list_entry(call, struct stable_slot, io.call);

    stable_slot_done(slot->op, err);
}

static bool
stable_send_slot(struct client_volume *volume, struct stable_slot *slot,
                 const struct segment *segment, uint32_t slot_idx, uint64_t version)
{
    struct data_stable stable = {
        .target = {.volume = volume->id,
                   .segment = segment->index,
                   .slot = segment->slots[slot_idx].number,
                   .flags = slot->op->forget ? STABLE_FORGET : 0,
                   .config_epoch = segment->config_epoch,
                   .lease_epoch = volume->lease_epoch},
        .stable_version = version,
        .attempt = segment->slots[slot_idx].attempt,
    };
    uint64_t request_id;

    slot->io.server = client_core_server(volume->core, segment->slots[slot_idx].server_id);
    slot->io.call.on_done = stable_on_slot;
    request_id = client_session_begin(&slot->io.server->session, &slot->io.call, OP_STABLE);
    if (request_id == 0)
        return false;
    frame_out_stable(&slot->io.call.frame, request_id, &stable);
    client_session_send(&slot->io.call);
    return true;
}

/*
 * Under another map it says nothing any more: whoever has not answered by then is not waited for.
 */
static void
stable_cancel_old(struct segment_writer *writer)
{
    struct stable_op *op = writer->stable_op;

    if (op == NULL || op->config_epoch == writer->segment->config_epoch)
        return;
    op->pending++; /* it ends below, not in between */
    for (uint32_t i = 0; i < op->slot_count; i++) {
        struct session_call *call = &op->slots[i].io.call;

        if (client_session_call_is_active(call) && !call->frame_in_link &&
            client_session_cancel(call))
            op->pending--;
    }
    stable_slot_done(op, -DL_E_CANCELLED);
}

static void
stable_send(struct segment_writer *writer)
{
    struct client_volume *volume = writer->volume;
    struct segment *segment = writer->segment;
    struct stable_op *op;

    bool confirmed = writer->confirmed == writer->stable;

    if (writer->stable_op != NULL || (confirmed && !stable_wants_forget(writer)) ||
        segment->state == SEGMENT_UNRESOLVED || !client_stable_slots_are_up(volume, segment))
        return;
    op = calloc(1, sizeof(*op) + segment->slot_count * sizeof(op->slots[0]));
    if (op == NULL)
        return;
    op->writer = writer;
    op->sequence = writer->stable;
    op->config_epoch = segment->config_epoch;
    op->forget = confirmed && writer->confirmed_epoch == segment->config_epoch;
    op->slot_count = segment->slot_count;
    op->pending = 1;
    writer->stable_op = op;
    volume->stable_ops++;
    for (uint32_t i = 0; i < segment->slot_count; i++) {
        op->slots[i].op = op;
        if (!segment_slot_is_written(&segment->slots[i]))
            continue;
        if (stable_send_slot(volume, &op->slots[i], segment, i,
                             client_stable_version(volume, segment)))
            op->pending++;
        else
            op->err = -DL_E_NO_MEMORY;
    }
    stable_slot_done(op, 0);
}

void
client_stable_tick(struct client_volume *volume)
{
    uint64_t now_ns = env_now_ns(volume->core->env);
    struct list round;
    struct list *node;

    if (volume->fenced || volume->sm.state >= VOLUME_DETACHING)
        return;
    list_init(&round);
    while (!list_is_empty(&volume->idle)) {
        struct segment_writer *writer = list_first_entry(&volume->idle, struct segment_writer,
                                                         idle_node);

        if (now_ns - writer->last_write_ns < STABLE_IDLE_NS)
            break;
        list_remove(&writer->idle_node);
        list_push_back(&round, &writer->idle_node);
    }
    while ((node = list_pop_front(&round)) != NULL) {
        struct segment_writer *writer = list_entry(node, struct segment_writer, idle_node);
        const struct segment *segment = writer->segment;

        if (stable_writer_is_over(writer)) {
            stable_release_writer(writer);
            continue;
        }
        stable_cancel_old(writer);
        if (segment->writer == writer)
            stable_send(writer);
        if (segment->writer != writer)
            continue; /* one of them was the end of it */
        /* Not over before the answers: looked at again after a while. */
        writer->last_write_ns = now_ns;
        list_push_back(&volume->idle, &writer->idle_node);
    }
}

void
client_stable_send_all(struct client_volume *volume)
{
    struct segment_writer *writer;
    struct segment_writer *following;

    list_for_each_entry_safe (writer, following, &volume->writers, node) {
        const struct segment *segment = writer->segment;

        if (stable_writer_is_over(writer)) {
            stable_release_writer(writer);
            continue;
        }
        stable_cancel_old(writer);
        if (segment->writer == writer) /* that may have been the end of it */
            stable_send(writer);
    }
}

bool
client_stable_cancel(struct client_volume *volume)
{
    struct segment_writer *writer;
    struct segment_writer *following;

    list_for_each_entry_safe (writer, following, &volume->writers, node) {
        struct stable_op *op = writer->stable_op;

        if (op == NULL)
            continue;
        op->pending++; /* it ends below, not in between */
        for (uint32_t i = 0; i < op->slot_count; i++)
            if (client_session_call_is_active(&op->slots[i].io.call) &&
                slot_io_cancel(&op->slots[i].io))
                op->pending--;
        stable_slot_done(op, -DL_E_CANCELLED);
    }
    return volume->stable_ops == 0;
}

void
client_stable_fini(struct client_volume *volume)
{
    struct segment_writer *writer;
    struct segment_writer *following;

    list_for_each_entry_safe (writer, following, &volume->writers, node) {
        vec_fini(&writer->unsettled);
        free(writer->stable_op);
        free(writer);
    }
    while (volume->spare_writers != NULL) {
        writer = volume->spare_writers;
        volume->spare_writers = writer->next_spare;
        free(writer);
    }
    volume->spare_writer_count = 0;
}
