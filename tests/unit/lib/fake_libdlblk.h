/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_libdlblk.h: a libdlblk without a cluster: volumes are memory, the metadata service is an
 * array.
 *
 * Linked in place of the library, it lets front ends be tested without daemons.  Requests are
 * carried out by one thread in the order of their submission, which is what libdlblk promises for
 * requests that overlap, and after a delay, so that many are in flight.
 *
 * A process that can't call the functions below takes volumes and a fault from its environment when
 * the first client is created: FAKE_LIBDLBLK_VOLUMES="NAME MIB BLOCK ..." and
 * FAKE_LIBDLBLK_FAIL="OP COUNTDOWN DL_E_NAME".
 *
 * Threads: as client.h says; the functions here from the test's thread while no request is in
 *          flight.
 */
#ifndef DLBLK_TESTS_FAKE_LIBDLBLK_H
#define DLBLK_TESTS_FAKE_LIBDLBLK_H

#include <stdbool.h>
#include <stdint.h>

#include "dlblk/client.h"

/* Forget all volumes, faults and counts. */
void fake_libdlblk_reset(void);

/* A volume as dlblk_volume_create() makes it, its content zero; block: 512 or 4096. */
void fake_libdlblk_add_volume(const char *name, uint64_t size_bytes, uint32_t block_bytes);
/* `owner` has it attached; "": nobody. */
void fake_libdlblk_set_owner(const char *name, const char *owner);
/* Its bytes: to be looked at and filled while no request is in flight. */
uint8_t *fake_libdlblk_bytes(const char *name);

/* How long a request waits before it is carried out. */
void fake_libdlblk_set_delay_us(uint32_t delay_us);
/* The `countdown`-th request of this kind from now on (1: the next) fails with err. */
void fake_libdlblk_fail(enum dlblk_op op, uint32_t countdown, int err);
/* Whether dlblk_client_create() finds a metadata service. */
void fake_libdlblk_set_reachable(bool reachable);

/* Requests of this kind that were submitted. */
uint64_t fake_libdlblk_request_count(enum dlblk_op op);
/* Volumes, and clients, that are open. */
uint32_t fake_libdlblk_open_count(void);
uint32_t fake_libdlblk_client_count(void);
/* How often a volume was attached. */
uint32_t fake_libdlblk_attach_count(void);
/* Flags of the last dlblk_volume_open(). */
uint32_t fake_libdlblk_open_flags(void);
/* The servers that the last dlblk_volume_open_without() named. */
#define FAKE_GONE_MAX 8u
size_t fake_libdlblk_gone(const uint32_t **ret_ids);
/*
 * What the last dlblk_client_create() was given; the strings are copies, NULL where there was none.
 */
const struct dlblk_client_options *fake_libdlblk_client_options(void);
/* What the last dlblk_volume_create() was given. */
const struct dlblk_volume_spec *fake_libdlblk_volume_spec(void);

#endif
