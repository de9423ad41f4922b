/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots that recover, between real chunkservers: what each request is answered in which state of a
 * slot, what a source gives and when it does not, and that a slot becomes whole whatever dies,
 * hangs or is told twice on the way.  The numbers are those of the rules in docs/recovery.md.
 *
 *     meta (script) <------- cores 0, 1, 2 -------> model stores      on the simulator's network
 *     owner (script) -----------+  ^--- PULL ---+
 *
 * Core i has slot i of the segment.
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

#define SERVERS           3u
#define VOLUME            5u
#define SEGMENT           9u
#define SECTORS           6000u /* more than a window */
#define ANSWERS           4096u
#define VERSION(sequence) (1ull << 40 | (sequence))

struct server {
    struct sim_process process;
    struct model_disk disk;
    struct chunk_store *store;
    struct chunkserver_core *core;
    uint8_t uuid[16];
    char name[16];
    struct link *meta; /* the metadata service's end */
    bool stopped;
};

/* What is asked of one server, and in which role. */
struct asker {
    struct fixture *fx;
    struct server *server;
    struct link *link;
    uint32_t life; /* of the server, when it was connected */
};

struct answer {
    uint64_t id;
    int status;
    uint32_t body_bytes, payload_bytes;
    uint8_t *body, *payload;
};

struct report {
    uint32_t slot, attempt, lease_epoch, cursor;
    bool done;
};

struct fixture {
    struct sim_world world;
    struct server servers[SERVERS];
    struct sim_process meta, owner;
    struct asker askers[2 * SERVERS]; /* clients, then chunkservers */
    uint64_t next_id;
    struct answer answers[ANSWERS];
    uint32_t answer_count;
    void *incoming;
    struct report reports[64];
    uint32_t report_count;
    bool hold_reports;
    bool hold_maps;
    uint32_t in_sync; /* what MAP_GET says: a bit for each slot */
    uint32_t maps;
    uint32_t config_epoch;
};

static const uint8_t cluster_id[16] = "cluster--------";

/* --- frames that come --- */

static void
record_answer(struct fixture *fx, const struct frame *frame)
{
    struct answer *answer = &fx->answers[fx->answer_count++];

    assert_true(fx->answer_count < ANSWERS);
    *answer = (struct answer){
        .id = frame->request_id,
        .status = frame->status,
        .body_bytes = frame->body_bytes,
        .payload_bytes = frame->payload_bytes,
        .payload = frame->payload,
        .body = malloc(frame->body_bytes + 1),
    };
    assert_non_null(answer->body);
    if (frame->body_bytes > 0)
        memcpy(answer->body, frame->body, frame->body_bytes);
    fx->incoming = NULL;
}

static void *
any_on_payload(void *core, struct link *link, const struct frame *frame)
{
    struct fixture *fx = core;

    (void)link;
    fx->incoming = malloc(frame->payload_bytes);
    return fx->incoming;
}

static void
meta_send(struct fixture *fx, struct link *link, struct frame_out *frame)
{
    struct sim_process *before = sim_enter(&fx->meta);

    assert_non_null(frame);
    link_send(link, frame);
    sim_leave(&fx->meta, before);
}

static void
meta_on_register(struct fixture *fx, struct link *link, const struct frame *frame)
{
    Dl__ServerRegisterReply reply = DL__SERVER_REGISTER_REPLY__INIT;
    ProtobufCMessage *message = frame_unpack(frame, &dl__server_register__descriptor);
    const Dl__ServerRegister *registration = (const void *)message;

    assert_non_null(message);
    for (uint32_t i = 0; i < SERVERS; i++) {
        if (memcmp(fx->servers[i].uuid, registration->uuid.data, 16) != 0)
            continue;
        fx->servers[i].meta = link;
        link->user = &fx->servers[i];
        reply.server_id = i + 1;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    reply.heartbeat_ms = 500;
    meta_send(fx, link,
              frame_out_create_message(OP_SERVER_REGISTER, FRAME_REPLY, frame->request_id, 0,
                                       &reply.base));
}

static void
meta_on_hello(struct fixture *fx, struct link *link, const struct frame *frame)
{
    Dl__Hello hello = DL__HELLO__INIT;

    hello.version_min = hello.version_max = WIRE_VERSION;
    hello.role = DL__ROLE__ROLE_META;
    hello.cluster_id = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)cluster_id};
    meta_send(fx, link,
              frame_out_create_message(OP_HELLO, FRAME_REPLY, frame->request_id, 0, &hello.base));
}

static void
meta_on_report(struct fixture *fx, struct link *link, const struct frame *frame)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__recovery_report__descriptor);
    const Dl__RecoveryReport *report = (const void *)message;

    assert_non_null(message);
    assert_true(fx->report_count < 64);
    fx->reports[fx->report_count++] = (struct report){
        .slot = report->slot,
        .attempt = report->attempt,
        .lease_epoch = report->lease_epoch,
        .cursor = report->cursor_sectors,
        .done = report->done,
    };
    protobuf_c_message_free_unpacked(message, NULL);
    if (!fx->hold_reports)
        meta_send(
            fx, link,
            frame_out_create_message(OP_RECOVERY_REPORT, FRAME_REPLY, frame->request_id, 0, NULL));
}

static void
meta_on_map_get(struct fixture *fx, struct link *link, const struct frame *frame)
{
    Dl__MapReply reply = DL__MAP_REPLY__INIT;
    Dl__Segment segment = DL__SEGMENT__INIT;
    Dl__Segment *segment_pointer = &segment;
    Dl__Slot slots[SERVERS], *slot_pointers[SERVERS];
    Dl__ServerAddress addresses[SERVERS], *address_pointers[SERVERS];
    char texts[SERVERS][32];

    fx->maps++;
    if (fx->hold_maps)
        return;
    for (uint32_t i = 0; i < SERVERS; i++) {
        (void)snprintf(texts[i], sizeof(texts[i]), "%s:1", fx->servers[i].name);
        dl__slot__init(&slots[i]);
        slots[i].server_id = i + 1;
        slots[i].number = i;
        slots[i].state = (fx->in_sync >> i & 1) != 0 ? DL__SLOT_STATE__SLOT_IN_SYNC
                                                     : DL__SLOT_STATE__SLOT_EJECTED;
        slot_pointers[i] = &slots[i];
        dl__server_address__init(&addresses[i]);
        addresses[i].server_id = i + 1;
        addresses[i].uuid = (ProtobufCBinaryData){16, fx->servers[i].uuid};
        addresses[i].address = texts[i];
        address_pointers[i] = &addresses[i];
    }
    segment.index = SEGMENT;
    segment.n_slots = SERVERS;
    segment.slots = slot_pointers;
    reply.n_segments = 1;
    reply.segments = &segment_pointer;
    reply.n_servers = SERVERS;
    reply.servers = address_pointers;
    meta_send(fx, link,
              frame_out_create_message(OP_MAP_GET, FRAME_REPLY, frame->request_id, 0, &reply.base));
}

static void
meta_on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct fixture *fx = core;

    if (frame_is_reply(frame))
        record_answer(fx, frame);
    else if (frame->opcode == OP_HELLO)
        meta_on_hello(fx, link, frame);
    else if (frame->opcode == OP_SERVER_REGISTER)
        meta_on_register(fx, link, frame);
    else if (frame->opcode == OP_RECOVERY_REPORT)
        meta_on_report(fx, link, frame);
    else if (frame->opcode == OP_MAP_GET)
        meta_on_map_get(fx, link, frame);
}

static void
meta_on_accept(void *core, struct link *link)
{
    (void)core;
    link->user = NULL;
}

static void
meta_on_down(void *core, struct link *link, int err)
{
    struct server *server = link->user;

    (void)core;
    (void)err;
    if (server != NULL && server->meta == link)
        server->meta = NULL;
}

static const struct link_events meta_events = {
    .on_accept = meta_on_accept,
    .on_payload = any_on_payload,
    .on_frame = meta_on_frame,
    .on_down = meta_on_down,
};

static void
asker_on_frame(void *core, struct link *link, const struct frame *frame)
{
    const struct asker *asker = link->user;

    if (asker->link == link)
        record_answer(core, frame);
}

static void
asker_on_down(void *core, struct link *link, int err)
{
    struct fixture *fx = core;
    struct asker *asker = link->user;

    (void)err;
    free(fx->incoming);
    fx->incoming = NULL;
    if (asker->link == link)
        asker->link = NULL;
}

static const struct link_events asker_events = {
    .on_up = meta_on_accept,
    .on_payload = any_on_payload,
    .on_frame = asker_on_frame,
    .on_down = asker_on_down,
};

/* --- the fixture --- */

static void
run_for(struct fixture *fx, uint64_t duration_ns)
{
    uint64_t end_ns = fx->world.now_ns + duration_ns;

    while (sim_world_step(&fx->world, end_ns))
        ;
}

static void
server_up(struct server *server)
{
    struct chunkserver_options options = {
        .metas = {{.host = "meta", .port = 1}},
        .meta_count = 1,
        .start_count = server->disk.start_count + 1,
        .journal_position = server->disk.journal_position,
        .operations_max = 64,
        .write_buffer_bytes = (size_t)4 << 20,
        .read_buffer_bytes = (size_t)4 << 20,
    };
    struct sim_process *before;
    char advertise[32];

    (void)snprintf(advertise, sizeof(advertise), "%s:1", server->name);
    options.advertise = advertise;
    memcpy(options.cluster_id, cluster_id, 16);
    memcpy(options.server_uuid, server->uuid, 16);
    sim_process_start(&server->process);
    before = sim_enter(&server->process);
    server->store = model_store_open(&server->disk, &server->process.env);
    assert_int_equal(
        chunkserver_core_create(&server->core, &server->process.env, server->store, &options), 0);
    sim_process_listen(&server->process, chunkserver_core_events(), server->core);
    sim_leave(&server->process, before);
}

static void
server_crash(struct server *server)
{
    sim_process_kill(&server->process, true);
    model_store_crash(server->store);
    chunkserver_core_destroy(server->core);
    server->core = NULL;
}

static struct chunkserver_core_stats
stats_of(const struct server *server)
{
    struct chunkserver_core_stats stats;

    chunkserver_core_get_stats(server->core, &stats);
    return stats;
}

static void
wait_registered(struct fixture *fx)
{
    for (uint32_t i = 0; i < SERVERS; i++)
        for (uint32_t k = 0; k < 200 && fx->servers[i].core != NULL &&
                             (fx->servers[i].meta == NULL || !stats_of(&fx->servers[i]).registered);
             k++)
            run_for(fx, 100 * SIM_MS);
}

static struct fixture *
fixture_create(uint64_t seed)
{
    struct fixture *fx = calloc(1, sizeof(*fx));

    assert_non_null(fx);
    log_set_level(LOG_LEVEL_ERROR + 1);
    sim_world_init(&fx->world, seed);
    sim_process_init(&fx->meta, &fx->world, "meta");
    sim_process_start(&fx->meta);
    sim_process_listen(&fx->meta, &meta_events, fx);
    sim_process_init(&fx->owner, &fx->world, "owner");
    sim_process_start(&fx->owner);
    for (uint32_t i = 0; i < SERVERS; i++) {
        struct server *server = &fx->servers[i];

        (void)snprintf(server->name, sizeof(server->name), "server%u", i);
        (void)snprintf((char *)server->uuid, sizeof(server->uuid), "disk %u", i);
        sim_process_init(&server->process, &fx->world, server->name);
        model_disk_init(&server->disk, seed * 10 + i);
        server_up(server);
    }
    fx->config_epoch = 1;
    wait_registered(fx);
    return fx;
}

static void
fixture_destroy(struct fixture *fx)
{
    for (uint32_t i = 0; i < SERVERS; i++) {
        if (fx->servers[i].core != NULL)
            server_crash(&fx->servers[i]);
        model_disk_fini(&fx->servers[i].disk);
        sim_process_fini(&fx->servers[i].process);
    }
    sim_process_fini(&fx->meta);
    sim_process_fini(&fx->owner);
    sim_world_fini(&fx->world);
    for (uint32_t i = 0; i < fx->answer_count; i++) {
        free(fx->answers[i].body);
        free(fx->answers[i].payload);
    }
    free(fx->incoming);
    free(fx);
}

static struct answer *
find_answer(struct fixture *fx, uint64_t id)
{
    for (uint32_t i = fx->answer_count; i > 0; i--)
        if (fx->answers[i - 1].id == id)
            return &fx->answers[i - 1];
    return NULL;
}

static struct answer *
wait_answer(struct fixture *fx, uint64_t id)
{
    uint64_t end_ns = fx->world.now_ns + 20 * SIM_S;

    while (find_answer(fx, id) == NULL)
        if (!sim_world_step(&fx->world, end_ns))
            fail_msg("no answer to request %lu", id);
    return find_answer(fx, id);
}

/* --- the owner, and one who pulls by hand --- */

static void
asker_send(struct fixture *fx, struct asker *asker, struct frame_out *frame)
{
    struct sim_process *before = sim_enter(&fx->owner);

    assert_non_null(frame);
    link_send(asker->link, frame);
    sim_leave(&fx->owner, before);
}

static struct asker *
asker_up(struct fixture *fx, uint32_t server_idx, bool client)
{
    struct asker *asker = &fx->askers[server_idx + (client ? 0 : SERVERS)];
    struct dl_address address = {.port = 1};
    Dl__Hello hello = DL__HELLO__INIT;
    struct sim_process *before;

    if (asker->link != NULL && asker->life == fx->servers[server_idx].process.life)
        return asker;
    asker->fx = fx;
    asker->life = fx->servers[server_idx].process.life;
    asker->server = &fx->servers[server_idx];
    (void)snprintf(address.host, sizeof(address.host), "%s", asker->server->name);
    before = sim_enter(&fx->owner);
    asker->link = link_connect(&fx->owner.env, &address, &asker_events, fx, asker);
    asker->link->user = asker;
    sim_leave(&fx->owner, before);
    run_for(fx, 20 * SIM_MS);
    assert_non_null(asker->link);
    asker->link->user = asker;
    hello.version_min = hello.version_max = WIRE_VERSION;
    hello.role = client ? DL__ROLE__ROLE_CLIENT : DL__ROLE__ROLE_CHUNKSERVER;
    hello.cluster_id = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)cluster_id};
    hello.server_uuid = (ProtobufCBinaryData){16, asker->server->uuid};
    asker_send(fx, asker, frame_out_create_message(OP_HELLO, 0, ++fx->next_id, 0, &hello.base));
    assert_int_equal(wait_answer(fx, fx->next_id)->status, 0);
    return asker;
}

struct out {
    struct frame_out frame;
    le32 crcs[256];
    struct iovec iov;
    uint8_t payload[];
};

static void
out_on_sent(struct frame_out *frame, int err)
{
    (void)err;
    free(list_entry(frame, struct out, frame));
}

static struct out *
out_create(uint32_t payload_bytes)
{
    struct out *out = calloc(1, sizeof(*out) + payload_bytes);

    assert_non_null(out);
    out->frame.on_sent = out_on_sent;
    return out;
}

static struct data_target
target_of(uint32_t slot, uint32_t offset, uint32_t length, uint32_t config_epoch)
{
    return (struct data_target){
        .volume = VOLUME,
        .segment = SEGMENT,
        .slot = slot,
        .config_epoch = config_epoch,
        .lease_epoch = 1,
        .offset_sectors = offset,
        .length_sectors = length,
    };
}

/* Content of a version: its low byte. */
static uint64_t
send_write(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset, uint32_t length,
           uint32_t config_epoch, uint32_t attempt, uint64_t stable)
{
    struct asker *asker = asker_up(fx, slot, true);
    struct out *out = out_create(length * 4096);
    struct data_write write = {
        .target = target_of(slot, offset, length, config_epoch),
        .version = VERSION(sequence),
        .stable_version = stable == 0 ? 0 : VERSION(stable),
        .snapshot_seq = 1,
        .attempt = attempt,
        .slot_mask = 7,
        .crc_count = length,
    };

    memset(out->payload, (int)(sequence & 0xff), (size_t)length * 4096);
    for (uint32_t i = 0; i < length; i++)
        out->crcs[i] = le32_of(crc32c(0, out->payload, 4096));
    out->iov = (struct iovec){out->payload, (size_t)length * 4096};
    frame_out_write(&out->frame, ++fx->next_id, &write, out->crcs, &out->iov, 1);
    asker_send(fx, asker, &out->frame);
    return fx->next_id;
}

static int
write_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset, uint32_t length,
          uint32_t config_epoch, uint32_t attempt, uint64_t stable)
{
    uint64_t id = send_write(fx, slot, sequence, offset, length, config_epoch, attempt, stable);

    return wait_answer(fx, id)->status;
}

/* To these slots, under the first config epoch. */
static void
write_all(struct fixture *fx, uint32_t slots, uint64_t sequence, uint32_t offset, uint32_t length,
          uint64_t stable)
{
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        if ((slots >> slot & 1) != 0)
            assert_int_equal(
                write_now(fx, slot, sequence, offset, length, fx->config_epoch, 0, stable), 0);
}

static uint64_t
send_read(struct fixture *fx, uint32_t slot, uint32_t offset, uint32_t length,
          uint32_t config_epoch)
{
    struct asker *asker = asker_up(fx, slot, true);
    struct out *out = out_create(0);
    struct data_read read = {.target = target_of(slot, offset, length, config_epoch)};

    frame_out_read(&out->frame, ++fx->next_id, &read);
    asker_send(fx, asker, &out->frame);
    return fx->next_id;
}

static int
read_now(struct fixture *fx, uint32_t slot, uint32_t config_epoch)
{
    return wait_answer(fx, send_read(fx, slot, 0, 1, config_epoch))->status;
}

static int
stable_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t config_epoch,
           uint32_t attempt)
{
    struct asker *asker = asker_up(fx, slot, true);
    struct out *out = out_create(0);
    struct data_stable stable = {
        .target = target_of(slot, 0, 0, config_epoch),
        .stable_version = VERSION(sequence),
        .attempt = attempt,
    };

    frame_out_stable(&out->frame, ++fx->next_id, &stable);
    asker_send(fx, asker, &out->frame);
    return wait_answer(fx, fx->next_id)->status;
}

static struct answer *
pending_now(struct fixture *fx, uint32_t slot, uint32_t config_epoch, uint32_t lease_epoch)
{
    struct asker *asker = asker_up(fx, slot, true);
    Dl__Pending message = DL__PENDING__INIT;

    message.volume = VOLUME;
    message.segment = SEGMENT;
    message.slot = slot;
    message.config_epoch = config_epoch;
    message.lease_epoch = lease_epoch;
    asker_send(fx, asker, frame_out_create_message(OP_PENDING, 0, ++fx->next_id, 0, &message.base));
    return wait_answer(fx, fx->next_id);
}

static Dl__Pull
pull_message(uint32_t slot, uint32_t config_epoch)
{
    Dl__Pull message = DL__PULL__INIT;

    message.volume = VOLUME;
    message.segment = SEGMENT;
    message.slot = slot;
    message.config_epoch = config_epoch;
    message.window_sectors = 100;
    return message;
}

static struct answer *
pull_now(struct fixture *fx, uint32_t server_idx, const Dl__Pull *message)
{
    struct asker *asker = asker_up(fx, server_idx, false);

    asker_send(fx, asker, frame_out_create_message(OP_PULL, 0, ++fx->next_id, 0, &message->base));
    return wait_answer(fx, fx->next_id);
}

static int
pull_status(struct fixture *fx, uint32_t server_idx, uint32_t config_epoch)
{
    Dl__Pull message = pull_message(server_idx, config_epoch);

    return pull_now(fx, server_idx, &message)->status;
}

/* --- the metadata service --- */

static Dl__SlotTell
in_sync_message(uint32_t slot, uint32_t config_epoch)
{
    Dl__SlotTell message = DL__SLOT_TELL__INIT;

    message.volume = VOLUME;
    message.segment = SEGMENT;
    message.slot = slot;
    message.config_epoch = config_epoch;
    message.incarnation = 1;
    message.state = DL__SLOT_STATE__SLOT_IN_SYNC;
    return message;
}

static uint64_t
send_meta(struct fixture *fx, uint32_t server_idx, uint16_t opcode, const ProtobufCMessage *message)
{
    wait_registered(fx);
    assert_non_null(fx->servers[server_idx].meta);
    meta_send(fx, fx->servers[server_idx].meta,
              frame_out_create_message(opcode, 0, ++fx->next_id, 0, message));
    return fx->next_id;
}

static uint64_t
send_in_sync(struct fixture *fx, uint32_t slot, uint32_t config_epoch)
{
    Dl__SlotTell message = in_sync_message(slot, config_epoch);

    return send_meta(fx, slot, OP_SLOT_TELL, &message.base);
}

static void
tell_in_sync(struct fixture *fx, uint32_t slot, uint32_t config_epoch)
{
    assert_int_equal(wait_answer(fx, send_in_sync(fx, slot, config_epoch))->status, 0);
}

/* sources: a bit for each slot to pull from. */
static uint64_t
send_attempt(struct fixture *fx, uint32_t slot, uint32_t config_epoch, uint32_t attempt,
             uint32_t incarnation, uint32_t sources)
{
    Dl__SlotTell message = in_sync_message(slot, config_epoch);
    Dl__Peer peers[SERVERS];
    Dl__ServerAddress addresses[SERVERS];
    char texts[SERVERS][32];
    Dl__Peer *pointers[SERVERS];

    message.state = DL__SLOT_STATE__SLOT_RECOVERING;
    message.attempt = attempt;
    message.incarnation = incarnation;
    message.lease_epoch = 1;
    message.segment_sectors = SECTORS;
    message.peers = pointers;
    for (uint32_t i = 0; i < SERVERS; i++) {
        if ((sources >> i & 1) == 0)
            continue;
        (void)snprintf(texts[i], sizeof(texts[i]), "%s:1", fx->servers[i].name);
        dl__server_address__init(&addresses[i]);
        addresses[i].server_id = i + 1;
        addresses[i].uuid = (ProtobufCBinaryData){16, fx->servers[i].uuid};
        addresses[i].address = texts[i];
        dl__peer__init(&peers[i]);
        peers[i].slot = i;
        peers[i].server = &addresses[i];
        pointers[message.n_peers++] = &peers[i];
    }
    return send_meta(fx, slot, OP_SLOT_TELL, &message.base);
}

static void
tell_attempt(struct fixture *fx, uint32_t slot, uint32_t attempt, uint32_t incarnation,
             uint32_t sources)
{
    uint64_t id = send_attempt(fx, slot, attempt, attempt, incarnation, sources);

    assert_int_equal(wait_answer(fx, id)->status, 0);
}

static Dl__FenceReply *
fence_now(struct fixture *fx, uint32_t server_idx, uint32_t lease_epoch)
{
    Dl__Fence message = DL__FENCE__INIT;
    struct answer *answer;
    Dl__FenceReply *reply;

    message.volume = VOLUME;
    message.lease_epoch = lease_epoch;
    answer = wait_answer(fx, send_meta(fx, server_idx, OP_FENCE, &message.base));
    assert_int_equal(answer->status, 0);
    reply = dl__fence_reply__unpack(NULL, answer->body_bytes, answer->body);
    assert_non_null(reply);
    return reply;
}

static bool
is_reported(const struct fixture *fx, uint32_t slot, uint32_t attempt)
{
    for (uint32_t i = 0; i < fx->report_count; i++)
        if (fx->reports[i].slot == slot && fx->reports[i].attempt == attempt && fx->reports[i].done)
            return true;
    return false;
}

static void
wait_reported(struct fixture *fx, uint32_t slot, uint32_t attempt)
{
    uint64_t end_ns = fx->world.now_ns + 120 * SIM_S;

    while (!is_reported(fx, slot, attempt))
        if (!sim_world_step(&fx->world, end_ns))
            fail_msg("attempt %u of slot %u does not end", attempt, slot);
}

static struct chunk *
chunk_of(struct fixture *fx, uint32_t slot)
{
    struct chunk_key key = {.volume = VOLUME, .segment = SEGMENT, .slot = slot};

    return chunk_table_find(fx->servers[slot].disk.chunks, &key);
}

static struct model_sector
sector_of(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    const struct model_chunk *content = chunk_of(fx, slot)->store_private;

    return sector < content->sector_count ? content->sectors[sector] : (struct model_sector){0};
}

static void
assert_same(struct fixture *fx, uint32_t a, uint32_t b)
{
    for (uint32_t i = 0; i < SECTORS; i++) {
        struct model_sector left = sector_of(fx, a, i);
        struct model_sector right = sector_of(fx, b, i);

        assert_false(left.is_void || right.is_void);
        assert_int_equal(left.version, right.version);
        assert_int_equal(left.kind, right.kind);
        assert_int_equal(left.crc, right.crc);
        if (left.kind == SECTOR_DATA)
            assert_memory_equal(left.data, right.data, 4096);
    }
}

/* --- what is answered in which state --- */

/* Rules 7, 9, 10, and what the others ask of a recovering slot. */
static void
test_recovering_slot_answers(void **state)
{
    struct fixture *fx = fixture_create(1);
    Dl__FenceReply *fence;

    (void)state;
    assert_int_equal(write_now(fx, 2, 1, 0, 1, 1, 1, 0), -DL_E_NOT_YET); /* no chunk at all */
    write_all(fx, 4, 1, 0, 4, 0);
    write_all(fx, 4, 2, 2, 4, 1);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 5, 5, 1), -DL_E_NOT_YET);
    assert_int_equal(chunk_of(fx, 2)->config_epoch, 1); /* which taught it nothing */
    assert_int_equal(stable_now(fx, 2, 2, 5, 5), -DL_E_NOT_YET);
    tell_attempt(fx, 2, 5, 1, 0);
    assert_true(sector_of(fx, 2, 2).is_void);
    assert_int_equal(chunk_table_fence(fx->servers[2].disk.chunks, VOLUME), 1);

    assert_int_equal(write_now(fx, 2, 3, 0, 1, 4, 0, 1), -DL_E_EPOCH_OLD);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 5, 0, 1), -DL_E_EPOCH_OLD);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 6, 6, 1), -DL_E_NOT_YET);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 6, 4, 1), -DL_E_NOT_YET);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 5, 5, 2), 0);
    assert_int_equal(chunk_of(fx, 2)->heard_version, VERSION(2));
    assert_int_equal(write_now(fx, 2, 4, 1, 1, 6, 5, 2), 0);
    assert_int_equal(chunk_of(fx, 2)->config_epoch, 6);
    assert_int_equal(chunk_of(fx, 2)->attempt, 5);
    assert_int_equal(read_now(fx, 2, 6), -DL_E_NOT_IN_SYNC);
    assert_int_equal(pull_status(fx, 2, 5), -DL_E_NOT_IN_SYNC);
    assert_int_equal(stable_now(fx, 2, 4, 6, 0), -DL_E_NOT_YET);
    assert_int_equal(stable_now(fx, 2, 4, 6, 6), -DL_E_NOT_YET);
    assert_int_equal(chunk_of(fx, 2)->heard_version, VERSION(2));
    assert_int_equal(stable_now(fx, 2, 3, 6, 5), 0);
    assert_int_equal(chunk_of(fx, 2)->heard_version, VERSION(3));
    assert_int_equal(chunk_of(fx, 2)->stable_version, VERSION(1));
    assert_int_equal(pending_now(fx, 2, 6, 1)->status, -DL_E_NOT_YET);

    fence = fence_now(fx, 2, 2);
    assert_int_equal(fence->n_chunks, 1);
    assert_int_equal(fence->chunks[0]->attempt, 5);
    assert_int_equal(fence->chunks[0]->n_writes, 0);
    assert_int_equal(fence->chunks[0]->stable_version, 0);
    dl__fence_reply__free_unpacked(fence, NULL);
    fixture_destroy(fx);
}

/* A write without an attempt, of a later config epoch, says that the slot was promoted. */
static void
test_promotion_by_write(void **state)
{
    struct fixture *fx = fixture_create(1);

    (void)state;
    tell_attempt(fx, 2, 5, 5, 0);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 6, 0, 2), 0);
    assert_int_equal(chunk_of(fx, 2)->attempt, 0);
    assert_int_equal(read_now(fx, 2, 6), 0);
    run_for(fx, SIM_S * 10);
    assert_int_equal(stats_of(&fx->servers[2]).recoveries_running, 0);
    fixture_destroy(fx);
}

/* While an attempt begins nothing is served: the store is not asked for what is about to be void. */
static void
test_attempt_about_to_begin(void **state)
{
    struct fixture *fx = fixture_create(1);
    uint64_t read_id, tell_id, large_id;

    (void)state;
    write_all(fx, 5, 1, 0, 10, 0);
    for (uint32_t i = 0; i < SERVERS; i++) {
        (void)asker_up(fx, i, true);
        (void)asker_up(fx, i, false);
    }
    fx->servers[2].disk.profile.read_ns_min = fx->servers[2].disk.profile.read_ns_max = 3 * SIM_S;
    fx->servers[2].disk.profile.large_ns_max = 2 * SIM_S;
    fx->servers[2].disk.profile.group_ns_min = fx->servers[2].disk.profile.group_ns_max = SIM_S;
    read_id = send_read(fx, 2, 0, 10, 1);
    large_id = send_write(fx, 2, 2, 0, 100, 1, 0, 0);
    run_for(fx, 50 * SIM_MS);
    tell_id = send_attempt(fx, 2, 5, 5, 1, 0);
    run_for(fx, 50 * SIM_MS);
    assert_int_equal(read_now(fx, 2, 1), -DL_E_NOT_IN_SYNC);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 1, 0, 0), -DL_E_NOT_YET);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 5, 5, 0), -DL_E_NOT_YET);
    assert_int_equal(stable_now(fx, 2, 1, 5, 5), -DL_E_NOT_YET);
    assert_int_equal(pending_now(fx, 2, 5, 1)->status, -DL_E_NOT_YET);
    assert_int_equal(pull_status(fx, 2, 1), -DL_E_NOT_IN_SYNC);
    assert_null(find_answer(fx, tell_id));
    assert_int_equal(wait_answer(fx, tell_id)->status, 0);
    assert_int_equal(wait_answer(fx, large_id)->status,
                     0); /* accepted before: void with the rest */
    assert_true(sector_of(fx, 2, 50).is_void);
    /* The read was accepted as well, but what it got is not what the slot has. */
    assert_true(wait_answer(fx, read_id)->status != 0);
    fixture_destroy(fx);
}

/* A read under which its chunk is replaced gets an error, not the holes of the new one. */
static void
test_read_of_a_replaced_chunk(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct fixture *fx = fixture_create(seed);
        uint64_t read_id;

        write_all(fx, 4, 1, 0, 10, 0);
        fx->servers[2].disk.profile.read_ns_min = fx->servers[2].disk.profile.read_ns_max = SIM_S;
        read_id = send_read(fx, 2, 0, 10, 1);
        run_for(fx, 50 * SIM_MS);
        tell_attempt(fx, 2, 5, 5, 0);
        tell_in_sync(fx, 2, 6);
        assert_true(wait_answer(fx, read_id)->status != 0);
        fixture_destroy(fx);
    }
}

/* A SLOT_TELL of an earlier config epoch, or the same once more, changes nothing. */
static void
test_told_twice(void **state)
{
    struct fixture *fx = fixture_create(1);
    uint64_t ids[6];

    (void)state;
    write_all(fx, 4, 1, 0, 4, 0);
    ids[0] = send_attempt(fx, 2, 5, 5, 1, 0);
    ids[1] = send_attempt(fx, 2, 7, 7, 1, 0);
    ids[2] = send_attempt(fx, 2, 5, 5, 1, 0);
    ids[3] = send_in_sync(fx, 2, 4);
    ids[4] = send_attempt(fx, 2, 7, 7, 1, 0);
    ids[5] = send_attempt(fx, 2, 8, 7, 1, 0);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(wait_answer(fx, ids[i])->status, 0);
    assert_int_equal(chunk_of(fx, 2)->attempt, 7);
    assert_int_equal(chunk_of(fx, 2)->config_epoch, 8);
    assert_int_equal(fx->servers[2].disk.counters.attempts, 2);
    assert_int_equal(stats_of(&fx->servers[2]).recoveries_running, 1);
    fixture_destroy(fx);
}

/* A deletion that comes after the beginning of an attempt ends after it: nothing comes back. */
static void
test_deleted_while_it_begins(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct fixture *fx = fixture_create(seed);
        Dl__ChunkDelete message = DL__CHUNK_DELETE__INIT;
        Dl__ChunkRef ref = DL__CHUNK_REF__INIT;
        Dl__ChunkRef *pointer = &ref;
        uint64_t tell_id, delete_id;

        ref.volume = VOLUME;
        ref.segment = SEGMENT;
        ref.slot = 2;
        ref.incarnation = 1;
        message.n_chunks = 1;
        message.chunks = &pointer;
        write_all(fx, 5, 1, 0, 4, 0);
        (void)send_write(fx, 2, 2, 0, 100, 1, 0, 0); /* it holds the attempt up */
        run_for(fx, SIM_MS);
        tell_id = send_attempt(fx, 2, 5, 5, 1, 1);
        delete_id = send_meta(fx, 2, OP_CHUNK_DELETE, &message.base);
        assert_int_equal(wait_answer(fx, delete_id)->status, 0);
        assert_int_equal(wait_answer(fx, tell_id)->status, 0);
        run_for(fx, SIM_S);
        assert_null(chunk_of(fx, 2));
        assert_int_equal(stats_of(&fx->servers[2]).recoveries_running, 0);
        fixture_destroy(fx);
    }
}

static void
test_bad_slot_tells(void **state)
{
    struct fixture *fx = fixture_create(1);
    Dl__SlotTell message = in_sync_message(2, 5);

    (void)state;
    message.state = DL__SLOT_STATE__SLOT_EJECTED;
    assert_int_equal(wait_answer(fx, send_meta(fx, 2, OP_SLOT_TELL, &message.base))->status,
                     -DL_E_MESSAGE_MALFORMED);
    message.state = DL__SLOT_STATE__SLOT_RECOVERING;
    message.attempt = 6;
    message.segment_sectors = 1;
    assert_int_equal(wait_answer(fx, send_meta(fx, 2, OP_SLOT_TELL, &message.base))->status,
                     -DL_E_MESSAGE_MALFORMED);
    message.attempt = 5;
    message.segment_sectors = 0;
    assert_int_equal(wait_answer(fx, send_meta(fx, 2, OP_SLOT_TELL, &message.base))->status,
                     -DL_E_MESSAGE_MALFORMED);
    message.segment_sectors = 1;
    message.incarnation = 0;
    assert_int_equal(wait_answer(fx, send_meta(fx, 2, OP_SLOT_TELL, &message.base))->status,
                     -DL_E_CHUNK_UNKNOWN);
    fixture_destroy(fx);
}

/* Rule 18: of an in-sync chunk, after the fence, what lower leases have left. */
static void
test_pending(void **state)
{
    struct fixture *fx = fixture_create(1);
    struct answer *answer;
    Dl__PendingChunk *reply;

    (void)state;
    assert_int_equal(pending_now(fx, 2, 1, 1)->status, 0);
    assert_int_equal(pending_now(fx, 2, 2, 1)->status, -DL_E_CHUNK_UNKNOWN);
    write_all(fx, 4, 1, 0, 4, 0);
    write_all(fx, 4, 2, 10, 100, 0);
    answer = pending_now(fx, 2, 1, 3);
    assert_int_equal(answer->status, 0);
    reply = dl__pending_chunk__unpack(NULL, answer->body_bytes, answer->body);
    assert_non_null(reply);
    assert_int_equal(reply->slot, 2);
    assert_int_equal(reply->segment, SEGMENT);
    assert_int_equal(reply->n_writes, 2);
    assert_int_equal(reply->writes[1]->version, VERSION(2));
    assert_int_equal(reply->writes[1]->offset_sectors, 10);
    dl__pending_chunk__free_unpacked(reply, NULL);
    assert_int_equal(chunk_table_fence(fx->servers[2].disk.chunks, VOLUME), 3);
    assert_int_equal(write_now(fx, 2, 3, 0, 1, 1, 0, 0), -DL_E_LEASE_OLD);
    assert_int_equal(pending_now(fx, 2, 1, 2)->status, -DL_E_LEASE_OLD);
    tell_in_sync(fx, 2, 4);
    assert_int_equal(pending_now(fx, 2, 1, 3)->status, -DL_E_EPOCH_OLD);
    assert_int_equal(pending_now(fx, 2, 0, 3)->status, -DL_E_MESSAGE_MALFORMED);
    fixture_destroy(fx);
}

/* --- sources --- */

/* Rule 12: not before the metadata service or the owner has said that the slots have changed. */
static void
test_source_needs_the_epoch(void **state)
{
    struct fixture *fx = fixture_create(1);

    (void)state;
    assert_int_equal(pull_status(fx, 0, 5), -DL_E_CHUNK_UNKNOWN);
    write_all(fx, 1, 1, 0, 4, 0);
    assert_int_equal(pull_status(fx, 0, 5), -DL_E_NOT_YET);
    assert_int_equal(pull_status(fx, 0, 5), -DL_E_NOT_YET);
    assert_int_equal(chunk_of(fx, 0)->config_epoch, 1);
    tell_in_sync(fx, 0, 5);
    assert_int_equal(pull_status(fx, 0, 5), 0);
    assert_int_equal(pull_status(fx, 0, 6), -DL_E_NOT_YET);
    assert_int_equal(write_now(fx, 0, 2, 0, 1, 6, 0, 0), 0);
    assert_int_equal(pull_status(fx, 0, 6), 0);
    fixture_destroy(fx);
}

/* A write of a lower epoch that was accepted before the source was told is in the answer. */
static void
test_source_waits_for_slow_writes(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct fixture *fx = fixture_create(seed);
        Dl__Pull message = pull_message(0, 5);
        struct answer *answer;
        Dl__PullReply *reply;

        write_all(fx, 1, 1, 0, 1, 0);
        (void)asker_up(fx, 0, false);
        fx->servers[0].disk.profile.large_ns_max = 500 * SIM_MS;
        (void)send_write(fx, 0, 2, 0, 50, 1, 0, 0);
        run_for(fx, 10 * SIM_MS);
        tell_in_sync(fx, 0, 5);
        answer = pull_now(fx, 0, &message);
        assert_int_equal(answer->status, 0);
        reply = dl__pull_reply__unpack(NULL, answer->body_bytes, answer->body);
        assert_non_null(reply);
        assert_int_equal(reply->n_runs, 1);
        assert_int_equal(reply->runs[0]->version, VERSION(2));
        assert_int_equal(reply->runs[0]->sector_count, 50);
        assert_int_equal(answer->payload_bytes, 50 * 4096);
        dl__pull_reply__free_unpacked(reply, NULL);
        fixture_destroy(fx);
    }
}

static void
test_what_a_source_gives(void **state)
{
    struct fixture *fx = fixture_create(1);
    Dl__Pull message = pull_message(0, 1);
    uint8_t wanted[13] = {0};
    struct answer *answer;
    Dl__PullReply *reply;

    (void)state;
    write_all(fx, 1, 1, 0, 4, 0);
    write_all(fx, 1, 2, 2, 4, 1);
    message.above_version = VERSION(1);
    message.wanted = (ProtobufCBinaryData){13, wanted};
    wanted[0] = 0x02;
    wanted[12] = 0x01; /* sector 96: a hole */
    answer = pull_now(fx, 0, &message);
    assert_int_equal(answer->status, 0);
    reply = dl__pull_reply__unpack(NULL, answer->body_bytes, answer->body);
    assert_non_null(reply);
    assert_int_equal(reply->next_sector, 100);
    assert_int_equal(reply->stable_version, VERSION(1));
    assert_int_equal(reply->n_runs, 3);
    assert_int_equal(reply->runs[0]->first_sector, 1);
    assert_int_equal(reply->runs[0]->version, VERSION(1));
    assert_int_equal(reply->runs[1]->first_sector, 2);
    assert_int_equal(reply->runs[1]->sector_count, 4);
    assert_int_equal(reply->runs[1]->n_crcs, 4);
    assert_int_equal(reply->runs[2]->first_sector, 96);
    assert_int_equal(reply->runs[2]->kind, WIRE_SECTOR_HOLE);
    assert_int_equal(answer->payload_bytes, 5 * 4096);
    assert_int_equal(answer->payload[0], 1);
    assert_int_equal(answer->payload[4096], 2);
    assert_int_equal(reply->runs[1]->crcs[3], crc32c(0, answer->payload + 4096, 4096));
    dl__pull_reply__free_unpacked(reply, NULL);

    message.checksums_only = true;
    assert_int_equal(pull_now(fx, 0, &message)->payload_bytes, 0);
    message.checksums_only = false;
    fx->servers[0].disk.profile.read_flips_per_million = 1000000;
    assert_int_equal(pull_now(fx, 0, &message)->status, -DL_E_CRC_DATA);
    message.wanted.len = 12;
    assert_int_equal(pull_now(fx, 0, &message)->status, -DL_E_MESSAGE_MALFORMED);
    message.wanted.len = 0;
    message.window_sectors = 4097;
    assert_int_equal(pull_now(fx, 0, &message)->status, -DL_E_MESSAGE_MALFORMED);
    message.window_sectors = 2;
    message.first_sector = (1u << 18) - 1;
    assert_int_equal(pull_now(fx, 0, &message)->status, -DL_E_RANGE);
    fixture_destroy(fx);
}

/* Clients don't pull, chunkservers don't write. */
static void
test_roles(void **state)
{
    struct fixture *fx = fixture_create(1);
    struct asker *client = asker_up(fx, 0, true);
    struct asker *puller = asker_up(fx, 0, false);
    Dl__Pull message = pull_message(0, 1);

    (void)state;
    asker_send(fx, client, frame_out_create_message(OP_PULL, 0, ++fx->next_id, 0, &message.base));
    assert_int_equal(wait_answer(fx, fx->next_id)->status, -DL_E_ROLE_WRONG);
    fx->askers[0].link = puller->link;
    assert_int_equal(write_now(fx, 0, 1, 0, 1, 1, 0, 0), -DL_E_ROLE_WRONG);
    assert_int_equal(read_now(fx, 0, 1), -DL_E_ROLE_WRONG);
    fx->askers[0].link = client->link;
    fixture_destroy(fx);
}

/* More PULLs than there are operations: those who pull wait, clients don't. */
static void
test_pulls_are_bounded(void **state)
{
    enum { PULLS = 300 };
    struct fixture *fx = fixture_create(1);
    struct asker *asker;
    static uint64_t ids[PULLS];

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        write_all(fx, 1, i + 1, i * 25, 25, 0);
    asker = asker_up(fx, 0, false);
    for (uint32_t i = 0; i < PULLS; i++) {
        Dl__Pull message = pull_message(0, 1);

        asker_send(fx, asker,
                   frame_out_create_message(OP_PULL, 0, ++fx->next_id, 0, &message.base));
        ids[i] = fx->next_id;
    }
    for (uint32_t i = 0; i < 20; i++) {
        assert_int_equal(read_now(fx, 0, 1), 0);
        assert_true(fx->servers[0].core->pulls_as_source <= PULLS_MAX);
        assert_false(fx->servers[0].core->starved);
    }
    for (uint32_t i = 0; i < PULLS; i++)
        assert_int_equal(wait_answer(fx, ids[i])->status, 0);
    assert_int_equal(fx->servers[0].core->pulls_as_source, 0);
    assert_int_equal(stats_of(&fx->servers[0]).operations_in_use, 0);
    fixture_destroy(fx);
}

/* --- recoveries --- */

/* Data, zeroes would be alike, and holes, in both windows. */
static void
fill(struct fixture *fx, uint32_t slots)
{
    for (uint32_t i = 0; i < 20; i++)
        write_all(fx, slots, i + 1, i * 290, i % 4 == 0 ? 256 : 3, i);
}

/* A new slot gets all of it, while the owner writes; then it is promoted and reads the same. */
static void
test_whole_segment(void **state)
{
    struct fixture *fx = fixture_create(1);
    uint64_t ids[40][2];

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    tell_attempt(fx, 2, 5, 5, 3);
    for (uint32_t i = 0; i < 40; i++) {
        ids[i][0] = send_write(fx, 0, 100 + i, i * 140, 5, 5, 0, 20);
        (void)send_write(fx, 1, 100 + i, i * 140, 5, 5, 0, 20);
        ids[i][1] = send_write(fx, 2, 100 + i, i * 140, 5, 5, 5, 20);
        run_for(fx, SIM_MS);
    }
    for (uint32_t i = 0; i < 40; i++)
        for (uint32_t k = 0; k < 2; k++)
            assert_int_equal(wait_answer(fx, ids[i][k])->status, 0);
    wait_reported(fx, 2, 5);
    assert_int_equal(fx->reports[fx->report_count - 1].lease_epoch, 1);
    assert_int_equal(fx->reports[fx->report_count - 1].cursor, SECTORS);
    assert_int_equal(chunk_of(fx, 2)->stable_version, 0);
    assert_true(chunk_of(fx, 2)->reported_version >= VERSION(19));
    assert_int_equal(read_now(fx, 2, 5), -DL_E_NOT_IN_SYNC);
    tell_in_sync(fx, 2, 6);
    assert_int_equal(chunk_of(fx, 2)->stable_version, VERSION(20));
    assert_int_equal(chunk_of(fx, 2)->pending_count, 40);
    assert_int_equal(read_now(fx, 2, 6), 0);
    assert_same(fx, 0, 2);
    assert_int_equal(stats_of(&fx->servers[2]).recoveries_running, 0);
    run_for(fx, 20 * SIM_S);
    assert_true(list_is_empty(&fx->servers[2].core->peers)); /* nobody needs them any more */
    fixture_destroy(fx);
}

/* What is above S here, or there, moves; no more. */
static void
test_only_what_is_missing(void **state)
{
    struct fixture *fx = fixture_create(1);

    (void)state;
    fill(fx, 7);
    assert_int_equal(stable_now(fx, 2, 20, 1, 0), 0);
    write_all(fx, 4, 31, 10, 2, 0); /* never got to the others: void */
    write_all(fx, 3, 32, 5000, 7, 0);
    tell_in_sync(fx, 0, 5);
    tell_attempt(fx, 2, 5, 1, 1);
    wait_reported(fx, 2, 5);
    assert_int_equal(stats_of(&fx->servers[2]).recovery_bytes, 9 * 4096);
    tell_in_sync(fx, 2, 6);
    assert_same(fx, 0, 2);
    /* The source's S was 19 when it was asked: what is above is pending here as there. */
    assert_int_equal(chunk_of(fx, 2)->pending_count, 1);
    assert_int_equal(chunk_of(fx, 2)->pending[0].version, VERSION(32));
    fixture_destroy(fx);
}

/* Neither a source that has not been told, nor one that is gone, nor one with bad sectors ends it. */
static void
test_sources_fail(void **state)
{
    struct fixture *fx = fixture_create(3);

    (void)state;
    fill(fx, 3);
    server_crash(&fx->servers[0]);
    tell_attempt(fx, 2, 5, 5, 3);
    run_for(fx, 5 * SIM_S);
    assert_false(is_reported(fx, 2, 5));
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, 0);
    fx->servers[1].disk.profile.read_flips_per_million = 1000000;
    tell_in_sync(fx, 1, 5);
    run_for(fx, 5 * SIM_S);
    assert_false(is_reported(fx, 2, 5));
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, 0);
    server_up(&fx->servers[0]);
    tell_in_sync(fx, 0, 5);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* A source that recovers itself is no source (rule 13), and one that hangs is not waited for. */
static void
test_sources_recover_or_hang(void **state)
{
    struct fixture *fx = fixture_create(4);

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 0, 5);
    tell_attempt(fx, 1, 5, 1, 0);
    sim_process_pause(&fx->servers[0].process, 30 * SIM_S);
    tell_attempt(fx, 2, 5, 5, 3);
    run_for(fx, 20 * SIM_S);
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, 0);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* Rule 11: after a restart nothing goes on, until the metadata service names an attempt. */
static void
test_restart_of_the_target(void **state)
{
    struct fixture *fx = fixture_create(5);
    uint32_t cursor;

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 0, 5);
    tell_attempt(fx, 2, 5, 5, 1);
    while (chunk_of(fx, 2)->cursor_sectors == 0)
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
    cursor = chunk_of(fx, 2)->cursor_sectors;
    server_crash(&fx->servers[2]);
    server_up(&fx->servers[2]);
    wait_registered(fx);
    run_for(fx, 5 * SIM_S);
    assert_true(chunk_of(fx, 2)->cursor_sectors - cursor <= STORE_WINDOW_SECTORS_MAX);
    cursor = chunk_of(fx, 2)->cursor_sectors;
    assert_true(cursor < SECTORS);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, cursor);
    assert_int_equal(chunk_of(fx, 2)->attempt, 5);
    tell_in_sync(fx, 0, 7);
    tell_attempt(fx, 2, 7, 5, 1);
    assert_int_equal(read_now(fx, 0, 7), 0);
    wait_reported(fx, 2, 7);
    tell_in_sync(fx, 2, 8);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* Whole, and cut off before it was promoted: the same attempt is reported again after the restart. */
static void
test_restart_when_whole(void **state)
{
    struct fixture *fx = fixture_create(6);

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 0, 5);
    tell_attempt(fx, 2, 5, 5, 1);
    wait_reported(fx, 2, 5);
    server_crash(&fx->servers[2]);
    server_up(&fx->servers[2]);
    fx->report_count = 0;
    wait_registered(fx);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(fx->report_count, 0);
    tell_attempt(fx, 2, 5, 5, 1);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_int_equal(chunk_of(fx, 2)->stable_version, VERSION(19));
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* The report is repeated until it is answered, and on the next connection; then the slot is told. */
static void
test_reports_are_repeated(void **state)
{
    struct fixture *fx = fixture_create(7);
    uint32_t count;

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 0, 5);
    fx->hold_reports = true;
    tell_attempt(fx, 2, 5, 5, 1);
    wait_reported(fx, 2, 5);
    count = fx->report_count;
    sim_process_kill(&fx->meta, false);
    for (uint32_t i = 0; i < SERVERS; i++)
        fx->servers[i].meta = NULL;
    run_for(fx, SIM_S);
    sim_process_start(&fx->meta);
    sim_process_listen(&fx->meta, &meta_events, fx);
    wait_registered(fx);
    run_for(fx, 500 * SIM_MS);
    assert_int_equal(fx->report_count, count + 1);
    run_for(fx, 12 * SIM_S);
    assert_true(fx->report_count >= count + 3);
    fx->report_count = 0;
    tell_in_sync(fx, 2, 6);
    run_for(fx, 20 * SIM_S);
    assert_int_equal(fx->report_count, 0);
    fixture_destroy(fx);
}

/* A new attempt in the middle: the old one's answers are nobody's, and nothing is lost. */
static void
test_new_attempt_in_the_middle(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 25; seed++) {
        struct fixture *fx = fixture_create(seed);

        fill(fx, 3);
        tell_in_sync(fx, 0, 5);
        tell_attempt(fx, 2, 5, 5, 1);
        run_for(fx, seed * 300 * SIM_US);
        tell_in_sync(fx, 0, 7);
        tell_attempt(fx, 2, 7, 5, 1);
        wait_reported(fx, 2, 7);
        tell_in_sync(fx, 2, 8);
        assert_same(fx, 0, 2);
        assert_int_equal(stats_of(&fx->servers[2]).recoveries_running, 0);
        fixture_destroy(fx);
    }
}

/* Foreground first: while a client is at it one PULL is under way, as source and as target. */
static void
test_foreground_first(void **state)
{
    struct fixture *fx = fixture_create(9);
    uint32_t both = 0;

    (void)state;
    fill(fx, 1);
    tell_in_sync(fx, 0, 5);
    (void)asker_up(fx, 2, true);
    fx->servers[0].disk.profile.read_ns_min = fx->servers[0].disk.profile.read_ns_max = 2 * SIM_MS;
    for (uint32_t i = 0; i < 4; i++) { /* four slots that recover at the same time */
        Dl__SlotTell message = in_sync_message(2, 5);
        Dl__ServerAddress address = DL__SERVER_ADDRESS__INIT;
        Dl__Peer peer = DL__PEER__INIT;
        Dl__Peer *pointer = &peer;

        address.uuid = (ProtobufCBinaryData){16, fx->servers[0].uuid};
        address.address = (char *)(uintptr_t) "server0:1";
        peer.server = &address;
        message.peers = &pointer;
        message.n_peers = 1;
        message.slot = 2 + i;
        message.state = DL__SLOT_STATE__SLOT_RECOVERING;
        message.attempt = message.incarnation = 5;
        message.segment_sectors = SECTORS;
        assert_int_equal(wait_answer(fx, send_meta(fx, 2, OP_SLOT_TELL, &message.base))->status, 0);
    }
    for (uint32_t i = 0; i < 400; i++) {
        bool busy = i < 50;

        if (busy) {
            (void)send_read(fx, 0, 0, 1, 5);
            (void)send_read(fx, 2, 0, 1, 5);
        }
        run_for(fx, 200 * SIM_US);
        if (busy && i > 15) {
            assert_true(fx->servers[0].core->pulls_as_source <= 1);
            assert_true(fx->servers[2].core->pulls_as_target <= 1);
        }
        both += fx->servers[2].core->pulls_as_target > 1;
    }
    assert_true(both > 0);
    run_for(fx, 5 * SIM_S);
    for (uint32_t i = 0; i < 4; i++)
        assert_true(is_reported(fx, 2 + i, 5));
    fixture_destroy(fx);
}

static void
on_stopped(void *context, int err)
{
    struct server *server = context;

    assert_int_equal(err, 0);
    server->stopped = true;
}

/* A stop at any moment of a recovery ends, on both sides. */
static void
test_stop_in_the_middle(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct fixture *fx = fixture_create(seed);
        struct server *server = &fx->servers[seed % 2 == 0 ? 0 : 2];
        struct sim_process *before;

        fill(fx, 1);
        tell_in_sync(fx, 0, 5);
        (void)send_attempt(fx, 2, 5, 5, 5, 1);
        run_for(fx, seed * 500 * SIM_US);
        before = sim_enter(&server->process);
        chunkserver_core_stop(server->core, on_stopped, server);
        sim_leave(&server->process, before);
        run_for(fx, 8 * SIM_S);
        assert_true(server->stopped);
        assert_int_equal(stats_of(server).operations_in_use, 0);
        sim_process_kill(&server->process, false);
        chunkserver_core_destroy(server->core);
        model_store_destroy(server->store);
        server->core = NULL;
        fixture_destroy(fx);
    }
}

/*
 * Everything at once: the owner writes, source and target die and come back, attempts follow each
 * other.  What the promoted slot has is what the source has.
 */
static void
test_histories(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct fixture *fx = fixture_create(seed);
        uint32_t epoch = 1, sequence = 20;
        struct fake_rng rng;
        uint64_t ids[3];

        fake_rng_init(&rng, seed);
        fill(fx, seed % 2 == 0 ? 3 : 7);
        for (uint32_t round = 0; round < 4; round++) {
            epoch += 2;
            tell_in_sync(fx, 0, epoch);
            tell_in_sync(fx, 1, epoch);
            tell_attempt(fx, 2, epoch, seed % 2 == 0 ? 3 : 1, 3);
            for (uint64_t i = fake_rng_below(&rng, 12); i > 0; i--) {
                uint32_t length = fake_rng_percent(&rng, 30) ? 100 : 3;
                uint32_t offset = (uint32_t)fake_rng_below(&rng, SECTORS - length);

                sequence++;
                for (uint32_t slot = 0; slot < SERVERS; slot++)
                    ids[slot] = send_write(fx, slot, sequence, offset, length, epoch,
                                           slot == 2 ? epoch : 0, sequence - 1);
                for (uint32_t slot = 0; slot < SERVERS; slot++)
                    assert_int_equal(wait_answer(fx, ids[slot])->status, 0);
            }
            run_for(fx, fake_rng_below(&rng, 20) * SIM_MS);
            if (round == 3)
                break;
            for (uint32_t slot = 0; slot < SERVERS; slot++) {
                if (!fake_rng_percent(&rng, 50))
                    continue;
                server_crash(&fx->servers[slot]);
                run_for(fx, fake_rng_below(&rng, 50) * SIM_MS);
                server_up(&fx->servers[slot]);
            }
            wait_registered(fx);
        }
        wait_reported(fx, 2, epoch);
        tell_in_sync(fx, 2, epoch + 1);
        assert_same(fx, 0, 2);
        assert_same(fx, 1, 2);
        fixture_destroy(fx);
    }
}

/*
 * Source or target dies at any moment from the SLOT_TELL on, with a write of the owner under way,
 * that is sent again under the next attempt (rule 4).
 */
static void
test_crash_at_any_moment(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 80; seed++) {
        struct fixture *fx = fixture_create(seed + 1);
        struct server *victim = &fx->servers[seed % 2 == 0 ? 2 : 0];

        fill(fx, seed % 4 < 2 ? 3 : 7);
        write_all(fx, 4, 60, 900, 40, 0); /* nobody else has it */
        tell_in_sync(fx, 0, 5);
        tell_in_sync(fx, 1, 5);
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            (void)asker_up(fx, slot, true);
        (void)send_attempt(fx, 2, 5, 5, 1, 3);
        run_for(fx, seed * 100 * SIM_US);
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            (void)send_write(fx, slot, 70, 500, 60, 5, slot == 2 ? 5 : 0, 19);
        run_for(fx, seed * 30 * SIM_US);
        server_crash(victim);
        run_for(fx, 20 * SIM_MS);
        server_up(victim);
        wait_registered(fx);
        tell_in_sync(fx, 0, 7);
        tell_in_sync(fx, 1, 7);
        tell_attempt(fx, 2, 7, 1, 3);
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            assert_int_equal(write_now(fx, slot, 70, 500, 60, 7, slot == 2 ? 7 : 0, 19), 0);
        wait_reported(fx, 2, 7);
        tell_in_sync(fx, 2, 8);
        assert_same(fx, 0, 2);
        assert_same(fx, 1, 2);
        assert_true(sector_of(fx, 2, 500).version == VERSION(70));
        assert_true(sector_of(fx, 2, 910).version < VERSION(60));
        fixture_destroy(fx);
    }
}

/* --- bad sectors --- */

static int
repair_now(struct fixture *fx, uint32_t slot, uint32_t first, uint32_t count)
{
    struct asker *asker = asker_up(fx, slot, true);
    Dl__Repair message = DL__REPAIR__INIT;

    message.volume = VOLUME;
    message.segment = SEGMENT;
    message.slot = slot;
    message.first_sector = first;
    message.sector_count = count;
    asker_send(fx, asker, frame_out_create_message(OP_REPAIR, 0, ++fx->next_id, 0, &message.base));
    return wait_answer(fx, fx->next_id)->status;
}

static void
damage(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    assert_non_null(sector_of(fx, slot, sector).data);
    sector_of(fx, slot, sector).data[100] ^= 0x40;
}

/* What is bad is repaired from a slot that has this very version; what is fine is left alone. */
static void
test_repair(void **state)
{
    struct fixture *fx = fixture_create(11);

    (void)state;
    fx->in_sync = 7;
    fill(fx, 7);
    damage(fx, 2, 3);
    damage(fx, 2, 5);
    damage(fx, 0, 5); /* the first source has it bad as well */
    assert_int_equal(repair_now(fx, 2, 0, 8), 0);
    assert_int_equal(repair_now(fx, 2, 0, 8), 0); /* told twice */
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_bad, 2);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 2);
    assert_same(fx, 1, 2);
    assert_int_equal(fx->servers[2].disk.counters.sectors_merged, 2);
    assert_int_equal(repair_now(fx, 2, 0, 0), -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(repair_now(fx, 2, 1u << 18, 1), -DL_E_RANGE);
    fixture_destroy(fx);
}

/* Rule 23: another version is no repair; neither is what an ejected slot has. */
static void
test_repair_of_another_version(void **state)
{
    struct fixture *fx = fixture_create(12);

    (void)state;
    fx->in_sync = 7;
    fill(fx, 7);
    write_all(fx, 3, 50, 3, 1, 0);
    damage(fx, 2, 3);
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).repairs_failed, 1);
    assert_int_equal(sector_of(fx, 2, 3).version, VERSION(1));
    write_all(fx, 4, 50, 3, 1, 0);
    damage(fx, 2, 3);
    fx->in_sync = 4;
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).repairs_failed, 2);
    fx->in_sync = 6;
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 1);
    assert_same(fx, 1, 2);
    fixture_destroy(fx);
}

/* A damaged leaf of an in-sync slot takes what cannot be older than what was lost, holes too. */
static void
test_repair_of_a_lost_leaf(void **state)
{
    struct fixture *fx = fixture_create(14);

    (void)state;
    fx->in_sync = 7;
    fill(fx, 7);
    model_disk_damage_leaf(&fx->servers[2].disk, chunk_of(fx, 2), 4); /* data, then holes */
    assert_int_equal(read_now(fx, 2, 1), 0);
    assert_int_equal(wait_answer(fx, send_read(fx, 2, 256, 1, 1))->status, -DL_E_INDEX_CORRUPT);
    assert_int_equal(repair_now(fx, 2, 256, 64), 0);
    run_for(fx, 10 * SIM_S);
    /* S is 19 everywhere, and it may have had 20. */
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 0);
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        assert_int_equal(stable_now(fx, slot, 20, 1, 0), 0);
    assert_int_equal(repair_now(fx, 2, 256, 64), 0);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 64);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* A slot with a damaged leaf is not whole before a source has said an S that covers what was lost. */
static void
test_recovery_of_a_lost_leaf(void **state)
{
    struct fixture *fx = fixture_create(15);

    (void)state;
    fill(fx, 7);
    tell_in_sync(fx, 0, 5);
    model_disk_damage_leaf(&fx->servers[2].disk, chunk_of(fx, 2), 4);
    tell_attempt(fx, 2, 5, 1, 1);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, SECTORS);
    assert_false(is_reported(fx, 2, 5));
    assert_int_equal(stable_now(fx, 0, 20, 5, 0), 0);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* Neither a metadata service that does not answer nor a source that is away holds it up for good. */
static void
test_repair_waits(void **state)
{
    struct fixture *fx = fixture_create(13);
    struct server *server = &fx->servers[2];

    (void)state;
    fx->in_sync = 5;
    fx->hold_maps = true;
    fill(fx, 7);
    damage(fx, 2, 3);
    server_crash(&fx->servers[0]);
    assert_int_equal(repair_now(fx, 2, 0, 8), 0);
    run_for(fx, 7 * SIM_S);
    assert_true(fx->maps > 1);
    fx->hold_maps = false;
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(server).repairs_failed, 1);
    assert_int_equal(repair_now(fx, 2, 0, 8), 0);
    run_for(fx, SIM_S);
    server_up(&fx->servers[0]);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(server).sectors_repaired, 1);
    assert_int_equal(stats_of(server).repairs_failed, 1);
    fixture_destroy(fx);
}

/* Complaints are bounded, and a stop at any moment of a repair ends. */
static void
test_stop_in_a_repair(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct fixture *fx = fixture_create(seed);
        struct server *server = &fx->servers[2];
        struct sim_process *before;
        uint32_t busy = 0;

        fx->in_sync = 7;
        fx->hold_maps = seed == 1;
        fill(fx, 7);
        damage(fx, 2, 3);
        (void)asker_up(fx, 2, true);
        assert_int_equal(repair_now(fx, 2, 3, 1), 0);
        for (uint32_t i = 1; i < 80 && seed == 1; i++)
            busy += repair_now(fx, 2, i * 20, 17) == -DL_E_BUSY;
        assert_true((busy > 0) == (seed == 1));
        run_for(fx, seed * 100 * SIM_US);
        before = sim_enter(&server->process);
        chunkserver_core_stop(server->core, on_stopped, server);
        sim_leave(&server->process, before);
        run_for(fx, 8 * SIM_S);
        assert_true(server->stopped);
        sim_process_kill(&server->process, false);
        chunkserver_core_destroy(server->core);
        model_store_destroy(server->store);
        server->core = NULL;
        fixture_destroy(fx);
    }
}

#define TEST(name) cmocka_unit_test(name)

UNIT_MAIN(TEST(test_recovering_slot_answers), TEST(test_promotion_by_write),
          TEST(test_attempt_about_to_begin), TEST(test_read_of_a_replaced_chunk),
          TEST(test_told_twice), TEST(test_deleted_while_it_begins), TEST(test_bad_slot_tells),
          TEST(test_pending), TEST(test_source_needs_the_epoch),
          TEST(test_source_waits_for_slow_writes), TEST(test_what_a_source_gives), TEST(test_roles),
          TEST(test_pulls_are_bounded), TEST(test_whole_segment), TEST(test_only_what_is_missing),
          TEST(test_sources_fail), TEST(test_sources_recover_or_hang),
          TEST(test_restart_of_the_target), TEST(test_restart_when_whole),
          TEST(test_reports_are_repeated), TEST(test_new_attempt_in_the_middle),
          TEST(test_foreground_first), TEST(test_stop_in_the_middle), TEST(test_histories),
          TEST(test_repair), TEST(test_repair_of_another_version), TEST(test_repair_waits),
          TEST(test_stop_in_a_repair), TEST(test_crash_at_any_moment),
          TEST(test_repair_of_a_lost_leaf), TEST(test_recovery_of_a_lost_leaf))
