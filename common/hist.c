/* SPDX-License-Identifier: Apache-2.0 */
#include "common/hist.h"

#include <math.h>

#include "common/align.h"

/* The inverse of hist_bucket_of(): the middle of a bucket. */
static uint64_t
hist_bucket_middle(unsigned idx)
{
    unsigned dropped_bits;
    uint64_t lower;

    if (idx < 2 * HIST_SUB_COUNT)
        return idx;
    dropped_bits = idx / HIST_SUB_COUNT - 1;
    lower = (uint64_t)(idx - dropped_bits * HIST_SUB_COUNT) << dropped_bits;
    return lower + ((1ull << dropped_bits) >> 1);
}

void
hist_merge(struct hist *hist, const struct hist *from)
{
    if (from->count == 0)
        return;
    hist->min = hist->count == 0 ? from->min : min_u64(hist->min, from->min);
    hist->max = max_u64(hist->max, from->max);
    hist->count += from->count;
    hist->sum += from->sum;
    for (unsigned i = 0; i < HIST_BUCKETS; i++)
        hist->buckets[i] += from->buckets[i];
}

double
hist_mean(const struct hist *hist)
{
    return hist->count == 0 ? 0 : (double)hist->sum / (double)hist->count;
}

uint64_t
hist_percentile(const struct hist *hist, double percent)
{
    uint64_t wanted, seen = 0;

    dl_assert(percent >= 0 && percent <= 100);
    if (hist->count == 0)
        return 0;
    wanted = max_u64(1, (uint64_t)ceil(percent / 100 * (double)hist->count));
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        seen += hist->buckets[i];
        if (seen >= wanted)
            return max_u64(hist->min, min_u64(hist->max, hist_bucket_middle(i)));
    }
    return hist->max; /* rounding of a count above 2^53 */
}
