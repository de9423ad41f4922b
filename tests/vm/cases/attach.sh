#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Also on 6.1.
# A volume is attached, used and detached: what the device is like, who may not detach it, what is
# told when it can't be attached, and what stays behind: nothing.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster
create_volume v 128M
create_volume small 64M --logical-block 512

# --- the device ---

check "attach prints the device" test "$(attach v)" = /dev/ublkb0
check "it has the volume's size" test "$(blockdev --getsize64 /dev/ublkb0)" = 134217728
queue=/sys/block/ublkb0/queue
check "its logical block is 4096" test "$(cat $queue/logical_block_size)" = 4096
check "its physical block is 4096" test "$(cat $queue/physical_block_size)" = 4096
check "a request is at most 512 KiB" test "$(cat $queue/max_sectors_kb)" = 512
check "discards are possible, of 4 KiB" test "$(cat $queue/discard_granularity)" = 4096
check "zeroes can be written without sending them" test "$(cat $queue/write_zeroes_max_bytes)" -gt 0
check "there is no cache to be flushed" test "$(cat $queue/write_cache)" = "write through"
check "users have the depth that was asked for" test "$(cat $queue/nr_requests)" = 128

attach small --queues 2 --depth 16 --id 7 >/dev/null
check "a second volume, with an id" test -b /dev/ublkb7
check "its logical block is 512" test "$(cat /sys/block/ublkb7/queue/logical_block_size)" = 512
check "it has two queues" test "$(echo /sys/block/ublkb7/mq/*/ | wc -w)" = 2
check "its depth" test "$(cat /sys/block/ublkb7/queue/nr_requests)" = 16
check "devices lists both" test "$(dlblk devices --json | jq '[.devices[] | select(.state == "attached")] | length')" = 2
dlblk devices | sed 's/^/# /'

# --- threads and memory ---

pid=$(device_of v .pid)
check "one thread serves it" test "$(ls /proc/"$pid"/task | wc -l)" = 1
note "threads: $(cat /proc/"$pid"/task/*/comm | tr "\n" " "), $(grep VmRSS /proc/"$pid"/status)"
check "idle it takes at most 16 MiB" test "$(awk '/RssAnon/ {print $2}' /proc/"$pid"/status)" -le 16384

# --- data ---

head -c 8M /dev/urandom >/tmp/data
dd if=/tmp/data of=/dev/ublkb0 bs=256k oflag=direct seek=17 status=none
check "what was written is read" cmp /tmp/data <(dd if=/dev/ublkb0 bs=256k iflag=direct skip=17 count=32 status=none)
dd if=/tmp/data of=/dev/ublkb7 bs=512 seek=4097 count=100 oflag=direct status=none
check "also in blocks of 512" cmp <(head -c 51200 /tmp/data) \
    <(dd if=/dev/ublkb7 bs=512 skip=4097 count=100 iflag=direct status=none)
blkdiscard -o 4456448 -l 1048576 /dev/ublkb0
check "a discarded range reads as zeroes" cmp <(head -c 1M /dev/zero) \
    <(dd if=/dev/ublkb0 bs=256k skip=17 count=4 iflag=direct status=none)
check "what lies behind it is there" cmp <(tail -c +1048577 /tmp/data) \
    <(dd if=/dev/ublkb0 bs=256k skip=21 count=28 iflag=direct status=none)
check "the discard arrived as one" test "$(counter v discards)" -ge 1
blkdiscard -z -o 6M -l 1M /dev/ublkb0
check "zeroes are written" cmp <(head -c 1M /dev/zero) \
    <(dd if=/dev/ublkb0 bs=1M skip=6 count=1 iflag=direct status=none)
check "as WRITE_ZEROES" test "$(counter v write_zeroes)" -ge 1

# --- refusals ---

create_volume x 64M
check_fails 4 "attached to this machine already" "attaching again is refused" dlblk attach v
check_fails 3 "nosuch" "an unknown volume" dlblk attach nosuch
check_fails 6 "exists already" "an id that is taken" dlblk attach --id 7 x
check_fails 3 "is not attached" "detaching what is not attached" dlblk detach nosuch
begin=$(centiseconds)
check_fails 5 "cannot be reached" "a metadata service that is not there" \
    dlblk attach x --meta 127.0.0.1:7999 --timeout 300ms
check "no longer than --timeout" test $(($(centiseconds) - begin)) -lt 800
exec 9</dev/ublkb0
check_fails 4 "is open by process" "detaching while it is open" dlblk detach v
exec 9<&-
mkfs.ext4 -q /dev/ublkb0
mount /dev/ublkb0 /mnt
check_fails 4 "is mounted on /mnt" "detaching while it is mounted" dlblk detach /dev/ublkb0
umount /mnt
create_volume w 64M
DLBLK_RUN_DIR=/run/other dlblk attach w >/dev/null 2>&1
check_fails 4 "--steal" "attached elsewhere: what to do" dlblk attach w
said=$(cat /tmp/check.out)
check "by whom, and since when" grep -E "guest [0-9]+ dlblk-ublk.*, for [0-9]" <<<"$said"
note "$said"
DLBLK_RUN_DIR=/run/other dlblk detach w
check_fails 1 "no permission to open /dev/ublk-control" "not as root" \
    setpriv --reuid 65534 --regid 65534 --clear-groups dlblk attach x

# --- several at once ---

(attach w >/tmp/w.out) &
job=$!
attach x >/tmp/x.out
check "two volumes at the same time" wait $job
check "they are two devices" test "$(sort -u /tmp/w.out /tmp/x.out | wc -l)" = 2
dlblk detach x
dlblk detach w
echo 2 >/proc/sys/kernel/io_uring_disabled 2>/dev/null &&
    check_fails 1 "io_uring_disabled" "io_uring is switched off" dlblk attach x
echo 0 >/proc/sys/kernel/io_uring_disabled 2>/dev/null

# --- read-only ---

check "detach" dlblk detach small
device=$(attach small --read-only)
check "a read-only device" test "$(blockdev --getro "$device")" = 1
check "can be read" cmp <(head -c 51200 /tmp/data) \
    <(dd if="$device" bs=512 skip=4097 count=100 iflag=direct status=none)
check "and not written" sh -c "! dd if=/dev/zero of=$device bs=512 count=1 oflag=direct 2>/dev/null"

# --- the end ---

check "detach by volume" dlblk detach small
check "detach by device" dlblk detach /dev/ublkb0
check "nothing is left" wait_for 10 nothing_left
check "no state is left" sh -c '! ls /run/dlblk/ublk | grep -v log'
check "it was detached cleanly" test "$(dlblk volume info v --json | jq .clean)" = true
modprobe -r ublk_drv
check_fails 1 "without it: dlblk attach --nbd" "without ublk: what to do instead" dlblk attach v
check_fails 1 "is too old for ublk: 6.1" "a kernel that is too old" \
    setarch --uname-2.6 dlblk attach v
mount -t tmpfs none /lib/modules
check_fails 1 "nbdkit-datenlord-plugin(1)" "and without nbd" dlblk attach v
check "there are no devices" test "$(dlblk devices --json | jq '.devices | length')" = 0
finish 49
