/* SPDX-License-Identifier: Apache-2.0 */
/*
 * address.h: where a peer listens, as text says it: HOST, HOST:PORT, [V6]:PORT.  No names are
 * resolved here.
 *
 * Threads: any.  Memory: nothing is allocated.
 * Errors:  0 or -DL_E_CONFIG_INVALID with the reason in err.
 */
#ifndef DLBLK_COMMON_ADDRESS_H
#define DLBLK_COMMON_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dlblk/error.h"

/*
 * Where programs listen unless they are told otherwise.  One host can run many chunkservers: from
 * this port upwards.
 */
#define DLBLK_PORT_META        7700
#define DLBLK_PORT_CHUNKSERVER 7710

#define DL_ADDRESS_HOST_BYTES 256 /* a name has at most 253 bytes */

struct dl_address {
    char host
        [DL_ADDRESS_HOST_BYTES]; /* a name, an IPv4 address, or an IPv6 address without brackets */
    uint16_t port;
};

/* default_port stands in where the text has none; 0: the text must have one. */
int dl_address_parse(const char *text, uint16_t default_port, struct dl_address *ret_address,
                     struct dl_error *err);

/*
 * One or more addresses with commas between them, at most count_max; after a failure the array
 * holds anything.
 */
int dl_address_parse_list(const char *text, uint16_t default_port, struct dl_address *ret_addresses,
                          size_t count_max, size_t *ret_count, struct dl_error *err);

struct dl_address_text {
    char text[DL_ADDRESS_HOST_BYTES + sizeof("[]:65535")];
};

/* "host:7700", "[::1]:7700": printf("%s", dl_address_format(&address).text). */
struct dl_address_text dl_address_format(const struct dl_address *address);

bool dl_address_equal(const struct dl_address *a, const struct dl_address *b);

/* 127.0.0.0/8, ::1 or localhost: nobody outside of this machine can connect to it. */
bool dl_address_is_loopback(const struct dl_address *address);

#endif
