/* SPDX-License-Identifier: Apache-2.0 */
/*
 *   attach:    OPENING --------------> STARTING --------> SERVING
 *   recover:   CLAIMING --> OPENING ------^
 *
 *   CLAIMING   suspends: until the kernel agrees that the old server is gone.  After that no write
 *              of it is on its way to the kernel, and the volume can be taken from it.  Meanwhile
 *              the metadata service is connected to
 *   OPENING    suspends: the volume is attached, with a takeover where there is something to settle
 *   STARTING   suspends: all tags are with the kernel; START_DEV or END_USER_RECOVERY runs, which
 *              reads from the device already
 *   SERVING    until one of
 *                the device is stopped (dlblk detach)      all tags come back   --> CLOSING
 *                SIGTERM, nobody uses the device           STOPPING, then as above
 *                SIGTERM, somebody uses it                 HOLDING: requests stay with the kernel
 *                                                          for another server   --> CLOSING
 *   STOPPING   suspends: STOP_DEV
 *   CLOSING    suspends: the volume is detached, connections are closed; then the loop ends
 *
 * What fails goes to CLOSING as well; behind the loop's end everything is undone that was done: a
 * device of our own is deleted, one that was to be taken over is left to the next try.
 */
#include "ublk/target.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/daemon.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/sm.h"
#include "common/text.h"
#include "ublk/attachment.h"
#include "ublk/control_job.h"
#include "ublk/device.h"
#include "ublk/queue.h"
#include "ublk/remove.h"
#include "ublk/supervise.h"

#define LOOP_ENTRIES     1024u
#define NOFILE_NEEDED    1024u
#define STOP_TIMEOUT_MS  90000u
#define NODE_TIMEOUT_MS  30000u
#define REPEATS_EVERY_NS NS_PER_S
#define CLAIM_RETRY_NS   (20 * NS_PER_MS)
/* Linux 6.1 looks every 5 s whether servers live. */
#define CLAIM_TIMEOUT_NS (30 * NS_PER_S)
#define REVIVE_AFTER_NS  NS_PER_S
#define UNDO_TIMEOUT_NS  (60 * NS_PER_S)

enum target_state {
    TARGET_BEGIN,
    TARGET_CLAIMING,
    TARGET_OPENING,
    TARGET_STARTING,
    TARGET_SERVING,
    TARGET_STOPPING,
    TARGET_HOLDING,
    TARGET_CLOSING,
};

static const struct sm_state target_states[] = {
    [TARGET_BEGIN] = {"BEGIN",
                      SM_EDGE(TARGET_CLAIMING) | SM_EDGE(TARGET_OPENING) | SM_EDGE(TARGET_CLOSING)},
    [TARGET_CLAIMING] = {"CLAIMING", SM_EDGE(TARGET_OPENING) | SM_EDGE(TARGET_CLOSING)},
    [TARGET_OPENING] = {"OPENING", SM_EDGE(TARGET_STARTING) | SM_EDGE(TARGET_CLOSING)},
    [TARGET_STARTING] = {"STARTING", SM_EDGE(TARGET_SERVING) | SM_EDGE(TARGET_CLOSING)},
    [TARGET_SERVING] = {"SERVING", SM_EDGE(TARGET_STOPPING) | SM_EDGE(TARGET_HOLDING) |
                                       SM_EDGE(TARGET_CLOSING)},
    [TARGET_STOPPING] = {"STOPPING", SM_EDGE(TARGET_CLOSING)},
    [TARGET_HOLDING] = {"HOLDING", SM_EDGE(TARGET_CLOSING)},
    [TARGET_CLOSING] = {"CLOSING", SM_FINAL},
};
static const struct sm_table target_table = SM_TABLE("ublk target", target_states);

struct target {
    struct sm sm;
    const struct target_options *options;
    struct loop *loop;
    struct daemon *daemon;
    struct ublk_control *control;
    struct attachment *attachment; /* NULL: a null device */
    bool open;                     /* the volume is attached */
    struct ublk_queues *queues;
    struct ublk_device_info info;
    bool added;       /* the device is ours, and has to be deleted at the end */
    bool keep;        /* ... unless it is left for another server */
    bool queues_gone; /* the device was stopped */
    struct ublk_shape shape;
    struct ublk_state state;
    struct ublk_counters *counters;
    struct control_job job;
    struct env_timer timer; /* BEGIN, CLAIMING */
    struct env_timer repeats;
    uint64_t claim_end_ns;
    bool revived; /* CLAIMING: tried */
    /* When it began, when the kernel's device and the volume were there. */
    uint64_t begin_ns, claimed_ns, opened_ns;
    char name[48];
    struct dl_error error; /* code 0: nothing has failed */
};

static void target_close(struct target *target);

static void
target_fail(struct target *target, const struct dl_error *error)
{
    if (target->error.code == 0)
        target->error = *error;
    if (target->sm.state != TARGET_CLOSING)
        target_close(target);
}

/* --- the end --- */

static void
target_end_loop(void *context)
{
    struct target *target = context;

    loop_stop(target->loop);
}

static void
target_stop_attachment(struct target *target)
{
    if (target->attachment == NULL)
        target_end_loop(target);
    else
        attachment_stop(target->attachment, target_end_loop, target);
}

static void
target_on_closed(void *context, int err, const struct dl_error *error)
{
    struct target *target = context;

    target->open = false;
    if (err != 0)
        log_warning("ublk", target->name, "the volume was not detached cleanly: %s", error->text);
    target_stop_attachment(target);
}

static void
target_close(struct target *target)
{
    sm_move(&target->sm, TARGET_CLOSING);
    loop_timer_stop(target->loop, &target->timer);
    if (target->job.busy)
        ublk_control_cancel(target->control);
    if (target->open)
        attachment_close(target->attachment, target_on_closed, target);
    else
        target_stop_attachment(target);
}

/* --- stopping --- */

static void
target_on_gone(void *context, int err)
{
    struct target *target = context;
    struct dl_error error = {0};

    target->queues_gone = err == 0;
    if (err != 0) {
        (void)dl_error_set(&error, err, "%s: its queues can't be served any more: %s", target->name,
                           strerror(-err));
        target_fail(target, &error);
        return;
    }
    if (target->sm.state == TARGET_SERVING) {
        log_info("ublk", target->name, "stopped");
        target_close(target);
    } else if (target->sm.state == TARGET_STARTING) {
        (void)dl_error_set(&error, -ENODEV, "%s was stopped while it started", target->name);
        target_fail(target, &error);
    } else if (target->sm.state == TARGET_STOPPING && !target->job.busy) {
        target_close(target);
    }
}

static int
target_run_stop(struct control_job *job, struct dl_error *err)
{
    const struct target *target = job->context;

    return ublk_control_stop(job->control, target->info.dev_id, err);
}

static void
target_on_stopped(struct control_job *job)
{
    struct target *target = job->context;

    if (job->err != 0)
        log_error("ublk", target->name, "%s", job->error.text);
    if (target->sm.state == TARGET_STOPPING && (target->queues_gone || job->err != 0))
        target_close(target);
}

static void
target_hold(struct target *target, const struct dl_error *why)
{
    sm_move(&target->sm, TARGET_HOLDING);
    log_warning("ublk", target->name,
                "%s: the device stays, and its requests wait for another server "
                "(dlblk-ublk recover)",
                why->text);
    target->keep = true;
    ublk_queues_hold(target->queues);
    target_close(target);
}

static void
target_on_signal(void *context, int signal)
{
    struct target *target = context;
    struct dl_error err = {0};

    daemon_stopping(target->daemon, STOP_TIMEOUT_MS);
    switch ((enum target_state)target->sm.state) {
    case TARGET_SERVING:
        if (device_check_unused(target->info.dev_id, &err) != 0) {
            target_hold(target, &err);
            return;
        }
        sm_move(&target->sm, TARGET_STOPPING);
        target->job.run = target_run_stop;
        target->job.on_done = target_on_stopped;
        control_job_start(target->loop, &target->job);
        return;
    case TARGET_BEGIN:
    case TARGET_CLAIMING:
    case TARGET_STARTING:
        (void)dl_error_set(&err, -EINTR, "%s: ended by signal %d before it could be used",
                           target->name, signal);
        target_fail(target, &err);
        return;
    case TARGET_OPENING:
        /* The attach is on its way; who attaches next takes over from it. */
        log_warning("ublk", target->name, "signal %d before the volume was attached", signal);
        if (target->attachment != NULL)
            _exit(EXIT_FAILURE);
        return;
    default:
        return;
    }
}

/* --- starting --- */

static void
target_submit_null(struct dlblk_request *request)
{
    /* Reads are what the buffer held before: zeroes, since nothing else is ever put there. */
    if (request->op == DLBLK_READ)
        memset(request->iov_one.iov_base, 0, request->iov_one.iov_len);
    request->on_done(request, 0);
}

static void
target_submit(void *context, struct dlblk_request *request)
{
    struct target *target = context;

    if (target->attachment == NULL)
        target_submit_null(request);
    else if (target->open)
        attachment_submit(target->attachment, request);
    else
        request->on_done(request, -DL_E_CANCELLED);
}

static int
target_run_start(struct control_job *job, struct dl_error *err)
{
    const struct target *target = job->context;
    uint32_t id = target->info.dev_id;
    int result;

    if (target->options->recover != NULL)
        result = ublk_control_end_recovery(job->control, id, (int)getpid(), err);
    else
        result = ublk_control_start(job->control, id, (int)getpid(), err);
    if (result != 0)
        return result;
    device_tune(id, target->state.queue_depth);
    return device_wait(id, target->shape.size_bytes, NODE_TIMEOUT_MS, err);
}

/* What users waited for. */
static void
target_say_takeover(const struct target *target)
{
    if (target->options->recover == NULL)
        return;
    log_info("ublk", target->name,
             "takeover: the kernel gave the device after %u ms, the volume was attached after %u "
             "ms, all was done after %u ms",
             (unsigned)((target->claimed_ns - target->begin_ns) / NS_PER_MS),
             (unsigned)((target->opened_ns - target->begin_ns) / NS_PER_MS),
             (unsigned)((loop_clock_ns() - target->begin_ns) / NS_PER_MS));
}

static void
target_on_started(struct control_job *job)
{
    struct target *target = job->context;
    struct device_name node = device_node(target->info.dev_id);

    if (target->sm.state != TARGET_STARTING)
        return;
    if (job->err != 0) {
        target_fail(target, &job->error);
        return;
    }
    sm_move(&target->sm, TARGET_SERVING);
    daemon_ready(target->daemon, node.text);
    /* First of all: it may be what gives the log its place. */
    if (target->options->on_ready != NULL)
        target->options->on_ready(target->options->context, node.text);
    log_info("ublk", target->name, "%s %s: %s, %u queues, depth %u%s",
             target->options->recover != NULL ? "taken over as" : "attached as", node.text,
             text_of_size(target->shape.size_bytes).text, target->info.queue_count,
             target->state.queue_depth, target->shape.read_only ? ", read-only" : "");
    target_say_takeover(target);
}

static int
target_make_queues(struct target *target, struct dl_error *err)
{
    struct ublk_queues_options options = {
        .id = target->info.dev_id,
        .queue_count = target->info.queue_count,
        .queue_depth = target->info.queue_depth,
        .shape = target->shape,
        .encoded = ublk_control_is_encoded(target->control),
        .submit = target_submit,
        .on_gone = target_on_gone,
        .context = target,
    };
    int result = ublk_counters_map(target->info.dev_id, &target->counters, err);

    if (result == 0) {
        options.counters = target->counters;
        ublk_counter_set(&target->counters->in_flight, 0);
        result = ublk_queues_create(&target->queues, target->loop, &options, err);
    }
    return result;
}

static void
target_fill_state(struct target *target)
{
    struct ublk_state *state = &target->state;

    if (target->options->recover == NULL) {
        *state = (struct ublk_state){
            .volume_id = state->volume_id,
            .size_bytes = target->shape.size_bytes,
            .logical_bytes = target->shape.logical_bytes,
            .queue_count = target->info.queue_count,
            .queue_depth = target->info.queue_depth - 1u,
            .started_ms = clock_wall_ms(),
            .read_only = target->shape.read_only,
            .volatile_cache = target->shape.volatile_cache,
            .null = target->attachment == NULL,
        };
        (void)snprintf(state->volume, sizeof(state->volume), "%s", target->options->volume);
        (void)snprintf(state->meta, sizeof(state->meta), "%s",
                       target->options->meta != NULL ? target->options->meta : "");
        (void)snprintf(state->config, sizeof(state->config), "%s",
                       target->options->config != NULL ? target->options->config : "");
    } else {
        state->takeovers++;
    }
    state->id = target->info.dev_id;
    state->pid = (int32_t)getpid();
    state->lease_epoch = target->attachment != NULL ? attachment_lease_epoch(target->attachment)
                                                    : 0;
}

static int
target_add(struct target *target, struct dl_error *err)
{
    struct ublk_params params;
    int result;

    target->info = (struct ublk_device_info){
        .queue_count = (uint16_t)target->options->queues,
        .queue_depth = (uint16_t)(target->options->depth + 1),
        .buffer_bytes_max = target->shape.buffer_bytes,
        .dev_id = target->options->id,
        .flags = UBLK_F_COMP_IN_TASK | UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE |
                 (ublk_control_is_encoded(target->control) ? UBLK_F_CMD_IOCTL_ENCODE : 0),
        .server_flags = UBLK_SERVER_IS_DLBLK | ((uint64_t)getpid() & UBLK_SERVER_PID_MASK),
    };
    result = ublk_control_add(target->control, &target->info, err);
    if (result != 0)
        return result;
    target->added = true;
    /* What the kernel doesn't know it leaves out without a word. */
    if ((target->info.flags & UBLK_F_USER_RECOVERY_REISSUE) == 0) {
        (void)dl_error_set(err, -ENOTSUP, "this kernel's ublk can't recover from a server's death");
        dl_error_hint(err, "Linux 6.1 or later is needed");
        return -ENOTSUP;
    }
    target->shape.buffer_bytes = target->info.buffer_bytes_max;
    ublk_shape_params(&target->shape, &params);
    return ublk_control_set_params(target->control, target->info.dev_id, &params, err);
}

/* The volume is here: now the device. */
static void
target_start(struct target *target)
{
    struct dl_error err = {0};
    int result = ublk_shape_check(&target->shape);

    target->opened_ns = loop_clock_ns();
    if (result != 0)
        (void)dl_error_set(&err, -DL_E_SIZE_INVALID,
                           "a device of %lu bytes in blocks of %u can't be",
                           (unsigned long)target->shape.size_bytes, target->shape.logical_bytes);
    if (result == 0 && target->options->recover == NULL)
        result = target_add(target, &err);
    if (result == 0) {
        (void)snprintf(target->name, sizeof(target->name), "%s",
                       device_node(target->info.dev_id).text);
        target_fill_state(target);
        result = ublk_state_save(&target->state, &err);
    }
    if (result == 0)
        result = target_make_queues(target, &err);
    if (result != 0) {
        target_fail(target, &err);
        return;
    }
    sm_move(&target->sm, TARGET_STARTING);
    ublk_queues_start(target->queues);
    target->job.run = target_run_start;
    target->job.on_done = target_on_started;
    control_job_start(target->loop, &target->job);
}

/* --- the volume --- */

static void
target_shape_of_volume(struct target *target)
{
    struct dlblk_volume_geometry geometry;

    attachment_get_geometry(target->attachment, &geometry);
    target->state.volume_id = geometry.id;
    target->shape = (struct ublk_shape){
        .size_bytes = geometry.size_bytes,
        .logical_bytes = geometry.logical_block_bytes,
        .physical_bytes = geometry.atomic_bytes,
        .optimal_bytes = geometry.optimal_io_bytes,
        .read_only = geometry.read_only,
        .volatile_cache = target->options->volatile_cache,
        .buffer_bytes = TARGET_BUFFER_BYTES,
    };
}

static void
target_on_open(void *context, int err, const struct dl_error *error)
{
    struct target *target = context;
    const struct ublk_state *recover = target->options->recover;
    struct dl_error mismatch = {0};

    if (err != 0) {
        target_fail(target, error);
        return;
    }
    target->open = true;
    target_shape_of_volume(target);
    if (recover != NULL) {
        if (target->state.volume_id != recover->volume_id ||
            target->shape.size_bytes < recover->size_bytes) {
            (void)dl_error_set(&mismatch, -DL_E_VOLUME_UNKNOWN,
                               "volume %s is another one than the device was attached to",
                               recover->volume);
            target_fail(target, &mismatch);
            return;
        }
        target->shape.size_bytes = recover->size_bytes;
        target->shape.volatile_cache = recover->volatile_cache;
        target->shape.buffer_bytes = target->info.buffer_bytes_max;
    }
    target_start(target);
}

static void
target_open(struct target *target)
{
    const struct ublk_state *recover = target->options->recover;

    sm_move(&target->sm, TARGET_OPENING);
    if (target->attachment != NULL) {
        attachment_open(target->attachment, target_on_open, target);
        return;
    }
    target->shape = (struct ublk_shape){
        .size_bytes = recover != NULL ? recover->size_bytes : target->options->null_bytes,
        .logical_bytes = recover != NULL ? recover->logical_bytes
                                         : target->options->null_logical_bytes,
        .physical_bytes = 4096,
        .optimal_bytes = TARGET_BUFFER_BYTES,
        .buffer_bytes = recover != NULL ? target->info.buffer_bytes_max : TARGET_BUFFER_BYTES,
        .read_only = recover != NULL ? recover->read_only : target->options->read_only,
        .volatile_cache = recover != NULL ? recover->volatile_cache
                                          : target->options->volatile_cache,
    };
    target_start(target);
}

/* --- a device whose server is dead --- */

static int
target_run_revive(struct control_job *job, struct dl_error *err)
{
    const struct target *target = job->context;

    return ublk_control_end_recovery(job->control, target->options->recover->id, (int)getpid(),
                                     err);
}

static void
target_on_revived(struct control_job *job)
{
    const struct target *target = job->context;

    log_info("ublk", target->name, "an earlier takeover died half way: %s",
             job->err == 0 ? "it is finished, so that the kernel sees that its server is dead"
                           : job->error.text);
}

/*
 * Linux 6.1 looks for dead servers only while a device is live.  One whose next server died between
 * its FETCHes and its END_USER_RECOVERY is not, keeps those FETCHes, and says EBUSY for ever.  So
 * the dead one's takeover is finished in its place; then the kernel looks, within 5 s.
 */
static bool
target_is_half_taken(const struct target *target)
{
    struct ublk_state now;

    if (target->revived || ublk_control_is_encoded(target->control) ||
        target->info.state != UBLK_STATE_QUIESCED ||
        loop_clock_ns() < target->claim_end_ns - CLAIM_TIMEOUT_NS + REVIVE_AFTER_NS)
        return false;
    return ublk_state_load(target->options->recover->id, &now, NULL) == 0 &&
           !supervise_is_serving(now.pid);
}

static void
target_revive(struct target *target)
{
    target->revived = true;
    target->job.run = target_run_revive;
    target->job.on_done = target_on_revived;
    control_job_start(target->loop, &target->job);
}

static int
target_start_recovery(struct target *target, struct dl_error *err)
{
    uint32_t id = target->options->recover->id;
    int result;

    if (target->job.busy) /* it has the control */
        return dl_error_set(err, -EBUSY, "ublk device %u: an earlier takeover does not end", id);
    result = ublk_control_info(target->control, id, &target->info, err);
    if (result == 0 && !ublk_info_is_dlblk(&target->info))
        result = dl_error_set(err, -EPERM, "ublk device %u is not dlblk's", id);
    if (result != 0)
        return result;
    result = ublk_control_start_recovery(target->control, id, err);
    /* An earlier try has come so far, and then died: the device waits for its tags already. */
    if (result == -EINVAL && target->info.state == UBLK_STATE_QUIESCED)
        return 0;
    if (result == -EBUSY && target_is_half_taken(target))
        target_revive(target);
    return result;
}

static void
target_claim(struct target *target)
{
    struct dl_error err = {0};
    int result = target_start_recovery(target, &err);

    if (result == -EBUSY && loop_clock_ns() < target->claim_end_ns) {
        loop_timer_start(target->loop, &target->timer, CLAIM_RETRY_NS);
        return;
    }
    if (result == -EBUSY)
        dl_error_hint(&err, "its server, process %d, still has it", target->info.server_pid);
    if (result != 0) {
        target_fail(target, &err);
        return;
    }
    target->claimed_ns = loop_clock_ns();
    target_open(target);
}

static void
target_on_timer(struct env_timer *timer)
{
    struct target *target = list_entry(timer, struct target, timer);

    if (target->sm.state == TARGET_BEGIN && target->options->recover != NULL)
        sm_move(&target->sm, TARGET_CLAIMING);
    if (target->sm.state == TARGET_CLAIMING)
        target_claim(target);
    else
        target_open(target);
}

/* --- life --- */

static void
target_on_repeats(struct env_timer *timer)
{
    struct target *target = list_entry(timer, struct target, repeats);

    log_flush_repeats(clock_monotonic_ns());
    loop_timer_start(target->loop, timer, REPEATS_EVERY_NS);
}

/* If we die before we can note our own lease, the next server knows us by our pid. */
static int
target_on_inherit(void *context, uint32_t lease_epoch, struct dl_error *err)
{
    struct target *target = context;

    target->state.lease_epoch = lease_epoch;
    target->state.pid = (int32_t)getpid();
    return ublk_state_save(&target->state, err);
}

static int
target_create_attachment(struct target *target, struct dl_error *err)
{
    const struct target_options *options = target->options;
    const struct ublk_state *recover = options->recover;
    struct attachment_options attachment = {
        .volume = options->volume,
        .meta = options->meta,
        .config = options->config,
        .connect_timeout = options->connect_timeout,
        .read_only = options->read_only,
        .steal = options->steal,
    };

    if (recover != NULL) {
        attachment.volume = recover->volume;
        attachment.meta = recover->meta[0] != '\0' ? recover->meta : NULL;
        attachment.config = recover->config[0] != '\0' ? recover->config : NULL;
        attachment.read_only = recover->read_only;
        attachment.inherit_lease_epoch = recover->lease_epoch;
        attachment.inherit_pid = recover->pid;
        attachment.on_inherit = target_on_inherit;
        attachment.context = target;
    }
    if (recover != NULL ? recover->null : options->null_bytes != 0)
        return 0;
    return attachment_create(&target->attachment, target->loop, &attachment, err);
}

static int
target_init(struct target *target, struct dl_error *err)
{
    struct loop_options loop_options = {.entries = LOOP_ENTRIES};
    int result;

    sm_init(&target->sm, &target_table, TARGET_BEGIN, 0);
    target->timer.fn = target_on_timer;
    target->repeats.fn = target_on_repeats;
    target->job.context = target;
    (void)snprintf(target->name, sizeof(target->name), "%.40s",
                   target->options->recover != NULL ? target->options->recover->volume
                                                    : target->options->volume);
    result = limits_raise_nofile(NOFILE_NEEDED, err);
    if (result == 0)
        result = ublk_control_open(&target->control, err);
    if (result == 0)
        result = loop_create(&target->loop, &loop_options, err);
    if (result == 0)
        result = daemon_create(&target->daemon, target->loop, target_on_signal, target, err);
    if (result == 0)
        result = target_create_attachment(target, err);
    target->job.control = target->control;
    return result;
}

/* A control whose command was cancelled says no to all others: a new one. */
static void
target_renew_control(struct target *target)
{
    ublk_control_close(target->control);
    target->control = NULL;
    (void)ublk_control_open(&target->control, NULL);
    target->job.control = target->control;
}

static void
target_on_undone(struct control_job *job)
{
    struct target *target = job->context;

    if (job->err != 0)
        log_error("ublk", target->name, "%s", job->error.text);
}

/* What was started has to be stopped: the tags come back, and requests meanwhile get an error. */
static void
target_undo_start(struct target *target)
{
    uint64_t end_ns = loop_clock_ns() + UNDO_TIMEOUT_NS;

    target->job.run = target_run_stop;
    target->job.on_done = target_on_undone;
    control_job_start(target->loop, &target->job);
    while ((target->job.busy || !ublk_queues_are_gone(target->queues)) &&
           loop_clock_ns() < end_ns && loop_turn(target->loop, NS_PER_MS) == 0)
        ;
}

/* Nobody has the device's file open any more, nor a ring with its commands. */
static void
target_undo_add(struct target *target)
{
    struct dl_error err = {0};
    int result = ublk_remove(target->control, target->info.dev_id, &err);

    if (result == -EBUSY)
        log_warning("ublk", target->name, "%s", err.text);
    else if (result != 0)
        log_error("ublk", target->name, "%s", err.text);
    ublk_state_remove(target->info.dev_id);
}

static void
target_fini(struct target *target)
{
    /* One of our own that is not left for another server, and any that was stopped. */
    bool undo = (target->added && !target->keep) || target->queues_gone;

    while (target->job.busy && loop_turn(target->loop, NS_PER_MS) == 0)
        ;
    target_renew_control(target);
    if (undo && target->queues != NULL && !ublk_queues_are_gone(target->queues) &&
        target->control != NULL)
        target_undo_start(target);
    ublk_queues_destroy(target->queues);
    attachment_destroy(target->attachment);
    daemon_destroy(target->daemon);
    loop_destroy(target->loop);
    if (undo && target->control != NULL)
        target_undo_add(target);
    ublk_counters_unmap(target->counters);
    ublk_control_close(target->control);
    log_flush_repeats(UINT64_MAX);
}

int
target_run(const struct target_options *options, struct dl_error *err)
{
    struct target target = {.options = options};
    int result;

    target.begin_ns = clock_monotonic_ns();
    /* Memory that we want must not be waited for from the device that we serve. */
    (void)prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    result = target_init(&target, err);
    if (result == 0) {
        if (options->recover != NULL)
            target.state = *options->recover;
        target.claim_end_ns = loop_clock_ns() + CLAIM_TIMEOUT_NS;
        loop_timer_start(target.loop, &target.timer, 0);
        loop_timer_start(target.loop, &target.repeats, REPEATS_EVERY_NS);
        result = loop_run(target.loop);
        if (result != 0)
            (void)dl_error_set(err, result, "the ring has failed: %s", strerror(-result));
        loop_timer_stop(target.loop, &target.repeats);
    }
    target_fini(&target);
    if (result == 0 && target.error.code != 0) {
        *err = target.error;
        result = target.error.code;
    }
    return result;
}
