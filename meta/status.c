/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SERVER_LIST and CLUSTER_STATUS.  The states of the cluster are those of its worst volume
 * (health.c); with a problem of a server it is degraded at least.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/text.h"
#include "meta/health.h"
#include "meta/memory.h"

#define PROBLEMS_MAX  100u
#define PROBLEM_BYTES META_PROBLEM_BYTES
#define FULL_PERCENT  90u

/* --- servers --- */

/* It counts as up for some seconds more (server.c): it may be back in a moment. */
static bool
server_is_there(const struct meta_server *server)
{
    return server->up && server->session != NULL;
}

void
meta_server_fill(const struct meta_core *core, const struct meta_server *server,
                 struct server_message *entry)
{
    const struct server_desc *desc = &server->desc;
    Dl__Server *message = &entry->message;

    dl__server__init(message);
    message->id = desc->id;
    message->uuid = (ProtobufCBinaryData){META_ID_BYTES, (uint8_t *)(uintptr_t)desc->uuid};
    message->address = (char *)(uintptr_t)desc->address;
    message->host = (char *)(uintptr_t)desc->host;
    message->rack = (char *)(uintptr_t)desc->rack;
    message->clique = (char *)(uintptr_t)desc->clique;
    message->software = (char *)(uintptr_t)desc->software;
    message->state = server->out                ? DL__SERVER_STATE__SERVER_OUT
                     : !server_is_there(server) ? DL__SERVER_STATE__SERVER_DOWN
                     : server->desc.admin_state == META_ADMIN_DRAINING
                         ? DL__SERVER_STATE__SERVER_DRAINING
                         : DL__SERVER_STATE__SERVER_UP;
    message->capacity_bytes = server->capacity_bytes;
    message->used_bytes = server->used_bytes;
    message->chunk_count = server->chunk_count;
    message->last_heard_ms = server->heard_wall_ms;
    message->slot_count = server->slot_count;
    message->chunks_to_delete = meta_removal_count_of(core, desc->id);
    message->weight_percent = desc->weight_percent != 0 ? desc->weight_percent : 100;
    message->draining = desc->admin_state == META_ADMIN_DRAINING;
    message->removing = desc->admin_state == META_ADMIN_REMOVING;
    meta_server_problem(core, server, entry->problem, sizeof(entry->problem));
    message->problem = entry->problem;
    entry->scrub = server->scrub_counts;
    message->scrub = &entry->scrub;
    message->scrub_completed_ms = server->scrub.completed_ms;
}

void
meta_run_server_list(struct meta_op *op)
{
    const struct meta_core *core = op->core;
    struct server_message *entries = meta_alloc(core->servers_end * sizeof(*entries));
    Dl__ServerListReply reply = DL__SERVER_LIST_REPLY__INIT;

    reply.servers = meta_alloc(core->servers_end * sizeof(Dl__Server *));
    for (uint32_t id = 0; id < core->servers_end; id++) {
        struct server_message *entry = &entries[reply.n_servers];

        if (core->servers[id] == NULL || core->servers[id]->creating)
            continue;
        meta_server_fill(core, core->servers[id], entry);
        reply.servers[reply.n_servers++] = &entry->message;
    }
    meta_op_reply(op, &reply.base);
    free(reply.servers);
    free(entries);
}

/* --- the cluster --- */

struct status {
    const struct meta_core *core;
    Dl__ClusterStatusReply *reply;
    char (*problems)[PROBLEM_BYTES];
    bool blocked;
    bool degraded;
    uint32_t servers_with_slots;
};

DL_ERROR_PRINTF(2, 0)
static void
status_say_v(struct status *status, const char *format, va_list arguments)
{
    if (status->reply->n_problems < PROBLEMS_MAX)
        (void)vsnprintf(status->problems[status->reply->n_problems++], PROBLEM_BYTES, format,
                        arguments);
}

DL_ERROR_PRINTF(2, 3)
static void
status_say(struct status *status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    status_say_v(status, format, arguments);
    va_end(arguments);
}

DL_ERROR_PRINTF(3, 4)
static void
status_add(struct status *status, bool blocked, const char *format, ...)
{
    va_list arguments;

    status->blocked = status->blocked || blocked;
    status->degraded = true;
    va_start(arguments, format);
    status_say_v(status, format, arguments);
    va_end(arguments);
}

/* What was found bad there, and when everything had been looked at. */
static void
status_add_scrub(struct status *status, const struct meta_server *server)
{
    const Dl__ScrubCounts *counts = &server->scrub_counts;
    Dl__ClusterStatusReply *reply = status->reply;

    if (server->slot_count > 0) {
        uint64_t completed_ms = server->scrub.completed_ms;

        reply->scrub_completed_ms = status->servers_with_slots++ == 0
                                        ? completed_ms
                                        : min_u64(reply->scrub_completed_ms, completed_ms);
    }
    if (!server->up)
        return;
    reply->scrub->sectors += counts->sectors;
    reply->scrub->bad += counts->bad;
    reply->scrub->repaired += counts->repaired;
    reply->scrub->left_bad += counts->left_bad;
    reply->scrub->mismatches += counts->mismatches;
    if (counts->left_bad > 0)
        status_add(status, false,
                   "server %s: %" PRIu64 " sectors are bad, and no copy was there to repair them "
                   "from; dlblk events says where, dlblk scrub VOLUME tries again",
                   meta_server_text(server), counts->left_bad);
}

static void
status_add_server(struct status *status, const struct meta_server *server)
{
    Dl__ClusterStatusReply *reply = status->reply;
    char problem[META_TEXT_BYTES_MAX];

    reply->servers_total++;
    reply->servers_up += server_is_there(server);
    reply->capacity_bytes += server->capacity_bytes;
    reply->used_bytes += server->used_bytes;
    status_add_scrub(status, server);
    meta_server_problem(status->core, server, problem, sizeof(problem));
    if (problem[0] != '\0')
        status_add(status, false, "server %s: %s; volumes have %" PRIu64 " chunks there: %s",
                   meta_server_text(server), problem, server->slot_count,
                   server->desc.admin_state == META_ADMIN_REMOVING ? "they are recovered elsewhere"
                   : meta_server_is_awaited(server)                ? "ask again in some seconds"
                   : meta_server_is_full(server)                   ? META_HINT_FULL
                   : server_is_there(server)                       ? "look at its log"
                   : server->out ? "they are recovered elsewhere; start dlblk-chunkserver there, "
                                   "or remove the server"
                                 : "start dlblk-chunkserver there");
    else if (server->capacity_bytes > 0 &&
             server->used_bytes >= server->capacity_bytes / 100 * FULL_PERCENT)
        status_add(
            status, false, "server %s is %u %% full: add chunkservers, or delete volumes",
            meta_server_text(server),
            (unsigned)min_u64(100, server->used_bytes / max_u64(1, server->capacity_bytes / 100)));
}

static void
status_add_health(struct status *status, const struct meta_volume *volume)
{
    Dl__ClusterStatusReply *reply = status->reply;
    char texts[META_HEALTH_PROBLEMS][META_PROBLEM_BYTES];
    struct volume_health health;
    const char *state;
    uint32_t count;

    meta_health_volume(status->core, volume, &health);
    state = meta_health_state(&health);
    count = meta_health_problems(status->core, volume, &health, texts);
    status->blocked = status->blocked || strcmp(state, "blocked") == 0;
    status->degraded = status->degraded || strcmp(state, "degraded") == 0;
    for (uint32_t i = 0; i < count; i++)
        status_say(status, "%s", texts[i]);
    if (meta_health_no_place(status->core, volume, &health, texts[0], META_PROBLEM_BYTES))
        status_add(status, false, "%s", texts[0]);
    reply->segments_degraded += health.degraded;
    reply->segments_blocked += health.blocked + health.unreadable;
    reply->segments_moving += health.moving;
    reply->slots_recovering += health.slots_recovering;
    reply->recovery_left_bytes += health.left_bytes;
}

static void
status_add_volume(struct status *status, const struct meta_volume *volume)
{
    char text[PROBLEM_BYTES];

    if (volume->creating)
        return;
    if (volume->desc.deleting) {
        meta_deletion_text(status->core, volume, text, sizeof(text));
        if (text[0] != '\0')
            status_add(status, false, "%s", text);
        return;
    }
    status_add_health(status, volume);
    status->reply->volumes++;
    status->reply->volume_bytes += volume->desc.size_bytes;
    if (!volume->desc.owned || volume->desc.ready)
        return;
    meta_takeover_text(status->core, volume, text, sizeof(text));
    status_add(status, true, "volume %s: its attach waits for %s", volume->desc.name,
               text[0] != '\0' ? text : "its new owner to ask again");
}

static void
status_fill(struct status *status)
{
    const struct meta_core *core = status->core;
    Dl__ClusterStatusReply *reply = status->reply;
    struct meta_volume *volume, *following;

    for (uint32_t id = 0; id < core->servers_end; id++)
        if (core->servers[id] != NULL && !core->servers[id]->creating)
            status_add_server(status, core->servers[id]);
    HASH_ITER (hh, core->volumes, volume, following)
        status_add_volume(status, volume);
    if (core->segment_count >= core->options.segments_max / 100 * FULL_PERCENT)
        status_add(status, core->segment_count >= core->options.segments_max,
                   "%" PRIu64 " segments are allocated, of at most %" PRIu32
                   ": new volumes should have larger segments",
                   core->segment_count, core->options.segments_max);
    reply->segments = core->segment_count;
    reply->uptime_ms = (env_now_ns(core->env) - core->started_ns) / NS_PER_MS;
}

void
meta_run_cluster_status(struct meta_op *op)
{
    Dl__ClusterStatusReply reply = DL__CLUSTER_STATUS_REPLY__INIT;
    Dl__ScrubCounts scrub = DL__SCRUB_COUNTS__INIT;
    struct status status = {.core = op->core, .reply = &reply};
    char *pointers[PROBLEMS_MAX];

    status.problems = meta_alloc(PROBLEMS_MAX * PROBLEM_BYTES);
    reply.scrub = &scrub;
    status_fill(&status);
    for (size_t i = 0; i < reply.n_problems; i++)
        pointers[i] = status.problems[i];
    reply.problems = pointers;
    reply.cluster_id = (ProtobufCBinaryData){META_ID_BYTES, op->core->cluster_id};
    reply.state = (char *)(uintptr_t)(status.blocked    ? "blocked"
                                      : status.degraded ? "degraded"
                                      : reply.segments_degraded + reply.segments_moving != 0
                                          ? "recovering"
                                          : "healthy");
    meta_health_fill_sums(op->core, reply.slots_recovering, reply.recovery_left_bytes,
                          &reply.recovery_bytes_per_s, &reply.recovery_left_s);
    reply.software = (char *)(uintptr_t)meta_software();
    meta_op_reply(op, &reply.base);
    free(status.problems);
}
