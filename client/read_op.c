/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read_op.c: one piece read.
 *
 *   START --> LOCKED --> ASK --> ANSWERED --> DONE
 *     ^        |  |       ^         |
 *     +- (a) --+  |       +-- (c) --+
 *                 +- (b) -> DONE
 *
 *   (a) unsettled: let the range go, wait, once more
 *   (b) not allocated: zeroes
 *   (c) it could not deliver: another slot
 *
 *   START     suspends: earlier writes of overlapping ranges; or, after an unsettled range was met,
 *             the retry list
 *   LOCKED    suspends: the segment is being taken over
 *   ASK       suspends: no slot can be asked just now (retry list)
 *   ANSWERED  suspends before it: the reply
 *
 * A read of our own (read_own) begins in ASK.  From every state that suspends an abort (deadline,
 * fence) leads to DONE.
 *
 * The memory that the reply goes to (the caller's, or a bounce buffer) belongs to the link from
 * on_payload until on_frame or on_down: so nobody but on_done of the call ends the op while a call
 * is active.
 */
#include "client/read_op.h"

#include <stdio.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/mutant.h"
#include "dlblk/error.h"

enum read_state { READ_START, READ_LOCKED, READ_ASK, READ_ANSWERED, READ_DONE };

static const struct sm_state read_states[] = {
    [READ_START] = {"START", SM_EDGE(READ_LOCKED) | SM_EDGE(READ_ASK) | SM_EDGE(READ_DONE)},
    [READ_LOCKED] = {"LOCKED", SM_EDGE(READ_START) | SM_EDGE(READ_ASK) | SM_EDGE(READ_DONE)},
    [READ_ASK] = {"ASK", SM_EDGE(READ_ANSWERED) | SM_EDGE(READ_DONE)},
    [READ_ANSWERED] = {"ANSWERED", SM_EDGE(READ_ASK) | SM_EDGE(READ_DONE)},
    [READ_DONE] = {"DONE", SM_FINAL},
};
static const struct sm_table read_table = SM_TABLE("read", read_states);

struct read_op {
    struct io_op io;
    struct slot_io slot;
    struct pool *pool;
    uint32_t slot_idx; /* the one that was asked last */
    uint32_t slot_only;
    uint32_t tried; /* bit per slot: failed in this round */
    bool hard;      /* one of them with an error that time alone seldom mends */
    bool data;      /* the reply has a payload */
    int result;     /* of the last slot */
    uint64_t asked_ns;
    uint8_t *target; /* where whole sectors go; NULL: nobody wants them */
    void *bounce;    /* target, if it is not the caller's */
    uint8_t *kinds;
    struct client_server *blamed;
    read_op_fn on_done; /* NULL: a piece of a request */
    void *context;
};

static struct read_op *
read_op_of(struct io_op *io)
{
    return list_entry(io, struct read_op, io);
}

size_t
client_read_op_bytes(void)
{
    return sizeof(struct read_op);
}

static uint32_t
read_op_bytes(const struct read_op *op)
{
    return op->io.sector_count * WIRE_SECTOR_BYTES;
}

/* --- a slot's answer --- */

static bool
read_op_reply_fits(const struct read_op *op, const struct frame *reply)
{
    struct data_read_reply decoded;

    return reply->status == 0 && data_read_reply_decode(reply, &decoded) == 0 &&
           decoded.length_sectors == op->io.sector_count;
}

static void *
read_op_on_payload(struct session_call *call, const struct frame *reply)
{
    struct read_op *op = list_entry(call, struct read_op, slot.call);

    return op->target != NULL && read_op_reply_fits(op, reply) ? op->target : NULL;
}

/* Sectors without data are zeroes whatever the payload says. */
static int
read_op_check_sectors(struct read_op *op, const struct data_read_reply *reply)
{
    for (uint32_t i = 0; i < reply->length_sectors; i++) {
        uint8_t *sector = op->target + bytes_of_sectors(i);

        if (reply->kinds[i] != WIRE_SECTOR_DATA)
            memset(sector, 0, WIRE_SECTOR_BYTES);
        else if (crc32c(0, sector, WIRE_SECTOR_BYTES) !=
                     le32_load(reply->crcs_le + i * sizeof(le32)) &&
                 !DLBLK_MUTANT(client_forget_data_crc))
            return -DL_E_CRC_DATA;
    }
    return 0;
}

static int
read_op_on_reply(struct session_call *call, const struct frame *reply)
{
    struct read_op *op = list_entry(call, struct read_op, slot.call);
    struct data_read_reply decoded;

    if (reply->status != 0)
        return reply->status;
    if (!read_op_reply_fits(op, reply) || data_read_reply_decode(reply, &decoded) != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if (op->kinds != NULL)
        memcpy(op->kinds, decoded.kinds, decoded.length_sectors);
    if (op->target == NULL)
        return 0;
    if (decoded.data_sectors == 0) {
        memset(op->target, 0, read_op_bytes(op));
        return 0;
    }
    if (reply->payload == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    return read_op_check_sectors(op, &decoded);
}

static void read_op_step(struct io_op *io);

static void
read_op_on_slot(struct session_call *call, int err)
{
    struct read_op *op = list_entry(call, struct read_op, slot.call);

    dl_assert(op->slot.server->reads_in_flight > 0);
    op->slot.server->reads_in_flight--;
    op->result = err;
    read_op_step(&op->io);
}

/* --- choosing a slot --- */

static bool
read_op_may_ask(const struct read_op *op, uint32_t slot_idx)
{
    const struct segment_slot *slot = &op->io.segment->slots[slot_idx];

    return segment_slot_is_read(slot) && (op->tried & 1u << slot_idx) == 0 &&
           (op->slot_only == READ_ANY_SLOT || op->slot_only == slot_idx);
}

/* Same host, then least in flight, then by rotation.  READ_ANY_SLOT: none can be asked just now. */
static uint32_t
read_op_choose(const struct read_op *op)
{
    const struct segment *segment = op->io.segment;
    struct client_volume *volume = op->io.volume;
    const struct client_server *best = NULL;
    uint32_t best_idx = READ_ANY_SLOT;
    uint32_t first = segment->slot_count > 1 ? volume->rotation++ % segment->slot_count : 0;

    for (uint32_t i = 0; i < segment->slot_count; i++) {
        uint32_t idx = first + i < segment->slot_count ? first + i
                                                       : first + i - segment->slot_count;
        const struct client_server *server = client_core_server(volume->core,
                                                                segment->slots[idx].server_id);

        if (!read_op_may_ask(op, idx) || !client_session_is_up(&server->session))
            continue;
        if (best == NULL || server->same_host > best->same_host ||
            (server->same_host == best->same_host &&
             server->reads_in_flight < best->reads_in_flight)) {
            best = server;
            best_idx = idx;
        }
    }
    return best_idx;
}

/* A slot that has not been asked in this round, only its server is away. */
static struct client_server *
read_op_find_away(const struct read_op *op)
{
    for (uint32_t i = 0; i < op->io.segment->slot_count; i++)
        if (read_op_may_ask(op, i))
            return client_core_server(op->io.volume->core, op->io.segment->slots[i].server_id);
    return NULL;
}

/* False: no memory. */
static bool
read_op_send(struct read_op *op, uint32_t slot_idx)
{
    const struct client_volume *volume = op->io.volume;
    const struct segment *segment = op->io.segment;
    struct data_read read = {
        .target = {.volume = volume->id,
                   .segment = segment->index,
                   .slot = op->io.segment->slots[slot_idx].number,
                   .config_epoch = segment->config_epoch,
                   .lease_epoch = volume->lease_epoch,
                   .offset_sectors = op->io.first_sector,
                   .length_sectors = op->io.sector_count},
    };
    uint64_t request_id;

    op->slot.server = client_core_server(volume->core, segment->slots[slot_idx].server_id);
    request_id = client_session_begin(&op->slot.server->session, &op->slot.call, OP_READ);
    if (request_id == 0)
        return false;
    op->slot_idx = slot_idx;
    op->slot.server->reads_in_flight++;
    op->asked_ns = env_now_ns(volume->core->env);
    frame_out_read(&op->slot.call.frame, request_id, &read);
    client_session_send(&op->slot.call);
    return true;
}

/* --- the steps --- */

/* All have been asked, or are away: wait, and begin a new round. */
static void
read_op_wait(struct read_op *op)
{
    struct client_server *away = read_op_find_away(op);

    if (away != NULL)
        op->blamed = away;
    if (away != NULL)
        client_map_refresh(op->io.volume, op->io.segment_idx);
    client_io_retry(&op->io, away == NULL && op->hard ? VOLUME_RETRY_NS : 0);
    op->tried = 0;
    op->hard = false;
}

/* An error that comes from the data or the medium: the slot would say the same again. */
static bool
read_op_is_hard(int err)
{
    return err == -DL_E_CRC_DATA || err == -DL_E_MEDIA_READ || err == -DL_E_INDEX_CORRUPT;
}

static void
read_op_take_error(struct read_op *op)
{
    struct client_volume *volume = op->io.volume;
    int err = op->result;

    if (client_io_check_fence(&op->io, err)) {
        op->io.err = volume->fence_err;
        return;
    }
    op->blamed = op->slot.server;
    op->tried |= 1u << op->slot_idx;
    volume->stats.retries++;
    if (err == -DL_E_CRC_DATA) {
        volume->stats.crc_errors++;
        client_core_event(
            volume->core, DLBLK_EVENT_WARNING,
            "volume %s: segment %u, sectors %u to %u: %s delivered data that does not "
            "match its checksum",
            volume->name, op->io.segment_idx, op->io.first_sector,
            op->io.first_sector + op->io.sector_count - 1,
            client_server_name(op->slot.server).text);
    }
    if (err == -DL_E_EPOCH_OLD || err == -DL_E_CHUNK_UNKNOWN || err == -DL_E_NOT_IN_SYNC)
        client_map_refresh(volume, op->io.segment_idx);
    if (!read_op_is_hard(err))
        return;
    op->hard = true;
    if (op->slot_only != READ_ANY_SLOT)
        op->io.err = err;
}

/*
 * Only sectors that are whole and in one piece of memory can be received where the caller wants
 * them.
 */
static int
read_op_place(struct read_op *op)
{
    if (op->on_done != NULL || op->target != NULL)
        return 0;
    if (!io_op_is_partial(&op->io))
        op->target = io_slice_contiguous(op->io.slice, op->io.length_bytes);
    if (op->target != NULL)
        return 0;
    op->bounce = buffers_acquire(&op->io.volume->core->buffers, read_op_bytes(op));
    op->target = op->bounce;
    return op->bounce != NULL ? 0 : -DL_E_NO_MEMORY;
}

/* The range is ours.  Returns the state to go to, or READ_LOCKED to wait. */
static enum read_state
read_op_on_locked(struct read_op *op)
{
    struct client_volume *volume = op->io.volume;
    struct segment *segment = client_map_get(&volume->map, op->io.segment_idx);

    if (!segment_is_allocated(segment)) {
        io_slice_zero(op->io.slice, op->io.length_bytes);
        return READ_DONE;
    }
    op->io.segment = segment;
    if (segment->state == SEGMENT_UNRESOLVED) {
        client_io_dismiss(&op->io);
        list_push_back(&segment->waiters, &op->io.wait_node);
        return READ_LOCKED;
    }
    if (client_unsettled_overlaps(segment, op->io.first_sector, op->io.sector_count)) {
        /* What settles it needs the range: let go, and come again. */
        range_lock_release(&volume->lock, &op->io.lock);
        if (range_lock_has_ready(&volume->lock))
            client_volume_defer(volume);
        client_io_retry(&op->io, 0);
        return READ_START;
    }
    client_io_readmit(&op->io);
    op->io.err = read_op_place(op);
    return op->io.err == 0 ? READ_ASK : READ_DONE;
}

static bool
read_op_acquire(struct read_op *op)
{
    return range_lock_is_held(&op->io.lock) ||
           range_lock_acquire(&op->io.volume->lock, &op->io.lock, op->io.segment_idx,
                              op->io.first_sector, op->io.sector_count, false);
}

static void
read_op_finish(struct read_op *op)
{
    struct client_volume *volume = op->io.volume;
    struct dlblk_request *request = op->io.request;
    read_op_fn on_done = op->on_done;
    int err = op->io.err;

    dl_assert(slot_io_is_idle(&op->slot));
    if (err == 0 && op->bounce != NULL)
        io_slice_copy_to(op->io.slice, op->target + op->io.skip_bytes, op->io.length_bytes);
    if (op->bounce != NULL)
        buffers_release(&volume->core->buffers, op->bounce, read_op_bytes(op));
    if (err != 0 && request != NULL && !volume->fenced)
        client_volume_say_failure(volume, &op->io, op->blamed);
    client_io_end(&op->io);
    if (on_done != NULL)
        on_done(op, err);
    pool_release(op->pool, op);
    if (request != NULL)
        client_volume_piece_done(volume, request, err);
}

static void
read_op_step(struct io_op *io)
{
    struct read_op *op = read_op_of(io);
    enum read_state next;
    uint32_t slot_idx;

    for (;;) {
        switch ((enum read_state)io->sm.state) {
        case READ_START:
            if (io->err == 0 && !read_op_acquire(op))
                return; /* suspended: earlier writes */
            sm_move(&io->sm, io->err == 0 ? READ_LOCKED : READ_DONE);
            continue;
        case READ_LOCKED:
            next = io->err == 0 ? read_op_on_locked(op) : READ_DONE;
            if (next == READ_LOCKED)
                return; /* suspended: the takeover of the segment */
            sm_move(&io->sm, next);
            if (next == READ_START)
                return; /* suspended: an unsettled range */
            continue;
        case READ_ASK:
            if (io->err != 0) {
                sm_move(&io->sm, READ_DONE);
                continue;
            }
            slot_idx = read_op_choose(op);
            if (slot_idx == READ_ANY_SLOT || !read_op_send(op, slot_idx)) {
                read_op_wait(op);
                return; /* suspended: a slot that can be asked */
            }
            sm_move(&io->sm, READ_ANSWERED);
            return; /* suspended: the reply */
        case READ_ANSWERED:
            if (io->err == 0 && op->result != 0)
                read_op_take_error(op);
            sm_move(&io->sm, io->err != 0 || op->result == 0 ? READ_DONE : READ_ASK);
            continue;
        case READ_DONE:
            read_op_finish(op);
            return;
        }
    }
}

/* --- from outside --- */

static void
read_op_abort(struct io_op *io)
{
    struct read_op *op = read_op_of(io);

    client_io_unwait(io);
    /* That the slots can't deliver it says more than that time is over. */
    if (io->err == -DL_E_TIMEOUT && read_op_is_hard(op->result))
        io->err = op->result;
    if (io->sm.state == READ_ANSWERED) {
        if (!slot_io_cancel(&op->slot))
            return; /* the link has our memory: on_slot follows */
        op->slot.server->reads_in_flight--;
        op->blamed = op->slot.server;
    }
    read_op_step(io);
}

/* The slot is slow: another one may be faster. */
static void
read_op_check(struct io_op *io, uint64_t now_ns)
{
    struct read_op *op = read_op_of(io);

    if (io->sm.state != READ_ANSWERED || now_ns - op->asked_ns < VOLUME_SLOT_TIMEOUT_NS)
        return;
    /*
     * The question is still on its way out, or the answer on its way in: to give up would cost the
     * link, and all that is on it would be sent again.  If it is dead its silence will say so.
     */
    if (op->slot.call.frame_in_link || op->slot.call.receiving || !slot_io_cancel(&op->slot))
        return;
    op->slot.server->reads_in_flight--;
    op->result = -DL_E_TIMEOUT;
    read_op_step(io);
}

static bool
read_op_waits_for(const struct io_op *io, char *text, size_t text_bytes)
{
    const struct read_op *op = list_entry(io, struct read_op, io);

    switch ((enum read_state)io->sm.state) {
    case READ_START:
        (void)snprintf(text, text_bytes, "a read of segment %u waits for %s", io->segment_idx,
                       list_is_linked(&io->wait_node) ? "a range that a failed write left undecided"
                                                      : "earlier writes of the same range");
        return true;
    case READ_LOCKED:
        return client_takeover_waits_for(io->volume, text, text_bytes);
    case READ_ASK:
        (void)snprintf(text, text_bytes, "a read of segment %u waits for %s: %s", io->segment_idx,
                       op->blamed != NULL ? client_server_name(op->blamed).text : "a server",
                       op->blamed != NULL ? op->blamed->session.problem : "");
        return true;
    default:
        return false;
    }
}

static void
read_op_free(struct io_op *io)
{
    struct read_op *op = read_op_of(io);

    if (op->bounce != NULL)
        buffers_release(&io->volume->core->buffers, op->bounce, read_op_bytes(op));
}

static const struct io_op_type read_op_type = {
    .name = "read",
    .step = read_op_step,
    .abort = read_op_abort,
    .check = read_op_check,
    .waits_for = read_op_waits_for,
    .free = read_op_free,
};

static struct read_op *
read_op_create(struct client_volume *volume, struct pool *pool, uint32_t segment_idx)
{
    struct read_op *op = pool_acquire(pool);

    dl_assert(op != NULL);
    /* All but the frame's bytes, which are written before they are read. */
    memset(op, 0, offsetof(struct read_op, slot.call.frame.head));
    memset(&op->slot.server, 0, sizeof(*op) - offsetof(struct read_op, slot.server));
    sm_init(&op->io.sm, &read_table, READ_START, segment_idx);
    op->io.type = &read_op_type;
    op->io.volume = volume;
    op->io.segment_idx = segment_idx;
    op->pool = pool;
    op->slot.call.on_reply = read_op_on_reply;
    op->slot.call.on_payload = read_op_on_payload;
    op->slot.call.on_done = read_op_on_slot;
    op->slot_only = READ_ANY_SLOT;
    return op;
}

void
client_read_start(struct client_volume *volume, struct dlblk_request *request,
                  const struct io_piece *piece)
{
    struct read_op *op = read_op_create(volume, &volume->read_ops, piece->segment_idx);
    uint32_t only = volume->flags >> 8;

    op->io.request = request;
    op->io.slice = piece->slice;
    op->io.first_sector = piece->first_sector;
    op->io.sector_count = piece->sector_count;
    op->io.skip_bytes = piece->skip_bytes;
    op->io.length_bytes = piece->length_bytes;
    op->io.deadline_ns = client_volume_piece_deadline(volume);
    if (only != 0)
        op->slot_only = only - 1;
    client_io_begin(&op->io);
    client_io_readmit(&op->io);
    read_op_step(&op->io);
}

struct read_op *
client_read_start_own(struct client_volume *volume, const struct read_own *own)
{
    struct read_op *op = read_op_create(volume, own->pool, own->segment->index);

    dl_assert(own->sector_count <= WINDOW_SECTORS);
    op->io.segment = own->segment;
    op->io.first_sector = own->first_sector;
    op->io.sector_count = own->sector_count;
    op->io.length_bytes = own->sector_count * WIRE_SECTOR_BYTES;
    op->io.deadline_ns = own->deadline_ns;
    op->slot_only = own->slot;
    op->target = own->buffer;
    op->kinds = own->kinds;
    op->on_done = own->on_done;
    op->context = own->context;
    client_io_begin(&op->io);
    sm_move(&op->io.sm, READ_ASK);
    read_op_step(&op->io); /* suspends: on_done never runs inside this call */
    return op;
}

void *
client_read_context(const struct read_op *op)
{
    return op->context;
}

void
client_read_abort(struct read_op *op, int err)
{
    client_io_abort(&op->io, err);
}
