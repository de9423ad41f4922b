/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk volume force, and attach --force: the operator's word that servers are gone for good, when
 * the attach of a volume whose owner is dead waits for them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/attach.h"
#include "common/cleanup.h"
#include "common/text.h"

#define SERVERS_MAX 64u

/* 0, or a negative error. */
static int
servers_find(const struct cli *cli, const char *servers, uint32_t ids[SERVERS_MAX],
             size_t *ret_count, struct dl_error *err)
{
    DL_CLEANUP(free) char *words = strdup(servers);
    char *rest = words, *word;
    size_t count = 0;

    if (words == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory");
    while ((word = strsep(&rest, ",")) != NULL) {
        int result;

        if (count == SERVERS_MAX)
            return dl_error_set(err, -DL_E_LIMIT, "more than %u servers are named", SERVERS_MAX);
        result = cli_server_find(cli, word, &ids[count++], err);
        if (result != 0)
            return result;
    }
    *ret_count = count;
    return 0;
}

int
cli_force(struct cli *cli, const char *volume, const char *servers)
{
    struct dlblk_volume *opened = NULL;
    uint32_t ids[SERVERS_MAX];
    struct dl_error err = {0};
    size_t count = 0;
    int status = cli_connect(cli);

    if (status != CLI_GO_ON)
        return status;
    if (servers_find(cli, servers, ids, &count, &err) != 0 ||
        dlblk_volume_open_without(cli->client, volume, 0, ids, count, &opened, &err) != 0)
        return cli_fail(cli, &err);
    /* What could not be settled in time the next owner settles. */
    (void)dlblk_volume_close(opened, NULL);
    return CLI_OK;
}

CLI_COMMAND(cli_volume_force)
{
    const char *words[2];
    int status = cli_parse(cli, command, NULL, 0, argc, argv, words, 2);

    if (status != CLI_GO_ON)
        return status;
    status = cli_force(cli, words[0], words[1]);
    if (status != CLI_OK)
        return status;
    if (cli->json)
        return cli_print_json(cli, json_pack("{s:s, s:s}", "volume", words[0], "gone", words[1]));
    fprintf(cli->out, "volume %s was taken over without server %s\n", words[0], words[1]);
    return CLI_OK;
}
