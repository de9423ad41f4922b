#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A writer dies, and two of three servers with it: the volume waits for them, and says so.  By an
# operator's word that they are gone it is used without them: what was acknowledged is read from the
# one that is left, and writes go on when there are copies enough.  They come back after all.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires jq nbdkit nbdcopy

start_cluster --servers 3 --size 256M
create_volume v --size 16M --segment 4M

ack_writer write v "$scratch/acks" --depth 4 --seconds 600 >"$scratch/writer.out" \
    2>"$scratch/writer.log" &
writer_pid=$!
cleanup_fn kill -9 $writer_pid
until [ "$(dlblk volume status v --json | jq .segments)" = 4 ]; do
    kill -0 $writer_pid || { cat "$scratch/writer.log"; exit 1; }
    sleep 0.1
done
sleep 1
check_fails 4 "is attached by" "not while the owner lives" dlblk volume force v 2
kill -9 $writer_pid
wait $writer_pid 2>/dev/null || true
check_fails 4 "is connected" "a server that is there is not gone" dlblk volume force v 2
local_cluster kill --only server2
local_cluster kill --only server3

serve v
nbdcopy "$uri" null: >"$scratch/copy.log" 2>&1 &
copy_pid=$!
cleanup_fn kill -9 $copy_pid
# says TEXT: within 20 s the volume is blocked, and a problem of it has the text.
says() {
    local i
    for ((i = 0; i < 200; i++)); do
        dlblk volume status v --json >"$scratch/state.json"
        jq -e --arg text "$1" '.state == "blocked" and any(.problems[]; contains($text))' \
            "$scratch/state.json" >/dev/null && return
        sleep 0.1
    done
    cat "$scratch/state.json"
    return 1
}
check "reads wait" says "requests of its owner"
check "the owner says for what" says "the volume was not detached cleanly"
check "it is in the log" grep -q "^waits$" <(dlblk events --json | jq -r '.events[].kind')
kill -9 $copy_pid "$nbdkit_pid"
wait $copy_pid "$nbdkit_pid" 2>/dev/null || true

check_fails 3 "server 9" "a server that there isn't" dlblk volume force v 9
check "two are gone" dlblk volume force v 2,3
check "one copy is left" [ "$(dlblk segment locate v 0 --json |
    jq -c '[.slots[].state] | sort')" = '["ejected","ejected","in-sync"]' ]
serve v
check "it can be read" timeout -k 1 30 nbdcopy "$uri" null:
kill -9 "$nbdkit_pid"
wait "$nbdkit_pid" 2>/dev/null || true
local_cluster start --only server2 >"$scratch/start.log"
local_cluster start --only server3 >"$scratch/start.log"
healthy() {
    [ "$(dlblk volume status v --json | jq -r .state)" = healthy ]
}
for ((i = 0; i < 600; i++)); do healthy && break; sleep 0.1; done
check "they come back, and are recovered" healthy
check "all that was acknowledged is there, in each copy" \
    ack_writer check v "$scratch/acks" --slots 3
finish 11
