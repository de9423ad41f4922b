/* SPDX-License-Identifier: Apache-2.0 */
/*
 * buffers.h: memory for what can't be sent from, or received into, the caller's buffers: sectors of
 * which a request covers only a part, and pieces that are scattered over many iovecs.
 *
 * Sizes are powers of two from a sector to a window (1 MiB).  What is given back is kept for the
 * next one, up to BUFFERS_KEPT_BYTES_MAX in all.  How much is in use is bounded by what is in
 * flight.
 *
 * Threads: one owner.  Errors: NULL, without memory.
 */
#ifndef DLBLK_CLIENT_BUFFERS_H
#define DLBLK_CLIENT_BUFFERS_H

#include <stddef.h>
#include <stdint.h>

#define BUFFERS_CLASSES        9u /* 4 KiB << 0 .. 4 KiB << 8 */
#define BUFFERS_KEPT_BYTES_MAX (16u << 20)

struct buffers {
    void *kept[BUFFERS_CLASSES]; /* each begins with a pointer to the next */
    uint64_t kept_bytes;
    uint64_t used_bytes;
};

void buffers_init(struct buffers *buffers);
/* Everything has been given back. */
void buffers_fini(struct buffers *buffers);

/* 4096-aligned, contents undefined. */
void *buffers_acquire(struct buffers *buffers, size_t bytes);
/* `bytes` as in the acquire.  NULL is allowed. */
void buffers_release(struct buffers *buffers, void *buffer, size_t bytes);

#endif
