/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counters.h: what NBD clients asked for.  Printed when nbdkit -v ends, so that a test can see that
 * a trim arrived as a trim.
 *
 * Threads: any.  The numbers are exact, but not one moment's.
 */
#ifndef DLBLK_NBDKIT_PLUGIN_COUNTERS_H
#define DLBLK_NBDKIT_PLUGIN_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#define COUNTERS(X)                                         \
    X(connections)                                          \
    X(reads)                                                \
    X(read_bytes)                                           \
    X(writes)                                               \
    X(write_bytes)                                          \
    X(fua) /* requests that had the flag */                 \
    X(flushes)                                              \
    X(trims)                                                \
    X(trim_bytes)                                           \
    X(zeroes)                                               \
    X(zero_bytes)                                           \
    X(zeroes_not_fast) /* fast zeroes that were refused */  \
    X(extents)                                              \
    X(partial_writes) /* that had to read a block before */ \
    X(errors)

struct counters {
#define X(name) _Atomic uint64_t name;
    COUNTERS(X)
#undef X
};

extern struct counters counters;

#define counter_add(name, amount) \
    ((void)atomic_fetch_add_explicit(&counters.name, (amount), memory_order_relaxed))

/* nbdkit: debug: datenlord: counters connections=1 reads=8 ... */
void counters_print(void);

#endif
