/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugin.c: what nbdkit calls, in this order:
 *
 *   config* config_complete get_ready     before nbdkit listens: errors go to the terminal.
 *   get_ready connects
 *                                         once, looks the volume up, and disconnects: threads don't
 *                                         survive a fork
 *   after_fork                            starts libdlblk's thread
 *   open (pread|pwrite|...)* close        per connection; requests of all connections in parallel
 *   cleanup unload                        stops libdlblk, prints the counters
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "common/version.h"
#include "dlblk/client.h"
#include "nbdkit-plugin/block_io.h"
#include "nbdkit-plugin/counters.h"
#include "nbdkit-plugin/served.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define EXTENTS_BYTES_MAX (1u << 30) /* asked for at once: a client that wants more asks again */

static struct {
    const char *volume; /* NULL: the export name says which */
    const char *meta;
    const char *config_path;
    unsigned request_timeout_s;
    unsigned connect_timeout_s;
    bool steal;
} config;

static struct dlblk_client *client;
static struct served_set volumes;

/* --- errors --- */

/* NBD has numbers for these; nbdkit makes EINVAL of all others, which would blame the client. */
static int
nbd_errno(int err)
{
    int class = dl_err_class(err);

    switch (class) {
    case EPERM:
    case EIO:
    case ENOMEM:
    case EINVAL:
    case ENOSPC:
    case EOVERFLOW:
    case EOPNOTSUPP:
    case ESHUTDOWN:
        return class;
    case EROFS:
        return EPERM;
    default:
        return EIO;
    }
}

static void
report(const struct dl_error *err)
{
    if (err->hint[0] != '\0')
        nbdkit_error("%s; %s", err->text, err->hint);
    else
        nbdkit_error("%s", err->text);
}

/* What a data callback returns. */
static int
finish(const struct served *served, const char *what, uint32_t count, uint64_t offset, int err)
{
    if (err == 0)
        return 0;
    counter_add(errors, 1);
    nbdkit_error("volume %s: %s of %" PRIu32 " bytes at %" PRIu64 ": %s (%s)", served->name, what,
                 count, offset, dl_err_str(err), dl_err_name(err));
    nbdkit_set_error(nbd_errno(err));
    return -1;
}

static void
on_event(void *context, enum dlblk_event_level level, const char *text)
{
    (void)context;
    if (level >= DLBLK_EVENT_WARNING)
        nbdkit_error("%s", text);
    else
        nbdkit_debug("datenlord: %s", text);
}

/* --- configuration --- */

static int
datenlord_config(const char *key, const char *value)
{
    int flag;

    if (strcmp(key, "volume") == 0) {
        config.volume = nbdkit_strdup_intern(value);
        return config.volume != NULL ? 0 : -1;
    }
    if (strcmp(key, "meta") == 0) {
        config.meta = nbdkit_strdup_intern(value);
        return config.meta != NULL ? 0 : -1;
    }
    if (strcmp(key, "config") == 0) {
        /* nbdkit may change the directory before it is read again. */
        char *path = nbdkit_absolute_path(value);

        config.config_path = path != NULL ? nbdkit_strdup_intern(path) : NULL;
        free(path);
        return config.config_path != NULL ? 0 : -1;
    }
    if (strcmp(key, "timeout") == 0)
        return nbdkit_parse_unsigned("timeout", value, &config.request_timeout_s);
    if (strcmp(key, "connect-timeout") == 0)
        return nbdkit_parse_unsigned("connect-timeout", value, &config.connect_timeout_s);
    if (strcmp(key, "steal") == 0) {
        flag = nbdkit_parse_bool(value);
        config.steal = flag == 1;
        return flag < 0 ? -1 : 0;
    }
    nbdkit_error(
        "unknown parameter '%s': volume, meta, config, timeout, connect-timeout and steal are "
        "known; see nbdkit-datenlord-plugin(1)",
        key);
    return -1;
}

static int
datenlord_config_complete(void)
{
    if (config.volume != NULL && config.volume[0] == '\0') {
        nbdkit_error("volume= is empty: give the name of a volume, or leave the parameter out to "
                     "serve all volumes by export name");
        return -1;
    }
    if (config.volume != NULL && strlen(config.volume) > DLBLK_NAME_BYTES_MAX) {
        nbdkit_error("volume=: the name of %zu bytes is too long: volumes have at most %u",
                     strlen(config.volume), DLBLK_NAME_BYTES_MAX);
        return -1;
    }
    if (config.request_timeout_s > 86400 || config.connect_timeout_s > 86400) {
        nbdkit_error("a time-out is given in seconds, at most 86400 (a day)");
        return -1;
    }
    return 0;
}

#define datenlord_config_help                                                         \
    "[volume=]NAME            Volume to serve (default: the export name selects).\n"  \
    "meta=HOST:PORT[,...]     Metadata service (default: $DLBLK_META, then the\n"     \
    "                         configuration file, then 127.0.0.1).\n"                 \
    "config=FILE              Configuration file (default: /etc/dlblk/dlblk.conf).\n" \
    "timeout=SECONDS          I/O fails after this long (default: never).\n"          \
    "connect-timeout=SECONDS  Wait for the metadata service (default: 10).\n"         \
    "steal=true               Take the volume from an owner that is alive."

static int
client_create(struct dlblk_client **ret_client)
{
    struct dlblk_client_options options = {
        .meta = config.meta,
        .config_path = config.config_path,
        .program = "nbdkit",
        .connect_timeout_ms = config.connect_timeout_s * 1000,
        .request_timeout_ms = config.request_timeout_s * 1000,
        .on_event = on_event,
    };
    struct dl_error err = {0};

    if (dlblk_client_create(ret_client, &options, &err) == 0)
        return 0;
    report(&err);
    return -1;
}

/* Whether the configured volume exists; without one, whether anybody answers. */
static int
volume_check(struct dlblk_client *checking)
{
    struct dlblk_volume_info info;
    struct dlblk_volume_info *all = NULL;
    struct dl_error err = {0};
    size_t count;
    int result;

    if (config.volume != NULL) {
        result = dlblk_volume_info(checking, config.volume, &info, &err);
    } else {
        result = dlblk_volume_list(checking, &all, &count, &err);
        free(all);
    }
    if (result == 0)
        return 0;
    report(&err);
    return -1;
}

static int
datenlord_get_ready(void)
{
    struct dlblk_client *checking;
    int result;

    if (client_create(&checking) < 0)
        return -1;
    result = volume_check(checking);
    dlblk_client_destroy(checking);
    return result;
}

static int
datenlord_after_fork(void)
{
    served_set_init(&volumes);
    return client_create(&client);
}

static void
datenlord_cleanup(void)
{
    struct dl_error err = {0};

    if (client == NULL)
        return;
    if (served_set_close(&volumes, &err) != 0)
        report(&err);
    dlblk_client_destroy(client);
    client = NULL;
}

static void
datenlord_unload(void)
{
    counters_print();
}

static void
datenlord_dump_plugin(void)
{
    printf("datenlord_version=%s\n", dlblk_version_text("dlblk"));
    printf("datenlord_commit=%s\n", dlblk_version_commit());
    printf("datenlord_wire_version=%d\n", DLBLK_WIRE_VERSION);
    printf("datenlord_volume_name_max=%u\n", DLBLK_NAME_BYTES_MAX);
}

static struct dlblk_volume_geometry
geometry_of(void *handle)
{
    const struct served *served = handle;
    struct dlblk_volume_geometry geometry;

    dlblk_volume_get_geometry(served->volume, &geometry);
    return geometry;
}

/* --- exports --- */

static int
export_add(struct nbdkit_exports *exports, const struct dlblk_volume_info *info)
{
    char description[96];

    (void)snprintf(description, sizeof(description),
                   "dlblk volume, %" PRIu64 " MiB, %" PRIu32 " copies", info->size_bytes >> 20,
                   info->replicas);
    return nbdkit_add_export(exports, info->name, description);
}

static int
exports_add_all(struct nbdkit_exports *exports)
{
    struct dlblk_volume_info *infos = NULL;
    struct dl_error err = {0};
    size_t count = 0;
    int result = 0;

    if (dlblk_volume_list(client, &infos, &count, &err) != 0) {
        report(&err);
        return -1;
    }
    for (size_t i = 0; i < count && result == 0; i++)
        result = export_add(exports, &infos[i]);
    free(infos);
    return result;
}

static int
datenlord_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    struct dlblk_volume_info info;
    struct dl_error err = {0};

    (void)readonly;
    (void)is_tls;
    if (config.volume == NULL)
        return exports_add_all(exports);
    if (dlblk_volume_info(client, config.volume, &info, &err) != 0) {
        report(&err);
        return -1;
    }
    return export_add(exports, &info);
}

/* What the export name "" stands for. */
static const char *
datenlord_default_export(int readonly, int is_tls)
{
    (void)readonly;
    (void)is_tls;
    return config.volume != NULL ? config.volume : "";
}

static const char *
datenlord_export_description(void *handle)
{
    const struct served *served = handle;

    return nbdkit_printf_intern("dlblk volume %s, %" PRIu64 " MiB", served->name,
                                geometry_of(handle).size_bytes >> 20);
}

/* NULL if the export name names nothing that is served here. */
static const char *
export_to_volume(void)
{
    const char *export = nbdkit_export_name();

    if (export == NULL)
        return NULL;
    if (config.volume != NULL) {
        if (export[0] == '\0' || strcmp(export, config.volume) == 0)
            return config.volume;
        nbdkit_error("export '%s' is not served here: only volume %s is", export, config.volume);
        return NULL;
    }
    if (export[0] != '\0')
        return export;
    nbdkit_error("the client named no export: here it selects the volume, as in "
                 "nbd://localhost/NAME; or start nbdkit with volume=NAME");
    return NULL;
}

/* --- connections --- */

static void *
datenlord_open(int readonly)
{
    uint32_t flags = (readonly ? DLBLK_OPEN_READ_ONLY : 0) | (config.steal ? DLBLK_OPEN_STEAL : 0);
    const char *name = export_to_volume();
    struct served *served;
    struct dl_error err = {0};

    if (name == NULL)
        return NULL;
    if (served_acquire(&volumes, client, name, flags, &served, &err) != 0) {
        report(&err);
        return NULL;
    }
    counter_add(connections, 1);
    return served;
}

/* Not called for connections that are open when nbdkit is told to end. */
static void
datenlord_close(void *handle)
{
    struct dl_error err = {0};

    if (served_release(&volumes, handle, &err) != 0)
        report(&err);
}

/* nbdkit asks once for each connection: one that comes after a resize sees the new size. */
static int64_t
datenlord_get_size(void *handle)
{
    return (int64_t)geometry_of(handle).size_bytes;
}

static int
datenlord_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    (void)handle;
    *minimum = 1;
    *preferred = 4096;
    *maximum = DLBLK_REQUEST_BYTES_MAX;
    return 0;
}

static int
datenlord_can_write(void *handle)
{
    return !geometry_of(handle).read_only;
}

/* A flush covers what was written through any connection: all share one libdlblk volume. */
static int
datenlord_can_multi_conn(void *handle)
{
    (void)handle;
    return 1;
}

/* Every write is on stable storage when it is acknowledged. */
static int
datenlord_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int
datenlord_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int
datenlord_no(void *handle)
{
    (void)handle;
    return 0;
}

/* --- data --- */

static void
count_fua(uint32_t flags)
{
    if (flags & NBDKIT_FLAG_FUA)
        counter_add(fua, 1);
}

static void
count_partial(const struct served *served, uint32_t count, uint64_t offset)
{
    if (!block_io_is_aligned(&served->io, count, offset))
        counter_add(partial_writes, 1);
}

static int
datenlord_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct served *served = handle;

    (void)flags;
    counter_add(reads, 1);
    counter_add(read_bytes, count);
    return finish(served, "read", count, offset, block_io_read(&served->io, buffer, count, offset));
}

static int
datenlord_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct served *served = handle;

    counter_add(writes, 1);
    counter_add(write_bytes, count);
    count_fua(flags);
    count_partial(served, count, offset);
    return finish(served, "write", count, offset,
                  block_io_write(&served->io, buffer, count, offset));
}

static int
datenlord_flush(void *handle, uint32_t flags)
{
    struct served *served = handle;

    (void)flags;
    counter_add(flushes, 1);
    return finish(served, "flush", 0, 0, block_io_flush(&served->io));
}

static int
datenlord_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct served *served = handle;

    counter_add(trims, 1);
    counter_add(trim_bytes, count);
    count_fua(flags);
    return finish(served, "trim", count, offset, block_io_trim(&served->io, count, offset));
}

/*
 * Whole blocks are zeroed without sending data; a range that has none inside is a write like any
 * other.
 */
static int
datenlord_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct served *served = handle;

    if ((flags & NBDKIT_FLAG_FAST_ZERO) && !block_io_zero_is_fast(&served->io, count, offset)) {
        counter_add(zeroes_not_fast, 1);
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    counter_add(zeroes, 1);
    counter_add(zero_bytes, count);
    count_fua(flags);
    count_partial(served, count, offset);
    return finish(served, "zero", count, offset, block_io_zero(&served->io, count, offset));
}

/* --- extents --- */

struct extent_walk {
    struct nbdkit_extents *extents;
    uint32_t runs_left;
};

static int
extent_add(void *context, uint64_t offset_bytes, uint64_t length_bytes, bool hole)
{
    struct extent_walk *walk = context;

    if (walk->runs_left == 0)
        return 0;
    walk->runs_left--;
    if (nbdkit_add_extent(walk->extents, offset_bytes, length_bytes,
                          hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) < 0)
        return -EIO;
    return 0;
}

static int
datenlord_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                  struct nbdkit_extents *extents)
{
    struct served *served = handle;
    const uint64_t mask = BLOCK_IO_BLOCK_BYTES_MAX - 1;
    uint64_t first = offset & ~mask;
    uint64_t end;
    struct extent_walk walk = {
        .extents = extents,
        .runs_left = (flags & NBDKIT_FLAG_REQ_ONE) ? 1 : UINT32_MAX,
    };

    if (count > EXTENTS_BYTES_MAX)
        count = EXTENTS_BYTES_MAX;
    end = (offset + count + mask) & ~mask;
    if (end > geometry_of(handle).size_bytes)
        end = geometry_of(handle).size_bytes;
    counter_add(extents, 1);
    return finish(served, "block status", count, offset,
                  dlblk_extents(served->volume, end - first, first, extent_add, &walk));
}

static struct nbdkit_plugin plugin = {
    .name = "datenlord",
    .longname = "dlblk volumes",
    .version = DLBLK_PLUGIN_VERSION,
    .description = "serves volumes of the distributed block device dlblk",
    .unload = datenlord_unload,
    .config = datenlord_config,
    .config_complete = datenlord_config_complete,
    .config_help = datenlord_config_help,
    .magic_config_key = "volume",
    .dump_plugin = datenlord_dump_plugin,
    .get_ready = datenlord_get_ready,
    .after_fork = datenlord_after_fork,
    .cleanup = datenlord_cleanup,
    .list_exports = datenlord_list_exports,
    .default_export = datenlord_default_export,
    .export_description = datenlord_export_description,
    .open = datenlord_open,
    .close = datenlord_close,
    .get_size = datenlord_get_size,
    .block_size = datenlord_block_size,
    .can_write = datenlord_can_write,
    .can_flush = datenlord_yes,
    .is_rotational = datenlord_no,
    .can_trim = datenlord_yes,
    .can_zero = datenlord_yes,
    .can_fast_zero = datenlord_yes,
    .can_extents = datenlord_yes,
    .can_fua = datenlord_can_fua,
    .can_multi_conn = datenlord_can_multi_conn,
    .pread = datenlord_pread,
    .pwrite = datenlord_pwrite,
    .flush = datenlord_flush,
    .trim = datenlord_trim,
    .zero = datenlord_zero,
    .extents = datenlord_extents,
    .errno_is_preserved = 0,
};

/* What the macro defines; nbdkit's header does not declare it. */
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
