/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon.h: what a daemon's main() needs around its loop: signals, readiness, --version, a last
 * word when it aborts.
 *
 * Threads: the loop's.  daemon_init() comes first in main(), before any thread is started: it
 *          blocks the signals.
 *
 *     daemon_init("dlblk-meta", argc, argv);        // --version prints and exits
 *     loop_create(&loop, ...);
 *     daemon_create(&daemon, loop, on_signal, core, &err);
 *     ...
 *     daemon_ready(daemon, "listening on 127.0.0.1:9470");
 *     loop_run(loop);                               // on_signal starts the stop, and loop_stop()
 *     ends it daemon_destroy(daemon);
 */
#ifndef DLBLK_COMMON_DAEMON_H
#define DLBLK_COMMON_DAEMON_H

#include <stdint.h>

#include "common/loop.h"

struct daemon;
struct dl_error;

/*
 * Blocks SIGTERM and SIGINT for this and all later threads, ignores SIGPIPE, and has the last
 * events (trace.h) printed when SIGABRT, SIGSEGV, SIGBUS, SIGILL or SIGFPE kills the process.  If
 * argv[1] is --version: prints it and exits.
 */
void daemon_init(const char *program, int argc, char **argv);

/*
 * on_signal runs for the first SIGTERM or SIGINT.  A second one ends the process at once, with
 * status 1.
 */
int daemon_create(struct daemon **ret_daemon, struct loop *loop,
                  void (*on_signal)(void *context, int signal), void *context,
                  struct dl_error *err);
/*
 * Before loop_destroy(), after the loop's end: makes some turns, but tells of no more signals.
 * NULL is allowed.
 */
void daemon_destroy(struct daemon *daemon);

/* Told to systemd, if it started us (Type=notify), else nothing happens. */
void daemon_ready(struct daemon *daemon, const char *status);
void daemon_status(struct daemon *daemon, const char *status);
/*
 * Says STOPPING, and arms a timer that ends the process with status 1 if it is still there after
 * timeout_ms.
 */
void daemon_stopping(struct daemon *daemon, uint32_t timeout_ms);

#endif
