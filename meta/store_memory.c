/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/store_memory.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/list.h"
#include "dlblk/error.h"
#include "meta/memory.h"

struct memory_entry {
    struct store_bytes key;
    struct store_bytes value;
    uint64_t revision;
};

/* A sorted array: tests have thousands of keys, not millions. */
struct store_memory_db {
    struct memory_entry *entries;
    uint32_t count;
    uint32_t capacity;
    uint64_t revision;
};

enum memory_kind { MEMORY_GET, MEMORY_SCAN, MEMORY_COMMIT };

/* One request in flight. */
struct memory_request {
    struct list node;
    enum memory_kind kind;
    void *request;
    uint64_t due_ns;
};

struct store_memory {
    struct store store;
    struct store_memory_db *db;
    struct env *env;
    struct store_memory_options options;
    struct list requests; /* of struct memory_request, in the order of their start */
    uint32_t in_flight;
    uint64_t last_due_ns;
    struct env_timer timer;
    struct env_task task;
    int commit_err;
    bool hold;
};

/* --- the database --- */

struct store_memory_db *
store_memory_db_create(void)
{
    return meta_alloc(sizeof(struct store_memory_db));
}

void
store_memory_db_destroy(struct store_memory_db *db)
{
    if (db == NULL)
        return;
    for (uint32_t i = 0; i < db->count; i++) {
        free((void *)(uintptr_t)db->entries[i].key.bytes);
        free((void *)(uintptr_t)db->entries[i].value.bytes);
    }
    free(db->entries);
    free(db);
}

/* The first entry whose key is not below `key`. */
static uint32_t
db_lower_bound(const struct store_memory_db *db, struct store_bytes key)
{
    uint32_t low = 0, high = db->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (store_bytes_compare(db->entries[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct memory_entry *
db_find(struct store_memory_db *db, struct store_bytes key)
{
    uint32_t idx = db_lower_bound(db, key);

    if (idx == db->count || store_bytes_compare(db->entries[idx].key, key) != 0)
        return NULL;
    return &db->entries[idx];
}

static void
db_delete(struct store_memory_db *db, struct store_bytes key)
{
    struct memory_entry *entry = db_find(db, key);

    if (entry == NULL)
        return;
    free((void *)(uintptr_t)entry->key.bytes);
    free((void *)(uintptr_t)entry->value.bytes);
    db->count--;
    memmove(entry, entry + 1, (size_t)(db->entries + db->count - entry) * sizeof(*entry));
}

static void
db_put(struct store_memory_db *db, struct store_bytes key, struct store_bytes value)
{
    struct memory_entry *entry = db_find(db, key);

    if (entry == NULL) {
        uint32_t idx = db_lower_bound(db, key);

        if (db->count == db->capacity) {
            db->capacity = db->capacity == 0 ? 64 : db->capacity * 2;
            db->entries = meta_realloc(db->entries, db->capacity, sizeof(*db->entries));
        }
        entry = &db->entries[idx];
        memmove(entry + 1, entry, (db->count - idx) * sizeof(*entry));
        db->count++;
        *entry = (struct memory_entry){
            .key = {meta_copy(key.bytes, key.length_bytes), key.length_bytes},
        };
    }
    free((void *)(uintptr_t)entry->value.bytes);
    entry->value.bytes = meta_copy(value.bytes, value.length_bytes);
    entry->value.length_bytes = value.length_bytes;
    entry->revision = db->revision;
}

static int
db_commit(struct store_memory_db *db, struct store_commit *commit)
{
    if (commit->guard.key.bytes != NULL) {
        const struct memory_entry *guard = db_find(db, commit->guard.key);

        if ((guard == NULL ? 0 : guard->revision) != commit->guard.revision)
            return -DL_E_STORE_CONFLICT;
    }
    db->revision++;
    for (uint32_t i = 0; i < commit->batch->count; i++) {
        const struct store_edit *edit = &commit->batch->edits[i];

        if (edit->value.bytes == NULL)
            db_delete(db, edit->key);
        else
            db_put(db, edit->key, edit->value);
    }
    commit->revision = db->revision;
    return 0;
}

static struct store_item
db_item(const struct memory_entry *entry)
{
    return (struct store_item){
        .key = entry->key,
        .value = entry->value,
        .revision = entry->revision,
    };
}

uint64_t
store_memory_db_revision(const struct store_memory_db *db)
{
    return db->revision;
}

uint32_t
store_memory_db_count(const struct store_memory_db *db)
{
    return db->count;
}

struct store_item
store_memory_db_item(const struct store_memory_db *db, uint32_t idx)
{
    dl_assert(idx < db->count);
    return db_item(&db->entries[idx]);
}

void
store_memory_db_put(struct store_memory_db *db, struct store_bytes key, struct store_bytes value)
{
    db->revision++;
    db_put(db, key, value);
}

/* --- requests --- */

static struct store_memory *
store_memory_of(const struct store *store)
{
    return (struct store_memory *)(uintptr_t)store;
}

/*
 * Results are copies: on_done may start other requests, and in the simulator the database has
 * several users.
 */
static struct store_item
item_copy(struct store_item item)
{
    item.key.bytes = meta_copy(item.key.bytes, item.key.length_bytes);
    item.value.bytes = meta_copy(item.value.bytes, item.value.length_bytes);
    return item;
}

static void
item_free(struct store_item item)
{
    free((void *)(uintptr_t)item.key.bytes);
    free((void *)(uintptr_t)item.value.bytes);
}

static void
memory_run_get(struct store_memory *memory, struct store_get *get)
{
    const struct memory_entry *entry = db_find(memory->db, get->key);
    struct store_item item;

    if (entry == NULL) {
        get->on_done(get, -DL_E_NOT_FOUND);
        return;
    }
    item = item_copy(db_item(entry));
    get->item = item;
    get->on_done(get, 0); /* may free get */
    item_free(item);
}

static void
memory_run_scan(struct store_memory *memory, struct store_scan *scan)
{
    uint32_t first = db_lower_bound(memory->db, scan->start);
    uint32_t end = db_lower_bound(memory->db, scan->end);
    uint32_t count = first < end ? end - first : 0;
    struct store_item *items;

    scan->more = count > scan->items_max;
    if (scan->more)
        count = scan->items_max;
    items = meta_alloc(count * sizeof(*items));
    for (uint32_t i = 0; i < count; i++)
        items[i] = item_copy(db_item(&memory->db->entries[first + i]));
    scan->items = items;
    scan->item_count = count;
    scan->on_done(scan, 0); /* may free scan */
    for (uint32_t i = 0; i < count; i++)
        item_free(items[i]);
    free(items);
}

static void
memory_run_commit(struct store_memory *memory, struct store_commit *commit)
{
    int err = memory->commit_err;

    if (err == 0)
        err = db_commit(memory->db, commit);
    commit->on_done(commit, err);
}

static void
memory_run_due(struct store_memory *memory)
{
    uint64_t now_ns = env_now_ns(memory->env);

    while (!memory->hold && !list_is_empty(&memory->requests)) {
        struct memory_request *request = list_first_entry(&memory->requests, struct memory_request,
                                                          node);
        enum memory_kind kind = request->kind;
        void *what = request->request;

        if (request->due_ns > now_ns) {
            env_timer_start(memory->env, &memory->timer, request->due_ns - now_ns);
            return;
        }
        list_remove(&request->node);
        free(request);
        memory->in_flight--;
        if (kind == MEMORY_GET)
            memory_run_get(memory, what);
        else if (kind == MEMORY_SCAN)
            memory_run_scan(memory, what);
        else
            memory_run_commit(memory, what);
    }
}

static void
memory_on_timer(struct env_timer *timer)
{
    memory_run_due(list_entry(timer, struct store_memory, timer));
}

static void
memory_on_task(struct env_task *task)
{
    memory_run_due(list_entry(task, struct store_memory, task));
}

static void
memory_start(struct store *store, enum memory_kind kind, void *what)
{
    struct store_memory *memory = store_memory_of(store);
    struct memory_request *request = meta_alloc(sizeof(*request));
    uint64_t spread_ns = memory->options.delay_ns_max - memory->options.delay_ns_min;
    uint64_t due_ns = env_now_ns(memory->env) + memory->options.delay_ns_min;

    if (spread_ns != 0)
        due_ns += env_random(memory->env) % (spread_ns + 1);
    if (due_ns < memory->last_due_ns)
        due_ns = memory->last_due_ns; /* they keep their order */
    memory->last_due_ns = due_ns;
    request->kind = kind;
    request->request = what;
    request->due_ns = due_ns;
    list_push_back(&memory->requests, &request->node);
    memory->in_flight++;
    if (memory->options.delay_ns_max == 0)
        env_defer(memory->env, &memory->task);
    else if (!env_timer_armed(&memory->timer))
        env_timer_start(memory->env, &memory->timer, due_ns - env_now_ns(memory->env));
}

static void
memory_get_start(struct store *store, struct store_get *get)
{
    memory_start(store, MEMORY_GET, get);
}

static void
memory_scan_start(struct store *store, struct store_scan *scan)
{
    memory_start(store, MEMORY_SCAN, scan);
}

static void
memory_commit_start(struct store *store, struct store_commit *commit)
{
    memory_start(store, MEMORY_COMMIT, commit);
}

static const struct store_ops store_memory_ops = {
    .get_start = memory_get_start,
    .scan_start = memory_scan_start,
    .commit_start = memory_commit_start,
};

struct store *
store_memory_open(struct store_memory_db *db, struct env *env,
                  const struct store_memory_options *options)
{
    struct store_memory *memory = meta_alloc(sizeof(*memory));

    memory->store.ops = &store_memory_ops;
    memory->db = db;
    memory->env = env;
    if (options != NULL)
        memory->options = *options;
    dl_assert(memory->options.delay_ns_min <= memory->options.delay_ns_max);
    list_init(&memory->requests);
    memory->timer.fn = memory_on_timer;
    memory->task.fn = memory_on_task;
    return &memory->store;
}

static uint32_t
memory_commit_count(const struct store_memory *memory)
{
    const struct memory_request *request;
    uint32_t count = 0;

    list_for_each_entry (request, &memory->requests, node)
        count += request->kind == MEMORY_COMMIT;
    return count;
}

void
store_memory_crash(struct store *store, uint64_t keep_random)
{
    struct store_memory *memory = store_memory_of(store);
    uint64_t keep = keep_random % (memory_commit_count(memory) + 1u);
    struct memory_request *request, *following;

    list_for_each_entry_safe (request, following, &memory->requests, node) {
        if (request->kind == MEMORY_COMMIT && keep > 0) {
            keep--;
            (void)db_commit(memory->db, request->request);
        }
        list_remove(&request->node);
        free(request);
    }
    env_timer_stop(memory->env, &memory->timer);
    free(memory);
}

void
store_memory_close(struct store *store)
{
    struct store_memory *memory = store_memory_of(store);

    dl_assert(memory->in_flight == 0);
    env_timer_stop(memory->env, &memory->timer);
    free(memory);
}

void
store_memory_fail_commits(struct store *store, int err)
{
    store_memory_of(store)->commit_err = err;
}

void
store_memory_hold(struct store *store, bool hold)
{
    struct store_memory *memory = store_memory_of(store);

    memory->hold = hold;
    if (!hold)
        env_defer(memory->env, &memory->task);
}

uint32_t
store_memory_in_flight(const struct store *store)
{
    return store_memory_of(store)->in_flight;
}
