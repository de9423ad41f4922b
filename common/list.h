/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list.h: doubly linked lists whose nodes are embedded in what they link.
 *
 *     struct list head;                      struct item { int value; struct list node; };
 *     list_init(&head);
 *     list_push_back(&head, &item->node);
 *     struct item *item;
 *     list_for_each_entry(item, &head, node)
 *         use(item);
 *
 * A node is in one list or in none.  list_remove() leaves it fit for list_is_linked() and for the
 * next push; a zeroed node counts as not linked.  Nothing is allocated, everything takes constant
 * time (list_length() apart).
 *
 * Threads: the owner's.  Errors: none; linking a linked node asserts.
 */
#ifndef DLBLK_COMMON_LIST_H
#define DLBLK_COMMON_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "common/assert.h"

struct list {
    struct list *next;
    struct list *prev;
};

#define LIST_INIT(head)  \
    {                    \
        &(head), &(head) \
    }

/* Make a head empty, or a node unlinked. */
static inline void
list_init(struct list *list)
{
    list->next = list;
    list->prev = list;
}

static inline bool
list_is_empty(const struct list *head)
{
    return head->next == head;
}

static inline bool
list_is_linked(const struct list *node)
{
    return node->next != NULL && node->next != node;
}

/* Put node in front of `before`, which may be the head: then it is the last one. */
static inline void
list_insert_before(struct list *before, struct list *node)
{
    dl_assert(!list_is_linked(node));
    node->next = before;
    node->prev = before->prev;
    before->prev->next = node;
    before->prev = node;
}

static inline void
list_push_back(struct list *head, struct list *node)
{
    list_insert_before(head, node);
}

static inline void
list_push_front(struct list *head, struct list *node)
{
    list_insert_before(head->next, node);
}

/* The node must be linked. */
static inline void
list_remove(struct list *node)
{
    dl_assert(list_is_linked(node));
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

/* NULL if the list is empty. */
static inline struct list *
list_first(const struct list *head)
{
    return list_is_empty(head) ? NULL : head->next;
}

static inline struct list *
list_last(const struct list *head)
{
    return list_is_empty(head) ? NULL : head->prev;
}

/* Remove the first and return it; NULL if the list is empty. */
static inline struct list *
list_pop_front(struct list *head)
{
    struct list *node = list_first(head);

    if (node != NULL)
        list_remove(node);
    return node;
}

/* Move all nodes of `from` behind those of `head`; `from` is empty afterwards. */
static inline void
list_splice_back(struct list *head, struct list *from)
{
    if (list_is_empty(from))
        return;
    from->next->prev = head->prev;
    head->prev->next = from->next;
    from->prev->next = head;
    head->prev = from->prev;
    list_init(from);
}

/* Walks the list: for tests and diagnostics. */
static inline size_t
list_length(const struct list *head)
{
    size_t length = 0;

    for (const struct list *node = head->next; node != head; node = node->next)
        length++;
    return length;
}

#define list_entry(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

/* The list must not be empty. */
#define list_first_entry(head, type, member) list_entry((head)->next, type, member)
#define list_last_entry(head, type, member)  list_entry((head)->prev, type, member)

#define list_for_each(node, head) \
    for ((node) = (head)->next; (node) != (head); (node) = (node)->next)

/* The body must not remove `item`. */
#define list_for_each_entry(item, head, member)                          \
    for ((item) = list_entry((head)->next, __typeof__(*(item)), member); \
         &(item)->member != (head);                                      \
         (item) = list_entry((item)->member.next, __typeof__(*(item)), member))

/* The body may remove or free `item`, but not `following`. */
#define list_for_each_entry_safe(item, following, head, member)                     \
    for ((item) = list_entry((head)->next, __typeof__(*(item)), member),            \
        (following) = list_entry((item)->member.next, __typeof__(*(item)), member); \
         &(item)->member != (head); (item) = (following),                           \
        (following) = list_entry((following)->member.next, __typeof__(*(item)), member))

#endif
