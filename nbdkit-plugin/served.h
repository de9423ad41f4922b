/* SPDX-License-Identifier: Apache-2.0 */
/*
 * served.h: the volumes that are attached at the moment.
 *
 * A volume is attached when the first NBD connection names it, shared by all its connections, and
 * detached when the last of them has gone.  So a flush on one connection covers the writes of all,
 * and an nbdkit that nobody is connected to keeps no volume from others.
 *
 * Threads: any, except the client's.  Blocks: while a volume is being attached or detached, for
 *          those who want that volume only.
 * Errors:  those of dlblk_volume_open() and dlblk_volume_close(), with text.
 */
#ifndef DLBLK_NBDKIT_PLUGIN_SERVED_H
#define DLBLK_NBDKIT_PLUGIN_SERVED_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/list.h"
#include "dlblk/client.h"
#include "nbdkit-plugin/block_io.h"

enum served_state { SERVED_OPENING, SERVED_OPEN, SERVED_CLOSING, SERVED_CLOSED };

struct served {
    struct list node;
    char name[DLBLK_NAME_BYTES_MAX + 1];
    enum served_state state;
    uint32_t connection_count;
    struct dlblk_volume *volume;
    struct block_io io;
};

struct served_set {
    pthread_mutex_t
        mutex; /* guards the list and the states; not held while a volume is attached or detached */
    pthread_cond_t changed;
    struct list volumes;
};

void served_set_init(struct served_set *set);
/*
 * The end: detach what is still attached, since nbdkit does not close the connections that are open
 * when it is told to end.  Nothing is freed: a thread that nbdkit no longer waits for may still
 * look.  The first error is returned.
 */
int served_set_close(struct served_set *set, struct dl_error *err);

/* flags: of dlblk_volume_open(); those of the first connection count. */
int served_acquire(struct served_set *set, struct dlblk_client *client, const char *name,
                   uint32_t flags, struct served **ret_served, struct dl_error *err);
/* The last one detaches; what it returns is about that. */
int served_release(struct served_set *set, struct served *served, struct dl_error *err);

#endif
