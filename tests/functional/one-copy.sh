#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A bit has flipped in the only copy that is left.  All else is recovered to another server; the sector
# is an error on both, the cluster's state and the log say so, and writing it anew heals it.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires python3 jq nbdcopy nbdkit

start_cluster --servers 3 --size 256M
create_volume v --size 8M --segment 4M --replicas 2 --min-write 1
sector=100

becomes() {
    local i
    for ((i = 0; i < 600; i++)); do
        ! eval "$1" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    eval "$1"
}
copy_in() {
    serve v
    nbdcopy "$scratch/image" "$uri"
    stop_serving
}
copy_out() {
    local result=0
    serve v -r
    nbdcopy "$uri" "$scratch/out" || result=1
    stop_serving
    return $result
}
# The place (0 or 1) of segment 0's copy: the server's id; a server's id: its name here.
holder() {
    dlblk segment locate v 0 --json | jq ".slots[$1].server_id"
}
name_of() {
    local address
    address=$(dlblk server list --json | jq -r ".servers[] | select(.id == $1) | .address")
    echo "server$((${address##*:} - base_port))"
}
# Which of the sectors of a copy can't be read, one line each.
bad_sectors() {
    seq 0 2047 | slot_reader --sectors v "$1" | grep bad | cut -d' ' -f1
}

head -c 8M /dev/urandom >"$scratch/image"
copy_in
left=$(holder 0)
gone=$(holder 1)
left_name=$(name_of "$left")
local_cluster stop --only "$(name_of "$gone")" >"$scratch/stop.log"
local_cluster stop --only "$left_name" >"$scratch/stop.log"
python3 - "$scratch/image" $sector "$cluster/$left_name.disk" <<'END'
import mmap, sys
sector = int(sys.argv[2])
block = open(sys.argv[1], "rb").read()[sector * 4096:(sector + 1) * 4096]
with open(sys.argv[3], "r+b") as file:
    disk = mmap.mmap(file.fileno(), 0)
    disk[disk.find(block) + 1234] ^= 4
    disk.flush()
END
local_cluster start --only "$left_name" >"$scratch/start.log"
check "the other copy's server is given up" dlblk server remove "$gone" --force

check "all segments have two copies in sync" becomes "dlblk volume status v --json |
    jq -e '.segments_in_sync == 2'"
check "on the servers that are left" eval "! dlblk segment locate v 0 --json |
    jq -e '.slots[] | select(.server_id == $gone)'"
for slot in 0 1; do
    check "one sector of copy $slot can't be read" eval "[ \"\$(bad_sectors $slot)\" = $sector ]"
done
check_fails 1 "Input/output error" "a reader gets an error" copy_out
check "the log says where" becomes "dlblk events --json |
    jq -e '[.events[] | select(.kind == \"bad-sector\" and .volume == \"v\")] | length >= 2'"
check "the cluster is not well" becomes "dlblk cluster status --json |
    jq -e '.problems | join(\" \") | contains(\"sectors are bad\")'"
copy_in
check "written anew it can be read" copy_out
check "and has the right bytes" cmp "$scratch/image" "$scratch/out"
check "nothing is bad any more" becomes "dlblk cluster status --json |
    jq -e '.problems | join(\" \") | contains(\"sectors are bad\") | not'"

finish 11
