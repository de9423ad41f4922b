/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attachment.h: the volume behind a device: a client core on the loop that serves the device's
 * queues.
 *
 * libdlblk has a thread of its own; here the thread that takes requests from the kernel is the one
 * that sends them, so the core is used directly.
 *
 * Threads: the loop's.  Blocks: never.
 * Errors:  in callbacks, none of which runs inside the call that starts it.
 *
 *     attachment_create -> attachment_open -> ... -> attachment_close -> attachment_stop -> destroy
 */
#ifndef DLBLK_UBLK_ATTACHMENT_H
#define DLBLK_UBLK_ATTACHMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/loop.h"
#include "dlblk/client.h"

struct attachment;

struct attachment_options {
    const char *volume;
    const char *meta;            /* "host:port,..."; NULL: $DLBLK_META, the configuration file */
    const char *config;          /* NULL: /etc/dlblk/dlblk.conf */
    const char *connect_timeout; /* "30s"; NULL: the configuration file */
    bool read_only;
    bool steal;
    /*
     * Not 0: the lease that this machine's dead server had.  The volume is taken from it at once,
     * and from nobody else: if another owner came meanwhile, the volume is busy.  A server that
     * dies while it attaches may have got a lease that nobody has noted: it is known by its pid.
     */
    uint32_t inherit_lease_epoch;
    int inherit_pid;
    /* The volume is about to be taken from whoever has this lease; to be noted.  0, or err. */
    int (*on_inherit)(void *context, uint32_t lease_epoch, struct dl_error *err);
    void *context;
};

typedef void (*attachment_fn)(void *context, int err, const struct dl_error *error);

int attachment_create(struct attachment **ret_attachment, struct loop *loop,
                      const struct attachment_options *options, struct dl_error *err);
void attachment_open(struct attachment *attachment, attachment_fn on_open, void *context);
/* Open: */
void attachment_get_geometry(const struct attachment *attachment,
                             struct dlblk_volume_geometry *ret_geometry);
uint32_t attachment_lease_epoch(const struct attachment *attachment);
void attachment_submit(struct attachment *attachment, struct dlblk_request *request);
/* Waits for requests in flight. */
void attachment_close(struct attachment *attachment, attachment_fn on_closed, void *context);
/* Closed, or never open: closes the connections. */
void attachment_stop(struct attachment *attachment, void (*on_stopped)(void *context),
                     void *context);
/* Stopped, or the loop will never run again.  NULL is allowed. */
void attachment_destroy(struct attachment *attachment);

#endif
