/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_cluster: runs whole clusters in simulation, one seed after the other.
 *
 *     sim_cluster --seeds 200            seeds 1 to 200, each in a process of its own
 *     sim_cluster --seeds 200 --seed 17  those from 17 on
 *     sim_cluster --fresh --count 2000   seeds that no other commit has run: where they begin is
 *                                        told
 *     sim_cluster --from 5000 --count 50
 *     sim_cluster --seed 17 --trace      one seed, in this process, with all that happens
 *
 * docs/simulator.md.  Exit status: 0, 1 a seed failed (it was named), 2 wrong arguments, 3 too
 * little happened.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/log.h"
#include "common/trace.h"
#include "common/version.h"
#include "dlblk/error.h"
#include "tests/sim/cluster.h"

#define JOBS_MAX     64u
#define SEED_SECONDS 120u /* of real time: a seed that takes longer hangs */
#define REPORT_RUNS  100u /* the minimums of a report are for so many */

struct options {
    uint64_t first, count;
    bool single;
    bool fresh;
    bool trace;
    bool replay;
    bool quiet;
    bool first_failure;
    bool no_minimums;
    uint32_t jobs;
};

struct job {
    pid_t pid; /* 0: free */
    int fd;
    uint64_t seed;
};

struct runner {
    const struct options *options;
    struct job jobs[JOBS_MAX];
    uint64_t next_seed;
    uint64_t done, failed;
    struct cluster_report total;
};

static const char usage_text[] =
    "Usage: sim_cluster --seeds N [--seed S] | --fresh --count N | --seed S  [OPTION...]\n"
    "  --seeds N        run so many seeds, from 1, or S, on; also --count N\n"
    "  --from S         run from seed S on\n"
    "  --fresh          run from a seed on that the commit says; with changes in it, the time\n"
    "  --seed S         run this one in this process\n"
    "  --trace          with --seed: print all that happens\n"
    "  --replay         run each seed twice: both histories must be the same\n"
    "  --first-failure  stop at the first seed that fails\n"
    "  --no-minimums    don't ask whether enough happened\n"
    "  --quiet          print failures only\n"
    "  --jobs N         seeds at the same time (default: as many as there are processors)\n";

/* --- one seed --- */

static void
run_seed(const struct options *options, uint64_t seed, struct cluster_report *ret_report)
{
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    struct cluster_report second;

    if (cluster == NULL)
        abort();
    cluster_run(cluster, seed, options->trace, ret_report);
    if (options->replay) {
        cluster_run(cluster, seed, false, &second);
        if (second.history_hash != ret_report->history_hash) {
            (void)fprintf(stderr,
                          "seed %" PRIu64 ": two runs differ: %#" PRIx64 " and %#" PRIx64 "\n",
                          seed, ret_report->history_hash, second.history_hash);
            _Exit(1);
        }
    }
    free(cluster);
}

static __attribute__((noreturn)) void
child_main(const struct options *options, uint64_t seed, int fd)
{
    struct cluster_report report = {0};

    (void)alarm(SEED_SECONDS);
    run_seed(options, seed, &report);
    if (write(fd, &report, sizeof(report)) != (ssize_t)sizeof(report))
        _Exit(1);
    _Exit(0);
}

/* --- many --- */

static void
job_start(struct runner *runner, struct job *job)
{
    int fds[2];

    job->seed = runner->next_seed++;
    if (pipe(fds) != 0) {
        perror("pipe");
        exit(1);
    }
    (void)fflush(stdout);
    job->pid = fork();
    if (job->pid < 0) {
        perror("fork");
        exit(1);
    }
    if (job->pid == 0) {
        (void)close(fds[0]);
        child_main(runner->options, job->seed, fds[1]);
    }
    (void)close(fds[1]);
    job->fd = fds[0];
}

static void
report_add(struct cluster_report *total, const struct cluster_report *report)
{
    for (uint32_t i = 0; i < CLUSTER_REPORT_COUNT; i++)
        total->values[i] += report->values[i];
    for (uint32_t i = 0; i < 128; i++)
        total->errors_by_code[i] += report->errors_by_code[i];
}

static void
job_end(struct runner *runner, struct job *job, int status)
{
    struct cluster_report report;
    bool whole = read(job->fd, &report, sizeof(report)) == (ssize_t)sizeof(report);

    (void)close(job->fd);
    job->pid = 0;
    runner->done++;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && whole) {
        report_add(&runner->total, &report);
        return;
    }
    runner->failed++;
    if (WIFSIGNALED(status))
        (void)fprintf(stderr, "seed %" PRIu64 ": killed by signal %d%s\n", job->seed,
                      WTERMSIG(status), WTERMSIG(status) == SIGALRM ? ": it hangs" : "");
    (void)fprintf(stderr,
                  "seed %" PRIu64 " FAILED; again: sim_cluster --seed %" PRIu64 " --trace\n",
                  job->seed, job->seed);
}

static struct job *
runner_find(struct runner *runner, pid_t pid)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++)
        if (runner->jobs[i].pid == pid)
            return &runner->jobs[i];
    return NULL;
}

static void
runner_loop(struct runner *runner)
{
    const struct options *options = runner->options;
    uint64_t end = options->first + options->count;
    uint32_t running = 0;

    for (;;) {
        bool more = runner->next_seed < end && !(options->first_failure && runner->failed > 0);
        struct job *job;
        int status;
        pid_t pid;

        if (more && running < options->jobs) {
            job_start(runner, runner_find(runner, 0));
            running++;
            continue;
        }
        if (running == 0)
            return;
        pid = wait(&status);
        job = pid > 0 ? runner_find(runner, pid) : NULL;
        if (job == NULL)
            continue;
        job_end(runner, job, status);
        running--;
    }
}

/* --- the end --- */

static void
print_report(const struct cluster_report *report)
{
    for (uint32_t i = 0; i < CLUSTER_REPORT_COUNT; i++)
        (void)printf("%-24s %12" PRIu64 "%s", cluster_report_names[i], report->values[i],
                     i % 2 == 1 || i + 1 == CLUSTER_REPORT_COUNT ? "\n" : "    ");
    (void)printf("errors:");
    for (int code = 0; code < 128; code++)
        if (report->errors_by_code[code] > 0)
            (void)printf(" %s %" PRIu64, dl_err_name(-(DL_E_FIRST + code)),
                         report->errors_by_code[code]);
    (void)printf("\n");
}

/* A simulation in which nothing happens finds nothing: 0 or 3. */
static int
check_minimums(const struct cluster_report *report, uint64_t runs)
{
    int result = 0;

    for (uint32_t i = 0; i < CLUSTER_REPORT_COUNT; i++) {
        uint64_t minimum = cluster_report_minimums[i] * runs / REPORT_RUNS;

        if (report->values[i] >= minimum)
            continue;
        (void)fprintf(stderr,
                      "too little happened: %s %" PRIu64 ", at least %" PRIu64 " expected\n",
                      cluster_report_names[i], report->values[i], minimum);
        result = 3;
    }
    return result;
}

static double
now_s(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int
run_many(const struct options *options)
{
    struct runner *runner = calloc(1, sizeof(*runner));
    double begin_s = now_s();
    int result = 0;

    if (runner == NULL)
        abort();
    if (options->fresh)
        (void)printf("seeds from %" PRIu64 " on\n", options->first);
    runner->options = options;
    runner->next_seed = options->first;
    runner_loop(runner);
    if (!options->quiet) {
        print_report(&runner->total);
        (void)printf("%" PRIu64 " seeds from %" PRIu64 ", %" PRIu64
                     " failed, %.1f s, %.1f seeds/s\n",
                     runner->done, options->first, runner->failed, now_s() - begin_s,
                     (double)runner->done / (now_s() - begin_s));
    }
    if (runner->failed > 0)
        result = 1;
    else if (!options->no_minimums && runner->done >= REPORT_RUNS)
        result = check_minimums(&runner->total, runner->done);
    free(runner);
    return result;
}

static int
run_single(const struct options *options)
{
    struct cluster_report report = {0};

    run_seed(options, options->first, &report);
    if (!options->quiet) {
        print_report(&report);
        (void)printf("seed %" PRIu64 ": history %#" PRIx64 "\n", options->first,
                     report.history_hash);
    }
    return 0;
}

static uint64_t
parse_number(const char *what, const char *text)
{
    char *end;
    uint64_t number;

    errno = 0;
    number = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0') {
        (void)fprintf(stderr, "sim_cluster: --%s: \"%s\" is not a number\n", what, text);
        exit(2);
    }
    return number;
}

/*
 * With room for those of one run.  Each commit has its own, so that a run that failed fails again;
 * what is not committed has others in each minute.
 */
static uint64_t
fresh_seed(void)
{
    const char *commit = dlblk_version_commit();
    struct timespec now;

    if (strstr(commit, "dirty") == NULL && strcmp(commit, "unknown") != 0)
        return (uint64_t)crc32c(0, commit, strlen(commit)) * 100000 + 1;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec / 60 * 100000 + 1;
}

static void
parse_options(struct options *options, int argc, char **argv)
{
    static const struct option longs[] = {
        {"seeds", required_argument, NULL, 'n'},
        {"from", required_argument, NULL, 'f'},
        {"count", required_argument, NULL, 'c'},
        {"seed", required_argument, NULL, 's'},
        {"trace", no_argument, NULL, 't'},
        {"replay", no_argument, NULL, 'r'},
        {"jobs", required_argument, NULL, 'j'},
        {"quiet", no_argument, NULL, 'q'},
        {"first-failure", no_argument, NULL, 'x'},
        {"no-minimums", no_argument, NULL, 'm'},
        {"fresh", no_argument, NULL, 'e'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int c;

    *options = (struct options){.first = 1};
    options->jobs = processors < 1 ? 1 : processors > JOBS_MAX ? JOBS_MAX : (uint32_t)processors;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'n':
        case 'c':
            options->count = parse_number("count", optarg);
            break;
        case 'f':
            options->first = parse_number("from", optarg);
            break;
        case 's':
            options->first = parse_number("seed", optarg);
            options->single = true;
            break;
        case 't':
            options->trace = true;
            break;
        case 'r':
            options->replay = true;
            break;
        case 'q':
            options->quiet = true;
            break;
        case 'x':
            options->first_failure = true;
            break;
        case 'm':
            options->no_minimums = true;
            break;
        case 'e':
            options->fresh = true;
            options->first = fresh_seed();
            break;
        case 'j':
            options->jobs = (uint32_t)parse_number("jobs", optarg);
            break;
        case 'h':
            (void)fputs(usage_text, stdout);
            exit(0);
        default:
            (void)fputs(usage_text, stderr);
            exit(2);
        }
    }
    options->single = options->single && options->count == 0;
    if (optind != argc || (!options->single && options->count == 0) || options->jobs == 0 ||
        options->jobs > JOBS_MAX || (options->trace && !options->single)) {
        (void)fputs(usage_text, stderr);
        exit(2);
    }
}

int
main(int argc, char **argv)
{
    struct options options;

    parse_options(&options, argc, argv);
    /*
     * Frames of a megabyte come and go: without this each is mapped, cleared and unmapped by the
     * kernel.
     */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    log_set_level(LOG_LEVEL_ERROR);
    if (options.single)
        dl_trace_dump_on_crash();
    return options.single ? run_single(&options) : run_many(&options);
}
