/* SPDX-License-Identifier: Apache-2.0 */
#include "common/assert.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/trace.h"

_Thread_local char dl_thread_token_byte;

void
dl_assert_failed(const char *file, int line, const char *function, const char *expression)
{
    (void)fprintf(stderr, "%s:%d: %s: assertion failed: %s\n", file, line, function, expression);
    dl_trace_dump_once(STDERR_FILENO);
    abort();
}
