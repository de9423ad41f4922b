/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/meta/cluster.h"

#include <string.h>

#define FOUND_MAX 64u

void
cluster_init(struct cluster_test *t, uint32_t server_count, uint32_t segments,
             const struct meta_options *options)
{
    Dl__Volume volume;

    memset(t, 0, sizeof(*t));
    fixture_init(&t->f, options);
    t->server_count = server_count;
    for (uint32_t i = 0; i < server_count; i++)
        t->servers[i] = fixture_server(&t->f, i + 1, "h");
    t->client = fixture_client(&t->f);
    assert_int_equal(ask_create(t->client, "v", 512 * MIB, &volume), 0);
    assert_int_equal(ask_attach(t->client, "v", 1, NULL), 0);
    t->lease = 1;
    t->volume = volume.id;
    if (segments > 0)
        assert_int_equal(ask_allocate(t->client, volume.id, 1, 0, segments, NULL), 0);
}

void
cluster_server_goes(struct cluster_test *t, uint32_t id)
{
    peer_disconnect(t->servers[id - 1]);
    t->servers[id - 1]->server_id = 0;
}

void
cluster_server_returns(struct cluster_test *t, uint32_t id)
{
    peer_restart_server(t->servers[id - 1]);
    assert_int_equal(peer_register(t->servers[id - 1]), 0);
    assert_int_equal(t->servers[id - 1]->server_id, id);
}

void
cluster_service_restarts(struct cluster_test *t, bool servers_too)
{
    fixture_crash(&t->f, 0);
    fixture_start(&t->f);
    assert_true(t->f.ready);
    for (uint32_t i = 0; i < t->server_count; i++) {
        struct peer *server = t->servers[i];

        if (server->server_id == 0)
            continue;
        if (!servers_too) {
            server->start_count--; /* only its connection broke */
            server->instance[2]--;
        }
        cluster_server_returns(t, i + 1);
    }
    t->client = fixture_client(&t->f);
    assert_int_equal(ask_attach(t->client, "v", (uint8_t)t->lease, NULL), 0);
    fixture_settle(&t->f);
}

Dl__Slot
cluster_slot(struct cluster_test *t, uint32_t segment, uint32_t place)
{
    Dl__MapReply *map = map_of(t->client, t->volume, segment);
    Dl__Slot slot = DL__SLOT__INIT;

    if (place < map->segments[0]->n_slots)
        slot = *map->segments[0]->slots[place];
    dl__map_reply__free_unpacked(map, NULL);
    return slot;
}

uint32_t
cluster_epoch(struct cluster_test *t, uint32_t segment)
{
    Dl__MapReply *map = map_of(t->client, t->volume, segment);
    uint32_t epoch = map->segments[0]->config_epoch;

    dl__map_reply__free_unpacked(map, NULL);
    return epoch;
}

void
cluster_eject(struct cluster_test *t, uint32_t segment, uint32_t id)
{
    assert_int_equal(ask_eject(t->client, t->volume, t->lease, segment, cluster_epoch(t, segment),
                               id, 0, false, NULL),
                     0);
}

bool
cluster_recover(struct cluster_test *t, uint32_t segments)
{
    struct {
        struct peer *server;
        struct told told;
    } found[FOUND_MAX];
    uint32_t count = 0;

    /* First all, then the reports: those make others begin. */
    for (uint32_t i = 0; i < segments; i++) {
        for (uint32_t place = 0; place < 4; place++) {
            Dl__Slot slot = cluster_slot(t, i, place);
            const struct told *told;
            struct peer *server;

            if (slot.server_id == 0 || slot.state != R)
                continue;
            server = t->servers[slot.server_id - 1];
            told = peer_told(server, t->volume, i);
            if (server->server_id == 0 || told == NULL || told->attempt != slot.attempt)
                continue;
            assert_int_equal(told->slot, slot.number);
            assert_true(count < FOUND_MAX);
            found[count].server = server;
            found[count++].told = *told;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(ask_report(found[i].server, &found[i].told, true, 256), 0);
    fixture_run(&t->f, 600 * MS);
    return count > 0;
}

void
cluster_check_whole(struct cluster_test *t, uint32_t segments)
{
    for (uint32_t i = 0; i < segments; i++) {
        for (uint32_t place = 0; place < 3; place++)
            assert_int_equal(cluster_slot(t, i, place).state, I);
        assert_int_equal(cluster_slot(t, i, 3).server_id, 0);
    }
}
