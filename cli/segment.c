/* SPDX-License-Identifier: Apache-2.0 */
/* dlblk segment locate */
#include <inttypes.h>

#include "cli/cli.h"
#include "common/cleanup.h"
#include "common/text.h"

DL_CLEANUP_DEFINE(struct cli_table *, cli_table_destroy);

static json_t *
slot_to_json(const struct dlblk_located_slot *slot)
{
    return json_pack("{s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:b, s:i, s:i, s:I}", "number",
                     slot->number, "server_id", slot->server_id, "address", slot->address, "host",
                     slot->host, "server_state", slot->server_state, "problem", slot->problem,
                     "state", slot->state, "incoming", slot->incoming, "attempt", slot->attempt,
                     "incarnation", slot->incarnation, "recovered_bytes",
                     (json_int_t)slot->recovered_bytes);
}

static json_t *
location_to_json(const struct dlblk_segment_location *location)
{
    json_t *slots = json_array();

    for (uint32_t i = 0; i < location->slot_count; i++)
        (void)json_array_append_new(slots, slot_to_json(&location->slots[i]));
    return json_pack("{s:I, s:I, s:I, s:b, s:i, s:o}", "segment", (json_int_t)location->segment,
                     "offset_bytes", (json_int_t)location->offset_bytes, "segment_bytes",
                     (json_int_t)location->segment_bytes, "allocated", location->allocated,
                     "config_epoch", location->config_epoch, "slots", slots);
}

static void
add_slot(struct cli_table *table, const struct dlblk_segment_location *location,
         const struct dlblk_located_slot *slot)
{
    cli_table_cell(table, "%" PRIu32 "%s", slot->number, slot->incoming ? " (new)" : "");
    cli_table_cell(table, "%s", slot->state);
    cli_table_cell(table, "%" PRIu32, slot->server_id);
    cli_table_cell(table, "%s", slot->address);
    cli_table_cell(table, "%s", slot->host[0] != '\0' ? slot->host : "-");
    if (slot->attempt != 0)
        cli_table_cell(table, "%s of %s", text_of_size(slot->recovered_bytes).text,
                       text_of_size(location->segment_bytes).text);
    else
        cli_table_cell(table, "-");
    cli_table_cell(table, "%s", slot->problem[0] != '\0' ? slot->problem : "-");
}

static void
print_location(FILE *out, const char *volume, const struct dlblk_segment_location *location)
{
    DL_CLEANUP(cli_table_destroy) struct cli_table *table = NULL;

    fprintf(out, "segment %" PRIu32 " of volume %s, byte %" PRIu64 " in it\n", location->segment,
            volume, location->offset_bytes);
    if (!location->allocated) {
        fprintf(out, "it is not allocated: nobody has written there, it reads as zeroes\n");
        return;
    }
    fprintf(out, "config epoch %" PRIu32 "\n", location->config_epoch);
    table = cli_table_create();
    cli_table_column(table, "COPY", CLI_LEFT);
    cli_table_column(table, "STATE", CLI_LEFT);
    cli_table_column(table, "SERVER", CLI_RIGHT);
    cli_table_column(table, "ADDRESS", CLI_LEFT);
    cli_table_column(table, "HOST", CLI_LEFT);
    cli_table_column(table, "RECOVERED", CLI_LEFT);
    cli_table_column(table, "PROBLEM", CLI_LEFT);
    for (uint32_t i = 0; i < location->slot_count; i++)
        add_slot(table, location, &location->slots[i]);
    cli_table_print(table, out);
}

CLI_COMMAND(cli_segment_locate)
{
    struct dlblk_segment_location location = {0};
    struct dl_error err = {0};
    const char *words[2];
    uint64_t offset = 0;
    int status = cli_parse(cli, command, NULL, 0, argc, argv, words, 2);

    if (status != CLI_GO_ON)
        return status;
    if (text_parse_size("OFFSET", words[1], 0, UINT64_MAX, &offset, &err) != 0)
        return cli_usage(cli, command, "%s", err.text);
    status = cli_connect(cli);
    if (status != CLI_GO_ON)
        return status;
    if (dlblk_segment_locate(cli->client, words[0], offset, &location, &err) != 0)
        return cli_fail(cli, &err);
    if (cli->json)
        return cli_print_json(cli, location_to_json(&location));
    print_location(cli->out, words[0], &location);
    return CLI_OK;
}
