/* SPDX-License-Identifier: Apache-2.0 */
#include "client/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "dlblk/error.h"

#define SESSION_SLOTS_FIRST 64u
/* A timer that is so late says that we were not there ourselves. */
#define SESSION_LATE_NS 500000000ull
/* In place of a table index: the session's own requests. */
#define SESSION_IDX_HELLO UINT32_MAX
#define SESSION_IDX_PING  (UINT32_MAX - 1)

static const struct sm_state session_states[] = {
    [SESSION_IDLE] = {"IDLE", SM_EDGE(SESSION_CONNECTING) | SM_EDGE(SESSION_STOPPED)},
    [SESSION_CONNECTING] = {"CONNECTING", SM_EDGE(SESSION_HELLO) | SM_EDGE(SESSION_WAIT) |
                                              SM_EDGE(SESSION_STOPPED)},
    [SESSION_HELLO] = {"HELLO",
                       SM_EDGE(SESSION_UP) | SM_EDGE(SESSION_WAIT) | SM_EDGE(SESSION_STOPPED)},
    [SESSION_UP] = {"UP", SM_EDGE(SESSION_WAIT) | SM_EDGE(SESSION_STOPPED)},
    [SESSION_WAIT] = {"WAIT", SM_EDGE(SESSION_CONNECTING) | SM_EDGE(SESSION_STOPPED)},
    [SESSION_STOPPED] = {"STOPPED", SM_FINAL},
};
static const struct sm_table session_table = SM_TABLE("client session", session_states);

static void session_connect(struct client_session *session);
static void session_start_check(struct client_session *session, uint64_t silence_ns);

/* --- the table of calls --- */

static uint64_t
session_request_id(uint32_t generation, uint32_t idx)
{
    return (uint64_t)generation << 32 | idx;
}

static int
session_grow_table(struct client_session *session)
{
    uint32_t count = session->slot_count == 0 ? SESSION_SLOTS_FIRST : session->slot_count * 2;
    struct session_slot *slots = reallocarray(session->slots, count, sizeof(*slots));

    if (slots == NULL)
        return -DL_E_NO_MEMORY;
    for (uint32_t i = count; i > session->slot_count; i--) {
        slots[i - 1] = (struct session_slot){.generation = 1, .next_free = session->free_head};
        session->free_head = i;
    }
    session->slots = slots;
    session->slot_count = count;
    return 0;
}

uint64_t
client_session_begin(struct client_session *session, struct session_call *call, uint16_t opcode)
{
    struct session_slot *slot;

    dl_assert(client_session_is_up(session));
    dl_assert(call->session == NULL);
    if (session->free_head == 0 && session_grow_table(session) != 0)
        return 0;
    call->table_idx = session->free_head - 1;
    slot = &session->slots[call->table_idx];
    session->free_head = slot->next_free;
    slot->call = call;
    session->call_count++;
    call->session = session;
    call->opcode = opcode;
    call->frame_in_link = false;
    call->receiving = false;
    call->replied = false;
    call->frame_sent = false;
    call->err = 0;
    return session_request_id(slot->generation, call->table_idx);
}

/* The place is free again, and its next use has another generation. */
static void
session_forget(struct session_call *call)
{
    struct client_session *session = call->session;
    struct session_slot *slot = &session->slots[call->table_idx];

    dl_assert(slot->call == call);
    slot->call = NULL;
    slot->generation++;
    if (slot->generation == 0)
        slot->generation = 1;
    slot->next_free = session->free_head;
    session->free_head = call->table_idx + 1;
    dl_assert(session->call_count > 0);
    session->call_count--;
    call->session = NULL;
}

static struct session_call *
session_find(struct client_session *session, uint64_t request_id)
{
    uint32_t idx = (uint32_t)request_id;

    if (idx >= session->slot_count || session->slots[idx].generation != request_id >> 32)
        return NULL;
    return session->slots[idx].call;
}

static void
session_call_end(struct session_call *call, int err)
{
    dl_assert(!call->frame_in_link);
    session_forget(call);
    call->on_done(call, err);
}

static void
session_on_call_sent(struct frame_out *frame, int err)
{
    struct session_call *call = list_entry(frame, struct session_call, frame);

    dl_assert(call->frame_in_link);
    call->frame_in_link = false;
    call->frame_sent = err == 0;
    if (call->replied)
        session_call_end(call, call->err);
}

void
client_session_send(struct session_call *call)
{
    dl_assert(client_session_is_up(call->session));
    call->frame.on_sent = session_on_call_sent;
    call->frame_in_link = true;
    link_send(call->session->link, &call->frame);
}

void
client_session_send_message(struct session_call *call, struct frame_out *frame)
{
    dl_assert(client_session_is_up(call->session));
    call->frame_sent = true;
    link_send(call->session->link, frame);
}

bool
client_session_cancel(struct session_call *call)
{
    if (call->frame_in_link || call->receiving) {
        client_session_reset(call->session);
        return false;
    }
    session_forget(call);
    return true;
}

/* --- connecting --- */

void
client_session_set_addresses(struct client_session *session, const struct dl_address *addresses,
                             uint32_t count)
{
    dl_assert(count > 0);
    dl_assert(count <= SESSION_ADDRESSES_MAX);
    memcpy(session->addresses, addresses, count * sizeof(*addresses));
    session->address_count = count;
    if (session->address_idx >= count)
        session->address_idx = 0;
}

static void
session_stopped(struct client_session *session)
{
    env_timer_stop(session->env, &session->timer);
    sm_move(&session->sm, SESSION_STOPPED);
    session->events->on_stopped(session);
}

/* Wait, then try again, at the next address if there are several. */
static void
session_wait(struct client_session *session)
{
    uint64_t wait_ns = session->refused ? session->backoff_max_ns : session->backoff_ns;

    sm_move(&session->sm, SESSION_WAIT);
    if (env_now_ns(session->env) - session->down_since_ns < session->quick_ns)
        wait_ns = SESSION_QUICK_NS;
    else
        session->backoff_ns *= 2;
    if (session->backoff_ns > session->backoff_max_ns)
        session->backoff_ns = session->backoff_max_ns;
    /* Between a half and one and a half: many clients don't come back in the same moment. */
    wait_ns = wait_ns / 2 + env_random(session->env) % wait_ns;
    env_timer_start(session->env, &session->timer, wait_ns);
}

static void
session_say_problem(struct client_session *session, const char *text)
{
    session->explained = true;
    (void)snprintf(session->problem, sizeof(session->problem), "%s: %s",
                   dl_address_format(&session->addresses[session->address_idx]).text, text);
}

static void
session_end_calls(struct client_session *session)
{
    for (uint32_t i = 0; i < session->slot_count; i++) {
        struct session_call *call = session->slots[i].call;

        if (call != NULL)
            session_call_end(call, call->replied ? call->err : -DL_E_CONNECTION_LOST);
    }
    dl_assert(session->call_count == 0);
}

static void
session_on_down(void *owner, struct link *link, int err)
{
    struct client_session *session = link->user;
    bool was_up = session->sm.state == SESSION_UP;

    (void)owner;
    dl_assert(link == session->link);
    dl_assert(!session->ping_in_link);
    if (!session->explained)
        session_say_problem(session, dl_err_str(err));
    session->link = NULL;
    session->closing = true; /* nothing is sent from the callbacks below */
    env_timer_stop(session->env, &session->timer);
    if (session->failures++ == 0)
        session->down_since_ns = env_now_ns(session->env);
    session->address_idx = (session->address_idx + 1) % session->address_count;
    session_end_calls(session);
    session->closing = false;
    if (session->stopping) {
        session_stopped(session);
        return;
    }
    session_wait(session);
    if (was_up)
        session->events->on_down(session, err);
    else
        session->events->on_failed(session, err);
}

void
client_session_reset(struct client_session *session)
{
    if (session->link == NULL || session->closing)
        return;
    session->closing = true;
    link_close(session->link);
}

static void
session_fail(struct client_session *session, const char *text)
{
    session_say_problem(session, text);
    client_session_reset(session);
}

void
client_session_fail(struct client_session *session, const char *why)
{
    session->refused = true;
    session_fail(session, why);
}

static void
session_on_up(void *owner, struct link *link)
{
    struct client_session *session = link->user;
    struct frame_out *frame;

    (void)owner;
    if (session->closing)
        return;
    sm_move(&session->sm, SESSION_HELLO);
    session->heard_ns = env_now_ns(session->env);
    session_start_check(session, 0);
    frame = frame_out_create_message(OP_HELLO, 0, session_request_id(1, SESSION_IDX_HELLO), 0,
                                     &session->hello->base);
    if (frame == NULL) {
        session_fail(session, dl_err_str(-DL_E_NO_MEMORY));
        return;
    }
    link_send(link, frame);
}

/* --- frames --- */

static void
session_hello_refused(struct client_session *session, const struct frame *frame)
{
    Dl__ErrorDetail *detail = (void *)frame_unpack(frame, &dl__error_detail__descriptor);
    char text[SESSION_REFUSAL_BYTES];

    (void)snprintf(text, sizeof(text), "%s",
                   detail != NULL && detail->text[0] != '\0' ? detail->text
                                                             : dl_err_str(frame->status));
    if (detail != NULL)
        dl__error_detail__free_unpacked(detail, NULL);
    client_session_fail(session, text);
}

static void
session_on_hello(struct client_session *session, const struct frame *frame)
{
    Dl__Hello *hello;
    int err;

    if (!frame_is_reply(frame) || frame->opcode != OP_HELLO ||
        frame->request_id != session_request_id(1, SESSION_IDX_HELLO)) {
        session_fail(session, "the peer did not answer HELLO first");
        return;
    }
    if (frame->status != 0) {
        session_hello_refused(session, frame);
        return;
    }
    hello = (void *)frame_unpack(frame, &dl__hello__descriptor);
    if (hello == NULL) {
        session_fail(session, "the answer to HELLO is malformed");
        return;
    }
    if (hello->version_max < WIRE_VERSION_MIN || hello->version_max > WIRE_VERSION)
        err = -DL_E_VERSION_UNSUPPORTED;
    else
        err = session->events->on_hello(session, hello);
    dl__hello__free_unpacked(hello, NULL);
    if (err != 0) {
        client_session_fail(session, dl_err_str(err));
        return;
    }
    sm_move(&session->sm, SESSION_UP);
    session->backoff_ns = SESSION_BACKOFF_MIN_NS;
    session->refused = false;
    session->silent = false;
    session->failures = 0;
    session->problem[0] = '\0';
    session->events->on_up(session);
}

static void
session_on_reply(struct client_session *session, const struct frame *frame)
{
    struct session_call *call = session_find(session, frame->request_id);
    int err = frame->status;

    if (call == NULL || call->replied) {
        /* PING's reply among others: that it came is all there is to it. */
        session->replies_unknown += frame->opcode != OP_PING;
        return;
    }
    call->receiving = false;
    if (frame->opcode != call->opcode) {
        session_fail(session, "a reply has another opcode than its request");
        return;
    }
    if (call->on_reply != NULL)
        err = call->on_reply(call, frame);
    if (call->frame_in_link) {
        call->replied = true;
        call->err = err;
        return;
    }
    session_call_end(call, err);
}

static void
session_refuse_request(struct client_session *session, const struct frame *frame)
{
    struct frame_out *reply;

    if (frame->opcode == OP_PING)
        reply = frame_out_create_message(OP_PING, FRAME_REPLY, frame->request_id, 0, NULL);
    else
        reply = frame_out_create_error(frame->opcode, frame->request_id, -DL_E_OPCODE_UNKNOWN,
                                       "a client does not serve this request", NULL);
    if (reply != NULL)
        link_send(session->link, reply);
}

static void
session_on_frame(void *owner, struct link *link, const struct frame *frame)
{
    struct client_session *session = link->user;

    (void)owner;
    if (session->closing)
        return;
    session->heard_ns = env_now_ns(session->env);
    if (session->sm.state == SESSION_HELLO)
        session_on_hello(session, frame);
    else if (frame_is_reply(frame))
        session_on_reply(session, frame);
    else if (session->events->on_request != NULL && frame->opcode != OP_PING)
        session->events->on_request(session, frame);
    else
        session_refuse_request(session, frame);
}

static void *
session_on_payload(void *owner, struct link *link, const struct frame *frame)
{
    struct client_session *session = link->user;
    struct session_call *call;
    void *payload;

    (void)owner;
    if (session->closing || session->sm.state != SESSION_UP || !frame_is_reply(frame))
        return NULL;
    session->heard_ns = env_now_ns(session->env);
    call = session_find(session, frame->request_id);
    if (call == NULL || call->replied || call->on_payload == NULL || frame->opcode != call->opcode)
        return NULL;
    payload = call->on_payload(call, frame);
    call->receiving = payload != NULL;
    return payload;
}

static const struct link_events session_link_events = {
    .on_up = session_on_up,
    .on_payload = session_on_payload,
    .on_frame = session_on_frame,
    .on_down = session_on_down,
};

static void
session_connect(struct client_session *session)
{
    dl_assert(session->link == NULL);
    dl_assert(session->address_count > 0);
    sm_move(&session->sm, SESSION_CONNECTING);
    session->explained = false;
    session->closing = false;
    session->link = link_connect(session->env, &session->addresses[session->address_idx],
                                 &session_link_events, session->owner, session);
}

/* --- silence --- */

static void
session_on_ping_sent(struct frame_out *frame, int err)
{
    struct client_session *session = list_entry(frame, struct client_session, ping);

    (void)err;
    session->ping_in_link = false;
}

/* Silence after which a PING is sent. */
static uint64_t
session_ping_ns(const struct client_session *session)
{
    return session->silence_max_ns / 3 < SESSION_PING_NS ? session->silence_max_ns / 3
                                                         : SESSION_PING_NS;
}

static void
session_start_check(struct client_session *session, uint64_t silence_ns)
{
    uint64_t delay_ns = session_ping_ns(session);

    dl_assert(silence_ns < session->silence_max_ns);
    if (session->silence_max_ns - silence_ns < delay_ns)
        delay_ns = session->silence_max_ns - silence_ns;
    session->check_ns = env_now_ns(session->env) + delay_ns;
    env_timer_start(session->env, &session->timer, delay_ns);
}

static void
session_send_ping(struct client_session *session)
{
    frame_out_empty(&session->ping, OP_PING, 0, session_request_id(1, SESSION_IDX_PING), 0);
    session->ping.on_sent = session_on_ping_sent;
    session->ping_in_link = true;
    session->pinged_ns = env_now_ns(session->env);
    link_send(session->link, &session->ping);
}

/*
 * A process that was stopped itself for a while has heard nothing either: what the peer said lies
 * in the socket, and it gets the time that it would have had.
 */
static void
session_check_silence(struct client_session *session)
{
    uint64_t now_ns = env_now_ns(session->env);
    uint64_t ping_ns = session_ping_ns(session);
    uint64_t silence_ns;
    char text[64];

    if (now_ns >= session->check_ns + SESSION_LATE_NS && now_ns - session->heard_ns > ping_ns)
        session->heard_ns = now_ns - ping_ns;
    silence_ns = now_ns - session->heard_ns;
    if (silence_ns >= session->silence_max_ns) {
        (void)snprintf(text, sizeof(text), "it has been silent for %g seconds",
                       (double)session->silence_max_ns / 1e9);
        session->silent = true;
        session_fail(session, text);
        return;
    }
    session_start_check(session, silence_ns);
    if (session->sm.state == SESSION_UP && silence_ns >= ping_ns && !session->ping_in_link &&
        (session->pinged_ns < session->heard_ns || now_ns - session->pinged_ns >= ping_ns))
        session_send_ping(session);
}

static void
session_on_timer(struct env_timer *timer)
{
    struct client_session *session = list_entry(timer, struct client_session, timer);

    if (session->closing)
        return;
    if (session->sm.state == SESSION_WAIT)
        session_connect(session);
    else
        session_check_silence(session);
}

/* --- life --- */

void
client_session_init(struct client_session *session, struct env *env,
                    const struct session_events *events, void *owner, const Dl__Hello *hello,
                    uint64_t id)
{
    memset(session, 0, sizeof(*session));
    sm_init(&session->sm, &session_table, SESSION_IDLE, id);
    session->env = env;
    session->events = events;
    session->owner = owner;
    session->hello = hello;
    session->timer.fn = session_on_timer;
    session->backoff_ns = SESSION_BACKOFF_MIN_NS;
    session->backoff_max_ns = SESSION_BACKOFF_MAX_NS;
    session->silence_max_ns = SESSION_SILENCE_MAX_NS;
    session->down_since_ns = env_now_ns(env);
}

void
client_session_fini(struct client_session *session)
{
    free(session->slots);
    session->slots = NULL;
}

void
client_session_want(struct client_session *session)
{
    if (session->sm.state == SESSION_IDLE)
        session_connect(session);
}

void
client_session_hurry(struct client_session *session)
{
    if (session->stopping || client_session_is_up(session))
        return;
    session->down_since_ns = env_now_ns(session->env);
    session->backoff_ns = SESSION_BACKOFF_MIN_NS;
    if (session->sm.state == SESSION_WAIT)
        env_timer_start(session->env, &session->timer, 0);
}

void
client_session_stop(struct client_session *session)
{
    if (session->stopping)
        return;
    session->stopping = true;
    /* In a callback of a call that broke with the link, session_on_down() does it afterwards. */
    if (session->link != NULL)
        client_session_reset(session);
    else if (!session->closing)
        session_stopped(session);
}
