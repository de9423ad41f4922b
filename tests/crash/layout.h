/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layout.h: small disks for tests: how large a disk of so many slabs and journal units is, and how
 * to format it.
 */
#ifndef DLBLK_TESTS_CRASH_LAYOUT_H
#define DLBLK_TESTS_CRASH_LAYOUT_H

#include <string.h>

#include "chunkserver/engine/engine.h"

#define LAYOUT_UNIT           4096u
#define LAYOUT_SLAB_BYTES     (4u << 20)
#define LAYOUT_METADATA_BYTES LAYOUT_SLAB_BYTES
#define LAYOUT_ALIGNMENT      (64u << 10) /* of the regions */

static inline uint64_t
layout_disk_bytes(uint32_t slabs, uint32_t journal_units)
{
    return 2 * (uint64_t)LAYOUT_UNIT + (uint64_t)journal_units * LAYOUT_UNIT +
           2 * LAYOUT_ALIGNMENT + LAYOUT_METADATA_BYTES + (uint64_t)slabs * LAYOUT_SLAB_BYTES;
}

static inline void
layout_format(uint32_t slabs, uint32_t journal_units, uint64_t reserve_bytes,
              struct engine_format *ret_format)
{
    (void)slabs;
    memset(ret_format, 0, sizeof(*ret_format));
    memset(ret_format->disk_uuid, 0xd1, sizeof(ret_format->disk_uuid));
    memset(ret_format->cluster_id, 0xc1, sizeof(ret_format->cluster_id));
    ret_format->meta_address = "127.0.0.1:7000";
    ret_format->journal_bytes = (uint64_t)journal_units * LAYOUT_UNIT;
    ret_format->metadata_bytes = LAYOUT_METADATA_BYTES;
    ret_format->reserve_bytes = reserve_bytes;
}

#endif
