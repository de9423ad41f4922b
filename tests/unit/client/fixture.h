/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fixture.h: a client core, fake servers and a simulated network in one thread; and helpers that
 * wait.
 *
 *     struct fixture *f = fixture_create(seed, servers);
 *     volume = fake_cluster_add_volume(&f->cluster, "v", 8 MiB);
 *     fixture_open(f, "v", 0);
 *     assert_int_equal(fixture_write(f, offset, length, fill), 0);
 *     fixture_close(f);
 *     fixture_destroy(f);
 *
 * Data: fixture_write() writes a pattern made of the offset and `fill`; fixture_check() reads and
 *       compares.
 */
#ifndef DLBLK_TESTS_CLIENT_FIXTURE_H
#define DLBLK_TESTS_CLIENT_FIXTURE_H

#include "tests/unit/lib/unit.h"

#include "client/core.h"
#include "client/volume.h"
#include "tests/sim/sim.h"
#include "tests/unit/client/fake_servers.h"

#define MIB                (1u << 20)
#define FIXTURE_EVENTS_MAX 64u

struct fixture {
    struct sim_world world;
    struct sim_process meta_process, client_process, server_processes[FAKE_SERVERS_MAX];
    struct fake_cluster cluster;
    struct client_core_options options;
    struct client_core *core;
    struct client_volume *volume;
    struct dl_error error; /* of the last open or close that failed */
    char events[FIXTURE_EVENTS_MAX][256];
    uint32_t event_count;
};

/* A request of which the test keeps hold. */
struct fixture_request {
    struct dlblk_request request;
    struct iovec iov[16];
    uint8_t *buffer;
    bool done;
    int err;
    uint64_t order; /* of its completion */
};

struct fixture *fixture_create(uint64_t seed, uint32_t server_count);
void fixture_destroy(struct fixture *f);
/*
 * The client's process is killed: no callback of it runs any more; the next fixture_open() starts
 * another.
 */
void fixture_kill_client(struct fixture *f);

int fixture_open(struct fixture *f, const char *name, uint32_t flags);
int fixture_close(struct fixture *f);

/* So much virtual time passes. */
void fixture_run(struct fixture *f, uint64_t duration_ns);
/* Until *flag, at most so long.  Returns *flag. */
bool fixture_run_until(struct fixture *f, const bool *flag, uint64_t limit_ns);

/* The metadata service's own acts: see fake_servers.h. */
void fixture_push_changed(struct fixture *f, const struct fake_volume *volume, bool deleted);
void fixture_probe(struct fixture *f, const struct fake_volume *volume);
void fixture_meta_release(struct fixture *f);
void fixture_push_map(struct fixture *f, const struct fake_volume *volume, uint32_t segment);
/* fake_meta_set_slot() of place, and MAP_CHANGED. */
void fixture_set_slot(struct fixture *f, struct fake_volume *volume, uint32_t segment,
                      uint32_t place, uint32_t server_id, uint32_t state, uint32_t number);
void fixture_meta_drop_links(struct fixture *f);
void fixture_meta_down(struct fixture *f);
void fixture_meta_up(struct fixture *f);

void fixture_server_release(struct fixture *f, uint32_t idx);
void fixture_server_pause(struct fixture *f, uint32_t idx, bool paused);
void fixture_server_drop_links(struct fixture *f, uint32_t idx);
void fixture_server_down(struct fixture *f, uint32_t idx);
void fixture_server_up(struct fixture *f, uint32_t idx);

void fixture_pattern(uint8_t *buffer, uint64_t offset_bytes, uint64_t length_bytes, uint8_t fill);
struct fixture_request *fixture_submit(struct fixture *f, enum dlblk_op op, uint64_t offset_bytes,
                                       uint64_t length_bytes, uint8_t fill);
/* One whose request the test has filled, but for on_done and context. */
void fixture_submit_prepared(struct fixture *f, struct fixture_request *request);
/* Waits for it, frees it. */
int fixture_wait(struct fixture *f, struct fixture_request *request);
/* Its buffer is poisoned first: whoever still writes there is seen by the address sanitizer. */
void fixture_free(struct fixture_request *request);

int fixture_write(struct fixture *f, uint64_t offset_bytes, uint64_t length_bytes, uint8_t fill);
int fixture_op(struct fixture *f, enum dlblk_op op, uint64_t offset_bytes, uint64_t length_bytes);
/* Reads; fails the test unless it is the pattern.  fill 0: zeroes. */
void fixture_check(struct fixture *f, uint64_t offset_bytes, uint64_t length_bytes, uint8_t fill);
int fixture_read(struct fixture *f, uint64_t offset_bytes, uint64_t length_bytes, uint8_t *buffer);

/* Some event has this in its text. */
bool fixture_has_event(const struct fixture *f, const char *text);
struct dlblk_volume_stats fixture_stats(struct fixture *f);

/* Every in-sync slot of every allocated segment has the same content; fails the test if not. */
void fixture_check_slots_alike(struct fixture *f, const struct fake_volume *volume);
/* Pending writes of all in-sync slots of the volume. */
uint64_t fixture_pending_count(struct fixture *f, const struct fake_volume *volume);

#define NS_PER_MS 1000000ull

#endif
