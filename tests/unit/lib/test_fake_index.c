/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake index concatenates merges, and after a crash has a prefix of its batches: at least what
 * a flush covered, at most all that were started, never a later one without an earlier one.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "dlblk/error.h"
#include "tests/unit/lib/fake_index.h"

struct rig {
    struct fake_env env;
    struct fake_index fake;
    struct index *index;
};

static void
rig_init(struct rig *rig, uint64_t seed)
{
    fake_env_init(&rig->env, seed);
    fake_index_init(&rig->fake, &rig->env);
    rig->index = &rig->fake.index;
}

static void
rig_fini(struct rig *rig)
{
    fake_index_fini(&rig->fake);
    fake_env_fini(&rig->env);
}

static void
count_done(void *context, int err)
{
    assert_int_equal(err, 0);
    ++*(uint32_t *)context;
}

static void
drain(struct rig *rig)
{
    while (fake_env_turn(&rig->env))
        ;
}

static void
put_number(struct rig *rig, uint32_t number, uint32_t *done)
{
    struct index_batch *batch = rig->index->ops->batch_create(rig->index);
    char key = (char)('a' + number);

    rig->index->ops->batch_put(batch, "last", 4, &number, sizeof(number));
    rig->index->ops->batch_put(batch, &key, 1, &number, sizeof(number));
    rig->index->ops->batch_start(rig->index, batch, count_done, done);
}

static void
test_merge_concatenates(void **state)
{
    struct rig rig;
    struct index_batch *batch;
    uint32_t done = 0, bytes = 0;
    const uint8_t *value;

    (void)state;
    rig_init(&rig, 1);
    batch = rig.index->ops->batch_create(rig.index);
    rig.index->ops->batch_merge(batch, "k", 1, "ab", 2);
    rig.index->ops->batch_merge(batch, "k", 1, "c", 1);
    rig.index->ops->batch_put(batch, "gone", 4, "x", 1);
    rig.index->ops->batch_delete(batch, "gone", 4);
    rig.index->ops->batch_start(rig.index, batch, count_done, &done);
    assert_int_equal(done, 0);
    drain(&rig);
    assert_int_equal(done, 1);
    value = fake_index_peek(&rig.fake, "k", 1, &bytes);
    assert_int_equal(bytes, 3);
    assert_memory_equal(value, "abc", 3);
    assert_null(fake_index_peek(&rig.fake, "gone", 4, &bytes));
    rig_fini(&rig);
}

static void
test_crash_keeps_a_prefix(void **state)
{
    uint32_t kept_count[7] = {0};

    (void)state;
    for (uint64_t seed = 0; seed < 600; seed++) {
        struct rig rig;
        uint32_t done = 0, flushed = 0, bytes = 0, last = 0;
        const uint8_t *value;

        rig_init(&rig, seed);
        for (uint32_t i = 1; i <= 3; i++)
            put_number(&rig, i, &done);
        drain(&rig);
        rig.index->ops->flush_start(rig.index, count_done, &flushed);
        for (uint32_t i = 4; i <= 6; i++)
            put_number(&rig, i, &done);
        while (flushed == 0)
            assert_true(fake_env_turn(&rig.env));
        fake_index_crash(&rig.fake);
        fake_index_reopen(&rig.fake);
        value = fake_index_peek(&rig.fake, "last", 4, &bytes);
        assert_non_null(value);
        memcpy(&last, value, sizeof(last));
        assert_in_range(last, 3, 6);
        for (uint32_t i = 1; i <= 6; i++) {
            char key = (char)('a' + i);

            assert_int_equal(fake_index_peek(&rig.fake, &key, 1, &bytes) != NULL, i <= last);
        }
        kept_count[last]++;
        rig_fini(&rig);
    }
    for (uint32_t i = 3; i <= 6; i++)
        assert_true(kept_count[i] > 20);
}

struct get_result {
    struct index_get get;
    int err;
    uint32_t calls;
};

static void
get_on_done(struct index_get *get, int err)
{
    struct get_result *result = (struct get_result *)get;

    result->err = err;
    result->calls++;
}

static void
test_get_and_scan(void **state)
{
    struct rig rig;
    struct get_result found = {0}, missing = {0};
    uint32_t done = 0;

    (void)state;
    rig_init(&rig, 7);
    put_number(&rig, 2, &done);
    drain(&rig);
    found.get = (struct index_get){.key = "c", .key_bytes = 1, .on_done = get_on_done};
    missing.get = (struct index_get){.key = "d", .key_bytes = 1, .on_done = get_on_done};
    found.get.next = &missing.get;
    rig.index->ops->get_start(rig.index, &found.get);
    drain(&rig);
    assert_int_equal(found.calls, 1);
    assert_int_equal(found.err, 0);
    assert_int_equal(found.get.value_bytes, sizeof(uint32_t));
    free(found.get.value);
    assert_int_equal(missing.err, -DL_E_NOT_FOUND);
    assert_int_equal(fake_index_count(&rig.fake, "c", 1), 1);
    assert_int_equal(fake_index_count(&rig.fake, "", 0), 2);
    rig_fini(&rig);
}

UNIT_MAIN(cmocka_unit_test(test_merge_concatenates), cmocka_unit_test(test_crash_keeps_a_prefix),
          cmocka_unit_test(test_get_and_scan))
