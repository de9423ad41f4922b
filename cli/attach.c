/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk attach|detach, dlblk devices: dlblk-ublk does the work, this finds it and passes on what
 * was asked.  With --nbd, where the kernel has no ublk: attach_nbd.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/attach.h"
#include "common/assert.h"
#include "common/text.h"

#define TARGET_PROGRAM "dlblk-ublk"

/* --- other programs --- */

/* Beside this program, as it is built; in sbin beside its bin, as it is installed; else $PATH. */
const char *
cli_find_program(const char *name, char path[CLI_PATH_BYTES])
{
    static const char *const places[] = {"", "/../sbin"};
    char self[CLI_PATH_BYTES / 2] = "";
    char *slash;

    if (readlink("/proc/self/exe", self, sizeof(self) - 1) <= 0 ||
        (slash = strrchr(self, '/')) == NULL)
        return name;
    *slash = '\0';
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        (void)snprintf(path, CLI_PATH_BYTES, "%s%s/%.64s", self, places[i], name);
        if (access(path, X_OK) == 0)
            return path;
    }
    return name;
}

void
cli_words_add(struct cli_words *words, const char *word)
{
    dl_assert(words->count < CLI_WORDS_MAX);
    words->word[words->count++] = word;
    words->word[words->count] = NULL;
}

int
cli_run_words(struct cli *cli, const struct cli_words *words, bool wait)
{
    int status = 0;
    pid_t pid;

    (void)fflush(cli->out);
    (void)fflush(cli->err);
    pid = wait ? fork() : 0;
    if (pid == 0) {
        (void)execvp(words->word[0], (char *const *)(uintptr_t)words->word);
        fprintf(cli->err,
                "dlblk: %s can't be run: %s\n"
                "       it belongs beside dlblk, or where $PATH says\n",
                words->word[0], strerror(errno));
        if (wait)
            _exit(127);
        return CLI_FAILED;
    }
    if (pid < 0) {
        fprintf(cli->err, "dlblk: fork: %s\n", strerror(errno));
        return CLI_FAILED;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : CLI_FAILED;
}

/* --- commands --- */

CLI_COMMAND(cli_attach)
{
    bool read_only = false, foreground = false, steal = false, volatile_cache = false, nbd = false;
    bool queues_seen = false, depth_seen = false, id_seen = false;
    const char *force = NULL;
    uint64_t queues = 0, depth = 0, id = 0;
    const struct cli_option options[] = {
        {"read-only", CLI_FLAG, NULL, "nobody may write", &read_only, 0, 0, NULL, NULL},
        {"queues", CLI_NUMBER, "N", "queues of the block layer (1)", &queues, 1, 64, NULL,
         &queues_seen},
        {"depth", CLI_NUMBER, "D", "requests in flight, for each queue (128)", &depth, 1, 4095,
         NULL, &depth_seen},
        {"id", CLI_NUMBER, "N", "the device is /dev/ublkbN (the first free one)", &id, 0, 1u << 20,
         NULL, &id_seen},
        {"foreground", CLI_FLAG, NULL, "serve until the device is detached, without a supervisor",
         &foreground, 0, 0, NULL, NULL},
        {"steal", CLI_FLAG, NULL, "take the volume from an owner that lives", &steal, 0, 0, NULL,
         NULL},
        {"force", CLI_TEXT, "SERVERS", "these servers are gone for good: dlblk volume force --help",
         &force, 0, 0, NULL, NULL},
        {"volatile-cache", CLI_FLAG, NULL, "let the kernel send FLUSH and FUA, which it needn't",
         &volatile_cache, 0, 0, NULL, NULL},
        {"nbd", CLI_FLAG, NULL, "through nbdkit and the kernel's nbd client instead of ublk", &nbd,
         0, 0, NULL, NULL},
    };
    struct cli_words words = {0};
    struct text_short numbers[3];
    char path[CLI_PATH_BYTES];
    const char *volume = NULL;
    int status = cli_parse(cli, command, options, sizeof(options) / sizeof(options[0]), argc, argv,
                           &volume, 1);

    if (status != CLI_GO_ON)
        return status;
    if (nbd && (queues_seen || depth_seen || id_seen || foreground || steal || volatile_cache))
        return cli_usage(cli, command, "--nbd knows --read-only and --force only");
    if (force != NULL && (status = cli_force(cli, volume, force)) != CLI_OK)
        return status;
    if (nbd)
        return cli_attach_nbd(cli, volume, read_only);
    cli_words_add(&words, cli_find_program(TARGET_PROGRAM, path));
    cli_words_add(&words, "serve");
    if (!foreground) {
        cli_words_add(&words, "--background");
        cli_words_add(&words, "--supervise");
    }
    if (read_only)
        cli_words_add(&words, "--read-only");
    if (steal)
        cli_words_add(&words, "--steal");
    if (volatile_cache)
        cli_words_add(&words, "--volatile-cache");
    if (queues_seen)
        cli_words_add_number(&words, "--queues", queues, &numbers[0]);
    if (depth_seen)
        cli_words_add_number(&words, "--depth", depth, &numbers[1]);
    if (id_seen)
        cli_words_add_number(&words, "--id", id, &numbers[2]);
    cli_words_add_global(cli, &words);
    cli_words_add(&words, "--");
    cli_words_add(&words, volume);
    return cli_run_words(cli, &words, false);
}

void
cli_words_add_number(struct cli_words *words, const char *option, uint64_t number,
                     struct text_short *memory)
{
    (void)snprintf(memory->text, sizeof(memory->text), "%llu", (unsigned long long)number);
    cli_words_add(words, option);
    cli_words_add(words, memory->text);
}

void
cli_words_add_global(const struct cli *cli, struct cli_words *words)
{
    if (cli->meta != NULL) {
        cli_words_add(words, "--meta");
        cli_words_add(words, cli->meta);
    }
    if (cli->config_path != NULL) {
        cli_words_add(words, "--config");
        cli_words_add(words, cli->config_path);
    }
    if (cli->timeout_ms != 0) {
        (void)snprintf(words->timeout.text, sizeof(words->timeout.text), "%llums",
                       (unsigned long long)cli->timeout_ms);
        cli_words_add(words, "--timeout");
        cli_words_add(words, words->timeout.text);
    }
}

CLI_COMMAND(cli_detach)
{
    bool force = false;
    const struct cli_option options[] = {
        {"force", CLI_FLAG, NULL, "also while it is mounted or open: its users get I/O errors",
         &force, 0, 0, NULL, NULL},
    };
    struct cli_words words = {0};
    char path[CLI_PATH_BYTES];
    const char *name = NULL;
    int status = cli_parse(cli, command, options, 1, argc, argv, &name, 1);

    if (status != CLI_GO_ON)
        return status;
    if (cli_is_nbd(name))
        return cli_detach_nbd(cli, name, force);
    cli_words_add(&words, cli_find_program(TARGET_PROGRAM, path));
    cli_words_add(&words, "detach");
    if (force)
        cli_words_add(&words, "--force");
    cli_words_add(&words, "--");
    cli_words_add(&words, name);
    return cli_run_words(cli, &words, false);
}

CLI_COMMAND(cli_devices)
{
    struct cli_words words = {0};
    char path[CLI_PATH_BYTES];
    int status = cli_parse(cli, command, NULL, 0, argc, argv, NULL, 0);

    if (status != CLI_GO_ON)
        return status;
    cli_words_add(&words, cli_find_program(TARGET_PROGRAM, path));
    cli_words_add(&words, "list");
    if (cli->json)
        cli_words_add(&words, "--json");
    return cli_run_words(cli, &words, false);
}
