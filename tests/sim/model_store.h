/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_store.h: a model of the storage engine behind chunk_store.h, with what a crash may take
 * from it.
 *
 * The disk outlives the processes that open it.  It holds what was acknowledged, plus what survived
 * of crashes:
 * - Requests join a group; groups become durable in order, each whole or not at all.  At most two
 *   are under way.
 * - A large write joins a group when its data has been written, so smaller ones that came later
 *   overtake it.
 * - A crash keeps a prefix of the groups that were under way.  What is kept was not acknowledged,
 *   and exists whole.
 * - A fence, and a config epoch that a WRITE or STORE_IN_SYNC brings, holds for requests at once,
 *   but survives a crash only with its group.
 * - Zeroes are forgotten at once, of the whole chunk.
 * - The beginning of an attempt waits for the large writes of its chunk, then joins a group like
 *   any other record; so does what was pulled.
 * The engine's own crash tests show that the engine is no worse.
 *
 * Threads: one.  Errors: as chunk_store.h, and those that the profile asks for.
 */
#ifndef DLBLK_TESTS_MODEL_STORE_H
#define DLBLK_TESTS_MODEL_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_store.h"
#include "chunkserver/chunk_table.h"
#include "common/env.h"
#include "tests/unit/lib/fake_rng.h"

struct model_profile {
    uint64_t read_ns_min, read_ns_max;
    uint64_t group_ns_min, group_ns_max; /* data, journal and flush of a group */
    uint64_t large_ns_max;               /* the data of a large write */
    uint32_t write_errors_per_million, read_errors_per_million;
    uint32_t read_flips_per_million; /* reads that return a flipped bit */
    bool full;                       /* no space for new data, apart from the reserve */
};

/* What lasts longer than a well disk would let it: aim.c. */
struct model_slowness {
    uint32_t pull_sectors_max; /* of one answer to PULL; 0: as many as go into it */
    uint64_t pull_ns_max;      /* of an answer to PULL */
    uint64_t large_ns_max;     /* of the data of a large write */
    uint64_t read_ns_max;      /* of one read in ten */
};

struct model_counters {
    uint64_t groups, groups_kept, groups_lost, records_kept, records_lost;
    uint64_t writes, large_writes, duplicates, outdated_sectors, zeroes, reads, fences, deletes;
    uint64_t no_space, write_errors, read_errors, read_flips, fences_undone, epochs_undone, crashes,
        stops;
    uint64_t attempts, promotions, sectors_voided, pulls, sectors_pulled, merges, sectors_merged;
    uint64_t sectors_rotten, leaves_damaged, zeroes_forgotten;
};

struct model_sector {
    uint64_t version;
    uint32_t birth;
    uint32_t crc;
    enum sector_kind kind;
    /* Of a recovering chunk: what is here is not known, below every version; version 0, a hole. */
    bool is_void;
    uint64_t damaged_version; /* void because its leaf was damaged: what it may have had; 0: not */
    uint8_t *data;            /* SECTOR_DATA */
};

/* chunk->store_private */
struct model_chunk {
    struct model_sector *sectors;
    uint32_t sector_count; /* those behind are holes */
    uint32_t config_epoch; /* what a crash leaves; the chunk's may be higher */
};

struct model_disk {
    struct chunk_table *chunks;
    uint64_t start_count;
    uint64_t journal_position;
    uint64_t next_local_id;
    uint64_t used_sectors;
    struct model_slowness slowness;
    uint64_t capacity_bytes; /* as it is told; nothing is held to it */
    bool damaged;            /* it says so, from its next start on */
    struct model_profile profile;
    struct model_counters counters;
    struct fake_rng rng;
    void (*on_group)(
        void *
            /* a group is on its way to the disk: a good moment for a fault; NULL: nobody cares */
            context);
    void *group_context;
};

void model_disk_init(struct model_disk *disk, uint64_t seed);
void model_disk_fini(struct model_disk *disk);

/*
 * The 64 sectors of a leaf can't be read any more: what they had is not known.  Between two lives.
 */
void model_disk_damage_leaf(struct model_disk *disk, struct chunk *chunk, uint32_t leaf);

/* A bit of the sector's data is another one from now on.  False: it has no data, or is bad already.
 */
bool model_disk_rot(struct model_disk *disk, struct chunk *chunk, uint32_t sector);
/* Does the sector read as what was written? */
bool model_sector_is_good(const struct chunk *chunk, uint32_t sector);
bool model_sector_is_void(const struct chunk *chunk, uint32_t sector);

/*
 * What a disk has at a moment, as a crash without luck would leave it; later it may come back in
 * the disk's place, when no store is open.  `keep_counts`: apart from its start count and journal
 * position (a disk that has lost what its journal had, and says so).
 */
struct model_image;
struct model_image *model_image_take(const struct model_disk *disk);
void model_image_put(struct model_disk *disk, const struct model_image *image, bool keep_counts);
void model_image_free(struct model_image *image);
/* Would the metadata service, which knows these numbers, notice that the image is an older one? */
bool model_image_is_older(const struct model_image *image, uint64_t start_count,
                          uint64_t journal_position);

/* Raises start_count.  One store at a time. */
struct chunk_store *model_store_open(struct model_disk *disk, struct env *env);
/*
 * The process dies.  Before the requests' memory goes; no timer or task of the env runs any more.
 */
void model_store_crash(struct chunk_store *store);
/* After stop's on_done. */
void model_store_destroy(struct chunk_store *store);

#endif
