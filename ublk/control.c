/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring of its own with large entries: the commands don't fit into small ones.  One command at a
 * time, in a thread that ends with it, and its caller waits.
 */
#include "ublk/control.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/cleanup.h"

#define CONTROL_PATH    "/dev/ublk-control"
#define PARAMETERS_PATH "/sys/module/ublk_drv/parameters/ublks_max"
#define NO_QUEUE        UINT16_MAX
#define WAIT_SLICE_NS   50000000
#define PATH_BYTES      160u
#define LINE_BYTES      1024u
#define KERNEL_ENOTSUPP 524 /* in the kernel's own errno.h only */

struct ublk_control {
    struct io_uring ring;
    int fd;
    bool encoded;
    uint64_t features;
    atomic_bool cancelled;
};

/* --- commands --- */

static int
control_run_here(struct ublk_control *control, enum ublk_command command,
                 const struct ublk_ctrl_cmd *body)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&control->ring);
    struct io_uring_cqe *cqe;
    int result;

    dl_assert(sqe != NULL);
    /* liburing clears half of a large entry only. */
    memset(sqe, 0, 2 * sizeof(*sqe));
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = control->fd;
    sqe->cmd_op = control->encoded ? ublk_encode_control(command) : (uint32_t)command;
    memcpy(sqe->cmd, body, sizeof(*body));
    do {
        result = io_uring_submit(&control->ring);
    } while (result == -EINTR || result == -EAGAIN);
    if (result < 0)
        return result;
    do {
        struct __kernel_timespec slice = {.tv_nsec = WAIT_SLICE_NS};

        if (atomic_load(&control->cancelled))
            return -ECANCELED;
        result = io_uring_wait_cqe_timeout(&control->ring, &cqe, &slice);
    } while (result == -EINTR || result == -ETIME);
    if (result < 0)
        return result;
    result = cqe->res;
    io_uring_cqe_seen(&control->ring, cqe);
    return result < 0 ? result : 0;
}

struct control_call {
    struct ublk_control *control;
    enum ublk_command command;
    const struct ublk_ctrl_cmd *body;
    int result;
};

static void *
control_thread(void *argument)
{
    struct control_call *call = argument;

    call->result = control_run_here(call->control, call->command, call->body);
    return NULL;
}

/*
 * The driver's commands may sleep, so io_uring gives them to a thread of the kernel, and keeps that
 * for as long as the thread lives which submitted them.  So that is one that ends.
 */
static int
control_run(struct ublk_control *control, enum ublk_command command,
            const struct ublk_ctrl_cmd *body)
{
    struct control_call call = {.control = control, .command = command, .body = body};
    sigset_t all;
    sigset_t before;
    pthread_t thread;
    int result;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&thread, NULL, control_thread, &call);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0)
        return control_run_here(control, command, body);
    (void)pthread_join(thread, NULL);
    return call.result;
}

static int
control_run_on(struct ublk_control *control, enum ublk_command command, uint32_t id, uint64_t data)
{
    struct ublk_ctrl_cmd body = {.dev_id = id, .queue_id = NO_QUEUE, .data = data};

    return control_run(control, command, &body);
}

static int
control_run_with(struct ublk_control *control, enum ublk_command command, uint32_t id,
                 const void *memory, size_t bytes)
{
    struct ublk_ctrl_cmd body = {
        .dev_id = id,
        .queue_id = NO_QUEUE,
        .addr = (uint64_t)(uintptr_t)memory,
        .len = (uint16_t)bytes,
    };

    return control_run(control, command, &body);
}

/* --- the device --- */

/* Does this list of the kernel's modules have nbd in it? */
static bool
control_list_has_nbd(const char *release, const char *list)
{
    char path[PATH_BYTES];
    char line[LINE_BYTES];
    DL_CLEANUP(fclose) FILE *file = NULL;

    (void)snprintf(path, sizeof(path), "/lib/modules/%s/%s", release, list);
    file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (strstr(line, "/nbd.ko") != NULL)
            return true;
    return false;
}

/* What can be done instead. */
static const char *
control_alternative(const char *release)
{
    if (access("/dev/nbd0", F_OK) == 0 || control_list_has_nbd(release, "modules.dep") ||
        control_list_has_nbd(release, "modules.builtin"))
        return "dlblk attach --nbd";
    return "this kernel has no nbd client either, so programs have to use "
           "nbdkit-datenlord-plugin(1)";
}

static int
control_explain_missing(struct dl_error *err)
{
    struct utsname kernel = {0};
    unsigned major = 0;
    unsigned minor = 0;

    if (uname(&kernel) == 0 && sscanf(kernel.release, "%u.%u", &major, &minor) == 2 &&
        (major < 6 || (major == 6 && minor < 1))) {
        (void)dl_error_set(err, -ENODEV, "Linux %s is too old for ublk: 6.1 or later is needed",
                           kernel.release);
        dl_error_hint(err, "without ublk: %s", control_alternative(kernel.release));
        return -ENODEV;
    }
    (void)dl_error_set(err, -ENODEV,
                       "this kernel has no ublk driver: " CONTROL_PATH " is not there");
    dl_error_hint(err, "modprobe ublk_drv (CONFIG_BLK_DEV_UBLK); without it: %s",
                  control_alternative(kernel.release));
    return -ENODEV;
}

static int
control_explain_open(int error, struct dl_error *err)
{
    switch (error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
        return control_explain_missing(err);
    case EACCES:
    case EPERM:
        (void)dl_error_set(err, -EACCES, "no permission to open " CONTROL_PATH);
        dl_error_hint(err, "run as root; in a container the device must be passed in as well");
        return -EACCES;
    default:
        return dl_error_set(err, -error, CONTROL_PATH ": %s", strerror(error));
    }
}

static void
control_hint_ring(struct dl_error *err)
{
    char disabled[8] = "";
    DL_CLEANUP(close) int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);

    if (fd >= 0 && read(fd, disabled, sizeof(disabled) - 1) > 0 && disabled[0] != '0')
        dl_error_hint(err, "kernel.io_uring_disabled is %c: sysctl kernel.io_uring_disabled=0",
                      disabled[0]);
    else
        dl_error_hint(err,
                      "Linux 6.1 or later with io_uring is needed, and no seccomp profile that "
                      "hides it");
}

static int
control_open_ring(struct ublk_control *control, struct dl_error *err)
{
    int result = io_uring_queue_init(4, &control->ring, IORING_SETUP_SQE128);

    if (result == 0)
        return 0;
    control->ring.ring_fd = -1;
    (void)dl_error_set(err, -DL_E_IO_URING, "io_uring can't be used: %s", strerror(-result));
    control_hint_ring(err);
    return -DL_E_IO_URING;
}

/* Kernels before 6.5 can't be asked, and know the plain numbers. */
static void
control_probe(struct ublk_control *control)
{
    uint64_t features = 0;

    control->encoded = true;
    if (control_run_with(control, UBLK_GET_FEATURES, UBLK_ANY_ID, &features, sizeof(features)) == 0)
        control->features = features;
    else
        control->encoded = false;
}

int
ublk_control_open(struct ublk_control **ret_control, struct dl_error *err)
{
    struct ublk_control *control = calloc(1, sizeof(*control));
    int result;

    if (control == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory");
    control->ring.ring_fd = -1;
    control->fd = open(CONTROL_PATH, O_RDWR | O_CLOEXEC);
    if (control->fd < 0)
        result = control_explain_open(errno, err);
    else
        result = control_open_ring(control, err);
    if (result != 0) {
        ublk_control_close(control);
        return result;
    }
    control_probe(control);
    *ret_control = control;
    return 0;
}

void
ublk_control_close(struct ublk_control *control)
{
    if (control == NULL)
        return;
    if (control->ring.ring_fd >= 0)
        io_uring_queue_exit(&control->ring);
    if (control->fd >= 0)
        (void)close(control->fd);
    free(control);
}

void
ublk_control_cancel(struct ublk_control *control)
{
    atomic_store(&control->cancelled, true);
}

bool
ublk_control_is_encoded(const struct ublk_control *control)
{
    return control->encoded;
}

uint64_t
ublk_control_features(const struct ublk_control *control)
{
    return control->features;
}

/* --- the steps --- */

static int
control_explain(int result, const char *step, uint32_t id, struct dl_error *err)
{
    if (result == 0)
        return 0;
    return dl_error_set(err, result, "ublk device %u: %s: %s", id, step, strerror(-result));
}

/* The driver's limit, or 0. */
static unsigned
control_ublks_max(void)
{
    DL_CLEANUP(fclose) FILE *file = fopen(PARAMETERS_PATH, "re");
    unsigned max = 0;

    if (file == NULL || fscanf(file, "%u", &max) != 1)
        return 0;
    return max;
}

/* Linux 6.1 has no limit; others take one only when the driver is loaded. */
static void
control_hint_max(unsigned max, struct dl_error *err)
{
    unsigned more = max != 0 ? 2 * max : 64;
    struct stat status;

    if (stat(PARAMETERS_PATH, &status) == 0 && (status.st_mode & S_IWUSR) != 0)
        dl_error_hint(err, "detach one, or: echo %u > " PARAMETERS_PATH, more);
    else
        dl_error_hint(err,
                      "detach one; the limit is set when the driver is loaded: "
                      "modprobe ublk_drv ublks_max=%u",
                      more);
}

static int
control_explain_add(int result, const struct ublk_device_info *info, struct dl_error *err)
{
    unsigned max = control_ublks_max();

    switch (-result) {
    case EEXIST:
        (void)dl_error_set(err, result, "ublk device %u exists already", info->dev_id);
        dl_error_hint(err, "dlblk devices lists dlblk's; leave --id out to get a free one");
        return result;
    case EACCES:
    case EPERM:
    case ENOSPC:
        if (max != 0 && result == -EPERM)
            break;
        (void)dl_error_set(err, result, "the kernel allows no more ublk devices: ublks_max is %u",
                           max);
        control_hint_max(max, err);
        return result;
    case EINVAL:
    case EOPNOTSUPP:
        (void)dl_error_set(err, result, "the kernel refuses a ublk device of %u queues, depth %u",
                           info->queue_count, info->queue_depth);
        dl_error_hint(err, "Linux 6.1 or later is needed; a depth is 1 to %u",
                      UBLK_QUEUE_DEPTH_MAX);
        return result;
    default:
        break;
    }
    return dl_error_set(err, result, "no ublk device can be added: %s", strerror(-result));
}

int
ublk_control_add(struct ublk_control *control, struct ublk_device_info *info, struct dl_error *err)
{
    int result = control_run_with(control, UBLK_ADD_DEV, info->dev_id, info, sizeof(*info));

    return result == 0 ? 0 : control_explain_add(result, info, err);
}

int
ublk_control_set_params(struct ublk_control *control, uint32_t id, const struct ublk_params *params,
                        struct dl_error *err)
{
    int result = control_run_with(control, UBLK_SET_PARAMS, id, params, params->len);

    return control_explain(result, "its parameters", id, err);
}

int
ublk_control_start(struct ublk_control *control, uint32_t id, int pid, struct dl_error *err)
{
    return control_explain(control_run_on(control, UBLK_START_DEV, id, (uint64_t)pid), "start", id,
                           err);
}

int
ublk_control_stop(struct ublk_control *control, uint32_t id, struct dl_error *err)
{
    return control_explain(control_run_on(control, UBLK_STOP_DEV, id, 0), "stop", id, err);
}

int
ublk_control_delete(struct ublk_control *control, uint32_t id, struct dl_error *err)
{
    return control_explain(control_run_on(control, UBLK_DEL_DEV, id, 0), "deletion", id, err);
}

int
ublk_control_delete_async(struct ublk_control *control, uint32_t id, struct dl_error *err)
{
    int result = -EOPNOTSUPP;

    if (control->encoded)
        result = control_run_on(control, UBLK_DEL_DEV_ASYNC, id, 0);
    /* How the driver said it at first. */
    if (result == -KERNEL_ENOTSUPP)
        result = -EOPNOTSUPP;
    return control_explain(result, "deletion", id, err);
}

int
ublk_control_start_recovery(struct ublk_control *control, uint32_t id, struct dl_error *err)
{
    return control_explain(control_run_on(control, UBLK_START_USER_RECOVERY, id, 0),
                           "begin of the recovery", id, err);
}

int
ublk_control_end_recovery(struct ublk_control *control, uint32_t id, int pid, struct dl_error *err)
{
    return control_explain(control_run_on(control, UBLK_END_USER_RECOVERY, id, (uint64_t)pid),
                           "end of the recovery", id, err);
}

int
ublk_control_info(struct ublk_control *control, uint32_t id, struct ublk_device_info *ret_info,
                  struct dl_error *err)
{
    struct ublk_device_info info = {0};
    int result = control_run_with(control, UBLK_GET_DEV_INFO, id, &info, sizeof(info));

    if (result == -EINVAL)
        result = -ENODEV; /* that is how the driver says it */
    if (result == 0)
        *ret_info = info;
    return control_explain(result, "its description", id, err);
}

const char *
ublk_state_name(uint16_t state)
{
    switch (state) {
    case UBLK_STATE_DEAD:
        return "stopped";
    case UBLK_STATE_LIVE:
        return "live";
    case UBLK_STATE_QUIESCED:
        return "waiting";
    default:
        return "unknown";
    }
}
