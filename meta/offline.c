/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/offline.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "meta/memory.h"
#include "meta/schema.h"
#include "meta/store_rocksdb.h"

#define PATH_BYTES 4096
#define WALK_PAGE  1024u
#define OPEN_TRIES 5

struct offline {
    struct store *store;
    bool creating;
    char dir[PATH_BYTES];
    char path[PATH_BYTES]; /* of the store as it is now */
    char final_path[PATH_BYTES];
    pthread_mutex_t lock;
    pthread_cond_t posted;
    struct loop_message *message;
};

/* --- in place of a loop: the one thread waits for the store's messages --- */

static void
offline_post(void *context, struct loop_message *message)
{
    struct offline *offline = context;

    (void)pthread_mutex_lock(&offline->lock);
    offline->message = message;
    (void)pthread_cond_signal(&offline->posted);
    (void)pthread_mutex_unlock(&offline->lock);
}

static void
offline_run(struct offline *offline)
{
    struct loop_message *message;

    (void)pthread_mutex_lock(&offline->lock);
    while (offline->message == NULL)
        (void)pthread_cond_wait(&offline->posted, &offline->lock);
    message = offline->message;
    offline->message = NULL;
    (void)pthread_mutex_unlock(&offline->lock);
    message->fn(message);
}

/* --- life --- */

static int
path_join(char *path, size_t path_bytes, const char *dir, const char *name, struct dl_error *err)
{
    int length = snprintf(path, path_bytes, "%s/%s", dir, name);

    if (length < 0 || (size_t)length >= path_bytes)
        return dl_error_set(err, -ENAMETOOLONG, "the path of the directory is too long");
    return 0;
}

int
offline_store_path(const char *dir, char *path, size_t path_bytes, struct dl_error *err)
{
    return path_join(path, path_bytes, dir, "db", err);
}

static int
offline_prepare(struct offline **ret_offline, const char *dir, struct dl_error *err)
{
    struct offline *offline = meta_alloc(sizeof(*offline));
    int result = offline_store_path(dir, offline->final_path, sizeof(offline->final_path), err);

    if (result < 0) {
        free(offline);
        return result;
    }
    memcpy(offline->path, offline->final_path, sizeof(offline->path));
    (void)snprintf(offline->dir, sizeof(offline->dir), "%s", dir);
    (void)pthread_mutex_init(&offline->lock, NULL);
    (void)pthread_cond_init(&offline->posted, NULL);
    *ret_offline = offline;
    return 0;
}

static int
offline_open_store(struct offline *offline, enum store_rocksdb_mode mode, struct dl_error *err)
{
    struct store_rocksdb_options options = {
        .mode = mode,
        .post = offline_post,
        .post_context = offline,
    };

    return store_rocksdb_open(&offline->store, offline->path, &options, err);
}

int
offline_open(struct offline **ret_offline, const char *dir, struct dl_error *err)
{
    struct offline *offline;
    int result = offline_prepare(&offline, dir, err);

    if (result < 0)
        return result;
    /* A service that runs may delete a file between our list of files and its opening. */
    for (int i = 0; i < OPEN_TRIES; i++) {
        result = offline_open_store(offline, STORE_ROCKSDB_READ_ONLY, err);
        if (result == 0 || result == -DL_E_NOT_FOUND)
            break;
    }
    if (result < 0) {
        offline_close(offline);
        return result;
    }
    *ret_offline = offline;
    return 0;
}

/*
 * What belongs to the product is made where it is missing; if it can't be, mkdir() below says so.
 */
#define STATE_DIRECTORY "/var/lib/dlblk"

static int
offline_make_place(struct offline *offline, struct dl_error *err)
{
    struct stat status;

    if (strncmp(offline->dir, STATE_DIRECTORY "/", strlen(STATE_DIRECTORY) + 1) == 0)
        (void)mkdir(STATE_DIRECTORY, 0700);
    if (mkdir(offline->dir, 0700) < 0 && errno != EEXIST) {
        (void)dl_error_set(err, -errno, "the directory %s can not be made: %s", offline->dir,
                           dl_err_str(-errno));
        dl_error_hint(err, "its parent directory must exist and be writable");
        return err->code;
    }
    if (stat(offline->final_path, &status) == 0) {
        (void)dl_error_set(err, -DL_E_DISK_FOREIGN,
                           "the directory %s holds a cluster's metadata already", offline->dir);
        dl_error_hint(err, "name another directory with --dir; nothing was changed");
        return err->code;
    }
    if (path_join(offline->path, sizeof(offline->path), offline->dir, "db.new", err) < 0)
        return err->code;
    return store_rocksdb_remove(offline->path, err);
}

int
offline_create(struct offline **ret_offline, const char *dir, struct dl_error *err)
{
    struct offline *offline;
    struct dl_error unused;
    int result;

    if (err == NULL)
        err = &unused;
    result = offline_prepare(&offline, dir, err);
    if (result < 0)
        return result;
    result = offline_make_place(offline, err);
    if (result == 0)
        result = offline_open_store(offline, STORE_ROCKSDB_CREATE, err);
    offline->creating = result == 0;
    if (result < 0) {
        offline_close(offline);
        return result;
    }
    *ret_offline = offline;
    return 0;
}

static int
sync_directory(const char *path)
{
    DL_CLEANUP(close) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int
offline_finish(struct offline *offline, struct dl_error *err)
{
    int result;

    store_rocksdb_close(offline->store);
    offline->store = NULL;
    result = sync_directory(offline->path);
    if (result == 0 && rename(offline->path, offline->final_path) < 0)
        result = -errno;
    if (result == 0) {
        offline->creating = false;
        result = sync_directory(offline->dir);
    }
    if (result < 0)
        (void)dl_error_set(err, result, "the store %s could not be put into its place: %s",
                           offline->path, dl_err_str(result));
    offline_close(offline);
    return result;
}

void
offline_close(struct offline *offline)
{
    if (offline == NULL)
        return;
    store_rocksdb_close(offline->store);
    if (offline->creating)
        (void)store_rocksdb_remove(offline->path, NULL);
    (void)pthread_cond_destroy(&offline->posted);
    (void)pthread_mutex_destroy(&offline->lock);
    free(offline);
}

/* --- work --- */

struct waiting_commit {
    struct store_commit commit;
    bool done;
    int err;
};

static void
offline_on_commit(struct store_commit *commit, int err)
{
    struct waiting_commit *waiting = (struct waiting_commit *)commit;

    waiting->done = true;
    waiting->err = err;
}

int
offline_commit(struct offline *offline, const struct store_batch *batch, struct dl_error *err)
{
    struct waiting_commit waiting = {.commit = {.batch = batch, .on_done = offline_on_commit}};

    store_commit_start(offline->store, &waiting.commit);
    while (!waiting.done)
        offline_run(offline);
    if (waiting.err < 0)
        return dl_error_set(err, waiting.err, "the metadata store %s can not be written: %s",
                            offline->path, store_rocksdb_failure_text(offline->store));
    return 0;
}

struct waiting_scan {
    struct store_scan scan;
    bool done;
    bool more;
    int result;
    struct schema_key next;
    int (*fn)(void *context, struct store_item item, struct dl_error *err);
    void *context;
    struct dl_error *err;
    struct offline *offline;
};

static void
offline_on_scan(struct store_scan *scan, int err)
{
    struct waiting_scan *waiting = (struct waiting_scan *)scan;

    waiting->done = true;
    waiting->result = err;
    if (err < 0)
        (void)dl_error_set(waiting->err, err, "the metadata store %s can not be read: %s",
                           waiting->offline->path,
                           store_rocksdb_failure_text(waiting->offline->store));
    for (uint32_t i = 0; waiting->result == 0 && i < scan->item_count; i++)
        waiting->result = waiting->fn(waiting->context, scan->items[i], waiting->err);
    waiting->more = scan->more;
    if (scan->item_count > 0)
        waiting->next = schema_key_next(scan->items[scan->item_count - 1].key);
}

int
offline_walk(struct offline *offline,
             int (*fn)(void *context, struct store_item item, struct dl_error *err), void *context,
             struct dl_error *err)
{
    struct schema_key end = schema_key_text("\x7f");
    struct waiting_scan waiting = {
        .next = schema_key_text("\x01"),
        .fn = fn,
        .context = context,
        .err = err,
        .offline = offline,
        .more = true,
    };

    while (waiting.more && waiting.result == 0) {
        struct schema_key start = waiting.next;

        waiting.done = false;
        waiting.scan = (struct store_scan){
            .start = schema_bytes(&start),
            .end = schema_bytes(&end),
            .items_max = WALK_PAGE,
            .on_done = offline_on_scan,
        };
        store_scan_start(offline->store, &waiting.scan);
        while (!waiting.done)
            offline_run(offline);
    }
    return waiting.result;
}
