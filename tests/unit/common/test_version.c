/* SPDX-License-Identifier: Apache-2.0 */
/* --version names program, commit, wire version and disk format version. */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/version.h"

static void
test_text_names_everything(void **state)
{
    const char *text = dlblk_version_text("dlblk-meta");

    (void)state;
    assert_int_equal(strncmp(text, "dlblk-meta ", strlen("dlblk-meta ")), 0);
    assert_non_null(strstr(text, dlblk_version_commit()));
    assert_non_null(strstr(text, "wire version 1"));
    assert_non_null(strstr(text, "disk format version 1"));
}

static void
test_commit_is_known(void **state)
{
    (void)state;
    assert_true(strlen(dlblk_version_commit()) >= 7);
    assert_null(strchr(dlblk_version_commit(), '$'));
}

UNIT_MAIN(cmocka_unit_test(test_text_names_everything), cmocka_unit_test(test_commit_is_known))
