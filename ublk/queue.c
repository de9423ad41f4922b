/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/sm.h"

enum tag_state { TAG_IDLE, TAG_KERNEL, TAG_WORKING, TAG_GONE };

struct ublk_queue;

struct ublk_tag {
    struct io_req req; /* the FETCH, or COMMIT_AND_FETCH */
    struct dlblk_request request;
    struct ublk_queue *queue;
    struct ublk_mapped mapped;
    void *buffer;
    uint16_t tag;
    uint8_t state; /* enum tag_state */
};

struct ublk_queue {
    struct ublk_queues *queues;
    uint16_t idx;
    const struct ublk_io_desc *descs;
    struct ublk_tag *tags;
};

struct ublk_queues {
    struct loop *loop;
    struct ublk_queues_options options;
    int fd;
    uint8_t *buffers;
    size_t buffers_bytes;
    size_t descs_bytes; /* of one queue */
    struct ublk_queue *queue;
    uint32_t tag_count;
    uint32_t working;
    uint32_t gone;
    bool held;
    bool told; /* on_gone */
};

/* --- to the kernel --- */

static void
tag_prepare(struct ublk_tag *tag, enum ublk_io_command command, int32_t result)
{
    struct ublk_queues *queues = tag->queue->queues;
    struct io_uring_sqe *sqe = loop_get_sqe(queues->loop, &tag->req);
    struct ublk_io_cmd body = {
        .queue_id = tag->queue->idx,
        .tag = tag->tag,
        .result = result,
        .addr = (uint64_t)(uintptr_t)tag->buffer,
    };

    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = queues->fd;
    sqe->cmd_op = queues->options.encoded ? ublk_encode_io(command) : (uint32_t)command;
    memcpy(sqe->cmd, &body, sizeof(body));
    io_uring_sqe_set_data(sqe, &tag->req);
    tag->state = TAG_KERNEL;
}

static void
tag_commit(struct ublk_tag *tag, int err)
{
    tag_prepare(tag, UBLK_COMMIT_AND_FETCH, ublk_request_result(&tag->mapped, err));
}

/* --- requests --- */

static void
tag_on_done(struct dlblk_request *request, int err)
{
    struct ublk_tag *tag = list_entry(request, struct ublk_tag, request);
    struct ublk_queues *queues = tag->queue->queues;

    dl_assert(tag->state == TAG_WORKING);
    dl_assert(queues->working > 0);
    queues->working--;
    if (err != 0)
        ublk_counter_add(&queues->options.counters->errors, 1);
    ublk_counter_set(&queues->options.counters->in_flight, queues->working);
    tag_commit(tag, err);
}

static void
tag_count(struct ublk_counters *counters, const struct ublk_mapped *mapped)
{
    switch (mapped->op) {
    case DLBLK_READ:
        ublk_counter_add(&counters->reads, 1);
        ublk_counter_add(&counters->bytes_read, mapped->length_bytes);
        break;
    case DLBLK_WRITE:
        ublk_counter_add(&counters->writes, 1);
        ublk_counter_add(&counters->bytes_written, mapped->length_bytes);
        break;
    case DLBLK_FLUSH:
        ublk_counter_add(&counters->flushes, 1);
        break;
    case DLBLK_DISCARD:
        ublk_counter_add(&counters->discards, 1);
        break;
    case DLBLK_WRITE_ZEROES:
        ublk_counter_add(&counters->write_zeroes, 1);
        break;
    }
    if (mapped->fua)
        ublk_counter_add(&counters->fuas, 1);
}

static void
tag_begin(struct ublk_tag *tag)
{
    struct ublk_queues *queues = tag->queue->queues;
    const struct ublk_io_desc *desc = &tag->queue->descs[tag->tag];
    int err = ublk_request_map(&queues->options.shape, desc, &tag->mapped);

    if (err != 0) {
        ublk_counter_add(&queues->options.counters->errors, 1);
        tag_prepare(tag, UBLK_COMMIT_AND_FETCH, err);
        return;
    }
    tag_count(queues->options.counters, &tag->mapped);
    tag->state = TAG_WORKING;
    queues->working++;
    ublk_counter_set(&queues->options.counters->in_flight, queues->working);
    tag->request = (struct dlblk_request){
        .op = tag->mapped.op,
        .offset_bytes = tag->mapped.offset_bytes,
        .length_bytes = tag->mapped.length_bytes,
        .on_done = tag_on_done,
    };
    if (tag->mapped.op == DLBLK_READ || tag->mapped.op == DLBLK_WRITE) {
        tag->request.iov_one = (struct iovec){tag->buffer, tag->mapped.length_bytes};
        tag->request.iov = &tag->request.iov_one;
        tag->request.iov_count = 1;
    }
    queues->options.submit(queues->options.context, &tag->request);
}

/* --- from the kernel --- */

static void
tag_gone(struct ublk_tag *tag, int err)
{
    struct ublk_queues *queues = tag->queue->queues;

    tag->state = TAG_GONE;
    queues->gone++;
    if (queues->told || (err == 0 && queues->gone < queues->tag_count))
        return;
    queues->told = true;
    queues->options.on_gone(queues->options.context, err);
}

static void
tag_on_cqe(struct io_req *req, int res)
{
    struct ublk_tag *tag = list_entry(req, struct ublk_tag, req);

    dl_assert(tag->state == TAG_KERNEL);
    if (res == 0) {
        if (!tag->queue->queues->held)
            tag_begin(tag);
        return;
    }
    /* ENODEV: the device is being stopped.  All else says that this queue can't be served. */
    tag_gone(tag, res == -ENODEV ? 0 : res < 0 ? res : -EPROTO);
}

/* --- life --- */

static int
queues_open(struct ublk_queues *queues, struct dl_error *err)
{
    char path[40];

    (void)snprintf(path, sizeof(path), "/dev/ublkc%u", queues->options.id);
    queues->fd = open(path, O_RDWR | O_CLOEXEC);
    if (queues->fd < 0)
        return dl_error_set(err, -errno, "%s: %s", path, strerror(errno));
    return 0;
}

static int
queues_map_buffers(struct ublk_queues *queues, struct dl_error *err)
{
    queues->buffers_bytes = (size_t)queues->tag_count * queues->options.shape.buffer_bytes;
    queues->buffers = mmap(NULL, queues->buffers_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (queues->buffers != MAP_FAILED)
        return 0;
    queues->buffers = NULL;
    return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for %u buffers", queues->tag_count);
}

/*
 * The last step before FETCH: from here until one queue has all its tags fetched, a process that
 * dies leaves a device that the driver gives to nobody else (docs/ublk.md, Limits).
 */
static int
queues_map_descs(struct ublk_queues *queues, struct dl_error *err)
{
    const struct ublk_queues_options *options = &queues->options;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    dl_assert(queues->queue != NULL);
    queues->descs_bytes = options->queue_depth * sizeof(struct ublk_io_desc);
    queues->descs_bytes = (queues->descs_bytes + page - 1) / page * page;
    for (uint16_t i = 0; i < options->queue_count; i++) {
        void *descs = mmap(NULL, queues->descs_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE,
                           queues->fd, (off_t)(i * UBLK_DESC_STRIDE_BYTES));

        if (descs == MAP_FAILED)
            return dl_error_set(err, -errno, "ublk device %u: its queue %u can't be mapped: %s",
                                options->id, i, strerror(errno));
        queues->queue[i].descs = descs;
    }
    return 0;
}

static int
queues_make_tags(struct ublk_queues *queues)
{
    const struct ublk_queues_options *options = &queues->options;

    dl_assert(queues->buffers != NULL);
    for (uint16_t i = 0; i < options->queue_count; i++) {
        struct ublk_queue *queue = &queues->queue[i];

        queue->queues = queues;
        queue->idx = i;
        queue->tags = calloc(options->queue_depth, sizeof(*queue->tags));
        if (queue->tags == NULL)
            return -DL_E_NO_MEMORY;
        for (uint16_t tag = 0; tag < options->queue_depth; tag++) {
            size_t place = (size_t)i * options->queue_depth + tag;

            queue->tags[tag].queue = queue;
            queue->tags[tag].tag = tag;
            queue->tags[tag].req.on_cqe = tag_on_cqe;
            queue->tags[tag].buffer = queues->buffers + place * options->shape.buffer_bytes;
        }
    }
    return 0;
}

int
ublk_queues_create(struct ublk_queues **ret_queues, struct loop *loop,
                   const struct ublk_queues_options *options, struct dl_error *err)
{
    struct ublk_queues *queues = calloc(1, sizeof(*queues));
    int result;

    dl_assert(options->queue_count > 0);
    dl_assert(options->queue_depth > 0);
    if (queues == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for queues");
    queues->loop = loop;
    queues->options = *options;
    queues->fd = -1;
    queues->tag_count = (uint32_t)options->queue_count * options->queue_depth;
    queues->queue = calloc(options->queue_count, sizeof(*queues->queue));
    if (queues->queue == NULL)
        result = dl_error_set(err, -DL_E_NO_MEMORY, "no memory for queues");
    else
        result = queues_open(queues, err);
    if (result == 0)
        result = queues_map_buffers(queues, err);
    if (result == 0 && queues_make_tags(queues) != 0)
        result = dl_error_set(err, -DL_E_NO_MEMORY, "no memory for queues");
    if (result == 0)
        result = queues_map_descs(queues, err);
    if (result != 0) {
        ublk_queues_destroy(queues);
        return result;
    }
    *ret_queues = queues;
    return 0;
}

void
ublk_queues_destroy(struct ublk_queues *queues)
{
    if (queues == NULL)
        return;
    for (uint16_t i = 0; queues->queue != NULL && i < queues->options.queue_count; i++) {
        if (queues->queue[i].descs != NULL)
            (void)munmap((void *)(uintptr_t)queues->queue[i].descs, queues->descs_bytes);
        free(queues->queue[i].tags);
    }
    free(queues->queue);
    if (queues->buffers != NULL)
        (void)munmap(queues->buffers, queues->buffers_bytes);
    if (queues->fd >= 0)
        (void)close(queues->fd);
    free(queues);
}

void
ublk_queues_start(struct ublk_queues *queues)
{
    for (uint16_t i = 0; i < queues->options.queue_count; i++)
        for (uint16_t tag = 0; tag < queues->options.queue_depth; tag++)
            tag_prepare(&queues->queue[i].tags[tag], UBLK_FETCH, -1);
}

void
ublk_queues_hold(struct ublk_queues *queues)
{
    queues->held = true;
}

uint32_t
ublk_queues_working(const struct ublk_queues *queues)
{
    return queues->working;
}

bool
ublk_queues_are_gone(const struct ublk_queues *queues)
{
    return queues->gone == queues->tag_count;
}
