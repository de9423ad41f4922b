/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pull_op.c: PULL of another chunkserver, whose slot recovers from one of ours.  See
 * core_internal.h, docs/recovery.md (rules 12, 13, 16).
 *
 * Checked when its turn comes, and again when its data is here:
 *   not a request that makes sense                  -> MESSAGE_MALFORMED, RANGE
 *   a deleted volume                                -> LEASE_OLD
 *   unknown chunk                                   -> CHUNK_UNKNOWN
 *   our slot recovers itself                        -> NOT_IN_SYNC
 *   the chunk's config epoch is below the attempt   -> NOT_YET
 * A PULL teaches no config epoch: that the slots of the segment have changed is said by the
 * metadata service, or by the owner.
 *
 * PULLs wait in line for their turn (core_pulls_max()), each with an operation of its own but
 * without a buffer; when there are no operations left, those who pull are not read from.
 */
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "common/mutant.h"
#include "dlblk/error.h"

static_assert(STORE_WINDOW_SECTORS_MAX % 64 == 0, "whole words");

static void pull_ops_run(struct chunkserver_core *core);

/* --- the end --- */

/* Its place is free for the next one. */
static void
pull_op_end(struct pull_op *op)
{
    struct chunkserver_core *core = op->session->core;

    if (op->buffer != NULL) {
        buffer_pool_release(core->pull_buffers, op->buffer, BUFFER_BYTES_MAX);
        op->buffer = NULL;
        dl_assert(core->pulls_as_source > 0);
        core->pulls_as_source--;
    }
    pull_op_release(op); /* the session may be gone now */
    pull_ops_run(core);
}

static void
pull_op_on_sent(struct frame_out *frame, int err)
{
    struct pull_op *op = list_entry(frame, struct pull_op, reply);

    session_reply_sent(op->session);
    if (err != 0)
        op->session->core->stats.replies_dropped++;
    pull_op_end(op);
}

/* --- the reply --- */

struct pull_runs {
    Dl__PullRun runs[STORE_IO_SECTORS_MAX];
    Dl__PullRun *pointers[STORE_IO_SECTORS_MAX];
    uint32_t crcs[STORE_IO_SECTORS_MAX];
    size_t count;
};

static bool
run_goes_on(const Dl__PullRun *run, const struct store_sector *sector)
{
    return run->first_sector + run->sector_count == sector->sector &&
           run->kind == (uint32_t)sector->kind && run->version == sector->version &&
           run->birth == sector->birth;
}

static void
pull_runs_fill(struct pull_runs *runs, const struct store_pull *pull, bool bad)
{
    runs->count = 0;
    for (uint32_t i = 0; i < pull->sector_count; i++) {
        const struct store_sector *sector = &pull->sectors[i];
        Dl__PullRun *run = runs->count == 0 ? NULL : &runs->runs[runs->count - 1];

        if (run == NULL || !run_goes_on(run, sector)) {
            run = &runs->runs[runs->count];
            dl__pull_run__init(run);
            run->first_sector = sector->sector;
            run->kind = (uint32_t)sector->kind;
            run->version = sector->version;
            run->birth = sector->birth;
            run->bad = bad;
            run->crcs = &runs->crcs[i];
            runs->pointers[runs->count++] = run;
        }
        run->sector_count++;
        runs->crcs[i] = sector->crc;
        if (sector->kind == SECTOR_DATA)
            run->n_crcs++;
    }
}

static uint32_t
pull_op_pack(struct pull_op *op)
{
    Dl__PullReply reply = DL__PULL_REPLY__INIT;
    struct pull_runs runs;

    pull_runs_fill(&runs, &op->pull, op->bad_version != 0);
    reply.n_runs = runs.count;
    reply.runs = runs.pointers;
    reply.next_sector = op->pull.next_sector;
    reply.stable_version = op->pull.stable_version;
    dl_assert(dl__pull_reply__get_packed_size(&reply) <= sizeof(op->body));
    return (uint32_t)dl__pull_reply__pack(&reply, op->body);
}

static void
pull_op_finish(struct pull_op *op, int err)
{
    struct session *session = op->session;
    uint32_t payload_bytes = op->pull.without_data ? 0 : op->pull.data_sectors * SECTOR_BYTES;

    if (err != 0)
        session->core->stats.pulls_failed++;
    if (session->link == NULL) {
        session->core->stats.replies_dropped++;
        pull_op_end(op);
        return;
    }
    if (err != 0)
        frame_out_empty(&op->reply, OP_PULL, FRAME_REPLY, op->request_id, err);
    else
        frame_out_message_reply(&op->reply, OP_PULL, op->request_id, op->body, pull_op_pack(op),
                                op->buffer, payload_bytes);
    op->reply.on_sent = pull_op_on_sent;
    session_reply(session, &op->reply);
}

/* --- checks --- */

static int
pull_op_check(struct chunkserver_core *core, const struct pull_op *op, const struct chunk *chunk)
{
    if (chunk_table_fence(core->chunks, op->pull.key.volume) == WIRE_LEASE_EPOCH_TOMBSTONE)
        return -DL_E_LEASE_OLD;
    if (chunk == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    if ((chunk->attempt != 0 || slot_is_beginning(core, &op->pull.key)) &&
        !DLBLK_MUTANT(chunkserver_serve_recovering))
        return -DL_E_NOT_IN_SYNC;
    if (chunk->config_epoch < op->config_epoch && !DLBLK_MUTANT(chunkserver_pull_before_epoch))
        return -DL_E_NOT_YET;
    return 0;
}

static bool
is_bad_sector(const struct store_pull *pull, int err)
{
    return err == -DL_E_MEDIA_READ || ((err == -DL_E_CRC_DATA || err == -DL_E_INDEX_CORRUPT) &&
                                       pull->bad_sector >= pull->first_sector);
}

/*
 * The sector is bad here, and nobody in-sync has it: who asks for such ones gets its version and
 * its CRC, so that one sector does not keep back all that lies behind it.
 */
static bool
pull_op_names_bad(struct pull_op *op, uint32_t sector)
{
    struct chunkserver_core *core = op->session->core;
    const struct chunk *chunk = chunk_table_find(core->chunks, &op->pull.key);

    if (!op->takes_bad || chunk == NULL || chunk->local_id != op->local_id)
        return false;
    op->bad_version = findings_hopeless(core->findings, chunk, sector);
    if (op->bad_version == 0)
        return false;
    op->pull.window_sectors = 1;
    op->pull.without_data = true;
    core->store->ops->pull_start(core->store, &op->pull);
    core_store_started(core);
    return true;
}

/* Is it what was found to be bad?  It may have been written since. */
static int
pull_op_check_bad(const struct pull_op *op)
{
    const struct store_sector *sector = op->pull.sector_count == 1 ? &op->pull.sectors[0] : NULL;

    return sector != NULL && sector->kind == SECTOR_DATA && sector->version == op->bad_version
               ? 0
               : -DL_E_CRC_DATA;
}

/*
 * A sector is bad here: it is repaired, and who pulls gets what lies before it, if there is
 * something.  Otherwise sources that have bad sectors in different places would fail one after the
 * other, and nobody ever get on.  Of a read that the drive failed nobody says which sector it was:
 * half of the window is tried, down to one.  True: the store is asked again.
 */
static bool
pull_op_is_shortened(struct pull_op *op, int err)
{
    struct chunkserver_core *core = op->session->core;
    struct store_pull *pull = &op->pull;
    bool unknown = err == -DL_E_MEDIA_READ;
    uint32_t good_sectors = unknown ? pull->window_sectors / 2
                                    : pull->bad_sector - pull->first_sector;

    if (good_sectors == 0 && pull_op_names_bad(op, pull->first_sector))
        return true;
    if (!unknown || good_sectors == 0)
        repair_found(core, &pull->key, unknown ? pull->first_sector : pull->bad_sector);
    if (good_sectors == 0)
        return false;
    pull->window_sectors = good_sectors;
    core->store->ops->pull_start(core->store, pull);
    core_store_started(core);
    return true;
}

static void
pull_op_on_pulled(struct store_pull *pull, int err)
{
    struct pull_op *op = list_entry(pull, struct pull_op, pull);
    struct chunkserver_core *core = op->session->core;
    const struct chunk *chunk = chunk_table_find(core->chunks, &pull->key);

    if (op->bad_version != 0) {
        err = err != 0 ? err : pull_op_check_bad(op);
    } else if (is_bad_sector(pull, err) && chunk != NULL && !core->stopping &&
               pull_op_is_shortened(op, err)) {
        return;
    }
    if (err == 0 && chunk != NULL && chunk->local_id != op->local_id)
        err = -DL_E_CHUNK_UNKNOWN;
    pull_op_finish(op, err != 0 ? err : pull_op_check(core, op, chunk));
}

/* --- the start --- */

static void
pull_op_start(struct pull_op *op, const struct chunk *chunk)
{
    struct chunkserver_core *core = op->session->core;

    op->buffer = buffer_pool_acquire(core->pull_buffers, BUFFER_BYTES_MAX);
    dl_assert(op->buffer != NULL);
    core->pulls_as_source++;
    op->local_id = chunk->local_id;
    op->pull.buffer = op->buffer;
    core->store->ops->pull_start(core->store, &op->pull);
    core_store_started(core);
}

static void
pull_op_on_taught(struct store_change *change, int err)
{
    struct pull_op *op = list_entry(change, struct pull_op, teaching);
    const struct chunk *chunk = chunk_table_find(op->session->core->chunks, &op->pull.key);

    if (err == 0)
        err = pull_op_check(op->session->core, op, chunk);
    if (err != 0)
        pull_op_finish(op, err);
    else
        pull_op_start(op, chunk);
}

/* A mistake on purpose: the source takes the config epoch from the one who pulls. */
static void
pull_op_teach(struct pull_op *op)
{
    struct chunkserver_core *core = op->session->core;

    op->teaching = (struct store_change){
        .kind = STORE_IN_SYNC,
        .key = op->pull.key,
        .config_epoch = op->config_epoch,
        .on_done = pull_op_on_taught,
    };
    core->store->ops->change_start(core->store, &op->teaching);
    core_store_started(core);
}

static void
pull_op_turn(struct pull_op *op)
{
    struct chunkserver_core *core = op->session->core;
    const struct chunk *chunk = chunk_table_find(core->chunks, &op->pull.key);
    int err = op->session->link == NULL ? -DL_E_CONNECTION_LOST : pull_op_check(core, op, chunk);

    if (err == -DL_E_NOT_YET && DLBLK_MUTANT(chunkserver_pull_teaches))
        pull_op_teach(op);
    else if (err != 0)
        pull_op_finish(op, err);
    else
        pull_op_start(op, chunk);
}

static void
pull_ops_run(struct chunkserver_core *core)
{
    while (core->pulls_as_source < core_pulls_max(core) && !list_is_empty(&core->pull_queue))
        pull_op_turn(list_entry(list_pop_front(&core->pull_queue), struct pull_op, node));
}

/* --- the request --- */

static int
pull_message_check(const Dl__Pull *message)
{
    if (message->volume == 0 || message->slot >= WIRE_SLOTS_MAX || message->config_epoch == 0 ||
        message->window_sectors == 0 || message->window_sectors > STORE_WINDOW_SECTORS_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    if (message->wanted.len != 0 && message->wanted.len != (message->window_sectors + 7) / 8)
        return -DL_E_MESSAGE_MALFORMED;
    if (message->first_sector >= WIRE_CHUNK_SECTORS_MAX ||
        message->window_sectors > WIRE_CHUNK_SECTORS_MAX - message->first_sector)
        return -DL_E_RANGE;
    return 0;
}

static void
pull_op_decode(struct pull_op *op, const struct frame *frame, const Dl__Pull *message)
{
    op->request_id = frame->request_id;
    op->config_epoch = message->config_epoch;
    op->takes_bad = message->takes_bad;
    op->bad_version = 0;
    op->pull = (struct store_pull){
        .key = {.volume = message->volume, .segment = message->segment, .slot = message->slot},
        .first_sector = message->first_sector,
        .window_sectors = message->window_sectors,
        .above_version = message->above_version,
        .without_data = message->checksums_only,
        .sectors = op->sectors,
        .on_done = pull_op_on_pulled,
    };
    if (message->wanted.len == 0)
        return;
    memset(op->wanted, 0, sizeof(op->wanted));
    for (size_t i = 0; i < message->wanted.len; i++)
        op->wanted[i / 8] |= (uint64_t)message->wanted.data[i] << (i % 8 * 8);
    op->pull.wanted = op->wanted;
}

void
pull_op_receive(struct session *session, const struct frame *frame)
{
    struct chunkserver_core *core = session->core;
    ProtobufCMessage *message = frame_unpack(frame, &dl__pull__descriptor);
    int err = message == NULL ? -DL_E_MESSAGE_MALFORMED : pull_message_check((const void *)message);
    struct pull_op *op;

    core->stats.pulls++;
    if (err != 0) {
        core->stats.pulls_failed++;
        session_refuse(session, frame, err);
    } else {
        op = pull_op_acquire(core, session);
        pull_op_decode(op, frame, (const void *)message);
        list_push_back(&core->pull_queue, &op->node);
        pull_ops_run(core);
    }
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
}
