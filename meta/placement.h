/* SPDX-License-Identifier: Apache-2.0 */
/*
 * placement.h: which servers take the slots of a new segment.  Pure functions.
 *
 * - The slots of a segment lie in distinct failure domains.
 * - Few copysets: any n servers that fail together lose data if some segment lies on exactly these
 *   n.  With slots chosen at random every combination is soon in use, and each simultaneous loss of
 *   n servers hits data; so segments use only PLACEMENT_PERMUTATIONS groupings of the servers into
 *   sets of n.  Each server then shares data with about PLACEMENT_PERMUTATIONS * (n - 1) others,
 *   which is how many help to recover it.
 * - Among these a set is drawn with a probability in proportion to the least free space of its
 *   members.
 * - The groupings are functions of the servers' ids and the seed: a server that is down or full
 *   doesn't change them, a new one changes those it lands in.  If no set is wholly available, any
 *   available servers in distinct domains are taken.
 *
 * Threads: any.  Errors: 0 or -DL_E_TOO_FEW_DOMAINS.
 */
#ifndef DLBLK_META_PLACEMENT_H
#define DLBLK_META_PLACEMENT_H

#include <stdint.h>

#define PLACEMENT_PERMUTATIONS 4u
#define PLACEMENT_SLOTS_MAX    32u

struct placement_server {
    uint32_t id;
    uint32_t domain; /* servers with the same number fail together */
    uint64_t weight; /* free bytes; 0: takes nothing now, but belongs to the groupings */
};

struct placement;

typedef uint64_t (*placement_random_fn)(void *context);

/* Distinct domains of the servers whose weight is at least weight_min. */
uint32_t placement_domain_count(const struct placement_server *servers, uint32_t server_count,
                                uint64_t weight_min);

/*
 * The sets of slot_count servers for these servers, which are copied.  -DL_E_TOO_FEW_DOMAINS: there
 * are fewer domains than slots, whatever the weights.
 */
int placement_create(struct placement **ret_placement, const struct placement_server *servers,
                     uint32_t server_count, uint32_t slot_count, uint64_t seed);
void placement_destroy(struct placement *placement);

/*
 * Servers for one segment: slot_count ids, in random order.  Each one's weight goes down by
 * cost_bytes (not to 0), so that the segments of one batch spread.  -DL_E_TOO_FEW_DOMAINS: too few
 * available domains.
 */
int placement_pick(struct placement *placement, uint64_t cost_bytes, placement_random_fn random,
                   void *context, uint32_t *ret_ids);

/*
 * One server more, for a segment that has these: of a set that has all of them, if possible, else
 * any available one in another domain; drawn by weight.  -DL_E_TOO_FEW_DOMAINS: there is none.
 */
int placement_pick_one(struct placement *placement, const uint32_t *kept_ids, uint32_t kept_count,
                       placement_random_fn random, void *context, uint32_t *ret_id);

/* How many sets there are at most in use. */
uint32_t placement_set_count(const struct placement *placement);

/*
 * Free space as placement sees it: what the server has available, less what is promised to the
 * segments that it has got but that are not full yet.  Promises take at most 7/8 of it: volumes may
 * never fill up.
 */
uint64_t placement_weight(uint64_t available_bytes, uint64_t used_bytes, uint64_t assigned_bytes);

#endif
