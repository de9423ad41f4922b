/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_engine: the storage engine alone, without network and without io_uring: 4 KiB random writes
 * (or reads) at a depth.
 *
 *     bench_engine --disk memory --seconds 5                         what the engine itself costs
 *     bench_engine --disk /mnt/x/disk --size 4G --seconds 20         on a file, with its flushes
 *     bench_engine --disk memory --sparse 20                         20 times as many leaves as the
 *     cache holds
 *     bench_engine --discard                                         what a discarded volume keeps
 *
 * It prints operations per second, CPU microseconds per operation (of the engine's thread, and of
 * the whole process with RocksDB's threads), and the bytes that went to the device per byte
 * written, by kind.  The disk and the index are made anew and removed at the end.
 *
 * The disk is "memory" (an array; an I/O is a memcpy) or a file (pwrite and fdatasync, done in the
 * turn after they were submitted).  A turn of the loop: timers, requests until the depth is
 * reached, turn_end, all I/Os, the index's answers.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/index_rocksdb.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "common/list.h"
#include "common/text.h"
#include "common/version.h"

#define CHUNK_SECTORS    16384u /* 64 MiB */
#define DEPTH_MAX        256u
#define TIMERS_MAX       64u
#define LEAF_BYTES_GUESS 1800u /* of the cache, per loaded leaf: for --sparse */

/* --- an env with real time --- */

struct bench_env {
    struct env env;
    struct env_timer *timers[TIMERS_MAX + 1]; /* [1 .. timer_count], in no order: there are few */
    uint32_t timer_count;
    struct list tasks;
    uint64_t random;
};

static uint64_t
clock_ns(clockid_t clock)
{
    struct timespec now;

    (void)clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t
bench_now_ns(struct env *env)
{
    (void)env;
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t
bench_wall_ms(struct env *env)
{
    (void)env;
    return clock_ns(CLOCK_REALTIME) / 1000000;
}

static uint64_t
next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t
bench_random(struct env *env)
{
    return next_random(&((struct bench_env *)env)->random);
}

static void
bench_timer_stop(struct env *env, struct env_timer *timer)
{
    struct bench_env *bench = (struct bench_env *)env;

    if (timer->heap_idx == 0)
        return;
    bench->timers[timer->heap_idx] = bench->timers[bench->timer_count--];
    bench->timers[timer->heap_idx]->heap_idx = timer->heap_idx;
    timer->heap_idx = 0;
}

static void
bench_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
    struct bench_env *bench = (struct bench_env *)env;

    bench_timer_stop(env, timer);
    dl_assert(bench->timer_count < TIMERS_MAX);
    timer->deadline_ns = bench_now_ns(env) + delay_ns;
    timer->heap_idx = ++bench->timer_count;
    bench->timers[timer->heap_idx] = timer;
}

static void
bench_defer(struct env *env, struct env_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    list_push_back(&((struct bench_env *)env)->tasks, &task->node);
}

static const struct env_ops bench_env_ops = {
    .now_ns = bench_now_ns,
    .wall_ms = bench_wall_ms,
    .random = bench_random,
    .timer_start = bench_timer_start,
    .timer_stop = bench_timer_stop,
    .defer = bench_defer,
};

static void
bench_run_timers(struct bench_env *bench)
{
    uint64_t now_ns = bench_now_ns(&bench->env);

    for (uint32_t i = 1; i <= bench->timer_count; i++) {
        struct env_timer *timer = bench->timers[i];

        if (timer->deadline_ns > now_ns)
            continue;
        bench_timer_stop(&bench->env, timer);
        timer->fn(timer);
        i = 0; /* the array has changed */
    }
}

static void
bench_run_tasks(struct bench_env *bench)
{
    struct list *node;

    while ((node = list_pop_front(&bench->tasks)) != NULL) {
        struct env_task *task = list_entry(node, struct env_task, node);

        task->queued = false;
        task->fn(task);
    }
}

/* --- a disk in memory --- */

struct memory_disk {
    struct disk disk;
    uint8_t *bytes;
    struct disk_io *first, *last; /* linked by disk_private[0] */
};

static int
memory_read_now(struct disk *disk, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    memcpy(buffer, ((struct memory_disk *)disk)->bytes + offset_bytes, length_bytes);
    return 0;
}

static int
memory_write_now(struct disk *disk, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    memcpy(((struct memory_disk *)disk)->bytes + offset_bytes, buffer, length_bytes);
    return 0;
}

static int
memory_flush_now(struct disk *disk)
{
    (void)disk;
    return 0;
}

static void
memory_submit(struct disk *disk, struct disk_io *io)
{
    struct memory_disk *memory = (struct memory_disk *)disk;

    io->disk_private[0] = NULL;
    if (memory->first == NULL)
        memory->first = io;
    else
        memory->last->disk_private[0] = io;
    memory->last = io;
}

static uint32_t
memory_poll(struct memory_disk *memory)
{
    struct disk_io *io = memory->first;
    uint32_t count = 0;

    memory->first = NULL;
    while (io != NULL) {
        struct disk_io *next = io->disk_private[0];
        uint64_t at = io->offset_bytes;

        for (uint32_t i = 0; io->kind != DISK_FLUSH && i < io->iov_count; i++) {
            if (io->kind == DISK_WRITE)
                memcpy(memory->bytes + at, io->iov[i].iov_base, io->iov[i].iov_len);
            else
                memcpy(io->iov[i].iov_base, memory->bytes + at, io->iov[i].iov_len);
            at += io->iov[i].iov_len;
        }
        io->on_done(io, 0);
        io = next;
        count++;
    }
    return count;
}

static const struct disk_ops memory_ops = {
    .submit = memory_submit,
    .read_now = memory_read_now,
    .write_now = memory_write_now,
    .flush_now = memory_flush_now,
};

/* --- the run --- */

struct options {
    const char *disk; /* "memory" or a path */
    uint64_t size_bytes, volume_bytes, cache_bytes, journal_bytes;
    uint64_t depth, seconds, sparse;
    bool read, json, discard;
};

struct bench;

struct request {
    struct bench *bench;
    bool busy;
    uint64_t started_ns;
    void *buffer;
    uint32_t crcs[64]; /* of the buffer's sectors: all alike */
    union {
        struct store_write write;
        struct store_read read;
    };
};

struct bench {
    struct options options;
    struct bench_env env;
    struct memory_disk memory;
    struct disk_file *file;
    struct disk *disk;
    struct index *index;
    char index_path[64];
    struct engine *engine;
    struct chunk_store *store;
    struct request requests[DEPTH_MAX];
    uint32_t busy_count;
    uint64_t *sequence; /* per chunk */
    uint64_t chunk_count;
    uint64_t done, failed, latency_sum_ns, latency_max_ns;
    bool filling; /* filled sequentially, before the measurement */
    uint64_t fill_next;
};

static _Noreturn void
die(const char *what, const struct dl_error *err)
{
    (void)fprintf(stderr, "bench_engine: %s: %s\n", what, err->text);
    exit(1);
}

static void
request_done(struct request *request, int err)
{
    struct bench *bench = request->bench;
    uint64_t latency_ns = clock_ns(CLOCK_MONOTONIC) - request->started_ns;

    request->busy = false;
    bench->busy_count--;
    bench->done++;
    bench->latency_sum_ns += latency_ns;
    if (latency_ns > bench->latency_max_ns)
        bench->latency_max_ns = latency_ns;
    if (err == 0)
        return;
    bench->failed++;
    (void)fprintf(stderr, "bench_engine: a request failed: %s\n", dl_err_str(err));
    exit(1);
}

static void
write_on_done(struct store_write *write, int err)
{
    request_done(list_entry(write, struct request, write), err);
}

static void
read_on_done(struct store_read *read, int err)
{
    request_done(list_entry(read, struct request, read), err);
}

static void
start_write(struct bench *bench, struct request *request, uint64_t sector, uint32_t sectors,
            bool zero)
{
    uint64_t chunk = sector / CHUNK_SECTORS;

    dl_assert(bench->sequence != NULL);
    dl_assert(bench->store != NULL);
    request->write = (struct store_write){
        .key = {.volume = 1, .segment = (uint32_t)chunk},
        .config_epoch = 1,
        .birth = 1,
        .version = UINT64_C(1) << 40 | ++bench->sequence[chunk],
        .stable_version = UINT64_C(1) << 40 |
                          (bench->sequence[chunk] > 600 ? bench->sequence[chunk] - 600 : 0),
        .offset_sectors = (uint32_t)(sector % CHUNK_SECTORS),
        .length_sectors = sectors,
        .zero = zero,
        .create = true,
        .payload = request->buffer,
        .crcs = request->crcs,
        .on_done = write_on_done,
    };
    bench->store->ops->write_start(bench->store, &request->write);
}

static void
start_read(struct bench *bench, struct request *request, uint64_t sector)
{
    dl_assert(bench->store != NULL);
    request->read.key = (struct chunk_key){.volume = 1,
                                           .segment = (uint32_t)(sector / CHUNK_SECTORS)};
    request->read.snapshot_seq = 0;
    request->read.offset_sectors = (uint32_t)(sector % CHUNK_SECTORS);
    request->read.length_sectors = 1;
    request->read.buffer = request->buffer;
    request->read.on_done = read_on_done;
    bench->store->ops->read_start(bench->store, &request->read);
}

static void
start_request(struct bench *bench, struct request *request)
{
    uint64_t sectors = bench->options.volume_bytes / SECTOR_BYTES;

    request->busy = true;
    request->started_ns = clock_ns(CLOCK_MONOTONIC);
    bench->busy_count++;
    if (bench->filling) {
        start_write(bench, request, bench->fill_next, 64, false);
        bench->fill_next += 64;
    } else if (bench->options.read) {
        start_read(bench, request, next_random(&bench->env.random) % sectors);
    } else {
        start_write(bench, request, next_random(&bench->env.random) % sectors, 1, false);
    }
}

static void
run_turn(struct bench *bench, bool start)
{
    uint32_t events;

    dl_assert(bench->store != NULL);
    bench_run_timers(&bench->env);
    for (uint32_t i = 0; start && i < bench->options.depth; i++)
        if (!bench->requests[i].busy)
            start_request(bench, &bench->requests[i]);
    bench_run_tasks(&bench->env);
    bench->store->ops->turn_end(bench->store);
    bench_run_tasks(&bench->env);
    events = bench->file != NULL ? disk_file_poll(bench->file) : memory_poll(&bench->memory);
    events += index_rocksdb_poll(bench->index);
    if (events == 0 && bench->busy_count == (start ? bench->options.depth : bench->busy_count))
        (void)nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

/* So that overwrites find something, and reads do. */
static void
run_fill(struct bench *bench)
{
    uint64_t sectors = bench->options.volume_bytes / SECTOR_BYTES;

    bench->filling = true;
    while (bench->fill_next + DEPTH_MAX * 64 <= sectors)
        run_turn(bench, true);
    while (bench->busy_count > 0)
        run_turn(bench, false);
    bench->filling = false;
    bench->done = 0;
    bench->latency_sum_ns = 0;
    bench->latency_max_ns = 0;
}

struct result {
    double seconds, ops_per_second, cpu_us_thread, cpu_us_process, latency_us;
    struct store_stats before, after;
    uint64_t journal_wraps, leaf_bytes, leaf_loads;
};

static double
process_cpu_us(int who)
{
    struct rusage usage;

    (void)getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void
run_measured(struct bench *bench, struct result *result)
{
    uint64_t from_ns, until_ns;
    double thread_us = process_cpu_us(RUSAGE_THREAD), process_us = process_cpu_us(RUSAGE_SELF);

    dl_assert(bench->store != NULL);
    bench->store->ops->get_stats(bench->store, &result->before);
    from_ns = clock_ns(CLOCK_MONOTONIC);
    until_ns = from_ns + bench->options.seconds * 1000000000u;
    while (clock_ns(CLOCK_MONOTONIC) < until_ns)
        run_turn(bench, true);
    while (bench->busy_count > 0)
        run_turn(bench, false);
    result->seconds = (double)(clock_ns(CLOCK_MONOTONIC) - from_ns) / 1e9;
    result->cpu_us_thread = (process_cpu_us(RUSAGE_THREAD) - thread_us) / (double)bench->done;
    result->cpu_us_process = (process_cpu_us(RUSAGE_SELF) - process_us) / (double)bench->done;
    result->ops_per_second = (double)bench->done / result->seconds;
    result->latency_us = (double)bench->latency_sum_ns / (double)bench->done / 1e3;
    bench->store->ops->get_stats(bench->store, &result->after);
    result->journal_wraps = engine_counters(bench->engine)->ring_wraps;
    result->leaf_loads = engine_counters(bench->engine)->leaf_loads;
    result->leaf_bytes = result->after.cache_bytes;
}

/* --- what a discarded volume keeps --- */

struct change_state {
    struct store_change change;
    bool done;
};

static void
change_on_done(struct store_change *change, int err)
{
    dl_assert(err == 0);
    list_entry(change, struct change_state, change)->done = true;
}

static void
run_change(struct bench *bench, enum store_change_kind kind, uint64_t chunk)
{
    struct change_state state = {
        .change = {.kind = kind,
                   .key = {.volume = 1, .segment = (uint32_t)chunk},
                   .stable_version = UINT64_C(1) << 40 | bench->sequence[chunk],
                   .on_done = change_on_done}};

    bench->store->ops->change_start(bench->store, &state.change);
    while (!state.done)
        run_turn(bench, false);
}

static void
run_zero(struct bench *bench, uint64_t chunk)
{
    struct request *request = &bench->requests[0];

    request->busy = true;
    request->started_ns = clock_ns(CLOCK_MONOTONIC);
    bench->busy_count++;
    start_write(bench, request, chunk * CHUNK_SECTORS, CHUNK_SECTORS, true);
    while (request->busy)
        run_turn(bench, false);
}

struct leaf_sum {
    uint64_t leaves, bytes;
};

static int
sum_leaf(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
         uint32_t value_bytes)
{
    struct leaf_sum *sum = context;

    (void)key;
    (void)value;
    sum->leaves++;
    sum->bytes += key_bytes + value_bytes;
    return 0;
}

/* When all is written back. */
static void
print_leaves(struct bench *bench, const char *when)
{
    struct leaf_sum sum = {0};

    while (!engine_is_quiet(bench->engine))
        run_turn(bench, false);
    dl_assert(bench->index->ops->scan_now(bench->index, "L", 1, sum_leaf, &sum) == 0);
    (void)printf("  %10" PRIu64 " leaves in the index, %s, %s\n", sum.leaves,
                 text_of_size(sum.bytes).text, when);
}

static void
run_discard(struct bench *bench)
{
    uint64_t chunks = bench->options.volume_bytes / SECTOR_BYTES / CHUNK_SECTORS;

    print_leaves(bench, "written");
    for (uint64_t chunk = 0; chunk < chunks; chunk++) {
        run_zero(bench, chunk);
        run_change(bench, STORE_STABLE, chunk);
    }
    print_leaves(bench, "discarded");
    for (uint64_t chunk = 0; chunk < chunks; chunk++)
        run_change(bench, STORE_FORGET, chunk);
    print_leaves(bench, "forgotten");
}

/* --- the end --- */

struct stop_state {
    bool done;
    int err;
};

static void
stop_on_done(void *context, int err)
{
    struct stop_state *state = context;

    state->done = true;
    state->err = err;
}

/* With the write-back of what is still dirty: so the bytes of the index are all there. */
static void
run_stop(struct bench *bench, struct result *result)
{
    struct stop_state state = {0};

    bench->store->ops->stop(bench->store, stop_on_done, &state);
    while (!state.done)
        run_turn(bench, false);
    bench->store->ops->get_stats(bench->store, &result->after);
    if (state.err != 0) {
        (void)fprintf(stderr, "bench_engine: stop: %s\n", dl_err_str(state.err));
        exit(1);
    }
}

/* --- results --- */

static double
per_byte(uint64_t after, uint64_t before, const struct result *result)
{
    return (double)(after - before) /
           (double)(result->after.bytes_written - result->before.bytes_written);
}

static void
print_text(const struct bench *bench, const struct result *result)
{
    const struct store_stats *after = &result->after, *before = &result->before;

    (void)printf("%s, %s, depth %" PRIu64 ", volume %s, leaf cache ", bench->options.disk,
                 bench->options.read ? "random reads" : "random writes", bench->options.depth,
                 text_of_size(bench->options.volume_bytes).text);
    (void)printf("%s\n", text_of_size(bench->options.cache_bytes).text);
    (void)printf("  %10.0f operations/s, %.1f us each at this depth\n", result->ops_per_second,
                 result->latency_us);
    (void)printf("  %10.2f us CPU per operation, engine's thread\n", result->cpu_us_thread);
    (void)printf("  %10.2f us CPU per operation, whole process\n", result->cpu_us_process);
    (void)printf("  %10" PRIu64 " leaf hits, %" PRIu64 " misses, %" PRIu64
                 " loads (also for write-back), %s of leaves in memory\n",
                 after->leaf_hits - before->leaf_hits, after->leaf_misses - before->leaf_misses,
                 result->leaf_loads, text_of_size(result->leaf_bytes).text);
    (void)printf("  %10.1f requests per journal block, the ring wrapped %" PRIu64 " times\n",
                 (double)bench->done / (double)(after->journal_blocks - before->journal_blocks + 1),
                 result->journal_wraps);
    if (bench->options.read)
        return;
    (void)printf(
        "  device bytes per byte: data %.3f, journal %.3f, index %.3f, together %.3f\n",
        per_byte(after->device_bytes_data, before->device_bytes_data, result),
        per_byte(after->device_bytes_journal, before->device_bytes_journal, result),
        per_byte(after->device_bytes_index, before->device_bytes_index, result),
        per_byte(after->device_bytes_data + after->device_bytes_journal + after->device_bytes_index,
                 before->device_bytes_data + before->device_bytes_journal +
                     before->device_bytes_index,
                 result));
}

static void
print_json(const struct bench *bench, const struct result *result)
{
    const struct store_stats *after = &result->after, *before = &result->before;
    json_t *root = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:b, s:f, s:f, s:f, s:f, s:I, s:I, s:I}", "commit",
        dlblk_version_commit(), "disk", bench->options.disk, "depth",
        (json_int_t)bench->options.depth, "volume_bytes", (json_int_t)bench->options.volume_bytes,
        "cache_bytes", (json_int_t)bench->options.cache_bytes, "read", (int)bench->options.read,
        "ops_per_second", result->ops_per_second, "latency_us", result->latency_us, "cpu_us_thread",
        result->cpu_us_thread, "cpu_us_process", result->cpu_us_process, "leaf_hits",
        (json_int_t)(after->leaf_hits - before->leaf_hits), "leaf_misses",
        (json_int_t)(after->leaf_misses - before->leaf_misses), "journal_wraps",
        (json_int_t)result->journal_wraps);

    if (!bench->options.read)
        (void)json_object_set_new(
            root, "device_bytes_per_byte",
            json_pack(
                "{s:f, s:f, s:f}", "data",
                per_byte(after->device_bytes_data, before->device_bytes_data, result), "journal",
                per_byte(after->device_bytes_journal, before->device_bytes_journal, result),
                "index", per_byte(after->device_bytes_index, before->device_bytes_index, result)));
    (void)json_dumpf(root, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(root);
}

/* --- setting up --- */

static void
open_disk(struct bench *bench)
{
    struct dl_error err;

    if (strcmp(bench->options.disk, "memory") != 0) {
        if (disk_file_create(bench->options.disk, bench->options.size_bytes, NULL, NULL, &err) != 0)
            die("disk", &err);
        if (disk_file_open(bench->options.disk, NULL, &bench->file, &err) != 0)
            die("disk", &err);
        bench->disk = disk_file_disk(bench->file);
        return;
    }
    bench->memory.disk = (struct disk){
        .ops = &memory_ops, .size_bytes = bench->options.size_bytes, .write_through = true};
    bench->memory.bytes = malloc(bench->options.size_bytes);
    dl_assert(bench->memory.bytes != NULL);
    /* Every page is touched here, so that the kernel's zeroing of it is not measured later. */
    memset(bench->memory.bytes, 0, bench->options.size_bytes);
    bench->disk = &bench->memory.disk;
}

static void
open_engine(struct bench *bench)
{
    struct engine_format format = {.disk_uuid = "bench-engine-uu",
                                   .cluster_id = "bench-engine-cl",
                                   .journal_bytes = bench->options.journal_bytes};
    struct index_rocksdb_options index_options = {.path = bench->index_path};
    struct engine_options options = {.cache_bytes = bench->options.cache_bytes};
    struct dl_error err;

    if (index_rocksdb_format(bench->index_path, &err) != 0)
        die("index", &err);
    if (index_rocksdb_open(&index_options, &bench->index, &err) != 0)
        die("index", &err);
    if (engine_format_now(bench->disk, &format, &err) != 0)
        die("format", &err);
    if (engine_open(&bench->engine, &bench->env.env, bench->disk, bench->index, &options, &err) !=
        0)
        die("open", &err);
    bench->store = engine_store(bench->engine);
}

static void
bench_init(struct bench *bench)
{
    bench->env.env.ops = &bench_env_ops;
    bench->env.random = 1;
    list_init(&bench->env.tasks);
    bench->chunk_count = bench->options.volume_bytes / SECTOR_BYTES / CHUNK_SECTORS + 1;
    bench->sequence = calloc(bench->chunk_count, sizeof(bench->sequence[0]));
    dl_assert(bench->sequence != NULL);
    for (uint32_t i = 0; i < DEPTH_MAX; i++) {
        struct request *request = &bench->requests[i];

        request->bench = bench;
        if (posix_memalign(&request->buffer, SECTOR_BYTES, 64 * SECTOR_BYTES) != 0)
            abort();
        for (uint32_t at = 0; at < 64 * SECTOR_BYTES; at++)
            ((uint8_t *)request->buffer)[at] = (uint8_t)(at % SECTOR_BYTES * 7 + i);
        for (uint32_t sector = 0; sector < 64; sector++)
            request->crcs[sector] = crc32c(0, request->buffer, SECTOR_BYTES);
    }
    (void)snprintf(bench->index_path, sizeof(bench->index_path), "bench-engine-index-%d",
                   (int)getpid());
    open_disk(bench);
    open_engine(bench);
}

static void
bench_fini(struct bench *bench)
{
    engine_destroy(bench->engine);
    bench->index->ops->close(bench->index);
    (void)index_rocksdb_remove(bench->index_path, NULL);
    (void)rmdir(bench->index_path);
    for (uint32_t i = 0; i < DEPTH_MAX; i++)
        free(bench->requests[i].buffer);
    free(bench->sequence);
    free(bench->memory.bytes);
    if (bench->file == NULL)
        return;
    disk_file_close(bench->file);
    (void)unlink(bench->options.disk);
}

static const char usage[] =
    "Usage: bench_engine [OPTION...]\n"
    "  --disk memory|PATH   PATH must not exist, and is removed (memory)\n"
    "  --size SIZE          of the disk (2G)\n"
    "  --volume SIZE        that is written (1G); filled first, unless --sparse\n"
    "  --cache SIZE         leaf cache (64M)\n"
    "  --journal SIZE       ring; by the size of the disk\n"
    "  --sparse N           don't fill; a volume with N times the leaves that the cache holds\n"
    "  --depth N            (32)\n"
    "  --seconds N          (5)\n"
    "  --read               random reads instead of writes\n"
    "  --discard            afterwards: what of all that stays in the index when it is discarded\n"
    "  --json\n";

static int
parse_option(int key, const char *value, struct options *options, struct dl_error *err)
{
    switch (key) {
    case 'd':
        options->disk = value;
        return 0;
    case 's':
        return text_parse_size("--size", value, 64 << 20, 1ull << 44, &options->size_bytes, err);
    case 'v':
        return text_parse_size("--volume", value, 128 << 20, 1ull << 44, &options->volume_bytes,
                               err);
    case 'c':
        return text_parse_size("--cache", value, 4096, 1ull << 40, &options->cache_bytes, err);
    case 'j':
        return text_parse_size("--journal", value, 1 << 20, 1ull << 36, &options->journal_bytes,
                               err);
    case 'p':
        return text_parse_number("--sparse", value, 1, 1000, &options->sparse, err);
    case 'q':
        return text_parse_number("--depth", value, 1, DEPTH_MAX, &options->depth, err);
    case 't':
        return text_parse_number("--seconds", value, 1, 3600, &options->seconds, err);
    case 'r':
        options->read = true;
        return 0;
    case 'D':
        options->discard = true;
        return 0;
    case 'J':
        options->json = true;
        return 0;
    default:
        return -DL_E_USAGE;
    }
}

static int
parse_options(int argc, char **argv, struct options *options)
{
    static const struct option known[] = {{"disk", required_argument, NULL, 'd'},
                                          {"size", required_argument, NULL, 's'},
                                          {"volume", required_argument, NULL, 'v'},
                                          {"cache", required_argument, NULL, 'c'},
                                          {"journal", required_argument, NULL, 'j'},
                                          {"sparse", required_argument, NULL, 'p'},
                                          {"depth", required_argument, NULL, 'q'},
                                          {"seconds", required_argument, NULL, 't'},
                                          {"read", no_argument, NULL, 'r'},
                                          {"json", no_argument, NULL, 'J'},
                                          {"discard", no_argument, NULL, 'D'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    struct dl_error err = {.text = "see --help"};
    int key;

    while ((key = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (key == 'h') {
            (void)fputs(usage, stdout);
            exit(0);
        }
        if (parse_option(key, optarg, options, &err) != 0) {
            (void)fprintf(stderr, "bench_engine: %s\n", err.text);
            return 2;
        }
    }
    if (options->sparse > 0)
        options->volume_bytes = options->cache_bytes / LEAF_BYTES_GUESS * options->sparse * 64 *
                                SECTOR_BYTES;
    return optind < argc ? 2 : 0;
}

int
main(int argc, char **argv)
{
    static struct bench bench = {.options = {.disk = "memory",
                                             .size_bytes = 2ull << 30,
                                             .volume_bytes = 1ull << 30,
                                             .cache_bytes = 64 << 20,
                                             .depth = 32,
                                             .seconds = 5}};
    struct result result = {0};

    if (parse_options(argc, argv, &bench.options) != 0) {
        (void)fputs(usage, stderr);
        return 2;
    }
    bench_init(&bench);
    if (bench.options.sparse == 0)
        run_fill(&bench);
    run_measured(&bench, &result);
    if (bench.options.discard)
        run_discard(&bench);
    run_stop(&bench, &result);
    if (bench.options.json)
        print_json(&bench, &result);
    else
        print_text(&bench, &result);
    bench_fini(&bench);
    return 0;
}
