/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/core.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/text.h"
#include "common/version.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/meta.pb-c.h"
#include "meta/recovery.h"
#include "meta/schema.h"

#define TICK_NS (250 * NS_PER_MS)

static_assert(META_NAME_BYTES_MAX == TEXT_NAME_BYTES_MAX, "text_check_name() checks names");

/* --- small things that all files use --- */

void
meta_log(const struct meta_core *core, enum meta_log_level level, const char *component,
         const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (core->options.on_log != NULL)
        core->options.on_log(core->options.context, level, component, text);
}

void
meta_text_clean_to(char *text, size_t text_bytes, const char *from)
{
    size_t length = 0;

    for (; from[length] != '\0' && length + 1 < text_bytes; length++)
        text[length] = from[length] >= ' ' && from[length] <= '~' ? from[length] : '?';
    text[length] = '\0';
}

void
meta_text_clean(char *text, const char *from)
{
    meta_text_clean_to(text, META_TEXT_BYTES_MAX + 1, from);
}

bool
meta_id_is_valid(ProtobufCBinaryData id)
{
    static const uint8_t zero[META_ID_BYTES];

    return id.len == META_ID_BYTES && memcmp(id.data, zero, META_ID_BYTES) != 0;
}

struct meta_id_text
meta_id_format(const uint8_t id[META_ID_BYTES])
{
    struct meta_id_text result;
    char *out = result.text;

    for (unsigned i = 0; i < META_ID_BYTES; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *out++ = '-';
        out += snprintf(out, 3, "%02x", id[i]);
    }
    return result;
}

const char *
meta_software(void)
{
    static _Thread_local char text[META_TEXT_BYTES_MAX];

    /* The versions of wire and disk follow behind the comma. */
    (void)snprintf(text, sizeof(text), "%s", dlblk_version_text("dlblk-meta"));
    text[strcspn(text, ",")] = '\0';
    return text;
}

uint64_t
meta_core_random(void *context)
{
    struct meta_core *core = context;

    return env_random(core->env);
}

/* --- life --- */

static void
core_set_defaults(struct meta_options *options)
{
    struct meta_options *o = options;

    o->heartbeat_ns = o->heartbeat_ns != 0 ? o->heartbeat_ns : NS_PER_S;
    o->server_down_ns = o->server_down_ns != 0 ? o->server_down_ns : 5 * NS_PER_S;
    o->probe_ns = o->probe_ns != 0 ? o->probe_ns : NS_PER_S;
    o->attach_wait_ns = o->attach_wait_ns != 0 ? o->attach_wait_ns : 30 * NS_PER_S;
    o->grace_ns = o->grace_ns != 0 ? o->grace_ns : 2 * NS_PER_S;
    o->hello_ns = o->hello_ns != 0 ? o->hello_ns : 10 * NS_PER_S;
    o->silent_ns = o->silent_ns != 0 ? o->silent_ns : 5 * NS_PER_S;
    o->out_after_ns = o->out_after_ns != 0 ? o->out_after_ns : 600 * NS_PER_S;
    o->recovery_per_server = o->recovery_per_server != 0 ? o->recovery_per_server : 4;
    o->servers_max = o->servers_max != 0 ? o->servers_max : META_SERVERS_MAX;
    o->volumes_max = o->volumes_max != 0 ? o->volumes_max : META_VOLUMES_MAX;
    o->segments_max = o->segments_max != 0 ? o->segments_max : META_SEGMENTS_MAX;
    o->sessions_max = o->sessions_max != 0 ? o->sessions_max : META_SESSIONS_MAX;
    o->fence_bytes_max = o->fence_bytes_max != 0 ? o->fence_bytes_max : META_FENCE_BYTES_MAX;
}

static void
core_on_tick(struct env_timer *timer)
{
    struct meta_core *core = list_entry(timer, struct meta_core, tick);
    uint64_t now_ns = env_now_ns(core->env);
    struct meta_session *session, *following;

    if (core->phase == META_FAILED)
        return;
    list_for_each_entry_safe (session, following, &core->sessions, node)
        meta_session_tick(session, now_ns);
    if (core->phase == META_SERVING)
        for (uint32_t id = 0; id < core->servers_end; id++)
            if (core->servers[id] != NULL)
                meta_server_tick(core, core->servers[id], now_ns);
    if (core->phase == META_SERVING)
        meta_recovery_tick(core, now_ns);
    if (core->phase == META_SERVING)
        meta_scrub_tick(core);
    env_timer_start(core->env, &core->tick, TICK_NS);
}

static void
core_on_ready_task(struct env_task *task)
{
    struct meta_core *core = list_entry(task, struct meta_core, ready_task);

    meta_op_run_ready(core);
    if (core->phase == META_STOPPING && core->commits_in_flight == 0 && !meta_load_is_busy(core) &&
        core->on_stopped != NULL) {
        void (*on_stopped)(void *context) = core->on_stopped;

        core->on_stopped = NULL;
        on_stopped(core->stopped_context); /* may destroy the core */
    }
}

struct meta_core *
meta_core_create(struct env *env, struct store *store, const struct meta_options *options)
{
    struct meta_core *core = meta_alloc(sizeof(*core));

    core->env = env;
    core->store = store;
    if (options != NULL)
        core->options = *options;
    core_set_defaults(&core->options);
    for (unsigned i = 0; i < META_ID_BYTES; i += 8) {
        uint64_t random = env_random(env);

        memcpy(core->instance + i, &random, sizeof(random));
    }
    core->started_ns = env_now_ns(env);
    list_init(&core->sessions);
    list_init(&core->scrubs);
    list_init(&core->ops);
    list_init(&core->ready);
    core->ready_task.fn = core_on_ready_task;
    core->tick.fn = core_on_tick;
    meta_recovery_create(core);
    env_timer_start(env, &core->tick, TICK_NS);
    meta_load_start(core);
    return core;
}

void
meta_core_loaded(struct meta_core *core)
{
    struct meta_session *session;
    struct meta_volume *volume, *following;

    dl_assert(core->phase == META_LOADING);
    core->phase = META_SERVING;
    dl_assert(core->server_count <= core->servers_end);
    core->serving_ns = env_now_ns(core->env);
    memcpy(&core->placement_seed, core->cluster_id, sizeof(core->placement_seed));
    list_for_each_entry (session, &core->sessions, node) {
        session->heard_ns = session->accepted_ns = core->serving_ns;
        meta_session_update_flow(session);
    }
    for (uint32_t id = 0; id < core->servers_end; id++)
        if (core->servers[id] != NULL)
            core->servers[id]->lost_ns = core->serving_ns;
    HASH_ITER (hh, core->volumes, volume, following) {
        volume->owner_lost_ns = core->serving_ns;
        /* What an owner knows that was answered is forgotten. */
        volume->owner_answered = volume->desc.owned && volume->desc.ready;
        volume->owner_map_seq = volume->owner_answered ? 0 : UINT64_MAX;
        if (volume->desc.deleting)
            meta_deletion_start(core, volume);
    }
    meta_removal_loaded(core);
    meta_log(core, META_LOG_INFO, "core",
             "cluster %s: serving %u volumes with %llu segments, %u servers known",
             meta_id_format(core->cluster_id).text, core->volume_count,
             (unsigned long long)core->segment_count, core->server_count);
    if (core->options.on_ready != NULL)
        core->options.on_ready(core->options.context);
}

void
meta_core_fail(struct meta_core *core, const struct dl_error *err)
{
    if (core->phase == META_FAILED)
        return;
    core->phase = META_FAILED;
    meta_log(core, META_LOG_ERROR, "core", "can not go on: %s", err->text);
    if (core->options.on_fatal != NULL)
        core->options.on_fatal(core->options.context, err->code, err->text, err->hint);
}

void
meta_core_commit_ended(struct meta_core *core)
{
    dl_assert(core->commits_in_flight > 0);
    core->commits_in_flight--;
    if (core->phase == META_STOPPING && core->commits_in_flight == 0)
        env_defer(core->env, &core->ready_task);
}

void
meta_core_stop(struct meta_core *core, void (*on_stopped)(void *context), void *context)
{
    core->on_stopped = on_stopped;
    core->stopped_context = context;
    if (core->phase != META_FAILED)
        core->phase = META_STOPPING;
    meta_log(core, META_LOG_INFO, "core", "stopping: %u changes in flight",
             core->commits_in_flight);
    env_defer(core->env, &core->ready_task);
}

/* --- the end --- */

/* Without the care of meta_op_end(): everything goes. */
static void
core_free_op(struct meta_core *core, struct meta_op *op)
{
    if (list_is_linked(&op->node))
        list_remove(&op->node);
    env_timer_stop(core->env, &op->timer);
    if (op->message != NULL)
        protobuf_c_message_free_unpacked(op->message, NULL);
    store_batch_fini(&op->batch);
    meta_change_free(op->change);
    free(op->desc);
    free(op->scratch);
    free(op);
}

static void
core_free_tables(struct meta_core *core)
{
    struct meta_volume *volume, *following_volume;
    struct meta_name *name, *following_name;
    struct meta_label *label, *following_label;
    struct meta_server *server, *following_server;

    HASH_ITER (hh, core->names, name, following_name) {
        HASH_DEL(core->names, name);
        free(name);
    }
    HASH_ITER (hh, core->volumes, volume, following_volume)
        meta_volume_destroy(core, volume);
    for (uint32_t id = 0; id < core->servers_end; id++)
        if (core->servers[id] != NULL && core->servers[id]->forgotten)
            meta_server_free(core->servers[id]);
    HASH_ITER (hh, core->servers_by_uuid, server, following_server) {
        HASH_DEL(core->servers_by_uuid, server);
        meta_server_free(server);
    }
    HASH_ITER (hh, core->labels, label, following_label) {
        HASH_DEL(core->labels, label);
        free(label);
    }
    free(core->servers);
}

void
meta_core_destroy(struct meta_core *core)
{
    struct meta_op *op, *following_op;
    struct meta_session *session, *following_session;

    if (core == NULL)
        return;
    meta_load_free(core);
    env_timer_stop(core->env, &core->tick);
    list_for_each_entry_safe (op, following_op, &core->ops, core_node)
        core_free_op(core, op);
    meta_recovery_free(core);
    core_free_tables(core);
    list_for_each_entry_safe (session, following_session, &core->sessions, node)
        meta_session_free(session);
    free(core);
}

/* --- what others may ask --- */

bool
meta_core_is_serving(const struct meta_core *core)
{
    return core->phase == META_SERVING;
}

const uint8_t *
meta_core_cluster_id(const struct meta_core *core)
{
    dl_assert(core->phase != META_LOADING);
    return core->cluster_id;
}

void
meta_core_get_stats(const struct meta_core *core, struct meta_stats *ret_stats)
{
    struct meta_stats stats = core->stats;

    stats.sessions = core->session_count;
    stats.fence_bytes = core->fence_bytes;
    stats.segments = core->segment_count;
    stats.volumes = core->volume_count;
    for (uint32_t id = 0; id < core->servers_end; id++)
        stats.servers_up += core->servers[id] != NULL && core->servers[id]->up;
    *ret_stats = stats;
}

void
meta_cluster_init_batch(struct store_batch *batch, const uint8_t cluster_id[META_ID_BYTES],
                        uint64_t now_ms)
{
    Dl__Meta__ClusterRecord cluster = DL__META__CLUSTER_RECORD__INIT;
    Dl__Meta__SchemaRecord schema = DL__META__SCHEMA_RECORD__INIT;
    struct schema_key key;

    cluster.cluster_id = (ProtobufCBinaryData){META_ID_BYTES, (uint8_t *)(uintptr_t)cluster_id};
    cluster.created_ms = now_ms;
    key = schema_key_text("cluster");
    store_batch_put_message(batch, schema_bytes(&key), &cluster.base);
    meta_record_put_counter(batch, "next/server", 1);
    meta_record_put_counter(batch, "next/volume", 1);
    schema.version = META_SCHEMA_VERSION;
    schema.software = (char *)(uintptr_t)meta_software();
    key = schema_key_text("schema");
    store_batch_put_message(batch, schema_bytes(&key), &schema.base);
}
