/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slot_reader: prints a volume's content as the given slots alone have it, one after the other.
 *
 *   slot_reader VOLUME SLOT...
 *   slot_reader --sectors VOLUME SLOT    reads the sectors (4 KiB) whose numbers are on standard
 *                                        input, and prints of each "NUMBER good" or "NUMBER bad:
 *                                        WHY"
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dlblk/client.h"

#define PIECE_BYTES  (1u << 20)
#define SECTOR_BYTES 4096u

static int
fail(const char *what, int err, const struct dl_error *text)
{
    fprintf(stderr, "slot_reader: %s: %s\n", what, text != NULL ? text->text : dl_err_str(err));
    return 1;
}

static int
print_all(struct dlblk_volume *volume)
{
    static uint8_t piece[PIECE_BYTES] __attribute__((aligned(4096)));
    struct dlblk_volume_geometry geometry;

    dlblk_volume_get_geometry(volume, &geometry);
    for (uint64_t at = 0; at < geometry.size_bytes; at += PIECE_BYTES) {
        uint64_t left = geometry.size_bytes - at;
        uint64_t length = left < PIECE_BYTES ? left : PIECE_BYTES;
        int err = dlblk_read(volume, piece, length, at);

        if (err != 0)
            return fail("read", err, NULL);
        if (fwrite(piece, 1, length, stdout) != length)
            return fail("stdout", -errno, NULL);
    }
    return 0;
}

static int
look_at_sectors(struct dlblk_volume *volume)
{
    static uint8_t bytes[SECTOR_BYTES] __attribute__((aligned(4096)));
    uint64_t number;

    while (scanf("%" SCNu64, &number) == 1) {
        int err = dlblk_read(volume, bytes, sizeof(bytes), number * SECTOR_BYTES);

        if (err == 0)
            printf("%" PRIu64 " good\n", number);
        else
            printf("%" PRIu64 " bad: %s\n", number, dl_err_str(err));
    }
    return 0;
}

static int
print_slot(struct dlblk_client *client, const char *name, unsigned slot,
           int (*look)(struct dlblk_volume *volume))
{
    struct dlblk_volume *volume;
    struct dl_error err = {0};
    int status;

    if (dlblk_volume_open(client, name, DLBLK_OPEN_READ_ONLY | DLBLK_OPEN_READ_SLOT(slot), &volume,
                          &err) != 0)
        return fail("open", 0, &err);
    status = look(volume);
    if (dlblk_volume_close(volume, &err) != 0)
        status = fail("close", 0, &err);
    return status;
}

int
main(int argc, char **argv)
{
    struct dlblk_client_options options = {.program = "slot_reader", .request_timeout_ms = 5000};
    struct dlblk_client *client;
    struct dl_error err = {0};
    int (*look)(struct dlblk_volume * volume) = print_all;
    int status = 0;

    if (argc > 1 && strcmp(argv[1], "--sectors") == 0) {
        look = look_at_sectors;
        argc--;
        argv++;
    }
    if (argc < 3)
        return fail("usage: slot_reader [--sectors] VOLUME SLOT...", 0, NULL);
    if (dlblk_client_create(&client, &options, &err) != 0)
        return fail("connect", 0, &err);
    for (int i = 2; i < argc && status == 0; i++)
        status = print_slot(client, argv[1], (unsigned)strtoul(argv[i], NULL, 10), look);
    dlblk_client_destroy(client);
    return status;
}
