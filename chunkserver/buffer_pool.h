/* SPDX-License-Identifier: Apache-2.0 */
/*
 * buffer_pool.h: payload buffers of 4 KiB to 1 MiB out of one arena of a stated size.
 *
 * A buddy system: a buffer is a power of two of sectors, aligned to 4 KiB.  What is freed is joined
 * with its neighbour again, a stack of single sectors apart, so that 4 KiB requests neither split
 * nor join anything.
 *
 * The promise that the core builds on: while buffer_pool_has_room(), a buffer of any size can be
 * had.
 *
 * Threads: one owner.  Errors: none but "nothing left" (NULL).
 * Memory:  the arena is reserved at create and touched when it is used first.
 */
#ifndef DLBLK_CHUNKSERVER_BUFFER_POOL_H
#define DLBLK_CHUNKSERVER_BUFFER_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUFFER_BYTES_MAX (1u << 20)

struct buffer_pool;

/* NULL: no memory.  arena_bytes is rounded up to a multiple of BUFFER_BYTES_MAX. */
struct buffer_pool *buffer_pool_create(size_t arena_bytes);
/* Whatever is acquired still is gone with it.  NULL is allowed. */
void buffer_pool_destroy(struct buffer_pool *pool);

/* length_bytes: 1 .. BUFFER_BYTES_MAX.  NULL: nothing left. */
void *buffer_pool_acquire(struct buffer_pool *pool, uint32_t length_bytes);
/* length_bytes as it was acquired. */
void buffer_pool_release(struct buffer_pool *pool, void *buffer, uint32_t length_bytes);

/* The largest buffer is to be had. */
bool buffer_pool_has_room(struct buffer_pool *pool);
size_t buffer_pool_used_bytes(const struct buffer_pool *pool);

#endif
