/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/golden/golden.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/le.h"

#define WORDS          (FAKE_DISK_BLOCK / sizeof(uint64_t))
#define LINE_BYTES_MAX (1u << 20)

static _Noreturn void
golden_die(const char *path, unsigned line, const char *what)
{
    (void)fprintf(stderr, "%s:%u: %s\n", path, line, what);
    exit(1);
}

void
golden_fill(uint64_t volume, uint32_t segment, uint32_t sector, uint64_t version, void *ret_sector)
{
    uint8_t *bytes = ret_sector;

    memset(bytes, 0, 64);
    (void)snprintf((char *)bytes, 64, "volume %" PRIu64 " segment %u sector %u version %" PRIx64,
                   volume, segment, sector, version);
    for (uint32_t at = 64; at < FAKE_DISK_BLOCK; at += 8)
        le64_store(bytes + at,
                   volume << 48 | (uint64_t)segment << 40 | (uint64_t)sector << 16 | version);
}

/* --- save --- */

static void
save_block(FILE *file, uint64_t number, const uint8_t *block)
{
    uint32_t idx = 0;

    (void)fprintf(file, "block %" PRIu64, number);
    while (idx < WORDS) {
        uint64_t word = le64_load(block + idx * 8);
        uint32_t count = 1;

        while (idx + count < WORDS && le64_load(block + (idx + count) * 8) == word)
            count++;
        if (count > 1)
            (void)fprintf(file, " %u*%" PRIx64, count, word);
        else
            (void)fprintf(file, " %" PRIx64, word);
        idx += count;
    }
    (void)fputc('\n', file);
}

static void
save_hex(FILE *file, const uint8_t *bytes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        (void)fprintf(file, "%02x", bytes[i]);
}

void
golden_save(const struct golden *golden, const char *path)
{
    static const uint8_t zeroes[FAKE_DISK_BLOCK];
    FILE *file = fopen(path, "we");
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes, value_bytes;

    if (file == NULL)
        golden_die(path, 0, "cannot be written");
    (void)fprintf(file, "disk %" PRIu64 "\n", golden->disk.disk.size_bytes);
    for (uint64_t at = 0; at < golden->disk.disk.size_bytes; at += FAKE_DISK_BLOCK)
        if (memcmp(golden->disk.image + at, zeroes, FAKE_DISK_BLOCK) != 0)
            save_block(file, at / FAKE_DISK_BLOCK, golden->disk.image + at);
    for (uint32_t i = 0; fake_index_key_at(&golden->index, "", 0, i, key, &key_bytes); i++) {
        const uint8_t *value = fake_index_peek(&golden->index, key, key_bytes, &value_bytes);

        (void)fputs("key ", file);
        save_hex(file, key, key_bytes);
        (void)fputs(" value ", file);
        save_hex(file, value, value_bytes);
        (void)fputc('\n', file);
    }
    if (fclose(file) != 0)
        golden_die(path, 0, "cannot be written");
}

/* --- load --- */

static void
load_block(struct golden *golden, char *text, const char *path, unsigned line)
{
    uint8_t block[FAKE_DISK_BLOCK];
    uint64_t number = strtoull(text, &text, 10);
    uint32_t idx = 0;

    while (*text == ' ') {
        char *end;
        uint64_t word = strtoull(text + 1, &end, 16);
        uint64_t count = 1;

        if (*end == '*') {
            count = strtoull(text + 1, NULL, 10);
            word = strtoull(end + 1, &end, 16);
        }
        if (end == text + 1 || count == 0 || idx + count > WORDS)
            golden_die(path, line, "not a block");
        for (; count > 0; count--, idx++)
            le64_store(block + idx * 8, word);
        text = end;
    }
    if (idx != WORDS || (number + 1) * FAKE_DISK_BLOCK > golden->disk.disk.size_bytes)
        golden_die(path, line, "not a whole block of the disk");
    fake_disk_poke(&golden->disk, block, sizeof(block), number * FAKE_DISK_BLOCK);
}

/* Returns the number of bytes, and moves *text behind them. */
static uint32_t
load_hex(char **text, uint8_t *bytes)
{
    uint32_t count = 0;
    unsigned value;

    while (sscanf(*text, "%2x", &value) == 1 && **text != ' ') {
        bytes[count++] = (uint8_t)value;
        *text += 2;
    }
    return count;
}

static void
load_entry(struct golden *golden, char *text, const char *path, unsigned line)
{
    uint8_t *key = malloc(strlen(text) + 1), *value = malloc(strlen(text) + 1);
    struct index *index = &golden->index.index;
    struct index_batch *batch = index->ops->batch_create(index);
    uint32_t key_bytes, value_bytes;

    if (key == NULL || value == NULL)
        abort();
    key_bytes = load_hex(&text, key);
    if (key_bytes == 0 || strncmp(text, " value ", 7) != 0)
        golden_die(path, line, "not an entry");
    text += 7;
    value_bytes = load_hex(&text, value);
    index->ops->batch_put(batch, key, key_bytes, value, value_bytes);
    fake_index_apply_now(&golden->index, batch);
    free(key);
    free(value);
}

void
golden_load(struct golden *golden, const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = malloc(LINE_BYTES_MAX);
    unsigned line = 0;

    if (file == NULL || text == NULL)
        golden_die(path, 0, "cannot be read");
    fake_env_init(&golden->env, 1);
    while (fgets(text, LINE_BYTES_MAX, file) != NULL) {
        if (line++ == 0) {
            if (strncmp(text, "disk ", 5) != 0)
                golden_die(path, line, "not a golden disk");
            fake_disk_init(&golden->disk, &golden->env, strtoull(text + 5, NULL, 10), false);
            fake_index_init(&golden->index, &golden->env);
        } else if (strncmp(text, "block ", 6) == 0) {
            load_block(golden, text + 6, path, line);
        } else if (strncmp(text, "key ", 4) == 0) {
            load_entry(golden, text + 4, path, line);
        } else {
            golden_die(path, line, "not understood");
        }
    }
    if (line == 0)
        golden_die(path, 0, "empty");
    free(text);
    (void)fclose(file);
}

void
golden_fini(struct golden *golden)
{
    fake_index_fini(&golden->index);
    fake_disk_fini(&golden->disk);
    fake_env_fini(&golden->env);
}
