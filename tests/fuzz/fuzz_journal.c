/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes where a journal block should be: checked, and walked record by record.  Since random
 * bytes never match a CRC, each input is also tried with its CRCs put right, which is what reaches
 * the records.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/journal.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "dlblk/error.h"
#include "tests/fuzz/fuzz.h"

static uint64_t sink; /* what is parsed is used, so that a sanitizer sees every byte of it */

static void
use_record(const struct journal_record *record)
{
    sink += record->local_id + record->number + record->lsn + record->version;
    if (record->kind == RECORD_WRITE || record->kind == RECORD_FREE || record->kind == RECORD_BAD)
        for (uint32_t i = 0; i < record->extent_count; i++) {
            struct extent extent = extent_get(&record->extents[i]);

            dl_assert(extent.count >= 1 && extent.block <= BLOCK_NUMBER_MAX);
            sink += extent.block;
        }
    if (record->kind == RECORD_WRITE)
        for (uint32_t i = 0; i < record->length_sectors; i++)
            sink += le32_get(record->crcs[i]);
    if (record->kind == RECORD_WRITE || record->kind == RECORD_ZERO)
        dl_assert(record->offset_sectors + record->length_sectors <= CHUNK_SECTORS_MAX);
    sink += strlen(record_kind_name(record->kind));
}

static void
try_block(const uint8_t *block, uint32_t block_bytes)
{
    char problem[JOURNAL_PROBLEM_BYTES] = "";
    struct journal_header header;
    struct journal_record record;
    struct journal_iter iter;
    int result = journal_block_check(block, block_bytes, NULL, &header, problem);

    if (result != 0) {
        dl_assert(strlen(problem) > 0 && strlen(problem) < JOURNAL_PROBLEM_BYTES);
        return;
    }
    dl_assert(header.units * UNIT_BYTES <= block_bytes);
    journal_iter_init(&iter, block, &header);
    while ((result = journal_iter_next(&iter, &record)) > 0)
        use_record(&record);
    dl_assert(result == 0 || result == -DL_E_DISK_DAMAGED);
}

static void
put_crcs_right(uint8_t *block, uint32_t block_bytes)
{
    struct journal_header_disk header;
    uint32_t units, body_bytes;

    memcpy(&header, block, sizeof(header));
    header.magic = le32_of(JOURNAL_MAGIC);
    header.format = le16_of(JOURNAL_FORMAT);
    units = 1 + le16_get(header.units) % (block_bytes / UNIT_BYTES);
    header.units = le16_of((uint16_t)units);
    body_bytes = le32_get(header.body_bytes) % (units * UNIT_BYTES - (uint32_t)sizeof(header) + 1);
    header.body_bytes = le32_of(body_bytes);
    if (le64_get(header.mark) > le64_get(header.lsn))
        header.mark = header.lsn;
    header.body_crc = le32_of(crc32c(0, block + sizeof(header), body_bytes));
    memcpy(block, &header, sizeof(header));
    le32_store(block, crc32c(0, block + sizeof(le32), sizeof(header) - sizeof(le32)));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t units = (uint32_t)((size + UNIT_BYTES - 1) / UNIT_BYTES);
    uint8_t *block;

    if (units == 0 || units > JOURNAL_UNITS_MAX)
        return 0;
    block = calloc(units, UNIT_BYTES);
    dl_assert(block != NULL);
    memcpy(block, data, size);
    try_block(block, units * UNIT_BYTES);
    put_crcs_right(block, units * UNIT_BYTES);
    try_block(block, units * UNIT_BYTES);
    free(block);
    return 0;
}
