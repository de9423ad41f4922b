/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: peers that are silent, that are not the right ones, that come and go; requests to the
 *           metadata service with their two kinds of patience.
 */
#include "tests/unit/client/fixture.h"

#include <string.h>

#include "proto/control.pb-c.h"

struct question {
    struct client_meta_call call;
    Dl__VolumeInfo request;
    bool done;
    int err;
    char name[64];
};

static void
question_on_done(struct client_meta_call *call, int err)
{
    struct question *question = call->context;
    const Dl__VolumeReply *reply = (const Dl__VolumeReply *)call->reply;

    question->done = true;
    question->err = err;
    if (err == 0)
        (void)snprintf(question->name, sizeof(question->name), "%s", reply->volume->name);
}

static void
ask(struct fixture *f, struct question *question, bool patient, uint32_t timeout_ms)
{
    struct sim_process *before = sim_enter(&f->client_process);
    static char name[] = "v";

    memset(question, 0, sizeof(*question));
    dl__volume_info__init(&question->request);
    question->request.name = name;
    question->call = (struct client_meta_call){
        .opcode = OP_VOLUME_INFO,
        .patient = patient,
        .timeout_ms = timeout_ms,
        .request = &question->request.base,
        .reply_type = &dl__volume_reply__descriptor,
        .on_done = question_on_done,
        .context = question,
    };
    client_meta_call_start(f->core, &question->call);
    sim_leave(&f->client_process, before);
    assert_false(question->done);
}

static struct fixture *
connected(uint64_t seed)
{
    struct fixture *f = fixture_create(seed, 3);

    (void)fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_true(client_core_is_connected(f->core));
    return f;
}

static void
test_answers_and_errors(void **state)
{
    struct fixture *f = connected(1);
    struct question question;

    (void)state;
    ask(f, &question, false, 0);
    assert_true(fixture_run_until(f, &question.done, SIM_S));
    assert_int_equal(question.err, 0);
    assert_string_equal(question.name, "v");
    f->cluster.volumes[0].name[0] = 'w';
    ask(f, &question, false, 0);
    assert_true(fixture_run_until(f, &question.done, SIM_S));
    assert_int_equal(question.err, -DL_E_VOLUME_UNKNOWN);
    assert_string_equal(question.call.error.text, "volume does not exist");
    fixture_destroy(f);
}

/* Sent again on the next connection, under another id; answered once. */
static void
test_questions_survive_a_reconnect(void **state)
{
    struct fixture *f = connected(2);
    struct question question;

    (void)state;
    f->cluster.silent = true;
    ask(f, &question, false, 0);
    fixture_run(f, SIM_S);
    fixture_meta_drop_links(f);
    f->cluster.silent = false;
    assert_true(fixture_run_until(f, &question.done, 3 * SIM_S));
    assert_int_equal(question.err, 0);
    assert_int_equal(question.call.send_count, 2);
    fixture_destroy(f);
}

/* A peer without a word for 5 s is left. */
static void
test_silence(void **state)
{
    struct fixture *f = connected(3);

    (void)state;
    fixture_run(f, 20 * SIM_S);
    assert_int_equal(f->world.net_stats.closes, 0); /* PING keeps it */
    f->cluster.silent = true;
    fixture_run(f, 3500 * NS_PER_MS);
    assert_true(client_core_is_connected(f->core));
    fixture_run(f, 3000 * NS_PER_MS);
    assert_false(client_core_is_connected(f->core));
    assert_true(fixture_has_event(f, "it has been silent for 5 seconds"));
    assert_non_null(strstr(client_core_meta_problem(f->core), "silent"));
    f->cluster.silent = false;
    fixture_run(f, 8 * SIM_S);
    assert_true(client_core_is_connected(f->core));
    assert_string_equal(client_core_meta_problem(f->core), "");
    fixture_destroy(f);
}

static void
test_patience(void **state)
{
    struct fixture *f = connected(4);
    struct question impatient, patient, timed, cancelled;
    struct sim_process *before;
    uint64_t start_ns;

    (void)state;
    fixture_meta_down(f);
    start_ns = f->world.now_ns;
    ask(f, &impatient, false, 0);
    ask(f, &patient, true, 0);
    ask(f, &timed, true, 1000);
    ask(f, &cancelled, true, 0);
    assert_true(fixture_run_until(f, &timed.done, 5 * SIM_S));
    assert_int_equal(timed.err, -DL_E_TIMEOUT);
    assert_in_range(f->world.now_ns - start_ns, SIM_S, 1300 * NS_PER_MS);
    assert_true(fixture_run_until(f, &impatient.done, 5 * SIM_S));
    assert_int_equal(impatient.err, -DL_E_META_UNREACHABLE);
    assert_in_range(f->world.now_ns - start_ns, 3 * SIM_S, 3400 * NS_PER_MS);
    assert_true(impatient.call.error.hint[0] != '\0');
    before = sim_enter(&f->client_process);
    client_meta_call_cancel(&cancelled.call);
    sim_leave(&f->client_process, before);
    fixture_run(f, 30 * SIM_S);
    assert_false(patient.done);
    fixture_meta_up(f);
    assert_true(fixture_run_until(f, &patient.done, 5 * SIM_S));
    assert_int_equal(patient.err, 0);
    assert_false(cancelled.done);
    fixture_destroy(f);
}

/* Where a server was there is another disk now: its data is not taken for the old one's. */
static void
test_another_disk(void **state)
{
    struct fixture *f = connected(5);
    struct fixture_request *write;
    uint8_t uuid[FAKE_ID_BYTES];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_server_down(f, 1);
    memcpy(uuid, f->cluster.servers[1].uuid, sizeof(uuid));
    memset(f->cluster.servers[1].uuid, 0x77, sizeof(uuid));
    fixture_server_up(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 4 * SIM_S);
    assert_false(write->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "another disk is meant"));
    /* It does not mind: but the client does. */
    f->cluster.servers[1].faults.any_disk = true;
    fixture_run(f, 3 * SIM_S);
    assert_false(write->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "no such server"));
    fixture_server_down(f, 1);
    memcpy(f->cluster.servers[1].uuid, uuid, sizeof(uuid));
    fixture_server_up(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_destroy(f);
}

/* The metadata service of another cluster, at the same address. */
static void
test_another_cluster(void **state)
{
    struct fixture *f = connected(6);

    (void)state;
    fixture_meta_down(f);
    memset(f->cluster.cluster_id, 0x55, FAKE_ID_BYTES);
    fixture_meta_up(f);
    fixture_run(f, 5 * SIM_S);
    assert_false(client_core_is_connected(f->core));
    assert_non_null(strstr(client_core_meta_problem(f->core), "another cluster"));
    memset(f->cluster.cluster_id, 0xc1, FAKE_ID_BYTES);
    fixture_run(f, 5 * SIM_S);
    assert_true(client_core_is_connected(f->core));
    fixture_destroy(f);
}

/* A peer that is away is tried again and again, but less and less often. */
static void
test_backoff(void **state)
{
    struct fixture *f = connected(7);
    uint64_t refused;

    (void)state;
    fixture_meta_down(f);
    refused = f->world.net_stats.refused;
    fixture_run(f, 100 * SIM_S);
    assert_in_range(f->world.net_stats.refused - refused, 80, 400);
    fixture_meta_up(f);
    fixture_run(f, 2 * SIM_S);
    assert_true(client_core_is_connected(f->core));
    fixture_destroy(f);
}

UNIT_MAIN(cmocka_unit_test(test_answers_and_errors),
          cmocka_unit_test(test_questions_survive_a_reconnect), cmocka_unit_test(test_silence),
          cmocka_unit_test(test_patience), cmocka_unit_test(test_another_disk),
          cmocka_unit_test(test_another_cluster), cmocka_unit_test(test_backoff))
