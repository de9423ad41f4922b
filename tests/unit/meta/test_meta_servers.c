/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Servers that are not what they were: disks that went back in time or are damaged (recovered from
 * nothing, after everybody knows, and never if it is the last copy); drain, undrain, remove, set,
 * with what is refused and dry runs; slots that move to a new server; the log, and status in words.
 */
#include "tests/unit/meta/cluster.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How many slots of these segments are on the server, in any state (0: all). */
static uint32_t
count_on(struct cluster_test *t, uint32_t segments, uint32_t id, uint32_t state)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < segments; i++)
        for (uint32_t place = 0; place < 4; place++) {
            Dl__Slot slot = cluster_slot(t, i, place);

            count += slot.server_id == id && (state == 0 || (uint32_t)slot.state == state);
        }
    return count;
}

static void
recover_all(struct cluster_test *t, uint32_t segments)
{
    while (cluster_recover(t, segments))
        continue;
    cluster_check_whole(t, segments);
}

/* --- a disk that went back --- */

static void
test_older_copy_is_recovered_from_nothing(void **state)
{
    struct cluster_test t;
    const struct told *told;

    (void)state;
    for (unsigned damaged = 0; damaged < 2; damaged++) {
        cluster_init(&t, 3, 4, NULL);
        t.servers[1]->start_count = 5;
        cluster_server_returns(&t, 2);
        /* Ejected already, in one segment. */
        cluster_server_goes(&t, 2);
        assert_int_equal(ask_eject(t.client, t.volume, 1, 3, 1, 2, 0, false, NULL), 0);
        peer_restart_server(t.servers[1]);
        if (damaged == 1)
            t.servers[1]->damaged = true;
        else
            t.servers[1]->start_count = 3;
        t.servers[1]->tell_count = 0;
        assert_int_equal(peer_register(t.servers[1]), 0);
        assert_int_equal(count_on(&t, 4, 2, I), 0);
        fixture_run(&t.f, SECOND);
        assert_int_equal(count_on(&t, 4, 2, R), 4);
        for (uint32_t i = 0; i < 4; i++) {
            told = peer_told(t.servers[1], t.volume, i);
            assert_int_equal(told->state, R);
            assert_true(told->incarnation > 1);
            assert_true(told->incarnation < told->attempt);
        }
        recover_all(&t, 4);
        /* The same start again, as after a lost connection: it is what it is by now. */
        t.servers[1]->start_count--;
        t.servers[1]->instance[2]--;
        peer_restart_server(t.servers[1]);
        assert_int_equal(peer_register(t.servers[1]), 0);
        assert_int_equal(count_on(&t, 4, 2, I), 4);
        fixture_fini(&t.f);
    }
}

/* Until the owner knows, the disk that forgot something is not admitted. */
static void
test_reset_waits_for_the_owner(void **state)
{
    struct cluster_test t;
    struct fake_frame *frame;
    uint64_t id;

    (void)state;
    cluster_init(&t, 3, 2, NULL);
    t.servers[1]->start_count = 5;
    cluster_server_returns(&t, 2);
    cluster_server_goes(&t, 2);
    t.client->silent_map = true;
    peer_restart_server(t.servers[1]);
    t.servers[1]->start_count = 3;
    id = peer_send_register(t.servers[1]);
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(t.servers[1]->server_id, 0);
    assert_int_equal(count_on(&t, 2, 2, E), 2);

    /* The service dies in between: all of it again. */
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    cluster_server_returns(&t, 1);
    cluster_server_returns(&t, 3);
    t.client = fixture_client(&t.f);
    t.client->silent_map = true;
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    peer_restart_server(t.servers[1]);
    t.servers[1]->start_count = 3;
    id = peer_send_register(t.servers[1]);
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(t.servers[1]->server_id, 0);
    fixture_run(&t.f, 8 * SECOND);
    assert_non_null(strstr(t.f.last_warning, "not admitted before"));
    while ((frame = peer_take_request(t.client, OP_MAP_CHANGED)) != NULL) {
        peer_answer(t.client, frame, 0, NULL);
        fake_frame_destroy(frame);
    }
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[1]->server_id, 2);
    assert_int_equal(count_on(&t, 2, 2, R), 2);
    (void)id;
    fixture_fini(&t.f);
}

static void
test_last_copy_that_went_back_is_refused(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 1, &(struct meta_options){.out_after_ns = 10 * SECOND});
    for (uint32_t id = 1; id <= 3; id++) {
        t.servers[id - 1]->start_count = 5;
        cluster_server_returns(&t, id);
    }
    for (uint32_t id = 1; id <= 3; id++)
        cluster_server_goes(&t, id);
    fixture_run(&t.f, 30 * SECOND);
    for (uint32_t id = 1; id <= 3; id++) {
        bool last = false;

        for (uint32_t place = 0; place < 3; place++)
            last = last || (cluster_slot(&t, 0, place).server_id == id &&
                            cluster_slot(&t, 0, place).state == I);
        peer_restart_server(t.servers[id - 1]);
        t.servers[id - 1]->start_count = 3;
        assert_int_equal(peer_register(t.servers[id - 1]), last ? -DL_E_SERVER_WENT_BACK : 0);
        if (last) {
            assert_non_null(strstr(fixture_error_text(), "the last copy of segment 0 of volume v"));
            t.servers[id - 1]->start_count = 7; /* the newest copy of the disk */
            assert_int_equal(peer_register(t.servers[id - 1]), 0);
        }
    }
    fixture_run(&t.f, SECOND);
    recover_all(&t, 1);
    fixture_fini(&t.f);
}

/* --- the log --- */

static Dl__EventsReply *
events_after(struct cluster_test *t, uint64_t after, uint32_t max)
{
    Dl__Events message = DL__EVENTS__INIT;
    ProtobufCMessage *reply;

    message.after = after;
    message.max = max;
    assert_int_equal(
        peer_ask(t->client, OP_EVENTS, &message.base, &dl__events_reply__descriptor, &reply), 0);
    return (Dl__EventsReply *)reply;
}

static bool
events_have(const Dl__EventsReply *reply, Dl__EventKind kind, const char *text)
{
    for (size_t i = 0; i < reply->n_events; i++)
        if (reply->events[i]->kind == kind && strstr(reply->events[i]->text, text) != NULL)
            return true;
    return false;
}

/* --- drain --- */

static int
ask_drain(struct cluster_test *t, uint32_t id, bool dry_run, Dl__ServerChangeReply **ret_reply)
{
    Dl__ServerDrain message = DL__SERVER_DRAIN__INIT;

    message.server_id = id;
    message.dry_run = dry_run;
    return peer_ask(t->client, OP_SERVER_DRAIN, &message.base, &dl__server_change_reply__descriptor,
                    (ProtobufCMessage **)ret_reply);
}

static void
test_drain(void **state)
{
    struct cluster_test t;
    Dl__ServerChangeReply *reply;
    uint32_t had;
    uint64_t revision;

    (void)state;
    cluster_init(&t, 4, 12, NULL);
    had = count_on(&t, 12, 1, 0);
    assert_true(had > 0);
    revision = store_memory_db_revision(t.f.db);
    assert_int_equal(ask_drain(&t, 1, true, &reply), 0);
    assert_int_equal(reply->slots, had);
    assert_true(reply->bytes == had * MIB);
    assert_int_equal(reply->n_effects, 1);
    assert_non_null(strstr(reply->effects[0], "move to other servers"));
    assert_false(reply->server->draining);
    dl__server_change_reply__free_unpacked(reply, NULL);
    assert_int_equal(store_memory_db_revision(t.f.db), revision);

    assert_int_equal(ask_drain(&t, 1, false, &reply), 0);
    assert_true(reply->server->draining);
    assert_int_equal(reply->server->state, DL__SERVER_STATE__SERVER_DRAINING);
    dl__server_change_reply__free_unpacked(reply, NULL);
    /* Step by step, the service dying in between; nothing is less than in-sync for a moment. */
    for (unsigned round = 0; count_on(&t, 12, 1, 0) > 0; round++) {
        assert_true(round < 100);
        fixture_run(&t.f, SECOND);
        if (round % 3 == 1)
            cluster_service_restarts(&t, true);
        for (uint32_t i = 0; i < 12; i++)
            for (uint32_t place = 0; place < 3; place++)
                assert_int_equal(cluster_slot(&t, i, place).state, I);
        (void)cluster_recover(&t, 12);
    }
    recover_all(&t, 12);
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(t.servers[0]->chunks_deleted, had);
    /* It gets nothing new. */
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 100, 30, NULL), 0);
    for (uint32_t i = 100; i < 130; i++)
        for (uint32_t place = 0; place < 3; place++)
            assert_int_not_equal(cluster_slot(&t, i, place).server_id, 1);
    {
        Dl__ServerUndrain message = DL__SERVER_UNDRAIN__INIT;

        message.server_id = 1;
        assert_int_equal(peer_ask(t.client, OP_SERVER_UNDRAIN, &message.base, NULL, NULL), 0);
    }
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 200, 30, NULL), 0);
    had = 0;
    for (uint32_t i = 200; i < 230; i++)
        for (uint32_t place = 0; place < 3; place++)
            had += cluster_slot(&t, i, place).server_id == 1;
    assert_true(had > 0);
    fixture_fini(&t.f);
}

static void
test_drain_is_refused_without_a_place(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 2, NULL);
    assert_int_equal(ask_drain(&t, 1, false, NULL), -DL_E_TOO_FEW_DOMAINS);
    assert_non_null(strstr(fixture_error_text(), "volume v needs 3"));
    assert_int_equal(ask_drain(&t, 9, false, NULL), -DL_E_SERVER_UNKNOWN);
    assert_int_equal(ask_drain(&t, 0, false, NULL), -DL_E_SERVER_UNKNOWN);
    fixture_fini(&t.f);
    /* Nothing moves to a damaged disk. */
    cluster_init(&t, 4, 2, NULL);
    cluster_server_goes(&t, 4);
    peer_restart_server(t.servers[3]);
    t.servers[3]->damaged = true;
    assert_int_equal(peer_register(t.servers[3]), 0);
    assert_int_equal(ask_drain(&t, 1, false, NULL), -DL_E_TOO_FEW_DOMAINS);
    fixture_fini(&t.f);
}

/* A server without a slot is where those of a server that is drained, or out, have to go. */
static void
test_drain_of_the_only_target_is_refused(void **state)
{
    struct cluster_test t;

    (void)state;
    for (unsigned out = 0; out < 2; out++) {
        uint32_t from, spare = 1 + 2 + 3 + 4;

        cluster_init(&t, 4, 1, &(struct meta_options){.out_after_ns = 10 * SECOND});
        from = cluster_slot(&t, 0, 0).server_id;
        for (uint32_t place = 0; place < 3; place++)
            spare -= cluster_slot(&t, 0, place).server_id;
        cluster_server_goes(&t, spare);
        if (out == 0) {
            assert_int_equal(ask_drain(&t, from, false, NULL), 0);
        } else {
            cluster_server_goes(&t, from);
            fixture_run(&t.f, 5 * SECOND);
            cluster_server_returns(&t, spare);
            cluster_server_goes(&t, spare);
            fixture_run(&t.f, 6 * SECOND); /* from is out, spare is not */
        }
        assert_int_equal(count_on(&t, 1, spare, 0), 0);
        assert_int_equal(ask_drain(&t, spare, false, NULL), -DL_E_TOO_FEW_DOMAINS);
        assert_non_null(strstr(fixture_error_text(), "volume v needs 3"));
        fixture_fini(&t.f);
    }
}

/* Undone in the middle: what has begun comes to its end, the rest stays. */
static void
test_undrain(void **state)
{
    struct cluster_test t;
    Dl__ServerUndrain message = DL__SERVER_UNDRAIN__INIT;
    uint32_t had;

    (void)state;
    cluster_init(&t, 4, 40, NULL);
    had = count_on(&t, 40, 1, 0);
    assert_true(had > 6);
    assert_int_equal(ask_drain(&t, 1, false, NULL), 0);
    fixture_run(&t.f, SECOND);
    message.server_id = 1;
    assert_int_equal(peer_ask(t.client, OP_SERVER_UNDRAIN, &message.base, NULL, NULL), 0);
    recover_all(&t, 40);
    assert_in_range(count_on(&t, 40, 1, 0), had - 12, had - 1);
    fixture_fini(&t.f);
}

/* The target of a move fails: ejected, dropped, another one is taken. */
static void
test_incoming_slot_fails(void **state)
{
    struct cluster_test t;
    uint32_t from, to;

    (void)state;
    cluster_init(&t, 5, 1, &(struct meta_options){.out_after_ns = 10 * SECOND});
    from = cluster_slot(&t, 0, 2).server_id;
    assert_int_equal(ask_drain(&t, from, false, NULL), 0);
    fixture_run(&t.f, SECOND);
    to = cluster_slot(&t, 0, 3).server_id;
    assert_int_not_equal(to, 0);
    assert_int_equal(cluster_slot(&t, 0, 3).number, 2);
    assert_int_equal(peer_told(t.servers[to - 1], t.volume, 0)->slot, 2);
    assert_int_equal(peer_told(t.servers[to - 1], t.volume, 0)->incarnation, 2);
    cluster_server_goes(&t, to);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, cluster_epoch(&t, 0), to, 0, false, NULL),
                     0);
    assert_int_equal(cluster_slot(&t, 0, 3).state, E);
    fixture_run(&t.f, 20 * SECOND);
    assert_int_equal(cluster_slot(&t, 0, 3).state, R);
    assert_int_not_equal(cluster_slot(&t, 0, 3).server_id, to);
    recover_all(&t, 1);
    assert_int_not_equal(cluster_slot(&t, 0, 2).server_id, from);
    cluster_server_returns(&t, to);
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[to - 1]->chunks_deleted, 1);
    assert_int_equal(t.servers[to - 1]->deleted.incarnation, 2);
    fixture_fini(&t.f);
}

/* When a replaced in-sync slot leaves, other recovering slots begin anew. */
static void
test_replaced_slot_is_as_ejected(void **state)
{
    struct cluster_test t;
    struct told told;
    uint32_t from, to, other, attempt;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    from = cluster_slot(&t, 0, 0).server_id;
    other = cluster_slot(&t, 0, 1).server_id;
    assert_int_equal(ask_drain(&t, from, false, NULL), 0);
    fixture_run(&t.f, SECOND);
    to = cluster_slot(&t, 0, 3).server_id;
    cluster_server_goes(&t, other);
    assert_int_equal(
        ask_eject(t.client, t.volume, 1, 0, cluster_epoch(&t, 0), other, 0, true, NULL), 0);
    cluster_server_returns(&t, other);
    fixture_run(&t.f, SECOND);
    assert_int_equal(cluster_slot(&t, 0, 1).state, R);
    attempt = cluster_slot(&t, 0, 1).attempt;
    told = *peer_told(t.servers[to - 1], t.volume, 0);
    assert_int_equal(ask_report(t.servers[to - 1], &told, true, 256), 0);
    assert_int_equal(cluster_slot(&t, 0, 0).server_id, to);
    assert_int_equal(cluster_slot(&t, 0, 1).attempt, cluster_epoch(&t, 0));
    assert_true(cluster_slot(&t, 0, 1).attempt > attempt);
    fixture_fini(&t.f);
}

/* --- remove --- */

static int
ask_remove(struct cluster_test *t, uint32_t id, bool dry_run, bool force)
{
    Dl__ServerRemove message = DL__SERVER_REMOVE__INIT;

    message.server_id = id;
    message.dry_run = dry_run;
    message.force = force;
    return peer_ask(t->client, OP_SERVER_REMOVE, &message.base, NULL, NULL);
}

static bool
server_is_listed(struct cluster_test *t, uint32_t id)
{
    Dl__ServerList message = DL__SERVER_LIST__INIT;
    Dl__ServerListReply *list;
    ProtobufCMessage *reply;
    bool found = false;

    assert_int_equal(peer_ask(t->client, OP_SERVER_LIST, &message.base,
                              &dl__server_list_reply__descriptor, &reply),
                     0);
    list = (Dl__ServerListReply *)reply;
    for (size_t i = 0; i < list->n_servers; i++)
        found = found || list->servers[i]->id == id;
    dl__server_list_reply__free_unpacked(list, NULL);
    return found;
}

/* Copies on servers that are down may be as lost as those on the one that is removed. */
static void
test_remove_while_others_are_down(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 4, 10, NULL);
    cluster_server_goes(&t, 3);
    cluster_server_goes(&t, 4);
    fixture_run(&t.f, SECOND);
    assert_int_equal(ask_remove(&t, 4, true, false), -DL_E_BUSY);
    assert_non_null(strstr(fixture_error_text(), "min_write on servers that are up"));
    assert_int_equal(ask_remove(&t, 4, false, false), -DL_E_BUSY);
    assert_int_equal(ask_remove(&t, 4, true, true), 0);
    cluster_server_returns(&t, 3);
    assert_int_equal(ask_remove(&t, 4, false, false), 0);
    fixture_fini(&t.f);
}

static void
test_remove(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 4, 10, NULL);
    assert_int_equal(ask_remove(&t, 4, false, false), -DL_E_BUSY);
    assert_non_null(strstr(fixture_error_text(), "is up"));
    cluster_server_goes(&t, 4);
    assert_int_equal(ask_remove(&t, 4, true, false), 0);
    fixture_run(&t.f, SECOND);
    assert_true(count_on(&t, 10, 4, I) > 0);
    assert_int_equal(ask_remove(&t, 4, false, false), 0);
    fixture_run(&t.f, SECOND);
    assert_int_equal(count_on(&t, 10, 4, I), 0);
    /* It may not come back. */
    peer_restart_server(t.servers[3]);
    assert_int_equal(peer_register(t.servers[3]), -DL_E_SERVER_UNKNOWN);
    peer_disconnect(t.servers[3]);
    cluster_service_restarts(&t, true);
    fixture_run(&t.f, SECOND);
    recover_all(&t, 10);
    fixture_run(&t.f, SECOND);
    assert_false(server_is_listed(&t, 4));
    cluster_service_restarts(&t, true);
    assert_false(server_is_listed(&t, 4));
    /* Its disk, formatted or not, is that of a new server. */
    peer_restart_server(t.servers[3]);
    assert_int_equal(peer_register(t.servers[3]), 0);
    assert_int_equal(t.servers[3]->server_id, 5);
    fixture_fini(&t.f);
}

/* Its journal's position, which is recorded now and then, does not bring its record back. */
static void
test_remove_while_it_is_recorded(void **state)
{
    Dl__ServerRemove message = DL__SERVER_REMOVE__INIT;
    struct cluster_test t;
    uint64_t id;

    (void)state;
    cluster_init(&t, 4, 0, NULL);
    t.servers[3]->journal_position += 50;
    fixture_run(&t.f, 2 * SECOND);
    store_memory_hold(t.f.store, true);
    fixture_run(&t.f, 11 * SECOND); /* it is being recorded */
    t.servers[3]->journal_position += 50;
    fixture_run(&t.f, 2 * SECOND);
    cluster_server_goes(&t, 4);
    store_memory_hold(t.f.store, false);
    fixture_run(&t.f, SECOND);
    store_memory_hold(t.f.store, true);
    message.server_id = 4;
    id = peer_send(t.client, OP_SERVER_REMOVE, &message.base);
    fixture_run(&t.f, 11 * SECOND); /* it is to be recorded again, after the removal */
    store_memory_hold(t.f.store, false);
    fixture_run(&t.f, SECOND);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    fixture_run(&t.f, SECOND);
    assert_false(server_is_listed(&t, 4));
    cluster_service_restarts(&t, true);
    assert_false(server_is_listed(&t, 4));
    fixture_fini(&t.f);
}

/* It has deleted its last chunks, and goes; their records are to go after its own have gone. */
static void
test_remove_while_chunks_go(void **state)
{
    Dl__ChunkDeleteReply reply = DL__CHUNK_DELETE_REPLY__INIT;
    Dl__ServerRemove message = DL__SERVER_REMOVE__INIT;
    struct fake_frame *request;
    struct cluster_test t;
    uint64_t id;

    (void)state;
    cluster_init(&t, 4, 10, NULL);
    assert_int_equal(ask_drain(&t, 4, false, NULL), 0);
    t.servers[3]->silent_command = true;
    recover_all(&t, 10);
    request = peer_take_request(t.servers[3], OP_CHUNK_DELETE);
    assert_non_null(request);
    store_memory_hold(t.f.store, true);
    t.servers[3]->journal_position += 50;
    fixture_run(&t.f, 11 * SECOND); /* its position is being recorded */
    message.server_id = 4;
    id = peer_send(t.client, OP_SERVER_REMOVE, &message.base);
    fixture_settle(&t.f);
    peer_answer(t.servers[3], request, 0, &reply.base);
    fake_frame_destroy(request);
    fixture_settle(&t.f);
    cluster_server_goes(&t, 4);
    store_memory_hold(t.f.store, false);
    fixture_run(&t.f, SECOND);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    assert_false(server_is_listed(&t, 4));
    cluster_service_restarts(&t, true);
    assert_false(server_is_listed(&t, 4));
    fixture_fini(&t.f);
}

/* A segment is placed on a server that has none, while that goes and is removed. */
static void
test_remove_while_it_gets_slots(void **state)
{
    Dl__ServerRemove remove = DL__SERVER_REMOVE__INIT;
    Dl__Allocate allocate = DL__ALLOCATE__INIT;
    struct cluster_test t;
    uint32_t segment = 0;
    uint64_t ids[2];

    (void)state;
    cluster_init(&t, 3, 0, NULL);
    store_memory_hold(t.f.store, true);
    allocate.volume = t.volume;
    allocate.lease_epoch = t.lease;
    allocate.n_segments = 1;
    allocate.segments = &segment;
    ids[0] = peer_send(t.client, OP_ALLOCATE, &allocate.base);
    fixture_settle(&t.f);
    cluster_server_goes(&t, 3);
    remove.server_id = 3;
    ids[1] = peer_send(t.client, OP_SERVER_REMOVE, &remove.base);
    fixture_settle(&t.f);
    store_memory_hold(t.f.store, false);
    fixture_run(&t.f, 2 * SECOND);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(fixture_reply_status(t.client, ids[i]), 0);
    assert_int_equal(count_on(&t, 1, 3, I), 0);
    assert_true(server_is_listed(&t, 3));
    cluster_service_restarts(&t, true);
    assert_int_equal(count_on(&t, 1, 3, 0), 1);
    /* It goes when there is another place. */
    t.servers[3] = fixture_server(&t.f, 4, "h4");
    t.server_count = 4;
    recover_all(&t, 1);
    fixture_run(&t.f, SECOND);
    assert_false(server_is_listed(&t, 3));
    fixture_fini(&t.f);
}

static void
test_remove_is_refused(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 5, 1, NULL);
    {
        uint32_t a = cluster_slot(&t, 0, 0).server_id, b = cluster_slot(&t, 0, 1).server_id,
                 c = cluster_slot(&t, 0, 2).server_id;

        for (uint32_t id = 1; id <= 5; id++)
            if (id != c)
                cluster_server_goes(&t, id);
        assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, a, 0, false, NULL), 0);
        /* One is left besides it: fewer than min_write. */
        assert_int_equal(ask_remove(&t, b, false, false), -DL_E_BUSY);
        assert_non_null(strstr(fixture_error_text(), "min_write"));
        assert_int_equal(ask_remove(&t, b, false, true), 0);
        fixture_run(&t.f, SECOND);
        assert_int_equal(cluster_slot(&t, 0, 1).state, E);
        cluster_server_goes(&t, c);
        assert_int_equal(ask_remove(&t, c, false, true), -DL_E_BUSY);
        assert_non_null(strstr(fixture_error_text(), "the last copy"));
    }
    fixture_fini(&t.f);
}

/* --- new segments while servers are away --- */

/*
 * One of three servers is dead: new segments have two copies, and get the third when it is back.
 * Not at once, since it may only reconnect; and never with fewer than min_write.
 */
static void
test_allocation_without_a_server(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 0, NULL);
    cluster_server_goes(&t, 3);
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 8, NULL), -DL_E_SERVER_DOWN);
    fixture_run(&t.f, SECOND);
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 8, NULL), 0);
    assert_int_equal(count_on(&t, 8, 1, I), 8);
    assert_int_equal(count_on(&t, 8, 2, I), 8);
    assert_int_equal(count_on(&t, 8, 3, E), 8);
    assert_int_equal(cluster_epoch(&t, 0), 1);
    cluster_service_restarts(&t, false);
    assert_int_equal(count_on(&t, 8, 3, E), 8);

    cluster_server_returns(&t, 3);
    fixture_run(&t.f, SECOND);
    recover_all(&t, 8);
    cluster_check_whole(&t, 8);
    assert_int_equal(cluster_epoch(&t, 0), 3);

    cluster_server_goes(&t, 1);
    cluster_server_goes(&t, 3);
    fixture_run(&t.f, 20 * SECOND);
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 8, 1, NULL), -DL_E_SERVER_DOWN);
    assert_non_null(strstr(fixture_error_text(), "needs 3 servers, and 1 can take one now"));
    fixture_fini(&t.f);
}

/* A server that is removed while a segment that names it is being committed is not forgotten. */
static void
test_remove_while_it_is_allocated(void **state)
{
    Dl__Allocate allocate = DL__ALLOCATE__INIT;
    Dl__ServerRemove remove = DL__SERVER_REMOVE__INIT;
    uint32_t index = 0;
    struct cluster_test t;
    uint64_t allocate_id, remove_id;

    (void)state;
    cluster_init(&t, 3, 0, NULL);
    cluster_server_goes(&t, 3);
    fixture_run(&t.f, SECOND);
    store_memory_hold(t.f.store, true);
    allocate.volume = t.volume;
    allocate.lease_epoch = 1;
    allocate.n_segments = 1;
    allocate.segments = &index;
    allocate_id = peer_send(t.client, OP_ALLOCATE, &allocate.base);
    fixture_settle(&t.f);
    remove.server_id = 3;
    remove_id = peer_send(t.client, OP_SERVER_REMOVE, &remove.base);
    fixture_settle(&t.f);
    store_memory_hold(t.f.store, false);
    fixture_run(&t.f, 2 * SECOND);
    assert_int_equal(fixture_reply_status(t.client, allocate_id), 0);
    assert_int_equal(fixture_reply_status(t.client, remove_id), 0);
    assert_true(server_is_listed(&t, 3));
    /* Another server takes its place, and it is gone. */
    t.servers[t.server_count++] = fixture_server(&t.f, 4, "h");
    fixture_run(&t.f, SECOND);
    recover_all(&t, 1);
    fixture_run(&t.f, SECOND);
    assert_false(server_is_listed(&t, 3));
    cluster_check_whole(&t, 1);
    cluster_service_restarts(&t, true);
    cluster_check_whole(&t, 1);
    fixture_fini(&t.f);
}

/* An attach that does not wait for a server that is gone; a server that is there is not gone. */
static void
test_attach_without_a_server(void **state)
{
    struct cluster_test t;
    Dl__Attach message;
    Dl__AttachReply *reply;
    ProtobufCMessage *unpacked;
    Dl__EventsReply *events;
    uint32_t ids[2] = {3, 2};

    (void)state;
    cluster_init(&t, 3, 300, NULL);
    peer_disconnect(t.client);
    t.client = fixture_client(&t.f);
    fixture_run(&t.f, 3 * SECOND);
    cluster_server_goes(&t, 3);
    fill_attach(&message, "v", 2);
    message.gone_servers = ids;
    message.n_gone_servers = 2;
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL), -DL_E_BUSY);
    assert_non_null(strstr(fixture_error_text(), "server 2 (127.0.0.1:10002) is not gone"));
    assert_int_equal(cluster_epoch(&t, 0), 1);
    cluster_server_goes(&t, 2);
    ids[0] = 77;
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL),
                     -DL_E_SERVER_UNKNOWN);
    ids[0] = 3;
    assert_int_equal(
        peer_ask(t.client, OP_ATTACH, &message.base, &dl__attach_reply__descriptor, &unpacked), 0);
    reply = (Dl__AttachReply *)unpacked;
    assert_int_equal(reply->lease_epoch, 2);
    for (uint32_t i = 0; i < 300; i++) {
        assert_int_equal(reply->segments[i]->config_epoch, 2);
        for (unsigned k = 0; k < 3; k++)
            assert_int_equal(reply->segments[i]->slots[k]->state,
                             reply->segments[i]->slots[k]->server_id == 1 ? I : E);
    }
    dl__attach_reply__free_unpacked(reply, NULL);
    events = events_after(&t, 0, 0);
    assert_true(events_have(events, DL__EVENT_KIND__EVENT_EJECTED,
                            "server 3 (127.0.0.1:10003), server 2 (127.0.0.1:10002): ejected"));
    dl__events_reply__free_unpacked(events, NULL);
    fixture_fini(&t.f);
}

/* --- set --- */

static void
test_set(void **state)
{
    struct cluster_test t;
    Dl__ServerSet message = DL__SERVER_SET__INIT;
    ProtobufCMessage *reply;

    (void)state;
    cluster_init(&t, 3, 0, NULL);
    message.server_id = 2;
    message.set_labels = true;
    message.host = (char *)(uintptr_t) "other host";
    assert_int_equal(peer_ask(t.client, OP_SERVER_SET, &message.base, NULL, NULL),
                     -DL_E_NAME_INVALID);
    message.host = (char *)(uintptr_t) "other";
    message.rack = (char *)(uintptr_t) "r7";
    message.weight_percent = 1001;
    assert_int_equal(peer_ask(t.client, OP_SERVER_SET, &message.base, NULL, NULL),
                     -DL_E_CONFIG_INVALID);
    message.weight_percent = 50;
    assert_int_equal(peer_ask(t.client, OP_SERVER_SET, &message.base,
                              &dl__server_change_reply__descriptor, &reply),
                     0);
    assert_string_equal(((Dl__ServerChangeReply *)reply)->server->host, "other");
    protobuf_c_message_free_unpacked(reply, NULL);
    /* What the server says of itself does not count any more; also after a restart. */
    cluster_service_restarts(&t, true);
    message.dry_run = true;
    message.set_labels = false;
    message.weight_percent = 0;
    assert_int_equal(peer_ask(t.client, OP_SERVER_SET, &message.base,
                              &dl__server_change_reply__descriptor, &reply),
                     0);
    assert_string_equal(((Dl__ServerChangeReply *)reply)->server->host, "other");
    assert_string_equal(((Dl__ServerChangeReply *)reply)->server->rack, "r7");
    assert_int_equal(((Dl__ServerChangeReply *)reply)->server->weight_percent, 50);
    protobuf_c_message_free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

/* --- rebalancing --- */

static void
test_new_server_gets_its_share(void **state)
{
    struct meta_options options = {.rebalance = true};
    struct cluster_test t;
    uint32_t on_new, moves = 0;

    (void)state;
    cluster_init(&t, 3, 0, &options);
    for (uint32_t i = 0; i < 3; i++)
        t.servers[i]->capacity_bytes = 100 * MIB;
    fixture_run(&t.f, 2 * SECOND);
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 60, NULL), 0);
    fixture_run(&t.f, 10 * SECOND);
    for (uint32_t i = 0; i < 60; i++)
        assert_int_equal(cluster_epoch(&t, i), 1); /* even, and there is no other place */
    t.servers[3] = fixture_server_hello(&t.f, 4, "h");
    t.server_count = 4;
    t.servers[3]->capacity_bytes = 100 * MIB;
    assert_int_equal(peer_register(t.servers[3]), 0);
    for (uint32_t round = 0; round < 120; round++) {
        fixture_run(&t.f, SECOND);
        moves += cluster_recover(&t, 60);
        for (uint32_t i = 0; i < 60; i += 7)
            for (uint32_t place = 0; place < 3; place++)
                assert_int_equal(cluster_slot(&t, i, place).state, I);
    }
    on_new = count_on(&t, 60, 4, I);
    assert_in_range(on_new, 36, 50); /* 45 would be a quarter; 10 % off are even enough */
    assert_true(moves > 0);
    for (uint32_t id = 1; id <= 3; id++)
        assert_in_range(count_on(&t, 60, id, I), 40, 55);
    fixture_fini(&t.f);
}

/* --- the log --- */

static void
test_events(void **state)
{
    struct cluster_test t;
    Dl__EventsReply *reply;
    Dl__Events message = DL__EVENTS__INIT;
    uint64_t cursor, id;
    struct fake_frame *frame;

    (void)state;
    cluster_init(&t, 3, 2, NULL);
    cluster_server_goes(&t, 3);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, 3, 0, false, NULL), 0);
    fixture_run(&t.f, 6 * SECOND);
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, SECOND);
    recover_all(&t, 1);
    fixture_run(&t.f, 11 * SECOND);
    reply = events_after(&t, 0, 0);
    assert_false(reply->lost);
    assert_true(events_have(reply, DL__EVENT_KIND__EVENT_EJECTED, "server 3"));
    assert_true(events_have(reply, DL__EVENT_KIND__EVENT_SERVER_DOWN, "server 3"));
    assert_true(events_have(reply, DL__EVENT_KIND__EVENT_SERVER_UP, "server 3"));
    assert_true(events_have(reply, DL__EVENT_KIND__EVENT_RECOVERED, "1 slot is in-sync again"));
    for (size_t i = 0; i < reply->n_events; i++) {
        assert_int_equal(reply->events[i]->sequence, i + 1);
        assert_true(reply->events[i]->at_ms > 0);
    }
    cursor = reply->next;
    assert_int_equal(cursor, reply->n_events);
    dl__events_reply__free_unpacked(reply, NULL);

    /* A page, and what follows. */
    reply = events_after(&t, 0, 2);
    assert_int_equal(reply->n_events, 2);
    assert_int_equal(reply->next, 2);
    dl__events_reply__free_unpacked(reply, NULL);
    reply = events_after(&t, 2, 1);
    assert_int_equal(reply->events[0]->sequence, 3);
    dl__events_reply__free_unpacked(reply, NULL);

    /* It survives, and goes on where it was. */
    cluster_service_restarts(&t, true);
    reply = events_after(&t, 0, 0);
    assert_true(reply->n_events >= cursor);
    cursor = reply->next;
    dl__events_reply__free_unpacked(reply, NULL);

    /* Who waits hears of the next one, or of none when his time is up. */
    message.after = UINT64_MAX;
    message.wait_ms = 2000;
    id = peer_send(t.client, OP_EVENTS, &message.base);
    fixture_run(&t.f, SECOND);
    assert_null(peer_take_reply(t.client, id));
    cluster_server_goes(&t, 2);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 1, 1, 2, 0, false, NULL), 0);
    frame = peer_take_reply(t.client, id);
    assert_non_null(frame);
    reply = (Dl__EventsReply *)fake_frame_unpack(frame, &dl__events_reply__descriptor);
    assert_int_equal(reply->n_events, 1);
    assert_int_equal(reply->events[0]->sequence, cursor + 1);
    assert_int_equal(reply->events[0]->segment, 1);
    assert_string_equal(reply->events[0]->volume_name, "v");
    dl__events_reply__free_unpacked(reply, NULL);
    fake_frame_destroy(frame);
    id = peer_send(t.client, OP_EVENTS, &message.base);
    fixture_run(&t.f, 2100 * MS);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    fixture_fini(&t.f);
}

/* The log is bounded, in the store as well. */
static void
test_events_are_bounded(void **state)
{
    struct cluster_test t;
    Dl__EventsReply *reply;
    uint32_t items;
    uint64_t before;

    (void)state;
    cluster_init(&t, 4, 0, NULL);
    fixture_settle(&t.f);
    reply = events_after(&t, 0, 0);
    before = reply->next; /* that the servers came */
    assert_int_equal(before, 4);
    assert_true(events_have(reply, DL__EVENT_KIND__EVENT_SERVER_UP, "up: new"));
    dl__events_reply__free_unpacked(reply, NULL);
    items = store_memory_db_count(t.f.db) - 4;
    for (unsigned i = 0; i < 4200; i++) {
        Dl__ServerSet message = DL__SERVER_SET__INIT;

        message.server_id = 1;
        message.weight_percent = 1 + i % 1000;
        assert_int_equal(peer_ask(t.client, OP_SERVER_SET, &message.base, NULL, NULL), 0);
    }
    assert_int_equal(store_memory_db_count(t.f.db), items + 4096);
    reply = events_after(&t, 10, 0);
    assert_true(reply->lost);
    assert_int_equal(reply->events[0]->sequence, before + 4200 - 4096 + 1);
    dl__events_reply__free_unpacked(reply, NULL);
    cluster_service_restarts(&t, true);
    reply = events_after(&t, before + 4199, 0);
    assert_false(reply->lost);
    assert_int_equal(reply->events[0]->sequence, before + 4200);
    assert_true(events_have(reply, DL__EVENT_KIND__EVENT_SERVER_UP, "up: started anew"));
    dl__events_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

/* --- status --- */

static Dl__VolumeStatusReply *
status_of(struct cluster_test *t)
{
    Dl__VolumeStatus message = DL__VOLUME_STATUS__INIT;
    ProtobufCMessage *reply;

    message.name = (char *)(uintptr_t) "v";
    assert_int_equal(peer_ask(t->client, OP_VOLUME_STATUS, &message.base,
                              &dl__volume_status_reply__descriptor, &reply),
                     0);
    return (Dl__VolumeStatusReply *)reply;
}

static void
expect_status(struct cluster_test *t, const char *state, const char *cluster, const char *problem)
{
    Dl__VolumeStatusReply *status = status_of(t);
    Dl__ClusterStatus message = DL__CLUSTER_STATUS__INIT;
    ProtobufCMessage *reply;

    assert_string_equal(status->state, state);
    if (problem == NULL)
        assert_int_equal(status->n_problems, 0);
    else if (status->n_problems == 0 || strstr(status->problems[0], problem) == NULL)
        fail_msg("'%s' does not say '%s'", status->n_problems > 0 ? status->problems[0] : "nothing",
                 problem);
    dl__volume_status_reply__free_unpacked(status, NULL);
    assert_int_equal(peer_ask(t->client, OP_CLUSTER_STATUS, &message.base,
                              &dl__cluster_status_reply__descriptor, &reply),
                     0);
    assert_string_equal(((Dl__ClusterStatusReply *)reply)->state, cluster);
    protobuf_c_message_free_unpacked(reply, NULL);
}

static void
test_status(void **state)
{
    struct cluster_test t;
    Dl__VolumeStatusReply *status;

    (void)state;
    cluster_init(&t, 3, 4, NULL);
    fixture_run(&t.f, SECOND);
    expect_status(&t, "healthy", "healthy", NULL);
    cluster_server_goes(&t, 3);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, 1, 3, 0, false, NULL), 0);
    fixture_run(&t.f, 10 * SECOND);
    expect_status(&t, "degraded", "degraded",
                  "4 segments have fewer copies than 3 for 10.0 s: start server 3");
    status = status_of(&t);
    assert_int_equal(status->segments, 4);
    assert_int_equal(status->segments_in_sync, 3);
    assert_int_equal(status->segments_degraded, 4);
    assert_true(status->left_bytes == MIB);
    assert_true(status->since_ms > 0);
    dl__volume_status_reply__free_unpacked(status, NULL);
    cluster_server_goes(&t, 2);
    expect_status(&t, "blocked", "blocked", "writes to 4 segments wait");
    cluster_server_goes(&t, 1);
    expect_status(&t, "blocked", "blocked", "4 segments can be neither read nor written");
    for (uint32_t id = 1; id <= 3; id++)
        cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    expect_status(&t, "recovering", "recovering", "they are being recovered");
    /* How far it is. */
    assert_int_equal(ask_report(t.servers[2], peer_told(t.servers[2], t.volume, 0), false, 128), 0);
    fixture_run(&t.f, 3 * SECOND);
    status = status_of(&t);
    assert_int_equal(status->slots_recovering, 1);
    assert_true(status->left_bytes == MIB / 2);
    assert_true(status->rate_bytes_per_s > 0);
    assert_true(status->left_s > 0);
    dl__volume_status_reply__free_unpacked(status, NULL);
    recover_all(&t, 4);
    expect_status(&t, "healthy", "healthy", NULL);
    /* Nothing is lost, but nothing new can come. */
    t.servers[2]->used_bytes = t.servers[2]->capacity_bytes - 1;
    fixture_run(&t.f, 2 * SECOND);
    expect_status(&t, "healthy", "degraded", "new data finds no room on server 3");
    t.servers[2]->used_bytes = 0;
    fixture_run(&t.f, 2 * SECOND);
    expect_status(&t, "healthy", "healthy", NULL);
    fixture_fini(&t.f);
}

/* What is left of the speed of an earlier recovery says nothing about this one. */
static void
test_recovery_rate_begins_anew(void **state)
{
    struct cluster_test t;
    Dl__VolumeStatusReply *status;

    (void)state;
    cluster_init(&t, 3, 1, NULL);
    for (unsigned round = 0; round < 2; round++) {
        cluster_server_goes(&t, 3);
        cluster_eject(&t, 0, 3);
        fixture_run(&t.f, SECOND);
        cluster_server_returns(&t, 3);
        fixture_run(&t.f, (round == 0 ? 1 : 2) * SECOND);
        status = status_of(&t);
        assert_int_equal(status->slots_recovering, 1);
        assert_int_equal(status->rate_bytes_per_s, 0);
        assert_int_equal(status->left_s, 0);
        dl__volume_status_reply__free_unpacked(status, NULL);
        assert_int_equal(ask_report(t.servers[2], peer_told(t.servers[2], t.volume, 0), false, 128),
                         0);
        fixture_run(&t.f, 3 * SECOND);
        status = status_of(&t);
        assert_true(status->rate_bytes_per_s > 0);
        dl__volume_status_reply__free_unpacked(status, NULL);
        recover_all(&t, 1);
        fixture_run(&t.f, 4 * SECOND);
    }
    fixture_fini(&t.f);
}

/* Since when, and who is to be started: of each state by itself, written meanwhile or not. */
static void
test_status_since(void **state)
{
    struct cluster_test t;
    Dl__VolumeStatusReply *status;
    uint64_t since_ms;

    (void)state;
    cluster_init(&t, 4, 0, NULL);
    /* Segments on servers 1 to 3 alone. */
    assert_int_equal(ask_drain(&t, 4, false, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 4, NULL), 0);
    fixture_run(&t.f, SECOND);
    cluster_server_goes(&t, 3);
    fixture_run(&t.f, 10 * SECOND);
    expect_status(&t, "degraded", "degraded",
                  "4 segments have fewer copies than 3 for 10.0 s: start server 3");
    status = status_of(&t);
    since_ms = status->since_ms;
    assert_true(since_ms > 0);
    dl__volume_status_reply__free_unpacked(status, NULL);
    for (uint32_t i = 0; i < 4; i++)
        cluster_eject(&t, i, 3);
    fixture_run(&t.f, 10 * SECOND);
    cluster_server_goes(&t, 2);
    fixture_run(&t.f, 2 * SECOND);
    status = status_of(&t);
    assert_string_equal(status->state, "blocked");
    assert_int_equal(status->since_ms, since_ms + 20 * 1000);
    assert_non_null(strstr(status->problems[0], "writes to 4 segments wait for 2.0 s"));
    assert_non_null(strstr(status->problems[0], "start server 2 ("));
    assert_null(strstr(status->problems[0], "server 3"));
    dl__volume_status_reply__free_unpacked(status, NULL);
    fixture_run(&t.f, 3 * SECOND);
    cluster_server_goes(&t, 1);
    fixture_run(&t.f, SECOND);
    expect_status(&t, "blocked", "blocked", "4 segments can be neither read nor written for 1.0 s");
    fixture_fini(&t.f);
}

/* Who has just started knows nothing bad of servers that may register in a moment. */
static void
test_status_after_a_restart(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 4, NULL);
    fixture_run(&t.f, SECOND);
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    t.client = fixture_client(&t.f);
    expect_status(&t, "degraded", "degraded", "not registered yet");
    fixture_run(&t.f, 3 * SECOND);
    for (uint32_t id = 1; id <= 2; id++)
        cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    expect_status(&t, "degraded", "degraded", "server 3 (");
    expect_status(&t, "degraded", "degraded", "not registered yet");
    fixture_run(&t.f, 4 * SECOND);
    expect_status(&t, "degraded", "degraded", "start server 3");
    cluster_server_returns(&t, 3);
    assert_int_equal(ask_attach(t.client, "v", (uint8_t)t.lease, NULL), 0);
    expect_status(&t, "healthy", "healthy", NULL);
    fixture_fini(&t.f);
}

/* What is there is whole, but writes of new data would fail: said before and afterwards. */
static void
test_status_without_a_place(void **state)
{
    struct cluster_test t;
    Dl__ServerChangeReply *reply;
    Dl__Volume other;

    (void)state;
    cluster_init(&t, 3, 0, NULL);
    fixture_run(&t.f, SECOND);
    expect_status(&t, "healthy", "healthy", NULL);
    assert_int_equal(ask_create(t.client, "w", 512 * MIB, &other), 0);
    for (unsigned dry_run = 2; dry_run-- > 0;) {
        assert_int_equal(ask_drain(&t, 1, dry_run, &reply), 0);
        assert_int_equal(reply->n_effects, 2);
        assert_non_null(strstr(reply->effects[1], "finds no place"));
        assert_non_null(strstr(reply->effects[1], ", and 1 more"));
        dl__server_change_reply__free_unpacked(reply, NULL);
    }
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 1, NULL), -DL_E_NO_SPACE);
    expect_status(&t, "healthy", "degraded",
                  "volume v: a new segment needs 3 servers, and 2 can take one now: server 1 is "
                  "being emptied; writes of new data fail");
    fixture_server(&t.f, 4, "h");
    expect_status(&t, "healthy", "healthy", NULL);
    assert_int_equal(ask_drain(&t, 1, false, &reply), 0);
    assert_int_equal(reply->n_effects, 1);
    dl__server_change_reply__free_unpacked(reply, NULL);
    /* One that is away may be back: two are enough meanwhile. */
    cluster_server_goes(&t, 2);
    expect_status(&t, "healthy", "degraded", NULL);
    fixture_fini(&t.f);
}

static int
ask_waits(struct cluster_test *t, uint32_t lease_epoch, const char *text, uint64_t waited_ms)
{
    Dl__OwnerWaits message = DL__OWNER_WAITS__INIT;

    message.volume = t->volume;
    message.lease_epoch = lease_epoch;
    message.text = (char *)(uintptr_t)text;
    message.waited_ms = waited_ms;
    return peer_ask(t->client, OP_OWNER_WAITS, &message.base, NULL, NULL);
}

/*
 * What an owner says to wait for is a problem of its volume, and in the log once, as long as it
 * says so, and only of the owner of now.
 */
static void
test_owner_waits(void **state)
{
    struct cluster_test t;
    Dl__EventsReply *events;
    uint64_t cursor;

    (void)state;
    cluster_init(&t, 3, 4, NULL);
    fixture_run(&t.f, SECOND);
    expect_status(&t, "healthy", "healthy", NULL);
    events = events_after(&t, 0, 0);
    cursor = events->next;
    dl__events_reply__free_unpacked(events, NULL);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(ask_waits(&t, 1, "a write waits\nfor server 2", 500 + 2000 * i), 0);
        expect_status(&t, "blocked", "blocked", "wait for ");
        expect_status(&t, "blocked", "blocked", ": a write waits?for server 2");
        fixture_run(&t.f, 2 * SECOND);
    }
    events = events_after(&t, cursor, 0);
    assert_int_equal(events->n_events, 1);
    assert_true(events_have(events, DL__EVENT_KIND__EVENT_WAITS, "a write waits?for server 2"));
    dl__events_reply__free_unpacked(events, NULL);
    expect_status(&t, "blocked", "blocked", "wait for 6.5 s");
    assert_int_equal(ask_waits(&t, 1, "", 0), 0);
    expect_status(&t, "healthy", "healthy", NULL);
    assert_int_equal(ask_waits(&t, 1, "", 0), 0);
    events = events_after(&t, cursor + 1, 0);
    assert_int_equal(events->n_events, 1); /* once */
    assert_true(events_have(events, DL__EVENT_KIND__EVENT_WAITS, "go on, after 6.5 s"));
    dl__events_reply__free_unpacked(events, NULL);
    assert_int_equal(ask_waits(&t, 1, "something else", 2000), 0);
    fixture_run(&t.f, 7 * SECOND);
    expect_status(&t, "healthy", "healthy", NULL);
    assert_int_equal(ask_waits(&t, 1, "once more", 2000), 0);
    expect_status(&t, "blocked", "blocked", "once more");
    assert_int_equal(ask_waits(&t, 2, "not the owner", 2000), -DL_E_LEASE_OLD);
    assert_int_equal(ask_detach(t.client, t.volume, 1, true), 0);
    expect_status(&t, "healthy", "healthy", NULL);
    fixture_fini(&t.f);
}

static void
say_bad(struct cluster_test *t, uint32_t id, uint64_t volume, uint64_t bad, uint64_t lost)
{
    Dl__ServerHeartbeat message = DL__SERVER_HEARTBEAT__INIT;
    Dl__BadVolume one = DL__BAD_VOLUME__INIT, *pointers[1] = {&one};

    one.volume = volume;
    one.bad = bad;
    one.lost = lost;
    one.segment = 3;
    one.sector = 5 + id;
    message.capacity_bytes = message.available_bytes = 1000 * MIB;
    message.n_bad_volumes = bad > 0 ? 1 : 0;
    message.bad_volumes = pointers;
    t->servers[id - 1]->no_heartbeat = true;
    assert_int_equal(peer_ask(t->servers[id - 1], OP_SERVER_HEARTBEAT, &message.base, NULL, NULL),
                     0);
}

/* A volume's status says which of its sectors are bad, and whether some copy has them right. */
static void
test_bad_sectors_of_a_volume(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 4, NULL);
    fixture_run(&t.f, SECOND);
    say_bad(&t, 1, t.volume + 1, 7, 7); /* another one */
    expect_status(&t, "healthy", "healthy", NULL);
    say_bad(&t, 1, t.volume, 1, 0);
    expect_status(&t, "degraded", "degraded", "1 sector is bad on server 1 (");
    expect_status(&t, "degraded", "degraded", "to be repaired");
    say_bad(&t, 2, t.volume, 9, 2);
    say_bad(&t, 3, t.volume, 20, 1);
    expect_status(&t, "degraded", "degraded", "2 sectors are bad on server 2 (");
    expect_status(&t, "degraded", "degraded", "in every other copy");
    /* Segments of 1 MiB, not striped. */
    expect_status(&t, "degraded", "degraded",
                  "the first at byte 3174400 of the volume (segment 3, sector 7): reads fail");
    for (uint32_t id = 1; id <= 3; id++)
        say_bad(&t, id, t.volume, 0, 0);
    expect_status(&t, "healthy", "healthy", NULL);
    fixture_fini(&t.f);
}

/* One of the volume's problems says so; NULL: none is that a copy waits. */
static void
expect_wait(struct cluster_test *t, uint32_t count, const char *why)
{
    Dl__VolumeStatusReply *status = status_of(t);
    char wanted[160];
    bool found = why == NULL;

    (void)snprintf(wanted, sizeof(wanted), "volume v: %" PRIu32 " %s to be recovered or moved: %s",
                   count, count == 1 ? "copy waits" : "copies wait", why == NULL ? "" : why);
    for (size_t i = 0; i < status->n_problems; i++) {
        if (why == NULL && strstr(status->problems[i], "to be recovered or moved") != NULL)
            fail_msg("'%s'", status->problems[i]);
        found = found || strncmp(status->problems[i], wanted, strlen(wanted)) == 0;
    }
    for (size_t i = 0; i < status->n_problems && !found; i++)
        print_message("%s\n", status->problems[i]);
    if (!found)
        fail_msg("nothing says '%s'", wanted);
    dl__volume_status_reply__free_unpacked(status, NULL);
}

/* Each reason for which the scheduler lets a copy wait is told. */
static void
test_why_copies_wait(void **state)
{
    struct meta_options options = {.recovery_per_server = 1};
    struct cluster_test t;
    char text[128];

    (void)state;
    cluster_init(&t, 3, 4, &options);
    expect_wait(&t, 0, NULL);
    cluster_server_goes(&t, 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(ask_eject(t.client, t.volume, 1, i, 1, 3, 0, false, NULL), 0);
    fixture_run(&t.f, 8 * SECOND);
    (void)snprintf(text, sizeof(text), "server 3 (%s): down: not heard of", t.servers[2]->address);
    expect_wait(&t, 3, text);
    cluster_server_goes(&t, 1);
    cluster_server_goes(&t, 2);
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, SECOND);
    expect_wait(&t, 3, "no server with a copy in sync can be pulled from");
    cluster_server_returns(&t, 1);
    fixture_run(&t.f, SECOND);
    (void)snprintf(text, sizeof(text), "server 3 (%s) recovers as many at once as it may",
                   t.servers[2]->address);
    expect_wait(&t, 2, text);
    cluster_server_returns(&t, 2);
    recover_all(&t, 3);
    expect_wait(&t, 0, NULL);

    t.servers[2]->deaf = true;
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, cluster_epoch(&t, 0), 3, 0, false, NULL),
                     0);
    fixture_settle(&t.f);
    (void)snprintf(text, sizeof(text), "server 3 (%s) has not been heard of since",
                   t.servers[2]->address);
    expect_wait(&t, 1, text);
    t.servers[2]->deaf = false;
    fixture_run(&t.f, 2600 * MS);
    recover_all(&t, 3);
    assert_int_equal(ask_eject(t.client, t.volume, 1, 0, cluster_epoch(&t, 0), 3, 0, false, NULL),
                     0);
    fixture_run(&t.f, 1100 * MS);
    (void)snprintf(text, sizeof(text),
                   "server 3 (%s) failed while it was up, and is tried again in 3 s",
                   t.servers[2]->address);
    expect_wait(&t, 1, text);
    fixture_fini(&t.f);
}

/* A server that is drained, while nobody else is there to take its slots. */
static void
test_why_copies_do_not_move(void **state)
{
    Dl__ServerDrain drain = DL__SERVER_DRAIN__INIT;
    struct cluster_test t;
    uint32_t count = 0;
    char text[128];

    (void)state;
    cluster_init(&t, 4, 8, NULL);
    /* Those that are on server 4 as well have somewhere to go. */
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t place = 0; place < 3; place++)
            if (cluster_slot(&t, i, place).server_id == 3)
                count += cluster_slot(&t, i, 0).server_id != 4 &&
                         cluster_slot(&t, i, 1).server_id != 4 &&
                         cluster_slot(&t, i, 2).server_id != 4;
    assert_true(count > 0);
    cluster_server_goes(&t, 4);
    fixture_run(&t.f, 6 * SECOND);
    drain.server_id = 3;
    assert_int_equal(peer_ask(t.client, OP_SERVER_DRAIN, &drain.base, NULL, NULL), 0);
    fixture_run(&t.f, SECOND);
    (void)snprintf(text, sizeof(text),
                   "server 3 (%s) is drained, and no other server can take them now",
                   t.servers[2]->address);
    expect_wait(&t, count, text);
    fixture_fini(&t.f);
}

static void
test_locate(void **state)
{
    struct cluster_test t;
    Dl__VolumeCreate create = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    Dl__SegmentLocate message = DL__SEGMENT_LOCATE__INIT;
    Dl__SegmentLocateReply *reply;
    ProtobufCMessage *unpacked;

    (void)state;
    cluster_init(&t, 3, 4, NULL);
    message.name = (char *)(uintptr_t) "v";
    message.offset_bytes = 2 * MIB + 5;
    assert_int_equal(peer_ask(t.client, OP_SEGMENT_LOCATE, &message.base,
                              &dl__segment_locate_reply__descriptor, &unpacked),
                     0);
    reply = (Dl__SegmentLocateReply *)unpacked;
    assert_int_equal(reply->segment, 2);
    assert_int_equal(reply->offset_in_segment, 5);
    assert_true(reply->allocated);
    assert_int_equal(reply->n_slots, 3);
    assert_string_equal(reply->slots[0]->problem, "");
    dl__segment_locate_reply__free_unpacked(reply, NULL);
    message.offset_bytes = 512 * MIB;
    assert_int_equal(peer_ask(t.client, OP_SEGMENT_LOCATE, &message.base, NULL, NULL), -DL_E_RANGE);
    /* Striped: units of 256 KiB over four segments. */
    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    create.policy = &policy;
    create.name = (char *)(uintptr_t) "w";
    create.size_bytes = 16 * MIB;
    create.segment_bytes = MIB;
    create.stripe_width = 4;
    assert_int_equal(peer_ask(t.client, OP_VOLUME_CREATE, &create.base, NULL, NULL), 0);
    message.name = (char *)(uintptr_t) "w";
    message.offset_bytes = 4 * MIB + 6 * 256 * 1024 + 7;
    assert_int_equal(peer_ask(t.client, OP_SEGMENT_LOCATE, &message.base,
                              &dl__segment_locate_reply__descriptor, &unpacked),
                     0);
    reply = (Dl__SegmentLocateReply *)unpacked;
    assert_int_equal(reply->segment, 6);
    assert_int_equal(reply->offset_in_segment, 256 * 1024 + 7);
    assert_false(reply->allocated);
    dl__segment_locate_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

UNIT_MAIN(cmocka_unit_test(test_older_copy_is_recovered_from_nothing),
          cmocka_unit_test(test_reset_waits_for_the_owner),
          cmocka_unit_test(test_last_copy_that_went_back_is_refused), cmocka_unit_test(test_drain),
          cmocka_unit_test(test_remove_while_others_are_down), cmocka_unit_test(test_status_since),
          cmocka_unit_test(test_recovery_rate_begins_anew),
          cmocka_unit_test(test_status_after_a_restart),
          cmocka_unit_test(test_status_without_a_place),
          cmocka_unit_test(test_drain_is_refused_without_a_place),
          cmocka_unit_test(test_drain_of_the_only_target_is_refused),
          cmocka_unit_test(test_undrain), cmocka_unit_test(test_incoming_slot_fails),
          cmocka_unit_test(test_replaced_slot_is_as_ejected), cmocka_unit_test(test_remove),
          cmocka_unit_test(test_remove_while_it_is_recorded),
          cmocka_unit_test(test_remove_while_chunks_go),
          cmocka_unit_test(test_remove_while_it_gets_slots),
          cmocka_unit_test(test_remove_is_refused),
          cmocka_unit_test(test_allocation_without_a_server),
          cmocka_unit_test(test_remove_while_it_is_allocated),
          cmocka_unit_test(test_attach_without_a_server), cmocka_unit_test(test_set),
          cmocka_unit_test(test_new_server_gets_its_share), cmocka_unit_test(test_events),
          cmocka_unit_test(test_events_are_bounded), cmocka_unit_test(test_status),
          cmocka_unit_test(test_owner_waits), cmocka_unit_test(test_bad_sectors_of_a_volume),
          cmocka_unit_test(test_why_copies_wait), cmocka_unit_test(test_why_copies_do_not_move),
          cmocka_unit_test(test_locate))
