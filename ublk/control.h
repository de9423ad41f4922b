/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.h: the driver's control device: which devices there are, and the steps of their lives.
 *
 *                      ADD, SET_PARAMS         all tags FETCHed, START
 *     no such device --------------------> DEAD --------------------> LIVE
 *           ^                               ^                         |  ^  END_USER_RECOVERY, all
 *           |  DEL                          |  STOP          server   |  |  tags FETCHed
 *           +-------------------------------+--------+       died     v  |
 *                                                    +---------- QUIESCED
 *                                                                START_USER_RECOVERY
 *
 * Threads: a struct ublk_control belongs to one thread at a time.
 * Blocks:  every function, until the kernel has answered.  START, STOP and END_USER_RECOVERY do I/O
 *          on the device: never from the thread that serves it (control_job.h).
 * Errors:  0 or negative; err says which step failed on which device, and what to do.
 */
#ifndef DLBLK_UBLK_CONTROL_H
#define DLBLK_UBLK_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/error.h"
#include "ublk/abi.h"

#define UBLK_ANY_ID     UINT32_MAX
#define UBLK_DEVICE_MAX (1u << 20)

struct ublk_control;

/*
 * Fails with what to do: no driver, no permission, no io_uring.  io_uring's own answer for the
 * commands tells a kernel whose ublk or io_uring can't do this.
 */
int ublk_control_open(struct ublk_control **ret_control, struct dl_error *err);
/* NULL is allowed. */
void ublk_control_close(struct ublk_control *control);
/*
 * From any thread: the command that runs, and all later ones, end with -ECANCELED soon.  What the
 * kernel waits for in it ends when the control is closed.
 */
void ublk_control_cancel(struct ublk_control *control);

/* Commands are encoded as for ioctl(); else the kernel is one that only knows their numbers. */
bool ublk_control_is_encoded(const struct ublk_control *control);
/* The flags that the kernel says it knows; 0 where it can't be asked. */
uint64_t ublk_control_features(const struct ublk_control *control);

/*
 * info: what is wanted, dev_id UBLK_ANY_ID for any; becomes what there is.  -EEXIST: the id is
 * taken.
 */
int ublk_control_add(struct ublk_control *control, struct ublk_device_info *info,
                     struct dl_error *err);
int ublk_control_set_params(struct ublk_control *control, uint32_t id,
                            const struct ublk_params *params, struct dl_error *err);
int ublk_control_start(struct ublk_control *control, uint32_t id, int pid, struct dl_error *err);
int ublk_control_stop(struct ublk_control *control, uint32_t id, struct dl_error *err);
/*
 * Waits until the last user of /dev/ublkbN has let it go; Linux 6.1 waits so for all of ublk.
 * Nobody has /dev/ublkcN open, nor a ring with commands on it.  remove.h is what to call.
 */
int ublk_control_delete(struct ublk_control *control, uint32_t id, struct dl_error *err);
/* The same, without waiting.  -EOPNOTSUPP: this kernel doesn't know it. */
int ublk_control_delete_async(struct ublk_control *control, uint32_t id, struct dl_error *err);
/* -EBUSY: the kernel has not noticed yet that the server is gone, or it is not. */
int ublk_control_start_recovery(struct ublk_control *control, uint32_t id, struct dl_error *err);
int ublk_control_end_recovery(struct ublk_control *control, uint32_t id, int pid,
                              struct dl_error *err);
/* -ENODEV: there is no such device. */
int ublk_control_info(struct ublk_control *control, uint32_t id, struct ublk_device_info *ret_info,
                      struct dl_error *err);

static inline bool
ublk_info_is_dlblk(const struct ublk_device_info *info)
{
    return (info->server_flags & ~UBLK_SERVER_PID_MASK) == UBLK_SERVER_IS_DLBLK;
}

static inline int
ublk_info_adder_pid(const struct ublk_device_info *info)
{
    return (int)(info->server_flags & UBLK_SERVER_PID_MASK);
}

const char *ublk_state_name(uint16_t state);

#endif
