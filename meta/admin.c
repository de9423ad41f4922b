/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operator decides about servers: drain, undrain, remove, set.
 *
 * Drained: in use, but gets no new slots, and those that it has move.  Removed: it never comes
 * back; its slots are ejected at once, the last in-sync ones of their segments never, and recovered
 * elsewhere; when it has none any more its record goes.  Nothing of it is memory: a restart goes
 * on.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/text.h"
#include "meta/health.h"
#include "meta/memory.h"
#include "meta/placement.h"
#include "meta/schema.h"

#define EFFECTS_MAX 4u
#define WEIGHT_MAX  1000u

/* --- what would happen --- */

struct effects {
    uint64_t slots, bytes;
    uint64_t below_min_write, last_copies;
    const struct meta_volume *last_volume; /* of a last copy */
    const struct meta_volume *below_volume;
    uint32_t last_index, below_index;
    char texts[EFFECTS_MAX][META_PROBLEM_BYTES];
    char *pointers[EFFECTS_MAX];
    uint32_t count;
};

DL_ERROR_PRINTF(2, 3)
static void
effects_say(struct effects *effects, const char *format, ...)
{
    va_list arguments;

    dl_assert(effects->count < EFFECTS_MAX);
    va_start(arguments, format);
    (void)vsnprintf(effects->texts[effects->count], META_PROBLEM_BYTES, format, arguments);
    va_end(arguments);
    effects->pointers[effects->count] = effects->texts[effects->count];
    effects->count++;
}

/* A copy whose server is away may be as lost as this one: it doesn't count as one that is left. */
static void
effects_add_segment(const struct meta_core *core, struct effects *effects,
                    const struct meta_volume *volume, const struct segment *segment,
                    uint32_t server_id)
{
    const struct segment_table *table = &volume->segments;
    uint32_t place = meta_segment_place_of(table, segment, server_id);
    uint32_t in_sync = meta_segment_in_sync(table, segment), others = 0;

    if (place == UINT32_MAX)
        return;
    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];

        others += i != place && slot->server_id != 0 &&
                  slot->state == DL__SLOT_STATE__SLOT_IN_SYNC &&
                  core->servers[slot->server_id]->session != NULL;
    }
    effects->slots++;
    effects->bytes += meta_volume_chunk_bytes(&volume->desc);
    if (segment->slots[place].state != DL__SLOT_STATE__SLOT_IN_SYNC)
        return;
    if (in_sync == 1) {
        effects->last_copies++;
        effects->last_volume = volume;
        effects->last_index = segment->index;
    } else if (others < volume->desc.min_write) {
        effects->below_min_write++;
        effects->below_volume = volume;
        effects->below_index = segment->index;
    }
}

static void
effects_collect(const struct meta_core *core, const struct meta_server *server,
                struct effects *effects)
{
    struct meta_volume *volume, *following;

    HASH_ITER (hh, core->volumes, volume, following) {
        const struct segment *segment = meta_segments_at_or_after(&volume->segments, 0);

        if (volume->desc.deleting)
            continue;
        for (; segment != NULL; segment = meta_segments_after(&volume->segments, segment->index))
            effects_add_segment(core, effects, volume, segment, server->desc.id);
    }
}

/* --- all four --- */

/* The server that is named, its serial taken.  NULL: op waits or has failed. */
static struct meta_server *
admin_server(struct meta_op *op, uint32_t server_id)
{
    struct meta_server *server = meta_server_by_id(op->core, server_id);
    struct dl_error err;

    if (server == NULL || server->creating) {
        (void)dl_error_set(&err, -DL_E_SERVER_UNKNOWN, "server %" PRIu32 " does not exist",
                           server_id);
        dl_error_hint(&err, "dlblk server list shows all servers");
        meta_op_fail(op, &err);
        return NULL;
    }
    return meta_op_take(op, &server->serial) ? server : NULL;
}

static void
admin_reply(struct meta_op *op, const struct meta_server *server, struct effects *effects)
{
    Dl__ServerChangeReply reply = DL__SERVER_CHANGE_REPLY__INIT;
    struct server_message entry;

    meta_server_fill(op->core, server, &entry);
    reply.server = &entry.message;
    reply.effects = effects->pointers;
    reply.n_effects = effects->count;
    reply.slots = effects->slots;
    reply.bytes = effects->bytes;
    reply.below_min_write = effects->below_min_write;
    reply.last_copies = effects->last_copies;
    meta_op_reply(op, &reply.base);
}

struct admin_change {
    struct server_desc desc;
    struct effects effects;
};

static void
admin_on_committed(struct meta_op *op)
{
    struct admin_change *change = op->scratch;
    struct meta_server *server = op->server;

    server->desc = change->desc;
    meta_server_set_labels(op->core, server);
    if (server->desc.admin_state == META_ADMIN_REMOVING) {
        meta_deletion_server_removed(op->core, server);
        meta_sweep_out(op->core, server);
    }
    meta_recovery_server_changed(op->core, server);
    for (uint32_t i = 0; i < change->effects.count; i++)
        change->effects.pointers[i] = change->effects.texts[i];
    admin_reply(op, server, &change->effects);
}

static void
admin_commit(struct meta_op *op, struct meta_server *server, const struct server_desc *desc,
             const struct effects *effects)
{
    struct admin_change *change = meta_alloc(sizeof(*change));

    change->desc = *desc;
    change->effects = *effects;
    op->scratch = change;
    op->server = server;
    meta_record_put_server(&op->batch, desc);
    meta_event_put(op, DL__EVENT_KIND__EVENT_SERVER_ADMIN, server, NULL, 0, 0, "%s",
                   effects->texts[0]);
    meta_op_commit(op, admin_on_committed);
}

/* done: there is nothing (more) to change, or it is only asked. */
static void
admin_set_state(struct meta_op *op, struct meta_server *server, enum meta_admin_state state,
                bool done, struct effects *effects)
{
    struct server_desc desc = server->desc;

    desc.admin_state = state;
    if (done)
        admin_reply(op, server, effects);
    else
        admin_commit(op, server, &desc, effects);
}

/* --- drain --- */

/* Could a copy go to this server, but for what the operator does? */
static bool
drain_may_hold(const struct meta_server *server)
{
    return server->desc.admin_state == META_ADMIN_IN_USE && !server->out && !server->damaged;
}

/*
 * Is there a place for each volume's copies without this server?  Asked for volumes that have
 * copies there, or where others must go, too: an empty server may be all that is left for those.
 * -DL_E_TOO_FEW_DOMAINS.
 */
static int
drain_check(struct meta_core *core, const struct meta_server *server, struct dl_error *err)
{
    struct meta_volume *volume, *following;

    HASH_ITER (hh, core->volumes, volume, following) {
        struct placement_server *servers;
        uint32_t count, kept = 0, domains;
        bool must_move = false;

        for (uint32_t i = 0; i < volume->server_count; i++) {
            const struct meta_server *holder = core->servers[volume->servers[i].server_id];

            must_move = must_move || holder == server || !drain_may_hold(holder);
        }
        if (!must_move || volume->desc.deleting)
            continue;
        servers = meta_candidates_collect(core, &volume->desc, &count);
        for (uint32_t i = 0; i < count; i++)
            if (servers[i].id != server->desc.id && drain_may_hold(core->servers[servers[i].id]))
                servers[kept++] = servers[i];
        domains = placement_domain_count(servers, kept, 0);
        free(servers);
        if (domains >= volume->segments.slot_count)
            continue;
        (void)dl_error_set(err, -DL_E_TOO_FEW_DOMAINS,
                           "the copies on server %s have nowhere to go: volume %s needs %" PRIu32
                           " %s, and without it there %s %" PRIu32,
                           meta_server_text(server), volume->desc.name, volume->segments.slot_count,
                           meta_domain_name(&volume->desc, volume->segments.slot_count),
                           domains == 1 ? "is" : "are", domains);
        dl_error_hint(err, "add a chunkserver first");
        return err->code;
    }
    return 0;
}

/* Volumes that have all of their data elsewhere, but whose new data could not be placed. */
static void
effects_say_no_place(const struct meta_core *core, const struct meta_server *server,
                     struct effects *effects)
{
    const struct meta_volume *first = NULL;
    struct meta_volume *volume, *following;
    uint32_t count = 0;
    char others[48] = "";
    struct dl_error err;

    HASH_ITER (hh, core->volumes, volume, following) {
        if (volume->creating || volume->desc.deleting ||
            volume->segments.count >= meta_volume_segment_count(&volume->desc) ||
            meta_segment_check_place(core, volume, NULL, &err) < 0 ||
            meta_segment_check_place(core, volume, server, &err) == 0)
            continue;
        first = count++ == 0 ? volume : first;
    }
    if (count == 0)
        return;
    if (count > 1)
        (void)snprintf(others, sizeof(others), ", and %" PRIu32 " more", count - 1);
    effects_say(effects,
                "warning: without server %s new data of volume %s%s finds no place, and writes of "
                "it fail; add a chunkserver first",
                meta_server_text(server), first->desc.name, others);
}

static void
effects_say_moves(struct effects *effects, const char *what, const struct meta_server *server,
                  const char *how)
{
    if (effects->slots == 0)
        effects_say(effects, "server %s: %s: volumes have no chunks there",
                    meta_server_text(server), what);
    else
        effects_say(effects, "server %s: %s: %" PRIu64 " %s, at most %s, %s",
                    meta_server_text(server), what, effects->slots,
                    effects->slots == 1 ? "chunk" : "chunks", text_of_size(effects->bytes).text,
                    how);
}

void
meta_run_server_drain(struct meta_op *op)
{
    const Dl__ServerDrain *message = (const Dl__ServerDrain *)op->message;
    struct meta_server *server = admin_server(op, message->server_id);
    struct effects effects = {0};
    struct dl_error err;

    if (server == NULL)
        return;
    if (drain_check(op->core, server, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    effects_collect(op->core, server, &effects);
    effects.below_min_write = effects.last_copies = 0; /* each stays until there is another */
    effects_say_moves(
        &effects,
        server->desc.admin_state == META_ADMIN_DRAINING ? "is being drained already" : "drain",
        server, "move to other servers; each stays in use until its replacement is complete");
    if (server->desc.admin_state == META_ADMIN_IN_USE)
        effects_say_no_place(op->core, server, &effects);
    admin_set_state(op, server, META_ADMIN_DRAINING,
                    message->dry_run || server->desc.admin_state != META_ADMIN_IN_USE, &effects);
}

void
meta_run_server_undrain(struct meta_op *op)
{
    const Dl__ServerUndrain *message = (const Dl__ServerUndrain *)op->message;
    struct meta_server *server = admin_server(op, message->server_id);
    struct effects effects = {0};
    bool done;

    if (server == NULL)
        return;
    if (server->desc.admin_state == META_ADMIN_IN_USE)
        effects_say(&effects, "server %s: it is in use already", meta_server_text(server));
    else
        effects_say(&effects, "server %s: in use again; what has moved stays where it is",
                    meta_server_text(server));
    done = message->dry_run || server->desc.admin_state == META_ADMIN_IN_USE;
    if (!done) {
        meta_sweep_cancel(server->sweep);
        server->sweep = NULL;
    }
    admin_set_state(op, server, META_ADMIN_IN_USE, done, &effects);
}

/* --- remove --- */

static void
forget_on_committed(struct meta_op *op)
{
    struct meta_server *server = op->server;
    struct effects *effects = op->scratch;

    meta_log(op->core, META_LOG_INFO, "server", "server %s: removed", meta_server_text(server));
    meta_removal_drop(op->core, server->desc.id);
    meta_server_forget(op->core, server);
    if (effects == NULL) {
        meta_op_end(op);
        return;
    }
    effects->pointers[0] = effects->texts[0];
    admin_reply(op, server, effects);
}

/* It has no slots any more. */
static void
forget_commit(struct meta_op *op, struct meta_server *server)
{
    struct schema_key key = schema_key_server(server->desc.id);

    dl_assert(server->slot_count == 0);
    op->server = server;
    store_batch_delete(&op->batch, schema_bytes(&key));
    meta_removal_drop_put(op->core, &op->batch, server->desc.id);
    meta_event_put(op, DL__EVENT_KIND__EVENT_SERVER_ADMIN, server, NULL, 0, 0,
                   "server %s: forgotten: nothing is left there", meta_server_text(server));
    meta_op_commit(op, forget_on_committed);
}

/* The mark is committed, and so is all that was on its way before it. */
static void
forget_on_marked(struct meta_op *op)
{
    struct meta_server *server = op->server;
    struct admin_change *change = op->scratch;

    if (server->slot_count > 0) {
        admin_on_committed(op);
        return;
    }
    server->desc = change->desc;
    op->scratch = meta_copy(&change->effects, sizeof(change->effects));
    free(change);
    forget_commit(op, server);
}

/*
 * A change that gives it a slot may be on its way to the store: no other begins behind this mark.
 */
static void
forget_mark(struct meta_op *op, struct meta_server *server, const struct effects *effects)
{
    struct admin_change *change = meta_alloc(sizeof(*change));

    change->desc = server->desc;
    change->desc.admin_state = META_ADMIN_REMOVING;
    change->effects = *effects;
    op->scratch = change;
    op->server = server;
    meta_record_put_server(&op->batch, &change->desc);
    meta_op_commit(op, forget_on_marked);
}

/* The core's own op: op->request_id is the server's id. */
static void
forget_run(struct meta_op *op)
{
    struct meta_server *server = meta_server_by_id(op->core, (uint32_t)op->request_id);

    if (server == NULL || server->creating) {
        meta_op_end(op);
        return;
    }
    if (!meta_op_take(op, &server->serial))
        return;
    if (server->desc.admin_state != META_ADMIN_REMOVING || server->slot_count > 0) {
        server->forgetting = false;
        meta_op_end(op);
        return;
    }
    forget_commit(op, server);
}

static const struct meta_handler forget_handler = {.run = forget_run};

void
meta_admin_tick(struct meta_core *core, struct meta_server *server)
{
    struct meta_op *op;

    if (server->desc.admin_state != META_ADMIN_REMOVING || server->slot_count > 0 ||
        server->forgetting)
        return;
    server->forgetting = true;
    op = meta_op_create_internal(core, &forget_handler);
    op->request_id = server->desc.id;
}

static int
remove_check(const struct meta_server *server, const struct effects *effects, bool force,
             struct dl_error *err)
{
    if (server->session != NULL) {
        (void)dl_error_set(err, -DL_E_BUSY, "server %s is up", meta_server_text(server));
        dl_error_hint(err, effects->slots > 0 ? "drain it, then stop it" : "stop it first");
        return err->code;
    }
    if (effects->last_copies > 0) {
        (void)dl_error_set(err, -DL_E_BUSY,
                           "server %s has the last copy of %" PRIu64 " segments, such as %" PRIu32
                           " of volume %s",
                           meta_server_text(server), effects->last_copies, effects->last_index,
                           effects->last_volume->desc.name);
        dl_error_hint(err, "start it, or another server that has copies; or delete the volumes");
        return err->code;
    }
    if (effects->below_min_write > 0 && !force) {
        (void)dl_error_set(err, -DL_E_BUSY,
                           "without server %s %" PRIu64 " segments, such as %" PRIu32
                           " of volume %s, are left with fewer copies than min_write on servers "
                           "that are up",
                           meta_server_text(server), effects->below_min_write, effects->below_index,
                           effects->below_volume->desc.name);
        dl_error_hint(err, "start the other servers that are down, and wait until all is "
                           "recovered; or remove it with --force");
        return err->code;
    }
    return 0;
}

void
meta_run_server_remove(struct meta_op *op)
{
    const Dl__ServerRemove *message = (const Dl__ServerRemove *)op->message;
    struct meta_server *server = admin_server(op, message->server_id);
    struct effects effects = {0};
    struct dl_error err;
    bool done;

    if (server == NULL)
        return;
    effects_collect(op->core, server, &effects);
    if (remove_check(server, &effects, message->force, &err) < 0 ||
        (server->slot_count > 0 && drain_check(op->core, server, &err) < 0)) {
        meta_op_fail(op, &err);
        return;
    }
    effects_say_moves(&effects, "remove", server,
                      effects.below_min_write > 0
                          ? "are recovered elsewhere; writes to some segments wait until then"
                          : "are recovered elsewhere");
    if (server->desc.admin_state == META_ADMIN_IN_USE)
        effects_say_no_place(op->core, server, &effects);
    done = message->dry_run || server->desc.admin_state == META_ADMIN_REMOVING;
    if (!done && server->slot_count == 0)
        forget_mark(op, server, &effects);
    else
        admin_set_state(op, server, META_ADMIN_REMOVING, done, &effects);
}

/* --- set --- */

static int
set_take(const Dl__ServerSet *message, struct server_desc *desc, struct dl_error *err)
{
    if (message->weight_percent > WEIGHT_MAX)
        return dl_error_set(err, -DL_E_CONFIG_INVALID,
                            "server %" PRIu32 ": a weight of %" PRIu32 " %%: 1 to %u are possible",
                            desc->id, message->weight_percent, WEIGHT_MAX);
    if (message->weight_percent != 0)
        desc->weight_percent = message->weight_percent;
    if (!message->set_labels)
        return 0;
    if (text_check_name("host", message->host, err) < 0 ||
        (message->rack[0] != '\0' && text_check_name("rack", message->rack, err) < 0) ||
        (message->clique[0] != '\0' && text_check_name("clique", message->clique, err) < 0))
        return err->code;
    desc->labels_set = true;
    (void)snprintf(desc->host, sizeof(desc->host), "%s", message->host);
    (void)snprintf(desc->rack, sizeof(desc->rack), "%s", message->rack);
    (void)snprintf(desc->clique, sizeof(desc->clique), "%s", message->clique);
    return 0;
}

void
meta_run_server_set(struct meta_op *op)
{
    const Dl__ServerSet *message = (const Dl__ServerSet *)op->message;
    struct meta_server *server = admin_server(op, message->server_id);
    struct effects effects = {0};
    struct server_desc desc;
    struct dl_error err;

    if (server == NULL)
        return;
    desc = server->desc;
    if (set_take(message, &desc, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    effects_say(&effects,
                "server %s: host %s, rack %s, clique %s, weight %" PRIu32
                " %%: for what is placed from now on",
                meta_server_text(server), desc.host, desc.rack[0] != '\0' ? desc.rack : "none",
                desc.clique[0] != '\0' ? desc.clique : "none",
                desc.weight_percent != 0 ? desc.weight_percent : 100);
    if (message->dry_run)
        admin_reply(op, server, &effects);
    else
        admin_commit(op, server, &desc, &effects);
}
