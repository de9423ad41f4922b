/* SPDX-License-Identifier: Apache-2.0 */
#include <locale.h>
#include <signal.h>

#include "cli/cli.h"

int
main(int argc, char **argv)
{
    (void)setlocale(LC_TIME, "");
    /* A reader that goes away (dlblk ... | head) is seen at the next write. */
    (void)signal(SIGPIPE, SIG_IGN);
    return cli_main(argc, argv, stdout, stderr);
}
