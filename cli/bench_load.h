/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_load.h: keeps a volume busy with a fixed number of requests and measures them.
 *
 * Each request, when it is done, is counted and submitted again for the next place, on the client's
 * thread: nothing is handed between threads, nothing is allocated, and each request has a buffer of
 * its own.
 *
 * Threads: bench_load_run() from the main thread; it sleeps until the time is over.
 * Errors:  the first failed request ends the run; what it was is in the result.
 */
#ifndef DLBLK_CLI_BENCH_LOAD_H
#define DLBLK_CLI_BENCH_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hist.h"
#include "dlblk/client.h"

enum bench_mode { BENCH_READ, BENCH_WRITE, BENCH_RANDREAD, BENCH_RANDWRITE, BENCH_RANDRW };
enum bench_direction { BENCH_DIRECTION_READ, BENCH_DIRECTION_WRITE, BENCH_DIRECTIONS };

#define BENCH_DEPTH_MAX        4096u
#define BENCH_BUFFER_BYTES_MAX (1ull << 30) /* depth x block */

struct bench_load_options {
    enum bench_mode mode;
    uint32_t block_bytes; /* of each request: a multiple of the volume's logical block */
    uint32_t depth;
    uint32_t read_percent;      /* BENCH_RANDRW */
    uint64_t region_bytes;      /* from the volume's start; at least a block */
    uint64_t ramp_ms;           /* not counted */
    uint64_t duration_ms;       /* counted; 0: until count_max */
    uint64_t request_count_max; /* 0: until the time is over */
    uint64_t seed;
    /* Once per second from the main thread; may be NULL.  Returns false to end the run. */
    bool (*on_second)(void *context, uint64_t elapsed_ms, uint64_t requests_done);
    void *context;
};

struct bench_load_result {
    struct hist latencies_ns[BENCH_DIRECTIONS];
    uint64_t duration_ns; /* counted */
    int err;              /* 0, or of the request that failed first */
    enum bench_direction err_direction;
    uint64_t err_offset_bytes;
};

/* 0, -ENOMEM, or the error that is in the result too. */
int bench_load_run(struct dlblk_volume *volume, const struct bench_load_options *options,
                   struct bench_load_result *ret_result);

#endif
