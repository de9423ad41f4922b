/* SPDX-License-Identifier: Apache-2.0 */
/*
 * backup.h: the metadata of a cluster as a file, and a metadata directory from such a file.
 *
 * The file: 8 bytes of magic; then records, each {length: 4 bytes, CRC-32C: 4 bytes, BackupRecord
 * (meta.proto)}: a header, the items by key, an end with their number and a checksum over all
 * records' checksums.  A file that is cut or damaged anywhere is refused before anything is made of
 * it.
 *
 * Restoring: docs/metadata.md says what it changes (lease epochs, counters) and what is lost.
 *
 * Threads: one.  Blocks: all of it.  Errors: 0 or negative, with a text in err.
 */
#ifndef DLBLK_META_BACKUP_H
#define DLBLK_META_BACKUP_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/error.h"

#define BACKUP_FORMAT_VERSION    1u
#define BACKUP_LEASE_EPOCHS_SKIP 1000u /* restored volumes: above every lease since the backup */
#define BACKUP_VOLUME_IDS_SKIP   (1u << 20) /* ids that volumes made since the backup may have */
#define BACKUP_SERVER_IDS_SKIP   1000u

struct backup_report {
    uint64_t items;
    uint64_t volumes, segments, servers;
    uint64_t bytes;
    uint8_t cluster_id[16];
    uint64_t created_ms; /* of the backup */
    uint64_t
        volumes_at_end; /* restored with the highest lease epoch: they can't be attached any more */
};

/*
 * The store of `dir` to a new file (replaced atomically with `replace`).  Also while dlblk-meta
 * serves it.
 */
int backup_write(const char *dir, const char *file, bool replace, struct backup_report *ret_report,
                 struct dl_error *err);
/* The store of `dir`, which must not have one, from a file. */
int backup_restore(const char *dir, const char *file, struct backup_report *ret_report,
                   struct dl_error *err);

#endif
