/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_memory.h: the store in memory, for tests and the simulator: with delays, and with what a
 * crash may lose.
 *
 * A database outlives the processes that open it, as a directory does.  Each process (a metadata
 * service) has a store on it; when it dies the store is crashed: none of its callbacks runs any
 * more, and of the commits that were not completed a prefix took effect, the rest did not.
 *
 *     struct store_memory_db *db = store_memory_db_create();
 *     struct store *store = store_memory_open(db, env, NULL);
 *     ... meta_core_create(env, store, ...) ...
 *     store_memory_crash(store);                  // then meta_core_destroy()
 *     store = store_memory_open(db, env, NULL);   // the next life
 *
 * Threads: one.
 */
#ifndef DLBLK_META_STORE_MEMORY_H
#define DLBLK_META_STORE_MEMORY_H

#include <stdint.h>

#include "common/env.h"
#include "meta/store.h"

struct store_memory_db;

struct store_memory_options {
    uint64_t delay_ns_min; /* of a completion, drawn by env_random() */
    uint64_t delay_ns_max;
};

struct store_memory_db *store_memory_db_create(void);
void store_memory_db_destroy(struct store_memory_db *db);

/* options may be NULL: completions run in the same turn, by env_defer(). */
struct store *store_memory_open(struct store_memory_db *db, struct env *env,
                                const struct store_memory_options *options);
/*
 * The process dies.  keep_random picks how many of the commits in flight took effect, in [0,
 * count]: the first ones. The store is gone.  No task of it may be queued in the env: between two
 * turns, or after the env forgot all tasks.
 */
void store_memory_crash(struct store *store, uint64_t keep_random);
/* An orderly end; nothing may be in flight. */
void store_memory_close(struct store *store);

/* From now on each commit of this store fails with err, without effect; 0: no more. */
void store_memory_fail_commits(struct store *store, int err);
/* Hold all completions back until they are let go: to look at what is visible meanwhile. */
void store_memory_hold(struct store *store, bool hold);
uint32_t store_memory_in_flight(const struct store *store);

/* --- the database itself, for checks --- */

uint64_t store_memory_db_revision(const struct store_memory_db *db);
uint32_t store_memory_db_count(const struct store_memory_db *db);
/* The item with the idx-th key. */
struct store_item store_memory_db_item(const struct store_memory_db *db, uint32_t idx);
/* Bypasses everything: to make a damaged database. */
void store_memory_db_put(struct store_memory_db *db, struct store_bytes key,
                         struct store_bytes value);

#endif
