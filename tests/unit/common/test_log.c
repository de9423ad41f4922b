/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines: their form on a file and in the journal, which levels are written, that a flood of
 * equal lines becomes one line and a count, and that nobody's text can forge a line.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

static int log_fd;
static char text[1 << 20];

static int
setup(void **state)
{
    (void)state;
    log_flush_repeats(UINT64_MAX); /* what the test before left */
    log_fd = memfd_create("log", 0);
    if (log_fd < 0)
        return -1;
    log_set_fd(log_fd);
    log_set_level(LOG_LEVEL_INFO);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    (void)unsetenv("JOURNAL_STREAM");
    return close(log_fd);
}

/* All that was logged, as one string. */
static const char *
logged(void)
{
    ssize_t length_bytes = pread(log_fd, text, sizeof(text) - 1, 0);

    assert_true(length_bytes >= 0);
    text[length_bytes] = '\0';
    return text;
}

static unsigned
count_of(const char *where, const char *word)
{
    unsigned count = 0;

    while ((where = strstr(where, word)) != NULL) {
        count++;
        where++;
    }
    return count;
}

static void
test_line_on_a_file(void **state)
{
    unsigned year, month, day, hour, minute, second, millisecond;

    (void)state;
    log_warning("meta", "server 3", "no heartbeat for %d s", 12);
    log_info("meta", NULL, "started");
    assert_int_equal(sscanf(logged(), "%4u-%2u-%2u %2u:%2u:%2u.%3u ", &year, &month, &day, &hour,
                            &minute, &second, &millisecond),
                     7);
    assert_in_range(year, 2020, 9999);
    assert_non_null(strstr(text, " warning meta server 3: no heartbeat for 12 s\n"));
    assert_non_null(strstr(text, " info meta: started\n"));
}

static void
test_line_in_the_journal(void **state)
{
    char stream[64];
    struct stat status;

    (void)state;
    assert_int_equal(fstat(log_fd, &status), 0);
    (void)snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)status.st_dev,
                   (uintmax_t)status.st_ino);
    assert_int_equal(setenv("JOURNAL_STREAM", stream, 1), 0);
    log_set_fd(log_fd);
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("a", NULL, "1");
    log_info("a", NULL, "2");
    log_warning("a", NULL, "3");
    log_error("a", NULL, "4");
    assert_string_equal(logged(), "<7>debug a: 1\n<6>info a: 2\n<4>warning a: 3\n<3>error a: 4\n");

    /* A child with another stderr inherits the variable, and must not be taken in. */
    assert_int_equal(setenv("JOURNAL_STREAM", "1:1", 1), 0);
    log_set_fd(log_fd);
    log_error("a", NULL, "5");
    assert_null(strstr(logged(), "<3>error a: 5"));
    assert_non_null(strstr(text, " error a: 5\n"));
}

static void
test_levels(void **state)
{
    (void)state;
    log_debug("a", NULL, "hidden");
    log_set_level(LOG_LEVEL_ERROR);
    log_warning("a", NULL, "hidden");
    assert_string_equal(logged(), "");
    log_error("a", NULL, "shown");
    assert_int_equal(count_of(logged(), "\n"), 1);
}

static void
test_level_names(void **state)
{
    enum log_level level = LOG_LEVEL_ERROR;
    struct dl_error err;

    (void)state;
    assert_int_equal(log_parse_level("--log", "Debug", &level, &err), 0);
    assert_int_equal(level, LOG_LEVEL_DEBUG);
    assert_int_equal(log_parse_level("--log", "loud", &level, &err), -DL_E_USAGE);
    assert_string_equal(err.text, "--log: 'loud' is not debug, info, warning or error");
    assert_int_equal(level, LOG_LEVEL_DEBUG);
}

static void
test_repeats_become_a_count(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        log_warning("net", "peer 1", "connection refused");
        log_warning("net", "peer 2", "connection refused"); /* in turn: still two lines */
    }
    log_error("net", "peer 1", "connection refused"); /* another level is another line */
    assert_int_equal(count_of(logged(), "\n"), 3);

    log_flush_repeats(clock_monotonic_ns());
    assert_int_equal(count_of(logged(), "\n"), 3); /* not over yet */
    log_flush_repeats(clock_monotonic_ns() + LOG_REPEAT_INTERVAL_NS);
    assert_int_equal(count_of(logged(), "\n"), 5);
    assert_non_null(strstr(text, "peer 1: connection refused (999 times more)\n"));
    assert_non_null(strstr(text, "peer 2: connection refused (999 times more)\n"));

    log_warning("net", "peer 1", "connection refused"); /* begins again */
    assert_int_equal(count_of(logged(), "\n"), 6);
}

static void
test_no_count_is_lost_when_many_lines_differ(void **state)
{
    unsigned long total = 0;
    const char *where;

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        for (unsigned j = 0; j <= i; j++)
            log_info("a", NULL, "line %u", i);
    }
    log_flush_repeats(UINT64_MAX);
    for (where = logged(); (where = strstr(where, "info a: line ")) != NULL; where++) {
        unsigned line, more = 0;

        assert_in_range(sscanf(where, "info a: line %u (%u times more)", &line, &more), 1, 2);
        total += more == 0 ? 1 : more;
    }
    assert_int_equal(total, 100 * 101 / 2);
}

/* A peer that connects again and again from other ports must not fill the disk with logs. */
static void
test_lines_of_one_kind_are_limited(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        log_warning("net", NULL, "port %u: not a frame", i);
        if (i % 20 == 0)
            log_info("net", NULL, "another kind %u", i);
    }
    assert_int_equal(count_of(logged(), "not a frame"), LOG_KIND_LIMIT);
    assert_int_equal(count_of(text, "another kind"), 50);

    log_flush_repeats(clock_monotonic_ns() + LOG_REPEAT_INTERVAL_NS);
    assert_int_equal(count_of(logged(), "not a frame"), LOG_KIND_LIMIT + 1);
    assert_non_null(strstr(text, "port 999: not a frame (900 lines like this left out)\n"));

    log_warning("net", NULL, "port %u: not a frame", 1000u);
    assert_int_equal(count_of(logged(), "port 1000: not a frame\n"), 1); /* begins again */
}

static void
test_text_cannot_forge_lines(void **state)
{
    char long_text[5000];

    (void)state;
    log_info("a", "v\n<0>emergency", "b\r\n\x1b[2Jc");
    assert_int_equal(count_of(logged(), "\n"), 1);
    assert_non_null(strstr(text, "info a v?<0>emergency: b???[2Jc\n"));

    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    log_info("a", NULL, "%s", long_text);
    log_info(long_text, long_text, "%s", long_text);
    assert_int_equal(count_of(logged(), "\n"), 3);
}

static void *
logs_much(void *context)
{
    for (unsigned i = 0; i < LOG_KIND_LIMIT; i++)
        log_info(context, "thread", "line %u", i);
    return NULL;
}

static void
test_threads_write_whole_lines(void **state)
{
    static char names[4][8] = {"a", "b", "c", "d"};
    pthread_t threads[4];

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, logs_much, names[i]), 0);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(count_of(logged(), "\n"), 4 * LOG_KIND_LIMIT);
    assert_int_equal(count_of(text, " thread: line "), 4 * LOG_KIND_LIMIT);
}

#define test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

UNIT_MAIN(test(test_line_on_a_file), test(test_line_in_the_journal), test(test_levels),
          test(test_level_names), test(test_repeats_become_a_count),
          test(test_no_count_is_lost_when_many_lines_differ),
          test(test_lines_of_one_kind_are_limited), test(test_text_cannot_forge_lines),
          test(test_threads_write_whole_lines))
