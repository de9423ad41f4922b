/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking.  loop_post() and the loop meet in two variables, `inbox` and `asleep`, with
 * sequentially consistent operations only:
 *
 *     poster: push to inbox, then read asleep; if set, clear it and write to the eventfd
 *     loop:   set asleep, then read inbox; if empty, sleep
 *
 * One of the two always sees the other's first step, so that no message is left behind by a
 * sleeping loop.
 *
 * Timers.  The heap's top is given to the kernel as one absolute IORING_OP_TIMEOUT, and only moved
 * when a nearer deadline appears: timers that are armed and stopped again by each request cost the
 * heap alone.  A timeout that became needless fires for nothing once.
 *
 * No polling before sleep.  Measured with bench/perf_net (3 servers, 2 processors, other load
 * beside): to look for 10 us before going to sleep costs 2 to 5 times the processor time and a
 * third to three quarters of the operations at depth 1 and 8, since the peer that would answer
 * wants the same processor; at depth 32 it gains nothing.
 */
#include "common/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/trace.h"
#include "dlblk/error.h"

#define ENTRIES_DEFAULT 512u
#define FILES_DEFAULT   1024u
#define HOOKS_MAX       16u
#define HEAP_FIRST      64u

struct hook {
    void (*fn)(void *context);
    void *context;
};

struct hooks {
    struct hook hook[HOOKS_MAX];
    uint32_t count;
};

struct loop {
    struct io_uring ring;
    _Atomic(const void *) owner; /* a dl_thread_token(); NULL before the first turn */
    bool enabled;                /* the thread that runs it is known to the kernel */
    bool ring_fd_registered;
    bool stop;
    bool in_turn;
    uint32_t cqe_flags;
    uint64_t now_ns;

    /* timers: heap[1 .. heap_count] */
    struct env_timer **heap;
    uint32_t heap_count, heap_capacity;
    struct io_req timeout_req;
    uint64_t timeout_ns; /* what the kernel has; UINT64_MAX: nothing */
    struct __kernel_timespec timeout_spec;
    struct io_req update_req;

    struct list tasks;
    struct list tasks_next;
    struct hooks turn_end;
    struct hooks flush;

    /* messages from other threads, newest first */
    _Atomic(struct loop_message *) inbox;
    atomic_bool asleep;
    int event_fd;
    bool event_armed;
    struct io_req event_req;

    int32_t *files_free; /* stack of free places among the registered files */
    uint32_t files_free_count;

    struct loop_stats stats;
};

/* --- creation --- */

/* The ring can't be made: say why, as far as it can be known, and what to do. */
static int
loop_explain(int result, struct dl_error *err)
{
    struct utsname name;
    char disabled[8] = "";
    DL_CLEANUP(close) int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);

    if (uname(&name) < 0)
        (void)snprintf(name.release, sizeof(name.release), "unknown");
    if (fd >= 0 && read(fd, disabled, sizeof(disabled) - 1) < 0)
        disabled[0] = '\0';
    switch (-result) {
    case ENOSYS:
        dl_error_set(err, -DL_E_IO_URING, "io_uring is not available (Linux %s)", name.release);
        dl_error_hint(err, "Linux 6.1 or later with CONFIG_IO_URING is needed; a container's "
                           "seccomp profile can hide it as well");
        break;
    case EPERM:
    case EACCES:
        dl_error_set(err, -DL_E_IO_URING, "io_uring is not permitted");
        if (disabled[0] == '1' || disabled[0] == '2')
            dl_error_hint(err, "kernel.io_uring_disabled is %c: sysctl kernel.io_uring_disabled=0",
                          disabled[0]);
        else
            dl_error_hint(err, "a container's seccomp profile or a security module forbids "
                               "io_uring_setup; allow it");
        break;
    case EINVAL:
        dl_error_set(err, -DL_E_IO_URING, "the kernel's io_uring is too old (Linux %s)",
                     name.release);
        dl_error_hint(err, "Linux 6.1 or later is needed");
        break;
    case ENOMEM:
        dl_error_set(err, -DL_E_IO_URING, "no memory for an io_uring");
        dl_error_hint(err, "raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or free memory");
        break;
    case EMFILE:
    case ENFILE:
        dl_error_set(err, result, "too many open files to make an io_uring");
        dl_error_hint(err, "raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)");
        break;
    default:
        dl_error_set(err, result, "io_uring_setup: %s", strerror(-result));
        break;
    }
    return err != NULL ? err->code
                       : (result == -EMFILE || result == -ENFILE ? result : -DL_E_IO_URING);
}

static int
loop_setup_ring(struct loop *loop, uint32_t entries, struct dl_error *err)
{
    /*
     * Disabled at first: the thread that runs the loop enables it and so becomes the single issuer.
     * Completions are worked off only when that thread asks for them (DEFER_TASKRUN): it is not
     * interrupted in the middle of a turn.
     */
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED |
                 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
        .cq_entries = entries * 8,
    };
    int result = io_uring_queue_init_params(entries, &loop->ring, &params);

    if (result < 0) {
        loop->ring.ring_fd = -1;
        return loop_explain(result, err);
    }
    return 0;
}

static int
loop_setup_files(struct loop *loop, uint32_t files, struct dl_error *err)
{
    int result;

    loop->files_free = malloc(files * sizeof(*loop->files_free));
    if (loop->files_free == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for a reactor");
    for (uint32_t i = 0; i < files; i++)
        loop->files_free[i] = (int32_t)(files - 1 - i);
    loop->files_free_count = files;
    result = io_uring_register_files_sparse(&loop->ring, files);
    if (result < 0) {
        /* The table may not be larger than RLIMIT_NOFILE. */
        dl_error_set(err, result, "io_uring: no table for %u files: %s", files, strerror(-result));
        dl_error_hint(err, "raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)");
    }
    return result < 0 ? result : 0;
}

static void loop_on_timeout(struct io_req *req, int res);
static void loop_on_update(struct io_req *req, int res);
static void loop_on_event(struct io_req *req, int res);

int
loop_create(struct loop **ret_loop, const struct loop_options *options, struct dl_error *err)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    uint32_t entries = options != NULL && options->entries != 0 ? options->entries
                                                                : ENTRIES_DEFAULT;
    uint32_t files = options != NULL && options->files != 0 ? options->files : FILES_DEFAULT;
    int result;

    if (loop == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for a reactor");
    loop->ring.ring_fd = -1;
    loop->now_ns = clock_monotonic_ns();
    loop->timeout_ns = UINT64_MAX;
    loop->timeout_req.on_cqe = loop_on_timeout;
    loop->update_req.on_cqe = loop_on_update;
    loop->event_req.on_cqe = loop_on_event;
    list_init(&loop->tasks);
    list_init(&loop->tasks_next);
    loop->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->event_fd < 0) {
        result = dl_error_set(err, -errno, "eventfd: %s", strerror(errno));
        goto fail;
    }
    loop->heap_capacity = HEAP_FIRST;
    loop->heap = malloc((loop->heap_capacity + 1) * sizeof(struct env_timer *));
    if (loop->heap == NULL) {
        result = dl_error_set(err, -DL_E_NO_MEMORY, "no memory for a reactor");
        goto fail;
    }
    result = loop_setup_ring(loop, entries, err);
    if (result != 0)
        goto fail;
    result = loop_setup_files(loop, files, err);
    if (result != 0)
        goto fail;
    *ret_loop = loop;
    return 0;

fail:
    loop_destroy(loop);
    return result;
}

void
loop_destroy(struct loop *loop)
{
    if (loop == NULL)
        return;
    dl_assert(!loop->in_turn);
    if (loop->ring.ring_fd >= 0) {
        if (loop->ring_fd_registered && loop_is_owner(loop))
            (void)io_uring_unregister_ring_fd(&loop->ring);
        io_uring_queue_exit(&loop->ring);
    }
    if (loop->event_fd >= 0)
        (void)close(loop->event_fd);
    free(loop->files_free);
    free(loop->heap);
    free(loop);
}

bool
loop_is_owner(const struct loop *loop)
{
    /* Relaxed: only the thread itself ever stores its own token. */
    return atomic_load_explicit(&loop->owner, memory_order_relaxed) == dl_thread_token();
}

void
loop_assert_usable(const struct loop *loop)
{
    const void *owner = atomic_load_explicit(&loop->owner, memory_order_relaxed);

    dl_assert(owner == NULL || owner == dl_thread_token());
}

/* --- I/O --- */

/* In the middle of a turn. */
static void
loop_submit_early(struct loop *loop)
{
    int result;

    dl_assert(loop->enabled);
    result = io_uring_submit(&loop->ring);
    dl_assert(result >= 0);
    loop->stats.enters++;
}

struct io_uring_sqe *
loop_get_sqe(struct loop *loop, struct io_req *req)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);

    if (sqe == NULL) {
        loop_submit_early(loop);
        sqe = io_uring_get_sqe(&loop->ring);
        dl_assert(sqe != NULL);
    }
    io_uring_sqe_set_data(sqe, req);
    return sqe;
}

uint32_t
loop_cqe_flags(const struct loop *loop)
{
    return loop->cqe_flags;
}

int
loop_register_file(struct loop *loop, int fd)
{
    int index;
    int result;

    if (loop->files_free_count == 0)
        return -ENFILE;
    index = loop->files_free[loop->files_free_count - 1];
    result = io_uring_register_files_update(&loop->ring, (unsigned)index, &fd, 1);
    if (result < 0)
        return result;
    loop->files_free_count--;
    return index;
}

void
loop_unregister_file(struct loop *loop, int index)
{
    int none = -1;
    int result;

    /* What was prepared for this place must not find the next file in it. */
    if (loop->enabled && io_uring_sq_ready(&loop->ring) != 0)
        loop_submit_early(loop);
    result = io_uring_register_files_update(&loop->ring, (unsigned)index, &none, 1);
    dl_assert(result >= 0);
    loop->files_free[loop->files_free_count++] = index;
}

/* --- timers --- */

uint64_t
loop_now_ns(const struct loop *loop)
{
    /*
     * Before the first turn a program may open its store for seconds: what the last turn took is no
     * time then.
     */
    return loop->in_turn ? loop->now_ns : clock_monotonic_ns();
}

uint64_t
loop_clock_ns(void)
{
    return clock_monotonic_ns();
}

static void
heap_set(struct loop *loop, uint32_t idx, struct env_timer *timer)
{
    loop->heap[idx] = timer;
    timer->heap_idx = idx;
}

static void
heap_up(struct loop *loop, uint32_t idx)
{
    struct env_timer *timer = loop->heap[idx];

    while (idx > 1 && loop->heap[idx / 2]->deadline_ns > timer->deadline_ns) {
        heap_set(loop, idx, loop->heap[idx / 2]);
        idx /= 2;
    }
    heap_set(loop, idx, timer);
}

static void
heap_down(struct loop *loop, uint32_t idx)
{
    struct env_timer *timer = loop->heap[idx];

    for (;;) {
        uint32_t child = idx * 2;

        if (child > loop->heap_count)
            break;
        if (child < loop->heap_count &&
            loop->heap[child + 1]->deadline_ns < loop->heap[child]->deadline_ns)
            child++;
        if (loop->heap[child]->deadline_ns >= timer->deadline_ns)
            break;
        heap_set(loop, idx, loop->heap[child]);
        idx = child;
    }
    heap_set(loop, idx, timer);
}

static void
heap_grow(struct loop *loop)
{
    uint32_t capacity = loop->heap_capacity * 2;
    struct env_timer **heap = realloc(loop->heap, (capacity + 1) * sizeof(*heap));

    /* A timer can't fail: its owner has no way to go on without it. */
    dl_assert(heap != NULL);
    loop->heap = heap;
    loop->heap_capacity = capacity;
}

void
loop_timer_start(struct loop *loop, struct env_timer *timer, uint64_t delay_ns)
{
    dl_assert(timer->fn != NULL);
    /* At least 1: a timer that arms itself again is not run again in the same turn. */
    if (delay_ns == 0)
        delay_ns = 1;
    timer->deadline_ns = delay_ns > UINT64_MAX / 2 ? UINT64_MAX / 2 : loop_now_ns(loop) + delay_ns;
    if (timer->heap_idx != 0) {
        dl_assert(loop->heap[timer->heap_idx] == timer);
        heap_up(loop, timer->heap_idx);
        heap_down(loop, timer->heap_idx);
        return;
    }
    if (loop->heap_count == loop->heap_capacity)
        heap_grow(loop);
    loop->heap_count++;
    loop->heap[loop->heap_count] = timer;
    heap_up(loop, loop->heap_count);
}

void
loop_timer_stop(struct loop *loop, struct env_timer *timer)
{
    uint32_t idx = timer->heap_idx;
    struct env_timer *last;

    if (idx == 0)
        return;
    dl_assert(idx <= loop->heap_count);
    dl_assert(loop->heap[idx] == timer);
    last = loop->heap[loop->heap_count--];
    timer->heap_idx = 0;
    if (last == timer)
        return;
    heap_set(loop, idx, last);
    heap_up(loop, idx);
    heap_down(loop, last->heap_idx);
}

static bool
loop_timer_due(const struct loop *loop)
{
    return loop->heap_count > 0 && loop->heap[1]->deadline_ns <= loop->now_ns;
}

static void
loop_run_timers(struct loop *loop)
{
    while (loop_timer_due(loop)) {
        struct env_timer *timer = loop->heap[1];

        loop_timer_stop(loop, timer);
        loop->stats.timers++;
        timer->fn(timer);
    }
}

static void
loop_on_timeout(struct io_req *req, int res)
{
    struct loop *loop = list_entry(req, struct loop, timeout_req);

    (void)res;
    loop->timeout_ns = UINT64_MAX;
}

static void
loop_on_update(struct io_req *req, int res)
{
    /* -ENOENT: it fired meanwhile, and its own completion says so. */
    (void)req;
    (void)res;
}

/* See to it that the kernel wakes the loop at deadline_ns at the latest. */
static void
loop_arm_timeout(struct loop *loop, uint64_t deadline_ns)
{
    struct io_uring_sqe *sqe;

    if (deadline_ns >= loop->timeout_ns)
        return;
    loop->timeout_spec = (struct __kernel_timespec){
        .tv_sec = (long long)(deadline_ns / NS_PER_S),
        .tv_nsec = (long long)(deadline_ns % NS_PER_S),
    };
    if (loop->timeout_ns == UINT64_MAX) {
        sqe = loop_get_sqe(loop, &loop->timeout_req);
        io_uring_prep_timeout(sqe, &loop->timeout_spec, 0, IORING_TIMEOUT_ABS);
        io_uring_sqe_set_data(sqe, &loop->timeout_req);
    } else {
        sqe = loop_get_sqe(loop, &loop->update_req);
        io_uring_prep_timeout_update(sqe, &loop->timeout_spec,
                                     (uint64_t)(uintptr_t)&loop->timeout_req, IORING_TIMEOUT_ABS);
        io_uring_sqe_set_data(sqe, &loop->update_req);
    }
    loop->timeout_ns = deadline_ns;
}

/* --- deferred calls and hooks --- */

void
loop_defer(struct loop *loop, struct env_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    list_push_back(&loop->tasks, &task->node);
}

void
loop_defer_next(struct loop *loop, struct env_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    list_push_back(&loop->tasks_next, &task->node);
}

static void
hooks_add(struct hooks *hooks, void (*fn)(void *context), void *context)
{
    dl_assert(hooks->count < HOOKS_MAX);
    hooks->hook[hooks->count++] = (struct hook){.fn = fn, .context = context};
}

static void
hooks_remove(struct hooks *hooks, void (*fn)(void *context), void *context)
{
    for (uint32_t i = 0; i < hooks->count; i++) {
        if (hooks->hook[i].fn != fn || hooks->hook[i].context != context)
            continue;
        hooks->count--;
        memmove(&hooks->hook[i], &hooks->hook[i + 1], (hooks->count - i) * sizeof(hooks->hook[0]));
        return;
    }
}

static void
hooks_run(const struct hooks *hooks)
{
    for (uint32_t i = 0; i < hooks->count; i++)
        hooks->hook[i].fn(hooks->hook[i].context);
}

void
loop_add_turn_end(struct loop *loop, void (*fn)(void *context), void *context)
{
    hooks_add(&loop->turn_end, fn, context);
}

void
loop_add_flush(struct loop *loop, void (*fn)(void *context), void *context)
{
    hooks_add(&loop->flush, fn, context);
}

void
loop_remove_hook(struct loop *loop, void (*fn)(void *context), void *context)
{
    hooks_remove(&loop->turn_end, fn, context);
    hooks_remove(&loop->flush, fn, context);
}

static void
loop_run_tasks(struct loop *loop)
{
    while (!list_is_empty(&loop->tasks)) {
        struct env_task *task = list_first_entry(&loop->tasks, struct env_task, node);

        list_remove(&task->node);
        task->queued = false;
        task->fn(task);
    }
}

/* Step 3 of a turn.  Hooks can defer calls, and those can give the hooks work again. */
static void
loop_finish_turn(struct loop *loop)
{
    do {
        loop_run_tasks(loop);
        hooks_run(&loop->turn_end);
        if (!list_is_empty(&loop->tasks))
            continue;
        hooks_run(&loop->flush);
    } while (!list_is_empty(&loop->tasks));
}

/* --- messages --- */

void
loop_post(struct loop *loop, struct loop_message *message)
{
    struct loop_message *first = atomic_load_explicit(&loop->inbox, memory_order_relaxed);
    uint64_t one = 1;

    do {
        message->next = first;
    } while (!atomic_compare_exchange_weak(&loop->inbox, &first, message));
    if (atomic_load(&loop->asleep) && atomic_exchange(&loop->asleep, false)) {
        ssize_t written = write(loop->event_fd, &one, sizeof(one));

        /* EAGAIN: the counter is full, and so the loop is awake. */
        dl_assert(written == (ssize_t)sizeof(one) || errno == EAGAIN);
    }
}

static void
loop_on_event(struct io_req *req, int res)
{
    struct loop *loop = list_entry(req, struct loop, event_req);

    (void)res;
    loop->stats.wakeups++;
    if ((loop->cqe_flags & IORING_CQE_F_MORE) == 0)
        loop->event_armed = false;
}

/*
 * One poll that stays armed: each write to the eventfd makes a completion, and nobody needs to read
 * the counter (it would take centuries to fill it).
 */
static void
loop_arm_event(struct loop *loop)
{
    struct io_uring_sqe *sqe;

    if (loop->event_armed)
        return;
    loop->event_armed = true;
    sqe = loop_get_sqe(loop, &loop->event_req);
    io_uring_prep_poll_multishot(sqe, loop->event_fd, POLLIN);
    io_uring_sqe_set_data(sqe, &loop->event_req);
}

static void
loop_run_messages(struct loop *loop)
{
    struct loop_message *newest;
    struct loop_message *oldest = NULL;

    if (atomic_load_explicit(&loop->inbox, memory_order_relaxed) == NULL)
        return;
    newest = atomic_exchange(&loop->inbox, NULL);
    while (newest != NULL) {
        struct loop_message *next = newest->next;

        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest != NULL) {
        struct loop_message *message = oldest;

        oldest = message->next;
        loop->stats.messages++;
        message->fn(message);
    }
}

/* --- turns --- */

static int
loop_enable(struct loop *loop)
{
    int result;

    if (!loop->enabled) {
        /* liburing 2.3 declares io_uring_enable_rings(), but its shared library lacks it. */
        result = io_uring_register((unsigned)loop->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
                                   0);
        if (result < 0)
            return result;
        loop->enabled = true;
        atomic_store_explicit(&loop->owner, dl_thread_token(), memory_order_relaxed);
    }
    dl_assert(loop_is_owner(loop));
    if (!loop->ring_fd_registered) {
        /* Saves a look-up of the descriptor in each system call; not having it is no error. */
        result = io_uring_register_ring_fd(&loop->ring);
        loop->ring_fd_registered = result == 1;
    }
    return 0;
}

/* Submit, and wait until there is something to do if `wait` is set. */
static int
loop_enter(struct loop *loop, bool wait)
{
    int result;

    if (wait) {
        atomic_store(&loop->asleep, true);
        if (atomic_load(&loop->inbox) != NULL)
            wait = false;
    }
    loop->stats.enters++;
    if (wait && io_uring_cq_ready(&loop->ring) == 0) {
        loop->stats.sleeps++;
        result = io_uring_submit_and_wait(&loop->ring, 1);
    } else {
        result = io_uring_submit_and_get_events(&loop->ring);
    }
    atomic_store_explicit(&loop->asleep, false, memory_order_relaxed);
    /*
     * EAGAIN, EBUSY: short of memory, or of room for completions; taking those that are there
     * helps.
     */
    if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY && result != -ETIME)
        return result;
    return 0;
}

static void
loop_run_completions(struct loop *loop)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    unsigned count = 0;

    io_uring_for_each_cqe(&loop->ring, head, cqe)
    {
        struct io_req *req = io_uring_cqe_get_data(cqe);

        count++;
        if (req == NULL)
            continue;
        loop->cqe_flags = cqe->flags;
        req->on_cqe(req, cqe->res);
    }
    io_uring_cq_advance(&loop->ring, count);
    loop->stats.completions += count;
}

static int
loop_turn_until(struct loop *loop, uint64_t deadline_ns)
{
    bool wait;
    int result;

    dl_assert(!loop->in_turn);
    loop->in_turn = true;
    loop->stats.turns++;
    loop_arm_event(loop);
    loop_arm_timeout(loop, loop->heap_count > 0 && loop->heap[1]->deadline_ns < deadline_ns
                               ? loop->heap[1]->deadline_ns
                               : deadline_ns);
    dl_assert(list_is_empty(&loop->tasks));
    list_splice_back(&loop->tasks, &loop->tasks_next);
    wait = deadline_ns > loop->now_ns && list_is_empty(&loop->tasks) && !loop_timer_due(loop);
    result = loop_enter(loop, wait);
    if (result == 0) {
        loop->now_ns = clock_monotonic_ns();
        dl_trace_set_time(loop->now_ns);
        loop_run_completions(loop);
        loop_run_messages(loop);
        loop_run_timers(loop);
        loop_finish_turn(loop);
    }
    loop->in_turn = false;
    return result;
}

int
loop_turn(struct loop *loop, uint64_t timeout_ns)
{
    int result = loop_enable(loop);

    if (result != 0)
        return result;
    loop->now_ns = clock_monotonic_ns();
    /*
     * What was started outside of a turn is made visible before the loop sleeps; who waits for that
     * needs no sleep.
     */
    if (!list_is_empty(&loop->tasks))
        timeout_ns = 0;
    loop_finish_turn(loop);
    return loop_turn_until(
        loop, timeout_ns > UINT64_MAX - loop->now_ns ? UINT64_MAX : loop->now_ns + timeout_ns);
}

int
loop_run(struct loop *loop)
{
    int result = loop_enable(loop);

    if (result != 0)
        return result;
    loop->now_ns = clock_monotonic_ns();
    loop_finish_turn(loop);
    while (!loop->stop && result == 0)
        result = loop_turn_until(loop, UINT64_MAX);
    loop->stop = false;
    /* Whoever destroys the loop may be another thread, and the registration is this one's. */
    if (loop->ring_fd_registered) {
        (void)io_uring_unregister_ring_fd(&loop->ring);
        loop->ring_fd_registered = false;
    }
    return result;
}

void
loop_stop(struct loop *loop)
{
    loop->stop = true;
}

void
loop_get_stats(const struct loop *loop, struct loop_stats *ret_stats)
{
    *ret_stats = loop->stats;
}
