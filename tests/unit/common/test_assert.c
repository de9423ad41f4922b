/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A failed assertion names its place, prints the last events once and aborts; one that holds costs
 * nothing but the look.  An object's owner is the thread that took it, and no other.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "common/assert.h"
#include "common/trace.h"
#include "tests/unit/lib/child.h"

struct fault {
    int answer;
    bool handle_signals;
};

static void
fails(void *context)
{
    struct fault *fault = context;
    int *answer = &fault->answer;

    dl_trace("test", "the answer is %d", *answer);
    if (fault->handle_signals)
        dl_trace_dump_on_crash();
    dl_assert(*answer == 42);
    dl_assert(*answer != 42);
}

static void
test_failure_tells_where_and_what_was_before(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct fault fault = {.answer = 42, .handle_signals = i == 1};
        struct child child;
        const char *events;

        child_run(&child, fails, &fault);
        assert_true(child_aborted(&child));
        assert_non_null(strstr(child.text, "test_assert.c:"));
        assert_non_null(strstr(child.text, ": fails: assertion failed: *answer != 42\n"));
        assert_null(strstr(child.text, "*answer == 42"));
        events = strstr(child.text, "test: the answer is 42\n");
        assert_non_null(events);
        /* The assertion and the handler of its SIGABRT don't both print them. */
        assert_null(strstr(events + 1, "test: the answer is 42\n"));
    }
}

static void
reaches_the_unreachable(void *context)
{
    (void)context;
    dl_unreachable();
}

static void
test_unreachable(void **state)
{
    struct child child;

    (void)state;
    child_run(&child, reaches_the_unreachable, NULL);
    assert_true(child_aborted(&child));
    assert_non_null(strstr(child.text, "reaches_the_unreachable"));
}

static void
asserts_owner(void *context)
{
    dl_assert_owner((struct dl_owner *)context);
}

static void *
takes_ownership(void *context)
{
    dl_owner_set(context);
    asserts_owner(context);
    return NULL;
}

static void
test_owner_is_one_thread(void **state)
{
    struct dl_owner owner = {0};
    struct child child;
    pthread_t thread;

    (void)state;
    child_run(&child, asserts_owner, &owner);
    assert_true(child_aborted(&child)); /* nobody's yet */

    dl_owner_set(&owner);
    asserts_owner(&owner);

    assert_int_equal(pthread_create(&thread, NULL, takes_ownership, &owner), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    child_run(&child, asserts_owner, &owner);
    assert_true(child_aborted(&child)); /* the other thread's now */
}

static void
evaluates_expensive(void *context)
{
    int *count = context;

    (void)count; /* not evaluated where the checks are off */
    dl_assert_expensive(++*count == 0);
}

static void
test_expensive_checks_only_where_they_are_on(void **state)
{
    struct child child;
    int count = 0;

    (void)state;
    child_run(&child, evaluates_expensive, &count);
    assert_int_equal(child_aborted(&child), DLBLK_EXPENSIVE_CHECKS);
}

UNIT_MAIN(cmocka_unit_test(test_failure_tells_where_and_what_was_before),
          cmocka_unit_test(test_unreachable), cmocka_unit_test(test_owner_is_one_thread),
          cmocka_unit_test(test_expensive_checks_only_where_they_are_on))
