/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conf.h: settings of a program: from the configuration file, the environment and its flags.
 *
 * One file serves all programs, so all know the keys of all: dlblk_conf_keys.  A value is checked
 * when it is set; what reads it afterwards can't fail.  Whoever is set last wins, so a program
 * begins with the file:
 *
 *     conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count);
 *     conf_read_file(conf, path, err);                                    // /etc/dlblk/dlblk.conf
 *     conf_set(conf, "cluster", "meta", getenv("DLBLK_META"), "DLBLK_META", err);
 *     conf_set(conf, "cluster", "meta", optarg, "--meta", err);
 *     ... conf_text(conf, "cluster", "meta") ...
 *
 * The file has lines of [section] and of key = value; one that begins with # or ; is a comment, and
 * so is what follows " ;" in a line.
 *
 * Threads: one at a time.  Memory: strings are the conf's, until the key is set again or the conf
 *          destroyed.
 * Errors:  0, -DL_E_CONFIG_INVALID, -DL_E_NO_MEMORY or -errno of the file; err says file and line,
 *          or the flag.
 */
#ifndef DLBLK_COMMON_CONF_H
#define DLBLK_COMMON_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dlblk/error.h"

enum conf_kind {
    CONF_TEXT,
    CONF_NAME,      /* text_check_name() */
    CONF_NUMBER,    /* conf_number(); within min and max */
    CONF_SIZE,      /* conf_number(), in bytes */
    CONF_DURATION,  /* conf_number(), in milliseconds */
    CONF_LIMIT,     /* likewise, or "never": CONF_NEVER */
    CONF_BOOL,      /* conf_number(): 0 or 1 */
    CONF_LEVEL,     /* conf_number(): enum log_level */
    CONF_ADDRESS,   /* dl_address_parse() with the key's default_port */
    CONF_ADDRESSES, /* dl_address_parse_list() with the key's default_port */
};

#define CONF_ADDRESSES_MAX 16u
#define CONF_NEVER         UINT32_MAX

struct conf_key {
    const char *section;
    const char *name;
    enum conf_kind kind;
    uint16_t default_port;
    uint64_t min, max;
    const char *fallback; /* the value where none is set; NULL: none */
};

extern const struct conf_key dlblk_conf_keys[];
extern const size_t dlblk_conf_key_count;

struct conf;

/* 0 or -DL_E_NO_MEMORY.  keys is borrowed.  A fallback that its own kind refuses asserts. */
int conf_create(struct conf **ret_conf, const struct conf_key *keys, size_t key_count);
void conf_destroy(struct conf *conf);

/* Read a file.  After an error the values are those of the lines before it. */
int conf_read_file(struct conf *conf, const char *path, struct dl_error *err);

/*
 * Set one value; origin ("--listen", "DLBLK_META") stands in the error's text.  value NULL: nothing
 * happens, so that the result of getenv() can be passed.
 */
int conf_set(struct conf *conf, const char *section, const char *name, const char *value,
             const char *origin, struct dl_error *err);

/* A value was set: the fallback does not count. */
bool conf_is_set(const struct conf *conf, const char *section, const char *name);

/*
 * The value as text; NULL if there is none, not even a fallback.  A key that is not in the table
 * asserts.
 */
const char *conf_text(const struct conf *conf, const char *section, const char *name);

/* Of the kinds that say so above.  There must be a value or a fallback. */
uint64_t conf_number(const struct conf *conf, const char *section, const char *name);

#endif
