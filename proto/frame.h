/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.h: frames between memory and bytes: building what is sent, checking what arrived.
 *
 * Pure functions, no I/O, no allocation except where said.  All that comes from a peer is checked
 * whole in one function before anything acts on it; the functions that check return 0 or a negative
 * DL_E_*.
 */
#ifndef DLBLK_PROTO_FRAME_H
#define DLBLK_PROTO_FRAME_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/list.h"
#include "proto/data.h"

/* A frame that arrived, or the header of one that is arriving.  Host byte order. */
struct frame {
    uint16_t opcode;
    uint16_t flags;
    int status; /* replies: 0 or a negative DL_E_* */
    uint64_t request_id;
    uint64_t trace_id;
    uint32_t body_bytes;
    uint32_t payload_bytes;
    uint32_t body_crc;
    const uint8_t *body; /* in the link's buffer, any alignment */
    void *payload;       /* where on_payload put it; NULL: none, or dropped */
};

static inline bool
frame_is_reply(const struct frame *frame)
{
    return (frame->flags & FRAME_REPLY) != 0;
}

/*
 * Room for the header, the fixed part of a body, and a short rest of it (the CRCs of a small
 * write): one piece less.
 */
#define FRAME_INLINE_TAIL_BYTES 32u
#define FRAME_HEAD_BYTES        (FRAME_HEADER_BYTES + 64u + FRAME_INLINE_TAIL_BYTES)
#define FRAME_PIECES_MAX        8u

/*
 * A frame to be sent: embedded in the operation it serves.  Sent in this order:
 *   head[0 .. head_bytes)    header and the fixed part of the body
 *   body_tail                rest of the body (CRCs, a protobuf message), borrowed; a short one is
 *                            copied into head
 *   payload[0 .. payload_count)  borrowed
 * Built by the frame_out_* functions; on_sent by the owner before link_send().
 */
struct frame_out {
    struct list node; /* for the link */
    uint32_t head_bytes;
    uint32_t body_tail_bytes;
    uint32_t payload_bytes;
    uint32_t payload_count;
    const void *body_tail;
    const struct iovec *payload;
    struct iovec payload_one; /* room for the common case */
    void *owner;              /* for on_sent: whose it is, if the frame is not embedded */
    void (*on_sent)(struct frame_out *frame, int err);
    uint8_t head[FRAME_HEAD_BYTES];
};

/* --- receiving --- */

/*
 * Check and decode FRAME_HEADER_BYTES bytes.  -DL_E_CRC_HEADER, -DL_E_FRAME_MAGIC: the stream is
 * out of step, close.  -DL_E_FRAME_TOO_LARGE: close.  -DL_E_MESSAGE_MALFORMED: reserved bits,
 * close.  An unknown opcode is no error here: the stream is in step, the core answers with
 * -DL_E_OPCODE_UNKNOWN.
 */
int frame_decode_header(const void *bytes, struct frame *ret_frame);
/* The body has arrived: frame->body is set; compares its CRC.  -DL_E_CRC_HEADER: close. */
int frame_check_body(const struct frame *frame);

/*
 * Requests and replies of the data path in host byte order, checked: lengths, ranges, flags,
 * reserved fields.
 */
struct data_target {
    uint64_t volume;
    uint32_t segment;
    uint32_t slot;
    uint32_t flags;
    uint32_t config_epoch;
    uint32_t lease_epoch;
    uint32_t offset_sectors;
    uint32_t length_sectors;
};

struct data_write {
    struct data_target target;
    uint64_t version;
    uint64_t stable_version;
    uint32_t snapshot_seq;
    uint32_t attempt;
    uint32_t slot_mask;
    uint32_t crc_count;
    const uint8_t *crcs_le; /* crc_count little-endian values in the body, any alignment */
};

struct data_read {
    struct data_target target;
    uint32_t snapshot_seq;
};

struct data_read_reply {
    uint32_t length_sectors;
    uint32_t data_sectors;
    const uint8_t *crcs_le;
    const uint8_t *kinds;
};

struct data_stable {
    struct data_target target;
    uint64_t stable_version;
    uint32_t attempt;
};

int data_write_decode(const struct frame *frame, struct data_write *ret_write);
int data_read_decode(const struct frame *frame, struct data_read *ret_read);
int data_read_reply_decode(const struct frame *frame, struct data_read_reply *ret_reply);
int data_stable_decode(const struct frame *frame, struct data_stable *ret_stable);

/* --- sending: each fills frame->head and the pieces; lengths and CRCs are final afterwards --- */

/*
 * crcs: little-endian, crc_count of them, borrowed (frame->body_tail).  payload pieces: borrowed.
 */
void frame_out_write(struct frame_out *frame, uint64_t request_id, const struct data_write *write,
                     const le32 *crcs, const struct iovec *payload, uint32_t payload_count);
void frame_out_read(struct frame_out *frame, uint64_t request_id, const struct data_read *read);
/*
 * crcs_and_kinds: length_sectors le32, then the kinds, padded: borrowed; payload_bytes 0 if no
 * sector has data.
 */
void frame_out_read_reply(struct frame_out *frame, uint64_t request_id, uint32_t length_sectors,
                          uint32_t data_sectors, const void *crcs_and_kinds, void *payload,
                          uint32_t payload_bytes);
void frame_out_stable(struct frame_out *frame, uint64_t request_id,
                      const struct data_stable *stable);
/* A frame without body: a PING, or a reply with only a status (negative DL_E_* or 0). */
void frame_out_empty(struct frame_out *frame, uint16_t opcode, uint16_t flags, uint64_t request_id,
                     int status);

/*
 * A reply with a packed message as its body and a payload, both borrowed; payload_bytes may be 0.
 */
void frame_out_message_reply(struct frame_out *frame, uint16_t opcode, uint64_t request_id,
                             const void *body, uint32_t body_bytes, void *payload,
                             uint32_t payload_bytes);

/* --- control messages: an allocated frame_out that frees itself --- */

/*
 * A frame with a packed protobuf message as its body (message may be NULL: empty body).  Freed by
 * itself in its on_sent.  NULL: no memory, or the message is larger than FRAME_BODY_BYTES_MAX.
 */
struct frame_out *frame_out_create_message(uint16_t opcode, uint16_t flags, uint64_t request_id,
                                           int status, const ProtobufCMessage *message);
/* An error reply: status, and an ErrorDetail with text and hint (either may be NULL). */
struct frame_out *frame_out_create_error(uint16_t opcode, uint64_t request_id, int status,
                                         const char *text, const char *hint);
/*
 * For those two, if the sender has put an on_sent of its own in place of theirs.  NULL is allowed.
 */
void frame_out_destroy(struct frame_out *frame);
/* Is it one of those two, and nobody else's?  For who drops frames without telling. */
bool frame_out_frees_itself(const struct frame_out *frame);
/* Unpack frame->body; NULL: malformed.  Freed by protobuf_c_message_free_unpacked(). */
ProtobufCMessage *frame_unpack(const struct frame *frame, const ProtobufCMessageDescriptor *type);

/* "WRITE", or "opcode 999" from a static buffer per thread */
const char *opcode_name(uint16_t opcode);

#endif
