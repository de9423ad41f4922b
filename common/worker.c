/* SPDX-License-Identifier: Apache-2.0 */
#include "common/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/list.h"
#include "dlblk/error.h"

#define THREADS_MAX 64u

struct worker {
    struct loop *loop;
    uint32_t pending; /* the loop's thread only */

    pthread_mutex_t lock; /* protects all that follows */
    pthread_cond_t wanted;
    struct worker_job *first;
    struct worker_job **last;
    bool stop;
    unsigned idle;
    unsigned queued;
    unsigned thread_count, threads_max;
    pthread_t threads[THREADS_MAX];
};

static void
worker_on_message(struct loop_message *message)
{
    struct worker_job *job = list_entry(message, struct worker_job, message);

    dl_assert(job->worker->pending > 0);
    job->worker->pending--;
    job->on_done(job);
}

static struct worker_job *
worker_wait_job(struct worker *worker)
{
    struct worker_job *job;

    pthread_mutex_lock(&worker->lock);
    worker->idle++;
    while (worker->first == NULL && !worker->stop)
        pthread_cond_wait(&worker->wanted, &worker->lock);
    worker->idle--;
    job = worker->first;
    if (job != NULL) {
        worker->first = job->next;
        if (worker->first == NULL)
            worker->last = &worker->first;
        worker->queued--;
    }
    pthread_mutex_unlock(&worker->lock);
    return job;
}

static void *
worker_run(void *argument)
{
    struct worker *worker = argument;
    struct worker_job *job;

    while ((job = worker_wait_job(worker)) != NULL) {
        job->run(job);
        job->message.fn = worker_on_message;
        loop_post(worker->loop, &job->message);
    }
    return NULL;
}

/* All signals blocked: they are the main thread's.  Called with the lock held. */
static int
worker_start_thread(struct worker *worker)
{
    sigset_t all;
    sigset_t before;
    int result;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&worker->threads[worker->thread_count], NULL, worker_run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result == 0)
        worker->thread_count++;
    return -result;
}

int
worker_create(struct worker **ret_worker, struct loop *loop, unsigned threads_max,
              struct dl_error *err)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    int result;

    dl_assert(threads_max >= 1);
    dl_assert(threads_max <= THREADS_MAX);
    if (worker == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for worker threads");
    worker->loop = loop;
    worker->threads_max = threads_max;
    worker->last = &worker->first;
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->wanted, NULL);
    /* One now: later failures to start more only mean less parallelism. */
    pthread_mutex_lock(&worker->lock);
    result = worker_start_thread(worker);
    pthread_mutex_unlock(&worker->lock);
    if (result != 0) {
        worker_destroy(worker);
        return dl_error_set(err, result, "can't start a thread: %s", strerror(-result));
    }
    *ret_worker = worker;
    return 0;
}

void
worker_destroy(struct worker *worker)
{
    if (worker == NULL)
        return;
    dl_assert(worker->pending == 0);
    pthread_mutex_lock(&worker->lock);
    dl_assert(worker->first == NULL);
    worker->stop = true;
    pthread_cond_broadcast(&worker->wanted);
    pthread_mutex_unlock(&worker->lock);
    for (unsigned i = 0; i < worker->thread_count; i++)
        pthread_join(worker->threads[i], NULL);
    pthread_cond_destroy(&worker->wanted);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

void
worker_submit(struct worker *worker, struct worker_job *job)
{
    loop_assert_usable(worker->loop);
    job->worker = worker;
    job->next = NULL;
    worker->pending++;
    pthread_mutex_lock(&worker->lock);
    *worker->last = job;
    worker->last = &job->next;
    worker->queued++;
    if (worker->queued > worker->idle && worker->thread_count < worker->threads_max)
        (void)worker_start_thread(worker);
    pthread_cond_signal(&worker->wanted);
    pthread_mutex_unlock(&worker->lock);
}

uint32_t
worker_pending(const struct worker *worker)
{
    return worker->pending;
}
