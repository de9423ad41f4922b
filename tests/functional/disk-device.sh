#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A block device as a disk: formatted, inspected, checked; not taken from a filesystem, from whoever has
# it mounted, or from a process that has it open; its index is not put into /dev.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"
requires_root
requires losetup mkfs.ext4 mount blkid
losetup -f >/dev/null 2>&1 || skip "no loop device is free"

cluster_id=6f2c1e1a-8d0b-4a0e-9a53-0f2f0a4f6c11
index=$scratch/index
truncate -s 200M "$scratch/image"
device=$(losetup --find --show "$scratch/image")
cleanup_fn losetup -d "$device"

format() {
    dlblk-disk format "$device" --meta 127.0.0.1:1 --cluster-id $cluster_id --index "$index" "$@"
}

mkfs.ext4 -q "$device"
check_fails 5 "ext4" "a filesystem is not overwritten" format
check "the filesystem is still there" blkid -t TYPE=ext4 "$device"
mkdir "$scratch/mounted"
mount "$device" "$scratch/mounted"
check_fails 4 "mounted" "a mounted device is refused, also with --force" format --force
umount "$scratch/mounted"
check "with --force the filesystem goes" format --force --quiet
check_fails 4 "$cluster_id" "a disk of this cluster is not formatted again" format
check "inspect calls it a block device" grep -q "block device" \
    <(dlblk-disk inspect "$device" --index "$index")
check "inspect --json is JSON, nothing is damaged" python3 -c '
import json, sys
found = json.load(sys.stdin)
assert found["device"] and not found["damaged"], found
assert [copy["valid"] for copy in found["superblocks"]] == [True, True], found
' < <(dlblk-disk inspect "$device" --index "$index" --json)
check "check finds nothing" dlblk-disk check "$device" --index "$index"

# Somebody has it: exclusively, as a server would.
python3 -c '
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)
open(sys.argv[2], "w").close()
time.sleep(60)
' "$device" "$scratch/held" &
holder=$!
cleanup_fn kill $holder
until [ -e "$scratch/held" ]; do sleep 0.1; done
check_fails 4 "in use" "check refuses a device that is in use" \
    dlblk-disk check "$device" --index "$index"
check "inspect does not" dlblk-disk inspect "$device" --index "$index"
kill $holder
wait $holder 2>/dev/null || true

# One copy of the superblock, then both.
dd if=/dev/urandom of="$device" bs=4096 count=1 conv=notrunc,fsync status=none
check_fails 3 "NOT VALID" "a damaged copy of the superblock is shown" \
    dlblk-disk inspect "$device" --index "$index"
check "the other one is enough" dlblk-disk check "$device" --index "$index"
dd if=/dev/urandom of="$device" bs=4096 seek=$((200 * 256 - 1)) count=1 conv=notrunc,fsync status=none
check_fails 3 "NOT VALID" "so are two" dlblk-disk inspect "$device" --index "$index"
check_fails 1 "superblock" "without one the disk is refused" \
    dlblk-disk check "$device" --index "$index"

check "the index of a device is not in /dev by default" grep -q "/var/lib/dlblk/dev-sdb.index" \
    <(dlblk-disk format --help)
finish 15
