/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trim_check: writes, trims and zeroes over NBD, all over the place and many at a time, and reads
 * back.
 *
 *   trim_check URI [--requests N] [--seed N] [--bytes N] [--block N]
 *
 * The export is compared with an array: after a trim the blocks (4 KiB) wholly inside read as
 * zeroes (dlblk's promise, more than NBD's), after a zero all of it.  Requests in flight never
 * overlap.  Prints counts: requests, writes, trims, trim_bytes, zeroes, reads.
 */
#include <getopt.h>
#include <inttypes.h>
#include <libnbd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IN_FLIGHT  16
#define LENGTH_MAX (256u << 10)

static uint64_t seed = 1;
static uint32_t block = 4096;
static uint64_t export_bytes;
static uint8_t *mirror;

struct op {
    int64_t cookie; /* 0: free */
    uint64_t offset;
    uint32_t length;
    bool is_read;
    uint8_t buffer[LENGTH_MAX];
};

static struct op ops[IN_FLIGHT];
static struct {
    uint64_t writes, trims, trim_bytes, zeroes, reads;
} counts;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "trim_check: seed %" PRIu64 ": ", seed);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint32_t
next_random(void)
{
    static uint64_t state;

    if (state == 0)
        state = seed;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static bool
overlaps_one(uint64_t offset, uint32_t length)
{
    for (int i = 0; i < IN_FLIGHT; i++) {
        /* Whole blocks: a write to a part of one is a rewrite of all of it, in the mirror too. */
        if (ops[i].cookie != 0 && offset / block <= (ops[i].offset + ops[i].length - 1) / block &&
            ops[i].offset / block <= (offset + length - 1) / block)
            return true;
    }
    return false;
}

static uint32_t
random_length(void)
{
    static const uint32_t scales[] = {512, 8192, 65536, LENGTH_MAX};
    uint32_t length = 1 + next_random() % scales[next_random() % 4];

    return next_random() % 2 ? length : (length + block - 1) / block * block;
}

static void
start_write(struct nbd_handle *nbd, struct op *op)
{
    uint8_t value = (uint8_t)next_random();

    for (uint32_t i = 0; i < op->length; i++)
        op->buffer[i] = (uint8_t)(value + i * 5 + (i >> 8));
    memcpy(mirror + op->offset, op->buffer, op->length);
    op->cookie = nbd_aio_pwrite(nbd, op->buffer, op->length, op->offset, NBD_NULL_COMPLETION, 0);
    counts.writes++;
}

static void
start_trim(struct nbd_handle *nbd, struct op *op)
{
    uint64_t first = (op->offset + block - 1) / block * block;
    uint64_t end = (op->offset + op->length) / block * block;

    if (end > first)
        memset(mirror + first, 0, end - first);
    op->cookie = nbd_aio_trim(nbd, op->length, op->offset, NBD_NULL_COMPLETION, 0);
    counts.trims++;
    counts.trim_bytes += op->length;
}

static void
start_zero(struct nbd_handle *nbd, struct op *op)
{
    memset(mirror + op->offset, 0, op->length);
    op->cookie = nbd_aio_zero(nbd, op->length, op->offset, NBD_NULL_COMPLETION, 0);
    counts.zeroes++;
}

static void
start_one(struct nbd_handle *nbd, struct op *op)
{
    do {
        op->length = random_length();
        op->offset = next_random() % (export_bytes - op->length);
        if (next_random() % 2)
            op->offset = op->offset / block * block;
    } while (overlaps_one(op->offset, op->length));
    op->is_read = false;
    switch (next_random() % 8) {
    case 0:
    case 1:
    case 2:
        start_write(nbd, op);
        break;
    case 3:
    case 4:
        start_trim(nbd, op);
        break;
    case 5:
        start_zero(nbd, op);
        break;
    default:
        op->is_read = true;
        op->cookie = nbd_aio_pread(nbd, op->buffer, op->length, op->offset, NBD_NULL_COMPLETION, 0);
        counts.reads++;
        break;
    }
    if (op->cookie < 0)
        die("%s", nbd_get_error());
}

static void
finish_one(struct op *op)
{
    if (op->is_read && memcmp(op->buffer, mirror + op->offset, op->length) != 0)
        die("%u bytes at %" PRIu64 " are not what was written", op->length, op->offset);
    op->cookie = 0;
}

/* Finishes what is done; with `all` waits until everything is. */
static void
reap(struct nbd_handle *nbd, bool all)
{
    bool waiting = true;

    while (waiting) {
        waiting = false;
        for (int i = 0; i < IN_FLIGHT; i++) {
            int done = ops[i].cookie != 0 ? nbd_aio_command_completed(nbd, (uint64_t)ops[i].cookie)
                                          : 0;

            if (done < 0)
                die("%s", nbd_get_error());
            if (done > 0)
                finish_one(&ops[i]);
            else if (ops[i].cookie != 0 && all)
                waiting = true;
        }
        if (waiting && nbd_poll(nbd, -1) < 0)
            die("%s", nbd_get_error());
    }
}

static struct op *
free_op(struct nbd_handle *nbd)
{
    for (;;) {
        for (int i = 0; i < IN_FLIGHT; i++) {
            if (ops[i].cookie == 0)
                return &ops[i];
        }
        if (nbd_poll(nbd, -1) < 0)
            die("%s", nbd_get_error());
        reap(nbd, false);
    }
}

static void
compare_all(struct nbd_handle *nbd)
{
    static uint8_t seen[1 << 20];

    for (uint64_t at = 0; at < export_bytes; at += sizeof(seen)) {
        uint64_t length = export_bytes - at < sizeof(seen) ? export_bytes - at : sizeof(seen);

        if (nbd_pread(nbd, seen, length, at, 0) < 0)
            die("%s", nbd_get_error());
        if (memcmp(seen, mirror + at, length) != 0)
            die("the export differs from the mirror at the end, in the MiB at %" PRIu64, at);
    }
}

static void
run(const char *uri, uint64_t requests, uint64_t bytes)
{
    struct nbd_handle *nbd = nbd_create();

    if (nbd == NULL || nbd_connect_uri(nbd, uri) < 0)
        die("%s", nbd_get_error());
    if (nbd_can_trim(nbd) != 1 || nbd_can_zero(nbd) != 1)
        die("the export takes no trims");
    export_bytes = (uint64_t)nbd_get_size(nbd);
    if (bytes != 0 && bytes < export_bytes)
        export_bytes = bytes;
    mirror = calloc(1, export_bytes);
    if (mirror == NULL || export_bytes <= LENGTH_MAX)
        die("no memory, or too small an export");
    if (nbd_zero(nbd, export_bytes, 0, 0) < 0)
        die("%s", nbd_get_error());
    for (uint64_t i = 0; i < requests; i++)
        start_one(nbd, free_op(nbd));
    reap(nbd, true);
    if (nbd_flush(nbd, 0) < 0)
        die("%s", nbd_get_error());
    compare_all(nbd);
    (void)nbd_shutdown(nbd, 0);
    nbd_close(nbd);
    free(mirror);
}

int
main(int argc, char **argv)
{
    static const struct option longs[] = {{"requests", required_argument, NULL, 'n'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"bytes", required_argument, NULL, 'b'},
                                          {"block", required_argument, NULL, 'k'},
                                          {0}};
    uint64_t requests = 2000, bytes = 0;
    int letter;

    while ((letter = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (letter == 'n')
            requests = strtoull(optarg, NULL, 10);
        else if (letter == 's')
            seed = strtoull(optarg, NULL, 10);
        else if (letter == 'b')
            bytes = strtoull(optarg, NULL, 10);
        else if (letter == 'k')
            block = (uint32_t)strtoul(optarg, NULL, 10);
        else
            return 2;
    }
    if (argc - optind != 1)
        die("usage: trim_check URI [--requests N] [--seed N] [--bytes N] [--block N]");
    run(argv[optind], requests, bytes);
    printf("requests=%" PRIu64 " writes=%" PRIu64 " trims=%" PRIu64 " trim_bytes=%" PRIu64
           " zeroes=%" PRIu64 " reads=%" PRIu64 "\n",
           requests, counts.writes, counts.trims, counts.trim_bytes, counts.zeroes, counts.reads);
    return 0;
}
