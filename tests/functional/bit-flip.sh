#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Bits that flip are seen, wherever they flip, and users get the right bytes all the same:
#
#   client --(1)--> chunkserver --> disk (2) --> chunkserver --(3)--> client
#
#   1  on the way to the server: it refuses, the client sends the data again
#   2  on the disk: the client's checksum doesn't fit, and it reads another copy
#   3  on the way back: likewise
# Between client and one server stands a proxy; the disk is changed while its server is stopped.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires python3 jq nbdcopy nbdkit

start_cluster --size 256M
create_volume v --size 48M --segment 4M

# server1 behind the proxy: it tells clients the proxy's address.
proxy_port=$((base_port + 9))
echo "none 1" >"$scratch/flips"
python3 "$source_dir/tests/functional/flip_proxy.py" $proxy_port $((base_port + 1)) \
    "$scratch/flips" >"$scratch/proxy.out" 2>"$scratch/proxy.log" &
cleanup_fn kill $!
until grep -q listening "$scratch/proxy.out"; do sleep 0.02; done

# start_server1 [OPTION...]
start_server1() {
    dlblk-chunkserver "$cluster/server1.disk" --meta "$DLBLK_META" \
        --listen 127.0.0.1:$((base_port + 1)) "$@" >>"$cluster/server1.log" 2>&1 &
    server1_pid=$!
    cleanup_fn kill -9 $server1_pid
    until [ "$(dlblk cluster status --json | jq .servers_up)" = 3 ]; do
        kill -0 $server1_pid || exit 1
        sleep 0.05
    done
}

stop_server1() {
    kill $server1_pid
    wait $server1_pid || true
}

# What the client said about checksums, in nbdkit's log.
reports() {
    grep -ci 'checksum\|crc\|damaged' "$nbdkit_log" || true
}

flips() {
    grep -c "flipped $1" "$scratch/proxy.out" || true
}

local_cluster stop --only server1
start_server1 --advertise 127.0.0.1:$proxy_port
head -c 48M /dev/urandom >"$scratch/image"

# 1. On the way to the server.
echo "write 5" >"$scratch/flips"
serve v
check "copied in while bits flip on the way" nbdcopy "$scratch/image" "$uri"
stop_serving
echo "none 1" >"$scratch/flips"
at_least 5 "$(flips write)" "bits flipped on the way in"
at_least 1 "$(reports)" "reports of it by the client"
serve v -r
nbdcopy "$uri" "$scratch/out"
stop_serving
check "what was written is what was meant" cmp "$scratch/image" "$scratch/out"
check_slots() {
    local slot
    for slot in 0 1 2; do
        slot_reader v "$slot" >"$scratch/slot" && cmp "$scratch/image" "$scratch/slot" || return 1
    done
}
check "in every copy" check_slots

# 3. On the way back.
echo "read 3" >"$scratch/flips"
serve v -r
check "copied out while bits flip on the way" nbdcopy "$uri" "$scratch/out"
stop_serving
echo "none 1" >"$scratch/flips"
at_least 3 "$(flips read)" "bits flipped on the way out"
check "nobody got a wrong byte" cmp "$scratch/image" "$scratch/out"
at_least 1 "$(reports)" "reports of it by the client"

# 2. On the disk: find blocks of the image on it, and flip a bit in each.
stop_server1
python3 - "$scratch/image" "$cluster/server1.disk" >"$scratch/changed" <<'END'
import mmap, random, sys
image = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "r+b") as file:
    disk = mmap.mmap(file.fileno(), 0)
    changed = 0
    for at in range(0, len(image), 4096 * 37):
        place = disk.find(image[at:at + 4096])
        if place < 0:
            continue
        bit = random.Random(at).randrange(4096 * 8)
        disk[place + bit // 8] ^= 1 << (bit % 8)
        changed += 1
    disk.flush()
print(changed)
END
at_least 100 "$(cat "$scratch/changed")" "blocks changed on the disk of server1"
start_server1
check_fails 1 "" "the damaged copy alone can't be read" slot_reader v 0 1 2
serve v -r
check "copied out" nbdcopy "$uri" "$scratch/out"
check "again" nbdcopy "$uri" "$scratch/out2"
stop_serving
check "nobody got a wrong byte" cmp "$scratch/image" "$scratch/out"
check "nor the second time" cmp "$scratch/image" "$scratch/out2"
stop_server1

finish 15
