/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve.h: makes a range of a segment alike on all slots: one slot's content is read and written
 * to all.
 *
 * For two: the takeover of a volume whose owner died (takeover.c), and ranges that a failed write
 * left undecided (unsettled.c).
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_RESOLVE_H
#define DLBLK_CLIENT_RESOLVE_H

#include "client/volume_internal.h"

struct resolve;
typedef void (*resolve_fn)(void *context, int err);

struct resolve_range {
    struct segment *segment;
    uint32_t first_sector;
    uint32_t sector_count; /* at most a window, inside one, unless zeroes */
    /*
     * By slot: the version that it lists for these sectors, 0 for none.  Content is taken from the
     * highest; from a lower one only if those that list more can't deliver it.
     */
    uint64_t ranks[WIRE_SLOTS_MAX];
    bool zeroes;      /* if all is unsettled still: no slot's content, but a zero extent */
    bool listed;      /* ranks are versions: who lists the same is alike, readable or not */
    bool exclusive;   /* take the range lock */
    uint64_t settles; /* write_own.settles */
    resolve_fn on_done;
    void *context;
};

/* True: there is room for one more. */
static inline bool
client_resolve_may_start(const struct client_volume *volume)
{
    return volume->resolve_count < VOLUME_RESOLVES_MAX;
}

/* NULL: no memory.  Else on_done follows, never inside this call. */
struct resolve *client_resolve_start(struct client_volume *volume,
                                     const struct resolve_range *range);
/*
 * Maps have changed.  What is still reading ends with -DL_E_STALE_MAP, to begin again: its source
 * may be no slot any more.  What has begun to write goes on (docs/recovery.md, rule 20).
 */
void client_resolve_check_maps(struct client_volume *volume);
/* on_done follows with err, unless it has run. */
void client_resolve_abort_all(struct client_volume *volume, int err);
/* Frees without a word: a simulated crash. */
void client_resolve_abandon_all(struct client_volume *volume);

#endif
