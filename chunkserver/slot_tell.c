/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slot_tell.c: what the metadata service says of slots, and the order of what changes them.  See
 * core_internal.h, docs/recovery.md.
 *
 * Changes of one slot (SLOT_TELL, CHUNK_DELETE) go to the store one after the other, as they came:
 * a deletion must not overtake the beginning of an attempt that came before it, or its chunk would
 * come back.
 *
 * Between the start of an attempt's beginning and its end the slot serves nothing:
 *   WRITE, STABLE, PENDING  NOT_YET, unless the chunk's config epoch is above theirs (EPOCH_OLD)
 *   READ, PULL              NOT_IN_SYNC
 * What the store has of it already is its matter: writes end before the attempt begins, a read or a
 * pull is looked at again when it ends.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "common/log.h"
#include "common/mutant.h"
#include "dlblk/error.h"

/* --- one change of a slot at a time --- */

static struct slot_change *
slot_change_find(const struct chunkserver_core *core, const struct chunk_key *key)
{
    struct slot_change *slot;

    HASH_FIND(by_key, core->slot_changes, key, sizeof(*key), slot);
    return slot;
}

bool
slot_is_beginning(const struct chunkserver_core *core, const struct chunk_key *key)
{
    const struct slot_change *slot = core->slot_changes == NULL ? NULL
                                                                : slot_change_find(core, key);

    return slot != NULL && slot->change.kind == STORE_ATTEMPT;
}

static void slot_change_on_done(struct store_change *change, int err);

static void
slot_change_begin(struct slot_change *slot)
{
    struct chunkserver_core *core = slot->core;

    HASH_ADD(by_key, core->slot_changes, change.key, sizeof(slot->change.key), slot);
    slot->change.on_done = slot_change_on_done;
    core->store->ops->change_start(core->store, &slot->change);
    core_store_started(core);
}

static void
slot_change_on_done(struct store_change *change, int err)
{
    struct slot_change *slot = list_entry(change, struct slot_change, change);
    struct list *node = list_pop_front(&slot->followers);

    HASH_DELETE(by_key, slot->core->slot_changes, slot);
    if (node != NULL) {
        struct slot_change *next = list_entry(node, struct slot_change, node);

        list_splice_back(&next->followers, &slot->followers);
        slot_change_begin(next);
    }
    slot->on_done(slot, err);
}

void
slot_change_start(struct chunkserver_core *core, struct slot_change *slot)
{
    struct slot_change *first = slot_change_find(core, &slot->change.key);

    slot->core = core;
    list_init(&slot->followers);
    if (first != NULL)
        list_push_back(&first->followers, &slot->node);
    else
        slot_change_begin(slot);
}

/* --- SLOT_TELL --- */

struct tell_request {
    struct meta_request request; /* first */
    struct slot_change slot;
    uint32_t source_count;
    struct pull_source sources[PULL_SOURCES_MAX];
};

/* Whoever it can't be pulled from is left out. */
static void
tell_add_source(struct tell_request *tell, const Dl__Peer *peer)
{
    struct pull_source *source = &tell->sources[tell->source_count];
    struct dl_error err = {0};

    if (tell->source_count == PULL_SOURCES_MAX || peer->server == NULL ||
        peer->slot >= WIRE_SLOTS_MAX || peer->server->uuid.len != CHUNKSERVER_UUID_BYTES)
        return;
    if (dl_address_parse(peer->server->address, 0, &source->address, &err) != 0) {
        log_warning("chunkserver", "recovery", "server %u can't be reached: %s",
                    peer->server->server_id, err.text);
        return;
    }
    source->slot = peer->slot;
    memcpy(source->uuid, peer->server->uuid.data, CHUNKSERVER_UUID_BYTES);
    tell->source_count++;
}

static void
tell_on_done(struct slot_change *slot, int err)
{
    struct tell_request *tell = list_entry(slot, struct tell_request, slot);
    struct chunkserver_core *core = tell->request.core;
    const struct store_change *change = &slot->change;
    const struct chunk *chunk = chunk_table_find(core->chunks, &change->key);
    Dl__SlotTellReply reply = DL__SLOT_TELL_REPLY__INIT;

    recovery_check(core, &change->key);
    if (err == 0 && chunk != NULL && chunk->attempt != 0)
        findings_voided(core->findings, chunk);
    /* Of what the store says now: the message may have been an old one. */
    if (err == 0 && change->kind == STORE_ATTEMPT && chunk != NULL &&
        chunk->attempt == change->attempt && !core->stopping &&
        !recovery_begin(core, &change->key, change->attempt, change->segment_sectors, tell->sources,
                        tell->source_count))
        err = -DL_E_NO_MEMORY; /* or it would not be told again, and nothing ever be pulled */
    meta_request_reply(&tell->request, err, NULL, &reply.base);
    meta_request_end(&tell->request);
    free(tell);
}

static const char *
tell_problem(const Dl__SlotTell *message)
{
    if (message->slot >= WIRE_SLOTS_MAX || message->config_epoch == 0)
        return "not a slot, or not a config epoch";
    if (message->state == DL__SLOT_STATE__SLOT_IN_SYNC)
        return NULL;
    if (message->state != DL__SLOT_STATE__SLOT_RECOVERING)
        return "a slot is told that it is in-sync or recovering";
    if (message->attempt == 0 || message->attempt > message->config_epoch)
        return "not an attempt";
    if (message->segment_sectors == 0 || message->segment_sectors > WIRE_CHUNK_SECTORS_MAX)
        return "not the size of a segment";
    return message->lease_epoch > WIRE_LEASE_EPOCH_MAX ? "not a lease epoch" : NULL;
}

static void
tell_start(struct tell_request *tell, const Dl__SlotTell *message)
{
    struct store_change *change = &tell->slot.change;

    change->key = (struct chunk_key){
        .volume = message->volume,
        .segment = message->segment,
        .slot = message->slot,
    };
    change->config_epoch = message->config_epoch;
    change->incarnation = message->incarnation;
    if (message->state == DL__SLOT_STATE__SLOT_IN_SYNC) {
        change->kind = STORE_IN_SYNC;
    } else {
        change->kind = STORE_ATTEMPT;
        change->attempt = message->attempt;
        change->segment_sectors = message->segment_sectors;
        if (!DLBLK_MUTANT(chunkserver_attempt_without_fence))
            change->lease_epoch = message->lease_epoch;
        for (size_t i = 0; i < message->n_peers; i++)
            tell_add_source(tell, message->peers[i]);
    }
    tell->slot.on_done = tell_on_done;
    slot_change_start(tell->request.core, &tell->slot);
}

void
tell_receive(struct chunkserver_core *core, const struct frame *frame, const Dl__SlotTell *message)
{
    const char *problem = tell_problem(message);
    struct tell_request *tell;

    core->stats.epochs++;
    if (problem != NULL) {
        meta_refuse(core, frame, -DL_E_MESSAGE_MALFORMED, problem);
        return;
    }
    tell = calloc(1, sizeof(*tell));
    if (tell == NULL) {
        meta_refuse(core, frame, -DL_E_NO_MEMORY, NULL);
        return;
    }
    meta_request_begin(&tell->request, core, frame);
    tell_start(tell, message);
}
