/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.h: one request to libdlblk, and the wait for it.
 *
 * nbdkit gives each NBD request a thread that has nothing else to do until the request is done.  So
 * a request lives on that thread's stack, and the thread sleeps on a futex inside it: no
 * allocation, and one system call on either side.
 *
 * Threads: request_start() and request_wait() from the same thread, which may not be the client's.
 * Errors:  request_wait() gives what libdlblk gave: 0, -errno or -DL_E_*.
 * Memory:  the request and what iov points to stay put until request_wait() has returned.
 */
#ifndef DLBLK_NBDKIT_PLUGIN_REQUEST_H
#define DLBLK_NBDKIT_PLUGIN_REQUEST_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>

#include "dlblk/client.h"

struct request {
    struct dlblk_request dlblk;
    _Atomic uint32_t state; /* enum request_state */
    int err;
};

/*
 * Submits.  iov is NULL for what carries no data; it is borrowed until request_wait() has returned.
 */
void request_start(struct request *request, struct dlblk_volume *volume, enum dlblk_op op,
                   const struct iovec *iov, uint32_t iov_count, uint64_t length_bytes,
                   uint64_t offset_bytes);

/* Sleeps until the request is done. */
int request_wait(struct request *request);

#endif
