/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random histories of slots: an owner ejects them and is robbed, servers come and go, go back in
 * time, are drained and are out, volumes are deleted, the service dies with commits in flight; the
 * store takes time.  Fake servers remember what they were told, and report.  Checked throughout:
 *
 *   - what is told, and what maps say, is committed; config epochs only grow
 *   - each segment has an in-sync slot, at most one slot per server, at most one incoming one
 *   - who is told to be in-sync was so from the beginning, or has reported the end of his attempt
 *   - nothing is deleted that the map has, or that the owner may read by the map that it has
 *
 * At the end, with everybody there and left alone: all is whole, and nothing is left to delete.
 *
 * DLBLK_TEST_SEED=n replays one history, DLBLK_TEST_LOG=1 shows what the service says.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/meta.pb-c.h"
#include "meta/schema.h"

#define MIB      (1ull << 20)
#define SERVERS  5u
#define SEGMENTS 6u
#define VOLUMES  40u
#define STEPS    300u

#define I DL__SLOT_STATE__SLOT_IN_SYNC
#define R DL__SLOT_STATE__SLOT_RECOVERING

/* What a server knows of its chunk of a segment. */
struct chunk {
    uint32_t config_epoch, attempt, incarnation, lease;
    uint32_t slot;
    bool reported; /* the end of this attempt */
    bool lost;     /* the disk went back, and has begun no attempt since */
    bool whole;    /* it was promoted once, and has begun no attempt since */
};

struct map_entry {
    uint32_t config_epoch;
    uint32_t servers[4]; /* by place; 0: none */
    uint32_t states[4];
};

struct history {
    struct fixture f;
    struct fake_rng rng;
    struct peer *servers[SERVERS];
    uint64_t starts[SERVERS]; /* the most that each had */
    bool there[SERVERS];
    struct chunk chunks[SERVERS][VOLUMES][SEGMENTS];
    struct chunk newest[SERVERS][VOLUMES][SEGMENTS]; /* as before an older copy was tried */
    bool copy[SERVERS];                              /* an older copy, that was not admitted yet */
    uint32_t seen_epoch[VOLUMES][SEGMENTS];          /* the highest of any map or tell */
    struct peer *owner;
    unsigned owner_life;
    uint64_t volume; /* the owner's; 0: none */
    uint32_t lease;
    uint8_t attach;
    struct map_entry map[SEGMENTS]; /* the owner's */
    uint64_t ejected, promoted, deleted, crashes, steals, resets, drains, volumes, refused;
};

/* --- what is committed --- */

static Dl__Meta__SegmentRecord *
record_of(struct history *h, uint64_t volume, uint32_t segment)
{
    struct schema_key key = schema_key_segment(volume, segment);

    for (uint32_t i = 0; i < store_memory_db_count(h->f.db); i++) {
        struct store_item item = store_memory_db_item(h->f.db, i);

        if (store_bytes_compare(item.key, schema_bytes(&key)) == 0)
            return dl__meta__segment_record__unpack(NULL, item.value.length_bytes,
                                                    item.value.bytes);
    }
    return NULL;
}

static void
check_record(const Dl__Meta__SegmentRecord *record)
{
    unsigned in_sync = 0;

    assert_in_range(record->n_slots, 3, 4);
    for (size_t i = 0; i < record->n_slots; i++) {
        in_sync += record->slots[i]->state == I;
        assert_true(record->slots[i]->incarnation <= record->config_epoch);
        for (size_t k = 0; k < i; k++)
            assert_int_not_equal(record->slots[i]->server_id, record->slots[k]->server_id);
    }
    assert_true(in_sync > 0);
    if (record->n_slots == 4)
        assert_true(record->slots[3]->state != I);
}

static void
saw_epoch(struct history *h, uint64_t volume, uint32_t segment, uint32_t epoch)
{
    Dl__Meta__SegmentRecord *record;

    assert_true(volume < VOLUMES && segment < SEGMENTS);
    if (epoch <= h->seen_epoch[volume][segment])
        return;
    record = record_of(h, volume, segment);
    assert_non_null(record);
    assert_true(epoch <= record->config_epoch);
    check_record(record);
    dl__meta__segment_record__free_unpacked(record, NULL);
    h->seen_epoch[volume][segment] = epoch;
}

/* --- what peers get --- */

static void
on_tell(void *context, struct peer *peer, const struct told *told)
{
    struct history *h = context;
    struct chunk *chunk = &h->chunks[peer->server_id - 1][told->volume][told->segment];

    saw_epoch(h, told->volume, told->segment, told->config_epoch);
    if (told->config_epoch < chunk->config_epoch)
        return; /* late: it changes nothing */
    if (told->incarnation > chunk->incarnation)
        *chunk = (struct chunk){.incarnation = told->incarnation, .lost = chunk->lost};
    assert_int_equal(told->incarnation, chunk->incarnation);
    chunk->config_epoch = told->config_epoch;
    chunk->slot = told->slot;
    if (told->state == R) {
        assert_true(told->attempt >= chunk->attempt);
        assert_true(told->attempt <= told->config_epoch);
        assert_true(told->peer_count > 0);
        if (told->attempt > chunk->attempt)
            chunk->reported = false;
        chunk->attempt = told->attempt;
        chunk->whole = chunk->lost = false;
        chunk->lease = told->lease_epoch;
        return;
    }
    assert_false(chunk->lost);
    if (chunk->attempt != 0) {
        assert_true(chunk->reported);
        h->promoted++;
    } else {
        assert_true(chunk->incarnation == 1 || chunk->whole); /* from the beginning, or again */
    }
    chunk->attempt = 0;
    chunk->reported = false;
    chunk->whole = true;
}

static void
on_chunk(void *context, struct peer *peer, const Dl__ChunkRef *deleted)
{
    struct history *h = context;
    struct chunk *chunk = &h->chunks[peer->server_id - 1][deleted->volume][deleted->segment];
    Dl__Meta__SegmentRecord *record = record_of(h, deleted->volume, deleted->segment);
    bool gone = h->volume != deleted->volume;

    h->deleted++;
    for (size_t i = 0; record != NULL && !gone && i < record->n_slots; i++)
        if (record->slots[i]->server_id == peer->server_id)
            assert_true(record->slots[i]->incarnation > deleted->incarnation);
    if (record != NULL)
        dl__meta__segment_record__free_unpacked(record, NULL);
    for (unsigned i = 0; i < 4 && !gone; i++)
        if (h->map[deleted->segment].servers[i] == peer->server_id &&
            h->map[deleted->segment].states[i] == I && chunk->incarnation <= deleted->incarnation)
            assert_int_not_equal(h->map[deleted->segment].servers[i], peer->server_id);
    if (chunk->incarnation <= deleted->incarnation)
        *chunk = (struct chunk){0};
}

static void
take_map(struct history *h, uint64_t volume, Dl__Segment **segments, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const Dl__Segment *segment = segments[i];
        struct map_entry *entry = &h->map[segment->index];

        saw_epoch(h, volume, segment->index, segment->config_epoch);
        if (segment->config_epoch < entry->config_epoch)
            continue;
        *entry = (struct map_entry){.config_epoch = segment->config_epoch};
        for (size_t k = 0; k < segment->n_slots; k++) {
            entry->servers[k] = segment->slots[k]->server_id;
            entry->states[k] = (uint32_t)segment->slots[k]->state;
        }
    }
}

static void
on_map(void *context, struct peer *peer, const Dl__MapChanged *changed)
{
    struct history *h = context;

    if (peer == h->owner && changed->volume == h->volume && changed->lease_epoch == h->lease &&
        !peer->silent_map)
        take_map(h, changed->volume, changed->segments, changed->n_segments);
}

/* --- asking; an answer that does not come in time is left alone --- */

/* NULL: no answer, or an error. */
static ProtobufCMessage *
ask(struct history *h, struct peer *peer, uint16_t opcode, const ProtobufCMessage *message,
    const ProtobufCMessageDescriptor *type)
{
    uint64_t id;
    struct fake_frame *frame = NULL;
    ProtobufCMessage *reply = NULL;

    if (peer == NULL || !peer->connected || peer->link.down)
        return NULL;
    id = peer_send(peer, opcode, message);
    for (unsigned i = 0; i < 5 && frame == NULL; i++) {
        fixture_run(&h->f, 3 * MS);
        frame = peer_take_reply(peer, id);
    }
    if (frame == NULL)
        return NULL;
    if (frame->frame.status == 0)
        reply = fake_frame_unpack(frame, type);
    fake_frame_destroy(frame);
    return reply;
}

static struct peer *
client_connect(struct history *h)
{
    Dl__Hello hello;
    struct peer *peer = fixture_connect(&h->f);
    uint64_t id;

    peer_fill_hello(peer, &hello);
    id = peer_send(peer, OP_HELLO, &hello.base);
    fixture_settle(&h->f);
    fake_frame_destroy(peer_take_reply(peer, id));
    return peer;
}

static void
owner_connects(struct history *h)
{
    if (h->owner != NULL) {
        peer_disconnect(h->owner);
        h->owner->used = false;
    }
    h->owner = client_connect(h);
    h->owner->silent_probe = true;
    h->owner->silent_map = fake_rng_percent(&h->rng, 15);
}

/* The same attach again, or a new one. */
static void
owner_attaches(struct history *h, bool anew)
{
    Dl__Attach message;
    Dl__AttachReply *reply;

    h->attach += anew;
    fill_attach(&message, "v", h->attach);
    message.steal = true;
    message.wait_ms = 1000;
    if (anew) { /* whatever comes is not for it */
        h->lease = 0;
        memset(h->map, 0, sizeof(h->map));
    }
    reply = (Dl__AttachReply *)ask(h, h->owner, OP_ATTACH, &message.base,
                                   &dl__attach_reply__descriptor);
    if (reply == NULL)
        return;
    if (h->volume != reply->volume->id || h->lease != reply->lease_epoch)
        memset(h->map, 0, sizeof(h->map));
    h->volume = reply->volume->id;
    h->lease = reply->lease_epoch;
    take_map(h, h->volume, reply->segments, reply->n_segments);
    dl__attach_reply__free_unpacked(reply, NULL);
}

static void
owner_allocates(struct history *h)
{
    Dl__Allocate message = DL__ALLOCATE__INIT;
    uint32_t segment = (uint32_t)fake_rng_below(&h->rng, SEGMENTS);
    Dl__MapReply *reply;

    message.volume = h->volume;
    message.lease_epoch = h->lease;
    message.segments = &segment;
    message.n_segments = 1;
    reply = (Dl__MapReply *)ask(h, h->owner, OP_ALLOCATE, &message.base,
                                &dl__map_reply__descriptor);
    if (reply == NULL)
        return;
    /* A chunk of a new segment is there, as far as it is known, from the first write on. */
    for (unsigned i = 0; i < 3; i++) {
        uint32_t id = reply->segments[0]->slots[i]->server_id;
        struct chunk *chunk = &h->chunks[id - 1][h->volume][segment];

        if (reply->segments[0]->config_epoch == 1 && chunk->incarnation == 0)
            *chunk = (struct chunk){.incarnation = 1, .config_epoch = 1, .slot = i};
    }
    take_map(h, h->volume, reply->segments, reply->n_segments);
    dl__map_reply__free_unpacked(reply, NULL);
}

static void
owner_ejects(struct history *h)
{
    Dl__Eject message = DL__EJECT__INIT;
    Dl__Ejection ejections[2], *pointers[2];
    uint32_t ids[2];
    Dl__EjectReply *reply;
    uint32_t first = (uint32_t)fake_rng_below(&h->rng, SEGMENTS);

    for (uint32_t i = 0; i < 2; i++) {
        uint32_t segment = (first + i) % SEGMENTS;

        if (h->map[segment].config_epoch == 0)
            return;
        dl__ejection__init(&ejections[i]);
        ids[i] = h->map[segment].servers[fake_rng_below(&h->rng, 4)];
        ejections[i].segment = segment;
        ejections[i].config_epoch = h->map[segment].config_epoch;
        ejections[i].server_ids = &ids[i];
        ejections[i].n_server_ids = ids[i] != 0;
        ejections[i].resolved = fake_rng_percent(&h->rng, 50);
        pointers[i] = &ejections[i];
    }
    message.volume = h->volume;
    message.lease_epoch = h->lease;
    message.ejections = pointers;
    message.n_ejections = 2;
    reply = (Dl__EjectReply *)ask(h, h->owner, OP_EJECT, &message.base,
                                  &dl__eject_reply__descriptor);
    if (reply == NULL)
        return;
    h->ejected++;
    take_map(h, h->volume, reply->segments, reply->n_segments);
    dl__eject_reply__free_unpacked(reply, NULL);
}

static void
owner_detaches(struct history *h)
{
    Dl__Detach message = DL__DETACH__INIT;
    ProtobufCMessage *reply;

    message.volume = h->volume;
    message.lease_epoch = h->lease;
    message.clean = fake_rng_percent(&h->rng, 70);
    h->lease = 0; /* it reads nothing any more */
    memset(h->map, 0, sizeof(h->map));
    reply = ask(h, h->owner, OP_DETACH, &message.base, &dl__detach_reply__descriptor);
    if (reply != NULL)
        protobuf_c_message_free_unpacked(reply, NULL);
}

static void
volume_create(struct history *h)
{
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    ProtobufCMessage *reply;

    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    policy.min_write = 1 + fake_rng_below(&h->rng, 2);
    message.policy = &policy;
    message.name = (char *)(uintptr_t) "v";
    message.size_bytes = SEGMENTS * MIB;
    message.segment_bytes = MIB;
    reply = ask(h, h->owner, OP_VOLUME_CREATE, &message.base, &dl__volume_reply__descriptor);
    if (reply == NULL)
        return;
    h->volumes++;
    protobuf_c_message_free_unpacked(reply, NULL);
}

static void
volume_delete(struct history *h)
{
    Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;
    ProtobufCMessage *reply;

    owner_detaches(h);
    message.name = (char *)(uintptr_t) "v";
    h->volume = 0;
    reply = ask(h, h->owner, OP_VOLUME_DELETE, &message.base, &dl__volume_delete_reply__descriptor);
    if (reply != NULL)
        protobuf_c_message_free_unpacked(reply, NULL);
    volume_create(h);
}

/* --- servers --- */

static void
server_goes(struct history *h, uint32_t s)
{
    if (!h->there[s])
        return;
    peer_disconnect(h->servers[s]);
    h->there[s] = false;
}

static uint64_t
recorded_starts(struct history *h, uint32_t s)
{
    struct schema_key key = schema_key_server(s + 1);
    uint64_t result = 0;

    for (uint32_t i = 0; i < store_memory_db_count(h->f.db); i++) {
        struct store_item item = store_memory_db_item(h->f.db, i);
        Dl__Meta__ServerRecord *record;

        if (store_bytes_compare(item.key, schema_bytes(&key)) != 0)
            continue;
        record = dl__meta__server_record__unpack(NULL, item.value.length_bytes, item.value.bytes);
        result = record->start_count;
        dl__meta__server_record__free_unpacked(record, NULL);
    }
    return result;
}

/* An older copy that has the last in-sync slot of something: then it must be the newest. */
static void
refused_come_anew(struct history *h)
{
    for (uint32_t s = 0; s < SERVERS; s++) {
        h->copy[s] = h->copy[s] && h->servers[s]->server_id == 0;
        if (!h->servers[s]->refused)
            continue;
        server_goes(h, s);
        if (h->copy[s])
            memcpy(h->chunks[s], h->newest[s], sizeof(h->newest[s]));
        h->copy[s] = false;
        h->servers[s]->start_count = recorded_starts(h, s);
        h->refused++;
        peer_restart_server(h->servers[s]);
        h->servers[s]->may_be_refused = h->servers[s]->refused = false;
        (void)peer_send_register(h->servers[s]);
        h->there[s] = true;
        h->starts[s] = h->servers[s]->start_count > h->starts[s] ? h->servers[s]->start_count
                                                                 : h->starts[s];
    }
}

/* After a crash of the service the same process; else a new start, or an old copy of its disk. */
static void
server_comes(struct history *h, uint32_t s, bool same)
{
    struct peer *peer = h->servers[s];
    bool older = !same && fake_rng_percent(&h->rng, 5) && recorded_starts(h, s) > 3;

    if (peer->refused) {
        refused_come_anew(h);
        return;
    }
    h->copy[s] = h->copy[s] && peer->server_id == 0;
    if (same) {
        peer->start_count--;
        peer->instance[2]--;
    }
    peer_restart_server(peer);
    peer->refused = false;
    if (older) {
        if (!h->copy[s])
            memcpy(h->newest[s], h->chunks[s], sizeof(h->newest[s]));
        h->copy[s] = true;
        /* Everything that it knew is gone; its attempts and reports first of all. */
        for (uint32_t v = 0; v < VOLUMES; v++)
            for (uint32_t i = 0; i < SEGMENTS; i++) {
                struct chunk *chunk = &h->chunks[s][v][i];

                chunk->config_epoch = chunk->attempt = 0;
                chunk->lost = chunk->incarnation != 0;
            }
        peer->start_count = 2;
        h->resets++;
    }
    /* A copy, or what goes on from one that was never admitted. */
    peer->may_be_refused = peer->start_count <= h->starts[s];
    h->starts[s] = peer->start_count > h->starts[s] ? peer->start_count : h->starts[s];
    peer->silent_tell = fake_rng_percent(&h->rng, 10);
    peer->silent_command = fake_rng_percent(&h->rng, 10);
    (void)peer_send_register(peer);
    h->there[s] = true;
}

static void
server_reports(struct history *h, uint32_t s, uint64_t volume)
{
    if (h->servers[s]->server_id == 0 || !h->there[s] || h->servers[s]->link.down)
        return;
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        struct chunk *chunk = &h->chunks[s][volume][i];
        Dl__RecoveryReport message = DL__RECOVERY_REPORT__INIT;
        uint64_t id;

        if (chunk->attempt == 0)
            continue;
        message.volume = volume;
        message.segment = i;
        message.slot = chunk->slot;
        message.attempt = chunk->attempt;
        message.lease_epoch = chunk->lease;
        message.done = fake_rng_percent(&h->rng, 60);
        message.cursor_sectors = 17;
        chunk->reported = chunk->reported || message.done;
        id = peer_send(h->servers[s], OP_RECOVERY_REPORT, &message.base);
        fixture_settle(&h->f);
        fake_frame_destroy(peer_take_reply(h->servers[s], id));
    }
}

static void
server_drains(struct history *h, uint32_t s, bool undo)
{
    Dl__ServerDrain drain = DL__SERVER_DRAIN__INIT;
    Dl__ServerUndrain undrain = DL__SERVER_UNDRAIN__INIT;
    ProtobufCMessage *reply;

    drain.server_id = undrain.server_id = s + 1;
    reply = ask(h, h->owner, undo ? OP_SERVER_UNDRAIN : OP_SERVER_DRAIN,
                undo ? &undrain.base : &drain.base, &dl__server_change_reply__descriptor);
    h->drains += reply != NULL && !undo;
    if (reply != NULL)
        protobuf_c_message_free_unpacked(reply, NULL);
}

static void
service_restarts(struct history *h, bool all)
{
    h->crashes++;
    fixture_crash(&h->f, fake_rng_next(&h->rng));
    fixture_start(&h->f);
    fixture_run(&h->f, 50 * MS);
    assert_int_equal(h->f.fatal, 0);
    assert_true(h->f.ready);
    for (uint32_t s = 0; s < SERVERS; s++)
        if (h->there[s] || all)
            server_comes(h, s, h->there[s] && fake_rng_percent(&h->rng, 70));
    owner_connects(h);
    owner_attaches(h, false);
}

/* --- a history --- */

static void
random_event(struct history *h)
{
    unsigned dice = (unsigned)fake_rng_below(&h->rng, 100);
    uint32_t s = (uint32_t)fake_rng_below(&h->rng, SERVERS);

    if (dice < 3) {
        service_restarts(h, false);
    } else if (dice < 10) {
        server_goes(h, s);
    } else if (dice < 24) {
        server_goes(h, s);
        server_comes(h, s, false);
    } else if (dice < 40) {
        owner_ejects(h);
    } else if (dice < 48) {
        owner_allocates(h);
    } else if (dice < 70) {
        for (s = 0; s < SERVERS; s++)
            server_reports(h, s, h->volume);
    } else if (dice < 73) {
        owner_connects(h);
        owner_attaches(h, false);
    } else if (dice < 76) {
        h->steals++;
        owner_attaches(h, true);
    } else if (dice < 78) {
        owner_detaches(h);
        owner_attaches(h, true);
    } else if (dice < 80) {
        if (h->volumes + 2 < VOLUMES)
            volume_delete(h);
        owner_attaches(h, true);
    } else if (dice < 84) {
        server_drains(h, s, false);
    } else if (dice < 88) {
        server_drains(h, s, true);
    } else {
        fixture_run(&h->f, fake_rng_below(&h->rng, 2 * SECOND));
    }
    fixture_settle(&h->f);
    refused_come_anew(h);
}

static uint32_t
count_keys(struct history *h, const char *prefix)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < store_memory_db_count(h->f.db); i++) {
        struct store_item item = store_memory_db_item(h->f.db, i);

        count += item.key.length_bytes > strlen(prefix) &&
                 memcmp(item.key.bytes, prefix, strlen(prefix)) == 0;
    }
    return count;
}

static bool
all_is_whole(struct history *h)
{
    bool whole = count_keys(h, "removal/") == 0;

    for (uint32_t i = 0; i < SEGMENTS && h->volume != 0; i++) {
        Dl__Meta__SegmentRecord *record = record_of(h, h->volume, i);

        if (record == NULL)
            continue;
        check_record(record);
        whole = whole && record->n_slots == 3 && (record->told || record->config_epoch == 1);
        for (size_t k = 0; k < record->n_slots; k++)
            whole = whole && record->slots[k]->state == I;
        dl__meta__segment_record__free_unpacked(record, NULL);
    }
    return whole;
}

static void
check_end(struct history *h)
{
    unsigned rounds = 0;

    for (uint32_t s = 0; s < SERVERS; s++) {
        if (!h->there[s])
            server_comes(h, s, false);
        h->servers[s]->silent_tell = h->servers[s]->silent_command = false;
        server_goes(h, s);
        server_comes(h, s, false);
        h->servers[s]->silent_tell = h->servers[s]->silent_command = false;
    }
    fixture_run(&h->f, SECOND);
    h->owner->silent_map = false;
    owner_connects(h);
    h->owner->silent_map = false;
    owner_attaches(h, true);
    for (uint32_t s = 0; s < SERVERS; s++)
        server_drains(h, s, true);
    while (!all_is_whole(h)) {
        assert_true(rounds++ < 100);
        fixture_run(&h->f, 500 * MS);
        refused_come_anew(h);
        for (uint32_t s = 0; s < SERVERS; s++)
            for (uint64_t v = 1; v < VOLUMES; v++)
                server_reports(h, s, v);
        if (h->lease == 0)
            owner_attaches(h, false);
    }
}

static void
run_history(struct history *h, uint64_t seed)
{
    struct meta_options options = {.out_after_ns = 8 * SECOND};

    memset(h, 0, sizeof(*h));
    fake_rng_init(&h->rng, seed);
    fixture_init_database(&h->f, &options);
    h->f.store_options = (struct store_memory_options){10000, 3 * MS};
    h->f.context = h;
    h->f.on_tell = on_tell;
    h->f.on_chunk = on_chunk;
    h->f.on_map = on_map;
    fixture_start(&h->f);
    fixture_run(&h->f, 50 * MS);
    for (uint32_t s = 0; s < SERVERS; s++) {
        h->servers[s] = fixture_server_hello(&h->f, s + 1, "h");
        (void)peer_send_register(h->servers[s]);
        h->there[s] = true;
        h->starts[s] = 1;
    }
    fixture_run(&h->f, 50 * MS);
    owner_connects(h);
    volume_create(h);
    owner_attaches(h, true);
    for (uint32_t i = 0; i < STEPS; i++)
        random_event(h);
    check_end(h);
    assert_int_equal(h->f.fatal, 0);
    fixture_fini(&h->f);
}

static void
test_random_histories(void **state)
{
    const char *one = getenv("DLBLK_TEST_SEED");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one != NULL ? 1 : 60;
    uint64_t ejected = 0, promoted = 0, deleted = 0, crashes = 0, resets = 0, drains = 0;
    struct history *h = calloc(1, sizeof(*h));

    (void)state;
    for (uint64_t seed = first; seed < first + count; seed++) {
        if (one != NULL || getenv("DLBLK_TEST_VERBOSE") != NULL)
            print_message("seed %llu\n", (unsigned long long)seed);
        run_history(h, seed);
        ejected += h->ejected;
        promoted += h->promoted;
        deleted += h->deleted;
        crashes += h->crashes;
        resets += h->resets;
        drains += h->drains;
    }
    free(h);
    print_message("%llu ejections, %llu promotions, %llu chunks deleted, %llu crashes, %llu disks "
                  "that went back, %llu drains\n",
                  (unsigned long long)ejected, (unsigned long long)promoted,
                  (unsigned long long)deleted, (unsigned long long)crashes,
                  (unsigned long long)resets, (unsigned long long)drains);
    if (one != NULL)
        return;
    /* It did what it is for. */
    assert_true(ejected > 200 && promoted > 300 && deleted > 200 && crashes > 200 && resets > 50 &&
                drains > 100);
}

UNIT_MAIN(cmocka_unit_test(test_random_histories))
