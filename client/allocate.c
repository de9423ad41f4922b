/* SPDX-License-Identifier: Apache-2.0 */
/*
 * allocate.c: segments asked for at the first write, and ahead of a sequential writer; the map
 * asked for again.
 *
 * Segments are asked for by stripe set: a write to one member will be followed by writes to the
 * others.  A writer that comes to the set behind the one it asked for before is taken as
 * sequential: it gets AHEAD_SEGMENTS_MIN segments more, then twice as many each time, up to
 * AHEAD_SEGMENTS_MAX; and when it has got half way through them, the next are asked for before it
 * needs them.
 *
 * One ALLOCATE is under way at a time; what is wanted meanwhile goes with the next.  It is under
 * way (allocating_count is not 0) until all who waited for its answer have been woken: they may ask
 * for more.
 */
#include <stdlib.h>

#include "client/volume_internal.h"
#include "common/align.h"

#define ALLOCATE_BATCH_MAX 64u
#define AHEAD_SEGMENTS_MIN 4u
#define AHEAD_SEGMENTS_MAX 16u
#define NO_SEGMENT         UINT32_MAX
#define REFRESH_NS         (1000 * CLIENT_NS_PER_MS)
#define REFRESH_URGENT_NS  (50 * CLIENT_NS_PER_MS)
/* Of one answer; what is behind comes with the next. */
#define REFRESH_SEGMENTS_MAX 4096u

static void allocate_send(struct client_volume *volume);

/* --- what is wanted --- */

static void
allocate_want(struct client_volume *volume, uint32_t index)
{
    struct segment *segment = client_map_want(&volume->map, index);

    if (segment == NULL || segment->state != SEGMENT_WANTED || segment->allocating)
        return;
    if (vec_push(&volume->wanted, index) == 0)
        segment->allocating = true;
}

/* set_count stripe sets from the one that holds segment_idx on, as far as the volume goes. */
static void
allocate_want_sets(struct client_volume *volume, uint32_t segment_idx, uint32_t set_count)
{
    uint32_t width = volume->geometry.stripe_width;
    uint64_t first = segment_idx / width * (uint64_t)width;
    uint64_t end = min_u64(first + (uint64_t)set_count * width,
                           geometry_segment_count(&volume->geometry));

    for (uint64_t index = first; index < end; index++)
        allocate_want(volume, (uint32_t)index);
    volume->sequential_next = (uint32_t)end;
}

/* How many sets more for a sequential writer, who asks for the second, third ... time. */
static uint32_t
allocate_ahead_sets(struct client_volume *volume)
{
    uint32_t width = volume->geometry.stripe_width;

    volume->ahead_count = volume->ahead_count == 0
                              ? AHEAD_SEGMENTS_MIN
                              : min_u32(volume->ahead_count * 2, AHEAD_SEGMENTS_MAX);
    return DIV_ROUND_UP(volume->ahead_count, width);
}

void
client_allocate_wait(struct client_volume *volume, struct io_op *op)
{
    struct segment *segment = client_map_want(&volume->map, op->segment_idx);
    uint32_t sets = 1;

    if (segment == NULL) {
        op->err = -DL_E_NO_MEMORY;
        return;
    }
    list_push_back(&segment->waiters, &op->wait_node);
    if (segment->allocating)
        return;
    if (op->segment_idx == volume->sequential_next) {
        sets += allocate_ahead_sets(volume);
        volume->ahead_trigger = op->segment_idx + sets / 2 * volume->geometry.stripe_width;
    } else {
        volume->ahead_count = 0;
        volume->ahead_trigger = NO_SEGMENT;
    }
    /* Itself first, whatever is behind it. */
    allocate_want(volume, op->segment_idx);
    allocate_want_sets(volume, op->segment_idx, sets);
    allocate_send(volume);
}

void
client_allocate_ahead(struct client_volume *volume, uint32_t segment_idx)
{
    uint32_t sets;

    if (segment_idx != volume->ahead_trigger)
        return;
    volume->ahead_trigger = NO_SEGMENT;
    if (volume->sequential_next >= geometry_segment_count(&volume->geometry))
        return;
    sets = allocate_ahead_sets(volume);
    volume->ahead_trigger = volume->sequential_next + sets / 2 * volume->geometry.stripe_width;
    allocate_want_sets(volume, volume->sequential_next, sets);
    allocate_send(volume);
}

/* --- ALLOCATE --- */

static void
allocate_send(struct client_volume *volume)
{
    uint32_t count = (uint32_t)min_u64(volume->wanted.count, ALLOCATE_BATCH_MAX);

    if (volume->allocating_count != 0 || count == 0 || volume->fenced ||
        env_now_ns(volume->core->env) < volume->allocate_retry_ns)
        return;
    for (uint32_t i = 0; i < count; i++)
        volume->allocating[i] = volume->wanted.items[i];
    volume->allocating_count = count;
    /* The order is kept: what a write waits for is not overtaken by what is only likely. */
    for (size_t i = count; i < volume->wanted.count; i++)
        volume->wanted.items[i - count] = volume->wanted.items[i];
    volume->wanted.count -= count;
    volume->allocate_request.volume = volume->id;
    volume->allocate_request.lease_epoch = volume->lease_epoch;
    volume->allocate_request.n_segments = count;
    volume->allocate_request.segments = volume->allocating;
    volume->allocate_call.opcode = OP_ALLOCATE;
    volume->allocate_call.patient = true;
    volume->allocate_call.request = &volume->allocate_request.base;
    volume->allocate_call.reply_type = &dl__map_reply__descriptor;
    client_meta_call_start(volume->core, &volume->allocate_call);
}

/* No answer to the question whether there is room: those who wait are told. */
static bool
allocate_is_final(int err)
{
    return err == -DL_E_TOO_FEW_DOMAINS || err == -DL_E_NO_SPACE || err == -DL_E_LIMIT ||
           err == -DL_E_RANGE || err == -DL_E_MESSAGE_MALFORMED;
}

static void
allocate_fail_waiters(struct segment *segment, int err)
{
    struct list round;
    struct list *node;

    list_init(&round);
    list_splice_back(&round, &segment->waiters);
    while ((node = list_pop_front(&round)) != NULL) {
        struct io_op *op = io_op_of_wait_node(node);

        if (op->err == 0)
            op->err = err;
        op->type->step(op);
    }
}

/*
 * What was asked for did not come.  Segments that nobody waits for are forgotten; if there were
 * any, the others are asked for without them: maybe it was only too much.
 */
static void
allocate_on_error(struct client_volume *volume, int err)
{
    uint32_t waited = 0;

    for (uint32_t i = 0; i < volume->allocating_count; i++) {
        struct segment *segment = client_map_get(&volume->map, volume->allocating[i]);

        segment->allocating = false;
        if (segment->state == SEGMENT_WANTED && !list_is_empty(&segment->waiters))
            volume->allocating[waited++] = segment->index;
    }
    if (!allocate_is_final(err) || waited < volume->allocating_count) {
        volume->ahead_count = 0;
        volume->ahead_trigger = NO_SEGMENT;
        for (uint32_t i = 0; i < waited; i++)
            allocate_want(volume, volume->allocating[i]);
        if (!allocate_is_final(err))
            volume->allocate_retry_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
        return;
    }
    client_core_event(volume->core, DLBLK_EVENT_ERROR, "%s%s%s", volume->allocate_error.text,
                      volume->allocate_error.hint[0] != '\0' ? "; " : "",
                      volume->allocate_error.hint);
    for (uint32_t i = 0; i < waited; i++)
        allocate_fail_waiters(client_map_get(&volume->map, volume->allocating[i]), err);
}

static void
allocate_on_reply(struct client_volume *volume, const Dl__MapReply *reply)
{
    int err = client_volume_learn(volume, reply->servers, reply->n_servers, reply->segments,
                                  reply->n_segments);

    if (err != 0)
        (void)dl_error_set(&volume->allocate_error, err,
                           "the metadata service's answer to ALLOCATE can't be used: %s",
                           dl_err_str(err));
    else
        volume->allocate_error.code = 0;
    for (uint32_t i = 0; i < volume->allocating_count; i++) {
        struct segment *segment = client_map_get(&volume->map, volume->allocating[i]);

        segment->allocating = false;
        if (segment->config_epoch == 0) {
            /* Not among the answers: asked for again if somebody waits, in a while. */
            volume->allocate_retry_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
            if (!list_is_empty(&segment->waiters))
                allocate_want(volume, segment->index);
            continue;
        }
        if (segment->state == SEGMENT_WANTED)
            segment->state = SEGMENT_READY;
        client_io_wake(&segment->waiters);
    }
}

static void
allocate_on_done(struct client_meta_call *call, int err)
{
    struct client_volume *volume = call->context;

    if (err == 0) {
        allocate_on_reply(volume, (const Dl__MapReply *)call->reply);
    } else {
        volume->allocate_error = call->error;
        if (client_is_fence_error(err))
            client_volume_fence(volume, err, call->error.text);
        allocate_on_error(volume, err);
    }
    volume->allocating_count = 0;
    allocate_send(volume);
}

/* --- the map, asked for again --- */

static void
map_refresh_send(struct client_volume *volume)
{
    uint64_t now_ns = env_now_ns(volume->core->env);

    uint64_t pause_ns = volume->map_urgent ? REFRESH_URGENT_NS : REFRESH_NS;

    if (!volume->map_wanted || volume->map_call.core != NULL || volume->fenced ||
        (volume->map_asked_ns != 0 && now_ns - volume->map_asked_ns < pause_ns))
        return;
    volume->map_wanted = false;
    volume->map_urgent = false;
    volume->map_asked_ns = now_ns;
    volume->map_request.volume = volume->id;
    volume->map_request.lease_epoch = (volume->flags & DLBLK_OPEN_READ_ONLY) != 0
                                          ? 0
                                          : volume->lease_epoch;
    /* What lies between costs less than another question. */
    volume->map_request.first = volume->map_wanted_first;
    if (volume->map_cursor > volume->map_wanted_first &&
        volume->map_cursor <= volume->map_wanted_last)
        volume->map_request.first = volume->map_cursor;
    volume->map_request.max = min_u32(volume->map_wanted_last - volume->map_request.first + 1,
                                      REFRESH_SEGMENTS_MAX);
    volume->map_call.opcode = OP_MAP_GET;
    volume->map_call.patient = true;
    volume->map_call.request = &volume->map_request.base;
    volume->map_call.reply_type = &dl__map_reply__descriptor;
    client_meta_call_start(volume->core, &volume->map_call);
}

static int
map_refresh_take(struct client_volume *volume, const Dl__MapReply *reply)
{
    volume->map_cursor = 0;
    if (reply->more && reply->n_segments > 0)
        volume->map_cursor = reply->segments[reply->n_segments - 1]->index + 1;
    return client_volume_learn(volume, reply->servers, reply->n_servers, reply->segments,
                               reply->n_segments);
}

static void
map_refresh_on_done(struct client_meta_call *call, int err)
{
    struct client_volume *volume = call->context;
    const Dl__MapReply *reply = (const Dl__MapReply *)call->reply;

    if (client_is_fence_error(err))
        client_volume_fence(volume, err, call->error.text);
    else if (err == 0)
        err = map_refresh_take(volume, reply);
    if (err == -DL_E_MESSAGE_MALFORMED)
        client_core_event(volume->core, DLBLK_EVENT_WARNING,
                          "volume %s: the metadata service's answer to MAP_GET is malformed",
                          volume->name);
}

void
client_map_refresh(struct client_volume *volume, uint32_t segment_idx)
{
    if (!volume->map_wanted)
        volume->map_wanted_first = volume->map_wanted_last = segment_idx;
    volume->map_wanted = true;
    volume->map_wanted_first = min_u32(volume->map_wanted_first, segment_idx);
    volume->map_wanted_last = max_u32(volume->map_wanted_last, segment_idx);
    map_refresh_send(volume);
}

void
client_map_refresh_now(struct client_volume *volume, uint32_t segment_idx)
{
    volume->map_urgent = true;
    client_map_refresh(volume, segment_idx);
}

/* --- life --- */

void
client_allocate_tick(struct client_volume *volume)
{
    allocate_send(volume);
    map_refresh_send(volume);
}

int
client_allocate_init(struct client_volume *volume)
{
    dl__allocate__init(&volume->allocate_request);
    dl__map_get__init(&volume->map_request);
    volume->allocate_call.on_done = allocate_on_done;
    volume->allocate_call.context = volume;
    volume->map_call.on_done = map_refresh_on_done;
    volume->map_call.context = volume;
    volume->sequential_next = NO_SEGMENT;
    volume->ahead_trigger = NO_SEGMENT;
    volume->allocating = calloc(ALLOCATE_BATCH_MAX, sizeof(*volume->allocating));
    return volume->allocating != NULL ? 0 : -DL_E_NO_MEMORY;
}

void
client_allocate_cancel(struct client_volume *volume)
{
    client_meta_call_cancel(&volume->allocate_call);
    volume->allocating_count = 0;
    client_meta_call_cancel(&volume->map_call);
    volume->map_wanted = false;
    vec_clear(&volume->wanted);
}

void
client_allocate_fini(struct client_volume *volume)
{
    vec_fini(&volume->wanted);
    free(volume->allocating);
    volume->allocating = NULL;
}
