#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A random image is copied in and out by nbdcopy, with several connections and many requests in
# flight, and compared; also after the daemons were stopped and started; holes stay holes.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires nbdcopy nbdinfo jq nbdkit

mib=$(sized 256 64)
start_cluster --size $((mib * 2 + 256))M
create_volume linear --size ${mib}M
create_volume striped --size ${mib}M --stripe-width 3 --stripe-unit 64K --logical-block 512 \
    --segment 16M

# Random data, with runs of zeroes that nbdcopy sends as such.
head -c $((mib * 1048576)) /dev/urandom >"$scratch/image"
for at in 3 17 18 40; do
    dd if=/dev/zero of="$scratch/image" bs=1M seek=$at count=2 conv=notrunc status=none
done

for volume in linear striped; do
    serve $volume
    check "$volume: in" nbdcopy --connections=4 --requests=32 "$scratch/image" "$uri"
    check "$volume: out" nbdcopy --connections=4 --requests=32 "$uri" "$scratch/out-$volume"
    check "$volume: equal" cmp "$scratch/image" "$scratch/out-$volume"
    check "$volume: the zeroes are no data" test \
        "$(nbdinfo --map --totals "$uri" --json | jq '[.[] | select(.type == 0) | .size] | add')" \
        -le $(((mib - 5) * 1048576))
    stop_serving
    check "$volume: the data came as writes" \
        test "$(counter write_bytes)" -ge $(((mib - 10) * 1048576))
    rm "$scratch/out-$volume"
done

check "stop" local_cluster stop
check "start" local_cluster start
for volume in linear striped; do
    serve $volume -r
    nbdcopy "$uri" "$scratch/out"
    check "$volume: equal after stop and start" cmp "$scratch/image" "$scratch/out"
    stop_serving
    rm "$scratch/out"
done
check "a clean stop says so" test "$(grep -l 'start' "$cluster"/server*.log | wc -l)" = 3

finish 13
