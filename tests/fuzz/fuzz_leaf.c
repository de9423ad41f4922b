/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes where a leaf's value should be: an error, or 64 sectors that are well formed and the
 * same after another round through encode and decode.  Each input is also tried with the CRCs of
 * its fragments put right.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/leaf.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "dlblk/error.h"
#include "tests/fuzz/fuzz.h"

#define BLOCK_COUNT 100000u

static void
check_sector(const struct leaf_sector *sector)
{
    unsigned kind = leaf_sector_kind(sector);

    dl_assert(kind <= SECTOR_VOID);
    dl_assert(kind != SECTOR_DATA || leaf_sector_block(sector) < BLOCK_COUNT);
}

static void
try_value(const uint8_t *value, uint32_t value_bytes)
{
    struct leaf_sector sectors[LEAF_SECTORS], again[LEAF_SECTORS];
    uint8_t *encoded;
    uint64_t lsn, lsn_again;
    uint32_t fragments, encoded_bytes;
    int result = leaf_decode(value, value_bytes, BLOCK_COUNT, sectors, &lsn, &fragments);

    if (result != 0) {
        dl_assert(result == -DL_E_INDEX_CORRUPT);
        return;
    }
    for (uint32_t i = 0; i < LEAF_SECTORS; i++)
        check_sector(&sectors[i]);
    encoded = malloc(LEAF_FRAGMENT_BYTES_MAX);
    dl_assert(encoded != NULL);
    encoded_bytes = leaf_encode(sectors, UINT64_MAX, true, lsn, encoded);
    dl_assert(encoded_bytes <= LEAF_FRAGMENT_BYTES_MAX);
    dl_assert(leaf_decode(encoded, encoded_bytes, BLOCK_COUNT, again, &lsn_again, &fragments) == 0);
    dl_assert(lsn_again == lsn && fragments == 1);
    for (uint32_t i = 0; i < LEAF_SECTORS; i++) {
        dl_assert(again[i].version == sectors[i].version);
        dl_assert(again[i].block_kind == sectors[i].block_kind);
        dl_assert(again[i].crc == sectors[i].crc);
    }
    free(encoded);
}

static void
put_crcs_right(uint8_t *value, uint32_t value_bytes)
{
    uint32_t at = 0;

    while (value_bytes - at >= sizeof(struct leaf_fragment_disk)) {
        uint32_t left = value_bytes - at;
        uint32_t bytes = le16_load(value + at + offsetof(struct leaf_fragment_disk, bytes));

        if (bytes < sizeof(struct leaf_fragment_disk) || bytes > left) {
            bytes = left < UINT16_MAX ? left : UINT16_MAX;
            le16_store(value + at + offsetof(struct leaf_fragment_disk, bytes), (uint16_t)bytes);
        }
        le32_store(value + at, crc32c(0, value + at + sizeof(le32), bytes - sizeof(le32)));
        at += bytes;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *value;

    if (size > 16 * LEAF_FRAGMENT_BYTES_MAX)
        return 0;
    value = malloc(size + 1);
    dl_assert(value != NULL);
    memcpy(value, data, size);
    try_value(value, (uint32_t)size);
    put_crcs_right(value, (uint32_t)size);
    try_value(value, (uint32_t)size);
    free(value);
    return 0;
}
