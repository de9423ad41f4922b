/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cluster.h: on top of the fixture, some servers and one volume "v" with its owner: for tests of
 * what becomes of slots.
 *
 *     cluster_init(&t, 3, 8, NULL);             // servers 1 to 3, segments 0 to 7
 *     cluster_server_goes(&t, 3);
 *     ... cluster_slot(&t, 0, 2).state ...
 *     cluster_server_returns(&t, 3);
 *     while (cluster_recover(&t, 8))            // servers report what they were told to recover
 *         continue;
 *     cluster_check_whole(&t, 8);
 *     fixture_fini(&t.f);
 */
#ifndef DLBLK_TESTS_META_CLUSTER_H
#define DLBLK_TESTS_META_CLUSTER_H

#include "tests/unit/meta/fixture.h"

#define MIB                 (1ull << 20)
#define CLUSTER_SERVERS_MAX 8u

#define I DL__SLOT_STATE__SLOT_IN_SYNC
#define R DL__SLOT_STATE__SLOT_RECOVERING
#define E DL__SLOT_STATE__SLOT_EJECTED

struct cluster_test {
    struct fixture f;
    struct peer *servers[CLUSTER_SERVERS_MAX]; /* by id - 1; server_id 0: it is not there */
    uint32_t server_count;
    struct peer *client;
    uint64_t volume;
    uint32_t lease;
};

/* 512 MiB, 3 copies on distinct servers.  options may be NULL. */
void cluster_init(struct cluster_test *t, uint32_t server_count, uint32_t segments,
                  const struct meta_options *options);
void cluster_server_goes(struct cluster_test *t, uint32_t id);
/* With a new start of its process. */
void cluster_server_returns(struct cluster_test *t, uint32_t id);
/*
 * kill -9 of the service; everybody who was there comes back: servers as the processes that they
 * were, or started anew.
 */
void cluster_service_restarts(struct cluster_test *t, bool servers_too);

/* One place of a segment; server_id 0: it is empty. */
Dl__Slot cluster_slot(struct cluster_test *t, uint32_t segment, uint32_t place);
uint32_t cluster_epoch(struct cluster_test *t, uint32_t segment);
/* The owner ejects the slot on this server. */
void cluster_eject(struct cluster_test *t, uint32_t segment, uint32_t id);
/* What servers that are there have to do is done, and 600 ms pass.  True: there was something. */
bool cluster_recover(struct cluster_test *t, uint32_t segments);
/* All slots are in-sync, and nothing moves. */
void cluster_check_whole(struct cluster_test *t, uint32_t segments);

#endif
