/* SPDX-License-Identifier: Apache-2.0 */
/*
 * abi.h: what the kernel's ublk driver and a server say to each other, as far as dlblk uses it.
 *
 * Distributions' <linux/ublk_cmd.h> are as old as their kernels, so the layout stands here; the
 * assertions below hold it.  All is in the machine's byte order.
 *
 * Two ways of naming a command: the number alone (6.1), or encoded as for ioctl() (from 6.4 on, and
 * the only one that a kernel without CONFIG_BLKDEV_UBLK_LEGACY_OPCODES takes).
 * ublk_control_probe() finds out.
 */
#ifndef DLBLK_UBLK_ABI_H
#define DLBLK_UBLK_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* --- commands on /dev/ublk-control --- */

enum ublk_command {
    UBLK_GET_DEV_INFO = 0x02,
    UBLK_ADD_DEV = 0x04,
    UBLK_DEL_DEV = 0x05,
    UBLK_START_DEV = 0x06,
    UBLK_STOP_DEV = 0x07,
    UBLK_SET_PARAMS = 0x08,
    UBLK_START_USER_RECOVERY = 0x10,
    UBLK_END_USER_RECOVERY = 0x11,
    UBLK_GET_FEATURES = 0x13,  /* encoded only */
    UBLK_DEL_DEV_ASYNC = 0x14, /* encoded only; Linux 6.12 has it */
};

struct ublk_ctrl_cmd {
    uint32_t dev_id;
    uint16_t queue_id; /* 0xffff where no queue is meant */
    uint16_t len;      /* of what addr points to */
    uint64_t addr;
    uint64_t data;
    uint16_t dev_path_len;
    uint16_t pad;
    uint32_t reserved;
};
static_assert(sizeof(struct ublk_ctrl_cmd) == 32, "part of the encoded commands");
static_assert(offsetof(struct ublk_ctrl_cmd, data) == 16, "ABI");

/* --- devices --- */

#define UBLK_F_COMP_IN_TASK          (1ull << 1)
#define UBLK_F_NEED_GET_DATA         (1ull << 2)
#define UBLK_F_USER_RECOVERY         (1ull << 3)
#define UBLK_F_USER_RECOVERY_REISSUE (1ull << 4)
#define UBLK_F_UNPRIVILEGED          (1ull << 5)
#define UBLK_F_CMD_IOCTL_ENCODE      (1ull << 6)
#define UBLK_F_USER_COPY             (1ull << 7)

enum ublk_device_state {
    UBLK_STATE_DEAD = 0,
    UBLK_STATE_LIVE = 1,
    UBLK_STATE_QUIESCED = 2, /* its server died: requests wait for another one */
};

struct ublk_device_info {
    uint16_t queue_count;
    uint16_t queue_depth;
    uint16_t state; /* enum ublk_device_state */
    uint16_t pad0;
    uint32_t buffer_bytes_max;
    uint32_t dev_id;
    int32_t server_pid;
    uint32_t pad1;
    uint64_t flags;
    uint64_t server_flags; /* ours: the driver keeps them and doesn't look */
    uint32_t owner_uid;
    uint32_t owner_gid;
    uint64_t reserved1;
    uint64_t reserved2;
};
static_assert(sizeof(struct ublk_device_info) == 64, "ABI");
static_assert(offsetof(struct ublk_device_info, flags) == 24, "ABI");

#define UBLK_QUEUE_DEPTH_MAX 4096u
/* In server_flags: a device of dlblk's, and in the lower bits the process that added it. */
#define UBLK_SERVER_IS_DLBLK 0x646c626c6b000000ull
#define UBLK_SERVER_PID_MASK 0x0000000000ffffffull

/* --- what the block device is like --- */

#define UBLK_PARAM_BASIC   (1u << 0)
#define UBLK_PARAM_DISCARD (1u << 1)

#define UBLK_ATTR_READ_ONLY      (1u << 0)
#define UBLK_ATTR_VOLATILE_CACHE (1u << 2)
#define UBLK_ATTR_FUA            (1u << 3)

struct ublk_params {
    uint32_t len;
    uint32_t types;
    struct {
        uint32_t attrs;
        uint8_t logical_shift;
        uint8_t physical_shift;
        uint8_t io_optimal_shift;
        uint8_t io_minimal_shift;
        uint32_t max_sectors;
        uint32_t chunk_sectors;
        uint64_t device_sectors;
        uint64_t virtual_boundary;
    } basic;
    struct {
        uint32_t alignment;
        uint32_t granularity;
        uint32_t max_sectors;
        uint32_t max_write_zeroes_sectors;
        uint16_t max_segments;
        uint16_t reserved;
    } discard;
    uint32_t tail; /* to a multiple of eight */
};
static_assert(offsetof(struct ublk_params, basic) == 8, "ABI");
static_assert(offsetof(struct ublk_params, discard) == 40, "ABI");
static_assert(sizeof(((struct ublk_params *)0)->discard) == 20, "ABI");

/* --- a queue --- */

enum ublk_io_command {
    UBLK_FETCH = 0x20,
    UBLK_COMMIT_AND_FETCH = 0x21,
};

struct ublk_io_cmd {
    uint16_t queue_id;
    uint16_t tag;
    int32_t result; /* COMMIT_AND_FETCH: bytes, or a negative errno */
    uint64_t addr;  /* the tag's buffer */
};
static_assert(sizeof(struct ublk_io_cmd) == 16,
              "it fits into a submission queue entry of 64 bytes");

#define UBLK_OP_READ         0u
#define UBLK_OP_WRITE        1u
#define UBLK_OP_FLUSH        2u
#define UBLK_OP_DISCARD      3u
#define UBLK_OP_WRITE_ZEROES 5u

#define UBLK_IO_F_FUA (1u << 13)

/* What the kernel writes and a server reads, one for each tag, mapped from /dev/ublkcN. */
struct ublk_io_desc {
    uint32_t op_flags; /* the operation in bits 0 to 7 */
    uint32_t sector_count;
    uint64_t start_sector; /* of 512 bytes, always */
    uint64_t addr;
};
static_assert(sizeof(struct ublk_io_desc) == 24, "ABI");

/* From queue to queue, whatever the depth. */
#define UBLK_DESC_STRIDE_BYTES (UBLK_QUEUE_DEPTH_MAX * sizeof(struct ublk_io_desc))

/* --- the encoding --- */

static inline uint32_t
ublk_encode_control(enum ublk_command command)
{
    switch (command) {
    case UBLK_GET_DEV_INFO:
    case UBLK_GET_FEATURES:
    case UBLK_DEL_DEV_ASYNC:
        return _IOR('u', command, struct ublk_ctrl_cmd);
    default:
        return _IOWR('u', command, struct ublk_ctrl_cmd);
    }
}

static inline uint32_t
ublk_encode_io(enum ublk_io_command command)
{
    return _IOWR('u', command, struct ublk_io_cmd);
}

#endif
