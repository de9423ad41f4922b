/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_load.h"

#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/assert.h"

#define NS_PER_SECOND 1000000000ull

struct bench_load;

struct bench_request {
    struct dlblk_request dlblk;
    struct bench_load *load;
    enum bench_direction direction;
    uint64_t random; /* state of a generator of its own */
    uint64_t submitted_ns;
};

struct bench_load {
    const struct bench_load_options *options;
    struct dlblk_volume *volume;
    struct bench_load_result
        *result; /* written on the client's thread while requests are in flight */
    struct bench_request *requests;
    uint8_t *buffers;
    size_t buffers_bytes;
    uint64_t blocks; /* in the region */

    _Atomic uint64_t next_block; /* sequential modes */
    _Atomic uint64_t started;    /* requests, if they are limited */
    _Atomic uint64_t done;
    _Atomic bool stop;
    _Atomic uint64_t count_from_ns; /* when the ramp ends */
    _Atomic uint32_t in_flight;
    sem_t finished; /* in_flight became 0 */
};

static uint64_t
now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* xorshift64*: every request has its own state, seeded apart. */
static uint64_t
request_random(struct bench_request *request)
{
    request->random ^= request->random >> 12;
    request->random ^= request->random << 25;
    request->random ^= request->random >> 27;
    return request->random * 2685821657736338717ull;
}

static enum bench_direction
request_direction(struct bench_request *request)
{
    switch (request->load->options->mode) {
    case BENCH_READ:
    case BENCH_RANDREAD:
        return BENCH_DIRECTION_READ;
    case BENCH_WRITE:
    case BENCH_RANDWRITE:
        return BENCH_DIRECTION_WRITE;
    case BENCH_RANDRW:
        return (request_random(request) >> 32) % 100 < request->load->options->read_percent
                   ? BENCH_DIRECTION_READ
                   : BENCH_DIRECTION_WRITE;
    }
    dl_unreachable();
}

static uint64_t
request_block(struct bench_request *request)
{
    struct bench_load *load = request->load;

    if (load->options->mode == BENCH_READ || load->options->mode == BENCH_WRITE)
        return atomic_fetch_add_explicit(&load->next_block, 1, memory_order_relaxed) % load->blocks;
    /* The upper half times the number of blocks: as even as modulo, and no division. */
    return (uint64_t)(((unsigned __int128)request_random(request) * load->blocks) >> 64);
}

/* Whether there is another request to do; counts it. */
static bool
load_goes_on(struct bench_load *load)
{
    uint64_t most = load->options->request_count_max;

    if (atomic_load_explicit(&load->stop, memory_order_relaxed))
        return false;
    return most == 0 || atomic_fetch_add_explicit(&load->started, 1, memory_order_relaxed) < most;
}

static void
request_submit(struct bench_request *request)
{
    struct bench_load *load = request->load;
    uint64_t block = request_block(request);

    request->direction = request_direction(request);
    request->dlblk.op = request->direction == BENCH_DIRECTION_READ ? DLBLK_READ : DLBLK_WRITE;
    request->dlblk.offset_bytes = block * load->options->block_bytes;
    /* No two writes carry the same bytes. */
    if (request->direction == BENCH_DIRECTION_WRITE)
        memcpy(request->dlblk.iov_one.iov_base, &request->random, sizeof(request->random));
    request->submitted_ns = now_ns();
    dlblk_submit(load->volume, &request->dlblk);
}

static void
load_request_ended(struct bench_load *load)
{
    if (atomic_fetch_sub(&load->in_flight, 1) == 1)
        (void)sem_post(&load->finished);
}

static void
load_failed(struct bench_load *load, const struct bench_request *request, int err)
{
    atomic_store(&load->stop, true);
    if (load->result->err != 0)
        return;
    load->result->err = err;
    load->result->err_direction = request->direction;
    load->result->err_offset_bytes = request->dlblk.offset_bytes;
}

/* On the client's thread, as everything that touches the result. */
static void
request_on_done(struct dlblk_request *dlblk, int err)
{
    struct bench_request *request = dlblk->context;
    struct bench_load *load = request->load;
    uint64_t now = now_ns();

    if (err != 0)
        load_failed(load, request, err);
    else if (now >= atomic_load_explicit(&load->count_from_ns, memory_order_relaxed))
        hist_record(&load->result->latencies_ns[request->direction], now - request->submitted_ns);
    (void)atomic_fetch_add_explicit(&load->done, 1, memory_order_relaxed);
    if (load_goes_on(load))
        request_submit(request);
    else
        load_request_ended(load);
}

/* --- set up --- */

static void
request_init(struct bench_load *load, uint32_t idx)
{
    struct bench_request *request = &load->requests[idx];
    uint32_t block_bytes = load->options->block_bytes;

    *request = (struct bench_request){
        .load = load,
        .random = (load->options->seed + idx + 1) * 0x9E3779B97F4A7C15ull | 1,
        .dlblk =
            {
                .iov = &request->dlblk.iov_one,
                .iov_count = 1,
                .iov_one = {load->buffers + (size_t)idx * block_bytes, block_bytes},
                .length_bytes = block_bytes,
                .on_done = request_on_done,
                .context = request,
            },
    };
    for (uint32_t at = 0; at + 8 <= block_bytes; at += 8) {
        uint64_t word = request_random(request);

        memcpy(load->buffers + (size_t)idx * block_bytes + at, &word, 8);
    }
}

static int
load_init(struct bench_load *load)
{
    const struct bench_load_options *options = load->options;

    dl_assert(options->depth >= 1 && options->depth <= BENCH_DEPTH_MAX);
    dl_assert(options->block_bytes >= 8);
    load->blocks = options->region_bytes / options->block_bytes;
    dl_assert(load->blocks > 0);
    load->buffers_bytes = (size_t)options->depth * options->block_bytes;
    load->requests = calloc(options->depth, sizeof(*load->requests));
    load->buffers = mmap(NULL, load->buffers_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (load->buffers == MAP_FAILED)
        load->buffers = NULL;
    if (load->requests == NULL || load->buffers == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < options->depth; i++)
        request_init(load, i);
    (void)sem_init(&load->finished, 0, 0);
    return 0;
}

static void
load_fini(struct bench_load *load)
{
    if (load->buffers != NULL)
        (void)munmap(load->buffers, load->buffers_bytes);
    free(load->requests);
}

/* --- run --- */

/* One reference is the starter's, so that the run can't end before all are started. */
static void
load_start(struct bench_load *load)
{
    atomic_store(&load->in_flight, load->options->depth + 1);
    for (uint32_t i = 0; i < load->options->depth; i++) {
        if (load_goes_on(load))
            request_submit(&load->requests[i]);
        else
            load_request_ended(load);
    }
    load_request_ended(load);
}

/* Sleeps until all is over, or the moment has come.  True: all is over. */
static bool
load_sleep_until(struct bench_load *load, uint64_t until_ns)
{
    struct timespec at = {.tv_sec = (time_t)(until_ns / NS_PER_SECOND),
                          .tv_nsec = (long)(until_ns % NS_PER_SECOND)};

    return sem_clockwait(&load->finished, CLOCK_MONOTONIC, &at) == 0;
}

static void
load_wait(struct bench_load *load, uint64_t started_ns)
{
    const struct bench_load_options *options = load->options;
    uint64_t end_ns = options->duration_ms == 0
                          ? UINT64_MAX
                          : started_ns + (options->ramp_ms + options->duration_ms) * 1000000;
    uint64_t tick_ns = started_ns;
    bool finished = false;

    while (!finished && now_ns() < end_ns && !atomic_load(&load->stop)) {
        if (now_ns() >= tick_ns + NS_PER_SECOND)
            tick_ns += NS_PER_SECOND;
        finished = load_sleep_until(load, tick_ns + NS_PER_SECOND < end_ns ? tick_ns + NS_PER_SECOND
                                                                           : end_ns);
        if (!finished && options->on_second != NULL &&
            !options->on_second(options->context, (now_ns() - started_ns) / 1000000,
                                atomic_load(&load->done)))
            break;
    }
    atomic_store(&load->stop, true);
    while (!finished)
        finished = sem_wait(&load->finished) == 0;
    /* It is also what hands the requests' memory, and the result, over to this thread. */
    dl_assert(atomic_load(&load->in_flight) == 0);
}

int
bench_load_run(struct dlblk_volume *volume, const struct bench_load_options *options,
               struct bench_load_result *ret_result)
{
    struct bench_load load = {.options = options, .volume = volume, .result = ret_result};
    uint64_t started_ns, count_from_ns, ended_ns;

    memset(ret_result, 0, sizeof(*ret_result));
    if (load_init(&load) != 0) {
        load_fini(&load);
        return -ENOMEM;
    }
    started_ns = now_ns();
    count_from_ns = started_ns + options->ramp_ms * 1000000;
    atomic_store(&load.count_from_ns, count_from_ns);
    load_start(&load);
    load_wait(&load, started_ns);
    ended_ns = now_ns();
    (void)sem_destroy(&load.finished);
    load_fini(&load);
    ret_result->duration_ns = ended_ns > count_from_ns ? ended_ns - count_from_ns : 0;
    return ret_result->err;
}
