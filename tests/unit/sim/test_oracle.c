/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The oracle lets right histories pass and stops wrong ones.  Each history is a function that is
 * run in a child process; the oracle ends the child with status 1 and a text that names the
 * violation.
 *
 *     W(e, v)  a write of value v under lease epoch e        R(e) = v  a read that returns v
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "tests/sim/oracle.h"
#include "tests/unit/lib/child.h"

static struct sim_world world;
static struct oracle oracle;

/* --- a short way to write histories; on block 0 --- */

static uint64_t
write_begin(uint32_t epoch, uint64_t value)
{
    world.now_ns += 10;
    return oracle_write_begin(&oracle, epoch, 0, 1, value);
}

static void
write_ack(uint64_t key)
{
    world.now_ns += 10;
    oracle_write_end(&oracle, key, 0, 1, true, false);
}

static void
write_fail(uint64_t key)
{
    world.now_ns += 10;
    oracle_write_end(&oracle, key, 0, 1, false, false);
}

static void
write_shut_out(uint64_t key)
{
    world.now_ns += 10;
    oracle_write_end(&oracle, key, 0, 1, false, true);
}

static void
write_done(uint32_t epoch, uint64_t value)
{
    write_ack(write_begin(epoch, value));
}

struct running_read {
    struct oracle_read read;
    uint64_t bound;
};

static void
read_begin(struct running_read *running, uint32_t epoch)
{
    world.now_ns += 10;
    oracle_read_begin(&oracle, &running->read, epoch, 0, 1, &running->bound);
}

static void
read_end(struct running_read *running, uint64_t value)
{
    world.now_ns += 10;
    running->read.bounds = &running->bound;
    oracle_read_end(&oracle, &running->read, &value);
}

static void
read_done(uint32_t epoch, uint64_t value)
{
    struct running_read running;

    read_begin(&running, epoch);
    read_end(&running, value);
}

/* --- right histories --- */

static void
right_sequence(void *context)
{
    (void)context;
    read_done(1, 0);
    write_done(1, 5);
    read_done(1, 5);
    write_done(1, 0); /* a discard */
    read_done(1, 0);
    write_done(1, 6);
    read_done(2, 6);
}

static void
right_concurrent(void *context)
{
    struct running_read before;
    uint64_t key;

    (void)context;
    read_begin(&before, 1);
    key = write_begin(1, 5);
    read_end(&before, 0); /* was submitted before the write */
    write_ack(key);
    read_done(1, 5);
}

/* What was not acknowledged when its owner died is there or not, and stays so. */
static void
right_takeover(void *context)
{
    (void)context;
    write_done(1, 5);
    (void)write_begin(1, 6);
    read_done(2, 6);
    read_done(2, 6);
    read_done(3, 6);
    (void)write_begin(3, 7);
    read_done(4, 6);
    read_done(5, 6);
}

/* The old owner learns late that its write was taken; the new one has kept it. */
static void
right_late_acknowledgement(void *context)
{
    uint64_t key = write_begin(1, 5);

    (void)context;
    read_done(2, 5);
    write_done(2, 6);
    write_ack(key);
    read_done(2, 6);
}

/* Zeroes are not unique: the new owner has seen the later ones. */
static void
right_late_acknowledgement_under_zeroes(void *context)
{
    uint64_t write, zeroes;

    (void)context;
    write_done(1, 0);
    write = write_begin(1, 5);
    zeroes = write_begin(1, 0);
    read_done(2, 0);
    write_done(2, 7);
    write_ack(write);
    write_ack(zeroes);
    read_done(2, 7);
}

/* A replaced owner that does not know it may read old data. */
static void
right_replaced_owner(void *context)
{
    (void)context;
    write_done(1, 5);
    write_done(2, 6);
    read_done(2, 6);
    read_done(1, 5);
}

static void
right_failed_write(void *context)
{
    uint64_t key;

    (void)context;
    write_done(1, 5);
    key = write_begin(1, 6);
    write_fail(key);
    read_done(1, 6);
    read_done(1, 6);
    write_done(1, 7);
    read_done(1, 7);
}

/* After a failed write requests may change places; each still takes effect while it runs. */
static void
right_disorder(void *context)
{
    uint64_t failed = write_begin(1, 5);
    uint64_t first, second;

    (void)context;
    write_fail(failed);
    first = write_begin(1, 6);
    second = write_begin(1, 7);
    write_ack(second);
    read_done(1, 7);
    write_ack(first);
    read_done(1, 6);
}

/* ... and a new owner may have seen the one that was submitted first. */
static void
right_disorder_before_a_takeover(void *context)
{
    uint64_t second;

    (void)context;
    write_fail(write_begin(1, 5));
    (void)write_begin(1, 6);
    second = write_begin(1, 7);
    read_done(2, 6);
    write_ack(second);
    read_done(2, 6);
}

/* The part of a write that covers this block has failed; the rest of it has not ended yet. */
static void
right_disorder_before_the_end(void *context)
{
    uint64_t failing = write_begin(1, 5);
    struct running_read read;

    (void)context;
    read_begin(&read, 1);
    write_done(1, 6);
    read_end(&read, 6);
    write_fail(failing);
}

/* ... so a read may go before a write that waits for the failed part, too. */
static void
right_overtaken_before_the_end(void *context)
{
    uint64_t failing, waiting;

    (void)context;
    write_done(1, 4);
    failing = write_begin(1, 5);
    waiting = write_begin(1, 6);
    read_done(1, 4);
    write_ack(waiting);
    write_fail(failing);
}

/* --- wrong histories --- */

static void
wrong_lost_write(void *context)
{
    (void)context;
    write_done(1, 5);
    write_done(1, 6);
    read_done(1, 5);
}

static void
wrong_value_from_nowhere(void *context)
{
    (void)context;
    write_done(1, 5);
    read_done(1, 9);
}

static void
wrong_lost_at_takeover(void *context)
{
    (void)context;
    write_done(1, 5);
    write_done(1, 6);
    read_done(2, 5);
}

static void
wrong_read_of_the_future(void *context)
{
    struct running_read before;

    (void)context;
    read_begin(&before, 1);
    write_done(1, 5);
    read_end(&before, 5);
}

static void
wrong_disorder_without_failure(void *context)
{
    uint64_t other = write_begin(1, 5);
    struct running_read read;

    (void)context;
    read_begin(&read, 1);
    write_done(1, 6);
    read_end(&read, 6);
    write_ack(other);
}

static void
wrong_overtaken(void *context)
{
    uint64_t key;

    (void)context;
    write_done(1, 4);
    key = write_begin(1, 5);
    read_done(1, 4); /* submitted after the write */
    write_ack(key);
}

static void
wrong_overtaken_without_failure(void *context)
{
    uint64_t other, key;

    (void)context;
    write_done(1, 4);
    other = write_begin(1, 5);
    key = write_begin(1, 6);
    read_done(1, 4);
    write_ack(key);
    write_ack(other);
}

static void
wrong_back_in_time(void *context)
{
    (void)context;
    write_done(1, 5);
    (void)write_begin(1, 6);
    read_done(2, 6);
    read_done(2, 5);
}

static void
wrong_undecided_after_takeover(void *context)
{
    (void)context;
    write_done(1, 5);
    (void)write_begin(1, 6);
    read_done(2, 5);
    read_done(2, 6);
}

/* Not even by the owner after next. */
static void
wrong_rises_again(void *context)
{
    (void)context;
    write_done(1, 5);
    (void)write_begin(1, 6);
    read_done(2, 5);
    read_done(3, 6);
}

static void
wrong_acknowledged_after_it_was_dropped(void *context)
{
    uint64_t key;

    (void)context;
    write_done(1, 5);
    key = write_begin(1, 6);
    read_done(2, 5);
    write_ack(key);
}

/* Between the zeroes that were there and those that may have been seen: one write, not two. */
static void
wrong_acknowledged_over_all_zeroes(void *context)
{
    uint64_t below, above;

    (void)context;
    write_done(1, 0);
    below = write_begin(1, 5);
    (void)write_begin(1, 0);
    above = write_begin(1, 6);
    read_done(2, 0);
    write_ack(below);
    write_ack(above);
}

/* Zeroes that came after the read are not what it saw. */
static void
wrong_acknowledged_under_late_zeroes(void *context)
{
    uint64_t key;

    (void)context;
    write_done(1, 0);
    key = write_begin(1, 5);
    read_done(2, 0);
    (void)write_begin(1, 0); /* by the replaced owner, who doesn't know it */
    write_ack(key);
}

/* What was seen had ended before the other one began: that is an order. */
static void
wrong_acknowledged_after_disorder(void *context)
{
    uint64_t key;

    (void)context;
    write_fail(write_begin(1, 4));
    write_done(1, 5);
    key = write_begin(1, 6);
    read_done(2, 5);
    write_ack(key);
}

static void
wrong_shut_out_but_visible_later(void *context)
{
    uint64_t key;

    (void)context;
    key = write_begin(1, 6);
    read_done(2, 0);
    write_shut_out(key);
    read_done(2, 6);
}

static void
wrong_even_in_disorder(void *context)
{
    (void)context;
    write_fail(write_begin(1, 5));
    write_done(1, 6);
    write_done(1, 7);
    read_done(1, 6); /* ended before 7 began, and 7 was acknowledged */
}

static void
wrong_back_in_time_in_disorder(void *context)
{
    (void)context;
    write_done(1, 4);
    write_fail(write_begin(1, 5));
    read_done(1, 5);
    read_done(1, 4);
}

static void
wrong_ends_twice(void *context)
{
    uint64_t key = write_begin(1, 5);

    (void)context;
    write_ack(key);
    write_ack(key);
}

static void
wrong_lease_epoch_twice(void *context)
{
    (void)context;
    oracle_session_begin(&oracle, 7);
    oracle_session_begin(&oracle, 7);
}

/* --- the tests --- */

static int
run_history(void (*history)(void *context), struct child *child)
{
    sim_world_init(&world, 1);
    oracle_init(&oracle, &world, "v", 1);
    child_run(child, history, NULL);
    oracle_fini(&oracle);
    sim_world_fini(&world);
    assert_true(WIFEXITED(child->status));
    return WEXITSTATUS(child->status);
}

static void
test_right_histories_pass(void **state)
{
    void (*const histories[])(void *context) = {
        right_sequence,
        right_concurrent,
        right_takeover,
        right_late_acknowledgement,
        right_late_acknowledgement_under_zeroes,
        right_replaced_owner,
        right_failed_write,
        right_disorder,
        right_disorder_before_the_end,
        right_disorder_before_a_takeover,
        right_overtaken_before_the_end,
    };
    static struct child child;

    (void)state;
    for (size_t i = 0; i < sizeof(histories) / sizeof(histories[0]); i++)
        if (run_history(histories[i], &child) != 0)
            fail_msg("history %zu: %s", i, child.text);
}

static void
test_wrong_histories_are_stopped(void **state)
{
    static const struct {
        void (*history)(void *context);
        const char *text;
    } cases[] = {
        {wrong_lost_write, "returned value 5, which is none of the writes from 1.2 on"},
        {wrong_value_from_nowhere, "returned value 9, which is none"},
        {wrong_lost_at_takeover, "returned value 5, which is none of the writes from 1.2 on"},
        {wrong_read_of_the_future, "returned value 5, which is none"},
        {wrong_disorder_without_failure, "and no write of that time failed"},
        {wrong_overtaken,
         "is acknowledged, but a read submitted after it returned something older"},
        {wrong_overtaken_without_failure, "and no write of that time failed"},
        {wrong_back_in_time, "returned value 5, which is none"},
        {wrong_undecided_after_takeover, "another one of earlier owners stands"},
        {wrong_rises_again, "another one of earlier owners stands"},
        {wrong_acknowledged_after_it_was_dropped, "is acknowledged after owner 2 saw"},
        {wrong_acknowledged_after_disorder, "is acknowledged after owner 2 saw"},
        {wrong_acknowledged_over_all_zeroes, "write 1.4 is acknowledged after owner 2 saw 1.3"},
        {wrong_acknowledged_under_late_zeroes, "write 1.2 is acknowledged after owner 2 saw 1.1"},
        {wrong_shut_out_but_visible_later, "another one of earlier owners stands"},
        {wrong_even_in_disorder, "returned value 6, which is none"},
        {wrong_back_in_time_in_disorder, "returned value 4, which is none"},
        {wrong_ends_twice, "ends twice"},
        {wrong_lease_epoch_twice, "lease epoch 7 was given twice"},
    };
    static struct child child;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (run_history(cases[i].history, &child) != 1)
            fail_msg("history %zu passes", i);
        if (strstr(child.text, cases[i].text) == NULL)
            fail_msg("history %zu: \"%s\" is not in: %s", i, cases[i].text, child.text);
    }
}

UNIT_MAIN(cmocka_unit_test(test_right_histories_pass),
          cmocka_unit_test(test_wrong_histories_are_stopped))
