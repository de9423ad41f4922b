# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# functions.sh: what the guest's cases share.  A case sources it first:
#
#     . /vm/functions.sh
#     start_cluster
#     create_volume v 128M
#     device=$(attach v)
#     check "the device is there" test -b "$device"
#     finish 1
#
# check prints a TAP line.  Logs are in /results, which the host gets.
set -uo pipefail

export PATH=/usr/bin DLBLK_META=127.0.0.1:7700
cluster=/var/cluster
results=/results
case_count=0
failed_count=0
mkdir -p $cluster $results

# --- results ---

ok() {
    case_count=$((case_count + 1))
    echo "ok $case_count - $*"
}

not_ok() {
    case_count=$((case_count + 1))
    failed_count=$((failed_count + 1))
    echo "not ok $case_count - $*"
}

# check DESCRIPTION COMMAND...
check() {
    local description=$1 status=0
    shift
    "$@" >/tmp/check.out 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        ok "$description"
    else
        not_ok "$description"
        echo "# $*: status $status"
        tail -n 25 /tmp/check.out | sed 's/^/#   /'
    fi
}

# check_fails STATUS TEXT DESCRIPTION COMMAND...: it must end with STATUS and say TEXT.
check_fails() {
    local status=$1 text=$2 description=$3 seen=0
    shift 3
    "$@" >/tmp/check.out 2>&1 || seen=$?
    if [ $seen -eq "$status" ] && grep -qF -- "$text" /tmp/check.out; then
        ok "$description"
    else
        not_ok "$description"
        echo "# $*: status $seen, expected $status and '$text'"
        tail -n 25 /tmp/check.out | sed 's/^/#   /'
    fi
}

note() {
    echo "# $*"
}

# finish MINIMUM: the last line of a case.
finish() {
    [ $case_count -ge "$1" ] || not_ok "$case_count checks, at least $1"
    cp /run/dlblk/ublk/*.log $results/ 2>/dev/null
    dmesg >$results/dmesg
    if grep -E 'BUG:|WARNING:|INFO: task .* blocked|Oops' $results/dmesg >/tmp/kernel; then
        not_ok "the kernel has nothing to complain about"
        sed 's/^/#   /' /tmp/kernel
    fi
    if [ $failed_count -gt 0 ]; then
        for log in $results/*.log; do
            echo "# --- $log"
            tail -n 25 "$log" | cut -c 1-250 | sed 's/^/#   /'
        done
    fi
    [ $failed_count -eq 0 ]
    exit
}

die() {
    not_ok "$*"
    finish 0
}

# wait_for SECONDS COMMAND...
wait_for() {
    local tries=$(($1 * 20))
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.05
    done
}

# Seconds since the boot, in hundredths.
centiseconds() {
    local up
    read -r up _ </proc/uptime
    echo "${up/./}"
}

milliseconds() {
    echo $((${EPOCHREALTIME//[.,]/} / 1000))
}

# How slow this guest is just now: milliseconds for starting a program of ours five times.  Limits
# on time are multiples of it (the case says which), since the emulation is slow, and slower where
# the host has other things to do.
probe_ms() {
    local begin
    begin=$(milliseconds)
    for _ in 1 2 3 4 5; do
        dlblk-ublk --version >/dev/null
    done
    echo $(($(milliseconds) - begin))
}

# --- the cluster ---

declare -A pids

start_meta() {
    [ -e $cluster/meta ] || dlblk-meta init --dir $cluster/meta >$results/init.log 2>&1 ||
        die "dlblk-meta init: $(cat $results/init.log)"
    dlblk-meta serve --dir $cluster/meta --listen $DLBLK_META >>$results/meta.log 2>&1 &
    pids[meta]=$!
    wait_for 20 dlblk cluster status --timeout 1s || die "the metadata service does not answer"
}

disk_of() {
    local letters=abc
    echo "/dev/vd${letters:$(($1 - 1)):1}"
}

format_server() {
    dlblk-disk format "$(disk_of "$1")" --index "$cluster/index$1" --meta $DLBLK_META --force \
        --journal-size 32M --quiet >>"$results/format.log" 2>&1
}

start_server() {
    dlblk-chunkserver "$(disk_of "$1")" --index "$cluster/index$1" --meta $DLBLK_META --cache 32M \
        --listen "127.0.0.1:770$1" >>"$results/server$1.log" 2>&1 &
    pids[server$1]=$!
}

servers_are_up() {
    [ "$(dlblk server list --json --timeout 1s | jq '[.servers[] | select(.state == "up")] | length')" = "$1" ]
}

start_servers() {
    local i
    for i in 1 2 3; do
        start_server $i
    done
    wait_for 30 servers_are_up 3 || die "the servers are not up"
}

start_cluster() {
    local i jobs=()
    modprobe ublk_drv || die "no ublk in this kernel"
    start_meta
    for i in 1 2 3; do
        format_server $i &
        jobs+=($!)
    done
    for i in "${jobs[@]}"; do
        wait "$i" || die "format: $(cat $results/format.log)"
    done
    start_servers
}

# stop_daemon NAME...: with SIGTERM.
stop_daemon() {
    local name
    for name in "$@"; do
        kill "${pids[$name]}"
        wait "${pids[$name]}"
    done
}

stop_cluster() {
    stop_daemon server1 server2 server3 meta
}

# create_volume NAME SIZE [OPTION...]
create_volume() {
    dlblk volume create "$1" --size "$2" --failure-domain server "${@:3}" >/tmp/create.out 2>&1 ||
        die "volume create: $(cat /tmp/create.out)"
}

# --- devices ---

# attach VOLUME [OPTION...]: prints the device.
attach() {
    dlblk attach "$@" 2>/tmp/attach.err || { cat /tmp/attach.err >&2; return 1; }
}

# device_is VOLUME FILTER: what `dlblk devices` says of it.
device_of() {
    dlblk devices --json | jq -r ".devices[] | select(.volume == \"$1\") | $2"
}

# Kills the server of a volume; prints its pid.
kill_target() {
    local pid
    pid=$(device_of "$1" .pid)
    kill -9 "$pid"
    echo "$pid"
}

# The processes that start a server anew: not those that serve.
supervisors() {
    pidof dlblk-ublk | tr ' ' '\n' | grep -vxF "$(dlblk devices --json | jq -r '.devices[].pid')"
}

# With their supervisors: nobody takes the devices over.
kill_targets_for_good() { # VOLUME...
    local volume
    # shellcheck disable=SC2046
    kill -9 $(supervisors)
    for volume in "$@"; do
        kill_target "$volume" >/dev/null
    done
}

is_state() { # VOLUME STATE
    [ "$(device_of "$1" .state)" = "$2" ]
}

has_new_target() { # VOLUME OLD-PID
    [ "$(device_of "$1" .state)" = attached ] && [ "$(device_of "$1" .pid)" != "$2" ]
}

counter() {
    device_of "$1" ".counters.$2"
}

# No device, no process of a server.
nothing_left() {
    ! find /dev -maxdepth 1 -name 'ublk[bc][0-9]*' | grep . && ! pidof dlblk-ublk
}

# A list of all files with their checksums, and of all names with their modes.
manifest_of() {
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum &&
        find . -not -name lost+found -not -path './lost+found' | sort)
}

# populate DIR: some hundred files of all sizes, directories, links.
populate() {
    local i
    mkdir -p "$1/a/b/c" "$1/small"
    for i in $(seq 40); do
        head -c $((i * 1531)) /dev/urandom >"$1/small/$i"
    done
    for i in 1 2 3; do
        head -c $((i * 3000000 + 17)) /dev/urandom >"$1/a/b/c/large$i"
    done
    ln -s ../small/7 "$1/a/link"
    ln "$1/small/9" "$1/a/hard"
    mv "$1/small/11" "$1/a/moved"
    rm "$1/small/13"
    sync
}
