/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fixture.h: a metadata core on a store in memory, with fake clients and fake chunkservers around
 * it.
 *
 *     fixture_init(&f, NULL);
 *     server = fixture_server(&f, 1, "host1");      // connected, HELLO, registered
 *     client = fixture_client(&f);                  // connected, HELLO
 *     reply = peer_ask(client, OP_VOLUME_INFO, &message.base, &dl__volume_reply__descriptor);
 *     fixture_crash(&f, keep); fixture_start(&f);   // the service dies and comes back
 *
 * Virtual time passes only in fixture_run().  Peers answer PING; servers also send heartbeats and,
 * unless they are told to be silent, answer FENCE and CHUNK_DELETE.
 */
#ifndef DLBLK_TESTS_META_FIXTURE_H
#define DLBLK_TESTS_META_FIXTURE_H

#include "tests/unit/lib/unit.h"

#include <stdbool.h>

#include "meta/core.h"
#include "meta/store_memory.h"
#include "proto/control.pb-c.h"
#include "tests/unit/lib/fake_env.h"
#include "tests/unit/lib/fake_link.h"

#define PEERS_MAX          64u
#define FENCED_VOLUMES_MAX 64u
#define MS                 1000000ull
#define SECOND             1000000000ull

#define TELLS_MAX 256u

struct fixture;

/* A SLOT_TELL that a server has got. */
struct told {
    uint64_t volume;
    uint32_t segment, slot, config_epoch, state, incarnation, attempt, lease_epoch;
    uint32_t peers[8], peer_count; /* server ids */
};

struct peer {
    struct fixture *f;
    struct fake_link link;
    bool used;
    bool connected;
    bool is_server;
    bool deaf;           /* answers nothing, not even PING */
    bool silent_command; /* servers: FENCE and CHUNK_DELETE stay in the inbox */
    bool silent_probe;   /* clients: OWNER_PROBE stays in the inbox */
    bool silent_tell;    /* servers: SLOT_TELL stays in the inbox */
    bool silent_map;     /* clients: MAP_CHANGED stays in the inbox */
    bool no_heartbeat;
    uint64_t next_id;
    struct list inbox; /* of fake_frame.node: requests from the core that the test looks at */
    struct list replies;
    uint32_t fences, chunk_deletes, chunks_deleted, probes;
    uint32_t fence_epoch;                         /* of the last FENCE */
    uint32_t fence_of_volume[FENCED_VOLUMES_MAX]; /* highest lease epoch fenced, by volume id */
    struct told tells[TELLS_MAX];
    uint32_t tell_count;
    uint32_t map_changes;       /* MAP_CHANGED */
    Dl__MapChanged *map_change; /* the last */
    Dl__ChunkRef deleted;       /* the last of the last CHUNK_DELETE */
    Dl__ChunkEntry chunks[16];  /* servers: what CHUNK_LIST is answered with */
    uint32_t chunk_count;
    bool silent_list; /* servers: CHUNK_LIST stays in the inbox */
    bool old_list;    /* servers: CHUNK_LIST is not known */
    uint32_t lists;
    uint8_t uuid[16];
    uint8_t instance[16];
    uint32_t server_id;
    bool may_be_refused;  /* its registration */
    bool refused;         /* it was */
    uint64_t register_id; /* of a SERVER_REGISTER that is to be answered */
    uint64_t start_count;
    uint64_t journal_position;
    uint64_t capacity_bytes, used_bytes;
    bool damaged;
    char stopped[64];
    char host[160];
    char address[64];
    char rack[160], clique[160];
    /* What FENCE is answered with. */
    Dl__FenceReply *fence_reply;
};

struct fixture {
    struct fake_env env;
    struct store_memory_db *db;
    struct store *store;
    struct meta_core *core;
    struct meta_options options;
    struct store_memory_options store_options;
    bool ready;
    int fatal; /* 0, or what on_fatal said */
    char fatal_text[512];
    uint32_t log_lines;
    char last_warning[1024];
    /* All may be NULL: what peers get, before they answer. */
    void *context;
    void (*on_tell)(void *context, struct peer *peer, const struct told *told);
    void (*on_chunk)(void *context, struct peer *peer, const Dl__ChunkRef *deleted);
    void (*on_map)(void *context, struct peer *peer, const Dl__MapChanged *changed);
    struct peer peers[PEERS_MAX];
};

/* options may be NULL.  The core is loaded afterwards. */
void fixture_init(struct fixture *f, const struct meta_options *options);
void fixture_fini(struct fixture *f);
/* A database with a cluster in it, no core yet. */
void fixture_init_database(struct fixture *f, const struct meta_options *options);
void fixture_start(struct fixture *f);
/* kill -9; `keep` picks how many commits in flight survive (store_memory_crash). */
void fixture_crash(struct fixture *f, uint64_t keep);
/* While no core runs: the volume's record, with another lease epoch. */
void fixture_raise_lease_epoch(struct fixture *f, uint64_t volume_id, uint32_t lease_epoch);
/* Everything that happens without time passing. */
void fixture_settle(struct fixture *f);
void fixture_run(struct fixture *f, uint64_t ns);

/* Connected, nothing said. */
struct peer *fixture_connect(struct fixture *f);
struct peer *fixture_client(struct fixture *f);
/* The n-th disk: its uuid is made of n. */
struct peer *fixture_server(struct fixture *f, uint32_t n, const char *host);
/* The same in steps. */
struct peer *fixture_server_hello(struct fixture *f, uint32_t n, const char *host);
/* As above, of a process that has a connection already. */
struct peer *fixture_server_of_process(struct fixture *f, uint32_t n, const char *host,
                                       const uint8_t *instance);
int peer_register(struct peer *peer);
/*
 * Where the store takes time: the answer is taken by fixture_run(), and the server has its id then.
 */
uint64_t peer_send_register(struct peer *peer);
void peer_fill_register(struct peer *peer, Dl__ServerRegister *message);
void peer_fill_hello(struct peer *peer, Dl__Hello *message);
void peer_disconnect(struct peer *peer);
/* The process behind a server restarts: a new connection with a higher start count. */
void peer_restart_server(struct peer *peer);

/* Ask; the id is needed to find the reply later. */
uint64_t peer_send(struct peer *peer, uint16_t opcode, const ProtobufCMessage *message);
/* NULL: there is none yet. */
struct fake_frame *peer_take_reply(struct peer *peer, uint64_t id);
/* A request of the core that the peer did not answer by itself. */
struct fake_frame *peer_take_request(struct peer *peer, uint16_t opcode);
void peer_answer(struct peer *peer, const struct fake_frame *request, int status,
                 const ProtobufCMessage *message);

/*
 * Ask, settle, and take the reply: its status; the message (NULL after an error), which the caller
 * frees.
 */
int peer_ask(struct peer *peer, uint16_t opcode, const ProtobufCMessage *message,
             const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_reply);
/* The text of the last error reply to peer_ask(). */
const char *fixture_error_text(void);
const char *fixture_error_hint(void);
int fixture_reply_status(struct peer *peer, uint64_t id);

/* --- common requests --- */

/* 3 replicas, domain server. */
int ask_create(struct peer *peer, const char *name, uint64_t size_bytes, Dl__Volume *ret_volume);
int ask_info(struct peer *peer, const char *name, Dl__VolumeReply **ret_reply);
/* attach_id is made of n. */
void fill_attach(Dl__Attach *message, const char *name, uint8_t n);
int ask_attach(struct peer *peer, const char *name, uint8_t n, Dl__AttachReply **ret_reply);
int ask_detach(struct peer *peer, uint64_t volume, uint32_t lease_epoch, bool clean);
int ask_allocate(struct peer *peer, uint64_t volume, uint32_t lease_epoch, uint32_t first,
                 uint32_t count, Dl__MapReply **ret_reply);
int ask_map(struct peer *peer, uint64_t volume, uint32_t lease_epoch, uint32_t first, uint32_t max,
            Dl__MapReply **ret_reply);
int ask_delete(struct peer *peer, const char *name);
/* Up to two servers of one segment; ids that are 0 are left out. */
int ask_eject(struct peer *peer, uint64_t volume, uint32_t lease_epoch, uint32_t segment,
              uint32_t config_epoch, uint32_t id, uint32_t other_id, bool resolved,
              Dl__EjectReply **ret_reply);
/* A server's report of the attempt that it was told of last. */
int ask_report(struct peer *server, const struct told *told, bool done, uint32_t cursor_sectors);
/* The newest thing that the server was told of this segment; NULL: nothing. */
const struct told *peer_told(const struct peer *server, uint64_t volume, uint32_t segment);
/* The segment as MAP_GET has it: the caller frees it with dl__map_reply__free_unpacked(). */
Dl__MapReply *map_of(struct peer *client, uint64_t volume, uint32_t segment);

static inline ProtobufCBinaryData
bytes_of(uint8_t *bytes, size_t length_bytes)
{
    return (ProtobufCBinaryData){length_bytes, bytes};
}

#endif
