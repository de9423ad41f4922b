/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/client/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"

#define WAIT_NS (120 * SIM_S)

/*
 * Frames that free themselves when they are sent: a process that is killed sends them no more, and
 * frees nothing.
 */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);

const char *
__lsan_default_suppressions(void)
{
    return "leak:frame_out_create_message\n";
}

static void
fixture_on_event(void *context, enum dlblk_event_level level, const char *text)
{
    struct fixture *f = context;

    (void)level;
    (void)snprintf(f->events[f->event_count++ % FIXTURE_EVENTS_MAX], sizeof(f->events[0]), "%s",
                   text);
    sim_trace(&f->world, &f->client_process, "event: %s", text);
}

static void
fixture_init_net(struct fixture *f)
{
    f->world.net = (struct sim_net_profile){
        .delay_min_ns = 20 * SIM_US,
        .delay_max_ns = 200 * SIM_US,
        .split_percent = 30,
        .buffer_bytes = 4 * MIB,
    };
}

struct fixture *
fixture_create(uint64_t seed, uint32_t server_count)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    sim_world_init(&f->world, seed);
    f->world.trace = getenv("FIXTURE_TRACE") != NULL;
    fixture_init_net(f);
    sim_process_init(&f->meta_process, &f->world, "meta");
    sim_process_init(&f->client_process, &f->world, "client");
    sim_process_start(&f->meta_process);
    fake_cluster_init(&f->cluster, &f->meta_process.env);
    sim_process_listen(&f->meta_process, &fake_meta_events, &f->cluster);
    for (uint32_t i = 0; i < server_count; i++) {
        char name[24];

        (void)snprintf(name, sizeof(name), "server-%u", i + 1);
        sim_process_init(&f->server_processes[i], &f->world, name);
        (void)fake_cluster_add_server(&f->cluster, &f->server_processes[i].env, name, name);
        fixture_server_up(f, i);
    }
    f->options.meta_count = 1;
    (void)snprintf(f->options.meta[0].host, sizeof(f->options.meta[0].host), "meta");
    f->options.meta[0].port = 1;
    f->options.owner = "client 1 test";
    f->options.request_timeout_ms = 10000;
    f->options.connect_timeout_ms = 3000;
    f->options.attach_timeout_ms = 5000;
    f->options.hedge_min_ms = CLIENT_NEVER;
    f->options.eject_lost_ms = CLIENT_NEVER;
    f->options.eject_silent_ms = CLIENT_NEVER;
    f->options.eject_slow_ms = CLIENT_NEVER;
    f->options.on_event = fixture_on_event;
    f->options.event_context = f;
    return f;
}

static void
fixture_start_client(struct fixture *f)
{
    struct sim_process *before;

    if (f->core != NULL)
        return;
    sim_process_start(&f->client_process);
    before = sim_enter(&f->client_process);
    assert_int_equal(client_core_create(&f->core, &f->client_process.env, &f->options), 0);
    sim_leave(&f->client_process, before);
}

void
fixture_kill_client(struct fixture *f)
{
    sim_process_kill(&f->client_process, false);
    client_core_destroy(f->core);
    f->core = NULL;
    f->volume = NULL;
}

static void
fixture_on_flag(void *context)
{
    *(bool *)context = true;
}

static void
fixture_stop_client(struct fixture *f)
{
    struct sim_process *before;
    bool stopped = false;

    if (f->core == NULL)
        return;
    before = sim_enter(&f->client_process);
    client_core_stop(f->core, fixture_on_flag, &stopped);
    sim_leave(&f->client_process, before);
    assert_true(fixture_run_until(f, &stopped, WAIT_NS));
    client_core_destroy(f->core);
    f->core = NULL;
}

void
fixture_destroy(struct fixture *f)
{
    if (f->volume != NULL)
        (void)fixture_close(f);
    fixture_stop_client(f);
    fake_cluster_fini(&f->cluster);
    sim_process_fini(&f->client_process);
    sim_process_fini(&f->meta_process);
    for (uint32_t i = 0; i < f->cluster.server_count; i++)
        sim_process_fini(&f->server_processes[i]);
    sim_world_fini(&f->world);
    free(f);
}

/* --- time --- */

void
fixture_run(struct fixture *f, uint64_t duration_ns)
{
    uint64_t until_ns = f->world.now_ns + duration_ns;

    while (sim_world_step(&f->world, until_ns))
        ;
}

bool
fixture_run_until(struct fixture *f, const bool *flag, uint64_t limit_ns)
{
    uint64_t until_ns = f->world.now_ns + limit_ns;

    while (!*flag && sim_world_step(&f->world, until_ns))
        ;
    return *flag;
}

/* --- servers --- */

void
fixture_push_changed(struct fixture *f, const struct fake_volume *volume, bool deleted)
{
    struct sim_process *before = sim_enter(&f->meta_process);

    fake_meta_push_changed(&f->cluster, volume, deleted);
    sim_leave(&f->meta_process, before);
}

void
fixture_probe(struct fixture *f, const struct fake_volume *volume)
{
    struct sim_process *before = sim_enter(&f->meta_process);

    fake_meta_probe(&f->cluster, volume);
    sim_leave(&f->meta_process, before);
}

void
fixture_meta_release(struct fixture *f)
{
    struct sim_process *before = sim_enter(&f->meta_process);

    fake_meta_release(&f->cluster);
    sim_leave(&f->meta_process, before);
}

void
fixture_push_map(struct fixture *f, const struct fake_volume *volume, uint32_t segment)
{
    struct sim_process *before = sim_enter(&f->meta_process);

    fake_meta_push_map(&f->cluster, volume, segment);
    sim_leave(&f->meta_process, before);
}

void
fixture_set_slot(struct fixture *f, struct fake_volume *volume, uint32_t segment, uint32_t place,
                 uint32_t server_id, uint32_t state, uint32_t number)
{
    struct fake_slot slot = {.server_id = server_id, .state = state, .number = number};

    fake_meta_set_slot(&f->cluster, volume, segment, place, slot);
    fixture_push_map(f, volume, segment);
}

void
fixture_meta_drop_links(struct fixture *f)
{
    struct sim_process *before = sim_enter(&f->meta_process);

    fake_meta_drop_links(&f->cluster);
    sim_leave(&f->meta_process, before);
}

void
fixture_meta_down(struct fixture *f)
{
    sim_process_kill(&f->meta_process, false);
    fake_meta_forget_links(&f->cluster);
}

void
fixture_meta_up(struct fixture *f)
{
    sim_process_start(&f->meta_process);
    sim_process_listen(&f->meta_process, &fake_meta_events, &f->cluster);
}

void
fixture_server_release(struct fixture *f, uint32_t idx)
{
    struct sim_process *before = sim_enter(&f->server_processes[idx]);

    fake_server_release(&f->cluster.servers[idx]);
    sim_leave(&f->server_processes[idx], before);
}

void
fixture_server_pause(struct fixture *f, uint32_t idx, bool paused)
{
    struct sim_process *before = sim_enter(&f->server_processes[idx]);

    fake_server_pause(&f->cluster.servers[idx], paused);
    sim_leave(&f->server_processes[idx], before);
}

void
fixture_server_drop_links(struct fixture *f, uint32_t idx)
{
    struct sim_process *before = sim_enter(&f->server_processes[idx]);

    fake_server_drop_links(&f->cluster.servers[idx]);
    sim_leave(&f->server_processes[idx], before);
}

void
fixture_server_down(struct fixture *f, uint32_t idx)
{
    sim_process_kill(&f->server_processes[idx], false);
    fake_server_forget_links(&f->cluster.servers[idx]);
}

void
fixture_server_up(struct fixture *f, uint32_t idx)
{
    sim_process_start(&f->server_processes[idx]);
    sim_process_listen(&f->server_processes[idx], &fake_server_events, &f->cluster.servers[idx]);
}

/* --- volumes --- */

struct fixture_open {
    struct client_volume_open open;
    bool done;
    int err;
};

static void
fixture_on_open(struct client_volume_open *open, int err)
{
    struct fixture_open *waiting = open->context;

    waiting->done = true;
    waiting->err = err;
}

int
fixture_open(struct fixture *f, const char *name, uint32_t flags)
{
    struct fixture_open waiting = {
        .open = {.name = name, .flags = flags, .on_done = fixture_on_open},
    };
    struct sim_process *before;

    fixture_start_client(f);
    waiting.open.context = &waiting;
    before = sim_enter(&f->client_process);
    client_volume_open(f->core, &waiting.open);
    sim_leave(&f->client_process, before);
    assert_true(fixture_run_until(f, &waiting.done, WAIT_NS));
    if (waiting.err == 0)
        f->volume = waiting.open.volume;
    else
        f->error = waiting.open.error;
    return waiting.err;
}

struct fixture_close {
    struct fixture *f;
    bool done;
    int err;
};

static void
fixture_on_closed(void *context, int err, const struct dl_error *error)
{
    struct fixture_close *waiting = context;

    waiting->done = true;
    waiting->err = err;
    waiting->f->error = *error;
}

int
fixture_close(struct fixture *f)
{
    struct fixture_close waiting = {.f = f};
    struct sim_process *before = sim_enter(&f->client_process);

    client_volume_close(f->volume, fixture_on_closed, &waiting);
    sim_leave(&f->client_process, before);
    assert_true(fixture_run_until(f, &waiting.done, WAIT_NS));
    f->volume = NULL;
    return waiting.err;
}

/* --- requests --- */

void
fixture_pattern(uint8_t *buffer, uint64_t offset_bytes, uint64_t length_bytes, uint8_t fill)
{
    for (uint64_t i = 0; i < length_bytes; i++) {
        uint64_t at = offset_bytes + i;

        buffer[i] = fill == 0 ? 0 : (uint8_t)(fill + at % 251 + at / 512 * 7);
    }
}

static void
fixture_on_done(struct dlblk_request *dlblk_request, int err)
{
    static uint64_t order;
    struct fixture_request *request = dlblk_request->context;

    assert_false(request->done);
    request->done = true;
    request->err = err;
    request->order = ++order;
}

void
fixture_submit_prepared(struct fixture *f, struct fixture_request *request)
{
    struct sim_process *before = sim_enter(&f->client_process);

    request->request.on_done = fixture_on_done;
    request->request.context = request;
    client_volume_submit(f->volume, &request->request);
    sim_leave(&f->client_process, before);
}

struct fixture_request *
fixture_submit(struct fixture *f, enum dlblk_op op, uint64_t offset_bytes, uint64_t length_bytes,
               uint8_t fill)
{
    struct fixture_request *request = calloc(1, sizeof(*request));
    bool data = op == DLBLK_READ || op == DLBLK_WRITE;

    assert_non_null(request);
    request->request = (struct dlblk_request){
        .op = op,
        .offset_bytes = offset_bytes,
        .length_bytes = length_bytes,
    };
    if (data) {
        request->buffer = malloc(length_bytes);
        assert_non_null(request->buffer);
        if (op == DLBLK_WRITE)
            fixture_pattern(request->buffer, offset_bytes, length_bytes, fill);
        else
            memset(request->buffer, 0xdb, length_bytes);
        request->request.iov_one = (struct iovec){.iov_base = request->buffer,
                                                  .iov_len = length_bytes};
        request->request.iov = &request->request.iov_one;
        request->request.iov_count = 1;
    }
    fixture_submit_prepared(f, request);
    return request;
}

void
fixture_free(struct fixture_request *request)
{
    free(request->buffer);
    free(request);
}

int
fixture_wait(struct fixture *f, struct fixture_request *request)
{
    int err;

    assert_true(fixture_run_until(f, &request->done, WAIT_NS));
    err = request->err;
    fixture_free(request);
    return err;
}

int
fixture_write(struct fixture *f, uint64_t offset_bytes, uint64_t length_bytes, uint8_t fill)
{
    return fixture_wait(f, fixture_submit(f, DLBLK_WRITE, offset_bytes, length_bytes, fill));
}

int
fixture_op(struct fixture *f, enum dlblk_op op, uint64_t offset_bytes, uint64_t length_bytes)
{
    return fixture_wait(f, fixture_submit(f, op, offset_bytes, length_bytes, 0));
}

int
fixture_read(struct fixture *f, uint64_t offset_bytes, uint64_t length_bytes, uint8_t *buffer)
{
    struct fixture_request *request = fixture_submit(f, DLBLK_READ, offset_bytes, length_bytes, 0);
    int err;

    assert_true(fixture_run_until(f, &request->done, WAIT_NS));
    err = request->err;
    if (err == 0 && buffer != NULL)
        memcpy(buffer, request->buffer, length_bytes);
    fixture_free(request);
    return err;
}

void
fixture_check(struct fixture *f, uint64_t offset_bytes, uint64_t length_bytes, uint8_t fill)
{
    uint8_t *found = malloc(length_bytes);
    uint8_t *expected = malloc(length_bytes);

    assert_non_null(found);
    assert_non_null(expected);
    assert_int_equal(fixture_read(f, offset_bytes, length_bytes, found), 0);
    fixture_pattern(expected, offset_bytes, length_bytes, fill);
    assert_memory_equal(found, expected, length_bytes);
    free(found);
    free(expected);
}

/* --- what can be seen --- */

bool
fixture_has_event(const struct fixture *f, const char *text)
{
    uint32_t count = f->event_count < FIXTURE_EVENTS_MAX ? f->event_count : FIXTURE_EVENTS_MAX;

    for (uint32_t i = 0; i < count; i++)
        if (strstr(f->events[i], text) != NULL)
            return true;
    return false;
}

struct dlblk_volume_stats
fixture_stats(struct fixture *f)
{
    struct dlblk_volume_stats stats;
    struct sim_process *before = sim_enter(&f->client_process);

    client_volume_get_stats(f->volume, &stats);
    sim_leave(&f->client_process, before);
    return stats;
}

static const struct fake_sector *
fixture_sector(struct fixture *f, const struct fake_volume *volume, uint32_t segment, uint32_t slot,
               uint32_t sector)
{
    static const struct fake_sector hole;
    uint32_t id = fake_volume_server_id(&f->cluster, volume, segment, slot);
    const struct fake_chunk *chunk = fake_server_chunk(&f->cluster.servers[id - 1], volume->id,
                                                       segment);

    return chunk == NULL ? &hole : &chunk->sectors[sector];
}

void
fixture_check_slots_alike(struct fixture *f, const struct fake_volume *volume)
{
    for (uint32_t segment = 0; segment < FAKE_SEGMENTS; segment++) {
        if (!volume->allocated[segment])
            continue;
        for (uint32_t i = 0; i < volume->segment_bytes / WIRE_SECTOR_BYTES; i++) {
            const struct fake_sector *first = NULL;

            for (uint32_t slot = 0; slot < FAKE_PLACES; slot++) {
                const struct fake_sector *other;

                if (volume->slots[segment][slot].state != DL__SLOT_STATE__SLOT_IN_SYNC)
                    continue;
                other = fixture_sector(f, volume, segment, slot, i);
                first = first != NULL ? first : other;
                assert_int_equal(first->kind, other->kind);
                if (first->kind == WIRE_SECTOR_DATA)
                    assert_memory_equal(first->data, other->data, WIRE_SECTOR_BYTES);
            }
        }
    }
}

uint64_t
fixture_pending_count(struct fixture *f, const struct fake_volume *volume)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < f->cluster.server_count; i++) {
        const struct fake_chunk *chunk;

        list_for_each_entry (chunk, &f->cluster.servers[i].chunks, node)
            for (uint32_t place = 0; place < FAKE_PLACES && chunk->volume == volume->id; place++)
                if (volume->slots[chunk->segment][place].server_id == f->cluster.servers[i].id &&
                    volume->slots[chunk->segment][place].state == DL__SLOT_STATE__SLOT_IN_SYNC)
                    count += chunk->pending.count;
    }
    return count;
}
