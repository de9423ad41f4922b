/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunks that left the map.  A record says so from the commit that dropped the slot on; the chunk
 * is deleted, by CHUNK_DELETE until it is answered, when nobody can read it any more:
 *
 *   - its volume's owner, and readers, are known to have a map without it (change.c), and
 *   - if the volume had an owner before, FENCE on that server has shut out all before the one that
 *     knows.
 *
 * Otherwise an owner with an old map would read holes where the deleted chunk was.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/mutant.h"
#include "meta/memory.h"
#include "meta/meta.pb-c.h"
#include "meta/recovery.h"
#include "meta/schema.h"

struct removal_key {
    uint64_t volume_id;
    uint32_t server_id;
    uint32_t segment;
    uint32_t slot;
    uint32_t incarnation;
};

struct meta_removal {
    struct removal_key key;
    uint64_t map_seq; /* who uses the volume must know this */
    bool held;
    uint32_t fence_epoch; /* released: owners before this one must be shut out first; 0: done */
    struct list node;     /* held: in the volume's list, by map_seq; else in the reaper's */
    UT_hash_handle hh;
};

/* What one server is to delete. */
struct meta_reaper {
    struct meta_command command;
    struct meta_core *core;
    struct meta_server *server;
    struct list removals; /* of meta_removal.node */
    uint64_t count;       /* held ones too */
    uint32_t sent;        /* the first so many of the list are on their way */
    uint64_t fencing;     /* the volume whose FENCE is on its way; 0: CHUNK_DELETE is */
    uint32_t fence_epoch;
    bool deleting; /* their records are being deleted */
};

static void reaper_go(struct meta_reaper *reaper);

/* --- records --- */

static struct schema_key
removal_key(const struct removal_key *key)
{
    return schema_key_removal(key->server_id, key->volume_id, key->segment, (uint8_t)key->slot,
                              key->incarnation);
}

static struct removal_key
removal_key_of(uint64_t volume_id, const struct change_removal *removal)
{
    return (struct removal_key){
        .volume_id = volume_id,
        .server_id = removal->server_id,
        .segment = removal->segment,
        .slot = removal->slot,
        .incarnation = removal->incarnation,
    };
}

void
meta_removal_put(struct store_batch *batch, uint64_t volume_id,
                 const struct change_removal *removal, uint64_t now_ms)
{
    Dl__Meta__RemovalRecord record = DL__META__REMOVAL_RECORD__INIT;
    struct removal_key fields = removal_key_of(volume_id, removal);
    struct schema_key key = removal_key(&fields);

    record.since_ms = now_ms;
    store_batch_put_message(batch, schema_bytes(&key), &record.base);
}

/* --- deleting --- */

static void
removal_free(struct meta_recovery *recovery, struct meta_removal *removal)
{
    struct meta_server *server = meta_server_by_id(recovery->core, removal->key.server_id);

    if (list_is_linked(&removal->node))
        list_remove(&removal->node);
    HASH_DEL(recovery->removals, removal);
    recovery->removal_count--;
    if (server != NULL && server->reaper != NULL)
        server->reaper->count--;
    free(removal);
}

static void
records_on_committed(struct meta_op *op)
{
    struct meta_reaper *reaper = op->server->reaper;

    for (; reaper->sent > 0; reaper->sent--)
        removal_free(op->core->recovery,
                     list_first_entry(&reaper->removals, struct meta_removal, node));
    reaper->deleting = false;
    meta_op_end(op);
    reaper_go(reaper);
}

/* The core's own op: op->request_id is the server's id. */
static void
records_run(struct meta_op *op)
{
    struct meta_server *server = meta_server_by_id(op->core, (uint32_t)op->request_id);
    struct meta_reaper *reaper;
    struct meta_removal *removal;
    uint32_t count = 0;

    if (!meta_op_take(op, &server->serial))
        return;
    reaper = server->reaper;
    if (server->forgotten) {
        meta_op_end(op); /* removed meanwhile, with its records */
        return;
    }
    dl_assert(reaper != NULL);
    op->server = server;
    list_for_each_entry (removal, &reaper->removals, node) {
        struct schema_key key = removal_key(&removal->key);

        if (count++ == reaper->sent)
            break;
        store_batch_delete(&op->batch, schema_bytes(&key));
    }
    meta_op_commit(op, records_on_committed);
}

static const struct meta_handler records_handler = {.run = records_run};

static void
reaper_send_fence(struct meta_reaper *reaper, const struct meta_removal *removal)
{
    Dl__Fence message = DL__FENCE__INIT;

    message.volume = reaper->fencing = removal->key.volume_id;
    message.lease_epoch = reaper->fence_epoch;
    message.first_segment = UINT32_MAX; /* the answer does not matter */
    reaper->command.name = "FENCE";
    meta_command_send(&reaper->command, OP_FENCE, &message.base);
}

static void
reaper_send_delete(struct meta_reaper *reaper)
{
    Dl__ChunkRef *refs = meta_alloc(META_DELETE_BATCH * sizeof(*refs));
    Dl__ChunkRef **pointers = meta_alloc(META_DELETE_BATCH * sizeof(Dl__ChunkRef *));
    Dl__ChunkDelete message = DL__CHUNK_DELETE__INIT;
    const struct meta_removal *removal;

    list_for_each_entry (removal, &reaper->removals, node) {
        Dl__ChunkRef *ref = &refs[message.n_chunks];

        if (removal->fence_epoch != 0 || message.n_chunks == META_DELETE_BATCH)
            break;
        dl__chunk_ref__init(ref);
        ref->volume = removal->key.volume_id;
        ref->segment = removal->key.segment;
        ref->slot = removal->key.slot;
        ref->incarnation = removal->key.incarnation;
        pointers[message.n_chunks++] = ref;
    }
    reaper->sent = (uint32_t)message.n_chunks;
    reaper->fencing = 0;
    message.chunks = pointers;
    reaper->command.name = "CHUNK_DELETE";
    meta_command_send(&reaper->command, OP_CHUNK_DELETE, &message.base);
    free(pointers);
    free(refs);
}

static void
reaper_send(struct meta_command *command)
{
    struct meta_reaper *reaper = list_entry(command, struct meta_reaper, command);
    struct meta_removal *first = list_first_entry(&reaper->removals, struct meta_removal, node);
    const struct meta_volume *volume = meta_volume_by_id(reaper->core, first->key.volume_id);

    /* A volume that is gone has no owner to shut out. */
    if (volume == NULL || volume->desc.deleting)
        first->fence_epoch = 0;
    if (first->fence_epoch == 0) {
        reaper_send_delete(reaper);
        return;
    }
    reaper->fence_epoch = volume->desc.lease_epoch;
    reaper_send_fence(reaper, first);
}

static bool
reaper_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct meta_reaper *reaper = list_entry(command, struct meta_reaper, command);
    struct meta_removal *removal;
    struct meta_op *op;

    if (frame->opcode != (reaper->fencing != 0 ? OP_FENCE : OP_CHUNK_DELETE))
        return false;
    if (reaper->fencing != 0) {
        list_for_each_entry (removal, &reaper->removals, node)
            if (removal->key.volume_id == reaper->fencing &&
                removal->fence_epoch <= reaper->fence_epoch)
                removal->fence_epoch = 0;
        reaper->fencing = 0;
        reaper_go(reaper);
        return true;
    }
    reaper->deleting = true;
    op = meta_op_create_internal(reaper->core, &records_handler);
    op->request_id = reaper->server->desc.id;
    return true;
}

static void
reaper_go(struct meta_reaper *reaper)
{
    if (list_is_empty(&reaper->removals) || reaper->deleting || reaper->command.server != NULL)
        return;
    meta_command_start(&reaper->command, reaper->server, false);
}

static struct meta_reaper *
reaper_of(struct meta_core *core, struct meta_server *server)
{
    struct meta_reaper *reaper = server->reaper;

    if (reaper != NULL)
        return reaper;
    reaper = server->reaper = meta_alloc(sizeof(*reaper));
    reaper->core = core;
    reaper->server = server;
    list_init(&reaper->removals);
    reaper->command.send = reaper_send;
    reaper->command.on_reply = reaper_on_reply;
    return reaper;
}

/* --- may it go? --- */

static void
removal_release(struct meta_core *core, struct meta_removal *removal,
                const struct meta_volume *volume)
{
    struct meta_reaper *reaper = reaper_of(core, meta_server_by_id(core, removal->key.server_id));

    removal->held = false;
    if (list_is_linked(&removal->node))
        list_remove(&removal->node);
    /*
     * An owner before the present one, who knows, may still be there with an old map; that a later
     * one has detached cleanly says nothing of him.  The server may have been away when he was shut
     * out, and have left the map before it came back.
     */
    removal->fence_epoch = volume != NULL && volume->desc.lease_epoch > 1 ? volume->desc.lease_epoch
                                                                          : 0;
    list_push_back(&reaper->removals, &removal->node);
    reaper_go(reaper);
}

void
meta_removal_release(struct meta_core *core, uint64_t volume_id)
{
    const struct meta_volume *volume = meta_volume_by_id(core, volume_id);
    struct meta_removal *removal, *following;

    if (core->phase == META_LOADING || volume == NULL)
        return;
    list_for_each_entry_safe (removal, following, &volume->held_removals, node) {
        if (!volume->desc.deleting && !meta_notice_is_known(volume, removal->map_seq) &&
            !DLBLK_MUTANT(meta_delete_early))
            return;
        removal_release(core, removal, volume);
    }
}

void
meta_removal_held(const struct meta_volume *volume, void (*fn)(void *context, uint32_t segment),
                  void *context)
{
    const struct meta_removal *removal;

    list_for_each_entry (removal, &volume->held_removals, node)
        fn(context, removal->key.segment);
}

static struct meta_removal *
removal_add(struct meta_core *core, const struct removal_key *key, uint64_t map_seq)
{
    struct meta_recovery *recovery = core->recovery;
    struct meta_server *server = meta_server_by_id(core, key->server_id);
    struct meta_volume *volume = meta_volume_by_id(core, key->volume_id);
    struct meta_removal *removal = meta_alloc(sizeof(*removal));

    dl_assert(server != NULL);
    removal->key = *key;
    removal->map_seq = map_seq;
    removal->held = true;
    list_init(&removal->node);
    if (volume != NULL)
        list_push_back(&volume->held_removals, &removal->node);
    HASH_ADD(hh, recovery->removals, key, sizeof(removal->key), removal);
    recovery->removal_count++;
    reaper_of(core, server)->count++;
    return removal;
}

void
meta_removal_add(struct meta_core *core, uint64_t volume_id, const struct change_removal *removal,
                 uint64_t map_seq)
{
    struct removal_key key = removal_key_of(volume_id, removal);

    (void)removal_add(core, &key, map_seq);
}

/* Who uses the volume has a map without it, but that need not be known since a start. */
void
meta_removal_add_stray(struct meta_core *core, uint64_t volume_id,
                       const struct change_removal *removal)
{
    const struct meta_volume *volume = meta_volume_by_id(core, volume_id);
    struct removal_key key = removal_key_of(volume_id, removal);
    struct meta_removal *added;

    if (meta_removal_is_known(core, volume_id, removal))
        return;
    added = removal_add(core, &key, volume == NULL ? 0 : volume->map_seq);
    if (volume == NULL)
        removal_release(core, added, NULL);
    else
        meta_removal_release(core, volume_id);
}

bool
meta_removal_is_known(const struct meta_core *core, uint64_t volume_id,
                      const struct change_removal *removal)
{
    struct removal_key key = removal_key_of(volume_id, removal);
    struct meta_removal *known;

    HASH_FIND(hh, core->recovery->removals, &key, sizeof(key), known);
    return known != NULL;
}

/* --- start and end --- */

int
meta_removal_load(struct meta_core *core, struct store_item item, struct dl_error *err)
{
    Dl__Meta__RemovalRecord *record;
    struct change_removal fields;
    struct removal_key key;
    struct meta_volume *volume;
    uint64_t volume_id;
    uint8_t slot;

    if (!schema_parse_removal(item.key, &fields.server_id, &volume_id, &fields.segment, &slot,
                              &fields.incarnation))
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "a removal's record has a damaged key");
    fields.slot = slot;
    if (meta_server_by_id(core, fields.server_id) == NULL)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "a chunk of volume %" PRIu64 " is to be removed from server %" PRIu32
                            ", which isn't there",
                            volume_id, fields.server_id);
    if (volume_id >= core->next_volume_id)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "a chunk of volume %" PRIu64 " is to be removed, which never was",
                            volume_id);
    record = dl__meta__removal_record__unpack(NULL, item.value.length_bytes, item.value.bytes);
    if (record == NULL)
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "a removal's record is damaged");
    dl__meta__removal_record__free_unpacked(record, NULL);
    /* Whether the owner knows of it is forgotten: it is told again. */
    volume = meta_volume_by_id(core, volume_id);
    if (volume != NULL)
        volume->map_seq = 1;
    key = removal_key_of(volume_id, &fields);
    (void)removal_add(core, &key, 1);
    return 0;
}

void
meta_removal_loaded(struct meta_core *core)
{
    struct meta_removal *removal, *following;

    HASH_ITER (hh, core->recovery->removals, removal, following) {
        const struct meta_volume *volume = meta_volume_by_id(core, removal->key.volume_id);

        if (volume == NULL || volume->desc.deleting || meta_notice_is_known(volume, 1))
            removal_release(core, removal, volume);
    }
}

uint64_t
meta_removal_count_of(const struct meta_core *core, uint32_t server_id)
{
    const struct meta_server *server = core->servers[server_id];

    return server == NULL || server->reaper == NULL ? 0 : server->reaper->count;
}

void
meta_removal_drop_put(struct meta_core *core, struct store_batch *batch, uint32_t server_id)
{
    struct meta_removal *removal, *following;

    HASH_ITER (hh, core->recovery->removals, removal, following) {
        struct schema_key key = removal_key(&removal->key);

        if (removal->key.server_id == server_id)
            store_batch_delete(batch, schema_bytes(&key));
    }
}

static void
reaper_free(struct meta_server *server)
{
    if (server->reaper == NULL)
        return;
    meta_command_cancel(&server->reaper->command);
    free(server->reaper);
    server->reaper = NULL;
}

void
meta_removal_drop(struct meta_core *core, uint32_t server_id)
{
    struct meta_removal *removal, *following;

    HASH_ITER (hh, core->recovery->removals, removal, following)
        if (removal->key.server_id == server_id)
            removal_free(core->recovery, removal);
    reaper_free(core->servers[server_id]);
}

void
meta_removal_free_all(struct meta_core *core)
{
    struct meta_removal *removal, *following;

    HASH_ITER (hh, core->recovery->removals, removal, following)
        removal_free(core->recovery, removal);
    for (uint32_t id = 0; id < core->servers_end; id++)
        if (core->servers[id] != NULL)
            reaper_free(core->servers[id]);
}
