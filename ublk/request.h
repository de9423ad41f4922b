/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.h: between the kernel's requests and the client's: offsets, segments, flags, error codes.
 * Pure functions.
 *
 * Threads: any.  Errors: -EINVAL, -EIO or -EOPNOTSUPP for a request that can't be one of ours.
 *          Memory: nothing.
 */
#ifndef DLBLK_UBLK_REQUEST_H
#define DLBLK_UBLK_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/client.h"
#include "ublk/abi.h"

#define UBLK_SECTOR_SHIFT 9u

/* What a device has promised to the kernel, and so what the kernel may ask. */
struct ublk_shape {
    uint64_t size_bytes;
    uint32_t logical_bytes;  /* 512 or 4096 */
    uint32_t physical_bytes; /* never torn */
    uint32_t optimal_bytes;
    uint32_t buffer_bytes; /* of a tag: the longest read and write */
    bool read_only;
    /* The kernel is told of a write cache, so it sends FLUSH and FUA: a round trip for each. */
    bool volatile_cache;
};

struct ublk_mapped {
    enum dlblk_op op;
    uint64_t offset_bytes;
    uint64_t length_bytes;
    bool fua;
};

/* 0 and *ret_mapped, or a negative errno for the kernel. */
int ublk_request_map(const struct ublk_shape *shape, const struct ublk_io_desc *desc,
                     struct ublk_mapped *ret_mapped);

/*
 * What COMMIT tells the kernel of a request that ended with err (0 or negative): bytes of a read or
 * write, 0 of the others, or an errno that the block layer knows; EIO stands for all that it does
 * not.
 */
int32_t ublk_request_result(const struct ublk_mapped *mapped, int err);

/* The parameters that promise `shape`. */
void ublk_shape_params(const struct ublk_shape *shape, struct ublk_params *ret_params);
/* 0, or -EINVAL for what no ublk device can be. */
int ublk_shape_check(const struct ublk_shape *shape);

#endif
