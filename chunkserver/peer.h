/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer.h: connections to the chunkservers that slots here recover from: one to each, for all slots.
 *
 * A peer comes into being when it is asked for, and connects; when nobody has asked for it for
 * PEER_IDLE_NS, and no request is under way, it goes.  So nobody keeps a pointer to one: who waits
 * for it asks again (recoveries_on_peer_up()).
 *
 * Threads: one owner.  Errors: none; no memory: NULL.
 */
#ifndef DLBLK_CHUNKSERVER_PEER_H
#define DLBLK_CHUNKSERVER_PEER_H

#include "chunkserver/core_internal.h"
#include "client/session.h"

#define PEER_IDLE_NS (10000 * CORE_NS_PER_MS)

struct peer {
    struct list node;
    struct chunkserver_core *core;
    struct client_session session;
    Dl__Hello hello;
    uint8_t uuid[CHUNKSERVER_UUID_BYTES];
    uint64_t used_ns;
    bool stopping;
};

/* The one to this server; it may not be up (client_session_is_up()). */
struct peer *peer_get(struct chunkserver_core *core, const struct pull_source *source);

/* The server that a map names; NULL: it doesn't. */
const Dl__ServerAddress *peer_map_server(const Dl__MapReply *map, uint32_t server_id);
/* An in-sync slot of somebody else, to pull from.  False: it is ours, or makes no sense. */
bool peer_take_source(const struct chunkserver_core *core, const Dl__Slot *slot,
                      const Dl__ServerAddress *server, struct pull_source *ret_source);

#endif
