/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one server leaves for the next: written and read again, damaged, half there; found by volume
 * and by device; counters that outlive the process that counted.  Files in a directory of the
 * test's own.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ublk/state.h"

static char directory[64];

static int
remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw)
{
    (void)stat;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int
setup(void **state)
{
    char *made;
    char run[96];

    (void)state;
    (void)snprintf(directory, sizeof(directory), "/tmp/dlblk-test-ublk-XXXXXX");
    made = mkdtemp(directory);
    assert_non_null(made);
    /* Two levels that are missing. */
    (void)snprintf(run, sizeof(run), "%s/a/b", directory);
    return setenv("DLBLK_RUN_DIR", run, 1);
}

static int
teardown(void **state)
{
    (void)state;
    return nftw(directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static struct ublk_state
example(uint32_t id, const char *volume)
{
    struct ublk_state state = {
        .id = id,
        .meta = "10.0.0.1:7700,10.0.0.2",
        .volume_id = 0x1234567890abcdefull,
        .size_bytes = 1ull << 50,
        .logical_bytes = 512,
        .lease_epoch = 16777215,
        .queue_count = 4,
        .queue_depth = 4095,
        .pid = 4194303,
        .started_ms = 1795312513768,
        .takeovers = 3,
        .read_only = true,
        .null = true,
    };

    (void)snprintf(state.volume, sizeof(state.volume), "%s", volume);
    return state;
}

static void
test_what_was_saved_is_loaded(void **state)
{
    struct ublk_state saved = example(7, "db-1.x_y");
    struct ublk_state loaded;
    struct dl_error err = {0};

    (void)state;
    assert_int_equal(ublk_state_save(&saved, &err), 0);
    memset(&loaded, 0x55, sizeof(loaded));
    assert_int_equal(ublk_state_load(7, &loaded, &err), 0);
    assert_string_equal(loaded.volume, saved.volume);
    assert_string_equal(loaded.meta, saved.meta);
    assert_string_equal(loaded.config, "");
    assert_int_equal(loaded.volume_id, saved.volume_id);
    assert_int_equal(loaded.size_bytes, saved.size_bytes);
    assert_int_equal(loaded.logical_bytes, 512);
    assert_int_equal(loaded.lease_epoch, saved.lease_epoch);
    assert_int_equal(loaded.queue_count, 4);
    assert_int_equal(loaded.queue_depth, 4095);
    assert_int_equal(loaded.pid, saved.pid);
    assert_int_equal(loaded.started_ms, saved.started_ms);
    assert_int_equal(loaded.takeovers, 3);
    assert_true(loaded.read_only);
    assert_false(loaded.volatile_cache);
    assert_true(loaded.null);
    ublk_state_remove(7);
    assert_int_equal(ublk_state_load(7, &loaded, &err), -ENOENT);
}

static int
read_text(const char *text, struct ublk_state *ret_state)
{
    FILE *file = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    int result;

    assert_non_null(file);
    result = ublk_state_read(file, ret_state);
    (void)fclose(file);
    return result;
}

/* Cut at each byte it is refused, and nothing is taken from it. */
static void
test_damaged_text_is_refused(void **state)
{
    struct ublk_state saved = example(1, "v");
    struct ublk_state loaded = {.id = 77};
    char text[4096] = "";
    char cut[8192];
    FILE *file = fmemopen(text, sizeof(text), "w");

    (void)state;
    assert_non_null(file);
    assert_int_equal(ublk_state_write(&saved, file), 0);
    (void)fclose(file);
    assert_int_equal(read_text(text, &loaded), 0);
    loaded.id = 77;
    for (size_t length = 1; length < strlen(text); length++) {
        memcpy(cut, text, length);
        cut[length] = '\0';
        assert_int_equal(read_text(cut, &loaded), -EINVAL);
        assert_int_equal(loaded.id, 77);
    }
    (void)snprintf(cut, sizeof(cut), "%snew_key=what a newer version knows\n", text);
    assert_int_equal(read_text(cut, &loaded), 0);
    (void)snprintf(cut, sizeof(cut), "%sid=-3\n", text);
    assert_int_equal(read_text(cut, &loaded), -EINVAL);
    (void)snprintf(cut, sizeof(cut), "%sread_only=2\n", text);
    assert_int_equal(read_text(cut, &loaded), -EINVAL);
    (void)snprintf(cut, sizeof(cut), "%svolume=%0200d\n", text, 0);
    assert_int_equal(read_text(cut, &loaded), -EINVAL);
}

static int
append(void *context, const struct ublk_state *state)
{
    char *text = context;

    (void)snprintf(text + strlen(text), 16, "%u ", state->id);
    return 0;
}

static void
test_devices_are_found(void **state)
{
    struct ublk_state first = example(2, "alpha");
    struct ublk_state second = example(10, "ublkb2x");
    struct ublk_state found;
    char ids[64] = "";

    (void)state;
    assert_int_equal(ublk_state_find("alpha", &found), -ENOENT);
    assert_int_equal(ublk_state_save(&second, NULL), 0);
    assert_int_equal(ublk_state_save(&first, NULL), 0);
    assert_int_equal(ublk_state_for_each(append, ids), 0);
    assert_string_equal(ids, "2 10 ");
    assert_int_equal(ublk_state_find("alpha", &found), 0);
    assert_int_equal(found.id, 2);
    assert_int_equal(ublk_state_find("/dev/ublkb10", &found), 0);
    assert_int_equal(found.id, 10);
    assert_int_equal(ublk_state_find("ublkb2", &found), 0);
    assert_int_equal(found.id, 2);
    assert_int_equal(ublk_state_find("/dev/ublkb1", &found), -ENOENT);
    assert_int_equal(ublk_state_find("alpha2", &found), -ENOENT);
    ublk_state_remove(2);
    ublk_state_remove(10);
}

static void
test_counters_are_shared(void **state)
{
    struct ublk_counters *server = NULL;
    struct ublk_counters *next = NULL;
    struct ublk_counters seen;

    (void)state;
    ublk_counters_get(5, &seen);
    assert_int_equal(seen.reads, 0);
    assert_int_equal(ublk_counters_map(5, &server, NULL), 0);
    ublk_counter_add(&server->reads, 3);
    ublk_counter_set(&server->in_flight, 9);
    ublk_counters_get(5, &seen);
    assert_int_equal(seen.reads, 3);
    assert_int_equal(seen.in_flight, 9);
    ublk_counters_unmap(server);
    assert_int_equal(ublk_counters_map(5, &next, NULL), 0);
    ublk_counter_add(&next->reads, 1);
    ublk_counters_get(5, &seen);
    assert_int_equal(seen.reads, 4);
    ublk_counters_unmap(next);
    ublk_state_remove(5);
    ublk_counters_get(5, &seen);
    assert_int_equal(seen.reads, 0);
}

UNIT_MAIN(cmocka_unit_test_setup_teardown(test_what_was_saved_is_loaded, setup, teardown),
          cmocka_unit_test_setup_teardown(test_damaged_text_is_refused, setup, teardown),
          cmocka_unit_test_setup_teardown(test_devices_are_found, setup, teardown),
          cmocka_unit_test_setup_teardown(test_counters_are_shared, setup, teardown))
