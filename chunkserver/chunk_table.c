/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/chunk_table.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/mutant.h"

#define PENDING_CAPACITY_MIN 8u

static_assert(sizeof(struct chunk_key) == 16, "the key is hashed as bytes: no padding");

static void *
chunk_table_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes);

    dl_assert(memory != NULL);
    return memory;
}

struct chunk_table *
chunk_table_create(void)
{
    return chunk_table_alloc(sizeof(struct chunk_table));
}

static void
chunk_free(struct chunk *chunk)
{
    free(chunk->pending_memory);
    free(chunk);
}

void
chunk_table_destroy(struct chunk_table *table)
{
    struct chunk *chunk, *next_chunk;
    struct chunk_volume *volume, *next_volume;

    if (table == NULL)
        return;
    HASH_CLEAR(by_key, table->by_key);
    HASH_ITER (by_local_id, table->by_local_id, chunk, next_chunk) {
        HASH_DELETE(by_local_id, table->by_local_id, chunk);
        chunk_free(chunk);
    }
    HASH_ITER (by_volume, table->volumes, volume, next_volume) {
        HASH_DELETE(by_volume, table->volumes, volume);
        free(volume);
    }
    free(table);
}

struct chunk *
chunk_table_find(const struct chunk_table *table, const struct chunk_key *key)
{
    struct chunk *chunk;

    HASH_FIND(by_key, table->by_key, key, sizeof(*key), chunk);
    dl_assert(chunk == NULL || chunk->state == CHUNK_PRESENT);
    return chunk;
}

struct chunk *
chunk_table_find_local(const struct chunk_table *table, uint64_t local_id)
{
    struct chunk *chunk;

    HASH_FIND(by_local_id, table->by_local_id, &local_id, sizeof(local_id), chunk);
    return chunk;
}

struct chunk *
chunk_table_add(struct chunk_table *table, const struct chunk_key *key, uint64_t local_id,
                uint32_t incarnation)
{
    struct chunk *chunk = chunk_table_alloc(sizeof(*chunk));

    dl_assert(chunk_table_find(table, key) == NULL);
    dl_assert(chunk_table_find_local(table, local_id) == NULL);
    chunk->key = *key;
    chunk->local_id = local_id;
    chunk->incarnation = incarnation;
    chunk->config_epoch = incarnation;
    chunk->state = CHUNK_PRESENT;
    chunk->volume = chunk_table_volume_get(table, key->volume);
    HASH_ADD(by_key, table->by_key, key, sizeof(chunk->key), chunk);
    HASH_ADD(by_local_id, table->by_local_id, local_id, sizeof(chunk->local_id), chunk);
    list_push_back(&chunk->volume->chunks, &chunk->volume_node);
    table->chunk_count++;
    return chunk;
}

static void
chunk_table_hide(struct chunk_table *table, struct chunk *chunk)
{
    dl_assert(chunk->state == CHUNK_PRESENT);
    dl_assert(table->chunk_count > 0);
    HASH_DELETE(by_key, table->by_key, chunk);
    table->chunk_count--;
}

void
chunk_table_delete(struct chunk_table *table, struct chunk *chunk)
{
    chunk_table_hide(table, chunk);
    chunk->state = CHUNK_DELETING;
    chunk->pending_capacity += (uint32_t)(chunk->pending - chunk->pending_memory);
    chunk->pending = chunk->pending_memory;
    chunk->pending_count = 0;
}

void
chunk_table_remove(struct chunk_table *table, struct chunk *chunk)
{
    if (chunk->state == CHUNK_PRESENT)
        chunk_table_hide(table, chunk);
    HASH_DELETE(by_local_id, table->by_local_id, chunk);
    list_remove(&chunk->volume_node);
    chunk_free(chunk);
}

/* --- volumes --- */

struct chunk_volume *
chunk_table_volume(const struct chunk_table *table, uint64_t volume)
{
    struct chunk_volume *found;

    HASH_FIND(by_volume, table->volumes, &volume, sizeof(volume), found);
    return found;
}

struct chunk_volume *
chunk_table_volume_get(struct chunk_table *table, uint64_t volume)
{
    struct chunk_volume *found = chunk_table_volume(table, volume);

    if (found != NULL)
        return found;
    found = chunk_table_alloc(sizeof(*found));
    found->volume = volume;
    list_init(&found->chunks);
    HASH_ADD(by_volume, table->volumes, volume, sizeof(found->volume), found);
    return found;
}

uint32_t
chunk_table_fence(const struct chunk_table *table, uint64_t volume)
{
    const struct chunk_volume *found = chunk_table_volume(table, volume);

    return found == NULL ? 0 : found->lease_epoch;
}

void
chunk_table_fence_raise(struct chunk_table *table, uint64_t volume, uint32_t lease_epoch)
{
    struct chunk_volume *found = chunk_table_volume_get(table, volume);

    if (lease_epoch > found->lease_epoch)
        found->lease_epoch = lease_epoch;
}

/* --- pending writes --- */

/* The first entry at or above this version; pending_count if there is none. */
static uint32_t
pending_lower_bound(const struct chunk *chunk, uint64_t version)
{
    uint32_t low = 0, high = chunk->pending_count;

    /* Nearly always it is the newest. */
    if (high > 0 && chunk->pending[high - 1].version < version)
        return high;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (chunk->pending[middle].version < version)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* What is at or below it is not listed. */
static uint64_t
pending_floor(const struct chunk *chunk)
{
    return chunk->attempt != 0 && chunk->heard_version > chunk->stable_version
               ? chunk->heard_version
               : chunk->stable_version;
}

bool
chunk_version_is_durable(const struct chunk *chunk, uint64_t version)
{
    uint32_t idx;

    if (version <= pending_floor(chunk))
        return true;
    idx = pending_lower_bound(chunk, version);
    return idx < chunk->pending_count && chunk->pending[idx].version == version &&
           !chunk->pending[idx].pulled;
}

/* Room for one more entry: by moving down what is left of the list, or by more memory. */
static void
pending_make_room(struct chunk *chunk)
{
    uint32_t dropped = (uint32_t)(chunk->pending - chunk->pending_memory);
    uint32_t total = dropped + chunk->pending_capacity;

    if (chunk->pending_count < chunk->pending_capacity)
        return;
    if (dropped >= total / 2 && dropped > 0) {
        memmove(chunk->pending_memory, chunk->pending,
                chunk->pending_count * sizeof(chunk->pending[0]));
    } else {
        struct pending_write *memory;

        total = total == 0 ? PENDING_CAPACITY_MIN : total * 2;
        memory = malloc(total * sizeof(*memory));
        dl_assert(memory != NULL);
        if (chunk->pending_count > 0)
            memcpy(memory, chunk->pending, chunk->pending_count * sizeof(memory[0]));
        free(chunk->pending_memory);
        chunk->pending_memory = memory;
    }
    chunk->pending = chunk->pending_memory;
    chunk->pending_capacity = total;
    dl_assert(chunk->pending_count < chunk->pending_capacity);
}

/* The entry of this version, made if it is not there: then it is empty. */
static struct pending_write *
pending_get(struct chunk *chunk, uint64_t version)
{
    uint32_t idx = pending_lower_bound(chunk, version);

    if (idx < chunk->pending_count && chunk->pending[idx].version == version)
        return &chunk->pending[idx];
    pending_make_room(chunk);
    memmove(&chunk->pending[idx + 1], &chunk->pending[idx],
            (chunk->pending_count - idx) * sizeof(chunk->pending[0]));
    chunk->pending[idx] = (struct pending_write){.version = version};
    chunk->pending_count++;
    return &chunk->pending[idx];
}

void
chunk_pending_add(struct chunk *chunk, uint64_t version, uint32_t offset_sectors,
                  uint32_t length_sectors)
{
    struct pending_write *pending;

    dl_assert(length_sectors > 0 && length_sectors < 1u << 31);
    if (chunk_version_is_durable(chunk, version))
        return;
    pending = pending_get(chunk, version);
    pending->offset_sectors = offset_sectors;
    pending->length_sectors = length_sectors & 0x7fffffffu;
    pending->pulled = 0;
}

void
chunk_pending_add_pulled(struct chunk *chunk, uint64_t version, uint32_t offset_sectors,
                         uint32_t length_sectors)
{
    uint32_t end = offset_sectors + length_sectors;
    struct pending_write *pending;

    dl_assert(length_sectors > 0 && end < 1u << 31);
    if (chunk_version_is_durable(chunk, version))
        return;
    pending = pending_get(chunk, version);
    if (pending->length_sectors > 0) {
        uint32_t pending_end = pending->offset_sectors + pending->length_sectors;

        offset_sectors = offset_sectors < pending->offset_sectors ? offset_sectors
                                                                  : pending->offset_sectors;
        end = end > pending_end ? end : pending_end;
    }
    pending->offset_sectors = offset_sectors;
    pending->length_sectors = (end - offset_sectors) & 0x7fffffffu;
    pending->pulled = 1;
}

/* Entries at or below the version go. */
static void
pending_drop(struct chunk *chunk, uint64_t version)
{
    uint32_t dropped;

    if (chunk->pending_count == 0)
        return;
    dropped = version == UINT64_MAX ? chunk->pending_count
                                    : pending_lower_bound(chunk, version + 1);
    chunk->pending += dropped;
    chunk->pending_count -= dropped;
    chunk->pending_capacity -= dropped;
    dl_assert(chunk->pending_count == 0 || chunk->pending[0].version > version);
}

bool
chunk_stable_raise(struct chunk *chunk, uint64_t stable_version)
{
    if (stable_version <= chunk->stable_version)
        return false;
    chunk->stable_version = stable_version;
    pending_drop(chunk, stable_version);
    return true;
}

bool
chunk_stable_hear(struct chunk *chunk, uint32_t attempt, uint64_t stable_version)
{
    if (attempt != chunk->attempt)
        return false;
    if (attempt == 0)
        return chunk_stable_raise(chunk, stable_version);
    if (stable_version <= chunk->heard_version)
        return false;
    chunk->heard_version = stable_version;
    pending_drop(chunk, pending_floor(chunk));
    return true;
}

/* --- recovery --- */

uint64_t
chunk_step_version(const struct chunk *chunk, uint32_t sector)
{
    uint64_t version = chunk->stable_version;

    if (chunk->attempt == 0)
        return version;
    dl_assert(chunk->step_count > 0 && chunk->steps[0].first_sector == 0);
    for (uint32_t i = 0; i < chunk->step_count && chunk->steps[i].first_sector <= sector; i++)
        version = chunk->steps[i].stable_version;
    return version;
}

/* One more step at the end, unless it says nothing new. */
static void
step_add(struct chunk_step *steps, uint32_t *count, uint32_t first_sector, uint64_t version)
{
    if (*count > 0 && steps[*count - 1].stable_version == version)
        return;
    steps[(*count)++] = (struct chunk_step){.first_sector = first_sector,
                                            .stable_version = version};
}

/* Two become one, with the lower S: the two of which the first is the shortest. */
static void
steps_join(struct chunk_step *steps, uint32_t *count)
{
    uint32_t best = 0;

    for (uint32_t i = 0; i + 1 < *count; i++)
        if (steps[i + 1].first_sector - steps[i].first_sector <
            steps[best + 1].first_sector - steps[best].first_sector)
            best = i;
    steps[best].stable_version = steps[best + 1].stable_version;
    memmove(&steps[best + 1], &steps[best + 2], (*count - best - 2) * sizeof(steps[0]));
    --*count;
}

uint32_t
chunk_attempt_steps(const struct chunk *chunk, struct chunk_step steps[CHUNK_STEPS_MAX])
{
    struct chunk_step all[2 * CHUNK_STEPS_MAX + 1];
    uint32_t count = 0;

    if (chunk->attempt == 0) {
        steps[0] = (struct chunk_step){.stable_version = chunk->stable_version};
        return 1;
    }
    for (uint32_t i = 0; i < chunk->step_count; i++) {
        const struct chunk_step *old = &chunk->steps[i];
        uint32_t end = i + 1 < chunk->step_count ? chunk->steps[i + 1].first_sector : UINT32_MAX;
        uint64_t heard = old->stable_version > chunk->heard_version ? old->stable_version
                                                                    : chunk->heard_version;

        if (old->first_sector < chunk->cursor_sectors)
            step_add(all, &count, old->first_sector, heard);
        if (chunk->cursor_sectors <= old->first_sector)
            step_add(all, &count, old->first_sector, old->stable_version);
        else if (chunk->cursor_sectors < end)
            step_add(all, &count, chunk->cursor_sectors, old->stable_version);
    }
    while (count > CHUNK_STEPS_MAX)
        steps_join(all, &count);
    memcpy(steps, all, count * sizeof(steps[0]));
    return count;
}

void
chunk_attempt_begin(struct chunk *chunk, uint32_t attempt)
{
    struct chunk_step steps[CHUNK_STEPS_MAX];
    uint32_t count = chunk_attempt_steps(chunk, steps);

    dl_assert(attempt > chunk->attempt);
    memcpy(chunk->steps, steps, count * sizeof(steps[0]));
    chunk->step_count = count;
    chunk->attempt = attempt;
    if (!DLBLK_MUTANT(chunkserver_keep_cursor))
        chunk->cursor_sectors = 0;
    chunk->heard_version = 0;
    chunk->reported_version = 0;
    pending_drop(chunk, UINT64_MAX);
}

void
chunk_sources_hear(struct chunk *chunk, uint64_t stable_version)
{
    dl_assert(chunk->attempt != 0);
    if (stable_version > chunk->reported_version)
        chunk->reported_version = stable_version;
    /* For S of what was pulled, if another attempt begins. */
    if (DLBLK_MUTANT(chunkserver_report_raises_s) && stable_version > chunk->heard_version)
        chunk->heard_version = stable_version;
}

void
chunk_promote(struct chunk *chunk, uint32_t config_epoch)
{
    uint64_t stable = chunk->heard_version > chunk->reported_version ? chunk->heard_version
                                                                     : chunk->reported_version;

    if (config_epoch > chunk->config_epoch)
        chunk->config_epoch = config_epoch;
    if (chunk->attempt == 0)
        return;
    if (chunk->steps[0].stable_version > stable)
        stable = chunk->steps[0].stable_version;
    chunk->attempt = 0;
    chunk->cursor_sectors = 0;
    chunk->heard_version = 0;
    chunk->reported_version = 0;
    chunk->step_count = 0;
    memset(chunk->steps, 0, sizeof(chunk->steps));
    (void)chunk_stable_raise(chunk, stable);
}

uint64_t
chunk_version_max(const struct chunk *chunk)
{
    return chunk->pending_count == 0 ? chunk->stable_version
                                     : chunk->pending[chunk->pending_count - 1].version;
}
