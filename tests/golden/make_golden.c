/* SPDX-License-Identifier: Apache-2.0 */
/*
 * make_golden FILE: makes the disk that test_golden opens, in the format that this build writes.
 *
 * Run once for each version of the format; the file is then kept for good.  What is on it is said
 * in test_golden.c.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine.h"
#include "common/crc32c.h"
#include "tests/crash/layout.h"
#include "tests/golden/golden.h"

static struct golden golden;
static struct engine *engine;
static struct chunk_store *store;

static _Noreturn void
die(const char *what)
{
    (void)fprintf(stderr, "make_golden: %s\n", what);
    exit(1);
}

static void
on_turn_end(void *context)
{
    (void)context;
    store->ops->turn_end(store);
}

static void
open_store(void)
{
    struct dl_error err;

    if (engine_open(&engine, &golden.env.env, &golden.disk.disk, &golden.index.index, NULL, &err) !=
        0)
        die(err.text);
    store = engine_store(engine);
    fake_env_add_turn_end(&golden.env, on_turn_end, &golden);
}

static bool done;

static void
write_on_done(struct store_write *write, int err)
{
    (void)write;
    if (err != 0)
        die(dl_err_str(err));
    done = true;
}

static void
change_on_done(struct store_change *change, int err)
{
    (void)change;
    if (err != 0)
        die(dl_err_str(err));
    done = true;
}

static void
wait_done(void)
{
    if (!fake_env_run(&golden.env, &done, 1000000))
        die("a request is not answered");
    done = false;
}

static void
write_sectors(uint64_t volume, uint32_t segment, uint64_t version, uint64_t stable, uint32_t offset,
              uint32_t length, bool zero)
{
    uint8_t *payload = aligned_alloc(SECTOR_BYTES, (size_t)length * SECTOR_BYTES);
    uint32_t crcs[STORE_IO_SECTORS_MAX];
    struct store_write write = {.key = {.volume = volume, .segment = segment, .slot = 1},
                                .config_epoch = 3,
                                .birth = 1,
                                .version = UINT64_C(4) << 40 | version,
                                .stable_version = stable == 0 ? 0 : UINT64_C(4) << 40 | stable,
                                .offset_sectors = offset,
                                .length_sectors = length,
                                .zero = zero,
                                .create = true,
                                .payload = zero ? NULL : payload,
                                .crcs = zero ? NULL : crcs,
                                .on_done = write_on_done};

    if (payload == NULL)
        abort();
    for (uint32_t i = 0; i < length; i++) {
        golden_fill(volume, segment, offset + i, version, payload + (size_t)i * SECTOR_BYTES);
        crcs[i] = crc32c(0, payload + (size_t)i * SECTOR_BYTES, SECTOR_BYTES);
    }
    store->ops->write_start(store, &write);
    wait_done();
    free(payload);
}

static void
change(struct store_change change)
{
    change.on_done = change_on_done;
    store->ops->change_start(store, &change);
    wait_done();
}

static void
format(void)
{
    struct engine_format format;
    struct dl_error err;

    fake_env_init(&golden.env, 1);
    fake_disk_init(&golden.disk, &golden.env, layout_disk_bytes(1, ENGINE_JOURNAL_UNITS_MIN),
                   false);
    fake_index_init(&golden.index, &golden.env);
    layout_format(1, ENGINE_JOURNAL_UNITS_MIN, LAYOUT_UNIT, &format);
    format.created_ms = 1700000000000;
    if (engine_format_now(&golden.disk.disk, &format, &err) != 0)
        die(err.text);
}

static void
crash(void)
{
    engine_destroy(engine);
    fake_env_crash(&golden.env);
    fake_disk_kill(&golden.disk);
    fake_disk_settle(&golden.disk);
    fake_index_crash(&golden.index);
    fake_index_reopen(&golden.index);
}

int
main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: make_golden FILE\n");
        return 2;
    }
    format();
    open_store();
    /* Goes to the index: */
    write_sectors(7, 0, 1, 0, 0, 3, false);
    write_sectors(7, 0, 2, 0, 1, 1, false);
    write_sectors(7, 0, 3, 1, 10, 5, true);
    write_sectors(7, 0, 4, 1, 130, 20, false);
    write_sectors(7, 1, 1, 0, 0, 2, false);
    write_sectors(9, 0, 1, 0, 63, 2, false);
    change((struct store_change){
        .kind = STORE_DELETE, .key = {.volume = 7, .segment = 1, .slot = 1}, .incarnation = 3});
    change((struct store_change){.kind = STORE_FENCE, .key = {.volume = 9}, .lease_epoch = 5});
    fake_env_run_for(&golden.env, 60000000000u);
    if (!engine_is_quiet(engine))
        die("not quiet after a minute");
    crash();
    /* Stays in the journal: */
    open_store();
    write_sectors(7, 0, 5, 2, 2, 1, false);
    write_sectors(7, 0, 6, 2, 131, 1, true);
    write_sectors(7, 0, 7, 2, 12, 1, false);
    change((struct store_change){
        .kind = STORE_IN_SYNC, .key = {.volume = 7, .segment = 0, .slot = 1}, .config_epoch = 8});
    crash();
    golden_save(&golden, argv[1]);
    golden_fini(&golden);
    return 0;
}
