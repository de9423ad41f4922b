/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib_admin.c: libdlblk's administration: each function is one request to the metadata service.
 *
 * Create, rename and delete carry a random change id: asked again after a lost connection they are
 * carried out once.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "client/lib_internal.h"
#include "common/vec.h"
#include "proto/control.pb-c.h"
#include "proto/data.h"

#define CHANGE_ID_BYTES 16u
#define UUID_BYTES      16u

static ProtobufCBinaryData
admin_change_id(uint8_t id[CHANGE_ID_BYTES])
{
    size_t filled = 0;

    while (filled < CHANGE_ID_BYTES) {
        ssize_t got = getrandom(id + filled, CHANGE_ID_BYTES - filled, 0);

        dl_assert(got > 0 || errno == EINTR);
        filled += got > 0 ? (size_t)got : 0;
    }
    return (ProtobufCBinaryData){.data = id, .len = CHANGE_ID_BYTES};
}

/* protobuf-c's strings are not const, but packing does not write to them. */
static char *
admin_text(const char *text)
{
    return (char *)(uintptr_t)(text != NULL ? text : "");
}

static void
admin_copy(char *to, size_t to_bytes, const char *from)
{
    (void)snprintf(to, to_bytes, "%s", from);
}

static void
admin_format_uuid(char text[37], const ProtobufCBinaryData *uuid)
{
    size_t at = 0;

    text[0] = '\0';
    if (uuid->len != UUID_BYTES)
        return;
    for (unsigned i = 0; i < UUID_BYTES; i++)
        at += (size_t)snprintf(text + at, 37 - at, "%s%02x",
                               i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid->data[i]);
}

/* --- volumes --- */

static int
admin_take_volume_info(const Dl__Volume *volume, struct dlblk_volume_info *ret_info)
{
    const Dl__VolumePolicy *policy = volume->policy;

    if (policy == NULL || volume->segment_bytes == 0)
        return -DL_E_MESSAGE_MALFORMED;
    *ret_info = (struct dlblk_volume_info){
        .id = volume->id,
        .size_bytes = volume->size_bytes,
        .segment_bytes = volume->segment_bytes,
        .logical_block_bytes = volume->logical_block_bytes,
        .stripe_width = volume->stripe_width,
        .stripe_unit_bytes = volume->stripe_unit_bytes,
        .replicas = policy->replicas,
        .min_write = policy->min_write,
        .failure_domain = (enum dlblk_domain)policy->failure_domain,
        .allocated_bytes = volume->allocated_segments * volume->segment_bytes,
        .lease_epoch = volume->lease_epoch,
        .created_ms = volume->created_ms,
        .attached_ms = volume->attached_ms,
        .clean = volume->clean,
    };
    admin_copy(ret_info->name, sizeof(ret_info->name), volume->name);
    admin_copy(ret_info->clique, sizeof(ret_info->clique), policy->clique);
    admin_copy(ret_info->owner, sizeof(ret_info->owner), volume->owner);
    return 0;
}

static int
admin_take_volume(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__VolumeReply *reply = (const Dl__VolumeReply *)message;
    struct dlblk_volume_info ignored;

    if (reply->volume == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    return admin_take_volume_info(reply->volume, call->result != NULL ? call->result : &ignored);
}

int
dlblk_volume_create(struct dlblk_client *client, const struct dlblk_volume_spec *spec,
                    struct dlblk_volume_info *ret_info, struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_volume, .result = ret_info};
    Dl__VolumeCreate request = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    uint8_t change_id[CHANGE_ID_BYTES];

    policy.redundancy = DL__REDUNDANCY__REDUNDANCY_REPLICATED;
    policy.replicas = spec->replicas;
    policy.min_write = spec->min_write;
    policy.failure_domain = (Dl__FailureDomain)spec->failure_domain;
    policy.clique = admin_text(spec->clique);
    request.name = admin_text(spec->name);
    request.size_bytes = spec->size_bytes;
    request.segment_bytes = spec->segment_bytes;
    request.logical_block_bytes = spec->logical_block_bytes;
    request.stripe_width = spec->stripe_width;
    request.stripe_unit_bytes = spec->stripe_unit_bytes;
    request.policy = &policy;
    request.change_id = admin_change_id(change_id);
    return lib_meta_call_wait(client, &call, OP_VOLUME_CREATE, &request.base,
                              &dl__volume_reply__descriptor, err);
}

int
dlblk_volume_info(struct dlblk_client *client, const char *name, struct dlblk_volume_info *ret_info,
                  struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_volume, .result = ret_info};
    Dl__VolumeInfo request = DL__VOLUME_INFO__INIT;

    request.name = admin_text(name);
    return lib_meta_call_wait(client, &call, OP_VOLUME_INFO, &request.base,
                              &dl__volume_reply__descriptor, err);
}

struct volume_list {
    VEC(struct dlblk_volume_info) infos;
    bool more;
};

static int
admin_take_volume_list(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__VolumeListReply *reply = (const Dl__VolumeListReply *)message;
    struct volume_list *list = call->result;

    for (size_t i = 0; i < reply->n_volumes; i++) {
        struct dlblk_volume_info info;
        int err = admin_take_volume_info(reply->volumes[i], &info);

        if (err == 0)
            err = vec_push(&list->infos, info);
        if (err != 0)
            return err;
    }
    list->more = reply->more && reply->n_volumes > 0;
    return 0;
}

static int
admin_compare_names(const void *a, const void *b)
{
    return strcmp(((const struct dlblk_volume_info *)a)->name,
                  ((const struct dlblk_volume_info *)b)->name);
}

int
dlblk_volume_list(struct dlblk_client *client, struct dlblk_volume_info **ret_infos,
                  size_t *ret_count, struct dl_error *err)
{
    struct volume_list list = {0};
    char after[sizeof(((struct dlblk_volume_info *)0)->name)] = "";
    int result;

    do {
        struct lib_meta_call call = {.take = admin_take_volume_list, .result = &list};
        Dl__VolumeList request = DL__VOLUME_LIST__INIT;

        if (list.infos.count > 0)
            admin_copy(after, sizeof(after), list.infos.items[list.infos.count - 1].name);
        request.after = after;
        list.more = false;
        result = lib_meta_call_wait(client, &call, OP_VOLUME_LIST, &request.base,
                                    &dl__volume_list_reply__descriptor, err);
    } while (result == 0 && list.more);
    if (result != 0) {
        vec_fini(&list.infos);
        return result;
    }
    if (list.infos.count > 0)
        qsort(list.infos.items, list.infos.count, sizeof(list.infos.items[0]), admin_compare_names);
    *ret_infos = list.infos.items;
    *ret_count = list.infos.count;
    return 0;
}

int
dlblk_volume_rename(struct dlblk_client *client, const char *name, const char *new_name,
                    struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_volume};
    Dl__VolumeRename request = DL__VOLUME_RENAME__INIT;
    uint8_t change_id[CHANGE_ID_BYTES];

    request.name = admin_text(name);
    request.new_name = admin_text(new_name);
    request.change_id = admin_change_id(change_id);
    return lib_meta_call_wait(client, &call, OP_VOLUME_RENAME, &request.base,
                              &dl__volume_reply__descriptor, err);
}

int
dlblk_volume_resize(struct dlblk_client *client, const char *name, uint64_t size_bytes,
                    struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_volume};
    Dl__VolumeResize request = DL__VOLUME_RESIZE__INIT;

    request.name = admin_text(name);
    request.size_bytes = size_bytes;
    return lib_meta_call_wait(client, &call, OP_VOLUME_RESIZE, &request.base,
                              &dl__volume_reply__descriptor, err);
}

int
dlblk_volume_delete(struct dlblk_client *client, const char *name, struct dl_error *err)
{
    struct lib_meta_call call = {0};
    Dl__VolumeDelete request = DL__VOLUME_DELETE__INIT;
    uint8_t change_id[CHANGE_ID_BYTES];

    request.name = admin_text(name);
    request.change_id = admin_change_id(change_id);
    return lib_meta_call_wait(client, &call, OP_VOLUME_DELETE, &request.base,
                              &dl__volume_delete_reply__descriptor, err);
}

/* --- servers --- */

static const char *
admin_server_state(Dl__ServerState state)
{
    switch (state) {
    case DL__SERVER_STATE__SERVER_UP:
        return "up";
    case DL__SERVER_STATE__SERVER_DOWN:
        return "down";
    case DL__SERVER_STATE__SERVER_DRAINING:
        return "draining";
    case DL__SERVER_STATE__SERVER_OUT:
        return "out";
    default:
        return "unknown";
    }
}

static int
admin_copy_sentences(char *const *texts, size_t count, char (**ret_sentences)[DLBLK_SENTENCE_BYTES])
{
    char(*sentences)[DLBLK_SENTENCE_BYTES] = NULL;

    if (count > 0) {
        sentences = calloc(count, sizeof(*sentences));
        if (sentences == NULL)
            return -DL_E_NO_MEMORY;
    }
    for (size_t i = 0; i < count; i++)
        admin_copy(sentences[i], sizeof(sentences[i]), texts[i]);
    *ret_sentences = sentences;
    return 0;
}

static struct dlblk_scrub_counts
admin_scrub_counts(const Dl__ScrubCounts *counts)
{
    if (counts == NULL) /* a service of an earlier version */
        return (struct dlblk_scrub_counts){0};
    return (struct dlblk_scrub_counts){
        .sectors = counts->sectors,
        .bad = counts->bad,
        .repaired = counts->repaired,
        .left_bad = counts->left_bad,
        .mismatches = counts->mismatches,
    };
}

static void
admin_take_server(const Dl__Server *server, struct dlblk_server_info *ret_info)
{
    *ret_info = (struct dlblk_server_info){
        .id = server->id,
        .capacity_bytes = server->capacity_bytes,
        .used_bytes = server->used_bytes,
        .chunk_count = server->chunk_count,
        .last_heard_ms = server->last_heard_ms,
        .slot_count = server->slot_count,
        .chunks_to_delete = server->chunks_to_delete,
        .weight_percent = server->weight_percent,
        .draining = server->draining,
        .removing = server->removing,
        .scrub = admin_scrub_counts(server->scrub),
        .scrub_completed_ms = server->scrub_completed_ms,
    };
    admin_format_uuid(ret_info->uuid, &server->uuid);
    admin_copy(ret_info->address, sizeof(ret_info->address), server->address);
    admin_copy(ret_info->host, sizeof(ret_info->host), server->host);
    admin_copy(ret_info->rack, sizeof(ret_info->rack), server->rack);
    admin_copy(ret_info->clique, sizeof(ret_info->clique), server->clique);
    admin_copy(ret_info->state, sizeof(ret_info->state), admin_server_state(server->state));
    admin_copy(ret_info->problem, sizeof(ret_info->problem), server->problem);
    admin_copy(ret_info->software, sizeof(ret_info->software), server->software);
}

struct server_list {
    struct dlblk_server_info *infos;
    size_t count;
};

static int
admin_compare_ids(const void *a, const void *b)
{
    uint32_t left = ((const struct dlblk_server_info *)a)->id;
    uint32_t right = ((const struct dlblk_server_info *)b)->id;

    return left < right ? -1 : left > right;
}

static int
admin_take_server_list(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__ServerListReply *reply = (const Dl__ServerListReply *)message;
    struct server_list *list = call->result;

    if (reply->n_servers == 0)
        return 0;
    list->infos = calloc(reply->n_servers, sizeof(list->infos[0]));
    if (list->infos == NULL)
        return -DL_E_NO_MEMORY;
    for (size_t i = 0; i < reply->n_servers; i++)
        admin_take_server(reply->servers[i], &list->infos[i]);
    list->count = reply->n_servers;
    qsort(list->infos, list->count, sizeof(list->infos[0]), admin_compare_ids);
    return 0;
}

int
dlblk_server_list(struct dlblk_client *client, struct dlblk_server_info **ret_infos,
                  size_t *ret_count, struct dl_error *err)
{
    struct server_list list = {0};
    struct lib_meta_call call = {.take = admin_take_server_list, .result = &list};
    Dl__ServerList request = DL__SERVER_LIST__INIT;
    int result = lib_meta_call_wait(client, &call, OP_SERVER_LIST, &request.base,
                                    &dl__server_list_reply__descriptor, err);

    if (result != 0)
        return result;
    *ret_infos = list.infos;
    *ret_count = list.count;
    return 0;
}

/* --- changes of servers --- */

static int
admin_take_server_change(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__ServerChangeReply *reply = (const Dl__ServerChangeReply *)message;
    struct dlblk_server_change *change = call->result;

    if (reply->server == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    if (change == NULL)
        return 0;
    *change = (struct dlblk_server_change){
        .slots = reply->slots,
        .bytes = reply->bytes,
        .below_min_write = reply->below_min_write,
        .last_copies = reply->last_copies,
        .effect_count = reply->n_effects,
    };
    admin_take_server(reply->server, &change->server);
    return admin_copy_sentences(reply->effects, reply->n_effects, &change->effects);
}

static int
admin_change_server(struct dlblk_client *client, uint16_t opcode, const ProtobufCMessage *request,
                    struct dlblk_server_change *ret_change, struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_server_change, .result = ret_change};

    return lib_meta_call_wait(client, &call, opcode, request, &dl__server_change_reply__descriptor,
                              err);
}

int
dlblk_server_drain(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                   struct dlblk_server_change *ret_change, struct dl_error *err)
{
    Dl__ServerDrain request = DL__SERVER_DRAIN__INIT;

    request.server_id = server_id;
    request.dry_run = dry_run;
    return admin_change_server(client, OP_SERVER_DRAIN, &request.base, ret_change, err);
}

int
dlblk_server_undrain(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                     struct dlblk_server_change *ret_change, struct dl_error *err)
{
    Dl__ServerUndrain request = DL__SERVER_UNDRAIN__INIT;

    request.server_id = server_id;
    request.dry_run = dry_run;
    return admin_change_server(client, OP_SERVER_UNDRAIN, &request.base, ret_change, err);
}

int
dlblk_server_remove(struct dlblk_client *client, uint32_t server_id, bool force, bool dry_run,
                    struct dlblk_server_change *ret_change, struct dl_error *err)
{
    Dl__ServerRemove request = DL__SERVER_REMOVE__INIT;

    request.server_id = server_id;
    request.force = force;
    request.dry_run = dry_run;
    return admin_change_server(client, OP_SERVER_REMOVE, &request.base, ret_change, err);
}

/* What the server is called now; the message has all three labels or none. */
static int
admin_find_server(struct dlblk_client *client, uint32_t server_id,
                  struct dlblk_server_info *ret_info, struct dl_error *err)
{
    struct dlblk_server_info *infos = NULL;
    size_t count = 0;
    int result = dlblk_server_list(client, &infos, &count, err);
    bool found = false;

    if (result != 0)
        return result;
    for (size_t i = 0; i < count && !found; i++) {
        found = infos[i].id == server_id;
        if (found)
            *ret_info = infos[i];
    }
    free(infos);
    if (found)
        return 0;
    result = dl_error_set(err, -DL_E_SERVER_UNKNOWN, "server %u does not exist", server_id);
    dl_error_hint(err, "dlblk server list shows all servers");
    return result;
}

static char *
admin_label(const char *label, const char *current)
{
    return admin_text(label != NULL ? label : current);
}

int
dlblk_server_set(struct dlblk_client *client, uint32_t server_id,
                 const struct dlblk_server_labels *labels, bool dry_run,
                 struct dlblk_server_change *ret_change, struct dl_error *err)
{
    Dl__ServerSet request = DL__SERVER_SET__INIT;
    struct dlblk_server_info current = {0};

    request.server_id = server_id;
    request.dry_run = dry_run;
    request.weight_percent = labels->weight_percent;
    request.set_labels = labels->host != NULL || labels->rack != NULL || labels->clique != NULL;
    if (request.set_labels) {
        int result = admin_find_server(client, server_id, &current, err);

        if (result != 0)
            return result;
        request.host = admin_label(labels->host, current.host);
        request.rack = admin_label(labels->rack, current.rack);
        request.clique = admin_label(labels->clique, current.clique);
    }
    return admin_change_server(client, OP_SERVER_SET, &request.base, ret_change, err);
}

void
dlblk_server_change_fini(struct dlblk_server_change *change)
{
    free(change->effects);
    change->effects = NULL;
    change->effect_count = 0;
}

/* --- the cluster --- */

static int
admin_take_status(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__ClusterStatusReply *reply = (const Dl__ClusterStatusReply *)message;
    struct dlblk_cluster_status *status = call->result;

    *status = (struct dlblk_cluster_status){
        .servers_total = reply->servers_total,
        .servers_up = reply->servers_up,
        .volumes = reply->volumes,
        .capacity_bytes = reply->capacity_bytes,
        .used_bytes = reply->used_bytes,
        .volume_bytes = reply->volume_bytes,
        .segments = reply->segments,
        .uptime_ms = reply->uptime_ms,
        .segments_degraded = reply->segments_degraded,
        .segments_blocked = reply->segments_blocked,
        .segments_moving = reply->segments_moving,
        .recovery =
            {
                .slots = reply->slots_recovering,
                .left_bytes = reply->recovery_left_bytes,
                .bytes_per_s = reply->recovery_bytes_per_s,
                .left_s = reply->recovery_left_s,
            },
        .scrub = admin_scrub_counts(reply->scrub),
        .scrub_completed_ms = reply->scrub_completed_ms,
        .problem_count = reply->n_problems,
    };
    admin_format_uuid(status->cluster_id, &reply->cluster_id);
    admin_copy(status->state, sizeof(status->state), reply->state);
    admin_copy(status->software, sizeof(status->software), reply->software);
    return admin_copy_sentences(reply->problems, reply->n_problems, &status->problems);
}

int
dlblk_cluster_status(struct dlblk_client *client, struct dlblk_cluster_status *ret_status,
                     struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_status, .result = ret_status};
    Dl__ClusterStatus request = DL__CLUSTER_STATUS__INIT;

    return lib_meta_call_wait(client, &call, OP_CLUSTER_STATUS, &request.base,
                              &dl__cluster_status_reply__descriptor, err);
}

void
dlblk_cluster_status_fini(struct dlblk_cluster_status *status)
{
    free(status->problems);
    status->problems = NULL;
    status->problem_count = 0;
}

/* --- scrubs --- */

static int
admin_take_scrub(const Dl__ScrubReply *reply, struct dlblk_scrub *scrub)
{
    *scrub = (struct dlblk_scrub){
        .total_bytes = reply->total_bytes,
        .done_bytes = reply->done_bytes,
        .left_s = reply->left_s,
        .counts = admin_scrub_counts(reply->counts),
        .chunks_skipped = reply->chunks_skipped,
        .uncompared = reply->uncompared,
        .begun_ms = reply->begun_ms,
        .ended_ms = reply->ended_ms,
    };
    if (reply->scrub_id.len != 0 && reply->scrub_id.len != sizeof(scrub->id))
        return -DL_E_MESSAGE_MALFORMED;
    if (reply->scrub_id.len != 0)
        memcpy(scrub->id, reply->scrub_id.data, sizeof(scrub->id));
    admin_copy(scrub->state, sizeof(scrub->state), reply->state);
    for (size_t i = 0; i < reply->n_servers_absent && i < DLBLK_SCRUB_ABSENT_MAX; i++)
        scrub->absent[scrub->absent_count++] = reply->servers_absent[i];
    return 0;
}

static int
admin_take_scrub_reply(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    return admin_take_scrub((const Dl__ScrubReply *)message, call->result);
}

int
dlblk_volume_scrub(struct dlblk_client *client, const char *name, const uint8_t id[16],
                   struct dlblk_scrub *ret_scrub, struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_scrub_reply, .result = ret_scrub};
    Dl__Scrub request = DL__SCRUB__INIT;

    request.name = admin_text(name);
    request.scrub_id = (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)id, .len = 16};
    return lib_meta_call_wait(client, &call, OP_SCRUB, &request.base, &dl__scrub_reply__descriptor,
                              err);
}

/* --- a volume's state --- */

static int
admin_take_volume_status(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__VolumeStatusReply *reply = (const Dl__VolumeStatusReply *)message;
    struct dlblk_volume_status *status = call->result;
    int err;

    if (reply->volume == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    *status = (struct dlblk_volume_status){
        .problem_count = reply->n_problems,
        .since_ms = reply->since_ms,
        .segments = reply->segments,
        .segments_in_sync = reply->segments_in_sync,
        .segments_degraded = reply->segments_degraded,
        .segments_blocked = reply->segments_blocked,
        .segments_unreadable = reply->segments_unreadable,
        .segments_moving = reply->segments_moving,
        .recovery =
            {
                .slots = reply->slots_recovering,
                .left_bytes = reply->left_bytes,
                .bytes_per_s = reply->rate_bytes_per_s,
                .left_s = reply->left_s,
            },
    };
    admin_copy(status->state, sizeof(status->state), reply->state);
    admin_copy(status->scrub.state, sizeof(status->scrub.state), "none");
    err = admin_take_volume_info(reply->volume, &status->info);
    if (err == 0 && reply->scrub != NULL)
        err = admin_take_scrub(reply->scrub, &status->scrub);
    if (err != 0)
        return err;
    return admin_copy_sentences(reply->problems, reply->n_problems, &status->problems);
}

int
dlblk_volume_status(struct dlblk_client *client, const char *name,
                    struct dlblk_volume_status *ret_status, struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_volume_status, .result = ret_status};
    Dl__VolumeStatus request = DL__VOLUME_STATUS__INIT;

    request.name = admin_text(name);
    return lib_meta_call_wait(client, &call, OP_VOLUME_STATUS, &request.base,
                              &dl__volume_status_reply__descriptor, err);
}

void
dlblk_volume_status_fini(struct dlblk_volume_status *status)
{
    free(status->problems);
    status->problems = NULL;
    status->problem_count = 0;
}

/* --- where a byte lies --- */

static const char *
admin_slot_state(Dl__SlotState state)
{
    switch (state) {
    case DL__SLOT_STATE__SLOT_IN_SYNC:
        return "in-sync";
    case DL__SLOT_STATE__SLOT_RECOVERING:
        return "recovering";
    case DL__SLOT_STATE__SLOT_EJECTED:
        return "ejected";
    default:
        return "unknown";
    }
}

static int
admin_take_located_slot(const Dl__LocatedSlot *from, struct dlblk_located_slot *to)
{
    if (from->slot == NULL || from->server == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    *to = (struct dlblk_located_slot){
        .number = from->slot->number,
        .server_id = from->slot->server_id,
        .incoming = from->incoming,
        .attempt = from->slot->attempt,
        .incarnation = from->incarnation,
        .recovered_bytes = (uint64_t)from->cursor_sectors * WIRE_SECTOR_BYTES,
    };
    admin_copy(to->address, sizeof(to->address), from->server->address);
    admin_copy(to->host, sizeof(to->host), from->server->host);
    admin_copy(to->server_state, sizeof(to->server_state), admin_server_state(from->server->state));
    admin_copy(to->problem, sizeof(to->problem), from->problem);
    admin_copy(to->state, sizeof(to->state), admin_slot_state(from->slot->state));
    return 0;
}

static int
admin_take_location(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__SegmentLocateReply *reply = (const Dl__SegmentLocateReply *)message;
    struct dlblk_segment_location *location = call->result;

    if (reply->n_slots > DLBLK_LOCATED_SLOTS_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    *location = (struct dlblk_segment_location){
        .segment = reply->segment,
        .offset_bytes = reply->offset_in_segment,
        .segment_bytes = (uint64_t)reply->segment_sectors * WIRE_SECTOR_BYTES,
        .allocated = reply->allocated,
        .config_epoch = reply->config_epoch,
        .slot_count = (uint32_t)reply->n_slots,
    };
    for (size_t i = 0; i < reply->n_slots; i++) {
        int err = admin_take_located_slot(reply->slots[i], &location->slots[i]);

        if (err != 0)
            return err;
    }
    return 0;
}

int
dlblk_segment_locate(struct dlblk_client *client, const char *name, uint64_t offset_bytes,
                     struct dlblk_segment_location *ret_location, struct dl_error *err)
{
    struct lib_meta_call call = {.take = admin_take_location, .result = ret_location};
    Dl__SegmentLocate request = DL__SEGMENT_LOCATE__INIT;

    request.name = admin_text(name);
    request.offset_bytes = offset_bytes;
    return lib_meta_call_wait(client, &call, OP_SEGMENT_LOCATE, &request.base,
                              &dl__segment_locate_reply__descriptor, err);
}

/* --- the log --- */

static const char *
admin_event_kind(Dl__EventKind kind)
{
    switch (kind) {
    case DL__EVENT_KIND__EVENT_EJECTED:
        return "ejected";
    case DL__EVENT_KIND__EVENT_RECOVERED:
        return "recovered";
    case DL__EVENT_KIND__EVENT_TAKEOVER:
        return "takeover";
    case DL__EVENT_KIND__EVENT_SERVER_UP:
        return "server-up";
    case DL__EVENT_KIND__EVENT_SERVER_DOWN:
        return "server-down";
    case DL__EVENT_KIND__EVENT_SERVER_OUT:
        return "server-out";
    case DL__EVENT_KIND__EVENT_SERVER_RESET:
        return "server-reset";
    case DL__EVENT_KIND__EVENT_SERVER_ADMIN:
        return "admin";
    case DL__EVENT_KIND__EVENT_BAD_SECTOR:
        return "bad-sector";
    case DL__EVENT_KIND__EVENT_WAITS:
        return "waits";
    default:
        return "unknown";
    }
}

static void
admin_take_log_entry(const Dl__Event *event, struct dlblk_log_entry *entry)
{
    *entry = (struct dlblk_log_entry){
        .sequence = event->sequence,
        .at_ms = event->at_ms,
        .server_id = event->server_id,
        .volume_id = event->volume,
        .segment = event->segment,
        .segment_count = event->count,
    };
    admin_copy(entry->kind, sizeof(entry->kind), admin_event_kind(event->kind));
    admin_copy(entry->volume_name, sizeof(entry->volume_name), event->volume_name);
    admin_copy(entry->text, sizeof(entry->text), event->text);
}

static int
admin_take_log(struct lib_meta_call *call, const ProtobufCMessage *message)
{
    const Dl__EventsReply *reply = (const Dl__EventsReply *)message;
    struct dlblk_log *log = call->result;

    log->next = reply->next;
    log->lost = reply->lost;
    if (reply->n_events == 0)
        return 0;
    log->entries = calloc(reply->n_events, sizeof(log->entries[0]));
    if (log->entries == NULL)
        return -DL_E_NO_MEMORY;
    for (size_t i = 0; i < reply->n_events; i++)
        admin_take_log_entry(reply->events[i], &log->entries[i]);
    log->count = reply->n_events;
    return 0;
}

int
dlblk_log_read(struct dlblk_client *client, uint64_t after, uint32_t max, uint32_t wait_ms,
               struct dlblk_log *ret_log, struct dl_error *err)
{
    struct dlblk_log log = {0};
    struct lib_meta_call call = {.take = admin_take_log, .result = &log};
    Dl__Events request = DL__EVENTS__INIT;
    int result;

    request.after = after;
    request.max = max;
    request.wait_ms = wait_ms;
    result = lib_meta_call_wait(client, &call, OP_EVENTS, &request.base,
                                &dl__events_reply__descriptor, err);
    if (result == 0)
        *ret_log = log;
    return result;
}
