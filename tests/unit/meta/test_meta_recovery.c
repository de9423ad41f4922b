/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recovery as the metadata service sees it: whose turn it is, limits, new attempts, promotion (rule
 * 17), other servers for slots of one that is out, and the chunks that are left behind (rule 24);
 * the service may die between any two steps.
 *
 * Servers answer SLOT_TELL by themselves; the test reports for them.
 */
#include "tests/unit/meta/cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- promotion: rule 17 --- */

static void
test_promotion(void **state)
{
    struct cluster_test t;
    uint32_t id;
    struct told told;

    (void)state;
    cluster_init(&t, 3, 1, NULL);
    id = cluster_slot(&t, 0, 2).server_id;
    cluster_server_goes(&t, id);
    cluster_eject(&t, 0, id);
    cluster_server_returns(&t, id);
    fixture_settle(&t.f);
    assert_int_equal(cluster_slot(&t, 0, 2).state, R);
    told = *peer_told(t.servers[id - 1], t.volume, 0);

    /* Not done; of an older attempt; of an older lease; of another slot; not this server's. */
    assert_int_equal(ask_report(t.servers[id - 1], &told, false, 100), 0);
    assert_int_equal(cluster_slot(&t, 0, 2).state, R);
    told.attempt--;
    assert_int_equal(ask_report(t.servers[id - 1], &told, true, 256), 0);
    assert_int_equal(cluster_slot(&t, 0, 2).state, R);
    told.attempt++;
    told.lease_epoch--;
    assert_int_equal(ask_report(t.servers[id - 1], &told, true, 256), 0);
    assert_int_equal(cluster_slot(&t, 0, 2).state, R);
    told.lease_epoch++;
    told.slot--;
    assert_int_equal(ask_report(t.servers[id - 1], &told, true, 256), 0);
    assert_int_equal(cluster_slot(&t, 0, 2).state, R);
    told.slot++;
    assert_int_equal(ask_report(t.servers[id % 3], &told, true, 256), 0);
    assert_int_equal(cluster_slot(&t, 0, 2).state, R);

    assert_int_equal(ask_report(t.servers[id - 1], &told, true, 256), 0);
    assert_int_equal(cluster_slot(&t, 0, 2).state, I);
    assert_int_equal(cluster_slot(&t, 0, 2).attempt, 0);
    assert_int_equal(cluster_epoch(&t, 0), told.config_epoch + 1);
    fixture_settle(&t.f);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(peer_told(t.servers[i], t.volume, 0)->state, I);
        assert_int_equal(peer_told(t.servers[i], t.volume, 0)->config_epoch, told.config_epoch + 1);
    }
    assert_int_equal(t.client->map_change->segments[0]->slots[2]->state, I);
    /* Again, as after a lost answer. */
    assert_int_equal(ask_report(t.servers[id - 1], &told, true, 256), 0);
    assert_int_equal(cluster_epoch(&t, 0), told.config_epoch + 1);
    fixture_fini(&t.f);
}

/* --- new attempts --- */

static void
test_attach_begins_new_attempts(void **state)
{
    struct cluster_test t;
    uint32_t id, attempt;

    (void)state;
    for (unsigned clean = 0; clean < 2; clean++) {
        Dl__AttachReply *reply;
        uint64_t revision;

        cluster_init(&t, 3, 2, NULL);
        id = cluster_slot(&t, 1, 0).server_id;
        cluster_server_goes(&t, id);
        cluster_eject(&t, 1, id);
        cluster_server_returns(&t, id);
        fixture_run(&t.f, 2 * SECOND);
        attempt = cluster_slot(&t, 1, 0).attempt;
        assert_int_equal(attempt, 3);
        assert_int_equal(ask_detach(t.client, t.volume, 1, clean == 1), 0);
        assert_int_equal(cluster_slot(&t, 1, 0).attempt, 3);
        revision = store_memory_db_revision(t.f.db);
        assert_int_equal(ask_attach(t.client, "v", 2, &reply), 0);
        /* One commit for the lease and the attempts; with a takeover one more, when it is ready. */
        assert_int_equal(store_memory_db_revision(t.f.db), revision + (clean == 1 ? 1 : 2));
        assert_int_equal(reply->takeover, clean == 0);
        assert_int_equal(reply->segments[0]->config_epoch, 1);
        attempt = clean == 1 ? 3 : 4;
        assert_int_equal(reply->segments[1]->config_epoch, attempt);
        assert_int_equal(reply->segments[1]->slots[0]->attempt, attempt);
        dl__attach_reply__free_unpacked(reply, NULL);
        assert_int_equal(peer_told(t.servers[id - 1], t.volume, 1)->attempt, attempt);
        assert_int_equal(peer_told(t.servers[id - 1], t.volume, 1)->lease_epoch, 2);
        fixture_fini(&t.f);
    }
}

/* A server that was started anew: before its registration is answered its attempts are new. */
static void
test_restarted_server_begins_new_attempts(void **state)
{
    struct cluster_test t;
    uint32_t id;

    (void)state;
    cluster_init(&t, 3, 40, NULL);
    id = cluster_slot(&t, 0, 0).server_id;
    cluster_server_goes(&t, id);
    for (uint32_t i = 0; i < 40; i++)
        cluster_eject(&t, i, id);
    cluster_server_returns(&t, id);
    fixture_settle(&t.f);
    assert_int_equal(cluster_slot(&t, 0, 0).state, R);
    assert_int_equal(cluster_slot(&t, 0, 0).attempt, 3);
    /* Only its connection broke: nothing changes. */
    t.servers[id - 1]->start_count--;
    t.servers[id - 1]->instance[2]--;
    cluster_server_returns(&t, id);
    fixture_settle(&t.f);
    assert_int_equal(cluster_slot(&t, 0, 0).attempt, 3);
    cluster_server_returns(&t, id);
    assert_int_equal(cluster_slot(&t, 0, 0).attempt, 4);
    fixture_settle(&t.f);
    assert_int_equal(peer_told(t.servers[id - 1], t.volume, 0)->attempt, 4);
    fixture_fini(&t.f);
}

/* --- whose turn --- */

static uint32_t
count_recovering(struct cluster_test *t, uint32_t segments, uint32_t id)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < segments; i++)
        for (uint32_t place = 0; place < 4; place++) {
            Dl__Slot slot = cluster_slot(t, i, place);

            count += slot.state == R && (id == 0 || slot.server_id == id);
        }
    return count;
}

static void
test_limits_and_order(void **state)
{
    struct meta_options options = {.recovery_per_server = 2};
    struct cluster_test t;
    uint32_t seen = 0;

    (void)state;
    cluster_init(&t, 3, 12, &options);
    cluster_server_goes(&t, 3);
    for (uint32_t i = 0; i < 12; i++)
        cluster_eject(&t, i, 3);
    fixture_run(&t.f, 10 * SECOND);
    assert_int_equal(count_recovering(&t, 12, 0), 0); /* it is not there */
    cluster_server_returns(&t, 3);
    for (unsigned round = 0; round < 6; round++) {
        fixture_run(&t.f, SECOND);
        assert_int_equal(count_recovering(&t, 12, 3), 2);
        /* Who was ejected first is first. */
        assert_int_equal(count_recovering(&t, 2 * round + 2, 3), 2);
        assert_true(cluster_recover(&t, 12));
        seen += 2;
    }
    assert_int_equal(seen, 12);
    cluster_check_whole(&t, 12);
    assert_false(cluster_recover(&t, 12));
    fixture_fini(&t.f);
}

/*
 * Attempts that do not get on (a source with bad sectors, say) keep their slots recovering, but
 * not others from their turn.
 */
static void
test_stuck_attempts_make_way(void **state)
{
    struct meta_options options = {.recovery_per_server = 2};
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 4, &options);
    cluster_server_goes(&t, 3);
    for (uint32_t i = 0; i < 4; i++)
        cluster_eject(&t, i, 3);
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, 20 * SECOND);
    assert_int_equal(count_recovering(&t, 4, 3), 2);
    /* As long as the cursor moves it is not stuck. */
    for (uint32_t i = 1; i <= 4; i++) {
        for (uint32_t segment = 0; segment < 2; segment++)
            assert_int_equal(
                ask_report(t.servers[2], peer_told(t.servers[2], t.volume, segment), false, i), 0);
        fixture_run(&t.f, 20 * SECOND);
        assert_int_equal(count_recovering(&t, 4, 3), 2);
    }
    fixture_run(&t.f, 20 * SECOND);
    assert_int_equal(count_recovering(&t, 4, 3), 4);
    assert_true(cluster_recover(&t, 4));
    cluster_check_whole(&t, 4);
    fixture_fini(&t.f);
}

/* Sources share the work: the first peer of each is the one to pull from. */
static void
test_sources_are_spread(void **state)
{
    struct cluster_test t;
    uint32_t from[4] = {0};

    (void)state;
    cluster_init(&t, 3, 8, NULL);
    cluster_server_goes(&t, 3);
    for (uint32_t i = 0; i < 8; i++)
        cluster_eject(&t, i, 3);
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, SECOND);
    assert_int_equal(count_recovering(&t, 8, 3), 4);
    for (uint32_t i = 0; i < t.servers[2]->tell_count; i++) {
        const struct told *told = &t.servers[2]->tells[i];

        assert_int_equal(told->state, R);
        assert_int_equal(told->peer_count, 2);
        from[told->peers[0]]++;
    }
    assert_int_equal(from[1], 2);
    assert_int_equal(from[2], 2);
    fixture_fini(&t.f);
}

/* A store that takes no writes can't take an attempt's config epoch: nobody is sent to it first. */
static void
test_stopped_server_is_no_source(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 4, NULL);
    cluster_server_goes(&t, 3);
    for (uint32_t i = 0; i < 4; i++)
        cluster_eject(&t, i, 3);
    (void)snprintf(t.servers[0]->stopped, sizeof(t.servers[0]->stopped), "the drive failed");
    fixture_run(&t.f, 5 * SECOND);
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, SECOND);
    assert_int_equal(count_recovering(&t, 4, 3), 4);
    assert_int_equal(t.servers[2]->tell_count, 4);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(t.servers[2]->tells[i].peers[0], 2);
    fixture_fini(&t.f);
}

/* Fewest in-sync slots first, whoever waits longer. */
static void
test_endangered_first(void **state)
{
    struct meta_options options = {.recovery_per_server = 1};
    struct cluster_test t;
    Dl__VolumeCreate create = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    ProtobufCMessage *reply;

    (void)state;
    cluster_init(&t, 3, 1, &options);
    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    policy.min_write = 1;
    create.policy = &policy;
    create.name = (char *)(uintptr_t) "w";
    create.size_bytes = 8 * MIB;
    create.segment_bytes = MIB;
    assert_int_equal(
        peer_ask(t.client, OP_VOLUME_CREATE, &create.base, &dl__volume_reply__descriptor, &reply),
        0);
    t.volume = ((Dl__VolumeReply *)reply)->volume->id;
    protobuf_c_message_free_unpacked(reply, NULL);
    assert_int_equal(ask_attach(t.client, "w", 2, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume, 1, 0, 2, NULL), 0);
    cluster_server_goes(&t, 2);
    cluster_server_goes(&t, 3);
    cluster_eject(&t, 0, 3); /* two in-sync */
    cluster_eject(&t, 1, 3);
    cluster_eject(&t, 1, 2); /* one */
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, SECOND);
    assert_int_equal(count_recovering(&t, 1, 0), 0);
    assert_int_equal(count_recovering(&t, 2, 3), 1);
    fixture_fini(&t.f);
}

static void
eject_full(struct cluster_test *t, uint32_t segment, uint32_t id)
{
    Dl__Eject message = DL__EJECT__INIT;
    Dl__Ejection ejection = DL__EJECTION__INIT;
    Dl__Ejection *ejections[1] = {&ejection};

    ejection.server_ids = &id;
    ejection.n_server_ids = 1;
    ejection.segment = segment;
    ejection.config_epoch = cluster_epoch(t, segment);
    ejection.reason = DL__EJECT_REASON__EJECT_FULL;
    message.volume = t->volume;
    message.lease_epoch = t->lease;
    message.ejections = ejections;
    message.n_ejections = 1;
    assert_int_equal(peer_ask(t->client, OP_EJECT, &message.base, NULL, NULL), 0);
}

static int
report_no_space(struct peer *server, const struct told *told)
{
    Dl__RecoveryReport message = DL__RECOVERY_REPORT__INIT;

    message.volume = told->volume;
    message.segment = told->segment;
    message.slot = told->slot;
    message.attempt = told->attempt;
    message.lease_epoch = told->lease_epoch;
    message.no_space = true;
    return peer_ask(server, OP_RECOVERY_REPORT, &message.base, NULL, NULL);
}

/*
 * What was given up because its server was full waits until that has room; meanwhile others may
 * take its slot.  What was given up for another reason may find that it needs no room.
 */
static void
test_full_server(void **state)
{
    struct cluster_test t;
    struct told told;

    (void)state;
    cluster_init(&t, 3, 1, NULL);
    t.servers[2]->used_bytes = t.servers[2]->capacity_bytes - MIB / 2;
    eject_full(&t, 0, 3);
    fixture_run(&t.f, 30 * SECOND);
    assert_int_equal(count_recovering(&t, 1, 0), 0);
    t.servers[2]->used_bytes = 0;
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(count_recovering(&t, 1, 3), 1);
    /* It has no room after all; a report of an attempt that is over changes nothing. */
    told = *peer_told(t.servers[2], t.volume, 0);
    t.servers[2]->used_bytes = t.servers[2]->capacity_bytes - MIB / 2;
    fixture_run(&t.f, 2 * SECOND);
    assert_int_equal(report_no_space(t.servers[2], &told), 0);
    fixture_run(&t.f, 30 * SECOND);
    assert_int_equal(count_recovering(&t, 1, 0), 0);
    t.servers[2]->used_bytes = 0;
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(count_recovering(&t, 1, 3), 1);
    assert_int_equal(report_no_space(t.servers[2], &told), 0);
    assert_int_equal(count_recovering(&t, 1, 3), 1);
    fixture_fini(&t.f);

    /* Those that recover there already need their room. */
    cluster_init(&t, 3, 4, NULL);
    t.servers[2]->used_bytes = t.servers[2]->capacity_bytes - 5 * MIB / 2;
    for (uint32_t i = 0; i < 4; i++)
        eject_full(&t, i, 3);
    fixture_run(&t.f, 30 * SECOND);
    assert_int_equal(count_recovering(&t, 4, 3), 2);
    fixture_fini(&t.f);

    cluster_init(&t, 3, 1, NULL);
    cluster_server_goes(&t, 3);
    cluster_eject(&t, 0, 3);
    t.servers[2]->used_bytes = t.servers[2]->capacity_bytes - MIB / 2;
    cluster_server_returns(&t, 3);
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(count_recovering(&t, 1, 3), 1);
    fixture_fini(&t.f);

    cluster_init(&t, 4, 8, NULL);
    for (uint32_t i = 0; i < 8; i++)
        if (cluster_slot(&t, i, 0).server_id == 3 || cluster_slot(&t, i, 1).server_id == 3 ||
            cluster_slot(&t, i, 2).server_id == 3)
            eject_full(&t, i, 3);
    t.servers[2]->used_bytes = t.servers[2]->capacity_bytes - MIB / 2;
    fixture_run(&t.f, 3 * SECOND);
    while (cluster_recover(&t, 8))
        continue;
    cluster_check_whole(&t, 8);
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t place = 0; place < 3; place++)
            assert_int_not_equal(cluster_slot(&t, i, place).server_id, 3);
    fixture_fini(&t.f);
}

/* --- out --- */

static void
test_out(void **state)
{
    struct meta_options options = {.out_after_ns = 60 * SECOND};
    struct cluster_test t;
    uint32_t had = 0;

    (void)state;
    cluster_init(&t, 4, 20, &options);
    for (uint32_t i = 0; i < 20; i++)
        for (uint32_t place = 0; place < 3; place++)
            had += cluster_slot(&t, i, place).server_id == 4;
    assert_true(had > 0);
    cluster_server_goes(&t, 4);
    fixture_run(&t.f, 59 * SECOND);
    assert_int_equal(count_recovering(&t, 20, 0), 0);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(cluster_epoch(&t, i), 1);
    fixture_run(&t.f, 3 * SECOND);
    assert_true(count_recovering(&t, 20, 0) > 0);
    while (cluster_recover(&t, 20))
        continue;
    cluster_check_whole(&t, 20);
    for (uint32_t i = 0; i < 20; i++)
        for (uint32_t place = 0; place < 3; place++) {
            Dl__Slot slot = cluster_slot(&t, i, place);

            assert_int_not_equal(slot.server_id, 4);
            for (uint32_t other = 0; other < place; other++)
                assert_int_not_equal(slot.server_id, cluster_slot(&t, i, other).server_id);
        }
    /* When it comes back the chunks that it had go. */
    cluster_server_returns(&t, 4);
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[3]->chunks_deleted, had);
    assert_int_equal(t.servers[3]->deleted.incarnation, 1);
    fixture_fini(&t.f);
}

/* The service dies after each step; what was begun goes on. */
static void
test_out_with_restarts(void **state)
{
    struct meta_options options = {.out_after_ns = 20 * SECOND};
    struct cluster_test t;
    unsigned rounds = 0;

    (void)state;
    cluster_init(&t, 4, 10, &options);
    cluster_server_goes(&t, 4);
    fixture_run(&t.f, 15 * SECOND);
    cluster_service_restarts(&t, false);
    fixture_run(&t.f, 15 * SECOND); /* 10 min begin anew */
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(cluster_epoch(&t, i), 1);
    fixture_run(&t.f, 7 * SECOND);
    do {
        cluster_service_restarts(&t, false);
        fixture_run(&t.f, 22 * SECOND);
        assert_true(rounds++ < 30);
    } while (cluster_recover(&t, 10));
    cluster_check_whole(&t, 10);
    cluster_service_restarts(&t, false);
    cluster_server_returns(&t, 4);
    fixture_run(&t.f, SECOND);
    assert_true(t.servers[3]->chunks_deleted > 0);
    cluster_service_restarts(&t, false);
    t.servers[3]->chunks_deleted = 0;
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[3]->chunks_deleted, 0); /* once answered it is over */
    fixture_fini(&t.f);
}

/* Of two that are out the last in-sync slot stays. */
static void
test_last_slot_is_never_ejected(void **state)
{
    struct meta_options options = {.out_after_ns = 20 * SECOND};
    struct cluster_test t;
    uint32_t in_sync;

    (void)state;
    cluster_init(&t, 3, 4, &options);
    for (uint32_t id = 1; id <= 3; id++)
        cluster_server_goes(&t, id);
    fixture_run(&t.f, 60 * SECOND);
    for (uint32_t i = 0; i < 4; i++) {
        in_sync = 0;
        for (uint32_t place = 0; place < 3; place++)
            in_sync += cluster_slot(&t, i, place).state == I;
        assert_int_equal(in_sync, 1);
    }
    /* The others recover from it when it is back. */
    for (uint32_t id = 1; id <= 3; id++)
        cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    while (cluster_recover(&t, 4))
        continue;
    cluster_check_whole(&t, 4);
    fixture_fini(&t.f);
}

/* A server that comes back before its time is up has everything still. */
static void
test_short_absence_moves_nothing(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 4, 10, NULL);
    cluster_server_goes(&t, 4);
    fixture_run(&t.f, 599 * SECOND);
    cluster_server_returns(&t, 4);
    fixture_run(&t.f, 700 * SECOND);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(cluster_epoch(&t, i), 1);
    fixture_fini(&t.f);
}

/* A store that takes no writes for long is as one that is down. */
static void
test_stopped_server_is_out(void **state)
{
    struct meta_options options = {.out_after_ns = 20 * SECOND};
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 4, 10, &options);
    (void)snprintf(t.servers[3]->stopped, sizeof(t.servers[3]->stopped), "the drive failed");
    fixture_run(&t.f, 19 * SECOND);
    assert_int_equal(count_recovering(&t, 10, 0), 0);
    fixture_run(&t.f, 5 * SECOND);
    while (cluster_recover(&t, 10))
        continue;
    cluster_check_whole(&t, 10);
    for (uint32_t i = 0; i < 10; i++)
        for (uint32_t place = 0; place < 3; place++)
            assert_int_not_equal(cluster_slot(&t, i, place).server_id, 4);
    fixture_fini(&t.f);
}

/* --- chunks that left the map: rule 24 --- */

/* Segment 0's slot on server `id` goes to another one. */
static void
move_away(struct cluster_test *t, uint32_t id)
{
    Dl__ServerDrain message = DL__SERVER_DRAIN__INIT;

    message.server_id = id;
    assert_int_equal(peer_ask(t->client, OP_SERVER_DRAIN, &message.base, NULL, NULL), 0);
    fixture_run(&t->f, SECOND);
    assert_int_equal(cluster_slot(t, 0, 3).state, R);
    while (cluster_recover(t, 1))
        continue;
    cluster_check_whole(t, 1);
}

static void
test_chunk_waits_for_the_owner(void **state)
{
    struct cluster_test t;
    uint32_t id;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    id = cluster_slot(&t, 0, 1).server_id;
    t.client->silent_map = true;
    move_away(&t, id);
    fixture_run(&t.f, 20 * SECOND);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 0);
    /* Neither a restart of the service makes it forget that the owner does not know. */
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    for (uint32_t i = 0; i < 4; i++)
        cluster_server_returns(&t, i + 1);
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 0);
    t.client = fixture_client(&t.f);
    t.client->silent_map = true;
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    fixture_run(&t.f, SECOND);
    assert_true(t.client->map_changes > 0); /* it hears of it again */
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 0);
    {
        struct fake_frame *frame = peer_take_request(t.client, OP_MAP_CHANGED);

        assert_non_null(frame);
        peer_answer(t.client, frame, 0, NULL);
        fake_frame_destroy(frame);
    }
    while (true) {
        struct fake_frame *frame = peer_take_request(t.client, OP_MAP_CHANGED);

        if (frame == NULL)
            break;
        peer_answer(t.client, frame, 0, NULL);
        fake_frame_destroy(frame);
    }
    fixture_settle(&t.f);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 1);
    assert_int_equal(t.servers[id - 1]->deleted.slot, 1);
    assert_int_equal(t.servers[id - 1]->fences, 0);
    fixture_fini(&t.f);
}

/* A new owner has no older map; the old one may still be there: it is shut out first. */
static void
test_chunk_of_an_older_owner(void **state)
{
    struct cluster_test t;
    uint32_t id;
    Dl__Attach message;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    id = cluster_slot(&t, 0, 1).server_id;
    t.client->silent_map = true;
    move_away(&t, id);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 0);
    fill_attach(&message, "v", 2);
    message.steal = true;
    assert_int_equal(peer_ask(fixture_client(&t.f), OP_ATTACH, &message.base, NULL, NULL), 0);
    fixture_settle(&t.f);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 1);
    assert_int_equal(t.servers[id - 1]->fence_of_volume[t.volume], 2);
    fixture_fini(&t.f);
}

/* Takes a CHUNK_DELETE from the inbox of a silent server and answers it: how many it names. */
static size_t
answer_deletion(struct cluster_test *t, struct peer *server)
{
    struct fake_frame *frame = peer_take_request(server, OP_CHUNK_DELETE);
    Dl__ChunkDelete *message;
    size_t count;

    assert_non_null(frame);
    message = (Dl__ChunkDelete *)fake_frame_unpack(frame, &dl__chunk_delete__descriptor);
    count = message->n_chunks;
    dl__chunk_delete__free_unpacked(message, NULL);
    peer_answer(server, frame, 0, NULL);
    fake_frame_destroy(frame);
    fixture_settle(&t->f);
    return count;
}

/*
 * A FENCE that was sent when the old owner was the owner does not shut him out: what the new one's
 * map has made free meanwhile waits for the next.
 */
static void
test_chunk_of_an_owner_after_the_fence(void **state)
{
    struct cluster_test t;
    Dl__ServerUndrain undrain = DL__SERVER_UNDRAIN__INIT;
    Dl__ServerDrain drain = DL__SERVER_DRAIN__INIT;
    struct fake_frame *fence;
    struct peer *server;
    Dl__Attach attach;
    uint32_t id, had = 0;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    assert_int_equal(ask_detach(t.client, t.volume, 1, true), 0);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    t.lease = 2;
    id = cluster_slot(&t, 0, 1).server_id;
    server = t.servers[id - 1];
    server->silent_command = true;
    move_away(&t, id);
    fence = peer_take_request(server, OP_FENCE);
    assert_non_null(fence);

    undrain.server_id = drain.server_id = id;
    assert_int_equal(peer_ask(t.client, OP_SERVER_UNDRAIN, &undrain.base, NULL, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume, 2, 1, 10, NULL), 0);
    for (uint32_t i = 1; i <= 10; i++)
        for (uint32_t place = 0; place < 3; place++)
            had += cluster_slot(&t, i, place).server_id == id;
    assert_true(had > 0);
    t.client->silent_map = true;
    assert_int_equal(peer_ask(t.client, OP_SERVER_DRAIN, &drain.base, NULL, NULL), 0);
    do
        fixture_run(&t.f, SECOND);
    while (cluster_recover(&t, 11));
    cluster_check_whole(&t, 11);
    fill_attach(&attach, "v", 2);
    attach.steal = true;
    assert_int_equal(peer_ask(fixture_client(&t.f), OP_ATTACH, &attach.base, NULL, NULL), 0);
    fixture_settle(&t.f);

    peer_answer(server, fence, 0, NULL);
    fake_frame_destroy(fence);
    fixture_settle(&t.f);
    assert_int_equal(answer_deletion(&t, server), 1);
    fence = peer_take_request(server, OP_FENCE);
    assert_non_null(fence);
    peer_answer(server, fence, 0, NULL);
    fake_frame_destroy(fence);
    fixture_settle(&t.f);
    assert_int_equal(answer_deletion(&t, server), had);
    fixture_fini(&t.f);
}

/*
 * The same, when the service dies before it has shut the older owner out: whose chunk it was is
 * forgotten, and so the server is fenced in any case.  Also if the owner after it has detached
 * cleanly meanwhile.
 */
static void
test_chunk_of_an_older_owner_after_a_restart(void **state)
{
    (void)state;
    for (unsigned detached = 0; detached < 2; detached++) {
        struct cluster_test t;
        Dl__Attach message;
        uint32_t id;

        cluster_init(&t, 4, 1, NULL);
        id = cluster_slot(&t, 0, 1).server_id;
        t.client->silent_map = true;
        move_away(&t, id);
        cluster_server_goes(&t, id);
        fill_attach(&message, "v", 2);
        message.steal = true;
        t.client = fixture_client(&t.f);
        assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL), 0);
        t.lease = 2;
        if (detached == 1)
            assert_int_equal(ask_detach(t.client, t.volume, 2, true), 0);
        fixture_crash(&t.f, 0);
        fixture_start(&t.f);
        for (uint32_t i = 0; i < 4; i++)
            if (i + 1 != id)
                cluster_server_returns(&t, i + 1);
        t.client = fixture_client(&t.f);
        if (detached == 0)
            assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
        fixture_run(&t.f, SECOND);
        cluster_server_returns(&t, id);
        fixture_run(&t.f, SECOND);
        assert_int_equal(t.servers[id - 1]->chunk_deletes, 1);
        assert_int_equal(t.servers[id - 1]->fence_of_volume[t.volume], 2);
        fixture_fini(&t.f);
    }
}

/*
 * The chunk leaves the map under the new owner, from a server that was away when the old one was
 * shut out, and that the next owner's takeover does not fence: the old owner may have it in his
 * map.
 */
static void
test_chunk_of_a_server_that_was_not_fenced(void **state)
{
    struct cluster_test t;
    Dl__Attach message;
    uint32_t id;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    id = cluster_slot(&t, 0, 1).server_id;
    cluster_server_goes(&t, id);
    fill_attach(&message, "v", 2);
    message.steal = true;
    t.client = fixture_client(&t.f);
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL), 0);
    t.lease = 2;
    move_away(&t, id);
    fill_attach(&message, "v", 3);
    message.steal = true;
    t.client = fixture_client(&t.f);
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL), 0);
    cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 1);
    assert_int_equal(t.servers[id - 1]->fence_of_volume[t.volume], 3);
    fixture_fini(&t.f);
}

static void
list_chunk(struct peer *peer, uint64_t volume, uint32_t segment, uint32_t slot,
           uint32_t config_epoch)
{
    Dl__ChunkEntry *entry = &peer->chunks[peer->chunk_count++];

    dl__chunk_entry__init(entry);
    entry->volume = volume;
    entry->segment = segment;
    entry->slot = slot;
    entry->incarnation = 1;
    entry->config_epoch = config_epoch;
}

/*
 * A server that starts anew says what it has.  What has surely left the map is deleted: of a slot
 * that the map gives to others, of a deleted volume.  Everything else stays: what the map names (an
 * ejected slot too), what is newer than the map, what the service has never heard of.
 */
static void
test_chunks_that_are_there_again(void **state)
{
    struct cluster_test t;
    struct peer *server;
    uint32_t id, other;
    Dl__Slot slot;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    id = cluster_slot(&t, 0, 1).server_id;
    server = t.servers[id - 1];
    move_away(&t, id);
    assert_int_equal(server->chunks_deleted, 1);
    list_chunk(server, t.volume, 0, 1, 1);
    list_chunk(server, t.volume, 0, 0, cluster_epoch(&t, 0) + 1);
    list_chunk(server, t.volume, 5, 1, 1);
    list_chunk(server, t.volume + 1, 0, 1, 1);
    /* One of an older version is not asked again and again. */
    server->old_list = true;
    cluster_server_goes(&t, id);
    cluster_server_returns(&t, id);
    fixture_run(&t.f, 10 * SECOND);
    assert_int_equal(server->lists, 1);
    server->old_list = false;
    cluster_server_goes(&t, id);
    cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    assert_int_equal(server->lists, 3);
    assert_int_equal(server->chunks_deleted, 2);
    assert_int_equal(server->deleted.volume, t.volume);
    assert_int_equal(server->deleted.segment, 0);
    assert_int_equal(server->deleted.slot, 1);
    assert_int_equal(server->deleted.incarnation, 1);
    /* Not by each registration. */
    cluster_server_goes(&t, id);
    server->start_count--;
    server->instance[2]--;
    cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    assert_int_equal(server->chunks_deleted, 2);

    /* What it has of the map: in-sync, then ejected. */
    slot = cluster_slot(&t, 0, 0);
    other = slot.server_id;
    list_chunk(t.servers[other - 1], t.volume, 0, slot.number, 1);
    cluster_server_goes(&t, other);
    cluster_server_returns(&t, other);
    fixture_run(&t.f, SECOND);
    cluster_server_goes(&t, other);
    cluster_eject(&t, 0, other);
    cluster_server_returns(&t, other);
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[other - 1]->chunks_deleted, 0);
    while (cluster_recover(&t, 1))
        continue;

    /* Volumes that were deleted; the one before is known by now, and has no segments. */
    assert_int_equal(ask_detach(t.client, t.volume, 1, true), 0);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_run(&t.f, SECOND);
    server->chunks_deleted = 0;
    cluster_server_goes(&t, id);
    cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    assert_int_equal(server->chunks_deleted, 3);
    fixture_fini(&t.f);
}

/* The service dies before a disk that went back has said what it has: it is asked again. */
static void
test_chunks_of_a_disk_that_went_back(void **state)
{
    (void)state;
    for (unsigned crash = 0; crash < 3; crash++) {
        struct cluster_test t;
        struct peer *server;
        uint32_t id;

        cluster_init(&t, 4, 1, NULL);
        id = cluster_slot(&t, 0, 1).server_id;
        server = t.servers[id - 1];
        cluster_server_goes(&t, id);
        cluster_server_returns(&t, id);
        move_away(&t, id);
        server->chunks_deleted = 0;
        list_chunk(server, t.volume, 0, 1, 1);
        server->silent_list = crash == 1;
        server->silent_command = crash == 2;
        cluster_server_goes(&t, id);
        server->start_count -= 2;
        cluster_server_returns(&t, id);
        fixture_run(&t.f, SECOND);
        server->silent_list = server->silent_command = false;
        if (crash > 0) {
            assert_int_equal(server->chunks_deleted, 0);
            cluster_service_restarts(&t, false);
            fixture_run(&t.f, SECOND);
        }
        assert_int_equal(server->chunks_deleted, 1);
        fixture_fini(&t.f);
    }
}

/* A deleted volume leaves no removal behind, whatever it was waiting for. */
static void
test_deleted_volume(void **state)
{
    struct cluster_test t;
    uint32_t id;

    (void)state;
    cluster_init(&t, 4, 1, NULL);
    id = cluster_slot(&t, 0, 1).server_id;
    t.client->silent_map = true;
    move_away(&t, id);
    cluster_server_goes(&t, id);
    assert_int_equal(ask_detach(t.client, t.volume, 1, true), 0);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    fixture_run(&t.f, SECOND);
    assert_int_equal(ask_info(t.client, "v", NULL), -DL_E_VOLUME_UNKNOWN);
    fixture_crash(&t.f, 0); /* the removal's record outlives the volume's */
    fixture_start(&t.f);
    assert_true(t.f.ready);
    cluster_server_returns(&t, id);
    fixture_run(&t.f, SECOND);
    assert_int_equal(t.servers[id - 1]->chunk_deletes, 1);
    fixture_fini(&t.f);
}

/* A volume that goes while it recovers. */
static void
test_volume_is_deleted_while_it_recovers(void **state)
{
    struct cluster_test t;

    (void)state;
    cluster_init(&t, 3, 8, NULL);
    cluster_server_goes(&t, 3);
    for (uint32_t i = 0; i < 8; i++)
        cluster_eject(&t, i, 3);
    cluster_server_returns(&t, 3);
    t.servers[0]->silent_tell = true;
    fixture_run(&t.f, SECOND);
    assert_int_equal(ask_detach(t.client, t.volume, 1, true), 0);
    assert_int_equal(ask_delete(t.client, "v"), 0);
    assert_int_equal(ask_report(t.servers[2], peer_told(t.servers[2], t.volume, 0), true, 256), 0);
    fixture_run(&t.f, 3 * SECOND);
    assert_int_equal(ask_create(t.client, "v", 512 * MIB, NULL), 0);
    fixture_crash(&t.f, 0);
    fixture_start(&t.f);
    assert_true(t.f.ready);
    fixture_fini(&t.f);
}

UNIT_MAIN(cmocka_unit_test(test_promotion), cmocka_unit_test(test_attach_begins_new_attempts),
          cmocka_unit_test(test_restarted_server_begins_new_attempts),
          cmocka_unit_test(test_limits_and_order), cmocka_unit_test(test_stuck_attempts_make_way),
          cmocka_unit_test(test_sources_are_spread), cmocka_unit_test(test_endangered_first),
          cmocka_unit_test(test_full_server), cmocka_unit_test(test_out),
          cmocka_unit_test(test_out_with_restarts),
          cmocka_unit_test(test_last_slot_is_never_ejected),
          cmocka_unit_test(test_short_absence_moves_nothing),
          cmocka_unit_test(test_stopped_server_is_no_source),
          cmocka_unit_test(test_stopped_server_is_out),
          cmocka_unit_test(test_chunk_waits_for_the_owner),
          cmocka_unit_test(test_chunk_of_an_older_owner),
          cmocka_unit_test(test_chunk_of_an_owner_after_the_fence),
          cmocka_unit_test(test_chunk_of_an_older_owner_after_a_restart),
          cmocka_unit_test(test_chunk_of_a_server_that_was_not_fenced),
          cmocka_unit_test(test_chunks_that_are_there_again),
          cmocka_unit_test(test_chunks_of_a_disk_that_went_back),
          cmocka_unit_test(test_deleted_volume),
          cmocka_unit_test(test_volume_is_deleted_while_it_recovers))
