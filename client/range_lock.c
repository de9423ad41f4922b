/* SPDX-License-Identifier: Apache-2.0 */
#include "client/range_lock.h"

#include "client/geometry.h"
#include "common/mutant.h"

/*
 * Invariants
 *   1. entry->blockers is the number of entries in the table with a lower ticket that conflict with
 *      it.
 *   2. An entry is granted when its blockers are 0; it is in `ready` from then until it is taken.
 *   3. Two narrow entries that overlap are in the same bucket; a wide one can overlap any.
 * (1) holds because acquire counts all earlier ones, tickets only grow, and a release counts down
 * exactly those that have counted it: the later ones that conflict with it.
 */

static uint32_t
range_lock_bucket(uint64_t start)
{
    uint64_t window = start / WINDOW_SECTORS;

    return (uint32_t)(window * 0x9e3779b97f4a7c15u >> 56);
}
static_assert(RANGE_LOCK_BUCKETS == 256, "range_lock_bucket() makes 8 bits");

static bool
range_lock_conflict(const struct range_lock_entry *a, const struct range_lock_entry *b)
{
    if (DLBLK_MUTANT(client_forget_range_lock))
        return false;
    return a->start < b->end && b->start < a->end && (a->exclusive || b->exclusive);
}

void
range_lock_init(struct range_lock *lock)
{
    for (uint32_t i = 0; i < RANGE_LOCK_BUCKETS; i++)
        list_init(&lock->buckets[i]);
    list_init(&lock->wide);
    list_init(&lock->ready);
    lock->ticket_next = 1;
    lock->entry_count = 0;
    lock->wide_count = 0;
    lock->waiting_count = 0;
}

static uint32_t
range_lock_count_conflicts(const struct list *head, const struct range_lock_entry *entry)
{
    struct range_lock_entry *other;
    uint32_t count = 0;

    list_for_each_entry (other, head, node)
        count += range_lock_conflict(other, entry);
    return count;
}

bool
range_lock_acquire(struct range_lock *lock, struct range_lock_entry *entry, uint32_t segment,
                   uint32_t first_sector, uint32_t sector_count, bool exclusive)
{
    struct list *home;

    dl_assert(sector_count > 0);
    dl_assert(!range_lock_is_held(entry));
    entry->start = range_lock_address(segment, first_sector);
    entry->end = entry->start + sector_count;
    entry->exclusive = exclusive;
    entry->wide = first_sector / WINDOW_SECTORS !=
                  (first_sector + sector_count - 1) / WINDOW_SECTORS;
    entry->ticket = lock->ticket_next++;
    entry->blockers = 0;
    list_init(&entry->ready);
    if (lock->wide_count > 0)
        entry->blockers += range_lock_count_conflicts(&lock->wide, entry);
    if (entry->wide) {
        home = &lock->wide;
        lock->wide_count++;
        for (uint32_t i = 0; i < RANGE_LOCK_BUCKETS; i++)
            entry->blockers += range_lock_count_conflicts(&lock->buckets[i], entry);
    } else {
        home = &lock->buckets[range_lock_bucket(entry->start)];
        entry->blockers += range_lock_count_conflicts(home, entry);
    }
    list_push_back(home, &entry->node);
    lock->entry_count++;
    lock->waiting_count += entry->blockers > 0;
    return entry->blockers == 0;
}

static void
range_lock_unblock(struct range_lock *lock, const struct list *head,
                   const struct range_lock_entry *gone)
{
    struct range_lock_entry *other;

    list_for_each_entry (other, head, node) {
        if (other->ticket < gone->ticket || !range_lock_conflict(other, gone))
            continue;
        dl_assert(other->blockers > 0);
        if (--other->blockers > 0)
            continue;
        dl_assert(lock->waiting_count > 0);
        lock->waiting_count--;
        list_push_back(&lock->ready, &other->ready);
    }
}

void
range_lock_release(struct range_lock *lock, struct range_lock_entry *entry)
{
    dl_assert(range_lock_is_held(entry));
    dl_assert(lock->entry_count > 0);
    list_remove(&entry->node);
    lock->entry_count--;
    lock->wide_count -= entry->wide;
    lock->waiting_count -= entry->blockers > 0;
    if (list_is_linked(&entry->ready))
        list_remove(&entry->ready);
    if (lock->waiting_count == 0)
        return;
    if (lock->wide_count > 0)
        range_lock_unblock(lock, &lock->wide, entry);
    if (entry->wide) {
        for (uint32_t i = 0; i < RANGE_LOCK_BUCKETS; i++)
            range_lock_unblock(lock, &lock->buckets[i], entry);
    } else {
        range_lock_unblock(lock, &lock->buckets[range_lock_bucket(entry->start)], entry);
    }
}

struct range_lock_entry *
range_lock_next_ready(struct range_lock *lock)
{
    struct list *node = list_pop_front(&lock->ready);

    return node != NULL ? list_entry(node, struct range_lock_entry, ready) : NULL;
}
