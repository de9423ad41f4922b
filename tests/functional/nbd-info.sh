#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What NBD clients see of a volume: size, flags, block sizes, the list of exports, holes.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires nbdinfo nbdcopy jq nbdkit

start_cluster --size 256M
create_volume v --size 100M
create_volume small --size 8M --logical-block 512

serve v
nbdinfo --json "$uri" >"$scratch/info.json"
info() {
    jq -e ".exports[0] | $1" "$scratch/info.json"
}
# [offset, length, type] of each extent; type 3 is a hole.
map() {
    nbdinfo --map --json "$uri" | jq -c 'map([.offset, .length, .type])'
}
check "the size is the volume's" info '."export-size" == 104857600'
check "it can be written" info '.is_read_only == false'
check "trims are taken" info '.can_trim'
check "zeroes are taken" info '.can_zero'
check "fast zeroes are taken" info '.can_fast_zero'
check "FUA is taken" info '.can_fua'
check "flushes are taken" info '.can_flush'
check "several connections may be used" info '.can_multi_conn'
check "single bytes can be asked for" info '.block_size_minimum == 1'
check "4 KiB are preferred" info '.block_size_preferred == 4096'
check "64 MiB can be asked for" info '.block_size_maximum == 67108864'
check "the whole volume is a hole" \
    test "$(map)" = '[[0,104857600,3]]'

# Data in the second MiB and at the very end, nothing else.
head -c 1048576 /dev/urandom >"$scratch/data"
write_at() {
    # nbdcopy writes a file from its start: an offset filter places it.
    nbdkit -f -U "$scratch/offset.sock" -P "$scratch/offset.pid" --filter=offset nbd "uri=$uri" \
        "offset=$1" "range=$2" >"$scratch/offset.log" 2>&1 &
    local pid=$!
    until [ -s "$scratch/offset.pid" ]; do
        kill -0 $pid
        sleep 0.02
    done
    head -c "$2" "$scratch/data" | nbdcopy - "nbd+unix:///?socket=$scratch/offset.sock"
    kill $pid
    wait $pid
    rm -f "$scratch/offset.pid" "$scratch/offset.sock"
}
write_at 1048576 1048576
write_at $((104857600 - 8192)) 8192
check "holes are shown around what was written" \
    test "$(map)" = \
    '[[0,1048576,3],[1048576,1048576,0],[2097152,102752256,3],[104849408,8192,0]]'
stop_serving
check "connections were counted" test "$(counter connections)" -ge 3

serve small -r
check "-r: it can't be written" nbdinfo --is read-only "$uri"
check "a volume of 512-byte blocks has its size" test "$(nbdinfo --size "$uri")" = 8388608
stop_serving

# Without volume= the export name selects.
"${nbdkit_words[@]}" -f -U "$scratch/all.sock" -P "$scratch/all.pid" \
    "$plugin" >"$scratch/nbdkit-all.log" 2>&1 &
all_pid=$!
cleanup_fn kill $all_pid
until [ -s "$scratch/all.pid" ]; do sleep 0.02; done
exports() {
    nbdinfo --list --json "nbd+unix:///?socket=$scratch/all.sock" |
        jq -c '[.exports[]."export-name"] | sort'
}
check "every volume is an export" test "$(exports)" = '["small","v"]'
check "the export name selects the volume" test \
    "$(nbdinfo --size "nbd+unix:///small?socket=$scratch/all.sock")" = 8388608
check_fails 1 "" "an unknown export is refused" nbdinfo "nbd+unix:///nope?socket=$scratch/all.sock"
check "and the log says why" grep -q "nope" "$scratch/nbdkit-all.log"

# A resize is seen by the next connection.
dlblk volume resize small --size 16M
check "a volume that grew has its new size" test \
    "$(nbdinfo --size "nbd+unix:///small?socket=$scratch/all.sock")" = 16777216

finish 20
