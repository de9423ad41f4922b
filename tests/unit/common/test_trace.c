/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event ring keeps the last 4096 events of each thread with their time and arguments, in order,
 * and prints them; also when a signal kills the program.  A ring outlives its thread and is used
 * again.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/trace.h"
#include "tests/unit/lib/child.h"

/* Everything that dl_trace_dump() prints; to be freed. */
static char *
dump_text(void)
{
    int fd = memfd_create("dump", 0);
    off_t length_bytes;
    char *text;

    assert_true(fd >= 0);
    dl_trace_dump(fd);
    length_bytes = lseek(fd, 0, SEEK_END);
    text = malloc((size_t)length_bytes + 1);
    assert_non_null(text);
    assert_int_equal(pread(fd, text, (size_t)length_bytes, 0), length_bytes);
    text[length_bytes] = '\0';
    (void)close(fd);
    return text;
}

static void
test_conversions(void **state)
{
    char *text;

    (void)state;
    dl_trace_set_time(12003456789);
    dl_trace("test", "none");
    dl_trace("test", "%d %i %ld", -5, 7, -(1l << 40));
    dl_trace("test", "%u %lu %x %lx", UINT32_MAX, UINT64_MAX, 0xbeefu, 0xfeedfacebeeful);
    dl_trace("test", "%u %x", (uint32_t)-1, (uint32_t)-2); /* 32 bits stay 32 bits */
    dl_trace("test", "%s and %s, 100%%, %p", "one", "two", (void *)0x1234);
    dl_trace("test", "%zu", sizeof(uint64_t));
    text = dump_text();
    assert_non_null(strstr(text, "12.003456 test: none\n"));
    assert_non_null(strstr(text, "test: -5 7 -1099511627776\n"));
    assert_non_null(strstr(text, "test: 4294967295 18446744073709551615 beef feedfacebeef\n"));
    assert_non_null(strstr(text, "test: 4294967295 fffffffe\n"));
    assert_non_null(strstr(text, "test: one and two, 100%, 0x1234\n"));
    assert_non_null(strstr(text, "test: 8\n"));
    free(text);
}

static void
test_ring_keeps_the_last(void **state)
{
    const unsigned written = 3 * DL_TRACE_EVENTS + 17;
    char *text, *line, *rest;
    unsigned expected = written - DL_TRACE_EVENTS;

    (void)state;
    for (unsigned i = 0; i < written; i++)
        dl_trace("ring", "number %u", i);
    text = dump_text();
    for (line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        unsigned number;

        if (strstr(line, "ring: ") == NULL)
            continue;
        assert_int_equal(sscanf(strstr(line, "ring: "), "ring: number %u", &number), 1);
        assert_int_equal(number, expected);
        expected++;
    }
    assert_int_equal(expected, written);
    free(text);
}

static void *
traces_once(void *context)
{
    dl_trace("thread", "number %d", *(int *)context);
    return NULL;
}

static unsigned
count_of(const char *text, const char *word)
{
    unsigned count = 0;

    while ((text = strstr(text, word)) != NULL) {
        count++;
        text++;
    }
    return count;
}

static void
test_each_thread_has_a_ring_that_is_used_again(void **state)
{
    char *text;

    (void)state;
    dl_trace("main", "here");
    for (int i = 0; i < 100; i++) {
        pthread_t thread;

        assert_int_equal(pthread_create(&thread, NULL, traces_once, &i), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
    }
    text = dump_text();
    assert_int_equal(count_of(text, "--- thread "), 2);
    assert_int_equal(count_of(text, "thread: number "), 100); /* events outlive their thread */
    assert_int_equal(count_of(text, "main: here\n"), 1);
    free(text);
}

static void
is_killed(void *context)
{
    int *signal_number = context;

    dl_trace_dump_on_crash();
    dl_trace("test", "before signal %d", *signal_number);
    (void)raise(*signal_number);
}

static void
test_killing_signals_print_and_kill(void **state)
{
    static int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};

    (void)state;
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct child child;
        char expected[64];

        child_run(&child, is_killed, &signals[i]);
        assert_true(child_killed_by(&child, signals[i]));
        (void)snprintf(expected, sizeof(expected), "test: before signal %d\n", signals[i]);
        assert_non_null(strstr(child.text, expected));
    }
}

/* The killed one comes first: it prints the ring while that is short. */
UNIT_MAIN(cmocka_unit_test(test_killing_signals_print_and_kill), cmocka_unit_test(test_conversions),
          cmocka_unit_test(test_each_thread_has_a_ring_that_is_used_again),
          cmocka_unit_test(test_ring_keeps_the_last))
