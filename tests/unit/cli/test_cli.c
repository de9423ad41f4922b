/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of dlblk on a made-up cluster: what reaches libdlblk, what is printed, as text and
 * as JSON, the exit codes, and that each wrong command line is refused with a text that names what
 * is wrong and where to look.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>
#include <unistd.h>

#include "tests/unit/cli/run.h"
#include "tests/unit/lib/fake_libdlblk.h"

#define GIB (1ull << 30)

static int
setup(void **state)
{
    (void)state;
    fake_libdlblk_reset();
    (void)unsetenv("DLBLK_META");
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

#define assert_contains(text, part)                          \
    do {                                                     \
        if (strstr((text), (part)) == NULL)                  \
            fail_msg("'%s' is not in:\n%s", (part), (text)); \
    } while (0)

/* --- what works --- */

static void
test_create_passes_everything_on(void **state)
{
    struct run run = run_cli("volume", "create", "db.1", "--size", "10G", "--replicas=2",
                             "--min-write", "1", "--failure-domain", "server", "--clique", "fast",
                             "--logical-block", "512", "--segment", "16M", "--stripe-width", "4",
                             "--stripe-unit", "64K");
    const struct dlblk_volume_spec *spec = fake_libdlblk_volume_spec();

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(spec->name, "db.1");
    assert_int_equal(spec->size_bytes, 10 * GIB);
    assert_int_equal(spec->replicas, 2);
    assert_int_equal(spec->min_write, 1);
    assert_int_equal(spec->failure_domain, DLBLK_DOMAIN_SERVER);
    assert_string_equal(spec->clique, "fast");
    assert_int_equal(spec->logical_block_bytes, 512);
    assert_int_equal(spec->segment_bytes, 16u << 20);
    assert_int_equal(spec->stripe_width, 4);
    assert_int_equal(spec->stripe_unit_bytes, 64u << 10);
    assert_contains(run.out, "db.1");
    assert_contains(run.out, "10 GiB");
    assert_string_equal(run.err, "");
    run_free(&run);
}

/* What isn't said is libdlblk's to choose, but the failure domain is a host. */
static void
test_create_defaults(void **state)
{
    struct run run = run_cli("volume", "create", "--size", "1G", "v");
    const struct dlblk_volume_spec *spec = fake_libdlblk_volume_spec();

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_int_equal(spec->failure_domain, DLBLK_DOMAIN_HOST);
    assert_int_equal(spec->replicas, 0);
    assert_int_equal(spec->min_write, 0);
    assert_int_equal(spec->segment_bytes, 0);
    assert_null(spec->clique);
    run_free(&run);
}

static void
test_list_is_aligned(void **state)
{
    struct run run;
    const char *line, *column;

    (void)state;
    fake_libdlblk_add_volume("a", GIB, 4096);
    fake_libdlblk_add_volume("a-much-longer-name", 10 * GIB, 4096);
    fake_libdlblk_set_owner("a", "host7 4711 nbdkit");
    run = run_cli("volume", "list");
    assert_int_equal(run.status, CLI_OK);
    column = strstr(run.out, "ATTACHED BY");
    assert_non_null(column);
    line = strchr(run.out, '\n') + 1;
    /* The owner begins below its title. */
    assert_int_equal(strstr(line, "host7 4711 nbdkit") - line, column - run.out);
    assert_contains(run.out, "\na-much-longer-name  10 GiB");
    run_free(&run);
}

static void
test_list_json(void **state)
{
    struct run run;
    json_t *json, *volumes;

    (void)state;
    fake_libdlblk_add_volume("b", 3 * GIB, 512);
    fake_libdlblk_add_volume("a", GIB, 4096);
    run = run_cli("--json", "volume", "list");
    assert_int_equal(run.status, CLI_OK);
    json = run_json(&run);
    volumes = json_object_get(json, "volumes");
    assert_int_equal(json_array_size(volumes), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(volumes, 0), "name")),
                        "a");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(volumes, 1), "size_bytes")),
                     3 * GIB);
    assert_int_equal(
        json_integer_value(json_object_get(json_array_get(volumes, 1), "logical_block_bytes")),
        512);
    json_decref(json);
    run_free(&run);
}

static void
test_info(void **state)
{
    struct run run;
    json_t *json;

    (void)state;
    fake_libdlblk_add_volume("v", GIB, 4096);
    run = run_cli("volume", "info", "v");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "name:            v\n");
    assert_contains(run.out, "size:            1 GiB (1073741824 bytes)\n");
    assert_contains(run.out, "attached:        no\n");
    run_free(&run);
    run = run_cli("volume", "info", "--json", "v");
    json = run_json(&run);
    assert_true(json_is_true(json_object_get(json, "clean")));
    assert_string_equal(json_string_value(json_object_get(json, "failure_domain")), "host");
    json_decref(json);
    run_free(&run);
}

static void
test_resize_rename_delete(void **state)
{
    struct run run;

    (void)state;
    fake_libdlblk_add_volume("v", GIB, 4096);
    run = run_cli("volume", "resize", "v", "--size", "2G", "--json");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "2147483648");
    run_free(&run);
    run = run_cli("volume", "rename", "v", "w");
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(run.out, "");
    run_free(&run);
    run = run_cli("volume", "delete", "w");
    assert_int_equal(run.status, CLI_OK);
    run_free(&run);
    run = run_cli("volume", "info", "w");
    assert_int_equal(run.status, CLI_NOT_FOUND);
    run_free(&run);
}

static void
test_servers(void **state)
{
    struct run run = run_cli("server", "list");
    json_t *json;

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "127.0.0.1:9471");
    assert_contains(run.out, "not heard of for 12 s");
    assert_contains(run.out, " 100 ");
    assert_contains(run.out, " 299 ");
    run_free(&run);
    run = run_cli("server", "list", "--json");
    json = run_json(&run);
    assert_int_equal(json_array_size(json_object_get(json, "servers")), 3);
    json_decref(json);
    run_free(&run);
}

static void
test_status(void **state)
{
    struct run run = run_cli("cluster", "status");
    json_t *json;

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "state:     degraded\n");
    assert_contains(run.out, "servers:   2 of 3 up\n");
    assert_contains(run.out, "problem:   server 3");
    assert_contains(run.out, "segments:  4 with fewer copies than they should have, 0 blocked");
    assert_contains(run.out, "recovery:  1 copy is being made; at most 128 MiB left, 32 MiB/s, "
                             "about 4.0 s\n");
    run_free(&run);
    run = run_cli("cluster", "status", "--json");
    json = run_json(&run);
    assert_string_equal(json_string_value(json_object_get(json, "state")), "degraded");
    assert_int_equal(json_array_size(json_object_get(json, "problems")), 1);
    assert_int_equal(json_integer_value(json_object_get(json, "segments_degraded")), 4);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(json, "recovery"), "left_bytes")),
        128 << 20);
    json_decref(json);
    run_free(&run);
}

/* Before the command, between its words and behind them. */
static void
test_global_options_anywhere(void **state)
{
    struct run run;

    (void)state;
    run = run_cli("--meta", "10.0.0.1:1", "volume", "list", "--timeout", "250ms");
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(fake_libdlblk_client_options()->meta, "10.0.0.1:1");
    assert_int_equal(fake_libdlblk_client_options()->connect_timeout_ms, 250);
    assert_string_equal(fake_libdlblk_client_options()->program, "dlblk");
    run_free(&run);
    run = run_cli("volume", "--meta=10.0.0.2:2", "list", "--config", "/some/file");
    assert_int_equal(run.status, CLI_OK);
    assert_string_equal(fake_libdlblk_client_options()->meta, "10.0.0.2:2");
    assert_string_equal(fake_libdlblk_client_options()->config_path, "/some/file");
    run_free(&run);
}

/* --- help --- */

/* Every command has help with usage, options and examples, and asks nobody for it. */
static void
test_help_on_each_level(void **state)
{
    struct run run;

    (void)state;
    fake_libdlblk_set_reachable(false);
    run = run_cli("--help");
    assert_int_equal(run.status, CLI_OK);
    for (size_t i = 0; i < cli_command_count; i++)
        assert_contains(run.out, cli_commands[i].summary);
    run_free(&run);
    run = run_cli("volume", "-h");
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "volume rename");
    assert_null(strstr(run.out, "cluster status"));
    run_free(&run);
    assert_true(cli_command_count >= 9);
    for (size_t i = 0; i < cli_command_count; i++) {
        const struct cli_command *command = &cli_commands[i];

        if (command->group != NULL)
            run = run_cli(command->group, command->name, "--help");
        else
            run = run_cli(command->name, "--help");
        assert_int_equal(run.status, CLI_OK);
        assert_contains(run.out, command->arguments);
        assert_contains(run.out, "--json");
        assert_contains(run.out, "\nExamples:\n  dlblk ");
        assert_string_equal(run.err, "");
        run_free(&run);
    }
}

static void
test_version(void **state)
{
    struct run run = run_cli("--version");

    (void)state;
    assert_int_equal(run.status, CLI_OK);
    assert_contains(run.out, "wire version");
    run_free(&run);
}

/* --- what is refused --- */

struct refusal {
    const char *words[8];
    int status;
    const char *says;
};

/* Each text names the thing that is wrong. */
static const struct refusal refusals[] = {
    {{NULL}, CLI_USAGE, "needs a command"},
    {{"volumes"}, CLI_USAGE, "no command 'volumes'"},
    {{"volume"}, CLI_USAGE, "dlblk volume needs a command"},
    {{"volume", "destroy"}, CLI_USAGE, "no command 'destroy'"},
    {{"volume", "list", "x"}, CLI_USAGE, "'x' is one argument too many"},
    {{"volume", "info"}, CLI_USAGE, "an argument is missing"},
    {{"volume", "info", "--sise"}, CLI_USAGE, "unknown option '--sise'"},
    {{"volume", "info", "-q"}, CLI_USAGE, "unknown option -q"},
    {{"--bogus", "volume", "list"}, CLI_USAGE, "unknown option '--bogus'"},
    {{"volume", "list", "--meta"}, CLI_USAGE, "option '--meta' needs a value"},
    {{"volume", "list", "--meta="}, CLI_USAGE, "--meta is empty"},
    {{"volume", "list", "--json=yes"}, CLI_USAGE, "option '--json=yes' takes no value"},
    {{"volume", "list", "--timeout", "soon"}, CLI_USAGE, "--timeout"},
    {{"volume", "create", "w"}, CLI_USAGE, "--size is missing"},
    {{"volume", "create", "w", "--size", "ten"}, CLI_USAGE, "--size"},
    {{"volume", "create", "w", "--size", "-1"}, CLI_USAGE, "--size"},
    {{"volume", "create", "w", "--size", "10GB"}, CLI_USAGE, "--size"},
    {{"volume", "create", "w", "--size", "99999999999999999999"}, CLI_USAGE, "--size"},
    {{"volume", "create", "w", "--size", "1G", "--replicas", "0"}, CLI_USAGE, "--replicas"},
    {{"volume", "create", "w", "--size", "1G", "--replicas", "x"}, CLI_USAGE, "--replicas"},
    {{"volume", "create", "w", "--size", "1G", "--replicas", "9"}, CLI_USAGE, "1 and 8"},
    {{"--check-config", "--config", "/nonexistent/dlblk.conf"},
     CLI_USAGE,
     "/nonexistent/dlblk.conf"},
    {{"volume", "create", "w", "--size", "1G", "--failure-domain", "planet"},
     CLI_USAGE,
     "'planet' is none of server, host, rack"},
    {{"volume", "create", "w/../x", "--size", "1G"}, CLI_USAGE, "w/../x"},
    {{"volume", "create", "", "--size", "1G"}, CLI_USAGE, "volume"},
    {{"volume", "create", "v", "--size", "1G"}, CLI_EXISTS, "volume v exists"},
    {{"volume", "info", "w"}, CLI_NOT_FOUND, "volume 'w' does not exist"},
    {{"volume", "info", "a\033[31mb"}, CLI_NOT_FOUND, "a\\x1b[31mb"},
    {{"volume", "delete", "busy"}, CLI_BUSY, "attached by host7"},
    {{"volume", "resize", "v"}, CLI_USAGE, "--size is missing"},
    {{"volume", "resize", "v", "--size", "1M"}, CLI_USAGE, "only grow"},
    {{"volume", "rename", "v"}, CLI_USAGE, "an argument is missing"},
    {{"volume", "rename", "v", "busy"}, CLI_EXISTS, "volume busy exists"},
};
#define REFUSAL_COUNT (sizeof(refusals) / sizeof(refusals[0]))

static void
test_refusals(void **state)
{
    struct run run;

    (void)state;
    fake_libdlblk_add_volume("v", GIB, 4096);
    fake_libdlblk_add_volume("busy", GIB, 4096);
    fake_libdlblk_set_owner("busy", "host7");
    assert_true(REFUSAL_COUNT >= 30);
    for (size_t i = 0; i < REFUSAL_COUNT; i++) {
        run = run_words(refusals[i].words);
        if (run.status != refusals[i].status || strstr(run.err, refusals[i].says) == NULL)
            fail_msg("refusal %zu: status %d, not %d; or '%s' is not in:\n%s", i, run.status,
                     refusals[i].status, refusals[i].says, run.err);
        assert_string_equal(run.out, "");
        assert_int_equal(strncmp(run.err, "dlblk: ", 7), 0);
        run_free(&run);
    }
    /* Nothing was changed by any of them. */
    run = run_cli("volume", "list");
    assert_contains(run.out, "\nbusy ");
    assert_contains(run.out, "\nv ");
    assert_null(strstr(run.out, "\nw"));
    run_free(&run);
}

/* A name of 300 bytes is refused, and the message stays short. */
static void
test_long_name(void **state)
{
    char name[301];
    struct run run;

    (void)state;
    memset(name, 'n', sizeof(name) - 1);
    name[300] = '\0';
    run = run_cli("volume", "create", name, "--size", "1G");
    assert_int_equal(run.status, CLI_USAGE);
    assert_contains(run.err, "128");
    assert_true(strlen(run.err) < 400);
    run_free(&run);
}

static void
test_usage_errors_say_where_to_look(void **state)
{
    struct run run = run_cli("volume", "create", "w");

    (void)state;
    assert_contains(run.err, "see: dlblk volume create --help");
    run_free(&run);
    run = run_cli("bench", "w", "--rw", "sideways");
    assert_contains(run.err, "see: dlblk bench --help");
    run_free(&run);
}

static void
test_unreachable(void **state)
{
    struct run run;

    (void)state;
    fake_libdlblk_set_reachable(false);
    run = run_cli("cluster", "status");
    assert_int_equal(run.status, CLI_UNREACHABLE);
    assert_contains(run.err, "cannot be reached");
    assert_contains(run.err, "start it");
    run_free(&run);
}

/* With --json an error is JSON on stdout too. */
static void
test_errors_as_json(void **state)
{
    struct run run = run_cli("volume", "info", "w", "--json");
    json_t *json = run_json(&run);
    json_t *error = json_object_get(json, "error");

    (void)state;
    assert_int_equal(run.status, CLI_NOT_FOUND);
    assert_string_equal(json_string_value(json_object_get(error, "code")), "DL_E_VOLUME_UNKNOWN");
    assert_contains(json_string_value(json_object_get(error, "text")), "does not exist");
    json_decref(json);
    run_free(&run);
}

/* Output that can't be written is a failure. */
static void
test_full_disk_is_a_failure(void **state)
{
    char words[][8] = {"dlblk", "server", "list"};
    char *argv[] = {words[0], words[1], words[2], NULL};
    FILE *full = fopen("/dev/full", "w");
    char *text = NULL;
    size_t bytes;
    FILE *err = open_memstream(&text, &bytes);

    (void)state;
    assert_non_null(full);
    assert_int_equal(cli_main(3, argv, full, err), CLI_FAILED);
    (void)fclose(err);
    (void)fclose(full);
    assert_contains(text, "could not be written");
    free(text);
}

/* --- --check-config --- */

static void
check_config(const char *content, int status, const char *says)
{
    char path[] = "/tmp/dlblk-test-conf-XXXXXX";
    int fd = mkstemp(path);
    struct run run;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, strlen(content)), strlen(content));
    (void)close(fd);
    run = run_cli("--check-config", "--config", path);
    (void)unlink(path);
    assert_int_equal(run.status, status);
    assert_contains(status == CLI_OK ? run.out : run.err, says);
    run_free(&run);
}

static void
test_check_config(void **state)
{
    (void)state;
    check_config("[cluster]\nmeta = 10.1.2.3\n", CLI_OK, "10.1.2.3");
    check_config("[cluster]\nmetta = 10.1.2.3\n", CLI_USAGE, "metta");
    check_config("[chunkserver]\ncache = a lot\n", CLI_USAGE, "cache");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

UNIT_MAIN(TEST(test_create_passes_everything_on), TEST(test_create_defaults),
          TEST(test_list_is_aligned), TEST(test_list_json), TEST(test_info),
          TEST(test_resize_rename_delete), TEST(test_servers), TEST(test_status),
          TEST(test_global_options_anywhere), TEST(test_help_on_each_level), TEST(test_version),
          TEST(test_refusals), TEST(test_long_name), TEST(test_usage_errors_say_where_to_look),
          TEST(test_unreachable), TEST(test_errors_as_json), TEST(test_full_disk_is_a_failure),
          TEST(test_check_config))
