#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A server's life as its operator sees it, while a writer works: drained (first only asked what would
# happen), removed, labelled, dead and back.  Cluster, volume, segment and log say what is true, and
# what would leave data without copies is refused.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires jq

start_cluster --servers 4 --size 256M
create_volume v --size 24M --segment 4M

# The writer has to outlive everything below.
ack_writer write v "$scratch/acks" --depth 4 --seconds 600 >"$scratch/writer.out" \
    2>"$scratch/writer.log" &
writer_pid=$!
cleanup_fn kill -9 $writer_pid
until [ "$(dlblk volume status v --json | jq .segments)" = 6 ]; do
    kill -0 $writer_pid || { cat "$scratch/writer.log"; exit 1; }
    sleep 0.1
done

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
slots_of() {
    dlblk server list --json | jq ".servers[] | select(.id == $1) | .slot_count"
}

# The log, followed from here on.
dlblk events --follow --lines 0 --json >"$scratch/followed" 2>"$scratch/follow.log" &
cleanup_fn kill $!
# followed KIND TEXT: it shows such an entry.
followed() {
    local i
    for ((i = 0; i < 100; i++)); do
        jq -se --arg kind "$1" --arg text "$2" \
            'any(.[]; .kind == $kind and (.text | contains($text)))' \
            "$scratch/followed" >/dev/null && return
        sleep 0.1
    done
    cat "$scratch/followed"
    return 1
}

# --- all is well ---

check "the cluster is healthy" wait_until 20 '.state == "healthy" and .problems == []' dlblk cluster status
check "the volume is" is '.state == "healthy" and .segments_in_sync == 6 and .recovery.slots == 0' \
    dlblk volume status v
check "as text" grep -q '^state: *healthy$' <(dlblk volume status v)
check "a byte lies on three servers" is '.allocated and (.slots | length) == 3 and
    ([.slots[].server_id] | unique | length) == 3 and ([.slots[].state] | unique) == ["in-sync"] and
    .segment == 1 and .offset_bytes == 4096' dlblk segment locate v 4100K
check_fails 1 "beyond the end" "one behind the end lies nowhere" dlblk segment locate v 24M
check_fails 3 "nope" "no such volume" dlblk volume status nope

# --- drain, remove ---

drained=$(dlblk segment locate v 0 --json | jq '.slots[0].server_id')
slots_before=$(slots_of "$drained")
check "drain --dry-run says how much moves" is ".dry_run and .slots == $slots_before and .bytes > 0" \
    dlblk server drain "$drained" --dry-run
check "and changes nothing" is ".servers[] | select(.id == $drained) | .draining | not" dlblk server list
check_fails 4 "is up" "one that is up is not removed" dlblk server remove "$drained"
check "drain" dlblk server drain "$drained"
check "the list shows it" is ".servers[] | select(.id == $drained) | .draining" dlblk server list
check "all moves away" wait_until 60 \
    ".servers[] | select(.id == $drained) | .slot_count == 0 and .chunks_to_delete == 0" dlblk server list
check "and the volume is whole" wait_until 20 '.segments_in_sync == 6 and .segments_moving == 0' \
    dlblk volume status v
check "the writer goes on" kill -0 $writer_pid
check_fails 4 "is up" "it is still not removed" dlblk server remove "$drained"
local_cluster stop --only "server$drained"
check "remove --dry-run" is '.dry_run and .slots == 0' dlblk server remove "$drained" --dry-run
check "remove" dlblk server remove "$drained"
check_fails 3 "server $drained does not exist" "it is forgotten" dlblk server drain "$drained"
check "the log has it all" followed admin "server $drained"

# --- nowhere to go ---

mapfile -t left < <(dlblk server list --json | jq '.servers[].id')
at_least 3 ${#left[@]} "servers left"
check_fails 7 "add a chunkserver" "the next can't be drained" dlblk server drain "${left[0]}"
check_fails 3 "server 99" "nor one that there isn't" dlblk server drain 99

# --- labels ---

check "set --dry-run" is '.effects[0] | contains("rack r7")' dlblk server set "${left[0]}" --rack r7 --dry-run
check "changes nothing" is ".servers[] | select(.id == ${left[0]}) | .rack == \"\"" dlblk server list
check "set" dlblk server set "${left[0]}" --rack r7 --weight 50
check "the list shows it, and the host as it was" \
    is ".servers[] | select(.id == ${left[0]}) | .rack == \"r7\" and .weight_percent == 50 and .host != \"\"" \
    dlblk server list
check "no rack again" dlblk server set "${left[0]}" --no-rack
check "as it was" is ".servers[] | select(.id == ${left[0]}) | .rack == \"\" and .weight_percent == 50" \
    dlblk server list
check_fails 2 "not a valid name" "a label that is none" dlblk server set "${left[0]}" --rack 'a b'

# --- dead and back ---

dead=${left[1]}
local_cluster kill --only "server$dead"
check "its death is a problem, with what to do" wait_until 20 \
    "(.state == \"degraded\" or .state == \"recovering\") and
    any(.problems[]; contains(\"server $dead\") and contains(\"start\"))" dlblk cluster status
check "the volume's state says so" is '.state != "healthy" and .segments_degraded == 6 and
    any(.problems[]; contains("start server"))' dlblk volume status v
check "the segment shows whose copy it is" \
    wait_until 20 "any(.slots[]; .server_id == $dead and (.problem | contains(\"down\")))" \
    dlblk segment locate v 0
check "the log has it" followed server-down "server $dead"
check_fails 7 "add a chunkserver" "it is not removed while its copies have nowhere to go" \
    dlblk server remove "$dead"
create_volume w --size 16M --segment 4M
check "a new volume is written without it" \
    timeout -k 1 60 dlblk bench w --destroy-data --prefill --rw randwrite --seconds 1
check "its third copies are missing" is '.segments == 4 and .segments_degraded == 4' \
    dlblk volume status w
local_cluster start --only "server$dead" >"$scratch/start.log"
check "back, and healthy" wait_until 60 '.state == "healthy" and .problems == []' dlblk cluster status
check "the log has that" followed server-up "server $dead"
check "the volume is whole again" wait_until 20 '.state == "healthy" and .segments_in_sync == 6' \
    dlblk volume status v
check "the new one, too" wait_until 20 '.state == "healthy" and .segments_in_sync == 4' \
    dlblk volume status w

# --- and nothing is lost ---

check "events: one JSON value" is '(.events | length) > 3 and .next > 0 and (.lost | not)' dlblk events
check "events --lines" test "$(dlblk events --lines 2 | wc -l)" = 2
check "the writer went on all the time" kill -0 $writer_pid
kill -9 $writer_pid
wait $writer_pid 2>/dev/null || true
check "all it wrote is there, in each copy" ack_writer check v "$scratch/acks" --slots 3
finish 44
