/* SPDX-License-Identifier: Apache-2.0 */
/* verdict.c: what the disks must hold in the end.  See cluster.h. */
#include <inttypes.h>
#include <string.h>

#include "tests/sim/cluster.h"

/* The chunk of a slot, wherever it is; NULL: never written. */
static struct chunk *
find_copy(struct cluster *cluster, const struct chunk_key *key)
{
    struct chunk *found = NULL;

    for (uint32_t i = 0; i < cluster->profile.server_count; i++) {
        struct chunk *chunk = chunk_table_find(cluster->servers[i].disk.chunks, key);

        if (chunk == NULL)
            continue;
        sim_require(&cluster->world, found == NULL,
                    "volume %" PRIu64 " segment %u slot %u is on two servers", key->volume,
                    key->segment, key->slot);
        found = chunk;
    }
    return found;
}

static const struct model_sector *
copy_sector(const struct chunk *chunk, uint32_t idx)
{
    static const struct model_sector hole = {.kind = SECTOR_HOLE};
    const struct model_chunk *content = chunk == NULL ? NULL : chunk->store_private;

    return content == NULL || idx >= content->sector_count ? &hole : &content->sectors[idx];
}

static void
compare_sector(struct cluster *cluster, const struct chunk_key *key, uint32_t idx,
               const struct model_sector *a, const struct model_sector *b)
{
    bool same = a->kind == b->kind && a->version == b->version && a->crc == b->crc &&
                (a->kind != SECTOR_DATA || memcmp(a->data, b->data, SECTOR_BYTES) == 0);

    sim_require(&cluster->world, same,
                "volume %" PRIu64 " segment %u sector %u: slot 0 has kind %d version %#" PRIx64
                " crc %#x, slot %u has kind %d version %#" PRIx64 " crc %#x",
                key->volume, key->segment, idx, (int)a->kind, a->version, a->crc, key->slot,
                (int)b->kind, b->version, b->crc);
    cluster->counters.sectors_compared++;
}

static void
compare_segment(struct cluster *cluster, const struct sim_volume *volume, uint32_t segment)
{
    struct chunk_key key = {.volume = volume->id, .segment = segment};
    struct chunk *first = find_copy(cluster, &key);

    for (uint32_t slot = 0; slot < cluster->profile.replicas; slot++) {
        struct chunk *copy;

        key.slot = slot;
        copy = find_copy(cluster, &key);
        sim_require(&cluster->world, copy == NULL || copy->pending_count == 0,
                    "volume %" PRIu64 " segment %u slot %u: %u writes pending after a clean close",
                    key.volume, segment, slot, copy->pending_count);
        cluster->counters.chunks_compared += copy != NULL;
        for (uint32_t i = 0; i < volume->segment_bytes / SECTOR_BYTES && slot > 0; i++)
            compare_sector(cluster, &key, i, copy_sector(first, i), copy_sector(copy, i));
    }
}

void
verdict_compare_copies(struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++) {
        const struct sim_volume *volume = &cluster->volumes[i];
        uint32_t segments = (uint32_t)(volume->size_bytes / volume->segment_bytes) +
                            volume->stripe_width;

        for (uint32_t segment = 0; segment < segments; segment++)
            compare_segment(cluster, volume, segment);
    }
}

static bool
volume_lives(const struct cluster *cluster, uint64_t id)
{
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++)
        if (cluster->volumes[i].id == id)
            return true;
    return false;
}

bool
verdict_deleted_are_gone(const struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->profile.server_count; i++) {
        struct chunk *chunk, *next;

        HASH_ITER (by_key, cluster->servers[i].disk.chunks->by_key, chunk, next)
            if (!volume_lives(cluster, chunk->key.volume))
                return false;
    }
    return true;
}
