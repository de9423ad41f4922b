/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_tool.h: the commands of dlblk-disk, each in a file of its own.
 *
 * Threads: one.  Blocks: everything.
 * Errors:  0 or negative, with text in `err`; the exit status is disk_tool_exit_status()'s.
 */
#ifndef DLBLK_CHUNKSERVER_DISK_TOOL_H
#define DLBLK_CHUNKSERVER_DISK_TOOL_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/engine/superblock.h"
#include "dlblk/error.h"

#define UUID_TEXT_BYTES 37u

struct disk_tool_options {
    const char *path;
    char index_path[4096];   /* PATH.index, or --index */
    const char *meta;        /* HOST:PORT, or NULL */
    const char *cluster_id;  /* UUID text, or NULL */
    uint64_t size_bytes;     /* of a new file; 0: not given */
    uint64_t journal_bytes;  /* 0: by the size of the disk */
    uint64_t metadata_bytes; /* likewise */
    bool force;
    bool json;
    bool quiet;
};

int disk_tool_format(const struct disk_tool_options *options, struct dl_error *err);
/*
 * Prints to stdout.  A damaged disk is described as far as it can be; *ret_damaged says that it is.
 */
int disk_tool_inspect(const struct disk_tool_options *options, bool *ret_damaged,
                      struct dl_error *err);
int disk_tool_check(const struct disk_tool_options *options, bool *ret_damaged,
                    struct dl_error *err);

/* xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx */
void uuid_to_text(const uint8_t uuid[SUPERBLOCK_UUID_BYTES], char ret_text[UUID_TEXT_BYTES]);
/* -DL_E_USAGE if it is none. */
int uuid_from_text(const char *what, const char *text, uint8_t ret_uuid[SUPERBLOCK_UUID_BYTES],
                   struct dl_error *err);
int uuid_random(uint8_t ret_uuid[SUPERBLOCK_UUID_BYTES], struct dl_error *err);

#endif
