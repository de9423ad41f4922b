/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/placement.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "dlblk/error.h"
#include "meta/memory.h"

struct placement {
    struct placement_server *servers;
    uint32_t server_count;
    uint32_t slot_count;
    uint32_t *sets; /* set_count times slot_count indexes into servers */
    uint32_t set_count;
    uint32_t set_capacity;
};

struct ranked {
    uint64_t rank;
    uint32_t idx;
};

/* splitmix64's finisher: as good as a random permutation of the servers. */
static uint64_t
mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static int
domain_compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a;
    uint32_t right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

uint32_t
placement_domain_count(const struct placement_server *servers, uint32_t server_count,
                       uint64_t weight_min)
{
    uint32_t *domains = meta_alloc(server_count * sizeof(*domains));
    uint32_t count = 0, distinct = 0;

    for (uint32_t i = 0; i < server_count; i++)
        if (servers[i].weight >= weight_min)
            domains[count++] = servers[i].domain;
    qsort(domains, count, sizeof(*domains), domain_compare);
    for (uint32_t i = 0; i < count; i++)
        distinct += i == 0 || domains[i] != domains[i - 1];
    free(domains);
    return distinct;
}

static int
ranked_compare(const void *a, const void *b)
{
    const struct ranked *left = a, *right = b;

    if (left->rank != right->rank)
        return left->rank < right->rank ? -1 : 1;
    return left->idx < right->idx ? -1 : left->idx > right->idx;
}

static struct ranked *
placement_permutation(const struct placement *placement, uint64_t seed)
{
    struct ranked *order = meta_alloc(placement->server_count * sizeof(*order));

    for (uint32_t i = 0; i < placement->server_count; i++)
        order[i] = (struct ranked){.rank = mix(seed ^ mix(placement->servers[i].id)), .idx = i};
    qsort(order, placement->server_count, sizeof(*order), ranked_compare);
    return order;
}

static bool
set_has_domain(const struct placement *placement, const uint32_t *set, uint32_t count,
               uint32_t domain)
{
    for (uint32_t i = 0; i < count; i++)
        if (placement->servers[set[i]].domain == domain)
            return true;
    return false;
}

/*
 * Adds servers in the order of the permutation until the set is full; skips those that are taken,
 * if taken is given.
 */
static uint32_t
set_fill(const struct placement *placement, const struct ranked *order, const bool *taken,
         uint32_t *set, uint32_t count)
{
    for (uint32_t i = 0; i < placement->server_count && count < placement->slot_count; i++) {
        uint32_t idx = order[i].idx;

        if (taken != NULL && taken[idx])
            continue;
        if (!set_has_domain(placement, set, count, placement->servers[idx].domain))
            set[count++] = idx;
    }
    return count;
}

static uint32_t *
placement_add_set(struct placement *placement)
{
    if (placement->set_count == placement->set_capacity) {
        placement->set_capacity = placement->set_capacity == 0 ? 16 : placement->set_capacity * 2;
        placement->sets = meta_realloc(placement->sets, placement->set_capacity,
                                       placement->slot_count * sizeof(uint32_t));
    }
    return placement->sets + (size_t)placement->set_count++ * placement->slot_count;
}

/*
 * One grouping: each server is in one set; those left over at the end complete theirs with servers
 * of other sets.
 */
static void
placement_add_grouping(struct placement *placement, uint64_t seed)
{
    struct ranked *order = placement_permutation(placement, seed);
    bool *taken = meta_alloc(placement->server_count * sizeof(*taken));

    for (uint32_t i = 0; i < placement->server_count; i++) {
        uint32_t *set;
        uint32_t count = 1;

        if (taken[order[i].idx])
            continue;
        set = placement_add_set(placement);
        set[0] = order[i].idx;
        taken[set[0]] = true;
        count = set_fill(placement, order, taken, set, count);
        count = set_fill(placement, order, NULL, set, count);
        dl_assert(count == placement->slot_count);
        for (uint32_t k = 0; k < count; k++)
            taken[set[k]] = true;
    }
    free(taken);
    free(order);
}

int
placement_create(struct placement **ret_placement, const struct placement_server *servers,
                 uint32_t server_count, uint32_t slot_count, uint64_t seed)
{
    struct placement *placement;

    dl_assert(slot_count > 0 && slot_count <= PLACEMENT_SLOTS_MAX);
    if (placement_domain_count(servers, server_count, 0) < slot_count)
        return -DL_E_TOO_FEW_DOMAINS;
    placement = meta_alloc(sizeof(*placement));
    placement->servers = meta_copy(servers, server_count * sizeof(*servers));
    placement->server_count = server_count;
    placement->slot_count = slot_count;
    for (uint32_t i = 0; i < PLACEMENT_PERMUTATIONS; i++)
        placement_add_grouping(placement, mix(seed + i));
    *ret_placement = placement;
    return 0;
}

void
placement_destroy(struct placement *placement)
{
    if (placement == NULL)
        return;
    free(placement->servers);
    free(placement->sets);
    free(placement);
}

static uint64_t
set_weight(const struct placement *placement, const uint32_t *set)
{
    uint64_t least = UINT64_MAX;

    for (uint32_t i = 0; i < placement->slot_count; i++)
        if (placement->servers[set[i]].weight < least)
            least = placement->servers[set[i]].weight;
    /* The sum of all sets' weights must fit. */
    return least >> 16 != 0 ? least >> 16 : least != 0;
}

/* NULL: no set has all of its servers available. */
static const uint32_t *
placement_draw_set(const struct placement *placement, uint64_t random)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < placement->set_count; i++)
        total += set_weight(placement, placement->sets + (size_t)i * placement->slot_count);
    if (total == 0)
        return NULL;
    random %= total;
    for (uint32_t i = 0; i < placement->set_count; i++) {
        const uint32_t *set = placement->sets + (size_t)i * placement->slot_count;
        uint64_t weight = set_weight(placement, set);

        if (random < weight)
            return set;
        random -= weight;
    }
    dl_unreachable();
}

/* One server in a domain that the set lacks, drawn by weight; UINT32_MAX: there is none. */
static uint32_t
placement_draw_server(const struct placement *placement, const uint32_t *set, uint32_t count,
                      uint64_t random)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < placement->server_count; i++)
        if (!set_has_domain(placement, set, count, placement->servers[i].domain))
            total += placement->servers[i].weight >> 16 | (placement->servers[i].weight != 0);
    if (total == 0)
        return UINT32_MAX;
    random %= total;
    for (uint32_t i = 0; i < placement->server_count; i++) {
        uint64_t weight = placement->servers[i].weight >> 16 | (placement->servers[i].weight != 0);

        if (set_has_domain(placement, set, count, placement->servers[i].domain))
            continue;
        if (random < weight)
            return i;
        random -= weight;
    }
    dl_unreachable();
}

int
placement_pick(struct placement *placement, uint64_t cost_bytes, placement_random_fn random,
               void *context, uint32_t *ret_ids)
{
    uint32_t chosen[PLACEMENT_SLOTS_MAX];
    const uint32_t *set = placement_draw_set(placement, random(context));
    uint32_t count = placement->slot_count;
    uint32_t first;

    dl_assert(count > 0);
    if (set == NULL) {
        for (uint32_t i = 0; i < count; i++) {
            chosen[i] = placement_draw_server(placement, chosen, i, random(context));
            if (chosen[i] == UINT32_MAX)
                return -DL_E_TOO_FEW_DOMAINS;
        }
        set = chosen;
    }
    first = (uint32_t)(random(context) % count);
    for (uint32_t i = 0; i < count; i++) {
        struct placement_server *server = &placement->servers[set[(first + i) % count]];

        ret_ids[i] = server->id;
        server->weight = server->weight > cost_bytes ? server->weight - cost_bytes : 1;
    }
    return 0;
}

static uint32_t
placement_find(const struct placement *placement, uint32_t id)
{
    for (uint32_t i = 0; i < placement->server_count; i++)
        if (placement->servers[i].id == id)
            return i;
    return UINT32_MAX;
}

static bool
set_has_all(const uint32_t *set, uint32_t set_size, const uint32_t *kept, uint32_t kept_count)
{
    for (uint32_t k = 0; k < kept_count; k++) {
        bool has = false;

        for (uint32_t i = 0; i < set_size; i++)
            has = has || set[i] == kept[k];
        if (!has)
            return false;
    }
    return true;
}

/* May it join?  In the marks: members of sets that have all of the others. */
static uint64_t
one_weight(const struct placement *placement, uint32_t idx, const uint32_t *kept,
           uint32_t kept_count, const bool *marks)
{
    uint64_t weight = placement->servers[idx].weight;

    if (set_has_domain(placement, kept, kept_count, placement->servers[idx].domain) ||
        (marks != NULL && !marks[idx]))
        return 0;
    return weight >> 16 | (weight != 0);
}

static uint32_t
one_draw(const struct placement *placement, const uint32_t *kept, uint32_t kept_count,
         const bool *marks, uint64_t random)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < placement->server_count; i++)
        total += one_weight(placement, i, kept, kept_count, marks);
    if (total == 0)
        return UINT32_MAX;
    random %= total;
    for (uint32_t i = 0; i < placement->server_count; i++) {
        uint64_t weight = one_weight(placement, i, kept, kept_count, marks);

        if (random < weight)
            return i;
        random -= weight;
    }
    dl_unreachable();
}

int
placement_pick_one(struct placement *placement, const uint32_t *kept_ids, uint32_t kept_count,
                   placement_random_fn random, void *context, uint32_t *ret_id)
{
    uint32_t kept[PLACEMENT_SLOTS_MAX];
    uint32_t count = 0, chosen;
    bool *marks = meta_alloc(placement->server_count * sizeof(*marks));

    dl_assert(kept_count <= PLACEMENT_SLOTS_MAX);
    for (uint32_t i = 0; i < kept_count; i++) {
        kept[count] = placement_find(placement, kept_ids[i]);
        count += kept[count] != UINT32_MAX; /* it may not be a candidate any more */
    }
    for (uint32_t i = 0; i < placement->set_count; i++) {
        const uint32_t *set = placement->sets + (size_t)i * placement->slot_count;

        if (set_has_all(set, placement->slot_count, kept, count))
            for (uint32_t k = 0; k < placement->slot_count; k++)
                marks[set[k]] = true;
    }
    chosen = one_draw(placement, kept, count, marks, random(context));
    if (chosen == UINT32_MAX)
        chosen = one_draw(placement, kept, count, NULL, random(context));
    free(marks);
    if (chosen == UINT32_MAX)
        return -DL_E_TOO_FEW_DOMAINS;
    *ret_id = placement->servers[chosen].id;
    return 0;
}

uint32_t
placement_set_count(const struct placement *placement)
{
    return placement->set_count;
}

uint64_t
placement_weight(uint64_t available_bytes, uint64_t used_bytes, uint64_t assigned_bytes)
{
    uint64_t promised = assigned_bytes > used_bytes ? assigned_bytes - used_bytes : 0;
    uint64_t most = available_bytes - available_bytes / 8;

    return available_bytes - (promised < most ? promised : most);
}
