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
 *      version, several at a time: resolve.c takes the content from the highest and writes it to
 *      all.
 *   4. resolved: requests go on.  S of this lease counts from here.
 *
 * Answers of slots that are not in sync do not count.  A slot that has come into sync since the
 * fence, or may have, is asked by us: PENDING.  What a slot has listed goes with it when it leaves
 * the map; a rewrite that was sent is finished all the same (resolve.c).  A slot that does not
 * answer is ejected, and so is one that is gone afterwards.  If this owner dies as well, the next
 * one does all of it again.
 *
 * The rules are those of docs/recovery.md, "Takeover".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "client/resolve.h"
#include "client/volume_internal.h"
#include "common/align.h"
#include "common/mutant.h"

/* Who does not answer is named at the end of it: rule 19. */
#define FENCE_WAIT_MS 2000u
/* PENDINGs under way to one server: one that answers none takes no other's place. */
#define ASKS_PER_SERVER 32u
/* Of one segment at a time: requests wait for all of them, and each takes two round trips. */
#define RUNS_MAX  16u
#define PATROL_NS (500 * CLIENT_NS_PER_MS)
/* So long the rest of an answer is waited for at first: meanwhile nobody else is heard. */
#define RESUME_WAIT_NS     (3000 * CLIENT_NS_PER_MS)
#define RESUME_WAIT_MAX_NS (60000 * CLIENT_NS_PER_MS)
/* So many patrols after the last, the map is asked for as well. */
#define PATROL_MAP_NS (5000 * CLIENT_NS_PER_MS)

struct takeover_write {
    uint64_t version;
    uint32_t first_sector;
    uint32_t sector_count;
    uint32_t number; /* of the slot that lists it, */
    uint32_t server_id;
};

/* PENDING, under way.  If what it is about has changed, nobody waits for the answer. */
struct takeover_ask {
    struct session_call call; /* first */
    struct takeover_segment *entry;
    uint32_t server_id;
    Dl__PendingChunk *chunk;
};

/* One that was asked once. */
struct takeover_server {
    uint32_t server_id;
    uint32_t ask_count;
};

/* An in-sync slot whose server's answer to FENCE does not count for it. */
struct takeover_slot {
    uint32_t number;
    uint32_t server_id;
    bool answered;
    uint64_t next_version;    /* of a long answer: what is below is here */
    uint64_t since_ns;        /* the answer is waited for */
    uint64_t again_ns;        /* asked not before */
    struct takeover_ask *ask; /* NULL: not asked just now */
};

/* A server whose answer the metadata service is waiting for. */
struct takeover_waiting {
    uint32_t server_id;
    uint64_t since_ns;
};

struct takeover_segment;

/* Sectors that are being resolved. */
struct takeover_run {
    struct takeover_segment *entry; /* NULL: none */
    uint32_t first_sector;
};

/* What is pending in one segment, and how far resolving it has got. */
struct takeover_segment {
    uint32_t index;
    struct takeover *takeover;
    VEC(struct takeover_write) writes;
    VEC(struct takeover_slot) slots;
    struct list node;     /* takeover->ready: to be resolved */
    struct list ask_node; /* takeover->asking: some slot has not answered PENDING */
    uint32_t next_sector; /* no run has begun there, or behind it */
    struct takeover_run runs[RUNS_MAX];
    uint32_t run_count;
    /*
     * Not UINT32_MAX: the lists have changed under the runs, or one has failed: when all are over,
     * again from there on.
     */
    uint32_t again_sector;
    uint64_t retry_ns; /* after a failure, not before */
    UT_hash_handle hh;
};

struct takeover {
    struct client_volume *volume;
    struct client_meta_call call;
    Dl__FenceStatus request;
    VEC(uint32_t) known; /* servers whose whole answer is here */
    VEC(struct takeover_waiting) waiting;
    struct takeover_segment *segments;
    struct list ready;
    struct list asking;
    VEC(struct takeover_server) servers;
    bool changed; /* maps have: segments are looked at again, by the volume's task */
    uint64_t start_ns;
    uint64_t patrol_ns;        /* slots that do not answer are looked for, not before */
    uint64_t ask_ns;           /* not before */
    uint64_t resume_wait_ns;   /* the rest of an answer is waited for so long */
    uint32_t unanswered_count; /* segments that some in-sync slot's server has not answered for */
    bool replied;              /* FENCE_STATUS has been, once */
    uint64_t stuck_ns;         /* since when a run fails again and again; 0: none does */
    uint32_t stuck_segment, stuck_sector;
    int stuck_err;
    bool ended; /* the volume is fenced or closed: freed with the last resolution */
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
    entry->again_sector = UINT32_MAX;
    list_init(&entry->node);
    list_init(&entry->ask_node);
    HASH_ADD(hh, takeover->segments, index, sizeof(entry->index), entry);
    return entry;
}

/* NULL: no memory.  Until the next one is asked for the first time. */
static struct takeover_server *
takeover_server(struct takeover *takeover, uint32_t server_id)
{
    struct takeover_server asked = {.server_id = server_id};

    vec_for_each (server, &takeover->servers)
        if (server->server_id == server_id)
            return server;
    if (vec_push(&takeover->servers, asked) != 0)
        return NULL;
    return &takeover->servers.items[takeover->servers.count - 1];
}

static void
takeover_ask_is_over(const struct takeover_ask *ask)
{
    struct takeover_server *server = takeover_server(ask->entry->takeover, ask->server_id);

    dl_assert(server != NULL && server->ask_count > 0);
    server->ask_count--;
}

static void
takeover_drop_ask(struct takeover_slot *slot)
{
    struct takeover_ask *ask = slot->ask;
    bool over;

    if (ask == NULL)
        return;
    slot->ask = NULL;
    takeover_ask_is_over(ask);
    over = client_session_cancel(&ask->call);
    dl_assert(over); /* its frame is on its own, and it has no payload */
    free(ask);
}

static void
takeover_free_segment(struct takeover_segment *entry)
{
    HASH_DEL(entry->takeover->segments, entry);
    if (list_is_linked(&entry->node))
        list_remove(&entry->node);
    if (list_is_linked(&entry->ask_node))
        list_remove(&entry->ask_node);
    vec_for_each (slot, &entry->slots)
        takeover_drop_ask(slot);
    vec_fini(&entry->slots);
    vec_fini(&entry->writes);
    free(entry);
}

static struct takeover_slot *
takeover_find_slot(const struct takeover_segment *entry, uint32_t number, uint32_t server_id)
{
    if (entry != NULL)
        vec_for_each (slot, &entry->slots)
            if (slot->number == number && slot->server_id == server_id)
                return slot;
    return NULL;
}

/* UINT32_MAX: it is not an in-sync slot of the present map. */
static uint32_t
takeover_place(const struct segment *segment, uint32_t number, uint32_t server_id)
{
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if (segment_slot_is_read(&segment->slots[i]) && segment->slots[i].number == number &&
            segment->slots[i].server_id == server_id)
            return i;
    return UINT32_MAX;
}

/* What it has said does not count any more. */
static void
takeover_forget_slot(struct takeover_segment *entry, uint32_t number, uint32_t server_id)
{
    struct takeover_slot *slot = takeover_find_slot(entry, number, server_id);
    size_t kept = 0;

    for (size_t i = 0; i < entry->writes.count; i++)
        if (entry->writes.items[i].number != number ||
            entry->writes.items[i].server_id != server_id)
            entry->writes.items[kept++] = entry->writes.items[i];
    entry->writes.count = kept;
    if (slot != NULL) {
        takeover_drop_ask(slot);
        vec_remove_swap(&entry->slots, (size_t)(slot - entry->slots.items));
    }
    if (entry->run_count > 0)
        entry->again_sector = 0;
    else
        entry->next_sector = 0;
}

/* It was not in sync when the fence was answered, as far as we know. */
static int
takeover_must_ask(struct takeover *takeover, const struct segment *segment, uint32_t number,
                  uint32_t server_id)
{
    struct takeover_slot slot = {
        .number = number,
        .server_id = server_id,
        .since_ns = env_now_ns(takeover->volume->core->env),
    };
    struct takeover_segment *entry = takeover_segment(takeover, segment->index);

    if (DLBLK_MUTANT(client_skip_promoted))
        return 0;
    if (entry == NULL)
        return -DL_E_NO_MEMORY;
    takeover_forget_slot(entry, number, server_id);
    if (list_is_linked(&entry->node))
        list_remove(&entry->node);
    if (vec_push(&entry->slots, slot) != 0)
        return -DL_E_NO_MEMORY;
    if (!list_is_linked(&entry->ask_node))
        list_push_back(&takeover->asking, &entry->ask_node);
    takeover->changed = true;
    client_volume_defer(takeover->volume);
    return 0;
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

/* What is of our own lease are rewrites: they are everywhere, or will be. */
static int
takeover_take_writes(struct takeover_segment *entry, uint32_t server_id,
                     const Dl__PendingChunk *chunk)
{
    const struct client_volume *volume = entry->takeover->volume;

    for (size_t i = 0; i < chunk->n_writes; i++) {
        struct takeover_write write = {
            .version = chunk->writes[i]->version,
            .first_sector = chunk->writes[i]->offset_sectors,
            .sector_count = chunk->writes[i]->length_sectors,
            .number = chunk->slot,
            .server_id = server_id,
        };

        if (takeover_check_write(volume, chunk->writes[i]) != 0)
            return -DL_E_MESSAGE_MALFORMED;
        if (write.version >> WIRE_VERSION_SEQUENCE_BITS < volume->lease_epoch &&
            vec_push(&entry->writes, write) != 0)
            return -DL_E_NO_MEMORY;
    }
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
        takeover_place(segment, chunk->slot, server_id) == UINT32_MAX)
        return 0;
    HASH_FIND(hh, takeover->segments, &segment->index, sizeof(segment->index), entry);
    if (takeover_find_slot(entry, chunk->slot, server_id) != NULL)
        return 0; /* it is asked, or has been */
    /* In sync by now, but it was not when it answered. */
    if (chunk->attempt != 0)
        return takeover_must_ask(takeover, segment, chunk->slot, server_id);
    entry = takeover_segment(takeover, chunk->segment);
    return entry != NULL ? takeover_take_writes(entry, server_id, chunk) : -DL_E_NO_MEMORY;
}

static void
takeover_resume_nothing(struct takeover *takeover)
{
    takeover->request.resume_server = 0;
    takeover->request.resume_segment = 0;
    takeover->request.resume_slot = 0;
    takeover->request.resume_version = 0;
}

/* What it has said so far; but not what its slots have answered to PENDING. */
static void
takeover_forget_answer(struct takeover *takeover, uint32_t server_id)
{
    struct takeover_segment *entry;
    struct takeover_segment *following;

    HASH_ITER (hh, takeover->segments, entry, following) {
        size_t kept = 0;

        vec_for_each (write, &entry->writes)
            if (write->server_id != server_id ||
                takeover_find_slot(entry, write->number, server_id) != NULL)
                entry->writes.items[kept++] = *write;
        entry->writes.count = kept;
    }
    takeover_resume_nothing(takeover);
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
        takeover->request.resume_slot = answer->next_slot;
        takeover->request.resume_version = answer->next_version;
        return 0;
    }
    if (takeover->request.resume_server == answer->server_id)
        takeover_resume_nothing(takeover);
    return vec_push(&takeover->known, answer->server_id);
}

/* --- resolving --- */

static bool
takeover_has_answered(const struct takeover *takeover, const struct segment *segment,
                      uint32_t place)
{
    const struct segment_slot *slot = &segment->slots[place];
    const struct takeover_slot *asked;
    struct takeover_segment *entry;

    HASH_FIND(hh, takeover->segments, &segment->index, sizeof(segment->index), entry);
    asked = takeover_find_slot(entry, slot->number, slot->server_id);
    return asked != NULL ? asked->answered : takeover_is_known(takeover, slot->server_id);
}

static bool
takeover_all_answered(const struct takeover *takeover, const struct segment *segment)
{
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if (segment_slot_is_read(&segment->slots[i]) &&
            !takeover_has_answered(takeover, segment, i))
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
    if (takeover->stuck_segment == segment->index)
        takeover->stuck_ns = 0;
    dl_assert(volume->unresolved_count > 0);
    volume->unresolved_count--;
    client_io_wake(&segment->waiters);
}

/* Another run may begin: there is a place for it, and none has to be made again first. */
static bool
takeover_may_run(const struct takeover_segment *entry)
{
    return entry->run_count < RUNS_MAX && entry->again_sector == UINT32_MAX;
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
        if (entry == NULL || DLBLK_MUTANT(client_skip_resolution))
            takeover_resolved(takeover, segment);
        else if (takeover_may_run(entry) && !list_is_linked(&entry->node))
            list_push_back(&takeover->ready, &entry->node);
    }
}

/* The highest version that each slot lists for this sector; false: none does. */
static bool
takeover_ranks_of(const struct takeover_segment *entry, const struct segment *segment,
                  uint32_t sector, uint64_t ranks[WIRE_SLOTS_MAX])
{
    bool pending = false;
    uint32_t place;

    memset(ranks, 0, WIRE_SLOTS_MAX * sizeof(ranks[0]));
    vec_for_each (write, &entry->writes) {
        if (sector < write->first_sector || sector - write->first_sector >= write->sector_count)
            continue;
        place = takeover_place(segment, write->number, write->server_id);
        if (place == UINT32_MAX)
            continue;
        ranks[place] = max_u64(ranks[place], write->version);
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

        if (takeover_ranks_of(entry, ret_range->segment, sector, ret_range->ranks)) {
            ret_range->first_sector = sector;
            ret_range->sector_count = min_u32(border, window_end) - sector;
            return true;
        }
        sector = border;
    }
    return false;
}

static void
takeover_run_failed(struct takeover_run *run, int err)
{
    struct takeover_segment *entry = run->entry;
    struct takeover *takeover = entry->takeover;
    struct client_volume *volume = takeover->volume;

    entry->again_sector = min_u32(entry->again_sector, run->first_sector);
    if (err == -DL_E_STALE_MAP)
        return;
    entry->retry_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
    if (takeover->stuck_ns != 0 && takeover->stuck_segment == entry->index &&
        takeover->stuck_sector == run->first_sector && takeover->stuck_err == err)
        return; /* as before */
    takeover->stuck_ns = env_now_ns(volume->core->env);
    takeover->stuck_segment = entry->index;
    takeover->stuck_sector = run->first_sector;
    takeover->stuck_err = err;
    client_core_event(volume->core, DLBLK_EVENT_ERROR,
                      "volume %s: segment %u, from sector %u: what the last owner left unfinished "
                      "can't be settled yet: %s",
                      volume->name, entry->index, run->first_sector, dl_err_str(err));
}

static void
takeover_on_run_done(void *context, int err)
{
    struct takeover_run *run = context;
    struct takeover_segment *entry = run->entry;
    struct takeover *takeover = entry->takeover;
    struct client_volume *volume = takeover->volume;

    dl_assert(entry->run_count > 0);
    dl_assert(takeover->running_count > 0);
    takeover->running_count--;
    if (err != 0 && !takeover->ended)
        takeover_run_failed(run, err);
    else if (takeover->stuck_segment == entry->index && takeover->stuck_sector == run->first_sector)
        takeover->stuck_ns = 0;
    run->entry = NULL;
    entry->run_count--;
    if (takeover->ended) {
        client_takeover_end(volume);
        return;
    }
    if (entry->run_count == 0 && entry->again_sector != UINT32_MAX) {
        entry->next_sector = entry->again_sector;
        entry->again_sector = UINT32_MAX;
    }
    /* Else it comes back when the last slot has answered. */
    if (takeover_may_run(entry) && !list_is_linked(&entry->node) &&
        takeover_all_answered(takeover, client_map_get(&volume->map, entry->index)))
        list_push_front(&takeover->ready, &entry->node);
    takeover_run(takeover);
}

static struct takeover_run *
takeover_free_run(struct takeover_segment *entry)
{
    for (uint32_t i = 0; i < RUNS_MAX; i++)
        if (entry->runs[i].entry == NULL)
            return &entry->runs[i];
    return NULL;
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
    };

    while (takeover_may_run(entry) && takeover_next_run(entry, &range)) {
        struct takeover_run *run = takeover_free_run(entry);

        dl_assert(run != NULL);
        range.context = run;
        if (!client_resolve_may_start(volume) || client_resolve_start(volume, &range) == NULL)
            return false;
        *run = (struct takeover_run){.entry = entry, .first_sector = range.first_sector};
        entry->next_sector = range.first_sector + range.sector_count;
        entry->run_count++;
        takeover->running_count++;
    }
    if (entry->run_count > 0) {
        list_remove(&entry->node); /* until one of them is over */
        return true;
    }
    takeover_free_segment(entry);
    takeover_resolved(takeover, range.segment);
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

/* --- PENDING --- */

static int
takeover_ask_on_reply(struct session_call *call, const struct frame *reply)
{
    struct takeover_ask *ask = (struct takeover_ask *)call;

    if (reply->status != 0)
        return reply->status;
    ask->chunk = (Dl__PendingChunk *)frame_unpack(reply, &dl__pending_chunk__descriptor);
    return ask->chunk != NULL ? 0 : -DL_E_MESSAGE_MALFORMED;
}

/* By the volume's task. */
static void
takeover_look_again(struct takeover *takeover)
{
    takeover->changed = true;
    client_volume_defer(takeover->volume);
}

static int
takeover_take_pending(struct takeover_segment *entry, struct takeover_slot *slot,
                      const Dl__PendingChunk *chunk)
{
    int err;

    if (chunk->segment != entry->index || chunk->slot != slot->number)
        return -DL_E_MESSAGE_MALFORMED;
    if (chunk->attempt != 0)
        return -DL_E_NOT_YET;
    if (chunk->more && chunk->next_version <= slot->next_version)
        return -DL_E_MESSAGE_MALFORMED;
    err = takeover_take_writes(entry, slot->server_id, chunk);
    if (err != 0)
        return err;
    slot->answered = !chunk->more;
    slot->next_version = chunk->next_version;
    return 0;
}

static void
takeover_after_ask(struct takeover_segment *entry, struct takeover_slot *slot, int err)
{
    struct client_volume *volume = entry->takeover->volume;
    uint64_t now_ns = env_now_ns(volume->core->env);

    switch (-err) {
    case 0:
        return;
    case DL_E_LEASE_OLD:
        client_volume_fence(volume, err, "a server has been told of a newer owner");
        return;
    case DL_E_EPOCH_OLD:
        client_map_refresh_now(volume, entry->index);
        return;
    case DL_E_NOT_YET:
    case DL_E_CHUNK_UNKNOWN:
    case DL_E_CONNECTION_LOST:
        return; /* at the next tick */
    default:
        slot->again_ns = now_ns + VOLUME_RETRY_NS;
        return;
    }
}

static void
takeover_ask_on_done(struct session_call *call, int err)
{
    struct takeover_ask *ask = (struct takeover_ask *)call;
    struct takeover_segment *entry = ask->entry;
    struct takeover *takeover = entry->takeover;
    bool all = true;

    takeover_ask_is_over(ask);
    vec_for_each (slot, &entry->slots) {
        if (slot->ask == ask) {
            slot->ask = NULL;
            if (err == 0)
                err = takeover_take_pending(entry, slot, ask->chunk);
            takeover_after_ask(entry, slot, err);
        }
        all = all && slot->answered;
    }
    if (ask->chunk != NULL)
        dl__pending_chunk__free_unpacked(ask->chunk, NULL);
    free(ask);
    if (all)
        list_remove(&entry->ask_node);
    /* For the rest, and for who waits for his turn.  After an error at the next tick. */
    if (err == 0)
        takeover_look_again(takeover);
}

static void
takeover_send_ask(struct takeover_segment *entry, struct takeover_slot *slot)
{
    struct takeover *takeover = entry->takeover;
    struct client_volume *volume = takeover->volume;
    struct client_session *session = &client_core_server(volume->core, slot->server_id)->session;
    Dl__Pending message = DL__PENDING__INIT;
    struct takeover_server *server = takeover_server(takeover, slot->server_id);
    struct takeover_ask *ask;
    struct frame_out *frame;
    uint64_t request_id;

    if (!client_session_is_up(session) || server == NULL || server->ask_count >= ASKS_PER_SERVER)
        return;
    ask = calloc(1, sizeof(*ask));
    if (ask == NULL)
        return;
    ask->entry = entry;
    ask->server_id = slot->server_id;
    ask->call.on_reply = takeover_ask_on_reply;
    ask->call.on_done = takeover_ask_on_done;
    request_id = client_session_begin(session, &ask->call, OP_PENDING);
    if (request_id == 0) {
        free(ask);
        return;
    }
    message.volume = volume->id;
    message.segment = entry->index;
    message.slot = slot->number;
    message.config_epoch = client_map_get(&volume->map, entry->index)->config_epoch;
    message.lease_epoch = volume->lease_epoch;
    message.first_version = slot->next_version;
    slot->ask = ask;
    server->ask_count++;
    frame = frame_out_create_message(OP_PENDING, 0, request_id, 0, &message.base);
    if (frame == NULL)
        takeover_drop_ask(slot);
    else
        client_session_send_message(&ask->call, frame);
}

static void
takeover_send_asks(struct takeover *takeover)
{
    uint64_t now_ns = env_now_ns(takeover->volume->core->env);
    struct takeover_segment *entry;

    list_for_each_entry (entry, &takeover->asking, ask_node) {
        vec_for_each (slot, &entry->slots) {
            if (!slot->answered && slot->ask == NULL && now_ns >= slot->again_ns)
                takeover_send_ask(entry, slot);
        }
    }
}

/* --- maps that change --- */

/* In sync then and now, and nothing in between that we have not seen. */
static bool
takeover_was_in_sync(const struct segment *segment, const struct segment_before *before,
                     const struct segment_slot *slot)
{
    if (segment->config_epoch != before->config_epoch + 1)
        return false;
    for (uint32_t i = 0; i < before->slot_count; i++)
        if (segment_slot_is_read(&before->slots[i]) && before->slots[i].number == slot->number &&
            before->slots[i].server_id == slot->server_id)
            return true;
    return false;
}

void
client_takeover_on_map(struct client_volume *volume, struct segment *segment,
                       const struct segment_before *before)
{
    struct takeover *takeover = volume->takeover;
    struct takeover_segment *entry;
    int err = 0;

    if (takeover->ended || segment->state != SEGMENT_UNRESOLVED)
        return;
    HASH_FIND(hh, takeover->segments, &segment->index, sizeof(segment->index), entry);
    for (uint32_t i = 0; i < before->slot_count && entry != NULL; i++)
        if (segment_slot_is_read(&before->slots[i]) &&
            takeover_place(segment, before->slots[i].number, before->slots[i].server_id) ==
                UINT32_MAX)
            takeover_forget_slot(entry, before->slots[i].number, before->slots[i].server_id);
    for (uint32_t i = 0; i < segment->slot_count && err == 0; i++)
        if (segment_slot_is_read(&segment->slots[i]) &&
            !takeover_was_in_sync(segment, before, &segment->slots[i]))
            err = takeover_must_ask(takeover, segment, segment->slots[i].number,
                                    segment->slots[i].server_id);
    if (err != 0)
        client_volume_fence(volume, err, "no memory to remember which slots must be asked");
    takeover->changed = true;
    client_volume_defer(volume);
}

void
client_takeover_run_changed(struct client_volume *volume)
{
    struct takeover *takeover = volume->takeover;

    if (takeover == NULL || takeover->ended || !takeover->changed || volume->fenced)
        return;
    takeover->changed = false;
    takeover_send_asks(takeover);
    takeover_check_segments(takeover);
    takeover_run(takeover);
}

/* --- slots that do not answer --- */

/* UINT64_MAX: the metadata service does not wait for it. */
static uint64_t
takeover_waits_for_server_ns(const struct takeover *takeover, uint32_t server_id)
{
    vec_for_each (waiting, &takeover->waiting)
        if (waiting->server_id == server_id)
            return waiting->since_ns;
    return UINT64_MAX;
}

static uint64_t
takeover_waits_since_ns(const struct takeover *takeover, const struct segment *segment,
                        const struct segment_slot *slot)
{
    const struct takeover_slot *asked;
    struct takeover_segment *entry;

    HASH_FIND(hh, takeover->segments, &segment->index, sizeof(segment->index), entry);
    asked = takeover_find_slot(entry, slot->number, slot->server_id);
    if (asked != NULL)
        return asked->answered ? UINT64_MAX : asked->since_ns;
    return takeover_waits_for_server_ns(takeover, slot->server_id);
}

/* Rule 19.  With all answers here a slot is read and rewritten: its server has to be there. */
static Dl__EjectReason
takeover_slot_failure(const struct takeover *takeover, const struct segment *segment,
                      const struct segment_slot *slot, bool all_answered)
{
    const struct client_core *core = takeover->volume->core;
    uint64_t since_ns = takeover_waits_since_ns(takeover, segment, slot);

    if (!segment_slot_is_read(slot))
        return DL__EJECT_REASON__EJECT_NONE;
    if (all_answered)
        return client_core_server(core, slot->server_id)->failed;
    if (since_ns != UINT64_MAX &&
        client_core_is_over(core, since_ns, env_now_ns(core->env), core->options.eject_silent_ms))
        return DL__EJECT_REASON__EJECT_SILENT;
    return DL__EJECT_REASON__EJECT_NONE;
}

/* A segment that waits for long may have another map by now, too. */
static void
takeover_patrol(struct takeover *takeover)
{
    struct client_volume *volume = takeover->volume;
    const struct client_core *core = volume->core;
    uint64_t now_ns = env_now_ns(core->env);
    struct segment *segment;

    if (now_ns < takeover->patrol_ns)
        return;
    takeover->patrol_ns = now_ns + PATROL_NS;
    for (segment = client_map_next(&volume->map, 0); segment != NULL;
         segment = client_map_next(&volume->map, segment->index + 1)) {
        bool all_answered;

        if (segment->state != SEGMENT_UNRESOLVED)
            continue;
        all_answered = takeover_all_answered(takeover, segment);
        for (uint32_t i = 0; i < segment->slot_count; i++) {
            Dl__EjectReason reason = takeover_slot_failure(takeover, segment, &segment->slots[i],
                                                           all_answered);

            if (reason != DL__EJECT_REASON__EJECT_NONE)
                client_eject_want(volume, segment, i, reason,
                                  all_answered ? 0 : -DL_E_FENCE_PENDING);
        }
        if (!all_answered && now_ns - takeover->start_ns >= PATROL_MAP_NS)
            client_map_refresh(volume, segment->index);
    }
}

/* --- asking --- */

/*
 * Who is waited for since when; from the attach on, if the first reply names it.  Of a long answer
 * a server may be asked for a part later.
 */
static void
takeover_take_waiting(struct takeover *takeover, const Dl__FenceStatusReply *reply)
{
    VEC(struct takeover_waiting) waiting = {0};

    for (size_t i = 0; i < reply->n_waiting_for; i++) {
        uint64_t since_ns = takeover_waits_for_server_ns(takeover, reply->waiting_for[i]);
        struct takeover_waiting one = {
            .server_id = reply->waiting_for[i],
            .since_ns = since_ns != UINT64_MAX ? since_ns
                        : takeover->replied    ? env_now_ns(takeover->volume->core->env)
                                               : takeover->start_ns,
        };

        (void)vec_push(&waiting, one);
    }
    vec_fini(&takeover->waiting);
    takeover->waiting.items = waiting.items;
    takeover->waiting.count = waiting.count;
    takeover->waiting.capacity = waiting.capacity;
    takeover->replied = true;
}

/* The rest of an answer that nobody has any more is not waited for: it comes anew. */
static void
takeover_check_resumed(struct takeover *takeover, const Dl__FenceStatusReply *reply)
{
    for (size_t i = 0; i < reply->n_answers; i++)
        if (reply->answers[i]->server_id == takeover->request.resume_server)
            return;
    if (reply->n_answers > 0)
        takeover_resume_nothing(takeover);
}

static void
takeover_on_reply(struct takeover *takeover, const Dl__FenceStatusReply *reply)
{
    struct client_volume *volume = takeover->volume;

    takeover_check_resumed(takeover, reply);
    for (size_t i = 0; i < reply->n_answers; i++) {
        int err = takeover_take_answer(takeover, reply->answers[i]);

        if (err == 0)
            continue;
        client_core_event(volume->core, DLBLK_EVENT_ERROR,
                          "volume %s: what server %u says to be unfinished can't be taken: %s",
                          volume->name, reply->answers[i]->server_id, dl_err_str(err));
        takeover->ask_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
    }
    takeover_take_waiting(takeover, reply);
    /* What is still open is not for the metadata service to say. */
    if (reply->n_answers == 0 && reply->n_waiting_for == 0)
        takeover->ask_ns = env_now_ns(volume->core->env) + VOLUME_RETRY_NS;
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

/*
 * The server of which the rest is waited for may be gone for good, and the other answers come
 * behind it: they have their turn, and this one begins anew if it is there again.
 */
static void
takeover_check_rest(struct takeover *takeover)
{
    uint32_t server_id = takeover->request.resume_server;
    uint64_t since_ns = takeover_waits_for_server_ns(takeover, server_id);

    if (since_ns == UINT64_MAX ||
        env_now_ns(takeover->volume->core->env) - since_ns < takeover->resume_wait_ns)
        return;
    takeover_forget_answer(takeover, server_id);
    /* One that is only slow gets through in the end. */
    takeover->resume_wait_ns = min_u64(2 * takeover->resume_wait_ns, RESUME_WAIT_MAX_NS);
}

/* As long as some segment waits for a server's answer. */
static void
takeover_ask(struct takeover *takeover)
{
    struct client_volume *volume = takeover->volume;

    if (takeover->call.core != NULL || takeover->ended || volume->fenced ||
        takeover->unanswered_count == 0 || env_now_ns(volume->core->env) < takeover->ask_ns)
        return;
    if (takeover->request.resume_server != 0)
        takeover_check_rest(takeover);
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
    takeover_send_asks(takeover);
    takeover_patrol(takeover);
    takeover_run(takeover);
}

/*
 * What the last owner left there is bad in every copy that is in-sync, and they don't list the
 * same: nobody knows which of them is to be kept, and none can be read.
 */
static void
takeover_stuck_text(const struct takeover *takeover, char *text, size_t text_bytes)
{
    bool bad = takeover->stuck_err == -DL_E_MEDIA_READ;

    (void)snprintf(text, text_bytes,
                   "segment %u, from sector %u: what the last owner left unfinished can't be "
                   "settled: %s%s",
                   takeover->stuck_segment, takeover->stuck_sector, dl_err_str(takeover->stuck_err),
                   bad ? ", from every copy; dlblk events says where; start servers that have "
                         "other copies, or remove one with a bad one"
                       : "");
}

uint64_t
client_takeover_age_ns(const struct client_volume *volume, uint64_t now_ns)
{
    return volume->takeover == NULL ? 0 : now_ns - volume->takeover->start_ns;
}

bool
client_takeover_is_stuck(const struct client_volume *volume, uint64_t now_ns, char *text,
                         size_t text_bytes, uint64_t *ret_stuck_for_ns)
{
    const struct takeover *takeover = volume->takeover;

    if (takeover == NULL || takeover->stuck_ns == 0)
        return false;
    takeover_stuck_text(takeover, text, text_bytes);
    *ret_stuck_for_ns = now_ns - takeover->stuck_ns;
    return true;
}

bool
client_takeover_waits_for(const struct client_volume *volume, char *text, size_t text_bytes)
{
    const struct takeover *takeover = volume->takeover;
    const struct client_server *server;

    if (takeover != NULL && takeover->stuck_ns != 0) {
        takeover_stuck_text(takeover, text, text_bytes);
    } else if (takeover != NULL && takeover->waiting.count > 0) {
        server = client_core_server(volume->core, takeover->waiting.items[0].server_id);
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

/* Segments whose map has changed since the attach: which of their slots are new is not known. */
static int
takeover_ask_early(struct takeover *takeover)
{
    struct client_volume *volume = takeover->volume;
    struct segment *segment = client_map_next(&volume->map, 0);
    int err = 0;

    for (; segment != NULL; segment = client_map_next(&volume->map, segment->index + 1)) {
        for (uint32_t i = 0; i < segment->slot_count && segment->changed_early && err == 0; i++)
            if (segment_slot_is_read(&segment->slots[i]))
                err = takeover_must_ask(takeover, segment, segment->slots[i].number,
                                        segment->slots[i].server_id);
        segment->changed_early = false;
    }
    return err;
}

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
    takeover->start_ns = env_now_ns(volume->core->env);
    takeover->resume_wait_ns = RESUME_WAIT_NS;
    list_init(&takeover->ready);
    list_init(&takeover->asking);
    dl__fence_status__init(&takeover->request);
    takeover->call.opcode = OP_FENCE_STATUS;
    takeover->call.patient = true;
    takeover->call.request = &takeover->request.base;
    takeover->call.reply_type = &dl__fence_status_reply__descriptor;
    takeover->call.on_done = takeover_on_done;
    takeover->call.context = takeover;
    volume->takeover = takeover;
    if (takeover_ask_early(takeover) != 0) {
        client_takeover_end(volume);
        return -DL_E_NO_MEMORY;
    }
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
    vec_fini(&takeover->servers);
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
