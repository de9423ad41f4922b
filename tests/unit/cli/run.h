/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.h: runs dlblk in the test's process, on fake_libdlblk, and keeps what it printed.
 *
 *     struct run run = run_cli("volume", "list", "--json");
 *     assert_int_equal(run.status, CLI_OK);
 *     run_free(&run);
 */
#ifndef DLBLK_TESTS_UNIT_CLI_RUN_H
#define DLBLK_TESTS_UNIT_CLI_RUN_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

struct run {
    int status;
    char *out, *err;
};

static inline struct run
run_words(const char *const *words)
{
    struct run run = {0};
    char *argv[32] = {(char *)(uintptr_t) "dlblk"};
    size_t out_bytes, err_bytes;
    FILE *out = open_memstream(&run.out, &out_bytes);
    FILE *err = open_memstream(&run.err, &err_bytes);
    int argc = 1;

    for (; words[argc - 1] != NULL; argc++)
        argv[argc] = (char *)(uintptr_t)words[argc - 1];
    run.status = cli_main(argc, argv, out, err);
    (void)fclose(out);
    (void)fclose(err);
    return run;
}

#define run_cli(...) run_words((const char *const[]){__VA_ARGS__, NULL})

static inline void
run_free(struct run *run)
{
    free(run->out);
    free(run->err);
}

/* NULL if what was printed is not JSON and nothing else. */
static inline json_t *
run_json(const struct run *run)
{
    return json_loads(run->out, 0, NULL);
}

#endif
