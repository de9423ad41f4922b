/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_world.c: the clock, the events, processes with their timers and deferred tasks.  See sim.h.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/trace.h"
#include "tests/sim/sim.h"

/*
 * A loop's turn takes so long at most: what is deferred in it runs at its end, with what else
 * happens meanwhile.
 */
#define TURN_NS_MAX         (30 * SIM_US)
#define TIMER_LATE_NS_MAX   (50 * SIM_US)
#define CLOCK_DRIFT_MAX     40 /* of 1024 */
#define CLOCK_OFFSET_NS_MAX (100000 * SIM_S)

/* --- told --- */

void
sim_trace_write(const struct sim_world *world, const struct sim_process *process,
                const char *format, ...)
{
    va_list arguments;

    (void)printf("%12.6f %-10s ", (double)world->now_ns / 1e9,
                 process == NULL ? "-" : process->name);
    va_start(arguments, format);
    (void)vprintf(format, arguments);
    va_end(arguments);
    (void)putchar('\n');
}

void
sim_fail(const struct sim_world *world, const char *format, ...)
{
    va_list arguments;

    (void)fflush(stdout);
    (void)fprintf(stderr, "seed %" PRIu64 " at %.6f s, event %" PRIu64 ": ", world->seed,
                  (double)world->now_ns / 1e9, world->event_count);
    va_start(arguments, format);
    (void)vfprintf(stderr, format, arguments);
    va_end(arguments);
    (void)fputc('\n', stderr);
    (void)fflush(stderr);
    _Exit(1);
}

static void
history_add(struct sim_world *world, uint64_t value)
{
    world->history_hash = (world->history_hash ^ value) * 0x100000001b3u;
}

/* --- events: a binary heap on time, then order --- */

static bool
event_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->time_ns != b->time_ns ? a->time_ns < b->time_ns : a->order < b->order;
}

static void
heap_set(struct sim_world *world, uint32_t idx, struct sim_event *event)
{
    world->heap[idx] = event;
    event->heap_idx = idx;
}

static void
heap_up(struct sim_world *world, uint32_t idx)
{
    struct sim_event *event = world->heap[idx];

    while (idx > 1 && event_before(event, world->heap[idx / 2])) {
        heap_set(world, idx, world->heap[idx / 2]);
        idx /= 2;
    }
    heap_set(world, idx, event);
}

static void
heap_down(struct sim_world *world, uint32_t idx)
{
    struct sim_event *event = world->heap[idx];

    for (;;) {
        uint32_t child = idx * 2;

        if (child > world->heap_count)
            break;
        if (child < world->heap_count && event_before(world->heap[child + 1], world->heap[child]))
            child++;
        if (!event_before(world->heap[child], event))
            break;
        heap_set(world, idx, world->heap[child]);
        idx = child;
    }
    heap_set(world, idx, event);
}

void
sim_cancel(struct sim_world *world, struct sim_event *event)
{
    uint32_t idx = event->heap_idx;
    struct sim_event *last;

    if (idx == 0)
        return;
    last = world->heap[world->heap_count--];
    event->heap_idx = 0;
    if (last == event)
        return;
    heap_set(world, idx, last);
    heap_down(world, idx);
    heap_up(world, last->heap_idx);
}

void
sim_schedule(struct sim_world *world, struct sim_event *event, struct sim_process *process,
             sim_event_fn fn, uint64_t delay_ns)
{
    sim_cancel(world, event);
    event->fn = fn;
    event->process = process;
    event->time_ns = world->now_ns + delay_ns;
    event->order = world->next_order++;
    if (world->heap_count + 2 > world->heap_capacity) {
        world->heap_capacity = world->heap_capacity * 2 + 64;
        world->heap = realloc(world->heap, world->heap_capacity * sizeof(struct sim_event *));
        sim_require(world, world->heap != NULL, "no memory");
    }
    world->heap_count++;
    heap_set(world, world->heap_count, event);
    heap_up(world, world->heap_count);
}

/* --- timers of a process: the same on deadlines (world time) --- */

static void
timers_set(struct sim_process *process, uint32_t idx, struct env_timer *timer)
{
    process->timers[idx] = timer;
    timer->heap_idx = idx;
}

static void
timers_up(struct sim_process *process, uint32_t idx)
{
    struct env_timer *timer = process->timers[idx];

    while (idx > 1 && process->timers[idx / 2]->deadline_ns > timer->deadline_ns) {
        timers_set(process, idx, process->timers[idx / 2]);
        idx /= 2;
    }
    timers_set(process, idx, timer);
}

static void
timers_down(struct sim_process *process, uint32_t idx)
{
    struct env_timer *timer = process->timers[idx];

    for (;;) {
        uint32_t child = idx * 2;

        if (child > process->timer_count)
            break;
        if (child < process->timer_count &&
            process->timers[child + 1]->deadline_ns < process->timers[child]->deadline_ns)
            child++;
        if (process->timers[child]->deadline_ns >= timer->deadline_ns)
            break;
        timers_set(process, idx, process->timers[child]);
        idx = child;
    }
    timers_set(process, idx, timer);
}

/* --- the env of a process --- */

static struct sim_process *
process_of(struct env *env)
{
    struct sim_process *process = (struct sim_process *)env;

    sim_require(process->world, process->up && process->world->running == process,
                "%s: its env was used while it was not running", process->name);
    return process;
}

static uint64_t
sim_env_now_ns(struct env *env)
{
    struct sim_process *process = (struct sim_process *)env;
    uint64_t now_ns = process->world->now_ns;

    return process->clock_offset_ns + now_ns +
           (uint64_t)((int64_t)(now_ns / 1024) * process->clock_drift);
}

static uint64_t
sim_env_wall_ms(struct env *env)
{
    return 1700000000000u + sim_env_now_ns(env) / SIM_MS;
}

static uint64_t
sim_env_random(struct env *env)
{
    return fake_rng_next(&process_of(env)->core_rng);
}

static void
sim_env_timer_stop(struct env *env, struct env_timer *timer)
{
    struct sim_process *process = process_of(env);
    uint32_t idx = timer->heap_idx;
    struct env_timer *last;

    if (idx == 0)
        return;
    sim_require(process->world, idx <= process->timer_count && process->timers[idx] == timer,
                "%s: a timer that is not its own, or was moved", process->name);
    last = process->timers[process->timer_count--];
    timer->heap_idx = 0;
    if (last == timer)
        return;
    timers_set(process, idx, last);
    timers_down(process, idx);
    timers_up(process, last->heap_idx);
}

static void
sim_env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
    struct sim_process *process = process_of(env);
    struct sim_world *world = process->world;
    uint64_t real_ns = delay_ns / (uint64_t)(1024 + process->clock_drift) * 1024;

    sim_env_timer_stop(env, timer);
    if (process->timer_count + 2 > process->timer_capacity) {
        process->timer_capacity = process->timer_capacity * 2 + 16;
        process->timers = realloc(process->timers,
                                  process->timer_capacity * sizeof(struct env_timer *));
        sim_require(world, process->timers != NULL, "no memory");
    }
    timer->deadline_ns = world->now_ns + real_ns + 1 +
                         fake_rng_below(&world->net_rng, TIMER_LATE_NS_MAX);
    process->timer_count++;
    timers_set(process, process->timer_count, timer);
    timers_up(process, process->timer_count);
}

static void
process_on_turn(struct sim_event *event)
{
    struct sim_process *process = event->process;
    struct list *node;

    while (process->up && (node = list_pop_front(&process->tasks)) != NULL) {
        struct env_task *task = list_entry(node, struct env_task, node);

        task->queued = false;
        task->fn(task);
    }
}

static void
sim_env_defer(struct env *env, struct env_task *task)
{
    struct sim_process *process = process_of(env);
    struct sim_world *world = process->world;

    if (task->queued)
        return;
    task->queued = true;
    task->node = (struct list){NULL, NULL};
    list_push_back(&process->tasks, &task->node);
    if (process->turn_event.heap_idx == 0)
        sim_schedule(world, &process->turn_event, process, process_on_turn,
                     fake_rng_below(&world->net_rng, TURN_NS_MAX));
}

const struct env_ops sim_env_ops = {
    .now_ns = sim_env_now_ns,
    .wall_ms = sim_env_wall_ms,
    .random = sim_env_random,
    .timer_start = sim_env_timer_start,
    .timer_stop = sim_env_timer_stop,
    .defer = sim_env_defer,
    .link_connect = sim_link_connect,
    .link_send = sim_link_send,
    .link_close = sim_link_close,
    .link_pause = sim_link_pause,
};

/* --- processes --- */

void
sim_process_init(struct sim_process *process, struct sim_world *world, const char *name)
{
    memset(process, 0, sizeof(*process));
    sim_require(world, world->process_count < SIM_PROCESSES_MAX, "too many processes");
    process->env.ops = &sim_env_ops;
    process->world = world;
    process->idx = world->process_count;
    (void)snprintf(process->name, sizeof(process->name), "%s", name);
    fake_rng_init(&process->core_rng, sim_seed_of(world->seed, 100 + process->idx));
    list_init(&process->tasks);
    list_init(&process->ends);
    world->processes[world->process_count++] = process;
}

void
sim_process_fini(struct sim_process *process)
{
    if (process->up)
        sim_process_kill(process, true);
    free(process->timers);
    process->timers = NULL;
}

void
sim_process_start(struct sim_process *process)
{
    struct sim_world *world = process->world;

    sim_require(world, !process->up, "%s is up already", process->name);
    process->up = true;
    process->life++;
    process->paused_until_ns = 0;
    process->clock_offset_ns = fake_rng_below(&world->net_rng, CLOCK_OFFSET_NS_MAX);
    process->clock_drift = (int32_t)fake_rng_below(&world->net_rng, 2 * CLOCK_DRIFT_MAX + 1) -
                           CLOCK_DRIFT_MAX;
    sim_trace(world, process, "starts: life %u", process->life);
}

void
sim_process_listen(struct sim_process *process, const struct link_events *events, void *core)
{
    process->listen_events = events;
    process->listen_core = core;
}

void
sim_process_kill(struct sim_process *process, bool silent)
{
    struct sim_world *world = process->world;

    sim_require(world, process->up, "%s is not up", process->name);
    sim_require(world, world->running == NULL, "%s is killed by code of a process", process->name);
    sim_trace(world, process, "dies%s", silent ? ", its machine too" : "");
    process->up = false;
    process->listen_events = NULL;
    process->timer_count = 0;
    list_init(&process->tasks);
    sim_cancel(world, &process->turn_event);
    sim_process_drop_links(process, silent);
}

void
sim_process_pause(struct sim_process *process, uint64_t duration_ns)
{
    sim_trace(process->world, process, "stands still for %.3f s", (double)duration_ns / 1e9);
    process->paused_until_ns = process->world->now_ns + duration_ns;
}

struct sim_process *
sim_enter(struct sim_process *process)
{
    struct sim_process *before = process->world->running;

    process->world->running = process;
    return before;
}

void
sim_leave(struct sim_process *process, struct sim_process *before)
{
    process->world->running = before;
}

/* --- the world --- */

void
sim_world_init(struct sim_world *world, uint64_t seed)
{
    memset(world, 0, sizeof(*world));
    world->seed = seed;
    world->now_ns = SIM_S;
    world->next_link_id = 1;
    world->history_hash = 0xcbf29ce484222325u;
    fake_rng_init(&world->net_rng, sim_seed_of(seed, 1));
    world->net = (struct sim_net_profile){
        .delay_min_ns = 20 * SIM_US,
        .delay_max_ns = 200 * SIM_US,
        .buffer_bytes = 256u << 10,
    };
}

void
sim_world_fini(struct sim_world *world)
{
    free(world->heap);
    world->heap = NULL;
}

/* The process whose next timer is the first of all; NULL: there is none. */
static struct sim_process *
world_next_timer(struct sim_world *world, uint64_t *ret_time_ns)
{
    struct sim_process *next = NULL;
    uint64_t next_ns = UINT64_MAX;

    for (uint32_t i = 0; i < world->process_count; i++) {
        struct sim_process *process = world->processes[i];
        uint64_t time_ns;

        if (!process->up || process->timer_count == 0)
            continue;
        time_ns = process->timers[1]->deadline_ns;
        if (time_ns < process->paused_until_ns)
            time_ns = process->paused_until_ns;
        if (time_ns < next_ns) {
            next_ns = time_ns;
            next = process;
        }
    }
    *ret_time_ns = next_ns;
    return next;
}

static void
world_advance(struct sim_world *world, uint64_t time_ns, const struct sim_process *process)
{
    if (time_ns > world->now_ns)
        world->now_ns = time_ns;
    world->event_count++;
    history_add(world, world->now_ns);
    history_add(world, process == NULL ? 0 : process->idx + 1);
    dl_trace_set_time(world->now_ns);
}

static void
world_run_timer(struct sim_world *world, struct sim_process *process, uint64_t time_ns)
{
    struct env_timer *timer = process->timers[1];

    world_advance(world, time_ns, process);
    world->running = process;
    sim_env_timer_stop(&process->env, timer);
    timer->fn(timer);
    world->running = NULL;
}

static void
world_run_event(struct sim_world *world)
{
    struct sim_event *event = world->heap[1];
    struct sim_process *process = event->process;

    if (process != NULL && process->paused_until_ns > event->time_ns) {
        /* As it would be after the pause: in the order of its time. */
        event->time_ns = process->paused_until_ns;
        heap_down(world, 1);
        return;
    }
    world_advance(world, event->time_ns, process);
    sim_cancel(world, event);
    world->running = process;
    event->fn(event);
    world->running = NULL;
}

bool
sim_world_step(struct sim_world *world, uint64_t limit_ns)
{
    uint64_t timer_ns;
    struct sim_process *process = world_next_timer(world, &timer_ns);
    uint64_t event_ns = world->heap_count > 0 ? world->heap[1]->time_ns : UINT64_MAX;

    if (event_ns >= limit_ns && timer_ns >= limit_ns) {
        if (limit_ns > world->now_ns)
            world->now_ns = limit_ns;
        return false;
    }
    if (timer_ns < event_ns)
        world_run_timer(world, process, timer_ns);
    else
        world_run_event(world);
    return true;
}
