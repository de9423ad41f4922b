/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor: what a replicated write, or a read, has to cost on this machine at the least.
 *
 * One client process and N server processes over TCP loopback, nothing else: no metadata, no
 * allocation, no map. A write goes to all N servers; each writes the payload and one 4 KiB journal
 * block per group of frames in parallel, O_DIRECT, with `sync` one fdatasync per group once both
 * are done, and replies. CRC-32C (ISA-L) is computed by the client and checked by each server. Use
 * `sync` where the product flushes. `inline` does the disk I/O with pwrite/pread instead of
 * io_uring, which is cheaper on tmpfs: there the floor is the better of the two. From 64 KiB up it
 * is a reference rather than a bound: it copies once. Print and compare medians of several runs,
 * interleaved with what is compared.
 *
 *   cc -O2 -D_GNU_SOURCE -o floor floor.c -luring -lisal
 *   ./floor w|r QD SECONDS SERVERS DIR [sync] [inline] [seq] [json] [bs=BYTES] [size=MIB]
 *
 * DIR takes SERVERS files of size + 64 MiB (size: 1024 by default), removed at the end.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <isa-l/crc.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAXQD = 256, SLOTS = 2 * MAXQD, MAXSRV = 8, HDR = 64 };
static const off_t JRN = 64ll << 20;
static off_t DATA = 1ll << 30;
static int qd, secs, nsrv, dosync, writing, inl, seq, json;
static size_t bs = 4096;
static const char *dir;

struct hdr {
    uint32_t magic, len;
    uint64_t id, off;
    uint32_t crc, pad[9];
};
_Static_assert(sizeof(struct hdr) == HDR, "header");

static void
die(const char *what)
{
    perror(what);
    exit(1);
}
static double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static void *
abuf(size_t n)
{
    void *p;
    if (posix_memalign(&p, 4096, n))
        die("memalign");
    memset(p, 1, n);
    return p;
}

static int
setup(struct io_uring *r)
{
    if (!io_uring_queue_init(1024, r, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN))
        return 0;
    return io_uring_queue_init(1024, r, 0);
}

/*
 * The server, fully pipelined: receiving, disk I/O and sending overlap. The frames of one receive
 * form a group that shares one journal block; a frame is answered when its data and its group's
 * journal block (and, with sync, one fdatasync of the group) are done.
 */
enum { RECV = 1, SEND, DISK, JOURNAL, SYNC };
#define TAG(kind, i) ((uint64_t)(kind) << 32 | (i))

struct group {
    int journal_left, data_left, synced, first, count, used;
    int member[MAXQD];
};

static void
server(int i, int lfd) /* NOLINT(readability-function-size): one loop */
{
    char path[256];
    snprintf(path, sizeof path, "%s/floor%d", dir, i);
    int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (fd < 0)
        die(path);
    char *z = abuf(1 << 20);
    for (off_t o = 0; o < DATA + JRN; o += 1 << 20) {
        memset(z, o >> 20, 1 << 20);
        if (pwrite(fd, z, 1 << 20, o) != 1 << 20)
            die("prefill");
    }
    fsync(fd);
    int s = accept(lfd, 0, 0), one = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int sz = 4 << 20;
    setsockopt(s, SOL_SOCKET, SO_RCVBUF, &sz, sizeof sz);
    setsockopt(s, SOL_SOCKET, SO_SNDBUF, &sz, sizeof sz);
    struct io_uring r;
    if (setup(&r))
        die("uring");
    size_t in_frame = HDR + (writing ? bs : 0), out_frame = HDR + (writing ? 0 : bs),
           in_size = in_frame * MAXQD + 8192;
    char *in = abuf(in_size), *data = abuf(bs * SLOTS), *jrn = abuf(4096);
    static struct hdr out[SLOTS];
    static struct group groups[SLOTS];
    static int group_of[SLOTS], data_done[SLOTS];
    static int free_slot[SLOTS], ready[SLOTS], in_send[SLOTS];
    int nfree = 0, nready = 0, n_in_send = 0, receiving = 0, sending = 0;
    static struct iovec iov[2 * SLOTS];
    struct msghdr m;
    size_t have = 0, to_send = 0, sent = 0;
    off_t jpos = 0;
    for (int k = 0; k < SLOTS; k++)
        free_slot[nfree++] = k;
    for (;;) {
        struct io_uring_sqe *q;
        struct io_uring_cqe *c;
        if (!receiving && have < in_size) {
            q = io_uring_get_sqe(&r);
            io_uring_prep_recv(q, s, in + have, in_size - have, 0);
            q->user_data = TAG(RECV, 0);
            receiving = 1;
        }
        if (!sending && nready) {
            m = (struct msghdr){.msg_iov = iov};
            to_send = sent = 0;
            for (int k = 0; k < nready; k++) {
                int f = ready[k];
                iov[m.msg_iovlen++] = (struct iovec){&out[f], HDR};
                if (!writing)
                    iov[m.msg_iovlen++] = (struct iovec){data + f * bs, bs};
                to_send += out_frame;
                in_send[n_in_send++] = f; /* the slot is free again when the send is done */
            }
            nready = 0;
            sending = 1;
            q = io_uring_get_sqe(&r);
            io_uring_prep_sendmsg(q, s, &m, MSG_NOSIGNAL | MSG_WAITALL);
            q->user_data = TAG(SEND, 0);
        }
        io_uring_submit_and_wait(&r, 1);
        while (!io_uring_peek_cqe(&r, &c)) {
            int kind = c->user_data >> 32, id = (uint32_t)c->user_data, n = c->res;
            io_uring_cqe_seen(&r, c);
            struct group *g = 0;
            if (kind == RECV) {
                if (n <= 0)
                    exit(0);
                receiving = 0;
                have += n;
                size_t frames = have / in_frame, f;
                if (!frames)
                    continue;
                int gi = 0;
                while (groups[gi].used)
                    gi++;
                g = &groups[gi];
                *g = (struct group){.used = 1, .journal_left = writing};
                for (f = 0; f < frames && nfree; f++) {
                    struct hdr *h = (void *)(in + f * in_frame);
                    int slot = free_slot[--nfree];
                    char *d = data + slot * bs;
                    out[slot] = *h;
                    group_of[slot] = gi;
                    data_done[slot] = 0;
                    g->member[g->count++] = slot;
                    g->data_left++;
                    if (writing) {
                        memcpy(d, (char *)h + HDR, bs);
                        if (crc32_iscsi((unsigned char *)d, bs, ~0u) != h->crc) {
                            fprintf(stderr, "crc\n");
                            exit(1);
                        }
                    }
                    if (inl) {
                        if ((writing ? pwrite(fd, d, bs, JRN + h->off)
                                     : pread(fd, d, bs, JRN + h->off)) != (ssize_t)bs)
                            die("I/O");
                        if (!writing)
                            out[slot].crc = crc32_iscsi((unsigned char *)d, bs, ~0u);
                        data_done[slot] = 1;
                        g->data_left--;
                        continue;
                    }
                    q = io_uring_get_sqe(&r);
                    if (writing)
                        io_uring_prep_write(q, fd, d, bs, JRN + h->off);
                    else
                        io_uring_prep_read(q, fd, d, bs, JRN + h->off);
                    q->user_data = TAG(DISK, slot);
                }
                if (writing && inl) {
                    if (pwrite(fd, jrn, 4096, jpos) != 4096)
                        die("journal");
                    jpos = (jpos + 4096) % JRN;
                    g->journal_left = 0;
                } else if (writing) {
                    q = io_uring_get_sqe(&r);
                    io_uring_prep_write(q, fd, jrn, 4096, jpos);
                    q->user_data = TAG(JOURNAL, gi);
                    jpos = (jpos + 4096) % JRN;
                }
                memmove(in, in + f * in_frame, have -= f * in_frame);
                if (!f) {
                    g->used = 0;
                    continue;
                }
                if (!inl)
                    continue;
                kind = JOURNAL;
                id = gi;
                n = 0;
            }
            if (n < 0) {
                errno = -n;
                die("I/O");
            }
            if (kind == SEND) {
                sent += n;
                sending = 0;
                if (sent < to_send) {
                    fprintf(stderr, "short send\n");
                    exit(1);
                }
                while (n_in_send)
                    free_slot[nfree++] = in_send[--n_in_send];
                continue;
            }
            g = &groups[kind == DISK ? group_of[id] : id];
            if (kind == DISK) {
                if ((size_t)n != bs) {
                    fprintf(stderr, "short disk I/O\n");
                    exit(1);
                }
                data_done[id] = 1;
                g->data_left--;
                if (!writing)
                    out[id].crc = crc32_iscsi((unsigned char *)data + id * bs, bs, ~0u);
            }
            if (kind == JOURNAL)
                g->journal_left = 0;
            if (kind == SYNC)
                g->synced = 1;
            if (dosync && writing) {
                if (!g->data_left && !g->journal_left && !g->synced) {
                    q = io_uring_get_sqe(&r);
                    io_uring_prep_fsync(q, fd, IORING_FSYNC_DATASYNC);
                    q->user_data = TAG(SYNC, g - groups);
                    continue;
                }
                if (!g->synced)
                    continue;
            } else if (g->journal_left)
                continue;
            int open = 0;
            for (int k = 0; k < g->count; k++) {
                int slot = g->member[k];
                if (slot < 0)
                    continue;
                if (!data_done[slot]) {
                    open++;
                    continue;
                }
                ready[nready++] = slot;
                g->member[k] = -1;
            }
            if (!open)
                g->used = 0;
        }
    }
}

int
main(int argc, char **argv) /* NOLINT(readability-function-size) */
{
    if (argc < 6) {
        fprintf(stderr, "floor w|r QD SECONDS SERVERS DIR [sync] [inline] [seq] [json] [bs=BYTES] "
                        "[size=MIB]\n");
        return 2;
    }
    writing = argv[1][0] == 'w';
    qd = (int)strtol(argv[2], NULL, 10);
    secs = (int)strtol(argv[3], NULL, 10);
    nsrv = (int)strtol(argv[4], NULL, 10);
    dir = argv[5];
    for (int i = 6; i < argc; i++) {
        if (!strcmp(argv[i], "sync"))
            dosync = 1;
        else if (!strcmp(argv[i], "inline"))
            inl = 1;
        else if (!strcmp(argv[i], "seq"))
            seq = 1;
        else if (!strcmp(argv[i], "json"))
            json = 1;
        else if (!strncmp(argv[i], "bs=", 3))
            bs = (int)strtol(argv[i] + 3, NULL, 10);
        else if (!strncmp(argv[i], "size=", 5))
            DATA = (off_t)(int)strtol(argv[i] + 5, NULL, 10) << 20;
        else {
            fprintf(stderr, "floor: %s?\n", argv[i]);
            return 2;
        }
    }
    if (qd < 1 || qd > MAXQD || nsrv < 1 || nsrv > MAXSRV || secs < 1 || bs < 4096 || bs % 4096 ||
        DATA < (off_t)bs || DATA % bs) {
        fprintf(stderr, "floor: an argument is out of range\n");
        return 2;
    }
    int fd[MAXSRV];
    pid_t pid[MAXSRV];
    for (int i = 0; i < nsrv; i++) {
        int l = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t al = sizeof a;
        if (bind(l, (void *)&a, al) || listen(l, 1))
            die("listen");
        getsockname(l, (void *)&a, &al);
        if (!(pid[i] = fork()))
            server(i, l);
        close(l);
        fd[i] = socket(AF_INET, SOCK_STREAM, 0);
        int one = 1;
        setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        int sz = 4 << 20;
        setsockopt(fd[i], SOL_SOCKET, SO_RCVBUF, &sz, sizeof sz);
        setsockopt(fd[i], SOL_SOCKET, SO_SNDBUF, &sz, sizeof sz);
        if (connect(fd[i], (void *)&a, al))
            die("connect");
    }
    struct io_uring r;
    if (setup(&r))
        die("uring");
    char *pay = abuf(bs);
    srandom(1);
    for (size_t i = 0; i < bs; i++)
        pay[i] = random();
    size_t rf = HDR + (writing ? 0 : bs);
    char *in[MAXSRV];
    size_t have[MAXSRV] = {0};
    for (int i = 0; i < nsrv; i++)
        in[i] = abuf(rf * MAXQD + 8192);
    static struct hdr oh[MAXQD];
    static int left[MAXQD];
    static double t0[MAXQD];
    static int todo[MAXQD];
    int ntodo = 0;
    for (int i = 0; i < qd; i++)
        todo[ntodo++] = i;
    uint64_t ops = 0, rr = 0, bytes_out[MAXSRV] = {0};
    double lat = 0, start = 0, end = 0;
    int waiting[MAXSRV] = {0};
    static struct iovec iov[MAXSRV][2 * MAXQD];
    static struct msghdr mh[MAXSRV];
    int sending[MAXSRV] = {0};
    static int pend[MAXSRV][MAXQD];
    int npend[MAXSRV] = {0};
    struct rusage s0, c0;
    getrusage(RUSAGE_SELF, &s0);
    (void)c0;
    double cpu0[MAXSRV];
    long hz = sysconf(_SC_CLK_TCK);
#define SRVCPU(i)                                                                               \
    ({                                                                                          \
        char p[64], b[512];                                                                     \
        snprintf(p, 64, "/proc/%d/stat", pid[i]);                                               \
        FILE *f = fopen(p, "r");                                                                \
        unsigned long u = 0, k = 0;                                                             \
        if (f && fgets(b, 512, f))                                                              \
            sscanf(strrchr(b, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", \
                   &u, &k);                                                                     \
        if (f)                                                                                  \
            fclose(f);                                                                          \
        (double)(u + k) / hz;                                                                   \
    })
    int warm = 1;
    uint64_t next = 0;
    static uint32_t hist[1 << 20];
    double born = now();
    for (;;) {
        double t = now();
        for (int k = 0; k < ntodo; k++) {
            int id = todo[k];
            t0[id] = t;
            oh[id] = (struct hdr){
                .magic = 1,
                .len = bs,
                .id = id,
                .off = (uint64_t)((seq ? next++ : (uint64_t)random()) % (DATA / bs)) * bs};
            if (writing) {
                oh[id].crc = crc32_iscsi((unsigned char *)pay, bs, ~0u);
                left[id] = nsrv;
                for (int i = 0; i < nsrv; i++)
                    pend[i][npend[i]++] = id;
            } else {
                left[id] = 1;
                int i = rr++ % nsrv;
                pend[i][npend[i]++] = id;
            }
        }
        ntodo = 0;
        for (int i = 0; i < nsrv; i++) {
            if (!sending[i] && npend[i]) {
                mh[i] = (struct msghdr){.msg_iov = iov[i]};
                bytes_out[i] = 0;
                for (int k = 0; k < npend[i]; k++) {
                    iov[i][mh[i].msg_iovlen++] = (struct iovec){&oh[pend[i][k]], HDR};
                    bytes_out[i] += HDR;
                    if (writing) {
                        iov[i][mh[i].msg_iovlen++] = (struct iovec){pay, bs};
                        bytes_out[i] += bs;
                    }
                }
                npend[i] = 0;
                sending[i] = 1;
                struct io_uring_sqe *q = io_uring_get_sqe(&r);
                io_uring_prep_sendmsg(q, fd[i], &mh[i], MSG_NOSIGNAL | MSG_WAITALL);
                q->user_data = i * 2;
            }
            if (!waiting[i]) {
                waiting[i] = 1;
                struct io_uring_sqe *q = io_uring_get_sqe(&r);
                io_uring_prep_recv(q, fd[i], in[i] + have[i], rf * MAXQD - have[i], 0);
                q->user_data = i * 2 + 1;
            }
        }
        io_uring_submit_and_wait(&r, 1);
        struct io_uring_cqe *c;
        while (!io_uring_peek_cqe(&r, &c)) {
            int i = c->user_data / 2, isrecv = c->user_data & 1, n = c->res;
            io_uring_cqe_seen(&r, c);
            if (n <= 0) {
                fprintf(stderr, "connection %d: %d\n", i, n);
                return 1;
            }
            if (!isrecv) {
                if ((uint64_t)n != bytes_out[i]) {
                    fprintf(stderr, "short send\n");
                    return 1;
                }
                sending[i] = 0;
                continue;
            }
            waiting[i] = 0;
            have[i] += n;
            size_t f = have[i] / rf;
            double tt = now();
            for (size_t k = 0; k < f; k++) {
                struct hdr *h = (void *)(in[i] + k * rf);
                if (!writing && crc32_iscsi((unsigned char *)h + HDR, bs, ~0u) != h->crc) {
                    fprintf(stderr, "crc\n");
                    return 1;
                }
                if (!--left[h->id]) {
                    double l = (tt - t0[h->id]) * 1e6;
                    ops++;
                    lat += l;
                    hist[l < (1 << 20) - 1 ? (int)l : (1 << 20) - 1]++;
                    todo[ntodo++] = h->id;
                }
            }
            memmove(in[i], in[i] + f * rf, have[i] -= f * rf);
        }
        t = now();
        if (warm && ops > 200 && t - born > 1) {
            warm = 0;
            ops = 0;
            lat = 0;
            memset(hist, 0, sizeof hist);
            start = t;
            end = t + secs;
            getrusage(RUSAGE_SELF, &s0);
            for (int i = 0; i < nsrv; i++)
                cpu0[i] = SRVCPU(i);
        }
        if (!warm && t >= end)
            break;
    }
    double el = now() - start;
    struct rusage s1;
    getrusage(RUSAGE_SELF, &s1);
    double ccpu = (s1.ru_utime.tv_sec - s0.ru_utime.tv_sec) +
                  (s1.ru_stime.tv_sec - s0.ru_stime.tv_sec) +
                  1e-6 * (s1.ru_utime.tv_usec - s0.ru_utime.tv_usec + s1.ru_stime.tv_usec -
                          s0.ru_stime.tv_usec),
           scpu = 0;
    for (int i = 0; i < nsrv; i++)
        scpu += SRVCPU(i) - cpu0[i];
    uint64_t seen = 0;
    int p50 = 0, p99 = 0;
    for (int k = 0; k < 1 << 20; k++) {
        seen += hist[k];
        if (!p50 && seen * 2 >= ops)
            p50 = k;
        if (seen * 100 >= ops * 99) {
            p99 = k;
            break;
        }
    }
    printf(
        json ? "{\"rw\": \"%s\", \"bs\": %zu, \"depth\": %d, \"servers\": %d, "
               "\"sync\": %d, \"inline\": %d, "
               "\"iops\": %.0f, \"bw_mb\": %.1f, "
               "\"lat_us\": {\"mean\": %.1f, \"p50\": %d, \"p99\": %d}, "
               "\"cpu_us\": {\"client\": %.1f, \"servers\": %.1f}}\n"
             : "%s bs=%zu qd=%d servers=%d sync=%d inline=%d: %.0f op/s %.1f MB/s mean %.1f p50 %d "
               "p99 %d us  cpu/op: client %.1f us, servers %.1f us\n",
        writing ? "write" : "read", bs, qd, nsrv, dosync, inl, ops / el, ops * bs / el / 1e6,
        lat / ops, p50, p99, ccpu / ops * 1e6, scpu / ops * 1e6);
    for (int i = 0; i < nsrv; i++) {
        kill(pid[i], SIGKILL);
        waitpid(pid[i], 0, 0);
        char p[256];
        snprintf(p, 256, "%s/floor%d", dir, i);
        unlink(p);
    }
    return 0;
}
