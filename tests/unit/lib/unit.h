/* SPDX-License-Identifier: Apache-2.0 */
/*
 * unit.h: what every unit test includes first: cmocka with the headers it wants, and the main().
 *
 *   UNIT_MAIN(cmocka_unit_test(test_this), cmocka_unit_test(test_that))
 *
 * The program's first argument is a filter of test names with * and ?.
 */
#ifndef DLBLK_TESTS_UNIT_H
#define DLBLK_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define UNIT_MAIN(...)                                    \
    int main(int argc, char **argv)                       \
    {                                                     \
        const struct CMUnitTest tests[] = {__VA_ARGS__};  \
                                                          \
        if (argc > 1)                                     \
            cmocka_set_test_filter(argv[1]);              \
        return cmocka_run_group_tests(tests, NULL, NULL); \
    }

#endif
