/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk bench on a made-up volume: what it asks for and how often, what it reports, and that it
 * overwrites nothing unasked.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "tests/unit/cli/run.h"
#include "tests/unit/lib/fake_libdlblk.h"

#define MIB (1ull << 20)

static int
setup(void **state)
{
    (void)state;
    fake_libdlblk_reset();
    fake_libdlblk_add_volume("v", 8 * MIB, 4096);
    memset(fake_libdlblk_bytes("v"), 0x77, 8 * MIB);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    assert_int_equal(fake_libdlblk_client_count(), 0);
    assert_int_equal(fake_libdlblk_open_count(), 0);
    fake_libdlblk_reset();
    return 0;
}

static double
number(const json_t *json, const char *object, const char *key)
{
    return json_number_value(json_object_get(json_object_get(json, object), key));
}

static bool
volume_is_untouched(void)
{
    const uint8_t *bytes = fake_libdlblk_bytes("v");

    return bytes[0] == 0x77 && memcmp(bytes, bytes + 1, 8 * MIB - 1) == 0;
}

static void
test_sequential_write_covers_the_region_in_order(void **state)
{
    struct run run = run_cli("bench", "v", "--rw", "write", "--bs", "64K", "--depth", "4",
                             "--requests", "64", "--region", "4M", "--destroy-data", "--json");
    json_t *json = run_json(&run);
    const uint8_t *bytes = fake_libdlblk_bytes("v");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal((int)number(json, "write", "total_ios"), 64);
    assert_int_equal((int)number(json, "write", "io_bytes"), 4 * (int)MIB);
    assert_int_equal((int)number(json, "read", "total_ios"), 0);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE), 64);
    /* Each 64 KiB was written, and nothing beyond. */
    for (uint64_t at = 0; at < 4 * MIB; at += 64 << 10)
        assert_true(memcmp(bytes + at, bytes + 4 * MIB, 4096) != 0);
    assert_int_equal(bytes[4 * MIB], 0x77);
    assert_memory_equal(bytes + 4 * MIB, bytes + 4 * MIB + 1, 4 * MIB - 1);
    json_decref(json);
    run_free(&run);
}

static void
test_time_ends_the_run_and_figures_fit(void **state)
{
    struct run run;
    json_t *json;
    double ios, iops, mean, p50, p99;

    (void)state;
    fake_libdlblk_set_delay_us(1000);
    run = run_cli("bench", "v", "--rw", "randread", "--depth", "8", "--seconds", "500ms", "--json");
    json = run_json(&run);
    assert_int_equal(run.status, CLI_OK);
    ios = number(json, "read", "total_ios");
    iops = number(json, "read", "iops");
    mean = json_number_value(
        json_object_get(json_object_get(json_object_get(json, "read"), "lat_ns"), "mean"));
    p50 = json_number_value(json_object_get(
        json_object_get(json_object_get(json_object_get(json, "read"), "lat_ns"), "percentile"),
        "50.000000"));
    p99 = json_number_value(json_object_get(
        json_object_get(json_object_get(json_object_get(json, "read"), "lat_ns"), "percentile"),
        "99.000000"));
    /* 8 in flight that take at least 1 ms each: at most 4000 in half a second. */
    assert_true(ios > 100 && ios < 5000);
    assert_true(iops > ios && iops < 3 * ios);
    assert_true(mean >= 1e6 && p50 >= 1e6 && p99 >= p50);
    assert_int_equal((int64_t)number(json, "read", "bw_bytes") / 4096, (int64_t)iops);
    assert_true(volume_is_untouched());
    /* Readers don't need the volume for themselves. */
    assert_int_equal(fake_libdlblk_open_flags(), DLBLK_OPEN_READ_ONLY);
    json_decref(json);
    run_free(&run);
}

static void
test_depth_is_kept(void **state)
{
    struct run run;

    (void)state;
    /*
     * 32 in flight that wait 50 ms together: 64 take two rounds; one after the other they would
     * take 3.2 s.
     */
    fake_libdlblk_set_delay_us(50000);
    run = run_cli("bench", "v", "--depth", "32", "--requests", "64", "--json");
    assert_int_equal(run.status, CLI_OK);
    json_t *json = run_json(&run);
    assert_true(json_number_value(json_object_get(json, "runtime_ns")) < 1e9);
    assert_true(json_number_value(json_object_get(json, "runtime_ns")) > 1e8 - 1e6);
    json_decref(json);
    run_free(&run);
}

static void
test_mix(void **state)
{
    struct run run = run_cli("bench", "v", "--rw", "randrw", "--mix", "90", "--requests", "5000",
                             "--destroy-data", "--json");
    json_t *json = run_json(&run);

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_in_range(number(json, "read", "total_ios"), 4350, 4650);
    assert_int_equal((int)(number(json, "read", "total_ios") + number(json, "write", "total_ios")),
                     5000);
    json_decref(json);
    run_free(&run);
}

static void
test_random_places_cover_the_region(void **state)
{
    struct run run = run_cli("bench", "v", "--rw", "randwrite", "--requests", "20000",
                             "--destroy-data");
    const uint8_t *bytes = fake_libdlblk_bytes("v");
    uint32_t touched = 0;

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    for (uint64_t at = 0; at < 8 * MIB; at += 4096)
        touched += memcmp(bytes + at, bytes + at + 1, 4095) != 0;
    /* 20000 throws at 2048 places leave each out with a probability of 6e-5. */
    assert_true(touched > 2040);
    assert_non_null(strstr(run.out, "20000 requests"));
    assert_non_null(strstr(run.out, "write"));
    run_free(&run);
}

/* --- what is not overwritten --- */

static void
test_writes_want_permission(void **state)
{
    static const char *const modes[] = {"write", "randwrite", "randrw"};
    struct run run;

    (void)state;
    for (int i = 0; i < 3; i++) {
        run = run_cli("bench", "v", "--rw", modes[i], "--requests", "10");
        assert_int_equal(run.status, CLI_USAGE);
        assert_non_null(strstr(run.err, "--destroy-data"));
        run_free(&run);
    }
    run = run_cli("bench", "v", "--rw", "randread", "--prefill", "--requests", "10");
    assert_int_equal(run.status, CLI_USAGE);
    run_free(&run);
    /* --size doesn't turn a volume that exists into a scratch volume. */
    run = run_cli("bench", "v", "--rw", "write", "--size", "1M", "--requests", "10");
    assert_int_equal(run.status, CLI_EXISTS);
    assert_non_null(strstr(run.err, "--destroy-data"));
    run_free(&run);
    assert_true(volume_is_untouched());
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE), 0);
}

static void
test_own_volume_is_deleted_again(void **state)
{
    struct run run = run_cli("bench", "mine", "--rw", "randrw", "--size", "4M", "--prefill",
                             "--requests", "100", "--failure-domain", "server", "--replicas", "2");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(fake_libdlblk_volume_spec()->failure_domain, DLBLK_DOMAIN_SERVER);
    assert_int_equal(fake_libdlblk_volume_spec()->replicas, 2);
    assert_int_equal(fake_libdlblk_volume_spec()->size_bytes, 4 * MIB);
    run_free(&run);
    run = run_cli("volume", "info", "mine");
    assert_int_equal(run.status, CLI_NOT_FOUND);
    run_free(&run);
    run = run_cli("bench", "mine", "--size", "4M", "--requests", "100", "--keep");
    run_free(&run);
    run = run_cli("volume", "info", "mine");
    assert_int_equal(run.status, CLI_OK);
    run_free(&run);
}

/* Deleted even if the run fails. */
static void
test_failed_request_ends_the_run(void **state)
{
    struct run run;

    (void)state;
    fake_libdlblk_fail(DLBLK_WRITE, 50, -DL_E_NO_SPACE);
    run = run_cli("bench", "mine", "--rw", "write", "--size", "4M", "--requests", "500");
    assert_int_equal(run.status, CLI_NO_SPACE);
    assert_non_null(strstr(run.err, "a write of 4 KiB at offset"));
    assert_non_null(strstr(run.err, "no space left"));
    assert_true(fake_libdlblk_request_count(DLBLK_WRITE) < 200);
    run_free(&run);
    run = run_cli("volume", "info", "mine");
    assert_int_equal(run.status, CLI_NOT_FOUND);
    run_free(&run);
}

static void
test_refusals(void **state)
{
    static const struct {
        const char *words[10];
        int status;
        const char *says;
    } refusals[] = {
        {{"bench"}, CLI_USAGE, "missing"},
        {{"bench", "nope"}, CLI_NOT_FOUND, "--size 1G"},
        {{"bench", "v", "--rw", "sideways"}, CLI_USAGE, "randrw"},
        {{"bench", "v", "--bs", "1000"}, CLI_USAGE, "multiple"},
        {{"bench", "v", "--bs", "128M"}, CLI_USAGE, "--bs"},
        {{"bench", "v", "--bs", "16M"}, CLI_USAGE, "smaller than one request"},
        {{"bench", "v", "--bs", "64M", "--depth", "64"}, CLI_USAGE, "buffers"},
        {{"bench", "v", "--depth", "0"}, CLI_USAGE, "--depth"},
        {{"bench", "v", "--seconds", "0"}, CLI_USAGE, "--seconds"},
        {{"bench", "v", "--mix", "50"}, CLI_USAGE, "--mix"},
        {{"bench", "v", "--rw", "randrw", "--mix", "101", "--destroy-data"}, CLI_USAGE, "--mix"},
        {{"bench", "v", "--region", "1G"}, CLI_USAGE, "--region"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        struct run run = run_words(refusals[i].words);

        if (run.status != refusals[i].status || strstr(run.err, refusals[i].says) == NULL)
            fail_msg("refusal %zu: status %d; '%s' is not in:\n%s", i, run.status, refusals[i].says,
                     run.err);
        assert_string_equal(run.out, "");
        run_free(&run);
    }
    assert_true(volume_is_untouched());
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

UNIT_MAIN(TEST(test_sequential_write_covers_the_region_in_order),
          TEST(test_time_ends_the_run_and_figures_fit), TEST(test_depth_is_kept), TEST(test_mix),
          TEST(test_random_places_cover_the_region), TEST(test_writes_want_permission),
          TEST(test_own_volume_is_deleted_again), TEST(test_failed_request_ends_the_run),
          TEST(test_refusals))
