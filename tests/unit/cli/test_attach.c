/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk attach, detach and devices hand what was asked to dlblk-ublk, and end as it does: a script
 * of that name, which says how it was called, stands in $PATH.  What is refused is refused before.
 */
#include "tests/unit/lib/unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/cli/run.h"
#include "tests/unit/lib/child.h"

static char directory[] = "/tmp/dlblk-test-attach-XXXXXX";
static char script[64];

static int
setup(void **state)
{
    static const char text[] = "#!/bin/sh\necho \"called: $*.\" >&2\nexit 4\n";
    char *made = mkdtemp(directory);
    int fd;

    (void)state;
    assert_non_null(made);
    (void)snprintf(script, sizeof(script), "%s/dlblk-ublk", directory);
    fd = open(script, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
    assert_int_equal(close(fd), 0);
    return setenv("PATH", directory, 1);
}

static int
teardown(void **state)
{
    (void)state;
    (void)unlink(script);
    return rmdir(directory);
}

static void
in_child(void *context)
{
    struct run run = run_words(context);

    _exit(run.status);
}

/* What dlblk becomes when it is called with these words. */
static void
assert_becomes(const char *const *words, const char *expected)
{
    struct child child;
    char line[256];

    (void)snprintf(line, sizeof(line), "called: %s.\n", expected);
    child_run(&child, in_child, (void *)(uintptr_t)words);
    assert_string_equal(child.text, line);
    assert_true(WIFEXITED(child.status));
    assert_int_equal(WEXITSTATUS(child.status), 4);
}

#define ASSERT_BECOMES(expected, ...) \
    assert_becomes((const char *const[]){__VA_ARGS__, NULL}, expected)

static void
test_attach(void **state)
{
    (void)state;
    ASSERT_BECOMES("serve --background --supervise -- db1", "attach", "db1");
    ASSERT_BECOMES("serve -- db1", "attach", "db1", "--foreground");
    ASSERT_BECOMES("serve --background --supervise --read-only --queues 4 --depth 16 --id 0 -- db1",
                   "attach", "--read-only", "db1", "--id", "0", "--queues", "4", "--depth", "16");
    ASSERT_BECOMES("serve --background --supervise --steal --volatile-cache --meta m1,m2 "
                   "--config /c -- db1",
                   "--meta", "m1,m2", "attach", "db1", "--steal", "--volatile-cache", "--config",
                   "/c");
}

static void
test_detach_and_devices(void **state)
{
    (void)state;
    ASSERT_BECOMES("detach -- db1", "detach", "db1");
    ASSERT_BECOMES("detach --force -- /dev/ublkb0", "detach", "/dev/ublkb0", "--force");
    ASSERT_BECOMES("list", "devices");
    ASSERT_BECOMES("list --json", "devices", "--json");
}

static void
assert_refused(const char *const *words, const char *text)
{
    struct run run = run_words(words);

    assert_int_equal(run.status, CLI_USAGE);
    assert_non_null(strstr(run.err, text));
    run_free(&run);
}

#define ASSERT_REFUSED(text, ...) assert_refused((const char *const[]){__VA_ARGS__, NULL}, text)

static void
test_what_is_refused(void **state)
{
    (void)state;
    ASSERT_REFUSED("an argument is missing", "attach");
    ASSERT_REFUSED("an argument is missing", "detach", "--force");
    ASSERT_REFUSED("one argument too many", "devices", "db1");
    ASSERT_REFUSED("--queues", "attach", "db1", "--queues", "0");
    ASSERT_REFUSED("--depth", "attach", "db1", "--depth", "4096");
    ASSERT_REFUSED("--nbd knows --read-only and --force only", "attach", "db1", "--nbd", "--depth",
                   "8");
    ASSERT_REFUSED("--nbd knows --read-only and --force only", "attach", "db1", "--nbd",
                   "--foreground");
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attach),
        cmocka_unit_test(test_detach_and_devices),
        cmocka_unit_test(test_what_is_refused),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, setup, teardown);
}
