/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-chunkserver: the command line.  docs/man/dlblk-chunkserver.8.pod describes it.
 *
 * Exit status: 0 stopped by a signal, 1 failed, 2 wrong command line.
 */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/serve.h"
#include "common/conf.h"
#include "common/daemon.h"
#include "common/log.h"
#include "common/text.h"

#define CONFIG_PATH    "/etc/dlblk/dlblk.conf"
#define PROGRAM        "dlblk-chunkserver"
#define PATH_BYTES_MAX 4096u

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char help_text[] = PROGRAM
    ": serves the chunks of one disk\n"
    "\n"
    "  " PROGRAM " [OPTION...] DISK\n"
    "\n"
    "DISK is a block device or a file that `dlblk-disk format` has prepared.\n"
    "\n"
    "  --index DIR         the disk's index (DISK.index, of a device /dev/sdb\n"
    "                      " DISK_INDEX_DIRECTORY "/dev-sdb.index; key index in [chunkserver])\n"
    "  --meta ADDRESS,...  the metadata service (127.0.0.1:%u; $DLBLK_META; meta in [cluster])\n"
    "  --listen ADDRESS    HOST, HOST:PORT, [V6]:PORT (127.0.0.1:%u; key listen in [chunkserver])\n"
    "  --advertise ADDRESS where clients reach it, if that is not what is listened on\n"
    "  --host NAME         the machine, for placement (its host name)\n"
    "  --rack NAME         the rack it stands in\n"
    "  --clique NAME       a group that volumes can be pinned to\n"
    "  --cache SIZE        memory for maps of chunks (256M)\n"
    "  --lock-wait TIME    how long to wait for a process that still has the disk (30s)\n"
    "  --scrub-days N      everything is read and compared once in N days (14; 0: never)\n"
    "  --config FILE       instead of " CONFIG_PATH "\n"
    "  --check-config      look for mistakes in the configuration, and exit\n"
    "  --version, --help\n"
    "\n"
    "Flags come before the environment (DLBLK_META), and that before the file.\n"
    "\n"
    "Examples:\n"
    "  dlblk-disk format /dev/sdb --meta meta1\n"
    "  dlblk-chunkserver /dev/sdb --meta meta1,meta2 --listen 10.0.0.11 --rack r7\n"
    "  dlblk-chunkserver /srv/disk1 --listen 127.0.0.1:7711 --host test1\n";

enum option_id {
    OPTION_INDEX = 256,
    OPTION_META,
    OPTION_LISTEN,
    OPTION_ADVERTISE,
    OPTION_HOST,
    OPTION_RACK,
    OPTION_CLIQUE,
    OPTION_CACHE,
    OPTION_LOCK_WAIT,
    OPTION_SCRUB_DAYS,
    OPTION_CONFIG,
    OPTION_CHECK,
    OPTION_HELP,
};

/* Options that are nothing but keys of the configuration. */
struct setting {
    enum option_id option;
    const char *flag;
    const char *section;
    const char *key;
};

static const struct setting settings[] = {
    {OPTION_INDEX, "--index", "chunkserver", "index"},
    {OPTION_META, "--meta", "cluster", "meta"},
    {OPTION_LISTEN, "--listen", "chunkserver", "listen"},
    {OPTION_ADVERTISE, "--advertise", "chunkserver", "advertise"},
    {OPTION_HOST, "--host", "chunkserver", "host"},
    {OPTION_RACK, "--rack", "chunkserver", "rack"},
    {OPTION_CLIQUE, "--clique", "chunkserver", "clique"},
    {OPTION_CACHE, "--cache", "chunkserver", "cache"},
    {OPTION_LOCK_WAIT, "--lock-wait", "chunkserver", "lock_wait"},
    {OPTION_SCRUB_DAYS, "--scrub-days", "chunkserver", "scrub_days"},
};
#define SETTING_COUNT (sizeof(settings) / sizeof(settings[0]))

struct arguments {
    const char *values[SETTING_COUNT];
    const char *config;
    const char *disk;
    bool check_config;
};

static int
print_error(const struct dl_error *err)
{
    (void)fprintf(stderr, PROGRAM ": %s\n", err->text);
    if (err->hint[0] != '\0')
        (void)fprintf(stderr, PROGRAM ": %s\n", err->hint);
    return err->code == -DL_E_USAGE || err->code == -DL_E_CONFIG_INVALID ? EXIT_USAGE : EXIT_FAILED;
}

static int
usage_error(const char *what, const char *argument)
{
    (void)fprintf(stderr, PROGRAM ": %s%s%s\n", what, argument != NULL ? " " : "",
                  argument != NULL ? text_quote(argument).text : "");
    (void)fprintf(stderr, PROGRAM ": see " PROGRAM " --help\n");
    return EXIT_USAGE;
}

static void
take_setting(struct arguments *arguments, int option)
{
    for (size_t i = 0; i < SETTING_COUNT; i++)
        if ((int)settings[i].option == option)
            arguments->values[i] = optarg;
}

static int
parse_options(int argc, char **argv, struct arguments *arguments)
{
    static const struct option options[] = {
        {"index", required_argument, NULL, OPTION_INDEX},
        {"meta", required_argument, NULL, OPTION_META},
        {"listen", required_argument, NULL, OPTION_LISTEN},
        {"advertise", required_argument, NULL, OPTION_ADVERTISE},
        {"host", required_argument, NULL, OPTION_HOST},
        {"rack", required_argument, NULL, OPTION_RACK},
        {"clique", required_argument, NULL, OPTION_CLIQUE},
        {"cache", required_argument, NULL, OPTION_CACHE},
        {"lock-wait", required_argument, NULL, OPTION_LOCK_WAIT},
        {"scrub-days", required_argument, NULL, OPTION_SCRUB_DAYS},
        {"config", required_argument, NULL, OPTION_CONFIG},
        {"check-config", no_argument, NULL, OPTION_CHECK},
        {"help", no_argument, NULL, OPTION_HELP},
        {NULL, 0, NULL, 0},
    };
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (option) {
        case OPTION_CONFIG:
            arguments->config = optarg;
            break;
        case OPTION_CHECK:
            arguments->check_config = true;
            break;
        case OPTION_HELP:
        case 'h':
            printf(help_text, DLBLK_PORT_META, DLBLK_PORT_CHUNKSERVER);
            exit(EXIT_DONE);
        case ':':
            return usage_error("a value is missing behind", argv[optind - 1]);
        case '?':
            return usage_error("unknown option", argv[optind - 1]);
        default:
            take_setting(arguments, option);
            break;
        }
    }
    if (argc - optind > 1)
        return usage_error("one process serves one disk; unexpected argument", argv[optind + 1]);
    arguments->disk = argv[optind]; /* NULL behind the last */
    return EXIT_DONE;
}

static int
read_configuration(const struct arguments *arguments, struct conf *conf, struct dl_error *err)
{
    const char *path = arguments->config != NULL ? arguments->config : CONFIG_PATH;
    int result = conf_read_file(conf, path, err);

    /* Only one that was asked for must be there. */
    if (result == -ENOENT && arguments->config == NULL)
        result = 0;
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", getenv("DLBLK_META"), "DLBLK_META", err);
    for (size_t i = 0; i < SETTING_COUNT && result == 0; i++)
        result = conf_set(conf, settings[i].section, settings[i].key, arguments->values[i],
                          settings[i].flag, err);
    return result;
}

/*
 * The placement's default failure domain: two disks of one machine must not count as two machines.
 */
static const char *
host_label(const struct conf *conf)
{
    static char name[256];
    char *dot;

    if (conf_text(conf, "chunkserver", "host") != NULL)
        return conf_text(conf, "chunkserver", "host");
    if (gethostname(name, sizeof(name) - 1) != 0)
        return NULL;
    dot = strchr(name, '.');
    if (dot != NULL)
        *dot = '\0';
    return name;
}

static int
fill_addresses(const struct conf *conf, struct serve_options *options, struct dl_error *err)
{
    int result = dl_address_parse(conf_text(conf, "chunkserver", "listen"), DLBLK_PORT_CHUNKSERVER,
                                  &options->listen, err);

    if (result == 0)
        result = dl_address_parse_list(conf_text(conf, "cluster", "meta"), DLBLK_PORT_META,
                                       options->metas, CHUNKSERVER_META_COUNT_MAX,
                                       &options->meta_count, err);
    options->advertise = conf_text(conf, "chunkserver", "advertise");
    return result;
}

static int
run(const struct arguments *arguments, const struct conf *conf)
{
    char index_path[PATH_BYTES_MAX];
    struct serve_options options = {
        .disk_path = arguments->disk != NULL ? arguments->disk
                                             : conf_text(conf, "chunkserver", "path"),
        .index_path = conf_text(conf, "chunkserver", "index"),
        .host = host_label(conf),
        .rack = conf_text(conf, "chunkserver", "rack"),
        .clique = conf_text(conf, "chunkserver", "clique"),
        .cache_bytes = conf_number(conf, "chunkserver", "cache"),
        .lock_wait_ms = conf_number(conf, "chunkserver", "lock_wait"),
        .scrub_days = conf_number(conf, "chunkserver", "scrub_days"),
    };
    struct dl_error err;

    if (options.disk_path == NULL)
        return usage_error("the disk is missing", NULL);
    if (options.index_path == NULL) {
        if (disk_index_path(options.disk_path, index_path, sizeof(index_path)) != 0)
            return usage_error("the name of the disk is too long", NULL);
        options.index_path = index_path;
    }
    if (fill_addresses(conf, &options, &err) < 0)
        return print_error(&err);
    if (arguments->check_config) {
        printf("no mistakes; disk %s, index %s, listening on %s\n", options.disk_path,
               options.index_path, dl_address_format(&options.listen).text);
        return EXIT_DONE;
    }
    log_set_level((enum log_level)conf_number(conf, "chunkserver", "log_level"));
    return chunkserver_serve(&options);
}

int
main(int argc, char **argv)
{
    struct arguments arguments = {0};
    struct conf *conf = NULL;
    struct dl_error err;
    int status;

    daemon_init(PROGRAM, argc, argv);
    status = parse_options(argc, argv, &arguments);
    if (status != EXIT_DONE)
        return status;
    if (conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count) < 0) {
        (void)fprintf(stderr, PROGRAM ": out of memory\n");
        return EXIT_FAILED;
    }
    if (read_configuration(&arguments, conf, &err) < 0)
        status = print_error(&err);
    else
        status = run(&arguments, conf);
    conf_destroy(conf);
    return status;
}
