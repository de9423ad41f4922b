/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backup and restore: what is restored is what was backed up, with higher lease epochs and ids; a
 * file that is cut or changed in any byte is refused before anything is made of it; nothing that
 * exists is overwritten.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "meta/backup.h"
#include "meta/meta.pb-c.h"
#include "meta/offline.h"
#include "meta/schema.h"
#include "meta/store_rocksdb.h"

#define MIB (1ull << 20)

struct backup_test {
    char dir[64];
    char store[96];    /* what is backed up */
    char restored[96]; /* where to */
    char file[96];
    struct fixture f;
    Dl__Volume volume;
};

/* Puts what a fixture's database holds into a metadata directory. */
static void
put_into_directory(const struct fixture *f, const char *dir)
{
    struct store_batch batch = {0};
    struct offline *offline;
    struct dl_error err;

    for (uint32_t i = 0; i < store_memory_db_count(f->db); i++) {
        struct store_item item = store_memory_db_item(f->db, i);

        store_batch_put(&batch, item.key, item.value);
    }
    assert_int_equal(offline_create(&offline, dir, &err), 0);
    assert_int_equal(offline_commit(offline, &batch, &err), 0);
    assert_int_equal(offline_finish(offline, &err), 0);
    store_batch_fini(&batch);
}

static void
backup_init(struct backup_test *t)
{
    struct peer *client;

    memset(t, 0, sizeof(*t));
    (void)snprintf(t->dir, sizeof(t->dir), "/tmp/dlblk-test-backup-XXXXXX");
    assert_non_null(mkdtemp(t->dir));
    (void)snprintf(t->store, sizeof(t->store), "%s/store", t->dir);
    (void)snprintf(t->restored, sizeof(t->restored), "%s/restored", t->dir);
    (void)snprintf(t->file, sizeof(t->file), "%s/backup", t->dir);
    fixture_init(&t->f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&t->f, i + 1, "h");
    client = fixture_client(&t->f);
    assert_int_equal(ask_create(client, "v", 64 * MIB, &t->volume), 0);
    assert_int_equal(ask_create(client, "w", 64 * MIB, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(client, t->volume.id, 1, 0, 20, NULL), 0);
    assert_int_equal(ask_detach(client, t->volume.id, 1, true), 0);
    put_into_directory(&t->f, t->store);
}

static void
remove_directory(const char *dir)
{
    char path[160];

    (void)snprintf(path, sizeof(path), "%s/db", dir);
    assert_int_equal(store_rocksdb_remove(path, NULL), 0);
    (void)snprintf(path, sizeof(path), "%s/db.new", dir);
    assert_int_equal(store_rocksdb_remove(path, NULL), 0);
    (void)rmdir(dir);
}

static void
backup_fini(struct backup_test *t)
{
    fixture_fini(&t->f);
    remove_directory(t->store);
    remove_directory(t->restored);
    (void)unlink(t->file);
    assert_int_equal(rmdir(t->dir), 0);
}

static bool
exists(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0;
}

static int
item_to_db(void *context, struct store_item item, struct dl_error *err)
{
    (void)err;
    store_memory_db_put(context, item.key, item.value);
    return 0;
}

/* The fixture goes on with what was restored. */
static void
start_on_restored(struct backup_test *t)
{
    struct offline *offline;
    struct dl_error err;

    fixture_crash(&t->f, 0);
    store_memory_db_destroy(t->f.db);
    t->f.db = store_memory_db_create();
    assert_int_equal(offline_open(&offline, t->restored, &err), 0);
    assert_int_equal(offline_walk(offline, item_to_db, t->f.db, &err), 0);
    offline_close(offline);
    fixture_start(&t->f);
    assert_true(t->f.ready);
}

static void
test_backup_and_restore(void **state)
{
    struct backup_test t;
    struct backup_report written, restored;
    struct dl_error err;
    struct peer *client;
    Dl__Volume volume;
    Dl__AttachReply *reply;

    (void)state;
    backup_init(&t);
    if (backup_write(t.store, t.file, false, &written, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(written.volumes, 2);
    assert_int_equal(written.segments, 20);
    assert_int_equal(written.servers, 3);
    assert_memory_equal(written.cluster_id, "cluster-of-tests", 16);
    if (backup_restore(t.restored, t.file, &restored, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(restored.items, written.items);
    assert_int_equal(restored.segments, 20);
    assert_true(restored.created_ms == written.created_ms);
    assert_int_equal(restored.volumes_at_end, 0);

    start_on_restored(&t);
    for (uint32_t i = 0; i < 3; i++) {
        struct peer *server = &t.f.peers[i];

        peer_restart_server(server);
        assert_int_equal(peer_register(server), 0);
        assert_int_equal(server->server_id, i + 1);
    }
    client = fixture_client(&t.f);
    /* Owners since the backup, whose lease epochs nobody here remembers, are shut out. */
    assert_int_equal(ask_attach(client, "v", 2, &reply), 0);
    assert_int_equal(reply->lease_epoch, 1 + BACKUP_LEASE_EPOCHS_SKIP + 1);
    assert_true(reply->takeover);
    assert_int_equal(reply->n_segments, 20);
    dl__attach_reply__free_unpacked(reply, NULL);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(t.f.peers[i].fence_epoch, 1 + BACKUP_LEASE_EPOCHS_SKIP + 1);
    /* Ids that were given since are not given again. */
    assert_int_equal(ask_create(client, "x", MIB, &volume), 0);
    assert_true(volume.id == 3 + BACKUP_VOLUME_IDS_SKIP);
    backup_fini(&t);
}

static void
test_lease_epochs_at_the_end(void **state)
{
    struct backup_test t;
    struct backup_report report;
    struct dl_error err;
    struct peer *client;

    (void)state;
    backup_init(&t);
    fixture_crash(&t.f, 0);
    fixture_raise_lease_epoch(&t.f, t.volume.id, META_LEASE_EPOCH_MAX - 5);
    remove_directory(t.store);
    put_into_directory(&t.f, t.store);
    fixture_start(&t.f);
    assert_int_equal(backup_write(t.store, t.file, false, &report, &err), 0);
    assert_int_equal(backup_restore(t.restored, t.file, &report, &err), 0);
    assert_int_equal(report.volumes_at_end, 1);
    start_on_restored(&t);
    client = fixture_client(&t.f);
    assert_int_equal(ask_attach(client, "v", 2, NULL), -DL_E_LIMIT);
    backup_fini(&t);
}

static void
test_nothing_is_overwritten(void **state)
{
    struct backup_test t;
    struct backup_report report;
    struct dl_error err;

    (void)state;
    backup_init(&t);
    assert_int_equal(backup_write(t.store, t.file, false, &report, &err), 0);
    assert_int_equal(backup_write(t.store, t.file, false, &report, &err), -EEXIST);
    assert_non_null(strstr(err.text, t.file));
    assert_int_equal(backup_write(t.store, t.file, true, &report, &err), 0);
    assert_int_equal(backup_restore(t.store, t.file, &report, &err), -DL_E_DISK_FOREIGN);
    assert_non_null(strstr(err.text, t.store));
    assert_int_equal(backup_write(t.restored, t.file, true, &report, &err), -DL_E_NOT_FOUND);
    assert_true(exists(t.file)); /* a failed backup keeps the old one */
    assert_int_equal(backup_restore(t.restored, t.file, &report, &err), 0);
    assert_int_equal(backup_restore(t.restored, t.file, &report, &err), -DL_E_DISK_FOREIGN);
    assert_int_equal(backup_write(t.store, "/nowhere/at/all", false, &report, &err), -ENOENT);
    assert_int_equal(backup_restore(t.restored, "/nowhere/at/all", &report, &err), -ENOENT);
    backup_fini(&t);
}

static size_t
read_file(const char *path, uint8_t *bytes, size_t bytes_max)
{
    FILE *file = fopen(path, "r");
    size_t count;

    assert_non_null(file);
    count = fread(bytes, 1, bytes_max, file);
    assert_int_equal(fclose(file), 0);
    return count;
}

static void
write_file(const char *path, const uint8_t *bytes, size_t count)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

static void
expect_refused(struct backup_test *t, const char *what, size_t where)
{
    struct backup_report report;
    struct dl_error err;
    int result = backup_restore(t->restored, t->file, &report, &err);

    if (result >= 0)
        fail_msg("%s at %zu was not seen", what, where);
    assert_true(err.text[0] != '\0');
    assert_false(exists(t->restored)); /* nothing was made */
}

static void
test_every_damaged_byte_is_seen(void **state)
{
    static uint8_t good[1 << 20], bad[1 << 20];
    struct backup_test t;
    struct backup_report report;
    struct dl_error err;
    size_t bytes;

    (void)state;
    backup_init(&t);
    assert_int_equal(backup_write(t.store, t.file, false, &report, &err), 0);
    bytes = read_file(t.file, good, sizeof(good));
    assert_in_range(bytes, 1000, sizeof(good) - 1);
    for (size_t i = 0; i < bytes; i++) {
        memcpy(bad, good, bytes);
        bad[i] ^= (uint8_t)(1u << (i % 8));
        write_file(t.file, bad, bytes);
        expect_refused(&t, "a flipped bit", i);
    }
    for (size_t i = 0; i < bytes; i += i < 600 || i + 40 > bytes ? 1 : 7) {
        write_file(t.file, good, i);
        expect_refused(&t, "a cut", i);
    }
    memcpy(bad, good, bytes);
    bad[bytes] = 0;
    write_file(t.file, bad, bytes + 1);
    expect_refused(&t, "one byte more", bytes);
    write_file(t.file, good, bytes);
    assert_int_equal(backup_restore(t.restored, t.file, &report, &err), 0); /* this one is good */
    backup_fini(&t);
}

/* What a crash in the middle of a restore leaves is no store, and the next try removes it. */
static void
test_unfinished_store_is_none(void **state)
{
    struct backup_test t;
    struct backup_report report;
    struct dl_error err;
    struct offline *offline;
    struct store_batch batch = {0};
    char unfinished[160], kept[160];

    (void)state;
    backup_init(&t);
    assert_int_equal(backup_write(t.store, t.file, false, &report, &err), 0);
    assert_int_equal(offline_create(&offline, t.restored, &err), 0);
    store_batch_put(&batch, (struct store_bytes){"leader", 6}, (struct store_bytes){"x", 1});
    assert_int_equal(offline_commit(offline, &batch, &err), 0);
    store_batch_fini(&batch);
    (void)snprintf(unfinished, sizeof(unfinished), "%s/db.new", t.restored);
    (void)snprintf(kept, sizeof(kept), "%s/kept", t.restored);
    assert_true(exists(unfinished));
    assert_int_equal(rename(unfinished, kept), 0); /* as if the process had died here */
    offline_close(offline);
    assert_int_equal(rename(kept, unfinished), 0);
    assert_int_equal(offline_open(&offline, t.restored, &err), -DL_E_NOT_FOUND);
    assert_int_equal(backup_restore(t.restored, t.file, &report, &err), 0);
    assert_false(exists(unfinished));
    start_on_restored(&t);
    backup_fini(&t);
}

UNIT_MAIN(cmocka_unit_test(test_backup_and_restore), cmocka_unit_test(test_lease_epochs_at_the_end),
          cmocka_unit_test(test_nothing_is_overwritten),
          cmocka_unit_test(test_every_damaged_byte_is_seen),
          cmocka_unit_test(test_unfinished_store_is_none))
