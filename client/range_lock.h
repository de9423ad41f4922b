/* SPDX-License-Identifier: Apache-2.0 */
/*
 * range_lock.h: keeps overlapping requests of one volume in the order in which they came.
 *
 * An entry covers a run of sectors of one chunk.  It conflicts with an earlier one that overlaps
 * it, unless both are shared (reads).  It is granted when no conflicting earlier entry is left:
 * `blockers` counts them.
 *
 * What it costs: nearly all entries lie inside one window (1 MiB of a chunk).  They stand in a hash
 * table by window, so an entry meets those of its own window only: none at all for random I/O, the
 * others in flight for sequential I/O. Longer ones (discards) are *wide*: they stand in a list of
 * their own, which is empty nearly always, and look at the whole table when they come.  While
 * nobody waits, a release looks at nothing.
 *
 * Threads: one owner.  Errors: none.  Memory: entries are the caller's, nothing is allocated.
 */
#ifndef DLBLK_CLIENT_RANGE_LOCK_H
#define DLBLK_CLIENT_RANGE_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"

#define RANGE_LOCK_BUCKETS 256u

struct range_lock_entry {
    uint64_t start; /* range_lock_address() of the first sector ... */
    uint64_t end;   /* ... and behind the last */
    uint64_t ticket;
    uint32_t blockers;
    bool exclusive;
    bool wide;
    void (*on_granted)(
        struct range_lock_entry *entry); /* the owner's: for who takes entries from `ready` */
    struct list node;                    /* bucket, or the list of wide ones */
    struct list ready; /* granted by a release, not yet taken by range_lock_next_ready() */
};

struct range_lock {
    struct list buckets[RANGE_LOCK_BUCKETS];
    struct list wide;
    struct list ready;
    uint64_t ticket_next;
    uint32_t entry_count;
    uint32_t wide_count;
    uint32_t waiting_count; /* entries with blockers */
};

void range_lock_init(struct range_lock *lock);

/* True: granted at once.  False: range_lock_next_ready() will name it. */
bool range_lock_acquire(struct range_lock *lock, struct range_lock_entry *entry, uint32_t segment,
                        uint32_t first_sector, uint32_t sector_count, bool exclusive);

/* Of an entry that is granted, or of one that still waits and gives up. */
void range_lock_release(struct range_lock *lock, struct range_lock_entry *entry);

/* An entry that a release has granted, in the order of arrival; NULL if there is none. */
struct range_lock_entry *range_lock_next_ready(struct range_lock *lock);

static inline bool
range_lock_has_ready(const struct range_lock *lock)
{
    return !list_is_empty(&lock->ready);
}

/* Zeroed entries, and released ones, are not held. */
static inline bool
range_lock_is_held(const struct range_lock_entry *entry)
{
    return list_is_linked(&entry->node);
}

static inline uint64_t
range_lock_address(uint32_t segment, uint32_t sector)
{
    return (uint64_t)segment << 32 | sector;
}

#endif
