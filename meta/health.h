/* SPDX-License-Identifier: Apache-2.0 */
/*
 * health.h: what state volumes and servers are in, for the status requests.  health.c has the
 * words.
 *
 * Threads: the core's.  Memory: nothing is kept.
 */
#ifndef DLBLK_META_HEALTH_H
#define DLBLK_META_HEALTH_H

#include "meta/recovery.h"

#define META_PROBLEM_BYTES    512u
#define META_HEALTH_PROBLEMS  8u /* at most, of one volume */
#define VOLUME_HEALTH_SERVERS 3u
#define VOLUME_HEALTH_WAITS   6u
#define META_HINT_FULL        "add chunkservers, delete volumes, or discard what is not needed"

/* Copies that are not being made yet. */
struct health_wait {
    enum recovery_wait why;
    uint32_t server_id; /* 0: it is not about one */
    uint64_t count;
};

/* The first of them. */
struct health_servers {
    uint32_t ids[VOLUME_HEALTH_SERVERS];
    uint32_t count;
    bool more;
};

struct volume_health {
    uint64_t segments, in_sync, degraded, blocked, unreadable, moving;
    uint64_t absent;  /* segments with a slot whose server is not there */
    uint64_t no_room; /* ... with one that was given up, and nobody has room for */
    uint64_t slots_recovering;
    uint64_t left_bytes;
    uint64_t since_ms;                               /* of its state */
    uint64_t degraded_ms, blocked_ms, unreadable_ms; /* since when; 0: not known */
    bool owner_waits;                                /* as it says itself */
    const struct meta_server *bad_server;            /* that has bad sectors; NULL: none has */
    const Dl__BadVolume *bad;
    struct health_servers waiting; /* servers that are not there */
    struct health_servers needed;  /* ... and have copies that reads or writes wait for */
    struct health_servers awaited; /* have not registered yet since the service's start */
    struct health_servers full;    /* take no new data, nor others in their place */
    struct health_wait waits[VOLUME_HEALTH_WAITS];
    uint32_t wait_count;
};

void meta_health_volume(const struct meta_core *core, const struct meta_volume *volume,
                        struct volume_health *ret_health);
/* "healthy", "recovering", "degraded", "blocked" */
const char *meta_health_state(const struct volume_health *health);
/* Sentences, at most META_HEALTH_PROBLEMS; how many. */
uint32_t meta_health_problems(const struct meta_core *core, const struct meta_volume *volume,
                              const struct volume_health *health,
                              char (*texts)[META_PROBLEM_BYTES]);
/* That new data finds no place, though all that is there is well; false: it does. */
bool meta_health_no_place(const struct meta_core *core, const struct meta_volume *volume,
                          const struct volume_health *health, char *text, size_t text_bytes);
/* What the volume's owner says that it waits for; false: nothing.  waits.c */
bool meta_waits_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                     size_t text_bytes);
/* Since when it waits, for display; 0: it doesn't. */
uint64_t meta_waits_since_ms(const struct meta_core *core, const struct meta_volume *volume);
/* Why copies wait for their turn: sentences, at most VOLUME_HEALTH_WAITS; how many. */
uint32_t meta_health_waits(const struct meta_core *core, const struct meta_volume *volume,
                           const struct volume_health *health, char (*texts)[META_PROBLEM_BYTES]);
/* How fast recovery is, and how long it takes; 0: not known, or no slot recovers now. */
void meta_health_fill_sums(struct meta_core *core, uint64_t slots_recovering, uint64_t left_bytes,
                           uint64_t *ret_rate, uint64_t *ret_left_s);

struct server_message {
    Dl__Server message;
    char problem[META_TEXT_BYTES_MAX];
    Dl__ScrubCounts scrub;
};
/* Points into server and into itself. */
void meta_server_fill(const struct meta_core *core, const struct meta_server *server,
                      struct server_message *entry);

#endif
