/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/meta.pb-c.h"
#include "meta/schema.h"

static char error_text[512];
static char error_hint[512];

static char *
text_of(const char *text)
{
    return (char *)(uintptr_t)text;
}

/* --- the core --- */

static void
fixture_on_ready(void *context)
{
    struct fixture *f = context;

    f->ready = true;
}

static void
fixture_on_fatal(void *context, int err, const char *text, const char *hint)
{
    struct fixture *f = context;

    assert_int_equal(f->fatal, 0); /* once */
    (void)hint;
    f->fatal = err;
    (void)snprintf(f->fatal_text, sizeof(f->fatal_text), "%s", text);
}

static void
fixture_on_log(void *context, enum meta_log_level level, const char *component, const char *text)
{
    struct fixture *f = context;

    f->log_lines++;
    if (level >= META_LOG_WARNING)
        (void)snprintf(f->last_warning, sizeof(f->last_warning), "%s: %s", component, text);
    if (getenv("DLBLK_TEST_LOG") != NULL)
        print_message("%8.3f %d %s: %s\n", (double)f->env.time_ns / 1e9, (int)level, component,
                      text);
}

void
fixture_init_database(struct fixture *f, const struct meta_options *options)
{
    static const uint8_t cluster_id[16] = "cluster-of-tests";
    struct store_batch batch = {0};

    memset(f, 0, sizeof(*f));
    fake_env_init(&f->env, 1);
    if (options != NULL)
        f->options = *options;
    f->options.on_ready = fixture_on_ready;
    f->options.on_fatal = fixture_on_fatal;
    f->options.on_log = fixture_on_log;
    f->options.context = f;
    f->db = store_memory_db_create();
    meta_cluster_init_batch(&batch, cluster_id, 1);
    for (uint32_t i = 0; i < batch.count; i++)
        store_memory_db_put(f->db, batch.edits[i].key, batch.edits[i].value);
    store_batch_fini(&batch);
}

void
fixture_start(struct fixture *f)
{
    f->ready = false;
    f->fatal = 0;
    f->store = store_memory_open(f->db, &f->env.env, &f->store_options);
    f->core = meta_core_create(&f->env.env, f->store, &f->options);
    fixture_settle(f);
}

void
fixture_init(struct fixture *f, const struct meta_options *options)
{
    fixture_init_database(f, options);
    fixture_start(f);
    assert_true(f->ready);
    assert_int_equal(f->fatal, 0);
}

static void
peer_forget(struct peer *peer)
{
    struct list *node;

    while ((node = list_pop_front(&peer->inbox)) != NULL)
        fake_frame_destroy(list_entry(node, struct fake_frame, node));
    while ((node = list_pop_front(&peer->replies)) != NULL)
        fake_frame_destroy(list_entry(node, struct fake_frame, node));
}

void
fixture_crash(struct fixture *f, uint64_t keep)
{
    store_memory_crash(f->store, keep);
    for (uint32_t i = 0; i < PEERS_MAX; i++) {
        struct peer *peer = &f->peers[i];

        if (!peer->used)
            continue;
        fake_link_fini(&peer->link);
        peer_forget(peer);
        peer->connected = false;
    }
    meta_core_destroy(f->core);
    fake_env_crash(&f->env);
    f->core = NULL;
}

void
fixture_fini(struct fixture *f)
{
    if (f->core != NULL)
        fixture_crash(f, 0);
    for (uint32_t i = 0; i < PEERS_MAX; i++)
        if (f->peers[i].map_change != NULL)
            dl__map_changed__free_unpacked(f->peers[i].map_change, NULL);
    store_memory_db_destroy(f->db);
    fake_env_fini(&f->env);
}

void
fixture_raise_lease_epoch(struct fixture *f, uint64_t volume_id, uint32_t lease_epoch)
{
    struct schema_key key = schema_key_volume(volume_id);

    for (uint32_t i = 0; i < store_memory_db_count(f->db); i++) {
        struct store_item item = store_memory_db_item(f->db, i);
        Dl__Meta__VolumeRecord *record;
        uint8_t packed[4096];
        size_t bytes;

        if (store_bytes_compare(item.key, schema_bytes(&key)) != 0)
            continue;
        record = dl__meta__volume_record__unpack(NULL, item.value.length_bytes, item.value.bytes);
        assert_non_null(record);
        record->lease_epoch = lease_epoch;
        bytes = dl__meta__volume_record__pack(record, packed);
        dl__meta__volume_record__free_unpacked(record, NULL);
        store_memory_db_put(f->db, schema_bytes(&key),
                            (struct store_bytes){packed, (uint32_t)bytes});
        return;
    }
    fail_msg("volume %llu has no record", (unsigned long long)volume_id);
}

/* --- peers --- */

static void
peer_on_fence(struct peer *peer, const struct fake_frame *frame)
{
    Dl__Fence *fence = (Dl__Fence *)fake_frame_unpack(frame, &dl__fence__descriptor);
    Dl__FenceReply reply = DL__FENCE_REPLY__INIT;

    assert_non_null(fence);
    peer->fences++;
    peer->fence_epoch = fence->lease_epoch;
    if (fence->volume < FENCED_VOLUMES_MAX &&
        fence->lease_epoch > peer->fence_of_volume[fence->volume])
        peer->fence_of_volume[fence->volume] = fence->lease_epoch;
    if (peer->fence_reply != NULL && fence->lease_epoch != META_LEASE_EPOCH_TOMBSTONE)
        reply = *peer->fence_reply;
    reply.volume = fence->volume;
    reply.lease_epoch = fence->lease_epoch;
    peer_answer(peer, frame, 0, &reply.base);
    dl__fence__free_unpacked(fence, NULL);
}

static void
peer_on_chunk_delete(struct peer *peer, const struct fake_frame *frame)
{
    Dl__ChunkDelete *message = (Dl__ChunkDelete *)fake_frame_unpack(frame,
                                                                    &dl__chunk_delete__descriptor);

    assert_non_null(message);
    peer->chunk_deletes++;
    peer->chunks_deleted += (uint32_t)message->n_chunks;
    for (size_t i = 0; i < message->n_chunks && peer->f->on_chunk != NULL; i++)
        peer->f->on_chunk(peer->f->context, peer, message->chunks[i]);
    if (message->n_chunks > 0)
        peer->deleted = *message->chunks[message->n_chunks - 1];
    peer_answer(peer, frame, 0, NULL);
    dl__chunk_delete__free_unpacked(message, NULL);
}

/* Each chunk is of the part that its place says. */
static void
peer_on_chunk_list(struct peer *peer, const struct fake_frame *frame)
{
    Dl__ChunkList *message = (Dl__ChunkList *)fake_frame_unpack(frame, &dl__chunk_list__descriptor);
    Dl__ChunkListReply reply = DL__CHUNK_LIST_REPLY__INIT;
    Dl__ChunkEntry *entries[16];

    assert_non_null(message);
    peer->lists++;
    reply.total = peer->chunk_count;
    reply.chunks = entries;
    for (uint32_t i = 0; i < peer->chunk_count && message->parts > 0; i++)
        if (i % message->parts == message->part)
            entries[reply.n_chunks++] = &peer->chunks[i];
    peer_answer(peer, frame, peer->old_list ? -DL_E_OPCODE_UNKNOWN : 0,
                peer->old_list ? NULL : &reply.base);
    dl__chunk_list__free_unpacked(message, NULL);
}

static void
peer_on_tell(struct peer *peer, const struct fake_frame *frame)
{
    Dl__SlotTell *message = (Dl__SlotTell *)fake_frame_unpack(frame, &dl__slot_tell__descriptor);
    struct told *told = &peer->tells[peer->tell_count++ % TELLS_MAX];

    assert_non_null(message);
    *told = (struct told){
        .volume = message->volume,
        .segment = message->segment,
        .slot = message->slot,
        .config_epoch = message->config_epoch,
        .state = (uint32_t)message->state,
        .incarnation = message->incarnation,
        .attempt = message->attempt,
        .lease_epoch = message->lease_epoch,
    };
    assert_true(message->n_peers <= 8);
    for (size_t i = 0; i < message->n_peers; i++)
        told->peers[told->peer_count++] = message->peers[i]->server->server_id;
    if (peer->f->on_tell != NULL)
        peer->f->on_tell(peer->f->context, peer, told);
    peer_answer(peer, frame, 0, NULL);
    dl__slot_tell__free_unpacked(message, NULL);
}

static void
peer_on_map_changed(struct peer *peer, const struct fake_frame *frame)
{
    if (peer->map_change != NULL)
        dl__map_changed__free_unpacked(peer->map_change, NULL);
    peer->map_change = (Dl__MapChanged *)fake_frame_unpack(frame, &dl__map_changed__descriptor);
    assert_non_null(peer->map_change);
    peer->map_changes++;
    if (peer->f->on_map != NULL)
        peer->f->on_map(peer->f->context, peer, peer->map_change);
    if (!peer->silent_map)
        peer_answer(peer, frame, 0, NULL);
}

/* True: answered. */
static bool
peer_on_request(struct peer *peer, const struct fake_frame *frame)
{
    switch (frame->frame.opcode) {
    case OP_PING:
        if (!peer->deaf)
            peer_answer(peer, frame, 0, NULL);
        return true;
    case OP_FENCE:
        if (peer->silent_command || peer->deaf)
            return false;
        peer_on_fence(peer, frame);
        return true;
    case OP_CHUNK_DELETE:
        if (peer->silent_command || peer->deaf)
            return false;
        peer_on_chunk_delete(peer, frame);
        return true;
    case OP_CHUNK_LIST:
        if (peer->silent_list || peer->deaf)
            return false;
        peer_on_chunk_list(peer, frame);
        return true;
    case OP_SLOT_TELL:
        if (peer->silent_tell || peer->deaf)
            return false;
        peer_on_tell(peer, frame);
        return true;
    case OP_MAP_CHANGED:
        peer_on_map_changed(peer, frame);
        return !peer->silent_map;
    case OP_OWNER_PROBE:
        peer->probes++;
        if (peer->silent_probe || peer->deaf)
            return false;
        peer_answer(peer, frame, 0, NULL);
        return true;
    default:
        return false;
    }
}

static void
peer_on_registered(struct peer *peer, struct fake_frame *frame)
{
    Dl__ServerRegisterReply *reply;

    if (frame->frame.status != 0 && peer->may_be_refused) {
        peer->refused = true;
        peer->register_id = 0;
        fake_frame_destroy(frame);
        return;
    }
    assert_int_equal(frame->frame.status, 0);
    reply = (Dl__ServerRegisterReply *)fake_frame_unpack(frame,
                                                         &dl__server_register_reply__descriptor);
    assert_non_null(reply);
    peer->server_id = reply->server_id;
    peer->register_id = 0;
    dl__server_register_reply__free_unpacked(reply, NULL);
    fake_frame_destroy(frame);
}

/* True: there was something. */
static bool
peer_poll(struct peer *peer)
{
    struct fake_frame *frame;
    bool any = false;

    while ((frame = fake_link_next(&peer->link)) != NULL) {
        any = true;
        if (frame_is_reply(&frame->frame) && frame->frame.request_id == peer->register_id)
            peer_on_registered(peer, frame);
        else if (frame_is_reply(&frame->frame))
            list_push_back(&peer->replies, &frame->node);
        else if (peer_on_request(peer, frame))
            fake_frame_destroy(frame);
        else
            list_push_back(&peer->inbox, &frame->node);
    }
    return any;
}

void
fixture_settle(struct fixture *f)
{
    bool any = true;

    while (any) {
        any = false;
        fake_env_settle(&f->env);
        for (uint32_t i = 0; i < PEERS_MAX; i++)
            if (f->peers[i].connected)
                any = peer_poll(&f->peers[i]) || any;
    }
}

static void
peer_heartbeat(struct peer *peer)
{
    Dl__ServerHeartbeat message = DL__SERVER_HEARTBEAT__INIT;
    uint64_t id;

    message.capacity_bytes = peer->capacity_bytes;
    message.used_bytes = peer->used_bytes;
    message.available_bytes = peer->capacity_bytes - peer->used_bytes;
    message.journal_position = peer->journal_position;
    message.stopped = peer->stopped;
    id = peer_send(peer, OP_SERVER_HEARTBEAT, &message.base);
    fake_env_settle(&peer->f->env);
    (void)peer_poll(peer);
    fake_frame_destroy(peer_take_reply(peer, id));
}

void
fixture_run(struct fixture *f, uint64_t ns)
{
    uint64_t until_ns = f->env.time_ns + ns;

    fixture_settle(f);
    while (f->env.time_ns < until_ns) {
        uint64_t left_ns = until_ns - f->env.time_ns;

        fake_env_run_for(&f->env, left_ns < 100 * MS ? left_ns : 100 * MS);
        for (uint32_t i = 0; i < PEERS_MAX; i++) {
            struct peer *peer = &f->peers[i];

            if (peer->connected && !peer->link.down && peer->server_id != 0 && !peer->deaf &&
                !peer->no_heartbeat)
                peer_heartbeat(peer);
        }
        fixture_settle(f);
    }
}

static struct peer *
fixture_new_peer(struct fixture *f)
{
    for (uint32_t i = 0; i < PEERS_MAX; i++) {
        struct peer *peer = &f->peers[i];

        if (peer->used)
            continue;
        if (peer->map_change != NULL)
            dl__map_changed__free_unpacked(peer->map_change, NULL);
        *peer = (struct peer){.f = f, .used = true};
        list_init(&peer->inbox);
        list_init(&peer->replies);
        peer->instance[0] = (uint8_t)(i + 1);
        peer->instance[1] = 0xee;
        return peer;
    }
    fail_msg("too many peers");
    return NULL;
}

static void
peer_connect(struct peer *peer)
{
    fake_link_init(&peer->link, &peer->f->env.env, "127.0.0.1", 5000);
    peer->connected = true;
    fake_link_accept(&peer->link, &meta_link_events, peer->f->core);
    fixture_settle(peer->f);
}

struct peer *
fixture_connect(struct fixture *f)
{
    struct peer *peer = fixture_new_peer(f);

    peer_connect(peer);
    return peer;
}

void
peer_fill_hello(struct peer *peer, Dl__Hello *message)
{
    dl__hello__init(message);
    message->version_min = 1;
    message->version_max = 1;
    message->role = peer->is_server ? DL__ROLE__ROLE_CHUNKSERVER : DL__ROLE__ROLE_CLIENT;
    if (peer->is_server) {
        static uint8_t cluster_id[16];

        memcpy(cluster_id, "cluster-of-tests", 16);
        message->server_uuid = bytes_of(peer->uuid, 16);
        message->cluster_id = bytes_of(cluster_id, 16);
    }
    message->instance = bytes_of(peer->instance, 16);
    message->software = text_of("test");
}

static void
peer_say_hello(struct peer *peer)
{
    Dl__Hello hello;
    ProtobufCMessage *reply;

    peer_fill_hello(peer, &hello);
    assert_int_equal(peer_ask(peer, OP_HELLO, &hello.base, &dl__hello__descriptor, &reply), 0);
    protobuf_c_message_free_unpacked(reply, NULL);
}

struct peer *
fixture_client(struct fixture *f)
{
    struct peer *peer = fixture_connect(f);

    peer_say_hello(peer);
    return peer;
}

struct peer *
fixture_server_hello(struct fixture *f, uint32_t n, const char *host)
{
    return fixture_server_of_process(f, n, host, NULL);
}

struct peer *
fixture_server_of_process(struct fixture *f, uint32_t n, const char *host, const uint8_t *instance)
{
    struct peer *peer = fixture_new_peer(f);

    peer->is_server = true;
    if (instance != NULL)
        memcpy(peer->instance, instance, sizeof(peer->instance));
    (void)snprintf((char *)peer->uuid, sizeof(peer->uuid), "disk-%u", n);
    (void)snprintf(peer->host, sizeof(peer->host), "%s", host);
    (void)snprintf(peer->address, sizeof(peer->address), "127.0.0.1:%u", 10000 + n);
    peer->start_count = 1;
    peer->capacity_bytes = 1ull << 40;
    peer_connect(peer);
    peer_say_hello(peer);
    return peer;
}

void
peer_fill_register(struct peer *peer, Dl__ServerRegister *message)
{
    dl__server_register__init(message);
    message->uuid = bytes_of(peer->uuid, 16);
    message->address = peer->address;
    message->start_count = peer->start_count;
    message->journal_position = peer->journal_position;
    message->capacity_bytes = peer->capacity_bytes;
    message->used_bytes = peer->used_bytes;
    message->host = peer->host;
    message->rack = peer->rack;
    message->clique = peer->clique;
    message->damaged = peer->damaged;
    message->software = text_of("test");
}

int
peer_register(struct peer *peer)
{
    Dl__ServerRegister message;
    ProtobufCMessage *reply;
    int status;

    peer_fill_register(peer, &message);
    status = peer_ask(peer, OP_SERVER_REGISTER, &message.base,
                      &dl__server_register_reply__descriptor, &reply);
    if (status < 0)
        return status;
    peer->server_id = ((Dl__ServerRegisterReply *)reply)->server_id;
    protobuf_c_message_free_unpacked(reply, NULL);
    return 0;
}

uint64_t
peer_send_register(struct peer *peer)
{
    Dl__ServerRegister message;

    peer_fill_register(peer, &message);
    peer->register_id = peer_send(peer, OP_SERVER_REGISTER, &message.base);
    return peer->register_id;
}

struct peer *
fixture_server(struct fixture *f, uint32_t n, const char *host)
{
    struct peer *peer = fixture_server_hello(f, n, host);

    assert_int_equal(peer_register(peer), 0);
    return peer;
}

void
peer_disconnect(struct peer *peer)
{
    if (peer->connected && !peer->link.down)
        fake_link_break(&peer->link, -DL_E_CONNECTION_LOST);
    fake_env_settle(&peer->f->env);
    fake_link_fini(&peer->link);
    peer_forget(peer);
    peer->connected = false;
}

void
peer_restart_server(struct peer *peer)
{
    peer_disconnect(peer);
    peer->start_count++;
    peer->instance[2]++;
    peer->server_id = 0;
    peer_connect(peer);
    peer_say_hello(peer);
}

uint64_t
peer_send(struct peer *peer, uint16_t opcode, const ProtobufCMessage *message)
{
    uint64_t id = ++peer->next_id;

    fake_link_request(&peer->link, opcode, id, message);
    return id;
}

struct fake_frame *
peer_take_reply(struct peer *peer, uint64_t id)
{
    struct fake_frame *frame, *following;

    list_for_each_entry_safe (frame, following, &peer->replies, node) {
        if (frame->frame.request_id != id)
            continue;
        list_remove(&frame->node);
        return frame;
    }
    return NULL;
}

struct fake_frame *
peer_take_request(struct peer *peer, uint16_t opcode)
{
    struct fake_frame *frame, *following;

    list_for_each_entry_safe (frame, following, &peer->inbox, node) {
        if (frame->frame.opcode != opcode)
            continue;
        list_remove(&frame->node);
        return frame;
    }
    return NULL;
}

void
peer_answer(struct peer *peer, const struct fake_frame *request, int status,
            const ProtobufCMessage *message)
{
    fake_link_reply(&peer->link, request->frame.opcode, request->frame.request_id, status, message);
}

const char *
fixture_error_text(void)
{
    return error_text;
}

const char *
fixture_error_hint(void)
{
    return error_hint;
}

static int
reply_take(struct fake_frame *frame, const ProtobufCMessageDescriptor *type,
           ProtobufCMessage **ret_reply)
{
    int status;

    assert_non_null(frame);
    status = frame->frame.status;
    error_text[0] = error_hint[0] = '\0';
    if (ret_reply != NULL)
        *ret_reply = NULL;
    if (status < 0) {
        Dl__ErrorDetail *detail = (Dl__ErrorDetail *)fake_frame_unpack(
            frame, &dl__error_detail__descriptor);

        assert_non_null(detail);
        assert_true(detail->text[0] != '\0'); /* every error says what and why */
        (void)snprintf(error_text, sizeof(error_text), "%s", detail->text);
        (void)snprintf(error_hint, sizeof(error_hint), "%s", detail->hint);
        dl__error_detail__free_unpacked(detail, NULL);
    } else if (ret_reply != NULL) {
        *ret_reply = fake_frame_unpack(frame, type);
        assert_non_null(*ret_reply);
    }
    fake_frame_destroy(frame);
    return status;
}

int
fixture_reply_status(struct peer *peer, uint64_t id)
{
    return reply_take(peer_take_reply(peer, id), NULL, NULL);
}

int
peer_ask(struct peer *peer, uint16_t opcode, const ProtobufCMessage *message,
         const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_reply)
{
    uint64_t id = peer_send(peer, opcode, message);

    fixture_settle(peer->f);
    return reply_take(peer_take_reply(peer, id), type, ret_reply);
}

/* --- common requests --- */

int
ask_create(struct peer *peer, const char *name, uint64_t size_bytes, Dl__Volume *ret_volume)
{
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    ProtobufCMessage *reply;
    int status;

    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    message.name = text_of(name);
    message.size_bytes = size_bytes;
    message.segment_bytes = 1u << 20;
    message.policy = &policy;
    status = peer_ask(peer, OP_VOLUME_CREATE, &message.base, &dl__volume_reply__descriptor, &reply);
    if (status < 0)
        return status;
    if (ret_volume != NULL) {
        *ret_volume = *((Dl__VolumeReply *)reply)->volume;
        ret_volume->name = ret_volume->owner = NULL;
        ret_volume->policy = NULL;
    }
    protobuf_c_message_free_unpacked(reply, NULL);
    return 0;
}

int
ask_info(struct peer *peer, const char *name, Dl__VolumeReply **ret_reply)
{
    Dl__VolumeInfo message = DL__VOLUME_INFO__INIT;

    message.name = text_of(name);
    return peer_ask(peer, OP_VOLUME_INFO, &message.base, &dl__volume_reply__descriptor,
                    (ProtobufCMessage **)ret_reply);
}

void
fill_attach(Dl__Attach *message, const char *name, uint8_t n)
{
    static uint8_t ids[256][16];

    memset(ids[n], 0xa0, sizeof(ids[n]));
    ids[n][0] = n;
    dl__attach__init(message);
    message->name = text_of(name);
    message->attach_id = bytes_of(ids[n], 16);
    message->owner = text_of("testhost 17 test");
}

int
ask_attach(struct peer *peer, const char *name, uint8_t n, Dl__AttachReply **ret_reply)
{
    Dl__Attach message;

    fill_attach(&message, name, n);
    return peer_ask(peer, OP_ATTACH, &message.base, &dl__attach_reply__descriptor,
                    (ProtobufCMessage **)ret_reply);
}

int
ask_detach(struct peer *peer, uint64_t volume, uint32_t lease_epoch, bool clean)
{
    Dl__Detach message = DL__DETACH__INIT;

    message.volume = volume;
    message.lease_epoch = lease_epoch;
    message.clean = clean;
    return peer_ask(peer, OP_DETACH, &message.base, NULL, NULL);
}

int
ask_allocate(struct peer *peer, uint64_t volume, uint32_t lease_epoch, uint32_t first,
             uint32_t count, Dl__MapReply **ret_reply)
{
    Dl__Allocate message = DL__ALLOCATE__INIT;
    uint32_t *segments = calloc(count + 1, sizeof(*segments));
    int status;

    for (uint32_t i = 0; i < count; i++)
        segments[i] = first + i;
    message.volume = volume;
    message.lease_epoch = lease_epoch;
    message.n_segments = count;
    message.segments = segments;
    status = peer_ask(peer, OP_ALLOCATE, &message.base, &dl__map_reply__descriptor,
                      (ProtobufCMessage **)ret_reply);
    free(segments);
    return status;
}

int
ask_map(struct peer *peer, uint64_t volume, uint32_t lease_epoch, uint32_t first, uint32_t max,
        Dl__MapReply **ret_reply)
{
    Dl__MapGet message = DL__MAP_GET__INIT;

    message.volume = volume;
    message.lease_epoch = lease_epoch;
    message.first = first;
    message.max = max;
    return peer_ask(peer, OP_MAP_GET, &message.base, &dl__map_reply__descriptor,
                    (ProtobufCMessage **)ret_reply);
}

int
ask_delete(struct peer *peer, const char *name)
{
    Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;

    message.name = text_of(name);
    return peer_ask(peer, OP_VOLUME_DELETE, &message.base, NULL, NULL);
}

int
ask_eject(struct peer *peer, uint64_t volume, uint32_t lease_epoch, uint32_t segment,
          uint32_t config_epoch, uint32_t id, uint32_t other_id, bool resolved,
          Dl__EjectReply **ret_reply)
{
    Dl__Eject message = DL__EJECT__INIT;
    Dl__Ejection ejection = DL__EJECTION__INIT;
    Dl__Ejection *ejections[1] = {&ejection};
    uint32_t ids[2];

    if (id != 0)
        ids[ejection.n_server_ids++] = id;
    if (other_id != 0)
        ids[ejection.n_server_ids++] = other_id;
    ejection.server_ids = ids;
    ejection.segment = segment;
    ejection.config_epoch = config_epoch;
    ejection.resolved = resolved;
    ejection.reason = DL__EJECT_REASON__EJECT_CONNECTION;
    message.volume = volume;
    message.lease_epoch = lease_epoch;
    message.ejections = ejections;
    message.n_ejections = 1;
    return peer_ask(peer, OP_EJECT, &message.base, &dl__eject_reply__descriptor,
                    (ProtobufCMessage **)ret_reply);
}

int
ask_report(struct peer *server, const struct told *told, bool done, uint32_t cursor_sectors)
{
    Dl__RecoveryReport message = DL__RECOVERY_REPORT__INIT;

    message.volume = told->volume;
    message.segment = told->segment;
    message.slot = told->slot;
    message.attempt = told->attempt;
    message.lease_epoch = told->lease_epoch;
    message.done = done;
    message.cursor_sectors = cursor_sectors;
    return peer_ask(server, OP_RECOVERY_REPORT, &message.base, NULL, NULL);
}

const struct told *
peer_told(const struct peer *server, uint64_t volume, uint32_t segment)
{
    for (uint32_t i = server->tell_count; i-- > 0 && i + TELLS_MAX >= server->tell_count;) {
        const struct told *told = &server->tells[i % TELLS_MAX];

        if (told->volume == volume && told->segment == segment)
            return told;
    }
    return NULL;
}

Dl__MapReply *
map_of(struct peer *client, uint64_t volume, uint32_t segment)
{
    Dl__MapReply *map;

    assert_int_equal(ask_map(client, volume, 0, segment, 1, &map), 0);
    assert_int_equal(map->n_segments, 1);
    assert_int_equal(map->segments[0]->index, segment);
    return map;
}
