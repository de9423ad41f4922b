/* SPDX-License-Identifier: Apache-2.0 */
#include "common/trace.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"

static_assert((DL_TRACE_EVENTS & (DL_TRACE_EVENTS - 1)) == 0, "the ring's size is a power of two");

/*
 * Rings are never freed: they are linked once, and handed from a thread that ends to one that
 * starts.  So the dump can walk the chain without a lock, even in a signal handler.
 */
struct ring_owner {
    struct dl_trace_ring ring; /* first: a ring is its owner */
    struct ring_owner *next;
    atomic_bool in_use;
    unsigned number;
};

_Thread_local struct dl_trace_ring *dl_trace_ring_of_thread;

static _Atomic(struct ring_owner *) ring_chain;
static pthread_key_t ring_key;
static pthread_once_t ring_key_once = PTHREAD_ONCE_INIT;
static bool ring_key_valid;

static void
ring_release(void *context)
{
    struct ring_owner *owner = context;

    dl_trace_ring_of_thread = NULL;
    atomic_store(&owner->in_use, false);
}

static void
ring_key_create(void)
{
    ring_key_valid = pthread_key_create(&ring_key, ring_release) == 0;
}

static struct ring_owner *
ring_take_over(void)
{
    for (struct ring_owner *owner = atomic_load(&ring_chain); owner != NULL; owner = owner->next) {
        bool free_state = false;

        if (atomic_compare_exchange_strong(&owner->in_use, &free_state, true))
            return owner;
    }
    return NULL;
}

static struct ring_owner *
ring_add(void)
{
    struct ring_owner *owner = calloc(1, sizeof(*owner));

    if (owner == NULL)
        return NULL;
    atomic_store(&owner->in_use, true);
    owner->next = atomic_load(&ring_chain);
    do {
        owner->number = owner->next == NULL ? 0 : owner->next->number + 1;
    } while (!atomic_compare_exchange_weak(&ring_chain, &owner->next, owner));
    return owner;
}

struct dl_trace_ring *
dl_trace_ring_create(void)
{
    struct ring_owner *owner;

    (void)pthread_once(&ring_key_once, ring_key_create);
    if (!ring_key_valid)
        return NULL;
    owner = ring_take_over();
    if (owner == NULL)
        owner = ring_add();
    if (owner == NULL)
        return NULL;
    if (pthread_setspecific(ring_key, owner) != 0) {
        atomic_store(&owner->in_use, false);
        return NULL;
    }
    dl_trace_ring_of_thread = &owner->ring;
    return &owner->ring;
}

/* --- printing: no stdio, no allocation, no locale: it must work in a signal handler --- */

struct line {
    char text[256];
    size_t length_bytes;
};

static void
line_char(struct line *line, char c)
{
    if (line->length_bytes < sizeof(line->text) - 1)
        line->text[line->length_bytes++] = c;
}

static void
line_text(struct line *line, const char *text)
{
    for (; *text != '\0'; text++)
        line_char(line, *text);
}

static void
line_number(struct line *line, uint64_t value, unsigned base, unsigned digits_min)
{
    char digits[20];
    unsigned count = 0;

    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0 || count < digits_min);
    while (count > 0)
        line_char(line, digits[--count]);
}

static void
line_signed(struct line *line, int64_t value)
{
    uint64_t magnitude = (uint64_t)value;

    if (value < 0) {
        line_char(line, '-');
        magnitude = -magnitude;
    }
    line_number(line, magnitude, 10, 1);
}

/* One conversion, `format` behind its percent sign; returns what follows it. */
static const char *
line_conversion(struct line *line, const char *format, uint64_t argument)
{
    bool is_long = false;

    for (; *format == 'l' || *format == 'z' || *format == 'j' || *format == 'h'; format++)
        is_long = is_long || *format != 'h';
    switch (*format) {
    case 'd':
    case 'i':
        line_signed(line, (int64_t)argument);
        break;
    case 'u':
        line_number(line, is_long ? argument : (uint32_t)argument, 10, 1);
        break;
    case 'p':
        line_text(line, "0x");
        line_number(line, argument, 16, 1);
        break;
    case 'x':
        line_number(line, is_long ? argument : (uint32_t)argument, 16, 1);
        break;
    case 's':
        line_text(line, argument == 0 ? "(null)" : (const char *)(uintptr_t)argument);
        break;
    default:
        line_char(line, '?');
        return format;
    }
    return format + 1;
}

static void
line_event(struct line *line, const struct dl_trace_event *event)
{
    unsigned argument_idx = 0;

    line_number(line, event->time_ns / 1000000000, 10, 1);
    line_char(line, '.');
    line_number(line, event->time_ns % 1000000000 / 1000, 10, 6);
    line_char(line, ' ');
    line_text(line, event->component);
    line_text(line, ": ");
    for (const char *format = event->format; *format != '\0';) {
        char c = *format++;

        if (c != '%') {
            line_char(line, c);
        } else if (*format == '%') {
            line_char(line, *format++);
        } else {
            uint64_t argument = argument_idx < 4 ? event->arguments[argument_idx] : 0;

            argument_idx++;
            format = line_conversion(line, format, argument);
        }
    }
    line_char(line, '\n');
}

static void
line_write(struct line *line, int fd)
{
    size_t done_bytes = 0;

    while (done_bytes < line->length_bytes) {
        ssize_t written = write(fd, line->text + done_bytes, line->length_bytes - done_bytes);

        if (written <= 0)
            break; /* nobody left to tell */
        done_bytes += (size_t)written;
    }
    line->length_bytes = 0;
}

static void
ring_dump(int fd, const struct ring_owner *owner)
{
    uint64_t end = owner->ring.event_count;
    uint64_t first = end > DL_TRACE_EVENTS ? end - DL_TRACE_EVENTS : 0;
    struct line line = {.length_bytes = 0};

    line_text(&line, "--- thread ");
    line_number(&line, owner->number, 10, 1);
    line_text(&line, ": last ");
    line_number(&line, end - first, 10, 1);
    line_text(&line, " of ");
    line_number(&line, end, 10, 1);
    line_text(&line, " events\n");
    line_write(&line, fd);
    for (uint64_t i = first; i < end; i++) {
        const struct dl_trace_event *event = &owner->ring.events[i % DL_TRACE_EVENTS];

        if (event->component == NULL || event->format == NULL)
            continue; /* half written by a thread that was interrupted there */
        line_event(&line, event);
        line_write(&line, fd);
    }
}

void
dl_trace_dump(int fd)
{
    for (const struct ring_owner *owner = atomic_load(&ring_chain); owner != NULL;
         owner = owner->next)
        ring_dump(fd, owner);
}

void
dl_trace_dump_once(int fd)
{
    static atomic_flag dumped = ATOMIC_FLAG_INIT;

    if (!atomic_flag_test_and_set(&dumped))
        dl_trace_dump(fd);
}

static void
crash_handler(int signal_number)
{
    dl_trace_dump_once(STDERR_FILENO);
    /* SA_RESETHAND has put the default back: this time it kills, with the right signal and core. */
    (void)raise(signal_number);
}

void
dl_trace_dump_on_crash(void)
{
    static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction action = {.sa_handler = crash_handler, .sa_flags = SA_RESETHAND | SA_NODEFER};

    (void)sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        (void)sigaction(signals[i], &action, NULL);
}
