#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Also on 6.1.
# Each step of attaching, taking over and detaching fails, or is where the process is killed: no
# device is left behind, and the next one works.  Fifty times attached and detached, ten of them
# after a failure, without a leak; the orderly end of a server while the device is in use and while it
# is not; attach.conf after a reboot, which comes to a cluster that is not there yet.
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

# Root is not limited by the driver, so its answers are made up.
spoiled_with() { # ERRNO
    LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=4 DLBLK_FAIL_RESULT=$1 dlblk attach v
}
check_fails 1 "allows no more ublk devices: ublks_max is" "too many devices" spoiled_with 13
check_fails 1 "Linux 6.1 or later is needed" "a kernel that is too old" spoiled_with 95
check "the volume is free" test "$(dlblk volume info v --json | jq .clean)" = true

# --- the process is killed at each step ---

for command in 4 8 32 6; do
    LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$command DLBLK_FAIL_KILL=1 \
        dlblk-ublk serve v >/tmp/out 2>&1
    check "killed before ${steps[$command]}" test $? = 137
    check "killed before ${steps[$command]}: the next attach works" test "$(attach v)" = /dev/ublkb0
    dlblk detach v
    check "killed before ${steps[$command]}: nothing is left" wait_for 10 nothing_left
done

# --- the steps of a takeover, and of the end ---

attach v >/dev/null
kill_targets_for_good v
steps+=([16]=START_USER_RECOVERY [17]=END_USER_RECOVERY [7]=STOP_DEV [2]=GET_DEV_INFO)
for command in 2 16 17; do
    LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$command \
        dlblk-ublk recover v --background >/tmp/out 2>&1
    check "${steps[$command]} fails: the takeover says so" test $? != 0
    check "${steps[$command]} fails: the device waits for another one" wait_for 10 is_state v waiting
    LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$command DLBLK_FAIL_KILL=1 \
        dlblk-ublk recover v >/tmp/out 2>&1
    check "killed before ${steps[$command]}" test $? = 137
    check "killed before ${steps[$command]}: the device waits" wait_for 10 is_state v waiting
done
check "another one takes it over" dlblk-ublk recover v --background
check "and serves it" timeout 60 dd if=/dev/zero of=/dev/ublkb0 bs=64k count=1 oflag=direct
LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=7 dlblk detach v >/tmp/out 2>&1
check "STOP_DEV fails: detach says so" test $? = 1
check "STOP_DEV fails: the device is as before" is_state v attached
LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=7 DLBLK_FAIL_KILL=1 dlblk detach v
check "killed before STOP_DEV: the device is as before" is_state v attached
check "detach" dlblk detach v
check "nothing is left" wait_for 10 nothing_left
delete=20 # DEL_DEV_ASYNC
[[ $(uname -r) == 6.1.* ]] && delete=5
LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$delete DLBLK_FAIL_RESULT=5 \
    dlblk attach v >/dev/null 2>&1
check "DEL_DEV fails in the server: detach does it" dlblk detach v
check "nothing is left" wait_for 10 nothing_left
LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=$delete DLBLK_FAIL_KILL=1 \
    dlblk attach v >/dev/null 2>&1
check "killed before DEL_DEV: detach does it" dlblk detach v
check "nothing is left" wait_for 10 nothing_left

# Who can't say what it knows is taken for one of the first: the plain numbers of commands.
LD_PRELOAD=/usr/bin/libfail_control.so DLBLK_FAIL_COMMAND=19 dlblk attach v >/dev/null 2>&1
check "GET_FEATURES fails: the device can be used" \
    timeout 60 dd if=/dev/zero of=/dev/ublkb0 bs=64k count=4 oflag=direct
check "detach" dlblk detach v
check "nothing is left" wait_for 10 nothing_left

# --- fifty times ---

dlblk-ublk serve --null 64M n >/dev/null 2>&1 & # loads what is loaded at the first time
wait_for 10 test -b /dev/ublkb0
dlblk detach n
# Connections of the daemons (their databases open and close files as they like); kB of memory.
daemon_files() {
    local name count=0
    for name in "${!pids[@]}"; do
        count=$((count + $(find "/proc/${pids[$name]}/fd" -mindepth 1 -lname 'socket:*' | wc -l)))
    done
    echo $count
}
free_memory() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    sleep 0.5
    awk '/^MemAvailable/ {print $2}' /proc/meminfo
}
memory_of_all() {
    local name
    for name in "${!pids[@]}"; do
        echo "$name $(awk '/^RssAnon/ {print $2}' "/proc/${pids[$name]}/status")"
    done
    awk '/^(Slab|SUnreclaim|Shmem|AnonPages|Cached|MemFree|PageTables|KernelStack|Percpu|Mapped)/ {print $1 $2}' /proc/meminfo
}
files=$(daemon_files)
memory=$(free_memory)
note "before: $(memory_of_all | tr '\n' ' ')"
all_files=$(awk '{print $1}' /proc/sys/fs/file-nr)
failed=0
for i in $(seq 50); do
    # Every fifth time it fails first, each time elsewhere.
    [ $((i % 5)) != 0 ] || spoiled "$(cut -d ' ' -f $((i / 5 % 4 + 1)) <<<'4 8 32 6')"
    device=$(attach v --depth 16)
    [ "$device" = /dev/ublkb0 ] && dlblk detach v || failed=$((failed + 1))
done
check "fifty times attached, always as the same device, and detached" test $failed = 0
check "nothing is left" wait_for 5 nothing_left
check "no file is left" sh -c '! ls /run/dlblk/ublk | grep -v log'
files_same() {
    [ "$(daemon_files)" -le $((files + 4)) ]
}
check "the daemons have no more connections: $files before, $(daemon_files) after" wait_for 10 files_same
after=$(free_memory)
files_of_all() {
    [ "$(awk '{print $1}' /proc/sys/fs/file-nr)" -le $((all_files + 50)) ]
}
check "the kernel has no more open files: $all_files before, $(awk '{print $1}' \
    /proc/sys/fs/file-nr) after" wait_for 10 files_of_all
note "after: $(memory_of_all | tr '\n' ' ')"
check "no memory is lost: $memory kB before, $after kB after" test "$after" -gt $((memory - 32768))

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
check "the device waits" wait_for 8 is_state v waiting
check "and the volume was detached cleanly" test "$(dlblk volume info v --json | jq .clean)" = true
head -c 1M /dev/urandom >/tmp/data
dd if=/tmp/data of="$device" bs=64k oflag=direct conv=notrunc status=none &
writer=$!
check "recover" dlblk-ublk recover
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
kill_targets_for_good v
DLBLK_RUN_DIR=/run/other dlblk attach v --id 9 --steal >/dev/null 2>&1
check_fails 4 "attached elsewhere since" "a volume that was taken is not taken back" dlblk-ublk recover v
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
dd if=/tmp/data of=/dev/ublkb5 bs=64k seek=7 oflag=direct status=none

# What a reboot leaves: volumes whose owners never detached them.
kill_targets_for_good v w
dlblk detach v
dlblk detach w
rm -rf /run/dlblk
modprobe -r ublk_drv
for name in "${!pids[@]}"; do
    kill -9 "${pids[$name]}"
    wait "${pids[$name]}"
done 2>/dev/null
modprobe ublk_drv
dlblk-ublk attach-all --timeout 1s >/tmp/out 2>&1
check "attach-all after a reboot, without a cluster: fails" test $? = 1
check "says for which volumes" test "$(grep -c 'could not be attached' /tmp/out)" = 2
dlblk-ublk attach-all --timeout 60s >/tmp/out 2>&1 &
job=$!
sleep 2
start_meta
start_servers
check "attach-all waits for the cluster" wait $job
check "both are there again, with their options" \
    test "$(device_of v .depth) $(device_of w .device)" = "8 /dev/ublkb5"
check "and what was written" \
    cmp /tmp/data <(dd if=/dev/ublkb5 bs=64k skip=7 count=16 iflag=direct status=none)
dlblk detach v
dlblk detach w
check "nothing is left" wait_for 10 nothing_left
finish 85
