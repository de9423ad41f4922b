/* SPDX-License-Identifier: Apache-2.0 */
/*
 * perf_net: what links cost: WRITE- and READ-like frames between one client and some servers over
 * loopback.
 *
 * The traffic of floor.c, through loop.c, net.c and frame.c: a write goes to all servers, each
 * answers with a status; a read goes to one of them in turn, and comes back with its data.  CRC-32C
 * is computed by the client and checked by each server for writes, and the other way round for
 * reads.  With dir= the servers do floor's `inline` disk I/O too: the payload, and one 4 KiB
 * journal block per turn, so that both can be compared.
 *
 *   perf_net w|r DEPTH SECONDS SERVERS [bs=BYTES] [dir=DIR] [buffer=BYTES]
 *   [socket=BYTES] [nocrc]
 *
 * Prints operations per second, latency, and processor time per operation of client and servers.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/crc32c.h"
#include "common/hist.h"
#include "common/list.h"
#include "common/loop.h"
#include "common/net.h"
#include "dlblk/error.h"
#include "proto/frame.h"

#define DEPTH_MAX     256u
#define SERVERS_MAX   8u
#define SLOTS         (2 * DEPTH_MAX)
#define JOURNAL_BYTES (64ull << 20)
#define DATA_BYTES    (256ull << 20)

static bool writing, with_crc = true;
static uint32_t depth, server_count, sectors = 1;
static uint64_t seconds;
static const char *dir;
static struct net_options net_options;

__attribute__((noreturn)) static void
die(const char *what, int err)
{
    fprintf(stderr, "perf_net: %s: %s\n", what, dl_err_str(err));
    exit(EXIT_FAILURE);
}

static void *
buffer_new(size_t bytes)
{
    void *buffer = aligned_alloc(4096, bytes);

    if (buffer == NULL)
        die("buffer", -ENOMEM);
    memset(buffer, 1, bytes);
    return buffer;
}

/* --- server --- */

struct server_op {
    struct frame_out reply;
    uint8_t *payload;
    uint8_t crcs_and_kinds[WIRE_IO_SECTORS_MAX * 5 + 4];
    struct list node;
};

struct server {
    struct loop *loop;
    struct net *net;
    struct list free_ops;
    struct server_op *taken; /* between on_payload and on_frame */
    int fd;
    uint8_t *journal;
    uint64_t journal_offset;
    bool journal_dirty;
};

static struct server server;

static struct server_op *
server_op_take(void)
{
    struct list *node = list_pop_front(&server.free_ops);

    if (node == NULL)
        die("more requests than agreed", -DL_E_LIMIT);
    return list_entry(node, struct server_op, node);
}

static void
server_on_sent(struct frame_out *frame, int err)
{
    (void)err;
    list_push_front(&server.free_ops, &list_entry(frame, struct server_op, reply)->node);
}

static void *
server_on_payload(void *core, struct link *link, const struct frame *frame)
{
    (void)core, (void)link, (void)frame;
    server.taken = server_op_take();
    return server.taken->payload;
}

static void
server_write(struct link *link, const struct frame *frame)
{
    struct server_op *op = server.taken;
    struct data_write write;
    int err = data_write_decode(frame, &write);

    if (err != 0)
        die("WRITE", err);
    server.taken = NULL;
    for (uint32_t i = 0; with_crc && i < write.crc_count; i++)
        if (crc32c(0, op->payload + i * 4096ul, 4096) != le32_load(write.crcs_le + i * 4ul))
            die("payload", -DL_E_CRC_WIRE);
    if (server.fd >= 0) {
        if (pwrite(server.fd, op->payload, sectors * 4096ul,
                   (off_t)(JOURNAL_BYTES + write.target.offset_sectors * 4096ull)) < 0)
            die("pwrite", -errno);
        server.journal_dirty = true;
    }
    frame_out_empty(&op->reply, OP_WRITE, FRAME_REPLY, frame->request_id, 0);
    op->reply.on_sent = server_on_sent;
    link_send(link, &op->reply);
}

static void
server_read(struct link *link, const struct frame *frame)
{
    struct server_op *op = server_op_take();
    struct data_read read;
    int err = data_read_decode(frame, &read);

    if (err != 0)
        die("READ", err);
    if (server.fd >= 0 && pread(server.fd, op->payload, sectors * 4096ul,
                                (off_t)(JOURNAL_BYTES + read.target.offset_sectors * 4096ull)) < 0)
        die("pread", -errno);
    for (uint32_t i = 0; with_crc && i < sectors; i++)
        le32_store(op->crcs_and_kinds + i * 4ul, crc32c(0, op->payload + i * 4096ul, 4096));
    frame_out_read_reply(&op->reply, frame->request_id, sectors, sectors, op->crcs_and_kinds,
                         op->payload, sectors * 4096);
    op->reply.on_sent = server_on_sent;
    link_send(link, &op->reply);
}

static void
server_on_frame(void *core, struct link *link, const struct frame *frame)
{
    (void)core;
    if (frame->opcode == OP_WRITE)
        server_write(link, frame);
    else
        server_read(link, frame);
}

static void
server_on_accept(void *core, struct link *link)
{
    (void)core, (void)link;
}

static void
server_on_down(void *core, struct link *link, int err)
{
    (void)core, (void)link, (void)err;
    loop_stop(server.loop);
}

/* As floor does: one journal block for all that came in one turn. */
static void
server_turn_end(void *context)
{
    (void)context;
    if (!server.journal_dirty)
        return;
    server.journal_dirty = false;
    if (pwrite(server.fd, server.journal, 4096, (off_t)server.journal_offset) != 4096)
        die("journal", -errno);
    server.journal_offset = (server.journal_offset + 4096) % JOURNAL_BYTES;
}

static const struct link_events server_events = {
    .on_accept = server_on_accept,
    .on_payload = server_on_payload,
    .on_frame = server_on_frame,
    .on_down = server_on_down,
};

static void
server_open_file(unsigned number)
{
    char path[4096];
    uint8_t *zeroes;

    server.fd = -1;
    if (dir == NULL)
        return;
    (void)snprintf(path, sizeof(path), "%s/perf_net.%u", dir, number);
    server.fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (server.fd < 0)
        die(path, -errno);
    (void)unlink(path);
    zeroes = buffer_new(1 << 20);
    for (uint64_t offset = 0; offset < JOURNAL_BYTES + DATA_BYTES; offset += 1 << 20)
        if (pwrite(server.fd, zeroes, 1 << 20, (off_t)offset) != 1 << 20)
            die(path, -errno);
    free(zeroes);
}

__attribute__((noreturn)) static void
server_main(unsigned number, int port_fd)
{
    struct dl_address address = {.host = "127.0.0.1"};
    struct net_listener *listener;
    struct dl_error err;
    struct loop_stats loop_stats;
    struct net_stats net_stats;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    list_init(&server.free_ops);
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct server_op *op = calloc(1, sizeof(*op));

        if (op == NULL)
            die("ops", -ENOMEM);
        op->payload = buffer_new(sectors * 4096ul);
        memset(op->crcs_and_kinds + sectors * 4ul, WIRE_SECTOR_DATA, sectors);
        list_push_back(&server.free_ops, &op->node);
    }
    server.journal = buffer_new(4096);
    server_open_file(number);
    if (loop_create(&server.loop, NULL, &err) != 0 ||
        net_create(&server.net, server.loop, NULL, &net_options, &err) != 0 ||
        net_listen(server.net, &address, &server_events, NULL, &listener, &err) != 0) {
        fprintf(stderr, "perf_net: %s\n", err.text);
        exit(EXIT_FAILURE);
    }
    loop_add_turn_end(server.loop, server_turn_end, NULL);
    if (write(port_fd, &net_listener_address(listener)->port, sizeof(uint16_t)) != sizeof(uint16_t))
        die("pipe", -errno);
    (void)loop_run(server.loop);
    if (getenv("PERF_NET_STATS") != NULL) {
        loop_get_stats(server.loop, &loop_stats);
        net_get_stats(server.net, &net_stats);
        fprintf(stderr,
                "server %u: %lu turns %lu enters %lu completions, %lu frames in, %lu receives %lu "
                "sends\n",
                number, loop_stats.turns, loop_stats.enters, loop_stats.completions,
                net_stats.frames_in, net_stats.receives, net_stats.sends);
    }
    _exit(0);
}

/* --- client --- */

struct client_op {
    struct frame_out frames[SERVERS_MAX];
    uint8_t *payload;
    le32 crcs[WIRE_IO_SECTORS_MAX];
    uint64_t started_ns;
    uint32_t pending; /* replies, and frames that belong to their links */
    struct iovec payload_iov;
};

struct client {
    struct loop *loop;
    struct net *net;
    struct link *links[SERVERS_MAX];
    pid_t pids[SERVERS_MAX];
    uint32_t links_up;
    struct client_op ops[DEPTH_MAX];
    uint64_t random_state, next_server;
    bool measuring;
    uint64_t begin_ns, end_ns, done;
    struct hist latency;
    double cpu_client, cpu_servers;
    struct env_timer timer;
};

static struct client client;

static void client_op_start(struct client_op *op);

static void
client_op_release(struct client_op *op)
{
    if (--op->pending > 0)
        return;
    client.done++;
    if (client.measuring)
        hist_record(&client.latency, loop_clock_ns() - op->started_ns);
    client_op_start(op);
}

static void
client_on_sent(struct frame_out *frame, int err)
{
    struct client_op *op = NULL;

    if (err != 0)
        die("send", err);
    for (uint32_t i = 0; i < depth && op == NULL; i++)
        if ((uint8_t *)frame >= (uint8_t *)&client.ops[i] &&
            (uint8_t *)frame < (uint8_t *)&client.ops[i + 1])
            op = &client.ops[i];
    if (op != NULL)
        client_op_release(op);
}

static void
client_op_write(struct client_op *op, uint64_t id, uint32_t offset_sectors)
{
    struct data_write write = {
        .target = {.volume = 1,
                   .config_epoch = 1,
                   .lease_epoch = 1,
                   .offset_sectors = offset_sectors,
                   .length_sectors = sectors},
        .version = (1ull << WIRE_VERSION_SEQUENCE_BITS) + 2,
        .stable_version = 1,
        .snapshot_seq = 1,
        .slot_mask = 7,
        .crc_count = sectors,
    };

    for (uint32_t i = 0; with_crc && i < sectors; i++)
        op->crcs[i] = le32_of(crc32c(0, op->payload + i * 4096ul, 4096));
    op->payload_iov = (struct iovec){.iov_base = op->payload, .iov_len = sectors * 4096ul};
    op->pending = 2 * server_count;
    for (uint32_t i = 0; i < server_count; i++) {
        frame_out_write(&op->frames[i], id, &write, op->crcs, &op->payload_iov, 1);
        op->frames[i].on_sent = client_on_sent;
        link_send(client.links[i], &op->frames[i]);
    }
}

static void
client_op_start(struct client_op *op)
{
    uint64_t id = (uint64_t)(op - client.ops);
    struct data_read read = {
        .target = {.volume = 1, .config_epoch = 1, .lease_epoch = 1, .length_sectors = sectors}};
    uint32_t offset_sectors;

    dl_assert(sectors > 0);
    client.random_state = client.random_state * 6364136223846793005ull + 1442695040888963407ull;
    offset_sectors = (uint32_t)(client.random_state >> 33) %
                     (uint32_t)(DATA_BYTES / 4096 / sectors) * sectors;
    op->started_ns = loop_clock_ns();
    if (writing) {
        client_op_write(op, id, offset_sectors);
        return;
    }
    read.target.offset_sectors = offset_sectors;
    op->pending = 2;
    frame_out_read(&op->frames[0], id, &read);
    op->frames[0].on_sent = client_on_sent;
    link_send(client.links[client.next_server++ % server_count], &op->frames[0]);
}

static void *
client_on_payload(void *core, struct link *link, const struct frame *frame)
{
    (void)core, (void)link;
    return client.ops[frame->request_id].payload;
}

static void
client_on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct data_read_reply reply;
    int err;

    (void)core, (void)link;
    if (frame->opcode == OP_READ) {
        err = data_read_reply_decode(frame, &reply);
        if (err != 0)
            die("READ reply", err);
        for (uint32_t i = 0; with_crc && i < sectors; i++)
            if (crc32c(0, (uint8_t *)frame->payload + i * 4096ul, 4096) !=
                le32_load(reply.crcs_le + i * 4ul))
                die("payload", -DL_E_CRC_WIRE);
    }
    client_op_release(&client.ops[frame->request_id]);
}

static double
cpu_of_self(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static double
cpu_of_servers(void)
{
    double sum = 0;

    for (uint32_t i = 0; i < server_count; i++) {
        char path[64];
        unsigned long long ns = 0;
        FILE *file;

        (void)snprintf(path, sizeof(path), "/proc/%d/schedstat", client.pids[i]);
        file = fopen(path, "re");
        if (file == NULL || fscanf(file, "%llu", &ns) != 1)
            die(path, -errno);
        (void)fclose(file);
        sum += (double)ns * 1e-9;
    }
    return sum;
}

/* Half a second to warm up, then the measured time. */
static void
client_on_timer(struct env_timer *timer)
{
    if (client.measuring) {
        client.end_ns = loop_clock_ns();
        client.cpu_client = cpu_of_self() - client.cpu_client;
        client.cpu_servers = cpu_of_servers() - client.cpu_servers;
        loop_stop(client.loop);
        return;
    }
    client.measuring = true;
    client.done = 0;
    client.cpu_client = cpu_of_self();
    client.cpu_servers = cpu_of_servers();
    client.begin_ns = loop_clock_ns();
    loop_timer_start(client.loop, timer, seconds * NS_PER_S);
}

static void
client_on_up(void *core, struct link *link)
{
    (void)core, (void)link;
    if (++client.links_up < server_count)
        return;
    for (uint32_t i = 0; i < depth; i++)
        client_op_start(&client.ops[i]);
    loop_timer_start(client.loop, &client.timer, NS_PER_S / 2);
}

static void
client_on_down(void *core, struct link *link, int err)
{
    (void)core, (void)link;
    die("connection", err);
}

static const struct link_events client_events = {
    .on_up = client_on_up,
    .on_payload = client_on_payload,
    .on_frame = client_on_frame,
    .on_down = client_on_down,
};

static void
client_run(const uint16_t *ports)
{
    struct dl_error err;
    struct loop_stats loop_stats;
    struct net_stats net_stats;
    double elapsed;
    double ops;

    client.random_state = 1;
    client.timer.fn = client_on_timer;
    if (loop_create(&client.loop, NULL, &err) != 0 ||
        net_create(&client.net, client.loop, NULL, &net_options, &err) != 0) {
        fprintf(stderr, "perf_net: %s\n", err.text);
        exit(EXIT_FAILURE);
    }
    for (uint32_t i = 0; i < depth; i++)
        client.ops[i].payload = buffer_new(sectors * 4096ul);
    for (uint32_t i = 0; i < server_count; i++) {
        struct dl_address address = {.host = "127.0.0.1", .port = ports[i]};

        client.links[i] = link_connect(net_env(client.net), &address, &client_events, &client,
                                       NULL);
    }
    if (loop_run(client.loop) != 0)
        die("loop", -EIO);
    elapsed = (double)(client.end_ns - client.begin_ns) * 1e-9;
    ops = (double)client.done;
    printf("%s bs=%u depth=%u servers=%u: %.0f op/s %.1f MB/s mean %.1f p50 %.1f p99 %.1f us  "
           "cpu/op: client %.2f us, servers %.2f us, together %.2f us\n",
           writing ? "write" : "read", sectors * 4096, depth, server_count, ops / elapsed,
           ops * sectors * 4096 / elapsed * 1e-6, hist_mean(&client.latency) * 1e-3,
           (double)hist_percentile(&client.latency, 50) * 1e-3,
           (double)hist_percentile(&client.latency, 99) * 1e-3, client.cpu_client / ops * 1e6,
           client.cpu_servers / ops * 1e6, (client.cpu_client + client.cpu_servers) / ops * 1e6);
    if (getenv("PERF_NET_STATS") != NULL) {
        loop_get_stats(client.loop, &loop_stats);
        net_get_stats(client.net, &net_stats);
        fprintf(stderr,
                "client: %lu turns %lu enters %lu completions, %lu frames in, %lu receives %lu "
                "sends\n",
                loop_stats.turns, loop_stats.enters, loop_stats.completions, net_stats.frames_in,
                net_stats.receives, net_stats.sends);
    }
}

static bool
parse_option(const char *text)
{
    if (strcmp(text, "nocrc") == 0)
        with_crc = false;
    else if (strncmp(text, "bs=", 3) == 0)
        sectors = (uint32_t)strtoul(text + 3, NULL, 10) / 4096;
    else if (strncmp(text, "dir=", 4) == 0)
        dir = text + 4;
    else if (strncmp(text, "buffer=", 7) == 0)
        net_options.receive_buffer_bytes = (uint32_t)strtoul(text + 7, NULL, 10);
    else if (strncmp(text, "socket=", 7) == 0)
        net_options.socket_buffer_bytes = (uint32_t)strtoul(text + 7, NULL, 10);
    else
        return false;
    return sectors >= 1 && sectors <= WIRE_IO_SECTORS_MAX;
}

int
main(int argc, char **argv)
{
    uint16_t ports[SERVERS_MAX];

    if (argc < 5) {
        fprintf(stderr, "usage: perf_net w|r DEPTH SECONDS SERVERS [bs=BYTES] [dir=DIR] "
                        "[buffer=BYTES] [socket=BYTES] [nocrc]\n");
        return EXIT_FAILURE;
    }
    writing = argv[1][0] == 'w';
    depth = (uint32_t)strtoul(argv[2], NULL, 10);
    seconds = strtoull(argv[3], NULL, 10);
    server_count = (uint32_t)strtoul(argv[4], NULL, 10);
    if (depth < 1 || depth > DEPTH_MAX || seconds < 1 || server_count < 1 ||
        server_count > SERVERS_MAX) {
        fprintf(stderr, "perf_net: an argument is out of range\n");
        return EXIT_FAILURE;
    }
    for (int i = 5; i < argc; i++) {
        if (!parse_option(argv[i])) {
            fprintf(stderr, "perf_net: %s?\n", argv[i]);
            return EXIT_FAILURE;
        }
    }
    for (uint32_t i = 0; i < server_count; i++) {
        int fds[2];

        if (pipe(fds) != 0)
            die("pipe", -errno);
        client.pids[i] = fork();
        if (client.pids[i] < 0)
            die("fork", -errno);
        if (client.pids[i] == 0)
            server_main(i, fds[1]);
        (void)close(fds[1]);
        if (read(fds[0], &ports[i], sizeof(ports[i])) != (ssize_t)sizeof(ports[i]))
            die("a server did not start", -EIO);
        (void)close(fds[0]);
    }
    client_run(ports);
    for (uint32_t i = 0; i < server_count; i++)
        (void)kill(client.pids[i], SIGTERM);
    for (uint32_t i = 0; i < server_count; i++)
        (void)waitpid(client.pids[i], NULL, 0);
    return EXIT_SUCCESS;
}
