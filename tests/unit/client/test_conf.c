/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration's keys for clients: each reaches the option that it is named after, and what is
 * not set leaves the core its default.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "client/core.h"
#include "common/conf.h"

static void
set(struct conf *conf, const char *section, const char *name, const char *value)
{
    struct dl_error err;

    assert_int_equal(conf_set(conf, section, name, value, name, &err), 0);
}

static void
test_each_key_reaches_its_option(void **state)
{
    struct client_core_options options = {0};
    struct dl_error err;
    struct conf *conf;

    (void)state;
    assert_int_equal(conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count), 0);
    set(conf, "cluster", "meta", "[::1]:7,127.0.0.2");
    set(conf, "client", "connect_timeout", "1s");
    set(conf, "client", "request_timeout", "2s");
    set(conf, "client", "eject_lost", "300ms");
    set(conf, "client", "eject_silent", "4s");
    set(conf, "client", "eject_slow", "never");
    set(conf, "client", "hedge_min", "6ms");
    assert_int_equal(client_core_options_read(&options, conf, &err), 0);
    assert_int_equal(options.meta_count, 2);
    assert_int_equal(options.meta[0].port, 7);
    assert_int_equal(options.meta[1].port, DLBLK_PORT_META);
    assert_int_equal(options.connect_timeout_ms, 1000);
    assert_int_equal(options.request_timeout_ms, 2000);
    assert_int_equal(options.eject_lost_ms, 300);
    assert_int_equal(options.eject_silent_ms, 4000);
    assert_int_equal(options.eject_slow_ms, CLIENT_NEVER);
    assert_int_equal(options.hedge_min_ms, 6);
    conf_destroy(conf);
}

static void
test_defaults_are_the_core_s(void **state)
{
    struct client_core_options options = {0};
    struct dl_error err;
    struct conf *conf;

    (void)state;
    assert_int_equal(conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count), 0);
    assert_int_equal(client_core_options_read(&options, conf, &err), 0);
    assert_int_equal(options.meta_count, 1);
    assert_int_equal(options.request_timeout_ms, 0);
    assert_int_equal(options.eject_lost_ms, 0);
    assert_int_equal(options.eject_silent_ms, 0);
    assert_int_equal(options.eject_slow_ms, 0);
    assert_int_equal(options.hedge_min_ms, 0);
    conf_destroy(conf);
}

/* Less than a server needs to answer a PING would eject healthy ones. */
static void
test_limits_that_make_no_sense(void **state)
{
    static const struct {
        const char *name, *value;
    } cases[] = {
        {"eject_lost", "9ms"},        {"eject_silent", "1999ms"}, {"eject_slow", "999ms"},
        {"hedge_min", "0"},           {"eject_lost", "2d"},       {"eject_silent", "soon"},
        {"connect_timeout", "never"},
    };
    struct dl_error err;
    struct conf *conf;

    (void)state;
    assert_int_equal(conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(conf_set(conf, "client", cases[i].name, cases[i].value, "file", &err),
                         -DL_E_CONFIG_INVALID);
        assert_non_null(strstr(err.text, cases[i].name));
        assert_non_null(strstr(err.text, cases[i].value));
    }
    conf_destroy(conf);
}

UNIT_MAIN(cmocka_unit_test(test_each_key_reaches_its_option),
          cmocka_unit_test(test_defaults_are_the_core_s),
          cmocka_unit_test(test_limits_that_make_no_sense))
