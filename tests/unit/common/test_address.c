/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses: what is accepted comes back as it was written, what is refused says why. */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/address.h"

static void
test_accepted_forms(void **state)
{
    static const struct {
        const char *text, *host;
        uint16_t default_port, port;
        const char *formatted;
    } cases[] = {
        {"localhost:7700", "localhost", 0, 7700, "localhost:7700"},
        {"10.0.0.1", "10.0.0.1", 7700, 7700, "10.0.0.1:7700"},
        {"node-3.rack_1.example:1", "node-3.rack_1.example", 9, 1, "node-3.rack_1.example:1"},
        {"[::1]:65535", "::1", 0, 65535, "[::1]:65535"},
        {"[fe80::1%eth0]", "fe80::1%eth0", 7, 7, "[fe80::1%eth0]:7"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dl_address address;

        assert_int_equal(dl_address_parse(cases[i].text, cases[i].default_port, &address, NULL), 0);
        assert_string_equal(address.host, cases[i].host);
        assert_int_equal(address.port, cases[i].port);
        assert_string_equal(dl_address_format(&address).text, cases[i].formatted);
    }
}

static void
test_refused_forms(void **state)
{
    static const struct {
        const char *text, *reason;
    } cases[] = {
        {"", "the host is missing"},
        {":7700", "the host is missing"},
        {"[]:7700", "the host is missing"},
        {"host", "the port is missing"},
        {"host:", "the port is not a number"},
        {"host:0", "the port is not a number"},
        {"host:65536", "the port is not a number"},
        {"host:00000000080", "the port is not a number"},
        {"host:80x", "the port is not a number"},
        {"host:-1", "the port is not a number"},
        {"::1", "more than one colon"},
        {"[::1", "brackets"},
        {"[::1]7700", "brackets"},
        {"[10.0.0.1]:80", "not an IPv6 address"},
        {"[::1::2]:80", "not an IPv6 address"},
        {"-host:80", "characters"},
        {"ho st:80", "characters"},
        {"host/..:80", "characters"},
        {"h\303\266st:80", "characters"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dl_address address = {.host = "untouched", .port = 3};
        struct dl_error err;

        assert_int_equal(dl_address_parse(cases[i].text, 0, &address, &err), -DL_E_CONFIG_INVALID);
        assert_non_null(strstr(err.text, cases[i].reason));
        assert_non_null(strstr(err.hint, "HOST:PORT"));
        assert_string_equal(address.host, "untouched");
        assert_int_equal(address.port, 3);
    }
}

static void
test_host_of_any_length(void **state)
{
    char text[600];
    struct dl_address address;

    (void)state;
    for (size_t length_bytes = 1; length_bytes < sizeof(text); length_bytes++) {
        int expected = length_bytes < DL_ADDRESS_HOST_BYTES ? 0 : -DL_E_CONFIG_INVALID;

        memset(text, 'h', length_bytes);
        text[length_bytes] = '\0';
        assert_int_equal(dl_address_parse(text, 1, &address, NULL), expected);
    }
}

static void
test_list(void **state)
{
    struct dl_address addresses[3];
    struct dl_error err;
    size_t count = 77;

    (void)state;
    assert_int_equal(dl_address_parse_list("a,b:2,[::1]:3", 1, addresses, 3, &count, NULL), 0);
    assert_int_equal(count, 3);
    assert_string_equal(dl_address_format(&addresses[0]).text, "a:1");
    assert_string_equal(dl_address_format(&addresses[1]).text, "b:2");
    assert_string_equal(dl_address_format(&addresses[2]).text, "[::1]:3");

    count = 77;
    assert_int_equal(dl_address_parse_list("a,b,c,d", 1, addresses, 3, &count, &err),
                     -DL_E_CONFIG_INVALID);
    assert_non_null(strstr(err.text, "more than 3"));
    assert_int_equal(dl_address_parse_list("a,,c", 1, addresses, 3, &count, &err),
                     -DL_E_CONFIG_INVALID);
    assert_int_equal(dl_address_parse_list("a,", 1, addresses, 3, &count, &err),
                     -DL_E_CONFIG_INVALID);
    assert_int_equal(dl_address_parse_list("", 1, addresses, 3, &count, &err),
                     -DL_E_CONFIG_INVALID);
    assert_int_equal(count, 77);
}

static void
test_equal_and_loopback(void **state)
{
    static const struct {
        const char *text;
        bool loopback;
    } cases[] = {
        {"127.0.0.1:1", true},   {"127.9.9.9:1", true},    {"localhost:1", true},
        {"[::1]:1", true},       {"0.0.0.0:1", false},     {"[::]:1", false},
        {"10.0.0.127:1", false}, {"127.example:1", false},
    };
    struct dl_address a, b;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(dl_address_parse(cases[i].text, 0, &a, NULL), 0);
        assert_int_equal(dl_address_is_loopback(&a), cases[i].loopback);
    }
    assert_int_equal(dl_address_parse("Host:5", 0, &a, NULL), 0);
    assert_int_equal(dl_address_parse("hoST", 5, &b, NULL), 0);
    assert_true(dl_address_equal(&a, &b));
    b.port = 6;
    assert_false(dl_address_equal(&a, &b));
}

UNIT_MAIN(cmocka_unit_test(test_accepted_forms), cmocka_unit_test(test_refused_forms),
          cmocka_unit_test(test_host_of_any_length), cmocka_unit_test(test_list),
          cmocka_unit_test(test_equal_and_loopback))
