/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/model_store.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/crc32c.h"
#include "common/list.h"
#include "common/mutant.h"
#include "dlblk/error.h"

#define GROUPS_MAX        2u
#define LARGE_SECTORS_MIN 17u /* more than 64 KiB of data */
#define CAPACITY_BYTES    (1ull << 36)

enum record_kind { RECORD_WRITE, RECORD_CHANGE, RECORD_MERGE };

/* One request, from its start to its on_done. */
struct record {
    struct list node; /* of its group, of large, of held, or of waiting */
    enum record_kind kind;
    uint64_t seq; /* of its start */
    uint64_t due_ns;
    struct store_write *write;
    struct store_change *change;
    struct store_merge *merge;
    struct chunk_key key;
    bool is_old; /* its config epoch was below the chunk's: it changes nothing */
    int err;
};

struct group {
    struct list node;
    struct list records;
    uint64_t due_ns;
};

struct pending_read {
    struct list node;
    struct store_read *read;
    uint64_t due_ns;
    bool late; /* what it returns is looked up at its end */
    int err;
};

/* A pull, or a question for voids (which looks at once). */
struct pending_look {
    struct list node;
    struct store_pull *pull;
    struct store_voids *voids;
    uint64_t seq;
    uint64_t due_ns; /* once it has looked */
    bool looked;
    int err;
};

struct model_store {
    struct chunk_store store; /* first */
    struct model_disk *disk;
    struct env *env;
    struct list open;    /* records of the next group */
    struct list groups;  /* under way */
    struct list large;   /* writes whose data is being written */
    struct list held;    /* beginnings of attempts that wait for large writes of their chunk */
    struct list waiting; /* fences, durable, that wait for large writes of their volume */
    struct list reads;
    struct list looks;
    uint32_t group_count;
    uint64_t next_seq;
    uint64_t last_due_ns;
    struct env_timer timer;
    struct env_task done_task;
    struct list done; /* records and reads whose on_done is due: never inside a start call */
    bool stopping;
    void (*on_stopped)(void *context, int err);
    void *stop_context;
};

static struct model_store *
model_of(struct chunk_store *store)
{
    return (struct model_store *)store;
}

static void *
model_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes);

    dl_assert(memory != NULL);
    return memory;
}

/* --- the disk --- */

void
model_disk_init(struct model_disk *disk, uint64_t seed)
{
    memset(disk, 0, sizeof(*disk));
    disk->chunks = chunk_table_create();
    disk->next_local_id = 1;
    disk->capacity_bytes = CAPACITY_BYTES;
    disk->profile = (struct model_profile){
        .read_ns_min = 20000,
        .read_ns_max = 200000,
        .group_ns_min = 30000,
        .group_ns_max = 300000,
        .large_ns_max = 1000000,
    };
    fake_rng_init(&disk->rng, seed);
}

static void
sector_clear(struct model_disk *disk, struct model_sector *sector)
{
    if (sector->kind == SECTOR_DATA) {
        dl_assert(disk->used_sectors > 0);
        disk->used_sectors--;
    }
    free(sector->data);
    *sector = (struct model_sector){.kind = SECTOR_HOLE};
}

static void
model_chunk_free(struct model_disk *disk, struct chunk *chunk)
{
    struct model_chunk *content = chunk->store_private;

    for (uint32_t i = 0; i < content->sector_count; i++)
        sector_clear(disk, &content->sectors[i]);
    free(content->sectors);
    free(content);
    chunk->store_private = NULL;
}

/* All that it holds. */
static void
disk_clear(struct model_disk *disk)
{
    struct chunk *chunk, *next;

    HASH_ITER (by_local_id, disk->chunks->by_local_id, chunk, next)
        model_chunk_free(disk, chunk);
    chunk_table_destroy(disk->chunks);
    disk->chunks = NULL;
}

void
model_disk_fini(struct model_disk *disk)
{
    disk_clear(disk);
}

static struct model_sector *
chunk_sector(struct chunk *chunk, uint32_t idx)
{
    struct model_chunk *content = chunk->store_private;

    if (idx >= content->sector_count) {
        uint32_t count = (idx / 64 + 1) * 64;

        content->sectors = realloc(content->sectors, count * sizeof(content->sectors[0]));
        dl_assert(content->sectors != NULL);
        memset(content->sectors + content->sector_count, 0,
               (count - content->sector_count) * sizeof(content->sectors[0]));
        content->sector_count = count;
    }
    return &content->sectors[idx];
}

void
model_disk_damage_leaf(struct model_disk *disk, struct chunk *chunk, uint32_t leaf)
{
    struct model_chunk *content = chunk->store_private;
    uint64_t version_max = chunk_version_max(chunk);

    if (chunk->heard_version > version_max)
        version_max = chunk->heard_version;
    for (uint32_t i = 0; i < content->sector_count; i++)
        if (content->sectors[i].version > version_max)
            version_max = content->sectors[i].version;
    disk->counters.leaves_damaged++;
    for (uint32_t i = 0; i < 64; i++) {
        struct model_sector *sector = chunk_sector(chunk, leaf * 64 + i);

        sector_clear(disk, sector);
        sector->is_void = true;
        sector->damaged_version = version_max;
    }
}

static struct chunk *
disk_chunk_create(struct model_disk *disk, const struct chunk_key *key, uint32_t incarnation)
{
    struct chunk *chunk = chunk_table_add(disk->chunks, key, disk->next_local_id++, incarnation);
    struct model_chunk *content = model_alloc(sizeof(*content));

    content->config_epoch = incarnation;
    chunk->store_private = content;
    return chunk;
}

/* A config epoch that is durable. */
static void
chunk_set_epoch(struct chunk *chunk, uint32_t config_epoch)
{
    struct model_chunk *content = chunk->store_private;

    if (config_epoch > content->config_epoch)
        content->config_epoch = config_epoch;
    if (config_epoch > chunk->config_epoch)
        chunk->config_epoch = config_epoch;
}

/*
 * What survives a crash of a volume's fence: kept apart from the table, whose fence rises at once.
 */
static uint32_t
volume_durable_fence(const struct chunk_volume *volume)
{
    return (uint32_t)(uintptr_t)volume->store_private;
}

static void
volume_set_durable_fence(struct chunk_volume *volume, uint32_t lease_epoch)
{
    if (lease_epoch > volume_durable_fence(volume))
        volume->store_private = (void *)(uintptr_t)lease_epoch;
}

/* --- an older copy of the disk --- */

struct model_image {
    struct chunk_table *chunks;
    uint64_t start_count, journal_position, next_local_id, used_sectors;
};

static struct model_chunk *
content_copy(const struct model_chunk *from)
{
    struct model_chunk *to = model_alloc(sizeof(*to));

    to->config_epoch = from->config_epoch;
    to->sector_count = from->sector_count;
    to->sectors = model_alloc((from->sector_count + 1) * sizeof(to->sectors[0]));
    for (uint32_t i = 0; i < from->sector_count; i++) {
        to->sectors[i] = from->sectors[i];
        if (from->sectors[i].data == NULL)
            continue;
        to->sectors[i].data = malloc(SECTOR_BYTES);
        dl_assert(to->sectors[i].data != NULL);
        memcpy(to->sectors[i].data, from->sectors[i].data, SECTOR_BYTES);
    }
    return to;
}

static void
chunk_copy(struct chunk_table *table, const struct chunk *from)
{
    struct chunk *to = chunk_table_add(table, &from->key, from->local_id, from->incarnation);
    const struct model_chunk *content = from->store_private;

    to->config_epoch = content->config_epoch;
    to->stable_version = from->stable_version;
    to->attempt = from->attempt;
    to->cursor_sectors = from->cursor_sectors;
    to->heard_version = from->heard_version;
    to->reported_version = from->reported_version;
    memcpy(to->steps, from->steps, sizeof(to->steps));
    to->step_count = from->step_count;
    to->store_private = content_copy(content);
    if (from->pending_count == 0)
        return;
    to->pending_memory = model_alloc(from->pending_count * sizeof(to->pending[0]));
    memcpy(to->pending_memory, from->pending, from->pending_count * sizeof(to->pending[0]));
    to->pending = to->pending_memory;
    to->pending_count = to->pending_capacity = from->pending_count;
}

static struct chunk_table *
chunks_copy(const struct chunk_table *from)
{
    struct chunk_table *to = chunk_table_create();
    struct chunk_volume *volume, *next_volume;
    struct chunk *chunk, *next;

    HASH_ITER (by_volume, from->volumes, volume, next_volume) {
        uint32_t fence = volume_durable_fence(volume);

        chunk_table_fence_raise(to, volume->volume, fence);
        volume_set_durable_fence(chunk_table_volume_get(to, volume->volume), fence);
    }
    HASH_ITER (by_local_id, from->by_local_id, chunk, next)
        chunk_copy(to, chunk);
    return to;
}

struct model_image *
model_image_take(const struct model_disk *disk)
{
    struct model_image *image = model_alloc(sizeof(*image));

    *image = (struct model_image){
        .chunks = chunks_copy(disk->chunks),
        .start_count = disk->start_count,
        .journal_position = disk->journal_position,
        .next_local_id = disk->next_local_id,
        .used_sectors = disk->used_sectors,
    };
    return image;
}

void
model_image_put(struct model_disk *disk, const struct model_image *image, bool keep_counts)
{
    disk_clear(disk);
    disk->chunks = chunks_copy(image->chunks);
    disk->next_local_id = image->next_local_id;
    disk->used_sectors = image->used_sectors;
    if (keep_counts)
        return;
    disk->start_count = image->start_count;
    disk->journal_position = image->journal_position;
}

void
model_image_free(struct model_image *image)
{
    struct model_disk disk;

    if (image == NULL)
        return;
    disk = (struct model_disk){.chunks = image->chunks, .used_sectors = image->used_sectors};
    disk_clear(&disk);
    free(image);
}

/* With its next start, which is one higher: that it was started as often would be a duplicate. */
bool
model_image_is_older(const struct model_image *image, uint64_t start_count,
                     uint64_t journal_position)
{
    if (image->start_count + 1 < start_count)
        return true;
    return image->start_count + 1 > start_count && image->journal_position + 1 < journal_position;
}

/* --- bits that flip at rest --- */

bool
model_sector_is_good(const struct chunk *chunk, uint32_t idx)
{
    const struct model_chunk *content = chunk->store_private;
    const struct model_sector *sector;

    if (idx >= content->sector_count)
        return true;
    sector = &content->sectors[idx];
    if (sector->is_void)
        return false;
    return sector->kind != SECTOR_DATA || crc32c(0, sector->data, SECTOR_BYTES) == sector->crc;
}

bool
model_sector_is_void(const struct chunk *chunk, uint32_t idx)
{
    const struct model_chunk *content = chunk->store_private;

    return idx < content->sector_count && content->sectors[idx].is_void;
}

bool
model_disk_rot(struct model_disk *disk, struct chunk *chunk, uint32_t idx)
{
    struct model_sector *sector = chunk_sector(chunk, idx);
    uint64_t bit = fake_rng_below(&disk->rng, (uint64_t)SECTOR_BYTES * 8);

    if (sector->kind != SECTOR_DATA || !model_sector_is_good(chunk, idx))
        return false;
    sector->data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    disk->counters.sectors_rotten++;
    return true;
}

/* --- a record takes effect --- */

/* The sector's content is replaced. */
static void
sector_set(struct model_disk *disk, struct model_sector *sector, uint64_t version, uint32_t birth,
           enum sector_kind kind, uint32_t crc, const void *data)
{
    sector_clear(disk, sector);
    sector->version = version;
    sector->birth = birth;
    sector->kind = kind;
    if (kind != SECTOR_DATA)
        return;
    sector->crc = crc;
    sector->data = malloc(SECTOR_BYTES);
    dl_assert(sector->data != NULL);
    memcpy(sector->data, data, SECTOR_BYTES);
    disk->used_sectors++;
}

static void
apply_sector(struct model_disk *disk, struct chunk *chunk, const struct store_write *write,
             uint32_t idx)
{
    struct model_sector *sector = chunk_sector(chunk, write->offset_sectors + idx);
    uint64_t here = sector->version;

    if (sector->damaged_version != 0)
        here = sector->damaged_version - 1;
    else if (sector->is_void)
        here = chunk_step_version(chunk, write->offset_sectors + idx);

    if (write->version <= here) {
        disk->counters.outdated_sectors++;
        return;
    }
    if (write->zero)
        sector_set(disk, sector, write->version, write->birth, SECTOR_ZERO, 0, NULL);
    else
        sector_set(disk, sector, write->version, write->birth, SECTOR_DATA, write->crcs[idx],
                   (const uint8_t *)write->payload + (size_t)idx * SECTOR_BYTES);
}

/* Does it need blocks that a full disk has not?  An overwrite gets its own back. */
static bool
write_needs_space(const struct model_disk *disk, struct chunk *chunk,
                  const struct store_write *write)
{
    if (!disk->profile.full || write->zero || write->use_reserve)
        return false;
    if (chunk == NULL)
        return true;
    for (uint32_t i = 0; i < write->length_sectors; i++)
        if (chunk_sector(chunk, write->offset_sectors + i)->kind != SECTOR_DATA)
            return true;
    return false;
}

static void
apply_promotion(struct model_disk *disk, struct chunk *chunk, uint32_t config_epoch)
{
    struct model_chunk *content = chunk->store_private;

    if (chunk->attempt != 0) {
        disk->counters.promotions++;
        /* All of it was pulled; or the metadata service has made a mistake that costs data. */
        for (uint32_t i = 0; i < content->sector_count; i++)
            dl_assert(!content->sectors[i].is_void || content->sectors[i].damaged_version != 0);
    }
    chunk_promote(chunk, config_epoch);
    chunk_set_epoch(chunk, config_epoch);
}

static int
apply_write(struct model_disk *disk, const struct store_write *write)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &write->key);

    if (chunk == NULL && !write->create)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk == NULL)
        chunk = disk_chunk_create(disk, &write->key, write->config_epoch);
    if (chunk->attempt != 0 && write->attempt == 0 && write->config_epoch > chunk->attempt)
        apply_promotion(disk, chunk, write->config_epoch);
    if (chunk->attempt != 0 && write->attempt != chunk->attempt)
        return -DL_E_EPOCH_OLD;
    chunk_set_epoch(chunk, write->config_epoch);
    if (chunk_version_is_durable(chunk, write->version)) {
        disk->counters.duplicates++;
    } else {
        for (uint32_t i = 0; i < write->length_sectors; i++)
            apply_sector(disk, chunk, write, i);
        chunk_pending_add(chunk, write->version, write->offset_sectors, write->length_sectors);
        disk->counters.zeroes += write->zero;
    }
    (void)chunk_stable_hear(chunk, write->attempt, write->stable_version);
    return 0;
}

static void
disk_fence(struct model_disk *disk, uint64_t volume, uint32_t lease_epoch)
{
    chunk_table_fence_raise(disk->chunks, volume, lease_epoch);
    volume_set_durable_fence(chunk_table_volume_get(disk->chunks, volume), lease_epoch);
}

static void
disk_chunk_remove(struct model_disk *disk, struct chunk *chunk)
{
    model_chunk_free(disk, chunk);
    chunk_table_remove(disk->chunks, chunk);
    disk->counters.deletes++;
}

/* What lies above its step is not known any more. */
static void
chunk_void(struct model_disk *disk, struct chunk *chunk)
{
    struct model_chunk *content = chunk->store_private;

    for (uint32_t i = 0; i < content->sector_count; i++) {
        struct model_sector *sector = &content->sectors[i];
        uint64_t step = chunk_step_version(chunk, i);

        /* What was lost above the step does not count any more; all else is on every source. */
        if (sector->damaged_version > step)
            sector->damaged_version = 0;
        if (sector->is_void || sector->version <= step)
            continue;
        sector_clear(disk, sector);
        sector->is_void = true;
        disk->counters.sectors_voided++;
    }
}

static int
apply_attempt(struct model_disk *disk, const struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &change->key);

    if (chunk != NULL && chunk->incarnation < change->incarnation &&
        !DLBLK_MUTANT(chunkserver_keep_incarnation)) {
        disk_chunk_remove(disk, chunk);
        chunk = NULL;
    }
    if (chunk == NULL && change->incarnation == 0)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk == NULL)
        chunk = disk_chunk_create(disk, &change->key, change->incarnation);
    chunk_set_epoch(chunk, change->config_epoch);
    if (change->lease_epoch > 0)
        disk_fence(disk, change->key.volume, change->lease_epoch);
    if (change->attempt <= chunk->attempt)
        return 0;
    chunk_attempt_begin(chunk, change->attempt);
    if (!DLBLK_MUTANT(chunkserver_skip_void))
        chunk_void(disk, chunk);
    disk->counters.attempts++;
    return 0;
}

static int
apply_in_sync(struct model_disk *disk, const struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &change->key);

    if (chunk == NULL && change->incarnation == 0)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk != NULL && chunk->incarnation < change->incarnation &&
        !DLBLK_MUTANT(chunkserver_keep_incarnation))
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk == NULL)
        chunk = disk_chunk_create(disk, &change->key, change->incarnation);
    if (change->config_epoch > chunk->attempt)
        apply_promotion(disk, chunk, change->config_epoch);
    return 0;
}

static int
apply_report(struct model_disk *disk, const struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &change->key);

    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk->attempt == 0 || chunk->attempt != change->attempt)
        return -DL_E_EPOCH_OLD;
    chunk_sources_hear(chunk, change->stable_version);
    return 0;
}

static void
apply_forget(struct model_disk *disk, const struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &change->key);
    struct model_chunk *content;

    if (chunk == NULL || chunk->attempt != 0 || change->stable_version > chunk->stable_version)
        return;
    content = chunk->store_private;
    for (uint32_t i = 0; i < content->sector_count; i++) {
        struct model_sector *sector = &content->sectors[i];

        if (sector->is_void || sector->kind != SECTOR_ZERO ||
            sector->version > change->stable_version)
            continue;
        sector_clear(disk, sector);
        disk->counters.zeroes_forgotten++;
    }
}

static int
apply_change(struct model_disk *disk, const struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &change->key);

    switch (change->kind) {
    case STORE_FENCE:
        volume_set_durable_fence(chunk_table_volume_get(disk->chunks, change->key.volume),
                                 change->lease_epoch);
        disk->counters.fences++;
        return 0;
    case STORE_STABLE:
        if (chunk == NULL)
            return -DL_E_CHUNK_UNKNOWN;
        /* It is confirmed, so it must not be lost. */
        dl_assert(change->attempt == chunk->attempt);
        (void)chunk_stable_hear(chunk, change->attempt, change->stable_version);
        return 0;
    case STORE_DELETE:
        if (chunk != NULL && chunk->incarnation <= change->incarnation)
            disk_chunk_remove(disk, chunk);
        return 0;
    case STORE_IN_SYNC:
        return apply_in_sync(disk, change);
    case STORE_ATTEMPT:
        return apply_attempt(disk, change);
    case STORE_REPORT:
        return apply_report(disk, change);
    case STORE_FORGET:
        apply_forget(disk, change);
        return 0;
    }
    dl_unreachable();
}

/* --- what was pulled --- */

static bool
merge_takes(struct chunk *chunk, const struct store_merge *merge, const struct store_sector *from)
{
    const struct model_sector *here = chunk_sector(chunk, from->sector);

    if (here->damaged_version != 0)
        return from->version >= here->damaged_version ||
               merge->stable_version >= here->damaged_version;
    if (merge->repair)
        return !here->is_void &&
               (here->version == from->version || DLBLK_MUTANT(chunkserver_repair_any_version));
    return here->is_void || from->version > here->version ||
           DLBLK_MUTANT(chunkserver_pull_overwrites);
}

/* Is the chunk another one by now than when the source was asked? */
static bool
merge_is_late(const struct chunk *chunk, const struct store_merge *merge)
{
    if (!merge->repair)
        return chunk->attempt == 0 || chunk->attempt != merge->attempt;
    return chunk->attempt != 0 || chunk->config_epoch != merge->config_epoch ||
           chunk->volume->lease_epoch != merge->lease_epoch;
}

static int
apply_merge(struct model_disk *disk, struct store_merge *merge)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &merge->key);
    const uint8_t *data = merge->payload;

    merge->taken_sectors = 0;
    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    if (merge_is_late(chunk, merge))
        return -DL_E_EPOCH_OLD;
    for (uint32_t i = 0; i < merge->sector_count; i++) {
        const struct store_sector *from = &merge->sectors[i];

        if (merge_takes(chunk, merge, from)) {
            /* Rule 23: the version that is bad, and that is always the same bytes. */
            if (merge->repair && !chunk_sector(chunk, from->sector)->is_void)
                dl_assert(from->crc == chunk_sector(chunk, from->sector)->crc);
            sector_set(disk, chunk_sector(chunk, from->sector), from->version, from->birth,
                       from->kind, from->crc, data);
            merge->taken_sectors++;
        }
        if (!merge->repair && from->version > merge->stable_version)
            chunk_pending_add_pulled(chunk, from->version, from->sector, 1);
        if (from->kind == SECTOR_DATA)
            data += SECTOR_BYTES;
    }
    disk->counters.merges++;
    disk->counters.sectors_merged += merge->taken_sectors;
    if (merge->repair)
        return 0;
    if (merge->cursor_sectors > chunk->cursor_sectors)
        chunk->cursor_sectors = merge->cursor_sectors;
    chunk_sources_hear(chunk, merge->stable_version);
    return 0;
}

static int
record_apply(struct model_disk *disk, const struct record *record)
{
    switch (record->kind) {
    case RECORD_WRITE:
        return apply_write(disk, record->write);
    case RECORD_CHANGE:
        return record->is_old ? 0 : apply_change(disk, record->change);
    case RECORD_MERGE:
        return apply_merge(disk, record->merge);
    }
    dl_unreachable();
}

/* --- time --- */

static void model_on_timer(struct env_timer *timer);

static void
model_arm(struct model_store *model)
{
    uint64_t due_ns = UINT64_MAX;
    uint64_t now_ns = env_now_ns(model->env);
    struct record *record;
    struct pending_read *read;
    struct pending_look *look;

    if (!list_is_empty(&model->groups))
        due_ns = list_first_entry(&model->groups, struct group, node)->due_ns;
    list_for_each_entry (record, &model->large, node)
        due_ns = record->due_ns < due_ns ? record->due_ns : due_ns;
    list_for_each_entry (read, &model->reads, node)
        due_ns = read->due_ns < due_ns ? read->due_ns : due_ns;
    list_for_each_entry (look, &model->looks, node)
        if (look->looked)
            due_ns = look->due_ns < due_ns ? look->due_ns : due_ns;
    if (due_ns == UINT64_MAX)
        env_timer_stop(model->env, &model->timer);
    else
        env_timer_start(model->env, &model->timer, due_ns > now_ns ? due_ns - now_ns : 0);
}

static uint64_t
model_due_ns(struct model_store *model, uint64_t min_ns, uint64_t max_ns)
{
    return env_now_ns(model->env) + fake_rng_range(&model->disk->rng, min_ns, max_ns);
}

static bool
model_chance(struct model_disk *disk, uint32_t per_million)
{
    return per_million > 0 && fake_rng_below(&disk->rng, 1000000) < per_million;
}

/* --- groups --- */

static void
model_close_group(struct model_store *model)
{
    const struct model_profile *profile = &model->disk->profile;
    struct group *group;

    if (list_is_empty(&model->open) || model->group_count == GROUPS_MAX)
        return;
    group = model_alloc(sizeof(*group));
    list_init(&group->records);
    list_splice_back(&group->records, &model->open);
    group->due_ns = model_due_ns(model, profile->group_ns_min, profile->group_ns_max);
    if (group->due_ns < model->last_due_ns)
        group->due_ns = model->last_due_ns;
    model->last_due_ns = group->due_ns;
    list_push_back(&model->groups, &group->node);
    model->group_count++;
    model->disk->counters.groups++;
    model_arm(model);
    if (model->disk->on_group != NULL)
        model->disk->on_group(model->disk->group_context);
}

/* A fence is answered when every write of its volume that came before it is durable. */
static bool
fence_must_wait(const struct model_store *model, const struct record *fence)
{
    struct record *record;

    if (fence->kind != RECORD_CHANGE || fence->change->kind != STORE_FENCE)
        return false;
    list_for_each_entry (record, &model->large, node)
        if (record->seq < fence->seq && record->key.volume == fence->change->key.volume)
            return true;
    list_for_each_entry (record, &model->open, node)
        if (record->seq < fence->seq && record->kind == RECORD_WRITE &&
            record->write->key.volume == fence->change->key.volume)
            return true;
    struct group *group;
    list_for_each_entry (group, &model->groups, node)
        list_for_each_entry (record, &group->records, node)
            if (record->seq < fence->seq && record->kind == RECORD_WRITE &&
                record->write->key.volume == fence->change->key.volume)
                return true;
    return false;
}

/* May free the request; the record is freed here. */
static void
record_complete(struct record *record, int err)
{
    struct store_write *write = record->write;
    struct store_change *change = record->change;
    struct store_merge *merge = record->merge;
    enum record_kind kind = record->kind;

    free(record);
    if (kind == RECORD_WRITE)
        write->on_done(write, err);
    else if (kind == RECORD_CHANGE)
        change->on_done(change, err);
    else if (kind == RECORD_MERGE)
        merge->on_done(merge, err);
}

static void
model_check_waiting(struct model_store *model)
{
    struct record *record, *following;

    list_for_each_entry_safe (record, following, &model->waiting, node) {
        if (fence_must_wait(model, record))
            continue;
        list_remove(&record->node);
        record_complete(record, 0);
    }
}

static void
model_check_stopped(struct model_store *model)
{
    if (!model->stopping || !list_is_empty(&model->open) || !list_is_empty(&model->groups) ||
        !list_is_empty(&model->large) || !list_is_empty(&model->waiting) ||
        !list_is_empty(&model->held) || !list_is_empty(&model->reads) ||
        !list_is_empty(&model->looks) || model->on_stopped == NULL)
        return;
    void (*on_stopped)(void *context, int err) = model->on_stopped;
    model->on_stopped = NULL;
    model->disk->counters.stops++;
    on_stopped(model->stop_context, 0);
}

/* What becomes of a record now that its group is durable. */
static int
record_take_effect(struct model_disk *disk, const struct record *record)
{
    if (record->kind != RECORD_WRITE && record->kind != RECORD_MERGE)
        return record_apply(disk, record);
    if (model_chance(disk, disk->profile.write_errors_per_million)) {
        disk->counters.write_errors++;
        return -DL_E_MEDIA_WRITE;
    }
    if (record->kind == RECORD_WRITE &&
        write_needs_space(disk, chunk_table_find(disk->chunks, &record->write->key),
                          record->write)) {
        disk->counters.no_space++;
        return -DL_E_NO_SPACE;
    }
    return record_apply(disk, record);
}

/* All take effect before the first is told: a fence's answer shows every write of its group. */
static void
group_acknowledge(struct model_store *model, struct group *group)
{
    struct record *record;
    struct list *node;

    list_remove(&group->node);
    model->group_count--;
    model->disk->journal_position++;
    list_for_each_entry (record, &group->records, node)
        record->err = record_take_effect(model->disk, record);
    while ((node = list_pop_front(&group->records)) != NULL) {
        record = list_entry(node, struct record, node);
        if (record->err == 0 && fence_must_wait(model, record))
            list_push_back(&model->waiting, &record->node);
        else
            record_complete(record, record->err);
    }
    free(group);
}

/* --- reads --- */

/* 0, or -DL_E_NOT_IN_SYNC. */
static int
read_fill(struct model_disk *disk, struct store_read *read)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &read->key);
    uint8_t *buffer = read->buffer;

    read->data_sectors = 0;
    for (uint32_t i = 0; i < read->length_sectors; i++) {
        const struct model_sector *sector = chunk_sector(chunk, read->offset_sectors + i);

        if (sector->is_void)
            return sector->damaged_version != 0 ? -DL_E_INDEX_CORRUPT : -DL_E_NOT_IN_SYNC;
        read->kinds[i] = (uint8_t)sector->kind;
        read->crcs[i] = sector->crc;
        if (sector->kind == SECTOR_DATA) {
            memcpy(buffer + (size_t)i * SECTOR_BYTES, sector->data, SECTOR_BYTES);
            read->data_sectors++;
        } else {
            memset(buffer + (size_t)i * SECTOR_BYTES, 0, SECTOR_BYTES);
        }
    }
    if (model_chance(disk, disk->profile.read_flips_per_million) && read->data_sectors > 0) {
        uint64_t bit = fake_rng_below(&disk->rng,
                                      (uint64_t)read->length_sectors * SECTOR_BYTES * 8);

        disk->counters.read_flips++;
        buffer[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    return 0;
}

static void
read_lookup(struct model_disk *disk, struct pending_read *pending)
{
    if (chunk_table_find(disk->chunks, &pending->read->key) == NULL)
        pending->err = -DL_E_CHUNK_UNKNOWN;
    else
        pending->err = read_fill(disk, pending->read);
}

static void
read_complete(struct model_store *model, struct pending_read *pending)
{
    struct store_read *read = pending->read;
    int err;

    if (pending->late)
        read_lookup(model->disk, pending);
    if (model_chance(model->disk, model->disk->profile.read_errors_per_million)) {
        model->disk->counters.read_errors++;
        pending->err = -DL_E_MEDIA_READ;
    }
    err = pending->err;
    list_remove(&pending->node);
    free(pending);
    read->on_done(read, err);
}

/* --- for slots that recover --- */

static bool
record_comes_before(const struct record *record, uint64_t seq, const struct chunk_key *key)
{
    return record->seq < seq && memcmp(&record->key, key, sizeof(*key)) == 0;
}

static bool
list_has_before(const struct list *records, uint64_t seq, const struct chunk_key *key)
{
    struct record *record;

    list_for_each_entry (record, records, node)
        if (record_comes_before(record, seq, key))
            return true;
    return false;
}

/* Is anything of the chunk under way that came before? */
static bool
pull_must_wait(const struct model_store *model, const struct pending_look *look)
{
    const struct chunk_key *key = &look->pull->key;
    struct group *group;

    if (DLBLK_MUTANT(chunkserver_pull_unfinished))
        return false;
    if (list_has_before(&model->large, look->seq, key) ||
        list_has_before(&model->held, look->seq, key) ||
        list_has_before(&model->open, look->seq, key))
        return true;
    list_for_each_entry (group, &model->groups, node)
        if (list_has_before(&group->records, look->seq, key))
            return true;
    return false;
}

static void
pull_take(struct store_pull *pull, uint32_t idx, const struct model_sector *from)
{
    struct store_sector *to = &pull->sectors[pull->sector_count++];

    *to = (struct store_sector){
        .sector = idx,
        .birth = from->birth,
        .version = from->version,
        .crc = from->crc,
        .kind = from->kind,
    };
    if (from->kind != SECTOR_DATA)
        return;
    if (!pull->without_data)
        memcpy((uint8_t *)pull->buffer + (size_t)pull->data_sectors * SECTOR_BYTES, from->data,
               SECTOR_BYTES);
    pull->data_sectors++;
}

static int
pull_scan(const struct model_disk *disk, struct chunk *chunk, struct store_pull *pull)
{
    static const struct model_sector beyond; /* a hole; a scrub asks for them up to 1 GiB */
    const struct model_chunk *content = chunk->store_private;
    uint32_t end = pull->first_sector + pull->window_sectors;
    uint32_t count_max = disk->slowness.pull_sectors_max != 0 ? disk->slowness.pull_sectors_max
                                                              : STORE_IO_SECTORS_MAX;

    if (pull->wanted == NULL && pull->first_sector >= content->sector_count)
        pull->next_sector = end; /* holes */

    for (; pull->next_sector < end && pull->sector_count < count_max; pull->next_sector++) {
        const struct model_sector *sector = pull->next_sector < content->sector_count
                                                ? &content->sectors[pull->next_sector]
                                                : &beyond;
        uint32_t bit = pull->next_sector - pull->first_sector;
        bool wanted = pull->wanted != NULL && (pull->wanted[bit / 64] >> (bit % 64) & 1) != 0;

        if (sector->is_void) {
            pull->bad_sector = pull->next_sector;
            return sector->damaged_version != 0 ? -DL_E_INDEX_CORRUPT : -DL_E_NOT_IN_SYNC;
        }
        if (wanted || sector->version > pull->above_version)
            pull_take(pull, pull->next_sector, sector);
    }
    return 0;
}

/* The disk may give something else than what was written; it is noticed here. */
static int
pull_check(struct model_disk *disk, struct store_pull *pull)
{
    uint8_t *data = pull->buffer;

    if (pull->data_sectors == 0 || pull->without_data)
        return 0;
    if (model_chance(disk, disk->profile.read_flips_per_million)) {
        disk->counters.read_flips++;
        data[fake_rng_below(&disk->rng, (uint64_t)pull->data_sectors * SECTOR_BYTES)] ^= 0x10;
    }
    for (uint32_t i = 0; i < pull->sector_count; i++) {
        if (pull->sectors[i].kind != SECTOR_DATA)
            continue;
        if (crc32c(0, data, SECTOR_BYTES) != pull->sectors[i].crc) {
            pull->bad_sector = pull->sectors[i].sector;
            return -DL_E_CRC_DATA;
        }
        data += SECTOR_BYTES;
    }
    return 0;
}

static int
pull_look(struct model_disk *disk, struct store_pull *pull)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &pull->key);
    int err;

    pull->sector_count = 0;
    pull->data_sectors = 0;
    pull->next_sector = pull->first_sector;
    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    pull->stable_version = chunk->stable_version;
    err = pull_scan(disk, chunk, pull);
    disk->counters.sectors_pulled += pull->sector_count;
    if (err == 0 && model_chance(disk, disk->profile.read_errors_per_million)) {
        disk->counters.read_errors++;
        err = -DL_E_MEDIA_READ;
    }
    return err != 0 ? err : pull_check(disk, pull);
}

static int
voids_look(struct model_disk *disk, struct store_voids *voids)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &voids->key);

    memset(voids->bits, 0, sizeof(voids->bits));
    voids->count = 0;
    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    for (uint32_t i = 0; i < voids->window_sectors; i++) {
        if (!chunk_sector(chunk, voids->first_sector + i)->is_void)
            continue;
        voids->bits[i / 64] |= 1ull << (i % 64);
        voids->count++;
    }
    return 0;
}

/* Those that may look now do so; their answers take the time of a read. */
static void
model_check_looks(struct model_store *model)
{
    const struct model_profile *profile = &model->disk->profile;
    struct pending_look *look;

    list_for_each_entry (look, &model->looks, node) {
        if (look->looked || (look->pull != NULL && pull_must_wait(model, look)))
            continue;
        look->looked = true;
        look->due_ns = model_due_ns(
            model, profile->read_ns_min,
            profile->read_ns_max + (look->pull != NULL ? model->disk->slowness.pull_ns_max : 0));
        if (look->pull != NULL)
            look->err = pull_look(model->disk, look->pull);
        else
            look->err = voids_look(model->disk, look->voids);
    }
    model_arm(model);
}

static void
look_complete(struct pending_look *look)
{
    struct store_pull *pull = look->pull;
    struct store_voids *voids = look->voids;
    int err = look->err;

    list_remove(&look->node);
    free(look);
    if (pull != NULL)
        pull->on_done(pull, err);
    else
        voids->on_done(voids, err);
}

/* An attempt begins when no write that came before it can follow it. */
static void
model_check_held(struct model_store *model)
{
    struct record *record, *following;

    list_for_each_entry_safe (record, following, &model->held, node) {
        if (list_has_before(&model->large, record->seq, &record->key))
            continue;
        list_remove(&record->node);
        list_push_back(&model->open, &record->node);
    }
}

/* --- events --- */

static bool
model_run_due(struct model_store *model, uint64_t now_ns)
{
    struct record *record;
    struct pending_read *read;
    struct pending_look *look;
    struct group *group;

    list_for_each_entry (look, &model->looks, node) {
        if (!look->looked || look->due_ns > now_ns)
            continue;
        look_complete(look);
        return true;
    }
    list_for_each_entry (record, &model->large, node) {
        if (record->due_ns > now_ns)
            continue;
        list_remove(&record->node);
        list_push_back(&model->open, &record->node);
        model_check_held(model);
        model_close_group(model);
        return true;
    }
    list_for_each_entry (read, &model->reads, node) {
        if (read->due_ns > now_ns)
            continue;
        read_complete(model, read);
        return true;
    }
    if (list_is_empty(&model->groups))
        return false;
    group = list_first_entry(&model->groups, struct group, node);
    if (group->due_ns > now_ns)
        return false;
    group_acknowledge(model, group);
    model_check_waiting(model);
    model_check_looks(model);
    model_close_group(model);
    return true;
}

static void
model_on_timer(struct env_timer *timer)
{
    struct model_store *model = list_entry(timer, struct model_store, timer);

    while (model_run_due(model, env_now_ns(model->env)))
        ;
    model_arm(model);
    model_check_stopped(model);
}

/* --- the interface --- */

/* It refuses older requests from now on, though a crash may still take it back. */
static void
model_raise_epoch(struct model_store *model, const struct chunk_key *key, uint32_t config_epoch)
{
    struct chunk *chunk = chunk_table_find(model->disk->chunks, key);

    if (chunk != NULL && config_epoch > chunk->config_epoch)
        chunk->config_epoch = config_epoch;
}

static bool
change_is_old(const struct model_store *model, const struct store_change *change)
{
    const struct chunk *chunk = chunk_table_find(model->disk->chunks, &change->key);

    return (change->kind == STORE_IN_SYNC || change->kind == STORE_ATTEMPT) && chunk != NULL &&
           change->config_epoch < chunk->config_epoch;
}

/* What was damaged on its way must not get here. */
static bool
payload_is_right(const struct store_write *write)
{
    const uint8_t *sector = write->payload;

    for (uint32_t i = 0; i < write->length_sectors && !write->zero; i++, sector += SECTOR_BYTES)
        if (crc32c(0, sector, SECTOR_BYTES) != write->crcs[i])
            return false;
    return true;
}

static void
model_write_start(struct chunk_store *store, struct store_write *write)
{
    struct model_store *model = model_of(store);
    struct record *record = model_alloc(sizeof(*record));

    dl_assert(!model->stopping);
    dl_assert(write->length_sectors > 0);
    dl_assert(write->zero || write->length_sectors <= STORE_IO_SECTORS_MAX);
    dl_assert(payload_is_right(write));
    record->kind = RECORD_WRITE;
    record->seq = model->next_seq++;
    record->key = write->key;
    record->write = write;
    model_raise_epoch(model, &write->key, write->config_epoch);
    model->disk->counters.writes++;
    if (!write->zero && write->length_sectors >= LARGE_SECTORS_MIN) {
        model->disk->counters.large_writes++;
        record->due_ns = model_due_ns(
            model, 0, model->disk->profile.large_ns_max + model->disk->slowness.large_ns_max);
        list_push_back(&model->large, &record->node);
        model_arm(model);
    } else {
        list_push_back(&model->open, &record->node);
    }
}

static void
model_read_start(struct chunk_store *store, struct store_read *read)
{
    struct model_store *model = model_of(store);
    const struct model_profile *profile = &model->disk->profile;
    struct pending_read *pending = model_alloc(sizeof(*pending));

    dl_assert(!model->stopping);
    dl_assert(read->length_sectors > 0);
    dl_assert(read->length_sectors <= STORE_IO_SECTORS_MAX);
    pending->read = read;
    pending->due_ns = model_due_ns(model, profile->read_ns_min, profile->read_ns_max);
    if (model->disk->slowness.read_ns_max > 0 && fake_rng_percent(&model->disk->rng, 10))
        pending->due_ns += fake_rng_below(&model->disk->rng, model->disk->slowness.read_ns_max);
    pending->late = fake_rng_percent(&model->disk->rng, 50);
    if (!pending->late)
        read_lookup(model->disk, pending);
    model->disk->counters.reads++;
    list_push_back(&model->reads, &pending->node);
    model_arm(model);
}

static void
model_change_start(struct chunk_store *store, struct store_change *change)
{
    struct model_store *model = model_of(store);
    struct record *record = model_alloc(sizeof(*record));

    dl_assert(!model->stopping);
    record->kind = RECORD_CHANGE;
    record->seq = model->next_seq++;
    record->key = change->key;
    record->change = change;
    if (change->kind == STORE_FENCE)
        chunk_table_fence_raise(model->disk->chunks, change->key.volume, change->lease_epoch);
    record->is_old = change_is_old(model, change);
    if (change->kind == STORE_IN_SYNC)
        model_raise_epoch(model, &change->key, change->config_epoch);
    if (change->kind == STORE_ATTEMPT && list_has_before(&model->large, record->seq, &record->key))
        list_push_back(&model->held, &record->node);
    else
        list_push_back(&model->open, &record->node);
}

static void
model_pull_start(struct chunk_store *store, struct store_pull *pull)
{
    struct model_store *model = model_of(store);
    struct pending_look *look = model_alloc(sizeof(*look));

    dl_assert(!model->stopping);
    dl_assert(pull->window_sectors > 0);
    dl_assert(pull->window_sectors <= STORE_WINDOW_SECTORS_MAX);
    look->pull = pull;
    look->seq = model->next_seq++;
    model->disk->counters.pulls++;
    list_push_back(&model->looks, &look->node);
    model_check_looks(model);
}

static void
model_voids_start(struct chunk_store *store, struct store_voids *voids)
{
    struct model_store *model = model_of(store);
    struct pending_look *look = model_alloc(sizeof(*look));

    dl_assert(!model->stopping);
    dl_assert(voids->window_sectors > 0);
    dl_assert(voids->window_sectors <= STORE_WINDOW_SECTORS_MAX);
    look->voids = voids;
    look->seq = model->next_seq++;
    list_push_back(&model->looks, &look->node);
    model_check_looks(model);
}

static uint32_t
merge_data_sectors(const struct store_merge *merge)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < merge->sector_count; i++) {
        dl_assert(i == 0 || merge->sectors[i].sector > merge->sectors[i - 1].sector);
        count += merge->sectors[i].kind == SECTOR_DATA;
    }
    return count;
}

static void
model_merge_start(struct chunk_store *store, struct store_merge *merge)
{
    struct model_store *model = model_of(store);
    struct record *record = model_alloc(sizeof(*record));

    dl_assert(!model->stopping);
    dl_assert(merge->sector_count <= STORE_IO_SECTORS_MAX);
    record->kind = RECORD_MERGE;
    record->seq = model->next_seq++;
    record->key = merge->key;
    record->merge = merge;
    if (merge_data_sectors(merge) >= LARGE_SECTORS_MIN) {
        record->due_ns = model_due_ns(model, 0, model->disk->profile.large_ns_max);
        list_push_back(&model->large, &record->node);
        model_arm(model);
    } else {
        list_push_back(&model->open, &record->node);
    }
}

static void
model_turn_end(struct chunk_store *store)
{
    model_close_group(model_of(store));
}

static void
model_get_stats(struct chunk_store *store, struct store_stats *ret_stats)
{
    const struct model_disk *disk = model_of(store)->disk;
    uint64_t used_bytes = disk->used_sectors * SECTOR_BYTES;

    *ret_stats = (struct store_stats){
        .capacity_bytes = disk->capacity_bytes,
        .used_bytes = used_bytes,
        .available_bytes = disk->capacity_bytes > used_bytes ? disk->capacity_bytes - used_bytes
                                                             : 0,
        .chunk_count = disk->chunks->chunk_count,
        .journal_position = disk->journal_position,
        .damaged = disk->damaged,
    };
}

static void
model_stop(struct chunk_store *store, void (*on_done)(void *context, int err), void *context)
{
    struct model_store *model = model_of(store);

    model->stopping = true;
    model->on_stopped = on_done;
    model->stop_context = context;
    model_close_group(model);
    env_timer_start(model->env, &model->timer, 0);
}

/* A mistake: it may have been promoted meanwhile, and then nobody sends again what is lost here. */
static void
disk_void_recovering(struct model_disk *disk)
{
    struct chunk *chunk, *next;

    HASH_ITER (by_key, disk->chunks->by_key, chunk, next)
        if (chunk->attempt != 0)
            chunk_void(disk, chunk);
}

struct chunk_store *
model_store_open(struct model_disk *disk, struct env *env)
{
    static const struct chunk_store_ops ops = {
        .write_start = model_write_start,
        .read_start = model_read_start,
        .change_start = model_change_start,
        .pull_start = model_pull_start,
        .voids_start = model_voids_start,
        .merge_start = model_merge_start,
        .turn_end = model_turn_end,
        .get_stats = model_get_stats,
        .stop = model_stop,
    };
    struct model_store *model = model_alloc(sizeof(*model));

    model->store.ops = &ops;
    model->store.chunks = disk->chunks;
    model->disk = disk;
    model->env = env;
    list_init(&model->open);
    list_init(&model->groups);
    list_init(&model->large);
    list_init(&model->held);
    list_init(&model->waiting);
    list_init(&model->reads);
    list_init(&model->looks);
    model->timer.fn = model_on_timer;
    disk->start_count++;
    disk->journal_position++;
    if (DLBLK_MUTANT(chunkserver_void_at_start))
        disk_void_recovering(disk);
    return &model->store;
}

/* --- crash --- */

static void
records_drop(struct list *records)
{
    struct list *node;

    while ((node = list_pop_front(records)) != NULL)
        free(list_entry(node, struct record, node));
}

static void
group_crash(struct model_disk *disk, struct group *group, bool keep)
{
    struct record *record;

    list_for_each_entry (record, &group->records, node) {
        if (keep) {
            disk->counters.records_kept++;
            (void)record_apply(disk, record);
        } else {
            disk->counters.records_lost++;
        }
    }
    if (keep) {
        disk->counters.groups_kept++;
        disk->journal_position++;
    } else {
        disk->counters.groups_lost++;
    }
    records_drop(&group->records);
    free(group);
}

static void
disk_undo_fences(struct model_disk *disk)
{
    struct chunk_volume *volume, *next;

    HASH_ITER (by_volume, disk->chunks->volumes, volume, next) {
        if (volume->lease_epoch != volume_durable_fence(volume))
            disk->counters.fences_undone++;
        volume->lease_epoch = volume_durable_fence(volume);
    }
}

/* What no record has carried: of requests that failed too. */
static void
disk_undo_epochs(struct model_disk *disk)
{
    struct chunk *chunk, *next;

    HASH_ITER (by_key, disk->chunks->by_key, chunk, next) {
        const struct model_chunk *content = chunk->store_private;

        disk->counters.epochs_undone += chunk->config_epoch != content->config_epoch;
        chunk->config_epoch = content->config_epoch;
    }
}

void
model_store_crash(struct chunk_store *store)
{
    struct model_store *model = model_of(store);
    struct model_disk *disk = model->disk;
    uint64_t keep = fake_rng_below(&disk->rng, model->group_count + 1);
    struct list *node;

    disk->counters.crashes++;
    while ((node = list_pop_front(&model->groups)) != NULL) {
        group_crash(disk, list_entry(node, struct group, node), keep > 0);
        keep -= keep > 0;
    }
    disk_undo_fences(disk);
    model_store_destroy(store);
}

void
model_store_destroy(struct chunk_store *store)
{
    struct model_store *model = model_of(store);
    struct list *node;

    disk_undo_epochs(model->disk);
    records_drop(&model->open);
    records_drop(&model->large);
    records_drop(&model->held);
    records_drop(&model->waiting);
    while ((node = list_pop_front(&model->looks)) != NULL)
        free(list_entry(node, struct pending_look, node));
    while ((node = list_pop_front(&model->reads)) != NULL)
        free(list_entry(node, struct pending_read, node));
    free(model);
}
