/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands for servers, states and the log on a made-up cluster: what reaches libdlblk, what is
 * printed as text and as JSON, and that refusals say why.  A log that is followed goes on after the
 * metadata service was away, and ends with an error that waiting does not help against.
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

/* --- servers that are gone --- */

static void
test_force(void **state)
{
    struct run run = run_cli("volume", "force", "v", "2,127.0.0.1:9473");
    const uint32_t *gone;

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "volume v was taken over without server 2,127.0.0.1:9473\n");
    assert_int_equal(fake_libdlblk_gone(&gone), 2);
    assert_int_equal(gone[0], 2);
    assert_int_equal(gone[1], 3);
    run_free(&run);
    run = run_cli("volume", "force", "v", "3", "--json");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "\"gone\": \"3\"");
    run_free(&run);
    run = run_cli("volume", "force", "nope", "3");
    assert_int_equal(run.status, 3);
    assert_contains(run.err, "nope");
    run_free(&run);
    run = run_cli("volume", "force", "v", "3,,4");
    assert_int_not_equal(run.status, CLI_OK);
    assert_contains(run.err, "there is no server ''");
    run_free(&run);
    run = run_cli("volume", "force", "v");
    assert_int_equal(run.status, CLI_USAGE);
    run_free(&run);
    /* attach --force does that first. */
    run = run_cli("attach", "nope", "--force", "1");
    assert_int_equal(run.status, 3);
    assert_int_equal(fake_libdlblk_gone(&gone), 1);
    assert_int_equal(gone[0], 1);
    run_free(&run);
}

/* --- servers --- */

static void
test_drain_and_back(void **state)
{
    struct run run = run_cli("server", "drain", "2");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(run.out, "server 2: drain: 16 chunks\n");
    assert_string_equal(fake_admin_last_change()->what, "drain");
    assert_int_equal(fake_admin_last_change()->server_id, 2);
    assert_false(fake_admin_last_change()->dry_run);
    run_free(&run);
    run = run_cli("server", "undrain", "2", "--dry-run");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "nothing has changed");
    assert_string_equal(fake_admin_last_change()->what, "undrain");
    assert_true(fake_admin_last_change()->dry_run);
    run_free(&run);
}

/* By address and uuid as well. */
static void
test_servers_have_three_names(void **state)
{
    struct run run = run_cli("server", "drain", "127.0.0.1:9473");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(fake_admin_last_change()->server_id, 3);
    run_free(&run);
    run = run_cli("server", "drain", "00000000-0000-4000-8000-000000000002");
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(fake_admin_last_change()->server_id, 2);
    run_free(&run);
}

static void
test_drain_json(void **state)
{
    struct run run = run_cli("server", "drain", "2", "--dry-run", "--json");
    json_t *json = run_json(&run);

    (void)state;
    assert_non_null(json);
    assert_true(json_is_true(json_object_get(json, "dry_run")));
    assert_int_equal(json_integer_value(json_object_get(json, "slots")), 16);
    assert_int_equal(json_integer_value(json_object_get(json, "bytes")), GIB);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "server"), "id")), 2);
    assert_int_equal(json_array_size(json_object_get(json, "effects")), 1);
    json_decref(json);
    run_free(&run);
}

static void
test_remove(void **state)
{
    struct run run = run_cli("server", "remove", "3");

    (void)state;
    assert_int_equal(run.status, CLI_BUSY);
    assert_contains(run.err, "min_write");
    assert_string_equal(fake_admin_last_change()->what, "");
    run_free(&run);
    run = run_cli("server", "remove", "3", "--force");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "4 segments have fewer copies than min_write");
    assert_true(fake_admin_last_change()->force);
    assert_false(fake_admin_last_change()->dry_run);
    run_free(&run);
}

/* What isn't said stays as it is, and "none" is not the same as that. */
static void
test_set(void **state)
{
    const struct fake_admin_change *change = fake_admin_last_change();
    struct run run = run_cli("server", "set", "2", "--rack", "r7", "--no-clique", "--weight", "50");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(change->what, "set");
    assert_false(change->host_set);
    assert_string_equal(change->rack, "r7");
    assert_true(change->clique_set);
    assert_string_equal(change->clique, "");
    assert_int_equal(change->weight_percent, 50);
    run_free(&run);
    run = run_cli("server", "set", "2", "--host", "h", "--clique", "fast", "--no-rack",
                  "--dry-run");
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(change->host, "h");
    assert_true(change->rack_set);
    assert_string_equal(change->rack, "");
    assert_string_equal(change->clique, "fast");
    assert_int_equal(change->weight_percent, 0);
    assert_true(change->dry_run);
    run_free(&run);
}

/* --- states --- */

static void
test_healthy_volume(void **state)
{
    struct run run = run_cli("volume", "status", "v");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "state:     healthy\n");
    assert_null(strstr(run.out, "recovery:"));
    assert_null(strstr(run.out, "problem:"));
    run_free(&run);
}

static void
make_volume_sick(void)
{
    static char problems[1][DLBLK_SENTENCE_BYTES];
    struct dlblk_volume_status status = {
        .state = "degraded",
        .problem_count = 1,
        .problems = problems,
        .since_ms = 1700000000000,
        .segments = 16,
        .segments_in_sync = 9,
        .segments_degraded = 7,
        .segments_moving = 2,
        .recovery = {.slots = 3, .left_bytes = 10 * GIB, .bytes_per_s = 64u << 20, .left_s = 160},
    };

    /* Longer than a line: what to do stands at its end. */
    (void)snprintf(problems[0], sizeof(problems[0]), "volume v: %0300d: start server 3", 0);
    fake_admin_set_volume_status(&status);
}

static void
test_degraded_volume(void **state)
{
    struct run run;
    json_t *json, *recovery;

    (void)state;
    make_volume_sick();
    run = run_cli("volume", "status", "v");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "state:     degraded since 2023-11-1");
    assert_contains(run.out, "segments:  16 allocated, 9 with all copies in sync\n");
    assert_contains(run.out, "missing:   7 segments have fewer copies");
    assert_contains(run.out, "moving:    2 segments");
    assert_contains(run.out, "recovery:  3 copies are being made; at most 10 GiB left, 64 MiB/s, "
                             "about 2 min 40 s\n");
    assert_contains(run.out, "problem:   volume v: 000");
    assert_contains(run.out, "0: start server 3\n");
    run_free(&run);
    run = run_cli("volume", "status", "v", "--json");
    json = run_json(&run);
    recovery = json_object_get(json, "recovery");
    assert_string_equal(json_string_value(json_object_get(json, "state")), "degraded");
    assert_int_equal(json_integer_value(json_object_get(json, "segments_degraded")), 7);
    assert_int_equal(json_integer_value(json_object_get(recovery, "left_bytes")), 10 * GIB);
    assert_int_equal(json_integer_value(json_object_get(recovery, "left_s")), 160);
    assert_int_equal(json_array_size(json_object_get(json, "problems")), 1);
    json_decref(json);
    run_free(&run);
}

static void
test_locate(void **state)
{
    struct run run = run_cli("segment", "locate", "v", "4K");
    json_t *json, *slots;

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "segment 0 of volume v, byte 4096 in it\nconfig epoch 7\n");
    assert_contains(run.out, "\n0        in-sync          1  127.0.0.1:9471  -     -");
    assert_contains(run.out,
                    "\n1        recovering       2  127.0.0.1:9472  -     16 MiB of 64 MiB");
    assert_contains(run.out, "\n1 (new)  recovering       3  127.0.0.1:9473");
    run_free(&run);
    run = run_cli("segment", "locate", "v", "65M");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "segment 1 of volume v, byte 1048576 in it\n");
    assert_contains(run.out, "not allocated");
    run_free(&run);
    run = run_cli("segment", "locate", "v", "0", "--json");
    json = run_json(&run);
    slots = json_object_get(json, "slots");
    assert_int_equal(json_array_size(slots), 3);
    assert_true(json_is_true(json_object_get(json_array_get(slots, 2), "incoming")));
    assert_int_equal(
        json_integer_value(json_object_get(json_array_get(slots, 1), "recovered_bytes")),
        16u << 20);
    json_decref(json);
    run_free(&run);
}

/* --- the log --- */

static size_t
line_count(const char *text)
{
    size_t count = 0;

    for (; *text != '\0'; text++)
        count += *text == '\n';
    return count;
}

/* All of it, in answers of two entries; and the end of it. */
static void
test_events(void **state)
{
    struct run run;

    (void)state;
    for (int i = 0; i < 5; i++)
        fake_admin_add_entry("ejected", i == 4 ? "the last\033[31m" : "some");
    fake_admin_set_answer_max(2);
    run = run_cli("events");
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(line_count(run.out), 5);
    assert_contains(run.out, "  ejected       some\n");
    assert_contains(run.out, "the last?[31m\n");
    run_free(&run);
    run = run_cli("events", "--lines", "1");
    assert_int_equal(line_count(run.out), 1);
    assert_contains(run.out, "the last");
    run_free(&run);
    run = run_cli("events", "--after", "3");
    assert_int_equal(line_count(run.out), 2);
    run_free(&run);
}

static void
test_events_json(void **state)
{
    struct run run;
    json_t *json, *events;

    (void)state;
    fake_admin_add_entry("takeover", "volume v has a new owner");
    fake_admin_add_entry("server-down", "server 3 is down");
    fake_admin_set_lost(true);
    run = run_cli("events", "--json");
    json = run_json(&run);
    events = json_object_get(json, "events");
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(json_array_size(events), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(events, 0), "kind")),
                        "takeover");
    assert_int_equal(json_integer_value(json_object_get(json, "next")), 2);
    assert_true(json_is_true(json_object_get(json, "lost")));
    json_decref(json);
    run_free(&run);
}

/* The last ten, then what comes, over a time without a metadata service. */
static void
test_events_follow(void **state)
{
    struct run run;

    (void)state;
    for (int i = 0; i < 12; i++)
        fake_admin_add_entry("admin", i < 2 ? "early" : "late");
    fake_admin_begin_waiting();
    fake_admin_add_entry("recovered", "one");
    fake_admin_add_error(-DL_E_META_UNREACHABLE);
    fake_admin_add_entry("recovered", "two");
    run = run_cli("events", "--follow");
    assert_int_equal(run.status, CLI_FAILED);
    assert_null(strstr(run.out, "early"));
    assert_int_equal(line_count(run.out), 12);
    assert_contains(run.out, "  one\n");
    assert_contains(run.out, "  two\n");
    assert_contains(run.err, "somewhere else: waiting for it\n");
    assert_contains(run.err, "the log has ended\n");
    run_free(&run);
}

static void
test_events_follow_json(void **state)
{
    struct run run;
    json_t *json;
    char *end;

    (void)state;
    fake_admin_add_entry("admin", "one");
    fake_admin_begin_waiting();
    fake_admin_add_entry("admin", "two");
    run = run_cli("events", "--follow", "--json");
    end = strchr(run.out, '\n');
    assert_non_null(end);
    *end = '\0';
    json = json_loads(run.out, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "text")), "one");
    json_decref(json);
    assert_int_equal(strncmp(end + 1, "{\"sequence\":2,", 14), 0);
    run_free(&run);
}

/* --- what is refused --- */

static const struct refusal {
    const char *words[8];
    int status;
    const char *says;
} refusals[] = {
    {{"server", "drain"}, CLI_USAGE, "an argument is missing"},
    {{"server", "drain", "1"}, CLI_NO_SPACE, "add a chunkserver first"},
    {{"server", "drain", "9"}, CLI_NOT_FOUND, "server 9 does not exist"},
    {{"server", "drain", "0"}, CLI_USAGE, "server"},
    {{"server", "drain", "99999999999"}, CLI_USAGE, "server"},
    {{"server", "drain", "10.0.0.1:7710"}, CLI_NOT_FOUND, "dlblk server list"},
    {{"server", "drain", "2", "--force"}, CLI_USAGE, "unknown option '--force'"},
    {{"server", "remove", "2"}, CLI_BUSY, "server 2 is up"},
    {{"server", "set", "2"}, CLI_USAGE, "nothing to set"},
    {{"server", "set", "2", "--weight", "0"}, CLI_USAGE, "--weight"},
    {{"server", "set", "2", "--weight", "1001"}, CLI_USAGE, "--weight"},
    {{"server", "set", "2", "--rack", "a", "--no-rack"}, CLI_USAGE, "contradict"},
    {{"server", "set", "2", "--clique", "a", "--no-clique"}, CLI_USAGE, "contradict"},
    {{"server", "set", "2", "--rack="}, CLI_USAGE, "--rack is empty"},
    {{"volume", "status", "w"}, CLI_NOT_FOUND, "volume 'w' does not exist"},
    {{"volume", "status"}, CLI_USAGE, "an argument is missing"},
    {{"segment", "locate", "v"}, CLI_USAGE, "usage: dlblk segment locate VOLUME OFFSET"},
    {{"segment", "locate", "v", "ten"}, CLI_USAGE, "OFFSET: 'ten' is not a size"},
    {{"segment", "locate", "v", "1G"}, CLI_FAILED, "beyond the end"},
    {{"segment", "locate", "w", "0"}, CLI_NOT_FOUND, "volume 'w' does not exist"},
    {{"segment"}, CLI_USAGE, "dlblk segment needs a command"},
    {{"events", "x"}, CLI_USAGE, "one argument too many"},
    {{"events", "--lines", "many"}, CLI_USAGE, "--lines"},
};

static void
test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        struct run run = run_words(refusals[i].words);

        if (run.status != refusals[i].status || strstr(run.err, refusals[i].says) == NULL)
            fail_msg("refusal %zu: status %d, not %d; or '%s' is not in:\n%s", i, run.status,
                     refusals[i].status, refusals[i].says, run.err);
        assert_string_equal(fake_admin_last_change()->what, "");
        run_free(&run);
    }
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

UNIT_MAIN(TEST(test_force), TEST(test_drain_and_back), TEST(test_servers_have_three_names),
          TEST(test_drain_json), TEST(test_remove), TEST(test_set), TEST(test_healthy_volume),
          TEST(test_degraded_volume), TEST(test_locate), TEST(test_events), TEST(test_events_json),
          TEST(test_events_follow), TEST(test_events_follow_json), TEST(test_refusals))
