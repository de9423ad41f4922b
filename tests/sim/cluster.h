/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster.h: a whole cluster in a simulated world: a metadata service, chunkservers, clients with
 * their work, faults.
 *
 * The real cores of all three, on sim.h for network and time, model_store.h for disks, the metadata
 * service's store in memory.  A run has three parts:
 *   chaos   clients open volumes, read, write, discard, close, take volumes from each other;
 *           processes die and come back, links break, the network is cut, disks are full or fail
 *   calm    nothing fails any more; every request that is under way must end in bounded time
 *   verdict each volume is opened once more, read whole and compared, closed cleanly; then all
 *   copies must be alike and
 *           nothing pending
 * The oracle judges every read and every acknowledgement on the way.
 */
#ifndef DLBLK_TESTS_CLUSTER_H
#define DLBLK_TESTS_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/core.h"
#include "client/core.h"
#include "client/volume.h"
#include "meta/core.h"
#include "meta/store_memory.h"
#include "tests/sim/model_store.h"
#include "tests/sim/oracle.h"
#include "tests/sim/sim.h"

#define CLUSTER_SERVERS_FIRST_MAX 6u /* at the beginning */
#define CLUSTER_SERVERS_MAX       9u
#define CLUSTER_CLIENTS_MAX       4u
#define CLUSTER_VOLUMES_MAX       3u
#define CLIENT_OPS_MAX            24u

struct cluster;

/* What becomes of one disk of the run, beyond what a crash may take. */
enum cluster_damage {
    DAMAGE_NONE,
    DAMAGE_BACK,   /* once: an older copy of it is put in its place */
    DAMAGE_LOSSES, /* once: it comes up without what its journal had, and says so */
    DAMAGE_GONE,   /* once: it never comes back */
    DAMAGE_ROT,    /* bits flip at rest, of one copy of a sector at most */
};

/* --- what a seed makes of it --- */

struct cluster_profile {
    uint32_t server_count, client_count, volume_count;
    uint32_t replicas, min_write;
    uint32_t depth;                                      /* requests of a client under way */
    uint32_t write_percent, zero_percent, flush_percent; /* the rest reads */
    uint32_t large_percent;                              /* requests of up to more than a segment */
    uint32_t hot_percent;                                /* requests to a few blocks */
    uint32_t steal_percent;                              /* of opens */
    uint32_t session_ops;                                /* a session ends after about so many */
    uint32_t reading_percent;                            /* of sessions only read */
    uint64_t think_ns; /* between two requests of a place, at most */
    uint64_t request_timeout_ms;
    bool ejection; /* clients eject slots that fail */
    uint32_t eject_lost_ms, eject_silent_ms, eject_slow_ms;
    uint64_t out_after_ns;         /* down for so long: slots move */
    uint32_t long_absence_percent; /* of restarts: longer than that */
    uint64_t operations;           /* of all clients: the chaos ends after so many */
    uint64_t chaos_ns;             /* or after so much time */
    uint64_t fault_ns;             /* between two faults, on average; 0: none */
    uint64_t group_ns_max;         /* of the disks */
    bool disks_fail;
    bool scratch_volumes;
    uint32_t hedge_min_ms;
    bool servers_come_and_go;
    bool rebalance;
    uint64_t capacity_bytes; /* of a disk, as it is told */
    enum cluster_damage damage;
    bool scrubs;              /* the admin asks for some; in the end for one of every volume */
    uint64_t scrub_period_ns; /* of servers by themselves; 0: they don't */
    uint64_t operator_ns;     /* between two things that the operator does, on average */
};

/* --- processes --- */

struct sim_meta {
    struct sim_process process;
    struct store_memory_db *db;
    struct store *store;
    struct meta_core *core;
    struct sim_event restart_event;
    struct cluster *cluster;
};

struct sim_server {
    struct sim_process process;
    struct model_disk disk;
    uint8_t uuid[16];
    struct chunk_store *store;
    struct chunkserver_core *core;
    bool stopping;
    struct sim_event restart_event;
    struct sim_event kill_event;
    bool kill_armed; /* it will be killed while the next group is on its way to the disk */
    char host[16];   /* its label: of a disk that was replaced as before */
    bool gone;       /* it never starts again */
    bool retiring;   /* gone as soon as it is down */
    bool drained;    /* an operator's word, which was acknowledged */
    bool spared;     /* by faults: each start of a damaged disk costs all that it has */
    struct model_image *image;
    enum cluster_damage damage_due; /* at its next death */
    bool leaf_due;                  /* one is damaged before its next start */
    struct cluster *cluster;
};

/* --- volumes --- */

struct sim_volume {
    char name[32];
    uint64_t id;               /* as the metadata service gave it */
    uint64_t size_bytes;       /* as the last answer of the metadata service said */
    uint64_t size_bytes_asked; /* it may be so large already */
    uint64_t *last_values;     /* by block, as a sweep has read them */
    uint32_t segment_bytes, logical_block_bytes, stripe_width, stripe_unit_bytes;
    struct oracle oracle;
    uint32_t lease_epoch_max; /* of those who have opened it */
};

/* --- the map, as the metadata service's store has it --- */

#define SIM_PLACES_MAX 9u

struct sim_place {
    struct sim_server *server;
    uint32_t state; /* Dl__SlotState */
    uint32_t number;
};

struct sim_segment {
    uint64_t volume;
    uint32_t index;
    uint32_t config_epoch;
    uint32_t place_count;
    struct sim_place places[SIM_PLACES_MAX];
};

/* --- clients --- */

struct sim_client;

/* One request of a client. */
struct client_op {
    struct dlblk_request request;
    struct sim_client *client;
    bool active;
    uint64_t number; /* of its submission by this client */
    uint64_t key;
    uint64_t first_block, block_count;
    uint64_t submitted_ns;
    uint8_t *memory, *buffer;
    size_t buffer_bytes;
    struct oracle_read read;
    uint64_t *bounds;
    uint64_t first_value;
    struct iovec iov[4];
    struct sim_event think_event;
};

enum client_state { CLIENT_IDLE, CLIENT_OPENING, CLIENT_RUNNING, CLIENT_CLOSING, CLIENT_RETIRED };

struct sim_client {
    struct sim_process process;
    struct cluster *cluster;
    struct client_core *core;
    uint32_t idx;
    enum client_state state;
    struct sim_volume *target;
    struct client_volume *volume;
    struct client_volume_open open;
    uint32_t lease_epoch;
    uint64_t size_bytes; /* of the volume, as this session knows it */
    uint64_t session_ops_left;
    uint64_t state_since_ns;
    uint32_t active_ops;
    bool stop_wanted; /* calm: finish and go */
    bool sweep;       /* the verdict: read the whole volume in order */
    uint64_t sweep_next_block;
    struct client_extents extents;
    uint64_t extents_next_bytes; /* what was told so far */
    bool extents_asked, extents_told;
    bool closing_wanted;
    bool reads_only;     /* for the rest of this session */
    uint32_t open_flags; /* of a sweep */
    uint64_t submissions;
    int last_close_err;
    struct client_op ops[CLIENT_OPS_MAX];
    struct sim_event state_event;
    struct sim_event restart_event;
};

/* --- the admin: creates volumes, and scratch volumes that it deletes again --- */

/* What came of a scrub of a volume. */
struct sim_scrub {
    uint64_t sectors, bad, repaired, left_bad, mismatches;
    uint64_t passed_over; /* chunks that were not read, or not compared, and absent servers */
};

struct sim_admin;

struct cluster_counters {
    uint64_t reads, writes, zeroes, flushes, failed, acknowledged, blocks_read, blocks_written;
    uint64_t opens, opens_refused, steals, closes_clean, closes_unclean, fenced;
    uint64_t errors_by_code[128];
    uint64_t meta_kills, server_kills, client_kills, power_cuts, pauses, partitions, cuts,
        disk_faults;
    uint64_t server_stops, scratch_created, scratch_deleted, resizes, extents_told, holes_told;
    uint64_t chunks_compared, sectors_compared;
    uint64_t ejections, ejections_refused, hedged_reads, repairs; /* of volumes that were closed */
    uint64_t slow_disks, slow_links;
    uint64_t servers_added, servers_drained, servers_undrained, servers_emptied, servers_removed,
        servers_refused, disks_back, disks_damaged, disks_gone, disks_replaced, maps_checked;
    /* As chunkservers count them. */
    uint64_t sectors_bad, sectors_repaired, sectors_scrubbed, disks_scrubbed;
    uint64_t volumes_scrubbed;
};

struct cluster {
    struct sim_world world;
    struct cluster_profile profile;
    struct fake_rng rng; /* what clients do */
    struct fake_rng fault_rng;
    uint8_t cluster_id[16];
    struct sim_meta meta;
    struct sim_server servers[CLUSTER_SERVERS_MAX];
    uint32_t server_count;          /* those that were added later, and those that are gone, too */
    struct model_slowness slowness; /* of all disks, those to come too: aim.c */
    struct sim_client clients[CLUSTER_CLIENTS_MAX];
    struct sim_volume volumes[CLUSTER_VOLUMES_MAX];
    struct sim_admin *admin;
    struct sim_operator *operator;
    struct sim_event fault_event;
    bool damage_done;
    /*
     * A disk has lost what was acknowledged, and the metadata service does not know it yet: until
     * then nothing else happens to servers, or other copies might go as well.
     */
    struct sim_server *fragile;
    bool calm;    /* no more faults */
    bool healing; /* sweeps look for bad sectors: reads may fail because of them */
    struct cluster_counters counters;
};

/*
 * What a run did: name, how often it must have happened in a hundred runs, expression (of c
 * counters, n network, ORACLE() and DISK() sums).
 */
#define CLUSTER_REPORT(X)                                           \
    X(events, 1000000, cluster->world.event_count)                  \
    X(simulated_s, 100, cluster->world.now_ns / SIM_S)              \
    X(requests, 100000, c->acknowledged + c->failed)                \
    X(acknowledged, 100000, c->acknowledged)                        \
    X(failed, 100, c->failed)                                       \
    X(reads, 10000, c->reads)                                       \
    X(writes, 10000, c->writes)                                     \
    X(zeroes, 1000, c->zeroes)                                      \
    X(flushes, 100, c->flushes)                                     \
    X(blocks_read, 100000, c->blocks_read)                          \
    X(blocks_written, 100000, c->blocks_written)                    \
    X(opens, 500, c->opens)                                         \
    X(opens_refused, 100, c->opens_refused)                         \
    X(steals, 100, c->steals)                                       \
    X(closes_clean, 100, c->closes_clean)                           \
    X(closes_unclean, 50, c->closes_unclean)                        \
    X(settled_blocks, 1000, ORACLE(settled))                        \
    X(blocks_checked_loosely, 0, ORACLE(blocks_checked_loosely))    \
    X(reads_of_unacknowledged, 10, ORACLE(reads_of_unacknowledged)) \
    X(server_kills, 200, c->server_kills)                           \
    X(server_stops, 20, c->server_stops)                            \
    X(meta_kills, 100, c->meta_kills)                               \
    X(client_kills, 100, c->client_kills)                           \
    X(power_cuts, 10, c->power_cuts)                                \
    X(pauses, 100, c->pauses)                                       \
    X(partitions, 100, c->partitions)                               \
    X(links_cut, 100, c->cuts)                                      \
    X(links_cut_in_payload, 1, n->cuts_in_payload)                  \
    X(links_silent, 10, n->silent)                                  \
    X(links_paused, 10, n->pauses)                                  \
    X(connects, 1000, n->connects)                                  \
    X(frames, 1000000, n->frames)                                   \
    X(frames_lost, 1000, n->frames_lost)                            \
    X(bits_flipped, 10, n->flips)                                   \
    X(resizes, 10, c->resizes)                                      \
    X(extents_told, 100, c->extents_told)                           \
    X(holes_told, 100, c->holes_told)                               \
    X(scratch_deleted, 10, c->scratch_deleted)                      \
    X(groups, 10000, DISK(groups))                                  \
    X(groups_kept, 30, DISK(groups_kept))                           \
    X(groups_lost, 30, DISK(groups_lost))                           \
    X(duplicates, 100, DISK(duplicates))                            \
    X(outdated_sectors, 0, DISK(outdated_sectors))                  \
    X(large_writes, 100, DISK(large_writes))                        \
    X(fences, 100, DISK(fences))                                    \
    X(fences_undone, 1, DISK(fences_undone))                        \
    X(epochs_undone, 1, DISK(epochs_undone))                        \
    X(chunks_deleted, 10, DISK(deletes))                            \
    X(no_space, 10, DISK(no_space))                                 \
    X(attempts, 100, DISK(attempts))                                \
    X(promotions, 50, DISK(promotions))                             \
    X(zeroes_forgotten, 100, DISK(zeroes_forgotten))                \
    X(sectors_voided, 10, DISK(sectors_voided))                     \
    X(pulls, 100, DISK(pulls))                                      \
    X(sectors_pulled, 1000, DISK(sectors_pulled))                   \
    X(sectors_merged, 1000, DISK(sectors_merged))                   \
    X(ejections, 50, c->ejections)                                  \
    X(ejections_refused, 5, c->ejections_refused)                   \
    X(hedged_reads, 20, c->hedged_reads)                            \
    X(slow_disks, 20, c->slow_disks)                                \
    X(slow_links, 20, c->slow_links)                                \
    X(servers_added, 5, c->servers_added)                           \
    X(servers_drained, 5, c->servers_drained)                       \
    X(servers_undrained, 1, c->servers_undrained)                   \
    X(servers_emptied, 2, c->servers_emptied)                       \
    X(servers_removed, 1, c->servers_removed)                       \
    X(servers_refused, 0, c->servers_refused)                       \
    X(disks_back, 1, c->disks_back)                                 \
    X(disks_damaged, 1, c->disks_damaged)                           \
    X(disks_gone, 1, c->disks_gone)                                 \
    X(disks_replaced, 1, c->disks_replaced)                         \
    X(maps_checked, 100, c->maps_checked)                           \
    X(sectors_rotten, 10, DISK(sectors_rotten))                     \
    X(leaves_damaged, 1, DISK(leaves_damaged))                      \
    X(sectors_bad, 10, c->sectors_bad)                              \
    X(sectors_repaired, 10, c->sectors_repaired)                    \
    X(volumes_scrubbed, 50, c->volumes_scrubbed)                    \
    X(disks_scrubbed, 50, c->disks_scrubbed)                        \
    X(sectors_scrubbed, 10000, c->sectors_scrubbed)                 \
    X(media_errors, 10, DISK(write_errors) + DISK(read_errors))     \
    X(read_flips, 10, DISK(read_flips))                             \
    X(chunks_compared, 500, c->chunks_compared)                     \
    X(sectors_compared, 100000, c->sectors_compared)

enum cluster_report_idx {
#define X(name, minimum, expression) REPORT_##name,
    CLUSTER_REPORT(X)
#undef X
        CLUSTER_REPORT_COUNT
};

struct cluster_report {
    uint64_t values[CLUSTER_REPORT_COUNT];
    uint64_t errors_by_code[128];
    uint64_t history_hash;
};

extern const char *const cluster_report_names[CLUSTER_REPORT_COUNT];
extern const uint64_t cluster_report_minimums[CLUSTER_REPORT_COUNT];

/* One seed, from beginning to end.  A violation ends the program. */
void cluster_run(struct cluster *cluster, uint64_t seed, bool trace,
                 struct cluster_report *ret_report);

/* --- between the files --- */

/* processes.c */
void meta_init(struct cluster *cluster);
void meta_start(struct sim_meta *meta);
void meta_kill(struct sim_meta *meta, bool silent);
void server_init(struct cluster *cluster, uint32_t idx);
void server_start(struct sim_server *server);
void server_kill(struct sim_server *server, bool silent);
/* Otherwise no fault may stop it, cut it off, or make it stand still. */
bool server_may_fail(const struct sim_server *server);
/* While the next group is on its way to the disk, or after a while if none is. */
void server_kill_busy(struct sim_server *server);
/* Orderly: it goes down when it has finished. */
void server_stop(struct sim_server *server);
/* One more than there are, with an empty disk; it is started.  NULL: there is no room. */
struct sim_server *server_add(struct cluster *cluster);
/* Its disk is as fast and as good as any. */
void server_heal_disk(struct sim_server *server);
/* It will not start again; its disk is thrown away. */
void server_lose(struct sim_server *server);
/* One that is gone comes back with an empty disk: another server, on the same machine. */
void server_replace(struct sim_server *server);
void processes_fini(struct cluster *cluster);
/* After a random while, or right away when calm begins. */
void restart_later(struct cluster *cluster, struct sim_event *event, sim_event_fn fn,
                   uint64_t max_ns);

/* workload.c */
void client_init(struct cluster *cluster, uint32_t idx);
void client_start(struct sim_client *client);
void client_kill(struct sim_client *client, bool silent);
/* Finish what is under way, close, and stay idle. */
void client_wind_down(struct sim_client *client);
bool client_is_idle(const struct sim_client *client);
/* Open this volume with these flags and read all of it; then close.  Nothing may fail. */
void client_sweep(struct sim_client *client, struct sim_volume *volume, uint32_t open_flags);
void client_fini(struct sim_client *client);

/* admin.c */
void admin_create(struct cluster *cluster);
void admin_destroy(struct cluster *cluster);
/* Creates the volumes of the run; true when all are there. */
bool admin_is_ready(const struct cluster *cluster);
/* Now and then: a scratch volume is made, written and deleted. */
void admin_scratch(struct cluster *cluster);
/* A volume of the run grows. */
void admin_resize(struct cluster *cluster);
/* A volume of the run is scrubbed, if the profile has that. */
void admin_scrub(struct cluster *cluster);
/* This one; the admin is idle, and is idle again when that is done. */
void admin_scrub_volume(struct cluster *cluster, const struct sim_volume *volume);
struct sim_scrub admin_scrub_result(const struct cluster *cluster);
bool admin_is_idle(const struct cluster *cluster);
/* Others may ask through it; inside of sim_enter(). */
struct client_core *admin_core(const struct cluster *cluster);
struct sim_process *admin_process(const struct cluster *cluster);

/* operator.c: servers that come and go, disks that are lost, or rot */
void operator_create(struct cluster *cluster);
void operator_destroy(struct cluster *cluster);
void operator_start(struct cluster *cluster);
/* What is under way is finished; whoever is gone is removed. */
void operator_wind_down(struct cluster *cluster);
bool operator_is_idle(const struct cluster *cluster);
/* Before the server starts. */
void operator_server_starts(struct sim_server *server);

/* faults.c */
void faults_start(struct cluster *cluster);
/* Everything is healed and comes back. */
void faults_stop(struct cluster *cluster);

/* map.c */

/* The server's record; false: there is none. */
struct server_desc;
bool map_find_server(struct cluster *cluster, const uint8_t uuid[16], struct server_desc *ret_desc);
/* One that the metadata service knows though its disk is gone; false: there is none. */
bool map_find_leftover(struct cluster *cluster, struct server_desc *ret_desc);
/* Segments of which it has a place: of the run's volumes, or of all. */
uint32_t map_count_places(struct cluster *cluster, const struct sim_server *server,
                          bool scratch_too);
/*
 * In-sync slots of the segments that have one of them on the server: the lowest number; UINT32_MAX:
 * it has none.
 */
uint32_t map_in_sync_least(struct cluster *cluster, const struct sim_server *server);
/* Of all segments: rises whenever one of them changes. */
uint64_t map_config_epochs(struct cluster *cluster);
/* What must be so at any time. */
void map_check(struct cluster *cluster);
void map_for_each(struct cluster *cluster,
                  void (*fn)(struct cluster *cluster, const struct sim_segment *segment,
                             void *context),
                  void *context);
/* All slots of all segments are in-sync, nothing moves, and no chunk is left behind. */
bool map_is_whole(const struct cluster *cluster);
/* Why not, to stderr. */
void map_print_unfinished(struct cluster *cluster);
/* Every sector of the run's volumes reads as what was written, from every slot of the map. */
bool map_is_good(const struct cluster *cluster);
/* How many do not. */
uint32_t map_count_bad(const struct cluster *cluster);

/* verdict.c */
/* The run's volume with this id; NULL: a scratch volume. */
const struct sim_volume *cluster_volume(const struct cluster *cluster, uint64_t id);
/* After clean closes: all copies of all segments are the same, nothing is pending. */
void verdict_compare_copies(struct cluster *cluster);
/* No chunk is left of a volume that was deleted. */
bool verdict_deleted_are_gone(const struct cluster *cluster);
/* A scrub of the volume, in which nothing was bad any more, has read all of it. */
void verdict_check_scrub(struct cluster *cluster, const struct sim_volume *volume,
                         const struct sim_scrub *scrub);

#endif
