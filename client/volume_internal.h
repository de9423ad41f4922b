/* SPDX-License-Identifier: Apache-2.0 */
/*
 * volume_internal.h: a volume, as the files of the client's core share it.
 *
 *   volume.c     requests: queue, pieces, flush, completion
 *   io_op.c      what all operations do          attach.c     open, close, meta's news
 *   read_op.c    one piece read                  write_op.c   one piece written, or zeroed
 *   map.c        segments and slots              allocate.c   segments asked for
 *   stable.c     versions, S                     unsettled.c  ranges left undecided
 *   resolve.c    making a range alike            takeover.c   which, after an unclean owner
 *   extents.c    where data is                   eject.c      slots that failed
 */
#ifndef DLBLK_CLIENT_VOLUME_INTERNAL_H
#define DLBLK_CLIENT_VOLUME_INTERNAL_H

#include "client/core_internal.h"
#include "client/geometry.h"
#include "client/io_op.h"
#include "client/latency.h"
#include "client/map.h"
#include "client/range_lock.h"
#include "client/stable.h"
#include "client/volume.h"
#include "common/pool.h"

/* Operations of a volume at one time; what is beyond waits in its queue. */
#define VOLUME_READ_OPS_MAX  4096u
#define VOLUME_WRITE_OPS_MAX 4096u
/* Ranges that are being resolved or settled at one time. */
#define VOLUME_RESOLVES_MAX 32u
/* Without an answer for so long, a read is tried elsewhere. */
#define VOLUME_SLOT_TIMEOUT_NS (3000 * CLIENT_NS_PER_MS)
/* Between tries after an error that time alone seldom mends. */
#define VOLUME_RETRY_NS    (1000 * CLIENT_NS_PER_MS)
#define VOLUME_NO_DEADLINE UINT64_MAX
/* So long a read is tried again that every slot answers with an error of its medium. */
#define VOLUME_HARD_ERROR_NS (30000 * CLIENT_NS_PER_MS)

/* What a request needs while it is ours: in dlblk_request.dlblk_private. */
struct request_state {
    struct list order_node;     /* volume->order: writes and flushes, by submission */
    struct dlblk_request *next; /* volume->queue or volume->done */
    struct client_volume *volume;
    uint64_t progress_bytes; /* of the request: what pieces have been made for */
    uint64_t deadline_ns;
    uint32_t pieces_pending; /* 1 more until all have been made */
    int err;
    uint32_t iov_idx; /* where progress_bytes is; of zeroes: the member of the stripe set */
    uint32_t iov_skip_bytes;
};
static_assert(sizeof(struct request_state) <= sizeof(((struct dlblk_request *)0)->dlblk_private),
              "dlblk_request has room for it");

static inline struct request_state *
request_state_of(struct dlblk_request *request)
{
    return (struct request_state *)(void *)request->dlblk_private;
}

static inline bool
request_is_ordered(const struct dlblk_request *request)
{
    return request->op != DLBLK_READ;
}

/* Singly linked, first in first out. */
struct request_queue {
    struct dlblk_request *first, *last;
};

enum volume_state {
    VOLUME_OPEN,
    VOLUME_DRAINING,  /* close was called; suspends: until no request is left */
    VOLUME_SETTLING,  /* suspends: S to all slots, or its time is over */
    VOLUME_DETACHING, /* suspends: the answer to DETACH */
    VOLUME_CLOSED,
};

struct resolve;
struct takeover;
struct volume_close;

/* The metadata service says that the volume is not ours (any more). */
static inline bool
client_is_fence_error(int err)
{
    return err == -DL_E_LEASE_OLD || err == -DL_E_VOLUME_DELETED || err == -DL_E_VOLUME_UNKNOWN;
}

struct client_volume {
    struct sm sm;
    struct list node; /* core->volumes */
    struct client_core *core;
    struct env_task task;
    uint64_t id;
    char *name;
    struct geometry geometry;
    uint32_t lease_epoch;
    uint32_t snapshot_seq;
    uint32_t flags;
    uint32_t min_write;
    uint8_t attach_id[CLIENT_ID_BYTES];
    bool fenced;
    int fence_err;
    bool kick;    /* the task looks at every op again */
    bool blocked; /* an event has said that writes wait for slots; until none does any more */
    uint32_t blocked_ops;
    uint64_t blocked_since_ns;

    struct segment_map map;
    struct range_lock lock;
    struct pool read_ops,
        write_ops; /* of requests: when they are used up, requests wait in the queue */
    struct pool fill_ops,
        own_ops; /* of our own: reads for partial writes, and what resolves ranges; never used up */
    struct list ops;
    struct list retry; /* io_op.wait_node: stepped again by the tick, or when a server comes up */
    struct env_timer retry_timer; /* ... or by this, if that is too late */
    uint64_t retry_timer_ns;
    uint32_t op_count;

    struct request_queue queue;  /* requests of which pieces have still to be made */
    struct request_queue done;   /* on_done to be called from the task */
    struct env_timer done_timer; /* ... in the next turn, for those that ended meanwhile */
    bool running_done;
    bool pumping; /* pieces are being made: room that comes is seen at once */
    struct list order;
    struct list admission_node; /* core->admission */
    uint64_t requests_in_flight;
    uint64_t in_flight_bytes; /* its part of core->in_flight_bytes */

    /* segments asked for: allocate.c */
    struct client_meta_call allocate_call;
    Dl__Allocate allocate_request;
    uint32_t *allocating;
    uint32_t allocating_count;
    VEC(uint32_t) wanted;     /* to be named by the next ALLOCATE */
    uint32_t sequential_next; /* the segment that a sequential writer comes to next */
    uint32_t ahead_count;
    uint32_t ahead_trigger;
    uint64_t allocate_retry_ns;
    struct dl_error allocate_error; /* why it does not go on; code 0: it does */

    /* the map asked for again: allocate.c */
    struct client_meta_call map_call;
    Dl__MapGet map_request;
    bool map_wanted;
    uint32_t map_wanted_first, map_wanted_last;
    uint32_t map_cursor; /* where the next answer goes on; 0: the last one had all */
    uint64_t map_asked_ns;
    bool map_urgent;

    /* slots that failed: eject.c */
    struct client_meta_call eject_call;
    Dl__Eject eject_request;
    struct eject_batch *eject_batch; /* NULL: none is asked for */
    VEC(struct eject_wish) eject_wishes;
    uint64_t eject_retry_ns;   /* not before */
    uint64_t eject_recheck_ns; /* ops are looked at again then; 0: never */

    /* what requests wait for: waits.c */
    struct client_meta_call waits_call;
    Dl__OwnerWaits waits_request;
    char waits_text[256];
    uint64_t waits_ns;  /* looked at again not before */
    bool waits_said;    /* the metadata service has been told that some do */
    bool waits_unknown; /* it can't be told */

    /* stable versions: stable.c */
    struct list writers; /* segment_writer.node */
    struct list idle;    /* segment_writer.idle_node, the one written longest ago first */
    uint32_t stable_ops; /* STABLEs under way */
    struct segment_writer *spare_writers;
    uint32_t spare_writer_count;
    uint32_t unsettled_count; /* ranges, over all segments */

    struct list extents; /* extents_state.node: passes, one at a time */
    uint8_t extents_kinds[WINDOW_SECTORS];

    struct list resolves; /* struct resolve, by start */
    uint32_t resolve_count;
    struct client_meta_call attach_call; /* said again after a lost connection */
    Dl__Attach attach_request;
    Dl__MapGet attach_check;
    bool takeover_due;         /* the last owner's rest is to be settled, and that has not begun */
    struct takeover *takeover; /* NULL: none, or done */
    uint32_t unresolved_count;
    struct volume_close *close;

    uint32_t rotation;
    uint32_t reads_asked; /* questions to slots, without hedges */
    uint32_t hedge_credit;
    struct latency read_latency;
    struct env_timer hedge_timer;
    struct dlblk_volume_stats stats;
    uint64_t failure_event_ns; /* of the last event about a failed request */
    uint64_t failures_unsaid;
    void (*on_resize)(void *context, uint64_t size_bytes);
    void *on_resize_context;
};

/* --- volume.c --- */

/* The volume's fields that attach knows are set; the rest comes into being.  -DL_E_NO_MEMORY. */
int client_volume_init(struct client_volume *volume);
void client_volume_defer(struct client_volume *volume);
/*
 * A large request takes its time: as long as pieces of it are begun, each has all of a request's
 * time.
 */
static inline uint64_t
client_volume_piece_deadline(const struct client_volume *volume)
{
    return client_core_deadline_ns(volume->core);
}

/* Of a piece: it has ended. */
void client_volume_piece_done(struct client_volume *volume, struct dlblk_request *request, int err);
/* All requests fail from now on: somebody else has the volume, or it is gone. */
void client_volume_fence(struct client_volume *volume, int err, const char *why);
/* A request failed for good: an event that names the place, at most one each second. */
void client_volume_say_failure(struct client_volume *volume, const struct io_op *op,
                               const struct client_server *server);
/* Nothing is left to be done: no request, no operation of our own. */
static inline bool
client_volume_is_quiet(const struct client_volume *volume)
{
    return volume->requests_in_flight == 0 && volume->op_count == 0 && volume->stable_ops == 0 &&
           volume->resolve_count == 0;
}

/* --- common parts of operations: io_op.c --- */

void client_io_begin(struct io_op *op);
/* The same of a piece of a caller's request, admitted. */
void client_io_begin_piece(struct io_op *op, struct dlblk_request *request,
                           const struct io_piece *piece);
/* The range lock; false: op->type->step() is called when it is ours. */
bool client_io_acquire(struct io_op *op, bool exclusive);
/* True: a takeover has still to resolve op->segment, and wakes it then. */
bool client_io_waits_for_resolution(struct io_op *op);
/* The range is unsettled, and what settles it needs it: let go, and come again. */
void client_io_let_go(struct io_op *op);
void client_io_end(struct io_op *op);
/* Take it off whatever list it waits in. */
void client_io_unwait(struct io_op *op);
/* Into volume->retry, not before delay_ns have passed; in it already: if that is sooner. */
void client_io_retry(struct io_op *op, uint64_t delay_ns);
/* Step each op of a list of wait_nodes. */
void client_io_wake(struct list *waiters);
/* Not counted while it waits for a segment. */
void client_io_dismiss(struct io_op *op);
void client_io_readmit(struct io_op *op);
void client_io_abort(struct io_op *op, int err);
/* It waits for slots that it can't go on without: the volume says so, once. */
void client_io_block(struct io_op *op);
void client_io_unblock(struct io_op *op);
/* An answer that says that the volume is not ours any more; true: it did. */
bool client_io_check_fence(struct io_op *op, int err);

/* --- attach.c --- */

void client_attach_on_meta_up(struct client_volume *volume);
/* May free the volume. */
void client_close_step(struct client_volume *volume);
/* Segments and servers of a reply.  Ops are looked at again if a segment's slots have changed. */
int client_volume_learn(struct client_volume *volume, Dl__ServerAddress **servers,
                        size_t server_count, Dl__Segment **segments, size_t segment_count);
void client_volume_free(struct client_volume *volume);

/* --- extents.c --- */

void client_extents_run(struct client_volume *volume);

/* --- allocate.c --- */

/* The op waits until the segment is there: it is woken through segment->waiters. */
void client_allocate_wait(struct client_volume *volume, struct io_op *op);
/* A write goes to an allocated segment: ask for those ahead of a sequential writer. */
void client_allocate_ahead(struct client_volume *volume, uint32_t segment_idx);
int client_allocate_init(struct client_volume *volume);
/* No more questions. */
void client_allocate_cancel(struct client_volume *volume);
void client_allocate_fini(struct client_volume *volume);
void client_allocate_tick(struct client_volume *volume);
/* The map of this segment, and where its servers are, may have changed: ask. */
void client_map_refresh(struct client_volume *volume, uint32_t segment_idx);
/* It has changed, a server says. */
void client_map_refresh_now(struct client_volume *volume, uint32_t segment_idx);

/*
 * The offset in front of which no segment exists from offset_bytes on, at most end_bytes: the
 * beginning of a stripe set, if it is not offset_bytes itself.
 */
uint64_t client_volume_skip_unallocated(const struct client_volume *volume, uint64_t offset_bytes,
                                        uint64_t end_bytes);
/* Give up everything that is under way. */
void client_volume_abort_all(struct client_volume *volume, int err);
/* Look at every op: what is done to one may end it, and others. */
void client_volume_check_ops(struct client_volume *volume);

/* --- eject.c --- */

struct eject_wish {
    uint32_t segment;
    Dl__EjectReason reason;
    int err;
};

/*
 * A write of ours to this place of the segment has failed under the present map.  Asked for from
 * the volume's task, so that wishes of one turn go together; for how it ends see
 * segment->eject_state, and the map.
 */
void client_eject_want(struct client_volume *volume, struct segment *segment, uint32_t place,
                       Dl__EjectReason reason, int err);
/* Refused, and not yet time to ask again. */
static inline bool
client_eject_is_refused(const struct segment *segment)
{
    return segment->eject_state == SEGMENT_EJECT_REFUSED;
}
void client_eject_run(struct client_volume *volume);
void client_eject_tick(struct client_volume *volume);
void client_eject_cancel(struct client_volume *volume);
void client_eject_fini(struct client_volume *volume);
void client_eject_init(struct client_volume *volume);

/* --- waits.c --- */

void client_waits_tick(struct client_volume *volume);
void client_waits_init(struct client_volume *volume);
void client_waits_cancel(struct client_volume *volume);

/* --- takeover.c --- */

/* A segment's map as it was. */
struct segment_before {
    uint32_t config_epoch;
    uint32_t slot_count;
    struct segment_slot slots[WIRE_SLOTS_MAX];
};
void client_takeover_on_map(struct client_volume *volume, struct segment *segment,
                            const struct segment_before *before);

int client_takeover_begin(struct client_volume *volume);
/* From the volume's task: maps have changed, or a slot has answered. */
void client_takeover_run_changed(struct client_volume *volume);
void client_takeover_tick(struct client_volume *volume);
/* Cancels; resolutions under way end with their operations. */
void client_takeover_end(struct client_volume *volume);
/* Frees without a word: a simulated crash. */
void client_takeover_abandon(struct client_volume *volume);
/* For how long it has been under way; 0: there is none. */
uint64_t client_takeover_age_ns(const struct client_volume *volume, uint64_t now_ns);
/* It can't go on, and says why; for how long. */
bool client_takeover_is_stuck(const struct client_volume *volume, uint64_t now_ns, char *text,
                              size_t text_bytes, uint64_t *ret_stuck_for_ns);
bool client_takeover_waits_for(const struct client_volume *volume, char *text, size_t text_bytes);

#endif
