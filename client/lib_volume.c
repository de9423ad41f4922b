/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib_volume.c: libdlblk's volumes and requests.
 *
 * A request crosses from the submitter's thread to the loop's inside its own memory: dlblk_private
 * holds the loop_message on the way, and the core's state afterwards.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/lib_internal.h"
#include "common/vec.h"

/* --- requests --- */

struct lib_submission {
    struct loop_message message; /* first */
    struct dlblk_volume *volume;
};
static_assert(sizeof(struct lib_submission) <= sizeof(((struct dlblk_request *)0)->dlblk_private),
              "a request has room for it");

static void
lib_on_submission(struct loop_message *message)
{
    struct lib_submission *submission = (struct lib_submission *)message;
    struct dlblk_request *request = list_entry((void **)(void *)submission, struct dlblk_request,
                                               dlblk_private[0]);

    client_volume_submit(submission->volume->volume, request);
}

void
dlblk_submit(struct dlblk_volume *volume, struct dlblk_request *request)
{
    struct dlblk_client *client = volume->client;
    struct lib_submission *submission = (struct lib_submission *)(void *)request->dlblk_private;

    /* From on_done: the core is ready for it.  From on_event it is in the middle of something. */
    if (loop_is_owner(client->loop) && client->event_depth == 0) {
        client_volume_submit(volume->volume, request);
        return;
    }
    submission->volume = volume;
    submission->message.fn = lib_on_submission;
    loop_post(client->loop, &submission->message);
}

/* --- the same, waiting --- */

struct lib_wait {
    struct dlblk_request request;
    sem_t done;
    int err;
};

static void
lib_wait_on_done(struct dlblk_request *request, int err)
{
    struct lib_wait *wait = request->context;

    wait->err = err;
    (void)sem_post(&wait->done);
}

static int
lib_submit_wait(struct dlblk_volume *volume, enum dlblk_op op, void *buffer, uint64_t length_bytes,
                uint64_t offset_bytes)
{
    struct lib_wait wait = {
        .request = {.op = op,
                    .offset_bytes = offset_bytes,
                    .length_bytes = length_bytes,
                    .iov_count = buffer != NULL ? 1 : 0,
                    .iov_one = {.iov_base = buffer, .iov_len = length_bytes},
                    .on_done = lib_wait_on_done},
    };

    if (loop_is_owner(volume->client->loop))
        return -EDEADLK;
    wait.request.iov = buffer != NULL ? &wait.request.iov_one : NULL;
    wait.request.context = &wait;
    if (sem_init(&wait.done, 0, 0) != 0)
        return -errno;
    dlblk_submit(volume, &wait.request);
    while (sem_wait(&wait.done) != 0)
        dl_assert(errno == EINTR);
    (void)sem_destroy(&wait.done);
    return wait.err;
}

int
dlblk_read(struct dlblk_volume *volume, void *buffer, uint64_t length_bytes, uint64_t offset_bytes)
{
    return lib_submit_wait(volume, DLBLK_READ, buffer, length_bytes, offset_bytes);
}

int
dlblk_write(struct dlblk_volume *volume, const void *buffer, uint64_t length_bytes,
            uint64_t offset_bytes)
{
    return lib_submit_wait(volume, DLBLK_WRITE, (void *)(uintptr_t)buffer, length_bytes,
                           offset_bytes);
}

int
dlblk_flush(struct dlblk_volume *volume)
{
    return lib_submit_wait(volume, DLBLK_FLUSH, NULL, 0, 0);
}

int
dlblk_discard(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes)
{
    return lib_submit_wait(volume, DLBLK_DISCARD, NULL, length_bytes, offset_bytes);
}

int
dlblk_write_zeroes(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes)
{
    return lib_submit_wait(volume, DLBLK_WRITE_ZEROES, NULL, length_bytes, offset_bytes);
}

/* --- extents --- */

/*
 * The core tells runs on the loop's thread; the caller's function runs on the caller's.  So runs
 * come in batches: the core is stopped by RUNS_ENOUGH when one is full, and goes on behind the last
 * run.  The first batch is a single run, since many callers want no more.
 */
#define RUNS_ENOUGH 1
#define RUNS_FIRST  1u
#define RUNS_STEP   8u
#define RUNS_MAX    1024u

struct lib_run {
    uint64_t offset_bytes;
    uint64_t length_bytes;
    bool hole;
};

struct lib_extents {
    struct lib_call call; /* first */
    struct dlblk_volume *volume;
    struct client_extents extents;
    size_t batch;
    VEC(struct lib_run) runs;
};

static int
lib_extents_on_run(void *context, uint64_t offset_bytes, uint64_t length_bytes, bool hole)
{
    struct lib_extents *extents = context;
    struct lib_run run = {offset_bytes, length_bytes, hole};
    int err = vec_push(&extents->runs, run);

    if (err != 0)
        return err;
    return extents->runs.count == extents->batch ? RUNS_ENOUGH : 0;
}

static void
lib_extents_on_done(struct client_extents *core_extents, int err)
{
    struct lib_extents *extents = core_extents->context;

    lib_call_done(&extents->call, err);
}

static void
lib_extents_start(struct lib_call *call)
{
    struct lib_extents *extents = (struct lib_extents *)call;

    client_volume_extents(extents->volume->volume, &extents->extents);
}

/* 0: all told; RUNS_ENOUGH: there may be more; negative: an error. */
static int
lib_extents_batch(struct lib_extents *extents, dlblk_extent_fn fn, void *context, int *ret_stopped)
{
    int result = lib_call_wait(extents->volume->client, &extents->call, lib_extents_start, NULL);
    uint64_t end_bytes = extents->extents.offset_bytes + extents->extents.length_bytes;
    uint64_t told_bytes = extents->extents.offset_bytes;

    vec_for_each (run, &extents->runs) {
        *ret_stopped = fn(context, run->offset_bytes, run->length_bytes, run->hole);
        if (*ret_stopped != 0)
            return 0;
        told_bytes = run->offset_bytes + run->length_bytes;
    }
    vec_clear(&extents->runs);
    extents->extents.offset_bytes = told_bytes;
    extents->extents.length_bytes = end_bytes - told_bytes;
    return result;
}

int
dlblk_extents(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes,
              dlblk_extent_fn fn, void *context)
{
    struct lib_extents extents = {
        .volume = volume,
        .extents = {.offset_bytes = offset_bytes,
                    .length_bytes = length_bytes,
                    .fn = lib_extents_on_run,
                    .on_done = lib_extents_on_done},
        .batch = RUNS_FIRST,
    };
    int stopped = 0;
    int result;

    extents.extents.context = &extents;
    do {
        result = lib_extents_batch(&extents, fn, context, &stopped);
        extents.batch = extents.batch * RUNS_STEP < RUNS_MAX ? extents.batch * RUNS_STEP : RUNS_MAX;
    } while (result == RUNS_ENOUGH && stopped == 0 && extents.extents.length_bytes > 0);
    vec_fini(&extents.runs);
    if (stopped != 0)
        return stopped;
    return result == RUNS_ENOUGH ? 0 : result;
}

/* --- open and close --- */

struct lib_open {
    struct lib_call call; /* first */
    struct client_volume_open open;
    struct dlblk_volume *volume;
};

static void
lib_on_resize(void *context, uint64_t size_bytes)
{
    struct dlblk_volume *volume = context;

    atomic_store(&volume->size_bytes, size_bytes);
}

static void
lib_open_on_done(struct client_volume_open *open, int err)
{
    struct lib_open *call = open->context;
    struct dlblk_volume *volume = call->volume;

    if (err == 0) {
        volume->volume = open->volume;
        client_volume_get_geometry(open->volume, &volume->geometry);
        atomic_store(&volume->size_bytes, volume->geometry.size_bytes);
        client_volume_on_resize(open->volume, lib_on_resize, volume);
    }
    lib_call_done(&call->call, err);
}

static void
lib_open_start(struct lib_call *base)
{
    struct lib_open *call = (struct lib_open *)base;

    client_volume_open(base->client->core, &call->open);
}

int
dlblk_volume_open(struct dlblk_client *client, const char *name, uint32_t flags,
                  struct dlblk_volume **ret_volume, struct dl_error *err)
{
    return dlblk_volume_open_without(client, name, flags, NULL, 0, ret_volume, err);
}

int
dlblk_volume_open_without(struct dlblk_client *client, const char *name, uint32_t flags,
                          const uint32_t *gone_server_ids, size_t gone_server_count,
                          struct dlblk_volume **ret_volume, struct dl_error *err)
{
    struct dlblk_volume *volume = calloc(1, sizeof(*volume));
    struct lib_open call = {
        .open = {.name = name,
                 .flags = flags,
                 .gone_server_ids = gone_server_ids,
                 .gone_server_count = gone_server_count,
                 .on_done = lib_open_on_done},
        .volume = volume,
    };
    int result;

    if (volume == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory");
    volume->client = client;
    call.open.context = &call;
    result = lib_call_wait(client, &call.call, lib_open_start, err);
    if (result != 0) {
        if (err != NULL && result != -EDEADLK)
            *err = call.open.error;
        free(volume);
        return result;
    }
    (void)atomic_fetch_add(&client->volume_count, 1);
    *ret_volume = volume;
    return 0;
}

struct lib_close {
    struct lib_call call; /* first */
    struct dlblk_volume *volume;
    struct dl_error error;
};

static void
lib_on_closed(void *context, int err, const struct dl_error *error)
{
    struct lib_close *call = context;

    call->error = *error;
    lib_call_done(&call->call, err);
}

static void
lib_close_start(struct lib_call *base)
{
    struct lib_close *call = (struct lib_close *)base;

    client_volume_close(call->volume->volume, lib_on_closed, call);
}

int
dlblk_volume_close(struct dlblk_volume *volume, struct dl_error *err)
{
    struct dlblk_client *client = volume->client;
    struct lib_close call = {.volume = volume};
    int result = lib_call_wait(client, &call.call, lib_close_start, err);

    if (result == -EDEADLK)
        return result; /* nothing has happened: it is as open as before */
    if (result != 0 && err != NULL)
        *err = call.error;
    free(volume);
    (void)atomic_fetch_sub(&client->volume_count, 1);
    return result;
}

/* --- state --- */

void
dlblk_volume_get_geometry(const struct dlblk_volume *volume,
                          struct dlblk_volume_geometry *ret_geometry)
{
    *ret_geometry = volume->geometry;
    ret_geometry->size_bytes = atomic_load(&volume->size_bytes);
}

struct lib_stats {
    struct lib_call call; /* first */
    struct dlblk_volume *volume;
    struct dlblk_volume_stats *stats;
};

static void
lib_stats_start(struct lib_call *base)
{
    struct lib_stats *call = (struct lib_stats *)base;

    client_volume_get_stats(call->volume->volume, call->stats);
    lib_call_done(base, 0);
}

void
dlblk_volume_get_stats(struct dlblk_volume *volume, struct dlblk_volume_stats *ret_stats)
{
    struct lib_stats call = {.volume = volume, .stats = ret_stats};

    if (loop_is_owner(volume->client->loop))
        client_volume_get_stats(volume->volume, ret_stats);
    else if (lib_call_wait(volume->client, &call.call, lib_stats_start, NULL) != 0)
        memset(ret_stats, 0, sizeof(*ret_stats));
}
