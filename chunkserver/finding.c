/* SPDX-License-Identifier: Apache-2.0 */
/*
 * finding.c: what is known of bad sectors here, found by a scrub or because a client complained:
 * counts, those that are bad still, and BAD_SECTORS to the metadata service, for the log.  See
 * scrub.h.
 *
 * A disk that dies has bad sectors by the thousand.  So findings are gathered by slot and told
 * FIRST_NS after the first one, the next ones GAP_MIN_NS later, then twice as long each time up to
 * GAP_MAX_NS, and when that long nothing was found it begins anew.  What does not fit into
 * ITEMS_MAX places is added up with another finding of the same volume, or with the last one of
 * all: numbers are right, places are those of the first.  A sector that stays bad is one finding,
 * however often it is read.
 *
 * What was told and not answered is told again; so an entry of the log can be there twice.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/scrub.h"
#include "common/align.h"
#include "common/assert.h"
#include "dlblk/error.h"

#define ITEMS_MAX     16u
#define HOPELESS_MIN  4u
#define KNOWN_BAD_MAX 4096u
#define FIRST_NS      (1000 * CORE_NS_PER_MS)
#define GAP_MIN_NS    (10000 * CORE_NS_PER_MS)
#define GAP_MAX_NS    (600000 * CORE_NS_PER_MS)
#define ANSWER_NS     (10000 * CORE_NS_PER_MS)

struct finding {
    struct chunk_key key; /* of the first */
    uint32_t first_sector;
    uint32_t segments, last_segment;
    uint64_t bad, repaired, mismatches;
    uint32_t other_slot;
    bool sent;
};

struct bad_sector {
    struct chunk_key key;
    uint64_t local_id; /* of the chunk */
    uint32_t sector;
    uint64_t version; /* at most; a write of a higher one has healed it */
    /* The segment's config epoch under which no slot in-sync had it, in just this version; or 0. */
    uint32_t hopeless_epoch;
    uint32_t hopeless_count; /* so often in a row: to fail a read once is no proof */
};

struct findings {
    struct chunkserver_core *core;
    struct finding items[ITEMS_MAX];
    uint32_t count;
    uint64_t request_id; /* of BAD_SECTORS; 0: none is under way */
    uint64_t told_ns;    /* when the last one was sent */
    uint64_t gap_ns;     /* before the next one */
    struct env_timer timer;
    Dl__ScrubCounts counts; /* but left_bad */
    struct bad_sector *known;
    uint32_t known_count;
};

/* --- what is bad still --- */

static bool
key_equal(const struct chunk_key *a, const struct chunk_key *b)
{
    return a->volume == b->volume && a->segment == b->segment && a->slot == b->slot;
}

static uint32_t
known_find(const struct findings *findings, const struct chunk *chunk, uint32_t sector)
{
    uint32_t idx = 0;

    while (idx < findings->known_count && (findings->known[idx].sector != sector ||
                                           findings->known[idx].local_id != chunk->local_id))
        idx++;
    return idx;
}

static void
known_remove(struct findings *findings, uint32_t idx)
{
    dl_assert(idx < findings->known_count);
    findings->known[idx] = findings->known[--findings->known_count];
}

/* Of a chunk that is gone, or another one by now. */
static void
known_forget_deleted(struct findings *findings)
{
    for (uint32_t i = findings->known_count; i > 0; i--) {
        const struct bad_sector *bad = &findings->known[i - 1];
        const struct chunk *chunk = chunk_table_find(findings->core->chunks, &bad->key);

        if (chunk == NULL || chunk->local_id != bad->local_id)
            known_remove(findings, i - 1);
    }
}

/*
 * Those beyond the limit are counted as found, and not as left.  version 0: nothing is known of the
 * sector; it can't be above all that is here.
 */
static void
known_add(struct findings *findings, const struct chunk *chunk, uint32_t sector, uint64_t version,
          uint32_t hopeless_epoch)
{
    if (findings->known_count == KNOWN_BAD_MAX)
        known_forget_deleted(findings);
    if (findings->known_count < KNOWN_BAD_MAX)
        findings->known[findings->known_count++] = (struct bad_sector){
            .key = chunk->key,
            .local_id = chunk->local_id,
            .sector = sector,
            .version = version != 0 ? version : chunk_version_max(chunk),
            .hopeless_epoch = hopeless_epoch,
            .hopeless_count = 1,
        };
}

/* --- telling --- */

static void
findings_wake(struct findings *findings)
{
    uint64_t now_ns = env_now_ns(findings->core->env);
    uint64_t quiet_ns = now_ns - findings->told_ns;

    if (env_timer_armed(&findings->timer) || findings->core->stopping)
        return;
    if (findings->gap_ns == 0 || quiet_ns >= GAP_MAX_NS) {
        findings->gap_ns = GAP_MIN_NS;
        env_timer_start(findings->core->env, &findings->timer, FIRST_NS);
        return;
    }
    env_timer_start(findings->core->env, &findings->timer,
                    quiet_ns < findings->gap_ns ? findings->gap_ns - quiet_ns : 0);
    findings->gap_ns = min_u64(2 * findings->gap_ns, GAP_MAX_NS);
}

static void
finding_fill(Dl__BadSectorFinding *message, const struct finding *finding)
{
    dl__bad_sector_finding__init(message);
    message->volume = finding->key.volume;
    message->segment = finding->key.segment;
    message->slot = finding->key.slot;
    message->first_sector = finding->first_sector;
    message->segments = finding->segments;
    message->bad = finding->bad;
    message->repaired = finding->repaired;
    message->mismatches = finding->mismatches;
    message->other_slot = finding->other_slot;
}

static void
findings_send(struct findings *findings)
{
    Dl__BadSectorFinding messages[ITEMS_MAX], *pointers[ITEMS_MAX];
    Dl__BadSectors message = DL__BAD_SECTORS__INIT;

    for (uint32_t i = 0; i < findings->count; i++) {
        finding_fill(&messages[i], &findings->items[i]);
        pointers[i] = &messages[i];
        findings->items[i].sent = true;
    }
    message.n_findings = findings->count;
    message.findings = pointers;
    findings->told_ns = env_now_ns(findings->core->env);
    findings->request_id = meta_link_request(findings->core, OP_BAD_SECTORS, &message.base);
    env_timer_start(findings->core->env, &findings->timer, ANSWER_NS);
}

/* Time to tell; or there was no answer: again, with what has come since. */
static void
findings_on_timer(struct env_timer *timer)
{
    struct findings *findings = list_entry(timer, struct findings, timer);

    if (findings->count > 0)
        findings_send(findings);
}

void
findings_on_reply(struct findings *findings, uint64_t request_id, int status)
{
    uint32_t kept = 0;

    if (request_id == 0 || request_id != findings->request_id || status != 0)
        return;
    findings->request_id = 0;
    env_timer_stop(findings->core->env, &findings->timer);
    for (uint32_t i = 0; i < findings->count; i++)
        if (!findings->items[i].sent)
            findings->items[kept++] = findings->items[i];
    findings->count = kept;
    if (kept > 0)
        findings_wake(findings);
}

/* --- gathering --- */

/* Can this be one entry of the log with it?  The closer the better: 0 not at all. */
static unsigned
finding_fits(const struct finding *finding, const struct chunk_key *key, bool mismatch,
             uint32_t other_slot)
{
    if (finding->sent || (finding->mismatches > 0) != mismatch ||
        finding->key.volume != key->volume)
        return 0;
    if (finding->key.slot != key->slot || (mismatch && finding->other_slot != other_slot))
        return 1;
    return finding->last_segment == key->segment ? 3 : 2;
}

static struct finding *
finding_add(struct findings *findings, const struct chunk_key *key, uint32_t sector)
{
    struct finding *finding = &findings->items[findings->count++];

    *finding = (struct finding){
        .key = *key, .first_sector = sector, .segments = 1, .last_segment = key->segment};
    return finding;
}

/* The one to add to.  Bad sectors of a slot are one finding, mismatches one per segment. */
static struct finding *
finding_get(struct findings *findings, const struct chunk_key *key, uint32_t sector, bool mismatch,
            uint32_t other_slot)
{
    unsigned wanted = mismatch ? 3 : 2, best = 0;
    struct finding *finding = NULL;

    for (uint32_t i = 0; i < findings->count; i++) {
        unsigned fits = finding_fits(&findings->items[i], key, mismatch, other_slot);

        if (fits > best)
            finding = &findings->items[i];
        best = fits > best ? fits : best;
    }
    if (best < wanted && findings->count < ITEMS_MAX)
        return finding_add(findings, key, sector);
    if (finding == NULL)
        finding = &findings->items[ITEMS_MAX - 1]; /* of another volume, or told already */
    if (finding->sent) {
        *finding = (struct finding){.key = *key, .first_sector = sector, .segments = 1};
        finding->last_segment = key->segment;
    }
    finding->segments += finding->last_segment != key->segment;
    finding->last_segment = key->segment;
    return finding;
}

void
findings_read(struct findings *findings, const struct chunk_key *key, uint32_t first_sector,
              uint32_t end_sector, uint32_t data_sectors)
{
    findings->counts.sectors += data_sectors;
    for (uint32_t i = findings->known_count; i > 0; i--) {
        const struct bad_sector *bad = &findings->known[i - 1];

        if (bad->sector >= first_sector && bad->sector < end_sector && key_equal(&bad->key, key))
            known_remove(findings, i - 1);
    }
}

void
findings_written(struct findings *findings, const struct chunk_key *key, uint32_t first_sector,
                 uint32_t sector_count, uint64_t version)
{
    for (uint32_t i = findings->known_count; i > 0; i--) {
        const struct bad_sector *bad = &findings->known[i - 1];

        if (bad->sector >= first_sector && bad->sector - first_sector < sector_count &&
            bad->version < version && key_equal(&bad->key, key))
            known_remove(findings, i - 1);
    }
}

void
findings_voided(struct findings *findings, const struct chunk *chunk)
{
    for (uint32_t i = findings->known_count; i > 0; i--) {
        const struct bad_sector *bad = &findings->known[i - 1];

        if (bad->local_id == chunk->local_id &&
            bad->version > chunk_step_version(chunk, bad->sector))
            known_remove(findings, i - 1);
    }
}

uint64_t
findings_hopeless(const struct findings *findings, const struct chunk *chunk, uint32_t sector)
{
    uint32_t idx = known_find(findings, chunk, sector);

    if (idx == findings->known_count ||
        findings->known[idx].hopeless_epoch != chunk->config_epoch ||
        findings->known[idx].hopeless_count < HOPELESS_MIN)
        return 0;
    return findings->known[idx].version;
}

void
findings_bad(struct findings *findings, const struct chunk *chunk, uint32_t sector,
             uint64_t version, bool healed, uint32_t hopeless_epoch)
{
    const struct chunk_key *key = &chunk->key;
    uint32_t idx = known_find(findings, chunk, sector);
    bool is_known = idx < findings->known_count;
    struct finding *finding;

    if (is_known && !healed) { /* bad as before */
        if (findings->known[idx].hopeless_epoch != hopeless_epoch ||
            (version != 0 && findings->known[idx].version != version))
            findings->known[idx].hopeless_count = 0;
        findings->known[idx].hopeless_count++;
        findings->known[idx].hopeless_epoch = hopeless_epoch;
        if (version != 0)
            findings->known[idx].version = version;
        return;
    }
    finding = finding_get(findings, key, sector, false, 0);
    findings->counts.bad += !is_known;
    findings->counts.repaired += healed;
    finding->bad++;
    finding->repaired += healed;
    if (is_known)
        known_remove(findings, idx);
    else if (!healed)
        known_add(findings, chunk, sector, version, hopeless_epoch);
    findings_wake(findings);
}

void
findings_mismatch(struct findings *findings, const struct chunk_key *key, uint32_t first_sector,
                  uint32_t count, uint32_t other_slot)
{
    struct finding *finding = finding_get(findings, key, first_sector, true, other_slot);

    findings->counts.mismatches += count;
    finding->other_slot = other_slot;
    finding->mismatches += count;
    findings_wake(findings);
}

void
findings_fill_counts(struct findings *findings, Dl__ScrubCounts *counts)
{
    known_forget_deleted(findings);
    *counts = findings->counts;
    counts->left_bad = findings->known_count;
}

static Dl__BadVolume *
bad_volume_find(Dl__BadVolume *volumes, uint32_t *count, uint64_t id)
{
    for (uint32_t i = 0; i < *count; i++)
        if (volumes[i].volume == id)
            return &volumes[i];
    if (*count == FINDINGS_VOLUMES_MAX)
        return NULL;
    dl__bad_volume__init(&volumes[*count]);
    volumes[*count].volume = id;
    return &volumes[(*count)++];
}

uint32_t
findings_fill_volumes(const struct findings *findings, Dl__BadVolume volumes[FINDINGS_VOLUMES_MAX])
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < findings->known_count; i++) {
        const struct bad_sector *bad = &findings->known[i];
        Dl__BadVolume *volume = bad_volume_find(volumes, &count, bad->key.volume);
        bool is_lost = bad->hopeless_epoch != 0;

        if (volume == NULL)
            continue;
        if (volume->bad == 0 || (is_lost && volume->lost == 0)) {
            volume->segment = bad->key.segment;
            volume->sector = bad->sector;
        }
        volume->bad++;
        volume->lost += is_lost;
    }
    return count;
}

/* --- life --- */

struct findings *
findings_create(struct chunkserver_core *core)
{
    struct findings *findings = calloc(1, sizeof(*findings));

    if (findings == NULL)
        return NULL;
    findings->core = core;
    findings->timer.fn = findings_on_timer;
    dl__scrub_counts__init(&findings->counts);
    findings->known = calloc(KNOWN_BAD_MAX, sizeof(findings->known[0]));
    if (findings->known != NULL)
        return findings;
    free(findings);
    return NULL;
}

void
findings_stop(struct findings *findings)
{
    env_timer_stop(findings->core->env, &findings->timer);
}

void
findings_free(struct findings *findings)
{
    if (findings == NULL)
        return;
    free(findings->known);
    free(findings);
}
