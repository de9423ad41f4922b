/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lib.c: libdlblk's clients: the thread with its loop, settings, events.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/lib_internal.h"
#include "common/conf.h"
#include "common/version.h"
#include "proto/control.pb-c.h"
#include "proto/data.h"

#define CONFIG_PATH  "/etc/dlblk/dlblk.conf"
#define HOST_BYTES   (DLBLK_NAME_BYTES_MAX + 1)
#define OWNER_BYTES  256
#define LOOP_ENTRIES 1024

const char *
dlblk_version(void)
{
    return dlblk_version_text("libdlblk");
}

/* --- calls --- */

static void
lib_call_on_loop(struct loop_message *message)
{
    struct lib_call *call = (struct lib_call *)message;

    call->start(call);
}

int
lib_call_wait(struct dlblk_client *client, struct lib_call *call, lib_call_fn start,
              struct dl_error *err)
{
    if (client->thread_runs && loop_is_owner(client->loop))
        return dl_error_set(err, -EDEADLK,
                            "this function waits, and can't be called from a callback");
    call->client = client;
    call->start = start;
    call->err = 0;
    call->message.fn = lib_call_on_loop;
    if (sem_init(&call->done, 0, 0) != 0)
        return dl_error_set(err, -errno, "no semaphore: %s", strerror(errno));
    loop_post(client->loop, &call->message);
    while (sem_wait(&call->done) != 0)
        dl_assert(errno == EINTR);
    (void)sem_destroy(&call->done);
    return call->err;
}

void
lib_call_done(struct lib_call *call, int err)
{
    call->err = err;
    (void)sem_post(&call->done);
}

static void
lib_meta_call_on_done(struct client_meta_call *meta, int err)
{
    struct lib_meta_call *call = meta->context;

    if (err == 0 && call->take != NULL) {
        err = call->take(call, meta->reply);
        if (err != 0)
            (void)dl_error_set(&meta->error, err, "the metadata service's answer can't be used: %s",
                               dl_err_str(err));
    }
    lib_call_done(&call->call, err);
}

static void
lib_meta_call_start(struct lib_call *base)
{
    struct lib_meta_call *call = (struct lib_meta_call *)base;

    client_meta_call_start(base->client->core, &call->meta);
}

int
lib_meta_call_wait(struct dlblk_client *client, struct lib_meta_call *call, uint16_t opcode,
                   const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
                   struct dl_error *err)
{
    int result;

    call->meta = (struct client_meta_call){
        .opcode = opcode,
        .request = request,
        .reply_type = reply_type,
        .on_done = lib_meta_call_on_done,
        .context = call,
    };
    result = lib_call_wait(client, &call->call, lib_meta_call_start, err);
    if (result != 0 && result != -EDEADLK && err != NULL)
        *err = call->meta.error;
    return result;
}

/* --- events --- */

static void
lib_on_event(void *context, enum dlblk_event_level level, const char *text)
{
    struct dlblk_client *client = context;

    if (client->on_event == NULL)
        return;
    client->event_depth++;
    client->on_event(client->event_context, level, text);
    client->event_depth--;
}

static void
lib_on_net_event(void *context, enum net_event_level level, const char *text)
{
    static const enum dlblk_event_level levels[] = {
        [NET_EVENT_DEBUG] = DLBLK_EVENT_DEBUG,
        [NET_EVENT_INFO] = DLBLK_EVENT_DEBUG,
        [NET_EVENT_WARNING] = DLBLK_EVENT_WARNING,
    };

    lib_on_event(context, levels[level], text);
}

/* --- settings --- */

/* The file, DLBLK_META, then what the caller says. */
static int
lib_read_conf(struct conf *conf, const struct dlblk_client_options *options, struct dl_error *err)
{
    const char *path = options->config_path != NULL ? options->config_path : CONFIG_PATH;
    int result = 0;

    if (options->config_path != NULL || access(path, F_OK) == 0)
        result = conf_read_file(conf, path, err);
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", getenv("DLBLK_META"), "DLBLK_META", err);
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", options->meta, "meta", err);
    return result;
}

/* What the caller says counts more than the file. */
static void
lib_override(uint32_t *duration_ms, uint32_t given_ms)
{
    if (given_ms != 0)
        *duration_ms = given_ms;
}

static int
lib_fill_core_options(struct client_core_options *core_options, const struct conf *conf,
                      const struct dlblk_client_options *options, struct dl_error *err)
{
    int result = client_core_options_read(core_options, conf, err);

    lib_override(&core_options->connect_timeout_ms, options->connect_timeout_ms);
    lib_override(&core_options->request_timeout_ms, options->request_timeout_ms);
    lib_override(&core_options->eject_lost_ms, options->eject_lost_ms);
    lib_override(&core_options->eject_silent_ms, options->eject_silent_ms);
    lib_override(&core_options->eject_slow_ms, options->eject_slow_ms);
    lib_override(&core_options->hedge_min_ms, options->hedge_min_ms);
    return result;
}

/* What this machine's chunkservers call it: reads prefer them. */
static void
lib_host_label(const struct conf *conf, char host[HOST_BYTES])
{
    const char *label = conf_text(conf, "chunkserver", "host");

    if (label != NULL)
        (void)snprintf(host, HOST_BYTES, "%s", label);
    else if (gethostname(host, HOST_BYTES - 1) != 0)
        host[0] = '\0';
    host[HOST_BYTES - 1] = '\0';
}

static int
lib_create_core(struct dlblk_client *client, const struct dlblk_client_options *options,
                struct dl_error *err)
{
    struct client_core_options core_options = {
        .on_event = lib_on_event,
        .event_context = client,
    };
    char host[HOST_BYTES];
    char owner[OWNER_BYTES];
    struct conf *conf;
    int result = conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count);

    if (result != 0)
        return dl_error_set(err, result, "no memory");
    result = lib_read_conf(conf, options, err);
    if (result == 0)
        result = lib_fill_core_options(&core_options, conf, options, err);
    if (result == 0) {
        lib_host_label(conf, host);
        (void)snprintf(owner, sizeof(owner), "%s %ld %s", host, (long)getpid(),
                       options->program != NULL ? options->program : "libdlblk");
        core_options.host = host;
        core_options.owner = owner;
        result = client_core_create(&client->core, net_env(client->net), &core_options);
        if (result != 0)
            (void)dl_error_set(err, result, "no memory");
    }
    conf_destroy(conf);
    return result;
}

/* --- the thread --- */

static void *
lib_thread(void *argument)
{
    struct dlblk_client *client = argument;
    int err = loop_run(client->loop);

    /* Without its ring nothing that was promised can be kept: callers would wait for ever. */
    dl_assert(err == 0);
    return NULL;
}

/* Signals are for the program's own threads. */
static int
lib_start_thread(struct dlblk_client *client, struct dl_error *err)
{
    sigset_t all;
    sigset_t before;
    int result;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&client->thread, NULL, lib_thread, client);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0)
        return dl_error_set(err, -result, "can't start a thread: %s", strerror(result));
    (void)pthread_setname_np(client->thread, "dlblk");
    client->thread_runs = true;
    return 0;
}

static void
lib_on_net_stopped(void *context)
{
    struct dlblk_client *client = context;

    loop_stop(client->loop);
}

static void
lib_on_core_stopped(void *context)
{
    struct dlblk_client *client = context;

    net_stop(client->net, lib_on_net_stopped, client);
}

static void
lib_on_stop(struct loop_message *message)
{
    struct lib_call *call = (struct lib_call *)message;

    client_core_stop(call->client->core, lib_on_core_stopped, call->client);
}

/* Close the links, end the loop.  Where its thread could not be started this one is the loop's. */
static void
lib_stop(struct dlblk_client *client)
{
    struct lib_call stop = {.client = client};

    stop.message.fn = lib_on_stop;
    loop_post(client->loop, &stop.message);
    if (client->thread_runs)
        (void)pthread_join(client->thread, NULL);
    else
        (void)loop_run(client->loop);
}

/* --- clients --- */

/* Any answer will do: it says that the metadata service is there. */
static int
lib_wait_connected(struct dlblk_client *client, struct dl_error *err)
{
    struct lib_meta_call call = {0};
    Dl__ClusterStatus request = DL__CLUSTER_STATUS__INIT;

    return lib_meta_call_wait(client, &call, OP_CLUSTER_STATUS, &request.base,
                              &dl__cluster_status_reply__descriptor, err);
}

static int
lib_create_shell(struct dlblk_client *client, struct dl_error *err)
{
    struct loop_options loop_options = {.entries = LOOP_ENTRIES};
    struct net_options net_options = {
        .on_event = lib_on_net_event,
        .event_context = client,
    };
    int result = loop_create(&client->loop, &loop_options, err);

    if (result == 0)
        result = net_create(&client->net, client->loop, NULL, &net_options, err);
    return result;
}

int
dlblk_client_create(struct dlblk_client **ret_client, const struct dlblk_client_options *options,
                    struct dl_error *err)
{
    static const struct dlblk_client_options defaults;
    struct dlblk_client *client = calloc(1, sizeof(*client));
    int result;

    if (client == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory");
    if (options == NULL)
        options = &defaults;
    client->on_event = options->on_event;
    client->event_context = options->event_context;
    result = lib_create_shell(client, err);
    if (result == 0)
        result = lib_create_core(client, options, err);
    if (result == 0)
        result = lib_start_thread(client, err);
    if (result == 0)
        result = lib_wait_connected(client, err);
    if (result != 0) {
        dlblk_client_destroy(client);
        return result;
    }
    *ret_client = client;
    return 0;
}

void
dlblk_client_destroy(struct dlblk_client *client)
{
    if (client == NULL)
        return;
    dl_assert(atomic_load(&client->volume_count) == 0);
    if (client->core != NULL)
        lib_stop(client);
    client_core_destroy(client->core);
    net_destroy(client->net);
    loop_destroy(client->loop);
    free(client);
}
