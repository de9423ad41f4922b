/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aim_plots.c: histories of several steps that chance alone does not put together.  See watch.h.
 *
 * aim.c strikes once, at one frame.  Here a frame begins a story, of which each step is needed.
 * In three of ten seeds one of them is told, whenever it can be:
 *
 *   lonely write  a write reaches a slot that recovers, and nobody else for a while; when the
 *                 owner has heard so, that server dies and is back at once: its new attempt drops
 *                 the write, and pulls from those that have not got it yet
 *   late large    while the data of a large write is on its way to a disk, an ejected slot's server
 *                 comes back, and the owner does not hear of it: the slot is told, and pulls,
 *                 before that write is durable
 *   slow attach   what servers in-sync say about a fence is held up, so that ejected slots of
 *                 others recover, and are promoted, between their own answer and the owner's first
 *                 map
 *   old reads     while a volume is taken from its owner he hears nothing from the metadata
 *                 service, and only reads from now on, or waits for reads that are under way
 *   old writes    a slot is about to be replaced, and what the owner sends to it, not knowing, gets
 *                 there when its chunk has been deleted
 */
#include <stdlib.h>
#include <string.h>

#include "proto/control.pb-c.h"
#include "proto/data.h"
#include "tests/sim/watch.h"

#define PLOT_EVENTS   8u
#define PLOT_STRIKES  60u /* in a run */
#define PLOT_PAUSE_NS (300 * SIM_MS)
#define PLOT_LOOK_NS  SIM_MS /* between two looks into the map */
#define PLOT_LARGE    17u    /* sectors: their data is written before the record */

enum plot_kind {
    PLOT_NONE,
    PLOT_LONELY_WRITE,
    PLOT_LATE_LARGE,
    PLOT_SLOW_ATTACH,
    PLOT_OLD_READS,
    PLOT_OLD_WRITES,
};

/* A server dies, or comes back sooner than it would. */
struct plot_event {
    struct sim_event event;
    struct plots *plots;
    struct sim_server *server;
    uint32_t life;
};

struct plots {
    struct cluster *cluster;
    struct fake_rng rng;
    enum plot_kind kind;
    uint32_t strikes;
    uint64_t next_ns;
    uint64_t link_id, request_id; /* lonely write: the reply that is waited for; 0: none */
    struct plot_event events[PLOT_EVENTS];
};

static uint64_t
plot_random(struct plots *plots, uint64_t low, uint64_t high)
{
    return fake_rng_range(&plots->rng, low, high);
}

static bool
is_client(const struct plots *plots, const struct sim_process *process)
{
    const struct cluster *cluster = plots->cluster;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        if (&cluster->clients[i].process == process)
            return true;
    return false;
}

/* --- what is done --- */

static void
plot_block_clients(struct plots *plots, const struct sim_process *from,
                   const struct sim_process *to, uint64_t duration_ns)
{
    struct cluster *cluster = plots->cluster;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        sim_net_block(&cluster->world, from == NULL ? &cluster->clients[i].process : from,
                      to == NULL ? &cluster->clients[i].process : to, duration_ns);
}

static bool
server_is_away(const struct sim_server *server)
{
    return server != NULL && !server->process.up && server->restart_event.heap_idx != 0 &&
           !server->spared && server->damage_due == DAMAGE_NONE;
}

static void
plot_hasten(struct plots *plots, struct sim_server *server, uint64_t delay_ns)
{
    struct sim_world *world = &plots->cluster->world;

    if (!server_is_away(server))
        return;
    sim_trace(world, NULL, "plot: %s comes back soon", server->process.name);
    sim_cancel(world, &server->restart_event);
    sim_schedule(world, &server->restart_event, NULL, server->restart_event.fn, delay_ns);
}

static void
plot_on_event(struct sim_event *event)
{
    struct plot_event *later = list_entry(event, struct plot_event, event);
    struct plots *plots = later->plots;
    struct sim_server *server = later->server;

    if (plots->cluster->calm || !server_may_fail(server) || server->process.life != later->life)
        return;
    server_kill(server, false);
    plot_hasten(plots, server, plot_random(plots, SIM_MS / 2, 20 * SIM_MS));
}

/* Not in the middle of what runs now. */
static void
plot_kill_soon(struct plots *plots, struct sim_server *server, uint64_t delay_ns)
{
    for (uint32_t i = 0; i < PLOT_EVENTS; i++) {
        struct plot_event *later = &plots->events[i];

        if (later->event.heap_idx != 0)
            continue;
        *later = (struct plot_event){
            .plots = plots,
            .server = server,
            .life = server->process.life,
        };
        sim_schedule(&plots->cluster->world, &later->event, NULL, plot_on_event, delay_ns);
        return;
    }
}

/* --- whom it is about --- */

struct plot_find {
    uint64_t volume;
    uint32_t segment;
    bool found;
    struct sim_segment ret_segment;
};

static void
find_segment(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    struct plot_find *find = context;

    (void)cluster;
    if (segment->volume != find->volume || segment->index != find->segment)
        return;
    find->ret_segment = *segment;
    find->found = true;
}

static bool
plot_segment(struct plots *plots, uint64_t volume, uint32_t index, struct sim_segment *ret_segment)
{
    struct plot_find find = {.volume = volume, .segment = index};

    plots->next_ns = plots->cluster->world.now_ns + PLOT_LOOK_NS;
    map_for_each(plots->cluster, find_segment, &find);
    if (find.found)
        *ret_segment = find.ret_segment;
    return find.found;
}

static bool
place_is(const struct sim_place *place, uint32_t state)
{
    return place->server != NULL && place->state == state;
}

/* True: a strike, unless it is too much. */
static bool
plot_may_strike(struct plots *plots, uint32_t percent)
{
    return plots->cluster->world.now_ns >= plots->next_ns && plots->strikes < PLOT_STRIKES &&
           fake_rng_percent(&plots->rng, percent);
}

static void
plot_struck(struct plots *plots, const char *name)
{
    sim_trace(&plots->cluster->world, NULL, "plot: %s", name);
    plots->strikes++;
    plots->next_ns = plots->cluster->world.now_ns + plot_random(plots, 0, PLOT_PAUSE_NS);
}

/* --- the plots --- */

static void
lonely_write_begin(struct plots *plots, const struct sim_frame_event *event,
                   const struct data_write *write)
{
    struct sim_segment segment;
    uint64_t duration_ns = plot_random(plots, 50, 1000) * SIM_MS;

    if (write->attempt == 0 || !plot_may_strike(plots, 40) ||
        !plot_segment(plots, write->target.volume, write->target.segment, &segment))
        return;
    plot_struck(plots, "lonely write");
    for (uint32_t i = 0; i < segment.place_count; i++)
        if (place_is(&segment.places[i], DL__SLOT_STATE__SLOT_IN_SYNC) &&
            !segment.places[i].server->spared)
            sim_net_block(&plots->cluster->world, event->from, &segment.places[i].server->process,
                          duration_ns);
    plots->link_id = event->link_id;
    plots->request_id = event->frame->request_id;
}

static void
lonely_write_end(struct plots *plots, const struct sim_frame_event *event)
{
    struct sim_server *server = watch_server_of_process(plots->cluster, event->from);

    if (plots->link_id != event->link_id || plots->request_id != event->frame->request_id)
        return;
    plots->link_id = 0;
    if (server != NULL && event->frame->status == 0)
        plot_kill_soon(plots, server, plot_random(plots, 0, 2 * SIM_MS));
}

static void
late_large(struct plots *plots, const struct data_write *write)
{
    struct sim_segment segment;

    if (write->attempt != 0 || write->target.length_sectors < PLOT_LARGE ||
        !plot_may_strike(plots, 50) ||
        !plot_segment(plots, write->target.volume, write->target.segment, &segment))
        return;
    for (uint32_t i = 0; i < segment.place_count; i++) {
        if (!place_is(&segment.places[i], DL__SLOT_STATE__SLOT_EJECTED) ||
            !server_is_away(segment.places[i].server))
            continue;
        plot_struck(plots, "late large");
        plot_block_clients(plots, &plots->cluster->meta.process, NULL,
                           plot_random(plots, 50, 500) * SIM_MS);
        plot_hasten(plots, segment.places[i].server, plot_random(plots, 0, 3 * SIM_MS));
        return;
    }
}

struct plot_attach {
    uint64_t volume;
    bool in_sync[CLUSTER_SERVERS_MAX], ejected[CLUSTER_SERVERS_MAX];
};

static void
attach_sort(struct cluster *cluster, const struct sim_segment *segment, void *context)
{
    struct plot_attach *attach = context;

    if (segment->volume != attach->volume)
        return;
    for (uint32_t i = 0; i < segment->place_count; i++) {
        const struct sim_place *place = &segment->places[i];

        if (place_is(place, DL__SLOT_STATE__SLOT_IN_SYNC))
            attach->in_sync[place->server - cluster->servers] = true;
        if (place_is(place, DL__SLOT_STATE__SLOT_EJECTED))
            attach->ejected[place->server - cluster->servers] = true;
    }
}

static void
slow_attach(struct plots *plots, const struct plot_attach *attach)
{
    struct cluster *cluster = plots->cluster;
    uint64_t duration_ns = plot_random(plots, 10, 1500) * SIM_MS;
    bool any = false;

    for (uint32_t i = 0; i < cluster->server_count; i++)
        any |= attach->ejected[i];
    if (!any)
        return;
    plot_struck(plots, "slow attach");
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct sim_server *server = &cluster->servers[i];

        if (attach->in_sync[i] && !attach->ejected[i] && !server->spared)
            sim_net_block(&cluster->world, &server->process, &cluster->meta.process, duration_ns);
        if (attach->ejected[i])
            plot_hasten(plots, server, plot_random(plots, 0, 20 * SIM_MS));
    }
}

static void
old_reads(struct plots *plots, const struct sim_volume *volume)
{
    struct cluster *cluster = plots->cluster;
    uint64_t duration_ns = plot_random(plots, 10, 3000) * SIM_MS;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++) {
        struct sim_client *client = &cluster->clients[i];

        if (client->state != CLIENT_RUNNING || client->target != volume)
            continue;
        plot_struck(plots, "old reads");
        sim_net_block(&cluster->world, &cluster->meta.process, &client->process, duration_ns);
        client->reads_only = true;
        if (fake_rng_percent(&plots->rng, 50))
            client->session_ops_left = 0;
    }
}

static void
old_writes(struct plots *plots, const struct sim_frame_event *event)
{
    Dl__ServerDrain *drain = (Dl__ServerDrain *)frame_unpack(event->frame,
                                                             &dl__server_drain__descriptor);
    uint64_t duration_ns = plot_random(plots, 5, 1000) * SIM_MS;
    struct sim_server *server;

    if (drain == NULL)
        return;
    server = watch_server_by_id(plots->cluster, drain->server_id);
    if (server != NULL && !server->spared && plot_may_strike(plots, 80)) {
        plot_struck(plots, "old writes");
        plot_block_clients(plots, &plots->cluster->meta.process, NULL,
                           plot_random(plots, 0, duration_ns));
        plot_block_clients(plots, NULL, &server->process, duration_ns);
    }
    dl__server_drain__free_unpacked(drain, NULL);
}

/* --- when --- */

static void
plots_on_write(struct plots *plots, const struct sim_frame_event *event)
{
    struct data_write write;

    if (event->frame->body == NULL || data_write_decode(event->frame, &write) != 0)
        return;
    if (plots->kind == PLOT_LONELY_WRITE && !event->arrives)
        lonely_write_begin(plots, event, &write);
    if (plots->kind == PLOT_LATE_LARGE && event->arrives)
        late_large(plots, &write);
}

static void
plots_on_attach(struct plots *plots, const struct sim_frame_event *event)
{
    struct cluster *cluster = plots->cluster;
    Dl__Attach *request = (Dl__Attach *)frame_unpack(event->frame, &dl__attach__descriptor);
    const struct sim_volume *volume = NULL;
    struct plot_attach attach = {0};

    for (uint32_t i = 0; request != NULL && i < cluster->profile.volume_count; i++)
        if (strcmp(cluster->volumes[i].name, request->name) == 0 && !request->read_only &&
            (request->steal || plots->kind != PLOT_OLD_READS))
            volume = &cluster->volumes[i];
    if (request != NULL)
        dl__attach__free_unpacked(request, NULL);
    if (volume == NULL || !plot_may_strike(plots, 80))
        return;
    if (plots->kind == PLOT_OLD_READS) {
        old_reads(plots, volume);
        return;
    }
    attach.volume = volume->id;
    map_for_each(cluster, attach_sort, &attach);
    slow_attach(plots, &attach);
}

void
plots_on_frame(struct plots *plots, const struct sim_frame_event *event)
{
    const struct cluster *cluster = plots->cluster;
    bool is_reply = frame_is_reply(event->frame);

    switch (event->frame->opcode) {
    case OP_WRITE:
        if (is_reply && event->arrives && plots->link_id != 0)
            lonely_write_end(plots, event);
        else if (!is_reply && is_client(plots, event->from))
            plots_on_write(plots, event);
        return;
    case OP_ATTACH:
        if ((plots->kind == PLOT_SLOW_ATTACH || plots->kind == PLOT_OLD_READS) && !is_reply &&
            event->arrives && event->to == &cluster->meta.process)
            plots_on_attach(plots, event);
        return;
    case OP_SERVER_DRAIN:
        if (plots->kind == PLOT_OLD_WRITES && !is_reply && event->arrives)
            old_writes(plots, event);
        return;
    default:
        return;
    }
}

/* --- life --- */

/* Large writes take long, and what recovers does not. */
static void
profile_late_large(struct plots *plots)
{
    struct model_slowness slowness = {.large_ns_max = plot_random(plots, 20, 300) * SIM_MS};

    plots->cluster->profile.large_percent = (uint32_t)plot_random(plots, 3, 12);
    aim_set_slowness(plots->cluster, slowness);
}

/* Slots move before any was ejected. */
static void
profile_old_writes(struct plots *plots)
{
    struct cluster_profile *profile = &plots->cluster->profile;

    profile->servers_come_and_go = true;
    profile->operator_ns = plot_random(plots, 20, 300) * SIM_MS;
    if (profile->fault_ns < 400 * SIM_MS)
        profile->fault_ns = 400 * SIM_MS;
}

static void
profile_slow_attach(struct plots *plots)
{
    struct cluster_profile *profile = &plots->cluster->profile;

    profile->session_ops = (uint32_t)plot_random(plots, 10, 100);
    profile->steal_percent = (uint32_t)plot_random(plots, 50, 100);
}

static void
profile_old_reads(struct plots *plots)
{
    struct cluster_profile *profile = &plots->cluster->profile;
    struct model_slowness slowness = {.read_ns_max = plot_random(plots, 1, 1000) * SIM_MS};

    profile->session_ops = (uint32_t)plot_random(plots, 50, 400);
    profile->reading_percent = 40;
    profile->hedge_min_ms = 10000; /* to another server, which says that he is shut out */
    profile->steal_percent = (uint32_t)plot_random(plots, 50, 100);
    aim_set_slowness(plots->cluster, slowness);
}

static void
plots_choose(struct plots *plots)
{
    uint64_t dice = plot_random(plots, 0, 99);

    if (dice < 6) {
        plots->kind = PLOT_LONELY_WRITE;
    } else if (dice < 11) {
        plots->kind = PLOT_LATE_LARGE;
        profile_late_large(plots);
    } else if (dice < 18) {
        plots->kind = PLOT_SLOW_ATTACH;
        profile_slow_attach(plots);
    } else if (dice < 24) {
        plots->kind = PLOT_OLD_WRITES;
        profile_old_writes(plots);
    } else if (dice < 30) {
        plots->kind = PLOT_OLD_READS;
        profile_old_reads(plots);
    }
}

struct plots *
plots_create(struct cluster *cluster)
{
    struct plots *plots = calloc(1, sizeof(*plots));

    sim_require(&cluster->world, plots != NULL, "no memory");
    plots->cluster = cluster;
    fake_rng_init(&plots->rng, sim_seed_of(cluster->world.seed, 6));
    /* Where bits rot all the time more time is more than can be repaired. */
    if (cluster->profile.fault_ns != 0 && cluster->profile.damage != DAMAGE_ROT)
        plots_choose(plots);
    return plots;
}

void
plots_destroy(struct plots *plots)
{
    for (uint32_t i = 0; i < PLOT_EVENTS && plots != NULL; i++)
        sim_cancel(&plots->cluster->world, &plots->events[i].event);
    free(plots);
}
