/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.h: a few threads for calls that block (name resolution, fsync of a directory), with
 * completion on the loop.
 *
 * Threads: jobs are submitted and completed on the loop's thread; `run` runs on one of the
 *          worker's.
 * Order:   jobs start in the order of their submission; with one thread they also end in it.
 *
 *     job->run = fsync_run; job->on_done = fsync_done;
 *     worker_submit(worker, job);
 */
#ifndef DLBLK_COMMON_WORKER_H
#define DLBLK_COMMON_WORKER_H

#include <stdint.h>

#include "common/loop.h"

struct dl_error;
struct worker;
struct worker_job;
typedef void (*worker_job_fn)(struct worker_job *job);

/* Embedded in what it serves; the worker's from worker_submit() until on_done. */
struct worker_job {
    worker_job_fn run;     /* on a worker thread; may block */
    worker_job_fn on_done; /* on the loop's thread; may free the job */
    struct worker *worker; /* for the worker, from here on */
    struct worker_job *next;
    struct loop_message message;
};

/* Threads are started when jobs need them, at most threads_max; they have all signals blocked. */
int worker_create(struct worker **ret_worker, struct loop *loop, unsigned threads_max,
                  struct dl_error *err);
/* Waits for the jobs that run.  Every job's on_done must have run before.  NULL is allowed. */
void worker_destroy(struct worker *worker);
void worker_submit(struct worker *worker, struct worker_job *job);
/* Jobs whose on_done has not run yet. */
uint32_t worker_pending(const struct worker *worker);

#endif
