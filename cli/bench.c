/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk bench: options, the volume, the report.
 *
 * Which volume: one that exists (to write on it wants --destroy-data), or, with --size, one of that
 * name that is created, used and deleted again.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cli/bench_load.h"
#include "cli/cli.h"
#include "common/text.h"

struct bench {
    struct cli *cli;
    const struct cli_command *command;
    const char *volume_name;
    unsigned mode;
    uint64_t block_bytes, depth, duration_ms, ramp_ms, mix, own_bytes, region_bytes, seed,
        request_count;
    uint64_t replicas;
    unsigned domain;
    bool destroy_data, prefill, keep;
    bool mix_seen, own_seen, region_seen, seconds_seen;

    bool created; /* the volume is ours */
    struct dlblk_volume *volume;
    struct bench_load_result result;
    uint64_t user_us, system_us; /* of this process, over the run */
};

static const char *const mode_names[] = {"read", "write", "randread", "randwrite", "randrw", NULL};
static const double percentiles[] = {1,  5,  10, 20, 30,   40,   50,    60,   70,
                                     80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99};
#define PERCENTILE_COUNT (sizeof(percentiles) / sizeof(percentiles[0]))

static volatile sig_atomic_t interrupted;

static bool
mode_writes(unsigned mode)
{
    return mode != BENCH_READ && mode != BENCH_RANDREAD;
}

/* --- options --- */

static int
bench_parse(struct bench *bench, int argc, char **argv)
{
    const struct cli_option options[] = {
        {"rw", CLI_CHOICE, "MODE", "read, write, randread, randwrite, randrw (randread)",
         &bench->mode, 0, 0, mode_names, NULL},
        {"bs", CLI_SIZE, "SIZE", "of each request (4K)", &bench->block_bytes, 512,
         DLBLK_REQUEST_BYTES_MAX, NULL, NULL},
        {"depth", CLI_NUMBER, "N", "requests in flight (32)", &bench->depth, 1, BENCH_DEPTH_MAX,
         NULL, NULL},
        {"seconds", CLI_DURATION, "TIME", "how long to measure (10)", &bench->duration_ms, 1,
         24ull * 3600 * 1000, NULL, &bench->seconds_seen},
        {"ramp", CLI_DURATION, "TIME", "run this long before measuring (0)", &bench->ramp_ms, 0,
         3600ull * 1000, NULL, NULL},
        {"requests", CLI_NUMBER, "N", "end after so many requests", &bench->request_count, 1,
         UINT64_MAX, NULL, NULL},
        {"mix", CLI_NUMBER, "PERCENT", "reads in randrw (70)", &bench->mix, 0, 100, NULL,
         &bench->mix_seen},
        {"region", CLI_SIZE, "SIZE", "use only so much of the volume, from its start",
         &bench->region_bytes, 512, UINT64_MAX, NULL, &bench->region_seen},
        {"prefill", CLI_FLAG, NULL, "write the whole region before", &bench->prefill, 0, 0, NULL,
         NULL},
        {"destroy-data", CLI_FLAG, NULL, "the volume's content may be overwritten",
         &bench->destroy_data, 0, 0, NULL, NULL},
        {"size", CLI_SIZE, "SIZE", "create VOLUME for this run, and delete it at the end",
         &bench->own_bytes, 4096, UINT64_MAX, NULL, &bench->own_seen},
        {"replicas", CLI_NUMBER, "N", "with --size: number of copies (3)", &bench->replicas, 1, 8,
         NULL, NULL},
        {"failure-domain", CLI_CHOICE, "WHAT", "with --size: server, host, rack (host)",
         &bench->domain, 0, 0, cli_domain_names, NULL},
        {"keep", CLI_FLAG, NULL, "with --size: don't delete the volume", &bench->keep, 0, 0, NULL,
         NULL},
        {"seed", CLI_NUMBER, "N", "of the random places (1)", &bench->seed, 0, UINT64_MAX, NULL,
         NULL},
    };

    return cli_parse(bench->cli, bench->command, options, sizeof(options) / sizeof(options[0]),
                     argc, argv, &bench->volume_name, 1);
}

static int
bench_check(const struct bench *bench)
{
    if (bench->mix_seen && bench->mode != BENCH_RANDRW)
        return cli_usage(bench->cli, bench->command, "--mix is for --rw randrw");
    if ((mode_writes(bench->mode) || bench->prefill) && !bench->destroy_data && !bench->own_seen)
        return cli_usage(
            bench->cli, bench->command,
            "--rw %s%s overwrites the content of volume %s: say --destroy-data if that is "
            "wanted, or --size to use a volume of its own",
            mode_names[bench->mode], bench->prefill ? " with --prefill" : "",
            text_quote(bench->volume_name).text);
    if (bench->depth * bench->block_bytes > BENCH_BUFFER_BYTES_MAX)
        return cli_usage(bench->cli, bench->command,
                         "--depth %" PRIu64 " times --bs %s is more than %s of buffers",
                         bench->depth, text_of_size(bench->block_bytes).text,
                         text_of_size(BENCH_BUFFER_BYTES_MAX).text);
    return CLI_GO_ON;
}

/* --- the volume --- */

static int
bench_create_volume(struct bench *bench)
{
    struct dlblk_volume_spec spec = {
        .name = bench->volume_name,
        .size_bytes = bench->own_bytes,
        .replicas = (uint32_t)bench->replicas,
        .failure_domain = (enum dlblk_domain)(bench->domain + 1),
    };
    struct dl_error err = {0};
    int result = dlblk_volume_create(bench->cli->client, &spec, NULL, &err);

    if (result == -DL_E_VOLUME_EXISTS)
        dl_error_hint(&err, "--size creates a volume of its own; to use this one leave --size out "
                            "(and add --destroy-data for a mode that writes)");
    if (result != 0)
        return cli_fail(bench->cli, &err);
    bench->created = true;
    return CLI_GO_ON;
}

static int
bench_open_volume(struct bench *bench)
{
    bool writes = mode_writes(bench->mode) || bench->prefill;
    struct dl_error err = {0};
    int result = dlblk_volume_open(bench->cli->client, bench->volume_name,
                                   writes ? 0 : DLBLK_OPEN_READ_ONLY, &bench->volume, &err);

    if (result == -DL_E_VOLUME_UNKNOWN)
        dl_error_hint(&err, "--size 1G creates it for this run");
    return result == 0 ? CLI_GO_ON : cli_fail(bench->cli, &err);
}

/* What can be checked only now. */
static int
bench_check_volume(struct bench *bench)
{
    struct dlblk_volume_geometry geometry;

    dlblk_volume_get_geometry(bench->volume, &geometry);
    if (bench->block_bytes % geometry.logical_block_bytes != 0)
        return cli_usage(bench->cli, bench->command,
                         "--bs %" PRIu64
                         " is not a multiple of the volume's logical block, %" PRIu32 " bytes",
                         bench->block_bytes, geometry.logical_block_bytes);
    if (!bench->region_seen)
        bench->region_bytes = geometry.size_bytes;
    if (bench->region_bytes > geometry.size_bytes)
        return cli_usage(bench->cli, bench->command, "--region %s is larger than the volume, %s",
                         text_of_size(bench->region_bytes).text,
                         text_of_size(geometry.size_bytes).text);
    if (bench->region_bytes < bench->block_bytes)
        return cli_usage(
            bench->cli, bench->command, "the region of %s is smaller than one request of %s",
            text_of_size(bench->region_bytes).text, text_of_size(bench->block_bytes).text);
    return CLI_GO_ON;
}

static int
bench_close(struct bench *bench, int status)
{
    struct dl_error err = {0};

    if (bench->volume != NULL && dlblk_volume_close(bench->volume, &err) != 0 && status == CLI_OK)
        status = cli_fail(bench->cli, &err);
    if (bench->created && !bench->keep &&
        dlblk_volume_delete(bench->cli->client, bench->volume_name, &err) != 0 && status == CLI_OK)
        status = cli_fail(bench->cli, &err);
    return status;
}

/* --- the run --- */

static void
on_interrupt(int signal)
{
    interrupted = signal;
}

static bool
bench_on_second(void *context, uint64_t elapsed_ms, uint64_t requests_done)
{
    const struct bench *bench = context;

    if (!bench->cli->json && isatty(fileno(bench->cli->err)))
        fprintf(bench->cli->err, "\r%" PRIu64 " s, %" PRIu64 " requests", elapsed_ms / 1000,
                requests_done);
    return !interrupted;
}

static int
bench_run_failed(const struct bench *bench, int result)
{
    struct dl_error err = {0};

    if (bench->result.err == 0)
        (void)dl_error_set(&err, result, "no memory for the buffers of the requests");
    else
        (void)dl_error_set(&err, result, "%s of %s at offset %" PRIu64 " of volume %s failed: %s",
                           bench->result.err_direction == BENCH_DIRECTION_READ ? "a read"
                                                                               : "a write",
                           text_of_size(bench->block_bytes).text, bench->result.err_offset_bytes,
                           bench->volume_name, dl_err_str(result));
    dl_error_hint(&err, "dlblk cluster status shows what is wrong with the servers");
    return cli_fail(bench->cli, &err);
}

static int
bench_prefill(struct bench *bench)
{
    const uint32_t chunk = 1u << 20;
    uint64_t region = bench->region_bytes;
    struct bench_load_options options = {
        .mode = BENCH_WRITE,
        .block_bytes = region % chunk == 0 ? chunk : (uint32_t)bench->block_bytes,
        .depth = 8,
        .region_bytes = region,
        .seed = bench->seed + 1000,
        .on_second = bench_on_second,
        .context = bench,
    };
    int result;

    options.request_count_max = region / options.block_bytes;
    result = bench_load_run(bench->volume, &options, &bench->result);
    return result == 0 ? CLI_GO_ON : bench_run_failed(bench, result);
}

static uint64_t
timeval_us(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static int
bench_measure(struct bench *bench)
{
    struct bench_load_options options = {
        .mode = (enum bench_mode)bench->mode,
        .block_bytes = (uint32_t)bench->block_bytes,
        .depth = (uint32_t)bench->depth,
        .read_percent = (uint32_t)bench->mix,
        .region_bytes = bench->region_bytes,
        .ramp_ms = bench->ramp_ms,
        .duration_ms = bench->request_count > 0 && !bench->seconds_seen ? 0 : bench->duration_ms,
        .request_count_max = bench->request_count,
        .seed = bench->seed,
        .on_second = bench_on_second,
        .context = bench,
    };
    struct rusage before, after;
    int result;

    (void)getrusage(RUSAGE_SELF, &before);
    result = bench_load_run(bench->volume, &options, &bench->result);
    (void)getrusage(RUSAGE_SELF, &after);
    bench->user_us = timeval_us(after.ru_utime) - timeval_us(before.ru_utime);
    bench->system_us = timeval_us(after.ru_stime) - timeval_us(before.ru_stime);
    if (!bench->cli->json && isatty(fileno(bench->cli->err)))
        fputc('\r', bench->cli->err);
    return result == 0 ? CLI_GO_ON : bench_run_failed(bench, result);
}

/* --- the report --- */

static double
per_second(const struct bench *bench, double amount)
{
    return bench->result.duration_ns > 0 ? amount * 1e9 / (double)bench->result.duration_ns : 0;
}

static json_t *
direction_to_json(const struct bench *bench, enum bench_direction direction)
{
    const struct hist *hist = &bench->result.latencies_ns[direction];
    double bytes = (double)hist->count * (double)bench->block_bytes;
    json_t *percentile = json_object();

    for (size_t i = 0; i < PERCENTILE_COUNT && hist->count > 0; i++) {
        char key[16];

        (void)snprintf(key, sizeof(key), "%.6f", percentiles[i]);
        (void)json_object_set_new(percentile, key,
                                  json_integer((json_int_t)hist_percentile(hist, percentiles[i])));
    }
    return json_pack("{s:I, s:I, s:f, s:I, s:I, s:{s:I, s:I, s:f, s:I, s:o}}", "total_ios",
                     (json_int_t)hist->count, "io_bytes", (json_int_t)bytes, "iops",
                     per_second(bench, (double)hist->count), "bw_bytes",
                     (json_int_t)per_second(bench, bytes), "runtime",
                     (json_int_t)(bench->result.duration_ns / 1000000), "lat_ns", "min",
                     (json_int_t)hist->min, "max", (json_int_t)hist->max, "mean", hist_mean(hist),
                     "N", (json_int_t)hist->count, "percentile", percentile);
}

static json_t *
bench_to_json(const struct bench *bench)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:i, s:I, s:o, s:o, s:{s:I, s:I}}", "volume",
                     bench->volume_name, "rw", mode_names[bench->mode], "bs",
                     (json_int_t)bench->block_bytes, "iodepth", (json_int_t)bench->depth,
                     "region_bytes", (json_int_t)bench->region_bytes, "rwmixread",
                     bench->mode == BENCH_RANDRW ? (int)bench->mix
                     : mode_writes(bench->mode)  ? 0
                                                 : 100,
                     "runtime_ns", (json_int_t)bench->result.duration_ns, "read",
                     direction_to_json(bench, BENCH_DIRECTION_READ), "write",
                     direction_to_json(bench, BENCH_DIRECTION_WRITE), "cpu", "user_us",
                     (json_int_t)bench->user_us, "system_us", (json_int_t)bench->system_us);
}

static void
print_direction(const struct bench *bench, const char *name, enum bench_direction direction)
{
    const struct hist *hist = &bench->result.latencies_ns[direction];
    FILE *out = bench->cli->out;
    double bytes = (double)hist->count * (double)bench->block_bytes;

    if (hist->count == 0)
        return;
    fprintf(out, "%-6s %.0f operations/s, %s/s\n", name, per_second(bench, (double)hist->count),
            text_of_size((uint64_t)per_second(bench, bytes)).text);
    fprintf(out, "       latency: mean %s", text_of_duration((uint64_t)hist_mean(hist)).text);
    fprintf(out, ", 50 %% %s", text_of_duration(hist_percentile(hist, 50)).text);
    fprintf(out, ", 99 %% %s", text_of_duration(hist_percentile(hist, 99)).text);
    fprintf(out, ", 99.9 %% %s", text_of_duration(hist_percentile(hist, 99.9)).text);
    fprintf(out, ", longest %s\n", text_of_duration(hist->max).text);
}

static int
bench_report(const struct bench *bench)
{
    const struct hist *hists = bench->result.latencies_ns;
    uint64_t count = hists[BENCH_DIRECTION_READ].count + hists[BENCH_DIRECTION_WRITE].count;
    FILE *out = bench->cli->out;

    if (bench->cli->json)
        return cli_print_json(bench->cli, bench_to_json(bench));
    fprintf(out, "%s of %s", mode_names[bench->mode], text_of_size(bench->block_bytes).text);
    fprintf(out, ", depth %" PRIu64 ", over %s of volume %s", bench->depth,
            text_of_size(bench->region_bytes).text, bench->volume_name);
    fprintf(out, ": %" PRIu64 " requests in %s\n", count,
            text_of_duration(bench->result.duration_ns).text);
    print_direction(bench, "read", BENCH_DIRECTION_READ);
    print_direction(bench, "write", BENCH_DIRECTION_WRITE);
    if (count > 0)
        fprintf(out, "CPU    %.1f us per operation in this process (user %.1f, system %.1f)\n",
                (double)(bench->user_us + bench->system_us) / (double)count,
                (double)bench->user_us / (double)count, (double)bench->system_us / (double)count);
    return CLI_OK;
}

static int
bench_on_volume(struct bench *bench)
{
    int status = bench_check_volume(bench);

    if (status == CLI_GO_ON && bench->prefill)
        status = bench_prefill(bench);
    if (status == CLI_GO_ON && !interrupted)
        status = bench_measure(bench);
    if (status == CLI_GO_ON)
        status = bench_report(bench);
    if (status == CLI_OK && interrupted)
        fprintf(bench->cli->err, "dlblk: interrupted: the figures are those up to then\n");
    return status;
}

static int
bench_main(struct bench *bench, int argc, char **argv)
{
    /* The second time it ends at once: requests that wait for servers may never end. */
    const struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESETHAND};
    int status = bench_parse(bench, argc, argv);

    if (status == CLI_GO_ON)
        status = bench_check(bench);
    if (status == CLI_GO_ON)
        status = cli_connect(bench->cli);
    if (status != CLI_GO_ON)
        return status;
    /* The volume is to be detached, and deleted if it is ours, whatever ends the run. */
    interrupted = 0;
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    if (bench->own_seen)
        status = bench_create_volume(bench);
    if (status == CLI_GO_ON)
        status = bench_open_volume(bench);
    if (status == CLI_GO_ON)
        status = bench_on_volume(bench);
    return bench_close(bench, status);
}

CLI_COMMAND(cli_bench)
{
    struct bench *bench = calloc(1, sizeof(*bench));
    int status;

    if (bench == NULL)
        return cli_fail(cli, &(struct dl_error){.code = -DL_E_NO_MEMORY});
    *bench = (struct bench){
        .cli = cli,
        .command = command,
        .mode = BENCH_RANDREAD,
        .block_bytes = 4096,
        .depth = 32,
        .duration_ms = 10000,
        .mix = 70,
        .seed = 1,
        .domain = DLBLK_DOMAIN_HOST - 1,
    };
    status = bench_main(bench, argc, argv);
    free(bench);
    return status;
}
