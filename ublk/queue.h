/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue.h: the queues of one ublk device on a loop: requests come from the kernel, go to whoever
 * does them, and their results go back.
 *
 * All queues of a device are served by one thread on one ring, the one that talks to the
 * chunkservers: a request goes from the kernel's queue to the wire without another thread
 * (docs/ublk.md says why it is so).
 *
 * Each tag has a buffer, where the kernel puts the data of a write and takes those of a read; the
 * very same memory is sent and received.
 *
 *              FETCH            the kernel has a request                on_done
 *   IDLE ---------------> KERNEL ----------------------> WORKING ------------------+
 *                           ^  |                                                   |
 *                           |  | the device is stopped     COMMIT_AND_FETCH        |
 *                           |  v                                                   |
 *                           | GONE                                                 |
 *                           +------------------------------------------------------+
 *
 * Threads: the loop's.  Blocks: never.
 * Errors:  of requests: to the kernel.  Of the device: on_gone.
 * Memory:  buffers are mapped once for all tags, and take what was touched.
 */
#ifndef DLBLK_UBLK_QUEUE_H
#define DLBLK_UBLK_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/loop.h"
#include "dlblk/client.h"
#include "ublk/request.h"
#include "ublk/state.h"

struct ublk_queues;

struct ublk_queues_options {
    uint32_t id;
    uint16_t queue_count;
    uint16_t queue_depth;
    struct ublk_shape shape;
    bool encoded; /* ublk_control_is_encoded() */
    struct ublk_counters *counters;
    /* Does one request; request->on_done follows, also from inside of this call. */
    void (*submit)(void *context, struct dlblk_request *request);
    /*
     * All tags are back from the kernel: the device is stopped, err 0; or a queue can't be served
     * any more.  Once.
     */
    void (*on_gone)(void *context, int err);
    void *context;
};

/* Opens /dev/ublkcN, which is refused while another server has it. */
int ublk_queues_create(struct ublk_queues **ret_queues, struct loop *loop,
                       const struct ublk_queues_options *options, struct dl_error *err);
/* All tags are gone, or the loop will never run again.  NULL is allowed. */
void ublk_queues_destroy(struct ublk_queues *queues);
/* FETCH for every tag. */
void ublk_queues_start(struct ublk_queues *queues);
/*
 * No request that comes from now on is begun: it stays with the kernel until another server takes
 * the device.
 */
void ublk_queues_hold(struct ublk_queues *queues);
/* Nothing is with the kernel any more. */
bool ublk_queues_are_gone(const struct ublk_queues *queues);
/* Requests that were begun and have not ended. */
uint32_t ublk_queues_working(const struct ublk_queues *queues);

#endif
