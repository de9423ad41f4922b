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
    block->writes[idx] = (struct oracle_write){.key = key, .value = value};
    block->count++;
}

uint64_t
oracle_write_begin(struct oracle *oracle, uint32_t lease_epoch, uint64_t first_block,
                   uint64_t count, uint64_t first_value)
{
    uint64_t key = next_key(oracle, lease_epoch);

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

static void
block_acknowledge(struct oracle *oracle, uint64_t idx, const struct oracle_write *write)
{
    struct oracle_block *block = &oracle->blocks[idx];

    if (epoch_of_key(write->key) < block->settled_epoch && write->key > block->settled_key &&
        write->value != block->settled_value) {
        oracle_print_block(oracle, idx);
        sim_fail(oracle->world,
                 "%s block %" PRIu64
                 ": write %u.%u is acknowledged after owner %u saw %u.%u in its place",
                 oracle->name, idx, epoch_of_key(write->key), (uint32_t)write->key,
                 block->settled_epoch, epoch_of_key(block->settled_key),
                 (uint32_t)block->settled_key);
    }
    if (write->key > block->acknowledged_key)
        block->acknowledged_key = write->key;
}

void
oracle_write_end(struct oracle *oracle, uint64_t key, uint64_t first_block, uint64_t count,
                 bool acknowledged)
{
    for (uint64_t i = 0; i < count; i++) {
        struct oracle_write *write = block_find(&oracle->blocks[first_block + i], key);

        sim_require(oracle->world, write != NULL && write->state == ORACLE_SUBMITTED,
                    "%s: a write that was never submitted ends, or ends twice", oracle->name);
        write->state = acknowledged ? ORACLE_ACKNOWLEDGED : ORACLE_FAILED;
        if (acknowledged)
            block_acknowledge(oracle, first_block + i, write);
    }
    oracle->writes_checked++;
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

uint64_t
oracle_read_begin(struct oracle *oracle, uint32_t lease_epoch, uint64_t first_block, uint64_t count,
                  uint64_t *bounds)
{
    for (uint64_t i = 0; i < count; i++) {
        const struct oracle_block *block = &oracle->blocks[first_block + i];

        bounds[i] = block_acknowledged_key(block, lease_epoch);
        if (lease_epoch >= block->seen_epoch && block->seen_key > bounds[i])
            bounds[i] = block->seen_key;
    }
    return next_key(oracle, lease_epoch);
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
        if (write->key < read_key && write->state != ORACLE_FAILED)
            return write->key;
    }
    return bound;
}

/* Is the last write of its session that was submitted before the read a failed one? */
static bool
block_is_undecided(const struct oracle_block *block, uint64_t read_key)
{
    for (uint32_t i = block->count; i > 0; i--) {
        const struct oracle_write *write = &block->writes[i - 1];

        if (epoch_of_key(write->key) < epoch_of_key(read_key))
            return false;
        if (write->key < read_key)
            return write->state == ORACLE_FAILED;
    }
    return false;
}

/* The write with this value, from `lower` to below `upper`; the lowest key if there are several. */
static bool
block_match(const struct oracle_block *block, uint64_t upper, uint64_t lower, uint64_t value,
            uint64_t *ret_key)
{
    bool found = false;

    for (uint32_t i = block->count; i > 0; i--) {
        const struct oracle_write *write = &block->writes[i - 1];

        if (write->key < lower)
            break;
        if (write->key < upper && write->value == value) {
            *ret_key = write->key;
            found = true;
        }
    }
    if (lower == 0 && value == 0) {
        *ret_key = 0;
        found = true;
    }
    return found;
}

/* 2.  False: another write of earlier owners was seen before, or one above it was acknowledged. */
static bool
block_settle(struct oracle *oracle, struct oracle_block *block, uint64_t read_key, uint64_t key,
             uint64_t value)
{
    uint32_t lease_epoch = epoch_of_key(read_key);

    if (epoch_of_key(key) >= lease_epoch)
        return true;
    if (lease_epoch >= block->settled_epoch && block->settled_epoch > 0 &&
        epoch_of_key(key) < block->settled_epoch)
        return value == block->settled_value;
    if (lease_epoch < block->settled_epoch)
        return true; /* a replaced owner */
    for (uint32_t i = 0; i < block->count; i++) {
        const struct oracle_write *write = &block->writes[i];

        if (epoch_of_key(write->key) < lease_epoch && write->key > key && write->value != value &&
            write->state == ORACLE_ACKNOWLEDGED)
            return false;
    }
    block->settled_epoch = lease_epoch;
    block->settled_key = key;
    block->settled_value = value;
    oracle->settled++;
    return true;
}

static void
block_read(struct oracle *oracle, uint64_t idx, uint64_t read_key, uint64_t upper, uint64_t bound,
           uint64_t value)
{
    struct oracle_block *block = &oracle->blocks[idx];
    uint64_t lower = block_lower_bound(block, read_key, bound);
    const struct oracle_write *write;
    uint64_t key = 0;

    if (!block_match(block, upper, lower, value, &key)) {
        oracle_print_block(oracle, idx);
        sim_fail(oracle->world,
                 "%s block %" PRIu64 ": read %u.%u returned value %" PRIu64
                 ", which is none of the writes from %u.%u on",
                 oracle->name, idx, epoch_of_key(read_key), (uint32_t)read_key, value,
                 epoch_of_key(lower), (uint32_t)lower);
    }
    if (!block_settle(oracle, block, read_key, key, value)) {
        oracle_print_block(oracle, idx);
        sim_fail(oracle->world,
                 "%s block %" PRIu64 ": read %u.%u returned value %" PRIu64
                 " (write %u.%u) although another write of earlier owners stands",
                 oracle->name, idx, epoch_of_key(read_key), (uint32_t)read_key, value,
                 epoch_of_key(key), (uint32_t)key);
    }
    write = block_find(block, key);
    if (write != NULL && write->state != ORACLE_ACKNOWLEDGED)
        oracle->reads_of_unacknowledged++;
    if (epoch_of_key(read_key) >= block->seen_epoch) {
        block->seen_epoch = epoch_of_key(read_key);
        if (key > block->seen_key)
            block->seen_key = key;
    }
    oracle->blocks_checked++;
}

void
oracle_read_end(struct oracle *oracle, uint64_t key, uint64_t first_block, uint64_t count,
                const uint64_t *bounds, const uint64_t *values)
{
    uint64_t upper = key;

    for (uint64_t i = 0; i < count; i++)
        if (block_is_undecided(&oracle->blocks[first_block + i], key))
            upper = (uint64_t)(epoch_of_key(key) + 1) << 32;
    for (uint64_t i = 0; i < count; i++)
        block_read(oracle, first_block + i, key, upper, bounds[i], values[i]);
}
