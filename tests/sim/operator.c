/* SPDX-License-Identifier: Apache-2.0 */
/*
 * operator.c: servers that come and go while volumes are in use, and disks that lose what they had.
 * See cluster.h.
 *
 * The operator adds servers, drains some, takes them back into use, or stops and removes them when
 * they are empty; one request to the metadata service at a time, again until it is answered.  A
 * request goes through the admin's client.
 *
 * Damage, of one kind in a run: what an older copy of a disk, a torn journal or a lost disk takes
 * away was acknowledged, so the other copies must be there.  It comes only when all servers are up
 * and each of the disk's segments has two more slots in-sync, and until the metadata service knows
 * of it (cluster->fragile) no fault hits servers.  Bits that flip at rest do so in one copy of a
 * sector at most, in runs where two copies at least are always in-sync (nobody is out).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dlblk/error.h"
#include "meta/internal.h"
#include "proto/control.pb-c.h"
#include "tests/sim/cluster.h"

#define RETRY_NS_MAX    (500 * SIM_MS)
#define ROT_SECTORS_MAX 6u
#define ROT_TRIES       40u
#define LEAF_SECTORS    64u
#define QUIET_NS_MAX    (16 * SIM_S)
#define QUIET_TICK_NS   (20 * SIM_MS)

enum operator_job { JOB_NONE, JOB_DRAIN, JOB_UNDRAIN, JOB_REMOVE };

struct sim_operator {
    struct cluster *cluster;
    struct sim_event event;
    bool winding_down;
    uint64_t quiet_ns; /* since then faults are kept from servers, or are no more */
    enum operator_job job;
    struct sim_server *server; /* whom the job is about */
    uint8_t uuid[16];          /* of its disk, as it was then */
    bool asking;               /* the request is under way */
    bool answered;
    int err;
    uint32_t refusals; /* of this job */
    struct client_meta_call call;
    Dl__ServerDrain drain;
    Dl__ServerUndrain undrain;
    Dl__ServerRemove remove;
};

static uint64_t
operator_random(const struct sim_operator *operator, uint64_t bound)
{
    return fake_rng_below(&operator->cluster->fault_rng, bound);
}

static bool
operator_percent(const struct sim_operator *operator, uint32_t percent)
{
    return fake_rng_percent(&operator->cluster->fault_rng, percent);
}

static void operator_on_event(struct sim_event *event);

static void
operator_next(struct sim_operator *operator, uint64_t max_ns)
{
    sim_schedule(&operator->cluster->world, &operator->event, NULL, operator_on_event,
                 1 + operator_random(operator, max_ns));
}

/* --- whom --- */

static bool
server_is_in_use(const struct sim_server *server)
{
    return !server->gone && !server->retiring && !server->drained;
}

/*
 * Can this one be done without?  Now and then it is tried all the same, and must be refused: if it
 * has slots; and the metadata service does not know at once who is damaged.
 */
static bool
server_is_spare(const struct sim_operator *operator, const struct sim_server * server)
{
    struct cluster *cluster = operator->cluster;
    bool damaged = false;
    uint32_t count = 0;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        count += server_is_in_use(&cluster->servers[i]) && !cluster->servers[i].spared;
        damaged = damaged || cluster->servers[i].spared;
    }
    return count > cluster->profile.replicas || (!damaged && operator_percent(operator, 20) &&
                                                 map_count_places(cluster, server, false) > 0);
}

static struct sim_server *
operator_pick(const struct sim_operator *operator, bool (*fits)(const struct sim_server *server))
{
    struct cluster *cluster = operator->cluster;
    uint64_t first = operator_random(operator, cluster->server_count);

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct sim_server *server = &cluster->servers[(first + i) % cluster->server_count];

        if (fits(server))
            return server;
    }
    return NULL;
}

static bool
server_is_drained(const struct sim_server *server)
{
    return server->drained && !server->retiring;
}

/* --- requests --- */

static void
operator_on_answer(struct client_meta_call *call, int err)
{
    struct sim_operator *operator= call->context;

    operator->asking = false;
    operator->answered = true;
    operator->err = err;
    sim_trace(&operator->cluster->world, NULL, "operator: job %d of %s: %s",
              (int)operator->job, operator->server->process.name,
              err == 0 ? "done" : call->error.text);
    operator_next(operator, RETRY_NS_MAX);
}

static const ProtobufCMessage *
operator_make_request(struct sim_operator *operator, uint32_t server_id)
{
    switch (operator->job) {
    case JOB_DRAIN:
        dl__server_drain__init(&operator->drain);
        operator->drain.server_id = server_id;
        operator->call.opcode = OP_SERVER_DRAIN;
        return &operator->drain.base;
    case JOB_UNDRAIN:
        dl__server_undrain__init(&operator->undrain);
        operator->undrain.server_id = server_id;
        operator->call.opcode = OP_SERVER_UNDRAIN;
        return &operator->undrain.base;
    case JOB_REMOVE:
    case JOB_NONE:
        break;
    }
    dl__server_remove__init(&operator->remove);
    operator->remove.server_id = server_id;
    operator->remove.force = operator->refusals> 2;
    operator->call.opcode = OP_SERVER_REMOVE;
    return &operator->remove.base;
}

static void
operator_ask(struct sim_operator *operator, uint32_t server_id)
{
    struct sim_process *process = admin_process(operator->cluster);
    struct sim_process *before;

    memset(&operator->call, 0, sizeof(operator->call));
    operator->call.request = operator_make_request(operator, server_id);
    operator->call.reply_type = & dl__server_change_reply__descriptor;
    operator->call.on_done = operator_on_answer;
    operator->call.context = operator;
    operator->asking = true;
    sim_trace(&operator->cluster->world, NULL, "operator: job %d of %s, server %u",
              (int)operator->job, operator->server->process.name, server_id);
    before = sim_enter(process);
    client_meta_call_start(admin_core(operator->cluster), &operator->call);
    sim_leave(process, before);
}

static bool
err_is_passing(int err)
{
    return err == -DL_E_META_UNREACHABLE || err == -DL_E_TIMEOUT || err == -DL_E_SHUTTING_DOWN;
}

/* --- jobs --- */

static void
job_begin(struct sim_operator *operator, enum operator_job job, struct sim_server *server)
{
    operator->job = job;
    operator->server = server;
    memcpy(operator->uuid, server->uuid, sizeof(operator->uuid));
    operator->answered = false;
    operator->refusals = 0;
}

/* What was acknowledged: the map must be so in the end. */
static void
job_take_answer(struct sim_operator *operator)
{
    struct cluster *cluster = operator->cluster;
    struct cluster_counters *counters = &cluster->counters;
    int err = operator->err;

    operator->answered = false;
    if (err_is_passing(err))
        return;
    if (operator->job == JOB_REMOVE) {
        if (err == 0 || err == -DL_E_SERVER_UNKNOWN) {
            counters->servers_removed++;
            operator->job = JOB_NONE;
            return;
        }
        sim_require(&cluster->world, err == -DL_E_BUSY || err == -DL_E_TOO_FEW_DOMAINS,
                    "remove %s: %s: %s", operator->server->process.name,
                    dl_err_name(err), operator->call.error.text);
        counters->servers_refused++;
        operator->refusals++;
        if (err == -DL_E_TOO_FEW_DOMAINS && operator->server->gone) {
            counters->disks_replaced++;
            server_replace(operator->server);
        }
        return;
    }
    sim_require(&cluster->world,
                err == 0 || (operator->job == JOB_DRAIN && err == - DL_E_TOO_FEW_DOMAINS),
                "job %d of %s: %s: %s", (int)operator->job, operator->server->process.name,
                dl_err_name(err), operator->call.error.text);
    counters->servers_refused += err != 0;
    if (err == 0 && operator->job == JOB_DRAIN) {
        operator->server->drained = true;
        counters->servers_drained++;
    }
    counters->servers_undrained += operator->job == JOB_UNDRAIN;
    operator->job = JOB_NONE;
}

static void
job_go_on(struct sim_operator *operator)
{
    struct server_desc desc;

    if (operator->answered)
        job_take_answer(operator);
    if (operator->job == JOB_NONE ||(
            operator->job == JOB_REMOVE && operator->server->retiring && !operator->server->gone)) {
        operator_next(operator, RETRY_NS_MAX);
        return;
    }
    if (map_find_server(operator->cluster, operator->uuid, &desc)) {
        operator_ask(operator, desc.id);
        return;
    }
    /* It never registered, or is forgotten already. */
    operator->job = JOB_NONE;
    operator_next(operator, RETRY_NS_MAX);
}

/* --- servers that come and go --- */

static void
begin_drain(struct sim_operator *operator)
{
    struct sim_server *server = operator_pick(operator, server_is_in_use);

    if (server != NULL && server_is_spare(operator, server))
        job_begin(operator, JOB_DRAIN, server);
}

static void
begin_undrain(struct sim_operator *operator)
{
    struct sim_server *server = operator_pick(operator, server_is_drained);

    if (server == NULL)
        return;
    server->drained = false;
    job_begin(operator, JOB_UNDRAIN, server);
}

/* One that was drained and is empty. */
static void
begin_remove(struct sim_operator *operator)
{
    struct cluster *cluster = operator->cluster;
    struct sim_server *server = operator_pick(operator, server_is_drained);

    if (server == NULL || map_count_places(cluster, server, true) > 0 || server->stopping ||
        server->process.paused_until_ns > cluster->world.now_ns)
        return;
    cluster->counters.servers_emptied++;
    job_begin(operator, JOB_REMOVE, server);
    server->retiring = true;
    if (server->process.up)
        server_stop(server);
    else
        server_lose(server);
}

/*
 * A disk that was removed is known again: what it had sent before it went came after its removal.
 * It is removed once more.
 */
static void
begin_remove_again(struct sim_operator *operator)
{
    struct cluster *cluster = operator->cluster;
    struct server_desc desc;
    char address[32];

    if (!map_find_leftover(cluster, &desc))
        return;
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct sim_server *server = &cluster->servers[i];

        (void)snprintf(address, sizeof(address), "%s:1", server->process.name);
        if (strcmp(desc.address, address) != 0)
            continue;
        job_begin(operator, JOB_REMOVE, server);
        memcpy(operator->uuid, desc.uuid, sizeof(operator->uuid));
    }
}

static void
operator_begin_change(struct sim_operator *operator)
{
    struct cluster *cluster = operator->cluster;
    uint64_t dice = operator_random(operator, 100);

    if (!cluster->profile.servers_come_and_go)
        return;
    if (dice < 25) {
        cluster->counters.servers_added += server_add(cluster) != NULL;
    } else if (dice < 60) {
        begin_drain(operator);
    } else if (dice < 72) {
        begin_undrain(operator);
    } else {
        begin_remove(operator);
    }
}

/* --- what takes acknowledged data away --- */

static bool
net_is_whole(const struct sim_world *world)
{
    for (uint32_t i = 0; i < world->process_count; i++)
        for (uint32_t k = 0; k < world->process_count; k++)
            if (world->blocked_until_ns[i][k] > world->now_ns)
                return false;
    return true;
}

static bool
server_is_well(const struct sim_server *server, uint64_t now_ns)
{
    return server->process.up && !server->stopping && !server->retiring && !server->kill_armed &&
           server->kill_event.heap_idx == 0 && server->process.paused_until_ns <= now_ns;
}

static bool
meta_is_serving(const struct cluster *cluster)
{
    return cluster->meta.process.up && meta_core_is_serving(cluster->meta.core);
}

/* Would the others have everything, whatever else is under way? */
static bool
disk_may_go(const struct sim_operator *operator, const struct sim_server * server)
{
    struct cluster *cluster = operator->cluster;
    uint32_t least;

    if (!meta_is_serving(cluster) || store_memory_in_flight(cluster->meta.store) > 0 ||
        !net_is_whole(&cluster->world))
        return false;
    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (!cluster->servers[i].gone &&
            !server_is_well(&cluster->servers[i], cluster->world.now_ns))
            return false;
    least = map_in_sync_least(cluster, server);
    return least >= 3 && least != UINT32_MAX;
}

/* Of an image that is too new nobody could say that it is an older one. */
static bool
image_is_older(const struct cluster *cluster, const struct sim_server *server)
{
    const struct meta_server *known = !meta_is_serving(cluster)
                                          ? NULL
                                          : meta_server_by_uuid(cluster->meta.core, server->uuid);

    return server->image != NULL && known != NULL && known->session != NULL &&
           model_image_is_older(server->image, known->desc.start_count, known->journal_position);
}

static void
damage_back(struct sim_operator *operator, struct sim_server * server)
{
    struct cluster *cluster = operator->cluster;

    /* It waits for the owners of its volumes; of one that is gone another client must adopt it. */
    if (!image_is_older(cluster, server) || cluster->profile.client_count < 2)
        return;
    cluster->damage_done = true;
    cluster->counters.disks_back++;
    server->damage_due = DAMAGE_BACK;
    server_kill(server, operator_percent(operator, 30));
}

/* Nothing moves to a damaged disk: is it the only place left for what a drained server has? */
static bool
server_is_target(const struct cluster *cluster, const struct sim_server *server)
{
    uint32_t others = 0;
    bool drained = false;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        others += &cluster->servers[i] != server && server_is_in_use(&cluster->servers[i]);
        drained = drained || cluster->servers[i].drained;
    }
    return drained && others < cluster->profile.replicas;
}

static void
damage_losses(struct sim_operator *operator, struct sim_server * server)
{
    struct cluster *cluster = operator->cluster;

    if (server_is_target(cluster, server))
        return;
    cluster->damage_done = true;
    cluster->counters.disks_damaged++;
    server->spared = true;
    server->damage_due = DAMAGE_LOSSES;
    server_kill(server, operator_percent(operator, 30));
}

/* Lost, and removed; its place may get another disk. */
static void
damage_gone(struct sim_operator *operator, struct sim_server * server)
{
    struct cluster *cluster = operator->cluster;

    cluster->damage_done = true;
    cluster->counters.disks_gone++;
    job_begin(operator, JOB_REMOVE, server);
    server_lose(server);
    if (operator_percent(operator, 40)) {
        cluster->counters.disks_replaced++;
        server_replace(server);
    }
}

/*
 * First it becomes quiet: no fault hits servers any more.  Then, when all is well, it happens; or
 * not, if that takes too long: a while later it is tried again.
 */
static bool
operator_is_ready(struct sim_operator *operator, struct sim_server * server)
{
    struct cluster *cluster = operator->cluster;
    enum cluster_damage damage = cluster->profile.damage;

    if (cluster->fragile != NULL) {
        if (cluster->world.now_ns - operator->quiet_ns<QUIET_NS_MAX)
            return server_is_in_use(server) && disk_may_go(operator, server);
        cluster->fragile = NULL;
        operator->quiet_ns = cluster->world.now_ns;
        return false;
    }
    if (!server_is_in_use(server) || !server->process.up ||
        (operator->quiet_ns> 0 && cluster->world.now_ns - operator->quiet_ns<QUIET_NS_MAX / 4))
        return false;
    if (server->image == NULL && damage != DAMAGE_GONE)
        server->image = model_image_take(&server->disk);
    if (damage == DAMAGE_BACK && !image_is_older(cluster, server))
        return false;
    sim_trace(&cluster->world, &server->process, "is about to lose what its disk has");
    cluster->fragile = server;
    operator->quiet_ns = cluster->world.now_ns;
    return false;
}

static void
operator_damage(struct sim_operator *operator)
{
    struct cluster *cluster = operator->cluster;
    /* The one whose image there is, or any. */
    struct sim_server *server =
        &cluster->servers[cluster->world.seed % cluster->profile.server_count];

    if (cluster->damage_done || cluster->profile.damage == DAMAGE_NONE ||
        !operator_is_ready(operator, server))
        return;
    if (cluster->profile.damage == DAMAGE_BACK)
        damage_back(operator, server);
    else if (cluster->profile.damage == DAMAGE_LOSSES)
        damage_losses(operator, server);
    else if (cluster->profile.damage == DAMAGE_GONE)
        damage_gone(operator, server);
}

/* Does the metadata service know what a disk has lost? */
static void
operator_check_fragile(struct cluster *cluster)
{
    struct sim_server *server = cluster->fragile;
    struct server_desc desc;
    bool known;

    if (server == NULL || !cluster->damage_done || server->damage_due != DAMAGE_NONE)
        return;
    if (cluster->profile.damage == DAMAGE_GONE)
        known = map_in_sync_least(cluster, NULL) == UINT32_MAX;
    else
        known = server->process.up && map_find_server(cluster, server->uuid, &desc) &&
                desc.start_count == server->disk.start_count;
    if (!known)
        return;
    sim_trace(&cluster->world, &server->process, "its loss is known");
    cluster->fragile = NULL;
}

/* --- bits that flip at rest --- */

/*
 * Are all other copies of these sectors good?  Those of recovering slots, too, but for what they
 * will pull: they are in-sync again with what they have.
 */
static bool
others_are_good(struct cluster *cluster, const struct sim_server *server,
                const struct chunk_key *key, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct chunk_key other = *key;

        for (other.slot = 0; other.slot < cluster->profile.replicas; other.slot++) {
            const struct chunk *chunk = chunk_table_find(cluster->servers[i].disk.chunks, &other);

            for (uint32_t k = first;
                 chunk != NULL && &cluster->servers[i] != server && k < first + count; k++)
                if (!model_sector_is_good(chunk, k) &&
                    !(chunk->attempt != 0 && model_sector_is_void(chunk, k)))
                    return false;
        }
    }
    return true;
}

/* An in-sync copy that is not the only one, at random. */
struct rot_pick {
    struct sim_server *server; /* only of this one; NULL: of any */
    uint32_t seen;
    struct sim_place place;
    struct chunk_key key;
};

static void
rot_consider(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    struct rot_pick *pick = context;
    uint32_t in_sync = 0;

    if (cluster_volume(cluster, segment->volume) == NULL)
        return; /* nobody will read all of it */
    for (uint32_t i = 0; i < segment->place_count; i++)
        in_sync += segment->places[i].state == DL__SLOT_STATE__SLOT_IN_SYNC;
    for (uint32_t i = 0; i < segment->place_count && in_sync >= 2; i++) {
        const struct sim_place *place = &segment->places[i];

        if (place->state != DL__SLOT_STATE__SLOT_IN_SYNC || place->server == NULL ||
            (pick->server != NULL && pick->server != place->server))
            continue;
        if (fake_rng_below(&cluster->fault_rng, ++pick->seen) > 0)
            continue;
        pick->place = *place;
        pick->key = (struct chunk_key){segment->volume, segment->index, place->number};
    }
}

static struct chunk *
rot_choose(struct cluster *cluster, struct rot_pick *pick)
{
    struct chunk *chunk;

    map_for_each(cluster, rot_consider, pick);
    if (pick->seen == 0)
        return NULL;
    chunk = chunk_table_find(pick->place.server->disk.chunks, &pick->key);
    return chunk == NULL || chunk->attempt != 0 ? NULL : chunk;
}

static void
operator_rot(struct sim_operator *operator)
{
    struct cluster *cluster = operator->cluster;
    struct rot_pick pick = {0};
    struct chunk *chunk = rot_choose(cluster, &pick);
    uint64_t count = 1 + operator_random(operator, ROT_SECTORS_MAX);
    const struct model_chunk *content = chunk == NULL ? NULL : chunk->store_private;

    if (operator_percent(operator, 30))
        cluster->servers[operator_random(operator, cluster->server_count)].leaf_due = true;
    if (content == NULL || content->sector_count == 0)
        return;
    for (uint32_t i = 0; i < ROT_TRIES && count > 0; i++) {
        uint32_t sector = (uint32_t)operator_random(operator, content->sector_count);

        if (!others_are_good(cluster, pick.place.server, &pick.key, sector, 1) ||
            !model_disk_rot(&pick.place.server->disk, chunk, sector))
            continue;
        sim_trace(&cluster->world, &pick.place.server->process,
                  "volume %" PRIu64 " segment %u slot %u sector %u rots", pick.key.volume,
                  pick.key.segment, pick.key.slot, sector);
        count--;
    }
}

/* One that was never written is not on the disk. */
static bool
leaf_is_written(const struct chunk *chunk, uint32_t leaf)
{
    const struct model_chunk *content = chunk->store_private;

    for (uint32_t i = leaf * LEAF_SECTORS;
         i < (leaf + 1) * LEAF_SECTORS && i < content->sector_count; i++)
        if (content->sectors[i].version != 0)
            return true;
    return false;
}

/* Not beyond the volume's end, where nobody reads. */
static bool
segment_is_full(const struct sim_volume *volume, uint32_t index)
{
    uint64_t width = volume->stripe_width;

    return (index / width + 1) * width * volume->segment_bytes <= volume->size_bytes;
}

void
operator_server_starts(struct sim_server *server)
{
    struct cluster *cluster = server->cluster;
    struct rot_pick pick = {.server = server};
    struct chunk *chunk;
    uint32_t leaf;

    if (!server->leaf_due || cluster->calm)
        return;
    server->leaf_due = false;
    chunk = rot_choose(cluster, &pick);
    if (chunk == NULL)
        return;
    leaf = (uint32_t)fake_rng_below(&cluster->fault_rng, (1u << 20) / SECTOR_BYTES / LEAF_SECTORS);
    if (!segment_is_full(cluster_volume(cluster, pick.key.volume), pick.key.segment) ||
        !leaf_is_written(chunk, leaf) ||
        !others_are_good(cluster, server, &pick.key, leaf * LEAF_SECTORS, LEAF_SECTORS))
        return;
    sim_trace(&cluster->world, &server->process,
              "volume %" PRIu64 " segment %u slot %u leaf %u is damaged", pick.key.volume,
              pick.key.segment, pick.key.slot, leaf);
    model_disk_damage_leaf(&server->disk, chunk, leaf);
}

/* --- time --- */

static void
operator_on_event(struct sim_event *event)
{
    struct sim_operator *operator= list_entry(event, struct sim_operator, event);
    struct cluster *cluster = operator->cluster;

    map_check(cluster);
    operator_check_fragile(cluster);
    if (operator->asking)
        return; /* its answer goes on */
    if (operator->job != JOB_NONE) {
        job_go_on(operator);
        return;
    }
    if (cluster->fragile == NULL)
        begin_remove_again(operator);
    if (!operator->winding_down && operator->job == JOB_NONE) {
        if (cluster->fragile == NULL)
            operator_begin_change(operator);
        if (cluster->profile.damage == DAMAGE_ROT)
            operator_rot(operator);
        else if (operator->job == JOB_NONE)
            operator_damage(operator);
    }
    if (operator->job != JOB_NONE)
        operator_next(operator, SIM_MS);
    else if (cluster->fragile != NULL && !cluster->damage_done)
        operator_next(operator, QUIET_TICK_NS);
    else
        operator_next(operator, 2 * cluster->profile.operator_ns);
}

/* --- life --- */

void
operator_create(struct cluster *cluster)
{
    struct sim_operator *operator= calloc(1, sizeof(*operator));

    sim_require(&cluster->world, operator!= NULL, "no memory");
    operator->cluster = cluster;
    cluster->operator= operator;
}

void
operator_destroy(struct cluster *cluster)
{
    sim_cancel(&cluster->world, &cluster->operator->event);
    free(cluster->operator);
    cluster->operator= NULL;
}

void
operator_start(struct cluster *cluster)
{
    operator_next(cluster->operator, 2 * cluster->profile.operator_ns);
}

void
operator_wind_down(struct cluster *cluster)
{
    cluster->operator->winding_down = true;
    if (!cluster->operator->asking)
        operator_next(cluster->operator, SIM_MS);
}

bool
operator_is_idle(const struct cluster *cluster)
{
    return cluster->operator->job == JOB_NONE;
}
