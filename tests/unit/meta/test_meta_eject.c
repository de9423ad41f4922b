/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EJECT (docs/recovery.md, rules 1 to 3), and SLOT_TELL and MAP_CHANGED that follow from it: an
 * ejection under another config epoch changes nothing; too few slots are never left; recovering
 * slots get new attempts unless the segment is resolved; nothing is told before it is committed;
 * what was not told before a restart of the service is told after it, and what was told is not.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)

struct eject_test {
    struct fixture f;
    struct peer *servers[3];
    struct peer *client;
    uint64_t volume;
    uint32_t ids[3]; /* of segment 0, by slot */
};

static struct peer *
server_of(struct eject_test *t, uint32_t id)
{
    for (unsigned i = 0; i < 3; i++)
        if (t->servers[i]->server_id == id)
            return t->servers[i];
    fail_msg("no server %u", id);
    return NULL;
}

/* Three servers, so that each has a slot of each segment; 8 segments; 3 copies, min_write 2. */
static void
eject_init(struct eject_test *t)
{
    Dl__Volume volume;
    Dl__MapReply *map;

    fixture_init(&t->f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        t->servers[i] = fixture_server(&t->f, i + 1, "h");
    t->client = fixture_client(&t->f);
    assert_int_equal(ask_create(t->client, "v", 64 * MIB, &volume), 0);
    assert_int_equal(ask_attach(t->client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t->client, volume.id, 1, 0, 8, &map), 0);
    t->volume = volume.id;
    for (unsigned i = 0; i < 3; i++)
        t->ids[i] = map->segments[0]->slots[i]->server_id;
    dl__map_reply__free_unpacked(map, NULL);
}

static void
check_states(struct eject_test *t, uint32_t segment, uint32_t config_epoch, uint32_t a, uint32_t b,
             uint32_t c)
{
    Dl__MapReply *map = map_of(t->client, t->volume, segment);
    uint32_t expected[3] = {a, b, c};

    assert_int_equal(map->segments[0]->config_epoch, config_epoch);
    assert_int_equal(map->segments[0]->n_slots, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(map->segments[0]->slots[i]->state, expected[i]);
    dl__map_reply__free_unpacked(map, NULL);
}

static uint32_t
attempt_of(struct eject_test *t, uint32_t segment, uint32_t slot)
{
    Dl__MapReply *map = map_of(t->client, t->volume, segment);
    uint32_t attempt = map->segments[0]->slots[slot]->attempt;

    dl__map_reply__free_unpacked(map, NULL);
    return attempt;
}

#define I DL__SLOT_STATE__SLOT_IN_SYNC
#define R DL__SLOT_STATE__SLOT_RECOVERING
#define E DL__SLOT_STATE__SLOT_EJECTED

/* The server goes, is ejected from segment 0, and its others; it comes back: recovering. */
static void
eject_and_return(struct eject_test *t, uint32_t slot)
{
    struct peer *server = server_of(t, t->ids[slot]);

    peer_disconnect(server);
    assert_int_equal(ask_eject(t->client, t->volume, 1, 0, 1, t->ids[slot], 0, false, NULL), 0);
    peer_restart_server(server);
    assert_int_equal(peer_register(server), 0);
    fixture_run(&t->f, SECOND);
}

/* --- rules 1 and 2 --- */

static void
test_other_epoch_changes_nothing(void **state)
{
    struct eject_test t;
    Dl__EjectReply *reply;
    uint64_t revision;

    (void)state;
    eject_init(&t);
    peer_disconnect(server_of(&t, t.ids[1]));
    revision = store_memory_db_revision(t.f.db);
    for (uint32_t epoch = 0; epoch < 4; epoch++) {
        if (epoch == 1)
            continue;
        assert_int_equal(ask_eject(t.client, t.volume, 1, 0, epoch, t.ids[1], 0, false, &reply), 0);
        assert_int_equal(reply->n_segments, 1);
        assert_int_equal(reply->segments[0]->config_epoch, 1);
        assert_int_equal(reply->n_refused, 0);
        dl__eject_reply__free_unpacked(reply, NULL);
    }
    assert_int_equal(store_memory_db_revision(t.f.db), revision);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[1], 0, false, &reply), 0);
    assert_int_equal(reply->segments[0]->config_epoch, 2);
    assert_int_equal(reply->segments[0]->slots[1]->state, E);
    assert_int_equal(reply->n_servers, 3);
    dl__eject_reply__free_unpacked(reply, NULL);
    check_states(&t, 0, 2, I, E, I);
    /* Asked again, as after a lost answer. */
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[1], 0, false, &reply), 0);
    assert_int_equal(reply->segments[0]->config_epoch, 2);
    dl__eject_reply__free_unpacked(reply, NULL);
    /* What is ejected already, or no slot of the segment, is no change. */
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 2, t.ids[1], 77, false, NULL), 0);
    check_states(&t, 0, 2, I, E, I);
    fixture_fini(&t.f);
}

static void
test_min_write_is_left(void **state)
{
    struct eject_test t;
    Dl__EjectReply *reply;

    (void)state;
    eject_init(&t);
    peer_disconnect(server_of(&t, t.ids[1]));
    peer_disconnect(server_of(&t, t.ids[2]));
    /* Both at once: refused whole. */
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[1], t.ids[2], false, &reply), 0);
    assert_int_equal(reply->n_refused, 1);
    assert_int_equal(reply->refused[0], 0);
    assert_int_equal(reply->segments[0]->config_epoch, 1);
    dl__eject_reply__free_unpacked(reply, NULL);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[1], 0, false, &reply), 0);
    assert_int_equal(reply->n_refused, 0);
    dl__eject_reply__free_unpacked(reply, NULL);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 2, t.ids[2], 0, false, &reply), 0);
    assert_int_equal(reply->n_refused, 1);
    dl__eject_reply__free_unpacked(reply, NULL);
    check_states(&t, 0, 2, I, E, I);
    fixture_fini(&t.f);
}

static void
test_requests_that_make_no_sense(void **state)
{
    struct eject_test t;
    Dl__Eject message = DL__EJECT__INIT;
    Dl__Ejection ejection = DL__EJECTION__INIT;
    Dl__Ejection *ejections[] = {&ejection};
    uint32_t ids[2] = {0};

    (void)state;
    eject_init(&t);
    assert_int_equal(ask_eject(t.client, t.volume, 2, 0, 1, t.ids[1], 0, false, NULL),
                     -DL_E_LEASE_OLD);
    assert_int_equal(ask_eject(t.client, t.volume + 1, 1, 0, 1, t.ids[1], 0, false, NULL),
                     -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 50, 1, t.ids[1], 0, false, NULL),
                     -DL_E_RANGE);
    message.volume = t.volume;
    message.lease_epoch = 1;
    assert_int_equal(peer_ask(t.client, OP_EJECT, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    /* A server that can't be, beside one that is. */
    ejection.config_epoch = 1;
    ejection.reason = DL__EJECT_REASON__EJECT_FULL;
    ejection.server_ids = ids;
    ejection.n_server_ids = 2;
    ids[0] = t.ids[1];
    message.ejections = ejections;
    message.n_ejections = 1;
    assert_int_equal(peer_ask(t.client, OP_EJECT, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    check_states(&t, 0, 1, I, I, I);
    fixture_fini(&t.f);
}

/* Several segments in one message: those that can be changed are, in one commit. */
static void
test_batch(void **state)
{
    struct eject_test t;
    Dl__Eject message = DL__EJECT__INIT;
    Dl__Ejection ejections[5];
    Dl__Ejection *pointers[5];
    Dl__EjectReply *reply;
    ProtobufCMessage *unpacked;
    uint64_t revision;

    (void)state;
    eject_init(&t);
    peer_disconnect(server_of(&t, t.ids[0]));
    peer_disconnect(server_of(&t, t.ids[1]));
    assert_int_equal(ask_eject(t.client, t.volume, 1, 3, 1, t.ids[1], 0, false, NULL), 0);
    for (unsigned i = 0; i < 5; i++) {
        dl__ejection__init(&ejections[i]);
        ejections[i].segment = i == 4 ? 1 : i; /* one of them twice */
        ejections[i].config_epoch = i == 3 ? 2 : 1;
        ejections[i].server_ids = &t.ids[0];
        ejections[i].n_server_ids = 1;
        pointers[i] = &ejections[i];
    }
    message.volume = t.volume;
    message.lease_epoch = 1;
    message.ejections = pointers;
    message.n_ejections = 5;
    revision = store_memory_db_revision(t.f.db);
    assert_int_equal(
        peer_ask(t.client, OP_EJECT, &message.base, &dl__eject_reply__descriptor, &unpacked), 0);
    reply = (Dl__EjectReply *)unpacked;
    assert_int_equal(store_memory_db_revision(t.f.db), revision + 1);
    assert_int_equal(reply->n_segments, 5);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(reply->segments[i]->config_epoch, 2);
    assert_int_equal(reply->n_refused, 1);
    assert_int_equal(reply->refused[0], 3);
    dl__eject_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

/* --- attempts --- */

static void
test_recovering_slots_begin_anew(void **state)
{
    struct eject_test t;
    uint32_t attempt;

    (void)state;
    for (unsigned resolved = 0; resolved < 2; resolved++) {
        Dl__VolumeCreate create = DL__VOLUME_CREATE__INIT;
        Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
        ProtobufCMessage *reply;

        eject_init(&t);
        /* min_write 1, so that two may go. */
        policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
        policy.min_write = 1;
        create.policy = &policy;
        create.name = (char *)(uintptr_t) "w";
        create.size_bytes = 8 * MIB;
        create.segment_bytes = MIB;
        assert_int_equal(peer_ask(t.client, OP_VOLUME_CREATE, &create.base,
                                  &dl__volume_reply__descriptor, &reply),
                         0);
        t.volume = ((Dl__VolumeReply *)reply)->volume->id;
        protobuf_c_message_free_unpacked(reply, NULL);
        assert_int_equal(ask_attach(t.client, "w", 2, NULL), 0);
        {
            Dl__MapReply *map;

            assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 1, &map), 0);
            for (unsigned i = 0; i < 3; i++)
                t.ids[i] = map->segments[0]->slots[i]->server_id;
            dl__map_reply__free_unpacked(map, NULL);
        }
        eject_and_return(&t, 1);
        check_states(&t, 0, 3, I, R, I);
        attempt = attempt_of(&t, 0, 1);
        assert_int_equal(attempt, 3);
        assert_int_equal(peer_told(server_of(&t, t.ids[1]), t.volume, 0)->attempt, 3);
        peer_disconnect(server_of(&t, t.ids[2]));
        assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 3, t.ids[2], 0, resolved == 1, NULL),
                         0);
        assert_int_equal(attempt_of(&t, 0, 1), resolved == 1 ? 3 : 4);
        assert_int_equal(peer_told(server_of(&t, t.ids[1]), t.volume, 0)->attempt,
                         resolved == 1 ? 3 : 4);
        assert_int_equal(peer_told(server_of(&t, t.ids[1]), t.volume, 0)->config_epoch, 4);
        assert_int_equal(peer_told(server_of(&t, t.ids[1]), t.volume, 0)->peer_count, 1);
        /* The last one stays. */
        assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 4, t.ids[0], 0, false, NULL), 0);
        {
            Dl__MapReply *map = map_of(t.client, t.volume, 0);

            assert_int_equal(map->segments[0]->slots[0]->state, I);
            dl__map_reply__free_unpacked(map, NULL);
        }
        fixture_fini(&t.f);
    }
}

/* An ejected recovering slot is no reason for the others; it may go below min_write. */
static void
test_recovering_slot_is_ejected(void **state)
{
    struct eject_test t;

    (void)state;
    eject_init(&t);
    eject_and_return(&t, 1);
    check_states(&t, 0, 3, I, R, I);
    peer_disconnect(server_of(&t, t.ids[1]));
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 3, t.ids[1], 0, false, NULL), 0);
    check_states(&t, 0, 4, I, E, I);
    assert_int_equal(attempt_of(&t, 0, 1), 0);
    fixture_fini(&t.f);
}

/*
 * A server that is up is not taken back at once, and each time later: it is waited for as soon as
 * it recovers.  With a new connection it is.
 */
static void
test_failing_server_is_put_off(void **state)
{
    struct eject_test t;
    struct peer *server;
    uint32_t epoch = 1;

    (void)state;
    eject_init(&t);
    server = server_of(&t, t.ids[1]);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(ask_eject(t.client, t.volume, 1, 0, epoch, t.ids[1], 0, false, NULL), 0);
        fixture_run(&t.f, ((1 << i) * 1000 - 100) * MS);
        check_states(&t, 0, epoch + 1, I, E, I);
        fixture_run(&t.f, 1100 * MS);
        check_states(&t, 0, epoch + 2, I, R, I);
        epoch += 2;
    }
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, epoch, t.ids[1], 0, false, NULL), 0);
    peer_restart_server(server);
    assert_int_equal(peer_register(server), 0);
    fixture_settle(&t.f);
    check_states(&t, 0, epoch + 2, I, R, I);
    fixture_fini(&t.f);
}

/*
 * A server that is stopped, or cut off, which this service has not noticed yet: it is to give a
 * sign of life after the ejection before it is waited for again.
 */
static void
test_silent_server_is_not_taken_back(void **state)
{
    struct eject_test t;
    struct peer *server;

    (void)state;
    eject_init(&t);
    server = server_of(&t, t.ids[1]);
    server->deaf = true; /* sends no heartbeats either */
    fixture_run(&t.f, SECOND);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[1], 0, false, NULL), 0);
    fixture_run(&t.f, 3500 * MS); /* past what a failing server is put off, not yet down */
    check_states(&t, 0, 2, I, E, I);
    server->deaf = false;
    fixture_run(&t.f, 1100 * MS);
    check_states(&t, 0, 3, I, R, I);
    fixture_fini(&t.f);
}

/* --- telling --- */

static void
test_slots_are_told(void **state)
{
    struct eject_test t;
    struct peer *lost;
    const struct told *told;

    (void)state;
    eject_init(&t);
    lost = server_of(&t, t.ids[2]);
    peer_disconnect(lost);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[2], 0, false, NULL), 0);
    for (unsigned i = 0; i < 2; i++) {
        told = peer_told(server_of(&t, t.ids[i]), t.volume, 0);
        assert_non_null(told);
        assert_int_equal(told->config_epoch, 2);
        assert_int_equal(told->state, I);
        assert_int_equal(told->slot, i);
        assert_int_equal(told->incarnation, 1);
        assert_int_equal(server_of(&t, t.ids[i])->tell_count, 1);
    }
    assert_int_equal(t.client->map_changes, 1); /* and the answer, which has it too */
    peer_restart_server(lost);
    assert_int_equal(peer_register(lost), 0);
    fixture_settle(&t.f);
    told = peer_told(lost, t.volume, 0);
    assert_int_equal(told->config_epoch, 3);
    assert_int_equal(told->state, R);
    assert_int_equal(told->attempt, 3);
    assert_int_equal(told->lease_epoch, 1);
    assert_int_equal(told->incarnation, 1);
    assert_int_equal(told->peer_count, 2);
    assert_int_equal(t.client->map_changes, 2);
    assert_int_equal(t.client->map_change->segments[0]->slots[2]->state, R);
    assert_int_equal(t.client->map_change->segments[0]->slots[2]->attempt, 3);
    fixture_fini(&t.f);
}

/* Rule 3: until the commit is done nobody hears of anything. */
static void
test_nothing_before_the_commit(void **state)
{
    struct eject_test t;

    (void)state;
    for (uint64_t keep = 0; keep <= 1; keep++) {
        Dl__Eject message = DL__EJECT__INIT;
        Dl__Ejection ejection = DL__EJECTION__INIT, *ejections[1] = {&ejection};
        Dl__AttachReply *attached;

        eject_init(&t);
        ejection.config_epoch = 1;
        ejection.server_ids = &t.ids[2];
        ejection.n_server_ids = 1;
        message.volume = t.volume;
        message.lease_epoch = 1;
        message.ejections = ejections;
        message.n_ejections = 1;
        (void)peer_send(t.client, OP_EJECT, &message.base);
        assert_int_equal(store_memory_in_flight(t.f.store), 1);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(t.servers[i]->tell_count, 0);
        fixture_crash(&t.f, keep);
        fixture_start(&t.f);
        for (unsigned i = 0; i < 3; i++) {
            peer_restart_server(t.servers[i]);
            t.servers[i]->silent_tell = i == 0;
            assert_int_equal(peer_register(t.servers[i]), 0);
        }
        t.client = fixture_client(&t.f);
        assert_int_equal(ask_attach(t.client, "v", 1, &attached), 0);
        dl__attach_reply__free_unpacked(attached, NULL);
        fixture_run(&t.f, SECOND);
        /* With the commit: told now, and the slot recovers already. */
        if (keep == 0)
            check_states(&t, 0, 1, I, I, I);
        else
            check_states(&t, 0, 3, I, I, R);
        for (unsigned i = 1; i < 3; i++)
            assert_int_equal(peer_told(t.servers[i], t.volume, 0) != NULL, keep == 1);
        fixture_fini(&t.f);
    }
}

/* Of several changes only the newest is told; again until it is answered. */
static void
test_telling_is_coalesced_and_repeated(void **state)
{
    struct eject_test t;
    struct peer *slow, *lost;
    struct fake_frame *frame;

    (void)state;
    eject_init(&t);
    slow = server_of(&t, t.ids[0]);
    lost = server_of(&t, t.ids[2]);
    slow->silent_tell = true;
    peer_disconnect(lost);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[2], 0, false, NULL), 0);
    fixture_settle(&t.f);
    peer_restart_server(lost);
    assert_int_equal(peer_register(lost), 0);
    fixture_run(&t.f, SECOND);
    peer_disconnect(lost);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 3, t.ids[2], 0, false, NULL), 0);
    fixture_settle(&t.f);
    /* Three changes; one message is on its way. */
    frame = peer_take_request(slow, OP_SLOT_TELL);
    assert_non_null(frame);
    assert_null(peer_take_request(slow, OP_SLOT_TELL));
    slow->silent_tell = false;
    peer_answer(slow, frame, -DL_E_BUSY, NULL);
    fixture_settle(&t.f);
    assert_int_equal(slow->tell_count, 0);
    fixture_run(&t.f, 2 * SECOND);
    assert_int_equal(slow->tell_count, 1);
    assert_int_equal(peer_told(slow, t.volume, 0)->config_epoch, 4);
    fake_frame_destroy(frame);

    /* Without an answer: again on the next connection. */
    slow->silent_tell = true;
    peer_restart_server(lost);
    assert_int_equal(peer_register(lost), 0);
    fixture_run(&t.f, SECOND);
    assert_int_equal(slow->tell_count, 1);
    peer_restart_server(slow);
    slow->silent_tell = false;
    assert_int_equal(peer_register(slow), 0);
    fixture_settle(&t.f);
    assert_int_equal(peer_told(slow, t.volume, 0)->config_epoch, 5);
    fixture_fini(&t.f);
}

/* What all slots have answered is recorded: a restart of the service does not tell it again. */
static void
test_restart_tells_what_was_not_told(void **state)
{
    struct eject_test t;
    struct peer *lost;

    (void)state;
    for (unsigned answered = 0; answered < 2; answered++) {
        eject_init(&t);
        lost = server_of(&t, t.ids[2]);
        server_of(&t, t.ids[0])->silent_tell = answered == 0;
        peer_disconnect(lost);
        assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, t.ids[2], 0, false, NULL), 0);
        fixture_run(&t.f, SECOND);
        fixture_crash(&t.f, 0);
        fixture_start(&t.f);
        for (unsigned i = 0; i < 3; i++)
            t.servers[i]->tell_count = 0;
        for (unsigned i = 0; i < 2; i++) {
            struct peer *server = server_of(&t, t.ids[i]);

            peer_restart_server(server);
            server->silent_tell = false;
            assert_int_equal(peer_register(server), 0);
            fixture_settle(&t.f);
            assert_int_equal(server->tell_count, answered == 0);
            if (answered == 0)
                assert_int_equal(peer_told(server, t.volume, 0)->config_epoch, 2);
        }
        fixture_fini(&t.f);
    }
}

UNIT_MAIN(cmocka_unit_test(test_other_epoch_changes_nothing),
          cmocka_unit_test(test_min_write_is_left),
          cmocka_unit_test(test_requests_that_make_no_sense), cmocka_unit_test(test_batch),
          cmocka_unit_test(test_recovering_slots_begin_anew),
          cmocka_unit_test(test_recovering_slot_is_ejected),
          cmocka_unit_test(test_failing_server_is_put_off),
          cmocka_unit_test(test_silent_server_is_not_taken_back),
          cmocka_unit_test(test_slots_are_told), cmocka_unit_test(test_nothing_before_the_commit),
          cmocka_unit_test(test_telling_is_coalesced_and_repeated),
          cmocka_unit_test(test_restart_tells_what_was_not_told))
