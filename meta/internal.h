/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal.h: what the files of the metadata core share.
 *
 *   core.c     life, tick, stop        session.c    links, HELLO, PING, dispatch, requests to peers
 *   op.c       requests at work        load.c       the state from the store at start
 *   record.c   records of the store    state.c      tables of volumes, names, servers
 *   server.c   register, heartbeat     command.c    requests to servers, again until answered
 *   volume.c   create .. resize        delete.c     deletion of chunks
 *   segment.c  map, allocate           placement.c  which servers
 *   lease.c    attach, probe, detach   takeover.c   fences and their answers
 *   status.c   lists and status        scrub.c      scrubs, bad sectors
 *   recovery.h and what it names: ejection, recovery, servers that go and come
 *
 * Rules:
 * 1. A change is committed first and shown afterwards: a handler copies the object's desc, changes
 *    the copy, commits it, and in on_committed makes it the object's.  So no read ever sees what is
 *    not durable.
 * 2. Changes of one object take turns: a handler that commits holds the object's serial from before
 *    it looks until its reply. Who finds it taken waits and then begins anew (its handler runs
 *    again from the start), so nothing that was looked up before is used after.
 * 3. A failed commit ends the service (meta_core_fail): its effect is unknown, a restart loads what
 *    is true.
 *
 * Everything here runs on the one thread of the core.
 */
#ifndef DLBLK_META_INTERNAL_H
#define DLBLK_META_INTERNAL_H

#include <uthash.h>

#include "common/address.h"
#include "common/env.h"
#include "common/list.h"
#include "dlblk/error.h"
#include "meta/core.h"
#include "meta/limits.h"
#include "meta/segment_table.h"
#include "meta/store.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"

#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

struct meta_op;
struct meta_server;
struct meta_session;
struct meta_volume;

/* --- requests at work: op.c --- */

struct meta_serial {
    struct meta_op *holder; /* NULL: free */
    struct list waiting;    /* of meta_op.node */
};

enum meta_handler_flag {
    FROM_CLIENT = 1 << 0,
    FROM_SERVER = 1 << 1,
    ASKED_BACK = 1 << 2, /* it runs when its connection has shown that it lives: session.c */
};

struct meta_handler {
    uint16_t opcode;
    const ProtobufCMessageDescriptor *type; /* of the request */
    unsigned flags;                         /* enum meta_handler_flag */
    /* Replies, fails, commits or waits.  Runs again from its start after a wait. */
    void (*run)(struct meta_op *op);
};

struct volume_desc;
struct meta_change;

struct meta_op {
    struct meta_core *core;
    struct meta_session *session; /* NULL: it is gone, or there was none (the core's own work) */
    struct list core_node;
    struct list session_node;
    /* In the queue that it waits in: a serial's, a probe's, a takeover's, or the ready list. */
    struct list node;
    const struct meta_handler *handler;
    uint64_t request_id;
    ProtobufCMessage *message;
    struct meta_serial *serial; /* held */
    bool committing;
    bool wants_again; /* run it again from the ready list */
    struct store_batch batch;
    struct store_commit commit;
    void (*on_committed)(struct meta_op *op);
    struct env_timer timer;

    /* For the handlers: */
    struct meta_volume *volume;
    struct meta_server *server;
    struct volume_desc *desc; /* the volume's next state; freed with the op */
    void *scratch;            /* freed with the op */
    uint32_t scratch_count;
    uint32_t probed_epoch; /* lease epoch whose owner was probed for this op; 0: none */
    bool probed_alive;
    bool verdict;               /* handler's own */
    uint64_t event_sequence;    /* of the last event in the batch; 0: none */
    uint64_t cursor;            /* EVENTS */
    struct meta_change *change; /* segments that change: recovery.h; freed with the op */
};

/* The core's own work: no session, no reply; run is called soon. */
struct meta_op *meta_op_create_internal(struct meta_core *core, const struct meta_handler *handler);
/* A request that arrived. */
void meta_op_start(struct meta_session *session, const struct meta_handler *handler,
                   uint64_t request_id, ProtobufCMessage *message);
/*
 * False: it is taken; op waits and runs again, the handler returns.  True: held until the op ends.
 */
bool meta_op_take(struct meta_op *op, struct meta_serial *serial);
void meta_op_release(struct meta_op *op);
/* Park it in a queue; meta_op_run_soon() wakes it. */
void meta_op_wait(struct meta_op *op, struct list *queue);
void meta_op_run_soon(struct meta_op *op);
/* op->batch, guarded by the leadership; then on_committed. */
void meta_op_commit(struct meta_op *op, void (*on_committed)(struct meta_op *op));
/* These end the op: it is freed. */
void meta_op_reply(struct meta_op *op, const ProtobufCMessage *reply);
void meta_op_fail(struct meta_op *op, const struct dl_error *err);
void meta_op_end(struct meta_op *op);
/* The session is gone: what has not begun to commit ends. */
void meta_op_session_down(struct meta_op *op);
void meta_op_run_ready(struct meta_core *core);

void meta_serial_init(struct meta_serial *serial);
/* The object is about to vanish: those who wait look again. */
void meta_serial_wake_all(struct meta_serial *serial);

/* --- sessions and requests to peers: session.c --- */

struct meta_peer_request;
/* frame NULL: err says why there is no answer; else frame->status says how it went. */
typedef void (*meta_peer_reply_fn)(struct meta_peer_request *request, const struct frame *frame,
                                   int err);

/* A request of ours to a peer, embedded in what it serves. */
struct meta_peer_request {
    uint64_t id;
    struct meta_session *session; /* NULL: not in flight */
    meta_peer_reply_fn on_reply;
    UT_hash_handle hh;
};

struct meta_session {
    struct meta_core *core;
    struct link *link;
    struct list node;
    uint64_t accepted_ns;
    uint64_t heard_ns;
    bool hello;
    bool closing; /* an error reply was sent, the link is closed at the next tick */
    bool closed;  /* link_close() was called */
    bool paused;
    Dl__Role role;
    uint8_t instance[META_ID_BYTES];
    uint8_t server_uuid[META_ID_BYTES];
    char software[META_TEXT_BYTES_MAX + 1];
    struct dl_address_text peer;
    struct meta_server *server; /* registered on this connection */
    struct list owned;          /* of meta_volume.owner_node */
    struct list readers;        /* of meta_reader.session_node */
    struct list ops;            /* of meta_op.session_node */
    uint32_t op_count;
    /* Frames that the link has not handed over. */
    uint32_t unsent_count;
    size_t unsent_bytes;
    uint64_t progress_ns; /* when one was handed over, or the first of several queued */
    uint64_t next_request_id;
    struct meta_peer_request *requests; /* by id */
    struct meta_peer_request ping;
    struct meta_peer_request proof; /* PING: what is in proof_ops was asked back */
    uint64_t proof_ns;              /* when it was sent */
    struct list proof_ops;          /* of meta_op.node */
};

void meta_session_send(struct meta_session *session, struct frame_out *frame);
void meta_session_fail(struct meta_session *session, uint16_t opcode, uint64_t request_id,
                       const struct dl_error *err);
/* Send; on_reply runs once, unless it is cancelled. */
void meta_peer_request_send(struct meta_session *session, struct meta_peer_request *request,
                            uint16_t opcode, const ProtobufCMessage *message,
                            meta_peer_reply_fn on_reply);
void meta_peer_request_cancel(struct meta_peer_request *request);
/* One way: whatever comes back is dropped. */
void meta_session_notify(struct meta_session *session, uint16_t opcode,
                         const ProtobufCMessage *message);
void meta_session_tick(struct meta_session *session, uint64_t now_ns);
void meta_session_update_flow(struct meta_session *session);
/* op runs when the connection has answered a PING; it ends with the connection. */
void meta_session_ask_back(struct meta_session *session, struct meta_op *op);
/* The connection is useless: closed now, cleaned up in on_down. */
void meta_session_close(struct meta_session *session);
void meta_session_free(struct meta_session *session);

/* --- volumes: state.c, volume.c --- */

/* What is in the store, as plain values that can be copied. */
struct volume_desc {
    uint64_t id;
    char name[META_NAME_BYTES_MAX + 1];
    uint64_t size_bytes;
    uint32_t segment_bytes;
    uint32_t logical_block_bytes;
    uint32_t stripe_width;
    uint32_t stripe_unit_bytes;
    uint32_t redundancy;
    uint32_t replicas;
    uint32_t data_shards;
    uint32_t parity_shards;
    uint32_t min_write;
    uint32_t failure_domain;
    char clique[META_NAME_BYTES_MAX + 1];
    uint64_t created_ms;
    uint32_t snapshot_seq;
    bool has_change_id;
    uint8_t change_id[META_ID_BYTES];
    bool deleting;
    uint32_t lease_epoch;
    bool clean;
    bool owned;
    uint8_t attach_id[META_ID_BYTES];
    char owner[META_TEXT_BYTES_MAX + 1];
    uint64_t attached_ms;
    bool ready;
    bool takeover;
};

/* How many slots of a volume a server holds. */
struct volume_server {
    uint32_t server_id;
    uint32_t slot_count;
};

struct meta_name {
    struct meta_volume *volume;
    UT_hash_handle hh;
    char text[];
};

struct meta_reader {
    struct list volume_node;
    struct list session_node;
    struct meta_session *session;
    struct meta_volume *volume;
    char owner[META_TEXT_BYTES_MAX + 1];
    uint64_t map_seq; /* changes of the map that it knows */
};

struct meta_probe;
struct meta_takeover;
struct meta_deletion;
struct meta_scrub;

/* What the owner says that its users' requests wait for: waits.c. */
struct owner_waits {
    char text[META_WAITS_BYTES]; /* empty: nothing */
    uint32_t lease_epoch;
    uint64_t heard_ns, since_ns;
    uint64_t event_ns; /* of the last entry of the log; 0: none */
    bool told;         /* the log has that they wait, and not yet that they go on */
};

struct meta_volume {
    struct volume_desc desc; /* committed */
    bool creating;           /* the first commit is in flight: it has a name, but isn't there */
    struct meta_serial serial;
    struct segment_table segments;
    struct volume_server *servers; /* by server_id */
    uint32_t server_count;
    struct meta_session *owner_session; /* NULL: not connected */
    struct list owner_node;
    uint64_t owner_lost_ns; /* since when */
    struct list readers;    /* of meta_reader.volume_node */
    uint32_t reader_count;
    struct meta_probe *probe;
    struct meta_takeover *takeover;
    struct meta_deletion *deletion;
    uint64_t map_seq;          /* raised by each change of a segment: change.c */
    uint64_t owner_map_seq;    /* changes that the owner knows */
    bool owner_answered;       /* its attach was, with a map */
    struct list held_removals; /* removal.c */
    uint64_t repair_count;     /* segments that are not as they should be: recovery.c */
    struct meta_scrub *scrub;  /* the last that was asked for; NULL: none: scrub.c */
    struct owner_waits waits;
    UT_hash_handle hh; /* by desc.id */
};

uint32_t meta_volume_slot_count(const struct volume_desc *desc);
/* Segments that the volume's addresses span: whole stripe sets. */
uint64_t meta_volume_segment_count(const struct volume_desc *desc);
uint64_t meta_volume_chunk_bytes(const struct volume_desc *desc);
struct meta_volume *meta_volume_create(struct meta_core *core, const struct volume_desc *desc);
void meta_volume_destroy(struct meta_core *core, struct meta_volume *volume);
struct meta_volume *meta_volume_by_id(struct meta_core *core, uint64_t id);
struct meta_volume *meta_volume_by_name(struct meta_core *core, const char *name);
void meta_name_add(struct meta_core *core, const char *name, struct meta_volume *volume);
void meta_name_remove(struct meta_core *core, const char *name);
/* Count a segment's slots in (+1) or out (-1) at the volume and at the servers. */
void meta_volume_count_slots(struct meta_core *core, struct meta_volume *volume,
                             const struct segment *segment, int delta);
/*
 * The volume that a request names, with its serial taken: NULL if the op waits or has failed; the
 * handler returns then. Those by lease want the current one of a living lease, and note the session
 * as the owner's.
 */
struct meta_volume *meta_op_volume_by_name(struct meta_op *op, const char *name);
struct meta_volume *meta_op_volume_by_lease(struct meta_op *op, uint64_t volume_id,
                                            uint32_t lease_epoch);
/* For a reply: points into the volume. */
void meta_volume_fill(Dl__Volume *message, const struct meta_volume *volume);
void meta_volume_reply(struct meta_op *op, const struct meta_volume *volume);
/* Puts op->desc into the batch. */
void meta_op_put_volume(struct meta_op *op);
/* A copy of the volume's desc to change; freed with the op. */
struct volume_desc *meta_op_next_desc(struct meta_op *op, const struct meta_volume *volume);
/* VOLUME_CHANGED to one who has it; session may be NULL. */
void meta_volume_notify(struct meta_volume *volume, struct meta_session *session, bool deleted);

/* --- servers: server.c --- */

enum meta_admin_state { META_ADMIN_IN_USE, META_ADMIN_DRAINING, META_ADMIN_REMOVING };

/* How far the scrub of a server's disk is: the last chunk that was done; volume 0: none. */
struct scrub_place {
    uint64_t volume;
    uint32_t segment;
    uint32_t slot;
    uint64_t completed_ms; /* when it had been over everything last; 0: never */
};

struct server_desc {
    uint32_t id;
    uint8_t uuid[META_ID_BYTES];
    uint8_t instance[META_ID_BYTES];
    char address[sizeof(struct dl_address_text)];
    char host[META_NAME_BYTES_MAX + 1];
    char rack[META_NAME_BYTES_MAX + 1];
    char clique[META_NAME_BYTES_MAX + 1];
    uint64_t start_count;
    uint64_t journal_position;
    uint64_t capacity_bytes;
    uint64_t used_bytes;
    char software[META_TEXT_BYTES_MAX + 1];
    uint64_t created_ms;
    enum meta_admin_state admin_state;
    uint64_t start_count_highest; /* of any copy of this disk that was admitted */
    uint64_t reset_start_count;   /* damaged, and its slots reset, at this start */
    bool labels_set;              /* the labels are an operator's */
    uint32_t weight_percent;      /* 0: 100 */
    struct scrub_place scrub;     /* as it was some time ago */
};

struct meta_sweep;
struct meta_reaper;
struct meta_stray;

struct meta_server {
    struct server_desc desc; /* committed */
    bool creating;           /* the first registration is being committed */
    struct meta_serial serial;
    uint32_t host_label; /* the texts of desc as numbers, for comparisons; 0: empty */
    uint32_t rack_label;
    uint32_t clique_label;
    struct meta_session *session; /* NULL: not connected */
    bool up;
    bool lost;         /* not connected, and told so in the log */
    uint64_t lost_ns;  /* since when it isn't connected */
    uint64_t heard_ns; /* last heartbeat */
    uint64_t heard_wall_ms;
    uint64_t journal_position; /* as of the last heartbeat */
    uint64_t persisted_ns;     /* when the journal position was last committed */
    bool persisting;
    struct scrub_place scrub; /* as of the last heartbeat */
    Dl__ScrubCounts scrub_counts;
    Dl__BadVolume *bad_volumes;
    uint32_t bad_volume_count;
    uint64_t scrub_persisted_ns;
    uint64_t capacity_bytes;
    uint64_t used_bytes;
    uint64_t available_bytes;
    uint64_t chunk_count;
    bool damaged;
    char stopped[META_TEXT_BYTES_MAX + 1];
    uint64_t slot_count;     /* in the maps */
    uint64_t assigned_bytes; /* what those slots may grow to */
    struct meta_peer_request duplicate_ping;
    struct list duplicate_ops; /* registrations that wait for the old connection to show life */
    struct env_timer duplicate_timer;
    bool out;                    /* down, or taking no writes, for too long: its slots move */
    uint64_t unfit_ns;           /* since when it is down or takes no writes; 0: it is fit */
    uint64_t resume_ns;          /* ejected while it was up: not before this it recovers */
    uint64_t backoff_ns;         /* how long that was put off */
    bool must_be_heard;          /* nothing has come of it since a slot of it was ejected */
    struct list settle_ops;      /* registrations that wait for a sweep */
    struct meta_sweep *settle;   /* the sweep, until the registration is committed */
    struct meta_sweep *sweep;    /* out: its slots are being ejected */
    struct meta_reaper *reaper;  /* removal.c */
    struct meta_stray *stray;    /* it is asked what it has */
    uint64_t listed_start_count; /* since this start that is known, or was not asked for */
    bool forgetting;             /* its record is going */
    bool forgotten;              /* removed; kept in memory for those who still name it */
    struct list commands;        /* of meta_command.node */
    uint32_t commands_in_flight;
    UT_hash_handle hh; /* by desc.uuid */
    struct meta_core *core;
};

struct meta_server *meta_server_create(struct meta_core *core, const struct server_desc *desc);
void meta_server_free(struct meta_server *server);
/* Its record is gone. */
void meta_server_forget(struct meta_core *core, struct meta_server *server);
struct meta_server *meta_server_by_id(struct meta_core *core, uint32_t id);
struct meta_server *meta_server_by_uuid(struct meta_core *core, const uint8_t uuid[META_ID_BYTES]);
void meta_server_set_labels(struct meta_core *core, struct meta_server *server);
void meta_server_session_down(struct meta_core *core, struct meta_server *server);
void meta_server_tick(struct meta_core *core, struct meta_server *server, uint64_t now_ns);
/* A frame of it is here: it lives. */
void meta_server_heard(struct meta_server *server);
/* "server 3 (127.0.0.1:9471)": valid until the call after the next three. */
const char *meta_server_text(const struct meta_server *server);
/* What is wrong with it; empty: nothing. */
void meta_server_problem(const struct meta_core *core, const struct meta_server *server, char *text,
                         size_t text_bytes);
bool meta_server_is_full(const struct meta_server *server);
/* The service has just started, and the server, which it knows, may still register. */
bool meta_server_is_awaited(const struct meta_server *server);
void meta_server_fill_address(Dl__ServerAddress *message, const struct meta_server *server);

/* --- requests to servers: command.c --- */

struct meta_command;
typedef void (*meta_command_send_fn)(struct meta_command *command);
/* A reply with status 0 (or optional).  False: it makes no sense; asked again later. */
typedef bool (*meta_command_reply_fn)(struct meta_command *command, const struct frame *frame);

/*
 * Something a server must do; sent again after errors, and on each new connection, until it is
 * answered.
 */
struct meta_command {
    struct list node;
    struct meta_server *server; /* NULL: not queued */
    struct meta_peer_request request;
    bool in_flight;
    uint64_t retry_ns;
    uint32_t failures;
    bool optional;      /* on_reply gets OPCODE_UNKNOWN too: an older server doesn't know it */
    const char *name;   /* for logs: "FENCE" */
    uint64_t volume_id; /* likewise */
    meta_command_send_fn send;
    meta_command_reply_fn on_reply;
};

/* Queued; urgent: before those that wait. */
void meta_command_start(struct meta_command *command, struct meta_server *server, bool urgent);
void meta_command_cancel(struct meta_command *command);
void meta_command_send(struct meta_command *command, uint16_t opcode,
                       const ProtobufCMessage *message);
/* Sends what may be sent now. */
void meta_server_pump(struct meta_server *server);

/* --- leases: lease.c, takeover.c --- */

void meta_lease_set_owner_session(struct meta_volume *volume, struct meta_session *session);
void meta_lease_session_down(struct meta_core *core, struct meta_session *session);
/*
 * Does the owner live?  True: op->probed_epoch is the current lease epoch, see op->probed_alive.
 * False: op waits for the probe and runs again.
 */
bool meta_lease_probe(struct meta_op *op, struct meta_volume *volume);
void meta_lease_probe_cancel(struct meta_core *core, struct meta_volume *volume);
void meta_reader_remove(struct meta_reader *reader);
/* Fills the reply of an attach and ends the op. */
void meta_lease_reply_attach(struct meta_op *op, struct meta_volume *volume);
/* "'host 12 fio' from 127.0.0.1:999, for 12 s" */
void meta_lease_owner_text(const struct meta_core *core, const struct meta_volume *volume,
                           char *text, size_t text_bytes);

/* Ask the servers of the volume to refuse lower lease epochs, those in `known` apart. */
void meta_takeover_start(struct meta_core *core, struct meta_volume *volume, const uint32_t *known,
                         size_t known_count);
/* Those who wait get err. */
void meta_takeover_end(struct meta_core *core, struct meta_volume *volume,
                       const struct dl_error *err);
/* An attach waits until every segment is covered; then meta_lease_reply_attach(). */
void meta_takeover_wait_attach(struct meta_op *op, struct meta_volume *volume, uint64_t wait_ns);
/* Slots of its volume have changed. */
void meta_takeover_map_changed(struct meta_volume *volume);
/* A slot of the volume, as it is now, was recovering under this attempt and is in-sync. */
void meta_takeover_promoted(struct meta_volume *volume, const struct segment *segment,
                            const struct segment_slot *slot, uint32_t attempt);
/* Is somebody connected waiting for his attach? */
bool meta_takeover_has_attacher(const struct meta_volume *volume);
void meta_takeover_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                        size_t text_bytes);

/* --- maps: segment.c --- */

/* Segments and servers of a reply; freed by meta_map_fini(). */
struct meta_map {
    Dl__Segment **segments;
    size_t segment_count;
    Dl__ServerAddress **servers;
    size_t server_count;
    bool more;
    uint32_t segment_sectors;
    uint8_t *server_seen; /* by id */
};
void meta_map_init(struct meta_map *map, const struct meta_core *core);
void meta_map_add_segment(struct meta_map *map, const struct meta_core *core,
                          const struct meta_volume *volume, const struct segment *segment);
void meta_map_add_server(struct meta_map *map, const struct meta_core *core, uint32_t server_id);
/* Segments from `first` on, at most max and what fits into a reply. */
void meta_map_add_range(struct meta_map *map, const struct meta_core *core,
                        const struct meta_volume *volume, uint32_t first, uint32_t max);
void meta_map_fini(struct meta_map *map);
struct placement_server;
/* The servers that this volume may use, as placement sees them.  The caller frees them. */
struct placement_server *meta_candidates_collect(const struct meta_core *core,
                                                 const struct volume_desc *desc,
                                                 uint32_t *ret_count);
/* Are there enough failure domains for this policy?  Counts registered servers, up or not. */
int meta_segment_check_domains(struct meta_core *core, const struct volume_desc *desc,
                               struct dl_error *err);
/*
 * Would a new segment of the volume find its place now?  `without`, or NULL: a server that is not
 * to be counted on.  0, or what ALLOCATE would say.
 */
int meta_segment_check_place(const struct meta_core *core, const struct meta_volume *volume,
                             const struct meta_server *without, struct dl_error *err);
/* "server", "hosts", ... */
const char *meta_domain_name(const struct volume_desc *desc, uint32_t count);

/* --- deletion: delete.c --- */

/* The volume's desc says deleting: begin, or go on after a restart. */
void meta_deletion_start(struct meta_core *core, struct meta_volume *volume);
void meta_deletion_free(struct meta_volume *volume);
/* It never comes back: no deletion waits for it. */
void meta_deletion_server_removed(struct meta_core *core, const struct meta_server *server);
void meta_deletion_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                        size_t text_bytes);

/* --- scrubs: scrub.c --- */

/* The volume is being deleted, or all ends. */
void meta_scrub_free(struct meta_volume *volume);
void meta_scrub_tick(struct meta_core *core);
struct scrub_message {
    Dl__ScrubReply message;
    Dl__ScrubCounts counts;
    uint8_t id[META_ID_BYTES];
    uint32_t absent[META_SCRUB_ABSENT_MAX];
};
/* How far it is; points into entry. */
void meta_scrub_fill(const struct meta_core *core, const struct meta_volume *volume,
                     struct scrub_message *entry);
/* A heartbeat's part; the registration's answer. */
/* NULL: nothing of the volume is bad there, as far as the server knows. */
const Dl__BadVolume *meta_scrub_bad_volume(const struct meta_server *server, uint64_t volume_id);
void meta_scrub_take_heartbeat(struct meta_server *server, const Dl__ServerHeartbeat *message);
void meta_scrub_fill_position(const struct meta_server *server, Dl__ScrubPosition *position);
/* Has the scrub got so far that it should be remembered? */
bool meta_scrub_wants_persist(const struct meta_server *server, uint64_t now_ns);

/* --- records: record.c --- */

void meta_record_put_volume(struct store_batch *batch, const struct volume_desc *desc);
void meta_record_put_server(struct store_batch *batch, const struct server_desc *desc);
void meta_record_put_segment(struct store_batch *batch, uint64_t volume_id,
                             const struct segment *segment, uint32_t slot_count, bool told);
void meta_record_put_counter(struct store_batch *batch, const char *name, uint64_t next);
/* 0 or -DL_E_STORE_DAMAGED with the reason. */
int meta_record_get_volume(struct store_item item, struct volume_desc *ret_desc,
                           struct dl_error *err);
int meta_record_get_server(struct store_item item, struct server_desc *ret_desc,
                           struct dl_error *err);
int meta_record_get_counter(struct store_item item, uint64_t *ret_next, struct dl_error *err);
/*
 * segment has room for slot_count slots and the incoming one.  told: all of them know this config
 * epoch.
 */
int meta_record_get_segment(struct store_item item, struct segment *segment, uint32_t slot_count,
                            bool *ret_told, struct dl_error *err);

/* --- the core: core.c, load.c --- */

enum meta_phase { META_LOADING, META_SERVING, META_STOPPING, META_FAILED };

struct meta_label {
    uint32_t number;
    UT_hash_handle hh;
    char text[];
};

struct meta_loader;
struct meta_recovery;

struct meta_core {
    struct env *env;
    struct store *store;
    struct meta_options options;
    enum meta_phase phase;
    uint8_t cluster_id[META_ID_BYTES];
    uint32_t restores; /* of the store, from backups */
    uint8_t instance[META_ID_BYTES];
    uint64_t leader_revision; /* guards every commit */
    uint64_t started_ns;
    uint64_t serving_ns;
    uint64_t placement_seed;
    struct meta_loader *loader;

    struct list sessions;
    uint32_t session_count;
    struct meta_server **servers; /* by id; NULL: none */
    uint32_t servers_end;         /* one above the highest id */
    struct meta_server *servers_by_uuid;
    uint32_t server_count;
    struct meta_label *labels;
    uint32_t label_count;
    struct meta_volume *volumes; /* by id */
    struct meta_name *names;
    uint32_t volume_count;  /* being created and deleted ones too */
    uint64_t segment_count; /* allocated, those being committed included */
    uint64_t next_volume_id;
    uint32_t next_server_id;

    struct list scrubs; /* under way */
    struct list ops;
    struct list ready; /* of meta_op.node: run by ready_task */
    struct env_task ready_task;
    struct env_timer tick;
    uint32_t commits_in_flight;
    void (*on_stopped)(void *context);
    void *stopped_context;
    struct meta_stats stats;
    struct meta_recovery *recovery;
    uint64_t fence_bytes; /* of answers to FENCE that are kept: takeover.c */
};

void meta_load_start(struct meta_core *core);
void meta_load_free(struct meta_core *core);
bool meta_load_is_busy(const struct meta_core *core);
/* load.c is through. */
void meta_core_loaded(struct meta_core *core);
void meta_core_fail(struct meta_core *core, const struct dl_error *err);
void meta_core_commit_ended(struct meta_core *core);
const struct meta_handler *meta_handler_find(uint16_t opcode);

DL_ERROR_PRINTF(4, 5)
void meta_log(const struct meta_core *core, enum meta_log_level level, const char *component,
              const char *format, ...);

/*
 * Text of a peer for display: cut, with ? for what would spoil a terminal.  text has room for
 * META_TEXT_BYTES_MAX + 1.
 */
void meta_text_clean(char *text, const char *from);
/* The same with another limit. */
void meta_text_clean_to(char *text, size_t text_bytes, const char *from);
bool meta_id_is_valid(ProtobufCBinaryData id);
struct meta_id_text {
    char text[37];
};
struct meta_id_text meta_id_format(const uint8_t id[META_ID_BYTES]);
uint64_t meta_core_random(void *context);
/* Which program this is, for peers and records: "dlblk-meta 0.1.0 (commit 0123456789ab)". */
const char *meta_software(void);

/* Handlers, by opcode: the table is in session.c. */
void meta_run_server_register(struct meta_op *op);
void meta_run_server_heartbeat(struct meta_op *op);
void meta_run_volume_create(struct meta_op *op);
void meta_run_volume_list(struct meta_op *op);
void meta_run_volume_info(struct meta_op *op);
void meta_run_volume_rename(struct meta_op *op);
void meta_run_volume_resize(struct meta_op *op);
void meta_run_volume_delete(struct meta_op *op);
void meta_run_attach(struct meta_op *op);
void meta_run_detach(struct meta_op *op);
void meta_run_fence_status(struct meta_op *op);
void meta_run_map_get(struct meta_op *op);
void meta_run_allocate(struct meta_op *op);
void meta_run_server_list(struct meta_op *op);
void meta_run_cluster_status(struct meta_op *op);
void meta_run_eject(struct meta_op *op);
void meta_run_owner_waits(struct meta_op *op);
void meta_run_recovery_report(struct meta_op *op);
void meta_run_server_drain(struct meta_op *op);
void meta_run_server_undrain(struct meta_op *op);
void meta_run_server_remove(struct meta_op *op);
void meta_run_server_set(struct meta_op *op);
void meta_run_volume_status(struct meta_op *op);
void meta_run_segment_locate(struct meta_op *op);
void meta_run_events(struct meta_op *op);
void meta_run_bad_sectors(struct meta_op *op);
void meta_run_scrub(struct meta_op *op);

#endif
