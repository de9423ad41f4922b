#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Also on 6.1.
# Each step of attaching fails, or is where the process is killed: no device is left behind, and the
# next attach works.  Fifty times attached and detached, without a leak; the orderly end of a server
# while the device is in use and while it is not; attach.conf after a restart.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster
create_volume v 64M

# --- each step fails ---

spoiled() { # COMMAND: the exit status of an attach whose command the kernel refuses
    LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$1 dlblk attach v >/tmp/out 2>&1
}
declare -A steps=([4]=ADD_DEV [8]=SET_PARAMS [32]=FETCH_REQ [6]=START_DEV)
for command in 4 8 32 6; do
    spoiled $command
    check "${steps[$command]} fails: attach says so" test $? = 1
    check "${steps[$command]} fails: nothing is left" wait_for 10 nothing_left
    check "${steps[$command]} fails: the volume is free" test "$(dlblk volume info v --json | jq .clean)" = true
done

# --- the process is killed at each step ---

for command in 4 8 32 6; do
    LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$command DLBLK_FAIL_KILL=1 \
        dlblk-ublk serve v >/tmp/out 2>&1
    check "killed before ${steps[$command]}" test $? = 137
    check "killed before ${steps[$command]}: the next attach works" test "$(attach v)" = /dev/ublkb0
    dlblk detach v
    check "killed before ${steps[$command]}: nothing is left" wait_for 10 nothing_left
done

# --- fifty times ---

dlblk-ublk serve --null 64M n >/dev/null 2>&1 & # loads what is loaded at the first time
wait_for 10 test -b /dev/ublkb0
dlblk detach n
before=$(awk '/^Slab|^MemFree/ {print $2}' /proc/meminfo | tr '\n' ' ')
failed=0
for _ in $(seq 50); do
    device=$(attach v --depth 16)
    [ "$device" = /dev/ublkb0 ] && dlblk detach v || failed=$((failed + 1))
done
check "fifty times attached, always as the same device, and detached" test $failed = 0
check "nothing is left" wait_for 5 nothing_left
check "no file is left" sh -c '! ls /run/dlblk/ublk | grep -v log'
note "MemFree Slab before: $before after:" "$(awk '/^Slab|^MemFree/ {print $2}' /proc/meminfo | tr '\n' ' ')"
check "no memory is lost" test "$(awk '/^MemFree/ {print $2}' /proc/meminfo)" -gt "$((${before%% *} - 65536))"

# --- SIGTERM ---

device=$(attach v)
pid=$(device_of v .pid)
kill -TERM "$pid"
check "SIGTERM, and nobody uses it: the device goes" wait_for 20 nothing_left
device=$(attach v)
pid=$(device_of v .pid)
exec 9<>"$device"
kill -TERM "$pid"
check "SIGTERM, while it is open: the server ends" wait_for 20 sh -c "! kill -0 $pid"
check "the device waits" wait_for 8 test "$(device_of v .state)" = waiting
check "and the volume was detached cleanly" test "$(dlblk volume info v --json | jq .clean)" = true
head -c 1M /dev/urandom >/tmp/data
dd if=/tmp/data of="$device" bs=64k oflag=direct conv=notrunc status=none &
writer=$!
check "recover" dlblk-ublk recover --background --supervise
check "the write that waited is done" wait $writer
check "it is there" cmp /tmp/data <(dd if="$device" bs=64k count=16 iflag=direct status=none)
exec 9<&-

# --- the line of the systemd unit ---

dlblk detach v
mkdir -p /usr/local
ln -sf /usr/bin /usr/local/sbin
line=$(sed -n 's/^ExecStart=//p' '/vm/dlblk-ublk@.service' | sed 's/%i/v/')
$line >$results/unit.out 2>&1 &
unit=$!
check "ExecStart attaches" wait_for 20 sh -c 'dlblk devices | grep -q attached'
exec 9<>/dev/ublkb0
dd if=/tmp/data of=/dev/ublkb0 bs=64k seek=32 oflag=direct conv=notrunc status=none
kill -9 "$unit"
wait "$unit" 2>/dev/null
$line >>$results/unit.out 2>&1 &
unit=$!
check "ExecStart once more takes the device over" wait_for 40 has_new_target v 0
check "it reads as before" cmp /tmp/data <(dd if=/dev/ublkb0 bs=64k skip=32 count=16 iflag=direct status=none)
exec 9<&-
check "detach ends it" dlblk detach v
wait "$unit"
check "orderly" test $? = 0

# --- somebody else took the volume ---

attach v >/dev/null

pid=$(device_of v .pid)
kill -9 "$(pidof dlblk-ublk | tr ' ' '\n' | grep -v "^$pid\$")" # the supervisor
kill -9 "$pid"
DLBLK_RUN_DIR=/run/other dlblk attach v --id 9 --steal >/dev/null 2>&1
check_fails 1 "attached elsewhere since" "a volume that was taken is not taken back" dlblk-ublk recover v
check "the new owner still has it" dd if=/dev/zero of=/dev/ublkb9 bs=4k count=1 oflag=direct
check "the old device can be removed" dlblk detach v
DLBLK_RUN_DIR=/run/other dlblk detach v
check "nothing is left" wait_for 20 nothing_left

# --- attach.conf ---

create_volume w 64M
mkdir -p /etc/dlblk
printf '%s\n' '# volumes of this machine' 'v --depth 8  # small' '' 'w --id 5' >/etc/dlblk/attach.conf
check "attach-all" dlblk-ublk attach-all
check "both are there, with their options" \
    test "$(device_of v .depth) $(device_of w .device)" = "8 /dev/ublkb5"
check "again it does nothing" dlblk-ublk attach-all
check "two are attached" test "$(dlblk devices --json | jq '.devices | length')" = 2
dlblk detach v
dlblk detach w
finish 46
