/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-meta as a program: commands, mistakes and their exit statuses; a served cluster that
 * survives kill -9; the end by SIGTERM. Only loopback; the port is one that was free a moment
 * before.
 */
#include "tests/unit/lib/unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/control.pb-c.h"
#include "proto/frame.h"

struct program_test {
    char dir[64];
    char meta[96]; /* the metadata directory */
    char log[96];
    uint16_t port;
    pid_t pid;
};

static char output[8192]; /* of the last command, stdout and stderr */

/* The exit status. */
static int __attribute__((format(printf, 1, 2))) run(const char *format, ...)
{
    char arguments[1024], command[2048];
    va_list list;
    FILE *pipe;
    size_t bytes;
    int status;

    va_start(list, format);
    (void)vsnprintf(arguments, sizeof(arguments), format, list);
    va_end(list);
    (void)snprintf(command, sizeof(command), "%s %s 2>&1", DLBLK_META_PROGRAM, arguments);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    bytes = fread(output, 1, sizeof(output) - 1, pipe);
    output[bytes] = '\0';
    status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void
expect(int status, const char *text, int got)
{
    if (got != status || strstr(output, text) == NULL)
        fail_msg("status %d, not %d; '%s' in: %s", got, status, text, output);
}

static void
program_init(struct program_test *t)
{
    memset(t, 0, sizeof(*t));
    (void)unsetenv("DLBLK_META_DIR");
    (void)unsetenv("DLBLK_META_LISTEN");
    (void)snprintf(t->dir, sizeof(t->dir), "/tmp/dlblk-test-meta-XXXXXX");
    assert_non_null(mkdtemp(t->dir));
    (void)snprintf(t->meta, sizeof(t->meta), "%s/meta", t->dir);
    (void)snprintf(t->log, sizeof(t->log), "%s/log", t->dir);
}

static void
program_fini(struct program_test *t)
{
    char command[160];

    (void)snprintf(command, sizeof(command), "rm -r %s", t->dir);
    assert_int_equal(system(command), 0);
}

static void
write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* --- mistakes --- */

static void
test_wrong_command_lines(void **state)
{
    struct program_test t;

    (void)state;
    program_init(&t);
    expect(2, "a command is missing", run("%s", ""));
    expect(2, "unknown command 'frob'", run("frob"));
    expect(2, "unknown option '--frob'", run("serve --frob"));
    expect(2, "a value is missing behind '--dir'", run("init --dir"));
    expect(2, "unexpected argument", run("init --dir %s more", t.meta));
    expect(2, "--listen is only for serve", run("init --dir %s --listen 127.0.0.1", t.meta));
    expect(2, "--cluster-id is only for init", run("serve --cluster-id x"));
    expect(2, "--force is only for backup", run("restore --force x"));
    expect(2, "the name of the backup file is missing", run("backup --dir %s", t.meta));
    expect(2, "32 hexadecimal digits", run("init --dir %s --cluster-id 1234", t.meta));
    expect(2, "32 hexadecimal digits",
           run("init --dir %s --cluster-id 00000000-0000-0000-0000-000000000000", t.meta));
    expect(0, "Examples:", run("--help"));
    expect(0, "Examples:", run("serve --help"));
    expect(0, "wire version", run("--version"));
    program_fini(&t);
}

static void
test_configuration(void **state)
{
    struct program_test t;
    char conf[96];

    (void)state;
    program_init(&t);
    (void)snprintf(conf, sizeof(conf), "%s/conf", t.dir);
    expect(1, "No such file", run("serve --config %s/nowhere --check-config", t.dir));
    write_text(conf, "[meta]\npath = /from/file\nlisten = 127.0.0.2:1111\n");
    expect(0, "directory /from/file, listening on 127.0.0.2:1111",
           run("serve --config %s --check-config", conf));
    /* flag > environment > file */
    assert_int_equal(setenv("DLBLK_META_LISTEN", "127.0.0.3:2222", 1), 0);
    assert_int_equal(setenv("DLBLK_META_DIR", "/from/environment", 1), 0);
    expect(0, "directory /from/environment, listening on 127.0.0.3:2222",
           run("serve --config %s --check-config", conf));
    expect(0, "directory /from/flag, listening on [::1]:3333",
           run("serve --config %s --check-config --dir /from/flag --listen [::1]:3333", conf));
    assert_int_equal(setenv("DLBLK_META_LISTEN", "a b", 1), 0);
    expect(2, "DLBLK_META_LISTEN", run("serve --config %s --check-config", conf));
    assert_int_equal(unsetenv("DLBLK_META_LISTEN"), 0);
    assert_int_equal(unsetenv("DLBLK_META_DIR"), 0);
    write_text(conf, "[meta]\nlitsen = 127.0.0.1\n");
    expect(2, "litsen", run("serve --config %s --check-config", conf));
    write_text(conf, "[meta]\nlisten = 127.0.0.1:99999\n");
    expect(2, conf, run("serve --config %s --check-config", conf));
    write_text(conf, "[meta]\nout_after = never\nrecovery_per_server = 8\nrebalance = off\n");
    expect(0, "no mistakes", run("serve --config %s --check-config", conf));
    write_text(conf, "[meta]\nout_after = 5s\n");
    expect(2, "'5s' is not between 10s and 30d", run("serve --config %s --check-config", conf));
    write_text(conf, "[meta]\nrecovery_per_server = 0\n");
    expect(2, "recovery_per_server", run("serve --config %s --check-config", conf));
    write_text(conf, "[meta]\nrebalance = maybe\n");
    expect(2, "'maybe' is neither yes nor no", run("serve --config %s --check-config", conf));
    write_text(conf, "[meta]\npath = \n");
    assert_int_equal(run("serve --config %s --check-config", conf), 2);
    program_fini(&t);
}

static void
test_init(void **state)
{
    struct program_test t;
    char again[96];

    (void)state;
    program_init(&t);
    expect(1, "can not be made", run("init --dir %s/no/where", t.dir));
    expect(0, "12345678-9abc-def0-1234-56789abcdef0",
           run("init --dir %s --cluster-id 12345678-9ABC-DEF0-1234-56789abcdef0", t.meta));
    expect(1, "holds a cluster's metadata already", run("init --dir %s", t.meta));
    expect(1, "there is no metadata store", run("serve --dir %s/nowhere", t.dir));
    expect(0, "12345678-9abc-def0", run("backup --dir %s %s/file", t.meta, t.dir));
    (void)snprintf(again, sizeof(again), "%s/again", t.dir);
    expect(0, "12345678-9abc-def0", run("restore --dir %s %s/file", again, t.dir));
    expect(1, "holds a cluster's metadata already", run("restore --dir %s %s/file", again, t.dir));
    write_text(t.log, "something else");
    expect(1, "is no backup", run("restore --dir %s/third %s", t.dir, t.log));
    program_fini(&t);
}

/* --- serving --- */

static uint16_t
free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    assert_int_equal(close(fd), 0);
    return ntohs(address.sin_port);
}

static void
sleep_ms(long ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    (void)nanosleep(&time, NULL);
}

static void
serve(struct program_test *t)
{
    char listen[32];

    t->port = free_port();
    (void)snprintf(listen, sizeof(listen), "127.0.0.1:%u", t->port);
    t->pid = fork();
    assert_true(t->pid >= 0);
    if (t->pid == 0) {
        int fd = open(t->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        (void)dup2(fd, STDERR_FILENO);
        (void)execl(DLBLK_META_PROGRAM, "dlblk-meta", "serve", "--dir", t->meta, "--listen", listen,
                    (char *)NULL);
        _exit(127);
    }
}

static int
connect_to(const struct program_test *t)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(t->port),
    };
    struct timeval limit = {.tv_sec = 10};

    for (unsigned i = 0; i < 1000; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        assert_true(fd >= 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0) {
            assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
            return fd;
        }
        (void)close(fd);
        assert_int_equal(waitpid(t->pid, NULL, WNOHANG), 0);
        sleep_ms(10);
    }
    fail_msg("nobody listens on port %u", t->port);
    return -1;
}

static void
receive(int fd, uint8_t *bytes, size_t count)
{
    while (count > 0) {
        ssize_t got = recv(fd, bytes, count, 0);

        assert_true(got > 0);
        bytes += got;
        count -= (size_t)got;
    }
}

/* The reply's message; NULL if the status is not 0.  PINGs of the service are dropped. */
static ProtobufCMessage *
ask(int fd, uint16_t opcode, const ProtobufCMessage *message,
    const ProtobufCMessageDescriptor *type, int *ret_status)
{
    static uint8_t bytes[FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX];
    struct frame_out *out = frame_out_create_message(opcode, 0, 77, 0, message);
    struct frame frame;
    ProtobufCMessage *reply = NULL;

    assert_non_null(out);
    assert_int_equal(send(fd, out->head, out->head_bytes, MSG_NOSIGNAL), out->head_bytes);
    if (out->body_tail_bytes > 0)
        assert_int_equal(send(fd, out->body_tail, out->body_tail_bytes, MSG_NOSIGNAL),
                         out->body_tail_bytes);
    out->on_sent(out, 0);
    do {
        receive(fd, bytes, FRAME_HEADER_BYTES);
        assert_int_equal(frame_decode_header(bytes, &frame), 0);
        receive(fd, bytes + FRAME_HEADER_BYTES, frame.body_bytes);
        frame.body = bytes + FRAME_HEADER_BYTES;
        assert_int_equal(frame_check_body(&frame), 0);
    } while (!frame_is_reply(&frame));
    assert_int_equal(frame.request_id, 77);
    *ret_status = frame.status;
    if (frame.status == 0 && type != NULL)
        reply = frame_unpack(&frame, type);
    return reply;
}

static void
say_hello(int fd, uint8_t *ret_cluster_id)
{
    Dl__Hello hello = DL__HELLO__INIT;
    uint8_t instance[16] = {9};
    Dl__Hello *reply;
    int status;

    hello.version_min = hello.version_max = 1;
    hello.role = DL__ROLE__ROLE_CLIENT;
    hello.instance = (ProtobufCBinaryData){16, instance};
    reply = (Dl__Hello *)ask(fd, OP_HELLO, &hello.base, &dl__hello__descriptor, &status);
    assert_int_equal(status, 0);
    assert_int_equal(reply->role, DL__ROLE__ROLE_META);
    assert_int_equal(reply->cluster_id.len, 16);
    memcpy(ret_cluster_id, reply->cluster_id.data, 16);
    dl__hello__free_unpacked(reply, NULL);
}

static bool
log_has(const struct program_test *t, const char *text)
{
    FILE *file = fopen(t->log, "r");
    static char log[65536];
    size_t bytes;

    assert_non_null(file);
    bytes = fread(log, 1, sizeof(log) - 1, file);
    log[bytes] = '\0';
    assert_int_equal(fclose(file), 0);
    return strstr(log, text) != NULL;
}

static void
test_serve(void **state)
{
    struct program_test t;
    uint8_t first_id[16], id[16];
    Dl__ClusterStatus question = DL__CLUSTER_STATUS__INIT;
    Dl__ClusterStatusReply *status;
    int fd, code, exit_status;

    (void)state;
    program_init(&t);
    assert_int_equal(run("init --dir %s", t.meta), 0);
    serve(&t);
    fd = connect_to(&t);
    say_hello(fd, first_id);
    status = (Dl__ClusterStatusReply *)ask(fd, OP_CLUSTER_STATUS, &question.base,
                                           &dl__cluster_status_reply__descriptor, &code);
    assert_int_equal(code, 0);
    assert_string_equal(status->state, "healthy");
    dl__cluster_status_reply__free_unpacked(status, NULL);
    assert_false(log_has(&t, "AUTHENTICATION")); /* loopback */

    /* Nobody else gets the store; a backup does not need it. */
    expect(1, "in use by another process",
           run("serve --dir %s --listen 127.0.0.1:%u", t.meta, free_port()));
    expect(0, "in /tmp", run("backup --dir %s %s/file", t.meta, t.dir));

    /* kill -9: the same cluster afterwards. */
    assert_int_equal(kill(t.pid, SIGKILL), 0);
    assert_int_equal(waitpid(t.pid, &exit_status, 0), t.pid);
    assert_int_equal(close(fd), 0);
    serve(&t);
    fd = connect_to(&t);
    say_hello(fd, id);
    assert_memory_equal(id, first_id, 16);

    assert_int_equal(kill(t.pid, SIGTERM), 0);
    for (unsigned i = 0; i < 1000 && waitpid(t.pid, &exit_status, WNOHANG) == 0; i++)
        sleep_ms(10);
    assert_true(WIFEXITED(exit_status));
    assert_int_equal(WEXITSTATUS(exit_status), 0);
    assert_true(log_has(&t, "stopped"));
    assert_int_equal(recv(fd, id, 1, 0), 0); /* and the connection is closed */
    assert_int_equal(close(fd), 0);
    program_fini(&t);
}

UNIT_MAIN(cmocka_unit_test(test_wrong_command_lines), cmocka_unit_test(test_configuration),
          cmocka_unit_test(test_init), cmocka_unit_test(test_serve))
