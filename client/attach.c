/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach.c: volumes opened, the lease said again after a lost connection, volumes closed.
 *
 * Open:   ATTACH, then the rest of the map by MAP_GET, then the takeover begins if there is one;
 *         open->on_done.
 *
 * Close:  OPEN --> DRAINING --> SETTLING --> DETACHING --> CLOSED
 *
 *   DRAINING   suspends: requests in flight (each has its deadline)
 *   SETTLING   suspends: the takeover, ranges that failed writes left undecided, STABLE's answers;
 *              what is not over when its time is, is given up: the next owner will do it.  A volume
 *              that somebody else has is not waited for, and not detached
 *   DETACHING  suspends: operations of our own to end, then the answer to DETACH
 *
 * client_close_step() runs in the volume's task only, so that the volume never vanishes under
 * somebody's feet.
 */
#include <stdlib.h>
#include <string.h>

#include "client/resolve.h"
#include "client/volume_internal.h"
#include "common/mutant.h"

#define MAP_PAGE_MAX  4096u
#define SETTLE_MAX_NS (5000 * CLIENT_NS_PER_MS)
#define DETACH_MS     4000u

static const struct sm_state volume_states[] = {
    [VOLUME_OPEN] = {"OPEN", SM_EDGE(VOLUME_DRAINING)},
    [VOLUME_DRAINING] = {"DRAINING", SM_EDGE(VOLUME_SETTLING)},
    [VOLUME_SETTLING] = {"SETTLING", SM_EDGE(VOLUME_DETACHING)},
    [VOLUME_DETACHING] = {"DETACHING", SM_EDGE(VOLUME_CLOSED)},
    [VOLUME_CLOSED] = {"CLOSED", SM_FINAL},
};
static const struct sm_table volume_table = SM_TABLE("client volume", volume_states);

/* --- learning from replies --- */

/* Slots that are written from now on, and were not, or begin an attempt. */
static void
learn_new_slots(struct client_volume *volume, const struct segment *segment,
                const struct segment_before *before)
{
    for (uint32_t i = 0; i < segment->slot_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];
        bool known = false;

        for (uint32_t k = 0; k < before->slot_count; k++)
            known = known || (segment_slot_is_written(&before->slots[k]) &&
                              before->slots[k].server_id == slot->server_id &&
                              (before->slots[k].attempt == slot->attempt || slot->attempt == 0));
        if (!known && segment_slot_is_written(slot))
            client_server_renew(client_core_server(volume->core, slot->server_id));
    }
}

static int
learn_segment(struct client_volume *volume, const Dl__Segment *message, bool *ret_changed)
{
    struct segment_before before;
    struct segment *segment;
    bool changed;
    bool was_there;
    int err;

    if (message->index >= geometry_segment_count(&volume->geometry))
        return -DL_E_MESSAGE_MALFORMED;
    for (size_t i = 0; i < message->n_slots; i++)
        if (message->slots[i]->server_id != 0 &&
            client_core_server(volume->core, message->slots[i]->server_id) == NULL)
            return -DL_E_MESSAGE_MALFORMED;
    segment = client_map_get(&volume->map, message->index);
    was_there = segment != NULL && segment->config_epoch != 0;
    if (was_there) {
        before.config_epoch = segment->config_epoch;
        before.slot_count = segment->slot_count;
        memcpy(before.slots, segment->slots, segment->slot_count * sizeof(before.slots[0]));
    }
    err = client_map_apply(&volume->map, message, &segment, &changed);
    *ret_changed = err == 0 && changed && was_there;
    if (*ret_changed) {
        learn_new_slots(volume, segment, &before);
        client_stable_on_map(volume, segment);
    }
    if (*ret_changed && volume->takeover_due)
        segment->changed_early = true;
    if (*ret_changed && volume->takeover != NULL)
        client_takeover_on_map(volume, segment, &before);
    return err;
}

int
client_volume_learn(struct client_volume *volume, Dl__ServerAddress **servers, size_t server_count,
                    Dl__Segment **segments, size_t segment_count)
{
    bool changed = false;
    int err = 0;

    for (size_t i = 0; i < server_count && err == 0; i++)
        err = client_core_learn_server(volume->core, servers[i]);
    for (size_t i = 0; i < segment_count && err == 0; i++) {
        bool one_changed = false;

        err = learn_segment(volume, segments[i], &one_changed);
        changed = changed || one_changed;
    }
    if (changed) {
        client_resolve_check_maps(volume);
        client_volume_check_ops(volume);
    }
    return err;
}

/* News of another lease is about a map that another owner has, or had. */
int
client_volume_on_map_changed(struct client_volume *volume, const Dl__MapChanged *changed)
{
    bool reader = (volume->flags & DLBLK_OPEN_READ_ONLY) != 0;
    int err;

    if (volume->fenced || (!reader && changed->lease_epoch != volume->lease_epoch))
        return 0;
    err = client_volume_learn(volume, changed->servers, changed->n_servers, changed->segments,
                              changed->n_segments);
    if (err != 0)
        client_core_event(volume->core, DLBLK_EVENT_WARNING,
                          "volume %s: news of its map can't be used: %s", volume->name,
                          dl_err_str(err));
    return err;
}

/* --- open --- */

struct attach {
    struct client_core *core;
    struct client_volume_open *open;
    struct client_volume *volume; /* from the answer to ATTACH on */
    struct client_meta_call call;
    Dl__Attach attach_request;
    Dl__MapGet map_request;
    uint8_t attach_id[CLIENT_ID_BYTES];
    uint32_t segments_total;
    struct dl_error error; /* why it fails, while what was attached is detached again */
};

static void
attach_end(struct attach *attach, int err)
{
    struct client_volume_open *open = attach->open;

    open->volume = err == 0 ? attach->volume : NULL;
    open->error = attach->error;
    free(attach);
    open->on_done(open, err);
}

static void
attach_on_closed(void *context, int err, const struct dl_error *error)
{
    struct attach *attach = context;

    (void)err;
    (void)error;
    attach_end(attach, attach->error.code);
}

/* The lease is ours, but we can't use it: give it back. */
static void
attach_fail(struct attach *attach, int err, const char *what)
{
    (void)dl_error_set(&attach->error, err, "volume %s: %s: %s", attach->open->name, what,
                       dl_err_str(err));
    client_volume_close(attach->volume, attach_on_closed, attach);
}

static void
attach_ready(struct attach *attach)
{
    struct client_volume *volume = attach->volume;
    struct segment *segment = client_map_next(&volume->map, 0);
    int err = 0;

    for (; segment != NULL; segment = client_map_next(&volume->map, segment->index + 1))
        segment->state = SEGMENT_READY;
    if (volume->takeover_due)
        err = client_takeover_begin(volume);
    if (err != 0) {
        attach_fail(attach, err, "the takeover can't begin");
        return;
    }
    volume->takeover_due = false;
    attach_end(attach, 0);
}

static void attach_on_map(struct client_meta_call *call, int err);

/* The rest of the map, page by page. */
static void
attach_load_map(struct attach *attach, uint32_t first)
{
    struct client_volume *volume = attach->volume;

    dl__map_get__init(&attach->map_request);
    attach->map_request.volume = volume->id;
    attach->map_request.lease_epoch = (volume->flags & DLBLK_OPEN_READ_ONLY) != 0
                                          ? 0
                                          : volume->lease_epoch;
    attach->map_request.first = first;
    attach->map_request.max = MAP_PAGE_MAX;
    attach->call.opcode = OP_MAP_GET;
    attach->call.timeout_ms = attach->core->options.attach_timeout_ms;
    attach->call.request = &attach->map_request.base;
    attach->call.reply_type = &dl__map_reply__descriptor;
    attach->call.on_done = attach_on_map;
    client_meta_call_start(attach->core, &attach->call);
}

static void
attach_on_map(struct client_meta_call *call, int err)
{
    struct attach *attach = call->context;
    const Dl__MapReply *reply = (const Dl__MapReply *)call->reply;

    if (err == 0)
        err = client_volume_learn(attach->volume, reply->servers, reply->n_servers, reply->segments,
                                  reply->n_segments);
    if (err != 0)
        attach_fail(attach, err, "its map can't be loaded");
    else if (reply->more && reply->n_segments > 0)
        attach_load_map(attach, reply->segments[reply->n_segments - 1]->index + 1);
    else
        attach_ready(attach);
}

static int
attach_make_volume(struct attach *attach, const Dl__AttachReply *reply,
                   struct client_volume **ret_volume)
{
    const Dl__Volume *news = reply->volume;
    struct client_volume *volume;
    struct geometry geometry;
    int err;

    if (news == NULL || news->policy == NULL || news->policy->replicas == 0 ||
        news->policy->replicas + 1 > WIRE_SLOTS_MAX ||
        news->policy->redundancy != DL__REDUNDANCY__REDUNDANCY_REPLICATED)
        return -DL_E_MESSAGE_MALFORMED;
    err = geometry_init(&geometry, news->size_bytes, news->segment_bytes, news->logical_block_bytes,
                        news->stripe_width, news->stripe_unit_bytes);
    if (err != 0)
        return err;
    volume = calloc(1, sizeof(*volume));
    if (volume == NULL)
        return -DL_E_NO_MEMORY;
    volume->core = attach->core;
    volume->id = news->id;
    volume->name = strdup(news->name);
    volume->geometry = geometry;
    volume->lease_epoch = reply->lease_epoch;
    volume->snapshot_seq = news->snapshot_seq != 0 ? news->snapshot_seq : 1;
    volume->flags = attach->open->flags;
    volume->min_write = news->policy->min_write;
    memcpy(volume->attach_id, attach->attach_id, CLIENT_ID_BYTES);
    sm_init(&volume->sm, &volume_table, VOLUME_OPEN, volume->id);
    /* One more than copies: a slot that comes while the one that it replaces is still there. */
    client_map_init(&volume->map, news->policy->replicas + 1);
    err = volume->name != NULL ? client_volume_init(volume) : -DL_E_NO_MEMORY;
    list_push_back(&attach->core->volumes, &volume->node);
    if (err != 0) {
        client_volume_free(volume);
        return err;
    }
    *ret_volume = volume;
    return 0;
}

static void
attach_on_reply(struct client_meta_call *call, int err)
{
    struct attach *attach = call->context;
    const Dl__AttachReply *reply = (const Dl__AttachReply *)call->reply;

    if (err != 0) {
        attach->error = call->error;
        attach_end(attach, err);
        return;
    }
    err = attach_make_volume(attach, reply, &attach->volume);
    if (err != 0) {
        (void)dl_error_set(&attach->error, err, "volume %s: the answer to ATTACH can't be used: %s",
                           attach->open->name, dl_err_str(err));
        attach_end(attach, err);
        return;
    }
    attach->volume->takeover_due = reply->takeover;
    attach->segments_total = reply->segments_total;
    err = client_volume_learn(attach->volume, reply->servers, reply->n_servers, reply->segments,
                              reply->n_segments);
    if (err != 0)
        attach_fail(attach, err, "its map can't be used");
    else if (reply->n_segments < reply->segments_total && reply->n_segments > 0)
        attach_load_map(attach, reply->segments[reply->n_segments - 1]->index + 1);
    else if (reply->n_segments < reply->segments_total)
        attach_load_map(attach, 0);
    else
        attach_ready(attach);
}

static void
attach_fill_request(struct client_core *core, Dl__Attach *request, const char *name, uint32_t flags,
                    uint8_t attach_id[CLIENT_ID_BYTES])
{
    dl__attach__init(request);
    request->name = (char *)(uintptr_t)name;
    request->read_only = (flags & DLBLK_OPEN_READ_ONLY) != 0;
    request->steal = (flags & DLBLK_OPEN_STEAL) != 0;
    request->attach_id = (ProtobufCBinaryData){.data = attach_id, .len = CLIENT_ID_BYTES};
    request->owner = (char *)(uintptr_t)core->options.owner;
    request->wait_ms = core->options.attach_timeout_ms;
}

void
client_volume_open(struct client_core *core, struct client_volume_open *open)
{
    struct attach *attach = calloc(1, sizeof(*attach));

    dl_assert(attach != NULL); /* no callback could tell */
    memset(&open->error, 0, sizeof(open->error));
    open->volume = NULL;
    attach->core = core;
    attach->open = open;
    for (unsigned i = 0; i < CLIENT_ID_BYTES; i += 8) {
        uint64_t random = env_random(core->env);

        memcpy(attach->attach_id + i, &random, sizeof(random));
    }
    attach_fill_request(core, &attach->attach_request, open->name, open->flags, attach->attach_id);
    /* Not when it is said again after a lost connection: it has been heard then. */
    attach->attach_request.gone_servers = (uint32_t *)(uintptr_t)open->gone_server_ids;
    attach->attach_request.n_gone_servers = open->gone_server_count;
    attach->call.opcode = OP_ATTACH;
    attach->call.timeout_ms = core->options.attach_timeout_ms + core->options.connect_timeout_ms;
    attach->call.request = &attach->attach_request.base;
    attach->call.reply_type = &dl__attach_reply__descriptor;
    attach->call.on_done = attach_on_reply;
    attach->call.context = attach;
    client_meta_call_start(core, &attach->call);
}

/* --- the lease after a lost connection --- */

/*
 * A reader that is not counted any more: somebody writes the volume, or has, or nothing would keep
 * him from it.
 */
static bool
again_is_too_late(int err)
{
    return err == -DL_E_VOLUME_BUSY || err == -DL_E_FENCE_PENDING || err == -DL_E_LIMIT;
}

static void again_on_done(struct client_meta_call *call, int err);

static void
again_ask(struct client_volume *volume, bool attach)
{
    volume->attach_call = (struct client_meta_call){
        .opcode = attach ? OP_ATTACH : OP_MAP_GET,
        .patient = true,
        .request = attach ? &volume->attach_request.base : &volume->attach_check.base,
        .reply_type = attach ? &dl__attach_reply__descriptor : &dl__map_reply__descriptor,
        .on_done = again_on_done,
        .context = volume,
    };
    client_meta_call_start(volume->core, &volume->attach_call);
}

/*
 * A reader that has attached counts as one that knows the map as it is, whatever has changed while
 * nobody could tell it (docs/recovery.md, rule 24); an owner is told.
 */
static int
again_take_map(struct client_volume *volume, const Dl__MapReply *map)
{
    int err = client_volume_learn(volume, map->servers, map->n_servers, map->segments,
                                  map->n_segments);

    if (err != 0) {
        client_session_fail(&volume->core->meta, dl_err_str(err));
    } else if (map->more && map->n_segments > 0) {
        volume->attach_check.first = map->segments[map->n_segments - 1]->index + 1;
        again_ask(volume, false);
    }
    return err;
}

static int
again_take_attach(struct client_volume *volume, const Dl__AttachReply *reply)
{
    const Dl__MapReply map = {
        .servers = reply->servers,
        .n_servers = reply->n_servers,
        .segments = reply->segments,
        .n_segments = reply->n_segments,
        .more = reply->n_segments < reply->segments_total,
    };

    if (reply->lease_epoch != volume->lease_epoch || reply->volume == NULL ||
        reply->volume->id != volume->id) {
        client_volume_fence(volume, -DL_E_LEASE_OLD, "somebody has written it meanwhile");
        return 0;
    }
    return again_take_map(volume, &map);
}

static void
again_on_done(struct client_meta_call *call, int err)
{
    struct client_volume *volume = call->context;
    bool reader = (volume->flags & DLBLK_OPEN_READ_ONLY) != 0;

    if (client_is_fence_error(err))
        client_volume_fence(volume, err, call->error.text);
    else if (again_is_too_late(err))
        client_volume_fence(volume, -DL_E_LEASE_OLD, call->error.text);
    else if (err == 0 && call->opcode == OP_ATTACH)
        err = again_take_attach(volume, (const Dl__AttachReply *)call->reply);
    else if (err == 0 && reader)
        err = again_take_map(volume, (const Dl__MapReply *)call->reply);
    if (err == -DL_E_MESSAGE_MALFORMED)
        client_core_event(volume->core, DLBLK_EVENT_WARNING, "volume %s: its map can't be used: %s",
                          volume->name, dl_err_str(err));
}

/*
 * So that the metadata service knows on which connection the owner is.  An owner's lease is checked
 * by any request that carries it; a reader has none, and attaches anew.
 */
void
client_attach_on_meta_up(struct client_volume *volume)
{
    bool reader = (volume->flags & DLBLK_OPEN_READ_ONLY) != 0;

    if (volume->fenced || volume->sm.state >= VOLUME_DETACHING)
        return;
    if (volume->attach_call.core != NULL && (!reader || volume->attach_call.opcode == OP_ATTACH))
        return;
    client_meta_call_cancel(&volume->attach_call);
    attach_fill_request(volume->core, &volume->attach_request, volume->name, volume->flags,
                        volume->attach_id);
    /* The name may be another one's by now. */
    volume->attach_request.volume = volume->id;
    dl__map_get__init(&volume->attach_check);
    volume->attach_check.volume = volume->id;
    volume->attach_check.lease_epoch = reader ? 0 : volume->lease_epoch;
    volume->attach_check.max = reader ? MAP_PAGE_MAX : 1;
    again_ask(volume, reader);
}

/* --- close --- */

struct volume_close {
    client_volume_close_fn on_closed;
    void *context;
    uint64_t settle_until_ns; /* 0: not begun */
    bool clean;
    bool detached;
    int err;
    struct dl_error error;
    struct client_meta_call call;
    Dl__Detach request;
};

void
client_volume_close(struct client_volume *volume, client_volume_close_fn on_closed, void *context)
{
    struct volume_close *close = calloc(1, sizeof(*close));

    dl_assert(close != NULL); /* no callback could tell */
    dl_assert(volume->close == NULL);
    close->on_closed = on_closed;
    close->context = context;
    volume->close = close;
    sm_move(&volume->sm, VOLUME_DRAINING);
    client_core_want_tick(volume->core);
    client_volume_defer(volume);
}

static void
close_on_detached(struct client_meta_call *call, int err)
{
    struct client_volume *volume = call->context;
    struct volume_close *close = volume->close;

    if (err != 0 && close->err == 0) {
        close->err = err;
        close->error = call->error;
    }
    close->detached = true;
    client_volume_defer(volume);
}

static void
close_start_detach(struct client_volume *volume)
{
    struct volume_close *close = volume->close;

    dl__detach__init(&close->request);
    close->request.volume = volume->id;
    close->request.lease_epoch = volume->lease_epoch;
    close->request.clean = close->clean;
    close->call.opcode = OP_DETACH;
    close->call.patient = true;
    close->call.timeout_ms = DETACH_MS;
    close->call.request = &close->request.base;
    close->call.on_done = close_on_detached;
    close->call.context = volume;
    client_meta_call_start(volume->core, &close->call);
}

/* Nothing is left that a next owner would have to do. */
static bool
close_is_settled(const struct client_volume *volume)
{
    return list_is_empty(&volume->writers) && !volume->takeover_due && volume->takeover == NULL &&
           volume->unresolved_count == 0;
}

/* True: go on. */
static bool
close_settle(struct client_volume *volume)
{
    struct volume_close *close = volume->close;
    uint64_t now_ns = env_now_ns(volume->core->env);

    if (volume->fenced) {
        close->err = volume->fence_err;
        (void)dl_error_set(&close->error, close->err, "volume %s: %s", volume->name,
                           dl_err_str(close->err));
        return true;
    }
    if (volume->takeover_due)
        return true; /* an attach that failed: it is for the next owner, and nothing was written */
    if (close->settle_until_ns == 0)
        close->settle_until_ns = now_ns + SETTLE_MAX_NS;
    client_stable_send_all(volume);
    if (close_is_settled(volume) || DLBLK_MUTANT(client_detach_unsettled)) {
        close->clean = true;
        return true;
    }
    if (now_ns < close->settle_until_ns)
        return false;
    close->err = -DL_E_TIMEOUT;
    (void)dl_error_set(
        &close->error, close->err,
        "volume %s could not be detached cleanly: not all of its servers have confirmed the "
        "last writes",
        volume->name);
    dl_error_hint(&close->error, "nothing is lost: the next attach settles what is unfinished");
    return true;
}

static void
close_end(struct client_volume *volume)
{
    struct volume_close *close = volume->close;
    client_volume_close_fn on_closed = close->on_closed;
    void *context = close->context;
    struct dl_error error = close->error;
    int err = close->err;

    client_meta_call_cancel(&close->call); /* fenced while it asked: nobody waits for the answer */
    sm_move(&volume->sm, VOLUME_CLOSED);
    client_volume_free(volume);
    on_closed(context, err, &error);
}

void
client_close_step(struct client_volume *volume)
{
    struct volume_close *close = volume->close;

    if (volume->sm.state == VOLUME_DRAINING && volume->requests_in_flight == 0)
        sm_move(&volume->sm, VOLUME_SETTLING);
    if (volume->sm.state == VOLUME_SETTLING && close_settle(volume)) {
        sm_move(&volume->sm, VOLUME_DETACHING);
        client_takeover_end(volume);
        client_allocate_cancel(volume);
        client_eject_cancel(volume);
        client_waits_cancel(volume);
        client_meta_call_cancel(&volume->attach_call);
        client_volume_abort_all(volume, -DL_E_CANCELLED);
    }
    if (volume->sm.state != VOLUME_DETACHING || !client_volume_is_quiet(volume) ||
        volume->takeover != NULL)
        return;
    /* What was given up on the way here has queued the task again: it frees the volume then. */
    if (volume->task.queued)
        return;
    /* Once it is on its way, the answer to DETACH says how it ended, also if a newer owner came. */
    if (close->detached || (volume->fenced && close->call.core == NULL))
        close_end(volume);
    else if (close->call.core == NULL)
        close_start_detach(volume);
}
