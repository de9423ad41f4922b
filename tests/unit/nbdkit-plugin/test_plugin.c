/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin inside a real nbdkit, with libnbd as its client and fake_libdlblk behind it: what it
 * advertises, that each kind of request does what NBD says, which errors clients see, which exports
 * there are, and that a wrong configuration is refused before nbdkit listens.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <libnbd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dlblk/client.h"

#define MIB     (1ull << 20)
#define VOLUMES "v 8 4096 small.block 4 512"

static char *const no_parameters[] = {NULL};

/*
 * A client of an nbdkit of its own, which ends with the connection.  Returns NULL if it is refused.
 */
static struct nbd_handle *
connect_to(const char *export, const char *fault, char *const parameters[])
{
    char preload[256], *argv[16] = {(char *)(uintptr_t) "env", preload};
    struct nbd_handle *nbd = nbd_create();
    int argc = 2;

    (void)snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", NBDKIT_PRELOAD);
    (void)setenv("FAKE_LIBDLBLK_VOLUMES", VOLUMES, 1);
    if (fault != NULL)
        (void)setenv("FAKE_LIBDLBLK_FAIL", fault, 1);
    else
        (void)unsetenv("FAKE_LIBDLBLK_FAIL");
    argv[argc++] = (char *)(uintptr_t) "nbdkit";
    argv[argc++] = (char *)(uintptr_t) "--exit-with-parent";
    argv[argc++] = (char *)(uintptr_t) "-f";
    argv[argc++] = (char *)(uintptr_t)PLUGIN;
    for (int i = 0; parameters[i] != NULL; i++)
        argv[argc++] = parameters[i];
    assert_non_null(nbd);
    assert_int_equal(nbd_set_export_name(nbd, export), 0);
    assert_int_equal(nbd_set_strict_mode(nbd, 0), 0);
    if (nbd_connect_systemd_socket_activation(nbd, argv) == 0)
        return nbd;
    nbd_close(nbd);
    return NULL;
}

static struct nbd_handle *
connect_to_v(const char *fault)
{
    struct nbd_handle *nbd = connect_to("v", fault, no_parameters);

    assert_non_null(nbd);
    return nbd;
}

static void
test_advertises_what_it_can(void **state)
{
    struct nbd_handle *nbd = connect_to_v(NULL);

    (void)state;
    assert_int_equal(nbd_get_size(nbd), 8 * MIB);
    assert_int_equal(nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM), 1);
    assert_int_equal(nbd_get_block_size(nbd, LIBNBD_SIZE_PREFERRED), 4096);
    assert_int_equal(nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM), 64 * MIB);
    assert_int_equal(nbd_is_read_only(nbd), 0);
    assert_int_equal(nbd_can_multi_conn(nbd), 1);
    assert_int_equal(nbd_can_flush(nbd), 1);
    assert_int_equal(nbd_can_fua(nbd), 1);
    assert_int_equal(nbd_can_trim(nbd), 1);
    assert_int_equal(nbd_can_zero(nbd), 1);
    assert_int_equal(nbd_can_fast_zero(nbd), 1);
    assert_int_equal(nbd_is_rotational(nbd), 0);
    nbd_close(nbd);
}

static void
test_data_of_any_alignment(void **state)
{
    struct nbd_handle *nbd = connect_to_v(NULL);
    uint8_t data[10000], seen[10002];

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(nbd_pwrite(nbd, data, sizeof(data), 4001, LIBNBD_CMD_FLAG_FUA), 0);
    assert_int_equal(nbd_flush(nbd, 0), 0);
    assert_int_equal(nbd_pread(nbd, seen, sizeof(seen), 4000, 0), 0);
    assert_int_equal(seen[0], 0);
    assert_memory_equal(seen + 1, data, sizeof(data));
    assert_int_equal(seen[sizeof(seen) - 1], 0);

    /* Zeroes reach exactly so far. */
    assert_int_equal(nbd_zero(nbd, 5000, 5001, 0), 0);
    memset(data + 1000, 0, 5000);
    assert_int_equal(nbd_pread(nbd, seen, sizeof(data), 4001, 0), 0);
    assert_memory_equal(seen, data, sizeof(data));

    /* A trim takes whole blocks only: 8192 .. 12288 here. */
    assert_int_equal(nbd_trim(nbd, 8192, 6000, 0), 0);
    memset(data + 8192 - 4001, 0, 4096);
    assert_int_equal(nbd_pread(nbd, seen, sizeof(data), 4001, 0), 0);
    assert_memory_equal(seen, data, sizeof(data));
    nbd_close(nbd);
}

static void
test_fast_zero_is_refused_where_it_is_not_fast(void **state)
{
    struct nbd_handle *nbd = connect_to_v(NULL);

    (void)state;
    assert_int_equal(nbd_zero(nbd, MIB, 0, LIBNBD_CMD_FLAG_FAST_ZERO), 0);
    assert_int_equal(nbd_zero(nbd, 4000, 10, LIBNBD_CMD_FLAG_FAST_ZERO), -1);
    assert_int_equal(nbd_get_errno(), ENOTSUP);
    nbd_close(nbd);
}

/* --- extents --- */

struct runs {
    uint32_t entries[16];
    size_t count;
};

static int
keep_runs(void *context, const char *metacontext, uint64_t offset, uint32_t *entries, size_t count,
          int *error)
{
    struct runs *runs = context;

    (void)metacontext;
    (void)offset;
    (void)error;
    assert_true(count <= 16);
    memcpy(runs->entries, entries, count * sizeof(*entries));
    runs->count = count;
    return 0;
}

static void
test_holes_are_shown(void **state)
{
    struct nbd_handle *nbd = nbd_create();
    char *argv[] = {(char *)(uintptr_t) "env",    (char *)(uintptr_t) "LD_PRELOAD=" NBDKIT_PRELOAD,
                    (char *)(uintptr_t) "nbdkit", (char *)(uintptr_t) "--exit-with-parent",
                    (char *)(uintptr_t) "-f",     (char *)(uintptr_t)PLUGIN,
                    (char *)(uintptr_t) "v",      NULL};
    static const uint32_t hole = LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO;
    struct runs runs = {{0}, 0};
    uint8_t data[8192] = {1};

    (void)state;
    (void)unsetenv("FAKE_LIBDLBLK_FAIL");
    assert_int_equal(nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION), 0);
    assert_int_equal(nbd_connect_systemd_socket_activation(nbd, argv), 0);
    assert_int_equal(nbd_pwrite(nbd, data, sizeof(data), MIB, 0), 0);
    assert_int_equal(
        nbd_block_status(nbd, 4 * MIB, 0,
                         (nbd_extent_callback){.callback = keep_runs, .user_data = &runs}, 0),
        0);
    assert_int_equal(runs.count, 6);
    assert_int_equal(runs.entries[0], MIB);
    assert_int_equal(runs.entries[1], hole);
    assert_int_equal(runs.entries[2], sizeof(data));
    assert_int_equal(runs.entries[3], 0);
    assert_int_equal(runs.entries[5], hole);
    assert_int_equal(
        nbd_block_status(nbd, 4 * MIB, MIB - 100,
                         (nbd_extent_callback){.callback = keep_runs, .user_data = &runs},
                         LIBNBD_CMD_FLAG_REQ_ONE),
        0);
    assert_int_equal(runs.count, 2);
    assert_int_equal(runs.entries[0], 100);
    assert_int_equal(runs.entries[1], hole);
    nbd_close(nbd);
}

/* --- errors --- */

static void
test_errors_have_nbd_numbers(void **state)
{
    static const struct {
        const char *fault;
        int nbd_errno;
    } faults[] = {
        {"2 1 DL_E_NO_SPACE", ENOSPC},  {"2 1 DL_E_LEASE_OLD", ESHUTDOWN},
        {"2 1 DL_E_TIMEOUT", EIO},      {"2 1 DL_E_VOLUME_DELETED", EIO}, /* ENOENT isn't NBD's */
        {"2 1 DL_E_DISK_BUSY", EIO},    {"2 1 DL_E_READ_ONLY", EPERM},
        {"2 1 DL_E_NO_MEMORY", ENOMEM},
    };
    uint8_t data[4096] = {1};

    (void)state;
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        struct nbd_handle *nbd = connect_to_v(faults[i].fault);

        assert_int_equal(nbd_pwrite(nbd, data, sizeof(data), 0, 0), -1);
        assert_int_equal(nbd_get_errno(), faults[i].nbd_errno);
        /* The next one is served again. */
        assert_int_equal(nbd_pwrite(nbd, data, sizeof(data), 0, 0), 0);
        nbd_close(nbd);
    }
}

/* --- exports --- */

static void
test_export_name_selects_the_volume(void **state)
{
    struct nbd_handle *nbd = connect_to("small.block", NULL, no_parameters);

    (void)state;
    assert_non_null(nbd);
    assert_int_equal(nbd_get_size(nbd), 4 * MIB);
    nbd_close(nbd);
    assert_null(connect_to("other", NULL, no_parameters));
    assert_null(connect_to("", NULL, no_parameters));
}

static void
test_volume_parameter_serves_that_one_only(void **state)
{
    char *const parameters[] = {(char *)(uintptr_t) "volume=v", NULL};
    struct nbd_handle *nbd = connect_to("", NULL, parameters);

    (void)state;
    assert_non_null(nbd);
    assert_int_equal(nbd_get_size(nbd), 8 * MIB);
    nbd_close(nbd);
    nbd = connect_to("v", NULL, parameters);
    assert_non_null(nbd);
    nbd_close(nbd);
    assert_null(connect_to("small.block", NULL, parameters));
}

static void
test_read_only(void **state)
{
    char *const parameters[] = {(char *)(uintptr_t) "-r", (char *)(uintptr_t) "v", NULL};
    struct nbd_handle *nbd = connect_to("", NULL, parameters);
    uint8_t data[512] = {1};

    (void)state;
    assert_non_null(nbd);
    assert_int_equal(nbd_is_read_only(nbd), 1);
    assert_int_equal(nbd_pread(nbd, data, sizeof(data), 0, 0), 0);
    assert_int_equal(nbd_pwrite(nbd, data, sizeof(data), 0, 0), -1);
    assert_int_equal(nbd_get_errno(), EPERM);
    nbd_close(nbd);
}

/* --- the end --- */

/* nbdkit on a socket in a new folder, as a child of ours. */
static pid_t
start_nbdkit(const char *folder)
{
    char socket[128], pid_file[128], env[256];
    pid_t pid;

    (void)unsetenv("FAKE_LIBDLBLK_FAIL");
    (void)setenv("FAKE_LIBDLBLK_VOLUMES", VOLUMES, 1);
    (void)snprintf(socket, sizeof(socket), "%s/socket", folder);
    (void)snprintf(pid_file, sizeof(pid_file), "%s/pid", folder);
    (void)snprintf(env, sizeof(env), "LD_PRELOAD=%s", NBDKIT_PRELOAD);
    pid = fork();
    if (pid == 0) {
        /* It ends without waiting for its connections: what those have is no leak of ours. */
        (void)setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
        (void)execlp("env", "env", env, "nbdkit", "-f", "-U", socket, "-P", pid_file, PLUGIN, "v",
                     NULL);
        _exit(127);
    }
    /* The file is there when it listens. */
    for (int i = 0; i < 1000 && access(pid_file, F_OK) != 0; i++)
        (void)usleep(10000);
    assert_int_equal(access(pid_file, F_OK), 0);
    (void)unlink(pid_file);
    return pid;
}

/*
 * Told to end while a client is connected, nbdkit waits until the client goes, and doesn't close
 * the connection then: the volume is detached all the same, and nothing asserts.
 */
static void
test_ends_while_a_client_is_connected(void **state)
{
    char folder[] = "/tmp/dlblk-test-XXXXXX", socket[128];
    struct nbd_handle *nbd = nbd_create();
    uint8_t data[4096] = {1};
    int status = -1;
    pid_t pid;

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(socket, sizeof(socket), "%s/socket", folder);
    pid = start_nbdkit(folder);
    assert_int_equal(nbd_connect_unix(nbd, socket), 0);
    assert_int_equal(nbd_pwrite(nbd, data, sizeof(data), 0, 0), 0);
    assert_int_equal(kill(pid, SIGTERM), 0);
    (void)usleep(100000); /* the signal is there before the client goes */
    nbd_close(nbd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    (void)unlink(socket);
    assert_int_equal(rmdir(folder), 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* --- before it listens --- */

/* Runs nbdkit with these words and returns its exit status; text gets what it printed. */
static int
run_nbdkit(const char *words, char *text, size_t text_bytes)
{
    char folder[] = "/tmp/dlblk-test-XXXXXX", command[1024], socket[64];
    size_t used;
    FILE *pipe;
    int status;

    (void)unsetenv("FAKE_LIBDLBLK_FAIL");
    (void)setenv("FAKE_LIBDLBLK_VOLUMES", VOLUMES, 1);
    /* With "-U -" nbdkit leaves a folder of its own behind when it refuses its configuration. */
    assert_non_null(mkdtemp(folder));
    (void)snprintf(socket, sizeof(socket), "%s/socket", folder);
    (void)snprintf(command, sizeof(command), "LD_PRELOAD=%s nbdkit -f -U %s %s %s 2>&1",
                   NBDKIT_PRELOAD, socket, PLUGIN, words);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    used = fread(text, 1, text_bytes - 1, pipe);
    text[used] = '\0';
    status = pclose(pipe);
    (void)unlink(socket);
    assert_int_equal(rmdir(folder), 0);
    return WEXITSTATUS(status);
}

static void
test_wrong_configuration_is_refused(void **state)
{
    static const struct {
        const char *words, *says;
    } refusals[] = {
        {"volume=nope --run true", "does not exist"},
        {"volume= --run true", "volume= is empty"},
        {"volume=v colour=blue --run true", "unknown parameter 'colour'"},
        {"volume=v timeout=soon --run true", "timeout"},
        {"volume=v timeout=1000000 --run true", "at most 86400"},
        {"volume=v steal=perhaps --run true", "perhaps"},
    };
    char text[4096], words[512];

    (void)state;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        assert_int_equal(run_nbdkit(refusals[i].words, text, sizeof(text)), 1);
        if (strstr(text, refusals[i].says) == NULL)
            fail_msg("'%s' is not in: %s", refusals[i].says, text);
    }
    (void)snprintf(words, sizeof(words), "volume=%0300d --run true", 7);
    assert_int_equal(run_nbdkit(words, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "300 bytes is too long"));
}

static void
test_counters_are_printed(void **state)
{
    char text[65536];

    (void)state;
    assert_int_equal(
        run_nbdkit("-v volume=v timeout=20 --run 'nbdinfo \"$uri\"'", text, sizeof(text)), 0);
    assert_non_null(strstr(text, "datenlord: counters connections="));
    assert_null(strstr(text, "connections=0 "));
    assert_non_null(strstr(text, " trims=0 "));
}

static void
test_lists_exports(void **state)
{
    char text[65536];

    (void)state;
    assert_int_equal(
        run_nbdkit("--run 'nbdinfo --list \"nbd+unix://?socket=$unixsocket\"'", text, sizeof(text)),
        0);
    assert_non_null(strstr(text, "export=\"v\""));
    assert_non_null(strstr(text, "export=\"small.block\""));
    assert_int_equal(
        run_nbdkit("volume=v --run 'nbdinfo --list \"nbd+unix://?socket=$unixsocket\"'", text,
                   sizeof(text)),
        0);
    assert_non_null(strstr(text, "export=\"v\""));
    assert_null(strstr(text, "export=\"small.block\""));
}

static void
test_dump_plugin(void **state)
{
    char text[65536];

    (void)state;
    assert_int_equal(run_nbdkit("--dump-plugin", text, sizeof(text)), 0);
    assert_non_null(strstr(text, "thread_model=parallel\n"));
    assert_non_null(strstr(text, "datenlord_wire_version="));
    assert_non_null(strstr(text, "magic_config_key=volume\n"));
}

UNIT_MAIN(cmocka_unit_test(test_advertises_what_it_can),
          cmocka_unit_test(test_data_of_any_alignment),
          cmocka_unit_test(test_fast_zero_is_refused_where_it_is_not_fast),
          cmocka_unit_test(test_holes_are_shown), cmocka_unit_test(test_errors_have_nbd_numbers),
          cmocka_unit_test(test_export_name_selects_the_volume),
          cmocka_unit_test(test_volume_parameter_serves_that_one_only),
          cmocka_unit_test(test_read_only), cmocka_unit_test(test_ends_while_a_client_is_connected),
          cmocka_unit_test(test_wrong_configuration_is_refused),
          cmocka_unit_test(test_counters_are_printed), cmocka_unit_test(test_lists_exports),
          cmocka_unit_test(test_dump_plugin))
