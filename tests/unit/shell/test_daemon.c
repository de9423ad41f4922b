/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon's surroundings, each tried in a child process: SIGTERM arrives on the loop and lets it
 * end in order; a second one ends it at once, as does a stop that takes too long; readiness reaches
 * systemd's socket; --version prints and exits; an abort dies of its signal; limits are raised, and
 * said to be too low where they are.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/daemon.h"
#include "common/limits.h"
#include "common/list.h"
#include "common/log.h"
#include "common/trace.h"
#include "dlblk/error.h"

enum child_kind { CHILD_ORDERLY, CHILD_STUBBORN, CHILD_SLOW, CHILD_ABORT, CHILD_LATE };

struct child {
    struct loop *loop;
    struct daemon *daemon;
    enum child_kind kind;
    struct env_timer timer;
    int pipe_fd;
};

static void
child_on_timer(struct env_timer *timer)
{
    struct child *child = list_entry(timer, struct child, timer);

    loop_stop(child->loop);
}

static void
child_on_signal(void *context, int signal)
{
    struct child *child = context;

    if (signal != SIGTERM)
        _exit(10);
    if (write(child->pipe_fd, "S", 1) != 1)
        _exit(11);
    if (child->kind == CHILD_SLOW) {
        daemon_stopping(child->daemon, 50);
    } else if (child->kind == CHILD_ORDERLY) {
        daemon_stopping(child->daemon, 5000);
        child->timer.fn = child_on_timer;
        loop_timer_start(child->loop, &child->timer, NS_PER_MS);
    }
}

/* Never returns. */
static void
child_main(enum child_kind kind, int pipe_fd)
{
    char *argv[] = {(char *)"test", NULL};
    struct child child = {.kind = kind, .pipe_fd = pipe_fd};
    struct dl_error err;

    daemon_init("test", 1, argv);
    if (loop_create(&child.loop, NULL, &err) != 0 ||
        daemon_create(&child.daemon, child.loop, child_on_signal, &child, &err) != 0)
        _exit(12);
    daemon_ready(child.daemon, "listening");
    if (write(pipe_fd, "R", 1) != 1)
        _exit(13);
    if (kind == CHILD_ABORT) {
        dl_trace("test", "the last event: %d", 4711);
        abort();
    }
    if (kind == CHILD_LATE)
        loop_stop(child.loop);
    if (loop_run(child.loop) != 0)
        _exit(14);
    if (kind == CHILD_LATE && loop_turn(child.loop, 0) == 0)
        (void)kill(getpid(), SIGTERM);
    daemon_destroy(child.daemon);
    loop_destroy(child.loop);
    _exit(0);
}

static pid_t
child_start(enum child_kind kind, int *ret_pipe_fd)
{
    int fds[2];
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)close(fds[0]);
        /* stderr goes into the pipe as well: what it says is part of the test. */
        (void)dup2(fds[1], STDERR_FILENO);
        child_main(kind, fds[1]);
    }
    (void)close(fds[1]);
    *ret_pipe_fd = fds[0];
    return pid;
}

static void
wait_for(int fd, char wanted)
{
    char got;

    assert_int_equal(read(fd, &got, 1), 1);
    assert_int_equal(got, wanted);
}

static int
child_wait(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void
test_sigterm_ends_in_order(void **state)
{
    int fd;
    pid_t pid = child_start(CHILD_ORDERLY, &fd);
    int status;

    (void)state;
    wait_for(fd, 'R');
    assert_int_equal(kill(pid, SIGPIPE), 0); /* ignored */
    assert_int_equal(kill(pid, SIGTERM), 0);
    wait_for(fd, 'S');
    status = child_wait(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    (void)close(fd);
}

static void
test_second_signal_ends_at_once(void **state)
{
    int fd;
    pid_t pid = child_start(CHILD_STUBBORN, &fd);
    int status;

    (void)state;
    wait_for(fd, 'R');
    assert_int_equal(kill(pid, SIGTERM), 0);
    wait_for(fd, 'S');
    assert_int_equal(kill(pid, SIGTERM), 0);
    status = child_wait(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_FAILURE);
    (void)close(fd);
}

/*
 * A daemon that ends by itself has torn down what on_signal works on: a signal that comes then is
 * not told any more.
 */
static void
test_signal_after_the_end_is_not_told(void **state)
{
    char got;
    int fd;
    pid_t pid = child_start(CHILD_LATE, &fd);
    int status;

    (void)state;
    wait_for(fd, 'R');
    status = child_wait(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(read(fd, &got, 1), 0);
    (void)close(fd);
}

static void
test_slow_stop_is_ended(void **state)
{
    int fd;
    pid_t pid = child_start(CHILD_SLOW, &fd);
    int status;

    (void)state;
    wait_for(fd, 'R');
    assert_int_equal(kill(pid, SIGTERM), 0);
    wait_for(fd, 'S');
    status = child_wait(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_FAILURE);
    (void)close(fd);
}

static void
test_abort_prints_the_events(void **state)
{
    char text[65536] = "";
    size_t length = 0;
    ssize_t got;
    int fd;
    pid_t pid = child_start(CHILD_ABORT, &fd);
    int status;

    (void)state;
    wait_for(fd, 'R');
    while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
        length += (size_t)got;
    status = child_wait(pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, "the last event: 4711"));
    (void)close(fd);
}

static void
test_readiness_reaches_systemd(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char got[256] = "";
    int socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char dir[] = "/tmp/test_daemon.XXXXXX";
    int fd;
    pid_t pid;

    (void)state;
    assert_non_null(mkdtemp(dir));
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/notify", dir);
    assert_true(socket_fd >= 0);
    assert_int_equal(bind(socket_fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(setenv("NOTIFY_SOCKET", address.sun_path, 1), 0);
    pid = child_start(CHILD_ORDERLY, &fd);
    assert_int_equal(unsetenv("NOTIFY_SOCKET"), 0);
    wait_for(fd, 'R');
    assert_true(recv(socket_fd, got, sizeof(got) - 1, 0) > 0);
    assert_string_equal(got, "READY=1\nSTATUS=listening");
    assert_int_equal(kill(pid, SIGTERM), 0);
    memset(got, 0, sizeof(got));
    assert_true(recv(socket_fd, got, sizeof(got) - 1, 0) > 0);
    assert_non_null(strstr(got, "STOPPING=1"));
    assert_int_equal(child_wait(pid), 0);
    (void)close(fd);
    (void)close(socket_fd);
    (void)unlink(address.sun_path);
    (void)rmdir(dir);
}

static void
test_version(void **state)
{
    char text[256] = "";
    int fds[2];
    pid_t pid;

    (void)state;
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char *argv[] = {(char *)"x", (char *)"--version", NULL};

        (void)dup2(fds[1], STDOUT_FILENO);
        daemon_init("dlblk-test", 2, argv);
        _exit(99);
    }
    (void)close(fds[1]);
    assert_true(read(fds[0], text, sizeof(text) - 1) > 0);
    assert_int_equal(child_wait(pid), 0);
    assert_memory_equal(text, "dlblk-test ", 11);
    assert_non_null(strstr(text, "wire version"));
    (void)close(fds[0]);
}

/* In a child: the limit it sets can't be taken back. */
static void
child_check_limits(void)
{
    struct rlimit limit = {.rlim_cur = 64, .rlim_max = 200};
    struct dl_error err = {0};

    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        _exit(1);
    if (limits_raise_nofile(200, &err) != 0)
        _exit(2);
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur != 200)
        _exit(3);
    if (limits_raise_nofile(201, &err) != -DL_E_LIMIT || strstr(err.text, "201") == NULL ||
        strstr(err.hint, "LimitNOFILE") == NULL)
        _exit(4);
    if (limits_check_memlock(4096, &err) != 0)
        _exit(5);
    /* As nobody, without capabilities, a limit of one page is too low. */
    limit = (struct rlimit){.rlim_cur = 4096, .rlim_max = 4096};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        _exit(6);
    if (getuid() == 0 && setuid(65534) != 0)
        _exit(7);
    if (limits_check_memlock(8192, &err) != -DL_E_LIMIT || strstr(err.text, "8 KiB") == NULL ||
        strstr(err.hint, "LimitMEMLOCK") == NULL)
        _exit(8);
    _exit(0);
}

static void
test_limits(void **state)
{
    pid_t pid = fork();
    int status;

    (void)state;
    assert_true(pid >= 0);
    if (pid == 0)
        child_check_limits();
    status = child_wait(pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

UNIT_MAIN(cmocka_unit_test(test_sigterm_ends_in_order),
          cmocka_unit_test(test_second_signal_ends_at_once),
          cmocka_unit_test(test_signal_after_the_end_is_not_told),
          cmocka_unit_test(test_slow_stop_is_ended), cmocka_unit_test(test_abort_prints_the_events),
          cmocka_unit_test(test_readiness_reaches_systemd), cmocka_unit_test(test_version),
          cmocka_unit_test(test_limits))
