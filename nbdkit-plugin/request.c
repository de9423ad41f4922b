/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.c: the life of a request's state word:
 *
 *   PENDING --request_wait()--> ASLEEP --on_done--> DONE   (with a wake-up call)
 *      \-----------on_done------------------------> DONE   (without)
 *
 * The thread that waits may return, and give its stack back, as soon as it sees DONE: on_done
 * touches the request for the last time when it writes that word.  The wake-up that follows names
 * only the word's address; if something else lives there by then, it is woken for nothing, which
 * users of futexes have to expect.
 */
#include "nbdkit-plugin/request.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

enum request_state { REQUEST_PENDING, REQUEST_ASLEEP, REQUEST_DONE };

static void
request_on_done(struct dlblk_request *dlblk, int err)
{
    struct request *request = dlblk->context;
    _Atomic uint32_t *state = &request->state;

    request->err = err;
    if (atomic_exchange_explicit(state, REQUEST_DONE, memory_order_acq_rel) == REQUEST_ASLEEP)
        (void)syscall(SYS_futex, state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void
request_start(struct request *request, struct dlblk_volume *volume, enum dlblk_op op,
              const struct iovec *iov, uint32_t iov_count, uint64_t length_bytes,
              uint64_t offset_bytes)
{
    request->dlblk = (struct dlblk_request){
        .op = op,
        .iov = iov,
        .iov_count = iov_count,
        .length_bytes = length_bytes,
        .offset_bytes = offset_bytes,
        .on_done = request_on_done,
        .context = request,
    };
    request->err = 0;
    atomic_store_explicit(&request->state, REQUEST_PENDING, memory_order_relaxed);
    dlblk_submit(volume, &request->dlblk);
}

int
request_wait(struct request *request)
{
    uint32_t seen = REQUEST_PENDING;

    if (atomic_compare_exchange_strong_explicit(&request->state, &seen, REQUEST_ASLEEP,
                                                memory_order_acq_rel, memory_order_acquire))
        seen = REQUEST_ASLEEP;
    while (seen != REQUEST_DONE) {
        (void)syscall(SYS_futex, &request->state, FUTEX_WAIT_PRIVATE, REQUEST_ASLEEP, NULL, NULL,
                      0);
        seen = atomic_load_explicit(&request->state, memory_order_acquire);
    }
    return request->err;
}
