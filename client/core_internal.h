/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core_internal.h: what the files of the client's core share about connections.
 *
 * Ownership: the core owns the session to the metadata service and all servers.  A server is made
 *            when a map first names it, and lives as long as the core; its number is its index, so
 *            that segments name it in 24 bits.
 */
#ifndef DLBLK_CLIENT_CORE_INTERNAL_H
#define DLBLK_CLIENT_CORE_INTERNAL_H

#include "client/buffers.h"
#include "client/core.h"
#include "client/session.h"
#include "common/vec.h"
#include "proto/control.pb-c.h"

#define CLIENT_NS_PER_MS        1000000ull
#define CLIENT_TICK_NS          (100 * CLIENT_NS_PER_MS)
#define CLIENT_SERVER_ID_MAX    ((1u << 20) - 1)
#define CLIENT_IN_FLIGHT_BYTES  (64ull << 20)
#define CLIENT_EVENT_TEXT_BYTES 640u
#define CLIENT_ID_BYTES         16u

struct client_volume;

/* A request that nobody waits for any more, or never did: freed by itself, or with the core. */
struct core_loose {
    struct list node; /* core->loose */
    void (*free)(struct core_loose *loose);
};

struct client_server {
    struct client_session session;
    struct client_core *core;
    uint32_t id;
    uint8_t uuid[CLIENT_ID_BYTES];
    Dl__Hello hello;
    bool same_host;
    bool address_known;
    uint32_t reads_in_flight;
    uint32_t repairs_in_flight;
    struct list waiters; /* slot_io.wait_node: to be sent when the session is up */
    /* Writes that wait for it eject it: EJECT_CONNECTION or EJECT_SILENT; EJECT_NONE: no reason */
    Dl__EjectReason failed;
    struct env_timer lost_timer; /* until its connection has been gone for too long */
    uint64_t lost_ns;            /* when that is due */
};

struct client_core {
    struct env *env;
    struct client_core_options options; /* strings are copies */
    uint8_t cluster_id[CLIENT_ID_BYTES];
    bool cluster_known;
    uint8_t instance[CLIENT_ID_BYTES];
    Dl__Hello meta_hello;
    struct client_session meta;
    struct list meta_calls;              /* client_meta_call.node */
    VEC(struct client_server *) servers; /* by id; NULL: no such server yet */
    uint32_t server_count;

    struct list volumes;
    struct list
        admission; /* client_volume.admission_node: have requests that wait for in_flight_bytes */
    uint64_t in_flight_bytes, in_flight_bytes_highest;
    struct buffers buffers;

    struct list loose; /* core_loose.node */

    struct env_timer tick;
    uint64_t tick_ns;  /* when it is due */
    uint64_t awake_ns; /* this process was stopped until then: nobody else was slow before */
    struct env_task task;

    bool stopping;
    uint32_t sessions_running;
    void (*on_stopped)(void *context);
    void *on_stopped_context;
    uint64_t reconnects;
};

void client_core_event(struct client_core *core, enum dlblk_event_level level, const char *format,
                       ...) DL_ERROR_PRINTF(3, 4);

/* The tick runs while anything waits for time to pass. */
static inline void
client_core_want_tick(struct client_core *core)
{
    if (env_timer_armed(&core->tick))
        return;
    core->tick_ns = env_now_ns(core->env) + CLIENT_TICK_NS;
    env_timer_start(core->env, &core->tick, CLIENT_TICK_NS);
}

/* Slots that fail are ejected. */
static inline bool
client_core_ejects(const struct client_core *core)
{
    return core->options.eject_lost_ms != CLIENT_NEVER ||
           core->options.eject_silent_ms != CLIENT_NEVER ||
           core->options.eject_slow_ms != CLIENT_NEVER;
}

/* How long something has lasted, as far as this process was there to see it. */
static inline uint64_t
client_core_age_ns(const struct client_core *core, uint64_t since_ns, uint64_t now_ns)
{
    uint64_t from_ns = since_ns > core->awake_ns ? since_ns : core->awake_ns;

    return now_ns > from_ns ? now_ns - from_ns : 0;
}

/* True if it has lasted so long; CLIENT_NEVER: false. */
static inline bool
client_core_is_over(const struct client_core *core, uint64_t since_ns, uint64_t now_ns,
                    uint32_t limit_ms)
{
    return limit_ms != CLIENT_NEVER &&
           client_core_age_ns(core, since_ns, now_ns) >= limit_ms * CLIENT_NS_PER_MS;
}

/* Request time from now on: a deadline. */
static inline uint64_t
client_core_deadline_ns(const struct client_core *core)
{
    if (core->options.request_timeout_ms == CLIENT_NEVER)
        return UINT64_MAX;
    return env_now_ns(core->env) + core->options.request_timeout_ms * CLIENT_NS_PER_MS;
}

/* Bytes of requests in flight over all volumes. */
static inline bool
client_core_may_admit(const struct client_core *core, uint64_t bytes)
{
    return core->in_flight_bytes + bytes <= core->options.in_flight_bytes_max;
}

static inline void
client_core_admit(struct client_core *core, uint64_t bytes)
{
    core->in_flight_bytes += bytes;
    if (core->in_flight_bytes > core->in_flight_bytes_highest)
        core->in_flight_bytes_highest = core->in_flight_bytes;
}

/* Volumes whose requests waited for this go on from the core's task. */
static inline void
client_core_dismiss(struct client_core *core, uint64_t bytes)
{
    dl_assert(core->in_flight_bytes >= bytes);
    core->in_flight_bytes -= bytes;
    if (!list_is_empty(&core->admission))
        env_defer(core->env, &core->task);
}

/* --- servers --- */

/* NULL: unknown. */
static inline struct client_server *
client_core_server(const struct client_core *core, uint32_t id)
{
    return id < core->servers.count ? core->servers.items[id] : NULL;
}

/*
 * How to reach it, as a map says; makes the server if it is new.  -DL_E_MESSAGE_MALFORMED,
 * -DL_E_NO_MEMORY.
 */
int client_core_learn_server(struct client_core *core, const Dl__ServerAddress *address);

/*
 * The metadata service has given it a slot: it has seen it.  What we know of it is of before: it
 * gets the time of a connection that has just broken.
 */
void client_server_renew(struct client_server *server);

/* "server 3 (127.0.0.1:7711)" */
struct client_server_name {
    char text[320];
};
struct client_server_name client_server_name(const struct client_server *server);

/* --- what the core tells volumes: volume.c --- */

void client_volume_on_tick(struct client_volume *volume);
void client_volume_on_meta_up(struct client_volume *volume);
void client_volume_on_server_up(struct client_volume *volume);
void client_volume_on_changed(struct client_volume *volume, const Dl__VolumeChanged *changed);
/* 0, or why it could not be taken. */
int client_volume_on_map_changed(struct client_volume *volume, const Dl__MapChanged *changed);
/* A server has failed: what waits for it is looked at. */
void client_volume_on_server_failed(struct client_volume *volume);
/* Requests may be admitted again. */
void client_volume_on_admission(struct client_volume *volume);
bool client_volume_wants_tick(const struct client_volume *volume);
uint64_t client_volume_id(const struct client_volume *volume);
/* Free it without a word: a simulated crash. */
void client_volume_abandon(struct client_volume *volume);

#endif
