/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.c: the chunkserver's side of a client's link: HELLO, dispatch, refusals, silence.  See
 * core_internal.h.
 *
 * Clients come with data requests, other chunkservers with PULL.
 *
 * A link is greeted by the first frame, HELLO, or refused; nothing else is looked at before.  What
 * violates the protocol is answered with an error where the stream is in step, and the link is
 * closed SESSION_LINGER_NS later, or when the peer closes it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core_internal.h"
#include "common/assert.h"
#include "common/log.h"
#include "common/text.h"
#include "common/version.h"
#include "dlblk/error.h"

struct session_name {
    char text[DL_ADDRESS_HOST_BYTES + 40];
};

/* For the log. */
static struct session_name
session_name(const struct session *session)
{
    struct session_name name;

    (void)snprintf(name.text, sizeof(name.text), "link %lu %s", session->link_id,
                   dl_address_format(&session->link->peer).text);
    return name;
}

/* --- replies --- */

void
session_reply(struct session *session, struct frame_out *reply)
{
    dl_assert(session->link != NULL);
    if (session->replies_in_link++ == 0)
        session->progress_ns = env_now_ns(session->core->env);
    link_send(session->link, reply);
}

void
session_reply_sent(struct session *session)
{
    dl_assert(session->replies_in_link > 0);
    session->replies_in_link--;
    session->progress_ns = env_now_ns(session->core->env);
}

static void
session_on_small_sent(struct frame_out *frame, int err)
{
    struct session *session = frame->owner;

    (void)err;
    frame_out_destroy(frame);
    session->small_in_link--;
    session_reply_sent(session);
    if (session->paused)
        session_update_pause(session);
}

/*
 * A reply that is its own memory: nobody waits for its end.  NULL: no memory, the peer will ask
 * again.
 */
void
session_send(struct session *session, struct frame_out *frame)
{
    if (frame == NULL || session->link == NULL) {
        frame_out_destroy(frame);
        return;
    }
    frame->owner = session;
    frame->on_sent = session_on_small_sent;
    session->small_in_link++;
    session_reply(session, frame);
}

/* --- life --- */

void
session_close(struct session *session)
{
    if (session->link == NULL || session->closed)
        return;
    session->closing = true;
    session->closed = true;
    link_close(session->link);
}

static void
session_on_linger(struct env_timer *timer)
{
    session_close(list_entry(timer, struct session, linger_timer));
}

static struct session *
session_create(struct chunkserver_core *core, struct link *link)
{
    struct session *session = calloc(1, sizeof(*session));

    if (session == NULL)
        return NULL;
    session->core = core;
    session->link = link;
    session->link_id = link->id;
    session->heard_ns = env_now_ns(core->env);
    session->linger_timer.fn = session_on_linger;
    link->user = session;
    list_push_back(&core->sessions, &session->node);
    core->stats.sessions++;
    core->stats.sessions_accepted++;
    return session;
}

void
session_operation_ended(struct session *session)
{
    struct chunkserver_core *core = session->core;

    dl_assert(session->operations > 0);
    session->operations--;
    if (session->operations == 0 && session->link == NULL) {
        list_remove(&session->node);
        free(session);
    }
    core_stop_step(core);
}

/*
 * One who holds so much of the read buffers, or so many small replies, doesn't take its replies, or
 * asks for too much at a time.
 */
static bool
session_has_too_much(const struct session *session)
{
    return session->small_in_link >= SESSION_SMALL_MAX ||
           session->read_buffer_bytes >= session->core->options.read_buffer_bytes / 2;
}

void
session_update_pause(struct session *session)
{
    struct chunkserver_core *core = session->core;
    bool pause = core->starved || core->stopping || session_has_too_much(session) ||
                 (session->is_chunkserver && core->pull_ops.free_count == 0);

    /*
     * In the middle of a payload: its place is taken already, and is free again only when it has
     * arrived.
     */
    if (session->link == NULL || session->closed || session->paused == pause ||
        (pause && session->incoming != NULL))
        return;
    session->paused = pause;
    session->heard_ns = env_now_ns(core->env);
    link_pause(session->link, pause);
}

/* The link will be closed; what comes until then is ignored. */
static void
session_close_soon(struct session *session)
{
    if (session->closing)
        return;
    session->closing = true;
    env_timer_start(session->core->env, &session->linger_timer, SESSION_LINGER_NS);
}

void
session_refuse(struct session *session, const struct frame *frame, int err)
{
    session_send(session,
                 frame_out_create_error(frame->opcode, frame->request_id, err, NULL, NULL));
}

/* An error reply, a line in the log, and the link is closed. */
static void
session_turn_away(struct session *session, const struct frame *frame, int err, const char *what)
{
    log_warning("chunkserver", session_name(session).text, "closed: %s: %s: %s",
                opcode_name(frame->opcode), what, dl_err_str(err));
    session_send(session,
                 frame_out_create_error(frame->opcode, frame->request_id, err, what, NULL));
    session_close_soon(session);
}

static void
session_violation(struct session *session, const struct frame *frame, int err, const char *what)
{
    session->core->stats.violations++;
    session_turn_away(session, frame, err, what);
}

void
session_malformed(struct session *session, const struct frame *frame, int err)
{
    session_violation(session, frame, err, "the request is malformed");
}

/* --- HELLO --- */

static void
hex_of_uuid(const uint8_t *uuid, size_t length, char text[2 * CHUNKSERVER_UUID_BYTES + 1])
{
    if (length > CHUNKSERVER_UUID_BYTES)
        length = CHUNKSERVER_UUID_BYTES;
    text[0] = '\0';
    for (size_t i = 0; i < length; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", uuid[i]);
}

static bool
bytes_are_uuid(const ProtobufCBinaryData *bytes, const uint8_t *uuid)
{
    return bytes->len == CHUNKSERVER_UUID_BYTES &&
           memcmp(bytes->data, uuid, CHUNKSERVER_UUID_BYTES) == 0;
}

static int
hello_check_uuids(const struct chunkserver_core *core, const Dl__Hello *hello, struct dl_error *err)
{
    char theirs[2 * CHUNKSERVER_UUID_BYTES + 1];
    char ours[2 * CHUNKSERVER_UUID_BYTES + 1];

    if (!bytes_are_uuid(&hello->cluster_id, core->options.cluster_id)) {
        hex_of_uuid(hello->cluster_id.data, hello->cluster_id.len, theirs);
        hex_of_uuid(core->options.cluster_id, CHUNKSERVER_UUID_BYTES, ours);
        return dl_error_set(err, -DL_E_CLUSTER_MISMATCH,
                            "this chunkserver belongs to cluster %s, the client asked for %s", ours,
                            theirs[0] == '\0' ? "none" : theirs);
    }
    if (!bytes_are_uuid(&hello->server_uuid, core->options.server_uuid)) {
        hex_of_uuid(hello->server_uuid.data, hello->server_uuid.len, theirs);
        hex_of_uuid(core->options.server_uuid, CHUNKSERVER_UUID_BYTES, ours);
        return dl_error_set(err, -DL_E_SERVER_UNKNOWN,
                            "this chunkserver serves disk %s, the client asked for %s", ours,
                            theirs[0] == '\0' ? "none" : theirs);
    }
    return 0;
}

static int
hello_check(const struct chunkserver_core *core, const Dl__Hello *hello, struct dl_error *err)
{
    if (hello->version_min > hello->version_max || hello->version_max < WIRE_VERSION_MIN ||
        hello->version_min > WIRE_VERSION)
        return dl_error_set(
            err, -DL_E_VERSION_UNSUPPORTED,
            "this chunkserver speaks protocol versions %u to %u, the client %u to %u",
            WIRE_VERSION_MIN, WIRE_VERSION, hello->version_min, hello->version_max);
    if (hello->role != DL__ROLE__ROLE_CLIENT && hello->role != DL__ROLE__ROLE_CHUNKSERVER)
        return dl_error_set(err, -DL_E_ROLE_WRONG,
                            "a chunkserver serves clients (role %d) and chunkservers (role %d), "
                            "the peer came in role %d",
                            (int)DL__ROLE__ROLE_CLIENT, (int)DL__ROLE__ROLE_CHUNKSERVER,
                            (int)hello->role);
    if (hello->features_required != 0)
        return dl_error_set(err, -DL_E_VERSION_UNSUPPORTED,
                            "the client requires features %#lx, this chunkserver has none of them",
                            (unsigned long)hello->features_required);
    if (hello->authentication.len != 0)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "the client sent an authentication, this version has none");
    if (hello_check_uuids(core, hello, err) != 0)
        return err->code;
    if (!core->admitted)
        return dl_error_set(err, -DL_E_META_UNREACHABLE,
                            "this chunkserver has started and was not admitted by the metadata "
                            "service yet");
    return 0;
}

static void
session_send_hello(struct session *session, const struct frame *frame, const Dl__Hello *hello)
{
    struct chunkserver_options *options = &session->core->options;
    Dl__Hello reply = DL__HELLO__INIT;
    uint32_t version = hello->version_max < WIRE_VERSION ? hello->version_max : WIRE_VERSION;

    reply.version_min = version;
    reply.version_max = version;
    reply.cluster_id = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->cluster_id};
    reply.role = DL__ROLE__ROLE_CHUNKSERVER;
    reply.software = (char *)(uintptr_t)dlblk_version_text("dlblk-chunkserver");
    reply.server_uuid = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->server_uuid};
    reply.instance = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->instance};
    session_send(session, frame_out_create_message(OP_HELLO, FRAME_REPLY, frame->request_id, 0,
                                                   &reply.base));
}

static void
session_on_hello(struct session *session, const struct frame *frame)
{
    ProtobufCMessage *message = NULL;
    const Dl__Hello *hello;
    struct dl_error err = {0};

    if (frame->opcode != OP_HELLO || frame_is_reply(frame)) {
        session_violation(session, frame, -DL_E_MESSAGE_MALFORMED, "the first frame must be HELLO");
        return;
    }
    message = frame_unpack(frame, &dl__hello__descriptor);
    if (message == NULL) {
        session_malformed(session, frame, -DL_E_MESSAGE_MALFORMED);
        return;
    }
    hello = (const Dl__Hello *)(const void *)message;
    if (hello_check(session->core, hello, &err) == 0) {
        session->greeted = true;
        session->is_chunkserver = hello->role == DL__ROLE__ROLE_CHUNKSERVER;
        session_send_hello(session, frame, hello);
        log_debug("chunkserver", session_name(session).text, "%s %s",
                  session->is_chunkserver ? "chunkserver" : "client",
                  text_quote(hello->software).text);
    } else {
        session->core->stats.greetings_refused++;
        session_turn_away(session, frame, err.code, err.text);
    }
    protobuf_c_message_free_unpacked(message, NULL);
}

/* --- events of the link --- */

static void
session_on_accept(void *core_pointer, struct link *link)
{
    struct chunkserver_core *core = core_pointer;
    struct session *session = session_create(core, link);

    if (session == NULL)
        link_close(link);
    else if (core->stopping)
        session_close(session);
    else
        session_update_pause(session);
}

static void *
session_on_payload(void *core_pointer, struct link *link, const struct frame *frame)
{
    struct chunkserver_core *core = core_pointer;
    struct session *session = link->user;

    if (session == NULL || !session->greeted || session->closing || session->is_chunkserver ||
        frame->opcode != OP_WRITE || frame_is_reply(frame))
        return NULL;
    session->heard_ns = env_now_ns(core->env);
    return write_op_acquire(core, session, frame->payload_bytes)->buffer;
}

static void
session_on_ping(struct session *session, const struct frame *frame)
{
    session_send(session,
                 frame_out_create_message(OP_PING, FRAME_REPLY, frame->request_id, 0, NULL));
}

static void
session_dispatch_client(struct session *session, const struct frame *frame)
{
    switch (frame->opcode) {
    case OP_READ:
        session->core->foreground_ns = session->heard_ns;
        read_op_receive(session, frame);
        break;
    case OP_WRITE:
        session->core->foreground_ns = session->heard_ns;
        write_op_receive(session, frame);
        break;
    case OP_STABLE:
        stable_op_receive(session, frame);
        break;
    case OP_PENDING:
        pending_op_receive(session, frame);
        break;
    case OP_REPAIR:
        repair_receive(session, frame);
        break;
    case OP_PULL:
        session_refuse(session, frame, -DL_E_ROLE_WRONG);
        break;
    default:
        session_refuse(session, frame, -DL_E_OPCODE_UNKNOWN);
        break;
    }
}

static void
session_dispatch_chunkserver(struct session *session, const struct frame *frame)
{
    switch (frame->opcode) {
    case OP_PULL:
        pull_op_receive(session, frame);
        break;
    case OP_READ:
    case OP_WRITE:
    case OP_STABLE:
    case OP_PENDING:
    case OP_REPAIR:
        session_refuse(session, frame, -DL_E_ROLE_WRONG);
        break;
    default:
        session_refuse(session, frame, -DL_E_OPCODE_UNKNOWN);
        break;
    }
}

static void
session_dispatch(struct session *session, const struct frame *frame)
{
    if (!session->greeted)
        session_on_hello(session, frame);
    else if (frame_is_reply(frame))
        return; /* we ask those who connect nothing: an answer to nothing */
    else if (frame->opcode == OP_PING)
        session_on_ping(session, frame);
    else if (session->is_chunkserver)
        session_dispatch_chunkserver(session, frame);
    else
        session_dispatch_client(session, frame);
}

static void
session_on_frame(void *core_pointer, struct link *link, const struct frame *frame)
{
    struct chunkserver_core *core = core_pointer;
    struct session *session = link->user;

    if (session == NULL || session->closing)
        return;
    session->heard_ns = env_now_ns(core->env);
    session_dispatch(session, frame);
    dl_assert(session->incoming == NULL);
    session_update_pause(session);
}

static void
session_on_down(void *core_pointer, struct link *link, int err)
{
    struct chunkserver_core *core = core_pointer;
    struct session *session = link->user;

    if (session == NULL)
        return;
    link->user = NULL;
    dl_assert(session->replies_in_link == 0);
    dl_assert(core->stats.sessions > 0);
    core->stats.sessions--;
    log_debug("chunkserver", session_name(session).text, "down: %s", dl_err_str(err));
    env_timer_stop(core->env, &session->linger_timer);
    session->link = NULL;
    session->operations++; /* ours, so that it outlives the release below */
    if (session->incoming != NULL) {
        struct write_op *op = session->incoming;

        session->incoming = NULL;
        write_op_release(op);
    }
    session_operation_ended(session);
}

const struct link_events *
chunkserver_core_events(void)
{
    static const struct link_events events = {
        .on_accept = session_on_accept,
        .on_payload = session_on_payload,
        .on_frame = session_on_frame,
        .on_down = session_on_down,
    };

    return &events;
}

/* --- silence --- */

/*
 * How long somebody may take none of his replies. They have their memory, and what was asked for
 * besides: where that is all there is, everybody is paused until it comes back, and would take us
 * for silent.
 */
static uint64_t
session_stuck_max_ns(const struct session *session, uint64_t now_ns)
{
    const struct chunkserver_core *core = session->core;

    return core->starved && now_ns - core->starved_ns >= SESSION_STARVED_NS ? SESSION_STARVED_NS
                                                                            : SESSION_SILENCE_NS;
}

static void
session_tick(struct session *session, uint64_t now_ns)
{
    uint64_t stuck_max_ns = session_stuck_max_ns(session, now_ns);

    if (session->link == NULL || session->closing)
        return;
    if (session->replies_in_link > 0 && now_ns - session->progress_ns > stuck_max_ns) {
        log_warning("chunkserver", session_name(session).text,
                    "closed: it took none of %u replies for %s", session->replies_in_link,
                    text_of_duration(now_ns - session->progress_ns).text);
        session_close(session);
    } else if (!session->paused && now_ns - session->heard_ns > SESSION_SILENCE_NS) {
        log_info("chunkserver", session_name(session).text, "closed: silent for %s",
                 text_of_duration(SESSION_SILENCE_NS).text);
        session_close(session);
    }
}

void
sessions_tick(struct chunkserver_core *core, uint64_t now_ns)
{
    struct session *session;

    /* link_close() runs no callback: the list stays as it is. */
    list_for_each_entry (session, &core->sessions, node)
        session_tick(session, now_ns);
}
