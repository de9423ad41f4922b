#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ext4, xfs and btrfs: made, filled, checked, read again from a cluster that was started again; a
# chunkserver that restarts under a mounted filesystem.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster

check_filesystem() { # TYPE DEVICE
    case $1 in
    ext4) e2fsck -fn "$2" ;;
    xfs) xfs_repair -n "$2" ;;
    btrfs) btrfs check "$2" ;;
    esac
}

declare -A size=([ext4]=96M [xfs]=320M [btrfs]=160M)
declare -A manifest
for type in ext4 xfs btrfs; do
    create_volume $type ${size[$type]}
    device=$(attach $type)
    check "$type: attached" test -b "$device"
    check "$type: made" mkfs.$type -q "$device"
    check "$type: mounted" mount -t $type "$device" /mnt
    populate /mnt
    manifest[$type]=$(manifest_of /mnt)
    check "$type: populated" test "$(wc -l <<<"${manifest[$type]}")" -ge 80
    if [ $type = ext4 ]; then
        # Writes wait for the server, and go on.
        stop_daemon server2
        dd if=/dev/zero of=/mnt/during bs=64k count=64 conv=fsync status=none &
        writer=$!
        sleep 1
        start_server 2
        check "$type: a chunkserver restarts under it" wait $writer
        rm /mnt/during
    fi
    check "$type: synced" sync -f /mnt
    check "$type: unmounted" umount /mnt
    check "$type: no damage" check_filesystem $type "$device"
    check "$type: detached" dlblk detach $type
done

stop_cluster
start_meta
start_servers
for type in ext4 xfs btrfs; do
    device=$(attach $type)
    mount -t $type "$device" /mnt
    check "$type: the same, after the cluster's restart" \
        test "$(manifest_of /mnt)" = "${manifest[$type]}"
    umount /mnt
    check "$type: still no damage" check_filesystem $type "$device"
    dlblk detach $type
done
check "detached cleanly" test "$(dlblk volume list --json | jq '[.volumes[].clean] | all')" = true
finish 32
