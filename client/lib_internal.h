/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib_internal.h: what the files of libdlblk share: a client core on a loop of its own, in a thread
 * of its own.
 *
 *   lib.c         clients: thread, settings, events
 *   lib_volume.c  volumes, requests, extents
 *   lib_admin.c   administration
 *
 * Threads: a call (lib_call) is made on the caller's stack, handed to the loop by loop_post(), and
 * waited for on a semaphore.  Requests are handed over in the same way, and nobody waits.
 * Everything else belongs to the loop's thread.
 */
#ifndef DLBLK_CLIENT_LIB_INTERNAL_H
#define DLBLK_CLIENT_LIB_INTERNAL_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "client/core.h"
#include "client/volume.h"
#include "common/loop.h"
#include "common/net.h"
#include "dlblk/client.h"

struct dlblk_client {
    struct loop *loop;
    struct net *net;
    struct client_core *core;
    pthread_t thread;
    bool thread_runs;
    unsigned event_depth; /* > 0: inside on_event, which the core calls from anywhere */
    dlblk_event_fn on_event;
    void *event_context;
    atomic_uint volume_count;
};

struct dlblk_volume {
    struct dlblk_client *client;
    struct client_volume *volume;
    struct dlblk_volume_geometry geometry; /* as it was opened */
    atomic_uint_least64_t size_bytes;
};

struct lib_call;
typedef void (*lib_call_fn)(struct lib_call *call);

struct lib_call {
    struct loop_message message; /* first */
    struct dlblk_client *client;
    lib_call_fn start; /* on the loop's thread; lib_call_done() follows, then or later */
    int err;
    sem_t done;
};

/*
 * Run `start` on the loop's thread, and wait for lib_call_done().  -EDEADLK from a callback, where
 * nobody could do what is waited for.
 */
int lib_call_wait(struct dlblk_client *client, struct lib_call *call, lib_call_fn start,
                  struct dl_error *err);
/* The call's memory may be gone when this returns. */
void lib_call_done(struct lib_call *call, int err);

/* One request to the metadata service and its answer. */
struct lib_meta_call {
    struct lib_call call; /* first */
    struct client_meta_call meta;
    /*
     * Copies what the reply says, on the loop's thread; 0 or a negative DL_E_*.  NULL: there is
     * nothing in it.
     */
    int (*take)(struct lib_meta_call *call, const ProtobufCMessage *reply);
    void *result; /* the caller's */
};

int lib_meta_call_wait(struct dlblk_client *client, struct lib_meta_call *call, uint16_t opcode,
                       const ProtobufCMessage *request,
                       const ProtobufCMessageDescriptor *reply_type, struct dl_error *err);

#endif
