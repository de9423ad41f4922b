/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_env.h: a deterministic env without links: virtual time, timers, deferred tasks, seeded
 * randomness.
 *
 * Things that complete by themselves (the fake disk, the fake index) register as a *source*.  One
 * turn runs one event:  a completion of a source picked at random by the number of events it has
 * waiting, or, when no source has any (and now and then otherwise), the next timer, to whose
 * deadline the virtual clock jumps.  Deferred tasks run after each event, then the turn hooks (an
 * engine's turn_end).
 *
 *     fake_env_init(&env, seed);
 *     fake_disk_init(&disk, &env, size_bytes, ...);
 *     ... start something ...
 *     while (!done && fake_env_turn(&env))
 *         ;
 *
 * Threads: one.
 */
#ifndef DLBLK_TESTS_FAKE_ENV_H
#define DLBLK_TESTS_FAKE_ENV_H

#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"
#include "tests/unit/lib/fake_rng.h"

#define FAKE_ENV_SOURCES_MAX 64u
#define FAKE_ENV_HOOKS_MAX   64u

struct fake_source {
    uint32_t (*pending)(void *context); /* events that could happen now */
    void (*step)(void *context);        /* let one of them happen; its callback runs inside */
    void *context;
};

struct fake_hook {
    void (*fn)(void *context);
    void *context;
};

struct fake_env {
    struct env env;
    uint64_t time_ns;
    struct fake_rng rng; /* the order of events */
    struct fake_rng
        /* what env_random() gives: apart, so that a core's use of it doesn't change the order */
        core_rng;
    struct env_timer **heap; /* [1 .. heap_count] */
    uint32_t heap_count, heap_capacity;
    struct env_task **tasks;
    uint32_t tasks_head, tasks_count, tasks_capacity;
    struct fake_source sources[FAKE_ENV_SOURCES_MAX];
    uint32_t source_count;
    struct fake_hook hooks[FAKE_ENV_HOOKS_MAX];
    uint32_t hook_count;
    unsigned timer_percent; /* how often a timer fires although a source has events: 2 by default */
    uint64_t turns, timers_fired, tasks_run;
};

void fake_env_init(struct fake_env *fake, uint64_t seed);
void fake_env_fini(struct fake_env *fake);

void fake_env_add_source(struct fake_env *fake, struct fake_source source);
void fake_env_remove_source(struct fake_env *fake, const void *context);
/* fn runs at the end of each turn, in the order of the calls. */
void fake_env_add_turn_end(struct fake_env *fake, void (*fn)(void *context), void *context);
void fake_env_remove_turn_end(struct fake_env *fake, const void *context);

/*
 * One event, the tasks after it, the turn hooks, the tasks after those.  False: nothing is left
 * that could happen.
 */
bool fake_env_turn(struct fake_env *fake);
/* As above, without an event: what a caller started from outside becomes visible. */
void fake_env_settle(struct fake_env *fake);
/* Turns until *done, at most max_turns.  Returns *done. */
bool fake_env_run(struct fake_env *fake, const bool *done, uint64_t max_turns);
/* Turns until nothing is left but timers later than limit_ns from now. */
void fake_env_run_for(struct fake_env *fake, uint64_t limit_ns);
/*
 * The process died: timers and tasks are forgotten, hooks too; the sources stay.  What stops its
 * timers when it is destroyed is destroyed before.
 */
void fake_env_crash(struct fake_env *fake);

#endif
