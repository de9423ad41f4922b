/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lib/fake_env.h"

#include <stdlib.h>
#include <string.h>

/* Tests end where their own frame breaks; no component's assert is needed for that. */
static void
fake_env_require(bool condition)
{
    if (!condition)
        abort();
}

static struct fake_env *
fake_env_of(struct env *env)
{
    return (struct fake_env *)env;
}

static uint64_t
fake_env_now_ns(struct env *env)
{
    return fake_env_of(env)->time_ns;
}

static uint64_t
fake_env_wall_ms(struct env *env)
{
    return 1700000000000u + fake_env_of(env)->time_ns / 1000000;
}

static uint64_t
fake_env_random(struct env *env)
{
    return fake_rng_next(&fake_env_of(env)->core_rng);
}

/* --- timers: a binary heap on the deadline --- */

static void
heap_set(struct fake_env *fake, uint32_t idx, struct env_timer *timer)
{
    fake->heap[idx] = timer;
    timer->heap_idx = idx;
}

static void
heap_up(struct fake_env *fake, uint32_t idx)
{
    struct env_timer *timer = fake->heap[idx];

    while (idx > 1 && fake->heap[idx / 2]->deadline_ns > timer->deadline_ns) {
        heap_set(fake, idx, fake->heap[idx / 2]);
        idx /= 2;
    }
    heap_set(fake, idx, timer);
}

static void
heap_down(struct fake_env *fake, uint32_t idx)
{
    struct env_timer *timer = fake->heap[idx];

    for (;;) {
        uint32_t child = idx * 2;

        if (child > fake->heap_count)
            break;
        if (child < fake->heap_count &&
            fake->heap[child + 1]->deadline_ns < fake->heap[child]->deadline_ns)
            child++;
        if (fake->heap[child]->deadline_ns >= timer->deadline_ns)
            break;
        heap_set(fake, idx, fake->heap[child]);
        idx = child;
    }
    heap_set(fake, idx, timer);
}

static void
fake_env_timer_stop(struct env *env, struct env_timer *timer)
{
    struct fake_env *fake = fake_env_of(env);
    uint32_t idx = timer->heap_idx;
    struct env_timer *last;

    if (idx == 0)
        return;
    fake_env_require(idx <= fake->heap_count && fake->heap[idx] == timer);
    last = fake->heap[fake->heap_count--];
    timer->heap_idx = 0;
    if (last == timer)
        return;
    heap_set(fake, idx, last);
    heap_down(fake, idx);
    heap_up(fake, last->heap_idx);
}

static void
fake_env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
    struct fake_env *fake = fake_env_of(env);

    fake_env_timer_stop(env, timer);
    if (fake->heap_count + 2 > fake->heap_capacity) {
        fake->heap_capacity = fake->heap_capacity * 2 + 16;
        fake->heap = realloc(fake->heap, fake->heap_capacity * sizeof(*fake->heap));
        fake_env_require(fake->heap != NULL);
    }
    timer->deadline_ns = fake->time_ns + delay_ns;
    fake->heap[++fake->heap_count] = timer;
    heap_up(fake, fake->heap_count);
}

/* --- deferred tasks: a queue --- */

static void
fake_env_defer(struct env *env, struct env_task *task)
{
    struct fake_env *fake = fake_env_of(env);

    if (task->queued)
        return;
    if (fake->tasks_head + fake->tasks_count == fake->tasks_capacity) {
        if (fake->tasks_count > 0)
            memmove(fake->tasks, fake->tasks + fake->tasks_head,
                    fake->tasks_count * sizeof(struct env_task *));
        fake->tasks_head = 0;
        if (fake->tasks_count * 2 >= fake->tasks_capacity) {
            fake->tasks_capacity = fake->tasks_capacity * 2 + 16;
            fake->tasks = realloc(fake->tasks, fake->tasks_capacity * sizeof(*fake->tasks));
            fake_env_require(fake->tasks != NULL);
        }
    }
    task->queued = true;
    fake->tasks[fake->tasks_head + fake->tasks_count++] = task;
}

static void
fake_env_run_tasks(struct fake_env *fake)
{
    while (fake->tasks_count > 0) {
        struct env_task *task = fake->tasks[fake->tasks_head++];

        fake->tasks_count--;
        task->queued = false;
        fake->tasks_run++;
        task->fn(task);
    }
}

/* --- links: none here; the simulator has its own env --- */

static struct link *
fake_env_link_connect(struct env *env, const struct dl_address *address,
                      const struct link_events *events, void *core, void *user)
{
    (void)env;
    (void)address;
    (void)events;
    (void)core;
    (void)user;
    abort();
}

static const struct env_ops fake_env_ops = {
    .now_ns = fake_env_now_ns,
    .wall_ms = fake_env_wall_ms,
    .random = fake_env_random,
    .timer_start = fake_env_timer_start,
    .timer_stop = fake_env_timer_stop,
    .defer = fake_env_defer,
    .link_connect = fake_env_link_connect,
};

void
fake_env_init(struct fake_env *fake, uint64_t seed)
{
    memset(fake, 0, sizeof(*fake));
    fake->env.ops = &fake_env_ops;
    fake->time_ns = 1000000000;
    fake->timer_percent = 2;
    fake_rng_init(&fake->rng, seed);
    fake_rng_init(&fake->core_rng, seed ^ 0x5bd1e995u);
}

void
fake_env_fini(struct fake_env *fake)
{
    free(fake->heap);
    free(fake->tasks);
    fake->heap = NULL;
    fake->tasks = NULL;
}

void
fake_env_add_source(struct fake_env *fake, struct fake_source source)
{
    fake_env_require(fake->source_count < FAKE_ENV_SOURCES_MAX);
    fake->sources[fake->source_count++] = source;
}

void
fake_env_remove_source(struct fake_env *fake, const void *context)
{
    for (uint32_t i = 0; i < fake->source_count; i++) {
        if (fake->sources[i].context != context)
            continue;
        fake->source_count--;
        memmove(&fake->sources[i], &fake->sources[i + 1],
                (fake->source_count - i) * sizeof(fake->sources[0]));
        return;
    }
}

void
fake_env_add_turn_end(struct fake_env *fake, void (*fn)(void *context), void *context)
{
    fake_env_require(fake->hook_count < FAKE_ENV_HOOKS_MAX);
    fake->hooks[fake->hook_count++] = (struct fake_hook){.fn = fn, .context = context};
}

void
fake_env_remove_turn_end(struct fake_env *fake, const void *context)
{
    for (uint32_t i = 0; i < fake->hook_count; i++) {
        if (fake->hooks[i].context != context)
            continue;
        fake->hook_count--;
        memmove(&fake->hooks[i], &fake->hooks[i + 1],
                (fake->hook_count - i) * sizeof(fake->hooks[0]));
        return;
    }
}

void
fake_env_settle(struct fake_env *fake)
{
    fake_env_run_tasks(fake);
    for (uint32_t i = 0; i < fake->hook_count; i++)
        fake->hooks[i].fn(fake->hooks[i].context);
    fake_env_run_tasks(fake);
}

static void
fake_env_fire_timer(struct fake_env *fake)
{
    struct env_timer *timer = fake->heap[1];

    if (timer->deadline_ns > fake->time_ns)
        fake->time_ns = timer->deadline_ns;
    fake_env_timer_stop(&fake->env, timer);
    fake->timers_fired++;
    timer->fn(timer);
}

/* Some source has an event waiting: one of all those events, each as likely as the others. */
static void
fake_env_step_source(struct fake_env *fake, const uint32_t *pending, uint64_t total)
{
    uint64_t pick = fake_rng_below(&fake->rng, total);

    for (uint32_t i = 0; i < fake->source_count; i++) {
        if (pick < pending[i]) {
            fake->sources[i].step(fake->sources[i].context);
            return;
        }
        pick -= pending[i];
    }
}

static bool
fake_env_turn_until(struct fake_env *fake, uint64_t deadline_max_ns)
{
    uint32_t pending[FAKE_ENV_SOURCES_MAX];
    uint64_t total = 0;
    bool timer;

    for (uint32_t i = 0; i < fake->source_count; i++) {
        pending[i] = fake->sources[i].pending(fake->sources[i].context);
        total += pending[i];
    }
    timer = fake->heap_count > 0 && fake->heap[1]->deadline_ns <= deadline_max_ns;
    if (total == 0 && !timer && fake->tasks_count == 0)
        return false;
    fake->turns++;
    fake->time_ns += 1000;
    if (timer && (total == 0 || fake_rng_percent(&fake->rng, fake->timer_percent)))
        fake_env_fire_timer(fake);
    else if (total > 0)
        fake_env_step_source(fake, pending, total);
    fake_env_settle(fake);
    return true;
}

bool
fake_env_turn(struct fake_env *fake)
{
    return fake_env_turn_until(fake, UINT64_MAX);
}

bool
fake_env_run(struct fake_env *fake, const bool *done, uint64_t max_turns)
{
    fake_env_settle(fake);
    for (uint64_t i = 0; i < max_turns && !*done; i++)
        if (!fake_env_turn(fake))
            break;
    return *done;
}

void
fake_env_run_for(struct fake_env *fake, uint64_t limit_ns)
{
    uint64_t until_ns = fake->time_ns + limit_ns;

    fake_env_settle(fake);
    while (fake_env_turn_until(fake, until_ns))
        ;
    if (fake->time_ns < until_ns)
        fake->time_ns = until_ns;
}

void
fake_env_crash(struct fake_env *fake)
{
    for (uint32_t i = 1; i <= fake->heap_count; i++)
        fake->heap[i] = NULL;
    fake->heap_count = 0;
    fake->tasks_count = 0;
    fake->tasks_head = 0;
    fake->hook_count = 0;
}
