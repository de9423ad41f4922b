/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_job.h: a step that does I/O on the device (START reads its partition table), run on a
 * thread that lives as long as the step, while the loop goes on serving.
 *
 * Threads: started, cancelled and completed on the loop's thread; `run` on the other.
 */
#ifndef DLBLK_UBLK_CONTROL_JOB_H
#define DLBLK_UBLK_CONTROL_JOB_H

#include <pthread.h>
#include <stdbool.h>

#include "common/loop.h"
#include "ublk/control.h"

struct control_job;

struct control_job {
    int (*run)(struct control_job *job, struct dl_error *err);
    void (*on_done)(struct control_job *job); /* on the loop's thread; err and error are set */
    struct ublk_control *control;             /* nobody else's until on_done */
    void *context;
    int err;
    struct dl_error error;

    struct loop *loop; /* from here on the job's own */
    struct loop_message message;
    pthread_t thread;
    bool busy;
};

/* A failure to start the thread comes as on_done as well. */
void control_job_start(struct loop *loop, struct control_job *job);

#endif
