/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.h: what a program tells its administrator, one line per event, on stderr.
 *
 *     log_warning("meta", "server 3", "no heartbeat for %s", text_of_duration(silence_ns).text);
 *
 *     2026-01-31 10:15:30.123 warning meta server 3: no heartbeat for 12.5 s
 *
 * Under systemd (JOURNAL_STREAM names stderr) the priority as <N> stands in place of the time.  A
 * line that was already written in the last ten seconds is counted instead, and the count is
 * written when they are over.  So are those of one component and format (pointers to literals are
 * compared) above a hundred in ten seconds: a peer can make lines that differ in its port alone.
 *
 * Only programs log: common, proto and client return errors.  A function logs a failure or returns
 * it, never both.
 *
 * Threads: any.  Errors: none: what can't be written is lost.  Memory: nothing is allocated.
 *          Blocks: as stderr does.
 */
#ifndef DLBLK_COMMON_LOG_H
#define DLBLK_COMMON_LOG_H

#include <stdint.h>

#include "dlblk/error.h"

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARNING, LOG_LEVEL_ERROR };

#define LOG_REPEAT_INTERVAL_NS 10000000000ull
#define LOG_KIND_LIMIT         100

/* What is below is not written; INFO at the beginning. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

/* "debug", "info", "warning", "error".  0 or -DL_E_USAGE. */
int log_parse_level(const char *what, const char *text, enum log_level *ret_level,
                    struct dl_error *err);

/* Where lines go, stderr at the beginning; for tests, and for programs that write a file. */
void log_set_fd(int fd);

/* object names what the line is about; NULL: the component alone. */
void log_write(enum log_level level, const char *component, const char *object, const char *format,
               ...) DL_ERROR_PRINTF(4, 5);

/*
 * Write the counts of repeated lines whose interval is over at now_ns (clock_monotonic_ns()); a
 * program calls it once per second or so.  With UINT64_MAX all of them: before the program ends.
 */
void log_flush_repeats(uint64_t now_ns);

#define log_debug(component, object, ...) log_write(LOG_LEVEL_DEBUG, component, object, __VA_ARGS__)
#define log_info(component, object, ...)  log_write(LOG_LEVEL_INFO, component, object, __VA_ARGS__)
#define log_warning(component, object, ...) \
    log_write(LOG_LEVEL_WARNING, component, object, __VA_ARGS__)
#define log_error(component, object, ...) log_write(LOG_LEVEL_ERROR, component, object, __VA_ARGS__)

#endif
