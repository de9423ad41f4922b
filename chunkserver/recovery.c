/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recovery.c: a slot that recovers here pulls what it lacks from in-sync slots.  See
 * core_internal.h, docs/recovery.md (pulling; rules 11 to 17).
 *
 *           +-----------------------------------------------------------+
 *           v        turn            voids            answer            | durable
 *        READY -----------> LOOKING -------> PULLING --------> MERGING -+
 *         ^ | |                |               |                 |
 *         | | +-- not up --+   +------- error -+-----------------+
 *         | | whole        v                   v
 *         | |           WAITING <--------------+
 *         | |              |
 *         | |              +--> READY, by the timer, or when a peer comes up
 *         | v     durable
 *         | ENDING ------> WHOLE: reported, again and again, until the slot is promoted
 *         | (error: WAITING)
 *        begin
 *
 *        each of them --- the chunk has another attempt, or none, or is gone --> OVER
 *
 * Suspending: LOOKING, MERGING, ENDING for the store; PULLING for the peer; WAITING, WHOLE for the
 * timer.  A recovery has a turn from LOOKING to the end of MERGING, and a buffer with it; turns are
 * limited (core_pulls_max()), others are READY in line; while clients are at it, none begins for
 * PULL_REST_FACTOR times as long as the last one took.
 *
 * Where it is: the chunk's cursor, which the store keeps.  What goes wrong is tried again, with
 * another peer (NOT_YET: with the same one at first), after RETRY_MIN_NS, doubled up to
 * RETRY_MAX_NS.
 *
 * When the cursor is at the end, sectors can be void still: those of a damaged leaf take only what
 * is surely not older than what was lost (store_merge).  They are asked for again, from the
 * beginning, until there are none: only then the slot is whole.
 *
 * Nothing begins here but by recovery_begin(), which follows the metadata service's word: after a
 * restart nothing is pulled until it names an attempt.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/peer.h"
#include "chunkserver/scrub.h"
#include "common/align.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mutant.h"
#include "common/sm.h"
#include "dlblk/error.h"

#define RETRY_MIN_NS     (10 * CORE_NS_PER_MS)
#define RETRY_MAX_NS     (1000 * CORE_NS_PER_MS)
#define PEER_WAIT_NS     (500 * CORE_NS_PER_MS) /* for one that is not up */
#define PULL_TIMEOUT_NS  (10000 * CORE_NS_PER_MS)
#define PROGRESS_NS      (2000 * CORE_NS_PER_MS)
#define REPORT_RETRY_NS  (1000 * CORE_NS_PER_MS)
#define REPORT_REPEAT_NS (5000 * CORE_NS_PER_MS)

enum recovery_state {
    RECOVERY_READY,
    RECOVERY_LOOKING,
    RECOVERY_PULLING,
    RECOVERY_MERGING,
    RECOVERY_WAITING,
    RECOVERY_ENDING,
    RECOVERY_WHOLE,
    RECOVERY_OVER,
};

static const struct sm_state recovery_states[] = {
    [RECOVERY_READY] = {"READY", SM_EDGE(RECOVERY_LOOKING) | SM_EDGE(RECOVERY_WAITING) |
                                     SM_EDGE(RECOVERY_ENDING) | SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_LOOKING] = {"LOOKING", SM_EDGE(RECOVERY_PULLING) | SM_EDGE(RECOVERY_READY) |
                                         SM_EDGE(RECOVERY_WAITING) | SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_PULLING] = {"PULLING", SM_EDGE(RECOVERY_MERGING) | SM_EDGE(RECOVERY_WAITING) |
                                         SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_MERGING] = {"MERGING", SM_EDGE(RECOVERY_READY) | SM_EDGE(RECOVERY_WAITING) |
                                         SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_WAITING] = {"WAITING", SM_EDGE(RECOVERY_READY) | SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_ENDING] = {"ENDING", SM_EDGE(RECOVERY_WHOLE) | SM_EDGE(RECOVERY_WAITING) |
                                       SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_WHOLE] = {"WHOLE", SM_EDGE(RECOVERY_OVER)},
    [RECOVERY_OVER] = {"OVER", SM_FINAL},
};
static const struct sm_table recovery_table = SM_TABLE("recovery", recovery_states);

struct recovery {
    struct list node;
    struct sm sm;
    struct chunkserver_core *core;
    struct chunk_key key;
    uint32_t attempt;
    uint32_t segment_sectors;
    struct pull_source sources[PULL_SOURCES_MAX];
    uint32_t source_count, source_idx;
    bool obsolete;         /* it ends as soon as nothing of it is under way */
    bool needs_peer;       /* WAITING: for the peer to come up */
    bool sweep_needed;     /* something was void: is it still? */
    uint32_t sweep_sector; /* nothing before it is void */
    bool sweeping;         /* this turn is for that */
    bool told_s;           /* a source has said its S in this life of the process */
    uint64_t source_stable;
    uint64_t retry_ns;
    int last_error; /* not logged again and again */
    struct env_timer timer;

    /* One turn. */
    uint64_t turn_ns; /* when it began */
    void *buffer;
    uint32_t window_first, window_sectors;
    uint64_t above_version;
    struct store_voids voids;
    struct session_call call;
    uint32_t sector_count, data_sectors, next_sector;
    bool bad; /* the one sector that came has no data: nobody has it */
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    struct store_merge merge;

    struct store_change report; /* ENDING */
    uint64_t report_id;         /* WHOLE: the request that waits for its answer; 0: none */
    uint64_t pulled_bytes;
    uint64_t progress_ns;
};

static void recoveries_run(struct chunkserver_core *core);

struct recovery_name {
    char text[80];
};

static struct recovery_name
recovery_name(const struct recovery *recovery)
{
    struct recovery_name name;

    (void)snprintf(name.text, sizeof(name.text), "volume %" PRIu64 " segment %u slot %u",
                   recovery->key.volume, recovery->key.segment, recovery->key.slot);
    return name;
}

/* NULL: the attempt is over. */
static struct chunk *
recovery_chunk(const struct recovery *recovery)
{
    struct chunk *chunk = chunk_table_find(recovery->core->chunks, &recovery->key);

    if (recovery->obsolete || chunk == NULL || chunk->attempt != recovery->attempt)
        return NULL;
    return chunk;
}

/* --- ends --- */

static void
recovery_end_turn(struct recovery *recovery)
{
    struct chunkserver_core *core = recovery->core;
    uint64_t now_ns = env_now_ns(core->env);

    if (recovery->buffer == NULL)
        return;
    buffer_pool_release(core->pull_buffers, recovery->buffer, BUFFER_BYTES_MAX);
    recovery->buffer = NULL;
    dl_assert(core->pulls_as_target > 0);
    core->pulls_as_target--;
    core->pull_rest_ns = now_ns + PULL_REST_FACTOR * (now_ns - recovery->turn_ns);
}

/* Nothing of it is under way.  It is gone afterwards. */
static void
recovery_over(struct recovery *recovery)
{
    struct chunkserver_core *core = recovery->core;

    dl_assert(!client_session_call_is_active(&recovery->call));
    recovery_end_turn(recovery);
    env_timer_stop(core->env, &recovery->timer);
    sm_move(&recovery->sm, RECOVERY_OVER);
    list_remove(&recovery->node);
    free(recovery);
    recoveries_run(core);
    core_stop_step(core);
}

/* Again later.  The turn, if it has one, is another's. */
static void
recovery_wait(struct recovery *recovery, uint64_t wait_ns)
{
    struct chunkserver_core *core = recovery->core;

    if (recovery_chunk(recovery) == NULL) {
        recovery_over(recovery);
        return;
    }
    recovery_end_turn(recovery);
    sm_move(&recovery->sm, RECOVERY_WAITING);
    env_timer_start(core->env, &recovery->timer, wait_ns);
    recoveries_run(core);
}

static uint64_t recovery_send_report(struct recovery *recovery, bool done, bool no_space);

static void
recovery_fail(struct recovery *recovery, int err)
{
    uint64_t wait_ns = recovery->retry_ns;

    recovery->core->stats.recovery_failures++;
    if (err != recovery->last_error && err != -DL_E_NOT_YET)
        log_info("chunkserver", recovery_name(recovery).text, "recovery, at sector %u: %s",
                 recovery->window_first, dl_err_str(err));
    recovery->last_error = err;
    if (err == -DL_E_NO_SPACE && recovery_chunk(recovery) != NULL)
        (void)recovery_send_report(recovery, false, true);
    /* It may never be told: nobody reaches it, or its store takes no writes. */
    if ((err != -DL_E_NOT_YET || wait_ns == RETRY_MAX_NS) && recovery->source_count > 0)
        recovery->source_idx = (recovery->source_idx + 1) % recovery->source_count;
    recovery->retry_ns = min_u64(2 * wait_ns, RETRY_MAX_NS);
    recovery_wait(recovery, wait_ns);
}

/* --- reports --- */

/* The id of the request; 0: not sent. */
static uint64_t
recovery_send_report(struct recovery *recovery, bool done, bool no_space)
{
    struct chunkserver_core *core = recovery->core;
    const struct chunk *chunk = recovery_chunk(recovery);
    Dl__RecoveryReport message = DL__RECOVERY_REPORT__INIT;

    dl_assert(chunk != NULL);
    message.volume = recovery->key.volume;
    message.segment = recovery->key.segment;
    message.slot = recovery->key.slot;
    message.attempt = recovery->attempt;
    message.lease_epoch = chunk->volume->lease_epoch;
    message.done = done;
    message.no_space = no_space;
    message.cursor_sectors = chunk->cursor_sectors;
    message.pulled_bytes = recovery->pulled_bytes;
    return meta_link_request(core, OP_RECOVERY_REPORT, &message.base);
}

static void
recovery_report_progress(struct recovery *recovery)
{
    uint64_t now_ns = env_now_ns(recovery->core->env);

    if (now_ns - recovery->progress_ns < PROGRESS_NS)
        return;
    recovery->progress_ns = now_ns;
    (void)recovery_send_report(recovery, false, false);
}

/*
 * Until the slot is promoted, or has another attempt.  Also after an answer: the metadata service
 * may have had a reason not to promote it that is gone a moment later.
 */
static void
recovery_report_whole(struct recovery *recovery)
{
    if (recovery_chunk(recovery) == NULL) {
        recovery_over(recovery);
        return;
    }
    recovery->report_id = recovery_send_report(recovery, true, false);
    env_timer_start(recovery->core->env, &recovery->timer, REPORT_REPEAT_NS);
}

void
recoveries_on_registered(struct chunkserver_core *core)
{
    struct recovery *recovery;

    list_for_each_entry (recovery, &core->recoveries, node)
        if (recovery->sm.state == RECOVERY_WHOLE)
            env_timer_start(core->env, &recovery->timer, 0);
}

void
recoveries_on_report_reply(struct chunkserver_core *core, uint64_t request_id, int status)
{
    struct recovery *recovery;

    list_for_each_entry (recovery, &core->recoveries, node) {
        if (recovery->sm.state != RECOVERY_WHOLE || recovery->report_id != request_id)
            continue;
        recovery->report_id = 0;
        if (status != 0)
            env_timer_start(core->env, &recovery->timer, REPORT_RETRY_NS);
        return;
    }
}

static void
recovery_on_ended(struct store_change *change, int err)
{
    struct recovery *recovery = list_entry(change, struct recovery, report);

    if (recovery_chunk(recovery) == NULL) {
        recovery_over(recovery);
    } else if (err != 0) {
        recovery_fail(recovery, err);
    } else {
        log_info("chunkserver", recovery_name(recovery).text,
                 "recovery, attempt %u: all is here, %" PRIu64 " bytes were pulled",
                 recovery->attempt, recovery->pulled_bytes);
        sm_move(&recovery->sm, RECOVERY_WHOLE);
        recovery_report_whole(recovery);
    }
}

static void
recovery_end(struct recovery *recovery)
{
    struct chunkserver_core *core = recovery->core;

    sm_move(&recovery->sm, RECOVERY_ENDING);
    recovery->report = (struct store_change){
        .kind = STORE_REPORT,
        .key = recovery->key,
        .attempt = recovery->attempt,
        .stable_version = recovery->source_stable,
        .on_done = recovery_on_ended,
    };
    core->store->ops->change_start(core->store, &recovery->report);
    core_store_started(core);
}

/* --- what came --- */

/* To the end of the line. */
static void
recovery_next_turn(struct recovery *recovery)
{
    struct chunkserver_core *core = recovery->core;

    recovery_end_turn(recovery);
    sm_move(&recovery->sm, RECOVERY_READY);
    list_remove(&recovery->node);
    list_push_back(&core->recoveries, &recovery->node);
    recoveries_run(core);
}

/* The log says it, and the events, as of every bad sector. */
static void
recovery_note_bad(struct recovery *recovery)
{
    const struct store_sector *sector = &recovery->sectors[0];

    log_warning("chunkserver", recovery_name(recovery).text,
                "recovery: sector %u is bad, and no slot in-sync has it right: it is bad here too",
                sector->sector);
    recovery->core->stats.sectors_bad++;
    findings_bad(recovery->core->findings, recovery_chunk(recovery), sector->sector,
                 sector->version, false, 0);
}

static void
recovery_on_merged(struct store_merge *merge, int err)
{
    struct recovery *recovery = list_entry(merge, struct recovery, merge);
    struct chunkserver_core *core = recovery->core;

    if (recovery_chunk(recovery) == NULL) {
        recovery_over(recovery);
        return;
    }
    if (err == 0 && recovery->sweeping && merge->taken_sectors == 0)
        err = -DL_E_INDEX_CORRUPT; /* a later S of this source, or another one */
    if (err != 0) {
        recovery_fail(recovery, err);
        return;
    }
    for (uint32_t i = 0; i < merge->sector_count; i++)
        findings_written(core->findings, &merge->key, merge->sectors[i].sector, 1,
                         merge->sectors[i].version);
    if (recovery->bad && merge->taken_sectors > 0)
        recovery_note_bad(recovery);
    core->stats.recovery_pulls++;
    core->stats.recovery_bytes += (uint64_t)recovery->data_sectors * SECTOR_BYTES;
    recovery->pulled_bytes += (uint64_t)recovery->data_sectors * SECTOR_BYTES;
    recovery->told_s = true;
    recovery->source_stable = max_u64(recovery->source_stable, merge->stable_version);
    recovery->retry_ns = RETRY_MIN_NS;
    recovery->last_error = 0;
    recovery_report_progress(recovery);
    recovery_next_turn(recovery);
}

static void
recovery_merge(struct recovery *recovery)
{
    struct chunkserver_core *core = recovery->core;

    sm_move(&recovery->sm, RECOVERY_MERGING);
    recovery->merge.key = recovery->key;
    recovery->merge.attempt = recovery->attempt;
    recovery->merge.sectors = recovery->sectors;
    recovery->merge.sector_count = recovery->sector_count;
    recovery->merge.payload = recovery->buffer;
    recovery->merge.bad = recovery->bad;
    recovery->merge.cursor_sectors = recovery->next_sector;
    if (DLBLK_MUTANT(chunkserver_cursor_early) && !recovery->sweeping)
        recovery->merge.cursor_sectors = recovery->window_first + recovery->window_sectors;
    recovery->merge.on_done = recovery_on_merged;
    core->store->ops->merge_start(core->store, &recovery->merge);
    core_store_started(core);
}

/*
 * A sector that nobody has: it is stored under its version and its CRC, with other bytes, so that
 * to read it is an error here as well.
 */
static int
recovery_take_bad(struct recovery *recovery, const Dl__PullReply *reply)
{
    const Dl__PullRun *run = reply->runs[0];

    if (reply->n_runs != 1 || run->kind != SECTOR_DATA || run->sector_count != 1 ||
        run->n_crcs != 1 || run->version == 0 || run->first_sector != recovery->window_first ||
        reply->next_sector != recovery->window_first + 1)
        return -DL_E_MESSAGE_MALFORMED;
    recovery->bad = true;
    recovery->data_sectors = 1;
    recovery->sector_count = 1;
    recovery->sectors[0] = (struct store_sector){
        .sector = run->first_sector,
        .birth = run->birth,
        .version = run->version,
        .crc = run->crcs[0],
        .kind = SECTOR_DATA,
    };
    memset(recovery->buffer, 0, SECTOR_BYTES);
    if (crc32c(0, recovery->buffer, SECTOR_BYTES) == run->crcs[0])
        memset(recovery->buffer, 0xff, SECTOR_BYTES);
    return 0;
}

/* One more sector of an answer; whether it makes sense. */
static bool
recovery_take_sector(struct recovery *recovery, const Dl__PullRun *run, uint32_t idx)
{
    uint32_t sector = run->first_sector + idx;
    const uint8_t *data;

    if (recovery->sector_count == STORE_IO_SECTORS_MAX || sector >= recovery->next_sector ||
        (recovery->sector_count > 0 &&
         sector <= recovery->sectors[recovery->sector_count - 1].sector))
        return false;
    recovery->sectors[recovery->sector_count++] = (struct store_sector){
        .sector = sector,
        .birth = run->birth,
        .version = run->version,
        .crc = run->kind == SECTOR_DATA ? run->crcs[idx] : 0,
        .kind = (enum sector_kind)run->kind,
    };
    if (run->kind != SECTOR_DATA)
        return true;
    data = (const uint8_t *)recovery->buffer + (size_t)recovery->data_sectors++ * SECTOR_BYTES;
    return crc32c(0, data, SECTOR_BYTES) == run->crcs[idx];
}

static bool
recovery_run_is_good(const struct recovery *recovery, const Dl__PullRun *run)
{
    uint32_t window_end = recovery->window_first + recovery->window_sectors;

    return !run->bad && run->kind <= SECTOR_DATA &&
           (run->kind == SECTOR_HOLE) == (run->version == 0) &&
           run->n_crcs == (run->kind == SECTOR_DATA ? run->sector_count : 0) &&
           run->first_sector >= recovery->window_first && run->first_sector < window_end &&
           run->sector_count > 0 && run->sector_count <= window_end - run->first_sector;
}

static int
recovery_take_reply(struct recovery *recovery, const Dl__PullReply *reply, uint32_t payload_bytes)
{
    uint32_t window_end = recovery->window_first + recovery->window_sectors;
    size_t data_sectors = 0;

    if (reply->next_sector <= recovery->window_first || reply->next_sector > window_end)
        return -DL_E_MESSAGE_MALFORMED;
    for (size_t i = 0; i < reply->n_runs; i++)
        data_sectors += reply->runs[i]->bad ? 0 : reply->runs[i]->n_crcs;
    if (data_sectors * SECTOR_BYTES != payload_bytes)
        return -DL_E_MESSAGE_MALFORMED;
    recovery->next_sector = reply->next_sector;
    recovery->merge.stable_version = reply->stable_version;
    recovery->sector_count = 0;
    recovery->data_sectors = 0;
    recovery->bad = false;
    if (reply->n_runs > 0 && reply->runs[0]->bad)
        return recovery_take_bad(recovery, reply);
    for (size_t i = 0; i < reply->n_runs; i++) {
        if (!recovery_run_is_good(recovery, reply->runs[i]))
            return -DL_E_MESSAGE_MALFORMED;
        for (uint32_t k = 0; k < reply->runs[i]->sector_count; k++)
            if (!recovery_take_sector(recovery, reply->runs[i], k))
                return -DL_E_CRC_WIRE;
    }
    return 0;
}

static int
recovery_on_reply(struct session_call *call, const struct frame *frame)
{
    struct recovery *recovery = list_entry(call, struct recovery, call);
    ProtobufCMessage *message;
    int err;

    if (frame->status != 0)
        return frame->status;
    if (frame->payload_bytes > 0 && frame->payload != recovery->buffer)
        return -DL_E_MESSAGE_MALFORMED;
    message = frame_unpack(frame, &dl__pull_reply__descriptor);
    if (message == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    err = recovery_take_reply(recovery, (const void *)message, frame->payload_bytes);
    protobuf_c_message_free_unpacked(message, NULL);
    return err;
}

static void *
recovery_on_payload(struct session_call *call, const struct frame *frame)
{
    struct recovery *recovery = list_entry(call, struct recovery, call);

    return frame->payload_bytes <= BUFFER_BYTES_MAX ? recovery->buffer : NULL;
}

static void
recovery_on_pulled(struct session_call *call, int err)
{
    struct recovery *recovery = list_entry(call, struct recovery, call);

    env_timer_stop(recovery->core->env, &recovery->timer);
    if (recovery_chunk(recovery) == NULL)
        recovery_over(recovery);
    else if (err != 0)
        recovery_fail(recovery, err);
    else
        recovery_merge(recovery);
}

/* --- a turn --- */

/* A request to the peer; 0 or why it was not sent. */
static int
recovery_send_pull(struct recovery *recovery, struct client_session *session)
{
    const struct pull_source *source = &recovery->sources[recovery->source_idx];
    uint8_t wanted[STORE_WINDOW_SECTORS_MAX / 8];
    Dl__Pull message = DL__PULL__INIT;
    struct frame_out *frame;
    uint64_t request_id;

    message.volume = recovery->key.volume;
    message.segment = recovery->key.segment;
    message.slot = source->slot;
    message.config_epoch = recovery->attempt;
    message.first_sector = recovery->window_first;
    message.window_sectors = recovery->window_sectors;
    message.above_version = recovery->above_version;
    message.takes_bad = true;
    if (recovery->voids.count > 0) {
        message.wanted = (ProtobufCBinaryData){(recovery->window_sectors + 7) / 8, wanted};
        for (size_t i = 0; i < message.wanted.len; i++)
            wanted[i] = (uint8_t)(recovery->voids.bits[i / 8] >> (i % 8 * 8));
    }
    request_id = client_session_begin(session, &recovery->call, OP_PULL);
    if (request_id == 0)
        return -DL_E_NO_MEMORY;
    frame = frame_out_create_message(OP_PULL, 0, request_id, 0, &message.base);
    if (frame == NULL) {
        (void)client_session_cancel(&recovery->call);
        return -DL_E_NO_MEMORY;
    }
    client_session_send_message(&recovery->call, frame);
    env_timer_start(recovery->core->env, &recovery->timer, PULL_TIMEOUT_NS);
    return 0;
}

/* How many sectors of the window lie before the first one that is void. */
static uint32_t
voids_skip(const struct store_voids *voids)
{
    for (uint32_t i = 0; i < voids->window_sectors; i++)
        if ((voids->bits[i / 64] >> (i % 64) & 1) != 0)
            return i;
    return voids->window_sectors;
}

/*
 * What is looked for at the end begins with a sector that is void: a source that can't read it says
 * so then, and doesn't answer with what lies before it, which nobody wants.
 */
static void
recovery_on_voids(struct store_voids *voids, int err)
{
    struct recovery *recovery = list_entry(voids, struct recovery, voids);
    uint32_t skip = voids_skip(voids);
    struct peer *peer;

    if (recovery_chunk(recovery) == NULL) {
        recovery_over(recovery);
        return;
    }
    if (err == 0 && recovery->sweeping && skip > 0) {
        recovery->sweep_sector += skip;
        recovery_next_turn(recovery);
        return;
    }
    recovery->sweep_needed |= voids->count > 0;
    peer = peer_get(recovery->core, &recovery->sources[recovery->source_idx]);
    if (err == 0 && (peer == NULL || !client_session_is_up(&peer->session)))
        err = -DL_E_CONNECTION_LOST;
    if (err == 0)
        err = recovery_send_pull(recovery, &peer->session);
    if (err != 0)
        recovery_fail(recovery, err);
    else
        sm_move(&recovery->sm, RECOVERY_PULLING);
}

/* All was pulled: is anything void still? */
static bool
recovery_must_sweep(const struct recovery *recovery, const struct chunk *chunk)
{
    return recovery->told_s && recovery->sweep_needed &&
           chunk->cursor_sectors >= recovery->segment_sectors &&
           recovery->sweep_sector < recovery->segment_sectors;
}

/*
 * What is asked for next: from the cursor on, as far as one step goes.  If all is here, but no
 * source has said its S in this life, the last sector is asked for above all versions.
 */
static void
recovery_set_window(struct recovery *recovery, const struct chunk *chunk)
{
    uint32_t end = recovery->segment_sectors;

    recovery->sweeping = recovery_must_sweep(recovery, chunk);
    if (recovery->sweeping) {
        recovery->window_first = recovery->sweep_sector;
        recovery->window_sectors = min_u32(end - recovery->sweep_sector, STORE_WINDOW_SECTORS_MAX);
        recovery->above_version = UINT64_MAX;
        return;
    }
    if (chunk->cursor_sectors >= end) {
        recovery->window_first = end - 1;
        recovery->window_sectors = 1;
        recovery->above_version = UINT64_MAX;
        return;
    }
    recovery->window_first = chunk->cursor_sectors;
    recovery->above_version = chunk_step_version(chunk, recovery->window_first);
    for (uint32_t i = chunk->step_count; i > 0; i--)
        if (chunk->steps[i - 1].first_sector > recovery->window_first)
            end = min_u32(end, chunk->steps[i - 1].first_sector);
    recovery->window_sectors = min_u32(end - recovery->window_first, STORE_WINDOW_SECTORS_MAX);
}

static void
recovery_look(struct recovery *recovery, const struct chunk *chunk)
{
    struct chunkserver_core *core = recovery->core;

    sm_move(&recovery->sm, RECOVERY_LOOKING);
    recovery->turn_ns = env_now_ns(core->env);
    core->pulls_as_target++;
    recovery->buffer = buffer_pool_acquire(core->pull_buffers, BUFFER_BYTES_MAX);
    dl_assert(recovery->buffer != NULL);
    recovery_set_window(recovery, chunk);
    recovery->voids.key = recovery->key;
    recovery->voids.first_sector = recovery->window_first;
    recovery->voids.window_sectors = recovery->window_sectors;
    recovery->voids.on_done = recovery_on_voids;
    core->store->ops->voids_start(core->store, &recovery->voids);
    core_store_started(core);
}

/* READY, and may have a turn. */
static void
recovery_turn(struct recovery *recovery)
{
    const struct chunk *chunk = recovery_chunk(recovery);
    struct peer *peer;

    dl_assert(recovery->sm.state == RECOVERY_READY);
    if (chunk == NULL) {
        recovery_over(recovery);
        return;
    }
    if ((chunk->cursor_sectors >= recovery->segment_sectors ||
         (DLBLK_MUTANT(chunkserver_report_early) &&
          chunk->cursor_sectors >= recovery->segment_sectors / 2)) &&
        recovery->told_s && !recovery_must_sweep(recovery, chunk)) {
        recovery_end(recovery);
        return;
    }
    if (recovery->source_count == 0) {
        recovery_wait(recovery, RETRY_MAX_NS); /* it will be told */
        return;
    }
    peer = peer_get(recovery->core, &recovery->sources[recovery->source_idx]);
    if (peer != NULL && client_session_is_up(&peer->session)) {
        recovery_look(recovery, chunk);
        return;
    }
    recovery->needs_peer = true;
    recovery_wait(recovery, PEER_WAIT_NS);
}

/*
 * Clients go first: most of the time is theirs.  Asked again as soon as they may have gone quiet.
 */
static bool
recoveries_rest(struct chunkserver_core *core)
{
    uint64_t now_ns = env_now_ns(core->env);

    if (core_pulls_max(core) > PULLS_FOREGROUND || now_ns >= core->pull_rest_ns)
        return false;
    env_timer_start(core->env, &core->pull_timer,
                    min_u64(core->pull_rest_ns - now_ns, PULL_FOREGROUND_NS));
    return true;
}

/* As many turns as there may be, in the order of the line. */
static void
recoveries_run(struct chunkserver_core *core)
{
    struct recovery *recovery;

again:
    if (core->stopping || core->pulls_as_target >= core_pulls_max(core) || recoveries_rest(core))
        return;
    list_for_each_entry (recovery, &core->recoveries, node)
        if (recovery->sm.state == RECOVERY_READY) {
            recovery_turn(recovery);
            goto again; /* the list may be another one now */
        }
}

/* --- time --- */

static void
recovery_ready(struct recovery *recovery)
{
    env_timer_stop(recovery->core->env, &recovery->timer);
    recovery->needs_peer = false;
    sm_move(&recovery->sm, RECOVERY_READY);
}

/* No answer: the place in the peer's table is given up. */
static void
recovery_time_out(struct recovery *recovery)
{
    if (client_session_cancel(&recovery->call))
        recovery_on_pulled(&recovery->call, -DL_E_TIMEOUT);
}

static void
recovery_on_timer(struct env_timer *timer)
{
    struct recovery *recovery = list_entry(timer, struct recovery, timer);
    struct chunkserver_core *core = recovery->core;

    switch (recovery->sm.state) {
    case RECOVERY_WAITING:
        if (recovery->needs_peer) /* it did not come up */
            recovery->source_idx = (recovery->source_idx + 1) % recovery->source_count;
        recovery_ready(recovery);
        recoveries_run(core);
        break;
    case RECOVERY_PULLING:
        recovery_time_out(recovery);
        break;
    case RECOVERY_WHOLE:
        recovery_report_whole(recovery);
        break;
    default:
        dl_unreachable();
    }
}

void
recoveries_on_peer_up(struct chunkserver_core *core)
{
    struct recovery *recovery;

    list_for_each_entry (recovery, &core->recoveries, node)
        if (recovery->sm.state == RECOVERY_WAITING && recovery->needs_peer)
            recovery_ready(recovery);
    recoveries_run(core);
}

/* --- life --- */

/* Ends it, at once if nothing of it is under way. */
static void
recovery_cancel(struct recovery *recovery)
{
    recovery->obsolete = true;
    switch (recovery->sm.state) {
    case RECOVERY_PULLING:
        if (client_session_cancel(&recovery->call))
            recovery_over(recovery);
        break;
    case RECOVERY_READY:
    case RECOVERY_WAITING:
    case RECOVERY_WHOLE:
        recovery_over(recovery);
        break;
    default:
        break; /* when the store has given back what is its own */
    }
}

/* Of one slot there is at most one that is not obsolete. */
static struct recovery *
recovery_find(struct chunkserver_core *core, const struct chunk_key *key)
{
    struct recovery *recovery;

    list_for_each_entry (recovery, &core->recoveries, node)
        if (!recovery->obsolete && memcmp(&recovery->key, key, sizeof(*key)) == 0)
            return recovery;
    return NULL;
}

void
recovery_check(struct chunkserver_core *core, const struct chunk_key *key)
{
    struct recovery *recovery = recovery_find(core, key);

    if (recovery != NULL && recovery_chunk(recovery) == NULL)
        recovery_cancel(recovery);
}

static struct recovery *
recovery_create(struct chunkserver_core *core, const struct chunk_key *key, uint32_t attempt)
{
    struct recovery *recovery = calloc(1, sizeof(*recovery));

    if (recovery == NULL)
        return NULL;
    sm_init(&recovery->sm, &recovery_table, RECOVERY_READY, ++core->next_recovery_id);
    recovery->core = core;
    recovery->key = *key;
    recovery->attempt = attempt;
    recovery->sweep_needed = chunk_table_find(core->chunks, key)->cursor_sectors > 0;
    recovery->retry_ns = RETRY_MIN_NS;
    recovery->timer.fn = recovery_on_timer;
    recovery->progress_ns = env_now_ns(core->env);
    recovery->call.on_reply = recovery_on_reply;
    recovery->call.on_payload = recovery_on_payload;
    recovery->call.on_done = recovery_on_pulled;
    list_push_back(&core->recoveries, &recovery->node);
    core->stats.recoveries++;
    return recovery;
}

/* Told again, maybe with other peers, or under a higher fence. */
static void
recovery_wake(struct recovery *recovery)
{
    if (recovery->sm.state == RECOVERY_WAITING)
        recovery_ready(recovery);
    else if (recovery->sm.state == RECOVERY_WHOLE)
        recovery_report_whole(recovery);
}

bool
recovery_begin(struct chunkserver_core *core, const struct chunk_key *key, uint32_t attempt,
               uint32_t segment_sectors, const struct pull_source *sources, uint32_t source_count)
{
    struct recovery *recovery = recovery_find(core, key);

    dl_assert(source_count <= PULL_SOURCES_MAX);
    dl_assert(recovery == NULL || recovery->attempt == attempt);
    if (recovery == NULL)
        recovery = recovery_create(core, key, attempt);
    if (recovery == NULL)
        return false;
    recovery->segment_sectors = segment_sectors;
    memcpy(recovery->sources, sources, source_count * sizeof(sources[0]));
    recovery->source_count = source_count;
    if (recovery->source_idx >= source_count)
        recovery->source_idx = 0;
    recovery_wake(recovery);
    recoveries_run(core);
    return true;
}

void
recoveries_on_pull_timer(struct env_timer *timer)
{
    recoveries_run(list_entry(timer, struct chunkserver_core, pull_timer));
}

void
recoveries_stop(struct chunkserver_core *core)
{
    struct recovery *recovery;

    env_timer_stop(core->env, &core->pull_timer);

again:
    list_for_each_entry (recovery, &core->recoveries, node)
        if (!recovery->obsolete) {
            recovery_cancel(recovery);
            goto again;
        }
}

void
recoveries_free(struct chunkserver_core *core)
{
    struct list *node;

    while ((node = list_pop_front(&core->recoveries)) != NULL)
        free(list_entry(node, struct recovery, node));
}
