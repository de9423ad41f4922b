/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/oracle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static uint32_t
epoch_of_key(uint64_t key)
{
    return (uint32_t)(key >> 32);
}

static void *
oracle_resize(const struct oracle *oracle, void *memory, size_t count, size_t item_bytes)
{
    memory = reallocarray(memory, count, item_bytes);
    sim_require(oracle->world, memory != NULL, "no memory");
    return memory;
}

void
oracle_init(struct oracle *oracle, const struct sim_world *world, const char *name,
            uint64_t block_count)
{
    memset(oracle, 0, sizeof(*oracle));
    oracle->world = world;
    oracle->name = name;
    oracle->next_value = 1;
    oracle_grow(oracle, block_count);
}

void
oracle_fini(struct oracle *oracle)
{
    for (uint64_t i = 0; i < oracle->block_count; i++)
        free(oracle->blocks[i].writes);
    free(oracle->blocks);
    oracle->blocks = NULL;
    oracle->block_count = 0;
}

void
oracle_grow(struct oracle *oracle, uint64_t block_count)
{
    if (block_count <= oracle->block_count)
        return;
    oracle->blocks = oracle_resize(oracle, oracle->blocks, block_count, sizeof(oracle->blocks[0]));
    memset(oracle->blocks + oracle->block_count, 0,
           (block_count - oracle->block_count) * sizeof(oracle->blocks[0]));
    oracle->block_count = block_count;
}

uint64_t
oracle_take_values(struct oracle *oracle, uint64_t count)
{
    uint64_t first = oracle->next_value;

    oracle->next_value += count;
    return first;
}

void
oracle_session_begin(struct oracle *oracle, uint32_t lease_epoch)
{
    sim_require(oracle->world, lease_epoch > 0 && lease_epoch < ORACLE_EPOCHS_MAX,
                "%s: lease epoch %u", oracle->name, lease_epoch);
    sim_require(oracle->world, !oracle->begun[lease_epoch], "%s: lease epoch %u was given twice",
                oracle->name, lease_epoch);
    oracle->begun[lease_epoch] = true;
}

/* --- violations --- */

static const char *
state_name(enum oracle_state state)
{
    switch (state) {
    case ORACLE_SUBMITTED:
        return "submitted";
    case ORACLE_ACKNOWLEDGED:
        return "acknowledged";
    case ORACLE_FAILED:
        return "failed";
    }
    return "?";
}

void
oracle_print_block(const struct oracle *oracle, uint64_t idx)
{
    const struct oracle_block *block = &oracle->blocks[idx];

    (void)fprintf(stderr,
                  "%s block %" PRIu64
                  ": seen %u.%u by owners up to %u, settled by %u: %u.%u value %" PRIu64 "\n",
                  oracle->name, idx, epoch_of_key(block->seen_key), (uint32_t)block->seen_key,
                  block->seen_epoch, block->settled_epoch, epoch_of_key(block->settled_key),
                  (uint32_t)block->settled_key, block->settled_value);
    for (uint32_t i = block->count > 24 ? block->count - 24 : 0; i < block->count; i++)
        (void)fprintf(stderr, "  write %u.%u value %" PRIu64 " %s\n",
                      epoch_of_key(block->writes[i].key), (uint32_t)block->writes[i].key,
                      block->writes[i].value, state_name(block->writes[i].state));
}

/* --- writes --- */

static uint64_t
next_key(struct oracle *oracle, uint32_t lease_epoch)
{
    sim_require(oracle->world, lease_epoch > 0 && lease_epoch < ORACLE_EPOCHS_MAX,
                "%s: lease epoch %u", oracle->name, lease_epoch);
    return (uint64_t)lease_epoch << 32 | ++oracle->submissions[lease_epoch];
}

static void
block_add(struct oracle *oracle, struct oracle_block *block, uint64_t key, uint64_t value)
{
    uint32_t idx = block->count;

    if (block->count == block->capacity) {
        block->capacity = block->capacity * 2 + 8;
        block->writes = oracle_resize(oracle, block->writes, block->capacity,
                                      sizeof(block->writes[0]));
    }
    /* A replaced owner that doesn't know it yet submits with a lower key. */
    while (idx > 0 && block->writes[idx - 1].key > key) {
        block->writes[idx] = block->writes[idx - 1];
        idx--;
    }
    block->writes[idx] = (struct oracle_write){
        .key = key,
        .value = value,
        .begin_ns = oracle->world->now_ns,
    };
    block->count++;
}

static void
in_flight_add(struct oracle *oracle, uint64_t key)
{
    if (oracle->in_flight_count == ORACLE_IN_FLIGHT_MAX) {
        memmove(&oracle->in_flight[0], &oracle->in_flight[1],
                (ORACLE_IN_FLIGHT_MAX - 1) * sizeof(oracle->in_flight[0]));
        oracle->in_flight_count--;
    }
    oracle->in_flight[oracle->in_flight_count++] = (struct oracle_in_flight){.key = key};
}

/* All writes under way of this session become suspects.  False: there is none. */
static bool
in_flight_suspect(struct oracle *oracle, uint32_t lease_epoch)
{
    bool found = false;

    for (uint32_t i = 0; i < oracle->in_flight_count; i++) {
        if (epoch_of_key(oracle->in_flight[i].key) != lease_epoch)
            continue;
        oracle->in_flight[i].suspect = true;
        found = true;
    }
    return found;
}

static void
in_flight_end(struct oracle *oracle, uint64_t key, bool failed)
{
    uint32_t lease_epoch = epoch_of_key(key);
    bool was_suspect = false;
    uint32_t suspects = 0;

    for (uint32_t i = 0; i < oracle->in_flight_count; i++) {
        if (oracle->in_flight[i].key != key)
            continue;
        was_suspect = oracle->in_flight[i].suspect;
        oracle->in_flight[i] = oracle->in_flight[--oracle->in_flight_count];
        break;
    }
    for (uint32_t i = 0; i < oracle->in_flight_count; i++) {
        if (epoch_of_key(oracle->in_flight[i].key) != lease_epoch)
            continue;
        if (failed)
            oracle->in_flight[i].suspect = false;
        suspects += oracle->in_flight[i].suspect;
    }
    sim_require(
        oracle->world, failed || !was_suspect || suspects > 0,
        "%s: the order of submission was broken in session %u, and no write of that time failed",
        oracle->name, lease_epoch);
}

uint64_t
oracle_write_begin(struct oracle *oracle, uint32_t lease_epoch, uint64_t first_block,
                   uint64_t count, uint64_t first_value)
{
    uint64_t key = next_key(oracle, lease_epoch);

    in_flight_add(oracle, key);
    for (uint64_t i = 0; i < count; i++)
        block_add(oracle, &oracle->blocks[first_block + i], key,
                  first_value == 0 ? 0 : first_value + i);
    return key;
}

static struct oracle_write *
block_find(struct oracle_block *block, uint64_t key)
{
    for (uint32_t i = block->count; i > 0; i--)
        if (block->writes[i - 1].key == key)
            return &block->writes[i - 1];
    return NULL;
}

/*
 * An owner saw this value of earlier ones, which is not unique: could it be of a write above this
 * key?  The lowest such one; 0: no.
 */
static uint64_t
block_settled_above(const struct oracle_block *block, uint64_t key)
{
    for (uint32_t i = 0; i < block->count; i++) {
        const struct oracle_write *write = &block->writes[i];

        if (write->key > key && epoch_of_key(write->key) < block->settled_epoch &&
            write->value == block->settled_value && write->begin_ns <= block->settled_ns)
            return write->key;
    }
    return 0;
}

/* May a write of an earlier owner be acknowledged now, although it is not what was seen? */
static bool
block_may_acknowledge(const struct oracle *oracle, struct oracle_block *block,
                      const struct oracle_write *write)
{
    const struct oracle_write *settled;
    uint64_t above;

    if (epoch_of_key(write->key) >= block->settled_epoch || write->key <= block->settled_key ||
        write->value == block->settled_value)
        return true;
    above = block_settled_above(block, write->key);
    if (above != 0) {
        block->settled_key = above;
        return true;
    }
    /* Without the order of submission: if what was seen did not end before this one began. */
    settled = block_find(block, block->settled_key);
    return oracle->disordered[epoch_of_key(write->key)] && settled != NULL &&
           epoch_of_key(settled->key) == epoch_of_key(write->key) &&
           (settled->end_ns == 0 || settled->end_ns >= write->begin_ns);
}

static void
block_acknowledge(struct oracle *oracle, uint64_t idx, const struct oracle_write *write)
{
    struct oracle_block *block = &oracle->blocks[idx];
    uint32_t lease_epoch = epoch_of_key(write->key);

    if (!block_may_acknowledge(oracle, block, write)) {
        oracle_print_block(oracle, idx);
        sim_fail(oracle->world,
                 "%s block %" PRIu64
                 ": write %u.%u is acknowledged after owner %u saw %u.%u in its place",
                 oracle->name, idx, lease_epoch, (uint32_t)write->key, block->settled_epoch,
                 epoch_of_key(block->settled_key), (uint32_t)block->settled_key);
    }
    if (write->overtaken && !oracle->disordered[lease_epoch] &&
        !in_flight_suspect(oracle, lease_epoch)) {
        oracle_print_block(oracle, idx);
        sim_fail(oracle->world,
                 "%s block %" PRIu64 ": write %u.%u is acknowledged, but a read submitted after it "
                 "returned something older",
                 oracle->name, idx, lease_epoch, (uint32_t)write->key);
    }
    if (write->key > block->acknowledged_key)
        block->acknowledged_key = write->key;
}

void
oracle_write_end(struct oracle *oracle, uint64_t key, uint64_t first_block, uint64_t count,
                 bool acknowledged, bool shut_out)
{
    in_flight_end(oracle, key, !acknowledged);
    for (uint64_t i = 0; i < count; i++) {
        struct oracle_write *write = block_find(&oracle->blocks[first_block + i], key);

        sim_require(oracle->world, write != NULL && write->state == ORACLE_SUBMITTED,
                    "%s: a write that was never submitted ends, or ends twice", oracle->name);
        write->state = acknowledged ? ORACLE_ACKNOWLEDGED : ORACLE_FAILED;
        write->end_ns = oracle->world->now_ns;
        if (acknowledged)
            block_acknowledge(oracle, first_block + i, write);
    }
    if (!acknowledged && !shut_out)
        oracle->disordered[epoch_of_key(key)] = true;
    oracle->writes_checked++;
}

/* --- on disks --- */

static bool
write_is_outdated(const struct oracle_block *block, const struct oracle_write *write)
{
    for (uint32_t i = block->count; i > 0; i--) {
        const struct oracle_write *later = &block->writes[i - 1];

        if (later->key <= write->key)
            return false;
        if (later->state == ORACLE_ACKNOWLEDGED &&
            (epoch_of_key(later->key) > epoch_of_key(write->key) ||
             (write->end_ns != 0 && later->begin_ns > write->end_ns)))
            return true;
    }
    return false;
}

bool
oracle_may_be_stored(const struct oracle *oracle, uint64_t idx, uint64_t value)
{
    static const struct oracle_write first = {.end_ns = 1};
    const struct oracle_block *block = &oracle->blocks[idx];

    for (uint32_t i = block->count; i > 0; i--)
        if (block->writes[i - 1].value == value && !write_is_outdated(block, &block->writes[i - 1]))
            return true;
    return value == 0 && !write_is_outdated(block, &first);
}

/* --- reads --- */

/* The highest acknowledged key of owners up to this one. */
static uint64_t
block_acknowledged_key(const struct oracle_block *block, uint32_t lease_epoch)
{
    if (epoch_of_key(block->acknowledged_key) <= lease_epoch)
        return block->acknowledged_key;
    for (uint32_t i = block->count; i > 0; i--)
        if (block->writes[i - 1].state == ORACLE_ACKNOWLEDGED &&
            epoch_of_key(block->writes[i - 1].key) <= lease_epoch)
            return block->writes[i - 1].key;
    return 0;
}

void
oracle_read_begin(struct oracle *oracle, struct oracle_read *read, uint32_t lease_epoch,
                  uint64_t first_block, uint64_t count, uint64_t *bounds)
{
    *read = (struct oracle_read){
        .key = next_key(oracle, lease_epoch),
        .begin_ns = oracle->world->now_ns,
        .first_block = first_block,
        .count = count,
        .bounds = bounds,
    };
    for (uint64_t i = 0; i < count; i++) {
        const struct oracle_block *block = &oracle->blocks[first_block + i];

        bounds[i] = block_acknowledged_key(block, lease_epoch);
        if (lease_epoch >= block->seen_epoch && block->seen_key > bounds[i])
            bounds[i] = block->seen_key;
    }
}

/* 1.: nothing below this is right. */
static uint64_t
block_lower_bound(const struct oracle_block *block, uint64_t read_key, uint64_t bound)
{
    uint32_t lease_epoch = epoch_of_key(read_key);

    for (uint32_t i = block->count; i > 0; i--) {
        const struct oracle_write *write = &block->writes[i - 1];

        if (write->key <= bound || epoch_of_key(write->key) < lease_epoch)
            break;
        if (write->key < read_key && write->state == ORACLE_ACKNOWLEDGED)
            return write->key;
    }
    return bound;
}

/*
 * A read of the same session returned `key`: writes between that were submitted before the read
 * must not succeed.
 */
static void
block_mark_overtaken(struct oracle_block *block, uint64_t read_key, uint64_t key)
{
    for (uint32_t i = block->count; i > 0; i--) {
        struct oracle_write *write = &block->writes[i - 1];

        if (write->key <= key || epoch_of_key(write->key) < epoch_of_key(read_key))
            return;
        if (write->key < read_key && write->state == ORACLE_SUBMITTED)
            write->overtaken = true;
    }
}

/* 2.  May a read of this session return this write, of itself or of earlier owners? */
static bool
block_may_settle(const struct oracle_block *block, uint64_t read_key, uint64_t key, uint64_t value)
{
    uint32_t lease_epoch = epoch_of_key(read_key);

    if (epoch_of_key(key) >= lease_epoch || lease_epoch < block->settled_epoch)
        return true; /* its own; or it is a replaced owner's read */
    if (block->settled_epoch > 0 && epoch_of_key(key) < block->settled_epoch)
        return value == block->settled_value;
    for (uint32_t i = 0; i < block->count; i++) {
        const struct oracle_write *write = &block->writes[i];

        if (epoch_of_key(write->key) < lease_epoch && write->key > key && write->value != value &&
            write->state == ORACLE_ACKNOWLEDGED)
            return false;
    }
    return true;
}

struct oracle_match {
    bool found;       /* a write with this value is in bounds */
    bool consistent;  /* one of these may be returned after what was returned before */
    uint64_t key;     /* the lowest such one */
    uint64_t highest; /* the highest in bounds */
};

static void
match_consider(struct oracle_match *match, const struct oracle_block *block, uint64_t read_key,
               uint64_t key, uint64_t value)
{
    if (!match->found)
        match->highest = key;
    match->found = true;
    if (block_may_settle(block, read_key, key, value)) {
        match->consistent = true;
        match->key = key;
    }
}

/* The writes with this value from `lower` to below the read: zeroes are not unique. */
static struct oracle_match
block_match(const struct oracle_block *block, uint64_t read_key, uint64_t lower, uint64_t value)
{
    struct oracle_match match = {0};

    for (uint32_t i = block->count; i > 0; i--) {
        const struct oracle_write *write = &block->writes[i - 1];

        if (write->key < lower)
            break;
        if (write->key < read_key && write->value == value)
            match_consider(&match, block, read_key, write->key, value);
    }
    if (lower == 0 && value == 0)
        match_consider(&match, block, read_key, 0, value);
    return match;
}

static void
block_settle(struct oracle *oracle, struct oracle_block *block, uint64_t read_key, uint64_t key,
             uint64_t value)
{
    uint32_t lease_epoch = epoch_of_key(read_key);

    if (epoch_of_key(key) >= lease_epoch || lease_epoch < block->settled_epoch)
        return;
    if (block->settled_epoch > 0 && epoch_of_key(key) < block->settled_epoch)
        return;
    block->settled_epoch = lease_epoch;
    block->settled_key = key;
    block->settled_value = value;
    block->settled_ns = oracle->world->now_ns;
    oracle->settled++;
}

/* --- without the order of submission --- */

/* `later` had certainly taken effect when the read began. */
static bool
write_was_there(const struct oracle_write *later, const struct oracle_read *read)
{
    if (epoch_of_key(later->key) > epoch_of_key(read->key))
        return false;
    return (later->state == ORACLE_ACKNOWLEDGED && later->end_ns <= read->begin_ns) ||
           (later->seen_ns != 0 && later->seen_ns <= read->begin_ns &&
            later->seen_epoch <= epoch_of_key(read->key));
}

/*
 * `later` began after `write` had ended (or belongs to a newer owner), and had taken effect when
 * the read began.
 */
static bool
write_is_superseded_by(const struct oracle_write *write, const struct oracle_write *later,
                       const struct oracle_read *read)
{
    if (!write_was_there(later, read))
        return false;
    return epoch_of_key(later->key) > epoch_of_key(write->key) ||
           (epoch_of_key(later->key) == epoch_of_key(write->key) && write->end_ns != 0 &&
            later->begin_ns > write->end_ns);
}

static bool
block_may_return(const struct oracle_block *block, const struct oracle_read *read,
                 const struct oracle_write *write)
{
    for (uint32_t i = 0; i < block->count; i++)
        if (write_is_superseded_by(write, &block->writes[i], read))
            return false;
    return true;
}

/*
 * Is the read right, if the order of submission within sessions in which a write failed doesn't
 * count?
 */
static bool
block_match_loosely(struct oracle *oracle, const struct oracle_block *block,
                    const struct oracle_read *read, uint64_t lower, uint64_t value)
{
    static const struct oracle_write first = {.end_ns = 1};

    if (!oracle->disordered[epoch_of_key(read->key)] && !oracle->disordered[epoch_of_key(lower)] &&
        !in_flight_suspect(oracle, epoch_of_key(read->key)))
        return false;
    for (uint32_t i = 0; i < block->count; i++)
        if (block->writes[i].value == value &&
            epoch_of_key(block->writes[i].key) <= epoch_of_key(read->key) &&
            block_may_return(block, read, &block->writes[i]))
            return true;
    return value == 0 && block_may_return(block, read, &first);
}

/* --- one block of a read --- */

static void
block_fail(const struct oracle *oracle, uint64_t idx, const struct oracle_read *read,
           uint64_t lower, uint64_t value, bool found)
{
    oracle_print_block(oracle, idx);
    sim_fail(oracle->world,
             "%s block %" PRIu64 ": read %u.%u returned value %" PRIu64
             ", which is none of the writes from %u.%u on%s",
             oracle->name, idx, epoch_of_key(read->key), (uint32_t)read->key, value,
             epoch_of_key(lower), (uint32_t)lower,
             found ? " that may still be seen: another one of earlier owners stands" : "");
}

static void
block_mark_seen(const struct oracle *oracle, struct oracle_block *block, uint64_t read_key,
                uint64_t value)
{
    for (uint32_t i = block->count; i > 0 && value != 0; i--) {
        struct oracle_write *write = &block->writes[i - 1];

        if (write->value != value)
            continue;
        if (write->seen_ns == 0) {
            write->seen_ns = oracle->world->now_ns;
            write->seen_epoch = epoch_of_key(read_key);
        }
        return;
    }
}

static void
block_read(struct oracle *oracle, const struct oracle_read *read, uint64_t idx, uint64_t value)
{
    struct oracle_block *block = &oracle->blocks[read->first_block + idx];
    uint64_t lower = block_lower_bound(block, read->key, read->bounds[idx]);
    struct oracle_match match = block_match(block, read->key, lower, value);
    const struct oracle_write *write;

    oracle->blocks_checked++;
    if (!match.consistent) {
        if (!block_match_loosely(oracle, block, read, lower, value))
            block_fail(oracle, read->first_block + idx, read, lower, value, match.found);
        oracle->blocks_checked_loosely++;
        block_mark_seen(oracle, block, read->key, value);
        return;
    }
    block_mark_seen(oracle, block, read->key, value);
    /* Zeroes can be those of this session, too: then nothing is known of what was before. */
    if (epoch_of_key(match.highest) < epoch_of_key(read->key))
        block_settle(oracle, block, read->key, match.key, value);
    block_mark_overtaken(block, read->key, match.highest);
    write = block_find(block, match.key);
    if (write != NULL && write->state != ORACLE_ACKNOWLEDGED)
        oracle->reads_of_unacknowledged++;
    if (epoch_of_key(read->key) >= block->seen_epoch) {
        block->seen_epoch = epoch_of_key(read->key);
        if (match.key > block->seen_key)
            block->seen_key = match.key;
    }
}

void
oracle_read_end(struct oracle *oracle, const struct oracle_read *read, const uint64_t *values)
{
    for (uint64_t i = 0; i < read->count; i++)
        block_read(oracle, read, i, values[i]);
}
