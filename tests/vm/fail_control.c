/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fail_control.c: for LD_PRELOAD: spoils the command of the ublk driver that DLBLK_FAIL_COMMAND
 * names by its number (6: START_DEV), so that the kernel itself refuses it; with DLBLK_FAIL_RESULT
 * for the reason of that number (13: EACCES); with DLBLK_FAIL_KILL the process is killed instead,
 * where it would have been sent.
 *
 * Works on what is about to be submitted: liburing's functions that submit are wrapped.
 */
#include <dlfcn.h>
#include <liburing.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

static bool spoiled; /* and its result is still to come */

static void
spoil(struct io_uring_sqe *sqe, unsigned command)
{
    if (sqe->opcode != IORING_OP_URING_CMD || (sqe->cmd_op & 0xff) != command)
        return;
    if (getenv("DLBLK_FAIL_KILL") != NULL)
        (void)kill(getpid(), SIGKILL);
    sqe->cmd_op = (sqe->cmd_op & ~0xffu) | 0xfe;
    spoiled = true;
}

static void
look(struct io_uring *ring)
{
    const char *text = getenv("DLBLK_FAIL_COMMAND");
    unsigned shift = (ring->flags & IORING_SETUP_SQE128) != 0 ? 1 : 0;
    unsigned command = text != NULL ? (unsigned)strtoul(text, NULL, 10) : 0;

    if (command == 0)
        return;
    for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++)
        spoil(&ring->sq.sqes[(i & *ring->sq.kring_mask) << shift], command);
}

__attribute__((visibility("default"))) int
io_uring_submit(struct io_uring *ring)
{
    int (*next)(struct io_uring *);

    *(void **)(void *)&next = dlsym(RTLD_NEXT, "io_uring_submit");
    look(ring);
    return next(ring);
}

__attribute__((visibility("default"))) int
io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr)
{
    int (*next)(struct io_uring *, unsigned);

    *(void **)(void *)&next = dlsym(RTLD_NEXT, "io_uring_submit_and_wait");
    look(ring);
    return next(ring, wait_nr);
}

__attribute__((visibility("default"))) int
io_uring_submit_and_get_events(struct io_uring *ring)
{
    int (*next)(struct io_uring *);

    *(void **)(void *)&next = dlsym(RTLD_NEXT, "io_uring_submit_and_get_events");
    look(ring);
    return next(ring);
}

/* What waits for one command at a time. */
__attribute__((visibility("default"))) int
io_uring_wait_cqe_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
                          struct __kernel_timespec *timeout)
{
    int (*next)(struct io_uring *, struct io_uring_cqe **, struct __kernel_timespec *);
    const char *text = getenv("DLBLK_FAIL_RESULT");
    int result;

    *(void **)(void *)&next = dlsym(RTLD_NEXT, "io_uring_wait_cqe_timeout");
    result = next(ring, cqe, timeout);
    if (result == 0 && spoiled && text != NULL) {
        (*cqe)->res = -(int)strtol(text, NULL, 10);
        spoiled = false;
    }
    return result;
}
