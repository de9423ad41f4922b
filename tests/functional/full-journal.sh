#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Servers that are killed with their journal full of records that are not written back start again
# in seconds, and have everything.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires jq

journal=$(sized 64M 16M)
start_cluster --size 1G --journal "$journal"
create_volume v --size 512M

start_writer() {
    ack_writer write v "$scratch/acks" --depth 32 --seconds 600 --seed "$1" >"$scratch/writer.out" \
        2>"$scratch/writer.log" &
    writer_pid=$!
    cleanup_fn kill -9 $writer_pid
}

# How many bytes of the journal a start would have to replay, of the server that has the most.
replay_bytes() {
    local name bytes most=0
    for name in server1 server2 server3; do
        bytes=$(dlblk-disk inspect --json "$cluster/$name.disk" |
            jq '(.journal.chain_end - (.index.position // .superblocks[0].superblock.tail)) * 4096')
        [ "$bytes" -gt $most ] && most=$bytes
    done
    echo $most
}

most=0
longest_ms=0
for round in 1 2 3; do
    start_writer $round
    sleep "$(sized 6 8)"
    local_cluster kill
    kill -9 $writer_pid
    wait $writer_pid 2>/dev/null || true
    bytes=$(replay_bytes)
    [ "$bytes" -gt $most ] && most=$bytes
    begin=$(date +%s%N)
    check "round $round: start" local_cluster start
    took_ms=$((($(date +%s%N) - begin) / 1000000))
    [ $took_ms -gt $longest_ms ] && longest_ms=$took_ms
    echo "# $bytes bytes of journal to replay, all daemons up after $took_ms ms"
    check "round $round: everything is there" ack_writer check v "$scratch/acks" --slots 3
done
at_least $(($(numfmt --from=iec "$journal") / 5)) $most "bytes of journal replayed at once"
limit=$(sized 10 30)
check "the longest start took less than $limit s" test $longest_ms -lt $((limit * 1000))

finish 8
