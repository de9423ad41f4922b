/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/world.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/crash/layout.h"

#define TURNS_MAX 2000000u

void
world_trace(struct world *world, const char *format, ...)
{
    va_list args;

    if (!world->trace)
        return;
    (void)printf("[%u @%" PRIu64 "] ", world->life, world->env.time_ns / 1000);
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    (void)putchar('\n');
}

bool world_failure_is_success;

_Noreturn void
world_fail(struct world *world, const char *format, ...)
{
    va_list args;

    (void)fflush(stdout);
    (void)fprintf(stderr, "seed %" PRIu64 ", life %u: ", world->seed, world->life);
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fprintf(stderr, "\nsee it with: crash_engine --seed %" PRIu64 " --trace\n", world->seed);
    (void)fflush(stderr);
    _Exit(world_failure_is_success ? 0 : 1);
}

static void
world_on_disk_event(void *context, const struct fake_disk_event *event)
{
    static const char *const kinds[] = {"read", "write", "flush"};
    struct world *world = context;
    const char *region = "superblock";

    if (event->offset_bytes >= world->data_offset && event->offset_bytes < world->data_end)
        region = "data";
    else if (event->offset_bytes >= SUPERBLOCK_BYTES && event->offset_bytes < world->journal_end)
        region = "journal";
    if (event->kind == DISK_FLUSH)
        region = "";
    world_trace(world, "    disk %s %s %" PRIu64 "+%" PRIu64 " %s%s %s", kinds[event->kind], region,
                event->offset_bytes / 4096, event->length_bytes / 4096,
                event->completed ? "done" : "submitted", event->now ? " (blocking)" : "",
                event->result != 0 ? "FAILED" : "");
}

void
world_init(struct world *world, uint64_t seed, const struct profile *profile,
           struct event_counts *counts, bool trace)
{
    struct engine_format format = {0};
    struct superblock superblock;
    struct dl_error err;

    memset(world, 0, sizeof(*world));
    world->seed = seed;
    world->profile = *profile;
    world->counts = counts;
    world->trace = trace;
    fake_rng_init(&world->rng, seed);
    fake_env_init(&world->env, seed + 0x100000000u);
    layout_format(profile->slabs, profile->journal_units, profile->reserve_bytes, &format);
    fake_disk_init(&world->disk, &world->env,
                   layout_disk_bytes(profile->slabs, profile->journal_units),
                   profile->write_through);
    fake_index_init(&world->index, &world->env);
    model_init(&world->model, profile->volumes, profile->chunks, profile->chunk_sectors);
    if (engine_format_now(&world->disk.disk, &format, &err) != 0)
        world_fail(world, "format: %s", err.text);
    if (superblock_load_now(&world->disk.disk, &superblock, &err) != 0)
        world_fail(world, "superblock: %s", err.text);
    world->data_offset = superblock.geometry.data_offset;
    world->data_end = world->data_offset + superblock.geometry.data_bytes;
    world->journal_end = superblock.geometry.ring_offset + superblock.geometry.ring_bytes;
    fake_disk_settle(&world->disk);
    if (trace) {
        world->disk.on_event = world_on_disk_event;
        world->disk.on_event_context = world;
    }
    world->index.closed = true;
}

void
world_fini(struct world *world)
{
    engine_destroy(world->engine);
    world->engine = NULL;
    op_forget_all(world);
    fake_env_crash(&world->env);
    fake_index_fini(&world->index);
    fake_disk_fini(&world->disk);
    fake_env_fini(&world->env);
    model_fini(&world->model);
}

static void
world_turn_end(void *context)
{
    struct world *world = context;

    world->store->ops->turn_end(world->store);
}

int
world_try_open(struct world *world, struct dl_error *err)
{
    /*
     * Small batches: the position falls between changes of what one batch has and what the next one
     * will have.
     */
    static const uint32_t writeback_items[] = {0, 3, 16};
    struct engine_options options = {
        .cache_bytes = world->profile.cache_bytes,
        .records_max = world->profile.records_max,
        .writeback_items = writeback_items[world->seed % 3],
        .slice_leaves = 1 + (uint32_t)(world->seed % 4),
    };
    int result;

    fake_index_reopen(&world->index);
    world->life++;
    world->refused_full = false;
    world->may_stop = false;
    world->may_fail = false;
    world_trace(world, "open");
    result = engine_open(&world->engine, &world->env.env, &world->disk.disk, &world->index.index,
                         &options, err);
    if (result != 0) {
        world->engine = NULL;
        world->store = NULL;
        world->index.closed = true;
        world_trace(world, "open answered %s: %s", dl_err_name(result), err->text);
        return result;
    }
    world->store = engine_store(world->engine);
    fake_env_add_turn_end(&world->env, world_turn_end, world);
    return 0;
}

static void
world_settle_until(struct world *world, uint32_t ops_max)
{
    world->index.held = false;
    fake_env_settle(&world->env);
    for (uint32_t turns = 0; world->op_count > ops_max; turns++)
        if (turns > TURNS_MAX || !fake_env_turn(&world->env))
            world_fail(world, "%u requests are never answered (the first is of kind %d)",
                       world->op_count, (int)world->ops[0]->kind);
}

void
world_drain(struct world *world)
{
    world_settle_until(world, 0);
}

/* Every sector of every chunk. */
static void
world_compare_content(struct world *world)
{
    world_drain(world);
    for (uint32_t i = 0; i < world->model.chunk_count; i++) {
        struct model_chunk *chunk = &world->model.chunks[i];

        for (uint32_t offset = 0; offset < chunk->sectors; offset += STORE_IO_SECTORS_MAX) {
            uint32_t length = chunk->sectors - offset;

            if (length > STORE_IO_SECTORS_MAX)
                length = STORE_IO_SECTORS_MAX;
            world_settle_until(world, 8);
            op_read(world, chunk, offset, length);
        }
    }
    world_drain(world);
}

void
world_check_engine(struct world *world)
{
    struct store_stats stats;
    char *differences;

    /* What a stopped store still has in memory is of no use to anybody. */
    world->store->ops->get_stats(world->store, &stats);
    if (stats.stopped != 0)
        return;
    differences = engine_check(world->engine);
    world->counts->checks++;
    if (differences != NULL)
        world_fail(world, "the allocation map and the leaves disagree: %s", differences);
    if (world->disk.violations > 0)
        world_fail(world, "the engine misused the disk: %s", world->disk.violation);
}

static void
world_count_undecided(struct world *world, uint32_t *ret_present, uint32_t *ret_undecided)
{
    *ret_present = 0;
    *ret_undecided = 0;
    for (uint32_t i = 0; i < world->model.chunk_count; i++) {
        const struct model_chunk *chunk = &world->model.chunks[i];

        for (uint32_t w = 0; w < chunk->write_count; w++) {
            *ret_present += chunk->writes[w].state == WRITE_PRESENT;
            *ret_undecided += chunk->writes[w].state == WRITE_UNDECIDED;
        }
    }
}

void
world_verify(struct world *world)
{
    uint32_t present, undecided, present_after, undecided_after;
    struct engine_identity identity;
    const char *wrong;

    engine_identity(world->engine, &identity);
    if (identity.damaged)
        world_fail(world, "the disk counts as damaged after a mere crash");
    world_count_undecided(world, &present, &undecided);
    wrong = model_recover(&world->model, world->store->chunks);
    if (wrong != NULL)
        world_fail(world, "%s", wrong);
    world_count_undecided(world, &present_after, &undecided_after);
    if (present_after > present)
        world->counts->way_write_kept++;
    if (undecided > undecided_after && present_after - present < undecided)
        world->counts->way_write_dropped++;
    world->counts->recoveries++;
    world_check_engine(world);
}

void
world_open(struct world *world)
{
    struct dl_error err;

    if (world_try_open(world, &err) != 0)
        world_fail(world, "open: %s", err.text);
    world_verify(world);
    world_compare_content(world);
}

/* --- cuts --- */

static void
world_count_life(struct world *world)
{
    const struct engine_counters *counters = engine_counters(world->engine);
    struct event_counts *counts = world->counts;

#define X(name, meaning) counts->life_##name += counters->name > 0;
    ENGINE_COUNTERS(X)
#undef X
    counts->way_data_writes += fake_disk_count(&world->disk, DISK_WRITE, world->data_offset,
                                               world->data_end, 0) > 0;
    counts->way_journal_writes += fake_disk_count(&world->disk, DISK_WRITE, SUPERBLOCK_BYTES,
                                                  world->journal_end, 0) > 0;
    counts->way_journal_multi += fake_disk_count(&world->disk, DISK_WRITE, SUPERBLOCK_BYTES,
                                                 world->journal_end, 8192) > 0;
    counts->way_flush += fake_disk_count(&world->disk, DISK_FLUSH, 0, 0, 0) > 0;
    counts->way_unflushed += world->disk.cache_count > 0;
    counts->way_index_batch += fake_index_batches(&world->index) > 0;
    counts->way_index_flush += fake_index_flushes(&world->index) > 0;
    counts->way_index_get += fake_index_gets(&world->index) > 0;
    counts->way_full_disk += world->refused_full;
    counts->way_failing_data_write += counters->data_write_errors > counters->aborts;
    op_count_under_way(world);
}

static void
world_forget_engine(struct world *world)
{
    if (world->engine != NULL)
        world_count_life(world);
    engine_destroy(world->engine);
    world->engine = NULL;
    world->store = NULL;
    op_forget_all(world);
    fake_env_crash(&world->env);
    for (int kind = 0; kind < 3; kind++)
        world->disk.faults[kind] = (struct fake_fault){0};
}

static void
world_index_crash(struct world *world)
{
    uint64_t lost = world->index.batches_lost_at_crash;

    fake_index_crash(&world->index);
    world->counts->way_index_batch_lost += world->index.batches_lost_at_crash > lost;
}

void
world_power_cut(struct world *world)
{
    uint64_t torn = world->disk.torn_at_crash;

    world_trace(world, "POWER CUT");
    world->counts->cuts++;
    world_forget_engine(world);
    fake_disk_crash(&world->disk);
    world->counts->way_torn += world->disk.torn_at_crash > torn;
    world_index_crash(world);
}

void
world_kill(struct world *world)
{
    world_trace(world, "KILL");
    world->counts->cuts++;
    world_forget_engine(world);
    fake_disk_kill(&world->disk);
    world_index_crash(world);
}

/* --- rest --- */

static void
world_check_space(struct world *world)
{
    struct store_stats stats;
    uint64_t data_bytes = model_data_sectors(&world->model) * SECTOR_BYTES;
    uint64_t bad_bytes = (uint64_t)fake_index_count(&world->index, "X", 1) * SECTOR_BYTES;

    world->store->ops->get_stats(world->store, &stats);
    if (stats.used_bytes != data_bytes && stats.used_bytes != data_bytes + bad_bytes)
        world_fail(world, "quiet: %" PRIu64 " bytes in use, %" PRIu64 " of data, %" PRIu64 " bad",
                   stats.used_bytes, data_bytes, bad_bytes);
    if (stats.capacity_bytes != (uint64_t)world->profile.slabs * 1000 * SECTOR_BYTES)
        world_fail(world, "capacity %" PRIu64, stats.capacity_bytes);
}

void
world_quiet(struct world *world)
{
    const char *wrong;

    world_drain(world);
    for (int i = 0; !engine_is_quiet(world->engine); i++) {
        if (i > 120)
            world_fail(world, "two idle minutes, and the engine is not quiet");
        fake_env_run_for(&world->env, 1000000000);
    }
    world_trace(world, "quiet");
    world->counts->quiet_checks++;
    wrong = model_compare_table(&world->model, world->store->chunks);
    if (wrong != NULL)
        world_fail(world, "%s", wrong);
    world_check_engine(world);
    world_check_space(world);
}

struct stop_result {
    bool done;
    int err;
};

static void
stop_on_done(void *context, int err)
{
    struct stop_result *result = context;

    result->done = true;
    result->err = err;
}

void
world_stop(struct world *world)
{
    struct stop_result result = {0};

    world_drain(world);
    world_trace(world, "stop");
    world->store->ops->stop(world->store, stop_on_done, &result);
    if (!fake_env_run(&world->env, &result.done, TURNS_MAX))
        world_fail(world, "stop never ends");
    if (result.err != 0)
        world_fail(world, "stop answered %s", dl_err_name(result.err));
}
