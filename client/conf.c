/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conf.c: the configuration's keys for clients.  What is not set there keeps the core's default.
 */
#include "common/conf.h"
#include "client/core.h"

static_assert(CONF_NEVER == CLIENT_NEVER, "a limit that is set to never is one of the core's");

static void
read_duration(const struct conf *conf, const char *name, uint32_t *duration_ms)
{
    if (conf_is_set(conf, "client", name))
        *duration_ms = (uint32_t)conf_number(conf, "client", name);
}

int
client_core_options_read(struct client_core_options *options, const struct conf *conf,
                         struct dl_error *err)
{
    read_duration(conf, "connect_timeout", &options->connect_timeout_ms);
    read_duration(conf, "request_timeout", &options->request_timeout_ms);
    read_duration(conf, "eject_lost", &options->eject_lost_ms);
    read_duration(conf, "eject_silent", &options->eject_silent_ms);
    read_duration(conf, "eject_slow", &options->eject_slow_ms);
    read_duration(conf, "hedge_min", &options->hedge_min_ms);
    return dl_address_parse_list(conf_text(conf, "cluster", "meta"), DLBLK_PORT_META, options->meta,
                                 CLIENT_META_ADDRESSES_MAX, &options->meta_count, err);
}
