/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay.c: the main() of a fuzz target in builds without libFuzzer.
 *
 * Gives every file of the folders (or the files) named on the command line to the target once.  A
 * target reports a finding by aborting, so that reaching the end is success.
 */
#include <errno.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

static void
replay_file(const char *path, size_t size)
{
    uint8_t *data = malloc(size + 1);
    FILE *file = fopen(path, "rb");

    if (data == NULL || file == NULL || fread(data, 1, size, file) != size) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(EXIT_FAILURE);
    }
    (void)fclose(file);
    (void)LLVMFuzzerTestOneInput(data, size);
    free(data);
}

int
main(int argc, char **argv)
{
    unsigned file_count = 0;
    FTS *tree;
    FTSENT *entry;

    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER-OR-FILE...\n", argv[0]);
        return EXIT_FAILURE;
    }
    tree = fts_open(argv + 1, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    if (tree == NULL) {
        perror("fts_open");
        return EXIT_FAILURE;
    }
    while ((entry = fts_read(tree)) != NULL) {
        if (entry->fts_info == FTS_F) {
            replay_file(entry->fts_accpath, (size_t)entry->fts_statp->st_size);
            file_count++;
        } else if (entry->fts_info == FTS_NS || entry->fts_info == FTS_ERR) {
            fprintf(stderr, "%s: %s\n", entry->fts_path, strerror(entry->fts_errno));
            return EXIT_FAILURE;
        }
    }
    (void)fts_close(tree);
    if (file_count == 0) {
        /* An empty corpus would be a test that can't fail. */
        fprintf(stderr, "%s: no input found\n", argv[1]);
        return EXIT_FAILURE;
    }
    printf("replayed %u inputs\n", file_count);
    return EXIT_SUCCESS;
}
