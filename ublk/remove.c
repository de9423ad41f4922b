/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/remove.h"

#include <errno.h>
#include <time.h>

#include "common/clock.h"
#include "ublk/device.h"

#define GONE_NS NS_PER_S
#define POLL_NS 5000000

/* Who was told to let it go does so a moment later. */
static bool
remove_is_gone(struct ublk_control *control, uint32_t id)
{
    uint64_t end_ns = clock_monotonic_ns() + GONE_NS;
    struct timespec pause = {.tv_nsec = POLL_NS};
    struct ublk_device_info info;

    while (ublk_control_info(control, id, &info, NULL) != -ENODEV) {
        if (clock_monotonic_ns() >= end_ns)
            return false;
        (void)nanosleep(&pause, NULL);
    }
    return true;
}

static int
remove_explain_busy(uint32_t id, const struct dl_error *user, struct dl_error *err)
{
    (void)dl_error_set(err, -EBUSY, "%s: the kernel keeps its number until the last user is gone",
                       user->code != 0 ? user->text : device_node(id).text);
    dl_error_hint(err, "%s", user->hint);
    return -EBUSY;
}

int
ublk_remove(struct ublk_control *control, uint32_t id, struct dl_error *err)
{
    struct dl_error user = {0};
    int result = ublk_control_delete_async(control, id, err);

    if (result == 0 && !remove_is_gone(control, id)) {
        (void)device_check_released(id, &user);
        return remove_explain_busy(id, &user, err);
    }
    if (result != -EOPNOTSUPP)
        return result == -ENODEV || result == -EINVAL ? 0 : result;
    /* It would wait for them, in 6.1 unkillably and with a lock that each command wants. */
    if (device_check_released(id, &user) != 0)
        return remove_explain_busy(id, &user, err);
    result = ublk_control_delete(control, id, err);
    return result == -ENODEV || result == -EINVAL ? 0 : result;
}
