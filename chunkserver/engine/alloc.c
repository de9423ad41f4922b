/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/engine/alloc.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define CLASS_BLOCKS      8u
#define LARGE_RUN_MIN     16u /* smaller holes are left to small writes */
#define LARGE_SLABS_TRIED 8u

static_assert((SLAB_DATA_BLOCKS + CLASS_BLOCKS - 1) / CLASS_BLOCKS < ALLOC_CLASSES, "classes");
static_assert(ALLOC_CLASSES <= 128, "class_mask");

static void *
alloc_memory(size_t count, size_t item_bytes)
{
    void *memory = calloc(count, item_bytes);

    dl_assert(memory != NULL);
    return memory;
}

/* --- queues of runs --- */

struct alloc_run *
alloc_queue_at(const struct alloc_queue *queue, uint32_t idx)
{
    dl_assert(idx < queue->count);
    return &queue->runs[(queue->head + idx) & (queue->capacity - 1)];
}

static void
queue_grow(struct alloc_queue *queue)
{
    uint32_t capacity = queue->capacity == 0 ? 64 : queue->capacity * 2;
    struct alloc_run *runs = alloc_memory(capacity, sizeof(*runs));

    for (uint32_t i = 0; i < queue->count; i++)
        runs[i] = *alloc_queue_at(queue, i);
    free(queue->runs);
    queue->runs = runs;
    queue->head = 0;
    queue->capacity = capacity;
}

/* Adjacent blocks of equal read_seq are joined. */
static void
queue_push(struct alloc_queue *queue, uint64_t block, uint32_t count, uint64_t read_seq)
{
    struct alloc_run *last = queue->count == 0 ? NULL : alloc_queue_at(queue, queue->count - 1);

    if (last != NULL && last->read_seq == read_seq &&
        last->extent.block + last->extent.count == block &&
        last->extent.count + count <= EXTENT_BLOCKS_MAX) {
        last->extent.count += count;
        return;
    }
    if (queue->count == queue->capacity)
        queue_grow(queue);
    queue->count++;
    *alloc_queue_at(queue, queue->count - 1) = (struct alloc_run){
        .extent = {.block = block, .count = count}, .read_seq = read_seq};
}

static void
queue_pop(struct alloc_queue *queue)
{
    dl_assert(queue->count > 0);
    queue->head = (queue->head + 1) & (queue->capacity - 1);
    queue->count--;
}

/* --- the map --- */

static void
bits_set(uint64_t *words, uint64_t first, uint32_t count)
{
    for (uint64_t bit = first; bit < first + count; bit++) {
        dl_assert((words[bit / 64] >> (bit % 64) & 1) == 0);
        words[bit / 64] |= UINT64_C(1) << (bit % 64);
    }
}

static void
bits_clear(uint64_t *words, uint64_t first, uint32_t count)
{
    for (uint64_t bit = first; bit < first + count; bit++) {
        dl_assert((words[bit / 64] >> (bit % 64) & 1) != 0);
        words[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
    }
}

static void
alloc_set_footers(struct alloc *alloc, uint32_t slab)
{
    for (uint64_t i = SLAB_DATA_BLOCKS; i < SLAB_BLOCKS; i++) {
        uint64_t block = (uint64_t)slab * SLAB_BLOCKS + i;

        alloc->map[block / 64] |= UINT64_C(1) << (block % 64);
    }
}

void
alloc_init(struct alloc *alloc, uint32_t slab_count, uint64_t reserve_blocks)
{
    dl_assert(slab_count > 0 && slab_count < ALLOC_NONE);
    memset(alloc, 0, sizeof(*alloc));
    alloc->slab_count = slab_count;
    alloc->data_blocks = (uint64_t)slab_count * SLAB_DATA_BLOCKS;
    alloc->reserve_blocks = reserve_blocks;
    alloc->map = alloc_memory((size_t)slab_count * ALLOC_SLAB_WORDS, sizeof(uint64_t));
    alloc->slabs = alloc_memory(slab_count, sizeof(struct alloc_slab));
    freelist_init(&alloc->limbo_words, ALLOC_SLAB_WORDS * sizeof(uint64_t), 64);
    for (uint32_t i = 0; i < ALLOC_CLASSES; i++)
        alloc->classes[i] = ALLOC_NONE;
    alloc->open[ALLOC_SMALL].slab = ALLOC_NONE;
    alloc->open[ALLOC_LARGE].slab = ALLOC_NONE;
    for (uint32_t slab = 0; slab < slab_count; slab++)
        alloc_set_footers(alloc, slab);
}

void
alloc_fini(struct alloc *alloc)
{
    free(alloc->map);
    free(alloc->slabs);
    free(alloc->queued.runs);
    free(alloc->quarantined.runs);
    if (alloc->limbo_words.item_bytes != 0)
        freelist_fini(&alloc->limbo_words);
    memset(alloc, 0, sizeof(*alloc));
}

uint32_t
alloc_page_count(const struct alloc *alloc)
{
    uint64_t blocks = (uint64_t)alloc->slab_count * SLAB_BLOCKS;

    return (uint32_t)((blocks + BITMAP_PAGE_BLOCKS - 1) / BITMAP_PAGE_BLOCKS);
}

/* Words of the map in this page: the last page may be short. */
static uint32_t
page_words(const struct alloc *alloc, uint32_t page)
{
    uint64_t words = (uint64_t)alloc->slab_count * ALLOC_SLAB_WORDS;
    uint64_t first = (uint64_t)page * (BITMAP_PAGE_BLOCKS / 64);

    dl_assert(first < words);
    return words - first < BITMAP_PAGE_BLOCKS / 64 ? (uint32_t)(words - first)
                                                   : BITMAP_PAGE_BLOCKS / 64;
}

void
alloc_load_page(struct alloc *alloc, uint32_t page, const uint8_t *bits)
{
    uint64_t *words = alloc->map + (size_t)page * (BITMAP_PAGE_BLOCKS / 64);
    uint32_t word_count = page_words(alloc, page);

    for (uint32_t i = 0; i < word_count; i++) {
        uint64_t word;

        memcpy(&word, bits + i * sizeof(word), sizeof(word));
        words[i] = le64toh(word);
    }
    for (uint32_t i = 0; i < word_count / ALLOC_SLAB_WORDS; i++)
        alloc_set_footers(alloc, page * (BITMAP_PAGE_BLOCKS / SLAB_BLOCKS) + i);
}

void
alloc_save_page(const struct alloc *alloc, uint32_t page, uint8_t *ret_bits)
{
    const uint64_t *words = alloc->map + (size_t)page * (BITMAP_PAGE_BLOCKS / 64);
    uint32_t word_count = page_words(alloc, page);

    memset(ret_bits, 0, BITMAP_PAGE_BYTES);
    for (uint32_t i = 0; i < word_count; i++) {
        uint64_t word = htole64(words[i]);

        memcpy(ret_bits + i * sizeof(word), &word, sizeof(word));
    }
}

bool
alloc_run_is_valid(const struct alloc *alloc, uint64_t block, uint32_t count)
{
    return count > 0 && count <= SLAB_DATA_BLOCKS &&
           block < (uint64_t)alloc->slab_count * SLAB_BLOCKS &&
           block % SLAB_BLOCKS + count <= SLAB_DATA_BLOCKS;
}

/* A record may be replayed over a page that has it already: these don't look at what was there. */
void
alloc_replay_set(struct alloc *alloc, uint64_t block, uint32_t count)
{
    dl_assert(alloc_run_is_valid(alloc, block, count));
    for (uint64_t i = block; i < block + count; i++)
        alloc->map[i / 64] |= UINT64_C(1) << (i % 64);
}

void
alloc_replay_clear(struct alloc *alloc, uint64_t block, uint32_t count)
{
    dl_assert(alloc_run_is_valid(alloc, block, count));
    for (uint64_t i = block; i < block + count; i++)
        alloc->map[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

/* --- slabs by their number of free blocks --- */

static uint32_t
slab_class(uint16_t free_count)
{
    return (free_count + CLASS_BLOCKS - 1) / CLASS_BLOCKS;
}

static void
class_insert(struct alloc *alloc, uint32_t slab)
{
    struct alloc_slab *s = &alloc->slabs[slab];
    uint32_t class = slab_class(s->free_count);

    dl_assert(!s->open);
    if (class == 0)
        return;
    s->previous = ALLOC_NONE;
    s->next = alloc->classes[class];
    if (s->next != ALLOC_NONE)
        alloc->slabs[s->next].previous = slab;
    alloc->classes[class] = slab;
    alloc->class_mask[class / 64] |= UINT64_C(1) << (class % 64);
}

static void
class_remove(struct alloc *alloc, uint32_t slab)
{
    struct alloc_slab *s = &alloc->slabs[slab];
    uint32_t class = slab_class(s->free_count);

    dl_assert(!s->open);
    if (class == 0)
        return;
    if (s->previous == ALLOC_NONE) {
        dl_assert(alloc->classes[class] == slab);
        alloc->classes[class] = s->next;
    } else {
        alloc->slabs[s->previous].next = s->next;
    }
    if (s->next != ALLOC_NONE)
        alloc->slabs[s->next].previous = s->previous;
    if (alloc->classes[class] == ALLOC_NONE)
        alloc->class_mask[class / 64] &= ~(UINT64_C(1) << (class % 64));
}

static void
slab_count_change(struct alloc *alloc, uint32_t slab, int change)
{
    struct alloc_slab *s = &alloc->slabs[slab];
    uint16_t free_count = (uint16_t)(s->free_count + change);
    bool moves = !s->open && slab_class(free_count) != slab_class(s->free_count);

    dl_assert(free_count <= SLAB_DATA_BLOCKS);
    if (moves)
        class_remove(alloc, slab);
    s->free_count = free_count;
    if (moves)
        class_insert(alloc, slab);
    alloc->free_blocks = (uint64_t)((int64_t)alloc->free_blocks + change);
}

/* The emptiest slab that is not open; ALLOC_NONE: none has a free block. */
static uint32_t
slab_emptiest(const struct alloc *alloc)
{
    for (int i = 1; i >= 0; i--)
        if (alloc->class_mask[i] != 0)
            return alloc->classes[i * 64 + 63 - __builtin_clzll(alloc->class_mask[i])];
    return ALLOC_NONE;
}

void
alloc_start(struct alloc *alloc)
{
    dl_assert(alloc->free_blocks == 0);
    /*
     * From the last to the first, so that equally empty slabs are used in the order of their place.
     */
    for (uint32_t slab = alloc->slab_count; slab-- > 0;) {
        const uint64_t *words = alloc->map + (size_t)slab * ALLOC_SLAB_WORDS;
        uint32_t used = 0;

        for (uint32_t i = 0; i < ALLOC_SLAB_WORDS; i++)
            used += (uint32_t)__builtin_popcountll(words[i]);
        dl_assert(used >= SLAB_BLOCKS - SLAB_DATA_BLOCKS && used <= SLAB_BLOCKS);
        alloc->slabs[slab].free_count = (uint16_t)(SLAB_BLOCKS - used);
        alloc->free_blocks += SLAB_BLOCKS - used;
        class_insert(alloc, slab);
    }
}

/* --- limbo: neither in the map nor free --- */

static void
limbo_set(struct alloc *alloc, uint64_t block, uint32_t count)
{
    struct alloc_slab *slab = &alloc->slabs[block / SLAB_BLOCKS];

    if (slab->limbo == NULL) {
        slab->limbo = freelist_take(&alloc->limbo_words);
        memset(slab->limbo, 0, ALLOC_SLAB_WORDS * sizeof(uint64_t));
    }
    bits_set(slab->limbo, block % SLAB_BLOCKS, count);
    slab->limbo_count = (uint16_t)(slab->limbo_count + count);
    alloc->limbo_blocks += count;
}

static void
limbo_clear(struct alloc *alloc, uint64_t block, uint32_t count)
{
    struct alloc_slab *slab = &alloc->slabs[block / SLAB_BLOCKS];

    dl_assert(slab->limbo != NULL && slab->limbo_count >= count);
    bits_clear(slab->limbo, block % SLAB_BLOCKS, count);
    slab->limbo_count = (uint16_t)(slab->limbo_count - count);
    alloc->limbo_blocks -= count;
    if (slab->limbo_count == 0) {
        freelist_give(&alloc->limbo_words, slab->limbo);
        slab->limbo = NULL;
    }
}

bool
alloc_in_limbo(const struct alloc *alloc, uint64_t block)
{
    const struct alloc_slab *slab = &alloc->slabs[block / SLAB_BLOCKS];
    uint64_t bit = block % SLAB_BLOCKS;

    return slab->limbo != NULL && (slab->limbo[bit / 64] >> (bit % 64) & 1) != 0;
}

/* --- handing out --- */

/* Bits of one word of a slab: 1 is free. */
static uint64_t
slab_free_word(const struct alloc *alloc, uint32_t slab, uint32_t word)
{
    const struct alloc_slab *s = &alloc->slabs[slab];
    uint64_t used = alloc->map[(size_t)slab * ALLOC_SLAB_WORDS + word];

    return ~(s->limbo != NULL ? used | s->limbo[word] : used);
}

/*
 * The first free block at or above `from`, and how many of `want` follow it.  Returns 0 if there is
 * none.
 */
static uint32_t
slab_find_run(const struct alloc *alloc, uint32_t slab, uint32_t from, uint32_t want,
              uint32_t *ret_first)
{
    uint32_t word = from / 64, first, count = 0;
    uint64_t bits;

    if (from >= SLAB_BLOCKS)
        return 0;
    bits = slab_free_word(alloc, slab, word) & (~UINT64_C(0) << (from % 64));
    while (bits == 0) {
        if (++word == ALLOC_SLAB_WORDS)
            return 0;
        bits = slab_free_word(alloc, slab, word);
    }
    first = word * 64 + (uint32_t)__builtin_ctzll(bits);
    while (count < want && first + count < SLAB_BLOCKS) {
        uint32_t at = first + count;
        uint64_t rest = ~(slab_free_word(alloc, slab, at / 64) >> (at % 64));
        uint32_t run = rest == 0 ? 64 : (uint32_t)__builtin_ctzll(rest);

        run = run < 64 - at % 64 ? run : 64 - at % 64;
        count += run;
        if (run == 0 || (at + run) % 64 != 0)
            break;
    }
    *ret_first = first;
    return count < want ? count : want;
}

static void
open_close(struct alloc *alloc, enum alloc_kind kind)
{
    struct alloc_open *open = &alloc->open[kind];

    if (open->slab == ALLOC_NONE)
        return;
    alloc->slabs[open->slab].open = false;
    class_insert(alloc, open->slab);
    open->slab = ALLOC_NONE;
}

/* Open the emptiest slab; at need take the one that the other kind has open. */
static void
open_next(struct alloc *alloc, enum alloc_kind kind)
{
    struct alloc_open *open = &alloc->open[kind];
    uint32_t slab;

    open_close(alloc, kind);
    slab = slab_emptiest(alloc);
    if (slab == ALLOC_NONE) {
        open_close(alloc, kind == ALLOC_SMALL ? ALLOC_LARGE : ALLOC_SMALL);
        slab = slab_emptiest(alloc);
    }
    dl_assert(slab != ALLOC_NONE);
    class_remove(alloc, slab);
    alloc->slabs[slab].open = true;
    *open = (struct alloc_open){.slab = slab, .cursor = 0};
}

/* Hand out a run of the open slab. */
static void
open_take(struct alloc *alloc, struct alloc_open *open, uint32_t first, uint32_t count,
          struct extent *ret_extent)
{
    struct alloc_slab *slab = &alloc->slabs[open->slab];
    uint64_t block = (uint64_t)open->slab * SLAB_BLOCKS + first;
    uint16_t reused = (uint16_t)(slab->recycled < count ? slab->recycled : count);

    dl_assert(alloc_run_is_valid(alloc, block, count));
    limbo_set(alloc, block, count);
    slab_count_change(alloc, open->slab, -(int)count);
    slab->recycled = (uint16_t)(slab->recycled - reused);
    alloc->reused_total += reused;
    alloc->taken_total += count;
    open->cursor = first + count;
    *ret_extent = (struct extent){.block = block, .count = count};
}

/*
 * The next run of at least run_min blocks (or all that is wanted) of the open slab.  0: it has
 * none.
 */
static uint32_t
open_find(const struct alloc *alloc, const struct alloc_open *open, uint32_t want, uint32_t run_min,
          uint32_t *ret_first)
{
    uint32_t from = open->cursor, needed = want < run_min ? want : run_min;

    if (open->slab == ALLOC_NONE)
        return 0;
    for (;;) {
        uint32_t count = slab_find_run(alloc, open->slab, from, want, ret_first);

        if (count == 0 || count >= needed)
            return count;
        from = *ret_first + count;
    }
}

uint64_t
alloc_reserve(const struct alloc *alloc)
{
    uint64_t fraction = alloc->data_blocks / 50;
    uint64_t waiting = alloc_awaiting(alloc) + alloc->reserve_blocks;

    return waiting > fraction ? waiting : fraction;
}

bool
alloc_has_room(const struct alloc *alloc, uint32_t count, bool use_reserve)
{
    return alloc->free_blocks >= count + (use_reserve ? 0 : alloc_reserve(alloc));
}

uint32_t
alloc_take(struct alloc *alloc, enum alloc_kind kind, uint32_t count, bool use_reserve,
           struct extent *ret_extents)
{
    struct alloc_open *open = &alloc->open[kind];
    uint32_t run_min = kind == ALLOC_LARGE ? LARGE_RUN_MIN : 1;
    uint32_t left = count, extents = 0, slabs_tried = 0;

    dl_assert(count > 0 && count <= ALLOC_EXTENTS_MAX);
    if (!alloc_has_room(alloc, count, use_reserve))
        return 0;
    while (left > 0) {
        uint32_t first = 0;
        uint32_t found = open_find(alloc, open, left, run_min, &first);

        if (found > 0) {
            open_take(alloc, open, first, found, &ret_extents[extents++]);
            left -= found;
            continue;
        }
        if (++slabs_tried > LARGE_SLABS_TRIED)
            run_min = 1;
        open_next(alloc, kind);
    }
    dl_assert(extents > 0 && extents <= count);
    return extents;
}

void
alloc_commit(struct alloc *alloc, uint64_t block, uint32_t count)
{
    limbo_clear(alloc, block, count);
    bits_set(alloc->map, block, count);
}

void
alloc_return(struct alloc *alloc, uint64_t block, uint32_t count)
{
    limbo_clear(alloc, block, count);
    slab_count_change(alloc, (uint32_t)(block / SLAB_BLOCKS), (int)count);
}

/* --- giving back --- */

uint64_t
alloc_give_up(struct alloc *alloc, uint64_t block, uint32_t count)
{
    dl_assert(alloc_run_is_valid(alloc, block, count));
    dl_assert(alloc_in_map(alloc, block));
    queue_push(&alloc->queued, block, count, 0);
    alloc->queued_blocks += count;
    alloc->given_up_seq += count;
    return alloc->given_up_seq;
}

uint64_t
alloc_give_up_worn(struct alloc *alloc, uint64_t block)
{
    dl_assert(alloc_in_map(alloc, block));
    queue_push(&alloc->queued, block, 1, ALLOC_WORN);
    alloc->queued_blocks++;
    return ++alloc->given_up_seq;
}

bool
alloc_queue_peek(const struct alloc *alloc, struct extent *ret_run, bool *ret_worn)
{
    if (alloc->queued.count == 0)
        return false;
    *ret_run = alloc_queue_at(&alloc->queued, 0)->extent;
    *ret_worn = alloc_queue_at(&alloc->queued, 0)->read_seq == ALLOC_WORN;
    return true;
}

void
alloc_worn_durable(struct alloc *alloc, uint32_t count)
{
    dl_assert(alloc->named_blocks >= count);
    alloc->named_blocks -= count;
    alloc->freed_durable_seq += count;
}

void
alloc_queue_pop(struct alloc *alloc, uint32_t count)
{
    struct extent *run = &alloc_queue_at(&alloc->queued, 0)->extent;

    dl_assert(count > 0 && count <= run->count);
    run->block += count;
    run->count -= count;
    if (run->count == 0)
        queue_pop(&alloc->queued);
    alloc->queued_blocks -= count;
    alloc->named_blocks += count;
}

void
alloc_queue_back(struct alloc *alloc, uint64_t block, uint32_t count, bool worn)
{
    dl_assert(alloc->named_blocks >= count);
    queue_push(&alloc->queued, block, count, worn ? ALLOC_WORN : 0);
    alloc->named_blocks -= count;
    alloc->queued_blocks += count;
}

void
alloc_free_durable(struct alloc *alloc, uint64_t block, uint32_t count, bool reads_in_flight,
                   uint64_t read_seq)
{
    struct alloc_slab *slab = &alloc->slabs[block / SLAB_BLOCKS];

    dl_assert(alloc->named_blocks >= count);
    alloc->named_blocks -= count;
    alloc->freed_durable_seq += count;
    dl_assert(alloc->freed_durable_seq <= alloc->given_up_seq);
    bits_clear(alloc->map, block, count);
    slab->recycled = (uint16_t)(slab->recycled + count);
    if (!reads_in_flight) {
        slab_count_change(alloc, (uint32_t)(block / SLAB_BLOCKS), (int)count);
        return;
    }
    limbo_set(alloc, block, count);
    queue_push(&alloc->quarantined, block, count, read_seq);
    alloc->quarantined_blocks += count;
    alloc->waited_total += count;
}

void
alloc_release(struct alloc *alloc, uint64_t min_read_seq)
{
    while (alloc->quarantined.count > 0) {
        struct alloc_run run = *alloc_queue_at(&alloc->quarantined, 0);

        if (run.read_seq >= min_read_seq)
            return;
        queue_pop(&alloc->quarantined);
        alloc->quarantined_blocks -= run.extent.count;
        alloc_return(alloc, run.extent.block, run.extent.count);
    }
}
