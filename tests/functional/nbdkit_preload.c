/* SPDX-License-Identifier: Apache-2.0
 * Loaded into nbdkit after the address sanitizer's runtime, which starts with the first malloc.
 * That one comes from libp11-kit's constructor, inside of newlocale(3), which holds the C library's
 * lock of locales.  The runtime looks for this symbol, and asks for the error's text when it is not
 * there; the text's translation takes the same lock to read, which fails as the thread has it to
 * write, and gives it back all the same (glibc 2.36).  From then on the lock counts a reader too
 * few: after a strerror(3), nbdkit waits for that reader in exit(3), for ever. */
char *swift_demangle(void);

/* Found, never called. */
char *
swift_demangle(void)
{
    return 0;
}
