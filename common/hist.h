/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hist.h: how long things took: a histogram of durations that answers percentiles.
 *
 * Buckets are as wide as 1/64 of their lower bound (below 128 each value has its own), so that a
 * percentile is off by less than 1 %.  Mean, least and greatest are exact.
 *
 *     value (binary)   1xxxxxx yyyyy     the leading one and six bits choose the bucket
 *     bucket idx       (number of y) * 64 + 1xxxxxx
 *
 * Threads: one owner; others merge copies.  Errors: none.  Memory: 18 KiB in place; a zeroed one is
 *          empty.
 */
#ifndef DLBLK_COMMON_HIST_H
#define DLBLK_COMMON_HIST_H

#include <stdint.h>

#include "common/assert.h"

#define HIST_SUB_BITS   6u
#define HIST_SUB_COUNT  (1u << HIST_SUB_BITS)
#define HIST_VALUE_BITS 40u /* 2^40 ns are 18 minutes; what is longer counts as that */
#define HIST_VALUE_MAX  ((1ull << HIST_VALUE_BITS) - 1)
#define HIST_BUCKETS    ((HIST_VALUE_BITS - HIST_SUB_BITS + 1) * HIST_SUB_COUNT)

struct hist {
    uint64_t count;
    uint64_t sum;
    uint64_t min; /* of no value: 0 */
    uint64_t max;
    uint64_t buckets[HIST_BUCKETS];
};

static inline unsigned
hist_bucket_of(uint64_t value)
{
    unsigned dropped_bits;

    if (value < 2 * HIST_SUB_COUNT)
        return (unsigned)value;
    if (value > HIST_VALUE_MAX)
        value = HIST_VALUE_MAX;
    dropped_bits = 63u - (unsigned)__builtin_clzll(value) - HIST_SUB_BITS;
    return dropped_bits * HIST_SUB_COUNT + (unsigned)(value >> dropped_bits);
}

static_assert(HIST_BUCKETS ==
                  (HIST_VALUE_BITS - 1 - HIST_SUB_BITS) * HIST_SUB_COUNT + 2 * HIST_SUB_COUNT,
              "the last bucket is that of HIST_VALUE_MAX");

static inline void
hist_record(struct hist *hist, uint64_t value)
{
    if (hist->count == 0 || value < hist->min)
        hist->min = value;
    if (value > hist->max)
        hist->max = value;
    hist->count++;
    hist->sum += value;
    hist->buckets[hist_bucket_of(value)]++;
}

/* Add what `from` holds. */
void hist_merge(struct hist *hist, const struct hist *from);

/* 0 if it is empty. */
double hist_mean(const struct hist *hist);

/*
 * The value that `percent` (0 to 100) of all values do not exceed: the middle of its bucket, within
 * min and max.  0 if it is empty.
 */
uint64_t hist_percentile(const struct hist *hist, double percent);

#endif
