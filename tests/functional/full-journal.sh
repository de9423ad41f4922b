#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Servers that are killed with their journal full of records that are not written back start again
# in seconds, and have everything.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires jq

# Small, so that it is full in seconds on a slow machine too: what is written back is only ever the
# oldest part of it.
journal=8M
start_cluster --size 512M --journal "$journal"
create_volume v --size 24M --segment 4M

start_writer() {
    ack_writer write v "$scratch/acks" --depth 32 --seconds 600 --seed "$1" >"$scratch/writer.out" \
        2>"$scratch/writer.log" &
    writer_pid=$!
    cleanup_fn kill -9 $writer_pid
}

servers=(server1 server2 server3)

# journal_of SERVER EXPRESSION: also while it runs; status 3 would be damage.
journal_of() {
    local name=$1 expression=$2
    dlblk-disk inspect --json "$cluster/$name.disk" | jq -e ".journal | $expression"
}

# Waits until the ring has been written once around.  A disk that is in use is written while it is
# read, but its numbers only ever grow.
wait_for_a_lap() {
    local end=$(($(journal_of server1 .mark) + $(numfmt --from=iec $journal) / 4096))
    until [ "$(journal_of server1 .mark)" -ge $end ]; do
        kill -0 $writer_pid
        sleep 0.1
    done
}

signal_servers() {
    local name pid
    for name in "${servers[@]}"; do
        read -r pid _ <"$cluster/$name.pid"
        kill "-$1" "$pid"
    done
}

# How many bytes of the journal a start would have to replay, of the server that has the most.
replay_bytes() {
    local name bytes most=0
    for name in "${servers[@]}"; do
        bytes=$(journal_of "$name" '(.mark - .tail) * 4096')
        [ "$bytes" -gt "$most" ] && most=$bytes
    done
    echo "$most"
}

# Whatever the machine, write-back begins at a quarter of the ring and comes in steps: stop the
# servers for a moment until one of them is seen with a fifth not written back, and kill them there.
kill_with_a_full_journal() {
    local wanted=$(($(numfmt --from=iec $journal) / 5))
    while :; do
        signal_servers STOP
        bytes=$(replay_bytes)
        [ "$bytes" -lt $wanted ] || break
        signal_servers CONT
        kill -0 $writer_pid
        sleep 0.05
    done
    local_cluster kill
    kill -9 $writer_pid
    wait $writer_pid 2>/dev/null || true
}

most=0
longest_ms=0
for round in 1 2 3; do
    start_writer $round
    wait_for_a_lap
    kill_with_a_full_journal
    for name in "${servers[@]}"; do
        check "round $round: the journal of $name is whole" \
            journal_of "$name" '.chain_end >= .mark and .mark > .tail'
    done
    [ "$bytes" -gt "$most" ] && most=$bytes
    begin=$(date +%s%N)
    check "round $round: start" local_cluster start
    took_ms=$((($(date +%s%N) - begin) / 1000000))
    [ $took_ms -gt $longest_ms ] && longest_ms=$took_ms
    echo "# $bytes bytes of journal to replay, all daemons up after $took_ms ms"
    check "round $round: everything is there" ack_writer check v "$scratch/acks" --slots 3
done
at_least $(($(numfmt --from=iec $journal) / 5)) "$most" "bytes of journal replayed at once"
limit=$(sized 10 30)
check "the longest start took less than $limit s" test $longest_ms -lt $((limit * 1000))

finish 17
