/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offline.h: a metadata directory without a loop: for init, backup and restore.
 *
 * A metadata directory holds the store in `db`.  A new store is made as `db.new` and renamed when
 * it is complete, so that a crash in the middle leaves no half of one; what it leaves is removed by
 * the next try.
 *
 * Threads: one.  Blocks: all of it.  Errors: 0 or negative, with a text in err.
 */
#ifndef DLBLK_META_OFFLINE_H
#define DLBLK_META_OFFLINE_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/error.h"
#include "meta/store.h"

struct offline;

/* DIR/db */
int offline_store_path(const char *dir, char *path, size_t path_bytes, struct dl_error *err);

/* Read-only, also while a service runs on it. */
int offline_open(struct offline **ret_offline, const char *dir, struct dl_error *err);
/* A new store, not there before; the directory is made if its parent exists. */
int offline_create(struct offline **ret_offline, const char *dir, struct dl_error *err);
/*
 * The new store is complete: from now on it is the directory's.  Closes it, also after a failure.
 */
int offline_finish(struct offline *offline, struct dl_error *err);
/* NULL is allowed.  A new store that was not finished is removed. */
void offline_close(struct offline *offline);

int offline_commit(struct offline *offline, const struct store_batch *batch, struct dl_error *err);
/* Every item in order; fn returns 0, or a negative error that ends the walk. */
int offline_walk(struct offline *offline,
                 int (*fn)(void *context, struct store_item item, struct dl_error *err),
                 void *context, struct dl_error *err);

#endif
