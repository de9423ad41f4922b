/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ack_writer: writes, remembers what was acknowledged, and checks it after everything has been
 * killed.
 *
 *   ack_writer write VOLUME LOG [--depth N] [--seconds N] [--seed N] [--hurry MS] [--no-space N]
 *   ack_writer check VOLUME LOG --slots N
 *   ack_writer look VOLUME LOG
 *
 * The volume is cut into places of 64 KiB.  Each place has at most one write in flight, with a
 * number of its own that grows; length, kind (data, or zeroes) and every byte of a write follow
 * from place and number.  LOG is mapped memory: per place the number that was submitted last and
 * the one that was acknowledged last.  It outlives a kill -9 of the writer.
 *
 *   write   ends by itself after --seconds, with an error when a write fails, or when it is killed.
 *           With --hurry it ends with status 3 when no write was acknowledged for so long.  With
 *           --no-space a write that finds no space is no error: its place is left alone from then
 *           on, as one with an unfinished write, and with N of them the writer ends.
 *   check   attaches (which settles what a killed owner left), then reads every place from every
 *           slot three times, and wants the content of the number acknowledged last, or of the one
 *           submitted after it: whole, and every time the same.  Prints counts: places,
 *           acknowledged, unfinished, unfinished_old, unfinished_new, reads.  Then it writes what
 *           did not come true once more, so that another run can go on.
 *   look    reads like check, but as users do, from any copy that is in sync, and writes nothing.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "dlblk/client.h"

#define PLACE_BYTES  (64u << 10)
#define SECTOR_BYTES 4096u
#define READS        3
#define SLOTS_MAX    8

struct place_log {
    _Atomic uint64_t submitted, acknowledged;
};

struct options {
    const char *volume_name, *log_path;
    uint32_t depth, slots;
    uint64_t seconds, seed, hurry_ms, no_space;
    bool look; /* any slot, instead of each */
};

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "ack_writer: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* --- what a write is --- */

static uint64_t
mix(uint64_t value)
{
    value ^= value >> 33;
    value *= 0xff51afd7ed558ccdull;
    value ^= value >> 33;
    value *= 0xc4ceb9fe1a85ec53ull;
    return value ^ (value >> 33);
}

/*
 * Number 0 is the volume as it was made: zeroes.  The lengths: mostly 4 KiB, up to the whole place.
 */
static uint32_t
write_sectors(uint64_t place, uint64_t number)
{
    static const uint32_t sectors[] = {1, 1, 1, 2, 3, 8, 15, 16};

    return number == 0 ? PLACE_BYTES / SECTOR_BYTES : sectors[mix(place * 31 + number) % 8];
}

static bool
write_is_zeroes(uint64_t place, uint64_t number)
{
    return number == 0 || mix(place + number * 77) % 8 == 0;
}

static void
sector_fill(uint64_t place, uint64_t number, uint32_t sector, uint8_t *bytes)
{
    const uint32_t words = SECTOR_BYTES / 8;

    if (write_is_zeroes(place, number)) {
        memset(bytes, 0, SECTOR_BYTES);
        return;
    }
    for (uint32_t i = 0; i < words; i++) {
        uint64_t word = mix((place << 40) ^ (number << 16) ^ (sector * words + i)) | 1;

        memcpy(bytes + (size_t)i * 8, &word, 8);
    }
}

static void
write_fill(uint64_t place, uint64_t number, uint8_t *bytes)
{
    for (uint32_t sector = 0; sector < write_sectors(place, number); sector++)
        sector_fill(place, number, sector, bytes + (size_t)sector * SECTOR_BYTES);
}

/*
 * The content of a place after `number` writes: each sector is of the last write that was long
 * enough.
 */
static void
content_at(uint64_t place, uint64_t number, uint8_t *bytes)
{
    for (uint32_t sector = 0; sector < PLACE_BYTES / SECTOR_BYTES; sector++) {
        uint64_t last = number;

        while (write_sectors(place, last) <= sector)
            last--;
        sector_fill(place, last, sector, bytes + (size_t)sector * SECTOR_BYTES);
    }
}

/* --- the log --- */

static struct place_log *
log_open(const char *path, uint64_t places, bool create)
{
    int fd = open(path, create ? O_RDWR | O_CREAT : O_RDWR, 0644);
    size_t bytes = places * sizeof(struct place_log);
    struct place_log *log;

    if (fd < 0 || (create && ftruncate(fd, (off_t)bytes) != 0))
        die("%s: %m", path);
    log = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (log == MAP_FAILED)
        die("%s: %m", path);
    (void)close(fd);
    return log;
}

/* --- connection --- */

static void
on_event(void *context, enum dlblk_event_level level, const char *text)
{
    (void)context;
    if (level >= DLBLK_EVENT_INFO)
        fprintf(stderr, "ack_writer: event: %s\n", text);
}

static struct dlblk_client *
connect_client(void)
{
    struct dlblk_client_options options = {
        .program = "ack_writer",
        .connect_timeout_ms = 60000,
        .request_timeout_ms = 120000,
        .on_event = on_event,
    };
    struct dlblk_client *client;
    struct dl_error err = {0};

    if (dlblk_client_create(&client, &options, &err) != 0)
        die("%s; %s", err.text, err.hint);
    return client;
}

/*
 * A read-only attach is refused for a moment while the last owner's detach is being recorded
 * elsewhere: no retry here.
 */
static struct dlblk_volume *
open_volume(struct dlblk_client *client, const char *name, uint32_t flags)
{
    struct dlblk_volume *volume;
    struct dl_error err = {0};

    if (dlblk_volume_open(client, name, flags, &volume, &err) != 0)
        die("%s; %s", err.text, err.hint);
    return volume;
}

static void
close_volume(struct dlblk_volume *volume)
{
    struct dl_error err = {0};

    if (dlblk_volume_close(volume, &err) != 0)
        die("detach: %s", err.text);
}

static uint64_t
places_of(struct dlblk_volume *volume)
{
    struct dlblk_volume_geometry geometry;

    dlblk_volume_get_geometry(volume, &geometry);
    return geometry.size_bytes / PLACE_BYTES;
}

/* --- writing --- */

struct writer {
    struct dlblk_volume *volume;
    struct place_log *log;
    uint64_t places;
    uint32_t depth;
    _Atomic bool stop;
    _Atomic int err;
    _Atomic uint64_t acknowledged;
    uint64_t no_space_max;
    _Atomic uint64_t no_space;
    _Atomic uint32_t in_flight;
    sem_t finished;
};

struct write_op {
    struct dlblk_request request;
    struct writer *writer;
    uint32_t idx;
    uint64_t random, place, number;
    uint8_t *buffer;
};

/* Op i has the places that are i modulo the depth: so none has two writes in flight. */
static uint64_t
op_next_place(struct write_op *op)
{
    uint64_t depth = op->writer->depth;
    uint64_t mine = (op->writer->places - op->idx + depth - 1) / depth;

    op->random = mix(op->random + 0x9E3779B97F4A7C15ull);
    return op->random % mine * depth + op->idx;
}

/* Once a write to it found no space. */
static bool
place_is_left_alone(const struct place_log *log)
{
    return log->submitted != log->acknowledged;
}

static void
op_submit(struct write_op *op)
{
    struct writer *writer = op->writer;

    do {
        op->place = op_next_place(op);
    } while (place_is_left_alone(&writer->log[op->place]));
    op->number = atomic_load(&writer->log[op->place].submitted) + 1;
    op->request.offset_bytes = op->place * PLACE_BYTES;
    op->request.length_bytes = (uint64_t)write_sectors(op->place, op->number) * SECTOR_BYTES;
    op->request.op = DLBLK_WRITE_ZEROES;
    op->request.iov_count = 0;
    if (!write_is_zeroes(op->place, op->number)) {
        write_fill(op->place, op->number, op->buffer);
        op->request.op = DLBLK_WRITE;
        op->request.iov_one = (struct iovec){op->buffer, op->request.length_bytes};
        op->request.iov_count = 1;
    }
    atomic_store(&writer->log[op->place].submitted, op->number);
    dlblk_submit(writer->volume, &op->request);
}

static void
op_on_done(struct dlblk_request *request, int err)
{
    struct write_op *op = request->context;
    struct writer *writer = op->writer;

    if (err == 0) {
        atomic_store(&writer->log[op->place].acknowledged, op->number);
        (void)atomic_fetch_add(&writer->acknowledged, 1);
    } else if (err == -DL_E_NO_SPACE && writer->no_space_max > 0) {
        if (atomic_fetch_add(&writer->no_space, 1) + 1 >= writer->no_space_max)
            atomic_store(&writer->stop, true);
    } else {
        atomic_store(&writer->err, err);
        atomic_store(&writer->stop, true);
    }
    if (!atomic_load(&writer->stop))
        op_submit(op);
    else if (atomic_fetch_sub(&writer->in_flight, 1) == 1)
        (void)sem_post(&writer->finished);
}

/*
 * The unfinished writes of a killed run are over: what they left was settled by the attach, and is
 * looked at by check.
 */
static void
resume_log(struct writer *writer)
{
    for (uint64_t place = 0; place < writer->places; place++) {
        if (writer->log[place].submitted != writer->log[place].acknowledged)
            die("place %" PRIu64 " has an unfinished write: check it before you write again",
                place);
    }
}

static void
sleep_ms(uint64_t ms)
{
    struct timespec time = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    (void)nanosleep(&time, NULL);
}

/* Returns 0, or 3 if nothing was acknowledged for too long. */
static int
watch(struct writer *writer, const struct options *options)
{
    uint64_t last = 0, quiet_ms = 0, passed_ms = 0;

    while (!atomic_load(&writer->stop) && passed_ms < options->seconds * 1000) {
        uint64_t now = atomic_load(&writer->acknowledged);

        sleep_ms(10);
        passed_ms += 10;
        quiet_ms = now == last ? quiet_ms + 10 : 0;
        last = now;
        if (options->hurry_ms > 0 && quiet_ms > options->hurry_ms)
            return 3;
    }
    return 0;
}

static int
run_write(const struct options *options)
{
    static struct writer writer;
    struct dlblk_client *client = connect_client();
    struct write_op *ops = calloc(options->depth, sizeof(*ops));
    uint8_t *buffers = aligned_alloc(SECTOR_BYTES, (size_t)options->depth * PLACE_BYTES);
    int status;

    writer.volume = open_volume(client, options->volume_name, 0);
    writer.places = places_of(writer.volume);
    writer.log = log_open(options->log_path, writer.places, true);
    writer.depth = options->depth;
    writer.no_space_max = options->no_space;
    resume_log(&writer);
    if (ops == NULL || buffers == NULL || writer.places < options->depth)
        die("no memory, or a volume of fewer places than the depth");
    (void)sem_init(&writer.finished, 0, 0);
    atomic_store(&writer.in_flight, options->depth);
    printf("writing\n");
    (void)fflush(stdout);
    for (uint32_t i = 0; i < options->depth; i++) {
        ops[i] = (struct write_op){.writer = &writer,
                                   .idx = i,
                                   .random = mix(options->seed * 1000 + i),
                                   .buffer = buffers + (size_t)i * PLACE_BYTES};
        ops[i].request.iov = &ops[i].request.iov_one;
        ops[i].request.on_done = op_on_done;
        ops[i].request.context = &ops[i];
        op_submit(&ops[i]);
    }
    status = watch(&writer, options);
    printf("acknowledged %" PRIu64 "\n", atomic_load(&writer.acknowledged));
    printf("no space %" PRIu64 "\n", atomic_load(&writer.no_space));
    if (status != 0)
        return status;
    atomic_store(&writer.stop, true);
    (void)sem_wait(&writer.finished);
    if (writer.err != 0)
        die("a write failed: %s", dl_err_str(writer.err));
    close_volume(writer.volume);
    dlblk_client_destroy(client);
    free(ops);
    free(buffers);
    return 0;
}

/* --- checking --- */

struct counts {
    uint64_t places, acknowledged, unfinished, unfinished_old, unfinished_new, reads;
};

/* Which of the two numbers it is; UINT64_MAX: none. */
static uint64_t
recognize(uint64_t place, uint64_t old, uint64_t new, const uint8_t *seen)
{
    static uint8_t expected[PLACE_BYTES];

    for (uint64_t number = new; number + 1 > old; number--) {
        content_at(place, number, expected);
        if (memcmp(expected, seen, PLACE_BYTES) == 0)
            return number;
        if (number == 0)
            break;
    }
    return UINT64_MAX;
}

static void
describe_damage(uint64_t place, uint64_t old, uint64_t new, const uint8_t *seen)
{
    static uint8_t expected[PLACE_BYTES];

    for (uint64_t number = old; number <= new; number++) {
        content_at(place, number, expected);
        fprintf(stderr,
                "ack_writer: compared with number %" PRIu64 ", sectors that differ:", number);
        for (uint32_t sector = 0; sector < PLACE_BYTES / SECTOR_BYTES; sector++) {
            if (memcmp(expected + sector * SECTOR_BYTES, seen + sector * SECTOR_BYTES,
                       SECTOR_BYTES) != 0)
                fprintf(stderr, " %u", sector);
        }
        fprintf(stderr, "\n");
    }
}

/* The first slot and read decide which number it is; all others must see the same. */
static void
check_place(struct dlblk_volume *volume, const struct place_log *log, uint64_t place, uint32_t slot,
            uint64_t *settled, struct counts *counts)
{
    static uint8_t first[PLACE_BYTES] __attribute__((aligned(4096)));
    static uint8_t again[PLACE_BYTES] __attribute__((aligned(4096)));
    uint64_t old = log[place].acknowledged, new = log[place].submitted;
    uint64_t number;
    int err = dlblk_read(volume, first, PLACE_BYTES, place * PLACE_BYTES);

    if (err != 0)
        die("place %" PRIu64 ", slot %u: %s", place, slot, dl_err_str(err));
    number = recognize(place, old, new, first);
    if (number == UINT64_MAX) {
        describe_damage(place, old, new, first);
        die("place %" PRIu64 ", slot %u: neither number %" PRIu64
            ", which was acknowledged, nor %" PRIu64 ", which was submitted",
            place, slot, old, new);
    }
    /* Zeroes over zeroes can look the same under two numbers: that is no difference. */
    if (slot == 0)
        settled[place] = number;
    else if (settled[place] != number)
        die("place %" PRIu64 ": slot 0 has number %" PRIu64 ", slot %u has %" PRIu64, place,
            settled[place], slot, number);
    for (int i = 1; i < READS; i++) {
        err = dlblk_read(volume, again, PLACE_BYTES, place * PLACE_BYTES);
        if (err != 0 || memcmp(first, again, PLACE_BYTES) != 0)
            die("place %" PRIu64 ", slot %u: read %d differs: %s", place, slot, i + 1,
                dl_err_str(err));
    }
    counts->reads += READS;
}

static void
count_place(const struct place_log *log, uint64_t place, uint64_t settled, struct counts *counts)
{
    counts->places++;
    counts->acknowledged += log[place].acknowledged;
    if (log[place].submitted == log[place].acknowledged)
        return;
    counts->unfinished++;
    counts->unfinished_old += settled == log[place].acknowledged;
    counts->unfinished_new += settled == log[place].submitted;
}

/*
 * What an unfinished write became is settled from now on: the next run goes on from there.  If the
 * old content stayed, the number that was given up must not count as written later: it is skipped
 * for ever, and content_at() would lay it over.  So the place is written once more here, with that
 * number.
 */
static void
settle_log(struct dlblk_client *client, const struct options *options, struct place_log *log,
           uint64_t places, const uint64_t *settled)
{
    static uint8_t bytes[PLACE_BYTES] __attribute__((aligned(4096)));
    struct dlblk_volume *volume = open_volume(client, options->volume_name, 0);

    for (uint64_t place = 0; place < places; place++) {
        uint64_t number = log[place].submitted;
        uint64_t length = (uint64_t)write_sectors(place, number) * SECTOR_BYTES;

        if (settled[place] != number) {
            write_fill(place, number, bytes);
            if (dlblk_write(volume, bytes, length, place * PLACE_BYTES) != 0)
                die("place %" PRIu64 " could not be written", place);
        }
        atomic_store(&log[place].acknowledged, number);
    }
    close_volume(volume);
}

static int
run_check(const struct options *options)
{
    struct dlblk_client *client = connect_client();
    struct dlblk_volume *volume = open_volume(client, options->volume_name, 0);
    uint64_t places = places_of(volume);
    struct place_log *log = log_open(options->log_path, places, false);
    uint64_t *settled = calloc(places, sizeof(*settled));
    struct counts counts = {0};

    close_volume(volume);
    for (uint32_t slot = 0; slot < options->slots; slot++) {
        volume = open_volume(client, options->volume_name,
                             DLBLK_OPEN_READ_ONLY |
                                 (options->look ? 0 : DLBLK_OPEN_READ_SLOT(slot)));
        for (uint64_t place = 0; place < places; place++) {
            if (log[place].submitted > 0)
                check_place(volume, log, place, slot, settled, &counts);
        }
        close_volume(volume);
    }
    for (uint64_t place = 0; place < places; place++) {
        if (log[place].submitted > 0)
            count_place(log, place, settled[place], &counts);
    }
    if (!options->look)
        settle_log(client, options, log, places, settled);
    printf("places=%" PRIu64 " acknowledged=%" PRIu64 " unfinished=%" PRIu64
           " unfinished_old=%" PRIu64 " unfinished_new=%" PRIu64 " reads=%" PRIu64 "\n",
           counts.places, counts.acknowledged, counts.unfinished, counts.unfinished_old,
           counts.unfinished_new, counts.reads);
    free(settled);
    dlblk_client_destroy(client);
    return 0;
}

/* --- the command line --- */

static uint64_t
number_of(const char *text)
{
    char *end;
    uint64_t number = strtoull(text, &end, 10);

    if (*text == '\0' || *end != '\0')
        die("'%s' is not a number", text);
    return number;
}

int
main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"depth", required_argument, NULL, 'd'},
        {"seconds", required_argument, NULL, 's'},
        {"seed", required_argument, NULL, 'r'},
        {"hurry", required_argument, NULL, 'h'},
        {"slots", required_argument, NULL, 'n'},
        {"no-space", required_argument, NULL, 'f'},
        {0},
    };
    struct options options = {.depth = 32, .seconds = 3600, .seed = 1, .slots = 3};
    int letter;

    while ((letter = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (letter) {
        case 'd':
            options.depth = (uint32_t)number_of(optarg);
            break;
        case 's':
            options.seconds = number_of(optarg);
            break;
        case 'r':
            options.seed = number_of(optarg);
            break;
        case 'h':
            options.hurry_ms = number_of(optarg);
            break;
        case 'n':
            options.slots = (uint32_t)number_of(optarg);
            break;
        case 'f':
            options.no_space = number_of(optarg);
            break;
        default:
            return 2;
        }
    }
    if (argc - optind != 3 || options.slots > SLOTS_MAX || options.depth == 0)
        die("usage: ack_writer write|check|look VOLUME LOG [OPTION...]");
    options.volume_name = argv[optind + 1];
    options.log_path = argv[optind + 2];
    if (strcmp(argv[optind], "write") == 0)
        return run_write(&options);
    options.look = strcmp(argv[optind], "look") == 0;
    if (options.look || strcmp(argv[optind], "check") == 0)
        return run_check(&options);
    die("'%s' is not write, check or look", argv[optind]);
}
