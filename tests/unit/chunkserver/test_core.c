/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunkserver's core between a metadata service and clients that are scripts: what it answers
 * to good frames, to bad ones, and to none; that it takes fences before it answers them; that pools
 * that are used up slow clients down and lose nothing; that links may go away at any moment.
 *
 *     meta (script) <--- core ---> model store          on the simulator's network and clock
 *     clients (scripts) --->
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core.h"
#include "chunkserver/core_internal.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "dlblk/error.h"
#include "proto/control.pb-c.h"
#include "tests/sim/model_store.h"
#include "tests/sim/sim.h"

#define CLIENTS    3u
#define FRAMES_MAX 40000u
#define VOLUME     5u

/* --- a peer that is a script --- */

struct got {
    uint16_t opcode;
    bool reply;
    int status;
    uint64_t request_id;
    uint32_t body_bytes, payload_bytes;
    uint8_t *body, *payload;
};

struct peer {
    struct sim_process process;
    struct link *link;
    bool is_meta;
    bool refuse_hello, refuse_register, hold_register;
    uint64_t next_id;
    struct got *got;
    uint32_t got_count;
    uint32_t ups, downs;
    uint32_t registrations, heartbeats;
    uint64_t register_start_count, register_position;
    void *incoming;
};

struct fixture {
    struct sim_world world;
    struct sim_process server;
    struct model_disk disk;
    struct chunk_store *store;
    struct chunkserver_core *core;
    struct peer meta;
    struct peer clients[CLIENTS];
    bool stopped;
    int stop_err;
};

static const uint8_t cluster_id[16] = "cluster--------";
static const uint8_t disk_uuid[16] = "disk-----------";

static void
peer_send(struct peer *peer, struct frame_out *frame)
{
    struct sim_process *before = sim_enter(&peer->process);

    assert_non_null(frame);
    assert_non_null(peer->link);
    link_send(peer->link, frame);
    sim_leave(&peer->process, before);
}

static void
peer_send_message(struct peer *peer, uint16_t opcode, uint64_t request_id,
                  const ProtobufCMessage *message)
{
    peer_send(peer, frame_out_create_message(opcode, 0, request_id, 0, message));
}

static void
meta_answer_hello(struct peer *peer, const struct frame *frame)
{
    Dl__Hello hello = DL__HELLO__INIT;

    if (peer->refuse_hello) {
        peer_send(peer, frame_out_create_error(OP_HELLO, frame->request_id, -DL_E_CLUSTER_MISMATCH,
                                               "not ours", "format it"));
        return;
    }
    hello.version_min = hello.version_max = WIRE_VERSION;
    hello.role = DL__ROLE__ROLE_META;
    hello.cluster_id = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)cluster_id};
    peer_send(peer,
              frame_out_create_message(OP_HELLO, FRAME_REPLY, frame->request_id, 0, &hello.base));
}

static void
meta_answer_register(struct peer *peer, const struct frame *frame)
{
    Dl__ServerRegisterReply reply = DL__SERVER_REGISTER_REPLY__INIT;
    ProtobufCMessage *message = frame_unpack(frame, &dl__server_register__descriptor);
    const Dl__ServerRegister *registration = (const void *)message;

    assert_non_null(message);
    assert_memory_equal(registration->uuid.data, disk_uuid, 16);
    assert_string_equal(registration->address, "server:1");
    assert_string_equal(registration->host, "host1");
    peer->register_start_count = registration->start_count;
    peer->register_position = registration->journal_position;
    protobuf_c_message_free_unpacked(message, NULL);
    peer->registrations++;
    if (peer->hold_register)
        return;
    if (peer->refuse_register) {
        peer_send(peer, frame_out_create_error(OP_SERVER_REGISTER, frame->request_id,
                                               -DL_E_SERVER_DUPLICATE, "a copy", NULL));
        return;
    }
    reply.server_id = 7;
    reply.heartbeat_ms = 100;
    peer_send(peer, frame_out_create_message(OP_SERVER_REGISTER, FRAME_REPLY, frame->request_id, 0,
                                             &reply.base));
}

static void
peer_record(struct peer *peer, const struct frame *frame)
{
    struct got *got = &peer->got[peer->got_count++];

    assert_true(peer->got_count <= FRAMES_MAX);
    *got = (struct got){
        .opcode = frame->opcode,
        .reply = frame_is_reply(frame),
        .status = frame->status,
        .request_id = frame->request_id,
        .body_bytes = frame->body_bytes,
        .payload_bytes = frame->payload_bytes,
    };
    got->body = malloc(frame->body_bytes + 1);
    assert_non_null(got->body);
    if (frame->body_bytes > 0)
        memcpy(got->body, frame->body, frame->body_bytes);
    got->payload = frame->payload;
    peer->incoming = NULL;
}

static void
peer_on_accept(void *core, struct link *link)
{
    struct peer *peer = core;

    peer->link = link;
    peer->ups++;
}

static void *
peer_on_payload(void *core, struct link *link, const struct frame *frame)
{
    struct peer *peer = core;

    (void)link;
    peer->incoming = malloc(frame->payload_bytes);
    return peer->incoming;
}

static void
peer_on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct peer *peer = core;

    (void)link;
    if (peer->is_meta && frame->opcode == OP_HELLO)
        meta_answer_hello(peer, frame);
    else if (peer->is_meta && frame->opcode == OP_SERVER_REGISTER)
        meta_answer_register(peer, frame);
    else if (peer->is_meta && frame->opcode == OP_SERVER_HEARTBEAT)
        peer->heartbeats++;
    else
        peer_record(peer, frame);
}

static void
peer_on_down(void *core, struct link *link, int err)
{
    struct peer *peer = core;

    (void)err;
    if (peer->link == link)
        peer->link = NULL;
    peer->downs++;
    free(peer->incoming);
    peer->incoming = NULL;
}

static const struct link_events peer_events = {
    .on_accept = peer_on_accept,
    .on_up = peer_on_accept,
    .on_payload = peer_on_payload,
    .on_frame = peer_on_frame,
    .on_down = peer_on_down,
};

/* --- the fixture --- */

static void
peer_init(struct fixture *fx, struct peer *peer, const char *name)
{
    sim_process_init(&peer->process, &fx->world, name);
    sim_process_start(&peer->process);
    peer->got = calloc(FRAMES_MAX, sizeof(peer->got[0]));
    assert_non_null(peer->got);
    peer->next_id = 100;
}

static void
peer_fini(struct peer *peer)
{
    for (uint32_t i = 0; i < peer->got_count; i++) {
        free(peer->got[i].body);
        free(peer->got[i].payload);
    }
    free(peer->got);
    free(peer->incoming);
    sim_process_fini(&peer->process);
}

static void
server_up(struct fixture *fx, uint32_t operations_max)
{
    struct chunkserver_options options = {
        .metas = {{.host = "meta", .port = 1}},
        .meta_count = 1,
        .start_count = 3,
        .journal_position = 17,
        .advertise = "server:1",
        .host = "host1",
        .operations_max = operations_max,
        .write_buffer_bytes = (size_t)2 << 20,
        .read_buffer_bytes = (size_t)2 << 20,
    };
    struct sim_process *before;

    memcpy(options.cluster_id, cluster_id, 16);
    memcpy(options.server_uuid, disk_uuid, 16);
    sim_process_start(&fx->server);
    before = sim_enter(&fx->server);
    fx->store = model_store_open(&fx->disk, &fx->server.env);
    assert_int_equal(chunkserver_core_create(&fx->core, &fx->server.env, fx->store, &options), 0);
    sim_process_listen(&fx->server, chunkserver_core_events(), fx->core);
    sim_leave(&fx->server, before);
}

static int
setup(void **state)
{
    struct fixture *fx = calloc(1, sizeof(*fx));
    char name[16];

    assert_non_null(fx);
    log_set_level(LOG_LEVEL_ERROR + 1);
    sim_world_init(&fx->world, 42);
    sim_process_init(&fx->server, &fx->world, "server");
    model_disk_init(&fx->disk, 42);
    peer_init(fx, &fx->meta, "meta");
    fx->meta.is_meta = true;
    sim_process_listen(&fx->meta.process, &peer_events, &fx->meta);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        (void)snprintf(name, sizeof(name), "client%u", i);
        peer_init(fx, &fx->clients[i], name);
    }
    server_up(fx, 8);
    *state = fx;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *fx = *state;

    if (fx->server.up) {
        sim_process_kill(&fx->server, true);
        model_store_crash(fx->store);
        chunkserver_core_destroy(fx->core);
    }
    model_disk_fini(&fx->disk);
    sim_process_fini(&fx->server);
    peer_fini(&fx->meta);
    for (uint32_t i = 0; i < CLIENTS; i++)
        peer_fini(&fx->clients[i]);
    sim_world_fini(&fx->world);
    free(fx);
    return 0;
}

static void
run_for(struct fixture *fx, uint64_t duration_ns)
{
    uint64_t end_ns = fx->world.now_ns + duration_ns;

    while (sim_world_step(&fx->world, end_ns))
        ;
}

/* The reply to this request; runs the world until it is here. */
static struct got *
wait_reply(struct fixture *fx, struct peer *peer, uint64_t request_id)
{
    uint64_t end_ns = fx->world.now_ns + 20 * SIM_S;

    for (;;) {
        for (uint32_t i = peer->got_count; i > 0; i--)
            if (peer->got[i - 1].reply && peer->got[i - 1].request_id == request_id)
                return &peer->got[i - 1];
        if (!sim_world_step(&fx->world, end_ns))
            fail_msg("no reply to request %lu", request_id);
    }
}

static struct chunkserver_core_stats
stats_of(const struct fixture *fx)
{
    struct chunkserver_core_stats stats;

    chunkserver_core_get_stats(fx->core, &stats);
    return stats;
}

static void
wait_registered(struct fixture *fx)
{
    for (int i = 0; i < 100 && !stats_of(fx).registered; i++)
        run_for(fx, 100 * SIM_MS);
    assert_true(stats_of(fx).registered);
}

static void
peer_connect(struct fixture *fx, struct peer *peer)
{
    struct dl_address address = {.host = "server", .port = 1};
    struct sim_process *before = sim_enter(&peer->process);
    uint32_t ups = peer->ups;

    (void)link_connect(&peer->process.env, &address, &peer_events, peer, NULL);
    sim_leave(&peer->process, before);
    while (peer->ups == ups)
        assert_true(sim_world_step(&fx->world, fx->world.now_ns + SIM_S));
}

static void
peer_close(struct peer *peer)
{
    struct sim_process *before = sim_enter(&peer->process);

    link_close(peer->link);
    sim_leave(&peer->process, before);
}

static Dl__Hello
good_hello(void)
{
    Dl__Hello hello = DL__HELLO__INIT;

    hello.version_min = WIRE_VERSION_MIN;
    hello.version_max = WIRE_VERSION;
    hello.role = DL__ROLE__ROLE_CLIENT;
    hello.cluster_id = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)cluster_id};
    hello.server_uuid = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)disk_uuid};
    return hello;
}

static struct got *
peer_hello(struct fixture *fx, struct peer *peer, const Dl__Hello *hello)
{
    uint64_t id = ++peer->next_id;

    peer_send_message(peer, OP_HELLO, id, &hello->base);
    return wait_reply(fx, peer, id);
}

/* A client that may send requests. */
static struct peer *
client_up(struct fixture *fx, uint32_t idx)
{
    Dl__Hello hello = good_hello();

    wait_registered(fx);
    peer_connect(fx, &fx->clients[idx]);
    assert_int_equal(peer_hello(fx, &fx->clients[idx], &hello)->status, 0);
    return &fx->clients[idx];
}

/* --- requests --- */

struct out_write {
    struct frame_out frame;
    struct data_write write;
    le32 crcs[256];
    struct iovec iov;
    uint8_t payload[];
};

static void
out_write_on_sent(struct frame_out *frame, int err)
{
    (void)err;
    free(list_entry(frame, struct out_write, frame));
}

static struct data_target
target_of(uint32_t segment, uint32_t offset, uint32_t length, uint32_t config_epoch,
          uint32_t lease_epoch)
{
    return (struct data_target){
        .volume = VOLUME,
        .segment = segment,
        .slot = 1,
        .config_epoch = config_epoch,
        .lease_epoch = lease_epoch,
        .offset_sectors = offset,
        .length_sectors = length,
    };
}

static struct out_write *
out_write_create(struct data_target target, uint64_t sequence, uint8_t fill)
{
    uint32_t bytes = (target.flags & WRITE_ZERO) != 0 ? 0 : target.length_sectors * 4096;
    struct out_write *out = calloc(1, sizeof(*out) + bytes);

    assert_non_null(out);
    out->write.target = target;
    out->write.version = (uint64_t)target.lease_epoch << 40 | sequence;
    out->write.snapshot_seq = 1;
    out->write.slot_mask = 7;
    out->write.crc_count = bytes / 4096;
    memset(out->payload, fill, bytes);
    for (uint32_t i = 0; i < out->write.crc_count; i++)
        out->crcs[i] = le32_of(crc32c(0, out->payload + (size_t)i * 4096, 4096));
    out->iov = (struct iovec){out->payload, bytes};
    out->frame.on_sent = out_write_on_sent;
    return out;
}

static uint64_t
send_out_write(struct peer *peer, struct out_write *out)
{
    uint64_t id = ++peer->next_id;

    frame_out_write(&out->frame, id, &out->write, out->crcs, &out->iov,
                    out->write.crc_count > 0 ? 1 : 0);
    peer_send(peer, &out->frame);
    return id;
}

static uint64_t
send_write(struct peer *peer, struct data_target target, uint64_t sequence, uint8_t fill)
{
    return send_out_write(peer, out_write_create(target, sequence, fill));
}

struct out_small {
    struct frame_out frame;
};

static void
out_small_on_sent(struct frame_out *frame, int err)
{
    (void)err;
    free(list_entry(frame, struct out_small, frame));
}

static struct out_small *
out_small_create(void)
{
    struct out_small *out = calloc(1, sizeof(*out));

    assert_non_null(out);
    out->frame.on_sent = out_small_on_sent;
    return out;
}

static uint64_t
send_read(struct peer *peer, struct data_target target)
{
    struct out_small *out = out_small_create();
    struct data_read read = {.target = target};
    uint64_t id = ++peer->next_id;

    frame_out_read(&out->frame, id, &read);
    peer_send(peer, &out->frame);
    return id;
}

static uint64_t
send_stable(struct peer *peer, struct data_target target, uint64_t stable_version)
{
    struct out_small *out = out_small_create();
    struct data_stable stable = {.target = target, .stable_version = stable_version};
    uint64_t id = ++peer->next_id;

    frame_out_stable(&out->frame, id, &stable);
    peer_send(peer, &out->frame);
    return id;
}

static uint64_t
send_empty(struct peer *peer, uint16_t opcode)
{
    struct out_small *out = out_small_create();
    uint64_t id = ++peer->next_id;

    frame_out_empty(&out->frame, opcode, 0, id, 0);
    peer_send(peer, &out->frame);
    return id;
}

static struct data_read_reply
decode_read_reply(const struct got *got)
{
    struct frame frame = {
        .opcode = OP_READ,
        .flags = FRAME_REPLY,
        .body_bytes = got->body_bytes,
        .payload_bytes = got->payload_bytes,
        .body = got->body,
        .payload = got->payload,
    };
    struct data_read_reply reply;

    assert_int_equal(data_read_reply_decode(&frame, &reply), 0);
    return reply;
}

static Dl__FenceReply *
fence_from(struct fixture *fx, const Dl__Fence *message)
{
    uint64_t id = ++fx->meta.next_id;
    struct got *got;
    Dl__FenceReply *reply;

    peer_send_message(&fx->meta, OP_FENCE, id, &message->base);
    got = wait_reply(fx, &fx->meta, id);
    assert_int_equal(got->status, 0);
    reply = dl__fence_reply__unpack(NULL, got->body_bytes, got->body);
    assert_non_null(reply);
    return reply;
}

static Dl__FenceReply *
fence(struct fixture *fx, uint32_t lease_epoch)
{
    Dl__Fence message = DL__FENCE__INIT;

    message.volume = VOLUME;
    message.lease_epoch = lease_epoch;
    return fence_from(fx, &message);
}

/* --- the tests --- */

/* Before the metadata service has taken the disk, a client is told so; afterwards it is served. */
static void
test_clients_wait_for_registration(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = &fx->clients[0];
    Dl__Hello hello = good_hello();

    fx->meta.refuse_register = true;
    run_for(fx, 2 * SIM_S);
    assert_true(fx->meta.registrations > 1);
    peer_connect(fx, client);
    assert_int_equal(peer_hello(fx, client, &hello)->status, -DL_E_META_UNREACHABLE);
    fx->meta.refuse_register = false;
    wait_registered(fx);
    run_for(fx, SIM_S);
    assert_null(client->link); /* the refused link was closed */
    peer_connect(fx, client);
    assert_int_equal(peer_hello(fx, client, &hello)->status, 0);
    assert_int_equal(fx->meta.register_start_count, 3);
    assert_true(fx->meta.register_position >= 17);
}

/* Whose registration takes long shows that it lives meanwhile. */
static void
test_ping_before_the_registration_is_answered(void **state)
{
    struct fixture *fx = *state;

    fx->meta.hold_register = true;
    while (fx->meta.registrations == 0)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    peer_send_message(&fx->meta, OP_PING, 1000, NULL);
    assert_int_equal(wait_reply(fx, &fx->meta, 1000)->status, 0);
    assert_int_equal(fx->meta.registrations, 1);
    assert_int_equal(fx->meta.downs, 0);
}

struct hello_case {
    const char *what;
    void (*spoil)(Dl__Hello *hello);
    int status;
};

static uint8_t other_id[16] = "something else";

static void
spoil_cluster(Dl__Hello *hello)
{
    hello->cluster_id.data = other_id;
}

static void
spoil_no_cluster(Dl__Hello *hello)
{
    hello->cluster_id.len = 0;
}

static void
spoil_disk(Dl__Hello *hello)
{
    hello->server_uuid.data = other_id;
}

static void
spoil_version(Dl__Hello *hello)
{
    hello->version_min = hello->version_max = WIRE_VERSION + 1;
}

static void
spoil_role(Dl__Hello *hello)
{
    hello->role = DL__ROLE__ROLE_META;
}

static void
spoil_features(Dl__Hello *hello)
{
    hello->features_required = 1;
}

static void
test_hello_is_refused(void **state)
{
    static const struct hello_case cases[] = {
        {"cluster", spoil_cluster, -DL_E_CLUSTER_MISMATCH},
        {"no cluster", spoil_no_cluster, -DL_E_CLUSTER_MISMATCH},
        {"disk", spoil_disk, -DL_E_SERVER_UNKNOWN},
        {"version", spoil_version, -DL_E_VERSION_UNSUPPORTED},
        {"role", spoil_role, -DL_E_ROLE_WRONG},
        {"features", spoil_features, -DL_E_VERSION_UNSUPPORTED},
    };
    struct fixture *fx = *state;
    struct peer *client = &fx->clients[0];

    wait_registered(fx);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Dl__Hello hello = good_hello();
        Dl__ErrorDetail *detail;
        struct got *got;

        cases[i].spoil(&hello);
        peer_connect(fx, client);
        got = peer_hello(fx, client, &hello);
        assert_int_equal(got->status, cases[i].status);
        detail = dl__error_detail__unpack(NULL, got->body_bytes, got->body);
        assert_non_null(detail);
        assert_true(strlen(detail->text) > 20);
        dl__error_detail__free_unpacked(detail, NULL);
        /* Whatever it asks now is not answered, and the link is closed. */
        (void)send_read(client, target_of(0, 0, 1, 1, 1));
        run_for(fx, 2 * SIM_S);
        assert_null(client->link);
        assert_int_equal(client->got_count, i + 1);
    }
}

static void
test_first_frame_must_be_hello(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = &fx->clients[0];
    Dl__Hello hello = good_hello();

    wait_registered(fx);
    peer_connect(fx, client);
    (void)send_write(client, target_of(0, 0, 1, 1, 1), 1, 0xaa);
    run_for(fx, 2 * SIM_S);
    assert_null(client->link);
    assert_int_equal(fx->disk.counters.writes, 0);
    assert_int_equal(stats_of(fx).violations, 1);
    assert_int_equal(stats_of(fx).operations_in_use, 0);
    /* Its body alone makes no HELLO. */
    peer_connect(fx, client);
    peer_send_message(client, OP_PING, 77, &hello.base);
    assert_int_equal(wait_reply(fx, client, 77)->status, -DL_E_MESSAGE_MALFORMED);
    run_for(fx, 2 * SIM_S);
    assert_null(client->link);
}

static void
test_write_and_read(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    struct data_target zero = target_of(3, 12, 4, 1, 1);
    struct data_read_reply reply;
    struct got *got;

    /*
     * An unknown chunk reads as holes, without a payload; in a later config epoch it is an error.
     */
    got = wait_reply(fx, client, send_read(client, target_of(3, 0, 5, 1, 1)));
    assert_int_equal(got->status, 0);
    assert_int_equal(got->payload_bytes, 0);
    reply = decode_read_reply(got);
    assert_int_equal(reply.length_sectors, 5);
    assert_int_equal(reply.data_sectors, 0);
    assert_int_equal(wait_reply(fx, client, send_read(client, target_of(3, 0, 5, 2, 1)))->status,
                     -DL_E_CHUNK_UNKNOWN);

    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(3, 8, 2, 1, 1), 1, 0x5a))->status, 0);
    zero.flags = WRITE_ZERO;
    assert_int_equal(wait_reply(fx, client, send_write(client, zero, 2, 0))->status, 0);

    got = wait_reply(fx, client, send_read(client, target_of(3, 7, 7, 1, 1)));
    reply = decode_read_reply(got);
    assert_int_equal(reply.data_sectors, 2);
    assert_memory_equal(reply.kinds, "\0\2\2\0\0\1\1", 7);
    assert_int_equal(got->payload_bytes, 7 * 4096);
    for (uint32_t i = 0; i < got->payload_bytes; i++)
        assert_int_equal(got->payload[i], i / 4096 == 1 || i / 4096 == 2 ? 0x5a : 0);
    assert_int_equal(le32_load(reply.crcs_le + 4), crc32c(0, got->payload + 4096, 4096));
    assert_int_equal(le32_load(reply.crcs_le), 0);
}

/* A payload that was damaged on its way is asked for again, and is not written. */
static void
test_damaged_payload(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    struct out_write *out = out_write_create(target_of(0, 0, 4, 1, 1), 1, 1);

    out->payload[3 * 4096 + 17] ^= 4;
    assert_int_equal(wait_reply(fx, client, send_out_write(client, out))->status, -DL_E_CRC_WIRE);
    assert_int_equal(fx->disk.counters.writes, 0);
    assert_int_equal(stats_of(fx).crc_wire_errors, 1);
    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(0, 0, 4, 1, 1), 1, 1))->status, 0);
}

/*
 * A fence is answered after the writes that came before it, with all of them; writes of the old
 * lease are refused from then on, those of the new one taken, and not reported by the same fence
 * asked again.
 */
static void
test_fence(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    uint64_t last = 0;
    Dl__FenceReply *reply;

    for (uint64_t i = 1; i <= 5; i++)
        last = send_write(client, target_of(9, (uint32_t)i * 20, i == 3 ? 100 : 2, 1, 4), i, 7);
    /* All have arrived, the large one is still being written. */
    while (stats_of(fx).writes < 5)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    reply = fence(fx, 5);
    assert_int_equal(reply->lease_epoch, 5);
    assert_int_equal(reply->n_chunks, 1);
    assert_int_equal(reply->chunks[0]->segment, 9);
    assert_int_equal(reply->chunks[0]->slot, 1);
    assert_int_equal(reply->chunks[0]->n_writes, 5);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(reply->chunks[0]->writes[i]->version, (4ull << 40) + i + 1);
        assert_int_equal(reply->chunks[0]->writes[i]->offset_sectors, (i + 1) * 20);
    }
    dl__fence_reply__free_unpacked(reply, NULL);
    assert_int_equal(wait_reply(fx, client, last)->status, 0);

    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(9, 0, 1, 1, 4), 6, 7))->status,
        -DL_E_LEASE_OLD);
    assert_int_equal(wait_reply(fx, client, send_read(client, target_of(9, 0, 1, 1, 4)))->status,
                     -DL_E_LEASE_OLD);
    /* Also for a chunk that nobody has written yet. */
    assert_int_equal(wait_reply(fx, client, send_read(client, target_of(10, 0, 1, 1, 4)))->status,
                     -DL_E_LEASE_OLD);
    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(9, 0, 1, 1, 5), 1, 7))->status, 0);
    reply = fence(fx, 5);
    assert_int_equal(reply->n_chunks, 1);
    assert_int_equal(reply->chunks[0]->n_writes, 5);
    dl__fence_reply__free_unpacked(reply, NULL);

    /* S of the new lease covers all of the old ones. */
    assert_int_equal(
        wait_reply(fx, client, send_stable(client, target_of(9, 0, 0, 1, 5), (5ull << 40) + 1))
            ->status,
        0);
    reply = fence(fx, 6);
    assert_int_equal(reply->n_chunks, 0);
    dl__fence_reply__free_unpacked(reply, NULL);
}

/*
 * A READ that was accepted before the fence, and gets its data when the new owner has written:
 * what nobody has acknowledged yet is not for the old one.
 */
static void
test_fence_overtakes_a_read(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    uint64_t read;

    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(9, 0, 1, 1, 4), 1, 7))->status, 0);
    fx->disk.profile.read_ns_min = fx->disk.profile.read_ns_max = 1000000000;
    read = send_read(client, target_of(9, 0, 1, 1, 4));
    while (stats_of(fx).reads < 1)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    dl__fence_reply__free_unpacked(fence(fx, 5), NULL);
    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(9, 0, 1, 1, 5), 1, 8))->status, 0);
    assert_int_equal(wait_reply(fx, client, read)->status, -DL_E_LEASE_OLD);
    read = send_read(client, target_of(9, 0, 1, 1, 5));
    assert_int_equal(wait_reply(fx, client, read)->status, 0);
}

static void
test_lower_fence_is_refused(void **state)
{
    struct fixture *fx = *state;
    Dl__Fence message = DL__FENCE__INIT;

    wait_registered(fx);
    dl__fence_reply__free_unpacked(fence(fx, 9), NULL);
    message.volume = VOLUME;
    message.lease_epoch = 8;
    peer_send_message(&fx->meta, OP_FENCE, 1000, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 1000)->status, -DL_E_LEASE_OLD);
    message.lease_epoch = 0;
    peer_send_message(&fx->meta, OP_FENCE, 1001, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 1001)->status, -DL_E_MESSAGE_MALFORMED);
}

/*
 * A chunk's list may be too long for a part: the next one goes on in the middle, also of what
 * PENDING says.  Each version comes once and in order.
 */
static void
test_fence_answer_of_a_long_list(void **state)
{
    enum { WRITES = 20000, FIRST_PART = 8192 };
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    Dl__Fence message = DL__FENCE__INIT;
    Dl__Pending pending = DL__PENDING__INIT;
    uint64_t version = 0, last = 0;
    uint32_t parts = 0;
    bool more = true;

    for (uint64_t i = 1; i <= WRITES; i++) {
        struct data_target target = target_of(3, 0, 1, 1, 1);

        target.flags = WRITE_ZERO | WRITE_RESOLVE;
        last = send_write(client, target, i, 0);
        if (i % 1000 == 0)
            assert_int_equal(wait_reply(fx, client, last)->status, 0);
    }
    run_for(fx, SIM_S);
    message.volume = VOLUME;
    message.lease_epoch = 2;
    while (more) {
        Dl__FenceReply *reply = fence_from(fx, &message);

        assert_int_equal(reply->n_chunks, 1);
        assert_int_equal(reply->chunks[0]->segment, 3);
        assert_in_range(reply->chunks[0]->n_writes, 1, FIRST_PART);
        for (size_t i = 0; i < reply->chunks[0]->n_writes; i++)
            assert_int_equal(reply->chunks[0]->writes[i]->version & 0xffffff, ++version);
        more = reply->more;
        message.first_segment = reply->next_segment;
        message.first_slot = reply->next_slot;
        message.first_version = reply->next_version;
        parts++;
        dl__fence_reply__free_unpacked(reply, NULL);
    }
    assert_int_equal(version, WRITES);
    assert_int_equal(parts, 3);

    pending.volume = VOLUME;
    pending.segment = 3;
    pending.slot = 1;
    pending.config_epoch = 1;
    pending.lease_epoch = 2;
    for (more = true, version = 0; more;) {
        uint64_t id = ++client->next_id;
        Dl__PendingChunk *reply;
        struct got *got;

        peer_send_message(client, OP_PENDING, id, &pending.base);
        got = wait_reply(fx, client, id);
        assert_int_equal(got->status, 0);
        reply = dl__pending_chunk__unpack(NULL, got->body_bytes, got->body);
        assert_non_null(reply);
        for (size_t i = 0; i < reply->n_writes; i++)
            assert_int_equal(reply->writes[i]->version & 0xffffff, ++version);
        more = reply->more;
        pending.first_version = reply->next_version;
        dl__pending_chunk__free_unpacked(reply, NULL);
    }
    assert_int_equal(version, WRITES);
}

/* More pending writes than one frame can tell come in parts that leave nothing out. */
static void
test_fence_answer_in_parts(void **state)
{
    enum { SEGMENTS = 36, WRITES = 1000 };
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    Dl__Fence message = DL__FENCE__INIT;
    uint32_t segment = 0, parts = 0, writes = 0;
    bool more = true;
    uint64_t last = 0;

    for (segment = 0; segment < SEGMENTS; segment++)
        for (uint64_t i = 1; i <= WRITES; i++) {
            struct data_target target = target_of(segment, 0, 1, 1, 1);

            target.flags = WRITE_ZERO;
            last = send_write(client, target, i, 0);
        }
    assert_int_equal(wait_reply(fx, client, last)->status, 0);
    run_for(fx, SIM_S);
    message.volume = VOLUME;
    message.lease_epoch = 2;
    segment = 0;
    while (more) {
        Dl__FenceReply *reply = fence_from(fx, &message);

        for (size_t i = 0; i < reply->n_chunks; i++) {
            /* The first may go on with the last one before. */
            if (i > 0 || message.first_version == 0)
                segment++;
            assert_int_equal(reply->chunks[i]->segment, segment - 1);
            writes += (uint32_t)reply->chunks[i]->n_writes;
        }
        more = reply->more;
        message.first_segment = reply->next_segment;
        message.first_slot = reply->next_slot;
        message.first_version = reply->next_version;
        assert_true(!more || message.first_segment + (message.first_version != 0) == segment);
        parts++;
        dl__fence_reply__free_unpacked(reply, NULL);
    }
    assert_in_range(parts, 4, 6);
    assert_int_equal(segment, SEGMENTS);
    assert_int_equal(writes, SEGMENTS * WRITES);
}

static void
test_config_epoch(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    Dl__SlotTell message = DL__SLOT_TELL__INIT;

    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(0, 0, 1, 1, 1), 1, 1))->status, 0);
    message.volume = VOLUME;
    message.slot = 1;
    message.config_epoch = 4;
    peer_send_message(&fx->meta, OP_SLOT_TELL, 999, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 999)->status, -DL_E_MESSAGE_MALFORMED);
    message.state = DL__SLOT_STATE__SLOT_IN_SYNC;
    peer_send_message(&fx->meta, OP_SLOT_TELL, 1000, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 1000)->status, 0);
    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(0, 0, 1, 3, 1), 2, 1))->status,
        -DL_E_EPOCH_OLD);
    assert_int_equal(wait_reply(fx, client, send_read(client, target_of(0, 0, 1, 1, 1)))->status,
                     -DL_E_EPOCH_OLD);
    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(0, 0, 1, 5, 1), 2, 1))->status, 0);
    assert_int_equal(wait_reply(fx, client, send_read(client, target_of(0, 0, 1, 4, 1)))->status,
                     -DL_E_EPOCH_OLD);
    message.slot = 99;
    peer_send_message(&fx->meta, OP_SLOT_TELL, 1001, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 1001)->status, -DL_E_MESSAGE_MALFORMED);
}

static Dl__ChunkListReply *
list_now(struct fixture *fx, uint32_t parts, uint32_t part)
{
    Dl__ChunkList message = DL__CHUNK_LIST__INIT;
    static uint64_t request_id = 5000;
    const struct got *got;
    Dl__ChunkListReply *reply;

    message.parts = parts;
    message.part = part;
    peer_send_message(&fx->meta, OP_CHUNK_LIST, ++request_id, &message.base);
    got = wait_reply(fx, &fx->meta, request_id);
    assert_int_equal(got->status, 0);
    reply = dl__chunk_list_reply__unpack(NULL, got->body_bytes, got->body);
    assert_non_null(reply);
    return reply;
}

/* Each chunk is in one part; without parts there is only the number. */
static void
test_list(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    uint32_t seen = 0, largest = 0;
    Dl__ChunkListReply *reply;

    for (uint32_t i = 0; i < 24; i++)
        assert_int_equal(
            wait_reply(fx, client, send_write(client, target_of(i, 0, 1, 1, 1), 1, 1))->status, 0);
    reply = list_now(fx, 0, 0);
    assert_int_equal(reply->total, 24);
    assert_int_equal(reply->n_chunks, 0);
    dl__chunk_list_reply__free_unpacked(reply, NULL);
    for (uint32_t part = 0; part < 3; part++) {
        reply = list_now(fx, 3, part);
        for (size_t i = 0; i < reply->n_chunks; i++) {
            assert_int_equal(reply->chunks[i]->volume, VOLUME);
            assert_int_equal(reply->chunks[i]->slot, 1);
            assert_int_equal(reply->chunks[i]->incarnation, 1);
            assert_int_equal(reply->chunks[i]->config_epoch, 1);
            assert_int_equal(seen >> reply->chunks[i]->segment & 1, 0);
            seen |= 1u << reply->chunks[i]->segment;
        }
        if (reply->n_chunks > largest)
            largest = (uint32_t)reply->n_chunks;
        dl__chunk_list_reply__free_unpacked(reply, NULL);
    }
    assert_int_equal(seen, (1u << 24) - 1);
    assert_in_range(largest, 8, 16);
}

static void
test_delete(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    Dl__ChunkDelete message = DL__CHUNK_DELETE__INIT;
    Dl__ChunkRef refs[3];
    Dl__ChunkRef *pointers[3];

    for (uint32_t i = 0; i < 3; i++) {
        dl__chunk_ref__init(&refs[i]);
        refs[i].volume = VOLUME;
        refs[i].segment = i;
        refs[i].slot = 1;
        refs[i].incarnation = 1;
        pointers[i] = &refs[i];
        if (i < 2)
            assert_int_equal(
                wait_reply(fx, client, send_write(client, target_of(i, 0, 1, 1, 1), 1, 1))->status,
                0);
    }
    peer_send_message(&fx->meta, OP_CHUNK_DELETE, 1000, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 1000)->status, -DL_E_MESSAGE_MALFORMED);
    message.n_chunks = 3; /* the third is unknown: that is success */
    message.chunks = pointers;
    peer_send_message(&fx->meta, OP_CHUNK_DELETE, 1001, &message.base);
    assert_int_equal(wait_reply(fx, &fx->meta, 1001)->status, 0);
    assert_int_equal(fx->disk.chunks->chunk_count, 0);
    assert_int_equal(fx->disk.used_sectors, 0);
    /* What was on its way when they were deleted makes none of them anew, and reads no holes. */
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(
            wait_reply(fx, client, send_write(client, target_of(i, 0, 1, 1, 1), 2, 1))->status,
            -DL_E_EPOCH_OLD);
        assert_int_equal(
            wait_reply(fx, client, send_read(client, target_of(i, 0, 1, 1, 1)))->status,
            -DL_E_EPOCH_OLD);
    }
    assert_int_equal(fx->disk.chunks->chunk_count, 0);
    assert_int_equal(
        wait_reply(fx, client, send_write(client, target_of(3, 0, 1, 1, 1), 1, 1))->status, 0);
}

/* STABLE that says that zeroes may be forgotten: what is above S is not. */
static void
test_zeroes_are_forgotten(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    struct data_target target = target_of(0, 0, 0, 1, 1);
    struct data_target zeroes = target_of(0, 0, 8, 1, 1);
    uint64_t id;

    zeroes.flags = WRITE_ZERO;
    assert_int_equal(wait_reply(fx, client, send_write(client, zeroes, 1, 0))->status, 0);
    zeroes.offset_sectors = 8;
    assert_int_equal(wait_reply(fx, client, send_write(client, zeroes, 2, 0))->status, 0);
    id = send_stable(client, target, (1ull << 40) + 1);
    assert_int_equal(wait_reply(fx, client, id)->status, 0);
    assert_int_equal(fx->disk.counters.zeroes_forgotten, 0);
    target.flags = STABLE_FORGET;
    id = send_stable(client, target, (1ull << 40) + 2);
    assert_int_equal(wait_reply(fx, client, id)->status, 0);
    assert_int_equal(fx->disk.counters.zeroes_forgotten, 0);
    id = send_stable(client, target, (1ull << 40) + 1);
    assert_int_equal(wait_reply(fx, client, id)->status, 0);
    assert_int_equal(fx->disk.counters.zeroes_forgotten, 8);
}

/* What is no request of the protocol closes that link, and only that. */
static void
test_malformed_requests(void **state)
{
    struct fixture *fx = *state;
    struct peer *good = client_up(fx, 0);
    struct peer *bad = client_up(fx, 1);
    struct out_write *out = out_write_create(target_of(0, 0, 2, 1, 1), 1, 1);

    assert_int_equal(wait_reply(fx, bad, send_empty(bad, 999))->status, -DL_E_OPCODE_UNKNOWN);
    assert_non_null(bad->link);
    assert_int_equal(wait_reply(fx, bad, send_read(bad, target_of(0, 1u << 18, 1, 1, 1)))->status,
                     -DL_E_RANGE);
    assert_non_null(bad->link);
    out->write.version = 1; /* of another lease */
    assert_int_equal(wait_reply(fx, bad, send_out_write(bad, out))->status,
                     -DL_E_MESSAGE_MALFORMED);
    run_for(fx, 2 * SIM_S);
    assert_null(bad->link);
    bad = client_up(fx, 1);
    (void)send_empty(bad, OP_READ);
    run_for(fx, 2 * SIM_S);
    assert_null(bad->link);
    assert_int_equal(wait_reply(fx, good, send_write(good, target_of(0, 0, 1, 1, 1), 1, 1))->status,
                     0);
    assert_int_equal(wait_reply(fx, good, send_empty(good, OP_PING))->status, 0);
    assert_int_equal(stats_of(fx).operations_in_use, 0);
}

/*
 * Far more requests than the pools hold, of all sizes, by several clients: each is answered, none
 * waits for ever.
 */
static void
test_back_pressure(void **state)
{
    enum { REQUESTS = 300 };
    struct fixture *fx = *state;
    static uint64_t ids[CLIENTS][REQUESTS];
    struct fake_rng rng;

    fake_rng_init(&rng, 3);
    fx->world.net.split_percent = 50;
    for (uint32_t c = 0; c < CLIENTS; c++)
        (void)client_up(fx, c);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        for (uint32_t c = 0; c < CLIENTS; c++) {
            uint32_t length = fake_rng_percent(&rng, 70) ? 1
                                                         : (uint32_t)fake_rng_range(&rng, 1, 256);
            struct data_target target = target_of(c, (i * 7) % 700, length, 1, 1);
            bool read = fake_rng_percent(&rng, 40);

            ids[c][i] = read ? send_read(&fx->clients[c], target)
                             : send_write(&fx->clients[c], target, i + 1, (uint8_t)i);
        }
    }
    for (uint32_t c = 0; c < CLIENTS; c++)
        for (uint32_t i = 0; i < REQUESTS; i++)
            assert_int_equal(wait_reply(fx, &fx->clients[c], ids[c][i])->status, 0);
    run_for(fx, SIM_S);
    assert_true(stats_of(fx).pauses > 10);
    assert_int_equal(stats_of(fx).operations_in_use, 0);
    assert_int_equal(stats_of(fx).write_buffer_used_bytes, 0);
    assert_int_equal(stats_of(fx).read_buffer_used_bytes, 0);
}

/*
 * One who asks for much and takes nothing is paused alone, and closed in the end; the others go on
 * meanwhile.
 */
static void
test_client_that_takes_no_replies(void **state)
{
    struct fixture *fx = *state;
    struct peer *greedy = client_up(fx, 0);
    struct peer *other = client_up(fx, 1);

    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(
            wait_reply(fx, greedy, send_write(greedy, target_of(0, i * 256, 256, 1, 1), i + 1, 1))
                ->status,
            0);
    fx->world.net.buffer_bytes = 4096;
    struct sim_process *before = sim_enter(&greedy->process);
    link_pause(greedy->link, true);
    sim_leave(&greedy->process, before);
    for (uint32_t i = 0; i < 20; i++)
        (void)send_read(greedy, target_of(0, (i % 4) * 256, 256, 1, 1));
    for (uint32_t i = 0; i < 50; i++) {
        assert_int_equal(wait_reply(fx, other, send_read(other, target_of(0, i, 1, 1, 1)))->status,
                         0);
        run_for(fx, 100 * SIM_MS);
    }
    assert_int_equal(stats_of(fx).sessions, 2);
    for (uint32_t i = 0; i < 100; i++) {
        (void)wait_reply(fx, other, send_empty(other, OP_PING));
        run_for(fx, 100 * SIM_MS);
    }
    assert_int_equal(stats_of(fx).sessions, 1);
    assert_int_equal(stats_of(fx).read_buffer_used_bytes, 0);
}

/*
 * Two of them have all the memory there is, and nobody is served: they are closed before the others
 * take the server for silent.
 */
static void
test_clients_that_take_no_replies_stop_nobody(void **state)
{
    struct fixture *fx = *state;
    struct peer *greedy[] = {client_up(fx, 0), client_up(fx, 2)};
    struct peer *other = client_up(fx, 1);
    struct sim_process *before;
    uint64_t since_ns;

    (void)wait_reply(fx, greedy[0], send_write(greedy[0], target_of(0, 0, 256, 1, 1), 1, 1));
    fx->world.net.buffer_bytes = 4096;
    for (uint32_t i = 0; i < 2; i++) {
        before = sim_enter(&greedy[i]->process);
        link_pause(greedy[i]->link, true);
        sim_leave(&greedy[i]->process, before);
        for (uint32_t k = 0; k < 4; k++)
            (void)send_read(greedy[i], target_of(0, 0, 256, 1, 1));
    }
    run_for(fx, 50 * SIM_MS);
    assert_int_equal(stats_of(fx).read_buffer_used_bytes, 2 << 20);
    since_ns = fx->world.now_ns;
    (void)wait_reply(fx, other, send_empty(other, OP_PING));
    assert_in_range(fx->world.now_ns - since_ns, 500 * SIM_MS, 2500 * SIM_MS);
    assert_int_equal(stats_of(fx).sessions, 1);
    assert_int_equal(stats_of(fx).read_buffer_used_bytes, 0);
}

/* One client again, with answers that take nothing but memory. */
static void
test_client_that_takes_no_small_replies(void **state)
{
    struct fixture *fx = *state;
    struct peer *greedy = client_up(fx, 0);

    fx->world.net.buffer_bytes = 4096;
    struct sim_process *before = sim_enter(&greedy->process);
    link_pause(greedy->link, true);
    sim_leave(&greedy->process, before);
    for (uint32_t i = 0; i < 150 && stats_of(fx).sessions == 1; i++) {
        for (uint32_t k = 0; k < 100; k++)
            (void)send_empty(greedy, k % 2 == 0 ? OP_PING : OP_FENCE);
        run_for(fx, 100 * SIM_MS);
    }
    assert_int_equal(stats_of(fx).sessions, 0);
    /* What it could not send comes back to it, when it notices. */
    before = sim_enter(&greedy->process);
    if (greedy->link != NULL)
        link_pause(greedy->link, false);
    sim_leave(&greedy->process, before);
    run_for(fx, SIM_S);
    assert_null(greedy->link);
}

static void
test_links_go_away(void **state)
{
    struct fixture *fx = *state;

    for (uint32_t round = 0; round < 60; round++) {
        struct peer *client = client_up(fx, round % CLIENTS);

        for (uint32_t i = 0; i < 20; i++) {
            (void)send_write(client, target_of(1, i * 30, i % 7 == 0 ? 256 : 1, 1, 1),
                             round * 100 + i + 1, 1);
            (void)send_read(client, target_of(1, i, 3, 1, 1));
        }
        run_for(fx, round * 20 * SIM_US);
        if (round % 2 == 0)
            peer_close(client);
        else
            (void)sim_net_cut_one(&client->process, 0);
        run_for(fx, 20 * SIM_S);
        assert_int_equal(stats_of(fx).operations_in_use, 0);
        assert_int_equal(stats_of(fx).sessions, 0);
    }
    assert_true(stats_of(fx).replies_dropped > 100);
}

static void
test_silent_clients_are_closed(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);

    for (uint32_t i = 0; i < 15; i++) {
        (void)wait_reply(fx, client, send_empty(client, OP_PING));
        run_for(fx, SIM_S);
    }
    assert_non_null(client->link);
    run_for(fx, 15 * SIM_S);
    assert_null(client->link);
}

/*
 * The connection to the metadata service: heartbeats, silence, reconnection, requests whose link
 * went away.
 */
static void
test_metadata_service_comes_and_goes(void **state)
{
    struct fixture *fx = *state;
    Dl__Fence message = DL__FENCE__INIT;
    uint32_t heartbeats;

    wait_registered(fx);
    run_for(fx, SIM_S);
    heartbeats = fx->meta.heartbeats;
    assert_in_range(heartbeats, 5, 12);
    assert_int_equal(stats_of(fx).server_id, 7);

    message.volume = VOLUME;
    message.lease_epoch = 2;
    peer_send_message(&fx->meta, OP_FENCE, 1000, &message.base);
    while (stats_of(fx).fences == 0)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    sim_process_kill(&fx->meta.process, false);
    fx->meta.link = NULL;
    run_for(fx, 2 * SIM_S);
    assert_false(stats_of(fx).registered);
    assert_int_equal(fx->meta.got_count, 0); /* the answer has nowhere to go */
    assert_int_equal(chunk_table_fence(fx->disk.chunks, VOLUME), 2);

    sim_process_start(&fx->meta.process);
    sim_process_listen(&fx->meta.process, &peer_events, &fx->meta);
    wait_registered(fx);
    assert_true(fx->meta.registrations >= 2);
    dl__fence_reply__free_unpacked(fence(fx, 2), NULL);

    /* It hangs: nothing comes any more, not even a reset. */
    sim_process_pause(&fx->meta.process, 12 * SIM_S);
    run_for(fx, 9 * SIM_S);
    assert_false(stats_of(fx).registered);
    run_for(fx, 10 * SIM_S);
    wait_registered(fx);
}

/*
 * What was asked on one connection is not answered on the next: there its number means something
 * else.
 */
static void
test_answers_stay_on_their_connection(void **state)
{
    struct fixture *fx = *state;
    Dl__Fence message = DL__FENCE__INIT;

    wait_registered(fx);
    fx->disk.profile.group_ns_min = fx->disk.profile.group_ns_max = 2 * SIM_S;
    message.volume = VOLUME;
    message.lease_epoch = 2;
    peer_send_message(&fx->meta, OP_FENCE, 1000, &message.base);
    while (stats_of(fx).fences == 0)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    peer_close(&fx->meta);
    run_for(fx, SIM_S);
    assert_int_equal(fx->meta.registrations, 2);
    assert_true(stats_of(fx).registered);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(fx->disk.counters.fences, 1);
    assert_int_equal(fx->meta.got_count, 0);
    dl__fence_reply__free_unpacked(fence(fx, 2), NULL);
}

static void
on_stopped(void *context, int err)
{
    struct fixture *fx = context;

    fx->stopped = true;
    fx->stop_err = err;
}

/* A stop finishes what is here and answers it, takes nothing more, and ends. */
static void
test_stop(void **state)
{
    struct fixture *fx = *state;
    struct peer *client = client_up(fx, 0);
    uint64_t ids[6];
    struct sim_process *before;

    for (uint32_t i = 0; i < 6; i++)
        ids[i] = send_write(client, target_of(1, i * 100, 100, 1, 1), i + 1, 1);
    while (stats_of(fx).writes < 6)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    before = sim_enter(&fx->server);
    chunkserver_core_stop(fx->core, on_stopped, fx);
    sim_leave(&fx->server, before);
    run_for(fx, 5 * SIM_S);
    assert_true(fx->stopped);
    assert_int_equal(fx->stop_err, 0);
    assert_int_equal(fx->disk.counters.stops, 1);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(wait_reply(fx, client, ids[i])->status, 0);
    assert_null(client->link);
    assert_null(fx->meta.link);
    assert_int_equal(stats_of(fx).operations_in_use, 0);
    sim_process_kill(&fx->server, false);
    chunkserver_core_destroy(fx->core);
    model_store_destroy(fx->store);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

UNIT_MAIN(TEST(test_clients_wait_for_registration),
          TEST(test_ping_before_the_registration_is_answered), TEST(test_hello_is_refused),
          TEST(test_first_frame_must_be_hello), TEST(test_write_and_read),
          TEST(test_damaged_payload), TEST(test_fence), TEST(test_fence_overtakes_a_read),
          TEST(test_lower_fence_is_refused), TEST(test_fence_answer_of_a_long_list),
          TEST(test_fence_answer_in_parts), TEST(test_config_epoch), TEST(test_list),
          TEST(test_delete), TEST(test_zeroes_are_forgotten), TEST(test_malformed_requests),
          TEST(test_back_pressure), TEST(test_client_that_takes_no_replies),
          TEST(test_clients_that_take_no_replies_stop_nobody),
          TEST(test_client_that_takes_no_small_replies), TEST(test_links_go_away),
          TEST(test_silent_clients_are_closed), TEST(test_metadata_service_comes_and_goes),
          TEST(test_answers_stay_on_their_connection), TEST(test_stop))
