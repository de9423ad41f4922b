/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locals are cleaned up when their scope ends, in reverse order, and what was stolen or never set
 * is left alone.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <fcntl.h>

#include "common/cleanup.h"

struct thing {
    char name;
};

static char destroyed[8];

static void
thing_destroy(struct thing *thing)
{
    size_t length = strlen(destroyed);

    destroyed[length] = thing->name;
    destroyed[length + 1] = '\0';
}

DL_CLEANUP_DEFINE(struct thing *, thing_destroy);

static struct thing *
uses_three(struct thing *a, struct thing *b, struct thing *c)
{
    DL_CLEANUP(thing_destroy) struct thing *first = a;
    DL_CLEANUP(thing_destroy) struct thing *none = NULL;
    DL_CLEANUP(thing_destroy) struct thing *second = b;
    DL_CLEANUP(thing_destroy) struct thing *third = c;

    (void)first;
    (void)none;
    (void)third;
    return DL_STEAL(second);
}

static void
test_order_and_stealing(void **state)
{
    struct thing a = {'a'}, b = {'b'}, c = {'c'};

    (void)state;
    assert_ptr_equal(uses_three(&a, &b, &c), &b);
    assert_string_equal(destroyed, "ca");
}

static int
opens(void)
{
    DL_CLEANUP(close) int fd = open("/dev/null", O_RDONLY);
    DL_CLEANUP(close) int none = -1;
    DL_CLEANUP(fclose) FILE *file = fopen("/dev/null", "re");
    /* A leak of this one is for the address sanitizer to find. */
    DL_CLEANUP(free) char *memory = malloc(10);

    assert_true(fd >= 0);
    assert_int_equal(none, -1);
    assert_non_null(file);
    assert_non_null(memory);
    return fd;
}

static void
test_descriptors_are_closed(void **state)
{
    int fd = opens();

    (void)state;
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    assert_int_equal(errno, EBADF);
    assert_int_equal(opens(), fd); /* nothing else stayed open in its place */
}

UNIT_MAIN(cmocka_unit_test(test_order_and_stealing), cmocka_unit_test(test_descriptors_are_closed))
