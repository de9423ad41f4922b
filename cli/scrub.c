/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk scrub VOLUME: begins it, asks every now and then how far it is, and says what was found.
 * The servers do the work: this may be interrupted, and a service that was started anew meanwhile
 * learns from the id which scrub is meant.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "common/text.h"

#define NS_PER_S      1000000000ull
#define ASK_MIN_NS    50000000l
#define ASK_MAX_NS    1000000000l
#define LINE_EVERY_NS (10 * NS_PER_S) /* of progress, where it does not stay in one line */

json_t *
cli_scrub_counts_to_json(const struct dlblk_scrub_counts *counts)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "sectors", (json_int_t)counts->sectors, "bad",
                     (json_int_t)counts->bad, "repaired", (json_int_t)counts->repaired, "left_bad",
                     (json_int_t)counts->left_bad, "mismatches", (json_int_t)counts->mismatches);
}

json_t *
cli_scrub_to_json(const struct dlblk_scrub *scrub)
{
    json_t *absent = json_array();

    for (uint32_t i = 0; i < scrub->absent_count; i++)
        (void)json_array_append_new(absent, json_integer(scrub->absent[i]));
    return json_pack("{s:s, s:I, s:I, s:I, s:o, s:I, s:I, s:o, s:I, s:I}", "state", scrub->state,
                     "total_bytes", (json_int_t)scrub->total_bytes, "done_bytes",
                     (json_int_t)scrub->done_bytes, "left_s", (json_int_t)scrub->left_s, "counts",
                     cli_scrub_counts_to_json(&scrub->counts), "chunks_skipped",
                     (json_int_t)scrub->chunks_skipped, "uncompared", (json_int_t)scrub->uncompared,
                     "servers_absent", absent, "begun_ms", (json_int_t)scrub->begun_ms, "ended_ms",
                     (json_int_t)scrub->ended_ms);
}

/* --- in words --- */

static void
print_counts(FILE *out, const struct dlblk_scrub_counts *counts)
{
    fprintf(out,
            "%" PRIu64 " sectors read, %" PRIu64 " bad, %" PRIu64 " repaired, %" PRIu64
            " left bad, %" PRIu64 " differ between copies",
            counts->sectors, counts->bad, counts->repaired, counts->left_bad, counts->mismatches);
}

void
cli_print_scrub(FILE *out, const struct dlblk_scrub *scrub)
{
    if (strcmp(scrub->state, "none") == 0)
        return;
    fprintf(out, "scrub:     ");
    if (scrub->ended_ms != 0)
        fprintf(out, "%s: ", cli_time_of(scrub->ended_ms).text);
    else
        fprintf(out, "%s of %s gone over: ", text_of_size(scrub->done_bytes).text,
                text_of_size(scrub->total_bytes).text);
    print_counts(out, &scrub->counts);
    (void)fputc('\n', out);
}

static void
print_result(FILE *out, const struct dlblk_scrub *scrub)
{
    print_counts(out, &scrub->counts);
    (void)fputc('\n', out);
    for (uint32_t i = 0; i < scrub->absent_count; i++)
        fprintf(out, "server %" PRIu32 " is down: its copies were not looked at\n",
                scrub->absent[i]);
    if (scrub->chunks_skipped > 0)
        fprintf(out, "%" PRIu64 " %s not looked at: being made, or failing; scrub again later\n",
                scrub->chunks_skipped,
                scrub->chunks_skipped == 1 ? "copy of a segment was" : "copies of segments were");
    if (scrub->uncompared > 0)
        fprintf(out,
                "%" PRIu64
                " %s not compared whole with all other copies: those were made, moved or "
                "away meanwhile; scrub again later\n",
                scrub->uncompared, scrub->uncompared == 1 ? "segment was" : "segments were");
    if (scrub->counts.left_bad + scrub->counts.mismatches > 0)
        fprintf(out, "dlblk events says where\n");
}

static bool
is_all_well(const struct dlblk_scrub *scrub)
{
    return scrub->counts.left_bad == 0 && scrub->counts.mismatches == 0 &&
           scrub->chunks_skipped == 0 && scrub->uncompared == 0 && scrub->absent_count == 0;
}

/* --- waiting --- */

struct progress {
    bool one_line;
    bool shown;
    uint64_t shown_ns;
};

static uint64_t
now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void
show_progress(const struct cli *cli, struct progress *progress, const struct dlblk_scrub *scrub)
{
    if (cli->json || (!progress->one_line && now_ns() - progress->shown_ns < LINE_EVERY_NS))
        return;
    progress->shown_ns = now_ns();
    progress->shown = true;
    fprintf(cli->err, "%s%s of %s gone over", progress->one_line ? "\r" : "",
            text_of_size(scrub->done_bytes).text, text_of_size(scrub->total_bytes).text);
    if (scrub->left_s > 0)
        fprintf(cli->err, ", about %s left", text_of_duration(scrub->left_s * NS_PER_S).text);
    fprintf(cli->err, progress->one_line ? "\033[K" : "\n");
}

static int
wait_for_end(struct cli *cli, const char *name, struct dlblk_scrub *scrub, struct dl_error *err)
{
    struct progress progress = {.one_line = isatty(fileno(cli->err)), .shown_ns = now_ns()};
    long pause_ns = ASK_MIN_NS;
    int result = 0;

    while (result == 0 && strcmp(scrub->state, "running") == 0) {
        uint8_t id[sizeof(scrub->id)];

        show_progress(cli, &progress, scrub);
        (void)nanosleep(&(struct timespec){.tv_sec = pause_ns / (long)NS_PER_S,
                                           .tv_nsec = pause_ns % (long)NS_PER_S},
                        NULL);
        pause_ns = 2 * pause_ns < ASK_MAX_NS ? 2 * pause_ns : ASK_MAX_NS;
        memcpy(id, scrub->id, sizeof(id));
        result = dlblk_volume_scrub(cli->client, name, id, scrub, err);
    }
    if (progress.shown && progress.one_line)
        (void)fputc('\n', cli->err);
    return result;
}

CLI_COMMAND(cli_scrub)
{
    struct dlblk_scrub scrub = {0};
    struct dl_error err = {0};
    uint8_t id[sizeof(scrub.id)];
    bool no_wait = false;
    const struct cli_option options[] = {
        {"no-wait", CLI_FLAG, NULL, "begin it, and leave it to the servers", &no_wait, 0, 0, NULL,
         NULL},
    };
    const char *name;
    int status = cli_parse(cli, command, options, 1, argc, argv, &name, 1);

    if (status != CLI_GO_ON || (status = cli_connect(cli)) != CLI_GO_ON)
        return status;
    if (getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id))
        (void)dl_error_set(&err, -errno, "no random numbers");
    else if (dlblk_volume_scrub(cli->client, name, id, &scrub, &err) == 0 && !no_wait)
        (void)wait_for_end(cli, name, &scrub, &err);
    if (err.code != 0)
        return cli_fail(cli, &err);
    if (cli->json)
        status = cli_print_json(cli, cli_scrub_to_json(&scrub));
    else if (!no_wait)
        print_result(cli->out, &scrub);
    if (no_wait)
        return status == CLI_GO_ON ? CLI_OK : status;
    return is_all_well(&scrub) ? CLI_OK : CLI_FAILED;
}
