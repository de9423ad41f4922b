/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve.h: dlblk-meta as a daemon: the core on io_uring and RocksDB.
 *
 * Threads: the caller's becomes the loop's; RocksDB has its own.  Blocks: until the service ends.
 */
#ifndef DLBLK_META_SERVE_H
#define DLBLK_META_SERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/address.h"

struct serve_options {
    const char *dir;
    struct dl_address listen;
    uint64_t out_after_ns; /* these as in meta/core.h */
    uint32_t recovery_per_server;
    bool rebalance;
};

/* The exit status: 0 after SIGTERM or SIGINT, 1 if the service could not start or go on; logged. */
int meta_serve(const struct serve_options *options);

#endif
