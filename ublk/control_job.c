/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/control_job.h"

#include <signal.h>
#include <string.h>

#include "common/assert.h"
#include "common/list.h"

static void
job_on_message(struct loop_message *message)
{
    struct control_job *job = list_entry(message, struct control_job, message);

    if (job->busy)
        (void)pthread_join(job->thread, NULL);
    job->busy = false;
    job->on_done(job);
}

static void *
job_thread(void *argument)
{
    struct control_job *job = argument;

    job->err = job->run(job, &job->error);
    loop_post(job->loop, &job->message);
    return NULL;
}

void
control_job_start(struct loop *loop, struct control_job *job)
{
    sigset_t all;
    sigset_t before;
    int result;

    dl_assert(!job->busy);
    job->loop = loop;
    job->message.fn = job_on_message;
    job->error = (struct dl_error){0};
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&job->thread, NULL, job_thread, job);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result == 0) {
        job->busy = true;
        return;
    }
    job->err = dl_error_set(&job->error, -result, "can't start a thread: %s", strerror(result));
    loop_post(loop, &job->message);
}
