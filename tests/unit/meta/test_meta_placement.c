/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placement on random clusters: distinct domains always; few sets in use; shares follow free space;
 * who is full or down gets nothing; a server that goes away for a while changes no grouping.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "dlblk/error.h"
#include "meta/placement.h"
#include "tests/unit/lib/fake_rng.h"

#define GIB (1ull << 30)

static uint64_t
draw(void *context)
{
    return fake_rng_next(context);
}

static uint32_t
domain_of(const struct placement_server *servers, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (servers[i].id == id)
            return servers[i].domain;
    fail_msg("server %u was never offered", id);
    return 0;
}

static void
check_distinct(const struct placement_server *servers, uint32_t count, const uint32_t *ids,
               uint32_t slots)
{
    for (uint32_t i = 0; i < slots; i++)
        for (uint32_t k = 0; k < i; k++)
            assert_int_not_equal(domain_of(servers, count, ids[i]),
                                 domain_of(servers, count, ids[k]));
}

/* A cluster as random as can be: 1 to 60 servers in 1 to 12 domains, some unavailable. */
static uint32_t
random_servers(struct fake_rng *rng, struct placement_server *servers)
{
    uint32_t count = (uint32_t)fake_rng_range(rng, 1, 60);
    uint32_t domains = (uint32_t)fake_rng_range(rng, 1, 12);
    uint32_t id = 0;

    for (uint32_t i = 0; i < count; i++) {
        id += (uint32_t)fake_rng_range(rng, 1, 3);
        servers[i] = (struct placement_server){
            .id = id,
            .domain = (uint32_t)fake_rng_below(rng, domains),
            .weight = fake_rng_percent(rng, 20) ? 0 : fake_rng_range(rng, 1, 1000 * GIB),
        };
    }
    return count;
}

static void
test_random_clusters(void **state)
{
    uint64_t seed = 20261122;
    struct fake_rng rng;
    uint32_t placed = 0, refused_structure = 0, refused_now = 0;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    fake_rng_init(&rng, seed);
    for (unsigned round = 0; round < 3000; round++) {
        struct placement_server servers[60];
        uint32_t count = random_servers(&rng, servers);
        uint32_t slots = (uint32_t)fake_rng_range(&rng, 1, 8);
        uint32_t ids[PLACEMENT_SLOTS_MAX];
        struct placement *placement = NULL;
        bool possible = placement_domain_count(servers, count, 0) >= slots;
        bool available = placement_domain_count(servers, count, 1) >= slots;
        int err = placement_create(&placement, servers, count, slots, seed);

        assert_int_equal(err, possible ? 0 : -DL_E_TOO_FEW_DOMAINS);
        refused_structure += !possible;
        for (unsigned pick = 0; possible && pick < 20; pick++) {
            err = placement_pick(placement, GIB, draw, &rng, ids);
            assert_int_equal(err, available ? 0 : -DL_E_TOO_FEW_DOMAINS);
            refused_now += err < 0;
            if (err < 0)
                continue;
            placed++;
            check_distinct(servers, count, ids, slots);
            for (uint32_t i = 0; i < slots; i++)
                for (uint32_t k = 0; k < count; k++)
                    assert_false(servers[k].id == ids[i] && servers[k].weight == 0);
        }
        placement_destroy(placement);
    }
    print_message("%u placed, %u refused for good, %u for now\n", placed, refused_structure,
                  refused_now);
    assert_true(placed > 10000 && refused_structure > 100 && refused_now > 100);
}

static int
compare_ids(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a;
    uint32_t right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

struct used_set {
    uint32_t ids[3];
};

/* 90 servers, 3 slots: random slots would soon use ten thousands of combinations. */
static void
test_few_copysets(void **state)
{
    enum { SERVERS = 90, SLOTS = 3, PICKS = 20000 };
    struct placement_server servers[SERVERS];
    static struct used_set used[PICKS];
    uint32_t used_count = 0;
    uint32_t partners_most = 0;
    bool together[SERVERS][SERVERS] = {0};
    struct placement *placement;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 3);
    for (uint32_t i = 0; i < SERVERS; i++)
        servers[i] = (struct placement_server){.id = i, .domain = i / 3, .weight = 4000 * GIB};
    assert_int_equal(placement_create(&placement, servers, SERVERS, SLOTS, 42), 0);
    for (unsigned pick = 0; pick < PICKS; pick++) {
        struct used_set set;
        uint32_t i;

        assert_int_equal(placement_pick(placement, 0, draw, &rng, set.ids), 0);
        for (i = 0; i < SLOTS; i++)
            for (uint32_t k = 0; k < SLOTS; k++)
                together[set.ids[i]][set.ids[k]] = true;
        qsort(set.ids, SLOTS, sizeof(set.ids[0]), compare_ids);
        for (i = 0; i < used_count && memcmp(&used[i], &set, sizeof(set)) != 0; i++)
            ;
        if (i == used_count)
            used[used_count++] = set;
    }
    for (uint32_t i = 0; i < SERVERS; i++) {
        uint32_t partners = 0;

        for (uint32_t k = 0; k < SERVERS; k++)
            partners += k != i && together[i][k];
        partners_most = max_u32(partners_most, partners);
        assert_true(partners >= 4); /* enough of them help to recover it */
    }
    print_message("%u sets in use, up to %u partners\n", used_count, partners_most);
    assert_in_range(used_count, SERVERS / SLOTS * 2, placement_set_count(placement));
    assert_true(placement_set_count(placement) <= PLACEMENT_PERMUTATIONS * (SERVERS / SLOTS + 4));
    placement_destroy(placement);
}

/* One server has a quarter of the others' space: it gets about a quarter of what they get. */
static void
test_shares_follow_free_space(void **state)
{
    enum { SERVERS = 9, PICKS = 30000 };
    struct placement_server servers[SERVERS];
    uint32_t got[SERVERS] = {0};
    uint32_t ids[3];
    uint32_t others = 0;
    struct placement *placement;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 5);
    for (uint32_t i = 0; i < SERVERS; i++)
        servers[i] = (struct placement_server){.id = i, .domain = i, .weight = 1000 * GIB};
    servers[4].weight = 250 * GIB;
    assert_int_equal(placement_create(&placement, servers, SERVERS, 3, 1), 0);
    for (unsigned pick = 0; pick < PICKS; pick++) {
        assert_int_equal(placement_pick(placement, 0, draw, &rng, ids), 0);
        for (unsigned i = 0; i < 3; i++)
            got[ids[i]]++;
    }
    for (uint32_t i = 0; i < SERVERS; i++)
        others += i == 4 ? 0 : got[i];
    others /= SERVERS - 1;
    print_message("the small one got %u, the others %u on average\n", got[4], others);
    assert_in_range(got[4], others / 8, others * 2 / 5);
    placement_destroy(placement);
}

/*
 * What is placed counts within a batch: 30 segments on 30 servers with room for little do not pile
 * up.
 */
static void
test_a_batch_spreads(void **state)
{
    enum { SERVERS = 30 };
    struct placement_server servers[SERVERS];
    uint32_t got[SERVERS] = {0};
    uint32_t most = 0;
    uint32_t ids[3];
    struct placement *placement;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 6);
    for (uint32_t i = 0; i < SERVERS; i++)
        servers[i] = (struct placement_server){.id = i, .domain = i, .weight = 5 * GIB};
    assert_int_equal(placement_create(&placement, servers, SERVERS, 3, 1), 0);
    for (unsigned pick = 0; pick < 30; pick++) {
        assert_int_equal(placement_pick(placement, GIB, draw, &rng, ids), 0);
        for (unsigned i = 0; i < 3; i++)
            got[ids[i]]++;
    }
    for (uint32_t i = 0; i < SERVERS; i++)
        most = max_u32(most, got[i]);
    assert_true(most <= 6); /* 3 on average, 5 fit */
    placement_destroy(placement);
}

/* Servers that are down or full don't change where the others are grouped. */
static void
test_groupings_do_not_depend_on_weights(void **state)
{
    enum { SERVERS = 12 };
    struct placement_server servers[SERVERS];
    struct placement *before, *after;
    uint32_t ids_before[3], ids_after[3];
    struct fake_rng rng_before, rng_after;

    (void)state;
    for (uint32_t i = 0; i < SERVERS; i++)
        servers[i] = (struct placement_server){.id = i, .domain = i, .weight = GIB};
    assert_int_equal(placement_create(&before, servers, SERVERS, 3, 1), 0);
    servers[7].weight = 0;
    assert_int_equal(placement_create(&after, servers, SERVERS, 3, 1), 0);
    assert_int_equal(placement_set_count(before), placement_set_count(after));
    fake_rng_init(&rng_before, 1);
    fake_rng_init(&rng_after, 1);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(placement_pick(before, 0, draw, &rng_before, ids_before), 0);
        assert_int_equal(placement_pick(after, 0, draw, &rng_after, ids_after), 0);
        for (unsigned k = 0; k < 3; k++)
            assert_int_not_equal(ids_after[k], 7);
    }
    placement_destroy(before);
    placement_destroy(after);
}

/* Every set has a server that is down: any others in distinct domains take over. */
static void
test_without_a_whole_set_any_servers_will_do(void **state)
{
    struct placement_server servers[6];
    uint32_t ids[2];
    struct placement *placement;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 7);
    /* Only two of six are available: hardly any grouping has just them together. */
    for (uint64_t seed = 0; seed < 50; seed++) {
        for (uint32_t i = 0; i < 6; i++)
            servers[i] = (struct placement_server){
                .id = 10 + i, .domain = i, .weight = i == 2 || i == 5 ? 3 : 0};
        assert_int_equal(placement_create(&placement, servers, 6, 2, seed), 0);
        assert_int_equal(placement_pick(placement, GIB, draw, &rng, ids), 0);
        assert_int_equal(ids[0] + ids[1], 12 + 15);
        assert_int_not_equal(ids[0], ids[1]);
        placement_destroy(placement);
    }
}

/* The first slot is read first where nothing else counts: it must not always be the same server. */
static void
test_slots_are_shuffled(void **state)
{
    struct placement_server servers[3];
    uint32_t first[3] = {0};
    uint32_t ids[3];
    struct placement *placement;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 8);
    for (uint32_t i = 0; i < 3; i++)
        servers[i] = (struct placement_server){.id = i, .domain = i, .weight = GIB};
    assert_int_equal(placement_create(&placement, servers, 3, 3, 1), 0);
    for (unsigned i = 0; i < 300; i++) {
        assert_int_equal(placement_pick(placement, 0, draw, &rng, ids), 0);
        first[ids[0]]++;
    }
    for (uint32_t i = 0; i < 3; i++)
        assert_in_range(first[i], 60, 140);
    placement_destroy(placement);
}

static void
test_weight_counts_promises(void **state)
{
    (void)state;
    assert_true(placement_weight(1000, 0, 0) == 1000);
    assert_true(placement_weight(1000, 0, 400) == 600);    /* assigned, not yet written */
    assert_true(placement_weight(1000, 400, 400) == 1000); /* written: the space is gone already */
    assert_true(placement_weight(1000, 500, 400) == 1000);
    assert_true(placement_weight(1000, 0, 1000000) == 125); /* thin volumes: never nothing */
    assert_true(placement_weight(0, 0, 10) == 0);
}

/*
 * One server more: available, in a domain that the others don't have; of a set that has the others
 * as long as there is one.
 */
static void
test_one_more(void **state)
{
    struct fake_rng rng;
    uint32_t found = 0, impossible = 0, of_a_set = 0;

    (void)state;
    fake_rng_init(&rng, 20261123);
    for (unsigned round = 0; round < 3000; round++) {
        struct placement_server servers[60];
        uint32_t count = random_servers(&rng, servers);
        uint32_t slots = (uint32_t)fake_rng_range(&rng, 2, 5);
        uint32_t ids[PLACEMENT_SLOTS_MAX], id = 0, least = 0;
        struct placement *placement = NULL;
        int result;

        if (placement_create(&placement, servers, count, slots, 5) < 0)
            continue;
        if (placement_pick(placement, GIB, draw, &rng, ids) < 0) {
            placement_destroy(placement);
            continue;
        }
        for (uint32_t i = 0; i < count; i++) {
            bool other = servers[i].weight > 0;

            for (uint32_t k = 0; k + 1 < slots; k++)
                other = other && servers[i].domain != domain_of(servers, count, ids[k]);
            least += other;
        }
        result = placement_pick_one(placement, ids, slots - 1, draw, &rng, &id);
        placement_destroy(placement);
        assert_int_equal(result, least > 0 ? 0 : -DL_E_TOO_FEW_DOMAINS);
        if (result < 0) {
            impossible++;
            continue;
        }
        found++;
        for (uint32_t i = 0; i < count; i++)
            if (servers[i].id == id)
                assert_true(servers[i].weight > 0);
        of_a_set += id == ids[slots - 1];
        ids[slots - 1] = id;
        check_distinct(servers, count, ids, slots);
    }
    print_message("%u found, %u of them as before, %u impossible\n", found, of_a_set, impossible);
    /* Of 60 servers it would be one in dozens by chance: the sets are few. */
    assert_true(found > 1000 && of_a_set > found / 4);
}

UNIT_MAIN(cmocka_unit_test(test_one_more), cmocka_unit_test(test_random_clusters),
          cmocka_unit_test(test_few_copysets), cmocka_unit_test(test_shares_follow_free_space),
          cmocka_unit_test(test_a_batch_spreads),
          cmocka_unit_test(test_groupings_do_not_depend_on_weights),
          cmocka_unit_test(test_without_a_whole_set_any_servers_will_do),
          cmocka_unit_test(test_slots_are_shuffled), cmocka_unit_test(test_weight_counts_promises))
