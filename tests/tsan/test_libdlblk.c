/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libdlblk under many threads: submissions, callbacks that submit again, waiting calls, control
 * calls, state, all at the same time on one client; what was written is what is read.  Under the
 * thread sanitizer it also shows that every hand-over is seen.
 *
 * The servers are those of tests/unit/client/fake_servers.h, on a loop and a thread of their own,
 * over sockets.
 */
#include "tests/unit/lib/unit.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/loop.h"
#include "common/net.h"
#include "dlblk/client.h"
#include "tests/unit/client/fake_servers.h"
#include "tests/unit/lib/fake_rng.h"

#define MIB          (1u << 20)
#define SERVERS      3u
#define THREADS      8u
#define REGION_BYTES (2 * MIB) /* of each thread */

/* --- what threads other than cmocka's expect: it could only jump out of its own --- */

static void
expect(bool holds, const char *text, int line, long long seen, long long wanted)
{
    if (holds)
        return;
    (void)fprintf(stderr, "%s:%d: %s: %lld, expected %lld\n", __FILE__, line, text, seen, wanted);
    abort();
}

#define expect_equal(seen, wanted)                                          \
    do {                                                                    \
        long long seen_ = (long long)(seen), wanted_ = (long long)(wanted); \
                                                                            \
        expect(seen_ == wanted_, #seen, __LINE__, seen_, wanted_);          \
    } while (0)
#define expect_same(seen, wanted, length_bytes) \
    expect(memcmp(seen, wanted, length_bytes) == 0, #seen, __LINE__, 0, 0)
#define expect_text(seen, wanted) expect(strcmp(seen, wanted) == 0, #seen, __LINE__, 0, 0)

/* --- the servers' side --- */

struct servers {
    struct loop *loop;
    struct net *net;
    struct fake_cluster cluster;
    struct fake_volume *volume;
    pthread_t thread;
    char meta[sizeof(struct dl_address_text)];
};

static void *
servers_thread(void *argument)
{
    struct servers *servers = argument;

    expect_equal(loop_run(servers->loop), 0);
    return NULL;
}

static void
listen_on(struct servers *servers, const struct link_events *events, void *core, char *ret_address,
          size_t address_bytes)
{
    struct dl_address address = {.host = "127.0.0.1"};
    struct net_listener *listener;
    struct dl_error err;

    assert_int_equal(net_listen(servers->net, &address, events, core, &listener, &err), 0);
    (void)snprintf(ret_address, address_bytes, "%s",
                   dl_address_format(net_listener_address(listener)).text);
}

static void
servers_start(struct servers *servers)
{
    struct dl_error err;

    memset(servers, 0, sizeof(*servers));
    if (loop_create(&servers->loop, NULL, &err) != 0) {
        print_message("%s\n", err.text);
        skip();
    }
    assert_int_equal(net_create(&servers->net, servers->loop, NULL, NULL, &err), 0);
    fake_cluster_init(&servers->cluster, net_env(servers->net));
    for (unsigned i = 0; i < SERVERS; i++) {
        struct fake_server *server = fake_cluster_add_server(&servers->cluster,
                                                             net_env(servers->net), "", "host");

        listen_on(servers, &fake_server_events, server, server->address, sizeof(server->address));
    }
    listen_on(servers, &fake_meta_events, &servers->cluster, servers->meta, sizeof(servers->meta));
    servers->volume = fake_cluster_add_volume(&servers->cluster, "v",
                                              (THREADS + 1) * (uint64_t)REGION_BYTES);
    (void)fake_cluster_add_volume(&servers->cluster, "w", 4 * MIB);
    assert_int_equal(pthread_create(&servers->thread, NULL, servers_thread, servers), 0);
}

struct servers_stop {
    struct loop_message message; /* first */
    struct servers *servers;
};

static void
servers_on_stopped(void *context)
{
    loop_stop(((struct servers *)context)->loop);
}

static void
servers_on_stop(struct loop_message *message)
{
    struct servers *servers = ((struct servers_stop *)message)->servers;

    net_stop(servers->net, servers_on_stopped, servers);
}

static void
servers_end(struct servers *servers)
{
    struct servers_stop stop = {.message = {.fn = servers_on_stop}, .servers = servers};

    loop_post(servers->loop, &stop.message);
    assert_int_equal(pthread_join(servers->thread, NULL), 0);
    fake_cluster_fini(&servers->cluster);
    net_destroy(servers->net);
    loop_destroy(servers->loop);
}

/* --- the client's side --- */

static atomic_uint events;

static void
on_event(void *context, enum dlblk_event_level level, const char *text)
{
    (void)context;
    (void)level;
    expect_equal(text[0] != '\0', true);
    (void)atomic_fetch_add(&events, 1);
}

static struct dlblk_client *
connect_client(const struct servers *servers)
{
    struct dlblk_client_options options = {
        .meta = servers->meta,
        .config_path = "/dev/null",
        .program = "test",
        .on_event = on_event,
    };
    struct dlblk_client *client;
    struct dl_error err;

    assert_int_equal(dlblk_client_create(&client, &options, &err), 0);
    return client;
}

static void
fill(uint8_t *buffer, size_t length_bytes, uint64_t stamp)
{
    for (size_t i = 0; i < length_bytes; i += sizeof(stamp)) {
        uint64_t word = stamp * 1000003 + i;

        memcpy(buffer + i, &word, sizeof(word));
    }
}

/* --- waiting calls from many threads --- */

struct worker {
    struct dlblk_client *client;
    struct dlblk_volume *volume;
    unsigned idx;
    pthread_t thread;
    uint64_t operations;
};

static int
count_run(void *context, uint64_t offset_bytes, uint64_t length_bytes, bool hole)
{
    uint64_t *data_bytes = context;

    (void)offset_bytes;
    *data_bytes += hole ? 0 : length_bytes;
    return 0;
}

/* All functions that wait, in a region of the thread's own. */
static void *
worker_waits(void *argument)
{
    struct worker *worker = argument;
    uint64_t base = worker->idx * (uint64_t)REGION_BYTES;
    uint8_t *written = malloc(65536);
    uint8_t *found = malloc(65536);
    struct fake_rng rng;

    fake_rng_init(&rng, worker->idx);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t length = fake_rng_range(&rng, 1, 16) * 4096;
        uint64_t offset = base + fake_rng_below(&rng, (REGION_BYTES - length) / 4096) * 4096;
        struct dlblk_volume_geometry geometry;
        struct dlblk_volume_stats stats;
        struct dlblk_volume_info info;
        struct dl_error err;
        uint64_t data_bytes = 0;

        fill(written, length, worker->idx * 1000 + i);
        expect_equal(dlblk_write(worker->volume, written, length, offset), 0);
        expect_equal(dlblk_read(worker->volume, found, length, offset), 0);
        expect_same(found, written, length);
        if (i % 10 == 3) {
            expect_equal(dlblk_extents(worker->volume, length, offset, count_run, &data_bytes), 0);
            expect_equal(data_bytes, length);
            expect_equal(dlblk_discard(worker->volume, length, offset), 0);
            expect_equal(dlblk_read(worker->volume, found, length, offset), 0);
            memset(written, 0, length);
            expect_same(found, written, length);
        }
        if (i % 10 == 5) {
            expect_equal(dlblk_flush(worker->volume), 0);
            expect_equal(dlblk_volume_info(worker->client, "v", &info, &err), 0);
            expect_text(info.name, "v");
            expect_equal(dlblk_volume_info(worker->client, "x", &info, &err), -DL_E_VOLUME_UNKNOWN);
            expect_text(err.text, "volume does not exist");
        }
        dlblk_volume_get_geometry(worker->volume, &geometry);
        expect_equal(geometry.size_bytes, (THREADS + 1) * (uint64_t)REGION_BYTES);
        dlblk_volume_get_stats(worker->volume, &stats);
        worker->operations += 2;
    }
    free(written);
    free(found);
    return NULL;
}

/* --- submissions, and callbacks that submit again --- */

struct chain {
    struct dlblk_request request;
    struct dlblk_volume *volume;
    struct fake_rng rng;
    uint64_t base, stamp;
    unsigned left;
    uint8_t buffer[8192], expected[8192];
    sem_t *done;
};

static void
chain_next(struct chain *chain)
{
    struct dlblk_request *request = &chain->request;

    if (request->op == DLBLK_WRITE) {
        request->op = DLBLK_READ;
        memcpy(chain->expected, chain->buffer, sizeof(chain->buffer));
        memset(chain->buffer, 0, sizeof(chain->buffer));
    } else {
        request->op = DLBLK_WRITE;
        request->offset_bytes = chain->base + fake_rng_below(&chain->rng, 7) * 4096;
        fill(chain->buffer, sizeof(chain->buffer), ++chain->stamp);
    }
    dlblk_submit(chain->volume, request);
}

static void
chain_on_done(struct dlblk_request *request, int err)
{
    struct chain *chain = request->context;

    expect_equal(err, 0);
    if (request->op == DLBLK_READ)
        expect_same(chain->buffer, chain->expected, sizeof(chain->buffer));
    if (--chain->left > 0)
        chain_next(chain);
    else
        (void)sem_post(chain->done);
}

#define CHAINS 12u

static void *
worker_submits(void *argument)
{
    struct worker *worker = argument;
    struct chain *chains = calloc(CHAINS, sizeof(*chains));
    sem_t done;

    expect_equal(sem_init(&done, 0, 0), 0);
    for (unsigned i = 0; i < CHAINS; i++) {
        struct chain *chain = &chains[i];

        chain->volume = worker->volume;
        chain->base = worker->idx * (uint64_t)REGION_BYTES + i * 65536;
        chain->left = 80;
        chain->done = &done;
        fake_rng_init(&chain->rng, worker->idx * 100 + i);
        chain->request = (struct dlblk_request){
            .op = DLBLK_READ,
            .length_bytes = sizeof(chain->buffer),
            .iov_count = 1,
            .iov_one = {.iov_base = chain->buffer, .iov_len = sizeof(chain->buffer)},
            .on_done = chain_on_done,
            .context = chain,
        };
        chain->request.iov = &chain->request.iov_one;
        chain_next(chain);
    }
    for (unsigned i = 0; i < CHAINS; i++)
        while (sem_wait(&done) != 0)
            ;
    worker->operations = CHAINS * 80;
    (void)sem_destroy(&done);
    free(chains);
    return NULL;
}

/* --- volumes that come and go meanwhile --- */

static void *
worker_opens(void *argument)
{
    struct worker *worker = argument;
    uint8_t block[4096];

    for (unsigned i = 0; i < 15; i++) {
        struct dlblk_volume *volume;
        struct dl_error err;

        expect_equal(dlblk_volume_open(worker->client, "w", 0, &volume, &err), 0);
        fill(block, sizeof(block), i);
        expect_equal(dlblk_write(volume, block, sizeof(block), i * 4096), 0);
        expect_equal(dlblk_volume_close(volume, &err), 0);
        worker->operations++;
    }
    return NULL;
}

static void
run_workers(struct servers *servers, void *(*const functions[])(void *), unsigned function_count)
{
    struct dlblk_client *client = connect_client(servers);
    struct worker workers[THREADS] = {0};
    struct dlblk_volume *volume;
    struct dlblk_volume_stats stats;
    uint64_t operations = 0;
    struct dl_error err;

    assert_int_equal(dlblk_volume_open(client, "v", 0, &volume, &err), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].client = client;
        workers[i].volume = volume;
        workers[i].idx = i;
        assert_int_equal(pthread_create(&workers[i].thread, NULL,
                                        functions[i < function_count ? i : function_count - 1],
                                        &workers[i]),
                         0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        operations += workers[i].operations;
    }
    dlblk_volume_get_stats(volume, &stats);
    assert_int_equal(stats.in_flight, 0);
    assert_true(stats.writes + stats.reads > 900);
    assert_true(operations > 900);
    assert_int_equal(dlblk_volume_close(volume, &err), 0);
    dlblk_client_destroy(client);
}

static void
test_waiting_calls(void **state)
{
    static void *(*const functions[])(void *) = {worker_waits};
    struct servers servers;

    (void)state;
    servers_start(&servers);
    run_workers(&servers, functions, 1);
    servers_end(&servers);
    assert_true(servers.volume->clean);
}

static void
test_everything_at_once(void **state)
{
    static void *(*const functions[])(void *) = {worker_opens, worker_waits, worker_waits,
                                                 worker_submits};
    struct servers servers;

    (void)state;
    servers_start(&servers);
    run_workers(&servers, functions, 4);
    servers_end(&servers);
    assert_true(servers.volume->clean);
}

/* A function that waits, called from where nobody could do what it waits for. */
static void
on_done_wrong(struct dlblk_request *request, int err)
{
    struct chain *chain = request->context;
    struct dlblk_volume_stats stats;
    struct dl_error error;
    uint8_t byte[4096];

    expect_equal(err, 0);
    expect_equal(dlblk_read(chain->volume, byte, sizeof(byte), 0), -EDEADLK);
    expect_equal(dlblk_volume_close(chain->volume, &error), -EDEADLK);
    dlblk_volume_get_stats(chain->volume, &stats); /* this one may be */
    expect_equal(stats.flushes, 1);
    (void)sem_post(chain->done);
}

static void
test_waiting_calls_from_a_callback(void **state)
{
    struct servers servers;
    struct dlblk_client *client;
    struct chain chain = {0};
    struct dl_error err;
    sem_t done;

    (void)state;
    servers_start(&servers);
    client = connect_client(&servers);
    assert_int_equal(dlblk_volume_open(client, "v", 0, &chain.volume, &err), 0);
    assert_int_equal(sem_init(&done, 0, 0), 0);
    chain.done = &done;
    chain.request = (struct dlblk_request){
        .op = DLBLK_FLUSH, .on_done = on_done_wrong, .context = &chain};
    dlblk_submit(chain.volume, &chain.request);
    while (sem_wait(&done) != 0)
        ;
    (void)sem_destroy(&done);
    assert_int_equal(dlblk_volume_close(chain.volume, &err), 0);
    dlblk_client_destroy(client);
    servers_end(&servers);
}

/*
 * Nobody there, nonsense in the options, a file that is not there: errors that say so, and nothing
 * left behind.
 */
static void
test_errors_of_create(void **state)
{
    struct dlblk_client_options options = {
        .meta = "127.0.0.1:1", .config_path = "/dev/null", .connect_timeout_ms = 300};
    struct dlblk_client *client = NULL;
    struct dl_error err;

    (void)state;
    assert_int_equal(dlblk_client_create(&client, &options, &err), -DL_E_META_UNREACHABLE);
    assert_non_null(strstr(err.text, "127.0.0.1:1"));
    assert_true(err.hint[0] != '\0');
    options.meta = "host:port:nonsense:";
    assert_int_equal(dlblk_client_create(&client, &options, &err), -DL_E_CONFIG_INVALID);
    options.meta = "127.0.0.1:1";
    options.config_path = "/nonexistent/dlblk.conf";
    assert_int_equal(dlblk_client_create(&client, &options, &err), -ENOENT);
    assert_null(client);
    dlblk_client_destroy(NULL);
}

/* The option, then DLBLK_META, then the file. */
static void
test_order_of_settings(void **state)
{
    struct servers servers;
    struct dlblk_client_options options = {.connect_timeout_ms = 300};
    struct dlblk_client *client;
    char path[] = "/tmp/dlblk-test-XXXXXX";
    int fd = mkstemp(path);
    struct dl_error err;
    char text[sizeof(servers.meta) + 32];

    (void)state;
    assert_true(fd >= 0);
    servers_start(&servers);
    (void)snprintf(text, sizeof(text), "[cluster]\nmeta = %s\n", servers.meta);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    options.config_path = path;
    assert_int_equal(dlblk_client_create(&client, &options, &err), 0);
    dlblk_client_destroy(client);

    assert_int_equal(setenv("DLBLK_META", "127.0.0.1:1", 1), 0);
    assert_int_equal(dlblk_client_create(&client, &options, &err), -DL_E_META_UNREACHABLE);
    options.meta = servers.meta;
    assert_int_equal(dlblk_client_create(&client, &options, &err), 0);
    dlblk_client_destroy(client);

    options.meta = NULL;
    options.config_path = "/dev/null";
    assert_int_equal(setenv("DLBLK_META", servers.meta, 1), 0);
    assert_int_equal(dlblk_client_create(&client, &options, &err), 0);
    dlblk_client_destroy(client);
    assert_int_equal(unsetenv("DLBLK_META"), 0);
    (void)close(fd);
    (void)unlink(path);
    servers_end(&servers);
}

UNIT_MAIN(cmocka_unit_test(test_waiting_calls), cmocka_unit_test(test_everything_at_once),
          cmocka_unit_test(test_waiting_calls_from_a_callback),
          cmocka_unit_test(test_errors_of_create), cmocka_unit_test(test_order_of_settings))
