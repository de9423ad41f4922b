/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h: the client's side of the conversation with one peer: connect, HELLO, requests by id,
 * PING, reconnect.
 *
 *                    want            on_up             HELLO answered
 *        IDLE ------------> CONNECTING -------> HELLO -----------------> UP
 *                            ^    |  on_down      | on_down, refused      | on_down
 *                            |    v               v                       v
 *                            +-- WAIT <-----------+-----------------------+
 *
 *        WAIT: 10 ms .. 1 s, with jitter
 *        any --- stop ---> STOPPED, at once without a link, else with its on_down
 *
 * A request in flight is a session_call: embedded in what it serves, in the session's table from
 * begin to its end.  Its id says where in the table, and which use of that place: a late reply to a
 * request that was given up finds another generation there and is dropped.
 *
 * A call has ended when its reply has come (or never will) *and* its frame came back from the link:
 * only then on_done runs, and nothing of it is touched by the link any more.
 *
 * Threads: one owner.
 * Errors:  in on_done: 0, what the reply says, or -DL_E_CONNECTION_LOST: whether the peer has acted
 *          on it is not known.
 */
#ifndef DLBLK_CLIENT_SESSION_H
#define DLBLK_CLIENT_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "common/address.h"
#include "common/env.h"
#include "common/sm.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"

#define SESSION_ADDRESSES_MAX  8u
#define SESSION_BACKOFF_MIN_NS 10000000ull
#define SESSION_BACKOFF_MAX_NS 1000000000ull
#define SESSION_PING_NS        1000000000ull
#define SESSION_SILENCE_MAX_NS 5000000000ull
/* Between tries in the first moments: session->quick_ns. */
#define SESSION_QUICK_NS      20000000ull
#define SESSION_REFUSAL_BYTES 320u
#define SESSION_PROBLEM_BYTES (SESSION_REFUSAL_BYTES + sizeof(struct dl_address_text) + 2)

enum session_state {
    SESSION_IDLE,       /* nobody has asked for it */
    SESSION_CONNECTING, /* suspends: on_up or on_down */
    SESSION_HELLO,      /* suspends: the reply to HELLO, or on_down */
    SESSION_UP,
    SESSION_WAIT, /* suspends: the timer */
    SESSION_STOPPED,
};

struct client_session;
struct session_call;

/* The reply, also one with an error status: valid during the call.  Returns the err for on_done. */
typedef int (*session_reply_fn)(struct session_call *call, const struct frame *reply);
/* Where the payload of this reply goes; NULL: drop it. */
typedef void *(*session_payload_fn)(struct session_call *call, const struct frame *reply);
/* Once, never inside session_call_send(). */
typedef void (*session_done_fn)(struct session_call *call, int err);

struct session_call {
    session_reply_fn on_reply;     /* NULL: the reply's status is all there is */
    session_payload_fn on_payload; /* NULL: a reply with payload is malformed */
    session_done_fn on_done;
    struct client_session *session; /* NULL: not begun */
    uint32_t table_idx;
    uint16_t opcode;    /* of the reply that is expected */
    bool frame_in_link; /* frame_out has not come back */
    bool receiving;  /* between on_payload and on_frame: the link writes into the caller's buffer */
    bool replied;    /* the reply was here before the frame came back */
    bool frame_sent; /* the link has handed the frame over */
    int err;
    struct frame_out frame;
};

struct session_slot {
    struct session_call *call; /* NULL: free */
    uint32_t generation;
    uint32_t next_free; /* index + 1; 0: none */
};

struct session_events {
    void (*on_up)(struct client_session *session);
    /* Was up and is not any more; all its calls have ended before. */
    void (*on_down)(struct client_session *session, int err);
    /* A try to connect has failed; session->problem says why. */
    void (*on_failed)(struct client_session *session, int err);
    void (*on_stopped)(struct client_session *session);
    /* A request of the peer; NULL: answered with -DL_E_OPCODE_UNKNOWN. */
    void (*on_request)(struct client_session *session, const struct frame *frame);
    /* HELLO was answered: check what it says.  0, or why this peer is not the right one. */
    int (*on_hello)(struct client_session *session, const Dl__Hello *hello);
};

struct client_session {
    struct sm sm;
    struct env *env;
    const struct session_events *events;
    void *owner;
    const Dl__Hello *hello; /* what we say first; the owner's, may change between connections */
    struct dl_address addresses[SESSION_ADDRESSES_MAX];
    uint32_t address_count;
    uint32_t address_idx;

    struct link *link; /* from link_connect() to on_down */
    bool closing;      /* link_close() was called */
    bool stopping;
    bool explained; /* problem is about the present connection */
    bool refused; /* HELLO was answered with an error: wait the longest time before the next try */
    struct env_timer timer; /* WAIT: the next try; HELLO, UP: silence and PING */
    uint64_t heard_ns;
    uint64_t pinged_ns; /* the last PING went out */
    uint64_t check_ns;  /* when the timer is due that looks at silence */
    /* Of a link that is up: longer, and it is closed.  SESSION_SILENCE_MAX_NS unless changed. */
    uint64_t silence_max_ns;
    bool silent; /* the last link was closed for that; until it is up again */
    uint64_t backoff_ns;
    uint64_t backoff_max_ns; /* SESSION_BACKOFF_MAX_NS, unless the owner wants to be back sooner */
    uint64_t down_since_ns;
    /* So long after a link broke it is tried again every SESSION_QUICK_NS, whatever was said; 0 */
    uint64_t quick_ns;
    uint32_t failures; /* tries since it was up last */
    struct frame_out ping;
    bool ping_in_link;

    struct session_slot *slots;
    uint32_t slot_count;
    uint32_t free_head; /* index + 1 */
    uint32_t call_count;

    char problem[SESSION_PROBLEM_BYTES]; /* why it is not up; "" if it is */
    uint64_t replies_unknown;
};

void client_session_init(struct client_session *session, struct env *env,
                         const struct session_events *events, void *owner, const Dl__Hello *hello,
                         uint64_t id);
/* Stopped, or never started, or (a simulated crash) whatever it was. */
void client_session_fini(struct client_session *session);

/* Where the peer is, from the next try on; the one in use goes on. */
void client_session_set_addresses(struct client_session *session,
                                  const struct dl_address *addresses, uint32_t count);
/* Connect, and stay connected. */
void client_session_want(struct client_session *session);
/* The link is closed; every call ends with -DL_E_CONNECTION_LOST; it is connected again. */
void client_session_reset(struct client_session *session);
/* The same, because of what the peer has said: tried again after the longest pause. */
void client_session_fail(struct client_session *session, const char *why);
/* Somebody has seen the peer: as if the connection had broken just now. */
void client_session_hurry(struct client_session *session);
/* on_stopped follows, maybe at once. */
void client_session_stop(struct client_session *session);

static inline bool
client_session_is_up(const struct client_session *session)
{
    return session->sm.state == SESSION_UP && !session->closing;
}

/*
 * Take a place in the table: returns the request id to build call->frame with.  The session must be
 * up. 0: no memory.
 */
uint64_t client_session_begin(struct client_session *session, struct session_call *call,
                              uint16_t opcode);
/* call->frame is built.  on_done follows. */
void client_session_send(struct session_call *call);
/* The same for a frame that frees itself (frame_out_create_message()). */
void client_session_send_message(struct session_call *call, struct frame_out *frame);
/*
 * Give up.  True: it is over, on_done doesn't come.  False: the link still holds memory of the
 * call; the link is closed for that reason, and on_done follows.
 */
bool client_session_cancel(struct session_call *call);

static inline bool
client_session_call_is_active(const struct session_call *call)
{
    return call->session != NULL;
}

#endif
