/* SPDX-License-Identifier: Apache-2.0 */
/*
 * eject.c: slots that failed a write are put out of the map.
 *
 * A segment's part of it, under one config epoch:
 *
 *     NONE --- a write's wish ---> WANTED --- EJECT sent ---> ASKED --- another map ---> NONE
 *      ^                             ^                         |  |
 *      |                             +-- EJECT failed ---------+  | the map is as it was
 *      +------------- after EJECT_AGAIN_NS --------- REFUSED <----+
 *
 * Nothing here waits for anything: writes are sent to the slots of the map that they have until the
 * map is another one, and look here only for what to say meanwhile.
 *
 * One EJECT of a volume is under way at a time; what is wanted meanwhile goes with the next.  A
 * wish names the config epoch that it was decided under (docs/recovery.md, rule 1).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/volume_internal.h"
#include "common/align.h"
#include "common/mutant.h"

/* Segments in one message. */
#define EJECT_BATCH_MAX 512u
#define EJECT_AGAIN_NS  (1000 * CLIENT_NS_PER_MS)
/* Between tries to connect to a server that the volume can't go on without. */
#define EJECT_BACKOFF_NS   (100 * CLIENT_NS_PER_MS)
#define EJECT_DETAIL_BYTES 128u

struct eject_item {
    Dl__Ejection message;
    struct eject_wish wish;
    uint32_t servers[WIRE_SLOTS_MAX];
    char detail[EJECT_DETAIL_BYTES];
};

struct eject_batch {
    size_t count;
    Dl__Ejection *pointers[EJECT_BATCH_MAX];
    struct eject_item items[];
};

/* --- wishes --- */

/*
 * Were these refused just now, or fewer of them?  Who has fewer failures than another asks for
 * fewer; with the other's on top it would be refused again, and so on.
 */
static bool
eject_is_too_much(const struct client_volume *volume, const struct segment *segment, uint32_t mask)
{
    uint32_t refused_mask = segment->eject_refused_mask;

    return refused_mask != 0 && (mask & refused_mask) == refused_mask &&
           env_now_ns(volume->core->env) < segment->eject_retry_ns;
}

void
client_eject_want(struct client_volume *volume, struct segment *segment, uint32_t place,
                  Dl__EjectReason reason, int err)
{
    struct eject_wish wish = {.segment = segment->index, .reason = reason, .err = err};

    dl_assert(place < segment->slot_count);
    dl_assert(reason != DL__EJECT_REASON__EJECT_NONE);
    if (volume->fenced || !client_core_ejects(volume->core))
        return;
    switch ((enum segment_eject)segment->eject_state) {
    case SEGMENT_EJECT_ASKED:
        return; /* whoever is left in the next map and still fails comes again */
    case SEGMENT_EJECT_WANTED:
        if (!eject_is_too_much(volume, segment, segment->eject_mask | 1u << place))
            segment->eject_mask |= 1u << place;
        return;
    case SEGMENT_EJECT_REFUSED:
        /* A recovering slot can always be spared. */
        if (env_now_ns(volume->core->env) < segment->eject_retry_ns &&
            segment_slot_is_read(&segment->slots[place]))
            return;
        break;
    case SEGMENT_EJECT_NONE:
        break;
    }
    if (vec_push(&volume->eject_wishes, wish) != 0)
        return; /* no memory: it still fails at the next look */
    segment->eject_state = SEGMENT_EJECT_WANTED;
    segment->eject_mask = 1u << place;
    client_volume_defer(volume);
    client_core_want_tick(volume->core);
}

/* --- EJECT --- */

static void
eject_fill_item(struct client_volume *volume, struct eject_item *item, struct segment *segment)
{
    Dl__Ejection *message = &item->message;
    bool unsettled = segment->writer != NULL && segment->writer->unsettled.count > 0;
    uint32_t recovering_mask = 0;

    dl__ejection__init(message);
    message->segment = segment->index;
    message->config_epoch = segment->config_epoch;
    message->server_ids = item->servers;
    /* Recovering slots keep what they pulled only if nothing is left that slots disagree about. */
    message->resolved = (segment->state == SEGMENT_READY && !unsettled) ||
                        DLBLK_MUTANT(client_eject_resolved);
    message->reason = item->wish.reason;
    message->detail = item->detail;
    /*
     * Those first, alone: that is never refused.  Others that still fail come under the next map.
     */
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if ((segment->eject_mask & 1u << i) != 0 && !segment_slot_is_read(&segment->slots[i]))
            recovering_mask |= 1u << i;
    if (recovering_mask != 0)
        segment->eject_mask = recovering_mask;
    for (uint32_t i = 0; i < segment->slot_count; i++) {
        const struct client_server *server = client_core_server(volume->core,
                                                                segment->slots[i].server_id);

        if ((segment->eject_mask & 1u << i) == 0)
            continue;
        item->servers[message->n_server_ids++] = segment->slots[i].server_id;
        if (item->detail[0] == '\0')
            (void)snprintf(item->detail, sizeof(item->detail), "%.120s",
                           item->wish.err != 0 ? dl_err_str(item->wish.err)
                                               : server->session.problem);
    }
}

/*
 * Of the wishes, in their order, as many as a message may have; those of an older map are dropped.
 */
static void
eject_take_wishes(struct client_volume *volume, struct eject_batch *batch)
{
    size_t taken = 0;

    while (taken < volume->eject_wishes.count && batch->count < EJECT_BATCH_MAX) {
        struct eject_wish wish = volume->eject_wishes.items[taken++];
        struct segment *segment = client_map_get(&volume->map, wish.segment);
        struct eject_item *item = &batch->items[batch->count];

        if (segment->eject_state != SEGMENT_EJECT_WANTED)
            continue;
        segment->eject_state = SEGMENT_EJECT_ASKED;
        item->wish = wish;
        eject_fill_item(volume, item, segment);
        batch->pointers[batch->count++] = &item->message;
    }
    for (size_t i = taken; i < volume->eject_wishes.count; i++)
        volume->eject_wishes.items[i - taken] = volume->eject_wishes.items[i];
    volume->eject_wishes.count -= taken;
}

void
client_eject_run(struct client_volume *volume)
{
    size_t room = min_u64(volume->eject_wishes.count, EJECT_BATCH_MAX);
    struct eject_batch *batch;

    if (room == 0 || volume->eject_batch != NULL || volume->fenced ||
        volume->sm.state >= VOLUME_DETACHING ||
        env_now_ns(volume->core->env) < volume->eject_retry_ns)
        return;
    batch = calloc(1, sizeof(*batch) + room * sizeof(batch->items[0]));
    if (batch == NULL)
        return; /* the tick tries again */
    eject_take_wishes(volume, batch);
    if (batch->count == 0) {
        free(batch);
        return;
    }
    volume->eject_batch = batch;
    volume->eject_request.volume = volume->id;
    volume->eject_request.lease_epoch = volume->lease_epoch;
    volume->eject_request.n_ejections = batch->count;
    volume->eject_request.ejections = batch->pointers;
    volume->eject_call.opcode = OP_EJECT;
    volume->eject_call.patient = true;
    volume->eject_call.request = &volume->eject_request.base;
    volume->eject_call.reply_type = &dl__eject_reply__descriptor;
    client_meta_call_start(volume->core, &volume->eject_call);
}

/* One event for the message: with a server gone there are many segments. */
static void
eject_say(struct client_volume *volume, const struct eject_item *first, uint32_t count)
{
    const struct client_server *server = client_core_server(volume->core, first->servers[0]);

    client_core_event(volume->core, DLBLK_EVENT_WARNING,
                      "volume %s: %s was ejected from %u segment%s (the first: %u): %s",
                      volume->name, client_server_name(server).text, count, count == 1 ? "" : "s",
                      first->message.segment, first->detail);
}

/* They are needed: the volume goes on as soon as they are back. */
static void
eject_hurry_servers(struct client_volume *volume, const struct eject_item *item)
{
    for (size_t i = 0; i < item->message.n_server_ids; i++) {
        struct client_session *session =
            &client_core_server(volume->core, item->servers[i])->session;

        session->backoff_max_ns = EJECT_BACKOFF_NS;
        session->backoff_ns = min_u64(session->backoff_ns, EJECT_BACKOFF_NS);
    }
}

static void
eject_take_reply(struct client_volume *volume, const struct eject_batch *batch)
{
    uint64_t now_ns = env_now_ns(volume->core->env);
    const struct eject_item *first = NULL;
    uint32_t count = 0;

    for (size_t i = 0; i < batch->count; i++) {
        const struct eject_item *item = &batch->items[i];
        struct segment *segment = client_map_get(&volume->map, item->message.segment);

        /* Asked under another config epoch, for another reason: not this message's. */
        if (segment->config_epoch != item->message.config_epoch) {
            first = first != NULL ? first : item;
            count++;
            continue;
        }
        dl_assert(segment->eject_state == SEGMENT_EJECT_ASKED);
        segment->eject_state = SEGMENT_EJECT_REFUSED;
        segment->eject_refused_mask = segment->eject_mask;
        segment->eject_retry_ns = now_ns + EJECT_AGAIN_NS;
        volume->eject_recheck_ns = segment->eject_retry_ns;
        volume->stats.ejections_refused++;
        eject_hurry_servers(volume, item);
    }
    volume->stats.ejections += count;
    if (count > 0)
        eject_say(volume, first, count);
}

/* Nobody knows whether it was done: asked again, by those who still fail. */
static void
eject_on_error(struct client_volume *volume, const struct eject_batch *batch, int err)
{
    for (size_t i = 0; i < batch->count; i++) {
        struct segment *segment = client_map_get(&volume->map, batch->items[i].message.segment);

        if (segment->config_epoch == batch->items[i].message.config_epoch)
            segment->eject_state = SEGMENT_EJECT_NONE;
    }
    volume->eject_retry_ns = env_now_ns(volume->core->env) + EJECT_AGAIN_NS;
    volume->eject_recheck_ns = volume->eject_retry_ns;
    client_core_event(volume->core, DLBLK_EVENT_WARNING,
                      "volume %s: the metadata service did not eject slots that failed: %s",
                      volume->name, err != 0 ? dl_err_str(err) : "");
}

static void
eject_on_done(struct client_meta_call *call, int err)
{
    struct client_volume *volume = call->context;
    struct eject_batch *batch = volume->eject_batch;
    const Dl__EjectReply *reply = (const Dl__EjectReply *)call->reply;

    if (err == 0)
        err = client_volume_learn(volume, reply->servers, reply->n_servers, reply->segments,
                                  reply->n_segments);
    volume->eject_batch = NULL;
    if (client_is_fence_error(err))
        client_volume_fence(volume, err, call->error.text);
    else if (err != 0)
        eject_on_error(volume, batch, err);
    else
        eject_take_reply(volume, batch);
    free(batch);
    client_volume_check_ops(volume);
    client_volume_defer(volume);
}

void
client_eject_tick(struct client_volume *volume)
{
    uint64_t now_ns = env_now_ns(volume->core->env);

    if (volume->eject_recheck_ns != 0 && now_ns >= volume->eject_recheck_ns) {
        volume->eject_recheck_ns = 0;
        client_volume_check_ops(volume);
    }
    if (volume->eject_wishes.count > 0)
        client_volume_defer(volume);
}

/* --- life --- */

void
client_eject_init(struct client_volume *volume)
{
    dl__eject__init(&volume->eject_request);
    volume->eject_call.on_done = eject_on_done;
    volume->eject_call.context = volume;
}

void
client_eject_cancel(struct client_volume *volume)
{
    client_meta_call_cancel(&volume->eject_call);
    free(volume->eject_batch);
    volume->eject_batch = NULL;
    vec_clear(&volume->eject_wishes);
}

void
client_eject_fini(struct client_volume *volume)
{
    client_eject_cancel(volume);
    vec_fini(&volume->eject_wishes);
}
