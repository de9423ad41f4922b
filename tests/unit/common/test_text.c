/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, numbers, durations and names: what is accepted, what is refused and with which words, what
 * is printed.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/text.h"

static void
test_sizes_accepted(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"512", 512},
        {"512B", 512},
        {"4K", 4096},
        {"4k", 4096},
        {"4KiB", 4096},
        {"10G", 10ull << 30},
        {"3MiB", 3ull << 20},
        {"16T", 16ull << 40},
        {"2PiB", 2ull << 50},
        {"18446744073709551614", UINT64_MAX - 1},
        {"0007", 7},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bytes = 99;

        assert_int_equal(text_parse_size("--size", cases[i].text, 0, UINT64_MAX, &bytes, NULL), 0);
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void
test_sizes_refused(void **state)
{
    static const char *const cases[] = {"",   "G",     "10GB",  "1.5G",   "-1",   "+1", " 1",
                                        "1 ", "1 GiB", "10gig", "0x1000", "1K1K", "\n"};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dl_error err;
        uint64_t bytes = 99;

        assert_int_equal(text_parse_size("--size", cases[i], 0, UINT64_MAX, &bytes, &err),
                         -DL_E_SIZE_INVALID);
        assert_int_equal(bytes, 99);
        assert_non_null(strstr(err.text, "--size: '"));
        assert_non_null(strstr(err.text, "is not a size"));
        assert_non_null(strstr(err.hint, "10G"));
    }
}

static void
test_sizes_out_of_range(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"4095", "--size: '4095' is too small, the least is 4 KiB"},
        {"0", "--size: '0' is too small, the least is 4 KiB"},
        {"1025G", "--size: '1025G' is too large, the most is 1 TiB"},
        {"99999999999999999999999",
         "--size: '99999999999999999999999' is too large, the most is 1 TiB"},
        {"16385P", "--size: '16385P' is too large, the most is 1 TiB"}, /* 2^64 and some */
    };
    uint64_t bytes = 99;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dl_error err;

        assert_int_equal(text_parse_size("--size", cases[i].text, 4096, 1ull << 40, &bytes, &err),
                         -DL_E_SIZE_INVALID);
        assert_string_equal(err.text, cases[i].message);
    }
    assert_int_equal(bytes, 99);
    assert_int_equal(text_parse_size("--size", "4K", 4096, 1ull << 40, &bytes, NULL), 0);
    assert_int_equal(text_parse_size("--size", "1T", 4096, 1ull << 40, &bytes, NULL), 0);
    assert_int_equal(text_parse_size("x", "16384P", 0, UINT64_MAX, &bytes, NULL),
                     -DL_E_SIZE_INVALID);
}

static void
test_numbers(void **state)
{
    struct dl_error err;
    uint64_t number = 99;

    (void)state;
    assert_int_equal(text_parse_number("--depth", "32", 1, 256, &number, &err), 0);
    assert_int_equal(number, 32);
    assert_int_equal(text_parse_number("--depth", "0", 1, 256, &number, &err), -DL_E_USAGE);
    assert_string_equal(err.text, "--depth: '0' is not between 1 and 256");
    assert_int_equal(text_parse_number("--depth", "257", 1, 256, &number, &err), -DL_E_USAGE);
    assert_int_equal(text_parse_number("--depth", "99999999999999999999", 1, 256, &number, &err),
                     -DL_E_USAGE);
    assert_non_null(strstr(err.text, "is not between"));
    assert_int_equal(text_parse_number("--depth", "3K", 1, 9999, &number, &err), -DL_E_USAGE);
    assert_string_equal(err.text, "--depth: '3K' is not a whole number");
    assert_int_equal(text_parse_number("--depth", "", 0, 256, &number, &err), -DL_E_USAGE);
    assert_int_equal(number, 32);
}

static void
test_durations(void **state)
{
    static const struct {
        const char *text;
        uint64_t ms;
    } cases[] = {{"30", 30000},  {"250ms", 250},  {"30s", 30000},   {"10min", 600000},
                 {"5m", 300000}, {"2h", 7200000}, {"1d", 86400000}, {"0ms", 0}};
    struct dl_error err;
    uint64_t ms = 99;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(text_parse_duration("timeout", cases[i].text, 0, UINT64_MAX, &ms, NULL),
                         0);
        assert_int_equal(ms, cases[i].ms);
    }
    ms = 99;
    assert_int_equal(text_parse_duration("timeout", "1us", 0, 1000, &ms, &err), -DL_E_USAGE);
    assert_non_null(strstr(err.text, "is not a duration"));
    assert_int_equal(text_parse_duration("timeout", "2s", 0, 1000, &ms, &err), -DL_E_USAGE);
    assert_string_equal(err.text, "timeout: '2s' is not between 0 and 1s");
    assert_int_equal(ms, 99);
}

static void
test_bools(void **state)
{
    struct dl_error err;
    bool value = false;

    (void)state;
    assert_int_equal(text_parse_bool("x", "Yes", &value, &err), 0);
    assert_true(value);
    assert_int_equal(text_parse_bool("x", "off", &value, &err), 0);
    assert_false(value);
    assert_int_equal(text_parse_bool("x", "1", &value, &err), 0);
    assert_true(value);
    assert_int_equal(text_parse_bool("x", "2", &value, &err), -DL_E_USAGE);
    assert_string_equal(err.text, "x: '2' is neither yes nor no");
    assert_true(value);
}

static void
test_names(void **state)
{
    static const char *const good[] = {"v", "0", "my-volume_1.raw", "A..B", "a-", "x_"};
    static const struct {
        const char *name, *reason;
    } bad[] = {
        {"", "empty"},   {"-v", "begin"},  {".v", "begin"},      {"_v", "begin"},  {"a/b", "only"},
        {"a b", "only"}, {"a\nb", "only"}, {"\303\244", "only"}, {"../v", "only"}, {"a:b", "only"},
    };
    char name[300];

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(text_check_name("volume", good[i], NULL), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct dl_error err;

        assert_int_equal(text_check_name("volume", bad[i].name, &err), -DL_E_NAME_INVALID);
        assert_non_null(strstr(err.text, bad[i].reason));
        assert_null(strchr(err.text, '\n')); /* never raw */
    }
    for (size_t length_bytes = 1; length_bytes < sizeof(name); length_bytes++) {
        memset(name, 'n', length_bytes);
        name[length_bytes] = '\0';
        assert_int_equal(text_check_name("volume", name, NULL),
                         length_bytes <= TEXT_NAME_BYTES_MAX ? 0 : -DL_E_NAME_INVALID);
    }
}

static void
test_sizes_printed(void **state)
{
    (void)state;
    assert_string_equal(text_of_size(0).text, "0 B");
    assert_string_equal(text_of_size(1023).text, "1023 B");
    assert_string_equal(text_of_size(1024).text, "1 KiB");
    assert_string_equal(text_of_size(1536).text, "1.5 KiB");
    assert_string_equal(text_of_size(10ull << 30).text, "10 GiB");
    assert_string_equal(text_of_size((2ull << 40) - 1).text,
                        "1.9 TiB"); /* never more than there is */
    assert_string_equal(text_of_size(UINT64_MAX).text, "16383.9 PiB");
}

static void
test_durations_printed(void **state)
{
    (void)state;
    assert_string_equal(text_of_duration(0).text, "0 ns");
    assert_string_equal(text_of_duration(999).text, "999 ns");
    assert_string_equal(text_of_duration(43120).text, "43.1 us");
    assert_string_equal(text_of_duration(1200000).text, "1.2 ms");
    assert_string_equal(text_of_duration(59999999999).text, "59.9 s");
    assert_string_equal(text_of_duration(250000000000).text, "4 min 10 s");
    assert_string_equal(text_of_duration(12000000000000).text, "3 h 20 min");
    assert_string_equal(text_of_duration(1051200000000000).text, "12 d 4 h");
    assert_string_equal(text_of_duration(UINT64_MAX).text, "213503 d 23 h");
}

static void
test_quotes(void **state)
{
    char text[1000];

    (void)state;
    assert_string_equal(text_quote("plain text").text, "'plain text'");
    assert_string_equal(text_quote("").text, "''");
    assert_string_equal(text_quote("a\nb\x1b[1m'\\\xff").text, "'a\\x0ab\\x1b[1m\\x27\\x5c\\xff'");
    for (size_t length_bytes = 0; length_bytes < sizeof(text); length_bytes++) {
        struct text_quoted quoted;
        size_t quoted_bytes;

        memset(text, length_bytes % 2 == 0 ? '\1' : 'x', length_bytes);
        text[length_bytes] = '\0';
        quoted = text_quote(text);
        quoted_bytes = strlen(quoted.text);
        assert_true(quoted_bytes < sizeof(quoted.text));
        assert_int_equal(quoted.text[quoted_bytes - 1], '\'');
        if (length_bytes >= sizeof(quoted.text))
            assert_string_equal(quoted.text + quoted_bytes - 4, "...'");
    }
}

UNIT_MAIN(cmocka_unit_test(test_sizes_accepted), cmocka_unit_test(test_sizes_refused),
          cmocka_unit_test(test_sizes_out_of_range), cmocka_unit_test(test_numbers),
          cmocka_unit_test(test_durations), cmocka_unit_test(test_bools),
          cmocka_unit_test(test_names), cmocka_unit_test(test_sizes_printed),
          cmocka_unit_test(test_durations_printed), cmocka_unit_test(test_quotes))
