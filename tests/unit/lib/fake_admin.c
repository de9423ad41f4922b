/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lib/fake_admin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define STEPS_MAX 64u

struct log_step {
    int err; /* 0: an entry */
    struct dlblk_log_entry entry;
};

static struct {
    struct fake_admin_change change;
    struct dlblk_volume_status status;
    struct log_step steps[STEPS_MAX];
    uint32_t step_count, ready_count, answer_max;
    uint64_t entry_count;
    bool waiting, lost;
    struct dlblk_scrub scrubs[STEPS_MAX];
    uint32_t scrub_count, scrub_asked, scrub_ids;
    uint8_t scrub_id[16];
} fake;

void
fake_admin_reset(void)
{
    memset(&fake, 0, sizeof(fake));
    fake.answer_max = STEPS_MAX;
    (void)snprintf(fake.status.state, sizeof(fake.status.state), "healthy");
}

const struct fake_admin_change *
fake_admin_last_change(void)
{
    return &fake.change;
}

void
fake_admin_set_volume_status(const struct dlblk_volume_status *status)
{
    fake.status = *status;
}

/* --- changes of servers --- */

static int
server_by_id(struct dlblk_client *client, uint32_t id, struct dlblk_server_info *ret_info,
             struct dl_error *err)
{
    struct dlblk_server_info *infos = NULL;
    size_t count = 0;
    int result = dlblk_server_list(client, &infos, &count, err);

    if (result == 0 && (id == 0 || id > count))
        result = dl_error_set(err, -DL_E_SERVER_UNKNOWN, "server %u does not exist", id);
    if (result == 0)
        *ret_info = infos[id - 1];
    free(infos);
    return result;
}

static void
change_fill(struct dlblk_server_change *change, const struct dlblk_server_info *server,
            const char *what)
{
    *change = (struct dlblk_server_change){
        .server = *server, .slots = 16, .bytes = 1ull << 30, .effect_count = 1};
    change->effects = calloc(1, sizeof(*change->effects));
    dl_assert(change->effects != NULL);
    (void)snprintf(change->effects[0], sizeof(change->effects[0]), "server %u: %s: 16 chunks",
                   server->id, what);
}

static int
change_server(struct dlblk_client *client, const struct fake_admin_change *change,
              struct dlblk_server_change *ret_change, struct dl_error *err)
{
    struct dlblk_server_info server;
    int result = server_by_id(client, change->server_id, &server, err);

    if (result != 0)
        return result;
    fake.change = *change;
    change_fill(ret_change, &server, change->what);
    return 0;
}

int
dlblk_server_drain(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                   struct dlblk_server_change *ret_change, struct dl_error *err)
{
    struct fake_admin_change change = {"drain", .server_id = server_id, .dry_run = dry_run};

    if (server_id == 1) {
        (void)dl_error_set(err, -DL_E_TOO_FEW_DOMAINS, "server 1 can not be drained");
        dl_error_hint(err, "add a chunkserver first");
        return -DL_E_TOO_FEW_DOMAINS;
    }
    return change_server(client, &change, ret_change, err);
}

int
dlblk_server_undrain(struct dlblk_client *client, uint32_t server_id, bool dry_run,
                     struct dlblk_server_change *ret_change, struct dl_error *err)
{
    struct fake_admin_change change = {"undrain", .server_id = server_id, .dry_run = dry_run};

    return change_server(client, &change, ret_change, err);
}

int
dlblk_server_remove(struct dlblk_client *client, uint32_t server_id, bool force, bool dry_run,
                    struct dlblk_server_change *ret_change, struct dl_error *err)
{
    struct fake_admin_change change = {"remove", .server_id = server_id, .dry_run = dry_run,
                                       .force = force};
    int result;

    if (server_id == 1 || server_id == 2)
        return dl_error_set(err, -DL_E_BUSY, "server %u is up", server_id);
    if (server_id == 3 && !force)
        return dl_error_set(err, -DL_E_BUSY, "4 segments are left with fewer than min_write");
    result = change_server(client, &change, ret_change, err);
    if (result == 0)
        ret_change->below_min_write = 4;
    return result;
}

static bool
label_keep(char label[32], const char *given)
{
    if (given != NULL)
        (void)snprintf(label, 32, "%s", given);
    return given != NULL;
}

int
dlblk_server_set(struct dlblk_client *client, uint32_t server_id,
                 const struct dlblk_server_labels *labels, bool dry_run,
                 struct dlblk_server_change *ret_change, struct dl_error *err)
{
    struct fake_admin_change change = {"set", .server_id = server_id, .dry_run = dry_run};

    change.host_set = label_keep(change.host, labels->host);
    change.rack_set = label_keep(change.rack, labels->rack);
    change.clique_set = label_keep(change.clique, labels->clique);
    change.weight_percent = labels->weight_percent;
    return change_server(client, &change, ret_change, err);
}

void
dlblk_server_change_fini(struct dlblk_server_change *change)
{
    free(change->effects);
    change->effects = NULL;
}

/* --- states, places --- */

int
dlblk_volume_status(struct dlblk_client *client, const char *name,
                    struct dlblk_volume_status *ret_status, struct dl_error *err)
{
    struct dlblk_volume_info info;
    int result = dlblk_volume_info(client, name, &info, err);

    if (result != 0)
        return result;
    *ret_status = fake.status;
    ret_status->info = info;
    if (fake.status.problem_count == 0)
        return 0;
    ret_status->problems = calloc(fake.status.problem_count, sizeof(*ret_status->problems));
    dl_assert(ret_status->problems != NULL);
    memcpy(ret_status->problems, fake.status.problems,
           fake.status.problem_count * sizeof(*ret_status->problems));
    return 0;
}

void
dlblk_volume_status_fini(struct dlblk_volume_status *status)
{
    free(status->problems);
    status->problems = NULL;
}

/* Segment 0 is allocated; its second copy is being made, and a third one moves. */
int
dlblk_segment_locate(struct dlblk_client *client, const char *name, uint64_t offset_bytes,
                     struct dlblk_segment_location *ret_location, struct dl_error *err)
{
    static const char *const states[] = {"in-sync", "recovering", "recovering"};
    struct dlblk_volume_info info;
    int result = dlblk_volume_info(client, name, &info, err);

    if (result != 0)
        return result;
    if (offset_bytes >= info.size_bytes)
        return dl_error_set(err, -DL_E_RANGE, "that byte lies beyond the end of volume %s", name);
    *ret_location = (struct dlblk_segment_location){
        .segment = (uint32_t)(offset_bytes / (64u << 20)),
        .offset_bytes = offset_bytes % (64u << 20),
        .segment_bytes = 64u << 20,
    };
    if (ret_location->segment != 0)
        return 0;
    ret_location->allocated = true;
    ret_location->config_epoch = 7;
    ret_location->slot_count = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct dlblk_located_slot *slot = &ret_location->slots[i];

        *slot = (struct dlblk_located_slot){.number = i > 0, .server_id = i + 1};
        (void)snprintf(slot->address, sizeof(slot->address), "127.0.0.1:%u", 9471 + i);
        (void)snprintf(slot->state, sizeof(slot->state), "%s", states[i]);
        slot->attempt = i > 0 ? 7 : 0;
        slot->recovered_bytes = i > 0 ? 16u << 20 : 0;
        slot->incoming = i == 2;
    }
    return 0;
}

/* --- scrubs --- */

void
fake_admin_add_scrub(const struct dlblk_scrub *scrub)
{
    dl_assert(fake.scrub_count < STEPS_MAX);
    fake.scrubs[fake.scrub_count++] = *scrub;
}

uint32_t
fake_admin_scrub_count(void)
{
    return fake.scrub_asked;
}

uint32_t
fake_admin_scrub_ids(void)
{
    return fake.scrub_ids;
}

int
dlblk_volume_scrub(struct dlblk_client *client, const char *name, const uint8_t id[16],
                   struct dlblk_scrub *ret_scrub, struct dl_error *err)
{
    uint32_t step = fake.scrub_asked < fake.scrub_count ? fake.scrub_asked : fake.scrub_count - 1;
    struct dlblk_volume_info info;
    int result = dlblk_volume_info(client, name, &info, err);

    if (result != 0)
        return result;
    fake.scrub_ids += memcmp(fake.scrub_id, id, sizeof(fake.scrub_id)) != 0;
    memcpy(fake.scrub_id, id, sizeof(fake.scrub_id));
    fake.scrub_asked++;
    *ret_scrub = (struct dlblk_scrub){.state = "done"};
    if (fake.scrub_count > 0)
        *ret_scrub = fake.scrubs[step];
    memcpy(ret_scrub->id, id, sizeof(ret_scrub->id));
    return 0;
}

/* --- the log --- */

static struct log_step *
step_add(int err)
{
    struct log_step *step = &fake.steps[fake.step_count];

    dl_assert(fake.step_count < STEPS_MAX);
    *step = (struct log_step){.err = err};
    fake.step_count++;
    if (!fake.waiting)
        fake.ready_count = fake.step_count;
    return step;
}

void
fake_admin_add_entry(const char *kind, const char *text)
{
    struct dlblk_log_entry *entry = &step_add(0)->entry;

    entry->sequence = ++fake.entry_count;
    entry->at_ms = 1700000000000 + entry->sequence * 1000;
    (void)snprintf(entry->kind, sizeof(entry->kind), "%s", kind);
    (void)snprintf(entry->text, sizeof(entry->text), "%s", text);
}

void
fake_admin_add_error(int err)
{
    (void)step_add(err);
}

void
fake_admin_begin_waiting(void)
{
    fake.waiting = true;
}

void
fake_admin_set_answer_max(uint32_t max)
{
    fake.answer_max = max;
}

void
fake_admin_set_lost(bool lost)
{
    fake.lost = lost;
}

static int
log_step_make(struct dl_error *err)
{
    struct log_step *step = &fake.steps[fake.ready_count];

    if (fake.ready_count == fake.step_count)
        return dl_error_set(err, -DL_E_VERSION_UNSUPPORTED, "the log has ended");
    fake.ready_count++;
    return step->err == 0 ? 0 : dl_error_set(err, step->err, "the log is somewhere else");
}

int
dlblk_log_read(struct dlblk_client *client, uint64_t after, uint32_t max, uint32_t wait_ms,
               struct dlblk_log *ret_log, struct dl_error *err)
{
    int result = wait_ms > 0 ? log_step_make(err) : 0;

    (void)client;
    dl_assert(max == 0);
    if (result != 0)
        return result;
    *ret_log = (struct dlblk_log){.next = after, .lost = fake.lost && after == 0};
    ret_log->entries = calloc(STEPS_MAX, sizeof(ret_log->entries[0]));
    dl_assert(ret_log->entries != NULL);
    for (uint32_t i = 0; i < fake.ready_count && ret_log->count < fake.answer_max; i++) {
        if (fake.steps[i].err != 0 || fake.steps[i].entry.sequence <= after)
            continue;
        ret_log->entries[ret_log->count++] = fake.steps[i].entry;
        ret_log->next = fake.steps[i].entry.sequence;
    }
    return 0;
}
