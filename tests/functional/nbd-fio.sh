#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fio writes and verifies by checksum over NBD: random and sequential, requests of 512 bytes to 1
# MiB, on volumes of 4096-byte and 512-byte blocks.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires fio nbdkit jq

start_cluster --size 1G
create_volume v4096 --size 128M
create_volume v512 --size 128M --logical-block 512 --stripe-width 2

# fio_verify NAME OPTION...: prints the bytes that were written and verified.
fio_verify() {
    local name=$1
    shift
    if ! fio --name="$name" --ioengine=nbd --uri="$uri" --verify=crc32c --verify_fatal=1 \
        --randseed=7 --verify_dump=0 --output-format=json --output="$scratch/fio.json" "$@" \
        >"$scratch/fio.log" 2>&1; then
        cat "$scratch/fio.log" "$scratch/fio.json"
        return 1
    fi
    [ "$(jq '.jobs[0].error' "$scratch/fio.json")" = 0 ]
    written=$((written + $(jq '.jobs[0].write.io_bytes' "$scratch/fio.json")))
    verified=$((verified + $(jq '.jobs[0].read.io_bytes' "$scratch/fio.json")))
}

written=0
verified=0
for volume in v4096 v512; do
    serve $volume
    for size in 512 4k 16k 256k 1m; do
        amount=$(case $size in 512) sized 2m 1m ;; 4k) sized 16m 4m ;; *) sized 48m 12m ;; esac)
        check "$volume: random writes of $size" fio_verify rand --rw=randwrite --bs=$size \
            --size="$amount" --iodepth=16
        check "$volume: sequential writes of $size" fio_verify seq --rw=write --bs=$size \
            --size="$amount" --offset=64m --iodepth=16
    done
    # All sizes at any offset of 512 bytes: blocks in part, next to one another, at the same time.
    check "$volume: random writes of 512 bytes to 64 KiB" fio_verify mixed --rw=randwrite \
        --bsrange=512-64k --blockalign=512 --size="$(sized 24m 6m)" --iodepth=16 --offset=32m
    check "$volume: reads and writes mixed" fio_verify rw --rw=randrw --bs=4k \
        --size="$(sized 16m 4m)" --iodepth=32
    stop_serving
    check "$volume: no error" test "$(counter errors)" = 0
done
at_least "$(sized 300 80)" $((written >> 20)) "MiB written"
at_least "$(sized 300 80)" $((verified >> 20)) "MiB verified"

finish 26
