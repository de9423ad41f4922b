/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The histogram against a sorted array: percentiles are off by less than 1 %, mean, least and
 * greatest by nothing; merging two is recording everything into one.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "common/hist.h"

#define VALUE_COUNT 20000u

static int
compare_u64(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return left < right ? -1 : left > right;
}

/* Spread evenly over the magnitudes, from nanoseconds to minutes. */
static uint64_t
random_value(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (*seed >> 24) >> (*seed >> 58) % 36;
}

static void
test_percentiles_against_sorted_values(void **state)
{
    static const double percents[] = {0, 0.01, 1, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100};
    static uint64_t values[VALUE_COUNT];
    static struct hist hist;
    uint64_t seed = 1, sum = 0;

    (void)state;
    for (unsigned i = 0; i < VALUE_COUNT; i++) {
        values[i] = random_value(&seed);
        sum += values[i];
        hist_record(&hist, values[i]);
    }
    qsort(values, VALUE_COUNT, sizeof(values[0]), compare_u64);

    assert_int_equal(hist.count, VALUE_COUNT);
    assert_int_equal(hist.min, values[0]);
    assert_int_equal(hist.max, values[VALUE_COUNT - 1]);
    assert_true(hist_mean(&hist) == (double)sum / VALUE_COUNT);
    for (unsigned i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
        unsigned rank = (unsigned)((percents[i] * VALUE_COUNT + 99.999) / 100);
        uint64_t exact = values[rank == 0 ? 0 : rank - 1];
        uint64_t told = hist_percentile(&hist, percents[i]);

        assert_in_range(told, exact - exact / 100, exact + exact / 100);
    }
}

static void
test_every_bucket_is_narrow_and_in_order(void **state)
{
    unsigned last = 0;

    (void)state;
    for (uint64_t value = 0; value <= HIST_VALUE_MAX; value += 1 + value / 200) {
        struct hist *hist = calloc(1, sizeof(*hist));
        unsigned bucket = hist_bucket_of(value);
        uint64_t told;

        assert_non_null(hist);
        assert_true(bucket == last || bucket == last + 1 || value == 0);
        last = bucket;
        /* Between two others, so that least and greatest don't give the value away. */
        hist_record(hist, 0);
        hist_record(hist, value);
        hist_record(hist, HIST_VALUE_MAX);
        told = hist_percentile(hist, 50);
        assert_in_range(told, value - value / 100, value + value / 100);
        free(hist);
    }
    assert_int_equal(last, HIST_BUCKETS - 1);
}

static void
test_empty_and_beyond_the_range(void **state)
{
    static struct hist hist;

    (void)state;
    assert_true(hist_mean(&hist) == 0);
    assert_int_equal(hist_percentile(&hist, 99), 0);
    hist_record(&hist, UINT64_MAX);
    assert_int_equal(hist.max, UINT64_MAX);
    assert_int_equal(hist_percentile(&hist, 50), UINT64_MAX);
    hist_record(&hist, 5);
    assert_int_equal(hist_percentile(&hist, 50), 5);
    assert_int_equal(hist.min, 5);
}

static void
test_merge_is_recording_into_one(void **state)
{
    static struct hist parts[2], one, empty;
    uint64_t seed = 7;

    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        uint64_t value = 10 + random_value(&seed);

        hist_record(&parts[i % 3 == 0], value);
        hist_record(&one, value);
    }
    hist_merge(&parts[0], &parts[1]);
    assert_memory_equal(&parts[0], &one, sizeof(one));
    hist_merge(&parts[0], &empty); /* must not bring a least of 0 */
    assert_memory_equal(&parts[0], &one, sizeof(one));
    hist_merge(&empty, &one);
    assert_memory_equal(&empty, &one, sizeof(one));
}

UNIT_MAIN(cmocka_unit_test(test_percentiles_against_sorted_values),
          cmocka_unit_test(test_every_bucket_is_narrow_and_in_order),
          cmocka_unit_test(test_empty_and_beyond_the_range),
          cmocka_unit_test(test_merge_is_recording_into_one))
