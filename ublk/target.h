/* SPDX-License-Identifier: Apache-2.0 */
/*
 * target.h: one device from its beginning to its end: the volume, the kernel's device, and what is
 * between them.
 *
 * Threads: the caller's becomes the loop's; steps that do I/O on the device run on another one for
 *          as long as they take.
 * Prints:  the log.
 */
#ifndef DLBLK_UBLK_TARGET_H
#define DLBLK_UBLK_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/error.h"
#include "ublk/control.h"
#include "ublk/state.h"

#define TARGET_QUEUES_DEFAULT 1u
#define TARGET_QUEUES_MAX     64u
#define TARGET_DEPTH_DEFAULT  128u
#define TARGET_DEPTH_MAX      (UBLK_QUEUE_DEPTH_MAX - 1) /* the kernel gets one more */
#define TARGET_BUFFER_BYTES   (512u << 10)

struct target_options {
    const char *volume;
    const char *meta;            /* as in attachment.h */
    const char *config;          /* as in attachment.h */
    const char *connect_timeout; /* as in attachment.h */
    uint32_t id;                 /* UBLK_ANY_ID: any */
    uint32_t queues;
    uint32_t depth;
    bool read_only;
    bool volatile_cache;
    bool steal;
    uint64_t null_bytes; /* not 0: no volume, a device of this size that reads as zeroes */
    uint32_t null_logical_bytes;
    /* Not NULL: take over this device, whose server is dead; all above but `steal` is in it. */
    const struct ublk_state *recover;
    /* The device can be used. */
    void (*on_ready)(void *context, const char *node);
    void *context;
};

/*
 * Serves until the device is stopped (0), the process is told to end (0: the device is gone, or,
 * while somebody uses it, left for another server), or something fails (err says what; a device of
 * its own is gone then, one that was to be taken over is as before).
 */
int target_run(const struct target_options *options, struct dl_error *err);

#endif
