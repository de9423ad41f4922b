#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of all daemons under load, and start again; many times.  What was acknowledged is there,
# whole; what was not is there or not, whole; every slot tells the same, each time it is read.
#
#   with the writer alive   its requests wait for the daemons, and go on
#   the writer killed too   the next owner takes over, and settles what was in flight
#   the writer alone        likewise, with the daemons running
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires jq

start_cluster --size 768M
create_volume acks --size 24M --segment 4M
create_volume wide --size 24M --segment 4M --stripe-width 3 --stripe-unit 64K

rounds=$(sized 3 1)
declare -A acknowledged # of all runs so far, by volume
unfinished=0
kills=0
reads=0

field() {
    sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" "$scratch/check.out"
}

# start_writer VOLUME SEED
start_writer() {
    ack_writer write "$1" "$scratch/acks-$1" --depth 32 --seed "$2" --seconds 600 \
        >"$scratch/writer.out" 2>"$scratch/writer.log" &
    writer_pid=$!
    cleanup_fn kill -9 $writer_pid
    until grep -q writing "$scratch/writer.out"; do
        kill -0 $writer_pid || { cat "$scratch/writer.log"; exit 1; }
        sleep 0.02
    done
}

kill_writer() {
    kill -9 $writer_pid
    wait $writer_pid 2>/dev/null || true
}

# verify VOLUME DESCRIPTION
verify() {
    check "$2" ack_writer check "$1" "$scratch/acks-$1" --slots 3
    acknowledged[$1]=$(field acknowledged)
    unfinished=$((unfinished + $(field unfinished)))
    reads=$((reads + $(field reads)))
}

kill_all() {
    local_cluster kill
    kills=$((kills + 4))
}

for round in $(seq "$rounds"); do
    for volume in acks wide; do
        start_writer $volume "$round"
        sleep 0.$((RANDOM % 900 + 100))
        kill_all
        kill_writer
        local_cluster start >"$scratch/start.log"
        verify $volume "$volume, round $round: all killed, the writer too"

        start_writer $volume $((round + 100))
        sleep 0.$((RANDOM % 900 + 100))
        kill_all
        local_cluster start >"$scratch/start.log"
        sleep 1
        check "$volume, round $round: the writer goes on with the new daemons" kill -0 $writer_pid
        kill_writer
        verify $volume "$volume, round $round: all killed, then the writer alone"
    done
done

# One server at a time, while the others run: the writer waits for it.
start_writer acks 1000
for name in server1 server2 server3 meta; do
    sleep 0.3
    local_cluster kill --only $name
    kills=$((kills + 1))
    sleep 0.3
    local_cluster start --only $name >"$scratch/start.log"
done
sleep 0.5
check "one after the other: the writer goes on" kill -0 $writer_pid
kill_writer
verify acks "one after the other: nothing is lost"

# A writer that ends by itself leaves nothing unfinished.
check "a run without kills" ack_writer write acks "$scratch/acks-acks" --seconds 1 --seed 2000
verify acks "a run without kills: all is there"
check "it left nothing unfinished" test "$(field unfinished)" = 0

for name in server1 server2 server3; do
    local_cluster stop --only $name
    check "$name: allocation map and leaves agree" dlblk-disk check "$cluster/$name.disk"
done

at_least $((rounds * 16 + 4)) $kills "daemons killed"
at_least "$(sized 20000 2000)" $((acknowledged[acks] + acknowledged[wide])) \
    "writes acknowledged and found"
at_least $((rounds * 20)) $unfinished "writes in flight at a kill"
at_least "$(sized 20000 4000)" $reads "places read"

finish $((rounds * 6 + 10))
