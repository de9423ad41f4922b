/* SPDX-License-Identifier: Apache-2.0 */
#include "client/buffers.h"

#include <stdlib.h>
#include <string.h>

#include "client/geometry.h"
#include "common/align.h"

static_assert(WIRE_SECTOR_BYTES << (BUFFERS_CLASSES - 1) == WINDOW_BYTES, "the last class");

static unsigned
buffers_class(size_t bytes)
{
    dl_assert(bytes > 0);
    dl_assert(bytes <= WINDOW_BYTES);
    return bytes <= WIRE_SECTOR_BYTES ? 0 : log2_floor(bytes - 1) + 1 - SECTOR_SHIFT;
}

static size_t
buffers_class_bytes(unsigned class)
{
    return (size_t)WIRE_SECTOR_BYTES << class;
}

void
buffers_init(struct buffers *buffers)
{
    memset(buffers, 0, sizeof(*buffers));
}

void
buffers_fini(struct buffers *buffers)
{
    dl_assert(buffers->used_bytes == 0);
    for (unsigned class = 0; class < BUFFERS_CLASSES; class ++) {
        void *next;

        for (void *buffer = buffers->kept[class]; buffer != NULL; buffer = next) {
            memcpy(&next, buffer, sizeof(next));
            free(buffer);
        }
    }
    memset(buffers, 0, sizeof(*buffers));
}

void *
buffers_acquire(struct buffers *buffers, size_t bytes)
{
    unsigned class = buffers_class(bytes);
    void *buffer = buffers->kept[class];

    if (buffer != NULL) {
        memcpy(&buffers->kept[class], buffer, sizeof(void *));
        buffers->kept_bytes -= buffers_class_bytes(class);
    } else {
        buffer = aligned_alloc(WIRE_SECTOR_BYTES, buffers_class_bytes(class));
    }
    if (buffer != NULL)
        buffers->used_bytes += buffers_class_bytes(class);
    return buffer;
}

void
buffers_release(struct buffers *buffers, void *buffer, size_t bytes)
{
    unsigned class = buffers_class(bytes);
    size_t class_bytes = buffers_class_bytes(class);

    if (buffer == NULL)
        return;
    dl_assert(buffers->used_bytes >= class_bytes);
    buffers->used_bytes -= class_bytes;
    if (buffers->kept_bytes + class_bytes > BUFFERS_KEPT_BYTES_MAX) {
        free(buffer);
        return;
    }
    memcpy(buffer, &buffers->kept[class], sizeof(void *));
    buffers->kept[class] = buffer;
    buffers->kept_bytes += class_bytes;
}
