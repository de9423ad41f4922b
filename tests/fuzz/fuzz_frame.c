/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_frame.c: the input is one frame as a peer might send it: 64 bytes of header, the rest is the
 * body.
 *
 * First as it is; then with correct checksums and lengths, so that the search gets past them.
 * Whatever is accepted must be within the limits, readable to its last byte (the address sanitizer
 * looks), and come out the same when it is built again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "dlblk/error.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
    if (!condition)
        abort();
}

/*
 * A frame built from what was decoded has the same header (but for what building doesn't know) and
 * body.
 */
static void
require_same(const struct frame *frame, const struct frame_out *out)
{
    const uint8_t *body = out->head + FRAME_HEADER_BYTES;
    uint32_t head_bytes = out->head_bytes - FRAME_HEADER_BYTES;

    require(head_bytes + out->body_tail_bytes == frame->body_bytes);
    require(memcmp(body, frame->body, head_bytes) == 0);
    if (out->body_tail_bytes != 0)
        require(memcmp(out->body_tail, frame->body + head_bytes, out->body_tail_bytes) == 0);
    require(out->payload_bytes == frame->payload_bytes);
}

static void
try_write(const struct frame *frame)
{
    static uint8_t payload[FRAME_PAYLOAD_BYTES_MAX];
    le32 crcs[WIRE_IO_SECTORS_MAX];
    struct iovec piece = {.iov_base = payload};
    struct data_write write;
    struct frame_out out;

    if (data_write_decode(frame, &write) != 0)
        return;
    require(write.target.slot < WIRE_SLOTS_MAX);
    require(write.crc_count <= WIRE_IO_SECTORS_MAX);
    require(write.target.offset_sectors + write.target.length_sectors <= WIRE_CHUNK_SECTORS_MAX);
    require(write.stable_version < write.version);
    memcpy(crcs, write.crcs_le, write.crc_count * sizeof(le32));
    piece.iov_len = write.crc_count * (size_t)WIRE_SECTOR_BYTES;
    frame_out_write(&out, frame->request_id, &write, crcs, &piece, write.crc_count != 0 ? 1 : 0);
    require_same(frame, &out);
}

static void
try_read(const struct frame *frame)
{
    struct data_read read;
    struct frame_out out;

    if (data_read_decode(frame, &read) != 0)
        return;
    require(read.target.length_sectors >= 1 && read.target.length_sectors <= WIRE_IO_SECTORS_MAX);
    frame_out_read(&out, frame->request_id, &read);
    require_same(frame, &out);
}

static void
try_read_reply(const struct frame *frame)
{
    static uint8_t payload[FRAME_PAYLOAD_BYTES_MAX];
    uint8_t crcs_and_kinds[WIRE_IO_SECTORS_MAX * 5 + 4];
    struct data_read_reply reply;
    struct frame_out out;

    if (data_read_reply_decode(frame, &reply) != 0)
        return;
    require(reply.length_sectors >= 1 && reply.length_sectors <= WIRE_IO_SECTORS_MAX);
    require(reply.data_sectors <= reply.length_sectors);
    memset(crcs_and_kinds, 0, sizeof(crcs_and_kinds));
    memcpy(crcs_and_kinds, reply.crcs_le, reply.length_sectors * 4ul);
    memcpy(crcs_and_kinds + reply.length_sectors * 4ul, reply.kinds, reply.length_sectors);
    frame_out_read_reply(&out, frame->request_id, reply.length_sectors, reply.data_sectors,
                         crcs_and_kinds, payload, frame->payload_bytes);
    require_same(frame, &out);
}

static void
try_stable(const struct frame *frame)
{
    struct data_stable stable;
    struct frame_out out;

    if (data_stable_decode(frame, &stable) != 0)
        return;
    frame_out_stable(&out, frame->request_id, &stable);
    require_same(frame, &out);
}

static const ProtobufCMessageDescriptor *const types[] = {
    &dl__hello__descriptor,
    &dl__error_detail__descriptor,
    &dl__server_register__descriptor,
    &dl__server_register_reply__descriptor,
    &dl__server_heartbeat__descriptor,
    &dl__server_list_reply__descriptor,
    &dl__fence__descriptor,
    &dl__fence_reply__descriptor,
    &dl__chunk_delete__descriptor,
    &dl__slot_tell__descriptor,
    &dl__volume_create__descriptor,
    &dl__volume_reply__descriptor,
    &dl__volume_list__descriptor,
    &dl__volume_list_reply__descriptor,
    &dl__volume_info__descriptor,
    &dl__volume_rename__descriptor,
    &dl__volume_resize__descriptor,
    &dl__volume_delete__descriptor,
    &dl__attach__descriptor,
    &dl__attach_reply__descriptor,
    &dl__fence_status__descriptor,
    &dl__fence_status_reply__descriptor,
    &dl__detach__descriptor,
    &dl__map_get__descriptor,
    &dl__map_reply__descriptor,
    &dl__allocate__descriptor,
    &dl__owner_probe__descriptor,
    &dl__volume_changed__descriptor,
    &dl__cluster_status_reply__descriptor,
};

/* What was unpacked is a whole message: it can be packed and freed. */
static void
try_message(const struct frame *frame)
{
    const ProtobufCMessageDescriptor *type =
        types[frame->opcode % (sizeof(types) / sizeof(types[0]))];
    ProtobufCMessage *message = frame_unpack(frame, type);
    struct frame_out *out;

    if (message == NULL)
        return;
    require(protobuf_c_message_check(message));
    out = frame_out_create_message(frame->opcode, 0, 1, 0, message);
    if (out != NULL)
        out->on_sent(out, 0);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void
try_frame(const struct frame *frame)
{
    switch (frame->opcode) {
    case OP_WRITE:
        try_write(frame);
        break;
    case OP_READ:
        if (frame_is_reply(frame))
            try_read_reply(frame);
        else
            try_read(frame);
        break;
    case OP_STABLE:
        try_stable(frame);
        break;
    default:
        try_message(frame);
        break;
    }
    (void)opcode_name(frame->opcode);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame_header_wire header;
    struct frame frame;
    uint8_t *body;

    if (size < FRAME_HEADER_BYTES || size > FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX)
        return 0;
    /* A body in memory of its own: reading past its end is seen. */
    body = malloc(size == FRAME_HEADER_BYTES ? 1 : size - FRAME_HEADER_BYTES);
    require(body != NULL);
    memcpy(body, data + FRAME_HEADER_BYTES, size - FRAME_HEADER_BYTES);
    memcpy(&header, data, sizeof(header));
    (void)frame_decode_header(&header, &frame);

    header.magic = le32_of(FRAME_MAGIC);
    header.body_bytes = le32_of((uint32_t)(size - FRAME_HEADER_BYTES));
    header.body_crc = le32_of(
        size == FRAME_HEADER_BYTES ? 0 : crc32c(0, body, size - FRAME_HEADER_BYTES));
    header.header_crc = le32_of(crc32c(0, (uint8_t *)&header + 4, FRAME_HEADER_BYTES - 4));
    if (frame_decode_header(&header, &frame) == 0) {
        require(frame.payload_bytes <= FRAME_PAYLOAD_BYTES_MAX);
        frame.body = body;
        require(frame_check_body(&frame) == 0);
        try_frame(&frame);
    }
    free(body);
    return 0;
}
