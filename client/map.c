/* SPDX-License-Identifier: Apache-2.0 */
#include "client/map.h"

#include <stdlib.h>
#include <string.h>

#include "client/core_internal.h"
#include "dlblk/error.h"
#include "proto/data.h"

void
client_map_init(struct segment_map *map, uint32_t slots_max)
{
    dl_assert(slots_max > 0);
    dl_assert(slots_max <= WIRE_SLOTS_MAX);
    memset(map, 0, sizeof(*map));
    map->slots_max = slots_max;
}

void
client_map_fini(struct segment_map *map)
{
    for (uint32_t page = 0; page < map->page_count; page++) {
        if (map->pages[page] == NULL)
            continue;
        for (uint32_t i = 0; i < MAP_PAGE_SEGMENTS; i++)
            free(map->pages[page][i]);
        free(map->pages[page]);
    }
    free(map->pages);
    memset(map, 0, sizeof(*map));
}

static int
map_make_page(struct segment_map *map, uint32_t page)
{
    if (page >= map->page_count) {
        uint32_t count = map->page_count * 2 > page + 1 ? map->page_count * 2 : page + 1;
        struct segment ***pages = reallocarray(map->pages, count, sizeof(*pages));

        if (pages == NULL)
            return -DL_E_NO_MEMORY;
        memset(pages + map->page_count, 0, (count - map->page_count) * sizeof(*pages));
        map->pages = pages;
        map->page_count = count;
    }
    if (map->pages[page] == NULL)
        map->pages[page] = calloc(MAP_PAGE_SEGMENTS, sizeof(struct segment *));
    return map->pages[page] != NULL ? 0 : -DL_E_NO_MEMORY;
}

struct segment *
client_map_want(struct segment_map *map, uint32_t index)
{
    struct segment *segment = client_map_get(map, index);

    if (segment != NULL)
        return segment;
    if (map_make_page(map, index / MAP_PAGE_SEGMENTS) != 0)
        return NULL;
    segment = calloc(1, sizeof(*segment) + map->slots_max * sizeof(segment->slots[0]));
    if (segment == NULL)
        return NULL;
    segment->index = index;
    segment->state = SEGMENT_WANTED;
    list_init(&segment->waiters);
    map->pages[index / MAP_PAGE_SEGMENTS][index % MAP_PAGE_SEGMENTS] = segment;
    map->segment_count++;
    return segment;
}

struct segment *
client_map_next(const struct segment_map *map, uint32_t index)
{
    for (uint32_t page = index / MAP_PAGE_SEGMENTS; page < map->page_count; page++) {
        uint32_t first = page == index / MAP_PAGE_SEGMENTS ? index % MAP_PAGE_SEGMENTS : 0;

        if (map->pages[page] == NULL)
            continue;
        for (uint32_t i = first; i < MAP_PAGE_SEGMENTS; i++)
            if (map->pages[page][i] != NULL)
                return map->pages[page][i];
    }
    return NULL;
}

static int
map_check(const struct segment_map *map, const Dl__Segment *message)
{
    bool in_sync = false;

    if (message->config_epoch == 0 || message->n_slots == 0 || message->n_slots > map->slots_max)
        return -DL_E_MESSAGE_MALFORMED;
    for (size_t i = 0; i < message->n_slots; i++) {
        const Dl__Slot *slot = message->slots[i];

        if ((uint32_t)slot->state > DL__SLOT_STATE__SLOT_EJECTED ||
            slot->server_id > CLIENT_SERVER_ID_MAX || slot->number >= WIRE_SLOTS_MAX)
            return -DL_E_MESSAGE_MALFORMED;
        if (slot->server_id == 0 && slot->state != DL__SLOT_STATE__SLOT_NONE &&
            slot->state != DL__SLOT_STATE__SLOT_EJECTED)
            return -DL_E_MESSAGE_MALFORMED;
        in_sync = in_sync || slot->state == DL__SLOT_STATE__SLOT_IN_SYNC;
    }
    return in_sync ? 0 : -DL_E_MESSAGE_MALFORMED;
}

int
client_map_apply(struct segment_map *map, const Dl__Segment *message, struct segment **ret_segment,
                 bool *ret_changed)
{
    struct segment *segment;
    int err = map_check(map, message);

    if (err != 0)
        return err;
    segment = client_map_want(map, message->index);
    if (segment == NULL)
        return -DL_E_NO_MEMORY;
    *ret_segment = segment;
    *ret_changed = message->config_epoch > segment->config_epoch;
    if (!*ret_changed)
        return 0;
    segment->config_epoch = message->config_epoch;
    segment->slot_count = (uint8_t)message->n_slots;
    segment->eject_state = SEGMENT_EJECT_NONE;
    segment->eject_mask = 0;
    segment->eject_refused_mask = 0;
    for (size_t i = 0; i < message->n_slots; i++)
        segment->slots[i] = (struct segment_slot){
            .server_id = message->slots[i]->server_id & CLIENT_SERVER_ID_MAX,
            .state = (uint32_t)message->slots[i]->state & 7,
            .number = message->slots[i]->number & (WIRE_SLOTS_MAX - 1),
            .attempt = message->slots[i]->attempt,
        };
    return 0;
}
