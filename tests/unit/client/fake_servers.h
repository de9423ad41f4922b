/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_servers.h: a metadata service and chunkservers as a client sees them, with faults on order.
 *
 * They speak the real protocol on any env (the simulated world, or a loop with sockets) and keep
 * data in memory.  They keep the rules that the client relies on: versions, fences, epochs, pending
 * writes above S; and break them where a test says so. The metadata service looks into the
 * chunkservers' memory where the real one would ask them.
 *
 * Threads: one.
 */
#ifndef DLBLK_TESTS_CLIENT_FAKE_SERVERS_H
#define DLBLK_TESTS_CLIENT_FAKE_SERVERS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"
#include "common/vec.h"
#include "proto/control.pb-c.h"
#include "proto/frame.h"

#define FAKE_SERVERS_MAX 5u
#define FAKE_ID_BYTES    16u
#define FAKE_SEGMENTS    64u
#define FAKE_VOLUMES     2u
#define FAKE_PLACES      5u

struct fake_cluster;

/* --- chunkservers --- */

struct fake_sector {
    uint8_t kind; /* enum wire_sector_kind */
    uint32_t crc;
    uint64_t version;
    uint8_t *data;
};

struct fake_pending {
    uint64_t version;
    uint32_t first_sector, sector_count;
};

struct fake_chunk {
    struct list node;
    uint64_t volume;
    uint32_t segment, slot, config_epoch;
    uint64_t stable;
    uint32_t attempt; /* not 0: recovering */
    VEC(struct fake_pending) pending;
    uint32_t sector_count;
    struct fake_sector *sectors;
};

/* What a test can have happen.  A count of UINT32_MAX: always. */
struct fake_faults {
    int write_err; /* the next write_err_count writes are answered so, and not done */
    uint32_t write_err_count;
    int write_err_after; /* the same, but done all the same */
    uint32_t write_err_after_count;
    int read_err;
    uint32_t read_err_count;
    int stable_err;
    uint32_t stable_err_count;
    bool hold_stables;         /* as hold_writes */
    uint32_t read_flip_count;  /* a bit of the payload is flipped on the way to the client */
    uint32_t write_flip_count; /* ... and on the way from it */
    bool hold_writes;          /* done, but not answered before fake_server_release() */
    bool hold_reads;
    bool lost_writes; /* neither done nor ever answered */
    bool lost_reads, lost_pendings;
    bool deaf; /* nothing is answered, PING neither */
    int pending_err;
    uint32_t pending_err_count;
    bool any_disk; /* HELLO is answered whichever disk is meant */
    bool refuses;  /* HELLO is never answered with success */
    uint32_t
        close_after_writes; /* the link is closed behind so many writes, unanswered; 0: never */
};

struct fake_server {
    struct fake_cluster *cluster;
    struct env *env;
    uint32_t id;
    uint8_t uuid[FAKE_ID_BYTES];
    char address[sizeof(struct dl_address_text)];
    char host[32];
    struct list chunks;
    struct list links;                /* struct fake_session */
    struct list held;                 /* replies */
    uint32_t fence[FAKE_VOLUMES + 1]; /* by volume id */
    struct fake_faults faults;
    /* what came */
    uint64_t reads, writes, zeroes, stables, forgets, retries, resolves, lease_refused, crc_refused;
    uint64_t pendings, repairs, not_yet;
    uint32_t repair_first, repair_count; /* the last one's sectors */
    uint64_t write_order;                /* of the last write, over all servers */
    uint64_t last_version;
    uint32_t last_crc, last_slot_mask;
};

/* --- the metadata service --- */

struct fake_slot {
    uint32_t server_id; /* 0: no slot in this place */
    uint32_t state;     /* Dl__SlotState */
    uint32_t attempt, number;
};

struct fake_volume {
    uint64_t id;
    char name[32];
    uint64_t size_bytes;
    uint32_t segment_bytes, logical_block_bytes, stripe_width, stripe_unit_bytes, replicas;
    uint32_t lease_epoch;
    bool owned, clean, takeover;
    uint8_t attach_id[FAKE_ID_BYTES];
    bool allocated[FAKE_SEGMENTS];
    uint32_t config_epoch[FAKE_SEGMENTS];
    struct fake_slot slots[FAKE_SEGMENTS][FAKE_PLACES]; /* of allocated ones: replicas + 1 places */
    uint32_t min_write;
    uint32_t readers;
};

struct fake_cluster {
    struct env *meta_env;
    uint8_t cluster_id[FAKE_ID_BYTES];
    struct fake_server servers[FAKE_SERVERS_MAX];
    uint32_t server_count;
    struct fake_volume volumes[FAKE_VOLUMES];
    uint32_t volume_count;
    struct list meta_links;
    struct list meta_held; /* FENCE_STATUS and ALLOCATE that wait */
    uint32_t waited_for;   /* as FENCE_STATUS said last, as a bit mask */
    uint32_t unnamed;      /* servers that FENCE_STATUS says nothing of, as a bit mask */
    uint32_t part_writes;  /* FENCE_STATUS and PENDING list so many writes at once; 0: all */
    /* faults */
    uint32_t unanswered; /* bit per server: has not answered the fence */
    uint32_t
        gone_after_part; /* bit per server: does not answer any more after a part of its list */
    bool attach_held;    /* ATTACH is never answered */
    int attach_err;
    uint32_t attach_err_count;
    int map_err;
    uint32_t map_err_count;
    int allocate_err;
    uint32_t allocate_err_count;
    uint32_t allocate_max; /* more segments at once get -DL_E_NO_SPACE; 0: any number */
    bool allocate_held;
    bool allocate_empty; /* the answer has none of what was asked for */
    bool silent;         /* the metadata service answers nothing */
    bool eject_held;
    int eject_err;
    uint32_t eject_err_count;
    bool untold;     /* slots are not told of changes of their segment */
    bool names_only; /* ATTACH goes by the name, whatever it says else */
    /* what came */
    uint64_t attaches, detaches, detaches_clean, allocates, segments_allocated, map_gets,
        fence_statuses, ejects, ejections, ejections_refused, ejections_old;
    uint32_t last_ejected_server, last_eject_reason;
    uint64_t maps_known; /* successful answers to MAP_CHANGED */
    char waits[256];     /* of the last OWNER_WAITS */
    uint64_t waits_count, waited_ms;
    bool waits_unknown; /* that is not known */
    bool last_eject_resolved;
    uint64_t
        last_probe_status; /* wire status of the answer to the last OWNER_PROBE; UINT64_MAX: none */
    uint64_t order;
};

void fake_cluster_init(struct fake_cluster *cluster, struct env *meta_env);
void fake_cluster_fini(struct fake_cluster *cluster);
struct fake_server *fake_cluster_add_server(struct fake_cluster *cluster, struct env *env,
                                            const char *address, const char *host);
/* 3 replicas, linear, 1 MiB segments, 4096, unless changed before it is attached. */
struct fake_volume *fake_cluster_add_volume(struct fake_cluster *cluster, const char *name,
                                            uint64_t size_bytes);

/*
 * For whoever accepts the links: their core is the struct fake_cluster, or the struct fake_server.
 */
extern const struct link_events fake_meta_events;
extern const struct link_events fake_server_events;

/* Servers of a segment's slots, in order. */
uint32_t fake_volume_server_id(const struct fake_cluster *cluster, const struct fake_volume *volume,
                               uint32_t segment, uint32_t slot);
/* NULL: it has none. */
struct fake_chunk *fake_server_chunk(struct fake_server *server, uint64_t volume, uint32_t segment);

/* --- things that happen --- */

/*
 * A write as an owner of the past left it: pending on this server's slot of the segment.  data: the
 * sectors, NULL for a zero extent.
 */
void fake_server_put(struct fake_server *server, const struct fake_volume *volume, uint32_t segment,
                     uint64_t version, uint32_t first_sector, uint32_t sector_count,
                     const uint8_t *data);

void fake_server_release(struct fake_server *server);
/* It takes nothing from its links, until they go on. */
void fake_server_pause(struct fake_server *server, bool paused);
/* All its links are closed, from its side. */
void fake_server_drop_links(struct fake_server *server);
/* Its links are gone without a word: the process is. */
void fake_server_forget_links(struct fake_server *server);
void fake_meta_forget_links(struct fake_cluster *cluster);
void fake_meta_drop_links(struct fake_cluster *cluster);
void fake_meta_release(struct fake_cluster *cluster);
/* To every client that is connected. */
void fake_meta_probe(struct fake_cluster *cluster, const struct fake_volume *volume);
void fake_meta_push_changed(struct fake_cluster *cluster, const struct fake_volume *volume,
                            bool deleted);
/* A place of the map is another one from now on, under a config epoch that is one higher. */
void fake_meta_set_slot(struct fake_cluster *cluster, struct fake_volume *volume, uint32_t segment,
                        uint32_t place, struct fake_slot slot);
/* MAP_CHANGED of one segment, to every client that is connected. */
void fake_meta_push_map(struct fake_cluster *cluster, const struct fake_volume *volume,
                        uint32_t segment);
/* As SLOT would: the slot's chunk is what the map says; it comes into being if it is not there. */
void fake_server_tell(struct fake_server *server, const struct fake_volume *volume,
                      uint32_t segment);
/* A recovering slot has pulled all that the other one has. */
void fake_server_pull(struct fake_server *server, struct fake_server *source,
                      const struct fake_volume *volume, uint32_t segment);
/* Somebody else attaches: the lease rises, and with `fence` every server knows. */
void fake_meta_take_over(struct fake_cluster *cluster, struct fake_volume *volume, bool fence);

#endif
