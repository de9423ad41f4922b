/* SPDX-License-Identifier: Apache-2.0 */
/*
 * takeover.c: which ranges have to be made alike after an owner that did not detach cleanly.
 *
 * The metadata service has fenced the volume's servers and hands out what each answered: its
 * pending writes.  A segment goes through these steps, in parallel with others:
 *
 *   1. unresolved: some in-sync slot's server has not answered yet.  Requests to the segment wait.
 *   2. all have answered, nothing is pending: resolved at once.
 *   3. else, window by window (1 MiB), run by run of sectors for which every slot lists the same
 *      version: resolve.c takes the content from the highest and writes it to all.
 *   4. resolved: requests go on.  S of this lease counts from here.
 *
 * Answers of slots that are not in sync do not count.  If this owner dies as well, the next one
 * does all of it again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "client/resolve.h"
#include "client/volume_internal.h"
#include "common/align.h"
#include "common/mutant.h"

#define FENCE_WAIT_MS 10000u

struct takeover_write {
    uint64_t version;
    uint32_t first_sector;
    uint32_t sector_count;
    uint32_t slot;
};

/* What is pending in one segment, and how far resolving it has got. */
struct takeover_segment {
    uint32_t index;
    struct takeover *takeover;
    VEC(struct takeover_write) writes;
    struct list node; /* takeover->ready: to be resolved */
    uint32_t next_sector;
    uint32_t run_sectors; /* being resolved, from next_sector on */
    bool running;
    uint64_t retry_ns; /* after a failure, not before */
    UT_hash_handle hh;
};

struct takeover {
    struct client_volume *volume;
    struct client_meta_call call;
    Dl__FenceStatus request;
    VEC(uint32_t) known;   /* servers whose whole answer is here */
    VEC(uint32_t) waiting; /* servers that have not answered, as metadata says */
    struct takeover_segment *segments;
    struct list ready;
    uint64_t ask_ns;           /* not before */
    uint32_t unanswered_count; /* segments that some in-sync slot's server has not answered for */
    bool ended;                /* the volume is fenced or closed: freed with the last resolution */
    uint32_t running_count;
};

static void takeover_run(struct takeover *takeover);
static void takeover_ask(struct takeover *takeover);

/* --- answers --- */

static bool
takeover_is_known(const struct takeover *takeover, uint32_t server_id)
{
    vec_for_each (known, &takeover->known)
        if (*known == server_id)
            return true;
    return false;
}

static struct takeover_segment *
takeover_segment(struct takeover *takeover, uint32_t index)
{
    struct takeover_segment *entry;

    HASH_FIND(hh, takeover->segments, &index, sizeof(index), entry);
    if (entry != NULL)
        return entry;
    entry = calloc(1, sizeof(*entry));
    if (entry == NULL)
        return NULL;
    entry->index = index;
    entry->takeover = takeover;
    HASH_ADD(hh, takeover->segments, index, sizeof(entry->index), entry);
    return entry;
}

static void
takeover_free_segment(struct takeover_segment *entry)
{
    HASH_DEL(entry->takeover->segments, entry);
    if (list_is_linked(&entry->node))
        list_remove(&entry->node);
    vec_fini(&entry->writes);
    free(entry);
}

/* Sectors beyond the chunk can't be rewritten: the answer is not a server's of this version. */
static int
takeover_check_write(const struct client_volume *volume, const Dl__PendingWrite *write)
{
    uint32_t sectors = geometry_segment_sectors(&volume->geometry);

    if (write->length_sectors == 0 || write->offset_sectors >= sectors ||
        write->length_sectors > sectors - write->offset_sectors)
        return -DL_E_MESSAGE_MALFORMED;
    return 0;
}

static int
takeover_take_chunk(struct takeover *takeover, uint32_t server_id, const Dl__PendingChunk *chunk)
{
    struct client_volume *volume = takeover->volume;
    struct segment *segment = client_map_get(&volume->map, chunk->segment);
    struct takeover_segment *entry;

    /* Of a slot that is not (any more) where the map says, or not in sync: it does not count. */
    if (segment == NULL || segment->state != SEGMENT_UNRESOLVED ||
        chunk->slot >= segment->slot_count || !segment_slot_is_read(&segment->slots[chunk->slot]) ||
        segment->slots[chunk->slot].server_id != server_id)
        return 0;
    entry = takeover_segment(takeover, chunk->segment);
    if (entry == NULL)
        return -DL_E_NO_MEMORY;
    for (size_t i = 0; i < chunk->n_writes; i++) {
        struct takeover_write write = {
            .version = chunk->writes[i]->version,
            .first_sector = chunk->writes[i]->offset_sectors,
            .sector_count = chunk->writes[i]->length_sectors,
            .slot = chunk->slot,
        };

        if (takeover_check_write(volume, chunk->writes[i]) != 0)
            return -DL_E_MESSAGE_MALFORMED;
        if (vec_push(&entry->writes, write) != 0)
            return -DL_E_NO_MEMORY;
    }
    return 0;
}

static int
takeover_take_answer(struct takeover *takeover, const Dl__FenceAnswer *answer)
{
    int err = 0;

    if (takeover_is_known(takeover, answer->server_id))
        return 0;
    /* One long answer at a time: the others come again. */
    if (answer->more && takeover->request.resume_server != 0 &&
        takeover->request.resume_server != answer->server_id)
        return 0;
    for (size_t i = 0; i < answer->n_chunks && err == 0; i++)
        err = takeover_take_chunk(takeover, answer->server_id, answer->chunks[i]);
    if (err != 0)
        return err;
    if (answer->more) {
        takeover->request.resume_server = answer->server_id;
        takeover->request.resume_segment = answer->next_segment;
        return 0;
    }
    if (takeover->request.resume_server == answer->server_id) {
        takeover->request.resume_server = 0;
        takeover->request.resume_segment = 0;
    }
    return vec_push(&takeover->known, answer->server_id);
}

/* --- resolving --- */

static bool
takeover_all_answered(const struct takeover *takeover, const struct segment *segment)
{
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if (segment_slot_is_read(&segment->slots[i]) &&
            !takeover_is_known(takeover, segment->slots[i].server_id))
            return DLBLK_MUTANT(client_skip_fence_wait);
    return true;
}

static void
takeover_resolved(struct takeover *takeover, struct segment *segment)
{
    struct client_volume *volume = takeover->volume;

    dl_assert(segment != NULL);
    dl_assert(segment->state == SEGMENT_UNRESOLVED);
    segment->state = SEGMENT_READY;
    dl_assert(volume->unresolved_count > 0);
    volume->unresolved_count--;
    client_io_wake(&segment->waiters);
}

/* Segments for which the last answer has come. */
static void
takeover_check_segments(struct takeover *takeover)
{
    struct client_volume *volume = takeover->volume;
    struct segment *segment = client_map_next(&volume->map, 0);

    takeover->unanswered_count = 0;
    for (; segment != NULL; segment = client_map_next(&volume->map, segment->index + 1)) {
        struct takeover_segment *entry;

        if (segment->state != SEGMENT_UNRESOLVED)
            continue;
        if (!takeover_all_answered(takeover, segment)) {
            takeover->unanswered_count++;
            continue;
        }
        HASH_FIND(hh, takeover->segments, &segment->index, sizeof(segment->index), entry);
        if (entry == NULL || entry->writes.count == 0 || DLBLK_MUTANT(client_skip_resolution))
            takeover_resolved(takeover, segment);
        else if (!entry->running && !list_is_linked(&entry->node))
            list_push_back(&takeover->ready, &entry->node);
    }
}

/* The highest version that each slot lists for this sector; false: none does. */
static bool
takeover_ranks_of(const struct takeover_segment *entry, uint32_t sector,
                  uint64_t ranks[WIRE_SLOTS_MAX])
{
    bool pending = false;

    memset(ranks, 0, WIRE_SLOTS_MAX * sizeof(ranks[0]));
    vec_for_each (write, &entry->writes) {
        if (sector < write->first_sector || sector - write->first_sector >= write->sector_count)
            continue;
        ranks[write->slot] = max_u64(ranks[write->slot], write->version);
        pending = true;
    }
    return pending;
}

/*
 * From here on nothing changes before this sector: the next place where a listed write begins or
 * ends.
 */
static uint32_t
takeover_next_border(const struct takeover_segment *entry, uint32_t sector)
{
    uint32_t border = UINT32_MAX;

    vec_for_each (write, &entry->writes) {
        uint32_t end = write->first_sector + write->sector_count;

        if (write->first_sector > sector)
            border = min_u32(border, write->first_sector);
        if (end > sector)
            border = min_u32(border, end);
    }
    return border;
}

/* The next run that is pending somewhere, inside one window.  False: there is none. */
static bool
takeover_next_run(struct takeover_segment *entry, struct resolve_range *ret_range)
{
    uint32_t sector = entry->next_sector;

    while (sector != UINT32_MAX) {
        uint32_t border = takeover_next_border(entry, sector);
        uint32_t window_end = sector - sector % WINDOW_SECTORS + WINDOW_SECTORS;

        if (takeover_ranks_of(entry, sector, ret_range->ranks)) {
            ret_range->first_sector = sector;
            ret_range->sector_count = min_u32(border, window_end) - sector;
            return true;
        }
        sector = border;
    }
    return false;
}

static void
takeover_on_run_done(void *context, int err)
{
    struct takeover_segment *entry = context;
    struct takeover *takeover = entry->takeover;
    struct client_volume *volume = takeover->volume;

    entry->running = false;
    dl_assert(takeover->running_count > 0);
    takeover->running_count--;
    if (takeover->ended) {
        client_takeover_end(volume);
        return;
    }
    if (err != 0) {
        client_core_event(
            volume->core, DLBLK_EVENT_ERROR,
            "volume %s: segment %u, from sector %u: what the last owner left unfinished can't "
            "be settled yet: %s",
            volume->name, entry->index, entry->next_sector, dl_err_str(err));
        entry->retry_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
    } else {
        entry->next_sector += entry->run_sectors;
    }
    list_push_front(&takeover->ready, &entry->node);
    takeover_run(takeover);
}

/* False: it can't go on now. */
static bool
takeover_run_segment(struct takeover_segment *entry)
{
    struct takeover *takeover = entry->takeover;
    struct client_volume *volume = takeover->volume;
    struct resolve_range range = {
        .segment = client_map_get(&volume->map, entry->index),
        .listed = true,
        .on_done = takeover_on_run_done,
        .context = entry,
    };

    if (!takeover_next_run(entry, &range)) {
        takeover_free_segment(entry);
        takeover_resolved(takeover, range.segment);
        return true;
    }
    if (!client_resolve_may_start(volume) || client_resolve_start(volume, &range) == NULL)
        return false;
    entry->next_sector = range.first_sector;
    entry->running = true;
    entry->run_sectors = range.sector_count;
    list_remove(&entry->node);
    takeover->running_count++;
    return true;
}

static void
takeover_run(struct takeover *takeover)
{
    struct takeover_segment *entry;
    struct takeover_segment *following;
    uint64_t now_ns = env_now_ns(takeover->volume->core->env);

    list_for_each_entry_safe (entry, following, &takeover->ready, node)
        if (now_ns >= entry->retry_ns && !takeover_run_segment(entry))
            break;
    if (takeover->volume->unresolved_count > 0 || takeover->running_count > 0)
        return;
    client_core_event(takeover->volume->core, DLBLK_EVENT_INFO,
                      "volume %s: everything that the last owner left unfinished is settled",
                      takeover->volume->name);
    client_takeover_end(takeover->volume);
}

/* --- asking --- */

static void
takeover_on_reply(struct takeover *takeover, const Dl__FenceStatusReply *reply)
{
    struct client_volume *volume = takeover->volume;

    for (size_t i = 0; i < reply->n_answers; i++) {
        int err = takeover_take_answer(takeover, reply->answers[i]);

        if (err == 0)
            continue;
        client_core_event(volume->core, DLBLK_EVENT_ERROR,
                          "volume %s: what server %u says to be unfinished can't be taken: %s",
                          volume->name, reply->answers[i]->server_id, dl_err_str(err));
        takeover->ask_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
    }
    vec_clear(&takeover->waiting);
    for (size_t i = 0; i < reply->n_waiting_for; i++)
        (void)vec_push(&takeover->waiting, reply->waiting_for[i]);
}

static void
takeover_on_done(struct client_meta_call *call, int err)
{
    struct takeover *takeover = call->context;
    struct client_volume *volume = takeover->volume;

    if (client_is_fence_error(err)) {
        client_volume_fence(volume, err, call->error.text);
        return;
    }
    if (err == 0)
        takeover_on_reply(takeover, (const Dl__FenceStatusReply *)call->reply);
    else
        takeover->ask_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
    takeover_check_segments(takeover);
    takeover_ask(takeover);
    takeover_run(takeover); /* may be the end of it */
}

/* As long as some segment waits for a server's answer. */
static void
takeover_ask(struct takeover *takeover)
{
    struct client_volume *volume = takeover->volume;

    if (takeover->call.core != NULL || takeover->ended || volume->fenced ||
        takeover->unanswered_count == 0 || env_now_ns(volume->core->env) < takeover->ask_ns)
        return;
    takeover->request.volume = volume->id;
    takeover->request.lease_epoch = volume->lease_epoch;
    takeover->request.n_known = takeover->known.count;
    takeover->request.known = takeover->known.items;
    takeover->request.wait_ms = FENCE_WAIT_MS;
    client_meta_call_start(volume->core, &takeover->call);
}

void
client_takeover_tick(struct client_volume *volume)
{
    struct takeover *takeover = volume->takeover;

    if (takeover == NULL || takeover->ended)
        return;
    takeover_ask(takeover);
    takeover_run(takeover);
}

bool
client_takeover_waits_for(const struct client_volume *volume, char *text, size_t text_bytes)
{
    const struct takeover *takeover = volume->takeover;
    const struct client_server *server;

    if (takeover != NULL && takeover->waiting.count > 0) {
        server = client_core_server(volume->core, takeover->waiting.items[0]);
        (void)snprintf(
            text, text_bytes,
            "the volume was not detached cleanly: waiting for %s and %zu others to say what is "
            "unfinished",
            server != NULL ? client_server_name(server).text : "a server",
            takeover->waiting.count - 1);
    } else {
        (void)snprintf(text, text_bytes,
                       "the volume was not detached cleanly: %u segments are still to be settled",
                       volume->unresolved_count);
    }
    return true;
}

/* --- life --- */

int
client_takeover_begin(struct client_volume *volume)
{
    struct takeover *takeover;
    struct segment *segment = client_map_next(&volume->map, 0);

    dl_assert(volume->takeover == NULL);
    if (segment == NULL)
        return 0;
    takeover = calloc(1, sizeof(*takeover));
    if (takeover == NULL)
        return -DL_E_NO_MEMORY;
    for (; segment != NULL; segment = client_map_next(&volume->map, segment->index + 1)) {
        segment->state = SEGMENT_UNRESOLVED;
        volume->unresolved_count++;
    }
    takeover->unanswered_count = volume->unresolved_count;
    takeover->volume = volume;
    list_init(&takeover->ready);
    dl__fence_status__init(&takeover->request);
    takeover->call.opcode = OP_FENCE_STATUS;
    takeover->call.patient = true;
    takeover->call.request = &takeover->request.base;
    takeover->call.reply_type = &dl__fence_status_reply__descriptor;
    takeover->call.on_done = takeover_on_done;
    takeover->call.context = takeover;
    volume->takeover = takeover;
    client_core_event(
        volume->core, DLBLK_EVENT_INFO,
        "volume %s: its last owner did not detach cleanly: %u segments are looked through",
        volume->name, volume->unresolved_count);
    takeover_ask(takeover);
    return 0;
}

void
client_takeover_end(struct client_volume *volume)
{
    struct takeover *takeover = volume->takeover;
    struct takeover_segment *entry;
    struct takeover_segment *following;

    if (takeover == NULL)
        return;
    client_meta_call_cancel(&takeover->call);
    takeover->ended = true;
    if (takeover->running_count > 0)
        return; /* the last resolution comes here again */
    HASH_ITER (hh, takeover->segments, entry, following)
        takeover_free_segment(entry);
    vec_fini(&takeover->known);
    vec_fini(&takeover->waiting);
    free(takeover);
    volume->takeover = NULL;
}

void
client_takeover_abandon(struct client_volume *volume)
{
    if (volume->takeover != NULL)
        volume->takeover->running_count = 0;
    client_takeover_end(volume);
}
