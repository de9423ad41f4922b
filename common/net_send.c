/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending.  Frames of a turn are gathered into one message per link.  It goes out at the turn's end
 * with a plain sendmsg() that doesn't wait; only what the socket doesn't take is left to io_uring,
 * which goes on when there is room.
 */
#include <errno.h>
#include <liburing.h>
#include <string.h>

#include "common/assert.h"
#include "common/net_internal.h"
#include "dlblk/error.h"

static void link_on_send(struct io_req *req, int res);

void
link_send_init(struct net_link *link)
{
    list_init(&link->out);
    list_init(&link->sending);
    list_init(&link->sent_last);
    link->send_req.on_cqe = link_on_send;
    link->message.msg_iov = link->iov;
}

void
link_send_queue(struct net_link *link, struct frame_out *frame)
{
    dl_assert(frame->on_sent != NULL);
    list_push_back(&link->out, &frame->node);
    if (link->state == LINK_UP) {
        if (!link->send_busy && !list_is_linked(&link->dirty_node))
            list_push_back(&link->net->dirty, &link->dirty_node);
    } else if (link->state != LINK_CLOSING) {
        /* Not up yet: given back, but not inside this call. */
        loop_defer(link->net->loop, &link->task);
    }
}

static void
link_add_piece(struct net_link *link, const void *base, size_t length)
{
    link->iov[link->iov_count++] = (struct iovec){.iov_base = (void *)(uintptr_t)base,
                                                  .iov_len = length};
    link->send_bytes += length;
}

static void
link_add_frame(struct net_link *link, struct frame_out *frame)
{
    link_add_piece(link, frame->head, frame->head_bytes);
    if (frame->body_tail_bytes != 0)
        link_add_piece(link, frame->body_tail, frame->body_tail_bytes);
    for (uint32_t i = 0; i < frame->payload_count; i++)
        link_add_piece(link, frame->payload[i].iov_base, frame->payload[i].iov_len);
}

/* Move frames from `out` to `sending`, as many as one message takes; at least one. */
static void
link_gather(struct net_link *link)
{
    dl_assert(list_is_empty(&link->sending));
    link->iov_first = 0;
    link->iov_count = 0;
    link->send_bytes = 0;
    while (!list_is_empty(&link->out)) {
        struct frame_out *frame = list_first_entry(&link->out, struct frame_out, node);

        dl_assert(frame->payload_count <= FRAME_PIECES_MAX);
        if (link->iov_count + FRAME_IOVECS_MAX > SEND_IOVECS_MAX ||
            link->send_bytes >= SEND_BYTES_MAX)
            break;
        list_remove(&frame->node);
        list_push_back(&link->sending, &frame->node);
        link_add_frame(link, frame);
    }
}

/* So many bytes of the message are gone. */
static void
link_advance(struct net_link *link, size_t bytes)
{
    link->net->stats.bytes_out += bytes;
    link->send_bytes -= bytes;
    while (bytes > 0) {
        struct iovec *piece = &link->iov[link->iov_first];

        if (bytes < piece->iov_len) {
            piece->iov_base = (uint8_t *)piece->iov_base + bytes;
            piece->iov_len -= bytes;
            return;
        }
        bytes -= piece->iov_len;
        link->iov_first++;
    }
}

/* A callback may close the link: the list it works on must not be one of the link's. */
static void
link_give_back_list(struct net_link *link, struct list *frames, int err)
{
    struct list done;

    list_init(&done);
    list_splice_back(&done, frames);
    while (!list_is_empty(&done)) {
        struct frame_out *frame = list_first_entry(&done, struct frame_out, node);

        list_remove(&frame->node);
        if (err == 0)
            link->net->stats.frames_out++;
        frame->on_sent(frame, err);
    }
}

/* 0, or a negative errno.  After it send_bytes says what is left of the message. */
static int
link_send_now(struct net_link *link)
{
    ssize_t sent;

    link->message.msg_iov = &link->iov[link->iov_first];
    link->message.msg_iovlen = link->iov_count - link->iov_first;
    sent = sendmsg(link->fd, &link->message, MSG_DONTWAIT | MSG_NOSIGNAL);
    link->net->stats.sends++;
    if (sent < 0)
        return -errno;
    link_advance(link, (size_t)sent);
    return 0;
}

static void
link_send_start(struct net_link *link)
{
    struct io_uring_sqe *sqe = loop_get_sqe(link->net->loop, &link->send_req);

    link->message.msg_iov = &link->iov[link->iov_first];
    link->message.msg_iovlen = link->iov_count - link->iov_first;
    io_uring_prep_sendmsg(sqe, link->fd, &link->message, MSG_WAITALL | MSG_NOSIGNAL);
    io_uring_sqe_set_data(sqe, &link->send_req);
    link->send_busy = true;
    link->net->stats.sends++;
}

static void
link_flush(struct net_link *link)
{
    while (link->state == LINK_UP && !link->send_busy && !list_is_empty(&link->out)) {
        int err;

        link_gather(link);
        err = link_send_now(link);
        if (err != 0 && err != -EAGAIN && err != -EINTR && err != -ENOBUFS) {
            link_begin_down(link, err);
            return;
        }
        if (link->send_bytes > 0) {
            link_send_start(link);
            return;
        }
        link_give_back_list(link, &link->sending, 0);
    }
}

void
net_flush(void *context)
{
    struct net *net = context;

    while (!list_is_empty(&net->dirty)) {
        struct net_link *link = list_first_entry(&net->dirty, struct net_link, dirty_node);

        list_remove(&link->dirty_node);
        link_flush(link);
    }
}

static void
link_on_send(struct io_req *req, int res)
{
    struct net_link *link = list_entry(req, struct net_link, send_req);

    link->send_busy = false;
    if (link->state == LINK_CLOSING) {
        link_check_finished(link);
        return;
    }
    if (res == -EINTR || res == -EAGAIN)
        res = 0;
    if (res < 0) {
        link_begin_down(link, res);
        return;
    }
    link_advance(link, (size_t)res);
    if (link->send_bytes > 0) {
        link_send_start(link);
        return;
    }
    link_give_back_list(link, &link->sending, 0);
    if (link->state == LINK_UP && !list_is_empty(&link->out) && !list_is_linked(&link->dirty_node))
        list_push_back(&link->net->dirty, &link->dirty_node);
}

void
link_send_last(struct net_link *link)
{
    while (!link->send_busy && !list_is_empty(&link->out)) {
        link_gather(link);
        if (link_send_now(link) != 0 || link->send_bytes > 0)
            break;
        /* Not given back yet: on_sent doesn't run inside link_close(). */
        list_splice_back(&link->sent_last, &link->sending);
    }
}

void
link_send_give_back(struct net_link *link, int err)
{
    dl_assert(!link->send_busy);
    link_give_back_list(link, &link->sent_last, 0);
    link_give_back_list(link, &link->sending, err);
    /* A core that sends one frame after the other queues the next from on_sent. */
    while (!list_is_empty(&link->out))
        link_give_back_list(link, &link->out, err);
}
