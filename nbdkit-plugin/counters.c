/* SPDX-License-Identifier: Apache-2.0 */
#include "nbdkit-plugin/counters.h"

#include <inttypes.h>
#include <stdio.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

struct counters counters;

void
counters_print(void)
{
    char text[1024];
    size_t used = 0;

#define X(name)                                                                       \
    used += (size_t)snprintf(text + used, sizeof(text) - used, " " #name "=%" PRIu64, \
                             atomic_load_explicit(&counters.name, memory_order_relaxed));
    COUNTERS(X)
#undef X
    nbdkit_debug("datenlord: counters%s", text);
}
