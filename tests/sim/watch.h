/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch.h: what must be so at any moment, looked at as things happen; and faults that are aimed at
 * what happens.
 *
 * The oracle judges what clients are told; a mistake shows there only if somebody reads the right
 * block at the right time.  Here the disks, the map of the metadata service, the maps of clients
 * and the frames between them are compared with each other, so that a mistake shows where it is
 * made.
 *
 * When a segment's map has changed (a commit of the metadata service), and now and then besides:
 *   1. an in-sync slot has what was acknowledged, and nothing void;
 *   2. what a slot would not ask for in its next attempt (it is at or below its steps, or its S),
 *      and an in-sync slot has, it has;
 *   3. once an owner uses the segment, what older owners wrote is the same in all in-sync slots;
 *   4. a slot was ejected by an EJECT that names the config epoch from which the map changed, and
 *      left min_write slots in-sync, if it was ejected for its owner; when an in-sync slot is none
 *      any more, each that recovers has a new attempt, but for an owner who said `resolved`.
 * When a write is acknowledged: 1. of its blocks.
 * When frames come and go:
 *   5. a slot that recovers answers no READ and no PULL;
 *   6. whoever answers a PULL was told of the attempt, by the metadata service or by the owner;
 *   7. a chunk is deleted when nobody has a map any more in which it is read, unless he is fenced
 *      there;
 *   8. who has begun an attempt has the fence that came with it;
 *   9. no WRITE makes a chunk anew that CHUNK_DELETE has taken away;
 *  12. who says `resolved` of a segment has no takeover of it to finish.
 * When a segment is ready after a takeover:
 *  10. each slot that is in-sync in the owner's map, and has recovered, has said since then what is
 *      pending there;
 *  11. and each has the rewrites that were sent.
 *
 * Threads: one.  Errors: a violation ends the run (sim_fail()).
 */
#ifndef DLBLK_TESTS_WATCH_H
#define DLBLK_TESTS_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/cluster.h"

struct watch;
struct aim;
struct plots;
struct watch_takeovers;

/* --- watch.c --- */

/* When the cluster's profile is chosen and its servers are there.  May change the profile. */
void watch_create(struct cluster *cluster);
void watch_destroy(struct cluster *cluster);
/* After each event. */
void watch_step(struct cluster *cluster);
/* A request to write was acknowledged. */
void watch_acknowledged(struct cluster *cluster, const struct sim_volume *volume,
                        uint64_t first_block, uint64_t block_count);

/* NULL: it is none; or the metadata service knows no server by that id. */
struct sim_server *watch_server_of_process(struct cluster *cluster,
                                           const struct sim_process *process);
struct sim_server *watch_server_by_id(struct cluster *cluster, uint32_t id);

/* --- watch_takeover.c --- */

struct watch_takeovers *watch_takeovers_create(struct cluster *cluster);
void watch_takeovers_destroy(struct watch_takeovers *watch);
void watch_takeovers_on_frame(struct watch_takeovers *watch, const struct sim_frame_event *event);
/* After each event. */
void watch_takeovers_step(struct watch_takeovers *watch);

/* --- watch_client.c: what a client has in its memory --- */

/* Does it read this slot of the segment there, by its map? */
bool watch_client_reads(const struct sim_client *client, uint64_t volume, uint32_t segment,
                        uint32_t number, uint32_t server_id);
/* Has it the volume for writing, and what older owners left of the segment is settled? */
bool watch_client_uses(const struct sim_client *client, uint64_t volume, uint32_t segment);
/* Has it still to settle what older owners left of the segment? */
bool watch_client_resolves(const struct sim_client *client, uint64_t volume, uint32_t segment);
/* 0: it has no volume. */
uint32_t watch_client_lease(const struct sim_client *client, uint64_t volume);

/* --- aim.c --- */

struct aim *aim_create(struct cluster *cluster);
void aim_destroy(struct aim *aim);
void aim_on_frame(struct aim *aim, const struct sim_frame_event *event);

/* Of all disks: those that are there, and those that will come. */
void aim_set_slowness(struct cluster *cluster, struct model_slowness slowness);

/* --- aim_plots.c --- */

struct plots *plots_create(struct cluster *cluster);
void plots_destroy(struct plots *plots);
/* In the chaos, of processes that may be struck. */
void plots_on_frame(struct plots *plots, const struct sim_frame_event *event);

#endif
