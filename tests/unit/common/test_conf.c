/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings: each kind of value, who wins, and that every mistake in a file is told with its line.
 */
#include "tests/unit/lib/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/conf.h"
#include "common/log.h"

static const struct conf_key keys[] = {
    {"one", "text", CONF_TEXT, .fallback = "plain"},
    {"one", "name", CONF_NAME, .fallback = NULL},
    {"one", "number", CONF_NUMBER, .min = 1, .max = 9, .fallback = "3"},
    {"one", "size", CONF_SIZE, .min = 4096, .max = 1 << 30, .fallback = "1M"},
    {"two", "duration", CONF_DURATION, .min = 1, .max = 60000, .fallback = "10s"},
    {"two", "limit", CONF_LIMIT, .min = 10, .max = 60000, .fallback = NULL},
    {"two", "flag", CONF_BOOL, .fallback = "no"},
    {"two", "level", CONF_LEVEL, .fallback = "info"},
    {"two", "listen", CONF_ADDRESS, .default_port = 7700, .fallback = "127.0.0.1"},
    {"two", "peers", CONF_ADDRESSES, .default_port = 7700, .fallback = NULL},
};

static char path[] = "/tmp/dlblk-test-conf-XXXXXX";
static struct conf *conf;

static int
setup(void **state)
{
    int fd;

    (void)state;
    (void)memcpy(strrchr(path, '-') + 1, "XXXXXX", 6);
    fd = mkstemp(path);
    if (fd < 0 || close(fd) != 0)
        return -1;
    return conf_create(&conf, keys, sizeof(keys) / sizeof(keys[0]));
}

static int
teardown(void **state)
{
    (void)state;
    conf_destroy(conf);
    return unlink(path);
}

static int
read_text(const char *text, struct dl_error *err)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    return conf_read_file(conf, path, err);
}

static void
test_fallbacks(void **state)
{
    (void)state;
    assert_string_equal(conf_text(conf, "one", "text"), "plain");
    assert_null(conf_text(conf, "one", "name"));
    assert_int_equal(conf_number(conf, "one", "size"), 1 << 20);
    assert_int_equal(conf_number(conf, "two", "duration"), 10000);
    assert_int_equal(conf_number(conf, "two", "flag"), 0);
    assert_int_equal(conf_number(conf, "two", "level"), LOG_LEVEL_INFO);
    assert_false(conf_is_set(conf, "one", "text"));
}

static void
test_file(void **state)
{
    (void)state;
    assert_int_equal(read_text("# comment\n"
                               "; another\n"
                               "\n"
                               "[one]\n"
                               "text = with = sign, and spaces   ; remark\n"
                               "  number=7\n" /* indented: no continuation of the line above */
                               "\t[two]\n"
                               "flag = Yes\n"
                               "level = debug\n"
                               "peers = a:1, b\n",
                               NULL),
                     -DL_E_CONFIG_INVALID); /* a space in an address */
    assert_int_equal(read_text("# comment\n"
                               "; another\n"
                               "\n"
                               "[one]\n"
                               "text = with = sign, and spaces   ; remark\n"
                               "  number=7\n"
                               "\t[two]\n"
                               "flag = Yes\n"
                               "level = debug\n"
                               "peers = a:1,b\n"
                               "[one]\n"
                               "size = 64KiB", /* no newline at the end */
                               NULL),
                     0);
    assert_string_equal(conf_text(conf, "one", "text"), "with = sign, and spaces");
    assert_int_equal(conf_number(conf, "one", "number"), 7);
    assert_int_equal(conf_number(conf, "two", "flag"), 1);
    assert_int_equal(conf_number(conf, "two", "level"), LOG_LEVEL_DEBUG);
    assert_string_equal(conf_text(conf, "two", "peers"), "a:1,b");
    assert_int_equal(conf_number(conf, "one", "size"), 65536);
    assert_true(conf_is_set(conf, "one", "size"));
    assert_false(conf_is_set(conf, "two", "duration"));
    assert_int_equal(read_text("[one]\nsize = 128K\n", NULL),
                     0); /* a second file, or the same again */
    assert_int_equal(conf_number(conf, "one", "size"), 131072);
}

static void
test_mistakes_are_told_with_their_line(void **state)
{
    static const struct {
        const char *text;
        unsigned line;
        const char *message, *hint;
    } cases[] = {
        {"[one]\nsize = 4096\nsizes = 4096\n", 3, "unknown key 'sizes' in section [one]",
         "text, name, number, size"},
        {"[one]\nlisten = a\n", 2, "unknown key 'listen' in section [one]",
         "text"}, /* another section's */
        {"\n[three]\n", 2, "unknown section 'three'", "known: one, two"},
        {"\n[three]\nsize = 1\n", 2, "unknown section 'three'", "known: one, two"},
        {"size = 4096\n", 1, "'size' stands before the first [section]", ""},
        {"[one]\nsize\n", 2, "neither [section], nor key = value, nor a comment", ""},
        {"[one]\nsize\n[three]\n", 2, "neither", ""},
        {"[one\nsize = 1\n", 1, "neither", ""},
        {"[one]\nsize = 8K\n\nsize = 9K\n", 4, "size is set already in line 2", ""},
        {"[one]\nsize = 1\n", 2, "size: '1' is too small, the least is 4 KiB", ""},
        {"[one]\nsize =\n", 2, "size: '' is not a size", "powers of 1024"},
        {"[one]\nsize = 1\n[three]\n", 2, "too small", ""}, /* the first mistake is told */
        {"[one]\ntext =\n", 2, "text: no value", ""},
        {"[one]\nname = -x\n", 2, "name: '-x' is not a valid name", ""},
        {"[one]\nnumber = 10\n", 2, "number: '10' is not between 1 and 9", ""},
        {"[two]\nduration = 2min\n", 2, "is not between", ""},
        {"[two]\nflag = maybe\n", 2, "neither yes nor no", ""},
        {"[two]\nlevel = loud\n", 2, "is not debug", ""},
        {"[two]\nlisten = :80\n", 2, "the host is missing", "HOST:PORT"},
        {"[two]\npeers = a,,b\n", 2, "the host is missing", "HOST:PORT"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char where[128];
        struct dl_error err;

        assert_int_equal(read_text(cases[i].text, &err), -DL_E_CONFIG_INVALID);
        assert_int_equal(err.code, -DL_E_CONFIG_INVALID);
        (void)snprintf(where, sizeof(where), "%s:%u: ", path, cases[i].line);
        assert_int_equal(strncmp(err.text, where, strlen(where)), 0);
        assert_non_null(strstr(err.text, cases[i].message));
        assert_non_null(strstr(err.hint, cases[i].hint));
    }
}

static void
test_lines_too_long_and_missing_files(void **state)
{
    char text[1000] = "[one]\ntext = ";
    size_t used_bytes = strlen(text);
    struct dl_error err;

    (void)state;
    memset(text + used_bytes, 'x', 500);
    memcpy(text + used_bytes + 500, "\nnumber = 4\n", sizeof("\nnumber = 4\n"));
    assert_int_equal(read_text(text, &err), -DL_E_CONFIG_INVALID);
    assert_non_null(strstr(err.text, ":2: the line is longer than"));
    assert_int_equal(conf_number(conf, "one", "number"), 3);

    assert_int_equal(conf_read_file(conf, "/nonexistent/dlblk.conf", &err), -ENOENT);
    assert_string_equal(err.text, "/nonexistent/dlblk.conf: No such file or directory");
    assert_int_equal(conf_read_file(conf, "/", &err), -EIO); /* opens, but can't be read */
}

static void
test_flags_win_and_are_named(void **state)
{
    struct dl_error err;

    (void)state;
    assert_int_equal(read_text("[one]\nsize = 64K\n", NULL), 0);
    assert_int_equal(conf_set(conf, "one", "size", NULL, "DLBLK_SIZE", &err), 0);
    assert_int_equal(conf_number(conf, "one", "size"), 65536);
    assert_int_equal(conf_set(conf, "one", "size", "8K", "DLBLK_SIZE", &err), 0);
    assert_int_equal(conf_set(conf, "one", "size", "16K", "--size", &err), 0);
    assert_int_equal(conf_number(conf, "one", "size"), 16384);
    assert_int_equal(conf_set(conf, "one", "size", "x", "--size", &err), -DL_E_CONFIG_INVALID);
    assert_string_equal(err.text, "--size: size: 'x' is not a size");
    assert_int_equal(conf_number(conf, "one", "size"), 16384); /* as it was */
}

/* A duration that may also be "never". */
static void
test_limits(void **state)
{
    struct dl_error err;

    (void)state;
    assert_int_equal(conf_set(conf, "two", "limit", "10ms", "--limit", &err), 0);
    assert_int_equal(conf_number(conf, "two", "limit"), 10);
    assert_int_equal(conf_set(conf, "two", "limit", "never", "--limit", &err), 0);
    assert_int_equal(conf_number(conf, "two", "limit"), CONF_NEVER);
    assert_int_equal(conf_set(conf, "two", "limit", "9ms", "--limit", &err), -DL_E_CONFIG_INVALID);
    assert_string_equal(err.text, "--limit: limit: '9ms' is not between 10ms and 1min");
    assert_int_equal(conf_set(conf, "two", "limit", "ever", "--limit", &err), -DL_E_CONFIG_INVALID);
    assert_string_equal(err.text, "--limit: limit: 'ever' is not a duration");
    assert_non_null(strstr(err.hint, "never"));
    assert_int_equal(conf_set(conf, "two", "duration", "never", "", &err), -DL_E_CONFIG_INVALID);
}

static void
test_real_table_has_valid_fallbacks(void **state)
{
    struct conf *real;

    (void)state;
    assert_int_equal(conf_create(&real, dlblk_conf_keys, dlblk_conf_key_count),
                     0); /* asserts them */
    assert_string_equal(conf_text(real, "cluster", "meta"), "127.0.0.1");
    conf_destroy(real);
    conf_destroy(NULL);
}

#define test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

UNIT_MAIN(test(test_fallbacks), test(test_file), test(test_mistakes_are_told_with_their_line),
          test(test_lines_too_long_and_missing_files), test(test_flags_win_and_are_named),
          test(test_limits), test(test_real_table_has_valid_fallbacks))
