/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/devices.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/text.h"
#include "common/vec.h"
#include "ublk/control.h"
#include "ublk/device.h"
#include "ublk/remove.h"

DL_CLEANUP_DEFINE(struct ublk_control *, ublk_control_close);

#define DETACH_TIMEOUT_NS (90 * NS_PER_S)
#define POLL_NS           5000000
#define RELEASE_NS        500000000 /* for a ring of a dead process to be gone */

static enum device_condition
condition_of(struct ublk_control *control, const struct ublk_state *state)
{
    struct ublk_device_info info = {0};
    int result = ublk_control_info(control, state->id, &info, NULL);

    if (result == -ENODEV || (result == 0 && !ublk_info_is_dlblk(&info)))
        return DEVICE_MISSING;
    if (supervise_is_serving(state->pid))
        return DEVICE_ATTACHED;
    if (result != 0)
        return DEVICE_WAITING; /* what we can't ask about is not thrown away */
    /* Until the kernel has looked it takes a device for alive whose server is dead. */
    return info.state == UBLK_STATE_DEAD ? DEVICE_STOPPED : DEVICE_WAITING;
}

static const char *
condition_name(enum device_condition condition)
{
    static const char *const names[] = {"attached", "waiting", "stopped", "missing"};

    return names[condition];
}

/*
 * STOP first, of what runs no more: it gives the commands back that a dead process had with the
 * driver.  Linux 6.1 does not do that when the process ends, and a DEL that meets them waits for
 * them and for its own lock, for ever.
 */
static void
remove_stopped(struct ublk_control *control, uint32_t id)
{
    struct timespec pause = {.tv_nsec = RELEASE_NS};

    (void)ublk_control_stop(control, id, NULL);
    if (!ublk_control_is_encoded(control))
        (void)nanosleep(&pause, NULL);
    (void)ublk_remove(control, id, NULL);
    ublk_state_remove(id);
}

static void
remove_leftover(struct ublk_control *control, const struct ublk_state *state,
                enum device_condition condition)
{
    if (condition == DEVICE_STOPPED)
        remove_stopped(control, state->id);
    ublk_state_remove(state->id);
}

/* --- leftovers --- */

/* A device that was added and never started, by a process that is no more. */
static void
remove_if_orphan(struct ublk_control *control, uint32_t id)
{
    struct ublk_device_info info;
    struct ublk_state state;

    if (ublk_control_info(control, id, &info, NULL) != 0 || !ublk_info_is_dlblk(&info) ||
        info.state != UBLK_STATE_DEAD || supervise_is_serving(ublk_info_adder_pid(&info)))
        return;
    if (ublk_state_load(id, &state, NULL) == 0 && supervise_is_serving(state.pid))
        return;
    remove_stopped(control, id);
}

static void
remove_orphans(struct ublk_control *control)
{
    DIR *directory = opendir("/sys/class/ublk-char");
    const struct dirent *entry;
    unsigned id;

    while (directory != NULL && (entry = readdir(directory)) != NULL)
        if (sscanf(entry->d_name, "ublkc%u", &id) == 1)
            remove_if_orphan(control, id);
    if (directory != NULL)
        (void)closedir(directory);
}

/* --- finding --- */

struct search {
    struct ublk_control *control;
    const char *volume;
    struct ublk_state *ret_state;
    struct dl_error *err;
};

static int
search_one(void *context, const struct ublk_state *state)
{
    const struct search *search = context;
    enum device_condition condition;

    if (strcmp(state->volume, search->volume) != 0)
        return 0;
    condition = condition_of(search->control, state);
    switch (condition) {
    case DEVICE_STOPPED:
    case DEVICE_MISSING:
        remove_leftover(search->control, state, condition);
        return 0;
    case DEVICE_ATTACHED:
        (void)dl_error_set(search->err, -DL_E_VOLUME_BUSY,
                           "volume %s is attached to this machine already: %s, by process %d",
                           state->volume, device_node(state->id).text, state->pid);
        dl_error_hint(search->err, "dlblk detach %s", state->volume);
        return -DL_E_VOLUME_BUSY;
    case DEVICE_WAITING:
        *search->ret_state = *state;
        return 1;
    }
    return 0;
}

int
devices_find_waiting(const char *volume, struct ublk_state *ret_state, struct dl_error *err)
{
    DL_CLEANUP(ublk_control_close) struct ublk_control *control = NULL;
    struct search search = {.volume = volume, .ret_state = ret_state, .err = err};
    int result = ublk_control_open(&control, err);

    if (result != 0)
        return result;
    search.control = control;
    remove_orphans(control);
    result = ublk_state_for_each(search_one, &search);
    return result == 1 ? 0 : result == 0 ? -ENOENT : result;
}

/* --- detaching --- */

/* Its server sees that the device is stopped, and cleans up behind itself. */
static int
wait_for_server(const struct ublk_state *state, struct dl_error *err)
{
    uint64_t end_ns = clock_monotonic_ns() + DETACH_TIMEOUT_NS;
    struct timespec pause = {.tv_nsec = POLL_NS};
    struct ublk_state now;

    while (supervise_is_serving(state->pid)) {
        if (ublk_state_load(state->id, &now, NULL) == 0 && now.pid != state->pid)
            return 0;
        if (clock_monotonic_ns() > end_ns)
            return dl_error_set(err, -DL_E_TIMEOUT,
                                "%s is stopped, but its server, process %d, does not end",
                                device_node(state->id).text, state->pid);
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

static int
detach_unknown(const char *name, struct dl_error *err)
{
    (void)dl_error_set(err, -DL_E_NOT_FOUND, "%s is not attached to this machine",
                       text_quote(name).text);
    dl_error_hint(err, "dlblk devices lists what is");
    return -DL_E_NOT_FOUND;
}

/* By force: done, as far as it is ours to do. */
static void
detach_say_busy(const struct ublk_state *state, const struct dl_error *busy)
{
    (void)fprintf(stderr, "dlblk-ublk: volume %s is detached; %s\n", state->volume, busy->text);
    if (busy->hint[0] != '\0')
        (void)fprintf(stderr, "dlblk-ublk: %s\n", busy->hint);
}

int
devices_detach(const char *name, bool force, struct dl_error *err)
{
    DL_CLEANUP(ublk_control_close) struct ublk_control *control = NULL;
    struct ublk_state state;
    enum device_condition condition;
    int result = ublk_control_open(&control, err);

    if (result != 0)
        return result;
    if (ublk_state_find(name, &state) != 0)
        return detach_unknown(name, err);
    condition = condition_of(control, &state);
    if (condition == DEVICE_MISSING || condition == DEVICE_STOPPED) {
        remove_leftover(control, &state, condition);
        return 0;
    }
    if (!force && (result = device_check_unused(state.id, err)) != 0)
        return result;
    result = ublk_control_stop(control, state.id, err);
    if (result == 0)
        result = wait_for_server(&state, err);
    if (result != 0)
        return result;
    /* A server deletes its device.  One that is dead does not. */
    if (condition_of(control, &state) != DEVICE_MISSING)
        result = ublk_remove(control, state.id, err);
    if (result == -EBUSY) {
        detach_say_busy(&state, err);
        result = 0;
    }
    if (result == 0)
        ublk_state_remove(state.id);
    return result;
}

/* --- recovering --- */

struct found {
    struct ublk_state state;
    enum device_condition condition;
};

struct collect {
    struct ublk_control *control;
    VEC(struct found) found;
};

static int
collect_one(void *context, const struct ublk_state *state)
{
    struct collect *collect = context;
    struct found found = {.state = *state, .condition = condition_of(collect->control, state)};

    return vec_push(&collect->found, found);
}

/* In a process of its own, which prints what there is to be said.  Negative: there is none. */
static pid_t
recover_start(const struct ublk_state *state, const struct supervise_options *options, bool steal)
{
    struct target_options target = {.volume = state->volume, .recover = state, .steal = steal};
    struct dl_error err = {0};
    pid_t pid;
    int result;

    (void)fflush(stdout);
    pid = fork();
    if (pid != 0)
        return pid;
    result = supervise_run(options, &target, &err);
    exit(result == 0 ? EXIT_SUCCESS : ublk_print_error(&err));
}

static bool
recover_is_named(const char *name, const struct ublk_state *state)
{
    struct device_name node = device_node(state->id);

    return name == NULL || strcmp(name, state->volume) == 0 || strcmp(name, node.text) == 0 ||
           strcmp(name, node.text + strlen("/dev/")) == 0;
}

/* The processes that were started; how many of them did not do it. */
static int
recover_wait(const pid_t *pids, size_t count)
{
    int failed = 0;

    for (size_t i = 0; i < count; i++) {
        int status = 0;

        while (waitpid(pids[i], &status, 0) < 0 && errno == EINTR)
            ;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_SUCCESS)
            failed++;
    }
    return failed;
}

/* In this process, which serves from now on. */
static int
recover_here(struct collect *collect, const struct ublk_state *state,
             const struct supervise_options *options, bool steal, struct dl_error *err)
{
    struct target_options target = {.volume = state->volume, .recover = state, .steal = steal};

    ublk_control_close(collect->control);
    collect->control = NULL;
    return supervise_run(options, &target, err);
}

/* All at the same time: one that waits for its servers does not keep the others waiting. */
static int
recover_found(struct collect *collect, const char *name, const struct supervise_options *options,
              bool steal, struct dl_error *err)
{
    VEC(pid_t) pids = {0};
    bool seen = false;
    int failed = 0;
    int result = 0;

    vec_for_each (found, &collect->found) {
        pid_t pid;

        if (!recover_is_named(name, &found->state))
            continue;
        seen = true;
        if (found->condition == DEVICE_WAITING && !options->background)
            return recover_here(collect, &found->state, options, steal, err);
        if (found->condition == DEVICE_WAITING) {
            pid = recover_start(&found->state, options, steal);
            if (pid < 0 || vec_push(&pids, pid) != 0)
                failed++;
        } else if (name != NULL && found->condition == DEVICE_ATTACHED) {
            result = dl_error_set(err, -DL_E_VOLUME_BUSY, "%s has a server that lives: process %d",
                                  device_node(found->state.id).text, found->state.pid);
        } else if (found->condition != DEVICE_ATTACHED) {
            remove_leftover(collect->control, &found->state, found->condition);
        }
    }
    failed += recover_wait(pids.items, pids.count);
    vec_fini(&pids);
    if (name != NULL && !seen)
        return detach_unknown(name, err);
    if (result == 0 && failed > 0) {
        *err = (struct dl_error){0}; /* said already */
        return -EIO;
    }
    return result;
}

int
devices_recover(const char *name, const struct supervise_options *options, bool steal,
                struct dl_error *err)
{
    struct collect collect = {0};
    int result = ublk_control_open(&collect.control, err);

    if (result != 0)
        return result;
    result = ublk_state_for_each(collect_one, &collect);
    if (result == 0)
        result = recover_found(&collect, name, options, steal, err);
    vec_fini(&collect.found);
    ublk_control_close(collect.control);
    return result;
}

/* --- listing --- */

static json_t *
device_to_json(const struct found *found)
{
    const struct ublk_state *state = &found->state;
    struct ublk_counters counters;

    ublk_counters_get(state->id, &counters);
    return json_pack(
        "{s:s, s:s, s:I, s:s, s:i, s:i, s:i, s:i, s:b, s:b, s:i, s:I, s:I,"
        " s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}}",
        "device", device_node(state->id).text, "volume", state->volume, "size_bytes",
        (json_int_t)state->size_bytes, "state", condition_name(found->condition), "pid", state->pid,
        "queues", (int)state->queue_count, "depth", (int)state->queue_depth, "in_flight",
        (int)device_in_flight(state->id), "read_only", state->read_only, "volatile_cache",
        state->volatile_cache, "lease_epoch", (int)state->lease_epoch, "takeovers",
        (json_int_t)state->takeovers, "started_ms", (json_int_t)state->started_ms, "counters",
        "reads", (json_int_t)counters.reads, "writes", (json_int_t)counters.writes, "flushes",
        (json_int_t)counters.flushes, "fuas", (json_int_t)counters.fuas, "discards",
        (json_int_t)counters.discards, "write_zeroes", (json_int_t)counters.write_zeroes, "errors",
        (json_int_t)counters.errors, "bytes_read", (json_int_t)counters.bytes_read, "bytes_written",
        (json_int_t)counters.bytes_written);
}

static void
print_table(const struct collect *collect)
{
    printf("%-14s %-10s %-9s %7s %9s  %s\n", "DEVICE", "SIZE", "STATE", "PID", "IN FLIGHT",
           "VOLUME");
    vec_for_each (found, &collect->found) {
        const struct ublk_state *state = &found->state;
        char use[24];

        (void)snprintf(use, sizeof(use), "%u/%u", device_in_flight(state->id),
                       state->queue_count * state->queue_depth);
        printf("%-14s %-10s %-9s %7d %9s  %s%s\n", device_node(state->id).text,
               text_of_size(state->size_bytes).text, condition_name(found->condition), state->pid,
               use, state->volume, state->read_only ? " (read-only)" : "");
    }
}

static int
print_json(const struct collect *collect)
{
    json_t *devices = json_array();
    json_t *all;
    int failed;

    vec_for_each (found, &collect->found)
        (void)json_array_append_new(devices, device_to_json(found));
    all = json_pack("{s:o}", "devices", devices);
    failed = all == NULL || json_dumpf(all, stdout, JSON_INDENT(2));
    json_decref(all);
    (void)putchar('\n');
    return failed ? -EIO : 0;
}

int
devices_list(bool json, struct dl_error *err)
{
    struct collect collect = {0};
    int result = ublk_control_open(&collect.control, err);

    /* Where there is no ublk there are no devices, and that is all there is to say. */
    if (result == -ENODEV)
        result = 0;
    else if (result == 0)
        result = ublk_state_for_each(collect_one, &collect);
    if (result == 0 && json)
        result = print_json(&collect);
    else if (result == 0)
        print_table(&collect);
    vec_fini(&collect.found);
    ublk_control_close(collect.control);
    return result;
}
