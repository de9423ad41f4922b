/* SPDX-License-Identifier: Apache-2.0 */
#include "dlblk/error.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define WIRE_NUMBER_MAX 4095

struct error_entry {
    int code;
    int errno_class;
    const char *name;
    const char *text;
};

static const struct error_entry entries[] = {
#define X(number, name, errno_class, text) {DL_E_##name, errno_class, "DL_E_" #name, text},
    DL_ERRORS(X)
#undef X
};

#define X(number, name, errno_class, text) \
    static_assert((number) > 0 && (number) <= WIRE_NUMBER_MAX, "number of " #name);
DL_ERRORS(X)
#undef X

static int
error_magnitude(int err)
{
    return err < 0 ? -err : err;
}

static const struct error_entry *
error_find(int code)
{
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        if (entries[i].code == code)
            return &entries[i];
    }
    return NULL;
}

static const char *
error_number_text(int code)
{
    static _Thread_local char text[48];

    (void)snprintf(text, sizeof(text), "unknown error %d", code);
    return text;
}

const char *
dl_err_str(int err)
{
    int code = error_magnitude(err);
    const struct error_entry *entry = error_find(code);
    const char *text;

    if (entry != NULL)
        return entry->text;
    text = strerrordesc_np(code);
    return text != NULL ? text : error_number_text(code);
}

const char *
dl_err_name(int err)
{
    int code = error_magnitude(err);
    const struct error_entry *entry = error_find(code);
    const char *name;

    if (entry != NULL)
        return entry->name;
    name = strerrorname_np(code);
    return name != NULL ? name : error_number_text(code);
}

int
dl_err_class(int err)
{
    int code = error_magnitude(err);
    const struct error_entry *entry = error_find(code);

    if (entry != NULL)
        return entry->errno_class;
    return code < DL_E_FIRST ? code : EIO;
}

/* The numbers of errno belong to the system and its processor: only our own go to a peer. */
static int
error_of_errno(int code)
{
    switch (code) {
    case ENOMEM:
        return DL_E_NO_MEMORY;
    case ENOSPC:
    case EDQUOT:
        return DL_E_NO_SPACE;
    case ETIMEDOUT:
        return DL_E_TIMEOUT;
    case ECANCELED:
        return DL_E_CANCELLED;
    case ENOENT:
        return DL_E_NOT_FOUND;
    case EAGAIN:
    case EBUSY:
        return DL_E_BUSY;
    case ECONNRESET:
    case ECONNREFUSED:
    case EPIPE:
        return DL_E_CONNECTION_LOST;
    default:
        return DL_E_INTERNAL;
    }
}

uint16_t
dl_err_to_wire(int err)
{
    int code = error_magnitude(err);

    if (code == 0)
        return 0;
    if (code < DL_E_FIRST)
        code = error_of_errno(code);
    if (code > DL_E_FIRST + WIRE_NUMBER_MAX)
        code = DL_E_INTERNAL;
    return (uint16_t)(code - DL_E_FIRST);
}

int
dl_err_from_wire(uint16_t status)
{
    if (status == 0)
        return 0;
    if (status > WIRE_NUMBER_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    return -(DL_E_FIRST + (int)status);
}

int
dl_error_set(struct dl_error *err, int code, const char *format, ...)
{
    va_list arguments;

    if (err == NULL)
        return code;
    err->code = code;
    err->hint[0] = '\0';
    va_start(arguments, format);
    (void)vsnprintf(err->text, sizeof(err->text), format, arguments);
    va_end(arguments);
    return code;
}

void
dl_error_hint(struct dl_error *err, const char *format, ...)
{
    va_list arguments;

    if (err == NULL)
        return;
    va_start(arguments, format);
    (void)vsnprintf(err->hint, sizeof(err->hint), format, arguments);
    va_end(arguments);
}

void
dl_error_prefix(struct dl_error *err, const char *format, ...)
{
    char old_text[DL_ERROR_TEXT_BYTES];
    va_list arguments;
    size_t prefix_bytes;

    if (err == NULL)
        return;
    memcpy(old_text, err->text, sizeof(old_text));
    va_start(arguments, format);
    (void)vsnprintf(err->text, sizeof(err->text), format, arguments);
    va_end(arguments);
    prefix_bytes = strlen(err->text);
    (void)snprintf(err->text + prefix_bytes, sizeof(err->text) - prefix_bytes, "%s", old_text);
}
