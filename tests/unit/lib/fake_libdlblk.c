/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lib/fake_libdlblk.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/text.h"

#define VOLUMES_MAX  16
#define OPS          (DLBLK_WRITE_ZEROES + 1)
#define SECTOR_BYTES 4096u

struct fake_volume {
    struct dlblk_volume_info info; /* name "": free */
    uint8_t *bytes;
    uint8_t *written; /* one byte for each sector */
    uint64_t bytes_mapped;
};

struct dlblk_client {
    struct dlblk_client_options options;
};

struct dlblk_volume {
    struct fake_volume *fake;
    struct dlblk_volume_geometry geometry;
    struct dlblk_volume_stats stats;
    uint64_t in_flight;
};

/*
 * What the device thread works through; linked by dlblk_private[0], the volume is in [1], the due
 * time in [2].
 */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct dlblk_request *first, *last;
    pthread_t thread;
    bool stop;
    uint32_t delay_us;

    struct fake_volume volumes[VOLUMES_MAX];
    uint64_t next_id;
    uint64_t counts[OPS];
    uint32_t fail_countdown[OPS];
    int fail_err[OPS];
    bool unreachable;
    uint32_t clients, opens, attaches, open_flags;
    uint32_t gone[FAKE_GONE_MAX]; /* of the last dlblk_volume_open_without() */
    size_t gone_count;
    struct dlblk_client_options client_options;
    struct dlblk_volume_spec spec;
    char texts[8][DLBLK_NAME_BYTES_MAX * 4];
} fake = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static uint64_t
now_us(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* --- the device --- */

static void
copy_data(uint8_t *bytes, const struct dlblk_request *request)
{
    uint64_t offset = request->offset_bytes;
    uint64_t left = request->length_bytes;

    for (uint32_t i = 0; i < request->iov_count; i++) {
        const struct iovec *iov = &request->iov[i];

        dl_assert(iov->iov_len <= left);
        if (request->op == DLBLK_READ)
            memcpy(iov->iov_base, bytes + offset, iov->iov_len);
        else
            memcpy(bytes + offset, iov->iov_base, iov->iov_len);
        offset += iov->iov_len;
        left -= iov->iov_len;
    }
    dl_assert(left == 0);
}

static void
mark_written(struct fake_volume *volume, const struct dlblk_request *request, uint8_t value)
{
    uint64_t first = request->offset_bytes / SECTOR_BYTES;
    uint64_t end = (request->offset_bytes + request->length_bytes + SECTOR_BYTES - 1) /
                   SECTOR_BYTES;

    memset(volume->written + first, value, end - first);
}

static int
check_range(const struct dlblk_volume *volume, const struct dlblk_request *request)
{
    uint32_t block = volume->geometry.logical_block_bytes;

    if (request->op == DLBLK_FLUSH)
        return 0;
    if (request->offset_bytes % block != 0 || request->length_bytes % block != 0 ||
        request->length_bytes == 0)
        return -DL_E_ALIGNMENT;
    if (request->offset_bytes + request->length_bytes > volume->geometry.size_bytes)
        return -DL_E_RANGE;
    if ((request->op == DLBLK_READ || request->op == DLBLK_WRITE) &&
        request->length_bytes > DLBLK_REQUEST_BYTES_MAX)
        return -DL_E_RANGE;
    if (volume->geometry.read_only && request->op != DLBLK_READ)
        return -DL_E_READ_ONLY;
    return 0;
}

static int
carry_out(struct dlblk_volume *volume, struct dlblk_request *request)
{
    struct fake_volume *backing = volume->fake;
    int err = check_range(volume, request);

    if (err == 0 && fake.fail_countdown[request->op] > 0 && --fake.fail_countdown[request->op] == 0)
        err = fake.fail_err[request->op];
    if (err != 0)
        return err;
    switch (request->op) {
    case DLBLK_READ:
        copy_data(backing->bytes, request);
        break;
    case DLBLK_WRITE:
        copy_data(backing->bytes, request);
        mark_written(backing, request, 1);
        break;
    case DLBLK_DISCARD:
    case DLBLK_WRITE_ZEROES:
        memset(backing->bytes + request->offset_bytes, 0, request->length_bytes);
        mark_written(backing, request, 0);
        break;
    case DLBLK_FLUSH:
        break;
    }
    return 0;
}

/* With the mutex: the next request, or NULL when the thread shall end. */
static struct dlblk_request *
device_next(void)
{
    struct dlblk_request *request;

    while (fake.first == NULL && !fake.stop)
        (void)pthread_cond_wait(&fake.changed, &fake.mutex);
    request = fake.first;
    if (request != NULL) {
        fake.first = request->dlblk_private[0];
        if (fake.first == NULL)
            fake.last = NULL;
    }
    return request;
}

static void
sleep_until_us(uint64_t due_us)
{
    uint64_t now = now_us();

    if (now < due_us)
        (void)usleep((useconds_t)(due_us - now));
}

static void *
device_thread(void *context)
{
    struct dlblk_request *request;

    (void)pthread_mutex_lock(&fake.mutex);
    while ((request = device_next()) != NULL) {
        struct dlblk_volume *volume = request->dlblk_private[1];
        int err;

        (void)pthread_mutex_unlock(&fake.mutex);
        sleep_until_us((uint64_t)(uintptr_t)request->dlblk_private[2]);
        err = carry_out(volume, request);
        request->on_done(request, err);
        (void)pthread_mutex_lock(&fake.mutex);
        volume->in_flight--;
        (void)pthread_cond_broadcast(&fake.changed);
    }
    (void)pthread_mutex_unlock(&fake.mutex);
    return context;
}

void
dlblk_submit(struct dlblk_volume *volume, struct dlblk_request *request)
{
    (void)pthread_mutex_lock(&fake.mutex);
    fake.counts[request->op]++;
    volume->in_flight++;
    request->dlblk_private[0] = NULL;
    request->dlblk_private[1] = volume;
    request->dlblk_private[2] = (void *)(uintptr_t)(now_us() + fake.delay_us);
    if (fake.last != NULL)
        fake.last->dlblk_private[0] = request;
    else
        fake.first = request;
    fake.last = request;
    (void)pthread_cond_broadcast(&fake.changed);
    (void)pthread_mutex_unlock(&fake.mutex);
}

/* --- the test's side --- */

static struct fake_volume *
fake_find(const char *name)
{
    for (int i = 0; i < VOLUMES_MAX; i++) {
        if (fake.volumes[i].bytes != NULL && strcmp(fake.volumes[i].info.name, name) == 0)
            return &fake.volumes[i];
    }
    return NULL;
}

static void
fake_volume_free(struct fake_volume *volume)
{
    if (volume->bytes != NULL)
        (void)munmap(volume->bytes, volume->bytes_mapped);
    free(volume->written);
    memset(volume, 0, sizeof(*volume));
}

void
fake_libdlblk_reset(void)
{
    dl_assert(fake.opens == 0);
    dl_assert(fake.clients == 0);
    for (int i = 0; i < VOLUMES_MAX; i++)
        fake_volume_free(&fake.volumes[i]);
    memset(fake.counts, 0, sizeof(fake.counts));
    memset(fake.fail_countdown, 0, sizeof(fake.fail_countdown));
    fake.delay_us = 0;
    fake.attaches = 0;
    fake.open_flags = 0;
    fake.gone_count = 0;
    fake.unreachable = false;
    fake.next_id = 1;
}

static struct fake_volume *
fake_volume_new(const char *name, uint64_t size_bytes, uint32_t block_bytes)
{
    struct fake_volume *volume = NULL;

    for (int i = 0; i < VOLUMES_MAX && volume == NULL; i++) {
        if (fake.volumes[i].bytes == NULL)
            volume = &fake.volumes[i];
    }
    dl_assert(volume != NULL);
    volume->bytes_mapped = size_bytes;
    volume->bytes = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    dl_assert(volume->bytes != MAP_FAILED);
    volume->written = calloc(1, size_bytes / SECTOR_BYTES + 1);
    dl_assert(volume->written != NULL);
    volume->info = (struct dlblk_volume_info){
        .id = fake.next_id++,
        .size_bytes = size_bytes,
        .segment_bytes = 64u << 20,
        .logical_block_bytes = block_bytes,
        .stripe_width = 1,
        .stripe_unit_bytes = 256u << 10,
        .replicas = 3,
        .min_write = 2,
        .failure_domain = DLBLK_DOMAIN_HOST,
        .created_ms = 1700000000000,
        .clean = true,
    };
    (void)snprintf(volume->info.name, sizeof(volume->info.name), "%s", name);
    return volume;
}

void
fake_libdlblk_add_volume(const char *name, uint64_t size_bytes, uint32_t block_bytes)
{
    (void)fake_volume_new(name, size_bytes, block_bytes);
}

void
fake_libdlblk_set_owner(const char *name, const char *owner)
{
    struct fake_volume *volume = fake_find(name);

    dl_assert(volume != NULL);
    (void)snprintf(volume->info.owner, sizeof(volume->info.owner), "%s", owner);
    volume->info.attached_ms = 1700000001000;
}

uint8_t *
fake_libdlblk_bytes(const char *name)
{
    struct fake_volume *volume = fake_find(name);

    dl_assert(volume != NULL);
    return volume->bytes;
}

void
fake_libdlblk_set_delay_us(uint32_t delay_us)
{
    fake.delay_us = delay_us;
}

void
fake_libdlblk_fail(enum dlblk_op op, uint32_t countdown, int err)
{
    fake.fail_err[op] = err;
    fake.fail_countdown[op] = countdown;
}

void
fake_libdlblk_set_reachable(bool reachable)
{
    fake.unreachable = !reachable;
}

uint64_t
fake_libdlblk_request_count(enum dlblk_op op)
{
    return fake.counts[op];
}

uint32_t
fake_libdlblk_open_count(void)
{
    return fake.opens;
}

uint32_t
fake_libdlblk_client_count(void)
{
    return fake.clients;
}

uint32_t
fake_libdlblk_attach_count(void)
{
    return fake.attaches;
}

uint32_t
fake_libdlblk_open_flags(void)
{
    return fake.open_flags;
}

size_t
fake_libdlblk_gone(const uint32_t **ret_ids)
{
    *ret_ids = fake.gone;
    return fake.gone_count;
}

const struct dlblk_client_options *
fake_libdlblk_client_options(void)
{
    return &fake.client_options;
}

const struct dlblk_volume_spec *
fake_libdlblk_volume_spec(void)
{
    return &fake.spec;
}

/* A copy that lives in place number idx; NULL stays NULL. */
static const char *
keep_text(int idx, const char *text)
{
    if (text == NULL)
        return NULL;
    (void)snprintf(fake.texts[idx], sizeof(fake.texts[idx]), "%s", text);
    return fake.texts[idx];
}

/* --- another process's test: see fake_libdlblk.h --- */

static int
error_by_name(const char *name)
{
    for (int code = 1; code < DL_E_FIRST + 4096; code++) {
        if (strcmp(dl_err_name(code), name) == 0)
            return -code;
    }
    dl_unreachable();
}

static void
add_volumes_of_environment(void)
{
    static bool added;
    const char *text = getenv("FAKE_LIBDLBLK_VOLUMES");
    char name[64];
    unsigned mib, block;
    int used;

    while (text != NULL && !added &&
           sscanf(text, " %63s %u %u%n", name, &mib, &block, &used) == 3) {
        fake_libdlblk_add_volume(name, (uint64_t)mib << 20, block);
        text += used;
    }
    added = true;
}

static void
set_fault_of_environment(void)
{
    const char *text = getenv("FAKE_LIBDLBLK_FAIL");
    char name[64];
    unsigned op, countdown;

    if (text == NULL)
        return;
    dl_assert(sscanf(text, "%u %u %63s", &op, &countdown, name) == 3);
    fake_libdlblk_fail((enum dlblk_op)op, countdown, error_by_name(name));
}

/* --- client --- */

int
dlblk_client_create(struct dlblk_client **ret_client, const struct dlblk_client_options *options,
                    struct dl_error *err)
{
    static const struct dlblk_client_options none;

    fake.client_options = options != NULL ? *options : none;
    fake.client_options.meta = keep_text(0, fake.client_options.meta);
    fake.client_options.config_path = keep_text(1, fake.client_options.config_path);
    fake.client_options.program = keep_text(2, fake.client_options.program);
    add_volumes_of_environment();
    set_fault_of_environment();
    if (fake.unreachable) {
        (void)dl_error_set(err, -DL_E_META_UNREACHABLE, "the metadata service cannot be reached");
        dl_error_hint(err, "start it");
        return -DL_E_META_UNREACHABLE;
    }
    *ret_client = calloc(1, sizeof(**ret_client));
    dl_assert(*ret_client != NULL);
    (*ret_client)->options = fake.client_options;
    if (fake.clients++ == 0) {
        fake.stop = false;
        dl_assert(pthread_create(&fake.thread, NULL, device_thread, NULL) == 0);
    }
    return 0;
}

void
dlblk_client_destroy(struct dlblk_client *client)
{
    if (client == NULL)
        return;
    free(client);
    if (--fake.clients > 0)
        return;
    dl_assert(fake.opens == 0);
    (void)pthread_mutex_lock(&fake.mutex);
    fake.stop = true;
    (void)pthread_cond_broadcast(&fake.changed);
    (void)pthread_mutex_unlock(&fake.mutex);
    (void)pthread_join(fake.thread, NULL);
}

/* --- volumes --- */

static int
unknown(struct dl_error *err, const char *name)
{
    (void)dl_error_set(err, -DL_E_VOLUME_UNKNOWN, "volume %s does not exist",
                       text_quote(name).text);
    dl_error_hint(err, "dlblk volume list shows those that do");
    return -DL_E_VOLUME_UNKNOWN;
}

int
dlblk_volume_open(struct dlblk_client *client, const char *name, uint32_t flags,
                  struct dlblk_volume **ret_volume, struct dl_error *err)
{
    struct fake_volume *backing = fake_find(name);
    struct dlblk_volume *volume;

    (void)client;
    (void)pthread_mutex_lock(&fake.mutex);
    fake.open_flags = flags;
    if (backing != NULL && (backing->info.owner[0] == '\0' || (flags & DLBLK_OPEN_STEAL))) {
        fake.opens++;
        fake.attaches++;
    }
    (void)pthread_mutex_unlock(&fake.mutex);
    if (backing == NULL)
        return unknown(err, name);
    if (backing->info.owner[0] != '\0' && !(flags & DLBLK_OPEN_STEAL))
        return dl_error_set(err, -DL_E_VOLUME_BUSY, "volume %s is attached by %s", name,
                            backing->info.owner);
    (void)usleep(fake.delay_us);
    volume = calloc(1, sizeof(*volume));
    dl_assert(volume != NULL);
    (void)snprintf(backing->info.owner, sizeof(backing->info.owner), "fake");
    volume->fake = backing;
    volume->geometry = (struct dlblk_volume_geometry){
        .id = backing->info.id,
        .size_bytes = backing->info.size_bytes,
        .logical_block_bytes = backing->info.logical_block_bytes,
        .atomic_bytes = SECTOR_BYTES,
        .optimal_io_bytes = 256u << 10,
        .segment_bytes = backing->info.segment_bytes,
        .read_only = (flags & DLBLK_OPEN_READ_ONLY) != 0,
    };
    *ret_volume = volume;
    return 0;
}

int
dlblk_volume_open_without(struct dlblk_client *client, const char *name, uint32_t flags,
                          const uint32_t *gone_server_ids, size_t gone_server_count,
                          struct dlblk_volume **ret_volume, struct dl_error *err)
{
    fake.gone_count = 0;
    for (size_t i = 0; i < gone_server_count && i < FAKE_GONE_MAX; i++)
        fake.gone[fake.gone_count++] = gone_server_ids[i];
    return dlblk_volume_open(client, name, flags, ret_volume, err);
}

int
dlblk_volume_close(struct dlblk_volume *volume, struct dl_error *err)
{
    (void)err;
    (void)pthread_mutex_lock(&fake.mutex);
    while (volume->in_flight > 0)
        (void)pthread_cond_wait(&fake.changed, &fake.mutex);
    fake.opens--;
    volume->fake->info.owner[0] = '\0';
    (void)pthread_mutex_unlock(&fake.mutex);
    free(volume);
    return 0;
}

void
dlblk_volume_get_geometry(const struct dlblk_volume *volume,
                          struct dlblk_volume_geometry *ret_geometry)
{
    *ret_geometry = volume->geometry;
}

void
dlblk_volume_get_stats(struct dlblk_volume *volume, struct dlblk_volume_stats *ret_stats)
{
    *ret_stats = volume->stats;
}

int
dlblk_extents(struct dlblk_volume *volume, uint64_t length_bytes, uint64_t offset_bytes,
              dlblk_extent_fn fn, void *context)
{
    uint64_t end = offset_bytes + length_bytes;

    while (offset_bytes < end) {
        uint8_t written = volume->fake->written[offset_bytes / SECTOR_BYTES];
        uint64_t next = offset_bytes;
        int err;

        while (next < end && volume->fake->written[next / SECTOR_BYTES] == written)
            next += SECTOR_BYTES;
        if (next > end)
            next = end;
        err = fn(context, offset_bytes, next - offset_bytes, !written);
        if (err != 0)
            return err;
        offset_bytes = next;
    }
    return 0;
}

/* --- administration --- */

int
dlblk_volume_create(struct dlblk_client *client, const struct dlblk_volume_spec *spec,
                    struct dlblk_volume_info *ret_info, struct dl_error *err)
{
    struct fake_volume *volume;
    int result = text_check_name("volume", spec->name, err);

    (void)client;
    fake.spec = *spec;
    fake.spec.name = keep_text(3, spec->name);
    fake.spec.clique = keep_text(4, spec->clique);
    if (result != 0)
        return result;
    if (fake_find(spec->name) != NULL)
        return dl_error_set(err, -DL_E_VOLUME_EXISTS, "volume %s exists", spec->name);
    volume = fake_volume_new(spec->name, spec->size_bytes,
                             spec->logical_block_bytes != 0 ? spec->logical_block_bytes : 4096);
    if (ret_info != NULL)
        *ret_info = volume->info;
    return 0;
}

int
dlblk_volume_info(struct dlblk_client *client, const char *name, struct dlblk_volume_info *ret_info,
                  struct dl_error *err)
{
    struct fake_volume *volume = fake_find(name);

    (void)client;
    if (volume == NULL)
        return unknown(err, name);
    *ret_info = volume->info;
    return 0;
}

static int
compare_names(const void *a, const void *b)
{
    const struct dlblk_volume_info *left = a, *right = b;

    return strcmp(left->name, right->name);
}

int
dlblk_volume_list(struct dlblk_client *client, struct dlblk_volume_info **ret_infos,
                  size_t *ret_count, struct dl_error *err)
{
    struct dlblk_volume_info *infos = calloc(VOLUMES_MAX, sizeof(*infos));
    size_t count = 0;

    (void)client;
    (void)err;
    dl_assert(infos != NULL);
    for (int i = 0; i < VOLUMES_MAX; i++) {
        if (fake.volumes[i].bytes != NULL)
            infos[count++] = fake.volumes[i].info;
    }
    qsort(infos, count, sizeof(*infos), compare_names);
    *ret_infos = infos;
    *ret_count = count;
    return 0;
}

int
dlblk_volume_rename(struct dlblk_client *client, const char *name, const char *new_name,
                    struct dl_error *err)
{
    struct fake_volume *volume = fake_find(name);
    int result = text_check_name("volume", new_name, err);

    (void)client;
    if (result != 0)
        return result;
    if (volume == NULL)
        return unknown(err, name);
    if (fake_find(new_name) != NULL)
        return dl_error_set(err, -DL_E_VOLUME_EXISTS, "volume %s exists", new_name);
    (void)snprintf(volume->info.name, sizeof(volume->info.name), "%s", new_name);
    return 0;
}

int
dlblk_volume_resize(struct dlblk_client *client, const char *name, uint64_t size_bytes,
                    struct dl_error *err)
{
    struct fake_volume *volume = fake_find(name);

    (void)client;
    if (volume == NULL)
        return unknown(err, name);
    if (size_bytes < volume->info.size_bytes)
        return dl_error_set(err, -DL_E_SIZE_INVALID, "volume %s can only grow", name);
    volume->info.size_bytes = size_bytes;
    return 0;
}

int
dlblk_volume_delete(struct dlblk_client *client, const char *name, struct dl_error *err)
{
    struct fake_volume *volume = fake_find(name);

    (void)client;
    if (volume == NULL)
        return unknown(err, name);
    if (volume->info.owner[0] != '\0')
        return dl_error_set(err, -DL_E_VOLUME_BUSY, "volume %s is attached by %s", name,
                            volume->info.owner);
    fake_volume_free(volume);
    return 0;
}

static void
fill_server(struct dlblk_server_info *server, uint32_t id)
{
    server->id = id;
    (void)snprintf(server->uuid, sizeof(server->uuid), "00000000-0000-4000-8000-00000000000%x",
                   id & 0xf);
    (void)snprintf(server->address, sizeof(server->address), "127.0.0.1:%u", 9470 + id);
    (void)snprintf(server->host, sizeof(server->host), "host%u", id);
    (void)snprintf(server->state, sizeof(server->state), "%s", id == 3 ? "down" : "up");
    if (id == 3)
        (void)snprintf(server->problem, sizeof(server->problem), "not heard of for 12 s");
    (void)snprintf(server->software, sizeof(server->software), "dlblk 0.1.0");
    server->capacity_bytes = 100ull << 30;
    server->used_bytes = id * (7ull << 30);
    /* One that is down has said nothing since the metadata service was started. */
    server->chunk_count = id == 3 ? 0 : id * 100;
    server->slot_count = id * 100 - 1;
    server->last_heard_ms = 1700000002000;
}

int
dlblk_server_list(struct dlblk_client *client, struct dlblk_server_info **ret_infos,
                  size_t *ret_count, struct dl_error *err)
{
    struct dlblk_server_info *servers = calloc(3, sizeof(*servers));

    (void)client;
    (void)err;
    dl_assert(servers != NULL);
    for (uint32_t i = 0; i < 3; i++)
        fill_server(&servers[i], i + 1);
    *ret_infos = servers;
    *ret_count = 3;
    return 0;
}

int
dlblk_cluster_status(struct dlblk_client *client, struct dlblk_cluster_status *ret_status,
                     struct dl_error *err)
{
    (void)client;
    (void)err;
    *ret_status = (struct dlblk_cluster_status){
        .cluster_id = "11111111-2222-4333-8444-555555555555",
        .state = "degraded",
        .servers_total = 3,
        .servers_up = 2,
        .volumes = 1,
        .capacity_bytes = 300ull << 30,
        .used_bytes = 42ull << 30,
        .volume_bytes = 1ull << 30,
        .segments = 16,
        .uptime_ms = 3600000,
        .software = "dlblk 0.1.0",
        .problem_count = 1,
        .segments_degraded = 4,
        .recovery = {.slots = 1, .left_bytes = 128u << 20, .bytes_per_s = 32u << 20, .left_s = 4},
    };
    ret_status->problems = calloc(1, sizeof(*ret_status->problems));
    dl_assert(ret_status->problems != NULL);
    (void)snprintf(ret_status->problems[0], sizeof(ret_status->problems[0]),
                   "server 3 (127.0.0.1:9473) is down since 12 s: start it");
    return 0;
}

void
dlblk_cluster_status_fini(struct dlblk_cluster_status *status)
{
    free(status->problems);
    status->problems = NULL;
}

const char *
dlblk_version(void)
{
    return "dlblk fake";
}
