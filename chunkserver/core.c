/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.c: life of the chunkserver's core, its pools, and the back-pressure on links.  See core.h,
 * core_internal.h.
 *
 * Stop:
 *   1. links are paused, nothing is pulled any more; operations here are finished and their
 *      replies taken, for at most STOP_REPLIES_NS
 *   2. all links are closed
 *   3. nothing is left with the store: the store is stopped
 *   4. on_stopped
 */
#include "chunkserver/core.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "dlblk/error.h"

#define OPERATIONS_DEFAULT   1024u
#define BUFFER_BYTES_DEFAULT ((size_t)16 << 20)
#define STOP_REPLIES_NS      (2000 * CORE_NS_PER_MS)
#define STOP_TICK_NS         (20 * CORE_NS_PER_MS)

/* --- the store's turns --- */

static void
core_on_turn(struct env_task *task)
{
    struct chunkserver_core *core = list_entry(task, struct chunkserver_core, turn_task);

    if (!core->store_stopping)
        core->store->ops->turn_end(core->store);
}

void
core_store_started(struct chunkserver_core *core)
{
    dl_assert(!core->store_stopping);
    if (!core->turn_task.queued)
        env_defer(core->env, &core->turn_task);
}

/* --- back-pressure --- */

bool
core_has_room(struct chunkserver_core *core)
{
    return core->write_ops.free_count > 0 && core->read_ops.free_count > 0 &&
           core->stable_ops.free_count > 0 && buffer_pool_has_room(core->write_buffers) &&
           buffer_pool_has_room(core->read_buffers);
}

/*
 * A good part is free again: resuming for each single operation would cost more than the operation.
 */
static bool
core_has_plenty(struct chunkserver_core *core)
{
    const struct chunkserver_options *options = &core->options;
    uint32_t operations_wanted = options->operations_max / 4;

    return core->write_ops.free_count > operations_wanted &&
           core->read_ops.free_count > operations_wanted &&
           core->stable_ops.free_count > operations_wanted &&
           buffer_pool_used_bytes(core->write_buffers) <= options->write_buffer_bytes / 2 &&
           buffer_pool_used_bytes(core->read_buffers) <= options->read_buffer_bytes / 2 &&
           core_has_room(core);
}

static void
core_update_pauses(struct chunkserver_core *core)
{
    struct session *session;

    list_for_each_entry (session, &core->sessions, node)
        session_update_pause(session);
}

void
core_check_taken(struct chunkserver_core *core, struct session *session)
{
    if (!core->starved && !core_has_room(core)) {
        core->starved = true;
        core->starved_ns = env_now_ns(core->env);
        core->stats.pauses++;
        core_update_pauses(core);
    } else {
        session_update_pause(session);
    }
}

void
core_check_returned(struct chunkserver_core *core, struct session *session)
{
    if (core->starved && core_has_plenty(core)) {
        core->starved = false;
        core_update_pauses(core);
    } else if (session->paused) {
        session_update_pause(session);
    }
}

uint32_t
core_pulls_max(struct chunkserver_core *core)
{
    uint64_t quiet_ns = env_now_ns(core->env) - core->foreground_ns;

    return core->foreground_ns != 0 && quiet_ns < PULL_FOREGROUND_NS ? PULLS_FOREGROUND : PULLS_MAX;
}

/* --- pools --- */

struct write_op *
write_op_acquire(struct chunkserver_core *core, struct session *session, uint32_t payload_bytes)
{
    struct write_op *op = pool_acquire(&core->write_ops);

    dl_assert(op != NULL);
    op->session = session;
    op->buffer = NULL;
    op->buffer_bytes = payload_bytes;
    if (payload_bytes > 0) {
        op->buffer = buffer_pool_acquire(core->write_buffers, payload_bytes);
        dl_assert(op->buffer != NULL);
        /* Before the pools are looked at: it keeps this link from being paused. */
        dl_assert(session->incoming == NULL);
        session->incoming = op;
    }
    session->operations++;
    core_check_taken(core, session);
    return op;
}

void
write_op_release_buffer(struct write_op *op)
{
    if (op->buffer == NULL)
        return;
    buffer_pool_release(op->session->core->write_buffers, op->buffer, op->buffer_bytes);
    op->buffer = NULL;
}

void
write_op_release(struct write_op *op)
{
    struct session *session = op->session;
    struct chunkserver_core *core = session->core;

    write_op_release_buffer(op);
    pool_release(&core->write_ops, op);
    core_check_returned(core, session);
    session_operation_ended(session);
}

struct read_op *
read_op_acquire(struct chunkserver_core *core, struct session *session, uint32_t length_bytes)
{
    struct read_op *op = pool_acquire(&core->read_ops);

    dl_assert(op != NULL);
    op->session = session;
    op->buffer_bytes = length_bytes;
    op->buffer = buffer_pool_acquire(core->read_buffers, length_bytes);
    dl_assert(op->buffer != NULL);
    session->operations++;
    session->read_buffer_bytes += length_bytes;
    core_check_taken(core, session);
    return op;
}

void
read_op_release(struct read_op *op)
{
    struct session *session = op->session;
    struct chunkserver_core *core = session->core;

    buffer_pool_release(core->read_buffers, op->buffer, op->buffer_bytes);
    session->read_buffer_bytes -= op->buffer_bytes;
    pool_release(&core->read_ops, op);
    core_check_returned(core, session);
    session_operation_ended(session);
}

struct stable_op *
stable_op_acquire(struct chunkserver_core *core, struct session *session)
{
    struct stable_op *op = pool_acquire(&core->stable_ops);

    dl_assert(op != NULL);
    op->session = session;
    session->operations++;
    core_check_taken(core, session);
    return op;
}

void
stable_op_release(struct stable_op *op)
{
    struct session *session = op->session;
    struct chunkserver_core *core = session->core;

    pool_release(&core->stable_ops, op);
    core_check_returned(core, session);
    session_operation_ended(session);
}

/* Only those who pull are paused when there are no more: clients don't wait for them. */
struct pull_op *
pull_op_acquire(struct chunkserver_core *core, struct session *session)
{
    struct pull_op *op = pool_acquire(&core->pull_ops);

    dl_assert(op != NULL);
    op->session = session;
    op->buffer = NULL;
    session->operations++;
    if (core->pull_ops.free_count == 0)
        core_update_pauses(core);
    return op;
}

void
pull_op_release(struct pull_op *op)
{
    struct session *session = op->session;
    struct chunkserver_core *core = session->core;
    bool was_empty = core->pull_ops.free_count == 0;

    dl_assert(op->buffer == NULL);
    pool_release(&core->pull_ops, op);
    if (was_empty)
        core_update_pauses(core);
    session_operation_ended(session);
}

static uint32_t
core_operations_in_use(const struct chunkserver_core *core)
{
    return pool_taken_count(&core->write_ops) + pool_taken_count(&core->read_ops) +
           pool_taken_count(&core->stable_ops) + pool_taken_count(&core->pull_ops);
}

/* --- stop --- */

static void
core_on_stopped_task(struct env_task *task)
{
    struct chunkserver_core *core = list_entry(task, struct chunkserver_core, stopped_task);

    core->stopped = true;
    core->on_stopped(core->stop_context, core->stop_err);
}

static void
core_on_store_stopped(void *context, int err)
{
    struct chunkserver_core *core = context;

    core->stop_err = err;
    env_defer(core->env, &core->stopped_task);
}

static void
core_close_links(struct chunkserver_core *core)
{
    struct session *session;

    list_for_each_entry (session, &core->sessions, node)
        session_close(session);
    peers_stop(core);
    meta_link_stop(core);
}

void
core_stop_step(struct chunkserver_core *core)
{
    bool late;

    if (!core->stopping || core->store_stopping)
        return;
    late = env_now_ns(core->env) >= core->stop_deadline_ns;
    if (!core->links_closed && (late || core_operations_in_use(core) + core->meta_requests == 0)) {
        core->links_closed = true;
        core_close_links(core);
        if (core->store_stopping)
            return; /* the last peer was gone at once, and came here */
    }
    if (!core->links_closed || !list_is_empty(&core->sessions) || core->meta_requests > 0 ||
        !list_is_empty(&core->recoveries) || !list_is_empty(&core->peers) ||
        !repair_is_idle(core) || !scrub_is_idle(core->scrub) || !meta_link_is_down(core))
        return;
    dl_assert(core_operations_in_use(core) == 0);
    core->store_stopping = true;
    env_timer_stop(core->env, &core->tick_timer);
    core->store->ops->stop(core->store, core_on_store_stopped, core);
}

void
chunkserver_core_stop(struct chunkserver_core *core, void (*on_stopped)(void *context, int err),
                      void *context)
{
    dl_assert(!core->stopping);
    core->stopping = true;
    core->on_stopped = on_stopped;
    core->stop_context = context;
    core->stop_deadline_ns = env_now_ns(core->env) + STOP_REPLIES_NS;
    core_update_pauses(core);
    env_timer_start(core->env, &core->tick_timer, 0);
    findings_stop(core->findings);
    scrub_stop(core->scrub);
    repair_stop(core);
    recoveries_stop(core);
}

/* --- life --- */

static void
core_on_tick(struct env_timer *timer)
{
    struct chunkserver_core *core = list_entry(timer, struct chunkserver_core, tick_timer);

    env_timer_start(core->env, &core->tick_timer, core->stopping ? STOP_TICK_NS : CORE_TICK_NS);
    sessions_tick(core, env_now_ns(core->env));
    peers_tick(core, env_now_ns(core->env));
    scrub_tick(core->scrub, env_now_ns(core->env));
    core_stop_step(core);
}

static int
core_copy_label(char **ret_copy, const char **option)
{
    *ret_copy = strdup(*option == NULL ? "" : *option);
    *option = *ret_copy;
    return *ret_copy == NULL ? -DL_E_NO_MEMORY : 0;
}

static int
core_init_options(struct chunkserver_core *core, const struct chunkserver_options *options)
{
    struct chunkserver_options *own = &core->options;

    *own = *options;
    if (own->operations_max == 0)
        own->operations_max = OPERATIONS_DEFAULT;
    if (own->write_buffer_bytes == 0)
        own->write_buffer_bytes = BUFFER_BYTES_DEFAULT;
    if (own->read_buffer_bytes == 0)
        own->read_buffer_bytes = BUFFER_BYTES_DEFAULT;
    if (core_copy_label(&core->advertise, &own->advertise) != 0 ||
        core_copy_label(&core->host, &own->host) != 0 ||
        core_copy_label(&core->rack, &own->rack) != 0 ||
        core_copy_label(&core->clique, &own->clique) != 0)
        return -DL_E_NO_MEMORY;
    return 0;
}

static int
core_init_pools(struct chunkserver_core *core)
{
    uint32_t count = core->options.operations_max;

    if (pool_init(&core->write_ops, sizeof(struct write_op), count) != 0 ||
        pool_init(&core->read_ops, sizeof(struct read_op), count) != 0 ||
        pool_init(&core->stable_ops, sizeof(struct stable_op), count) != 0 ||
        pool_init(&core->pull_ops, sizeof(struct pull_op), PULL_OPS) != 0)
        return -DL_E_NO_MEMORY;
    core->write_buffers = buffer_pool_create(core->options.write_buffer_bytes);
    core->read_buffers = buffer_pool_create(core->options.read_buffer_bytes);
    core->pull_buffers = buffer_pool_create((2 * (size_t)PULLS_MAX + 2) * BUFFER_BYTES_MAX);
    if (core->write_buffers == NULL || core->read_buffers == NULL || core->pull_buffers == NULL)
        return -DL_E_NO_MEMORY;
    core->scrub = scrub_create(core);
    core->findings = findings_create(core);
    return core->scrub == NULL || core->findings == NULL ? -DL_E_NO_MEMORY : 0;
}

/* After a crash (see chunkserver_core_destroy()) operations are still under way: they end here. */
static void
pool_release_all(struct pool *pool)
{
    for (uint32_t idx = 0; idx < pool->item_count; idx++)
        if (pool->taken[idx])
            pool_release(pool, pool->base + (size_t)idx * pool->item_bytes);
}

static void
core_free_sessions(struct chunkserver_core *core)
{
    struct session *session, *following;

    list_for_each_entry_safe (session, following, &core->sessions, node)
        free(session);
}

/* The same: they are allocated one by one. */
static void
core_free_meta_requests(struct chunkserver_core *core)
{
    struct list *node;

    while ((node = list_pop_front(&core->meta_request_list)) != NULL)
        free(list_entry(node, struct meta_request, node));
}

static void
core_free(struct chunkserver_core *core)
{
    scrub_free(core->scrub);
    findings_free(core->findings);
    buffer_pool_destroy(core->write_buffers);
    buffer_pool_destroy(core->read_buffers);
    buffer_pool_destroy(core->pull_buffers);
    pool_fini(&core->write_ops);
    pool_fini(&core->read_ops);
    pool_fini(&core->stable_ops);
    pool_fini(&core->pull_ops);
    free(core->advertise);
    free(core->host);
    free(core->rack);
    free(core->clique);
    free(core);
}

int
chunkserver_core_create(struct chunkserver_core **ret_core, struct env *env,
                        struct chunk_store *store, const struct chunkserver_options *options)
{
    struct chunkserver_core *core = calloc(1, sizeof(*core));

    dl_assert(options->meta_count > 0);
    dl_assert(options->meta_count <= CHUNKSERVER_META_COUNT_MAX);
    if (core == NULL)
        return -DL_E_NO_MEMORY;
    core->env = env;
    core->store = store;
    core->chunks = store->chunks;
    list_init(&core->sessions);
    list_init(&core->pull_queue);
    list_init(&core->meta_request_list);
    list_init(&core->recoveries);
    list_init(&core->removed_list);
    list_init(&core->peers);
    if (core_init_options(core, options) != 0 || core_init_pools(core) != 0) {
        core_free(core);
        return -DL_E_NO_MEMORY;
    }
    core->turn_task.fn = core_on_turn;
    core->stopped_task.fn = core_on_stopped_task;
    core->tick_timer.fn = core_on_tick;
    core->pull_timer.fn = recoveries_on_pull_timer;
    env_timer_start(env, &core->tick_timer, CORE_TICK_NS);
    meta_link_start(core);
    *ret_core = core;
    return 0;
}

void
chunkserver_core_destroy(struct chunkserver_core *core)
{
    if (core == NULL)
        return;
    dl_assert(!core->stopped || list_is_empty(&core->sessions));
    dl_assert(!core->stopped || core_operations_in_use(core) == 0);
    pool_release_all(&core->write_ops);
    pool_release_all(&core->read_ops);
    pool_release_all(&core->stable_ops);
    pool_release_all(&core->pull_ops);
    recoveries_free(core);
    repair_free(core);
    removed_free(core);
    peers_free(core);
    HASH_CLEAR(by_key, core->slot_changes);
    core_free_meta_requests(core);
    core_free_sessions(core);
    core_free(core);
}

void
chunkserver_core_get_stats(const struct chunkserver_core *core,
                           struct chunkserver_core_stats *ret_stats)
{
    Dl__ScrubCounts counts = DL__SCRUB_COUNTS__INIT;

    findings_fill_counts(core->findings, &counts);
    *ret_stats = core->stats;
    ret_stats->sectors_scrubbed = counts.sectors;
    ret_stats->mismatches = counts.mismatches;
    ret_stats->sectors_left_bad = (uint32_t)counts.left_bad;
    ret_stats->operations_in_use = core_operations_in_use(core);
    ret_stats->write_buffer_used_bytes = buffer_pool_used_bytes(core->write_buffers);
    ret_stats->read_buffer_used_bytes = buffer_pool_used_bytes(core->read_buffers);
    ret_stats->recoveries_running = (uint32_t)list_length(&core->recoveries);
    ret_stats->server_id = core->meta.server_id;
    ret_stats->registered = core->meta.state == META_REGISTERED;
}
