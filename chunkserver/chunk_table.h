/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chunk_table.h: what a chunkserver remembers about each chunk and each volume, in memory.
 *
 * Used by the storage engine (which makes it durable) and by the simulator's model of it.  No I/O here.
 *
 * Pending writes: one entry per durable write above the chunk's stable version S, kept until S passes it.  The list is
 * exact: a version above S is durable here if and only if it is listed (a write that lost against a higher version of
 * all its sectors is listed as well).  That answers retries, and it is what a fence reports.
 * The client bounds it: at most CHUNK_PENDING_MAX versions above S are ever sent.
 *
 * Threads: one owner.
 */
#ifndef DLBLK_CHUNKSERVER_CHUNK_TABLE_H
#define DLBLK_CHUNKSERVER_CHUNK_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_store.h"

#define CHUNK_PENDING_MAX 4096u

enum chunk_state {
    CHUNK_PRESENT = 1,
    CHUNK_DELETING = 2, /* deleted durably, its space is being given back; requests see an unknown chunk */
};

struct pending_write {
    uint64_t version;
    uint32_t offset_sectors;
    uint32_t length_sectors;
};

struct chunk {
    struct chunk_key key;
    uint64_t local_id;    /* on this disk, never used again */
    uint32_t incarnation; /* config epoch that created it */
    uint32_t config_epoch; /* requests below it are refused */
    uint64_t stable_version;
    enum chunk_state state;
    struct pending_write *pending; /* ascending versions */
    uint32_t pending_count, pending_capacity;
    void *store_private; /* the store's own, by chunk */
    /* uthash handles: by key, by local_id; list of its volume: see chunk_table.c */
};

/* The full declaration of the functions is the author's of chunk_table.c. */

#endif
