/* SPDX-License-Identifier: Apache-2.0 */
/* Every command, with all that --help says about it but its options. */
#include "cli/cli.h"

const struct cli_command cli_commands[] = {
    {
        .group = "volume",
        .name = "create",
        .arguments = "NAME --size SIZE [OPTION...]",
        .summary = "create a volume",
        .text = "\nNo space is taken before something is written.\n"
                "A name is 1 to 128 of A-Z a-z 0-9 . _ - and begins with a letter or a digit.\n"
                "Sizes: 512, 4K, 10G, 2T (powers of 1024).\n",
        .examples =
            "  dlblk volume create db1 --size 100G\n"
            "  dlblk volume create scratch --size 10G --replicas 2 --failure-domain server\n"
            "  dlblk volume create big --size 4T --stripe-width 8 --logical-block 512\n",
        .run = cli_volume_create,
    },
    {
        .group = "volume",
        .name = "list",
        .arguments = "[OPTION...]",
        .summary = "list all volumes",
        .examples = "  dlblk volume list\n"
                    "  dlblk volume list --json | jq -r '.volumes[].name'\n",
        .run = cli_volume_list,
    },
    {
        .group = "volume",
        .name = "info",
        .arguments = "NAME [OPTION...]",
        .summary = "show all about a volume",
        .examples = "  dlblk volume info db1\n"
                    "  dlblk volume info db1 --json\n",
        .run = cli_volume_info,
    },
    {
        .group = "volume",
        .name = "resize",
        .arguments = "NAME --size SIZE [OPTION...]",
        .summary = "make a volume larger",
        .text = "\nA volume only grows.  Whoever has it attached sees the new size: libdlblk\n"
                "at once, an NBD client when it connects again.\n",
        .examples = "  dlblk volume resize db1 --size 200G\n",
        .run = cli_volume_resize,
    },
    {
        .group = "volume",
        .name = "rename",
        .arguments = "NAME NEW-NAME [OPTION...]",
        .summary = "give a volume another name",
        .examples = "  dlblk volume rename db1 db1-old\n",
        .run = cli_volume_rename,
    },
    {
        .group = "volume",
        .name = "delete",
        .arguments = "NAME [OPTION...]",
        .summary = "delete a volume and its data",
        .text = "\nRefused while the volume is attached.  The name is free at once;\n"
                "the space on the servers follows.\n"
                "There is no way back.\n",
        .examples = "  dlblk volume delete scratch\n",
        .run = cli_volume_delete,
    },
    {
        .group = "server",
        .name = "list",
        .arguments = "[OPTION...]",
        .summary = "list the chunkservers",
        .examples = "  dlblk server list\n",
        .run = cli_server_list,
    },
    {
        .group = "cluster",
        .name = "status",
        .arguments = "[OPTION...]",
        .summary = "show how the cluster is, and what is wrong",
        .examples = "  dlblk cluster status\n"
                    "  dlblk cluster status --json | jq -r .state\n",
        .run = cli_cluster_status,
    },
    {
        .name = "attach",
        .arguments = "VOLUME [OPTION...]",
        .summary = "make a volume a block device of this machine",
        .text =
            "\nPrints the device, /dev/ublkb0, when it can be used.  A process beside its server\n"
            "starts another one if that dies; requests in flight are not lost.\n"
            "Needs root and Linux 6.1 or later with ublk.  Without that: --nbd.\n",
        .examples = "  dlblk attach db1\n"
                    "  mkfs.ext4 $(dlblk attach db1 --queues 2)\n"
                    "  dlblk attach db1 --read-only --id 7\n",
        .run = cli_attach,
    },
    {
        .name = "detach",
        .arguments = "VOLUME|DEVICE [OPTION...]",
        .summary = "take the block device away again",
        .text = "\nRefused while somebody has it mounted or open.\n",
        .examples = "  dlblk detach db1\n"
                    "  dlblk detach /dev/ublkb0\n",
        .run = cli_detach,
    },
    {
        .name = "devices",
        .arguments = "[OPTION...]",
        .summary = "list this machine's block devices of volumes",
        .examples = "  dlblk devices\n"
                    "  dlblk devices --json | jq -r '.devices[].device'\n",
        .run = cli_devices,
    },
    {
        .name = "bench",
        .arguments = "VOLUME [OPTION...]",
        .summary = "measure a volume's speed",
        .text = "\nKeeps a number of requests in flight and measures each.\n"
                "A mode that writes destroys the volume's content: it wants --destroy-data, or\n"
                "--size to make a volume for this run.\n"
                "With --json the figures have the names that fio gives them.\n",
        .examples = "  dlblk bench test1 --size 1G --prefill --rw randread\n"
                    "  dlblk bench db1 --rw randread --bs 4K --depth 1 --seconds 5\n"
                    "  dlblk bench scratch --rw randrw --mix 70 --depth 16 --destroy-data --json\n",
        .run = cli_bench,
    },
};

const size_t cli_command_count = sizeof(cli_commands) / sizeof(cli_commands[0]);
