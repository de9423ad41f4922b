/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes where a superblock should be: refused with a reason, or understood; what is understood
 * is encoded again and is the same.  Each input is also tried as the message of a region whose CRC
 * is right.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/region.h"
#include "chunkserver/engine/superblock.h"
#include "common/assert.h"
#include "tests/fuzz/fuzz.h"

static void
try_bytes(const uint8_t *bytes)
{
    char problem[SUPERBLOCK_PROBLEM_BYTES] = "";
    struct superblock first, second;
    uint8_t *again;

    if (superblock_decode(bytes, &first, problem) != 0) {
        dl_assert(strlen(problem) > 0);
        return;
    }
    dl_assert(strlen(first.meta_address) <= SUPERBLOCK_META_BYTES_MAX);
    again = calloc(1, SUPERBLOCK_BYTES);
    dl_assert(again != NULL);
    superblock_encode(&first, again);
    dl_assert(superblock_decode(again, &second, problem) == 0);
    dl_assert(first.generation == second.generation && first.cut == second.cut);
    dl_assert(first.geometry.ring_bytes == second.geometry.ring_bytes);
    dl_assert(strcmp(first.meta_address, second.meta_address) == 0);
    free(again);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = calloc(1, SUPERBLOCK_BYTES);

    dl_assert(bytes != NULL);
    if (size > SUPERBLOCK_BYTES)
        size = SUPERBLOCK_BYTES;
    memcpy(bytes, data, size);
    try_bytes(bytes);
    /* The input as the message. */
    if (size > 5 && size <= SUPERBLOCK_BYTES - REGION_HEADER_BYTES) {
        memset(bytes, 0, SUPERBLOCK_BYTES);
        memcpy(bytes + REGION_HEADER_BYTES, data, size);
        bytes[REGION_HEADER_BYTES] = 0x0d;
        region_seal(bytes, SUPERBLOCK_BYTES, "dlblk-sb", (uint32_t)size);
        try_bytes(bytes);
    }
    free(bytes);
    return 0;
}
