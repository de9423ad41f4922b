/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vec.h: growable arrays of any type.
 *
 *     VEC(struct range) ranges = {0};
 *     if (vec_push(&ranges, range) < 0) ...
 *     vec_for_each(range, &ranges) use(range);
 *     vec_fini(&ranges);
 *
 * Items move when the array grows: no pointers to them are kept.  Not for the data path, which
 * allocates nothing.
 *
 * Threads: the owner's.  Errors: 0 or -DL_E_NO_MEMORY, then the array is as before.
 */
#ifndef DLBLK_COMMON_VEC_H
#define DLBLK_COMMON_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "common/assert.h"
#include "dlblk/error.h"

#define VEC(type)        \
    struct {             \
        type *items;     \
        size_t count;    \
        size_t capacity; \
    }

/* Room for at least `count` items; doubles, so that pushing takes constant time on average. */
static inline int
vec_grow(void **items, size_t *capacity, size_t count, size_t item_bytes)
{
    size_t wanted = *capacity == 0 ? 8 : *capacity;
    void *grown;

    if (count > SIZE_MAX / 2 / item_bytes)
        return -DL_E_NO_MEMORY; /* twice as many could not even be counted in bytes */
    while (wanted < count)
        wanted *= 2;
    if (wanted == *capacity)
        return 0;
    grown = realloc(*items, wanted * item_bytes);
    if (grown == NULL)
        return -DL_E_NO_MEMORY;
    *items = grown;
    *capacity = wanted;
    return 0;
}

#define vec_reserve(vec, wanted_count)                                          \
    ({                                                                          \
        void *vec_items = (vec)->items;                                         \
        int vec_result = vec_grow(&vec_items, &(vec)->capacity, (wanted_count), \
                                  sizeof(*(vec)->items));                       \
        (vec)->items = vec_items;                                               \
        vec_result;                                                             \
    })

#define vec_push(vec, item)                                         \
    ({                                                              \
        int vec_push_result = vec_reserve((vec), (vec)->count + 1); \
        if (vec_push_result == 0)                                   \
            (vec)->items[(vec)->count++] = (item);                  \
        vec_push_result;                                            \
    })

/* Remove the last item and return it. */
#define vec_pop(vec) (dl_assert((vec)->count > 0), (vec)->items[--(vec)->count])

/* Remove an item; the last one takes its place. */
#define vec_remove_swap(vec, idx) \
    (dl_assert((idx) < (vec)->count), (vec)->items[idx] = (vec)->items[--(vec)->count], (void)0)

#define vec_clear(vec) ((vec)->count = 0)

#define vec_fini(vec) \
    (free((vec)->items), (vec)->items = NULL, (vec)->count = 0, (vec)->capacity = 0, (void)0)

/* `item` becomes a pointer to each item in turn.  (An empty array has no address to count from.) */
#define vec_for_each(item, vec)                                                             \
    for (__typeof__(*(vec)->items) *item = (vec)->items,                                    \
                                   *item##_end = item == NULL ? NULL : item + (vec)->count; \
         item != item##_end; item++)

#endif
