/* SPDX-License-Identifier: Apache-2.0 */
/*
 * golden.h: a disk and its index as text, so that a later version can be asked whether it still
 * understands them.
 *
 *     disk SIZE
 *     block NUMBER COUNT*HEX COUNT*HEX ...     a block of the disk that is not all zeroes: runs of
 *     equal 8-byte words
 *     key HEX value HEX                        an entry of the index
 *
 * Threads: one.  Errors: they end the process, with a message.
 */
#ifndef DLBLK_TESTS_GOLDEN_H
#define DLBLK_TESTS_GOLDEN_H

#include "tests/unit/lib/fake_disk.h"
#include "tests/unit/lib/fake_index.h"

struct golden {
    struct fake_env env;
    struct fake_disk disk;
    struct fake_index index;
};

void golden_save(const struct golden *golden, const char *path);
/* Inits all three. */
void golden_load(struct golden *golden, const char *path);
void golden_fini(struct golden *golden);

/*
 * A sector's content: a line of text that names it, then a number that is its own, again and again.
 */
void golden_fill(uint64_t volume, uint32_t segment, uint32_t sector, uint64_t version,
                 void *ret_sector);

#endif
