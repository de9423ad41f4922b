/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-disk check: start the engine as a server would, and compare its allocation map with its
 * leaves; but on top of a layer that keeps all writes in memory, so that the disk stays as it is.
 */
#include "chunkserver/disk_tool.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/index_rocksdb.h"
#include "common/assert.h"
#include "common/text.h"

#define LAYER_BLOCK_BYTES 4096u

/*
 * --- a disk over a disk: what is written stays in memory.  A start writes a few blocks only. ---
 */

struct layer_block {
    uint64_t offset_bytes;
    uint8_t bytes[LAYER_BLOCK_BYTES];
};

struct layer {
    struct disk disk;
    struct disk *below;
    struct layer_block **blocks;
    size_t block_count, block_capacity;
};

static struct layer_block *
layer_find(const struct layer *layer, uint64_t offset_bytes)
{
    for (size_t i = 0; i < layer->block_count; i++)
        if (layer->blocks[i]->offset_bytes == offset_bytes)
            return layer->blocks[i];
    return NULL;
}

static struct layer_block *
layer_add(struct layer *layer, uint64_t offset_bytes)
{
    struct layer_block *block = calloc(1, sizeof(*block));

    if (layer->block_count == layer->block_capacity) {
        size_t capacity = layer->block_capacity * 2 + 16;
        struct layer_block **blocks = realloc(layer->blocks, capacity * sizeof(blocks[0]));

        if (blocks == NULL) {
            free(block);
            return NULL;
        }
        layer->blocks = blocks;
        layer->block_capacity = capacity;
    }
    if (block == NULL)
        return NULL;
    block->offset_bytes = offset_bytes;
    layer->blocks[layer->block_count++] = block;
    return block;
}

static int
layer_read_now(struct disk *disk, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct layer *layer = (struct layer *)disk;
    int result = layer->below->ops->read_now(layer->below, buffer, length_bytes, offset_bytes);

    if (result != 0)
        return result;
    for (size_t i = 0; i < layer->block_count; i++) {
        const struct layer_block *block = layer->blocks[i];

        if (block->offset_bytes >= offset_bytes &&
            block->offset_bytes < offset_bytes + length_bytes)
            memcpy((uint8_t *)buffer + (block->offset_bytes - offset_bytes), block->bytes,
                   LAYER_BLOCK_BYTES);
    }
    return 0;
}

static int
layer_write_now(struct disk *disk, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct layer *layer = (struct layer *)disk;

    for (size_t at = 0; at < length_bytes; at += LAYER_BLOCK_BYTES) {
        struct layer_block *block = layer_find(layer, offset_bytes + at);

        if (block == NULL)
            block = layer_add(layer, offset_bytes + at);
        if (block == NULL)
            return -ENOMEM;
        memcpy(block->bytes, (const uint8_t *)buffer + at, LAYER_BLOCK_BYTES);
    }
    return 0;
}

static int
layer_flush_now(struct disk *disk)
{
    (void)disk;
    return 0;
}

/* Nothing is asynchronous here: no loop runs. */
static void
layer_submit(struct disk *disk, struct disk_io *io)
{
    (void)disk;
    (void)io;
    dl_unreachable();
}

static const struct disk_ops layer_ops = {
    .submit = layer_submit,
    .read_now = layer_read_now,
    .write_now = layer_write_now,
    .flush_now = layer_flush_now,
};

static void
layer_init(struct layer *layer, struct disk *below)
{
    memset(layer, 0, sizeof(*layer));
    layer->disk.ops = &layer_ops;
    layer->disk.size_bytes = below->size_bytes;
    layer->disk.write_through = below->write_through;
    layer->below = below;
}

static void
layer_fini(struct layer *layer)
{
    for (size_t i = 0; i < layer->block_count; i++)
        free(layer->blocks[i]);
    free(layer->blocks);
}

/* --- an env in which no time passes: timers and tasks never run --- */

static uint64_t
still_now_ns(struct env *env)
{
    (void)env;
    return 1;
}

static uint64_t
still_random(struct env *env)
{
    (void)env;
    return 4;
}

static void
still_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
    (void)env;
    (void)delay_ns;
    timer->heap_idx = 1;
}

static void
still_timer_stop(struct env *env, struct env_timer *timer)
{
    (void)env;
    timer->heap_idx = 0;
}

static void
still_defer(struct env *env, struct env_task *task)
{
    (void)env;
    task->queued = true;
}

static const struct env_ops still_ops = {
    .now_ns = still_now_ns,
    .wall_ms = still_now_ns,
    .random = still_random,
    .timer_start = still_timer_start,
    .timer_stop = still_timer_stop,
    .defer = still_defer,
};

/* --- all of it --- */

static int
print_result(const struct disk_tool_options *options, struct engine *engine,
             const char *differences, struct dl_error *err)
{
    struct engine_identity identity;
    struct store_stats stats;
    json_t *root;
    int result;

    engine_identity(engine, &identity);
    engine_store(engine)->ops->get_stats(engine_store(engine), &stats);
    if (!options->json) {
        (void)printf("%s: %" PRIu64 " chunks, %s of ", options->path, stats.chunk_count,
                     text_of_size(stats.used_bytes).text);
        (void)printf("%s in use, %s\n", text_of_size(stats.capacity_bytes).text,
                     identity.was_clean ? "stopped cleanly" : "not stopped cleanly");
        (void)printf("journal: %s\n", identity.damaged ? "DAMAGED" : "good");
        (void)printf(
            "allocation map and leaves: %s%s\n",
            differences == NULL ? "agree" : "DISAGREE: ", differences == NULL ? "" : differences);
        return 0;
    }
    root = json_pack("{s:s, s:I, s:I, s:I, s:b, s:b, s:o}", "path", options->path, "chunks",
                     (json_int_t)stats.chunk_count, "used_bytes", (json_int_t)stats.used_bytes,
                     "capacity_bytes", (json_int_t)stats.capacity_bytes, "was_clean",
                     (int)identity.was_clean, "journal_damaged", (int)identity.damaged,
                     "differences", differences == NULL ? json_null() : json_string(differences));
    result = json_dumpf(root, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(root);
    return result == 0 ? 0 : dl_error_set(err, -EIO, "cannot write the result");
}

static int
check_with_index(const struct disk_tool_options *options, struct disk *disk, struct index *index,
                 bool *ret_damaged, struct dl_error *err)
{
    struct engine_options engine_options = {0};
    struct engine_identity identity;
    struct env env = {.ops = &still_ops};
    struct engine *engine;
    struct layer layer;
    char *differences;
    int result;

    layer_init(&layer, disk);
    result = engine_open(&engine, &env, &layer.disk, index, &engine_options, err);
    if (result == 0) {
        differences = engine_check(engine);
        engine_identity(engine, &identity);
        result = print_result(options, engine, differences, err);
        *ret_damaged = differences != NULL || identity.damaged;
        free(differences);
        engine_destroy(engine);
    }
    layer_fini(&layer);
    return result;
}

int
disk_tool_check(const struct disk_tool_options *options, bool *ret_damaged, struct dl_error *err)
{
    struct disk_file_options open_options = {.read_only = true};
    struct index_rocksdb_options index_options = {.path = options->index_path};
    struct disk_file *file;
    struct index *index;
    int result = disk_file_open(options->path, &open_options, &file, err);

    if (result != 0)
        return result;
    result = index_rocksdb_open(&index_options, &index, err);
    if (result == 0) {
        result = check_with_index(options, disk_file_disk(file), index, ret_damaged, err);
        index->ops->close(index);
    }
    disk_file_close(file);
    return result;
}
