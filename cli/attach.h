/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach.h: what the commands that make block devices share: other programs found and run.
 *
 * Threads: the main thread.  Errors: printed; exit codes.
 */
#ifndef DLBLK_CLI_ATTACH_H
#define DLBLK_CLI_ATTACH_H

#include "cli/cli.h"
#include "common/text.h"

#define CLI_PATH_BYTES 1024u
#define CLI_WORDS_MAX  32u

/* A command line; words are borrowed. */
struct cli_words {
    const char *word[CLI_WORDS_MAX + 1]; /* ends with NULL */
    size_t count;
    struct text_short timeout; /* memory of one of them */
};

void cli_words_add(struct cli_words *words, const char *word);
void cli_words_add_number(struct cli_words *words, const char *option, uint64_t number,
                          struct text_short *memory);
/* --meta, --config and --timeout, as they were given. */
void cli_words_add_global(const struct cli *cli, struct cli_words *words);

/* `name` itself, for $PATH, where it is not beside this program. */
const char *cli_find_program(const char *name, char path[CLI_PATH_BYTES]);

/* wait: its exit status, 127 if it can't be run.  Else this process becomes it. */
int cli_run_words(struct cli *cli, const struct cli_words *words, bool wait);

/* --- nbdkit and the kernel's nbd client --- */

int cli_attach_nbd(struct cli *cli, const char *volume, bool read_only);
/* A device or a volume that is attached so. */
bool cli_is_nbd(const char *name);
int cli_detach_nbd(struct cli *cli, const char *name, bool force);

/*
 * The volume is taken over from its dead owner without these servers (a list with commas), which
 * the operator says are gone for good, and closed again.  An exit status.
 */
int cli_force(struct cli *cli, const char *volume, const char *servers);

#endif
