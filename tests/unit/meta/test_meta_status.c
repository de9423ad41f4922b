/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CLUSTER_STATUS: healthy, degraded, blocked, and what to do in which words.
 */
#include "tests/unit/meta/fixture.h"

#include <string.h>

#define MIB (1ull << 20)

static Dl__ClusterStatusReply *
status_of(struct peer *client)
{
    Dl__ClusterStatus message = DL__CLUSTER_STATUS__INIT;
    ProtobufCMessage *reply;

    assert_int_equal(peer_ask(client, OP_CLUSTER_STATUS, &message.base,
                              &dl__cluster_status_reply__descriptor, &reply),
                     0);
    return (Dl__ClusterStatusReply *)reply;
}

/* The state, and a problem that contains the text; NULL: there is no problem. */
static void
expect(struct peer *client, const char *state, const char *problem)
{
    Dl__ClusterStatusReply *status = status_of(client);

    assert_string_equal(status->state, state);
    if (problem == NULL) {
        assert_int_equal(status->n_problems, 0);
    } else {
        bool found = false;

        for (size_t i = 0; i < status->n_problems; i++)
            found = found || strstr(status->problems[i], problem) != NULL;
        if (!found)
            fail_msg("no problem says '%s'; the first: %s", problem,
                     status->n_problems > 0 ? status->problems[0] : "none");
    }
    dl__cluster_status_reply__free_unpacked(status, NULL);
}

static void
test_status(void **state)
{
    struct fixture f;
    struct peer *servers[4], *client;
    Dl__ClusterStatusReply *status;
    Dl__Volume volume;

    (void)state;
    fixture_init(&f, NULL);
    client = fixture_client(&f);
    expect(client, "healthy", NULL);
    for (uint32_t i = 0; i < 4; i++)
        servers[i] = fixture_server(&f, i + 1, "h");
    assert_int_equal(ask_create(client, "v", 64 * MIB, &volume), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, volume.id, 1, 0, 1, NULL), 0);
    fixture_run(&f, SECOND);
    status = status_of(client);
    assert_string_equal(status->state, "healthy");
    assert_int_equal(status->servers_total, 4);
    assert_int_equal(status->servers_up, 4);
    assert_int_equal(status->volumes, 1);
    assert_true(status->volume_bytes == 64 * MIB);
    assert_int_equal(status->segments, 1);
    assert_true(status->capacity_bytes == 4ull << 40);
    assert_true(status->uptime_ms >= 1000);
    assert_memory_equal(status->cluster_id.data, "cluster-of-tests", 16);
    dl__cluster_status_reply__free_unpacked(status, NULL);

    /* A server without chunks is no harm, one with chunks is. */
    {
        Dl__MapReply *map;
        bool used[4] = {false};
        uint32_t unused = 0, one_used = 0;

        assert_int_equal(ask_map(client, volume.id, 1, 0, 0, &map), 0);
        for (unsigned i = 0; i < 3; i++)
            used[map->segments[0]->slots[i]->server_id - 1] = true;
        dl__map_reply__free_unpacked(map, NULL);
        for (uint32_t i = 0; i < 4; i++) {
            if (used[i])
                one_used = i;
            else
                unused = i;
        }
        peer_disconnect(servers[unused]);
        expect(client, "degraded", "connection lost");
        fixture_run(&f, 6 * SECOND);
        expect(client, "degraded", "down");
        peer_disconnect(servers[one_used]);
        fixture_run(&f, 6 * SECOND);
        expect(client, "degraded", "start dlblk-chunkserver");
        expect(client, "degraded", servers[one_used]->address);
        expect(client, "degraded", "1 segment has fewer copies than 3");

        /* A deletion that waits for it. */
        assert_int_equal(ask_detach(client, volume.id, 1, true), 0);
        assert_int_equal(ask_delete(client, "v"), 0);
        fixture_settle(&f);
        expect(client, "degraded", "volume v is deleted, but its chunks on server");
        status = status_of(client);
        assert_int_equal(status->volumes, 0);
        dl__cluster_status_reply__free_unpacked(status, NULL);
        peer_restart_server(servers[one_used]);
        assert_int_equal(peer_register(servers[one_used]), 0);
        peer_restart_server(servers[unused]);
        assert_int_equal(peer_register(servers[unused]), 0);
        fixture_settle(&f);
        expect(client, "healthy", NULL);
    }
    fixture_fini(&f);
}

static void
test_waiting_attach_is_a_problem(void **state)
{
    struct fixture f;
    struct peer *servers[3], *client;
    Dl__Volume volume;
    Dl__Attach message;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        servers[i] = fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "v", 64 * MIB, &volume), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, volume.id, 1, 0, 1, NULL), 0);
    assert_int_equal(ask_detach(client, volume.id, 1, false), 0);
    for (unsigned i = 0; i < 3; i++)
        servers[i]->silent_command = true;
    fill_attach(&message, "v", 2);
    (void)peer_send(client, OP_ATTACH, &message.base);
    fixture_settle(&f);
    expect(client, "blocked", "volume v: its attach waits for server");
    fixture_fini(&f);
}

static void
test_full_and_stopped(void **state)
{
    struct meta_options options = {.segments_max = 100};
    struct fixture f;
    struct peer *servers[3], *client;
    Dl__ServerHeartbeat heartbeat = DL__SERVER_HEARTBEAT__INIT;
    Dl__Volume volume;

    (void)state;
    fixture_init(&f, &options);
    for (uint32_t i = 0; i < 3; i++)
        servers[i] = fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    heartbeat.capacity_bytes = 1000 * MIB;
    heartbeat.used_bytes = 950 * MIB;
    heartbeat.available_bytes = 50 * MIB;
    assert_int_equal(peer_ask(servers[0], OP_SERVER_HEARTBEAT, &heartbeat.base, NULL, NULL), 0);
    expect(client, "degraded", "95 % full");
    heartbeat.stopped = (char *)(uintptr_t) "the drive failed a flush";
    assert_int_equal(peer_ask(servers[0], OP_SERVER_HEARTBEAT, &heartbeat.base, NULL, NULL), 0);
    expect(client, "degraded", "takes no writes: the drive failed a flush");
    heartbeat = (Dl__ServerHeartbeat)DL__SERVER_HEARTBEAT__INIT;
    heartbeat.capacity_bytes = heartbeat.available_bytes = 1000 * MIB;
    assert_int_equal(peer_ask(servers[0], OP_SERVER_HEARTBEAT, &heartbeat.base, NULL, NULL), 0);
    expect(client, "healthy", NULL);

    assert_int_equal(ask_create(client, "v", 100 * MIB, &volume), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, volume.id, 1, 0, 90, NULL), 0);
    expect(client, "degraded", "90 segments are allocated, of at most 100");
    assert_int_equal(ask_allocate(client, volume.id, 1, 90, 10, NULL), 0);
    expect(client, "blocked", "100 segments are allocated, of at most 100");
    fixture_fini(&f);
}

UNIT_MAIN(cmocka_unit_test(test_status), cmocka_unit_test(test_waiting_attach_is_a_problem),
          cmocka_unit_test(test_full_and_stopped))
