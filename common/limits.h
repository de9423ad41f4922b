/* SPDX-License-Identifier: Apache-2.0 */
/*
 * limits.h: resource limits of the process.
 *
 * Threads: any; meant for main() before anything else is started.
 */
#ifndef DLBLK_COMMON_LIMITS_H
#define DLBLK_COMMON_LIMITS_H

#include <stdint.h>

struct dl_error;

/* Raise RLIMIT_NOFILE to its hard limit.  Fails, with what to do, if that is below `needed`. */
int limits_raise_nofile(uint64_t needed, struct dl_error *err);
/*
 * Fails, with what to do, if RLIMIT_MEMLOCK (raised to its hard limit first) is below
 * `needed_bytes`, for one who it binds.
 */
int limits_check_memlock(uint64_t needed_bytes, struct dl_error *err);

#endif
