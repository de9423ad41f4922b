/* SPDX-License-Identifier: Apache-2.0 */
/* map.c: where the segments are, as the metadata service's store says.  See cluster.h. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "meta/internal.h"
#include "meta/schema.h"
#include "tests/sim/cluster.h"

#define MAP_IDS_MAX  64u
#define NEVER_OUT_NS (100 * SIM_S) /* nobody is away for so long */

/* The next server's record from item *idx on; false: there is none any more. */
static bool
map_next_server(struct cluster *cluster, uint32_t *idx, struct server_desc *ret_desc)
{
    struct store_memory_db *db = cluster->meta.db;
    struct dl_error err;
    uint32_t id;

    while (*idx < store_memory_db_count(db)) {
        struct store_item item = store_memory_db_item(db, (*idx)++);

        if (!schema_parse_server(item.key, &id))
            continue;
        sim_require(&cluster->world, meta_record_get_server(item, ret_desc, &err) == 0,
                    "the record of server %u can't be read: %s", id, err.text);
        return true;
    }
    return false;
}

bool
map_find_server(struct cluster *cluster, const uint8_t uuid[16], struct server_desc *ret_desc)
{
    uint32_t idx = 0;

    while (map_next_server(cluster, &idx, ret_desc))
        if (memcmp(ret_desc->uuid, uuid, sizeof(ret_desc->uuid)) == 0)
            return true;
    return false;
}

/* Who has which id, for one look at the map. */
struct map_servers {
    struct sim_server *servers[MAP_IDS_MAX];
};

static void
map_read_servers(struct cluster *cluster, struct map_servers *ret_servers)
{
    struct server_desc desc;
    uint32_t idx = 0;

    *ret_servers = (struct map_servers){0};
    while (map_next_server(cluster, &idx, &desc)) {
        sim_require(&cluster->world, desc.id < MAP_IDS_MAX, "server id %u", desc.id);
        for (uint32_t k = 0; k < cluster->server_count; k++)
            if (memcmp(cluster->servers[k].uuid, desc.uuid, sizeof(desc.uuid)) == 0)
                ret_servers->servers[desc.id] = &cluster->servers[k];
    }
}

static void
map_read_segment(struct cluster *cluster, struct store_item item, const struct map_servers *servers,
                 struct sim_segment *ret_segment)
{
    struct segment *found = calloc(1, sizeof(*found) + SIM_PLACES_MAX * sizeof(found->slots[0]));
    uint32_t replicas = cluster->profile.replicas;
    bool told;
    struct dl_error err;

    *ret_segment = (struct sim_segment){0};
    sim_require(&cluster->world,
                found != NULL && meta_record_get_segment(item, found, replicas, &told, &err) == 0,
                "the record of a segment can't be read: %s", err.text);
    (void)schema_parse_segment(item.key, &ret_segment->volume, &ret_segment->index);
    ret_segment->config_epoch = found->config_epoch;
    for (uint32_t i = 0; i <= replicas; i++) {
        const struct segment_slot *slot = &found->slots[i];

        if (slot->server_id == 0)
            continue;
        ret_segment->places[ret_segment->place_count++] = (struct sim_place){
            .server = servers->servers[slot->server_id],
            .state = slot->state,
            .number = slot->number,
        };
    }
    free(found);
}

void
map_for_each(struct cluster *cluster,
             void (*fn)(struct cluster *cluster, const struct sim_segment *segment, void *context),
             void *context)
{
    struct store_memory_db *db = cluster->meta.db;
    struct map_servers servers;
    struct sim_segment segment;
    uint64_t volume;
    uint32_t index;

    map_read_servers(cluster, &servers);
    for (uint32_t i = 0; i < store_memory_db_count(db); i++) {
        struct store_item item = store_memory_db_item(db, i);

        if (!schema_parse_segment(item.key, &volume, &index))
            continue;
        map_read_segment(cluster, item, &servers, &segment);
        fn(cluster, &segment, context);
    }
}

static bool
place_is_in_sync(const struct sim_place *place)
{
    return place->state == DL__SLOT_STATE__SLOT_IN_SYNC;
}

static uint32_t
segment_in_sync(const struct sim_segment *segment)
{
    uint32_t in_sync = 0;

    for (uint32_t i = 0; i < segment->place_count; i++)
        in_sync += place_is_in_sync(&segment->places[i]);
    return in_sync;
}

static void
add_config_epoch(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    uint64_t *sum = context;

    (void)cluster;
    *sum += segment->config_epoch;
}

uint64_t
map_config_epochs(struct cluster *cluster)
{
    uint64_t sum = 0;

    map_for_each(cluster, add_config_epoch, &sum);
    return sum;
}

/* --- of one server --- */

struct places_of {
    const struct sim_server *server;
    bool scratch_too;
    uint32_t count;
    uint32_t least;
};

static void
count_places(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    struct places_of *of = context;
    uint32_t in_sync = segment_in_sync(segment);
    bool counts = of->scratch_too || cluster_volume(cluster, segment->volume) != NULL;

    for (uint32_t i = 0; i < segment->place_count; i++) {
        if (segment->places[i].server != of->server)
            continue;
        of->count += counts;
        if (place_is_in_sync(&segment->places[i]) && in_sync < of->least)
            of->least = in_sync;
    }
}

uint32_t
map_count_places(struct cluster *cluster, const struct sim_server *server, bool scratch_too)
{
    struct places_of of = {.server = server, .scratch_too = scratch_too};

    map_for_each(cluster, count_places, &of);
    return of.count;
}

uint32_t
map_in_sync_least(struct cluster *cluster, const struct sim_server *server)
{
    struct places_of of = {.server = server, .least = UINT32_MAX};

    map_for_each(cluster, count_places, &of);
    return of.least;
}

/* --- what must be so at any time --- */

/* May the metadata service by itself go below min_write?  Then one copy is the least. */
static uint32_t
in_sync_least(const struct cluster *cluster)
{
    bool below = cluster->profile.out_after_ns < NEVER_OUT_NS || cluster->damage_done;

    return below ? 1 : cluster->profile.min_write;
}

static void
check_segment(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    uint32_t numbers = 0;

    (void)context;
    cluster->counters.maps_checked++;
    sim_require(&cluster->world, segment_in_sync(segment) >= in_sync_least(cluster),
                "volume %" PRIu64 " segment %u: %u slots are in-sync under config epoch %u",
                segment->volume, segment->index, segment_in_sync(segment), segment->config_epoch);
    sim_require(&cluster->world, segment->place_count <= cluster->profile.replicas + 1,
                "volume %" PRIu64 " segment %u has %u places", segment->volume, segment->index,
                segment->place_count);
    for (uint32_t i = 0; i < segment->place_count; i++) {
        const struct sim_server *server = segment->places[i].server;

        numbers |= 1u << segment->places[i].number;
        for (uint32_t k = 0; k < i && server != NULL; k++)
            sim_require(&cluster->world, segment->places[k].server != server,
                        "volume %" PRIu64 " segment %u has two places on %s", segment->volume,
                        segment->index, server->process.name);
    }
    sim_require(&cluster->world, numbers == (1u << cluster->profile.replicas) - 1,
                "volume %" PRIu64 " segment %u has slots %#x", segment->volume, segment->index,
                numbers);
}

void
map_check(struct cluster *cluster)
{
    map_for_each(cluster, check_segment, NULL);
}

/* --- is everything as it should be? --- */

static void
count_not_whole(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    uint32_t *count = context;

    *count += segment_in_sync(segment) != cluster->profile.replicas ||
              segment->place_count != cluster->profile.replicas;
    for (uint32_t i = 0; i < segment->place_count; i++) {
        const struct sim_server *server = segment->places[i].server;

        *count += server == NULL || server->gone || server->drained;
    }
}

/* The next server from item *idx on that the metadata service knows though its disk is gone. */
static bool
map_next_leftover(struct cluster *cluster, uint32_t *idx, struct server_desc *ret_desc)
{
    while (map_next_server(cluster, idx, ret_desc)) {
        const struct sim_server *server = NULL;

        for (uint32_t k = 0; k < cluster->server_count; k++)
            if (memcmp(cluster->servers[k].uuid, ret_desc->uuid, sizeof(ret_desc->uuid)) == 0)
                server = &cluster->servers[k];
        if (server == NULL || server->gone)
            return true;
    }
    return false;
}

bool
map_find_leftover(struct cluster *cluster, struct server_desc *ret_desc)
{
    uint32_t idx = 0;

    return map_next_leftover(cluster, &idx, ret_desc);
}

static uint32_t
count_leftovers(struct cluster *cluster)
{
    struct server_desc desc;
    uint32_t idx = 0, count = 0;

    while (map_next_leftover(cluster, &idx, &desc))
        count++;
    return count;
}

bool
map_is_whole(const struct cluster *constant)
{
    struct cluster *cluster = (struct cluster *)(uintptr_t)constant;
    struct store_memory_db *db = cluster->meta.db;
    uint32_t count = count_leftovers(cluster);

    map_for_each(cluster, count_not_whole, &count);
    for (uint32_t i = 0; i < store_memory_db_count(db) && count == 0; i++) {
        uint32_t server_id, segment, incarnation;
        uint64_t volume;
        uint8_t slot;

        count += schema_parse_removal(store_memory_db_item(db, i).key, &server_id, &volume,
                                      &segment, &slot, &incarnation);
    }
    return count == 0;
}

static void
print_segment(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    uint32_t count = 0;

    count_not_whole(cluster, segment, &count);
    if (count == 0)
        return;
    (void)context;
    (void)fprintf(stderr, "  volume %" PRIu64 " segment %u config epoch %u:", segment->volume,
                  segment->index, segment->config_epoch);
    for (uint32_t i = 0; i < segment->place_count; i++) {
        const struct sim_server *server = segment->places[i].server;

        (void)fprintf(stderr, " slot %u %s on %s%s", segment->places[i].number,
                      place_is_in_sync(&segment->places[i])                         ? "in-sync"
                      : segment->places[i].state == DL__SLOT_STATE__SLOT_RECOVERING ? "recovering"
                                                                                    : "ejected",
                      server == NULL ? "?" : server->process.name,
                      server != NULL && server->drained ? " (drained)" : "");
    }
    (void)fputc('\n', stderr);
}

void
map_print_unfinished(struct cluster *cluster)
{
    struct server_desc desc;
    uint32_t idx = 0;

    map_for_each(cluster, print_segment, NULL);
    while (map_next_server(cluster, &idx, &desc))
        (void)fprintf(stderr,
                      "  server %u at %s: start %" PRIu64 " (%" PRIu64 "), position %" PRIu64
                      ", admin state %d\n",
                      desc.id, desc.address, desc.start_count, desc.start_count_highest,
                      desc.journal_position, (int)desc.admin_state);
    if (count_leftovers(cluster) > 0)
        (void)fprintf(stderr, "  %u servers are gone, and known still\n", count_leftovers(cluster));
}

static void
count_bad(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    uint32_t *count = context;

    for (uint32_t i = 0;
         cluster_volume(cluster, segment->volume) != NULL && i < segment->place_count; i++) {
        struct chunk_key key = {segment->volume, segment->index, segment->places[i].number};
        const struct sim_server *server = segment->places[i].server;
        const struct chunk *chunk = server == NULL ? NULL
                                                   : chunk_table_find(server->disk.chunks, &key);
        const struct model_chunk *content = chunk == NULL ? NULL : chunk->store_private;

        for (uint32_t k = 0; content != NULL && k < content->sector_count; k++)
            *count += !model_sector_is_good(chunk, k);
    }
}

uint32_t
map_count_bad(const struct cluster *constant)
{
    struct cluster *cluster = (struct cluster *)(uintptr_t)constant;
    uint32_t count = 0;

    map_for_each(cluster, count_bad, &count);
    return count;
}

bool
map_is_good(const struct cluster *cluster)
{
    return map_count_bad(cluster) == 0;
}
