/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A volume is attached once for all its connections, and given back when the last has gone;
 * connections that come at the same time share it; one that can't be attached leaves nothing
 * behind.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "nbdkit-plugin/served.h"
#include "tests/unit/lib/fake_libdlblk.h"

static struct dlblk_client *client;
static struct served_set set;

static int
setup(void **state)
{
    (void)state;
    fake_libdlblk_reset();
    fake_libdlblk_add_volume("a", 1u << 20, 4096);
    fake_libdlblk_add_volume("b", 1u << 20, 512);
    served_set_init(&set);
    return dlblk_client_create(&client, NULL, NULL);
}

static int
teardown(void **state)
{
    (void)state;
    assert_int_equal(served_set_close(&set, NULL), 0);
    assert_int_equal(fake_libdlblk_open_count(), 0);
    dlblk_client_destroy(client);
    return 0;
}

static void
test_connections_share_a_volume(void **state)
{
    struct served *first, *second, *other;

    (void)state;
    assert_int_equal(served_acquire(&set, client, "a", 0, &first, NULL), 0);
    assert_int_equal(served_acquire(&set, client, "a", 0, &second, NULL), 0);
    assert_int_equal(served_acquire(&set, client, "b", DLBLK_OPEN_READ_ONLY, &other, NULL), 0);
    assert_ptr_equal(first, second);
    assert_ptr_not_equal(first, other);
    assert_int_equal(fake_libdlblk_open_count(), 2);
    assert_int_equal(fake_libdlblk_open_flags(), DLBLK_OPEN_READ_ONLY);
    assert_int_equal(other->io.block_bytes, 512);

    assert_int_equal(served_release(&set, first, NULL), 0);
    assert_int_equal(fake_libdlblk_open_count(), 2);
    assert_int_equal(served_release(&set, second, NULL), 0);
    assert_int_equal(fake_libdlblk_open_count(), 1);
    assert_int_equal(served_release(&set, other, NULL), 0);
    assert_int_equal(fake_libdlblk_open_count(), 0);
}

static void
test_failed_attach_leaves_nothing(void **state)
{
    struct served *served = NULL;
    struct dl_error err;
    char name[400];

    (void)state;
    assert_int_equal(served_acquire(&set, client, "c", 0, &served, &err), -DL_E_VOLUME_UNKNOWN);
    fake_libdlblk_set_owner("a", "somebody");
    assert_int_equal(served_acquire(&set, client, "a", 0, &served, &err), -DL_E_VOLUME_BUSY);
    assert_non_null(strstr(err.text, "somebody"));
    memset(name, 'x', sizeof(name));
    name[300] = '\0';
    assert_int_equal(served_acquire(&set, client, name, 0, &served, &err), -DL_E_NAME_INVALID);
    assert_null(served);
    fake_libdlblk_set_owner("a", "");
    assert_int_equal(served_acquire(&set, client, "a", 0, &served, &err), 0);
    assert_int_equal(served_release(&set, served, &err), 0);
}

/* What nbdkit doesn't close when it ends is detached all the same. */
static void
test_close_detaches_what_is_left(void **state)
{
    struct served *a, *b;

    (void)state;
    assert_int_equal(served_acquire(&set, client, "a", 0, &a, NULL), 0);
    assert_int_equal(served_acquire(&set, client, "b", 0, &b, NULL), 0);
    assert_int_equal(served_set_close(&set, NULL), 0);
    assert_int_equal(fake_libdlblk_open_count(), 0);
    /* Still there to look at. */
    assert_string_equal(a->name, "a");
    free(a);
    free(b);
    list_init(&set.volumes);
}

#define THREADS 8
#define ROUNDS  50

static void *
come_and_go(void *context)
{
    int *failures = context;

    for (int i = 0; i < ROUNDS; i++) {
        struct served *served;

        if (served_acquire(&set, client, "a", 0, &served, NULL) != 0) {
            (*failures)++;
            continue;
        }
        (void)pthread_mutex_lock(&set.mutex);
        *failures += served->connection_count == 0;
        (void)pthread_mutex_unlock(&set.mutex);
        *failures += served_release(&set, served, NULL) != 0;
    }
    return NULL;
}

/* The fake refuses a second attach while one is open, and takes its time. */
static void
test_connections_at_the_same_time(void **state)
{
    pthread_t threads[THREADS];
    int failures[THREADS] = {0};

    (void)state;
    fake_libdlblk_set_delay_us(200);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, come_and_go, &failures[i]), 0);
    for (int i = 0; i < THREADS; i++)
        (void)pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(failures[i], 0);
    assert_int_equal(fake_libdlblk_open_count(), 0);
    /* They did share, and it was attached more than once. */
    assert_in_range(fake_libdlblk_attach_count(), 2, THREADS * ROUNDS - 1);
}

UNIT_MAIN(cmocka_unit_test_setup_teardown(test_connections_share_a_volume, setup, teardown),
          cmocka_unit_test_setup_teardown(test_failed_attach_leaves_nothing, setup, teardown),
          cmocka_unit_test_setup_teardown(test_close_detaches_what_is_left, setup, teardown),
          cmocka_unit_test_setup_teardown(test_connections_at_the_same_time, setup, teardown))
