/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a request travels:
 *
 *     loop: xxx_start -> queue of a worker -> [worker thread: RocksDB] -> finished -> post()
 *     loop: index_rocksdb_poll() -> callbacks, in the order in which they finished
 *
 * There are two workers, each a thread with a queue of its own: WORKER_READ runs gets, WORKER_WRITE
 * runs batches and flushes in the order in which they were started, which is what makes the batches
 * that a crash leaves a prefix.
 */
#include "chunkserver/engine/index_rocksdb.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <rocksdb/c.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"

#define GETS_AT_ONCE     64u
#define ERROR_TEXT_BYTES 256u
#define BATCHES_PER_REFRESH \
    256u /* the write statistics are read after a flush, and each so many batches */

struct index_batch {
    rocksdb_writebatch_t *rocksdb_batch;
};

enum work_kind { WORK_GET, WORK_BATCH, WORK_FLUSH };

struct work {
    enum work_kind kind;
    struct work *next;
    struct index_get *chain;   /* WORK_GET */
    struct index_batch *batch; /* WORK_BATCH */
    index_done_fn on_done;
    void *context;
    int err;
};

struct work_queue {
    struct work *first, **last;
};

enum worker_kind { WORKER_READ, WORKER_WRITE, WORKER_COUNT };

struct index_worker {
    struct index_rocksdb *owner;
    pthread_t thread;
    bool running;
    pthread_cond_t wanted;
    struct work_queue queue; /* under owner->lock, as are the three below */
    bool stop;
};

struct index_rocksdb {
    struct index index;
    struct dl_owner owner;
    void (*post)(void *context);
    void *post_context;
    rocksdb_t *db;
    rocksdb_options_t *options;
    rocksdb_cache_t *cache;
    rocksdb_readoptions_t *read_options;
    rocksdb_writeoptions_t *write_options;
    rocksdb_flushoptions_t *flush_options;
    struct index_worker workers[WORKER_COUNT];
    pthread_mutex_t lock;           /* the only one; never held while RocksDB or a callback runs */
    pthread_cond_t finished_any;    /* for index_rocksdb_wait() */
    struct work_queue finished;     /* under lock */
    uint64_t pending;               /* the loop's: started, callback not run */
    uint64_t batches_since_refresh; /* the writer's */
    atomic_uint_fast64_t device_bytes;
    int failed;                        /* the writer's: the first error of a write */
    char error_text[ERROR_TEXT_BYTES]; /* under lock */
};

static struct index_rocksdb *
rocks_of(struct index *index)
{
    return (struct index_rocksdb *)index;
}

static void
queue_init(struct work_queue *queue)
{
    queue->first = NULL;
    queue->last = &queue->first;
}

static void
queue_push(struct work_queue *queue, struct work *work)
{
    work->next = NULL;
    *queue->last = work;
    queue->last = &work->next;
}

static struct work *
queue_pop(struct work_queue *queue)
{
    struct work *work = queue->first;

    if (work != NULL) {
        queue->first = work->next;
        if (queue->first == NULL)
            queue->last = &queue->first;
    }
    return work;
}

/* --- the merge operator: the value is the concatenation of the put and all merges --- */

static char *
append_concatenate(const char *existing, size_t existing_bytes, const char *const *operands,
                   const size_t *operand_bytes, int operand_count, unsigned char *ret_success,
                   size_t *ret_bytes)
{
    size_t bytes = existing_bytes, at = existing_bytes;
    char *value;

    for (int i = 0; i < operand_count; i++)
        bytes += operand_bytes[i];
    value = malloc(bytes + 1);
    *ret_success = value != NULL;
    *ret_bytes = bytes;
    if (value == NULL)
        return NULL;
    if (existing_bytes > 0)
        memcpy(value, existing, existing_bytes);
    for (int i = 0; i < operand_count; i++) {
        memcpy(value + at, operands[i], operand_bytes[i]);
        at += operand_bytes[i];
    }
    return value;
}

static char *
append_full_merge(void *state, const char *key, size_t key_bytes, const char *existing,
                  size_t existing_bytes, const char *const *operands, const size_t *operand_bytes,
                  int operand_count, unsigned char *ret_success, size_t *ret_bytes)
{
    (void)state;
    (void)key;
    (void)key_bytes;
    return append_concatenate(existing, existing != NULL ? existing_bytes : 0, operands,
                              operand_bytes, operand_count, ret_success, ret_bytes);
}

static char *
append_partial_merge(void *state, const char *key, size_t key_bytes, const char *const *operands,
                     const size_t *operand_bytes, int operand_count, unsigned char *ret_success,
                     size_t *ret_bytes)
{
    (void)state;
    (void)key;
    (void)key_bytes;
    return append_concatenate(NULL, 0, operands, operand_bytes, operand_count, ret_success,
                              ret_bytes);
}

static void
append_destroy(void *state)
{
    (void)state;
}

static const char *
append_name(void *state)
{
    (void)state;
    return "dlblk.append";
}

/* --- errors --- */

/* RocksDB's C interface has texts only.  Takes the text. */
static int
rocks_error(struct index_rocksdb *rocks, char *text, int otherwise)
{
    int err = otherwise;

    if (text == NULL)
        return 0;
    if (strncmp(text, "Corruption", strlen("Corruption")) == 0)
        err = -DL_E_INDEX_CORRUPT;
    pthread_mutex_lock(&rocks->lock);
    if (rocks->error_text[0] == '\0')
        strncpy(rocks->error_text, text, ERROR_TEXT_BYTES - 1);
    pthread_mutex_unlock(&rocks->lock);
    rocksdb_free(text);
    return err;
}

/* --- the workers --- */

static void
rocks_get_some(struct index_rocksdb *rocks, struct index_get *first, uint32_t count)
{
    const char *keys[GETS_AT_ONCE] = {NULL};
    size_t key_bytes[GETS_AT_ONCE] = {0}, value_bytes[GETS_AT_ONCE] = {0};
    char *values[GETS_AT_ONCE] = {NULL}, *errors[GETS_AT_ONCE] = {NULL};
    struct index_get *get = first;

    for (uint32_t i = 0; i < count; i++, get = get->next) {
        keys[i] = (const char *)get->key;
        key_bytes[i] = get->key_bytes;
    }
    rocksdb_multi_get(rocks->db, rocks->read_options, count, keys, key_bytes, values, value_bytes,
                      errors);
    get = first;
    for (uint32_t i = 0; i < count; i++, get = get->next) {
        int err = rocks_error(rocks, errors[i], -DL_E_INDEX_CORRUPT);

        if (err == 0 && values[i] == NULL)
            err = -DL_E_NOT_FOUND;
        get->value = err == 0 ? values[i] : NULL;
        get->value_bytes = err == 0 ? (uint32_t)value_bytes[i] : 0;
        get->index_private[0] = (void *)(intptr_t)err;
    }
}

static void
rocks_run_gets(struct index_rocksdb *rocks, struct work *work)
{
    struct index_get *get = work->chain;

    while (get != NULL) {
        struct index_get *first = get;
        uint32_t count = 0;

        for (; get != NULL && count < GETS_AT_ONCE; get = get->next)
            count++;
        rocks_get_some(rocks, first, count);
    }
}

/* A number of RocksDB's statistics: "NAME COUNT : 123". */
static uint64_t
statistics_number(const char *text, const char *name)
{
    const char *at = strstr(text, name);

    if (at == NULL)
        return 0;
    at = strstr(at, "COUNT : ");
    return at != NULL ? strtoull(at + strlen("COUNT : "), NULL, 10) : 0;
}

static void
rocks_refresh_statistics(struct index_rocksdb *rocks)
{
    char *text = rocksdb_options_statistics_get_string(rocks->options);

    rocks->batches_since_refresh = 0;
    if (text == NULL)
        return;
    atomic_store_explicit(&rocks->device_bytes,
                          statistics_number(text, "rocksdb.flush.write.bytes ") +
                              statistics_number(text, "rocksdb.compact.write.bytes "),
                          memory_order_relaxed);
    rocksdb_free(text);
}

static void
rocks_run_batch(struct index_rocksdb *rocks, struct work *work)
{
    char *text = NULL;

    if (rocks->failed == 0) {
        rocksdb_write(rocks->db, rocks->write_options, work->batch->rocksdb_batch, &text);
        rocks->failed = rocks_error(rocks, text, -DL_E_MEDIA_WRITE);
    }
    work->err = rocks->failed;
    if (++rocks->batches_since_refresh >= BATCHES_PER_REFRESH)
        rocks_refresh_statistics(rocks);
}

static void
rocks_run_flush(struct index_rocksdb *rocks, struct work *work)
{
    char *text = NULL;

    if (rocks->failed == 0) {
        rocksdb_flush(rocks->db, rocks->flush_options, &text);
        rocks->failed = rocks_error(rocks, text, -DL_E_MEDIA_WRITE);
    }
    work->err = rocks->failed;
    rocks_refresh_statistics(rocks);
}

static void
rocks_run(struct index_rocksdb *rocks, struct work *work)
{
    switch (work->kind) {
    case WORK_GET:
        rocks_run_gets(rocks, work);
        return;
    case WORK_BATCH:
        rocks_run_batch(rocks, work);
        return;
    case WORK_FLUSH:
        rocks_run_flush(rocks, work);
        return;
    }
    dl_unreachable();
}

/* With the lock held. */
static struct work *
worker_next(struct index_worker *worker)
{
    while (worker->queue.first == NULL && !worker->stop)
        pthread_cond_wait(&worker->wanted, &worker->owner->lock);
    return queue_pop(&worker->queue);
}

static void *
worker_main(void *context)
{
    struct index_worker *worker = context;
    struct index_rocksdb *rocks = worker->owner;
    struct work *work;

    pthread_mutex_lock(&rocks->lock);
    while ((work = worker_next(worker)) != NULL) {
        bool was_empty;

        pthread_mutex_unlock(&rocks->lock);
        rocks_run(rocks, work);
        pthread_mutex_lock(&rocks->lock);
        was_empty = rocks->finished.first == NULL;
        queue_push(&rocks->finished, work);
        pthread_cond_signal(&rocks->finished_any);
        if (was_empty && rocks->post != NULL) {
            pthread_mutex_unlock(&rocks->lock);
            rocks->post(rocks->post_context);
            pthread_mutex_lock(&rocks->lock);
        }
    }
    pthread_mutex_unlock(&rocks->lock);
    return NULL;
}

/* Neither the index's threads nor RocksDB's take signals: they are the loop's. */
static void
signals_block(sigset_t *ret_old)
{
    sigset_t all;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, ret_old);
}

static void
signals_restore(const sigset_t *old)
{
    (void)pthread_sigmask(SIG_SETMASK, old, NULL);
}

static int
rocks_start_workers(struct index_rocksdb *rocks, struct dl_error *err)
{
    for (int i = 0; i < WORKER_COUNT; i++) {
        struct index_worker *worker = &rocks->workers[i];
        int result;

        worker->owner = rocks;
        queue_init(&worker->queue);
        (void)pthread_cond_init(&worker->wanted, NULL);
        result = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (result != 0)
            return dl_error_set(err, -result, "cannot start a thread for the index: %s",
                                dl_err_str(result));
        worker->running = true;
    }
    return 0;
}

static void
rocks_stop_workers(struct index_rocksdb *rocks)
{
    for (int i = 0; i < WORKER_COUNT; i++) {
        struct index_worker *worker = &rocks->workers[i];

        if (!worker->running)
            continue;
        pthread_mutex_lock(&rocks->lock);
        worker->stop = true;
        pthread_cond_signal(&worker->wanted);
        pthread_mutex_unlock(&rocks->lock);
        (void)pthread_join(worker->thread, NULL);
        (void)pthread_cond_destroy(&worker->wanted);
        worker->running = false;
    }
}

/* --- the loop's side --- */

static void
rocks_start(struct index_rocksdb *rocks, enum worker_kind kind, struct work start)
{
    struct index_worker *worker = &rocks->workers[kind];
    struct work *work = malloc(sizeof(*work));

    dl_assert_owner(&rocks->owner);
    dl_assert(work != NULL);
    *work = start;
    rocks->pending++;
    pthread_mutex_lock(&rocks->lock);
    queue_push(&worker->queue, work);
    pthread_cond_signal(&worker->wanted);
    pthread_mutex_unlock(&rocks->lock);
}

static void
rocks_get_start(struct index *index, struct index_get *chain)
{
    dl_assert(chain != NULL);
    rocks_start(rocks_of(index), WORKER_READ, (struct work){.kind = WORK_GET, .chain = chain});
}

static struct index_batch *
rocks_batch_create(struct index *index)
{
    struct index_batch *batch = malloc(sizeof(*batch));

    (void)index;
    dl_assert(batch != NULL);
    batch->rocksdb_batch = rocksdb_writebatch_create();
    return batch;
}

static void
rocks_batch_put(struct index_batch *batch, const void *key, uint32_t key_bytes, const void *value,
                uint32_t value_bytes)
{
    dl_assert(key_bytes <= INDEX_KEY_BYTES_MAX);
    rocksdb_writebatch_put(batch->rocksdb_batch, key, key_bytes, value, value_bytes);
}

static void
rocks_batch_merge(struct index_batch *batch, const void *key, uint32_t key_bytes, const void *value,
                  uint32_t value_bytes)
{
    dl_assert(key_bytes <= INDEX_KEY_BYTES_MAX);
    rocksdb_writebatch_merge(batch->rocksdb_batch, key, key_bytes, value, value_bytes);
}

static void
rocks_batch_delete(struct index_batch *batch, const void *key, uint32_t key_bytes)
{
    rocksdb_writebatch_delete(batch->rocksdb_batch, key, key_bytes);
}

static void
rocks_batch_start(struct index *index, struct index_batch *batch, index_done_fn on_done,
                  void *context)
{
    rocks_start(
        rocks_of(index), WORKER_WRITE,
        (struct work){.kind = WORK_BATCH, .batch = batch, .on_done = on_done, .context = context});
}

static void
rocks_flush_start(struct index *index, index_done_fn on_done, void *context)
{
    rocks_start(rocks_of(index), WORKER_WRITE,
                (struct work){.kind = WORK_FLUSH, .on_done = on_done, .context = context});
}

static void
rocks_finish_gets(struct index_get *get)
{
    while (get != NULL) {
        struct index_get *next = get->next; /* on_done may free get */

        get->on_done(get, (int)(intptr_t)get->index_private[0]);
        get = next;
    }
}

static void
rocks_finish(struct work *work)
{
    if (work->kind == WORK_GET)
        rocks_finish_gets(work->chain);
    else
        work->on_done(work->context, work->err);
    if (work->batch != NULL) {
        rocksdb_writebatch_destroy(work->batch->rocksdb_batch);
        free(work->batch);
    }
    free(work);
}

uint32_t
index_rocksdb_poll(struct index *index)
{
    struct index_rocksdb *rocks = rocks_of(index);
    struct work_queue finished;
    struct work *work;
    uint32_t count = 0;

    dl_assert_owner(&rocks->owner);
    pthread_mutex_lock(&rocks->lock);
    finished = rocks->finished;
    if (finished.first == NULL)
        finished.last = &finished.first;
    queue_init(&rocks->finished);
    pthread_mutex_unlock(&rocks->lock);
    while ((work = queue_pop(&finished)) != NULL) {
        dl_assert(rocks->pending > 0);
        rocks->pending--;
        count++;
        rocks_finish(work);
    }
    return count;
}

uint32_t
index_rocksdb_wait(struct index *index)
{
    struct index_rocksdb *rocks = rocks_of(index);

    if (rocks->pending == 0)
        return 0;
    pthread_mutex_lock(&rocks->lock);
    while (rocks->finished.first == NULL)
        pthread_cond_wait(&rocks->finished_any, &rocks->lock);
    pthread_mutex_unlock(&rocks->lock);
    return index_rocksdb_poll(index);
}

/* --- blocking forms --- */

/* The first key behind all that begin with the prefix; its length, 0: there is none. */
static uint32_t
prefix_end(const void *prefix, uint32_t prefix_bytes, uint8_t *ret_end)
{
    memcpy(ret_end, prefix, prefix_bytes);
    while (prefix_bytes > 0 && ret_end[prefix_bytes - 1] == UINT8_MAX)
        prefix_bytes--;
    if (prefix_bytes > 0)
        ret_end[prefix_bytes - 1]++;
    return prefix_bytes;
}

static int
rocks_scan_now(struct index *index, const void *prefix, uint32_t prefix_bytes, index_scan_fn fn,
               void *context)
{
    struct index_rocksdb *rocks = rocks_of(index);
    rocksdb_readoptions_t *read_options = rocksdb_readoptions_create();
    uint8_t end[INDEX_KEY_BYTES_MAX];
    uint32_t end_bytes = prefix_end(prefix, prefix_bytes, end);
    rocksdb_iterator_t *iterator;
    char *text = NULL;
    int err = 0;

    rocksdb_readoptions_set_fill_cache(read_options, 0);
    rocksdb_readoptions_set_readahead_size(read_options, 1 << 20);
    /* Or it would look at what lies behind, and fail if that is damaged. */
    if (end_bytes > 0)
        rocksdb_readoptions_set_iterate_upper_bound(read_options, (const char *)end, end_bytes);
    iterator = rocksdb_create_iterator(rocks->db, read_options);
    rocksdb_iter_seek(iterator, prefix, prefix_bytes);
    for (; err == 0 && rocksdb_iter_valid(iterator); rocksdb_iter_next(iterator)) {
        size_t key_bytes, value_bytes;
        const char *key = rocksdb_iter_key(iterator, &key_bytes);
        const char *value = rocksdb_iter_value(iterator, &value_bytes);

        if (key_bytes < prefix_bytes || memcmp(key, prefix, prefix_bytes) != 0)
            break;
        err = fn(context, (const uint8_t *)key, (uint32_t)key_bytes, (const uint8_t *)value,
                 (uint32_t)value_bytes);
    }
    rocksdb_iter_get_error(iterator, &text);
    if (text != NULL)
        err = rocks_error(rocks, text, -DL_E_INDEX_CORRUPT);
    rocksdb_iter_destroy(iterator);
    rocksdb_readoptions_destroy(read_options);
    return err;
}

static uint64_t
rocks_device_bytes_written(struct index *index)
{
    return atomic_load_explicit(&rocks_of(index)->device_bytes, memory_order_relaxed);
}

const char *
index_rocksdb_error_text(struct index *index)
{
    struct index_rocksdb *rocks = rocks_of(index);
    const char *text;

    /* Once set it never changes: it may be read without the lock from then on. */
    pthread_mutex_lock(&rocks->lock);
    text = rocks->error_text[0] != '\0' ? rocks->error_text : "";
    pthread_mutex_unlock(&rocks->lock);
    return text;
}

uint64_t
index_rocksdb_memory_bytes(struct index *index)
{
    static const char *const names[] = {"rocksdb.cur-size-all-mem-tables",
                                        "rocksdb.block-cache-usage",
                                        "rocksdb.estimate-table-readers-mem"};
    uint64_t sum = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        uint64_t value = 0;

        if (rocksdb_property_int(rocks_of(index)->db, names[i], &value) == 0)
            sum += value;
    }
    return sum;
}

/* --- life --- */

static void
rocks_free(struct index_rocksdb *rocks)
{
    if (rocks->db != NULL)
        rocksdb_close(rocks->db);
    if (rocks->read_options != NULL)
        rocksdb_readoptions_destroy(rocks->read_options);
    if (rocks->write_options != NULL)
        rocksdb_writeoptions_destroy(rocks->write_options);
    if (rocks->flush_options != NULL)
        rocksdb_flushoptions_destroy(rocks->flush_options);
    if (rocks->options != NULL)
        rocksdb_options_destroy(rocks->options);
    if (rocks->cache != NULL)
        rocksdb_cache_destroy(rocks->cache);
    (void)pthread_cond_destroy(&rocks->finished_any);
    (void)pthread_mutex_destroy(&rocks->lock);
    free(rocks);
}

static void
rocks_close(struct index *index)
{
    struct index_rocksdb *rocks = rocks_of(index);

    rocks_stop_workers(rocks);
    (void)index_rocksdb_poll(index);
    dl_assert(rocks->pending == 0);
    rocks_free(rocks);
}

static const struct index_ops rocks_ops = {
    .get_start = rocks_get_start,
    .batch_create = rocks_batch_create,
    .batch_put = rocks_batch_put,
    .batch_merge = rocks_batch_merge,
    .batch_delete = rocks_batch_delete,
    .batch_start = rocks_batch_start,
    .flush_start = rocks_flush_start,
    .scan_now = rocks_scan_now,
    .device_bytes_written = rocks_device_bytes_written,
    .close = rocks_close,
};

static rocksdb_block_based_table_options_t *
table_options_create(rocksdb_cache_t *cache)
{
    rocksdb_block_based_table_options_t *table = rocksdb_block_based_options_create();

    rocksdb_block_based_options_set_block_size(table, 4096);
    rocksdb_block_based_options_set_filter_policy(table,
                                                  rocksdb_filterpolicy_create_bloom_full(10));
    rocksdb_block_based_options_set_format_version(table, 5);
    if (cache == NULL)
        return table;
    /* Index and filter blocks count against the budget as well. */
    rocksdb_block_based_options_set_block_cache(table, cache);
    rocksdb_block_based_options_set_cache_index_and_filter_blocks(table, 1);
    rocksdb_block_based_options_set_pin_l0_filter_and_index_blocks_in_cache(table, 1);
    return table;
}

/* Half of the budget is two write buffers, half the block cache. */
static rocksdb_options_t *
options_create(uint64_t memory_bytes, rocksdb_cache_t *cache)
{
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_block_based_table_options_t *table = table_options_create(cache);

    rocksdb_options_set_block_based_table_factory(options, table);
    rocksdb_block_based_options_destroy(table);
    rocksdb_options_set_merge_operator(
        options, rocksdb_mergeoperator_create(NULL, append_destroy, append_full_merge,
                                              append_partial_merge, NULL, append_name));
    rocksdb_options_set_create_if_missing(options, 0);
    rocksdb_options_set_paranoid_checks(options, 1);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_set_write_buffer_size(options, memory_bytes / 4);
    rocksdb_options_set_max_write_buffer_number(options, 2);
    rocksdb_options_set_max_background_jobs(options, 2);
    rocksdb_options_set_max_open_files(options, 256);
    rocksdb_options_set_level_compaction_dynamic_level_bytes(options, 1);
    rocksdb_options_set_skip_stats_update_on_db_open(options, 1);
    rocksdb_options_set_bytes_per_sync(options, 1 << 20);
    /* Nothing that wakes up an idle server, and little on disk that nobody reads. */
    rocksdb_options_set_stats_dump_period_sec(options, 0);
    rocksdb_options_set_stats_persist_period_sec(options, 0);
    rocksdb_options_set_info_log_level(options, 2);
    rocksdb_options_set_max_log_file_size(options, 1 << 20);
    rocksdb_options_set_keep_log_file_num(options, 2);
    rocksdb_options_enable_statistics(options);
    return options;
}

/* Make the entry of a new directory durable. */
static int
parent_fsync(const char *path, struct dl_error *err)
{
    char *copy = strdup(path);
    int fd, result = 0;

    if (copy == NULL)
        return dl_error_set(err, -ENOMEM, "out of memory");
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        result = dl_error_set(err, -errno, "%s: cannot fsync the directory it is in: %s", path,
                              dl_err_str(errno));
    if (fd >= 0)
        (void)close(fd);
    free(copy);
    return result;
}

int
index_rocksdb_format(const char *path, struct dl_error *err)
{
    rocksdb_options_t *options = options_create(INDEX_ROCKSDB_MEMORY_MIN, NULL);
    char *text = NULL;
    rocksdb_t *db;
    int result = 0;

    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_set_error_if_exists(options, 1);
    db = rocksdb_open(options, path, &text);
    if (db == NULL) {
        result = dl_error_set(err, -DL_E_MEDIA_WRITE, "%s: cannot create an index: %s", path, text);
        rocksdb_free(text);
    } else {
        rocksdb_close(db);
        result = parent_fsync(path, err);
    }
    rocksdb_options_destroy(options);
    return result;
}

int
index_rocksdb_remove(const char *path, struct dl_error *err)
{
    rocksdb_options_t *options = rocksdb_options_create();
    char *text = NULL;
    int result = 0;

    rocksdb_destroy_db(options, path, &text);
    if (text != NULL) {
        result = dl_error_set(err, -DL_E_MEDIA_WRITE, "%s: cannot remove the index: %s", path,
                              text);
        rocksdb_free(text);
    }
    rocksdb_options_destroy(options);
    return result;
}

/* Takes the text. */
static int
open_failed(const char *path, char *text, struct dl_error *err)
{
    int code = -DL_E_INDEX_CORRUPT;

    if (strstr(text, "create_if_missing is false") != NULL)
        code = -DL_E_NOT_FOUND;
    else if (strstr(text, "lock ") != NULL || strstr(text, "LOCK") != NULL)
        code = -DL_E_DISK_BUSY;
    (void)dl_error_set(err, code, "%s: cannot open the index: %s", path, text);
    rocksdb_free(text);
    return code;
}

static int
rocks_open_db(struct index_rocksdb *rocks, const char *path, uint64_t memory_bytes,
              struct dl_error *err)
{
    char *text = NULL;

    rocks->cache = rocksdb_cache_create_lru(memory_bytes / 2);
    rocks->options = options_create(memory_bytes, rocks->cache);
    rocks->read_options = rocksdb_readoptions_create();
    rocks->write_options = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(rocks->write_options, 1);
    rocks->flush_options = rocksdb_flushoptions_create();
    rocksdb_flushoptions_set_wait(rocks->flush_options, 1);
    rocks->db = rocksdb_open(rocks->options, path, &text);
    return rocks->db == NULL ? open_failed(path, text, err) : 0;
}

int
index_rocksdb_open(const struct index_rocksdb_options *options, struct index **ret_index,
                   struct dl_error *err)
{
    struct index_rocksdb *rocks = calloc(1, sizeof(*rocks));
    uint64_t memory_bytes = options->memory_bytes;
    sigset_t old;
    int result;

    if (rocks == NULL)
        return dl_error_set(err, -ENOMEM, "out of memory");
    if (memory_bytes == 0)
        memory_bytes = INDEX_ROCKSDB_MEMORY_DEFAULT;
    if (memory_bytes < INDEX_ROCKSDB_MEMORY_MIN)
        memory_bytes = INDEX_ROCKSDB_MEMORY_MIN;
    rocks->index.ops = &rocks_ops;
    rocks->post = options->post;
    rocks->post_context = options->post_context;
    dl_owner_set(&rocks->owner);
    queue_init(&rocks->finished);
    (void)pthread_mutex_init(&rocks->lock, NULL);
    (void)pthread_cond_init(&rocks->finished_any, NULL);
    signals_block(&old);
    result = rocks_open_db(rocks, options->path, memory_bytes, err);
    if (result == 0)
        result = rocks_start_workers(rocks, err);
    signals_restore(&old);
    if (result != 0) {
        rocks_stop_workers(rocks);
        rocks_free(rocks);
        return result;
    }
    *ret_index = &rocks->index;
    return 0;
}
