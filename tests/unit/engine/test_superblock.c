/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A superblock comes back as it was; one valid copy is enough, the newer counts; a disk without any
 * is refused with what is wrong at each place; and at no step of writing the copies, or of
 * formatting, can a crash leave a disk that looks like another.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/format.h"
#include "tests/unit/lib/fake_disk.h"

#define DISK_BYTES (16u << 20)

struct rig {
    struct fake_env env;
    struct fake_disk disk;
    struct superblock superblock;
    uint8_t *buffer;
};

static struct engine_format
format_make(uint8_t mark)
{
    struct engine_format format = {.meta_address = "[::1]:7000", .created_ms = 1234};

    memset(format.disk_uuid, mark, sizeof(format.disk_uuid));
    memset(format.cluster_id, 0xc1, sizeof(format.cluster_id));
    return format;
}

static void
rig_init(struct rig *rig, uint64_t seed)
{
    struct engine_format format = format_make(0xd1);

    fake_env_init(&rig->env, seed);
    fake_disk_init(&rig->disk, &rig->env, DISK_BYTES, false);
    rig->buffer = aligned_alloc(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES);
    assert_int_equal(engine_format_now(&rig->disk.disk, &format, NULL), 0);
    assert_int_equal(superblock_load_now(&rig->disk.disk, &rig->superblock, NULL), 0);
}

static void
rig_fini(struct rig *rig)
{
    assert_int_equal(rig->disk.violations, 0);
    free(rig->buffer);
    fake_disk_fini(&rig->disk);
    fake_env_fini(&rig->env);
}

static void
test_bytes_come_back(void **state)
{
    struct superblock back;
    struct rig rig;
    char problem[SUPERBLOCK_PROBLEM_BYTES];

    (void)state;
    rig_init(&rig, 1);
    assert_string_equal(rig.superblock.meta_address, "[::1]:7000");
    assert_int_equal(rig.superblock.created_ms, 1234);
    assert_int_equal(rig.superblock.geometry.disk_bytes, DISK_BYTES);
    assert_int_equal(rig.superblock.geometry.data_bytes % SLAB_BYTES, 0);
    assert_true(rig.superblock.clean);
    rig.superblock.incarnation = 5;
    rig.superblock.cut = 1u << 30;
    rig.superblock.tail = 77;
    rig.superblock.damaged = true;
    superblock_encode(&rig.superblock, rig.buffer);
    assert_int_equal(superblock_decode(rig.buffer, &back, problem), 0);
    assert_memory_equal(&back, &rig.superblock, sizeof(back));
    rig_fini(&rig);
}

static void
test_flipped_bits_are_refused(void **state)
{
    struct superblock back;
    struct rig rig;
    char problem[SUPERBLOCK_PROBLEM_BYTES];

    (void)state;
    rig_init(&rig, 1);
    superblock_encode(&rig.superblock, rig.buffer);
    for (uint32_t bit = 0; bit < SUPERBLOCK_BYTES * 8; bit++) {
        problem[0] = '\0';
        rig.buffer[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_not_equal(superblock_decode(rig.buffer, &back, problem), 0);
        assert_int_not_equal(problem[0], '\0');
        rig.buffer[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    rig_fini(&rig);
}

static void
expect_refused(struct rig *rig, int expected, const char *text)
{
    char problem[SUPERBLOCK_PROBLEM_BYTES] = "";
    struct superblock back;

    superblock_encode(&rig->superblock, rig->buffer);
    assert_int_equal(superblock_decode(rig->buffer, &back, problem), expected);
    assert_non_null(strstr(problem, text));
}

static void
test_unknown_formats_and_features(void **state)
{
    struct superblock good;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    good = rig.superblock;
    rig.superblock.format_version = DISK_FORMAT_VERSION_NEWEST + 1;
    expect_refused(&rig, -DL_E_DISK_FORMAT, "disk format 2 is unknown");
    rig.superblock = good;
    rig.superblock.features_incompatible = UINT64_C(1) << 40;
    expect_refused(&rig, -DL_E_DISK_FORMAT, "0x10000000000");
    rig.superblock = good;
    rig.superblock.geometry.data_bytes += SLAB_BYTES * 100;
    expect_refused(&rig, -DL_E_DISK_DAMAGED, "layout");
    rig.superblock = good;
    rig.superblock.geometry.ring_offset = UINT64_MAX - 4095;
    expect_refused(&rig, -DL_E_DISK_DAMAGED, "layout");
    rig.superblock = good;
    rig.superblock.features_compatible = 1;
    superblock_encode(&rig.superblock, rig.buffer);
    assert_int_equal(superblock_decode(rig.buffer, &good, (char[SUPERBLOCK_PROBLEM_BYTES]){0}), 0);
    rig_fini(&rig);
}

static void
test_either_copy_is_enough(void **state)
{
    struct superblock found;
    struct dl_error err;
    struct rig rig;

    (void)state;
    for (unsigned copy = 0; copy < SUPERBLOCK_COPIES; copy++) {
        rig_init(&rig, copy);
        fake_disk_flip_bit(&rig.disk, superblock_copy_offset(DISK_BYTES, copy) + 20, 3);
        assert_int_equal(superblock_load_now(&rig.disk.disk, &found, &err), 0);
        assert_memory_equal(&found, &rig.superblock, sizeof(found));
        rig_fini(&rig);
    }
}

static void
test_without_copies_both_problems_are_named(void **state)
{
    struct superblock found;
    struct dl_error err;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    fake_disk_flip_bit(&rig.disk, 20, 3);
    fake_disk_set_bad(&rig.disk, superblock_copy_offset(DISK_BYTES, 1), SUPERBLOCK_BYTES, true);
    assert_int_equal(superblock_load_now(&rig.disk.disk, &found, &err), -DL_E_DISK_DAMAGED);
    assert_non_null(strstr(err.text, "offset 0: it does not match its CRC"));
    assert_non_null(strstr(err.text, "it cannot be read"));
    rig_fini(&rig);
}

static void
test_smaller_disk_is_refused(void **state)
{
    struct superblock found;
    struct dl_error err;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    rig.disk.disk.size_bytes -= SUPERBLOCK_BYTES;
    assert_int_equal(superblock_load_now(&rig.disk.disk, &found, &err), -DL_E_DISK_DAMAGED);
    assert_non_null(strstr(err.text, "formatted with"));
    rig.disk.disk.size_bytes += SUPERBLOCK_BYTES;
    rig_fini(&rig);
}

/*
 * Power fails in or after any of the steps of storing: a valid copy is there, the old one or the
 * new one.
 */
static void
test_power_failure_while_storing(void **state)
{
    uint32_t old_found = 0, new_found = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct superblock found;
        struct dl_error err;
        struct rig rig;
        uint64_t generation;

        rig_init(&rig, seed);
        generation = rig.superblock.generation;
        /* Sometimes only one copy is left to begin with. */
        if (seed % 3 > 0)
            fake_disk_flip_bit(&rig.disk, superblock_copy_offset(DISK_BYTES, seed % 3 - 1) + 30, 1);
        rig.superblock.cut += 5;
        /* A write that fails tears its block. */
        fake_disk_fail(&rig.disk, seed % 2 ? DISK_WRITE : DISK_FLUSH, seed / 2 % 2, 1, -EIO, 0,
                       DISK_BYTES);
        assert_int_equal(superblock_store_now(&rig.disk.disk, &rig.superblock, &err),
                         -DL_E_MEDIA_WRITE);
        fake_disk_crash(&rig.disk);
        assert_int_equal(superblock_load_now(&rig.disk.disk, &found, &err), 0);
        assert_in_range(found.generation, generation, generation + 1);
        old_found += found.generation == generation;
        new_found += found.generation == generation + 1;
        rig_fini(&rig);
    }
    assert_true(old_found > 20);
    assert_true(new_found > 20);
}

/*
 * The copy that is written first is not the only one that is good: that it could be torn must not
 * matter.
 */
static void
test_the_good_copy_is_written_last(void **state)
{
    (void)state;
    for (unsigned bad = 0; bad < SUPERBLOCK_COPIES; bad++) {
        struct rig rig;
        uint32_t idx = 0;

        rig_init(&rig, bad);
        fake_disk_flip_bit(&rig.disk, superblock_copy_offset(DISK_BYTES, bad) + 30, 1);
        rig.disk.record = true;
        assert_int_equal(superblock_store_now(&rig.disk.disk, &rig.superblock, NULL), 0);
        while (rig.disk.log[idx].kind != DISK_WRITE)
            idx++;
        assert_int_equal(rig.disk.log[idx].offset_bytes, superblock_copy_offset(DISK_BYTES, bad));
        assert_int_equal(rig.disk.log[idx + 1].kind, DISK_FLUSH);
        assert_int_equal(rig.disk.log[idx + 2].offset_bytes,
                         superblock_copy_offset(DISK_BYTES, 1 - bad));
        rig_fini(&rig);
    }
}

/*
 * Power fails in the middle of formatting a disk that was in use: it is the old disk, untouched, or
 * none.
 */
static void
test_power_failure_while_formatting(void **state)
{
    uint32_t none = 0, old_found = 0, new_found = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct engine_format format = format_make(0xd2);
        struct superblock found;
        struct dl_error err;
        struct rig rig;
        int result;

        rig_init(&rig, seed);
        for (int i = 0; i < 3; i++)
            assert_int_equal(superblock_store_now(&rig.disk.disk, &rig.superblock, &err), 0);
        fake_disk_fail(&rig.disk, seed % 2 ? DISK_WRITE : DISK_FLUSH, seed / 2 % 6, 1, -EIO, 0,
                       DISK_BYTES);
        result = engine_format_now(&rig.disk.disk, &format, &err);
        fake_disk_crash(&rig.disk);
        if (superblock_load_now(&rig.disk.disk, &found, &err) != 0) {
            assert_int_not_equal(result, 0);
            none++;
        } else if (found.disk_uuid[0] == 0xd1) {
            /* Then nothing but the copies may have been touched. */
            assert_true(seed / 2 % 6 <= 1);
            old_found++;
        } else {
            new_found++;
        }
        rig_fini(&rig);
    }
    assert_true(none > 5);
    assert_true(old_found > 0);
    assert_true(new_found > 5);
}

static void
test_format_refuses_what_does_not_fit(void **state)
{
    struct engine_format format = format_make(1);
    struct fake_env env;
    struct fake_disk disk;
    struct dl_error err;

    (void)state;
    fake_env_init(&env, 1);
    fake_disk_init(&disk, &env, SLAB_BYTES, false);
    assert_int_equal(engine_format_now(&disk.disk, &format, &err), -DL_E_SIZE_INVALID);
    assert_non_null(strstr(err.text, "it takes at least"));
    format.journal_bytes = UNIT_BYTES;
    assert_int_equal(engine_format_now(&disk.disk, &format, &err), -DL_E_SIZE_INVALID);
    assert_non_null(strstr(err.text, "journal"));
    fake_disk_fini(&disk);
    fake_env_fini(&env);
}

UNIT_MAIN(cmocka_unit_test(test_bytes_come_back), cmocka_unit_test(test_flipped_bits_are_refused),
          cmocka_unit_test(test_unknown_formats_and_features),
          cmocka_unit_test(test_either_copy_is_enough),
          cmocka_unit_test(test_without_copies_both_problems_are_named),
          cmocka_unit_test(test_smaller_disk_is_refused),
          cmocka_unit_test(test_power_failure_while_storing),
          cmocka_unit_test(test_the_good_copy_is_written_last),
          cmocka_unit_test(test_power_failure_while_formatting),
          cmocka_unit_test(test_format_refuses_what_does_not_fit))
