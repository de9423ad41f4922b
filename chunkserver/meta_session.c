/* SPDX-License-Identifier: Apache-2.0 */
/*
 * meta_session.c: the chunkserver's connection to the metadata service.  See core_internal.h.
 *
 *  WAITING --timer--> CONNECTING --on_up--> GREETING --HELLO--> REGISTERING --taken--> REGISTERED
 *        ^                   |                    |                     |                     |
 *        |                   +--- time-out, refusal, violation, silence: link_close() --------+
 *        |                                           v
 *        +---------------- on_down --------------- CLOSING
 *
 * (on_down may come in every state with a link.)  Several addresses are tried in turn.  The pause
 * between attempts doubles from BACKOFF_MIN_NS to BACKOFF_MAX_NS, with jitter, and begins anew
 * after a registration.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "common/log.h"
#include "common/text.h"
#include "common/version.h"
#include "dlblk/error.h"

#define BACKOFF_MIN_NS       (10 * CORE_NS_PER_MS)
#define BACKOFF_MAX_NS       (1000 * CORE_NS_PER_MS)
#define ANSWER_TIMEOUT_NS    (5000 * CORE_NS_PER_MS)
#define SILENCE_NS           (5000 * CORE_NS_PER_MS)
#define HEARTBEAT_MIN_MS     10u
#define HEARTBEAT_MAX_MS     60000u
#define HEARTBEAT_DEFAULT_MS 1000u

static const struct dl_address *
meta_address(const struct chunkserver_core *core)
{
    return &core->options.metas[core->meta.address_idx];
}

static void
meta_log_problem(const struct chunkserver_core *core, const char *what, const char *why)
{
    log_warning("chunkserver", "metadata service", "%s: %s: %s",
                dl_address_format(meta_address(core)).text, what, why);
}

static void
meta_close(struct chunkserver_core *core)
{
    dl_assert(core->meta.link != NULL);
    core->meta.state = META_CLOSING;
    env_timer_stop(core->env, &core->meta.timer);
    link_close(core->meta.link);
}

/* --- sending --- */

/*
 * The request's id, or 0 if there was no memory for it: the time-out of the answer deals with that.
 */
static uint64_t
meta_send_request(struct chunkserver_core *core, uint16_t opcode, const ProtobufCMessage *message)
{
    uint64_t request_id = ++core->meta.next_request_id;
    struct frame_out *frame = frame_out_create_message(opcode, 0, request_id, 0, message);

    if (frame == NULL)
        return 0;
    link_send(core->meta.link, frame);
    return request_id;
}

void
meta_link_send(struct chunkserver_core *core, uint64_t connection, struct frame_out *frame)
{
    if (frame == NULL)
        return;
    if (core->meta.state == META_REGISTERED && core->meta.connection == connection)
        link_send(core->meta.link, frame);
    else
        frame->on_sent(frame, -DL_E_CONNECTION_LOST);
}

uint64_t
meta_link_request(struct chunkserver_core *core, uint16_t opcode, const ProtobufCMessage *message)
{
    return core->meta.state == META_REGISTERED ? meta_send_request(core, opcode, message) : 0;
}

static void
meta_send_hello(struct chunkserver_core *core)
{
    struct chunkserver_options *options = &core->options;
    Dl__Hello hello = DL__HELLO__INIT;

    hello.version_min = WIRE_VERSION_MIN;
    hello.version_max = WIRE_VERSION;
    hello.cluster_id = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->cluster_id};
    hello.role = DL__ROLE__ROLE_CHUNKSERVER;
    hello.software = (char *)(uintptr_t)dlblk_version_text("dlblk-chunkserver");
    hello.server_uuid = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->server_uuid};
    hello.instance = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->instance};
    core->meta.awaited_request_id = meta_send_request(core, OP_HELLO, &hello.base);
}

/* Where the journal is: never lower than what was said before. */
static uint64_t
journal_position(const struct chunkserver_core *core, const struct store_stats *stats)
{
    return stats->journal_position > core->options.journal_position
               ? stats->journal_position
               : core->options.journal_position;
}

static void
meta_send_register(struct chunkserver_core *core)
{
    struct chunkserver_options *options = &core->options;
    Dl__ServerRegister registration = DL__SERVER_REGISTER__INIT;
    struct store_stats stats = {0};

    core->store->ops->get_stats(core->store, &stats);
    registration.uuid = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->server_uuid};
    registration.address = core->advertise;
    registration.start_count = options->start_count;
    registration.journal_position = journal_position(core, &stats);
    registration.capacity_bytes = stats.capacity_bytes;
    registration.used_bytes = stats.used_bytes;
    registration.host = core->host;
    registration.rack = core->rack;
    registration.clique = core->clique;
    registration.software = (char *)(uintptr_t)dlblk_version_text("dlblk-chunkserver");
    registration.damaged = stats.damaged;
    core->meta.awaited_request_id = meta_send_request(core, OP_SERVER_REGISTER, &registration.base);
}

static void
meta_send_heartbeat(struct chunkserver_core *core)
{
    Dl__ServerHeartbeat heartbeat = DL__SERVER_HEARTBEAT__INIT;
    Dl__ScrubPosition position = DL__SCRUB_POSITION__INIT;
    Dl__ScrubCounts counts = DL__SCRUB_COUNTS__INIT;
    Dl__BadVolume volumes[FINDINGS_VOLUMES_MAX], *pointers[FINDINGS_VOLUMES_MAX];
    struct store_stats stats = {0};

    core->store->ops->get_stats(core->store, &stats);
    heartbeat.capacity_bytes = stats.capacity_bytes;
    heartbeat.used_bytes = stats.used_bytes;
    heartbeat.available_bytes = stats.available_bytes;
    heartbeat.chunk_count = stats.chunk_count;
    heartbeat.journal_position = journal_position(core, &stats);
    if (stats.stopped != 0)
        heartbeat.stopped = (char *)(uintptr_t)dl_err_str(stats.stopped);
    scrub_fill_position(core->scrub, &position);
    findings_fill_counts(core->findings, &counts);
    heartbeat.scrub = &position;
    heartbeat.scrub_counts = &counts;
    heartbeat.n_bad_volumes = findings_fill_volumes(core->findings, volumes);
    heartbeat.bad_volumes = pointers;
    for (size_t i = 0; i < heartbeat.n_bad_volumes; i++)
        pointers[i] = &volumes[i];
    (void)meta_send_request(core, OP_SERVER_HEARTBEAT, &heartbeat.base);
}

/* --- replies --- */

/* What the metadata service has against us. */
static void
meta_refused(struct chunkserver_core *core, const struct frame *frame, const char *what)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__error_detail__descriptor);
    const Dl__ErrorDetail *detail = (const Dl__ErrorDetail *)(const void *)message;

    log_error("chunkserver", "metadata service", "%s: %s: %s%s%s",
              dl_address_format(meta_address(core)).text, what,
              detail != NULL && detail->text[0] != '\0' ? detail->text : dl_err_str(frame->status),
              detail != NULL && detail->hint[0] != '\0' ? "; " : "",
              detail != NULL ? detail->hint : "");
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
    meta_close(core);
}

static bool
meta_hello_is_good(const struct chunkserver_core *core, const Dl__Hello *hello)
{
    return hello->version_max >= WIRE_VERSION_MIN && hello->version_max <= WIRE_VERSION &&
           hello->version_min == hello->version_max && hello->role == DL__ROLE__ROLE_META &&
           hello->cluster_id.len == CHUNKSERVER_UUID_BYTES &&
           memcmp(hello->cluster_id.data, core->options.cluster_id, CHUNKSERVER_UUID_BYTES) == 0;
}

static void
meta_on_hello(struct chunkserver_core *core, const struct frame *frame)
{
    ProtobufCMessage *message;
    bool good;

    if (frame->status != 0) {
        meta_refused(core, frame, "refused this chunkserver's greeting");
        return;
    }
    message = frame_unpack(frame, &dl__hello__descriptor);
    good = message != NULL && meta_hello_is_good(core, (const Dl__Hello *)(const void *)message);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
    if (!good) {
        meta_log_problem(core, "answered the greeting",
                         "not as a metadata service of this cluster would");
        meta_close(core);
        return;
    }
    core->meta.state = META_REGISTERING;
    meta_send_register(core);
    env_timer_start(core->env, &core->meta.timer, ANSWER_TIMEOUT_NS);
}

static uint64_t
heartbeat_ns_of(uint32_t heartbeat_ms)
{
    if (heartbeat_ms < HEARTBEAT_MIN_MS || heartbeat_ms > HEARTBEAT_MAX_MS)
        heartbeat_ms = HEARTBEAT_DEFAULT_MS;
    return heartbeat_ms * CORE_NS_PER_MS;
}

static void
meta_on_registered(struct chunkserver_core *core, const struct frame *frame)
{
    ProtobufCMessage *message;
    const Dl__ServerRegisterReply *reply;

    if (frame->status != 0) {
        meta_refused(core, frame, "refused this disk");
        return;
    }
    message = frame_unpack(frame, &dl__server_register_reply__descriptor);
    if (message == NULL) {
        meta_log_problem(core, "answered the registration", "with a malformed message");
        meta_close(core);
        return;
    }
    reply = (const Dl__ServerRegisterReply *)(const void *)message;
    core->meta.state = META_REGISTERED;
    core->meta.server_id = reply->server_id;
    core->meta.heartbeat_ns = heartbeat_ns_of(reply->heartbeat_ms);
    core->meta.backoff_ns = BACKOFF_MIN_NS;
    core->admitted = true;
    log_info("chunkserver", "metadata service", "%s: registered as server %u",
             dl_address_format(meta_address(core)).text, reply->server_id);
    scrub_on_registered(core->scrub, reply->scrub);
    protobuf_c_message_free_unpacked(message, NULL);
    env_timer_start(core->env, &core->meta.timer, core->meta.heartbeat_ns);
    recoveries_on_registered(core);
}

static void
meta_on_reply(struct chunkserver_core *core, const struct frame *frame)
{
    struct meta_session *meta = &core->meta;

    if (meta->awaited_request_id == 0 || frame->request_id != meta->awaited_request_id) {
        if (frame->opcode == OP_RECOVERY_REPORT)
            recoveries_on_report_reply(core, frame->request_id, frame->status);
        else if (frame->opcode == OP_BAD_SECTORS)
            findings_on_reply(core->findings, frame->request_id, frame->status);
        else if (frame->opcode == OP_MAP_GET) {
            repair_on_map(core, frame);
            scrub_on_map(core->scrub, frame);
        }
        return; /* of a heartbeat: that it came is what counts */
    }
    meta->awaited_request_id = 0;
    if (meta->state == META_GREETING)
        meta_on_hello(core, frame);
    else if (meta->state == META_REGISTERING)
        meta_on_registered(core, frame);
}

/* Before the registration is answered, too: it may take long, and only who lives is admitted. */
static void
meta_answer_ping(struct chunkserver_core *core, const struct frame *frame)
{
    struct frame_out *reply = frame_out_create_message(OP_PING, FRAME_REPLY, frame->request_id, 0,
                                                       NULL);

    if (reply != NULL)
        link_send(core->meta.link, reply);
}

static void
meta_on_request(struct chunkserver_core *core, const struct frame *frame)
{
    if (frame->opcode == OP_PING) {
        meta_answer_ping(core, frame);
        return;
    }
    if (core->meta.state != META_REGISTERED) {
        meta_log_problem(core, opcode_name(frame->opcode), "came before the registration");
        meta_close(core);
        return;
    }
    meta_request_receive(core, frame);
}

/* --- events --- */

static void meta_connect(struct chunkserver_core *core);

static void
meta_wait(struct chunkserver_core *core)
{
    struct meta_session *meta = &core->meta;
    uint64_t jitter_ns = env_random(core->env) % (meta->backoff_ns / 2);

    meta->state = META_WAITING;
    env_timer_start(core->env, &meta->timer, meta->backoff_ns / 2 + jitter_ns);
    meta->backoff_ns *= 2;
    if (meta->backoff_ns > BACKOFF_MAX_NS)
        meta->backoff_ns = BACKOFF_MAX_NS;
}

static void
meta_heartbeat(struct chunkserver_core *core)
{
    if (env_now_ns(core->env) - core->meta.heard_ns > SILENCE_NS) {
        meta_log_problem(core, "closed", "silent for 5 s");
        meta_close(core);
        return;
    }
    meta_send_heartbeat(core);
    env_timer_start(core->env, &core->meta.timer, core->meta.heartbeat_ns);
}

static void
meta_on_timer(struct env_timer *timer)
{
    struct meta_session *meta = list_entry(timer, struct meta_session, timer);
    struct chunkserver_core *core = list_entry(meta, struct chunkserver_core, meta);

    switch (meta->state) {
    case META_WAITING:
        meta_connect(core);
        break;
    case META_CONNECTING:
    case META_GREETING:
    case META_REGISTERING:
        meta_log_problem(core, "closed", "no answer in 5 s");
        meta_close(core);
        break;
    case META_REGISTERED:
        meta_heartbeat(core);
        break;
    case META_CLOSING:
        break;
    }
}

static void
meta_on_up(void *core_pointer, struct link *link)
{
    struct chunkserver_core *core = core_pointer;

    if (core->meta.state != META_CONNECTING)
        return; /* closing */
    dl_assert(link == core->meta.link);
    core->meta.state = META_GREETING;
    core->meta.heard_ns = env_now_ns(core->env);
    core->stats.meta_connects++;
    meta_send_hello(core);
    env_timer_start(core->env, &core->meta.timer, ANSWER_TIMEOUT_NS);
}

/* No message of the metadata service has a payload. */
static void *
meta_on_payload(void *core_pointer, struct link *link, const struct frame *frame)
{
    (void)core_pointer;
    (void)link;
    (void)frame;
    return NULL;
}

static void
meta_on_frame(void *core_pointer, struct link *link, const struct frame *frame)
{
    struct chunkserver_core *core = core_pointer;

    (void)link;
    if (core->meta.state == META_CLOSING)
        return;
    core->meta.heard_ns = env_now_ns(core->env);
    if (frame_is_reply(frame))
        meta_on_reply(core, frame);
    else
        meta_on_request(core, frame);
}

static void
meta_on_down(void *core_pointer, struct link *link, int err)
{
    struct chunkserver_core *core = core_pointer;
    struct meta_session *meta = &core->meta;

    dl_assert(link == meta->link);
    if (meta->state != META_CLOSING)
        meta_log_problem(core,
                         meta->state == META_CONNECTING ? "cannot connect" : "connection lost",
                         dl_err_str(err));
    meta->link = NULL;
    meta->awaited_request_id = 0;
    meta->address_idx = (meta->address_idx + 1) % core->options.meta_count;
    env_timer_stop(core->env, &meta->timer);
    if (core->links_closed) {
        meta->state = META_WAITING;
        core_stop_step(core);
    } else {
        meta_wait(core);
    }
}

static const struct link_events meta_events = {
    .on_up = meta_on_up,
    .on_payload = meta_on_payload,
    .on_frame = meta_on_frame,
    .on_down = meta_on_down,
};

static void
meta_connect(struct chunkserver_core *core)
{
    struct meta_session *meta = &core->meta;

    meta->state = META_CONNECTING;
    meta->connection++;
    meta->awaited_request_id = 0;
    meta->link = link_connect(core->env, meta_address(core), &meta_events, core, NULL);
    env_timer_start(core->env, &meta->timer, ANSWER_TIMEOUT_NS);
}

/* --- life --- */

void
meta_link_start(struct chunkserver_core *core)
{
    core->meta.backoff_ns = BACKOFF_MIN_NS;
    core->meta.timer.fn = meta_on_timer;
    meta_connect(core);
}

void
meta_link_stop(struct chunkserver_core *core)
{
    if (core->meta.state == META_CLOSING)
        return;
    if (core->meta.link != NULL)
        meta_close(core);
    else
        env_timer_stop(core->env, &core->meta.timer);
}

bool
meta_link_is_down(const struct chunkserver_core *core)
{
    return core->meta.link == NULL;
}
