/* SPDX-License-Identifier: Apache-2.0 */
#include "common/daemon.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/list.h"
#include "common/log.h"
#include "common/trace.h"
#include "common/version.h"
#include "dlblk/error.h"

struct daemon {
    struct loop *loop;
    void (*on_signal)(void *context, int signal);
    void *context;
    int fd;
    bool poll_busy;
    unsigned signal_count;
    struct io_req poll_req;
    struct io_req cancel_req;
    bool cancel_busy;
    struct env_timer stop_timer;
};

static void
daemon_signals(sigset_t *ret_set)
{
    sigemptyset(ret_set);
    sigaddset(ret_set, SIGTERM);
    sigaddset(ret_set, SIGINT);
}

void
daemon_init(const char *program, int argc, char **argv)
{
    sigset_t set;
    int result;

    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("%s\n", dlblk_version_text(program));
        exit(EXIT_SUCCESS);
    }
    dl_trace_dump_on_crash();
    daemon_signals(&set);
    result = pthread_sigmask(SIG_BLOCK, &set, NULL);
    dl_assert(result == 0);
    (void)signal(SIGPIPE, SIG_IGN);
}

static void
daemon_poll_start(struct daemon *daemon)
{
    struct io_uring_sqe *sqe = loop_get_sqe(daemon->loop, &daemon->poll_req);

    io_uring_prep_poll_multishot(sqe, daemon->fd, POLLIN);
    io_uring_sqe_set_data(sqe, &daemon->poll_req);
    daemon->poll_busy = true;
}

static void
daemon_on_poll(struct io_req *req, int res)
{
    struct daemon *daemon = list_entry(req, struct daemon, poll_req);
    struct signalfd_siginfo info;

    if ((loop_cqe_flags(daemon->loop) & IORING_CQE_F_MORE) == 0)
        daemon->poll_busy = false;
    while (read(daemon->fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (daemon->signal_count++ > 0) {
            /*
             * Somebody doesn't want to wait for an orderly end.  What is acknowledged is durable:
             * nothing is lost.
             */
            log_warning("daemon", NULL, "second signal: stopped at once");
            _exit(EXIT_FAILURE);
        }
        if (daemon->on_signal != NULL)
            daemon->on_signal(daemon->context, (int)info.ssi_signo);
    }
    if (!daemon->poll_busy && res != -ECANCELED)
        daemon_poll_start(daemon);
}

static void
daemon_on_cancel(struct io_req *req, int res)
{
    struct daemon *daemon = list_entry(req, struct daemon, cancel_req);

    (void)res;
    daemon->cancel_busy = false;
}

static void
daemon_on_stop_timer(struct env_timer *timer)
{
    (void)timer;
    log_error("daemon", NULL, "the stop takes too long: ended as it is");
    dl_trace_dump_once(STDERR_FILENO);
    _exit(EXIT_FAILURE);
}

int
daemon_create(struct daemon **ret_daemon, struct loop *loop,
              void (*on_signal)(void *context, int signal), void *context, struct dl_error *err)
{
    struct daemon *daemon = calloc(1, sizeof(*daemon));
    sigset_t set;

    if (daemon == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for a daemon");
    daemon->loop = loop;
    daemon->on_signal = on_signal;
    daemon->context = context;
    daemon->poll_req.on_cqe = daemon_on_poll;
    daemon->cancel_req.on_cqe = daemon_on_cancel;
    daemon->stop_timer.fn = daemon_on_stop_timer;
    daemon_signals(&set);
    daemon->fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (daemon->fd < 0) {
        int result = dl_error_set(err, -errno, "signalfd: %s", strerror(errno));

        free(daemon);
        return result;
    }
    daemon_poll_start(daemon);
    *ret_daemon = daemon;
    return 0;
}

void
daemon_destroy(struct daemon *daemon)
{
    struct io_uring_sqe *sqe;

    if (daemon == NULL)
        return;
    loop_timer_stop(daemon->loop, &daemon->stop_timer);
    daemon->on_signal = NULL; /* what it works on may be gone already */
    if (daemon->poll_busy) {
        sqe = loop_get_sqe(daemon->loop, &daemon->cancel_req);
        io_uring_prep_cancel(sqe, &daemon->poll_req, 0);
        io_uring_sqe_set_data(sqe, &daemon->cancel_req);
        daemon->cancel_busy = true;
    }
    while ((daemon->poll_busy || daemon->cancel_busy) && loop_turn(daemon->loop, NS_PER_MS) == 0)
        ;
    (void)close(daemon->fd);
    free(daemon);
}

void
daemon_ready(struct daemon *daemon, const char *status)
{
    (void)daemon;
    (void)sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void
daemon_status(struct daemon *daemon, const char *status)
{
    (void)daemon;
    (void)sd_notifyf(0, "STATUS=%s", status);
}

void
daemon_stopping(struct daemon *daemon, uint32_t timeout_ms)
{
    (void)sd_notify(0, "STOPPING=1\nSTATUS=stopping");
    loop_timer_start(daemon->loop, &daemon->stop_timer, timeout_ms * NS_PER_MS);
}
