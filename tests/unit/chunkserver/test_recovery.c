/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots that recover, between real chunkservers: what each request is answered in which state of a
 * slot, what a source gives and when it does not, and that a slot becomes whole whatever dies,
 * hangs or is told twice on the way.  The numbers are those of the rules in docs/recovery.md.
 */
#include "tests/unit/chunkserver/recovery_fixture.h"

#include "chunkserver/peer.h"

/* --- memory --- */

/* The next one with so much in one piece fails: a recovery's. */
static size_t calloc_fails_bytes;
static uint32_t calloc_failures;

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);

void *
__wrap_calloc(size_t count, size_t bytes)
{
    if (calloc_fails_bytes == 0 || count != 1 || bytes < calloc_fails_bytes)
        return __real_calloc(count, bytes);
    calloc_fails_bytes = 0;
    calloc_failures++;
    return NULL;
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
    assert_int_equal(chunk_table_fence(fx->servers[2].store->chunks, VOLUME), 1);

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

/* Without memory for the recovery the answer is no success, so that it is told again. */
static void
test_no_memory_for_a_recovery(void **state)
{
    struct fixture *fx = fixture_create(2);

    (void)state;
    fill(fx, 1);
    tell_in_sync(fx, 0, 5);
    calloc_fails_bytes = STORE_IO_SECTORS_MAX * sizeof(struct store_sector);
    assert_int_equal(wait_answer(fx, send_attempt(fx, 2, 5, 5, 5, 1))->status, -DL_E_NO_MEMORY);
    assert_int_equal(calloc_failures, 1);
    tell_attempt(fx, 2, 5, 5, 1);
    wait_reported(fx, 2, 5);
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

/* Rule 10: what is confirmed under an attempt is not lost by the promotion. */
static void
test_stable_around_promotion(void **state)
{
    (void)state;
    check_stable_around_promotion(&model_backing);
}

/* While an attempt begins nothing is served that is about to be void. */
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
    assert_int_equal(chunk_table_fence(fx->servers[2].store->chunks, VOLUME), 3);
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
    /* Up to a bad sector, if there is something before it. */
    sector_of(fx, 0, 4).data[100] ^= 0x40;
    answer = pull_now(fx, 0, &message);
    assert_int_equal(answer->status, 0);
    reply = dl__pull_reply__unpack(NULL, answer->body_bytes, answer->body);
    assert_non_null(reply);
    assert_int_equal(reply->next_sector, 4);
    assert_int_equal(reply->n_runs, 2);
    assert_int_equal(answer->payload_bytes, 3 * 4096);
    dl__pull_reply__free_unpacked(reply, NULL);
    message.first_sector = 4;
    assert_int_equal(pull_now(fx, 0, &message)->status, -DL_E_CRC_DATA);
    message.first_sector = 0;
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

/* A source that has not been told, one that is gone, one with bad sectors: none of them ends it. */
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

/*
 * A source that the metadata service does not reach hears of no attempt, and says NOT_YET for as
 * long as that lasts: another one is asked.
 */
static void
test_source_is_never_told(void **state)
{
    struct fixture *fx = fixture_create(6);

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 1, 5);
    tell_attempt(fx, 2, 5, 5, 3);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_same(fx, 1, 2);
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

/* Whole, and cut off before it was promoted: the same attempt is reported after the restart. */
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

/* The report is repeated, also on the next connection, until the slot is told. */
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
    meta_restart(fx);
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

/* While a client is at it, a target rests twice as long as it has pulled, and goes on. */
static void
test_target_rests(void **state)
{
    struct fixture *fx = fixture_create(9);
    uint32_t pulling = 0, samples = 0;

    (void)state;
    fill(fx, 1);
    tell_in_sync(fx, 0, 5);
    (void)asker_up(fx, 2, true);
    fx->servers[0].disk.profile.read_ns_min = fx->servers[0].disk.profile.read_ns_max = 2 * SIM_MS;
    tell_attempt(fx, 2, 5, 5, 1);
    while (!is_reported(fx, 2, 5)) {
        (void)send_read(fx, 2, 0, 1, 5);
        run_for(fx, 200 * SIM_US);
        pulling += fx->servers[2].core->pulls_as_target > 0;
        samples++;
        assert_true(samples < 10000);
    }
    assert_in_range(pulling, samples / 5, samples / 2);
    fixture_destroy(fx);
}

/* A stop when both sources are gone, and have just been idle for long enough to be forgotten. */
static void
test_stop_with_idle_sources(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 10; i++) {
        struct fixture *fx = fixture_create(i + 1);
        struct server *server = &fx->servers[2];
        struct sim_process *before;

        fill(fx, 3);
        tell_in_sync(fx, 0, 5);
        tell_in_sync(fx, 1, 5);
        sector_of(fx, 0, 3).data[100] ^= 0x40; /* both are asked */
        tell_attempt(fx, 2, 5, 5, 3);
        wait_reported(fx, 2, 5);
        tell_in_sync(fx, 2, 6);
        assert_int_equal(list_length(&server->core->peers), 2);
        server_crash(&fx->servers[0]);
        server_crash(&fx->servers[1]);
        run_for(fx, PEER_IDLE_NS - 500 * SIM_MS + i * 100 * SIM_MS);
        before = sim_enter(&server->process);
        chunkserver_core_stop(server->core, on_stopped, server);
        sim_leave(&server->process, before);
        run_for(fx, 8 * SIM_S);
        assert_true(server->stopped);
        sim_process_kill(&server->process, false);
        chunkserver_core_destroy(server->core);
        server->backing->close(server);
        server->core = NULL;
        fixture_destroy(fx);
    }
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
        server->backing->close(server);
        server->core = NULL;
        fixture_destroy(fx);
    }
}

/* The first that is under way; NULL: none. */
static const struct session_call *
pull_of(const struct server *server)
{
    const struct peer *peer;

    list_for_each_entry (peer, &server->core->peers, node)
        for (uint32_t i = 0; i < peer->session.slot_count; i++)
            if (peer->session.slots[i].call != NULL)
                return peer->session.slots[i].call;
    return NULL;
}

/* Stopped while the link has an answer to a PULL: it is closed, and its end is that of the stop. */
static void
test_stop_ends_with_the_link(void **state)
{
    struct fixture *fx = fixture_create(1);
    struct server *server = &fx->servers[2];
    const struct session_call *call = NULL;
    struct sim_process *before;

    (void)state;
    fill(fx, 1);
    tell_in_sync(fx, 0, 5);
    fx->world.net.split_percent = 100;
    (void)send_attempt(fx, 2, 5, 5, 5, 1);
    while (call == NULL || !call->receiving) {
        assert_true(sim_world_step(&fx->world, UINT64_MAX));
        call = pull_of(server);
    }
    before = sim_enter(&server->process);
    chunkserver_core_stop(server->core, on_stopped, server);
    sim_leave(&server->process, before);
    run_for(fx, 8 * SIM_S);
    assert_true(server->stopped);
    sim_process_kill(&server->process, false);
    chunkserver_core_destroy(server->core);
    server->backing->close(server);
    server->core = NULL;
    fixture_destroy(fx);
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

UNIT_MAIN(
    cmocka_unit_test(test_recovering_slot_answers), cmocka_unit_test(test_no_memory_for_a_recovery),
    cmocka_unit_test(test_promotion_by_write), cmocka_unit_test(test_attempt_about_to_begin),
    cmocka_unit_test(test_stable_around_promotion), cmocka_unit_test(test_read_of_a_replaced_chunk),
    cmocka_unit_test(test_told_twice), cmocka_unit_test(test_deleted_while_it_begins),
    cmocka_unit_test(test_bad_slot_tells), cmocka_unit_test(test_pending),
    cmocka_unit_test(test_source_needs_the_epoch),
    cmocka_unit_test(test_source_waits_for_slow_writes), cmocka_unit_test(test_what_a_source_gives),
    cmocka_unit_test(test_roles), cmocka_unit_test(test_pulls_are_bounded),
    cmocka_unit_test(test_whole_segment), cmocka_unit_test(test_only_what_is_missing),
    cmocka_unit_test(test_sources_fail), cmocka_unit_test(test_source_is_never_told),
    cmocka_unit_test(test_sources_recover_or_hang), cmocka_unit_test(test_restart_of_the_target),
    cmocka_unit_test(test_restart_when_whole), cmocka_unit_test(test_reports_are_repeated),
    cmocka_unit_test(test_new_attempt_in_the_middle), cmocka_unit_test(test_foreground_first),
    cmocka_unit_test(test_target_rests), cmocka_unit_test(test_stop_in_the_middle),
    cmocka_unit_test(test_stop_with_idle_sources), cmocka_unit_test(test_stop_ends_with_the_link),
    cmocka_unit_test(test_histories), cmocka_unit_test(test_crash_at_any_moment))
