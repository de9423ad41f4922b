/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes as /dev/nbdN: nbdkit with dlblk's plugin behind a socket, and nbd-client, which gives the
 * kernel a connection to it.  For kernels without ublk; a server that dies costs I/O errors here.
 *
 * /run/dlblk/nbd/N holds the volume's name, N.pid nbdkit's process, N.sock is the socket.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cli/attach.h"
#include "common/cleanup.h"

#define NBD_RUN_DIR "/run/dlblk/nbd"
#define NBD_MAX     256u
#define PLUGIN      "nbdkit-datenlord-plugin.so"
#define PATH_BYTES  128u
#define WAIT_TRIES  1000
#define WAIT_NS     10000000

struct nbd_path {
    char text[PATH_BYTES];
};

static struct nbd_path
nbd_path(unsigned number, const char *suffix)
{
    struct nbd_path path;

    (void)snprintf(path.text, sizeof(path.text), NBD_RUN_DIR "/%u%s", number, suffix);
    return path;
}

static struct nbd_path
nbd_device(unsigned number)
{
    struct nbd_path path;

    (void)snprintf(path.text, sizeof(path.text), "/dev/nbd%u", number);
    return path;
}

/* The kernel's file that says who a device's client is; there while it is connected. */
static bool
nbd_is_connected(unsigned number)
{
    char path[PATH_BYTES];

    (void)snprintf(path, sizeof(path), "/sys/block/nbd%u/pid", number);
    return access(path, F_OK) == 0;
}

static int
nbd_find_free(unsigned *ret_number, struct dl_error *err)
{
    for (unsigned i = 0; i < NBD_MAX; i++) {
        if (access(nbd_device(i).text, F_OK) != 0)
            break;
        if (!nbd_is_connected(i) && access(nbd_path(i, "").text, F_OK) != 0) {
            *ret_number = i;
            return 0;
        }
    }
    if (access(nbd_device(0).text, F_OK) == 0) {
        (void)dl_error_set(err, -ENOSPC, "every /dev/nbdN is in use");
        dl_error_hint(err, "modprobe nbd nbds_max=64, while none is connected");
        return -ENOSPC;
    }
    (void)dl_error_set(err, -ENODEV, "this kernel has no nbd client: /dev/nbd0 is not there");
    dl_error_hint(err, "modprobe nbd; where there is none, a program can use the volume through "
                       "nbdkit-datenlord-plugin(1)");
    return -ENODEV;
}

/* As it is built: lib beside bin, or beside the program.  Installed: nbdkit knows where. */
static const char *
nbd_plugin(char path[CLI_PATH_BYTES])
{
    char self[CLI_PATH_BYTES - 64] = "";
    char *slash;

    if (readlink("/proc/self/exe", self, sizeof(self) - 1) <= 0 ||
        (slash = strrchr(self, '/')) == NULL)
        return "datenlord";
    *slash = '\0';
    (void)snprintf(path, CLI_PATH_BYTES, "%s/../lib/" PLUGIN, self);
    if (access(path, R_OK) == 0)
        return path;
    (void)snprintf(path, CLI_PATH_BYTES, "%s/" PLUGIN, self);
    return access(path, R_OK) == 0 ? path : "datenlord";
}

static int
nbd_start_server(struct cli *cli, unsigned number, const char *volume, bool read_only)
{
    struct nbd_path socket_path = nbd_path(number, ".sock");
    struct nbd_path pid_path = nbd_path(number, ".pid");
    struct cli_words words = {0};
    char plugin[CLI_PATH_BYTES];
    char volume_word[DLBLK_NAME_BYTES_MAX + 16];
    char meta_word[CLI_PATH_BYTES];
    char config_word[CLI_PATH_BYTES];

    (void)unlink(socket_path.text);
    (void)unlink(pid_path.text);
    cli_words_add(&words, "nbdkit");
    cli_words_add(&words, "-U");
    cli_words_add(&words, socket_path.text);
    cli_words_add(&words, "-P");
    cli_words_add(&words, pid_path.text);
    if (read_only)
        cli_words_add(&words, "-r");
    cli_words_add(&words, nbd_plugin(plugin));
    (void)snprintf(volume_word, sizeof(volume_word), "volume=%s", volume);
    cli_words_add(&words, volume_word);
    if (cli->meta != NULL) {
        (void)snprintf(meta_word, sizeof(meta_word), "meta=%s", cli->meta);
        cli_words_add(&words, meta_word);
    }
    if (cli->config_path != NULL) {
        (void)snprintf(config_word, sizeof(config_word), "config=%s", cli->config_path);
        cli_words_add(&words, config_word);
    }
    return cli_run_words(cli, &words, true);
}

static bool
nbd_is_usable(unsigned number)
{
    DL_CLEANUP(close) int fd = open(nbd_device(number).text, O_RDONLY | O_CLOEXEC);
    uint64_t size = 0;

    return fd >= 0 && ioctl(fd, BLKGETSIZE64, &size) == 0 && size > 0;
}

static int
nbd_connect(struct cli *cli, unsigned number)
{
    struct nbd_path socket_path = nbd_path(number, ".sock");
    struct nbd_path device = nbd_device(number);
    struct cli_words words = {0};
    struct timespec pause = {.tv_nsec = WAIT_NS};
    FILE *out = cli->out;
    int status;

    cli_words_add(&words, "nbd-client");
    cli_words_add(&words, "-unix");
    cli_words_add(&words, socket_path.text);
    cli_words_add(&words, device.text);
    cli_words_add(&words, "-b");
    cli_words_add(&words, "4096");
    /* What it says of itself is not our result. */
    (void)fflush(out);
    int saved = dup(STDOUT_FILENO);
    (void)dup2(STDERR_FILENO, STDOUT_FILENO);
    status = cli_run_words(cli, &words, true);
    (void)dup2(saved, STDOUT_FILENO);
    (void)close(saved);
    if (status != 0)
        return CLI_FAILED;
    for (int i = 0; i < WAIT_TRIES; i++) {
        if (nbd_is_usable(number))
            return CLI_OK;
        (void)nanosleep(&pause, NULL);
    }
    return CLI_FAILED;
}

static int
nbd_write_name(unsigned number, const char *volume)
{
    FILE *file = fopen(nbd_path(number, "").text, "we");

    if (file == NULL)
        return -errno;
    fprintf(file, "%s\n", volume);
    return fclose(file) == 0 ? 0 : -errno;
}

static bool
nbd_read_name(unsigned number, char name[DLBLK_NAME_BYTES_MAX + 1])
{
    DL_CLEANUP(fclose) FILE *file = fopen(nbd_path(number, "").text, "re");
    char *end;

    if (file == NULL || fgets(name, DLBLK_NAME_BYTES_MAX + 1, file) == NULL)
        return false;
    end = strchr(name, '\n');
    if (end != NULL)
        *end = '\0';
    return true;
}

static void
nbd_stop_server(unsigned number)
{
    DL_CLEANUP(fclose) FILE *file = fopen(nbd_path(number, ".pid").text, "re");
    struct timespec pause = {.tv_nsec = WAIT_NS};
    int pid = 0;

    if (file != NULL && fscanf(file, "%d", &pid) == 1 && pid > 0 && kill(pid, SIGTERM) == 0)
        for (int i = 0; i < WAIT_TRIES && kill(pid, 0) == 0; i++)
            (void)nanosleep(&pause, NULL);
    (void)unlink(nbd_path(number, "").text);
    (void)unlink(nbd_path(number, ".pid").text);
    (void)unlink(nbd_path(number, ".sock").text);
}

int
cli_attach_nbd(struct cli *cli, const char *volume, bool read_only)
{
    struct dl_error err = {0};
    unsigned number = 0;
    int result = text_check_name("volume", volume, &err);

    if (result == 0)
        result = nbd_find_free(&number, &err);
    if (result == 0) {
        (void)mkdir("/run/dlblk", 0755);
        (void)mkdir(NBD_RUN_DIR, 0755);
        result = nbd_write_name(number, volume);
        if (result != 0)
            (void)dl_error_set(&err, result, NBD_RUN_DIR ": %s", strerror(-result));
    }
    if (result != 0)
        return cli_fail(cli, &err);
    if (nbd_start_server(cli, number, volume, read_only) != 0 ||
        nbd_connect(cli, number) != CLI_OK) {
        nbd_stop_server(number);
        (void)dl_error_set(&err, -EIO, "volume %s could not be attached to %s", volume,
                           nbd_device(number).text);
        dl_error_hint(&err, "the lines above say why; nbdkit and nbd-client must be installed");
        return cli_fail(cli, &err);
    }
    fprintf(cli->out, "%s\n", nbd_device(number).text);
    return CLI_OK;
}

/* --- detach --- */

static bool
nbd_find(const char *name, unsigned *ret_number)
{
    char volume[DLBLK_NAME_BYTES_MAX + 1];

    for (unsigned i = 0; i < NBD_MAX; i++) {
        if (!nbd_read_name(i, volume))
            continue;
        if (strcmp(name, volume) == 0 || strcmp(name, nbd_device(i).text) == 0) {
            *ret_number = i;
            return true;
        }
    }
    return false;
}

bool
cli_is_nbd(const char *name)
{
    unsigned number;

    return nbd_find(name, &number);
}

int
cli_detach_nbd(struct cli *cli, const char *name, bool force)
{
    struct cli_words words = {0};
    struct dl_error err = {0};
    struct nbd_path device;
    unsigned number = 0;
    int fd;

    if (!nbd_find(name, &number))
        return CLI_NOT_FOUND;
    device = nbd_device(number);
    fd = open(device.text, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY && !force) {
        (void)dl_error_set(&err, -EBUSY, "%s is mounted, or used by another device", device.text);
        return cli_fail(cli, &err);
    }
    if (fd >= 0)
        (void)close(fd);
    cli_words_add(&words, "nbd-client");
    cli_words_add(&words, "-d");
    cli_words_add(&words, device.text);
    if (cli_run_words(cli, &words, true) != 0)
        return CLI_FAILED;
    nbd_stop_server(number);
    return CLI_OK;
}
