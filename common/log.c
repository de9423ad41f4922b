/* SPDX-License-Identifier: Apache-2.0 */
#include "common/log.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/text.h"

#define MESSAGE_BYTES 1024 /* component, object and text; what is longer is cut */
#define REPEAT_COUNT  32
#define KIND_COUNT    64

static const struct {
    const char *name;
    int priority; /* as syslog and the journal number them */
} levels[] = {
    [LOG_LEVEL_DEBUG] = {"debug", 7},
    [LOG_LEVEL_INFO] = {"info", 6},
    [LOG_LEVEL_WARNING] = {"warning", 4},
    [LOG_LEVEL_ERROR] = {"error", 3},
};

/* A line that was written lately, and how often it came again since. */
struct repeat {
    uint64_t written_ns; /* 0: not in use */
    uint64_t suppressed_count;
    enum log_level level;
    char message[MESSAGE_BYTES];
};

/* Lines of one component and format: a peer can make many that differ in its port alone. */
struct kind {
    const char *component, *format;
    uint64_t since_ns; /* of its interval; 0: not in use */
    uint64_t line_count;
    enum log_level level;
    char message[MESSAGE_BYTES]; /* the last that was left out */
};

static _Atomic enum log_level level_min = LOG_LEVEL_INFO;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for all below */
static struct repeat repeats[REPEAT_COUNT];
static struct kind kinds[KIND_COUNT];
static int output_fd = STDERR_FILENO;
static bool journal_known, journal;

void
log_set_level(enum log_level level)
{
    atomic_store_explicit(&level_min, level, memory_order_relaxed);
}

enum log_level
log_get_level(void)
{
    return atomic_load_explicit(&level_min, memory_order_relaxed);
}

int
log_parse_level(const char *what, const char *text, enum log_level *ret_level, struct dl_error *err)
{
    for (unsigned i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (strcasecmp(text, levels[i].name) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return dl_error_set(err, -DL_E_USAGE, "%s: %s is not debug, info, warning or error", what,
                        text_quote(text).text);
}

void
log_set_fd(int fd)
{
    (void)pthread_mutex_lock(&lock);
    output_fd = fd;
    journal_known = false;
    (void)pthread_mutex_unlock(&lock);
}

/*
 * JOURNAL_STREAM holds device and inode of the socket that systemd made our stderr.  A child whose
 * stderr was redirected inherits the variable as well, so the numbers are compared.
 */
static bool
log_fd_is_journal(int fd)
{
    const char *stream = getenv("JOURNAL_STREAM");
    uintmax_t device, inode;
    struct stat status;

    if (stream == NULL || sscanf(stream, "%ju:%ju", &device, &inode) != 2 ||
        fstat(fd, &status) != 0)
        return false;
    return status.st_dev == device && status.st_ino == inode;
}

/* Control characters would let a peer's text write lines or colours of its own. */
static void
log_clean(char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
    }
}

static void
log_emit(enum log_level level, const char *message, uint64_t more_count, const char *more_of_what)
{
    char line[MESSAGE_BYTES + 128];
    char prefix[64];
    char suffix[48] = "";
    int length_bytes;

    if (!journal_known) {
        journal = log_fd_is_journal(output_fd);
        journal_known = true;
    }
    if (journal) {
        (void)snprintf(prefix, sizeof(prefix), "<%d>", levels[level].priority);
    } else {
        uint64_t wall_ms = clock_wall_ms();
        time_t seconds = (time_t)(wall_ms / 1000);
        char when[32];
        struct tm local;

        (void)localtime_r(&seconds, &local);
        (void)strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &local);
        (void)snprintf(prefix, sizeof(prefix), "%s.%03u ", when, (unsigned)(wall_ms % 1000));
    }
    if (more_count > 0)
        (void)snprintf(suffix, sizeof(suffix), " (%" PRIu64 " %s)", more_count, more_of_what);
    length_bytes = snprintf(line, sizeof(line), "%s%s %s%s\n", prefix, levels[level].name, message,
                            suffix);
    dl_assert(length_bytes > 0 && (size_t)length_bytes < sizeof(line));
    /* One call, so that lines of several processes in one file stay whole. */
    if (write(output_fd, line, (size_t)length_bytes) < 0)
        return; /* nobody left to tell */
}

/* Forget a line; first say how often it came, if it did. */
static void
log_repeat_end(struct repeat *repeat)
{
    if (repeat->suppressed_count > 0)
        log_emit(repeat->level, repeat->message, repeat->suppressed_count, "times more");
    repeat->written_ns = 0;
    repeat->suppressed_count = 0;
}

/* The interval of a kind is over; say how many lines it lost, if it did. */
static void
log_kind_end(struct kind *kind)
{
    if (kind->line_count > LOG_KIND_LIMIT)
        log_emit(kind->level, kind->message, kind->line_count - LOG_KIND_LIMIT,
                 "lines like this left out");
    kind->since_ns = 0;
    kind->line_count = 0;
}

static void
log_repeats_expire(uint64_t now_ns)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        if (kinds[i].since_ns != 0 && now_ns - kinds[i].since_ns >= LOG_REPEAT_INTERVAL_NS)
            log_kind_end(&kinds[i]);
    }
    for (unsigned i = 0; i < REPEAT_COUNT; i++) {
        struct repeat *repeat = &repeats[i];

        if (repeat->written_ns != 0 && now_ns - repeat->written_ns >= LOG_REPEAT_INTERVAL_NS)
            log_repeat_end(repeat);
    }
}

static struct repeat *
log_repeat_find(enum log_level level, const char *message)
{
    for (unsigned i = 0; i < REPEAT_COUNT; i++) {
        if (repeats[i].written_ns != 0 && repeats[i].level == level &&
            strcmp(repeats[i].message, message) == 0)
            return &repeats[i];
    }
    return NULL;
}

/* The place of the line that was written longest ago. */
static struct repeat *
log_repeat_oldest(void)
{
    struct repeat *oldest = &repeats[0];

    for (unsigned i = 1; i < REPEAT_COUNT; i++) {
        if (repeats[i].written_ns < oldest->written_ns)
            oldest = &repeats[i];
    }
    return oldest;
}

/* The kind of a line; the one whose interval is oldest makes room for a new one. */
static struct kind *
log_kind_of(const char *component, const char *format, uint64_t now_ns)
{
    struct kind *oldest = &kinds[0];

    for (unsigned i = 0; i < KIND_COUNT; i++) {
        if (kinds[i].since_ns != 0 && kinds[i].format == format && kinds[i].component == component)
            return &kinds[i];
        if (kinds[i].since_ns < oldest->since_ns)
            oldest = &kinds[i];
    }
    log_kind_end(oldest);
    oldest->component = component;
    oldest->format = format;
    oldest->since_ns = now_ns;
    return oldest;
}

static void
log_message(enum log_level level, const char *component, const char *format, const char *message,
            uint64_t now_ns)
{
    struct repeat *repeat;
    struct kind *kind;

    log_repeats_expire(now_ns);
    repeat = log_repeat_find(level, message);
    if (repeat != NULL) {
        repeat->suppressed_count++;
        return;
    }
    kind = log_kind_of(component, format, now_ns);
    if (++kind->line_count > LOG_KIND_LIMIT) {
        kind->level = level;
        (void)snprintf(kind->message, sizeof(kind->message), "%s", message);
        return;
    }
    repeat = log_repeat_oldest();
    log_repeat_end(repeat);
    repeat->written_ns = now_ns;
    repeat->level = level;
    (void)snprintf(repeat->message, sizeof(repeat->message), "%s", message);
    log_emit(level, message, 0, NULL);
}

void
log_write(enum log_level level, const char *component, const char *object, const char *format, ...)
{
    char message[MESSAGE_BYTES];
    va_list arguments;
    size_t used_bytes;

    if (level < log_get_level())
        return;
    (void)snprintf(message, sizeof(message), "%s%s%s: ", component, object == NULL ? "" : " ",
                   object == NULL ? "" : object);
    used_bytes = strlen(message);
    va_start(arguments, format);
    (void)vsnprintf(message + used_bytes, sizeof(message) - used_bytes, format, arguments);
    va_end(arguments);
    log_clean(message);

    (void)pthread_mutex_lock(&lock);
    log_message(level, component, format, message, clock_monotonic_ns());
    (void)pthread_mutex_unlock(&lock);
}

void
log_flush_repeats(uint64_t now_ns)
{
    (void)pthread_mutex_lock(&lock);
    log_repeats_expire(now_ns);
    (void)pthread_mutex_unlock(&lock);
}
