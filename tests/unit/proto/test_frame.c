/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames: what is built is decoded to the same values; every single flipped bit of header or body
 * is found; every field that can be wrong is refused when it is, with correct checksums around it;
 * bodies of every wrong length are refused; control messages survive garbage, ignore fields that
 * they don't know, and refuse enum values that they don't know.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "dlblk/error.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"
#include "tests/unit/lib/fake_rng.h"

#define BYTES_MAX (FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX)
#define BODY      FRAME_HEADER_BYTES

/* Header and body as they go over the wire. */
static size_t
frame_bytes(const struct frame_out *out, uint8_t *ret_bytes)
{
    memcpy(ret_bytes, out->head, out->head_bytes);
    if (out->body_tail_bytes != 0)
        memcpy(ret_bytes + out->head_bytes, out->body_tail, out->body_tail_bytes);
    return out->head_bytes + out->body_tail_bytes;
}

/* As a link does: header, then body; the payload stays away. */
static int
receive(const uint8_t *bytes, size_t length, struct frame *ret_frame)
{
    int err = frame_decode_header(bytes, ret_frame);

    if (err != 0)
        return err;
    assert_int_equal(length, FRAME_HEADER_BYTES + ret_frame->body_bytes);
    ret_frame->body = bytes + FRAME_HEADER_BYTES;
    return frame_check_body(ret_frame);
}

/* Correct checksums for bytes that were changed: a peer that is wrong on purpose. */
static void
seal(uint8_t *bytes, size_t length)
{
    struct frame_header_wire *header = (void *)bytes;

    header->body_bytes = le32_of((uint32_t)(length - FRAME_HEADER_BYTES));
    header->body_crc = le32_of(
        length == FRAME_HEADER_BYTES ? 0 : crc32c(0, bytes + BODY, length - FRAME_HEADER_BYTES));
    header->header_crc = le32_of(crc32c(0, bytes + 4, FRAME_HEADER_BYTES - 4));
}

/* --- what is built is what is decoded --- */

static const struct data_target target_sample = {
    .volume = 0x1122334455667788,
    .segment = 0x99aabbcc,
    .slot = 31,
    .config_epoch = 0xddeeff00,
    .lease_epoch = WIRE_LEASE_EPOCH_MAX,
    .offset_sectors = WIRE_CHUNK_SECTORS_MAX - WIRE_IO_SECTORS_MAX,
};

static struct data_write
write_sample(uint32_t sectors)
{
    struct data_write write = {
        .target = target_sample,
        .version = (uint64_t)WIRE_LEASE_EPOCH_MAX << WIRE_VERSION_SEQUENCE_BITS | 0x123456789,
        .stable_version = 0x42,
        .snapshot_seq = 7,
        .attempt = 5,
        .slot_mask = 0x80000001,
        .crc_count = sectors,
    };

    write.target.length_sectors = sectors;
    return write;
}

static void
assert_target(const struct data_target *got, const struct data_target *expected)
{
    assert_int_equal(got->volume, expected->volume);
    assert_int_equal(got->segment, expected->segment);
    assert_int_equal(got->slot, expected->slot);
    assert_int_equal(got->flags, expected->flags);
    assert_int_equal(got->config_epoch, expected->config_epoch);
    assert_int_equal(got->lease_epoch, expected->lease_epoch);
    assert_int_equal(got->offset_sectors, expected->offset_sectors);
    assert_int_equal(got->length_sectors, expected->length_sectors);
}

static uint8_t payload_memory[FRAME_PAYLOAD_BYTES_MAX];

static void
check_write(uint32_t sectors, uint32_t flags)
{
    static uint8_t bytes[BYTES_MAX];
    le32 crcs[WIRE_IO_SECTORS_MAX];
    struct iovec piece = {.iov_base = payload_memory, .iov_len = sectors * WIRE_SECTOR_BYTES};
    struct data_write write = write_sample((flags & WRITE_ZERO) != 0 ? 0 : sectors);
    struct data_write got;
    struct frame_out out;
    struct frame frame;
    size_t length;

    write.target.flags = flags;
    write.target.length_sectors = sectors;
    for (uint32_t i = 0; i < write.crc_count; i++)
        crcs[i] = le32_of(i * 0x01010101);
    frame_out_write(&out, 4711, &write, crcs, &piece, write.crc_count != 0 ? 1 : 0);
    /* A short tail went into the head. */
    assert_true((out.body_tail_bytes == 0) ==
                (write.crc_count * sizeof(le32) <= FRAME_INLINE_TAIL_BYTES));
    length = frame_bytes(&out, bytes);
    assert_int_equal(receive(bytes, length, &frame), 0);
    assert_int_equal(frame.opcode, OP_WRITE);
    assert_false(frame_is_reply(&frame));
    assert_int_equal(frame.status, 0);
    assert_int_equal(frame.request_id, 4711);
    assert_int_equal(frame.payload_bytes, write.crc_count * WIRE_SECTOR_BYTES);
    assert_int_equal(data_write_decode(&frame, &got), 0);
    assert_target(&got.target, &write.target);
    assert_int_equal(got.version, write.version);
    assert_int_equal(got.stable_version, write.stable_version);
    assert_int_equal(got.snapshot_seq, write.snapshot_seq);
    assert_int_equal(got.attempt, write.attempt);
    assert_int_equal(got.slot_mask, write.slot_mask);
    assert_int_equal(got.crc_count, write.crc_count);
    for (uint32_t i = 0; i < got.crc_count; i++)
        assert_int_equal(le32_load(got.crcs_le + i * 4), i * 0x01010101);
}

static void
test_write_round_trip(void **state)
{
    (void)state;
    for (uint32_t sectors = 1; sectors <= WIRE_IO_SECTORS_MAX; sectors++)
        check_write(sectors, sectors % 2 == 0 ? WRITE_RETRY : WRITE_RESOLVE);
    check_write(WIRE_IO_SECTORS_MAX, WRITE_ZERO);
    check_write(1, WRITE_ZERO | WRITE_RETRY | WRITE_RESOLVE);
}

static void
test_read_round_trip(void **state)
{
    struct data_read read = {.target = target_sample, .snapshot_seq = 77};
    uint8_t bytes[256];
    struct data_read got;
    struct frame_out out;
    struct frame frame;

    (void)state;
    read.target.length_sectors = WIRE_IO_SECTORS_MAX;
    frame_out_read(&out, 1, &read);
    assert_int_equal(receive(bytes, frame_bytes(&out, bytes), &frame), 0);
    assert_int_equal(frame.opcode, OP_READ);
    assert_int_equal(frame.payload_bytes, 0);
    assert_int_equal(data_read_decode(&frame, &got), 0);
    assert_target(&got.target, &read.target);
    assert_int_equal(got.snapshot_seq, 77);
}

static void
test_stable_round_trip(void **state)
{
    struct data_stable stable = {.target = target_sample, .stable_version = 1ull << 40};
    uint8_t bytes[256];
    struct data_stable got;
    struct frame_out out;
    struct frame frame;

    (void)state;
    stable.target.offset_sectors = 0;
    stable.target.flags = STABLE_FORGET;
    frame_out_stable(&out, 2, &stable);
    assert_int_equal(receive(bytes, frame_bytes(&out, bytes), &frame), 0);
    assert_int_equal(frame.opcode, OP_STABLE);
    assert_int_equal(data_stable_decode(&frame, &got), 0);
    assert_target(&got.target, &stable.target);
    assert_int_equal(got.stable_version, 1ull << 40);
}

/* CRCs and kinds of a reply; every third sector is data unless `kind` says one for all. */
static uint32_t
reply_fill(uint8_t *crcs_and_kinds, uint32_t sectors, int kind)
{
    uint8_t *kinds = crcs_and_kinds + sectors * 4ul;
    uint32_t data = 0;

    memset(crcs_and_kinds, 0, sectors * 5ul + 4);
    for (uint32_t i = 0; i < sectors; i++) {
        kinds[i] = (uint8_t)(kind >= 0 ? kind : (int)(i % 3));
        if (kinds[i] == WIRE_SECTOR_DATA) {
            le32_store(crcs_and_kinds + i * 4ul, i + 1);
            data++;
        }
    }
    return data;
}

static void
test_read_reply_round_trip(void **state)
{
    static uint8_t bytes[BYTES_MAX];
    uint8_t crcs_and_kinds[WIRE_IO_SECTORS_MAX * 5 + 4];

    (void)state;
    for (uint32_t sectors = 1; sectors <= WIRE_IO_SECTORS_MAX; sectors++) {
        for (int kind = -1; kind <= WIRE_SECTOR_DATA; kind++) {
            uint32_t data = reply_fill(crcs_and_kinds, sectors, kind);
            uint32_t payload_bytes = data == 0 ? 0 : sectors * WIRE_SECTOR_BYTES;
            struct data_read_reply got;
            struct frame_out out;
            struct frame frame;

            frame_out_read_reply(&out, 3, sectors, data, crcs_and_kinds, payload_memory,
                                 payload_bytes);
            assert_int_equal(receive(bytes, frame_bytes(&out, bytes), &frame), 0);
            assert_true(frame_is_reply(&frame));
            assert_int_equal(frame.payload_bytes, payload_bytes);
            assert_int_equal(data_read_reply_decode(&frame, &got), 0);
            assert_int_equal(got.length_sectors, sectors);
            assert_int_equal(got.data_sectors, data);
            assert_memory_equal(got.crcs_le, crcs_and_kinds, sectors * 4ul);
            assert_memory_equal(got.kinds, crcs_and_kinds + sectors * 4ul, sectors);
        }
    }
}

static void
test_status_round_trip(void **state)
{
    uint8_t bytes[256];
    struct frame_out out;
    struct frame frame;

    (void)state;
    frame_out_empty(&out, OP_WRITE, FRAME_REPLY, UINT64_MAX, -DL_E_NO_SPACE);
    assert_int_equal(frame_bytes(&out, bytes), FRAME_HEADER_BYTES);
    assert_int_equal(receive(bytes, FRAME_HEADER_BYTES, &frame), 0);
    assert_int_equal(frame.status, -DL_E_NO_SPACE);
    assert_int_equal(frame.request_id, UINT64_MAX);
    frame_out_empty(&out, OP_PING, 0, 1, 0);
    (void)frame_bytes(&out, bytes);
    assert_int_equal(receive(bytes, FRAME_HEADER_BYTES, &frame), 0);
    assert_int_equal(frame.status, 0);
    assert_false(frame_is_reply(&frame));
}

/* --- damage on the way --- */

static void
test_every_flipped_bit_is_found(void **state)
{
    struct data_write write = write_sample(20);
    struct iovec piece = {.iov_base = payload_memory, .iov_len = 20 * WIRE_SECTOR_BYTES};
    uint8_t bytes[512];
    le32 crcs[20];
    struct frame_out out;
    struct frame frame;
    size_t length;

    (void)state;
    memset(crcs, 0x5a, sizeof(crcs));
    frame_out_write(&out, 9, &write, crcs, &piece, 1);
    length = frame_bytes(&out, bytes);
    for (size_t bit = 0; bit < length * 8; bit++) {
        int err;

        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        err = frame_decode_header(bytes, &frame);
        if (bit < FRAME_HEADER_BYTES * 8ul) {
            assert_int_equal(err,
                             bit / 8 >= 4 && bit / 8 < 8 ? -DL_E_FRAME_MAGIC : -DL_E_CRC_HEADER);
        } else {
            assert_int_equal(err, 0);
            frame.body = bytes + BODY;
            assert_int_equal(frame_check_body(&frame), -DL_E_CRC_HEADER);
        }
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(receive(bytes, length, &frame), 0);
}

/* --- a peer that is wrong on purpose --- */

struct change {
    const char *name;
    size_t at;   /* in the frame's bytes */
    size_t size; /* 1, 2, 4 or 8 */
    uint64_t value;
    int err;
};

static void
apply(uint8_t *bytes, const struct change *change)
{
    for (size_t i = 0; i < change->size; i++)
        bytes[change->at + i] = (uint8_t)(change->value >> 8 * i);
}

#define HEADER_AT(field) offsetof(struct frame_header_wire, field)
#define TARGET_AT(field) (BODY + offsetof(struct chunk_target_wire, field))
#define WRITE_AT(field)  (BODY + offsetof(struct write_request_wire, field))
#define READ_AT(field)   (BODY + offsetof(struct read_request_wire, field))
#define STABLE_AT(field) (BODY + offsetof(struct stable_request_wire, field))
#define REPLY_AT(field)  (BODY + offsetof(struct read_reply_wire, field))
#define BAD              (-DL_E_MESSAGE_MALFORMED)

static void
test_header_fields(void **state)
{
    static const struct change changes[] = {
        {"magic", HEADER_AT(magic), 4, 0x50545448, -DL_E_FRAME_MAGIC},
        {"unknown flag", HEADER_AT(flags), 2, 2, BAD},
        {"unknown flag of a reply", HEADER_AT(flags), 2, 0x8001, BAD},
        {"status of a request", HEADER_AT(status), 2, 1, BAD},
        {"reserved 0", HEADER_AT(reserved_0), 2, 1, BAD},
        {"reserved 1", HEADER_AT(reserved_1), 4, 0x80000000, BAD},
        {"reserved 2", HEADER_AT(reserved_2), 8, 1, BAD},
        {"reserved 2, second", HEADER_AT(reserved_2) + 8, 8, 1ull << 63, BAD},
        {"body too large", HEADER_AT(body_bytes), 4, FRAME_BODY_BYTES_MAX + 1,
         -DL_E_FRAME_TOO_LARGE},
        {"body huge", HEADER_AT(body_bytes), 4, UINT32_MAX, -DL_E_FRAME_TOO_LARGE},
        {"payload too large", HEADER_AT(payload_bytes), 4, FRAME_PAYLOAD_BYTES_MAX + 1,
         -DL_E_FRAME_TOO_LARGE},
        {"largest body", HEADER_AT(body_bytes), 4, FRAME_BODY_BYTES_MAX, 0},
        {"largest payload", HEADER_AT(payload_bytes), 4, FRAME_PAYLOAD_BYTES_MAX, 0},
        {"unknown opcode", HEADER_AT(opcode), 2, 999, 0},
        {"trace id", HEADER_AT(trace_id), 8, UINT64_MAX, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct frame_out out;
        struct frame frame = {.opcode = 12345};
        uint8_t bytes[FRAME_HEADER_BYTES];

        frame_out_empty(&out, OP_PING, 0, 1, 0);
        (void)frame_bytes(&out, bytes);
        apply(bytes, &changes[i]);
        le32_store(bytes, crc32c(0, bytes + 4, FRAME_HEADER_BYTES - 4));
        if (frame_decode_header(bytes, &frame) != changes[i].err)
            fail_msg("%s", changes[i].name);
        /* Outputs of a failure are untouched. */
        if (changes[i].err != 0)
            assert_int_equal(frame.opcode, 12345);
    }
    /* An empty body has the CRC 0. */
    {
        struct frame frame = {.body_bytes = 0, .body_crc = 1};

        assert_int_equal(frame_check_body(&frame), -DL_E_CRC_HEADER);
    }
}

static int
decode_any(const struct frame *frame)
{
    union {
        struct data_write write;
        struct data_read read;
        struct data_read_reply reply;
        struct data_stable stable;
    } decoded;

    switch (frame->opcode) {
    case OP_WRITE:
        return data_write_decode(frame, &decoded.write);
    case OP_READ:
        return frame_is_reply(frame) ? data_read_reply_decode(frame, &decoded.reply)
                                     : data_read_decode(frame, &decoded.read);
    default:
        return data_stable_decode(frame, &decoded.stable);
    }
}

/* Each change alone, in a frame that is good without it. */
static void
check_changes(const struct frame_out *out, const struct change *changes, size_t count)
{
    uint8_t good[512], bytes[512];
    size_t length = frame_bytes(out, good);
    struct frame frame;

    assert_int_equal(receive(good, length, &frame), 0);
    assert_int_equal(decode_any(&frame), 0);
    for (size_t i = 0; i < count; i++) {
        memcpy(bytes, good, length);
        apply(bytes, &changes[i]);
        seal(bytes, length);
        if (receive(bytes, length, &frame) != 0)
            fail_msg("%s: not received", changes[i].name);
        if (decode_any(&frame) != changes[i].err)
            fail_msg("%s: %s", changes[i].name, dl_err_name(decode_any(&frame)));
    }
    /* A body of every other length, and one byte more. */
    memcpy(bytes, good, length);
    for (size_t other = FRAME_HEADER_BYTES; other <= length + 1; other++) {
        if (other == length)
            continue;
        bytes[length] = 0;
        seal(bytes, other);
        assert_int_equal(receive(bytes, other, &frame), 0);
        assert_int_equal(decode_any(&frame), BAD);
    }
}

#define TARGET_CHANGES                                                                             \
    {"volume 0", TARGET_AT(volume), 8, 0, BAD}, {"slot", TARGET_AT(slot), 2, WIRE_SLOTS_MAX, BAD}, \
        {"unknown flag", TARGET_AT(flags), 2, 8, BAD},                                             \
        {"config epoch 0", TARGET_AT(config_epoch), 4, 0, BAD},                                    \
        {"lease epoch 0", TARGET_AT(lease_epoch), 4, 0, BAD},                                      \
        {"lease epoch of a deletion", TARGET_AT(lease_epoch), 4, WIRE_LEASE_EPOCH_TOMBSTONE, BAD}, \
    {                                                                                              \
        "lease epoch beyond", TARGET_AT(lease_epoch), 4, UINT32_MAX, BAD                           \
    }

#define RANGE_CHANGES                                                                         \
    {"length 0", TARGET_AT(length_sectors), 4, 0, -DL_E_RANGE},                               \
        {"length", TARGET_AT(length_sectors), 4, WIRE_IO_SECTORS_MAX + 1, -DL_E_RANGE},       \
        {"length huge", TARGET_AT(length_sectors), 4, UINT32_MAX, -DL_E_RANGE},               \
        {"offset", TARGET_AT(offset_sectors), 4, WIRE_CHUNK_SECTORS_MAX - 1, -DL_E_RANGE},    \
        {"offset beyond", TARGET_AT(offset_sectors), 4, WIRE_CHUNK_SECTORS_MAX, -DL_E_RANGE}, \
    {                                                                                         \
        "offset huge", TARGET_AT(offset_sectors), 4, UINT32_MAX, -DL_E_RANGE                  \
    }

static void
test_write_fields(void **state)
{
    static const struct change changes[] = {
        TARGET_CHANGES,
        RANGE_CHANGES,
        {"a reply", HEADER_AT(flags), 2, FRAME_REPLY, BAD},
        {"version of another lease", WRITE_AT(version) + 5, 1, 7, BAD},
        {"version 0", WRITE_AT(version), 8, 0, BAD},
        {"stable version is the version", WRITE_AT(stable_version), 8,
         (uint64_t)WIRE_LEASE_EPOCH_MAX << 40 | 0x123456789, BAD},
        {"stable version above", WRITE_AT(stable_version), 8, UINT64_MAX, BAD},
        {"birth 0", WRITE_AT(snapshot_seq), 4, 0, BAD},
        {"attempt above the config epoch", WRITE_AT(attempt), 4, 0xddeeff01, BAD},
        {"attempt of this config epoch", WRITE_AT(attempt), 4, 0xddeeff00, 0},
        {"mask without the slot", WRITE_AT(slot_mask), 4, 1, BAD},
        {"fewer crcs", WRITE_AT(crc_count), 4, 1, BAD},
        {"more crcs", WRITE_AT(crc_count), 4, 3, BAD},
        {"crcs beyond everything", WRITE_AT(crc_count), 4, 0x40000002, BAD},
        {"another length", TARGET_AT(length_sectors), 4, 3, BAD},
        {"zeroes with crcs", TARGET_AT(flags), 2, WRITE_ZERO, BAD},
        {"payload too short", HEADER_AT(payload_bytes), 4, 4096, BAD},
        {"payload too long", HEADER_AT(payload_bytes), 4, 3 * 4096, BAD},
        {"no payload", HEADER_AT(payload_bytes), 4, 0, BAD},
        {"payload of no whole sector", HEADER_AT(payload_bytes), 4, 2 * 4096 + 1, BAD},
    };
    struct data_write write = write_sample(2);
    struct iovec piece = {.iov_base = payload_memory, .iov_len = 2 * WIRE_SECTOR_BYTES};
    le32 crcs[2] = {0};
    struct frame_out out;

    (void)state;
    frame_out_write(&out, 1, &write, crcs, &piece, 1);
    check_changes(&out, changes, sizeof(changes) / sizeof(changes[0]));
}

static void
test_zero_write_fields(void **state)
{
    static const struct change changes[] = {
        TARGET_CHANGES,
        {"length 0", TARGET_AT(length_sectors), 4, 0, -DL_E_RANGE},
        {"beyond the largest chunk", TARGET_AT(offset_sectors), 4, 1, -DL_E_RANGE},
        {"length", TARGET_AT(length_sectors), 4, WIRE_CHUNK_SECTORS_MAX + 1, -DL_E_RANGE},
        {"payload", HEADER_AT(payload_bytes), 4, 4096, BAD},
        {"crcs", WRITE_AT(crc_count), 4, 1, BAD},
        {"no zeroes", TARGET_AT(flags), 2, 0, -DL_E_RANGE},
    };
    struct data_write write = write_sample(0);
    struct frame_out out;

    (void)state;
    write.target.flags = WRITE_ZERO;
    write.target.offset_sectors = 0;
    write.target.length_sectors = WIRE_CHUNK_SECTORS_MAX;
    frame_out_write(&out, 1, &write, NULL, NULL, 0);
    check_changes(&out, changes, sizeof(changes) / sizeof(changes[0]));
}

static void
test_read_fields(void **state)
{
    static const struct change changes[] = {
        TARGET_CHANGES,
        RANGE_CHANGES,
        {"flag of writes", TARGET_AT(flags), 2, WRITE_ZERO, BAD},
        {"reserved", READ_AT(reserved), 4, 1, BAD},
        {"payload", HEADER_AT(payload_bytes), 4, 4096, BAD},
    };
    struct data_read read = {.target = target_sample};
    struct frame_out out;

    (void)state;
    read.target.length_sectors = 2;
    frame_out_read(&out, 1, &read);
    check_changes(&out, changes, sizeof(changes) / sizeof(changes[0]));
}

static void
test_stable_fields(void **state)
{
    static const struct change changes[] = {
        TARGET_CHANGES,
        {"a reply", HEADER_AT(flags), 2, FRAME_REPLY, BAD},
        {"offset", TARGET_AT(offset_sectors), 4, 1, BAD},
        {"length", TARGET_AT(length_sectors), 4, 1, BAD},
        {"of another kind", TARGET_AT(flags), 2, 2, BAD},
        {"stable version 0", STABLE_AT(stable_version), 8, 0, BAD},
        {"to a slot that recovers", STABLE_AT(attempt), 4, 1, BAD},
        {"of a later lease", STABLE_AT(stable_version), 8, UINT64_MAX, BAD},
        {"reserved", STABLE_AT(reserved), 4, 1, BAD},
        {"payload", HEADER_AT(payload_bytes), 4, 4096, BAD},
    };
    struct data_stable stable = {.target = target_sample, .stable_version = 5};
    struct frame_out out;

    (void)state;
    stable.target.offset_sectors = 0;
    stable.target.flags = STABLE_FORGET;
    frame_out_stable(&out, 1, &stable);
    check_changes(&out, changes, sizeof(changes) / sizeof(changes[0]));
}

static void
test_read_reply_fields(void **state)
{
    static const struct change changes[] = {
        {"an error", HEADER_AT(status), 2, 1, BAD},
        {"length 0", REPLY_AT(length_sectors), 4, 0, -DL_E_RANGE},
        {"length", REPLY_AT(length_sectors), 4, WIRE_IO_SECTORS_MAX + 1, -DL_E_RANGE},
        {"another length", REPLY_AT(length_sectors), 4, 4, BAD},
        {"fewer data sectors", REPLY_AT(data_sectors), 4, 1, BAD},
        {"more data sectors", REPLY_AT(data_sectors), 4, 3, BAD},
        {"no data sectors", REPLY_AT(data_sectors), 4, 0, BAD},
        {"no payload", HEADER_AT(payload_bytes), 4, 0, BAD},
        {"payload of the data alone", HEADER_AT(payload_bytes), 4, 2 * 4096, BAD},
        {"crc of a hole", BODY + 8, 4, 1, BAD},
        {"unknown kind", BODY + 8 + 5 * 4, 1, 3, BAD},
        {"padding", BODY + 8 + 5 * 4 + 5, 1, 1, BAD},
        {"padding, last", BODY + 8 + 5 * 4 + 7, 1, 1, BAD},
    };
    uint8_t crcs_and_kinds[64];
    uint32_t data = reply_fill(crcs_and_kinds, 5, -1);
    struct frame_out out;

    (void)state;
    /* hole, zero, data, hole, zero: one more becomes data */
    crcs_and_kinds[5 * 4 + 4] = WIRE_SECTOR_DATA;
    data++;
    frame_out_read_reply(&out, 1, 5, data, crcs_and_kinds, payload_memory, 5 * 4096);
    check_changes(&out, changes, sizeof(changes) / sizeof(changes[0]));
}

/* --- control messages --- */

static struct frame
message_frame(const struct frame_out *out, uint8_t *bytes)
{
    struct frame frame;

    assert_int_equal(receive(bytes, frame_bytes(out, bytes), &frame), 0);
    return frame;
}

static void
test_message_round_trip(void **state)
{
    static uint8_t bytes[BYTES_MAX];
    Dl__Server servers[2] = {DL__SERVER__INIT, DL__SERVER__INIT};
    Dl__Server *pointers[2] = {&servers[0], &servers[1]};
    Dl__ServerListReply reply = DL__SERVER_LIST_REPLY__INIT;
    Dl__ServerListReply *got;
    struct frame_out *out;
    struct frame frame;

    (void)state;
    servers[0].id = 1;
    servers[0].address = (char *)"127.0.0.1:1";
    servers[0].state = DL__SERVER_STATE__SERVER_UP;
    servers[1].id = 2;
    servers[1].state = DL__SERVER_STATE__SERVER_OUT;
    reply.n_servers = 2;
    reply.servers = pointers;
    out = frame_out_create_message(OP_SERVER_LIST, FRAME_REPLY, 8, 0, &reply.base);
    assert_non_null(out);
    frame = message_frame(out, bytes);
    out->on_sent(out, 0);
    assert_int_equal(frame.opcode, OP_SERVER_LIST);
    got = (void *)frame_unpack(&frame, &dl__server_list_reply__descriptor);
    assert_non_null(got);
    assert_int_equal(got->n_servers, 2);
    assert_string_equal(got->servers[0]->address, "127.0.0.1:1");
    assert_int_equal(got->servers[1]->state, DL__SERVER_STATE__SERVER_OUT);
    protobuf_c_message_free_unpacked(&got->base, NULL);

    /* A value that only a later version knows, deep inside. */
    servers[1].state = 99;
    out = frame_out_create_message(OP_SERVER_LIST, FRAME_REPLY, 8, 0, &reply.base);
    frame = message_frame(out, bytes);
    out->on_sent(out, -DL_E_CONNECTION_LOST);
    assert_null(frame_unpack(&frame, &dl__server_list_reply__descriptor));
}

static void
test_empty_messages_and_errors(void **state)
{
    static uint8_t bytes[BYTES_MAX];
    Dl__ErrorDetail *detail;
    Dl__VolumeList *list;
    struct frame_out *out;
    struct frame frame;

    (void)state;
    out = frame_out_create_message(OP_VOLUME_LIST, 0, 1, 0, NULL);
    frame = message_frame(out, bytes);
    out->on_sent(out, 0);
    assert_int_equal(frame.body_bytes, 0);
    list = (void *)frame_unpack(&frame, &dl__volume_list__descriptor);
    assert_non_null(list);
    assert_string_equal(list->after, "");
    protobuf_c_message_free_unpacked(&list->base, NULL);

    out = frame_out_create_error(OP_ATTACH, 5, -DL_E_VOLUME_BUSY, "v is attached by host 1",
                                 "steal it");
    frame = message_frame(out, bytes);
    out->on_sent(out, 0);
    assert_true(frame_is_reply(&frame));
    assert_int_equal(frame.status, -DL_E_VOLUME_BUSY);
    detail = (void *)frame_unpack(&frame, &dl__error_detail__descriptor);
    assert_non_null(detail);
    assert_string_equal(detail->text, "v is attached by host 1");
    assert_string_equal(detail->hint, "steal it");
    protobuf_c_message_free_unpacked(&detail->base, NULL);
}

static void
test_message_too_large(void **state)
{
    Dl__VolumeInfo info = DL__VOLUME_INFO__INIT;
    char *name = malloc(FRAME_BODY_BYTES_MAX + 1);
    struct frame_out *out;

    (void)state;
    assert_non_null(name);
    memset(name, 'x', FRAME_BODY_BYTES_MAX);
    name[FRAME_BODY_BYTES_MAX] = '\0';
    info.name = name;
    assert_null(frame_out_create_message(OP_VOLUME_INFO, 0, 1, 0, &info.base));
    /* With the field's tag and length: exactly the limit. */
    name[FRAME_BODY_BYTES_MAX - 4] = '\0';
    out = frame_out_create_message(OP_VOLUME_INFO, 0, 1, 0, &info.base);
    assert_non_null(out);
    assert_non_null(out);
    assert_int_equal(out->body_tail_bytes, FRAME_BODY_BYTES_MAX);
    out->on_sent(out, 0);
    free(name);
}

static void
test_unknown_fields_are_ignored(void **state)
{
    /* name = "v", field 100 = 5 */
    static const uint8_t body[] = {0x0a, 1, 'v', 0xa0, 0x06, 5};
    struct frame frame = {.body = body, .body_bytes = sizeof(body)};
    Dl__VolumeInfo *info = (void *)frame_unpack(&frame, &dl__volume_info__descriptor);

    (void)state;
    assert_non_null(info);
    assert_string_equal(info->name, "v");
    protobuf_c_message_free_unpacked(&info->base, NULL);
}

/*
 * Random bytes, and good messages with random damage, under every type: no crash, no leak
 * (sanitizers look).
 */
static void
test_garbage_messages(void **state)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &dl__hello__descriptor,
        &dl__server_register__descriptor,
        &dl__fence_reply__descriptor,
        &dl__chunk_delete__descriptor,
        &dl__chunk_list__descriptor,
        &dl__volume_create__descriptor,
        &dl__attach_reply__descriptor,
        &dl__fence_status_reply__descriptor,
        &dl__map_reply__descriptor,
        &dl__allocate__descriptor,
        &dl__cluster_status_reply__descriptor,
    };
    struct fake_rng rng;
    unsigned accepted = 0;

    (void)state;
    fake_rng_init(&rng, 3);
    for (unsigned i = 0; i < 50000; i++) {
        uint8_t body[64];
        struct frame frame = {.body = body,
                              .body_bytes = (uint32_t)fake_rng_below(&rng, sizeof(body))};
        ProtobufCMessage *message;

        for (unsigned k = 0; k < frame.body_bytes; k++)
            body[k] = (uint8_t)(fake_rng_percent(&rng, 50) ? fake_rng_below(&rng, 24)
                                                           : fake_rng_next(&rng));
        message = frame_unpack(&frame, types[i % (sizeof(types) / sizeof(types[0]))]);
        if (message != NULL) {
            accepted++;
            protobuf_c_message_free_unpacked(message, NULL);
        }
    }
    assert_true(accepted > 100);
}

static void
test_opcode_names(void **state)
{
    (void)state;
    assert_string_equal(opcode_name(OP_WRITE), "WRITE");
    assert_string_equal(opcode_name(OP_VOLUME_CHANGED), "VOLUME_CHANGED");
    assert_string_equal(opcode_name(999), "opcode 999");
}

UNIT_MAIN(cmocka_unit_test(test_write_round_trip), cmocka_unit_test(test_read_round_trip),
          cmocka_unit_test(test_stable_round_trip), cmocka_unit_test(test_read_reply_round_trip),
          cmocka_unit_test(test_status_round_trip),
          cmocka_unit_test(test_every_flipped_bit_is_found), cmocka_unit_test(test_header_fields),
          cmocka_unit_test(test_write_fields), cmocka_unit_test(test_zero_write_fields),
          cmocka_unit_test(test_read_fields), cmocka_unit_test(test_stable_fields),
          cmocka_unit_test(test_read_reply_fields), cmocka_unit_test(test_message_round_trip),
          cmocka_unit_test(test_empty_messages_and_errors),
          cmocka_unit_test(test_message_too_large),
          cmocka_unit_test(test_unknown_fields_are_ignored),
          cmocka_unit_test(test_garbage_messages), cmocka_unit_test(test_opcode_names))
