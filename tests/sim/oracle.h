/* SPDX-License-Identifier: Apache-2.0 */
/*
 * oracle.h: what a volume may answer: decides, with each operation that ends, whether the history
 * is linearizable.
 *
 * Each logical block is a register.  Writes have unique values (discards and zeroes write 0).  What
 * the client library promises makes the order of all writes of a block known, so that no search is
 * needed:
 *   - requests of one owner that overlap take effect in the order of their submission;
 *   - owners (lease epochs) follow each other: what the next one sees of the last one's writes is
 *   decided once.
 * So the key of a write is (lease epoch, number of its submission).  Then
 *   1. a read returns a write that was submitted by then, and none with a key below
 *      - any write acknowledged before the read began,
 *      - any write of its own session submitted before it, unless that fails (as a whole, when all
 *        its parts have ended),
 *      - anything that a read of the same or an earlier owner had returned before it began;
 *   2. once a read of an owner has returned a write W of earlier owners, no read returns another
 *      write of theirs any more, and none of theirs above W has been or will be acknowledged (with
 *      zeroes: above the highest ones that were submitted by then);
 *   3. writes that were never acknowledged, or failed, may be returned or not, within 1 and 2.
 * A failed write leaves its range undecided until it is rewritten.  Requests to such a range wait,
 * and others that were submitted later may go first.  So in a session in which a write failed the
 * order of submission is not asked for, only linearizability: a read may not return a write that
 * ended before another one began that was acknowledged, or returned by another read, before this
 * read began.  (A write that covers several segments fails in parts, before it ends: when the order
 * is broken while none has failed, one of the writes that are under way must fail later.) A
 * replaced owner that doesn't know it yet may read old data: newer owners' writes and reads don't
 * bind its reads.
 *
 * Threads: one.  Errors: a violation ends the run (sim_fail()).
 */
#ifndef DLBLK_TESTS_ORACLE_H
#define DLBLK_TESTS_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/sim.h"

#define ORACLE_EPOCHS_MAX 4096u

enum oracle_state { ORACLE_SUBMITTED, ORACLE_ACKNOWLEDGED, ORACLE_FAILED };

struct oracle_write {
    uint64_t key; /* lease epoch << 32 | submission */
    uint64_t value;
    enum oracle_state state;
    uint64_t begin_ns, end_ns; /* end 0: not yet */
    uint64_t
        seen_ns; /* when the first read that returned it ended; 0: none has, or it is not unique */
    uint32_t seen_epoch; /* the owner who read it */
    bool overtaken;      /* a read submitted after it returned something older: it can only fail */
};

struct oracle_block {
    struct oracle_write
        *writes; /* ascending keys; what was there at first is not among them: key 0, value 0 */
    uint32_t count, capacity;
    uint64_t acknowledged_key; /* the highest */
    uint64_t seen_key;         /* the highest that a read returned ... */
    uint32_t seen_epoch;       /* ... to readers up to this epoch */
    uint32_t settled_epoch;    /* 2.: the latest owner that saw a write of earlier ones */
    uint64_t settled_key;      /* the lowest that it can have been: zeroes are not unique */
    uint64_t settled_ns;       /* when that read ended */
    uint64_t settled_value;
};

#define ORACLE_IN_FLIGHT_MAX 256u

/*
 * A write under way.  `suspect`: the order was broken meanwhile; one of its session's suspects must
 * fail.
 */
struct oracle_in_flight {
    uint64_t key;
    bool suspect;
};

struct oracle {
    const struct sim_world *world;
    const char *name;
    struct oracle_block *blocks;
    uint64_t block_count;
    uint32_t submissions[ORACLE_EPOCHS_MAX]; /* by lease epoch */
    bool begun[ORACLE_EPOCHS_MAX];
    bool disordered[ORACLE_EPOCHS_MAX]; /* a write failed */
    struct oracle_in_flight in_flight
        [ORACLE_IN_FLIGHT_MAX]; /* of sessions that died too, until their places are needed */
    uint32_t in_flight_count;
    uint64_t next_value;
    uint64_t writes_checked, blocks_checked, blocks_checked_loosely, reads_of_unacknowledged,
        settled;
};

void oracle_init(struct oracle *oracle, const struct sim_world *world, const char *name,
                 uint64_t block_count);
void oracle_fini(struct oracle *oracle);
void oracle_grow(struct oracle *oracle, uint64_t block_count);

/* A session with this lease epoch begins: the only one ever. */
void oracle_session_begin(struct oracle *oracle, uint32_t lease_epoch);

/* Values first_value, first_value + 1, ... for the blocks of a write.  Never 0. */
uint64_t oracle_take_values(struct oracle *oracle, uint64_t count);

/* A write is submitted; first_value 0: zeroes.  Returns its key. */
uint64_t oracle_write_begin(struct oracle *oracle, uint32_t lease_epoch, uint64_t first_block,
                            uint64_t count, uint64_t first_value);
/* shut_out: it failed because its owner was replaced; its session goes on with nothing. */
void oracle_write_end(struct oracle *oracle, uint64_t key, uint64_t first_block, uint64_t count,
                      bool acknowledged, bool shut_out);

struct oracle_read {
    uint64_t key;
    uint64_t begin_ns;
    uint64_t first_block, count;
    uint64_t *bounds; /* by block: no write with a lower key may be returned */
};

/* A read is submitted.  bounds: room for count, kept until the end. */
void oracle_read_begin(struct oracle *oracle, struct oracle_read *read, uint32_t lease_epoch,
                       uint64_t first_block, uint64_t count, uint64_t *bounds);
/* It ended well: with these values. */
void oracle_read_end(struct oracle *oracle, const struct oracle_read *read, const uint64_t *values);

/*
 * May an in-sync slot have this value in the block, now?  Not if something was acknowledged that
 * surely came after it: under a newer owner, or begun after it had ended.
 */
bool oracle_may_be_stored(const struct oracle *oracle, uint64_t block, uint64_t value);

/* What is known of a block, to stderr. */
void oracle_print_block(const struct oracle *oracle, uint64_t block);

#endif
