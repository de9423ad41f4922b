/* SPDX-License-Identifier: Apache-2.0 */
/*
 * assert.h: checks of our own mistakes, on in every build.
 *
 * A failed one prints where and what, then the last events of every thread (trace.h), and aborts.
 * Bytes from a disk, a peer or a user are never asserted: they are checked, and answered with an
 * error.  Relations between constants are static_assert.
 *
 * Threads: any.
 */
#ifndef DLBLK_COMMON_ASSERT_H
#define DLBLK_COMMON_ASSERT_H

#include <assert.h> /* static_assert */

__attribute__((noreturn, cold)) void dl_assert_failed(const char *file, int line,
                                                      const char *function, const char *expression);

#define dl_assert(expression) \
    ((expression) ? (void)0 : dl_assert_failed(__FILE__, __LINE__, __func__, #expression))

/* A place that is never reached, such as after a switch over every state. */
#define dl_unreachable() dl_assert_failed(__FILE__, __LINE__, __func__, "unreachable")

/* With DLBLK_EXPENSIVE_CHECKS only: for what would cost more than the function it guards. */
#if DLBLK_EXPENSIVE_CHECKS
#define dl_assert_expensive(expression) dl_assert(expression)
#else
#define dl_assert_expensive(expression) ((void)sizeof(expression))
#endif

/* The thread that owns an object; embedded in it.  Zeroed: owned by nobody. */
struct dl_owner {
    const void *thread;
};

extern _Thread_local char dl_thread_token_byte __attribute__((tls_model("initial-exec")));

/* Differs between threads that live at the same time. */
static inline const void *
dl_thread_token(void)
{
    return &dl_thread_token_byte;
}

/* The calling thread owns it from now on. */
static inline void
dl_owner_set(struct dl_owner *owner)
{
    owner->thread = dl_thread_token();
}

#define dl_assert_owner(owner) dl_assert((owner)->thread == dl_thread_token())

#endif
