/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block_io.h: reads, writes, zeroes and trims of any offset and length on a volume that knows whole
 * blocks only.
 *
 * NBD clients may ask for single bytes.  A block that is written in part is read, changed and
 * written again here; until its write is submitted no other write to the range may be submitted, or
 * it would be undone.  (Submitted is enough: libdlblk orders requests that overlap by their
 * submission.)
 *
 * Threads: any, except the client's.  Blocks: until the request is done.
 * Errors:  0, -errno or -DL_E_*.
 * Memory:  no allocation; some 9 KiB of stack.
 */
#ifndef DLBLK_NBDKIT_PLUGIN_BLOCK_IO_H
#define DLBLK_NBDKIT_PLUGIN_BLOCK_IO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dlblk/client.h"

struct partial_write;

struct block_io {
    struct dlblk_volume *volume;
    uint32_t block_bytes; /* a power of two, at most BLOCK_IO_BLOCK_BYTES_MAX */

    /*
     * Writes of whole blocks hold the lock shared while they look at `partials` and submit; those
     * of parts hold it alone while they change the list.  Nobody waits for I/O under it.
     */
    pthread_rwlock_t lock;
    struct partial_write *partials;
    _Atomic uint32_t partials_ended; /* futex: counts; who finds an overlap waits for the next */
};

#define BLOCK_IO_BLOCK_BYTES_MAX 4096u

void block_io_init(struct block_io *io, struct dlblk_volume *volume);
void block_io_fini(struct block_io *io);

int block_io_read(struct block_io *io, void *buffer, uint32_t length_bytes, uint64_t offset_bytes);
int block_io_write(struct block_io *io, const void *buffer, uint32_t length_bytes,
                   uint64_t offset_bytes);
/* Reads as zeroes afterwards.  Space is given back for the whole blocks inside. */
int block_io_zero(struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes);
/* Whether the range has whole blocks inside: for less, zeroing is no faster than writing. */
bool block_io_zero_is_fast(const struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes);
/* Advice: only the whole blocks inside are discarded. */
int block_io_trim(struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes);
/* Covers every write that has returned. */
int block_io_flush(struct block_io *io);

/* Whether a request of whole blocks: nothing needs to be read before. */
bool block_io_is_aligned(const struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes);

#endif
