/* SPDX-License-Identifier: Apache-2.0 */
/* dlblk server list, dlblk cluster status */
#include <inttypes.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "common/cleanup.h"
#include "common/text.h"

DL_CLEANUP_DEFINE(struct cli_table *, cli_table_destroy);

static const char *
or_dash(const char *text)
{
    return text[0] != '\0' ? text : "-";
}

/* --- servers --- */

static json_t *
server_to_json(const struct dlblk_server_info *info)
{
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s}", "id",
                     info->id, "uuid", info->uuid, "address", info->address, "host", info->host,
                     "rack", info->rack, "clique", info->clique, "state", info->state,
                     "capacity_bytes", (json_int_t)info->capacity_bytes, "used_bytes",
                     (json_int_t)info->used_bytes, "chunk_count", (json_int_t)info->chunk_count,
                     "last_heard_ms", (json_int_t)info->last_heard_ms, "problem", info->problem,
                     "software", info->software);
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
    cli_table_cell(table, "%" PRIu64, info->chunk_count);
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

/* --- cluster --- */

static json_t *
status_to_json(const struct dlblk_cluster_status *status)
{
    json_t *problems = json_array();

    for (size_t i = 0; i < status->problem_count; i++)
        (void)json_array_append_new(problems, json_string(status->problems[i]));
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:s, s:o}", "cluster_id",
                     status->cluster_id, "state", status->state, "servers_total",
                     status->servers_total, "servers_up", status->servers_up, "volumes",
                     status->volumes, "capacity_bytes", (json_int_t)status->capacity_bytes,
                     "used_bytes", (json_int_t)status->used_bytes, "volume_bytes",
                     (json_int_t)status->volume_bytes, "segments", (json_int_t)status->segments,
                     "uptime_ms", (json_int_t)status->uptime_ms, "software", status->software,
                     "problems", problems);
}

static void
print_status(FILE *out, const struct dlblk_cluster_status *status)
{
    fprintf(out, "cluster:   %s\n", status->cluster_id);
    fprintf(out, "state:     %s\n", status->state);
    fprintf(out, "servers:   %" PRIu32 " of %" PRIu32 " up\n", status->servers_up,
            status->servers_total);
    fprintf(out, "space:     %s of %s used\n", text_of_size(status->used_bytes).text,
            text_of_size(status->capacity_bytes).text);
    fprintf(out, "volumes:   %" PRIu32 ", %s in all; %" PRIu64 " segments allocated\n",
            status->volumes, text_of_size(status->volume_bytes).text, status->segments);
    fprintf(out, "metadata:  %s, up for %s\n", status->software,
            text_of_duration(status->uptime_ms * 1000000).text);
    for (size_t i = 0; i < status->problem_count; i++)
        fprintf(out, "problem:   %s\n", status->problems[i]);
}

CLI_COMMAND(cli_cluster_status)
{
    struct dlblk_cluster_status cluster = {0};
    struct dl_error err = {0};
    int status = cli_parse(cli, command, NULL, 0, argc, argv, NULL, 0);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_cluster_status(cli->client, &cluster, &err) != 0)
        return cli_fail(cli, &err);
    status = CLI_OK;
    if (cli->json)
        status = cli_print_json(cli, status_to_json(&cluster));
    else
        print_status(cli->out, &cluster);
    dlblk_cluster_status_fini(&cluster);
    return status;
}
