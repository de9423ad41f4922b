/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qexit CODE: ends a QEMU guest that has "-device isa-debug-exit,iobase=0xf4,iosize=0x04"; QEMU's
 * own exit status becomes (CODE << 1) | 1.  No libraries.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
    unsigned long code = argc > 1 ? strtoul(argv[1], NULL, 10) : 16;

    sync();
    if (ioperm(0xf4, 4, 1) != 0) {
        perror("ioperm");
        return 1;
    }
    outl((unsigned)code, 0xf4);
    return 1; /* reached only where the device is missing */
}
