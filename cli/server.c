/* SPDX-License-Identifier: Apache-2.0 */
/* dlblk server list|drain|undrain|remove|set */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "common/align.h"
#include "common/cleanup.h"
#include "common/text.h"

DL_CLEANUP_DEFINE(struct cli_table *, cli_table_destroy);

static const char *
or_dash(const char *text)
{
    return text[0] != '\0' ? text : "-";
}

/* --- list --- */

static json_t *
server_to_json(const struct dlblk_server_info *info)
{
    return json_pack(
        "{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:i, "
        "s:b, s:b, s:o, s:I}",
        "id", info->id, "uuid", info->uuid, "address", info->address, "host", info->host, "rack",
        info->rack, "clique", info->clique, "state", info->state, "capacity_bytes",
        (json_int_t)info->capacity_bytes, "used_bytes", (json_int_t)info->used_bytes, "chunk_count",
        (json_int_t)info->chunk_count, "last_heard_ms", (json_int_t)info->last_heard_ms, "problem",
        info->problem, "software", info->software, "slot_count", (json_int_t)info->slot_count,
        "chunks_to_delete", (json_int_t)info->chunks_to_delete, "weight_percent",
        info->weight_percent, "draining", info->draining, "removing", info->removing, "scrub",
        cli_scrub_counts_to_json(&info->scrub), "scrub_completed_ms",
        (json_int_t)info->scrub_completed_ms);
}

static void
add_server(struct cli_table *table, const struct dlblk_server_info *info)
{
    double percent = info->capacity_bytes > 0
                         ? 100.0 * (double)info->used_bytes / (double)info->capacity_bytes
                         : 0;

    cli_table_cell(table, "%" PRIu32, info->id);
    cli_table_cell(table, "%s", info->state);
    cli_table_cell(table, "%s", info->address);
    cli_table_cell(table, "%s", or_dash(info->host));
    cli_table_cell(table, "%s", or_dash(info->rack));
    cli_table_cell(table, "%s", or_dash(info->clique));
    cli_table_cell(table, "%s", text_of_size(info->used_bytes).text);
    cli_table_cell(table, "%s", text_of_size(info->capacity_bytes).text);
    cli_table_cell(table, "%.0f%%", percent);
    /* What it says that it has, or should have: it has said nothing since one of both started. */
    cli_table_cell(table, "%" PRIu64, max_u64(info->chunk_count, info->slot_count));
    cli_table_cell(table, "%" PRIu32, info->weight_percent);
    cli_table_cell(table, "%s", or_dash(info->problem));
}

static void
print_servers(FILE *out, const struct dlblk_server_info *infos, size_t count)
{
    DL_CLEANUP(cli_table_destroy) struct cli_table *table = cli_table_create();

    cli_table_column(table, "ID", CLI_RIGHT);
    cli_table_column(table, "STATE", CLI_LEFT);
    cli_table_column(table, "ADDRESS", CLI_LEFT);
    cli_table_column(table, "HOST", CLI_LEFT);
    cli_table_column(table, "RACK", CLI_LEFT);
    cli_table_column(table, "CLIQUE", CLI_LEFT);
    cli_table_column(table, "USED", CLI_RIGHT);
    cli_table_column(table, "CAPACITY", CLI_RIGHT);
    cli_table_column(table, "FULL", CLI_RIGHT);
    cli_table_column(table, "CHUNKS", CLI_RIGHT);
    cli_table_column(table, "WEIGHT", CLI_RIGHT);
    cli_table_column(table, "PROBLEM", CLI_LEFT);
    for (size_t i = 0; i < count; i++)
        add_server(table, &infos[i]);
    cli_table_print(table, out);
}

CLI_COMMAND(cli_server_list)
{
    DL_CLEANUP(free) struct dlblk_server_info *infos = NULL;
    struct dl_error err = {0};
    size_t count = 0;
    json_t *json;
    int status = cli_parse(cli, command, NULL, 0, argc, argv, NULL, 0);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_server_list(cli->client, &infos, &count, &err) != 0)
        return cli_fail(cli, &err);
    if (!cli->json) {
        print_servers(cli->out, infos, count);
        return CLI_OK;
    }
    json = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(json, server_to_json(&infos[i]));
    return cli_print_json(cli, json_pack("{s:o}", "servers", json));
}

/* --- which server --- */

static const char *const change_help_dry_run = "say what would happen, and change nothing";

int
cli_server_find(const struct cli *cli, const char *word, uint32_t *ret_id, struct dl_error *err)
{
    DL_CLEANUP(free) struct dlblk_server_info *infos = NULL;
    size_t count = 0;
    uint64_t number = 0;
    int result;

    if (word[0] != '\0' && word[strspn(word, "0123456789")] == '\0') {
        result = text_parse_number("server", word, 1, UINT32_MAX, &number, err);
        if (result == 0)
            *ret_id = (uint32_t)number;
        return result;
    }
    result = dlblk_server_list(cli->client, &infos, &count, err);
    if (result != 0)
        return result;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(infos[i].address, word) == 0 || strcmp(infos[i].uuid, word) == 0) {
            *ret_id = infos[i].id;
            return 0;
        }
    }
    result = dl_error_set(err, -DL_E_SERVER_UNKNOWN, "there is no server %s",
                          text_quote(word).text);
    dl_error_hint(err, "a server is named by its number, address or uuid: dlblk server list");
    return result;
}

/* --- changes --- */

static json_t *
change_to_json(const struct dlblk_server_change *change, bool dry_run)
{
    return json_pack("{s:b, s:o, s:o, s:I, s:I, s:I, s:I}", "dry_run", dry_run, "server",
                     server_to_json(&change->server), "effects",
                     cli_sentences_to_json(change->effects, change->effect_count), "slots",
                     (json_int_t)change->slots, "bytes", (json_int_t)change->bytes,
                     "below_min_write", (json_int_t)change->below_min_write, "last_copies",
                     (json_int_t)change->last_copies);
}

static int
show_change(const struct cli *cli, struct dlblk_server_change *change, bool dry_run)
{
    int status = CLI_OK;

    if (cli->json) {
        status = cli_print_json(cli, change_to_json(change, dry_run));
    } else {
        for (size_t i = 0; i < change->effect_count; i++)
            fprintf(cli->out, "%s\n", change->effects[i]);
        if (change->below_min_write > 0)
            fprintf(cli->out, "%" PRIu64 " segments have fewer copies than min_write until then\n",
                    change->below_min_write);
        if (dry_run)
            fprintf(cli->out, "nothing has changed: --dry-run\n");
    }
    dlblk_server_change_fini(change);
    return status;
}

typedef int (*server_change_fn)(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                                struct dlblk_server_change *ret_change, struct dl_error *err);

/* Those that have no option but --dry-run. */
static int
change_simply(struct cli *cli, const struct cli_command *command, int argc, char **argv,
              server_change_fn change_server)
{
    bool dry_run = false;
    const struct cli_option options[] = {
        {"dry-run", CLI_FLAG, NULL, change_help_dry_run, &dry_run, 0, 0, NULL, NULL},
    };
    struct dlblk_server_change change = {0};
    struct dl_error err = {0};
    uint32_t server_id = 0;
    const char *word;
    int status = cli_parse(cli, command, options, 1, argc, argv, &word, 1);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (cli_server_find(cli, word, &server_id, &err) != 0 ||
        change_server(cli->client, server_id, dry_run, &change, &err) != 0)
        return cli_fail(cli, &err);
    return show_change(cli, &change, dry_run);
}

CLI_COMMAND(cli_server_drain)
{
    return change_simply(cli, command, argc, argv, dlblk_server_drain);
}

CLI_COMMAND(cli_server_undrain)
{
    return change_simply(cli, command, argc, argv, dlblk_server_undrain);
}

CLI_COMMAND(cli_server_remove)
{
    bool dry_run = false, force = false;
    const struct cli_option options[] = {
        {"dry-run", CLI_FLAG, NULL, change_help_dry_run, &dry_run, 0, 0, NULL, NULL},
        {"force", CLI_FLAG, NULL,
         "although some segments are left with fewer than min_write copies", &force, 0, 0, NULL,
         NULL},
    };
    struct dlblk_server_change change = {0};
    struct dl_error err = {0};
    uint32_t server_id = 0;
    const char *word;
    int status = cli_parse(cli, command, options, 2, argc, argv, &word, 1);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (cli_server_find(cli, word, &server_id, &err) != 0 ||
        dlblk_server_remove(cli->client, server_id, force, dry_run, &change, &err) != 0)
        return cli_fail(cli, &err);
    return show_change(cli, &change, dry_run);
}

/* --- set --- */

struct set_options {
    struct dlblk_server_labels labels;
    uint64_t weight;
    bool no_rack, no_clique, dry_run;
};

/* CLI_GO_ON, or CLI_USAGE. */
static int
set_check(const struct cli *cli, const struct cli_command *command, struct set_options *set)
{
    if (set->no_rack && set->labels.rack != NULL)
        return cli_usage(cli, command, "--rack and --no-rack contradict each other");
    if (set->no_clique && set->labels.clique != NULL)
        return cli_usage(cli, command, "--clique and --no-clique contradict each other");
    if (set->no_rack)
        set->labels.rack = "";
    if (set->no_clique)
        set->labels.clique = "";
    set->labels.weight_percent = (uint32_t)set->weight;
    if (set->labels.host == NULL && set->labels.rack == NULL && set->labels.clique == NULL &&
        set->weight == 0)
        return cli_usage(cli, command, "nothing to set: --host, --rack, --clique, --weight");
    return CLI_GO_ON;
}

CLI_COMMAND(cli_server_set)
{
    struct set_options set = {0};
    const struct cli_option options[] = {
        {"host", CLI_TEXT, "LABEL", "what it stands in: failure domain host", &set.labels.host, 0,
         0, NULL, NULL},
        {"rack", CLI_TEXT, "LABEL", "failure domain rack", &set.labels.rack, 0, 0, NULL, NULL},
        {"no-rack", CLI_FLAG, NULL, "in no rack: not for volumes of that failure domain",
         &set.no_rack, 0, 0, NULL, NULL},
        {"clique", CLI_TEXT, "LABEL", "volumes can be pinned to it", &set.labels.clique, 0, 0, NULL,
         NULL},
        {"no-clique", CLI_FLAG, NULL, "in no clique", &set.no_clique, 0, 0, NULL, NULL},
        {"weight", CLI_NUMBER, "PERCENT", "share of what is placed: 100 goes by its free space",
         &set.weight, 1, 1000, NULL, NULL},
        {"dry-run", CLI_FLAG, NULL, change_help_dry_run, &set.dry_run, 0, 0, NULL, NULL},
    };
    struct dlblk_server_change change = {0};
    struct dl_error err = {0};
    uint32_t server_id = 0;
    const char *word;
    int status = cli_parse(cli, command, options, sizeof(options) / sizeof(options[0]), argc, argv,
                           &word, 1);

    if (status != CLI_GO_ON || (status = set_check(cli, command, &set)) != CLI_GO_ON ||
        (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (cli_server_find(cli, word, &server_id, &err) != 0 ||
        dlblk_server_set(cli->client, server_id, &set.labels, set.dry_run, &change, &err) != 0)
        return cli_fail(cli, &err);
    return show_change(cli, &change, set.dry_run);
}
