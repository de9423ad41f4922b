/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.h: what is known of attached devices outside of their servers: in /run/dlblk/ublk (or
 * $DLBLK_RUN_DIR), for each device N
 *
 *     N           text, "key=value" lines: all that a new server needs to take it over
 *     N.counters  struct ublk_counters, mapped by the server and by whoever looks
 *
 * A device's file is there from its ADD to its DEL.  What the kernel knows counts more: a file
 * without a device is a leftover.
 *
 * Threads: any; files are replaced as a whole.  Blocks: on a filesystem in memory.
 * Errors:  0 or negative; err says which file.
 */
#ifndef DLBLK_UBLK_STATE_H
#define DLBLK_UBLK_STATE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "dlblk/client.h"

#define UBLK_STATE_TEXT_BYTES  512u
#define UBLK_STATE_OWNER_BYTES 256u

struct ublk_state {
    uint32_t id;
    char volume[DLBLK_NAME_BYTES_MAX + 1];
    char meta[UBLK_STATE_TEXT_BYTES];   /* --meta as it was given, or empty */
    char config[UBLK_STATE_TEXT_BYTES]; /* --config as it was given, or empty */
    uint64_t volume_id;
    uint64_t size_bytes;
    uint32_t logical_bytes;
    uint32_t lease_epoch; /* of the last server; a newer one belongs to somebody else */
    uint32_t queue_count;
    uint32_t queue_depth; /* that users have; the kernel's device has one more */
    int32_t pid;
    uint64_t started_ms;
    uint64_t takeovers;
    bool read_only;
    bool volatile_cache;
    bool null; /* no volume: all reads are zeroes */
};

/* Creates the directory where it is missing. */
int ublk_state_save(const struct ublk_state *state, struct dl_error *err);
/* -ENOENT; -EINVAL for a file that is none of ours. */
int ublk_state_load(uint32_t id, struct ublk_state *ret_state, struct dl_error *err);
void ublk_state_remove(uint32_t id);
/* Calls fn for each, in the order of their ids; ends with fn's first result that is not 0. */
int ublk_state_for_each(int (*fn)(void *context, const struct ublk_state *state), void *context);
/* The device of this name ("/dev/ublkb3", "ublkb3") or volume.  -ENOENT. */
int ublk_state_find(const char *name, struct ublk_state *ret_state);

/* The text itself, for tests; -EINVAL names the line. */
int ublk_state_write(const struct ublk_state *state, FILE *file);
int ublk_state_read(FILE *file, struct ublk_state *ret_state);

const char *ublk_run_dir(void);
int ublk_run_dir_make(struct dl_error *err);

/* --- counters --- */

struct ublk_counters {
    uint64_t reads, writes, flushes, fuas, discards, write_zeroes, errors;
    uint64_t bytes_read, bytes_written;
    uint64_t in_flight;
    uint64_t reserved[502];
};

/* One writer; readers see whole numbers. */
static inline void
ublk_counter_add(uint64_t *counter, uint64_t count)
{
    __atomic_store_n(counter, *counter + count, __ATOMIC_RELAXED);
}

static inline void
ublk_counter_set(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

/* The server's: made where it is missing, and kept over a takeover. */
int ublk_counters_map(uint32_t id, struct ublk_counters **ret_counters, struct dl_error *err);
void ublk_counters_unmap(struct ublk_counters *counters);
/* A look at them.  Zeroes where there are none. */
void ublk_counters_get(uint32_t id, struct ublk_counters *ret_counters);

#endif
