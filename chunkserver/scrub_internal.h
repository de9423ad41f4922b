/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scrub_internal.h: what the files of the scrub share: scrub.c (the walk, reading), scrub_compare.c
 * (the other slots), scrub_job.c (scrubs that somebody asks for).  See scrub.h.
 *
 * Threads: the core's.
 */
#ifndef DLBLK_CHUNKSERVER_SCRUB_INTERNAL_H
#define DLBLK_CHUNKSERVER_SCRUB_INTERNAL_H

#include "chunkserver/peer.h"
#include "chunkserver/scrub.h"

#define SCRUB_ID_BYTES     16u
#define SCRUB_BATCH_CHUNKS 64u
#define SCRUB_REST_MIN_NS  (1 * CORE_NS_PER_MS)

enum scrub_state {
    SCRUB_IDLE,
    SCRUB_READING,
    SCRUB_REPAIRING,
    SCRUB_MAPPING,
    SCRUB_LOOKING,
    SCRUB_ASKING,
    SCRUB_CONFIRMING,
    SCRUB_PAUSED,
};

struct scrub_job {
    struct list node;
    uint64_t volume;
    uint8_t id[SCRUB_ID_BYTES];
    bool done;
    uint64_t ended_ns;
    struct chunk_key *keys; /* ascending */
    size_t key_count, key_idx;
    Dl__ScrubCounts counts;
    uint64_t skipped, uncompared;
};

/* What a slot has of a window: not its holes. */
struct scrub_look {
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint32_t sector_count;
    uint32_t next_sector;
};

struct scrub {
    struct chunkserver_core *core;
    enum scrub_state state;
    struct env_timer timer;
    void (*resume)(struct scrub *scrub); /* PAUSED */
    struct list jobs;                    /* of scrub_job.node, oldest first */
    uint32_t job_count;

    /* The scrub of the disk. */
    bool is_placed;            /* it knows where it is */
    struct chunk_key position; /* the last one that was done; volume 0: none */
    uint64_t completed_ms;
    uint64_t next_ns; /* not before */
    struct chunk_key batch[SCRUB_BATCH_CHUNKS];
    uint32_t batch_count, batch_idx;

    /* The chunk under way. */
    struct scrub_job *job; /* NULL: the disk's */
    bool has_chunk;
    struct chunk_key key;
    uint64_t local_id;
    uint32_t sector; /* all before it is done, read or compared */
    uint32_t window; /* to be tried next */
    bool found;      /* there was something in the last one */
    uint64_t began_ns;
    void *buffer;
    struct store_pull pull;
    struct scrub_look own, peer, again;
    uint64_t own_stable;

    /* Comparing. */
    bool comparing, incomplete;
    uint64_t map_id;
    uint32_t config_epoch; /* of the map */
    uint32_t end_sector;   /* of the segment */
    struct pull_source peers[PULL_SOURCES_MAX];
    uint32_t peer_count, peer_idx;
    uint32_t peer_sector;   /* compared with this one up to here */
    uint32_t compared_from; /* ... by its last answer from here on */
    uint32_t tries;
    struct session_call call;
    uint32_t differ_count, differ_first;
};

/* --- scrub.c --- */

void scrub_log(const struct scrub *scrub, const char *what);
int scrub_key_compare(const struct chunk_key *a, const struct chunk_key *b);
/* The core stops, and nothing of the scrub is under way any more. */
bool scrub_ends(struct scrub *scrub);
void scrub_pause(struct scrub *scrub, uint64_t pause_ns, void (*resume)(struct scrub *scrub));
bool scrub_has_foreground(const struct scrub *scrub);
/* May the chunk be read on? */
bool scrub_chunk_is_there(const struct scrub *scrub);
/* It is done: the next one. */
void scrub_leave_chunk(struct scrub *scrub);
void scrub_next_chunk(struct scrub *scrub);
/* The next window, to end_sector at most. */
void scrub_pull(struct scrub *scrub, enum scrub_state state, uint32_t end_sector,
                void (*on_done)(struct store_pull *pull, int err));
/* Something in the window is bad, or not to be known. */
bool scrub_is_bad(int err);
/* Then a smaller one is tried. */
void scrub_narrow(struct scrub *scrub);
void scrub_widen(struct scrub *scrub);

/* --- scrub_compare.c --- */

void scrub_compare_init(struct scrub *scrub);
/* The chunk was read; scrub_leave_chunk() when it is compared, as far as it can be. */
void scrub_compare_begin(struct scrub *scrub);
/* MAPPING, CONFIRMING, ASKING: no answer. */
void scrub_compare_timeout(struct scrub *scrub);
/* The core stops.  False: something is in a link still. */
bool scrub_compare_cancel(struct scrub *scrub);

/* --- scrub_job.c --- */

/* The oldest that is not done; NULL: none. */
struct scrub_job *scrub_next_job(struct scrub *scrub);
void scrub_jobs_free(struct scrub *scrub);

#endif
