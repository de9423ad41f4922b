/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk events: the cluster's log.  With --follow it goes on until it is killed, also over a
 * restart of the metadata service.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

#define FOLLOW_WAIT_MS 30000u /* the service answers by then, with nothing if need be */
#define FOLLOW_LINES   10u
#define RETRY_NS       500000000l

struct events {
    struct cli *cli;
    struct dlblk_log_entry *entries; /* read, and not printed yet */
    size_t count;
    uint64_t after;
    bool lost;
};

static json_t *
entry_to_json(const struct dlblk_log_entry *entry)
{
    return json_pack("{s:I, s:I, s:s, s:i, s:I, s:s, s:i, s:i, s:s}", "sequence",
                     (json_int_t)entry->sequence, "at_ms", (json_int_t)entry->at_ms, "kind",
                     entry->kind, "server_id", entry->server_id, "volume_id",
                     (json_int_t)entry->volume_id, "volume", entry->volume_name, "segment",
                     entry->segment, "segment_count", entry->segment_count, "text", entry->text);
}

/* Parts of it are words of clients: nothing in it may spoil a terminal. */
static void
print_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++)
        (void)fputc((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text, out);
}

static void
print_entry(FILE *out, const struct dlblk_log_entry *entry)
{
    fprintf(out, "%s  %-12s  ", cli_time_of(entry->at_ms).text, entry->kind);
    print_text(out, entry->text);
    (void)fputc('\n', out);
}

/* A line each. */
static void
print_entries(const struct cli *cli, const struct dlblk_log_entry *entries, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_t *json;

        if (!cli->json) {
            print_entry(cli->out, &entries[i]);
            continue;
        }
        json = entry_to_json(&entries[i]);
        if (json != NULL)
            (void)json_dumpf(json, cli->out, JSON_COMPACT);
        (void)fputc('\n', cli->out);
        json_decref(json);
    }
}

/* --- what is there --- */

static int
events_add(struct events *events, const struct dlblk_log *log)
{
    struct dlblk_log_entry *entries;

    events->lost = events->lost || log->lost;
    events->after = log->next;
    if (log->count == 0)
        return 0;
    entries = realloc(events->entries, (events->count + log->count) * sizeof(*entries));
    if (entries == NULL)
        return -DL_E_NO_MEMORY;
    memcpy(&entries[events->count], log->entries, log->count * sizeof(*entries));
    events->entries = entries;
    events->count += log->count;
    return 0;
}

/* All of the log, in as many answers as it takes. */
static int
events_read(struct events *events, struct dl_error *err)
{
    size_t before;

    do {
        struct dlblk_log log = {0};
        int result = dlblk_log_read(events->cli->client, events->after, 0, 0, &log, err);

        before = events->count;
        if (result == 0 && events_add(events, &log) != 0)
            result = dl_error_set(err, -DL_E_NO_MEMORY, "out of memory");
        free(log.entries);
        if (result != 0)
            return result;
    } while (events->count > before);
    return 0;
}

static int
show_events(const struct events *events, size_t first)
{
    const struct cli *cli = events->cli;
    json_t *array = json_array();

    for (size_t i = first; i < events->count; i++)
        (void)json_array_append_new(array, entry_to_json(&events->entries[i]));
    return cli_print_json(cli, json_pack("{s:o, s:I, s:b}", "events", array, "next",
                                         (json_int_t)events->after, "lost", events->lost));
}

/* --- what comes --- */

static bool
follow_goes_on(int err)
{
    return cli_exit_of(err) == CLI_UNREACHABLE;
}

/* Ends with an error that waiting does not help against, or when nobody reads any more. */
static int
follow(struct events *events)
{
    struct cli *cli = events->cli;
    bool told = false;

    for (;;) {
        struct dlblk_log log = {0};
        struct dl_error err = {0};
        int result = dlblk_log_read(cli->client, events->after, 0, FOLLOW_WAIT_MS, &log, &err);

        if (result != 0 && !follow_goes_on(result))
            return cli_fail(cli, &err);
        if (result != 0) {
            if (!told)
                fprintf(cli->err, "dlblk: %s: waiting for it\n", err.text);
            told = true;
            (void)nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
            continue;
        }
        told = false;
        if (log.lost)
            fprintf(cli->err, "dlblk: entries of the log were dropped before they were read\n");
        print_entries(cli, log.entries, log.count);
        free(log.entries);
        events->after = log.next;
        if (fflush(cli->out) != 0)
            return CLI_FAILED;
    }
}

static int
run_events(struct events *events, uint64_t lines, bool follows)
{
    struct dl_error err = {0};
    size_t first;

    if (events_read(events, &err) != 0)
        return cli_fail(events->cli, &err);
    first = events->count > lines ? events->count - lines : 0;
    if (!follows && events->cli->json)
        return show_events(events, first);
    if (events->count > first)
        print_entries(events->cli, &events->entries[first], events->count - first);
    if (!follows)
        return CLI_OK;
    if (fflush(events->cli->out) != 0)
        return CLI_FAILED;
    return follow(events);
}

CLI_COMMAND(cli_events)
{
    struct events events = {.cli = cli};
    uint64_t lines = 0;
    bool follows = false, lines_seen = false;
    const struct cli_option options[] = {
        {"follow", CLI_FLAG, NULL, "go on with what happens from now on", &follows, 0, 0, NULL,
         NULL},
        {"lines", CLI_NUMBER, "N", "the last N only (all; with --follow 10)", &lines, 0, 1000000,
         NULL, &lines_seen},
        {"after", CLI_NUMBER, "N", "those behind the entry with this number", &events.after, 0,
         UINT64_MAX - 1, NULL, NULL},
    };
    int status = cli_parse(cli, command, options, sizeof(options) / sizeof(options[0]), argc, argv,
                           NULL, 0);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (!lines_seen)
        lines = follows ? FOLLOW_LINES : UINT64_MAX;
    status = run_events(&events, lines, follows);
    free(events.entries);
    return status;
}
