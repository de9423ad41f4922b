/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk scrub on a made-up cluster: it asks until it is done, always for the same scrub, says what
 * was found, and its exit status says whether all is well.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "tests/unit/cli/run.h"
#include "tests/unit/lib/fake_admin.h"
#include "tests/unit/lib/fake_libdlblk.h"

#define GIB (1ull << 30)

static int
setup(void **state)
{
    (void)state;
    fake_libdlblk_reset();
    fake_admin_reset();
    fake_libdlblk_add_volume("v", GIB, 4096);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    assert_int_equal(fake_libdlblk_client_count(), 0);
    fake_libdlblk_reset();
    return 0;
}

#define assert_contains(text, part)                          \
    do {                                                     \
        if (strstr((text), (part)) == NULL)                  \
            fail_msg("'%s' is not in:\n%s", (part), (text)); \
    } while (0)

static const struct dlblk_scrub running = {
    .state = "running", .total_bytes = 3 * GIB, .done_bytes = GIB, .left_s = 8};

static void
test_until_it_is_done(void **state)
{
    struct dlblk_scrub done = {.state = "done", .counts = {.sectors = 99, .bad = 3, .repaired = 3}};
    struct run run;

    (void)state;
    fake_admin_add_scrub(&running);
    fake_admin_add_scrub(&running);
    fake_admin_add_scrub(&done);
    run = run_cli("scrub", "v");
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(fake_admin_scrub_count(), 3);
    assert_int_equal(fake_admin_scrub_ids(), 1);
    assert_string_equal(run.out, "99 sectors read, 3 bad, 3 repaired, 0 left bad, 0 differ between "
                                 "copies\n");
    run_free(&run);
}

/* Whatever is not well is an exit status of 1, and said. */
static void
test_not_all_is_well(void **state)
{
    static const struct {
        struct dlblk_scrub scrub;
        const char *text;
    } cases[] = {
        {{.state = "done", .counts = {.bad = 3, .left_bad = 2}}, "2 left bad"},
        {{.state = "done", .counts = {.mismatches = 4}}, "4 differ between copies\ndlblk events"},
        {{.state = "done", .chunks_skipped = 5}, "5 copies of segments were not looked at"},
        {{.state = "done", .uncompared = 6}, "6 segments were not compared"},
        {{.state = "done", .absent_count = 1, .absent = {7}}, "server 7 is down"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct run run;

        fake_admin_reset();
        fake_admin_add_scrub(&cases[i].scrub);
        run = run_cli("scrub", "v");
        assert_int_equal(run.status, CLI_FAILED);
        assert_contains(run.out, cases[i].text);
        run_free(&run);
    }
}

static void
test_json(void **state)
{
    struct dlblk_scrub done = {
        .state = "done", .counts = {.bad = 3, .left_bad = 1}, .absent_count = 1, .absent = {7}};
    struct run run;
    json_t *json, *counts;

    (void)state;
    fake_admin_add_scrub(&done);
    run = run_cli("scrub", "v", "--json");
    json = run_json(&run);
    assert_int_equal(run.status, CLI_FAILED);
    assert_non_null(json);
    counts = json_object_get(json, "counts");
    assert_int_equal(json_integer_value(json_object_get(counts, "bad")), 3);
    assert_int_equal(json_integer_value(json_object_get(counts, "left_bad")), 1);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(json, "servers_absent"), 0)),
                     7);
    json_decref(json);
    run_free(&run);
}

static void
test_no_wait(void **state)
{
    struct run run;

    (void)state;
    fake_admin_add_scrub(&running);
    run = run_cli("scrub", "v", "--no-wait");
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(fake_admin_scrub_count(), 1);
    assert_string_equal(run.out, "");
    run_free(&run);
}

static void
test_no_such_volume(void **state)
{
    struct run run = run_cli("scrub", "w");

    (void)state;
    assert_int_equal(run.status, CLI_NOT_FOUND);
    assert_string_equal(run.out, "");
    run_free(&run);
}

static void
test_in_status(void **state)
{
    struct dlblk_volume_status status = {.state = "healthy", .scrub = running};
    const char *text;
    struct run run;
    json_t *json;

    (void)state;
    fake_admin_set_volume_status(&status);
    run = run_cli("volume", "status", "v");
    assert_contains(run.out, "scrub:     1 GiB of 3 GiB gone over: 0 sectors read");
    run_free(&run);
    run = run_cli("volume", "status", "v", "--json");
    json = run_json(&run);
    assert_non_null(json);
    text = json_string_value(json_object_get(json_object_get(json, "scrub"), "state"));
    assert_string_equal(text, "running");
    json_decref(json);
    run_free(&run);
    run = run_cli("server", "list", "--json");
    assert_contains(run.out, "\"scrub_completed_ms\"");
    run_free(&run);
    run = run_cli("cluster", "status");
    assert_contains(run.out, "scrub:     not all read yet; 0 bad sectors found");
    run_free(&run);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

UNIT_MAIN(TEST(test_until_it_is_done), TEST(test_not_all_is_well), TEST(test_json),
          TEST(test_no_wait), TEST(test_no_such_volume), TEST(test_in_status))
