/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deletion: the name is free at once, the chunks go on every server after a tombstone, the records
 *           when all have answered; and it goes
 * on after restarts of anybody.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)

struct delete_test {
    struct fixture f;
    struct peer *servers[3];
    struct peer *client;
    Dl__Volume volume;
};

/* A volume with segments, detached cleanly. */
static void
delete_init(struct delete_test *t, uint32_t segments)
{
    fixture_init(&t->f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        t->servers[i] = fixture_server(&t->f, i + 1, "h");
    t->client = fixture_client(&t->f);
    assert_int_equal(ask_create(t->client, "v", 20000 * MIB, &t->volume), 0);
    assert_int_equal(ask_attach(t->client, "v", 1, NULL), 0);
    for (uint32_t i = 0; i < segments; i += 1000)
        assert_int_equal(ask_allocate(t->client, t->volume.id, 1, i,
                                      segments - i < 1000 ? segments - i : 1000, NULL),
                         0);
    assert_int_equal(ask_detach(t->client, t->volume.id, 1, true), 0);
}

static uint32_t
records(const struct delete_test *t, const char *prefix)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < store_memory_db_count(t->f.db); i++) {
        struct store_item item = store_memory_db_item(t->f.db, i);

        count += item.key.length_bytes > strlen(prefix) &&
                 memcmp(item.key.bytes, prefix, strlen(prefix)) == 0;
    }
    return count;
}

static uint64_t
slots_of_servers(struct delete_test *t)
{
    struct meta_stats stats;

    meta_core_get_stats(t->f.core, &stats);
    return stats.segments;
}

static void
test_chunks_and_records_go(void **state)
{
    struct delete_test t;

    (void)state;
    delete_init(&t, 10);
    assert_int_equal(records(&t, "segment/"), 10);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_settle(&t.f);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(t.servers[i]->fence_epoch, META_LEASE_EPOCH_TOMBSTONE);
        assert_int_equal(t.servers[i]->chunks_deleted, 10);
    }
    assert_int_equal(records(&t, "segment/"), 0);
    assert_int_equal(records(&t, "volume/"), 0);
    assert_int_equal(slots_of_servers(&t), 0);
    assert_int_equal(ask_delete(t.client, "v"), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_create(t.client, "v", MIB, &t.volume), 0);
    assert_int_equal(t.volume.id, 2); /* ids are never used again */
    fixture_fini(&t.f);
}

/* Each server gets its tombstone first, and no chunk is named before it has answered. */
static void
test_tombstone_comes_first(void **state)
{
    struct delete_test t;
    struct fake_frame *frame;
    Dl__Fence *fence;
    Dl__ChunkDelete *chunks;

    (void)state;
    delete_init(&t, 2);
    t.servers[1]->silent_command = true;
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_settle(&t.f);
    assert_int_equal(t.servers[0]->chunks_deleted, 2); /* the others do not wait */
    frame = peer_take_request(t.servers[1], OP_FENCE);
    assert_non_null(frame);
    assert_null(peer_take_request(t.servers[1], OP_CHUNK_DELETE));
    fence = (Dl__Fence *)fake_frame_unpack(frame, &dl__fence__descriptor);
    assert_int_equal(fence->volume, t.volume.id);
    assert_int_equal(fence->lease_epoch, META_LEASE_EPOCH_TOMBSTONE);
    dl__fence__free_unpacked(fence, NULL);
    peer_answer(t.servers[1], frame, 0, NULL);
    fake_frame_destroy(frame);
    fixture_settle(&t.f);
    frame = peer_take_request(t.servers[1], OP_CHUNK_DELETE);
    assert_non_null(frame);
    chunks = (Dl__ChunkDelete *)fake_frame_unpack(frame, &dl__chunk_delete__descriptor);
    assert_int_equal(chunks->n_chunks, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(chunks->chunks[i]->volume, t.volume.id);
        assert_int_equal(chunks->chunks[i]->segment, i);
        assert_true(chunks->chunks[i]->slot < 3);
        assert_int_equal(chunks->chunks[i]->incarnation, 1);
    }
    dl__chunk_delete__free_unpacked(chunks, NULL);
    assert_int_equal(records(&t, "segment/"), 2); /* until the last server has answered */
    peer_answer(t.servers[1], frame, 0, NULL);
    fake_frame_destroy(frame);
    fixture_settle(&t.f);
    assert_int_equal(records(&t, "segment/"), 0);
    fixture_fini(&t.f);
}

static void
test_large_volumes_go_in_batches(void **state)
{
    struct delete_test t;

    (void)state;
    delete_init(&t, 10000);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_settle(&t.f);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(t.servers[i]->chunk_deletes, 3);
        assert_int_equal(t.servers[i]->chunks_deleted, 10000);
    }
    assert_int_equal(records(&t, "segment/") + records(&t, "volume/"), 0);
    fixture_fini(&t.f);
}

/*
 * A server whose chunks fill a batch exactly, with others' segments behind them: no CHUNK_DELETE
 * without chunks follows, which it would refuse for ever.
 */
static void
test_batches_that_end_exactly(void **state)
{
    struct fixture f;
    struct peer *first, *second, *client;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;

    (void)state;
    fixture_init(&f, NULL);
    first = fixture_server(&f, 1, "h");
    client = fixture_client(&f);
    policy.replicas = 1;
    message.name = (char *)(uintptr_t) "v";
    message.size_bytes = 20000 * MIB;
    message.segment_bytes = MIB;
    message.policy = &policy;
    assert_int_equal(peer_ask(client, OP_VOLUME_CREATE, &message.base, NULL, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    for (uint32_t i = 0; i < META_DELETE_BATCH; i += 1024)
        assert_int_equal(ask_allocate(client, 1, 1, i, 1024, NULL), 0);
    peer_disconnect(first);
    second = fixture_server(&f, 2, "i");
    assert_int_equal(ask_allocate(client, 1, 1, META_DELETE_BATCH, 10, NULL), 0);
    peer_restart_server(first);
    assert_int_equal(peer_register(first), 0);
    assert_int_equal(ask_detach(client, 1, 1, true), 0);
    assert_int_equal(ask_delete(client, "v"), 0);
    fixture_settle(&f);
    assert_int_equal(first->chunks_deleted, META_DELETE_BATCH);
    assert_int_equal(first->chunk_deletes, 1);
    assert_int_equal(second->chunks_deleted, 10);
    fixture_fini(&f);
}

static void
test_refused_while_attached(void **state)
{
    struct delete_test t;
    struct peer *owner;
    struct fake_frame *frame;
    Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;
    Dl__VolumeChanged *changed;
    uint64_t id;

    (void)state;
    delete_init(&t, 1);
    owner = fixture_client(&t.f);
    assert_int_equal(ask_attach(owner, "v", 2, NULL), 0);
    assert_int_equal(ask_delete(t.client, "v"), -DL_E_VOLUME_BUSY);
    assert_non_null(strstr(fixture_error_text(), "testhost 17 test"));
    assert_int_equal(ask_allocate(owner, t.volume.id, 2, 5, 1, NULL), 0); /* unharmed */

    /*
     * An owner that does not answer for a second doesn't count; should it still listen, it is told.
     */
    owner->silent_probe = true;
    message.name = (char *)(uintptr_t) "v";
    id = peer_send(t.client, OP_VOLUME_DELETE, &message.base);
    fixture_run(&t.f, 1100 * MS);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    frame = peer_take_request(owner, OP_VOLUME_CHANGED);
    assert_non_null(frame);
    changed = (Dl__VolumeChanged *)fake_frame_unpack(frame, &dl__volume_changed__descriptor);
    assert_true(changed->deleted);
    dl__volume_changed__free_unpacked(changed, NULL);
    fake_frame_destroy(frame);
    assert_true(ask_allocate(owner, t.volume.id, 2, 6, 1, NULL) < 0);
    fixture_fini(&t.f);
}

/* Requests with the lease of a volume that is going are told so. */
static void
test_owner_of_a_deleted_volume(void **state)
{
    struct delete_test t;
    struct peer *owner;

    (void)state;
    delete_init(&t, 1);
    owner = fixture_client(&t.f);
    assert_int_equal(ask_attach(owner, "v", 2, NULL), 0);
    peer_disconnect(owner);
    fixture_run(&t.f, 5 * SECOND);
    t.servers[0]->silent_command = true; /* it takes a while */
    assert_int_equal(ask_delete(t.client, "v"), 0);
    owner = fixture_client(&t.f);
    assert_int_equal(ask_allocate(owner, t.volume.id, 2, 6, 1, NULL), -DL_E_VOLUME_DELETED);
    assert_int_equal(ask_detach(owner, t.volume.id, 2, true), -DL_E_VOLUME_DELETED);
    assert_int_equal(ask_map(owner, t.volume.id, 0, 0, 0, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_attach(owner, "v", 3, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_create(owner, "v", MIB, NULL), 0); /* the name is free */
    fixture_fini(&t.f);
}

static void
test_who_waits_for_a_takeover_is_told(void **state)
{
    struct delete_test t;
    Dl__Attach message;
    struct peer *other;
    uint64_t id;

    (void)state;
    delete_init(&t, 1);
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 2, false), 0);
    for (unsigned i = 0; i < 3; i++)
        t.servers[i]->silent_command = true;
    other = fixture_client(&t.f);
    fill_attach(&message, "v", 3);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_settle(&t.f);
    assert_null(peer_take_reply(other, id));
    /* Who attaches counts as alive. */
    assert_int_equal(ask_delete(t.client, "v"), -DL_E_VOLUME_BUSY);
    peer_disconnect(other);
    fixture_run(&t.f, 5 * SECOND);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_fini(&t.f);
}

static void
test_repeated_deletion(void **state)
{
    struct delete_test t;
    Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;
    uint8_t change_id[16] = "delete it once!";

    (void)state;
    delete_init(&t, 1);
    t.servers[0]->silent_command = true;
    message.name = (char *)(uintptr_t) "v";
    message.change_id = bytes_of(change_id, 16);
    assert_int_equal(peer_ask(t.client, OP_VOLUME_DELETE, &message.base, NULL, NULL), 0);
    assert_int_equal(peer_ask(t.client, OP_VOLUME_DELETE, &message.base, NULL, NULL), 0);
    change_id[0]++;
    assert_int_equal(peer_ask(t.client, OP_VOLUME_DELETE, &message.base, NULL, NULL),
                     -DL_E_VOLUME_UNKNOWN);
    fixture_fini(&t.f);
}

static void
test_volume_without_chunks(void **state)
{
    struct delete_test t;

    (void)state;
    delete_init(&t, 0);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_settle(&t.f);
    assert_int_equal(records(&t, "volume/"), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(t.servers[i]->fences, 0);
    fixture_fini(&t.f);
}

/* --- restarts --- */

static void
test_server_restarts_in_the_middle(void **state)
{
    struct delete_test t;

    (void)state;
    delete_init(&t, 5);
    t.servers[2]->silent_command = true;
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_settle(&t.f);
    peer_restart_server(t.servers[2]);
    t.servers[2]->silent_command = false;
    assert_int_equal(records(&t, "segment/"), 5);
    assert_int_equal(peer_register(t.servers[2]), 0);
    fixture_settle(&t.f);
    assert_int_equal(t.servers[2]->chunks_deleted, 5);
    assert_int_equal(records(&t, "segment/") + records(&t, "volume/"), 0);
    fixture_fini(&t.f);
}

static void
test_server_answers_with_an_error(void **state)
{
    struct delete_test t;
    struct fake_frame *frame;

    (void)state;
    delete_init(&t, 5);
    t.servers[2]->silent_command = true;
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_settle(&t.f);
    frame = peer_take_request(t.servers[2], OP_FENCE);
    peer_answer(t.servers[2], frame, 0, NULL);
    fake_frame_destroy(frame);
    fixture_settle(&t.f);
    frame = peer_take_request(t.servers[2], OP_CHUNK_DELETE);
    peer_answer(t.servers[2], frame, -DL_E_MEDIA_WRITE, NULL);
    fake_frame_destroy(frame);
    t.servers[2]->silent_command = false;
    fixture_settle(&t.f);
    assert_int_equal(records(&t, "segment/"), 5);
    fixture_run(&t.f, 1500 * MS);
    assert_int_equal(t.servers[2]->chunks_deleted, 5);
    assert_int_equal(records(&t, "segment/") + records(&t, "volume/"), 0);
    fixture_fini(&t.f);
}

/* The service dies at each commit of a deletion of several batches; in the end nothing is left. */
static void
test_service_restarts_at_each_step(void **state)
{
    (void)state;
    for (unsigned steps = 0; steps < 12; steps++) {
        struct delete_test t;
        unsigned done = 0;

        delete_init(&t, 5000);
        t.f.store_options = (struct store_memory_options){MS, MS};
        fixture_crash(&t.f, 0);
        fixture_start(&t.f);
        fixture_run(&t.f, 100 * MS);
        for (unsigned i = 0; i < 3; i++) {
            peer_restart_server(t.servers[i]);
            (void)peer_send_register(t.servers[i]);
        }
        fixture_run(&t.f, 100 * MS);
        t.client = fixture_client(&t.f);
        {
            Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;

            message.name = (char *)(uintptr_t) "v";
            (void)peer_send(t.client, OP_VOLUME_DELETE, &message.base);
        }
        while (done < steps && fake_env_turn(&t.f.env)) {
            done++;
            fixture_settle(&t.f);
        }
        fixture_crash(&t.f, steps % 3);
        fixture_start(&t.f);
        fixture_run(&t.f, 100 * MS);
        assert_true(t.f.ready);
        for (unsigned i = 0; i < 3; i++) {
            peer_restart_server(t.servers[i]);
            (void)peer_send_register(t.servers[i]);
        }
        fixture_run(&t.f, SECOND);
        /* Unless the crash took the deletion itself back. */
        if (records(&t, "volume/") > 0) {
            uint64_t id;
            Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;

            assert_true(steps < 3);
            assert_int_equal(records(&t, "segment/"), 5000);
            t.client = fixture_client(&t.f);
            message.name = (char *)(uintptr_t) "v";
            id = peer_send(t.client, OP_VOLUME_DELETE, &message.base);
            fixture_run(&t.f, SECOND);
            assert_int_equal(fixture_reply_status(t.client, id), 0);
        }
        assert_int_equal(records(&t, "segment/") + records(&t, "volume/"), 0);
        assert_int_equal(slots_of_servers(&t), 0);
        fixture_fini(&t.f);
    }
}

static void
on_stopped(void *context)
{
    *(bool *)context = true;
}

/* A stop does not wait for a long deletion, which goes on after the start. */
static void
test_stop_in_the_middle(void **state)
{
    struct delete_test t;
    bool stopped = false;

    (void)state;
    delete_init(&t, 5000);
    store_memory_hold(t.f.store, true);
    {
        Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;

        message.name = (char *)(uintptr_t) "v";
        (void)peer_send(t.client, OP_VOLUME_DELETE, &message.base);
        fixture_settle(&t.f);
    }
    meta_core_stop(t.f.core, on_stopped, &stopped);
    store_memory_hold(t.f.store, false);
    fixture_settle(&t.f);
    assert_true(stopped);
    assert_int_equal(records(&t, "segment/"), 5000); /* nothing of it was begun */
    assert_int_equal(store_memory_in_flight(t.f.store), 0);
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    for (unsigned i = 0; i < 3; i++) {
        peer_restart_server(t.servers[i]);
        assert_int_equal(peer_register(t.servers[i]), 0);
    }
    fixture_settle(&t.f);
    assert_int_equal(records(&t, "segment/") + records(&t, "volume/"), 0);
    fixture_fini(&t.f);
}

UNIT_MAIN(cmocka_unit_test(test_chunks_and_records_go),
          cmocka_unit_test(test_tombstone_comes_first),
          cmocka_unit_test(test_large_volumes_go_in_batches),
          cmocka_unit_test(test_batches_that_end_exactly),
          cmocka_unit_test(test_refused_while_attached),
          cmocka_unit_test(test_owner_of_a_deleted_volume),
          cmocka_unit_test(test_who_waits_for_a_takeover_is_told),
          cmocka_unit_test(test_repeated_deletion), cmocka_unit_test(test_volume_without_chunks),
          cmocka_unit_test(test_server_restarts_in_the_middle),
          cmocka_unit_test(test_server_answers_with_an_error),
          cmocka_unit_test(test_service_restarts_at_each_step),
          cmocka_unit_test(test_stop_in_the_middle))
