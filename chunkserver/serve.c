/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start:  lock the disk (waits) -> index -> engine (replays the journal) -> core -> listen -> ready
 * Stop:   no new connections -> the core finishes what is here, closes the links and stops the
 *         engine, which marks the disk clean -> the loop ends
 */
#include "chunkserver/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/disk_uring.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/index_rocksdb.h"
#include "chunkserver/engine/superblock.h"
#include "common/assert.h"
#include "common/clock.h"
#include "common/daemon.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/net.h"
#include "common/text.h"
#include "common/version.h"

#define STOP_TIMEOUT_MS  9000u
#define NOFILE_NEEDED    1024u
#define REPEATS_EVERY_NS NS_PER_S
#define DAY_NS           (86400 * NS_PER_S)

struct serve {
    const struct serve_options *options;
    struct loop *loop;
    struct daemon *daemon;
    struct net *net;
    struct net_listener *listener;
    struct disk_file *file;
    struct disk_uring *disk;
    struct index *index;
    struct engine *engine;
    struct chunkserver_core *core;
    struct loop_message index_message; /* "the index has finished something" */
    struct env_timer repeats;
    bool said_stopped;
    int status;
};

static void
serve_log_error(const struct dl_error *err)
{
    log_error("chunkserver", NULL, "%s", err->text);
    if (err->hint[0] != '\0')
        log_error("chunkserver", NULL, "%s", err->hint);
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

/* --- the index --- */

static void
serve_on_index_message(struct loop_message *message)
{
    struct serve *serve = list_entry(message, struct serve, index_message);

    (void)index_rocksdb_poll(serve->index);
}

/* From the index's threads.  Once per poll, so that one message is enough. */
static void
serve_post_index(void *context)
{
    struct serve *serve = context;

    loop_post(serve->loop, &serve->index_message);
}

/* --- the end --- */

static void
serve_on_net_stopped(void *context)
{
    struct serve *serve = context;

    loop_stop(serve->loop);
}

static void
serve_on_core_stopped(void *context, int err)
{
    struct serve *serve = context;

    if (err != 0) {
        log_error(
            "chunkserver", serve->options->disk_path,
            "could not be brought to a clean end: %s; the journal is replayed at the next start",
            dl_err_str(err));
        serve->status = EXIT_FAILURE;
    }
    net_stop(serve->net, serve_on_net_stopped, serve);
}

static void
serve_on_signal(void *context, int signal)
{
    struct serve *serve = context;

    log_info("chunkserver", NULL, "signal %d: stopping", signal);
    daemon_stopping(serve->daemon, STOP_TIMEOUT_MS);
    if (serve->listener != NULL)
        net_listener_close(serve->listener);
    serve->listener = NULL;
    chunkserver_core_stop(serve->core, serve_on_core_stopped, serve);
}

/* Whoever looks for the reason looks here. */
static void
serve_say_stopped(struct serve *serve)
{
    struct chunk_store *store = engine_store(serve->engine);
    struct store_stats stats = {0};
    const char *text = index_rocksdb_error_text(serve->index);

    store->ops->get_stats(store, &stats);
    if (stats.stopped == 0 || serve->said_stopped)
        return;
    serve->said_stopped = true;
    log_error("chunkserver", serve->options->disk_path, "TAKES NO WRITES ANY MORE: %s%s%.300s",
              dl_err_str(stats.stopped), text[0] != '\0' ? "; the index: " : "", text);
    log_error("chunkserver", serve->options->disk_path,
              "replace the drive, or format it anew (dlblk-disk format --force); what it had is "
              "recovered from the other copies");
}

static void
serve_on_repeats(struct env_timer *timer)
{
    struct serve *serve = list_entry(timer, struct serve, repeats);

    log_flush_repeats(clock_monotonic_ns());
    serve_say_stopped(serve);
    loop_timer_start(serve->loop, timer, REPEATS_EVERY_NS);
}

/* --- the beginning --- */

static void
serve_on_lock_wait(void *context, const char *path)
{
    const struct serve *serve = context;

    log_warning("chunkserver", path, "in use by another process: waiting up to %s for it to end",
                text_of_duration(serve->options->lock_wait_ms * NS_PER_MS).text);
}

/* The start writes both copies anew; whoever has the disk should know that it loses bits. */
static void
serve_warn_of_superblock(const struct serve *serve)
{
    struct superblock_copy copies[SUPERBLOCK_COPIES];

    superblock_copies_read_now(disk_file_disk(serve->file), copies);
    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++)
        if (!copies[i].valid)
            log_warning("chunkserver", serve->options->disk_path,
                        "the copy of the superblock at %" PRIu64
                        " is damaged: %s; it is written anew from the other one",
                        copies[i].offset_bytes, copies[i].problem);
}

/* An index without which nothing starts. */
static void
serve_explain_index(const struct serve *serve, struct dl_error *err)
{
    const char *text = index_rocksdb_error_text(serve->index);

    if (err->code != -DL_E_INDEX_CORRUPT && err->code != -DL_E_INDEX_MISMATCH)
        return;
    if (text[0] != '\0')
        dl_error_prefix(err, "%s: %.200s: ", serve->options->index_path, text);
    else
        dl_error_prefix(err, "%s: ", serve->options->index_path);
    if (err->hint[0] == '\0')
        dl_error_hint(err, "if its volumes have other copies, format the disk anew with dlblk-disk "
                           "format --force: what it had is recovered from them");
}

static int
serve_open_store(struct serve *serve, struct dl_error *err)
{
    struct disk_file_options file_options = {
        .wait_ms = serve->options->lock_wait_ms,
        .on_wait = serve_on_lock_wait,
        .on_wait_context = serve,
    };
    struct index_rocksdb_options index_options = {
        .path = serve->options->index_path,
        .post = serve_post_index,
        .post_context = serve,
    };
    struct engine_options engine_options = {.cache_bytes = serve->options->cache_bytes};
    struct superblock superblock;
    int result;

    result = disk_file_open(serve->options->disk_path, &file_options, &serve->file, err);
    /* Whether it is a disk at all is said before what is wrong with its index. */
    if (result == 0) {
        result = superblock_load_now(disk_file_disk(serve->file), &superblock, err);
        if (result != 0)
            dl_error_prefix(err, "%s: ", serve->options->disk_path);
        else
            serve_warn_of_superblock(serve);
    }
    if (result == 0)
        result = disk_uring_create(&serve->disk, serve->loop, disk_file_disk(serve->file),
                                   disk_file_fd(serve->file), err);
    serve->index_message.fn = serve_on_index_message;
    if (result == 0)
        result = index_rocksdb_open(&index_options, &serve->index, err);
    if (result == 0)
        result = engine_open(&serve->engine, net_env(serve->net), disk_uring_disk(serve->disk),
                             serve->index, &engine_options, err);
    if (result != 0 && serve->index != NULL)
        serve_explain_index(serve, err);
    return result;
}

static void
serve_say_opened(const struct serve *serve, const struct engine_identity *identity)
{
    const struct engine_counters *counters = engine_counters(serve->engine);

    log_info("chunkserver", serve->options->disk_path,
             "start %" PRIu64 ", %s; %" PRIu64 " journal blocks replayed, %" PRIu64 " dropped",
             identity->incarnation,
             identity->was_clean ? "stopped cleanly before" : "not stopped cleanly before",
             counters->replayed_blocks, counters->replay_dropped_blocks);
    if (identity->damaged)
        log_error("chunkserver", serve->options->disk_path,
                  "THE JOURNAL IS DAMAGED: acknowledged writes may be missing on this disk");
}

static void
serve_warn_of_address(const struct dl_address *address)
{
    if (dl_address_is_loopback(address))
        return;
    log_warning("chunkserver", NULL,
                "LISTENING ON %s, AND THERE IS NO AUTHENTICATION YET: everybody who can reach this "
                "address can read "
                "and change all data",
                dl_address_format(address).text);
    log_warning("chunkserver", NULL,
                "let only the cluster's own machines reach it: a firewall, a separate network");
}

/*
 * The core needs to know where clients reach it before it says so to the metadata service, the
 * listener needs the core: so the listener comes first on paper only.  A port that was left to the
 * kernel (0) can't be advertised.
 */
static int
serve_start_core(struct serve *serve, struct dl_error *err)
{
    const struct serve_options *options = serve->options;
    struct chunkserver_options core_options = {
        .meta_count = options->meta_count,
        .host = options->host,
        .rack = options->rack,
        .clique = options->clique,
        .scrub_period_ns = options->scrub_days * DAY_NS,
    };
    struct dl_address_text listen = dl_address_format(&options->listen);
    struct engine_identity identity;
    ssize_t random_bytes;
    int result;

    engine_identity(serve->engine, &identity);
    serve_say_opened(serve, &identity);
    memcpy(core_options.cluster_id, identity.cluster_id, CHUNKSERVER_UUID_BYTES);
    memcpy(core_options.server_uuid, identity.disk_uuid, CHUNKSERVER_UUID_BYTES);
    random_bytes = getrandom(core_options.instance, CHUNKSERVER_UUID_BYTES, 0);
    dl_assert(random_bytes == CHUNKSERVER_UUID_BYTES);
    core_options.start_count = identity.incarnation;
    core_options.journal_position = identity.journal_position;
    for (size_t i = 0; i < options->meta_count; i++)
        core_options.metas[i] = options->metas[i];
    core_options.advertise = options->advertise != NULL ? options->advertise : listen.text;
    result = chunkserver_core_create(&serve->core, net_env(serve->net), engine_store(serve->engine),
                                     &core_options);
    if (result != 0)
        return dl_error_set(err, result, "%s: can't start to serve: %s", options->disk_path,
                            dl_err_str(result));
    return net_listen(serve->net, &options->listen, chunkserver_core_events(), serve->core,
                      &serve->listener, err);
}

static int
serve_start(struct serve *serve, struct dl_error *err)
{
    struct net_options net_options = {.on_event = serve_on_net_event};
    int result;

    result = limits_raise_nofile(NOFILE_NEEDED, err);
    if (result == 0)
        result = loop_create(&serve->loop, NULL, err);
    if (result == 0)
        result = daemon_create(&serve->daemon, serve->loop, serve_on_signal, serve, err);
    if (result == 0)
        result = net_create(&serve->net, serve->loop, NULL, &net_options, err);
    if (result == 0)
        result = serve_open_store(serve, err);
    if (result == 0)
        result = serve_start_core(serve, err);
    return result;
}

static void
serve_run(struct serve *serve)
{
    const struct dl_address *address = net_listener_address(serve->listener);
    char status[320];

    serve_warn_of_address(address);
    (void)snprintf(status, sizeof(status), "listening on %s", dl_address_format(address).text);
    log_info("chunkserver", serve->options->disk_path, "%s, %s", status,
             dlblk_version_text("dlblk-chunkserver"));
    serve->repeats.fn = serve_on_repeats;
    loop_timer_start(serve->loop, &serve->repeats, REPEATS_EVERY_NS);
    daemon_ready(serve->daemon, status);
    if (loop_run(serve->loop) != 0)
        serve->status = EXIT_FAILURE;
    loop_timer_stop(serve->loop, &serve->repeats);
}

/* A start that failed in the middle ends here as a crash would: nothing on the disk needs more. */
int
chunkserver_serve(const struct serve_options *options)
{
    struct serve serve = {.options = options, .status = EXIT_SUCCESS};
    struct dl_error err;

    if (serve_start(&serve, &err) != 0) {
        serve_log_error(&err);
        log_flush_repeats(UINT64_MAX);
        _Exit(EXIT_FAILURE);
    }
    serve_run(&serve);
    chunkserver_core_destroy(serve.core);
    engine_destroy(serve.engine);
    serve.index->ops->close(serve.index);
    disk_uring_destroy(serve.disk);
    disk_file_close(serve.file);
    net_destroy(serve.net);
    daemon_destroy(serve.daemon);
    loop_destroy(serve.loop);
    log_info("chunkserver", options->disk_path, "stopped");
    log_flush_repeats(UINT64_MAX);
    return serve.status;
}
