/* SPDX-License-Identifier: Apache-2.0 */
/* A state machine takes every edge of its table and no other, and leaves its way in the trace. */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/sm.h"
#include "tests/unit/lib/child.h"

/*
 *     START --> READ --> DONE
 *       |                 ^
 *       +-----------------+
 */
enum { FETCH_START, FETCH_READ, FETCH_DONE, FETCH_STATES };

static const struct sm_state fetch_states[] = {
    [FETCH_START] = {"START", SM_EDGE(FETCH_READ) | SM_EDGE(FETCH_DONE)},
    [FETCH_READ] = {"READ", SM_EDGE(FETCH_DONE)},
    [FETCH_DONE] = {"DONE", SM_FINAL},
};

static const struct sm_table fetch_table = SM_TABLE("fetch", fetch_states);

static const bool allowed[FETCH_STATES][FETCH_STATES + 1] = {
    [FETCH_START] = {false, true, true, false},
    [FETCH_READ] = {false, false, true, false},
    [FETCH_DONE] = {false, false, false, false},
};

struct move {
    unsigned from, to;
};

static void
moves(void *context)
{
    struct move *move = context;
    struct sm sm;

    sm_init(&sm, &fetch_table, move->from, 7);
    sm_move(&sm, move->to);
    if (sm.state != move->to)
        _exit(1);
}

static void
test_every_edge(void **state)
{
    (void)state;
    for (unsigned from = 0; from < FETCH_STATES; from++) {
        for (unsigned to = 0; to <= FETCH_STATES; to++) {
            struct move move = {from, to};
            struct child child;

            child_run(&child, moves, &move);
            if (allowed[from][to])
                assert_int_equal(child.status, 0);
            else
                assert_true(child_aborted(&child));
        }
    }
}

static void
test_trace_of_a_forbidden_move(void **state)
{
    struct move move = {FETCH_READ, FETCH_START};
    struct child child;

    (void)state;
    child_run(&child, moves, &move);
    assert_non_null(strstr(child.text, "fetch: 7: begins as READ\n"));
    assert_non_null(strstr(child.text, "fetch: 7: READ -> START\n"));
}

static void
test_names_and_end(void **state)
{
    struct sm sm;

    (void)state;
    sm_init(&sm, &fetch_table, FETCH_START, 1);
    assert_string_equal(sm_state_name(&sm), "START");
    assert_false(sm_is_final(&sm));
    assert_true(sm_may_move(&sm, FETCH_DONE));
    assert_false(sm_may_move(&sm, FETCH_START));
    sm_move(&sm, FETCH_DONE);
    assert_string_equal(sm_state_name(&sm), "DONE");
    assert_true(sm_is_final(&sm));
}

UNIT_MAIN(cmocka_unit_test(test_every_edge), cmocka_unit_test(test_trace_of_a_forbidden_move),
          cmocka_unit_test(test_names_and_end))
