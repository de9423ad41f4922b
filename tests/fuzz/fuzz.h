/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h: what a fuzz target includes.
 *
 * A target gives arbitrary bytes to a function that takes what comes from outside, and asserts
 * (dl_assert) what must hold whatever it answers.
 */
#ifndef DLBLK_TESTS_FUZZ_H
#define DLBLK_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* 0: the input goes into the corpus if it reached something new. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
