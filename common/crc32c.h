/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc32c.h: CRC-32C (Castagnoli), the checksum of every sector, frame and record.
 *
 * Threads: any.  Errors: none.
 */
#ifndef DLBLK_COMMON_CRC32C_H
#define DLBLK_COMMON_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/*
 * The checksum of what `crc` covers followed by data; begin with 0:
 *     crc32c(crc32c(0, a, a_bytes), b, b_bytes) == crc32c(0, a and b together, a_bytes + b_bytes)
 */
uint32_t crc32c(uint32_t crc, const void *data, size_t length_bytes);

#endif
