/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start:  open the store (blocks) -> core loads -> listen -> ready
 * Stop:   no new connections -> the core finishes its commits -> links close -> the loop ends
 */
#include "meta/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/daemon.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/net.h"
#include "common/version.h"
#include "meta/core.h"
#include "meta/offline.h"
#include "meta/store_rocksdb.h"

#define STOP_TIMEOUT_MS  9000u
#define NOFILE_NEEDED    1024u
#define REPEATS_EVERY_NS NS_PER_S
#define RECEIVE_BYTES    (64u << 10) /* of each connection: requests are small */

struct serve {
    const struct serve_options *options;
    struct loop *loop;
    struct daemon *daemon;
    struct net *net;
    struct net_listener *listener;
    struct store *store;
    struct meta_core *core;
    struct env_timer repeats;
    bool stopping;
    int status;
};

static void
serve_log_error(const struct dl_error *err)
{
    log_error("meta", NULL, "%s", err->text);
    if (err->hint[0] != '\0')
        log_error("meta", NULL, "%s", err->hint);
}

/* --- what the core says --- */

static void
serve_on_log(void *context, enum meta_log_level level, const char *component, const char *text)
{
    static const enum log_level levels[] = {
        [META_LOG_DEBUG] = LOG_LEVEL_DEBUG,
        [META_LOG_INFO] = LOG_LEVEL_INFO,
        [META_LOG_WARNING] = LOG_LEVEL_WARNING,
        [META_LOG_ERROR] = LOG_LEVEL_ERROR,
    };

    (void)context;
    log_write(levels[level], "meta", component, "%s", text);
}

static void
serve_on_net_event(void *context, enum net_event_level level, const char *text)
{
    (void)context;
    log_write(level == NET_EVENT_WARNING ? LOG_LEVEL_WARNING
              : level == NET_EVENT_INFO  ? LOG_LEVEL_INFO
                                         : LOG_LEVEL_DEBUG,
              "net", NULL, "%s", text);
}

/* Nothing can be made good here: what is committed is durable, a restart loads it. */
static void
serve_on_fatal(void *context, int err, const char *text, const char *hint)
{
    struct serve *serve = context;
    const char *failure = store_rocksdb_failure_text(serve->store);

    (void)err;
    log_error("meta", NULL, "%s%s%s", text, failure[0] != '\0' ? ": " : "", failure);
    if (hint[0] != '\0')
        log_error("meta", NULL, "%s", hint);
    log_flush_repeats(UINT64_MAX);
    _Exit(EXIT_FAILURE);
}

static void
serve_warn_of_address(const struct dl_address *address)
{
    if (dl_address_is_loopback(address))
        return;
    log_warning("meta", NULL,
                "LISTENING ON %s, AND THERE IS NO AUTHENTICATION YET: "
                "everybody who can reach this address can read, "
                "change and delete every volume",
                dl_address_format(address).text);
    log_warning("meta", NULL,
                "let only the cluster's own machines reach it: a firewall, a separate network");
}

static void
serve_on_ready(void *context)
{
    struct serve *serve = context;
    const struct dl_address *address;
    struct dl_error err;
    char status[320];

    if (serve->stopping)
        return;
    if (net_listen(serve->net, &serve->options->listen, &meta_link_events, serve->core,
                   &serve->listener, &err) < 0) {
        serve_log_error(&err);
        log_flush_repeats(UINT64_MAX);
        _Exit(EXIT_FAILURE);
    }
    address = net_listener_address(serve->listener);
    serve_warn_of_address(address);
    (void)snprintf(status, sizeof(status), "listening on %s", dl_address_format(address).text);
    log_info("meta", NULL, "%s, directory %s, %s", status, serve->options->dir,
             dlblk_version_text("dlblk-meta"));
    daemon_ready(serve->daemon, status);
}

/* --- the end --- */

static void
serve_on_net_stopped(void *context)
{
    struct serve *serve = context;

    loop_stop(serve->loop);
}

static void
serve_on_core_stopped(void *context)
{
    struct serve *serve = context;

    net_stop(serve->net, serve_on_net_stopped, serve);
}

static void
serve_on_signal(void *context, int signal)
{
    struct serve *serve = context;

    log_info("meta", NULL, "signal %d: stopping", signal);
    serve->stopping = true;
    daemon_stopping(serve->daemon, STOP_TIMEOUT_MS);
    if (serve->listener != NULL)
        net_listener_close(serve->listener);
    serve->listener = NULL;
    meta_core_stop(serve->core, serve_on_core_stopped, serve);
}

static void
serve_on_repeats(struct env_timer *timer)
{
    struct serve *serve = list_entry(timer, struct serve, repeats);

    log_flush_repeats(clock_monotonic_ns());
    loop_timer_start(serve->loop, timer, REPEATS_EVERY_NS);
}

/* --- the beginning --- */

static void
serve_post(void *context, struct loop_message *message)
{
    loop_post(context, message);
}

static int
serve_start(struct serve *serve, struct dl_error *err)
{
    struct store_rocksdb_options store_options = {.post = serve_post};
    struct net_options net_options = {
        .receive_buffer_bytes = RECEIVE_BYTES,
        .links_max = META_SESSIONS_MAX,
        .on_event = serve_on_net_event,
    };
    struct meta_options core_options = {
        .out_after_ns = serve->options->out_after_ns,
        .recovery_per_server = serve->options->recovery_per_server,
        .rebalance = serve->options->rebalance,
        .on_ready = serve_on_ready,
        .on_fatal = serve_on_fatal,
        .on_log = serve_on_log,
        .context = serve,
    };
    char path[4096];
    int result;

    result = limits_raise_nofile(NOFILE_NEEDED, err);
    if (result == 0)
        result = offline_store_path(serve->options->dir, path, sizeof(path), err);
    if (result == 0)
        result = loop_create(&serve->loop, NULL, err);
    if (result == 0)
        result = daemon_create(&serve->daemon, serve->loop, serve_on_signal, serve, err);
    if (result == 0)
        result = net_create(&serve->net, serve->loop, NULL, &net_options, err);
    store_options.post_context = serve->loop;
    if (result == 0)
        result = store_rocksdb_open(&serve->store, path, &store_options, err);
    if (result == 0) {
        serve->core = meta_core_create(net_env(serve->net), serve->store, &core_options);
        serve->repeats.fn = serve_on_repeats;
        loop_timer_start(serve->loop, &serve->repeats, REPEATS_EVERY_NS);
    }
    return result;
}

int
meta_serve(const struct serve_options *options)
{
    struct serve serve = {.options = options};
    struct dl_error err;
    int result = serve_start(&serve, &err);

    if (result == 0)
        result = loop_run(serve.loop);
    else
        serve_log_error(&err);
    if (serve.core != NULL) {
        loop_timer_stop(serve.loop, &serve.repeats);
        meta_core_destroy(serve.core);
        log_info("meta", NULL, "stopped");
    }
    store_rocksdb_close(serve.store);
    net_destroy(serve.net);
    daemon_destroy(serve.daemon);
    loop_destroy(serve.loop);
    log_flush_repeats(UINT64_MAX);
    return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
