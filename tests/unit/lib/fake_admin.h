/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_admin.h: the part of libdlblk that fake_libdlblk.h has not: changes of servers, states,
 * where a byte lies, the log.  Servers 1 to 3 are those of its list; 3 is down, and has copies.
 *
 *   drain    server 1 can't be: -DL_E_TOO_FEW_DOMAINS
 *   remove   1 and 2 are up: -DL_E_BUSY; 3 wants force
 *
 * Threads: the test's.
 */
#ifndef DLBLK_TESTS_FAKE_ADMIN_H
#define DLBLK_TESTS_FAKE_ADMIN_H

#include "dlblk/client.h"

void fake_admin_reset(void);

/* The last change that was carried out, or would have been (dry_run); what "" if there was none. */
struct fake_admin_change {
    char what[8]; /* drain, undrain, remove, set */
    uint32_t server_id;
    bool dry_run, force;
    bool host_set, rack_set, clique_set;
    char host[32], rack[32], clique[32];
    uint32_t weight_percent;
};
const struct fake_admin_change *fake_admin_last_change(void);

/* What dlblk_volume_status() says of every volume, but its description. */
void fake_admin_set_volume_status(const struct dlblk_volume_status *status);

/*
 * What the next dlblk_volume_scrub() says, and all after the last one; before the first: done,
 * nothing found.  The id is the one that was given; 0 bytes if nobody asked.
 */
void fake_admin_add_scrub(const struct dlblk_scrub *scrub);
uint32_t fake_admin_scrub_count(void);
/* How many different ids were given. */
uint32_t fake_admin_scrub_ids(void);

/* The log's next entry. */
void fake_admin_add_entry(const char *kind, const char *text);
/*
 * From here on the log is made while somebody waits: each dlblk_log_read() with wait_ms takes one
 * step, an entry or an error; after the last it fails with -DL_E_VERSION_UNSUPPORTED.
 */
void fake_admin_begin_waiting(void);
void fake_admin_add_error(int err);
/* The most entries of one answer. */
void fake_admin_set_answer_max(uint32_t max);
void fake_admin_set_lost(bool lost);

#endif
