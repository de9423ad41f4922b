/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: allocation over distinct failure domains, repetitions, limits, what is said when
 *           servers are down or full, maps in pages.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)

struct segment_test {
    struct fixture f;
    struct peer *servers[6];
    struct peer *client;
    Dl__Volume volume;
};

/* 6 servers on 3 hosts; a volume of 64 segments on distinct hosts, attached. */
static void
segment_init(struct segment_test *t, const struct meta_options *options)
{
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    ProtobufCMessage *reply;

    fixture_init(&t->f, options);
    for (uint32_t i = 0; i < 6; i++) {
        char host[8];

        (void)snprintf(host, sizeof(host), "h%u", i / 2);
        t->servers[i] = fixture_server(&t->f, i + 1, host);
    }
    t->client = fixture_client(&t->f);
    message.name = (char *)(uintptr_t) "v";
    message.size_bytes = 64 * MIB;
    message.segment_bytes = MIB;
    assert_int_equal(
        peer_ask(t->client, OP_VOLUME_CREATE, &message.base, &dl__volume_reply__descriptor, &reply),
        0);
    t->volume = *((Dl__VolumeReply *)reply)->volume;
    protobuf_c_message_free_unpacked(reply, NULL);
    assert_int_equal(ask_attach(t->client, "v", 1, NULL), 0);
}

static uint32_t
host_of(uint32_t server_id)
{
    return (server_id - 1) / 2;
}

static void
check_segment(const Dl__Segment *segment, uint32_t index)
{
    assert_int_equal(segment->index, index);
    assert_int_equal(segment->config_epoch, 1);
    assert_int_equal(segment->n_slots, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(segment->slots[i]->state, DL__SLOT_STATE__SLOT_IN_SYNC);
        for (size_t k = 0; k < i; k++)
            assert_int_not_equal(host_of(segment->slots[i]->server_id),
                                 host_of(segment->slots[k]->server_id));
    }
}

static void
test_allocation(void **state)
{
    struct segment_test t;
    Dl__MapReply *first, *again;

    (void)state;
    segment_init(&t, NULL);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 10, 16, &first), 0);
    assert_int_equal(first->n_segments, 16);
    for (uint32_t i = 0; i < 16; i++)
        check_segment(first->segments[i], 10 + i);
    assert_in_range(first->n_servers, 3, 6);
    for (size_t i = 0; i < first->n_servers; i++) {
        assert_int_equal(first->servers[i]->uuid.len, 16);
        assert_true(strncmp(first->servers[i]->address, "127.0.0.1:1000", 14) == 0);
        assert_int_equal(first->servers[i]->state, DL__SERVER_STATE__SERVER_UP);
    }
    /* Half of them again: those as they are, the others new. */
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 18, 16, &again), 0);
    assert_int_equal(again->n_segments, 16);
    for (uint32_t i = 0; i < 8; i++)
        for (unsigned k = 0; k < 3; k++)
            assert_int_equal(again->segments[i]->slots[k]->server_id,
                             first->segments[i + 8]->slots[k]->server_id);
    dl__map_reply__free_unpacked(first, NULL);
    dl__map_reply__free_unpacked(again, NULL);
    fixture_fini(&t.f);
}

static void
test_one_commit_per_batch(void **state)
{
    struct segment_test t;
    uint64_t revision;

    (void)state;
    segment_init(&t, NULL);
    revision = store_memory_db_revision(t.f.db);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 64, NULL), 0);
    assert_int_equal(store_memory_db_revision(t.f.db), revision + 1);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 64, NULL), 0); /* nothing to do */
    assert_int_equal(store_memory_db_revision(t.f.db), revision + 1);
    fixture_fini(&t.f);
}

static void
test_bad_requests(void **state)
{
    struct segment_test t;
    Dl__Allocate message = DL__ALLOCATE__INIT;
    uint32_t doubles[4] = {5, 5, 4, 5};
    Dl__MapReply *map;
    ProtobufCMessage *reply;

    (void)state;
    segment_init(&t, NULL);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 0, NULL), -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, META_ALLOCATE_MAX + 1, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 64, 1, NULL), -DL_E_RANGE);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 63, 2, NULL), -DL_E_RANGE);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, UINT32_MAX, 1, NULL), -DL_E_RANGE);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 0, 0, 1, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 2, 0, 1, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_allocate(t.client, t.volume.id, UINT32_MAX, 0, 1, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_allocate(t.client, t.volume.id + 1, 1, 0, 1, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_map(t.client, t.volume.id, 0, 0, 0, &map), 0);
    assert_int_equal(map->n_segments, 0); /* none of these did anything */
    dl__map_reply__free_unpacked(map, NULL);

    message.volume = t.volume.id;
    message.lease_epoch = 1;
    message.segments = doubles;
    message.n_segments = 4;
    assert_int_equal(
        peer_ask(t.client, OP_ALLOCATE, &message.base, &dl__map_reply__descriptor, &reply), 0);
    map = (Dl__MapReply *)reply;
    assert_int_equal(map->n_segments, 4); /* as asked */
    check_segment(map->segments[0], 5);
    check_segment(map->segments[2], 4);
    dl__map_reply__free_unpacked(map, NULL);
    assert_int_equal(ask_map(t.client, t.volume.id, 1, 0, 0, &map), 0);
    assert_int_equal(map->n_segments, 2);
    dl__map_reply__free_unpacked(map, NULL);
    fixture_fini(&t.f);
}

static void
test_map_in_pages(void **state)
{
    struct segment_test t;
    Dl__MapReply *map;
    uint32_t first = 0, seen = 0;
    bool more = true;

    (void)state;
    segment_init(&t, NULL);
    for (uint32_t i = 0; i < 64; i += 3)
        assert_int_equal(ask_allocate(t.client, t.volume.id, 1, i, 1, NULL), 0);
    while (more) {
        assert_int_equal(ask_map(t.client, t.volume.id, 1, first, 5, &map), 0);
        assert_true(map->n_segments <= 5);
        for (size_t i = 0; i < map->n_segments; i++) {
            assert_int_equal(map->segments[i]->index, 3 * seen);
            seen++;
        }
        assert_true(map->n_servers >= 3 || map->n_segments == 0);
        first = 3 * seen - 2;
        more = map->more;
        dl__map_reply__free_unpacked(map, NULL);
    }
    assert_int_equal(seen, 22);
    assert_int_equal(ask_map(t.client, t.volume.id, 1, UINT32_MAX, 5, &map), 0);
    assert_int_equal(map->n_segments, 0);
    assert_false(map->more);
    dl__map_reply__free_unpacked(map, NULL);
    assert_int_equal(ask_map(t.client, t.volume.id, 9, 0, 0, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_map(t.client, 77, 0, 0, 0, NULL), -DL_E_VOLUME_UNKNOWN);
    fixture_fini(&t.f);
}

/* --- servers that can't take anything --- */

static void
test_down_servers_get_nothing(void **state)
{
    struct segment_test t;
    Dl__MapReply *map;

    (void)state;
    segment_init(&t, NULL);
    peer_disconnect(t.servers[0]);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 32, &map), 0);
    for (size_t i = 0; i < map->n_segments; i++)
        for (unsigned k = 0; k < 3; k++)
            assert_int_not_equal(map->segments[i]->slots[k]->server_id, 1);
    dl__map_reply__free_unpacked(map, NULL);

    peer_disconnect(t.servers[1]); /* the whole host */
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 40, 1, NULL), -DL_E_SERVER_DOWN);
    assert_non_null(strstr(fixture_error_text(), "needs 3 hosts, and 2 can take one"));
    assert_non_null(strstr(fixture_error_text(), "server 1 is down"));
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 32, NULL), 0); /* those are there */
    peer_restart_server(t.servers[1]);
    assert_int_equal(peer_register(t.servers[1]), 0);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 40, 1, NULL), 0);
    fixture_fini(&t.f);
}

static void
heartbeat(struct peer *server, uint64_t capacity, uint64_t used, const char *stopped)
{
    Dl__ServerHeartbeat message = DL__SERVER_HEARTBEAT__INIT;

    message.capacity_bytes = capacity;
    message.used_bytes = used;
    message.available_bytes = capacity - used;
    message.stopped = (char *)(uintptr_t)stopped;
    assert_int_equal(peer_ask(server, OP_SERVER_HEARTBEAT, &message.base, NULL, NULL), 0);
}

static void
test_full_servers_get_nothing(void **state)
{
    struct segment_test t;
    Dl__MapReply *map;
    uint32_t seen = 0;

    (void)state;
    segment_init(&t, NULL);
    heartbeat(t.servers[2], 1000 * MIB, 999 * MIB + 1, ""); /* less than a segment */
    heartbeat(t.servers[3], 1000 * MIB, 1000 * MIB, "");
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 1, NULL), -DL_E_NO_SPACE);
    assert_non_null(strstr(fixture_error_text(), "server 3 is full"));
    /* One that takes no writes is waited for as one that is down; a full one is not. */
    heartbeat(t.servers[3], 1000 * MIB, 0, "the drive failed a flush");
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 1, &map), 0);
    for (unsigned k = 0; k < 3; k++) {
        bool is_on_4 = map->segments[0]->slots[k]->server_id == 4;

        assert_int_not_equal(map->segments[0]->slots[k]->server_id, 3);
        assert_int_equal(map->segments[0]->slots[k]->state,
                         is_on_4 ? DL__SLOT_STATE__SLOT_EJECTED : DL__SLOT_STATE__SLOT_IN_SYNC);
        seen += is_on_4;
    }
    assert_int_equal(seen, 1);
    dl__map_reply__free_unpacked(map, NULL);
    heartbeat(t.servers[4], 1000 * MIB, 1000 * MIB, "");
    heartbeat(t.servers[5], 1000 * MIB, 1000 * MIB, "");
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 1, 1, NULL), -DL_E_NO_SPACE);
    assert_non_null(strstr(fixture_error_text(), "server 4 is taking no writes"));
    heartbeat(t.servers[3], 1000 * MIB, 0, "");
    heartbeat(t.servers[5], 1000 * MIB, 0, "");
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 1, 1, NULL), 0);
    fixture_fini(&t.f);
}

static void
test_limit_of_segments(void **state)
{
    struct meta_options options = {.segments_max = 10};
    struct segment_test t;

    (void)state;
    segment_init(&t, &options);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 8, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 6, 5, NULL), -DL_E_LIMIT);
    assert_non_null(strstr(fixture_error_text(), "at most 10"));
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 6, 4, NULL), 0); /* 2 of them are new */
    fixture_fini(&t.f);
}

/* --- cliques and racks --- */

static void
test_clique_and_rack(void **state)
{
    struct fixture f;
    struct peer *client;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    Dl__MapReply *map;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 12; i++) {
        struct peer *server = fixture_server_hello(&f, i + 1, "h");

        (void)snprintf(server->clique, sizeof(server->clique), i % 2 == 0 ? "even" : "odd");
        if (i < 10) /* two have no rack */
            (void)snprintf(server->rack, sizeof(server->rack), "r%u", i / 2);
        assert_int_equal(peer_register(server), 0);
    }
    client = fixture_client(&f);
    message.name = (char *)(uintptr_t) "v";
    message.size_bytes = 64 * MIB;
    message.segment_bytes = MIB;
    message.policy = &policy;
    policy.clique = (char *)(uintptr_t) "odd";
    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_RACK;
    policy.replicas = 6;
    assert_int_equal(peer_ask(client, OP_VOLUME_CREATE, &message.base, NULL, NULL),
                     -DL_E_TOO_FEW_DOMAINS);
    assert_non_null(strstr(fixture_error_text(), "clique odd has 5 racks"));
    policy.replicas = 4;
    assert_int_equal(peer_ask(client, OP_VOLUME_CREATE, &message.base, NULL, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, 1, 1, 0, 64, &map), 0);
    for (size_t i = 0; i < map->n_segments; i++) {
        assert_int_equal(map->segments[i]->n_slots, 4);
        for (unsigned k = 0; k < 4; k++) {
            uint32_t id = map->segments[i]->slots[k]->server_id;

            assert_true(id % 2 == 0 && id <= 10); /* odd index, with a rack */
            for (unsigned l = 0; l < k; l++)
                assert_int_not_equal(id, map->segments[i]->slots[l]->server_id);
        }
    }
    dl__map_reply__free_unpacked(map, NULL);
    fixture_fini(&f);
}

/* Striping: the last stripe set counts whole. */
static void
test_last_stripe_set_is_whole(void **state)
{
    struct fixture f;
    struct peer *client;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    message.name = (char *)(uintptr_t) "v";
    message.size_bytes = 4 * MIB + 4096;
    message.segment_bytes = MIB;
    message.stripe_width = 4;
    message.policy = &policy;
    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    assert_int_equal(peer_ask(client, OP_VOLUME_CREATE, &message.base, NULL, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, 1, 1, 7, 1, NULL), 0);
    assert_int_equal(ask_allocate(client, 1, 1, 8, 1, NULL), -DL_E_RANGE);
    fixture_fini(&f);
}

/* Large maps: the first part with the attach, the rest by MAP_GET. */
static void
test_large_map(void **state)
{
    struct fixture f;
    struct peer *client;
    Dl__Volume volume;
    Dl__AttachReply *reply;
    Dl__MapReply *map;
    uint32_t first = 0, seen = 0;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "v", 10000 * MIB, &volume), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    for (uint32_t i = 0; i < 10000; i += 1000)
        assert_int_equal(ask_allocate(client, volume.id, 1, i, 1000, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, &reply), 0);
    assert_int_equal(reply->segments_total, 10000);
    assert_int_equal(reply->n_segments, META_MAP_PAGE);
    first = seen = (uint32_t)reply->n_segments;
    dl__attach_reply__free_unpacked(reply, NULL);
    do {
        assert_int_equal(ask_map(client, volume.id, 1, first, 0, &map), 0);
        seen += (uint32_t)map->n_segments;
        first = map->segments[map->n_segments - 1]->index + 1;
        dl__map_reply__free_unpacked(map, NULL);
    } while (seen < 10000);
    assert_int_equal(first, 10000);
    fixture_fini(&f);
}

UNIT_MAIN(cmocka_unit_test(test_allocation), cmocka_unit_test(test_one_commit_per_batch),
          cmocka_unit_test(test_bad_requests), cmocka_unit_test(test_map_in_pages),
          cmocka_unit_test(test_down_servers_get_nothing),
          cmocka_unit_test(test_full_servers_get_nothing), cmocka_unit_test(test_limit_of_segments),
          cmocka_unit_test(test_clique_and_rack), cmocka_unit_test(test_last_stripe_set_is_whole),
          cmocka_unit_test(test_large_map))
