/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/model_store.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/list.h"
#include "dlblk/error.h"

#define GROUPS_MAX        2u
#define LARGE_SECTORS_MIN 17u /* more than 64 KiB of data */
#define CAPACITY_BYTES    (1ull << 36)

enum record_kind { RECORD_WRITE, RECORD_CHANGE, RECORD_HINT };

/* One request, from its start to its on_done. */
struct record {
    struct list node; /* of its group, of large, or of waiting */
    enum record_kind kind;
    uint64_t seq; /* of its start */
    uint64_t due_ns;
    struct store_write *write;
    struct store_change *change;
    struct chunk_key key;    /* RECORD_HINT */
    uint64_t stable_version; /* RECORD_HINT */
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

struct model_store {
    struct chunk_store store; /* first */
    struct model_disk *disk;
    struct env *env;
    struct list open;    /* records of the next group */
    struct list groups;  /* under way */
    struct list large;   /* writes whose data is being written */
    struct list waiting; /* fences, durable, that wait for large writes of their volume */
    struct list reads;
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

void
model_disk_fini(struct model_disk *disk)
{
    struct chunk *chunk, *next;

    HASH_ITER (by_local_id, disk->chunks->by_local_id, chunk, next)
        model_chunk_free(disk, chunk);
    chunk_table_destroy(disk->chunks);
    disk->chunks = NULL;
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

static struct chunk *
disk_chunk_create(struct model_disk *disk, const struct chunk_key *key, uint32_t incarnation)
{
    struct chunk *chunk = chunk_table_add(disk->chunks, key, disk->next_local_id++, incarnation);

    chunk->store_private = model_alloc(sizeof(struct model_chunk));
    return chunk;
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

/* --- a record takes effect --- */

static void
apply_sector(struct model_disk *disk, struct chunk *chunk, const struct store_write *write,
             uint32_t idx)
{
    struct model_sector *sector = chunk_sector(chunk, write->offset_sectors + idx);

    if (write->version <= sector->version) {
        disk->counters.outdated_sectors++;
        return;
    }
    sector_clear(disk, sector);
    sector->version = write->version;
    sector->birth = write->birth;
    sector->kind = write->zero ? SECTOR_ZERO : SECTOR_DATA;
    if (write->zero)
        return;
    sector->crc = write->crcs[idx];
    sector->data = malloc(SECTOR_BYTES);
    dl_assert(sector->data != NULL);
    memcpy(sector->data, (const uint8_t *)write->payload + (size_t)idx * SECTOR_BYTES,
           SECTOR_BYTES);
    disk->used_sectors++;
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

static int
apply_write(struct model_disk *disk, const struct store_write *write)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &write->key);

    if (chunk == NULL && !write->create)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk == NULL)
        chunk = disk_chunk_create(disk, &write->key, write->config_epoch);
    if (write->config_epoch > chunk->config_epoch)
        chunk->config_epoch = write->config_epoch;
    if (chunk_version_is_durable(chunk, write->version)) {
        disk->counters.duplicates++;
    } else {
        for (uint32_t i = 0; i < write->length_sectors; i++)
            apply_sector(disk, chunk, write, i);
        chunk_pending_add(chunk, write->version, write->offset_sectors, write->length_sectors);
        disk->counters.zeroes += write->zero;
    }
    (void)chunk_stable_raise(chunk, write->stable_version);
    return 0;
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
    case STORE_EPOCH:
        if (chunk == NULL && !change->create)
            return -DL_E_CHUNK_UNKNOWN;
        if (chunk == NULL)
            chunk = disk_chunk_create(disk, &change->key, change->config_epoch);
        if (change->config_epoch > chunk->config_epoch)
            chunk->config_epoch = change->config_epoch;
        return 0;
    case STORE_STABLE:
        if (chunk == NULL)
            return -DL_E_CHUNK_UNKNOWN;
        (void)chunk_stable_raise(chunk, change->stable_version);
        return 0;
    case STORE_DELETE:
        if (chunk != NULL && chunk->incarnation <= change->incarnation) {
            model_chunk_free(disk, chunk);
            chunk_table_remove(disk->chunks, chunk);
            disk->counters.deletes++;
        }
        return 0;
    case STORE_IN_SYNC:
    case STORE_ATTEMPT:
    case STORE_REPORT:
        break; /* nobody asks for it yet */
    }
    dl_unreachable();
}

static int
record_apply(struct model_disk *disk, const struct record *record)
{
    struct chunk *chunk;

    switch (record->kind) {
    case RECORD_WRITE:
        return apply_write(disk, record->write);
    case RECORD_CHANGE:
        return apply_change(disk, record->change);
    case RECORD_HINT:
        chunk = chunk_table_find(disk->chunks, &record->key);
        if (chunk != NULL)
            (void)chunk_stable_raise(chunk, record->stable_version);
        return 0;
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

    if (!list_is_empty(&model->groups))
        due_ns = list_first_entry(&model->groups, struct group, node)->due_ns;
    list_for_each_entry (record, &model->large, node)
        due_ns = record->due_ns < due_ns ? record->due_ns : due_ns;
    list_for_each_entry (read, &model->reads, node)
        due_ns = read->due_ns < due_ns ? read->due_ns : due_ns;
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
        if (record->seq < fence->seq && record->write->key.volume == fence->change->key.volume)
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
    enum record_kind kind = record->kind;

    free(record);
    if (kind == RECORD_WRITE)
        write->on_done(write, err);
    else if (kind == RECORD_CHANGE)
        change->on_done(change, err);
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
        !list_is_empty(&model->reads) || model->on_stopped == NULL)
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
    if (record->kind != RECORD_WRITE)
        return record_apply(disk, record);
    if (model_chance(disk, disk->profile.write_errors_per_million)) {
        disk->counters.write_errors++;
        return -DL_E_MEDIA_WRITE;
    }
    if (write_needs_space(disk, chunk_table_find(disk->chunks, &record->write->key),
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

static void
read_fill(struct model_disk *disk, struct store_read *read)
{
    struct chunk *chunk = chunk_table_find(disk->chunks, &read->key);
    uint8_t *buffer = read->buffer;

    read->data_sectors = 0;
    for (uint32_t i = 0; i < read->length_sectors; i++) {
        const struct model_sector *sector = chunk_sector(chunk, read->offset_sectors + i);

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
}

static void
read_lookup(struct model_disk *disk, struct pending_read *pending)
{
    if (chunk_table_find(disk->chunks, &pending->read->key) == NULL)
        pending->err = -DL_E_CHUNK_UNKNOWN;
    else
        read_fill(disk, pending->read);
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

/* --- events --- */

static bool
model_run_due(struct model_store *model, uint64_t now_ns)
{
    struct record *record;
    struct pending_read *read;
    struct group *group;

    list_for_each_entry (record, &model->large, node) {
        if (record->due_ns > now_ns)
            continue;
        list_remove(&record->node);
        list_push_back(&model->open, &record->node);
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

static void
model_write_start(struct chunk_store *store, struct store_write *write)
{
    struct model_store *model = model_of(store);
    struct record *record = model_alloc(sizeof(*record));

    dl_assert(!model->stopping);
    dl_assert(write->length_sectors > 0);
    dl_assert(write->zero || write->length_sectors <= STORE_IO_SECTORS_MAX);
    record->kind = RECORD_WRITE;
    record->seq = model->next_seq++;
    record->write = write;
    model->disk->counters.writes++;
    if (!write->zero && write->length_sectors >= LARGE_SECTORS_MIN) {
        model->disk->counters.large_writes++;
        record->due_ns = model_due_ns(model, 0, model->disk->profile.large_ns_max);
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
    record->change = change;
    if (change->kind == STORE_FENCE)
        chunk_table_fence_raise(model->disk->chunks, change->key.volume, change->lease_epoch);
    list_push_back(&model->open, &record->node);
}

static void
model_stable_hint(struct chunk_store *store, const struct chunk_key *key, uint64_t stable_version)
{
    struct model_store *model = model_of(store);
    struct record *record = model_alloc(sizeof(*record));

    record->kind = RECORD_HINT;
    record->seq = model->next_seq++;
    record->key = *key;
    record->stable_version = stable_version;
    list_push_back(&model->open, &record->node);
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
        .capacity_bytes = CAPACITY_BYTES,
        .used_bytes = used_bytes,
        .available_bytes = CAPACITY_BYTES - used_bytes,
        .chunk_count = disk->chunks->chunk_count,
        .journal_position = disk->journal_position,
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

struct chunk_store *
model_store_open(struct model_disk *disk, struct env *env)
{
    static const struct chunk_store_ops ops = {
        .write_start = model_write_start,
        .read_start = model_read_start,
        .change_start = model_change_start,
        .stable_hint = model_stable_hint,
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
    list_init(&model->waiting);
    list_init(&model->reads);
    model->timer.fn = model_on_timer;
    disk->start_count++;
    disk->journal_position++;
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

    records_drop(&model->open);
    records_drop(&model->large);
    records_drop(&model->waiting);
    while ((node = list_pop_front(&model->reads)) != NULL)
        free(list_entry(node, struct pending_read, node));
    free(model);
}
