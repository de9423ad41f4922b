/* SPDX-License-Identifier: Apache-2.0 */
#include "client/core_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/slot_io.h"
#include "client/volume_internal.h"
#include "common/version.h"
#include "proto/frame.h"

#define CONNECT_TIMEOUT_MS  10000u
#define REQUEST_TIMEOUT_MS  30000u
#define ATTACH_TIMEOUT_MS   30000u
#define META_BACKOFF_MAX_NS (500 * CLIENT_NS_PER_MS)
#define EJECT_LOST_MS       200u
#define EJECT_SILENT_MS     3000u
#define EJECT_SLOW_MS       10000u
#define HEDGE_MIN_MS        10u
/* A timer that is so late says that this process was stopped. */
#define LATE_NS (500 * CLIENT_NS_PER_MS)

void
client_core_event(struct client_core *core, enum dlblk_event_level level, const char *format, ...)
{
    char text[CLIENT_EVENT_TEXT_BYTES];
    va_list arguments;

    if (core->options.on_event == NULL)
        return;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    core->options.on_event(core->options.event_context, level, text);
}

/* --- what we say to peers --- */

static void
core_hello_init(struct client_core *core, Dl__Hello *hello)
{
    dl__hello__init(hello);
    hello->version_min = WIRE_VERSION_MIN;
    hello->version_max = WIRE_VERSION;
    hello->role = DL__ROLE__ROLE_CLIENT;
    hello->software = (char *)(uintptr_t) "libdlblk";
    hello->instance = (ProtobufCBinaryData){.data = core->instance, .len = CLIENT_ID_BYTES};
}

static void
core_hello_set_cluster(struct client_core *core, Dl__Hello *hello)
{
    if (core->cluster_known)
        hello->cluster_id = (ProtobufCBinaryData){.data = core->cluster_id, .len = CLIENT_ID_BYTES};
}

static void
core_random_id(struct client_core *core, uint8_t id[CLIENT_ID_BYTES])
{
    for (unsigned i = 0; i < CLIENT_ID_BYTES; i += 8) {
        uint64_t random = env_random(core->env);

        memcpy(id + i, &random, sizeof(random));
    }
}

static bool
core_is_id(const ProtobufCBinaryData *data, const uint8_t id[CLIENT_ID_BYTES])
{
    return data->len == CLIENT_ID_BYTES && memcmp(data->data, id, CLIENT_ID_BYTES) == 0;
}

/* --- requests to the metadata service --- */

/*
 * One sending of a call: on its own, so that a call that is given up can leave while its reply is
 * on the way.
 */
struct meta_exchange {
    struct session_call session_call;
    struct client_meta_call *call;
};

static void
meta_call_end(struct client_meta_call *call, int err)
{
    ProtobufCMessage *reply;

    dl_assert(call->exchange == NULL);
    list_remove(&call->node);
    call->core = NULL;
    reply = call->reply;
    call->on_done(call, err);
    if (reply != NULL)
        protobuf_c_message_free_unpacked(reply, NULL);
}

/* From the core's task: never inside the call that starts it. */
static void
meta_call_fail(struct client_meta_call *call, int err)
{
    call->failed = err;
    env_defer(call->core->env, &call->core->task);
}

static int
meta_exchange_take_error(struct client_meta_call *call, const struct frame *reply)
{
    Dl__ErrorDetail *detail = (void *)frame_unpack(reply, &dl__error_detail__descriptor);

    (void)dl_error_set(&call->error, reply->status, "%s",
                       detail != NULL && detail->text[0] != '\0' ? detail->text
                                                                 : dl_err_str(reply->status));
    if (detail != NULL && detail->hint[0] != '\0')
        dl_error_hint(&call->error, "%s", detail->hint);
    if (detail != NULL)
        dl__error_detail__free_unpacked(detail, NULL);
    return reply->status;
}

static int
meta_exchange_on_reply(struct session_call *session_call, const struct frame *reply)
{
    struct meta_exchange *exchange = (struct meta_exchange *)session_call;
    struct client_meta_call *call = exchange->call;

    if (reply->status != 0)
        return meta_exchange_take_error(call, reply);
    if (call->reply_type == NULL)
        return 0;
    call->reply = frame_unpack(reply, call->reply_type);
    if (call->reply == NULL)
        return dl_error_set(&call->error, -DL_E_MESSAGE_MALFORMED,
                            "the metadata service's answer to %s is malformed",
                            opcode_name(call->opcode));
    return 0;
}

static void
meta_exchange_on_done(struct session_call *session_call, int err)
{
    struct meta_exchange *exchange = (struct meta_exchange *)session_call;
    struct client_meta_call *call = exchange->call;

    free(exchange);
    call->exchange = NULL;
    /* Sent again on the next connection. */
    if (err == -DL_E_CONNECTION_LOST || err == -DL_E_SHUTTING_DOWN)
        return;
    meta_call_end(call, err);
}

static void
meta_call_send(struct client_core *core, struct client_meta_call *call)
{
    struct meta_exchange *exchange = calloc(1, sizeof(*exchange));
    struct frame_out *frame;
    uint64_t request_id;

    if (exchange == NULL)
        return; /* the tick tries again */
    exchange->call = call;
    exchange->session_call.on_reply = meta_exchange_on_reply;
    exchange->session_call.on_done = meta_exchange_on_done;
    request_id = client_session_begin(&core->meta, &exchange->session_call, call->opcode);
    if (request_id == 0) {
        free(exchange);
        return;
    }
    frame = frame_out_create_message(call->opcode, 0, request_id, 0, call->request);
    if (frame == NULL) {
        (void)client_session_cancel(&exchange->session_call);
        free(exchange);
        (void)dl_error_set(&call->error, -DL_E_NO_MEMORY, "%s: no memory, or it is too large",
                           opcode_name(call->opcode));
        meta_call_fail(call, -DL_E_NO_MEMORY);
        return;
    }
    call->exchange = exchange;
    call->send_count++;
    client_session_send_message(&exchange->session_call, frame);
}

void
client_meta_call_start(struct client_core *core, struct client_meta_call *call)
{
    dl_assert(call->core == NULL);
    call->core = core;
    call->exchange = NULL;
    call->reply = NULL;
    call->send_count = 0;
    call->failed = 0;
    call->start_ns = env_now_ns(core->env);
    memset(&call->error, 0, sizeof(call->error));
    list_init(&call->node);
    list_push_back(&core->meta_calls, &call->node);
    client_core_want_tick(core);
    if (core->stopping)
        meta_call_fail(call, -DL_E_CANCELLED);
    else if (client_session_is_up(&core->meta))
        meta_call_send(core, call);
}

static void
meta_call_drop_exchange(struct client_meta_call *call)
{
    struct meta_exchange *exchange = call->exchange;
    bool over;

    if (exchange == NULL)
        return;
    call->exchange = NULL;
    over = client_session_cancel(&exchange->session_call);
    dl_assert(over); /* its frame is on its own, and it has no payload */
    free(exchange);
}

void
client_meta_call_cancel(struct client_meta_call *call)
{
    if (call->core == NULL)
        return;
    meta_call_drop_exchange(call);
    list_remove(&call->node);
    call->core = NULL;
    if (call->reply != NULL)
        protobuf_c_message_free_unpacked(call->reply, NULL);
    call->reply = NULL;
}

const char *
client_core_meta_problem(const struct client_core *core)
{
    return core->meta.problem;
}

static void
meta_call_check_time(struct client_core *core, struct client_meta_call *call, uint64_t now_ns)
{
    uint64_t alone_since_ns = call->start_ns;

    if (call->timeout_ms != 0 && now_ns - call->start_ns >= call->timeout_ms * CLIENT_NS_PER_MS) {
        meta_call_drop_exchange(call);
        meta_call_end(call, dl_error_set(&call->error, -DL_E_TIMEOUT,
                                         "the metadata service did not answer %s within %u ms",
                                         opcode_name(call->opcode), call->timeout_ms));
        return;
    }
    if (client_session_is_up(&core->meta)) {
        if (call->exchange == NULL)
            meta_call_send(core, call);
        return;
    }
    if (core->meta.down_since_ns > alone_since_ns)
        alone_since_ns = core->meta.down_since_ns;
    if (call->patient ||
        now_ns - alone_since_ns < core->options.connect_timeout_ms * CLIENT_NS_PER_MS)
        return;
    (void)dl_error_set(&call->error, -DL_E_META_UNREACHABLE,
                       "the metadata service cannot be reached: %s", core->meta.problem);
    dl_error_hint(&call->error, "is dlblk-meta running there? --meta, DLBLK_META and "
                                "/etc/dlblk/dlblk.conf say where it is looked for");
    meta_call_drop_exchange(call);
    meta_call_end(call, -DL_E_META_UNREACHABLE);
}

/*
 * Each callback may start and end other calls: begin again from the front until all have been
 * looked at.
 */
static void
core_check_meta_calls(struct client_core *core)
{
    uint64_t now_ns = env_now_ns(core->env);
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &core->meta_calls);
    while ((node = list_pop_front(&round)) != NULL) {
        struct client_meta_call *call = list_entry(node, struct client_meta_call, node);

        list_push_back(&core->meta_calls, &call->node);
        if (call->failed == 0)
            meta_call_check_time(core, call, now_ns);
    }
}

static void
core_fail_meta_calls(struct client_core *core)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &core->meta_calls);
    while ((node = list_pop_front(&round)) != NULL) {
        struct client_meta_call *call = list_entry(node, struct client_meta_call, node);

        list_push_back(&core->meta_calls, &call->node);
        if (call->failed == 0)
            continue;
        if (call->error.code == 0)
            (void)dl_error_set(&call->error, call->failed, "%s", dl_err_str(call->failed));
        meta_call_drop_exchange(call);
        meta_call_end(call, call->failed);
    }
}

/* --- the session to the metadata service --- */

static int
core_meta_on_hello(struct client_session *session, const Dl__Hello *hello)
{
    struct client_core *core = session->owner;

    if (hello->role != DL__ROLE__ROLE_META)
        return -DL_E_ROLE_WRONG;
    if (hello->cluster_id.len != CLIENT_ID_BYTES)
        return -DL_E_MESSAGE_MALFORMED;
    if (core->cluster_known)
        return core_is_id(&hello->cluster_id, core->cluster_id) ? 0 : -DL_E_CLUSTER_MISMATCH;
    memcpy(core->cluster_id, hello->cluster_id.data, CLIENT_ID_BYTES);
    core->cluster_known = true;
    core_hello_set_cluster(core, &core->meta_hello);
    return 0;
}

static void
core_meta_on_up(struct client_session *session)
{
    struct client_core *core = session->owner;
    struct client_volume *volume;
    struct client_meta_call *call;
    struct client_meta_call *following;

    client_core_event(core, DLBLK_EVENT_DEBUG, "connected to the metadata service at %s",
                      dl_address_format(&session->addresses[session->address_idx]).text);
    list_for_each_entry_safe (call, following, &core->meta_calls, node)
        if (call->exchange == NULL && call->failed == 0)
            meta_call_send(core, call);
    list_for_each_entry (volume, &core->volumes, node)
        client_volume_on_meta_up(volume);
}

static void
core_meta_on_down(struct client_session *session, int err)
{
    struct client_core *core = session->owner;

    (void)err;
    core->reconnects++;
    client_core_want_tick(core);
    client_core_event(core, DLBLK_EVENT_WARNING,
                      "the connection to the metadata service was lost: %s", session->problem);
}

static void
core_meta_on_failed(struct client_session *session, int err)
{
    struct client_core *core = session->owner;

    (void)err;
    /* Once when it begins, and again every now and then: the backoff's longest step is a second. */
    if (session->failures == 3 || session->failures % 60 == 0)
        client_core_event(core, DLBLK_EVENT_WARNING,
                          "the metadata service does not answer, trying again: %s",
                          session->problem);
}

static void
core_reply(struct client_core *core, const struct frame *request, int status, const char *text,
           const ProtobufCMessage *message)
{
    struct frame_out *reply;

    if (status != 0)
        reply = frame_out_create_error(request->opcode, request->request_id, status, text, NULL);
    else
        reply = frame_out_create_message(request->opcode, FRAME_REPLY, request->request_id, 0,
                                         message);
    if (reply != NULL)
        link_send(core->meta.link, reply);
}

/*
 * A volume can be open twice, the second time by taking it from ourselves: what counts is the
 * lease.
 */
static bool
core_owns_lease(const struct client_core *core, const Dl__OwnerProbe *probe)
{
    const struct client_volume *volume;

    list_for_each_entry (volume, &core->volumes, node)
        if (client_volume_id(volume) == probe->volume &&
            client_volume_lease_epoch(volume) == probe->lease_epoch &&
            !client_volume_is_fenced(volume))
            return true;
    return false;
}

static void
core_on_owner_probe(struct client_core *core, const struct frame *frame)
{
    Dl__OwnerProbe *probe = (void *)frame_unpack(frame, &dl__owner_probe__descriptor);
    Dl__OwnerProbeReply reply = DL__OWNER_PROBE_REPLY__INIT;

    if (probe == NULL) {
        core_reply(core, frame, -DL_E_MESSAGE_MALFORMED, "OWNER_PROBE is malformed", NULL);
        return;
    }
    if (core_owns_lease(core, probe))
        core_reply(core, frame, 0, NULL, &reply.base);
    else
        core_reply(core, frame, -DL_E_LEASE_OLD, "this client does not own the volume", NULL);
    dl__owner_probe__free_unpacked(probe, NULL);
}

static void
core_on_volume_changed(struct client_core *core, const struct frame *frame)
{
    Dl__VolumeChanged *changed = (void *)frame_unpack(frame, &dl__volume_changed__descriptor);
    struct client_volume *volume;

    if (changed == NULL || changed->volume == NULL) {
        core_reply(core, frame, -DL_E_MESSAGE_MALFORMED, "VOLUME_CHANGED is malformed", NULL);
    } else {
        list_for_each_entry (volume, &core->volumes, node)
            if (client_volume_id(volume) == changed->volume->id)
                client_volume_on_changed(volume, changed);
        core_reply(core, frame, 0, NULL, NULL);
    }
    if (changed != NULL)
        dl__volume_changed__free_unpacked(changed, NULL);
}

/*
 * An answer says that the map is known here: what left it may be deleted (docs/recovery.md, rule
 * 24); and so does an answer to later news.  Who could not take it has no connection any more: on
 * the next one it is told again.
 */
static void
core_on_map_changed(struct client_core *core, const struct frame *frame)
{
    Dl__MapChanged *changed = (void *)frame_unpack(frame, &dl__map_changed__descriptor);
    struct client_volume *volume;
    int err = changed != NULL ? 0 : -DL_E_MESSAGE_MALFORMED;

    list_for_each_entry (volume, &core->volumes, node)
        if (err == 0 && client_volume_id(volume) == changed->volume)
            err = client_volume_on_map_changed(volume, changed);
    if (err == 0)
        core_reply(core, frame, 0, NULL, NULL);
    else
        client_session_fail(&core->meta, dl_err_str(err));
    if (changed != NULL)
        dl__map_changed__free_unpacked(changed, NULL);
}

static void
core_meta_on_request(struct client_session *session, const struct frame *frame)
{
    struct client_core *core = session->owner;

    switch (frame->opcode) {
    case OP_OWNER_PROBE:
        core_on_owner_probe(core, frame);
        return;
    case OP_VOLUME_CHANGED:
        core_on_volume_changed(core, frame);
        return;
    case OP_MAP_CHANGED:
        core_on_map_changed(core, frame);
        return;
    default:
        core_reply(core, frame, -DL_E_OPCODE_UNKNOWN, "a client does not serve this request", NULL);
        return;
    }
}

static void
core_session_stopped(struct client_core *core)
{
    dl_assert(core->sessions_running > 0);
    if (--core->sessions_running > 0)
        return;
    env_timer_stop(core->env, &core->tick);
    env_defer(core->env, &core->task);
}

static void
core_meta_on_stopped(struct client_session *session)
{
    core_session_stopped(session->owner);
}

static const struct session_events core_meta_events = {
    .on_up = core_meta_on_up,
    .on_down = core_meta_on_down,
    .on_failed = core_meta_on_failed,
    .on_stopped = core_meta_on_stopped,
    .on_request = core_meta_on_request,
    .on_hello = core_meta_on_hello,
};

bool
client_core_is_connected(const struct client_core *core)
{
    return client_session_is_up(&core->meta);
}

/* --- servers --- */

struct client_server_name
client_server_name(const struct client_server *server)
{
    struct client_server_name name;

    (void)snprintf(name.text, sizeof(name.text), "server %u (%s)", server->id,
                   server->address_known ? dl_address_format(&server->session.addresses[0]).text
                                         : "address unknown");
    return name;
}

static int
server_on_hello(struct client_session *session, const Dl__Hello *hello)
{
    struct client_server *server = session->owner;

    if (hello->role != DL__ROLE__ROLE_CHUNKSERVER)
        return -DL_E_ROLE_WRONG;
    if (!core_is_id(&hello->cluster_id, server->core->cluster_id))
        return -DL_E_CLUSTER_MISMATCH;
    return core_is_id(&hello->server_uuid, server->uuid) ? 0 : -DL_E_SERVER_UNKNOWN;
}

/*
 * What is known of a connection is known once, for all writes that wait for it: the slots of a
 * server that is gone are ejected together.
 */
static void
server_fail(struct client_server *server, Dl__EjectReason reason)
{
    struct client_volume *volume;

    server->failed = reason;
    list_for_each_entry (volume, &server->core->volumes, node)
        client_volume_on_server_failed(volume);
}

/* If it is not up in so long it has failed. */
static void
server_watch(struct client_server *server, uint32_t limit_ms)
{
    struct client_core *core = server->core;

    if (limit_ms == CLIENT_NEVER || server->failed != DL__EJECT_REASON__EJECT_NONE ||
        core->stopping)
        return;
    server->lost_ns = env_now_ns(core->env) + limit_ms * CLIENT_NS_PER_MS;
    env_timer_start(core->env, &server->lost_timer, limit_ms * CLIENT_NS_PER_MS);
}

void
client_server_renew(struct client_server *server)
{
    if (client_session_is_up(&server->session))
        return;
    server->failed = DL__EJECT_REASON__EJECT_NONE;
    server_watch(server, server->core->options.eject_lost_ms);
    client_session_hurry(&server->session);
}

static void
server_on_lost_timer(struct env_timer *timer)
{
    struct client_server *server = list_entry(timer, struct client_server, lost_timer);

    /* We were stopped: it had no chance to come back. */
    if (env_now_ns(server->core->env) >= server->lost_ns + LATE_NS)
        server_watch(server, server->core->options.eject_lost_ms);
    else
        server_fail(server, DL__EJECT_REASON__EJECT_CONNECTION);
}

static void
server_on_up(struct client_session *session)
{
    struct client_server *server = session->owner;
    struct client_volume *volume;
    struct list waiters;
    struct list *node;

    env_timer_stop(server->core->env, &server->lost_timer);
    server->failed = DL__EJECT_REASON__EJECT_NONE;
    session->backoff_max_ns = SESSION_BACKOFF_MAX_NS;
    client_core_event(server->core, DLBLK_EVENT_DEBUG, "connected to %s",
                      client_server_name(server).text);
    list_init(&waiters);
    list_splice_back(&waiters, &server->waiters);
    while ((node = list_pop_front(&waiters)) != NULL)
        client_slot_io_ready(list_entry(node, struct slot_io, wait_node));
    list_for_each_entry (volume, &server->core->volumes, node)
        client_volume_on_server_up(volume);
}

static void
server_on_down(struct client_session *session, int err)
{
    struct client_server *server = session->owner;

    (void)err;
    server->core->reconnects++;
    client_core_want_tick(server->core);
    client_core_event(server->core, DLBLK_EVENT_WARNING, "the connection to %s was lost: %s",
                      client_server_name(server).text, session->problem);
    if (session->silent && server->core->options.eject_silent_ms != CLIENT_NEVER)
        server_fail(server, DL__EJECT_REASON__EJECT_SILENT);
    else
        server_watch(server, server->core->options.eject_lost_ms);
}

static void
server_on_failed(struct client_session *session, int err)
{
    struct client_server *server = session->owner;

    (void)err;
    /* The first try ever was refused: that says as much as a connection that broke. */
    if (session->failures == 1)
        server_watch(server, server->core->options.eject_lost_ms);
    if (session->failures == 3 || session->failures % 60 == 0)
        client_core_event(server->core, DLBLK_EVENT_WARNING, "%s cannot be reached: %s",
                          client_server_name(server).text, session->problem);
}

static void
server_on_stopped(struct client_session *session)
{
    struct client_server *server = session->owner;

    env_timer_stop(server->core->env, &server->lost_timer);
    core_session_stopped(server->core);
}

static const struct session_events server_events = {
    .on_up = server_on_up,
    .on_down = server_on_down,
    .on_failed = server_on_failed,
    .on_stopped = server_on_stopped,
    .on_hello = server_on_hello,
};

static struct client_server *
core_add_server(struct client_core *core, uint32_t id, const uint8_t uuid[CLIENT_ID_BYTES])
{
    struct client_server *server;

    while (core->servers.count <= id)
        if (vec_push(&core->servers, NULL) != 0)
            return NULL;
    server = calloc(1, sizeof(*server));
    if (server == NULL)
        return NULL;
    server->core = core;
    server->id = id;
    memcpy(server->uuid, uuid, CLIENT_ID_BYTES);
    list_init(&server->waiters);
    core_hello_init(core, &server->hello);
    core_hello_set_cluster(core, &server->hello);
    server->hello.server_uuid = (ProtobufCBinaryData){.data = server->uuid, .len = CLIENT_ID_BYTES};
    client_session_init(&server->session, core->env, &server_events, server, &server->hello,
                        ((uint64_t)id << 32) + 1);
    server->lost_timer.fn = server_on_lost_timer;
    if (core->options.eject_silent_ms != CLIENT_NEVER)
        server->session.silence_max_ns = core->options.eject_silent_ms * CLIENT_NS_PER_MS;
    if (core->options.eject_lost_ms != CLIENT_NEVER)
        server->session.quick_ns = core->options.eject_lost_ms * CLIENT_NS_PER_MS;
    core->servers.items[id] = server;
    core->server_count++;
    core->sessions_running++;
    return server;
}

int
client_core_learn_server(struct client_core *core, const Dl__ServerAddress *address)
{
    struct client_server *server = client_core_server(core, address->server_id);
    struct dl_address parsed;

    if (address->server_id > CLIENT_SERVER_ID_MAX || address->uuid.len != CLIENT_ID_BYTES)
        return -DL_E_MESSAGE_MALFORMED;
    /* A number is never given to another disk. */
    if (server != NULL && !core_is_id(&address->uuid, server->uuid))
        return -DL_E_MESSAGE_MALFORMED;
    if (address->address[0] != '\0' &&
        dl_address_parse(address->address, DLBLK_PORT_CHUNKSERVER, &parsed, NULL) != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if (server == NULL)
        server = core_add_server(core, address->server_id, address->uuid.data);
    if (server == NULL)
        return -DL_E_NO_MEMORY;
    server->same_host = core->options.host != NULL && core->options.host[0] != '\0' &&
                        strcmp(address->host, core->options.host) == 0;
    if (address->address[0] == '\0' || core->stopping)
        return 0;
    client_session_set_addresses(&server->session, &parsed, 1);
    server->address_known = true;
    /* No connection has broken yet: to wait for the first one has its own patience. */
    if (server->session.sm.state == SESSION_IDLE)
        server_watch(server, core->options.eject_silent_ms);
    client_session_want(&server->session);
    return 0;
}

/* --- time and tasks --- */

static void
core_on_tick(struct env_timer *timer)
{
    struct client_core *core = list_entry(timer, struct client_core, tick);
    struct client_volume *volume;
    struct client_volume *following;
    bool again;

    if (env_now_ns(core->env) >= core->tick_ns + LATE_NS)
        core->awake_ns = env_now_ns(core->env);
    core_check_meta_calls(core);
    list_for_each_entry_safe (volume, following, &core->volumes, node)
        client_volume_on_tick(volume);
    again = !list_is_empty(&core->meta_calls);
    list_for_each_entry (volume, &core->volumes, node)
        again = again || client_volume_wants_tick(volume);
    if (again)
        client_core_want_tick(core);
}

static void
core_run_admission(struct client_core *core)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &core->admission);
    while ((node = list_pop_front(&round)) != NULL)
        client_volume_on_admission(list_entry(node, struct client_volume, admission_node));
}

static void
core_on_task(struct env_task *task)
{
    struct client_core *core = list_entry(task, struct client_core, task);

    core_fail_meta_calls(core);
    core_run_admission(core);
    if (core->stopping && core->sessions_running == 0 && core->on_stopped != NULL) {
        void (*on_stopped)(void *) = core->on_stopped;

        core->on_stopped = NULL;
        on_stopped(core->on_stopped_context);
    }
}

/* --- life --- */

static int
core_copy_options(struct client_core *core, const struct client_core_options *options)
{
    core->options = *options;
    core->options.owner = strdup(options->owner != NULL ? options->owner : "libdlblk");
    core->options.host = strdup(options->host != NULL ? options->host : "");
    if (core->options.connect_timeout_ms == 0)
        core->options.connect_timeout_ms = CONNECT_TIMEOUT_MS;
    if (core->options.eject_lost_ms == 0)
        core->options.eject_lost_ms = EJECT_LOST_MS;
    if (core->options.eject_silent_ms == 0)
        core->options.eject_silent_ms = EJECT_SILENT_MS;
    if (core->options.eject_slow_ms == 0)
        core->options.eject_slow_ms = EJECT_SLOW_MS;
    if (core->options.hedge_min_ms == 0)
        core->options.hedge_min_ms = HEDGE_MIN_MS;
    if (core->options.request_timeout_ms == 0)
        core->options.request_timeout_ms = client_core_ejects(core) ? CLIENT_NEVER
                                                                    : REQUEST_TIMEOUT_MS;
    if (core->options.attach_timeout_ms == 0)
        core->options.attach_timeout_ms = ATTACH_TIMEOUT_MS;
    if (core->options.in_flight_bytes_max == 0)
        core->options.in_flight_bytes_max = CLIENT_IN_FLIGHT_BYTES;
    return core->options.owner != NULL && core->options.host != NULL ? 0 : -DL_E_NO_MEMORY;
}

int
client_core_create(struct client_core **ret_core, struct env *env,
                   const struct client_core_options *options)
{
    struct client_core *core = calloc(1, sizeof(*core));

    dl_assert(options->meta_count > 0);
    dl_assert(options->meta_count <= CLIENT_META_ADDRESSES_MAX);
    if (core == NULL)
        return -DL_E_NO_MEMORY;
    core->env = env;
    list_init(&core->meta_calls);
    list_init(&core->volumes);
    list_init(&core->admission);
    list_init(&core->loose);
    buffers_init(&core->buffers);
    core->tick.fn = core_on_tick;
    core->task.fn = core_on_task;
    core_random_id(core, core->instance);
    core_hello_init(core, &core->meta_hello);
    client_session_init(&core->meta, env, &core_meta_events, core, &core->meta_hello, 0);
    /*
     * An owner that does not come back within a second counts as dead when somebody else wants its
     * volume.
     */
    core->meta.backoff_max_ns = META_BACKOFF_MAX_NS;
    if (core_copy_options(core, options) != 0) {
        client_core_destroy(core);
        return -DL_E_NO_MEMORY;
    }
    core->sessions_running = 1;
    client_session_set_addresses(&core->meta, options->meta, (uint32_t)options->meta_count);
    client_session_want(&core->meta);
    *ret_core = core;
    return 0;
}

void
client_core_stop(struct client_core *core, void (*on_stopped)(void *context), void *context)
{
    struct client_meta_call *call;

    dl_assert(list_is_empty(&core->volumes));
    dl_assert(!core->stopping);
    core->stopping = true;
    core->on_stopped = on_stopped;
    core->on_stopped_context = context;
    list_for_each_entry (call, &core->meta_calls, node)
        if (call->failed == 0)
            meta_call_fail(call, -DL_E_CANCELLED);
    env_defer(core->env, &core->task);
    client_session_stop(&core->meta);
    for (size_t i = 0; i < core->servers.count; i++)
        if (core->servers.items[i] != NULL)
            client_session_stop(&core->servers.items[i]->session);
}

/* Calls that a simulated crash leaves behind. */
static void
core_abandon_meta_calls(struct client_core *core)
{
    struct list *node;

    while ((node = list_pop_front(&core->meta_calls)) != NULL) {
        struct client_meta_call *call = list_entry(node, struct client_meta_call, node);

        free(call->exchange);
        call->exchange = NULL;
        call->core = NULL; /* its owner, who is next, has nothing to cancel */
        if (call->reply != NULL)
            protobuf_c_message_free_unpacked(call->reply, NULL);
        call->reply = NULL;
    }
}

void
client_core_destroy(struct client_core *core)
{
    struct client_volume *volume;
    struct client_volume *following;

    if (core == NULL)
        return;
    core_abandon_meta_calls(core);
    list_for_each_entry_safe (volume, following, &core->volumes, node)
        client_volume_abandon(volume);
    while (!list_is_empty(&core->loose)) {
        struct core_loose *loose = list_first_entry(&core->loose, struct core_loose, node);

        list_remove(&loose->node);
        loose->free(loose);
    }
    client_session_fini(&core->meta);
    for (size_t i = 0; i < core->servers.count; i++) {
        if (core->servers.items[i] == NULL)
            continue;
        client_session_fini(&core->servers.items[i]->session);
        free(core->servers.items[i]);
    }
    vec_fini(&core->servers);
    core->buffers.used_bytes =
        0; /* what a crash left behind was freed by client_volume_abandon() */
    buffers_fini(&core->buffers);
    free((char *)(uintptr_t)core->options.owner);
    free((char *)(uintptr_t)core->options.host);
    free(core);
}

void
client_core_get_stats(const struct client_core *core, struct client_core_stats *ret_stats)
{
    struct client_core_stats stats = {
        .in_flight_bytes = core->in_flight_bytes,
        .in_flight_bytes_highest = core->in_flight_bytes_highest,
        .replies_unknown = core->meta.replies_unknown,
        .reconnects = core->reconnects,
        .buffers_bytes = core->buffers.used_bytes + core->buffers.kept_bytes,
    };

    for (size_t i = 0; i < core->servers.count; i++)
        if (core->servers.items[i] != NULL)
            stats.replies_unknown += core->servers.items[i]->session.replies_unknown;
    *ret_stats = stats;
}
