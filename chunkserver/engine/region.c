/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/engine/region.h"

#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "common/crc32c.h"
#include "common/le.h"
#include "dlblk/error.h"

#define CRC_TAG         0x0d /* field 1, fixed32 */
#define CRC_FIELD_BYTES 5u

static uint32_t
region_crc(const uint8_t *bytes, uint32_t message_bytes)
{
    uint32_t crc = crc32c(0, bytes, REGION_HEADER_BYTES);

    return crc32c(crc, bytes + REGION_HEADER_BYTES + CRC_FIELD_BYTES,
                  message_bytes - CRC_FIELD_BYTES);
}

void
region_seal(void *bytes, size_t region_bytes, const char *magic, uint32_t message_bytes)
{
    uint8_t *region = bytes;
    uint8_t *message = region + REGION_HEADER_BYTES;

    dl_assert(message_bytes > CRC_FIELD_BYTES);
    dl_assert(REGION_HEADER_BYTES + message_bytes <= region_bytes);
    dl_assert(message[0] == CRC_TAG);
    memcpy(region, magic, REGION_MAGIC_BYTES);
    le32_store(region + REGION_MAGIC_BYTES, message_bytes);
    le32_store(message + 1, region_crc(region, message_bytes));
    memset(message + message_bytes, 0, region_bytes - REGION_HEADER_BYTES - message_bytes);
}

int
region_open(const void *bytes, size_t region_bytes, const char *magic, const uint8_t **ret_message,
            uint32_t *ret_message_bytes, char *problem, size_t problem_bytes)
{
    const uint8_t *region = bytes;
    const uint8_t *message = region + REGION_HEADER_BYTES;
    uint32_t message_bytes;

    dl_assert(region_bytes >= REGION_HEADER_BYTES);
    if (memcmp(region, magic, REGION_MAGIC_BYTES) != 0) {
        (void)snprintf(problem, problem_bytes, "no %.8s magic", magic);
        return -DL_E_DISK_FORMAT;
    }
    message_bytes = le32_load(region + REGION_MAGIC_BYTES);
    if (message_bytes <= CRC_FIELD_BYTES || message_bytes > region_bytes - REGION_HEADER_BYTES) {
        (void)snprintf(problem, problem_bytes, "a message of %u bytes cannot be", message_bytes);
        return -DL_E_DISK_DAMAGED;
    }
    if (message[0] != CRC_TAG || le32_load(message + 1) != region_crc(region, message_bytes)) {
        (void)snprintf(problem, problem_bytes, "it does not match its CRC");
        return -DL_E_DISK_DAMAGED;
    }
    for (size_t i = REGION_HEADER_BYTES + message_bytes; i < region_bytes; i++) {
        if (region[i] != 0) {
            (void)snprintf(problem, problem_bytes, "byte %zu should be zero", i);
            return -DL_E_DISK_DAMAGED;
        }
    }
    *ret_message = message;
    *ret_message_bytes = message_bytes;
    return 0;
}
