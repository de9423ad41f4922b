/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/attachment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/core.h"
#include "client/volume.h"
#include "common/assert.h"
#include "common/conf.h"
#include "common/log.h"
#include "common/net.h"
#include "common/text.h"
#include "proto/control.pb-c.h"
#include "proto/data.h"

#define CONFIG_PATH "/etc/dlblk/dlblk.conf"
#define HOST_BYTES  (DLBLK_NAME_BYTES_MAX + 1)
#define OWNER_BYTES 256
/* host and process: how metadata shows an owner */
#define OWNER_FORMAT "%s %d dlblk-ublk"

struct attachment {
    struct loop *loop;
    struct net *net;
    struct client_core *core;
    struct client_volume *volume;
    char *name;
    uint32_t flags;
    uint32_t inherit_lease_epoch;
    char inherit_owner[OWNER_BYTES];
    int (*on_inherit)(void *context, uint32_t lease_epoch, struct dl_error *err);
    void *inherit_context;
    struct client_meta_call info_call;
    Dl__VolumeInfo info_request;
    struct client_volume_open open;
    attachment_fn on_done;
    void *context;
    void (*on_stopped)(void *context);
    void *stopped_context;
};

/* --- events --- */

static void
attachment_on_event(void *context, enum dlblk_event_level level, const char *text)
{
    static const enum log_level levels[] = {
        [DLBLK_EVENT_DEBUG] = LOG_LEVEL_DEBUG,
        [DLBLK_EVENT_INFO] = LOG_LEVEL_INFO,
        [DLBLK_EVENT_WARNING] = LOG_LEVEL_WARNING,
        [DLBLK_EVENT_ERROR] = LOG_LEVEL_ERROR,
    };
    const struct attachment *attachment = context;

    log_write(levels[level], "volume", attachment->name, "%s", text);
}

static void
attachment_on_net_event(void *context, enum net_event_level level, const char *text)
{
    (void)context;
    log_write(level == NET_EVENT_WARNING ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "net", NULL, "%s",
              text);
}

static void
attachment_on_resize(void *context, uint64_t size_bytes)
{
    const struct attachment *attachment = context;

    log_warning("volume", attachment->name,
                "has grown to %s: the block device keeps its size until it is detached and "
                "attached again",
                text_of_size(size_bytes).text);
}

/* --- settings --- */

static int
attachment_read_conf(struct conf *conf, const struct attachment_options *options,
                     struct dl_error *err)
{
    int result = 0;

    if (options->config != NULL || access(CONFIG_PATH, F_OK) == 0)
        result = conf_read_file(conf, options->config != NULL ? options->config : CONFIG_PATH, err);
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", getenv("DLBLK_META"), "DLBLK_META", err);
    if (result == 0)
        result = conf_set(conf, "cluster", "meta", options->meta, "--meta", err);
    if (result == 0)
        result = conf_set(conf, "client", "connect_timeout", options->connect_timeout, "--timeout",
                          err);
    return result;
}

static int
attachment_create_core(struct attachment *attachment, const struct conf *conf, int inherit_pid,
                       struct dl_error *err)
{
    const char *label = conf_text(conf, "chunkserver", "host");
    char host[HOST_BYTES] = "";
    char owner[OWNER_BYTES];
    struct client_core_options options = {
        .host = host,
        .owner = owner,
        .on_event = attachment_on_event,
        .event_context = attachment,
    };
    int result = client_core_options_read(&options, conf, err);

    if (result != 0)
        return result;
    if (label != NULL)
        (void)snprintf(host, sizeof(host), "%s", label);
    else if (gethostname(host, sizeof(host) - 1) != 0)
        host[0] = '\0';
    (void)snprintf(owner, sizeof(owner), OWNER_FORMAT, host, (int)getpid());
    (void)snprintf(attachment->inherit_owner, sizeof(attachment->inherit_owner), OWNER_FORMAT, host,
                   inherit_pid);
    result = client_core_create(&attachment->core, net_env(attachment->net), &options);
    return result == 0 ? 0 : dl_error_set(err, result, "no memory");
}

int
attachment_create(struct attachment **ret_attachment, struct loop *loop,
                  const struct attachment_options *options, struct dl_error *err)
{
    struct net_options net_options = {.on_event = attachment_on_net_event};
    struct attachment *attachment = calloc(1, sizeof(*attachment));
    struct conf *conf = NULL;
    int result;

    if (attachment == NULL || (attachment->name = strdup(options->volume)) == NULL ||
        conf_create(&conf, dlblk_conf_keys, dlblk_conf_key_count) != 0) {
        attachment_destroy(attachment);
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory");
    }
    attachment->loop = loop;
    attachment->flags = (options->read_only ? DLBLK_OPEN_READ_ONLY : 0u) |
                        (options->steal ? DLBLK_OPEN_STEAL : 0u);
    attachment->inherit_lease_epoch = options->inherit_lease_epoch;
    attachment->on_inherit = options->on_inherit;
    attachment->inherit_context = options->context;
    result = attachment_read_conf(conf, options, err);
    if (result == 0)
        result = net_create(&attachment->net, loop, NULL, &net_options, err);
    if (result == 0)
        result = attachment_create_core(attachment, conf, options->inherit_pid, err);
    conf_destroy(conf);
    if (result != 0) {
        attachment_destroy(attachment);
        return result;
    }
    *ret_attachment = attachment;
    return 0;
}

void
attachment_destroy(struct attachment *attachment)
{
    if (attachment == NULL)
        return;
    client_core_destroy(attachment->core);
    net_destroy(attachment->net);
    free(attachment->name);
    free(attachment);
}

/* --- open --- */

static void
attachment_on_open(struct client_volume_open *open, int err)
{
    struct attachment *attachment = open->context;

    if (err == 0) {
        attachment->volume = open->volume;
        client_volume_on_resize(open->volume, attachment_on_resize, attachment);
    }
    attachment->on_done(attachment->context, err, &open->error);
}

static void
attachment_open_volume(struct attachment *attachment)
{
    attachment->open = (struct client_volume_open){
        .name = attachment->name,
        .flags = attachment->flags,
        .on_done = attachment_on_open,
        .context = attachment,
    };
    client_volume_open(attachment->core, &attachment->open);
}

/*
 * Between this answer and the ATTACH somebody else can take the volume, and would lose it again.
 * That is what two --steal at the same time do; each of them has the volume for itself while it has
 * it.
 */
static int
attachment_check_heir(const struct attachment *attachment, const Dl__Volume *volume,
                      struct dl_error *err)
{
    const char *owner = volume->owner != NULL ? volume->owner : "";

    if (volume->lease_epoch == attachment->inherit_lease_epoch ||
        strcmp(owner, attachment->inherit_owner) == 0)
        return 0;
    (void)dl_error_set(err, -DL_E_VOLUME_BUSY,
                       "volume %s has lease %u, and this device's server had lease %u: it was "
                       "attached elsewhere since, by %s",
                       attachment->name, volume->lease_epoch, attachment->inherit_lease_epoch,
                       owner[0] != '\0' ? owner : "somebody who has detached it again");
    dl_error_hint(err, "the data behind this device may have changed: dlblk detach --force; or "
                       "take the volume back: dlblk-ublk recover --steal");
    return -DL_E_VOLUME_BUSY;
}

static void
attachment_on_info(struct client_meta_call *call, int err)
{
    struct attachment *attachment = call->context;
    const Dl__VolumeReply *reply = (const Dl__VolumeReply *)call->reply;

    if (err == 0 && reply->volume == NULL) {
        err = -DL_E_MESSAGE_MALFORMED;
        (void)dl_error_set(&call->error, err, "volume %s: %s", attachment->name, dl_err_str(err));
    } else if (err == 0) {
        err = attachment_check_heir(attachment, reply->volume, &call->error);
        if (err == 0 && attachment->on_inherit != NULL)
            err = attachment->on_inherit(attachment->inherit_context, reply->volume->lease_epoch,
                                         &call->error);
    }
    if (err != 0) {
        attachment->on_done(attachment->context, err, &call->error);
        return;
    }
    attachment->flags |= DLBLK_OPEN_STEAL;
    attachment_open_volume(attachment);
}

void
attachment_open(struct attachment *attachment, attachment_fn on_open, void *context)
{
    bool steal = (attachment->flags & DLBLK_OPEN_STEAL) != 0;
    bool read_only = (attachment->flags & DLBLK_OPEN_READ_ONLY) != 0;

    attachment->on_done = on_open;
    attachment->context = context;
    if (attachment->inherit_lease_epoch == 0 || steal || read_only) {
        attachment_open_volume(attachment);
        return;
    }
    dl__volume_info__init(&attachment->info_request);
    attachment->info_request.name = attachment->name;
    attachment->info_call = (struct client_meta_call){
        .opcode = OP_VOLUME_INFO,
        .request = &attachment->info_request.base,
        .reply_type = &dl__volume_reply__descriptor,
        .on_done = attachment_on_info,
        .context = attachment,
    };
    client_meta_call_start(attachment->core, &attachment->info_call);
}

/* --- in use --- */

void
attachment_get_geometry(const struct attachment *attachment,
                        struct dlblk_volume_geometry *ret_geometry)
{
    client_volume_get_geometry(attachment->volume, ret_geometry);
}

uint32_t
attachment_lease_epoch(const struct attachment *attachment)
{
    return client_volume_lease_epoch(attachment->volume);
}

void
attachment_submit(struct attachment *attachment, struct dlblk_request *request)
{
    client_volume_submit(attachment->volume, request);
}

/* --- the end --- */

static void
attachment_on_closed(void *context, int err, const struct dl_error *error)
{
    struct attachment *attachment = context;

    attachment->volume = NULL;
    attachment->on_done(attachment->context, err, error);
}

void
attachment_close(struct attachment *attachment, attachment_fn on_closed, void *context)
{
    dl_assert(attachment->volume != NULL);
    attachment->on_done = on_closed;
    attachment->context = context;
    client_volume_close(attachment->volume, attachment_on_closed, attachment);
}

static void
attachment_on_net_stopped(void *context)
{
    struct attachment *attachment = context;

    attachment->on_stopped(attachment->stopped_context);
}

static void
attachment_on_core_stopped(void *context)
{
    struct attachment *attachment = context;

    net_stop(attachment->net, attachment_on_net_stopped, attachment);
}

void
attachment_stop(struct attachment *attachment, void (*on_stopped)(void *context), void *context)
{
    attachment->on_stopped = on_stopped;
    attachment->stopped_context = context;
    client_core_stop(attachment->core, attachment_on_core_stopped, attachment);
}
