/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parse.c: options by getopt_long(), and the help that is made of the same tables.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "common/assert.h"
#include "common/text.h"

#define OPTIONS_MAX    32
#define TIMEOUT_MS_MAX (24ull * 3600 * 1000)

/* Every command has these. */
static const struct cli_option global_options[] = {
    {.name = "meta",
     .kind = CLI_TEXT,
     .argument = "HOST:PORT[,...]",
     .help = "metadata service (else $DLBLK_META, the configuration file, 127.0.0.1)"},
    {.name = "config",
     .kind = CLI_TEXT,
     .argument = "FILE",
     .help = "configuration file (else /etc/dlblk/dlblk.conf)"},
    {.name = "timeout",
     .kind = CLI_DURATION,
     .argument = "TIME",
     .help = "how long to wait for the metadata service (else 10s)",
     .min = 1,
     .max = TIMEOUT_MS_MAX},
    {.name = "json", .kind = CLI_FLAG, .help = "print JSON"},
    {.name = "help", .kind = CLI_FLAG, .help = "print this"},
};
#define GLOBAL_OPTION_COUNT (sizeof(global_options) / sizeof(global_options[0]))

static const struct cli_option check_config_option = {
    .name = "check-config",
    .kind = CLI_FLAG,
    .help = "check the configuration file, and do nothing else"};

static_assert(GLOBAL_OPTION_COUNT <= 8, "value_of_global() knows each");

/* The options of one call of getopt_long(): its own first, then those of every command. */
struct option_set {
    struct cli_option options[OPTIONS_MAX];
    struct option longs[OPTIONS_MAX + 1];
    size_t count;
};

static void *
value_of_global(struct cli *cli, const char *name)
{
    if (strcmp(name, "meta") == 0)
        return &cli->meta;
    if (strcmp(name, "config") == 0)
        return &cli->config_path;
    if (strcmp(name, "timeout") == 0)
        return &cli->timeout_ms;
    if (strcmp(name, "json") == 0)
        return &cli->json;
    dl_assert(strcmp(name, "help") == 0);
    return &cli->help;
}

static void
option_set_add(struct option_set *set, const struct cli_option *option)
{
    dl_assert(set->count < OPTIONS_MAX);
    set->options[set->count] = *option;
    set->longs[set->count] = (struct option){
        .name = option->name,
        .has_arg = option->kind == CLI_FLAG ? no_argument : required_argument,
        .val = 256 + (int)set->count,
    };
    set->count++;
}

static void
option_set_fill(struct option_set *set, struct cli *cli, const struct cli_option *options,
                size_t count)
{
    memset(set, 0, sizeof(*set));
    for (size_t i = 0; i < count; i++)
        option_set_add(set, &options[i]);
    for (size_t i = 0; i < GLOBAL_OPTION_COUNT; i++) {
        struct cli_option option = global_options[i];

        option.value = value_of_global(cli, option.name);
        option_set_add(set, &option);
    }
}

/* --- values --- */

static int
choice_set(const struct cli_option *option, const char *what, const char *text,
           struct dl_error *err)
{
    char known[160] = "";

    for (unsigned i = 0; option->choices[i] != NULL; i++) {
        if (strcmp(option->choices[i], text) == 0) {
            *(unsigned *)option->value = i;
            return 0;
        }
        (void)strncat(known, i > 0 ? ", " : "", sizeof(known) - strlen(known) - 1);
        (void)strncat(known, option->choices[i], sizeof(known) - strlen(known) - 1);
    }
    return dl_error_set(err, -DL_E_USAGE, "%s: %s is none of %s", what, text_quote(text).text,
                        known);
}

static int
option_set_value(const struct cli_option *option, const char *text, struct dl_error *err)
{
    char what[48];

    (void)snprintf(what, sizeof(what), "--%s", option->name);
    if (option->seen != NULL)
        *option->seen = true;
    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)option->value = true;
        return 0;
    case CLI_TEXT:
        if (text[0] == '\0')
            return dl_error_set(err, -DL_E_USAGE, "%s is empty", what);
        *(const char **)option->value = text;
        return 0;
    case CLI_NUMBER:
        return text_parse_number(what, text, option->min, option->max, option->value, err);
    case CLI_SIZE:
        return text_parse_size(what, text, option->min, option->max, option->value, err);
    case CLI_DURATION:
        return text_parse_duration(what, text, option->min, option->max, option->value, err);
    case CLI_CHOICE:
        return choice_set(option, what, text, err);
    }
    dl_unreachable();
}

/* --- parsing --- */

static int
usage_error(const struct cli *cli, const struct cli_command *command, const struct dl_error *err)
{
    return cli_usage(cli, command, "%s", err->text);
}

/* What getopt_long() refused: the word is argv[optind - 1], or one letter of it. */
static int
refused(const struct cli *cli, const struct cli_command *command, int result, char **argv)
{
    const char *word = argv[optind - 1];

    if (result == ':')
        return cli_usage(cli, command, "option %s needs a value", text_quote(word).text);
    if (optopt >= 256)
        return cli_usage(cli, command, "option %s takes no value", text_quote(word).text);
    if (optopt != 0)
        return cli_usage(cli, command, "unknown option -%c", optopt);
    return cli_usage(cli, command, "unknown option %s", text_quote(word).text);
}

/*
 * Options up to the end, or with prefix "+" up to the first word that is none; optind is behind
 * them.
 */
static int
parse_options(const struct cli *cli, const struct cli_command *command,
              const struct option_set *set, const char *letters, int argc, char **argv)
{
    struct dl_error err = {0};
    int result;

    optind = 0; /* also forgets an earlier parse */
    opterr = 0;
    while ((result = getopt_long(argc, argv, letters, set->longs, NULL)) != -1) {
        if (result == 'h') {
            *(bool *)set->options[set->count - 1].value = true;
            continue;
        }
        if (result < 256)
            return refused(cli, command, result, argv);
        if (option_set_value(&set->options[result - 256], optarg, &err) != 0)
            return usage_error(cli, command, &err);
    }
    return CLI_GO_ON;
}

int
cli_parse_global(struct cli *cli, int argc, char **argv, int *ret_next)
{
    struct cli_option check_config = check_config_option;
    struct option_set set;
    int status;

    check_config.value = &cli->check_config;
    option_set_fill(&set, cli, &check_config, 1);
    status = parse_options(cli, NULL, &set, "+:h", argc, argv);
    *ret_next = optind;
    return status;
}

static void
print_option(FILE *out, const struct cli_option *option)
{
    char left[64];

    (void)snprintf(left, sizeof(left), "--%s%s%s", option->name,
                   option->argument != NULL ? " " : "",
                   option->argument != NULL ? option->argument : "");
    fprintf(out, "  %-26s %s\n", left, option->help);
}

static void
print_command_help(const struct cli *cli, const struct cli_command *command,
                   const struct option_set *set)
{
    FILE *out = cli->out;

    fprintf(out, "Usage: dlblk %s%s%s %s\n\n%c%s.\n", command->group != NULL ? command->group : "",
            command->group != NULL ? " " : "", command->name, command->arguments,
            command->summary[0] - 'a' + 'A', command->summary + 1);
    if (command->text != NULL)
        fprintf(out, "%s", command->text);
    fprintf(out, "\nOptions:\n");
    for (size_t i = 0; i < set->count; i++)
        print_option(out, &set->options[i]);
    fprintf(out, "\nExamples:\n%s", command->examples);
}

static int
take_arguments(const struct cli *cli, const struct cli_command *command, int argc, char **argv,
               const char **arguments, int argument_count)
{
    const char *group = command->group != NULL ? command->group : "";
    const char *space = command->group != NULL ? " " : "";
    int given = argc - optind;

    if (given > argument_count)
        return cli_usage(cli, command, "%s is one argument too many: usage: dlblk %s%s%s %s",
                         text_quote(argv[optind + argument_count]).text, group, space,
                         command->name, command->arguments);
    if (given < argument_count)
        return cli_usage(cli, command, "an argument is missing: usage: dlblk %s%s%s %s", group,
                         space, command->name, command->arguments);
    for (int i = 0; i < given; i++)
        arguments[i] = argv[optind + i];
    return CLI_GO_ON;
}

int
cli_parse(struct cli *cli, const struct cli_command *command, const struct cli_option *options,
          size_t option_count, int argc, char **argv, const char **arguments, int argument_count)
{
    struct option_set set;
    int status;

    option_set_fill(&set, cli, options, option_count);
    status = parse_options(cli, command, &set, ":h", argc, argv);
    if (status != CLI_GO_ON)
        return status;
    if (cli->help) {
        print_command_help(cli, command, &set);
        return CLI_OK;
    }
    return take_arguments(cli, command, argc, argv, arguments, argument_count);
}

/* --- lists of commands --- */

void
cli_print_help(const struct cli *cli, const char *group)
{
    FILE *out = cli->out;

    if (group == NULL)
        fprintf(out, "Usage: dlblk [OPTION...] COMMAND ...\n\n"
                     "Manages volumes of the distributed block device dlblk.\n\nCommands:\n");
    else
        fprintf(out, "Usage: dlblk %s COMMAND ...\n\nCommands:\n", group);
    for (size_t i = 0; i < cli_command_count; i++) {
        const struct cli_command *command = &cli_commands[i];
        char words[48];

        if (group != NULL && (command->group == NULL || strcmp(command->group, group) != 0))
            continue;
        (void)snprintf(words, sizeof(words), "%s%s%s", command->group != NULL ? command->group : "",
                       command->group != NULL ? " " : "", command->name);
        fprintf(out, "  %-26s %s\n", words, command->summary);
    }
    fprintf(out, "\nOptions of every command:\n");
    for (size_t i = 0; i < GLOBAL_OPTION_COUNT; i++)
        print_option(out, &global_options[i]);
    if (group != NULL)
        return;
    fprintf(out, "\nOther options:\n");
    print_option(out, &check_config_option);
    fprintf(out, "  %-26s %s\n", "--version", "print commit, wire and disk format versions");
    fprintf(out, "\nExamples:\n"
                 "  dlblk volume create db1 --size 100G\n"
                 "  dlblk cluster status\n"
                 "  dlblk volume create --help\n"
                 "\nThe manual page is dlblk(1).\n");
}
