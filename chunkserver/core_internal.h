/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core_internal.h: what the files of the chunkserver's core share: core.c (life, pools,
 * back-pressure), session.c (links of clients), data_op.c (READ, WRITE, STABLE), pending_op.c
 * (PENDING), pull_op.c (PULL of other chunkservers), meta_session.c (the link to the metadata
 * service), meta_request.c (what the metadata service asks for), slot_tell.c (what it says of
 * slots), removed.c (chunks that left the map), recovery.c (slots that recover), repair.c (bad
 * sectors), scrub.h (looking for them), peer.c (links to the chunkservers they recover from).
 *
 * Ownership: a session lives until its link is down and no operation names it (`operations`).  An
 * operation is with the store until the store's on_done, then with the link until on_sent, then in
 * its pool again.  A link gives back all frames before on_down, so that after on_down only the
 * store can hold operations of the session; session->link is NULL then.
 *
 * Back-pressure: links run only while every pool has something left for whatever may come next
 * (core_has_room()).  The operation that takes the last of anything pauses all links, apart from
 * those in the middle of a payload, which has its place already and must arrive to be freed again.
 * So no request ever finds a pool empty.
 */
#ifndef DLBLK_CHUNKSERVER_CORE_INTERNAL_H
#define DLBLK_CHUNKSERVER_CORE_INTERNAL_H

#include "chunkserver/buffer_pool.h"
#include "chunkserver/chunk_table.h"
#include "chunkserver/core.h"
#include "common/list.h"
#include "common/pool.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"

#define CORE_NS_PER_MS 1000000ull

/*
 * Nothing heard of a client, or no reply taken by it, for so long: its link is closed.  (Clients
 * ping each second.)
 */
#define SESSION_SILENCE_NS (10000 * CORE_NS_PER_MS)
/* The same of who takes no replies, while nobody is served: before others take us for silent. */
#define SESSION_STARVED_NS (1000 * CORE_NS_PER_MS)
/* After a refusal the peer has so long to read why and to close. */
#define SESSION_LINGER_NS (500 * CORE_NS_PER_MS)
#define CORE_TICK_NS      (1000 * CORE_NS_PER_MS)
/* One who has not taken so many small replies is not read from. */
#define SESSION_SMALL_MAX 256u

/*
 * PULLs, as source and as target: so many at a time each; the rest waits.  While clients ask for
 * something it is one.
 */
#define PULLS_MAX          8u
#define PULLS_FOREGROUND   1u
#define PULL_FOREGROUND_NS (10 * CORE_NS_PER_MS)
#define PULL_REST_FACTOR   2u
#define PULL_OPS           64u
#define PULL_SOURCES_MAX   8u
/* Of a packed PullReply: at most a run for each sector. */
#define PULL_REPLY_BYTES (STORE_IO_SECTORS_MAX * 48u + 64u)

/* --- operations --- */

struct write_op {
    struct store_write write;
    struct session *session;
    uint64_t request_id;
    void *buffer; /* NULL: none */
    uint32_t buffer_bytes;
    struct frame_out reply;
    uint32_t crcs[STORE_IO_SECTORS_MAX];
};

struct read_op {
    struct store_read read;
    struct session *session;
    uint64_t request_id;
    uint32_t config_epoch; /* the request's */
    uint32_t lease_epoch;  /* likewise */
    uint64_t local_id;     /* of the chunk */
    void *buffer;
    uint32_t buffer_bytes;
    struct frame_out reply;
    uint8_t reply_tail[STORE_IO_SECTORS_MAX * (sizeof(le32) + 1)]; /* CRCs, then kinds */
};

/* STABLE, and PENDING. */
struct stable_op {
    struct store_change change;
    struct session *session;
    uint64_t request_id;
    uint32_t config_epoch; /* PENDING: the request's, whose, and from where on */
    struct chunk_key key;
    uint64_t first_version;
    struct frame_out reply;
};

struct pull_op {
    struct store_pull pull;
    struct session *session;
    uint64_t request_id;
    struct list node; /* of core->pull_queue, while it waits */
    void *buffer;     /* NULL: it waits */
    uint32_t config_epoch;
    uint64_t local_id;
    bool takes_bad;
    uint64_t bad_version; /* of a sector that is sent without its data; 0: it is not */
    struct frame_out reply;
    struct store_change teaching; /* of a mutant */
    uint64_t wanted[STORE_WINDOW_WORDS];
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint8_t body[PULL_REPLY_BYTES];
};

/* --- sessions --- */

struct session {
    struct list node;
    struct chunkserver_core *core;
    struct link *link; /* NULL: it is down */
    uint64_t link_id;  /* for the log */
    uint32_t operations;
    uint32_t replies_in_link;
    uint32_t small_in_link; /* of them: PING, HELLO, refusals, which no pool bounds */
    size_t
        /* held by its reads: one who doesn't take its replies must not stop the others */
        read_buffer_bytes;
    struct write_op *incoming; /* its payload is being received */
    bool greeted;
    bool is_chunkserver; /* that pulls from here; else a client */
    bool closing;        /* refused: whatever comes is ignored, the link is closed soon */
    bool closed;         /* link_close() was called */
    bool paused;
    uint64_t heard_ns;    /* when the last frame, or the head of one, came */
    uint64_t progress_ns; /* when a reply was last taken, or the first of several was queued */
    struct env_timer linger_timer;
};

/* --- the metadata service --- */

enum meta_state {
    META_WAITING, /* for the time of the next attempt */
    META_CONNECTING,
    META_GREETING, /* HELLO sent */
    META_REGISTERING,
    META_REGISTERED,
    META_CLOSING, /* link_close() called */
};

struct meta_session {
    enum meta_state state;
    struct link *link;
    size_t address_idx;
    uint64_t backoff_ns;
    uint64_t heard_ns;
    uint64_t heartbeat_ns;
    uint64_t next_request_id;
    uint64_t awaited_request_id; /* HELLO, REGISTER; 0: none */
    uint64_t
        /* number of this connection: replies of requests of an earlier one are dropped */
        connection;
    int last_error; /* why the last attempt failed: not logged again and again */
    uint32_t server_id;
    struct env_timer timer;
};

/* Which request of the metadata service is answered, and where. */
struct meta_request {
    struct list node; /* of core->meta_request_list */
    struct chunkserver_core *core;
    uint64_t connection;
    uint64_t request_id;
    uint16_t opcode;
};

/*
 * A change of one slot: with the store, or behind another one of the same slot (the head of the
 * line is in core->slot_changes).
 */
struct slot_change {
    struct store_change change; /* its on_done is this module's */
    struct chunkserver_core *core;
    struct list followers, node;
    UT_hash_handle by_key;
    void (*on_done)(struct slot_change *slot, int err); /* may free it */
};

/* From whom a slot may pull. */
struct pull_source {
    uint32_t slot;
    uint8_t uuid[CHUNKSERVER_UUID_BYTES];
    struct dl_address address;
};

/* --- the core --- */

struct chunkserver_core {
    struct env *env;
    struct chunk_store *store;
    struct chunk_table *chunks;
    struct chunkserver_options options;
    char *advertise, *host, *rack, *clique;
    struct list sessions; /* also those whose link is down */

    struct pool write_ops, read_ops, stable_ops;
    struct pool pull_ops;
    struct buffer_pool *write_buffers, *read_buffers;
    struct buffer_pool *pull_buffers; /* as source and as target: PULLS_MAX each; repair, scrub */
    struct list pull_queue;           /* of others, waiting */
    uint32_t pulls_as_source, pulls_as_target;
    uint64_t foreground_ns; /* when a client asked for something last */
    uint64_t pull_rest_ns;  /* no turn begins before it while clients are at it */
    struct env_timer pull_timer;
    bool starved;        /* links are paused, or will be at the end of their payload */
    uint64_t starved_ns; /* since when */

    struct env_task
        turn_task; /* the store's turn_end, once per turn in which something was started */
    struct env_timer tick_timer;

    struct meta_session meta;
    uint32_t meta_requests; /* FENCE, CHUNK_DELETE, SLOT_TELL with the store */
    struct list meta_request_list;
    struct slot_change *slot_changes; /* uthash head: the first of each slot's line */
    struct list recoveries;           /* struct recovery */
    uint64_t next_recovery_id;
    struct list peers;       /* struct peer */
    struct repair *repair;   /* NULL: nobody has asked for one yet */
    struct removed *removed; /* uthash head */
    struct list removed_list;
    struct scrub *scrub;
    struct findings *findings;
    bool admitted; /* the metadata service has taken the disk once in this life */

    bool stopping, links_closed, store_stopping, stopped;
    uint64_t stop_deadline_ns;
    struct env_task stopped_task;
    int stop_err;
    void (*on_stopped)(void *context, int err);
    void *stop_context;

    struct chunkserver_core_stats stats;
};

/* core.c */
bool core_has_room(struct chunkserver_core *core);
/* After something was taken from a pool; after something was given back. */
void core_check_taken(struct chunkserver_core *core, struct session *session);
void core_check_returned(struct chunkserver_core *core, struct session *session);
void core_store_started(
    struct chunkserver_core *core); /* something was started: turn_end will be called */
void core_stop_step(struct chunkserver_core *core); /* something ended that a stop may wait for */

/* With a payload: as session->incoming. */
struct write_op *write_op_acquire(struct chunkserver_core *core, struct session *session,
                                  uint32_t payload_bytes);
void
write_op_release_buffer(struct write_op *op); /* it may be done with earlier than the operation */
void write_op_release(struct write_op *op);
struct read_op *read_op_acquire(struct chunkserver_core *core, struct session *session,
                                uint32_t length_bytes);
void read_op_release(struct read_op *op);
struct stable_op *stable_op_acquire(struct chunkserver_core *core, struct session *session);
void stable_op_release(struct stable_op *op);
struct pull_op *pull_op_acquire(struct chunkserver_core *core, struct session *session);
void pull_op_release(struct pull_op *op);
/* How many PULLs may be under way, as source and as target each. */
uint32_t core_pulls_max(struct chunkserver_core *core);

/* session.c */
void session_reply(struct session *session,
                   struct frame_out *reply); /* on_sent is set; the link is up */
void session_reply_sent(struct session *session);
void session_operation_ended(struct session *session); /* may free it */
/* A reply that frees itself.  NULL: no memory, the peer will ask again. */
void session_send(struct session *session, struct frame_out *frame);
/* An error without an operation: on a request that could not be taken. */
void session_refuse(struct session *session, const struct frame *frame, int err);
/* The same, and the link is closed: the peer does not keep to the protocol. */
void session_malformed(struct session *session, const struct frame *frame, int err);
void session_update_pause(struct session *session); /* pause or resume its link, as things are */
void session_close(struct session *session);        /* now; on_down follows */
void sessions_tick(struct chunkserver_core *core, uint64_t now_ns);

/* data_op.c */
void write_op_receive(struct session *session, const struct frame *frame);
void read_op_receive(struct session *session, const struct frame *frame);
void stable_op_receive(struct session *session, const struct frame *frame);

/* pending_op.c */
void pending_op_receive(struct session *session, const struct frame *frame);

/* pull_op.c */
void pull_op_receive(struct session *session, const struct frame *frame);

/* meta_session.c */
void meta_link_start(struct chunkserver_core *core);
void meta_link_stop(struct chunkserver_core *core);
bool meta_link_is_down(const struct chunkserver_core *core);

/*
 * meta_request.c: a request of the metadata service; replies go out if the same connection is still
 * up.
 */
void meta_request_receive(struct chunkserver_core *core, const struct frame *frame);
/* A request, first in what it is part of, that is answered later. */
void meta_request_begin(struct meta_request *request, struct chunkserver_core *core,
                        const struct frame *frame);
void meta_request_end(struct meta_request *request);
void meta_request_reply(const struct meta_request *request, int err, const char *text,
                        const ProtobufCMessage *message);
/* One that is answered without being begun. */
void meta_refuse(struct chunkserver_core *core, const struct frame *frame, int err,
                 const char *text);
/*
 * Long answers of FENCE and PENDING go in parts, by an upper bound of what they take when packed.
 */
#define PENDING_PART_BYTES  (256u << 10)
#define PENDING_WRITE_BYTES 32u
/* Entries of a chunk's pending list. */
struct pending_slice {
    uint32_t first, count;
};
/*
 * Those that FENCE and PENDING with this lease epoch tell: of lower leases, from first_version on.
 * Of a recovering chunk none.
 */
struct pending_slice pending_slice_of(const struct chunk *chunk, uint64_t first_version,
                                      uint32_t lease_epoch);
/* What is said of a chunk.  writes and pointers have room for the slice; returns how many. */
size_t pending_chunk_fill(Dl__PendingChunk *reply, const struct chunk *chunk,
                          struct pending_slice slice, Dl__PendingWrite *writes,
                          Dl__PendingWrite **pointers);
/*
 * Sends, or drops, if `connection` is no longer the one that is up.  frame may be NULL (no memory):
 * dropped too.
 */
void meta_link_send(struct chunkserver_core *core, uint64_t connection, struct frame_out *frame);
/*
 * A request of ours: its id, which is never used again in this process; 0: not registered, or no
 * memory.
 */
uint64_t meta_link_request(struct chunkserver_core *core, uint16_t opcode,
                           const ProtobufCMessage *message);

/* slot_tell.c */
void tell_receive(struct chunkserver_core *core, const struct frame *frame,
                  const Dl__SlotTell *message);
/* slot->change is filled but for on_done; slot->on_done is set. */
void slot_change_start(struct chunkserver_core *core, struct slot_change *slot);
/* An attempt is about to begin: nothing else is done with this slot. */
bool slot_is_beginning(const struct chunkserver_core *core, const struct chunk_key *key);

/* recovery.c */
/* The chunk has this attempt, durably: pull.  False: no memory, it must be told again. */
bool recovery_begin(struct chunkserver_core *core, const struct chunk_key *key, uint32_t attempt,
                    uint32_t segment_sectors, const struct pull_source *sources,
                    uint32_t source_count);
/* The chunk is another one, or in-sync, or gone. */
void recovery_check(struct chunkserver_core *core, const struct chunk_key *key);
void recoveries_on_registered(struct chunkserver_core *core);
void recoveries_on_report_reply(struct chunkserver_core *core, uint64_t request_id, int status);
void recoveries_on_peer_up(struct chunkserver_core *core);
/* Nothing is pulled any more; each ends when the store has nothing of it. */
void recoveries_stop(struct chunkserver_core *core);
void recoveries_on_pull_timer(struct env_timer *timer);
void recoveries_free(struct chunkserver_core *core);

/* removed.c */
/* CHUNK_DELETE has come for it: it does not come into being by a WRITE any more. */
void removed_note(struct chunkserver_core *core, const struct chunk_key *key);
bool removed_is_noted(const struct chunkserver_core *core, const struct chunk_key *key);
void removed_free(struct chunkserver_core *core);

/* repair.c */
enum repair_outcome {
    REPAIR_FINE,      /* nothing was wrong with it */
    REPAIR_DONE,      /* it was bad */
    REPAIR_REWRITTEN, /* it was bad, and has been written anew */
    REPAIR_FAILED,    /* it is bad */
    REPAIR_GONE,      /* the chunk is, or it recovers */
};
void repair_receive(struct session *session, const struct frame *frame);
/* One sector; scrub_on_repaired() says how it went.  -DL_E_BUSY, -DL_E_NO_MEMORY: later. */
int repair_by_scrub(struct chunkserver_core *core, const struct chunk_key *key, uint32_t sector);
/* A sector of a chunk is bad: so may others of its leaf be. */
void repair_found(struct chunkserver_core *core, const struct chunk_key *key, uint32_t sector);
void repair_on_map(struct chunkserver_core *core, const struct frame *frame);
/* What is not with the store is forgotten; idle when that is back. */
void repair_stop(struct chunkserver_core *core);
bool repair_is_idle(const struct chunkserver_core *core);
void repair_free(struct chunkserver_core *core);

/* peer.c */
void peers_tick(struct chunkserver_core *core, uint64_t now_ns);
void peers_stop(struct chunkserver_core *core);
void peers_free(struct chunkserver_core *core);

#endif
