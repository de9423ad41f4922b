/* SPDX-License-Identifier: Apache-2.0 */
/*
 * payload.h: the bytes that a write sends, and their CRCs.
 *
 * Whole sectors go straight from the caller's memory; sectors that the request covers in part are
 * put together in a buffer of ours, over their old content:
 *
 *      sectors   |-----------|-----------|-----------|-----------|
 *      request          |=============================|
 *      payload   |  place    |   the caller's memory  |  place    |
 *                  head                                 tail
 *
 * A request in too many pieces of memory is copied whole.  One without memory (zeroes) covers no
 * sector whole.
 *
 *     payload_init(&payload, &buffers, &op->io);
 *     payload_plan(&payload);                 // places are there: read the old content into them
 *     payload_build(&payload);                // iovs, crcs
 *     payload_fini(&payload);
 *
 * Threads: one owner.  Errors: -DL_E_NO_MEMORY.
 * Memory:  the caller's memory is borrowed until payload_fini().
 */
#ifndef DLBLK_CLIENT_PAYLOAD_H
#define DLBLK_CLIENT_PAYLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "client/buffers.h"
#include "client/io_op.h"
#include "common/le.h"
#include "proto/frame.h"

#define PAYLOAD_CRCS_INLINE 8u

/* Zeroed: nothing to finish. */
struct payload {
    struct buffers *buffers;
    struct io_slice slice; /* as in struct io_op, as the next three */
    uint32_t sector_count;
    uint32_t skip_bytes;
    uint32_t length_bytes;
    struct iovec iovs[FRAME_PIECES_MAX];
    uint32_t iov_count;
    le32 *crcs; /* one for each sector */
    le32 crcs_inline[PAYLOAD_CRCS_INLINE];
    uint8_t *bounce; /* sectors that are put together here: the first and the last, or all */
    uint32_t bounce_bytes;
    bool bounce_all;
};

void payload_init(struct payload *payload, struct buffers *buffers, const struct io_op *op);
void payload_fini(struct payload *payload);

/* Where the first sector is put together; NULL: it is covered whole.  After payload_plan(). */
uint8_t *payload_head_place(const struct payload *payload);
/* The last one likewise, if it is not the first. */
uint8_t *payload_tail_place(const struct payload *payload);
/* How the payload will be made. */
int payload_plan(struct payload *payload);
/* From the caller's memory as it is now. */
int payload_build(struct payload *payload);
/* The caller's memory is not what it was when the CRCs were computed. */
bool payload_has_changed(const struct payload *payload);
/* The payload is a copy from now on, which nobody changes, with CRCs of its own. */
int payload_copy(struct payload *payload);

#endif
