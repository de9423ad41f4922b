#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Full disks.  First of one server of three: users notice nothing, its copies of what is new are
# given up, and come back when there is room.  Then of all: what is new gets ENOSPC and changes
# nothing, what is overwritten, discarded or deleted goes on, and all is well when there is room.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires fio nbdkit nbdcopy nbdinfo jq

# wait_until SECONDS JQ COMMAND...: what the command prints as JSON becomes so.
wait_until() {
    local end=$((SECONDS + $1)) filter=$2
    shift 2
    until "$@" --json >"$scratch/state.json" && jq -e "$filter" "$scratch/state.json" >/dev/null; do
        if [ $SECONDS -ge $end ]; then
            cat "$scratch/state.json"
            return 1
        fi
        sleep 0.1
    done
}
is() {
    local filter=$1
    shift
    wait_until 0 "$filter" "$@"
}
segments_in_sync() {
    dlblk volume status "$1" --json | jq .segments_in_sync
}

# touch_all MEGABYTES: a sector of each segment of 4 MiB, so that all of them are allocated.
touch_all() {
    fio --name=touch --ioengine=nbd --uri="$uri" --rw=write:4092k --bs=4k --size="$1"m --thread \
        --output="$scratch/fio.log"
}
check_slots() {
    local slot
    for slot in 0 1 2; do
        slot_reader "$1" $slot >"$scratch/slot" && cmp "$2" "$scratch/slot" || return 1
    done
}
no_space_in() {
    ! "$@" >"$scratch/full.out" 2>&1 && grep -i "no space" "$scratch/full.out"
}
check_disks() {
    local disk
    for disk in "$cluster"/*.disk; do
        dlblk-disk check "$disk" || return 1
    done
}

# --- one of three ---

start_cluster --servers 2 --size 384M
small_disk=$cluster/server3.disk
dlblk-disk format "$small_disk" --size 128M --meta "$DLBLK_META" --quiet
dlblk-chunkserver "$small_disk" --meta "$DLBLK_META" --listen 127.0.0.1:$((base_port + 3)) \
    >"$cluster/server3.log" 2>&1 &
small_pid=$!
cleanup_fn kill -9 $small_pid
check "three servers, a small one among them" wait_until 20 '.servers_up == 3' dlblk cluster status
create_volume v --size 160M --segment 4M
create_volume spare --size 24M --segment 4M
head -c 160M /dev/urandom >"$scratch/image"
head -c 24M /dev/urandom >"$scratch/spare-image"
serve spare
nbdcopy "$scratch/spare-image" "$uri"
stop_serving
serve v
check "all segments have a copy on each server" touch_all 160
check "more is written than the small one has room for" nbdcopy "$scratch/image" "$uri"
check "all of it reads as it was written" nbdcopy "$uri" "$scratch/out"
check "the same" cmp "$scratch/image" "$scratch/out"
check "the log says which server, and why" \
    is 'any(.events[]; .kind == "ejected" and (.text | contains("server 3") and contains("full")))' \
    dlblk events
check "the server is full" wait_until 5 '.servers[] | select(.id == 3) | .problem | contains("full")' \
    dlblk server list
check "the cluster is degraded, and says what to do" wait_until 5 '.state == "degraded" and
    any(.problems[]; contains("server 3") and contains("full") and contains("add chunkservers"))' \
    dlblk cluster status
check "so is the volume" is '.state == "degraded" and .segments_in_sync < .segments and
    any(.problems[]; contains("fewer copies than 3") and contains("no room on server 3"))' dlblk volume status v
in_sync=$(segments_in_sync v)
at_least 10 "$in_sync" "segments that have all their copies"
shows_who_is_full() {
    local at
    for ((at = 0; at < 160; at += 4)); do
        dlblk segment locate v ${at}M --json
    done | jq -s -e 'any(.[].slots[]; .server_id == 3 and .state == "ejected" and
        (.problem | contains("full")))'
}
check "the segment shows whose copy is missing" shows_who_is_full
stop_serving

# What it has is overwritten, again and again, without another copy being given up.
head -c 24M /dev/urandom >"$scratch/spare-image"
overwrite_spare() {
    local i
    serve spare
    for i in 1 2 3; do nbdcopy "$scratch/spare-image" "$uri" || return 1; done
    nbdcopy "$uri" "$scratch/out" && cmp "$scratch/spare-image" "$scratch/out" || return 1
    stop_serving
}
check "overwrites go on" overwrite_spare
check "on all copies" check_slots spare "$scratch/spare-image"
check "no other copy is given up" \
    test "$(segments_in_sync spare) $(segments_in_sync v)" = "6 $in_sync"

# Half of the volume is discarded, and another one deleted.
discard() {
    fio --name=trim --ioengine=nbd --uri="$uri" --rw=trim --bs=1m --size=64m --thread \
        --output="$scratch/fio.log"
}
serve v
check "a discard" discard
dd if=/dev/zero of="$scratch/image" bs=1M count=64 conv=notrunc status=none
stop_serving
check "a deletion" dlblk volume delete spare
check "now there is room, and all copies are in sync" wait_until 60 \
    '.state == "healthy" and .segments_in_sync == 40' dlblk volume status v
check "the cluster is healthy" wait_until 20 '.state == "healthy" and .problems == []' dlblk cluster status
check "each copy is right" check_slots v "$scratch/image"
kill $small_pid
check "the small server ends in order" wait $small_pid
check "the others too" local_cluster stop
check "allocation maps and leaves agree" check_disks

# --- all of them ---

rm -rf "$cluster"
cluster=$scratch/all
start_cluster --size 96M
create_volume acks --size 72M --segment 4M
create_volume spare --size 40M --segment 4M
create_volume late --size 40M --segment 4M
head -c 40M /dev/urandom >"$scratch/spare-image"
serve spare
nbdcopy "$scratch/spare-image" "$uri"
stop_serving
serve acks
touch_all 72
stop_serving
writer() {
    ack_writer write acks "$scratch/acks" --depth 16 "$@"
}
field() {
    sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" "$scratch/check.out"
}
check "written until 40 writes find no space" writer --no-space 40 --seconds 120
at_least 40 "$(sed -n 's/^no space \([0-9]*\)$/\1/p' "$scratch/check.out")" "writes without space"
check "all that was acknowledged is there, what was not is as it was, alike in each copy" \
    ack_writer look acks "$scratch/acks"
at_least 1000 "$(field acknowledged)" "writes acknowledged"
at_least 40 "$(field unfinished)" "writes refused"
check "the cluster says which servers are full, and what to do" wait_until 5 '
    any(.problems[]; contains("server 1") and contains("full") and contains("add chunkservers")) and
    any(.problems[]; contains("server 2") and contains("full")) and
    any(.problems[]; contains("server 3") and contains("full"))' dlblk cluster status
check "nothing is blocked" is '.segments_blocked == 0' dlblk cluster status
serve late
check "a new volume gets the error that users know" no_space_in nbdcopy "$scratch/spare-image" "$uri"
stop_serving
head -c 40M /dev/urandom >"$scratch/spare-image"
overwrite_all() {
    serve spare
    nbdcopy "$scratch/spare-image" "$uri" && nbdcopy "$uri" "$scratch/out" &&
        cmp "$scratch/spare-image" "$scratch/out" || return 1
    stop_serving
}
check "overwrites go on" overwrite_all
check "on all copies" check_slots spare "$scratch/spare-image"

# Who has missed nothing but overwrites needs no room to come back.
check "kill -9 of one" local_cluster kill --only server2
head -c 40M /dev/urandom >"$scratch/spare-image"
check "overwrites go on without it" overwrite_all
check "it starts" local_cluster start --only server2
check "its copies come back" wait_until 60 '.segments_in_sync == 10' dlblk volume status spare
check "and are right" check_slots spare "$scratch/spare-image"

check "kill -9 of all" local_cluster kill
check "they start with their disks full" local_cluster start
check "everything is there still" ack_writer look acks "$scratch/acks"
check "the other volume too" check_slots spare "$scratch/spare-image"
serve spare
check "a discard" fio --name=trim --ioengine=nbd --uri="$uri" --rw=trim --bs=1m --size=8m --thread \
    --output="$scratch/fio.log"
stop_serving
check "makes room" wait_until 20 'all(.servers[]; .problem == "")' dlblk server list
check "a deletion too" dlblk volume delete spare
check "of all it had" wait_until 30 'all(.servers[]; .used_bytes < 60000000)' dlblk server list
check "what was not done is done now" ack_writer check acks "$scratch/acks" --slots 3
check "and writes go on" writer --seconds 3 --seed 2
check "all is healthy" wait_until 60 '.state == "healthy" and .problems == []' dlblk cluster status
check "all copies are in sync" wait_until 20 '.state == "healthy" and .segments_in_sync == 18' dlblk volume status acks
check "and right" ack_writer check acks "$scratch/acks" --slots 3
check "the daemons end in order" local_cluster stop
check "allocation maps and leaves agree" check_disks
finish 50
