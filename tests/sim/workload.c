/* SPDX-License-Identifier: Apache-2.0 */
/*
 * workload.c: what clients do: sessions on volumes, requests with contents that the oracle knows.
 * See cluster.h.
 *
 *   IDLE --open--> OPENING --opened--> RUNNING --enough, fenced or told--> CLOSING --closed--> IDLE
 *                     +--refused--> IDLE                               IDLE --told to--> RETIRED
 *
 * A client that is killed starts again as IDLE.  A block is filled with its value, 8 bytes for 8
 * bytes.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dlblk/error.h"
#include "tests/sim/watch.h"

#define BLOCKS_MAX     512u
#define IDLE_NS_MAX    (400 * SIM_MS)
#define RESTART_NS_MAX (3 * SIM_S)
#define SWEEP_BLOCKS   64u
#define SCRIBBLE       0xa5

static uint64_t
work_random(struct sim_client *client, uint64_t bound)
{
    return fake_rng_below(&client->cluster->rng, bound);
}

static bool
work_percent(struct sim_client *client, uint32_t percent)
{
    return fake_rng_percent(&client->cluster->rng, percent);
}

static void client_on_state_event(struct sim_event *event);
static void client_check_end(struct sim_client *client);

static void
client_set_state(struct sim_client *client, enum client_state state)
{
    client->state = state;
    client->state_since_ns = client->cluster->world.now_ns;
}

static void
client_schedule(struct sim_client *client, uint64_t max_ns)
{
    sim_schedule(&client->cluster->world, &client->state_event, &client->process,
                 client_on_state_event, work_random(client, max_ns));
}

/* --- errors --- */

static void
count_error(struct cluster *cluster, int err)
{
    int code = -err - DL_E_FIRST;

    if (code < 0 || code > 127)
        code = 127;
    cluster->counters.errors_by_code[code]++;
}

/* Is somebody else about to get the volume?  His lease may be there before he knows it. */
static bool
somebody_opens(const struct sim_client *client)
{
    const struct cluster *cluster = client->cluster;

    for (uint32_t i = 0; i < cluster->profile.client_count; i++)
        if (&cluster->clients[i] != client && cluster->clients[i].state == CLIENT_OPENING &&
            cluster->clients[i].target == client->target)
            return true;
    return false;
}

/* In the chaos nearly everything may fail; it may not fail with an error that says "bug". */
static void
client_expect_error(const struct sim_client *client, const char *what, int err)
{
    const struct sim_world *world = &client->cluster->world;

    sim_require(world, err < 0, "%s: %s failed with %d, which is no error", client->process.name,
                what, err);
    sim_require(world,
                err != -DL_E_INTERNAL && err != -DL_E_MESSAGE_MALFORMED && err != -DL_E_RANGE &&
                    err != -DL_E_ALIGNMENT && err != -EINVAL && err != -DL_E_OPCODE_UNKNOWN &&
                    err != -DL_E_CHUNK_UNKNOWN && err != -DL_E_EPOCH_OLD,
                "%s: %s failed: %s", client->process.name, what, dl_err_str(err));
    if (err == -DL_E_LEASE_OLD && client->target != NULL)
        sim_require(world,
                    client->target->lease_epoch_max > client->lease_epoch ||
                        client->cluster->counters.opens_refused > 0 || !client->cluster->calm ||
                        somebody_opens(client),
                    "%s: %s: shut out, though it is the last owner", client->process.name, what);
    count_error(client->cluster, err);
}

/* --- contents --- */

static void
block_fill(uint8_t *memory, size_t block_bytes, uint64_t value)
{
    for (size_t i = 0; i < block_bytes; i += sizeof(value))
        memcpy(memory + i, &value, sizeof(value));
}

/* The value of a block that was read.  One that is not of one piece ends the run. */
static uint64_t
block_value(const struct client_op *op, const uint8_t *memory, size_t block_bytes, uint64_t block)
{
    uint64_t value, other;

    memcpy(&value, memory, sizeof(value));
    for (size_t i = sizeof(value); i < block_bytes; i += sizeof(value)) {
        memcpy(&other, memory + i, sizeof(other));
        sim_require(&op->client->cluster->world, other == value,
                    "%s: block %" PRIu64 " of %s is torn: values %" PRIu64 " and %" PRIu64
                    " at %zu",
                    op->client->process.name, block, op->client->target->name, value, other, i);
    }
    return value;
}

/* --- one request --- */

static void op_submit(struct client_op *op);

static void
op_on_think(struct sim_event *event)
{
    op_submit(list_entry(event, struct client_op, think_event));
}

static void
op_free_memory(struct client_op *op)
{
    if (op->memory != NULL)
        memset(op->buffer, SCRIBBLE, op->buffer_bytes);
    free(op->memory);
    free(op->bounds);
    op->memory = NULL;
    op->buffer = NULL;
    op->bounds = NULL;
}

static void
op_check_read(struct client_op *op)
{
    struct sim_volume *volume = op->client->target;
    uint64_t values[BLOCKS_MAX];

    for (uint64_t i = 0; i < op->block_count; i++)
        values[i] = block_value(op, op->buffer + i * volume->logical_block_bytes,
                                volume->logical_block_bytes, op->first_block + i);
    oracle_read_end(&volume->oracle, &op->read, values);
    for (uint64_t i = 0; op->client->sweep && i < op->block_count; i++)
        volume->last_values[op->first_block + i] = values[i];
    op->client->cluster->counters.blocks_read += op->block_count;
}

/* A flush covers every write that was submitted before. */
static void
op_check_flush(const struct client_op *op)
{
    const struct sim_client *client = op->client;

    for (uint32_t i = 0; i < CLIENT_OPS_MAX; i++) {
        const struct client_op *other = &client->ops[i];

        sim_require(&client->cluster->world,
                    other == op || !other->active || other->request.op == DLBLK_READ ||
                        other->number > op->number,
                    "%s: flush %" PRIu64 " ends before write %" PRIu64, client->process.name,
                    op->number, other->number);
    }
}

static bool
err_is_bad_sector(int err)
{
    return err == -DL_E_CRC_DATA || err == -DL_E_INDEX_CORRUPT;
}

static void
op_judge(struct client_op *op, int err)
{
    struct sim_client *client = op->client;
    struct cluster *cluster = client->cluster;

    if (err != 0) {
        sim_require(&cluster->world, !client->sweep || (cluster->healing && err_is_bad_sector(err)),
                    "%s: a request fails in the calm: %s", client->process.name, dl_err_str(err));
        client_expect_error(client, "a request", err);
        cluster->counters.failed++;
    } else {
        cluster->counters.acknowledged++;
    }
    switch (op->request.op) {
    case DLBLK_READ:
        if (err == 0)
            op_check_read(op);
        break;
    case DLBLK_FLUSH:
        if (err == 0)
            op_check_flush(op);
        break;
    default:
        oracle_write_end(&client->target->oracle, op->key, op->first_block, op->block_count,
                         err == 0, err == -DL_E_LEASE_OLD);
        if (err == 0)
            watch_acknowledged(cluster, client->target, op->first_block, op->block_count);
        break;
    }
}

static void
op_on_done(struct dlblk_request *request, int err)
{
    struct client_op *op = request->context;
    struct sim_client *client = op->client;

    sim_require(&client->cluster->world, op->active, "%s: a request ends twice",
                client->process.name);
    sim_trace(&client->cluster->world, &client->process,
              "request %" PRIu64 " (op %d, blocks %" PRIu64 " + %" PRIu64 ") ends: %s", op->number,
              (int)op->request.op, op->first_block, op->block_count,
              err == 0 ? "ok" : dl_err_name(err));
    op->active = false;
    client->active_ops--;
    op_judge(op, err);
    op_free_memory(op);
    if (err == -DL_E_LEASE_OLD)
        client->session_ops_left = 0;
    if (client->state == CLIENT_RUNNING &&
        (client->sweep || (client->session_ops_left > 0 && !client->stop_wanted))) {
        /* Some resubmit from inside of the callback. */
        if (work_percent(client, 30))
            op_submit(op);
        else
            sim_schedule(&client->cluster->world, &op->think_event, &client->process, op_on_think,
                         work_random(client, client->cluster->profile.think_ns + 1));
    }
    client_check_end(client);
}

static void
op_choose_range(struct client_op *op)
{
    struct sim_client *client = op->client;
    const struct cluster_profile *profile = &client->cluster->profile;
    const struct sim_volume *volume = client->target;
    uint64_t total = client->size_bytes / volume->logical_block_bytes;
    uint64_t blocks_max = 8 * (4096 / volume->logical_block_bytes);
    uint64_t range = total;

    if (work_percent(client, profile->hot_percent))
        range = total < 48 ? total : 48;
    if (work_percent(client, profile->large_percent))
        blocks_max = BLOCKS_MAX;
    op->first_block = work_random(client, range);
    op->block_count = 1 + work_random(client, work_percent(client, 50) ? 1 : blocks_max);
    if (op->block_count > total - op->first_block)
        op->block_count = total - op->first_block;
}

static enum dlblk_op
op_choose_kind(struct sim_client *client)
{
    const struct cluster_profile *profile = &client->cluster->profile;
    uint64_t dice = work_random(client, 100);

    if (client->reads_only)
        return DLBLK_READ;
    if (dice < profile->write_percent)
        return DLBLK_WRITE;
    dice -= profile->write_percent;
    if (dice < profile->zero_percent)
        return work_percent(client, 50) ? DLBLK_DISCARD : DLBLK_WRITE_ZEROES;
    dice -= profile->zero_percent;
    return dice < profile->flush_percent ? DLBLK_FLUSH : DLBLK_READ;
}

/* The buffer at any alignment, in some pieces. */
static void
op_make_buffer(struct client_op *op)
{
    struct sim_client *client = op->client;
    size_t offset = work_percent(client, 70) ? 0 : work_random(client, 512) * 8;
    size_t pieces = 1 + (work_percent(client, 80) ? 0 : work_random(client, 3));
    size_t at = 0;

    op->buffer_bytes = op->block_count * client->target->logical_block_bytes;
    op->memory = aligned_alloc(4096, (op->buffer_bytes + offset + 4095) / 4096 * 4096);
    sim_require(&client->cluster->world, op->memory != NULL, "no memory");
    op->buffer = op->memory + offset;
    op->request.iov_count = 0;
    for (size_t i = 0; i < pieces && at < op->buffer_bytes; i++) {
        size_t bytes = op->buffer_bytes - at;

        if (i + 1 < pieces && bytes > 1)
            bytes = 1 + work_random(client, bytes - 1);
        op->iov[op->request.iov_count++] = (struct iovec){.iov_base = op->buffer + at,
                                                          .iov_len = bytes};
        at += bytes;
    }
    op->iov[op->request.iov_count - 1].iov_len += op->buffer_bytes - at;
    op->request.iov = op->iov;
}

static void
op_begin_write(struct client_op *op)
{
    struct sim_volume *volume = op->client->target;
    bool zero = op->request.op != DLBLK_WRITE;

    op->first_value = zero ? 0 : oracle_take_values(&volume->oracle, op->block_count);
    if (!zero) {
        op_make_buffer(op);
        for (uint64_t i = 0; i < op->block_count; i++)
            block_fill(op->buffer + i * volume->logical_block_bytes, volume->logical_block_bytes,
                       op->first_value + i);
        op->client->cluster->counters.writes++;
        op->client->cluster->counters.blocks_written += op->block_count;
    } else {
        op->client->cluster->counters.zeroes++;
    }
    op->key = oracle_write_begin(&volume->oracle, op->client->lease_epoch, op->first_block,
                                 op->block_count, op->first_value);
}

static void
op_begin_read(struct client_op *op)
{
    struct sim_volume *volume = op->client->target;

    op_make_buffer(op);
    memset(op->buffer, SCRIBBLE, op->buffer_bytes);
    op->bounds = calloc(op->block_count, sizeof(op->bounds[0]));
    sim_require(&op->client->cluster->world, op->bounds != NULL, "no memory");
    oracle_read_begin(&volume->oracle, &op->read, op->client->lease_epoch, op->first_block,
                      op->block_count, op->bounds);
    op->client->cluster->counters.reads++;
}

static void
op_begin(struct client_op *op)
{
    const struct sim_volume *volume = op->client->target;

    op->request.on_done = op_on_done;
    op->request.context = op;
    op->request.iov = NULL;
    op->request.iov_count = 0;
    op->request.offset_bytes = op->first_block * volume->logical_block_bytes;
    op->request.length_bytes = op->block_count * volume->logical_block_bytes;
    op->number = ++op->client->submissions;
    op->submitted_ns = op->client->cluster->world.now_ns;
    if (op->request.op == DLBLK_READ) {
        op_begin_read(op);
    } else if (op->request.op == DLBLK_FLUSH) {
        op->request.offset_bytes = 0;
        op->request.length_bytes = 0;
        op->client->cluster->counters.flushes++;
    } else {
        op_begin_write(op);
    }
}

static bool
sweep_next(struct client_op *op)
{
    struct sim_client *client = op->client;
    uint64_t total = client->size_bytes / client->target->logical_block_bytes;

    if (client->sweep_next_block >= total)
        return false;
    op->request.op = DLBLK_READ;
    op->first_block = client->sweep_next_block;
    op->block_count = total - op->first_block < SWEEP_BLOCKS ? total - op->first_block
                                                             : SWEEP_BLOCKS;
    client->sweep_next_block += op->block_count;
    return true;
}

/* It may have grown. */
static void
client_update_size(struct sim_client *client)
{
    struct dlblk_volume_geometry geometry;

    client_volume_get_geometry(client->volume, &geometry);
    sim_require(&client->cluster->world,
                geometry.size_bytes >= client->size_bytes &&
                    geometry.size_bytes <= client->target->size_bytes_asked,
                "%s: %s has a size that it never had", client->process.name, client->target->name);
    client->size_bytes = geometry.size_bytes;
}

static void
op_submit(struct client_op *op)
{
    struct sim_client *client = op->client;

    if (client->state != CLIENT_RUNNING || op->active)
        return;
    memset(&op->request, 0, sizeof(op->request));
    if (client->sweep) {
        if (!sweep_next(op)) {
            client->session_ops_left = 0;
            return;
        }
    } else {
        if (client->session_ops_left == 0)
            return;
        client->session_ops_left--;
        client_update_size(client);
        op->request.op = op_choose_kind(client);
        op_choose_range(op);
    }
    op_begin(op);
    op->active = true;
    client->active_ops++;
    sim_trace(&client->cluster->world, &client->process,
              "request %" PRIu64 ": op %d on %s, blocks %" PRIu64 " + %" PRIu64 ", value %" PRIu64,
              op->number, (int)op->request.op, client->target->name, op->first_block,
              op->block_count, op->first_value);
    client_volume_submit(client->volume, &op->request);
}

/* --- extents, at the end of a sweep --- */

static int
sweep_on_extent(void *context, uint64_t offset_bytes, uint64_t length_bytes, bool hole)
{
    struct sim_client *client = context;
    const struct sim_volume *volume = client->target;
    const struct sim_world *world = &client->cluster->world;
    uint64_t block_bytes = volume->logical_block_bytes;

    sim_require(world, offset_bytes == client->extents_next_bytes && length_bytes > 0,
                "%s: an extent at %" PRIu64 ", where %" PRIu64 " was expected",
                client->process.name, offset_bytes, client->extents_next_bytes);
    client->extents_next_bytes += length_bytes;
    client->cluster->counters.extents_told++;
    client->cluster->counters.holes_told += hole;
    for (uint64_t at = offset_bytes; hole && at < offset_bytes + length_bytes; at += block_bytes)
        sim_require(world, volume->last_values[at / block_bytes] == 0,
                    "%s: %s is said to have a hole at %" PRIu64 ", which reads as value %" PRIu64,
                    client->process.name, volume->name, at, volume->last_values[at / block_bytes]);
    return 0;
}

static void
sweep_on_extents_done(struct client_extents *extents, int err)
{
    struct sim_client *client = extents->context;

    sim_require(&client->cluster->world,
                err == 0 || (client->cluster->healing && err_is_bad_sector(err)), "%s: extents: %s",
                client->process.name, dl_err_str(err));
    sim_require(&client->cluster->world,
                client->extents_next_bytes == client->size_bytes || err != 0,
                "%s: extents end at %" PRIu64 " of %" PRIu64, client->process.name,
                client->extents_next_bytes, client->size_bytes);
    client->extents_told = true;
    client_check_end(client);
}

static void
sweep_ask_extents(struct sim_client *client)
{
    client->extents_asked = true;
    client->extents_next_bytes = 0;
    client->extents = (struct client_extents){
        .length_bytes = client->size_bytes,
        .fn = sweep_on_extent,
        .on_done = sweep_on_extents_done,
        .context = client,
    };
    client_volume_extents(client->volume, &client->extents);
}

/* --- sessions --- */

static void
client_on_closed(void *context, int err, const struct dl_error *error)
{
    struct sim_client *client = context;
    struct cluster *cluster = client->cluster;

    sim_require(&cluster->world, client->state == CLIENT_CLOSING && client->active_ops == 0,
                "%s: closed with %u requests under way", client->process.name, client->active_ops);
    sim_trace(&cluster->world, &client->process, "closed %s: %s %s", client->target->name,
              err == 0 ? "cleanly" : dl_err_name(err), err == 0 ? "" : error->text);
    if (err == 0) {
        cluster->counters.closes_clean++;
    } else {
        sim_require(&cluster->world, !client->sweep, "%s: a close fails in the calm: %s: %s",
                    client->process.name, dl_err_str(err), error->text);
        client_expect_error(client, "close", err);
        cluster->counters.closes_unclean++;
    }
    client->last_close_err = err;
    client->volume = NULL;
    client->sweep = false;
    client_set_state(client, CLIENT_IDLE);
    client_schedule(client, IDLE_NS_MAX);
}

static void
client_count_stats(struct sim_client *client)
{
    struct cluster_counters *counters = &client->cluster->counters;
    struct dlblk_volume_stats stats;

    client_volume_get_stats(client->volume, &stats);
    counters->ejections += stats.ejections;
    counters->ejections_refused += stats.ejections_refused;
    counters->hedged_reads += stats.hedged_reads;
    counters->repairs += stats.repairs;
}

static void
client_close(struct sim_client *client)
{
    client_count_stats(client);
    client_set_state(client, CLIENT_CLOSING);
    sim_trace(&client->cluster->world, &client->process, "closes %s with %u requests under way",
              client->target->name, client->active_ops);
    client_volume_close(client->volume, client_on_closed, client);
}

static void
client_on_close_event(struct sim_event *event)
{
    struct sim_client *client = list_entry(event, struct sim_client, state_event);

    if (client->state == CLIENT_RUNNING)
        client_close(client);
}

/* The session is over: some close at once, some when their requests have ended. */
static void
client_check_end(struct sim_client *client)
{
    bool over = client->session_ops_left == 0 || client->stop_wanted;

    if (client->sweep)
        over = client->sweep_next_block >=
                   client->size_bytes / client->target->logical_block_bytes &&
               client->extents_told;
    if (client->state == CLIENT_RUNNING && client->sweep && !client->extents_asked &&
        client->active_ops == 0 &&
        client->sweep_next_block >= client->size_bytes / client->target->logical_block_bytes)
        sweep_ask_extents(client);
    if (client->state != CLIENT_RUNNING || !over || client->state_event.heap_idx != 0)
        return;
    if (client->active_ops > 0 && (client->sweep || !client->closing_wanted))
        return;
    sim_schedule(&client->cluster->world, &client->state_event, &client->process,
                 client_on_close_event, work_random(client, SIM_MS));
}

static void
client_run(struct sim_client *client)
{
    uint32_t depth = client->cluster->profile.depth;

    client_set_state(client, CLIENT_RUNNING);
    client->session_ops_left = 1 + work_random(client, 2 * client->cluster->profile.session_ops);
    client->closing_wanted = work_percent(client, 30);
    client->reads_only = work_percent(client, client->cluster->profile.reading_percent);
    client->sweep_next_block = 0;
    client->extents_asked = false;
    client->extents_told = false;
    for (uint32_t i = 0; i < depth; i++)
        sim_schedule(&client->cluster->world, &client->ops[i].think_event, &client->process,
                     op_on_think, work_random(client, SIM_MS));
}

static void
client_opened(struct sim_client *client)
{
    struct sim_volume *volume = client->target;
    struct dlblk_volume_geometry geometry;

    client->volume = client->open.volume;
    client->lease_epoch = client_volume_lease_epoch(client->volume);
    client_volume_get_geometry(client->volume, &geometry);
    sim_trace(&client->cluster->world, &client->process, "has %s, lease epoch %u, %u unresolved",
              volume->name, client->lease_epoch, client_volume_unresolved_count(client->volume));
    client->size_bytes = geometry.size_bytes;
    sim_require(&client->cluster->world,
                geometry.size_bytes <= volume->size_bytes_asked &&
                    (!client->sweep || geometry.size_bytes == volume->size_bytes) &&
                    geometry.logical_block_bytes == volume->logical_block_bytes,
                "%s: %s has the wrong geometry", client->process.name, volume->name);
    if ((client->open.flags & DLBLK_OPEN_READ_ONLY) != 0) {
        /* Of a volume that was closed cleanly: as its last owner saw it. */
        client->lease_epoch = volume->lease_epoch_max;
    } else {
        oracle_session_begin(&volume->oracle, client->lease_epoch);
        if (client->lease_epoch > volume->lease_epoch_max)
            volume->lease_epoch_max = client->lease_epoch;
    }
    client->cluster->counters.opens++;
    if ((client->open.flags & DLBLK_OPEN_STEAL) != 0)
        client->cluster->counters.steals++;
    client_run(client);
}

static void
client_on_open(struct client_volume_open *open, int err)
{
    struct sim_client *client = open->context;

    sim_require(&client->cluster->world, client->state == CLIENT_OPENING, "%s: opens twice",
                client->process.name);
    if (err == 0) {
        client_opened(client);
        return;
    }
    sim_trace(&client->cluster->world, &client->process, "cannot open %s: %s: %s",
              client->target->name, dl_err_name(err), open->error.text);
    sim_require(&client->cluster->world, open->error.text[0] != '\0',
                "%s: an open fails without a text: %s", client->process.name, dl_err_str(err));
    sim_require(&client->cluster->world, !client->sweep || err == -DL_E_VOLUME_BUSY,
                "%s: an open fails in the calm: %s", client->process.name, open->error.text);
    client_expect_error(client, "open", err);
    client->cluster->counters.opens_refused++;
    client_set_state(client, CLIENT_IDLE);
    client_schedule(client, IDLE_NS_MAX);
}

static void
client_open(struct sim_client *client)
{
    uint32_t flags = client->open_flags;

    if (!client->sweep) {
        client->target =
            &client->cluster->volumes[work_random(client, client->cluster->profile.volume_count)];
        flags = work_percent(client, client->cluster->profile.steal_percent) ? DLBLK_OPEN_STEAL : 0;
    }
    memset(&client->open, 0, sizeof(client->open));
    client->open.name = client->target->name;
    client->open.flags = flags;
    client->open.on_done = client_on_open;
    client->open.context = client;
    client_set_state(client, CLIENT_OPENING);
    sim_trace(&client->cluster->world, &client->process, "opens %s%s", client->target->name,
              (flags & DLBLK_OPEN_STEAL) != 0 ? ", whoever has it" : "");
    client_volume_open(client->core, &client->open);
}

static void
client_on_state_event(struct sim_event *event)
{
    struct sim_client *client = list_entry(event, struct sim_client, state_event);

    if (client->state != CLIENT_IDLE)
        return;
    if (client->stop_wanted && !client->sweep)
        client_set_state(client, CLIENT_RETIRED);
    else
        client_open(client);
}

/* --- life --- */

static void
client_on_event(void *context, enum dlblk_event_level level, const char *text)
{
    struct sim_client *client = context;

    (void)level;
    sim_trace(&client->cluster->world, &client->process, "says: %s", text);
}

void
client_start(struct sim_client *client)
{
    struct cluster *cluster = client->cluster;
    struct client_core_options options = {
        .meta = {{.host = "meta", .port = 1}},
        .meta_count = 1,
        .owner = client->process.name,
        .request_timeout_ms = (uint32_t)cluster->profile.request_timeout_ms,
        .eject_lost_ms = cluster->profile.eject_lost_ms,
        .eject_silent_ms = cluster->profile.eject_silent_ms,
        .eject_slow_ms = cluster->profile.eject_slow_ms,
        .hedge_min_ms = cluster->profile.hedge_min_ms,
        .on_event = client_on_event,
        .event_context = client,
    };
    struct sim_process *before;
    int err;

    sim_process_start(&client->process);
    before = sim_enter(&client->process);
    err = client_core_create(&client->core, &client->process.env, &options);
    sim_require(&cluster->world, err == 0, "client_core_create: %s", dl_err_str(err));
    client_set_state(client, CLIENT_IDLE);
    client_schedule(client, IDLE_NS_MAX);
    sim_leave(&client->process, before);
}

static void
client_on_restart(struct sim_event *event)
{
    client_start(list_entry(event, struct sim_client, restart_event));
}

void
client_kill(struct sim_client *client, bool silent)
{
    struct sim_world *world = &client->cluster->world;

    sim_process_kill(&client->process, silent);
    client_core_destroy(client->core);
    client->core = NULL;
    client->volume = NULL;
    sim_cancel(world, &client->state_event);
    for (uint32_t i = 0; i < CLIENT_OPS_MAX; i++) {
        struct client_op *op = &client->ops[i];

        sim_cancel(world, &op->think_event);
        op_free_memory(op);
        op->active = false;
    }
    client->active_ops = 0;
    client_set_state(client, CLIENT_IDLE);
    restart_later(client->cluster, &client->restart_event, client_on_restart, RESTART_NS_MAX);
}

void
client_init(struct cluster *cluster, uint32_t idx)
{
    struct sim_client *client = &cluster->clients[idx];
    char name[16];

    (void)snprintf(name, sizeof(name), "client%u", idx + 1);
    sim_process_init(&client->process, &cluster->world, name);
    client->cluster = cluster;
    client->idx = idx;
    for (uint32_t i = 0; i < CLIENT_OPS_MAX; i++)
        client->ops[i].client = client;
}

void
client_fini(struct sim_client *client)
{
    if (client->process.up) {
        sim_process_kill(&client->process, true);
        client_core_destroy(client->core);
    }
    for (uint32_t i = 0; i < CLIENT_OPS_MAX; i++)
        op_free_memory(&client->ops[i]);
    sim_process_fini(&client->process);
}

void
client_wind_down(struct sim_client *client)
{
    struct sim_process *before = sim_enter(&client->process);

    client->stop_wanted = true;
    if (client->state == CLIENT_RUNNING)
        client_check_end(client);
    sim_leave(&client->process, before);
}

bool
client_is_idle(const struct sim_client *client)
{
    return client->state == CLIENT_RETIRED;
}

void
client_sweep(struct sim_client *client, struct sim_volume *volume, uint32_t open_flags)
{
    volume->last_values = realloc(volume->last_values,
                                  volume->oracle.block_count * sizeof(volume->last_values[0]));
    sim_require(&client->cluster->world, volume->last_values != NULL, "no memory");
    client->sweep = true;
    client->target = volume;
    client->open_flags = open_flags;
    client_set_state(client, CLIENT_IDLE);
    client_schedule(client, SIM_MS);
}
