/* SPDX-License-Identifier: Apache-2.0 */
/*
 * open.c: the beginning of a life: superblock, index, replay; then the engine serves.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

static void
text_of_uuid(const uint8_t *uuid, char *text, size_t text_bytes)
{
    size_t used = 0;

    for (unsigned i = 0; i < SUPERBLOCK_UUID_BYTES && used + 3 < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%02x", uuid[i]);
}

static int
open_superblock(struct engine *engine, const uint8_t *cluster_id, struct dl_error *err)
{
    struct superblock *superblock = &engine->superblock;
    int result = superblock_load_now(engine->disk, superblock, err);
    char has[40], wants[40];

    if (result != 0)
        return result;
    if ((superblock->features_read_only & ~(uint64_t)SUPERBLOCK_FEATURES_READ_ONLY) != 0)
        return dl_error_set(
            err, -DL_E_DISK_FORMAT,
            "the disk uses features that this version must not write with: 0x%" PRIx64,
            superblock->features_read_only);
    engine->was_clean = superblock->clean;
    if (cluster_id == NULL ||
        memcmp(cluster_id, superblock->cluster_id, SUPERBLOCK_UUID_BYTES) == 0)
        return 0;
    text_of_uuid(superblock->cluster_id, has, sizeof(has));
    text_of_uuid(cluster_id, wants, sizeof(wants));
    return dl_error_set(err, -DL_E_DISK_FOREIGN, "the disk belongs to cluster %s, not to %s", has,
                        wants);
}

static void
open_geometry(struct engine *engine)
{
    const struct superblock_geometry *g = &engine->superblock.geometry;

    engine->ring_units = g->ring_bytes / UNIT_BYTES;
    engine->group_units_max = engine->ring_units / 8 < JOURNAL_UNITS_MAX
                                  ? (uint32_t)(engine->ring_units / 8)
                                  : JOURNAL_UNITS_MAX;
    engine->ring_reserve_units = engine->ring_units / 8 < 64 ? (uint32_t)(engine->ring_units / 8)
                                                             : 64;
    dl_assert(engine->group_units_max >= 1);
    alloc_init(&engine->alloc, (uint32_t)(g->data_bytes / SLAB_BYTES),
               g->reserve_bytes / BLOCK_BYTES);
    engine->pages = calloc(alloc_page_count(&engine->alloc), sizeof(struct bitmap_page));
    dl_assert(engine->pages != NULL);
    for (uint32_t i = 0; i < alloc_page_count(&engine->alloc); i++)
        dirty_init(&engine->pages[i].dirty, DIRTY_BITMAP);
}

/*
 * Is it this disk's index?  An index without a position is new: the journal must reach back to its
 * beginning.
 */
static int
open_check_index(struct engine *engine, const struct index_position *position, struct dl_error *err)
{
    const struct superblock *superblock = &engine->superblock;

    if (memcmp(position->disk_uuid, superblock->disk_uuid, SUPERBLOCK_UUID_BYTES) != 0)
        dl_error_set(err, -DL_E_INDEX_MISMATCH, "the index belongs to another disk");
    else if (position->incarnation > superblock->incarnation)
        dl_error_set(err, -DL_E_INDEX_MISMATCH,
                     "the disk is older than the index: it was started %" PRIu64
                     " times, the index saw start %" PRIu64,
                     superblock->incarnation, position->incarnation);
    else
        return 0;
    dl_error_hint(err, "give the disk its own index, or make a new one with dlblk-disk rebuild");
    return -DL_E_INDEX_MISMATCH;
}

static int
open_index(struct engine *engine, struct index_position *position, struct dl_error *err)
{
    bool found = false;
    int result;

    *position = (struct index_position){.local_id_next = 1, .position = engine->ring_units};
    memcpy(position->disk_uuid, engine->superblock.disk_uuid, sizeof(position->disk_uuid));
    result = index_load_now(engine, position, &found, err);
    if (result != 0)
        return result;
    if (position->local_id_next > engine->local_id_next)
        engine->local_id_next = position->local_id_next;
    return found ? open_check_index(engine, position, err) : 0;
}

/*
 * No sector of the chunk has a higher version.  What was pulled is not above what a source said to
 * be stable, or it is listed.
 */
static uint64_t
open_version_max(const struct chunk *chunk)
{
    uint64_t versions[] = {chunk_version_max(chunk), chunk->heard_version, chunk->reported_version,
                           chunk->step_count > 0 ? chunk->steps[0].stable_version : 0};
    uint64_t highest = 0;

    for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
        highest = versions[i] > highest ? versions[i] : highest;
    return highest;
}

/* Replay is over: what it left is complete, and may change by requests from now on. */
static void
open_serve(struct engine *engine, const struct index_position *position)
{
    struct chunk *chunk, *next;

    alloc_start(&engine->alloc);
    engine->writeback.batch_position = position->position;
    engine->writeback.lsn_max = position->lsn_highest;
    HASH_ITER (by_local_id, engine->chunks->by_local_id, chunk, next) {
        engine_chunk_of(chunk)->version_max = open_version_max(chunk);
        if (chunk->state == CHUNK_DELETING)
            delete_begin(engine, engine_chunk_of(chunk));
    }
    engine->serving = true;
    engine->active_ns = env_now_ns(engine->env);
    if (!engine_is_quiet(engine))
        engine_arm_idle(engine);
    engine_kick(engine);
}

int
engine_open(struct engine **ret_engine, struct env *env, struct disk *disk, struct index *index,
            const struct engine_options *options, struct dl_error *err)
{
    static const struct engine_options defaults;
    struct index_position position;
    struct engine *engine;
    int result;

    if (options == NULL)
        options = &defaults;
    engine = engine_create(env, disk, index, options);
    result = open_superblock(engine, options->cluster_id, err);
    if (result == 0) {
        open_geometry(engine);
        result = open_index(engine, &position, err);
    }
    if (result == 0)
        result = replay_now(engine, &position, err);
    if (result != 0) {
        engine_destroy(engine);
        return result;
    }
    open_serve(engine, &position);
    *ret_engine = engine;
    return 0;
}
