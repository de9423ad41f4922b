/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes: create, list, info, rename, resize: what is accepted, what is refused and with which
 *          words, what a repetition gets; and that
 * nothing is seen of a change before it is durable.
 */
#include "tests/unit/meta/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)

struct volume_test {
    struct fixture f;
    struct peer *client;
};

static void
volume_init(struct volume_test *t)
{
    fixture_init(&t->f, NULL);
    for (uint32_t i = 0; i < 3; i++) {
        char host[8];

        (void)snprintf(host, sizeof(host), "h%u", i);
        (void)fixture_server(&t->f, i + 1, host);
    }
    t->client = fixture_client(&t->f);
}

static char *
text_of(const char *text)
{
    return (char *)(uintptr_t)text;
}

static int
create(struct volume_test *t, const Dl__VolumeCreate *message, Dl__VolumeReply **ret_reply)
{
    return peer_ask(t->client, OP_VOLUME_CREATE, &message->base, &dl__volume_reply__descriptor,
                    (ProtobufCMessage **)ret_reply);
}

static Dl__VolumeListReply *
list(struct volume_test *t, const char *after, uint32_t max)
{
    Dl__VolumeList message = DL__VOLUME_LIST__INIT;
    ProtobufCMessage *reply;

    message.after = text_of(after);
    message.max = max;
    assert_int_equal(peer_ask(t->client, OP_VOLUME_LIST, &message.base,
                              &dl__volume_list_reply__descriptor, &reply),
                     0);
    return (Dl__VolumeListReply *)reply;
}

static size_t
volume_count(struct volume_test *t)
{
    Dl__VolumeListReply *reply = list(t, "", 0);
    size_t count = reply->n_volumes;

    dl__volume_list_reply__free_unpacked(reply, NULL);
    return count;
}

static void
test_defaults(void **state)
{
    struct volume_test t;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumeReply *reply;
    Dl__VolumeReply *info;

    (void)state;
    volume_init(&t);
    message.name = text_of("v1");
    message.size_bytes = 10 * GIB;
    assert_int_equal(create(&t, &message, &reply), 0);
    assert_int_equal(reply->volume->id, 1);
    assert_true(reply->volume->size_bytes == 10 * GIB);
    assert_int_equal(reply->volume->segment_bytes, 64 * MIB);
    assert_int_equal(reply->volume->logical_block_bytes, 4096);
    assert_int_equal(reply->volume->stripe_width, 1);
    assert_int_equal(reply->volume->stripe_unit_bytes, 256 << 10);
    assert_int_equal(reply->volume->policy->redundancy, DL__REDUNDANCY__REDUNDANCY_REPLICATED);
    assert_int_equal(reply->volume->policy->replicas, 3);
    assert_int_equal(reply->volume->policy->min_write, 2);
    assert_int_equal(reply->volume->policy->failure_domain, DL__FAILURE_DOMAIN__DOMAIN_HOST);
    assert_int_equal(reply->volume->snapshot_seq, 1);
    assert_int_equal(reply->volume->lease_epoch, 0);
    assert_true(reply->volume->clean);
    assert_true(reply->volume->created_ms > 0);
    assert_int_equal(ask_info(t.client, "v1", &info), 0);
    assert_int_equal(info->volume->id, 1);
    assert_string_equal(info->volume->name, "v1");
    dl__volume_reply__free_unpacked(info, NULL);
    dl__volume_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

static void
test_everything_chosen(void **state)
{
    struct volume_test t;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    Dl__VolumeReply *reply;

    (void)state;
    volume_init(&t);
    message.name = text_of("v1");
    message.size_bytes = 512 * 7;
    message.segment_bytes = 1 << 20;
    message.logical_block_bytes = 512;
    message.stripe_width = 8;
    message.stripe_unit_bytes = 64 << 10;
    policy.redundancy = DL__REDUNDANCY__REDUNDANCY_REPLICATED;
    policy.replicas = 2;
    policy.min_write = 1;
    policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    message.policy = &policy;
    assert_int_equal(create(&t, &message, &reply), 0);
    assert_int_equal(reply->volume->size_bytes, 512 * 7);
    assert_int_equal(reply->volume->segment_bytes, 1 << 20);
    assert_int_equal(reply->volume->logical_block_bytes, 512);
    assert_int_equal(reply->volume->stripe_width, 8);
    assert_int_equal(reply->volume->stripe_unit_bytes, 64 << 10);
    assert_int_equal(reply->volume->policy->replicas, 2);
    assert_int_equal(reply->volume->policy->min_write, 1);
    dl__volume_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

static void
test_bad_names(void **state)
{
    static const char *const names[] = {"",     ".",        "..",   ".a",     "-a",    "_a",  "a b",
                                        "a/b",  "a\nb",     "a\tb", "\x1b[m", "a\x7f", "a:b", "a@b",
                                        "a%sb", "\xc3\xa4", "a;rm", "a'b",    "a\\b",  "*"};
    struct volume_test t;
    char long_name[301];
    Dl__VolumeReply *info;

    (void)state;
    volume_init(&t);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        assert_int_equal(ask_create(t.client, names[i], MIB, NULL), -DL_E_NAME_INVALID);
        for (const char *c = fixture_error_text(); *c != '\0'; c++)
            assert_true(*c >= ' ' && *c <= '~'); /* nothing that a terminal would obey */
    }
    memset(long_name, 'x', 300);
    long_name[300] = '\0';
    assert_int_equal(ask_create(t.client, long_name, MIB, NULL), -DL_E_NAME_INVALID);
    long_name[129] = '\0';
    assert_int_equal(ask_create(t.client, long_name, MIB, NULL), -DL_E_NAME_INVALID);
    long_name[128] = '\0';
    assert_int_equal(ask_create(t.client, long_name, MIB, NULL), 0);
    assert_int_equal(ask_info(t.client, long_name, &info), 0);
    assert_string_equal(info->volume->name, long_name);
    dl__volume_reply__free_unpacked(info, NULL);
    assert_int_equal(ask_create(t.client, "0.A_z-9", MIB, NULL), 0);
    assert_int_equal(volume_count(&t), 2);
    fixture_fini(&t.f);
}

/* Name, size, segment, block, width, unit: one of them wrong. */
static void
test_bad_sizes(void **state)
{
    static const struct {
        uint64_t size;
        uint32_t segment, block, width, unit;
        int err;
    } cases[] = {
        {0, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {1, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {4095, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {4096 + 512, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {4096, 0, 0, 0, 0, 0},
        {4096 + 512, 0, 512, 0, 0, 0},
        {513, 0, 512, 0, 0, -DL_E_SIZE_INVALID},
        {UINT64_MAX, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {UINT64_MAX & ~4095ull, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {1ull << 63, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {1ull << 62, 1u << 30, 0, 0, 0, -DL_E_SIZE_INVALID}, /* 2^32 segments */
        {(1ull << 62) - (1u << 30), 1u << 30, 0, 0, 0, 0},   /* 2^32 - 1 */
        {((1ull << 32) - 1) * (64 * MIB), 0, 0, 0, 0, 0},    /* the same of 64 MiB */
        {((1ull << 32) - 1) * (64 * MIB) + 4096, 0, 0, 0, 0, -DL_E_SIZE_INVALID},
        {(1ull << 62) - (1u << 30), 1u << 30, 0, 2, 0,
         -DL_E_SIZE_INVALID}, /* an odd number of segments */
        {GIB, 1000000, 0, 0, 0, -DL_E_SIZE_INVALID},
        {GIB, 1u << 19, 0, 0, 0, -DL_E_SIZE_INVALID},
        {GIB, 1u << 31, 0, 0, 0, -DL_E_SIZE_INVALID},
        {GIB, 1u << 20, 0, 0, 0, 0},
        {GIB, 0, 1024, 0, 0, -DL_E_SIZE_INVALID},
        {GIB, 0, 1, 0, 0, -DL_E_SIZE_INVALID},
        {GIB, 0, 0, 129, 0, -DL_E_SIZE_INVALID},
        {GIB, 0, 0, UINT32_MAX, 0, -DL_E_SIZE_INVALID},
        {GIB, 0, 0, 128, 0, 0},
        {GIB, 0, 0, 2, 2048, -DL_E_SIZE_INVALID},
        {GIB, 0, 0, 2, 5000, -DL_E_SIZE_INVALID},
        {GIB, 1u << 20, 0, 2, 1u << 21, -DL_E_SIZE_INVALID},
        {GIB, 1u << 20, 0, 2, 1u << 20, 0},
    };
    struct volume_test t;

    (void)state;
    volume_init(&t);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
        char name[16];
        int err;

        (void)snprintf(name, sizeof(name), "case%zu", i);
        message.name = name;
        message.size_bytes = cases[i].size;
        message.segment_bytes = cases[i].segment;
        message.logical_block_bytes = cases[i].block;
        message.stripe_width = cases[i].width;
        message.stripe_unit_bytes = cases[i].unit;
        err = create(&t, &message, NULL);
        if (err != cases[i].err)
            fail_msg("case %zu: %s: %s", i, dl_err_name(err), fixture_error_text());
        if (err < 0)
            assert_non_null(strstr(fixture_error_text(), name));
    }
    fixture_fini(&t.f);
}

static void
test_bad_policies(void **state)
{
    static const struct {
        Dl__Redundancy redundancy;
        uint32_t replicas, data_shards, min_write;
        Dl__FailureDomain domain;
        const char *clique;
        int err;
    } cases[] = {
        {DL__REDUNDANCY__REDUNDANCY_ERASURE_CODED, 0, 0, 0, 0, "", -DL_E_CONFIG_INVALID},
        {0, 3, 4, 0, 0, "", -DL_E_CONFIG_INVALID},
        {0, 9, 0, 0, 0, "", -DL_E_CONFIG_INVALID},
        {0, UINT32_MAX, 0, 0, 0, "", -DL_E_CONFIG_INVALID},
        {0, 3, 0, 4, 0, "", -DL_E_CONFIG_INVALID},
        {0, 3, 0, 3, 0, "", 0},
        {0, 1, 0, 0, 0, "", 0},
        {0, 4, 0, 0, 0, "", -DL_E_TOO_FEW_DOMAINS},
        {0, 0, 0, 0, DL__FAILURE_DOMAIN__DOMAIN_RACK, "", -DL_E_TOO_FEW_DOMAINS},
        {0, 0, 0, 0, 0, "no-such-clique", -DL_E_TOO_FEW_DOMAINS},
        {0, 0, 0, 0, 0, "a b", -DL_E_NAME_INVALID},
        {(Dl__Redundancy)9, 0, 0, 0, 0, "", -DL_E_MESSAGE_MALFORMED},
        {0, 0, 0, 0, (Dl__FailureDomain)9, "", -DL_E_MESSAGE_MALFORMED},
    };
    struct volume_test t;

    (void)state;
    volume_init(&t);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
        Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
        char name[16];
        int err;

        (void)snprintf(name, sizeof(name), "case%zu", i);
        message.name = name;
        message.size_bytes = GIB;
        message.policy = &policy;
        policy.redundancy = cases[i].redundancy;
        policy.replicas = cases[i].replicas;
        policy.data_shards = cases[i].data_shards;
        policy.min_write = cases[i].min_write;
        policy.failure_domain = cases[i].domain;
        policy.clique = text_of(cases[i].clique);
        err = create(&t, &message, NULL);
        if (err != cases[i].err)
            fail_msg("case %zu: %s: %s", i, dl_err_name(err), fixture_error_text());
    }
    fixture_fini(&t.f);
}

/* How many there are, how many are needed, and what to do. */
static void
test_too_few_domains_says_what_to_do(void **state)
{
    struct fixture f;
    struct volume_test t;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;

    (void)state;
    fixture_init(&f, NULL);
    for (uint32_t i = 0; i < 4; i++)
        (void)fixture_server(&f, i + 1, i < 2 ? "alpha" : "beta");
    t.client = fixture_client(&f);
    message.name = text_of("v");
    message.size_bytes = GIB;
    assert_int_equal(create(&t, &message, NULL), -DL_E_TOO_FEW_DOMAINS);
    assert_non_null(strstr(fixture_error_text(), "3 different hosts"));
    assert_non_null(strstr(fixture_error_text(), "2 hosts with 4 servers"));
    assert_non_null(strstr(fixture_error_hint(), "--failure-domain server"));
    assert_int_equal(ask_create(t.client, "v", MIB, NULL), 0); /* which helps */
    fixture_fini(&f);
}

static void
test_limit_of_volumes(void **state)
{
    struct meta_options options = {.volumes_max = 2};
    struct fixture f;
    struct peer *client;

    (void)state;
    fixture_init(&f, &options);
    for (uint32_t i = 0; i < 3; i++)
        (void)fixture_server(&f, i + 1, "h");
    client = fixture_client(&f);
    assert_int_equal(ask_create(client, "a", MIB, NULL), 0);
    assert_int_equal(ask_create(client, "b", MIB, NULL), 0);
    assert_int_equal(ask_create(client, "c", MIB, NULL), -DL_E_LIMIT);
    assert_int_equal(ask_delete(client, "a"), 0);
    fixture_settle(&f);
    assert_int_equal(ask_create(client, "c", MIB, NULL), 0);
    fixture_fini(&f);
}

/* --- repetitions --- */

static void
test_create_repeated(void **state)
{
    struct volume_test t;
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    Dl__VolumeReply *first, *second;
    uint8_t change_id[16] = "create it once!";

    (void)state;
    volume_init(&t);
    message.name = text_of("v");
    message.size_bytes = GIB;
    message.change_id = bytes_of(change_id, 16);
    assert_int_equal(create(&t, &message, &first), 0);
    /* The answer was lost, so is the connection: asked again. */
    peer_disconnect(t.client);
    t.client = fixture_client(&t.f);
    assert_int_equal(create(&t, &message, &second), 0);
    assert_int_equal(first->volume->id, second->volume->id);
    change_id[0]++;
    assert_int_equal(create(&t, &message, NULL), -DL_E_VOLUME_EXISTS);
    message.change_id.len = 0;
    assert_int_equal(create(&t, &message, NULL), -DL_E_VOLUME_EXISTS);
    assert_non_null(strstr(fixture_error_text(), "volume v exists"));
    dl__volume_reply__free_unpacked(first, NULL);
    dl__volume_reply__free_unpacked(second, NULL);
    assert_int_equal(volume_count(&t), 1);
    fixture_fini(&t.f);
}

static int
rename_volume(struct volume_test *t, const char *from, const char *to, uint8_t *change_id)
{
    Dl__VolumeRename message = DL__VOLUME_RENAME__INIT;

    message.name = text_of(from);
    message.new_name = text_of(to);
    if (change_id != NULL)
        message.change_id = bytes_of(change_id, 16);
    return peer_ask(t->client, OP_VOLUME_RENAME, &message.base, NULL, NULL);
}

static void
test_rename(void **state)
{
    struct volume_test t;
    Dl__VolumeReply *info;
    uint8_t change_id[16] = "rename it once!";
    uint8_t other_id[16] = "another rename.";

    (void)state;
    volume_init(&t);
    assert_int_equal(ask_create(t.client, "a", MIB, NULL), 0);
    assert_int_equal(ask_create(t.client, "taken", MIB, NULL), 0);
    assert_int_equal(rename_volume(&t, "a", "b", change_id), 0);
    assert_int_equal(ask_info(t.client, "a", NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_info(t.client, "b", &info), 0);
    assert_int_equal(info->volume->id, 1);
    dl__volume_reply__free_unpacked(info, NULL);
    assert_int_equal(rename_volume(&t, "a", "b", change_id), 0); /* done already */
    assert_int_equal(rename_volume(&t, "a", "b", other_id), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(rename_volume(&t, "a", "b", NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(rename_volume(&t, "b", "b", NULL), 0);
    assert_int_equal(rename_volume(&t, "b", "taken", NULL), -DL_E_VOLUME_EXISTS);
    assert_int_equal(rename_volume(&t, "b", "a b", NULL), -DL_E_NAME_INVALID);
    assert_int_equal(rename_volume(&t, "b", "", NULL), -DL_E_NAME_INVALID);
    assert_int_equal(rename_volume(&t, "nobody", "x", NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_create(t.client, "a", MIB, NULL), 0); /* the old name is free */
    assert_int_equal(rename_volume(&t, "a", "c", change_id), 0);
    assert_int_equal(volume_count(&t), 3);
    fixture_fini(&t.f);
}

/* --- resize --- */

static int
resize_volume(struct volume_test *t, const char *name, uint64_t size_bytes)
{
    Dl__VolumeResize message = DL__VOLUME_RESIZE__INIT;

    message.name = text_of(name);
    message.size_bytes = size_bytes;
    return peer_ask(t->client, OP_VOLUME_RESIZE, &message.base, NULL, NULL);
}

static void
test_resize(void **state)
{
    struct volume_test t;
    Dl__Volume volume;
    Dl__VolumeChanged *changed;
    struct peer *owner;
    struct fake_frame *frame;

    (void)state;
    volume_init(&t);
    assert_int_equal(ask_create(t.client, "v", 2 * MIB, &volume), 0);
    owner = fixture_client(&t.f);
    assert_int_equal(ask_attach(owner, "v", 1, NULL), 0);
    assert_int_equal(ask_allocate(owner, volume.id, 1, 2, 1, NULL), -DL_E_RANGE);
    assert_int_equal(resize_volume(&t, "v", 3 * MIB), 0);
    assert_int_equal(resize_volume(&t, "v", 3 * MIB), 0); /* again: as it is */
    frame = peer_take_request(owner, OP_VOLUME_CHANGED);
    assert_non_null(frame); /* the owner hears of it at once, once */
    changed = (Dl__VolumeChanged *)fake_frame_unpack(frame, &dl__volume_changed__descriptor);
    assert_int_equal(changed->volume->size_bytes, 3 * MIB);
    assert_int_equal(changed->volume->lease_epoch, 1);
    assert_false(changed->deleted);
    dl__volume_changed__free_unpacked(changed, NULL);
    fake_frame_destroy(frame);
    assert_null(peer_take_request(owner, OP_VOLUME_CHANGED));
    assert_int_equal(ask_allocate(owner, volume.id, 1, 2, 1, NULL), 0);
    assert_int_equal(resize_volume(&t, "v", 2 * MIB), -DL_E_SIZE_INVALID);
    assert_non_null(strstr(fixture_error_text(), "shrink"));
    assert_int_equal(resize_volume(&t, "v", 0), -DL_E_SIZE_INVALID);
    assert_int_equal(resize_volume(&t, "v", 3 * MIB + 1), -DL_E_SIZE_INVALID);
    assert_int_equal(resize_volume(&t, "v", UINT64_MAX), -DL_E_SIZE_INVALID);
    assert_int_equal(resize_volume(&t, "w", 3 * MIB), -DL_E_VOLUME_UNKNOWN);
    fixture_fini(&t.f);
}

/* --- list --- */

static void
test_list_is_sorted_and_paged(void **state)
{
    enum { COUNT = 5000 };
    struct volume_test t;
    Dl__VolumeListReply *reply;
    char last[129] = "";
    uint32_t seen = 0, pages = 0;
    bool more = true;

    (void)state;
    volume_init(&t);
    for (unsigned i = 0; i < COUNT; i++) {
        char name[129];

        /* Long names, so that one frame doesn't take them all. */
        (void)snprintf(name, sizeof(name), "volume-%0*u", 120, (i * 7919) % COUNT);
        assert_int_equal(ask_create(t.client, name, MIB, NULL), 0);
    }
    while (more) {
        reply = list(&t, last, 0);
        pages++;
        assert_true(reply->n_volumes > 0);
        for (size_t i = 0; i < reply->n_volumes; i++) {
            assert_true(strcmp(reply->volumes[i]->name, last) > 0);
            (void)snprintf(last, sizeof(last), "%s", reply->volumes[i]->name);
            seen++;
        }
        more = reply->more;
        dl__volume_list_reply__free_unpacked(reply, NULL);
    }
    assert_int_equal(seen, COUNT);
    assert_true(pages > 1);
    reply = list(&t, "", 10);
    assert_int_equal(reply->n_volumes, 10);
    assert_true(reply->more);
    dl__volume_list_reply__free_unpacked(reply, NULL);
    reply = list(&t, "zzz", 10);
    assert_int_equal(reply->n_volumes, 0);
    assert_false(reply->more);
    dl__volume_list_reply__free_unpacked(reply, NULL);
    fixture_fini(&t.f);
}

/* --- nothing is seen before it is durable --- */

static uint64_t
send_create(struct peer *client, const char *name)
{
    Dl__VolumeCreate message = DL__VOLUME_CREATE__INIT;
    uint64_t id;

    message.name = text_of(name);
    message.size_bytes = GIB;
    id = peer_send(client, OP_VOLUME_CREATE, &message.base);
    fixture_settle(client->f);
    return id;
}

static void
test_uncommitted_changes_are_invisible(void **state)
{
    struct volume_test t;
    Dl__VolumeRename rename = DL__VOLUME_RENAME__INIT;
    Dl__VolumeResize resize = DL__VOLUME_RESIZE__INIT;
    Dl__VolumeReply *info;
    struct peer *other;
    uint64_t created, renamed, resized, again;

    (void)state;
    volume_init(&t);
    other = fixture_client(&t.f);
    assert_int_equal(ask_create(t.client, "a", MIB, NULL), 0);
    assert_int_equal(ask_create(t.client, "r", MIB, NULL), 0);
    store_memory_hold(t.f.store, true);
    created = send_create(t.client, "new");
    rename.name = text_of("a");
    rename.new_name = text_of("b");
    renamed = peer_send(t.client, OP_VOLUME_RENAME, &rename.base);
    resize.name = text_of("r");
    resize.size_bytes = 5 * MIB;
    resized = peer_send(t.client, OP_VOLUME_RESIZE, &resize.base);
    fixture_settle(&t.f);

    /* Reads answer at once, with what is durable. */
    assert_int_equal(ask_info(other, "new", NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_info(other, "b", NULL), -DL_E_VOLUME_UNKNOWN);
    assert_int_equal(ask_info(other, "a", NULL), 0);
    assert_int_equal(ask_info(other, "r", &info), 0);
    assert_int_equal(info->volume->size_bytes, MIB);
    dl__volume_reply__free_unpacked(info, NULL);
    assert_int_equal(volume_count(&t), 2);
    /* Another create of a name that is being taken waits to see what becomes of it. */
    again = send_create(other, "new");
    assert_null(peer_take_reply(other, again));

    store_memory_hold(t.f.store, false);
    fixture_settle(&t.f);
    assert_int_equal(fixture_reply_status(t.client, created), 0);
    assert_int_equal(fixture_reply_status(t.client, renamed), 0);
    assert_int_equal(fixture_reply_status(t.client, resized), 0);
    assert_int_equal(fixture_reply_status(other, again), -DL_E_VOLUME_EXISTS);
    assert_int_equal(ask_info(other, "new", NULL), 0);
    assert_int_equal(ask_info(other, "b", NULL), 0);
    assert_int_equal(ask_info(other, "a", NULL), -DL_E_VOLUME_UNKNOWN);
    fixture_fini(&t.f);
}

/* Two volumes swap names at the same moment: nobody waits for ever. */
static void
test_crossing_renames_end(void **state)
{
    struct volume_test t;
    Dl__VolumeRename rename = DL__VOLUME_RENAME__INIT;
    uint64_t ids[3];
    unsigned done = 0;

    (void)state;
    volume_init(&t);
    assert_int_equal(ask_create(t.client, "a", MIB, NULL), 0);
    assert_int_equal(ask_create(t.client, "b", MIB, NULL), 0);
    store_memory_hold(t.f.store, true);
    rename.name = text_of("a");
    rename.new_name = text_of("b");
    ids[0] = peer_send(t.client, OP_VOLUME_RENAME, &rename.base);
    rename.name = text_of("b");
    rename.new_name = text_of("a");
    ids[1] = peer_send(t.client, OP_VOLUME_RENAME, &rename.base);
    rename.name = text_of("a");
    rename.new_name = text_of("c");
    ids[2] = peer_send(t.client, OP_VOLUME_RENAME, &rename.base);
    store_memory_hold(t.f.store, false);
    fixture_settle(&t.f);
    for (unsigned i = 0; i < 3; i++) {
        struct fake_frame *reply = peer_take_reply(t.client, ids[i]);

        assert_non_null(reply);
        done += reply->frame.status == 0;
        fake_frame_destroy(reply);
    }
    assert_true(done >= 1);
    assert_int_equal(volume_count(&t), 2);
    fixture_fini(&t.f);
}

UNIT_MAIN(cmocka_unit_test(test_defaults), cmocka_unit_test(test_everything_chosen),
          cmocka_unit_test(test_bad_names), cmocka_unit_test(test_bad_sizes),
          cmocka_unit_test(test_bad_policies),
          cmocka_unit_test(test_too_few_domains_says_what_to_do),
          cmocka_unit_test(test_limit_of_volumes), cmocka_unit_test(test_create_repeated),
          cmocka_unit_test(test_rename), cmocka_unit_test(test_resize),
          cmocka_unit_test(test_list_is_sorted_and_paged),
          cmocka_unit_test(test_uncommitted_changes_are_invisible),
          cmocka_unit_test(test_crossing_renames_end))
