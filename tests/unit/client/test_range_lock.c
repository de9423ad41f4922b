/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Range locks: against a model that looks at all pairs.  Random entries, narrow and wide, shared
 * and exclusive, come and go (also while they wait): at each moment exactly those are granted that
 * have no conflicting earlier one. Prints its seed; RANGE_LOCK_SEED sets it.
 */
#include "tests/unit/lib/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/geometry.h"
#include "client/range_lock.h"
#include "tests/unit/lib/fake_rng.h"

#define ENTRIES 64u
#define STEPS   60000u

struct item {
    struct range_lock_entry entry;
    bool used, granted;
    uint64_t order;
    uint32_t segment, first, count;
    bool exclusive;
};

static struct item items[ENTRIES];

static bool
items_conflict(const struct item *a, const struct item *b)
{
    return a->segment == b->segment && a->first < b->first + b->count &&
           b->first < a->first + a->count && (a->exclusive || b->exclusive);
}

static bool
model_is_granted(const struct item *item)
{
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (items[i].used && items[i].order < item->order && items_conflict(&items[i], item))
            return false;
    return true;
}

static void
check_all(struct range_lock *lock)
{
    struct range_lock_entry *entry;

    while ((entry = range_lock_next_ready(lock)) != NULL) {
        struct item *item = list_entry(entry, struct item, entry);

        assert_true(item->used);
        assert_false(item->granted);
        item->granted = true;
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        if (items[i].used)
            assert_int_equal(items[i].granted, model_is_granted(&items[i]));
}

static void
random_range(struct fake_rng *rng, struct item *item)
{
    item->segment = (uint32_t)fake_rng_below(rng, 3);
    item->exclusive = fake_rng_percent(rng, 60);
    if (fake_rng_percent(rng, 15)) {
        item->first = (uint32_t)fake_rng_below(rng, 1000);
        item->count = (uint32_t)fake_rng_range(rng, 1, 1500);
    } else {
        item->first = (uint32_t)(fake_rng_below(rng, 4) * WINDOW_SECTORS + fake_rng_below(rng, 8));
        item->count = (uint32_t)fake_rng_range(rng, 1, 4);
    }
}

static void
test_agrees_with_a_model(void **state)
{
    const char *given = getenv("RANGE_LOCK_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    struct range_lock lock;
    struct fake_rng rng;
    uint64_t order = 0;
    unsigned waited = 0, gave_up = 0, wide = 0;

    (void)state;
    printf("RANGE_LOCK_SEED=%lu\n", seed);
    fake_rng_init(&rng, seed);
    range_lock_init(&lock);
    memset(items, 0, sizeof(items));
    for (unsigned step = 0; step < STEPS; step++) {
        struct item *item = &items[fake_rng_below(&rng, ENTRIES)];

        if (!item->used) {
            random_range(&rng, item);
            item->order = ++order;
            item->used = true;
            item->granted = range_lock_acquire(&lock, &item->entry, item->segment, item->first,
                                               item->count, item->exclusive);
            waited += !item->granted;
            wide += item->entry.wide;
        } else if (item->granted || fake_rng_percent(&rng, 10)) {
            gave_up += !item->granted;
            range_lock_release(&lock, &item->entry);
            item->used = false;
            item->granted = false;
        }
        check_all(&lock);
    }
    for (uint32_t i = 0; i < ENTRIES; i++) {
        if (items[i].used)
            range_lock_release(&lock, &items[i].entry);
        items[i].used = false;
        check_all(&lock);
    }
    assert_int_equal(lock.entry_count, 0);
    assert_int_equal(lock.waiting_count, 0);
    assert_true(waited > 1000 && gave_up > 100 && wide > 1000);
}

/* What waits behind a write is granted in the order in which it came. */
static void
test_grants_in_order(void **state)
{
    struct range_lock lock;
    struct range_lock_entry writes[3] = {0};

    (void)state;
    range_lock_init(&lock);
    assert_true(range_lock_acquire(&lock, &writes[0], 7, 10, 1, true));
    assert_false(range_lock_acquire(&lock, &writes[1], 7, 10, 1, true));
    assert_false(range_lock_acquire(&lock, &writes[2], 7, 10, 1, true));
    assert_null(range_lock_next_ready(&lock));
    range_lock_release(&lock, &writes[0]);
    assert_ptr_equal(range_lock_next_ready(&lock), &writes[1]);
    assert_null(range_lock_next_ready(&lock));
    range_lock_release(&lock, &writes[1]);
    assert_ptr_equal(range_lock_next_ready(&lock), &writes[2]);
    range_lock_release(&lock, &writes[2]);
}

/* One who has been granted, and gives up before it is told. */
static void
test_gives_up_while_ready(void **state)
{
    struct range_lock lock;
    struct range_lock_entry writes[3] = {0};

    (void)state;
    range_lock_init(&lock);
    assert_true(range_lock_acquire(&lock, &writes[0], 7, 10, 1, true));
    assert_false(range_lock_acquire(&lock, &writes[1], 7, 10, 1, true));
    assert_false(range_lock_acquire(&lock, &writes[2], 7, 10, 1, true));
    range_lock_release(&lock, &writes[0]);
    range_lock_release(&lock, &writes[1]);
    assert_ptr_equal(range_lock_next_ready(&lock), &writes[2]);
    assert_null(range_lock_next_ready(&lock));
    range_lock_release(&lock, &writes[2]);
    assert_int_equal(lock.entry_count, 0);
}

UNIT_MAIN(cmocka_unit_test(test_agrees_with_a_model), cmocka_unit_test(test_grants_in_order),
          cmocka_unit_test(test_gives_up_while_ready))
