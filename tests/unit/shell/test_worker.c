/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worker threads: every job runs once, off the loop's thread, and is completed once, on it; jobs
 * run at the same time up to the limit of threads and not beyond; on_done may submit the job again.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/list.h"
#include "common/worker.h"
#include "dlblk/error.h"

#define JOBS 2000u

struct test_job {
    struct worker_job job;
    struct loop *loop;
    atomic_uint ran;
    unsigned done;
    unsigned again;
    unsigned *done_total;
};

static atomic_int running;
static atomic_int running_max;

static void
job_run(struct worker_job *job)
{
    struct test_job *test = list_entry(job, struct test_job, job);
    sigset_t blocked;
    int now = atomic_fetch_add(&running, 1) + 1;
    int max = atomic_load(&running_max);

    while (now > max && !atomic_compare_exchange_weak(&running_max, &max, now))
        ;
    assert_false(loop_is_owner(test->loop));
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &blocked), 0);
    assert_true(sigismember(&blocked, SIGTERM));
    if (atomic_fetch_add(&test->ran, 1) % 64 == 0)
        usleep(500);
    atomic_fetch_sub(&running, 1);
}

static void
job_done(struct worker_job *job)
{
    struct test_job *test = list_entry(job, struct test_job, job);

    assert_true(loop_is_owner(test->loop));
    assert_int_equal(atomic_load(&test->ran), test->done + 1);
    test->done++;
    if (test->again > 0) {
        test->again--;
        worker_submit(job->worker, job);
    } else {
        (*test->done_total)++;
    }
}

static void
run_jobs(unsigned threads_max)
{
    static struct test_job jobs[JOBS];
    struct loop *loop = NULL;
    struct worker *worker = NULL;
    struct dl_error err;
    unsigned done_total = 0;

    atomic_store(&running_max, 0);
    assert_int_equal(loop_create(&loop, NULL, &err), 0);
    assert_int_equal(worker_create(&worker, loop, threads_max, &err), 0);
    assert_int_equal(loop_turn(loop, 0), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        jobs[i] = (struct test_job){.job.run = job_run,
                                    .job.on_done = job_done,
                                    .loop = loop,
                                    .again = i % 3,
                                    .done_total = &done_total};
        worker_submit(worker, &jobs[i].job);
        assert_int_equal(jobs[i].done, 0);
    }
    assert_int_equal(worker_pending(worker), JOBS);
    for (unsigned turns = 0; done_total < JOBS && turns < 10 * JOBS; turns++)
        assert_int_equal(loop_turn(loop, 5 * NS_PER_S), 0);
    assert_int_equal(done_total, JOBS);
    assert_int_equal(worker_pending(worker), 0);
    for (unsigned i = 0; i < JOBS; i++)
        assert_int_equal(atomic_load(&jobs[i].ran), 1 + i % 3);
    worker_destroy(worker);
    loop_destroy(loop);
    assert_true(atomic_load(&running_max) <= (int)threads_max);
}

static void
test_every_job_once(void **state)
{
    (void)state;
    run_jobs(1);
    assert_int_equal(atomic_load(&running_max), 1);
    run_jobs(4);
    assert_true(atomic_load(&running_max) > 1);
}

UNIT_MAIN(cmocka_unit_test(test_every_job_once))
