/* SPDX-License-Identifier: Apache-2.0 */
#include "common/address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/text.h"

static bool
host_is_v6(const char *host)
{
    return strchr(host, ':') != NULL;
}

/* A zone (fe80::1%eth0) is the system's to check, when it connects. */
static bool
host_v6_is_valid(const char *host)
{
    char address[INET6_ADDRSTRLEN];
    struct in6_addr parsed;
    size_t length_bytes = strcspn(host, "%");

    if (length_bytes >= sizeof(address))
        return false;
    memcpy(address, host, length_bytes);
    address[length_bytes] = '\0';
    return inet_pton(AF_INET6, address, &parsed) == 1;
}

static bool
host_name_is_valid(const char *host)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789.-_";

    return host[0] != '-' && host[0] != '.' && host[strspn(host, allowed)] == '\0';
}

static int
address_refuse(const char *text, const char *reason, struct dl_error *err)
{
    int code = dl_error_set(err, -DL_E_CONFIG_INVALID, "address %s: %s", text_quote(text).text,
                            reason);

    dl_error_hint(err, "write HOST:PORT, or [ADDRESS]:PORT for IPv6");
    return code;
}

static int
address_parse_port(const char *text, const char *digits, uint16_t *ret_port, struct dl_error *err)
{
    uint32_t port = 0;

    if (digits[0] == '\0' || strlen(digits) > 5 || digits[strspn(digits, "0123456789")] != '\0')
        return address_refuse(text, "the port is not a number from 1 to 65535", err);
    for (; *digits != '\0'; digits++)
        port = port * 10 + (uint32_t)(*digits - '0');
    if (port == 0 || port > UINT16_MAX)
        return address_refuse(text, "the port is not a number from 1 to 65535", err);
    *ret_port = (uint16_t)port;
    return 0;
}

/*
 * Where the host begins and how long it is; *ret_rest is what follows: empty, or a colon and the
 * port.
 * NULL: there is no host that could be told from a port.
 */
static const char *
address_split(const char *text, size_t *ret_host_bytes, const char **ret_rest)
{
    if (text[0] == '[') {
        const char *end = strchr(text, ']');

        if (end == NULL || (end[1] != '\0' && end[1] != ':'))
            return NULL;
        *ret_host_bytes = (size_t)(end - text) - 1;
        *ret_rest = end + 1;
        return text + 1;
    }
    *ret_host_bytes = strcspn(text, ":");
    *ret_rest = text + *ret_host_bytes;
    return text;
}

int
dl_address_parse(const char *text, uint16_t default_port, struct dl_address *ret_address,
                 struct dl_error *err)
{
    struct dl_address address = {.port = default_port};
    const char *host, *rest;
    size_t host_bytes;
    int result;

    host = address_split(text, &host_bytes, &rest);
    if (host == NULL)
        return address_refuse(text, "the brackets of an IPv6 address are not closed", err);
    if (rest[0] == ':' && strchr(rest + 1, ':') != NULL)
        return address_refuse(text, "more than one colon without brackets", err);
    if (host_bytes == 0)
        return address_refuse(text, "the host is missing", err);
    if (host_bytes >= sizeof(address.host))
        return address_refuse(text, "the host is too long", err);
    memcpy(address.host, host, host_bytes);
    address.host[host_bytes] = '\0';

    if (text[0] == '[' && !host_v6_is_valid(address.host))
        return address_refuse(text, "not an IPv6 address between the brackets", err);
    if (text[0] != '[' && !host_name_is_valid(address.host))
        return address_refuse(text, "the host has characters that no host name has", err);
    if (rest[0] == ':') {
        result = address_parse_port(text, rest + 1, &address.port, err);
        if (result < 0)
            return result;
    }
    if (address.port == 0)
        return address_refuse(text, "the port is missing", err);
    *ret_address = address;
    return 0;
}

int
dl_address_parse_list(const char *text, uint16_t default_port, struct dl_address *ret_addresses,
                      size_t count_max, size_t *ret_count, struct dl_error *err)
{
    size_t count = 0;

    for (const char *item = text;;) {
        char one[DL_ADDRESS_HOST_BYTES + sizeof("[]:65535")];
        size_t item_bytes = strcspn(item, ",");
        int result;

        if (item_bytes >= sizeof(one))
            return address_refuse(text, "one of the addresses is too long", err);
        if (count == count_max)
            return dl_error_set(err, -DL_E_CONFIG_INVALID,
                                "address list %s: more than %zu addresses", text_quote(text).text,
                                count_max);
        memcpy(one, item, item_bytes);
        one[item_bytes] = '\0';
        result = dl_address_parse(one, default_port, &ret_addresses[count], err);
        if (result < 0)
            return result;
        count++;
        if (item[item_bytes] == '\0')
            break;
        item += item_bytes + 1;
    }
    *ret_count = count;
    return 0;
}

struct dl_address_text
dl_address_format(const struct dl_address *address)
{
    struct dl_address_text result;

    (void)snprintf(result.text, sizeof(result.text),
                   host_is_v6(address->host) ? "[%s]:%u" : "%s:%u", address->host, address->port);
    return result;
}

bool
dl_address_equal(const struct dl_address *a, const struct dl_address *b)
{
    return a->port == b->port && strcasecmp(a->host, b->host) == 0;
}

bool
dl_address_is_loopback(const struct dl_address *address)
{
    struct in6_addr v6;
    struct in_addr v4;

    if (strcasecmp(address->host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, address->host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, address->host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}
