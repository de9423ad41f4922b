/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunkservers: registration, a disk that was copied or has gone back, up and down.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <string.h>

static Dl__ServerListReply *
list_servers(struct peer *client)
{
    Dl__ServerList message = DL__SERVER_LIST__INIT;
    ProtobufCMessage *reply;

    assert_int_equal(
        peer_ask(client, OP_SERVER_LIST, &message.base, &dl__server_list_reply__descriptor, &reply),
        0);
    return (Dl__ServerListReply *)reply;
}

static Dl__ServerState
state_of(struct peer *client, uint32_t id)
{
    Dl__ServerListReply *list = list_servers(client);
    Dl__ServerState state = DL__SERVER_STATE__SERVER_NONE;

    for (size_t i = 0; i < list->n_servers; i++)
        if (list->servers[i]->id == id)
            state = list->servers[i]->state;
    dl__server_list_reply__free_unpacked(list, NULL);
    return state;
}

static void
test_registration(void **state)
{
    struct fixture f;
    struct peer *first, *second, *client;
    Dl__ServerListReply *list;

    (void)state;
    fixture_init(&f, NULL);
    first = fixture_server_hello(&f, 1, "alpha");
    snprintf(first->rack, sizeof(first->rack), "r1");
    snprintf(first->clique, sizeof(first->clique), "c1");
    first->used_bytes = 5000;
    assert_int_equal(peer_register(first), 0);
    second = fixture_server_hello(&f, 2, "");
    assert_int_equal(peer_register(second), 0);
    assert_int_equal(first->server_id, 1);
    assert_int_equal(second->server_id, 2);
    client = fixture_client(&f);
    list = list_servers(client);
    assert_int_equal(list->n_servers, 2);
    assert_string_equal(list->servers[0]->address, "127.0.0.1:10001");
    assert_string_equal(list->servers[0]->host, "alpha");
    assert_string_equal(list->servers[0]->rack, "r1");
    assert_string_equal(list->servers[0]->clique, "c1");
    assert_int_equal(list->servers[0]->state, DL__SERVER_STATE__SERVER_UP);
    assert_true(list->servers[0]->capacity_bytes == 1ull << 40);
    assert_true(list->servers[0]->used_bytes == 5000);
    assert_string_equal(list->servers[0]->problem, "");
    assert_memory_equal(list->servers[0]->uuid.data, first->uuid, 16);
    assert_string_equal(list->servers[1]->host, "127.0.0.1"); /* no label: what the address says */
    dl__server_list_reply__free_unpacked(list, NULL);

    /* It moved: same disk, same id, other labels. */
    peer_restart_server(first);
    snprintf(first->address, sizeof(first->address), "[::1]:9999");
    snprintf(first->host, sizeof(first->host), "beta");
    assert_int_equal(peer_register(first), 0);
    assert_int_equal(first->server_id, 1);
    list = list_servers(client);
    assert_int_equal(list->n_servers, 2);
    assert_string_equal(list->servers[0]->address, "[::1]:9999");
    assert_string_equal(list->servers[0]->host, "beta");
    dl__server_list_reply__free_unpacked(list, NULL);
    fixture_fini(&f);
}

static void
test_bad_registrations(void **state)
{
    struct fixture f;
    struct peer *server, *client;
    Dl__ServerRegister message;
    Dl__ServerListReply *list;
    uint8_t other[16] = "not-this-disk";
    char long_text[301];
    static const char *const addresses[] = {"",      "host", "host:0", "host:99999",
                                            "a b:1", ":1",   "x:1:2"};
    static const char *const labels[] = {"a b", "-x", "h\n", "\xc3\xa4", "a/b"};

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server_hello(&f, 1, "h");
    client = fixture_client(&f);
    memset(long_text, 'x', 300);
    long_text[300] = '\0';
    peer_fill_register(server, &message);
    message.uuid = bytes_of(other, 16);
    assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    peer_fill_register(server, &message);
    message.uuid.len = 3;
    assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    peer_fill_register(server, &message);
    message.start_count = 0;
    assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                     -DL_E_MESSAGE_MALFORMED);
    for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        peer_fill_register(server, &message);
        message.address = (char *)(uintptr_t)addresses[i];
        assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                         -DL_E_CONFIG_INVALID);
    }
    peer_fill_register(server, &message);
    message.address = long_text;
    assert_true(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL) < 0);
    for (size_t i = 0; i < sizeof(labels) / sizeof(labels[0]); i++) {
        peer_fill_register(server, &message);
        message.host = (char *)(uintptr_t)labels[i];
        assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                         -DL_E_NAME_INVALID);
        peer_fill_register(server, &message);
        message.clique = (char *)(uintptr_t)labels[i];
        assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                         -DL_E_NAME_INVALID);
    }
    peer_fill_register(server, &message);
    message.rack = long_text;
    assert_int_equal(peer_ask(server, OP_SERVER_REGISTER, &message.base, NULL, NULL),
                     -DL_E_NAME_INVALID);
    {
        Dl__ServerHeartbeat heartbeat = DL__SERVER_HEARTBEAT__INIT;

        assert_int_equal(peer_ask(server, OP_SERVER_HEARTBEAT, &heartbeat.base, NULL, NULL),
                         -DL_E_SERVER_UNKNOWN);
    }
    list = list_servers(client);
    assert_int_equal(list->n_servers, 0); /* nothing of all this left a trace */
    dl__server_list_reply__free_unpacked(list, NULL);
    assert_int_equal(peer_register(server), 0);
    fixture_fini(&f);
}

static void
test_server_limit(void **state)
{
    struct meta_options options = {.servers_max = 2};
    struct fixture f;
    struct peer *third, *again;

    (void)state;
    fixture_init(&f, &options);
    again = fixture_server(&f, 1, "h");
    (void)fixture_server(&f, 2, "h");
    third = fixture_server_hello(&f, 3, "h");
    assert_int_equal(peer_register(third), -DL_E_LIMIT);
    peer_restart_server(again); /* known ones are welcome */
    assert_int_equal(peer_register(again), 0);
    fixture_fini(&f);
}

/* --- two processes with one disk --- */

/* The n-th disk once more, as another process. */
static struct peer *
copy_of(struct fixture *f, uint32_t n, uint64_t start_count)
{
    struct peer *copy = fixture_server_hello(f, n, "elsewhere");

    copy->start_count = start_count;
    return copy;
}

static void
test_copied_disk_is_refused_while_the_original_lives(void **state)
{
    struct fixture f;
    struct peer *original, *copy;

    (void)state;
    fixture_init(&f, NULL);
    original = fixture_server(&f, 1, "h");
    copy = copy_of(&f, 1, 2);
    assert_int_equal(peer_register(copy), -DL_E_SERVER_DUPLICATE);
    assert_non_null(strstr(fixture_error_text(), "127.0.0.1:10001"));
    assert_non_null(strstr(fixture_error_hint(), "format"));
    assert_false(original->link.down);
    fixture_run(&f, 10 * SECOND);
    assert_int_equal(state_of(fixture_client(&f), original->server_id),
                     DL__SERVER_STATE__SERVER_UP);
    fixture_fini(&f);
}

/*
 * The old connection stands, but nobody answers there: the machine was reset.  The restarted server
 * gets in after a second.
 */
static void
test_dead_connection_gives_way(void **state)
{
    struct fixture f;
    struct peer *original, *restarted;
    Dl__ServerRegister message;
    uint64_t id;

    (void)state;
    fixture_init(&f, NULL);
    original = fixture_server(&f, 1, "h");
    original->deaf = true;
    restarted = copy_of(&f, 1, 2);
    peer_fill_register(restarted, &message);
    id = peer_send(restarted, OP_SERVER_REGISTER, &message.base);
    fixture_run(&f, 900 * MS);
    assert_null(peer_take_reply(restarted, id));
    fixture_run(&f, 200 * MS);
    assert_int_equal(fixture_reply_status(restarted, id), 0);
    assert_true(original->link.down);
    fixture_fini(&f);
}

/* The same process on a new connection: the old one is a leftover. */
static void
test_same_process_reconnects(void **state)
{
    struct fixture f;
    struct peer *original, *again;

    (void)state;
    fixture_init(&f, NULL);
    original = fixture_server(&f, 1, "h");
    original->deaf = true;
    again = fixture_server_of_process(&f, 1, "h", original->instance);
    assert_int_equal(peer_register(again), 0); /* at once */
    assert_int_equal(again->server_id, original->server_id);
    fixture_settle(&f);
    assert_true(original->link.down);
    fixture_fini(&f);
}

/*
 * Was the last registration taken as that of an older copy?  What then is in test_meta_servers.c.
 */
static bool
went_back(struct fixture *f)
{
    bool result = strstr(f->last_warning, "is an older copy of itself") != NULL;

    f->last_warning[0] = '\0';
    return result;
}

static void
test_disk_that_went_back(void **state)
{
    struct fixture f;
    struct peer *server;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server_hello(&f, 1, "h");
    server->start_count = 5;
    server->journal_position = 1000;
    assert_int_equal(peer_register(server), 0);

    /* Fewer starts than the disk had. */
    peer_restart_server(server);
    server->start_count = 4;
    assert_int_equal(peer_register(server), 0);
    assert_true(went_back(&f));

    /* As many starts, but another process: a copy that was started too. */
    peer_restart_server(server);
    server->start_count = 4;
    assert_int_equal(peer_register(server), -DL_E_SERVER_DUPLICATE);

    /* The copy goes on; the original, which has none of what the copy got, comes back. */
    peer_restart_server(server);
    server->start_count = 5;
    server->journal_position = 1200;
    assert_int_equal(peer_register(server), 0);
    assert_false(went_back(&f));
    peer_restart_server(server);
    server->start_count = 6;
    assert_int_equal(peer_register(server), 0);
    assert_false(went_back(&f)); /* it could be the copy still: 5 was the most that ever was */
    peer_restart_server(server);
    server->start_count = 3;
    server->journal_position = 1300;
    assert_int_equal(peer_register(server), 0);
    assert_true(went_back(&f));
    peer_restart_server(server);
    server->start_count = 7;
    server->journal_position = 1400;
    assert_int_equal(peer_register(server), 0);
    assert_true(went_back(&f));

    /* More starts, but the journal ends before what it had. */
    peer_restart_server(server);
    server->start_count = 8;
    server->journal_position = 1399;
    assert_int_equal(peer_register(server), 0);
    assert_true(went_back(&f));
    fixture_fini(&f);
}

/*
 * A connection that was given up can bring its registration long after a later one was taken.  That
 * says less than what is known, but nobody lives there: it is no older copy, and changes nothing.
 */
static void
test_late_registrations(void **state)
{
    struct fixture f;
    struct peer *server, *again, *late;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server_hello(&f, 1, "h");
    server->start_count = 5;
    server->journal_position = 1000;
    assert_int_equal(peer_register(server), 0);
    again = fixture_server_of_process(&f, 1, "h", server->instance);
    again->start_count = 5;
    again->journal_position = 1500;
    assert_int_equal(peer_register(again), 0);

    /* Of the same process. */
    late = fixture_server_of_process(&f, 1, "h", server->instance);
    late->deaf = true;
    late->start_count = 5;
    late->journal_position = 1200;
    (void)peer_send_register(late);
    fixture_run(&f, 10 * SECOND);
    assert_false(went_back(&f));
    assert_true(late->link.down);
    assert_false(again->link.down);
    assert_int_equal(state_of(fixture_client(&f), again->server_id), DL__SERVER_STATE__SERVER_UP);

    /* Of an earlier one, while the disk has no connection. */
    peer_disconnect(again);
    late = fixture_server_hello(&f, 1, "h");
    late->deaf = true;
    late->start_count = 4;
    late->journal_position = 900;
    (void)peer_send_register(late);
    fixture_run(&f, SECOND);
    server = fixture_server_hello(&f, 1, "h");
    server->start_count = 6;
    server->journal_position = 1600;
    assert_int_equal(peer_register(server), 0); /* nor is it waited for */
    fixture_run(&f, 10 * SECOND);
    assert_false(went_back(&f));
    assert_true(late->link.down);
    assert_false(server->link.down);
    fixture_fini(&f);
}

/* The journal position of heartbeats counts too, and reaches the store now and then. */
static void
test_journal_position_of_heartbeats(void **state)
{
    struct fixture f;
    struct peer *server;
    uint64_t revision;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server(&f, 1, "h");
    server->journal_position = 5000;
    fixture_run(&f, 2 * SECOND);
    peer_restart_server(server);
    server->journal_position = 4999;
    assert_int_equal(peer_register(server), 0);
    assert_true(went_back(&f));
    peer_restart_server(server);
    server->journal_position = 6000;
    assert_int_equal(peer_register(server), 0);
    assert_false(went_back(&f));

    /* While it writes, some commits per minute; when it rests, none. */
    revision = store_memory_db_revision(f.db);
    for (unsigned i = 0; i < 60; i++) {
        server->journal_position += 10;
        fixture_run(&f, SECOND);
    }
    assert_in_range(store_memory_db_revision(f.db) - revision, 4, 8);
    fixture_run(&f, 20 * SECOND);
    revision = store_memory_db_revision(f.db);
    fixture_run(&f, 60 * SECOND);
    assert_int_equal(store_memory_db_revision(f.db), revision);

    /* So it is known after a crash of the service as well. */
    fixture_crash(&f, 0);
    fixture_start(&f);
    peer_restart_server(server);
    server->journal_position = 6100;
    assert_int_equal(peer_register(server), 0);
    assert_true(went_back(&f));
    fixture_fini(&f);
}

/* --- up and down --- */

static void
test_lost_connection_is_down_after_a_while(void **state)
{
    struct fixture f;
    struct peer *server, *client;
    uint32_t id;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server(&f, 1, "h");
    client = fixture_client(&f);
    id = server->server_id;
    peer_disconnect(server);
    f.last_warning[0] = '\0';
    assert_int_equal(state_of(client, id), DL__SERVER_STATE__SERVER_DOWN);
    fixture_run(&f, 4500 * MS);
    assert_string_equal(f.last_warning, ""); /* it may come back: no alarm yet */
    fixture_run(&f, SECOND);
    assert_int_equal(state_of(client, id), DL__SERVER_STATE__SERVER_DOWN);
    assert_non_null(strstr(f.last_warning, "127.0.0.1:10001"));
    peer_restart_server(server);
    assert_int_equal(peer_register(server), 0);
    assert_int_equal(state_of(client, id), DL__SERVER_STATE__SERVER_UP);
    fixture_fini(&f);
}

/* It answers PING, but its heartbeat has stopped. */
static void
test_no_heartbeat_is_down(void **state)
{
    struct fixture f;
    struct peer *server, *client;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server(&f, 1, "h");
    client = fixture_client(&f);
    fixture_run(&f, 10 * SECOND);
    assert_int_equal(state_of(client, 1), DL__SERVER_STATE__SERVER_UP);
    server->no_heartbeat = true;
    fixture_run(&f, 5500 * MS);
    assert_int_equal(state_of(client, 1), DL__SERVER_STATE__SERVER_DOWN);
    assert_true(server->link.down);
    assert_non_null(strstr(f.last_warning, "no heartbeat"));
    fixture_fini(&f);
}

static void
test_servers_are_down_until_they_register(void **state)
{
    struct fixture f;
    struct peer *server, *client;
    Dl__ServerListReply *list;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server(&f, 1, "h");
    fixture_crash(&f, 0);
    fixture_start(&f);
    client = fixture_client(&f);
    assert_int_equal(state_of(client, 1), DL__SERVER_STATE__SERVER_DOWN);
    f.last_warning[0] = '\0';
    fixture_run(&f, 4500 * MS);
    assert_string_equal(f.last_warning, ""); /* a restart of everything is no alarm */
    fixture_run(&f, SECOND);
    assert_non_null(strstr(f.last_warning, "down"));
    list = list_servers(client);
    assert_non_null(strstr(list->servers[0]->problem, "down"));
    dl__server_list_reply__free_unpacked(list, NULL);
    peer_restart_server(server);
    assert_int_equal(peer_register(server), 0);
    fixture_fini(&f);
}

static void
test_troubles_are_shown(void **state)
{
    struct fixture f;
    struct peer *server, *client;
    Dl__ServerHeartbeat heartbeat = DL__SERVER_HEARTBEAT__INIT;
    Dl__ServerListReply *list;

    (void)state;
    fixture_init(&f, NULL);
    server = fixture_server(&f, 1, "h");
    client = fixture_client(&f);
    heartbeat.capacity_bytes = 1000;
    heartbeat.used_bytes = 2000; /* more than it has: cut */
    heartbeat.available_bytes = 500;
    heartbeat.stopped = (char *)(uintptr_t) "a flush failed\n\x1b[1m";
    assert_int_equal(peer_ask(server, OP_SERVER_HEARTBEAT, &heartbeat.base, NULL, NULL), 0);
    list = list_servers(client);
    assert_non_null(strstr(list->servers[0]->problem, "a flush failed??[1m"));
    assert_int_equal(list->servers[0]->used_bytes, 1000);
    dl__server_list_reply__free_unpacked(list, NULL);
    assert_non_null(strstr(f.last_warning, "takes no writes"));
    fixture_fini(&f);
}

UNIT_MAIN(cmocka_unit_test(test_registration), cmocka_unit_test(test_bad_registrations),
          cmocka_unit_test(test_server_limit),
          cmocka_unit_test(test_copied_disk_is_refused_while_the_original_lives),
          cmocka_unit_test(test_dead_connection_gives_way),
          cmocka_unit_test(test_same_process_reconnects),
          cmocka_unit_test(test_disk_that_went_back), cmocka_unit_test(test_late_registrations),
          cmocka_unit_test(test_journal_position_of_heartbeats),
          cmocka_unit_test(test_lost_connection_is_down_after_a_while),
          cmocka_unit_test(test_no_heartbeat_is_down),
          cmocka_unit_test(test_servers_are_down_until_they_register),
          cmocka_unit_test(test_troubles_are_shown))
