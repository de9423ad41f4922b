/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recovery.h: ejection and recovery of slots, servers that go and come.  docs/recovery.md has the
 * rules.
 *
 *   change.c    changes of segments: one commit, then everybody hears of it
 *   tell.c      SLOT_TELL: what a slot is from now on
 *   eject.c     EJECT of an owner
 *   recovery.c  which slots want something, the scheduler, RECOVERY_REPORT
 *   sweep.c     changes of all slots of a server: out, new attempts, from nothing
 *   removal.c   chunks that left the map: deleted when nobody can read them any more
 *   stray.c     chunks that had left it, and are on a disk again
 *   event.c     the log of what happened
 *   admin.c     drain, remove, labels of servers; health.h: what state all is in
 *
 * Rules:
 * 1. A segment changes only by meta_change_add() .. meta_change_put(), under its volume's serial;
 *    each change raises its config epoch by one.  meta_change_apply() in on_committed shows it.
 * 2. All else here is made anew from the map at start: what wants recovery, what must be told.
 */
#ifndef DLBLK_META_RECOVERY_H
#define DLBLK_META_RECOVERY_H

#include "meta/internal.h"

/* --- changes: change.c --- */

/* A chunk that leaves the map with this change. */
struct change_removal {
    uint32_t server_id;
    uint32_t segment;
    uint32_t slot;
    uint32_t incarnation;
};

struct meta_change {
    struct meta_volume *volume;
    struct segment **segments; /* as they will be */
    uint32_t count;
    struct change_removal *removals;
    uint32_t removal_count;
};

uint32_t meta_segment_in_sync(const struct segment_table *table, const struct segment *segment);
/* The place of this server's slot; UINT32_MAX: it has none. */
uint32_t meta_segment_place_of(const struct segment_table *table, const struct segment *segment,
                               uint32_t server_id);
/*
 * The segment as it will be, one config epoch above; to be changed until meta_change_put().  Only
 * once per segment and commit.
 */
struct segment *meta_change_add(struct meta_op *op, struct meta_volume *volume,
                                const struct segment *segment);
/* NULL: not part of the change. */
struct segment *meta_change_find(const struct meta_op *op, uint32_t index);
/* Each recovering slot begins anew, under the segment's new config epoch. */
void meta_change_new_attempts(const struct segment_table *table, struct segment *segment);
/* The slot begins to recover. */
void meta_change_recover(struct segment *segment, struct segment_slot *slot);
/* The slot leaves the map: its chunk is to be deleted, the place is empty. */
void meta_change_vacate(struct meta_op *op, struct segment *segment, struct segment_slot *slot);
/* All of it into op->batch. */
void meta_change_put(struct meta_op *op);
/* Committed.  op->change is gone afterwards. */
void meta_change_apply(struct meta_op *op);
void meta_change_free(struct meta_change *change);

/* An owner has come back: it hears what it may have missed. */
void meta_notice_owner_back(struct meta_core *core, struct meta_volume *volume);
void meta_notice_free_all(struct meta_core *core);
/* All who use the volume know its map as of this change (volume->map_seq). */
bool meta_notice_is_known(const struct meta_volume *volume, uint64_t map_seq);

/* --- ejection by an operator's word: eject.c --- */

/*
 * Slots of the volume on these servers are ejected, some at a time.  True: nothing is left to do.
 * False: op runs again, or has failed.
 */
bool meta_eject_gone(struct meta_op *op, struct meta_volume *volume, const uint32_t *server_ids,
                     size_t server_count);

/* --- telling: tell.c --- */

/* A segment has changed, or is told again (old NULL): its slots that are written hear of it. */
void meta_tell_segment(struct meta_core *core, const struct meta_volume *volume,
                       const struct segment *old, const struct segment *segment);
/* Recovering slots that may pull from this server hear its address again. */
/* A recovering slot is told again what it is, with the volume's lease. */
void meta_tell_again(struct meta_core *core, const struct meta_volume *volume,
                     const struct segment *segment, uint32_t place);
void meta_tell_address(struct meta_core *core, uint32_t server_id);
void meta_tell_tick(struct meta_core *core);
void meta_tell_forget_volume(struct meta_core *core, uint64_t volume_id);
void meta_tell_free_all(struct meta_core *core);

/* --- what wants recovery: recovery.c --- */

/* Why an ejected slot is not recovering yet, or one to be moved not moving. */
enum recovery_wait {
    WAIT_TURN,      /* others come first, or it has not been looked at */
    WAIT_NOTHING,   /* it does not wait */
    WAIT_SERVER,    /* its server is down, or takes no writes */
    WAIT_ELSEWHERE, /* its server is out, drained or removed, and no other one can take it now */
    WAIT_ROOM,      /* its server is full, and no other one can take it now */
    WAIT_HEARD,     /* its server has given no sign of life since the ejection */
    WAIT_PUT_OFF,   /* its server failed while it was up: server->resume_ns */
    WAIT_LIMIT,     /* as many recover onto its server as may */
    WAIT_SOURCE,    /* as many recover from the servers with slots in-sync as may */
    WAIT_NO_SOURCE, /* no server with a slot in-sync is there */
};

struct repair_slot {
    uint32_t server_id;
    uint32_t attempt; /* 0: not recovering */
    uint32_t source_id;
    uint32_t cursor_sectors;
    uint64_t pulled_bytes;
    uint64_t moved_ns;       /* when it was begun, or its cursor rose last */
    enum recovery_wait wait; /* as the scheduler found it last */
    bool full;               /* ejected, since its server had no room for it */
};

/* A segment that is not as it should be. */
struct meta_repair {
    struct {
        uint64_t volume_id;
        uint64_t index;
    } key;
    uint64_t since_ns;
    uint64_t since_ms; /* for display */
    uint32_t in_sync;
    /* A change of the scheduler's is under way, for these servers. */
    bool busy;
    uint32_t target_id, source_id;
    struct list waiting_node;    /* in meta_recovery.waiting, by in_sync */
    struct list recovering_node; /* in meta_recovery.recovering */
    struct list busy_node;       /* in meta_recovery.busy */
    UT_hash_handle hh;
    struct repair_slot slots[]; /* by place */
};

struct meta_tell;
struct meta_removal;
struct meta_event;

struct told_segment {
    uint64_t volume_id;
    uint32_t index;
    uint32_t config_epoch;
};

struct meta_recovery {
    struct meta_core *core;
    struct meta_repair *repairs;
    uint64_t repair_count;
    struct list waiting[META_REPLICAS_MAX + 2]; /* by in-sync slots; the last: only moves */
    struct list recovering;
    struct list busy;
    struct env_task schedule_task;
    struct env_timer schedule_timer;
    uint64_t scheduled_ns;
    uint64_t covered_bytes; /* by cursors, since the start */
    uint64_t rate_covered_bytes, rate_ns;
    uint64_t rate_bytes_per_s;
    uint64_t rebalanced_ns;
    uint64_t recovered_slots, recovered_posted, posted_ns;

    struct meta_tell *tells;
    struct told_segment *told; /* all of whose slots know: to be recorded */
    uint32_t told_count;
    struct list notices;
    struct list sweeps;

    struct meta_removal *removals;
    uint64_t removal_count;

    struct list events; /* of meta_event.node, oldest first */
    uint32_t event_count;
    uint64_t event_next;      /* sequence of the next */
    uint64_t event_committed; /* those up to it are durable */
    struct list event_pollers;
    struct list event_posts;
    struct meta_serial event_serial;
    uint32_t event_posted; /* waiting in event_posts */
    bool event_posting;
};

void meta_recovery_create(struct meta_core *core);
void meta_recovery_free(struct meta_core *core);
void meta_recovery_tick(struct meta_core *core, uint64_t now_ns);
/* A segment of the store, at start. */
void meta_recovery_loaded_segment(struct meta_core *core, const struct meta_volume *volume,
                                  const struct segment *segment, bool told);
/* The segment has changed, or a server's state has that it names. */
void meta_repair_update(struct meta_core *core, const struct meta_volume *volume,
                        const struct segment *segment);
/* The slot on this server, which is ejected, was given up for lack of room. */
void meta_repair_mark_full(struct meta_core *core, const struct meta_volume *volume, uint32_t index,
                           uint32_t server_id);
struct meta_repair *meta_repair_find(const struct meta_core *core, uint64_t volume_id,
                                     uint32_t index);
/* Something may be possible now that wasn't: the scheduler looks again, in a later call. */
void meta_recovery_kick(struct meta_core *core);
/* All segments with a slot on this server, after a change of what is wanted of it. */
void meta_recovery_server_changed(struct meta_core *core, const struct meta_server *server);
/* The volume is being deleted. */
void meta_recovery_forget_volume(struct meta_core *core, const struct meta_volume *volume);
/* The source that a slot should pull from; 0: any. */
uint32_t meta_recovery_source(const struct meta_core *core, const struct meta_volume *volume,
                              const struct segment *segment, uint32_t place);
/* For status: slots that are not in-sync, and what is left to go over. */
struct recovery_sums {
    uint64_t segments;        /* with a slot that is not in-sync */
    uint64_t segments_moving; /* all in-sync, but one is to move */
    uint64_t slots_recovering;
    uint64_t left_bytes;
    uint64_t rate_bytes_per_s;
};
void meta_recovery_sums(struct meta_core *core, struct recovery_sums *ret_sums);

/* May it get new slots? */
bool meta_server_takes_chunks(const struct meta_server *server);

/* --- what an operator decides: admin.c --- */

void meta_admin_tick(struct meta_core *core, struct meta_server *server);

/* --- sweeps: sweep.c --- */

/*
 * A registration of a disk that was started anew, went back or is damaged: what its slots are must
 * change first.  True: done.  False: op waits and runs again, or has failed.
 */
bool meta_sweep_settle(struct meta_op *op, struct meta_server *server, bool from_nothing);
/* Somebody knows more of a map than before. */
void meta_sweep_known(struct meta_core *core);
void meta_sweep_settled(struct meta_server *server);
/* Its slots are ejected, the last in-sync ones of their segments apart. */
void meta_sweep_out(struct meta_core *core, struct meta_server *server);
void meta_sweep_cancel(struct meta_sweep *sweep);
void meta_sweep_tick(struct meta_core *core, struct meta_server *server);
void meta_sweep_free_all(struct meta_core *core);
/* Does some slot of it recover? */
bool meta_server_is_recovering(const struct meta_core *core, uint32_t server_id);

/* --- chunks that left the map: removal.c --- */

void meta_removal_put(struct store_batch *batch, uint64_t volume_id,
                      const struct change_removal *removal, uint64_t now_ms);
/* Committed: CHUNK_DELETE when everybody who uses the volume knows the map of now. */
void meta_removal_add(struct meta_core *core, uint64_t volume_id,
                      const struct change_removal *removal, uint64_t map_seq);
/* The same of a chunk that had left the map before; the volume may be gone. */
void meta_removal_add_stray(struct meta_core *core, uint64_t volume_id,
                            const struct change_removal *removal);
bool meta_removal_is_known(const struct meta_core *core, uint64_t volume_id,
                           const struct change_removal *removal);
int meta_removal_load(struct meta_core *core, struct store_item item, struct dl_error *err);
/* Look again whether chunks of this volume may go. */
void meta_removal_release(struct meta_core *core, uint64_t volume_id);
/* All of them, at the end of loading. */
void meta_removal_loaded(struct meta_core *core);
uint64_t meta_removal_count_of(const struct meta_core *core, uint32_t server_id);
/* The server is no more: its records go with the batch, what is in memory with _forget. */
void meta_removal_drop_put(struct meta_core *core, struct store_batch *batch, uint32_t server_id);
void meta_removal_drop(struct meta_core *core, uint32_t server_id);
/* Calls fn for each removal of the volume that is held back. */
void meta_removal_held(const struct meta_volume *volume,
                       void (*fn)(void *context, uint32_t segment), void *context);

/* --- chunks that are there again: stray.c --- */

/* The server has started anew: it is asked what it has, and what no map names any more goes. */
void meta_stray_begin(struct meta_core *core, struct meta_server *server);
/* It is not asked any more. */
void meta_stray_end(struct meta_server *server);
void meta_removal_free_all(struct meta_core *core);

/* --- the log: event.c --- */

/* Into op's batch: it is seen when that is committed. */
DL_ERROR_PRINTF(7, 8)
void meta_event_put(struct meta_op *op, Dl__EventKind kind, const struct meta_server *server,
                    const struct meta_volume *volume, uint32_t segment, uint32_t count,
                    const char *format, ...);
/* With a commit of its own, soon. */
DL_ERROR_PRINTF(4, 5)
void meta_event_post(struct meta_core *core, Dl__EventKind kind, const struct meta_server *server,
                     const char *format, ...);
void meta_event_committed(struct meta_core *core, uint64_t sequence);
int meta_event_load(struct meta_core *core, struct store_item item, struct dl_error *err);
void meta_event_free_all(struct meta_core *core);

#endif
