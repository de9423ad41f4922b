/* SPDX-License-Identifier: Apache-2.0 */
/* processes.c: the lives of the metadata service and of the chunkservers.  See cluster.h. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "dlblk/error.h"
#include "tests/sim/cluster.h"

#define META_RESTART_NS_MAX   (3 * SIM_S)
#define SERVER_RESTART_NS_MAX (8 * SIM_S)
#define LONG_ABSENCE_NS_MAX   (60 * SIM_S)
#define WRITE_BUFFER_BYTES    ((size_t)3 << 20) /* small: links are paused now and then */
#define READ_BUFFER_BYTES     ((size_t)3 << 20)
#define OPERATIONS_MAX        24u
#define BUSY_NS_MAX           (200 * SIM_MS) /* how long a kill waits for a good moment */
#define FIRST_UUID            0x10u

void
restart_later(struct cluster *cluster, struct sim_event *event, sim_event_fn fn, uint64_t max_ns)
{
    uint64_t delay_ns = cluster->calm ? 0 : 1 + fake_rng_below(&cluster->fault_rng, max_ns);

    /* Most come back soon: what is lost meanwhile is more than what is lost by a long absence. */
    if (fake_rng_percent(&cluster->fault_rng, 50))
        delay_ns /= 50;
    sim_schedule(&cluster->world, event, NULL, fn, delay_ns);
}

/* --- the metadata service --- */

static void
meta_on_log(void *context, enum meta_log_level level, const char *component, const char *text)
{
    struct sim_meta *meta = context;

    (void)level;
    sim_trace(meta->process.world, &meta->process, "says: %s: %s", component, text);
}

static void
meta_on_fatal(void *context, int err, const char *text, const char *hint)
{
    struct sim_meta *meta = context;

    sim_fail(meta->process.world, "the metadata service gives up: %s: %s (%s)", dl_err_name(err),
             text, hint == NULL ? "" : hint);
}

void
meta_init(struct cluster *cluster)
{
    struct sim_meta *meta = &cluster->meta;
    struct store_batch batch = {0};

    sim_process_init(&meta->process, &cluster->world, "meta");
    meta->cluster = cluster;
    meta->db = store_memory_db_create();
    meta_cluster_init_batch(&batch, cluster->cluster_id, 1700000000000u);
    for (uint32_t i = 0; i < batch.count; i++)
        store_memory_db_put(meta->db, batch.edits[i].key, batch.edits[i].value);
    store_batch_fini(&batch);
}

void
meta_start(struct sim_meta *meta)
{
    struct store_memory_options store_options = {
        .delay_ns_min = 20 * SIM_US,
        .delay_ns_max = 500 * SIM_US,
    };
    struct meta_options options = {
        .out_after_ns = meta->cluster->profile.out_after_ns,
        .rebalance = meta->cluster->profile.rebalance,
        .on_fatal = meta_on_fatal,
        .on_log = meta_on_log,
        .context = meta,
    };
    struct sim_process *before;

    sim_process_start(&meta->process);
    before = sim_enter(&meta->process);
    meta->store = store_memory_open(meta->db, &meta->process.env, &store_options);
    meta->core = meta_core_create(&meta->process.env, meta->store, &options);
    sim_require(meta->process.world, meta->core != NULL, "meta_core_create");
    sim_process_listen(&meta->process, &meta_link_events, meta->core);
    sim_leave(&meta->process, before);
}

static void
meta_on_restart(struct sim_event *event)
{
    meta_start(list_entry(event, struct sim_meta, restart_event));
}

static void
meta_down(struct sim_meta *meta, bool silent)
{
    struct sim_process *before = sim_enter(&meta->process);

    store_memory_crash(meta->store, fake_rng_next(&meta->cluster->fault_rng));
    meta_core_destroy(meta->core);
    sim_leave(&meta->process, before);
    sim_process_kill(&meta->process, silent);
    meta->store = NULL;
    meta->core = NULL;
}

void
meta_kill(struct sim_meta *meta, bool silent)
{
    meta_down(meta, silent);
    meta->cluster->counters.meta_kills++;
    restart_later(meta->cluster, &meta->restart_event, meta_on_restart, META_RESTART_NS_MAX);
}

/* --- chunkservers --- */

static void server_on_group(void *context);

static void
server_init_disk(struct sim_server *server, uint64_t stream)
{
    const struct cluster *cluster = server->cluster;

    memset(server->uuid, (int)stream, sizeof(server->uuid));
    model_disk_init(&server->disk, sim_seed_of(cluster->world.seed, 200 + stream));
    server->disk.on_group = server_on_group;
    server->disk.group_context = server;
    server->disk.capacity_bytes = cluster->profile.capacity_bytes;
    server->disk.slowness = cluster->slowness;
    server_heal_disk(server);
}

void
server_heal_disk(struct sim_server *server)
{
    const struct cluster_profile *profile = &server->cluster->profile;

    server->disk.profile = (struct model_profile){
        .read_ns_min = 20 * SIM_US,
        .read_ns_max = 200 * SIM_US,
        .group_ns_min = 30 * SIM_US,
        .group_ns_max = profile->group_ns_max,
        .large_ns_max = 3 * profile->group_ns_max,
    };
}

void
server_init(struct cluster *cluster, uint32_t idx)
{
    struct sim_server *server = &cluster->servers[idx];
    char name[16];

    dl_assert(idx == cluster->server_count);
    cluster->server_count++;
    (void)snprintf(name, sizeof(name), "server%u", idx + 1);
    sim_process_init(&server->process, &cluster->world, name);
    server->cluster = cluster;
    (void)snprintf(server->host, sizeof(server->host), "%s", name);
    server_init_disk(server, FIRST_UUID + idx);
}

struct sim_server *
server_add(struct cluster *cluster)
{
    struct sim_server *server = &cluster->servers[cluster->server_count];

    if (cluster->server_count == CLUSTER_SERVERS_MAX)
        return NULL;
    server_init(cluster, cluster->server_count);
    server_start(server);
    return server;
}

void
server_start(struct sim_server *server)
{
    struct cluster *cluster = server->cluster;
    struct chunkserver_options options = {
        .metas = {{.host = "meta", .port = 1}},
        .meta_count = 1,
        .operations_max = OPERATIONS_MAX,
        .write_buffer_bytes = WRITE_BUFFER_BYTES,
        .read_buffer_bytes = READ_BUFFER_BYTES,
        .scrub_period_ns = cluster->profile.scrub_period_ns,
    };
    char address[32];
    struct sim_process *before;
    int err;

    operator_server_starts(server);
    sim_process_start(&server->process);
    server->stopping = false;
    before = sim_enter(&server->process);
    server->store = model_store_open(&server->disk, &server->process.env);
    (void)snprintf(address, sizeof(address), "%s:1", server->process.name);
    memcpy(options.cluster_id, cluster->cluster_id, sizeof(options.cluster_id));
    memcpy(options.server_uuid, server->uuid, sizeof(options.server_uuid));
    memset(options.instance, (int)server->process.life, sizeof(options.instance));
    options.start_count = server->disk.start_count;
    options.journal_position = server->disk.journal_position;
    options.advertise = address;
    options.host = server->host;
    err = chunkserver_core_create(&server->core, &server->process.env, server->store, &options);
    sim_require(&cluster->world, err == 0, "chunkserver_core_create: %s", dl_err_str(err));
    sim_process_listen(&server->process, chunkserver_core_events(), server->core);
    sim_leave(&server->process, before);
}

/* Nobody here speaks anything but the protocol. */
static void
server_check_peace(const struct sim_server *server)
{
    struct cluster_counters *counters = &server->cluster->counters;
    struct chunkserver_core_stats stats;

    chunkserver_core_get_stats(server->core, &stats);
    counters->sectors_bad += stats.sectors_bad;
    counters->sectors_repaired += stats.sectors_repaired;
    counters->sectors_scrubbed += stats.sectors_scrubbed;
    counters->disks_scrubbed += stats.scrubs;
    sim_require(&server->cluster->world, stats.mismatches == 0,
                "%s says that copies differ in %" PRIu64 " sectors", server->process.name,
                stats.mismatches);
    sim_require(&server->cluster->world, stats.violations == 0,
                "%s closed %lu links because of what they sent", server->process.name,
                stats.violations);
}

static void
server_on_restart(struct sim_event *event)
{
    server_start(list_entry(event, struct sim_server, restart_event));
}

/* What is done to its disk between two lives. */
static void
server_take_damage(struct sim_server *server)
{
    enum cluster_damage damage = server->damage_due;

    server->damage_due = DAMAGE_NONE;
    if (damage == DAMAGE_NONE)
        return;
    sim_trace(&server->cluster->world, &server->process, "its disk: %s",
              damage == DAMAGE_BACK ? "an older copy" : "what its journal had is lost");
    model_image_put(&server->disk, server->image, damage == DAMAGE_LOSSES);
    server->disk.damaged = damage == DAMAGE_LOSSES;
}

static void
server_restart_later(struct sim_server *server)
{
    if (server->retiring || server->gone) {
        server->gone = true;
        return;
    }
    server_take_damage(server);
    bool away = fake_rng_percent(&server->cluster->fault_rng,
                                 server->cluster->profile.long_absence_percent);

    restart_later(server->cluster, &server->restart_event, server_on_restart,
                  away ? LONG_ABSENCE_NS_MAX : SERVER_RESTART_NS_MAX);
}

bool
server_may_fail(const struct sim_server *server)
{
    return server->process.up && !server->spared && server->cluster->fragile == NULL;
}

void
server_kill(struct sim_server *server, bool silent)
{
    sim_process_kill(&server->process, silent);
    sim_cancel(&server->cluster->world, &server->restart_event);
    sim_cancel(&server->cluster->world, &server->kill_event);
    server->kill_armed = false;
    server_check_peace(server);
    model_store_crash(server->store);
    chunkserver_core_destroy(server->core);
    server->store = NULL;
    server->core = NULL;
    server->cluster->counters.server_kills++;
    server_restart_later(server);
}

void
server_lose(struct sim_server *server)
{
    struct model_counters counters;

    server->retiring = true;
    server->drained = false;
    if (server->process.up)
        server_kill(server, fake_rng_percent(&server->cluster->fault_rng, 30));
    sim_cancel(&server->cluster->world, &server->restart_event);
    server->gone = true;
    counters = server->disk.counters;
    model_disk_fini(&server->disk);
    server_init_disk(server, FIRST_UUID + CLUSTER_SERVERS_MAX + (server->uuid[0] - FIRST_UUID));
    server->disk.counters = counters;
}

void
server_replace(struct sim_server *server)
{
    dl_assert(server->gone);
    server->gone = false;
    server->retiring = false;
    server_start(server);
}

static void
server_on_kill(struct sim_event *event)
{
    struct sim_server *server = list_entry(event, struct sim_server, kill_event);

    if (server->process.up)
        server_kill(server, fake_rng_percent(&server->cluster->fault_rng, 20));
}

static void
server_on_group(void *context)
{
    struct sim_server *server = context;

    if (!server->kill_armed)
        return;
    server->kill_armed = false;
    sim_schedule(
        &server->cluster->world, &server->kill_event, NULL, server_on_kill,
        fake_rng_below(&server->cluster->fault_rng, server->disk.profile.group_ns_max * 3 / 2));
}

void
server_kill_busy(struct sim_server *server)
{
    server->kill_armed = true;
    sim_schedule(&server->cluster->world, &server->kill_event, NULL, server_on_kill, BUSY_NS_MAX);
}

/* The process has ended by itself. */
static void
server_on_exit(struct sim_event *event)
{
    struct sim_server *server = list_entry(event, struct sim_server, restart_event);

    if (!server->process.up)
        return;
    sim_process_kill(&server->process, false);
    sim_cancel(&server->cluster->world, &server->kill_event);
    server->kill_armed = false;
    server_check_peace(server);
    chunkserver_core_destroy(server->core);
    model_store_destroy(server->store);
    server->store = NULL;
    server->core = NULL;
    server->cluster->counters.server_stops++;
    server_restart_later(server);
}

static void
server_on_stopped(void *context, int err)
{
    struct sim_server *server = context;

    sim_require(&server->cluster->world, err == 0, "%s: stop: %s", server->process.name,
                dl_err_str(err));
    sim_schedule(&server->cluster->world, &server->restart_event, NULL, server_on_exit, 0);
}

void
server_stop(struct sim_server *server)
{
    struct sim_process *before;

    if (server->stopping)
        return;
    sim_trace(&server->cluster->world, &server->process, "is asked to stop");
    server->stopping = true;
    before = sim_enter(&server->process);
    server->process.listen_events = NULL;
    chunkserver_core_stop(server->core, server_on_stopped, server);
    sim_leave(&server->process, before);
}

void
processes_fini(struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct sim_server *server = &cluster->servers[i];

        model_image_free(server->image);
        if (server->process.up) {
            sim_process_kill(&server->process, true);
            server_check_peace(server);
            model_store_crash(server->store);
            chunkserver_core_destroy(server->core);
        }
        model_disk_fini(&server->disk);
        sim_process_fini(&server->process);
    }
    if (cluster->meta.process.up)
        meta_down(&cluster->meta, true);
    sim_process_fini(&cluster->meta.process);
    store_memory_db_destroy(cluster->meta.db);
}
