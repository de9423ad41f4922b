/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state from the store, at start:
 *
 *   schema -> cluster -> counters -> leader (read, then taken over: from here on older services can
 *   commit nothing)
 *   -> servers -> volumes -> segments -> serving
 *
 * One request at a time; scans in pages, so that memory is bounded by what is kept.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/meta.pb-c.h"
#include "meta/recovery.h"
#include "meta/schema.h"

#define LOAD_PAGE 4096u

struct meta_loader {
    struct meta_core *core;
    struct schema_key key; /* of the get, or where the scan goes on */
    struct schema_key end;
    struct store_get get;
    struct store_scan scan;
    struct store_batch batch;
    struct store_commit commit;
    int (*on_item)(struct meta_loader *loader, struct store_item item, struct dl_error *err);
    void (*next)(struct meta_loader *loader);
    struct meta_volume *volume; /* of the last segment */
    bool busy;                  /* the store has a request of ours */
};

/* First in each completion.  True: the service is stopping, nothing more is loaded. */
static bool
load_ended(struct meta_loader *loader)
{
    struct meta_core *core = loader->core;

    dl_assert(loader->busy);
    loader->busy = false;
    if (core->phase == META_STOPPING)
        env_defer(core->env, &core->ready_task);
    return core->phase != META_LOADING;
}

bool
meta_load_is_busy(const struct meta_core *core)
{
    return core->loader->busy;
}

static void
load_fail(struct meta_loader *loader, const struct dl_error *err)
{
    meta_core_fail(loader->core, err);
}

static struct meta_loader *
loader_of_get(struct store_get *get)
{
    return list_entry(get, struct meta_loader, get);
}

static void
load_get(struct meta_loader *loader, const char *key,
         void (*on_done)(struct store_get *get, int err))
{
    loader->key = schema_key_text(key);
    loader->get = (struct store_get){.key = schema_bytes(&loader->key), .on_done = on_done};
    loader->busy = true;
    store_get_start(loader->core->store, &loader->get);
}

/* Reading failed, or (unless not_found_ok) there is nothing. */
static bool
load_get_failed(struct meta_loader *loader, int err, bool not_found_ok)
{
    struct dl_error error;

    if (err == 0 || (err == -DL_E_NOT_FOUND && not_found_ok))
        return false;
    (void)dl_error_set(&error, err == -DL_E_NOT_FOUND ? -DL_E_STORE_DAMAGED : err,
                       "the metadata store's record '%.*s' can not be read: %s",
                       (int)loader->key.length_bytes, (const char *)loader->key.bytes,
                       dl_err_str(err));
    dl_error_hint(&error, "restore it from a backup: dlblk-meta restore");
    load_fail(loader, &error);
    return true;
}

/* --- scans --- */

static void load_scan_go(struct meta_loader *loader);

static void
load_on_scan(struct store_scan *scan, int err)
{
    struct meta_loader *loader = list_entry(scan, struct meta_loader, scan);
    struct dl_error error;

    if (load_ended(loader))
        return;
    if (err < 0) {
        (void)dl_error_set(&error, err, "the metadata store can not be read: %s", dl_err_str(err));
        load_fail(loader, &error);
        return;
    }
    for (uint32_t i = 0; i < scan->item_count; i++) {
        if (loader->on_item(loader, scan->items[i], &error) < 0) {
            dl_error_hint(&error, "restore the metadata from a backup: dlblk-meta restore");
            load_fail(loader, &error);
            return;
        }
    }
    if (!scan->more) {
        loader->next(loader);
        return;
    }
    loader->key = schema_key_next(scan->items[scan->item_count - 1].key);
    load_scan_go(loader);
}

static void
load_scan_go(struct meta_loader *loader)
{
    loader->scan = (struct store_scan){
        .start = schema_bytes(&loader->key),
        .end = schema_bytes(&loader->end),
        .items_max = LOAD_PAGE,
        .on_done = load_on_scan,
    };
    loader->busy = true;
    store_scan_start(loader->core->store, &loader->scan);
}

static void
load_scan(struct meta_loader *loader, const char *prefix,
          int (*on_item)(struct meta_loader *loader, struct store_item item, struct dl_error *err),
          void (*next)(struct meta_loader *loader))
{
    loader->key = schema_key_text(prefix);
    loader->end = schema_key_after_prefix(prefix);
    loader->on_item = on_item;
    loader->next = next;
    load_scan_go(loader);
}

/* --- segments --- */

static void
load_finished(struct meta_loader *loader)
{
    struct meta_core *core = loader->core;

    meta_core_loaded(core);
}

static int
load_segment(struct meta_loader *loader, struct store_item item, struct dl_error *err)
{
    struct meta_core *core = loader->core;
    struct meta_volume *volume = loader->volume;
    struct segment *segment;
    uint64_t volume_id;
    uint32_t index;
    bool told;
    int result;

    if (!schema_parse_segment(item.key, &volume_id, &index))
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "a segment's record has a damaged key");
    if (volume == NULL || volume->desc.id != volume_id)
        volume = loader->volume = meta_volume_by_id(core, volume_id);
    if (volume == NULL)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "segment %" PRIu32 " belongs to volume %" PRIu64 ", which isn't there",
                            index, volume_id);
    if (index >= meta_volume_segment_count(&volume->desc))
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "segment %" PRIu32 " lies beyond the end of volume %" PRIu64, index,
                            volume_id);
    segment = meta_segments_insert(&volume->segments, index);
    result = meta_record_get_segment(item, segment, volume->segments.slot_count, &told, err);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < volume->segments.place_count; i++)
        if (segment->slots[i].server_id != 0 &&
            meta_server_by_id(core, segment->slots[i].server_id) == NULL)
            return dl_error_set(err, -DL_E_STORE_DAMAGED,
                                "segment %" PRIu32 " of volume %" PRIu64
                                " names server %u, which isn't there",
                                index, volume_id, (unsigned)segment->slots[i].server_id);
    for (uint32_t i = 0; i < volume->segments.place_count; i++)
        if (segment->slots[i].server_id != 0 &&
            meta_segment_place_of(&volume->segments, segment, segment->slots[i].server_id) != i)
            return dl_error_set(err, -DL_E_STORE_DAMAGED,
                                "segment %" PRIu32 " of volume %" PRIu64
                                " has two slots on server %u",
                                index, volume_id, (unsigned)segment->slots[i].server_id);
    meta_volume_count_slots(core, volume, segment, 1);
    core->segment_count++;
    meta_recovery_loaded_segment(core, volume, segment, told);
    return 0;
}

/* --- chunks that left the map, and the log --- */

static int
load_event(struct meta_loader *loader, struct store_item item, struct dl_error *err)
{
    return meta_event_load(loader->core, item, err);
}

static void
load_events(struct meta_loader *loader)
{
    load_scan(loader, "event/", load_event, load_finished);
}

static int
load_removal(struct meta_loader *loader, struct store_item item, struct dl_error *err)
{
    return meta_removal_load(loader->core, item, err);
}

static void
load_removals(struct meta_loader *loader)
{
    load_scan(loader, "removal/", load_removal, load_events);
}

static void
load_segments(struct meta_loader *loader)
{
    load_scan(loader, "segment/", load_segment, load_removals);
}

/* --- volumes --- */

static int
load_volume(struct meta_loader *loader, struct store_item item, struct dl_error *err)
{
    struct meta_core *core = loader->core;
    struct volume_desc desc;
    struct meta_volume *volume;
    int result = meta_record_get_volume(item, &desc, err);

    if (result < 0)
        return result;
    if (desc.id >= core->next_volume_id)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "volume %" PRIu64 " is above the next id, %" PRIu64, desc.id,
                            core->next_volume_id);
    if (!desc.deleting && meta_volume_by_name(core, desc.name) != NULL)
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "two volumes are named %s", desc.name);
    volume = meta_volume_create(core, &desc);
    if (!desc.deleting)
        meta_name_add(core, desc.name, volume);
    return 0;
}

static void
load_volumes(struct meta_loader *loader)
{
    load_scan(loader, "volume/", load_volume, load_segments);
}

/* --- servers --- */

static int
load_server(struct meta_loader *loader, struct store_item item, struct dl_error *err)
{
    struct meta_core *core = loader->core;
    struct server_desc desc;
    int result = meta_record_get_server(item, &desc, err);

    if (result < 0)
        return result;
    if (desc.id >= core->next_server_id)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "server %" PRIu32 " is above the next id, %" PRIu32, desc.id,
                            core->next_server_id);
    if (meta_server_by_uuid(core, desc.uuid) != NULL)
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "two servers have the uuid %s",
                            meta_id_format(desc.uuid).text);
    (void)meta_server_create(core, &desc);
    return 0;
}

/* --- leadership --- */

static void
load_on_leader_committed(struct store_commit *commit, int err)
{
    struct meta_loader *loader = list_entry(commit, struct meta_loader, commit);
    struct dl_error error;

    store_batch_fini(&loader->batch);
    if (load_ended(loader))
        return;
    if (err < 0) {
        (void)dl_error_set(&error, err, "the metadata store could not be taken over: %s",
                           dl_err_str(err));
        load_fail(loader, &error);
        return;
    }
    loader->core->leader_revision = commit->revision;
    load_scan(loader, "server/", load_server, load_volumes);
}

static void
load_on_leader(struct store_get *get, int err)
{
    struct meta_loader *loader = loader_of_get(get);
    struct meta_core *core = loader->core;
    Dl__Meta__LeaderRecord record = DL__META__LEADER_RECORD__INIT;

    if (load_ended(loader) || load_get_failed(loader, err, true))
        return;
    record.instance = (ProtobufCBinaryData){META_ID_BYTES, core->instance};
    record.started_ms = core->env->ops->wall_ms(core->env);
    record.software = (char *)(uintptr_t)meta_software();
    store_batch_put_message(&loader->batch, schema_bytes(&loader->key), &record.base);
    loader->commit = (struct store_commit){
        .batch = &loader->batch,
        .guard = {.key = schema_bytes(&loader->key), .revision = err == 0 ? get->item.revision : 0},
        .on_done = load_on_leader_committed,
    };
    loader->busy = true;
    store_commit_start(core->store, &loader->commit);
}

/* --- the single records --- */

static void
load_on_next_volume(struct store_get *get, int err)
{
    struct meta_loader *loader = loader_of_get(get);
    struct dl_error error;

    if (load_ended(loader) || load_get_failed(loader, err, false))
        return;
    if (meta_record_get_counter(get->item, &loader->core->next_volume_id, &error) < 0) {
        load_fail(loader, &error);
        return;
    }
    load_get(loader, "leader", load_on_leader);
}

static void
load_on_next_server(struct store_get *get, int err)
{
    struct meta_loader *loader = loader_of_get(get);
    struct dl_error error;
    uint64_t next;

    if (load_ended(loader) || load_get_failed(loader, err, false))
        return;
    if (meta_record_get_counter(get->item, &next, &error) < 0 || next > 1u << 24) {
        (void)dl_error_set(&error, -DL_E_STORE_DAMAGED,
                           "the record of the next server's id is damaged");
        load_fail(loader, &error);
        return;
    }
    loader->core->next_server_id = (uint32_t)next;
    load_get(loader, "next/volume", load_on_next_volume);
}

static void
load_on_cluster(struct store_get *get, int err)
{
    struct meta_loader *loader = loader_of_get(get);
    Dl__Meta__ClusterRecord *record;
    struct dl_error error;

    if (load_ended(loader) || load_get_failed(loader, err, false))
        return;
    record = dl__meta__cluster_record__unpack(NULL, get->item.value.length_bytes,
                                              get->item.value.bytes);
    if (record == NULL || !meta_id_is_valid(record->cluster_id)) {
        (void)dl_error_set(&error, -DL_E_STORE_DAMAGED,
                           "the record of the cluster's id is damaged");
        load_fail(loader, &error);
    } else {
        memcpy(loader->core->cluster_id, record->cluster_id.data, META_ID_BYTES);
        loader->core->restores = record->restores;
        load_get(loader, "next/server", load_on_next_server);
    }
    if (record != NULL)
        dl__meta__cluster_record__free_unpacked(record, NULL);
}

static void
load_on_schema(struct store_get *get, int err)
{
    struct meta_loader *loader = loader_of_get(get);
    Dl__Meta__SchemaRecord *record;
    struct dl_error error;

    if (load_ended(loader))
        return;
    if (err == -DL_E_NOT_FOUND) {
        (void)dl_error_set(
            &error, -DL_E_STORE_FORMAT,
            "the metadata store holds no cluster, or its init or restore did not finish");
        dl_error_hint(&error, "make a new cluster with dlblk-meta init, in an empty directory");
        load_fail(loader, &error);
        return;
    }
    if (load_get_failed(loader, err, false))
        return;
    record = dl__meta__schema_record__unpack(NULL, get->item.value.length_bytes,
                                             get->item.value.bytes);
    if (record != NULL && record->version == META_SCHEMA_VERSION) {
        load_get(loader, "cluster", load_on_cluster);
    } else {
        (void)dl_error_set(&error, -DL_E_STORE_FORMAT,
                           "the metadata store has schema version %" PRIu32
                           ", this program knows version %u",
                           record == NULL ? 0 : record->version, META_SCHEMA_VERSION);
        dl_error_hint(&error, "use the version of dlblk that wrote it");
        load_fail(loader, &error);
    }
    if (record != NULL)
        dl__meta__schema_record__free_unpacked(record, NULL);
}

void
meta_load_start(struct meta_core *core)
{
    struct meta_loader *loader = meta_alloc(sizeof(*loader));

    loader->core = core;
    core->loader = loader;
    load_get(loader, "schema", load_on_schema);
}

void
meta_load_free(struct meta_core *core)
{
    if (core->loader == NULL)
        return;
    store_batch_fini(&core->loader->batch);
    free(core->loader);
    core->loader = NULL;
}
