/* SPDX-License-Identifier: Apache-2.0 */
/*
 * child.h: runs a function in a child process, to see how it dies and what it says on stderr.
 *
 *     struct child child;
 *     child_run(&child, takes_twice, NULL);
 *     assert_true(child_aborted(&child));
 *     assert_non_null(strstr(child.text, "assertion failed: ..."));
 */
#ifndef DLBLK_TESTS_CHILD_H
#define DLBLK_TESTS_CHILD_H

#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

struct child {
    int status;       /* of waitpid() */
    char text[65536]; /* the beginning of stderr */
};

/* The child exits with 0 if the function returns. */
static inline void
child_run(struct child *child, void (*function)(void *context), void *context)
{
    size_t used_bytes = 0;
    int pipe_fds[2];
    pid_t pid;

    assert_int_equal(pipe(pipe_fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)dup2(pipe_fds[1], STDERR_FILENO);
        (void)close(pipe_fds[0]);
        (void)close(pipe_fds[1]);
        /* cmocka would report a crash of the child as one of the test. */
        (void)signal(SIGABRT, SIG_DFL);
        (void)signal(SIGSEGV, SIG_DFL);
        function(context);
        _exit(0);
    }
    (void)close(pipe_fds[1]);
    for (;;) {
        char dropped[4096];
        size_t room_bytes = sizeof(child->text) - 1 - used_bytes;
        ssize_t got_bytes = room_bytes > 0 ? read(pipe_fds[0], child->text + used_bytes, room_bytes)
                                           : read(pipe_fds[0], dropped, sizeof(dropped));

        if (got_bytes <= 0)
            break;
        if (room_bytes > 0)
            used_bytes += (size_t)got_bytes;
    }
    child->text[used_bytes] = '\0';
    (void)close(pipe_fds[0]);
    assert_int_equal(waitpid(pid, &child->status, 0), pid);
}

static inline bool
child_killed_by(const struct child *child, int signal_number)
{
    return WIFSIGNALED(child->status) && WTERMSIG(child->status) == signal_number;
}

static inline bool
child_aborted(const struct child *child)
{
    return child_killed_by(child, SIGABRT);
}

#endif
