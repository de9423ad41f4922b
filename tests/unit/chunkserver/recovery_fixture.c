/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/chunkserver/recovery_fixture.h"

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
        reply.scrub = &fx->servers[i].scrub;
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
    fx->config_epoch += fx->maps == fx->map_changes_at;
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
        addresses[i].state = (fx->down >> i & 1) != 0 ? DL__SERVER_STATE__SERVER_DOWN
                                                      : DL__SERVER_STATE__SERVER_UP;
        address_pointers[i] = &addresses[i];
    }
    segment.index = SEGMENT;
    segment.config_epoch = fx->config_epoch;
    segment.n_slots = SERVERS;
    segment.slots = slot_pointers;
    reply.segment_sectors = SECTORS;
    reply.n_segments = 1;
    reply.segments = &segment_pointer;
    reply.n_servers = SERVERS;
    reply.servers = address_pointers;
    meta_send(fx, link,
              frame_out_create_message(OP_MAP_GET, FRAME_REPLY, frame->request_id, 0, &reply.base));
}

static void
meta_on_heartbeat(struct fixture *fx, struct link *link, const struct frame *frame)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__server_heartbeat__descriptor);
    const Dl__ServerHeartbeat *heartbeat = (const void *)message;
    struct server *server = link->user;

    (void)fx;
    assert_non_null(message);
    dl__scrub_position__init(&server->scrub);
    server->scrub.volume = heartbeat->scrub->volume;
    server->scrub.segment = heartbeat->scrub->segment;
    server->scrub.slot = heartbeat->scrub->slot;
    server->scrub.completed_ms = heartbeat->scrub->completed_ms;
    server->scrub_counts.sectors = heartbeat->scrub_counts->sectors;
    server->scrub_counts.bad = heartbeat->scrub_counts->bad;
    server->scrub_counts.repaired = heartbeat->scrub_counts->repaired;
    server->scrub_counts.left_bad = heartbeat->scrub_counts->left_bad;
    server->scrub_counts.mismatches = heartbeat->scrub_counts->mismatches;
    dl__bad_volume__init(&server->bad_volume);
    assert_in_range(heartbeat->n_bad_volumes, 0, 1);
    if (heartbeat->n_bad_volumes == 1) {
        server->bad_volume.volume = heartbeat->bad_volumes[0]->volume;
        server->bad_volume.bad = heartbeat->bad_volumes[0]->bad;
        server->bad_volume.lost = heartbeat->bad_volumes[0]->lost;
        server->bad_volume.segment = heartbeat->bad_volumes[0]->segment;
        server->bad_volume.sector = heartbeat->bad_volumes[0]->sector;
    }
    protobuf_c_message_free_unpacked(message, NULL);
}

static void
meta_on_bad_sectors(struct fixture *fx, struct link *link, const struct frame *frame)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__bad_sectors__descriptor);
    const Dl__BadSectors *bad = (const void *)message;

    assert_non_null(message);
    assert_true(bad->n_findings > 0);
    assert_true(bad->n_findings <= 16);
    fx->bad_messages++;
    for (size_t i = 0; i < bad->n_findings && !fx->hold_findings; i++) {
        const Dl__BadSectorFinding *finding = bad->findings[i];

        assert_true(finding->segments > 0);
        assert_true(finding->bad == 0 || finding->mismatches == 0);
        fx->bad_told += finding->bad;
        fx->repaired_told += finding->repaired;
        fx->mismatches_told += finding->mismatches;
        fx->finding_key = (struct chunk_key){finding->volume, finding->segment, finding->slot};
        fx->finding_sector = finding->first_sector;
        fx->finding_slot = finding->other_slot;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    if (!fx->hold_findings)
        meta_send(
            fx, link,
            frame_out_create_message(OP_BAD_SECTORS, FRAME_REPLY, frame->request_id, 0, NULL));
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
    else if (frame->opcode == OP_SERVER_HEARTBEAT)
        meta_on_heartbeat(fx, link, frame);
    else if (frame->opcode == OP_BAD_SECTORS)
        meta_on_bad_sectors(fx, link, frame);
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

/* --- the model of the store --- */

static void
model_init(struct server *server, uint64_t seed)
{
    model_disk_init(&server->disk, seed);
}

static void
model_open(struct server *server)
{
    server->store = model_store_open(&server->disk, &server->process.env);
}

static void
model_crash(struct server *server)
{
    model_store_crash(server->store);
}

static void
model_close(struct server *server)
{
    model_store_destroy(server->store);
}

static void
model_fini(struct server *server)
{
    model_disk_fini(&server->disk);
}

const struct backing model_backing = {
    .init = model_init,
    .open = model_open,
    .crash = model_crash,
    .close = model_close,
    .fini = model_fini,
};

/* --- the fixture --- */

void
run_for(struct fixture *fx, uint64_t duration_ns)
{
    uint64_t end_ns = fx->world.now_ns + duration_ns;

    while (sim_world_step(&fx->world, end_ns))
        ;
}

void
server_up(struct server *server)
{
    struct chunkserver_options options = {
        .metas = {{.host = "meta", .port = 1}},
        .meta_count = 1,
        .start_count = ++server->starts,
        .operations_max = 64,
        .write_buffer_bytes = (size_t)4 << 20,
        .read_buffer_bytes = (size_t)4 << 20,
        .scrub_period_ns = server->scrub_period_ns,
    };
    struct sim_process *before;
    char advertise[32];

    (void)snprintf(advertise, sizeof(advertise), "%s:1", server->name);
    options.advertise = advertise;
    memcpy(options.cluster_id, cluster_id, 16);
    memcpy(options.server_uuid, server->uuid, 16);
    sim_process_start(&server->process);
    before = sim_enter(&server->process);
    server->backing->open(server);
    assert_int_equal(
        chunkserver_core_create(&server->core, &server->process.env, server->store, &options), 0);
    sim_process_listen(&server->process, chunkserver_core_events(), server->core);
    sim_leave(&server->process, before);
}

void
server_crash(struct server *server)
{
    sim_process_kill(&server->process, true);
    server->backing->crash(server);
    chunkserver_core_destroy(server->core);
    server->core = NULL;
}

struct chunkserver_core_stats
stats_of(const struct server *server)
{
    struct chunkserver_core_stats stats;

    chunkserver_core_get_stats(server->core, &stats);
    return stats;
}

void
wait_registered(struct fixture *fx)
{
    for (uint32_t i = 0; i < SERVERS; i++)
        for (uint32_t k = 0; k < 200 && fx->servers[i].core != NULL &&
                             (fx->servers[i].meta == NULL || !stats_of(&fx->servers[i]).registered);
             k++)
            run_for(fx, 100 * SIM_MS);
}

void
meta_restart(struct fixture *fx)
{
    sim_process_kill(&fx->meta, false);
    for (uint32_t i = 0; i < SERVERS; i++)
        fx->servers[i].meta = NULL;
    run_for(fx, SIM_S);
    sim_process_start(&fx->meta);
    sim_process_listen(&fx->meta, &meta_events, fx);
}

struct fixture *
fixture_create_on(uint64_t seed, const struct backing *backing)
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
        server->backing = backing;
        dl__scrub_position__init(&server->scrub);
        dl__scrub_counts__init(&server->scrub_counts);
        backing->init(server, seed * 10 + i);
        server_up(server);
    }
    fx->config_epoch = 1;
    wait_registered(fx);
    return fx;
}

struct fixture *
fixture_create(uint64_t seed)
{
    return fixture_create_on(seed, &model_backing);
}

void
fixture_destroy(struct fixture *fx)
{
    for (uint32_t i = 0; i < SERVERS; i++) {
        if (fx->servers[i].core != NULL)
            server_crash(&fx->servers[i]);
        fx->servers[i].backing->fini(&fx->servers[i]);
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

struct answer *
find_answer(struct fixture *fx, uint64_t id)
{
    for (uint32_t i = fx->answer_count; i > 0; i--)
        if (fx->answers[i - 1].id == id)
            return &fx->answers[i - 1];
    return NULL;
}

struct answer *
wait_answer(struct fixture *fx, uint64_t id)
{
    uint64_t end_ns = fx->world.now_ns + 20 * SIM_S;

    while (find_answer(fx, id) == NULL)
        if (!sim_world_step(&fx->world, end_ns))
            fail_msg("no answer to request %lu", id);
    return find_answer(fx, id);
}

/* --- the owner, and one who pulls by hand --- */

void
asker_send(struct fixture *fx, struct asker *asker, struct frame_out *frame)
{
    struct sim_process *before = sim_enter(&fx->owner);

    assert_non_null(frame);
    link_send(asker->link, frame);
    sim_leave(&fx->owner, before);
}

struct asker *
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
uint64_t
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

int
write_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset, uint32_t length,
          uint32_t config_epoch, uint32_t attempt, uint64_t stable)
{
    uint64_t id = send_write(fx, slot, sequence, offset, length, config_epoch, attempt, stable);

    return wait_answer(fx, id)->status;
}

/* To these slots, under the first config epoch. */
void
write_all(struct fixture *fx, uint32_t slots, uint64_t sequence, uint32_t offset, uint32_t length,
          uint64_t stable)
{
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        if ((slots >> slot & 1) != 0)
            assert_int_equal(
                write_now(fx, slot, sequence, offset, length, fx->config_epoch, 0, stable), 0);
}

int
zero_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t offset, uint32_t length,
         uint32_t config_epoch)
{
    struct asker *asker = asker_up(fx, slot, true);
    struct out *out = out_create(0);
    struct data_write write = {
        .target = target_of(slot, offset, length, config_epoch),
        .version = VERSION(sequence),
        .snapshot_seq = 1,
        .slot_mask = 7,
    };

    write.target.flags = WRITE_ZERO;
    frame_out_write(&out->frame, ++fx->next_id, &write, NULL, NULL, 0);
    asker_send(fx, asker, &out->frame);
    return wait_answer(fx, fx->next_id)->status;
}

uint64_t
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

int
read_now(struct fixture *fx, uint32_t slot, uint32_t config_epoch)
{
    return wait_answer(fx, send_read(fx, slot, 0, 1, config_epoch))->status;
}

static int
stable_with(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t config_epoch,
            uint32_t attempt, uint8_t flags)
{
    struct asker *asker = asker_up(fx, slot, true);
    struct out *out = out_create(0);
    struct data_stable stable = {
        .target = target_of(slot, 0, 0, config_epoch),
        .stable_version = VERSION(sequence),
        .attempt = attempt,
    };

    stable.target.flags = flags;
    frame_out_stable(&out->frame, ++fx->next_id, &stable);
    asker_send(fx, asker, &out->frame);
    return wait_answer(fx, fx->next_id)->status;
}

int
stable_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t config_epoch,
           uint32_t attempt)
{
    return stable_with(fx, slot, sequence, config_epoch, attempt, 0);
}

int
forget_now(struct fixture *fx, uint32_t slot, uint64_t sequence, uint32_t config_epoch)
{
    return stable_with(fx, slot, sequence, config_epoch, 0, STABLE_FORGET);
}

struct answer *
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

Dl__Pull
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

struct answer *
pull_now(struct fixture *fx, uint32_t server_idx, const Dl__Pull *message)
{
    struct asker *asker = asker_up(fx, server_idx, false);

    asker_send(fx, asker, frame_out_create_message(OP_PULL, 0, ++fx->next_id, 0, &message->base));
    return wait_answer(fx, fx->next_id);
}

int
pull_status(struct fixture *fx, uint32_t server_idx, uint32_t config_epoch)
{
    Dl__Pull message = pull_message(server_idx, config_epoch);

    return pull_now(fx, server_idx, &message)->status;
}

/* --- the metadata service --- */

Dl__SlotTell
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

uint64_t
send_meta(struct fixture *fx, uint32_t server_idx, uint16_t opcode, const ProtobufCMessage *message)
{
    wait_registered(fx);
    assert_non_null(fx->servers[server_idx].meta);
    meta_send(fx, fx->servers[server_idx].meta,
              frame_out_create_message(opcode, 0, ++fx->next_id, 0, message));
    return fx->next_id;
}

uint64_t
send_in_sync(struct fixture *fx, uint32_t slot, uint32_t config_epoch)
{
    Dl__SlotTell message = in_sync_message(slot, config_epoch);

    return send_meta(fx, slot, OP_SLOT_TELL, &message.base);
}

void
tell_in_sync(struct fixture *fx, uint32_t slot, uint32_t config_epoch)
{
    assert_int_equal(wait_answer(fx, send_in_sync(fx, slot, config_epoch))->status, 0);
}

/* sources: a bit for each slot to pull from. */
uint64_t
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

void
tell_attempt(struct fixture *fx, uint32_t slot, uint32_t attempt, uint32_t incarnation,
             uint32_t sources)
{
    uint64_t id = send_attempt(fx, slot, attempt, attempt, incarnation, sources);

    assert_int_equal(wait_answer(fx, id)->status, 0);
}

Dl__FenceReply *
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

bool
is_reported(const struct fixture *fx, uint32_t slot, uint32_t attempt)
{
    for (uint32_t i = 0; i < fx->report_count; i++)
        if (fx->reports[i].slot == slot && fx->reports[i].attempt == attempt && fx->reports[i].done)
            return true;
    return false;
}

void
wait_reported(struct fixture *fx, uint32_t slot, uint32_t attempt)
{
    uint64_t end_ns = fx->world.now_ns + 120 * SIM_S;

    while (!is_reported(fx, slot, attempt))
        if (!sim_world_step(&fx->world, end_ns))
            fail_msg("attempt %u of slot %u does not end", attempt, slot);
}

struct chunk *
chunk_of(struct fixture *fx, uint32_t slot)
{
    struct chunk_key key = {.volume = VOLUME, .segment = SEGMENT, .slot = slot};

    return chunk_table_find(fx->servers[slot].store->chunks, &key);
}

struct model_sector
sector_of(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    const struct model_chunk *content = chunk_of(fx, slot)->store_private;

    return sector < content->sector_count ? content->sectors[sector] : (struct model_sector){0};
}

void
assert_reads_same(struct fixture *fx, uint32_t a, uint32_t b)
{
    for (uint32_t i = 0; i < SECTORS; i += 250) {
        uint64_t left_id = send_read(fx, a, i, 250, chunk_of(fx, a)->config_epoch);
        uint64_t right_id = send_read(fx, b, i, 250, chunk_of(fx, b)->config_epoch);
        const struct answer *right, *left;

        (void)wait_answer(fx, left_id);
        right = wait_answer(fx, right_id);
        left = find_answer(fx, left_id);
        assert_int_equal(left->status, 0);
        assert_int_equal(right->status, 0);
        assert_int_equal(left->body_bytes, right->body_bytes);
        assert_memory_equal(left->body, right->body, left->body_bytes);
        assert_int_equal(left->payload_bytes, right->payload_bytes);
        if (left->payload_bytes > 0)
            assert_memory_equal(left->payload, right->payload, left->payload_bytes);
    }
}

void
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

/* Data, zeroes would be alike, and holes, in both windows. */
void
fill(struct fixture *fx, uint32_t slots)
{
    for (uint32_t i = 0; i < 20; i++)
        write_all(fx, slots, i + 1, i * 290, i % 4 == 0 ? 256 : 3, i);
}

void
on_stopped(void *context, int err)
{
    struct server *server = context;

    assert_int_equal(err, 0);
    server->stopped = true;
}

static void
assert_stable(struct fixture *fx, uint64_t version, bool confirmed, bool promoted)
{
    const struct chunk *chunk = chunk_of(fx, 2);
    uint64_t stable = chunk->attempt == 0 ? chunk->stable_version : chunk->heard_version;

    if (confirmed)
        assert_int_equal(stable, version);
    if (promoted)
        assert_int_equal(chunk->attempt, 0);
    if (chunk->attempt == 0)
        assert_int_equal(chunk->pending_count, stable == version ? 0 : 1);
}

/* How STABLE was answered. */
static int
stable_around_promotion(uint64_t seed, const struct backing *backing)
{
    struct fixture *fx = fixture_create_on(seed, backing);
    uint64_t tell_id;
    int status;

    write_all(fx, 7, 1, 0, 4, 0);
    tell_in_sync(fx, 0, 5);
    tell_attempt(fx, 2, 5, 1, 1);
    wait_reported(fx, 2, 5);
    for (uint32_t slot = 0; slot < SERVERS; slot += 2)
        assert_int_equal(write_now(fx, slot, 2, 0, 4, 5, slot == 2 ? 5 : 0, 1), 0);
    tell_id = send_in_sync(fx, 2, 6);
    run_for(fx, seed / 2 * 10 * SIM_US);
    status = stable_now(fx, 2, 2, 5, 5);
    if (seed % 2 == 0) {
        assert_int_equal(wait_answer(fx, tell_id)->status, 0);
        assert_stable(fx, VERSION(2), status == 0, true);
    }
    server_crash(&fx->servers[2]);
    server_up(&fx->servers[2]);
    assert_stable(fx, VERSION(2), status == 0, seed % 2 == 0);
    fixture_destroy(fx);
    return status;
}

void
check_stable_around_promotion(const struct backing *backing)
{
    uint32_t confirmed = 0, refused = 0;

    for (uint64_t seed = 0; seed < 120; seed++) {
        int status = stable_around_promotion(seed, backing);

        assert_true(status == 0 || status == -DL_E_EPOCH_OLD || status == -DL_E_NOT_YET);
        confirmed += status == 0;
        refused += status != 0;
    }
    assert_true(confirmed > 2);
    assert_true(refused > 2);
}
