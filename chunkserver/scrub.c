/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scrub.c: reads everything that is kept here, again and again, and compares it with its CRCs and
 * with other slots (scrub_compare.c).  See scrub.h, docs/recovery.md (bad sectors).
 *
 *                     +-- next window --+
 *                     v                 |
 *   IDLE -- chunk --> READING ----------+-- end --> MAPPING -- we compare --> LOOKING <---+
 *    ^                 ^  | bad                        |                        |         | next
 *    |                 |  v                            | another slot does      v         | window
 *    |                 REPAIRING                       |                       ASKING ----+
 *    |                                                 |                        |  ^
 *    |                                                 |            they differ v  |
 *    +----------------------- chunk done --------------+         LOOKING again, CONFIRMING
 *
 *   PAUSED: between any two of them, by the timer
 *
 * There is one walk at a time, chunk by chunk in the order of volume, segment, slot.  A scrub of a
 * volume that somebody has asked for (a job) goes before that of the disk, which begins its chunk
 * anew afterwards.  The scrub of the disk goes so fast that it is through in scrub_period; where it
 * is (the last chunk that it has done) the metadata service remembers, so that a restart costs a
 * chunk, or some minutes of work.
 *
 * A window that has something bad is made smaller until it is one sector; repair.c looks at that
 * again (what was bad may be elsewhere by now), repairs it, and says how that went.
 *
 * Suspending: READING, LOOKING for the store; REPAIRING for repair.c; MAPPING, CONFIRMING for the
 * metadata service, ASKING for the other slot, each with a timer.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "chunkserver/scrub_internal.h"
#include "common/align.h"
#include "common/assert.h"
#include "common/log.h"
#include "dlblk/error.h"

#define WINDOW_FOREGROUND 64u /* sectors, while clients ask for something */
#define REST_MAX_NS       (100 * CORE_NS_PER_MS)
#define REST_FACTOR       3u
#define BUSY_NS           (100 * CORE_NS_PER_MS)
#define BEHIND_MAX_NS     (60000 * CORE_NS_PER_MS)
#define START_MAX_NS      (30000 * CORE_NS_PER_MS) /* a server that starts has other things to do */
#define START_FRACTION    20u                      /* of the time for all, if that is short */
#define BETWEEN_MIN_NS    (60000 * CORE_NS_PER_MS) /* from the end of a scrub of the disk on */
#define BETWEEN_FRACTION  100u

static void scrub_read(struct scrub *scrub);

void
scrub_log(const struct scrub *scrub, const char *what)
{
    char name[80];

    (void)snprintf(name, sizeof(name), "volume %" PRIu64 " segment %u slot %u", scrub->key.volume,
                   scrub->key.segment, scrub->key.slot);
    log_warning("chunkserver", name, "scrub: %s", what);
}

int
scrub_key_compare(const struct chunk_key *a, const struct chunk_key *b)
{
    if (a->volume != b->volume)
        return a->volume < b->volume ? -1 : 1;
    if (a->segment != b->segment)
        return a->segment < b->segment ? -1 : 1;
    return a->slot == b->slot ? 0 : a->slot < b->slot ? -1 : 1;
}

/* --- time --- */

/* The store, a link or repair.c has given back what it had, and the core stops. */
bool
scrub_ends(struct scrub *scrub)
{
    if (!scrub->core->stopping)
        return false;
    scrub->state = SCRUB_IDLE;
    core_stop_step(scrub->core);
    return true;
}

void
scrub_pause(struct scrub *scrub, uint64_t pause_ns, void (*resume)(struct scrub *scrub))
{
    scrub->state = SCRUB_PAUSED;
    scrub->resume = resume;
    env_timer_start(scrub->core->env, &scrub->timer, pause_ns);
}

/* So long one sector takes if all that is used is to be read in time. */
static uint64_t
scrub_sector_ns(const struct scrub *scrub)
{
    struct store_stats stats = {0};

    scrub->core->store->ops->get_stats(scrub->core->store, &stats);
    return scrub->core->options.scrub_period_ns / max_u64(1, stats.used_bytes / SECTOR_BYTES);
}

bool
scrub_has_foreground(const struct scrub *scrub)
{
    return core_pulls_max(scrub->core) == PULLS_FOREGROUND;
}

/* Go on, after so many sectors were read, as soon as that is fair. */
static void
scrub_rest(struct scrub *scrub, uint32_t sectors, void (*resume)(struct scrub *scrub))
{
    uint64_t now_ns = env_now_ns(scrub->core->env);
    uint64_t rest_ns = 0;

    if (sectors > 0 && scrub_has_foreground(scrub))
        rest_ns = max_u64(SCRUB_REST_MIN_NS,
                          min_u64(REST_MAX_NS, REST_FACTOR * (now_ns - scrub->began_ns)));
    if (scrub->job == NULL && sectors > 0) {
        scrub->next_ns = max_u64(scrub->next_ns, max_u64(now_ns, BEHIND_MAX_NS) - BEHIND_MAX_NS) +
                         sectors * scrub_sector_ns(scrub);
        if (scrub->next_ns > now_ns)
            rest_ns = max_u64(rest_ns, scrub->next_ns - now_ns);
    }
    if (rest_ns > 0 || (scrub->job == NULL && scrub_next_job(scrub) != NULL))
        scrub_pause(scrub, rest_ns, resume);
    else
        resume(scrub);
}

/* --- chunks --- */

/* May it be read on? */
bool
scrub_chunk_is_there(const struct scrub *scrub)
{
    const struct chunk *chunk = chunk_table_find(scrub->core->chunks, &scrub->key);

    return chunk != NULL && chunk->local_id == scrub->local_id && chunk->attempt == 0 &&
           !slot_is_beginning(scrub->core, &scrub->key);
}

void
scrub_leave_chunk(struct scrub *scrub)
{
    if (scrub->job != NULL) {
        scrub->job->uncompared += scrub->incomplete;
        scrub->job->key_idx++;
    } else {
        scrub->position = scrub->key;
    }
    scrub->has_chunk = false;
    scrub_pause(scrub, 0, scrub_next_chunk);
}

/* It recovers, or is gone, or the store is of no use.  One that is gone nobody misses. */
static void
scrub_skip_chunk(struct scrub *scrub)
{
    if (scrub->job != NULL && chunk_table_find(scrub->core->chunks, &scrub->key) != NULL)
        scrub->job->skipped++;
    scrub->incomplete = false;
    scrub_leave_chunk(scrub);
}

static void
scrub_begin_chunk(struct scrub *scrub, struct scrub_job *job, const struct chunk_key *key)
{
    const struct chunk *chunk = chunk_table_find(scrub->core->chunks, key);

    scrub->job = job;
    scrub->key = *key;
    scrub->local_id = chunk == NULL ? 0 : chunk->local_id;
    scrub->has_chunk = true;
    scrub->comparing = false;
    scrub->incomplete = false;
    scrub->sector = 0;
    scrub->found = true;
    scrub->window = STORE_WINDOW_SECTORS_MAX;
    scrub_read(scrub);
}

/* The next ones in order behind the position: so many that a look at all serves for long. */
static void
scrub_fill_batch(struct scrub *scrub)
{
    const struct chunk *chunk, *following;

    scrub->batch_count = scrub->batch_idx = 0;
    HASH_ITER (by_key, scrub->core->chunks->by_key, chunk, following) {
        uint32_t at = scrub->batch_count;

        if (scrub_key_compare(&chunk->key, &scrub->position) <= 0)
            continue;
        if (at == SCRUB_BATCH_CHUNKS && scrub_key_compare(&chunk->key, &scrub->batch[at - 1]) > 0)
            continue;
        if (at == SCRUB_BATCH_CHUNKS)
            at--;
        else
            scrub->batch_count++;
        for (; at > 0 && scrub_key_compare(&chunk->key, &scrub->batch[at - 1]) < 0; at--)
            scrub->batch[at] = scrub->batch[at - 1];
        scrub->batch[at] = chunk->key;
    }
}

static void
scrub_complete_disk(struct scrub *scrub)
{
    struct chunkserver_core *core = scrub->core;
    uint64_t period_ns = core->options.scrub_period_ns;

    scrub->position = (struct chunk_key){0};
    scrub->completed_ms = core->env->ops->wall_ms(core->env);
    scrub->next_ns = max_u64(scrub->next_ns,
                             env_now_ns(core->env) +
                                 max_u64(BETWEEN_MIN_NS, period_ns / BETWEEN_FRACTION));
    core->stats.scrubs++;
    log_info("chunkserver", "scrub", "everything here has been read and compared");
}

static void
scrub_next_of_disk(struct scrub *scrub)
{
    uint64_t now_ns = env_now_ns(scrub->core->env);

    scrub->job = NULL;
    if (scrub->core->options.scrub_period_ns == 0 || !scrub->is_placed) {
        scrub->state = SCRUB_IDLE;
        return;
    }
    if (scrub->next_ns > now_ns) {
        scrub_pause(scrub, scrub->next_ns - now_ns, scrub_next_chunk);
        return;
    }
    if (scrub->batch_idx == scrub->batch_count)
        scrub_fill_batch(scrub);
    if (scrub->batch_count > 0) {
        scrub_begin_chunk(scrub, NULL, &scrub->batch[scrub->batch_idx++]);
        return;
    }
    scrub_complete_disk(scrub);
    scrub_pause(scrub, scrub->next_ns - now_ns, scrub_next_chunk);
}

void
scrub_next_chunk(struct scrub *scrub)
{
    struct scrub_job *job;

    while ((job = scrub_next_job(scrub)) != NULL) {
        if (job->key_idx < job->key_count) {
            scrub_begin_chunk(scrub, job, &job->keys[job->key_idx]);
            return;
        }
        job->done = true;
        job->ended_ns = env_now_ns(scrub->core->env);
    }
    scrub_next_of_disk(scrub);
}

/* A job goes before the disk's scrub, which will read this chunk from its beginning. */
static bool
scrub_gives_way(struct scrub *scrub)
{
    if (!scrub->has_chunk || scrub->job != NULL || scrub_next_job(scrub) == NULL)
        return false;
    scrub->has_chunk = false;
    dl_assert(scrub->batch_idx > 0);
    scrub->batch_idx--;
    scrub_next_chunk(scrub);
    return true;
}

/* --- reading --- */

void
scrub_pull(struct scrub *scrub, enum scrub_state state, uint32_t end_sector,
           void (*on_done)(struct store_pull *pull, int err))
{
    struct chunkserver_core *core = scrub->core;
    uint32_t window = scrub->window;

    if (state == SCRUB_READING && scrub->found && scrub_has_foreground(scrub))
        window = min_u32(window, WINDOW_FOREGROUND);
    scrub->state = state;
    scrub->began_ns = env_now_ns(core->env);
    scrub->pull = (struct store_pull){
        .key = scrub->key,
        .first_sector = scrub->sector,
        .window_sectors = min_u32(window, end_sector - scrub->sector),
        .without_data = state == SCRUB_LOOKING,
        .buffer = scrub->buffer,
        .sectors = scrub->own.sectors,
        .on_done = on_done,
    };
    core->store->ops->pull_start(core->store, &scrub->pull);
    core_store_started(core);
}

bool
scrub_is_bad(int err)
{
    return err == -DL_E_CRC_DATA || err == -DL_E_MEDIA_READ || err == -DL_E_INDEX_CORRUPT;
}

void
scrub_narrow(struct scrub *scrub)
{
    scrub->window = scrub->pull.window_sectors > 16 ? 16 : 1;
}

void
scrub_widen(struct scrub *scrub)
{
    scrub->window = min_u32(4 * scrub->window, STORE_WINDOW_SECTORS_MAX);
}

static void
scrub_repair(struct scrub *scrub)
{
    if (!scrub_chunk_is_there(scrub)) {
        scrub_skip_chunk(scrub);
        return;
    }
    scrub->state = SCRUB_REPAIRING;
    if (repair_by_scrub(scrub->core, &scrub->key, scrub->sector) != 0)
        scrub_pause(scrub, BUSY_NS, scrub_repair);
}

void
scrub_on_repaired(struct scrub *scrub, enum repair_outcome outcome)
{
    bool healed = outcome == REPAIR_DONE || outcome == REPAIR_REWRITTEN;
    bool bad = healed || outcome == REPAIR_FAILED;

    if (scrub->core->stopping)
        return;
    dl_assert(scrub->state == SCRUB_REPAIRING);
    if (scrub->job != NULL) {
        scrub->job->counts.sectors += bad;
        scrub->job->counts.bad += bad;
        scrub->job->counts.repaired += healed;
        scrub->job->counts.left_bad += outcome == REPAIR_FAILED;
    }
    scrub->sector++;
    scrub_rest(scrub, 1, scrub_read);
}

static void
scrub_on_read(struct store_pull *pull, int err)
{
    struct scrub *scrub = list_entry(pull, struct scrub, pull);

    if (scrub_ends(scrub))
        return;
    if (scrub_is_bad(err) && pull->window_sectors > 1) {
        scrub_narrow(scrub);
        scrub_read(scrub);
    } else if (scrub_is_bad(err)) {
        scrub->window = 1; /* bad ones come in company */
        scrub_repair(scrub);
    } else if (err != 0) {
        if (err != -DL_E_CHUNK_UNKNOWN && err != -DL_E_NOT_IN_SYNC)
            scrub_log(scrub, dl_err_str(err));
        scrub_skip_chunk(scrub);
    } else {
        findings_read(scrub->core->findings, &scrub->key, pull->first_sector, pull->next_sector,
                      pull->data_sectors);
        if (scrub->job != NULL)
            scrub->job->counts.sectors += pull->data_sectors;
        scrub->sector = pull->next_sector;
        scrub->found = pull->data_sectors > 0;
        scrub_widen(scrub);
        scrub_rest(scrub, pull->data_sectors, scrub_read);
    }
}

static void
scrub_read(struct scrub *scrub)
{
    if (!scrub_chunk_is_there(scrub))
        scrub_skip_chunk(scrub);
    else if (scrub->sector < WIRE_CHUNK_SECTORS_MAX)
        scrub_pull(scrub, SCRUB_READING, WIRE_CHUNK_SECTORS_MAX, scrub_on_read);
    else
        scrub_compare_begin(scrub);
}

static void
scrub_on_timer(struct env_timer *timer)
{
    struct scrub *scrub = list_entry(timer, struct scrub, timer);

    switch (scrub->state) {
    case SCRUB_PAUSED:
        if (!scrub_gives_way(scrub))
            scrub->resume(scrub);
        break;
    case SCRUB_MAPPING:
    case SCRUB_CONFIRMING:
    case SCRUB_ASKING:
        scrub_compare_timeout(scrub);
        break;
    default:
        dl_unreachable();
    }
}

/* --- the disk --- */

void
scrub_on_registered(struct scrub *scrub, const Dl__ScrubPosition *position)
{
    if (scrub->is_placed)
        return;
    scrub->is_placed = true;
    if (position != NULL) {
        scrub->position = (struct chunk_key){
            .volume = position->volume, .segment = position->segment, .slot = position->slot};
        scrub->completed_ms = position->completed_ms;
    }
    scrub->next_ns = env_now_ns(scrub->core->env) +
                     min_u64(START_MAX_NS, scrub->core->options.scrub_period_ns / START_FRACTION);
    if (scrub->state == SCRUB_IDLE && !scrub->core->stopping)
        scrub_pause(scrub, 0, scrub_next_chunk);
}

void
scrub_fill_position(const struct scrub *scrub, Dl__ScrubPosition *position)
{
    position->volume = scrub->position.volume;
    position->segment = scrub->position.segment;
    position->slot = scrub->position.slot;
    position->completed_ms = scrub->completed_ms;
}

/* --- life --- */

struct scrub *
scrub_create(struct chunkserver_core *core)
{
    struct scrub *scrub = calloc(1, sizeof(*scrub));

    if (scrub == NULL)
        return NULL;
    scrub->core = core;
    scrub->buffer = buffer_pool_acquire(core->pull_buffers, BUFFER_BYTES_MAX);
    dl_assert(scrub->buffer != NULL);
    list_init(&scrub->jobs);
    scrub->timer.fn = scrub_on_timer;
    scrub_compare_init(scrub);
    return scrub;
}

void
scrub_stop(struct scrub *scrub)
{
    env_timer_stop(scrub->core->env, &scrub->timer);
    switch (scrub->state) {
    case SCRUB_READING:
    case SCRUB_LOOKING:
        return;
    case SCRUB_ASKING:
        if (!scrub_compare_cancel(scrub))
            return;
        break;
    default:
        break;
    }
    scrub->state = SCRUB_IDLE;
}

bool
scrub_is_idle(const struct scrub *scrub)
{
    return scrub->state == SCRUB_IDLE;
}

void
scrub_free(struct scrub *scrub)
{
    if (scrub == NULL)
        return;
    scrub_jobs_free(scrub);
    free(scrub);
}
