/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/chunk_table.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

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

bool
chunk_version_is_durable(const struct chunk *chunk, uint64_t version)
{
    uint32_t idx;

    if (version <= chunk->stable_version)
        return true;
    idx = pending_lower_bound(chunk, version);
    return idx < chunk->pending_count && chunk->pending[idx].version == version;
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

void
chunk_pending_add(struct chunk *chunk, uint64_t version, uint32_t offset_sectors,
                  uint32_t length_sectors)
{
    uint32_t idx;

    if (chunk_version_is_durable(chunk, version))
        return;
    pending_make_room(chunk);
    idx = pending_lower_bound(chunk, version);
    memmove(&chunk->pending[idx + 1], &chunk->pending[idx],
            (chunk->pending_count - idx) * sizeof(chunk->pending[0]));
    chunk->pending[idx] = (struct pending_write){
        .version = version, .offset_sectors = offset_sectors, .length_sectors = length_sectors};
    chunk->pending_count++;
}

bool
chunk_stable_raise(struct chunk *chunk, uint64_t stable_version)
{
    uint32_t dropped;

    if (stable_version <= chunk->stable_version)
        return false;
    chunk->stable_version = stable_version;
    if (chunk->pending_count == 0)
        return true;
    dropped = stable_version == UINT64_MAX ? chunk->pending_count
                                           : pending_lower_bound(chunk, stable_version + 1);
    chunk->pending += dropped;
    chunk->pending_count -= dropped;
    chunk->pending_capacity -= dropped;
    dl_assert(chunk->pending_count == 0 || chunk->pending[0].version > stable_version);
    return true;
}

uint64_t
chunk_version_max(const struct chunk *chunk)
{
    return chunk->pending_count == 0 ? chunk->stable_version
                                     : chunk->pending[chunk->pending_count - 1].version;
}
