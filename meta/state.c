/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "meta/internal.h"
#include "meta/memory.h"

/* --- volumes --- */

uint32_t
meta_volume_slot_count(const struct volume_desc *desc)
{
    return desc->replicas;
}

uint64_t
meta_volume_segment_count(const struct volume_desc *desc)
{
    uint64_t set_bytes = (uint64_t)desc->segment_bytes * desc->stripe_width;
    uint64_t sets = desc->size_bytes / set_bytes + (desc->size_bytes % set_bytes != 0);

    return sets * desc->stripe_width;
}

/* What one slot of a segment may grow to: a replica is as long as the segment. */
uint64_t
meta_volume_chunk_bytes(const struct volume_desc *desc)
{
    return desc->segment_bytes;
}

struct meta_volume *
meta_volume_create(struct meta_core *core, const struct volume_desc *desc)
{
    struct meta_volume *volume = meta_alloc(sizeof(*volume));

    volume->desc = *desc;
    meta_serial_init(&volume->serial);
    meta_segments_init(&volume->segments, meta_volume_slot_count(desc));
    list_init(&volume->owner_node);
    list_init(&volume->readers);
    list_init(&volume->held_removals);
    HASH_ADD(hh, core->volumes, desc.id, sizeof(volume->desc.id), volume);
    core->volume_count++;
    return volume;
}

void
meta_volume_destroy(struct meta_core *core, struct meta_volume *volume)
{
    struct meta_reader *reader, *following;

    meta_lease_probe_cancel(core, volume);
    meta_takeover_end(core, volume, NULL);
    meta_deletion_free(volume);
    meta_scrub_free(volume);
    list_for_each_entry_safe (reader, following, &volume->readers, volume_node)
        meta_reader_remove(reader);
    if (list_is_linked(&volume->owner_node))
        list_remove(&volume->owner_node);
    HASH_DEL(core->volumes, volume);
    core->volume_count--;
    meta_segments_fini(&volume->segments);
    free(volume->servers);
    free(volume);
}

struct meta_volume *
meta_volume_by_id(struct meta_core *core, uint64_t id)
{
    struct meta_volume *volume;

    HASH_FIND(hh, core->volumes, &id, sizeof(id), volume);
    return volume;
}

/* --- names --- */

struct meta_volume *
meta_volume_by_name(struct meta_core *core, const char *name)
{
    struct meta_name *found;

    HASH_FIND_STR(core->names, name, found);
    return found == NULL ? NULL : found->volume;
}

void
meta_name_add(struct meta_core *core, const char *name, struct meta_volume *volume)
{
    size_t bytes = strlen(name) + 1;
    struct meta_name *added = meta_alloc(sizeof(*added) + bytes);

    dl_assert(meta_volume_by_name(core, name) == NULL);
    added->volume = volume;
    memcpy(added->text, name, bytes);
    HASH_ADD_STR(core->names, text, added);
}

void
meta_name_remove(struct meta_core *core, const char *name)
{
    struct meta_name *found;

    HASH_FIND_STR(core->names, name, found);
    dl_assert(found != NULL);
    HASH_DEL(core->names, found);
    free(found);
}

/* --- which servers hold how much of a volume --- */

static uint32_t
volume_server_lower_bound(const struct meta_volume *volume, uint32_t server_id)
{
    uint32_t low = 0, high = volume->server_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (volume->servers[middle].server_id < server_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void
volume_count_slot(struct meta_volume *volume, uint32_t server_id, int delta)
{
    uint32_t idx = volume_server_lower_bound(volume, server_id);
    struct volume_server *entry;

    if (idx == volume->server_count || volume->servers[idx].server_id != server_id) {
        dl_assert(delta > 0);
        volume->servers = meta_realloc(volume->servers, volume->server_count + 1,
                                       sizeof(*volume->servers));
        entry = &volume->servers[idx];
        memmove(entry + 1, entry, (volume->server_count - idx) * sizeof(*entry));
        *entry = (struct volume_server){.server_id = server_id};
        volume->server_count++;
    }
    entry = &volume->servers[idx];
    dl_assert(delta > 0 || entry->slot_count > 0);
    entry->slot_count += (uint32_t)delta;
    if (entry->slot_count > 0)
        return;
    volume->server_count--;
    memmove(entry, entry + 1, (volume->server_count - idx) * sizeof(*entry));
}

void
meta_volume_count_slots(struct meta_core *core, struct meta_volume *volume,
                        const struct segment *segment, int delta)
{
    uint64_t chunk_bytes = meta_volume_chunk_bytes(&volume->desc);

    for (uint32_t i = 0; i < volume->segments.place_count; i++) {
        struct meta_server *server = meta_server_by_id(core, segment->slots[i].server_id);

        if (segment->slots[i].server_id == 0)
            continue;
        dl_assert(server != NULL);
        volume_count_slot(volume, segment->slots[i].server_id, delta);
        if (delta > 0) {
            server->slot_count++;
            server->assigned_bytes += chunk_bytes;
        } else {
            dl_assert(server->slot_count > 0 && server->assigned_bytes >= chunk_bytes);
            server->slot_count--;
            server->assigned_bytes -= chunk_bytes;
        }
    }
}
