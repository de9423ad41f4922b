/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slot_io.h: one request of the data path to one slot's server: in flight on its link, or parked
 * until there is one.
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_SLOT_IO_H
#define DLBLK_CLIENT_SLOT_IO_H

#include "client/core_internal.h"
#include "client/session.h"

struct slot_io;
typedef void (*slot_io_fn)(struct slot_io *io);

struct slot_io {
    struct session_call call; /* first: call.frame, call.on_done */
    struct client_server *server;
    struct list wait_node; /* server->waiters, while parked */
    slot_io_fn on_ready;   /* parked, and the server's session is up: begin */
};

static inline struct slot_io *
slot_io_of_call(struct session_call *call)
{
    return list_entry(call, struct slot_io, call);
}

static inline bool
slot_io_is_parked(const struct slot_io *io)
{
    return list_is_linked(&io->wait_node);
}

static inline bool
slot_io_is_idle(const struct slot_io *io)
{
    return !slot_io_is_parked(io) && !client_session_call_is_active(&io->call);
}

/* on_ready follows when the session comes up. */
static inline void
slot_io_park(struct slot_io *io)
{
    dl_assert(slot_io_is_idle(io));
    list_push_back(&io->server->waiters, &io->wait_node);
}

static inline void
client_slot_io_ready(struct slot_io *io)
{
    dl_assert(!slot_io_is_parked(io));
    io->on_ready(io);
}

/* True: it is idle now.  False: on_done follows (session.h). */
static inline bool
slot_io_cancel(struct slot_io *io)
{
    if (slot_io_is_parked(io))
        list_remove(&io->wait_node);
    return !client_session_call_is_active(&io->call) || client_session_cancel(&io->call);
}

#endif
