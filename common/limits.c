/* SPDX-License-Identifier: Apache-2.0 */
#include "common/limits.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "dlblk/error.h"

#define CAP_IPC_LOCK_BIT 14u

/* Raise the soft limit to the hard one.  What can't be raised is found out by who compares. */
static int
limit_raise(int resource, struct rlimit *ret_limit)
{
    struct rlimit limit = {0};

    if (getrlimit((__rlimit_resource_t)resource, &limit) < 0)
        return -errno;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};

        if (setrlimit((__rlimit_resource_t)resource, &raised) == 0)
            limit = raised;
    }
    *ret_limit = limit;
    return 0;
}

int
limits_raise_nofile(uint64_t needed, struct dl_error *err)
{
    struct rlimit limit = {0};
    int result = limit_raise(RLIMIT_NOFILE, &limit);

    if (result < 0)
        return dl_error_set(err, result, "RLIMIT_NOFILE: %s", strerror(-result));
    if (limit.rlim_cur >= needed)
        return 0;
    dl_error_set(err, -DL_E_LIMIT, "%llu open files are allowed, %llu are needed",
                 (unsigned long long)limit.rlim_cur, (unsigned long long)needed);
    dl_error_hint(err, "raise the limit: LimitNOFILE= in the systemd unit, or ulimit -Hn");
    return -DL_E_LIMIT;
}

/* Whoever has CAP_IPC_LOCK is not bound by RLIMIT_MEMLOCK. */
static bool
memlock_binds_us(void)
{
    FILE *file = fopen("/proc/self/status", "re");
    unsigned long long effective = 0;
    char line[256];

    if (file == NULL)
        return true;
    while (fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "CapEff: %llx", &effective) == 1)
            break;
    (void)fclose(file);
    return (effective >> CAP_IPC_LOCK_BIT & 1) == 0;
}

int
limits_check_memlock(uint64_t needed_bytes, struct dl_error *err)
{
    struct rlimit limit = {0};
    int result;

    if (!memlock_binds_us())
        return 0;
    result = limit_raise(RLIMIT_MEMLOCK, &limit);
    if (result < 0)
        return dl_error_set(err, result, "RLIMIT_MEMLOCK: %s", strerror(-result));
    if (limit.rlim_cur >= needed_bytes)
        return 0;
    dl_error_set(err, -DL_E_LIMIT, "%llu KiB may be locked in memory, %llu KiB are needed",
                 (unsigned long long)limit.rlim_cur / 1024,
                 (unsigned long long)(needed_bytes + 1023) / 1024);
    dl_error_hint(err, "raise the limit: LimitMEMLOCK= in the systemd unit, or ulimit -l");
    return -DL_E_LIMIT;
}
