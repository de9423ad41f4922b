/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists keep their order under every operation, and a node that is linked twice or removed twice is
 * seen.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/list.h"
#include "tests/unit/lib/child.h"

struct item {
    char name;
    struct list node;
};

/* The names in order, walked forwards and backwards. */
static void
assert_list(const struct list *head, const char *names)
{
    size_t length = strlen(names);
    struct item *item;
    size_t i = 0;

    list_for_each_entry (item, head, node)
        assert_int_equal(item->name, names[i++]);
    assert_int_equal(i, length);
    for (const struct list *node = head->prev; node != head; node = node->prev)
        assert_int_equal(list_entry(node, struct item, node)->name, names[--i]);
    assert_int_equal(i, 0);
    assert_int_equal(list_length(head), length);
    assert_int_equal(list_is_empty(head), length == 0);
}

static void
test_push_remove_pop(void **state)
{
    struct list head = LIST_INIT(head);
    struct item a = {.name = 'a'}, b = {.name = 'b'}, c = {.name = 'c'}, d = {.name = 'd'};

    (void)state;
    assert_list(&head, "");
    assert_null(list_first(&head));
    assert_null(list_last(&head));
    assert_null(list_pop_front(&head));
    assert_false(list_is_linked(&a.node));

    list_push_back(&head, &b.node);
    list_push_back(&head, &c.node);
    list_push_front(&head, &a.node);
    list_insert_before(&c.node, &d.node);
    assert_list(&head, "abdc");
    assert_ptr_equal(list_first_entry(&head, struct item, node), &a);
    assert_ptr_equal(list_last_entry(&head, struct item, node), &c);
    assert_true(list_is_linked(&a.node));

    list_remove(&d.node);
    assert_false(list_is_linked(&d.node));
    assert_list(&head, "abc");
    assert_ptr_equal(list_pop_front(&head), &a.node);
    assert_false(list_is_linked(&a.node));
    list_push_back(&head, &a.node); /* fit to be linked again */
    assert_list(&head, "bca");
}

static void
test_remove_while_walking(void **state)
{
    struct item items[] = {{.name = 'a'}, {.name = 'b'}, {.name = 'c'}, {.name = 'd'}};
    struct list head = LIST_INIT(head);
    struct item *item, *following;

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        list_push_back(&head, &items[i].node);
    list_for_each_entry_safe (item, following, &head, node) {
        if (item->name % 2 == 0) {
            list_remove(&item->node);
            memset(item, 0xee, sizeof(*item)); /* as if it had been freed */
        }
    }
    assert_list(&head, "ac");
}

static void
test_splice(void **state)
{
    struct list head = LIST_INIT(head), from = LIST_INIT(from);
    struct item a = {.name = 'a'}, b = {.name = 'b'}, c = {.name = 'c'};

    (void)state;
    list_splice_back(&head, &from);
    assert_list(&head, "");
    list_push_back(&from, &a.node);
    list_push_back(&from, &b.node);
    list_splice_back(&head, &from);
    assert_list(&head, "ab");
    assert_list(&from, "");
    list_push_back(&from, &c.node);
    list_splice_back(&head, &from);
    assert_list(&head, "abc");
    assert_list(&from, "");
}

static void
links_twice(void *context)
{
    struct list *head = context;
    struct item a = {.name = 'a'};

    list_push_back(head, &a.node);
    list_push_back(head, &a.node);
}

static void
removes_twice(void *context)
{
    struct list *head = context;
    struct item a = {.name = 'a'}, b = {.name = 'b'};

    list_push_back(head, &a.node);
    list_push_back(head, &b.node);
    list_remove(&a.node);
    list_remove(&a.node);
}

static void
test_misuse_asserts(void **state)
{
    struct list head = LIST_INIT(head);
    struct child child;

    (void)state;
    child_run(&child, links_twice, &head);
    assert_true(child_aborted(&child));
    child_run(&child, removes_twice, &head);
    assert_true(child_aborted(&child));
}

UNIT_MAIN(cmocka_unit_test(test_push_remove_pop), cmocka_unit_test(test_remove_while_walking),
          cmocka_unit_test(test_splice), cmocka_unit_test(test_misuse_asserts))
