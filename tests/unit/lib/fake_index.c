/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lib/fake_index.h"

#include <stdlib.h>
#include <string.h>

#include "dlblk/error.h"

/* Immutable once it is in a map, shared between maps by reference. */
struct fake_index_entry {
    uint32_t refs;
    uint32_t key_bytes;
    uint32_t value_bytes;
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint8_t value[];
};

enum batch_kind { BATCH_PUT, BATCH_MERGE, BATCH_DELETE };

struct batch_operation {
    enum batch_kind kind;
    struct fake_index_entry *entry;
};

struct index_batch {
    struct fake_index *fake;
    struct batch_operation *operations;
    uint32_t count, capacity;
    uint64_t bytes;
    index_done_fn on_done;
    void *context;
    int err; /* a batch that is to fail: it is never applied */
};

struct fake_index_event {
    struct index_get *get; /* or a flush: */
    index_done_fn on_done;
    void *context;
    struct index_batch *covers; /* the last batch reported when the flush was started */
    uint32_t seq;
};

static void
fake_index_require(bool condition)
{
    if (!condition)
        abort();
}

static void *
fake_index_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes);

    fake_index_require(memory != NULL);
    return memory;
}

static void
fake_index_grow(void **array, uint32_t count, uint32_t *capacity)
{
    if (count < *capacity)
        return;
    *capacity = *capacity * 2 + 16;
    *array = realloc(*array, *capacity * sizeof(void *));
    fake_index_require(*array != NULL);
}

/* --- entries and maps --- */

static struct fake_index_entry *
entry_create(const void *key, uint32_t key_bytes, const void *value, uint32_t value_bytes)
{
    struct fake_index_entry *entry = fake_index_alloc(sizeof(*entry) + value_bytes);

    fake_index_require(key_bytes > 0 && key_bytes <= INDEX_KEY_BYTES_MAX);
    entry->refs = 1;
    entry->key_bytes = key_bytes;
    entry->value_bytes = value_bytes;
    memcpy(entry->key, key, key_bytes);
    if (value_bytes > 0)
        memcpy(entry->value, value, value_bytes);
    return entry;
}

static void
entry_unref(struct fake_index_entry *entry)
{
    if (--entry->refs == 0)
        free(entry);
}

static int
key_compare(const uint8_t *a, uint32_t a_bytes, const uint8_t *b, uint32_t b_bytes)
{
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);

    if (order != 0)
        return order;
    return (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

/* The place of the first entry with a key >= key. */
static uint32_t
map_lower_bound(const struct fake_index_map *map, const uint8_t *key, uint32_t key_bytes)
{
    uint32_t low = 0, high = map->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct fake_index_entry *entry = map->entries[middle];

        if (key_compare(entry->key, entry->key_bytes, key, key_bytes) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct fake_index_entry *
map_at(const struct fake_index_map *map, uint32_t idx, const uint8_t *key, uint32_t key_bytes)
{
    struct fake_index_entry *entry;

    if (idx >= map->count)
        return NULL;
    entry = map->entries[idx];
    return key_compare(entry->key, entry->key_bytes, key, key_bytes) == 0 ? entry : NULL;
}

/* Takes the reference. */
static void
map_set(struct fake_index_map *map, struct fake_index_entry *entry)
{
    uint32_t idx = map_lower_bound(map, entry->key, entry->key_bytes);
    struct fake_index_entry *old = map_at(map, idx, entry->key, entry->key_bytes);

    if (old != NULL) {
        entry_unref(old);
        map->entries[idx] = entry;
        return;
    }
    fake_index_grow((void **)&map->entries, map->count, &map->capacity);
    memmove(&map->entries[idx + 1], &map->entries[idx],
            (map->count - idx) * sizeof(map->entries[0]));
    map->entries[idx] = entry;
    map->count++;
}

static void
map_remove(struct fake_index_map *map, const uint8_t *key, uint32_t key_bytes)
{
    uint32_t idx = map_lower_bound(map, key, key_bytes);
    struct fake_index_entry *old = map_at(map, idx, key, key_bytes);

    if (old == NULL)
        return;
    entry_unref(old);
    map->count--;
    memmove(&map->entries[idx], &map->entries[idx + 1],
            (map->count - idx) * sizeof(map->entries[0]));
}

static void
map_merge(struct fake_index_map *map, const struct fake_index_entry *operand)
{
    uint32_t idx = map_lower_bound(map, operand->key, operand->key_bytes);
    struct fake_index_entry *old = map_at(map, idx, operand->key, operand->key_bytes);
    uint32_t old_bytes = old != NULL ? old->value_bytes : 0;
    struct fake_index_entry *entry = fake_index_alloc(sizeof(*entry) + old_bytes +
                                                      operand->value_bytes);

    memcpy(entry, operand, sizeof(*entry));
    entry->refs = 1;
    entry->value_bytes = old_bytes + operand->value_bytes;
    if (old != NULL)
        memcpy(entry->value, old->value, old_bytes);
    memcpy(entry->value + old_bytes, operand->value, operand->value_bytes);
    map_set(map, entry);
}

static void
map_clear(struct fake_index_map *map)
{
    for (uint32_t i = 0; i < map->count; i++)
        entry_unref(map->entries[i]);
    map->count = 0;
}

static void
map_copy(struct fake_index_map *to, const struct fake_index_map *from)
{
    map_clear(to);
    if (to->capacity < from->count) {
        to->capacity = from->count + 16;
        to->entries = realloc(to->entries, to->capacity * sizeof(void *));
        fake_index_require(to->entries != NULL);
    }
    for (uint32_t i = 0; i < from->count; i++) {
        to->entries[i] = from->entries[i];
        to->entries[i]->refs++;
    }
    to->count = from->count;
}

/* --- batches --- */

static void
batch_apply(const struct index_batch *batch, struct fake_index_map *map)
{
    if (batch->err != 0)
        return;
    for (uint32_t i = 0; i < batch->count; i++) {
        struct fake_index_entry *entry = batch->operations[i].entry;

        switch (batch->operations[i].kind) {
        case BATCH_PUT:
            entry->refs++;
            map_set(map, entry);
            break;
        case BATCH_MERGE:
            map_merge(map, entry);
            break;
        case BATCH_DELETE:
            map_remove(map, entry->key, entry->key_bytes);
            break;
        }
    }
}

static void
batch_destroy(struct index_batch *batch)
{
    for (uint32_t i = 0; i < batch->count; i++)
        entry_unref(batch->operations[i].entry);
    free(batch->operations);
    free(batch);
}

static struct fake_index *
fake_index_of(struct index *index)
{
    return (struct fake_index *)index;
}

static struct index_batch *
fake_index_batch_create(struct index *index)
{
    struct index_batch *batch = fake_index_alloc(sizeof(*batch));

    batch->fake = fake_index_of(index);
    return batch;
}

static void
batch_add(struct index_batch *batch, enum batch_kind kind, const void *key, uint32_t key_bytes,
          const void *value, uint32_t value_bytes)
{
    if (batch->count == batch->capacity) {
        batch->capacity = batch->capacity * 2 + 16;
        batch->operations = realloc(batch->operations,
                                    batch->capacity * sizeof(batch->operations[0]));
        fake_index_require(batch->operations != NULL);
    }
    batch->operations[batch->count++] = (struct batch_operation){
        .kind = kind, .entry = entry_create(key, key_bytes, value, value_bytes)};
    batch->bytes += key_bytes + value_bytes;
    batch->fake->operations++;
}

static void
fake_index_batch_put(struct index_batch *batch, const void *key, uint32_t key_bytes,
                     const void *value, uint32_t value_bytes)
{
    batch->fake->puts++;
    batch_add(batch, BATCH_PUT, key, key_bytes, value, value_bytes);
}

static void
fake_index_batch_merge(struct index_batch *batch, const void *key, uint32_t key_bytes,
                       const void *value, uint32_t value_bytes)
{
    batch->fake->merges++;
    batch_add(batch, BATCH_MERGE, key, key_bytes, value, value_bytes);
}

static void
fake_index_batch_delete(struct index_batch *batch, const void *key, uint32_t key_bytes)
{
    batch->fake->deletes++;
    batch_add(batch, BATCH_DELETE, key, key_bytes, NULL, 0);
}

static void
fake_index_batch_start(struct index *index, struct index_batch *batch, index_done_fn on_done,
                       void *context)
{
    struct fake_index *fake = fake_index_of(index);

    fake_index_require(!fake->closed);
    fake->batch_starts++;
    batch->on_done = on_done;
    batch->context = context;
    if (fake->fail_batches > 0) {
        fake->fail_batches--;
        batch->err = fake->fail_err;
    }
    fake_index_grow((void **)&fake->batches, fake->batch_count, &fake->batch_capacity);
    fake->batches[fake->batch_count++] = batch;
}

/* --- gets and flushes --- */

static void
fake_index_event_add(struct fake_index *fake, struct fake_index_event event)
{
    struct fake_index_event *copy = fake_index_alloc(sizeof(*copy));

    *copy = event;
    fake_index_grow((void **)&fake->events, fake->event_count, &fake->event_capacity);
    fake->events[fake->event_count++] = copy;
}

static void
fake_index_get_start(struct index *index, struct index_get *chain)
{
    struct fake_index *fake = fake_index_of(index);

    fake_index_require(!fake->closed && chain != NULL);
    for (struct index_get *get = chain; get != NULL; get = get->next) {
        fake->gets++;
        fake_index_event_add(fake, (struct fake_index_event){.get = get});
    }
}

static void
fake_index_flush_start(struct index *index, index_done_fn on_done, void *context)
{
    struct fake_index *fake = fake_index_of(index);

    fake_index_require(!fake->closed);
    fake->flushes++;
    fake_index_event_add(
        fake, (struct fake_index_event){.on_done = on_done,
                                        .context = context,
                                        .covers = fake->reported_count > 0
                                                      ? fake->batches[fake->reported_count - 1]
                                                      : NULL});
}

/* --- one event --- */

/* Forget the first n batches: they are in `durable`. */
static void
fake_index_make_durable(struct fake_index *fake, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        batch_apply(fake->batches[i], &fake->durable);
        fake->bytes_written += fake->batches[i]->bytes;
    }
    for (uint32_t e = 0; e < fake->event_count; e++)
        for (uint32_t i = 0; i < n; i++)
            if (fake->events[e]->covers == fake->batches[i])
                fake->events[e]->covers = NULL;
    for (uint32_t i = 0; i < n; i++)
        batch_destroy(fake->batches[i]);
    fake->batch_count -= n;
    fake->applied_count -= n;
    fake->reported_count -= n;
    memmove(&fake->batches[0], &fake->batches[n], fake->batch_count * sizeof(fake->batches[0]));
}

static uint32_t
fake_index_covered(const struct fake_index *fake, const struct index_batch *covers)
{
    for (uint32_t i = 0; i < fake->batch_count && covers != NULL; i++)
        if (fake->batches[i] == covers)
            return i + 1;
    return 0;
}

static void
fake_index_finish_flush(struct fake_index *fake, struct fake_index_event *event)
{
    uint32_t n = fake_index_covered(fake, event->covers);
    int err = 0;

    if (fake->fail_flushes > 0) {
        fake->fail_flushes--;
        err = fake->fail_err;
    } else {
        if (fake_rng_percent(&fake->env->rng, 30))
            n = (uint32_t)fake_rng_range(&fake->env->rng, n, fake->reported_count);
        fake_index_make_durable(fake, n);
    }
    event->on_done(event->context, err);
}

static void
fake_index_finish_get(struct fake_index *fake, struct index_get *get)
{
    uint32_t idx = map_lower_bound(&fake->current, get->key, get->key_bytes);
    struct fake_index_entry *entry = map_at(&fake->current, idx, get->key, get->key_bytes);

    get->value = NULL;
    get->value_bytes = 0;
    if (fake->fail_gets > 0) {
        fake->fail_gets--;
        get->on_done(get, fake->fail_err);
        return;
    }
    if (entry == NULL) {
        get->on_done(get, -DL_E_NOT_FOUND);
        return;
    }
    get->value = fake_index_alloc(entry->value_bytes + 1u);
    memcpy(get->value, entry->value, entry->value_bytes);
    get->value_bytes = entry->value_bytes;
    get->on_done(get, 0);
}

static void
fake_index_report_batch(struct fake_index *fake)
{
    struct index_batch *batch = fake->batches[fake->reported_count++];

    batch->on_done(batch->context, batch->err);
}

/* Batches go through two steps: applied, then reported. */
static uint32_t
fake_index_source_pending(void *context)
{
    struct fake_index *fake = context;

    if (fake->held)
        return 0;
    return fake->event_count + (fake->applied_count < fake->batch_count ? 1 : 0) +
           (fake->reported_count < fake->applied_count ? 1 : 0);
}

static void
fake_index_source_step(void *context)
{
    struct fake_index *fake = context;
    uint32_t pick = (uint32_t)fake_rng_below(&fake->env->rng, fake_index_source_pending(fake));
    struct fake_index_event *event;

    if (pick >= fake->event_count) {
        bool can_apply = fake->applied_count < fake->batch_count;
        bool can_report = fake->reported_count < fake->applied_count;

        if (can_apply && (!can_report || pick == fake->event_count)) {
            batch_apply(fake->batches[fake->applied_count], &fake->current);
            fake->applied_count++;
        } else {
            fake_index_report_batch(fake);
        }
        return;
    }
    event = fake->events[pick];
    fake->events[pick] = fake->events[--fake->event_count];
    if (event->get != NULL)
        fake_index_finish_get(fake, event->get);
    else
        fake_index_finish_flush(fake, event);
    free(event);
}

/* --- blocking forms --- */

static int
fake_index_scan_now(struct index *index, const void *prefix, uint32_t prefix_bytes,
                    index_scan_fn fn, void *context)
{
    struct fake_index *fake = fake_index_of(index);
    struct fake_index_map seen = {0}; /* fn may be slow, and a batch may be applied meanwhile */
    int err = 0;

    map_copy(&seen, &fake->current);
    for (uint32_t i = map_lower_bound(&seen, prefix, prefix_bytes); i < seen.count && err == 0;
         i++) {
        const struct fake_index_entry *entry = seen.entries[i];

        if (entry->key_bytes < prefix_bytes || memcmp(entry->key, prefix, prefix_bytes) != 0)
            break;
        err = fn(context, entry->key, entry->key_bytes, entry->value, entry->value_bytes);
    }
    map_clear(&seen);
    free(seen.entries);
    return err;
}

static uint64_t
fake_index_device_bytes_written(struct index *index)
{
    return fake_index_of(index)->bytes_written;
}

static void
fake_index_close(struct index *index)
{
    struct fake_index *fake = fake_index_of(index);

    fake_index_require(!fake->closed);
    fake->held = false;
    while (fake_index_source_pending(fake) > 0)
        fake_index_source_step(fake);
    fake->closed = true;
}

static const struct index_ops fake_index_ops = {
    .get_start = fake_index_get_start,
    .batch_create = fake_index_batch_create,
    .batch_put = fake_index_batch_put,
    .batch_merge = fake_index_batch_merge,
    .batch_delete = fake_index_batch_delete,
    .batch_start = fake_index_batch_start,
    .flush_start = fake_index_flush_start,
    .scan_now = fake_index_scan_now,
    .device_bytes_written = fake_index_device_bytes_written,
    .close = fake_index_close,
};

/* --- life --- */

void
fake_index_init(struct fake_index *fake, struct fake_env *env)
{
    memset(fake, 0, sizeof(*fake));
    fake->index.ops = &fake_index_ops;
    fake->env = env;
    fake_env_add_source(env, (struct fake_source){.pending = fake_index_source_pending,
                                                  .step = fake_index_source_step,
                                                  .context = fake});
}

static void
fake_index_forget_events(struct fake_index *fake)
{
    for (uint32_t i = 0; i < fake->event_count; i++)
        free(fake->events[i]);
    fake->event_count = 0;
}

static void
fake_index_forget_batches(struct fake_index *fake)
{
    for (uint32_t i = 0; i < fake->batch_count; i++)
        batch_destroy(fake->batches[i]);
    fake->batch_count = 0;
    fake->applied_count = 0;
    fake->reported_count = 0;
}

void
fake_index_fini(struct fake_index *fake)
{
    if (fake->env == NULL)
        return;
    fake_env_remove_source(fake->env, fake);
    fake_index_forget_events(fake);
    fake_index_forget_batches(fake);
    map_clear(&fake->current);
    map_clear(&fake->durable);
    free(fake->current.entries);
    free(fake->durable.entries);
    free(fake->events);
    free(fake->batches);
    fake->env = NULL;
}

void
fake_index_crash(struct fake_index *fake)
{
    struct fake_rng *rng = &fake->env->rng;
    uint32_t kept = 0;

    switch (fake_rng_below(rng, 4)) {
    case 0:
        break;
    case 1:
        kept = fake->batch_count;
        break;
    default:
        kept = (uint32_t)fake_rng_range(rng, 0, fake->batch_count);
        break;
    }
    fake->batches_at_crash += fake->batch_count;
    fake->batches_lost_at_crash += fake->batch_count - kept;
    for (uint32_t i = 0; i < kept; i++)
        batch_apply(fake->batches[i], &fake->durable);
    fake_index_forget_events(fake);
    fake_index_forget_batches(fake);
    map_copy(&fake->current, &fake->durable);
    fake->closed = true;
}

void
fake_index_reopen(struct fake_index *fake)
{
    fake_index_require(fake->closed);
    fake->closed = false;
    fake->held = false;
}

uint32_t
fake_index_gets(const struct fake_index *fake)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < fake->event_count; i++)
        count += fake->events[i]->get != NULL;
    return count;
}

uint32_t
fake_index_flushes(const struct fake_index *fake)
{
    return fake->event_count - fake_index_gets(fake);
}

uint32_t
fake_index_batches(const struct fake_index *fake)
{
    return fake->batch_count - fake->reported_count;
}

/* --- behind the engine's back --- */

const uint8_t *
fake_index_peek(const struct fake_index *fake, const void *key, uint32_t key_bytes,
                uint32_t *ret_value_bytes)
{
    uint32_t idx = map_lower_bound(&fake->current, key, key_bytes);
    const struct fake_index_entry *entry = map_at(&fake->current, idx, key, key_bytes);

    if (entry == NULL)
        return NULL;
    *ret_value_bytes = entry->value_bytes;
    return entry->value;
}

static void
map_flip_bit(struct fake_index_map *map, const void *key, uint32_t key_bytes, uint32_t byte,
             unsigned bit)
{
    uint32_t idx = map_lower_bound(map, key, key_bytes);
    struct fake_index_entry *entry = map_at(map, idx, key, key_bytes);
    struct fake_index_entry *copy;

    if (entry == NULL || byte >= entry->value_bytes)
        return;
    copy = entry_create(entry->key, entry->key_bytes, entry->value, entry->value_bytes);
    copy->value[byte] ^= (uint8_t)(1u << bit);
    map_set(map, copy);
}

bool
fake_index_flip_bit(struct fake_index *fake, const void *key, uint32_t key_bytes, uint32_t byte,
                    unsigned bit)
{
    uint32_t value_bytes;

    if (fake_index_peek(fake, key, key_bytes, &value_bytes) == NULL || byte >= value_bytes)
        return false;
    map_flip_bit(&fake->current, key, key_bytes, byte, bit);
    map_flip_bit(&fake->durable, key, key_bytes, byte, bit);
    return true;
}

void
fake_index_apply_now(struct fake_index *fake, struct index_batch *batch)
{
    fake_index_require(fake->batch_count == 0);
    batch_apply(batch, &fake->durable);
    batch_apply(batch, &fake->current);
    batch_destroy(batch);
}

bool
fake_index_key_at(const struct fake_index *fake, const void *prefix, uint32_t prefix_bytes,
                  uint32_t idx, uint8_t *ret_key, uint32_t *ret_key_bytes)
{
    uint32_t at = map_lower_bound(&fake->current, prefix, prefix_bytes) + idx;
    const struct fake_index_entry *entry;

    if (at >= fake->current.count)
        return false;
    entry = fake->current.entries[at];
    if (entry->key_bytes < prefix_bytes || memcmp(entry->key, prefix, prefix_bytes) != 0)
        return false;
    memcpy(ret_key, entry->key, entry->key_bytes);
    *ret_key_bytes = entry->key_bytes;
    return true;
}

uint32_t
fake_index_count(const struct fake_index *fake, const void *prefix, uint32_t prefix_bytes)
{
    uint32_t n = 0;

    for (uint32_t at = map_lower_bound(&fake->current, prefix, prefix_bytes);
         at < fake->current.count; at++, n++)
        if (fake->current.entries[at]->key_bytes < prefix_bytes ||
            memcmp(fake->current.entries[at]->key, prefix, prefix_bytes) != 0)
            break;
    return n;
}
