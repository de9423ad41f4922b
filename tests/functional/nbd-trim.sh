#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes, trims and zeroes of any offset and length, many in flight, compared with an array; the
# plugin's counters show that the trims arrived as trims; and trimmed space comes back. shellcheck
# source-path=SCRIPTDIR source=functions.sh
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo jq

start_cluster --size 512M
create_volume v4096 --size 32M --segment 4M
create_volume v512 --size 32M --segment 4M --logical-block 512

field() {
    sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" "$scratch/check.out"
}

requests=$(sized 20000 4000)
for block in 4096 512; do
    serve v$block
    check "$block: $requests requests leave what an array has" trim_check "$uri" \
        --requests "$requests" --seed $block --block $block
    sent=$(field trims)
    sent_bytes=$(field trim_bytes)
    zeroes=$(field zeroes)
    stop_serving
    at_least $((requests / 5)) "$sent" "$block: trims"
    check "$block: they arrived as trims" test "$(counter trims)" = "$sent"
    check "$block: with all their bytes" test "$(counter trim_bytes)" = "$sent_bytes"
    # One more: trim_check begins with it.
    check "$block: zeroes arrived as zeroes" test "$(counter zeroes)" = $((zeroes + 1))
    check "$block: no error" test "$(counter errors)" = 0
done

# A volume full of data, then trimmed: nothing of it is left on the servers.
create_volume full --size 64M
used() {
    dlblk server list --json | jq '[.servers[].used_bytes] | add'
}
before=$(used)
serve full
head -c 64M /dev/urandom | nbdcopy - "$uri"
sleep 1.2 # the servers tell what they use once per second
filled=$(used)
check "data takes space" test $((filled - before)) -ge $((3 * 60 * 1048576))
truncate -s 64M "$scratch/empty"
check "it is overwritten with a hole" nbdcopy "$scratch/empty" "$uri"
given_back() {

    for _ in $(seq 60); do
        [ $(($(used) - before)) -le $((3 * 4 * 1048576)) ] && return
        sleep 0.5
    done
    echo "used: $before before, $filled full, $(used) now"
    return 1
}
check "and the space comes back" given_back
check "it reads as a hole" test \
    "$(nbdinfo --map --totals "$uri" --json | jq '[.[] | select(.type == 0) | .size] | add')" = null
stop_serving

finish 16
