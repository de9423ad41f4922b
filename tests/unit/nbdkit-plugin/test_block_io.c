/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of any offset and length, on volumes of 512-byte and of 4 KiB blocks:
 *   - thousands of random ones leave the volume as they leave a plain array;
 *   - writes to different parts of one block, at the same time, don't undo each other;
 *   - a failed read of a block in part writes nothing, and keeps nobody out afterwards;
 *   - what is larger than a request may be is split.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "nbdkit-plugin/block_io.h"
#include "tests/unit/lib/fake_libdlblk.h"

#define VOLUME_BYTES (256u << 10)

struct fixture {
    struct dlblk_client *client;
    struct dlblk_volume *volume;
    struct block_io io;
};

static void
fixture_open(struct fixture *fixture, uint64_t size_bytes, uint32_t block_bytes)
{
    struct dl_error err;

    fake_libdlblk_reset();
    fake_libdlblk_add_volume("v", size_bytes, block_bytes);
    assert_int_equal(dlblk_client_create(&fixture->client, NULL, &err), 0);
    assert_int_equal(dlblk_volume_open(fixture->client, "v", 0, &fixture->volume, &err), 0);
    block_io_init(&fixture->io, fixture->volume);
}

static void
fixture_close(struct fixture *fixture)
{
    block_io_fini(&fixture->io);
    assert_int_equal(dlblk_volume_close(fixture->volume, NULL), 0);
    dlblk_client_destroy(fixture->client);
    fake_libdlblk_reset();
}

static uint32_t
next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* --- random requests against an array --- */

static uint32_t
random_length(uint64_t *seed, uint32_t most)
{
    static const uint32_t scales[] = {1, 600, 5000, 40000};
    uint32_t length = 1 + next_random(seed) % scales[next_random(seed) % 4];

    if (next_random(seed) % 4 == 0)
        length = (length + 4095) & ~4095u;
    return length < most ? length : most;
}

static void
trim_mirror(uint8_t *mirror, uint32_t length, uint32_t offset, uint32_t block)
{
    uint32_t first = (offset + block - 1) & ~(block - 1);
    uint32_t end = (offset + length) & ~(block - 1);

    if (end > first)
        memset(mirror + first, 0, end - first);
}

static void
do_one(struct fixture *fixture, uint8_t *mirror, uint64_t *seed)
{
    static uint8_t data[VOLUME_BYTES];
    uint32_t offset = next_random(seed) % VOLUME_BYTES;
    uint32_t length, value = next_random(seed) & 0xff;

    if (next_random(seed) % 4 == 0)
        offset &= ~4095u;
    length = random_length(seed, VOLUME_BYTES - offset);
    switch (next_random(seed) % 5) {
    case 0:
    case 1:
        memset(data, (int)value, length);
        data[0] = (uint8_t)~value;
        data[length - 1] = (uint8_t)(value + 1);
        memcpy(mirror + offset, data, length);
        assert_int_equal(block_io_write(&fixture->io, data, length, offset), 0);
        break;
    case 2:
        memset(mirror + offset, 0, length);
        assert_int_equal(block_io_zero(&fixture->io, length, offset), 0);
        break;
    case 3:
        trim_mirror(mirror, length, offset, fixture->io.block_bytes);
        assert_int_equal(block_io_trim(&fixture->io, length, offset), 0);
        break;
    default:
        memset(data, 0x55, length);
        assert_int_equal(block_io_read(&fixture->io, data, length, offset), 0);
        assert_memory_equal(data, mirror + offset, length);
        break;
    }
}

static void
random_requests(uint32_t block_bytes)
{
    uint8_t *mirror = calloc(1, VOLUME_BYTES);
    struct fixture fixture;
    uint64_t seed = block_bytes;

    assert_non_null(mirror);
    fixture_open(&fixture, VOLUME_BYTES, block_bytes);
    for (int i = 0; i < 20000; i++)
        do_one(&fixture, mirror, &seed);
    assert_memory_equal(fake_libdlblk_bytes("v"), mirror, VOLUME_BYTES);
    /* All kinds took part, and most writes had to read first. */
    assert_true(fake_libdlblk_request_count(DLBLK_WRITE) > 5000);
    assert_true(fake_libdlblk_request_count(DLBLK_READ) > 10000);
    assert_true(fake_libdlblk_request_count(DLBLK_WRITE_ZEROES) > 500);
    assert_true(fake_libdlblk_request_count(DLBLK_DISCARD) > 500);
    fixture_close(&fixture);
    free(mirror);
}

static void
test_random_requests_block_512(void **state)
{
    (void)state;
    random_requests(512);
}

static void
test_random_requests_block_4096(void **state)
{
    (void)state;
    random_requests(4096);
}

/* Whole blocks take one request each, and nothing is read for them. */
static void
test_whole_blocks_take_one_request(void **state)
{
    static uint8_t data[8192];
    struct fixture fixture;

    (void)state;
    fixture_open(&fixture, VOLUME_BYTES, 4096);
    assert_int_equal(block_io_write(&fixture.io, data, 8192, 4096), 0);
    assert_int_equal(block_io_zero(&fixture.io, 8192, 8192), 0);
    assert_int_equal(block_io_trim(&fixture.io, 8192, 8192), 0);
    assert_int_equal(block_io_flush(&fixture.io), 0);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_READ), 0);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE), 1);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE_ZEROES), 1);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_DISCARD), 1);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_FLUSH), 1);
    fixture_close(&fixture);
}

static void
test_zero_is_fast_with_a_whole_block(void **state)
{
    struct fixture fixture;

    (void)state;
    fixture_open(&fixture, VOLUME_BYTES, 4096);
    assert_true(block_io_zero_is_fast(&fixture.io, 4096, 0));
    assert_true(block_io_zero_is_fast(&fixture.io, 8191, 4095));
    assert_false(block_io_zero_is_fast(&fixture.io, 4095, 0));
    assert_false(block_io_zero_is_fast(&fixture.io, 8190, 1));
    fixture_close(&fixture);
}

/* --- at the same time --- */

#define THREADS       6
#define ROUNDS        300
#define PART_BYTES    700 /* several threads' parts in a block, and parts across the end of one */
#define SHARED_BLOCKS 4

struct writer {
    pthread_t thread;
    struct block_io *io;
    uint32_t number;
    int err;
    uint64_t wrong;
};

/* Writes and zeroes its own bytes, which nobody else touches, and reads them back. */
static void *
part_writer(void *context)
{
    struct writer *writer = context;
    uint8_t data[PART_BYTES], seen[PART_BYTES];
    uint64_t offset = writer->number * PART_BYTES;
    uint64_t seed = writer->number + 1;

    for (int i = 0; i < ROUNDS && writer->err == 0; i++) {
        uint64_t at = offset + (next_random(&seed) % SHARED_BLOCKS) * (THREADS * PART_BYTES);

        memset(data, (int)(next_random(&seed) & 0xff), sizeof(data));
        if (i % 5 == 4) {
            memset(data, 0, sizeof(data));
            writer->err = block_io_zero(writer->io, sizeof(data), at);
        } else {
            writer->err = block_io_write(writer->io, data, sizeof(data), at);
        }
        if (writer->err == 0)
            writer->err = block_io_read(writer->io, seen, sizeof(seen), at);
        writer->wrong += memcmp(data, seen, sizeof(data)) != 0;
    }
    return NULL;
}

/* Writes whole blocks: all bytes but the first are nobody else's. */
static void *
block_writer(void *context)
{
    struct writer *writer = context;
    uint8_t data[4096], seen[4096];

    for (int i = 0; i < ROUNDS && writer->err == 0; i++) {
        memset(data, i & 0xff, sizeof(data));
        writer->err = block_io_write(writer->io, data, sizeof(data), 0);
        if (writer->err == 0)
            writer->err = block_io_read(writer->io, seen, sizeof(seen), 0);
        writer->wrong += memcmp(data + 1, seen + 1, sizeof(data) - 1) != 0;
    }
    return NULL;
}

/* Writes the block's first byte. */
static void *
byte_writer(void *context)
{
    struct writer *writer = context;

    for (int i = 0; i < ROUNDS && writer->err == 0; i++) {
        uint8_t byte = (uint8_t)i;

        writer->err = block_io_write(writer->io, &byte, 1, 0);
    }
    return NULL;
}

static void
run_writers(struct fixture *fixture, struct writer *writers, uint32_t count,
            void *(*const functions[])(void *))
{
    for (uint32_t i = 0; i < count; i++) {
        writers[i] = (struct writer){.io = &fixture->io, .number = i};
        assert_int_equal(pthread_create(&writers[i].thread, NULL, functions[i], &writers[i]), 0);
    }
    for (uint32_t i = 0; i < count; i++)
        (void)pthread_join(writers[i].thread, NULL);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(writers[i].err, 0);
        assert_int_equal(writers[i].wrong, 0);
    }
}

static void
test_parts_of_a_block_at_the_same_time(void **state)
{
    void *(*const functions[THREADS])(void *) = {part_writer, part_writer, part_writer,
                                                 part_writer, part_writer, part_writer};
    struct writer writers[THREADS];
    struct fixture fixture;

    (void)state;
    fixture_open(&fixture, VOLUME_BYTES, 4096);
    fake_libdlblk_set_delay_us(50);
    run_writers(&fixture, writers, THREADS, functions);
    fixture_close(&fixture);
}

/*
 * The block writer's data must not be undone by a rewrite that read the block before:
 *
 *   byte writer    read block .............. write block with its byte
 *   block writer               write block                             read: its own bytes?
 */
static void
test_part_and_whole_block_at_the_same_time(void **state)
{
    void *(*const functions[3])(void *) = {block_writer, byte_writer, byte_writer};
    struct writer writers[3];
    struct fixture fixture;

    (void)state;
    fixture_open(&fixture, VOLUME_BYTES, 4096);
    fake_libdlblk_set_delay_us(50);
    run_writers(&fixture, writers, 3, functions);
    fixture_close(&fixture);
}

/* --- errors and limits --- */

static void
test_failed_read_of_a_part_writes_nothing(void **state)
{
    static uint8_t data[8192];
    struct fixture fixture;

    (void)state;
    fixture_open(&fixture, VOLUME_BYTES, 4096);
    for (uint32_t countdown = 1; countdown <= 2; countdown++) {
        fake_libdlblk_fail(DLBLK_READ, countdown, -DL_E_CRC_DATA);
        assert_int_equal(block_io_write(&fixture.io, data, 8000, 100), -DL_E_CRC_DATA);
        fake_libdlblk_fail(DLBLK_READ, countdown, -DL_E_CRC_DATA);
        assert_int_equal(block_io_zero(&fixture.io, 8000, 100), -DL_E_CRC_DATA);
    }
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE), 0);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE_ZEROES), 0);
    /* Nobody is kept out by what has failed. */
    assert_int_equal(block_io_write(&fixture.io, data, 8000, 100), 0);
    assert_int_equal(block_io_write(&fixture.io, data, 4096, 0), 0);
    fixture_close(&fixture);
}

static void
test_errors_come_back(void **state)
{
    static uint8_t data[20000];
    struct fixture fixture;

    (void)state;
    fixture_open(&fixture, VOLUME_BYTES, 4096);
    fake_libdlblk_fail(DLBLK_WRITE, 1, -DL_E_NO_SPACE);
    assert_int_equal(block_io_write(&fixture.io, data, 4096, 0), -DL_E_NO_SPACE);
    fake_libdlblk_fail(DLBLK_WRITE, 2, -DL_E_NO_SPACE);
    assert_int_equal(block_io_zero(&fixture.io, 19000, 100), -DL_E_NO_SPACE);
    fake_libdlblk_fail(DLBLK_WRITE_ZEROES, 1, -DL_E_LEASE_OLD);
    assert_int_equal(block_io_zero(&fixture.io, 19000, 100), -DL_E_LEASE_OLD);
    fake_libdlblk_fail(DLBLK_READ, 1, -DL_E_TIMEOUT);
    assert_int_equal(block_io_read(&fixture.io, data, 10, 10), -DL_E_TIMEOUT);
    fake_libdlblk_fail(DLBLK_DISCARD, 1, -DL_E_TIMEOUT);
    assert_int_equal(block_io_trim(&fixture.io, 8192, 0), -DL_E_TIMEOUT);
    fake_libdlblk_fail(DLBLK_FLUSH, 1, -DL_E_TIMEOUT);
    assert_int_equal(block_io_flush(&fixture.io), -DL_E_TIMEOUT);
    fixture_close(&fixture);
}

/* 64 MiB that don't begin at a block touch more blocks than one request may. */
static void
test_largest_request_is_split(void **state)
{
    const uint32_t length = 64u << 20;
    uint8_t *data = malloc(length);
    struct fixture fixture;

    (void)state;
    assert_non_null(data);
    for (uint32_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 24);
    fixture_open(&fixture, 65u << 20, 4096);
    assert_int_equal(block_io_write(&fixture.io, data, length, 1000), 0);
    assert_memory_equal(fake_libdlblk_bytes("v") + 1000, data, length);
    assert_int_equal(fake_libdlblk_bytes("v")[999], 0);
    assert_int_equal(fake_libdlblk_bytes("v")[1000 + length], 0);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE), 2);
    memset(data, 0, length);
    assert_int_equal(block_io_read(&fixture.io, data, length, 1000), 0);
    assert_memory_equal(fake_libdlblk_bytes("v") + 1000, data, length);
    assert_int_equal(block_io_write(&fixture.io, data, length, 4096), 0);
    assert_int_equal(fake_libdlblk_request_count(DLBLK_WRITE), 3);
    fixture_close(&fixture);
    free(data);
}

UNIT_MAIN(cmocka_unit_test(test_random_requests_block_512),
          cmocka_unit_test(test_random_requests_block_4096),
          cmocka_unit_test(test_whole_blocks_take_one_request),
          cmocka_unit_test(test_zero_is_fast_with_a_whole_block),
          cmocka_unit_test(test_parts_of_a_block_at_the_same_time),
          cmocka_unit_test(test_part_and_whole_block_at_the_same_time),
          cmocka_unit_test(test_failed_read_of_a_part_writes_nothing),
          cmocka_unit_test(test_errors_come_back), cmocka_unit_test(test_largest_request_is_split))
