/* SPDX-License-Identifier: Apache-2.0 */
#include "common/text.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/assert.h"

struct unit {
    const char *name;
    uint64_t factor;
};

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define TIB (1ull << 40)
#define PIB (1ull << 50)

static const struct unit size_units[] = {
    {"", 1},    {"B", 1},     {"K", KIB}, {"KiB", KIB}, {"M", MIB}, {"MiB", MIB},
    {"G", GIB}, {"GiB", GIB}, {"T", TIB}, {"TiB", TIB}, {"P", PIB}, {"PiB", PIB},
};

/* In milliseconds. */
static const struct unit duration_units[] = {
    {"", 1000},     {"ms", 1},      {"s", 1000},     {"m", 60000},
    {"min", 60000}, {"h", 3600000}, {"d", 86400000},
};

static const struct unit no_units[] = {{"", 1}};

enum parse_result { PARSE_OK, PARSE_NO_NUMBER, PARSE_BAD_UNIT, PARSE_TOO_LARGE };

/* Digits, then one of the units, and nothing else. */
static enum parse_result
parse_with_unit(const char *text, const struct unit *units, size_t unit_count, uint64_t *ret_value)
{
    size_t digit_count = strspn(text, "0123456789");
    uint64_t number = 0;

    if (digit_count == 0)
        return PARSE_NO_NUMBER;
    for (size_t i = 0; i < digit_count; i++) {
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(text[i] - '0'), &number))
            return PARSE_TOO_LARGE;
    }
    for (size_t i = 0; i < unit_count; i++) {
        if (strcasecmp(text + digit_count, units[i].name) != 0)
            continue;
        return __builtin_mul_overflow(number, units[i].factor, ret_value) ? PARSE_TOO_LARGE
                                                                          : PARSE_OK;
    }
    return PARSE_BAD_UNIT;
}

#define parse(text, units, ret_value) \
    parse_with_unit(text, units, sizeof(units) / sizeof((units)[0]), ret_value)

int
text_parse_size(const char *what, const char *text, uint64_t min_bytes, uint64_t max_bytes,
                uint64_t *ret_bytes, struct dl_error *err)
{
    struct text_quoted quoted = text_quote(text);
    uint64_t bytes = 0;
    int code;

    switch (parse(text, size_units, &bytes)) {
    case PARSE_NO_NUMBER:
    case PARSE_BAD_UNIT:
        code = dl_error_set(err, -DL_E_SIZE_INVALID, "%s: %s is not a size", what, quoted.text);
        dl_error_hint(
            err, "write a whole number with B, K, M, G, T or P (powers of 1024): 512, 4K, 10G");
        return code;
    case PARSE_TOO_LARGE:
        bytes = UINT64_MAX;
        break;
    case PARSE_OK:
        break;
    }
    if (bytes < min_bytes)
        return dl_error_set(err, -DL_E_SIZE_INVALID, "%s: %s is too small, the least is %s", what,
                            quoted.text, text_of_size(min_bytes).text);
    if (bytes > max_bytes || (bytes == UINT64_MAX && max_bytes == UINT64_MAX))
        return dl_error_set(err, -DL_E_SIZE_INVALID, "%s: %s is too large, the most is %s", what,
                            quoted.text, text_of_size(max_bytes).text);
    *ret_bytes = bytes;
    return 0;
}

int
text_parse_number(const char *what, const char *text, uint64_t min, uint64_t max,
                  uint64_t *ret_number, struct dl_error *err)
{
    struct text_quoted quoted = text_quote(text);
    uint64_t number = 0;
    enum parse_result result = parse(text, no_units, &number);

    if (result == PARSE_NO_NUMBER || result == PARSE_BAD_UNIT)
        return dl_error_set(err, -DL_E_USAGE, "%s: %s is not a whole number", what, quoted.text);
    if (result == PARSE_TOO_LARGE || number < min || number > max)
        return dl_error_set(err, -DL_E_USAGE, "%s: %s is not between %llu and %llu", what,
                            quoted.text, (unsigned long long)min, (unsigned long long)max);
    *ret_number = number;
    return 0;
}

/* Exactly, as one would write it. */
static struct text_short
text_of_limit(uint64_t ms)
{
    size_t i = sizeof(duration_units) / sizeof(duration_units[0]) - 1;
    struct text_short result;

    while (i > 0 &&
           (duration_units[i].name[0] == '\0' || ms == 0 || ms % duration_units[i].factor != 0))
        i--;
    (void)snprintf(result.text, sizeof(result.text), "%llu%s",
                   (unsigned long long)(ms / duration_units[i].factor), duration_units[i].name);
    return result;
}

int
text_parse_duration(const char *what, const char *text, uint64_t min_ms, uint64_t max_ms,
                    uint64_t *ret_ms, struct dl_error *err)
{
    struct text_quoted quoted = text_quote(text);
    uint64_t duration_ms = 0;
    enum parse_result result = parse(text, duration_units, &duration_ms);

    if (result == PARSE_NO_NUMBER || result == PARSE_BAD_UNIT) {
        int code = dl_error_set(err, -DL_E_USAGE, "%s: %s is not a duration", what, quoted.text);

        dl_error_hint(err, "write a whole number with ms, s, min, h or d, such as 30s");
        return code;
    }
    if (result == PARSE_TOO_LARGE || duration_ms < min_ms || duration_ms > max_ms)
        return dl_error_set(err, -DL_E_USAGE, "%s: %s is not between %s and %s", what, quoted.text,
                            text_of_limit(min_ms).text, text_of_limit(max_ms).text);
    *ret_ms = duration_ms;
    return 0;
}

int
text_parse_bool(const char *what, const char *text, bool *ret_value, struct dl_error *err)
{
    static const char *const yes[] = {"yes", "true", "on", "1"};
    static const char *const no[] = {"no", "false", "off", "0"};

    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
            *ret_value = strcasecmp(text, yes[i]) == 0;
            return 0;
        }
    }
    return dl_error_set(err, -DL_E_USAGE, "%s: %s is neither yes nor no", what,
                        text_quote(text).text);
}

int
text_check_name(const char *what, const char *name, struct dl_error *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789._-";
    size_t length_bytes = strlen(name);
    const char *reason;

    if (length_bytes == 0)
        reason = "it is empty";
    else if (length_bytes > TEXT_NAME_BYTES_MAX)
        reason = "it is longer than 128 bytes";
    else if (name[strspn(name, allowed)] != '\0')
        reason = "only A-Z a-z 0-9 . _ - are allowed";
    else if (strchr("._-", name[0]) != NULL)
        reason = "it must begin with a letter or a digit";
    else
        return 0;
    return dl_error_set(err, -DL_E_NAME_INVALID, "%s: %s is not a valid name: %s", what,
                        text_quote(name).text, reason);
}

struct text_short
text_of_size(uint64_t bytes)
{
    static const struct unit units[] = {
        {"PiB", PIB}, {"TiB", TIB}, {"GiB", GIB}, {"MiB", MIB}, {"KiB", KIB}};
    struct text_short result;

    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        uint64_t whole = bytes / units[i].factor;
        /* The factor is below 2^51, so that ten times the rest fits. */
        uint64_t tenths = bytes % units[i].factor * 10 / units[i].factor;

        if (whole == 0)
            continue;
        if (tenths == 0)
            (void)snprintf(result.text, sizeof(result.text), "%llu %s", (unsigned long long)whole,
                           units[i].name);
        else
            (void)snprintf(result.text, sizeof(result.text), "%llu.%llu %s",
                           (unsigned long long)whole, (unsigned long long)tenths, units[i].name);
        return result;
    }
    (void)snprintf(result.text, sizeof(result.text), "%llu B", (unsigned long long)bytes);
    return result;
}

/* With one decimal, in a unit of which there are fewer than a thousand. */
static struct text_short
duration_short(uint64_t duration_ns)
{
    static const struct unit units[] = {
        {"s", 1000000000}, {"ms", 1000000}, {"us", 1000}, {"ns", 1}};
    struct text_short result;
    size_t i = 0;

    while (units[i].factor > 1 && duration_ns < units[i].factor)
        i++;
    if (units[i].factor == 1)
        (void)snprintf(result.text, sizeof(result.text), "%llu ns",
                       (unsigned long long)duration_ns);
    else
        (void)snprintf(result.text, sizeof(result.text), "%llu.%llu %s",
                       (unsigned long long)(duration_ns / units[i].factor),
                       (unsigned long long)(duration_ns % units[i].factor / (units[i].factor / 10)),
                       units[i].name);
    return result;
}

struct text_short
text_of_duration(uint64_t duration_ns)
{
    unsigned long long seconds = duration_ns / 1000000000;
    struct text_short result;

    if (seconds < 60)
        return duration_short(duration_ns);
    if (seconds < 3600)
        (void)snprintf(result.text, sizeof(result.text), "%llu min %llu s", seconds / 60,
                       seconds % 60);
    else if (seconds < 86400)
        (void)snprintf(result.text, sizeof(result.text), "%llu h %llu min", seconds / 3600,
                       seconds % 3600 / 60);
    else
        (void)snprintf(result.text, sizeof(result.text), "%llu d %llu h", seconds / 86400,
                       seconds % 86400 / 3600);
    return result;
}

struct text_quoted
text_quote(const char *text)
{
    static const char ending[] = "...'";
    static const char digits[] = "0123456789abcdef";
    struct text_quoted result;
    /* Room for one escaped byte and the ending is kept at all times. */
    const size_t text_bytes_max = sizeof(result.text) - sizeof("\\xNN") - sizeof(ending);
    size_t used_bytes = 0;

    result.text[used_bytes++] = '\'';
    for (; *text != '\0' && used_bytes < text_bytes_max; text++) {
        unsigned char c = (unsigned char)*text;

        if (c >= 0x20 && c < 0x7f && c != '\'' && c != '\\') {
            result.text[used_bytes++] = (char)c;
        } else {
            result.text[used_bytes++] = '\\';
            result.text[used_bytes++] = 'x';
            result.text[used_bytes++] = digits[c >> 4];
            result.text[used_bytes++] = digits[c & 15];
        }
    }
    (void)snprintf(result.text + used_bytes, sizeof(result.text) - used_bytes, "%s",
                   *text == '\0' ? "'" : ending);
    return result;
}
