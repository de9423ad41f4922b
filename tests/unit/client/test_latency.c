/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long requests took: each duration is in a bucket that is at most a quarter wider; 99 of 100
 * are below what is answered; what is older than 10 s is forgotten.
 */
#include "tests/unit/lib/unit.h"

#include "client/latency.h"

#define MS 1000000ull
#define S  (1000 * MS)

static void
test_buckets(void **state)
{
    (void)state;
    for (uint64_t ns = 0; ns < 30 * S; ns = ns * 21 / 20 + 100) {
        unsigned bucket = latency_bucket(ns);

        assert_true(bucket < LATENCY_BUCKETS);
        assert_true(latency_bucket_end_ns(bucket) > ns);
        assert_true(bucket == 0 || latency_bucket_end_ns(bucket - 1) <= ns);
        if (ns > 4096)
            assert_true(latency_bucket_end_ns(bucket) <= ns + ns / 4 + 1024);
    }
    /* What is longer than all is in the last one. */
    assert_int_equal(latency_bucket(UINT64_MAX), LATENCY_BUCKETS - 1);
}

static void
test_the_slowest_hundredth(void **state)
{
    struct latency latency = {0};

    (void)state;
    assert_int_equal(latency_p99_ns(&latency, 100 * S), 0);
    for (unsigned i = 0; i < 990; i++)
        latency_record(&latency, 100 * S + i, MS);
    assert_in_range(latency_p99_ns(&latency, 100 * S), MS, MS * 5 / 4 + 1024);
    for (unsigned i = 0; i < 10; i++)
        latency_record(&latency, 101 * S, 50 * MS);
    assert_in_range(latency_p99_ns(&latency, 101 * S), MS, MS * 5 / 4 + 1024);
    latency_record(&latency, 101 * S, 50 * MS);
    assert_in_range(latency_p99_ns(&latency, 101 * S), 50 * MS, 64 * MS);
}

static void
test_what_is_old_is_forgotten(void **state)
{
    struct latency latency = {0};

    (void)state;
    for (unsigned i = 0; i < 100; i++)
        latency_record(&latency, 100 * S, 50 * MS);
    assert_in_range(latency_p99_ns(&latency, 104 * S), 50 * MS, 64 * MS);
    for (unsigned i = 0; i < 100; i++)
        latency_record(&latency, 106 * S, MS);
    assert_in_range(latency_p99_ns(&latency, 106 * S), 50 * MS, 64 * MS);
    assert_in_range(latency_p99_ns(&latency, 111 * S + 1), MS, MS * 5 / 4 + 1024);
    assert_int_equal(latency_p99_ns(&latency, 200 * S), 0);
}

UNIT_MAIN(cmocka_unit_test(test_buckets), cmocka_unit_test(test_the_slowest_hundredth),
          cmocka_unit_test(test_what_is_old_is_forgotten))
