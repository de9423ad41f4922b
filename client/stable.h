/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stable.h: the versions of a segment's writes, and S, up to which all are on all slots.
 *
 * A segment that has been written has a writer, until all it wrote is stable and every slot has
 * confirmed that:
 *
 *     sequence   1 2 3 4 5 6 7 8 9    given under this lease; version = lease << 40 | sequence
 *     done       x x x . x x . . x    on all slots, or never sent
 *                    ^ S = 3
 *     outstanding: sequence_last - S, at most STABLE_WINDOW; further writes wait for credit
 *
 * S rides on each WRITE; STABLE_IDLE_NS after the last write of a segment it goes to each slot
 * alone.  If zeroes were written, and every slot is in-sync and has confirmed S under the map as it
 * is, they are told once more: that zero extents up to S may be forgotten.
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_STABLE_H
#define DLBLK_CLIENT_STABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "client/core_internal.h"
#include "client/map.h"
#include "common/vec.h"

#define STABLE_WINDOW 1024u
/*
 * Of the window, for settling: else writes that failed could take the room that mending them needs.
 */
#define STABLE_RESERVE 64u
#define STABLE_IDLE_NS (100 * CLIENT_NS_PER_MS)
static_assert((STABLE_WINDOW & (STABLE_WINDOW - 1)) == 0 && STABLE_WINDOW % 64 == 0, "bitmap");

struct io_op;
struct resolve;

/* Sectors that a failed write may have changed on some slots and not on others. */
struct unsettled_range {
    uint32_t first_sector;
    uint32_t sector_count;
    uint64_t sequence; /* of that write: done when no range of it is left */
    bool zero;         /* a zero extent: settled by finishing it */
};

struct segment_writer {
    struct segment_writer *next_spare; /* of volume->spare_writers */
    struct client_volume *volume;
    struct segment *segment;
    struct list node;           /* volume->writers */
    struct list idle_node;      /* volume->idle */
    struct list credit_waiters; /* io_op.wait_node */
    uint64_t stable;            /* S as a sequence; 0: none yet under this lease */
    uint64_t confirmed;         /* every slot has remembered this S durably */
    uint32_t confirmed_epoch;   /* ... all slots of this map */
    uint32_t forget_epoch;      /* the map under which they could not all be told to forget */
    uint64_t zeroed_sequence;   /* of the last zeroes */
    uint64_t last_write_ns;
    struct stable_op *stable_op; /* STABLE under way */
    VEC(struct unsettled_range) unsettled;
    struct resolve *settle; /* a range being settled: unsettled.c */
    uint64_t settle_ns;     /* not before */
    uint64_t settle_wait_ns;
    uint64_t done[STABLE_WINDOW / 64];
};

/* The segment's writer, made if there is none.  NULL: no memory. */
struct segment_writer *client_stable_writer(struct client_volume *volume, struct segment *segment);

enum stable_credit {
    STABLE_CREDIT_ORDINARY,
    STABLE_CREDIT_RESERVE, /* what settles ranges, or mends a version */
    STABLE_CREDIT_LAST,    /* ... that S waits for: one place is kept for it alone */
};

/* The next sequence; 0: too many are outstanding, wait in credit_waiters. */
uint64_t client_stable_take(struct segment_writer *writer, enum stable_credit credit);
/* A write of a caller's that takes one now does not have to wait. */
bool client_stable_has_credit(const struct segment_writer *writer);
/* So many more can be taken for settling. */
uint32_t client_stable_room(const struct segment_writer *writer);
/* It is on all slots, or on none and never will be. */
void client_stable_done(struct segment_writer *writer, uint64_t sequence);

/* This write, which is done, was one of zeroes. */
void client_stable_zeroed(struct segment_writer *writer, uint64_t sequence);
/* The segment has another map. */
void client_stable_on_map(struct client_volume *volume, struct segment *segment);

/*
 * Is every slot that takes part within reach?  What some confirm, or are given anew, is worth
 * nothing.
 */
bool client_stable_slots_are_up(const struct client_volume *volume, const struct segment *segment);

/* S to be sent with a write or alone; 0: none. */
uint64_t client_stable_version(const struct client_volume *volume, const struct segment *segment);

/* STABLE to the slots of segments that have been idle for a while. */
void client_stable_tick(struct client_volume *volume);
/*
 * STABLE to the slots of all segments that have not confirmed; as long as there are writers left it
 * is not over.
 */
void client_stable_send_all(struct client_volume *volume);
/* Give up the STABLEs under way; true: none is left. */
bool client_stable_cancel(struct client_volume *volume);
void client_stable_fini(struct client_volume *volume);

/* --- unsettled.c --- */

/* A write failed that may be on some slots. */
void client_unsettled_add(struct segment_writer *writer, const struct unsettled_range *range);
/* Just this one, whole. */
bool client_unsettled_is_left(const struct segment *segment, uint32_t first_sector,
                              uint32_t sector_count, uint64_t sequence);
/* All slots have this range alike again. */
void client_unsettled_cut(struct segment_writer *writer, uint32_t first_sector,
                          uint32_t sector_count);
bool client_unsettled_overlaps(const struct segment *segment, uint32_t first_sector,
                               uint32_t sector_count);
/* Begin to settle what can be settled now. */
void client_unsettled_tick(struct client_volume *volume);

#endif
