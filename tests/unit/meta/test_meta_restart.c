/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restarts and the store: what was answered is there afterwards, what was not answered is there or
 * not but never half; a second service on the same store ends the first; a store that can't be
 * understood is refused with its reason.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/meta.pb-c.h"
#include "meta/schema.h"

#define MIB (1ull << 20)

static void
add_servers(struct fixture *f, struct peer **servers, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        servers[i] = fixture_server(f, i + 1, "h");
}

static void
return_servers(struct peer **servers, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        peer_restart_server(servers[i]);
        assert_int_equal(peer_register(servers[i]), 0);
    }
}

static void
test_everything_is_there_again(void **state)
{
    struct fixture f;
    struct peer *servers[3], *client;
    Dl__Volume volume;
    Dl__MapReply *before, *after;
    Dl__VolumeReply *info;
    uint32_t ids[3];

    (void)state;
    fixture_init(&f, NULL);
    add_servers(&f, servers, 3);
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "v", 64 * MIB, &volume), 0);
    assert_int_equal(ask_create(client, "w", 64 * MIB, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, volume.id, 1, 0, 40, &before), 0);
    for (unsigned i = 0; i < 3; i++)
        ids[i] = servers[i]->server_id;

    fixture_crash(&f, 0);
    fixture_start(&f);
    assert_true(f.ready);
    return_servers(servers, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(servers[i]->server_id, ids[i]);
    client = fixture_client(&f);
    assert_int_equal(ask_info(client, "v", &info), 0);
    assert_int_equal(info->volume->id, volume.id);
    assert_int_equal(info->volume->lease_epoch, 1);
    assert_int_equal(info->volume->allocated_segments, 40);
    assert_string_equal(info->volume->owner, "testhost 17 test");
    assert_false(info->volume->clean);
    dl__volume_reply__free_unpacked(info, NULL);
    /* The owner goes on with its lease: no attach is needed. */
    assert_int_equal(ask_allocate(client, volume.id, 1, 0, 40, &after), 0);
    for (size_t i = 0; i < 40; i++)
        for (size_t k = 0; k < 3; k++)
            assert_int_equal(before->segments[i]->slots[k]->server_id,
                             after->segments[i]->slots[k]->server_id);
    dl__map_reply__free_unpacked(before, NULL);
    dl__map_reply__free_unpacked(after, NULL);
    assert_int_equal(ask_allocate(client, volume.id, 1, 40, 1, NULL), 0);
    assert_int_equal(ask_create(client, "x", MIB, &volume), 0);
    assert_int_equal(volume.id, 3);
    fixture_fini(&f);
}

/* After a restart the owner has some time to come back before it counts as dead. */
static void
test_grace_for_owners(void **state)
{
    struct fixture f;
    struct peer *servers[3], *owner, *other;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    fixture_init(&f, NULL);
    add_servers(&f, servers, 3);
    owner = fixture_client(&f);
    assert_int_equal(ask_create(owner, "v", MIB, NULL), 0);
    assert_int_equal(ask_attach(owner, "v", 1, NULL), 0);
    fixture_crash(&f, 0);
    fixture_start(&f);
    other = fixture_client(&f);
    fill_attach(&message, "v", 2);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&f, 1500 * MS);
    assert_null(peer_take_reply(other, id));
    owner = fixture_client(&f);
    assert_int_equal(ask_attach(owner, "v", 1, NULL), 0); /* it says that it is still there */
    fixture_settle(&f);
    assert_int_equal(fixture_reply_status(other, id), -DL_E_VOLUME_BUSY);

    fixture_crash(&f, 0);
    fixture_start(&f);
    other = fixture_client(&f);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&f, 1900 * MS);
    assert_null(peer_take_reply(other, id));
    fixture_run(&f, 200 * MS);
    assert_int_equal(fixture_reply_status(other, id), 0);
    fixture_fini(&f);
}

/*
 * The service dies between commit and answer: with the commit kept the repetition gets what was
 * done, without it the request is done now; either way once.
 */
static void
test_crash_between_commit_and_answer(void **state)
{
    (void)state;
    for (uint64_t keep = 0; keep <= 1; keep++) {
        struct fixture f;
        struct peer *servers[3], *client;
        Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
        Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
        Dl__Attach attach;
        Dl__AttachReply *reply;
        Dl__Volume volume = DL__VOLUME__INIT;
        Dl__VolumeReply *info;
        uint8_t change_id[16] = "create it once!";

        fixture_init(&f, NULL);
        add_servers(&f, servers, 3);
        client = fixture_client(&f);
        policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
        message.name = (char *)(uintptr_t) "v";
        message.size_bytes = 64 * MIB;
        message.segment_bytes = MIB;
        message.policy = &policy;
        message.change_id = bytes_of(change_id, 16);

        /* create */
        store_memory_hold(f.store, true);
        (void)peer_send(client, OP_VOLUME_CREATE, &message.base);
        fixture_settle(&f);
        assert_int_equal(store_memory_in_flight(f.store), 1);
        fixture_crash(&f, keep);
        fixture_start(&f);
        return_servers(servers, 3);
        client = fixture_client(&f);
        assert_int_equal(ask_info(client, "v", NULL), keep == 1 ? 0 : -DL_E_VOLUME_UNKNOWN);
        assert_int_equal(peer_ask(client, OP_VOLUME_CREATE, &message.base, NULL, NULL), 0);
        assert_int_equal(ask_info(client, "v", &info), 0);
        volume.id = info->volume->id;
        dl__volume_reply__free_unpacked(info, NULL);

        /* attach */
        fill_attach(&attach, "v", 1);
        store_memory_hold(f.store, true);
        (void)peer_send(client, OP_ATTACH, &attach.base);
        fixture_settle(&f);
        assert_int_equal(store_memory_in_flight(f.store), 1);
        fixture_crash(&f, keep);
        fixture_start(&f);
        return_servers(servers, 3);
        client = fixture_client(&f);
        assert_int_equal(ask_attach(client, "v", 1, &reply), 0);
        assert_int_equal(reply->lease_epoch, 1);
        assert_false(reply->takeover);
        dl__attach_reply__free_unpacked(reply, NULL);

        /* allocate */
        {
            Dl__Allocate allocate = DL__ALLOCATE__INIT;
            uint32_t segments[3] = {1, 2, 3};
            Dl__MapReply *map;

            allocate.volume = volume.id;
            allocate.lease_epoch = 1;
            allocate.segments = segments;
            allocate.n_segments = 3;
            (void)peer_send(client, OP_ALLOCATE, &allocate.base);
            assert_int_equal(store_memory_in_flight(f.store), 1);
            fixture_crash(&f, keep);
            fixture_start(&f);
            return_servers(servers, 3);
            client = fixture_client(&f);
            assert_int_equal(ask_map(client, volume.id, 1, 0, 0, &map), 0);
            assert_int_equal(map->n_segments, keep == 1 ? 3 : 0);
            dl__map_reply__free_unpacked(map, NULL);
            assert_int_equal(peer_ask(client, OP_ALLOCATE, &allocate.base, NULL, NULL), 0);
        }

        /* detach */
        {
            Dl__Detach detach = DL__DETACH__INIT;

            detach.volume = volume.id;
            detach.lease_epoch = 1;
            detach.clean = true;
            (void)peer_send(client, OP_DETACH, &detach.base);
            assert_int_equal(store_memory_in_flight(f.store), 1);
            fixture_crash(&f, keep);
            fixture_start(&f);
            return_servers(servers, 3);
            client = fixture_client(&f);
            assert_int_equal(peer_ask(client, OP_DETACH, &detach.base, NULL, NULL), 0);
        }
        assert_int_equal(ask_attach(client, "v", 2, &reply), 0);
        assert_int_equal(reply->lease_epoch, 2);
        assert_false(reply->takeover);
        assert_int_equal(reply->segments_total, 3);
        dl__attach_reply__free_unpacked(reply, NULL);
        fixture_fini(&f);
    }
}

/* --- the store fails, or is somebody else's --- */

static void
test_failed_commit_ends_the_service(void **state)
{
    struct fixture f;
    struct peer *servers[3], *client;
    uint64_t id;
    Dl__VolumeList message = DL__VOLUME_LIST__INIT;

    (void)state;
    fixture_init(&f, NULL);
    add_servers(&f, servers, 3);
    client = fixture_client(&f);
    store_memory_fail_commits(f.store, -DL_E_MEDIA_WRITE);
    {
        Dl__VolumeCreate create = DL__VOLUME_CREATE__INIT;
        Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;

        policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
        create.policy = &policy;
        create.name = (char *)(uintptr_t) "v";
        create.size_bytes = MIB;
        id = peer_send(client, OP_VOLUME_CREATE, &create.base);
    }
    fixture_settle(&f);
    assert_int_equal(f.fatal, -DL_E_MEDIA_WRITE);
    assert_null(peer_take_reply(client, id)); /* neither yes nor no: nobody knows */
    id = peer_send(client, OP_VOLUME_LIST, &message.base);
    fixture_run(&f, 10 * SECOND);
    assert_null(peer_take_reply(client, id));
    fixture_fini(&f);
}

/* Another service starts on the same store: from then on the first one can change nothing. */
static void
test_second_service_ends_the_first(void **state)
{
    struct fixture f;
    struct peer *servers[3], *client;
    struct store *store;
    struct meta_core *second;

    (void)state;
    fixture_init(&f, NULL);
    add_servers(&f, servers, 3);
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "a", MIB, NULL), 0);
    store = store_memory_open(f.db, &f.env.env, NULL);
    second = meta_core_create(&f.env.env, store, NULL);
    fixture_settle(&f);
    assert_true(meta_core_is_serving(second));
    {
        Dl__VolumeCreate create = DL__VOLUME_CREATE__INIT;
        Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
        uint64_t id;

        policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
        create.policy = &policy;
        create.name = (char *)(uintptr_t) "b";
        create.size_bytes = MIB;
        id = peer_send(client, OP_VOLUME_CREATE, &create.base);
        fixture_settle(&f);
        assert_null(peer_take_reply(client, id));
    }
    assert_int_equal(f.fatal, -DL_E_STORE_CONFLICT);
    assert_true(meta_core_is_serving(second));
    store_memory_crash(store, 0);
    meta_core_destroy(second);
    fixture_fini(&f);
}

/* --- a store that can't be loaded --- */

static struct store_bytes
bytes_of_text(const char *text)
{
    return (struct store_bytes){text, (uint32_t)strlen(text)};
}

static void
put_message(struct fixture *f, struct schema_key key, const ProtobufCMessage *message)
{
    uint8_t packed[4096];
    size_t bytes = protobuf_c_message_pack(message, packed);

    store_memory_db_put(f->db, schema_bytes(&key), (struct store_bytes){packed, (uint32_t)bytes});
}

static void
expect_fatal(struct fixture *f, int err, const char *text)
{
    fixture_start(f);
    assert_false(f->ready);
    if (f->fatal != err || strstr(f->fatal_text, text) == NULL)
        fail_msg("%s: '%s', not '%s'", dl_err_name(f->fatal), f->fatal_text, text);
    fixture_crash(f, 0);
}

static void
test_empty_and_foreign_stores(void **state)
{
    struct fixture f;
    Dl__Meta__SchemaRecord schema = DL__META__SCHEMA_RECORD__INIT;

    (void)state;
    fixture_init_database(&f, NULL);
    store_memory_db_destroy(f.db);
    f.db = store_memory_db_create();
    expect_fatal(&f, -DL_E_STORE_FORMAT, "no cluster");
    fixture_fini(&f);

    fixture_init_database(&f, NULL);
    schema.version = 2;
    put_message(&f, schema_key_text("schema"), &schema.base);
    expect_fatal(&f, -DL_E_STORE_FORMAT, "schema version 2, this program knows version 1");
    store_memory_db_put(f.db, bytes_of_text("schema"), bytes_of_text("\xff\xff"));
    expect_fatal(&f, -DL_E_STORE_FORMAT, "schema version 0");
    fixture_fini(&f);
}

static void
test_damaged_records(void **state)
{
    static const char *const singles[] = {"cluster", "next/server", "next/volume"};
    struct fixture f;
    Dl__Meta__VolumeRecord volume = DL__META__VOLUME_RECORD__INIT;
    Dl__Meta__SegmentRecord segment = DL__META__SEGMENT_RECORD__INIT;
    Dl__Meta__SlotRecord slot = DL__META__SLOT_RECORD__INIT;
    Dl__Meta__SlotRecord *slots[1] = {&slot};
    Dl__Meta__ServerRecord server = DL__META__SERVER_RECORD__INIT;
    Dl__Meta__CounterRecord counter = DL__META__COUNTER_RECORD__INIT;
    uint8_t uuid[16] = {1};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        fixture_init_database(&f, NULL);
        store_memory_db_put(f.db, bytes_of_text(singles[i]), bytes_of_text("\xff\xff"));
        expect_fatal(&f, -DL_E_STORE_DAMAGED, "damaged");
        fixture_fini(&f);
    }

    fixture_init_database(&f, NULL);
    counter.next = 10;
    put_message(&f, schema_key_text("next/volume"), &counter.base);
    put_message(&f, schema_key_text("next/server"), &counter.base);
    store_memory_db_put(f.db, bytes_of_text("server/123"), bytes_of_text(""));
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "damaged key");
    fixture_fini(&f);

    fixture_init_database(&f, NULL);
    put_message(&f, schema_key_text("next/volume"), &counter.base);
    put_message(&f, schema_key_text("next/server"), &counter.base);
    server.id = 4;
    server.uuid = bytes_of(uuid, 16);
    server.instance = bytes_of(uuid, 16);
    put_message(&f, schema_key_server(3), &server.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "server 3");
    server.id = 3;
    server.uuid.len = 7;
    put_message(&f, schema_key_server(3), &server.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "server 3");
    server.uuid.len = 16;
    put_message(&f, schema_key_server(3), &server.base);
    server.id = 5;
    put_message(&f, schema_key_server(5), &server.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "two servers");
    uuid[0] = 2;
    put_message(&f, schema_key_server(5), &server.base);
    server.id = 11;
    uuid[0] = 3;
    put_message(&f, schema_key_server(11), &server.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "server 11");
    counter.next = 12;
    put_message(&f, schema_key_text("next/server"), &counter.base);

    volume.id = 1;
    volume.name = (char *)(uintptr_t) "v";
    volume.size_bytes = 64 * MIB;
    volume.segment_bytes = 1 << 20;
    volume.stripe_width = 1;
    volume.redundancy = DL__REDUNDANCY__REDUNDANCY_REPLICATED;
    volume.replicas = 1;
    put_message(&f, schema_key_volume(2), &volume.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "volume 2");
    volume.id = 2;
    volume.name = (char *)(uintptr_t) "a b";
    put_message(&f, schema_key_volume(2), &volume.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "volume 2");
    volume.name = (char *)(uintptr_t) "v";
    volume.segment_bytes = 12345;
    put_message(&f, schema_key_volume(2), &volume.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "size");
    volume.segment_bytes = 1 << 20;
    volume.replicas = 99;
    put_message(&f, schema_key_volume(2), &volume.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "redundancy");
    volume.replicas = 1;
    volume.lease_epoch = META_LEASE_EPOCH_TOMBSTONE;
    put_message(&f, schema_key_volume(2), &volume.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "lease epoch");
    volume.lease_epoch = 1;
    put_message(&f, schema_key_volume(2), &volume.base);
    volume.id = 3;
    put_message(&f, schema_key_volume(3), &volume.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "two volumes are named v");
    volume.name = (char *)(uintptr_t) "w";
    put_message(&f, schema_key_volume(3), &volume.base);

    segment.config_epoch = 1;
    segment.slots = slots;
    segment.n_slots = 1;
    slot.server_id = 3;
    slot.state = DL__SLOT_STATE__SLOT_IN_SYNC;
    put_message(&f, schema_key_segment(7, 0), &segment.base);
    expect_fatal(&f, -DL_E_STORE_DAMAGED, "volume 7");
    fixture_fini(&f);
}

/* One good volume; then one damaged segment after the other. */
static void
test_damaged_segments(void **state)
{
    static const struct {
        uint32_t index, config_epoch, slots, server, state;
        const char *text;
    } cases[] = {
        {64, 1, 3, 1, DL__SLOT_STATE__SLOT_IN_SYNC, "beyond the end"},
        {5, 0, 3, 1, DL__SLOT_STATE__SLOT_IN_SYNC, "config epoch 0"},
        {5, 1, 2, 1, DL__SLOT_STATE__SLOT_IN_SYNC, "2 slots"},
        {5, 1, 3, 9, DL__SLOT_STATE__SLOT_IN_SYNC, "server 9"},
        {5, 1, 3, 1, 0, "state 0"},
        {5, 1, 3, 1, 77, "state 77"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fixture f;
        struct peer *servers[3], *client;
        Dl__Volume volume;
        Dl__Meta__SegmentRecord record = DL__META__SEGMENT_RECORD__INIT;
        Dl__Meta__SlotRecord slot = DL__META__SLOT_RECORD__INIT;
        Dl__Meta__SlotRecord *slots[3] = {&slot, &slot, &slot};

        fixture_init(&f, NULL);
        add_servers(&f, servers, 3);
        client = fixture_client(&f);
        assert_int_equal(ask_create(client, "v", 64 * MIB, &volume), 0);
        fixture_crash(&f, 0);
        record.config_epoch = cases[i].config_epoch;
        record.n_slots = cases[i].slots;
        record.slots = slots;
        slot.server_id = cases[i].server;
        slot.state = cases[i].state;
        put_message(&f, schema_key_segment(volume.id, cases[i].index), &record.base);
        expect_fatal(&f, -DL_E_STORE_DAMAGED, cases[i].text);
        assert_non_null(strstr(f.fatal_text, "egment"));
        fixture_fini(&f);
    }
}

/* Incoming slots are loaded; those that replace none are not.  So are records without one. */
static void
test_incoming_slots(void **state)
{
    static const struct {
        uint32_t server, state, attempt, number;
        const char *text; /* NULL: it is fine */
    } cases[] = {
        {4, DL__SLOT_STATE__SLOT_RECOVERING, 3, 2, NULL},
        {4, DL__SLOT_STATE__SLOT_EJECTED, 0, 0, NULL},
        {4, DL__SLOT_STATE__SLOT_RECOVERING, 3, 3, "replaces none"},
        {4, DL__SLOT_STATE__SLOT_IN_SYNC, 0, 2, "replaces none"},
        {4, DL__SLOT_STATE__SLOT_RECOVERING, 0, 2, "without an attempt"},
        {4, DL__SLOT_STATE__SLOT_RECOVERING, 4, 2, "an epoch above"},
        {0, DL__SLOT_STATE__SLOT_EJECTED, 0, 2, "no server"},
        {2, DL__SLOT_STATE__SLOT_EJECTED, 0, 2, "two slots on server 2"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fixture f;
        struct peer *servers[4], *client;
        Dl__Volume volume;
        Dl__Meta__SegmentRecord record = DL__META__SEGMENT_RECORD__INIT;
        Dl__Meta__SlotRecord slots[4], *pointers[4];
        Dl__MapReply *map;

        fixture_init(&f, NULL);
        add_servers(&f, servers, 4);
        client = fixture_client(&f);
        assert_int_equal(ask_create(client, "v", 64 * MIB, &volume), 0);
        fixture_crash(&f, 0);
        for (uint32_t k = 0; k < 4; k++) {
            dl__meta__slot_record__init(&slots[k]);
            slots[k].server_id = k < 3 ? k + 1 : cases[i].server;
            slots[k].state = k < 3 ? DL__SLOT_STATE__SLOT_IN_SYNC : cases[i].state;
            slots[k].incarnation = 1;
            pointers[k] = &slots[k];
        }
        slots[3].attempt = cases[i].attempt;
        slots[3].number = cases[i].number;
        record.config_epoch = 3;
        record.n_slots = 4;
        record.slots = pointers;
        put_message(&f, schema_key_segment(volume.id, 5), &record.base);
        if (cases[i].text != NULL) {
            expect_fatal(&f, -DL_E_STORE_DAMAGED, cases[i].text);
            fixture_fini(&f);
            continue;
        }
        /* As written before there were incoming slots. */
        record.config_epoch = 1;
        record.n_slots = 3;
        put_message(&f, schema_key_segment(volume.id, 6), &record.base);
        fixture_start(&f);
        assert_true(f.ready);
        client = fixture_client(&f);
        map = map_of(client, volume.id, 5);
        assert_int_equal(map->segments[0]->n_slots, 4);
        assert_int_equal(map->segments[0]->slots[3]->server_id, 4);
        assert_int_equal(map->segments[0]->slots[3]->number, cases[i].number);
        dl__map_reply__free_unpacked(map, NULL);
        map = map_of(client, volume.id, 6);
        assert_int_equal(map->segments[0]->n_slots, 3);
        dl__map_reply__free_unpacked(map, NULL);
        fixture_fini(&f);
    }
}

UNIT_MAIN(cmocka_unit_test(test_everything_is_there_again), cmocka_unit_test(test_grace_for_owners),
          cmocka_unit_test(test_crash_between_commit_and_answer),
          cmocka_unit_test(test_failed_commit_ends_the_service),
          cmocka_unit_test(test_second_service_ends_the_first),
          cmocka_unit_test(test_empty_and_foreign_stores), cmocka_unit_test(test_damaged_records),
          cmocka_unit_test(test_damaged_segments), cmocka_unit_test(test_incoming_slots))
