/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.h: the reactor: one thread, one io_uring, timers, deferred calls, messages from other
 * threads.
 *
 * One turn:
 *   1. submit everything that was prepared, and sleep until there is a completion, a timer or a
 *      message: one system call
 *   2. run the completions, the messages, the timers that are due
 *   3. run the deferred calls and the turn-end hooks, again until nothing is left, then the flush
 *      hooks
 *
 * Threads: a loop belongs to the thread that calls loop_run(), and before that to the one that
 *          created it (it may be handed over before loop_run(), never after).  Other threads may
 *          call loop_post() and loop_is_owner() only.
 * Order:   no callback runs inside the call that starts it.
 * Errors:  creation explains itself in `err`; operations report in their completion.
 * Memory:  what a request names belongs to the kernel until its completion has run.
 *
 *     loop_create(&loop, NULL, &err);
 *     net_create(&net, loop, NULL, &err);
 *     ... start things ...
 *     loop_run(loop);
 *     net_destroy(net);
 *     loop_destroy(loop);
 */
#ifndef DLBLK_COMMON_LOOP_H
#define DLBLK_COMMON_LOOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"

struct dl_error;
struct io_uring_sqe;
struct loop;

/* --- life --- */

struct loop_options {
    uint32_t
        /*
         * of the submission queue; 0: 512.  When it is full in the middle of a turn it is submitted
         * early.
         */
        entries;
    uint32_t files; /* places for registered files; 0: 1024 */
};

/*
 * options may be NULL.  Fails with a text that says what to do where io_uring is missing, switched
 * off (kernel.io_uring_disabled), or older than Linux 6.1, and where RLIMIT_MEMLOCK is too low.
 */
int loop_create(struct loop **ret_loop, const struct loop_options *options, struct dl_error *err);
/* Nothing may be in flight but what belongs to the loop itself.  NULL is allowed. */
void loop_destroy(struct loop *loop);
/* Turns until loop_stop().  0, or a negative errno if the ring failed. */
int loop_run(struct loop *loop);
/*
 * One turn.  Sleeps at most timeout_ns for something to happen.  For tests and for start-up code.
 */
int loop_turn(struct loop *loop, uint64_t timeout_ns);
/* loop_run() returns at the end of this turn. */
void loop_stop(struct loop *loop);
/* True on the thread that runs the loop; nowhere before its first turn.  From any thread. */
bool loop_is_owner(const struct loop *loop);
/* Asserts that the calling thread may use the loop: it runs it, or nobody does yet. */
void loop_assert_usable(const struct loop *loop);

/* --- I/O --- */

/* Embedded in the operation it serves; its address is the completion's user_data. */
struct io_req {
    void (*on_cqe)(struct io_req *req, int res);
};

/*
 * An entry to be prepared (io_uring_prep_*), with req as its user_data.  Never NULL.  Submitted at
 * the turn's end.  Before the first turn at most loop_options.entries of them.
 */
struct io_uring_sqe *loop_get_sqe(struct loop *loop, struct io_req *req);
/* The completion's flags (IORING_CQE_F_MORE ...): valid inside on_cqe. */
uint32_t loop_cqe_flags(const struct loop *loop);
/*
 * Registered files: an index for IOSQE_FIXED_FILE, or a negative errno.  Only on the loop's thread,
 * or before it runs.
 */
int loop_register_file(struct loop *loop, int fd);
void loop_unregister_file(struct loop *loop, int index);

/* --- time --- */

/* Monotonic.  In a turn: when the turn's completions were taken; outside of turns: now. */
uint64_t loop_now_ns(const struct loop *loop);
/* The clock itself: for measurements within a turn. */
uint64_t loop_clock_ns(void);
/* Timers as in env.h.  Arm or re-arm; fn runs once, not before the deadline. */
void loop_timer_start(struct loop *loop, struct env_timer *timer, uint64_t delay_ns);
void loop_timer_stop(struct loop *loop, struct env_timer *timer);

/* --- deferred calls and hooks --- */

void loop_defer(struct loop *loop, struct env_task *task);
/* The same, in the next turn, which does not sleep: for work that lets others go first. */
void loop_defer_next(struct loop *loop, struct env_task *task);

/*
 * Runs at the end of each turn, after the deferred calls, in the order in which hooks were added.
 */
void loop_add_turn_end(struct loop *loop, void (*fn)(void *context), void *context);
/* The same, after all of those: for what gathers output (net.c does, disks may). */
void loop_add_flush(struct loop *loop, void (*fn)(void *context), void *context);
/* Removes it from wherever it was added. */
void loop_remove_hook(struct loop *loop, void (*fn)(void *context), void *context);

/* --- other threads --- */

struct loop_message;
typedef void (*loop_message_fn)(struct loop_message *message);

/* Embedded in what is handed over.  The poster doesn't touch it until fn has run. */
struct loop_message {
    struct loop_message *next; /* for the loop */
    loop_message_fn fn;
};

/*
 * Run message->fn on the loop's thread, soon, in the order of the posts of one thread.  From any
 * thread, also before loop_run(); the poster makes sure that the loop is not destroyed meanwhile.
 * Everything the poster wrote before is visible to fn.  No lock; a system call only if the loop
 * sleeps.
 */
void loop_post(struct loop *loop, struct loop_message *message);

/* --- counters --- */

struct loop_stats {
    uint64_t turns, enters, completions, messages, timers, wakeups;
    uint64_t sleeps; /* turns that found nothing to do but to sleep */
};
void loop_get_stats(const struct loop *loop, struct loop_stats *ret_stats);

#endif
