/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lib/fake_link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dlblk/error.h"

static void
fake_link_require(bool condition)
{
    if (!condition)
        abort();
}

static struct fake_link *
fake_link_of(struct link *link)
{
    return (struct fake_link *)link;
}

/* --- from the core --- */

static struct fake_frame *
fake_frame_capture(const struct frame_out *out)
{
    struct fake_frame *captured = calloc(1, sizeof(*captured));
    uint32_t bytes = out->head_bytes + out->body_tail_bytes + out->payload_bytes;
    uint8_t *end;

    fake_link_require(captured != NULL);
    captured->bytes = malloc(bytes);
    fake_link_require(captured->bytes != NULL);
    memcpy(captured->bytes, out->head, out->head_bytes);
    end = captured->bytes + out->head_bytes;
    if (out->body_tail_bytes > 0)
        memcpy(end, out->body_tail, out->body_tail_bytes);
    end += out->body_tail_bytes;
    for (uint32_t i = 0; i < out->payload_count; i++) {
        memcpy(end, out->payload[i].iov_base, out->payload[i].iov_len);
        end += out->payload[i].iov_len;
    }
    fake_link_require(frame_decode_header(captured->bytes, &captured->frame) == 0);
    fake_link_require(end == captured->bytes + FRAME_HEADER_BYTES + captured->frame.body_bytes +
                                 captured->frame.payload_bytes);
    captured->frame.body = captured->bytes + FRAME_HEADER_BYTES;
    captured->frame.payload = captured->bytes + FRAME_HEADER_BYTES + captured->frame.body_bytes;
    fake_link_require(frame_check_body(&captured->frame) == 0);
    return captured;
}

static void
fake_link_go_down(struct fake_link *fake, int err)
{
    struct list *node;

    if (fake->down)
        return;
    while ((node = list_pop_front(&fake->unsent)) != NULL) {
        struct frame_out *frame = list_entry(node, struct frame_out, node);

        frame->on_sent(frame, -DL_E_CONNECTION_LOST);
    }
    fake->down = true;
    fake->down_err = err;
    fake->link.events->on_down(fake->link.core, &fake->link, err);
    fake->link.up = false;
}

static void
fake_link_on_task(struct env_task *task)
{
    struct fake_link *fake = list_entry(task, struct fake_link, task);
    struct list *node;

    while (!fake->down && !fake->full && (node = list_pop_front(&fake->unsent)) != NULL) {
        struct frame_out *frame = list_entry(node, struct frame_out, node);

        list_push_back(&fake->sent, &fake_frame_capture(frame)->node);
        fake->sent_count++;
        frame->on_sent(frame, 0);
    }
    if (fake->closing)
        fake_link_go_down(fake, -DL_E_CANCELLED);
}

static void
fake_link_send(struct env *env, struct link *link, struct frame_out *frame)
{
    struct fake_link *fake = fake_link_of(link);

    (void)env;
    fake_link_require(link->up && !fake->closing);
    list_push_back(&fake->unsent, &frame->node);
    env_defer(fake->base, &fake->task);
}

static void
fake_link_close(struct env *env, struct link *link)
{
    struct fake_link *fake = fake_link_of(link);

    (void)env;
    fake_link_require(link->up && !fake->closing);
    fake->closing = true;
    env_defer(fake->base, &fake->task);
}

static void
fake_link_pause(struct env *env, struct link *link, bool paused)
{
    (void)env;
    fake_link_of(link)->paused = paused;
}

static const struct env_ops fake_link_ops = {
    .link_send = fake_link_send,
    .link_close = fake_link_close,
    .link_pause = fake_link_pause,
};

/* --- from the test --- */

void
fake_link_wake(struct fake_link *fake)
{
    env_defer(fake->base, &fake->task);
}

void
fake_link_init(struct fake_link *fake, struct env *base, const char *host, uint16_t port)
{
    static uint64_t next_id;

    memset(fake, 0, sizeof(*fake));
    fake->base = base;
    fake->env.ops = &fake_link_ops;
    fake->task.fn = fake_link_on_task;
    fake->link.id = ++next_id;
    fake->link.env = &fake->env;
    (void)snprintf(fake->link.peer.host, sizeof(fake->link.peer.host), "%s", host);
    fake->link.peer.port = port;
    list_init(&fake->unsent);
    list_init(&fake->sent);
}

void
fake_link_fini(struct fake_link *fake)
{
    struct list *node;

    while ((node = list_pop_front(&fake->unsent)) != NULL) {
        struct frame_out *frame = list_entry(node, struct frame_out, node);

        frame->on_sent(frame, -DL_E_CONNECTION_LOST);
    }
    while ((node = list_pop_front(&fake->sent)) != NULL)
        fake_frame_destroy(list_entry(node, struct fake_frame, node));
    fake->down = true;
    fake->link.up = false;
}

void
fake_link_accept(struct fake_link *fake, const struct link_events *events, void *core)
{
    fake->link.events = events;
    fake->link.core = core;
    fake->link.up = true;
    events->on_accept(core, &fake->link);
}

static void
fake_link_deliver(struct fake_link *fake, const struct fake_frame *captured)
{
    struct frame frame = captured->frame;

    if (fake->down || fake->closing)
        return;
    frame.payload = NULL;
    if (frame.payload_bytes > 0)
        fake_link_require(fake->link.events->on_payload(fake->link.core, &fake->link, &frame) ==
                          NULL);
    fake->link.events->on_frame(fake->link.core, &fake->link, &frame);
}

static void
fake_link_pass(struct fake_link *fake, struct frame_out *out)
{
    struct fake_frame *captured;

    fake_link_require(out != NULL);
    captured = fake_frame_capture(out);
    fake_link_deliver(fake, captured);
    fake_frame_destroy(captured);
    out->on_sent(out, 0);
}

void
fake_link_request(struct fake_link *fake, uint16_t opcode, uint64_t request_id,
                  const ProtobufCMessage *message)
{
    fake_link_pass(fake, frame_out_create_message(opcode, 0, request_id, 0, message));
}

void
fake_link_reply(struct fake_link *fake, uint16_t opcode, uint64_t request_id, int status,
                const ProtobufCMessage *message)
{
    fake_link_pass(fake,
                   frame_out_create_message(opcode, FRAME_REPLY, request_id, status, message));
}

void
fake_link_feed(struct fake_link *fake, uint16_t opcode, uint16_t flags, uint64_t request_id,
               const void *body, uint32_t body_bytes, uint32_t payload_bytes)
{
    struct fake_frame captured = {
        .frame =
            {
                .opcode = opcode,
                .flags = flags,
                .request_id = request_id,
                .body_bytes = body_bytes,
                .payload_bytes = payload_bytes,
                .body = body,
            },
    };

    fake_link_deliver(fake, &captured);
}

void
fake_link_break(struct fake_link *fake, int err)
{
    fake_link_go_down(fake, err);
}

struct fake_frame *
fake_link_next(struct fake_link *fake)
{
    struct list *node = list_pop_front(&fake->sent);

    return node == NULL ? NULL : list_entry(node, struct fake_frame, node);
}

ProtobufCMessage *
fake_frame_unpack(const struct fake_frame *frame, const ProtobufCMessageDescriptor *type)
{
    return frame_unpack(&frame->frame, type);
}

void
fake_frame_destroy(struct fake_frame *frame)
{
    if (frame == NULL)
        return;
    free(frame->bytes);
    free(frame);
}
