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
        .name = "status",
        .arguments = "NAME [OPTION...]",
        .summary = "show whether all copies of a volume are there, and what to do if not",
        .text = "\nhealthy     every segment has all of its copies, and their servers are there\n"
                "recovering  copies are being made or moved; nobody has to do anything\n"
                "degraded    copies are missing, the volume can be used\n"
                "blocked     some reads or writes wait\n"
                "Each problem says what it is, since when, and what to do.\n",
        .examples = "  dlblk volume status db1\n"
                    "  dlblk volume status db1 --json | jq -r .recovery.left_bytes\n",
        .run = cli_volume_status,
    },
    {
        .group = "volume",
        .name = "force",
        .arguments = "NAME SERVER[,SERVER...] [OPTION...]",
        .summary = "take a volume over from a dead owner without servers that are gone",
        .text = "\nFor a volume that can't be attached, or used, since its last owner died and\n"
                "servers have not said what it left unfinished.  Your word that they never come\n"
                "back: their copies are out of the volume's map, but never the last one.  What\n"
                "they alone had is lost.  Refused while they are connected, or the owner lives.\n"
                "SERVER is the number, the address or the uuid that dlblk server list shows.\n",
        .examples = "  dlblk volume force db1 3\n"
                    "  dlblk volume force db1 2,10.0.0.13:7710\n",
        .run = cli_volume_force,
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
        .group = "server",
        .name = "drain",
        .arguments = "SERVER [OPTION...]",
        .summary = "move all data from a server to others, before it is taken away",
        .text = "\nSERVER is the number, the address or the uuid that dlblk server list shows.\n"
                "It stays in use until everything has moved: CHUNKS is 0 then.  Refused if some\n"
                "volume's copies would have nowhere to go.\n",
        .examples = "  dlblk server drain 3 --dry-run\n"
                    "  dlblk server drain 10.0.0.13:7710\n",
        .run = cli_server_drain,
    },
    {
        .group = "server",
        .name = "undrain",
        .arguments = "SERVER [OPTION...]",
        .summary = "use a server again that was drained",
        .text = "\nWhat has moved stays where it is.\n",
        .examples = "  dlblk server undrain 3\n",
        .run = cli_server_undrain,
    },
    {
        .group = "server",
        .name = "remove",
        .arguments = "SERVER [OPTION...]",
        .summary = "forget a server that is empty, or that never comes back",
        .text = "\nIt must be stopped.  If it still has copies they are made again elsewhere.\n"
                "Refused if it has the only copy of something, and without --force if some\n"
                "segments are left with fewer copies on servers that are up than a write needs.\n",
        .examples = "  dlblk server remove 3 --dry-run\n"
                    "  dlblk server remove 3\n",
        .run = cli_server_remove,
    },
    {
        .group = "server",
        .name = "set",
        .arguments = "SERVER [OPTION...]",
        .summary = "change a server's labels and its share of the data",
        .text = "\nFrom then on the labels are no longer those of the server's own configuration.\n"
                "They count for what is placed later; what is there stays.\n",
        .examples = "  dlblk server set 3 --rack r7 --weight 50\n"
                    "  dlblk server set 3 --clique fast --dry-run\n",
        .run = cli_server_set,
    },
    {
        .group = "segment",
        .name = "locate",
        .arguments = "VOLUME OFFSET [OPTION...]",
        .summary = "show on which servers a byte of a volume lies",
        .text = "\nOFFSET is in bytes, or 512K, 10G.\n",
        .examples = "  dlblk segment locate db1 0\n"
                    "  dlblk segment locate db1 10G --json | jq -r '.slots[].address'\n",
        .run = cli_segment_locate,
    },
    {
        .name = "events",
        .arguments = "[OPTION...]",
        .summary = "show what has happened: ejections, takeovers, recoveries, servers",
        .text = "\nThe last some thousand are kept, over restarts of the metadata service too.\n"
                "With --follow and --json each line is one JSON value.\n",
        .examples =
            "  dlblk events --lines 20\n"
            "  dlblk events --follow\n"
            "  dlblk events --json | jq -r '.events[] | select(.kind == \"ejected\").text'\n",
        .run = cli_events,
    },
    {
        .name = "scrub",
        .arguments = "VOLUME [OPTION...]",
        .summary = "read all copies of a volume now, compare and repair them",
        .text =
            "\nServers do this by themselves, each its whole disk once in scrub_days; here it is\n"
            "done at once, as fast as clients leave room for.  What does not match its checksum\n"
            "is repaired from another copy.  Interrupted, it goes on at the servers, and the same\n"
            "command joins it.  Exit status 0: everything was looked at, and is good; 1: not so.\n",
        .examples = "  dlblk scrub db1\n"
                    "  dlblk scrub db1 --no-wait; dlblk volume status db1\n"
                    "  dlblk scrub db1 --json | jq .counts\n",
        .run = cli_scrub,
    },
    {
        .group = "cluster",
        .name = "status",
        .arguments = "[OPTION...]",
        .summary = "show how the cluster is, and what is wrong",
        .text = "\nIts state is that of its worst volume (dlblk volume status --help); with a\n"
                "problem of a server it is degraded at least.  Each problem says what it is,\n"
                "since when, and what to do; recovery shows how much is left, and for how long.\n",
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
