/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve.h: one chunkserver process: disk, index, engine, core and network on one loop.
 *
 * Threads: the caller's becomes the loop's.  Blocks: until a signal has ended it.
 */
#ifndef DLBLK_CHUNKSERVER_SERVE_H
#define DLBLK_CHUNKSERVER_SERVE_H

#include <stddef.h>
#include <stdint.h>

#include "chunkserver/core.h"
#include "common/address.h"

struct serve_options {
    const char *disk_path;
    const char *index_path;
    struct dl_address listen;
    const char *advertise; /* NULL: the address that is listened on */
    struct dl_address metas[CHUNKSERVER_META_COUNT_MAX];
    size_t meta_count;
    const char *host, *rack, *clique;
    uint64_t cache_bytes;
    uint64_t lock_wait_ms; /* for the disk, if another process still has it */
    uint64_t scrub_days;   /* everything is read once in so many; 0: only on demand */
};

/* Serves until SIGTERM or SIGINT.  The process's exit status. */
int chunkserver_serve(const struct serve_options *options);

#endif
