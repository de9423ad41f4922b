/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests as a chunkserver's core would send them, with what must be true when they are answered.
 */
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/list.h"
#include "tests/crash/world.h"

#define SMALL_DATA_SECTORS_MAX 16u /* above it a write is a large one */

static void *
op_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

static struct op *
op_create(struct world *world, enum op_kind kind, struct model_chunk *chunk)
{
    struct op *op = op_alloc(sizeof(*op));

    op->kind = kind;
    op->world = world;
    op->chunk = chunk;
    op->number = ++world->op_number;
    if (chunk != NULL) {
        op->incarnation = chunk->incarnation;
        chunk->flights++;
    }
    world->ops[world->op_count++] = op;
    return op;
}

static void
op_free(struct op *op)
{
    free(op->version_at_start);
    free(op->buffer);
    free(op->crcs);
    free(op);
}

static void
op_finish(struct op *op)
{
    struct world *world = op->world;

    for (uint32_t i = 0; i < world->op_count; i++) {
        if (world->ops[i] != op)
            continue;
        world->ops[i] = world->ops[--world->op_count];
        break;
    }
    if (op->chunk != NULL)
        op->chunk->flights--;
    op_free(op);
}

void
op_forget_all(struct world *world)
{
    for (uint32_t i = 0; i < world->op_count; i++)
        op_free(world->ops[i]);
    world->op_count = 0;
    for (uint32_t i = 0; i < world->model.chunk_count; i++) {
        struct model_chunk *chunk = &world->model.chunks[i];

        chunk->flights = 0;
        for (uint32_t w = 0; w < chunk->write_count; w++)
            chunk->writes[w].flights = 0;
    }
}

static bool
world_is_stopped(struct world *world)
{
    struct store_stats stats;

    world->store->ops->get_stats(world->store, &stats);
    return stats.stopped != 0;
}

/* --- writes --- */

static void
write_failed(struct op *op, struct model_write *write, int err)
{
    struct world *world = op->world;
    bool gone = op->chunk->state == CHUNK_MODEL_DELETING ||
                op->chunk->state == CHUNK_MODEL_ABSENT || op->chunk->incarnation != op->incarnation;

    switch (-err) {
    case DL_E_NO_SPACE:
    case DL_E_BUSY: /* overwrites on a full disk */
        world->refused_full = true;
        break;
    /* One that waited for the first of its version, and begins when that was refused. */
    case DL_E_LEASE_OLD:
        if (!op->retry || !op->write.use_reserve ||
            op->write.version >> 40 >= model_volume_of(&world->model, op->chunk)->fence_sent)
            world_fail(world, "a write of the present lease: %s", dl_err_name(err));
        break;
    case DL_E_EPOCH_OLD:
        if (!op->retry || !op->write.use_reserve || op->write.config_epoch >= op->chunk->epoch_sent)
            world_fail(world, "a write of the present config epoch: %s", dl_err_name(err));
        break;
    case DL_E_MEDIA_WRITE:
        if (world_is_stopped(world)) {
            if (!world->may_stop)
                world_fail(world, "the store stopped without a reason");
            return; /* undecided */
        }
        if (!world->may_fail)
            world_fail(world, "a write failed without a fault");
        break;
    case DL_E_CHUNK_UNKNOWN:
    case DL_E_CHUNK_DELETED:
        if (!gone)
            world_fail(world, "a write of a chunk that is there: %s", dl_err_name(err));
        return;
    default:
        world_fail(world, "a write answered %s", dl_err_name(err));
    }
    world->counts->refused++;
    if (write != NULL && (write->state == WRITE_PRESENT || write->seen))
        world_fail(world, "a version that is durable here was refused: %s", dl_err_name(err));
    if (write != NULL && write->state == WRITE_UNDECIDED && write->flights == 0)
        write->state = WRITE_ABSENT;
}

static void
write_on_done(struct store_write *store_write, int err)
{
    struct op *op = list_entry(store_write, struct op, write);
    struct world *world = op->world;
    struct model_chunk *chunk = op->chunk;
    struct model_write *write = NULL;

    world_trace(world, "  #%llu write %llx of %llu/%u answered %s", (unsigned long long)op->number,
                (unsigned long long)store_write->version, (unsigned long long)chunk->key.volume,
                chunk->key.segment, dl_err_name(err));
    if (chunk->incarnation == op->incarnation) {
        write = model_write_find(chunk, store_write->version);
        if (write != NULL)
            write->flights--;
    }
    if (err != 0) {
        write_failed(op, write, err);
        op_finish(op);
        return;
    }
    world->counts->acknowledged++;
    if (write != NULL && chunk->state != CHUNK_MODEL_ABSENT) {
        if (chunk->state == CHUNK_MODEL_MAYBE)
            chunk->state = CHUNK_MODEL_PRESENT;
        if (store_write->config_epoch > chunk->epoch_floor)
            chunk->epoch_floor = store_write->config_epoch;
        model_write_apply(chunk, write);
    }
    op_finish(op);
}

static void
write_fill(struct op *op, const struct model_write *write)
{
    uint8_t *payload;

    if (write->zero)
        return;
    if (posix_memalign(&op->buffer, SECTOR_BYTES, (size_t)write->length * SECTOR_BYTES) != 0)
        abort();
    payload = op->buffer;
    op->crcs = op_alloc(write->length * sizeof(op->crcs[0]));
    for (uint32_t i = 0; i < write->length; i++) {
        model_sector_fill(op->chunk, write->version, write->offset + i, payload);
        op->crcs[i] = crc32c(0, payload, SECTOR_BYTES);
        payload += SECTOR_BYTES;
    }
    op->write.payload = op->buffer;
    op->write.crcs = op->crcs;
}

static bool
write_is_late(const struct model_chunk *chunk, const struct model_write *write)
{
    for (uint32_t i = 0; i < chunk->write_count; i++)
        if (chunk->writes[i].state == WRITE_PRESENT && chunk->writes[i].version > write->version)
            return true;
    return false;
}

static void
write_start(struct world *world, struct model_chunk *chunk, struct model_write *write)
{
    struct op *op = op_create(world, OP_WRITE, chunk);
    uint64_t stable = model_stable_bound(chunk);

    op->retry = write->flights > 0 || write->state == WRITE_PRESENT;
    op->late = write_is_late(chunk, write);
    op->creates = chunk->state == CHUNK_MODEL_MAYBE;
    if (fake_rng_percent(&world->rng, 50))
        stable = chunk->stable_floor;
    if (stable > chunk->stable_sent)
        chunk->stable_sent = stable;
    op->write = (struct store_write){
        .key = chunk->key,
        .config_epoch = chunk->epoch_sent,
        .birth = 1,
        .version = write->version,
        .stable_version = stable,
        .offset_sectors = write->offset,
        .length_sectors = write->length,
        .zero = write->zero,
        .create = op->creates,
        .retry = op->retry || fake_rng_percent(&world->rng, 20),
        .use_reserve = fake_rng_percent(&world->rng, 3),
        .on_done = write_on_done,
    };
    write->flights++;
    write->dead = false;
    write_fill(op, write);
    world_trace(world, "#%llu write %llx of %llu/%u sectors %u+%u%s%s%s S %llx",
                (unsigned long long)op->number, (unsigned long long)write->version,
                (unsigned long long)chunk->key.volume, chunk->key.segment, write->offset,
                write->length, write->zero ? " zero" : "", op->retry ? " retry" : "",
                op->creates ? " create" : "", (unsigned long long)stable);
    world->store->ops->write_start(world->store, &op->write);
}

static uint32_t
write_length(struct world *world, bool zero)
{
    const struct profile *profile = &world->profile;
    unsigned kind = (unsigned)fake_rng_below(&world->rng, 100);
    uint32_t length = 1;

    if (kind < profile->large_percent)
        length = (uint32_t)fake_rng_range(&world->rng, SMALL_DATA_SECTORS_MAX + 1,
                                          STORE_IO_SECTORS_MAX);
    else if (kind < profile->large_percent + profile->multi_percent)
        length = (uint32_t)fake_rng_range(&world->rng, 2, SMALL_DATA_SECTORS_MAX);
    if (zero && fake_rng_percent(&world->rng, 5))
        length = profile->chunk_sectors;
    return length < profile->chunk_sectors ? length : profile->chunk_sectors;
}

void
op_write_new(struct world *world, struct model_chunk *chunk)
{
    struct model_volume *volume = model_volume_of(&world->model, chunk);
    bool zero = fake_rng_percent(&world->rng, world->profile.zero_percent);
    uint32_t length = write_length(world, zero);
    uint32_t last = chunk->sectors - length;
    uint64_t version;

    if (chunk->state == CHUNK_MODEL_ABSENT) {
        chunk->state = CHUNK_MODEL_MAYBE;
        chunk->incarnation = ++chunk->epoch_sent;
    }
    if (fake_rng_percent(&world->rng, world->profile.hot_percent) && last > 8)
        last = 8;
    version = (uint64_t)volume->lease << 40 | ++chunk->sequence;
    /*
     * Now and then a version is kept back: model_write_add() without a start; op_write_retry()
     * sends it later.
     */
    if (fake_rng_percent(&world->rng, 10)) {
        struct model_write *kept = model_write_add(
            chunk, version, (uint32_t)fake_rng_range(&world->rng, 0, last), length, zero);

        kept->state = WRITE_ABSENT;
        version = (uint64_t)volume->lease << 40 | ++chunk->sequence;
    }
    write_start(world, chunk,
                model_write_add(chunk, version, (uint32_t)fake_rng_range(&world->rng, 0, last),
                                length, zero));
}

/* A version that was sent before, or kept back. */
void
op_write_retry(struct world *world, struct model_chunk *chunk)
{
    struct model_volume *volume = model_volume_of(&world->model, chunk);
    uint32_t pick;
    struct model_write *write;

    if (chunk->write_count == 0 || chunk->state == CHUNK_MODEL_ABSENT)
        return;
    pick = (uint32_t)fake_rng_below(&world->rng, chunk->write_count < 24 ? chunk->write_count : 24);
    write = &chunk->writes[chunk->write_count - 1 - pick];
    if (write->dead || write->version >> 40 < volume->fence_sent)
        return;
    /* Below S there is nothing to send. */
    if (write->version <= chunk->stable_sent && write->state != WRITE_PRESENT)
        return;
    if (write->state == WRITE_ABSENT) {
        write->state = WRITE_UNDECIDED;
        world->counts->retries_of_dropped++;
    } else {
        world->counts->retries_of_present += write->state == WRITE_PRESENT;
    }
    write_start(world, chunk, write);
}

/* --- reads --- */

/* Zeroes may have been forgotten, but no others than those that were allowed to be. */
static bool
read_kind_is_right(const struct model_chunk *chunk, uint32_t sector, uint8_t kind)
{
    if (chunk->version[sector] == 0)
        return kind == SECTOR_HOLE;
    if (!chunk->is_zero[sector])
        return kind == SECTOR_DATA;
    return kind == SECTOR_ZERO ||
           (kind == SECTOR_HOLE && chunk->version[sector] <= chunk->forget_sent);
}

/*
 * Is it of a write that is under way (or was, when the store stopped), above what is acknowledged?
 * version 0: of some zeroes; if these can only be of one write, it is known for durable from now
 * on, like one of data.
 */
static bool
read_is_early(struct model_chunk *chunk, uint32_t sector, uint64_t version)
{
    struct model_write *found = NULL;
    uint32_t count = 0;

    for (uint32_t i = 0; i < chunk->write_count; i++) {
        struct model_write *write = &chunk->writes[i];

        if (write->state != WRITE_UNDECIDED || write->version <= chunk->version[sector] ||
            sector < write->offset || sector - write->offset >= write->length)
            continue;
        if (version != 0 ? write->version != version : !write->zero)
            continue;
        found = write;
        count++;
    }
    if (count == 1)
        found->seen = true;
    return count > 0;
}

static void
read_check_sector(struct op *op, uint32_t i)
{
    struct world *world = op->world;
    struct model_chunk *chunk = op->chunk;
    uint32_t sector = op->read.offset_sectors + i;
    const uint8_t *bytes = (const uint8_t *)op->buffer + (size_t)i * SECTOR_BYTES;
    uint64_t low = op->version_at_start[i], high = chunk->version[sector], found = 0;
    uint8_t expected[SECTOR_BYTES];

    world->counts->sectors_compared++;
    if (op->read.kinds[i] == SECTOR_DATA) {
        memcpy(&found, bytes + 8, sizeof(found));
        model_sector_fill(chunk, found, sector, expected);
        if (memcmp(bytes, expected, SECTOR_BYTES) != 0)
            world_fail(world, "chunk %llu/%u sector %u: foreign or damaged content (expected %llx)",
                       (unsigned long long)chunk->key.volume, chunk->key.segment, sector,
                       (unsigned long long)high);
        if (op->read.crcs[i] != crc32c(0, bytes, SECTOR_BYTES))
            world_fail(world, "chunk %llu/%u sector %u: the CRC is not the content's",
                       (unsigned long long)chunk->key.volume, chunk->key.segment, sector);
    } else if (op->read.crcs[i] != 0 || bytes[0] != 0 ||
               memcmp(bytes, bytes + 1, SECTOR_BYTES - 1) != 0) {
        world_fail(world, "a sector without data is not zeroes");
    }
    if (low != high) {
        /* Something was acknowledged meanwhile: old, new, or between. */
        if (op->read.kinds[i] == SECTOR_DATA &&
            (found < low || (found > high && !read_is_early(chunk, sector, found))))
            world_fail(
                world, "chunk %llu/%u sector %u: version %llx, between %llx and %llx expected",
                (unsigned long long)chunk->key.volume, chunk->key.segment, sector,
                (unsigned long long)found, (unsigned long long)low, (unsigned long long)high);
        return;
    }
    if (op->read.kinds[i] == SECTOR_DATA && found != high && read_is_early(chunk, sector, found))
        return;
    if (!read_kind_is_right(chunk, sector, op->read.kinds[i]) &&
        !(op->read.kinds[i] == SECTOR_ZERO && read_is_early(chunk, sector, 0)))
        world_fail(world,
                   "chunk %llu/%u sector %u: kind %u (version %llx), expected version %llx%s",
                   (unsigned long long)chunk->key.volume, chunk->key.segment, sector,
                   op->read.kinds[i], (unsigned long long)found, (unsigned long long)high,
                   chunk->is_zero[sector] ? " zero" : "");
    if (op->read.kinds[i] == SECTOR_DATA && found != high)
        world_fail(world, "chunk %llu/%u sector %u: version %llx, expected %llx",
                   (unsigned long long)chunk->key.volume, chunk->key.segment, sector,
                   (unsigned long long)found, (unsigned long long)high);
}

static void
read_on_done(struct store_read *store_read, int err)
{
    struct op *op = list_entry(store_read, struct op, read);
    struct world *world = op->world;
    struct model_chunk *chunk = op->chunk;
    bool same = chunk->incarnation == op->incarnation;

    world->counts->reads++;
    if (err == -DL_E_CHUNK_UNKNOWN) {
        if (op->known_at_start && same && chunk->state == CHUNK_MODEL_PRESENT)
            world_fail(world, "a read of a chunk that is there: unknown");
    } else if (err != 0) {
        world_fail(world, "a read answered %s", dl_err_name(err));
    } else if (same && chunk->state != CHUNK_MODEL_ABSENT && chunk->state != CHUNK_MODEL_DELETING) {
        uint32_t data = 0;

        for (uint32_t i = 0; i < store_read->length_sectors; i++) {
            read_check_sector(op, i);
            data += store_read->kinds[i] == SECTOR_DATA;
        }
        if (data != store_read->data_sectors)
            world_fail(world, "a read counted %u data sectors of %u", store_read->data_sectors,
                       data);
    }
    op_finish(op);
}

void
op_read(struct world *world, struct model_chunk *chunk, uint32_t offset, uint32_t length)
{
    struct op *op = op_create(world, OP_READ, chunk);

    op->known_at_start = chunk->state == CHUNK_MODEL_PRESENT;
    op->version_at_start = op_alloc(length * sizeof(op->version_at_start[0]));
    memcpy(op->version_at_start, &chunk->version[offset], length * sizeof(chunk->version[0]));
    if (posix_memalign(&op->buffer, SECTOR_BYTES, (size_t)length * SECTOR_BYTES) != 0)
        abort();
    memset(op->buffer, 0xdd, (size_t)length * SECTOR_BYTES);
    op->read.key = chunk->key;
    op->read.offset_sectors = offset;
    op->read.length_sectors = length;
    op->read.buffer = op->buffer;
    op->read.on_done = read_on_done;
    world->store->ops->read_start(world->store, &op->read);
}

/* --- changes --- */

/* Writes of the volume that were started before must have been answered. */
static void
fence_check(struct op *op)
{
    struct world *world = op->world;

    for (uint32_t i = 0; i < world->op_count; i++) {
        const struct op *other = world->ops[i];

        /* A duplicate has nothing of its own to make durable. */
        if (other->kind == OP_WRITE && !other->retry &&
            other->chunk->key.volume == op->volume->volume && other->number < op->number)
            world_fail(world, "a fence was confirmed before write #%llu of its volume",
                       (unsigned long long)other->number);
    }
}

static void
change_done(struct op *op)
{
    struct model_chunk *chunk = op->chunk;
    const struct store_change *change = &op->change;
    bool same = chunk != NULL && chunk->incarnation == op->incarnation;

    switch (change->kind) {
    case STORE_FENCE:
        fence_check(op);
        if (change->lease_epoch > op->volume->fence_floor)
            op->volume->fence_floor = change->lease_epoch;
        return;
    case STORE_IN_SYNC:
        if (same && chunk->state == CHUNK_MODEL_MAYBE)
            chunk->state = CHUNK_MODEL_PRESENT;
        if (same && change->config_epoch > chunk->epoch_floor)
            chunk->epoch_floor = change->config_epoch;
        return;
    case STORE_STABLE:
        if (same && change->stable_version > chunk->stable_floor)
            chunk->stable_floor = change->stable_version;
        return;
    case STORE_DELETE:
        if (same)
            model_chunk_reset(chunk);
        return;
    case STORE_FORGET:
        return;
    case STORE_ATTEMPT:
    case STORE_REPORT:
        break; /* not asked for here yet */
    }
    dl_unreachable();
}

static void
change_on_done(struct store_change *change, int err)
{
    struct op *op = list_entry(change, struct op, change);
    struct world *world = op->world;
    bool gone = op->chunk != NULL && (op->chunk->incarnation != op->incarnation ||
                                      op->chunk->state == CHUNK_MODEL_DELETING ||
                                      op->chunk->state == CHUNK_MODEL_ABSENT);

    world_trace(world, "  #%llu change %d answered %s", (unsigned long long)op->number,
                (int)change->kind, dl_err_name(err));
    if (err == 0)
        change_done(op);
    else if (err == -DL_E_MEDIA_WRITE && world->may_stop && world_is_stopped(world))
        ; /* undecided */
    else if (!((err == -DL_E_CHUNK_UNKNOWN || err == -DL_E_CHUNK_DELETED) && gone))
        world_fail(world, "a change of kind %d answered %s", (int)change->kind, dl_err_name(err));
    op_finish(op);
}

static void
change_start(struct world *world, struct op *op, struct store_change change)
{
    op->change = change;
    op->change.on_done = change_on_done;
    world_trace(world, "#%llu change %d of %llu/%u lease %u epoch %u S %llx incarnation %u",
                (unsigned long long)op->number, (int)change.kind,
                (unsigned long long)change.key.volume, change.key.segment, change.lease_epoch,
                change.config_epoch, (unsigned long long)change.stable_version, change.incarnation);
    world->store->ops->change_start(world->store, &op->change);
}

static void
op_fence(struct world *world, struct model_chunk *chunk)
{
    struct model_volume *volume = model_volume_of(&world->model, chunk);
    struct op *op = op_create(world, OP_CHANGE, NULL);

    op->volume = volume;
    volume->fence_sent = ++volume->lease;
    /* What the old owner left unsent is never sent again. */
    for (uint32_t i = 0; i < world->model.chunk_count; i++) {
        struct model_chunk *other = &world->model.chunks[i];

        for (uint32_t w = 0; w < other->write_count && other->key.volume == volume->volume; w++)
            if (other->writes[w].state == WRITE_ABSENT)
                other->writes[w].dead = true;
    }
    change_start(world, op,
                 (struct store_change){.kind = STORE_FENCE,
                                       .key = {.volume = volume->volume},
                                       .lease_epoch = volume->lease});
}

static void
op_epoch(struct world *world, struct model_chunk *chunk)
{
    bool create = chunk->state == CHUNK_MODEL_ABSENT || chunk->state == CHUNK_MODEL_MAYBE;
    struct op *op;

    if (chunk->state == CHUNK_MODEL_ABSENT) {
        chunk->state = CHUNK_MODEL_MAYBE;
        chunk->incarnation = ++chunk->epoch_sent;
    } else if (!create) {
        chunk->epoch_sent++;
    }
    op = op_create(world, OP_CHANGE, chunk);
    op->creates = create;
    change_start(world, op,
                 (struct store_change){.kind = STORE_IN_SYNC,
                                       .key = chunk->key,
                                       .config_epoch = chunk->epoch_sent,
                                       .incarnation = create ? chunk->incarnation : 0});
}

/*
 * Versions that are here on no account and that nobody will send again: of an owner that was shut
 * out, or (now and then) of one that was taken over.
 */
static void
op_bury(struct world *world, struct model_chunk *chunk)
{
    const struct model_volume *volume = model_volume_of(&world->model, chunk);
    bool all = fake_rng_percent(&world->rng, 30);

    for (uint32_t i = 0; i < chunk->write_count; i++) {
        struct model_write *write = &chunk->writes[i];

        if (write->state == WRITE_ABSENT && (all || write->version >> 40 < volume->fence_sent))
            write->dead = true;
    }
}

static void
op_stable(struct world *world, struct model_chunk *chunk)
{
    uint64_t bound;
    struct op *op;

    if (chunk->state != CHUNK_MODEL_PRESENT)
        return;
    op_bury(world, chunk);
    bound = model_stable_bound(chunk);
    if (bound > chunk->stable_sent)
        chunk->stable_sent = bound;
    op = op_create(world, OP_CHANGE, chunk);
    change_start(
        world, op,
        (struct store_change){.kind = STORE_STABLE, .key = chunk->key, .stable_version = bound});
}

/* What the owner says when all slots have confirmed this S. */
static void
op_forget(struct world *world, struct model_chunk *chunk)
{
    struct op *op;

    if (chunk->state != CHUNK_MODEL_PRESENT || chunk->stable_floor == 0)
        return;
    chunk->forget_sent = chunk->stable_floor;
    op = op_create(world, OP_CHANGE, chunk);
    change_start(world, op,
                 (struct store_change){.kind = STORE_FORGET,
                                       .key = chunk->key,
                                       .stable_version = chunk->stable_floor});
}

static void
op_delete(struct world *world, struct model_chunk *chunk)
{
    struct op *op;

    /*
     * A chunk whose creation is under way is not deleted by a core; and one deletion is enough.  An
     * unknown chunk is success: a deletion is sent again when its answer was lost.
     */
    if (chunk->state != CHUNK_MODEL_PRESENT && chunk->state != CHUNK_MODEL_ABSENT)
        return;
    if (chunk->state == CHUNK_MODEL_PRESENT)
        chunk->state = CHUNK_MODEL_DELETING;
    op = op_create(world, OP_CHANGE, chunk);
    change_start(world, op,
                 (struct store_change){
                     .kind = STORE_DELETE, .key = chunk->key, .incarnation = chunk->incarnation});
}

void
op_change_random(struct world *world, struct model_chunk *chunk)
{
    unsigned kind = (unsigned)fake_rng_below(&world->rng, 100);

    if (kind < world->profile.delete_percent)
        op_delete(world, chunk);
    else if (kind < 40)
        op_stable(world, chunk);
    else if (kind < 60)
        op_forget(world, chunk);
    else if (kind < 85)
        op_epoch(world, chunk);
    else
        op_fence(world, chunk);
}

/* --- what a cut finds --- */

static bool
writes_overlap(const struct op *a, const struct op *b)
{
    return a != b && b->kind == OP_WRITE && a->chunk == b->chunk &&
           a->write.version != b->write.version &&
           a->write.offset_sectors < b->write.offset_sectors + b->write.length_sectors &&
           b->write.offset_sectors < a->write.offset_sectors + a->write.length_sectors;
}

struct op_flags {
    bool small, multi, large, zero, overlap, retry, late, create, read;
    bool changes[STORE_FORGET + 1];
};

static void
op_flag_write(struct world *world, const struct op *op, struct op_flags *flags)
{
    flags->zero |= op->write.zero;
    flags->small |= !op->write.zero && op->write.length_sectors == 1;
    flags->multi |= !op->write.zero && op->write.length_sectors > 1 &&
                    op->write.length_sectors <= SMALL_DATA_SECTORS_MAX;
    flags->large |= !op->write.zero && op->write.length_sectors > SMALL_DATA_SECTORS_MAX;
    flags->retry |= op->retry;
    flags->late |= op->late;
    flags->create |= op->creates;
    for (uint32_t i = 0; i < world->op_count; i++)
        flags->overlap |= writes_overlap(op, world->ops[i]);
}

void
op_count_under_way(struct world *world)
{
    struct event_counts *counts = world->counts;
    struct op_flags flags = {0};

    for (uint32_t i = 0; i < world->op_count; i++) {
        const struct op *op = world->ops[i];

        if (op->kind == OP_WRITE)
            op_flag_write(world, op, &flags);
        if (op->kind == OP_CHANGE) {
            flags.changes[op->change.kind] = true;
            flags.create |= op->creates;
        }
        flags.read |= op->kind == OP_READ;
    }
    counts->way_small_write += flags.small;
    counts->way_multi_write += flags.multi;
    counts->way_large_write += flags.large;
    counts->way_zero_write += flags.zero;
    counts->way_overlapping_writes += flags.overlap;
    counts->way_retry_in_flight += flags.retry;
    counts->way_late_write += flags.late;
    counts->way_creation += flags.create;
    counts->way_read += flags.read;
    counts->way_fence += flags.changes[STORE_FENCE];
    counts->way_epoch += flags.changes[STORE_IN_SYNC];
    counts->way_stable += flags.changes[STORE_STABLE];
    counts->way_deletion += flags.changes[STORE_DELETE];
}
