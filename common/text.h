/* SPDX-License-Identifier: Apache-2.0 */
/*
 * text.h: numbers, sizes, durations and names between text and values.
 *
 * Those that parse take `what`, the name of the thing for the message ("--size",
 * "volume.segment_size"), and the range that is allowed; the message says what was given, why it is
 * refused and what would be accepted.
 * Those that format return a struct with the text: printf("%s", text_of_size(bytes).text).
 *
 * Threads: any.  Memory: nothing is allocated.
 * Errors:  as said at each; ret_x is untouched on failure.
 */
#ifndef DLBLK_COMMON_TEXT_H
#define DLBLK_COMMON_TEXT_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/error.h"

#define TEXT_NAME_BYTES_MAX 128u /* of a volume's, a snapshot's, a host's name */

struct text_short {
    char text[48];
};

struct text_quoted {
    char text[100];
};

/*
 * "512", "4K", "4KiB", "10G", "2TiB": K M G T P are powers of 1024.  "10GB" is refused, since it
 * means two things; so are fractions.  -DL_E_SIZE_INVALID.
 */
int text_parse_size(const char *what, const char *text, uint64_t min_bytes, uint64_t max_bytes,
                    uint64_t *ret_bytes, struct dl_error *err);

/* "17".  -DL_E_USAGE. */
int text_parse_number(const char *what, const char *text, uint64_t min, uint64_t max,
                      uint64_t *ret_number, struct dl_error *err);

/* "250ms", "30s", "10min", "2h", "1d"; a bare number means seconds.  -DL_E_USAGE. */
int text_parse_duration(const char *what, const char *text, uint64_t min_ms, uint64_t max_ms,
                        uint64_t *ret_ms, struct dl_error *err);

/* "yes", "true", "on", "1" and their opposites.  -DL_E_USAGE. */
int text_parse_bool(const char *what, const char *text, bool *ret_value, struct dl_error *err);

/* 1 to 128 of [A-Za-z0-9._-], the first a letter or a digit.  -DL_E_NAME_INVALID. */
int text_check_name(const char *what, const char *name, struct dl_error *err);

/* "0 B", "512 B", "10 GiB", "1.5 TiB"; rounded down to a tenth. */
struct text_short text_of_size(uint64_t bytes);

/* "850 ns", "43.1 us", "1.2 ms", "12.5 s", "4 min 10 s", "3 h 20 min", "12 d 4 h". */
struct text_short text_of_duration(uint64_t duration_ns);

/*
 * Text of unknown origin in quotes, with \xNN for what would spoil a terminal or a log, and "..."
 * if it is long.
 */
struct text_quoted text_quote(const char *text);

#endif
