/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scrub_job.c: scrubs of volumes that the metadata service asks for: SCRUB_VOLUME.  Each is known
 * by its id; they are done one after the other (scrub.c), and kept for a while afterwards, for
 * those who ask how it went.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/scrub_internal.h"
#include "common/assert.h"
#include "dlblk/error.h"

#define JOBS_MAX    64u
#define JOB_KEPT_NS (600000 * CORE_NS_PER_MS)

struct scrub_job *
scrub_next_job(struct scrub *scrub)
{
    struct scrub_job *job;

    list_for_each_entry (job, &scrub->jobs, node)
        if (!job->done)
            return job;
    return NULL;
}

static struct scrub_job *
job_find(struct scrub *scrub, uint64_t volume, const uint8_t id[SCRUB_ID_BYTES])
{
    struct scrub_job *job;

    list_for_each_entry (job, &scrub->jobs, node)
        if (job->volume == volume && memcmp(job->id, id, SCRUB_ID_BYTES) == 0)
            return job;
    return NULL;
}

static void
job_destroy(struct scrub *scrub, struct scrub_job *job)
{
    list_remove(&job->node);
    scrub->job_count--;
    free(job->keys);
    free(job);
}

static int
job_compare_keys(const void *a, const void *b)
{
    return scrub_key_compare(a, b);
}

/* The chunks that are there now; what comes later was just written. */
static int
job_take_keys(struct scrub_job *job, const struct chunk_table *chunks)
{
    const struct chunk_volume *volume = chunk_table_volume(chunks, job->volume);
    const struct chunk *chunk;

    if (volume == NULL)
        return 0;
    list_for_each_entry (chunk, &volume->chunks, volume_node)
        job->key_count += chunk->state == CHUNK_PRESENT;
    job->keys = calloc(job->key_count + 1, sizeof(job->keys[0]));
    if (job->keys == NULL)
        return -DL_E_NO_MEMORY;
    job->key_count = 0;
    list_for_each_entry (chunk, &volume->chunks, volume_node)
        if (chunk->state == CHUNK_PRESENT)
            job->keys[job->key_count++] = chunk->key;
    qsort(job->keys, job->key_count, sizeof(job->keys[0]), job_compare_keys);
    return 0;
}

static struct scrub_job *
job_create(struct scrub *scrub, uint64_t volume, const uint8_t id[SCRUB_ID_BYTES])
{
    struct scrub_job *job = calloc(1, sizeof(*job));

    if (job == NULL)
        return NULL;
    job->volume = volume;
    memcpy(job->id, id, SCRUB_ID_BYTES);
    dl__scrub_counts__init(&job->counts);
    if (job_take_keys(job, scrub->core->chunks) != 0) {
        free(job);
        return NULL;
    }
    list_push_back(&scrub->jobs, &job->node);
    scrub->job_count++;
    return job;
}

static void
job_reply(const struct scrub *scrub, const struct frame *frame, struct scrub_job *job)
{
    Dl__ScrubVolumeReply reply = DL__SCRUB_VOLUME_REPLY__INIT;
    struct frame_out *out;

    reply.done = job->done;
    reply.chunks = job->key_count;
    reply.chunks_done = job->key_idx;
    if (!job->done && scrub->job == job && scrub->has_chunk)
        reply.sectors_done = scrub->comparing ? WIRE_CHUNK_SECTORS_MAX : scrub->sector;
    reply.counts = &job->counts;
    reply.chunks_skipped = job->skipped;
    reply.uncompared = job->uncompared;
    out = frame_out_create_message(OP_SCRUB_VOLUME, FRAME_REPLY, frame->request_id, 0, &reply.base);
    meta_link_send(scrub->core, scrub->core->meta.connection, out);
}

void
scrub_volume_receive(struct scrub *scrub, const struct frame *frame, const Dl__ScrubVolume *message)
{
    struct scrub_job *job;

    if (message->scrub_id.len != SCRUB_ID_BYTES || message->volume == 0) {
        meta_refuse(scrub->core, frame, -DL_E_MESSAGE_MALFORMED, "a scrub has an id of 16 bytes");
        return;
    }
    job = job_find(scrub, message->volume, message->scrub_id.data);
    if (job == NULL && scrub->job_count >= JOBS_MAX) {
        meta_refuse(scrub->core, frame, -DL_E_BUSY, "too many scrubs were asked for");
        return;
    }
    if (job == NULL)
        job = job_create(scrub, message->volume, message->scrub_id.data);
    if (job == NULL) {
        meta_refuse(scrub->core, frame, -DL_E_NO_MEMORY, NULL);
        return;
    }
    if (scrub->state == SCRUB_IDLE)
        scrub_pause(scrub, 0, scrub_next_chunk);
    else if (scrub->state == SCRUB_PAUSED && scrub->job == NULL && !job->done)
        scrub_pause(scrub, 0, scrub->resume); /* the disk's gives way */
    job_reply(scrub, frame, job);
}

void
scrub_tick(struct scrub *scrub, uint64_t now_ns)
{
    struct scrub_job *job, *following;

    list_for_each_entry_safe (job, following, &scrub->jobs, node)
        if (job->done && now_ns - job->ended_ns > JOB_KEPT_NS)
            job_destroy(scrub, job);
}

void
scrub_jobs_free(struct scrub *scrub)
{
    while (!list_is_empty(&scrub->jobs))
        job_destroy(scrub, list_first_entry(&scrub->jobs, struct scrub_job, node));
}
