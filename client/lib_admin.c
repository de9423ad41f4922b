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

static void
admin_take_server(const Dl__Server *server, struct dlblk_server_info *ret_info)
{
    *ret_info = (struct dlblk_server_info){
        .id = server->id,
        .capacity_bytes = server->capacity_bytes,
        .used_bytes = server->used_bytes,
        .chunk_count = server->chunk_count,
        .last_heard_ms = server->last_heard_ms,
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
    };
    admin_format_uuid(status->cluster_id, &reply->cluster_id);
    admin_copy(status->state, sizeof(status->state), reply->state);
    admin_copy(status->software, sizeof(status->software), reply->software);
    if (reply->n_problems == 0)
        return 0;
    status->problems = calloc(reply->n_problems, sizeof(status->problems[0]));
    if (status->problems == NULL)
        return -DL_E_NO_MEMORY;
    for (size_t i = 0; i < reply->n_problems; i++)
        admin_copy(status->problems[i], sizeof(status->problems[i]), reply->problems[i]);
    status->problem_count = reply->n_problems;
    return 0;
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
