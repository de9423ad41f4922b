/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data_op.c: READ, WRITE and STABLE of clients: checked, started, answered.  See core_internal.h.
 *
 * Checks, in this order, for each request that is well-formed:
 *   lease epoch below the volume's fence            -> LEASE_OLD
 *   config epoch below the chunk's                  -> EPOCH_OLD
 *   unknown chunk, config epoch above the first     -> CHUNK_UNKNOWN
 *   the same under the first, but it was deleted    -> EPOCH_OLD
 *   the slot's recovery attempt is not the request's -> NOT_YET, EPOCH_OLD (WRITE, STABLE)
 *   the slot recovers                               -> NOT_IN_SYNC (READ)
 *   (WRITE) a sector's CRC is not what was sent     -> CRC_WIRE
 * An unknown chunk under the first config epoch is created by a WRITE, reads as holes, and has
 * nothing to be stable.  All is decided at once, before the store is asked: a fence that comes
 * later waits for what was accepted before.  Only a READ is looked at again when its data is here:
 * meanwhile the volume may have a newer owner, or the chunk may have become another one, or may be
 * recovering.
 */
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mutant.h"
#include "dlblk/error.h"

#define FIRST_CONFIG_EPOCH 1u

static_assert(STORE_IO_SECTORS_MAX == WIRE_IO_SECTORS_MAX, "the store takes what the wire brings");
static_assert((int)SECTOR_HOLE == (int)WIRE_SECTOR_HOLE &&
                  (int)SECTOR_ZERO == (int)WIRE_SECTOR_ZERO &&
                  (int)SECTOR_DATA == (int)WIRE_SECTOR_DATA,
              "the store's kinds are the wire's");

static struct chunk_key
key_of_target(const struct data_target *target)
{
    return (struct chunk_key){
        .volume = target->volume,
        .segment = target->segment,
        .slot = target->slot,
    };
}

/* *ret_chunk NULL: unknown, under the first config epoch. */
static int
target_check(struct chunkserver_core *core, const struct data_target *target,
             const struct chunk_key *key, struct chunk **ret_chunk)
{
    struct chunk *chunk = chunk_table_find(core->chunks, key);
    uint32_t fence = chunk != NULL ? chunk->volume->lease_epoch
                                   : chunk_table_fence(core->chunks, key->volume);

    if (target->lease_epoch < fence && !DLBLK_MUTANT(chunkserver_forget_lease_check)) {
        core->stats.refused_lease++;
        return -DL_E_LEASE_OLD;
    }
    if (chunk == NULL && target->config_epoch != FIRST_CONFIG_EPOCH) {
        core->stats.refused_unknown++;
        return -DL_E_CHUNK_UNKNOWN;
    }
    if (chunk == NULL && removed_is_noted(core, key)) {
        core->stats.refused_epoch++;
        return -DL_E_EPOCH_OLD;
    }
    if (chunk != NULL && target->config_epoch < chunk->config_epoch &&
        !DLBLK_MUTANT(chunkserver_forget_config_check)) {
        core->stats.refused_epoch++;
        return -DL_E_EPOCH_OLD;
    }
    *ret_chunk = chunk;
    return 0;
}

/*
 * A request that could not be decoded: out of range is the client's problem, anything else is no
 * client of ours.
 */
static void
request_undecodable(struct session *session, const struct frame *frame, int err)
{
    if (err == -DL_E_RANGE || err == -DL_E_ALIGNMENT)
        session_refuse(session, frame, err);
    else
        session_malformed(session, frame, err);
}

/*
 * May this WRITE or STABLE, which names this attempt (0: none), act on the chunk?  Rule 10 of
 * docs/recovery.md.
 */
static int
target_check_attempt(struct chunkserver_core *core, const struct chunk_key *key,
                     const struct chunk *chunk, uint32_t attempt)
{
    uint32_t own = chunk == NULL ? 0 : chunk->attempt;

    if (attempt == own && !slot_is_beginning(core, key))
        return 0;
    core->stats.refused_attempt++;
    return -DL_E_NOT_YET;
}

/*
 * The same of a WRITE.  Without an attempt, under a config epoch above the chunk's attempt, it
 * says that the slot was promoted.
 */
static int
write_check_attempt(struct chunkserver_core *core, const struct data_write *write,
                    const struct chunk_key *key, const struct chunk *chunk)
{
    if (chunk != NULL && chunk->attempt != 0 && write->attempt == 0 &&
        !slot_is_beginning(core, key))
        return write->target.config_epoch > chunk->attempt ? 0 : -DL_E_EPOCH_OLD;
    return target_check_attempt(core, key, chunk, write->attempt);
}

/* May it be read? */
static int
target_check_in_sync(struct chunkserver_core *core, const struct chunk_key *key,
                     const struct chunk *chunk)
{
    if (DLBLK_MUTANT(chunkserver_serve_recovering))
        return 0;
    if (!slot_is_beginning(core, key) && (chunk == NULL || chunk->attempt == 0))
        return 0;
    core->stats.refused_attempt++;
    return -DL_E_NOT_IN_SYNC;
}

/* --- WRITE --- */

static void
write_op_on_sent(struct frame_out *frame, int err)
{
    struct write_op *op = list_entry(frame, struct write_op, reply);

    session_reply_sent(op->session);
    if (err != 0)
        op->session->core->stats.replies_dropped++;
    write_op_release(op);
}

static void
write_op_finish(struct write_op *op, int err)
{
    struct session *session = op->session;

    if (err != 0)
        session->core->stats.writes_failed++;
    write_op_release_buffer(op);
    if (session->link == NULL) {
        session->core->stats.replies_dropped++;
        write_op_release(op);
        return;
    }
    frame_out_empty(&op->reply, OP_WRITE, FRAME_REPLY, op->request_id, err);
    op->reply.on_sent = write_op_on_sent;
    session_reply(session, &op->reply);
}

static void
write_op_on_stored(struct store_write *write, int err)
{
    struct write_op *op = list_entry(write, struct write_op, write);

    if (err == 0)
        findings_written(op->session->core->findings, &write->key, write->offset_sectors,
                         write->length_sectors, write->version);
    write_op_finish(op, err);
}

/* The one pass over the payload.  The CRCs that came go to the store as they are. */
static int
write_op_check_crcs(struct write_op *op, const struct data_write *write)
{
    const uint8_t *sector = op->buffer;

    for (uint32_t i = 0; i < write->crc_count; i++) {
        op->crcs[i] = le32_load(write->crcs_le + i * sizeof(le32));
        if (crc32c(0, sector, SECTOR_BYTES) != op->crcs[i] &&
            !DLBLK_MUTANT(chunkserver_forget_wire_crc))
            return -DL_E_CRC_WIRE;
        sector += SECTOR_BYTES;
    }
    return 0;
}

static void
write_op_start(struct write_op *op, const struct data_write *write, const struct chunk_key *key,
               const struct chunk *chunk)
{
    struct chunkserver_core *core = op->session->core;
    const struct data_target *target = &write->target;
    struct store_write *store_write = &op->write;

    *store_write = (struct store_write){
        .key = *key,
        .config_epoch = target->config_epoch,
        .birth = write->snapshot_seq,
        .version = write->version,
        .stable_version = write->stable_version,
        .attempt = write->attempt,
        .offset_sectors = target->offset_sectors,
        .length_sectors = target->length_sectors,
        .zero = (target->flags & WRITE_ZERO) != 0,
        .create = chunk == NULL,
        .retry = (target->flags & WRITE_RETRY) != 0,
        .use_reserve = (target->flags & WRITE_RESOLVE) != 0,
        .payload = op->buffer,
        .crcs = op->crcs,
        .on_done = write_op_on_stored,
    };
    if (DLBLK_MUTANT(chunkserver_write_without_attempt))
        store_write->attempt = chunk == NULL ? 0 : chunk->attempt;
    core->store->ops->write_start(core->store, store_write);
    core_store_started(core);
}

static void
write_op_accept(struct write_op *op, const struct data_write *write)
{
    struct chunkserver_core *core = op->session->core;
    struct chunk_key key = key_of_target(&write->target);
    struct chunk *chunk = NULL;
    int err = target_check(core, &write->target, &key, &chunk);

    if (err == 0)
        err = write_check_attempt(core, write, &key, chunk);
    if (err == -DL_E_NOT_YET && DLBLK_MUTANT(chunkserver_write_without_attempt))
        err = 0;
    if (err == 0) {
        err = write_op_check_crcs(op, write);
        if (err != 0)
            core->stats.crc_wire_errors++;
    }
    if (err != 0)
        write_op_finish(op, err);
    else
        write_op_start(op, write, &key, chunk);
}

void
write_op_receive(struct session *session, const struct frame *frame)
{
    struct write_op *op = session->incoming;
    struct data_write write;
    int err = data_write_decode(frame, &write);

    session->incoming = NULL;
    session->core->stats.writes++;
    if (err == 0 && op == NULL) {
        dl_assert(write.crc_count == 0); /* otherwise its payload has a place */
        op = write_op_acquire(session->core, session, 0);
    }
    if (err != 0) {
        request_undecodable(session, frame, err);
        if (op != NULL)
            write_op_release(op);
        return;
    }
    op->request_id = frame->request_id;
    write_op_accept(op, &write);
}

/* --- READ --- */

static void
read_op_on_sent(struct frame_out *frame, int err)
{
    struct read_op *op = list_entry(frame, struct read_op, reply);

    session_reply_sent(op->session);
    if (err != 0)
        op->session->core->stats.replies_dropped++;
    read_op_release(op);
}

/* CRCs, then kinds, then zeroes up to a multiple of four: the rest of the reply's body. */
static void
read_op_encode_tail(struct read_op *op)
{
    uint32_t count = op->read.length_sectors;
    uint8_t *kinds = op->reply_tail + count * sizeof(le32);

    for (uint32_t i = 0; i < count; i++)
        le32_store(op->reply_tail + i * sizeof(le32), op->read.crcs[i]);
    memcpy(kinds, op->read.kinds, count);
    while (count % sizeof(le32) != 0)
        kinds[count++] = 0;
}

static void
read_op_finish(struct read_op *op, int err)
{
    struct session *session = op->session;
    uint32_t payload_bytes = op->read.data_sectors == 0 ? 0
                                                        : op->read.length_sectors * SECTOR_BYTES;

    if (err != 0)
        session->core->stats.reads_failed++;
    if (session->link == NULL) {
        session->core->stats.replies_dropped++;
        read_op_release(op);
        return;
    }
    if (err != 0) {
        frame_out_empty(&op->reply, OP_READ, FRAME_REPLY, op->request_id, err);
    } else {
        read_op_encode_tail(op);
        frame_out_read_reply(&op->reply, op->request_id, op->read.length_sectors,
                             op->read.data_sectors, op->reply_tail, op->buffer, payload_bytes);
    }
    op->reply.on_sent = read_op_on_sent;
    session_reply(session, &op->reply);
}

/*
 * The chunk may have changed under the read: what the store gave may be a newer owner's, who has
 * not even an answer to it, or of an attempt that began meanwhile, or of a new chunk in the old
 * one's place.
 */
static int
read_op_check_again(struct read_op *op)
{
    struct chunkserver_core *core = op->session->core;
    const struct chunk *chunk = chunk_table_find(core->chunks, &op->read.key);

    if (DLBLK_MUTANT(chunkserver_serve_recovering) || DLBLK_MUTANT(chunkserver_read_unchecked))
        return 0;
    if (chunk == NULL || chunk->local_id != op->local_id)
        return -DL_E_CHUNK_UNKNOWN;
    if (op->lease_epoch < chunk->volume->lease_epoch) {
        core->stats.refused_lease++;
        return -DL_E_LEASE_OLD;
    }
    if (op->config_epoch < chunk->config_epoch)
        return -DL_E_EPOCH_OLD;
    return target_check_in_sync(core, &op->read.key, chunk);
}

static void
read_op_on_stored(struct store_read *read, int err)
{
    struct read_op *op = list_entry(read, struct read_op, read);

    read_op_finish(op, err != 0 ? err : read_op_check_again(op));
}

/* What an unknown chunk under the first config epoch reads as. */
static void
read_op_fill_holes(struct read_op *op)
{
    op->read.data_sectors = 0;
    memset(op->read.kinds, SECTOR_HOLE, op->read.length_sectors);
    memset(op->read.crcs, 0, op->read.length_sectors * sizeof(op->read.crcs[0]));
}

static void
read_op_accept(struct read_op *op, const struct data_read *read)
{
    struct chunkserver_core *core = op->session->core;
    struct chunk *chunk = NULL;

    op->read.key = key_of_target(&read->target);
    op->read.snapshot_seq = read->snapshot_seq;
    op->read.offset_sectors = read->target.offset_sectors;
    op->read.length_sectors = read->target.length_sectors;
    op->read.buffer = op->buffer;
    op->read.data_sectors = 0;
    op->read.on_done = read_op_on_stored;
    op->read.node = (struct list){NULL, NULL};
    op->config_epoch = read->target.config_epoch;
    op->lease_epoch = read->target.lease_epoch;
    int err = target_check(core, &read->target, &op->read.key, &chunk);
    if (err == 0)
        err = target_check_in_sync(core, &op->read.key, chunk);
    if (err != 0) {
        read_op_finish(op, err);
    } else if (chunk == NULL) {
        read_op_fill_holes(op);
        read_op_finish(op, 0);
    } else {
        op->local_id = chunk->local_id;
        core->store->ops->read_start(core->store, &op->read);
        core_store_started(core);
    }
}

void
read_op_receive(struct session *session, const struct frame *frame)
{
    struct data_read read;
    struct read_op *op;
    int err = data_read_decode(frame, &read);

    session->core->stats.reads++;
    if (err != 0) {
        request_undecodable(session, frame, err);
        return;
    }
    if (DLBLK_MUTANT(chunkserver_read_old_lease))
        read.target.lease_epoch = WIRE_LEASE_EPOCH_MAX;
    op = read_op_acquire(session->core, session, read.target.length_sectors * SECTOR_BYTES);
    op->request_id = frame->request_id;
    read_op_accept(op, &read);
}

/* --- STABLE --- */

static void
stable_op_on_sent(struct frame_out *frame, int err)
{
    struct stable_op *op = list_entry(frame, struct stable_op, reply);

    session_reply_sent(op->session);
    if (err != 0)
        op->session->core->stats.replies_dropped++;
    stable_op_release(op);
}

static void
stable_op_finish(struct stable_op *op, int err)
{
    struct session *session = op->session;

    if (session->link == NULL) {
        session->core->stats.replies_dropped++;
        stable_op_release(op);
        return;
    }
    frame_out_empty(&op->reply, OP_STABLE, FRAME_REPLY, op->request_id, err);
    op->reply.on_sent = stable_op_on_sent;
    session_reply(session, &op->reply);
}

static void
stable_op_on_stored(struct store_change *change, int err)
{
    stable_op_finish(list_entry(change, struct stable_op, change), err);
}

static void
stable_op_accept(struct stable_op *op, const struct data_stable *stable)
{
    struct chunkserver_core *core = op->session->core;
    struct chunk_key key = key_of_target(&stable->target);
    struct chunk *chunk = NULL;
    int err = target_check(core, &stable->target, &key, &chunk);

    /* Not acted upon, and not confirmed either: it is sent again. */
    if (err == 0)
        err = target_check_attempt(core, &key, chunk, stable->attempt);
    if (err == -DL_E_NOT_YET && chunk != NULL && DLBLK_MUTANT(chunkserver_foreign_stable))
        err = 0;
    if (err != 0 || chunk == NULL) {
        stable_op_finish(op, err);
        return;
    }
    op->change = (struct store_change){
        .kind = (stable->target.flags & STABLE_FORGET) != 0 ? STORE_FORGET : STORE_STABLE,
        .key = key,
        .lease_epoch = stable->target.lease_epoch,
        .config_epoch = stable->target.config_epoch,
        .attempt = chunk->attempt,
        .stable_version = stable->stable_version,
        .on_done = stable_op_on_stored,
    };
    core->store->ops->change_start(core->store, &op->change);
    core_store_started(core);
}

void
stable_op_receive(struct session *session, const struct frame *frame)
{
    struct data_stable stable;
    struct stable_op *op;
    int err = data_stable_decode(frame, &stable);

    session->core->stats.stables++;
    if (err != 0) {
        request_undecodable(session, frame, err);
        return;
    }
    op = stable_op_acquire(session->core, session);
    op->request_id = frame->request_id;
    stable_op_accept(op, &stable);
}
