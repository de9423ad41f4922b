/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutant.h: mistakes on purpose, to see that the tests would notice them.
 *
 *     if (!DLBLK_MUTANT(skip_flush))
 *         flush();
 *
 * False in every build but those of the tests that look for mutants (tests/crash, tests/sim), which
 * set DLBLK_MUTANTS=1; there the environment variable DLBLK_MUTANT names the one that is alive.
 * The names are listed in tests/crash/CMakeLists.txt and in tests/mutate, which runs them all.
 *
 * Threads: any.
 */
#ifndef DLBLK_COMMON_MUTANT_H
#define DLBLK_COMMON_MUTANT_H

#ifndef DLBLK_MUTANTS
#define DLBLK_MUTANTS 0
#endif

#if DLBLK_MUTANTS

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static inline bool
mutant_is_alive(const char *name)
{
    const char *alive = getenv("DLBLK_MUTANT");

    return alive != NULL && strcmp(alive, name) == 0;
}

#define DLBLK_MUTANT(name) mutant_is_alive(#name)

#else

#define DLBLK_MUTANT(name) 0

#endif

#endif
