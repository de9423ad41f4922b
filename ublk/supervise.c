/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/log.h"

#define PROGRAM        "dlblk-ublk"
#define PAUSE_MS_FIRST 100u
#define PAUSE_MS_MAX   2000u
#define STEADY_NS      NS_PER_S
#define NODE_BYTES     64u
#define LOG_PATH_BYTES 640u

/* What a server's process tells its supervisor, in memory that both see. */
struct shared {
    atomic_bool ready;
    atomic_uint id;
    atomic_ullong ready_ns; /* when the present server got so far; 0: it has not */
};

struct supervise {
    const struct supervise_options *options;
    struct target_options target;
    struct ublk_state state; /* what the next server takes over */
    struct shared *shared;
    int ready_fd; /* -1: not in the background, or told already */
    char log_path[LOG_PATH_BYTES];
};

/* --- errors --- */

static int
exit_of(int err)
{
    switch (-err) {
    case DL_E_USAGE:
    case DL_E_NAME_INVALID:
    case DL_E_SIZE_INVALID:
    case DL_E_CONFIG_INVALID:
        return 2;
    case DL_E_META_UNREACHABLE:
    case DL_E_FENCE_PENDING:
    case DL_E_SERVER_DOWN:
    case DL_E_CONNECTION_LOST:
    case DL_E_TIMEOUT:
        return 5;
    default:
        break;
    }
    switch (dl_err_class(err)) {
    case ENOENT:
        return 3;
    case EBUSY:
        return 4;
    case EEXIST:
        return 6;
    case ENOSPC:
        return 7;
    default:
        return 1;
    }
}

int
ublk_print_error(const struct dl_error *err)
{
    if (err->code == 0)
        return EXIT_FAILURE; /* somebody else has said it */
    (void)fprintf(stderr, PROGRAM ": %s\n",
                  err->text[0] != '\0' ? err->text : dl_err_str(err->code));
    if (err->hint[0] != '\0')
        (void)fprintf(stderr, PROGRAM ": %s\n", err->hint);
    return exit_of(err->code);
}

/* --- processes --- */

bool
supervise_is_serving(int pid)
{
    char path[40];
    char text[512];
    DL_CLEANUP(fclose) FILE *file = NULL;
    const char *end;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    file = pid > 0 ? fopen(path, "re") : NULL;
    if (file == NULL || fgets(text, sizeof(text), file) == NULL)
        return false;
    /* "123 (dlblk-ublk) S ...": a zombie serves nobody. */
    end = strrchr(text, ')');
    return strstr(text, "(" PROGRAM ")") != NULL && end != NULL && end[1] == ' ' && end[2] != 'Z' &&
           end[2] != 'X';
}

static void
to_log(const struct supervise *supervise)
{
    int fd = open(supervise->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);

    if (fd < 0)
        fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)dup2(fd, STDOUT_FILENO);
    (void)dup2(fd, STDERR_FILENO);
    (void)close(fd);
}

/* In the server's process: the device can be used. */
static void
on_ready(void *context, const char *node)
{
    struct supervise *supervise = context;
    unsigned id = 0;

    (void)sscanf(node, "/dev/ublkb%u", &id);
    if (supervise->shared != NULL) {
        atomic_store(&supervise->shared->id, id);
        atomic_store(&supervise->shared->ready_ns, clock_monotonic_ns());
        atomic_store(&supervise->shared->ready, true);
    }
    if (!supervise->options->background) {
        printf("%s\n", node);
        (void)fflush(stdout);
        return;
    }
    to_log(supervise);
    if (supervise->ready_fd < 0)
        return;
    (void)!write(supervise->ready_fd, node, strlen(node));
    (void)close(supervise->ready_fd);
    supervise->ready_fd = -1;
}

static int
serve(struct supervise *supervise, struct dl_error *err)
{
    supervise->target.on_ready = on_ready;
    supervise->target.context = supervise;
    return target_run(&supervise->target, err);
}

/* --- the supervisor --- */

static pid_t
start_server(struct supervise *supervise)
{
    pid_t pid = fork();
    struct dl_error err = {0};
    sigset_t set;

    if (pid != 0)
        return pid;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_UNBLOCK, &set, NULL);
    if (serve(supervise, &err) != 0)
        _exit(ublk_print_error(&err));
    _exit(EXIT_SUCCESS);
}

/* Until the server ends; *stop if we were told to. */
static int
wait_for_server(pid_t pid, bool *stop)
{
    int status = 0;
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        int signal = sigwaitinfo(&set, NULL);

        if (signal == SIGTERM || signal == SIGINT) {
            *stop = true;
            (void)kill(pid, signal);
        }
    }
    return status;
}

static void
pause_ms(uint32_t ms)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    (void)nanosleep(&pause, NULL);
}

/* Is there still something to take over? */
static bool
device_waits(struct supervise *supervise)
{
    struct ublk_control *control = NULL;
    struct ublk_device_info info;
    uint32_t id = atomic_load(&supervise->shared->id);
    bool waits = false;

    if (ublk_state_load(id, &supervise->state, NULL) == 0 &&
        ublk_control_open(&control, NULL) == 0) {
        waits = ublk_control_info(control, id, &info, NULL) == 0 && ublk_info_is_dlblk(&info) &&
                info.state != UBLK_STATE_DEAD;
        ublk_control_close(control);
    }
    return waits;
}

static void
say_end(const char *volume, pid_t pid, int status)
{
    if (WIFSIGNALED(status))
        log_error("supervisor", volume, "the server, process %ld, was killed by signal %d",
                  (long)pid, WTERMSIG(status));
    else
        log_error("supervisor", volume, "the server, process %ld, ended with status %d", (long)pid,
                  WEXITSTATUS(status));
}

/*
 * Users wait, so the next server is started at once behind one that served; but not one after the
 * other, without pause, if they can't begin or die as soon as they have begun.
 */
static uint32_t
next_pause_ms(const struct supervise *supervise, uint32_t last_ms)
{
    uint64_t ready_ns = atomic_load(&supervise->shared->ready_ns);

    if (ready_ns != 0 && clock_monotonic_ns() - ready_ns > STEADY_NS)
        return 0;
    if (last_ms == 0)
        return PAUSE_MS_FIRST;
    return last_ms * 2 < PAUSE_MS_MAX ? last_ms * 2 : PAUSE_MS_MAX;
}

/* Exit status of the whole. */
static int
supervise_loop(struct supervise *supervise)
{
    const char *volume = supervise->target.volume;
    uint32_t wait_ms = 0;
    bool stop = false;

    for (;;) {
        pid_t pid;
        int status;

        atomic_store(&supervise->shared->ready_ns, 0);
        pid = start_server(supervise);
        if (pid < 0)
            return EXIT_FAILURE;
        if (supervise->ready_fd >= 0) {
            (void)close(supervise->ready_fd);
            supervise->ready_fd = -1;
            to_log(supervise);
        }
        status = wait_for_server(pid, &stop);
        if (WIFEXITED(status) && (WEXITSTATUS(status) == EXIT_SUCCESS || stop))
            return WEXITSTATUS(status);
        if (!atomic_load(&supervise->shared->ready))
            return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
        say_end(volume, pid, status);
        if (stop || !device_waits(supervise))
            return EXIT_FAILURE;
        wait_ms = next_pause_ms(supervise, wait_ms);
        pause_ms(wait_ms);
        supervise->target.recover = &supervise->state;
        supervise->target.steal = false;
        log_info("supervisor", volume, "another server takes /dev/ublkb%u over",
                 supervise->state.id);
    }
}

static int
run_here(struct supervise *supervise, struct dl_error *err)
{
    sigset_t set;

    if (!supervise->options->supervise)
        return serve(supervise, err);
    supervise->shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (supervise->shared == MAP_FAILED)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory");
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    /* Its errors are printed by the process that had them. */
    exit(supervise_loop(supervise));
}

/* --- the background --- */

/* In the process that was called: the device's name, or the status of who could not make it. */
static int
wait_for_ready(pid_t pid, int fd)
{
    char node[NODE_BYTES] = "";
    ssize_t bytes;
    int status = 0;

    do {
        bytes = read(fd, node, sizeof(node) - 1);
    } while (bytes < 0 && errno == EINTR);
    if (bytes > 0) {
        printf("%s\n", node);
        (void)fflush(stdout);
        exit(EXIT_SUCCESS);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    exit(WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : EXIT_FAILURE);
}

/* Who is short of memory doesn't get it back from those that its writes wait for. */
static void
spare_us(void)
{
    DL_CLEANUP(close) int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd >= 0)
        (void)!write(fd, "-900", 4);
}

static int
to_background(struct supervise *supervise, struct dl_error *err)
{
    int fds[2];
    pid_t pid;
    int null_fd;

    if (pipe2(fds, O_CLOEXEC) != 0)
        return dl_error_set(err, -errno, "pipe: %s", strerror(errno));
    pid = fork();
    if (pid < 0)
        return dl_error_set(err, -errno, "fork: %s", strerror(errno));
    if (pid > 0) {
        (void)close(fds[1]);
        return wait_for_ready(pid, fds[0]);
    }
    (void)close(fds[0]);
    supervise->ready_fd = fds[1];
    (void)setsid();
    spare_us();
    (void)!chdir("/");
    null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null_fd >= 0) {
        (void)dup2(null_fd, STDIN_FILENO);
        (void)close(null_fd);
    }
    return 0;
}

int
supervise_run(const struct supervise_options *options, const struct target_options *target,
              struct dl_error *err)
{
    struct supervise supervise = {.options = options, .target = *target, .ready_fd = -1};
    const char *name = target->recover != NULL ? target->recover->volume : target->volume;
    int result = 0;

    supervise.target.volume = name;
    if (options->log_path != NULL)
        (void)snprintf(supervise.log_path, sizeof(supervise.log_path), "%s", options->log_path);
    else
        (void)snprintf(supervise.log_path, sizeof(supervise.log_path), "%s/%s.log", ublk_run_dir(),
                       name);
    if (options->background)
        result = ublk_run_dir_make(err);
    if (result == 0 && options->background)
        result = to_background(&supervise, err);
    return result == 0 ? run_here(&supervise, err) : result;
}
