/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrubs: one of a volume is asked of each of its servers until it is done there, and added up; who
 * is down is named, who was started anew is asked again, and the id says which scrub is meant.
 * What servers tell by themselves is shown, remembered over a restart, and goes to the log.
 */
#include "tests/unit/meta/fixture.h"

#include <string.h>

#define MIB (1ull << 20)

struct test {
    struct fixture f;
    struct peer *servers[3], *client;
    Dl__Volume volume;
};

static void
test_init(struct test *t)
{
    memset(t, 0, sizeof(*t));
    fixture_init(&t->f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        t->servers[i] = fixture_server(&t->f, i + 1, "h");
    t->client = fixture_client(&t->f);
    assert_int_equal(ask_create(t->client, "v", 128 * MIB, &t->volume), 0);
    assert_int_equal(ask_attach(t->client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t->client, t->volume.id, 1, 0, 2, NULL), 0);
    fixture_run(&t->f, SECOND);
}

static int
ask_scrub(struct test *t, const char *name, uint8_t n, Dl__ScrubReply **ret_reply)
{
    Dl__Scrub message = DL__SCRUB__INIT;
    uint8_t id[16] = {n};

    message.name = (char *)(uintptr_t)name;
    message.scrub_id = bytes_of(id, n == 0 ? 0 : 16);
    return peer_ask(t->client, OP_SCRUB, &message.base, &dl__scrub_reply__descriptor,
                    (ProtobufCMessage **)(void *)ret_reply);
}

static Dl__ScrubReply *
scrub_of(struct test *t, uint8_t n)
{
    Dl__ScrubReply *reply = NULL;

    assert_int_equal(ask_scrub(t, "v", n, &reply), 0);
    assert_non_null(reply);
    return reply;
}

static void
expect_state(struct test *t, uint8_t n, const char *state)
{
    Dl__ScrubReply *reply = scrub_of(t, n);

    assert_string_equal(reply->state, state);
    dl__scrub_reply__free_unpacked(reply, NULL);
}

/* The server is asked for the scrub with this id, and answers. */
static void
answer(struct test *t, uint32_t i, uint8_t n, const Dl__ScrubVolumeReply *reply)
{
    struct fake_frame *frame = peer_take_request(t->servers[i], OP_SCRUB_VOLUME);
    Dl__ScrubVolume *message;

    assert_non_null(frame);
    message = (Dl__ScrubVolume *)fake_frame_unpack(frame, &dl__scrub_volume__descriptor);
    assert_non_null(message);
    assert_true(message->volume == t->volume.id);
    assert_int_equal(message->scrub_id.len, 16);
    assert_int_equal(message->scrub_id.data[0], n);
    dl__scrub_volume__free_unpacked(message, NULL);
    peer_answer(t->servers[i], frame, 0, &reply->base);
    fake_frame_destroy(frame);
    fixture_settle(&t->f);
}

static void
answer_done(struct test *t, uint32_t i, uint8_t n)
{
    Dl__ScrubVolumeReply reply = DL__SCRUB_VOLUME_REPLY__INIT;
    Dl__ScrubCounts counts = DL__SCRUB_COUNTS__INIT;

    counts.sectors = 1000;
    counts.bad = i + 1;
    counts.repaired = i;
    counts.left_bad = 1;
    counts.mismatches = i == 0 ? 7 : 0;
    reply.counts = &counts;
    reply.done = true;
    reply.chunks = reply.chunks_done = 2;
    reply.uncompared = i == 0;
    answer(t, i, n, &reply);
}

static void
test_scrub(void **state)
{
    Dl__ScrubVolumeReply half = DL__SCRUB_VOLUME_REPLY__INIT;
    Dl__ScrubReply *reply;
    struct test t;

    (void)state;
    test_init(&t);
    assert_int_equal(ask_scrub(&t, "v", 0, NULL), -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(ask_scrub(&t, "w", 1, NULL), -DL_E_VOLUME_UNKNOWN);
    expect_state(&t, 1, "running");
    half.chunks = 2;
    half.chunks_done = 1;
    half.sectors_done = 262144; /* more than a segment has */
    fixture_run(&t.f, SECOND);
    for (uint32_t i = 0; i < 3; i++)
        answer(&t, i, 1, &half);
    reply = scrub_of(&t, 1);
    assert_int_equal(reply->total_bytes, 6ull * t.volume.segment_bytes);
    assert_int_equal(reply->done_bytes, reply->total_bytes);
    dl__scrub_reply__free_unpacked(reply, NULL);
    expect_state(&t, 2, "running"); /* the other one; nothing begins */
    fixture_run(&t.f, SECOND);
    for (uint32_t i = 0; i < 3; i++)
        answer_done(&t, i, 1);
    fixture_run(&t.f, SECOND);
    reply = scrub_of(&t, 1);
    assert_string_equal(reply->state, "done");
    assert_int_equal(reply->counts->sectors, 3000);
    assert_int_equal(reply->counts->bad, 6);
    assert_int_equal(reply->counts->repaired, 3);
    assert_int_equal(reply->counts->left_bad, 3);
    assert_int_equal(reply->counts->mismatches, 7);
    assert_int_equal(reply->uncompared, 1);
    assert_int_equal(reply->n_servers_absent, 0);
    assert_true(reply->ended_ms >= reply->begun_ms + 2000);
    dl__scrub_reply__free_unpacked(reply, NULL);
    expect_state(&t, 2, "running");
    fixture_fini(&t.f);
}

/* What VOLUME_STATUS says of it. */
static void
expect_status(struct test *t, const char *state)
{
    Dl__VolumeStatus message = DL__VOLUME_STATUS__INIT;
    Dl__VolumeStatusReply *reply;

    message.name = (char *)(uintptr_t) "v";
    assert_int_equal(peer_ask(t->client, OP_VOLUME_STATUS, &message.base,
                              &dl__volume_status_reply__descriptor,
                              (ProtobufCMessage **)(void *)&reply),
                     0);
    assert_string_equal(reply->scrub->state, state);
    dl__volume_status_reply__free_unpacked(reply, NULL);
}

static void
test_servers_that_go(void **state)
{
    Dl__ScrubReply *reply;
    struct test t;

    (void)state;
    test_init(&t);
    expect_status(&t, "none");
    expect_state(&t, 1, "running");
    expect_status(&t, "running");
    answer_done(&t, 0, 1);
    /* One that is started anew is asked again; one that stays away is not waited for. */
    peer_restart_server(t.servers[1]);
    assert_int_equal(peer_register(t.servers[1]), 0);
    fixture_settle(&t.f);
    answer_done(&t, 1, 1);
    peer_disconnect(t.servers[0]); /* all that is there has been looked at */
    peer_disconnect(t.servers[2]);
    fixture_run(&t.f, SECOND);
    expect_state(&t, 1, "running");
    fixture_run(&t.f, 6 * SECOND);
    reply = scrub_of(&t, 1);
    assert_string_equal(reply->state, "done");
    assert_int_equal(reply->n_servers_absent, 1);
    assert_int_equal(reply->servers_absent[0], t.servers[2]->server_id);
    assert_int_equal(reply->counts->sectors, 2000);
    dl__scrub_reply__free_unpacked(reply, NULL);
    expect_status(&t, "done");
    fixture_fini(&t.f);
}

/* A service that was started anew, and a volume that is deleted in the middle. */
static void
test_service_that_goes(void **state)
{
    struct test t;

    (void)state;
    test_init(&t);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, true), 0);
    expect_state(&t, 1, "running");
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    for (uint32_t i = 0; i < 3; i++) {
        peer_restart_server(t.servers[i]);
        assert_int_equal(peer_register(t.servers[i]), 0);
    }
    t.client = fixture_client(&t.f);
    expect_state(&t, 1, "running");
    answer_done(&t, 0, 1);
    for (uint32_t i = 0; i < 3; i++) {
        struct fake_frame *frame = peer_take_request(t.servers[i], OP_SCRUB_VOLUME);

        t.servers[i]->silent_command = true;
        if (frame == NULL)
            continue;
        peer_answer(t.servers[i], frame, -DL_E_BUSY, NULL);
        fake_frame_destroy(frame);
    }
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_run(&t.f, 5 * SECOND); /* the deletion waits, nobody is asked to scrub any more */
    for (uint32_t i = 0; i < 3; i++)
        assert_null(peer_take_request(t.servers[i], OP_SCRUB_VOLUME));
    assert_int_equal(ask_scrub(&t, "v", 1, NULL), -DL_E_VOLUME_UNKNOWN);
    fixture_fini(&t.f);
}

static void
send_heartbeat(struct peer *server, uint64_t left_bad, uint32_t segment, uint64_t completed_ms)
{
    Dl__ServerHeartbeat heartbeat = DL__SERVER_HEARTBEAT__INIT;
    Dl__ScrubCounts counts = DL__SCRUB_COUNTS__INIT;
    Dl__ScrubPosition position = DL__SCRUB_POSITION__INIT;

    heartbeat.capacity_bytes = heartbeat.available_bytes = 1000 * MIB;
    counts.sectors = 500;
    counts.bad = 9;
    counts.repaired = 9 - left_bad;
    counts.left_bad = left_bad;
    position.volume = 4;
    position.segment = segment;
    position.slot = 2;
    position.completed_ms = completed_ms;
    heartbeat.scrub_counts = &counts;
    heartbeat.scrub = &position;
    assert_int_equal(peer_ask(server, OP_SERVER_HEARTBEAT, &heartbeat.base, NULL, NULL), 0);
}

static void
expect_cluster(struct test *t, const char *state, uint64_t left_bad, uint64_t completed_ms)
{
    Dl__ClusterStatus message = DL__CLUSTER_STATUS__INIT;
    Dl__ClusterStatusReply *reply;

    assert_int_equal(peer_ask(t->client, OP_CLUSTER_STATUS, &message.base,
                              &dl__cluster_status_reply__descriptor,
                              (ProtobufCMessage **)(void *)&reply),
                     0);
    assert_string_equal(reply->state, state);
    assert_int_equal(reply->scrub->left_bad, left_bad);
    assert_int_equal(reply->scrub_completed_ms, completed_ms);
    if (left_bad > 0)
        assert_non_null(strstr(reply->problems[0], "sectors are bad"));
    dl__cluster_status_reply__free_unpacked(reply, NULL);
}

/* What the registration of a server is answered with. */
static void
expect_position(struct peer *server, uint32_t segment, uint64_t completed_ms)
{
    Dl__ServerRegister message = DL__SERVER_REGISTER__INIT;
    Dl__ServerRegisterReply *reply;

    peer_fill_register(server, &message);
    assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base,
                              &dl__server_register_reply__descriptor,
                              (ProtobufCMessage **)(void *)&reply),
                     0);
    assert_non_null(reply->scrub);
    assert_int_equal(reply->scrub->segment, segment);
    assert_int_equal(reply->scrub->completed_ms, completed_ms);
    assert_int_equal(reply->scrub->volume, segment == 0 ? 0 : 4);
    assert_int_equal(reply->scrub->slot, segment == 0 ? 0 : 2);
    dl__server_register_reply__free_unpacked(reply, NULL);
}

static void
run_with_heartbeats(struct test *t, uint32_t segment, uint32_t seconds)
{
    for (uint32_t k = 0; k < seconds / 4; k++) {
        for (uint32_t i = 0; i < 3; i++)
            send_heartbeat(t->servers[i], 0, segment, 1000 + i);
        fixture_run(&t->f, 4 * SECOND);
    }
}

static void
test_what_servers_tell(void **state)
{
    struct test t;

    (void)state;
    test_init(&t);
    expect_position(t.servers[0], 0, 0);
    for (uint32_t i = 0; i < 3; i++) {
        t.servers[i]->no_heartbeat = true;
        send_heartbeat(t.servers[i], i, 10 + i, i == 2 ? 0 : 1000 + i);
    }
    expect_cluster(&t, "degraded", 3, 0);
    for (uint32_t i = 0; i < 3; i++)
        send_heartbeat(t.servers[i], 0, 20, 1000 + i);
    expect_cluster(&t, "healthy", 0, 1000);
    run_with_heartbeats(&t, 20, 12);
    /* That it has got further is not worth a commit of its own so soon. */
    run_with_heartbeats(&t, 30, 60);
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    for (uint32_t i = 0; i < 3; i++) {
        peer_restart_server(t.servers[i]);
        expect_position(t.servers[i], 20, 1000 + i);
    }
    run_with_heartbeats(&t, 40, 640);
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    peer_restart_server(t.servers[0]);
    expect_position(t.servers[0], 40, 1000);
    fixture_fini(&t.f);
}

/* The last event's text. */
static void
expect_event(struct test *t, uint32_t segment, uint32_t count, const char *text)
{
    Dl__Events message = DL__EVENTS__INIT;
    Dl__EventsReply *reply;
    const Dl__Event *event;

    assert_int_equal(peer_ask(t->client, OP_EVENTS, &message.base, &dl__events_reply__descriptor,
                              (ProtobufCMessage **)(void *)&reply),
                     0);
    assert_true(reply->n_events > 0);
    event = reply->events[reply->n_events - 1];
    assert_int_equal(event->kind, DL__EVENT_KIND__EVENT_BAD_SECTOR);
    assert_string_equal(event->volume_name, "v");
    assert_int_equal(event->segment, segment);
    assert_int_equal(event->count, count);
    if (strstr(event->text, text) == NULL)
        fail_msg("'%s' is not in '%s'", text, event->text);
    dl__events_reply__free_unpacked(reply, NULL);
}

static void
test_events(void **state)
{
    Dl__BadSectors message = DL__BAD_SECTORS__INIT;
    Dl__BadSectorFinding finding = DL__BAD_SECTOR_FINDING__INIT, *pointer = &finding;
    struct test t;

    (void)state;
    test_init(&t);
    assert_int_equal(peer_ask(t.servers[0], OP_BAD_SECTORS, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(peer_ask(t.client, OP_BAD_SECTORS, &message.base, NULL, NULL),
                     -DL_E_ROLE_WRONG);
    message.n_findings = 1;
    message.findings = &pointer;
    finding.volume = t.volume.id;
    finding.segment = 1;
    finding.slot = 2;
    finding.first_sector = 77;
    finding.segments = 1;
    finding.bad = 12;
    finding.repaired = 11;
    assert_int_equal(peer_ask(t.servers[0], OP_BAD_SECTORS, &message.base, NULL, NULL), 0);
    expect_event(&t, 1, 1, "slot 2, sector 77: 12 bad sectors, 11 of them repaired");
    finding.bad = finding.repaired = 0;
    finding.mismatches = 3;
    finding.segments = 2;
    finding.slot = 0;
    finding.other_slot = 2;
    assert_int_equal(peer_ask(t.servers[0], OP_BAD_SECTORS, &message.base, NULL, NULL), 0);
    expect_event(&t, 1, 2, "the first of 2 segments: slots 0 and 2 differ in 3 sectors");
    fixture_fini(&t.f);
}

UNIT_MAIN(cmocka_unit_test(test_scrub), cmocka_unit_test(test_servers_that_go),
          cmocka_unit_test(test_service_that_goes), cmocka_unit_test(test_what_servers_tell),
          cmocka_unit_test(test_events))
