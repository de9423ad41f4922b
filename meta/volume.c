/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes: create, list, info, rename, resize.  Deletion: delete.c.
 *
 * Repetitions: create, rename and delete carry a change id; the volume remembers the last one.  A
 *              client whose answer was lost asks
 * again with the same id and gets the state as it is now, instead of "exists" or "no such volume".
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/text.h"
#include "meta/internal.h"
#include "meta/memory.h"

/* --- messages --- */

static char *
text_of(const char *text)
{
    return (char *)(uintptr_t)text;
}

static void
policy_fill(Dl__VolumePolicy *policy, const struct volume_desc *desc)
{
    policy->redundancy = (Dl__Redundancy)desc->redundancy;
    policy->replicas = desc->replicas;
    policy->data_shards = desc->data_shards;
    policy->parity_shards = desc->parity_shards;
    policy->min_write = desc->min_write;
    policy->failure_domain = (Dl__FailureDomain)desc->failure_domain;
    policy->clique = text_of(desc->clique);
}

void
meta_volume_fill(Dl__Volume *message, const struct meta_volume *volume)
{
    const struct volume_desc *desc = &volume->desc;

    message->id = desc->id;
    message->name = text_of(desc->name);
    message->size_bytes = desc->size_bytes;
    message->segment_bytes = desc->segment_bytes;
    message->logical_block_bytes = desc->logical_block_bytes;
    message->stripe_width = desc->stripe_width;
    message->stripe_unit_bytes = desc->stripe_unit_bytes;
    policy_fill(message->policy, desc);
    message->lease_epoch = desc->lease_epoch;
    message->snapshot_seq = desc->snapshot_seq;
    message->created_ms = desc->created_ms;
    message->allocated_segments = volume->segments.count;
    message->owner = text_of(desc->owned ? desc->owner : "");
    message->attached_ms = desc->owned ? desc->attached_ms : 0;
    message->clean = desc->clean;
}

void
meta_volume_reply(struct meta_op *op, const struct meta_volume *volume)
{
    Dl__VolumeReply reply = DL__VOLUME_REPLY__INIT;
    Dl__Volume message = DL__VOLUME__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;

    message.policy = &policy;
    reply.volume = &message;
    meta_volume_fill(&message, volume);
    meta_op_reply(op, &reply.base);
}

void
meta_volume_notify(struct meta_volume *volume, struct meta_session *session, bool deleted)
{
    Dl__VolumeChanged notice = DL__VOLUME_CHANGED__INIT;
    Dl__Volume message = DL__VOLUME__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;

    if (session == NULL || session->closing)
        return;
    message.policy = &policy;
    notice.volume = &message;
    notice.deleted = deleted;
    meta_volume_fill(&message, volume);
    meta_session_notify(session, OP_VOLUME_CHANGED, &notice.base);
}

/* --- looking up --- */

static void
op_fail_unknown(struct meta_op *op, const char *name)
{
    struct dl_error err;

    (void)dl_error_set(&err, -DL_E_VOLUME_UNKNOWN, "volume %s does not exist",
                       text_quote(name).text);
    dl_error_hint(&err, "dlblk volume list shows all volumes");
    meta_op_fail(op, &err);
}

struct meta_volume *
meta_op_volume_by_name(struct meta_op *op, const char *name)
{
    struct meta_volume *volume = meta_volume_by_name(op->core, name);

    if (volume == NULL) {
        op_fail_unknown(op, name);
        return NULL;
    }
    return meta_op_take(op, &volume->serial) ? volume : NULL;
}

/* On another connection than before: it may have missed news. */
static void
volume_owner_speaks(struct meta_volume *volume, struct meta_session *session)
{
    bool known = volume->owner_session == session;

    meta_lease_set_owner_session(volume, session);
    if (!known && volume->owner_session == session)
        meta_volume_notify(volume, session, false);
}

struct meta_volume *
meta_op_volume_by_lease(struct meta_op *op, uint64_t volume_id, uint32_t lease_epoch)
{
    struct meta_volume *volume = meta_volume_by_id(op->core, volume_id);
    struct dl_error err;

    if (volume == NULL || volume->creating)
        (void)dl_error_set(&err, -DL_E_VOLUME_UNKNOWN, "volume %" PRIu64 " does not exist",
                           volume_id);
    else if (volume->desc.deleting)
        (void)dl_error_set(&err, -DL_E_VOLUME_DELETED, "volume %s was deleted", volume->desc.name);
    else if (!volume->desc.owned || volume->desc.lease_epoch != lease_epoch)
        (void)dl_error_set(
            &err, -DL_E_LEASE_OLD,
            "lease %" PRIu32 " of volume %s is over: the last one is %" PRIu32 "%s%s", lease_epoch,
            volume->desc.name, volume->desc.lease_epoch, volume->desc.owned ? " of " : "",
            volume->desc.owned ? text_quote(volume->desc.owner).text : "");
    else {
        volume_owner_speaks(volume, op->session);
        return volume;
    }
    meta_op_fail(op, &err);
    return NULL;
}

struct volume_desc *
meta_op_next_desc(struct meta_op *op, const struct meta_volume *volume)
{
    free(op->desc);
    op->desc = meta_copy(&volume->desc, sizeof(volume->desc));
    return op->desc;
}

void
meta_op_put_volume(struct meta_op *op)
{
    meta_record_put_volume(&op->batch, op->desc);
}

static bool
change_is_repeated(const struct volume_desc *desc, ProtobufCBinaryData change_id)
{
    return meta_id_is_valid(change_id) && desc->has_change_id &&
           memcmp(desc->change_id, change_id.data, META_ID_BYTES) == 0;
}

static void
change_set(struct volume_desc *desc, ProtobufCBinaryData change_id)
{
    desc->has_change_id = meta_id_is_valid(change_id);
    if (desc->has_change_id)
        memcpy(desc->change_id, change_id.data, META_ID_BYTES);
}

/* --- create: what is asked for, checked and completed --- */

static int
create_check_policy(const Dl__VolumePolicy *policy, struct volume_desc *desc, struct dl_error *err)
{
    const char *name = desc->name;

    if (policy->redundancy == DL__REDUNDANCY__REDUNDANCY_ERASURE_CODED ||
        policy->data_shards != 0 || policy->parity_shards != 0)
        return dl_error_set(err, -DL_E_CONFIG_INVALID,
                            "volume %s: erasure coding is not supported by this version", name);
    desc->redundancy = DL__REDUNDANCY__REDUNDANCY_REPLICATED;
    desc->replicas = policy->replicas != 0 ? policy->replicas : META_REPLICAS_DEFAULT;
    if (desc->replicas > META_REPLICAS_MAX)
        return dl_error_set(err, -DL_E_CONFIG_INVALID,
                            "volume %s: %" PRIu32 " replicas, but 1 to %u are possible", name,
                            desc->replicas, META_REPLICAS_MAX);
    desc->min_write = policy->min_write != 0 ? policy->min_write : desc->replicas / 2 + 1;
    if (desc->min_write > desc->replicas)
        return dl_error_set(err, -DL_E_CONFIG_INVALID,
                            "volume %s: min_write %" PRIu32 " is more than its %" PRIu32
                            " replicas",
                            name, desc->min_write, desc->replicas);
    desc->failure_domain = policy->failure_domain != DL__FAILURE_DOMAIN__DOMAIN_NONE
                               ? (uint32_t)policy->failure_domain
                               : (uint32_t)DL__FAILURE_DOMAIN__DOMAIN_HOST;
    if (policy->clique[0] == '\0')
        return 0;
    if (text_check_name("clique", policy->clique, err) < 0) {
        dl_error_prefix(err, "volume %s: ", name);
        return err->code;
    }
    (void)snprintf(desc->clique, sizeof(desc->clique), "%s", policy->clique);
    return 0;
}

static int
create_check_layout(const Dl__VolumeCreate *message, struct volume_desc *desc, struct dl_error *err)
{
    const char *name = desc->name;

    desc->segment_bytes = message->segment_bytes != 0 ? message->segment_bytes
                                                      : META_SEGMENT_BYTES_DEFAULT;
    if (!is_power_of_two(desc->segment_bytes) || desc->segment_bytes < META_SEGMENT_BYTES_MIN ||
        desc->segment_bytes > META_SEGMENT_BYTES_MAX)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "volume %s: segments of %" PRIu32
                            " bytes: it must be a power of two, 1 MiB to 1 GiB",
                            name, desc->segment_bytes);
    desc->logical_block_bytes = message->logical_block_bytes != 0 ? message->logical_block_bytes
                                                                  : 4096;
    if (desc->logical_block_bytes != 512 && desc->logical_block_bytes != 4096)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "volume %s: logical blocks of %" PRIu32
                            " bytes: it must be 512 or 4096",
                            name, desc->logical_block_bytes);
    desc->stripe_width = message->stripe_width != 0 ? message->stripe_width : 1;
    if (desc->stripe_width > META_STRIPE_WIDTH_MAX)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "volume %s: a stripe of %" PRIu32 " segments: 1 to %u are possible",
                            name, desc->stripe_width, META_STRIPE_WIDTH_MAX);
    desc->stripe_unit_bytes = message->stripe_unit_bytes != 0 ? message->stripe_unit_bytes
                                                              : META_STRIPE_UNIT_DEFAULT;
    if (!is_power_of_two(desc->stripe_unit_bytes) ||
        desc->stripe_unit_bytes < META_STRIPE_UNIT_MIN ||
        desc->stripe_unit_bytes > desc->segment_bytes)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "volume %s: stripe units of %" PRIu32
                            " bytes: it must be a power of two, 4 KiB to the size of a segment",
                            name, desc->stripe_unit_bytes);
    return 0;
}

static int
check_size(const struct volume_desc *desc, uint64_t size_bytes, struct dl_error *err)
{
    struct volume_desc sized = *desc;
    uint64_t set_bytes = (uint64_t)desc->segment_bytes * desc->stripe_width;
    uint64_t sets_max = META_VOLUME_SEGMENTS_MAX / desc->stripe_width;

    sized.size_bytes = size_bytes;
    if (size_bytes == 0)
        return dl_error_set(err, -DL_E_SIZE_INVALID, "volume %s: a size of 0", desc->name);
    if (size_bytes % desc->logical_block_bytes != 0)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "volume %s: %" PRIu64
                            " bytes are not a multiple of its logical block, %" PRIu32 " bytes",
                            desc->name, size_bytes, desc->logical_block_bytes);
    if (meta_volume_segment_count(&sized) > META_VOLUME_SEGMENTS_MAX) {
        (void)dl_error_set(err, -DL_E_SIZE_INVALID,
                           "volume %s: %" PRIu64
                           " bytes are more than %s, the most with its segments of %s",
                           desc->name, size_bytes, text_of_size(sets_max * set_bytes).text,
                           text_of_size(desc->segment_bytes).text);
        dl_error_hint(err, "larger segments, up to 1 GiB, make larger volumes possible");
        return err->code;
    }
    return 0;
}

static int
create_read(struct meta_op *op, struct volume_desc *desc, struct dl_error *err)
{
    static const Dl__VolumePolicy no_policy = DL__VOLUME_POLICY__INIT;
    const Dl__VolumeCreate *message = (const Dl__VolumeCreate *)op->message;

    if (text_check_name("volume", message->name, err) < 0)
        return err->code;
    (void)snprintf(desc->name, sizeof(desc->name), "%s", message->name);
    if (create_check_policy(message->policy != NULL ? message->policy : &no_policy, desc, err) <
            0 ||
        create_check_layout(message, desc, err) < 0 ||
        check_size(desc, message->size_bytes, err) < 0)
        return err->code;
    desc->size_bytes = message->size_bytes;
    desc->snapshot_seq = 1;
    desc->clean = true;
    desc->created_ms = op->core->env->ops->wall_ms(op->core->env);
    change_set(desc, message->change_id);
    return 0;
}

/* --- create --- */

static void
create_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;

    volume->creating = false;
    meta_log(op->core, META_LOG_INFO, "volume", "volume %s: created with %s, %" PRIu32 " replicas",
             volume->desc.name, text_of_size(volume->desc.size_bytes).text, volume->desc.replicas);
    meta_volume_reply(op, volume);
}

static void
create_commit(struct meta_op *op, struct volume_desc *desc)
{
    struct meta_core *core = op->core;

    desc->id = core->next_volume_id++;
    op->volume = meta_volume_create(core, desc);
    op->volume->creating = true;
    meta_name_add(core, desc->name, op->volume);
    (void)meta_op_take(op, &op->volume->serial);
    meta_record_put_volume(&op->batch, desc);
    meta_record_put_counter(&op->batch, "next/volume", core->next_volume_id);
    meta_op_commit(op, create_on_committed);
}

static void
create_meets_other(struct meta_op *op, struct meta_volume *other)
{
    const Dl__VolumeCreate *message = (const Dl__VolumeCreate *)op->message;
    struct dl_error err;

    if (!meta_op_take(op, &other->serial))
        return;
    if (change_is_repeated(&other->desc, message->change_id)) {
        meta_volume_reply(op, other);
        return;
    }
    (void)dl_error_set(&err, -DL_E_VOLUME_EXISTS, "volume %s exists already", other->desc.name);
    meta_op_fail(op, &err);
}

void
meta_run_volume_create(struct meta_op *op)
{
    struct meta_core *core = op->core;
    struct volume_desc desc = {0};
    struct meta_volume *other;
    struct dl_error err;

    if (create_read(op, &desc, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    other = meta_volume_by_name(core, desc.name);
    if (other != NULL) {
        create_meets_other(op, other);
        return;
    }
    if (core->volume_count >= core->options.volumes_max) {
        (void)dl_error_set(&err, -DL_E_LIMIT,
                           "the cluster has %" PRIu32 " volumes, the most it can have",
                           core->volume_count);
        meta_op_fail(op, &err);
        return;
    }
    if (meta_segment_check_domains(core, &desc, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    create_commit(op, &desc);
}

/* --- info and list: committed state, nothing to wait for --- */

void
meta_run_volume_info(struct meta_op *op)
{
    const Dl__VolumeInfo *message = (const Dl__VolumeInfo *)op->message;
    struct meta_volume *volume = meta_volume_by_name(op->core, message->name);

    /* A name that is being given is not there yet. */
    if (volume == NULL || volume->creating || strcmp(volume->desc.name, message->name) != 0)
        op_fail_unknown(op, message->name);
    else
        meta_volume_reply(op, volume);
}

static int
volume_compare_names(const void *a, const void *b)
{
    const struct meta_volume *const *left = a;
    const struct meta_volume *const *right = b;

    return strcmp((*left)->desc.name, (*right)->desc.name);
}

/* The volumes whose names come after `after`, in order. */
static size_t
list_collect(const struct meta_core *core, const char *after, struct meta_volume **volumes)
{
    struct meta_volume *volume, *following;
    size_t count = 0;

    HASH_ITER (hh, core->volumes, volume, following)
        if (!volume->creating && !volume->desc.deleting && strcmp(volume->desc.name, after) > 0)
            volumes[count++] = volume;
    qsort(volumes, count, sizeof(struct meta_volume *), volume_compare_names);
    return count;
}

void
meta_run_volume_list(struct meta_op *op)
{
    const Dl__VolumeList *message = (const Dl__VolumeList *)op->message;
    struct meta_volume **volumes = meta_alloc(op->core->volume_count *
                                              sizeof(struct meta_volume *));
    size_t count = list_collect(op->core, message->after, volumes);
    Dl__VolumeListReply reply = DL__VOLUME_LIST_REPLY__INIT;
    Dl__Volume *messages = meta_alloc(count * sizeof(*messages));
    Dl__VolumePolicy *policies = meta_alloc(count * sizeof(*policies));
    size_t bytes = 0;

    reply.volumes = meta_alloc(count * sizeof(Dl__Volume *));
    for (size_t i = 0; i < count; i++) {
        reply.more = bytes > META_REPLY_BYTES || (message->max != 0 && i == message->max);
        if (reply.more)
            break;
        dl__volume__init(&messages[i]);
        dl__volume_policy__init(&policies[i]);
        messages[i].policy = &policies[i];
        meta_volume_fill(&messages[i], volumes[i]);
        reply.volumes[reply.n_volumes++] = &messages[i];
        bytes += dl__volume__get_packed_size(&messages[i]);
    }
    meta_op_reply(op, &reply.base);
    free(reply.volumes);
    free(policies);
    free(messages);
    free(volumes);
}

/* --- rename --- */

static void
rename_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;

    meta_log(op->core, META_LOG_INFO, "volume", "volume %s: renamed to %s", volume->desc.name,
             op->desc->name);
    meta_name_remove(op->core, volume->desc.name);
    volume->desc = *op->desc;
    meta_volume_notify(volume, volume->owner_session, false);
    meta_volume_reply(op, volume);
}

/* The volume is not there: perhaps because this very rename was done before. */
static bool
rename_is_repeated(struct meta_op *op)
{
    const Dl__VolumeRename *message = (const Dl__VolumeRename *)op->message;
    struct meta_volume *volume = meta_volume_by_name(op->core, message->new_name);

    if (volume == NULL || !meta_id_is_valid(message->change_id))
        return false;
    if (!meta_op_take(op, &volume->serial))
        return true;
    if (!change_is_repeated(&volume->desc, message->change_id)) {
        meta_op_release(op);
        return false;
    }
    meta_volume_reply(op, volume);
    return true;
}

static void
rename_meets_other(struct meta_op *op, struct meta_volume *other)
{
    struct dl_error err;

    meta_op_release(op); /* not both at once: two renames could wait for each other */
    if (!meta_op_take(op, &other->serial))
        return;
    (void)dl_error_set(&err, -DL_E_VOLUME_EXISTS, "volume %s exists already", other->desc.name);
    meta_op_fail(op, &err);
}

void
meta_run_volume_rename(struct meta_op *op)
{
    const Dl__VolumeRename *message = (const Dl__VolumeRename *)op->message;
    struct meta_volume *volume, *other;
    struct volume_desc *desc;
    struct dl_error err;

    if (meta_volume_by_name(op->core, message->name) == NULL && rename_is_repeated(op))
        return;
    volume = meta_op_volume_by_name(op, message->name);
    if (volume == NULL)
        return;
    if (text_check_name("volume", message->new_name, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    if (strcmp(message->new_name, volume->desc.name) == 0) {
        meta_volume_reply(op, volume);
        return;
    }
    other = meta_volume_by_name(op->core, message->new_name);
    if (other != NULL) {
        rename_meets_other(op, other);
        return;
    }
    desc = meta_op_next_desc(op, volume);
    (void)snprintf(desc->name, sizeof(desc->name), "%s", message->new_name);
    change_set(desc, message->change_id);
    op->volume = volume;
    meta_name_add(op->core, desc->name, volume);
    meta_op_put_volume(op);
    meta_op_commit(op, rename_on_committed);
}

/* --- resize --- */

static void
resize_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;

    meta_log(op->core, META_LOG_INFO, "volume", "volume %s: grown from %s to %s", volume->desc.name,
             text_of_size(volume->desc.size_bytes).text, text_of_size(op->desc->size_bytes).text);
    volume->desc = *op->desc;
    meta_volume_notify(volume, volume->owner_session, false);
    meta_volume_reply(op, volume);
}

void
meta_run_volume_resize(struct meta_op *op)
{
    const Dl__VolumeResize *message = (const Dl__VolumeResize *)op->message;
    struct meta_volume *volume = meta_op_volume_by_name(op, message->name);
    struct dl_error err;

    if (volume == NULL)
        return;
    if (check_size(&volume->desc, message->size_bytes, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    if (message->size_bytes == volume->desc.size_bytes) {
        meta_volume_reply(op, volume);
        return;
    }
    if (message->size_bytes < volume->desc.size_bytes) {
        (void)dl_error_set(&err, -DL_E_SIZE_INVALID,
                           "volume %s has %" PRIu64 " bytes and can not shrink to %" PRIu64,
                           volume->desc.name, volume->desc.size_bytes, message->size_bytes);
        meta_op_fail(op, &err);
        return;
    }
    op->volume = volume;
    meta_op_next_desc(op, volume)->size_bytes = message->size_bytes;
    meta_op_put_volume(op);
    meta_op_commit(op, resize_on_committed);
}
