/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving.  A buffer takes whatever the socket has; frames are worked off in it.  A link has one
 * only while there is part of a frame in it: links that have said all they had to say share a few.
 *
 *     buffer   |........|header|body|payload so far, or the next frames|..........|
 *              0        begin       begin + head_bytes             end        capacity
 *
 * Header and body stay where they are until on_frame has run; small payloads are copied from behind
 * them to where on_payload says, and what follows takes their place.  When 32 KiB or more of a
 * payload are missing they are received straight into its place.  After a payload of 64 KiB and
 * more the next receive is a short one, for a header and a body: so payloads of a stream of large
 * frames don't pass through the buffer at all.
 *
 * Plain recv() and sendmsg(), announced by one poll that stays armed, against io_uring's own forms:
 * bench/perf_net with 3 servers on 2 processors, medians of 7 runs in turn, processor time of all
 * processes per operation in us (Linux 6.18):
 *
 *                              write 4K  read 4K  write 4K  read 4K  write 1M  read 1M
 *     depth                          32       32         1        1         8        8
 *     recv and sendmsg              9.6      4.6        76       41      1383      483
 *     uring recv, sendmsg          10.0      4.7        77       42      1374      519
 *     uring recv and sendmsg        9.2      5.4        82       44      1344      508
 *
 * So none is better by more than the noise, but this one leaves no memory with the kernel: a link
 * that is closed has nothing to wait for, unless its peer does not take what is sent.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/net_internal.h"
#include "dlblk/error.h"

#define DIRECT_BYTES_MIN (32u << 10)
#define LARGE_BYTES_MIN  (64u << 10)
#define SHORT_BYTES      2048u
/* A link that has more than this for us goes on in the next turn, after the others. */
#define RECEIVE_TURN_BYTES (512u << 10)
/* Free behind a body that is larger than the usual buffer. */
#define GROW_SLACK_BYTES 4096u

static void link_on_poll(struct io_req *req, int res);

void
link_receive_init(struct net_link *link)
{
    link->poll_req.on_cqe = link_on_poll;
    link->receive_state = RECEIVE_HEADER;
}

static uint8_t *
net_take_buffer(struct net *net, uint32_t capacity)
{
    uint8_t *buffer;

    if (capacity == net->options.receive_buffer_bytes && net->spare_buffer_count > 0)
        return net->spare_buffers[--net->spare_buffer_count];
    buffer = malloc(capacity);
    net->stats.receive_buffers += buffer != NULL;
    return buffer;
}

static void
link_give_buffer(struct net_link *link)
{
    struct net *net = link->net;

    if (link->buffer == NULL)
        return;
    if (link->capacity == net->options.receive_buffer_bytes &&
        net->spare_buffer_count < SPARE_BUFFERS_MAX) {
        net->spare_buffers[net->spare_buffer_count++] = link->buffer;
    } else {
        free(link->buffer);
        net->stats.receive_buffers--;
    }
    link->buffer = NULL;
    link->capacity = 0;
}

void
net_free_spare_buffers(struct net *net)
{
    while (net->spare_buffer_count > 0)
        free(net->spare_buffers[--net->spare_buffer_count]);
}

void
link_receive_fini(struct net_link *link)
{
    link_give_buffer(link);
}

static uint32_t
link_head_bytes(const struct net_link *link)
{
    return FRAME_HEADER_BYTES + link->frame.body_bytes;
}

static uint32_t
link_payload_missing(const struct net_link *link)
{
    return link->frame.payload_bytes - link->payload_received;
}

static void
link_bad_frame(struct net_link *link, int err)
{
    link->net->stats.bad_frames++;
    link_event(link, NET_EVENT_WARNING, "closed: bad frame: %s", dl_err_str(err));
    link_begin_down(link, err);
}

/*
 * --- working off the buffer: each step returns false if it has to wait for bytes, for a pause's
 * end, or for ever ---
 */

static bool
link_take_header(struct net_link *link)
{
    int err;

    if (link->end - link->begin < FRAME_HEADER_BYTES)
        return false;
    err = frame_decode_header(link->buffer + link->begin, &link->frame);
    if (err != 0) {
        link_bad_frame(link, err);
        return false;
    }
    link->receive_state = RECEIVE_BODY;
    return true;
}

static bool
link_take_body(struct net_link *link)
{
    int err;

    if (link->end - link->begin < link_head_bytes(link))
        return false;
    link->frame.body = link->buffer + link->begin + FRAME_HEADER_BYTES;
    err = frame_check_body(&link->frame);
    if (err != 0) {
        link_bad_frame(link, err);
        return false;
    }
    link->payload_received = 0;
    link->receive_state = link->frame.payload_bytes != 0 ? RECEIVE_PLACE : RECEIVE_PAYLOAD;
    return true;
}

static bool
link_take_place(struct net_link *link)
{
    link->frame.payload = link->link.events->on_payload(link->link.core, &link->link, &link->frame);
    link->receive_state = RECEIVE_PAYLOAD;
    return true;
}

static bool
link_take_payload(struct net_link *link)
{
    uint32_t next = link->begin + link_head_bytes(link);
    uint32_t missing = link_payload_missing(link);

    if (missing > 0) {
        uint32_t bytes = link->end - next < missing ? link->end - next : missing;

        if (link->frame.payload != NULL && bytes > 0)
            memcpy((uint8_t *)link->frame.payload + link->payload_received, link->buffer + next,
                   bytes);
        link->payload_received += bytes;
        link->net->stats.payload_bytes_copied += bytes;
        if (bytes < missing) {
            /* Everything behind the head is used up: more of the payload takes its place. */
            link->end = next;
            return false;
        }
        next += bytes;
    }
    link->frame.body = link->buffer + link->begin + FRAME_HEADER_BYTES;
    link->large = link->frame.payload_bytes >= LARGE_BYTES_MIN;
    link->receive_state = RECEIVE_HEADER;
    link->begin = next;
    link->net->stats.frames_in++;
    link->link.events->on_frame(link->link.core, &link->link, &link->frame);
    return true;
}

static void
link_take_frames(struct net_link *link)
{
    bool more = true;

    while (more && link->state == LINK_UP && !link->paused) {
        switch (link->receive_state) {
        case RECEIVE_HEADER:
            more = link_take_header(link);
            break;
        case RECEIVE_BODY:
            more = link_take_body(link);
            break;
        case RECEIVE_PLACE:
            more = link_take_place(link);
            break;
        case RECEIVE_PAYLOAD:
            more = link_take_payload(link);
            break;
        }
    }
}

/* --- asking for more --- */

/* Room from `begin` that what is being received needs in the buffer. */
static uint32_t
link_bytes_needed(const struct net_link *link)
{
    if (link->receive_state == RECEIVE_HEADER)
        return FRAME_HEADER_BYTES;
    return link_head_bytes(link) + (link->receive_state == RECEIVE_BODY ? 0 : GROW_SLACK_BYTES);
}

static bool
link_resize_buffer(struct net_link *link, uint32_t capacity)
{
    uint8_t *buffer = net_take_buffer(link->net, capacity);

    if (buffer == NULL) {
        link_event(link, NET_EVENT_WARNING, "closed: no memory for a frame of %u bytes", capacity);
        link_begin_down(link, -DL_E_NO_MEMORY);
        return false;
    }
    if (link->end > link->begin)
        memcpy(buffer, link->buffer + link->begin, link->end - link->begin);
    link->end -= link->begin;
    link->begin = 0;
    link_give_buffer(link);
    link->buffer = buffer;
    link->capacity = capacity;
    return true;
}

/* See to it that the next receive into the buffer has room. */
static bool
link_make_room(struct net_link *link)
{
    uint32_t usual = link->net->options.receive_buffer_bytes;
    uint32_t needed = link_bytes_needed(link);

    if (link->begin == link->end) {
        link->begin = 0;
        link->end = 0;
        if (link->capacity != usual && needed <= usual)
            return link_resize_buffer(link, usual);
    }
    if (needed > link->capacity)
        return link_resize_buffer(link, needed + GROW_SLACK_BYTES);
    if (link->begin + needed > link->capacity || link->capacity - link->end < link->capacity / 4) {
        memmove(link->buffer, link->buffer + link->begin, link->end - link->begin);
        link->end -= link->begin;
        link->begin = 0;
    }
    dl_assert(link->end < link->capacity);
    return true;
}

/* Where the next bytes go, and how many. */
static bool
link_receive_place(struct net_link *link, void **ret_place, size_t *ret_length)
{
    link->direct = link->receive_state == RECEIVE_PAYLOAD && link->frame.payload != NULL &&
                   link_payload_missing(link) >= DIRECT_BYTES_MIN;
    if (link->direct) {
        *ret_place = (uint8_t *)link->frame.payload + link->payload_received;
        *ret_length = link_payload_missing(link);
        return true;
    }
    if (!link_make_room(link))
        return false;
    *ret_place = link->buffer + link->end;
    *ret_length = link->capacity - link->end;
    if (link->large && *ret_length > SHORT_BYTES)
        *ret_length = SHORT_BYTES;
    return true;
}

/* Bytes received; 0: there are none now, or the link is going down. */
static uint32_t
link_receive(struct net_link *link)
{
    struct net_stats *stats = &link->net->stats;
    void *place = NULL;
    size_t length = 0;
    ssize_t received;

    if (!link_receive_place(link, &place, &length))
        return 0;
    received = recv(link->fd, place, length, MSG_DONTWAIT);
    stats->receives++;
    /*
     * Fewer than asked for: the socket is empty, and what comes later is announced by the poll.  An
     * end is not.
     */
    link->readable = received == (ssize_t)length || (received > 0 && link->ending);
    if (received <= 0) {
        if (received < 0 && errno == EINTR)
            link->readable = true;
        else if (received == 0 || errno != EAGAIN)
            link_begin_down(link, received == 0 ? -DL_E_CONNECTION_LOST : -errno);
        return 0;
    }
    stats->bytes_in += (uint64_t)received;
    if (link->direct) {
        link->payload_received += (uint32_t)received;
        stats->payload_bytes_direct += (uint64_t)received;
        dl_assert(link->payload_received <= link->frame.payload_bytes);
    } else {
        link->end += (uint32_t)received;
        dl_assert(link->end <= link->capacity);
    }
    return (uint32_t)received;
}

static void
link_poll_start(struct net_link *link)
{
    struct io_uring_sqe *sqe = loop_get_sqe(link->net->loop, &link->poll_req);

    io_uring_prep_poll_multishot(sqe, link->fd, POLLIN | POLLRDHUP);
    io_uring_sqe_set_data(sqe, &link->poll_req);
    link->poll_busy = true;
}

static void
link_receive_all(struct net_link *link)
{
    uint32_t budget = RECEIVE_TURN_BYTES;

    for (;;) {
        uint32_t received;

        link_take_frames(link);
        if (link->state != LINK_UP || link->paused)
            return;
        if (!link->readable)
            break;
        if (budget == 0) {
            loop_defer_next(link->net->loop, &link->task);
            return;
        }
        received = link_receive(link);
        budget -= received < budget ? received : budget;
    }
    if (!link->poll_busy)
        link_poll_start(link);
}

void
link_receive_continue(struct net_link *link)
{
    link_receive_all(link);
    if (link->receive_state == RECEIVE_HEADER && link->begin == link->end) {
        link->begin = 0;
        link->end = 0;
        link_give_buffer(link);
    }
}

static void
link_on_poll(struct io_req *req, int res)
{
    struct net_link *link = list_entry(req, struct net_link, poll_req);

    if ((loop_cqe_flags(link->net->loop) & IORING_CQE_F_MORE) == 0)
        link->poll_busy = false;
    /* Also with an error: the receive says which. */
    link->readable = true;
    if (res < 0 || (res & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
        link->ending = true;
    if (link->state == LINK_UP)
        link_receive_continue(link);
    else
        link_check_finished(link);
}
