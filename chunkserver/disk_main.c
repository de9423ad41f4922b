/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-disk: formats, inspects and checks the disk of a chunkserver that does not run.
 *
 * Exit status: see exit_status() and the manual page.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/disk_tool.h"
#include "common/text.h"
#include "common/version.h"

#define PROGRAM        "dlblk-disk"
#define SIZE_BYTES_MIN (64ull << 20)
#define SIZE_BYTES_MAX (1ull << 50)

enum exit_code {
    EXIT_GOOD = 0,
    EXIT_FAILED = 1,  /* could not be done */
    EXIT_USAGE = 2,   /* wrong command line */
    EXIT_DAMAGED = 3, /* inspect, check: the disk is damaged */
    EXIT_BUSY = 4,    /* in use by another process, or formatted already */
    EXIT_FOREIGN = 5, /* holds other data, or belongs to another cluster */
};

static const char help_main[] =
    "Usage: dlblk-disk COMMAND PATH [OPTION...]\n"
    "Prepare and look at the disk of a dlblk chunkserver: a block device, or a file.\n"
    "\n"
    "Commands:\n"
    "  format    make a disk for a cluster; what is on it is lost\n"
    "  inspect   show what is on a disk, also on a damaged one; changes nothing\n"
    "  check     compare allocation map and leaves of a disk; changes nothing\n"
    "\n"
    "  --help, --version; dlblk-disk COMMAND --help says more.\n"
    "\n"
    "Examples:\n"
    "  dlblk-disk format /dev/sdb --meta meta1\n"
    "  dlblk-disk inspect /dev/sdb\n";

static const char help_format[] =
    "Usage: dlblk-disk format PATH --meta HOST[:PORT] [OPTION...]\n"
    "Make PATH a disk of a cluster.  A file is written full of zeroes; a block device is not.\n"
    "A disk that holds a filesystem, a partition table or dlblk data is refused.\n"
    "\n"
    "  --meta HOST[:PORT]    the metadata service: asked for the cluster's id, and written into\n"
    "                        the superblock\n"
    "  --cluster-id UUID     do not ask: this is the cluster (\"dlblk cluster status\" shows it)\n"
    "  --size SIZE           PATH does not exist: make a file of this size\n"
    "  --index DIR           where the index is to be; PATH.index, or, of a device /dev/sdb,\n"
    "                        " DISK_INDEX_DIRECTORY "/dev-sdb.index\n"
    "  --journal-size SIZE   of the journal ring; by the size of the disk\n"
    "  --metadata-size SIZE  of the metadata region; by the size of the disk\n"
    "  --force               destroy what is on the disk, and replace the index\n"
    "  --quiet               print nothing but errors\n"
    "\n"
    "Examples:\n"
    "  dlblk-disk format /dev/sdb --meta meta1\n"
    "  dlblk-disk format ./disk0 --size 4G --meta 127.0.0.1 --cluster-id "
    "6f2c1e1a-8d0b-4a0e-9a53-0f2f0a4f6c11\n";

static const char help_inspect[] =
    "Usage: dlblk-disk inspect PATH [--index DIR] [--json]\n"
    "Show both copies of the superblock, the state of the journal and what the index knows.\n"
    "Changes nothing; a disk that a server uses can be inspected (its index is not shown then).\n"
    "Exit status 3: something on the disk is damaged.\n"
    "\n"
    "Examples:\n"
    "  dlblk-disk inspect /dev/sdb\n"
    "  dlblk-disk inspect ./disk0 --json | jq .superblocks[0].valid\n";

static const char help_check[] =
    "Usage: dlblk-disk check PATH [--index DIR] [--json]\n"
    "Replay the journal as a server's start would, in memory only, and compare the allocation map\n"
    "with the leaves.  The server must not run.  Exit status 3: they disagree, or the journal is\n"
    "damaged.\n"
    "\n"
    "Examples:\n"
    "  dlblk-disk check /dev/sdb\n";

enum option_key {
    OPTION_META = 256,
    OPTION_CLUSTER_ID,
    OPTION_SIZE,
    OPTION_INDEX,
    OPTION_JOURNAL_SIZE,
    OPTION_METADATA_SIZE,
    OPTION_FORCE,
    OPTION_QUIET,
    OPTION_JSON,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option options_format[] = {
    {"meta", required_argument, NULL, OPTION_META},
    {"cluster-id", required_argument, NULL, OPTION_CLUSTER_ID},
    {"size", required_argument, NULL, OPTION_SIZE},
    {"index", required_argument, NULL, OPTION_INDEX},
    {"journal-size", required_argument, NULL, OPTION_JOURNAL_SIZE},
    {"metadata-size", required_argument, NULL, OPTION_METADATA_SIZE},
    {"force", no_argument, NULL, OPTION_FORCE},
    {"quiet", no_argument, NULL, OPTION_QUIET},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static const struct option options_look[] = {
    {"index", required_argument, NULL, OPTION_INDEX},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

/* --- running a command --- */

static int
run_format(const struct disk_tool_options *options, bool *ret_damaged, struct dl_error *err)
{
    *ret_damaged = false;
    return disk_tool_format(options, err);
}

struct command {
    const char *name;
    const char *help;
    const struct option *options;
    int (*run)(const struct disk_tool_options *options, bool *ret_damaged, struct dl_error *err);
};

static const struct command commands[] = {
    {"format", help_format, options_format, run_format},
    {"inspect", help_inspect, options_look, disk_tool_inspect},
    {"check", help_check, options_look, disk_tool_check},
};

static int
exit_status(int result)
{
    switch (-result) {
    case 0:
        return EXIT_GOOD;
    case DL_E_USAGE:
        return EXIT_USAGE;
    case DL_E_DISK_BUSY:
        return EXIT_BUSY;
    case DL_E_DISK_FOREIGN:
        return EXIT_FOREIGN;
    case DL_E_DISK_DAMAGED:
    case DL_E_INDEX_CORRUPT:
    case DL_E_INDEX_MISMATCH:
        return EXIT_DAMAGED;
    default:
        return EXIT_FAILED;
    }
}

static int
fail(int result, const struct dl_error *err)
{
    (void)fflush(stdout);
    (void)fprintf(stderr, "%s: %s\n", PROGRAM, err->text);
    if (err->hint[0] != '\0')
        (void)fprintf(stderr, "%s: %s\n", PROGRAM, err->hint);
    return exit_status(result);
}

static int
fail_usage(const char *command, const char *what, const char *argument)
{
    (void)fprintf(stderr, "%s: %s%s%s\n%s: see %s%s%s --help\n", PROGRAM, what,
                  argument != NULL ? " " : "", argument != NULL ? text_quote(argument).text : "",
                  PROGRAM, PROGRAM, command != NULL ? " " : "", command != NULL ? command : "");
    return EXIT_USAGE;
}

/* --- options --- */

static int
take_option(int key, const char *value, struct disk_tool_options *options, struct dl_error *err)
{
    switch (key) {
    case OPTION_META:
        options->meta = value;
        if (strlen(value) > SUPERBLOCK_META_BYTES_MAX)
            return dl_error_set(err, -DL_E_USAGE, "--meta: at most %u characters",
                                SUPERBLOCK_META_BYTES_MAX);
        return 0;
    case OPTION_CLUSTER_ID:
        options->cluster_id = value;
        return 0;
    case OPTION_SIZE:
        return text_parse_size("--size", value, SIZE_BYTES_MIN, SIZE_BYTES_MAX,
                               &options->size_bytes, err);
    case OPTION_JOURNAL_SIZE:
        return text_parse_size("--journal-size", value, 256 << 10, 1ull << 36,
                               &options->journal_bytes, err);
    case OPTION_METADATA_SIZE:
        return text_parse_size("--metadata-size", value, 1 << 20, 1ull << 40,
                               &options->metadata_bytes, err);
    case OPTION_INDEX:
        if (strlen(value) >= sizeof(options->index_path))
            return dl_error_set(err, -DL_E_USAGE, "--index: the path is too long");
        (void)snprintf(options->index_path, sizeof(options->index_path), "%s", value);
        return 0;
    case OPTION_FORCE:
        options->force = true;
        return 0;
    case OPTION_QUIET:
        options->quiet = true;
        return 0;
    case OPTION_JSON:
        options->json = true;
        return 0;
    default:
        dl_error_set(err, -DL_E_USAGE, "an option that is not handled");
        return -DL_E_USAGE;
    }
}

/* -1: go on; else the exit status. */
static int
parse_options(const struct command *command, int argc, char **argv,
              struct disk_tool_options *options)
{
    struct dl_error err;
    int key, result;

    opterr = 0;
    while ((key = getopt_long(argc, argv, ":", command->options, NULL)) != -1) {
        if (key == OPTION_HELP) {
            (void)fputs(command->help, stdout);
            return EXIT_GOOD;
        }
        if (key == ':')
            return fail_usage(command->name, "a value is missing after", argv[optind - 1]);
        if (key == '?')
            return fail_usage(command->name, "unknown option", argv[optind - 1]);
        result = take_option(key, optarg, options, &err);
        if (result != 0) {
            (void)fail(result, &err);
            return EXIT_USAGE;
        }
    }
    return -1;
}

static int
take_path(const struct command *command, int argc, char **argv, struct disk_tool_options *options)
{
    if (optind >= argc)
        return fail_usage(command->name, "the disk's path is missing", NULL);
    if (optind + 1 < argc)
        return fail_usage(command->name, "more than one path:", argv[optind + 1]);
    options->path = argv[optind];
    if (options->index_path[0] != '\0')
        return -1;
    if (disk_index_path(options->path, options->index_path, sizeof(options->index_path)) != 0)
        return fail_usage(command->name, "the path is too long", NULL);
    return -1;
}

static int
run_command(const struct command *command, int argc, char **argv)
{
    struct disk_tool_options options = {0};
    struct dl_error err = {0};
    bool damaged = false;
    int status = parse_options(command, argc, argv, &options);
    int result;

    if (status < 0)
        status = take_path(command, argc, argv, &options);
    if (status >= 0)
        return status;
    result = command->run(&options, &damaged, &err);
    if (result != 0)
        return fail(result, &err);
    if (fflush(stdout) != 0) {
        (void)dl_error_set(&err, -errno, "cannot write the result: %s", dl_err_str(errno));
        return fail(-EIO, &err);
    }
    return damaged ? EXIT_DAMAGED : EXIT_GOOD;
}

int
main(int argc, char **argv)
{
    if (argc < 2)
        return fail_usage(NULL, "a command is missing", NULL);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        (void)fputs(help_main, stdout);
        return EXIT_GOOD;
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)puts(dlblk_version_text(PROGRAM));
        return EXIT_GOOD;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return run_command(&commands[i], argc - 1, argv + 1);
    return fail_usage(NULL, "unknown command", argv[1]);
}
