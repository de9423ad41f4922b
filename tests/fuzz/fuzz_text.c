/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text that users give: sizes, durations, names, addresses.  Whatever it is, the answer is a value
 * within the range or a message without a control character; an address that was taken can be
 * written and read again.
 */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "common/address.h"
#include "common/assert.h"
#include "common/text.h"

#define ADDRESSES_MAX 4

static void
check_message(const struct dl_error *err, int result)
{
    dl_assert(err->code == result);
    dl_assert(memchr(err->text, '\0', sizeof(err->text)) != NULL);
    for (const char *c = err->text; *c != '\0'; c++)
        dl_assert((unsigned char)*c >= 0x20 && (unsigned char)*c < 0x7f);
}

static void
check_numbers(const char *text)
{
    struct dl_error err;
    uint64_t value = 0;
    int result;

    result = text_parse_size("size", text, 4096, 1ull << 50, &value, &err);
    if (result == 0)
        dl_assert(value >= 4096 && value <= 1ull << 50);
    else
        check_message(&err, result);
    result = text_parse_duration("duration", text, 10, 100000, &value, &err);
    if (result == 0)
        dl_assert(value >= 10 && value <= 100000);
    else
        check_message(&err, result);
    result = text_check_name("name", text, &err);
    if (result == 0)
        dl_assert(strlen(text) >= 1 && strlen(text) <= TEXT_NAME_BYTES_MAX);
    else
        check_message(&err, result);
}

static void
check_addresses(const char *text)
{
    struct dl_address addresses[ADDRESSES_MAX];
    struct dl_error err;
    size_t count = 0;
    int result;

    result = dl_address_parse_list(text, 7700, addresses, ADDRESSES_MAX, &count, &err);
    if (result < 0) {
        check_message(&err, result);
        return;
    }
    dl_assert(count >= 1 && count <= ADDRESSES_MAX);
    for (size_t i = 0; i < count; i++) {
        struct dl_address again;

        result = dl_address_parse(dl_address_format(&addresses[i]).text, 0, &again, NULL);
        dl_assert(result == 0);
        dl_assert(dl_address_equal(&again, &addresses[i]));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = calloc(1, size + 1);

    dl_assert(text != NULL);
    if (size > 0)
        memcpy(text, data, size);
    check_numbers(text);
    check_addresses(text);
    free(text);
    return 0;
}
