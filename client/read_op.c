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
 *   ANSWERED  suspends before it: the reply; and in it, for a hedge's, if that is still on its way
 *
 * A read of our own (read_own) begins in ASK.  From every state that suspends an abort (deadline,
 * fence) leads to DONE.
 *
 * A hedge is the same question to a second slot, when the first takes longer than nearly all reads
 * do.  It has a buffer of its own, and a life of its own: what comes too late meets nobody.
 *
 * The memory that the reply goes to (the caller's, or a bounce buffer) belongs to the link from
 * on_payload until on_frame or on_down: so nobody but on_done of the call ends the op while a call
 * is active.
 */
#include "client/read_op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/crc32c.h"
#include "common/mutant.h"
#include "dlblk/error.h"

/* Of reads, one in twenty may be asked twice; what is not used is kept for a bad moment. */
#define HEDGE_COST         20u
#define HEDGE_CREDIT_MAX   (64 * HEDGE_COST)
#define HEDGE_CREDIT_FIRST (16 * HEDGE_COST)
/* At least so long a read waits that no slot can deliver: a repair is some requests to disks. */
#define READ_HARD_RETRY_NS (10 * CLIENT_NS_PER_MS)

enum read_state { READ_START, READ_LOCKED, READ_ASK, READ_ANSWERED, READ_DONE };

static const struct sm_state read_states[] = {
    [READ_START] = {"START", SM_EDGE(READ_LOCKED) | SM_EDGE(READ_ASK) | SM_EDGE(READ_DONE)},
    [READ_LOCKED] = {"LOCKED", SM_EDGE(READ_START) | SM_EDGE(READ_ASK) | SM_EDGE(READ_DONE)},
    [READ_ASK] = {"ASK", SM_EDGE(READ_ANSWERED) | SM_EDGE(READ_DONE)},
    [READ_ANSWERED] = {"ANSWERED", SM_EDGE(READ_ASK) | SM_EDGE(READ_DONE)},
    [READ_DONE] = {"DONE", SM_FINAL},
};
static const struct sm_table read_table = SM_TABLE("read", read_states);

/* What a reply has, or what is wrong with it. */
struct read_result {
    int err;
    uint32_t bad_first, bad_count; /* CRC_DATA: sectors of the range */
};

struct read_hedge {
    struct core_loose loose; /* first */
    struct slot_io slot;
    struct client_core *core;
    struct read_op *op; /* NULL: nobody waits for it any more */
    uint32_t place;
    uint32_t config_epoch;
    uint32_t sector_count;
    uint64_t asked_ns;
    bool done; /* it has what was asked for */
    struct read_result result;
    uint8_t *buffer;
    uint8_t kinds[WINDOW_SECTORS];
};

struct read_op {
    struct io_op io;
    struct slot_io slot;
    struct pool *pool;
    struct read_hedge *hedge;
    uint32_t config_epoch; /* of the map that slot_idx and tried are about */
    uint32_t slot_idx;     /* the one that was asked last */
    uint32_t slot_only;
    uint32_t tried; /* bit per slot: failed in this round */
    bool hard;      /* one of them with an error that time alone seldom mends */
    bool data;      /* the reply has a payload */
    int result;     /* of the last slot */
    struct read_result reply;
    uint64_t asked_ns;
    uint8_t *target; /* where whole sectors go; NULL: nobody wants them */
    void *bounce;    /* target, if it is not the caller's */
    uint8_t *kinds;
    struct client_server *blamed;
    read_op_fn on_done; /* NULL: a piece of a request */
    void *context;
};

static const struct io_op_type read_op_type;
static void read_want_hedges(struct client_volume *volume);

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
read_reply_fits(const struct frame *reply, uint32_t sector_count)
{
    struct data_read_reply decoded;

    return reply->status == 0 && data_read_reply_decode(reply, &decoded) == 0 &&
           decoded.length_sectors == sector_count;
}

static void *
read_op_on_payload(struct session_call *call, const struct frame *reply)
{
    struct read_op *op = list_entry(call, struct read_op, slot.call);

    return op->target != NULL && read_reply_fits(reply, op->io.sector_count) ? op->target : NULL;
}

/* Sectors without data are zeroes whatever the payload says. */
static struct read_result
read_check_sectors(uint8_t *target, const struct data_read_reply *reply)
{
    struct read_result result = {0};

    for (uint32_t i = 0; i < reply->length_sectors; i++) {
        uint8_t *sector = target + bytes_of_sectors(i);

        if (reply->kinds[i] != WIRE_SECTOR_DATA) {
            memset(sector, 0, WIRE_SECTOR_BYTES);
            continue;
        }
        if (crc32c(0, sector, WIRE_SECTOR_BYTES) == le32_load(reply->crcs_le + i * sizeof(le32)) ||
            DLBLK_MUTANT(client_forget_data_crc))
            continue;
        if (result.err == 0)
            result.bad_first = i;
        result.bad_count = i - result.bad_first + 1;
        result.err = -DL_E_CRC_DATA;
    }
    return result;
}

/* Into target (NULL: nobody wants the sectors) and kinds (likewise). */
static struct read_result
read_take_reply(const struct frame *reply, uint32_t sector_count, uint8_t *target, uint8_t *kinds)
{
    struct read_result result = {.err = reply->status, .bad_count = sector_count};
    struct data_read_reply decoded;

    if (result.err != 0)
        return result;
    result.err = -DL_E_MESSAGE_MALFORMED;
    if (!read_reply_fits(reply, sector_count) || data_read_reply_decode(reply, &decoded) != 0)
        return result;
    if (target != NULL && decoded.data_sectors != 0 && reply->payload == NULL)
        return result;
    if (kinds != NULL)
        memcpy(kinds, decoded.kinds, decoded.length_sectors);
    result.err = 0;
    if (target == NULL)
        return result;
    if (decoded.data_sectors != 0)
        return read_check_sectors(target, &decoded);
    memset(target, 0, sector_count * WIRE_SECTOR_BYTES);
    return result;
}

static int
read_op_on_reply(struct session_call *call, const struct frame *reply)
{
    struct read_op *op = list_entry(call, struct read_op, slot.call);

    op->reply = read_take_reply(reply, op->io.sector_count, op->target, op->kinds);
    return op->reply.err;
}

/* --- bad sectors --- */

#define REPAIRS_MAX 16u /* to one server at a time: it looks for itself */

struct read_repair {
    struct core_loose loose; /* first */
    struct session_call call;
    struct client_server *server;
};

static void
read_repair_free(struct core_loose *loose)
{
    free((struct read_repair *)loose);
}

static void
read_repair_on_done(struct session_call *call, int err)
{
    struct read_repair *repair = list_entry(call, struct read_repair, call);

    (void)err; /* if it is lost, the next reader says so again */
    repair->server->repairs_in_flight--;
    list_remove(&repair->loose.node);
    free(repair);
}

/* The server whose copy is bad is told; nobody waits for it. */
static void
read_op_repair(const struct read_op *op, struct client_server *server, uint32_t place,
               const struct read_result *result)
{
    struct client_volume *volume = op->io.volume;
    Dl__Repair message = DL__REPAIR__INIT;
    struct read_repair *repair;
    struct frame_out *frame;
    uint64_t request_id;

    if (server->repairs_in_flight >= REPAIRS_MAX || !client_session_is_up(&server->session))
        return;
    repair = calloc(1, sizeof(*repair));
    if (repair == NULL)
        return;
    repair->server = server;
    repair->loose.free = read_repair_free;
    repair->call.on_done = read_repair_on_done;
    request_id = client_session_begin(&server->session, &repair->call, OP_REPAIR);
    message.volume = volume->id;
    message.segment = op->io.segment_idx;
    message.slot = op->io.segment->slots[place].number;
    message.first_sector = op->io.first_sector + result->bad_first;
    message.sector_count = result->bad_count;
    frame = request_id == 0 ? NULL
                            : frame_out_create_message(OP_REPAIR, 0, request_id, 0, &message.base);
    if (frame == NULL) {
        if (request_id != 0)
            (void)client_session_cancel(&repair->call);
        free(repair);
        return;
    }
    server->repairs_in_flight++;
    volume->stats.repairs++;
    list_push_back(&volume->core->loose, &repair->loose.node);
    client_session_send_message(&repair->call, frame);
}

/* --- what an answer means --- */

/*
 * An error that comes from the data, its index or the medium: the slot would say the same again.
 */
static bool
read_op_is_hard(int err)
{
    return err == -DL_E_CRC_DATA || err == -DL_E_MEDIA_READ || err == -DL_E_INDEX_CORRUPT;
}

/* The place that was asked is still this server's, and in sync. */
static bool
read_op_is_current(const struct read_op *op, uint32_t config_epoch, uint32_t place,
                   const struct client_server *server)
{
    const struct segment *segment = op->io.segment;

    return config_epoch == segment->config_epoch ||
           (place < segment->slot_count && segment_slot_is_read(&segment->slots[place]) &&
            segment->slots[place].server_id == server->id);
}

static void
read_op_take_error(struct read_op *op, struct client_server *server, uint32_t config_epoch,
                   uint32_t place, const struct read_result *result)
{
    struct client_volume *volume = op->io.volume;
    bool current = read_op_is_current(op, config_epoch, place, server);
    int err = result->err;

    /* A question that is still under way is given up with all the others, by the volume's task. */
    if (client_io_check_fence(&op->io, err)) {
        if (op->io.err == 0 && !client_session_call_is_active(&op->slot.call))
            op->io.err = volume->fence_err;
        return;
    }
    op->blamed = server;
    if (current)
        op->tried |= 1u << place;
    volume->stats.retries++;
    if (err == -DL_E_CRC_DATA) {
        volume->stats.crc_errors++;
        client_core_event(
            volume->core, DLBLK_EVENT_WARNING,
            "volume %s: segment %u, sectors %u to %u: %s delivered data that does not "
            "match its checksum",
            volume->name, op->io.segment_idx, op->io.first_sector + result->bad_first,
            op->io.first_sector + result->bad_first + result->bad_count - 1,
            client_server_name(server).text);
    }
    if (current && read_op_is_hard(err))
        read_op_repair(op, server, place, result);
    if (err == -DL_E_EPOCH_OLD || err == -DL_E_NOT_IN_SYNC)
        client_map_refresh_now(volume, op->io.segment_idx);
    if (err == -DL_E_CHUNK_UNKNOWN)
        client_map_refresh(volume, op->io.segment_idx);
    if (!read_op_is_hard(err))
        return;
    op->hard = true;
    if (op->slot_only != READ_ANY_SLOT && op->io.err == 0)
        op->io.err = err;
}

static void read_op_step(struct io_op *io);

/* The question is over, however it ended. */
static void
read_op_end_question(struct read_op *op)
{
    dl_assert(op->slot.server->reads_in_flight > 0);
    op->slot.server->reads_in_flight--;
    dl_assert(op->io.volume->reads_asked > 0);
    op->io.volume->reads_asked--;
}

static void
read_op_record(struct read_op *op)
{
    struct client_volume *volume = op->io.volume;
    uint64_t now_ns = env_now_ns(volume->core->env);

    latency_record(&volume->read_latency, now_ns, now_ns - op->asked_ns);
}

static void
read_op_on_slot(struct session_call *call, int err)
{
    struct read_op *op = list_entry(call, struct read_op, slot.call);

    read_op_end_question(op);
    if (err == 0 && !read_op_is_current(op, op->config_epoch, op->slot_idx, op->slot.server) &&
        !DLBLK_MUTANT(client_keep_old_reads))
        err = -DL_E_NOT_IN_SYNC;
    op->result = err;
    if (err == 0) {
        read_op_record(op);
    } else {
        if (op->reply.err != err)
            op->reply = (struct read_result){.err = err, .bad_count = op->io.sector_count};
        read_op_take_error(op, op->slot.server, op->config_epoch, op->slot_idx, &op->reply);
    }
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
    uint32_t equals[WIRE_SLOTS_MAX];
    uint32_t equal_count = 0;

    for (uint32_t i = 0; i < segment->slot_count; i++) {
        const struct client_server *server = client_core_server(volume->core,
                                                                segment->slots[i].server_id);

        if (!read_op_may_ask(op, i) || !client_session_is_up(&server->session))
            continue;
        if (best == NULL || server->same_host > best->same_host ||
            (server->same_host == best->same_host &&
             server->reads_in_flight < best->reads_in_flight)) {
            best = server;
            equal_count = 0;
        } else if (server->same_host != best->same_host ||
                   server->reads_in_flight != best->reads_in_flight) {
            continue;
        }
        equals[equal_count++] = i;
    }
    return equal_count == 0 ? READ_ANY_SLOT : equals[volume->rotation++ % equal_count];
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

/* 0: no memory; else the frame is built. */
static bool
read_slot_begin(const struct read_op *op, struct slot_io *slot, uint32_t place)
{
    const struct client_volume *volume = op->io.volume;
    const struct segment *segment = op->io.segment;
    struct data_read read = {
        .target = {.volume = volume->id,
                   .segment = segment->index,
                   .slot = segment->slots[place].number,
                   .config_epoch = segment->config_epoch,
                   .lease_epoch = volume->lease_epoch,
                   .offset_sectors = op->io.first_sector,
                   .length_sectors = op->io.sector_count},
    };
    uint64_t request_id;

    slot->server = client_core_server(volume->core, segment->slots[place].server_id);
    request_id = client_session_begin(&slot->server->session, &slot->call, OP_READ);
    if (request_id == 0)
        return false;
    slot->server->reads_in_flight++;
    frame_out_read(&slot->call.frame, request_id, &read);
    return true;
}

/* False: no memory. */
static bool
read_op_send(struct read_op *op, uint32_t slot_idx)
{
    struct client_volume *volume = op->io.volume;

    if (!read_slot_begin(op, &op->slot, slot_idx))
        return false;
    op->slot_idx = slot_idx;
    op->config_epoch = op->io.segment->config_epoch;
    op->reply = (struct read_result){0};
    op->asked_ns = env_now_ns(volume->core->env);
    volume->reads_asked++;
    volume->hedge_credit = min_u32(volume->hedge_credit + 1, HEDGE_CREDIT_MAX);
    client_session_send(&op->slot.call);
    read_want_hedges(volume);
    return true;
}

/* --- hedges --- */

static void
read_hedge_free(struct core_loose *loose)
{
    struct read_hedge *hedge = (struct read_hedge *)loose;

    buffers_release(&hedge->core->buffers, hedge->buffer, hedge->sector_count * WIRE_SECTOR_BYTES);
    free(hedge);
}

static void
read_hedge_destroy(struct read_hedge *hedge)
{
    list_remove(&hedge->loose.node);
    read_hedge_free(&hedge->loose);
}

/* Nobody waits for it any more.  If its link still needs it, it goes when that is over. */
static void
read_op_drop_hedge(struct read_op *op)
{
    struct read_hedge *hedge = op->hedge;

    if (hedge == NULL)
        return;
    op->hedge = NULL;
    hedge->op = NULL;
    if (client_session_call_is_active(&hedge->slot.call)) {
        if (hedge->slot.call.frame_in_link || hedge->slot.call.receiving)
            return;
        (void)client_session_cancel(&hedge->slot.call);
        hedge->slot.server->reads_in_flight--;
    }
    read_hedge_destroy(hedge);
}

static void *
read_hedge_on_payload(struct session_call *call, const struct frame *reply)
{
    struct read_hedge *hedge = list_entry(call, struct read_hedge, slot.call);

    return read_reply_fits(reply, hedge->sector_count) ? hedge->buffer : NULL;
}

static int
read_hedge_on_reply(struct session_call *call, const struct frame *reply)
{
    struct read_hedge *hedge = list_entry(call, struct read_hedge, slot.call);

    hedge->result = read_take_reply(reply, hedge->sector_count, hedge->buffer, hedge->kinds);
    return hedge->result.err;
}

/* What it has read is what was asked for. */
static void
read_op_take_hedge(struct read_op *op)
{
    const struct read_hedge *hedge = op->hedge;

    if (op->target != NULL)
        memcpy(op->target, hedge->buffer, read_op_bytes(op));
    if (op->kinds != NULL)
        memcpy(op->kinds, hedge->kinds, hedge->sector_count);
    op->result = 0;
}

static void
read_hedge_on_done(struct session_call *call, int err)
{
    struct read_hedge *hedge = list_entry(call, struct read_hedge, slot.call);
    struct read_op *op = hedge->op;

    hedge->slot.server->reads_in_flight--;
    if (op == NULL) {
        read_hedge_destroy(hedge);
        return;
    }
    if (err == 0 && !read_op_is_current(op, hedge->config_epoch, hedge->place, hedge->slot.server))
        err = -DL_E_NOT_IN_SYNC;
    if (hedge->result.err != err)
        hedge->result = (struct read_result){.err = err, .bad_count = hedge->sector_count};
    hedge->done = err == 0;
    if (err != 0) {
        read_op_take_error(op, hedge->slot.server, hedge->config_epoch, hedge->place,
                           &hedge->result);
        op->hedge = NULL;
        read_hedge_destroy(hedge);
    } else if (client_session_call_is_active(&op->slot.call)) {
        /* The first answer is arriving where the caller wants it: it is nearly here. */
        if (op->slot.call.receiving || op->slot.call.frame_in_link)
            return;
        (void)client_session_cancel(&op->slot.call);
        read_op_end_question(op);
        read_op_record(op); /* it took at least so long */
        op->result = -DL_E_CANCELLED;
    }
    if (!client_session_call_is_active(&op->slot.call))
        read_op_step(&op->io);
}

static void
read_op_start_hedge(struct read_op *op)
{
    struct client_volume *volume = op->io.volume;
    struct read_hedge *hedge;
    uint32_t place;

    op->tried |= 1u << op->slot_idx; /* until it is chosen: not the same again */
    place = read_op_choose(op);
    op->tried &= ~(1u << op->slot_idx);
    if (place == READ_ANY_SLOT)
        return;
    hedge = calloc(1, sizeof(*hedge));
    if (hedge == NULL)
        return;
    hedge->loose.free = read_hedge_free;
    hedge->core = volume->core;
    hedge->op = op;
    hedge->place = place;
    hedge->config_epoch = op->io.segment->config_epoch;
    hedge->sector_count = op->io.sector_count;
    hedge->asked_ns = env_now_ns(volume->core->env);
    hedge->slot.call.on_reply = read_hedge_on_reply;
    hedge->slot.call.on_payload = read_hedge_on_payload;
    hedge->slot.call.on_done = read_hedge_on_done;
    hedge->buffer = buffers_acquire(&volume->core->buffers, read_op_bytes(op));
    if (hedge->buffer == NULL || !read_slot_begin(op, &hedge->slot, place)) {
        if (hedge->buffer != NULL)
            buffers_release(&volume->core->buffers, hedge->buffer, read_op_bytes(op));
        free(hedge);
        return;
    }
    op->hedge = hedge;
    list_push_back(&volume->core->loose, &hedge->loose.node);
    volume->hedge_credit -= HEDGE_COST;
    volume->stats.hedged_reads++;
    client_session_send(&hedge->slot.call);
}

static bool
read_op_wants_hedge(const struct read_op *op, uint64_t now_ns, uint64_t limit_ns)
{
    return op->io.sm.state == READ_ANSWERED && op->io.err == 0 && op->hedge == NULL &&
           op->slot_only == READ_ANY_SLOT && client_session_call_is_active(&op->slot.call) &&
           op->config_epoch == op->io.segment->config_epoch && !op->slot.call.frame_in_link &&
           !op->slot.call.receiving && now_ns - op->asked_ns >= limit_ns;
}

static uint64_t
read_hedge_min_ns(const struct client_volume *volume)
{
    return volume->core->options.hedge_min_ms * CLIENT_NS_PER_MS;
}

static void
read_on_hedge_timer(struct env_timer *timer)
{
    struct client_volume *volume = list_entry(timer, struct client_volume, hedge_timer);
    uint64_t now_ns = env_now_ns(volume->core->env);
    uint64_t limit_ns = max_u64(latency_p99_ns(&volume->read_latency, now_ns),
                                read_hedge_min_ns(volume));
    struct io_op *io;

    list_for_each_entry (io, &volume->ops, node) {
        if (now_ns - io->start_ns < limit_ns || volume->hedge_credit < HEDGE_COST)
            break;
        if (io->type == &read_op_type && read_op_wants_hedge(read_op_of(io), now_ns, limit_ns))
            read_op_start_hedge(read_op_of(io));
    }
    read_want_hedges(volume);
}

/* The timer runs while reads are in flight. */
static void
read_want_hedges(struct client_volume *volume)
{
    if (volume->reads_asked == 0 || volume->fenced ||
        volume->core->options.hedge_min_ms == CLIENT_NEVER || env_timer_armed(&volume->hedge_timer))
        return;
    env_timer_start(volume->core->env, &volume->hedge_timer, read_hedge_min_ns(volume) / 2);
}

void
client_read_init(struct client_volume *volume)
{
    volume->hedge_timer.fn = read_on_hedge_timer;
    volume->hedge_credit = HEDGE_CREDIT_FIRST;
}

/* --- the steps --- */

/*
 * All have been asked, or are away: wait, and begin a new round: as long again as this read has
 * taken, if each has a sector that it can't deliver, since other sectors are repaired meanwhile.
 * What no slot can deliver does not come back by waiting: it is an error in the end, also of a
 * request that waits without limit.
 */
static void
read_op_wait(struct read_op *op)
{
    struct client_server *away = read_op_find_away(op);
    uint64_t age_ns = env_now_ns(op->io.volume->core->env) - op->io.start_ns, delay_ns = 0;

    if (away == NULL && op->hard && op->io.deadline_ns == VOLUME_NO_DEADLINE &&
        age_ns >= VOLUME_HARD_ERROR_NS) {
        op->io.err = read_op_is_hard(op->result) ? op->result : -DL_E_MEDIA_READ;
        return;
    }
    if (away != NULL)
        op->blamed = away;
    if (away != NULL)
        client_map_refresh(op->io.volume, op->io.segment_idx);
    if (away == NULL && op->hard)
        delay_ns = max_u64(READ_HARD_RETRY_NS, min_u64(age_ns, VOLUME_RETRY_NS));
    client_io_retry(&op->io, delay_ns);
    op->tried = 0;
    op->hard = false;
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
    if (client_io_waits_for_resolution(&op->io))
        return READ_LOCKED;
    if (client_unsettled_overlaps(segment, op->io.first_sector, op->io.sector_count)) {
        client_io_let_go(&op->io);
        return READ_START;
    }
    client_io_readmit(&op->io);
    op->io.err = read_op_place(op);
    return op->io.err == 0 ? READ_ASK : READ_DONE;
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
            if (io->err == 0 && !client_io_acquire(&op->io, false))
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
            if (op->config_epoch != io->segment->config_epoch)
                op->tried = 0;
            op->config_epoch = io->segment->config_epoch;
            slot_idx = read_op_choose(op);
            if (slot_idx == READ_ANY_SLOT || !read_op_send(op, slot_idx)) {
                read_op_wait(op);
                if (io->err != 0)
                    continue;
                return; /* suspended: a slot that can be asked */
            }
            sm_move(&io->sm, READ_ANSWERED);
            return; /* suspended: the reply */
        case READ_ANSWERED:
            if (op->hedge != NULL && op->hedge->done && op->result != 0)
                read_op_take_hedge(op);
            if (io->err == 0 && op->result != 0 && op->hedge != NULL)
                return; /* suspended: the hedge's answer */
            read_op_drop_hedge(op);
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
        read_op_drop_hedge(op);
        if (client_session_call_is_active(&op->slot.call)) {
            if (!slot_io_cancel(&op->slot))
                return; /* the link has our memory: on_slot follows */
            read_op_end_question(op);
        }
        op->blamed = op->slot.server;
    }
    read_op_step(io);
}

/* The slot is slow: another one may be faster. */
static void
read_op_check_question(struct read_op *op, uint64_t now_ns)
{
    struct read_result timeout = {.err = -DL_E_TIMEOUT};

    if (op->hedge != NULL && !op->hedge->done &&
        now_ns - op->hedge->asked_ns >= VOLUME_SLOT_TIMEOUT_NS) {
        read_op_take_error(op, op->hedge->slot.server, op->hedge->config_epoch, op->hedge->place,
                           &timeout);
        read_op_drop_hedge(op);
        if (!client_session_call_is_active(&op->slot.call)) {
            read_op_step(&op->io);
            return;
        }
    }
    if (!client_session_call_is_active(&op->slot.call) ||
        now_ns - op->asked_ns < VOLUME_SLOT_TIMEOUT_NS)
        return;
    /*
     * The question is still on its way out, or the answer on its way in: to give up would cost the
     * link, and all that is on it would be sent again.  If it is dead its silence will say so.
     */
    if (op->slot.call.frame_in_link || op->slot.call.receiving || !slot_io_cancel(&op->slot))
        return;
    read_op_end_question(op);
    op->result = -DL_E_TIMEOUT;
    read_op_take_error(op, op->slot.server, op->config_epoch, op->slot_idx, &timeout);
    read_op_step(&op->io);
}

static void
read_op_check(struct io_op *io, uint64_t now_ns)
{
    struct read_op *op = read_op_of(io);

    if (io->sm.state == READ_ANSWERED) {
        read_op_check_question(op, now_ns);
    } else if (io->sm.state == READ_ASK && op->config_epoch != io->segment->config_epoch &&
               list_is_linked(&io->wait_node)) {
        /* Another map: there may be somebody to ask. */
        client_io_unwait(io);
        read_op_step(io);
    }
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

    /* A simulated crash: the hedge is the core's. */
    if (op->hedge != NULL)
        op->hedge->op = NULL;
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

    if (only != 0)
        op->slot_only = only - 1;
    client_io_begin_piece(&op->io, request, piece);
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
