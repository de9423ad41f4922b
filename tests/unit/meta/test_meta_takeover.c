/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takeovers: an owner died without detaching.  The next one's attach is answered only when no write
 *            of the old one can be acknowledged
 * any more: one server of each segment has answered the FENCE.  All the answers come by
 * FENCE_STATUS.
 *
 *   4 servers; segments lie on 3 of them each
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERVERS 4u

struct takeover_test {
    struct fixture f;
    struct peer *servers[SERVERS];
    struct peer *old_owner;
    struct peer *client;
    Dl__Volume volume;
    bool used[SERVERS]; /* by the volume */
    uint32_t used_count;
};

static struct peer *
server_by_id(struct takeover_test *t, uint32_t id)
{
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t->servers[i]->server_id == id)
            return t->servers[i];
    fail_msg("no server %u", id);
    return NULL;
}

static void
takeover_note_servers(struct takeover_test *t, const Dl__MapReply *map)
{
    for (size_t i = 0; i < map->n_segments; i++) {
        assert_int_equal(map->segments[i]->n_slots, 3);
        for (size_t k = 0; k < 3; k++)
            for (uint32_t s = 0; s < SERVERS; s++)
                if (t->servers[s]->server_id == map->segments[i]->slots[k]->server_id)
                    t->used[s] = true;
    }
    t->used_count = 0;
    for (uint32_t s = 0; s < SERVERS; s++)
        t->used_count += t->used[s];
}

/* A volume with segments, and its owner. */
static void
takeover_prepare(struct takeover_test *t, uint32_t segments, const struct meta_options *options)
{
    Dl__MapReply *map;

    memset(t, 0, sizeof(*t));
    fixture_init(&t->f, options);
    for (uint32_t i = 0; i < SERVERS; i++)
        t->servers[i] = fixture_server(&t->f, i + 1, "h");
    t->old_owner = fixture_client(&t->f);
    assert_int_equal(ask_create(t->old_owner, "v", 64u << 20, &t->volume), 0);
    assert_int_equal(ask_attach(t->old_owner, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t->old_owner, t->volume.id, 1, 0, segments, &map), 0);
    takeover_note_servers(t, map);
    dl__map_reply__free_unpacked(map, NULL);
}

static void
owner_dies(struct takeover_test *t)
{
    peer_disconnect(t->old_owner);
    fixture_run(&t->f, 5 * SECOND);
    t->client = fixture_client(&t->f);
}

/* Its owner's connection broke a while ago. */
static void
takeover_init(struct takeover_test *t, uint32_t segments)
{
    takeover_prepare(t, segments, NULL);
    owner_dies(t);
}

static void
all_silent(struct takeover_test *t, bool silent)
{
    for (uint32_t i = 0; i < SERVERS; i++)
        t->servers[i]->silent_command = silent;
}

static uint64_t
start_attach(struct takeover_test *t, uint8_t n, uint32_t wait_ms)
{
    Dl__Attach message;
    uint64_t id;

    fill_attach(&message, "v", n);
    message.wait_ms = wait_ms;
    id = peer_send(t->client, OP_ATTACH, &message.base);
    fixture_settle(&t->f);
    return id;
}

/* Answer the FENCE that waits in a silent server's inbox. */
static void
answer_fence(struct takeover_test *t, struct peer *server, uint32_t lease_epoch)
{
    struct fake_frame *frame = peer_take_request(server, OP_FENCE);
    Dl__FenceReply reply = DL__FENCE_REPLY__INIT;

    assert_non_null(frame);
    reply.volume = t->volume.id;
    reply.lease_epoch = lease_epoch;
    peer_answer(server, frame, 0, &reply.base);
    fake_frame_destroy(frame);
    fixture_settle(&t->f);
}

static uint64_t
start_status(struct takeover_test *t, uint32_t lease_epoch, uint32_t wait_ms, uint32_t *known,
             size_t known_count)
{
    Dl__FenceStatus message = DL__FENCE_STATUS__INIT;
    uint64_t id;

    message.volume = t->volume.id;
    message.lease_epoch = lease_epoch;
    message.wait_ms = wait_ms;
    message.known = known;
    message.n_known = known_count;
    id = peer_send(t->client, OP_FENCE_STATUS, &message.base);
    fixture_settle(&t->f);
    return id;
}

static Dl__FenceStatusReply *
take_status(struct peer *client, uint64_t id)
{
    struct fake_frame *frame = peer_take_reply(client, id);
    Dl__FenceStatusReply *reply;

    if (frame == NULL)
        return NULL;
    assert_int_equal(frame->frame.status, 0);
    reply = (Dl__FenceStatusReply *)fake_frame_unpack(frame, &dl__fence_status_reply__descriptor);
    assert_non_null(reply);
    fake_frame_destroy(frame);
    return reply;
}

static void
test_all_servers_answer(void **state)
{
    struct takeover_test t;
    struct fake_frame *frame;
    Dl__AttachReply *reply;
    uint64_t id;

    (void)state;
    takeover_init(&t, 8);
    id = start_attach(&t, 2, 0);
    frame = peer_take_reply(t.client, id);
    assert_non_null(frame);
    assert_int_equal(frame->frame.status, 0);
    reply = (Dl__AttachReply *)fake_frame_unpack(frame, &dl__attach_reply__descriptor);
    assert_true(reply->takeover);
    assert_int_equal(reply->lease_epoch, 2);
    assert_int_equal(reply->segments_total, 8);
    assert_int_equal(reply->n_servers, t.used_count);
    for (uint32_t i = 0; i < SERVERS; i++) {
        assert_int_equal(t.servers[i]->fences, t.used[i]);
        assert_int_equal(t.servers[i]->fence_epoch, t.used[i] ? 2 : 0);
    }
    dl__attach_reply__free_unpacked(reply, NULL);
    fake_frame_destroy(frame);
    fixture_fini(&t.f);
}

/* One answer of each segment is enough, and none may be missing. */
static void
test_attach_waits_for_one_of_each_segment(void **state)
{
    struct takeover_test t;
    Dl__MapReply *map;
    uint64_t id;
    uint32_t answered = 0;

    (void)state;
    takeover_init(&t, 16); /* 4 servers: each segment leaves another one out */
    assert_int_equal(t.used_count, SERVERS);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    fixture_run(&t.f, 2 * SECOND);
    assert_null(peer_take_reply(t.client, id));
    assert_int_equal(ask_map(t.client, t.volume.id, 0, 0, 0, &map), 0);
    /* Three of four servers cover every segment in any case; fewer may or may not. */
    for (uint32_t i = 0; i < SERVERS; i++) {
        struct fake_frame *reply = peer_take_reply(t.client, id);
        bool covered = answered > 0;

        for (size_t s = 0; s < map->n_segments; s++) {
            bool here = false;

            for (size_t k = 0; k < 3; k++)
                for (uint32_t a = 0; a < answered; a++)
                    here = here || map->segments[s]->slots[k]->server_id == t.servers[a]->server_id;
            covered = covered && here;
        }
        assert_int_equal(reply != NULL, covered);
        fake_frame_destroy(reply);
        if (covered)
            break;
        answer_fence(&t, t.servers[i], 2);
        answered++;
    }
    assert_in_range(answered, 1, 3);
    dl__map_reply__free_unpacked(map, NULL);
    fixture_fini(&t.f);
}

/*
 * The former owner is refused from the moment the new lease is committed, not from the answer on.
 */
static void
test_old_lease_is_over_while_attach_waits(void **state)
{
    struct takeover_test t;
    struct peer *again;
    uint64_t id;

    (void)state;
    takeover_init(&t, 4);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    again = fixture_client(&t.f);
    assert_int_equal(ask_allocate(again, t.volume.id, 1, 9, 1, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_detach(again, t.volume.id, 1, true), -DL_E_LEASE_OLD);
    assert_int_equal(ask_map(again, t.volume.id, 1, 0, 0, NULL), -DL_E_LEASE_OLD);
    /* Nor can the new one allocate or detach cleanly before it has been told that it may. */
    assert_int_equal(ask_allocate(t.client, t.volume.id, 2, 9, 1, NULL), -DL_E_FENCE_PENDING);
    assert_int_equal(ask_detach(t.client, t.volume.id, 2, true), -DL_E_FENCE_PENDING);
    assert_int_equal(fixture_reply_status(t.client, start_status(&t, 2, 0, NULL, 0)),
                     -DL_E_FENCE_PENDING);
    assert_null(peer_take_reply(t.client, id));
    fixture_fini(&t.f);
}

static void
test_silent_servers_are_named(void **state)
{
    struct takeover_test t;
    struct fake_frame *frame;
    Dl__ErrorDetail *detail;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t.used[i])
            peer_disconnect(t.servers[i]);
    fixture_run(&t.f, 6 * SECOND);
    id = start_attach(&t, 2, 3000);
    fixture_run(&t.f, 2900 * MS);
    assert_null(peer_take_reply(t.client, id));
    fixture_run(&t.f, 200 * MS);
    frame = peer_take_reply(t.client, id);
    assert_non_null(frame);
    assert_int_equal(frame->frame.status, -DL_E_FENCE_PENDING);
    detail = (Dl__ErrorDetail *)fake_frame_unpack(frame, &dl__error_detail__descriptor);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t.used[i])
            assert_non_null(strstr(detail->text, t.servers[i]->address));
    assert_non_null(strstr(detail->text, "down"));
    assert_non_null(strstr(detail->hint, "start"));
    dl__error_detail__free_unpacked(detail, NULL);
    fake_frame_destroy(frame);

    /* They come back: the same attach, asked again, succeeds without another lease. */
    for (uint32_t i = 0; i < SERVERS; i++) {
        if (!t.used[i])
            continue;
        peer_restart_server(t.servers[i]);
        assert_int_equal(peer_register(t.servers[i]), 0);
        fixture_settle(&t.f);
        assert_int_equal(t.servers[i]->fence_epoch, 2);
    }
    id = start_attach(&t, 2, 0);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    fixture_fini(&t.f);
}

/*
 * While somebody waits for his attach he lives, whatever he could say to a probe: he doesn't know
 * his lease yet.
 */
static void
test_attach_in_progress_is_busy(void **state)
{
    struct takeover_test t;
    struct peer *other;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    other = fixture_client(&t.f);
    assert_int_equal(ask_attach(other, "v", 3, NULL), -DL_E_VOLUME_BUSY);
    assert_non_null(strstr(fixture_error_text(), "being attached"));
    /* Stolen: who waited is told, and the fence goes out with the new lease. */
    fill_attach(&message, "v", 3);
    message.steal = true;
    (void)peer_send(other, OP_ATTACH, &message.base);
    fixture_settle(&t.f);
    assert_int_equal(fixture_reply_status(t.client, id), -DL_E_LEASE_OLD);
    fixture_fini(&t.f);
}

/* An attach whose client dies while it waits is as any owner that died. */
static void
test_interrupted_attach_is_taken_over(void **state)
{
    struct takeover_test t;
    Dl__AttachReply *reply;

    (void)state;
    takeover_init(&t, 2);
    all_silent(&t, true);
    (void)start_attach(&t, 2, 0);
    peer_disconnect(t.client);
    fixture_run(&t.f, 2 * SECOND);
    for (uint32_t i = 0; i < SERVERS; i++) /* the FENCE of lease 2 was never answered: superseded */
        fake_frame_destroy(peer_take_request(t.servers[i], OP_FENCE));
    all_silent(&t, false);
    t.client = fixture_client(&t.f);
    assert_int_equal(ask_attach(t.client, "v", 3, &reply), 0);
    assert_int_equal(reply->lease_epoch, 3);
    assert_true(reply->takeover);
    dl__attach_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

/*
 * The client is gone when its lease is committed: nobody waits there, the next one need not either.
 */
static void
test_client_dies_while_its_lease_is_committed(void **state)
{
    struct takeover_test t;
    struct peer *other;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    takeover_init(&t, 2);
    other = fixture_client(&t.f);
    store_memory_hold(t.f.store, true);
    (void)start_attach(&t, 2, 0);
    assert_int_equal(store_memory_in_flight(t.f.store), 1);
    peer_disconnect(t.client);
    store_memory_hold(t.f.store, false);
    fixture_settle(&t.f);
    fill_attach(&message, "v", 3);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&t.f, 1100 * MS); /* it could still come back */
    assert_int_equal(fixture_reply_status(other, id), 0);
    fixture_fini(&t.f);
}

/* --- sending FENCE again --- */

static void
test_fence_is_sent_again_after_a_reconnect(void **state)
{
    struct takeover_test t;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    for (uint32_t i = 0; i < SERVERS; i++) {
        if (!t.used[i])
            continue;
        peer_restart_server(t.servers[i]);
        assert_null(peer_take_request(t.servers[i], OP_FENCE)); /* not before it is registered */
        t.servers[i]->silent_command = false;
        assert_int_equal(peer_register(t.servers[i]), 0);
        fixture_settle(&t.f);
        assert_int_equal(t.servers[i]->fences, 1);
    }
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    fixture_fini(&t.f);
}

static void
test_fence_is_sent_again_after_an_error(void **state)
{
    struct takeover_test t;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    for (uint32_t i = 0; i < SERVERS; i++) {
        struct fake_frame *frame = peer_take_request(t.servers[i], OP_FENCE);

        if (frame == NULL)
            continue;
        peer_answer(t.servers[i], frame, -DL_E_MEDIA_WRITE, NULL);
        fake_frame_destroy(frame);
        t.servers[i]->silent_command = false;
    }
    fixture_settle(&t.f);
    assert_null(peer_take_reply(t.client, id));
    assert_non_null(strstr(t.f.last_warning, "FENCE"));
    fixture_run(&t.f, 800 * MS); /* not at once: it would be a storm */
    for (uint32_t i = 0; i < SERVERS; i++)
        assert_int_equal(t.servers[i]->fences, 0);
    fixture_run(&t.f, 700 * MS);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    fixture_fini(&t.f);
}

/* Answers that are none: another volume, another lease, a part without end. */
static void
test_nonsense_answers_do_not_count(void **state)
{
    struct takeover_test t;
    uint64_t id;
    unsigned kind = 0;

    (void)state;
    takeover_init(&t, 1);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    for (uint32_t i = 0; i < SERVERS; i++) {
        struct fake_frame *frame = peer_take_request(t.servers[i], OP_FENCE);
        Dl__FenceReply reply = DL__FENCE_REPLY__INIT;

        if (frame == NULL)
            continue;
        reply.volume = kind == 0 ? t.volume.id + 1 : t.volume.id;
        reply.lease_epoch = kind == 1 ? 1 : 2;
        reply.more = kind == 2; /* and the next part begins where this one did */
        peer_answer(t.servers[i], frame, 0, &reply.base);
        fake_frame_destroy(frame);
        kind++;
    }
    assert_int_equal(kind, 3);
    fixture_settle(&t.f);
    assert_null(peer_take_reply(t.client, id));
    for (uint32_t i = 0; i < SERVERS; i++) /* not asked again at once */
        assert_null(peer_take_request(t.servers[i], OP_FENCE));
    fixture_run(&t.f, 1500 * MS);
    for (uint32_t i = 0; i < SERVERS; i++) {
        struct fake_frame *frame = peer_take_request(t.servers[i], OP_FENCE);

        if (frame == NULL)
            continue;
        fake_link_feed(&t.servers[i]->link, OP_FENCE, FRAME_REPLY, frame->frame.request_id,
                       "\xff\xff\xff", 3, 0); /* no message at all */
        fake_frame_destroy(frame);
    }
    fixture_settle(&t.f);
    assert_null(peer_take_reply(t.client, id));
    fixture_run(&t.f, 1500 * MS);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t.used[i])
            answer_fence(&t, t.servers[i], 2);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    fixture_fini(&t.f);
}

/* --- FENCE_STATUS --- */

/* The answer of a server: one pending write of `segment`, and one of a segment that isn't there. */
static void
pending_of(struct takeover_test *t, struct peer *server, Dl__FenceReply *reply,
           Dl__PendingChunk *chunks, Dl__PendingChunk **pointers, Dl__PendingWrite *write,
           Dl__PendingWrite **write_pointer, uint32_t slot)
{
    (void)t;
    dl__fence_reply__init(reply);
    dl__pending_write__init(write);
    write->version = (1ull << 40) | 7;
    write->offset_sectors = 3;
    write->length_sectors = 2;
    write_pointer[0] = write;
    for (unsigned i = 0; i < 3; i++) {
        dl__pending_chunk__init(&chunks[i]);
        chunks[i].config_epoch = 1;
        chunks[i].stable_version = (1ull << 40) | 5;
        chunks[i].n_writes = 1;
        chunks[i].writes = write_pointer;
        pointers[i] = &chunks[i];
    }
    chunks[0].segment = 0;
    chunks[0].slot = slot;
    chunks[1].segment = 0;
    chunks[1].slot = slot + 1; /* not this server's */
    chunks[2].segment = 63;    /* not allocated */
    reply->n_chunks = 3;
    reply->chunks = pointers;
    server->fence_reply = reply;
}

static uint32_t
slot_of(struct takeover_test *t, const struct peer *server)
{
    Dl__MapReply *map;
    uint32_t slot = UINT32_MAX;

    assert_int_equal(ask_map(t->client, t->volume.id, 0, 0, 1, &map), 0);
    for (uint32_t i = 0; i < 3; i++)
        if (map->segments[0]->slots[i]->server_id == server->server_id)
            slot = i;
    dl__map_reply__free_unpacked(map, NULL);
    return slot;
}

static void
test_status_hands_on_the_answers(void **state)
{
    struct takeover_test t;
    Dl__FenceReply replies[SERVERS];
    Dl__PendingChunk chunks[SERVERS][3];
    Dl__PendingChunk *pointers[SERVERS][3];
    Dl__PendingWrite writes[SERVERS];
    Dl__PendingWrite *write_pointers[SERVERS][1];
    Dl__FenceStatusReply *status;
    uint32_t known[3];
    size_t known_count = 0;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t.used[i])
            pending_of(&t, t.servers[i], &replies[i], chunks[i], pointers[i], &writes[i],
                       write_pointers[i], slot_of(&t, t.servers[i]));
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
    status = take_status(t.client, start_status(&t, 2, 5000, NULL, 0));
    assert_non_null(status);
    assert_int_equal(status->n_answers, 3);
    assert_int_equal(status->n_waiting_for, 0);
    for (size_t i = 0; i < 3; i++) {
        const Dl__FenceAnswer *answer = status->answers[i];

        known[known_count++] = answer->server_id;
        assert_false(answer->more);
        assert_int_equal(answer->n_chunks, 1); /* what the map doesn't have there is left out */
        assert_int_equal(answer->chunks[0]->segment, 0);
        assert_int_equal(answer->chunks[0]->slot, slot_of(&t, server_by_id(&t, answer->server_id)));
        assert_true(answer->chunks[0]->stable_version == ((1ull << 40) | 5));
        assert_int_equal(answer->chunks[0]->n_writes, 1);
        assert_true(answer->chunks[0]->writes[0]->version == ((1ull << 40) | 7));
        assert_int_equal(answer->chunks[0]->writes[0]->length_sectors, 2);
    }
    dl__fence_status_reply__free_unpacked(status, NULL);
    /* All known: nothing more, and no waiting for it. */
    id = start_status(&t, 2, 5000, known, known_count);
    status = take_status(t.client, id);
    assert_non_null(status);
    assert_int_equal(status->n_answers, 0);
    assert_int_equal(status->n_waiting_for, 0);
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

static void
test_status_is_a_long_poll(void **state)
{
    struct takeover_test t;
    Dl__FenceStatusReply *status;
    struct peer *slow = NULL;
    uint32_t known[SERVERS];
    size_t known_count = 0;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    for (uint32_t i = 0; i < SERVERS && slow == NULL; i++)
        if (t.used[i])
            slow = t.servers[i];
    slow->silent_command = true;
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0); /* two have answered: enough */
    status = take_status(t.client, start_status(&t, 2, 5000, NULL, 0));
    assert_non_null(status); /* there is news, so at once */
    assert_int_equal(status->n_answers, 2);
    assert_int_equal(status->n_waiting_for, 1);
    assert_int_equal(status->waiting_for[0], slow->server_id);
    for (size_t i = 0; i < 2; i++)
        known[known_count++] = status->answers[i]->server_id;
    dl__fence_status_reply__free_unpacked(status, NULL);

    id = start_status(&t, 2, 2000, known, known_count);
    fixture_run(&t.f, 1900 * MS);
    assert_null(take_status(t.client, id));
    fixture_run(&t.f, 200 * MS);
    status = take_status(t.client, id); /* no news, but time is up */
    assert_non_null(status);
    assert_int_equal(status->n_answers, 0);
    assert_int_equal(status->n_waiting_for, 1);
    dl__fence_status_reply__free_unpacked(status, NULL);

    id = start_status(&t, 2, 20000, known, known_count);
    fixture_run(&t.f, SECOND);
    answer_fence(&t, slow, 2);
    status = take_status(t.client, id);
    assert_non_null(status); /* the answer ends the waiting */
    assert_int_equal(status->n_answers, 1);
    assert_int_equal(status->answers[0]->server_id, slow->server_id);
    assert_int_equal(status->n_waiting_for, 0);
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

static void
test_status_ends_with_the_lease(void **state)
{
    struct takeover_test t;
    struct peer *thief;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t.used[i]) {
            t.servers[i]->silent_command = true;
            break;
        }
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
    {
        Dl__FenceStatusReply *status = take_status(t.client, start_status(&t, 2, 0, NULL, 0));
        uint32_t known[2] = {status->answers[0]->server_id, status->answers[1]->server_id};

        dl__fence_status_reply__free_unpacked(status, NULL);
        id = start_status(&t, 2, 20000, known, 2);
    }
    assert_null(peer_take_reply(t.client, id));
    thief = fixture_client(&t.f);
    fill_attach(&message, "v", 3);
    message.steal = true;
    assert_int_equal(peer_ask(thief, OP_ATTACH, &message.base, NULL, NULL), 0);
    assert_int_equal(fixture_reply_status(t.client, id), -DL_E_LEASE_OLD);
    fixture_fini(&t.f);
}

/* After a clean detach there is nothing to tell. */
static void
test_status_without_takeover(void **state)
{
    struct takeover_test t;
    Dl__FenceStatusReply *status;

    (void)state;
    takeover_init(&t, 1);
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 2, true), 0);
    assert_int_equal(ask_attach(t.client, "v", 3, NULL), 0);
    status = take_status(t.client, start_status(&t, 3, 5000, NULL, 0));
    assert_non_null(status);
    assert_int_equal(status->n_answers + status->n_waiting_for, 0);
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

/* --- slots that come into sync after the fence: rule 18 --- */

static const Dl__FenceAnswer *
answer_of(const Dl__FenceStatusReply *status, uint32_t server_id)
{
    for (size_t i = 0; i < status->n_answers; i++)
        if (status->answers[i]->server_id == server_id)
            return status->answers[i];
    return NULL;
}

/* The one that is asked for the segment's slot, not what its server said before. */
static void
check_named(const Dl__FenceAnswer *answer, uint32_t slot)
{
    assert_non_null(answer);
    assert_false(answer->more);
    assert_int_equal(answer->n_chunks, 1);
    assert_int_equal(answer->chunks[0]->segment, 0);
    assert_int_equal(answer->chunks[0]->slot, slot);
    assert_int_not_equal(answer->chunks[0]->attempt, 0);
    assert_int_equal(answer->chunks[0]->n_writes, 0);
}

static uint32_t
state_of(struct takeover_test *t, uint32_t server_id)
{
    Dl__MapReply *map = map_of(t->client, t->volume.id, 0);
    uint32_t state = 0;

    for (size_t i = 0; i < map->segments[0]->n_slots; i++)
        if (map->segments[0]->slots[i]->server_id == server_id)
            state = map->segments[0]->slots[i]->state;
    dl__map_reply__free_unpacked(map, NULL);
    return state;
}

/*
 *   ejected | attach | FENCE answered, as of then | attempt | promoted | attach answered
 *
 * What the server has said is older than the attempt: the slot is named, and not what it listed.
 */
static void
test_slot_promoted_after_its_answer_is_named(void **state)
{
    struct takeover_test t;
    Dl__FenceReply reply;
    Dl__PendingChunk chunks[3];
    Dl__PendingChunk *pointers[3];
    Dl__PendingWrite write;
    Dl__PendingWrite *write_pointer[1];
    Dl__FenceStatusReply *status;
    struct peer *server;
    Dl__MapReply *map;
    uint64_t id;

    (void)state;
    takeover_prepare(&t, 1, NULL);
    map = map_of(t.old_owner, t.volume.id, 0);
    server = server_by_id(&t, map->segments[0]->slots[2]->server_id);
    dl__map_reply__free_unpacked(map, NULL);
    peer_disconnect(server);
    assert_int_equal(
        ask_eject(t.old_owner, t.volume.id, 1, 0, 1, server->server_id, 0, false, NULL), 0);
    owner_dies(&t);
    pending_of(&t, server, &reply, chunks, pointers, &write, write_pointer, 2);
    all_silent(&t, true);
    server->silent_command = false;
    id = start_attach(&t, 2, 0);
    peer_restart_server(server);
    assert_int_equal(peer_register(server), 0);
    fixture_settle(&t.f);
    assert_int_equal(server->fences, 1);
    fixture_run(&t.f, 2 * SECOND);
    assert_non_null(peer_told(server, t.volume.id, 0));
    assert_int_equal(ask_report(server, peer_told(server, t.volume.id, 0), true, 256), 0);
    assert_int_equal(state_of(&t, server->server_id), DL__SLOT_STATE__SLOT_IN_SYNC);
    assert_int_equal(fixture_reply_status(t.client, id), 0);

    status = take_status(t.client, start_status(&t, 2, 0, NULL, 0));
    check_named(answer_of(status, server->server_id), 2);
    dl__fence_status_reply__free_unpacked(status, NULL);
    /* Said once, it is known. */
    status = take_status(t.client, start_status(&t, 2, 0, &server->server_id, 1));
    assert_null(answer_of(status, server->server_id));
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

/* A server that had no slot when the fences went out says nothing by itself. */
static void
test_slot_promoted_on_a_new_server_is_named(void **state)
{
    struct takeover_test t;
    Dl__ServerDrain drain = DL__SERVER_DRAIN__INIT;
    Dl__FenceStatusReply *status;
    struct peer *new_server = NULL, *stays;
    Dl__MapReply *map;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    for (uint32_t i = 0; i < SERVERS; i++)
        if (!t.used[i])
            new_server = t.servers[i];
    assert_non_null(new_server);
    map = map_of(t.client, t.volume.id, 0);
    drain.server_id = map->segments[0]->slots[1]->server_id;
    stays = server_by_id(&t, map->segments[0]->slots[0]->server_id);
    dl__map_reply__free_unpacked(map, NULL);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    assert_int_equal(peer_ask(fixture_client(&t.f), OP_SERVER_DRAIN, &drain.base, NULL, NULL), 0);
    fixture_run(&t.f, SECOND);
    assert_non_null(peer_told(new_server, t.volume.id, 0));
    assert_int_equal(ask_report(new_server, peer_told(new_server, t.volume.id, 0), true, 256), 0);
    assert_int_equal(state_of(&t, drain.server_id), 0);
    assert_int_equal(state_of(&t, new_server->server_id), DL__SLOT_STATE__SLOT_IN_SYNC);
    assert_null(peer_take_reply(t.client, id)); /* its word is not what shuts out owners before */
    answer_fence(&t, stays, 2);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    status = take_status(t.client, start_status(&t, 2, 0, NULL, 0));
    assert_int_equal(new_server->fences, 0);
    check_named(answer_of(status, new_server->server_id), 1);
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

/* --- long answers, in parts --- */

#define LONG_SEGMENTS 60u
#define LONG_WRITES   1000u
#define LONG_PART     19500u /* writes of one part: it ends in the middle of a chunk */
#define LONG_CHUNKS   (LONG_PART / LONG_WRITES + 2)

/* Writes are numbered through the segments. */
static uint32_t
long_number(uint32_t segment, uint64_t version)
{
    return segment * LONG_WRITES + (version == 0 ? 0 : (uint32_t)(version & 0xffff));
}

/* A silent server answers one FENCE from its cursor on.  False: there is none. */
static bool
answer_part(struct takeover_test *t, struct peer *server, uint32_t lease_epoch)
{
    static Dl__PendingWrite writes[LONG_WRITES];
    static Dl__PendingWrite *write_pointers[LONG_WRITES];
    Dl__PendingChunk chunks[LONG_CHUNKS];
    Dl__PendingChunk *pointers[LONG_CHUNKS];
    struct fake_frame *frame = peer_take_request(server, OP_FENCE);
    Dl__FenceReply reply = DL__FENCE_REPLY__INIT;
    uint32_t number, end;
    Dl__Fence *fence;

    if (frame == NULL)
        return false;
    for (uint32_t i = 0; i < LONG_WRITES; i++) {
        dl__pending_write__init(&writes[i]);
        writes[i].version = (1ull << 40) + i;
        writes[i].offset_sectors = i % 256;
        writes[i].length_sectors = 1;
        write_pointers[i] = &writes[i];
    }
    fence = (Dl__Fence *)fake_frame_unpack(frame, &dl__fence__descriptor);
    number = long_number(fence->first_segment, fence->first_version);
    end = number + LONG_PART < LONG_SEGMENTS * LONG_WRITES ? number + LONG_PART
                                                           : LONG_SEGMENTS * LONG_WRITES;
    while (number < end) {
        uint32_t segment = number / LONG_WRITES, first = number % LONG_WRITES;
        Dl__PendingChunk *chunk = &chunks[reply.n_chunks];
        Dl__MapReply *map = map_of(t->client, t->volume.id, segment);

        dl__pending_chunk__init(chunk);
        chunk->segment = segment;
        chunk->slot = 9; /* not this server's */
        for (uint32_t k = 0; k < 3; k++)
            if (map->segments[0]->slots[k]->server_id == server->server_id)
                chunk->slot = k;
        dl__map_reply__free_unpacked(map, NULL);
        chunk->writes = &write_pointers[first];
        chunk->n_writes = LONG_WRITES - first < end - number ? LONG_WRITES - first : end - number;
        number += (uint32_t)chunk->n_writes;
        pointers[reply.n_chunks++] = chunk;
    }
    reply.volume = t->volume.id;
    reply.lease_epoch = lease_epoch;
    reply.chunks = pointers;
    reply.more = end < LONG_SEGMENTS * LONG_WRITES;
    reply.next_segment = end / LONG_WRITES;
    reply.next_slot = reply.more && end % LONG_WRITES != 0 ? chunks[reply.n_chunks - 1].slot : 0;
    reply.next_version = end % LONG_WRITES == 0 ? 0 : writes[end % LONG_WRITES].version;
    peer_answer(server, frame, 0, &reply.base);
    dl__fence__free_unpacked(fence, NULL);
    fake_frame_destroy(frame);
    fixture_settle(&t->f);
    return true;
}

static uint64_t
fence_bytes(const struct takeover_test *t)
{
    struct meta_stats stats;

    meta_core_get_stats(t->f.core, &stats);
    return stats.fence_bytes;
}

/* One FENCE_STATUS; servers are asked on the way for what is not here. */
static Dl__FenceStatusReply *
poll_long(struct takeover_test *t, const Dl__FenceStatus *message, uint32_t *fetches)
{
    uint64_t id = peer_send(t->client, OP_FENCE_STATUS, &message->base);
    Dl__FenceStatusReply *status;

    fixture_settle(&t->f);
    status = take_status(t->client, id);
    for (uint32_t i = 0; i < SERVERS && status == NULL; i++)
        if (answer_part(t, t->servers[i], 2)) {
            ++*fetches;
            status = take_status(t->client, id);
        }
    assert_non_null(status);
    return status;
}

/*
 * Each write of each slot comes once and in order, however long the answers are; and they are not
 * all here at the same time.
 */
static void
long_answers(uint64_t fence_bytes_max)
{
    struct meta_options options = {.fence_bytes_max = fence_bytes_max};
    struct takeover_test t;
    Dl__FenceStatus message = DL__FENCE_STATUS__INIT;
    uint32_t known[SERVERS];
    uint32_t next[SERVERS + 1] = {0}; /* by server id: no write below it comes any more */
    uint32_t seen = 0, replies = 0, fetches = 0;
    uint64_t id;

    takeover_prepare(&t, LONG_SEGMENTS, &options);
    owner_dies(&t);
    all_silent(&t, true);
    id = start_attach(&t, 2, 0);
    for (uint32_t i = 0; i < SERVERS; i++) {
        assert_true(answer_part(&t, t.servers[i], 2));
        assert_false(answer_part(&t, t.servers[i], 2)); /* the rest when it is asked for */
    }
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    if (fence_bytes_max == 1)
        assert_int_equal(fence_bytes(&t), 0);

    message.volume = t.volume.id;
    message.lease_epoch = 2;
    message.wait_ms = 5000;
    message.known = known;
    while (message.n_known < SERVERS) {
        Dl__FenceStatusReply *status = poll_long(&t, &message, &fetches);

        assert_in_range(++replies, 1, 100);
        assert_in_range(fence_bytes(&t), 1, SERVERS * (uint64_t)LONG_PART * 72);
        /* What was begun goes on before anything new. */
        if (message.resume_server != 0)
            assert_int_equal(status->answers[0]->server_id, message.resume_server);
        message.resume_server = 0;
        for (size_t i = 0; i < status->n_answers; i++) {
            const Dl__FenceAnswer *answer = status->answers[i];

            assert_in_range(answer->server_id, 1, SERVERS);
            for (size_t k = 0; k < answer->n_chunks; k++) {
                const Dl__PendingChunk *chunk = answer->chunks[k];

                for (size_t w = 0; w < chunk->n_writes; w++) {
                    uint32_t number = long_number(chunk->segment, chunk->writes[w]->version);

                    assert_true(number >= next[answer->server_id]);
                    next[answer->server_id] = number + 1;
                    seen++;
                }
            }
            if (answer->more) {
                assert_int_equal(i, status->n_answers - 1); /* only the last one is cut */
                message.resume_server = answer->server_id;
                message.resume_segment = answer->next_segment;
                message.resume_slot = answer->next_slot;
                message.resume_version = answer->next_version;
            } else {
                known[message.n_known++] = answer->server_id;
            }
        }
        dl__fence_status_reply__free_unpacked(status, NULL);
    }
    assert_int_equal(seen, 3 * LONG_SEGMENTS * LONG_WRITES);
    assert_true(fetches >= SERVERS * 3);
    dl__fence_status_reply__free_unpacked(poll_long(&t, &message, &fetches), NULL);
    assert_int_equal(fence_bytes(&t), 0); /* nobody wants it any more */
    fixture_fini(&t.f);
}

static void
test_long_answers_come_in_parts(void **state)
{
    (void)state;
    long_answers(0);
}

/* No room for anything before the owner asks. */
static void
test_long_answers_without_room(void **state)
{
    (void)state;
    long_answers(1);
}

/* Nor does one that is away keep the others from being asked for theirs. */
static void
test_an_absent_server_holds_up_no_answer(void **state)
{
    struct meta_options options = {.fence_bytes_max = 1};

    (void)state;
    for (uint32_t absent = 0; absent < SERVERS; absent++) {
        struct takeover_test t;
        Dl__FenceStatus message = DL__FENCE_STATUS__INIT;
        Dl__FenceStatusReply *status;
        uint32_t fetches = 0;

        takeover_prepare(&t, LONG_SEGMENTS, &options);
        owner_dies(&t);
        all_silent(&t, true);
        (void)start_attach(&t, 2, 0);
        for (uint32_t i = 0; i < SERVERS; i++)
            assert_true(answer_part(&t, t.servers[i], 2));
        peer_disconnect(t.servers[absent]);
        message.volume = t.volume.id;
        message.lease_epoch = 2;
        message.wait_ms = 5000;
        status = poll_long(&t, &message, &fetches);
        assert_int_equal(status->n_answers, 1);
        assert_int_not_equal(status->answers[0]->server_id, t.servers[absent]->server_id);
        dl__fence_status_reply__free_unpacked(status, NULL);
        fixture_fini(&t.f);
    }
}

/* A server that dies in the middle of its answer is named, and goes on where it was. */
static void
test_server_dies_in_the_middle_of_its_answer(void **state)
{
    struct takeover_test t;
    Dl__FenceStatus message = DL__FENCE_STATUS__INIT;
    Dl__FenceStatusReply *status;
    struct peer *server;
    uint64_t id;

    (void)state;
    takeover_init(&t, LONG_SEGMENTS);
    all_silent(&t, true);
    (void)start_attach(&t, 2, 0);
    for (uint32_t i = 0; i < SERVERS; i++)
        assert_true(answer_part(&t, t.servers[i], 2));
    status = take_status(t.client, start_status(&t, 2, 5000, NULL, 0));
    assert_int_equal(status->n_answers, 1);
    assert_true(status->answers[0]->more);
    server = server_by_id(&t, status->answers[0]->server_id);
    message.volume = t.volume.id;
    message.lease_epoch = 2;
    message.wait_ms = 2000;
    message.resume_server = server->server_id;
    message.resume_segment = status->answers[0]->next_segment;
    message.resume_slot = status->answers[0]->next_slot;
    message.resume_version = status->answers[0]->next_version;
    dl__fence_status_reply__free_unpacked(status, NULL);
    id = peer_send(t.client, OP_FENCE_STATUS, &message.base);
    fixture_settle(&t.f);
    peer_restart_server(server);
    fixture_run(&t.f, 1900 * MS);
    assert_null(peer_take_reply(t.client, id));
    fixture_run(&t.f, 200 * MS);
    status = take_status(t.client, id);
    assert_non_null(status);
    assert_int_equal(status->n_answers, 0); /* one long answer at a time */
    assert_int_equal(status->n_waiting_for, 1);
    assert_int_equal(status->waiting_for[0], message.resume_server);
    dl__fence_status_reply__free_unpacked(status, NULL);

    id = peer_send(t.client, OP_FENCE_STATUS, &message.base);
    assert_int_equal(peer_register(server), 0);
    server->silent_command = true;
    fixture_settle(&t.f);
    assert_true(answer_part(&t, server, 2));
    status = take_status(t.client, id);
    assert_non_null(status);
    assert_int_equal(status->answers[0]->server_id, server->server_id);
    assert_true(status->answers[0]->chunks[0]->segment >= message.resume_segment);
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

/* --- restarts of the service in the middle --- */

static void
service_restarts(struct takeover_test *t)
{
    fixture_crash(&t->f, 0);
    fixture_start(&t->f);
    assert_true(t->f.ready);
    for (uint32_t i = 0; i < SERVERS; i++) {
        peer_restart_server(t->servers[i]);
        assert_int_equal(peer_register(t->servers[i]), 0);
    }
    t->client = fixture_client(&t->f);
}

static void
test_restart_while_attach_waits(void **state)
{
    struct takeover_test t;
    Dl__VolumeReply *info;
    uint64_t id;

    (void)state;
    takeover_init(&t, 4);
    all_silent(&t, true);
    (void)start_attach(&t, 2, 0);
    service_restarts(&t);
    /* The client asks again with the same attach id: the same lease, fenced again. */
    id = start_attach(&t, 2, 0);
    assert_null(peer_take_reply(t.client, id));
    for (uint32_t i = 0; i < SERVERS; i++)
        if (t.used[i])
            answer_fence(&t, t.servers[i], 2);
    assert_int_equal(fixture_reply_status(t.client, id), 0);
    assert_int_equal(ask_info(t.client, "v", &info), 0);
    assert_int_equal(info->volume->lease_epoch, 2);
    dl__volume_reply__free_unpacked(info, NULL);
    fixture_fini(&t.f);
}

static void
test_restart_after_attach_fences_again_on_request(void **state)
{
    struct takeover_test t;
    Dl__FenceStatusReply *status;
    Dl__AttachReply *reply;
    uint32_t known[1];
    uint32_t fences = 0;
    uint64_t id;

    (void)state;
    takeover_init(&t, 1);
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
    status = take_status(t.client, start_status(&t, 2, 0, NULL, 0));
    known[0] = status->answers[0]->server_id;
    dl__fence_status_reply__free_unpacked(status, NULL);
    service_restarts(&t);
    for (uint32_t i = 0; i < SERVERS; i++)
        t.servers[i]->fences = 0;
    /* The attach was answered: asked again it is answered at once, without a fence. */
    assert_int_equal(ask_attach(t.client, "v", 2, &reply), 0);
    assert_true(reply->takeover);
    dl__attach_reply__free_unpacked(reply, NULL);
    for (uint32_t i = 0; i < SERVERS; i++)
        assert_int_equal(t.servers[i]->fences, 0);
    /* The answers are gone: asked for again, but not from the server whose answer the owner has. */
    id = start_status(&t, 2, 5000, known, 1);
    status = take_status(t.client, id);
    assert_non_null(status);
    for (uint32_t i = 0; i < SERVERS; i++) {
        fences += t.servers[i]->fences;
        if (t.servers[i]->server_id == known[0])
            assert_int_equal(t.servers[i]->fences, 0);
    }
    assert_int_equal(fences, 2);
    dl__fence_status_reply__free_unpacked(status, NULL);
    fixture_fini(&t.f);
}

/* Nothing was ever written: nobody to fence. */
static void
test_volume_without_segments(void **state)
{
    struct fixture f;
    struct peer *client;
    Dl__AttachReply *reply;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "v", 64u << 20, NULL), 0);
    assert_int_equal(ask_attach(client, "v", 1, NULL), 0);
    peer_disconnect(client);
    fixture_run(&f, 5 * SECOND);
    client = fixture_client(&f);
    assert_int_equal(ask_attach(client, "v", 2, &reply), 0);
    assert_false(reply->takeover);
    assert_int_equal(reply->lease_epoch, 2);
    dl__attach_reply__free_unpacked(reply, NULL);
    fixture_fini(&f);
}

UNIT_MAIN(cmocka_unit_test(test_all_servers_answer),
          cmocka_unit_test(test_attach_waits_for_one_of_each_segment),
          cmocka_unit_test(test_old_lease_is_over_while_attach_waits),
          cmocka_unit_test(test_silent_servers_are_named),
          cmocka_unit_test(test_attach_in_progress_is_busy),
          cmocka_unit_test(test_interrupted_attach_is_taken_over),
          cmocka_unit_test(test_client_dies_while_its_lease_is_committed),
          cmocka_unit_test(test_fence_is_sent_again_after_a_reconnect),
          cmocka_unit_test(test_fence_is_sent_again_after_an_error),
          cmocka_unit_test(test_nonsense_answers_do_not_count),
          cmocka_unit_test(test_status_hands_on_the_answers),
          cmocka_unit_test(test_status_is_a_long_poll),
          cmocka_unit_test(test_status_ends_with_the_lease),
          cmocka_unit_test(test_status_without_takeover),
          cmocka_unit_test(test_slot_promoted_after_its_answer_is_named),
          cmocka_unit_test(test_slot_promoted_on_a_new_server_is_named),
          cmocka_unit_test(test_long_answers_come_in_parts),
          cmocka_unit_test(test_an_absent_server_holds_up_no_answer),
          cmocka_unit_test(test_long_answers_without_room),
          cmocka_unit_test(test_server_dies_in_the_middle_of_its_answer),
          cmocka_unit_test(test_restart_while_attach_waits),
          cmocka_unit_test(test_restart_after_attach_fences_again_on_request),
          cmocka_unit_test(test_volume_without_segments))
