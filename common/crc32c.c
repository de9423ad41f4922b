/* SPDX-License-Identifier: Apache-2.0 */
#include "common/crc32c.h"

#include <isa-l/crc.h>

/* ISA-L counts in int; a multiple of its block size. */
#define CHUNK_BYTES_MAX (1u << 30)

uint32_t
crc32c(uint32_t crc, const void *data, size_t length_bytes)
{
    /* ISA-L only reads, although it takes the buffer without const. */
    unsigned char *position = (unsigned char *)(uintptr_t)data;

    crc = ~crc; /* ISA-L leaves the inversions to its callers */
    while (length_bytes > CHUNK_BYTES_MAX) {
        crc = crc32_iscsi(position, CHUNK_BYTES_MAX, crc);
        position += CHUNK_BYTES_MAX;
        length_bytes -= CHUNK_BYTES_MAX;
    }
    return ~crc32_iscsi(position, (int)length_bytes, crc);
}
