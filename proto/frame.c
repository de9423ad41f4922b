/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/frame.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/crc32c.h"
#include "common/version.h"
#include "dlblk/error.h"
#include "proto/control.pb-c.h"

static_assert(WIRE_VERSION == DLBLK_WIRE_VERSION, "--version names the wire version");
static_assert(sizeof(struct write_request_wire) + FRAME_HEADER_BYTES + FRAME_INLINE_TAIL_BYTES ==
                  FRAME_HEAD_BYTES,
              "the largest fixed body fits into the head");
static_assert(WIRE_SECTOR_DATA == 2, "kinds are compared as one range");

#define KINDS_PADDED_BYTES(sectors) (((sectors) + 3u) & ~3u)

const char *
opcode_name(uint16_t opcode)
{
    static _Thread_local char unknown[24];

    switch (opcode) {
#define X(number, name) \
    case number:        \
        return #name;
        DL_OPCODES(X)
#undef X
    default:
        (void)snprintf(unknown, sizeof(unknown), "opcode %u", (unsigned)opcode);
        return unknown;
    }
}

/* --- receiving --- */

int
frame_decode_header(const void *bytes, struct frame *ret_frame)
{
    const struct frame_header_wire *wire = bytes;
    uint16_t flags = le16_get(wire->flags);
    uint16_t status = le16_get(wire->status);
    bool reply = (flags & FRAME_REPLY) != 0;

    /* The magic first: it tells a stranger from a damaged frame. */
    if (le32_get(wire->magic) != FRAME_MAGIC)
        return -DL_E_FRAME_MAGIC;
    if (le32_get(wire->header_crc) !=
        crc32c(0, (const uint8_t *)bytes + sizeof(le32), FRAME_HEADER_BYTES - sizeof(le32)))
        return -DL_E_CRC_HEADER;
    if (le32_get(wire->body_bytes) > FRAME_BODY_BYTES_MAX ||
        le32_get(wire->payload_bytes) > FRAME_PAYLOAD_BYTES_MAX)
        return -DL_E_FRAME_TOO_LARGE;
    if (le16_get(wire->reserved_0) != 0 || le32_get(wire->reserved_1) != 0 ||
        le64_get(wire->reserved_2[0]) != 0 || le64_get(wire->reserved_2[1]) != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if ((flags & ~(unsigned)FRAME_REPLY) != 0 || (!reply && status != 0))
        return -DL_E_MESSAGE_MALFORMED;
    *ret_frame = (struct frame){
        .opcode = le16_get(wire->opcode),
        .flags = flags,
        .status = dl_err_from_wire(status),
        .request_id = le64_get(wire->request_id),
        .trace_id = le64_get(wire->trace_id),
        .body_bytes = le32_get(wire->body_bytes),
        .payload_bytes = le32_get(wire->payload_bytes),
        .body_crc = le32_get(wire->body_crc),
    };
    return 0;
}

int
frame_check_body(const struct frame *frame)
{
    uint32_t crc = frame->body_bytes == 0 ? 0 : crc32c(0, frame->body, frame->body_bytes);

    return crc == frame->body_crc ? 0 : -DL_E_CRC_HEADER;
}

/* The target of every data request: what holds for all of them. */
static int
target_decode(const struct chunk_target_wire *wire, uint32_t flags_known,
              struct data_target *ret_target)
{
    struct data_target target = {
        .volume = le64_get(wire->volume),
        .segment = le32_get(wire->segment),
        .slot = le16_get(wire->slot),
        .flags = le16_get(wire->flags),
        .config_epoch = le32_get(wire->config_epoch),
        .lease_epoch = le32_get(wire->lease_epoch),
        .offset_sectors = le32_get(wire->offset_sectors),
        .length_sectors = le32_get(wire->length_sectors),
    };

    if (target.volume == 0 || target.slot >= WIRE_SLOTS_MAX || (target.flags & ~flags_known) != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if (target.config_epoch == 0 || target.lease_epoch == 0 ||
        target.lease_epoch > WIRE_LEASE_EPOCH_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    *ret_target = target;
    return 0;
}

static int
target_check_range(const struct data_target *target, uint32_t length_sectors_max)
{
    if (target->length_sectors == 0 || target->length_sectors > length_sectors_max)
        return -DL_E_RANGE;
    if (target->offset_sectors >= WIRE_CHUNK_SECTORS_MAX ||
        target->length_sectors > WIRE_CHUNK_SECTORS_MAX - target->offset_sectors)
        return -DL_E_RANGE;
    return 0;
}

static int
write_check_versions(const struct data_write *write)
{
    if (write->version >> WIRE_VERSION_SEQUENCE_BITS != write->target.lease_epoch)
        return -DL_E_MESSAGE_MALFORMED;
    if (write->stable_version >= write->version)
        return -DL_E_MESSAGE_MALFORMED;
    if (write->snapshot_seq == 0 || write->attempt > write->target.config_epoch)
        return -DL_E_MESSAGE_MALFORMED;
    if ((write->slot_mask & 1u << write->target.slot) == 0)
        return -DL_E_MESSAGE_MALFORMED;
    return 0;
}

/* Lengths that must agree with each other: of the range, the CRCs, the body and the payload. */
static int
write_check_lengths(const struct frame *frame, const struct data_write *write)
{
    bool zero = (write->target.flags & WRITE_ZERO) != 0;
    int err = target_check_range(&write->target,
                                 zero ? WIRE_CHUNK_SECTORS_MAX : WIRE_IO_SECTORS_MAX);

    if (err != 0)
        return err;
    if (write->crc_count != (zero ? 0 : write->target.length_sectors))
        return -DL_E_MESSAGE_MALFORMED;
    if (frame->body_bytes != sizeof(struct write_request_wire) + write->crc_count * sizeof(le32))
        return -DL_E_MESSAGE_MALFORMED;
    if (frame->payload_bytes != write->crc_count * WIRE_SECTOR_BYTES)
        return -DL_E_MESSAGE_MALFORMED;
    return 0;
}

int
data_write_decode(const struct frame *frame, struct data_write *ret_write)
{
    const struct write_request_wire *wire = (const void *)frame->body;
    struct data_write write;
    int err;

    if (frame_is_reply(frame) || frame->body_bytes < sizeof(*wire))
        return -DL_E_MESSAGE_MALFORMED;
    err = target_decode(&wire->target, WRITE_FLAGS_KNOWN, &write.target);
    if (err != 0)
        return err;
    write.version = le64_get(wire->version);
    write.stable_version = le64_get(wire->stable_version);
    write.snapshot_seq = le32_get(wire->snapshot_seq);
    write.attempt = le32_get(wire->attempt);
    write.slot_mask = le32_get(wire->slot_mask);
    write.crc_count = le32_get(wire->crc_count);
    write.crcs_le = frame->body + sizeof(*wire);
    err = write_check_versions(&write);
    if (err == 0)
        err = write_check_lengths(frame, &write);
    if (err == 0)
        *ret_write = write;
    return err;
}

int
data_read_decode(const struct frame *frame, struct data_read *ret_read)
{
    const struct read_request_wire *wire = (const void *)frame->body;
    struct data_read read;
    int err;

    if (frame_is_reply(frame) || frame->body_bytes != sizeof(*wire) || frame->payload_bytes != 0)
        return -DL_E_MESSAGE_MALFORMED;
    err = target_decode(&wire->target, 0, &read.target);
    if (err != 0)
        return err;
    if (le32_get(wire->reserved) != 0)
        return -DL_E_MESSAGE_MALFORMED;
    err = target_check_range(&read.target, WIRE_IO_SECTORS_MAX);
    if (err != 0)
        return err;
    read.snapshot_seq = le32_get(wire->snapshot_seq);
    *ret_read = read;
    return 0;
}

int
data_stable_decode(const struct frame *frame, struct data_stable *ret_stable)
{
    const struct stable_request_wire *wire = (const void *)frame->body;
    struct data_stable stable;
    int err;

    if (frame_is_reply(frame) || frame->body_bytes != sizeof(*wire) || frame->payload_bytes != 0)
        return -DL_E_MESSAGE_MALFORMED;
    err = target_decode(&wire->target, STABLE_FLAGS_KNOWN, &stable.target);
    if (err != 0)
        return err;
    stable.stable_version = le64_get(wire->stable_version);
    stable.attempt = le32_get(wire->attempt);
    if (stable.target.offset_sectors != 0 || stable.target.length_sectors != 0 ||
        le32_get(wire->reserved) != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if ((stable.target.flags & STABLE_FORGET) != 0 && stable.attempt != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if (stable.stable_version == 0 ||
        stable.stable_version >> WIRE_VERSION_SEQUENCE_BITS > stable.target.lease_epoch)
        return -DL_E_MESSAGE_MALFORMED;
    *ret_stable = stable;
    return 0;
}

/* Each sector's kind and CRC, and the padding behind the kinds. */
static int
read_reply_check_sectors(const struct data_read_reply *reply)
{
    uint32_t data_sectors = 0;
    uint32_t padded = KINDS_PADDED_BYTES(reply->length_sectors);

    for (uint32_t i = 0; i < reply->length_sectors; i++) {
        if (reply->kinds[i] > WIRE_SECTOR_DATA)
            return -DL_E_MESSAGE_MALFORMED;
        if (reply->kinds[i] == WIRE_SECTOR_DATA)
            data_sectors++;
        else if (le32_load(reply->crcs_le + i * sizeof(le32)) != 0)
            return -DL_E_MESSAGE_MALFORMED;
    }
    for (uint32_t i = reply->length_sectors; i < padded; i++)
        if (reply->kinds[i] != 0)
            return -DL_E_MESSAGE_MALFORMED;
    return data_sectors == reply->data_sectors ? 0 : -DL_E_MESSAGE_MALFORMED;
}

int
data_read_reply_decode(const struct frame *frame, struct data_read_reply *ret_reply)
{
    const struct read_reply_wire *wire = (const void *)frame->body;
    struct data_read_reply reply;
    int err;

    if (!frame_is_reply(frame) || frame->status != 0 || frame->body_bytes < sizeof(*wire))
        return -DL_E_MESSAGE_MALFORMED;
    reply.length_sectors = le32_get(wire->length_sectors);
    reply.data_sectors = le32_get(wire->data_sectors);
    if (reply.length_sectors == 0 || reply.length_sectors > WIRE_IO_SECTORS_MAX)
        return -DL_E_RANGE;
    if (frame->body_bytes != sizeof(*wire) + reply.length_sectors * sizeof(le32) +
                                 KINDS_PADDED_BYTES(reply.length_sectors))
        return -DL_E_MESSAGE_MALFORMED;
    if (frame->payload_bytes !=
        (reply.data_sectors == 0 ? 0 : reply.length_sectors * WIRE_SECTOR_BYTES))
        return -DL_E_MESSAGE_MALFORMED;
    reply.crcs_le = frame->body + sizeof(*wire);
    reply.kinds = reply.crcs_le + reply.length_sectors * sizeof(le32);
    err = read_reply_check_sectors(&reply);
    if (err == 0)
        *ret_reply = reply;
    return err;
}

/* --- sending --- */

/*
 * Complete the head of a frame whose fixed body (fixed_bytes of it) stands behind the header
 * already.  A short tail moves into the head: a message to be gathered has one piece less then.
 */
static void
frame_out_finish(struct frame_out *frame, uint16_t opcode, uint16_t flags, uint64_t request_id,
                 int status, uint32_t fixed_bytes, const void *tail, uint32_t tail_bytes)
{
    struct frame_header_wire *header = (void *)frame->head;
    uint8_t *body = frame->head + FRAME_HEADER_BYTES;
    uint32_t crc;

    dl_assert(fixed_bytes <= FRAME_HEAD_BYTES - FRAME_HEADER_BYTES);
    dl_assert(fixed_bytes + tail_bytes <= FRAME_BODY_BYTES_MAX);
    if (tail_bytes <= FRAME_HEAD_BYTES - FRAME_HEADER_BYTES - fixed_bytes) {
        if (tail_bytes != 0)
            memcpy(body + fixed_bytes, tail, tail_bytes);
        fixed_bytes += tail_bytes;
        tail_bytes = 0;
        tail = NULL;
    }
    frame->head_bytes = FRAME_HEADER_BYTES + fixed_bytes;
    frame->body_tail = tail;
    frame->body_tail_bytes = tail_bytes;
    crc = fixed_bytes == 0 ? 0 : crc32c(0, body, fixed_bytes);
    if (tail_bytes != 0)
        crc = crc32c(crc, tail, tail_bytes);
    *header = (struct frame_header_wire){
        .magic = le32_of(FRAME_MAGIC),
        .opcode = le16_of(opcode),
        .flags = le16_of(flags),
        .status = le16_of(dl_err_to_wire(status)),
        .request_id = le64_of(request_id),
        .body_bytes = le32_of(fixed_bytes + tail_bytes),
        .payload_bytes = le32_of(frame->payload_bytes),
        .body_crc = le32_of(crc),
    };
    header->header_crc = le32_of(
        crc32c(0, frame->head + sizeof(le32), FRAME_HEADER_BYTES - sizeof(le32)));
}

static void
frame_out_no_payload(struct frame_out *frame)
{
    frame->payload = NULL;
    frame->payload_count = 0;
    frame->payload_bytes = 0;
}

static void
target_encode(struct chunk_target_wire *wire, const struct data_target *target)
{
    dl_assert(target->slot < WIRE_SLOTS_MAX);
    *wire = (struct chunk_target_wire){
        .volume = le64_of(target->volume),
        .segment = le32_of(target->segment),
        .slot = le16_of((uint16_t)target->slot),
        .flags = le16_of((uint16_t)target->flags),
        .config_epoch = le32_of(target->config_epoch),
        .lease_epoch = le32_of(target->lease_epoch),
        .offset_sectors = le32_of(target->offset_sectors),
        .length_sectors = le32_of(target->length_sectors),
    };
}

void
frame_out_write(struct frame_out *frame, uint64_t request_id, const struct data_write *write,
                const le32 *crcs, const struct iovec *payload, uint32_t payload_count)
{
    struct write_request_wire *wire = (void *)(frame->head + FRAME_HEADER_BYTES);

    dl_assert(payload_count <= FRAME_PIECES_MAX);
    target_encode(&wire->target, &write->target);
    wire->version = le64_of(write->version);
    wire->stable_version = le64_of(write->stable_version);
    wire->snapshot_seq = le32_of(write->snapshot_seq);
    wire->attempt = le32_of(write->attempt);
    wire->slot_mask = le32_of(write->slot_mask);
    wire->crc_count = le32_of(write->crc_count);
    frame->payload_bytes = 0;
    for (uint32_t i = 0; i < payload_count; i++)
        frame->payload_bytes += (uint32_t)payload[i].iov_len;
    dl_assert(frame->payload_bytes == write->crc_count * WIRE_SECTOR_BYTES);
    frame->payload = payload;
    frame->payload_count = payload_count;
    frame_out_finish(frame, OP_WRITE, 0, request_id, 0, sizeof(*wire), crcs,
                     write->crc_count * (uint32_t)sizeof(le32));
}

void
frame_out_read(struct frame_out *frame, uint64_t request_id, const struct data_read *read)
{
    struct read_request_wire *wire = (void *)(frame->head + FRAME_HEADER_BYTES);

    target_encode(&wire->target, &read->target);
    wire->snapshot_seq = le32_of(read->snapshot_seq);
    wire->reserved = le32_of(0);
    frame_out_no_payload(frame);
    frame_out_finish(frame, OP_READ, 0, request_id, 0, sizeof(*wire), NULL, 0);
}

void
frame_out_read_reply(struct frame_out *frame, uint64_t request_id, uint32_t length_sectors,
                     uint32_t data_sectors, const void *crcs_and_kinds, void *payload,
                     uint32_t payload_bytes)
{
    struct read_reply_wire *wire = (void *)(frame->head + FRAME_HEADER_BYTES);

    dl_assert(length_sectors >= 1);
    dl_assert(length_sectors <= WIRE_IO_SECTORS_MAX);
    dl_assert(payload_bytes == (data_sectors == 0 ? 0 : length_sectors * WIRE_SECTOR_BYTES));
    wire->length_sectors = le32_of(length_sectors);
    wire->data_sectors = le32_of(data_sectors);
    frame_out_no_payload(frame);
    if (payload_bytes != 0) {
        frame->payload_one = (struct iovec){.iov_base = payload, .iov_len = payload_bytes};
        frame->payload = &frame->payload_one;
        frame->payload_count = 1;
        frame->payload_bytes = payload_bytes;
    }
    frame_out_finish(frame, OP_READ, FRAME_REPLY, request_id, 0, sizeof(*wire), crcs_and_kinds,
                     length_sectors * (uint32_t)sizeof(le32) + KINDS_PADDED_BYTES(length_sectors));
}

void
frame_out_stable(struct frame_out *frame, uint64_t request_id, const struct data_stable *stable)
{
    struct stable_request_wire *wire = (void *)(frame->head + FRAME_HEADER_BYTES);

    target_encode(&wire->target, &stable->target);
    wire->stable_version = le64_of(stable->stable_version);
    wire->attempt = le32_of(stable->attempt);
    wire->reserved = le32_of(0);
    frame_out_no_payload(frame);
    frame_out_finish(frame, OP_STABLE, 0, request_id, 0, sizeof(*wire), NULL, 0);
}

void
frame_out_empty(struct frame_out *frame, uint16_t opcode, uint16_t flags, uint64_t request_id,
                int status)
{
    frame_out_no_payload(frame);
    frame_out_finish(frame, opcode, flags, request_id, status, 0, NULL, 0);
}

void
frame_out_message_reply(struct frame_out *frame, uint16_t opcode, uint64_t request_id,
                        const void *body, uint32_t body_bytes, void *payload,
                        uint32_t payload_bytes)
{
    frame_out_no_payload(frame);
    if (payload_bytes != 0) {
        frame->payload_one = (struct iovec){.iov_base = payload, .iov_len = payload_bytes};
        frame->payload = &frame->payload_one;
        frame->payload_count = 1;
        frame->payload_bytes = payload_bytes;
    }
    frame_out_finish(frame, opcode, FRAME_REPLY, request_id, 0, 0, body, body_bytes);
}

/* --- control messages --- */

void
frame_out_destroy(struct frame_out *frame)
{
    free(frame);
}

static void
frame_out_free(struct frame_out *frame, int err)
{
    (void)err;
    frame_out_destroy(frame);
}

bool
frame_out_frees_itself(const struct frame_out *frame)
{
    return frame->on_sent == frame_out_free;
}

struct frame_out *
frame_out_create_message(uint16_t opcode, uint16_t flags, uint64_t request_id, int status,
                         const ProtobufCMessage *message)
{
    size_t body_bytes = message == NULL ? 0 : protobuf_c_message_get_packed_size(message);
    struct frame_out *frame;
    uint8_t *body;

    if (body_bytes > FRAME_BODY_BYTES_MAX)
        return NULL;
    frame = malloc(sizeof(*frame) + body_bytes);
    if (frame == NULL)
        return NULL;
    *frame = (struct frame_out){.on_sent = frame_out_free};
    body = (uint8_t *)(frame + 1);
    if (body_bytes != 0)
        (void)protobuf_c_message_pack(message, body);
    frame_out_finish(frame, opcode, flags, request_id, status, 0, body, (uint32_t)body_bytes);
    return frame;
}

struct frame_out *
frame_out_create_error(uint16_t opcode, uint64_t request_id, int status, const char *text,
                       const char *hint)
{
    Dl__ErrorDetail detail = DL__ERROR_DETAIL__INIT;

    dl_assert(status != 0);
    /*
     * proto3 strings that are not set are empty ones; the packer doesn't write through these
     * pointers.
     */
    if (text != NULL)
        detail.text = (char *)(uintptr_t)text;
    if (hint != NULL)
        detail.hint = (char *)(uintptr_t)hint;
    return frame_out_create_message(opcode, FRAME_REPLY, request_id, status, &detail.base);
}

static bool message_enums_known(const ProtobufCMessage *message);

static bool
field_enums_known(const ProtobufCFieldDescriptor *field, const void *value)
{
    int number;

    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        const ProtobufCMessage *const *inner = value;

        return *inner == NULL || message_enums_known(*inner);
    }
    memcpy(&number, value, sizeof(number));
    return protobuf_c_enum_descriptor_get_value(field->descriptor, number) != NULL;
}

/*
 * An enum's value that this version doesn't know has no default to fall back to: protobuf-c lets it
 * pass.
 */
static bool
message_enums_known(const ProtobufCMessage *message)
{
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const uint8_t *member = (const uint8_t *)message + field->offset;
        const uint8_t *items;
        size_t stride;
        size_t count;

        if (field->type != PROTOBUF_C_TYPE_MESSAGE && field->type != PROTOBUF_C_TYPE_ENUM)
            continue;
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            if (!field_enums_known(field, member))
                return false;
            continue;
        }
        stride = field->type == PROTOBUF_C_TYPE_ENUM ? sizeof(int) : sizeof(void *);
        memcpy(&count, (const uint8_t *)message + field->quantifier_offset, sizeof(count));
        memcpy(&items, member, sizeof(void *));
        for (size_t k = 0; k < count; k++)
            if (!field_enums_known(field, items + k * stride))
                return false;
    }
    return true;
}

ProtobufCMessage *
frame_unpack(const struct frame *frame, const ProtobufCMessageDescriptor *type)
{
    ProtobufCMessage *message;

    message = protobuf_c_message_unpack(type, NULL, frame->body_bytes, frame->body);
    if (message != NULL && !message_enums_known(message)) {
        protobuf_c_message_free_unpacked(message, NULL);
        return NULL;
    }
    return message;
}
