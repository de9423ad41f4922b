/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segment maps: MAP_GET, and ALLOCATE: a batch of segments in one commit.
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
#include "meta/placement.h"
#include "meta/recovery.h"

/* Who reconnects sooner has not been away. */
#define ABSENT_NS NS_PER_S

/* --- maps in replies --- */

void
meta_map_init(struct meta_map *map, const struct meta_core *core)
{
    *map = (struct meta_map){.server_seen = meta_alloc(core->servers_end)};
}

void
meta_map_add_server(struct meta_map *map, const struct meta_core *core, uint32_t server_id)
{
    Dl__ServerAddress *address;

    if (map->server_seen[server_id])
        return;
    map->server_seen[server_id] = true;
    address = meta_alloc(sizeof(*address));
    dl__server_address__init(address);
    meta_server_fill_address(address, core->servers[server_id]);
    map->servers = meta_realloc(map->servers, map->server_count + 1, sizeof(Dl__ServerAddress *));
    map->servers[map->server_count++] = address;
}

void
meta_map_add_segment(struct meta_map *map, const struct meta_core *core,
                     const struct meta_volume *volume, const struct segment *segment)
{
    uint32_t slot_count = volume->segments.slot_count;
    struct map_segment {
        Dl__Segment segment;
        Dl__Slot *pointers[META_REPLICAS_MAX + 1];
        Dl__Slot slots[META_REPLICAS_MAX + 1];
    } *entry = meta_alloc(sizeof(*entry));

    dl__segment__init(&entry->segment);
    entry->segment.index = segment->index;
    entry->segment.config_epoch = segment->config_epoch;
    map->segment_sectors = (uint32_t)(meta_volume_chunk_bytes(&volume->desc) / 4096);
    slot_count += segment->slots[slot_count].server_id != 0;
    entry->segment.n_slots = slot_count;
    entry->segment.slots = entry->pointers;
    for (uint32_t i = 0; i < slot_count; i++) {
        dl__slot__init(&entry->slots[i]);
        entry->slots[i].server_id = segment->slots[i].server_id;
        entry->slots[i].state = (Dl__SlotState)segment->slots[i].state;
        entry->slots[i].attempt = segment->slots[i].attempt;
        entry->slots[i].number = segment->slots[i].number;
        entry->pointers[i] = &entry->slots[i];
        meta_map_add_server(map, core, segment->slots[i].server_id);
    }
    if (is_power_of_two(map->segment_count + 1))
        map->segments = meta_realloc(map->segments, 2 * map->segment_count + 2,
                                     sizeof(Dl__Segment *));
    map->segments[map->segment_count++] = &entry->segment;
}

void
meta_map_add_range(struct meta_map *map, const struct meta_core *core,
                   const struct meta_volume *volume, uint32_t first, uint32_t max)
{
    struct segment *segment = meta_segments_at_or_after(&volume->segments, first);

    for (uint32_t i = 0; i < max && segment != NULL; i++) {
        meta_map_add_segment(map, core, volume, segment);
        segment = meta_segments_after(&volume->segments, segment->index);
    }
    map->more = segment != NULL;
}

void
meta_map_fini(struct meta_map *map)
{
    for (size_t i = 0; i < map->segment_count; i++)
        free(map->segments[i]);
    for (size_t i = 0; i < map->server_count; i++)
        free(map->servers[i]);
    free(map->segments);
    free(map->servers);
    free(map->server_seen);
    *map = (struct meta_map){0};
}

static void
map_reply(struct meta_op *op, struct meta_map *map)
{
    Dl__MapReply reply = DL__MAP_REPLY__INIT;

    reply.n_segments = map->segment_count;
    reply.segments = map->segments;
    reply.n_servers = map->server_count;
    reply.servers = map->servers;
    reply.more = map->more;
    reply.segment_sectors = map->segment_sectors;
    meta_op_reply(op, &reply.base);
    meta_map_fini(map);
}

void
meta_run_map_get(struct meta_op *op)
{
    const Dl__MapGet *message = (const Dl__MapGet *)op->message;
    struct meta_volume *volume = NULL;
    uint32_t max = message->max == 0 ? META_MAP_PAGE : min_u32(message->max, META_MAP_PAGE);
    struct meta_map map;
    struct dl_error err;

    /* A chunkserver asks for itself: it is no owner, whatever it says. */
    if (message->lease_epoch != 0 && op->session->role == DL__ROLE__ROLE_CLIENT) {
        volume = meta_op_volume_by_lease(op, message->volume, message->lease_epoch);
        if (volume == NULL)
            return;
    } else {
        volume = meta_volume_by_id(op->core, message->volume);
        if (volume == NULL || volume->creating || volume->desc.deleting) {
            (void)dl_error_set(&err, -DL_E_VOLUME_UNKNOWN, "volume %" PRIu64 " does not exist",
                               message->volume);
            meta_op_fail(op, &err);
            return;
        }
    }
    meta_map_init(&map, op->core);
    meta_map_add_range(&map, op->core, volume, message->first, max);
    map_reply(op, &map);
}

/* --- which servers --- */

static bool
server_is_candidate(const struct meta_server *server, const struct volume_desc *desc,
                    const struct meta_label *clique)
{
    if (server->creating)
        return false;
    /* A clique that no server ever named has no label. */
    if (desc->clique[0] != '\0' && (clique == NULL || server->clique_label != clique->number))
        return false;
    return desc->failure_domain != DL__FAILURE_DOMAIN__DOMAIN_RACK || server->rack_label != 0;
}

static uint32_t
server_domain(const struct meta_server *server, const struct volume_desc *desc)
{
    switch (desc->failure_domain) {
    case DL__FAILURE_DOMAIN__DOMAIN_SERVER:
        return server->desc.id;
    case DL__FAILURE_DOMAIN__DOMAIN_RACK:
        return server->rack_label;
    default:
        return server->host_label;
    }
}

static uint64_t
server_weight(const struct meta_server *server, const struct volume_desc *desc)
{
    uint64_t weight;

    if (!meta_server_takes_chunks(server) ||
        server->available_bytes < meta_volume_chunk_bytes(desc))
        return 0;
    weight = placement_weight(server->available_bytes, server->used_bytes, server->assigned_bytes);
    if (server->desc.weight_percent != 0)
        weight = weight / 100 * server->desc.weight_percent;
    return max_u64(1, weight);
}

/* The servers that this volume may use, as placement sees them.  The caller frees them. */
struct placement_server *
meta_candidates_collect(const struct meta_core *core, const struct volume_desc *desc,
                        uint32_t *ret_count)
{
    struct placement_server *servers = meta_alloc(core->servers_end * sizeof(*servers));
    const struct meta_label *clique;
    uint32_t count = 0;

    HASH_FIND_STR(core->labels, desc->clique, clique);
    for (uint32_t id = 0; id < core->servers_end; id++) {
        const struct meta_server *server = core->servers[id];

        if (server == NULL || !server_is_candidate(server, desc, clique))
            continue;
        servers[count++] = (struct placement_server){
            .id = id,
            .domain = server_domain(server, desc),
            .weight = server_weight(server, desc),
        };
    }
    *ret_count = count;
    return servers;
}

const char *
meta_domain_name(const struct volume_desc *desc, uint32_t count)
{
    switch (desc->failure_domain) {
    case DL__FAILURE_DOMAIN__DOMAIN_SERVER:
        return count == 1 ? "server" : "servers";
    case DL__FAILURE_DOMAIN__DOMAIN_RACK:
        return count == 1 ? "rack" : "racks";
    default:
        return count == 1 ? "host" : "hosts";
    }
}

static int
domains_too_few(const struct volume_desc *desc, uint32_t domains, uint32_t servers,
                struct dl_error *err)
{
    uint32_t needed = meta_volume_slot_count(desc);

    bool by_server = desc->failure_domain == DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    char with[48] = "";

    if (!by_server)
        (void)snprintf(with, sizeof(with), " with %" PRIu32 " %s", servers,
                       servers == 1 ? "server" : "servers");
    (void)dl_error_set(err, -DL_E_TOO_FEW_DOMAINS,
                       "volume %s needs %" PRIu32
                       " different %s for its replicas; the %s%s has %" PRIu32 " %s%s",
                       desc->name, needed, meta_domain_name(desc, needed),
                       desc->clique[0] != '\0' ? "clique " : "cluster", desc->clique, domains,
                       meta_domain_name(desc, domains), with);
    if (domains == 0)
        dl_error_hint(err, "start chunkservers%s%s first",
                      desc->clique[0] != '\0' ? " with --clique " : "", desc->clique);
    else if (!by_server && servers >= needed)
        dl_error_hint(
            err,
            "add chunkservers on other %s, or create the volume with --failure-domain server "
            "(several copies may then share a machine)",
            meta_domain_name(desc, 2));
    else
        dl_error_hint(err, "add chunkservers, or create the volume with --replicas %" PRIu32,
                      domains);
    return err->code;
}

int
meta_segment_check_domains(struct meta_core *core, const struct volume_desc *desc,
                           struct dl_error *err)
{
    uint32_t count;
    struct placement_server *servers = meta_candidates_collect(core, desc, &count);
    uint32_t domains = placement_domain_count(servers, count, 0);

    free(servers);
    return domains < meta_volume_slot_count(desc) ? domains_too_few(desc, domains, count, err) : 0;
}

/* There are enough domains, but not enough that can take a segment now. */
static int
domains_unavailable(const struct meta_core *core, const struct volume_desc *desc,
                    const struct placement_server *servers, uint32_t count, struct dl_error *err)
{
    uint32_t available = placement_domain_count(servers, count, 1);
    uint32_t needed = meta_volume_slot_count(desc);
    bool full = true;
    char names[160] = "";
    size_t used = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct meta_server *server = core->servers[servers[i].id];
        bool down = server->session == NULL || !server->up;

        if (servers[i].weight != 0)
            continue;
        full = full && !down && !server->out;
        if (used < sizeof(names) - 64)
            used += (size_t)snprintf(
                names + used, sizeof(names) - used, "%sserver %" PRIu32 " is %s",
                used == 0 ? "" : ", ", server->desc.id,
                down                                            ? "down"
                : server->desc.admin_state != META_ADMIN_IN_USE ? "being emptied"
                : server->damaged                               ? "damaged"
                : server->stopped[0] != '\0'                    ? "taking no writes"
                                                                : "full");
    }
    (void)dl_error_set(err, full ? -DL_E_NO_SPACE : -DL_E_SERVER_DOWN,
                       "volume %s: a new segment needs %" PRIu32 " %s, and %" PRIu32
                       " can take one now: %s",
                       desc->name, needed, meta_domain_name(desc, needed), available, names);
    dl_error_hint(err,
                  full ? "add chunkservers, or delete volumes" : "start the servers that are down");
    return err->code;
}

/* It takes no new chunk now, but will, as far as anybody knows. */
static bool
server_may_be_back(const struct meta_server *server)
{
    return server->desc.admin_state == META_ADMIN_IN_USE &&
           (server->session == NULL || !meta_server_takes_chunks(server));
}

/*
 * As allocate_pick_fewer() has it: min_write servers that can take a copy now, and others that are
 * away for the rest.  Who may still register, shortly after the service's start, counts as there.
 */
int
meta_segment_check_place(const struct meta_core *core, const struct meta_volume *volume,
                         const struct meta_server *without, struct dl_error *err)
{
    const struct volume_desc *desc = &volume->desc;
    uint32_t needed = meta_volume_slot_count(desc), count, now, later;
    struct placement_server *servers = meta_candidates_collect(core, desc, &count), *marked;
    int result = 0;

    marked = meta_copy(servers, count * sizeof(*servers));
    for (uint32_t i = 0; i < count; i++) {
        const struct meta_server *server = core->servers[servers[i].id];

        marked[i].weight = server == without                                          ? 0
                           : servers[i].weight != 0 || meta_server_is_awaited(server) ? 2
                           : server_may_be_back(server)                               ? 1
                                                                                      : 0;
    }
    now = placement_domain_count(marked, count, 2);
    later = placement_domain_count(marked, count, 1);
    if (now < desc->min_write || later < needed)
        result = placement_domain_count(servers, count, 0) < needed
                     ? domains_too_few(desc, placement_domain_count(servers, count, 0), count, err)
                     : domains_unavailable(core, desc, servers, count, err);
    free(marked);
    free(servers);
    return result;
}

/* --- ALLOCATE --- */

static int
index_compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a;
    uint32_t right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

static int
allocate_check(struct meta_op *op, const struct meta_volume *volume, struct dl_error *err)
{
    const Dl__Allocate *message = (const Dl__Allocate *)op->message;
    uint64_t count = meta_volume_segment_count(&volume->desc);

    if (message->n_segments == 0 || message->n_segments > META_ALLOCATE_MAX)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "ALLOCATE of %zu segments: 1 to %u are possible", message->n_segments,
                            META_ALLOCATE_MAX);
    for (size_t i = 0; i < message->n_segments; i++)
        if (message->segments[i] >= count)
            return dl_error_set(err, -DL_E_RANGE,
                                "segment %" PRIu32
                                " lies beyond the end of volume %s, which has %" PRIu64,
                                message->segments[i], volume->desc.name, count);
    if (!volume->desc.ready)
        return dl_error_set(err, -DL_E_FENCE_PENDING,
                            "volume %s: the attach with lease %" PRIu32
                            " has not been answered yet",
                            volume->desc.name, volume->desc.lease_epoch);
    return 0;
}

/* The segments of the request that are not there yet, sorted, each once, into op->scratch. */
static void
allocate_find_missing(struct meta_op *op, const struct meta_volume *volume)
{
    const Dl__Allocate *message = (const Dl__Allocate *)op->message;
    uint32_t *missing = meta_alloc(message->n_segments * sizeof(*missing));
    uint32_t count = 0, distinct = 0;

    for (size_t i = 0; i < message->n_segments; i++)
        if (meta_segments_find(&volume->segments, message->segments[i]) == NULL)
            missing[count++] = message->segments[i];
    qsort(missing, count, sizeof(*missing), index_compare);
    for (uint32_t i = 0; i < count; i++)
        if (i == 0 || missing[i] != missing[i - 1])
            missing[distinct++] = missing[i];
    free(op->scratch);
    op->scratch = missing;
    op->scratch_count = distinct;
}

static void
allocate_reply(struct meta_op *op, const struct meta_volume *volume)
{
    const Dl__Allocate *message = (const Dl__Allocate *)op->message;
    struct meta_map map;

    meta_map_init(&map, op->core);
    for (size_t i = 0; i < message->n_segments; i++) {
        const struct segment *segment = meta_segments_find(&volume->segments, message->segments[i]);

        dl_assert(segment != NULL);
        meta_map_add_segment(&map, op->core, volume, segment);
    }
    map_reply(op, &map);
}

static struct segment *
allocate_item(const struct meta_op *op, const struct meta_volume *volume, uint32_t i)
{
    size_t stride = meta_segment_bytes(&volume->segments);

    return (struct segment *)(uintptr_t)((const uint8_t *)op->scratch + i * stride);
}

static void
allocate_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;

    for (uint32_t i = 0; i < op->scratch_count; i++) {
        const struct segment *item = allocate_item(op, volume, i);
        struct segment *segment = meta_segments_insert(&volume->segments, item->index);

        memcpy(segment, item, meta_segment_bytes(&volume->segments));
        meta_volume_count_slots(op->core, volume, segment, 1);
        meta_repair_update(op->core, volume, segment);
    }
    if (volume->repair_count > 0)
        meta_recovery_kick(op->core);
    allocate_reply(op, volume);
}

/* Servers that new segments go to, and those that are only waited for. */
struct allocate_servers {
    struct placement_server *servers;
    uint32_t count;
    struct placement *placement;
    struct placement *absent; /* NULL: not needed yet */
};

/*
 * It has been away for a moment, or takes no writes; it will be back, as far as anybody knows.
 * (Who holds its serial may be removing it.)
 */
static bool
server_is_absent(const struct meta_server *server)
{
    uint64_t now_ns = env_now_ns(server->core->env);

    if (server->desc.admin_state != META_ADMIN_IN_USE || server->serial.holder != NULL)
        return false;
    if (server->session == NULL)
        return now_ns - server->lost_ns >= ABSENT_NS;
    return !meta_server_takes_chunks(server);
}

static struct placement *
allocate_absent(const struct meta_op *op, const struct meta_volume *volume,
                struct allocate_servers *all)
{
    struct placement_server *servers;
    int result;

    if (all->absent != NULL)
        return all->absent;
    servers = meta_copy(all->servers, all->count * sizeof(*servers));
    for (uint32_t i = 0; i < all->count; i++)
        servers[i].weight = server_is_absent(op->core->servers[servers[i].id]);
    result = placement_create(&all->absent, servers, all->count, volume->segments.slot_count,
                              op->core->placement_seed);
    dl_assert(result == 0); /* the same servers as those of the other */
    free(servers);
    return all->absent;
}

/*
 * There are not enough servers now.  With min_write of them the segment is as one whose other
 * copies were ejected before the first write: servers that are away stand for them, and are
 * recovered, or replaced, like any.  Servers that are full don't: all that is new would have fewer
 * copies.
 */
static int
allocate_pick_fewer(struct meta_op *op, const struct meta_volume *volume,
                    struct allocate_servers *all, uint32_t *ids, uint32_t *ret_in_sync)
{
    struct placement *placement = all->placement;
    uint32_t in_sync = 0;

    for (uint32_t i = 0; i < volume->segments.slot_count; i++) {
        if (placement_pick_one(placement, ids, i, meta_core_random, op->core, &ids[i]) == 0) {
            in_sync += placement == all->placement;
            continue;
        }
        if (placement != all->placement || in_sync < volume->desc.min_write)
            return -DL_E_TOO_FEW_DOMAINS;
        placement = allocate_absent(op, volume, all);
        i--;
    }
    *ret_in_sync = in_sync;
    return 0;
}

static int
allocate_place(struct meta_op *op, const struct meta_volume *volume, struct allocate_servers *all,
               uint32_t index, struct segment *segment)
{
    uint32_t ids[PLACEMENT_SLOTS_MAX];
    uint32_t in_sync = volume->segments.slot_count;
    int result = placement_pick(all->placement, meta_volume_chunk_bytes(&volume->desc),
                                meta_core_random, op->core, ids);

    if (result < 0)
        result = allocate_pick_fewer(op, volume, all, ids, &in_sync);
    if (result < 0)
        return result;
    segment->index = index;
    segment->config_epoch = 1;
    for (uint32_t i = 0; i < volume->segments.slot_count; i++) {
        segment->slots[i].server_id = ids[i] & 0xffffffu;
        segment->slots[i].state = i < in_sync ? DL__SLOT_STATE__SLOT_IN_SYNC
                                              : DL__SLOT_STATE__SLOT_EJECTED;
        segment->slots[i].incarnation = 1;
        segment->slots[i].number = i & 0xfu;
    }
    return 0;
}

/* Places all of op->scratch's segments, which becomes an array of struct segment. */
static int
allocate_place_all(struct meta_op *op, const struct meta_volume *volume, struct dl_error *err)
{
    uint32_t slot_count = volume->segments.slot_count;
    size_t stride = meta_segment_bytes(&volume->segments);
    uint32_t *indexes = op->scratch;
    struct allocate_servers all = {0};
    int result;

    all.servers = meta_candidates_collect(op->core, &volume->desc, &all.count);
    result = placement_create(&all.placement, all.servers, all.count, slot_count,
                              op->core->placement_seed);
    if (result < 0)
        result = domains_too_few(&volume->desc, placement_domain_count(all.servers, all.count, 0),
                                 all.count, err);
    op->scratch = meta_alloc(op->scratch_count * stride);
    for (uint32_t i = 0; result == 0 && i < op->scratch_count; i++) {
        struct segment *segment = allocate_item(op, volume, i);

        result = allocate_place(op, volume, &all, indexes[i], segment);
        if (result < 0)
            result = domains_unavailable(op->core, &volume->desc, all.servers, all.count, err);
        else
            meta_record_put_segment(&op->batch, volume->desc.id, segment, slot_count, true);
    }
    placement_destroy(all.placement);
    placement_destroy(all.absent);
    free(all.servers);
    free(indexes);
    return result;
}

void
meta_run_allocate(struct meta_op *op)
{
    const Dl__Allocate *message = (const Dl__Allocate *)op->message;
    struct meta_core *core = op->core;
    struct meta_volume *volume = meta_op_volume_by_lease(op, message->volume, message->lease_epoch);
    struct dl_error err;

    if (volume == NULL || !meta_op_take(op, &volume->serial))
        return;
    if (allocate_check(op, volume, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    allocate_find_missing(op, volume);
    if (op->scratch_count == 0) {
        allocate_reply(op, volume);
        return;
    }
    if (core->segment_count + op->scratch_count > core->options.segments_max) {
        (void)dl_error_set(
            &err, -DL_E_LIMIT,
            "volume %s: %" PRIu32 " more segments: the cluster has %" PRIu64 " of at most %" PRIu32,
            volume->desc.name, op->scratch_count, core->segment_count, core->options.segments_max);
        dl_error_hint(&err, "new volumes with larger segments need fewer of them");
        meta_op_fail(op, &err);
        return;
    }
    if (allocate_place_all(op, volume, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    op->volume = volume;
    core->segment_count += op->scratch_count;
    meta_op_commit(op, allocate_on_committed);
}
