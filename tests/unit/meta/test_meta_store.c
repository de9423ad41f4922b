/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The promises of meta/store.h, the same tests for both implementations: atomic commits in order,
 * guards, revisions, ordered scans; what was completed is there after a restart.  Then what only
 * the one in memory has: a crash keeps a prefix.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dlblk/error.h"
#include "meta/store_memory.h"
#include "meta/store_rocksdb.h"
#include "tests/unit/lib/fake_env.h"

/* --- one store of either kind --- */

struct place {
    bool rocksdb;
    struct fake_env env;
    struct store_memory_db *db;
    char dir[64];
    char path[96];
    struct store *store;
    pthread_mutex_t lock;
    pthread_cond_t posted;
    struct loop_message *message;
};

static void
place_post(void *context, struct loop_message *message)
{
    struct place *place = context;

    (void)pthread_mutex_lock(&place->lock);
    assert_null(place->message);
    place->message = message;
    (void)pthread_cond_signal(&place->posted);
    (void)pthread_mutex_unlock(&place->lock);
}

static void
place_open(struct place *place, enum store_rocksdb_mode mode)
{
    struct store_rocksdb_options options = {
        .mode = mode,
        .post = place_post,
        .post_context = place,
    };
    struct dl_error err = {0};

    if (!place->rocksdb)
        place->store = store_memory_open(place->db, &place->env.env, NULL);
    else if (store_rocksdb_open(&place->store, place->path, &options, &err) < 0)
        fail_msg("%s", err.text);
}

static void
place_init(struct place *place, bool rocksdb)
{
    memset(place, 0, sizeof(*place));
    place->rocksdb = rocksdb;
    fake_env_init(&place->env, 1);
    place->db = store_memory_db_create();
    (void)pthread_mutex_init(&place->lock, NULL);
    (void)pthread_cond_init(&place->posted, NULL);
    (void)snprintf(place->dir, sizeof(place->dir), "/tmp/dlblk-test-store-XXXXXX");
    assert_non_null(mkdtemp(place->dir));
    (void)snprintf(place->path, sizeof(place->path), "%s/db", place->dir);
    place_open(place, STORE_ROCKSDB_CREATE);
}

static void
place_close(struct place *place)
{
    if (place->rocksdb)
        store_rocksdb_close(place->store);
    else
        store_memory_close(place->store);
}

static void
place_fini(struct place *place)
{
    place_close(place);
    assert_int_equal(store_rocksdb_remove(place->path, NULL), 0);
    assert_int_equal(rmdir(place->dir), 0);
    store_memory_db_destroy(place->db);
    fake_env_fini(&place->env);
}

static void
place_run(struct place *place, const bool *done)
{
    struct loop_message *message;

    if (!place->rocksdb) {
        assert_false(*done); /* never inside the start call */
        fake_env_settle(&place->env);
        assert_true(*done);
        return;
    }
    while (!*done) {
        (void)pthread_mutex_lock(&place->lock);
        while (place->message == NULL)
            (void)pthread_cond_wait(&place->posted, &place->lock);
        message = place->message;
        place->message = NULL;
        (void)pthread_mutex_unlock(&place->lock);
        message->fn(message);
    }
}

static struct store_bytes
bytes_of_text(const char *text)
{
    return (struct store_bytes){text, (uint32_t)strlen(text)};
}

/* --- requests that are waited for --- */

struct commit_wait {
    struct store_commit commit;
    struct store_batch batch;
    bool done;
    int err;
    unsigned order;
};

static unsigned commit_order;

static void
on_commit(struct store_commit *commit, int err)
{
    struct commit_wait *wait = (struct commit_wait *)commit;

    wait->done = true;
    wait->err = err;
    wait->order = ++commit_order;
}

static void
commit_start(struct place *place, struct commit_wait *wait, const char *guard_key,
             uint64_t guard_revision)
{
    wait->commit = (struct store_commit){
        .batch = &wait->batch,
        .guard = {.revision = guard_revision},
        .on_done = on_commit,
    };
    if (guard_key != NULL)
        wait->commit.guard.key = bytes_of_text(guard_key);
    store_commit_start(place->store, &wait->commit);
}

static int
commit_finish(struct place *place, struct commit_wait *wait)
{
    if (!wait->done)
        place_run(place, &wait->done);
    store_batch_fini(&wait->batch);
    return wait->err;
}

static int
put(struct place *place, const char *key, const char *value, uint64_t *ret_revision)
{
    struct commit_wait wait = {0};
    int err;

    store_batch_put(&wait.batch, bytes_of_text(key), bytes_of_text(value));
    commit_start(place, &wait, NULL, 0);
    err = commit_finish(place, &wait);
    if (ret_revision != NULL)
        *ret_revision = wait.commit.revision;
    return err;
}

struct get_wait {
    struct store_get get;
    bool done;
    int err;
    char value[64];
    uint64_t revision;
};

static void
on_get(struct store_get *get, int err)
{
    struct get_wait *wait = (struct get_wait *)get;

    wait->done = true;
    wait->err = err;
    if (err < 0)
        return;
    assert_true(get->item.value.length_bytes < sizeof(wait->value));
    if (get->item.value.length_bytes > 0)
        memcpy(wait->value, get->item.value.bytes, get->item.value.length_bytes);
    wait->revision = get->item.revision;
}

/* The value of a key, "-" if it isn't there. */
static const char *
get(struct place *place, const char *key, uint64_t *ret_revision)
{
    static struct get_wait wait;

    memset(&wait, 0, sizeof(wait));
    wait.get = (struct store_get){.key = bytes_of_text(key), .on_done = on_get};
    store_get_start(place->store, &wait.get);
    place_run(place, &wait.done);
    if (ret_revision != NULL)
        *ret_revision = wait.err == 0 ? wait.revision : 0;
    if (wait.err == -DL_E_NOT_FOUND)
        return "-";
    assert_int_equal(wait.err, 0);
    return wait.value;
}

struct scan_wait {
    struct store_scan scan;
    bool done;
    bool more;
    int err;
    char text[256]; /* "key=value key=value" */
};

static void
on_scan(struct store_scan *scan, int err)
{
    struct scan_wait *wait = (struct scan_wait *)scan;

    wait->done = true;
    wait->err = err;
    wait->more = scan->more;
    for (uint32_t i = 0; i < scan->item_count; i++) {
        size_t used = strlen(wait->text);

        (void)snprintf(
            wait->text + used, sizeof(wait->text) - used, "%s%.*s=%.*s", used > 0 ? " " : "",
            (int)scan->items[i].key.length_bytes, (const char *)scan->items[i].key.bytes,
            (int)scan->items[i].value.length_bytes, (const char *)scan->items[i].value.bytes);
        assert_true(scan->items[i].revision > 0);
    }
}

static const char *
scan(struct place *place, const char *start, const char *end, uint32_t max, bool *ret_more)
{
    static struct scan_wait wait;

    memset(&wait, 0, sizeof(wait));
    wait.scan = (struct store_scan){
        .start = bytes_of_text(start),
        .end = bytes_of_text(end),
        .items_max = max,
        .on_done = on_scan,
    };
    store_scan_start(place->store, &wait.scan);
    place_run(place, &wait.done);
    assert_int_equal(wait.err, 0);
    if (ret_more != NULL)
        *ret_more = wait.more;
    return wait.text;
}

/* --- the tests, each for both kinds --- */

static void
check_put_get_delete(struct place *place)
{
    struct commit_wait wait = {0};
    uint64_t first, second, revision;

    assert_string_equal(get(place, "a", NULL), "-");
    assert_int_equal(put(place, "a", "1", &first), 0);
    assert_int_equal(put(place, "b", "2", &second), 0);
    assert_true(second > first);
    assert_string_equal(get(place, "a", &revision), "1");
    assert_true(revision == first);
    assert_int_equal(put(place, "a", "", NULL), 0);
    assert_string_equal(get(place, "a", &revision), ""); /* empty is not deleted */
    assert_true(revision > second);
    store_batch_delete(&wait.batch, bytes_of_text("a"));
    store_batch_delete(&wait.batch, bytes_of_text("never there"));
    store_batch_put(&wait.batch, bytes_of_text("b"), bytes_of_text("3"));
    commit_start(place, &wait, NULL, 0);
    assert_int_equal(commit_finish(place, &wait), 0);
    assert_string_equal(get(place, "a", NULL), "-");
    assert_string_equal(get(place, "b", NULL), "3");
}

static void
check_scan(struct place *place)
{
    bool more;

    assert_int_equal(put(place, "v/b", "2", NULL), 0);
    assert_int_equal(put(place, "v/a", "1", NULL), 0);
    assert_int_equal(put(place, "v/ab", "12", NULL), 0);
    assert_int_equal(put(place, "w", "x", NULL), 0);
    assert_int_equal(put(place, "u", "x", NULL), 0);
    assert_string_equal(scan(place, "v/", "v0", 10, &more), "v/a=1 v/ab=12 v/b=2");
    assert_false(more);
    assert_string_equal(scan(place, "v/", "v0", 2, &more), "v/a=1 v/ab=12");
    assert_true(more);
    assert_string_equal(scan(place, "v/", "v0", 3, &more), "v/a=1 v/ab=12 v/b=2");
    assert_false(more);
    assert_string_equal(scan(place, "v/a", "v/ab", 10, &more), "v/a=1"); /* the end is outside */
    assert_string_equal(scan(place, "x", "y", 10, &more), "");
    assert_string_equal(scan(place, "y", "x", 10, &more), "");
}

static void
check_guard(struct place *place)
{
    struct commit_wait wait = {0};
    uint64_t revision;

    assert_int_equal(put(place, "leader", "one", &revision), 0);
    store_batch_put(&wait.batch, bytes_of_text("a"), bytes_of_text("1"));
    commit_start(place, &wait, "leader", revision);
    assert_int_equal(commit_finish(place, &wait), 0);

    /* Somebody else takes over: nothing of a commit under the old guard takes effect. */
    assert_int_equal(put(place, "leader", "two", NULL), 0);
    memset(&wait, 0, sizeof(wait));
    store_batch_put(&wait.batch, bytes_of_text("a"), bytes_of_text("2"));
    store_batch_put(&wait.batch, bytes_of_text("b"), bytes_of_text("2"));
    commit_start(place, &wait, "leader", revision);
    assert_int_equal(commit_finish(place, &wait), -DL_E_STORE_CONFLICT);
    assert_string_equal(get(place, "a", NULL), "1");
    assert_string_equal(get(place, "b", NULL), "-");

    /* Revision 0: it must not be there. */
    memset(&wait, 0, sizeof(wait));
    store_batch_put(&wait.batch, bytes_of_text("b"), bytes_of_text("3"));
    commit_start(place, &wait, "b", 0);
    assert_int_equal(commit_finish(place, &wait), 0);
    memset(&wait, 0, sizeof(wait));
    store_batch_put(&wait.batch, bytes_of_text("b"), bytes_of_text("4"));
    commit_start(place, &wait, "b", 0);
    assert_int_equal(commit_finish(place, &wait), -DL_E_STORE_CONFLICT);
}

/*
 * Many at once: they complete in order, and each guard sees the commits before it, also those of
 * its own group.
 */
static void
check_many_in_flight(struct place *place)
{
    enum { COUNT = 100 };
    static struct commit_wait waits[COUNT];
    uint64_t revision;
    char text[16];

    memset(waits, 0, sizeof(waits));
    commit_order = 0;
    assert_int_equal(put(place, "g", "0", &revision), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        (void)snprintf(text, sizeof(text), "%u", i);
        store_batch_put(&waits[i].batch, bytes_of_text("n"), bytes_of_text(text));
        if (i == 50) /* from here on the guard does not hold any more */
            store_batch_put(&waits[i].batch, bytes_of_text("g"), bytes_of_text("1"));
        commit_start(place, &waits[i], "g", revision);
    }
    commit_order = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(commit_finish(place, &waits[i]), i <= 50 ? 0 : -DL_E_STORE_CONFLICT);
        assert_int_equal(waits[i].order, i + 1);
        if (i > 0 && i <= 50)
            assert_true(waits[i].commit.revision > waits[i - 1].commit.revision);
    }
    assert_string_equal(get(place, "n", NULL), "50");
    assert_string_equal(get(place, "g", NULL), "1");
}

/*
 * A get behind a commit that was started before it, without waiting: both are there, in this order.
 */
static void
check_get_behind_commit(struct place *place)
{
    struct commit_wait commit = {0};
    struct get_wait wait = {.get = {.key = {"k", 1}, .on_done = on_get}};

    store_batch_put(&commit.batch, bytes_of_text("k"), bytes_of_text("v"));
    commit_start(place, &commit, NULL, 0);
    store_get_start(place->store, &wait.get);
    place_run(place, &wait.done);
    assert_true(commit.done);
    assert_int_equal(wait.err, 0);
    assert_string_equal(wait.value, "v");
    assert_int_equal(commit_finish(place, &commit), 0);
}

static void
check_restart(struct place *place)
{
    uint64_t before, after;

    assert_int_equal(put(place, "a", "1", &before), 0);
    place_close(place);
    place_open(place, STORE_ROCKSDB_OPEN);
    assert_string_equal(get(place, "a", &after), "1");
    assert_true(after == before);
    assert_int_equal(put(place, "b", "2", &after), 0);
    assert_true(after > before); /* revisions go on where they were */
}

static void
with_both(void (*check)(struct place *place))
{
    struct place place;

    for (int rocksdb = 0; rocksdb <= 1; rocksdb++) {
        place_init(&place, rocksdb != 0);
        check(&place);
        place_fini(&place);
    }
}

static void
test_put_get_delete(void **state)
{
    (void)state;
    with_both(check_put_get_delete);
}

static void
test_scan(void **state)
{
    (void)state;
    with_both(check_scan);
}

static void
test_guard(void **state)
{
    (void)state;
    with_both(check_guard);
}

static void
test_many_in_flight(void **state)
{
    (void)state;
    with_both(check_many_in_flight);
}

static void
test_get_behind_commit(void **state)
{
    (void)state;
    with_both(check_get_behind_commit);
}

static void
test_restart(void **state)
{
    (void)state;
    with_both(check_restart);
}

/* --- RocksDB alone --- */

static void
test_rocksdb_places(void **state)
{
    struct place place;
    struct store_rocksdb_options options = {.post = place_post, .post_context = &place};
    struct store *second = NULL;
    struct dl_error err;
    char nowhere[128];

    (void)state;
    place_init(&place, true);
    /* In use by another: one writer only, but a reader sees what is committed. */
    assert_int_equal(store_rocksdb_open(&second, place.path, &options, &err), -DL_E_DISK_BUSY);
    assert_non_null(strstr(err.text, place.path));
    assert_int_equal(put(&place, "a", "1", NULL), 0);
    options.mode = STORE_ROCKSDB_READ_ONLY;
    assert_int_equal(store_rocksdb_open(&second, place.path, &options, &err), 0);
    {
        struct store *writer = place.store;

        place.store = second;
        assert_string_equal(get(&place, "a", NULL), "1");
        assert_int_equal(put(&place, "a", "2", NULL), -DL_E_MEDIA_WRITE); /* it only reads */
        place.store = writer;
    }
    store_rocksdb_close(second);
    assert_string_equal(get(&place, "a", NULL), "1");
    options.mode = STORE_ROCKSDB_CREATE;
    assert_int_equal(store_rocksdb_open(&second, place.path, &options, &err), -DL_E_DISK_FOREIGN);
    options.mode = STORE_ROCKSDB_OPEN;
    (void)snprintf(nowhere, sizeof(nowhere), "%s/nowhere", place.dir);
    assert_int_equal(store_rocksdb_open(&second, nowhere, &options, &err), -DL_E_NOT_FOUND);
    assert_non_null(strstr(err.hint, "init"));
    options.mode = STORE_ROCKSDB_CREATE;
    (void)snprintf(nowhere, sizeof(nowhere), "%s/no/where", place.dir);
    assert_int_equal(store_rocksdb_open(&second, nowhere, &options, &err), -ENOENT);
    place_fini(&place);
}

/*
 * Closed with requests in flight: they are finished, without on_done, and what they did is durable.
 */
static void
test_rocksdb_close_finishes(void **state)
{
    struct place place;
    struct commit_wait wait = {0};

    (void)state;
    place_init(&place, true);
    store_batch_put(&wait.batch, bytes_of_text("a"), bytes_of_text("1"));
    commit_start(&place, &wait, NULL, 0);
    place_close(&place);
    assert_false(wait.done);
    store_batch_fini(&wait.batch);
    place.message = NULL;
    place_open(&place, STORE_ROCKSDB_OPEN);
    assert_string_equal(get(&place, "a", NULL), "1");
    place_fini(&place);
}

/* A table file that was damaged is an error, not an empty store. */
static void
test_rocksdb_damage_is_an_error(void **state)
{
    struct place place;
    struct store_rocksdb_options options = {.post = place_post, .post_context = &place};
    struct dl_error err;
    struct store *store;
    char current[160];
    FILE *file;

    (void)state;
    place_init(&place, true);
    assert_int_equal(put(&place, "a", "1", NULL), 0);
    store_rocksdb_close(place.store);
    (void)snprintf(current, sizeof(current), "%s/CURRENT", place.path);
    file = fopen(current, "w");
    assert_non_null(file);
    assert_true(fputs("MANIFEST-999999\n", file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_true(store_rocksdb_open(&store, place.path, &options, &err) < 0);
    assert_non_null(strstr(err.text, place.path));
    file = fopen(current, "w");
    assert_non_null(file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(store_rocksdb_open(&store, place.path, &options, &err), -DL_E_STORE_DAMAGED);
    assert_int_equal(store_rocksdb_remove(place.path, NULL), 0);
    place_open(&place, STORE_ROCKSDB_CREATE);
    place_fini(&place);
}

/* --- in memory alone: crashes --- */

static void
test_memory_crash_keeps_a_prefix(void **state)
{
    enum { COUNT = 5 };

    (void)state;
    for (uint64_t keep = 0; keep <= COUNT; keep++) {
        struct place place;
        struct commit_wait waits[COUNT] = {0};
        char text[16];

        place_init(&place, false);
        assert_int_equal(put(&place, "n", "before", NULL), 0);
        for (unsigned i = 0; i < COUNT; i++) {
            (void)snprintf(text, sizeof(text), "%u", i + 1);
            store_batch_put(&waits[i].batch, bytes_of_text("n"), bytes_of_text(text));
            commit_start(&place, &waits[i], NULL, 0);
        }
        store_memory_crash(place.store, keep);
        fake_env_crash(&place.env);
        place_open(&place, STORE_ROCKSDB_OPEN);
        (void)snprintf(text, sizeof(text), "%u", (unsigned)keep);
        assert_string_equal(get(&place, "n", NULL), keep == 0 ? "before" : text);
        for (unsigned i = 0; i < COUNT; i++) {
            assert_false(waits[i].done);
            store_batch_fini(&waits[i].batch);
        }
        place_fini(&place);
    }
}

static void
test_memory_delays_and_failures(void **state)
{
    struct place place;
    struct store_memory_options options = {.delay_ns_min = 1000, .delay_ns_max = 5000};
    struct commit_wait waits[10] = {0};

    (void)state;
    place_init(&place, false);
    store_memory_close(place.store);
    place.store = store_memory_open(place.db, &place.env.env, &options);
    commit_order = 0;
    for (unsigned i = 0; i < 10; i++) {
        store_batch_put(&waits[i].batch, bytes_of_text("n"), bytes_of_text("x"));
        commit_start(&place, &waits[i], NULL, 0);
    }
    fake_env_settle(&place.env);
    assert_false(waits[0].done); /* time must pass */
    assert_int_equal(store_memory_in_flight(place.store), 10);
    fake_env_run_for(&place.env, 5000);
    for (unsigned i = 0; i < 10; i++) {
        assert_true(waits[i].done);
        assert_int_equal(waits[i].order, i + 1);
        store_batch_fini(&waits[i].batch);
    }
    store_memory_fail_commits(place.store, -DL_E_MEDIA_WRITE);
    memset(&waits[0], 0, sizeof(waits[0]));
    store_batch_put(&waits[0].batch, bytes_of_text("n"), bytes_of_text("y"));
    commit_start(&place, &waits[0], NULL, 0);
    fake_env_run_for(&place.env, 5000);
    assert_int_equal(commit_finish(&place, &waits[0]), -DL_E_MEDIA_WRITE);
    assert_int_equal(store_memory_db_count(place.db), 1);
    assert_memory_equal(store_memory_db_item(place.db, 0).value.bytes, "x", 1);
    place_fini(&place);
}

UNIT_MAIN(cmocka_unit_test(test_put_get_delete), cmocka_unit_test(test_scan),
          cmocka_unit_test(test_guard), cmocka_unit_test(test_many_in_flight),
          cmocka_unit_test(test_get_behind_commit), cmocka_unit_test(test_restart),
          cmocka_unit_test(test_rocksdb_places), cmocka_unit_test(test_rocksdb_close_finishes),
          cmocka_unit_test(test_rocksdb_damage_is_an_error),
          cmocka_unit_test(test_memory_crash_keeps_a_prefix),
          cmocka_unit_test(test_memory_delays_and_failures))
