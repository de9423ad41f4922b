#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A write is flushed before it is acknowledged: a chunkserver's disk is a file whose flushes
# somebody else counts: a FUSE filesystem (nbdfuse) that makes an NBD flush of each fsync, and
# nbdkit behind it that logs them.
#
#   dlblk bench, one request at a time -> chunkserver -> file on nbdfuse -> nbdkit --filter=log
#
# One at a time, each acknowledgement is a journal group of its own, and wants a flush of its own.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires_root
requires nbdfuse nbdkit jq fusermount3
[ -c /dev/fuse ] || skip "/dev/fuse is missing"

start_cluster --size 256M --servers 1

# The disk of server1 moves to where flushes are counted.
local_cluster stop --only server1
truncate -s 256M "$scratch/backing"
nbdkit -f -U "$scratch/disk.sock" -P "$scratch/disk.pid" --filter=log file "$scratch/backing" \
    logfile="$scratch/requests" >"$scratch/nbdkit-disk.log" 2>&1 &
cleanup_fn kill $!
until [ -s "$scratch/disk.pid" ]; do sleep 0.02; done
mkdir "$scratch/fuse"
nbdfuse -P "$scratch/nbdfuse.pid" "$scratch/fuse/disk" "nbd+unix:///?socket=$scratch/disk.sock" \
    >"$scratch/nbdfuse.log" 2>&1 &
cleanup_fn fusermount3 -u "$scratch/fuse"
until [ -s "$scratch/nbdfuse.pid" ]; do sleep 0.02; done
cp "$cluster/server1.disk" "$scratch/fuse/disk"
rm "$cluster/server1.disk"
ln -s "$scratch/fuse/disk" "$cluster/server1.disk"
check "the chunkserver starts on the counted file" local_cluster start --only server1

flushes() {
    grep -c ' Flush ' "$scratch/requests" || true
}

bench() {
    dlblk bench v --destroy-data --json "$@" >"$scratch/bench.json"
}

create_volume v --size 32M --replicas 1 --min-write 1
sleep 2 # what an idle server still had to write
before=$(flushes)
bench --rw randwrite --bs 4K --depth 1 --requests 500
acknowledged=$(jq '.write.total_ios' "$scratch/bench.json")
seen=$(($(flushes) - before))
at_least 500 "$acknowledged" "writes acknowledged one after the other"
at_least "$acknowledged" $seen "flushes of the file meanwhile"

# Larger than what enters the journal at once, and zeroes: likewise.
before=$(flushes)
bench --rw write --bs 256K --depth 1 --requests 100
seen=$(($(flushes) - before))
at_least 100 $seen "flushes for 100 writes of 256 KiB"

# Many in flight share a flush, but there is one at least for each round trip.
before=$(flushes)
bench --rw randwrite --bs 4K --depth 32 --requests 3200
seen=$(($(flushes) - before))
at_least 100 $seen "flushes for 3200 writes at depth 32"
check "they are shared" test $seen -lt 3200

check "stop" local_cluster stop
finish 7
