/* SPDX-License-Identifier: Apache-2.0 */
/*
 * volume.h: volumes on a client core: attach, I/O, extents, detach.
 *
 * Threads: the env's.  Blocks: never.
 * Errors:  in callbacks: 0 or a negative DL_E_*.
 */
#ifndef DLBLK_CLIENT_VOLUME_H
#define DLBLK_CLIENT_VOLUME_H

#include <stdbool.h>
#include <stdint.h>

#include "client/core.h"
#include "dlblk/client.h"

struct client_volume;

/* --- attach and detach --- */

struct client_volume_open;
typedef void (*client_volume_open_fn)(struct client_volume_open *open, int err);

struct client_volume_open {
    const char *name;                /* borrowed until on_done */
    uint32_t flags;                  /* enum dlblk_open_flags, DLBLK_OPEN_READ_SLOT */
    const uint32_t *gone_server_ids; /* likewise borrowed */
    size_t gone_server_count;
    client_volume_open_fn on_done;
    void *context; /* the caller's */

    struct client_volume *volume; /* result, if err == 0 */
    struct dl_error error;
};

void client_volume_open(struct client_core *core, struct client_volume_open *open);

/*
 * Waits for what is in flight, detaches, and frees the volume, whatever on_closed gets: 0;
 * -DL_E_LEASE_OLD: it had been taken over; else what kept it from being detached cleanly (the next
 * owner then has a takeover to do). `error` stays valid during on_closed.  Requests submitted after
 * this call fail.
 */
typedef void (*client_volume_close_fn)(void *context, int err, const struct dl_error *error);
void client_volume_close(struct client_volume *volume, client_volume_close_fn on_closed,
                         void *context);

/* --- I/O: requests as in dlblk/client.h --- */

void client_volume_submit(struct client_volume *volume, struct dlblk_request *request);

/*
 * Which parts have data: fn for runs in order, adjacent runs differ; a return value other than 0
 * ends it with that.
 */
struct client_extents;
typedef void (*client_extents_fn)(struct client_extents *extents, int err);

struct client_extents {
    uint64_t offset_bytes;
    uint64_t length_bytes;
    int (*fn)(void *context, uint64_t offset_bytes, uint64_t length_bytes, bool hole);
    client_extents_fn on_done;
    void *context; /* the caller's, also fn's first argument */
    void *client_private[16];
};
void client_volume_extents(struct client_volume *volume, struct client_extents *extents);

/* --- state --- */

void client_volume_get_geometry(const struct client_volume *volume,
                                struct dlblk_volume_geometry *ret_geometry);
void client_volume_get_stats(const struct client_volume *volume,
                             struct dlblk_volume_stats *ret_stats);
uint32_t client_volume_lease_epoch(const struct client_volume *volume);
/* Somebody else has it: all I/O fails. */
bool client_volume_is_fenced(const struct client_volume *volume);
/* Segments that a takeover has not resolved yet. */
uint32_t client_volume_unresolved_count(const struct client_volume *volume);
/* Called when the size changes (the volume grew). */
void client_volume_on_resize(struct client_volume *volume,
                             void (*on_resize)(void *context, uint64_t size_bytes), void *context);

#endif
