/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sm.h: state machines that move along allowed edges only, and leave a trace of it.
 *
 *     enum { FETCH_START, FETCH_READ, FETCH_DONE };
 *     static const struct sm_state fetch_states[] = {
 *         [FETCH_START] = {"START", SM_EDGE(FETCH_READ) | SM_EDGE(FETCH_DONE)},
 *         [FETCH_READ] = {"READ", SM_EDGE(FETCH_DONE)},
 *         [FETCH_DONE] = {"DONE", SM_FINAL},
 *     };
 *     static const struct sm_table fetch_table = SM_TABLE("fetch", fetch_states);
 *
 *     sm_init(&op->sm, &fetch_table, FETCH_START, op->id);
 *     sm_move(&op->sm, FETCH_READ);
 *
 * Threads: the owner's.  Errors: none; a move along an edge that is not in the table asserts.
 */
#ifndef DLBLK_COMMON_SM_H
#define DLBLK_COMMON_SM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/assert.h"
#include "common/trace.h"

#define SM_STATES_MAX  64
#define SM_EDGE(state) (1ull << (state))
#define SM_FINAL       0ull /* no edge leads out of it */

struct sm_state {
    const char *name;
    uint64_t edges; /* the states that may follow */
};

struct sm_table {
    const char *name;
    const struct sm_state *states;
    unsigned state_count;
};

#define SM_TABLE(name, states)                                 \
    {                                                          \
        (name), (states), sizeof(states) / sizeof((states)[0]) \
    }

struct sm {
    const struct sm_table *table;
    uint64_t id;    /* of the object, for the trace */
    unsigned state; /* read it in a switch; only sm_move() changes it */
};

static inline const char *
sm_state_name(const struct sm *sm)
{
    return sm->table->states[sm->state].name;
}

static inline void
sm_init(struct sm *sm, const struct sm_table *table, unsigned state, uint64_t id)
{
    dl_assert(table->state_count <= SM_STATES_MAX);
    dl_assert(state < table->state_count);
    sm->table = table;
    sm->id = id;
    sm->state = state;
    dl_trace(table->name, "%lu: begins as %s", id, sm_state_name(sm));
}

static inline bool
sm_may_move(const struct sm *sm, unsigned state)
{
    return state < sm->table->state_count &&
           (sm->table->states[sm->state].edges & SM_EDGE(state)) != 0;
}

static inline void
sm_move(struct sm *sm, unsigned state)
{
    const char *before = sm_state_name(sm);

    dl_trace(sm->table->name, "%lu: %s -> %s", sm->id, before,
             state < sm->table->state_count ? sm->table->states[state].name : "unknown");
    dl_assert(sm_may_move(sm, state));
    sm->state = state;
}

/* No edge leads out of where it is. */
static inline bool
sm_is_final(const struct sm *sm)
{
    return sm->table->states[sm->state].edges == SM_FINAL;
}

#endif
