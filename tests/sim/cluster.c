/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster.c: one run: what a seed makes of the cluster, then chaos, calm and verdict.  See
 * cluster.h.
 */
#include "tests/sim/cluster.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/watch.h"

#define SETUP_NS    (60 * SIM_S)
#define CALM_NS     (150 * SIM_S) /* in which everything that is under way must end */
#define ADOPT_NS    (75 * SIM_S)
#define SILENCE_NS  (15 * SIM_S)
#define VERDICT_NS  (90 * SIM_S)
#define RECOVERY_NS (300 * SIM_S)
#define HEAL_ROUNDS 4u
#define HEAL_NS     (5 * SIM_S)
#define EVENTS_MAX  30000000u /* more than any good run takes */

static uint64_t
pick(struct fake_rng *rng, uint64_t low, uint64_t high)
{
    return fake_rng_range(rng, low, high);
}

/* --- what a seed makes of it --- */

/* What an operator does, and what becomes of disks. */
static void
choose_changes(struct cluster_profile *profile, struct fake_rng *rng)
{
    uint64_t dice = pick(rng, 1, 100);

    profile->servers_come_and_go = fake_rng_percent(rng, 50);
    profile->rebalance = fake_rng_percent(rng, 50);
    profile->capacity_bytes = fake_rng_percent(rng, 50) ? 1ull << 36 : 64ull << 20;
    profile->operator_ns = pick(rng, 50, fake_rng_percent(rng, 50) ? 500 : 5000) * SIM_MS;
    if (dice <= 20 && profile->replicas > 1) {
        profile->damage = DAMAGE_ROT;
        profile->out_after_ns = 600 * SIM_S;
    } else if (dice <= 64 && profile->replicas == 3) {
        profile->damage = dice <= 42 ? DAMAGE_BACK : dice <= 54 ? DAMAGE_GONE : DAMAGE_LOSSES;
    }
}

static void
choose_profile(struct cluster_profile *profile, struct fake_rng *rng)
{
    *profile = (struct cluster_profile){
        .server_count = (uint32_t)pick(rng, 3, CLUSTER_SERVERS_FIRST_MAX),
        .client_count = (uint32_t)pick(rng, 1, CLUSTER_CLIENTS_MAX),
        .volume_count = (uint32_t)pick(rng, 1, 2),
        .replicas = fake_rng_percent(rng, 75) ? 3 : (uint32_t)pick(rng, 1, 2),
        .depth = (uint32_t)pick(rng, 1, CLIENT_OPS_MAX),
        .write_percent = (uint32_t)pick(rng, 20, 70),
        .zero_percent = (uint32_t)pick(rng, 0, 8),
        .flush_percent = (uint32_t)pick(rng, 0, 4),
        .large_percent = (uint32_t)pick(rng, 0, 3),
        .hot_percent = (uint32_t)pick(rng, 0, 90),
        .steal_percent = (uint32_t)pick(rng, 0, 50),
        .session_ops = (uint32_t)pick(rng, 20, 600),
        .think_ns = pick(rng, 0, 3) * SIM_MS,
        .request_timeout_ms = fake_rng_percent(rng, 70) ? 30000 : 3000,
        .ejection = fake_rng_percent(rng, 75),
        .eject_lost_ms = CLIENT_NEVER,
        .eject_silent_ms = CLIENT_NEVER,
        .eject_slow_ms = CLIENT_NEVER,
        .out_after_ns = pick(rng, 5, fake_rng_percent(rng, 50) ? 30 : 600) * SIM_S,
        .long_absence_percent = (uint32_t)pick(rng, 0, 20),
        .operations = pick(rng, 1500, 4000),
        .chaos_ns = 200 * SIM_S,
        .fault_ns = fake_rng_percent(rng, 8) ? 0 : pick(rng, 5, 800) * SIM_MS,
        .group_ns_max = pick(rng, 1, fake_rng_percent(rng, 30) ? 50 : 5) * 100 * SIM_US,
        .disks_fail = fake_rng_percent(rng, 40),
        .scratch_volumes = fake_rng_percent(rng, 40),
    };
    profile->min_write = profile->replicas == 1 ? 1 : 2;
    profile->hedge_min_ms = (uint32_t)pick(rng, 1, 12);
    choose_changes(profile, rng);
    if (!profile->ejection)
        return;
    profile->eject_lost_ms = (uint32_t)pick(rng, 50, 1000);
    profile->eject_silent_ms = (uint32_t)pick(rng, 1500, 5000);
    profile->eject_slow_ms = (uint32_t)pick(rng, 4000, 15000);
    if (fake_rng_percent(rng, 50))
        profile->request_timeout_ms = CLIENT_NEVER;
}

/* Servers by themselves, the admin, both, or nobody. */
static void
choose_scrubs(struct cluster_profile *profile, uint64_t seed)
{
    struct fake_rng rng;

    fake_rng_init(&rng, sim_seed_of(seed, 6));
    profile->scrubs = fake_rng_percent(&rng, 40);
    if (fake_rng_percent(&rng, 40))
        profile->scrub_period_ns = pick(&rng, 1, 20) * SIM_S;
}

static void
choose_network(struct sim_net_profile *net, struct fake_rng *rng)
{
    net->delay_min_ns = pick(rng, 5, 50) * SIM_US;
    net->delay_max_ns = net->delay_min_ns +
                        pick(rng, 10, fake_rng_percent(rng, 20) ? 5000 : 400) * SIM_US;
    net->tail_permille = (uint32_t)pick(rng, 0, 10);
    net->tail_ns = pick(rng, 1, 100) * SIM_MS;
    net->flips_per_million = fake_rng_percent(rng, 30) ? (uint32_t)pick(rng, 50, 1000) : 0;
    net->silent_percent = (uint32_t)pick(rng, 0, 30);
    net->split_percent = (uint32_t)pick(rng, 0, 30);
    net->buffer_bytes = pick(rng, 16, 512) << 10;
}

static void
choose_volume(struct cluster *cluster, uint32_t idx, struct fake_rng *rng)
{
    struct sim_volume *volume = &cluster->volumes[idx];

    (void)snprintf(volume->name, sizeof(volume->name), "volume%u", idx + 1);
    volume->segment_bytes = 1u << 20;
    volume->logical_block_bytes = fake_rng_percent(rng, 25) ? 512 : 4096;
    volume->stripe_width = fake_rng_percent(rng, 70) ? 1 : (uint32_t)pick(rng, 2, 3);
    volume->stripe_unit_bytes = 4096u << pick(rng, 0, 6);
    volume->size_bytes = pick(rng, 1, 4) << 20;
    if (fake_rng_percent(rng, 50))
        volume->size_bytes += pick(rng, 1, 255) * 4096;
    volume->size_bytes_asked = volume->size_bytes;
    oracle_init(&volume->oracle, &cluster->world, volume->name,
                volume->size_bytes / volume->logical_block_bytes);
}

static void
cluster_init(struct cluster *cluster, uint64_t seed, bool trace)
{
    struct fake_rng rng;

    memset(cluster, 0, sizeof(*cluster));
    sim_world_init(&cluster->world, seed);
    cluster->world.trace = trace;
    fake_rng_init(&rng, sim_seed_of(seed, 2));
    fake_rng_init(&cluster->rng, sim_seed_of(seed, 3));
    fake_rng_init(&cluster->fault_rng, sim_seed_of(seed, 4));
    choose_profile(&cluster->profile, &rng);
    choose_scrubs(&cluster->profile, seed);
    choose_network(&cluster->world.net, &rng);
    memset(cluster->cluster_id, 0xc1, sizeof(cluster->cluster_id));
    meta_init(cluster);
    for (uint32_t i = 0; i < cluster->profile.server_count; i++)
        server_init(cluster, i);
    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        client_init(cluster, i);
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++)
        choose_volume(cluster, i, &rng);
    watch_create(cluster);
}

static void
cluster_fini(struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        client_fini(&cluster->clients[i]);
    operator_destroy(cluster);
    admin_destroy(cluster);
    processes_fini(cluster);
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++) {
        oracle_fini(&cluster->volumes[i].oracle);
        free(cluster->volumes[i].last_values);
    }
    watch_destroy(cluster);
    sim_world_fini(&cluster->world);
}

/* --- the report --- */

const char *const cluster_report_names[CLUSTER_REPORT_COUNT] = {
#define X(name, minimum, expression) #name,
    CLUSTER_REPORT(X)
#undef X
};

const uint64_t cluster_report_minimums[CLUSTER_REPORT_COUNT] = {
#define X(name, minimum, expression) (minimum),
    CLUSTER_REPORT(X)
#undef X
};

static uint64_t
oracle_sum(const struct cluster *cluster, size_t member_offset)
{
    uint64_t sum = 0;
    uint64_t value;

    for (uint32_t i = 0; i < cluster->profile.volume_count; i++) {
        memcpy(&value, (const char *)&cluster->volumes[i].oracle + member_offset, sizeof(value));
        sum += value;
    }
    return sum;
}

static uint64_t
disk_sum(const struct cluster *cluster, size_t member_offset)
{
    uint64_t sum = 0;
    uint64_t value;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        memcpy(&value, (const char *)&cluster->servers[i].disk.counters + member_offset,
               sizeof(value));
        sum += value;
    }
    return sum;
}

static void
report_fill(const struct cluster *cluster, struct cluster_report *ret_report)
{
    const struct cluster_counters *c = &cluster->counters;
    const struct sim_net_stats *n = &cluster->world.net_stats;
    uint32_t i = 0;

#define ORACLE(member)               oracle_sum(cluster, offsetof(struct oracle, member))
#define DISK(member)                 disk_sum(cluster, offsetof(struct model_counters, member))
#define X(name, minimum, expression) ret_report->values[i++] = (expression);
    CLUSTER_REPORT(X)
#undef X
#undef ORACLE
#undef DISK
    memcpy(ret_report->errors_by_code, c->errors_by_code, sizeof(ret_report->errors_by_code));
    ret_report->history_hash = cluster->world.history_hash;
}

/* --- running --- */

static void
cluster_step(struct cluster *cluster, uint64_t limit_ns)
{
    (void)sim_world_step(&cluster->world, limit_ns);
    watch_step(cluster);
    sim_require(&cluster->world, cluster->world.event_count < EVENTS_MAX,
                "%u events and no end: something goes round in circles", EVENTS_MAX);
}

static uint64_t
cluster_operations(const struct cluster *cluster)
{
    return cluster->counters.acknowledged + cluster->counters.failed;
}

static bool
everybody_is_up(const struct cluster *cluster)
{
    bool up = cluster->meta.process.up;

    for (uint32_t i = 0; i < cluster->server_count; i++)
        up = up && (cluster->servers[i].gone ||
                    (cluster->servers[i].process.up && !cluster->servers[i].stopping));
    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        up = up && cluster->clients[i].process.up;
    return up;
}

static bool
everybody_is_idle(const struct cluster *cluster)
{
    bool idle = admin_is_idle(cluster) && operator_is_idle(cluster);

    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        idle = idle && client_is_idle(&cluster->clients[i]);
    return idle;
}

/* What has not ended, for the message of a run that doesn't get on. */
static void
print_unfinished(const struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->profile.client_count; i++) {
        const struct sim_client *client = &cluster->clients[i];
        struct dlblk_volume_stats stats = {0};

        if (client_is_idle(client))
            continue;
        if (client->volume != NULL)
            client_volume_get_stats(client->volume, &stats);
        (void)fprintf(stderr, "  %s: up %d, state %d for %.3f s, %u requests, %s: blocked by: %s\n",
                      client->process.name, client->process.up, (int)client->state,
                      (double)(cluster->world.now_ns - client->state_since_ns) / 1e9,
                      client->active_ops, client->target == NULL ? "-" : client->target->name,
                      stats.blocked[0] == '\0' ? "nothing" : stats.blocked);
        for (uint32_t k = 0; k < CLIENT_OPS_MAX; k++)
            if (client->ops[k].active)
                (void)fprintf(stderr,
                              "    request %" PRIu64 " op %d blocks %" PRIu64 " + %" PRIu64
                              " for %.3f s\n",
                              client->ops[k].number, (int)client->ops[k].request.op,
                              client->ops[k].first_block, client->ops[k].block_count,
                              (double)(cluster->world.now_ns - client->ops[k].submitted_ns) / 1e9);
    }
    if (!admin_is_idle(cluster))
        (void)fprintf(stderr, "  admin is busy\n");
    if (!operator_is_idle(cluster))
        (void)fprintf(stderr, "  operator is busy\n");
    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (!cluster->servers[i].gone &&
            (!cluster->servers[i].process.up || cluster->servers[i].stopping))
            (void)fprintf(stderr, "  %s: up %d, stopping %d\n", cluster->servers[i].process.name,
                          cluster->servers[i].process.up, cluster->servers[i].stopping);
}

static void
cluster_wait(struct cluster *cluster, bool (*done)(const struct cluster *cluster),
             uint64_t limit_ns, const char *what)
{
    uint64_t end_ns = cluster->world.now_ns + limit_ns;

    while (!done(cluster)) {
        cluster_step(cluster, end_ns);
        if (cluster->world.now_ns < end_ns)
            continue;
        print_unfinished(cluster);
        map_print_unfinished(cluster);
        sim_fail(&cluster->world, "%s: not within %.0f s", what, (double)limit_ns / 1e9);
    }
}

static void
cluster_chaos(struct cluster *cluster)
{
    uint64_t end_ns = cluster->world.now_ns + cluster->profile.chaos_ns;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        client_start(&cluster->clients[i]);
    faults_start(cluster);
    while (cluster_operations(cluster) < cluster->profile.operations &&
           cluster->world.now_ns < end_ns)
        cluster_step(cluster, end_ns);
}

static bool
calm_is_reached(const struct cluster *cluster)
{
    return everybody_is_up(cluster) && everybody_is_idle(cluster);
}

static bool
volume_is_in_use(const struct cluster *cluster, const struct sim_volume *volume)
{
    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        if (!client_is_idle(&cluster->clients[i]) && cluster->clients[i].target == volume)
            return true;
    return false;
}

/*
 * Somebody attaches the volumes that nobody uses: a dead owner's can hold up others.  A server
 * whose disk went back waits for him (the metadata service says so, and what to do), and volumes
 * for it.
 */
static void
cluster_adopt(struct cluster *cluster)
{
    uint32_t client = 0;

    for (uint32_t i = 0; i < cluster->profile.volume_count; i++) {
        if (volume_is_in_use(cluster, &cluster->volumes[i]))
            continue;
        while (client < cluster->profile.client_count && !client_is_idle(&cluster->clients[client]))
            client++;
        if (client == cluster->profile.client_count)
            return;
        sim_trace(&cluster->world, NULL, "%s adopts %s", cluster->clients[client].process.name,
                  cluster->volumes[i].name);
        client_sweep(&cluster->clients[client], &cluster->volumes[i], 0);
    }
}

static void
cluster_calm(struct cluster *cluster)
{
    uint64_t adopt_ns = cluster->world.now_ns + ADOPT_NS, silence_end_ns;

    sim_trace(&cluster->world, NULL, "calm begins");
    faults_stop(cluster);
    for (uint32_t i = 0; i < cluster->profile.client_count; i++) {
        if (cluster->clients[i].process.up)
            client_wind_down(&cluster->clients[i]);
        else
            cluster->clients[i].stop_wanted = true;
    }
    while (!calm_is_reached(cluster) && cluster->world.now_ns < adopt_ns)
        cluster_step(cluster, adopt_ns);
    if (!calm_is_reached(cluster))
        cluster_adopt(cluster);
    cluster_wait(cluster, calm_is_reached, CALM_NS - ADOPT_NS, "calm");
    /* Until links that broke without a word are noticed: some requests give up earlier. */
    silence_end_ns = cluster->world.now_ns + SILENCE_NS;
    while (cluster->world.now_ns < silence_end_ns)
        cluster_step(cluster, silence_end_ns);
}

static void
cluster_sweep(struct cluster *cluster, uint32_t volume_idx, uint32_t flags)
{
    struct sim_client *client = &cluster->clients[volume_idx % cluster->profile.client_count];

    client_sweep(client, &cluster->volumes[volume_idx], flags);
    cluster_wait(cluster, everybody_is_idle, VERDICT_NS,
                 flags == 0 ? "reading a volume in the end" : "reading a copy in the end");
}

static uint64_t
sectors_repaired(const struct cluster *cluster)
{
    struct chunkserver_core_stats stats;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        if (!cluster->servers[i].process.up)
            continue;
        chunkserver_core_get_stats(cluster->servers[i].core, &stats);
        sum += stats.sectors_repaired;
    }
    return sum;
}

static void
cluster_scrub(struct cluster *cluster, uint32_t volume_idx)
{
    admin_scrub_volume(cluster, &cluster->volumes[volume_idx]);
    cluster_wait(cluster, admin_is_idle, VERDICT_NS, "a scrub in the end");
}

static void
cluster_read_copies(struct cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++)
        for (uint32_t slot = 0; slot < cluster->profile.replicas; slot++)
            cluster_sweep(cluster, i, DLBLK_OPEN_READ_ONLY | DLBLK_OPEN_READ_SLOT(slot));
}

/*
 * Who reads a copy finds its bad sectors, and they are repaired: clients, or a scrub.  Where there
 * are many that takes several readings.
 */
static void
cluster_heal(struct cluster *cluster)
{
    uint64_t repaired = sectors_repaired(cluster);
    uint32_t bad = map_count_bad(cluster);

    for (uint32_t in_vain = 0; !map_is_good(cluster); in_vain++) {
        uint64_t end_ns = cluster->world.now_ns + HEAL_NS, before = sectors_repaired(cluster);

        sim_require(&cluster->world, in_vain < HEAL_ROUNDS,
                    "bad sectors are not repaired by %u readings", in_vain);
        cluster->healing = true;
        for (uint32_t i = 0; i < cluster->profile.volume_count && cluster->profile.scrubs; i++)
            cluster_scrub(cluster, i);
        if (!cluster->profile.scrubs)
            cluster_read_copies(cluster);
        cluster->healing = false;
        while (cluster->world.now_ns < end_ns)
            cluster_step(cluster, end_ns);
        if (sectors_repaired(cluster) > before)
            in_vain = 0;
    }
    sim_require(&cluster->world, sectors_repaired(cluster) - repaired >= bad,
                "%u sectors were bad, and only %" PRIu64 " were repaired", bad,
                sectors_repaired(cluster) - repaired);
}

/* A chunk that rebalancing moves meanwhile is read by its PULL, not by the scrub. */
static void
cluster_scrub_all(struct cluster *cluster, uint32_t volume_idx)
{
    uint64_t epochs;

    do {
        cluster_wait(cluster, map_is_whole, RECOVERY_NS, "all slots in-sync");
        epochs = map_config_epochs(cluster);
        cluster_scrub(cluster, volume_idx);
    } while (map_config_epochs(cluster) != epochs);
}

static void
cluster_verdict(struct cluster *cluster)
{
    sim_trace(&cluster->world, NULL, "verdict begins");
    for (uint32_t i = 0; i < cluster->profile.volume_count; i++)
        cluster_sweep(cluster, i, 0);
    cluster_wait(cluster, map_is_whole, RECOVERY_NS, "all slots in-sync");
    cluster_heal(cluster);
    verdict_compare_copies(cluster);
    cluster_read_copies(cluster);
    for (uint32_t i = 0; i < cluster->profile.volume_count && cluster->profile.scrubs; i++) {
        struct sim_scrub scrub;

        cluster_scrub_all(cluster, i);
        scrub = admin_scrub_result(cluster);
        verdict_check_scrub(cluster, &cluster->volumes[i], &scrub);
    }
    cluster_wait(cluster, verdict_deleted_are_gone, VERDICT_NS, "the chunks of deleted volumes");
}

void
cluster_run(struct cluster *cluster, uint64_t seed, bool trace, struct cluster_report *ret_report)
{
    cluster_init(cluster, seed, trace);
    meta_start(&cluster->meta);
    for (uint32_t i = 0; i < cluster->profile.server_count; i++)
        server_start(&cluster->servers[i]);
    admin_create(cluster);
    operator_create(cluster);
    cluster_wait(cluster, admin_is_ready, SETUP_NS, "creating volumes");
    cluster_chaos(cluster);
    cluster_calm(cluster);
    cluster_verdict(cluster);
    report_fill(cluster, ret_report);
    cluster_fini(cluster);
}
