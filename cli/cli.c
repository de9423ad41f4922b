/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/conf.h"
#include "common/text.h"
#include "common/version.h"

/* --- errors --- */

int
cli_exit_of(int err)
{
    switch (-err) {
    case DL_E_USAGE:
    case DL_E_NAME_INVALID:
    case DL_E_SIZE_INVALID:
    case DL_E_CONFIG_INVALID:
        return CLI_USAGE;
    case DL_E_META_UNREACHABLE:
    case DL_E_FENCE_PENDING:
    case DL_E_SERVER_DOWN:
    case DL_E_CONNECTION_LOST:
    case DL_E_TIMEOUT:
        return CLI_UNREACHABLE;
    default:
        break;
    }
    switch (dl_err_class(err)) {
    case 0:
        return CLI_OK;
    case ENOENT:
        return CLI_NOT_FOUND;
    case EBUSY:
        return CLI_BUSY;
    case EEXIST:
        return CLI_EXISTS;
    case ENOSPC:
        return CLI_NO_SPACE;
    default:
        return CLI_FAILED;
    }
}

static json_t *
error_to_json(const struct dl_error *err)
{
    return json_pack("{s:{s:s, s:s, s:s}}", "error", "code", dl_err_name(err->code), "text",
                     err->text[0] != '\0' ? err->text : dl_err_str(err->code), "hint", err->hint);
}

int
cli_fail(const struct cli *cli, const struct dl_error *err)
{
    fprintf(cli->err, "dlblk: %s\n", err->text[0] != '\0' ? err->text : dl_err_str(err->code));
    if (err->hint[0] != '\0')
        fprintf(cli->err, "       %s\n", err->hint);
    if (cli->json)
        (void)cli_print_json(cli, error_to_json(err));
    return cli_exit_of(err->code);
}

int
cli_usage(const struct cli *cli, const struct cli_command *command, const char *format, ...)
{
    const char *space = command != NULL && command->group != NULL ? " " : "";
    const char *group = command != NULL && command->group != NULL ? command->group : "";
    struct dl_error err = {.code = -DL_E_USAGE};
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(err.text, sizeof(err.text), format, arguments);
    va_end(arguments);
    if (command != NULL)
        dl_error_hint(&err, "see: dlblk %s%s%s --help", group, space, command->name);
    else
        dl_error_hint(&err, "see: dlblk --help");
    return cli_fail(cli, &err);
}

/* --- connection --- */

static void
cli_on_event(void *context, enum dlblk_event_level level, const char *text)
{
    const struct cli *cli = context;

    if (level >= DLBLK_EVENT_WARNING)
        fprintf(cli->err, "dlblk: %s\n", text);
}

/* A configuration file that isn't there is a mistake in the command, nothing that was asked for. */
static int
fail_config(const struct cli *cli, const struct dl_error *err)
{
    int status = cli_fail(cli, err);

    return status == CLI_NOT_FOUND ? CLI_USAGE : status;
}

int
cli_connect(struct cli *cli)
{
    struct dlblk_client_options options = {
        .meta = cli->meta,
        .config_path = cli->config_path,
        .program = "dlblk",
        .connect_timeout_ms = (uint32_t)cli->timeout_ms,
        .on_event = cli_on_event,
        .event_context = cli,
    };
    struct dl_error err = {0};

    if (dlblk_client_create(&cli->client, &options, &err) == 0)
        return CLI_GO_ON;
    return fail_config(cli, &err);
}

/* --- output --- */

int
cli_print_json(const struct cli *cli, json_t *json)
{
    int failed = json == NULL ||
                 json_dumpf(json, cli->out, JSON_INDENT(2) | JSON_REAL_PRECISION(9));

    json_decref(json);
    if (failed) {
        fprintf(cli->err, "dlblk: the result could not be written as JSON\n");
        return CLI_FAILED;
    }
    fputc('\n', cli->out);
    return CLI_OK;
}

struct cli_time
cli_time_of(uint64_t ms_since_1970)
{
    time_t seconds = (time_t)(ms_since_1970 / 1000);
    struct cli_time time = {"-"};
    struct tm parts;

    if (ms_since_1970 != 0 && localtime_r(&seconds, &parts) != NULL)
        (void)strftime(time.text, sizeof(time.text), "%Y-%m-%d %H:%M:%S", &parts);
    return time;
}

/* --- the program --- */

static const struct cli_command *
command_find(const char *group, const char *name)
{
    for (size_t i = 0; i < cli_command_count; i++) {
        const struct cli_command *command = &cli_commands[i];

        if ((group == NULL) != (command->group == NULL))
            continue;
        if ((group == NULL || strcmp(command->group, group) == 0) &&
            strcmp(command->name, name) == 0)
            return command;
    }
    return NULL;
}

static bool
group_exists(const char *name)
{
    for (size_t i = 0; i < cli_command_count; i++) {
        if (cli_commands[i].group != NULL && strcmp(cli_commands[i].group, name) == 0)
            return true;
    }
    return false;
}

/* argv[0] is the group's name. */
static int
run_in_group(struct cli *cli, int argc, char **argv)
{
    const char *group = argv[0];
    const struct cli_command *command;
    int next = 0;
    int status = cli_parse_global(cli, argc, argv, &next);

    if (status != CLI_GO_ON)
        return status;
    if (cli->help) {
        cli_print_help(cli, group);
        return CLI_OK;
    }
    if (next >= argc) {
        (void)cli_usage(cli, NULL, "dlblk %s needs a command", group);
        cli_print_help(&(struct cli){.out = cli->err}, group);
        return CLI_USAGE;
    }
    command = command_find(group, argv[next]);
    if (command == NULL)
        return cli_usage(cli, NULL, "dlblk %s has no command %s", group,
                         text_quote(argv[next]).text);
    return command->run(cli, command, argc - next, argv + next);
}

static int
run_words(struct cli *cli, int argc, char **argv)
{
    const struct cli_command *command = command_find(NULL, argv[0]);

    if (command != NULL)
        return command->run(cli, command, argc, argv);
    if (group_exists(argv[0]))
        return run_in_group(cli, argc, argv);
    return cli_usage(cli, NULL, "there is no command %s", text_quote(argv[0]).text);
}

static int
check_config(const struct cli *cli)
{
    const char *path = cli->config_path != NULL ? cli->config_path : "/etc/dlblk/dlblk.conf";
    struct conf *conf = NULL;
    struct dl_error err = {0};
    int result = conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count);

    if (result != 0)
        (void)dl_error_set(&err, result, "out of memory");
    else
        result = conf_read_file(conf, path, &err);
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", getenv("DLBLK_META"), "DLBLK_META", &err);
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", cli->meta, "--meta", &err);
    if (result == 0)
        fprintf(cli->out, "%s: no mistakes; metadata service: %s\n", path,
                conf_text(conf, "cluster", "meta"));
    conf_destroy(conf);
    return result == 0 ? CLI_OK : fail_config(cli, &err);
}

static int
run_program(struct cli *cli, int argc, char **argv)
{
    int next = 0;
    int status;

    if (argc > 1 && (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)) {
        fprintf(cli->out, "%s\n", dlblk_version_text("dlblk"));
        return CLI_OK;
    }
    status = cli_parse_global(cli, argc, argv, &next);
    if (status != CLI_GO_ON)
        return status;
    if (cli->check_config)
        return check_config(cli);
    if (cli->help) {
        cli_print_help(cli, NULL);
        return CLI_OK;
    }
    if (next >= argc) {
        (void)cli_usage(cli, NULL, "dlblk needs a command");
        cli_print_help(&(struct cli){.out = cli->err}, NULL);
        return CLI_USAGE;
    }
    return run_words(cli, argc - next, argv + next);
}

int
cli_main(int argc, char **argv, FILE *out, FILE *err)
{
    struct cli cli = {.out = out, .err = err};
    int status = run_program(&cli, argc, argv);

    dlblk_client_destroy(cli.client);
    /* A full disk or a closed pipe must not look like success. */
    if (fflush(out) != 0 && status == CLI_OK) {
        fprintf(err, "dlblk: the output could not be written: %s\n", strerror(errno));
        status = CLI_FAILED;
    }
    return status;
}
