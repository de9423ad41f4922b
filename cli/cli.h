/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cli.h: what the commands of dlblk share: options, the connection, output, exit codes.
 *
 * A command is a function of the table in commands.c.  It declares its options, lets cli_parse()
 * fill them, works, and returns an exit code:
 *
 *     static int
 *     volume_rename(struct cli *cli, const struct cli_command *command, int argc, char **argv)
 *     {
 *         const char *names[2];
 *         int status = cli_parse(cli, command, NULL, 0, argc, argv, names, 2);
 *
 *         if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
 *             return status;
 *         ...
 *
 * Threads: the main thread.  Prints: results to cli->out, errors and progress to cli->err.
 * Errors:  every one goes through cli_fail(), which says what, why and what to do, and gives the
 *          exit code.
 */
#ifndef DLBLK_CLI_CLI_H
#define DLBLK_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "dlblk/client.h"

/* In the manual page: dlblk(1), EXIT STATUS. */
enum cli_exit {
    CLI_GO_ON = -1, /* not an exit code: nothing has ended yet */
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_NOT_FOUND = 3,
    CLI_BUSY = 4,
    CLI_UNREACHABLE = 5,
    CLI_EXISTS = 6,
    CLI_NO_SPACE = 7,
};

struct cli {
    FILE *out, *err;
    const char *meta;        /* --meta, or NULL */
    const char *config_path; /* --config, or NULL */
    uint64_t timeout_ms;     /* --timeout; 0: the library's */
    bool json;
    bool help;
    bool check_config;
    struct dlblk_client *client; /* after cli_connect() */
};

struct cli_command {
    const char *group; /* "volume"; NULL: a command of one word */
    const char *name;
    const char *arguments; /* "NAME --size SIZE [OPTION...]" */
    const char *summary;   /* one line for lists of commands, without full stop */
    const char *text;      /* paragraphs for --help, wrapped; may be NULL */
    const char *examples;  /* lines; each begins with two spaces */
    int (*run)(struct cli *cli, const struct cli_command *command, int argc, char **argv);
};

extern const struct cli_command cli_commands[];
extern const size_t cli_command_count;

/* The whole program. */
int cli_main(int argc, char **argv, FILE *out, FILE *err);

/* --- options --- */

enum cli_option_kind { CLI_FLAG, CLI_TEXT, CLI_NUMBER, CLI_SIZE, CLI_DURATION, CLI_CHOICE };

struct cli_option {
    const char *name; /* without -- */
    enum cli_option_kind kind;
    const char *argument; /* "SIZE"; NULL for CLI_FLAG */
    const char *help;
    void *
        value; /* bool, const char *, uint64_t (bytes, milliseconds), unsigned (place in choices) */
    uint64_t min, max;
    const char *const *choices; /* CLI_CHOICE: ends with NULL */
    bool *seen;                 /* set if it was given; may be NULL */
};

/*
 * Fills the options and exactly argument_count arguments, in the order of command->arguments.
 * Returns CLI_GO_ON, CLI_OK after --help, or CLI_USAGE after it has said what is wrong.
 */
int cli_parse(struct cli *cli, const struct cli_command *command, const struct cli_option *options,
              size_t option_count, int argc, char **argv, const char **arguments,
              int argument_count);

/*
 * The options that every command has, for the words before the command.  Returns as cli_parse();
 * the rest begins at *ret_next.
 */
int cli_parse_global(struct cli *cli, int argc, char **argv, int *ret_next);

/* Lists of commands: all, or of a group. */
void cli_print_help(const struct cli *cli, const char *group);

/* --- errors --- */

/* Prints err and gives the exit code that stands for it. */
int cli_fail(const struct cli *cli, const struct dl_error *err);
/* A mistake in the command line. */
int cli_usage(const struct cli *cli, const struct cli_command *command, const char *format, ...)
    DL_ERROR_PRINTF(3, 4);
/* The exit code for a negative error. */
int cli_exit_of(int err);

/* --- connection --- */

/* CLI_GO_ON, or the exit code of a failure that was printed. */
int cli_connect(struct cli *cli);

/* --- output --- */

/* Takes over the reference.  With --json the only thing that goes to cli->out. */
int cli_print_json(const struct cli *cli, json_t *json);

/* An array of strings. */
json_t *cli_sentences_to_json(char (*sentences)[DLBLK_SENTENCE_BYTES], size_t count);

/* What was found by reading everything. */
json_t *cli_scrub_counts_to_json(const struct dlblk_scrub_counts *counts);
json_t *cli_scrub_to_json(const struct dlblk_scrub *scrub);
void cli_print_scrub(FILE *out, const struct dlblk_scrub *scrub);

/* "2026-01-31 10:15:30", local time; "-" for 0. */
struct cli_time {
    char text[32];
};
struct cli_time cli_time_of(uint64_t ms_since_1970);

/* Columns as wide as their widest cell, two spaces between them. */
struct cli_table;
enum cli_align { CLI_LEFT, CLI_RIGHT };

struct cli_table *cli_table_create(void);
void cli_table_destroy(struct cli_table *table);
void cli_table_column(struct cli_table *table, const char *title, enum cli_align align);
/* Cells go from left to right and on to the next row. */
void cli_table_cell(struct cli_table *table, const char *format, ...) DL_ERROR_PRINTF(2, 3);
void cli_table_print(const struct cli_table *table, FILE *out);

/* --- commands --- */

#define CLI_COMMAND(function) \
    int function(struct cli *cli, const struct cli_command *command, int argc, char **argv)

CLI_COMMAND(cli_volume_create);
CLI_COMMAND(cli_volume_list);
CLI_COMMAND(cli_volume_info);
CLI_COMMAND(cli_volume_status);
CLI_COMMAND(cli_volume_force);
CLI_COMMAND(cli_volume_resize);
CLI_COMMAND(cli_volume_rename);
CLI_COMMAND(cli_volume_delete);
/*
 * A server by its number, as in the list; its address or its disk's uuid will do as well.  0, or a
 * negative error.
 */
int cli_server_find(const struct cli *cli, const char *word, uint32_t *ret_id,
                    struct dl_error *err);
CLI_COMMAND(cli_server_list);
CLI_COMMAND(cli_server_drain);
CLI_COMMAND(cli_server_undrain);
CLI_COMMAND(cli_server_remove);
CLI_COMMAND(cli_server_set);
CLI_COMMAND(cli_segment_locate);
CLI_COMMAND(cli_events);
CLI_COMMAND(cli_scrub);
CLI_COMMAND(cli_cluster_status);
CLI_COMMAND(cli_bench);
CLI_COMMAND(cli_attach);
CLI_COMMAND(cli_detach);
CLI_COMMAND(cli_devices);

extern const char *const cli_domain_names[]; /* enum dlblk_domain - 1; ends with NULL */
const char *cli_domain_name(enum dlblk_domain domain);

#endif
