/* SPDX-License-Identifier: Apache-2.0 */
/*
 * docs/protocol.md is the protocol's one specification: it names every opcode with its number,
 * every message of control.proto and every constant of the frame with its value, so that a change
 * of the code that is none of the document fails here.
 */
#include "tests/unit/lib/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/control.pb-c.h"
#include "proto/frame.h"

static char *document;

static int
load(void **state)
{
    FILE *file = fopen(PROTOCOL_DOCUMENT, "re");
    size_t length;

    (void)state;
    document = calloc(1, 1 << 20);
    if (file == NULL || document == NULL)
        return -1;
    length = fread(document, 1, (1 << 20) - 1, file);
    (void)fclose(file);
    return length > 1000 ? 0 : -1;
}

static int
unload(void **state)
{
    (void)state;
    free(document);
    return 0;
}

static void
assert_has(const char *text)
{
    if (strstr(document, text) == NULL)
        fail_msg("docs/protocol.md does not say: %s", text);
}

static void
test_every_opcode_is_listed(void **state)
{
    char row[64];

    (void)state;
#define X(number, name)                                             \
    (void)snprintf(row, sizeof(row), "| %d | %s |", number, #name); \
    assert_has(row);
    DL_OPCODES(X)
#undef X
}

/* Each opcode has a section of its own. */
static void
test_every_opcode_is_described(void **state)
{
    char heading[64];

    (void)state;
#define X(number, name)                                            \
    (void)snprintf(heading, sizeof(heading), "\n### %s\n", #name); \
    assert_has(heading);
    DL_OPCODES(X)
#undef X
}

static void
test_constants(void **state)
{
    char text[96];

    (void)state;
    (void)snprintf(text, sizeof(text), "0x%08x", FRAME_MAGIC);
    assert_has(text);
    (void)snprintf(text, sizeof(text), "version %u", WIRE_VERSION);
    assert_has(text);
    (void)snprintf(text, sizeof(text), "body: %u bytes", FRAME_BODY_BYTES_MAX);
    assert_has(text);
    (void)snprintf(text, sizeof(text), "payload: %u bytes", FRAME_PAYLOAD_BYTES_MAX);
    assert_has(text);
    (void)snprintf(text, sizeof(text), "Sectors of a chunk: %u", WIRE_CHUNK_SECTORS_MAX);
    assert_has(text);
}

/* Offsets in the tables of the fixed layouts. */
static void
test_layouts(void **state)
{
    static const struct {
        const char *field;
        size_t offset;
    } fields[] = {
#define HEADER(name) {#name, offsetof(struct frame_header_wire, name)}
        HEADER(header_crc),    HEADER(magic),          HEADER(opcode),         HEADER(flags),
        HEADER(status),        HEADER(reserved_0),     HEADER(request_id),     HEADER(body_bytes),
        HEADER(payload_bytes), HEADER(body_crc),       HEADER(reserved_1),     HEADER(trace_id),
        HEADER(reserved_2),
#define TARGET(name) {#name, offsetof(struct chunk_target_wire, name)}
        TARGET(volume),        TARGET(segment),        TARGET(slot),           TARGET(config_epoch),
        TARGET(lease_epoch),   TARGET(offset_sectors), TARGET(length_sectors),
#define WRITE(name) {#name, offsetof(struct write_request_wire, name)}
        WRITE(version),        WRITE(stable_version),  WRITE(snapshot_seq),    WRITE(attempt),
        WRITE(slot_mask),      WRITE(crc_count),
    };
    char row[96];

    (void)state;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        (void)snprintf(row, sizeof(row), "| %zu | %s |", fields[i].offset, fields[i].field);
        assert_has(row);
    }
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_opcode_is_listed),
        cmocka_unit_test(test_every_opcode_is_described),
        cmocka_unit_test(test_constants),
        cmocka_unit_test(test_layouts),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, load, unload);
}
