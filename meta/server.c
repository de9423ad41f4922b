/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunkservers: registration, heartbeats, up and down.
 *
 * Registration of a disk that is known:
 *   a living connection of the same process    the old connection is a leftover, it is closed
 *   ... of another process                     PING on it; an answer: a copied disk, refused; none
 *                                              in 1 s: closed
 *   the recorded start count, other process    a copy that was started as often: refused
 *   start count or journal below the recorded  an older copy of itself, and nothing on it is
 *                                              trusted: all its slots are recovered from nothing;
 *                                              refused if it has the last in-sync one of a segment
 *   it is damaged                              likewise
 *   started anew, with recovering slots        these begin new attempts
 *
 * (One that comes late, of a connection that was given up, would look like an older copy: it is
 * asked back, session.c.)
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/text.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define SERVER_ID_MAX     0xffffffu /* struct segment_slot */
#define DUPLICATE_PING_NS NS_PER_S
/* A server that has less for new data is full. */
#define FULL_BYTES       (64ull << 20)
#define FULL_PART        128u            /* of its capacity */
#define PERSIST_EVERY_NS (10 * NS_PER_S) /* the journal position of a server that writes */

/* --- tables --- */

static uint32_t
label_number(struct meta_core *core, const char *text)
{
    struct meta_label *label;
    size_t bytes = strlen(text) + 1;

    if (text[0] == '\0')
        return 0;
    HASH_FIND_STR(core->labels, text, label);
    if (label != NULL)
        return label->number;
    label = meta_alloc(sizeof(*label) + bytes);
    label->number = ++core->label_count;
    memcpy(label->text, text, bytes);
    HASH_ADD_STR(core->labels, text, label);
    return label->number;
}

void
meta_server_set_labels(struct meta_core *core, struct meta_server *server)
{
    server->host_label = label_number(core, server->desc.host);
    server->rack_label = label_number(core, server->desc.rack);
    server->clique_label = label_number(core, server->desc.clique);
}

static void server_on_duplicate_timer(struct env_timer *timer);

struct meta_server *
meta_server_create(struct meta_core *core, const struct server_desc *desc)
{
    struct meta_server *server = meta_alloc(sizeof(*server));

    dl_assert(desc->id > 0);
    server->core = core;
    server->desc = *desc;
    meta_serial_init(&server->serial);
    list_init(&server->duplicate_ops);
    list_init(&server->commands);
    list_init(&server->settle_ops);
    server->duplicate_timer.fn = server_on_duplicate_timer;
    server->journal_position = desc->journal_position;
    server->scrub = desc->scrub;
    dl__scrub_counts__init(&server->scrub_counts);
    server->capacity_bytes = desc->capacity_bytes;
    server->used_bytes = desc->used_bytes;
    meta_server_set_labels(core, server);
    if (desc->id >= core->servers_end) {
        core->servers = meta_realloc(core->servers, desc->id + 1, sizeof(struct meta_server *));
        for (uint32_t id = core->servers_end; id <= desc->id; id++)
            core->servers[id] = NULL;
        core->servers_end = desc->id + 1;
    }
    dl_assert(core->servers[desc->id] == NULL);
    core->servers[desc->id] = server;
    /* Of a disk that went back it must be known, also if this service died before it was. */
    server->listed_start_count = desc->reset_start_count == desc->start_count ? 0
                                                                              : desc->start_count;
    HASH_ADD(hh, core->servers_by_uuid, desc.uuid, META_ID_BYTES, server);
    core->server_count++;
    return server;
}

void
meta_server_free(struct meta_server *server)
{
    env_timer_stop(server->core->env, &server->duplicate_timer);
    meta_peer_request_cancel(&server->duplicate_ping);
    meta_stray_end(server);
    free(server->bad_volumes);
    free(server);
}

void
meta_server_forget(struct meta_core *core, struct meta_server *server)
{
    dl_assert(server->session == NULL);
    dl_assert(server->slot_count == 0);
    meta_stray_end(server);
    HASH_DEL(core->servers_by_uuid, server);
    core->server_count--;
    server->up = false;
    server->creating = true; /* as one that isn't there yet */
    server->forgotten = true;
}

struct meta_server *
meta_server_by_id(struct meta_core *core, uint32_t id)
{
    return id < core->servers_end ? core->servers[id] : NULL;
}

struct meta_server *
meta_server_by_uuid(struct meta_core *core, const uint8_t uuid[META_ID_BYTES])
{
    struct meta_server *server;

    HASH_FIND(hh, core->servers_by_uuid, uuid, META_ID_BYTES, server);
    return server;
}

const char *
meta_server_text(const struct meta_server *server)
{
    static _Thread_local char texts[4][sizeof(server->desc.address) + 16];
    static _Thread_local unsigned next;
    char *text = texts[next++ % 4];

    (void)snprintf(text, sizeof(texts[0]), "%" PRIu32 " (%s)", server->desc.id,
                   server->desc.address);
    return text;
}

void
meta_server_problem(const struct meta_core *core, const struct meta_server *server, char *text,
                    size_t text_bytes)
{
    uint64_t now_ns = env_now_ns(core->env);

    text[0] = '\0';
    if (server->desc.admin_state == META_ADMIN_REMOVING)
        (void)snprintf(text, text_bytes, "being removed");
    else if (meta_server_is_awaited(server))
        (void)snprintf(text, text_bytes,
                       "has not registered yet since the metadata service started %s ago",
                       text_of_duration(now_ns - core->serving_ns).text);
    else if (!server->up)
        (void)snprintf(text, text_bytes, "down: not heard of for %s",
                       text_of_duration(now_ns - max_u64(server->heard_ns, core->started_ns)).text);
    else if (server->session == NULL)
        (void)snprintf(text, text_bytes, "connection lost %s ago",
                       text_of_duration(now_ns - server->lost_ns).text);
    else if (server->stopped[0] != '\0')
        (void)snprintf(text, text_bytes, "takes no writes: %.80s", server->stopped);
    else if (server->damaged)
        (void)snprintf(text, text_bytes, "its journal is damaged");
    else if (meta_server_is_full(server))
        (void)snprintf(text, text_bytes, "full");
}

bool
meta_server_is_awaited(const struct meta_server *server)
{
    return server->session == NULL && !server->up && !server->lost && !server->creating;
}

/* It takes no new data, or will not in a moment; what it has it can still change. */
bool
meta_server_is_full(const struct meta_server *server)
{
    return server->session != NULL && server->up && server->stopped[0] == '\0' &&
           !server->damaged &&
           server->available_bytes < min_u64(FULL_BYTES, server->capacity_bytes / FULL_PART);
}

void
meta_server_fill_address(Dl__ServerAddress *message, const struct meta_server *server)
{
    message->server_id = server->desc.id;
    message->uuid = (ProtobufCBinaryData){META_ID_BYTES, (uint8_t *)(uintptr_t)server->desc.uuid};
    message->address = (char *)(uintptr_t)server->desc.address;
    message->host = (char *)(uintptr_t)server->desc.host;
    message->state = server->up ? DL__SERVER_STATE__SERVER_UP : DL__SERVER_STATE__SERVER_DOWN;
}

/* --- registration: what it says --- */

static int
register_check_label(const char *what, const char *label, struct dl_error *err)
{
    return label[0] == '\0' ? 0 : text_check_name(what, label, err);
}

/* The next desc of the server from the message; checked. */
static int
register_read(struct meta_op *op, struct server_desc *desc, struct dl_error *err)
{
    const Dl__ServerRegister *message = (const Dl__ServerRegister *)op->message;
    struct dl_address address;
    int result;

    if (!meta_id_is_valid(message->uuid) ||
        memcmp(message->uuid.data, op->session->server_uuid, META_ID_BYTES) != 0)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "SERVER_REGISTER names another disk than the connection's HELLO, %s",
                            meta_id_format(op->session->server_uuid).text);
    if (message->start_count == 0)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "SERVER_REGISTER of disk %s without a start count",
                            meta_id_format(op->session->server_uuid).text);
    result = dl_address_parse(message->address, 0, &address, err);
    if (result < 0) {
        dl_error_prefix(err, "SERVER_REGISTER: ");
        return result;
    }
    if (register_check_label("host", message->host, err) < 0 ||
        register_check_label("rack", message->rack, err) < 0 ||
        register_check_label("clique", message->clique, err) < 0)
        return err->code;
    memcpy(desc->uuid, message->uuid.data, META_ID_BYTES);
    memcpy(desc->instance, op->session->instance, META_ID_BYTES);
    (void)snprintf(desc->address, sizeof(desc->address), "%s", dl_address_format(&address).text);
    /* Without a label the machine is what the address says. */
    (void)snprintf(desc->host, sizeof(desc->host), "%.128s",
                   message->host[0] != '\0' ? message->host : address.host);
    (void)snprintf(desc->rack, sizeof(desc->rack), "%s", message->rack);
    (void)snprintf(desc->clique, sizeof(desc->clique), "%s", message->clique);
    desc->start_count = message->start_count;
    desc->journal_position = message->journal_position;
    desc->capacity_bytes = message->capacity_bytes;
    desc->used_bytes = min_u64(message->used_bytes, message->capacity_bytes);
    meta_text_clean(desc->software, message->software);
    return 0;
}

/* Is it an older copy of the disk: has it forgotten something that was acknowledged? */
static bool
register_went_back(const struct meta_server *server, const struct server_desc *desc)
{
    const struct server_desc *known = &server->desc;

    if (desc->start_count < known->start_count || desc->journal_position < server->journal_position)
        return true;
    /*
     * An older copy was admitted before.  This may be the newer disk, which has none of what the
     * copy has got since.
     */
    return known->start_count < known->start_count_highest &&
           desc->start_count > known->start_count_highest;
}

/* Is it one of two? */
static int
register_check_history(const struct meta_server *server, const struct server_desc *desc,
                       struct dl_error *err)
{
    const struct server_desc *known = &server->desc;
    const char *uuid = meta_id_format(desc->uuid).text;

    if (desc->start_count == known->start_count &&
        memcmp(desc->instance, known->instance, META_ID_BYTES) != 0) {
        (void)dl_error_set(err, -DL_E_SERVER_DUPLICATE,
                           "disk %s is a copy: start %" PRIu64
                           " of it was another process, that of server %s",
                           uuid, desc->start_count, meta_server_text(server));
        dl_error_hint(err,
                      "format the copy anew with dlblk-disk format --force, or start the original");
        return err->code;
    }
    return 0;
}

/* --- registration: two processes with one disk --- */

static void
duplicate_resolved(struct meta_server *server, bool alive)
{
    struct dl_error err;

    env_timer_stop(server->core->env, &server->duplicate_timer);
    meta_peer_request_cancel(&server->duplicate_ping);
    if (!alive && server->session != NULL) {
        meta_log(server->core, META_LOG_WARNING, "server",
                 "server %s: the connection from %s is dead, another process has the disk",
                 meta_server_text(server), server->session->peer.text);
        meta_session_close(server->session);
        meta_server_session_down(server->core, server);
    }
    while (!list_is_empty(&server->duplicate_ops)) {
        struct meta_op *op = list_first_entry(&server->duplicate_ops, struct meta_op, node);

        if (!alive) {
            meta_op_run_soon(op);
            continue;
        }
        (void)dl_error_set(&err, -DL_E_SERVER_DUPLICATE,
                           "disk %s is in use by another process: server %s, connected from %s",
                           meta_id_format(server->desc.uuid).text, meta_server_text(server),
                           server->session->peer.text);
        dl_error_hint(&err, "a copied disk must be formatted anew: dlblk-disk format --force");
        meta_op_fail(op, &err);
    }
}

static void
server_on_duplicate_ping(struct meta_peer_request *request, const struct frame *frame, int err)
{
    (void)err;
    duplicate_resolved(list_entry(request, struct meta_server, duplicate_ping), frame != NULL);
}

static void
server_on_duplicate_timer(struct env_timer *timer)
{
    duplicate_resolved(list_entry(timer, struct meta_server, duplicate_timer), false);
}

/* True: op waits for the old connection to show life. */
static bool
register_meets_other(struct meta_op *op, struct meta_server *server)
{
    struct meta_session *other = server->session;

    if (other == NULL || other == op->session)
        return false;
    if (memcmp(other->instance, op->session->instance, META_ID_BYTES) == 0) {
        meta_session_close(other);
        meta_server_session_down(op->core, server);
        return false;
    }
    meta_op_release(op);
    meta_op_wait(op, &server->duplicate_ops);
    if (server->duplicate_ping.session == NULL) {
        meta_peer_request_send(other, &server->duplicate_ping, OP_PING, NULL,
                               server_on_duplicate_ping);
        env_timer_start(op->core->env, &server->duplicate_timer, DUPLICATE_PING_NS);
    }
    return true;
}

/* --- registration: the change --- */

/* Committed: this connection is the server's. */
static void
register_finish(struct meta_op *op, struct meta_server *server)
{
    const Dl__ServerRegister *message = (const Dl__ServerRegister *)op->message;
    Dl__ServerRegisterReply reply = DL__SERVER_REGISTER_REPLY__INIT;
    Dl__ScrubPosition scrub = DL__SCRUB_POSITION__INIT;
    struct meta_core *core = op->core;

    if (op->session == NULL) {
        server->lost_ns = env_now_ns(core->env);
        meta_op_end(op);
        return;
    }
    dl_assert(server->session == NULL || server->session == op->session);
    if (!server->up) {
        meta_log(core, META_LOG_INFO, "server",
                 "server %s: up: disk %s, start %" PRIu64 ", host %s", meta_server_text(server),
                 meta_id_format(server->desc.uuid).text, server->desc.start_count,
                 server->desc.host);
        if (server->lost)
            meta_event_post(core, DL__EVENT_KIND__EVENT_SERVER_UP, server, "server %s: up",
                            meta_server_text(server));
    }
    server->session = op->session;
    op->session->server = server;
    server->up = true;
    server->lost = false;
    server->resume_ns = min_u64(server->resume_ns, env_now_ns(core->env));
    server->must_be_heard = false;
    server->heard_ns = env_now_ns(core->env);
    server->heard_wall_ms = core->env->ops->wall_ms(core->env);
    server->persisted_ns = server->heard_ns;
    server->journal_position = server->desc.journal_position;
    server->capacity_bytes = message->capacity_bytes;
    server->used_bytes = min_u64(message->used_bytes, message->capacity_bytes);
    server->available_bytes = server->capacity_bytes - server->used_bytes;
    server->damaged = message->damaged;
    server->stopped[0] = '\0';
    if (server->damaged)
        meta_log(core, META_LOG_ERROR, "server", "server %s: its journal is damaged",
                 meta_server_text(server));
    meta_recovery_kick(core);
    reply.server_id = server->desc.id;
    reply.heartbeat_ms = (uint32_t)(core->options.heartbeat_ns / NS_PER_MS);
    meta_scrub_fill_position(server, &scrub);
    reply.scrub = &scrub;
    meta_op_reply(op, &reply.base);
    if (server->listed_start_count != server->desc.start_count) {
        server->listed_start_count = server->desc.start_count;
        meta_stray_begin(core, server);
    }
    meta_server_pump(server);
}

/* For the log: a server that is new, or was started anew before it counted as down. */
static void
register_post(struct meta_core *core, const struct meta_server *server,
              const struct server_desc *desc)
{
    if (server->creating)
        meta_event_post(core, DL__EVENT_KIND__EVENT_SERVER_UP, server,
                        "server %s: up: new, disk %s", meta_server_text(server),
                        meta_id_format(desc->uuid).text);
    else if (desc->start_count != server->desc.start_count && !server->lost)
        meta_event_post(core, DL__EVENT_KIND__EVENT_SERVER_UP, server,
                        "server %s: up: started anew (start %" PRIu64 ")", meta_server_text(server),
                        desc->start_count);
}

static void
register_on_committed(struct meta_op *op)
{
    struct meta_server *server = op->server;
    const struct server_desc *desc = op->scratch;
    bool moved = !server->creating && strcmp(server->desc.address, desc->address) != 0;

    register_post(op->core, server, desc);
    server->desc = *desc;
    server->creating = false;
    meta_server_set_labels(op->core, server);
    meta_sweep_settled(server);
    if (moved)
        meta_tell_address(op->core, server->desc.id);
    register_finish(op, server);
}

static bool
register_changes(const struct server_desc *a, const struct server_desc *b)
{
    return a->start_count != b->start_count || a->journal_position != b->journal_position ||
           memcmp(a->instance, b->instance, META_ID_BYTES) != 0 ||
           strcmp(a->address, b->address) != 0 || strcmp(a->host, b->host) != 0 ||
           strcmp(a->rack, b->rack) != 0 || strcmp(a->clique, b->clique) != 0 ||
           strcmp(a->software, b->software) != 0 || a->capacity_bytes != b->capacity_bytes ||
           a->reset_start_count != b->reset_start_count ||
           a->start_count_highest != b->start_count_highest;
}

static void
register_commit(struct meta_op *op, struct meta_server *server, const struct server_desc *desc)
{
    op->server = server;
    free(op->scratch);
    op->scratch = meta_copy(desc, sizeof(*desc));
    meta_record_put_server(&op->batch, desc);
    meta_op_commit(op, register_on_committed);
}

static void
register_new(struct meta_op *op, struct server_desc *desc)
{
    struct meta_core *core = op->core;
    struct meta_server *server;
    struct dl_error err;

    if (core->server_count >= core->options.servers_max || core->next_server_id > SERVER_ID_MAX) {
        (void)dl_error_set(&err, -DL_E_LIMIT,
                           "the cluster has %" PRIu32 " servers, the most it can have",
                           core->server_count);
        meta_op_fail(op, &err);
        return;
    }
    desc->id = core->next_server_id++;
    desc->start_count_highest = desc->start_count;
    desc->created_ms = core->env->ops->wall_ms(core->env);
    server = meta_server_create(core, desc);
    server->creating = true;
    (void)meta_op_take(op, &server->serial);
    meta_log(core, META_LOG_INFO, "server", "server %s: new: disk %s", meta_server_text(server),
             meta_id_format(desc->uuid).text);
    meta_record_put_counter(&op->batch, "next/server", core->next_server_id);
    register_commit(op, server, desc);
}

/* What the server does not say itself. */
static void
register_keep(struct server_desc *desc, const struct meta_server *server)
{
    const struct server_desc *known = &server->desc;

    desc->id = known->id;
    desc->created_ms = known->created_ms;
    desc->admin_state = known->admin_state;
    desc->weight_percent = known->weight_percent;
    desc->reset_start_count = known->reset_start_count;
    desc->start_count_highest = max_u64(known->start_count_highest, desc->start_count);
    desc->labels_set = known->labels_set;
    desc->scrub = server->scrub;
    if (!known->labels_set)
        return;
    memcpy(desc->host, known->host, sizeof(desc->host));
    memcpy(desc->rack, known->rack, sizeof(desc->rack));
    memcpy(desc->clique, known->clique, sizeof(desc->clique));
}

/* What its slots are must be right before it is there.  False: op waits, or has failed. */
static bool
register_settle(struct meta_op *op, struct meta_server *server, struct server_desc *desc)
{
    const Dl__ServerRegister *message = (const Dl__ServerRegister *)op->message;
    bool back = register_went_back(server, desc);
    bool damaged = message->damaged && desc->start_count != server->desc.reset_start_count;

    if (back || damaged) {
        if (!meta_sweep_settle(op, server, true))
            return false;
        desc->reset_start_count = desc->start_count;
        meta_event_put(op, DL__EVENT_KIND__EVENT_SERVER_RESET, server, NULL, 0, 0,
                       "server %s: its disk %s: everything on it is recovered from its peers",
                       meta_server_text(server),
                       back ? "is an older copy of itself" : "is damaged");
        return true;
    }
    if (desc->start_count == server->desc.start_count ||
        !meta_server_is_recovering(op->core, server->desc.id))
        return true;
    return meta_sweep_settle(op, server, false);
}

void
meta_run_server_register(struct meta_op *op)
{
    struct meta_core *core = op->core;
    struct server_desc desc = {0};
    struct meta_server *server;
    struct dl_error err;

    if (register_read(op, &desc, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    server = meta_server_by_uuid(core, desc.uuid);
    if (server == NULL) {
        register_new(op, &desc);
        return;
    }
    if (!meta_op_take(op, &server->serial) || register_meets_other(op, server))
        return;
    if (register_check_history(server, &desc, &err) < 0) {
        meta_log(core, META_LOG_ERROR, "server", "registration refused: %s", err.text);
        meta_op_fail(op, &err);
        return;
    }
    if (server->desc.admin_state == META_ADMIN_REMOVING) {
        (void)dl_error_set(&err, -DL_E_SERVER_UNKNOWN, "server %s is being removed",
                           meta_server_text(server));
        dl_error_hint(&err, "format its disk anew with dlblk-disk format --force, to add it again");
        meta_op_fail(op, &err);
        return;
    }
    register_keep(&desc, server);
    if (!register_settle(op, server, &desc))
        return;
    if (register_changes(&desc, &server->desc)) {
        register_commit(op, server, &desc);
        return;
    }
    register_finish(op, server);
}

/* --- heartbeats --- */

void
meta_server_heard(struct meta_server *server)
{
    if (!server->must_be_heard)
        return;
    server->must_be_heard = false;
    meta_recovery_kick(server->core);
}

void
meta_run_server_heartbeat(struct meta_op *op)
{
    const Dl__ServerHeartbeat *message = (const Dl__ServerHeartbeat *)op->message;
    Dl__ServerHeartbeatReply reply = DL__SERVER_HEARTBEAT_REPLY__INIT;
    struct meta_server *server = op->session->server;
    char stopped[sizeof(server->stopped)];
    struct dl_error err;

    if (server == NULL) {
        (void)dl_error_set(&err, -DL_E_SERVER_UNKNOWN, "SERVER_HEARTBEAT before SERVER_REGISTER");
        meta_op_fail(op, &err);
        return;
    }
    server->heard_ns = env_now_ns(op->core->env);
    server->heard_wall_ms = op->core->env->ops->wall_ms(op->core->env);
    server->journal_position = max_u64(server->journal_position, message->journal_position);
    server->capacity_bytes = message->capacity_bytes;
    server->used_bytes = min_u64(message->used_bytes, message->capacity_bytes);
    server->available_bytes = min_u64(message->available_bytes, message->capacity_bytes);
    server->chunk_count = message->chunk_count;
    meta_scrub_take_heartbeat(server, message);
    meta_text_clean(stopped, message->stopped);
    if (strcmp(stopped, server->stopped) != 0)
        meta_log(op->core, stopped[0] != '\0' ? META_LOG_ERROR : META_LOG_INFO, "server",
                 "server %s: %s%s", meta_server_text(server),
                 stopped[0] != '\0' ? "takes no writes any more: " : "takes writes again", stopped);
    memcpy(server->stopped, stopped, sizeof(stopped));
    meta_op_reply(op, &reply.base);
}

/* --- the journal position: seldom to the store --- */

static void
persist_on_committed(struct meta_op *op)
{
    struct meta_server *server = op->server;

    server->desc = *(struct server_desc *)op->scratch;
    server->persisting = false;
    meta_op_end(op);
}

static void
persist_run(struct meta_op *op)
{
    struct meta_server *server = meta_server_by_id(op->core, (uint32_t)op->request_id);
    struct server_desc desc;

    if (!meta_op_take(op, &server->serial))
        return;
    if (server->creating) { /* it was removed meanwhile */
        server->persisting = false;
        meta_op_end(op);
        return;
    }
    desc = server->desc;
    desc.journal_position = max_u64(desc.journal_position, server->journal_position);
    desc.capacity_bytes = server->capacity_bytes;
    desc.used_bytes = server->used_bytes;
    desc.scrub = server->scrub;
    op->server = server;
    free(op->scratch);
    op->scratch = meta_copy(&desc, sizeof(desc));
    meta_record_put_server(&op->batch, &desc);
    meta_op_commit(op, persist_on_committed);
}

static const struct meta_handler persist_handler = {.run = persist_run};

static void
server_persist(struct meta_core *core, struct meta_server *server)
{
    struct meta_op *op;

    if (server->persisting || server->creating || core->phase != META_SERVING ||
        (server->journal_position <= server->desc.journal_position &&
         !meta_scrub_wants_persist(server, env_now_ns(core->env))))
        return;
    server->persisting = true;
    server->persisted_ns = env_now_ns(core->env);
    server->scrub_persisted_ns = server->persisted_ns;
    op = meta_op_create_internal(core, &persist_handler);
    op->request_id = server->desc.id;
}

/* --- up and down --- */

void
meta_server_session_down(struct meta_core *core, struct meta_server *server)
{
    struct meta_session *session = server->session;

    if (session == NULL)
        return;
    session->server = NULL;
    server->session = NULL;
    server->lost_ns = env_now_ns(core->env);
    server_persist(core, server);
}

static void
server_down(struct meta_core *core, struct meta_server *server, const char *why)
{
    server->up = false;
    server->lost = true;
    meta_log(core, META_LOG_ERROR, "server",
             "server %s: down: %s; it holds %" PRIu64 " chunks of volumes",
             meta_server_text(server), why, server->slot_count);
    meta_event_post(core, DL__EVENT_KIND__EVENT_SERVER_DOWN, server,
                    "server %s: down: %s; it holds %" PRIu64 " chunks of volumes",
                    meta_server_text(server), why, server->slot_count);
}

/* Down, or taking no writes, for too long: its slots move to others. */
static void
server_check_out(struct meta_core *core, struct meta_server *server, uint64_t now_ns)
{
    bool fit = server->session != NULL && server->up && server->stopped[0] == '\0';

    if (fit || server->unfit_ns == 0) {
        if (server->out) {
            meta_sweep_cancel(server->sweep);
            server->sweep = NULL;
            server->out = false;
            meta_recovery_server_changed(core, server);
        }
        server->unfit_ns = fit ? 0 : max_u64(1, now_ns);
        return;
    }
    if (server->out || now_ns - server->unfit_ns < core->options.out_after_ns)
        return;
    server->out = true;
    meta_event_post(core, DL__EVENT_KIND__EVENT_SERVER_OUT, server,
                    "server %s: out: %s for %s; %" PRIu64 " chunks are recovered elsewhere",
                    meta_server_text(server), server->up ? "it takes no writes" : "it is down",
                    text_of_duration(now_ns - server->unfit_ns).text, server->slot_count);
    meta_sweep_out(core, server);
}

void
meta_server_tick(struct meta_core *core, struct meta_server *server, uint64_t now_ns)
{
    uint64_t down_ns = core->options.server_down_ns;
    char why[96];

    if (server->creating)
        return;
    if (server->session != NULL && now_ns - server->heard_ns >= down_ns) {
        (void)snprintf(why, sizeof(why), "no heartbeat for %s",
                       text_of_duration(now_ns - server->heard_ns).text);
        meta_session_close(server->session);
        meta_server_session_down(core, server);
        server_down(core, server, why);
    } else if (server->session == NULL && !server->lost && now_ns - server->lost_ns >= down_ns) {
        (void)snprintf(why, sizeof(why), "not connected for %s",
                       text_of_duration(now_ns - server->lost_ns).text);
        server_down(core, server, why);
    }
    if (now_ns - server->persisted_ns >= PERSIST_EVERY_NS)
        server_persist(core, server);
    server_check_out(core, server, now_ns);
    meta_sweep_tick(core, server);
    meta_admin_tick(core, server);
    meta_server_pump(server);
}
