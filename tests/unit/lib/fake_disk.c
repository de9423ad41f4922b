/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lib/fake_disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fake_disk_write {
    uint64_t completed_seq;
    bool orphan; /* a failed flush covered it: no flush makes it durable any more */
    uint64_t offset_bytes;
    uint64_t length_bytes;
    uint8_t data[];
};

struct fake_disk_io {
    struct disk_io *io;
    uint64_t length_bytes;
    uint64_t covers_seq;           /* flush: what had completed at its submission */
    struct fake_disk_write *write; /* write: the data as it was submitted */
};

enum crash_grain { GRAIN_NOTHING, GRAIN_ALL, GRAIN_WRITE, GRAIN_BLOCK, GRAIN_PIECE, GRAIN_COUNT };

static void *
fake_disk_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

/* Room for one more pointer in a growing array. */
static void
fake_disk_grow(void **array, uint32_t count, uint32_t *capacity, size_t element_bytes)
{
    if (count < *capacity)
        return;
    *capacity = *capacity * 2 + 16;
    *array = realloc(*array, *capacity * element_bytes);
    if (*array == NULL)
        abort();
}

static void
fake_disk_violation(struct fake_disk *fake, const char *what, uint64_t offset_bytes)
{
    if (fake->violations++ == 0)
        (void)snprintf(fake->violation, sizeof(fake->violation), "%s at offset %llu", what,
                       (unsigned long long)offset_bytes);
}

static void
fake_disk_note(struct fake_disk *fake, const struct fake_disk_event *event)
{
    if (fake->on_event != NULL)
        fake->on_event(fake->on_event_context, event);
    if (!fake->record)
        return;
    fake_disk_grow((void **)&fake->log, fake->log_count, &fake->log_capacity, sizeof(fake->log[0]));
    fake->log[fake->log_count++] = *event;
}

static uint64_t
io_length(const struct disk_io *io)
{
    uint64_t length = 0;

    if (io->kind == DISK_FLUSH)
        return 0;
    for (uint32_t i = 0; i < io->iov_count; i++)
        length += io->iov[i].iov_len;
    return length;
}

static void
fake_disk_check_io(struct fake_disk *fake, const struct disk_io *io, uint64_t length_bytes)
{
    if (io->kind == DISK_FLUSH)
        return;
    if (length_bytes == 0 || io->offset_bytes % FAKE_DISK_BLOCK != 0)
        fake_disk_violation(fake, "an empty or misaligned request", io->offset_bytes);
    if (io->offset_bytes + length_bytes > fake->disk.size_bytes) {
        (void)fprintf(stderr, "fake disk: request beyond the end: %llu + %llu\n",
                      (unsigned long long)io->offset_bytes, (unsigned long long)length_bytes);
        abort();
    }
    for (uint32_t i = 0; i < io->iov_count; i++)
        if ((uintptr_t)io->iov[i].iov_base % FAKE_DISK_BLOCK != 0 ||
            io->iov[i].iov_len % FAKE_DISK_BLOCK != 0)
            fake_disk_violation(fake, "misaligned memory", io->offset_bytes);
}

/*
 * Count the blocks of an I/O in (delta 1) or out (delta -1) of flight; on the way in look for
 * collisions.
 */
static void
fake_disk_mark_blocks(struct fake_disk *fake, const struct disk_io *io, uint64_t length_bytes,
                      int delta)
{
    uint64_t first = io->offset_bytes / FAKE_DISK_BLOCK;
    uint64_t end = first + length_bytes / FAKE_DISK_BLOCK;
    bool write = io->kind == DISK_WRITE;

    for (uint64_t block = first; block < end; block++) {
        if (delta > 0 && write && fake->writing[block] != 0)
            fake_disk_violation(fake, "two writes in flight", block * FAKE_DISK_BLOCK);
        if (delta > 0 && write && fake->reading[block] != 0)
            fake_disk_violation(fake, "a write over a read in flight", block * FAKE_DISK_BLOCK);
        if (delta > 0 && !write && fake->writing[block] != 0)
            fake_disk_violation(fake, "a read under a write in flight", block * FAKE_DISK_BLOCK);
        if (write)
            fake->writing[block] = (uint16_t)(fake->writing[block] + delta);
        else
            fake->reading[block] = (uint16_t)(fake->reading[block] + delta);
    }
}

static bool
fake_fault_hits(struct fake_disk *fake, enum disk_io_kind kind, uint64_t offset_bytes, int *ret_err)
{
    struct fake_fault *fault = &fake->faults[kind];

    if (!fault->armed)
        return false;
    if (kind != DISK_FLUSH && (offset_bytes < fault->from_bytes || offset_bytes >= fault->to_bytes))
        return false;
    if (fault->countdown > 0) {
        fault->countdown--;
        return false;
    }
    fault->hits++;
    if (--fault->count == 0)
        fault->armed = false;
    *ret_err = fault->err;
    return true;
}

/* Another write or flush: is the power gone?  *ret_last: it goes during this one. */
static bool
fake_disk_power_gone(struct fake_disk *fake, bool *ret_last)
{
    *ret_last = false;
    if (fake->power_armed && !fake->power_off && fake->power_countdown-- == 0) {
        fake->power_off = true;
        *ret_last = true;
    }
    return fake->power_off;
}

static bool
fake_disk_is_bad(const struct fake_disk *fake, uint64_t offset_bytes, uint64_t length_bytes)
{
    uint64_t end = (offset_bytes + length_bytes) / FAKE_DISK_BLOCK;

    for (uint64_t block = offset_bytes / FAKE_DISK_BLOCK; block < end; block++)
        if (fake->bad[block / 8] & (1u << (block % 8)))
            return true;
    return false;
}

/* --- the cache --- */

static void
fake_disk_cache_add(struct fake_disk *fake, struct fake_disk_write *write)
{
    write->completed_seq = ++fake->completed_seq;
    memcpy(fake->image + write->offset_bytes, write->data, write->length_bytes);
    fake_disk_set_bad(fake, write->offset_bytes, write->length_bytes, false);
    if (fake->disk.write_through) {
        memcpy(fake->stable + write->offset_bytes, write->data, write->length_bytes);
        free(write);
        return;
    }
    fake_disk_grow((void **)&fake->cache, fake->cache_count, &fake->cache_capacity,
                   sizeof(struct fake_disk_write *));
    fake->cache[fake->cache_count++] = write;
}

/* A failed write: each block is old, new or torn in the cache. */
static void
fake_disk_cache_add_failed(struct fake_disk *fake, struct fake_disk_write *write)
{
    const uint8_t *old = fake->image + write->offset_bytes;

    for (uint64_t at = 0; at < write->length_bytes; at += FAKE_DISK_PIECE)
        if (fake_rng_percent(&fake->env->rng, 50))
            memcpy(write->data + at, old + at, FAKE_DISK_PIECE);
    fake_disk_cache_add(fake, write);
}

static void
fake_disk_cache_flush(struct fake_disk *fake, uint64_t covers_seq)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < fake->cache_count; i++) {
        struct fake_disk_write *write = fake->cache[i];

        if (write->orphan || write->completed_seq > covers_seq) {
            fake->cache[kept++] = write;
            continue;
        }
        memcpy(fake->stable + write->offset_bytes, write->data, write->length_bytes);
        free(write);
    }
    fake->cache_count = kept;
}

static void
fake_disk_cache_orphan(struct fake_disk *fake, uint64_t covers_seq)
{
    for (uint32_t i = 0; i < fake->cache_count; i++)
        if (fake->cache[i]->completed_seq <= covers_seq)
            fake->cache[i]->orphan = true;
}

/* --- submit and complete --- */

static struct fake_disk_write *
fake_disk_capture(const struct disk_io *io, uint64_t length_bytes)
{
    struct fake_disk_write *write = fake_disk_alloc(sizeof(*write) + length_bytes);
    uint64_t at = 0;

    write->offset_bytes = io->offset_bytes;
    write->length_bytes = length_bytes;
    for (uint32_t i = 0; i < io->iov_count; i++) {
        memcpy(write->data + at, io->iov[i].iov_base, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    return write;
}

static void
fake_disk_check_unchanged(struct fake_disk *fake, const struct disk_io *io,
                          const struct fake_disk_write *write)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < io->iov_count; i++) {
        if (memcmp(write->data + at, io->iov[i].iov_base, io->iov[i].iov_len) != 0)
            fake_disk_violation(fake, "a buffer changed while it was written", io->offset_bytes);
        at += io->iov[i].iov_len;
    }
}

static void
fake_disk_submit(struct disk *disk, struct disk_io *io)
{
    struct fake_disk *fake = (struct fake_disk *)disk;
    struct fake_disk_io *flying = fake_disk_alloc(sizeof(*flying));

    flying->io = io;
    flying->length_bytes = io_length(io);
    flying->covers_seq = fake->completed_seq;
    fake_disk_check_io(fake, io, flying->length_bytes);
    if (io->kind != DISK_FLUSH)
        fake_disk_mark_blocks(fake, io, flying->length_bytes, 1);
    if (io->kind == DISK_WRITE)
        flying->write = fake_disk_capture(io, flying->length_bytes);
    if (io->kind == DISK_READ)
        for (uint32_t i = 0; i < io->iov_count; i++)
            memset(io->iov[i].iov_base, 0xee, io->iov[i].iov_len);
    fake->ios[io->kind]++;
    fake->bytes[io->kind] += flying->length_bytes;
    fake_disk_grow((void **)&fake->inflight, fake->inflight_count, &fake->inflight_capacity,
                   sizeof(struct fake_disk_io *));
    fake->inflight[fake->inflight_count++] = flying;
    fake_disk_note(fake, &(struct fake_disk_event){.kind = io->kind,
                                                   .offset_bytes = io->offset_bytes,
                                                   .length_bytes = flying->length_bytes});
}

static int
fake_disk_complete_read(struct fake_disk *fake, const struct disk_io *io, uint64_t length_bytes)
{
    uint64_t at = io->offset_bytes;
    int err;

    if (fake->power_off)
        return -EIO;
    if (fake_fault_hits(fake, DISK_READ, io->offset_bytes, &err))
        return err;
    if (fake_disk_is_bad(fake, io->offset_bytes, length_bytes))
        return -EIO;
    for (uint32_t i = 0; i < io->iov_count; i++) {
        memcpy(io->iov[i].iov_base, fake->image + at, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    return 0;
}

static int
fake_disk_complete_write(struct fake_disk *fake, struct fake_disk_write *write)
{
    bool last;
    int err;

    if (fake_disk_power_gone(fake, &last)) {
        if (last)
            fake_disk_cache_add_failed(fake, write);
        else
            free(write);
        return -EIO;
    }
    if (fake_fault_hits(fake, DISK_WRITE, write->offset_bytes, &err)) {
        fake_disk_cache_add_failed(fake, write);
        return err;
    }
    fake_disk_cache_add(fake, write);
    return 0;
}

static int
fake_disk_complete_flush(struct fake_disk *fake, uint64_t covers_seq)
{
    bool last;
    int err;

    if (fake_disk_power_gone(fake, &last))
        return -EIO;
    if (fake_fault_hits(fake, DISK_FLUSH, 0, &err)) {
        fake_disk_cache_orphan(fake, covers_seq);
        return err;
    }
    fake_disk_cache_flush(fake, covers_seq);
    return 0;
}

static int
fake_disk_complete(struct fake_disk *fake, struct fake_disk_io *flying)
{
    struct disk_io *io = flying->io;

    switch (io->kind) {
    case DISK_READ:
        return fake_disk_complete_read(fake, io, flying->length_bytes);
    case DISK_WRITE:
        fake_disk_check_unchanged(fake, io, flying->write);
        return fake_disk_complete_write(fake, flying->write);
    case DISK_FLUSH:
        return fake_disk_complete_flush(fake, flying->covers_seq);
    }
    abort();
}

void
fake_disk_step(struct fake_disk *fake)
{
    uint32_t pick;
    struct fake_disk_io *flying;
    struct disk_io *io;
    int result;

    if (fake->inflight_count == 0)
        return;
    pick = (uint32_t)fake_rng_below(&fake->env->rng, fake->inflight_count);
    flying = fake->inflight[pick];
    fake->inflight[pick] = fake->inflight[--fake->inflight_count];
    io = flying->io;
    result = fake_disk_complete(fake, flying);
    if (io->kind != DISK_FLUSH)
        fake_disk_mark_blocks(fake, io, flying->length_bytes, -1);
    fake_disk_note(fake, &(struct fake_disk_event){.kind = io->kind,
                                                   .completed = true,
                                                   .result = result,
                                                   .offset_bytes = io->offset_bytes,
                                                   .length_bytes = flying->length_bytes});
    free(flying);
    io->on_done(io, result);
}

uint32_t
fake_disk_pending(const struct fake_disk *fake)
{
    return fake->inflight_count;
}

uint32_t
fake_disk_count(const struct fake_disk *fake, enum disk_io_kind kind, uint64_t from_bytes,
                uint64_t to_bytes, uint64_t length_min)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < fake->inflight_count; i++) {
        const struct fake_disk_io *flying = fake->inflight[i];

        if (flying->io->kind != kind || flying->length_bytes < length_min)
            continue;
        count += kind == DISK_FLUSH ||
                 (flying->io->offset_bytes >= from_bytes && flying->io->offset_bytes < to_bytes);
    }
    return count;
}

/* --- blocking forms --- */

static int
fake_disk_read_now(struct disk *disk, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct fake_disk *fake = (struct fake_disk *)disk;
    struct iovec iov = {.iov_base = buffer, .iov_len = length_bytes};
    struct disk_io io = {
        .kind = DISK_READ, .iov = &iov, .iov_count = 1, .offset_bytes = offset_bytes};
    int result;

    fake_disk_check_io(fake, &io, length_bytes);
    fake->ios[DISK_READ]++;
    fake->bytes[DISK_READ] += length_bytes;
    result = fake_disk_complete_read(fake, &io, length_bytes);
    fake_disk_note(fake, &(struct fake_disk_event){.kind = DISK_READ,
                                                   .completed = true,
                                                   .now = true,
                                                   .result = result,
                                                   .offset_bytes = offset_bytes,
                                                   .length_bytes = length_bytes});
    return result;
}

static int
fake_disk_write_now(struct disk *disk, const void *buffer, size_t length_bytes,
                    uint64_t offset_bytes)
{
    struct fake_disk *fake = (struct fake_disk *)disk;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buffer, .iov_len = length_bytes};
    struct disk_io io = {
        .kind = DISK_WRITE, .iov = &iov, .iov_count = 1, .offset_bytes = offset_bytes};
    int result;

    fake_disk_check_io(fake, &io, length_bytes);
    fake->ios[DISK_WRITE]++;
    fake->bytes[DISK_WRITE] += length_bytes;
    result = fake_disk_complete_write(fake, fake_disk_capture(&io, length_bytes));
    fake_disk_note(fake, &(struct fake_disk_event){.kind = DISK_WRITE,
                                                   .completed = true,
                                                   .now = true,
                                                   .result = result,
                                                   .offset_bytes = offset_bytes,
                                                   .length_bytes = length_bytes});
    return result;
}

static int
fake_disk_flush_now(struct disk *disk)
{
    struct fake_disk *fake = (struct fake_disk *)disk;
    int result;

    fake->ios[DISK_FLUSH]++;
    result = fake_disk_complete_flush(fake, fake->completed_seq);
    fake_disk_note(fake, &(struct fake_disk_event){
                             .kind = DISK_FLUSH, .completed = true, .now = true, .result = result});
    return result;
}

static const struct disk_ops fake_disk_ops = {
    .submit = fake_disk_submit,
    .read_now = fake_disk_read_now,
    .write_now = fake_disk_write_now,
    .flush_now = fake_disk_flush_now,
};

/* --- life --- */

static uint32_t
fake_disk_source_pending(void *context)
{
    return fake_disk_pending(context);
}

static void
fake_disk_source_step(void *context)
{
    fake_disk_step(context);
}

void
fake_disk_init(struct fake_disk *fake, struct fake_env *env, uint64_t size_bytes,
               bool write_through)
{
    uint64_t blocks = size_bytes / FAKE_DISK_BLOCK;

    memset(fake, 0, sizeof(*fake));
    fake->disk.ops = &fake_disk_ops;
    fake->disk.size_bytes = size_bytes;
    fake->disk.write_through = write_through;
    fake->env = env;
    fake->image = fake_disk_alloc(size_bytes);
    fake->stable = fake_disk_alloc(size_bytes);
    fake->bad = fake_disk_alloc(blocks / 8 + 1);
    fake->writing = fake_disk_alloc(blocks * sizeof(uint16_t));
    fake->reading = fake_disk_alloc(blocks * sizeof(uint16_t));
    fake_env_add_source(env, (struct fake_source){.pending = fake_disk_source_pending,
                                                  .step = fake_disk_source_step,
                                                  .context = fake});
}

static void
fake_disk_forget_inflight(struct fake_disk *fake)
{
    for (uint32_t i = 0; i < fake->inflight_count; i++) {
        free(fake->inflight[i]->write);
        free(fake->inflight[i]);
    }
    fake->inflight_count = 0;
    memset(fake->writing, 0, fake->disk.size_bytes / FAKE_DISK_BLOCK * sizeof(uint16_t));
    memset(fake->reading, 0, fake->disk.size_bytes / FAKE_DISK_BLOCK * sizeof(uint16_t));
}

static void
fake_disk_drop_cache(struct fake_disk *fake)
{
    for (uint32_t i = 0; i < fake->cache_count; i++)
        free(fake->cache[i]);
    fake->cache_count = 0;
}

void
fake_disk_fini(struct fake_disk *fake)
{
    if (fake->image == NULL)
        return;
    fake_env_remove_source(fake->env, fake);
    fake_disk_forget_inflight(fake);
    fake_disk_drop_cache(fake);
    free(fake->inflight);
    free(fake->cache);
    free(fake->image);
    free(fake->stable);
    free(fake->bad);
    free(fake->writing);
    free(fake->reading);
    free(fake->log);
    fake->image = NULL;
}

/* --- crash --- */

/* Let some of one write reach `to`.  Says how much did: 0 nothing, 1 part, 2 all. */
static int
crash_apply(struct fake_disk *fake, const struct fake_disk_write *write, enum crash_grain grain,
            unsigned percent, uint8_t *to)
{
    struct fake_rng *rng = &fake->env->rng;
    uint64_t step = write->length_bytes;
    uint64_t landed = 0;

    if (grain == GRAIN_NOTHING)
        return 0;
    if (grain == GRAIN_ALL)
        percent = 100;
    if (grain == GRAIN_BLOCK)
        step = FAKE_DISK_BLOCK;
    if (grain == GRAIN_PIECE)
        step = FAKE_DISK_PIECE;
    for (uint64_t at = 0; at < write->length_bytes; at += step) {
        if (!fake_rng_percent(rng, percent))
            continue;
        memcpy(to + write->offset_bytes + at, write->data + at, step);
        landed += step;
    }
    if (landed == 0)
        return 0;
    return landed == write->length_bytes ? 2 : 1;
}

/* Of what is in flight, in a random order. */
static void
fake_disk_shuffle_inflight(struct fake_disk *fake)
{
    for (uint32_t i = fake->inflight_count; i > 1; i--) {
        uint32_t other = (uint32_t)fake_rng_below(&fake->env->rng, i);
        struct fake_disk_io *swap = fake->inflight[i - 1];

        fake->inflight[i - 1] = fake->inflight[other];
        fake->inflight[other] = swap;
    }
}

static void
crash_restore(struct fake_disk *fake, const struct fake_disk_write *write)
{
    memcpy(fake->image + write->offset_bytes, fake->stable + write->offset_bytes,
           write->length_bytes);
}

static void
crash_count(struct fake_disk *fake, int landed)
{
    fake->lost_at_crash += landed == 0;
    fake->torn_at_crash += landed == 1;
}

void
fake_disk_crash(struct fake_disk *fake)
{
    struct fake_rng *rng = &fake->env->rng;
    enum crash_grain grain = (enum crash_grain)fake_rng_below(rng, GRAIN_COUNT);
    unsigned percent = (unsigned)fake_rng_range(rng, 5, 95);

    fake_disk_shuffle_inflight(fake);
    for (uint32_t i = 0; i < fake->cache_count; i++, fake->cached_at_crash++)
        crash_count(fake, crash_apply(fake, fake->cache[i], grain, percent, fake->stable));
    for (uint32_t i = 0; i < fake->inflight_count; i++) {
        if (fake->inflight[i]->write == NULL)
            continue;
        fake->inflight_at_crash++;
        crash_count(fake,
                    crash_apply(fake, fake->inflight[i]->write, grain, percent, fake->stable));
    }
    for (uint32_t i = 0; i < fake->cache_count; i++)
        crash_restore(fake, fake->cache[i]);
    for (uint32_t i = 0; i < fake->inflight_count; i++)
        if (fake->inflight[i]->write != NULL)
            crash_restore(fake, fake->inflight[i]->write);
    fake_disk_forget_inflight(fake);
    fake_disk_drop_cache(fake);
    fake->power_armed = false;
    fake->power_off = false;
}

void
fake_disk_kill(struct fake_disk *fake)
{
    struct fake_rng *rng = &fake->env->rng;
    enum crash_grain grain = (enum crash_grain)fake_rng_below(rng, GRAIN_PIECE);
    unsigned percent = (unsigned)fake_rng_range(rng, 5, 95);

    fake_disk_shuffle_inflight(fake);
    for (uint32_t i = 0; i < fake->inflight_count; i++) {
        struct fake_disk_write *write = fake->inflight[i]->write;

        if (write == NULL)
            continue;
        fake->inflight_at_crash++;
        if (crash_apply(fake, write, grain, percent, fake->image) == 0)
            continue;
        memcpy(write->data, fake->image + write->offset_bytes, write->length_bytes);
        fake->inflight[i]->write = NULL;
        fake_disk_cache_add(fake, write);
    }
    fake_disk_forget_inflight(fake);
}

void
fake_disk_settle(struct fake_disk *fake)
{
    fake_disk_cache_flush(fake, UINT64_MAX);
}

/* --- faults --- */

void
fake_disk_fail(struct fake_disk *fake, enum disk_io_kind kind, uint64_t countdown, uint64_t count,
               int err, uint64_t from_bytes, uint64_t to_bytes)
{
    fake->faults[kind] = (struct fake_fault){.armed = count > 0,
                                             .countdown = countdown,
                                             .count = count,
                                             .err = err,
                                             .from_bytes = from_bytes,
                                             .to_bytes = to_bytes};
}

void
fake_disk_power_off_after(struct fake_disk *fake, uint64_t countdown)
{
    fake->power_armed = true;
    fake->power_countdown = countdown;
}

void
fake_disk_set_bad(struct fake_disk *fake, uint64_t offset_bytes, uint64_t length_bytes, bool bad)
{
    uint64_t end = (offset_bytes + length_bytes) / FAKE_DISK_BLOCK;

    for (uint64_t block = offset_bytes / FAKE_DISK_BLOCK; block < end; block++) {
        if (bad)
            fake->bad[block / 8] |= (uint8_t)(1u << (block % 8));
        else
            fake->bad[block / 8] &= (uint8_t) ~(1u << (block % 8));
    }
}

void
fake_disk_flip_bit(struct fake_disk *fake, uint64_t offset_bytes, unsigned bit)
{
    fake->image[offset_bytes] ^= (uint8_t)(1u << bit);
    fake->stable[offset_bytes] ^= (uint8_t)(1u << bit);
}

void
fake_disk_peek(const struct fake_disk *fake, void *buffer, size_t length_bytes,
               uint64_t offset_bytes)
{
    memcpy(buffer, fake->image + offset_bytes, length_bytes);
}

void
fake_disk_poke(struct fake_disk *fake, const void *buffer, size_t length_bytes,
               uint64_t offset_bytes)
{
    memcpy(fake->image + offset_bytes, buffer, length_bytes);
    memcpy(fake->stable + offset_bytes, buffer, length_bytes);
}
