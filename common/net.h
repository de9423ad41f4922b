/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.h: links over TCP on a loop: the env (env.h) of daemons and of the client library.
 *
 * Threads: the loop's.  Blocks: net_listen() with a name that is not a numeric address (a daemon's
 *          start); nothing else.
 * Errors:  of a link: in on_down.  What happens to links (a bad frame, say) is also told through
 *          on_event.
 */
#ifndef DLBLK_COMMON_NET_H
#define DLBLK_COMMON_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "common/address.h"
#include "common/env.h"
#include "common/loop.h"

struct dl_error;
struct net;
struct net_listener;
struct worker;

enum net_event_level { NET_EVENT_DEBUG, NET_EVENT_INFO, NET_EVENT_WARNING };

struct net_options {
    uint32_t receive_buffer_bytes; /* of a link that has part of a frame; 0: 256 KiB */
    uint32_t socket_buffer_bytes;  /* 0: 4 MiB, as far as the kernel's limits allow */
    uint32_t connect_timeout_ms;   /* for each address that a name has; 0: 3 s */
    uint32_t links_max;            /* accepted at the same time; more are closed at once; 0: 4096 */
    /*
     * One line, as "link 12 127.0.0.1:4711: closed: ...".  May be NULL.  text is valid during the
     * call.
     */
    void (*on_event)(void *context, enum net_event_level level, const char *text);
    void *event_context;
};

/*
 * options may be NULL.  worker resolves names; NULL: the net starts one of its own at the first
 * name.
 */
int net_create(struct net **ret_net, struct loop *loop, struct worker *worker,
               const struct net_options *options, struct dl_error *err);
/*
 * No link and no listener may be left (net_stop() and the loop's turns do that).  NULL is allowed.
 */
void net_destroy(struct net *net);
/* What the cores get. */
struct env *net_env(struct net *net);

/*
 * Accept connections: on_accept for each, with `core`.  Port 0 takes a free one:
 * net_listener_address() tells.  A name that has several addresses is listened on at the first.
 */
int net_listen(struct net *net, const struct dl_address *address, const struct link_events *events,
               void *core, struct net_listener **ret_listener, struct dl_error *err);
/* The numeric address with the real port. */
const struct dl_address *net_listener_address(const struct net_listener *listener);
/* No on_accept after this call; links stay.  The listener is gone. */
void net_listener_close(struct net_listener *listener);

/*
 * Close all listeners and links; on_stopped when the last on_down has returned, never inside this
 * call.
 */
void net_stop(struct net *net, void (*on_stopped)(void *context), void *context);

struct net_stats {
    uint64_t links, accepted, connected, connect_failures, refused, bad_frames;
    uint64_t frames_in, frames_out, bytes_in, bytes_out;
    uint64_t receive_buffers;      /* held by links, and kept for the next ones */
    uint64_t receives, sends;      /* system calls, or completions of their io_uring forms */
    uint64_t payload_bytes_copied; /* through the receive buffer */
    uint64_t payload_bytes_direct; /* received where on_payload said */
};
void net_get_stats(const struct net *net, struct net_stats *ret_stats);

#endif
