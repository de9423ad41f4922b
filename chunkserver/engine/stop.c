/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stop.c: the end of a life: finish what was started, write everything back, mark the disk clean.
 *
 *     DRAIN --nothing under way--> WRITE_BACK --all in the index, flushed--> SUPERBLOCK ... DONE
 *                                                                   write, flush, write, flush
 *
 * The superblock's cut is the end of the journal then: it says of all of it what a mark would say.
 * A store that has failed only waits for its I/O.
 */
#include <stdio.h>
#include <stdlib.h>

#include "chunkserver/engine/engine_private.h"

enum stop_steps { STOP_DRAIN, STOP_WRITE_BACK, STOP_SUPERBLOCK, STOP_DONE = STOP_SUPERBLOCK + 4 };

static void stop_submit(struct engine *engine);

static void
stop_finish(struct engine *engine, int err)
{
    void (*on_done)(void *context, int err) = engine->stop_done;

    engine->stop_done = NULL;
    env_timer_stop(engine->env, &engine->idle_timer);
    env_timer_stop(engine->env, &engine->throttle_timer);
    env_timer_stop(engine->env, &engine->later_timer);
    on_done(engine->stop_context, err);
}

static void
stop_on_io(struct disk_io *io, int result)
{
    struct engine *engine = list_entry(io, struct engine, stop_io);

    if (result < 0) {
        stop_finish(engine, -DL_E_MEDIA_WRITE);
        return;
    }
    if (++engine->stop_step < STOP_DONE)
        stop_submit(engine);
    else
        stop_finish(engine, 0);
}

/* Write and flush one copy of the superblock, then the other. */
static void
stop_submit(struct engine *engine)
{
    uint32_t at = engine->stop_step - STOP_SUPERBLOCK;
    struct disk_io *io = &engine->stop_io;

    *io = (struct disk_io){.kind = at % 2 == 0 ? DISK_WRITE : DISK_FLUSH, .on_done = stop_on_io};
    if (io->kind == DISK_WRITE) {
        io->offset_bytes = superblock_copy_offset(engine->disk->size_bytes, at / 2);
        io->iov_one = (struct iovec){.iov_base = engine->stop_buffer, .iov_len = SUPERBLOCK_BYTES};
        io->iov = &io->iov_one;
        io->iov_count = 1;
    }
    disk_submit(engine->disk, io);
}

/* Everything is written back: a good moment to find a mistake of ours. */
static void
stop_check(struct engine *engine)
{
    bool unreadable;
    char *wrong = engine_check_unreadable(engine, &unreadable);

    if (wrong != NULL && !unreadable)
        (void)fputs(wrong, stderr);
    dl_assert(wrong == NULL || unreadable);
    free(wrong);
}

static void
stop_superblock(struct engine *engine)
{
    struct superblock *superblock = &engine->superblock;

    if (DLBLK_EXPENSIVE_CHECKS)
        stop_check(engine);
    dl_assert(engine->tail == engine->acked_lsn && engine->acked_lsn == engine->next_lsn);
    superblock->generation++;
    superblock->cut = engine->acked_lsn;
    superblock->tail = engine->tail;
    superblock->clean = true;
    engine->stop_buffer = aligned_alloc(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES);
    dl_assert(engine->stop_buffer != NULL);
    superblock_encode(superblock, engine->stop_buffer);
    engine->stop_step = STOP_SUPERBLOCK;
    stop_submit(engine);
}

static bool
stop_io_is_over(const struct engine *engine)
{
    enum writeback_state state = engine->writeback.state;

    return engine->requests == 0 && list_is_empty(&engine->reads) &&
           list_is_empty(&engine->done_reads) && list_is_empty(&engine->groups) &&
           !engine->flushing && engine->loads_pending == 0 && state != WRITEBACK_BATCH &&
           state != WRITEBACK_FLUSH;
}

void
stop_step(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    if (engine->stopped != 0) {
        if (stop_io_is_over(engine) && engine->stop_step < STOP_SUPERBLOCK)
            stop_finish(engine, engine->stopped);
        return;
    }
    if (engine->stop_step == STOP_DRAIN && !engine_has_request(engine) &&
        list_is_empty(&engine->reads) && list_is_empty(&engine->done_reads)) {
        engine->stop_step = STOP_WRITE_BACK;
        wb->stopping = true;
        engine_kick(engine);
    }
    if (engine->stop_step == STOP_WRITE_BACK && list_is_empty(&engine->dirty) &&
        wb->state == WRITEBACK_IDLE && !engine_has_request(engine) && engine->loads_pending == 0 &&
        engine->tail == engine->next_lsn)
        stop_superblock(engine);
}

void
stop_start(struct chunk_store *store, void (*on_done)(void *context, int err), void *context)
{
    struct engine *engine = engine_of_store(store);

    dl_assert(!engine->stopping);
    dl_assert(on_done != NULL);
    engine->stopping = true;
    engine->stop_done = on_done;
    engine->stop_context = context;
    engine->stop_step = STOP_DRAIN;
    engine_kick(engine);
}
