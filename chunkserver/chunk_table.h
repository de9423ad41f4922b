/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chunk_table.h: what a chunkserver remembers about each chunk and each volume, in memory.
 *
 * Used by the storage engine (which makes it durable) and by the simulator's model of it.  No I/O
 * here.
 *
 * Pending writes: one entry per durable write above the chunk's stable version S, kept until S
 * passes it.  The list is exact: a version above S is durable here if and only if it is listed (a
 * write that lost against a higher version of all its sectors is listed as well).  That answers
 * retries, and it is what a fence reports.  Writes beyond CHUNK_PENDING_MAX versions above S are
 * refused with -DL_E_BUSY.
 *
 * Invariants:
 * 1. At most one chunk per key is CHUNK_PRESENT.  Chunks that are CHUNK_DELETING are found by local
 *    id only.
 * 2. pending[] ascends strictly, and every entry is above stable_version.
 * 3. config_epoch, stable_version and a volume's lease epoch never go down.
 * 4. stable_version of a recovering chunk does not change before it is promoted.
 *
 * Threads: one owner.  Blocks: never.
 * Errors:  none; without memory the process ends.
 * Memory:  chunks and volumes are the table's; pointers stay valid until chunk_table_remove() or
 *          _destroy().
 */
#ifndef DLBLK_CHUNKSERVER_CHUNK_TABLE_H
#define DLBLK_CHUNKSERVER_CHUNK_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include <uthash.h>

#include "chunkserver/chunk_store.h"
#include "common/list.h"

#define CHUNK_PENDING_MAX 4096u
/*
 * The rewrites of a takeover come on top: it must not be held up by what the owner before it left.
 * One rewrites each pending sector once, in runs; if new owners die again and again before S rises,
 * the next ones' rewrites pile up, so even they have a bound: 1 MiB of memory.
 */
#define CHUNK_PENDING_TAKEOVER_MAX (16 * CHUNK_PENDING_MAX)

enum chunk_state {
    CHUNK_PRESENT = 1,
    CHUNK_DELETING = 2, /* deleted, its space is being given back; requests see an unknown chunk */
};

struct pending_write {
    uint64_t version;
    uint32_t offset_sectors;
    uint32_t length_sectors : 31;
    /* Part of that write, from another slot: to be reported, but no answer to a retry. */
    uint32_t pulled : 1;
};

#define CHUNK_STEPS_MAX 4u

/* S of the sectors from first_sector on to the next step. */
struct chunk_step {
    uint32_t first_sector;
    uint64_t stable_version;
};

struct chunk {
    struct chunk_key key;
    uint64_t local_id;     /* on this disk, never used again */
    uint32_t incarnation;  /* config epoch that created it */
    uint32_t config_epoch; /* requests below it are refused */
    uint64_t stable_version;
    enum chunk_state state;
    /* Recovery: docs/recovery.md.  Without attempt all of it is 0. */
    uint32_t attempt; /* config epoch of the attempt; 0: in-sync, as far as it knows */
    uint32_t cursor_sectors;
    uint64_t heard_version;
    uint64_t reported_version;                /* the highest S of its sources in this attempt */
    struct chunk_step steps[CHUNK_STEPS_MAX]; /* ascending sectors, S never rises */
    uint32_t step_count;
    struct pending_write *pending;            /* ascending versions */
    uint32_t pending_count, pending_capacity; /* of the room from `pending` on */
    struct chunk_volume *volume;
    void *store_private; /* the store's own, by chunk */
    /* for the table */
    struct pending_write *pending_memory; /* what was allocated: `pending` moves up in it */
    UT_hash_handle by_key;                /* CHUNK_PRESENT only */
    UT_hash_handle by_local_id;
    struct list volume_node;
};

/* A volume that has, or had, chunks here, or was fenced here. */
struct chunk_volume {
    uint64_t volume;
    uint32_t lease_epoch; /* the fence: requests below it are refused; 0: none */
    struct list chunks;   /* struct chunk.volume_node, in every state */
    void *store_private;
    UT_hash_handle by_volume;
};

struct chunk_table {
    struct chunk *by_key, *by_local_id; /* uthash heads */
    struct chunk_volume *volumes;
    uint64_t chunk_count; /* CHUNK_PRESENT */
};

struct chunk_table *chunk_table_create(void);
/* What store_private names is the store's to free before.  NULL is allowed. */
void chunk_table_destroy(struct chunk_table *table);

/* NULL: unknown, or being deleted. */
struct chunk *chunk_table_find(const struct chunk_table *table, const struct chunk_key *key);
/* In every state. */
struct chunk *chunk_table_find_local(const struct chunk_table *table, uint64_t local_id);
/*
 * The key must be unknown, the local id new.  config_epoch is the incarnation, stable_version 0,
 * nothing pending.
 */
struct chunk *chunk_table_add(struct chunk_table *table, const struct chunk_key *key,
                              uint64_t local_id, uint32_t incarnation);
/*
 * From CHUNK_PRESENT to CHUNK_DELETING: the key is free for a new chunk; the pending list is
 * dropped.
 */
void chunk_table_delete(struct chunk_table *table, struct chunk *chunk);
/* Forget a chunk in any state. */
void chunk_table_remove(struct chunk_table *table, struct chunk *chunk);

/* NULL: nothing is known of it. */
struct chunk_volume *chunk_table_volume(const struct chunk_table *table, uint64_t volume);
/* Made if it is not there. */
struct chunk_volume *chunk_table_volume_get(struct chunk_table *table, uint64_t volume);
/* The lease epoch below which requests of the volume are refused; 0: none. */
uint32_t chunk_table_fence(const struct chunk_table *table, uint64_t volume);
/* To lease_epoch or to what it is, whichever is higher. */
void chunk_table_fence_raise(struct chunk_table *table, uint64_t volume, uint32_t lease_epoch);

/*
 * Is this version durable here?  At or below S (or what was heard under the attempt), or listed as
 * written.
 */
bool chunk_version_is_durable(const struct chunk *chunk, uint64_t version);
/* A write became durable.  No effect if it is at or below S, or listed already. */
void chunk_pending_add(struct chunk *chunk, uint64_t version, uint32_t offset_sectors,
                       uint32_t length_sectors);
/*
 * Part of a write that another slot has above its S is here now: listed as pulled, with the range
 * that holds all its parts.  No effect if it is at or below S, or listed as written.
 */
void chunk_pending_add_pulled(struct chunk *chunk, uint64_t version, uint32_t offset_sectors,
                              uint32_t length_sectors);
/* S rises (or stays); entries at or below it are dropped.  Returns whether it rose. */
bool chunk_stable_raise(struct chunk *chunk, uint64_t stable_version);
/*
 * A stable version as it came, with the attempt that it names (0: none).  Of an in-sync chunk S
 * rises; of a recovering one, under its own attempt, heard_version, and what it covers leaves the
 * pending list; else it is ignored.  Returns whether anything rose.
 */
bool chunk_stable_hear(struct chunk *chunk, uint32_t attempt, uint64_t stable_version);
/*
 * A new attempt (rules 8 and 9): the steps of the chunk's next life from what it remembers; the
 * pending list is emptied.  What lies above its step must be void by then.
 */
void chunk_attempt_begin(struct chunk *chunk, uint32_t attempt);
/* S of a source, as it said with what was pulled under the chunk's attempt, or at the end of it. */
void chunk_sources_hear(struct chunk *chunk, uint64_t stable_version);
/* The steps that chunk_attempt_begin() would set; returns how many. */
uint32_t chunk_attempt_steps(const struct chunk *chunk, struct chunk_step steps[CHUNK_STEPS_MAX]);
/* S of a sector of a recovering chunk: its step. */
uint64_t chunk_step_version(const struct chunk *chunk, uint32_t sector);
/*
 * In-sync again: S rises to reported_version, heard_version or the first step, whichever is highest
 * (all slots have what is below any of them, and this one has pulled what it missed); the rest of
 * the recovery is forgotten.  The config epoch rises.  There is no effect beyond that if the chunk
 * is in-sync.
 */
void chunk_promote(struct chunk *chunk, uint32_t config_epoch);

/* The highest version that is known to be durable here. */
uint64_t chunk_version_max(const struct chunk *chunk);

#endif
