/* SPDX-License-Identifier: Apache-2.0 */
/*
 * unsettled.c: ranges that a failed write left undecided.
 *
 * A write that failed may be on some slots and not on others.  Until its range has been written
 * alike to all slots it is not read (a read could return the new content now and the old one
 * later), and S does not pass its version.  Either the user writes there again, or, as soon as all
 * slots are within reach, one slot's content is written to all: since the user was told that the
 * write failed, both the old and the new content are right.  A write of zeroes, which can be long,
 * is finished instead.
 *
 * S waits for that, so it has to find room in the window above S (stable.h), however full that is:
 * a range takes one version.
 *
 * Each range remembers the sequence of its write; a sequence is done when no range of it is left.
 */
#include <string.h>

#include "client/resolve.h"
#include "client/volume_internal.h"
#include "common/mutant.h"

#define SETTLE_WAIT_MIN_NS (1000 * CLIENT_NS_PER_MS)
#define SETTLE_WAIT_MAX_NS (60000 * CLIENT_NS_PER_MS)

static bool
unsettled_overlap(const struct unsettled_range *range, uint32_t first_sector, uint32_t sector_count)
{
    return range->first_sector < first_sector + sector_count &&
           first_sector < range->first_sector + range->sector_count;
}

void
client_unsettled_add(struct segment_writer *writer, const struct unsettled_range *range)
{
    /* Without memory to remember it nothing of the volume may be read any more. */
    if (vec_push(&writer->unsettled, *range) != 0) {
        client_volume_fence(writer->volume, -DL_E_NO_MEMORY,
                            "no memory to remember a failed write");
        return;
    }
    writer->volume->unsettled_count++;
    client_core_want_tick(writer->volume->core);
}

bool
client_unsettled_overlaps(const struct segment *segment, uint32_t first_sector,
                          uint32_t sector_count)
{
    if (segment->writer == NULL || DLBLK_MUTANT(client_read_unsettled))
        return false;
    vec_for_each (range, &segment->writer->unsettled)
        if (unsettled_overlap(range, first_sector, sector_count))
            return true;
    return false;
}

bool
client_unsettled_is_left(const struct segment *segment, uint32_t first_sector,
                         uint32_t sector_count, uint64_t sequence)
{
    if (segment->writer == NULL)
        return false;
    vec_for_each (range, &segment->writer->unsettled)
        if (range->sequence == sequence && range->first_sector == first_sector &&
            range->sector_count == sector_count)
            return true;
    return false;
}

static bool
unsettled_has_sequence(const struct segment_writer *writer, uint64_t sequence)
{
    vec_for_each (range, &writer->unsettled)
        if (range->sequence == sequence)
            return true;
    return false;
}

/*
 * What is left of a range in front of and behind the cut.  Returns false if the rest behind it
 * found no memory.
 */
static bool
unsettled_keep_rests(struct segment_writer *writer, const struct unsettled_range *range,
                     uint32_t first_sector, uint32_t end_sector)
{
    uint32_t range_end = range->first_sector + range->sector_count;
    struct unsettled_range front = *range;
    struct unsettled_range back = *range;
    bool kept = true;

    front.sector_count = first_sector - range->first_sector;
    back.first_sector = end_sector;
    back.sector_count = range_end - end_sector;

    if (range->first_sector < first_sector)
        kept = vec_push(&writer->unsettled, front) == 0;
    if (range_end > end_sector && kept)
        kept = vec_push(&writer->unsettled, back) == 0;
    return kept;
}

void
client_unsettled_cut(struct segment_writer *writer, uint32_t first_sector, uint32_t sector_count)
{
    struct client_volume *volume = writer->volume;
    size_t i = 0;

    while (i < writer->unsettled.count) {
        struct unsettled_range range = writer->unsettled.items[i];

        if (!unsettled_overlap(&range, first_sector, sector_count)) {
            i++;
            continue;
        }
        /* Room for both rests first: then nothing is lost half way. */
        if (vec_reserve(&writer->unsettled, writer->unsettled.count + 2) != 0)
            return;
        vec_remove_swap(&writer->unsettled, i);
        (void)unsettled_keep_rests(writer, &range, first_sector, first_sector + sector_count);
        if (!unsettled_has_sequence(writer, range.sequence))
            client_stable_done(writer, range.sequence);
        /* The rests don't overlap what was cut: the loop passes over them. */
    }
    volume->unsettled_count = 0;
    struct segment_writer *other;
    list_for_each_entry (other, &volume->writers, node)
        volume->unsettled_count += (uint32_t)other->unsettled.count;
    if (volume->close != NULL)
        client_volume_defer(volume);
}

/* --- settling --- */

/* The oldest: S waits for it first. */
static const struct unsettled_range *
settle_choose(const struct segment_writer *writer)
{
    const struct unsettled_range *oldest = &writer->unsettled.items[0];

    vec_for_each (range, &writer->unsettled)
        if (range->sequence < oldest->sequence)
            oldest = range;
    return oldest;
}

static void settle_on_done(void *context, int err);

static void
settle_start(struct segment_writer *writer)
{
    const struct unsettled_range *range = settle_choose(writer);
    struct resolve_range settle = {
        .segment = writer->segment,
        .first_sector = range->first_sector,
        .sector_count = range->sector_count,
        .zeroes = range->zero,
        .exclusive = true,
        .settles = range->sequence,
        .on_done = settle_on_done,
        .context = writer,
    };

    writer->settle = client_resolve_start(writer->volume, &settle);
}

/* The next range, if it is time and all slots are there. */
static void
settle_next(struct segment_writer *writer)
{
    struct client_volume *volume = writer->volume;

    if (writer->unsettled.count == 0 || writer->settle != NULL || volume->fenced ||
        volume->sm.state >= VOLUME_DETACHING || env_now_ns(volume->core->env) < writer->settle_ns ||
        !client_resolve_may_start(volume) || !client_stable_slots_are_up(volume, writer->segment))
        return;
    settle_start(writer);
}

static void
settle_on_done(void *context, int err)
{
    struct segment_writer *writer = context;
    uint64_t now_ns = env_now_ns(writer->volume->core->env);

    writer->settle = NULL;
    if (err == 0 || err == -DL_E_STALE_MAP) {
        writer->settle_wait_ns = 0;
        writer->settle_ns = now_ns;
        settle_next(writer);
        return;
    }
    writer->settle_wait_ns = writer->settle_wait_ns == 0 ? SETTLE_WAIT_MIN_NS
                                                         : writer->settle_wait_ns * 2;
    if (writer->settle_wait_ns > SETTLE_WAIT_MAX_NS)
        writer->settle_wait_ns = SETTLE_WAIT_MAX_NS;
    writer->settle_ns = now_ns + writer->settle_wait_ns;
}

void
client_unsettled_tick(struct client_volume *volume)
{
    struct segment_writer *writer;

    if (volume->unsettled_count == 0)
        return;
    list_for_each_entry (writer, &volume->writers, node)
        settle_next(writer);
}
