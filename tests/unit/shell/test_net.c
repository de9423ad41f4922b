/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links over loopback.  Frames of all sizes arrive whole, in order, once, through small and large
 * buffers, however the bytes are cut; every frame that was queued is given back exactly once,
 * before on_down; no callback runs inside the call that starts it; a link that is closed, or whose
 * peer dies, at any moment leaves nothing behind; a paused link takes nothing; bad bytes close the
 * one link they came on, with a reason.
 *
 *     client side: link_connect()  -->  loopback  -->  server side: net_listen()     in one loop
 *     raw side:    a plain blocking socket, for bytes that no link would send
 */
#include "tests/unit/lib/unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/crc32c.h"
#include "common/list.h"
#include "common/net.h"
#include "common/net_internal.h"
#include "dlblk/error.h"
#include "proto/frame.h"
#include "tests/unit/lib/fake_rng.h"

#define TURN_NS (20 * NS_PER_MS)

/* --- both sides of a test --- */

struct side;

/* A link as a test sees it: what it sent, what came. */
struct end {
    struct side *side;
    struct link *link;
    struct list node;
    bool up, down;
    int down_err;
    bool in_call; /* inside link_send() and the like: no callback may run */
    uint64_t queued, sent_ok, sent_failed, arrived;
    uint64_t next_id;   /* of the next frame to be queued */
    uint64_t next_sent; /* of the next frame to be given back */
    uint64_t next_arrival;
    bool drop_payload, pause_in_frame;
    uint8_t *payload; /* where the payload under way goes */
    size_t payload_bytes;
    uint64_t close_after; /* close the link in the on_frame of so many arrivals; 0: never */
};

struct side {
    struct loop *loop;
    struct net *net;
    struct net_listener *listener;
    struct list ends;
    unsigned end_count;
    bool stopped;
    char event[512];
    unsigned events;
};

/* A frame and all that it names; content follows from its id. */
struct message {
    struct frame_out frame;
    struct end *end;
    uint64_t id;
    struct iovec iov[FRAME_PIECES_MAX];
    uint8_t *payload;
    le32 crcs[WIRE_IO_SECTORS_MAX];
};

static void
fill(uint8_t *bytes, size_t length, uint64_t id)
{
    struct fake_rng rng;

    fake_rng_init(&rng, id);
    for (size_t i = 0; i + 8 <= length; i += 8) {
        uint64_t value = fake_rng_next(&rng);

        memcpy(bytes + i, &value, 8);
    }
}

static void
message_free(struct message *message)
{
    /* Whoever still reads it is found by the address sanitizer. */
    free(message->payload);
    free(message);
}

static void
message_on_sent(struct frame_out *frame, int err)
{
    struct message *message = list_entry(frame, struct message, frame);
    struct end *end = message->end;

    assert_false(end->in_call);
    assert_false(end->down);
    assert_int_equal(message->id, end->next_sent);
    end->next_sent++;
    if (err == 0) {
        /* After the first that failed none goes out any more. */
        assert_int_equal(end->sent_failed, 0);
        end->sent_ok++;
    } else {
        assert_int_equal(err, -DL_E_CONNECTION_LOST);
        end->sent_failed++;
    }
    message_free(message);
}

/* How many sectors of payload the frame with this id has: all sizes, the small ones more often. */
static uint32_t
sectors_of(uint64_t id)
{
    struct fake_rng rng;

    fake_rng_init(&rng, id ^ 0xabcdef);
    switch (fake_rng_below(&rng, 8)) {
    case 0:
        return 0;
    case 1:
        return (uint32_t)fake_rng_range(&rng, 1, WIRE_IO_SECTORS_MAX);
    case 2:
        return (uint32_t)fake_rng_range(&rng, 6, 20);
    default:
        return (uint32_t)fake_rng_range(&rng, 1, 3);
    }
}

static void
end_send(struct end *end, uint32_t sectors)
{
    struct message *message = calloc(1, sizeof(*message));
    struct data_write write = {
        .target = {.volume = 1, .config_epoch = 1, .lease_epoch = 1, .length_sectors = sectors},
        .version = (1ull << WIRE_VERSION_SEQUENCE_BITS) + 2,
        .snapshot_seq = 1,
        .slot_mask = 1,
        .crc_count = sectors,
    };
    uint32_t pieces = 0;

    assert_non_null(message);
    message->end = end;
    message->id = end->next_id++;
    if (sectors == 0) {
        frame_out_empty(&message->frame, OP_PING, 0, message->id, 0);
    } else {
        size_t left = sectors * 4096ul;
        size_t at = 0;

        message->payload = malloc(left);
        assert_non_null(message->payload);
        fill(message->payload, left, message->id);
        for (uint32_t i = 0; i < sectors; i++)
            message->crcs[i] = le32_of((uint32_t)message->id + i);
        /* In several pieces, the last one takes the rest. */
        while (left > 0) {
            size_t piece = pieces + 1 < FRAME_PIECES_MAX && left > 4096 && message->id % 2 == 0
                               ? 4096
                               : left;

            message->iov[pieces++] = (struct iovec){.iov_base = message->payload + at,
                                                    .iov_len = piece};
            at += piece;
            left -= piece;
        }
        frame_out_write(&message->frame, message->id, &write, message->crcs, message->iov, pieces);
    }
    message->frame.on_sent = message_on_sent;
    end->queued++;
    end->in_call = true;
    link_send(end->link, &message->frame);
    end->in_call = false;
}

static void
end_close(struct end *end)
{
    end->in_call = true;
    link_close(end->link);
    end->in_call = false;
}

static void
on_accept(void *core, struct link *link)
{
    struct side *side = core;
    struct end *end = calloc(1, sizeof(*end));

    assert_non_null(end);
    assert_null(link->user);
    assert_true(link->up);
    end->side = side;
    end->link = link;
    end->up = true;
    link->user = end;
    list_push_back(&side->ends, &end->node);
    side->end_count++;
}

static void
on_up(void *core, struct link *link)
{
    struct end *end = link->user;

    (void)core;
    assert_false(end->in_call);
    assert_false(end->up);
    assert_true(link->up);
    end->up = true;
}

static void *
on_payload(void *core, struct link *link, const struct frame *frame)
{
    struct end *end = link->user;

    (void)core;
    assert_false(end->in_call);
    assert_false(end->down);
    assert_int_equal(frame->request_id, end->next_arrival);
    assert_null(end->payload);
    if (end->drop_payload)
        return NULL;
    end->payload_bytes = frame->payload_bytes;
    end->payload = malloc(frame->payload_bytes);
    assert_non_null(end->payload);
    return end->payload;
}

static void
check_payload(struct end *end, const struct frame *frame)
{
    uint8_t *expected = malloc(frame->payload_bytes);
    struct data_write write;

    assert_non_null(expected);
    fill(expected, frame->payload_bytes, frame->request_id);
    assert_ptr_equal(frame->payload, end->payload);
    assert_memory_equal(frame->payload, expected, frame->payload_bytes);
    assert_int_equal(data_write_decode(frame, &write), 0);
    for (uint32_t i = 0; i < write.crc_count; i++)
        assert_int_equal(le32_load(write.crcs_le + i * 4), (uint32_t)frame->request_id + i);
    free(expected);
    free(end->payload);
    end->payload = NULL;
}

static void
on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct end *end = link->user;

    (void)core;
    assert_false(end->in_call);
    assert_false(end->down);
    assert_int_equal(frame->request_id, end->next_arrival);
    end->next_arrival++;
    end->arrived++;
    if (end->payload != NULL)
        check_payload(end, frame);
    else
        assert_null(frame->payload);
    if (end->pause_in_frame)
        link_pause(link, true);
    if (end->close_after != 0 && end->arrived >= end->close_after)
        end_close(end);
}

static void
on_down(void *core, struct link *link, int err)
{
    struct end *end = link->user;

    (void)core;
    assert_false(end->in_call);
    assert_false(end->down);
    assert_true(err < 0);
    /* Everything was given back before. */
    assert_int_equal(end->queued, end->sent_ok + end->sent_failed);
    free(end->payload);
    end->payload = NULL;
    end->down = true;
    end->down_err = err;
    end->link = NULL;
}

static const struct link_events events = {
    .on_accept = on_accept,
    .on_up = on_up,
    .on_payload = on_payload,
    .on_frame = on_frame,
    .on_down = on_down,
};

static void
on_event(void *context, enum net_event_level level, const char *text)
{
    struct side *side = context;

    (void)level;
    side->events++;
    (void)snprintf(side->event, sizeof(side->event), "%s", text);
}

static void
side_init(struct side *side, struct loop *loop, const struct net_options *options)
{
    struct net_options with_event = options != NULL ? *options : (struct net_options){0};
    struct dl_error err;

    memset(side, 0, sizeof(*side));
    list_init(&side->ends);
    with_event.on_event = on_event;
    with_event.event_context = side;
    side->loop = loop;
    assert_int_equal(net_create(&side->net, loop, NULL, &with_event, &err), 0);
}

static void
side_listen(struct side *side)
{
    struct dl_address address = {.host = "127.0.0.1"};
    struct dl_error err;

    assert_int_equal(net_listen(side->net, &address, &events, side, &side->listener, &err), 0);
    assert_int_not_equal(net_listener_address(side->listener)->port, 0);
    assert_string_equal(net_listener_address(side->listener)->host, "127.0.0.1");
}

static struct end *
side_connect(struct side *side, const struct dl_address *address)
{
    struct end *end = calloc(1, sizeof(*end));

    assert_non_null(end);
    end->side = side;
    list_push_back(&side->ends, &end->node);
    side->end_count++;
    end->in_call = true;
    end->link = link_connect(net_env(side->net), address, &events, side, end);
    end->in_call = false;
    assert_non_null(end->link);
    return end;
}

static void
on_stopped(void *context)
{
    struct side *side = context;

    assert_false(side->stopped);
    side->stopped = true;
}

static void
side_fini(struct side *side)
{
    struct end *end;

    net_stop(side->net, on_stopped, side);
    assert_false(side->stopped);
    for (unsigned turns = 0; !side->stopped && turns < 1000; turns++)
        assert_int_equal(loop_turn(side->loop, TURN_NS), 0);
    assert_true(side->stopped);
    while (!list_is_empty(&side->ends)) {
        end = list_first_entry(&side->ends, struct end, node);
        assert_true(end->down);
        list_remove(&end->node);
        free(end);
    }
    net_destroy(side->net);
}

static struct loop *
loop_new(void)
{
    struct loop *loop = NULL;
    struct dl_error err;

    assert_int_equal(loop_create(&loop, NULL, &err), 0);
    return loop;
}

#define TURN_UNTIL(loop, condition)                          \
    do {                                                     \
        uint64_t until_ns = loop_clock_ns() + 20 * NS_PER_S; \
                                                             \
        while (!(condition) && loop_clock_ns() < until_ns)   \
            assert_int_equal(loop_turn(loop, TURN_NS), 0);   \
        assert_true(condition);                              \
    } while (0)

/* Turns for a while, in which something should not happen. */
static void
turn_some(struct loop *loop)
{
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(loop_turn(loop, 4 * NS_PER_MS), 0);
}

struct pair {
    struct loop *loop;
    struct side server, client;
    struct end *client_end, *server_end;
};

static void
pair_init(struct pair *pair, const struct net_options *options)
{
    pair->loop = loop_new();
    side_init(&pair->server, pair->loop, options);
    side_init(&pair->client, pair->loop, options);
    side_listen(&pair->server);
    pair->client_end = side_connect(&pair->client, net_listener_address(pair->server.listener));
    assert_false(pair->client_end->up);
    TURN_UNTIL(pair->loop, pair->client_end->up && pair->server.end_count == 1);
    pair->server_end = list_first_entry(&pair->server.ends, struct end, node);
}

static void
pair_fini(struct pair *pair)
{
    side_fini(&pair->client);
    side_fini(&pair->server);
    loop_destroy(pair->loop);
}

/* --- frames that arrive --- */

static void
exchange(const struct net_options *options, unsigned frames)
{
    struct pair pair;
    struct net_stats stats;

    pair_init(&pair, options);
    for (unsigned i = 0; i < frames; i++) {
        end_send(pair.client_end, sectors_of(pair.client_end->next_id));
        end_send(pair.server_end, sectors_of(pair.server_end->next_id));
        assert_int_equal(pair.client_end->next_sent, 0);
    }
    TURN_UNTIL(pair.loop, pair.client_end->arrived == frames && pair.server_end->arrived == frames);
    TURN_UNTIL(pair.loop, pair.client_end->sent_ok == frames && pair.server_end->sent_ok == frames);
    net_get_stats(pair.server.net, &stats);
    assert_int_equal(stats.frames_in, frames);
    assert_int_equal(stats.frames_out, frames);
    assert_true(stats.payload_bytes_direct > 0);
    assert_true(stats.payload_bytes_copied > 0);
    pair_fini(&pair);
}

static void
test_frames_of_all_sizes(void **state)
{
    struct net_options tiny = {.receive_buffer_bytes = 8192, .socket_buffer_bytes = 16384};

    (void)state;
    exchange(NULL, 300);
    exchange(&tiny, 300);
}

/*
 * A stream of large frames: only the first payload passes through the buffer, the others go to
 * their place at once.
 */
static void
test_large_payloads_are_not_copied(void **state)
{
    struct pair pair;
    struct net_stats stats;

    (void)state;
    pair_init(&pair, NULL);
    for (unsigned i = 0; i < 40; i++)
        end_send(pair.client_end, WIRE_IO_SECTORS_MAX);
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 40);
    net_get_stats(pair.server.net, &stats);
    assert_int_equal(stats.payload_bytes_direct + stats.payload_bytes_copied, 40u << 20);
    assert_true(stats.payload_bytes_copied <= (256u << 10) + 40 * 2048);
    pair_fini(&pair);
}

/* All frames of a turn leave in one system call. */
static void
test_frames_of_a_turn_are_gathered(void **state)
{
    struct pair pair;
    struct net_stats stats;

    (void)state;
    pair_init(&pair, NULL);
    for (unsigned i = 0; i < 60; i++)
        end_send(pair.client_end, 1);
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 60);
    net_get_stats(pair.client.net, &stats);
    assert_int_equal(stats.frames_out, 60);
    assert_int_equal(stats.sends, 1);
    pair_fini(&pair);
}

/* A body larger than the receive buffer: the buffer grows for it, and is small again afterwards. */
static void
test_body_larger_than_the_buffer(void **state)
{
    struct net_options tiny = {.receive_buffer_bytes = 8192};
    uint8_t *body = malloc(FRAME_BODY_BYTES_MAX);
    struct frame_out frames[2];
    struct pair pair;

    (void)state;
    assert_non_null(body);
    pair_init(&pair, &tiny);
    memset(body, 'b', FRAME_BODY_BYTES_MAX);
    for (unsigned i = 0; i < 2; i++) {
        struct frame_header_wire *header = (void *)frames[i].head;
        struct message *message = calloc(1, sizeof(*message));

        /* A frame by hand: no message of ours is that large. */
        assert_non_null(message);
        message->end = pair.client_end;
        message->id = pair.client_end->next_id++;
        frame_out_empty(&message->frame, 999, 0, message->id, 0);
        header = (void *)message->frame.head;
        header->body_bytes = le32_of(FRAME_BODY_BYTES_MAX);
        header->body_crc = le32_of(crc32c(0, body, FRAME_BODY_BYTES_MAX));
        header->header_crc = le32_of(crc32c(0, message->frame.head + 4, FRAME_HEADER_BYTES - 4));
        message->frame.body_tail = body;
        message->frame.body_tail_bytes = FRAME_BODY_BYTES_MAX;
        message->frame.on_sent = message_on_sent;
        pair.client_end->queued++;
        link_send(pair.client_end->link, &message->frame);
        end_send(pair.client_end, 2);
    }
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 4);
    TURN_UNTIL(pair.loop, pair.client_end->sent_ok == 4);
    free(body);
    pair_fini(&pair);
}

static void
test_dropped_payloads(void **state)
{
    struct pair pair;

    (void)state;
    pair_init(&pair, NULL);
    pair.server_end->drop_payload = true;
    for (unsigned i = 0; i < 50; i++)
        end_send(pair.client_end, sectors_of(i));
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 50);
    pair.server_end->drop_payload = false;
    for (unsigned i = 0; i < 50; i++)
        end_send(pair.client_end, sectors_of(i));
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 100);
    pair_fini(&pair);
}

/* --- back-pressure --- */

/*
 * Paused in the first frame although a whole batch is there: nothing more arrives, the sender gets
 * stuck, then all goes on.
 */
static void
test_pause_stops_the_flow(void **state)
{
    struct net_options small = {.socket_buffer_bytes = 65536};
    struct pair pair;

    (void)state;
    pair_init(&pair, &small);
    pair.server_end->pause_in_frame = true;
    for (unsigned i = 0; i < 200; i++)
        end_send(pair.client_end, i < 50 ? 1 : 16); /* many of them in one receive */
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 1);
    turn_some(pair.loop);
    assert_int_equal(pair.server_end->arrived, 1);
    assert_true(pair.client_end->sent_ok < 200);
    for (unsigned i = 2; i < 6; i++) {
        link_pause(pair.server_end->link, false);
        assert_int_equal(pair.server_end->arrived, i - 1);
        TURN_UNTIL(pair.loop, pair.server_end->arrived == i);
    }
    pair.server_end->pause_in_frame = false;
    link_pause(pair.server_end->link, false);
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 200 && pair.client_end->sent_ok == 200);
    pair_fini(&pair);
}

/* --- the end of links --- */

/*
 * Closed while a message is stuck in a full socket: every frame comes back, the rest of them with
 * an error.
 */
static void
test_close_in_the_middle_of_a_send(void **state)
{
    struct net_options small = {.socket_buffer_bytes = 65536};
    struct pair pair;

    (void)state;
    pair_init(&pair, &small);
    link_pause(pair.server_end->link, true);
    for (unsigned i = 0; i < 100; i++)
        end_send(pair.client_end, 64);
    turn_some(pair.loop);
    assert_true(pair.client_end->sent_ok < 100);
    end_close(pair.client_end);
    end_close(pair.client_end);
    assert_false(pair.client_end->down);
    /* Queued on a link that is closing: given back, later. */
    end_send(pair.client_end, 1);
    TURN_UNTIL(pair.loop, pair.client_end->down);
    assert_int_equal(pair.client_end->down_err, -DL_E_CANCELLED);
    assert_true(pair.client_end->sent_failed > 0);
    link_pause(pair.server_end->link, false);
    TURN_UNTIL(pair.loop, pair.server_end->down);
    pair_fini(&pair);
}

/* Frames of which each is queued when the one before is given back, also when that one failed. */
struct chain {
    struct frame_out frame;
    struct end *end;
    struct link *link;
    unsigned left, given_back;
};

static void
chain_on_sent(struct frame_out *frame, int err)
{
    struct chain *chain = list_entry(frame, struct chain, frame);

    assert_int_equal(err, -DL_E_CONNECTION_LOST);
    assert_false(chain->end->down);
    chain->given_back++;
    if (--chain->left > 0)
        link_send(chain->link, frame);
}

static void
test_sends_from_on_sent_of_a_closing_link(void **state)
{
    struct chain chain = {.frame.on_sent = chain_on_sent, .left = 5};
    struct pair pair;

    (void)state;
    pair_init(&pair, NULL);
    chain.end = pair.client_end;
    chain.link = pair.client_end->link;
    frame_out_empty(&chain.frame, OP_PING, 0, 1, 0);
    end_close(pair.client_end);
    link_send(chain.link, &chain.frame);
    TURN_UNTIL(pair.loop, pair.client_end->down);
    assert_int_equal(chain.given_back, 5);
    pair_fini(&pair);
}

/*
 * Closed in the middle of a payload that is received straight into the core's memory: freed in
 * on_down, not written after.
 */
static void
test_close_in_the_middle_of_a_payload(void **state)
{
    struct net_options small = {.socket_buffer_bytes = 65536};
    struct pair pair;

    (void)state;
    pair_init(&pair, &small);
    end_send(pair.client_end, WIRE_IO_SECTORS_MAX);
    TURN_UNTIL(pair.loop, pair.server_end->payload != NULL);
    assert_int_equal(pair.server_end->arrived, 0);
    end_close(pair.server_end);
    TURN_UNTIL(pair.loop, pair.server_end->down && pair.client_end->down);
    assert_int_equal(pair.server_end->arrived, 0);
    pair_fini(&pair);
}

/* No frame after link_close(), also when more of them are in the buffer already. */
static void
test_no_frame_after_close(void **state)
{
    struct pair pair;

    (void)state;
    pair_init(&pair, NULL);
    pair.server_end->close_after = 3;
    for (unsigned i = 0; i < 20; i++)
        end_send(pair.client_end, 1);
    TURN_UNTIL(pair.loop, pair.server_end->down);
    assert_int_equal(pair.server_end->arrived, 3);
    TURN_UNTIL(pair.loop, pair.client_end->down);
    pair_fini(&pair);
}

/* The last word: what was queued right before link_close() arrives. */
static void
test_frames_before_a_close_arrive(void **state)
{
    struct pair pair;

    (void)state;
    pair_init(&pair, NULL);
    for (unsigned i = 0; i < 10; i++)
        end_send(pair.client_end, i % 3);
    end_close(pair.client_end);
    TURN_UNTIL(pair.loop, pair.client_end->down && pair.server_end->down);
    assert_int_equal(pair.client_end->sent_ok, 10);
    assert_int_equal(pair.server_end->arrived, 10);
    assert_int_equal(pair.server_end->down_err, -DL_E_CONNECTION_LOST);
    pair_fini(&pair);
}

/* --- the beginning of links --- */

static void
test_connection_refused(void **state)
{
    struct loop *loop = loop_new();
    struct dl_address address;
    struct side side;
    struct end *end;

    (void)state;
    side_init(&side, loop, NULL);
    side_listen(&side);
    address = *net_listener_address(side.listener);
    net_listener_close(side.listener);
    turn_some(loop);
    end = side_connect(&side, &address);
    /* Not up: given back, but not inside the call. */
    end_send(end, 1);
    assert_int_equal(end->sent_failed, 0);
    TURN_UNTIL(loop, end->down);
    assert_false(end->up);
    assert_int_equal(end->sent_failed, 1);
    assert_int_equal(end->down_err, -ECONNREFUSED);
    side_fini(&side);
    loop_destroy(loop);
}

static void
test_names(void **state)
{
    struct loop *loop = loop_new();
    struct dl_address address;
    struct side side;
    struct end *end;

    (void)state;
    side_init(&side, loop, NULL);
    side_listen(&side);
    /* ::1 may be tried first, and refused: then comes 127.0.0.1. */
    address = *net_listener_address(side.listener);
    (void)snprintf(address.host, sizeof(address.host), "localhost");
    end = side_connect(&side, &address);
    TURN_UNTIL(loop, end->up);
    assert_string_equal(end->link->peer.host, "127.0.0.1");
    (void)snprintf(address.host, sizeof(address.host), "name.invalid");
    end = side_connect(&side, &address);
    TURN_UNTIL(loop, end->down);
    assert_false(end->up);
    /* Closed while the name is looked up, and a net that stops meanwhile. */
    end = side_connect(&side, &address);
    end_close(end);
    TURN_UNTIL(loop, end->down);
    assert_int_equal(end->down_err, -DL_E_CANCELLED);
    (void)side_connect(&side, &address);
    side_fini(&side);
    loop_destroy(loop);
}

static int
raw_listen(struct dl_address *ret_address)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(fd, 0), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    *ret_address = (struct dl_address){.host = "127.0.0.1", .port = ntohs(address.sin_port)};
    return fd;
}

static int
raw_connect(const struct dl_address *to)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons(to->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* Nobody accepts and the backlog is full: the connection is given up after the time-out. */
static void
test_connect_time_out(void **state)
{
    struct net_options options = {.connect_timeout_ms = 30};
    struct loop *loop = loop_new();
    struct dl_address address;
    struct side side;
    struct end *ends[8];
    int fd = raw_listen(&address);
    unsigned timed_out = 0;

    (void)state;
    side_init(&side, loop, &options);
    for (unsigned i = 0; i < 8; i++)
        ends[i] = side_connect(&side, &address);
    for (unsigned turns = 0; turns < 500 && timed_out == 0; turns++) {
        assert_int_equal(loop_turn(loop, TURN_NS), 0);
        timed_out = 0;
        for (unsigned i = 0; i < 8; i++)
            timed_out += ends[i]->down;
    }
    assert_true(timed_out > 0);
    for (unsigned i = 0; i < 8; i++)
        if (ends[i]->down)
            assert_int_equal(ends[i]->down_err, -ETIMEDOUT);
    /* Those that still try are closed in the middle of it. */
    side_fini(&side);
    (void)close(fd);
    loop_destroy(loop);
}

static void
test_too_many_links(void **state)
{
    struct net_options options = {.links_max = 2};
    struct loop *loop = loop_new();
    struct side server, client;
    struct end *ends[3];
    struct net_stats stats;
    unsigned down = 0;

    (void)state;
    side_init(&server, loop, &options);
    side_init(&client, loop, NULL);
    side_listen(&server);
    for (unsigned i = 0; i < 3; i++)
        ends[i] = side_connect(&client, net_listener_address(server.listener));
    TURN_UNTIL(loop, ends[0]->down || ends[1]->down || ends[2]->down);
    turn_some(loop);
    for (unsigned i = 0; i < 3; i++)
        down += ends[i]->down;
    assert_int_equal(down, 1);
    assert_int_equal(server.end_count, 2);
    assert_non_null(strstr(server.event, "too many"));
    net_get_stats(server.net, &stats);
    assert_int_equal(stats.refused, 1);
    side_fini(&client);
    side_fini(&server);
    loop_destroy(loop);
}

static uint64_t
side_arrived(const struct side *side)
{
    const struct end *end;
    uint64_t count = 0;

    list_for_each_entry (end, &side->ends, node)
        count += end->arrived;
    return count;
}

/* Links that have nothing half received have no buffer: a few serve all of them. */
static void
test_buffers_are_shared(void **state)
{
    struct loop *loop = loop_new();
    struct side server, client;
    struct end *ends[40];
    struct net_stats stats;

    (void)state;
    side_init(&server, loop, NULL);
    side_init(&client, loop, NULL);
    side_listen(&server);
    for (unsigned i = 0; i < 40; i++)
        ends[i] = side_connect(&client, net_listener_address(server.listener));
    for (unsigned i = 0; i < 40; i++)
        TURN_UNTIL(loop, ends[i]->up);
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < 40; i++)
            end_send(ends[i], i % 3);
        TURN_UNTIL(loop, side_arrived(&server) == (round + 1) * 40);
    }
    net_get_stats(server.net, &stats);
    assert_in_range(stats.receive_buffers, 1, 8);
    side_fini(&client);
    side_fini(&server);
    loop_destroy(loop);
}

/*
 * How long a peer may take nothing is not TCP's to say: one that is stopped for a while comes back.
 */
static void
test_no_limit_for_a_paused_peer(void **state)
{
    struct pair pair;
    int value = -1;
    socklen_t length = sizeof(value);

    (void)state;
    pair_init(&pair, NULL);
    assert_int_equal(getsockopt(net_link_of(pair.client_end->link)->fd, IPPROTO_TCP,
                                TCP_USER_TIMEOUT, &value, &length),
                     0);
    assert_int_equal(value, 0);
    pair_fini(&pair);
}

static void
on_net_stopped(void *context)
{
    *(bool *)context = true;
}

/* A core that connects again whenever a link is gone does not keep a net from stopping. */
static void
test_connect_while_stopping(void **state)
{
    struct loop *loop = loop_new();
    struct side server, client;
    struct end *end;
    bool stopped = false;

    (void)state;
    side_init(&server, loop, NULL);
    side_init(&client, loop, NULL);
    side_listen(&server);
    end = side_connect(&client, net_listener_address(server.listener));
    TURN_UNTIL(loop, end->up);
    net_stop(client.net, on_net_stopped, &stopped);
    end = side_connect(&client, net_listener_address(server.listener));
    turn_some(loop);
    assert_true(stopped);
    assert_true(end->down);
    assert_false(end->up);
    assert_int_equal(end->down_err, -DL_E_CANCELLED);
    side_fini(&client);
    side_fini(&server);
    loop_destroy(loop);
}

/* Out of descriptors: said, and tried again until there are some. */
static void
test_accept_without_descriptors(void **state)
{
    struct loop *loop = loop_new();
    struct rlimit before, now;
    struct side server;
    int fds[2];
    int filler[64];
    unsigned fillers = 0;

    (void)state;
    /* The kernel looks at the limit when it is asked to accept. */
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    now = before;
    now.rlim_cur = 64;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
    side_init(&server, loop, NULL);
    side_listen(&server);
    fds[0] = raw_connect(net_listener_address(server.listener));
    fds[1] = raw_connect(net_listener_address(server.listener));
    while (fillers < 64 && (filler[fillers] = dup(fds[0])) >= 0)
        fillers++;
    assert_true(fillers > 0 && fillers < 64);
    TURN_UNTIL(loop, server.events > 0);
    assert_non_null(strstr(server.event, "can't accept"));
    assert_int_equal(server.end_count, 0);
    while (fillers > 0)
        (void)close(filler[--fillers]);
    TURN_UNTIL(loop, server.end_count == 2);
    (void)close(fds[0]);
    (void)close(fds[1]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    side_fini(&server);
    loop_destroy(loop);
}

static void
test_address_in_use(void **state)
{
    struct loop *loop = loop_new();
    struct net_listener *second = NULL;
    struct dl_address address = {.host = "127.0.0.1"};
    struct dl_address wrong = {.host = "192.0.2.1", .port = 1};
    struct dl_error err;
    struct side side;

    (void)state;
    side_init(&side, loop, NULL);
    side_listen(&side);
    address.port = net_listener_address(side.listener)->port;
    assert_int_equal(net_listen(side.net, &address, &events, &side, &second, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, "127.0.0.1"));
    assert_non_null(strstr(err.hint, "another port"));
    assert_int_equal(net_listen(side.net, &wrong, &events, &side, &second, &err), -EADDRNOTAVAIL);
    assert_null(second);
    side_fini(&side);
    loop_destroy(loop);
}

/* --- bytes that no link of ours would send --- */

static void
raw_send(int fd, const void *bytes, size_t length)
{
    assert_int_equal(send(fd, bytes, length, MSG_NOSIGNAL), (ssize_t)length);
}

/* A WRITE of one sector as bytes. */
static size_t
frame_bytes(uint64_t id, uint8_t *ret_bytes)
{
    struct message message = {.id = id};
    struct data_write write = {
        .target = {.volume = 1, .config_epoch = 1, .lease_epoch = 1, .length_sectors = 1},
        .version = (1ull << WIRE_VERSION_SEQUENCE_BITS) + 2,
        .snapshot_seq = 1,
        .slot_mask = 1,
        .crc_count = 1,
    };
    uint8_t payload[4096];
    struct iovec piece = {.iov_base = payload, .iov_len = sizeof(payload)};

    fill(payload, sizeof(payload), id);
    message.crcs[0] = le32_of((uint32_t)id);
    frame_out_write(&message.frame, id, &write, message.crcs, &piece, 1);
    assert_int_equal(message.frame.body_tail_bytes, 0);
    memcpy(ret_bytes, message.frame.head, message.frame.head_bytes);
    memcpy(ret_bytes + message.frame.head_bytes, payload, sizeof(payload));
    return message.frame.head_bytes + sizeof(payload);
}

/* Frames cut at every place: byte by byte, with turns of the loop in between. */
static void
test_bytes_one_by_one(void **state)
{
    struct loop *loop = loop_new();
    uint8_t bytes[3][8192];
    size_t lengths[3];
    struct side server;
    struct end *end;
    int fd;

    (void)state;
    side_init(&server, loop, NULL);
    side_listen(&server);
    fd = raw_connect(net_listener_address(server.listener));
    TURN_UNTIL(loop, server.end_count == 1);
    end = list_first_entry(&server.ends, struct end, node);
    for (unsigned i = 0; i < 3; i++) {
        lengths[i] = frame_bytes(i, bytes[i]);
        for (size_t k = 0; k < lengths[i]; k++) {
            raw_send(fd, bytes[i] + k, 1);
            assert_int_equal(end->arrived, i);
            /*
             * The head byte by byte, the payload in larger steps, and the last bytes singly again.
             */
            if (k < 200 || k % 97 == 0 || k + 3 > lengths[i])
                assert_int_equal(loop_turn(loop, 0), 0);
        }
        TURN_UNTIL(loop, end->arrived == i + 1);
    }
    (void)close(fd);
    TURN_UNTIL(loop, end->down);
    side_fini(&server);
    loop_destroy(loop);
}

struct bad_frame {
    const char *name;
    size_t at;
    uint8_t value; /* is added to the byte there */
    bool seal;     /* with a correct header CRC */
    int err;
};

static const struct bad_frame bad_frames[] = {
    {"another protocol", offsetof(struct frame_header_wire, magic), 1, true, -DL_E_FRAME_MAGIC},
    {"damaged header", offsetof(struct frame_header_wire, request_id), 1, false, -DL_E_CRC_HEADER},
    {"damaged header crc", offsetof(struct frame_header_wire, header_crc), 1, false,
     -DL_E_CRC_HEADER},
    {"damaged body", FRAME_HEADER_BYTES + 7, 1, false, -DL_E_CRC_HEADER},
    {"body too large", offsetof(struct frame_header_wire, body_bytes) + 2, 17, true,
     -DL_E_FRAME_TOO_LARGE},
    {"payload too large", offsetof(struct frame_header_wire, payload_bytes) + 3, 1, true,
     -DL_E_FRAME_TOO_LARGE},
    {"reserved field", offsetof(struct frame_header_wire, reserved_1), 1, true,
     -DL_E_MESSAGE_MALFORMED},
    {"unknown flag", offsetof(struct frame_header_wire, flags) + 1, 1, true,
     -DL_E_MESSAGE_MALFORMED},
};

/*
 * Each costs the one link it came on, after the good frame before it; the reason is told; others
 * don't notice.
 */
static void
test_bad_frames(void **state)
{
    struct pair pair;
    struct net_stats stats;
    unsigned cases = 0;

    (void)state;
    pair_init(&pair, NULL);
    for (size_t i = 0; i < sizeof(bad_frames) / sizeof(bad_frames[0]); i++) {
        const struct bad_frame *bad = &bad_frames[i];
        uint8_t good[8192], bytes[8192];
        size_t good_length = frame_bytes(0, good);
        size_t length = frame_bytes(1, bytes);
        struct end *end;
        int fd = raw_connect(net_listener_address(pair.server.listener));

        bytes[bad->at] = (uint8_t)(bytes[bad->at] + bad->value);
        if (bad->seal)
            le32_store(bytes, crc32c(0, bytes + 4, FRAME_HEADER_BYTES - 4));
        raw_send(fd, good, good_length);
        raw_send(fd, bytes, length);
        TURN_UNTIL(pair.loop, pair.server.end_count == i + 2);
        end = list_last_entry(&pair.server.ends, struct end, node);
        TURN_UNTIL(pair.loop, end->down);
        assert_int_equal(end->down_err, bad->err);
        assert_int_equal(end->arrived, 1);
        assert_non_null(strstr(pair.server.event, "bad frame"));
        assert_non_null(strstr(pair.server.event, dl_err_str(bad->err)));
        (void)close(fd);
        cases++;
    }
    net_get_stats(pair.server.net, &stats);
    assert_int_equal(stats.bad_frames, cases);
    assert_true(cases >= 8);
    end_send(pair.client_end, 5);
    TURN_UNTIL(pair.loop, pair.server_end->arrived == 1);
    pair_fini(&pair);
}

/*
 * The peer goes away after each number of bytes of a frame: an end without a frame, and without a
 * leak.
 */
static void
test_truncated_frames(void **state)
{
    static const size_t cuts[] = {0, 1, 63, 64, 65, 128, 131, 132, 133, 1000, 4000, 4227};
    struct loop *loop = loop_new();
    struct side server;
    uint8_t bytes[8192];
    size_t length = frame_bytes(0, bytes);

    (void)state;
    side_init(&server, loop, NULL);
    side_listen(&server);
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        int fd = raw_connect(net_listener_address(server.listener));
        struct end *end;

        assert_true(cuts[i] < length);
        if (cuts[i] > 0)
            raw_send(fd, bytes, cuts[i]);
        (void)close(fd);
        TURN_UNTIL(loop, server.end_count == i + 1);
        end = list_last_entry(&server.ends, struct end, node);
        TURN_UNTIL(loop, end->down);
        assert_int_equal(end->arrived, 0);
        assert_int_equal(end->down_err, -DL_E_CONNECTION_LOST);
    }
    assert_int_equal(server.events, 0);
    side_fini(&server);
    loop_destroy(loop);
}

/* --- everything at once --- */

#define SOAK_LINKS 6u

static void
soak_step(struct fake_rng *rng, struct end *end)
{
    if (end->down || end->link == NULL)
        return;
    switch (fake_rng_below(rng, 12)) {
    case 0:
        link_pause(end->link, true);
        break;
    case 1:
    case 2:
    case 3:
        link_pause(end->link, false);
        break;
    case 4:
        if (fake_rng_percent(rng, 10))
            end_close(end);
        break;
    default:
        if (end->queued - end->sent_ok - end->sent_failed < 40)
            end_send(end, sectors_of(end->next_id));
        break;
    }
}

static void
soak(uint64_t seed, uint64_t *frames, unsigned *links)
{
    struct net_options options = {0};
    struct side server, client;
    struct loop *loop = loop_new();
    struct fake_rng rng;
    struct end *end;

    fake_rng_init(&rng, seed);
    options.receive_buffer_bytes = (uint32_t)fake_rng_range(&rng, 8192, 300000);
    options.socket_buffer_bytes = (uint32_t)fake_rng_range(&rng, 4096, 400000);
    side_init(&server, loop, &options);
    side_init(&client, loop, &options);
    side_listen(&server);
    for (unsigned round = 0; round < 600; round++) {
        unsigned alive = 0;

        list_for_each_entry (end, &client.ends, node) {
            alive += !end->down;
            if (end->up)
                soak_step(&rng, end);
        }
        list_for_each_entry (end, &server.ends, node)
            soak_step(&rng, end);
        if (alive < SOAK_LINKS)
            (void)side_connect(&client, net_listener_address(server.listener));
        assert_int_equal(loop_turn(loop, fake_rng_below(&rng, 2) * NS_PER_MS / 10), 0);
    }
    *frames += side_arrived(&server) + side_arrived(&client);
    *links += client.end_count;
    side_fini(&client);
    side_fini(&server);
    loop_destroy(loop);
}

/*
 * Links come and go, with pauses, closes and sends at random, through buffers of random sizes;
 * every callback checks.
 */
static void
test_soak(void **state)
{
    uint64_t frames = 0;
    unsigned links = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++)
        soak(seed, &frames, &links);
    print_message("%llu frames over %u links\n", (unsigned long long)frames, links);
    assert_true(frames > 10000);
    assert_true(links > 150);
}

UNIT_MAIN(cmocka_unit_test(test_frames_of_all_sizes),
          cmocka_unit_test(test_large_payloads_are_not_copied),
          cmocka_unit_test(test_frames_of_a_turn_are_gathered),
          cmocka_unit_test(test_body_larger_than_the_buffer),
          cmocka_unit_test(test_dropped_payloads), cmocka_unit_test(test_pause_stops_the_flow),
          cmocka_unit_test(test_close_in_the_middle_of_a_send),
          cmocka_unit_test(test_sends_from_on_sent_of_a_closing_link),
          cmocka_unit_test(test_close_in_the_middle_of_a_payload),
          cmocka_unit_test(test_no_frame_after_close),
          cmocka_unit_test(test_frames_before_a_close_arrive),
          cmocka_unit_test(test_connection_refused), cmocka_unit_test(test_names),
          cmocka_unit_test(test_connect_time_out), cmocka_unit_test(test_too_many_links),
          cmocka_unit_test(test_buffers_are_shared),
          cmocka_unit_test(test_no_limit_for_a_paused_peer),
          cmocka_unit_test(test_connect_while_stopping),
          cmocka_unit_test(test_accept_without_descriptors), cmocka_unit_test(test_address_in_use),
          cmocka_unit_test(test_bytes_one_by_one), cmocka_unit_test(test_bad_frames),
          cmocka_unit_test(test_truncated_frames), cmocka_unit_test(test_soak))
