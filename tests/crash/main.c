/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crash_engine: random histories of the storage engine, cut anywhere, recovered and compared.
 *
 *     crash_engine --seeds 400                 seeds 1 to 400, then how often each thing fell under
 *     a cut
 *     crash_engine --seed 17 --trace           one history, each request, answer and disk I/O
 *     crash_mutants --mutant NAME --seeds 400  the same with a mistake in the engine: it must be
 *     found
 *
 * Exit status: 0: all held, and everything that the test wants to see fell under a cut at least
 * once (--seeds only); 1: something did not hold (the seed is named), or something never happened;
 * 2: wrong usage.
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mutant.h"
#include "tests/crash/world.h"

static volatile uint64_t current_seed; /* for the signal handler */

/* --- profiles --- */

static void
profile_draw(struct fake_rng *rng, struct profile *profile)
{
    static const uint64_t cache_bytes[] = {1, 16384, 1 << 20};
    static const uint32_t records_max[] = {64, 256, 0};

    *profile = (struct profile){
        .slabs = (uint32_t)fake_rng_range(rng, 1, 2),
        .journal_units = (uint32_t)fake_rng_range(rng, ENGINE_JOURNAL_UNITS_MIN, 128),
        .volumes = (uint32_t)fake_rng_range(rng, 1, MODEL_VOLUMES_MAX),
        .chunks = (uint32_t)fake_rng_range(rng, 2, 8),
        .chunk_sectors = 64u << fake_rng_below(rng, 4),
        .cache_bytes = cache_bytes[fake_rng_below(rng, 3)],
        .records_max = records_max[fake_rng_below(rng, 3)],
        .reserve_bytes = (1 + fake_rng_below(rng, 3) * 64) * SECTOR_BYTES,
        .write_through = fake_rng_percent(rng, 15),
        .ops_max = (uint32_t)fake_rng_range(rng, 1, fake_rng_percent(rng, 25) ? 120 : 32),
        .steps = (uint32_t)fake_rng_range(rng, 20, 500),
        .cuts = (uint32_t)fake_rng_range(rng, 3, 10),
        .turn_percent = (unsigned)fake_rng_range(rng, 20, 80),
        .large_percent = fake_rng_percent(rng, 50) ? 4 : 0,
        .multi_percent = (unsigned)fake_rng_range(rng, 0, 40),
        .zero_percent = fake_rng_percent(rng, 60) ? 10 : 0,
        .hot_percent = (unsigned)fake_rng_range(rng, 0, 60),
        .burst_percent = fake_rng_percent(rng, 30) ? 2 : 0,
        .slow_index_percent = fake_rng_percent(rng, 30) ? 3 : 0,
        .idle_percent = fake_rng_percent(rng, 50) ? 1 : 0,
        .delete_percent = fake_rng_percent(rng, 60) ? 20 : 0,
        .fault_percent = fake_rng_percent(rng, 30) ? 2 : 0,
    };
    /* A disk that fills up: more and larger chunks than fit. */
    if (fake_rng_percent(rng, 25)) {
        profile->slabs = 1;
        profile->chunks = 6;
        profile->chunk_sectors = 512;
        profile->large_percent = 40;
        profile->zero_percent = 15;
    }
}

/* --- one step --- */

static struct model_chunk *
pick_chunk(struct world *world)
{
    return &world->model.chunks[fake_rng_below(&world->rng, world->model.chunk_count)];
}

static void
step_read(struct world *world)
{
    struct model_chunk *chunk = pick_chunk(world);
    uint32_t length = (uint32_t)fake_rng_range(&world->rng, 1, 64);
    uint32_t offset;

    if (length > chunk->sectors)
        length = chunk->sectors;
    offset = (uint32_t)fake_rng_range(&world->rng, 0, chunk->sectors - length);
    op_read(world, chunk, offset, length);
}

static void
step_fault(struct world *world)
{
    world->may_fail = true;
    fake_disk_fail(&world->disk, DISK_WRITE, fake_rng_below(&world->rng, 8),
                   fake_rng_range(&world->rng, 1, 5), -EIO, world->data_offset, world->data_end);
}

static void
step_start(struct world *world)
{
    unsigned kind = (unsigned)fake_rng_below(&world->rng, 100);
    struct model_chunk *chunk = pick_chunk(world);

    if (chunk->state == CHUNK_MODEL_DELETING)
        return;
    if (kind < 62)
        op_write_new(world, chunk);
    else if (kind < 78)
        op_write_retry(world, chunk);
    else if (kind < 92)
        step_read(world);
    else
        op_change_random(world, chunk);
}

/*
 * As many as there is room for, all ready at the end of one turn: the next journal block has
 * several units.
 */
static void
step_burst(struct world *world)
{
    uint32_t count = (uint32_t)fake_rng_range(&world->rng, 40, 110);

    for (uint32_t i = 0; i < count && world->op_count < WORLD_OPS_MAX - 8; i++)
        step_start(world);
    fake_env_settle(&world->env);
}

static void
step(struct world *world)
{
    const struct profile *profile = &world->profile;

    world->counts->steps++;
    if (fake_rng_percent(&world->rng, profile->fault_percent))
        step_fault(world);
    if (fake_rng_percent(&world->rng, world->index.held ? 2 : profile->slow_index_percent))
        world->index.held = !world->index.held;
    if (fake_rng_percent(&world->rng, profile->idle_percent))
        fake_env_run_for(&world->env, fake_rng_range(&world->rng, 1, 7) * 1000000000u);
    if (fake_rng_percent(&world->rng, profile->burst_percent))
        step_burst(world);
    if (fake_rng_below(&world->rng, 400) == 0)
        world_check_engine(world);
    if (world->op_count >= profile->ops_max ||
        fake_rng_percent(&world->rng, profile->turn_percent)) {
        uint32_t turns = (uint32_t)fake_rng_range(&world->rng, 1, 12);

        while (turns-- > 0 && fake_env_turn(&world->env))
            ;
        if (world->op_count >= profile->ops_max)
            return;
    }
    step_start(world);
    if (fake_rng_percent(&world->rng, 50))
        fake_env_settle(&world->env);
}

static void
steps_run(struct world *world, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        step(world);
}

/* --- one life, and how it ends --- */

static void
cut_power(struct world *world)
{
    world->counts->cut_power++;
    world_power_cut(world);
    world_open(world);
}

static void
cut_kill(struct world *world)
{
    world->counts->cut_kill++;
    world_kill(world);
    world_open(world);
}

/*
 * Little: some steps, or one or two requests that are answered, so that the new blocks of the
 *         journal end just where those
 * lie that the recovery dropped.
 */
static void
steps_little(struct world *world)
{
    if (fake_rng_percent(&world->rng, 50)) {
        steps_run(world, (uint32_t)fake_rng_below(&world->rng, 16));
        return;
    }
    for (uint64_t count = fake_rng_range(&world->rng, 1, 2); count > 0; count--) {
        op_write_new(world, pick_chunk(world));
        world_drain(world);
    }
}

static void
cut_kill_then_power(struct world *world)
{
    struct dl_error err;

    world->counts->cut_kill_then_power++;
    world_kill(world);
    if (world_try_open(world, &err) != 0)
        world_fail(world, "open after the death of the process: %s", err.text);
    world_verify(world);
    steps_little(world);
    world_power_cut(world);
    world_open(world);
}

/*
 * The power goes at one of the writes and flushes of the recovery; several times over.  The first
 * time it may be the process alone that died: then the recovery finds writes that no flush has
 * covered, and must make them durable first.
 */
static void
cut_power_in_recovery(struct world *world)
{
    if (fake_rng_percent(&world->rng, 50))
        world_kill(world);
    else
        world_power_cut(world);
    for (int again = 0; again < 3; again++) {
        struct dl_error err;

        fake_disk_power_off_after(&world->disk, fake_rng_below(&world->rng, 6));
        if (world_try_open(world, &err) == 0)
            break;
        world->counts->cut_power_in_recovery++;
        world_power_cut(world);
    }
    if (world->engine != NULL) {
        if (!world->disk.power_off)
            world_verify(world);
        world_power_cut(world);
    }
    world_open(world);
}

static void
cut_power_after_recovery(struct world *world)
{
    world->counts->cut_power_after_recovery++;
    world_power_cut(world);
    for (int again = 0; again < 2; again++) {
        struct dl_error err;

        if (world_try_open(world, &err) != 0)
            world_fail(world, "open: %s", err.text);
        world_verify(world);
        steps_little(world);
        world_power_cut(world);
    }
    world_open(world);
}

/*
 * A journal write or a flush fails: the store stops, and must have acknowledged nothing that it
 * lost.
 */
static void
cut_stopped(struct world *world)
{
    world->may_stop = true;
    world->counts->cut_stopped++;
    if (fake_rng_percent(&world->rng, 50) && !world->profile.write_through)
        fake_disk_fail(&world->disk, DISK_FLUSH, fake_rng_below(&world->rng, 3), 1, -EIO, 0, 0);
    else
        fake_disk_fail(&world->disk, DISK_WRITE, fake_rng_below(&world->rng, 3), 1, -EIO,
                       SUPERBLOCK_BYTES, world->journal_end);
    steps_run(world, 60);
    if (fake_rng_percent(&world->rng, 50))
        world_drain(world);
    world_power_cut(world);
    world_open(world);
}

/* The same by the index: a batch or a flush of it fails, if the engine starts one at all. */
static void
cut_index_failed(struct world *world)
{
    struct store_stats stats;

    world->may_stop = true;
    world->index.fail_err = -DL_E_MEDIA_WRITE;
    if (fake_rng_percent(&world->rng, 50))
        world->index.fail_flushes = 1;
    else
        world->index.fail_batches = 1;
    steps_run(world, 60);
    world_drain(world);
    fake_env_run_for(&world->env, 6000000000u);
    world->store->ops->get_stats(world->store, &stats);
    world->counts->cut_index_failed += stats.stopped != 0;
    world_power_cut(world);
    world->index.fail_flushes = 0;
    world->index.fail_batches = 0;
    world_open(world);
}

static void
cut_clean(struct world *world)
{
    struct dl_error err;
    struct engine_identity identity;

    world->counts->cut_clean++;
    world_stop(world);
    world_power_cut(world);
    if (world_try_open(world, &err) != 0)
        world_fail(world, "open: %s", err.text);
    engine_identity(world->engine, &identity);
    if (!identity.was_clean)
        world_fail(world, "a clean stop is not seen as one");
    world_verify(world);
}

static void
cut(struct world *world)
{
    switch (fake_rng_below(&world->rng, 13)) {
    case 0:
        cut_kill(world);
        return;
    case 1:
    case 2:
        cut_kill_then_power(world);
        return;
    case 3:
    case 4:
        cut_power_in_recovery(world);
        return;
    case 5:
    case 12:
        cut_power_after_recovery(world);
        return;
    case 6:
        cut_stopped(world);
        return;
    case 7:
        cut_index_failed(world);
        return;
    case 8:
        if (fake_rng_percent(&world->rng, 50))
            cut_clean(world);
        else
            cut_power(world);
        return;
    default:
        cut_power(world);
        return;
    }
}

static void
history_run(uint64_t seed, struct event_counts *counts, bool trace)
{
    struct fake_rng rng;
    struct profile profile;
    struct world *world = calloc(1, sizeof(*world));

    if (world == NULL)
        abort();
    fake_rng_init(&rng, seed ^ 0xabcdef);
    profile_draw(&rng, &profile);
    world_init(world, seed, &profile, counts, trace);
    world_open(world);
    for (uint32_t i = 0; i < profile.cuts; i++) {
        steps_run(world, (uint32_t)fake_rng_range(&world->rng, 0, profile.steps));
        if (fake_rng_percent(&world->rng, 5))
            world_quiet(world);
        if (fake_rng_percent(&world->rng, 15))
            step_burst(world);
        for (uint64_t turns = fake_rng_below(&world->rng, 12); turns > 0; turns--)
            (void)fake_env_turn(&world->env);
        cut(world);
    }
    world_quiet(world);
    world_fini(world);
    free(world);
}

/* --- the summary --- */

static uint32_t
summary_line(const char *what, const char *meaning, uint64_t count)
{
    (void)printf("  %8" PRIu64 "  %s (%s)%s\n", count, meaning, what, count == 0 ? "  NEVER" : "");
    return count == 0;
}

static uint32_t
summary_print(const struct event_counts *counts, uint64_t seeds)
{
    uint32_t never = 0;

    (void)printf("%" PRIu64 " histories, %" PRIu64 " cuts, %" PRIu64 " recoveries, %" PRIu64
                 " steps, %" PRIu64 " writes acknowledged, %" PRIu64 " refused\n",
                 seeds, counts->cuts, counts->recoveries, counts->steps, counts->acknowledged,
                 counts->refused);
    (void)printf("%" PRIu64 " sectors compared, %" PRIu64 " checks of the allocation map, %" PRIu64
                 " of the space of a quiet engine, %" PRIu64 " retries of dropped and %" PRIu64
                 " of present writes\n",
                 counts->sectors_compared, counts->checks, counts->quiet_checks,
                 counts->retries_of_dropped, counts->retries_of_present);
    (void)printf("cuts:\n");
#define X(name, meaning) never += summary_line(#name, meaning, counts->cut_##name);
    CUTS(X)
#undef X
    (void)printf("under way when a cut fell:\n");
#define X(name, meaning) never += summary_line(#name, meaning, counts->way_##name);
    UNDER_WAY(X)
#undef X
    (void)printf("lives that ended with a cut and in which it had happened:\n");
#define X(name, meaning) never += summary_line(#name, meaning, counts->life_##name);
    ENGINE_COUNTERS(X)
#undef X
    return never;
}

/* --- main --- */

static void
on_abort(int signal_number)
{
    char text[128];
    int length = snprintf(text, sizeof(text), "seed %" PRIu64 ": signal %d\n", current_seed,
                          signal_number);

    if (write(STDERR_FILENO, text, (size_t)length) < 0)
        _exit(1);
    if (world_failure_is_success)
        _exit(0);
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number);
}

static const char usage[] =
    "Usage: crash_engine [--seeds N] [--seed S] [--trace] [--mutant NAME]\n"
    "  --seeds N  run N histories, beginning with seed S (1 if not given), and want every event\n"
    "             to have fallen under a cut\n"
    "  --seed S   run the history of seed S\n"
    "  --trace    print the history\n"
    "  --mutant NAME  let this mutant live; status 0 if a history shows it (crash_mutants only)\n";

int
main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seeds", required_argument, NULL, 'n'}, {"seed", required_argument, NULL, 's'},
        {"trace", no_argument, NULL, 't'},       {"mutant", required_argument, NULL, 'm'},
        {"help", no_argument, NULL, 'h'},        {0}};
    uint64_t seeds = 0, first = 1;
    bool trace = false;
    struct event_counts counts = {0};
    uint32_t never;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'n')
            seeds = strtoull(optarg, NULL, 10);
        else if (option == 's')
            first = strtoull(optarg, NULL, 10);
        else if (option == 't')
            trace = true;
        else if (option == 'm' && DLBLK_MUTANTS && setenv("DLBLK_MUTANT", optarg, 1) == 0)
            world_failure_is_success = true;
        else {
            (void)fputs(usage, option == 'h' ? stdout : stderr);
            return option == 'h' ? 0 : 2;
        }
    }
    if (optind < argc) {
        (void)fputs(usage, stderr);
        return 2;
    }
    (void)signal(SIGABRT, on_abort);
    (void)signal(SIGSEGV, on_abort);
    for (uint64_t seed = first; seed < first + (seeds > 0 ? seeds : 1); seed++) {
        current_seed = seed;
        history_run(seed, &counts, trace);
    }
    if (world_failure_is_success) {
        (void)fprintf(stderr, "mutant %s was not found\n", getenv("DLBLK_MUTANT"));
        return 1;
    }
    if (seeds == 0)
        return 0;
    never = summary_print(&counts, seeds);
    if (never > 0)
        (void)fprintf(stderr, "%u events never fell under a cut: more seeds, or a better test\n",
                      never);
    return never > 0 ? 1 : 0;
}
