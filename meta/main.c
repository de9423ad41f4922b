/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-meta: the command line.  docs/man/dlblk-meta.8.pod describes it.
 *
 * Exit status: 0 done, 1 failed, 2 wrong command line or configuration.
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/conf.h"
#include "common/daemon.h"
#include "common/log.h"
#include "common/text.h"
#include "meta/backup.h"
#include "meta/core.h"
#include "meta/offline.h"
#include "meta/serve.h"

#define CONFIG_PATH "/etc/dlblk/dlblk.conf"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char help_text[] =
    "dlblk-meta: the metadata service of a dlblk cluster\n"
    "\n"
    "  dlblk-meta init    [--dir DIR] [--cluster-id UUID]\n"
    "                     make a new cluster; refuses a directory that has one\n"
    "  dlblk-meta serve   [--dir DIR] [--listen ADDRESS] [--check-config]\n"
    "                     run the service in the foreground\n"
    "  dlblk-meta backup  [--dir DIR] [--force] FILE\n"
    "                     write all metadata to FILE, also while the service runs\n"
    "  dlblk-meta restore [--dir DIR] FILE\n"
    "                     make a new metadata directory from FILE\n"
    "  dlblk-meta --version | --help\n"
    "\n"
    "  --dir DIR          where the metadata lives (/var/lib/dlblk/meta; key path in [meta])\n"
    "  --listen ADDRESS   HOST, HOST:PORT, [V6]:PORT (127.0.0.1:%u; key listen in [meta])\n"
    "  --config FILE      instead of " CONFIG_PATH "\n"
    "  --check-config     look for mistakes in the configuration, and exit\n"
    "\n"
    "Keys of [meta] without a flag: out_after, recovery_per_server, rebalance, log_level;\n"
    "see dlblk.conf(5).\n"
    "\n"
    "Flags count more than the environment (DLBLK_META_DIR, DLBLK_META_LISTEN), and that\n"
    "more than the file.\n"
    "\n"
    "Examples:\n"
    "  dlblk-meta init --dir /srv/meta\n"
    "  dlblk-meta serve --dir /srv/meta --listen 10.0.0.1\n"
    "  dlblk-meta backup --dir /srv/meta /backup/meta-$(date +%%F)\n"
    "  dlblk-meta restore --dir /srv/meta-new /backup/meta-2026-11-21\n";

struct arguments {
    const char *command;
    const char *dir;
    const char *listen;
    const char *config;
    const char *cluster_id;
    const char *file;
    bool check_config;
    bool force;
};

static int
print_error(const struct dl_error *err)
{
    (void)fprintf(stderr, "dlblk-meta: %s\n", err->text);
    if (err->hint[0] != '\0')
        (void)fprintf(stderr, "dlblk-meta: %s\n", err->hint);
    return err->code == -DL_E_USAGE || err->code == -DL_E_CONFIG_INVALID ? EXIT_USAGE : EXIT_FAILED;
}

static int
usage_error(const char *what, const char *argument)
{
    (void)fprintf(stderr, "dlblk-meta: %s%s%s\n", what, argument != NULL ? " " : "",
                  argument != NULL ? text_quote(argument).text : "");
    (void)fprintf(stderr, "dlblk-meta: see dlblk-meta --help\n");
    return EXIT_USAGE;
}

/* --- cluster ids --- */

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* 32 hex digits, with dashes where a uuid has them or anywhere. */
static bool
parse_cluster_id(const char *text, uint8_t id[META_ID_BYTES])
{
    unsigned digits = 0;

    memset(id, 0, META_ID_BYTES);
    for (; *text != '\0'; text++) {
        int digit = hex_digit(*text);

        if (*text == '-')
            continue;
        if (digit < 0 || digits == 2 * META_ID_BYTES)
            return false;
        id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | digit);
        digits++;
    }
    for (unsigned i = 0; i < META_ID_BYTES; i++)
        if (id[i] != 0)
            return digits == 2 * META_ID_BYTES;
    return false;
}

static void
random_cluster_id(uint8_t id[META_ID_BYTES])
{
    ssize_t result = getrandom(id, META_ID_BYTES, 0);

    dl_assert(result == META_ID_BYTES);
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40); /* a random uuid, as RFC 4122 marks it */
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
}

static const char *
format_cluster_id(const uint8_t id[META_ID_BYTES])
{
    static char text[37];
    char *out = text;

    for (unsigned i = 0; i < META_ID_BYTES; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *out++ = '-';
        out += snprintf(out, 3, "%02x", id[i]);
    }
    return text;
}

/* --- the commands --- */

static int
run_init(const struct arguments *arguments, const char *dir)
{
    struct store_batch batch = {0};
    struct offline *offline;
    struct dl_error err;
    uint8_t id[META_ID_BYTES];
    int result;

    if (arguments->cluster_id == NULL)
        random_cluster_id(id);
    else if (!parse_cluster_id(arguments->cluster_id, id))
        return usage_error("not a cluster id of 32 hexadecimal digits:", arguments->cluster_id);
    result = offline_create(&offline, dir, &err);
    if (result < 0)
        return print_error(&err);
    meta_cluster_init_batch(&batch, id, clock_wall_ms());
    result = offline_commit(offline, &batch, &err);
    store_batch_fini(&batch);
    if (result == 0)
        result = offline_finish(offline, &err);
    else
        offline_close(offline);
    if (result < 0)
        return print_error(&err);
    printf("cluster %s: made in %s\n", format_cluster_id(id), dir);
    return EXIT_DONE;
}

/* What is not set keeps the core's default. */
static void
read_recovery(const struct conf *conf, struct serve_options *options)
{
    if (conf_is_set(conf, "meta", "out_after")) {
        uint64_t out_after_ms = conf_number(conf, "meta", "out_after");

        options->out_after_ns = out_after_ms == CONF_NEVER ? UINT64_MAX : out_after_ms * NS_PER_MS;
    }
    if (conf_is_set(conf, "meta", "recovery_per_server"))
        options->recovery_per_server = (uint32_t)conf_number(conf, "meta", "recovery_per_server");
    options->rebalance = conf_number(conf, "meta", "rebalance") != 0;
}

static int
run_serve(const struct arguments *arguments, const struct conf *conf, const char *dir)
{
    struct serve_options options = {.dir = dir};
    struct dl_error err;

    if (dl_address_parse(conf_text(conf, "meta", "listen"), DLBLK_PORT_META, &options.listen,
                         &err) < 0)
        return print_error(&err);
    read_recovery(conf, &options);
    if (arguments->check_config) {
        printf("no mistakes; directory %s, listening on %s\n", dir,
               dl_address_format(&options.listen).text);
        return EXIT_DONE;
    }
    log_set_level((enum log_level)conf_number(conf, "meta", "log_level"));
    return meta_serve(&options);
}

static int
run_backup(const struct arguments *arguments, const char *dir)
{
    struct backup_report report;
    struct dl_error err;

    if (backup_write(dir, arguments->file, arguments->force, &report, &err) < 0)
        return print_error(&err);
    printf("cluster %s: %" PRIu64 " volumes, %" PRIu64 " segments, %" PRIu64
           " servers in %s (%s)\n",
           format_cluster_id(report.cluster_id), report.volumes, report.segments, report.servers,
           arguments->file, text_of_size(report.bytes).text);
    return EXIT_DONE;
}

static int
run_restore(const struct arguments *arguments, const char *dir)
{
    struct backup_report report;
    struct dl_error err;
    uint64_t now_ms = clock_wall_ms();

    if (backup_restore(dir, arguments->file, &report, &err) < 0)
        return print_error(&err);
    printf("cluster %s: %" PRIu64 " volumes, %" PRIu64 " segments, %" PRIu64
           " servers as of %s ago, in %s\n",
           format_cluster_id(report.cluster_id), report.volumes, report.segments, report.servers,
           text_of_duration((now_ms - (report.created_ms < now_ms ? report.created_ms : now_ms)) *
                            NS_PER_MS)
               .text,
           dir);
    printf(
        "What was created, allocated, renamed or deleted since is not in it: see dlblk-meta(8).\n"
        "Every volume's lease is raised by %u; who opens it next takes over from its last owner.\n",
        BACKUP_LEASE_EPOCHS_SKIP);
    if (report.volumes_at_end > 0)
        printf("%" PRIu64
               " volumes have reached the highest lease: they can not be attached any more.\n",
               report.volumes_at_end);
    return EXIT_DONE;
}

/* --- arguments and configuration --- */

static int
parse_options(int argc, char **argv, struct arguments *arguments)
{
    enum {
        OPTION_DIR = 256,
        OPTION_LISTEN,
        OPTION_CONFIG,
        OPTION_CLUSTER_ID,
        OPTION_CHECK,
        OPTION_FORCE,
        OPTION_HELP
    };
    static const struct option options[] = {
        {"dir", required_argument, NULL, OPTION_DIR},
        {"listen", required_argument, NULL, OPTION_LISTEN},
        {"config", required_argument, NULL, OPTION_CONFIG},
        {"cluster-id", required_argument, NULL, OPTION_CLUSTER_ID},
        {"check-config", no_argument, NULL, OPTION_CHECK},
        {"force", no_argument, NULL, OPTION_FORCE},
        {"help", no_argument, NULL, OPTION_HELP},
        {NULL, 0, NULL, 0},
    };
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (option) {
        case OPTION_DIR:
            arguments->dir = optarg;
            break;
        case OPTION_LISTEN:
            arguments->listen = optarg;
            break;
        case OPTION_CONFIG:
            arguments->config = optarg;
            break;
        case OPTION_CLUSTER_ID:
            arguments->cluster_id = optarg;
            break;
        case OPTION_CHECK:
            arguments->check_config = true;
            break;
        case OPTION_FORCE:
            arguments->force = true;
            break;
        case OPTION_HELP:
        case 'h':
            printf(help_text, DLBLK_PORT_META);
            exit(EXIT_DONE);
        case ':':
            return usage_error("a value is missing behind", argv[optind - 1]);
        default:
            return usage_error("unknown option", argv[optind - 1]);
        }
    }
    return EXIT_DONE;
}

/* A flag that means nothing to this command is a mistake that should be heard of. */
static int
check_arguments(const struct arguments *arguments, int left, char **argv)
{
    bool file = strcmp(arguments->command, "backup") == 0 ||
                strcmp(arguments->command, "restore") == 0;
    bool serve = strcmp(arguments->command, "serve") == 0;
    bool init = strcmp(arguments->command, "init") == 0;

    if (!file && !serve && !init)
        return usage_error("unknown command", arguments->command);
    if (arguments->listen != NULL && !serve)
        return usage_error("--listen is only for serve", NULL);
    if (arguments->check_config && !serve)
        return usage_error("--check-config is only for serve", NULL);
    if (arguments->cluster_id != NULL && !init)
        return usage_error("--cluster-id is only for init", NULL);
    if (arguments->force && strcmp(arguments->command, "backup") != 0)
        return usage_error("--force is only for backup", NULL);
    if (left > (file ? 1 : 0))
        return usage_error("unexpected argument", argv[file ? 1 : 0]);
    if (file && left == 0)
        return usage_error("the name of the backup file is missing", NULL);
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
        result = conf_set(conf, "meta", "path", getenv("DLBLK_META_DIR"), "DLBLK_META_DIR", err);
    if (result == 0)
        result = conf_set(conf, "meta", "path", arguments->dir, "--dir", err);
    if (result == 0)
        result = conf_set(conf, "meta", "listen", getenv("DLBLK_META_LISTEN"), "DLBLK_META_LISTEN",
                          err);
    if (result == 0)
        result = conf_set(conf, "meta", "listen", arguments->listen, "--listen", err);
    if (result == 0 && conf_text(conf, "meta", "path")[0] == '\0')
        result = dl_error_set(err, -DL_E_CONFIG_INVALID,
                              "the metadata directory has an empty name");
    return result;
}

/*
 * Only the daemon takes signals in its loop; the others die of them, as one who presses ^C expects.
 */
static void
unblock_signals(void)
{
    sigset_t none;

    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static int
run(const struct arguments *arguments, const struct conf *conf)
{
    const char *dir = conf_text(conf, "meta", "path");

    if (strcmp(arguments->command, "serve") != 0)
        unblock_signals();
    if (strcmp(arguments->command, "init") == 0)
        return run_init(arguments, dir);
    if (strcmp(arguments->command, "serve") == 0)
        return run_serve(arguments, conf, dir);
    if (strcmp(arguments->command, "backup") == 0)
        return run_backup(arguments, dir);
    return run_restore(arguments, dir);
}

int
main(int argc, char **argv)
{
    struct arguments arguments = {0};
    struct conf *conf = NULL;
    struct dl_error err;
    int status;

    daemon_init("dlblk-meta", argc, argv);
    status = parse_options(argc, argv, &arguments);
    if (status != EXIT_DONE)
        return status;
    if (optind == argc)
        return usage_error("a command is missing: init, serve, backup or restore", NULL);
    arguments.command = argv[optind++];
    status = check_arguments(&arguments, argc - optind, argv + optind);
    if (status != EXIT_DONE)
        return status;
    arguments.file = argv[optind]; /* NULL behind the last */
    if (conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count) < 0) {
        (void)fprintf(stderr, "dlblk-meta: out of memory\n");
        return EXIT_FAILED;
    }
    if (read_configuration(&arguments, conf, &err) < 0)
        status = print_error(&err);
    else
        status = run(&arguments, conf);
    conf_destroy(conf);
    return status;
}
