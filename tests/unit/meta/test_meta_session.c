/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections: HELLO and everything that can be wrong with it, frames that make no sense, flow
 *              control, silence.  Whatever one peer
 * does, the others go on.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <string.h>

static void
text_set(char **field, const char *text)
{
    *field = (char *)(uintptr_t)text;
}

/* Says the HELLO, expects a refusal that names `text`, and the connection closed. */
static void
expect_refused(struct fixture *f, const Dl__Hello *hello, int err, const char *text)
{
    struct peer *peer = fixture_connect(f);

    assert_int_equal(peer_ask(peer, OP_HELLO, &hello->base, NULL, NULL), err);
    if (strstr(fixture_error_text(), text) == NULL)
        fail_msg("'%s' does not name '%s'", fixture_error_text(), text);
    fixture_run(f, 500 * MS);
    assert_true(peer->link.down);
    peer_disconnect(peer);
    peer->used = false;
}

static void
test_hello(void **state)
{
    struct fixture f;
    struct peer *peer;
    ProtobufCMessage *reply;
    Dl__Hello hello;
    Dl__Hello *answer;

    (void)state;
    fixture_init(&f, NULL);
    peer = fixture_connect(&f);
    peer_fill_hello(peer, &hello);
    hello.version_max = 99; /* it knows more than we do */
    assert_int_equal(peer_ask(peer, OP_HELLO, &hello.base, &dl__hello__descriptor, &reply), 0);
    answer = (Dl__Hello *)reply;
    assert_int_equal(answer->version_min, 1);
    assert_int_equal(answer->version_max, 1);
    assert_int_equal(answer->role, DL__ROLE__ROLE_META);
    assert_int_equal(answer->cluster_id.len, 16);
    assert_memory_equal(answer->cluster_id.data, "cluster-of-tests", 16);
    assert_int_equal(answer->instance.len, 16);
    assert_non_null(strstr(answer->software, "dlblk-meta"));
    protobuf_c_message_free_unpacked(reply, NULL);
    fixture_fini(&f);
}

static void
test_bad_hellos(void **state)
{
    struct fixture f;
    struct peer *peer, *good;
    Dl__Hello hello;
    uint8_t other[16] = "another-cluster!";
    uint8_t bytes[16] = {1};

    (void)state;
    fixture_init(&f, NULL);
    good = fixture_client(&f);
    peer = fixture_connect(&f);

    peer_fill_hello(peer, &hello);
    hello.version_min = 7;
    hello.version_max = 9;
    expect_refused(&f, &hello, -DL_E_VERSION_UNSUPPORTED, "7 to 9");
    hello.version_min = hello.version_max = 0;
    expect_refused(&f, &hello, -DL_E_VERSION_UNSUPPORTED, "1 to 1");

    peer_fill_hello(peer, &hello);
    hello.cluster_id = bytes_of(other, 16);
    expect_refused(&f, &hello, -DL_E_CLUSTER_MISMATCH, "616e6f74-6865-722d-636c-757374657221");
    expect_refused(&f, &hello, -DL_E_CLUSTER_MISMATCH, "636c7573-7465-722d-6f66-2d7465737473");
    hello.cluster_id = bytes_of(other, 5);
    expect_refused(&f, &hello, -DL_E_CLUSTER_MISMATCH, "616e6f7468");

    peer_fill_hello(peer, &hello);
    hello.role = DL__ROLE__ROLE_META;
    expect_refused(&f, &hello, -DL_E_ROLE_WRONG, "role");
    hello.role = (Dl__Role)77;
    expect_refused(&f, &hello, -DL_E_MESSAGE_MALFORMED, "HELLO");

    peer_fill_hello(peer, &hello);
    hello.features_required = 4;
    expect_refused(&f, &hello, -DL_E_VERSION_UNSUPPORTED, "0x4");
    peer_fill_hello(peer, &hello);
    hello.authentication = bytes_of(bytes, 1);
    expect_refused(&f, &hello, -DL_E_MESSAGE_MALFORMED, "authenticate");
    peer_fill_hello(peer, &hello);
    hello.instance.len = 15;
    expect_refused(&f, &hello, -DL_E_MESSAGE_MALFORMED, "instance");

    /* Chunkservers say which disk and which cluster. */
    peer_fill_hello(peer, &hello);
    hello.role = DL__ROLE__ROLE_CHUNKSERVER;
    expect_refused(&f, &hello, -DL_E_MESSAGE_MALFORMED, "uuid");
    hello.server_uuid = bytes_of(bytes, 16);
    expect_refused(&f, &hello, -DL_E_CLUSTER_MISMATCH, "none");

    assert_int_equal(ask_create(good, "v", 1u << 20, NULL),
                     -DL_E_TOO_FEW_DOMAINS); /* it is served */
    fixture_fini(&f);
}

static void
test_nothing_before_hello(void **state)
{
    static const uint16_t opcodes[] = {OP_PING, OP_VOLUME_LIST, OP_SERVER_REGISTER, OP_READ, 999};
    struct fixture f;

    (void)state;
    fixture_init(&f, NULL);
    for (size_t i = 0; i < sizeof(opcodes) / sizeof(opcodes[0]); i++) {
        struct peer *peer = fixture_connect(&f);

        assert_int_equal(peer_ask(peer, opcodes[i], NULL, NULL, NULL), -DL_E_MESSAGE_MALFORMED);
        fixture_run(&f, 500 * MS);
        assert_true(peer->link.down);
    }
    {
        struct peer *peer = fixture_connect(&f); /* a reply to nothing */

        fake_link_reply(&peer->link, OP_HELLO, 1, 0, NULL);
        fixture_run(&f, 500 * MS);
        assert_true(peer->link.down);
        peer = fixture_connect(&f); /* a HELLO that is none */
        fake_link_feed(&peer->link, OP_HELLO, 0, 7, "\xff\xff", 2, 0);
        fixture_settle(&f);
        assert_int_equal(fixture_reply_status(peer, 7), -DL_E_MESSAGE_MALFORMED);
        peer = fixture_client(&f); /* two of them */
        assert_int_equal(peer_ask(peer, OP_HELLO, NULL, NULL, NULL), -DL_E_MESSAGE_MALFORMED);
        fixture_run(&f, 500 * MS);
        assert_true(peer->link.down);
    }
    fixture_fini(&f);
}

static void
test_who_says_nothing_is_closed(void **state)
{
    struct fixture f;
    struct peer *mute;

    (void)state;
    fixture_init(&f, NULL);
    mute = fixture_connect(&f);
    fixture_run(&f, 9 * SECOND);
    assert_false(mute->link.down);
    fixture_run(&f, 2 * SECOND);
    assert_true(mute->link.down);
    assert_non_null(strstr(f.last_warning, "HELLO"));
    fixture_fini(&f);
}

/* The stream is in step: an error reply, and the connection goes on. */
static void
test_bad_requests_are_answered(void **state)
{
    struct fixture f;
    struct peer *client, *server;
    Dl__VolumeList list = DL__VOLUME_LIST__INIT;

    (void)state;
    fixture_init(&f, NULL);
    client = fixture_client(&f);
    server = fixture_server(&f, 1, "h");
    assert_int_equal(peer_ask(client, 999, NULL, NULL, NULL), -DL_E_OPCODE_UNKNOWN);
    assert_non_null(strstr(fixture_error_text(), "999"));
    assert_int_equal(peer_ask(client, OP_WRITE, NULL, NULL, NULL), -DL_E_OPCODE_UNKNOWN);
    assert_int_equal(peer_ask(client, OP_FENCE, NULL, NULL, NULL), -DL_E_OPCODE_UNKNOWN);
    assert_int_equal(peer_ask(client, OP_SERVER_REGISTER, NULL, NULL, NULL), -DL_E_ROLE_WRONG);
    assert_int_equal(peer_ask(server, OP_VOLUME_LIST, &list.base, NULL, NULL), -DL_E_ROLE_WRONG);
    assert_non_null(strstr(fixture_error_text(), "chunkserver"));
    fake_link_feed(&client->link, OP_ATTACH, 0, 100, "\x0a\xff", 2,
                   0); /* a string that runs off the end */
    fixture_settle(&f);
    assert_int_equal(fixture_reply_status(client, 100), -DL_E_MESSAGE_MALFORMED);
    fake_link_feed(&client->link, OP_VOLUME_LIST, 0, 101, NULL, 0, 4096); /* a payload */
    fixture_settle(&f);
    assert_int_equal(fixture_reply_status(client, 101), -DL_E_MESSAGE_MALFORMED);
    fake_link_reply(&client->link, OP_FENCE, 12345, 0, NULL); /* nobody asked */
    {
        struct meta_stats stats;

        meta_core_get_stats(f.core, &stats);
        assert_int_equal(stats.replies_unmatched, 1);
        assert_true(stats.replies_error >= 6);
    }
    assert_int_equal(peer_ask(client, OP_VOLUME_LIST, &list.base, NULL, NULL), 0);
    assert_int_equal(peer_ask(client, OP_PING, NULL, NULL, NULL), 0);
    assert_false(client->link.down);
    fixture_fini(&f);
}

/* Every request with a body of noise: an answer, and nothing else happens. */
static void
test_noise_in_every_request(void **state)
{
    struct fixture f;
    struct peer *client, *server;
    struct fake_rng rng;
    uint32_t answered = 0;

    (void)state;
    fixture_init(&f, NULL);
    client = fixture_client(&f);
    server = fixture_server(&f, 1, "h");
    fake_rng_init(&rng, 4);
    for (uint64_t id = 1000; id < 6000; id++) {
        struct peer *peer = fake_rng_percent(&rng, 70) ? client : server;
        uint8_t body[64];
        uint32_t bytes = (uint32_t)fake_rng_below(&rng, sizeof(body));
        struct fake_frame *reply;

        for (uint32_t i = 0; i < bytes; i++)
            body[i] = (uint8_t)(fake_rng_percent(&rng, 50) ? fake_rng_below(&rng, 32)
                                                           : fake_rng_next(&rng));
        fake_link_feed(&peer->link, (uint16_t)fake_rng_range(&rng, 16, 100), 0, id, body, bytes, 0);
        fixture_settle(&f);
        reply = peer_take_reply(peer, id);
        answered += reply != NULL;
        fake_frame_destroy(reply);
    }
    assert_int_equal(answered, 5000);
    assert_int_equal(f.fatal, 0);
    fixture_fini(&f);
}

/* --- silence and floods --- */

static void
test_silent_peer_is_pinged_and_closed(void **state)
{
    struct fixture f;
    struct peer *deaf, *living;

    (void)state;
    fixture_init(&f, NULL);
    deaf = fixture_client(&f);
    living = fixture_client(&f); /* answers PING, says nothing else */
    deaf->deaf = true;
    fixture_run(&f, 4500 * MS);
    assert_false(deaf->link.down);
    fixture_run(&f, SECOND);
    assert_true(deaf->link.down);
    fixture_run(&f, 60 * SECOND);
    assert_false(living->link.down);
    fixture_fini(&f);
}

/*
 * Requests that wait hold the connection back, not the memory: attaches of a dead owner's volume,
 * without end.
 */
static void
test_too_many_requests_pause_the_connection(void **state)
{
    struct fixture f;
    struct peer *servers[3], *client;
    Dl__Volume volume;
    Dl__Attach message;
    uint32_t sent = 0;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        servers[i] = fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "v", 1u << 20, &volume), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, volume.id, 1, 0, 1, NULL), 0);
    assert_int_equal(ask_detach(client, volume.id, 1, false), 0);
    for (uint32_t i = 0; i < 3; i++)
        servers[i]->silent_command = true;
    fill_attach(&message, "v", 2);
    while (!client->link.paused && sent < 1000) {
        (void)peer_send(client, OP_ATTACH, &message.base);
        fixture_settle(&f);
        sent++;
    }
    assert_int_equal(sent, META_SESSION_OPS_MAX);
    assert_true(client->link.paused);
    for (uint32_t i = 0; i < 3; i++) {
        struct fake_frame *fence = peer_take_request(servers[i], OP_FENCE);
        Dl__FenceReply reply = DL__FENCE_REPLY__INIT;

        reply.volume = volume.id;
        reply.lease_epoch = 2;
        peer_answer(servers[i], fence, 0, &reply.base);
        fake_frame_destroy(fence);
    }
    fixture_settle(&f);
    assert_false(client->link.paused);
    for (uint64_t id = client->next_id - sent + 1; id <= client->next_id; id++)
        assert_int_equal(fixture_reply_status(client, id), 0);
    fixture_fini(&f);
}

/*
 * But not as long as they wait for the answer to a PING, which comes behind them; who doesn't give
 * it is closed.
 */
static void
test_many_requests_are_asked_back(void **state)
{
    struct fixture f;
    struct peer *client, *mute;
    Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;

    (void)state;
    fixture_init(&f, NULL);
    client = fixture_client(&f);
    mute = fixture_client(&f);
    mute->deaf = true;
    message.name = (char *)(uintptr_t) "v";
    for (uint32_t i = 0; i < 2 * META_SESSION_OPS_MAX; i++) {
        (void)peer_send(client, OP_VOLUME_DELETE, &message.base);
        (void)peer_send(mute, OP_VOLUME_DELETE, &message.base);
    }
    assert_false(client->link.paused);
    fixture_settle(&f);
    for (uint64_t id = client->next_id - 2 * META_SESSION_OPS_MAX + 1; id <= client->next_id; id++)
        assert_int_equal(fixture_reply_status(client, id), -DL_E_VOLUME_UNKNOWN);
    for (unsigned i = 0; i < 7 && !mute->link.down; i++) {
        (void)peer_send(mute, OP_PING, NULL); /* it talks, so it is not closed as silent */
        fixture_run(&f, SECOND);
    }
    assert_true(mute->link.down);
    assert_false(client->link.down);
    fixture_fini(&f);
}

static void
test_too_many_connections(void **state)
{
    struct meta_options options = {.sessions_max = 3};
    struct fixture f;
    struct peer *peers[3], *more;

    (void)state;
    fixture_init(&f, &options);
    for (unsigned i = 0; i < 3; i++)
        peers[i] = fixture_client(&f);
    more = fixture_connect(&f);
    fixture_settle(&f);
    assert_true(more->link.down);
    peer_disconnect(peers[0]);
    (void)fixture_client(&f);
    assert_false(peers[1]->link.down);
    fixture_fini(&f);
}

/* A connection that comes while the state is being loaded waits, and is served then. */
static void
test_connections_wait_for_the_load(void **state)
{
    struct fixture f;
    struct peer *early;
    Dl__Hello hello;

    (void)state;
    fixture_init_database(&f, NULL);
    f.store_options = (struct store_memory_options){10 * MS, 20 * MS};
    fixture_start(&f);
    assert_false(f.ready);
    early = fixture_connect(&f);
    assert_true(early->link.paused);
    fixture_run(&f, SECOND);
    assert_true(f.ready);
    assert_false(early->link.paused);
    peer_fill_hello(early, &hello);
    assert_int_equal(peer_ask(early, OP_HELLO, &hello.base, NULL, NULL), 0);
    fixture_fini(&f);
}

/* --- the end --- */

static void
on_stopped(void *context)
{
    *(bool *)context = true;
}

static void
test_stop_finishes_what_is_in_flight(void **state)
{
    struct fixture f;
    struct peer *client;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    bool stopped = false;
    uint64_t id;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    text_set(&message.name, "v");
    message.size_bytes = 1u << 20;
    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    message.policy = &policy;
    store_memory_hold(f.store, true);
    id = peer_send(client, OP_VOLUME_CREATE, &message.base);
    fixture_settle(&f);
    meta_core_stop(f.core, on_stopped, &stopped);
    fixture_settle(&f);
    assert_false(stopped);
    assert_int_equal(peer_ask(client, OP_VOLUME_LIST, NULL, NULL, NULL), -DL_E_SHUTTING_DOWN);
    store_memory_hold(f.store, false);
    fixture_settle(&f);
    assert_true(stopped);
    assert_int_equal(fixture_reply_status(client, id), 0);
    fixture_fini(&f);
}

/*
 * on_stopped says that the store is left alone: what waited for something begins no commit after
 * it.
 */
static void
test_nothing_begins_after_a_stop(void **state)
{
    struct fixture f;
    struct peer *owner, *client;
    struct meta_stats before, after;
    Dl__Attach message;
    bool stopped = false;
    uint64_t id;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&f, i + 1, "h");
    owner = fixture_client(&f);
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "v", 1u << 20, NULL), 0);
    assert_int_equal(ask_attach(owner, "v", 1, NULL), 0);
    owner->silent_probe = true;
    fill_attach(&message, "v", 2);
    id = peer_send(client, OP_ATTACH, &message.base);
    fixture_settle(&f);
    meta_core_stop(f.core, on_stopped, &stopped);
    fixture_settle(&f);
    assert_true(stopped);
    meta_core_get_stats(f.core, &before);
    fixture_run(&f, 2 * SECOND); /* the probe is over: the attach could go on */
    meta_core_get_stats(f.core, &after);
    assert_int_equal(after.commits, before.commits);
    assert_int_equal(fixture_reply_status(client, id), -DL_E_SHUTTING_DOWN);
    fixture_fini(&f);
}

/*
 * One who asks and asks and takes no answers: what is kept for it is bounded, and in the end its
 * connection is closed.
 */
static void
test_answers_that_nobody_takes(void **state)
{
    struct fixture f;
    struct peer *client, *other;
    uint32_t sent = 0;

    (void)state;
    fixture_init(&f, NULL);
    client = fixture_client(&f);
    other = fixture_client(&f);
    client->link.full = true;
    while (!client->link.paused && sent < 10000) {
        (void)peer_send(client, OP_SERVER_LIST, NULL);
        fake_env_settle(&f.env);
        sent++;
    }
    assert_in_range(sent, 2, 1000);
    fixture_run(&f, SECOND);
    assert_true(client->link.paused);
    client->link.full = false;
    fake_link_wake(&client->link);
    fixture_settle(&f);
    assert_false(client->link.paused);
    client->link.full = true;
    for (uint32_t i = 0; i < 20 && !client->link.down; i++) {
        if (!client->link.paused)
            (void)peer_send(client, OP_SERVER_LIST, NULL);
        fixture_run(&f, SECOND);
    }
    assert_true(client->link.down);
    assert_false(other->link.down);
    fixture_fini(&f);
}

static void
test_stop_while_loading(void **state)
{
    struct fixture f;
    bool stopped = false;

    (void)state;
    fixture_init_database(&f, NULL);
    f.store_options = (struct store_memory_options){10 * MS, 20 * MS};
    fixture_start(&f);
    meta_core_stop(f.core, on_stopped, &stopped);
    fixture_settle(&f);
    assert_false(stopped); /* the store has a request of it */
    fixture_run(&f, 100 * MS);
    assert_true(stopped);
    assert_false(f.ready);
    assert_int_equal(store_memory_in_flight(f.store), 0);
    fixture_fini(&f);
}

UNIT_MAIN(cmocka_unit_test(test_hello), cmocka_unit_test(test_bad_hellos),
          cmocka_unit_test(test_nothing_before_hello),
          cmocka_unit_test(test_who_says_nothing_is_closed),
          cmocka_unit_test(test_bad_requests_are_answered),
          cmocka_unit_test(test_noise_in_every_request),
          cmocka_unit_test(test_silent_peer_is_pinged_and_closed),
          cmocka_unit_test(test_too_many_requests_pause_the_connection),
          cmocka_unit_test(test_many_requests_are_asked_back),
          cmocka_unit_test(test_too_many_connections),
          cmocka_unit_test(test_connections_wait_for_the_load),
          cmocka_unit_test(test_stop_finishes_what_is_in_flight),
          cmocka_unit_test(test_nothing_begins_after_a_stop),
          cmocka_unit_test(test_answers_that_nobody_takes),
          cmocka_unit_test(test_stop_while_loading))
