/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/device.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

#define POLL_NS       5000000ull
#define PATH_BYTES    320u
#define IO_TIMEOUT_MS 1000u

struct device_name
device_node(uint32_t id)
{
    struct device_name name;

    (void)snprintf(name.text, sizeof(name.text), "/dev/ublkb%u", id);
    return name;
}

/* --- the node --- */

static int
device_try(const char *node, uint64_t size_bytes)
{
    DL_CLEANUP(close) int fd = open(node, O_RDONLY | O_CLOEXEC);
    uint64_t size = 0;

    if (fd < 0)
        return -errno;
    if (ioctl(fd, BLKGETSIZE64, &size) != 0)
        return -errno;
    return size == size_bytes ? 0 : -EIO;
}

int
device_wait(uint32_t id, uint64_t size_bytes, uint32_t timeout_ms, struct dl_error *err)
{
    uint64_t end_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    struct device_name node = device_node(id);
    int result;

    while ((result = device_try(node.text, size_bytes)) != 0) {
        struct timespec pause = {.tv_nsec = POLL_NS};

        if (clock_monotonic_ns() >= end_ns)
            break;
        (void)nanosleep(&pause, NULL);
    }
    if (result == 0)
        return 0;
    (void)dl_error_set(err, result, "%s can't be used: %s", node.text, strerror(-result));
    if (result == -ENOENT)
        dl_error_hint(err, "the device is there, but not its node: is /dev a devtmpfs, or does "
                           "udev run?");
    return result;
}

/* --- settings --- */

struct setting {
    const char *name;
    char value[16];
};
#define SETTING_COUNT 3

static void
device_settings(uint32_t queue_depth, struct setting settings[SETTING_COUNT])
{
    /* No disk has to be served in the order of its tracks; and it would keep tags of its own. */
    settings[0] = (struct setting){"scheduler", "none"};
    /*
     * One tag is never given away: the kernel finds out that a server has died when it hands over a
     * request, so it must be able to.
     */
    settings[1] = (struct setting){.name = "nr_requests"};
    (void)snprintf(settings[1].value, sizeof(settings[1].value), "%u", queue_depth);
    settings[2] = (struct setting){.name = "io_timeout"};
    (void)snprintf(settings[2].value, sizeof(settings[2].value), "%u", IO_TIMEOUT_MS);
}

static int
device_open_setting(uint32_t id, const char *name, int flags)
{
    char path[PATH_BYTES];

    (void)snprintf(path, sizeof(path), "/sys/block/ublkb%u/queue/%s", id, name);
    return open(path, flags | O_CLOEXEC);
}

/* Of several words the one in brackets counts. */
static bool
device_has_setting(uint32_t id, const struct setting *setting)
{
    DL_CLEANUP(close) int fd = device_open_setting(id, setting->name, O_RDONLY);
    char text[256];
    char *word = text;
    ssize_t bytes = fd >= 0 ? read(fd, text, sizeof(text) - 1) : 0;

    if (bytes <= 0)
        return true; /* there is nothing to be set */
    text[bytes] = '\0';
    if (strchr(text, '[') != NULL)
        word = strchr(text, '[') + 1;
    word[strcspn(word, "]\n")] = '\0';
    return strcmp(word, setting->value) == 0;
}

void
device_tune_here(uint32_t id, uint32_t queue_depth)
{
    struct setting settings[SETTING_COUNT];

    device_settings(queue_depth, settings);
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        DL_CLEANUP(close) int fd = -1;

        if (device_has_setting(id, &settings[i]))
            continue;
        fd = device_open_setting(id, settings[i].name, O_WRONLY);
        if (fd >= 0)
            (void)!write(fd, settings[i].value, strlen(settings[i].value));
    }
}

void
device_tune(uint32_t id, uint32_t queue_depth)
{
    struct setting settings[SETTING_COUNT];
    char self[PATH_BYTES] = "";
    char program[] = "dlblk-ublk";
    char command[] = "tune";
    char name[16];
    char depth[16];
    char *argv[] = {program, command, name, depth, NULL};
    bool done = true;
    int status;
    pid_t pid;

    device_settings(queue_depth, settings);
    for (size_t i = 0; i < SETTING_COUNT; i++)
        done = device_has_setting(id, &settings[i]) && done;
    if (done || readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
        return;
    (void)snprintf(name, sizeof(name), "%u", id);
    (void)snprintf(depth, sizeof(depth), "%u", queue_depth);
    if (posix_spawn(&pid, self, NULL, NULL, argv, environ) != 0)
        return;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
}

uint32_t
device_in_flight(uint32_t id)
{
    char path[PATH_BYTES];
    DL_CLEANUP(fclose) FILE *file = NULL;
    unsigned reads = 0;
    unsigned writes = 0;

    (void)snprintf(path, sizeof(path), "/sys/block/ublkb%u/inflight", id);
    file = fopen(path, "re");
    if (file == NULL || fscanf(file, "%u %u", &reads, &writes) != 2)
        return 0;
    return reads + writes;
}

/* --- users --- */

/* "ublkb3" and its partitions "ublkb3p1"; a node that is gone is "ublkb3 (deleted)". */
static bool
is_device_name(const char *name, uint32_t id)
{
    char prefix[24];
    size_t length = (size_t)snprintf(prefix, sizeof(prefix), "ublkb%u", id);

    if (strncmp(name, prefix, length) != 0)
        return false;
    return name[length] == '\0' || name[length] == ' ' ||
           (name[length] == 'p' && isdigit((unsigned char)name[length + 1]));
}

static int
check_mounts(const char *path, uint32_t id, struct dl_error *err)
{
    DL_CLEANUP(fclose) FILE *file = fopen(path, "re");
    char device[256];
    char where[256];

    while (file != NULL && fscanf(file, "%255s %255s %*[^\n]", device, where) == 2) {
        if (strncmp(device, "/dev/", 5) != 0 || !is_device_name(device + 5, id))
            continue;
        (void)dl_error_set(err, -EBUSY, "%s is mounted on %s", device, where);
        dl_error_hint(err, "umount %s", where);
        return -EBUSY;
    }
    return 0;
}

static int
check_holders_of(const char *directory, const char *name, struct dl_error *err)
{
    char path[PATH_BYTES];
    DIR *holders;
    const struct dirent *entry;
    int result = 0;

    (void)snprintf(path, sizeof(path), "%s/holders", directory);
    holders = opendir(path);
    while (holders != NULL && result == 0 && (entry = readdir(holders)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        result = dl_error_set(err, -EBUSY, "/dev/%s is used by the device %s", name, entry->d_name);
        dl_error_hint(err, "close that one first (dmsetup, cryptsetup, vgchange, mdadm)");
    }
    if (holders != NULL)
        (void)closedir(holders);
    return result;
}

/* The kernel's own claim, which mounts of other namespaces and swap have as well. */
static int
check_exclusive(const char *name, struct dl_error *err)
{
    char path[PATH_BYTES];
    DL_CLEANUP(close) int fd = -1;

    (void)snprintf(path, sizeof(path), "/dev/%s", name);
    fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0 || errno != EBUSY)
        return 0;
    return dl_error_set(err, -EBUSY,
                        "%s is in use: mounted in another namespace, swap, or claimed by a driver",
                        path);
}

static int
check_block(uint32_t id, struct dl_error *err)
{
    char base[64];
    char path[PATH_BYTES];
    char name[32];
    const struct dirent *entry;
    DIR *directory;
    int result;

    (void)snprintf(name, sizeof(name), "ublkb%u", id);
    (void)snprintf(base, sizeof(base), "/sys/block/%s", name);
    result = check_holders_of(base, name, err);
    directory = opendir(base);
    while (directory != NULL && result == 0 && (entry = readdir(directory)) != NULL) {
        if (!is_device_name(entry->d_name, id))
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", base, entry->d_name);
        result = check_holders_of(path, entry->d_name, err);
        if (result == 0)
            result = check_exclusive(entry->d_name, err);
    }
    if (directory != NULL)
        (void)closedir(directory);
    return result != 0 ? result : check_exclusive(name, err);
}

/* Does this process have the device open?  -EBUSY. */
static int
check_process(const char *pid, uint32_t id, struct dl_error *err)
{
    char path[PATH_BYTES];
    char target[PATH_BYTES];
    char command[64] = "?";
    const struct dirent *entry;
    DIR *fds;
    int result = 0;

    (void)snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
    fds = opendir(path);
    while (fds != NULL && result == 0 && (entry = readdir(fds)) != NULL) {
        ssize_t bytes = readlinkat(dirfd(fds), entry->d_name, target, sizeof(target) - 1);

        if (bytes < 6)
            continue;
        target[bytes] = '\0';
        if (strncmp(target, "/dev/", 5) != 0 || !is_device_name(target + 5, id))
            continue;
        (void)snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
        DL_CLEANUP(fclose) FILE *file = fopen(path, "re");
        if (file == NULL || fscanf(file, "%63[^\n]", command) != 1)
            (void)snprintf(command, sizeof(command), "?");
        result = dl_error_set(err, -EBUSY, "%s is open by process %s (%s)", target, pid, command);
    }
    if (fds != NULL)
        (void)closedir(fds);
    return result;
}

static int
check_processes(uint32_t id, int (*check)(const char *, uint32_t, struct dl_error *),
                struct dl_error *err)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;
    int result = 0;

    while (proc != NULL && result == 0 && (entry = readdir(proc)) != NULL)
        if (isdigit((unsigned char)entry->d_name[0]))
            result = check(entry->d_name, id, err);
    if (proc != NULL)
        (void)closedir(proc);
    return result;
}

int
device_check_unused(uint32_t id, struct dl_error *err)
{
    int result = check_mounts("/proc/self/mounts", id, err);

    if (result == 0)
        result = check_block(id, err);
    if (result == 0)
        result = check_processes(id, check_process, err);
    return result;
}

static int
check_process_mounts(const char *pid, uint32_t id, struct dl_error *err)
{
    char path[PATH_BYTES];

    (void)snprintf(path, sizeof(path), "/proc/%.20s/mounts", pid);
    return check_mounts(path, id, err);
}

int
device_check_released(uint32_t id, struct dl_error *err)
{
    int result = check_mounts("/proc/self/mounts", id, err);

    if (result == 0)
        result = check_processes(id, check_process, err);
    if (result == 0)
        result = check_processes(id, check_process_mounts, err);
    return result;
}
