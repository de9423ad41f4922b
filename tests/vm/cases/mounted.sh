#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Also on 6.1.
# Mounted filesystems at work on two devices while the servers of both are killed, again and again;
# then with their supervisors, and `dlblk-ublk recover` takes both over at once.  No write fails,
# the kernel reports no error, each file has the content that was written.  At last devices are taken
# away under their filesystems by force, with and without a server: nobody waits for the filesystem,
# the volume is free, what was synced is there.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster
create_volume v 128M
create_volume w 128M --logical-block 512

declare -A device mountpoint=([v]=/mnt [w]=/mnt2) worker
mkdir -p /mnt2
for volume in v w; do
    device[$volume]=$(attach $volume --depth 16)
    mkfs.ext4 -q "${device[$volume]}"
    check "$volume: mounted" mount "${device[$volume]}" "${mountpoint[$volume]}"
done

# Each file is synced, and then named by what it contains; the oldest are deleted.
work() { # DIR
    local i=0 sum
    until [ -e /tmp/stop ]; do
        i=$((i + 1))
        head -c $((RANDOM * 8 + 1)) /dev/urandom >/tmp/work-${1##*/} || return 1
        sum=$(sha256sum </tmp/work-${1##*/}) || return 1
        dd if=/tmp/work-${1##*/} of="$1/new" bs=64k conv=fsync status=none || return 1
        mv "$1/new" "$1/$i.${sum%% *}" || return 1
        [ $i -le 60 ] || rm "$1/$((i - 60))".* || return 1
        echo $i >"/tmp/done-${1##*/}"
    done
}
done_by() { # VOLUME
    cat "/tmp/done-$(basename "${mountpoint[$1]}")"
}
goes_on() { # VOLUME DONE
    kill -0 "${worker[$1]}" && [ "$(done_by "$1")" -gt "$2" ]
}
same() { # DIR: each file has the content that its name says
    local file sum
    for file in "$1"/*.*; do
        sum=$(sha256sum <"$file")
        [ "${file##*.}" = "${sum%% *}" ] || { echo "$file"; return 1; }
    done
}

for volume in v w; do
    work "${mountpoint[$volume]}" >"$results/work-$volume" 2>&1 &
    worker[$volume]=$!
    echo 0 >"/tmp/done-$(basename "${mountpoint[$volume]}")"
done
for volume in v w; do
    wait_for 30 goes_on $volume 5 || die "$volume: no work is done"
done

for round in 1 2 3; do
    declare -A before old
    for volume in v w; do
        before[$volume]=$(done_by $volume)
        old[$volume]=$(kill_target $volume)
    done
    for volume in v w; do
        check "round $round: another server for $volume" wait_for 60 has_new_target $volume "${old[$volume]}"
        check "round $round: work goes on" wait_for 60 goes_on $volume $((before[$volume] + 3))
    done
done

kill_targets_for_good v w
check "nobody serves v" wait_for 10 is_state v waiting
check "nobody serves w" wait_for 10 is_state w waiting
for volume in v w; do
    before[$volume]=$(done_by $volume)
done
check "recover takes over all of them" dlblk-ublk recover
check "it names both" test "$(grep ^/dev /tmp/check.out | sort | tr '\n' ' ')" = "/dev/ublkb0 /dev/ublkb1 "
for volume in v w; do
    check "$volume is served again" is_state $volume attached
    check "and work goes on" wait_for 60 goes_on $volume $((before[$volume] + 3))
done
old[v]=$(kill_target v)
check "with a supervisor: another server" wait_for 60 has_new_target v "${old[v]}"

touch /tmp/stop
for volume in v w; do
    check "$volume: no write has failed, of $(done_by $volume)" wait "${worker[$volume]}"
done
check "the kernel saw no error" sh -c '! dmesg | grep -iE "i/o error|ext4-fs (error|warning)"'
check "each file is what was written" same /mnt
check "v: unmounted" umount /mnt
check "v: no damage" e2fsck -fn "${device[v]}"
check "v: mounted again" mount "${device[v]}" /mnt
check "each file is what was written, on the device" same /mnt
check "no request has failed" test "$(counter v errors) $(counter w errors)" = "0 0"
umount /mnt

# --- by force ---

files=$(ls /mnt2)
check_fails 4 "is mounted on /mnt2" "w: detaching while it is mounted" dlblk detach w
sync
begin=$(centiseconds)
check_fails 0 "is mounted on /mnt2: the kernel keeps its number" "by force: done, and what stays" \
    dlblk detach --force w
note "that took $(($(centiseconds) - begin))0 ms"
check "the device is gone" test ! -b "${device[w]}"
if [[ $(uname -r) != 6.1.* ]]; then
    check "also the one that its server had" test ! -e "${device[w]/ublkb/ublkc}"
fi
check "its users get errors" sh -c '! dd if=/dev/zero of=/mnt2/more bs=64k count=8 conv=fsync'
check "the volume is free" test "$(dlblk volume info w --json | jq .clean)" = true
device[x]=$(attach w)
check "it gets another device" test "${device[x]}" != "${device[w]}"
dlblk detach w
umount /mnt2
device[x]=$(attach w --id "${device[w]#/dev/ublkb}")
check "the old one's number is free, too" test "${device[x]}" = "${device[w]}"
mount "${device[w]}" /mnt2
check "what was synced is there" test "$(ls /mnt2)" = "$files"
check "with its content" same /mnt2

kill_targets_for_good v w
dlblk detach v
check_fails 0 "is mounted on /mnt2: the kernel keeps its number" "by force, without a server" \
    dlblk detach --force w
check "the device is gone" test ! -b "${device[w]}"
umount /mnt2
attach w >/dev/null # Linux 6.1 forgets the old one only now
# Counts of free blocks in ext4's superblock are right only after an unmount.
check "it can be mounted" mount /dev/ublkb0 /mnt2
check "with all content" same /mnt2
umount /mnt2
check "no damage" e2fsck -fn /dev/ublkb0
check "the volume is detached again" dlblk detach w
check "nothing is left" wait_for 10 nothing_left
finish 48
