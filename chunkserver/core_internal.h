/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core_internal.h: what the files of the chunkserver's core share: core.c (life, pools,
 * back-pressure), session.c (links of clients), data_op.c (READ, WRITE, STABLE), meta_session.c
 * (the link to the metadata service), meta_request.c (what the metadata service asks for).
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
/* After a refusal the peer has so long to read why and to close. */
#define SESSION_LINGER_NS (500 * CORE_NS_PER_MS)
#define CORE_TICK_NS      (1000 * CORE_NS_PER_MS)
/* One who has not taken so many small replies is not read from. */
#define SESSION_SMALL_MAX 256u

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
    void *buffer;
    uint32_t buffer_bytes;
    struct frame_out reply;
    uint8_t reply_tail[STORE_IO_SECTORS_MAX * (sizeof(le32) + 1)]; /* CRCs, then kinds */
};

struct stable_op {
    struct store_change change;
    struct session *session;
    uint64_t request_id;
    struct frame_out reply;
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
    bool closing; /* refused: whatever comes is ignored, the link is closed soon */
    bool closed;  /* link_close() was called */
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

/* --- the core --- */

struct chunkserver_core {
    struct env *env;
    struct chunk_store *store;
    struct chunk_table *chunks;
    struct chunkserver_options options;
    char *advertise, *host, *rack, *clique;
    struct list sessions; /* also those whose link is down */

    struct pool write_ops, read_ops, stable_ops;
    struct buffer_pool *write_buffers, *read_buffers;
    bool starved; /* links are paused, or will be at the end of their payload */

    struct env_task
        turn_task; /* the store's turn_end, once per turn in which something was started */
    struct env_timer tick_timer;

    struct meta_session meta;
    uint32_t meta_requests; /* FENCE, CHUNK_DELETE, SLOT_TELL with the store */
    bool admitted;          /* the metadata service has taken the disk once in this life */

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

/* session.c */
void session_reply(struct session *session,
                   struct frame_out *reply); /* on_sent is set; the link is up */
void session_reply_sent(struct session *session);
void session_operation_ended(struct session *session); /* may free it */
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

/* meta_session.c */
void meta_link_start(struct chunkserver_core *core);
void meta_link_stop(struct chunkserver_core *core);
bool meta_link_is_down(const struct chunkserver_core *core);

/*
 * meta_request.c: a request of the metadata service; replies go out if the same connection is still
 * up.
 */
void meta_request_receive(struct chunkserver_core *core, const struct frame *frame);
/*
 * Sends, or drops, if `connection` is no longer the one that is up.  frame may be NULL (no memory):
 * dropped too.
 */
void meta_link_send(struct chunkserver_core *core, uint64_t connection, struct frame_out *frame);

#endif
