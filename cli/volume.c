/* SPDX-License-Identifier: Apache-2.0 */
/* dlblk volume create|list|info|resize|rename|delete */
#include <inttypes.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "common/cleanup.h"
#include "common/text.h"

const char *const cli_domain_names[] = {"server", "host", "rack", NULL};

DL_CLEANUP_DEFINE(struct cli_table *, cli_table_destroy);

const char *
cli_domain_name(enum dlblk_domain domain)
{
    return domain >= DLBLK_DOMAIN_SERVER && domain <= DLBLK_DOMAIN_RACK
               ? cli_domain_names[domain - 1]
               : "unknown";
}

static json_t *
volume_to_json(const struct dlblk_volume_info *info)
{
    json_t *json = json_pack(
        "{s:I, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:s, s:I, s:i, s:I, s:s, s:I, s:b}",
        "id", (json_int_t)info->id, "name", info->name, "size_bytes", (json_int_t)info->size_bytes,
        "segment_bytes", info->segment_bytes, "logical_block_bytes", info->logical_block_bytes,
        "stripe_width", info->stripe_width, "stripe_unit_bytes", info->stripe_unit_bytes,
        "replicas", info->replicas, "min_write", info->min_write, "failure_domain",
        cli_domain_name(info->failure_domain), "clique", info->clique, "allocated_bytes",
        (json_int_t)info->allocated_bytes, "lease_epoch", info->lease_epoch, "created_ms",
        (json_int_t)info->created_ms, "owner", info->owner, "attached_ms",
        (json_int_t)info->attached_ms, "clean", info->clean);

    return json;
}

static void
print_volume(FILE *out, const struct dlblk_volume_info *info)
{
    fprintf(out, "name:            %s\n", info->name);
    fprintf(out, "id:              %" PRIu64 "\n", info->id);
    fprintf(out, "size:            %s (%" PRIu64 " bytes)\n", text_of_size(info->size_bytes).text,
            info->size_bytes);
    fprintf(out, "allocated:       %s on each of %" PRIu32 " copies\n",
            text_of_size(info->allocated_bytes).text, info->replicas);
    fprintf(out, "copies:          %" PRIu32 ", at least %" PRIu32 " for a write\n", info->replicas,
            info->min_write);
    fprintf(out, "failure domain:  %s\n", cli_domain_name(info->failure_domain));
    fprintf(out, "clique:          %s\n", info->clique[0] != '\0' ? info->clique : "any");
    fprintf(out, "logical block:   %" PRIu32 " bytes\n", info->logical_block_bytes);
    fprintf(out, "segments:        %s", text_of_size(info->segment_bytes).text);
    if (info->stripe_width > 1)
        fprintf(out, ", striped over %" PRIu32 " in units of %s", info->stripe_width,
                text_of_size(info->stripe_unit_bytes).text);
    fprintf(out, "\ncreated:         %s\n", cli_time_of(info->created_ms).text);
    if (info->owner[0] != '\0')
        fprintf(out, "attached:        by %s since %s\n", info->owner,
                cli_time_of(info->attached_ms).text);
    else
        fprintf(out, "attached:        no%s\n",
                info->clean ? "" : " (its last owner died; the next attach settles what it left)");
    fprintf(out, "lease epoch:     %" PRIu32 "\n", info->lease_epoch);
}

static int
show_volume(const struct cli *cli, const struct dlblk_volume_info *info)
{
    if (cli->json)
        return cli_print_json(cli, volume_to_json(info));
    print_volume(cli->out, info);
    return CLI_OK;
}

/* --- create --- */

CLI_COMMAND(cli_volume_create)
{
    uint64_t size = 0, segment = 0, block = 0, unit = 0, width = 0, replicas = 0, min_write = 0;
    unsigned domain = DLBLK_DOMAIN_HOST - 1;
    const char *clique = NULL;
    bool size_seen = false;
    const struct cli_option options[] = {
        {"size", CLI_SIZE, "SIZE", "size of the volume, a multiple of the logical block", &size, 0,
         UINT64_MAX, NULL, &size_seen},
        {"replicas", CLI_NUMBER, "N", "number of copies (3)", &replicas, 1, 8, NULL, NULL},
        {"min-write", CLI_NUMBER, "N",
         "copies without which writes wait (2, or less if there are fewer)", &min_write, 1, 32,
         NULL, NULL},
        {"failure-domain", CLI_CHOICE, "WHAT", "copies lie on different: server, host, rack (host)",
         &domain, 0, 0, cli_domain_names, NULL},
        {"clique", CLI_TEXT, "LABEL", "only servers with this label", &clique, 0, 0, NULL, NULL},
        {"logical-block", CLI_SIZE, "SIZE", "512 or 4096: smallest request (4096)", &block, 512,
         4096, NULL, NULL},
        {"segment", CLI_SIZE, "SIZE", "piece that is placed as a whole, 1M to 1G (64M)", &segment,
         1u << 20, 1u << 30, NULL, NULL},
        {"stripe-width", CLI_NUMBER, "N", "segments that sequential data goes over in turn (1)",
         &width, 1, 1024, NULL, NULL},
        {"stripe-unit", CLI_SIZE, "SIZE", "how much goes to each in turn (256K)", &unit, 4096,
         1u << 30, NULL, NULL},
    };
    struct dlblk_volume_spec spec = {0};
    struct dlblk_volume_info info;
    struct dl_error err = {0};
    int status = cli_parse(cli, command, options, sizeof(options) / sizeof(options[0]), argc, argv,
                           &spec.name, 1);

    if (status != CLI_GO_ON)
        return status;
    if (!size_seen)
        return cli_usage(cli, command, "--size is missing: how large shall volume %s be?",
                         text_quote(spec.name).text);
    spec.size_bytes = size;
    spec.segment_bytes = (uint32_t)segment;
    spec.logical_block_bytes = (uint32_t)block;
    spec.stripe_width = (uint32_t)width;
    spec.stripe_unit_bytes = (uint32_t)unit;
    spec.replicas = (uint32_t)replicas;
    spec.min_write = (uint32_t)min_write;
    spec.failure_domain = (enum dlblk_domain)(domain + 1);
    spec.clique = clique;
    status = cli_connect(cli);
    if (status != CLI_GO_ON)
        return status;
    if (dlblk_volume_create(cli->client, &spec, &info, &err) != 0)
        return cli_fail(cli, &err);
    return show_volume(cli, &info);
}

/* --- list, info --- */

static void
print_volumes(FILE *out, const struct dlblk_volume_info *infos, size_t count)
{
    DL_CLEANUP(cli_table_destroy) struct cli_table *table = cli_table_create();

    cli_table_column(table, "NAME", CLI_LEFT);
    cli_table_column(table, "SIZE", CLI_RIGHT);
    cli_table_column(table, "ALLOCATED", CLI_RIGHT);
    cli_table_column(table, "COPIES", CLI_RIGHT);
    cli_table_column(table, "DOMAIN", CLI_LEFT);
    cli_table_column(table, "ATTACHED BY", CLI_LEFT);
    for (size_t i = 0; i < count; i++) {
        const struct dlblk_volume_info *info = &infos[i];

        cli_table_cell(table, "%s", info->name);
        cli_table_cell(table, "%s", text_of_size(info->size_bytes).text);
        cli_table_cell(table, "%s", text_of_size(info->allocated_bytes).text);
        cli_table_cell(table, "%" PRIu32, info->replicas);
        cli_table_cell(table, "%s", cli_domain_name(info->failure_domain));
        cli_table_cell(table, "%s", info->owner[0] != '\0' ? info->owner : "-");
    }
    cli_table_print(table, out);
}

CLI_COMMAND(cli_volume_list)
{
    DL_CLEANUP(free) struct dlblk_volume_info *infos = NULL;
    struct dl_error err = {0};
    size_t count = 0;
    json_t *json;
    int status = cli_parse(cli, command, NULL, 0, argc, argv, NULL, 0);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_volume_list(cli->client, &infos, &count, &err) != 0)
        return cli_fail(cli, &err);
    if (!cli->json) {
        print_volumes(cli->out, infos, count);
        return CLI_OK;
    }
    json = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(json, volume_to_json(&infos[i]));
    return cli_print_json(cli, json_pack("{s:o}", "volumes", json));
}

CLI_COMMAND(cli_volume_info)
{
    struct dlblk_volume_info info;
    struct dl_error err = {0};
    const char *name;
    int status = cli_parse(cli, command, NULL, 0, argc, argv, &name, 1);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_volume_info(cli->client, name, &info, &err) != 0)
        return cli_fail(cli, &err);
    return show_volume(cli, &info);
}

/* --- changes --- */

/* After a change: the volume as it is now, for --json; else nothing: no news is good news. */
static int
show_changed(const struct cli *cli, const char *name)
{
    struct dlblk_volume_info info;
    struct dl_error err = {0};

    if (!cli->json)
        return CLI_OK;
    if (dlblk_volume_info(cli->client, name, &info, &err) != 0)
        return cli_fail(cli, &err);
    return cli_print_json(cli, volume_to_json(&info));
}

CLI_COMMAND(cli_volume_resize)
{
    uint64_t size = 0;
    bool size_seen = false;
    const struct cli_option options[] = {
        {"size", CLI_SIZE, "SIZE", "the new size, larger than the old one", &size, 0, UINT64_MAX,
         NULL, &size_seen},
    };
    struct dl_error err = {0};
    const char *name;
    int status = cli_parse(cli, command, options, 1, argc, argv, &name, 1);

    if (status != CLI_GO_ON)
        return status;
    if (!size_seen)
        return cli_usage(cli, command, "--size is missing: how large shall volume %s be?",
                         text_quote(name).text);
    status = cli_connect(cli);
    if (status != CLI_GO_ON)
        return status;
    if (dlblk_volume_resize(cli->client, name, size, &err) != 0)
        return cli_fail(cli, &err);
    return show_changed(cli, name);
}

CLI_COMMAND(cli_volume_rename)
{
    struct dl_error err = {0};
    const char *names[2];
    int status = cli_parse(cli, command, NULL, 0, argc, argv, names, 2);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_volume_rename(cli->client, names[0], names[1], &err) != 0)
        return cli_fail(cli, &err);
    return show_changed(cli, names[1]);
}

CLI_COMMAND(cli_volume_delete)
{
    struct dl_error err = {0};
    const char *name;
    int status = cli_parse(cli, command, NULL, 0, argc, argv, &name, 1);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_volume_delete(cli->client, name, &err) != 0)
        return cli_fail(cli, &err);
    return cli->json ? cli_print_json(cli, json_pack("{s:s}", "deleted", name)) : CLI_OK;
}
