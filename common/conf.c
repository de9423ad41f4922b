/* SPDX-License-Identifier: Apache-2.0 */
#include "common/conf.h"

#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/address.h"
#include "common/assert.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"

struct conf_value {
    char *text;       /* NULL: not set */
    unsigned in_file; /* line of the file being read that set it; 0: none did */
};

struct conf {
    const struct conf_key *keys;
    size_t key_count;
    struct conf_value *values; /* one for each key */
};

/* What inih's callbacks share while one file is read. */
struct conf_file {
    struct conf *conf;
    const char *path;
    FILE *stream;
    unsigned line;
    int result; /* of the first error; nothing is read after it */
    struct dl_error *err;
};

#define CONF_NO_KEY SIZE_MAX

static size_t
conf_find(const struct conf *conf, const char *section, const char *name)
{
    for (size_t i = 0; i < conf->key_count; i++) {
        if (strcmp(conf->keys[i].section, section) == 0 && strcmp(conf->keys[i].name, name) == 0)
            return i;
    }
    return CONF_NO_KEY;
}

static size_t
conf_find_known(const struct conf *conf, const char *section, const char *name)
{
    size_t idx = conf_find(conf, section, name);

    dl_assert(idx != CONF_NO_KEY);
    return idx;
}

static bool
conf_has_section(const struct conf *conf, const char *section)
{
    for (size_t i = 0; i < conf->key_count; i++) {
        if (strcmp(conf->keys[i].section, section) == 0)
            return true;
    }
    return false;
}

/* Check a value of a key's kind; those that are numbers go to *ret_number. */
static int
conf_parse(const struct conf_key *key, const char *text, uint64_t *ret_number, struct dl_error *err)
{
    struct dl_address addresses[CONF_ADDRESSES_MAX];
    enum log_level level;
    size_t count;
    bool yes;
    int result;

    switch (key->kind) {
    case CONF_TEXT:
        return text[0] != '\0' ? 0
                               : dl_error_set(err, -DL_E_CONFIG_INVALID, "%s: no value", key->name);
    case CONF_NAME:
        return text_check_name(key->name, text, err);
    case CONF_NUMBER:
        return text_parse_number(key->name, text, key->min, key->max, ret_number, err);
    case CONF_SIZE:
        return text_parse_size(key->name, text, key->min, key->max, ret_number, err);
    case CONF_DURATION:
        return text_parse_duration(key->name, text, key->min, key->max, ret_number, err);
    case CONF_LIMIT:
        if (strcmp(text, "never") == 0) {
            *ret_number = CONF_NEVER;
            return 0;
        }
        result = text_parse_duration(key->name, text, key->min, key->max, ret_number, err);
        dl_assert(result < 0 || *ret_number != CONF_NEVER);
        if (result < 0)
            dl_error_hint(err, "write a whole number with ms, s, min, h or d, or never");
        return result;
    case CONF_BOOL:
        result = text_parse_bool(key->name, text, &yes, err);
        if (result == 0)
            *ret_number = yes;
        return result;
    case CONF_LEVEL:
        result = log_parse_level(key->name, text, &level, err);
        if (result == 0)
            *ret_number = level;
        return result;
    case CONF_ADDRESS:
        return dl_address_parse(text, key->default_port, &addresses[0], err);
    case CONF_ADDRESSES:
        return dl_address_parse_list(text, key->default_port, addresses, CONF_ADDRESSES_MAX, &count,
                                     err);
    }
    dl_unreachable();
}

int
conf_create(struct conf **ret_conf, const struct conf_key *keys, size_t key_count)
{
    struct conf *conf = calloc(1, sizeof(*conf));
    uint64_t number;

    if (conf == NULL)
        return -DL_E_NO_MEMORY;
    conf->keys = keys;
    conf->key_count = key_count;
    conf->values = calloc(key_count, sizeof(conf->values[0]));
    if (conf->values == NULL) {
        conf_destroy(conf);
        return -DL_E_NO_MEMORY;
    }
    for (size_t i = 0; i < key_count; i++)
        dl_assert(keys[i].fallback == NULL ||
                  conf_parse(&keys[i], keys[i].fallback, &number, NULL) == 0);
    *ret_conf = conf;
    return 0;
}

void
conf_destroy(struct conf *conf)
{
    if (conf == NULL)
        return;
    if (conf->values != NULL) {
        for (size_t i = 0; i < conf->key_count; i++)
            free(conf->values[i].text);
    }
    free(conf->values);
    free(conf);
}

static int
conf_store(struct conf *conf, size_t idx, const char *text, struct dl_error *err)
{
    uint64_t number;
    char *copy;
    int result = conf_parse(&conf->keys[idx], text, &number, err);

    if (result < 0) {
        if (err != NULL)
            err->code = -DL_E_CONFIG_INVALID;
        return -DL_E_CONFIG_INVALID;
    }
    copy = strdup(text);
    if (copy == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "out of memory");
    free(conf->values[idx].text);
    conf->values[idx].text = copy;
    return 0;
}

int
conf_set(struct conf *conf, const char *section, const char *name, const char *value,
         const char *origin, struct dl_error *err)
{
    int result;

    if (value == NULL)
        return 0;
    result = conf_store(conf, conf_find_known(conf, section, name), value, err);
    if (result < 0)
        dl_error_prefix(err, "%s: ", origin);
    return result;
}

/* Not known: say what is. */
static int
conf_file_unknown(struct conf_file *file, const char *section, const char *name)
{
    const struct conf *conf = file->conf;
    char known[DL_ERROR_HINT_BYTES] = "";
    const char *shown = NULL;

    for (size_t i = 0; i < conf->key_count; i++) {
        const char *word = name == NULL ? conf->keys[i].section : conf->keys[i].name;
        size_t used_bytes = strlen(known);

        if (name != NULL && strcmp(conf->keys[i].section, section) != 0)
            continue;
        if (shown != NULL && strcmp(shown, word) == 0)
            continue; /* keys of a section stand together */
        (void)snprintf(known + used_bytes, sizeof(known) - used_bytes, "%s%s",
                       used_bytes == 0 ? "" : ", ", word);
        shown = word;
    }
    if (name == NULL)
        (void)dl_error_set(file->err, -DL_E_CONFIG_INVALID, "unknown section %s",
                           text_quote(section).text);
    else
        (void)dl_error_set(file->err, -DL_E_CONFIG_INVALID, "unknown key %s in section [%s]",
                           text_quote(name).text, section);
    dl_error_hint(file->err, "known: %s", known);
    return -DL_E_CONFIG_INVALID;
}

/* inih's: 1 to go on, 0 for an error. */
static int
conf_file_on_value(void *context, const char *section, const char *name, const char *text)
{
    struct conf_file *file = context;
    size_t idx = conf_find(file->conf, section, name);
    struct conf_value *value;

    if (section[0] == '\0') {
        file->result = dl_error_set(file->err, -DL_E_CONFIG_INVALID,
                                    "%s stands before the first [section]", text_quote(name).text);
        return 0;
    }
    if (idx == CONF_NO_KEY) {
        file->result = conf_file_unknown(file, section, name);
        return 0;
    }
    value = &file->conf->values[idx];
    if (value->in_file != 0) {
        file->result = dl_error_set(file->err, -DL_E_CONFIG_INVALID, "%s is set already in line %u",
                                    name, value->in_file);
        return 0;
    }
    file->result = conf_store(file->conf, idx, text, file->err);
    value->in_file = file->line;
    return file->result == 0;
}

/* The section that a line begins, which inih says nothing about until a key follows. */
static int
conf_file_check_section(struct conf_file *file, const char *line)
{
    size_t name_bytes = strcspn(line + 1, "]");
    DL_CLEANUP(free) char *section = NULL;

    if (line[0] != '[' || line[1 + name_bytes] != ']')
        return 0;
    section = strndup(line + 1, name_bytes);
    if (section == NULL)
        return dl_error_set(file->err, -DL_E_NO_MEMORY, "out of memory");
    return conf_has_section(file->conf, section) ? 0 : conf_file_unknown(file, section, NULL);
}

/*
 * inih's fgets().  It would take the rest of a line that is longer than its buffer for the next
 * one, and an indented line for more of the one above: the first is refused here, the second loses
 * its indentation.
 */
static char *
conf_file_read_line(char *buffer, int buffer_bytes, void *context)
{
    struct conf_file *file = context;
    size_t length_bytes;

    if (file->result < 0 || fgets(buffer, buffer_bytes, file->stream) == NULL)
        return NULL;
    file->line++;
    length_bytes = strlen(buffer);
    if (buffer[length_bytes - 1] != '\n' && !feof(file->stream)) {
        file->result = dl_error_set(file->err, -DL_E_CONFIG_INVALID,
                                    "the line is longer than %d bytes", buffer_bytes - 2);
        return NULL;
    }
    length_bytes = strspn(buffer, " \t");
    memmove(buffer, buffer + length_bytes, strlen(buffer + length_bytes) + 1);
    file->result = conf_file_check_section(file, buffer);
    return file->result < 0 ? NULL : buffer;
}

static int
conf_file_parse(struct conf_file *file)
{
    int syntax_line = ini_parse_stream(conf_file_read_line, file, conf_file_on_value, file);

    if (syntax_line < 0)
        return dl_error_set(file->err, -DL_E_NO_MEMORY, "out of memory");
    /* inih goes on after an error of its own; ours ends the file.  The first one is told. */
    if (syntax_line > 0 && (file->result == 0 || (unsigned)syntax_line < file->line)) {
        file->line = (unsigned)syntax_line;
        file->result = dl_error_set(file->err, -DL_E_CONFIG_INVALID,
                                    "neither [section], nor key = value, nor a comment");
    }
    if (file->result < 0)
        dl_error_prefix(file->err, "%s:%u: ", file->path, file->line);
    else if (ferror(file->stream))
        return dl_error_set(file->err, -EIO, "%s: can't be read", file->path);
    return file->result;
}

int
conf_read_file(struct conf *conf, const char *path, struct dl_error *err)
{
    struct conf_file file = {.conf = conf, .path = path, .err = err};
    DL_CLEANUP(fclose) FILE *stream = fopen(path, "re");

    if (stream == NULL) {
        int saved_errno = errno;

        return dl_error_set(err, -saved_errno, "%s: %s", path, dl_err_str(saved_errno));
    }
    file.stream = stream;
    for (size_t i = 0; i < conf->key_count; i++)
        conf->values[i].in_file = 0;
    return conf_file_parse(&file);
}

bool
conf_is_set(const struct conf *conf, const char *section, const char *name)
{
    return conf->values[conf_find_known(conf, section, name)].text != NULL;
}

const char *
conf_text(const struct conf *conf, const char *section, const char *name)
{
    size_t idx = conf_find_known(conf, section, name);

    return conf->values[idx].text != NULL ? conf->values[idx].text : conf->keys[idx].fallback;
}

uint64_t
conf_number(const struct conf *conf, const char *section, const char *name)
{
    const struct conf_key *key = &conf->keys[conf_find_known(conf, section, name)];
    const char *text = conf_text(conf, section, name);
    uint64_t number = 0;
    int result;

    dl_assert(key->kind >= CONF_NUMBER && key->kind <= CONF_LEVEL);
    dl_assert(text != NULL);
    result = conf_parse(key, text, &number, NULL);
    dl_assert(result == 0);
    return number;
}
