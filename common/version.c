/* SPDX-License-Identifier: Apache-2.0 */
#include "common/version.h"

#include <stdio.h>

#include "common/version_commit.h"

const char *
dlblk_version_text(const char *program)
{
    static _Thread_local char text[160];

    (void)snprintf(text, sizeof(text),
                   "%s " DLBLK_VERSION " (commit " DLBLK_COMMIT
                   "), wire version %d, disk format version %d",
                   program, DLBLK_WIRE_VERSION, DLBLK_DISK_FORMAT_VERSION);
    return text;
}

const char *
dlblk_version_commit(void)
{
    return DLBLK_COMMIT;
}
