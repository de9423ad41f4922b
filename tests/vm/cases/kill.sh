#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Also on 6.1.
# The server of a device is killed ten times under verified load at full depth: fio sees no error
# and reads what it wrote, I/O goes on within two seconds; then it is stopped for some seconds.
# shellcheck source=tests/vm/functions.sh
. /vm/functions.sh
start_cluster
create_volume v 128M
attach v --depth 32 --queues 2 >/dev/null || die "attach: $(cat /tmp/attach.err)"

limit=200
[[ $(uname -r) == 6.1.* ]] && limit=1200 # it looks every 5 s whether servers live

# In hundredths of a second since the boot, as centiseconds().
started() {
    sed 's/.*) //' "/proc/$1/stat" | cut -d ' ' -f 20
}

sectors_written() {
    awk '{print $7}' /sys/block/ublkb0/stat
}

# go_on AT-LEAST: I/O completes that had not when the server died.
goes_on() {
    [ "$(sectors_written)" -gt "$1" ]
}

# More in flight than there are tags: all of them are with the server when it dies.
fio --name=load --filename=/dev/ublkb0 --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=48 \
    --numjobs=2 --size=60M --offset_increment=64M --verify=crc32c --verify_backlog=512 \
    --verify_fatal=1 --time_based --runtime=600 --randrepeat=0 --group_reporting >$results/fio.out 2>&1 &
fio=$!
wait_for 20 goes_on 2000 || die "fio does not write"

slowest=0
for i in $(seq 10); do
    sleep 0.7
    in_flight=$(device_of v .in_flight)
    old=$(device_of v .pid)
    kill -9 "$old"
    begin=$(centiseconds)
    written=$(sectors_written)
    if ! wait_for 40 goes_on "$written"; then
        not_ok "round $i: I/O does not go on"
        break
    fi
    end=$(centiseconds)
    wait_for 20 has_new_target v "$old" || not_ok "round $i: there is no new server"
    took=$((end - $(started "$(device_of v .pid)")))
    [ $took -gt $slowest ] && slowest=$took
    note "round $i: $in_flight in flight, goes on ${took}0 ms after the new server's start," \
        "$((end - begin))0 ms after the old one's end"
done
check "I/O goes on within $((limit / 100)) s of the new server's start: ${slowest}0 ms at most" \
    test $slowest -le $limit
check "ten servers took the device over" test "$(device_of v .takeovers)" = 10
check "fio still runs" kill -0 $fio

# The next server, again and again, while it is about to take over: it may have got a lease that it
# could not write down.
kill_servers() {
    local pid
    for pid in $(pidof dlblk-ublk); do
        # Not the supervisor, which has become a child of init.
        [ "$(awk '/^PPid/ {print $2}' "/proc/$pid/status" 2>/dev/null)" = 1 ] || kill -9 "$pid"
    done
}
written=$(sectors_written)
for pause in 0.1 0.3 0.2 0.5 0.4 0.8; do
    kill_servers 2>/dev/null
    sleep $pause
done
check "servers that die while they take over: another one does" wait_for 40 goes_on "$((written + 800))"

written=$(sectors_written)
pid=$(device_of v .pid)
kill -STOP "$pid"
sleep 6
check "stopped for 6 s it is the same device" test "$(device_of v .pid)" = "$pid"
kill -CONT "$pid"
check "and I/O goes on" wait_for 20 goes_on "$((written + 5000))"

kill -INT $fio
wait $fio
check "fio saw no error" grep -q 'err= 0' $results/fio.out
check "and nothing that it had not written" sh -c "! grep -qiE 'verify|bad magic|error' $results/fio.out"
check "no request has failed" test "$(counter v errors)" = 0

fio --name=all --filename=/dev/ublkb0 --direct=1 --ioengine=libaio --rw=write --bs=128k --iodepth=4 \
    --size=16M --verify=crc32c >$results/fio2.out 2>&1
check "written and verified sequentially" grep -q 'err= 0' $results/fio2.out
check "detach" dlblk detach v
check "nothing is left" wait_for 10 nothing_left
finish 12
