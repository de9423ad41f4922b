/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char model_problem[256];

static void *
model_alloc(void *old, size_t bytes)
{
    void *memory = realloc(old, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

void
model_init(struct model *model, uint32_t volumes, uint32_t chunks, uint32_t sectors)
{
    memset(model, 0, sizeof(*model));
    model->volume_count = volumes;
    model->chunk_count = chunks;
    for (uint32_t i = 0; i < volumes; i++)
        model->volumes[i] = (struct model_volume){.volume = 100 + i, .lease = 1};
    for (uint32_t i = 0; i < chunks; i++) {
        struct model_chunk *chunk = &model->chunks[i];

        chunk->key = (struct chunk_key){.volume = 100 + i % volumes, .segment = i / volumes};
        chunk->sectors = sectors;
        chunk->version = calloc(sectors, sizeof(chunk->version[0]));
        chunk->is_zero = calloc(sectors, sizeof(chunk->is_zero[0]));
        if (chunk->version == NULL || chunk->is_zero == NULL)
            abort();
    }
}

void
model_fini(struct model *model)
{
    for (uint32_t i = 0; i < model->chunk_count; i++) {
        free(model->chunks[i].version);
        free(model->chunks[i].is_zero);
        free(model->chunks[i].writes);
    }
}

struct model_volume *
model_volume_of(struct model *model, const struct model_chunk *chunk)
{
    for (uint32_t i = 0; i < model->volume_count; i++)
        if (model->volumes[i].volume == chunk->key.volume)
            return &model->volumes[i];
    abort();
}

struct model_write *
model_write_add(struct model_chunk *chunk, uint64_t version, uint32_t offset, uint32_t length,
                bool zero)
{
    struct model_write *write;

    if (chunk->write_count == chunk->write_capacity) {
        chunk->write_capacity = chunk->write_capacity * 2 + 64;
        chunk->writes = model_alloc(chunk->writes,
                                    chunk->write_capacity * sizeof(chunk->writes[0]));
    }
    write = &chunk->writes[chunk->write_count++];
    *write = (struct model_write){
        .version = version, .offset = offset, .length = length, .zero = zero};
    return write;
}

struct model_write *
model_write_find(struct model_chunk *chunk, uint64_t version)
{
    for (uint32_t i = chunk->write_count; i > 0; i--)
        if (chunk->writes[i - 1].version == version)
            return &chunk->writes[i - 1];
    return NULL;
}

void
model_write_apply(struct model_chunk *chunk, struct model_write *write)
{
    write->state = WRITE_PRESENT;
    for (uint32_t sector = write->offset; sector < write->offset + write->length; sector++) {
        if (chunk->version[sector] >= write->version)
            continue;
        chunk->version[sector] = write->version;
        chunk->is_zero[sector] = write->zero;
    }
}

void
model_chunk_reset(struct model_chunk *chunk)
{
    chunk->state = CHUNK_MODEL_ABSENT;
    chunk->write_count = 0;
    chunk->stable_floor = 0;
    chunk->stable_sent = 0;
    chunk->forget_sent = 0;
    chunk->epoch_floor = 0;
    memset(chunk->version, 0, chunk->sectors * sizeof(chunk->version[0]));
    memset(chunk->is_zero, 0, chunk->sectors * sizeof(chunk->is_zero[0]));
}

uint64_t
model_stable_bound(const struct model_chunk *chunk)
{
    uint64_t bound = 0;
    uint64_t first_open = UINT64_MAX;

    for (uint32_t i = 0; i < chunk->write_count; i++) {
        const struct model_write *write = &chunk->writes[i];

        if (write->state == WRITE_PRESENT || write->dead)
            bound = write->version > bound ? write->version : bound;
        else
            first_open = write->version < first_open ? write->version : first_open;
    }
    return bound < first_open ? bound : first_open - 1;
}

uint64_t
model_data_sectors(const struct model *model)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < model->chunk_count; i++)
        for (uint32_t sector = 0; sector < model->chunks[i].sectors; sector++)
            sum += model->chunks[i].version[sector] != 0 && !model->chunks[i].is_zero[sector];
    return sum;
}

void
model_sector_fill(const struct model_chunk *chunk, uint64_t version, uint32_t sector,
                  void *ret_bytes)
{
    uint64_t *words = ret_bytes;
    uint64_t word = version;

    words[0] = chunk->key.volume << 32 | chunk->key.segment;
    words[1] = version;
    words[2] = (uint64_t)chunk->incarnation << 32 | sector;
    word ^= words[0] * 0x9e3779b97f4a7c15u;
    word ^= words[2] * 0xbf58476d1ce4e5b9u;
    for (uint32_t i = 3; i < SECTOR_BYTES / sizeof(words[0]); i++) {
        word = word * 6364136223846793005u + 1442695040888963407u;
        words[i] = word;
    }
}

static const char *
problem(const struct model_chunk *chunk, const char *what, uint64_t found, uint64_t expected)
{
    (void)snprintf(model_problem, sizeof(model_problem),
                   "chunk %llu/%u: %s: found %llx, expected %llx",
                   (unsigned long long)chunk->key.volume, chunk->key.segment, what,
                   (unsigned long long)found, (unsigned long long)expected);
    return model_problem;
}

static const struct pending_write *
pending_find(const struct chunk *chunk, uint64_t version)
{
    for (uint32_t i = 0; i < chunk->pending_count; i++)
        if (chunk->pending[i].version == version)
            return &chunk->pending[i];
    return NULL;
}

/* One write against the pending list; an undecided one is decided if `decide`. */
static const char *
compare_write(struct model_chunk *chunk, struct model_write *write, const struct chunk *found,
              bool decide)
{
    const struct pending_write *pending = pending_find(found, write->version);

    if (pending != NULL &&
        (pending->offset_sectors != write->offset || pending->length_sectors != write->length))
        return problem(chunk, "a pending write has another range", pending->offset_sectors,
                       write->offset);
    switch (write->state) {
    case WRITE_PRESENT:
        if (pending == NULL && write->version > found->stable_version)
            return problem(chunk, "an acknowledged write is not in the pending list",
                           found->stable_version, write->version);
        if (pending != NULL && write->version <= found->stable_version)
            return problem(chunk, "a write at or below S is in the pending list", write->version,
                           found->stable_version);
        return NULL;
    case WRITE_ABSENT:
        if (pending != NULL)
            return problem(chunk, "a write that failed or was dropped is in the pending list",
                           write->version, 0);
        return NULL;
    case WRITE_UNDECIDED:
        if (!decide)
            return NULL;
        if (pending == NULL && write->seen)
            return problem(chunk, "a write that was read is lost", 0, write->version);
        if (pending != NULL)
            model_write_apply(chunk, write);
        else
            write->state = WRITE_ABSENT;
        return NULL;
    }
    abort();
}

static const char *
compare_pending(struct model_chunk *chunk, const struct chunk *found, bool decide)
{
    uint32_t listed = 0, undecided = 0;

    for (uint32_t i = 0; i < chunk->write_count; i++) {
        const char *wrong = compare_write(chunk, &chunk->writes[i], found, decide);

        if (wrong != NULL)
            return wrong;
        listed += chunk->writes[i].state == WRITE_PRESENT &&
                  chunk->writes[i].version > found->stable_version;
        undecided += chunk->writes[i].state == WRITE_UNDECIDED;
    }
    if (found->pending_count < listed || found->pending_count > listed + undecided)
        return problem(chunk, "the pending list's length", found->pending_count, listed);
    return NULL;
}

static const char *
compare_numbers(struct model_chunk *chunk, const struct chunk *found)
{
    if (found->incarnation != chunk->incarnation)
        return problem(chunk, "incarnation", found->incarnation, chunk->incarnation);
    if (found->config_epoch < chunk->epoch_floor)
        return problem(chunk, "an acknowledged config epoch is lost", found->config_epoch,
                       chunk->epoch_floor);
    if (found->config_epoch > chunk->epoch_sent)
        return problem(chunk, "a config epoch that nobody sent", found->config_epoch,
                       chunk->epoch_sent);
    if (found->stable_version < chunk->stable_floor)
        return problem(chunk, "an acknowledged stable version is lost", found->stable_version,
                       chunk->stable_floor);
    if (found->stable_version > chunk->stable_sent)
        return problem(chunk, "a stable version that nobody sent", found->stable_version,
                       chunk->stable_sent);
    return NULL;
}

static const char *
compare_chunk(struct model_chunk *chunk, const struct chunk *found, bool decide)
{
    const char *wrong;

    if (found == NULL && chunk->state == CHUNK_MODEL_PRESENT)
        return problem(chunk, "an acknowledged chunk is gone", 0, chunk->incarnation);
    if (found != NULL && chunk->state == CHUNK_MODEL_ABSENT)
        return problem(chunk, "a chunk that was deleted, or never made", found->incarnation, 0);
    if (found == NULL) {
        if (decide && chunk->state != CHUNK_MODEL_ABSENT)
            model_chunk_reset(chunk);
        return NULL;
    }
    wrong = compare_numbers(chunk, found);
    if (wrong == NULL)
        wrong = compare_pending(chunk, found, decide);
    if (wrong != NULL || !decide)
        return wrong;
    chunk->state = CHUNK_MODEL_PRESENT;
    chunk->epoch_floor = found->config_epoch;
    chunk->stable_floor = found->stable_version;
    return NULL;
}

static const char *
compare_volume(struct model_volume *volume, const struct chunk_table *table, bool decide)
{
    uint32_t fence = chunk_table_fence(table, volume->volume);

    if (fence < volume->fence_floor || fence > volume->fence_sent) {
        (void)snprintf(
            model_problem, sizeof(model_problem), "volume %llu: fence %u, acknowledged %u, sent %u",
            (unsigned long long)volume->volume, fence, volume->fence_floor, volume->fence_sent);
        return model_problem;
    }
    if (decide)
        volume->fence_floor = fence;
    return NULL;
}

static const char *
model_walk(struct model *model, const struct chunk_table *table, bool decide)
{
    const char *wrong = NULL;

    for (uint32_t i = 0; i < model->volume_count && wrong == NULL; i++)
        wrong = compare_volume(&model->volumes[i], table, decide);
    for (uint32_t i = 0; i < model->chunk_count && wrong == NULL; i++)
        wrong = compare_chunk(&model->chunks[i], chunk_table_find(table, &model->chunks[i].key),
                              decide);
    return wrong;
}

const char *
model_recover(struct model *model, const struct chunk_table *table)
{
    return model_walk(model, table, true);
}

const char *
model_compare_table(struct model *model, const struct chunk_table *table)
{
    return model_walk(model, table, false);
}
