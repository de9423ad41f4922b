/* SPDX-License-Identifier: Apache-2.0 */
/*
 * version.h: what --version says.
 *
 * Threads: any.  Errors: none.  Memory: the text is the calling thread's until its next call.
 */
#ifndef DLBLK_COMMON_VERSION_H
#define DLBLK_COMMON_VERSION_H

/*
 * The versions that this build speaks and writes.  proto/ and chunkserver/engine/format.h hold the
 * formats, and assert that their newest version is the one named here.
 */
#define DLBLK_WIRE_VERSION        1
#define DLBLK_DISK_FORMAT_VERSION 1

/*
 * "dlblk-meta 0.1.0 (commit 0123456789ab), wire version 1, disk format version 1", without newline.
 */
const char *dlblk_version_text(const char *program);

/* The commit alone: goes into HELLO, benchmark results and logs. */
const char *dlblk_version_commit(void);

#endif
