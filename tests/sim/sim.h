/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim.h: a world of processes in one thread: virtual time, a network that misbehaves, one seed.
 *
 * The world picks the next event (a timer, a frame that arrives, a fault) by its virtual time, sets
 * the clock to it and runs it in the context of its process.  Nothing else drives a core, and
 * everything random comes from generators made of the seed: the same seed is the same history, to
 * the last bit.  world->history_hash says so.
 *
 * Each process is an env (common/env.h).  Its clock has an offset and a drift of its own; a process
 * can be paused (as a machine that swaps), and killed: then its timers, tasks and links are gone,
 * and no callback of its core runs again.
 *
 * Links: frames are bytes on their way, decoded at the far end by proto/frame.h.  In order within
 * one link, after a random delay; a link breaks at any byte, for one side earlier than for the
 * other, or for one side not at all until it notices.
 *
 * Threads: one.  Errors: a violation of env.h by a core ends the run with a message (sim_fail()).
 */
#ifndef DLBLK_TESTS_SIM_H
#define DLBLK_TESTS_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/env.h"
#include "proto/frame.h"
#include "tests/unit/lib/fake_rng.h"

#define SIM_US 1000ull
#define SIM_MS 1000000ull
#define SIM_S  1000000000ull

#define SIM_PROCESSES_MAX 16u

struct sim_world;
struct sim_process;

/*
 * The seed of one of a run's generators: fake_rng's streams of neighbouring seeds are the same, one
 * step apart.
 */
static inline uint64_t
sim_seed_of(uint64_t seed, uint64_t stream)
{
    struct fake_rng rng;

    fake_rng_init(&rng, seed);
    rng.state = fake_rng_next(&rng) ^ stream * 0xd6e8feb86659fd93u;
    return fake_rng_next(&rng);
}

/* --- events --- */

struct sim_event;
typedef void (*sim_event_fn)(struct sim_event *event);

/* Embedded in what it serves.  With a process: waits while that is paused. */
struct sim_event {
    uint64_t time_ns;
    uint64_t order;
    sim_event_fn fn;
    struct sim_process *process; /* NULL: the world itself */
    uint32_t heap_idx;           /* 0: not scheduled */
};

/* --- the world --- */

struct sim_net_profile {
    uint64_t delay_min_ns, delay_max_ns;
    uint32_t tail_permille; /* of the frames that take up to tail_ns */
    uint64_t tail_ns;
    uint32_t flips_per_million; /* frames with a flipped bit */
    uint32_t silent_percent;    /* of broken links: one side isn't told */
    uint32_t split_percent;     /* of frames with a payload: it comes later than head and body */
    uint64_t buffer_bytes;      /* in the sockets of one direction */
};

struct sim_net_stats {
    uint64_t connects, refused, frames, payload_frames, bytes, flips, cuts, cuts_in_payload, closes;
    uint64_t frames_lost, silent, blocked, pauses;
};

/*
 * A frame: when its sender hands it over to the network (the body may not be there), or when it is
 * about to be given to a core.
 */
struct sim_frame_event {
    struct sim_process *from; /* NULL: not known any more */
    struct sim_process *to;   /* NULL: nobody is there */
    uint64_t link_id;         /* of the end at which it happens: the same for request and reply */
    const struct frame *frame;
    bool arrives;
};

struct sim_world {
    uint64_t seed;
    uint64_t now_ns;
    uint64_t event_count;
    uint64_t history_hash;
    struct fake_rng net_rng;
    struct sim_event **heap; /* [1 .. heap_count] */
    uint32_t heap_count, heap_capacity;
    uint64_t next_order;
    uint64_t next_link_id;
    struct sim_process *processes[SIM_PROCESSES_MAX];
    uint32_t process_count;
    struct sim_process *running; /* whose code runs now; NULL: the harness */
    uint64_t blocked_until_ns[SIM_PROCESSES_MAX][SIM_PROCESSES_MAX]; /* [from][to] */
    uint64_t slow_until_ns[SIM_PROCESSES_MAX][SIM_PROCESSES_MAX], slow_ns;
    struct sim_net_profile net;
    struct sim_net_stats net_stats;
    bool trace;
    /*
     * Who looks at frames; NULL: nobody.  He may block links, or pause processes; whatever else he
     * does he does in an event of his own.
     */
    void (*on_frame)(void *context, const struct sim_frame_event *event);
    void *frame_context;
};

void sim_world_init(struct sim_world *world, uint64_t seed);
void sim_world_fini(struct sim_world *world);

/* The next event.  False: there is none before limit_ns; the clock stands there then. */
bool sim_world_step(struct sim_world *world, uint64_t limit_ns);

void sim_schedule(struct sim_world *world, struct sim_event *event, struct sim_process *process,
                  sim_event_fn fn, uint64_t delay_ns);
void sim_cancel(struct sim_world *world, struct sim_event *event);

/* --- processes --- */

struct sim_process {
    struct env env; /* first */
    struct sim_world *world;
    char name[24];
    uint32_t idx;
    bool up;
    uint32_t life; /* counts its starts */
    uint64_t paused_until_ns;
    uint64_t clock_offset_ns;
    int32_t clock_drift; /* in 1/1024 */
    struct fake_rng core_rng;
    struct env_timer **timers; /* heap [1 .. timer_count] */
    uint32_t timer_count, timer_capacity;
    struct list tasks;
    struct sim_event turn_event;
    struct list ends; /* links, struct sim_end */
    const struct link_events *listen_events;
    void *listen_core;
};

/* The process is named by `name`: the host in addresses.  It is down at first. */
void sim_process_init(struct sim_process *process, struct sim_world *world, const char *name);
void sim_process_fini(struct sim_process *process);
/* From now on it has an env.  Its core is created afterwards, inside sim_enter(). */
void sim_process_start(struct sim_process *process);
void sim_process_listen(struct sim_process *process, const struct link_events *events, void *core);
/*
 * It dies: no callback runs any more.  Peers see their links break, in one of the ways that links
 * break; with `silent` they are told nothing (the machine is gone).  The caller throws the core's
 * memory away.
 */
void sim_process_kill(struct sim_process *process, bool silent);
void sim_process_pause(struct sim_process *process, uint64_t duration_ns);

/* Code between these runs as the process: creating a core, submitting requests. */
struct sim_process *sim_enter(struct sim_process *process);
void sim_leave(struct sim_process *process, struct sim_process *before);

/* --- the network --- */

/* Nothing gets from one to the other until then; what is on its way waits. */
void sim_net_block(struct sim_world *world, const struct sim_process *from,
                   const struct sim_process *to, uint64_t duration_ns);
/* What goes from one to the other until then takes up to delay_ns longer. */
void sim_net_slow(struct sim_world *world, const struct sim_process *from,
                  const struct sim_process *to, uint64_t delay_ns, uint64_t duration_ns);
/* Not slow either. */
void sim_net_unblock_all(struct sim_world *world);
/* Break one link of the process, picked by `pick`.  False: it has none. */
bool sim_net_cut_one(struct sim_process *process, uint64_t pick);
/* Break all links between the two. */
void sim_net_cut_between(struct sim_process *one, const struct sim_process *other);

/* For sim_world.c. */
extern const struct env_ops sim_env_ops;
void sim_process_drop_links(struct sim_process *process, bool silent);
struct link *sim_link_connect(struct env *env, const struct dl_address *address,
                              const struct link_events *events, void *core, void *user);
void sim_link_send(struct env *env, struct link *link, struct frame_out *frame);
void sim_link_close(struct env *env, struct link *link);
void sim_link_pause(struct env *env, struct link *link, bool paused);

/* --- what is told --- */

/* The run has failed: says so with time and seed, and ends the program with status 1. */
__attribute__((noreturn)) void sim_fail(const struct sim_world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define sim_require(world, condition, ...) \
    do {                                   \
        if (!(condition))                  \
            sim_fail(world, __VA_ARGS__);  \
    } while (0)

void sim_trace_write(const struct sim_world *world, const struct sim_process *process,
                     const char *format, ...) __attribute__((format(printf, 3, 4)));
#define sim_trace(world, process, ...)                        \
    do {                                                      \
        if ((world)->trace)                                   \
            sim_trace_write((world), (process), __VA_ARGS__); \
    } while (0)

#endif
