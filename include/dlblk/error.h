/* SPDX-License-Identifier: Apache-2.0 */
/*
 * error.h: dlblk's error codes, and errors with text for people.
 *
 * A function that can fail returns 0 or a negative number: -errno of the system, or -DL_E_* of the
 * list below.  Functions of the control path take a struct dl_error as their last argument and say
 * there what failed, on which object, and what to do; the data path returns the number alone.
 *
 * Threads: any.  Errors: none of these functions can fail.  Memory: nothing is allocated.
 */
#ifndef DLBLK_ERROR_H
#define DLBLK_ERROR_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/*
 * number, NAME, errno, text.  The number is on the wire and in logs: never changed, never used
 * again.  The errno is what users of a block device see; of all the errno values an NBD client
 * knows only EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP and ESHUTDOWN, so what reaches
 * a read or a write keeps to these.
 */
#define DL_ERRORS(X)                                                                            \
    /* disks and stored data */                                                                 \
    X(1, MEDIA_READ, EIO, "the drive failed a read")                                            \
    X(2, MEDIA_WRITE, EIO, "the drive failed a write or a flush")                               \
    X(3, CRC_DATA, EIO, "stored data does not match its checksum")                              \
    X(4, NO_SPACE, ENOSPC, "no space left for new data")                                        \
    X(5, INDEX_MISMATCH, EIO, "the index does not belong to this disk or to its journal")       \
    X(6, INDEX_CORRUPT, EIO, "the index cannot be read")                                        \
    X(7, DISK_FOREIGN, EPERM, "the disk belongs to another cluster or holds other data")        \
    X(8, DISK_FORMAT, EINVAL, "the disk has no dlblk format that this version knows")           \
    X(9, DISK_DAMAGED, EIO, "the disk's metadata is damaged")                                   \
    X(10, DISK_BUSY, EBUSY, "the disk is in use by another process")                            \
    X(11, IO_URING, ENOSYS, "io_uring is not available")                                        \
    /* frames and messages */                                                                   \
    X(20, CRC_WIRE, EIO, "a payload was damaged on its way")                                    \
    X(21, CRC_HEADER, EIO, "a frame's header or body does not match its checksum")              \
    X(22, FRAME_MAGIC, EIO, "the peer does not speak dlblk's protocol")                         \
    X(23, FRAME_TOO_LARGE, EIO, "a frame is larger than the protocol allows")                   \
    X(24, OPCODE_UNKNOWN, ENOTSUP, "the peer does not know this request")                       \
    X(25, MESSAGE_MALFORMED, EINVAL, "a message is malformed")                                  \
    X(26, VERSION_UNSUPPORTED, ENOTSUP, "no protocol version in common")                        \
    X(27, CLUSTER_MISMATCH, EPERM, "the peer belongs to another cluster")                       \
    X(28, ROLE_WRONG, EPERM, "the peer is not what this connection is for")                     \
    X(29, CONNECTION_LOST, EIO, "the connection was lost")                                      \
    X(30, TIMEOUT, EIO, "no answer in time")                                                    \
    /* epochs, chunks and volumes */                                                            \
    X(40, EPOCH_OLD, EIO, "the request carries an older config epoch")                          \
    X(41, LEASE_OLD, ESHUTDOWN, "the volume has a newer owner")                                 \
    X(42, CHUNK_UNKNOWN, EIO, "the server has no such chunk")                                   \
    X(43, CHUNK_DELETED, EIO, "the chunk was deleted")                                          \
    X(44, NOT_YET, EIO, "the slot has not begun this recovery attempt yet")                     \
    X(45, NOT_IN_SYNC, EIO, "the slot is recovering and cannot be read")                        \
    X(46, RANGE, EINVAL, "the range is outside of the object")                                  \
    X(47, ALIGNMENT, EINVAL, "offset or length is not a multiple of the block size")            \
    X(48, STALE_MAP, EIO, "the segment map is out of date")                                     \
    X(49, SEGMENT_UNSETTLED, EIO,                                                               \
      "a failed write left this range undecided until it is rewritten")                         \
    X(50, FENCE_PENDING, EIO, "the previous owner could not be shut out yet")                   \
    X(51, READ_ONLY, EPERM, "the volume is attached read-only")                                 \
    X(52, VOLUME_UNKNOWN, ENOENT, "no such volume")                                             \
    X(53, VOLUME_EXISTS, EEXIST, "a volume of this name exists")                                \
    X(54, VOLUME_BUSY, EBUSY, "the volume is attached")                                         \
    X(55, VOLUME_DELETED, ENOENT, "the volume was deleted")                                     \
    X(56, NAME_INVALID, EINVAL, "not a valid name")                                             \
    X(57, SIZE_INVALID, EINVAL, "not a valid size")                                             \
    /* servers and the cluster */                                                               \
    X(70, TOO_FEW_DOMAINS, ENOSPC, "too few failure domains with space")                        \
    X(71, SERVER_UNKNOWN, ENOENT, "no such server")                                             \
    X(72, SERVER_DUPLICATE, EEXIST, "a server with the same disk is registered: a copied disk") \
    X(73, SERVER_DOWN, EIO, "the server is down")                                               \
    X(74, META_UNREACHABLE, EIO, "the metadata service cannot be reached")                      \
    X(75, LIMIT, ENOSPC, "a limit of the cluster is reached")                                   \
    X(76, BUSY, EBUSY, "too much to do at the moment")                                          \
    X(77, SHUTTING_DOWN, ESHUTDOWN, "the server is shutting down")                              \
    X(78, SERVER_WENT_BACK, EIO, "the disk is an older copy of itself")                         \
    X(79, STORE_CONFLICT, EIO, "another metadata service has taken over")                       \
    X(80, STORE_FORMAT, EINVAL, "the metadata store has no format that this version knows")     \
    X(81, STORE_DAMAGED, EIO, "the metadata store is damaged")                                  \
    /* programs */                                                                              \
    X(90, CONFIG_INVALID, EINVAL, "the configuration is not valid")                             \
    X(91, USAGE, EINVAL, "wrong command line")                                                  \
    X(92, NOT_FOUND, ENOENT, "not found")                                                       \
    X(93, CANCELLED, EIO, "cancelled")                                                          \
    X(94, NO_MEMORY, ENOMEM, "out of memory")                                                   \
    X(95, INTERNAL, EIO, "internal error")                                                      \
    X(96, HOST_UNKNOWN, EIO, "no address is known for this host name")

#define DL_E_FIRST 4096 /* above every errno of the system */

enum dl_error_code {
#define X(number, name, errno_class, text) DL_E_##name = DL_E_FIRST + (number),
    DL_ERRORS(X)
#undef X
};

/*
 * The text of the list, or the system's for an errno; err may be negative or positive.  Valid until
 * the thread's next call.
 */
const char *dl_err_str(int err);

/* "DL_E_NO_SPACE", "ENOSPC"; for logs.  As above. */
const char *dl_err_name(int err);

/*
 * The positive errno that stands for err (negative or positive); 0 for 0; EIO for a code of a newer
 * version.
 */
int dl_err_class(int err);

/*
 * The status field of a frame.  err is 0 or negative; an errno of the system travels as the code
 * nearest to it.  From the wire: 0 or negative; a number that only a newer version knows stays a
 * distinct negative number.
 */
uint16_t dl_err_to_wire(int err);
int dl_err_from_wire(uint16_t status);

#define DL_ERROR_TEXT_BYTES 384
#define DL_ERROR_HINT_BYTES 256

/*
 * For people: what failed and why, on which object; and what to do next.  Both without newline, the
 * hint may be empty.
 */
struct dl_error {
    int code; /* negative, as returned */
    char text[DL_ERROR_TEXT_BYTES];
    char hint[DL_ERROR_HINT_BYTES];
};

#define DL_ERROR_PRINTF(format_idx, first_idx) \
    __attribute__((format(printf, format_idx, first_idx)))

/*
 * Set code and text and drop the hint.  err may be NULL.  Returns code, so that a failure is one
 * statement:
 *
 *     return dl_error_set(err, -DL_E_VOLUME_UNKNOWN, "volume %s does not exist", name);
 */
int dl_error_set(struct dl_error *err, int code, const char *format, ...) DL_ERROR_PRINTF(3, 4);

/*
 * Say what to do about it: "start it with dlblk-meta serve".  Follows dl_error_set().  err may be
 * NULL.
 */
void dl_error_hint(struct dl_error *err, const char *format, ...) DL_ERROR_PRINTF(2, 3);

/* Put a context in front of the text: dl_error_prefix(err, "%s: ", path).  err may be NULL. */
void dl_error_prefix(struct dl_error *err, const char *format, ...) DL_ERROR_PRINTF(2, 3);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
