/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takeover: shutting out the owners before, and telling the new one what they left.
 *
 * FENCE {volume, lease epoch} goes to every server of the volume's map.  A server that answers will
 * take nothing of lower lease epochs any more, and lists the writes that it has above its stable
 * version.  When for each segment one server of an in-sync slot has answered, the segment is
 * *covered*: no earlier owner gets a write of it acknowledged.  With all covered the attach may be
 * answered (`ready`, committed).  FENCE_STATUS hands the answers on; they are lost with the
 * process: then the next FENCE_STATUS, or attach, fences again with the same lease epoch, which
 * servers answer as before.
 *
 * Answers come in parts if they are long, and go out in parts likewise.  Of each server one part is
 * here: the first one until the owner has it, if there is room (fence_bytes_max, of all volumes
 * together); any other when the owner asks for it: then the server is asked.
 *
 * A slot that comes into sync after its server was fenced is *promoted*: what the server has said
 * of it may be older than the slot's attempt, or nothing at all if the server was not in the map
 * then.  It is named with its attempt instead, so that the owner asks the slot itself (rule 18).
 * That ends when the owner shows that it has its map: it hears of later ones by MAP_CHANGED.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/mutant.h"
#include "common/text.h"
#include "common/vec.h"
#include "meta/internal.h"
#include "meta/memory.h"

#define FENCE_STATUS_WAIT_MS_MAX 30000u

/* What an unpacked answer takes in memory: pointer, message, and what malloc adds. */
#define FENCE_CHUNK_BYTES (sizeof(Dl__PendingChunk) + 40)
#define FENCE_WRITE_BYTES (sizeof(Dl__PendingWrite) + 24)

/* Where an answer goes on: what lies below is known. */
struct fence_cursor {
    uint32_t segment, slot;
    uint64_t version; /* of this chunk: the first write */
};

struct fence {
    struct meta_command command;
    struct meta_takeover *takeover;
    uint32_t server_id;
    bool answered; /* it takes nothing of the owners before any more */
    bool late;     /* has come into the map since; it is not asked, all its slots are promoted */
    struct fence_cursor at;         /* where the part begins that is here, or is asked for */
    Dl__FenceReply *part;           /* NULL: it is not here */
    size_t part_bytes;              /* of memory */
    VEC(Dl__PendingChunk) promoted; /* by segment and slot */
};

struct meta_takeover {
    struct meta_core *core;
    struct meta_volume *volume;
    uint32_t lease_epoch;
    struct fence **fences; /* by server_id */
    uint32_t fence_count;
    uint32_t answered_count;
    uint32_t cursor;       /* segments below it are covered */
    bool covered;          /* all are */
    bool owner_has_map;    /* slots promoted from now on it hears of otherwise */
    struct list attachers; /* of meta_op.node */
    struct list pollers;   /* likewise */
};

/* The place of this server's fence, or where it would be. */
static uint32_t
takeover_place_of(const struct meta_takeover *takeover, uint32_t server_id)
{
    uint32_t low = 0, high = takeover->fence_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (takeover->fences[middle]->server_id < server_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct fence *
takeover_find(const struct meta_takeover *takeover, uint32_t server_id)
{
    uint32_t place = takeover_place_of(takeover, server_id);

    if (place == takeover->fence_count || takeover->fences[place]->server_id != server_id)
        return NULL;
    return takeover->fences[place];
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
        if (fence != NULL && fence->answered && !fence->late)
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

static int
cursor_compare(const struct fence_cursor *a, const struct fence_cursor *b)
{
    if (a->segment != b->segment)
        return a->segment < b->segment ? -1 : 1;
    if (a->slot != b->slot)
        return a->slot < b->slot ? -1 : 1;
    return a->version < b->version ? -1 : a->version > b->version;
}

static struct fence_cursor
cursor_of_chunk(const Dl__PendingChunk *chunk)
{
    return (struct fence_cursor){.segment = chunk->segment, .slot = chunk->slot};
}

static struct fence_cursor
cursor_of_next(const Dl__FenceReply *part)
{
    return (struct fence_cursor){part->next_segment, part->next_slot, part->next_version};
}

static void
fence_send(struct meta_command *command)
{
    struct fence *fence = list_entry(command, struct fence, command);
    Dl__Fence message = DL__FENCE__INIT;

    message.volume = fence->takeover->volume->desc.id;
    message.lease_epoch = fence->takeover->lease_epoch;
    message.first_segment = fence->at.segment;
    message.first_slot = fence->at.slot;
    message.first_version = fence->at.version;
    fence->takeover->core->stats.fences_sent++;
    meta_command_send(command, OP_FENCE, &message.base);
}

/* Chunks ascend, none is told twice, and a next part begins behind all of it. */
static bool
fence_reply_ascends(const struct fence *fence, const Dl__FenceReply *reply)
{
    struct fence_cursor next = cursor_of_next(reply);
    struct fence_cursor before = {.segment = fence->at.segment, .slot = fence->at.slot};

    for (size_t i = 0; i < reply->n_chunks; i++) {
        struct fence_cursor chunk = cursor_of_chunk(reply->chunks[i]);
        int order = cursor_compare(&before, &chunk);

        if (order > 0 || (i > 0 && order == 0))
            return false;
        before = chunk;
    }
    return !reply->more ||
           (cursor_compare(&fence->at, &next) < 0 && cursor_compare(&before, &next) <= 0);
}

static bool
fence_reply_is_valid(const struct fence *fence, const struct frame *frame,
                     const Dl__FenceReply *reply)
{
    return reply != NULL && frame->body_bytes <= META_FENCE_PART_BYTES &&
           reply->volume == fence->takeover->volume->desc.id &&
           reply->lease_epoch == fence->takeover->lease_epoch && fence_reply_ascends(fence, reply);
}

static void
fence_drop_part(struct fence *fence)
{
    struct meta_core *core = fence->takeover->core;

    if (fence->part == NULL)
        return;
    dl_assert(core->fence_bytes >= fence->part_bytes);
    core->fence_bytes -= fence->part_bytes;
    dl__fence_reply__free_unpacked(fence->part, NULL);
    fence->part = NULL;
}

static void
fence_keep_part(struct fence *fence, Dl__FenceReply *reply)
{
    dl_assert(fence->part == NULL);
    fence->part = reply;
    fence->part_bytes = sizeof(*reply);
    for (size_t i = 0; i < reply->n_chunks; i++)
        fence->part_bytes += FENCE_CHUNK_BYTES + reply->chunks[i]->n_writes * FENCE_WRITE_BYTES;
    fence->takeover->core->fence_bytes += fence->part_bytes;
}

static bool
fence_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct fence *fence = list_entry(command, struct fence, command);
    struct meta_takeover *takeover = fence->takeover;
    struct meta_core *core = takeover->core;
    Dl__FenceReply *reply = (Dl__FenceReply *)frame_unpack(frame, &dl__fence_reply__descriptor);

    if (!fence_reply_is_valid(fence, frame, reply)) {
        if (reply != NULL)
            dl__fence_reply__free_unpacked(reply, NULL);
        return false;
    }
    fence_keep_part(fence, reply);
    if (!fence->answered) {
        fence->answered = true;
        takeover->answered_count++;
        core->stats.fences_answered++;
        if (core->fence_bytes > core->options.fence_bytes_max)
            fence_drop_part(fence); /* asked for again when it is the owner's turn */
    }
    takeover_progress(takeover);
    return true;
}

/* The owner wants this part. */
static void
fence_fetch(struct fence *fence, const struct fence_cursor *at)
{
    if (fence->command.server != NULL && cursor_compare(&fence->at, at) == 0)
        return; /* on its way */
    meta_command_cancel(&fence->command);
    fence_drop_part(fence);
    fence->at = *at;
    meta_command_start(&fence->command, meta_server_by_id(fence->takeover->core, fence->server_id),
                       true);
}

static bool
fence_is_within_reach(const struct fence *fence)
{
    return meta_server_by_id(fence->takeover->core, fence->server_id)->session != NULL;
}

static struct fence *
fence_create(struct meta_takeover *takeover, uint32_t server_id)
{
    uint32_t place = takeover_place_of(takeover, server_id);
    struct fence *fence = meta_alloc(sizeof(*fence));

    takeover->fences = meta_realloc(takeover->fences, takeover->fence_count + 1,
                                    sizeof(struct fence *));
    memmove(&takeover->fences[place + 1], &takeover->fences[place],
            (takeover->fence_count - place) * sizeof(struct fence *));
    takeover->fences[place] = fence;
    takeover->fence_count++;
    fence->takeover = takeover;
    fence->server_id = server_id;
    fence->command.name = "FENCE";
    fence->command.volume_id = takeover->volume->desc.id;
    fence->command.send = fence_send;
    fence->command.on_reply = fence_on_reply;
    return fence;
}

/* --- slots that come into sync meanwhile --- */

static size_t
promoted_lower_bound(const struct fence *fence, const struct fence_cursor *cursor)
{
    size_t low = 0, high = fence->promoted.count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        struct fence_cursor chunk = cursor_of_chunk(&fence->promoted.items[middle]);

        if (cursor_compare(&chunk, cursor) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void
meta_takeover_promoted(struct meta_volume *volume, const struct segment *segment,
                       const struct segment_slot *slot, uint32_t attempt)
{
    struct meta_takeover *takeover = volume->takeover;
    struct fence_cursor cursor = {.segment = segment->index, .slot = slot->number};
    Dl__PendingChunk named = DL__PENDING_CHUNK__INIT;
    struct fence *fence;
    size_t place;
    int err;

    dl_assert(attempt != 0);
    if (takeover == NULL || takeover->owner_has_map || DLBLK_MUTANT(meta_forget_promoted))
        return;
    fence = takeover_find(takeover, slot->server_id);
    if (fence == NULL) {
        fence = fence_create(takeover, slot->server_id);
        fence->late = fence->answered = true;
        takeover->answered_count++;
    }
    named.segment = segment->index;
    named.slot = slot->number;
    named.config_epoch = segment->config_epoch;
    named.attempt = attempt;
    place = promoted_lower_bound(fence, &cursor);
    if (place < fence->promoted.count) {
        struct fence_cursor other = cursor_of_chunk(&fence->promoted.items[place]);

        if (cursor_compare(&other, &cursor) == 0) {
            fence->promoted.items[place] = named;
            return;
        }
    }
    err = vec_push(&fence->promoted, named);
    dl_assert(err == 0);
    memmove(&fence->promoted.items[place + 1], &fence->promoted.items[place],
            (fence->promoted.count - 1 - place) * sizeof(named));
    fence->promoted.items[place] = named;
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
    list_init(&takeover->attachers);
    list_init(&takeover->pollers);
    volume->takeover = takeover;
    core->stats.takeovers++;
    for (uint32_t i = 0; i < volume->server_count; i++)
        if (!is_known(volume->servers[i].server_id, known, known_count))
            (void)fence_create(takeover, volume->servers[i].server_id);
    meta_log(core, META_LOG_INFO, "takeover",
             "volume %s: lease %" PRIu32 ": shutting out the owners before on %" PRIu32 " servers",
             volume->desc.name, takeover->lease_epoch, takeover->fence_count);
    for (uint32_t i = 0; i < takeover->fence_count; i++)
        meta_command_start(&takeover->fences[i]->command,
                           meta_server_by_id(core, takeover->fences[i]->server_id), true);
}

static void
fence_destroy(struct fence *fence)
{
    meta_command_cancel(&fence->command);
    fence_drop_part(fence);
    vec_fini(&fence->promoted);
    free(fence);
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
        fence_destroy(takeover->fences[i]);
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
        const struct meta_server *server = core->servers[takeover->fences[i]->server_id];
        char problem[128];

        if (takeover->fences[i]->answered)
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
    dl_error_hint(&err,
                  "start those servers, then open the volume again; or say that they never come "
                  "back: dlblk volume force");
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

/* Is what this server says from here on, or the beginning of it, here? */
static bool
fence_has(const struct fence *fence, const struct fence_cursor *from)
{
    struct fence_cursor next;

    if (fence->late)
        return true;
    if (fence->part == NULL || cursor_compare(from, &fence->at) < 0)
        return false;
    next = cursor_of_next(fence->part);
    return !fence->part->more || cursor_compare(from, &next) < 0;
}

/*
 * The next chunk of an answer, of the part or of the promoted slots: those count more.  NULL: there
 * is none in this part.
 */
static Dl__PendingChunk *
answer_next_chunk(const struct fence *fence, size_t *part_idx, size_t *promoted_idx)
{
    const Dl__FenceReply *part = fence->part;
    Dl__PendingChunk *chunk = part != NULL && *part_idx < part->n_chunks ? part->chunks[*part_idx]
                                                                         : NULL;
    struct fence_cursor chunk_at = {0}, promoted_at;
    int order = -1;

    if (chunk != NULL)
        chunk_at = cursor_of_chunk(chunk);
    if (*promoted_idx < fence->promoted.count) {
        promoted_at = cursor_of_chunk(&fence->promoted.items[*promoted_idx]);
        if (chunk != NULL) {
            order = cursor_compare(&promoted_at, &chunk_at);
        } else if (part != NULL && part->more) {
            struct fence_cursor next = cursor_of_next(part);

            order = cursor_compare(&promoted_at, &next) < 0 ? -1 : 1;
        }
        if (order <= 0) {
            *part_idx += order == 0;
            return &fence->promoted.items[(*promoted_idx)++];
        }
    }
    *part_idx += chunk != NULL;
    return chunk;
}

static void
answer_add_chunk(struct status_reply *reply, Dl__FenceAnswer *answer, Dl__PendingChunk *chunk)
{
    if (answer->n_chunks == 0 || is_power_of_two(answer->n_chunks))
        answer->chunks = meta_realloc(answer->chunks, 2 * answer->n_chunks + 1,
                                      sizeof(Dl__PendingChunk *));
    answer->chunks[answer->n_chunks++] = chunk;
    reply->bytes += dl__pending_chunk__get_packed_size(chunk) + 8;
}

static void
answer_cut(struct status_reply *reply, Dl__FenceAnswer *answer, const struct fence_cursor *next)
{
    answer->more = reply->full = true;
    answer->next_segment = next->segment;
    answer->next_slot = next->slot;
    answer->next_version = next->version;
}

/* The answer of one server from a cursor on, as far as it is here and fits. */
static void
status_add_answer(struct status_reply *reply, const struct fence *fence,
                  const struct fence_cursor *from)
{
    struct fence_cursor first = {.segment = from->segment, .slot = from->slot};
    size_t part_idx = 0, promoted_idx = promoted_lower_bound(fence, &first);
    Dl__FenceAnswer *answer = meta_alloc(sizeof(*answer));
    Dl__PendingChunk *chunk;

    dl__fence_answer__init(answer);
    answer->server_id = fence->server_id;
    while ((chunk = answer_next_chunk(fence, &part_idx, &promoted_idx)) != NULL) {
        struct fence_cursor at = cursor_of_chunk(chunk);

        if (cursor_compare(&at, &first) < 0 || !chunk_is_mapped(fence, chunk))
            continue;
        if (reply->bytes > META_REPLY_BYTES) {
            answer_cut(reply, answer, &at);
            break;
        }
        answer_add_chunk(reply, answer, chunk);
    }
    if (!answer->more && fence->part != NULL && fence->part->more) {
        struct fence_cursor next = cursor_of_next(fence->part);

        answer_cut(reply, answer, &next);
    }
    reply->message.answers = meta_realloc(reply->message.answers, reply->message.n_answers + 1,
                                          sizeof(Dl__FenceAnswer *));
    reply->message.answers[reply->message.n_answers++] = answer;
}

/* The rest of a long answer.  False: there is none. */
static bool
status_resume(struct status_reply *reply, struct meta_takeover *takeover,
              const Dl__FenceStatus *message)
{
    struct fence_cursor from = {message->resume_segment, message->resume_slot,
                                message->resume_version};
    struct fence *fence = takeover_find(takeover, message->resume_server);

    if (fence == NULL)
        return false;
    if (fence->answered && fence_has(fence, &from))
        status_add_answer(reply, fence, &from);
    else if (fence->answered)
        fence_fetch(fence, &from);
    return true;
}

/*
 * What was begun comes first, else a new answer could keep its rest out for ever; and alone, if the
 * server has to be asked for it, since the owner takes one long answer at a time.
 */
static void
status_build(struct status_reply *reply, struct meta_takeover *takeover,
             const Dl__FenceStatus *message)
{
    static const struct fence_cursor beginning;
    bool resumed = status_resume(reply, takeover, message);
    struct fence *absent = NULL;

    for (uint32_t i = 0; i < takeover->fence_count; i++) {
        struct fence *fence = takeover->fences[i];

        if (is_known(fence->server_id, message->known, message->n_known)) {
            fence_drop_part(fence);
            vec_fini(&fence->promoted);
            continue;
        }
        if (!fence->answered || reply->full || (resumed && reply->message.n_answers == 0) ||
            (resumed && fence->server_id == message->resume_server))
            continue;
        if (fence_has(fence, &beginning))
            status_add_answer(reply, fence, &beginning);
        else if (absent == NULL || !fence_is_within_reach(absent))
            absent = fence; /* who is away does not keep the others from being asked */
    }
    if (absent != NULL && reply->message.n_answers == 0)
        fence_fetch(absent, &beginning);
    reply->message.waiting_for = meta_alloc(takeover->fence_count * sizeof(uint32_t));
    for (uint32_t i = 0; i < takeover->fence_count; i++)
        if (takeover->fences[i]->command.server != NULL)
            reply->message.waiting_for[reply->message.n_waiting_for++] =
                takeover->fences[i]->server_id;
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
    volume->takeover->owner_has_map = true;
    status_reply_or_wait(op, volume->takeover);
}
