/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.h: the last events of each thread, kept in memory and printed when the program aborts.
 *
 *     dl_trace("journal", "group %lu: %u records", sequence, record_count);
 *
 * An event costs some stores: the format is kept as a pointer and the arguments, at most four, as
 * numbers; text is made of them only when they are printed.  So format and component are string
 * literals, and %s takes strings that live for ever (names of states).  Conversions: d i u x p s
 * and %%, with any length modifier, without width.
 *
 * Time: events carry the time last given to dl_trace_set_time(); a loop (or the simulator, with its
 * virtual time) sets it once per turn.
 *
 * Threads: any; each writes a ring of its own, which outlives it until another thread takes it
 *          over.
 * Errors:  without memory for a ring the thread's events are dropped.
 */
#ifndef DLBLK_COMMON_TRACE_H
#define DLBLK_COMMON_TRACE_H

#include <stddef.h>
#include <stdint.h>

#define DL_TRACE_EVENTS 4096u /* kept per thread; a power of two */

struct dl_trace_event {
    uint64_t time_ns;
    const char *component; /* NULL: never written */
    const char *format;
    uint64_t arguments[4];
};

struct dl_trace_ring {
    uint64_t event_count; /* written so far: the next one goes to event_count mod DL_TRACE_EVENTS */
    uint64_t time_ns;
    struct dl_trace_event events[DL_TRACE_EVENTS];
};

/* The calling thread's ring: NULL before its first event. */
extern _Thread_local struct dl_trace_ring *dl_trace_ring_of_thread
    __attribute__((tls_model("initial-exec")));

struct dl_trace_ring *dl_trace_ring_create(void);

static inline struct dl_trace_ring *
dl_trace_ring_get(void)
{
    struct dl_trace_ring *ring = dl_trace_ring_of_thread;

    return __builtin_expect(ring != NULL, 1) ? ring : dl_trace_ring_create();
}

/* The time that the thread's next events carry. */
static inline void
dl_trace_set_time(uint64_t time_ns)
{
    struct dl_trace_ring *ring = dl_trace_ring_get();

    if (ring != NULL)
        ring->time_ns = time_ns;
}

static inline void
dl_trace_write(const char *component, const char *format, uint64_t a, uint64_t b, uint64_t c,
               uint64_t d)
{
    struct dl_trace_ring *ring = dl_trace_ring_get();
    struct dl_trace_event *event;

    if (ring == NULL)
        return;
    event = &ring->events[ring->event_count++ % DL_TRACE_EVENTS];
    event->time_ns = ring->time_ns;
    event->component = component;
    event->format = format;
    event->arguments[0] = a;
    event->arguments[1] = b;
    event->arguments[2] = c;
    event->arguments[3] = d;
}

/* Never called: lets the compiler compare format and arguments. */
static inline void __attribute__((format(printf, 1, 2))) dl_trace_check(const char *format, ...)
{
    (void)format;
}

#define dl_trace(component, ...)                                                                  \
    do {                                                                                          \
        if (0)                                                                                    \
            dl_trace_check(__VA_ARGS__);                                                          \
        DL_TRACE_PICK(__VA_ARGS__, DL_TRACE_4, DL_TRACE_3, DL_TRACE_2, DL_TRACE_1, DL_TRACE_0, 0) \
        (component, __VA_ARGS__);                                                                 \
    } while (0)

#define DL_TRACE_PICK(format, a, b, c, d, pick, ...) pick

#define DL_TRACE_0(component, format) dl_trace_write(component, format, 0, 0, 0, 0)

#define DL_TRACE_1(component, format, a) dl_trace_write(component, format, (uint64_t)(a), 0, 0, 0)

#define DL_TRACE_2(component, format, a, b) \
    dl_trace_write(component, format, (uint64_t)(a), (uint64_t)(b), 0, 0)

#define DL_TRACE_3(component, format, a, b, c) \
    dl_trace_write(component, format, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), 0)

#define DL_TRACE_4(component, format, a, b, c, d) \
    dl_trace_write(component, format, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d))

/*
 * Print the events of every thread, oldest first.  Uses nothing but write(2), so that a signal
 * handler may call it.  Threads that go on running meanwhile can spoil single lines of theirs.
 */
void dl_trace_dump(int fd);

/* The same, but only the first call in the life of the process prints. */
void dl_trace_dump_once(int fd);

/*
 * For programs, not for libraries: print the events to stderr when SIGABRT, SIGSEGV, SIGBUS, SIGILL
 * or SIGFPE kills it.
 */
void dl_trace_dump_on_crash(void);

#endif
