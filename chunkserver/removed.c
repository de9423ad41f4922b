/* SPDX-License-Identifier: Apache-2.0 */
/*
 * removed.c: chunks that left the map while this process ran.  See core_internal.h,
 * docs/recovery.md (rule 24).
 *
 * The owner knew the new map before CHUNK_DELETE was sent, but what it had sent before may still be
 * on its way here: under the first config epoch it would make the chunk anew.  No segment ever goes
 * back to its first config epoch, so that refusing it is never wrong; and what a link of an earlier
 * life of this process carried is lost.  The oldest ones are forgotten when there are very many.
 */
#include <stdlib.h>

#include "chunkserver/core_internal.h"
#include "common/mutant.h"

#define REMOVED_MAX 65536u

struct removed {
    struct chunk_key key;
    struct list node; /* in core->removed_list, the oldest first */
    UT_hash_handle hh;
};

static struct removed *
removed_find(const struct chunkserver_core *core, const struct chunk_key *key)
{
    struct removed *removed;

    HASH_FIND(hh, core->removed, key, sizeof(*key), removed);
    return removed;
}

static void
removed_forget(struct chunkserver_core *core, struct removed *removed)
{
    HASH_DELETE(hh, core->removed, removed);
    list_remove(&removed->node);
    free(removed);
}

void
removed_note(struct chunkserver_core *core, const struct chunk_key *key)
{
    struct removed *removed = removed_find(core, key);

    if (removed != NULL)
        return;
    if (HASH_CNT(hh, core->removed) >= REMOVED_MAX)
        removed_forget(core, list_first_entry(&core->removed_list, struct removed, node));
    removed = calloc(1, sizeof(*removed));
    if (removed == NULL)
        return; /* a chunk may stay behind that nobody reads */
    removed->key = *key;
    HASH_ADD(hh, core->removed, key, sizeof(removed->key), removed);
    list_push_back(&core->removed_list, &removed->node);
}

bool
removed_is_noted(const struct chunkserver_core *core, const struct chunk_key *key)
{
    return core->removed != NULL && !DLBLK_MUTANT(chunkserver_forget_removed) &&
           removed_find(core, key) != NULL;
}

void
removed_free(struct chunkserver_core *core)
{
    while (core->removed != NULL)
        removed_forget(core, core->removed);
}
