/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "ublk/control.h"

#define RUN_DIR    "/run/dlblk/ublk"
#define PATH_BYTES 512u
#define LINE_BYTES (UBLK_STATE_TEXT_BYTES + 64u)

static_assert(sizeof(struct ublk_counters) == 4096, "one page");

const char *
ublk_run_dir(void)
{
    const char *dir = getenv("DLBLK_RUN_DIR");

    return dir != NULL && dir[0] != '\0' ? dir : RUN_DIR;
}

struct state_path {
    char text[PATH_BYTES];
};

static struct state_path
path_of(uint32_t id, const char *suffix)
{
    struct state_path path;

    (void)snprintf(path.text, sizeof(path.text), "%s/%u%s", ublk_run_dir(), id, suffix);
    return path;
}

/* mkdir -p */
int
ublk_run_dir_make(struct dl_error *err)
{
    char path[PATH_BYTES];

    (void)snprintf(path, sizeof(path), "%s", ublk_run_dir());
    for (char *slash = path + 1;; slash++) {
        bool last = *slash == '\0';

        if (*slash != '/' && !last)
            continue;
        *slash = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST)
            return dl_error_set(err, -errno, "%s: %s", path, strerror(errno));
        if (last)
            return 0;
        *slash = '/';
    }
}

/* --- the text --- */

enum field_kind { FIELD_TEXT, FIELD_U32, FIELD_U64, FIELD_BOOL };

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;
    size_t bytes;
};

#define FIELD(name, kind)                                                                      \
    {                                                                                          \
#name, kind, offsetof(struct ublk_state, name), sizeof(((struct ublk_state *)0)->name) \
    }

static const struct field fields[] = {
    FIELD(id, FIELD_U32),
    FIELD(volume, FIELD_TEXT),
    FIELD(meta, FIELD_TEXT),
    FIELD(config, FIELD_TEXT),
    FIELD(volume_id, FIELD_U64),
    FIELD(size_bytes, FIELD_U64),
    FIELD(logical_bytes, FIELD_U32),
    FIELD(lease_epoch, FIELD_U32),
    FIELD(queue_count, FIELD_U32),
    FIELD(queue_depth, FIELD_U32),
    FIELD(pid, FIELD_U32),
    FIELD(started_ms, FIELD_U64),
    FIELD(takeovers, FIELD_U64),
    FIELD(read_only, FIELD_BOOL),
    FIELD(volatile_cache, FIELD_BOOL),
    FIELD(null, FIELD_BOOL),
};
#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))

int
ublk_state_write(const struct ublk_state *state, FILE *file)
{
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        const char *at = (const char *)state + fields[i].offset;
        uint32_t small;
        uint64_t large;

        switch (fields[i].kind) {
        case FIELD_TEXT:
            fprintf(file, "%s=%s\n", fields[i].name, at);
            break;
        case FIELD_U32:
            memcpy(&small, at, sizeof(small));
            fprintf(file, "%s=%" PRIu32 "\n", fields[i].name, small);
            break;
        case FIELD_U64:
            memcpy(&large, at, sizeof(large));
            fprintf(file, "%s=%" PRIu64 "\n", fields[i].name, large);
            break;
        case FIELD_BOOL:
            fprintf(file, "%s=%d\n", fields[i].name, *(const bool *)at);
            break;
        }
    }
    return ferror(file) ? -EIO : 0;
}

static int
field_set(const struct field *field, struct ublk_state *state, const char *text)
{
    char *at = (char *)state + field->offset;
    uint64_t number = 0;

    if (field->kind == FIELD_TEXT) {
        if (strlen(text) >= field->bytes)
            return -EINVAL;
        memcpy(at, text, strlen(text) + 1);
        return 0;
    }
    if (text_parse_number(field->name, text, 0,
                          field->kind == FIELD_U64   ? UINT64_MAX
                          : field->kind == FIELD_U32 ? UINT32_MAX
                                                     : 1,
                          &number, NULL) != 0)
        return -EINVAL;
    if (field->kind == FIELD_BOOL) {
        *(bool *)at = number != 0;
    } else if (field->kind == FIELD_U32) {
        uint32_t small = (uint32_t)number;

        memcpy(at, &small, sizeof(small));
    } else {
        memcpy(at, &number, sizeof(number));
    }
    return 0;
}

int
ublk_state_read(FILE *file, struct ublk_state *ret_state)
{
    struct ublk_state state = {0};
    char line[LINE_BYTES];
    uint32_t seen = 0;

    while (fgets(line, sizeof(line), file) != NULL) {
        char *end = strchr(line, '\n');
        char *value = strchr(line, '=');

        if (end == NULL || value == NULL)
            return -EINVAL;
        *end = '\0';
        *value++ = '\0';
        for (size_t i = 0; i < FIELD_COUNT; i++) {
            if (strcmp(fields[i].name, line) != 0)
                continue;
            if (field_set(&fields[i], &state, value) != 0)
                return -EINVAL;
            seen |= 1u << i;
        }
    }
    /* Keys of a newer version are passed over; none may be missing. */
    if (seen != (1u << FIELD_COUNT) - 1)
        return -EINVAL;
    *ret_state = state;
    return 0;
}

/* --- files --- */

int
ublk_state_save(const struct ublk_state *state, struct dl_error *err)
{
    struct state_path path = path_of(state->id, "");
    struct state_path new_path = path_of(state->id, ".new");
    FILE *file;
    int result = ublk_run_dir_make(err);

    if (result != 0)
        return result;
    file = fopen(new_path.text, "we");
    if (file == NULL)
        return dl_error_set(err, -errno, "%s: %s", new_path.text, strerror(errno));
    result = ublk_state_write(state, file);
    if (fclose(file) != 0 && result == 0)
        result = -errno;
    if (result == 0 && rename(new_path.text, path.text) != 0)
        result = -errno;
    return result == 0 ? 0 : dl_error_set(err, result, "%s: %s", path.text, strerror(-result));
}

int
ublk_state_load(uint32_t id, struct ublk_state *ret_state, struct dl_error *err)
{
    struct state_path path = path_of(id, "");
    DL_CLEANUP(fclose) FILE *file = fopen(path.text, "re");
    int result;

    if (file == NULL)
        return dl_error_set(err, -errno, "%s: %s", path.text, strerror(errno));
    result = ublk_state_read(file, ret_state);
    if (result == 0 && ret_state->id != id)
        result = -EINVAL;
    return result == 0 ? 0 : dl_error_set(err, result, "%s is damaged", path.text);
}

void
ublk_state_remove(uint32_t id)
{
    (void)unlink(path_of(id, "").text);
    (void)unlink(path_of(id, ".new").text);
    (void)unlink(path_of(id, ".counters").text);
}

static int
only_numbers(const struct dirent *entry)
{
    return entry->d_name[0] != '\0' && strspn(entry->d_name, "0123456789") == strlen(entry->d_name);
}

int
ublk_state_for_each(int (*fn)(void *context, const struct ublk_state *state), void *context)
{
    struct dirent **entries = NULL;
    int count = scandir(ublk_run_dir(), &entries, only_numbers, versionsort);
    int result = 0;

    for (int i = 0; i < count; i++) {
        struct ublk_state state = {0};
        uint64_t id = 0;

        if (result == 0 &&
            text_parse_number("device", entries[i]->d_name, 0, UBLK_DEVICE_MAX, &id, NULL) == 0 &&
            ublk_state_load((uint32_t)id, &state, NULL) == 0)
            result = fn(context, &state);
        free(entries[i]);
    }
    free(entries);
    return result;
}

struct find {
    const char *name;
    struct ublk_state *ret_state;
};

static int
find_one(void *context, const struct ublk_state *state)
{
    const struct find *find = context;
    char device[40];

    (void)snprintf(device, sizeof(device), "/dev/ublkb%u", state->id);
    if (strcmp(find->name, state->volume) != 0 && strcmp(find->name, device) != 0 &&
        strcmp(find->name, device + 5) != 0)
        return 0;
    *find->ret_state = *state;
    return 1;
}

int
ublk_state_find(const char *name, struct ublk_state *ret_state)
{
    struct find find = {.name = name, .ret_state = ret_state};

    return ublk_state_for_each(find_one, &find) == 1 ? 0 : -ENOENT;
}

/* --- counters --- */

int
ublk_counters_map(uint32_t id, struct ublk_counters **ret_counters, struct dl_error *err)
{
    struct state_path path = path_of(id, ".counters");
    DL_CLEANUP(close) int fd = -1;
    void *memory;
    int result = ublk_run_dir_make(err);

    if (result != 0)
        return result;
    fd = open(path.text, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, sizeof(struct ublk_counters)) != 0)
        return dl_error_set(err, -errno, "%s: %s", path.text, strerror(errno));
    memory = mmap(NULL, sizeof(struct ublk_counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return dl_error_set(err, -errno, "%s: %s", path.text, strerror(errno));
    *ret_counters = memory;
    return 0;
}

void
ublk_counters_unmap(struct ublk_counters *counters)
{
    if (counters != NULL)
        (void)munmap(counters, sizeof(*counters));
}

void
ublk_counters_get(uint32_t id, struct ublk_counters *ret_counters)
{
    DL_CLEANUP(close) int fd = open(path_of(id, ".counters").text, O_RDONLY | O_CLOEXEC);

    memset(ret_counters, 0, sizeof(*ret_counters));
    if (fd >= 0 && read(fd, ret_counters, sizeof(*ret_counters)) != sizeof(*ret_counters))
        memset(ret_counters, 0, sizeof(*ret_counters));
}
