/* SPDX-License-Identifier: Apache-2.0 */
/*
 * waits.c: the metadata service is told what our requests wait for: it can't know which servers we
 * reach, and what nobody can settle.  For status and log: nobody waits for it, and nothing is lost
 * if it is.
 */
#include <stdio.h>

#include "client/volume_internal.h"
#include "common/align.h"

#define WAITS_AFTER_NS (2000 * CLIENT_NS_PER_MS)
#define WAITS_EVERY_NS (2000 * CLIENT_NS_PER_MS)

/* Passes over extents are no operations: they wait for a takeover by themselves. */
static bool
waits_of_takeover(const struct client_volume *volume, uint64_t now_ns, char *text,
                  size_t text_bytes, uint64_t *ret_waited_ns)
{
    uint64_t age_ns = client_takeover_age_ns(volume, now_ns);

    if (client_takeover_is_stuck(volume, now_ns, text, text_bytes, ret_waited_ns))
        return true;
    if (list_is_empty(&volume->extents) || age_ns < WAITS_AFTER_NS)
        return false;
    *ret_waited_ns = age_ns;
    return client_takeover_waits_for(volume, text, text_bytes);
}

/* What holds the volume up says more than what waits behind it.  False: nothing waits for long. */
static bool
waits_find(const struct client_volume *volume, uint64_t now_ns, char *text, size_t text_bytes,
           uint64_t *ret_waited_ns)
{
    char found_text[sizeof(volume->waits_text)];
    const struct io_op *op;
    uint64_t waited_ns = 0;
    bool found = false;

    list_for_each_entry (op, &volume->ops, node) {
        uint64_t op_ns = now_ns - op->start_ns;

        if (op_ns < WAITS_AFTER_NS || !op->type->waits_for(op, found_text, sizeof(found_text)))
            continue;
        waited_ns = max_u64(waited_ns, op_ns);
        if (found && !op->blocked)
            continue;
        (void)snprintf(text, text_bytes, "%s", found_text);
        found = true;
        if (op->blocked)
            break;
    }
    *ret_waited_ns = waited_ns;
    return found || waits_of_takeover(volume, now_ns, text, text_bytes, ret_waited_ns);
}

static void
waits_on_done(struct client_meta_call *call, int err)
{
    struct client_volume *volume = call->context;

    if (client_is_fence_error(err))
        client_volume_fence(volume, err, call->error.text);
    else if (err == -DL_E_OPCODE_UNKNOWN)
        volume->waits_unknown = true; /* a service of an older version */
    else if (err == 0)
        volume->waits_said = volume->waits_text[0] != '\0';
}

void
client_waits_tick(struct client_volume *volume)
{
    uint64_t now_ns = env_now_ns(volume->core->env), waited_ns = 0;

    if (now_ns < volume->waits_ns || volume->waits_call.core != NULL || volume->waits_unknown ||
        volume->fenced || volume->sm.state >= VOLUME_DETACHING ||
        (volume->flags & DLBLK_OPEN_READ_ONLY) != 0)
        return;
    volume->waits_ns = now_ns + WAITS_EVERY_NS / 2;
    if (!waits_find(volume, now_ns, volume->waits_text, sizeof(volume->waits_text), &waited_ns)) {
        if (!volume->waits_said)
            return;
        volume->waits_text[0] = '\0';
    }
    volume->waits_ns = now_ns + WAITS_EVERY_NS;
    volume->waits_request.volume = volume->id;
    volume->waits_request.lease_epoch = volume->lease_epoch;
    volume->waits_request.text = volume->waits_text;
    volume->waits_request.waited_ms = waited_ns / CLIENT_NS_PER_MS;
    client_meta_call_start(volume->core, &volume->waits_call);
}

void
client_waits_init(struct client_volume *volume)
{
    dl__owner_waits__init(&volume->waits_request);
    volume->waits_call.opcode = OP_OWNER_WAITS;
    volume->waits_call.timeout_ms = 2000;
    volume->waits_call.request = &volume->waits_request.base;
    volume->waits_call.reply_type = &dl__owner_waits_reply__descriptor;
    volume->waits_call.on_done = waits_on_done;
    volume->waits_call.context = volume;
}

void
client_waits_cancel(struct client_volume *volume)
{
    client_meta_call_cancel(&volume->waits_call);
}
