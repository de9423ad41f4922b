#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# On top of a device: a partition table, dm-crypt, LVM over two devices; what a device below of
# others is told about detaching.  Flushes: none arrive from fsync by default; FLUSH and FUA do with --volatile-cache,
# and are counted.  Both logical block sizes, several jobs and queues, discards.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster
create_volume v 128M
create_volume small 96M --logical-block 512

# --- partitions, and what lies on them ---

device=$(attach v --queues 2)
printf '%s\n' 'label: gpt' 'size=40MiB' 'size=60MiB' | sfdisk -q "$device" >/tmp/sfdisk.out 2>&1
check "partitions are there" wait_for 5 test -b "${device}p2"
mkfs.ext4 -q "${device}p1"
check "a filesystem on a partition" mount "${device}p1" /mnt
check_fails 4 "is mounted on /mnt" "detaching below it is refused" dlblk detach v
umount /mnt
modprobe dm_crypt
head -c 64 /dev/urandom >/tmp/key
check "dm-crypt on a partition" cryptsetup open --type plain --cipher aes-xts-plain64 \
    --key-size 512 --key-file /tmp/key "${device}p2" secret
dmnode=/dev/$(basename /sys/block/dm-*)
check_fails 4 "is used by the device dm-0" "detaching below it is refused" dlblk detach v
head -c 4M /dev/urandom >/tmp/data
dd if=/tmp/data of="$dmnode" bs=64k oflag=direct status=none
check "read back through it" cmp /tmp/data <(dd if="$dmnode" bs=64k count=64 iflag=direct status=none)
check "encrypted below it" sh -c "! cmp -s /tmp/data ${device}p2"
cryptsetup close secret
dlblk detach v

# --- LVM, without udev ---

mkdir -p /etc/lvm
cat >/etc/lvm/lvm.conf <<'END'
devices {
    use_devicesfile = 0
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
    filter = ["a|^/dev/ublkb|", "r|.*|"]
}
activation {
    udev_sync = 0
    udev_rules = 0
    monitoring = 0
}
backup {
    backup = 0
    archive = 0
}
END
create_volume w 128M
physical=("$(attach v)" "$(attach w)")
for device in "${physical[@]}"; do
    wipefs -qa "$device"
done
check "volumes of LVM" lvm pvcreate -qq "${physical[@]}"
check "a group" lvm vgcreate -qq group "${physical[@]}"
check "striped over two devices" lvm lvcreate -qq -y -i 2 -L 160M -n striped group
mkfs.ext4 -q /dev/group/striped
check "a filesystem on it" mount /dev/group/striped /mnt
populate /mnt
before=$(manifest_of /mnt)
umount /mnt
check_fails 4 "is used by the device dm-0" "detaching below it is refused" dlblk detach w
check "deactivated" lvm vgchange -qq -an group
dlblk detach v
dlblk detach w
attach w >/dev/null
attach v >/dev/null
check "the other way round it is found again" lvm vgchange -qq -ay group
mount /dev/group/striped /mnt
check "and is the same" test "$(manifest_of /mnt)" = "$before"
umount /mnt
check "no damage" e2fsck -fn /dev/group/striped
lvm vgchange -qq -an group
dlblk detach v
dlblk detach w

# --- flushes ---

device=$(attach v)
mkfs.ext4 -qF "$device"
mount "$device" /mnt
for i in 1 2 3 4 5; do
    dd if=/dev/urandom of=/mnt/f$i bs=16k count=3 conv=fsync status=none
done
umount /mnt
check "by default no flush arrives" test "$(counter v flushes) $(counter v fuas)" = "0 0"
dlblk detach v
device=$(attach v --volatile-cache)
check "with --volatile-cache there is a cache" \
    test "$(cat /sys/block/ublkb0/queue/write_cache)" = "write back"
mount "$device" /mnt
for i in 6 7 8 9; do
    dd if=/dev/urandom of=/mnt/f$i bs=16k count=3 conv=fsync status=none
done
umount /mnt
note "flushes: $(counter v flushes), FUA: $(counter v fuas)"
check "FLUSH arrives, for each fsync" test "$(counter v flushes)" -ge 4
check "FUA arrives" test "$(counter v fuas)" -ge 4
check "no damage" e2fsck -fn "$device"
dlblk detach v

# --- load, with verification ---

for volume in v small; do
    device=$(attach $volume --queues 2 --depth 32)
    block=4k
    [ $volume = small ] && block=512
    check "$volume: random, three jobs" fio --name=random --filename="$device" --direct=1 \
        --ioengine=libaio --rw=randwrite --bsrange=$block-64k --blockalign=$block --iodepth=16 \
        --numjobs=3 --size=16M --offset_increment=24M --verify=crc32c --verify_fatal=1 \
        --randrepeat=0 --output=$results/random-$volume
    check "$volume: sequential" fio --name=sequential --filename="$device" --direct=1 \
        --ioengine=libaio --rw=write --bs=256k --iodepth=8 --size=32M --verify=crc32c \
        --verify_fatal=1 --output=$results/sequential-$volume
    check "$volume: overlapping writes of several jobs end" fio --name=overlap \
        --filename="$device" --direct=1 --ioengine=libaio --rw=randrw --bs=$block --iodepth=16 \
        --numjobs=2 --size=256k --io_size=2M --output=$results/overlap-$volume
    blkdiscard "$device"
    check "$volume: discarded, it is zero" cmp -n 33554432 "$device" /dev/zero
    check "$volume: no request has failed" test "$(counter $volume errors)" = 0
    dlblk detach $volume
done
finish 31
