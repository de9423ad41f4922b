/* SPDX-License-Identifier: Apache-2.0 */
/*
 * devices.h: the devices that are there: which can be taken over, which are leftovers; the commands
 * that list, stop and recover them.
 *
 * Threads: the main thread.  Prints: as said at each.  Errors: 0 or negative, err says why.
 */
#ifndef DLBLK_UBLK_DEVICES_H
#define DLBLK_UBLK_DEVICES_H

#include <stdbool.h>
#include <stddef.h>

#include "ublk/state.h"
#include "ublk/supervise.h"

enum device_condition {
    DEVICE_ATTACHED, /* it has a server */
    DEVICE_WAITING,  /* its server is dead: requests wait for another one */
    DEVICE_STOPPED,  /* it was never started, or is stopped: a leftover */
    DEVICE_MISSING,  /* the kernel has no such device: its state is a leftover */
};

/*
 * The volume's device on this machine.  Leftovers are removed.  -ENOENT: there is none;
 * -DL_E_VOLUME_BUSY: it has a server; 0: *ret_state can be taken over.
 */
int devices_find_waiting(const char *volume, struct ublk_state *ret_state, struct dl_error *err);

/* Stops and deletes.  -EBUSY: somebody uses it (err says who), unless `force`. */
int devices_detach(const char *name, bool force, struct dl_error *err);

/*
 * Takes over one (name) or all (NULL) devices that wait.  With options->background each gets a
 * process of its own, all at the same time, and their nodes are printed; fails if one fails.
 * Without it, which only one can be, this process serves until the device is stopped.
 */
int devices_recover(const char *name, const struct supervise_options *options, bool steal,
                    struct dl_error *err);

/* A table, or JSON, to stdout. */
int devices_list(bool json, struct dl_error *err);

#endif
