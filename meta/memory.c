/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/memory.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

void *
meta_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes == 0 ? 1 : bytes);

    if (memory == NULL)
        dl_assert_failed(__FILE__, __LINE__, __func__, "out of memory");
    return memory;
}

void *
meta_realloc(void *memory, size_t count, size_t item_bytes)
{
    void *grown = reallocarray(memory, count == 0 ? 1 : count, item_bytes);

    if (grown == NULL)
        dl_assert_failed(__FILE__, __LINE__, __func__, "out of memory");
    return grown;
}

void *
meta_copy(const void *bytes, size_t length_bytes)
{
    void *memory = meta_alloc(length_bytes);

    if (length_bytes != 0)
        memcpy(memory, bytes, length_bytes);
    return memory;
}

char *
meta_strdup(const char *text)
{
    return meta_copy(text, strlen(text) + 1);
}
