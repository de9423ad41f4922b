/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random histories: clients, servers and the service itself come and go while volumes are made,
 * attached, stolen, allocated, detached and deleted; the store takes time and loses what was not
 * completed.  Checked on every answer, against what was answered before:
 *
 *   - lease epochs only grow; one lease epoch belongs to one attach
 *   - a lease that is known to be over gets nothing any more
 *   - no takeover only after a clean detach of the lease before; a takeover is answered only when
 *     for each segment a server has been fenced with this lease or a higher one
 *   - a segment that was answered once never changes; its servers are distinct
 *   - at the end everything that was answered is there
 *
 * DLBLK_TEST_SEED=n replays one history, DLBLK_TEST_LOG=1 shows what the service says.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/meta.pb-c.h"
#include "meta/schema.h"

#define MIB       (1ull << 20)
#define SERVERS   4u
#define CLIENTS   3u
#define NAMES     3u
#define SEGMENTS  24u
#define VOLUMES   FENCED_VOLUMES_MAX
#define STEPS     400u
#define ASKED_MAX 4096u

enum ask_kind { ASK_CREATE, ASK_ATTACH, ASK_ALLOCATE, ASK_DETACH, ASK_DELETE, ASK_INFO };

struct asked {
    enum ask_kind kind;
    uint32_t client;
    uint64_t id;
    unsigned life; /* of the client's connection */
    uint32_t name;
    uint64_t volume;
    uint32_t lease;
    bool over; /* allocate: the lease was known to be over when it was sent */
    bool steal;
    uint8_t attach;
    bool done;
};

struct model_volume {
    bool created; /* an answer said so */
    bool delete_sent;
    bool deleted; /* an answer said so */
    uint32_t name;
    uint32_t lease;              /* the highest that an answer told */
    uint8_t attach_of[256];      /* by lease, modulo: which attach got it */
    bool clean_sent[256];        /* by lease, modulo: a clean detach was asked for */
    uint32_t slots[SEGMENTS][3]; /* server ids; 0: never seen */
};

struct model_client {
    struct peer *peer;
    unsigned life;
    /* What it believes to own. */
    uint64_t volume;
    uint32_t lease;
};

struct history {
    struct fixture f;
    struct fake_rng rng;
    struct peer *servers[SERVERS];
    struct model_client clients[CLIENTS];
    struct model_volume volumes[VOLUMES];
    struct asked asked[ASKED_MAX];
    uint32_t asked_count;
    uint8_t next_attach;
    uint64_t counts[6], answered_ok[6], takeovers, steals, crashes, refused_over;
};

static const char *const names[NAMES] = {"alpha", "beta", "gamma"};

static struct asked *
history_ask(struct history *h, enum ask_kind kind, uint32_t client)
{
    struct asked *asked = &h->asked[h->asked_count++];

    assert_true(h->asked_count < ASKED_MAX);
    *asked = (struct asked){.kind = kind, .client = client, .life = h->clients[client].life};
    h->counts[kind]++;
    return asked;
}

static struct model_volume *
model_of(struct history *h, uint64_t id)
{
    assert_true(id > 0 && id < VOLUMES);
    return &h->volumes[id];
}

/* --- asking --- */

static void
ask_random(struct history *h)
{
    uint32_t c = (uint32_t)fake_rng_below(&h->rng, CLIENTS);
    struct model_client *client = &h->clients[c];
    uint32_t name = (uint32_t)fake_rng_below(&h->rng, NAMES);
    unsigned dice = (unsigned)fake_rng_below(&h->rng, 100);
    struct asked *asked;

    if (client->peer == NULL || client->peer->link.down)
        return;
    if (client->lease == 0 && dice >= 40 && dice < 88)
        dice = 39; /* nothing to allocate in or to detach from */
    if (dice < 12) {
        Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
        Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;

        asked = history_ask(h, ASK_CREATE, c);
        policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
        message.policy = &policy;
        message.name = (char *)(uintptr_t)names[name];
        message.size_bytes = SEGMENTS * MIB;
        message.segment_bytes = 1 << 20;
        asked->name = name;
        asked->id = peer_send(client->peer, OP_VOLUME_CREATE, &message.base);
    } else if (dice < 40) {
        Dl__Attach message;

        asked = history_ask(h, ASK_ATTACH, c);
        asked->attach = ++h->next_attach;
        asked->steal = fake_rng_percent(&h->rng, 30);
        fill_attach(&message, names[name], asked->attach);
        message.steal = asked->steal;
        message.wait_ms = 2000;
        asked->id = peer_send(client->peer, OP_ATTACH, &message.base);
    } else if (dice < 75) {
        Dl__Allocate message = DL__ALLOCATE__INIT;
        uint32_t segments[4];

        asked = history_ask(h, ASK_ALLOCATE, c);
        asked->volume = client->volume;
        asked->lease = client->lease;
        asked->over = model_of(h, client->volume)->lease > client->lease ||
                      model_of(h, client->volume)->deleted;
        for (unsigned i = 0; i < 4; i++)
            segments[i] = (uint32_t)fake_rng_below(&h->rng, SEGMENTS);
        message.volume = client->volume;
        message.lease_epoch = client->lease;
        message.segments = segments;
        message.n_segments = 1 + fake_rng_below(&h->rng, 4);
        asked->id = peer_send(client->peer, OP_ALLOCATE, &message.base);
    } else if (dice < 88) {
        Dl__Detach message = DL__DETACH__INIT;

        asked = history_ask(h, ASK_DETACH, c);
        message.volume = asked->volume = client->volume;
        message.lease_epoch = asked->lease = client->lease;
        message.clean = fake_rng_percent(&h->rng, 60);
        if (message.clean)
            model_of(h, client->volume)->clean_sent[client->lease % 256] = true;
        asked->id = peer_send(client->peer, OP_DETACH, &message.base);
        client->lease = 0; /* it has promised to send nothing any more */
    } else if (dice < 90) {
        Dl__VolumeDelete message = DL__VOLUME_DELETE__INIT;

        asked = history_ask(h, ASK_DELETE, c);
        asked->name = name;
        message.name = (char *)(uintptr_t)names[name];
        for (uint64_t id = 1; id < VOLUMES; id++)
            if (h->volumes[id].name == name)
                h->volumes[id].delete_sent = true;
        asked->id = peer_send(client->peer, OP_VOLUME_DELETE, &message.base);
    } else {
        Dl__VolumeInfo message = DL__VOLUME_INFO__INIT;

        asked = history_ask(h, ASK_INFO, c);
        message.name = (char *)(uintptr_t)names[name];
        asked->id = peer_send(client->peer, OP_VOLUME_INFO, &message.base);
    }
    fixture_settle(&h->f); /* some are asked back: all begin in this order */
}

/* --- answers --- */

static void
check_segments(struct history *h, uint64_t volume, Dl__Segment **segments, size_t count)
{
    struct model_volume *model = model_of(h, volume);

    for (size_t i = 0; i < count; i++) {
        uint32_t index = segments[i]->index;

        assert_true(index < SEGMENTS);
        assert_int_equal(segments[i]->n_slots, 3);
        for (unsigned k = 0; k < 3; k++) {
            uint32_t server = segments[i]->slots[k]->server_id;

            assert_in_range(server, 1, SERVERS);
            for (unsigned l = 0; l < k; l++)
                assert_int_not_equal(server, segments[i]->slots[l]->server_id);
            if (model->slots[index][k] != 0)
                assert_int_equal(model->slots[index][k], server);
            model->slots[index][k] = server;
        }
    }
}

/* For each segment one of its servers refuses the leases before this one. */
static void
check_fenced(struct history *h, uint64_t volume, uint32_t lease, Dl__Segment **segments,
             size_t count)
{
    for (size_t i = 0; i < count; i++) {
        bool fenced = false;

        for (unsigned k = 0; k < 3; k++)
            for (uint32_t s = 0; s < SERVERS; s++)
                fenced = fenced ||
                         (s + 1 ==
                              segments[i]->slots[k]->server_id && /* as they registered first */
                          h->servers[s]->fence_of_volume[volume] >= lease);
        assert_true(fenced);
    }
}

static void
on_attach(struct history *h, struct asked *asked, const struct fake_frame *frame)
{
    Dl__AttachReply *reply = (Dl__AttachReply *)fake_frame_unpack(frame,
                                                                  &dl__attach_reply__descriptor);
    uint64_t volume = reply->volume->id;
    uint32_t lease = reply->lease_epoch;
    struct model_volume *model = model_of(h, volume);

    assert_false(model->deleted);
    assert_true(lease >= model->lease);
    if (model->attach_of[lease % 256] != 0)
        assert_int_equal(model->attach_of[lease % 256], asked->attach);
    model->attach_of[lease % 256] = asked->attach;
    if (lease + 1 < 256)
        assert_int_equal(model->attach_of[lease + 1], 0);
    model->lease = lease;
    check_segments(h, volume, reply->segments, reply->n_segments);
    if (reply->takeover) {
        h->takeovers++;
        check_fenced(h, volume, lease, reply->segments, reply->n_segments);
    } else if (reply->n_segments > 0) {
        assert_true(model->clean_sent[(lease - 1) % 256]);
    }
    h->steals += asked->steal;
    h->clients[asked->client].volume = volume;
    h->clients[asked->client].lease = lease;
    dl__attach_reply__free_unpacked(reply, NULL);
}

static void
on_info(struct history *h, const struct fake_frame *frame)
{
    Dl__VolumeReply *reply = (Dl__VolumeReply *)fake_frame_unpack(frame,
                                                                  &dl__volume_reply__descriptor);
    struct model_volume *model = model_of(h, reply->volume->id);

    assert_false(model->deleted);
    assert_true(reply->volume->lease_epoch >= model->lease);
    dl__volume_reply__free_unpacked(reply, NULL);
}

static void
on_create(struct history *h, struct asked *asked, const struct fake_frame *frame)
{
    Dl__VolumeReply *reply = (Dl__VolumeReply *)fake_frame_unpack(frame,
                                                                  &dl__volume_reply__descriptor);
    struct model_volume *model = model_of(h, reply->volume->id);

    assert_false(model->created); /* an id is given once */
    model->created = true;
    model->name = asked->name;
    dl__volume_reply__free_unpacked(reply, NULL);
}

static void
on_answer(struct history *h, struct asked *asked, const struct fake_frame *frame)
{
    int status = frame->frame.status;

    asked->done = true;
    if (asked->kind == ASK_ALLOCATE && asked->over) {
        assert_true(status < 0);
        h->refused_over++;
    }
    if (status < 0)
        return;
    h->answered_ok[asked->kind]++;
    switch (asked->kind) {
    case ASK_CREATE:
        on_create(h, asked, frame);
        break;
    case ASK_ATTACH:
        on_attach(h, asked, frame);
        break;
    case ASK_ALLOCATE: {
        Dl__MapReply *reply = (Dl__MapReply *)fake_frame_unpack(frame, &dl__map_reply__descriptor);

        check_segments(h, asked->volume, reply->segments, reply->n_segments);
        dl__map_reply__free_unpacked(reply, NULL);
        break;
    }
    case ASK_INFO:
        on_info(h, frame);
        break;
    case ASK_DETACH:
    case ASK_DELETE:
        break;
    }
}

static void
take_answers(struct history *h)
{
    for (uint32_t i = 0; i < h->asked_count; i++) {
        struct asked *asked = &h->asked[i];
        struct model_client *client = &h->clients[asked->client];
        struct fake_frame *frame;

        if (asked->done || asked->life != client->life || client->peer == NULL)
            continue;
        frame = peer_take_reply(client->peer, asked->id);
        if (frame == NULL)
            continue;
        on_answer(h, asked, frame);
        fake_frame_destroy(frame);
    }
}

/* --- coming and going --- */

static void
drop_peer(struct peer *peer)
{
    if (peer == NULL)
        return;
    peer_disconnect(peer);
    peer->used = false;
}

static void
client_returns(struct history *h, uint32_t c)
{
    Dl__Hello hello;
    struct model_client *client = &h->clients[c];
    uint64_t id;

    drop_peer(client->peer);
    client->life++;
    client->peer = fixture_connect(&h->f);
    peer_fill_hello(client->peer, &hello);
    id = peer_send(client->peer, OP_HELLO, &hello.base);
    fixture_settle(&h->f);
    fake_frame_destroy(peer_take_reply(client->peer, id));
    client->peer->silent_probe = fake_rng_percent(&h->rng, 30);
}

static void
server_returns(struct history *h, uint32_t s)
{
    peer_restart_server(h->servers[s]);
    (void)peer_send_register(h->servers[s]);
    h->servers[s]->silent_command = fake_rng_percent(&h->rng, 20);
}

static void
service_restarts(struct history *h)
{
    h->crashes++;
    fixture_crash(&h->f, fake_rng_next(&h->rng));
    fixture_start(&h->f);
    fixture_run(&h->f, 50 * MS); /* the store takes its time to load */
    assert_true(h->f.ready);
    for (uint32_t s = 0; s < SERVERS; s++)
        server_returns(h, s);
    for (uint32_t c = 0; c < CLIENTS; c++)
        client_returns(h, c);
}

static void
random_event(struct history *h)
{
    unsigned dice = (unsigned)fake_rng_below(&h->rng, 1000);
    uint32_t s = (uint32_t)fake_rng_below(&h->rng, SERVERS);

    if (dice < 15) {
        service_restarts(h);
    } else if (dice < 50) {
        client_returns(h, (uint32_t)fake_rng_below(&h->rng, CLIENTS));
    } else if (dice < 90) {
        if (h->servers[s]->connected && !h->servers[s]->link.down)
            peer_disconnect(h->servers[s]);
        else
            server_returns(h, s);
    } else if (dice < 130) {
        server_returns(h, s);
    } else if (dice < 700) {
        ask_random(h);
        ask_random(h);
    } else {
        uint64_t ns = fake_rng_percent(&h->rng, 10) ? 2 * SECOND : 20 * MS;

        fixture_run(&h->f, fake_rng_below(&h->rng, ns));
    }
    fixture_settle(&h->f);
    take_answers(h);
}

/* --- the end: all is quiet, everything is up --- */

static void
check_no_deletion_is_left(struct history *h)
{
    for (uint32_t i = 0; i < store_memory_db_count(h->f.db); i++) {
        struct store_item item = store_memory_db_item(h->f.db, i);
        Dl__Meta__VolumeRecord *record;
        uint64_t id;

        if (!schema_parse_volume(item.key, &id))
            continue;
        record = dl__meta__volume_record__unpack(NULL, item.value.length_bytes, item.value.bytes);
        assert_non_null(record);
        assert_false(record->deleting);
        dl__meta__volume_record__free_unpacked(record, NULL);
    }
}

static void
check_end(struct history *h)
{
    struct peer *client;

    h->f.store_options = (struct store_memory_options){0, 0};
    service_restarts(h);
    for (uint32_t s = 0; s < SERVERS; s++)
        h->servers[s]->silent_command = false;
    for (uint32_t s = 0; s < SERVERS; s++)
        server_returns(h, s);
    for (uint32_t s = 0; s < SERVERS; s++)
        h->servers[s]->silent_command = false;
    fixture_run(&h->f, 3 * SECOND);
    take_answers(h);
    client = h->clients[0].peer;
    for (uint64_t id = 1; id < VOLUMES; id++) {
        struct model_volume *model = &h->volumes[id];
        Dl__MapReply *map;

        if (!model->created || model->delete_sent)
            continue;
        assert_int_equal(ask_map(client, id, 0, 0, 0, &map), 0);
        check_segments(h, id, map->segments, map->n_segments);
        for (uint32_t i = 0; i < SEGMENTS; i++) {
            bool there = false;

            for (size_t k = 0; k < map->n_segments; k++)
                there = there || map->segments[k]->index == i;
            if (model->slots[i][0] != 0)
                assert_true(there);
        }
        dl__map_reply__free_unpacked(map, NULL);
    }
    check_no_deletion_is_left(h);
}

static void
run_history(struct history *h, uint64_t seed)
{
    memset(h, 0, sizeof(*h));
    fake_rng_init(&h->rng, seed);
    fixture_init_database(&h->f, NULL);
    h->f.store_options = (struct store_memory_options){10000, 3 * MS};
    fixture_start(&h->f);
    fixture_run(&h->f, 50 * MS);
    for (uint32_t s = 0; s < SERVERS; s++) {
        h->servers[s] = fixture_server_hello(&h->f, s + 1, "h");
        (void)peer_send_register(h->servers[s]);
    }
    for (uint32_t c = 0; c < CLIENTS; c++)
        client_returns(h, c);
    fixture_run(&h->f, 50 * MS);
    for (uint32_t s = 0; s < SERVERS; s++)
        assert_int_equal(h->servers[s]->server_id, s + 1);
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
    uint64_t count = one != NULL ? 1 : 240;
    uint64_t counts[6] = {0}, answered_ok[6] = {0};
    uint64_t takeovers = 0, steals = 0, crashes = 0, refused_over = 0;
    struct history *h = calloc(1, sizeof(*h));

    (void)state;
    for (uint64_t seed = first; seed < first + count; seed++) {
        if (one != NULL || getenv("DLBLK_TEST_VERBOSE") != NULL)
            print_message("seed %llu\n", (unsigned long long)seed);
        run_history(h, seed);
        for (unsigned i = 0; i < 6; i++) {
            counts[i] += h->counts[i];
            answered_ok[i] += h->answered_ok[i];
        }
        takeovers += h->takeovers;
        steals += h->steals;
        crashes += h->crashes;
        refused_over += h->refused_over;
    }
    free(h);
    print_message(
        "create %llu/%llu attach %llu/%llu allocate %llu/%llu "
        "detach %llu/%llu delete %llu/%llu info %llu/%llu; "
        "%llu takeovers, %llu steals, %llu crashes, %llu requests of leases that were over\n",
        (unsigned long long)answered_ok[0], (unsigned long long)counts[0],
        (unsigned long long)answered_ok[1], (unsigned long long)counts[1],
        (unsigned long long)answered_ok[2], (unsigned long long)counts[2],
        (unsigned long long)answered_ok[3], (unsigned long long)counts[3],
        (unsigned long long)answered_ok[4], (unsigned long long)counts[4],
        (unsigned long long)answered_ok[5], (unsigned long long)counts[5],
        (unsigned long long)takeovers, (unsigned long long)steals, (unsigned long long)crashes,
        (unsigned long long)refused_over);
    if (one != NULL)
        return;
    /* It did what it is for. */
    for (unsigned i = 0; i < 6; i++)
        assert_true(answered_ok[i] > 100);
    assert_true(takeovers > 100 && steals > 100 && crashes > 300 && refused_over > 100);
}

UNIT_MAIN(cmocka_unit_test(test_random_histories))
