/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conf_keys.c: every key of /etc/dlblk/dlblk.conf.  Keys of a section stand together; dlblk.conf(5)
 * explains them.
 */
#include "common/address.h"
#include "common/conf.h"

#define MIB       (1ull << 20)
#define TIB       (1ull << 40)
#define SECOND_MS 1000ull
#define DAY_MS    (86400 * SECOND_MS)

const struct conf_key dlblk_conf_keys[] = {
    {"cluster", "meta", CONF_ADDRESSES, .default_port = DLBLK_PORT_META, .fallback = "127.0.0.1"},

    {"client", "connect_timeout", CONF_DURATION, .min = 1, .max = DAY_MS, .fallback = "10s"},
    {"client", "request_timeout", CONF_DURATION, .min = 1, .max = DAY_MS},
    /* A server is pinged when it was silent for a second, and needs a moment to answer. */
    {"client", "eject_lost", CONF_LIMIT, .min = 10, .max = DAY_MS},
    {"client", "eject_silent", CONF_LIMIT, .min = 2 * SECOND_MS, .max = DAY_MS},
    {"client", "eject_slow", CONF_LIMIT, .min = SECOND_MS, .max = DAY_MS},
    {"client", "hedge_min", CONF_LIMIT, .min = 1, .max = DAY_MS},

    {"meta", "listen", CONF_ADDRESS, .default_port = DLBLK_PORT_META, .fallback = "127.0.0.1"},
    {"meta", "path", CONF_TEXT, .fallback = "/var/lib/dlblk/meta"},
    {"meta", "out_after", CONF_LIMIT, .min = 10 * SECOND_MS, .max = 30 * DAY_MS},
    {"meta", "recovery_per_server", CONF_NUMBER, .min = 1, .max = 256},
    {"meta", "rebalance", CONF_BOOL, .fallback = "on"},
    {"meta", "log_level", CONF_LEVEL, .fallback = "info"},

    {"chunkserver", "listen", CONF_ADDRESS, .default_port = DLBLK_PORT_CHUNKSERVER,
     .fallback = "127.0.0.1"},
    {"chunkserver", "path", CONF_TEXT, .fallback = NULL},
    {"chunkserver", "index", CONF_TEXT, .fallback = NULL},
    {"chunkserver", "advertise", CONF_ADDRESS, .default_port = DLBLK_PORT_CHUNKSERVER,
     .fallback = NULL},
    {"chunkserver", "lock_wait", CONF_DURATION, .min = 0, .max = DAY_MS, .fallback = "30s"},
    {"chunkserver", "cache", CONF_SIZE, .min = 4 * MIB, .max = TIB, .fallback = "256M"},
    {"chunkserver", "host", CONF_NAME, .fallback = NULL},
    {"chunkserver", "rack", CONF_NAME, .fallback = NULL},
    {"chunkserver", "clique", CONF_NAME, .fallback = NULL},
    {"chunkserver", "scrub_days", CONF_NUMBER, .min = 0, .max = 3650, .fallback = "14"},
    {"chunkserver", "log_level", CONF_LEVEL, .fallback = "info"},
};

const size_t dlblk_conf_key_count = sizeof(dlblk_conf_keys) / sizeof(dlblk_conf_keys[0]);
