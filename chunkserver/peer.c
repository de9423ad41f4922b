/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/peer.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/log.h"
#include "common/version.h"
#include "dlblk/error.h"

static struct peer *
peer_of(struct client_session *session)
{
    return list_entry(session, struct peer, session);
}

static bool
bytes_equal(const ProtobufCBinaryData *bytes, const uint8_t *uuid)
{
    return bytes->len == CHUNKSERVER_UUID_BYTES &&
           memcmp(bytes->data, uuid, CHUNKSERVER_UUID_BYTES) == 0;
}

static int
peer_on_hello(struct client_session *session, const Dl__Hello *hello)
{
    const struct peer *peer = peer_of(session);

    if (hello->role != DL__ROLE__ROLE_CHUNKSERVER)
        return -DL_E_ROLE_WRONG;
    if (!bytes_equal(&hello->cluster_id, peer->core->options.cluster_id))
        return -DL_E_CLUSTER_MISMATCH;
    return bytes_equal(&hello->server_uuid, peer->uuid) ? 0 : -DL_E_SERVER_UNKNOWN;
}

static void
peer_on_up(struct client_session *session)
{
    recoveries_on_peer_up(peer_of(session)->core);
}

static void
peer_on_down(struct client_session *session, int err)
{
    log_info("chunkserver", "recovery", "connection to a source lost: %s: %s", session->problem,
             dl_err_str(err));
}

static void
peer_on_failed(struct client_session *session, int err)
{
    (void)err;
    if (session->failures == 1)
        log_info("chunkserver", "recovery", "a source can't be reached: %s", session->problem);
}

static void
peer_on_stopped(struct client_session *session)
{
    struct peer *peer = peer_of(session);
    struct chunkserver_core *core = peer->core;

    list_remove(&peer->node);
    client_session_fini(session);
    free(peer);
    core_stop_step(core);
}

static const struct session_events peer_events = {
    .on_up = peer_on_up,
    .on_down = peer_on_down,
    .on_failed = peer_on_failed,
    .on_stopped = peer_on_stopped,
    .on_hello = peer_on_hello,
};

static void
peer_fill_hello(struct peer *peer)
{
    struct chunkserver_options *options = &peer->core->options;

    dl__hello__init(&peer->hello);
    peer->hello.version_min = WIRE_VERSION_MIN;
    peer->hello.version_max = WIRE_VERSION;
    peer->hello.cluster_id = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->cluster_id};
    peer->hello.role = DL__ROLE__ROLE_CHUNKSERVER;
    peer->hello.software = (char *)(uintptr_t)dlblk_version_text("dlblk-chunkserver");
    peer->hello.server_uuid = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, peer->uuid};
    peer->hello.instance = (ProtobufCBinaryData){CHUNKSERVER_UUID_BYTES, options->instance};
}

static struct peer *
peer_create(struct chunkserver_core *core, const struct pull_source *source)
{
    struct peer *peer = calloc(1, sizeof(*peer));

    if (peer == NULL)
        return NULL;
    peer->core = core;
    memcpy(peer->uuid, source->uuid, CHUNKSERVER_UUID_BYTES);
    peer_fill_hello(peer);
    client_session_init(&peer->session, core->env, &peer_events, peer, &peer->hello,
                        ++core->next_recovery_id);
    client_session_set_addresses(&peer->session, &source->address, 1);
    client_session_want(&peer->session);
    list_push_back(&core->peers, &peer->node);
    return peer;
}

struct peer *
peer_get(struct chunkserver_core *core, const struct pull_source *source)
{
    struct peer *peer = NULL;
    struct peer *one;

    list_for_each_entry (one, &core->peers, node)
        if (!one->stopping && memcmp(one->uuid, source->uuid, CHUNKSERVER_UUID_BYTES) == 0)
            peer = one;
    if (peer == NULL)
        peer = peer_create(core, source);
    else if (!dl_address_equal(&peer->session.addresses[0], &source->address))
        client_session_set_addresses(&peer->session, &source->address, 1);
    if (peer != NULL)
        peer->used_ns = env_now_ns(core->env);
    return peer;
}

/* --- who has what --- */

const Dl__ServerAddress *
peer_map_server(const Dl__MapReply *map, uint32_t server_id)
{
    for (size_t i = 0; i < map->n_servers; i++)
        if (map->servers[i]->server_id == server_id)
            return map->servers[i];
    return NULL;
}

bool
peer_take_source(const struct chunkserver_core *core, const Dl__Slot *slot,
                 const Dl__ServerAddress *server, struct pull_source *ret_source)
{
    struct pull_source source = {.slot = slot->number};
    struct dl_error err;

    if (server == NULL || slot->state != DL__SLOT_STATE__SLOT_IN_SYNC ||
        slot->number >= WIRE_SLOTS_MAX || slot->server_id == core->meta.server_id ||
        server->uuid.len != CHUNKSERVER_UUID_BYTES ||
        dl_address_parse(server->address, 0, &source.address, &err) != 0)
        return false;
    memcpy(source.uuid, server->uuid.data, CHUNKSERVER_UUID_BYTES);
    *ret_source = source;
    return true;
}

/* --- the end --- */

static void
peer_stop(struct peer *peer)
{
    if (peer->stopping)
        return;
    peer->stopping = true;
    client_session_stop(&peer->session); /* it may be gone now */
}

static struct peer *
peers_find_idle(const struct chunkserver_core *core, uint64_t now_ns)
{
    struct peer *peer;

    list_for_each_entry (peer, &core->peers, node)
        if (!peer->stopping && peer->session.call_count == 0 &&
            now_ns - peer->used_ns > PEER_IDLE_NS)
            return peer;
    return NULL;
}

/* One by one: with the core stopping, the end of the first may end the others too. */
void
peers_tick(struct chunkserver_core *core, uint64_t now_ns)
{
    struct peer *peer;

    while ((peer = peers_find_idle(core, now_ns)) != NULL)
        peer_stop(peer);
}

void
peers_stop(struct chunkserver_core *core)
{
    struct peer *peer, *following;

    list_for_each_entry_safe (peer, following, &core->peers, node)
        peer_stop(peer);
}

void
peers_free(struct chunkserver_core *core)
{
    struct list *node;

    while ((node = list_pop_front(&core->peers)) != NULL) {
        struct peer *peer = list_entry(node, struct peer, node);

        client_session_fini(&peer->session);
        free(peer);
    }
}
