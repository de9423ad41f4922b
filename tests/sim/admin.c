/* SPDX-License-Identifier: Apache-2.0 */
/*
 * admin.c: a client that is never killed: it makes the volumes of the run, and now and then a
 * scratch volume, which it writes to and deletes again.  See cluster.h.
 *
 *     IDLE --> CREATING --> OPENING --> WRITING --> CLOSING --> DELETING --> IDLE
 *     IDLE --> RESIZING --> IDLE
 *     IDLE --> SCRUBBING --> IDLE
 *
 * Each step is tried again until it works; a volume that can't be opened or written is deleted all
 * the same.  A scrub is not waited for as long as there are faults; in the calm it must end.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "dlblk/error.h"
#include "proto/control.pb-c.h"
#include "tests/sim/cluster.h"

#define RETRY_NS_MAX     (500 * SIM_MS)
#define SCRATCH_WRITES   8u
#define SCRATCH_BYTES    (3u << 20)
#define SCRATCH_PIECE    65536u
#define OPEN_TRIES_MAX   4u
#define VOLUME_BYTES_MAX (6ull << 20)
/*
 * A write may need a server that is not admitted before a dead owner of another volume has a
 * successor, and in the calm it gets none.
 */
#define REQUEST_TIMEOUT_MS 30000u
#define SCRUB_ASKED_MAX    12u /* so often, while there are faults */

enum admin_state {
    ADMIN_IDLE,
    ADMIN_CREATING,
    ADMIN_OPENING,
    ADMIN_WRITING,
    ADMIN_CLOSING,
    ADMIN_DELETING,
    ADMIN_RESIZING,
    ADMIN_SCRUBBING,
};

struct sim_admin {
    struct sim_process process;
    struct cluster *cluster;
    struct client_core *core;
    enum admin_state state;
    struct sim_event event;
    struct client_meta_call call;
    Dl__VolumeCreate create;
    Dl__VolumePolicy policy;
    Dl__VolumeDelete delete;
    Dl__VolumeResize resize;
    struct sim_volume *resized;
    Dl__Scrub scrub;
    const struct sim_volume *scrubbed;
    uint32_t scrub_asked;
    struct sim_scrub scrub_result;
    char name[32];
    uint8_t change_id[16];
    struct sim_volume *made; /* a volume of the run; NULL: a scratch volume */
    uint32_t made_count;
    uint32_t open_tries;
    struct client_volume_open open;
    struct client_volume *volume;
    struct dlblk_request requests[SCRATCH_WRITES];
    uint32_t requests_active;
    uint8_t piece[SCRATCH_PIECE];
};

static void admin_on_event(struct sim_event *event);

static void
admin_next(struct sim_admin *admin, enum admin_state state, uint64_t max_ns)
{
    admin->state = state;
    sim_schedule(&admin->cluster->world, &admin->event, &admin->process, admin_on_event,
                 fake_rng_below(&admin->cluster->rng, max_ns));
}

static void
admin_ask(struct sim_admin *admin, uint16_t opcode, const ProtobufCMessage *request,
          const ProtobufCMessageDescriptor *reply_type, client_meta_call_fn on_done)
{
    admin->call = (struct client_meta_call){
        .opcode = opcode,
        .request = request,
        .reply_type = reply_type,
        .on_done = on_done,
        .context = admin,
    };
    client_meta_call_start(admin->core, &admin->call);
}

/* --- create --- */

static void
admin_new_change(struct sim_admin *admin)
{
    for (size_t i = 0; i < sizeof(admin->change_id); i++)
        admin->change_id[i] = (uint8_t)fake_rng_next(&admin->cluster->rng);
}

static void
admin_on_created(struct client_meta_call *call, int err)
{
    struct sim_admin *admin = call->context;
    const Dl__VolumeReply *reply = (const Dl__VolumeReply *)(const void *)call->reply;

    if (err != 0) {
        sim_trace(&admin->cluster->world, &admin->process, "cannot create %s: %s", admin->name,
                  call->error.text);
        sim_require(&admin->cluster->world,
                    err == -DL_E_META_UNREACHABLE || err == -DL_E_TIMEOUT ||
                        err == -DL_E_TOO_FEW_DOMAINS || err == -DL_E_SHUTTING_DOWN,
                    "create %s: %s: %s", admin->name, dl_err_name(err), call->error.text);
        admin_next(admin, ADMIN_CREATING, RETRY_NS_MAX);
        return;
    }
    sim_trace(&admin->cluster->world, &admin->process, "created %s", admin->name);
    if (admin->made != NULL) {
        admin->made->id = reply->volume->id;
        admin->made_count++;
        admin->made = NULL;
        admin->state = ADMIN_IDLE;
        if (admin->made_count < admin->cluster->profile.volume_count)
            admin_next(admin, ADMIN_IDLE, SIM_MS);
        return;
    }
    admin->cluster->counters.scratch_created++;
    admin->open_tries = 0;
    admin_next(admin, ADMIN_OPENING, SIM_MS);
}

static void
admin_start_create(struct sim_admin *admin)
{
    const struct sim_volume *made = admin->made;
    const struct cluster_profile *profile = &admin->cluster->profile;

    dl__volume_create__init(&admin->create);
    dl__volume_policy__init(&admin->policy);
    admin->policy.redundancy = DL__REDUNDANCY__REDUNDANCY_REPLICATED;
    admin->policy.replicas = profile->replicas;
    admin->policy.min_write = profile->min_write;
    admin->policy.failure_domain = DL__FAILURE_DOMAIN__DOMAIN_HOST;
    admin->create.name = admin->name;
    admin->create.policy = &admin->policy;
    admin->create.size_bytes = made != NULL ? made->size_bytes : SCRATCH_BYTES;
    admin->create.segment_bytes = made != NULL ? made->segment_bytes : 1u << 20;
    admin->create.logical_block_bytes = made != NULL ? made->logical_block_bytes : 4096;
    admin->create.stripe_width = made != NULL ? made->stripe_width : 1;
    admin->create.stripe_unit_bytes = made != NULL ? made->stripe_unit_bytes : 0;
    admin->create.change_id = (ProtobufCBinaryData){sizeof(admin->change_id), admin->change_id};
    admin_ask(admin, OP_VOLUME_CREATE, &admin->create.base, &dl__volume_reply__descriptor,
              admin_on_created);
}

/* --- use --- */

static void
admin_on_closed(void *context, int err, const struct dl_error *error)
{
    struct sim_admin *admin = context;

    sim_trace(&admin->cluster->world, &admin->process, "closed %s: %s", admin->name,
              err == 0 ? "cleanly" : error->text);
    admin->volume = NULL;
    admin_new_change(admin);
    admin_next(admin, ADMIN_DELETING, SIM_MS);
}

static void
admin_on_written(struct dlblk_request *request, int err)
{
    struct sim_admin *admin = request->context;

    sim_trace(&admin->cluster->world, &admin->process, "wrote to %s: %s", admin->name,
              err == 0 ? "ok" : dl_err_name(err));
    if (--admin->requests_active > 0)
        return;
    admin->state = ADMIN_CLOSING;
    client_volume_close(admin->volume, admin_on_closed, admin);
}

static void
admin_write(struct sim_admin *admin)
{
    admin->state = ADMIN_WRITING;
    admin->requests_active = SCRATCH_WRITES;
    for (uint32_t i = 0; i < SCRATCH_WRITES; i++) {
        struct dlblk_request *request = &admin->requests[i];

        memset(request, 0, sizeof(*request));
        request->op = DLBLK_WRITE;
        request->offset_bytes = fake_rng_below(&admin->cluster->rng,
                                               SCRATCH_BYTES / SCRATCH_PIECE) *
                                SCRATCH_PIECE;
        request->length_bytes = SCRATCH_PIECE;
        request->iov_one = (struct iovec){.iov_base = admin->piece, .iov_len = SCRATCH_PIECE};
        request->iov = &request->iov_one;
        request->iov_count = 1;
        request->on_done = admin_on_written;
        request->context = admin;
        client_volume_submit(admin->volume, request);
    }
}

static void
admin_on_open(struct client_volume_open *open, int err)
{
    struct sim_admin *admin = open->context;

    if (err != 0 && ++admin->open_tries < OPEN_TRIES_MAX) {
        admin_next(admin, ADMIN_OPENING, RETRY_NS_MAX);
    } else if (err != 0) {
        admin_new_change(admin);
        admin_next(admin, ADMIN_DELETING, RETRY_NS_MAX);
    } else {
        admin->volume = open->volume;
        admin_write(admin);
    }
}

static void
admin_start_open(struct sim_admin *admin)
{
    memset(&admin->open, 0, sizeof(admin->open));
    admin->open.name = admin->name;
    admin->open.on_done = admin_on_open;
    admin->open.context = admin;
    client_volume_open(admin->core, &admin->open);
}

/* --- delete --- */

static void
admin_on_deleted(struct client_meta_call *call, int err)
{
    struct sim_admin *admin = call->context;

    sim_trace(&admin->cluster->world, &admin->process, "deleted %s: %s", admin->name,
              err == 0 ? "ok" : call->error.text);
    /* Unknown: an earlier try was carried out, its answer was lost. */
    if (err != 0 && err != -DL_E_VOLUME_UNKNOWN) {
        sim_require(&admin->cluster->world,
                    err == -DL_E_META_UNREACHABLE || err == -DL_E_TIMEOUT ||
                        err == -DL_E_VOLUME_BUSY || err == -DL_E_SHUTTING_DOWN,
                    "delete %s: %s: %s", admin->name, dl_err_name(err), call->error.text);
        admin_next(admin, ADMIN_DELETING, RETRY_NS_MAX);
        return;
    }
    admin->cluster->counters.scratch_deleted++;
    admin->state = ADMIN_IDLE;
}

static void
admin_start_delete(struct sim_admin *admin)
{
    dl__volume_delete__init(&admin->delete);
    admin->delete.name = admin->name;
    admin->delete.change_id = (ProtobufCBinaryData){sizeof(admin->change_id), admin->change_id};
    admin_ask(admin, OP_VOLUME_DELETE, &admin->delete.base, &dl__volume_delete_reply__descriptor,
              admin_on_deleted);
}

/* --- resize --- */

static void
admin_on_resized(struct client_meta_call *call, int err)
{
    struct sim_admin *admin = call->context;
    struct sim_volume *volume = admin->resized;

    sim_trace(&admin->cluster->world, &admin->process, "resized %s to %" PRIu64 ": %s",
              volume->name, admin->resize.size_bytes, err == 0 ? "ok" : call->error.text);
    if (err != 0) {
        sim_require(&admin->cluster->world,
                    err == -DL_E_META_UNREACHABLE || err == -DL_E_TIMEOUT ||
                        err == -DL_E_SHUTTING_DOWN,
                    "resize %s: %s: %s", volume->name, dl_err_name(err), call->error.text);
        admin_next(admin, ADMIN_RESIZING, RETRY_NS_MAX);
        return;
    }
    volume->size_bytes = admin->resize.size_bytes;
    admin->cluster->counters.resizes++;
    admin->state = ADMIN_IDLE;
}

static void
admin_start_resize(struct sim_admin *admin)
{
    dl__volume_resize__init(&admin->resize);
    admin->resize.name = admin->resized->name;
    admin->resize.size_bytes = admin->resized->size_bytes_asked;
    admin_ask(admin, OP_VOLUME_RESIZE, &admin->resize.base, &dl__volume_reply__descriptor,
              admin_on_resized);
}

void
admin_resize(struct cluster *cluster)
{
    struct sim_admin *admin = cluster->admin;
    struct sim_volume *volume =
        &cluster->volumes[fake_rng_below(&cluster->rng, cluster->profile.volume_count)];
    uint64_t size_bytes = volume->size_bytes + fake_rng_range(&cluster->rng, 1, 300) * 4096;

    if (admin->state != ADMIN_IDLE || !admin_is_ready(cluster) || size_bytes > VOLUME_BYTES_MAX)
        return;
    volume->size_bytes_asked = size_bytes;
    oracle_grow(&volume->oracle, size_bytes / volume->logical_block_bytes);
    admin->resized = volume;
    admin_next(admin, ADMIN_RESIZING, SIM_MS);
}

/* --- scrub --- */

static void
admin_take_scrub(struct sim_admin *admin, const Dl__ScrubReply *reply)
{
    struct cluster *cluster = admin->cluster;

    admin->scrub_result = (struct sim_scrub){
        .sectors = reply->counts->sectors,
        .bad = reply->counts->bad,
        .repaired = reply->counts->repaired,
        .left_bad = reply->counts->left_bad,
        .mismatches = reply->counts->mismatches,
        .passed_over = reply->chunks_skipped + reply->uncompared + reply->n_servers_absent,
    };
    cluster->counters.volumes_scrubbed++;
    sim_trace(&cluster->world, &admin->process,
              "scrubbed %s: %" PRIu64 " sectors, %" PRIu64 " bad, %" PRIu64 " repaired, %" PRIu64
              " passed over",
              admin->scrubbed->name, admin->scrub_result.sectors, admin->scrub_result.bad,
              admin->scrub_result.repaired, admin->scrub_result.passed_over);
    sim_require(&cluster->world, reply->counts->mismatches == 0,
                "the scrub of %s says that copies differ in %" PRIu64 " sectors",
                admin->scrubbed->name, reply->counts->mismatches);
    sim_require(&cluster->world,
                reply->counts->bad == reply->counts->repaired + reply->counts->left_bad,
                "the scrub of %s: %" PRIu64 " bad sectors, %" PRIu64 " repaired, %" PRIu64 " left",
                admin->scrubbed->name, reply->counts->bad, reply->counts->repaired,
                reply->counts->left_bad);
}

static void
admin_on_scrub(struct client_meta_call *call, int err)
{
    struct sim_admin *admin = call->context;
    struct cluster *cluster = admin->cluster;
    const Dl__ScrubReply *reply = (const Dl__ScrubReply *)(const void *)call->reply;

    sim_require(&cluster->world,
                err == 0 || err == -DL_E_META_UNREACHABLE || err == -DL_E_TIMEOUT ||
                    err == -DL_E_SHUTTING_DOWN,
                "scrub %s: %s: %s", admin->scrubbed->name, dl_err_name(err), call->error.text);
    /* It may be one that was given up earlier: then this one begins with the next question. */
    if (err == 0 && strcmp(reply->state, "done") == 0 &&
        reply->scrub_id.len == sizeof(admin->change_id) &&
        memcmp(reply->scrub_id.data, admin->change_id, sizeof(admin->change_id)) == 0) {
        admin_take_scrub(admin, reply);
        admin->state = ADMIN_IDLE;
    } else if (++admin->scrub_asked >= SCRUB_ASKED_MAX && !cluster->calm) {
        admin->state = ADMIN_IDLE;
    } else {
        admin_next(admin, ADMIN_SCRUBBING, RETRY_NS_MAX);
    }
}

static void
admin_start_scrub(struct sim_admin *admin)
{
    dl__scrub__init(&admin->scrub);
    admin->scrub.name = (char *)(uintptr_t)admin->scrubbed->name;
    admin->scrub.scrub_id = (ProtobufCBinaryData){sizeof(admin->change_id), admin->change_id};
    admin_ask(admin, OP_SCRUB, &admin->scrub.base, &dl__scrub_reply__descriptor, admin_on_scrub);
}

void
admin_scrub_volume(struct cluster *cluster, const struct sim_volume *volume)
{
    struct sim_admin *admin = cluster->admin;

    dl_assert(admin->state == ADMIN_IDLE);
    admin_new_change(admin);
    admin->scrubbed = volume;
    admin->scrub_asked = 0;
    admin_next(admin, ADMIN_SCRUBBING, SIM_MS);
}

void
admin_scrub(struct cluster *cluster)
{
    uint32_t idx = (uint32_t)fake_rng_below(&cluster->rng, cluster->profile.volume_count);

    if (cluster->admin->state == ADMIN_IDLE && admin_is_ready(cluster) && cluster->profile.scrubs)
        admin_scrub_volume(cluster, &cluster->volumes[idx]);
}

struct sim_scrub
admin_scrub_result(const struct cluster *cluster)
{
    return cluster->admin->scrub_result;
}

/* --- the steps --- */

static void
admin_make_next(struct sim_admin *admin)
{
    admin->made = &admin->cluster->volumes[admin->made_count];
    memcpy(admin->name, admin->made->name, sizeof(admin->name));
    admin_new_change(admin);
    admin->state = ADMIN_CREATING;
    admin_start_create(admin);
}

static void
admin_on_event(struct sim_event *event)
{
    struct sim_admin *admin = list_entry(event, struct sim_admin, event);

    switch (admin->state) {
    case ADMIN_IDLE:
        admin_make_next(admin);
        break;
    case ADMIN_CREATING:
        admin_start_create(admin);
        break;
    case ADMIN_OPENING:
        admin_start_open(admin);
        break;
    case ADMIN_DELETING:
        admin_start_delete(admin);
        break;
    case ADMIN_RESIZING:
        admin_start_resize(admin);
        break;
    case ADMIN_SCRUBBING:
        admin_start_scrub(admin);
        break;
    case ADMIN_WRITING:
    case ADMIN_CLOSING:
        break;
    }
}

void
admin_scratch(struct cluster *cluster)
{
    struct sim_admin *admin = cluster->admin;

    if (admin->state != ADMIN_IDLE || !admin_is_ready(cluster))
        return;
    (void)snprintf(admin->name, sizeof(admin->name), "scratch%" PRIu64,
                   cluster->counters.scratch_created);
    admin_new_change(admin);
    admin_next(admin, ADMIN_CREATING, SIM_MS);
}

/* --- life --- */

static void
admin_on_client_event(void *context, enum dlblk_event_level level, const char *text)
{
    struct sim_admin *admin = context;

    (void)level;
    sim_trace(&admin->cluster->world, &admin->process, "says: %s", text);
}

void
admin_create(struct cluster *cluster)
{
    struct sim_admin *admin = calloc(1, sizeof(*admin));
    struct client_core_options options = {
        .meta = {{.host = "meta", .port = 1}},
        .meta_count = 1,
        .owner = "admin",
        .on_event = admin_on_client_event,
        .request_timeout_ms = REQUEST_TIMEOUT_MS,
    };
    struct sim_process *before;
    int err;

    sim_require(&cluster->world, admin != NULL, "no memory");
    cluster->admin = admin;
    admin->cluster = cluster;
    options.event_context = admin;
    sim_process_init(&admin->process, &cluster->world, "admin");
    sim_process_start(&admin->process);
    before = sim_enter(&admin->process);
    err = client_core_create(&admin->core, &admin->process.env, &options);
    sim_require(&cluster->world, err == 0, "client_core_create: %s", dl_err_str(err));
    admin_next(admin, ADMIN_IDLE, SIM_MS);
    sim_leave(&admin->process, before);
}

void
admin_destroy(struct cluster *cluster)
{
    struct sim_admin *admin = cluster->admin;

    sim_process_kill(&admin->process, true);
    client_core_destroy(admin->core);
    sim_process_fini(&admin->process);
    sim_cancel(&cluster->world, &admin->event);
    free(admin);
    cluster->admin = NULL;
}

struct client_core *
admin_core(const struct cluster *cluster)
{
    return cluster->admin->core;
}

struct sim_process *
admin_process(const struct cluster *cluster)
{
    return &cluster->admin->process;
}

bool
admin_is_ready(const struct cluster *cluster)
{
    return cluster->admin->made_count == cluster->profile.volume_count;
}

bool
admin_is_idle(const struct cluster *cluster)
{
    return cluster->admin->state == ADMIN_IDLE;
}
