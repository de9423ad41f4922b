/* SPDX-License-Identifier: Apache-2.0 */
/* faults.c: what goes wrong, and when it ends.  See cluster.h. */
#include "tests/sim/cluster.h"

#define PAUSE_NS_MAX     (8 * SIM_S)
#define PARTITION_NS_MAX (8 * SIM_S)
#define SLOW_NS_MAX      (10 * SIM_S)
#define SLOW_LINK_NS_MAX (100 * SIM_MS)
#define SLOW_READ_NS_MIN (10 * SIM_MS)
#define SLOW_READ_NS_MAX (200 * SIM_MS)

static uint64_t
fault_random(struct cluster *cluster, uint64_t bound)
{
    return fake_rng_below(&cluster->fault_rng, bound);
}

static bool
fault_percent(struct cluster *cluster, uint32_t percent)
{
    return fake_rng_percent(&cluster->fault_rng, percent);
}

/* Mostly short, sometimes up to the whole. */
static uint64_t
fault_duration(struct cluster *cluster, uint64_t max_ns)
{
    uint64_t duration_ns = 1 + fault_random(cluster, max_ns);

    return fault_percent(cluster, 50) ? duration_ns / 20 + 1 : duration_ns;
}

static struct sim_process *
fault_process(struct cluster *cluster)
{
    uint64_t servers = cluster->server_count;
    uint64_t pick = fault_random(cluster, servers + cluster->profile.client_count + 1);

    if (pick < servers)
        return &cluster->servers[pick].process;
    if (pick < servers + cluster->profile.client_count)
        return &cluster->clients[pick - servers].process;
    return &cluster->meta.process;
}

static struct sim_server *
fault_server(struct cluster *cluster)
{
    return &cluster->servers[fault_random(cluster, cluster->server_count)];
}

static void
fault_kill_server(struct cluster *cluster)
{
    struct sim_server *server = fault_server(cluster);

    if (!server_may_fail(server))
        return;
    if (fault_percent(cluster, 70))
        server_kill_busy(server);
    else
        server_kill(server, fault_percent(cluster, 20));
}

static void
fault_kill_meta(struct cluster *cluster)
{
    if (cluster->meta.process.up)
        meta_kill(&cluster->meta, fault_percent(cluster, 20));
}

static void
fault_kill_client(struct cluster *cluster)
{
    struct sim_client *client =
        &cluster->clients[fault_random(cluster, cluster->profile.client_count)];

    if (!client->process.up)
        return;
    client_kill(client, fault_percent(cluster, 20));
    cluster->counters.client_kills++;
}

/* The lights go out: everything at once, apart from the admin. */
static void
fault_power_cut(struct cluster *cluster)
{
    bool clients_too = fault_percent(cluster, 50);

    cluster->counters.power_cuts++;
    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (server_may_fail(&cluster->servers[i]))
            server_kill(&cluster->servers[i], true);
    if (cluster->meta.process.up)
        meta_kill(&cluster->meta, true);
    for (uint32_t i = 0; i < cluster->profile.client_count && clients_too; i++)
        if (cluster->clients[i].process.up)
            client_kill(&cluster->clients[i], true);
}

static void
fault_pause(struct cluster *cluster)
{
    struct sim_process *process = fault_process(cluster);

    if (!process->up)
        return;
    sim_process_pause(process, fault_duration(cluster, PAUSE_NS_MAX));
    cluster->counters.pauses++;
}

/* One process is alone, or two don't hear each other, or only one of them. */
static void
fault_partition(struct cluster *cluster)
{
    struct sim_process *one = fault_process(cluster);
    struct sim_process *other = fault_process(cluster);
    uint64_t duration_ns = fault_duration(cluster, PARTITION_NS_MAX);

    if (one == other)
        return;
    cluster->counters.partitions++;
    if (fault_percent(cluster, 30)) {
        for (uint32_t i = 0; i < cluster->world.process_count; i++) {
            sim_net_block(&cluster->world, one, cluster->world.processes[i], duration_ns);
            sim_net_block(&cluster->world, cluster->world.processes[i], one, duration_ns);
        }
        return;
    }
    sim_net_block(&cluster->world, one, other, duration_ns);
    if (fault_percent(cluster, 70))
        sim_net_block(&cluster->world, other, one, duration_ns);
}

static void
fault_cut_link(struct cluster *cluster)
{
    struct sim_process *process = fault_process(cluster);

    if (process->up && sim_net_cut_one(process, fake_rng_next(&cluster->fault_rng)))
        cluster->counters.cuts++;
}

static void
fault_stop_server(struct cluster *cluster)
{
    struct sim_server *server = fault_server(cluster);

    if (server_may_fail(server) && server->process.paused_until_ns <= cluster->world.now_ns)
        server_stop(server);
}

/* A disk becomes bad in some way, or good again. */
static void
fault_disk(struct cluster *cluster)
{
    struct sim_server *server = fault_server(cluster);
    struct model_profile *profile = &server->disk.profile;

    if (!cluster->profile.disks_fail)
        return;
    cluster->counters.disk_faults++;
    switch (fault_random(cluster, 6)) {
    case 0:
        profile->full = true;
        break;
    case 1:
        profile->read_errors_per_million = 20000;
        break;
    case 2:
        profile->write_errors_per_million = 10000;
        break;
    case 3:
        profile->read_flips_per_million = 20000;
        break;
    default:
        server_heal_disk(server);
        break;
    }
}

/* A disk takes long for everything, until it is well again. */
static void
fault_slow_disk(struct cluster *cluster)
{
    struct sim_server *server = fault_server(cluster);
    struct model_profile *profile = &server->disk.profile;

    if (profile->read_ns_max >= SLOW_READ_NS_MIN) {
        server_heal_disk(server);
        return;
    }
    sim_trace(&cluster->world, &server->process, "its disk is slow");
    cluster->counters.slow_disks++;
    profile->read_ns_max = SLOW_READ_NS_MIN + fault_random(cluster, SLOW_READ_NS_MAX);
    profile->group_ns_max *= 1 + fault_random(cluster, 20);
}

/* All that goes from one to another takes longer. */
static void
fault_slow_link(struct cluster *cluster)
{
    struct sim_process *one = fault_process(cluster);
    struct sim_process *other = fault_process(cluster);

    if (one == other)
        return;
    cluster->counters.slow_links++;
    sim_net_slow(&cluster->world, one, other, 1 + fault_random(cluster, SLOW_LINK_NS_MAX),
                 fault_duration(cluster, SLOW_NS_MAX));
}

static void faults_next(struct cluster *cluster);

static void
fault_happens(struct sim_event *event)
{
    struct cluster *cluster = list_entry(event, struct cluster, fault_event);
    static const struct {
        uint32_t weight;
        void (*fn)(struct cluster *cluster);
        bool harmless; /* to servers, and to what is known of them */
    } kinds[] = {
        {22, fault_kill_server, false}, {10, fault_kill_meta, false},
        {14, fault_kill_client, true},  {2, fault_power_cut, false},
        {12, fault_pause, false},       {12, fault_partition, false},
        {20, fault_cut_link, true},     {4, fault_stop_server, false},
        {8, fault_disk, false},         {4, fault_slow_disk, false},
        {4, fault_slow_link, false},    {6, admin_scratch, true},
        {4, admin_resize, true},        {3, admin_scrub, true},
    };
    uint64_t total = 0;
    uint64_t pick;
    uint32_t i = 0;

    for (uint32_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
        total += kinds[k].weight;
    pick = fault_random(cluster, total);
    while (pick >= kinds[i].weight)
        pick -= kinds[i++].weight;
    if ((kinds[i].fn != admin_scratch || cluster->profile.scratch_volumes) &&
        (cluster->fragile == NULL || kinds[i].harmless))
        kinds[i].fn(cluster);
    faults_next(cluster);
}

static void
faults_next(struct cluster *cluster)
{
    sim_schedule(&cluster->world, &cluster->fault_event, NULL, fault_happens,
                 1 + fault_random(cluster, 2 * cluster->profile.fault_ns));
}

void
faults_start(struct cluster *cluster)
{
    if (cluster->profile.fault_ns > 0)
        faults_next(cluster);
    operator_start(cluster);
}

void
faults_stop(struct cluster *cluster)
{
    struct sim_world *world = &cluster->world;

    cluster->calm = true;
    sim_cancel(world, &cluster->fault_event);
    operator_wind_down(cluster);
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        sim_cancel(world, &cluster->servers[i].kill_event);
        cluster->servers[i].kill_armed = false;
        server_heal_disk(&cluster->servers[i]);
    }
    sim_net_unblock_all(world);
    world->net.flips_per_million = 0;
    for (uint32_t i = 0; i < world->process_count; i++)
        world->processes[i]->paused_until_ns = 0;
}
