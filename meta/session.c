/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections.  A session is in one of these:
 *
 *   new       waits for HELLO; anything else is an error that closes it
 *   open      requests and replies
 *   closing   an error reply was sent that ends the connection; nothing is read, the next tick
 *             closes the link
 *
 * A connection that its peer has given up can still bring what was on its way, long after what came
 * on a later one: a registration that says less of a disk than is known, a deletion of a volume
 * whose name has got another one since.  Requests of which that matters are asked back: they run
 * when the connection has answered a PING, as a living one does at once.  (Others name a lease, a
 * config epoch or an attempt.)
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

#define PING_AFTER_NS NS_PER_S

static const struct meta_handler handlers[] = {
    {OP_SERVER_REGISTER, &dl__server_register__descriptor, FROM_SERVER | ASKED_BACK,
     meta_run_server_register},
    {OP_SERVER_HEARTBEAT, &dl__server_heartbeat__descriptor, FROM_SERVER,
     meta_run_server_heartbeat},
    {OP_VOLUME_CREATE, &dl__volume_create__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_volume_create},
    {OP_VOLUME_LIST, &dl__volume_list__descriptor, FROM_CLIENT, meta_run_volume_list},
    {OP_VOLUME_INFO, &dl__volume_info__descriptor, FROM_CLIENT, meta_run_volume_info},
    {OP_VOLUME_RENAME, &dl__volume_rename__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_volume_rename},
    {OP_VOLUME_RESIZE, &dl__volume_resize__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_volume_resize},
    {OP_VOLUME_DELETE, &dl__volume_delete__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_volume_delete},
    {OP_ATTACH, &dl__attach__descriptor, FROM_CLIENT | ASKED_BACK, meta_run_attach},
    {OP_DETACH, &dl__detach__descriptor, FROM_CLIENT, meta_run_detach},
    {OP_FENCE_STATUS, &dl__fence_status__descriptor, FROM_CLIENT, meta_run_fence_status},
    {OP_MAP_GET, &dl__map_get__descriptor, FROM_CLIENT | FROM_SERVER, meta_run_map_get},
    {OP_ALLOCATE, &dl__allocate__descriptor, FROM_CLIENT, meta_run_allocate},
    {OP_EJECT, &dl__eject__descriptor, FROM_CLIENT, meta_run_eject},
    {OP_OWNER_WAITS, &dl__owner_waits__descriptor, FROM_CLIENT, meta_run_owner_waits},
    {OP_RECOVERY_REPORT, &dl__recovery_report__descriptor, FROM_SERVER, meta_run_recovery_report},
    {OP_BAD_SECTORS, &dl__bad_sectors__descriptor, FROM_SERVER, meta_run_bad_sectors},
    {OP_SERVER_DRAIN, &dl__server_drain__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_server_drain},
    {OP_SERVER_UNDRAIN, &dl__server_undrain__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_server_undrain},
    {OP_SERVER_REMOVE, &dl__server_remove__descriptor, FROM_CLIENT | ASKED_BACK,
     meta_run_server_remove},
    {OP_SERVER_SET, &dl__server_set__descriptor, FROM_CLIENT | ASKED_BACK, meta_run_server_set},
    {OP_VOLUME_STATUS, &dl__volume_status__descriptor, FROM_CLIENT, meta_run_volume_status},
    {OP_SEGMENT_LOCATE, &dl__segment_locate__descriptor, FROM_CLIENT, meta_run_segment_locate},
    {OP_EVENTS, &dl__events__descriptor, FROM_CLIENT, meta_run_events},
    {OP_SCRUB, &dl__scrub__descriptor, FROM_CLIENT, meta_run_scrub},
    {OP_SERVER_LIST, &dl__server_list__descriptor, FROM_CLIENT, meta_run_server_list},
    {OP_CLUSTER_STATUS, &dl__cluster_status__descriptor, FROM_CLIENT, meta_run_cluster_status},
};

const struct meta_handler *
meta_handler_find(uint16_t opcode)
{
    for (size_t i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++)
        if (handlers[i].opcode == opcode)
            return &handlers[i];
    return NULL;
}

/* --- sending --- */

static size_t
frame_bytes(const struct frame_out *frame)
{
    return frame->head_bytes + frame->body_tail_bytes;
}

static void
session_on_sent(struct frame_out *frame, int err)
{
    struct meta_session *session = frame->owner;

    (void)err;
    dl_assert(session->unsent_count > 0);
    session->unsent_count--;
    session->unsent_bytes -= frame_bytes(frame);
    session->progress_ns = env_now_ns(session->core->env);
    frame_out_destroy(frame);
    if (session->paused)
        meta_session_update_flow(session);
}

/* The frame is one of those that free themselves. */
void
meta_session_send(struct meta_session *session, struct frame_out *frame)
{
    frame->owner = session;
    frame->on_sent = session_on_sent;
    if (session->unsent_count++ == 0)
        session->progress_ns = env_now_ns(session->core->env);
    session->unsent_bytes += frame_bytes(frame);
    link_send(session->link, frame);
    meta_session_update_flow(session);
}

void
meta_session_fail(struct meta_session *session, uint16_t opcode, uint64_t request_id,
                  const struct dl_error *err)
{
    struct frame_out *frame = frame_out_create_error(opcode, request_id, err->code, err->text,
                                                     err->hint);

    session->core->stats.replies_error++;
    meta_log(session->core, META_LOG_DEBUG, "session", "%s: %s refused: %s", session->peer.text,
             opcode_name(opcode), err->text);
    if (frame == NULL)
        dl_assert_failed(__FILE__, __LINE__, __func__, "out of memory");
    meta_session_send(session, frame);
}

/* The connection ends with this reply; the tick closes it, so that the reply gets out first. */
static void
session_refuse(struct meta_session *session, uint16_t opcode, uint64_t request_id,
               const struct dl_error *err)
{
    meta_log(session->core, META_LOG_WARNING, "session", "%s: connection refused: %s",
             session->peer.text, err->text);
    session->closing = true;
    meta_session_fail(session, opcode, request_id, err);
}

static void
session_send_message(struct meta_session *session, uint16_t opcode, uint16_t flags,
                     uint64_t request_id, const ProtobufCMessage *message)
{
    struct frame_out *frame = frame_out_create_message(opcode, flags, request_id, 0, message);

    /* What we ask is small; CHUNK_DELETE is bounded by META_DELETE_BATCH. */
    if (frame == NULL)
        dl_assert_failed(__FILE__, __LINE__, __func__, "a request of ours is too large");
    meta_session_send(session, frame);
}

void
meta_peer_request_send(struct meta_session *session, struct meta_peer_request *request,
                       uint16_t opcode, const ProtobufCMessage *message,
                       meta_peer_reply_fn on_reply)
{
    dl_assert(request->session == NULL);
    request->id = ++session->next_request_id;
    request->session = session;
    request->on_reply = on_reply;
    HASH_ADD(hh, session->requests, id, sizeof(request->id), request);
    session_send_message(session, opcode, 0, request->id, message);
}

void
meta_peer_request_cancel(struct meta_peer_request *request)
{
    if (request->session == NULL)
        return;
    HASH_DEL(request->session->requests, request);
    request->session = NULL;
}

void
meta_session_notify(struct meta_session *session, uint16_t opcode, const ProtobufCMessage *message)
{
    session_send_message(session, opcode, 0, ++session->next_request_id, message);
}

void
meta_session_close(struct meta_session *session)
{
    session->closing = true;
    if (session->closed)
        return;
    session->closed = true;
    link_close(session->link);
}

/* --- flow control --- */

void
meta_session_update_flow(struct meta_session *session)
{
    uint32_t count = max_u32(session->op_count, session->unsent_count);
    bool pause = session->paused ? count > META_SESSION_OPS_MAX / 2 ||
                                       session->unsent_bytes > META_SESSION_UNSENT_BYTES_MAX / 2
                                 : count >= META_SESSION_OPS_MAX ||
                                       session->unsent_bytes >= META_SESSION_UNSENT_BYTES_MAX;

    /* The answer that requests wait for comes behind others. */
    if (session->proof.session != NULL)
        pause = false;

    if (session->core->phase == META_LOADING)
        pause = true;
    if (pause == session->paused || !session->link->up)
        return;
    session->paused = pause;
    session->heard_ns = env_now_ns(session->core->env);
    link_pause(session->link, pause);
}

/* --- HELLO --- */

static int
hello_check_cluster(const struct meta_core *core, const Dl__Hello *hello, struct dl_error *err)
{
    char theirs[2 * META_ID_BYTES + 1] = "none";

    if (hello->cluster_id.len == 0 && hello->role == DL__ROLE__ROLE_CLIENT)
        return 0; /* it learns it from the reply */
    if (hello->cluster_id.len == META_ID_BYTES &&
        memcmp(hello->cluster_id.data, core->cluster_id, META_ID_BYTES) == 0)
        return 0;
    for (size_t i = 0; i < hello->cluster_id.len && i < META_ID_BYTES; i++)
        (void)snprintf(theirs + 2 * i, 3, "%02x", hello->cluster_id.data[i]);
    return dl_error_set(err, -DL_E_CLUSTER_MISMATCH,
                        "this metadata service is of cluster %s, the peer of cluster %s",
                        meta_id_format(core->cluster_id).text,
                        hello->cluster_id.len == META_ID_BYTES
                            ? meta_id_format(hello->cluster_id.data).text
                            : theirs);
}

static int
hello_check(const struct meta_core *core, const Dl__Hello *hello, struct dl_error *err)
{
    if (hello->version_min > WIRE_VERSION || hello->version_max < WIRE_VERSION_MIN)
        return dl_error_set(err, -DL_E_VERSION_UNSUPPORTED,
                            "this metadata service speaks versions %u to %u, the peer %u to %u",
                            WIRE_VERSION_MIN, WIRE_VERSION, hello->version_min, hello->version_max);
    if (hello->role != DL__ROLE__ROLE_CLIENT && hello->role != DL__ROLE__ROLE_CHUNKSERVER)
        return dl_error_set(err, -DL_E_ROLE_WRONG,
                            "a metadata service takes clients and chunkservers, not role %d",
                            (int)hello->role);
    if (hello->features_required != 0)
        return dl_error_set(err, -DL_E_VERSION_UNSUPPORTED,
                            "the peer requires features 0x%" PRIx64
                            ", this metadata service has none",
                            hello->features_required);
    if (hello->authentication.len != 0)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "the peer wants to authenticate itself; this version can not");
    if (hello->instance.len != META_ID_BYTES)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "HELLO has an instance of %zu bytes, not %u", hello->instance.len,
                            META_ID_BYTES);
    if (hello->role == DL__ROLE__ROLE_CHUNKSERVER && !meta_id_is_valid(hello->server_uuid))
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "HELLO of a chunkserver without the uuid of its disk");
    return hello_check_cluster(core, hello, err);
}

static void
session_accept_hello(struct meta_session *session, const Dl__Hello *hello, uint64_t request_id)
{
    struct meta_core *core = session->core;
    Dl__Hello reply = DL__HELLO__INIT;
    uint32_t version;

    dl_assert(hello != NULL);
    version = hello->version_max < WIRE_VERSION ? hello->version_max : WIRE_VERSION;
    session->hello = true;
    session->role = hello->role;
    memcpy(session->instance, hello->instance.data, META_ID_BYTES);
    if (hello->role == DL__ROLE__ROLE_CHUNKSERVER)
        memcpy(session->server_uuid, hello->server_uuid.data, META_ID_BYTES);
    meta_text_clean(session->software, hello->software);

    reply.version_min = version;
    reply.version_max = version;
    reply.cluster_id = (ProtobufCBinaryData){META_ID_BYTES, core->cluster_id};
    reply.role = DL__ROLE__ROLE_META;
    reply.software = (char *)(uintptr_t)meta_software();
    reply.instance = (ProtobufCBinaryData){META_ID_BYTES, core->instance};
    session_send_message(session, OP_HELLO, FRAME_REPLY, request_id, &reply.base);
}

static void
session_on_hello(struct meta_session *session, const struct frame *frame)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__hello__descriptor);
    struct dl_error err;
    int result;

    if (message == NULL)
        result = dl_error_set(&err, -DL_E_MESSAGE_MALFORMED, "a HELLO that is no message");
    else
        result = hello_check(session->core, (const Dl__Hello *)message, &err);
    if (result < 0)
        session_refuse(session, OP_HELLO, frame->request_id, &err);
    else
        session_accept_hello(session, (const Dl__Hello *)message, frame->request_id);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
}

/* --- frames --- */

static void
session_on_reply(struct meta_session *session, const struct frame *frame)
{
    struct meta_peer_request *request;
    uint64_t id = frame->request_id;

    HASH_FIND(hh, session->requests, &id, sizeof(id), request);
    if (request == NULL) {
        if (frame->opcode != OP_VOLUME_CHANGED)
            session->core->stats.replies_unmatched++;
        return;
    }
    meta_peer_request_cancel(request);
    request->on_reply(request, frame, 0); /* may free request */
}

static int
session_check_request(const struct meta_session *session, const struct frame *frame,
                      const struct meta_handler *handler, struct dl_error *err)
{
    const char *name = opcode_name(frame->opcode);
    unsigned from = session->role == DL__ROLE__ROLE_CLIENT ? FROM_CLIENT : FROM_SERVER;

    if (session->core->phase != META_SERVING)
        return dl_error_set(err, -DL_E_SHUTTING_DOWN, "this metadata service is shutting down");
    if (handler == NULL)
        return dl_error_set(err, -DL_E_OPCODE_UNKNOWN, "a metadata service does not answer %s",
                            name);
    if ((handler->flags & from) == 0)
        return dl_error_set(err, -DL_E_ROLE_WRONG, "%s is not for a %s to ask", name,
                            session->role == DL__ROLE__ROLE_CLIENT ? "client" : "chunkserver");
    if (frame->payload_bytes != 0)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED, "%s with a payload", name);
    return 0;
}

static void
session_on_request(struct meta_session *session, const struct frame *frame)
{
    const struct meta_handler *handler = meta_handler_find(frame->opcode);
    ProtobufCMessage *message = NULL;
    struct dl_error err;
    int result = session_check_request(session, frame, handler, &err);

    if (result == 0) {
        message = frame_unpack(frame, handler->type);
        if (message == NULL)
            result = dl_error_set(&err, -DL_E_MESSAGE_MALFORMED,
                                  "the body of %s is no such message", opcode_name(frame->opcode));
    }
    if (result < 0) {
        meta_session_fail(session, frame->opcode, frame->request_id, &err);
        return;
    }
    session->core->stats.requests++;
    meta_op_start(session, handler, frame->request_id, message);
}

static void
session_on_frame(void *context, struct link *link, const struct frame *frame)
{
    struct meta_core *core = context;
    struct meta_session *session = link->user;
    struct dl_error err;

    if (session == NULL || session->closing || core->phase == META_FAILED)
        return;
    session->heard_ns = env_now_ns(core->env);
    if (session->server != NULL)
        meta_server_heard(session->server);
    if (!session->hello && (frame_is_reply(frame) || frame->opcode != OP_HELLO)) {
        (void)dl_error_set(&err, -DL_E_MESSAGE_MALFORMED, "%s before HELLO",
                           opcode_name(frame->opcode));
        session_refuse(session, frame->opcode, frame->request_id, &err);
    } else if (!session->hello) {
        session_on_hello(session, frame);
    } else if (frame_is_reply(frame)) {
        session_on_reply(session, frame);
    } else if (frame->opcode == OP_PING) {
        session_send_message(session, OP_PING, FRAME_REPLY, frame->request_id, NULL);
    } else if (frame->opcode == OP_HELLO) {
        (void)dl_error_set(&err, -DL_E_MESSAGE_MALFORMED, "a second HELLO on one connection");
        session_refuse(session, frame->opcode, frame->request_id, &err);
    } else {
        session_on_request(session, frame);
    }
}

/* --- links --- */

static void
session_on_accept(void *context, struct link *link)
{
    struct meta_core *core = context;
    struct meta_session *session;

    link->user = NULL;
    if (core->phase == META_FAILED || core->phase == META_STOPPING) {
        link_close(link);
        return;
    }
    if (core->session_count >= core->options.sessions_max) {
        meta_log(core, META_LOG_WARNING, "session",
                 "%s: connection refused: there are %" PRIu32 " already",
                 dl_address_format(&link->peer).text, core->session_count);
        link_close(link);
        return;
    }
    session = meta_alloc(sizeof(*session));
    session->core = core;
    session->link = link;
    session->peer = dl_address_format(&link->peer);
    session->accepted_ns = session->heard_ns = env_now_ns(core->env);
    list_init(&session->owned);
    list_init(&session->readers);
    list_init(&session->ops);
    list_init(&session->proof_ops);
    list_push_back(&core->sessions, &session->node);
    core->session_count++;
    link->user = session;
    meta_session_update_flow(session);
}

static void
session_on_up(void *context, struct link *link)
{
    (void)context;
    (void)link;
    dl_unreachable(); /* we never connect */
}

/* No request to a metadata service has a payload. */
static void *
session_on_payload(void *context, struct link *link, const struct frame *frame)
{
    (void)context;
    (void)link;
    (void)frame;
    return NULL;
}

static void
session_on_down(void *context, struct link *link, int err)
{
    struct meta_core *core = context;
    struct meta_session *session = link->user;

    if (session == NULL)
        return;
    link->user = NULL;
    session->closing = session->closed = true;
    meta_log(core, META_LOG_DEBUG, "session", "%s: connection closed: %s", session->peer.text,
             dl_err_str(err));
    while (!list_is_empty(&session->ops))
        meta_op_session_down(list_first_entry(&session->ops, struct meta_op, session_node));
    while (session->requests != NULL) {
        struct meta_peer_request *request = session->requests;

        meta_peer_request_cancel(request);
        request->on_reply(request, NULL, -DL_E_CONNECTION_LOST); /* may free request */
    }
    meta_lease_session_down(core, session);
    if (session->server != NULL)
        meta_server_session_down(core, session->server);
    list_remove(&session->node);
    core->session_count--;
    free(session);
}

const struct link_events meta_link_events = {
    .on_accept = session_on_accept,
    .on_up = session_on_up,
    .on_payload = session_on_payload,
    .on_frame = session_on_frame,
    .on_down = session_on_down,
};

void
meta_session_free(struct meta_session *session)
{
    while (session->requests != NULL)
        meta_peer_request_cancel(session->requests);
    free(session);
}

static void
session_on_ping(struct meta_peer_request *request, const struct frame *frame, int err)
{
    (void)request; /* heard_ns says it all */
    (void)frame;
    (void)err;
}

/* --- asking back --- */

static void
session_on_proof(struct meta_peer_request *request, const struct frame *frame, int err)
{
    struct meta_session *session = list_entry(request, struct meta_session, proof);

    (void)err;
    if (frame == NULL)
        return; /* what waits ends with the connection */
    while (!list_is_empty(&session->proof_ops))
        meta_op_run_soon(list_first_entry(&session->proof_ops, struct meta_op, node));
    meta_session_update_flow(session);
}

void
meta_session_ask_back(struct meta_session *session, struct meta_op *op)
{
    meta_op_wait(op, &session->proof_ops);
    if (session->proof.session != NULL)
        return;
    session->proof_ns = env_now_ns(session->core->env);
    meta_peer_request_send(session, &session->proof, OP_PING, NULL, session_on_proof);
}

/* --- silence --- */

void
meta_session_tick(struct meta_session *session, uint64_t now_ns)
{
    const struct meta_options *options = &session->core->options;

    if (session->closing) {
        meta_session_close(session);
        return;
    }
    if (!session->hello) {
        if (session->core->phase == META_LOADING ||
            now_ns - session->accepted_ns < options->hello_ns)
            return;
        meta_log(session->core, META_LOG_WARNING, "session", "%s: closed: no HELLO within %s",
                 session->peer.text, text_of_duration(options->hello_ns).text);
        meta_session_close(session);
        return;
    }
    if (session->unsent_count > 0 && now_ns - session->progress_ns >= 2 * options->silent_ns) {
        meta_log(session->core, META_LOG_WARNING, "session",
                 "%s: closed: it took none of %" PRIu32 " answers for %s", session->peer.text,
                 session->unsent_count, text_of_duration(now_ns - session->progress_ns).text);
        meta_session_close(session);
        return;
    }
    if (session->proof.session != NULL && now_ns - session->proof_ns >= options->silent_ns) {
        meta_log(session->core, META_LOG_WARNING, "session",
                 "%s: closed: it did not answer a PING for %s", session->peer.text,
                 text_of_duration(now_ns - session->proof_ns).text);
        meta_session_close(session);
        return;
    }
    /* A paused connection is silent because we don't listen. */
    if (!session->paused && now_ns - session->heard_ns >= options->silent_ns) {
        meta_log(session->core, META_LOG_WARNING, "session", "%s: closed: silent for %s",
                 session->peer.text, text_of_duration(now_ns - session->heard_ns).text);
        meta_session_close(session);
        return;
    }
    if (now_ns - session->heard_ns >= PING_AFTER_NS && session->ping.session == NULL)
        meta_peer_request_send(session, &session->ping, OP_PING, NULL, session_on_ping);
}
