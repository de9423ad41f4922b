/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.h: allocation for the metadata service: it never returns NULL.
 *
 * A metadata service without memory can do nothing useful, and everything it has promised is in its
 * store: it dies with a clear word, and a restart goes on.  What peers can make it allocate is
 * bounded by limits.h.
 *
 * Threads: any.
 */
#ifndef DLBLK_META_MEMORY_H
#define DLBLK_META_MEMORY_H

#include <stddef.h>

void *meta_alloc(size_t bytes); /* zeroed; at least one byte */
void *meta_realloc(void *memory, size_t count, size_t item_bytes);
void *meta_copy(const void *bytes, size_t length_bytes);
char *meta_strdup(const char *text);

#endif
