/* SPDX-License-Identifier: Apache-2.0 */
/*
 * limits.h: what the metadata service refuses to go beyond.  docs/metadata.md lists them for users.
 *
 * Replies that are not paged (the list of servers, the head of a map) fit into a frame with these;
 * asserted where built.
 */
#ifndef DLBLK_META_LIMITS_H
#define DLBLK_META_LIMITS_H

#include <stdint.h>

#define META_NAME_BYTES_MAX 128u /* volumes, hosts, racks, cliques: TEXT_NAME_BYTES_MAX */
#define META_WAITS_BYTES    256u /* what an owner waits for: a longer text is cut */
#define META_TEXT_BYTES_MAX 128u /* owner, software: longer ones are cut */
#define META_ID_BYTES       16u  /* cluster, disk, attach, change */

#define META_SERVERS_MAX 1024u
#define META_VOLUMES_MAX 65536u
#define META_SEGMENTS_MAX \
    (16u << 20) /* allocated, all volumes together: under 100 bytes of memory each */
#define META_SESSIONS_MAX    8192u
#define META_SESSION_OPS_MAX 256u /* requests of one connection at work; then it is not read from */
/* Of answers that one connection has not taken: likewise. */
#define META_SESSION_UNSENT_BYTES_MAX (4u << 20)

#define META_READERS_MAX 1024u /* read-only attachments of one volume */

#define META_SEGMENT_BYTES_MIN     (1u << 20)
#define META_SEGMENT_BYTES_DEFAULT (64u << 20)
#define META_SEGMENT_BYTES_MAX     (1u << 30)
#define META_VOLUME_SEGMENTS_MAX   UINT32_MAX /* a count fits; 256 PiB of 64 MiB segments */
#define META_STRIPE_WIDTH_MAX      128u
#define META_STRIPE_UNIT_MIN       4096u
#define META_STRIPE_UNIT_DEFAULT   (256u << 10)
#define META_REPLICAS_MAX          8u
#define META_REPLICAS_DEFAULT      3u

#define META_LEASE_EPOCH_TOMBSTONE ((1u << 24) - 1u) /* fence of a deleted volume */
#define META_LEASE_EPOCH_MAX       (META_LEASE_EPOCH_TOMBSTONE - 1u)

#define META_ALLOCATE_MAX    1024u /* segments of one ALLOCATE */
#define META_MAP_PAGE        4096u /* segments of one reply */
#define META_DELETE_BATCH    4096u /* chunks of one CHUNK_DELETE, segment records of one commit */
#define META_REPLY_BYTES     (512u << 10) /* size that paged replies aim at */
#define META_SERVER_COMMANDS 64u          /* requests to one server in flight */

/* A part of an answer to FENCE: one and META_REPLY_BYTES fit into a frame. */
#define META_FENCE_PART_BYTES (384u << 10)
/* Memory for answers that were not handed on yet; beyond it servers are asked again. */
#define META_FENCE_BYTES_MAX (64u << 20)

#define META_SCRUB_ABSENT_MAX 16u /* servers that a scrub names as down */

#endif
