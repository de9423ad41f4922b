/* SPDX-License-Identifier: Apache-2.0 */
/* watch_client.c: what a client has in its memory.  See watch.h. */
#include "client/volume_internal.h"
#include "tests/sim/watch.h"

static const struct segment *
client_segment(const struct sim_client *client, uint64_t volume, uint32_t index)
{
    if (!client->process.up || client->volume == NULL || client->volume->id != volume)
        return NULL;
    return client_map_get(&client->volume->map, index);
}

bool
watch_client_reads(const struct sim_client *client, uint64_t volume, uint32_t index,
                   uint32_t number, uint32_t server_id)
{
    const struct segment *segment = client_segment(client, volume, index);

    if (segment == NULL || !segment_is_allocated(segment) || client->volume->fenced ||
        client->volume->sm.state >= VOLUME_DETACHING)
        return false;
    for (uint32_t i = 0; i < segment->slot_count; i++)
        if (segment_slot_is_read(&segment->slots[i]) && segment->slots[i].number == number &&
            segment->slots[i].server_id == server_id)
            return true;
    return false;
}

bool
watch_client_uses(const struct sim_client *client, uint64_t volume, uint32_t index)
{
    const struct segment *segment = client_segment(client, volume, index);

    return segment != NULL && segment->state == SEGMENT_READY && !client->volume->fenced &&
           !client->volume->takeover_due && client->state == CLIENT_RUNNING &&
           (client->volume->flags & DLBLK_OPEN_READ_ONLY) == 0;
}

bool
watch_client_resolves(const struct sim_client *client, uint64_t volume, uint32_t index)
{
    const struct segment *segment = client_segment(client, volume, index);

    return segment != NULL && segment->state != SEGMENT_READY;
}

uint32_t
watch_client_lease(const struct sim_client *client, uint64_t volume)
{
    if (!client->process.up || client->volume == NULL || client->volume->id != volume)
        return 0;
    return client->volume->lease_epoch;
}
