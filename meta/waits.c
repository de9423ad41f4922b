/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OWNER_WAITS: what the requests of a volume's owner wait for, as it says itself: a server that it
 * alone can't reach, a range that nobody can settle.  For status and log, nothing else depends on
 * it.  An owner that says nothing for FORGET_NS waits no more, or is gone.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/align.h"
#include "common/text.h"
#include "meta/health.h"

#define FORGET_NS (6 * NS_PER_S)
/* Who waits again and again has one event, at most, in this time. */
#define EVENT_NS (60 * NS_PER_S)

static bool
waits_are_current(const struct meta_core *core, const struct meta_volume *volume)
{
    const struct owner_waits *waits = &volume->waits;

    return waits->text[0] != '\0' && volume->desc.owned &&
           volume->desc.lease_epoch == waits->lease_epoch &&
           env_now_ns(core->env) - waits->heard_ns < FORGET_NS;
}

bool
meta_waits_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                size_t text_bytes)
{
    if (!waits_are_current(core, volume))
        return false;
    (void)snprintf(text, text_bytes, "volume %s: requests of its owner, %s, wait for %s: %s",
                   volume->desc.name, text_quote(volume->desc.owner).text,
                   text_of_duration(env_now_ns(core->env) - volume->waits.since_ns).text,
                   volume->waits.text);
    return true;
}

uint64_t
meta_waits_since_ms(const struct meta_core *core, const struct meta_volume *volume)
{
    uint64_t now_ms = core->env->ops->wall_ms(core->env);
    uint64_t waited_ms;

    if (!waits_are_current(core, volume))
        return 0;
    waited_ms = (env_now_ns(core->env) - volume->waits.since_ns) / NS_PER_MS;
    return now_ms - min_u64(now_ms, waited_ms);
}

static void
waits_reply(struct meta_op *op)
{
    Dl__OwnerWaitsReply reply = DL__OWNER_WAITS_REPLY__INIT;

    meta_op_reply(op, &reply.base);
}

static void
waits_take(struct meta_op *op, struct meta_volume *volume)
{
    const Dl__OwnerWaits *message = (const Dl__OwnerWaits *)op->message;
    struct owner_waits *waits = &volume->waits;
    uint64_t now_ns = env_now_ns(op->core->env);

    meta_text_clean_to(waits->text, sizeof(waits->text), message->text);
    waits->lease_epoch = message->lease_epoch;
    waits->heard_ns = now_ns;
    waits->since_ns = now_ns - min_u64(now_ns, message->waited_ms * NS_PER_MS);
}

void
meta_run_owner_waits(struct meta_op *op)
{
    const Dl__OwnerWaits *message = (const Dl__OwnerWaits *)op->message;
    struct meta_volume *volume = meta_op_volume_by_lease(op, message->volume, message->lease_epoch);
    struct owner_waits *waits;
    uint64_t now_ns;
    bool is_new, is_end;

    if (volume == NULL)
        return;
    now_ns = env_now_ns(op->core->env);
    waits = &volume->waits;
    is_new = !waits_are_current(op->core, volume) && message->text[0] != '\0' &&
             (waits->event_ns == 0 || now_ns - waits->event_ns >= EVENT_NS);
    waits->told = waits->told && waits->lease_epoch == message->lease_epoch;
    is_end = waits->told && message->text[0] == '\0';
    if (!is_new && !is_end) {
        waits_take(op, volume);
        waits_reply(op);
        return;
    }
    if (!meta_op_take(op, &op->core->recovery->event_serial))
        return;
    waits->told = is_new;
    if (is_end) {
        meta_event_put(op, DL__EVENT_KIND__EVENT_WAITS, NULL, volume, 0, 0,
                       "volume %s: requests of its owner, %s, go on, after %s", volume->desc.name,
                       text_quote(volume->desc.owner).text,
                       text_of_duration(now_ns - waits->since_ns).text);
        waits_take(op, volume);
    } else {
        waits_take(op, volume);
        waits->event_ns = now_ns;
        meta_event_put(op, DL__EVENT_KIND__EVENT_WAITS, NULL, volume, 0, 0,
                       "volume %s: requests of its owner, %s, wait: %s", volume->desc.name,
                       text_quote(volume->desc.owner).text, waits->text);
    }
    meta_op_commit(op, waits_reply);
}
