/* SPDX-License-Identifier: Apache-2.0 */
/*
 * extents.c: where a volume has data, in order, in one pass.
 *
 * What no segment exists of is a hole.  Inside a segment the slot's answer to READ says of each
 * sector whether it has data; its payload is dropped.  Passes of a volume take turns; a pass goes
 * piece by piece and takes no range lock, so what is written meanwhile may or may not be seen.
 */
#include <string.h>

#include "client/read_op.h"
#include "client/volume_internal.h"
#include "common/align.h"

struct extents_state {
    struct list node; /* volume->extents */
    struct client_volume *volume;
    struct read_op *read;     /* under way: of piece_bytes from position_bytes on */
    uint64_t position_bytes;  /* up to here all is known */
    uint64_t run_start_bytes; /* the last run, up to position_bytes, has not been told */
    uint64_t deadline_ns;
    uint32_t piece_bytes;
    uint32_t piece_skip_bytes;
    bool run_is_hole;
    int err;
};
static_assert(sizeof(struct extents_state) <= sizeof(((struct client_extents *)0)->client_private),
              "client_extents has room for it");

static struct extents_state *
extents_state_of(struct client_extents *extents)
{
    return (struct extents_state *)(void *)extents->client_private;
}

static struct client_extents *
extents_of_state(struct extents_state *state)
{
    return list_entry((void **)(void *)state, struct client_extents, client_private[0]);
}

static void
extents_tell_run(struct extents_state *state)
{
    struct client_extents *extents = extents_of_state(state);
    uint64_t length_bytes = state->position_bytes - state->run_start_bytes;

    if (length_bytes > 0 && state->err == 0)
        state->err = extents->fn(extents->context, state->run_start_bytes, length_bytes,
                                 state->run_is_hole);
    state->run_start_bytes = state->position_bytes;
}

static void
extents_add(struct extents_state *state, uint64_t length_bytes, bool hole)
{
    if (length_bytes == 0)
        return;
    if (hole != state->run_is_hole)
        extents_tell_run(state);
    state->run_is_hole = hole;
    state->position_bytes += length_bytes;
}

static void
extents_set_deadline(struct extents_state *state)
{
    struct client_core *core = state->volume->core;

    state->deadline_ns = client_core_deadline_ns(core);
}

static void
extents_on_read(struct read_op *read, int err)
{
    struct extents_state *state = client_read_context(read);
    struct client_volume *volume = state->volume;
    uint32_t left_bytes = state->piece_bytes;
    uint32_t skip_bytes = state->piece_skip_bytes;

    state->read = NULL;
    if (err != 0)
        state->err = err;
    for (uint32_t i = 0; left_bytes > 0 && state->err == 0; i++) {
        uint32_t run_bytes = min_u32(left_bytes, WIRE_SECTOR_BYTES - skip_bytes);

        extents_add(state, run_bytes, volume->extents_kinds[i] != WIRE_SECTOR_DATA);
        left_bytes -= run_bytes;
        skip_bytes = 0;
    }
    extents_set_deadline(state);
    client_volume_defer(volume);
}

static void
extents_start_read(struct extents_state *state, struct segment *segment,
                   const struct geometry_piece *piece)
{
    struct client_volume *volume = state->volume;
    uint32_t only = volume->flags >> 8;
    struct read_own own = {
        .segment = segment,
        .first_sector = sector_of_offset(piece->offset_bytes),
        .slot = only != 0 ? only - 1 : READ_ANY_SLOT,
        .kinds = volume->extents_kinds,
        .deadline_ns = state->deadline_ns,
        .pool = &volume->fill_ops,
        .on_done = extents_on_read,
        .context = state,
    };

    state->piece_bytes = piece->length_bytes;
    state->piece_skip_bytes = piece->offset_bytes % WIRE_SECTOR_BYTES;
    own.sector_count = sectors_of_bytes(
        sector_round_up((uint64_t)state->piece_skip_bytes + piece->length_bytes));
    state->read = client_read_start_own(volume, &own);
}

/* True: it has ended.  False: it waits for a reply, or for the tick. */
static bool
extents_step(struct extents_state *state)
{
    struct client_volume *volume = state->volume;
    struct client_extents *extents = extents_of_state(state);
    uint64_t end_bytes = extents->offset_bytes + extents->length_bytes;

    /* What has no segment here may have been written by a newer owner. */
    if (volume->fenced && state->err == 0)
        state->err = volume->fence_err;
    while (state->err == 0 && state->position_bytes < end_bytes) {
        uint64_t next = client_volume_skip_unallocated(volume, state->position_bytes, end_bytes);
        struct geometry_piece piece;
        struct segment *segment;

        if (next > state->position_bytes) {
            extents_add(state, next - state->position_bytes, true);
            continue;
        }
        piece = geometry_first_piece(&volume->geometry, state->position_bytes,
                                     end_bytes - state->position_bytes);
        segment = client_map_get(&volume->map, piece.segment);
        if (!segment_is_allocated(segment)) {
            extents_add(state, piece.length_bytes, true);
            continue;
        }
        if (segment->state == SEGMENT_UNRESOLVED ||
            client_unsettled_overlaps(segment, sector_of_offset(piece.offset_bytes),
                                      sectors_of_bytes(sector_round_up(piece.length_bytes)) + 1)) {
            if (env_now_ns(volume->core->env) < state->deadline_ns)
                return false;
            state->err = -DL_E_TIMEOUT;
        } else {
            extents_start_read(state, segment, &piece);
            return false;
        }
    }
    extents_tell_run(state);
    return true;
}

void
client_extents_run(struct client_volume *volume)
{
    while (!list_is_empty(&volume->extents)) {
        struct extents_state *state = list_first_entry(&volume->extents, struct extents_state,
                                                       node);
        struct client_extents *extents = extents_of_state(state);
        int err;

        if (state->read != NULL || !extents_step(state))
            return;
        err = state->err;
        list_remove(&state->node);
        dl_assert(volume->requests_in_flight > 0);
        volume->requests_in_flight--;
        extents->on_done(extents, err);
    }
}

void
client_volume_extents(struct client_volume *volume, struct client_extents *extents)
{
    struct extents_state *state = extents_state_of(extents);

    memset(state, 0, sizeof(*state));
    state->volume = volume;
    state->position_bytes = extents->offset_bytes;
    state->run_start_bytes = extents->offset_bytes;
    if (volume->sm.state != VOLUME_OPEN)
        state->err = -ESHUTDOWN;
    else if (extents->offset_bytes > volume->geometry.size_bytes ||
             extents->length_bytes > volume->geometry.size_bytes - extents->offset_bytes)
        state->err = -DL_E_RANGE;
    extents_set_deadline(state);
    volume->requests_in_flight++;
    list_push_back(&volume->extents, &state->node);
    client_core_want_tick(volume->core);
    client_volume_defer(volume);
}
