/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_link.h: a link whose far end is the test: it feeds frames to a core, and keeps what the core
 * sends.
 *
 *     fake_link_init(&link, &fake_env.env, "127.0.0.1", 5001);
 *     fake_link_accept(&link, &meta_link_events, core);
 *     fake_link_request(&link, OP_HELLO, 1, &hello.base);
 *     fake_env_settle(&fake_env);
 *     frame = fake_link_next(&link);                 // NULL: nothing was sent
 *     ... frame->frame.status, fake_frame_unpack(frame, type) ...
 *     fake_frame_destroy(frame);
 *
 * Frames go through the real encoding and decoding.  As env.h wants it, on_sent and on_down run in
 * a later task of the env, never inside link_send() and link_close().
 *
 * Threads: one.
 */
#ifndef DLBLK_TESTS_FAKE_LINK_H
#define DLBLK_TESTS_FAKE_LINK_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"
#include "proto/frame.h"

/* A frame that the core sent. */
struct fake_frame {
    struct list node;
    struct frame frame; /* body and payload point into bytes */
    uint8_t *bytes;
};

struct fake_link {
    struct link link;
    struct env env;     /* of the link: its operations are this file's */
    struct env *base;   /* time, timers and tasks */
    struct list unsent; /* of frame_out.node */
    struct list sent;   /* of fake_frame.node */
    uint32_t sent_count;
    struct env_task task;
    bool paused;
    bool full; /* the far end takes nothing; fake_link_wake() after it was cleared */
    bool closing;
    bool down; /* on_down was called */
    int down_err;
};

void fake_link_init(struct fake_link *fake, struct env *base, const char *host, uint16_t port);
/* The process with the core is gone, or the test is over: nothing is called any more. */
void fake_link_fini(struct fake_link *fake);
void fake_link_accept(struct fake_link *fake, const struct link_events *events, void *core);
/* A request, or a reply, to the core.  message may be NULL: an empty body. */
void fake_link_request(struct fake_link *fake, uint16_t opcode, uint64_t request_id,
                       const ProtobufCMessage *message);
void fake_link_reply(struct fake_link *fake, uint16_t opcode, uint64_t request_id, int status,
                     const ProtobufCMessage *message);
/* A body of any bytes; a header may announce a payload, which is then said to be dropped. */
void fake_link_feed(struct fake_link *fake, uint16_t opcode, uint16_t flags, uint64_t request_id,
                    const void *body, uint32_t body_bytes, uint32_t payload_bytes);
void fake_link_wake(struct fake_link *fake);
/* The far end closes. */
void fake_link_break(struct fake_link *fake, int err);
/* The oldest frame that was not taken yet; the caller destroys it. */
struct fake_frame *fake_link_next(struct fake_link *fake);

ProtobufCMessage *fake_frame_unpack(const struct fake_frame *frame,
                                    const ProtobufCMessageDescriptor *type);
void fake_frame_destroy(struct fake_frame *frame);

#endif
