/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reactor: timers fire in the order of their deadlines and never early; deferred calls and
 * hooks run in their order before the loop sleeps; every prepared operation completes, also when
 * there are more than the ring has places; messages of many threads all arrive, each thread's in
 * order, and wake a loop that sleeps; an idle loop sleeps; a kernel that refuses gives an error
 * that says what to do.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <liburing.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/list.h"
#include "common/loop.h"
#include "dlblk/error.h"
#include "tests/unit/lib/fake_rng.h"

static struct loop *
loop_new(const struct loop_options *options)
{
    struct loop *loop = NULL;
    struct dl_error err;
    int result = loop_create(&loop, options, &err);

    if (result != 0)
        fail_msg("loop_create: %s", err.text);
    return loop;
}

/* --- timers --- */

struct test_timer {
    struct env_timer timer;
    struct loop *loop;
    uint64_t *last_deadline_ns;
    unsigned *fired;
};

static void
on_test_timer(struct env_timer *timer)
{
    struct test_timer *test = list_entry(timer, struct test_timer, timer);

    assert_true(loop_clock_ns() >= timer->deadline_ns);
    assert_true(timer->deadline_ns >= *test->last_deadline_ns);
    assert_false(env_timer_armed(timer));
    *test->last_deadline_ns = timer->deadline_ns;
    (*test->fired)++;
}

#define TIMERS 500u

/* Some are stopped, some armed again: exactly those that are left fire, in order. */
static void
test_timers_fire_in_order(void **state)
{
    struct loop *loop = loop_new(NULL);
    struct test_timer timers[TIMERS];
    struct fake_rng rng;
    uint64_t last_deadline_ns = 0;
    unsigned fired = 0;
    unsigned expected = TIMERS;

    (void)state;
    fake_rng_init(&rng, 7);
    memset(timers, 0, sizeof(timers));
    for (unsigned i = 0; i < TIMERS; i++) {
        timers[i] = (struct test_timer){.timer.fn = on_test_timer,
                                        .loop = loop,
                                        .last_deadline_ns = &last_deadline_ns,
                                        .fired = &fired};
        loop_timer_start(loop, &timers[i].timer, fake_rng_below(&rng, 30 * NS_PER_MS));
    }
    for (unsigned i = 0; i < TIMERS; i++) {
        if (fake_rng_percent(&rng, 30)) {
            loop_timer_stop(loop, &timers[i].timer);
            loop_timer_stop(loop, &timers[i].timer);
            expected--;
        } else if (fake_rng_percent(&rng, 30)) {
            loop_timer_start(loop, &timers[i].timer, fake_rng_below(&rng, 60 * NS_PER_MS));
        }
    }
    for (unsigned turns = 0; fired < expected && turns < 10000; turns++)
        assert_int_equal(loop_turn(loop, NS_PER_S), 0);
    assert_int_equal(loop_turn(loop, 0), 0);
    assert_int_equal(fired, expected);
    for (unsigned i = 0; i < TIMERS; i++)
        assert_false(env_timer_armed(&timers[i].timer));
    loop_destroy(loop);
}

/*
 * A deadline that is nearer than the one the kernel has wakes the loop in time; a farther one
 * doesn't matter.
 */
static void
test_timer_nearer_than_the_armed_one(void **state)
{
    struct loop *loop = loop_new(NULL);
    uint64_t last_deadline_ns = 0;
    unsigned fired = 0;
    struct test_timer far = {
        .timer.fn = on_test_timer, .last_deadline_ns = &last_deadline_ns, .fired = &fired};
    struct test_timer near = far;
    uint64_t start_ns;

    (void)state;
    loop_timer_start(loop, &far.timer, 10 * NS_PER_S);
    assert_int_equal(loop_turn(loop, NS_PER_MS), 0);
    start_ns = loop_clock_ns();
    loop_timer_start(loop, &near.timer, 20 * NS_PER_MS);
    for (unsigned turns = 0; fired == 0 && turns < 100; turns++)
        assert_int_equal(loop_turn(loop, 5 * NS_PER_S), 0);
    assert_int_equal(fired, 1);
    assert_true(loop_clock_ns() - start_ns < 5 * NS_PER_S);
    assert_true(env_timer_armed(&far.timer));
    loop_timer_stop(loop, &far.timer);
    loop_destroy(loop);
}

static void
on_timer_again(struct env_timer *timer)
{
    struct test_timer *test = list_entry(timer, struct test_timer, timer);

    (*test->fired)++;
    loop_timer_start(test->loop, timer, 0);
}

/*
 * A timer that arms itself again with no delay runs once per turn: it can't keep the loop from
 * everything else.
 */
static void
test_timer_without_delay_does_not_spin(void **state)
{
    struct loop *loop = loop_new(NULL);
    unsigned fired = 0;
    struct test_timer test = {.timer.fn = on_timer_again, .loop = loop, .fired = &fired};

    (void)state;
    loop_timer_start(loop, &test.timer, 0);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(loop_turn(loop, NS_PER_MS), 0);
    assert_true(fired >= 1);
    assert_true(fired <= 10);
    loop_timer_stop(loop, &test.timer);
    loop_destroy(loop);
}

/*
 * What is started between turns, or long before the first one, counts from then, not from the last
 * turn.
 */
static void
test_time_outside_of_turns(void **state)
{
    struct loop *loop = loop_new(NULL);
    uint64_t last_deadline_ns = 0;
    unsigned fired = 0;
    struct test_timer test = {
        .timer.fn = on_test_timer, .last_deadline_ns = &last_deadline_ns, .fired = &fired};

    (void)state;
    for (unsigned round = 0; round < 2; round++) {
        uint64_t start_ns;

        usleep(50000);
        start_ns = loop_clock_ns();
        assert_true(loop_now_ns(loop) >= start_ns);
        loop_timer_start(loop, &test.timer, 40 * NS_PER_MS);
        for (unsigned turns = 0; fired == round && turns < 100; turns++)
            assert_int_equal(loop_turn(loop, 20 * NS_PER_MS), 0);
        assert_int_equal(fired, round + 1);
        assert_true(loop_clock_ns() - start_ns >= 40 * NS_PER_MS);
    }
    loop_destroy(loop);
}

/* --- deferred calls and hooks --- */

struct test_order {
    char events[64];
    struct loop *loop;
    struct env_task first, second, late;
    bool late_done;
};

static struct test_order *order_now;

static void
order_add(char event)
{
    size_t length = strlen(order_now->events);

    assert_true(length + 1 < sizeof(order_now->events));
    order_now->events[length] = event;
}

static void
on_first(struct env_task *task)
{
    (void)task;
    order_add('1');
    /* Queued from inside a task: still in this turn.  Queued twice: once. */
    loop_defer(order_now->loop, &order_now->second);
    loop_defer(order_now->loop, &order_now->second);
}

static void
on_second(struct env_task *task)
{
    (void)task;
    order_add('2');
}

static void
on_late(struct env_task *task)
{
    (void)task;
    order_add('L');
}

static void
on_turn_end(void *context)
{
    (void)context;
    order_add('e');
    if (!order_now->late_done) {
        order_now->late_done = true;
        loop_defer(order_now->loop, &order_now->late);
    }
}

static void
on_flush(void *context)
{
    (void)context;
    order_add('f');
}

/*
 * The flush comes last although it was added first; what the hook defers runs before it, and the
 * hook once more.
 */
static void
test_tasks_then_hooks_then_flush(void **state)
{
    struct test_order order = {.first.fn = on_first, .second.fn = on_second, .late.fn = on_late};

    (void)state;
    order_now = &order;
    order.loop = loop_new(NULL);
    loop_add_flush(order.loop, on_flush, NULL);
    loop_add_turn_end(order.loop, on_turn_end, NULL);
    loop_defer(order.loop, &order.first);
    assert_int_equal(loop_turn(order.loop, 0), 0);
    /* loop_turn() first finishes what was started outside of it, then makes its turn. */
    assert_string_equal(order.events, "12eLefef");
    loop_remove_hook(order.loop, on_turn_end, NULL);
    loop_remove_hook(order.loop, on_flush, NULL);
    assert_int_equal(loop_turn(order.loop, 0), 0);
    assert_string_equal(order.events, "12eLefef");
    loop_destroy(order.loop);
}

/* --- operations --- */

struct test_nop {
    struct io_req req;
    unsigned *done;
    bool in_start;
};

static void
on_nop(struct io_req *req, int res)
{
    struct test_nop *nop = list_entry(req, struct test_nop, req);

    assert_int_equal(res, 0);
    (*nop->done)++;
}

#define NOPS 1000u

static void
test_more_operations_than_places(void **state)
{
    struct loop_options options = {.entries = 16};
    struct loop *loop = loop_new(&options);
    struct test_nop *nops = calloc(NOPS, sizeof(*nops));
    unsigned done = 0;

    (void)state;
    assert_non_null(nops);
    assert_int_equal(loop_turn(loop, 0), 0);
    for (unsigned i = 0; i < NOPS; i++) {
        struct io_uring_sqe *sqe;

        nops[i] = (struct test_nop){.req.on_cqe = on_nop, .done = &done};
        sqe = loop_get_sqe(loop, &nops[i].req);
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data(sqe, &nops[i].req);
        assert_int_equal(done, 0);
    }
    for (unsigned turns = 0; done < NOPS && turns < NOPS; turns++)
        assert_int_equal(loop_turn(loop, NS_PER_S), 0);
    assert_int_equal(done, NOPS);
    free(nops);
    loop_destroy(loop);
}

struct test_read {
    struct io_req req;
    int res;
    bool done;
};

static void
on_read(struct io_req *req, int res)
{
    struct test_read *test = list_entry(req, struct test_read, req);

    test->res = res;
    test->done = true;
}

/* A registered file can be read through its index, and its place is used again. */
static void
test_registered_files(void **state)
{
    struct loop_options options = {.files = 1};
    struct loop *loop = loop_new(&options);
    struct test_read test = {.req.on_cqe = on_read};
    char text[5] = "";
    int pipe_fds[2];

    (void)state;
    assert_int_equal(pipe(pipe_fds), 0);
    for (unsigned round = 0; round < 3; round++) {
        int index = loop_register_file(loop, pipe_fds[0]);
        struct io_uring_sqe *sqe;

        assert_true(index >= 0);
        assert_int_equal(loop_register_file(loop, pipe_fds[0]), -ENFILE);
        assert_int_equal(write(pipe_fds[1], "hello", 5), 5);
        test.done = false;
        sqe = loop_get_sqe(loop, &test.req);
        io_uring_prep_read(sqe, index, text, sizeof(text), 0);
        sqe->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data(sqe, &test.req);
        for (unsigned turns = 0; !test.done && turns < 100; turns++)
            assert_int_equal(loop_turn(loop, NS_PER_S), 0);
        assert_int_equal(test.res, 5);
        assert_memory_equal(text, "hello", 5);
        loop_unregister_file(loop, index);
    }
    (void)close(pipe_fds[0]);
    (void)close(pipe_fds[1]);
    loop_destroy(loop);
}

/*
 * A read that was prepared for a file is one of that file, also if its place is taken by another
 * before the turn's end.
 */
static void
test_registered_file_replaced_at_once(void **state)
{
    struct loop_options options = {.files = 1};
    struct loop *loop = loop_new(&options);
    struct test_read test = {.req.on_cqe = on_read};
    struct io_uring_sqe *sqe;
    char got = 0;
    int first[2];
    int second[2];
    int index;

    (void)state;
    assert_int_equal(pipe(first), 0);
    assert_int_equal(pipe(second), 0);
    assert_int_equal(write(first[1], "1", 1), 1);
    assert_int_equal(write(second[1], "2", 1), 1);
    assert_int_equal(loop_turn(loop, 0), 0);
    index = loop_register_file(loop, first[0]);
    sqe = loop_get_sqe(loop, &test.req);
    io_uring_prep_read(sqe, index, &got, 1, 0);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, &test.req);
    loop_unregister_file(loop, index);
    assert_int_equal(loop_register_file(loop, second[0]), index);
    for (unsigned turns = 0; !test.done && turns < 100; turns++)
        assert_int_equal(loop_turn(loop, NS_PER_S), 0);
    assert_int_equal(test.res, 1);
    assert_int_equal(got, '1');
    loop_unregister_file(loop, index);
    for (unsigned i = 0; i < 2; i++) {
        (void)close(first[i]);
        (void)close(second[i]);
    }
    loop_destroy(loop);
}

/* --- messages --- */

#define POSTERS          4u
#define POSTS_PER_THREAD 20000u

struct poster {
    struct loop *loop;
    pthread_t thread;
    struct loop_message messages[POSTS_PER_THREAD];
    unsigned arrived;
    unsigned *arrived_total;
};

static struct poster *posters;

static void
on_post(struct loop_message *message)
{
    struct poster *poster = NULL;

    for (unsigned i = 0; i < POSTERS; i++)
        if (message >= posters[i].messages && message < posters[i].messages + POSTS_PER_THREAD)
            poster = &posters[i];
    assert_non_null(poster);
    assert_true(loop_is_owner(poster->loop));
    assert_ptr_equal(message, &poster->messages[poster->arrived]);
    poster->arrived++;
    if (++*poster->arrived_total == POSTERS * POSTS_PER_THREAD)
        loop_stop(poster->loop);
}

static void *
poster_run(void *argument)
{
    struct poster *poster = argument;

    for (unsigned i = 0; i < POSTS_PER_THREAD; i++) {
        poster->messages[i].fn = on_post;
        loop_post(poster->loop, &poster->messages[i]);
        /* Now and then the loop has the time to fall asleep. */
        if (i % 2048 == 2047)
            usleep(300);
    }
    return NULL;
}

static void
on_posters_start(struct env_timer *timer)
{
    (void)timer;
    for (unsigned i = 0; i < POSTERS; i++)
        assert_int_equal(pthread_create(&posters[i].thread, NULL, poster_run, &posters[i]), 0);
}

static void
test_messages_of_many_threads(void **state)
{
    struct loop *loop = loop_new(NULL);
    struct env_timer timer = {.fn = on_posters_start};
    struct loop_stats stats;
    unsigned arrived_total = 0;

    (void)state;
    posters = calloc(POSTERS, sizeof(*posters));
    assert_non_null(posters);
    for (unsigned i = 0; i < POSTERS; i++) {
        posters[i].loop = loop;
        posters[i].arrived_total = &arrived_total;
    }
    /* Till then it sleeps, however busy the machine is. */
    loop_timer_start(loop, &timer, 50 * NS_PER_MS);
    assert_int_equal(loop_run(loop), 0);
    for (unsigned i = 0; i < POSTERS; i++) {
        assert_int_equal(pthread_join(posters[i].thread, NULL), 0);
        assert_int_equal(posters[i].arrived, POSTS_PER_THREAD);
    }
    loop_get_stats(loop, &stats);
    assert_int_equal(stats.messages, POSTERS * POSTS_PER_THREAD);
    assert_true(stats.sleeps > 0);
    /* A loop that is awake costs its posters no system call. */
    assert_true(stats.wakeups < stats.messages / 4);
    free(posters);
    loop_destroy(loop);
}

struct ping {
    struct loop_message to, back;
    struct loop *there, *here;
    unsigned rounds;
};

static void
on_ping_back(struct loop_message *message)
{
    struct ping *ping = list_entry(message, struct ping, back);

    if (--ping->rounds == 0)
        loop_stop(ping->here);
    else
        loop_post(ping->there, &ping->to);
}

static void
on_ping(struct loop_message *message)
{
    struct ping *ping = list_entry(message, struct ping, to);

    loop_post(ping->here, &ping->back);
}

static void
on_last(struct loop_message *message)
{
    struct ping *ping = list_entry(message, struct ping, to);

    loop_stop(ping->there);
}

static void *
loop_run_thread(void *argument)
{
    struct loop *loop = argument;

    assert_int_equal(loop_run(loop), 0);
    return NULL;
}

/*
 * Two loops on two threads hand a message back and forth, both asleep in between: a lost wake-up
 * would hang here.  One of the loops was made by the other's thread.
 */
static void
test_wake_up_of_a_sleeping_loop(void **state)
{
    struct ping ping = {.to.fn = on_ping, .back.fn = on_ping_back, .rounds = 20000};
    pthread_t thread;

    (void)state;
    ping.here = loop_new(NULL);
    ping.there = loop_new(NULL);
    /* Posted before it runs. */
    loop_post(ping.there, &ping.to);
    assert_int_equal(pthread_create(&thread, NULL, loop_run_thread, ping.there), 0);
    assert_int_equal(loop_run(ping.here), 0);
    assert_int_equal(ping.rounds, 0);
    ping.to.fn = on_last;
    loop_post(ping.there, &ping.to);
    assert_int_equal(pthread_join(thread, NULL), 0);
    loop_destroy(ping.there);
    loop_destroy(ping.here);
}

static void
on_owner_stop(struct loop_message *message)
{
    struct ping *ping = list_entry(message, struct ping, to);

    assert_true(loop_is_owner(ping->there));
    loop_stop(ping->there);
}

/*
 * A thread that made a loop for another one is never taken for the one that runs it, neither before
 * that has started nor while it runs nor after: a call that waits for the loop asks so whether it
 * would wait for itself.
 */
static void
test_owner_is_who_runs_the_loop(void **state)
{
    struct ping ping = {.to.fn = on_owner_stop};
    pthread_t thread;

    (void)state;
    ping.there = loop_new(NULL);
    assert_false(loop_is_owner(ping.there));
    loop_assert_usable(ping.there);
    assert_int_equal(pthread_create(&thread, NULL, loop_run_thread, ping.there), 0);
    for (unsigned i = 0; i < 1000; i++)
        assert_false(loop_is_owner(ping.there));
    loop_post(ping.there, &ping.to);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_false(loop_is_owner(ping.there));
    loop_destroy(ping.there);
}

/* --- idle --- */

static void
on_stop_timer(struct env_timer *timer)
{
    struct test_timer *test = list_entry(timer, struct test_timer, timer);

    loop_stop(test->loop);
}

/* Nothing to do for half a second: a handful of turns, and hardly any processor time. */
static void
test_idle_loop_sleeps(void **state)
{
    struct loop *loop = loop_new(NULL);
    struct test_timer test = {.timer.fn = on_stop_timer, .loop = loop};
    struct loop_stats stats;
    uint64_t cpu_ns;

    (void)state;
    loop_timer_start(loop, &test.timer, 500 * NS_PER_MS);
    cpu_ns = clock_read_ns(CLOCK_THREAD_CPUTIME_ID);
    assert_int_equal(loop_run(loop), 0);
    cpu_ns = clock_read_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;
    loop_get_stats(loop, &stats);
    assert_true(stats.turns <= 4);
    assert_true(cpu_ns < 5 * NS_PER_MS);
    loop_destroy(loop);
}

/* --- refusals --- */

/*
 * In a child process: io_uring_setup fails with `errnum`; checks that the error's text and hint say
 * what they should.
 */
static void
child_check_refusal(int errnum, const char *text, const char *hint)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)errnum),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = filter};
    struct loop *loop = NULL;
    struct dl_error err = {0};
    int result;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(77);
    result = loop_create(&loop, NULL, &err);
    if (result >= 0 || loop != NULL || err.code != result)
        _exit(1);
    if (strstr(err.text, text) == NULL || strstr(err.hint, hint) == NULL) {
        (void)dprintf(STDERR_FILENO, "got: %s (%s)\n", err.text, err.hint);
        _exit(2);
    }
    _exit(0);
}

static void
check_refusal(int errnum, const char *text, const char *hint)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0)
        child_check_refusal(errnum, text, hint);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void
test_refusals_say_what_to_do(void **state)
{
    (void)state;
    check_refusal(ENOSYS, "not available", "6.1");
    check_refusal(EPERM, "not permitted", "seccomp");
    check_refusal(EINVAL, "too old", "6.1");
    check_refusal(ENOMEM, "no memory", "RLIMIT_MEMLOCK");
    check_refusal(EMFILE, "open files", "RLIMIT_NOFILE");
}

UNIT_MAIN(cmocka_unit_test(test_timers_fire_in_order),
          cmocka_unit_test(test_timer_nearer_than_the_armed_one),
          cmocka_unit_test(test_timer_without_delay_does_not_spin),
          cmocka_unit_test(test_time_outside_of_turns),
          cmocka_unit_test(test_tasks_then_hooks_then_flush),
          cmocka_unit_test(test_more_operations_than_places),
          cmocka_unit_test(test_registered_files),
          cmocka_unit_test(test_registered_file_replaced_at_once),
          cmocka_unit_test(test_messages_of_many_threads),
          cmocka_unit_test(test_wake_up_of_a_sleeping_loop),
          cmocka_unit_test(test_owner_is_who_runs_the_loop),
          cmocka_unit_test(test_idle_loop_sleeps), cmocka_unit_test(test_refusals_say_what_to_do))
