/* SPDX-License-Identifier: Apache-2.0 */
/*
 * env.h: all that a core may ask of the world: time, randomness, timers, deferred calls, links to
 * peers.
 *
 * A core (client, chunkserver, metadata service) is event-driven logic that touches no socket,
 * file, clock or thread.  A shell (loop.h, net.h: io_uring) or the simulator (tests/sim) gives it
 * an env and calls it back.
 *
 * Threads: an env and everything started on it belong to one thread.
 * Order:   no callback ever runs inside the call that starts it.
 */
#ifndef DLBLK_COMMON_ENV_H
#define DLBLK_COMMON_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/address.h"
#include "common/list.h"

struct env;
struct frame;     /* proto/frame.h: a frame that arrived */
struct frame_out; /* proto/frame.h: a frame to be sent */

/* --- timers and deferred calls: embedded in what they serve, no allocation --- */

struct env_timer;
typedef void (*env_timer_fn)(struct env_timer *timer);

struct env_timer {
    env_timer_fn fn;
    uint64_t deadline_ns;
    uint32_t heap_idx; /* for the env: place in its heap, 0 = not armed */
};

struct env_task;
typedef void (*env_task_fn)(struct env_task *task);

/*
 * A call that runs later in the same turn of the loop, before it sleeps, in the order of
 * env_defer().
 */
struct env_task {
    env_task_fn fn;
    struct list node;
    bool queued;
};

/* --- links: a connection to a peer that carries frames --- */

/*
 * One connection.  The env owns it: the pointer is valid from link_connect() or on_accept until
 * on_down has returned.  `id` grows and is never used again; logs name links by it.
 */
struct link {
    uint64_t id;
    struct env *env;
    const struct link_events *events;
    void *core; /* first argument of the events */
    void *user; /* the core's own: the peer or session behind this link */
    struct dl_address peer;
    bool up; /* between on_up (or on_accept) and on_down */
};

struct link_events {
    /* A connection was accepted (servers only); link->user is NULL and may be set. */
    void (*on_accept)(void *core, struct link *link);
    /* link_connect() succeeded. */
    void (*on_up)(void *core, struct link *link);
    /*
     * The header and body of a frame with a payload are here, the payload is about to be received.
     * Returns where to put it: memory for frame->payload_bytes, 4096-aligned or not as the core
     * likes, that stays the link's until on_frame or on_down; or NULL: the payload is received and
     * dropped, and on_frame sees payload == NULL.
     */
    void *(*on_payload)(void *core, struct link *link, const struct frame *frame);
    /* A whole, checked frame.  frame, frame->body are valid during the call only. */
    void (*on_frame)(void *core, struct link *link, const struct frame *frame);
    /*
     * The link is gone (also after link_close(), with -DL_E_CANCELLED); all its frame_outs were
     * given back before.
     */
    void (*on_down)(void *core, struct link *link, int err);
};

struct env_ops {
    uint64_t (*now_ns)(struct env *env); /* monotonic */
    /* since 1970; for display and events only, never for decisions */
    uint64_t (*wall_ms)(struct env *env);
    uint64_t (*random)(struct env *env);
    /* Arm or re-arm; fn runs once, delay_ns from now or a little later. */
    void (*timer_start)(struct env *env, struct env_timer *timer, uint64_t delay_ns);
    void (*timer_stop)(struct env *env, struct env_timer *timer);
    void (*defer)(struct env *env, struct env_task *task); /* no effect if it is queued already */
    /*
     * Start to connect.  Never fails inside the call: on_up or on_down follows.  Names are resolved
     * by the env.  The caller keeps link->core's object alive until on_down.
     */
    struct link *(*link_connect)(struct env *env, const struct dl_address *address,
                                 const struct link_events *events, void *core, void *user);
    /*
     * Queue a frame.  It and the memory it names belong to the link until frame->on_sent, which
     * says that the bytes were handed over (0; not that they arrived) or never will be (negative).
     * On a link that is not up on_sent gets -DL_E_CONNECTION_LOST.  Order of frames is kept.
     */
    void (*link_send)(struct env *env, struct link *link, struct frame_out *frame);
    /*
     * on_down follows, with err; no on_frame after this call.  Frames queued before it are still
     * handed over if that needs no waiting; all others are given back with an error.
     */
    void (*link_close)(struct env *env, struct link *link);
    /*
     * Flow control for servers: a paused link receives nothing more (the kernel's socket buffers
     * fill, the peer slows down) until it is resumed.
     */
    void (*link_pause)(struct env *env, struct link *link, bool paused);
};

struct env {
    const struct env_ops *ops;
};

static inline uint64_t
env_now_ns(struct env *env)
{
    return env->ops->now_ns(env);
}

static inline uint64_t
env_random(struct env *env)
{
    return env->ops->random(env);
}

static inline void
env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
    env->ops->timer_start(env, timer, delay_ns);
}

static inline void
env_timer_stop(struct env *env, struct env_timer *timer)
{
    env->ops->timer_stop(env, timer);
}

static inline bool
env_timer_armed(const struct env_timer *timer)
{
    return timer->heap_idx != 0;
}

static inline void
env_defer(struct env *env, struct env_task *task)
{
    env->ops->defer(env, task);
}

static inline struct link *
link_connect(struct env *env, const struct dl_address *address, const struct link_events *events,
             void *core, void *user)
{
    return env->ops->link_connect(env, address, events, core, user);
}

static inline void
link_send(struct link *link, struct frame_out *frame)
{
    link->env->ops->link_send(link->env, link, frame);
}

static inline void
link_close(struct link *link)
{
    link->env->ops->link_close(link->env, link);
}

static inline void
link_pause(struct link *link, bool paused)
{
    link->env->ops->link_pause(link->env, link, paused);
}

#endif
