/* SPDX-License-Identifier: Apache-2.0 */
/* How things are: dlblk cluster status, dlblk volume status */
#include <inttypes.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "common/text.h"

#define NS_PER_S  1000000000ull
#define NS_PER_MS 1000000ull

json_t *
cli_sentences_to_json(char (*sentences)[DLBLK_SENTENCE_BYTES], size_t count)
{
    json_t *json = json_array();

    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(json, json_string(sentences[i]));
    return json;
}

/* --- recovery --- */

static json_t *
recovery_to_json(const struct dlblk_recovery *recovery)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "slots", (json_int_t)recovery->slots, "left_bytes",
                     (json_int_t)recovery->left_bytes, "bytes_per_s",
                     (json_int_t)recovery->bytes_per_s, "left_s", (json_int_t)recovery->left_s);
}

static void
print_recovery(FILE *out, const struct dlblk_recovery *recovery)
{
    if (recovery->slots == 0 && recovery->left_bytes == 0)
        return;
    fprintf(out, "recovery:  %" PRIu64 " %s being made; at most %s left", recovery->slots,
            recovery->slots == 1 ? "copy is" : "copies are",
            text_of_size(recovery->left_bytes).text);
    if (recovery->bytes_per_s > 0)
        fprintf(out, ", %s/s", text_of_size(recovery->bytes_per_s).text);
    if (recovery->left_s > 0)
        fprintf(out, ", about %s", text_of_duration(recovery->left_s * NS_PER_S).text);
    fprintf(out, "\n");
}

/* --- cluster --- */

static json_t *
status_to_json(const struct dlblk_cluster_status *status)
{
    return json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:o, "
        "s:o, s:o, s:I}",
        "cluster_id", status->cluster_id, "state", status->state, "servers_total",
        status->servers_total, "servers_up", status->servers_up, "volumes", status->volumes,
        "capacity_bytes", (json_int_t)status->capacity_bytes, "used_bytes",
        (json_int_t)status->used_bytes, "volume_bytes", (json_int_t)status->volume_bytes,
        "segments", (json_int_t)status->segments, "uptime_ms", (json_int_t)status->uptime_ms,
        "software", status->software, "segments_degraded", (json_int_t)status->segments_degraded,
        "segments_blocked", (json_int_t)status->segments_blocked, "segments_moving",
        (json_int_t)status->segments_moving, "recovery", recovery_to_json(&status->recovery),
        "problems", cli_sentences_to_json(status->problems, status->problem_count), "scrub",
        cli_scrub_counts_to_json(&status->scrub), "scrub_completed_ms",
        (json_int_t)status->scrub_completed_ms);
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
            text_of_duration(status->uptime_ms * NS_PER_MS).text);
    if (status->segments_degraded + status->segments_blocked + status->segments_moving > 0)
        fprintf(out,
                "segments:  %" PRIu64 " with fewer copies than they should have, %" PRIu64
                " blocked, %" PRIu64 " moving\n",
                status->segments_degraded, status->segments_blocked, status->segments_moving);
    print_recovery(out, &status->recovery);
    fprintf(out,
            "scrub:     %s%s; %" PRIu64 " bad sectors found, %" PRIu64 " repaired, %" PRIu64
            " left\n",
            status->scrub_completed_ms != 0 ? "all read by " : "not all read yet",
            status->scrub_completed_ms != 0 ? cli_time_of(status->scrub_completed_ms).text : "",
            status->scrub.bad, status->scrub.repaired, status->scrub.left_bad);
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

/* --- a volume --- */

static json_t *
volume_status_to_json(const struct dlblk_volume_status *status)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:i, s:i, s:o, s:o, s:o}",
                     "name", status->info.name, "state", status->state, "since_ms",
                     (json_int_t)status->since_ms, "segments", (json_int_t)status->segments,
                     "segments_in_sync", (json_int_t)status->segments_in_sync, "segments_degraded",
                     (json_int_t)status->segments_degraded, "segments_blocked",
                     (json_int_t)status->segments_blocked, "segments_unreadable",
                     (json_int_t)status->segments_unreadable, "segments_moving",
                     (json_int_t)status->segments_moving, "owner", status->info.owner, "replicas",
                     status->info.replicas, "min_write", status->info.min_write, "recovery",
                     recovery_to_json(&status->recovery), "problems",
                     cli_sentences_to_json(status->problems, status->problem_count), "scrub",
                     cli_scrub_to_json(&status->scrub));
}

static void
print_volume_status(FILE *out, const struct dlblk_volume_status *status)
{
    const struct dlblk_volume_info *info = &status->info;

    fprintf(out, "volume:    %s\n", info->name);
    fprintf(out, "state:     %s", status->state);
    if (status->since_ms != 0)
        fprintf(out, " since %s", cli_time_of(status->since_ms).text);
    fprintf(out, "\ncopies:    %" PRIu32 ", at least %" PRIu32 " for a write\n", info->replicas,
            info->min_write);
    fprintf(out, "segments:  %" PRIu64 " allocated, %" PRIu64 " with all copies in sync\n",
            status->segments, status->segments_in_sync);
    if (status->segments_degraded + status->segments_blocked + status->segments_unreadable > 0)
        fprintf(out,
                "missing:   %" PRIu64 " segments have fewer copies, writes to %" PRIu64
                " wait, %" PRIu64 " can't be read\n",
                status->segments_degraded, status->segments_blocked, status->segments_unreadable);
    if (status->segments_moving > 0)
        fprintf(out, "moving:    %" PRIu64 " segments, to other servers\n",
                status->segments_moving);
    print_recovery(out, &status->recovery);
    if (info->owner[0] != '\0')
        fprintf(out, "attached:  by %s since %s\n", info->owner,
                cli_time_of(info->attached_ms).text);
    else
        fprintf(out, "attached:  no\n");
    cli_print_scrub(out, &status->scrub);
    for (size_t i = 0; i < status->problem_count; i++)
        fprintf(out, "problem:   %s\n", status->problems[i]);
}

CLI_COMMAND(cli_volume_status)
{
    struct dlblk_volume_status volume = {0};
    struct dl_error err = {0};
    const char *name;
    int status = cli_parse(cli, command, NULL, 0, argc, argv, &name, 1);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (dlblk_volume_status(cli->client, name, &volume, &err) != 0)
        return cli_fail(cli, &err);
    status = CLI_OK;
    if (cli->json)
        status = cli_print_json(cli, volume_status_to_json(&volume));
    else
        print_volume_status(cli->out, &volume);
    dlblk_volume_status_fini(&volume);
    return status;
}
