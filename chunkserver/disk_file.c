/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/text.h"

#define DISK_BLOCK_BYTES 4096u
#define WAIT_STEP_MS     100u
#define ZERO_STEP_BYTES  (4u << 20)

struct disk_file {
    struct disk disk;
    int fd;
    bool is_device, is_direct;
    uint32_t sector_bytes;
    struct disk_io *queue_first, *queue_last; /* linked by disk_private[0] */
};

static struct disk_file *
file_of(struct disk *disk)
{
    return (struct disk_file *)disk;
}

/* --- blocking I/O: whole, or an error --- */

static int
file_read_all(int fd, char *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    while (length_bytes > 0) {
        ssize_t got = pread(fd, buffer, length_bytes, (off_t)offset_bytes);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        buffer += got;
        offset_bytes += (uint64_t)got;
        length_bytes -= (size_t)got;
    }
    return 0;
}

static int
file_write_all(int fd, const char *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    while (length_bytes > 0) {
        ssize_t put = pwrite(fd, buffer, length_bytes, (off_t)offset_bytes);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        buffer += put;
        offset_bytes += (uint64_t)put;
        length_bytes -= (size_t)put;
    }
    return 0;
}

static int
disk_file_read_now(struct disk *disk, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    return file_read_all(file_of(disk)->fd, buffer, length_bytes, offset_bytes);
}

static int
disk_file_write_now(struct disk *disk, const void *buffer, size_t length_bytes,
                    uint64_t offset_bytes)
{
    return file_write_all(file_of(disk)->fd, buffer, length_bytes, offset_bytes);
}

static int
disk_file_flush_now(struct disk *disk)
{
    return fdatasync(file_of(disk)->fd) == 0 ? 0 : -errno;
}

/* --- the queue --- */

static void
disk_file_submit(struct disk *disk, struct disk_io *io)
{
    struct disk_file *file = file_of(disk);

    io->disk_private[0] = NULL;
    if (file->queue_first == NULL)
        file->queue_first = io;
    else
        file->queue_last->disk_private[0] = io;
    file->queue_last = io;
}

static int
disk_file_run(struct disk_file *file, const struct disk_io *io)
{
    uint64_t offset_bytes = io->offset_bytes;

    if (io->kind == DISK_FLUSH)
        return disk_file_flush_now(&file->disk);
    for (uint32_t i = 0; i < io->iov_count; i++) {
        const struct iovec *iov = &io->iov[i];
        int err = io->kind == DISK_READ
                      ? file_read_all(file->fd, iov->iov_base, iov->iov_len, offset_bytes)
                      : file_write_all(file->fd, iov->iov_base, iov->iov_len, offset_bytes);

        if (err != 0)
            return err;
        offset_bytes += iov->iov_len;
    }
    return 0;
}

uint32_t
disk_file_poll(struct disk_file *file)
{
    struct disk_io *io = file->queue_first;
    uint32_t count = 0;

    /* What the callbacks submit waits for the next poll. */
    file->queue_first = NULL;
    while (io != NULL) {
        struct disk_io *next = io->disk_private[0];

        io->on_done(io, disk_file_run(file, io));
        io = next;
        count++;
    }
    return count;
}

static const struct disk_ops disk_file_ops = {
    .submit = disk_file_submit,
    .read_now = disk_file_read_now,
    .write_now = disk_file_write_now,
    .flush_now = disk_file_flush_now,
};

/* --- open --- */

/* "write through" in the queue's write_cache; of a partition, the queue is its disk's. */
static bool
device_is_write_through(dev_t device)
{
    static const char *const places[] = {"queue", "../queue"};
    char path[96], text[32] = "";

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        FILE *stream;

        (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/write_cache", major(device),
                       minor(device), places[i]);
        stream = fopen(path, "re");
        if (stream == NULL)
            continue;
        if (fgets(text, sizeof(text), stream) == NULL)
            text[0] = '\0';
        (void)fclose(stream);
        return strncmp(text, "write through", strlen("write through")) == 0;
    }
    return false;
}

static void
sleep_ms(uint64_t ms)
{
    struct timespec pause = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

    while (nanosleep(&pause, &pause) != 0 && errno == EINTR)
        ;
}

static int
open_flags(const struct disk_file_options *options, bool is_device, bool direct)
{
    int flags = O_CLOEXEC | O_NOCTTY | (options->read_only ? O_RDONLY : O_RDWR);

    if (direct)
        flags |= O_DIRECT;
    if (is_device && !options->no_lock)
        flags |= O_EXCL;
    return flags;
}

/* One try to open and lock.  0, -DL_E_DISK_BUSY, or -errno. */
static int
disk_file_try(struct disk_file *file, const char *path, const struct disk_file_options *options)
{
    int result;

    file->is_direct = true;
    file->fd = open(path, open_flags(options, file->is_device, true));
    if (file->fd < 0 && errno == EINVAL) {
        file->is_direct = false;
        file->fd = open(path, open_flags(options, file->is_device, false));
    }
    if (file->fd < 0)
        return errno == EBUSY ? -DL_E_DISK_BUSY : -errno;
    if (file->is_device || options->no_lock)
        return 0;
    if (flock(file->fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    result = errno == EWOULDBLOCK ? -DL_E_DISK_BUSY : -errno;
    (void)close(file->fd);
    file->fd = -1;
    return result;
}

static int
disk_file_open_locked(struct disk_file *file, const char *path,
                      const struct disk_file_options *options)
{
    uint64_t waited_ms = 0;
    int err = disk_file_try(file, path, options);

    if (err == -DL_E_DISK_BUSY && options->wait_ms > 0 && options->on_wait != NULL)
        options->on_wait(options->on_wait_context, path);
    while (err == -DL_E_DISK_BUSY && waited_ms < options->wait_ms) {
        sleep_ms(WAIT_STEP_MS);
        waited_ms += WAIT_STEP_MS;
        err = disk_file_try(file, path, options);
    }
    return err;
}

static int
disk_file_measure_device(struct disk_file *file, const char *path, dev_t device,
                         struct dl_error *err)
{
    int sector_bytes = 0;

    if (ioctl(file->fd, BLKGETSIZE64, &file->disk.size_bytes) != 0 ||
        ioctl(file->fd, BLKSSZGET, &sector_bytes) != 0)
        return dl_error_set(err, -errno, "%s: cannot ask for the device's size: %s", path,
                            dl_err_str(errno));
    file->sector_bytes = (uint32_t)sector_bytes;
    if (file->sector_bytes > DISK_BLOCK_BYTES)
        return dl_error_set(err, -DL_E_DISK_FORMAT,
                            "%s: sectors of %u bytes; at most 4096 can be used", path,
                            file->sector_bytes);
    file->disk.write_through = device_is_write_through(device);
    return 0;
}

static int
disk_file_measure(struct disk_file *file, const char *path, struct dl_error *err)
{
    struct stat stat;
    int result = 0;

    if (fstat(file->fd, &stat) != 0)
        return dl_error_set(err, -errno, "%s: %s", path, dl_err_str(errno));
    if (file->is_device) {
        result = disk_file_measure_device(file, path, stat.st_rdev, err);
    } else {
        file->disk.size_bytes = (uint64_t)stat.st_size;
        file->sector_bytes = 512;
    }
    file->disk.size_bytes -= file->disk.size_bytes % DISK_BLOCK_BYTES;
    return result;
}

static int
disk_file_kind(struct disk_file *file, const char *path, struct dl_error *err)
{
    struct stat stat_before;

    if (stat(path, &stat_before) != 0)
        return dl_error_set(err, -errno, "%s: %s", path, dl_err_str(errno));
    if (!S_ISBLK(stat_before.st_mode) && !S_ISREG(stat_before.st_mode))
        return dl_error_set(err, -DL_E_DISK_FORMAT,
                            "%s is neither a block device nor a regular file", path);
    file->is_device = S_ISBLK(stat_before.st_mode);
    return 0;
}

static int
disk_file_open_err(const char *path, bool is_device, int result, struct dl_error *err)
{
    if (result == -DL_E_DISK_BUSY) {
        (void)dl_error_set(err, result, "%s is in use by another process%s", path,
                           is_device ? ", or mounted" : "");
        dl_error_hint(err, "see who has it: fuser -v %s", path);
        return result;
    }
    return dl_error_set(err, result, "%s: cannot open: %s", path, dl_err_str(result));
}

int
disk_file_open(const char *path, const struct disk_file_options *options,
               struct disk_file **ret_file, struct dl_error *err)
{
    static const struct disk_file_options defaults = {0};
    struct disk_file *file = calloc(1, sizeof(*file));
    int result;

    if (file == NULL)
        return dl_error_set(err, -ENOMEM, "out of memory");
    if (options == NULL)
        options = &defaults;
    dl_assert(!options->no_lock || options->read_only);
    file->disk.ops = &disk_file_ops;
    file->fd = -1;
    result = disk_file_kind(file, path, err);
    if (result == 0) {
        result = disk_file_open_locked(file, path, options);
        if (result != 0)
            (void)disk_file_open_err(path, file->is_device, result, err);
    }
    if (result == 0)
        result = disk_file_measure(file, path, err);
    if (result != 0) {
        disk_file_close(file);
        return result;
    }
    *ret_file = file;
    return 0;
}

void
disk_file_close(struct disk_file *file)
{
    if (file == NULL)
        return;
    dl_assert(file->queue_first == NULL);
    if (file->fd >= 0)
        (void)close(file->fd);
    free(file);
}

struct disk *
disk_file_disk(struct disk_file *file)
{
    return &file->disk;
}

int
disk_file_fd(const struct disk_file *file)
{
    return file->fd;
}

bool
disk_file_is_device(const struct disk_file *file)
{
    return file->is_device;
}

bool
disk_file_is_direct(const struct disk_file *file)
{
    return file->is_direct;
}

uint32_t
disk_file_sector_bytes(const struct disk_file *file)
{
    return file->sector_bytes;
}

int
disk_index_path(const char *path, char *ret_path, size_t path_bytes)
{
    /* A device's directory is made anew at each start; /dev/shm is for files. */
    bool device = strncmp(path, "/dev/", strlen("/dev/")) == 0 &&
                  strncmp(path, "/dev/shm/", strlen("/dev/shm/")) != 0;
    int length;

    if (device)
        length = snprintf(ret_path, path_bytes, DISK_INDEX_DIRECTORY "/%s.index", path + 1);
    else
        length = snprintf(ret_path, path_bytes, "%s.index", path);
    if (length < 0 || (size_t)length >= path_bytes)
        return -ENAMETOOLONG;
    for (char *at = ret_path + strlen(DISK_INDEX_DIRECTORY "/"); device && *at != '\0'; at++)
        if (*at == '/')
            *at = '-';
    return 0;
}

/* --- create --- */

static int
file_fill(int fd, uint64_t size_bytes,
          void (*progress)(void *context, uint64_t done_bytes, uint64_t size_bytes), void *context)
{
    char *zeroes = calloc(1, ZERO_STEP_BYTES);
    int result = zeroes != NULL ? 0 : -ENOMEM;

    for (uint64_t done = 0; result == 0 && done < size_bytes;) {
        uint64_t step = size_bytes - done < ZERO_STEP_BYTES ? size_bytes - done : ZERO_STEP_BYTES;

        result = file_write_all(fd, zeroes, step, done);
        done += step;
        if (result == 0 && progress != NULL)
            progress(context, done, size_bytes);
    }
    if (result == 0 && fsync(fd) != 0)
        result = -errno;
    free(zeroes);
    return result;
}

/* The new file's entry is durable when its directory is. */
static int
parent_fsync(const char *path)
{
    char *copy = strdup(path);
    int result = 0, fd;

    if (copy == NULL)
        return -ENOMEM;
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        result = -errno;
    if (fd >= 0)
        (void)close(fd);
    free(copy);
    return result;
}

int
disk_file_create(const char *path, uint64_t size_bytes,
                 void (*progress)(void *context, uint64_t done_bytes, uint64_t size_bytes),
                 void *context, struct dl_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int result;

    if (fd < 0)
        return dl_error_set(err, -errno, "%s: cannot create: %s", path, dl_err_str(errno));
    result = file_fill(fd, size_bytes, progress, context);
    (void)close(fd);
    if (result == 0)
        result = parent_fsync(path);
    if (result == 0)
        return 0;
    (void)unlink(path);
    return dl_error_set(err, result, "%s: cannot write %s of zeroes: %s", path,
                        text_of_size(size_bytes).text, dl_err_str(result));
}
