/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h: the only place where time is read.  Cores get theirs from their env.
 *
 * Threads: any.  Errors: none.
 */
#ifndef DLBLK_COMMON_CLOCK_H
#define DLBLK_COMMON_CLOCK_H

#include <stdint.h>
#include <time.h>

#include "common/assert.h"

#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

static inline uint64_t
clock_read_ns(clockid_t clock)
{
    struct timespec now;
    int result = clock_gettime(clock, &now);

    dl_assert(result == 0);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Since some moment before the program's start; never goes back. */
static inline uint64_t
clock_monotonic_ns(void)
{
    return clock_read_ns(CLOCK_MONOTONIC);
}

/* Since 1970, for people to read: it jumps when the system's clock is set. */
static inline uint64_t
clock_wall_ms(void)
{
    return clock_read_ns(CLOCK_REALTIME) / NS_PER_MS;
}

#endif
