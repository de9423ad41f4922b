/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data.h: the fixed binary messages of the data path: frame header, READ, WRITE, STABLE.
 *
 * A frame is  header (64 bytes) | body (body_bytes) | payload (payload_bytes).  All integers are
 * little-endian.  Hot requests have the fixed bodies below; every other opcode's body is a protobuf
 * message (control.proto).  The specification, with what a receiver checks and answers, is
 * docs/protocol.md.
 */
#ifndef DLBLK_PROTO_DATA_H
#define DLBLK_PROTO_DATA_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "common/le.h"

#define FRAME_MAGIC             0x314b4c44u /* "DLK1" */
#define WIRE_VERSION            1u
#define WIRE_VERSION_MIN        1u
#define FRAME_HEADER_BYTES      64u
#define FRAME_BODY_BYTES_MAX    (1u << 20)
#define FRAME_PAYLOAD_BYTES_MAX (1u << 20)
#define WIRE_SECTOR_BYTES       4096u
#define WIRE_IO_SECTORS_MAX     (FRAME_PAYLOAD_BYTES_MAX / WIRE_SECTOR_BYTES)
#define WIRE_CHUNK_SECTORS_MAX  (1u << 18) /* 1 GiB */
#define WIRE_SLOTS_MAX          32u
/* Lease epochs of owners are 1 to this; one more is the fence of a deleted volume. */
#define WIRE_LEASE_EPOCH_MAX       ((1u << 24) - 2)
#define WIRE_LEASE_EPOCH_TOMBSTONE ((1u << 24) - 1)
#define WIRE_VERSION_SEQUENCE_BITS 40u

/* number, NAME, body of the request, body of the reply; numbers are on the wire: never reused. */
#define DL_OPCODES(X)                                                                    \
    X(1, HELLO) /* both directions, first on a connection */                             \
    X(2, PING)  /* no body; anybody to anybody */                                        \
    /* client -> chunkserver */                                                          \
    X(16, READ)                                                                          \
    X(17, WRITE)                                                                         \
    X(18, STABLE)                                                                        \
    X(19, PENDING)                                                                       \
    X(20, REPAIR)                                                                        \
    /* chunkserver -> chunkserver */                                                     \
    X(24, PULL)                                                                          \
    /* metadata service -> chunkserver, on the connection that the chunkserver opened */ \
    X(32, FENCE)                                                                         \
    X(33, CHUNK_DELETE)                                                                  \
    X(34, SLOT_TELL)                                                                     \
    X(35, SCRUB_VOLUME)                                                                  \
    X(36, CHUNK_LIST)                                                                    \
    /* chunkserver -> metadata service */                                                \
    X(48, SERVER_REGISTER)                                                               \
    X(49, SERVER_HEARTBEAT)                                                              \
    X(50, RECOVERY_REPORT)                                                               \
    X(51, BAD_SECTORS)                                                                   \
    /* client -> metadata service */                                                     \
    X(64, VOLUME_CREATE)                                                                 \
    X(65, VOLUME_LIST)                                                                   \
    X(66, VOLUME_INFO)                                                                   \
    X(67, VOLUME_RENAME)                                                                 \
    X(68, VOLUME_RESIZE)                                                                 \
    X(69, VOLUME_DELETE)                                                                 \
    X(72, ATTACH)                                                                        \
    X(73, DETACH)                                                                        \
    X(74, FENCE_STATUS)                                                                  \
    X(75, MAP_GET)                                                                       \
    X(76, ALLOCATE)                                                                      \
    X(77, EJECT)                                                                         \
    X(78, OWNER_WAITS)                                                                   \
    X(80, SERVER_LIST)                                                                   \
    X(81, CLUSTER_STATUS)                                                                \
    X(82, SERVER_DRAIN)                                                                  \
    X(83, SERVER_UNDRAIN)                                                                \
    X(84, SERVER_REMOVE)                                                                 \
    X(85, SERVER_SET)                                                                    \
    X(86, VOLUME_STATUS)                                                                 \
    X(87, SEGMENT_LOCATE)                                                                \
    X(88, EVENTS)                                                                        \
    X(89, SCRUB)                                                                         \
    /* metadata service -> client, on the connection that the client opened */           \
    X(96, OWNER_PROBE)                                                                   \
    X(97, VOLUME_CHANGED)                                                                \
    X(98, MAP_CHANGED)

enum opcode {
#define X(number, name) OP_##name = number,
    DL_OPCODES(X)
#undef X
};

enum frame_flags {
    FRAME_REPLY = 1u << 0, /* answers the request with this id; status says how */
};

/* --- the header --- */

struct frame_header_wire {
    le32 header_crc; /* CRC-32C of bytes 4..63 */
    le32 magic;
    le16 opcode;
    le16 flags;
    le16 status; /* replies: 0 or a DL_E_* number on the wire; requests: 0 */
    le16 reserved_0;
    le64 request_id; /* the requester's; a reply repeats it */
    le32 body_bytes;
    le32 payload_bytes;
    le32 body_crc; /* CRC-32C of the body; the payload has one CRC per sector, in the body */
    le32 reserved_1;
    le64 trace_id; /* 0, or an id that logs of all parties name */
    le64 reserved_2[2];
};
static_assert(sizeof(struct frame_header_wire) == FRAME_HEADER_BYTES, "frame header");
static_assert(offsetof(struct frame_header_wire, request_id) == 16, "request id");
static_assert(offsetof(struct frame_header_wire, body_crc) == 32, "body crc");

/* --- READ, WRITE, STABLE: the target --- */

/* Which chunk, under which epochs.  First in every data request. */
struct chunk_target_wire {
    le64 volume;
    le32 segment;
    le16 slot;
    le16 flags; /* enum write_flags, enum stable_flags */
    le32 config_epoch;
    le32 lease_epoch;
    le32 offset_sectors;
    le32 length_sectors;
};
static_assert(sizeof(struct chunk_target_wire) == 32, "chunk target");

enum write_flags {
    WRITE_ZERO = 1u << 0,    /* zero extent: no payload, no CRCs; length up to the whole chunk */
    WRITE_RETRY = 1u << 1,   /* may have been sent before */
    WRITE_RESOLVE = 1u << 2, /* rewrite of a takeover: may use the reserve */
};
#define WRITE_FLAGS_KNOWN (WRITE_ZERO | WRITE_RETRY | WRITE_RESOLVE)

/* Values of the kinds in a reply to READ. */
enum wire_sector_kind { WIRE_SECTOR_HOLE = 0, WIRE_SECTOR_ZERO = 1, WIRE_SECTOR_DATA = 2 };

/* Body: this, then crc_count le32 (one per sector; 0 with WRITE_ZERO).  Reply: no body. */
struct write_request_wire {
    struct chunk_target_wire target;
    le64 version;
    le64 stable_version;
    le32 snapshot_seq; /* birth of what is written */
    le32 attempt;      /* to a recovering slot: the attempt's config epoch; else 0 */
    le32 slot_mask;    /* slots that take part in this write */
    le32 crc_count;
};
static_assert(sizeof(struct write_request_wire) == 64, "WRITE");

/* Body: this.  snapshot_seq 0 reads the head. */
struct read_request_wire {
    struct chunk_target_wire target;
    le32 snapshot_seq;
    le32 reserved;
};
static_assert(sizeof(struct read_request_wire) == 40, "READ");

/*
 * Body of the reply to READ: this, then length_sectors le32 CRCs, then length_sectors bytes of enum
 * sector_kind (0 hole, 1 zero, 2 data) padded to 4 bytes with zeroes.  Payload: all sectors, zeroes
 * where there is no data; or none at all, if no sector has data.  CRC 0 where there is no data.
 */
struct read_reply_wire {
    le32 length_sectors;
    le32 data_sectors;
};
static_assert(sizeof(struct read_reply_wire) == 8, "READ reply");

enum stable_flags {
    /*
     * Every slot of the segment is in-sync, and has confirmed this stable version durably: zero
     * extents up to it may be forgotten.  The reply says nothing.
     */
    STABLE_FORGET = 1u << 0,
};
#define STABLE_FLAGS_KNOWN STABLE_FORGET

/*
 * The stable version alone.  Offset and length are 0.  Reply (no body): it is remembered durably.
 */
struct stable_request_wire {
    struct chunk_target_wire target;
    le64 stable_version;
    le32 attempt; /* to a recovering slot: the attempt's config epoch; else 0 */
    le32 reserved;
};
static_assert(sizeof(struct stable_request_wire) == 48, "STABLE");

#endif
