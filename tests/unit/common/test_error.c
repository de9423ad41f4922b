/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error codes: each is told from every other and from the system's, goes over the wire and comes
 * back as itself, and has a text.  What a newer version sends stays a number; what no version sends
 * is refused.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "dlblk/error.h"

static const int codes[] = {
#define X(number, name, errno_class, text) DL_E_##name,
    DL_ERRORS(X)
#undef X
};

#define CODE_COUNT (sizeof(codes) / sizeof(codes[0]))

static void
test_codes_differ(void **state)
{
    (void)state;
    for (size_t i = 0; i < CODE_COUNT; i++) {
        assert_true(codes[i] > DL_E_FIRST);
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(codes[i], codes[j]);
            assert_string_not_equal(dl_err_name(codes[i]), dl_err_name(codes[j]));
            assert_string_not_equal(dl_err_str(codes[i]), dl_err_str(codes[j]));
        }
    }
}

static void
test_numbers_are_those_of_the_first_version(void **state)
{
    (void)state;
    /* On the wire and in logs: these must never change. */
    assert_int_equal(DL_E_MEDIA_READ, 4097);
    assert_int_equal(DL_E_CRC_WIRE, 4116);
    assert_int_equal(DL_E_EPOCH_OLD, 4136);
    assert_int_equal(DL_E_TOO_FEW_DOMAINS, 4166);
    assert_int_equal(DL_E_INTERNAL, 4191);
}

static void
test_every_code_crosses_the_wire(void **state)
{
    (void)state;
    assert_int_equal(dl_err_to_wire(0), 0);
    assert_int_equal(dl_err_from_wire(0), 0);
    for (size_t i = 0; i < CODE_COUNT; i++)
        assert_int_equal(dl_err_from_wire(dl_err_to_wire(-codes[i])), -codes[i]);
}

static void
test_every_status_is_an_error(void **state)
{
    (void)state;
    for (unsigned status = 1; status <= UINT16_MAX; status++) {
        int err = dl_err_from_wire((uint16_t)status);

        assert_true(err < -DL_E_FIRST);
        assert_true(dl_err_class(err) > 0);
        if (status > 4095)
            assert_int_equal(err, -DL_E_MESSAGE_MALFORMED);
        else
            assert_int_equal(dl_err_to_wire(err), status); /* passed on unknown */
    }
}

static void
test_errno_travels_as_the_nearest_code(void **state)
{
    (void)state;
    assert_int_equal(dl_err_from_wire(dl_err_to_wire(-ENOMEM)), -DL_E_NO_MEMORY);
    assert_int_equal(dl_err_from_wire(dl_err_to_wire(-ENOSPC)), -DL_E_NO_SPACE);
    assert_int_equal(dl_err_from_wire(dl_err_to_wire(-ECONNRESET)), -DL_E_CONNECTION_LOST);
    for (int code = 1; code < 4096; code++)
        assert_true(dl_err_from_wire(dl_err_to_wire(-code)) < -DL_E_FIRST);
}

static void
test_text_and_class(void **state)
{
    (void)state;
    assert_string_equal(dl_err_str(-DL_E_VOLUME_UNKNOWN), "no such volume");
    assert_string_equal(dl_err_str(DL_E_VOLUME_UNKNOWN), "no such volume");
    assert_string_equal(dl_err_name(-DL_E_VOLUME_UNKNOWN), "DL_E_VOLUME_UNKNOWN");
    assert_string_equal(dl_err_str(-ENOSPC), "No space left on device");
    assert_string_equal(dl_err_name(-ENOSPC), "ENOSPC");
    assert_non_null(strstr(dl_err_str(-8000), "8000"));

    assert_int_equal(dl_err_class(0), 0);
    assert_int_equal(dl_err_class(-DL_E_NO_SPACE), ENOSPC);
    assert_int_equal(dl_err_class(-DL_E_CRC_DATA), EIO);
    assert_int_equal(dl_err_class(-EPERM), EPERM);
    assert_int_equal(dl_err_class(-8000), EIO);
}

static void
test_dl_error_text_hint_prefix(void **state)
{
    struct dl_error err;

    (void)state;
    memset(&err, 'x', sizeof(err));
    assert_int_equal(dl_error_set(&err, -DL_E_VOLUME_UNKNOWN, "volume %s", "v1"),
                     -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(err.code, -DL_E_VOLUME_UNKNOWN);
    assert_string_equal(err.text, "volume v1");
    assert_string_equal(err.hint, "");
    dl_error_hint(&err, "try %d", 2);
    assert_string_equal(err.hint, "try 2");
    dl_error_prefix(&err, "%s:%d: ", "file", 7);
    assert_string_equal(err.text, "file:7: volume v1");
    assert_string_equal(err.hint, "try 2");
    (void)dl_error_set(&err, -EIO, "other");
    assert_string_equal(err.hint, ""); /* a hint never outlives its error */
}

static void
test_dl_error_without_a_taker(void **state)
{
    (void)state;
    assert_int_equal(dl_error_set(NULL, -EIO, "text"), -EIO);
    dl_error_hint(NULL, "hint");
    dl_error_prefix(NULL, "prefix");
}

static void
test_dl_error_cuts_what_is_too_long(void **state)
{
    char long_text[2 * DL_ERROR_TEXT_BYTES];
    struct dl_error err;

    (void)state;
    memset(long_text, 'a', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    (void)dl_error_set(&err, -EIO, "%s", long_text);
    assert_int_equal(strlen(err.text), DL_ERROR_TEXT_BYTES - 1);
    dl_error_hint(&err, "%s", long_text);
    assert_int_equal(strlen(err.hint), DL_ERROR_HINT_BYTES - 1);
    dl_error_prefix(&err, "b%s", long_text);
    assert_int_equal(strlen(err.text), DL_ERROR_TEXT_BYTES - 1);
    assert_int_equal(err.text[0], 'b');
}

UNIT_MAIN(cmocka_unit_test(test_codes_differ),
          cmocka_unit_test(test_numbers_are_those_of_the_first_version),
          cmocka_unit_test(test_every_code_crosses_the_wire),
          cmocka_unit_test(test_every_status_is_an_error),
          cmocka_unit_test(test_errno_travels_as_the_nearest_code),
          cmocka_unit_test(test_text_and_class), cmocka_unit_test(test_dl_error_text_hint_prefix),
          cmocka_unit_test(test_dl_error_without_a_taker),
          cmocka_unit_test(test_dl_error_cuts_what_is_too_long))
