/* SPDX-License-Identifier: Apache-2.0 */
/* verdict.c: what the disks must hold in the end.  See cluster.h. */
#include <inttypes.h>
#include <string.h>

#include "tests/sim/cluster.h"

/* The chunk of a slot where the map says; NULL: never written.  Nobody else has one. */
static struct chunk *
find_copy(struct cluster *cluster, const struct chunk_key *key, const struct sim_server *server)
{
    struct chunk *found = NULL;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct chunk *chunk = chunk_table_find(cluster->servers[i].disk.chunks, key);

        if (chunk == NULL || cluster->servers[i].gone)
            continue;
        sim_require(&cluster->world, &cluster->servers[i] == server,
                    "volume %" PRIu64 " segment %u slot %u is on %s, which the map does not name",
                    key->volume, key->segment, key->slot, cluster->servers[i].process.name);
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

/* Zeroes may be forgotten by one and not by the other. */
static bool
sector_is_nothing(const struct model_sector *sector)
{
    return !sector->is_void && sector->kind != SECTOR_DATA;
}

static void
compare_sector(struct cluster *cluster, const struct chunk_key *key, uint32_t idx,
               const struct model_sector *a, const struct model_sector *b)
{
    bool same = a->kind == b->kind && a->version == b->version && a->crc == b->crc &&
                (a->kind != SECTOR_DATA || memcmp(a->data, b->data, SECTOR_BYTES) == 0);

    same = same || (sector_is_nothing(a) && sector_is_nothing(b));
    sim_require(&cluster->world, same,
                "volume %" PRIu64 " segment %u sector %u: slot 0 has kind %d version %#" PRIx64
                " crc %#x, slot %u has kind %d version %#" PRIx64 " crc %#x",
                key->volume, key->segment, idx, (int)a->kind, a->version, a->crc, key->slot,
                (int)b->kind, b->version, b->crc);
    cluster->counters.sectors_compared++;
}

const struct sim_volume *
cluster_volume(const struct cluster *cluster, uint64_t id)
{
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++)
        if (cluster->volumes[i].id == id)
            return &cluster->volumes[i];
    return NULL;
}

/* Could a takeover have met a sector that no slot delivered? */
static bool
reads_have_failed(const struct cluster *cluster)
{
    uint64_t failed = 0;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        const struct model_counters *counters = &cluster->servers[i].disk.counters;

        failed += counters->sectors_rotten + counters->read_errors + counters->read_flips;
    }
    return failed > 0;
}

static bool
pending_is_same(const struct chunk *a, const struct chunk *b)
{
    bool same = a->pending_count == b->pending_count;

    for (uint32_t i = 0; same && i < a->pending_count; i++)
        same = a->pending[i].version == b->pending[i].version;
    return same;
}

/*
 * After a clean close no write is pending, but for one that a takeover left as it was since no slot
 * could deliver it: then every slot has it.
 */
static void
check_pending(struct cluster *cluster, const struct chunk_key *key, const struct chunk *copy,
              const struct chunk *first)
{
    if (copy == NULL || copy->pending_count == 0)
        return;
    sim_require(&cluster->world,
                reads_have_failed(cluster) && first != NULL && pending_is_same(copy, first),
                "volume %" PRIu64 " segment %u slot %u: %u writes pending after a clean close, the "
                "first %#" PRIx64 ", above S %#" PRIx64,
                key->volume, key->segment, key->slot, copy->pending_count, copy->pending[0].version,
                copy->stable_version);
}

static void
compare_segment(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    const struct sim_volume *volume = cluster_volume(cluster, segment->volume);
    const struct chunk *first = NULL;

    (void)context;
    for (uint32_t slot = 0; volume != NULL && slot < segment->place_count; slot++) {
        struct chunk_key key = {segment->volume, segment->index, segment->places[slot].number};
        const struct chunk *copy = find_copy(cluster, &key, segment->places[slot].server);

        if (slot == 0)
            first = copy;
        check_pending(cluster, &key, copy, first);
        check_pending(cluster, &key, first, copy);
        cluster->counters.chunks_compared += copy != NULL;
        for (uint32_t i = 0; i < volume->segment_bytes / SECTOR_BYTES && slot > 0; i++)
            compare_sector(cluster, &key, i, copy_sector(first, i), copy_sector(copy, i));
    }
}

void
verdict_compare_copies(struct cluster *cluster)
{
    map_for_each(cluster, compare_segment, NULL);
}

static uint64_t
chunk_data_sectors(const struct chunk *chunk)
{
    const struct model_chunk *content = chunk->store_private;
    uint64_t count = 0;

    for (uint32_t i = 0; i < content->sector_count; i++)
        count += content->sectors[i].kind == SECTOR_DATA;
    return count;
}

void
verdict_check_scrub(struct cluster *cluster, const struct sim_volume *volume,
                    const struct sim_scrub *scrub)
{
    uint64_t sectors = 0;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        const struct sim_server *server = &cluster->servers[i];
        struct chunk *chunk, *next;

        HASH_ITER (by_key, server->disk.chunks->by_key, chunk, next)
            if (chunk->key.volume == volume->id && !server->gone)
                sectors += chunk_data_sectors(chunk);
    }
    sim_require(&cluster->world, scrub->bad == 0,
                "the scrub of %s finds %" PRIu64 " bad sectors where there are none", volume->name,
                scrub->bad);
    sim_require(&cluster->world, scrub->sectors == sectors && scrub->passed_over == 0,
                "the scrub of %s has read %" PRIu64 " of %" PRIu64
                " sectors, and passed over %" PRIu64 " chunks or servers",
                volume->name, scrub->sectors, sectors, scrub->passed_over);
}

bool
verdict_deleted_are_gone(const struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct chunk *chunk, *next;

        HASH_ITER (by_key, cluster->servers[i].disk.chunks->by_key, chunk, next)
            if (cluster_volume(cluster, chunk->key.volume) == NULL && !cluster->servers[i].gone)
                return false;
    }
    return true;
}
