/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a request travels:
 *
 *     owner: xxx_start -> waiting -> [thread: RocksDB] -> finished -> post()
 *     owner: deliver -> on_done, in the order of the starts
 *
 * The thread takes all that waits at once.  Commits that follow each other without a get or scan
 * between them become one RocksDB batch with one sync; each guard is compared with the database as
 * the commits before it leave it.
 */
#include "meta/store_rocksdb.h"

#include <errno.h>
#include <pthread.h>
#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/assert.h"
#include "common/le.h"
#include "common/list.h"
#include "meta/memory.h"

#define REVISION_BYTES     8u
#define FAILURE_TEXT_BYTES 256u
#define GROUP_COMMITS_MAX  256u

static const char revision_key[] = "\0revision";
#define REVISION_KEY_BYTES (sizeof(revision_key) - 1)

enum request_kind { REQUEST_GET, REQUEST_SCAN, REQUEST_COMMIT };

struct request {
    struct list node;
    enum request_kind kind;
    void *what;
    int err;
    void *memory;             /* get: the value as RocksDB gave it */
    struct store_item *items; /* scan */
    uint32_t item_count;
    bool more;
    uint64_t revision;
};

struct store_rocksdb {
    struct store store;
    struct store_rocksdb_options options;
    struct dl_owner owner;
    rocksdb_t *db;
    rocksdb_options_t *db_options;
    rocksdb_readoptions_t *read_options;
    rocksdb_writeoptions_t *write_options;

    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    struct list waiting; /* under lock, as all below */
    struct list finished;
    bool stop;
    bool posted; /* message is on its way */
    char failure_text[FAILURE_TEXT_BYTES];
    struct loop_message message;

    /* The thread's: */
    uint64_t revision;
    bool failed; /* a write failed: the database is not written to any more */

    /* The owner's: */
    char failure_shown[FAILURE_TEXT_BYTES];
};

static struct store_rocksdb *
store_rocksdb_of(struct store *store)
{
    return (struct store_rocksdb *)store;
}

/* --- errors --- */

static int
failure_code(const char *text, int otherwise)
{
    if (strncmp(text, "Corruption", strlen("Corruption")) == 0)
        return -DL_E_STORE_DAMAGED;
    if (strstr(text, "No space left") != NULL)
        return -DL_E_NO_SPACE;
    return otherwise;
}

/* Takes text. */
static int
store_failed(struct store_rocksdb *rocks, char *text, int otherwise)
{
    int err = failure_code(text, otherwise);

    (void)pthread_mutex_lock(&rocks->lock);
    (void)snprintf(rocks->failure_text, sizeof(rocks->failure_text), "%s", text);
    (void)pthread_mutex_unlock(&rocks->lock);
    rocksdb_free(text);
    return err;
}

const char *
store_rocksdb_failure_text(struct store *store)
{
    struct store_rocksdb *rocks = store_rocksdb_of(store);

    (void)pthread_mutex_lock(&rocks->lock);
    memcpy(rocks->failure_shown, rocks->failure_text, sizeof(rocks->failure_shown));
    (void)pthread_mutex_unlock(&rocks->lock);
    return rocks->failure_shown;
}

/* --- the thread: get and scan --- */

static bool
item_split(struct store_item *item, const void *key, size_t key_bytes, const char *raw,
           size_t raw_bytes)
{
    if (raw_bytes < REVISION_BYTES)
        return false;
    item->key = (struct store_bytes){key, (uint32_t)key_bytes};
    item->value = (struct store_bytes){raw + REVISION_BYTES,
                                       (uint32_t)(raw_bytes - REVISION_BYTES)};
    item->revision = le64_load(raw);
    return true;
}

static void
thread_get(struct store_rocksdb *rocks, struct request *request)
{
    struct store_get *get = request->what;
    char *failure = NULL;
    size_t raw_bytes = 0;
    char *raw = rocksdb_get(rocks->db, rocks->read_options, get->key.bytes, get->key.length_bytes,
                            &raw_bytes, &failure);

    request->memory = raw;
    if (failure != NULL)
        request->err = store_failed(rocks, failure, -DL_E_MEDIA_READ);
    else if (raw == NULL)
        request->err = -DL_E_NOT_FOUND;
    else if (!item_split(&get->item, get->key.bytes, get->key.length_bytes, raw, raw_bytes))
        request->err = -DL_E_STORE_DAMAGED;
}

static bool
scan_add(struct request *request, const char *key, size_t key_bytes, const char *raw,
         size_t raw_bytes)
{
    struct store_item *item = &request->items[request->item_count];

    if (raw_bytes < REVISION_BYTES)
        return false;
    if (!item_split(item, meta_copy(key, key_bytes), key_bytes, meta_copy(raw, raw_bytes),
                    raw_bytes))
        return false;
    request->item_count++;
    return true;
}

static void
thread_scan(struct store_rocksdb *rocks, struct request *request)
{
    const struct store_scan *scan = request->what;
    rocksdb_iterator_t *iterator = rocksdb_create_iterator(rocks->db, rocks->read_options);
    char *failure = NULL;

    request->items = meta_alloc(scan->items_max * sizeof(*request->items));
    for (rocksdb_iter_seek(iterator, scan->start.bytes, scan->start.length_bytes);
         request->err == 0 && rocksdb_iter_valid(iterator); rocksdb_iter_next(iterator)) {
        size_t key_bytes, raw_bytes;
        const char *key = rocksdb_iter_key(iterator, &key_bytes);
        const char *raw = rocksdb_iter_value(iterator, &raw_bytes);

        if (store_bytes_compare((struct store_bytes){key, (uint32_t)key_bytes}, scan->end) >= 0)
            break;
        if (request->item_count == scan->items_max) {
            request->more = true;
            break;
        }
        if (!scan_add(request, key, key_bytes, raw, raw_bytes))
            request->err = -DL_E_STORE_DAMAGED;
    }
    rocksdb_iter_get_error(iterator, &failure);
    if (failure != NULL)
        request->err = store_failed(rocks, failure, -DL_E_MEDIA_READ);
    rocksdb_iter_destroy(iterator);
}

/* --- the thread: commits --- */

/* The revision of a key as the group so far leaves it. */
static int
group_revision_of(struct store_rocksdb *rocks, rocksdb_writebatch_wi_t *group,
                  struct store_bytes key, uint64_t *ret_revision)
{
    char *failure = NULL;
    size_t raw_bytes = 0;
    char *raw = rocksdb_writebatch_wi_get_from_batch_and_db(
        group, rocks->db, rocks->read_options, key.bytes, key.length_bytes, &raw_bytes, &failure);
    int err = 0;

    if (failure != NULL)
        return store_failed(rocks, failure, -DL_E_MEDIA_READ);
    if (raw == NULL)
        *ret_revision = 0;
    else if (raw_bytes < REVISION_BYTES)
        err = -DL_E_STORE_DAMAGED;
    else
        *ret_revision = le64_load(raw);
    rocksdb_free(raw);
    return err;
}

static void
group_put(rocksdb_writebatch_wi_t *group, const struct store_edit *edit, uint64_t revision)
{
    uint8_t *raw = meta_alloc(REVISION_BYTES + edit->value.length_bytes);

    le64_store(raw, revision);
    if (edit->value.length_bytes != 0)
        memcpy(raw + REVISION_BYTES, edit->value.bytes, edit->value.length_bytes);
    rocksdb_writebatch_wi_put(group, edit->key.bytes, edit->key.length_bytes, (const char *)raw,
                              REVISION_BYTES + edit->value.length_bytes);
    free(raw);
}

/* One commit joins the group, unless its guard forbids it. */
static void
group_add(struct store_rocksdb *rocks, rocksdb_writebatch_wi_t *group, struct request *request)
{
    const struct store_commit *commit = request->what;
    uint64_t revision = 0;

    if (commit->guard.key.bytes != NULL) {
        request->err = group_revision_of(rocks, group, commit->guard.key, &revision);
        if (request->err == 0 && revision != commit->guard.revision)
            request->err = -DL_E_STORE_CONFLICT;
        if (request->err != 0)
            return;
    }
    request->revision = ++rocks->revision;
    for (uint32_t i = 0; i < commit->batch->count; i++) {
        const struct store_edit *edit = &commit->batch->edits[i];

        if (edit->value.bytes != NULL)
            group_put(group, edit, request->revision);
        else
            rocksdb_writebatch_wi_delete(group, edit->key.bytes, edit->key.length_bytes);
    }
}

static int
group_write(struct store_rocksdb *rocks, rocksdb_writebatch_wi_t *group)
{
    char *failure = NULL;
    le64 revision = le64_of(rocks->revision);

    if (rocks->failed || rocks->options.mode == STORE_ROCKSDB_READ_ONLY)
        return -DL_E_MEDIA_WRITE;
    rocksdb_writebatch_wi_put(group, revision_key, REVISION_KEY_BYTES, (const char *)&revision,
                              sizeof(revision));
    rocksdb_write_writebatch_wi(rocks->db, rocks->write_options, group, &failure);
    if (failure == NULL)
        return 0;
    rocks->failed = true;
    return store_failed(rocks, failure, -DL_E_MEDIA_WRITE);
}

/* The commits from `node` on, until something else or the end; returns where it stopped. */
static struct list *
thread_commit(struct store_rocksdb *rocks, struct list *requests, struct list *node)
{
    rocksdb_writebatch_wi_t *group = rocksdb_writebatch_wi_create(0, 1);
    struct list *first = node;
    uint32_t count = 0;
    int err;

    for (; node != requests && count < GROUP_COMMITS_MAX; node = node->next, count++) {
        struct request *request = list_entry(node, struct request, node);

        if (request->kind != REQUEST_COMMIT)
            break;
        group_add(rocks, group, request);
    }
    err = group_write(rocks, group);
    rocksdb_writebatch_wi_destroy(group);
    for (; first != node; first = first->next) {
        struct request *request = list_entry(first, struct request, node);

        if (request->err == 0)
            request->err = err;
    }
    return node;
}

/* --- the thread --- */

static void
thread_run_all(struct store_rocksdb *rocks, struct list *requests)
{
    struct list *node = requests->next;

    while (node != requests) {
        struct request *request = list_entry(node, struct request, node);

        if (request->kind == REQUEST_COMMIT) {
            node = thread_commit(rocks, requests, node);
            continue;
        }
        if (request->kind == REQUEST_GET)
            thread_get(rocks, request);
        else
            thread_scan(rocks, request);
        node = node->next;
    }
}

static void *
thread_main(void *context)
{
    struct store_rocksdb *rocks = context;
    struct list taken;
    bool post;

    list_init(&taken);
    (void)pthread_mutex_lock(&rocks->lock);
    for (;;) {
        while (list_is_empty(&rocks->waiting) && !rocks->stop)
            (void)pthread_cond_wait(&rocks->wanted, &rocks->lock);
        if (list_is_empty(&rocks->waiting))
            break;
        list_splice_back(&taken, &rocks->waiting);
        (void)pthread_mutex_unlock(&rocks->lock);
        thread_run_all(rocks, &taken);
        (void)pthread_mutex_lock(&rocks->lock);
        list_splice_back(&rocks->finished, &taken);
        post = !rocks->posted && !rocks->stop;
        rocks->posted = rocks->posted || post;
        if (post) {
            (void)pthread_mutex_unlock(&rocks->lock);
            rocks->options.post(rocks->options.post_context, &rocks->message);
            (void)pthread_mutex_lock(&rocks->lock);
        }
    }
    (void)pthread_mutex_unlock(&rocks->lock);
    return NULL;
}

/* --- the owner --- */

static void
request_free(struct request *request)
{
    rocksdb_free(request->memory);
    for (uint32_t i = 0; i < request->item_count; i++) {
        const uint8_t *raw = request->items[i].value.bytes;

        free((void *)(uintptr_t)request->items[i].key.bytes);
        free((void *)(uintptr_t)(raw - REVISION_BYTES));
    }
    free(request->items);
    free(request);
}

static void
request_deliver(struct request *request)
{
    if (request->kind == REQUEST_GET) {
        struct store_get *get = request->what;

        get->on_done(get, request->err);
    } else if (request->kind == REQUEST_SCAN) {
        struct store_scan *scan = request->what;

        scan->items = request->items;
        scan->item_count = request->err == 0 ? request->item_count : 0;
        scan->more = request->more;
        scan->on_done(scan, request->err);
    } else {
        struct store_commit *commit = request->what;

        commit->revision = request->revision;
        commit->on_done(commit, request->err);
    }
    request_free(request);
}

static void
store_rocksdb_on_message(struct loop_message *message)
{
    struct store_rocksdb *rocks = list_entry(message, struct store_rocksdb, message);
    struct list taken;

    dl_assert_owner(&rocks->owner);
    list_init(&taken);
    (void)pthread_mutex_lock(&rocks->lock);
    rocks->posted = false;
    list_splice_back(&taken, &rocks->finished);
    (void)pthread_mutex_unlock(&rocks->lock);
    while (!list_is_empty(&taken)) {
        struct request *request = list_first_entry(&taken, struct request, node);

        list_remove(&request->node);
        request_deliver(request);
    }
}

static void
store_rocksdb_start(struct store *store, enum request_kind kind, void *what)
{
    struct store_rocksdb *rocks = store_rocksdb_of(store);
    struct request *request = meta_alloc(sizeof(*request));

    dl_assert_owner(&rocks->owner);
    request->kind = kind;
    request->what = what;
    (void)pthread_mutex_lock(&rocks->lock);
    list_push_back(&rocks->waiting, &request->node);
    (void)pthread_cond_signal(&rocks->wanted);
    (void)pthread_mutex_unlock(&rocks->lock);
}

static void
store_rocksdb_get_start(struct store *store, struct store_get *get)
{
    store_rocksdb_start(store, REQUEST_GET, get);
}

static void
store_rocksdb_scan_start(struct store *store, struct store_scan *scan)
{
    store_rocksdb_start(store, REQUEST_SCAN, scan);
}

static void
store_rocksdb_commit_start(struct store *store, struct store_commit *commit)
{
    store_rocksdb_start(store, REQUEST_COMMIT, commit);
}

static const struct store_ops store_rocksdb_ops = {
    .get_start = store_rocksdb_get_start,
    .scan_start = store_rocksdb_scan_start,
    .commit_start = store_rocksdb_commit_start,
};

/* --- open and close --- */

bool
store_rocksdb_exists(const char *path)
{
    char current[4096];
    struct stat status;

    (void)snprintf(current, sizeof(current), "%s/CURRENT", path);
    return stat(current, &status) == 0;
}

int
store_rocksdb_remove(const char *path, struct dl_error *err)
{
    rocksdb_options_t *options;
    char *failure = NULL;
    struct stat status;
    int result = 0;

    if (stat(path, &status) < 0)
        return 0;
    options = rocksdb_options_create();
    rocksdb_destroy_db(options, path, &failure);
    rocksdb_options_destroy(options);
    if (failure != NULL)
        result = dl_error_set(err, -DL_E_MEDIA_WRITE,
                              "the unfinished store %s can not be removed: %s", path, failure);
    rocksdb_free(failure);
    return result;
}

static void
rocks_set_options(struct store_rocksdb *rocks)
{
    rocksdb_options_t *options = rocksdb_options_create();

    rocksdb_options_set_create_if_missing(options, rocks->options.mode == STORE_ROCKSDB_CREATE);
    rocksdb_options_set_error_if_exists(options, rocks->options.mode == STORE_ROCKSDB_CREATE);
    rocksdb_options_set_paranoid_checks(options, 1);
    /*
     * An unfinished last write is what a crash leaves; anything else in the log that does not
     * verify is damage.
     */
    rocksdb_options_set_wal_recovery_mode(options,
                                          rocksdb_tolerate_corrupted_tail_records_recovery);
    rocksdb_options_set_write_buffer_size(options, 8u << 20);
    rocksdb_options_set_max_background_jobs(options, 2);
    rocksdb_options_set_max_open_files(options, -1);
    rocksdb_options_set_stats_dump_period_sec(options, 0);
    rocksdb_options_set_stats_persist_period_sec(options, 0);
    rocksdb_options_set_info_log_level(options, 2);
    rocksdb_options_set_max_log_file_size(options, 1u << 20);
    rocksdb_options_set_keep_log_file_num(options, 2);
    rocks->db_options = options;
    rocks->read_options = rocksdb_readoptions_create();
    rocks->write_options = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(rocks->write_options, 1);
}

static int
open_failed(const char *path, char *failure, struct dl_error *err)
{
    if (strstr(failure, "lock") != NULL) {
        (void)dl_error_set(err, -DL_E_DISK_BUSY,
                           "the metadata store %s is in use by another process", path);
        dl_error_hint(err, "only one dlblk-meta can serve it: stop the other one");
    } else {
        (void)dl_error_set(err, failure_code(failure, -DL_E_MEDIA_READ),
                           "the metadata store %s can not be opened: %s", path, failure);
    }
    rocksdb_free(failure);
    return err->code;
}

static int
rocks_open_db(struct store_rocksdb *rocks, const char *path, struct dl_error *err)
{
    char *failure = NULL;

    if (rocks->options.mode == STORE_ROCKSDB_READ_ONLY)
        rocks->db = rocksdb_open_for_read_only(rocks->db_options, path, 0, &failure);
    else
        rocks->db = rocksdb_open(rocks->db_options, path, &failure);
    return failure != NULL ? open_failed(path, failure, err) : 0;
}

static int
rocks_read_revision(struct store_rocksdb *rocks, const char *path, struct dl_error *err)
{
    char *failure = NULL;
    size_t bytes = 0;
    char *raw = rocksdb_get(rocks->db, rocks->read_options, revision_key, REVISION_KEY_BYTES,
                            &bytes, &failure);

    if (failure != NULL)
        return open_failed(path, failure, err);
    if (raw != NULL && bytes == REVISION_BYTES)
        rocks->revision = le64_load(raw);
    rocksdb_free(raw);
    if (raw != NULL && bytes != REVISION_BYTES)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "the metadata store %s has a damaged revision", path);
    return 0;
}

static int
store_rocksdb_check_place(const char *path, enum store_rocksdb_mode mode, struct dl_error *err)
{
    bool exists = store_rocksdb_exists(path);

    if (mode != STORE_ROCKSDB_CREATE && !exists) {
        (void)dl_error_set(err, -DL_E_NOT_FOUND, "there is no metadata store in %s", path);
        dl_error_hint(err,
                      "make a new cluster with dlblk-meta init, or name the directory with --dir");
        return err->code;
    }
    if (mode == STORE_ROCKSDB_CREATE && exists)
        return dl_error_set(err, -DL_E_DISK_FOREIGN, "there is a metadata store in %s already",
                            path);
    if (mode == STORE_ROCKSDB_CREATE && mkdir(path, 0700) < 0 && errno != EEXIST)
        return dl_error_set(err, -errno, "the directory %s can not be made: %s", path,
                            dl_err_str(-errno));
    return 0;
}

int
store_rocksdb_open(struct store **ret_store, const char *path,
                   const struct store_rocksdb_options *options, struct dl_error *err)
{
    struct store_rocksdb *rocks;
    struct dl_error unused;
    int result;

    if (err == NULL)
        err = &unused;
    result = store_rocksdb_check_place(path, options->mode, err);
    if (result < 0)
        return result;
    rocks = meta_alloc(sizeof(*rocks));
    rocks->store.ops = &store_rocksdb_ops;
    rocks->options = *options;
    rocks->message.fn = store_rocksdb_on_message;
    dl_owner_set(&rocks->owner);
    list_init(&rocks->waiting);
    list_init(&rocks->finished);
    (void)pthread_mutex_init(&rocks->lock, NULL);
    (void)pthread_cond_init(&rocks->wanted, NULL);
    rocks_set_options(rocks);
    result = rocks_open_db(rocks, path, err);
    if (result == 0)
        result = rocks_read_revision(rocks, path, err);
    if (result == 0) {
        result = -pthread_create(&rocks->thread, NULL, thread_main, rocks);
        rocks->thread_started = result == 0;
        if (result < 0)
            (void)dl_error_set(err, result, "the metadata store's thread can not be started: %s",
                               dl_err_str(result));
    }
    if (result < 0) {
        store_rocksdb_close(&rocks->store);
        return result;
    }
    *ret_store = &rocks->store;
    return 0;
}

static void
store_rocksdb_stop_thread(struct store_rocksdb *rocks)
{
    if (!rocks->thread_started)
        return;
    (void)pthread_mutex_lock(&rocks->lock);
    rocks->stop = true;
    (void)pthread_cond_signal(&rocks->wanted);
    (void)pthread_mutex_unlock(&rocks->lock);
    (void)pthread_join(rocks->thread, NULL);
}

void
store_rocksdb_close(struct store *store)
{
    struct store_rocksdb *rocks;

    if (store == NULL)
        return;
    rocks = store_rocksdb_of(store);
    store_rocksdb_stop_thread(rocks);
    while (!list_is_empty(&rocks->finished)) {
        struct request *request = list_first_entry(&rocks->finished, struct request, node);

        list_remove(&request->node);
        request_free(request);
    }
    if (rocks->db != NULL)
        rocksdb_close(rocks->db);
    rocksdb_options_destroy(rocks->db_options);
    rocksdb_readoptions_destroy(rocks->read_options);
    rocksdb_writeoptions_destroy(rocks->write_options);
    (void)pthread_cond_destroy(&rocks->wanted);
    (void)pthread_mutex_destroy(&rocks->lock);
    free(rocks);
}
