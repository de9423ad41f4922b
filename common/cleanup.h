/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cleanup.h: locals that clean up after themselves when their scope ends; for control paths and
 * programs.
 *
 *     DL_CLEANUP(free) char *path = NULL;
 *     DL_CLEANUP(close) int fd = -1;
 *
 * Each needs a value when it is declared.  Pass ownership on with DL_STEAL(pointer).
 * For a type of your own: DL_CLEANUP_DEFINE(struct conf *, conf_destroy).
 */
#ifndef DLBLK_COMMON_CLEANUP_H
#define DLBLK_COMMON_CLEANUP_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DL_CLEANUP(function) __attribute__((cleanup(dl_cleanup_##function)))

#define DL_CLEANUP_DEFINE(type, function)                   \
    static inline void dl_cleanup_##function(type *pointer) \
    {                                                       \
        if (*pointer != NULL)                               \
            function(*pointer);                             \
    }                                                       \
    struct dl_cleanup_##function##_wants_a_semicolon

/* The value of `pointer`, which is NULL afterwards. */
#define DL_STEAL(pointer)                          \
    ({                                             \
        __typeof__(pointer) dl_stolen = (pointer); \
        (pointer) = NULL;                          \
        dl_stolen;                                 \
    })

static inline void
dl_cleanup_free(void *variable)
{
    void *memory;

    /* The variable is a pointer of any type: its bytes are taken, not its type. */
    memcpy(&memory, variable, sizeof(memory));
    free(memory);
}

static inline void
dl_cleanup_close(const int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

/* For files that were read, or whose fclose() was not reached because of an earlier error. */
static inline void
dl_cleanup_fclose(FILE *const *file)
{
    if (*file != NULL)
        (void)fclose(*file);
}

#endif
