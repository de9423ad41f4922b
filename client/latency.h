/* SPDX-License-Identifier: Apache-2.0 */
/*
 * latency.h: how long requests took in the last 5 to 10 seconds.
 *
 * Buckets of a quarter of a power of two, in units of 1024 ns; two windows of 5 s, the one before
 * and the present one.
 *
 * Threads: one owner.  Errors: none.  Memory: 800 bytes in place; a zeroed one is empty.
 */
#ifndef DLBLK_CLIENT_LATENCY_H
#define DLBLK_CLIENT_LATENCY_H

#include <stdint.h>
#include <string.h>

#define LATENCY_BUCKETS   96u
#define LATENCY_WINDOW_NS 5000000000ull
/* Fewer say nothing about the slowest hundredth. */
#define LATENCY_COUNT_MIN 50u

struct latency {
    uint64_t window_ns; /* the present window's beginning */
    uint32_t counts[2][LATENCY_BUCKETS];
};

static inline unsigned
latency_bucket(uint64_t duration_ns)
{
    uint64_t units = duration_ns >> 10;
    unsigned exponent, bucket;

    if (units < 4)
        return (unsigned)units;
    exponent = 63u - (unsigned)__builtin_clzll(units);
    bucket = (exponent - 1) * 4 + (unsigned)(units >> (exponent - 2) & 3);
    return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

/* What is in it is shorter. */
static inline uint64_t
latency_bucket_end_ns(unsigned bucket)
{
    if (bucket < 4)
        return (bucket + 1ull) << 10;
    return (uint64_t)(4 + bucket % 4 + 1) << (bucket / 4 - 1) << 10;
}

static inline void
latency_turn(struct latency *latency, uint64_t now_ns)
{
    uint64_t age_ns = now_ns - latency->window_ns;

    if (age_ns < LATENCY_WINDOW_NS)
        return;
    if (age_ns < 2 * LATENCY_WINDOW_NS)
        memcpy(latency->counts[0], latency->counts[1], sizeof(latency->counts[0]));
    else
        memset(latency->counts[0], 0, sizeof(latency->counts[0]));
    memset(latency->counts[1], 0, sizeof(latency->counts[1]));
    latency->window_ns = now_ns;
}

static inline void
latency_record(struct latency *latency, uint64_t now_ns, uint64_t duration_ns)
{
    latency_turn(latency, now_ns);
    latency->counts[1][latency_bucket(duration_ns)]++;
}

/* 99 of 100 took less than this; 0: not known. */
static inline uint64_t
latency_p99_ns(struct latency *latency, uint64_t now_ns)
{
    uint64_t total = 0;
    uint64_t above = 0;

    latency_turn(latency, now_ns);
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
        total += latency->counts[0][i] + latency->counts[1][i];
    if (total < LATENCY_COUNT_MIN)
        return 0;
    for (unsigned i = LATENCY_BUCKETS; i-- > 0;) {
        above += latency->counts[0][i] + latency->counts[1][i];
        if (above * 100 > total)
            return latency_bucket_end_ns(i);
    }
    return 0;
}

#endif
