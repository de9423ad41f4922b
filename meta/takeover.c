/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takeover: shutting out the owners before, and telling the new one what they left.
 *
 * FENCE {volume, lease epoch} goes to every server of the volume's map.  A server that answers will
 * take nothing of lower lease epochs any more, and lists the writes that it has above its stable
 * version.  When for each segment one server of an in-sync slot has answered, the segment is
 * *covered*: no earlier owner gets a write of it acknowledged.  With all covered the attach may be
 * answered (`ready`, committed).  The answers stay here for FENCE_STATUS as long as the lease epoch
 * is current; they are lost with the process: then the next FENCE_STATUS, or attach, fences again
 * with the same lease epoch, which servers answer as before.
 *
 * Answers of a server come in parts if they are long (more, next_segment), and go out in parts
 * likewise.
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

#define FENCE_STATUS_WAIT_MS_MAX 30000u

struct fence {
    struct meta_command command;
    struct meta_takeover *takeover;
    uint32_t server_id;
    bool answered;
    uint32_t next_segment; /* of the part that is asked for */
    Dl__FenceReply **parts;
    uint32_t part_count;
};

struct meta_takeover {
    struct meta_core *core;
    struct meta_volume *volume;
    uint32_t lease_epoch;
    struct fence *fences; /* by server_id */
    uint32_t fence_count;
    uint32_t answered_count;
    uint32_t cursor;       /* segments below it are covered */
    bool covered;          /* all are */
    struct list attachers; /* of meta_op.node */
    struct list pollers;   /* likewise */
};

static struct fence *
takeover_find(const struct meta_takeover *takeover, uint32_t server_id)
{
    uint32_t low = 0, high = takeover->fence_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (takeover->fences[middle].server_id < server_id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == takeover->fence_count || takeover->fences[low].server_id != server_id)
        return NULL;
    return &takeover->fences[low];
}

/* --- progress --- */

/* Has a slot answered that takes part in every write?  Of replicas that is any in-sync one. */
static bool
segment_is_covered(const struct meta_takeover *takeover, const struct segment *segment)
{
    for (uint32_t i = 0; i < takeover->volume->segments.slot_count; i++) {
        const struct fence *fence;

        if (segment->slots[i].state != DL__SLOT_STATE__SLOT_IN_SYNC)
            continue;
        fence = takeover_find(takeover, segment->slots[i].server_id);
        if (fence != NULL && fence->answered)
            return true;
    }
    return false;
}

/* The first segment that is not covered; NULL: all are. */
static const struct segment *
takeover_advance(struct meta_takeover *takeover)
{
    const struct segment *segment = meta_segments_at_or_after(&takeover->volume->segments,
                                                              takeover->cursor);

    while (segment != NULL && segment_is_covered(takeover, segment)) {
        takeover->cursor = segment->index;
        segment = meta_segments_after(&takeover->volume->segments, segment->index);
    }
    return segment;
}

static void
ready_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;
    struct meta_takeover *takeover = volume->takeover;

    volume->desc = *op->desc;
    meta_log(op->core, META_LOG_INFO, "takeover",
             "volume %s: lease %" PRIu32 ": the owners before are shut out; %" PRIu32 " of %" PRIu32
             " servers have answered",
             volume->desc.name, volume->desc.lease_epoch, takeover->answered_count,
             takeover->fence_count);
    meta_op_end(op);
    while (!list_is_empty(&takeover->attachers)) {
        struct meta_op *attacher = list_first_entry(&takeover->attachers, struct meta_op, node);

        list_remove(&attacher->node);
        meta_lease_reply_attach(attacher, volume);
    }
}

/* The core's own op: op->request_id is the volume's id, op->scratch_count the lease epoch. */
static void
ready_run(struct meta_op *op)
{
    struct meta_volume *volume = meta_volume_by_id(op->core, op->request_id);

    if (volume == NULL) {
        meta_op_end(op);
        return;
    }
    if (!meta_op_take(op, &volume->serial))
        return;
    if (volume->takeover == NULL || volume->desc.lease_epoch != op->scratch_count ||
        volume->desc.ready) {
        meta_op_end(op); /* overtaken by another attach, or a deletion */
        return;
    }
    op->volume = volume;
    meta_op_next_desc(op, volume)->ready = true;
    meta_op_put_volume(op);
    meta_op_commit(op, ready_on_committed);
}

static const struct meta_handler ready_handler = {.run = ready_run};

static void
takeover_progress(struct meta_takeover *takeover)
{
    while (!list_is_empty(&takeover->pollers))
        meta_op_run_soon(list_first_entry(&takeover->pollers, struct meta_op, node));
    if (takeover->covered || takeover_advance(takeover) != NULL)
        return;
    takeover->covered = true;
    if (!takeover->volume->desc.ready) {
        struct meta_op *op = meta_op_create_internal(takeover->core, &ready_handler);

        op->request_id = takeover->volume->desc.id;
        op->scratch_count = takeover->lease_epoch;
    }
}

void
meta_takeover_map_changed(struct meta_volume *volume)
{
    if (volume->takeover != NULL && volume->takeover->answered_count > 0)
        takeover_progress(volume->takeover);
}

/* --- fences --- */

static void
fence_send(struct meta_command *command)
{
    struct fence *fence = list_entry(command, struct fence, command);
    Dl__Fence message = DL__FENCE__INIT;

    message.volume = fence->takeover->volume->desc.id;
    message.lease_epoch = fence->takeover->lease_epoch;
    message.first_segment = fence->next_segment;
    fence->takeover->core->stats.fences_sent++;
    meta_command_send(command, OP_FENCE, &message.base);
}

static bool
fence_reply_is_valid(const struct fence *fence, const Dl__FenceReply *reply)
{
    if (reply == NULL || reply->volume != fence->takeover->volume->desc.id ||
        reply->lease_epoch != fence->takeover->lease_epoch)
        return false;
    return !reply->more || reply->next_segment > fence->next_segment;
}

static bool
fence_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct fence *fence = list_entry(command, struct fence, command);
    struct meta_takeover *takeover = fence->takeover;
    struct meta_server *server = meta_server_by_id(takeover->core, fence->server_id);
    Dl__FenceReply *reply = (Dl__FenceReply *)frame_unpack(frame, &dl__fence_reply__descriptor);

    if (!fence_reply_is_valid(fence, reply)) {
        if (reply != NULL)
            dl__fence_reply__free_unpacked(reply, NULL);
        return false;
    }
    fence->parts = meta_realloc(fence->parts, fence->part_count + 1, sizeof(Dl__FenceReply *));
    fence->parts[fence->part_count++] = reply;
    if (reply->more) {
        fence->next_segment = reply->next_segment;
        meta_command_start(command, server, true);
        return true;
    }
    fence->answered = true;
    takeover->answered_count++;
    takeover->core->stats.fences_answered++;
    takeover_progress(takeover);
    return true;
}

/* --- life --- */

static bool
is_known(uint32_t server_id, const uint32_t *known, size_t known_count)
{
    for (size_t i = 0; i < known_count; i++)
        if (known[i] == server_id)
            return true;
    return false;
}

void
meta_takeover_start(struct meta_core *core, struct meta_volume *volume, const uint32_t *known,
                    size_t known_count)
{
    struct meta_takeover *takeover = meta_alloc(sizeof(*takeover));

    dl_assert(volume->takeover == NULL);
    takeover->core = core;
    takeover->volume = volume;
    takeover->lease_epoch = volume->desc.lease_epoch;
    takeover->fences = meta_alloc(volume->server_count * sizeof(*takeover->fences));
    list_init(&takeover->attachers);
    list_init(&takeover->pollers);
    volume->takeover = takeover;
    core->stats.takeovers++;
    for (uint32_t i = 0; i < volume->server_count; i++) {
        struct fence *fence;

        if (is_known(volume->servers[i].server_id, known, known_count))
            continue;
        fence = &takeover->fences[takeover->fence_count++];
        fence->takeover = takeover;
        fence->server_id = volume->servers[i].server_id;
        fence->command.name = "FENCE";
        fence->command.volume_id = volume->desc.id;
        fence->command.send = fence_send;
        fence->command.on_reply = fence_on_reply;
    }
    meta_log(core, META_LOG_INFO, "takeover",
             "volume %s: lease %" PRIu32 ": shutting out the owners before on %" PRIu32 " servers",
             volume->desc.name, takeover->lease_epoch, takeover->fence_count);
    for (uint32_t i = 0; i < takeover->fence_count; i++)
        meta_command_start(&takeover->fences[i].command,
                           meta_server_by_id(core, takeover->fences[i].server_id), true);
}

static void
fence_fini(struct fence *fence)
{
    meta_command_cancel(&fence->command);
    for (uint32_t i = 0; i < fence->part_count; i++)
        dl__fence_reply__free_unpacked(fence->parts[i], NULL);
    free(fence->parts);
}

void
meta_takeover_end(struct meta_core *core, struct meta_volume *volume, const struct dl_error *err)
{
    struct meta_takeover *takeover = volume->takeover;

    (void)core;
    if (takeover == NULL)
        return;
    volume->takeover = NULL;
    /* Without err the core is being destroyed, and its ops are gone already. */
    while (err != NULL && !list_is_empty(&takeover->attachers))
        meta_op_fail(list_first_entry(&takeover->attachers, struct meta_op, node), err);
    while (err != NULL && !list_is_empty(&takeover->pollers))
        meta_op_fail(list_first_entry(&takeover->pollers, struct meta_op, node), err);
    for (uint32_t i = 0; i < takeover->fence_count; i++)
        fence_fini(&takeover->fences[i]);
    free(takeover->fences);
    free(takeover);
}

/* --- who waits for it: attaches --- */

bool
meta_takeover_has_attacher(const struct meta_volume *volume)
{
    return volume->takeover != NULL && !list_is_empty(&volume->takeover->attachers);
}

void
meta_takeover_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                   size_t text_bytes)
{
    const struct meta_takeover *takeover = volume->takeover;
    size_t used = 0;
    uint32_t named = 0;

    text[0] = '\0';
    for (uint32_t i = 0; takeover != NULL && i < takeover->fence_count; i++) {
        const struct meta_server *server = core->servers[takeover->fences[i].server_id];
        char problem[128];

        if (takeover->fences[i].answered)
            continue;
        if (named == 3 || used + 16 > text_bytes) {
            (void)snprintf(text + used, text_bytes - used, " and others");
            return;
        }
        meta_server_problem(core, server, problem, sizeof(problem));
        used += (size_t)snprintf(text + used, text_bytes - used, "%sserver %s%s%s",
                                 named == 0 ? "" : ", ", meta_server_text(server),
                                 problem[0] != '\0' ? ": " : "", problem);
        used = min_u64(used, text_bytes - 1);
        named++;
    }
}

static void
attach_on_timer(struct env_timer *timer)
{
    struct meta_op *op = list_entry(timer, struct meta_op, timer);
    struct meta_volume *volume = op->volume;
    char servers[256];
    struct dl_error err;

    dl_assert(volume->takeover != NULL);
    meta_takeover_text(op->core, volume, servers, sizeof(servers));
    (void)dl_error_set(&err, -DL_E_FENCE_PENDING,
                       "volume %s was not detached cleanly, and its former owner can't be shut out "
                       "before these answer: %s",
                       volume->desc.name, servers);
    dl_error_hint(&err, "start those servers; then open the volume again");
    meta_op_fail(op, &err);
}

void
meta_takeover_wait_attach(struct meta_op *op, struct meta_volume *volume, uint64_t wait_ns)
{
    op->volume = volume;
    op->timer.fn = attach_on_timer;
    env_timer_start(op->core->env, &op->timer, wait_ns);
    meta_op_wait(op, &volume->takeover->attachers);
    if (volume->takeover->fence_count == 0 || volume->takeover->covered)
        takeover_progress(volume->takeover);
}

/* --- who waits for it: FENCE_STATUS --- */

/* The reply as it grows: only the outer arrays are its own. */
struct status_reply {
    Dl__FenceStatusReply message;
    size_t bytes;
    bool full;
};

/* Only chunks that the map has at this place: nothing else concerns the owner. */
static bool
chunk_is_mapped(const struct fence *fence, const Dl__PendingChunk *chunk)
{
    const struct meta_volume *volume = fence->takeover->volume;
    const struct segment *segment = meta_segments_find(&volume->segments, chunk->segment);

    for (uint32_t i = 0; segment != NULL && i < volume->segments.place_count; i++)
        if (segment->slots[i].server_id == fence->server_id &&
            segment->slots[i].number == chunk->slot)
            return true;
    return false;
}

/* The answer of one server from a segment on, as far as it fits. */
static void
status_add_answer(struct status_reply *reply, const struct fence *fence, uint32_t first_segment)
{
    Dl__FenceAnswer *answer = meta_alloc(sizeof(*answer));

    dl__fence_answer__init(answer);
    answer->server_id = fence->server_id;
    for (uint32_t i = 0; i < fence->part_count && !answer->more; i++) {
        const Dl__FenceReply *part = fence->parts[i];

        for (size_t k = 0; k < part->n_chunks; k++) {
            Dl__PendingChunk *chunk = part->chunks[k];

            if (chunk->segment < first_segment || !chunk_is_mapped(fence, chunk))
                continue;
            if (reply->bytes > META_REPLY_BYTES) {
                answer->more = reply->full = true;
                answer->next_segment = chunk->segment;
                break;
            }
            answer->chunks = meta_realloc(answer->chunks, answer->n_chunks + 1,
                                          sizeof(Dl__PendingChunk *));
            answer->chunks[answer->n_chunks++] = chunk;
            reply->bytes += dl__pending_chunk__get_packed_size(chunk) + 8;
        }
    }
    reply->message.answers = meta_realloc(reply->message.answers, reply->message.n_answers + 1,
                                          sizeof(Dl__FenceAnswer *));
    reply->message.answers[reply->message.n_answers++] = answer;
}

/* What was begun comes first, else a new answer could keep its rest out for ever. */
static void
status_build(struct status_reply *reply, const struct meta_takeover *takeover,
             const Dl__FenceStatus *message)
{
    const struct fence *resumed = takeover_find(takeover, message->resume_server);

    if (resumed != NULL && resumed->answered)
        status_add_answer(reply, resumed, message->resume_segment);
    reply->message.waiting_for = meta_alloc(takeover->fence_count * sizeof(uint32_t));
    for (uint32_t i = 0; i < takeover->fence_count; i++) {
        const struct fence *fence = &takeover->fences[i];

        if (!fence->answered)
            reply->message.waiting_for[reply->message.n_waiting_for++] = fence->server_id;
        else if (!reply->full && fence != resumed &&
                 !is_known(fence->server_id, message->known, message->n_known))
            status_add_answer(reply, fence, 0);
    }
}

static void
status_fini(struct status_reply *reply)
{
    for (size_t i = 0; i < reply->message.n_answers; i++) {
        free(reply->message.answers[i]->chunks);
        free(reply->message.answers[i]);
    }
    free(reply->message.answers);
    free(reply->message.waiting_for);
}

static void
status_on_timer(struct env_timer *timer)
{
    struct meta_op *op = list_entry(timer, struct meta_op, timer);

    op->verdict = true; /* now it answers, whatever there is */
    meta_op_run_soon(op);
}

static void
status_reply_or_wait(struct meta_op *op, struct meta_takeover *takeover)
{
    const Dl__FenceStatus *message = (const Dl__FenceStatus *)op->message;
    struct status_reply reply = {.message = DL__FENCE_STATUS_REPLY__INIT};

    status_build(&reply, takeover, message);
    if (reply.message.n_answers > 0 || reply.message.n_waiting_for == 0 || message->wait_ms == 0 ||
        op->verdict) {
        meta_op_reply(op, &reply.message.base);
    } else {
        if (op->timer.fn == NULL) {
            op->timer.fn = status_on_timer;
            env_timer_start(op->core->env, &op->timer,
                            min_u32(message->wait_ms, FENCE_STATUS_WAIT_MS_MAX) * NS_PER_MS);
        }
        meta_op_wait(op, &takeover->pollers);
    }
    status_fini(&reply);
}

void
meta_run_fence_status(struct meta_op *op)
{
    const Dl__FenceStatus *message = (const Dl__FenceStatus *)op->message;
    struct meta_volume *volume = meta_op_volume_by_lease(op, message->volume, message->lease_epoch);
    Dl__FenceStatusReply nothing = DL__FENCE_STATUS_REPLY__INIT;
    struct dl_error err;

    if (volume == NULL)
        return;
    if (!volume->desc.ready) {
        (void)dl_error_set(&err, -DL_E_FENCE_PENDING,
                           "volume %s: the attach with lease %" PRIu32 " has not been answered yet",
                           volume->desc.name, volume->desc.lease_epoch);
        meta_op_fail(op, &err);
        return;
    }
    if (!volume->desc.takeover) {
        meta_op_reply(op, &nothing.base);
        return;
    }
    /*
     * After a restart the answers are gone, and asked for again; those that the owner has are not.
     */
    if (volume->takeover == NULL)
        meta_takeover_start(op->core, volume, message->known, message->n_known);
    status_reply_or_wait(op, volume->takeover);
}
