/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remove.h: a device that is stopped is deleted, without waiting for who still has it open or
 * mounted.
 *
 * Threads: any, with a struct ublk_control of its own.  Blocks: for a second at most.
 */
#ifndef DLBLK_UBLK_REMOVE_H
#define DLBLK_UBLK_REMOVE_H

#include "ublk/control.h"

/*
 * 0: there is no such device any more.  -EBUSY: somebody has it still, err says who as far as that
 * can be seen; the volume is free all the same, and the number is when the last of them is gone: by
 * itself, or, where the kernel can't do that (6.1), at the next attach.
 *
 * Nobody has /dev/ublkcN open, nor a ring with commands on it.
 */
int ublk_remove(struct ublk_control *control, uint32_t id, struct dl_error *err);

#endif
