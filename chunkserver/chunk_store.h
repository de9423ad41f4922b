/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chunk_store.h: what the chunkserver's core asks of the thing that keeps chunks.
 *
 * Two implementations: the storage engine (chunkserver/engine) on a disk, and the simulator's
 * model of it (tests/sim/model_store.c), which loses on a crash what the engine may lose.  What
 * both must remember about a chunk (epochs, stable version, pending writes, volume fences) is in
 * chunk_table.h, which both use.
 *
 * Division of labour: the core checks epochs and fences against the chunk table before it starts a
 * request, and checks the CRCs of what arrived.  The store makes things durable, in the order in
 * which they were started.
 *
 * Threads: one owner, the loop.  Blocks: never.
 * Errors:  in on_done, never in the start call: 0 or a negative DL_E_*.
 * Memory:  a request is the caller's and stays put until its on_done has run; on_done may free it.
 * Queues:  the store takes every request; the core bounds their number (its buffers do).
 */
#ifndef DLBLK_CHUNKSERVER_CHUNK_STORE_H
#define DLBLK_CHUNKSERVER_CHUNK_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"

#define SECTOR_BYTES         4096u
#define STORE_IO_SECTORS_MAX 256u /* of one read, or one write with data: 1 MiB */

/* Identity of a chunk: one slot of one segment. */
struct chunk_key {
    uint64_t volume;
    uint32_t segment;
    uint32_t slot;
};

struct chunk; /* chunk_table.h */
struct chunk_table;
struct chunk_store;

/*
 * A write of data or zeroes.  The chunk is named by key: it comes into being here if it is unknown
 * and `create` is set (its incarnation is config_epoch then).  On on_done == 0 the whole write is
 * durable, or none of it took effect:
 *   -DL_E_NO_SPACE       nothing was changed
 *   -DL_E_BUSY           nothing was changed: too many versions above S (CHUNK_PENDING_MAX, with
 *                        use_reserve CHUNK_PENDING_TAKEOVER_MAX): S must rise first; or an
 *                        overwrite on a full disk, before others have given back what they replaced
 *   -DL_E_MEDIA_WRITE    nothing was changed, or (journal or flush failed) the store has stopped:
 *                        see `stopped`
 *   -DL_E_CHUNK_UNKNOWN  no such chunk, and create was not set
 *   -DL_E_CHUNK_DELETED  the chunk was deleted
 *   -DL_E_RANGE          beyond what a chunk can have
 * A version that is already durable here is acknowledged without another write, one in flight
 * waits for the first, whether or not `retry` is set (the flag saves the search where it is not).
 *
 * Of a recovering chunk: without an attempt, under a config epoch above the chunk's attempt, it
 * promotes the chunk (chunk_promote()), durably with this record.  Its stable version is told to
 * chunk_stable_hear().  A void sector takes it if its version is above the sector's step.
 *   -DL_E_EPOCH_OLD      it names another attempt than the recovering chunk's (the core sees to it
 *                        that this doesn't happen)
 */
struct store_write {
    struct chunk_key key;
    uint32_t config_epoch;   /* higher than the chunk's: it rises, at once (below) */
    uint32_t birth;          /* snapshot seq of the write */
    uint64_t version;        /* lease_epoch << 40 | sequence */
    uint64_t stable_version; /* every version up to it is on all slots */
    uint32_t attempt;        /* of a recovering chunk, and the chunk's; else 0 */
    uint32_t offset_sectors;
    uint32_t length_sectors; /* 1 .. STORE_IO_SECTORS_MAX; with zero up to the whole chunk */
    bool zero;               /* a zero extent: no payload, no CRCs */
    bool create;
    bool retry;
    bool use_reserve; /* of a takeover: may take blocks kept back, and exceed CHUNK_PENDING_MAX */
    const void *payload;  /* length_sectors sectors, 4096-aligned, borrowed until on_done */
    const uint32_t *crcs; /* CRC-32C of each sector, borrowed until on_done */
    void (*on_done)(struct store_write *write, int err);
    struct list node; /* for the store, from here on */
    void *store_private[4];
};

enum sector_kind {
    SECTOR_HOLE = 0,
    SECTOR_ZERO = 1,
    SECTOR_DATA = 2,
    SECTOR_VOID = 3, /* content unknown: in a recovering chunk, or a damaged one; never read */
};

/*
 * A read of the chunk's newest content (snapshot_seq 0) or of a snapshot's.  Fills kinds[] and
 * crcs[] for each sector (crc 0 where there is no data) and `buffer` (zeroes where there is no
 * data).  The CRCs are what the writing client computed; the data is as the disk gave it: the
 * reader at the far end compares.
 *   -DL_E_MEDIA_READ     the drive failed the read
 *   -DL_E_INDEX_CORRUPT  the map of this range can't be read, or a sector of it was damaged: an
 *                        error for the range, never a hole.  Such sectors are among store_voids; a
 *                        write heals them (it is above all that they can have had), or a repair
 *   -DL_E_NOT_IN_SYNC    a sector is void: an attempt began while the read was under way
 *   -DL_E_CHUNK_UNKNOWN
 */
struct store_read {
    struct chunk_key key;
    uint32_t snapshot_seq; /* 0: the head */
    uint32_t offset_sectors;
    uint32_t length_sectors; /* 1 .. STORE_IO_SECTORS_MAX */
    void *buffer;            /* 4096-aligned, borrowed until on_done */
    uint32_t data_sectors;   /* result: how many sectors have data */
    uint8_t kinds[STORE_IO_SECTORS_MAX];
    uint32_t crcs[STORE_IO_SECTORS_MAX];
    void (*on_done)(struct store_read *read, int err);
    struct list node; /* for the store, from here on */
    uint64_t started_seq;
    uint32_t ios_pending;
    int err;
    void *store_private[6];
};

/*
 * One durable change without data.
 *   STORE_FENCE   volume, lease_epoch: the table's fence rises at once; on_done when it and every
 *                 write of the volume that was accepted earlier are durable or aborted.
 *   STORE_STABLE  key, stable_version: with on_done a durable confirmation.
 *   STORE_DELETE  key, incarnation: the chunk with that or a lower incarnation is gone; its space
 *                 follows in the background.  An unknown chunk is success.
 */
/*
 * Of a slot that recovers (docs/recovery.md; the rules are numbered there).  A config epoch below
 * the chunk's changes nothing, not even the fence: success.  The core starts one of these, or a
 * STORE_DELETE, of a chunk only when the one before it is done; between the start of a
 * STORE_ATTEMPT and its on_done it starts no write, read, pull or stable version of the chunk, but
 * those that it started earlier may still be under way.
 *   STORE_IN_SYNC  key, incarnation, config_epoch: the chunk comes into being if it is not there
 *   (and incarnation is not 0); its config epoch rises; if it is recovering under a lower attempt
 *   it is promoted (chunk_promote()).  -DL_E_CHUNK_UNKNOWN: it is not there, or has a lower
 *   incarnation.
 *   STORE_ATTEMPT  key, incarnation, config_epoch, attempt, lease_epoch, segment_sectors: rules 6
 *   to 10, in one record.  It takes effect after every write of the key that was started earlier
 *   is durable or aborted, and on_done comes when it is durable: a chunk of a lower incarnation is
 *   deleted and a new one made; the config epoch and the volume's fence rise; if the attempt is
 *   above the chunk's all that lies above chunk_attempt_steps() becomes void, and
 *   chunk_attempt_begin().  A crash leaves all of it or nothing.  -DL_E_CHUNK_UNKNOWN: it is not
 *   there, and incarnation is 0.
 *   STORE_FORGET   key, stable_version: no slot will ever have to be told of zero extents at or
 *   below it; the chunk may make holes of them, some time.  It does nothing if the chunk is not
 *   there, recovers, or has a lower S.  on_done says nothing.
 *   STORE_REPORT   key, attempt, stable_version: chunk_sources_hear().  -DL_E_EPOCH_OLD: the chunk
 *   has another attempt.  -DL_E_CHUNK_UNKNOWN.
 */
enum store_change_kind {
    STORE_FENCE,
    STORE_STABLE,
    STORE_DELETE,
    STORE_IN_SYNC,
    STORE_ATTEMPT,
    STORE_REPORT,
    STORE_FORGET,
};

struct store_change {
    enum store_change_kind kind;
    struct chunk_key key; /* STORE_FENCE: only key.volume */
    uint32_t lease_epoch;
    uint32_t config_epoch;
    uint32_t incarnation;
    uint32_t attempt; /* STORE_STABLE of a recovering chunk: the chunk's */
    uint32_t segment_sectors;
    uint64_t stable_version;
    void (*on_done)(struct store_change *change, int err);
    struct list node; /* for the store, from here on */
    void *store_private[4];
};

/* One sector as a slot passes it to another. */
struct store_sector {
    uint32_t sector;
    uint32_t birth;
    uint64_t version; /* of a hole: 0 */
    uint32_t crc;     /* of data */
    enum sector_kind kind;
};

#define STORE_WINDOW_SECTORS_MAX 4096u
#define STORE_WINDOW_WORDS       (STORE_WINDOW_SECTORS_MAX / 64)

/*
 * What of a window of a chunk is above a version, or is wanted: for a slot that recovers from this
 * one.  It looks when everything of the chunk that was started before it (writes, changes, merges)
 * is durable or aborted: a write that was accepted under a lower config epoch must not become
 * durable behind its back, and an epoch that could still be lost must not be relied on (rules 12
 * and 16).  Ascending; stops when STORE_IO_SECTORS_MAX sectors are found.  The data is as the disk
 * gave it, but compared with its CRC here: -DL_E_CRC_DATA names a sector in `bad_sector`.
 *   -DL_E_NOT_IN_SYNC: a sector of the window is void, so that nobody knows whether it would have
 *   to be sent; -DL_E_INDEX_CORRUPT: the same of one that was damaged; both are in `bad_sector`
 *   -DL_E_MEDIA_READ | -DL_E_INDEX_CORRUPT | -DL_E_CHUNK_UNKNOWN | -DL_E_RANGE
 */
struct store_pull {
    struct chunk_key key;
    uint32_t first_sector;
    uint32_t window_sectors; /* 1 .. STORE_WINDOW_SECTORS_MAX */
    uint64_t above_version;
    const uint64_t *wanted; /* a bit for each sector of the window; NULL: none; borrowed */
    bool without_data;
    void *buffer; /* STORE_IO_SECTORS_MAX sectors, 4096-aligned, borrowed; data sectors, packed */
    struct store_sector *sectors; /* room for STORE_IO_SECTORS_MAX, borrowed */
    uint32_t sector_count;        /* results, from here on */
    uint32_t data_sectors;
    uint32_t next_sector;    /* all before it has been looked at */
    uint64_t stable_version; /* the chunk's, at a moment before the look */
    uint32_t bad_sector;
    void (*on_done)(struct store_pull *pull, int err);
    struct list node; /* for the store, from here on */
    void *store_private[8];
};

/*
 * Which sectors of a window are void: by an attempt, or because their leaf was damaged (then also
 * of an in-sync chunk, all 64 of a leaf at first).  It looks at once.  Errors as for store_pull.
 */
struct store_voids {
    struct chunk_key key;
    uint32_t first_sector;
    uint32_t window_sectors;
    uint64_t bits[STORE_WINDOW_WORDS]; /* result */
    uint32_t count;                    /* result */
    void (*on_done)(struct store_voids *voids, int err);
    struct list node; /* for the store, from here on */
    void *store_private[4];
};

/*
 * What was pulled: each sector is taken if the chunk has it void (in whatever version, a hole too)
 * or in a lower version (rule 14); in the same record the cursor rises to cursor_sectors, and
 * stable_version (the source's S, when it sent them) goes to chunk_sources_hear().  Sectors above
 * stable_version, taken or not (then they are here in a higher version), are listed by
 * chunk_pending_add_pulled().  With `repair` instead: each sector is taken if the chunk has it in
 * exactly this version and data, whatever state its block is in, which is not used again (rule
 * 23); the cursor means nothing, and the chunk may be in-sync.
 *
 * A damaged sector is void, but this slot may have acknowledged for it what the source has not
 * yet: it is taken (by a repair too, a hole too) only if its version, or stable_version, is at or
 * above the highest version that the chunk may have had when the damage was found.  One that was
 * not taken stays void: again with a later S of the source.  A request is one record, or several
 * if it has many short runs: then a crash can leave the first of them, without the cursor.
 *
 * With `bad` the payload of the one sector is not what its CRC says: nobody in-sync has that any
 * more.  So every read of it fails, until it is written, or repaired from one who has it after all.
 *   -DL_E_EPOCH_OLD    the chunk has another attempt, or none; with repair: it has one, or another
 *                      config epoch or fence than when the content was asked for
 *   -DL_E_INDEX_CORRUPT  the index could not be read at all: not before the next start
 *   -DL_E_NO_SPACE     for a repair, and for what takes the place of data or of void sectors, the
 *                      reserve is used
 *   -DL_E_BUSY         in a moment there will be space
 *   -DL_E_CHUNK_UNKNOWN | -DL_E_MEDIA_WRITE | -DL_E_RANGE
 */
struct store_merge {
    struct chunk_key key;
    uint32_t attempt; /* with repair: 0 */
    bool repair;
    bool bad;
    /* With repair: of the chunk, and its volume's fence, when the content was asked for. */
    uint32_t config_epoch, lease_epoch;
    const struct store_sector *sectors; /* ascending; borrowed until on_done */
    uint32_t sector_count;              /* 0 .. STORE_IO_SECTORS_MAX */
    const void *payload; /* of the data sectors, packed, 4096-aligned; borrowed until on_done */
    uint32_t cursor_sectors;
    uint64_t stable_version;
    uint32_t taken_sectors; /* result */
    void (*on_done)(struct store_merge *merge, int err);
    struct list node; /* for the store, from here on */
    void *store_private[8];
};

struct store_stats {
    uint64_t capacity_bytes;  /* of the data region, footers left out */
    uint64_t used_bytes;      /* blocks in use or waiting to be freed */
    uint64_t available_bytes; /* for new allocations, the reserve left out */
    uint64_t chunk_count;
    /* what is before it is durable; never goes back, not even in a crash */
    uint64_t journal_position;
    uint64_t writes, reads, bytes_written, bytes_read; /* client payload */
    uint64_t device_bytes_data, device_bytes_journal, device_bytes_index;
    uint64_t journal_blocks, flushes, groups_acknowledged;
    uint64_t leaf_hits, leaf_misses, leaves_cached, cache_bytes;
    uint64_t crc_errors, media_errors;
    bool damaged; /* came up with a damaged journal: its slots must be recovered */
    int stopped;  /* 0, or why the store takes no more writes */
};

struct chunk_store_ops {
    void (*write_start)(struct chunk_store *store, struct store_write *write);
    void (*read_start)(struct chunk_store *store, struct store_read *read);
    void (*change_start)(struct chunk_store *store, struct store_change *change);
    void (*pull_start)(struct chunk_store *store, struct store_pull *pull);
    void (*voids_start)(struct chunk_store *store, struct store_voids *voids);
    void (*merge_start)(struct chunk_store *store, struct store_merge *merge);
    /* Everything started so far in this turn of the loop may go to the disk as one group. */
    void (*turn_end)(struct chunk_store *store);
    void (*get_stats)(struct chunk_store *store, struct store_stats *ret_stats);
    /*
     * Finish what was started, write everything back, mark the disk clean; then on_done.  No start
     * calls after it.
     */
    void (*stop)(struct chunk_store *store, void (*on_done)(void *context, int err), void *context);
};

struct chunk_store {
    const struct chunk_store_ops *ops;
    struct chunk_table *chunks; /* read by the core, changed by the store only */
};

#endif
