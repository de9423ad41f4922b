/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_internal.h: a link and its net, for net.c (life), net_receive.c and net_send.c only.
 *
 * States of a link, and what the kernel can hold of it meanwhile:
 *
 *     RESOLVING --> CONNECTING --> UP --> CLOSING --> gone
 *         |             |                   ^
 *         +-------------+-------------------+        (accepted links begin UP)
 *
 * CLOSING lasts until every operation that was given to the kernel has completed; only then are the
 * frames given back, is on_down called, and the memory freed: always from link_on_task(), so that
 * no callback finds its link gone under its feet.
 */
#ifndef DLBLK_COMMON_NET_INTERNAL_H
#define DLBLK_COMMON_NET_INTERNAL_H

#include <sys/socket.h>

#include "common/list.h"
#include "common/loop.h"
#include "common/net.h"
#include "common/worker.h"
#include "proto/frame.h"

/* A message gathered for one send: so many pieces, and about so many bytes. */
#define SEND_IOVECS_MAX 256u
#define SEND_BYTES_MAX  (2u << 20)
/* Receive buffers that nobody holds: kept, so many. */
#define SPARE_BUFFERS_MAX 4u
/* A frame has its head, a rest of its body, and pieces of payload. */
#define FRAME_IOVECS_MAX (2u + FRAME_PIECES_MAX)

enum link_state { LINK_RESOLVING, LINK_CONNECTING, LINK_UP, LINK_CLOSING };

enum receive_state {
    RECEIVE_HEADER,  /* the next frame's header is not complete */
    RECEIVE_BODY,    /* header decoded; its body is not complete */
    RECEIVE_PLACE,   /* body complete; on_payload has not said where the payload goes */
    RECEIVE_PAYLOAD, /* payload_received of payload_bytes are there */
};

struct net;
struct resolve;

struct net_link {
    struct link link; /* first: cores have a pointer to it */
    struct net *net;
    struct list node;       /* net->links */
    struct list dirty_node; /* net->dirty: has output that waits for the turn's end */
    struct env_task task;   /* goes on parsing after a pause; or finishes the link */
    enum link_state state;
    int fd;
    int down_err;
    bool accepted;
    bool paused;

    /*
     * operations that the kernel has; the request of each is in flight as long as its flag is set
     */
    bool poll_busy, send_busy, connect_busy, cancel_busy;
    bool cancel_again;
    struct io_req poll_req, send_req, connect_req, cancel_req;

    /* connecting */
    struct resolve *resolve;
    struct addrinfo *addresses, *address_next;
    struct sockaddr_storage address;
    struct env_timer connect_timer;
    bool connect_timed_out;

    /*
     * receiving: buffer[begin .. end) is not consumed yet; NULL if there is nothing; see
     * net_receive.c
     */
    uint8_t *buffer;
    uint32_t capacity, begin, end;
    enum receive_state receive_state;
    bool ending;   /* the peer has ended it, or an error has: receive until nothing is left */
    bool readable; /* the socket may have bytes: the poll said so, and it was not empty since */
    bool direct;   /* this receive goes to the payload's place */
    bool large;    /* the last payload was a large one: the next receive takes a head only */
    struct frame frame;
    uint32_t payload_received;

    /* sending: see net_send.c */
    struct list out;       /* queued frames */
    struct list sending;   /* those of the send in flight */
    struct list sent_last; /* handed over by link_close(), to be given back */
    uint32_t iov_first, iov_count;
    size_t send_bytes;
    struct msghdr message;
    struct iovec iov[SEND_IOVECS_MAX];
};

struct net {
    struct env env; /* first */
    struct loop *loop;
    struct worker *worker;
    struct worker *worker_own;
    struct net_options options;
    bool set_receive_buffer, set_send_buffer;
    uint64_t next_id;
    uint64_t random_state;
    struct list links;
    struct list listeners;
    struct list dirty;
    uint8_t *spare_buffers[SPARE_BUFFERS_MAX]; /* of options.receive_buffer_bytes */
    uint32_t spare_buffer_count;
    uint32_t accepted_count;
    uint32_t resolves_pending;
    bool stopping;
    void (*on_stopped)(void *context);
    void *stopped_context;
    struct env_task stop_task;
    struct net_stats stats;
};

static inline struct net_link *
net_link_of(struct link *link)
{
    return (struct net_link *)link;
}

/* net.c: the link is to go; err for on_down.  Idempotent. */
void link_begin_down(struct net_link *link, int err);
void link_event(const struct net_link *link, enum net_event_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* An operation of a closing link completed. */
void link_check_finished(struct net_link *link);

/* net_receive.c */
void link_receive_init(struct net_link *link);
void link_receive_fini(struct net_link *link);
void net_free_spare_buffers(struct net *net);
/* Take what is in the buffer, then ask the kernel for more. */
void link_receive_continue(struct net_link *link);

/* net_send.c */
void link_send_init(struct net_link *link);
void link_send_queue(struct net_link *link, struct frame_out *frame);
/* The turn's end: send what the dirty links have. */
void net_flush(void *context);
/* On link_close(): hand over what the socket takes without waiting. */
void link_send_last(struct net_link *link);
/* Give all frames back with err. */
void link_send_give_back(struct net_link *link, int err);

#endif
