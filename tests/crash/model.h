/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.h: what a storage engine must hold after everything that was asked of it, and after a crash
 * what it may hold.
 *
 * For each write the model knows whether it is present, absent, or undecided; for each sector of a
 * chunk the highest version of the writes that are present.  A write is undecided from its start to
 * its acknowledgement; a crash in between leaves it so until the recovered engine's pending list
 * says, once and for good, which it is.  A read may have it as soon as it is durable, shortly
 * before it is acknowledged; then it is present after a crash.
 *
 * The content of a sector is a function of chunk, incarnation, version and sector: what is read
 * tells who wrote it.
 */
#ifndef DLBLK_TESTS_CRASH_MODEL_H
#define DLBLK_TESTS_CRASH_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_table.h"

#define MODEL_CHUNKS_MAX  12u
#define MODEL_VOLUMES_MAX 3u

enum model_write_state {
    WRITE_UNDECIDED, /* started, not acknowledged */
    WRITE_PRESENT,
    WRITE_ABSENT, /* refused, or dropped by a recovery: may be sent again */
};

struct model_write {
    uint64_t version;
    uint32_t offset, length; /* sectors */
    bool zero;
    bool dead; /* will never be sent again */
    bool seen; /* undecided, but a read has had it: it is durable */
    enum model_write_state state;
    uint32_t flights; /* requests under way */
};

enum model_chunk_state {
    CHUNK_MODEL_ABSENT,
    CHUNK_MODEL_MAYBE, /* a request that creates it was started, none is acknowledged */
    CHUNK_MODEL_PRESENT,
    CHUNK_MODEL_DELETING, /* a deletion was started */
};

struct model_chunk {
    struct chunk_key key;
    uint32_t sectors;
    enum model_chunk_state state;
    uint32_t incarnation;
    uint32_t epoch_floor, epoch_sent;   /* acknowledged or seen; sent */
    uint64_t stable_floor, stable_sent; /* likewise */
    uint64_t forget_sent;               /* zeroes up to it may be holes by now */
    uint64_t sequence;                  /* of the last version given out */
    uint32_t flights;                   /* requests under way */
    uint64_t *version;                  /* per sector: of the present writes the highest; 0: hole */
    bool *is_zero;
    struct model_write *writes;
    uint32_t write_count, write_capacity;
};

struct model_volume {
    uint64_t volume;
    uint32_t lease; /* of the current owner */
    uint32_t fence_floor, fence_sent;
};

struct model {
    struct model_chunk chunks[MODEL_CHUNKS_MAX];
    uint32_t chunk_count;
    struct model_volume volumes[MODEL_VOLUMES_MAX];
    uint32_t volume_count;
};

void model_init(struct model *model, uint32_t volumes, uint32_t chunks, uint32_t sectors);
void model_fini(struct model *model);

struct model_volume *model_volume_of(struct model *model, const struct model_chunk *chunk);

/* A new write of a present or future chunk; the pointer is valid until the next call. */
struct model_write *model_write_add(struct model_chunk *chunk, uint64_t version, uint32_t offset,
                                    uint32_t length, bool zero);
struct model_write *model_write_find(struct model_chunk *chunk, uint64_t version);
/* The write is present from now on. */
void model_write_apply(struct model_chunk *chunk, struct model_write *write);
/* The chunk is gone, or never was: the next incarnation starts with nothing. */
void model_chunk_reset(struct model_chunk *chunk);

/*
 * The highest version to which S may rise: all up to it are present, or will never be sent again.
 */
uint64_t model_stable_bound(const struct model_chunk *chunk);

/* Sectors with data, over all chunks that are present. */
uint64_t model_data_sectors(const struct model *model);

void model_sector_fill(const struct model_chunk *chunk, uint64_t version, uint32_t sector,
                       void *ret_bytes);

/*
 * Compare the recovered chunk table with the model and decide what was undecided.  NULL, or what is
 * wrong (static).
 */
const char *model_recover(struct model *model, const struct chunk_table *table);
/* As above, for an engine without a crash: nothing is decided. */
const char *model_compare_table(struct model *model, const struct chunk_table *table);

#endif
