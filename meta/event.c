/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: ejections, takeovers, recoveries, servers that go and come.  The last EVENTS_MAX events
 * are in the store and in memory; each is put with the commit that it speaks of, or with one of its
 * own, and seen when that is durable.  Sequences only grow; a cursor is the last one that was seen.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "meta/memory.h"
#include "meta/meta.pb-c.h"
#include "meta/recovery.h"
#include "meta/schema.h"

#define EVENTS_MAX         4096u
#define EVENT_TEXT_BYTES   512u
#define EVENTS_WAIT_MS_MAX 30000u
#define EVENTS_POSTED_MAX  256u

struct meta_event {
    struct list node;
    uint64_t sequence;
    uint64_t at_ms;
    Dl__EventKind kind;
    uint32_t server_id;
    uint64_t volume_id;
    uint32_t segment;
    uint32_t count;
    char *volume_name;
    char text[];
};

/* --- the list --- */

static struct meta_event *
event_create(const char *text, const char *volume_name)
{
    struct meta_event *event = meta_alloc(sizeof(*event) + strlen(text) + 1);

    memcpy(event->text, text, strlen(text) + 1);
    event->volume_name = meta_strdup(volume_name);
    list_init(&event->node);
    return event;
}

static void
event_free(struct meta_event *event)
{
    if (list_is_linked(&event->node))
        list_remove(&event->node);
    free(event->volume_name);
    free(event);
}

/* The newest one; the oldest goes. */
static void
event_append(struct meta_recovery *recovery, struct meta_event *event)
{
    list_push_back(&recovery->events, &event->node);
    if (recovery->event_count < EVENTS_MAX)
        recovery->event_count++;
    else
        event_free(list_first_entry(&recovery->events, struct meta_event, node));
}

static void
event_put(struct store_batch *batch, const struct meta_event *event)
{
    Dl__Meta__EventRecord record = DL__META__EVENT_RECORD__INIT;
    struct schema_key key = schema_key_event(event->sequence);

    record.at_ms = event->at_ms;
    record.kind = event->kind;
    record.server_id = event->server_id;
    record.volume = event->volume_id;
    record.volume_name = event->volume_name;
    record.segment = event->segment;
    record.count = event->count;
    record.text = (char *)(uintptr_t)event->text;
    store_batch_put_message(batch, schema_bytes(&key), &record.base);
    if (event->sequence <= EVENTS_MAX)
        return;
    key = schema_key_event(event->sequence - EVENTS_MAX);
    store_batch_delete(batch, schema_bytes(&key));
}

/* --- adding --- */

void
meta_event_put(struct meta_op *op, Dl__EventKind kind, const struct meta_server *server,
               const struct meta_volume *volume, uint32_t segment, uint32_t count,
               const char *format, ...)
{
    struct meta_recovery *recovery = op->core->recovery;
    char text[EVENT_TEXT_BYTES];
    struct meta_event *event;
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    meta_log(op->core, META_LOG_WARNING, "event", "%s", text);
    event = event_create(text, volume != NULL ? volume->desc.name : "");
    event->sequence = recovery->event_next++;
    event->at_ms = op->core->env->ops->wall_ms(op->core->env);
    event->kind = kind;
    event->server_id = server != NULL ? server->desc.id : 0;
    event->volume_id = volume != NULL ? volume->desc.id : 0;
    event->segment = segment;
    event->count = count;
    event_append(recovery, event);
    event_put(&op->batch, event);
    op->event_sequence = event->sequence;
}

void
meta_event_committed(struct meta_core *core, uint64_t sequence)
{
    struct meta_recovery *recovery = core->recovery;

    /* Commits take effect in the order of their start, which is that of the sequences. */
    recovery->event_committed = max_u64(recovery->event_committed, sequence);
    while (!list_is_empty(&recovery->event_pollers))
        meta_op_run_soon(list_first_entry(&recovery->event_pollers, struct meta_op, node));
}

/* --- with a commit of their own --- */

static void post_next(struct meta_core *core);

static void
post_on_committed(struct meta_op *op)
{
    struct meta_core *core = op->core;

    core->recovery->event_posting = false;
    meta_op_end(op);
    post_next(core);
}

static void
post_run(struct meta_op *op)
{
    struct meta_recovery *recovery = op->core->recovery;

    if (!meta_op_take(op, &recovery->event_serial))
        return;
    while (!list_is_empty(&recovery->event_posts)) {
        struct meta_event *event = list_first_entry(&recovery->event_posts, struct meta_event,
                                                    node);

        list_remove(&event->node);
        recovery->event_posted--;
        event->sequence = recovery->event_next++;
        event_append(recovery, event);
        event_put(&op->batch, event);
        op->event_sequence = event->sequence;
    }
    meta_op_commit(op, post_on_committed);
}

static const struct meta_handler post_handler = {.run = post_run};

static void
post_next(struct meta_core *core)
{
    struct meta_recovery *recovery = core->recovery;

    if (recovery->event_posting || list_is_empty(&recovery->event_posts) ||
        core->phase != META_SERVING)
        return;
    recovery->event_posting = true;
    (void)meta_op_create_internal(core, &post_handler);
}

void
meta_event_post(struct meta_core *core, Dl__EventKind kind, const struct meta_server *server,
                const char *format, ...)
{
    struct meta_recovery *recovery = core->recovery;
    char text[EVENT_TEXT_BYTES];
    struct meta_event *event;
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (recovery->event_posted == EVENTS_POSTED_MAX)
        return; /* the store is slower than what happens */
    event = event_create(text, "");
    event->at_ms = core->env->ops->wall_ms(core->env);
    event->kind = kind;
    event->server_id = server != NULL ? server->desc.id : 0;
    list_push_back(&recovery->event_posts, &event->node);
    recovery->event_posted++;
    post_next(core);
}

/* --- start and end --- */

int
meta_event_load(struct meta_core *core, struct store_item item, struct dl_error *err)
{
    struct meta_recovery *recovery = core->recovery;
    Dl__Meta__EventRecord *record;
    struct meta_event *event;
    uint64_t sequence;

    record = dl__meta__event_record__unpack(NULL, item.value.length_bytes, item.value.bytes);
    if (!schema_parse_event(item.key, &sequence) || sequence == 0 || record == NULL) {
        if (record != NULL)
            dl__meta__event_record__free_unpacked(record, NULL);
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "a record of the event log is damaged");
    }
    event = event_create(record->text, record->volume_name);
    event->sequence = sequence;
    event->at_ms = record->at_ms;
    event->kind = (Dl__EventKind)record->kind;
    event->server_id = record->server_id;
    event->volume_id = record->volume;
    event->segment = record->segment;
    event->count = record->count;
    dl__meta__event_record__free_unpacked(record, NULL);
    event_append(recovery, event);
    recovery->event_committed = sequence;
    recovery->event_next = sequence + 1;
    return 0;
}

void
meta_event_free_all(struct meta_core *core)
{
    struct meta_recovery *recovery = core->recovery;

    while (!list_is_empty(&recovery->events))
        event_free(list_first_entry(&recovery->events, struct meta_event, node));
    while (!list_is_empty(&recovery->event_posts))
        event_free(list_first_entry(&recovery->event_posts, struct meta_event, node));
}

/* --- EVENTS --- */

static void
events_on_timer(struct env_timer *timer)
{
    struct meta_op *op = list_entry(timer, struct meta_op, timer);

    op->verdict = true; /* now it answers, whatever there is */
    meta_op_run_soon(op);
}

static void
event_fill(Dl__Event *message, struct meta_event *event)
{
    dl__event__init(message);
    message->sequence = event->sequence;
    message->at_ms = event->at_ms;
    message->kind = event->kind;
    message->server_id = event->server_id;
    message->volume = event->volume_id;
    message->volume_name = event->volume_name;
    message->segment = event->segment;
    message->count = event->count;
    message->text = event->text;
}

static void
events_collect(const struct meta_recovery *recovery, uint64_t after, uint32_t max,
               Dl__EventsReply *reply, Dl__Event *messages)
{
    struct meta_event *event;
    size_t bytes = 0;

    reply->next = after;
    list_for_each_entry (event, &recovery->events, node) {
        Dl__Event *message = &messages[reply->n_events];

        if (event->sequence <= after)
            continue;
        if (event->sequence > recovery->event_committed || reply->n_events == max ||
            bytes > META_REPLY_BYTES)
            return;
        reply->lost |= reply->n_events == 0 && event->sequence > after + 1;
        event_fill(message, event);
        bytes += dl__event__get_packed_size(message);
        reply->events[reply->n_events++] = message;
        reply->next = event->sequence;
    }
}

void
meta_run_events(struct meta_op *op)
{
    const Dl__Events *message = (const Dl__Events *)op->message;
    struct meta_recovery *recovery = op->core->recovery;
    Dl__EventsReply reply = DL__EVENTS_REPLY__INIT;
    uint32_t max = message->max == 0 ? EVENTS_MAX : min_u32(message->max, EVENTS_MAX);
    Dl__Event *messages;

    if (op->timer.fn == NULL) {
        /* A cursor from the future is one of a store that was restored: from now on. */
        op->cursor = min_u64(message->after, recovery->event_committed);
        op->timer.fn = events_on_timer;
        if (message->wait_ms != 0)
            env_timer_start(op->core->env, &op->timer,
                            min_u32(message->wait_ms, EVENTS_WAIT_MS_MAX) * NS_PER_MS);
    }
    messages = meta_alloc(EVENTS_MAX * sizeof(*messages));
    reply.events = meta_alloc(EVENTS_MAX * sizeof(Dl__Event *));
    events_collect(recovery, op->cursor, max, &reply, messages);
    if (reply.n_events > 0 || message->wait_ms == 0 || op->verdict)
        meta_op_reply(op, &reply.base);
    else
        meta_op_wait(op, &recovery->event_pollers);
    free(reply.events);
    free(messages);
}
