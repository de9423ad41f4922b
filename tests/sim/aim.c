/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aim.c: faults at the moments that count.  See watch.h.
 *
 * faults.c strikes at random times; what takes a millisecond (a slot being promoted, a rewrite of a
 * takeover) is seldom hit.  Here a frame is the moment: of the kinds in the table some are chosen
 * by the seed, and now and then, when one leaves or arrives, something happens to those who speak:
 * one of them dies, their links break, one does not hear the other, or somebody else, for a while;
 * or of all that somebody says only this frame arrives.  For how long is drawn from microseconds to
 * seconds, so that whatever races with the frame wins.
 */
#include <stdlib.h>
#include <string.h>

#include "proto/data.h"
#include "tests/sim/watch.h"

#define AIM_EVENTS    16u
#define AIM_STRIKES   120u /* in a run */
#define AIM_PAUSE_NS  (3 * SIM_MS)
#define AIM_SOON_NS   (2 * SIM_MS)
#define AIM_AFTER_NS  (20 * SIM_MS)
#define AIM_SHORT_NS  (50 * SIM_MS)
#define AIM_MEDIUM_NS (1000 * SIM_MS)
#define AIM_LONG_NS   (6 * SIM_S)
#define AIM_MILLION   1000000u

enum aim_writes { ANY_WRITE, REWRITE /* of a takeover */, TO_RECOVERING };

/* A kind of moment: how likely it is to be struck, at most. */
struct aim_kind {
    uint16_t opcode;
    bool reply, arrives;
    enum aim_writes writes;
    uint32_t per_million_max;
};

static const struct aim_kind aim_kinds[] = {
    {OP_SLOT_TELL, false, false, ANY_WRITE, 300000},
    {OP_SLOT_TELL, false, true, ANY_WRITE, 200000},
    {OP_SLOT_TELL, true, false, ANY_WRITE, 100000},
    {OP_MAP_CHANGED, false, false, ANY_WRITE, 300000},
    {OP_FENCE, false, false, ANY_WRITE, 200000},
    {OP_FENCE, true, false, ANY_WRITE, 100000},
    {OP_FENCE_STATUS, true, false, ANY_WRITE, 50000},
    {OP_PENDING, false, true, ANY_WRITE, 200000},
    {OP_ATTACH, true, false, ANY_WRITE, 100000},
    {OP_EJECT, false, true, ANY_WRITE, 200000},
    {OP_EJECT, true, false, ANY_WRITE, 200000},
    {OP_RECOVERY_REPORT, false, true, ANY_WRITE, 200000},
    {OP_PULL, false, true, ANY_WRITE, 50000},
    {OP_PULL, true, false, ANY_WRITE, 50000},
    {OP_CHUNK_DELETE, false, false, ANY_WRITE, 300000},
    {OP_WRITE, false, false, ANY_WRITE, 1000},
    {OP_WRITE, true, false, ANY_WRITE, 1000},
    {OP_WRITE, false, false, REWRITE, 100000},
    {OP_WRITE, false, true, REWRITE, 50000},
    {OP_WRITE, false, false, TO_RECOVERING, 100000},
    {OP_WRITE, false, true, TO_RECOVERING, 50000},
    {OP_STABLE, false, false, ANY_WRITE, 5000},
    {OP_READ, false, false, ANY_WRITE, 1000},
};
#define AIM_KINDS (sizeof(aim_kinds) / sizeof(aim_kinds[0]))

enum aim_deed { DEED_KILL, DEED_CUT };

struct aim_event {
    struct sim_event event;
    struct aim *aim;
    enum aim_deed deed;
    struct sim_process *process;
    uint32_t life; /* of the process: whoever came back is another one */
    struct sim_process *other;
};

struct aim {
    struct cluster *cluster;
    struct plots *plots;
    struct fake_rng rng;
    uint32_t per_million[AIM_KINDS]; /* 0: not this one */
    uint32_t strikes;
    uint64_t next_ns;
    bool over; /* the calm has begun */
    struct aim_event events[AIM_EVENTS];
};

static uint64_t
aim_random(struct aim *aim, uint64_t bound)
{
    return fake_rng_below(&aim->rng, bound);
}

static uint64_t
aim_duration_ns(struct aim *aim)
{
    uint64_t dice = aim_random(aim, 100);

    return 1 + aim_random(aim, dice < 50 ? AIM_SHORT_NS : dice < 80 ? AIM_MEDIUM_NS : AIM_LONG_NS);
}

/* --- what is done --- */

/* A disk that would lose all by it is left alone. */
static bool
aim_is_spared(const struct aim *aim, const struct sim_process *process)
{
    const struct cluster *cluster = aim->cluster;

    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (&cluster->servers[i].process == process)
            return cluster->servers[i].spared || cluster->fragile != NULL;
    return false;
}

static void
aim_kill(struct aim *aim, struct sim_process *process)
{
    struct cluster *cluster = aim->cluster;
    bool silent = aim_random(aim, 100) < 20;

    if (process == &cluster->meta.process) {
        meta_kill(&cluster->meta, silent);
        return;
    }
    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (process == &cluster->servers[i].process)
            server_kill(&cluster->servers[i], silent);
    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        if (process == &cluster->clients[i].process) {
            client_kill(&cluster->clients[i], silent);
            cluster->counters.client_kills++;
        }
}

static void
aim_on_event(struct sim_event *event)
{
    struct aim_event *later = list_entry(event, struct aim_event, event);
    struct aim *aim = later->aim;

    if (!later->process->up || later->process->life != later->life || aim->cluster->calm ||
        aim_is_spared(aim, later->process))
        return;
    if (later->deed == DEED_KILL)
        aim_kill(aim, later->process);
    else
        sim_net_cut_between(later->process, later->other);
}

/* Not in the middle of what runs now. */
static void
aim_later(struct aim *aim, enum aim_deed deed, struct sim_process *process,
          struct sim_process *other, uint64_t ns_max)
{
    for (uint32_t i = 0; i < AIM_EVENTS; i++) {
        struct aim_event *later = &aim->events[i];

        if (later->event.heap_idx != 0)
            continue;
        *later = (struct aim_event){
            .aim = aim,
            .deed = deed,
            .process = process,
            .life = process->life,
            .other = other,
        };
        sim_schedule(&aim->cluster->world, &later->event, NULL, aim_on_event,
                     aim_random(aim, 3) == 0 ? 0 : aim_random(aim, ns_max));
        return;
    }
}

static struct sim_process *
aim_somebody(struct aim *aim)
{
    struct sim_world *world = &aim->cluster->world;
    struct sim_process *somebody = world->processes[aim_random(aim, world->process_count)];

    return aim_is_spared(aim, somebody) ? &aim->cluster->meta.process : somebody;
}

static struct sim_process *
aim_server(struct aim *aim)
{
    struct cluster *cluster = aim->cluster;

    return &cluster->servers[aim_random(aim, cluster->server_count)].process;
}

static void
aim_kill_soon(struct aim *aim, struct sim_process *process, uint64_t ns_max)
{
    /* The admin is never killed. */
    if (process->up && strcmp(process->name, "admin") != 0)
        aim_later(aim, DEED_KILL, process, NULL, ns_max);
}

/* Of what is said just now only this arrives, for a while; or it is the last that is heard. */
static void
aim_only_one_hears(struct aim *aim, struct sim_process *from, struct sim_process *to)
{
    struct sim_world *world = &aim->cluster->world;
    uint64_t duration_ns = aim_duration_ns(aim);
    uint64_t dice = aim_random(aim, 4);

    for (uint32_t i = 0; i < world->process_count; i++)
        if (world->processes[i] != to && world->processes[i] != &aim->cluster->meta.process)
            sim_net_block(world, from, world->processes[i], duration_ns);
    if (dice == 0)
        aim_kill_soon(aim, from, AIM_SOON_NS);
    else if (dice == 1)
        aim_kill_soon(aim, to, AIM_AFTER_NS);
    else if (dice == 2)
        aim_kill_soon(aim, aim_server(aim), AIM_AFTER_NS);
}

static void
aim_strike(struct aim *aim, struct sim_process *from, struct sim_process *to)
{
    struct sim_world *world = &aim->cluster->world;
    struct sim_process *one = aim_random(aim, 2) == 0 ? from : to;
    struct sim_process *third = aim_somebody(aim);

    switch (aim_random(aim, 13)) {
    case 0:
    case 1:
        sim_net_block(world, from, to, aim_duration_ns(aim));
        return;
    case 2:
        sim_net_block(world, to, from, aim_duration_ns(aim));
        return;
    case 3:
        aim_later(aim, DEED_CUT, from, to, AIM_SOON_NS);
        return;
    case 4:
        aim_kill_soon(aim, one, AIM_SOON_NS);
        return;
    case 5:
        aim_kill_soon(aim, third, AIM_AFTER_NS);
        return;
    case 6:
        sim_process_pause(one, aim_duration_ns(aim));
        return;
    case 7:
        sim_net_block(world, one, third, aim_duration_ns(aim));
        return;
    case 8:
        sim_net_block(world, third, one, aim_duration_ns(aim));
        sim_net_block(world, one, third, aim_duration_ns(aim));
        return;
    default:
        aim_only_one_hears(aim, from, to);
        return;
    }
}

/* --- when --- */

static bool
write_matches(const struct frame *frame, enum aim_writes writes)
{
    struct data_write write;

    if (writes == ANY_WRITE)
        return true;
    if (frame->body == NULL)
        return false;
    if (data_write_decode(frame, &write) != 0)
        return false;
    return writes == REWRITE ? (write.target.flags & WRITE_RESOLVE) != 0 : write.attempt != 0;
}

static bool
kind_matches(const struct aim_kind *kind, const struct sim_frame_event *event)
{
    return kind->opcode == event->frame->opcode && kind->reply == frame_is_reply(event->frame) &&
           kind->arrives == event->arrives && write_matches(event->frame, kind->writes);
}

void
aim_set_slowness(struct cluster *cluster, struct model_slowness slowness)
{
    cluster->slowness = slowness;
    for (uint32_t i = 0; i < cluster->server_count; i++)
        cluster->servers[i].disk.slowness = slowness;
}

static void
aim_end(struct aim *aim)
{
    aim->over = true;
    aim_set_slowness(aim->cluster, (struct model_slowness){0});
}

void
aim_on_frame(struct aim *aim, const struct sim_frame_event *event)
{
    const struct cluster *cluster = aim->cluster;

    if (cluster->calm && !aim->over)
        aim_end(aim);
    if (aim->over || !admin_is_ready(cluster) || cluster->fragile != NULL || event->from == NULL ||
        event->to == NULL || aim_is_spared(aim, event->from) || aim_is_spared(aim, event->to))
        return;
    plots_on_frame(aim->plots, event);
    if (aim->strikes >= AIM_STRIKES || cluster->world.now_ns < aim->next_ns)
        return;
    for (uint32_t i = 0; i < AIM_KINDS; i++) {
        if (aim->per_million[i] == 0 || !kind_matches(&aim_kinds[i], event) ||
            aim_random(aim, AIM_MILLION) >= aim->per_million[i])
            continue;
        sim_trace(&cluster->world, NULL, "aimed at %s%s from %s to %s",
                  opcode_name(event->frame->opcode), aim_kinds[i].reply ? " reply" : "",
                  event->from->name, event->to->name);
        aim->strikes++;
        aim->next_ns = cluster->world.now_ns + aim_random(aim, AIM_PAUSE_NS);
        aim_strike(aim, event->from, event->to);
        if (aim_random(aim, 100) < 40)
            aim_strike(aim, event->from, event->to);
        return;
    }
}

/* --- what a seed makes of it --- */

/* Recoveries, and large writes, that take longer than what happens to them. */
static void
aim_slow(struct aim *aim)
{
    struct cluster *cluster = aim->cluster;
    struct model_slowness slowness = {0};

    if (fake_rng_percent(&aim->rng, 60)) {
        slowness.pull_sectors_max = 1u << fake_rng_range(&aim->rng, 0, 6);
        slowness.pull_ns_max = SIM_US << fake_rng_range(&aim->rng, 8, 19);
    }
    if (fake_rng_percent(&aim->rng, 25)) {
        slowness.large_ns_max = SIM_US << fake_rng_range(&aim->rng, 12, 18);
        cluster->profile.large_percent = (uint32_t)fake_rng_range(&aim->rng, 5, 30);
    }
    aim_set_slowness(cluster, slowness);
}

struct aim *
aim_create(struct cluster *cluster)
{
    struct cluster_profile *profile = &cluster->profile;
    struct aim *aim = calloc(1, sizeof(*aim));

    sim_require(&cluster->world, aim != NULL, "no memory");
    aim->cluster = cluster;
    fake_rng_init(&aim->rng, sim_seed_of(cluster->world.seed, 5));
    aim_slow(aim);
    /* With one copy alone there is none to repair a bad one from. */
    if (profile->replicas > 1 && profile->damage == DAMAGE_NONE && fake_rng_percent(&aim->rng, 30))
        profile->min_write = 1;
    if (fake_rng_percent(&aim->rng, 20)) {
        profile->session_ops = (uint32_t)fake_rng_range(&aim->rng, 3, 40);
        profile->steal_percent = (uint32_t)fake_rng_range(&aim->rng, 50, 100);
    }
    aim->plots = plots_create(cluster);
    if (profile->fault_ns == 0 || fake_rng_percent(&aim->rng, 40))
        return aim;
    for (uint32_t i = 0; i < AIM_KINDS; i++)
        if (fake_rng_percent(&aim->rng, 35))
            aim->per_million[i] = 1 + (uint32_t)aim_random(aim, aim_kinds[i].per_million_max);
    return aim;
}

void
aim_destroy(struct aim *aim)
{
    for (uint32_t i = 0; i < AIM_EVENTS && aim != NULL; i++)
        sim_cancel(&aim->cluster->world, &aim->events[i].event);
    if (aim != NULL)
        plots_destroy(aim->plots);
    free(aim);
}
