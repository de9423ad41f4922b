/* SPDX-License-Identifier: Apache-2.0 */
#include "client/payload.h"

#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "dlblk/error.h"

void
payload_init(struct payload *payload, struct buffers *buffers, const struct io_op *op)
{
    payload->buffers = buffers;
    payload->slice = op->slice;
    payload->sector_count = op->sector_count;
    payload->skip_bytes = op->skip_bytes;
    payload->length_bytes = op->length_bytes;
}

static uint32_t
payload_bytes(const struct payload *payload)
{
    return payload->sector_count * WIRE_SECTOR_BYTES;
}

static int
payload_acquire_bounce(struct payload *payload, uint32_t bytes)
{
    payload->bounce = buffers_acquire(payload->buffers, bytes);
    payload->bounce_bytes = bytes;
    return payload->bounce != NULL ? 0 : -DL_E_NO_MEMORY;
}

static void
payload_release_bounce(struct payload *payload)
{
    if (payload->bounce != NULL)
        buffers_release(payload->buffers, payload->bounce, payload->bounce_bytes);
    payload->bounce = NULL;
}

/* --- partial sectors --- */

/* Bytes of the request in its first sector, if that is partial; and in its last. */
static uint32_t
payload_head_bytes(const struct payload *payload)
{
    if (payload->skip_bytes == 0)
        return 0;
    return min_u32(payload->length_bytes, WIRE_SECTOR_BYTES - payload->skip_bytes);
}

static uint32_t
payload_tail_bytes(const struct payload *payload)
{
    uint32_t tail_bytes = (payload->skip_bytes + payload->length_bytes) % WIRE_SECTOR_BYTES;

    return payload->sector_count > 1 || payload->skip_bytes == 0 ? tail_bytes : 0;
}

uint8_t *
payload_head_place(const struct payload *payload)
{
    return payload_head_bytes(payload) > 0 ? payload->bounce : NULL;
}

uint8_t *
payload_tail_place(const struct payload *payload)
{
    if (payload_tail_bytes(payload) == 0)
        return NULL;
    if (payload->sector_count == 1)
        return payload->bounce;
    return payload->bounce +
           (payload->bounce_all ? payload_bytes(payload) : 2 * WIRE_SECTOR_BYTES) -
           WIRE_SECTOR_BYTES;
}

/* --- the bytes --- */

/* The whole sectors in the caller's memory: 0 if they are in too many pieces. */
static uint32_t
payload_whole_iovs(const struct payload *payload, uint32_t whole_bytes, struct iovec *ret_iovs)
{
    return io_slice_iovecs(io_slice_advance(payload->slice, payload_head_bytes(payload)),
                           whole_bytes, ret_iovs, FRAME_PIECES_MAX - 2);
}

int
payload_plan(struct payload *payload)
{
    uint32_t partial_bytes = payload_head_bytes(payload) + payload_tail_bytes(payload);
    uint32_t whole_bytes = payload->length_bytes - partial_bytes;

    if (whole_bytes > 0 && payload_whole_iovs(payload, whole_bytes, payload->iovs) == 0)
        payload->bounce_all = true;
    if (payload->bounce_all)
        return payload_acquire_bounce(payload, payload_bytes(payload));
    if (partial_bytes == 0)
        return 0;
    return payload_acquire_bounce(payload, payload->sector_count == 1 ? WIRE_SECTOR_BYTES
                                                                      : 2 * WIRE_SECTOR_BYTES);
}

static void
payload_add(struct payload *payload, void *bytes, size_t length_bytes)
{
    payload->iovs[payload->iov_count++] = (struct iovec){
        .iov_base = bytes,
        .iov_len = length_bytes,
    };
}

static void
payload_fill(struct payload *payload)
{
    uint32_t head_bytes = payload_head_bytes(payload);
    uint32_t tail_bytes = payload_tail_bytes(payload);
    uint32_t whole_bytes = payload->length_bytes - head_bytes - tail_bytes;

    payload->iov_count = 0;
    if (payload->bounce_all) {
        io_slice_copy_from(payload->slice, payload->bounce + payload->skip_bytes,
                           payload->length_bytes);
        payload_add(payload, payload->bounce, payload_bytes(payload));
        return;
    }
    if (head_bytes > 0) {
        uint8_t *place = payload_head_place(payload);

        io_slice_copy_from(payload->slice, place + payload->skip_bytes, head_bytes);
        payload_add(payload, place, WIRE_SECTOR_BYTES);
    }
    if (whole_bytes > 0)
        payload->iov_count += payload_whole_iovs(payload, whole_bytes,
                                                 payload->iovs + payload->iov_count);
    if (tail_bytes > 0) {
        uint8_t *place = payload_tail_place(payload);

        io_slice_copy_from(io_slice_advance(payload->slice, head_bytes + whole_bytes), place,
                           tail_bytes);
        payload_add(payload, place, WIRE_SECTOR_BYTES);
    }
}

/* CRCs of the payload as it is now. */
static void
payload_compute_crcs(const struct payload *payload, le32 *ret_crcs)
{
    const struct iovec *iov = payload->iovs;
    size_t at = 0;

    for (uint32_t i = 0; i < payload->sector_count; i++) {
        uint32_t crc = 0;
        size_t left = WIRE_SECTOR_BYTES;

        while (left > 0) {
            size_t run = min_u64(left, iov->iov_len - at);

            crc = crc32c(crc, (const uint8_t *)iov->iov_base + at, run);
            left -= run;
            at += run;
            if (at == iov->iov_len) {
                iov++;
                at = 0;
            }
        }
        ret_crcs[i] = le32_of(crc);
    }
}

int
payload_build(struct payload *payload)
{
    payload_fill(payload);
    payload->crcs = payload->crcs_inline;
    if (payload->sector_count > PAYLOAD_CRCS_INLINE)
        payload->crcs = buffers_acquire(payload->buffers, payload->sector_count * sizeof(le32));
    if (payload->crcs == NULL)
        return -DL_E_NO_MEMORY;
    payload_compute_crcs(payload, payload->crcs);
    return 0;
}

bool
payload_has_changed(const struct payload *payload)
{
    le32 crcs[WINDOW_SECTORS];

    payload_compute_crcs(payload, crcs);
    return memcmp(crcs, payload->crcs, payload->sector_count * sizeof(le32)) != 0;
}

int
payload_copy(struct payload *payload)
{
    uint32_t bytes = payload_bytes(payload);
    uint8_t *copy = buffers_acquire(payload->buffers, bytes);
    size_t at = 0;

    if (copy == NULL)
        return -DL_E_NO_MEMORY;
    for (uint32_t i = 0; i < payload->iov_count; i++) {
        memcpy(copy + at, payload->iovs[i].iov_base, payload->iovs[i].iov_len);
        at += payload->iovs[i].iov_len;
    }
    dl_assert(at == bytes);
    payload_release_bounce(payload);
    payload->bounce = copy;
    payload->bounce_bytes = bytes;
    payload->iov_count = 0;
    payload_add(payload, copy, bytes);
    payload_compute_crcs(payload, payload->crcs);
    return 0;
}

void
payload_fini(struct payload *payload)
{
    if (payload->crcs != NULL && payload->crcs != payload->crcs_inline)
        buffers_release(payload->buffers, payload->crcs, payload->sector_count * sizeof(le32));
    payload->crcs = NULL;
    payload_release_bounce(payload);
}
