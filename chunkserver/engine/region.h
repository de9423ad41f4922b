/* SPDX-License-Identifier: Apache-2.0 */
/*
 * region.h: the common form of self-describing regions: magic, u32 length, a protobuf message,
 * zeroes.
 *
 *     0        8        12                          12 + length          region's length
 *     | magic  | length | 0x0d crc u32 | rest       | zeroes ...         |
 *
 * Field 1 of each message is `required fixed32 crc`, so that it is the first thing in its bytes.
 * The CRC covers the magic, the length, and the message behind the CRC itself.
 *
 * Threads: any.  Blocks: never.
 * Errors:  of region_open(): -DL_E_DISK_FORMAT (another magic), -DL_E_DISK_DAMAGED, and why in
 *          `problem`.
 */
#ifndef DLBLK_ENGINE_REGION_H
#define DLBLK_ENGINE_REGION_H

#include <stddef.h>
#include <stdint.h>

#define REGION_HEADER_BYTES 12u
#define REGION_MAGIC_BYTES  8u

/*
 * The packed message is at bytes + REGION_HEADER_BYTES, with any crc: fill in the rest of
 * region_bytes bytes.
 */
void region_seal(void *bytes, size_t region_bytes, const char *magic, uint32_t message_bytes);

/* Any bytes.  The message found lies in `bytes`. */
int region_open(const void *bytes, size_t region_bytes, const char *magic,
                const uint8_t **ret_message, uint32_t *ret_message_bytes, char *problem,
                size_t problem_bytes);

#endif
