/* SPDX-License-Identifier: Apache-2.0 */
/*
 * supervise.h: a target in the background, and a process beside it that starts another one when it
 * dies.
 *
 * Processes: the caller; with `background` its child, which becomes a daemon; with `supervise` that
 *            one's child, which serves.
 * Prints:    the device's node to stdout when it can be used; errors to stderr, and once the device
 *            can be used and the process is in the background, to the log file.
 */
#ifndef DLBLK_UBLK_SUPERVISE_H
#define DLBLK_UBLK_SUPERVISE_H

#include <stdbool.h>

#include "ublk/target.h"

struct supervise_options {
    bool background;
    bool supervise;
    const char *log_path; /* NULL: VOLUME.log beside the states */
};

/*
 * 0: with background the device can be used; else it served and was stopped.  Negative: failed; err
 * says why, unless another process has said it already (code 0).
 */
int supervise_run(const struct supervise_options *options, const struct target_options *target,
                  struct dl_error *err);

/* Prints an error as this program does, and gives the exit status that stands for it. */
int ublk_print_error(const struct dl_error *err);

/* The process lives, and is a target. */
bool supervise_is_serving(int pid);

#endif
