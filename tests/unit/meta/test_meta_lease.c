/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attach, probe and detach: who gets a volume, who is refused and told by whom, and that each lease
 * is a new one.  Takeovers of what a dead owner left: test_meta_takeover.c.
 */
#include "tests/unit/meta/fixture.h"

#include <string.h>

struct lease_test {
    struct fixture f;
    struct peer *servers[3];
    struct peer *client;
    Dl__Volume volume;
};

static void
lease_init(struct lease_test *t)
{
    fixture_init(&t->f, NULL);
    for (uint32_t i = 0; i < 3; i++)
        t->servers[i] = fixture_server(&t->f, i + 1, "h");
    t->client = fixture_client(&t->f);
    assert_int_equal(ask_create(t->client, "v", 64u << 20, &t->volume), 0);
}

static void
test_attach_gives_a_lease(void **state)
{
    struct lease_test t;
    Dl__AttachReply *reply;
    Dl__VolumeReply *info;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, &reply), 0);
    assert_int_equal(reply->lease_epoch, 1);
    assert_false(reply->takeover);
    assert_int_equal(reply->segments_total, 0);
    assert_string_equal(reply->volume->name, "v");
    assert_string_equal(reply->volume->owner, "testhost 17 test");
    dl__attach_reply__free_unpacked(reply, NULL);
    assert_int_equal(ask_info(t.client, "v", &info), 0);
    assert_string_equal(info->volume->owner, "testhost 17 test");
    assert_false(info->volume->clean);
    dl__volume_reply__free_unpacked(info, NULL);
    fixture_fini(&t.f);
}

static void
test_same_attach_gets_the_same_answer(void **state)
{
    struct lease_test t;
    Dl__AttachReply *reply;
    struct peer *again;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 4, NULL), 0);
    /* The same on another connection: the first may be gone. */
    again = fixture_client(&t.f);
    assert_int_equal(ask_attach(again, "v", 1, &reply), 0);
    assert_int_equal(reply->lease_epoch, 1);
    assert_int_equal(reply->segments_total, 4);
    assert_int_equal(reply->n_segments, 4);
    assert_int_equal(reply->n_servers, 3);
    dl__attach_reply__free_unpacked(reply, NULL);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(t.servers[i]->fences, 0);
    fixture_fini(&t.f);
}

static void
test_living_owner_is_named(void **state)
{
    struct lease_test t;
    struct peer *other;
    Dl__VolumeReply *info;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    other = fixture_client(&t.f);
    assert_int_equal(ask_attach(other, "v", 2, NULL), -DL_E_VOLUME_BUSY);
    assert_int_equal(t.client->probes, 1);
    assert_non_null(strstr(fixture_error_text(), "testhost 17 test"));
    assert_non_null(strstr(fixture_error_text(), "127.0.0.1:5000"));
    assert_non_null(strstr(fixture_error_hint(), "--steal"));
    assert_int_equal(ask_info(other, "v", &info), 0);
    assert_int_equal(info->volume->lease_epoch, 1);
    dl__volume_reply__free_unpacked(info, NULL);
    fixture_fini(&t.f);
}

/* The owner's connection stands, but it doesn't answer for a second: it is dead. */
static void
test_silent_owner_loses_the_volume_after_a_second(void **state)
{
    struct lease_test t;
    struct peer *other;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    t.client->silent_probe = true;
    other = fixture_client(&t.f);
    fill_attach(&message, "v", 2);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&t.f, 900 * MS);
    assert_null(peer_take_reply(other, id));
    fixture_run(&t.f, 200 * MS);
    assert_int_equal(fixture_reply_status(other, id), 0);
    fixture_fini(&t.f);
}

/* It says itself that it doesn't have the volume any more. */
static void
test_owner_that_denies_loses_the_volume_at_once(void **state)
{
    struct lease_test t;
    struct peer *other;
    struct fake_frame *probe;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    t.client->silent_probe = true;
    other = fixture_client(&t.f);
    fill_attach(&message, "v", 2);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_settle(&t.f);
    probe = peer_take_request(t.client, OP_OWNER_PROBE);
    assert_non_null(probe);
    peer_answer(t.client, probe, -DL_E_LEASE_OLD, NULL);
    fake_frame_destroy(probe);
    fixture_settle(&t.f);
    assert_int_equal(fixture_reply_status(other, id), 0);
    fixture_fini(&t.f);
}

/* A connection that broke: the owner has a second to come back, and if it does it is asked. */
static void
test_owner_that_reconnects_keeps_the_volume(void **state)
{
    struct lease_test t;
    struct peer *other, *again;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    lease_init(&t);
    fixture_run(&t.f, 10 * SECOND); /* past the grace after the start */
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    peer_disconnect(t.client);
    other = fixture_client(&t.f);
    fill_attach(&message, "v", 2);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&t.f, 500 * MS);
    assert_null(peer_take_reply(other, id));
    again = fixture_client(&t.f);
    assert_int_equal(ask_map(again, t.volume.id, 1, 0, 0, NULL),
                     0); /* any request with the lease */
    assert_int_equal(again->probes, 1);
    assert_int_equal(fixture_reply_status(other, id), -DL_E_VOLUME_BUSY);

    peer_disconnect(again);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&t.f, 900 * MS);
    assert_null(peer_take_reply(other, id));
    fixture_run(&t.f, 200 * MS);
    assert_int_equal(fixture_reply_status(other, id), 0);
    fixture_fini(&t.f);
}

/*
 * The connection that the probe went to is dead, and nobody has noticed yet: the owner has another
 * one and is asked there.
 */
static void
test_owner_is_asked_on_its_new_connection(void **state)
{
    struct lease_test t;
    struct peer *other, *again;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    lease_init(&t);
    fixture_run(&t.f, 10 * SECOND);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    t.client->silent_probe = true;
    other = fixture_client(&t.f);
    fill_attach(&message, "v", 2);
    id = peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&t.f, 500 * MS);
    assert_int_equal(t.client->probes, 1);
    again = fixture_client(&t.f);
    assert_int_equal(ask_map(again, t.volume.id, 1, 0, 0, NULL), 0);
    assert_int_equal(again->probes, 1);
    assert_int_equal(fixture_reply_status(other, id), -DL_E_VOLUME_BUSY);

    /* What comes late over the old one does not make it the owner's again. */
    assert_int_equal(ask_map(t.client, t.volume.id, 1, 0, 0, NULL), 0);
    peer_disconnect(t.client);
    fixture_run(&t.f, 5 * SECOND);
    assert_int_equal(ask_attach(other, "v", 2, NULL), -DL_E_VOLUME_BUSY);
    fixture_fini(&t.f);
}

/* What was pushed while the owner had no connection is told when it has one again. */
static void
test_owner_that_missed_news(void **state)
{
    struct lease_test t;
    struct peer *other, *again;
    struct fake_frame *frame;
    Dl__VolumeResize message = DL__VOLUME_RESIZE__INIT;
    Dl__VolumeChanged *changed;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_null(peer_take_request(t.client, OP_VOLUME_CHANGED));
    peer_disconnect(t.client);
    other = fixture_client(&t.f);
    message.name = (char *)(uintptr_t) "v";
    message.size_bytes = 128u << 20;
    assert_int_equal(peer_ask(other, OP_VOLUME_RESIZE, &message.base, NULL, NULL), 0);
    again = fixture_client(&t.f);
    assert_int_equal(ask_map(again, t.volume.id, 1, 0, 1, NULL), 0);
    frame = peer_take_request(again, OP_VOLUME_CHANGED);
    assert_non_null(frame);
    changed = (Dl__VolumeChanged *)fake_frame_unpack(frame, &dl__volume_changed__descriptor);
    assert_int_equal(changed->volume->size_bytes, 128u << 20);
    assert_int_equal(changed->volume->lease_epoch, 1);
    assert_false(changed->deleted);
    dl__volume_changed__free_unpacked(changed, NULL);
    fake_frame_destroy(frame);
    assert_int_equal(ask_map(again, t.volume.id, 1, 0, 1, NULL), 0);
    assert_null(peer_take_request(again, OP_VOLUME_CHANGED)); /* once */
    fixture_fini(&t.f);
}

/* An attach that is asked again is answered before its client is asked whether it is the owner. */
static void
test_answer_comes_before_the_probe(void **state)
{
    struct lease_test t;
    struct peer *other, *again;
    struct fake_frame *frame;
    Dl__Attach message;

    (void)state;
    lease_init(&t);
    fixture_run(&t.f, 10 * SECOND);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    peer_disconnect(t.client);
    other = fixture_client(&t.f);
    fill_attach(&message, "v", 2);
    (void)peer_send(other, OP_ATTACH, &message.base);
    fixture_run(&t.f, 100 * MS);
    again = fixture_client(&t.f);
    fill_attach(&message, "v", 1);
    (void)peer_send(again, OP_ATTACH, &message.base);
    fake_env_settle(&t.f.env);
    frame = fake_link_next(&again->link);
    assert_non_null(frame);
    assert_int_equal(frame->frame.opcode, OP_PING);
    peer_answer(again, frame, 0, NULL);
    fake_frame_destroy(frame);
    fake_env_settle(&t.f.env);
    frame = fake_link_next(&again->link);
    assert_non_null(frame);
    assert_int_equal(frame->frame.opcode, OP_ATTACH);
    fake_frame_destroy(frame);
    frame = fake_link_next(&again->link);
    assert_non_null(frame);
    assert_int_equal(frame->frame.opcode, OP_OWNER_PROBE);
    fake_frame_destroy(frame);
    fixture_fini(&t.f);
}

static void
test_owner_gone_for_long_is_not_waited_for(void **state)
{
    struct lease_test t;
    struct peer *other;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    peer_disconnect(t.client);
    fixture_run(&t.f, 5 * SECOND);
    other = fixture_client(&t.f);
    assert_int_equal(ask_attach(other, "v", 2, NULL), 0); /* in no time */
    fixture_fini(&t.f);
}

static void
test_steal_takes_from_the_living(void **state)
{
    struct lease_test t;
    struct peer *thief;
    struct fake_frame *notice;
    Dl__VolumeChanged *changed;
    Dl__Attach message;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 1, NULL), 0);
    thief = fixture_client(&t.f);
    fill_attach(&message, "v", 2);
    message.steal = true;
    assert_int_equal(peer_ask(thief, OP_ATTACH, &message.base, NULL, NULL), 0);
    assert_int_equal(t.client->probes, 0);
    notice = peer_take_request(t.client, OP_VOLUME_CHANGED);
    assert_non_null(notice);
    changed = (Dl__VolumeChanged *)fake_frame_unpack(notice, &dl__volume_changed__descriptor);
    assert_int_equal(changed->volume->id, t.volume.id);
    assert_int_equal(changed->volume->lease_epoch, 2);
    dl__volume_changed__free_unpacked(changed, NULL);
    fake_frame_destroy(notice);
    /* And the old lease is over. */
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 1, 1, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, true), -DL_E_LEASE_OLD);
    assert_int_equal(ask_allocate(thief, t.volume.id, 2, 1, 1, NULL), 0);
    fixture_fini(&t.f);
}

/*
 * A connection that was given up can bring its ATTACH late: nobody lives there who would have the
 * volume.
 */
static void
test_a_late_steal(void **state)
{
    struct lease_test t;
    struct peer *late;
    Dl__Attach message;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    late = fixture_client(&t.f);
    late->deaf = true;
    fill_attach(&message, "v", 2);
    message.steal = true;
    (void)peer_send(late, OP_ATTACH, &message.base);
    fixture_run(&t.f, 10 * SECOND);
    assert_true(late->link.down);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 1, NULL), 0);
    fixture_fini(&t.f);
}

static void
test_clean_detach(void **state)
{
    struct lease_test t;
    Dl__AttachReply *reply;
    Dl__VolumeReply *info;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 1, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, true), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, true), 0); /* done is done */
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 1, 1, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(ask_info(t.client, "v", &info), 0);
    assert_string_equal(info->volume->owner, "");
    assert_true(info->volume->clean);
    dl__volume_reply__free_unpacked(info, NULL);

    assert_int_equal(ask_attach(t.client, "v", 2, &reply), 0);
    assert_int_equal(reply->lease_epoch, 2);
    assert_false(reply->takeover);
    dl__attach_reply__free_unpacked(reply, NULL);
    assert_int_equal(t.servers[0]->fences, 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, true), -DL_E_LEASE_OLD);
    fixture_fini(&t.f);
}

static void
test_unclean_detach_leads_to_a_takeover(void **state)
{
    struct lease_test t;
    Dl__AttachReply *reply;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(t.client, t.volume.id, 1, 0, 1, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, false), 0);
    assert_int_equal(ask_attach(t.client, "v", 2, &reply), 0); /* no owner: no probe */
    assert_int_equal(t.client->probes, 0);
    assert_true(reply->takeover);
    dl__attach_reply__free_unpacked(reply, NULL);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(t.servers[i]->fence_epoch, 2);
    fixture_fini(&t.f);
}

static void
test_bad_attaches(void **state)
{
    struct lease_test t;
    Dl__Attach message;
    char long_name[301];

    (void)state;
    lease_init(&t);
    fill_attach(&message, "v", 1);
    message.attach_id.len = 15;
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(ask_attach(t.client, "nobody", 1, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_non_null(strstr(fixture_error_text(), "nobody"));
    memset(long_name, 'x', 300);
    long_name[300] = '\0';
    assert_int_equal(ask_attach(t.client, long_name, 1, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_attach(t.client, "v\n\x1b[2J", 1, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_null(strchr(fixture_error_text(), '\x1b'));
    assert_int_equal(ask_attach(t.client, "", 1, NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_detach(t.client, 999, 1, true), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_detach(t.client, t.volume.id, 7, true), -DL_E_LEASE_OLD);
    fixture_fini(&t.f);
}

/* The owner's name is shown to people: no control characters, and not longer than a line. */
static void
test_owner_text_is_cleaned(void **state)
{
    struct lease_test t;
    Dl__Attach message;
    Dl__VolumeReply *info;
    char owner[1001];

    (void)state;
    lease_init(&t);
    memset(owner, 'o', 1000);
    owner[0] = '\x1b';
    owner[1000] = '\0';
    fill_attach(&message, "v", 1);
    message.owner = owner;
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL), 0);
    assert_int_equal(ask_info(t.client, "v", &info), 0);
    assert_int_equal(strlen(info->volume->owner), 128);
    assert_int_equal(info->volume->owner[0], '?');
    dl__volume_reply__free_unpacked(info, NULL);
    fixture_fini(&t.f);
}

/* --- readers --- */

static int
ask_attach_read_only(struct peer *peer, uint8_t n, bool steal)
{
    Dl__Attach message;

    fill_attach(&message, "v", n);
    message.read_only = true;
    message.steal = steal;
    return peer_ask(peer, OP_ATTACH, &message.base, NULL, NULL);
}

/* A reader is not sent to a program that is dead: what is left of it must be settled first. */
static void
test_reader_after_a_dead_owner(void **state)
{
    struct lease_test t;
    struct peer *reader;
    Dl__Attach message;
    uint64_t id;

    (void)state;
    lease_init(&t);
    reader = fixture_client(&t.f);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_int_equal(ask_attach_read_only(reader, 2, false), -DL_E_VOLUME_BUSY);
    peer_disconnect(t.client);
    fill_attach(&message, "v", 3);
    message.read_only = true;
    id = peer_send(reader, OP_ATTACH, &message.base);
    fixture_run(&t.f, 2 * SECOND); /* it may reconnect */
    assert_int_equal(fixture_reply_status(reader, id), -DL_E_FENCE_PENDING);
    assert_non_null(strstr(fixture_error_text(), "of its last owner"));
    fixture_fini(&t.f);
}

static void
test_readers_and_writers_exclude_each_other(void **state)
{
    struct lease_test t;
    struct peer *first, *second;
    Dl__Attach message;
    struct fake_frame *notice;

    (void)state;
    lease_init(&t);
    first = fixture_client(&t.f);
    second = fixture_client(&t.f);
    assert_int_equal(ask_attach_read_only(first, 1, false), 0);
    assert_int_equal(ask_attach_read_only(second, 2, false), 0);
    assert_int_equal(ask_map(first, t.volume.id, 0, 0, 0, NULL), 0);
    assert_int_equal(ask_attach(t.client, "v", 3, NULL), -DL_E_VOLUME_BUSY);
    assert_non_null(strstr(fixture_error_text(), "reading 2 times"));
    assert_int_equal(ask_delete(t.client, "v"), -DL_E_VOLUME_BUSY);

    /* One detaches, the other one's connection breaks: free. */
    assert_int_equal(ask_detach(first, t.volume.id, 0, true), 0);
    assert_int_equal(ask_attach(t.client, "v", 3, NULL), -DL_E_VOLUME_BUSY);
    peer_disconnect(second);
    assert_int_equal(ask_attach(t.client, "v", 3, NULL), 0);
    assert_int_equal(ask_attach_read_only(first, 4, false), -DL_E_VOLUME_BUSY);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, false), 0);
    assert_int_equal(ask_attach_read_only(first, 4, false), -DL_E_FENCE_PENDING); /* not clean */
    assert_int_equal(ask_attach(t.client, "v", 5, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 2, true), 0);

    /* A writer may insist: the reader is told. */
    assert_int_equal(ask_attach_read_only(first, 6, false), 0);
    fill_attach(&message, "v", 7);
    message.steal = true;
    assert_int_equal(peer_ask(t.client, OP_ATTACH, &message.base, NULL, NULL), 0);
    notice = peer_take_request(first, OP_VOLUME_CHANGED);
    assert_non_null(notice);
    fake_frame_destroy(notice);
    fixture_fini(&t.f);
}

/* --- the end of lease epochs --- */

static void
test_lease_epochs_end(void **state)
{
    struct lease_test t;
    uint32_t epoch = 0;

    (void)state;
    lease_init(&t);
    assert_int_equal(ask_attach(t.client, "v", 1, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, 1, true), 0);
    /* Near the end: the record is changed as a restore does, 2^24 - 3. */
    fixture_crash(&t.f, 0);
    epoch = META_LEASE_EPOCH_MAX - 1;
    fixture_raise_lease_epoch(&t.f, t.volume.id, epoch);
    fixture_start(&t.f);
    t.client = fixture_client(&t.f);
    assert_int_equal(ask_attach(t.client, "v", 2, NULL), 0);
    assert_int_equal(ask_detach(t.client, t.volume.id, META_LEASE_EPOCH_MAX, true), 0);
    assert_int_equal(ask_attach(t.client, "v", 3, NULL), -DL_E_LIMIT);
    fixture_fini(&t.f);
}

UNIT_MAIN(cmocka_unit_test(test_attach_gives_a_lease),
          cmocka_unit_test(test_same_attach_gets_the_same_answer),
          cmocka_unit_test(test_living_owner_is_named),
          cmocka_unit_test(test_silent_owner_loses_the_volume_after_a_second),
          cmocka_unit_test(test_owner_that_denies_loses_the_volume_at_once),
          cmocka_unit_test(test_owner_that_reconnects_keeps_the_volume),
          cmocka_unit_test(test_owner_is_asked_on_its_new_connection),
          cmocka_unit_test(test_owner_that_missed_news),
          cmocka_unit_test(test_answer_comes_before_the_probe),
          cmocka_unit_test(test_owner_gone_for_long_is_not_waited_for),
          cmocka_unit_test(test_steal_takes_from_the_living), cmocka_unit_test(test_a_late_steal),
          cmocka_unit_test(test_clean_detach),
          cmocka_unit_test(test_unclean_detach_leads_to_a_takeover),
          cmocka_unit_test(test_bad_attaches), cmocka_unit_test(test_owner_text_is_cleaned),
          cmocka_unit_test(test_readers_and_writers_exclude_each_other),
          cmocka_unit_test(test_reader_after_a_dead_owner), cmocka_unit_test(test_lease_epochs_end))
