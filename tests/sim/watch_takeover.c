/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch_takeover.c: whom a new owner has asked before it uses a segment.  See watch.h.
 *
 * Of each slot that has recovered is known in which attempt, and to which lease its server has
 * listed since then what is pending: by FENCE, when the slot was in-sync, or by PENDING.  When a
 * segment becomes ready in a takeover, all slots that are in-sync in the owner's map must have
 * answered so; and they have all that this owner has sent to make ranges alike.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/chunk_table.h"
#include "client/volume_internal.h"
#include "proto/control.pb-c.h"
#include "proto/data.h"
#include "tests/sim/watch.h"

#define SLOTS_MAX     4096u /* a power of two */
#define QUESTIONS_MAX 256u
#define REWRITES_MAX  256u
#define SEGMENTS_MAX  64u /* of a volume */

struct watch_slot {
    struct chunk_key key;
    uint32_t server_idx;  /* of its process, and 1; 0: free */
    uint32_t attempt;     /* the last that it was told of */
    uint32_t lease_epoch; /* to whom it has listed since what is pending; 0: nobody */
};

/* FENCE or PENDING, on a server. */
struct watch_question {
    uint64_t link_id; /* 0: free */
    uint64_t request_id;
    uint64_t volume;
    uint32_t lease_epoch;
    struct chunk_key key; /* PENDING */
};

/* What an owner has sent to make a range alike. */
struct watch_rewrite {
    struct chunk_key key; /* but for the slot */
    uint64_t version;     /* 0: free */
    uint32_t first_sector, sector_count;
};

struct watch_owner {
    uint32_t lease_epoch, unresolved_count;
    bool unresolved[SEGMENTS_MAX]; /* as it was when they were looked at */
};

struct watch_takeovers {
    struct cluster *cluster;
    struct watch_slot slots[SLOTS_MAX];
    struct watch_question questions[QUESTIONS_MAX];
    uint32_t next_question;
    struct watch_rewrite rewrites[REWRITES_MAX];
    uint32_t next_rewrite;
    struct watch_owner owners[CLUSTER_CLIENTS_MAX];
};

static struct watch_slot *
watch_slot(struct watch_takeovers *watch, const struct sim_server *server,
           const struct chunk_key *key)
{
    uint32_t idx = (uint32_t)(key->volume * 31 + key->segment * 7 + key->slot * 131) +
                   server->process.idx * 1009;

    for (uint32_t tries = 0; tries < SLOTS_MAX; tries++, idx++) {
        struct watch_slot *slot = &watch->slots[idx % SLOTS_MAX];

        if (slot->server_idx == 0)
            *slot = (struct watch_slot){.key = *key, .server_idx = server->process.idx + 1};
        if (slot->server_idx == server->process.idx + 1 &&
            memcmp(&slot->key, key, sizeof(*key)) == 0)
            return slot;
    }
    sim_fail(&watch->cluster->world, "too many slots to watch");
}

/* --- what servers are told, and say --- */

static void
watch_on_attempt(struct watch_takeovers *watch, const struct sim_frame_event *event,
                 const struct sim_server *server)
{
    Dl__SlotTell *tell = (Dl__SlotTell *)frame_unpack(event->frame, &dl__slot_tell__descriptor);
    struct watch_slot *slot;

    if (tell == NULL)
        return;
    struct chunk_key key = {tell->volume, tell->segment, tell->slot};
    slot = tell->attempt == 0 ? NULL : watch_slot(watch, server, &key);
    if (slot != NULL && tell->attempt > slot->attempt) {
        slot->attempt = tell->attempt;
        slot->lease_epoch = 0;
    }
    dl__slot_tell__free_unpacked(tell, NULL);
}

static void
watch_note_question(struct watch_takeovers *watch, const struct sim_frame_event *event,
                    const struct chunk_key *key, uint32_t lease_epoch)
{
    watch->questions[watch->next_question++ % QUESTIONS_MAX] = (struct watch_question){
        .link_id = event->link_id,
        .request_id = event->frame->request_id,
        .volume = key->volume,
        .lease_epoch = lease_epoch,
        .key = *key,
    };
}

static void
watch_on_fence(struct watch_takeovers *watch, const struct sim_frame_event *event)
{
    Dl__Fence *fence = (Dl__Fence *)frame_unpack(event->frame, &dl__fence__descriptor);

    if (fence == NULL)
        return;
    struct chunk_key key = {.volume = fence->volume};
    watch_note_question(watch, event, &key, fence->lease_epoch);
    dl__fence__free_unpacked(fence, NULL);
}

static void
watch_on_pending(struct watch_takeovers *watch, const struct sim_frame_event *event)
{
    Dl__Pending *pending = (Dl__Pending *)frame_unpack(event->frame, &dl__pending__descriptor);

    if (pending == NULL)
        return;
    struct chunk_key key = {pending->volume, pending->segment, pending->slot};
    watch_note_question(watch, event, &key, pending->lease_epoch);
    dl__pending__free_unpacked(pending, NULL);
}

/* It is in-sync, as far as its server knows, and no attempt is about to begin. */
static void
watch_slot_lists(const struct sim_server *server, struct watch_slot *slot, uint32_t lease_epoch)
{
    const struct chunk *chunk = chunk_table_find(server->disk.chunks, &slot->key);

    if (chunk != NULL && chunk->attempt == 0 && chunk->config_epoch >= slot->attempt &&
        lease_epoch > slot->lease_epoch)
        slot->lease_epoch = lease_epoch;
}

static void
watch_on_list(struct watch_takeovers *watch, const struct sim_frame_event *event,
              const struct sim_server *server)
{
    struct watch_question *question = NULL;

    for (uint32_t i = 0; i < QUESTIONS_MAX && question == NULL; i++)
        if (watch->questions[i].link_id == event->link_id &&
            watch->questions[i].request_id == event->frame->request_id)
            question = &watch->questions[i];
    if (question == NULL)
        return;
    question->link_id = 0;
    if (event->frame->status != 0)
        return;
    if (event->frame->opcode == OP_PENDING) {
        watch_slot_lists(server, watch_slot(watch, server, &question->key), question->lease_epoch);
        return;
    }
    for (uint32_t i = 0; i < SLOTS_MAX; i++)
        if (watch->slots[i].server_idx == server->process.idx + 1 &&
            watch->slots[i].key.volume == question->volume)
            watch_slot_lists(server, &watch->slots[i], question->lease_epoch);
}

/* From an owner who has segments to resolve. */
static void
watch_on_rewrite(struct watch_takeovers *watch, const struct sim_frame_event *event)
{
    const struct cluster *cluster = watch->cluster;
    struct data_write write;
    bool resolves = false;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        resolves |= &cluster->clients[i].process == event->from &&
                    watch->owners[i].unresolved_count > 0;
    if (!resolves || event->frame->body == NULL || data_write_decode(event->frame, &write) != 0 ||
        (write.target.flags & WRITE_RESOLVE) == 0)
        return;
    watch->rewrites[watch->next_rewrite++ % REWRITES_MAX] = (struct watch_rewrite){
        .key = {.volume = write.target.volume, .segment = write.target.segment},
        .version = write.version,
        .first_sector = write.target.offset_sectors,
        .sector_count = write.target.length_sectors,
    };
}

void
watch_takeovers_on_frame(struct watch_takeovers *watch, const struct sim_frame_event *event)
{
    bool is_reply = frame_is_reply(event->frame);
    uint16_t opcode = event->frame->opcode;
    const struct sim_server *server;

    if (opcode == OP_WRITE && !is_reply && !event->arrives)
        watch_on_rewrite(watch, event);
    if ((opcode != OP_FENCE && opcode != OP_PENDING && opcode != OP_SLOT_TELL) ||
        is_reply == event->arrives)
        return;
    server = watch_server_of_process(watch->cluster, is_reply ? event->from : event->to);
    if (server == NULL)
        return;
    if (opcode == OP_SLOT_TELL && !is_reply)
        watch_on_attempt(watch, event, server);
    else if (opcode == OP_FENCE && !is_reply)
        watch_on_fence(watch, event);
    else if (opcode == OP_PENDING && !is_reply)
        watch_on_pending(watch, event);
    else if (opcode != OP_SLOT_TELL)
        watch_on_list(watch, event, server);
}

/* --- what owners make of it --- */

/* If the slot is still what the owner takes it for. */
static void
check_rewrite(struct watch_takeovers *watch, const struct segment *segment,
              const struct sim_server *server, const struct chunk_key *key,
              const struct watch_rewrite *rewrite)
{
    const struct chunk *chunk = chunk_table_find(server->disk.chunks, key);
    const struct model_chunk *content = chunk == NULL ? NULL : chunk->store_private;

    if (content == NULL || server->gone || server == watch->cluster->fragile ||
        chunk->attempt != 0 || chunk->config_epoch > segment->config_epoch)
        return;
    for (uint32_t i = 0; i < rewrite->sector_count; i++) {
        uint32_t idx = rewrite->first_sector + i;

        sim_require(
            &watch->cluster->world,
            idx < content->sector_count && (content->sectors[idx].is_void ||
                                            content->sectors[idx].version >= rewrite->version),
            "volume %" PRIu64 " segment %u is in use after a takeover, and slot %u on %s "
            "has not got the rewrite %#" PRIx64 " of sector %u",
            key->volume, key->segment, key->slot, server->process.name, rewrite->version, idx);
    }
}

static void
check_rewrites(struct watch_takeovers *watch, const struct client_volume *volume,
               const struct segment *segment, const struct sim_server *server,
               const struct chunk_key *key)
{
    for (uint32_t i = 0; i < REWRITES_MAX; i++) {
        const struct watch_rewrite *rewrite = &watch->rewrites[i];

        if (rewrite->version >> WIRE_VERSION_SEQUENCE_BITS == volume->lease_epoch &&
            rewrite->key.volume == key->volume && rewrite->key.segment == key->segment)
            check_rewrite(watch, segment, server, key, rewrite);
    }
}

static void
check_ready(struct watch_takeovers *watch, const struct sim_client *client,
            const struct segment *segment)
{
    const struct client_volume *volume = client->volume;

    for (uint32_t i = 0; i < segment->slot_count; i++) {
        const struct segment_slot *place = &segment->slots[i];
        struct chunk_key key = {volume->id, segment->index, place->number};
        const struct sim_server *server;
        const struct watch_slot *slot;

        if (!segment_slot_is_read(place))
            continue;
        server = watch_server_by_id(watch->cluster, place->server_id);
        /* What newer owners did, who have shut this one out, says nothing of it. */
        if (server == NULL ||
            chunk_table_fence(server->disk.chunks, volume->id) > volume->lease_epoch)
            continue;
        check_rewrites(watch, volume, segment, server, &key);
        slot = watch_slot(watch, server, &key);
        /* A later attempt is one that the owner has not heard of. */
        sim_require(&watch->cluster->world,
                    slot->attempt == 0 || slot->attempt > segment->config_epoch ||
                        slot->lease_epoch >= volume->lease_epoch,
                    "%s, lease %u, uses volume %" PRIu64 " segment %u (config epoch %u), and has "
                    "not asked slot %u on %s, which has recovered in attempt %u, what is pending",
                    client->process.name, volume->lease_epoch, volume->id, segment->index,
                    segment->config_epoch, place->number, server->process.name, slot->attempt);
    }
}

static void
watch_owner(struct watch_takeovers *watch, const struct sim_client *client,
            struct watch_owner *owner)
{
    struct client_volume *volume = client->volume;
    struct segment *segment = client_map_next(&volume->map, 0);

    if (owner->lease_epoch != volume->lease_epoch)
        memset(owner->unresolved, 0, sizeof(owner->unresolved));
    owner->lease_epoch = volume->lease_epoch;
    owner->unresolved_count = volume->unresolved_count;
    for (; segment != NULL && segment->index < SEGMENTS_MAX;
         segment = client_map_next(&volume->map, segment->index + 1)) {
        bool unresolved = segment->state == SEGMENT_UNRESOLVED;

        if (owner->unresolved[segment->index] && segment->state == SEGMENT_READY)
            check_ready(watch, client, segment);
        owner->unresolved[segment->index] = unresolved;
    }
}

void
watch_takeovers_step(struct watch_takeovers *watch)
{
    struct cluster *cluster = watch->cluster;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++) {
        const struct sim_client *client = &cluster->clients[i];
        struct watch_owner *owner = &watch->owners[i];

        if (!client->process.up || client->volume == NULL)
            owner->lease_epoch = 0;
        else if (client->volume->lease_epoch != owner->lease_epoch ||
                 client->volume->unresolved_count != owner->unresolved_count)
            watch_owner(watch, client, owner);
    }
}

/* --- life --- */

struct watch_takeovers *
watch_takeovers_create(struct cluster *cluster)
{
    struct watch_takeovers *watch = calloc(1, sizeof(*watch));

    sim_require(&cluster->world, watch != NULL, "no memory");
    watch->cluster = cluster;
    return watch;
}

void
watch_takeovers_destroy(struct watch_takeovers *watch)
{
    free(watch);
}
