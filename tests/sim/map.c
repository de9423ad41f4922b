/* SPDX-License-Identifier: Apache-2.0 */
/* map.c: where the segments are, as the metadata service's store says.  See cluster.h. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "meta/internal.h"
#include "meta/schema.h"
#include "tests/sim/cluster.h"

/* The server with this id; NULL: it never came up. */
static struct sim_server *
map_server(struct cluster *cluster, uint32_t id)
{
    struct store_memory_db *db = cluster->meta.db;
    struct schema_key key = schema_key_server(id);
    struct server_desc desc;
    struct dl_error err;

    for (uint32_t i = 0; i < store_memory_db_count(db); i++) {
        struct store_item item = store_memory_db_item(db, i);

        if (store_bytes_compare(item.key, schema_bytes(&key)) != 0)
            continue;
        sim_require(&cluster->world, meta_record_get_server(item, &desc, &err) == 0,
                    "the record of server %u can't be read: %s", id, err.text);
        for (uint32_t k = 0; k < cluster->profile.server_count; k++)
            if (memcmp(cluster->servers[k].uuid, desc.uuid, sizeof(desc.uuid)) == 0)
                return &cluster->servers[k];
    }
    return NULL;
}

static void
map_read_segment(struct cluster *cluster, struct store_item item, struct sim_segment *ret_segment)
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
            .server = map_server(cluster, slot->server_id),
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
    struct sim_segment segment;
    uint64_t volume;
    uint32_t index;

    for (uint32_t i = 0; i < store_memory_db_count(db); i++) {
        struct store_item item = store_memory_db_item(db, i);

        if (!schema_parse_segment(item.key, &volume, &index))
            continue;
        map_read_segment(cluster, item, &segment);
        fn(cluster, &segment, context);
    }
}

/* --- is everything as it should be? --- */

static void
count_not_whole(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    uint32_t *count = context;
    uint32_t in_sync = 0;

    for (uint32_t i = 0; i < segment->place_count; i++)
        in_sync += segment->places[i].state == DL__SLOT_STATE__SLOT_IN_SYNC;
    *count += in_sync != cluster->profile.replicas ||
              segment->place_count != cluster->profile.replicas;
}

bool
map_is_whole(const struct cluster *constant)
{
    struct cluster *cluster = (struct cluster *)(uintptr_t)constant;
    struct store_memory_db *db = cluster->meta.db;
    uint32_t count = 0;

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
