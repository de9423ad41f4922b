/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.h: the block device as the rest of the system sees it: its node, its users, its queue's
 * settings.
 *
 * Threads: any.  Blocks: on sysfs, /proc, and on the node where it says so.
 */
#ifndef DLBLK_UBLK_DEVICE_H
#define DLBLK_UBLK_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/error.h"

struct device_name {
    char text[40];
};
struct device_name device_node(uint32_t id); /* /dev/ublkb0 */

/* Until the node is there, can be opened, and has its size; opening reads from the device. */
int device_wait(uint32_t id, uint64_t size_bytes, uint32_t timeout_ms, struct dl_error *err);

/*
 * Settings for a server that may die (docs/ublk.md).  Those that this kernel hasn't are no error.
 *
 * To change one of them the kernel waits for all requests in flight.  A server that died while it
 * waited so for itself could not even end, so another process does it: device_tune() starts it, as
 * `dlblk-ublk tune`, waits for it, and does nothing where the settings are right already.
 */
void device_tune(uint32_t id, uint32_t queue_depth);
/* In that process. */
void device_tune_here(uint32_t id, uint32_t queue_depth);

/*
 * -EBUSY, and err names who uses the device or a partition of it: a mount, another device on top,
 * swap, a process that has it open.
 */
int device_check_unused(uint32_t id, struct dl_error *err);

/*
 * The same for a device that was stopped: its node and its place in sysfs are gone, but mounts, of
 * any namespace, and open files are still known.
 */
int device_check_released(uint32_t id, struct dl_error *err);

/* Requests that are in flight now, of both directions; 0 where it can't be known. */
uint32_t device_in_flight(uint32_t id);

#endif
