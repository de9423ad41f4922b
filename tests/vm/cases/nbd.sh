#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Without ublk: the nbdkit plugin and the kernel's nbd client carry a filesystem.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster
create_volume v 96M
check_fails 1 "modprobe nbd" "without the kernel's client: what to do" dlblk attach v --nbd
modprobe nbd nbds_max=2 max_part=4
device=$(attach v --nbd)
check "attach --nbd prints the device" test "$device" = /dev/nbd0
check "it has the volume's size" test "$(blockdev --getsize64 /dev/nbd0)" = 100663296
check "mkfs" mkfs.ext4 -q "$device"
check "mount" mount "$device" /mnt
populate /mnt
before=$(manifest_of /mnt)
check_fails 4 "mounted" "detaching while it is mounted" dlblk detach v
check "umount" umount /mnt
check "no damage" e2fsck -fn "$device"
check "detach" dlblk detach v
check "detached cleanly" wait_for 5 sh -c "dlblk volume info v --json | jq -e .clean"
device=$(attach v --nbd --read-only)
mount -o ro,noload "$device" /mnt
check "the same through a new connection, read-only" test "$(manifest_of /mnt)" = "$before"
umount /mnt
check "detach by device" dlblk detach "$device"
check_fails 3 "does not exist" "an unknown volume" sh -c 'dlblk volume info nosuch'
finish 12
