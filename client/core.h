/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h: the client without I/O: connections to the metadata service and to chunkservers, volumes
 * on top of them.
 *
 * Used by libdlblk (client/lib.c) on a loop and by the simulator on virtual time.  Everything it
 * needs of the world comes through an env (common/env.h).
 *
 * Threads: the env's; nothing here may be called from another.  Blocks: never.
 * Errors:  0 or a negative DL_E_* in callbacks; no callback runs inside the call that starts it.
 * Memory:  requests and calls are the caller's and stay put until their callback has begun; it may
 *          free them.
 * Prints:  nothing: on_event.
 *
 *     client_core_create(&core, env, &options);
 *     client_volume_open(core, &open);                 (volume.h)  -> open.on_done
 *     client_volume_submit(open.volume, &request);                 -> request.on_done
 *     client_volume_close(open.volume, on_closed, context);
 *     client_core_stop(core, on_stopped, context);
 *     client_core_destroy(core);
 */
#ifndef DLBLK_CLIENT_CORE_H
#define DLBLK_CLIENT_CORE_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/address.h"
#include "common/env.h"
#include "dlblk/client.h"
#include "dlblk/error.h"

struct client_core;

#define CLIENT_META_ADDRESSES_MAX 8u
#define CLIENT_NEVER              UINT32_MAX

struct client_core_options {
    struct dl_address meta[CLIENT_META_ADDRESSES_MAX];
    size_t meta_count; /* at least 1 */
    const char *owner; /* "host pid program": who has a volume attached, for display */
    const char *host;  /* this machine's label: reads prefer servers with the same; may be NULL */
    uint32_t connect_timeout_ms; /* of control calls while nobody answers; 0: 10 s */
    /* how long I/O is sent again before it fails; 0: without end; 30 s if no slots are ejected */
    uint32_t request_timeout_ms;
    uint32_t attach_timeout_ms; /* how long an attach waits for a dead owner's servers; 0: 30 s */
    /* of all volumes; what is beyond waits, but for one piece of each; 0: 64 MiB */
    uint64_t in_flight_bytes_max;
    /*
     * When a slot that a write waits for is ejected (docs/recovery.md, "How a slot fails"): its
     * server's connection broke and did not come back; it is silent though it was pinged; it
     * answers, but not this write.  CLIENT_NEVER; 0: 200 ms, 3 s, 10 s.  If all three are never,
     * errors eject nobody either.
     */
    uint32_t eject_lost_ms;
    uint32_t eject_silent_ms;
    uint32_t eject_slow_ms;
    /* A read is asked for elsewhere too, at the earliest after so long; 0: 10 ms; CLIENT_NEVER */
    uint32_t hedge_min_ms;
    dlblk_event_fn on_event; /* may be NULL */
    void *event_context;
};

struct conf;
/* What the configuration says of [client] and of the metadata service's addresses. */
int client_core_options_read(struct client_core_options *options, const struct conf *conf,
                             struct dl_error *err);

/* Starts to connect to the metadata service.  -DL_E_NO_MEMORY. */
int client_core_create(struct client_core **ret_core, struct env *env,
                       const struct client_core_options *options);
/*
 * All volumes are closed.  Closes the links; calls that are still pending fail with
 * -DL_E_CANCELLED; then on_stopped.
 */
void client_core_stop(struct client_core *core, void (*on_stopped)(void *context), void *context);
/*
 * After on_stopped; NULL is allowed.  Or at any time, if the env is thrown away as well (a
 * simulated crash): then links, timers and tasks must be gone, and no callback of any request ever
 * runs.
 */
void client_core_destroy(struct client_core *core);

/* True once the metadata service has answered on the present connection. */
bool client_core_is_connected(const struct client_core *core);
/* Why the metadata service can't be reached, "" if it can: "127.0.0.1:7700: Connection refused". */
const char *client_core_meta_problem(const struct client_core *core);

/* --- requests to the metadata service --- */

struct client_meta_call;
/*
 * err and call->error: 0 or what went wrong.  call->reply (NULL unless err == 0) is freed after
 * on_done.
 */
typedef void (*client_meta_call_fn)(struct client_meta_call *call, int err);

/*
 * One request.  Sent again after each loss of the connection until it is answered, or until
 *   - the metadata service has been unreachable for connect_timeout_ms (-DL_E_META_UNREACHABLE),
 *     unless the call is patient,
 *   - timeout_ms have passed in all (-DL_E_TIMEOUT), unless that is 0.
 */
struct client_meta_call {
    uint16_t opcode;
    bool patient;
    uint32_t timeout_ms;
    const ProtobufCMessage *request;              /* borrowed until on_done */
    const ProtobufCMessageDescriptor *reply_type; /* NULL: the reply has no body */
    client_meta_call_fn on_done;
    void *context; /* the caller's */

    ProtobufCMessage *reply;
    struct dl_error error;
    uint32_t send_count; /* more than 1: an earlier one may have been carried out */

    /* for the core */
    struct client_core *core;       /* NULL: not active */
    struct meta_exchange *exchange; /* NULL: waits for a connection */
    uint64_t start_ns;
    int failed; /* on_done with this from the core's task */
    struct list node;
};

void client_meta_call_start(struct client_core *core, struct client_meta_call *call);
/* No on_done will come.  Has no effect if the call is not active. */
void client_meta_call_cancel(struct client_meta_call *call);

struct client_core_stats {
    uint64_t in_flight_bytes, in_flight_bytes_highest;
    uint64_t replies_unknown; /* replies to requests that had been given up */
    uint64_t reconnects;
    uint64_t buffers_bytes; /* memory for what can't be sent from or received into the caller's */
};
void client_core_get_stats(const struct client_core *core, struct client_core_stats *ret_stats);

#endif
