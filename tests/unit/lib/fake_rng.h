/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_rng.h: the seeded randomness of tests (splitmix64): the same seed gives the same history on
 * every machine.
 */
#ifndef DLBLK_TESTS_FAKE_RNG_H
#define DLBLK_TESTS_FAKE_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct fake_rng {
    uint64_t state;
};

static inline void
fake_rng_init(struct fake_rng *rng, uint64_t seed)
{
    rng->state = seed * 0x9e3779b97f4a7c15u + 0x1234567890abcdefu;
}

static inline uint64_t
fake_rng_next(struct fake_rng *rng)
{
    uint64_t z = (rng->state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A number in [0, bound). bound > 0. */
static inline uint64_t
fake_rng_below(struct fake_rng *rng, uint64_t bound)
{
    return fake_rng_next(rng) % bound;
}

/* A number in [low, high]. */
static inline uint64_t
fake_rng_range(struct fake_rng *rng, uint64_t low, uint64_t high)
{
    return low + fake_rng_below(rng, high - low + 1);
}

/* True in `percent` of 100 calls. */
static inline bool
fake_rng_percent(struct fake_rng *rng, unsigned percent)
{
    return fake_rng_below(rng, 100) < percent;
}

#endif
