#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Running the daemons: where their settings come from, and which counts more; addresses of both
# kinds; the loud word where others can reach them; limits; an orderly end under load; a backup of the
# metadata; what local-cluster does with a cluster that is there already; JSON of every command.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires_root
requires jq nbdkit unshare prlimit

# --- local-cluster ---

base_port=$(free_port)
check_fails 1 "there is no cluster" "status where no cluster is" local_cluster status
check_fails 1 "there is no cluster" "stop where no cluster is" local_cluster stop
check_fails 2 "unknown command" "a command that there isn't" local_cluster explode
check_fails 2 "unknown option" "an option that there isn't" local_cluster start --frobnicate 3
check_fails 2 "number" "no servers at all" local_cluster start --servers 0
check_fails 2 "--dir is missing" "no directory" "$source_dir/scripts/local-cluster" start
mkdir "$scratch/other"
touch "$scratch/other/file"
check_fails 1 "is not empty" "a directory of somebody else" \
    "$source_dir/scripts/local-cluster" start --dir "$scratch/other"

# A soft limit of few descriptors: the daemons raise it by themselves.
ulimit -Sn 256
start_cluster --size 256M
check "env is for the shell" test "$(eval "$(local_cluster env)" && echo "$DLBLK_META")" = "$DLBLK_META"
check "status shows all that runs" test "$(local_cluster status | grep -c ' runs, pid ')" = 4
pids=$(cat "$cluster"/*.pid)
check "start while it runs" local_cluster start
check "starts nothing again" test "$(cat "$cluster"/*.pid)" = "$pids"
check_fails 1 "was made with" "start with other settings" local_cluster start --servers 5
for name in meta server1; do
    read -r pid _ <"$cluster/$name.pid"
    read -r soft hard < <(prlimit --noheadings --raw --nofile --output SOFT,HARD --pid "$pid")
    check "$name raises its limit of descriptors" test "$soft" = "$hard"
done
create_volume v --size 64M

# --- JSON of all that list or report ---

json() {
    "$@" --json >"$scratch/json" && jq -e . "$scratch/json"
}
check "volume list --json" json dlblk volume list
check "it has the volume" jq -e '.volumes[0] | .name == "v" and .size_bytes == 67108864' "$scratch/json"
check "volume info --json" json dlblk volume info v
check "server list --json" json dlblk server list
check "it has the servers" jq -e '[.servers[] | select(.state == "up" and .capacity_bytes > 0)] | length == 3' \
    "$scratch/json"
check "cluster status --json" json dlblk cluster status
check "it is healthy" jq -e '.servers_up == 3 and .state == "healthy"' "$scratch/json"
check_fails 3 '"hint"' "an error --json" dlblk volume info nope --json
dlblk volume info nope --json >"$scratch/json" 2>"$scratch/error" || true
check "is JSON" jq -e '.error.code and .error.text and .error.hint' "$scratch/json"
check "bench --json" json dlblk bench own --size 32M --failure-domain server --rw randrw --mix 50 \
    --seconds 1
names='.iops > 0 and .bw_bytes > 0 and .lat_ns.mean > 0 and .lat_ns.percentile["99.000000"] > 0'
check "its names are fio's" jq -e "(.read | $names) and (.write | $names)" "$scratch/json"
check_fails 3 "own" "the volume that it made is gone" dlblk volume info own
check_fails 2 "--destroy-data" "it writes to no volume that it did not make" dlblk bench v --rw write \
    --requests 1

# --- settings: flag, environment, file ---

printf '[cluster]\nmeta = %s\n' "$DLBLK_META" >"$scratch/right.conf"
printf '[cluster]\nmeta = 127.0.0.1:1\n' >"$scratch/wrong.conf"
right=$DLBLK_META
finds() {
    dlblk volume list --timeout 500ms "$@"
}
check "the file" env -u DLBLK_META dlblk volume list --config "$scratch/right.conf"
check "the environment counts more than the file" finds --config "$scratch/wrong.conf"
export DLBLK_META=127.0.0.1:1
check "the flag counts more than the environment" finds --meta "$right"
check_fails 5 "127.0.0.1:1" "and the environment more than the file" finds --config "$scratch/right.conf"
export DLBLK_META=$right
plugin_sees() {
    nbdkit_with_plugin -U - "$plugin" volume=v connect-timeout=1 "$@" --run true
}
check "the plugin: the environment counts more than the file" plugin_sees "config=$scratch/wrong.conf"
check_fails 1 "127.0.0.1:1" "the plugin: the parameter counts most" plugin_sees meta=127.0.0.1:1
check "dlblk-meta --check-config of a good file" dlblk-meta serve --check-config \
    --config "$scratch/right.conf"
check "dlblk-chunkserver --check-config of a good file" dlblk-chunkserver --check-config \
    --config "$scratch/right.conf" "$cluster/server1.disk"

# --- an end in order, with requests in flight ---

dlblk bench v --destroy-data --rw randwrite --depth 16 --seconds 600 --json >"$scratch/bench.out" \
    2>"$scratch/bench.log" &
bench_pid=$!
cleanup_fn kill -9 $bench_pid
until [ "$(dlblk volume info v --json | jq .allocated_bytes)" -gt 0 ]; do sleep 0.1; done
sleep 0.5
for name in server1 server2 meta; do
    kill -0 $bench_pid
    begin=$(date +%s%N)
    check "$name: SIGTERM under load" local_cluster stop --only $name
    took_ms=$((($(date +%s%N) - begin) / 1000000))
    check "$name: it took less than 10 s" test $took_ms -lt 10000
    check "$name: the log says that it stopped" grep -q "stopped$" "$cluster/$name.log"
    if [ $name != meta ]; then
        check "$name: the disk is clean" test "$(dlblk-disk inspect --json "$cluster/$name.disk" |
            jq '[.superblocks[].superblock.clean] | all')" = true
    fi
    local_cluster start --only $name >"$scratch/start.log"
    if [ $name != meta ]; then
        check "$name: nothing to replay" test "$(grep -c \
            'stopped cleanly before; 0 journal blocks replayed' "$cluster/$name.log")" = 2
    fi
done
sleep 0.5
check "the load went on meanwhile" kill -0 $bench_pid
kill -9 $bench_pid
wait $bench_pid 2>/dev/null || true

# --- a backup, while it is served ---

check "backup" dlblk-meta backup --dir "$cluster/meta" "$scratch/backup"
check_fails 1 "exist" "a backup is not overwritten" dlblk-meta backup --dir "$cluster/meta" \
    "$scratch/backup"
check_fails 1 "" "nor a directory by restoring" dlblk-meta restore --dir "$cluster/meta" "$scratch/backup"
dlblk volume info v --json | jq '{id, name, size_bytes, allocated_bytes}' >"$scratch/before"
check "stop" local_cluster stop
check_fails 1 "does not run" "status of a cluster that is stopped" local_cluster status
mv "$cluster/meta" "$scratch/meta-lost"
check "restore" dlblk-meta restore --dir "$cluster/meta" "$scratch/backup"
check "start with the restored metadata" local_cluster start
dlblk volume info v --json | jq '{id, name, size_bytes, allocated_bytes}' >"$scratch/after"
check "the volume is as it was" diff "$scratch/before" "$scratch/after"
serve v
check "and can be read" nbdcopy "$uri" null:
stop_serving

# --- a machine on which dlblk has never run ---

check "init makes what is missing in /var/lib" unshare --mount bash -ec \
    "mount -t tmpfs none /var/lib; $(command -v dlblk-meta) init; test -d /var/lib/dlblk/meta/db"

# --- what the machine does not allow ---

without_io_uring() {
    timeout 20 python3 "$source_dir/tests/functional/without_io_uring.py" "$@"
}
dlblk-meta init --dir "$scratch/m" >"$scratch/init.log"
check_fails 1 "io_uring is not permitted" "dlblk without io_uring" without_io_uring dlblk volume list
check_fails 1 "io_uring is not permitted" "dlblk-meta without io_uring" without_io_uring \
    dlblk-meta serve --dir "$scratch/m" --listen 127.0.0.1:$((base_port + 8))
local_cluster stop --only server3
check_fails 1 "io_uring is not permitted" "dlblk-chunkserver without io_uring" without_io_uring \
    dlblk-chunkserver "$cluster/server3.disk" --listen 127.0.0.1:$((base_port + 8))
for program in "dlblk-meta serve --dir $scratch/m" "dlblk-chunkserver $cluster/server3.disk"; do
    # shellcheck disable=SC2086
    check_fails 1 "open files are allowed" "${program%% *} with few descriptors" \
        timeout 20 prlimit --nofile=40:40 $program --listen 127.0.0.1:$((base_port + 8))
done

# --- addresses ---

# What listens for all does so in a network of its own, that has nobody else in it.
loud() {
    "$@" >"$scratch/loud.log" 2>&1 &
    local pid=$!
    for _ in $(seq 100); do
        grep -q "NO AUTHENTICATION" "$scratch/loud.log" && break
        sleep 0.05
    done
    kill $pid
    wait $pid || true
    cat "$scratch/loud.log"
    grep -q "NO AUTHENTICATION" "$scratch/loud.log"
}
check "dlblk-meta, listening for all: says so loudly" loud unshare --net dlblk-meta serve --dir "$scratch/m" \
    --listen 0.0.0.0
check "dlblk-chunkserver likewise" loud unshare --net dlblk-chunkserver "$cluster/server3.disk" \
    --listen 0.0.0.0 --meta 127.0.0.1:1
check "on loopback nobody is told" test "$(grep -l "NO AUTHENTICATION" "$cluster"/*.log | wc -l)" = 0

# Metadata service, a chunkserver and a client over IPv6.
# In a subshell, whose end is theirs.
over_v6() (
    port=$1 pid="" meta_pid=""
    trap 'kill -9 $pid $meta_pid 2>/dev/null || true' EXIT
    dlblk-meta serve --dir "$scratch/m" --listen "[::1]:$port" >"$scratch/v6-meta.log" 2>&1 &
    meta_pid=$!
    until dlblk volume list --meta "[::1]:$port" --timeout 1s; do kill -0 $meta_pid || exit 1; done
    dlblk-disk format "$scratch/v6.disk" --size 128M --meta "[::1]:$port" --quiet || exit 1
    dlblk-chunkserver "$scratch/v6.disk" --meta "[::1]:$port" --listen "[::1]:$((port + 1))" \
        >"$scratch/v6-server.log" 2>&1 &
    pid=$!
    until [ "$(dlblk cluster status --meta "[::1]:$port" --json | jq .servers_up)" = 1 ]; do
        kill -0 $pid || exit 1
        sleep 0.05
    done
    dlblk server list --meta "[::1]:$port" --json | jq -e ".servers[0].address == \"[::1]:$((port + 1))\""
    DLBLK_META="[::1]:$port" dlblk bench six --size 16M --replicas 1 --rw randwrite \
        --requests 100 || exit 1
    kill $pid && wait $pid && kill $meta_pid && wait $meta_pid
)
export -f over_v6
# Where the machine has no IPv6, a network of its own has.
if grep -q '^0\{31\}1 ' /proc/net/if_inet6 2>/dev/null; then
    check "all of it over IPv6; both end with status 0" over_v6 $((base_port + 5))
else
    check "all of it over IPv6, in a network of its own; both end with status 0" unshare --net bash -c \
        "echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6; python3 -c '
import fcntl, socket, struct
s = socket.socket()
fcntl.ioctl(s, 0x8914, struct.pack(\"16sH14x\", b\"lo\", 1))'; scratch=$scratch; over_v6 7700"
fi

finish 68
