#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Frames that come a second time, byte by byte, change nothing: not what the same owner wrote later,
# not what the next owner wrote or trimmed, and they bring no deleted volume back.  Between clients and
# one server stands a proxy that records; what it recorded is sent to that server again.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires python3 jq nbdkit nbdcopy

start_cluster --size 256M
proxy_port=$((base_port + 9))
mkdir "$scratch/recorded"
python3 "$source_dir/tests/functional/replay_frames.py" record $proxy_port $((base_port + 1)) \
    "$scratch/recorded" >"$scratch/proxy.out" 2>"$scratch/proxy.log" &
cleanup_fn kill $!
until grep -q listening "$scratch/proxy.out"; do sleep 0.02; done
local_cluster stop --only server1
dlblk-chunkserver "$cluster/server1.disk" --meta "$DLBLK_META" --listen 127.0.0.1:$((base_port + 1)) \
    --advertise 127.0.0.1:$proxy_port >>"$cluster/server1.log" 2>&1 &
server1_pid=$!
cleanup_fn kill -9 $server1_pid
until dlblk server list --json | jq -e ".servers[] | select(.address == \"127.0.0.1:$proxy_port\")" \
    >"$scratch/server"; do
    kill -0 $server1_pid
    sleep 0.05
done

field() {
    sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" "$scratch/check.out"
}

replay() {
    python3 "$source_dir/tests/functional/replay_frames.py" replay $((base_port + 1)) "$@"
}

# write_image NAME: an owner of its own, by 256 KiB.
write_image() {
    serve v
    nbdcopy --request-size=262144 "$scratch/$1" "$uri"
    stop_serving
}

slots_hold() {
    local slot
    for slot in 0 1 2; do
        slot_reader v $slot >"$scratch/slot"
        cmp "$scratch/$1" "$scratch/slot" || return 1
    done
}

create_volume v --size 16M --segment 4M
head -c 16M /dev/urandom >"$scratch/first"
write_image first
mapfile -t first_owner < <(ls -d "$scratch/recorded"/*)

check "the first owner's frames, while nobody else has written" replay "${first_owner[@]}"
at_least 60 "$(field writes)" "writes sent again"
check "each is answered" test "$(field answers)" = "$(field writes)"
check "every copy is as it was" slots_hold first

# The second owner writes the first half anew and trims the other.
head -c 8M /dev/urandom >"$scratch/second"
truncate -s 16M "$scratch/second"
write_image second
check "what the second owner wrote is there" slots_hold second
check "the first owner's frames, after the second" replay "${first_owner[@]}"
at_least 60 "$(field writes)" "writes sent again"
check "every copy is as the second owner left it: nothing is older, nothing comes back" \
    slots_hold second

# And with the third at work: it must not notice.
serve v
nbdcopy --request-size=262144 "$scratch/first" "$uri" &
copy_pid=$!
check "the first owner's frames, while the third writes" replay "${first_owner[@]}"
check "the third has written all" wait $copy_pid
stop_serving
check "every copy is as the third owner left it" slots_hold first

# A volume that is gone stays so.
dlblk volume delete v
used() {
    dlblk server list --json | jq '[.servers[].used_bytes] | add'
}
for _ in $(seq 60); do
    [ "$(used)" -eq 0 ] && break
    sleep 0.5
done
check "its space is given back" test "$(used)" -eq 0
check "the first owner's frames, after the deletion" replay "${first_owner[@]}"
check "each is refused" test "$(field refused)" = "$(field writes)"
sleep 2.5 # servers tell what they use once per second
check "and takes no space" test "$(used)" -eq 0
kill $server1_pid
check "the server ends in order" wait $server1_pid
check "its allocation map and leaves agree" dlblk-disk check "$cluster/server1.disk"

finish 17
