/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.h: libdlblk, the asynchronous C API of dlblk: volumes as block devices, and
 * administration.
 *
 * Model:   a client has one thread of its own (an io_uring loop) that does all work.  A volume is
 *          opened on a client.
 * Threads: every function may be called from any thread, except from inside a callback where it
 *          says so.  Callbacks run on the client's thread, must not block, and may submit further
 *          requests.
 * Errors:  0 or a negative number: -errno or -DL_E_* (error.h; dl_err_class() gives the errno).
 *          Control functions also fill `err` (may be NULL) with what failed, on which object, why,
 *          and what to do.
 * Memory:  request structs and their buffers are the caller's, and libdlblk's between submit and
 *          on_done.
 * Prints:  nothing.  What happens is told through the event callback.
 *
 * Durability: a write is acknowledged when it is on stable storage in every in-sync copy.  Flush
 * and FUA therefore have nothing to do but to wait for the writes that were submitted before.
 */
#ifndef DLBLK_CLIENT_H
#define DLBLK_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "dlblk/error.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

#define DLBLK_NAME_BYTES_MAX    128u
#define DLBLK_REQUEST_BYTES_MAX (64u << 20)

struct dlblk_client;
struct dlblk_volume;

/* --- client --- */

enum dlblk_event_level {
    DLBLK_EVENT_DEBUG,
    DLBLK_EVENT_INFO,
    DLBLK_EVENT_WARNING,
    DLBLK_EVENT_ERROR
};

/* One sentence about what happened; on the client's thread; text is valid during the call. */
typedef void (*dlblk_event_fn)(void *context, enum dlblk_event_level level, const char *text);

struct dlblk_client_options {
    /* "host:port[,host:port...]"; NULL: $DLBLK_META, the configuration file, 127.0.0.1 */
    const char *meta;
    const char *config_path;     /* NULL: /etc/dlblk/dlblk.conf, which may be missing */
    const char *program;         /* for the servers' logs and "attached by"; NULL: "libdlblk" */
    uint32_t connect_timeout_ms; /* of control calls while nobody answers; 0: 10 s */
    uint32_t request_timeout_ms; /* how long I/O is tried before it fails; 0: no limit */
    /*
     * When a copy that a write waits for is given up: its server's connection is gone; the server
     * is silent; it answers, but not this write.  UINT32_MAX: never; 0: the default
     */
    uint32_t eject_lost_ms, eject_silent_ms, eject_slow_ms;
    /* A read that takes so long is asked for elsewhere too; 0: 10 ms; UINT32_MAX: never */
    uint32_t hedge_min_ms;
    dlblk_event_fn on_event; /* may be NULL */
    void *event_context;
};

/* Starts the thread and connects to the metadata service.  options may be NULL. */
int dlblk_client_create(struct dlblk_client **ret_client,
                        const struct dlblk_client_options *options, struct dl_error *err);
/* All volumes must be closed before.  NULL is allowed.  Not from a callback. */
void dlblk_client_destroy(struct dlblk_client *client);

/* --- volumes as block devices --- */

enum dlblk_open_flags {
    DLBLK_OPEN_READ_ONLY = 1u << 0, /* refused while somebody has it open for writing */
    /* take the volume from an owner that is alive; its I/O fails from then on */
    DLBLK_OPEN_STEAL = 1u << 1,
};
/*
 * Or this to the flags: every READ goes to this slot's server and to no other, whatever it answers.
 * For checkers that compare the copies with each other; a volume in use lets libdlblk choose.
 */
#define DLBLK_OPEN_READ_SLOT(slot) (((uint32_t)(slot) + 1u) << 8)

struct dlblk_volume_geometry {
    uint64_t id;
    uint64_t size_bytes;
    uint32_t logical_block_bytes; /* 512 or 4096: alignment of requests */
    /* writes of this much, aligned, are never torn: max(4096, logical block) */
    uint32_t atomic_bytes;
    uint32_t optimal_io_bytes;
    uint32_t segment_bytes;
    bool read_only;
};

/*
 * Attach: blocks until the volume can be used: a takeover from a dead owner takes a second or two.
 *   -DL_E_VOLUME_UNKNOWN | -DL_E_VOLUME_BUSY (names the owner) | -DL_E_FENCE_PENDING (names the
 *   servers it waited for) | -DL_E_META_UNREACHABLE
 */
int dlblk_volume_open(struct dlblk_client *client, const char *name, uint32_t flags,
                      struct dlblk_volume **ret_volume, struct dl_error *err);
/*
 * The same without these servers, which never come back: an operator's word, for a volume whose
 * last owner is dead.  They are out of its map first; not where one has the last copy in-sync.
 *   -DL_E_SERVER_UNKNOWN | -DL_E_BUSY (it is connected: not gone at all)
 */
int dlblk_volume_open_without(struct dlblk_client *client, const char *name, uint32_t flags,
                              const uint32_t *gone_server_ids, size_t gone_server_count,
                              struct dlblk_volume **ret_volume, struct dl_error *err);
/*
 * Waits for what is in flight, then detaches cleanly.  The handle is gone whatever it returns.  Not
 * from a callback.
 */
int dlblk_volume_close(struct dlblk_volume *volume, struct dl_error *err);
void dlblk_volume_get_geometry(const struct dlblk_volume *volume,
                               struct dlblk_volume_geometry *ret_geometry);

enum dlblk_op {
    DLBLK_READ = 1,
    DLBLK_WRITE,
    DLBLK_FLUSH,        /* covers every write that was submitted before; offset and length are 0 */
    DLBLK_DISCARD,      /* reads as zeroes afterwards; gives space back */
    DLBLK_WRITE_ZEROES, /* the same */
};

struct dlblk_request;
/* err: 0 or negative.  May free or submit the request again. */
typedef void (*dlblk_done_fn)(struct dlblk_request *request, int err);

/*
 * One request.  Offset and length in bytes, multiples of the logical block, inside the volume,
 * length 1 block to DLBLK_REQUEST_BYTES_MAX (DISCARD and WRITE_ZEROES: any length inside the
 * volume).  Requests in flight that overlap take effect in the order of their submission.
 */
struct dlblk_request {
    enum dlblk_op op;
    uint32_t iov_count;
    uint64_t offset_bytes;
    uint64_t length_bytes;
    const struct iovec *iov; /* READ, WRITE: total length_bytes; valid until on_done */
    struct iovec iov_one;    /* room for the common case */
    dlblk_done_fn on_done;
    void *context; /* the caller's */
    void *dlblk_private[8];
};

/* Never fails inside the call and never blocks: all errors arrive in on_done. */
void dlblk_submit(struct dlblk_volume *volume, struct dlblk_request *request);

/* The same, waiting.  Not from a callback. */
int dlblk_read(struct dlblk_volume *volume, void *buffer, uint64_t length_bytes,
               uint64_t offset_bytes);
int dlblk_write(struct dlblk_volume *volume, const void *buffer, uint64_t length_bytes,
                uint64_t offset_bytes);
int dlblk_flush(struct dlblk_volume *volume);
int dlblk_discard(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes);
int dlblk_write_zeroes(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes);

/*
 * Which parts have data: calls fn for runs in order, adjacent runs differ.  hole: no space is used
 * and it reads as zeroes.  Exact to segments (unallocated ones are holes) and, inside allocated
 * ones, to 4 KiB.
 */
typedef int (*dlblk_extent_fn)(void *context, uint64_t offset_bytes, uint64_t length_bytes,
                               bool hole);
int dlblk_extents(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes,
                  dlblk_extent_fn fn, void *context);

struct dlblk_volume_stats {
    uint64_t reads, writes, flushes, discards, write_zeroes;
    uint64_t bytes_read, bytes_written, bytes_discarded;
    uint64_t in_flight;
    uint64_t retries, crc_errors, reconnects;
    uint64_t requests_waiting;             /* for a segment, a lock or a server */
    char blocked[256];                     /* empty, or what requests wait for */
    bool is_blocked;                       /* writes wait until more copies are back */
    uint64_t ejections, ejections_refused; /* slots that failed a write: out; not allowed */
    uint64_t hedged_reads;                 /* asked for elsewhere too, since they took long */
    uint64_t repairs;                      /* servers that were told of a bad sector */
};
void dlblk_volume_get_stats(struct dlblk_volume *volume, struct dlblk_volume_stats *ret_stats);

/* --- administration; each blocks --- */

enum dlblk_domain { DLBLK_DOMAIN_SERVER = 1, DLBLK_DOMAIN_HOST = 2, DLBLK_DOMAIN_RACK = 3 };

/*
 * Zeroes mean defaults: 64 MiB segments, 4096, width 1, units of 256 KiB, 3 replicas, min_write 2,
 * host.
 */
struct dlblk_volume_spec {
    const char *name;
    uint64_t size_bytes;
    uint32_t segment_bytes;
    uint32_t logical_block_bytes;
    uint32_t stripe_width;
    uint32_t stripe_unit_bytes;
    uint32_t replicas;
    uint32_t min_write;
    enum dlblk_domain failure_domain;
    const char *clique; /* NULL: any server */
};

struct dlblk_volume_info {
    uint64_t id;
    char name[DLBLK_NAME_BYTES_MAX + 1];
    uint64_t size_bytes;
    uint32_t segment_bytes, logical_block_bytes, stripe_width, stripe_unit_bytes;
    uint32_t replicas, min_write;
    enum dlblk_domain failure_domain;
    char clique[DLBLK_NAME_BYTES_MAX + 1];
    uint64_t allocated_bytes; /* segments x segment size, one copy */
    uint32_t lease_epoch;
    uint64_t created_ms; /* since 1970 */
    char owner[256];     /* empty: not attached */
    uint64_t attached_ms;
    bool clean;
};

#define DLBLK_SENTENCE_BYTES    512u
#define DLBLK_LOCATED_SLOTS_MAX 16u

/* How far the making of copies is. */
struct dlblk_recovery {
    uint64_t slots;      /* that are being made */
    uint64_t left_bytes; /* to be gone over, at most */
    uint64_t bytes_per_s;
    uint64_t left_s; /* 0: not known */
};

/* What looking at everything has found (dlblk_volume_scrub(), and servers by themselves). */
struct dlblk_scrub_counts {
    uint64_t sectors;    /* of 4 KiB: read, and compared with their checksums */
    uint64_t bad;        /* were damaged */
    uint64_t repaired;   /* of those; or written anew meanwhile */
    uint64_t left_bad;   /* are damaged now, as far as is known */
    uint64_t mismatches; /* copies differ, and each has a checksum that fits */
};

#define DLBLK_SCRUB_ABSENT_MAX 16u

struct dlblk_scrub {
    char state[16]; /* none, running, done */
    uint8_t id[16];
    uint64_t total_bytes, done_bytes; /* to be gone over, all copies; so far */
    uint64_t left_s;                  /* 0: not known */
    struct dlblk_scrub_counts counts;
    uint64_t chunks_skipped; /* copies of segments that could not be looked at: they recover */
    uint64_t uncompared;     /* segments whose copies could not all be compared with each other */
    uint32_t absent_count;   /* servers that are down: what is there was not looked at */
    uint32_t absent[DLBLK_SCRUB_ABSENT_MAX];
    uint64_t begun_ms, ended_ms; /* since 1970; 0: not yet */
};

struct dlblk_server_info {
    uint32_t id;
    char uuid[37];
    char address[256];
    char host[DLBLK_NAME_BYTES_MAX + 1], rack[DLBLK_NAME_BYTES_MAX + 1],
        clique[DLBLK_NAME_BYTES_MAX + 1];
    char state[16]; /* up, down, draining, out */
    uint64_t capacity_bytes, used_bytes, chunk_count, last_heard_ms;
    char problem[256]; /* empty, or what is wrong */
    char software[129];
    uint64_t slot_count;       /* copies of segments that belong there, by the maps */
    uint64_t chunks_to_delete; /* belong there no more, and are still to be deleted */
    uint32_t weight_percent;   /* share of new segments; 100: by its free space */
    bool draining, removing;
    struct dlblk_scrub_counts scrub; /* since the server's start */
    uint64_t scrub_completed_ms;     /* its whole disk had been read by then; 0: never */
};

/* What a change of a server does, or would do. */
struct dlblk_server_change {
    struct dlblk_server_info server;
    uint64_t slots, bytes;    /* to move or to be made again; bytes at most */
    uint64_t below_min_write; /* segments left with fewer copies in sync than min_write */
    uint64_t last_copies;     /* segments left without any */
    size_t effect_count;
    char (*effects)[DLBLK_SENTENCE_BYTES];
};

/* NULL: as it is; "": none (a host can't be without). */
struct dlblk_server_labels {
    const char *host, *rack, *clique;
    uint32_t weight_percent; /* 0: as it is; 1 to 1000 */
};

struct dlblk_cluster_status {
    char cluster_id[37];
    char state[16]; /* healthy, recovering, degraded, blocked */
    uint32_t servers_total, servers_up, volumes;
    uint64_t capacity_bytes, used_bytes, volume_bytes, segments, uptime_ms;
    char software[129];
    size_t problem_count;
    char (*problems)[DLBLK_SENTENCE_BYTES]; /* each: what, since when, what to do */
    uint64_t segments_degraded, segments_blocked, segments_moving;
    struct dlblk_recovery recovery;
    struct dlblk_scrub_counts scrub; /* of all servers that are up */
    uint64_t scrub_completed_ms;     /* all of them had read everything by then; 0: not yet */
};

struct dlblk_volume_status {
    struct dlblk_volume_info info;
    char state[16]; /* healthy, recovering, degraded, blocked */
    size_t problem_count;
    char (*problems)[DLBLK_SENTENCE_BYTES];
    uint64_t since_ms; /* since 1970: how long it has not been healthy; 0: it is, or unknown */
    uint64_t segments;
    uint64_t segments_in_sync;    /* all copies are */
    uint64_t segments_degraded;   /* fewer copies are there, but min_write at least */
    uint64_t segments_blocked;    /* fewer than min_write: writes wait */
    uint64_t segments_unreadable; /* none */
    uint64_t segments_moving;     /* all copies are, and one moves to another server */
    struct dlblk_recovery recovery;
    struct dlblk_scrub scrub; /* the last that was asked for since the service's start */
};

/* Where a byte lies. */
struct dlblk_located_slot {
    uint32_t number; /* which copy */
    uint32_t server_id;
    char address[256];
    char host[DLBLK_NAME_BYTES_MAX + 1];
    char server_state[16]; /* up, down */
    char problem[256];     /* of the server; empty: none */
    char state[16];        /* in-sync, recovering, ejected */
    bool incoming;         /* takes the place of the copy with this number when it is in-sync */
    uint32_t attempt, incarnation;
    uint64_t recovered_bytes; /* recovering: so far it has got */
};
struct dlblk_segment_location {
    uint32_t segment;
    uint64_t offset_bytes; /* in the segment */
    uint64_t segment_bytes;
    bool allocated; /* else it lies nowhere, and reads as zeroes */
    uint32_t config_epoch;
    uint32_t slot_count;
    struct dlblk_located_slot slots[DLBLK_LOCATED_SLOTS_MAX];
};

/* An entry of the cluster's log. */
struct dlblk_log_entry {
    uint64_t sequence;
    uint64_t at_ms; /* since 1970 */
    /*
     * ejected, recovered, takeover, server-up, server-down, server-out, server-reset, admin,
     * bad-sector, waits
     */
    char kind[16];
    uint32_t server_id;                         /* 0: none */
    uint64_t volume_id;                         /* 0: none */
    char volume_name[DLBLK_NAME_BYTES_MAX + 1]; /* as it was */
    uint32_t segment, segment_count;            /* the first one of so many; 0: none */
    char text[DLBLK_SENTENCE_BYTES];
};
struct dlblk_log {
    struct dlblk_log_entry *entries; /* malloc'ed; the caller frees them */
    size_t count;
    uint64_t next; /* to ask for what follows */
    bool lost;     /* entries before the first one were dropped already */
};

int dlblk_volume_create(struct dlblk_client *client, const struct dlblk_volume_spec *spec,
                        struct dlblk_volume_info *ret_info, struct dl_error *err);
int dlblk_volume_info(struct dlblk_client *client, const char *name,
                      struct dlblk_volume_info *ret_info, struct dl_error *err);
/* Arrays are malloc'ed, sorted by name or id; the caller frees them. */
int dlblk_volume_list(struct dlblk_client *client, struct dlblk_volume_info **ret_infos,
                      size_t *ret_count, struct dl_error *err);
int dlblk_volume_rename(struct dlblk_client *client, const char *name, const char *new_name,
                        struct dl_error *err);
/* Grows only; an owner sees the new size at once. */
int dlblk_volume_resize(struct dlblk_client *client, const char *name, uint64_t size_bytes,
                        struct dl_error *err);
/* Refused while attached. */
int dlblk_volume_delete(struct dlblk_client *client, const char *name, struct dl_error *err);
int dlblk_server_list(struct dlblk_client *client, struct dlblk_server_info **ret_infos,
                      size_t *ret_count, struct dl_error *err);
int dlblk_cluster_status(struct dlblk_client *client, struct dlblk_cluster_status *ret_status,
                         struct dl_error *err);
void dlblk_cluster_status_fini(struct dlblk_cluster_status *status);

/*
 * Servers by their id.  dry_run: nothing changes, the answer is the same.  ret_change may be NULL;
 * else dlblk_server_change_fini() frees what it has.
 */
/* All copies move to other servers; each stays until the other is in sync. */
int dlblk_server_drain(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                       struct dlblk_server_change *ret_change, struct dl_error *err);
/* In use again; what has moved stays where it is. */
int dlblk_server_undrain(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                         struct dlblk_server_change *ret_change, struct dl_error *err);
/*
 * It is empty, or never comes back: its copies are made again elsewhere, then it is forgotten.
 * force: although segments are left with fewer copies than min_write until then.
 */
int dlblk_server_remove(struct dlblk_client *client, uint32_t server_id, bool force, bool dry_run,
                        struct dlblk_server_change *ret_change, struct dl_error *err);
int dlblk_server_set(struct dlblk_client *client, uint32_t server_id,
                     const struct dlblk_server_labels *labels, bool dry_run,
                     struct dlblk_server_change *ret_change, struct dl_error *err);
void dlblk_server_change_fini(struct dlblk_server_change *change);

int dlblk_volume_status(struct dlblk_client *client, const char *name,
                        struct dlblk_volume_status *ret_status, struct dl_error *err);
void dlblk_volume_status_fini(struct dlblk_volume_status *status);
/*
 * Read all copies now, compare them with their checksums and with each other, repair what is bad.
 * id: 16 random bytes.  The same id again: how far it is.  If another one is under way that is
 * told, with its id, and nothing begins.
 */
int dlblk_volume_scrub(struct dlblk_client *client, const char *name, const uint8_t id[16],
                       struct dlblk_scrub *ret_scrub, struct dl_error *err);
int dlblk_segment_locate(struct dlblk_client *client, const char *name, uint64_t offset_bytes,
                         struct dlblk_segment_location *ret_location, struct dl_error *err);
/*
 * The cluster's log behind the entry `after` (0: from its start; UINT64_MAX: what comes from now
 * on), max entries at most (0: as many as fit into an answer).  With nothing to tell it waits,
 * wait_ms at most, and 30 s; then count is 0.
 */
int dlblk_log_read(struct dlblk_client *client, uint64_t after, uint32_t max, uint32_t wait_ms,
                   struct dlblk_log *ret_log, struct dl_error *err);

/*
 * "libdlblk 0.1.0 (commit 0123456789ab), wire version 1, ..."; valid until the thread's next call.
 */
const char *dlblk_version(void);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
