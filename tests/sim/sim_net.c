/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_net.c: links of the simulated world.  See sim.h.
 *
 *   link_send -> tx list --hand over--> peer's rx list (bytes) --arrives--> on_payload, on_frame
 *
 * A frame is copied when it is handed over, not when it is sent: memory that its owner gave up too
 * early shows.  What was handed over arrives, in order, unless the link breaks: then a prefix of it
 * does, up to any byte.
 *
 * An end goes down in an event of its own: everything in tx is given back, then on_down, then it is
 * freed.  Its peer sees that as the last message of its rx list (RX_END), or never ("silent"):
 * whoever sends to nobody gets a reset, sooner or later.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "dlblk/error.h"
#include "tests/sim/sim.h"

#define HAND_OVER_NS_MAX   (20 * SIM_US)
#define DOWN_NS_MAX        (50 * SIM_US)
#define CONNECT_TIMEOUT_NS (3 * SIM_S)
#define RESET_NS_MAX       (300 * SIM_MS)
#define RETRANSMIT_NS_MAX  (200 * SIM_MS)

enum rx_kind { RX_FRAME, RX_CUT /* a frame that ends in its payload */, RX_END };

struct sim_message {
    struct list node;
    enum rx_kind kind;
    uint32_t from_idx; /* process */
    uint64_t deliver_ns;
    int err;      /* RX_END */
    bool checked; /* header and body were decoded */
    bool placed;  /* on_payload was asked */
    struct frame frame;
    uint32_t bytes;
    uint8_t data[];
};

enum end_state { END_CONNECTING, END_ACCEPTING, END_UP, END_CLOSING };

/* One side of a link. */
struct sim_end {
    struct link link; /* first */
    struct sim_process *process;
    struct sim_end *peer; /* NULL: nobody is there */
    struct list node;     /* in process->ends */
    enum end_state state;
    bool paused;
    char target[DL_ADDRESS_HOST_BYTES]; /* whom it connects to */
    uint64_t connect_end_ns;
    struct sim_event state_event; /* connect, accept, on_up; then going down */
    int down_err;
    struct list tx; /* struct frame_out */
    struct sim_event tx_event;
    struct list rx; /* struct sim_message */
    uint64_t rx_last_ns, rx_bytes;
    struct sim_event rx_event;
};

static struct sim_end *
end_of(struct link *link)
{
    return (struct sim_end *)link;
}

static uint64_t
net_random(struct sim_world *world, uint64_t bound)
{
    return fake_rng_below(&world->net_rng, bound);
}

static bool
net_percent(struct sim_world *world, uint32_t percent)
{
    return net_random(world, 100) < percent;
}

static uint64_t
net_delay_ns(struct sim_world *world)
{
    const struct sim_net_profile *net = &world->net;

    if (net->tail_permille > 0 && net_random(world, 1000) < net->tail_permille)
        return net->delay_min_ns + net_random(world, net->tail_ns);
    return fake_rng_range(&world->net_rng, net->delay_min_ns, net->delay_max_ns);
}

/* --- arrival --- */

static void end_on_rx(struct sim_event *event);
static void end_on_tx(struct sim_event *event);
static void end_begin_down(struct sim_end *end, int err);

static void
end_schedule_rx(struct sim_end *end)
{
    struct sim_world *world = end->process->world;
    struct list *first = list_first(&end->rx);
    uint64_t deliver_ns;

    if (first == NULL || end->paused || end->state != END_UP || end->rx_event.heap_idx != 0)
        return;
    deliver_ns = list_entry(first, struct sim_message, node)->deliver_ns;
    sim_schedule(world, &end->rx_event, end->process, end_on_rx,
                 deliver_ns > world->now_ns ? deliver_ns - world->now_ns : 0);
}

static void
end_rx_append(struct sim_end *end, struct sim_message *message)
{
    struct sim_world *world = end->process->world;

    message->deliver_ns = world->now_ns + net_delay_ns(world);
    if (world->slow_until_ns[message->from_idx][end->process->idx] > world->now_ns)
        message->deliver_ns += net_random(world, world->slow_ns);
    if (message->deliver_ns < end->rx_last_ns)
        message->deliver_ns = end->rx_last_ns;
    end->rx_last_ns = message->deliver_ns;
    end->rx_bytes += message->bytes;
    list_push_back(&end->rx, &message->node);
    end_schedule_rx(end);
}

static void
end_rx_drop_first(struct sim_end *end)
{
    struct sim_message *message = list_entry(list_pop_front(&end->rx), struct sim_message, node);

    end->rx_bytes -= message->bytes;
    free(message);
}

static struct sim_message *
message_create(struct sim_world *world, enum rx_kind kind, uint32_t from_idx, uint32_t bytes)
{
    struct sim_message *message = malloc(sizeof(*message) + bytes);

    sim_require(world, message != NULL, "no memory");
    memset(message, 0, sizeof(*message));
    message->kind = kind;
    message->from_idx = from_idx;
    message->bytes = bytes;
    return message;
}

/* The last that the end will see of its link: at late_ns from now, or later. */
static void
end_append_end(struct sim_end *end, uint32_t from_idx, uint64_t late_ns)
{
    struct sim_world *world = end->process->world;
    struct sim_message *message = message_create(world, RX_END, from_idx, 0);

    message->err = -DL_E_CONNECTION_LOST;
    if (end->rx_last_ns < world->now_ns + late_ns)
        end->rx_last_ns = world->now_ns + late_ns;
    end_rx_append(end, message);
}

/*
 * The sender is gone: of what is on its way to `end` a prefix arrives, which may end in the middle
 * of a frame.
 */
static void
end_rx_truncate(struct sim_end *end)
{
    struct sim_world *world = end->process->world;
    uint64_t keep = net_random(world, list_length(&end->rx) + 1);
    struct sim_message *message, *following;
    uint64_t idx = 0;

    list_for_each_entry_safe (message, following, &end->rx, node) {
        if (idx++ < keep)
            continue;
        world->net_stats.frames_lost++;
        if (idx == keep + 1 && message->kind == RX_FRAME && net_percent(world, 50)) {
            message->kind = RX_CUT;
            continue;
        }
        list_remove(&message->node);
        end->rx_bytes -= message->bytes;
        free(message);
    }
    sim_cancel(world, &end->rx_event);
    end_schedule_rx(end);
}

/* --- going down --- */

static void
end_free(struct sim_end *end)
{
    struct sim_world *world = end->process->world;

    sim_cancel(world, &end->state_event);
    sim_cancel(world, &end->tx_event);
    sim_cancel(world, &end->rx_event);
    while (!list_is_empty(&end->rx))
        end_rx_drop_first(end);
    list_remove(&end->node);
    free(end);
}

/* `end` is no more; what its peer sees of that. */
static void
end_leave_peer(struct sim_end *end, bool orderly, bool silent)
{
    struct sim_world *world = end->process->world;
    struct sim_end *peer = end->peer;

    if (peer == NULL)
        return;
    end->peer = NULL;
    peer->peer = NULL;
    if (peer->state == END_CLOSING)
        return;
    if (!orderly)
        end_rx_truncate(peer);
    if (silent) {
        world->net_stats.silent++;
        return;
    }
    end_append_end(peer, end->process->idx, 0);
}

static void
end_give_back_tx(struct sim_end *end, int err)
{
    struct list *node;

    /* on_sent may send again: that comes back as well. */
    while ((node = list_pop_front(&end->tx)) != NULL) {
        struct frame_out *frame = list_entry(node, struct frame_out, node);

        frame->on_sent(frame, err);
    }
}

/* The process dies: nobody is told.  Other frames are part of what the core frees. */
static void
end_forget_tx(struct sim_end *end)
{
    struct list *node;

    while ((node = list_pop_front(&end->tx)) != NULL) {
        struct frame_out *frame = list_entry(node, struct frame_out, node);

        if (frame_out_frees_itself(frame))
            frame_out_destroy(frame);
    }
}

static void
end_on_down_event(struct sim_event *event)
{
    struct sim_end *end = list_entry(event, struct sim_end, state_event);

    sim_trace(end->process->world, end->process, "link %" PRIu64 " is down: %s", end->link.id,
              dl_err_name(end->down_err));
    end_give_back_tx(end, end->down_err);
    end->link.events->on_down(end->link.core, &end->link, end->down_err);
    /* What on_down sent on it all the same. */
    end_give_back_tx(end, -DL_E_CONNECTION_LOST);
    end_free(end);
}

static void
end_begin_down(struct sim_end *end, int err)
{
    struct sim_world *world = end->process->world;

    if (end->state == END_CLOSING)
        return;
    end->state = END_CLOSING;
    end->down_err = err;
    end->link.up = false;
    sim_cancel(world, &end->tx_event);
    sim_cancel(world, &end->rx_event);
    end_leave_peer(end, err == -DL_E_CANCELLED && net_percent(world, 70), false);
    sim_schedule(world, &end->state_event, end->process, end_on_down_event,
                 net_random(world, DOWN_NS_MAX));
}

/* --- a frame arrives --- */

static void
end_bad_frame(struct sim_end *end, int err)
{
    sim_trace(end->process->world, end->process, "link %" PRIu64 ": bad frame: %s", end->link.id,
              dl_err_name(err));
    end_begin_down(end, err);
}

/* False: the link is closed, or waits. */
static bool
message_check(struct sim_end *end, struct sim_message *message)
{
    int err;

    if (message->checked)
        return true;
    err = frame_decode_header(message->data, &message->frame);
    if (err == 0) {
        message->frame.body = message->data + FRAME_HEADER_BYTES;
        err = frame_check_body(&message->frame);
    }
    if (err != 0) {
        end_bad_frame(end, err);
        return false;
    }
    message->checked = true;
    return true;
}

/*
 * Where the payload goes.  False: the link is closed, or paused by a core that has no room: it is
 * asked again.
 */
static bool
message_place(struct sim_end *end, struct sim_message *message)
{
    struct sim_world *world = end->process->world;

    if (message->placed || message->frame.payload_bytes == 0)
        return true;
    message->frame.payload = end->link.events->on_payload(end->link.core, &end->link,
                                                          &message->frame);
    if (end->state != END_UP || (message->frame.payload == NULL && end->paused))
        return false;
    message->placed = true;
    world->net_stats.payload_frames++;
    if (message->kind == RX_FRAME && !end->paused && net_percent(world, world->net.split_percent)) {
        /* The rest comes later; whatever else happens meanwhile. */
        message->deliver_ns = world->now_ns + net_delay_ns(world);
        return false;
    }
    return !end->paused;
}

/* The part of a data request that says what it is about. */
static void
trace_data_request(const struct sim_end *end, const struct frame *frame)
{
    const struct write_request_wire *wire = (const void *)frame->body;
    const struct chunk_target_wire *target = &wire->target;
    bool write = frame->opcode == OP_WRITE;

    if (frame_is_reply(frame) || frame->body_bytes < sizeof(*target) ||
        (!write && frame->opcode != OP_READ && frame->opcode != OP_STABLE))
        return;
    sim_trace_write(end->process->world, end->process,
                    "    volume %" PRIu64 " segment %u slot %u sectors %u + %u epoch %u lease %u "
                    "flags %u version %#" PRIx64 " stable %#" PRIx64,
                    le64_get(target->volume), le32_get(target->segment), le16_get(target->slot),
                    le32_get(target->offset_sectors), le32_get(target->length_sectors),
                    le32_get(target->config_epoch), le32_get(target->lease_epoch),
                    le16_get(target->flags), write ? le64_get(wire->version) : 0,
                    write ? le64_get(wire->stable_version) : 0);
}

static void
frame_tell(const struct sim_end *end, struct sim_process *from, struct sim_process *to,
           const struct frame *frame, bool arrives)
{
    struct sim_world *world = end->process->world;
    struct sim_frame_event event = {
        .from = from,
        .to = to,
        .link_id = end->link.id,
        .frame = frame,
        .arrives = arrives,
    };

    if (world->on_frame != NULL)
        world->on_frame(world->frame_context, &event);
}

static void
message_deliver(struct sim_end *end, struct sim_message *message)
{
    const uint8_t *payload = message->data + FRAME_HEADER_BYTES + message->frame.body_bytes;

    if (message->frame.payload != NULL)
        memcpy(message->frame.payload, payload, message->frame.payload_bytes);
    sim_trace(end->process->world, end->process, "link %" PRIu64 " <- %s%s %" PRIu64 " %s",
              end->link.id, opcode_name(message->frame.opcode),
              frame_is_reply(&message->frame) ? " reply" : "", message->frame.request_id,
              message->frame.status == 0 ? "" : dl_err_name(message->frame.status));
    if (end->process->world->trace)
        trace_data_request(end, &message->frame);
    list_remove(&message->node);
    end->rx_bytes -= message->bytes;
    frame_tell(end, end->process->world->processes[message->from_idx], end->process,
               &message->frame, true);
    end->link.events->on_frame(end->link.core, &end->link, &message->frame);
    free(message);
}

static void
end_take_message(struct sim_end *end, struct sim_message *message)
{
    struct sim_world *world = end->process->world;

    if (message->kind == RX_END) {
        end_begin_down(end, message->err);
        return;
    }
    if (message->kind == RX_CUT) {
        /* Maybe the header and the body came whole, and some of the payload. */
        if (net_percent(world, 50) && message_check(end, message) && message_place(end, message))
            world->net_stats.cuts_in_payload++;
        if (end->state == END_UP && !end->paused)
            end_rx_drop_first(end);
        return;
    }
    if (message_check(end, message) && message_place(end, message))
        message_deliver(end, message);
}

static void
end_on_rx(struct sim_event *event)
{
    struct sim_end *end = list_entry(event, struct sim_end, rx_event);
    struct sim_world *world = end->process->world;
    struct sim_message *message = list_first_entry(&end->rx, struct sim_message, node);
    uint64_t blocked_ns = world->blocked_until_ns[message->from_idx][end->process->idx];

    if (blocked_ns > world->now_ns) {
        world->net_stats.blocked++;
        message->deliver_ns = blocked_ns + net_random(world, RETRANSMIT_NS_MAX);
        end_schedule_rx(end);
        return;
    }
    end_take_message(end, message);
    if (end->state != END_UP)
        return;
    end_schedule_rx(end);
    if (end->peer != NULL && !list_is_empty(&end->peer->tx) && end->peer->tx_event.heap_idx == 0 &&
        end->peer->state == END_UP)
        sim_schedule(world, &end->peer->tx_event, end->peer->process, end_on_tx,
                     net_random(world, HAND_OVER_NS_MAX));
}

/* --- sending --- */

static struct sim_message *
message_of_frame(struct sim_end *end, const struct frame_out *frame)
{
    struct sim_world *world = end->process->world;
    uint32_t bytes = frame->head_bytes + frame->body_tail_bytes + frame->payload_bytes;
    struct sim_message *message = message_create(world, RX_FRAME, end->process->idx, bytes);
    uint8_t *at = message->data;

    memcpy(at, frame->head, frame->head_bytes);
    at += frame->head_bytes;
    if (frame->body_tail_bytes > 0)
        memcpy(at, frame->body_tail, frame->body_tail_bytes);
    at += frame->body_tail_bytes;
    for (uint32_t i = 0; i < frame->payload_count; i++) {
        memcpy(at, frame->payload[i].iov_base, frame->payload[i].iov_len);
        at += frame->payload[i].iov_len;
    }
    sim_require(world, at == message->data + bytes, "%s: a frame's lengths don't agree",
                end->process->name);
    if (world->net.flips_per_million > 0 &&
        net_random(world, 1000000) < world->net.flips_per_million) {
        uint64_t bit = net_random(world, (uint64_t)bytes * 8);

        world->net_stats.flips++;
        message->data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    return message;
}

/* Its body only if it is of one piece. */
static void
end_tell_departure(const struct sim_end *end, const struct frame_out *out)
{
    struct frame frame;

    if (end->process->world->on_frame == NULL || frame_decode_header(out->head, &frame) != 0)
        return;
    if (out->body_tail_bytes == 0)
        frame.body = out->head + FRAME_HEADER_BYTES;
    frame_tell(end, end->process, end->peer == NULL ? NULL : end->peer->process, &frame, false);
}

static void
end_hand_over(struct sim_end *end, struct frame_out *frame)
{
    struct sim_world *world = end->process->world;

    end_tell_departure(end, frame);
    world->net_stats.frames++;
    world->net_stats.bytes += frame->head_bytes + frame->body_tail_bytes + frame->payload_bytes;
    if (end->peer != NULL) {
        end_rx_append(end->peer, message_of_frame(end, frame));
    } else {
        world->net_stats.frames_lost++;
        /* Whoever is there now answers with a reset, if there is anybody. */
        if (list_is_empty(&end->rx) && net_percent(world, 50))
            end_append_end(end, end->process->idx, net_random(world, RESET_NS_MAX));
    }
}

static void
end_on_tx(struct sim_event *event)
{
    struct sim_end *end = list_entry(event, struct sim_end, tx_event);
    struct sim_world *world = end->process->world;

    while (end->state == END_UP && !list_is_empty(&end->tx)) {
        struct frame_out *frame;

        if (end->peer != NULL && end->peer->rx_bytes >= world->net.buffer_bytes)
            return; /* the peer's next frame lets it go on */
        frame = list_entry(list_pop_front(&end->tx), struct frame_out, node);
        end_hand_over(end, frame);
        frame->on_sent(frame, 0);
    }
}

static struct sim_end *
end_of_running(struct env *env, struct link *link)
{
    struct sim_end *end = end_of(link);
    struct sim_process *process = (struct sim_process *)env;

    sim_require(process->world, process->world->running == process && end->process == process,
                "%s used a link of another process", process->name);
    return end;
}

void
sim_link_send(struct env *env, struct link *link, struct frame_out *frame)
{
    struct sim_end *end = end_of_running(env, link);
    struct sim_world *world = end->process->world;

    sim_require(world, frame->on_sent != NULL, "%s: a frame without on_sent", end->process->name);
    sim_require(world, end->state != END_CONNECTING, "%s sent on a link that is not up yet",
                end->process->name);
    frame->node = (struct list){NULL, NULL};
    list_push_back(&end->tx, &frame->node);
    sim_trace(world, end->process, "link %" PRIu64 " -> opcode %u request %" PRIu64, link->id,
              le16_load(frame->head + offsetof(struct frame_header_wire, opcode)),
              le64_load(frame->head + offsetof(struct frame_header_wire, request_id)));
    if (end->state == END_UP && end->tx_event.heap_idx == 0)
        sim_schedule(world, &end->tx_event, end->process, end_on_tx,
                     net_random(world, HAND_OVER_NS_MAX));
}

void
sim_link_close(struct env *env, struct link *link)
{
    struct sim_end *end = end_of_running(env, link);

    end->process->world->net_stats.closes++;
    end_begin_down(end, -DL_E_CANCELLED);
}

void
sim_link_pause(struct env *env, struct link *link, bool paused)
{
    struct sim_end *end = end_of_running(env, link);

    if (end->paused == paused || end->state == END_CLOSING)
        return;
    end->paused = paused;
    if (paused) {
        end->process->world->net_stats.pauses++;
        sim_cancel(end->process->world, &end->rx_event);
    } else {
        end_schedule_rx(end);
    }
}

/* --- connecting --- */

static struct sim_end *
end_create(struct sim_process *process, const struct dl_address *peer,
           const struct link_events *events, void *core)
{
    struct sim_world *world = process->world;
    struct sim_end *end = calloc(1, sizeof(*end));

    sim_require(world, end != NULL, "no memory");
    end->link.id = world->next_link_id++;
    end->link.env = &process->env;
    end->link.events = events;
    end->link.core = core;
    end->link.peer = *peer;
    end->process = process;
    list_init(&end->tx);
    list_init(&end->rx);
    list_push_back(&process->ends, &end->node);
    return end;
}

static struct sim_process *
world_find(struct sim_world *world, const char *name)
{
    for (uint32_t i = 0; i < world->process_count; i++)
        if (strcmp(world->processes[i]->name, name) == 0)
            return world->processes[i];
    return NULL;
}

static void
end_on_up_event(struct sim_event *event)
{
    struct sim_end *end = list_entry(event, struct sim_end, state_event);

    end->state = END_UP;
    end->link.up = true;
    sim_trace(end->process->world, end->process, "link %" PRIu64 " is up: %s", end->link.id,
              end->target);
    end->link.events->on_up(end->link.core, &end->link);
    end_schedule_rx(end);
}

static void
end_on_accept_event(struct sim_event *event)
{
    struct sim_end *end = list_entry(event, struct sim_end, state_event);

    end->state = END_UP;
    end->link.up = true;
    end->link.events->on_accept(end->link.core, &end->link);
    end_schedule_rx(end);
}

static void
end_connect_to(struct sim_end *end, struct sim_process *target)
{
    struct sim_world *world = end->process->world;
    struct dl_address from = {.port = (uint16_t)(10000 + end->link.id % 50000)};
    struct sim_end *accepted;

    (void)snprintf(from.host, sizeof(from.host), "%s", end->process->name);
    accepted = end_create(target, &from, target->listen_events, target->listen_core);
    accepted->state = END_ACCEPTING;
    accepted->peer = end;
    end->peer = accepted;
    world->net_stats.connects++;
    sim_trace(world, target, "link %" PRIu64 " from %s (link %" PRIu64 ")", accepted->link.id,
              end->process->name, end->link.id);
    sim_schedule(world, &accepted->state_event, target, end_on_accept_event, 0);
    sim_schedule(world, &end->state_event, end->process, end_on_up_event, net_delay_ns(world));
}

static void
end_on_connect_event(struct sim_event *event)
{
    struct sim_end *end = list_entry(event, struct sim_end, state_event);
    struct sim_world *world = end->process->world;
    struct sim_process *target = world_find(world, end->target);
    bool blocked;

    if (target == NULL) {
        end_begin_down(end, -DL_E_NOT_FOUND);
        return;
    }
    blocked = world->blocked_until_ns[end->process->idx][target->idx] > world->now_ns ||
              world->blocked_until_ns[target->idx][end->process->idx] > world->now_ns;
    if (blocked && world->now_ns < end->connect_end_ns) {
        sim_schedule(world, &end->state_event, end->process, end_on_connect_event, 200 * SIM_MS);
    } else if (blocked) {
        end_begin_down(end, -DL_E_TIMEOUT);
    } else if (!target->up || target->listen_events == NULL) {
        world->net_stats.refused++;
        end_begin_down(end, -ECONNREFUSED);
    } else {
        end_connect_to(end, target);
    }
}

struct link *
sim_link_connect(struct env *env, const struct dl_address *address,
                 const struct link_events *events, void *core, void *user)
{
    struct sim_process *process = (struct sim_process *)env;
    struct sim_world *world = process->world;
    struct sim_end *end;

    sim_require(world, world->running == process, "%s connects while it is not running",
                process->name);
    end = end_create(process, address, events, core);
    end->link.user = user;
    end->state = END_CONNECTING;
    end->connect_end_ns = world->now_ns + CONNECT_TIMEOUT_NS;
    (void)snprintf(end->target, sizeof(end->target), "%s", address->host);
    sim_schedule(world, &end->state_event, process, end_on_connect_event, net_delay_ns(world));
    return &end->link;
}

/* --- faults --- */

void
sim_process_drop_links(struct sim_process *process, bool silent)
{
    struct sim_end *end, *following;

    list_for_each_entry_safe (end, following, &process->ends, node) {
        end_leave_peer(end, false, silent);
        end_forget_tx(end);
        end_free(end);
    }
}

void
sim_net_block(struct sim_world *world, const struct sim_process *from, const struct sim_process *to,
              uint64_t duration_ns)
{
    sim_trace(world, NULL, "nothing gets from %s to %s for %.3f s", from->name, to->name,
              (double)duration_ns / 1e9);
    world->blocked_until_ns[from->idx][to->idx] = world->now_ns + duration_ns;
}

void
sim_net_slow(struct sim_world *world, const struct sim_process *from, const struct sim_process *to,
             uint64_t delay_ns, uint64_t duration_ns)
{
    sim_trace(world, NULL, "from %s to %s all takes up to %.3f s for %.3f s", from->name, to->name,
              (double)delay_ns / 1e9, (double)duration_ns / 1e9);
    world->slow_ns = delay_ns;
    world->slow_until_ns[from->idx][to->idx] = world->now_ns + duration_ns;
}

void
sim_net_unblock_all(struct sim_world *world)
{
    memset(world->blocked_until_ns, 0, sizeof(world->blocked_until_ns));
    memset(world->slow_until_ns, 0, sizeof(world->slow_until_ns));
}

/* One side of a broken link. */
static void
end_break(struct sim_end *end, bool silent)
{
    struct sim_world *world = end->process->world;

    if (end->state == END_CLOSING)
        return;
    end_rx_truncate(end);
    if (silent)
        world->net_stats.silent++;
    else
        end_append_end(end, end->process->idx, 0);
}

static void
end_cut(struct sim_end *end)
{
    struct sim_world *world = end->process->world;
    struct sim_end *peer = end->peer;

    sim_trace(world, end->process, "link %" PRIu64 " breaks", end->link.id);
    world->net_stats.cuts++;
    end->peer = NULL;
    peer->peer = NULL;
    end_break(end, net_percent(world, world->net.silent_percent));
    end_break(peer, net_percent(world, world->net.silent_percent));
}

static bool
end_is_whole(const struct sim_end *end)
{
    return end->peer != NULL && end->state == END_UP && end->peer->state == END_UP;
}

void
sim_net_cut_between(struct sim_process *one, const struct sim_process *other)
{
    struct sim_end *end;

    list_for_each_entry (end, &one->ends, node)
        if (end_is_whole(end) && end->peer->process == other)
            end_cut(end);
}

bool
sim_net_cut_one(struct sim_process *process, uint64_t pick)
{
    size_t count = list_length(&process->ends);
    struct sim_end *end;

    if (count == 0)
        return false;
    end = list_entry(process->ends.next, struct sim_end, node);
    for (uint64_t i = pick % count; i > 0; i--)
        end = list_entry(end->node.next, struct sim_end, node);
    if (!end_is_whole(end))
        return false;
    end_cut(end);
    return true;
}
