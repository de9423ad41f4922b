/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes end to end, against fake servers without faults: what is written is read, on all slots
 * alike; any alignment that the logical block allows; stripes; zeroes; flush; limits; closed
 * cleanly, with nothing pending anywhere.
 */
#include "tests/unit/client/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/lib/fake_rng.h"

/* Closed cleanly: all slots alike, nothing pending, and the metadata service knows. */
static void
close_and_check_by(struct fixture *f, const struct fake_volume *volume, uint64_t limit_ns)
{
    assert_int_equal(fixture_close(f), 0);
    assert_true(f->world.now_ns <= limit_ns);
    fixture_check_slots_alike(f, volume);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    assert_true(volume->clean);
    assert_false(volume->owned);
    fixture_destroy(f);
}

static void
close_and_check(struct fixture *f, const struct fake_volume *volume)
{
    close_and_check_by(f, volume, UINT64_MAX);
}

static uint64_t
total_writes(const struct fixture *f)
{
    uint64_t writes = 0;

    for (uint32_t i = 0; i < f->cluster.server_count; i++)
        writes += f->cluster.servers[i].writes;
    return writes;
}

static uint64_t
total_reads(const struct fixture *f)
{
    uint64_t reads = 0;

    for (uint32_t i = 0; i < f->cluster.server_count; i++)
        reads += f->cluster.servers[i].reads;
    return reads;
}

static void
test_write_and_read(void **state)
{
    struct fixture *f = fixture_create(1, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);
    uint64_t start_ns;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_check(f, 0, MIB, 0);
    assert_int_equal(total_reads(f), 0); /* not allocated: nobody was asked */
    assert_int_equal(fixture_write(f, 8192, 4096, 3), 0);
    assert_int_equal(total_writes(f), 3);
    fixture_check(f, 8192, 4096, 3);
    assert_int_equal(total_reads(f), 1);
    fixture_check(f, 0, 8192, 0);
    /* A close does not wait for the time after which S would go by itself. */
    start_ns = f->world.now_ns;
    assert_int_equal(fixture_write(f, 8192, 4096, 3), 0);
    close_and_check_by(f, volume, start_ns + 20 * NS_PER_MS);
}

/* A request over three segments, and one over many windows and segments. */
static void
test_large_requests(void **state)
{
    struct fixture *f = fixture_create(2, 4);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 16 * MIB);

    (void)state;
    volume->segment_bytes = 2 * MIB;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, MIB + 4096, 4 * MIB, 5), 0);
    fixture_check(f, MIB + 4096, 4 * MIB, 5);
    assert_int_equal(fixture_write(f, 0, 16 * MIB, 9), 0);
    fixture_check(f, 0, 16 * MIB, 9);
    fixture_check(f, 3 * MIB - 8192, 16384, 9);
    close_and_check(f, volume);
}

static void
test_striped(void **state)
{
    struct fixture *f = fixture_create(3, 5);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 10 * MIB);

    (void)state;
    volume->stripe_width = 3;
    volume->stripe_unit_bytes = 16384;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 12288, 300000 / 4096 * 4096, 11), 0);
    fixture_check(f, 12288, 300000 / 4096 * 4096, 11);
    /* The stripe set came as a whole. */
    assert_true(volume->allocated[0] && volume->allocated[1] && volume->allocated[2]);
    assert_false(volume->allocated[3]);
    assert_int_equal(fixture_write(f, 0, 10 * MIB, 4), 0);
    fixture_check(f, 0, 10 * MIB, 4);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 65536, 5 * MIB), 0);
    fixture_check(f, 65536, 5 * MIB, 0);
    fixture_check(f, 0, 65536, 4);
    fixture_check(f, 65536 + 5 * MIB, 3 * MIB, 4);
    close_and_check(f, volume);
}

/* Logical blocks of 512: requests at any of them, compared with a copy in memory. */
static void
test_small_blocks(void **state)
{
    struct fixture *f = fixture_create(4, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 2 * MIB + 512 * 5);
    uint64_t size = volume->size_bytes;
    uint8_t *copy = calloc(1, size);
    uint8_t *found = malloc(size);
    struct fake_rng rng;

    (void)state;
    volume->logical_block_bytes = 512;
    fake_rng_init(&rng, 4);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t offset = fake_rng_below(&rng, size / 512) * 512;
        uint64_t most = (size - offset) / 512 < 60 ? (size - offset) / 512 : 60;
        uint64_t length = fake_rng_range(&rng, 1, most) * 512;
        uint8_t fill = (uint8_t)(i % 200 + 1);

        if (i % 7 == 0) {
            assert_int_equal(fixture_op(f, DLBLK_WRITE_ZEROES, offset, length), 0);
            memset(copy + offset, 0, length);
        } else {
            assert_int_equal(fixture_write(f, offset, length, fill), 0);
            fixture_pattern(copy + offset, offset, length, fill);
        }
        if (i % 10 == 9) {
            assert_int_equal(fixture_read(f, 0, size, found), 0);
            assert_memory_equal(found, copy, size);
        }
    }
    /* The last bytes of the volume. */
    assert_int_equal(fixture_write(f, size - 512, 512, 1), 0);
    fixture_check(f, size - 512, 512, 1);
    free(copy);
    free(found);
    close_and_check(f, volume);
}

/* In uneven pieces. */
static struct fixture_request *
submit_iov(struct fixture *f, enum dlblk_op op, uint64_t offset, uint64_t length, uint32_t count,
           uint8_t fill)
{
    struct fixture_request *sent = calloc(1, sizeof(*sent));

    assert_non_null(sent);
    sent->buffer = malloc(length);
    fixture_pattern(sent->buffer, offset, length, fill);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = length * i / count / 512 * 512 + (i % 2 == 1 ? 100 : 0);
        uint64_t end = length * (i + 1) / count / 512 * 512 + (i % 2 == 0 ? 100 : 0);

        if (i + 1 == count)
            end = length;
        sent->iov[i] = (struct iovec){.iov_base = sent->buffer + begin, .iov_len = end - begin};
    }
    sent->request = (struct dlblk_request){
        .op = op,
        .offset_bytes = offset,
        .length_bytes = length,
        .iov = sent->iov,
        .iov_count = count,
    };
    fixture_submit_prepared(f, sent);
    return sent;
}

/*
 * Scattered buffers: few pieces go out as they are, many through a copy; reads come back the same.
 */
static void
test_scattered_buffers(void **state)
{
    struct fixture *f = fixture_create(5, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    static const uint32_t counts[] = {2, 5, 8, 16};

    (void)state;
    volume->logical_block_bytes = 512;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t offset = i * 65536 + (i % 2) * 1536;
        uint64_t length = 24 * 1024 + (i % 2) * 512;
        struct fixture_request *request = submit_iov(f, DLBLK_WRITE, offset, length, counts[i],
                                                     (uint8_t)(i + 1));
        uint8_t *expected = malloc(length);

        assert_int_equal(fixture_wait(f, request), 0);
        fixture_check(f, offset, length, (uint8_t)(i + 1));
        request = submit_iov(f, DLBLK_READ, offset, length, counts[i], 99);
        assert_true(fixture_run_until(f, &request->done, SIM_S));
        fixture_pattern(expected, offset, length, (uint8_t)(i + 1));
        assert_int_equal(request->err, 0);
        assert_memory_equal(request->buffer, expected, length);
        free(expected);
        fixture_free(request);
    }
    close_and_check(f, volume);
}

/*
 * Whole sectors become zero extents, one message per slot however long; unallocated parts need
 * nothing.
 */
static void
test_zeroes(void **state)
{
    struct fixture *f = fixture_create(6, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 16 * MIB);
    uint64_t before;

    (void)state;
    volume->segment_bytes = 4 * MIB;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, 16 * MIB), 0);
    assert_int_equal(fixture_op(f, DLBLK_WRITE_ZEROES, 4096, 8 * MIB), 0);
    assert_int_equal(total_writes(f), 0);
    assert_int_equal(f->cluster.allocates, 0);

    assert_int_equal(fixture_write(f, 0, 4 * MIB, 2), 0);
    before = total_writes(f);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 4096, 4 * MIB - 4096), 0);
    assert_int_equal(total_writes(f) - before, 3);
    assert_int_equal(f->cluster.servers[0].zeroes, 1);
    fixture_check(f, 0, 4096, 2);
    fixture_check(f, 4096, 4 * MIB - 4096, 0);
    close_and_check(f, volume);
}

/* Zeroes of any length: more than a request may transfer. */
static void
test_zeroes_beyond_the_request_limit(void **state)
{
    struct fixture *f = fixture_create(7, 3);
    uint64_t size = 60ull * 64 * MIB;
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", size);

    (void)state;
    volume->segment_bytes = 64 * MIB;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 33ull * 64 * MIB, 8192, 2), 0);
    assert_int_equal(fixture_op(f, DLBLK_WRITE_ZEROES, 0, size), 0);
    assert_int_equal(total_writes(f), 6);
    fixture_check(f, 33ull * 64 * MIB, 8192, 0);
    close_and_check(f, volume);
}

/* Overlapping requests take effect in the order in which they came, whatever the network does. */
static void
test_overlapping_requests_keep_their_order(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
        struct fixture_request *writes[40], *reads[40];

        assert_int_equal(fixture_open(f, "v", 0), 0);
        for (unsigned i = 0; i < 40; i++) {
            uint64_t offset = i % 3 * 4096;

            writes[i] = fixture_submit(f, DLBLK_WRITE, offset, 8192, (uint8_t)(i + 1));
            reads[i] = fixture_submit(f, DLBLK_READ, offset, 8192, 0);
        }
        for (unsigned i = 0; i < 40; i++) {
            uint8_t expected[8192];

            assert_true(fixture_run_until(f, &reads[i]->done, SIM_S));
            fixture_pattern(expected, i % 3 * 4096, 8192, (uint8_t)(i + 1));
            assert_int_equal(reads[i]->err, 0);
            assert_memory_equal(reads[i]->buffer, expected, 8192);
            assert_true(writes[i]->done);
            assert_true(writes[i]->order < reads[i]->order);
            fixture_free(reads[i]);
            assert_int_equal(fixture_wait(f, writes[i]), 0);
        }
        close_and_check(f, volume);
    }
}

/* A flush waits for the writes before it, and for none behind it. */
static void
test_flush(void **state)
{
    struct fixture *f = fixture_create(8, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    struct fixture_request *first, *flush, *second, *nothing;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    nothing = fixture_submit(f, DLBLK_FLUSH, 0, 0, 0);
    assert_int_equal(fixture_wait(f, nothing), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.hold_writes = true;
    first = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    flush = fixture_submit(f, DLBLK_FLUSH, 0, 0, 0);
    fixture_run(f, 100 * NS_PER_MS);
    second = fixture_submit(f, DLBLK_WRITE, 8192, 4096, 2);
    fixture_run(f, 100 * NS_PER_MS);
    assert_false(first->done || flush->done || second->done);
    fixture_server_release(f, 1);
    f->cluster.servers[1].faults.hold_writes = true;
    assert_true(fixture_run_until(f, &flush->done, SIM_S));
    assert_true(first->done && first->order < flush->order);
    fixture_server_release(f, 1);
    assert_int_equal(fixture_wait(f, first), 0);
    assert_int_equal(fixture_wait(f, flush), 0);
    assert_int_equal(fixture_wait(f, second), 0);
    close_and_check(f, volume);
}

struct chain {
    struct fixture *f;
    struct dlblk_request request;
    uint8_t buffer[4096];
    unsigned left;
    bool done;
};

static void
chain_on_done(struct dlblk_request *request, int err)
{
    struct chain *chain = request->context;

    assert_int_equal(err, 0);
    if (--chain->left == 0)
        chain->done = true;
    else
        client_volume_submit(chain->f->volume, request);
}

/*
 * A callback that submits what is over at once does not keep the thread: others get their turns in
 * between.
 */
static void
test_a_chain_of_instant_requests(void **state)
{
    struct fixture *f = fixture_create(16, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    struct chain chain = {.f = f, .left = 1000};
    struct sim_process *before;
    uint64_t events;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    chain.request = (struct dlblk_request){
        .op = DLBLK_READ,
        .length_bytes = sizeof(chain.buffer),
        .iov_count = 1,
        .iov_one = {.iov_base = chain.buffer, .iov_len = sizeof(chain.buffer)},
        .on_done = chain_on_done,
        .context = &chain,
    };
    chain.request.iov = &chain.request.iov_one;
    events = f->world.event_count;
    before = sim_enter(&f->client_process);
    client_volume_submit(f->volume, &chain.request);
    sim_leave(&f->client_process, before);
    assert_true(fixture_run_until(f, &chain.done, SIM_S));
    assert_true(f->world.event_count - events >= 900);
    close_and_check(f, volume);
}

static int
submit_raw(struct fixture *f, struct dlblk_request raw)
{
    struct fixture_request *request = calloc(1, sizeof(*request));

    assert_non_null(request);
    request->request = raw;
    fixture_submit_prepared(f, request);
    assert_false(request->done); /* never inside the call */
    return fixture_wait(f, request);
}

static void
test_wrong_requests(void **state)
{
    struct fixture *f = fixture_create(9, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    static uint8_t memory[8192];
    struct iovec iov = {.iov_base = memory, .iov_len = 4096};
    struct dlblk_request good = {
        .op = DLBLK_WRITE, .length_bytes = 4096, .iov = &iov, .iov_count = 1};
    struct dlblk_request bad;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    bad = good;
    bad.offset_bytes = 512;
    assert_int_equal(submit_raw(f, bad), -DL_E_ALIGNMENT);
    bad = good;
    bad.offset_bytes = 4 * MIB;
    assert_int_equal(submit_raw(f, bad), -DL_E_RANGE);
    bad = good;
    bad.offset_bytes = UINT64_MAX - 4095;
    assert_int_equal(submit_raw(f, bad), -DL_E_RANGE);
    bad = good;
    bad.length_bytes = 8192; /* the iovec has less */
    assert_int_equal(submit_raw(f, bad), -EINVAL);
    bad = good;
    bad.length_bytes = 0;
    assert_int_equal(submit_raw(f, bad), -DL_E_RANGE);
    bad = good;
    bad.op = (enum dlblk_op)77;
    assert_int_equal(submit_raw(f, bad), -EINVAL);
    bad = good;
    bad.iov = NULL;
    assert_int_equal(submit_raw(f, bad), -EINVAL);
    assert_int_equal(submit_raw(f, good), 0);
    close_and_check(f, volume);
}

/*
 * In flight: never more than the limit, but all requests end; and one larger than the limit gets
 * through alone.
 */
static void
test_bytes_in_flight_are_bounded(void **state)
{
    struct fixture *f = fixture_create(10, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 32 * MIB);
    struct fixture_request *requests[64];
    struct client_core_stats stats;

    (void)state;
    f->options.in_flight_bytes_max = 512 * 1024;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4 * MIB, 7), 0);
    assert_int_equal(fixture_close(f), 0);
    fixture_kill_client(f); /* what waited for its first segment came on top of the limit */
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 64; i++)
        requests[i] = fixture_submit(f, i % 2 == 0 ? DLBLK_WRITE : DLBLK_READ, i % 32 * 65536,
                                     65536, (uint8_t)(i + 1));
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(fixture_wait(f, requests[i]), 0);
    client_core_get_stats(f->core, &stats);
    assert_int_equal(stats.in_flight_bytes, 0);
    assert_in_range(stats.in_flight_bytes_highest, 256 * 1024, 512 * 1024);
    /* A piece of 1 MiB is let through alone. */
    assert_int_equal(fixture_write(f, 0, MIB, 7), 0);
    client_core_get_stats(f->core, &stats);
    assert_int_equal(stats.in_flight_bytes_highest, MIB);
    close_and_check(f, volume);
}

/* What one volume has in flight can wait for long: others go on. */
static void
test_a_full_volume_stops_no_other(void **state)
{
    struct fixture *f = fixture_create(27, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    struct fixture_request *waiting[16], *requests[16];
    struct client_volume *first, *second;

    (void)state;
    (void)fake_cluster_add_volume(&f->cluster, "w", 4 * MIB);
    f->options.in_flight_bytes_max = 512 * 1024;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
    first = f->volume;
    assert_int_equal(fixture_open(f, "w", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
    second = f->volume;
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_writes = true;
    f->volume = first;
    for (unsigned i = 0; i < 16; i++)
        waiting[i] = fixture_submit(f, DLBLK_WRITE, i * 65536, 65536, 8);
    fixture_run(f, 50 * NS_PER_MS);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_writes = false;
    f->volume = second;
    for (unsigned i = 0; i < 16; i++)
        requests[i] = fixture_submit(f, i % 2 == 0 ? DLBLK_WRITE : DLBLK_READ, i * 65536, 65536, 9);
    fixture_run(f, SIM_S);
    for (unsigned i = 0; i < 16; i++) {
        assert_true(requests[i]->done);
        assert_false(waiting[i]->done);
        assert_int_equal(fixture_wait(f, requests[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++)
        fixture_server_release(f, i);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(fixture_wait(f, waiting[i]), 0);
    assert_int_equal(fixture_close(f), 0);
    f->volume = first;
    close_and_check(f, volume);
}

/* Reads prefer the same host, then the least loaded; a checker's reads go where it says. */
static void
test_reads_choose_a_slot(void **state)
{
    struct fixture *f = fixture_create(11, 3);
    struct fixture_request *waiting[30];
    uint64_t reads[3];

    (void)state;
    (void)fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
    for (unsigned i = 0; i < 30; i++)
        fixture_check(f, 0, 4096, 7);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(f->cluster.servers[i].reads, 10);
    /* One is stuck with what it has: the others get the rest. */
    f->cluster.servers[0].faults.hold_reads = true;
    for (unsigned i = 0; i < 30; i++)
        waiting[i] = fixture_submit(f, DLBLK_READ, 0, 4096, 0);
    fixture_run(f, 100 * NS_PER_MS);
    reads[0] = f->cluster.servers[0].reads;
    assert_in_range(reads[0], 10 + 8, 10 + 12);
    for (unsigned i = 0; i < 30; i++)
        fixture_check(f, 0, 4096, 7);
    assert_int_equal(f->cluster.servers[0].reads, reads[0]);
    fixture_server_release(f, 0);
    for (unsigned i = 0; i < 30; i++)
        assert_int_equal(fixture_wait(f, waiting[i]), 0);
    assert_int_equal(fixture_close(f), 0);
    for (unsigned slot = 0; slot < 3; slot++) {
        for (unsigned i = 0; i < 3; i++)
            reads[i] = f->cluster.servers[i].reads;
        assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY | DLBLK_OPEN_READ_SLOT(slot)),
                         0);
        for (unsigned i = 0; i < 5; i++)
            fixture_check(f, 0, 4096, 7);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(f->cluster.servers[i].reads - reads[i], i == slot ? 5 : 0);
        assert_int_equal(fixture_close(f), 0);
    }
    fixture_destroy(f);
}

static void
test_reads_prefer_the_same_host(void **state)
{
    struct fixture *f = fixture_create(12, 3);

    (void)state;
    (void)fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    f->options.host = "server-2";
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
    for (unsigned i = 0; i < 10; i++)
        fixture_check(f, 0, 4096, 7);
    assert_int_equal(f->cluster.servers[1].reads, 10);
    fixture_destroy(f);
}

static void
test_read_only(void **state)
{
    struct fixture *f = fixture_create(13, 3);

    (void)state;
    (void)fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
    assert_int_equal(fixture_close(f), 0);
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY), 0);
    fixture_check(f, 0, 4096, 7);
    assert_int_equal(fixture_write(f, 0, 4096, 8), -DL_E_READ_ONLY);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, 4096), -DL_E_READ_ONLY);
    assert_int_equal(fixture_op(f, DLBLK_FLUSH, 0, 0), 0);
    fixture_check(f, 0, 4096, 7);
    assert_int_equal(fixture_close(f), 0);
    fixture_destroy(f);
}

/*
 * A reader whose connection broke attaches again.  If somebody may have written meanwhile, or it is
 * not counted as a reader any more, or is told of another volume, it must not go on.  Under another
 * name it is the same volume.
 */
static void
test_readers_that_can_not_come_back(void **state)
{
    static const int errors[] = {-DL_E_FENCE_PENDING, -DL_E_LIMIT, -DL_E_VOLUME_BUSY};

    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        struct fixture *f = fixture_create(16 + i, 3);
        struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
        struct fake_volume *other = fake_cluster_add_volume(&f->cluster, "w", 4 * MIB);

        assert_int_equal(fixture_open(f, "v", 0), 0);
        assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
        assert_int_equal(fixture_close(f), 0);
        assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY), 0);
        if (i < 3) {
            f->cluster.attach_err = errors[i];
            f->cluster.attach_err_count = 1;
        } else if (i == 3 || i == 4) {
            f->cluster.names_only = i == 3;
            (void)snprintf(volume->name, sizeof(volume->name), "x");
            (void)snprintf(other->name, sizeof(other->name), "v");
            other->lease_epoch = volume->lease_epoch;
        }
        fixture_meta_drop_links(f);
        fixture_run(f, 3 * SIM_S);
        assert_int_equal(client_volume_is_fenced(f->volume), i < 4);
        if (i >= 4)
            fixture_check(f, 0, 4096, 7);
        assert_int_equal(fixture_close(f), i < 4 ? -DL_E_LEASE_OLD : 0);
        fixture_destroy(f);
    }
}

/*
 * What has changed while a reader had no connection it learns when it attaches anew: it counts as
 * one that knows, and what has left the map may be deleted.  The map has several pages.
 */
static void
test_readers_that_missed_a_change(void **state)
{
    struct fixture *f = fixture_create(23, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    uint64_t reads;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(fixture_write(f, i * MIB, 65536, 7), 0);
    assert_int_equal(fixture_close(f), 0);
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY), 0);
    f->cluster.untold = true;
    fixture_meta_down(f);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned place = 0; place < 3; place++)
            if (volume->slots[i][place].server_id == 1)
                fake_meta_set_slot(&f->cluster, volume, i, place,
                                   (struct fake_slot){.server_id = 1,
                                                      .state = DL__SLOT_STATE__SLOT_EJECTED,
                                                      .number = place});
    fixture_meta_up(f);
    fixture_run(f, 3 * SIM_S);
    reads = f->cluster.servers[0].reads;
    for (unsigned i = 0; i < 64; i++)
        fixture_check(f, i % 4 * MIB + i / 4 * 4096, 4096, 7);
    assert_int_equal(f->cluster.servers[0].reads, reads);
    assert_int_equal(fixture_close(f), 0);
    fixture_destroy(f);
}

/* A name that is sent again after it has changed. */
static void
test_a_reader_of_a_renamed_volume(void **state)
{
    struct fixture *f = fixture_create(24, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    uint64_t attaches;

    (void)state;
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY), 0);
    attaches = f->cluster.attaches;
    f->cluster.attach_held = true;
    fixture_meta_drop_links(f);
    fixture_run(f, 3 * SIM_S);
    assert_int_equal(f->cluster.attaches, attaches + 1);
    (void)snprintf(volume->name, sizeof(volume->name), "renamed");
    fixture_push_changed(f, volume, false);
    fixture_run(f, 10 * NS_PER_MS);
    f->cluster.attach_held = false;
    fixture_meta_drop_links(f);
    fixture_run(f, 3 * SIM_S);
    assert_int_equal(f->cluster.attaches, attaches + 2);
    assert_false(client_volume_is_fenced(f->volume));
    assert_int_equal(fixture_close(f), 0);
    fixture_destroy(f);
}

/*
 * News of the map that can't be taken is not answered: that would say that it is known.  It is told
 * again on the next connection.
 */
static void
test_a_map_that_can_not_be_taken(void **state)
{
    struct fixture *f = fixture_create(25, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    uint64_t known, map_gets;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 7), 0);
    fixture_push_map(f, volume, 0);
    fixture_run(f, 10 * NS_PER_MS);
    known = f->cluster.maps_known;
    map_gets = f->cluster.map_gets;
    assert_int_equal(known, 1);
    volume->slots[0][0].number = 77;
    fixture_push_map(f, volume, 0);
    volume->slots[0][0].number = 0;
    fixture_run(f, 3 * SIM_S);
    assert_int_equal(f->cluster.maps_known, known);
    assert_true(fixture_has_event(f, "news of its map can't be used"));
    assert_true(f->cluster.map_gets > map_gets); /* on another connection */
    fixture_push_map(f, volume, 0);
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(f->cluster.maps_known, known + 1);
    fixture_check(f, 0, 4096, 7);
    close_and_check(f, volume);
}

static void
test_open_errors(void **state)
{
    struct fixture *f = fixture_create(14, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "w", 0), -DL_E_VOLUME_UNKNOWN);
    assert_non_null(strstr(f->error.text, "does not exist"));
    volume->owned = true;
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY), -DL_E_VOLUME_BUSY);
    volume->owned = false;
    /* The metadata service is not there. */
    fixture_meta_down(f);
    assert_int_equal(fixture_open(f, "v", 0), -DL_E_META_UNREACHABLE);
    assert_non_null(strstr(f->error.text, "meta:1"));
    assert_true(f->error.hint[0] != '\0');
    fixture_destroy(f);
}

/* A volume that grows: requests beyond the old end are taken from then on. */
static void
test_resize(void **state)
{
    struct fixture *f = fixture_create(15, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
    struct dlblk_volume_geometry geometry;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 4 * MIB, 4096, 7), -DL_E_RANGE);
    volume->size_bytes = 8 * MIB;
    fixture_push_changed(f, volume, false);
    fixture_run(f, 10 * NS_PER_MS);
    client_volume_get_geometry(f->volume, &geometry);
    assert_int_equal(geometry.size_bytes, 8 * MIB);
    assert_int_equal(fixture_write(f, 4 * MIB, 4096, 7), 0);
    fixture_check(f, 4 * MIB, 4096, 7);
    close_and_check(f, volume);
}

UNIT_MAIN(cmocka_unit_test(test_write_and_read), cmocka_unit_test(test_large_requests),
          cmocka_unit_test(test_striped), cmocka_unit_test(test_small_blocks),
          cmocka_unit_test(test_scattered_buffers), cmocka_unit_test(test_zeroes),
          cmocka_unit_test(test_zeroes_beyond_the_request_limit),
          cmocka_unit_test(test_overlapping_requests_keep_their_order),
          cmocka_unit_test(test_flush), cmocka_unit_test(test_a_chain_of_instant_requests),
          cmocka_unit_test(test_wrong_requests), cmocka_unit_test(test_bytes_in_flight_are_bounded),
          cmocka_unit_test(test_a_full_volume_stops_no_other),
          cmocka_unit_test(test_reads_choose_a_slot),
          cmocka_unit_test(test_reads_prefer_the_same_host), cmocka_unit_test(test_read_only),
          cmocka_unit_test(test_readers_that_can_not_come_back),
          cmocka_unit_test(test_readers_that_missed_a_change),
          cmocka_unit_test(test_a_reader_of_a_renamed_volume),
          cmocka_unit_test(test_a_map_that_can_not_be_taken), cmocka_unit_test(test_open_errors),
          cmocka_unit_test(test_resize))
