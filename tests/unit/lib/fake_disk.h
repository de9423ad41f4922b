/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_disk.h: a disk in memory that may do everything a real one may do.
 *
 *     submit ---> in flight ---step (random order)---> completed, in the cache ---flush---> stable
 *
 * - I/Os complete in a random order drawn from the env's seed, each in a turn of its own.
 * - `image` is what reads see, `stable` what a power cut leaves for sure.  fake_disk_crash() lets
 *   any subset of what is in flight or in the cache reach the stable image: whole writes, single
 *   blocks of a write, or single 512-byte pieces (drawn per crash, so that each of "all", "nothing"
 *   and "a bit of everything" comes often); of several writes to one block any one may be what is
 *   left.
 * - fake_disk_kill() is the death of the process alone: what had completed stays visible and is
 *   still in the cache, what was in flight has reached the cache whole, in part or not at all.
 * - A failed write leaves its blocks old, new, or torn.  A failed flush makes nothing durable, and
 *   no later flush makes durable what the failed one covered (as Linux does).
 * - Bad blocks (read errors) and flipped bits, by offset.
 *
 * It looks for mistakes of its user, counted in `violations` with a text of the first: two writes
 * in flight over the same block, a write over a block that is being read, a buffer changed while
 * the disk had it, a misaligned or out-of-range request.
 *
 * Threads: one.  The _now forms work on the image at once; they are recorded, and cached, like the
 *          others.
 */
#ifndef DLBLK_TESTS_FAKE_DISK_H
#define DLBLK_TESTS_FAKE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/disk.h"
#include "tests/unit/lib/fake_env.h"

#define FAKE_DISK_BLOCK 4096u
#define FAKE_DISK_PIECE 512u

struct fake_disk_event {
    enum disk_io_kind kind;
    bool completed; /* false: submitted */
    bool now;       /* a blocking form */
    int result;
    uint64_t offset_bytes;
    uint64_t length_bytes;
};

/* Fails I/Os of one kind: `countdown` succeed, then `count` fail with `err`. */
struct fake_fault {
    bool armed;
    uint64_t countdown;
    uint64_t count;
    int err; /* negative errno */
    uint64_t
        from_bytes; /* only I/Os that begin in [from_bytes, to_bytes) count; flushes always do */
    uint64_t to_bytes;
    uint64_t hits; /* how often it failed one */
};

struct fake_disk_write; /* a write in the cache */
struct fake_disk_io;    /* an I/O in flight */

struct fake_disk {
    struct disk disk;
    struct fake_env *env;
    uint8_t *image;
    uint8_t *stable;
    uint8_t *bad;      /* a bit per block: reads fail */
    uint16_t *writing; /* writes in flight over a block */
    uint16_t *reading; /* reads in flight over a block */
    struct fake_disk_io **inflight;
    uint32_t inflight_count, inflight_capacity;
    struct fake_disk_write *
        *cache; /* completed writes that no flush has covered, in order of completion */
    uint32_t cache_count, cache_capacity;
    uint64_t completed_seq;
    struct fake_fault faults[3]; /* by disk_io_kind */
    bool power_armed, power_off;
    uint64_t power_countdown;
    uint64_t violations;
    char violation[160];
    /* counters */
    uint64_t ios[3], bytes[3];
    uint64_t inflight_at_crash, cached_at_crash, lost_at_crash, torn_at_crash;
    /* optional log of all events, for tests that look at the order */
    bool record;
    struct fake_disk_event *log;
    uint32_t log_count, log_capacity;
    /* optional: called for each event */
    void (*on_event)(void *context, const struct fake_disk_event *event);
    void *on_event_context;
};

/* The disk is full of zeroes, and registers as a source of `env`. */
void fake_disk_init(struct fake_disk *fake, struct fake_env *env, uint64_t size_bytes,
                    bool write_through);
void fake_disk_fini(struct fake_disk *fake);

/* Complete one I/O in flight, picked at random. */
void fake_disk_step(struct fake_disk *fake);
/* The I/Os in flight. */
uint32_t fake_disk_pending(const struct fake_disk *fake);

/*
 * Of these: of a kind, beginning in [from_bytes, to_bytes), of at least length_min bytes; flushes
 * are everywhere.
 */
uint32_t fake_disk_count(const struct fake_disk *fake, enum disk_io_kind kind, uint64_t from_bytes,
                         uint64_t to_bytes, uint64_t length_min);

/* Power cut.  No on_done runs for what was in flight: its memory may be gone already. */
void fake_disk_crash(struct fake_disk *fake);
/* Death of the process. */
void fake_disk_kill(struct fake_disk *fake);
/* Everything in the cache becomes stable. */
void fake_disk_settle(struct fake_disk *fake);

/* Fail `count` I/Os of `kind` after `countdown` that succeed; offsets [from_bytes, to_bytes). */
void fake_disk_fail(struct fake_disk *fake, enum disk_io_kind kind, uint64_t countdown,
                    uint64_t count, int err, uint64_t from_bytes, uint64_t to_bytes);
/*
 * The power goes during the (countdown + 1)-th write or flush from now, for callers that use the
 * blocking forms: that one is torn, and everything fails with -EIO and changes nothing until
 * fake_disk_crash(), which also restores the power.
 */
void fake_disk_power_off_after(struct fake_disk *fake, uint64_t countdown);
/* Reads that touch the range fail with -EIO until it is written again. */
void fake_disk_set_bad(struct fake_disk *fake, uint64_t offset_bytes, uint64_t length_bytes,
                       bool bad);
void fake_disk_flip_bit(struct fake_disk *fake, uint64_t offset_bytes, unsigned bit);
/* Look at, and overwrite, both images behind everybody's back. */
void fake_disk_peek(const struct fake_disk *fake, void *buffer, size_t length_bytes,
                    uint64_t offset_bytes);
void fake_disk_poke(struct fake_disk *fake, const void *buffer, size_t length_bytes,
                    uint64_t offset_bytes);

#endif
