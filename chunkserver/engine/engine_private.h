/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_private.h: the state of the engine, shared by its files.
 *
 *     write.c, read.c, change.c     what the core starts: ops
 *     group.c, group_done.c         ops become journal blocks, are flushed, acknowledged in order
 *     ring.c                        how full the ring is
 *     apply.c                       what an acknowledged, or replayed, record does
 *     leaf_cache.c                  which leaves are in memory, loading them
 *     delete.c                      giving back the space of deleted chunks
 *     forget.c                      zeroes and leaves that nobody needs any more
 *     reclaim.c                     blocks that damaged leaves had
 *     recover.c, merge.c, pull.c    a slot that recovers, and the one it recovers from
 *     writeback.c, stage.c          memory to index, the ring's tail
 *     index_values.c                keys and values of the index
 *     replay.c                      the ring at open
 *     open.c, engine.c, stop.c      its life; turns, timers, counters
 *     check.c                       the map against the leaves
 *
 * Life of a write:
 *
 *     write_start --> [large: data I/O first] --> ready --close--> in a group --ack--> on_done
 *                                                   ^                  |
 *                                                   `- its data failed-'  (ABORT in the next group)
 *
 * Invariants that more than one file keeps:
 * 1. LSNs: tail <= acked_lsn <= next_lsn.  Below tail the index has everything.  [acked_lsn,
 *    next_lsn) are groups under way.
 * 2. The chunk table's durable part, the leaves, and the allocation map change at acknowledgement
 *    only, in journal order.  Earlier, and at once, change only what refuses requests (fences,
 *    config epochs, deletion) and the stable version.
 * 3. A thing that differs from the index is in `dirty`, which is ordered by recovery_lsn; the
 *    list's first bounds the tail.
 */
#ifndef DLBLK_ENGINE_ENGINE_PRIVATE_H
#define DLBLK_ENGINE_ENGINE_PRIVATE_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_table.h"
#include "chunkserver/engine/alloc.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/format.h"
#include "chunkserver/engine/freelist.h"
#include "chunkserver/engine/journal.h"
#include "chunkserver/engine/leaf.h"
#include "common/assert.h"
#include "common/disk.h"
#include "common/env.h"
#include "common/list.h"
#include "common/trace.h"
#include "common/vec.h"

#define LARGE_WRITE_SECTORS   16u /* above 64 KiB the data goes ahead of the group */
#define WRITE_ATTEMPTS_MAX    3u
#define DATA_IO_BLOCKS_MAX    256u /* 1 MiB, and as many iovecs */
#define OP_EXTENTS_INLINE     2u
#define LEAF_FRAGMENTS_MAX    8u /* then the leaf is put whole */
#define WRITEBACK_BATCH_BYTES (256u << 10)
#define NS_PER_MS             UINT64_C(1000000)

/* --- what goes to the index --- */

enum dirty_kind { DIRTY_LEAF, DIRTY_CHUNK, DIRTY_FENCE, DIRTY_BITMAP, DIRTY_BAD };

/* Embedded in each thing that the index keeps. */
struct dirty {
    enum dirty_kind kind;
    uint64_t recovery_lsn; /* of the first change that is not in the index */
    uint64_t lsn;          /* of the last change */
    struct list node;      /* in engine.dirty while it differs from the index */
};

enum leaf_state {
    LEAF_ABSENT,  /* nothing known of the stored part; changes wait as deltas */
    LEAF_LOADING, /* the same, and it is being read */
    LEAF_LOADED,
    LEAF_CORRUPT, /* the stored part cannot be read: so it stays until the next start */
};

struct leaf {
    struct dirty dirty;
    struct engine_chunk *chunk;
    uint32_t number;
    enum leaf_state state;
    bool stored;        /* the index has its key, as far as we know */
    bool staged;        /* its content is on the way to the index */
    bool damaged;       /* loaded, but the stored part could not be understood: void */
    bool checked;       /* for engine_check() */
    bool pinned;        /* those who waited for it are being called */
    bool for_writeback; /* the write-back has it in its batch */
    uint32_t pins;      /* requests that wait for another leaf as well */
    uint32_t fragments; /* in the index */
    uint64_t stored_lsn;
    uint64_t changed;            /* sectors since it was last staged */
    uint64_t needs_free_seq;     /* FREE records that must be durable before it goes to the index */
    struct leaf_sector *sectors; /* LEAF_LOADED */
    struct leaf_delta *deltas;   /* not LEAF_LOADED: ascending LSNs */
    struct leaf_delta *deltas_last;
    uint32_t delta_sectors;
    uint32_t replayed_deltas;
    struct list waiters;    /* struct leaf_waiter */
    struct list cache_node; /* engine.cache: LEAF_LOADED, clean, not staged */
    struct list load_node;  /* engine.loads: to be read at the end of the turn */
};

/* Leaves [first, end) of a chunk. */
struct leaf_range {
    uint32_t first, end;
};

/* Numbers of leaves of a chunk, as bits; all zero: none. */
struct leaf_set {
    uint64_t *words;
    uint32_t word_count;
    uint32_t count;
};

struct leaf_waiter;
/* err: 0, the leaf is LEAF_LOADED now; or it cannot be read. */
typedef void (*leaf_waiter_fn)(struct leaf_waiter *waiter, int err);
struct leaf_waiter {
    struct list node;
    leaf_waiter_fn fn;
};

/* --- chunks and volumes --- */

struct engine_chunk {
    struct chunk *chunk;
    struct engine *engine;
    struct dirty dirty;
    struct leaf **leaves; /* by number; NULL: not in memory */
    uint32_t leaf_capacity;
    uint32_t leaf_count;    /* no leaf at or above it has, or had, a key or a change */
    uint32_t refs;          /* ops, and reads that wait: it is not forgotten before they end */
    uint64_t last_lsn;      /* of the last record that names it */
    uint64_t stored_lsn;    /* at open: the index had what records up to it did to the table */
    uint64_t version_max;   /* started in this life, or durable */
    uint32_t epoch_durable; /* what of the chunk's config epoch would survive a crash */
    struct list writes;     /* struct op.chunk_node: started, not acknowledged */
    struct list attempts;   /* struct attempt.node: the first is being begun, the others wait */
    /* deletion */
    struct list deletion_node; /* engine.deletions, later engine.cleared */
    bool deletion_durable;
    uint32_t clear_next;     /* leaf to look at next */
    uint32_t clears_pending; /* leaves being read or cleared */
    bool cleared;
    /* forget.c */
    struct list forget_node; /* engine.forgets: zeroes up to forget_version go */
    uint64_t forget_version;
    struct leaf_set zeroes;   /* leaves that may have zeroes, as far as we have seen them */
    uint32_t forget_next;     /* of them, to look at next */
    uint32_t forgets_pending; /* of them, being read or changed */
    struct list emptied_node; /* engine.emptied */
    struct leaf_set emptied;  /* leaves that are stored without sectors, and unchanged since */
    uint64_t emptied_lsn;     /* ... the highest LSN of them */
};

struct engine_volume {
    struct chunk_volume *volume;
    struct dirty dirty;
};

struct bad_block {
    struct dirty dirty;
    uint64_t block;
    struct bad_block *next;
};

struct bitmap_page {
    struct dirty dirty;
};

/* --- operations: everything that becomes a journal record --- */

struct op {
    struct list node; /* ready, urgent, a group's ops */
    enum record_kind kind;
    bool barrier;   /* no record: done when all before it is */
    bool aborted;   /* its data failed: it never happened */
    bool joined;    /* its data goes, or went, ahead of its group */
    bool io_failed; /* ... and a part of it failed */
    bool slow;      /* in engine.slow: may be acknowledged after what was started later */
    bool promotes;  /* WRITE, ZERO: of a chunk that was recovering */
    bool applying;  /* begun to be applied; `applied` sectors are done */
    uint8_t attempts;
    int err; /* what its requester gets */
    struct engine_chunk *chunk;
    struct engine_volume *volume;
    struct store_write *write;   /* NULL: none, or no longer this op's */
    struct store_change *change; /* NULL: none */
    struct list duplicates; /* struct store_write.node: the same version, waiting for this one */
    struct list chunk_node;
    struct list slow_node;
    uint64_t start_seq;
    struct attempt *attempt; /* ATTEMPT */
    uint64_t version;        /* STABLE, REPORT: the version */
    uint32_t applied;        /* what is done: sectors, or leaves */
    uint32_t number;         /* CLEAR: leaf; ABORT: record_idx; STABLE, REPORT: attempt */
    uint64_t lsn;            /* ABORT: of the block */
    uint32_t record_idx;     /* in its group */
    uint32_t extent_count;
    struct extent *extents; /* handed out, not committed */
    struct extent extents_inline[OP_EXTENTS_INLINE];
    uint32_t ios_pending;      /* joined writes */
    struct leaf_waiter waiter; /* of a leaf that must be read first */
    struct leaf_range pinned;  /* while it waits */
};

/* --- groups --- */

struct data_io {
    struct disk_io io;
    struct engine *engine;
    struct group *group; /* or */
    struct op *op;
    struct extent extent;
};

enum group_state {
    GROUP_WRITING, /* data and journal block are on their way */
    GROUP_WRITTEN, /* ... complete, in no flush yet */
    GROUP_FLUSHING,
    GROUP_DURABLE, /* waits for the groups before it, or for an ABORT behind it */
};

struct group {
    struct list node; /* engine.groups: not acknowledged, by LSN; or engine.groups_free */
    enum group_state state;
    struct engine *engine;
    uint64_t lsn;
    uint32_t units;
    uint32_t record_count;
    uint64_t mark;
    struct list ops;
    uint32_t ios_pending;
    uint32_t debt_sectors;     /* that its records may give up */
    bool failing;              /* it has aborted records: counted in engine.failed_count */
    uint32_t aborts_missing;   /* ABORT records that are not composed yet */
    uint64_t aborts_lsn;       /* the last group that carries one of them; 0: none */
    VEC(struct extent) freed;  /* of its FREE records */
    VEC(struct extent) worn;   /* of its BAD records: blocks that were repaired */
    VEC(struct extent) failed; /* data that could not be written */
    struct disk_io journal_io;
    uint8_t *buffer; /* JOURNAL_BYTES_MAX, aligned */
    struct data_io *ios;
    uint32_t io_count, io_capacity;
    struct iovec *iovs;
    uint32_t iov_count, iov_capacity;
};

/* Records per stretch of the ring, to know how many are not written back. */
struct ring_stretch {
    uint64_t end_lsn;
    uint32_t record_count;
};

/* --- recovery --- */

/* STORE_ATTEMPT on its way. */
struct attempt {
    struct list node;
    struct engine *engine;
    struct engine_chunk *chunk;
    struct store_change *change;
    struct store_change barrier; /* of its own: what was accepted before is durable */
    bool begun;
    struct chunk_step steps[CHUNK_STEPS_MAX];
    uint32_t step_count;
    uint32_t leaf_count; /* of them: what may have something above the steps */
    uint64_t leaves[CHUNK_LEAVES_MAX / 64];
};

/* A part of a store_merge that fits into a record: its data is a write. */
struct merge {
    struct store_write write;
    struct engine *engine;
    struct engine_chunk *chunk;
    struct store_merge *request;
    uint32_t next;      /* sector of the request at which the next part begins */
    uint32_t data_next; /* ... of those with data */
    uint32_t cursor;    /* of this part: 0, or the request's with the last one */
    struct leaf_range pinned;
    struct leaf_waiter waiter;
    uint32_t sector_count; /* of this part */
    uint32_t run_count;
    uint32_t taken;
    struct merge_run_disk runs[STORE_IO_SECTORS_MAX];
    uint32_t crcs[STORE_IO_SECTORS_MAX];
};

/* --- reads --- */

struct read_io {
    struct disk_io io;
    struct read_op *op;
};

struct read_op {
    struct store_read *read;
    struct engine *engine;
    struct engine_chunk *chunk; /* while it waits for leaves */
    struct leaf_range pinned;   /* ... it keeps these in memory */
    struct list node;           /* engine.reads, by started_seq */
    struct leaf_waiter waiter;
    struct read_io first_io;
};

/* --- write-back --- */

enum writeback_state {
    WRITEBACK_IDLE,
    WRITEBACK_LOADING, /* leaves of the batch are being read */
    WRITEBACK_WAITING, /* staged; a mark and FREE records must become durable */
    WRITEBACK_BATCH,   /* in the index */
    WRITEBACK_FLUSH,   /* the index is being flushed */
};

enum staged_kind { STAGED_PUT, STAGED_MERGE, STAGED_DELETE };

/* Followed by key and value. */
struct staged_op {
    uint8_t kind; /* enum staged_kind */
    uint8_t key_bytes;
    uint32_t value_bytes;
};

struct writeback {
    enum writeback_state state;
    VEC(struct dirty *) items; /* of the batch; staged leaves stay until it is complete */
    VEC(struct engine_chunk *) forgotten;
    VEC(uint8_t) staged; /* struct staged_op, key, value; again and again */
    uint32_t loads_pending;
    uint64_t lsn_max; /* of what is staged */
    uint64_t needs_free_seq;
    uint64_t batch_position; /* T of the batch that is staged, or was completed last */
    uint64_t batch_records;  /* journal records between the tail and batch_position */
    uint64_t flush_position;
    uint64_t target_lsn; /* what became dirty below it is written back in any case */
    bool stopping;       /* write back all there is */
    bool flush_all;      /* flush the index when nothing is dirty any more */
    bool index_dirty;    /* batches since the last flush */
};

/* --- blocks of damaged leaves --- */

enum reclaim_state { RECLAIM_IDLE, RECLAIM_COPYING, RECLAIM_WALKING, RECLAIM_ENDING };

struct reclaim {
    enum reclaim_state state;
    uint64_t *candidates; /* by block; NULL: IDLE */
    uint64_t next_word;
    uint64_t *local_ids; /* of the chunks that were there when the map had been copied */
    uint32_t chunk_count, chunk_idx, next_leaf;
    uint32_t pending;   /* leaves being read */
    uint64_t lost_seq;  /* at the beginning */
    bool again;         /* there were damaged leaves that the index still has as they were */
    uint64_t again_seq; /* ... then not before it has lost, and flushed, more than this */
    bool never;         /* not in this life */
};

/* --- replay --- */

struct free_entry {
    uint64_t block;
    uint64_t lsn;
};

struct engine {
    struct chunk_store store;
    struct dl_owner owner;
    struct env *env;
    struct disk *disk;
    struct index *index;
    struct superblock superblock;
    uint64_t cache_budget, idle_mark_ns, idle_writeback_ns;
    uint32_t records_max, writeback_items_max;
    bool was_clean, damaged;
    bool leaves_lost; /* leaves could not be understood: blocks may be in use without an owner */
    /* How often: all; those that a flush of the index covers, or will; those searched for. */
    uint64_t lost_seq, lost_flushed, lost_flushing, lost_searched;
    bool lost_over; /* they were given up: when lost_free_seq is durable the index may say so */
    uint64_t lost_free_seq;
    struct reclaim reclaim;
    int stopped;

    struct chunk_table *chunks;
    uint64_t local_id_next;
    bool serving; /* replay is over */
    struct alloc alloc;
    struct bitmap_page *pages;
    struct bad_block *bad;
    struct list dirty;

    /* journal */
    uint64_t ring_units, tail, acked_lsn, next_lsn;
    uint64_t durable_mark;  /* highest mark in a durable block */
    uint64_t composed_mark; /* highest mark in a composed block */
    uint64_t records_lsn;   /* end of the last acknowledged block with records of requests */
    uint32_t group_units_max, ring_reserve_units;
    struct list groups, groups_free;
    uint32_t group_count;     /* in groups */
    uint32_t unflushed_count; /* of these: not yet GROUP_DURABLE */
    uint32_t failed_count;    /* groups with aborted records */
    bool flushing;
    struct disk_io flush_io;
    struct list ready, urgent; /* struct op */
    struct list slow;
    struct list barriers_waiting; /* durable fences and epochs that wait for slow ops */
    uint64_t start_seq;
    bool applying;         /* the first group is being applied, in several turns */
    uint32_t slice_leaves; /* at most so many leaves change in a turn by one record */
    uint32_t merge_taken;  /* sectors taken by merges; counts up */
    uint64_t debt_sectors; /* of deltas and unacknowledged records: blocks that may be given up */
    struct ring_stretch *stretches; /* a queue */
    uint32_t stretch_head, stretch_count, stretch_capacity;
    uint64_t ring_records; /* between tail and next_lsn */
    bool client_blocked;   /* the ring has no room for requests */
    bool want_mark;        /* write a block for the mark and the queue of FREE runs */
    bool throttle_passed;

    /* leaves */
    struct list cache; /* least recently used first */
    uint64_t leaf_count, loaded_count, delta_bytes;
    struct list loads;
    uint32_t loads_pending;
    struct free_entry *replay_frees; /* by block: its last FREE record in the replayed journal */
    size_t replay_free_count;
    uint64_t replayed_deltas;

    /* reads */
    struct list reads;
    uint64_t read_seq;

    struct list deletions; /* struct engine_chunk: its leaves are still to be cleared */
    struct list cleared;   /* ... they are; it is forgotten when the tail has passed its records */
    struct list forgets;   /* struct engine_chunk: zeroes of it are being forgotten */
    struct list emptied;   /* struct engine_chunk: keys of its empty leaves will go */
    struct writeback writeback;

    /* completions of requests that need no I/O, next turn */
    struct list done_writes, done_changes, done_reads;
    struct env_task done_task, kick_task, load_task;
    struct env_timer idle_timer, throttle_timer, later_timer;
    uint64_t active_ns; /* of the last acknowledgement */
    uint32_t requests;  /* writes and changes under way */

    /* stop */
    bool stopping;
    void (*stop_done)(void *context, int err);
    void *stop_context;
    uint32_t stop_step;
    struct disk_io stop_io;
    void *stop_buffer;

    struct freelist ops, extents, leaves, sectors, deltas_one, deltas_few, deltas_many, loads_pool,
        delete_waiters, forget_waiters, reclaim_waiters, read_ops, read_ios, data_ios, chunks_pool,
        volumes_pool, bad_pool, attempts_pool, merges_pool, pulls_pool, voids_pool;
    struct store_stats stats;
    struct engine_counters counters;
};

/* --- engine.c --- */
void engine_kick(struct engine *engine); /* look at everything at the end of the turn */
/* The same in the loop's next turn: what is left of a long work. */
void engine_kick_later(struct engine *engine);
void engine_fail(struct engine *engine, int err); /* no more writes, for good */
/* Call on_done: now, or, from inside a start call, next turn. */
void engine_finish_write(struct engine *engine, struct store_write *write, int err);
void engine_finish_write_later(struct engine *engine, struct store_write *write, int err);
void engine_finish_change_later(struct engine *engine, struct store_change *change, int err);
void engine_finish_read_later(struct engine *engine, struct store_read *read, int err);
void engine_finish_change(struct engine *engine, struct store_change *change, int err);
void engine_finish_read(struct engine *engine, struct store_read *read, int err);
void engine_arm_idle(struct engine *engine);
uint64_t engine_block_offset(const struct engine *engine, uint64_t block);
/* Everything but what the disk says. */
struct engine *engine_create(struct env *env, struct disk *disk, struct index *index,
                             const struct engine_options *options);
/* Is a write or change under way? */
bool engine_has_request(const struct engine *engine);

static inline struct engine *
engine_of_store(struct chunk_store *store)
{
    struct engine *engine = list_entry(store, struct engine, store);

    dl_assert_owner(&engine->owner);
    return engine;
}

/* --- stop.c --- */
void stop_start(struct chunk_store *store, void (*on_done)(void *context, int err), void *context);
/* Something changed: on with it. */
void stop_step(struct engine *engine);

/* --- ops: write.c, change.c --- */
struct op *op_create(struct engine *engine, enum record_kind kind, struct engine_chunk *chunk);
void op_destroy(struct engine *engine, struct op *op);
void op_ready(struct engine *engine, struct op *op);
void op_set_extents(struct engine *engine, struct op *op, const struct extent *extents,
                    uint32_t count);
void op_mark_slow(struct engine *engine, struct op *op);
/* Complete what the op was for, and destroy it. */
void op_finish(struct engine *engine, struct op *op, int err);
/*
 * The data of an op that stands in a journal block failed.  What it was for goes to a new op, or,
 * when that is hopeless, to the op that aborts it: its requester hears of it when the ABORT is
 * durable, not before.
 */
void write_retry(struct engine *engine, struct op *op, struct op *abort_op);
void write_start(struct chunk_store *store, struct store_write *write);
void change_start(struct chunk_store *store, struct store_change *change);
/* No record: done with the group that everything before it goes with. */
void change_start_barrier(struct engine *engine, struct store_change *change);
void change_delete_chunk(struct engine *engine, struct engine_chunk *chunk,
                         struct store_change *change);
void change_fence(struct engine *engine, uint64_t volume, uint32_t lease_epoch,
                  struct store_change *change);
/*
 * No record: change->on_done when all of this chunk that was started before is durable and applied,
 * or aborted.
 */
void change_wait(struct engine *engine, struct engine_chunk *chunk, struct store_change *change,
                 void (*on_done)(struct store_change *change, int err));
void change_start_record(struct engine *engine, struct store_change *change, enum record_kind kind,
                         struct engine_chunk *chunk, uint32_t number);
/* A chunk comes into being: its CREATE record is ready. */
struct engine_chunk *engine_chunk_create(struct engine *engine, const struct chunk_key *key,
                                         uint32_t incarnation, struct op **ret_op);
/* A slow op ended: fences that waited for it may be done. */
void change_check_waiting(struct engine *engine);
/* A fence's or epoch's record is durable.  Returns false if it must wait for slow ops. */
bool change_is_done(const struct engine *engine, const struct op *op);
void read_start(struct chunk_store *store, struct store_read *read);
/* A part of a merge gets its blocks and goes on. */
void write_go(struct engine *engine, struct op *op, bool use_reserve);
struct op *write_op_create(struct engine *engine, struct engine_chunk *chunk,
                           struct store_write *write, enum record_kind kind);
/* No record of its own carries it: goes to the index some time. */
void change_stable_heard(struct engine *engine, struct engine_chunk *chunk, uint32_t attempt,
                         uint64_t stable_version);
/* The number below which no read is under way. */
uint64_t read_seq_min(const struct engine *engine);

/* --- read.c, for pull.c --- */
struct read_op *read_op_create(struct engine *engine, struct store_read *read,
                               struct engine_chunk *chunk);
/* The op is over; its request is returned. */
struct store_read *read_op_end(struct read_op *op);
/* Sectors [first, first + count) of the buffer come from blocks from `block` on. */
void read_submit(struct read_op *op, uint32_t first, uint32_t count, uint64_t block);
/* The first leaf of the range that is not in memory yet; NULL: all are there. */
struct leaf *leaf_range_missing(struct engine *engine, struct engine_chunk *chunk,
                                struct leaf_range range);
bool leaf_range_is_corrupt(const struct engine_chunk *chunk, struct leaf_range range);

/* --- recover.c, merge.c, pull.c --- */
int recover_start_attempt(struct engine *engine, struct store_change *change);
int recover_start_in_sync(struct engine *engine, struct store_change *change);
int recover_start_report(struct engine *engine, struct store_change *change);
/* A chunk begins an attempt: nothing else may change it. */
bool recover_is_beginning(const struct engine_chunk *chunk);
void merge_start(struct chunk_store *store, struct store_merge *request);
static inline struct merge *
merge_of_write(struct store_write *write)
{
    return list_entry(write, struct merge, write);
}
uint16_t merge_flags(const struct merge *merge); /* of its record */
void pull_start(struct chunk_store *store, struct store_pull *request);
size_t pull_bytes(void);
void voids_start(struct chunk_store *store, struct store_voids *request);
size_t voids_bytes(void);

/* --- ring.c --- */
/* Ring in use by what cannot be overwritten yet, and by what is bound to follow; in units. */
uint64_t ring_used_units(const struct engine *engine);
/*
 * The same as a share of the ring, of the record limit, or of the memory for dirty leaves,
 * whichever is fuller.
 */
uint32_t engine_fill_permille(const struct engine *engine);
/* May a group of requests be composed, of which the first may give up so many blocks? */
bool ring_admits(const struct engine *engine, uint64_t debt);
/* A block was composed that ends at end_lsn. */
void ring_add_stretch(struct engine *engine, uint64_t end_lsn, uint32_t record_count);
/* The index reaches to lsn: below it the ring may be overwritten. */
void ring_set_tail(struct engine *engine, uint64_t lsn);
/* Journal records between the tail and lsn. */
uint64_t ring_records_below(const struct engine *engine, uint64_t lsn);

/* --- group.c, group_done.c --- */
void group_close_all(struct engine *engine);
void group_io_done(struct group *group);
/* What is durable is applied and acknowledged, in order. */
void group_ack_all(struct engine *engine);
/* The blocks of the group's FREE records are free, or in quarantine. */
void group_apply_freed(struct engine *engine, struct group *group);
/* The store has stopped: give up the groups that have no I/O under way. */
void group_fail_all(struct engine *engine);
void group_free_all(struct engine *engine);
/* Extents of a failed data write: never used again. */
void group_queue_bad(struct engine *engine, struct extent extent);

/* --- apply.c --- */
struct engine_chunk *engine_chunk_add(struct engine *engine, const struct chunk_key *key,
                                      uint64_t local_id, uint32_t incarnation);
struct engine_volume *engine_volume_get(struct engine *engine, uint64_t volume);
void dirty_init(struct dirty *dirty, enum dirty_kind kind);
/* Changed by the journal block at lsn. */
void dirty_mark(struct engine *engine, struct dirty *dirty, uint64_t lsn);
/* Changed by something that has no record and may be lost: goes to the index some time. */
void dirty_mark_unjournaled(struct engine *engine, struct dirty *dirty);
/* Returns whether it is done: what changes many leaves goes on when it is called again. */
bool apply_op(struct engine *engine, struct op *op, uint64_t lsn);
int apply_record(struct engine *engine, const struct journal_record *record, uint64_t lsn,
                 struct dl_error *err);
void apply_bitmap(struct engine *engine, uint64_t block, uint64_t lsn);
struct bad_block *bad_add(struct engine *engine, uint64_t block);
/* A block that was repaired is on the list of bad ones. */
void apply_worn(struct engine *engine, struct extent extent, uint64_t lsn);
/* Returns how many sectors took it, 0 if the leaf is not in memory. */
uint32_t apply_leaf_change(struct engine *engine, struct engine_chunk *chunk, uint32_t number,
                           const struct leaf_change *change, bool replayed);

static inline struct engine_chunk *
engine_chunk_of(const struct chunk *chunk)
{
    dl_assert(chunk->store_private != NULL);
    return chunk->store_private;
}

/* --- leaf_cache.c --- */
struct leaf *leaf_find(const struct engine_chunk *chunk, uint32_t number);
/* Its leaf is loaded, or lies beyond all that the chunk ever had: then it is a hole. */
const struct leaf_sector *leaf_sector_at(const struct engine_chunk *chunk, uint32_t sector);
/* In memory in some state: made if it is not there. */
struct leaf *leaf_get(struct engine *engine, struct engine_chunk *chunk, uint32_t number);
/* The leaf is neither LEAF_LOADED nor LEAF_CORRUPT. */
void leaf_wait(struct engine *engine, struct leaf *leaf, struct leaf_waiter *waiter);
void leaf_request(struct engine *engine, struct leaf *leaf);
void leaf_touch(struct engine *engine, struct leaf *leaf);
/* The leaves of these sectors that can have a stored part. */
struct leaf_range leaf_range(const struct engine_chunk *chunk, uint32_t offset_sectors,
                             uint32_t length_sectors);
/*
 * One who waits for a leaf keeps all leaves of its range in memory: else, with a small cache, the
 * first could be gone again when the last is there, for ever.  Asks for those that are not.
 */
void leaf_range_pin(struct engine *engine, struct engine_chunk *chunk, struct leaf_range range);
/* Makes the range empty. */
void leaf_range_unpin(struct engine *engine, struct engine_chunk *chunk, struct leaf_range *range);
/* In use: it cannot be forgotten now. */
bool leaf_is_pinned(const struct leaf *leaf);
/* The leaf changed its state: put it in the cache's list, or take it out, or forget it. */
void leaf_settle(struct engine *engine, struct leaf *leaf);
void leaf_add_delta(struct engine *engine, struct leaf *leaf, const struct leaf_change *change,
                    bool replayed);
void leaf_drop_deltas(struct engine *engine, struct leaf *leaf);
struct leaf_result leaf_change(struct engine *engine, struct leaf *leaf,
                               const struct leaf_change *change);
void leaf_cache_trim(struct engine *engine);
uint64_t leaf_cache_bytes(const struct engine *engine);
void leaf_loads_start(struct env_task *task);
/* Was this block, given up by a replayed record of this LSN, freed by the journal already? */
bool leaf_was_freed(const struct engine *engine, uint64_t block, uint64_t lsn);
size_t leaf_load_bytes(void);
/* Forget all leaves of a deleted chunk; none may be pinned. */
void leaf_forget_all(struct engine *engine, struct engine_chunk *chunk);

/* --- delete.c --- */
/* The chunk's DELETE record is durable. */
void delete_begin(struct engine *engine, struct engine_chunk *chunk);
size_t delete_waiter_bytes(void);
void delete_step(struct engine *engine);
void delete_cleared(struct engine *engine, struct engine_chunk *chunk);
/* The chunk's leaves are gone and no record below the tail names it. */
bool delete_may_forget(const struct engine *engine, const struct engine_chunk *chunk);
void delete_forget(struct engine *engine, struct engine_chunk *chunk);

/* --- forget.c --- */
void leaf_set_add(struct leaf_set *set, uint32_t number);
void leaf_set_remove(struct leaf_set *set, uint32_t number);
void forget_start(struct engine *engine, struct store_change *change);
void forget_step(struct engine *engine);
/* A FORGET record was applied. */
void forget_applied(struct engine *engine, struct engine_chunk *chunk, uint32_t number);
/* A leaf was read; it changes to this kind of sectors; it is staged without sectors. */
void forget_on_loaded(struct engine *engine, const struct leaf *leaf);
void forget_on_changed(struct engine_chunk *chunk, uint32_t number, uint8_t kind);
void forget_on_staged_empty(struct engine *engine, const struct leaf *leaf);
/* Are there keys of empty leaves that can go?  Stage their deletes. */
bool forget_has_emptied(struct engine *engine);
void forget_stage_emptied(struct engine *engine);
void forget_chunk_fini(struct engine_chunk *chunk);
size_t forget_waiter_bytes(void);

/* --- reclaim.c --- */
void reclaim_step(struct engine *engine);
bool reclaim_is_idle(const struct engine *engine);
/* Somebody had these blocks, or they are free. */
void reclaim_forget(struct engine *engine, uint64_t block, uint32_t count);
void reclaim_fini(struct engine *engine);
size_t reclaim_waiter_bytes(void);

/* --- writeback.c --- */
void writeback_step(struct engine *engine);
/* A batch that is staged needs a block with a newer mark or more FREE runs. */
bool writeback_wants_block(const struct engine *engine);
/* Write back what is dirty now, however little it is. */
void writeback_all(struct engine *engine);
void writeback_leaf_loaded(struct engine *engine);
void writeback_fini(struct engine *engine);

/* --- stage.c --- */
/* Encode it, and take it off the dirty list. */
void stage_item(struct engine *engine, struct dirty *dirty);
/* Deletes of what the chunks in writeback.forgotten have in the index. */
void stage_forgotten(struct engine *engine);
/* The blocks of lost leaves are free again. */
void stage_lost_over(struct engine *engine);
void stage_leaf_delete(struct engine *engine, const struct engine_chunk *chunk, uint32_t number);
/* The position of the batch: last. */
void stage_position(struct engine *engine);

/* --- check.c --- */
/*
 * As engine_check(); *ret_unreadable: a leaf or the index could not be read, so that the map must
 * differ.
 */
char *engine_check_unreadable(struct engine *engine, bool *ret_unreadable);

/* --- index_values.c --- */
struct index_position {
    uint8_t disk_uuid[16];
    uint64_t incarnation, position, lsn_highest, local_id_next;
};
uint32_t index_key_id(uint8_t *key, char prefix, uint64_t id);
uint32_t index_key_page(uint8_t *key, uint32_t page);
uint32_t index_key_leaf(uint8_t *key, uint64_t local_id, uint32_t number);
/* The number(s) in a key; false: not such a key. */
bool index_key_parse_id(const uint8_t *key, uint32_t key_bytes, uint64_t *ret_id);
bool index_key_parse_page(const uint8_t *key, uint32_t key_bytes, uint32_t *ret_page);
bool index_key_parse_leaf(const uint8_t *key, uint32_t key_bytes, uint64_t *ret_id,
                          uint32_t *ret_number);
void index_position_encode(const struct index_position *position, struct index_position_disk *ret);
int index_position_decode(const void *value, uint32_t value_bytes, struct index_position *ret);
size_t index_chunk_bytes(const struct chunk *chunk);
void index_chunk_encode(const struct engine_chunk *chunk, void *ret_value);
/* Everything of the index but the leaves, into memory. */
int index_load_now(struct engine *engine, struct index_position *ret_position, bool *ret_found,
                   struct dl_error *err);
uint32_t index_fence_encode(uint32_t lease_epoch, struct index_fence_disk *ret);
uint32_t index_lost_encode(struct index_lost_disk *ret);
uint32_t index_bad_encode(uint64_t lsn, struct index_bad_disk *ret);
uint32_t index_bitmap_encode(const struct alloc *alloc, uint32_t page, uint64_t lsn,
                             struct index_bitmap_disk *ret);

/* --- replay.c --- */
/* The ring from `position` on: decide what counts, make the decision durable, apply it. */
int replay_now(struct engine *engine, const struct index_position *position, struct dl_error *err);

#endif
