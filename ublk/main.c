/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-ublk: the command line.  docs/dlblk-ublk.8.pod describes it.
 *
 * Exit status: that of dlblk: 0 done, 1 failed, 2 wrong command line, 3 not found, 4 busy, 5
 * unreachable, 6 exists, 7 no space.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/log.h"
#include "common/text.h"
#include "ublk/device.h"
#include "ublk/devices.h"
#include "ublk/supervise.h"

#define PROGRAM     "dlblk-ublk"
#define ATTACH_CONF "/etc/dlblk/attach.conf"
#define WORDS_MAX   32
#define LINE_BYTES  1024
#define PATH_BYTES  1024

enum { EXIT_DONE = 0, EXIT_USAGE = 2 };

static const char help_text[] = PROGRAM
    ": volumes as block devices /dev/ublkbN\n"
    "\n"
    "  " PROGRAM " serve [OPTION...] VOLUME\n"
    "                     attach VOLUME; or take over its device, if its server has died\n"
    "  " PROGRAM " recover [OPTION...] [VOLUME|DEVICE]\n"
    "                     take over the device whose server has died; or all such devices, each\n"
    "                     in the background with a supervisor\n"
    "  " PROGRAM " detach [--force] VOLUME|DEVICE\n"
    "  " PROGRAM " list [--json]\n"
    "  " PROGRAM " attach-all [--timeout TIME] [--meta ADDRESS,...] [--config FILE]\n"
    "                     attach what stands in " ATTACH_CONF ": lines of VOLUME OPTION...\n"
    "\n"
    "  --read-only        nobody may write; others can read the volume as well\n"
    "  --queues N         of the kernel's block layer (1)\n"
    "  --depth N          requests in flight, for each queue (128)\n"
    "  --id N             /dev/ublkbN (the first that is free)\n"
    "  --steal            take the volume from an owner that lives\n"
    "  --volatile-cache   let the kernel send FLUSH and FUA, which it needn't\n"
    "  --null SIZE        no volume: a device that forgets what is written\n"
    "  --block 512|4096   logical block of --null (4096)\n"
    "  --background       return when the device can be used\n"
    "  --supervise        start another server when this one dies\n"
    "  --log FILE         for --background (/run/dlblk/ublk/VOLUME.log)\n"
    "  --meta ADDRESS,... the metadata service ($DLBLK_META; meta in [cluster])\n"
    "  --config FILE      instead of /etc/dlblk/dlblk.conf\n"
    "  --timeout TIME     how long to wait for the metadata service (10s)\n"
    "  --force            detach: also while it is in use; its users get I/O errors\n"
    "  --json             list: with all that is known\n"
    "  --version, --help\n"
    "\n"
    "Examples:\n"
    "  " PROGRAM " serve db1\n"
    "  " PROGRAM " serve --background --supervise --queues 2 db1\n"
    "  " PROGRAM " recover\n"
    "  " PROGRAM " list --json\n"
    "  " PROGRAM " attach-all --timeout 5min\n"
    "  " PROGRAM " detach /dev/ublkb0\n";

struct arguments {
    const char *command;
    const char *name; /* may be NULL */
    struct target_options target;
    struct supervise_options supervise;
    bool force;
    bool json;
};

static int
usage_error(const char *what, const char *argument)
{
    (void)fprintf(stderr, PROGRAM ": %s%s%s\n", what, argument != NULL ? " " : "",
                  argument != NULL ? text_quote(argument).text : "");
    (void)fprintf(stderr, PROGRAM ": see " PROGRAM " --help\n");
    return EXIT_USAGE;
}

/* --- options --- */

enum option_id {
    OPTION_READ_ONLY = 256,
    OPTION_QUEUES,
    OPTION_DEPTH,
    OPTION_ID,
    OPTION_STEAL,
    OPTION_VOLATILE_CACHE,
    OPTION_NULL,
    OPTION_BLOCK,
    OPTION_BACKGROUND,
    OPTION_SUPERVISE,
    OPTION_LOG,
    OPTION_META,
    OPTION_CONFIG,
    OPTION_TIMEOUT,
    OPTION_FORCE,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option options[] = {
    {"read-only", no_argument, NULL, OPTION_READ_ONLY},
    {"queues", required_argument, NULL, OPTION_QUEUES},
    {"depth", required_argument, NULL, OPTION_DEPTH},
    {"id", required_argument, NULL, OPTION_ID},
    {"steal", no_argument, NULL, OPTION_STEAL},
    {"volatile-cache", no_argument, NULL, OPTION_VOLATILE_CACHE},
    {"null", required_argument, NULL, OPTION_NULL},
    {"block", required_argument, NULL, OPTION_BLOCK},
    {"background", no_argument, NULL, OPTION_BACKGROUND},
    {"supervise", no_argument, NULL, OPTION_SUPERVISE},
    {"log", required_argument, NULL, OPTION_LOG},
    {"meta", required_argument, NULL, OPTION_META},
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"timeout", required_argument, NULL, OPTION_TIMEOUT},
    {"force", no_argument, NULL, OPTION_FORCE},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int
take_number(const char *what, uint64_t min, uint64_t max, uint32_t *ret_number)
{
    struct dl_error err = {0};
    uint64_t number = 0;

    if (text_parse_number(what, optarg, min, max, &number, &err) != 0)
        return ublk_print_error(&err);
    *ret_number = (uint32_t)number;
    return EXIT_DONE;
}

static int
take_null(struct target_options *target)
{
    struct dl_error err = {0};

    if (text_parse_size("--null", optarg, 4096, 1ull << 50, &target->null_bytes, &err) != 0)
        return ublk_print_error(&err);
    return EXIT_DONE;
}

static int
take_option(struct arguments *arguments, int option)
{
    struct target_options *target = &arguments->target;

    switch (option) {
    case OPTION_READ_ONLY:
        target->read_only = true;
        return EXIT_DONE;
    case OPTION_QUEUES:
        return take_number("--queues", 1, TARGET_QUEUES_MAX, &target->queues);
    case OPTION_DEPTH:
        return take_number("--depth", 1, TARGET_DEPTH_MAX, &target->depth);
    case OPTION_ID:
        return take_number("--id", 0, UBLK_DEVICE_MAX - 1, &target->id);
    case OPTION_STEAL:
        target->steal = true;
        return EXIT_DONE;
    case OPTION_VOLATILE_CACHE:
        target->volatile_cache = true;
        return EXIT_DONE;
    case OPTION_NULL:
        return take_null(target);
    case OPTION_BLOCK:
        return take_number("--block", 512, 4096, &target->null_logical_bytes);
    case OPTION_BACKGROUND:
        arguments->supervise.background = true;
        return EXIT_DONE;
    case OPTION_SUPERVISE:
        arguments->supervise.supervise = true;
        return EXIT_DONE;
    case OPTION_LOG:
        arguments->supervise.log_path = optarg;
        return EXIT_DONE;
    case OPTION_META:
        target->meta = optarg;
        return EXIT_DONE;
    case OPTION_CONFIG:
        target->config = optarg;
        return EXIT_DONE;
    case OPTION_TIMEOUT:
        target->connect_timeout = optarg;
        return EXIT_DONE;
    case OPTION_FORCE:
        arguments->force = true;
        return EXIT_DONE;
    case OPTION_JSON:
        arguments->json = true;
        return EXIT_DONE;
    default:
        return usage_error("unknown option", NULL);
    }
}

static int
parse_options(int argc, char **argv, struct arguments *arguments)
{
    int option;

    optind = 0;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        int status;

        if (option == OPTION_HELP || option == 'h') {
            printf("%s", help_text);
            exit(EXIT_DONE);
        }
        if (option == ':')
            return usage_error("a value is missing behind", argv[optind - 1]);
        if (option == '?')
            return usage_error("unknown option", argv[optind - 1]);
        status = take_option(arguments, option);
        if (status != EXIT_DONE)
            return status;
    }
    if (argc - optind < 1)
        return usage_error("a command is missing: serve, recover, detach, list or attach-all",
                           NULL);
    if (argc - optind > 2)
        return usage_error("unexpected argument", argv[optind + 2]);
    arguments->command = argv[optind];
    arguments->name = argc - optind > 1 ? argv[optind + 1] : NULL;
    return EXIT_DONE;
}

static void
init_arguments(struct arguments *arguments)
{
    *arguments = (struct arguments){
        .target =
            {
                .id = UBLK_ANY_ID,
                .queues = TARGET_QUEUES_DEFAULT,
                .depth = TARGET_DEPTH_DEFAULT,
                .null_logical_bytes = 4096,
            },
    };
}

/* --- attach.conf --- */

/* The words of a line; "#" begins a comment.  The line is cut up. */
static int
split_line(char *line, char **words, int words_max)
{
    char *save = NULL;
    char *comment = strchr(line, '#');
    int count = 0;

    if (comment != NULL)
        *comment = '\0';
    for (char *word = strtok_r(line, " \t\r\n", &save); word != NULL && count < words_max;
         word = strtok_r(NULL, " \t\r\n", &save))
        words[count++] = word;
    return count;
}

/* Whether VOLUME stands in the file; its options, which point into *line. */
static bool
conf_options_of(const char *path, const char *volume, char line[LINE_BYTES], char **words,
                int words_max, int *ret_count)
{
    DL_CLEANUP(fclose) FILE *file = fopen(path, "re");

    while (file != NULL && fgets(line, LINE_BYTES, file) != NULL) {
        int count = split_line(line, words, words_max);

        if (count > 0 && strcmp(words[0], volume) == 0) {
            *ret_count = count;
            return true;
        }
    }
    return false;
}

/* Again, with the file's options in front: those of the command line come later and count more. */
static int
parse_with_conf(int argc, char **argv, struct arguments *arguments, char line[LINE_BYTES])
{
    char *words[WORDS_MAX];
    char *all[2 * WORDS_MAX + 2];
    int count = 0;
    int all_count = 0;

    if (strcmp(arguments->command, "serve") != 0 || arguments->name == NULL ||
        arguments->target.null_bytes != 0 || argc > WORDS_MAX ||
        !conf_options_of(ATTACH_CONF, arguments->name, line, words, WORDS_MAX, &count))
        return EXIT_DONE;
    all[all_count++] = argv[0];
    for (int i = 1; i < count; i++)
        all[all_count++] = words[i];
    for (int i = 1; i < argc; i++)
        all[all_count++] = argv[i];
    all[all_count] = NULL;
    init_arguments(arguments);
    return parse_options(all_count, all, arguments);
}

/*
 * One server per line, each in the background; those that are attached stay as they are.  The
 * server reads the line's options itself.
 */
static int
attach_line(const char *self, const struct target_options *target, const char *volume)
{
    const char *argv[12] = {PROGRAM, "serve", "--background", "--supervise", volume};
    const char *const passed[][2] = {
        {"--meta", target->meta},
        {"--config", target->config},
        {"--timeout", target->connect_timeout},
    };
    size_t count = 5;
    struct ublk_state state;
    struct dl_error err = {0};
    int status = 0;
    pid_t pid;

    if (devices_find_waiting(volume, &state, &err) == -DL_E_VOLUME_BUSY)
        return 0;
    for (size_t i = 0; i < sizeof(passed) / sizeof(passed[0]); i++) {
        if (passed[i][1] == NULL)
            continue;
        argv[count++] = passed[i][0];
        argv[count++] = passed[i][1];
    }
    (void)fflush(stdout);
    pid = fork();
    if (pid == 0) {
        (void)execv(self, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    if (pid < 0)
        return -errno;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

static int
run_attach_all(const struct target_options *target)
{
    char self[PATH_BYTES] = "";
    DL_CLEANUP(fclose) FILE *file = NULL;
    char line[LINE_BYTES];
    char *words[WORDS_MAX];
    int failed = 0;

    /* The path itself: a process is known by the name of its file. */
    if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
        return EXIT_FAILURE;
    file = fopen(ATTACH_CONF, "re");
    if (file == NULL && errno == ENOENT)
        return EXIT_DONE; /* nothing to attach */
    if (file == NULL) {
        (void)fprintf(stderr, PROGRAM ": " ATTACH_CONF ": %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    while (fgets(line, sizeof(line), file) != NULL) {
        int count = split_line(line, words, WORDS_MAX);

        if (count > 0 && attach_line(self, target, words[0]) != 0) {
            (void)fprintf(stderr, PROGRAM ": volume %s could not be attached\n", words[0]);
            failed++;
        }
    }
    return failed > 0 ? EXIT_FAILURE : EXIT_DONE;
}

/* --- commands --- */

static int
run_serve(struct arguments *arguments)
{
    struct target_options *target = &arguments->target;
    struct ublk_state state;
    struct dl_error err = {0};
    int result;

    if (arguments->name == NULL)
        return usage_error("the volume is missing", NULL);
    if (target->null_logical_bytes != 512 && target->null_logical_bytes != 4096)
        return usage_error("--block is 512 or 4096", NULL);
    if (text_check_name("volume", arguments->name, &err) != 0)
        return ublk_print_error(&err);
    target->volume = arguments->name;
    result = devices_find_waiting(arguments->name, &state, &err);
    if (result == 0)
        target->recover = &state;
    else if (result != -ENOENT)
        return ublk_print_error(&err);
    result = supervise_run(&arguments->supervise, target, &err);
    return result == 0 ? EXIT_DONE : ublk_print_error(&err);
}

/* Without a name as attach-all does it. */
static int
run_recover(struct arguments *arguments, struct dl_error *err)
{
    if (arguments->name == NULL) {
        arguments->supervise.background = true;
        arguments->supervise.supervise = true;
    }
    return devices_recover(arguments->name, &arguments->supervise, arguments->target.steal, err);
}

/* tune ID DEPTH: what device_tune() starts; not for users. */
static int
run_tune(char **argv)
{
    struct dl_error err = {0};
    uint64_t id = 0;
    uint64_t depth = 0;

    if (text_parse_number("device", argv[2], 0, UBLK_DEVICE_MAX, &id, &err) != 0 ||
        text_parse_number("depth", argv[3], 1, TARGET_DEPTH_MAX, &depth, &err) != 0)
        return ublk_print_error(&err);
    device_tune_here((uint32_t)id, (uint32_t)depth);
    return EXIT_DONE;
}

static int
run_command(struct arguments *arguments)
{
    struct dl_error err = {0};
    int result;

    if (strcmp(arguments->command, "serve") == 0)
        return run_serve(arguments);
    if (strcmp(arguments->command, "attach-all") == 0)
        return run_attach_all(&arguments->target);
    if (strcmp(arguments->command, "list") == 0)
        result = devices_list(arguments->json, &err);
    else if (strcmp(arguments->command, "recover") == 0)
        result = run_recover(arguments, &err);
    else if (strcmp(arguments->command, "detach") != 0)
        return usage_error("unknown command", arguments->command);
    else if (arguments->name == NULL)
        return usage_error("the volume or the device is missing", NULL);
    else
        result = devices_detach(arguments->name, arguments->force, &err);
    return result == 0 ? EXIT_DONE : ublk_print_error(&err);
}

int
main(int argc, char **argv)
{
    struct arguments arguments;
    char line[LINE_BYTES];
    int status;

    /* A server would keep open what its caller happened to have open: the device, say. */
    (void)close_range(STDERR_FILENO + 1, ~0u, 0);
    daemon_init(PROGRAM, argc, argv);
    if (argc == 4 && strcmp(argv[1], "tune") == 0)
        return run_tune(argv);
    init_arguments(&arguments);
    status = parse_options(argc, argv, &arguments);
    if (status == EXIT_DONE)
        status = parse_with_conf(argc, argv, &arguments, line);
    if (status != EXIT_DONE)
        return status;
    return run_command(&arguments);
}
