/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/store.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "meta/memory.h"

static struct store_edit *
store_batch_add(struct store_batch *batch, struct store_bytes key)
{
    struct store_edit *edit;

    dl_assert(key.length_bytes > 0 && key.length_bytes <= STORE_KEY_BYTES_MAX);
    dl_assert(*(const uint8_t *)key.bytes != 0);
    if (batch->count == batch->capacity) {
        batch->capacity = batch->capacity == 0 ? 4 : batch->capacity * 2;
        batch->edits = meta_realloc(batch->edits, batch->capacity, sizeof(*batch->edits));
    }
    edit = &batch->edits[batch->count++];
    *edit = (struct store_edit){
        .key = {.bytes = meta_copy(key.bytes, key.length_bytes), .length_bytes = key.length_bytes},
    };
    return edit;
}

void
store_batch_put(struct store_batch *batch, struct store_bytes key, struct store_bytes value)
{
    struct store_edit *edit = store_batch_add(batch, key);

    dl_assert(value.length_bytes <= STORE_VALUE_BYTES_MAX);
    edit->value.bytes = meta_copy(value.bytes, value.length_bytes);
    edit->value.length_bytes = value.length_bytes;
}

void
store_batch_put_message(struct store_batch *batch, struct store_bytes key,
                        const ProtobufCMessage *message)
{
    struct store_edit *edit = store_batch_add(batch, key);
    size_t length_bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = meta_alloc(length_bytes);

    dl_assert(length_bytes <= STORE_VALUE_BYTES_MAX);
    (void)protobuf_c_message_pack(message, bytes);
    edit->value.bytes = bytes;
    edit->value.length_bytes = (uint32_t)length_bytes;
}

void
store_batch_delete(struct store_batch *batch, struct store_bytes key)
{
    (void)store_batch_add(batch, key);
}

void
store_batch_fini(struct store_batch *batch)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        free((void *)(uintptr_t)batch->edits[i].key.bytes);
        free((void *)(uintptr_t)batch->edits[i].value.bytes);
    }
    free(batch->edits);
    *batch = (struct store_batch){0};
}

int
store_bytes_compare(struct store_bytes a, struct store_bytes b)
{
    uint32_t common = a.length_bytes < b.length_bytes ? a.length_bytes : b.length_bytes;
    int order = common == 0 ? 0 : memcmp(a.bytes, b.bytes, common);

    if (order != 0)
        return order;
    return a.length_bytes < b.length_bytes ? -1 : a.length_bytes > b.length_bytes;
}
