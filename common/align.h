/* SPDX-License-Identifier: Apache-2.0 */
/*
 * align.h: powers of two, rounding, least and greatest.
 *
 * Threads: any.  Errors: none; a unit that is no power of two asserts.
 */
#ifndef DLBLK_COMMON_ALIGN_H
#define DLBLK_COMMON_ALIGN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/assert.h"

/* Where a constant expression is needed. */
#define DIV_ROUND_UP(n, d) (((n) + (d)-1) / (d))

static inline bool
is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

static inline bool
is_aligned(uint64_t value, uint64_t unit)
{
    dl_assert(is_power_of_two(unit));
    return (value & (unit - 1)) == 0;
}

static inline bool
is_aligned_pointer(const void *pointer, uint64_t unit)
{
    return is_aligned((uintptr_t)pointer, unit);
}

static inline uint64_t
align_down(uint64_t value, uint64_t unit)
{
    dl_assert(is_power_of_two(unit));
    return value & ~(unit - 1);
}

/* The value must be at least a unit below 2^64. */
static inline uint64_t
align_up(uint64_t value, uint64_t unit)
{
    dl_assert(value <= UINT64_MAX - (unit - 1));
    return align_down(value + (unit - 1), unit);
}

/* 0 for 1, 12 for 4096; the value must not be 0. */
static inline unsigned
log2_floor(uint64_t value)
{
    dl_assert(value != 0);
    return 63u - (unsigned)__builtin_clzll(value);
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint32_t
min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint32_t
max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

#endif
