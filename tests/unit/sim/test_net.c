/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated network keeps what env.h says of links: frames arrive whole, once, in order, or the
 * link goes down; every frame is given back before on_down; a paused link delivers nothing and
 * loses nothing; the same seed is the same history.  Shown with two processes that send each other
 * numbered frames while links break.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "dlblk/error.h"
#include "tests/sim/sim.h"

#define FRAMES 400u

struct side {
    struct sim_process process;
    struct link *link;
    uint64_t sent, given_back, handed_over, received;
    uint64_t next_received; /* the number that must come next on this link */
    uint32_t ups, downs;
    bool paused, connecting;
    uint8_t payload[8192];
};

struct numbered {
    struct frame_out frame;
    struct side *side;
    struct iovec iov;
    struct data_write write;
    le32 crcs[2];
    uint8_t payload[8192];
};

struct fixture {
    struct sim_world world;
    struct side client, server;
};

static void
numbered_on_sent(struct frame_out *frame, int err)
{
    struct numbered *numbered = list_entry(frame, struct numbered, frame);

    numbered->side->given_back++;
    numbered->side->handed_over += err == 0;
    /* Whoever still read it would see this. */
    memset(numbered->payload, 0xee, sizeof(numbered->payload));
    free(numbered);
}

static void
side_send(struct side *side, uint64_t number)
{
    struct numbered *numbered = calloc(1, sizeof(*numbered));

    assert_non_null(numbered);
    numbered->side = side;
    numbered->write = (struct data_write){
        .target = {.volume = 1, .config_epoch = 1, .lease_epoch = 1, .length_sectors = 2},
        .version = (1ull << 40) + 1,
        .snapshot_seq = 1,
        .slot_mask = 1,
        .crc_count = 2,
    };
    memset(numbered->payload, (int)(number & 0x7f), sizeof(numbered->payload));
    numbered->iov = (struct iovec){numbered->payload, sizeof(numbered->payload)};
    frame_out_write(&numbered->frame, number, &numbered->write, numbered->crcs, &numbered->iov, 1);
    numbered->frame.on_sent = numbered_on_sent;
    side->sent++;
    link_send(side->link, &numbered->frame);
}

static void
on_up(void *core, struct link *link)
{
    struct side *side = core;

    assert_true(link->up);
    side->link = link;
    side->ups++;
    side->connecting = false;
    side->next_received = 0;
}

static void *
on_payload(void *core, struct link *link, const struct frame *frame)
{
    struct side *side = core;

    assert_false(side->paused);
    if (link != side->link)
        return NULL; /* of a connection that the peer has replaced, without our being told */
    assert_int_equal(frame->payload_bytes, sizeof(side->payload));
    return side->payload;
}

static void
on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct side *side = core;

    assert_false(side->paused);
    if (link != side->link)
        return;
    assert_int_equal(frame->request_id, side->next_received);
    side->next_received++;
    side->received++;
    for (size_t i = 0; i < sizeof(side->payload); i++)
        assert_int_equal(side->payload[i], frame->request_id & 0x7f);
}

static void
on_down(void *core, struct link *link, int err)
{
    struct side *side = core;

    assert_true(err < 0);
    side->downs++;
    if (link != side->link && side->link != NULL)
        return;
    assert_int_equal(side->sent, side->given_back);
    side->link = NULL;
    side->paused = false;
    side->connecting = false;
}

static const struct link_events events = {
    .on_accept = on_up,
    .on_up = on_up,
    .on_payload = on_payload,
    .on_frame = on_frame,
    .on_down = on_down,
};

static void
connect_client(struct fixture *fx)
{
    struct dl_address address = {.host = "server", .port = 1};
    struct sim_process *before = sim_enter(&fx->client.process);

    fx->client.connecting = true;
    (void)link_connect(&fx->client.process.env, &address, &events, &fx->client, NULL);
    sim_leave(&fx->client.process, before);
}

static void
run_for(struct fixture *fx, uint64_t duration_ns)
{
    uint64_t end_ns = fx->world.now_ns + duration_ns;

    while (sim_world_step(&fx->world, end_ns))
        ;
}

static void
fixture_init(struct fixture *fx, uint64_t seed)
{
    memset(fx, 0, sizeof(*fx));
    sim_world_init(&fx->world, seed);
    sim_process_init(&fx->client.process, &fx->world, "client");
    sim_process_init(&fx->server.process, &fx->world, "server");
    sim_process_start(&fx->client.process);
    sim_process_start(&fx->server.process);
    sim_process_listen(&fx->server.process, &events, &fx->server);
    fx->world.net.split_percent = 30;
    fx->world.net.buffer_bytes = 64 << 10;
}

static void
fixture_fini(struct fixture *fx)
{
    sim_process_fini(&fx->client.process);
    sim_process_fini(&fx->server.process);
    sim_world_fini(&fx->world);
}

static void
send_as(struct side *side, uint64_t number)
{
    struct sim_process *before = sim_enter(&side->process);

    side_send(side, number);
    sim_leave(&side->process, before);
}

static void
test_frames_arrive_in_order(void **state)
{
    struct fixture fx;

    (void)state;
    fixture_init(&fx, 5);
    connect_client(&fx);
    run_for(&fx, SIM_S);
    assert_int_equal(fx.client.ups, 1);
    assert_int_equal(fx.server.ups, 1);
    for (uint64_t i = 0; i < FRAMES; i++) {
        send_as(&fx.client, i);
        send_as(&fx.server, i);
    }
    run_for(&fx, 10 * SIM_S);
    assert_int_equal(fx.client.received, FRAMES);
    assert_int_equal(fx.server.received, FRAMES);
    assert_int_equal(fx.client.given_back, FRAMES);
    assert_int_equal(fx.client.downs, 0);
    fixture_fini(&fx);
}

static void
test_a_paused_link_is_silent(void **state)
{
    struct fixture fx;
    struct sim_process *before;

    (void)state;
    fixture_init(&fx, 6);
    connect_client(&fx);
    run_for(&fx, SIM_S);
    before = sim_enter(&fx.server.process);
    fx.server.paused = true;
    link_pause(fx.server.link, true);
    sim_leave(&fx.server.process, before);
    for (uint64_t i = 0; i < FRAMES; i++)
        send_as(&fx.client, i);
    run_for(&fx, 10 * SIM_S);
    assert_int_equal(fx.server.received, 0);
    assert_true(fx.client.given_back < FRAMES); /* the buffers between are full */
    before = sim_enter(&fx.server.process);
    fx.server.paused = false;
    link_pause(fx.server.link, false);
    sim_leave(&fx.server.process, before);
    run_for(&fx, 10 * SIM_S);
    assert_int_equal(fx.server.received, FRAMES);
    fixture_fini(&fx);
}

/* Cuts, kills and blocks; what arrives is a prefix of what was sent on each link. */
static uint64_t
run_with_faults(uint64_t seed, uint64_t *ret_received, uint32_t *ret_downs)
{
    struct fixture fx;
    struct fake_rng rng;
    uint64_t number = 0, hash;

    fixture_init(&fx, seed);
    fake_rng_init(&rng, seed);
    fx.world.net.silent_percent = 20;
    for (uint32_t round = 0; round < 300; round++) {
        if (fx.client.link == NULL && !fx.client.connecting) {
            number = 0;
            connect_client(&fx);
            run_for(&fx, 20 * SIM_MS);
        }
        for (uint32_t i = 0; i < 5 && fx.client.link != NULL; i++)
            send_as(&fx.client, number++);
        run_for(&fx, fake_rng_below(&rng, SIM_MS));
        if (fake_rng_percent(&rng, 10))
            (void)sim_net_cut_one(&fx.client.process, 0);
        if (fake_rng_percent(&rng, 5))
            sim_net_block(&fx.world, &fx.client.process, &fx.server.process, 3 * SIM_MS);
        if (fake_rng_percent(&rng, 3)) {
            sim_process_kill(&fx.server.process, fake_rng_percent(&rng, 30));
            fx.server.given_back = fx.server.sent;
            fx.server.link = NULL;
            sim_process_start(&fx.server.process);
            sim_process_listen(&fx.server.process, &events, &fx.server);
        }
        /* One who was not told closes by itself, as a core that hears nothing does. */
        if (fx.client.link != NULL && fake_rng_percent(&rng, 5)) {
            struct sim_process *before = sim_enter(&fx.client.process);

            link_close(fx.client.link);
            sim_leave(&fx.client.process, before);
        }
        run_for(&fx, 2 * SIM_MS);
    }
    *ret_received = fx.server.received;
    *ret_downs = fx.client.downs;
    hash = fx.world.history_hash;
    /* What is still queued comes back. */
    if (fx.client.link != NULL) {
        struct sim_process *before = sim_enter(&fx.client.process);

        link_close(fx.client.link);
        sim_leave(&fx.client.process, before);
        run_for(&fx, SIM_S);
    }
    fixture_fini(&fx);
    return hash;
}

static void
test_links_break(void **state)
{
    uint64_t received, again_received;
    uint32_t downs, again_downs;

    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        uint64_t hash = run_with_faults(seed, &received, &downs);

        if (received <= 30)
            fail_msg("seed %lu: %lu received", seed, received);
        if (downs <= 3)
            fail_msg("seed %lu: %u downs, %lu received", seed, downs, received);
        assert_int_equal(run_with_faults(seed, &again_received, &again_downs), hash);
        assert_int_equal(received, again_received);
    }
}

UNIT_MAIN(cmocka_unit_test(test_frames_arrive_in_order),
          cmocka_unit_test(test_a_paused_link_is_silent), cmocka_unit_test(test_links_break))
