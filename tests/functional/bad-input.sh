#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is wrong gets its clear error, and harms nobody else: frames, clusters, disks, names,
# sizes, command lines, a metadata service that isn't there.  Meanwhile a writer works on a volume
# of its own: it must not notice.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires python3 jq nbdkit

start_cluster --size 256M
create_volume v --size 16M
create_volume bystander --size 16M --segment 4M
cluster_id=$(dlblk cluster status --json | jq -r .cluster_id)
pids_before=$(cat "$cluster"/*.pid)

ack_writer write bystander "$scratch/acks" --depth 4 --seconds 600 >"$scratch/writer.out" \
    2>"$scratch/writer.log" &
writer_pid=$!
cleanup_fn kill $writer_pid

# --- frames ---

# Numbers the TAP lines of a program that prints them without.
frames_to() {
    local what=$1 port=$2 line
    shift 2
    python3 "$source_dir/tests/functional/bad_frames.py" "$port" "$cluster_id" "$@" \
        >"$scratch/frames.out" 2>"$scratch/frames.err" || true
    while read -r line; do
        case $line in
        "ok - "*) ok "$what: ${line#ok - }" ;;
        "not ok - "*) not_ok "$what: ${line#not ok - }" ;;
        esac
    done <"$scratch/frames.out"
    if [ -s "$scratch/frames.err" ]; then
        not_ok "$what: the frames were sent"
        sed 's/^/# /' "$scratch/frames.err"
    fi
}
before_frames=$case_count
frames_to "metadata service" "$base_port"
frames_to "chunkserver" $((base_port + 1)) "$(dlblk server list --json | jq -r .servers[0].uuid)"
at_least 58 $((case_count - before_frames)) "cases of frames"
# Whoever is refused is told, and so is the administrator, with the peer's address.
for name in meta server1; do
    for text in "does not speak dlblk's protocol" "does not match its checksum" "malformed" \
        "larger than the protocol allows" "42424242" "1000 to 2000"; do
        check "$name's log: $text" grep -qE "warning .*127\.0\.0\.1:[0-9]+: .*$text" "$cluster/$name.log"
    done
done

# --- names and sizes ---

name300=$(printf 'n%.0s' $(seq 300))
name128=$(printf 'n%.0s' $(seq 128))
refuse() {
    local status=$1 text=$2 description=$3
    shift 3
    check_fails "$status" "$text" "$description" "$@"
}
create() {
    dlblk volume create --failure-domain server "$@"
}
refuse 2 "128" "a name of 300 bytes" create "$name300" --size 1G
check "a name of 128 bytes is a name" create "$name128" --size 1G
check "and is deleted by it" dlblk volume delete "$name128"
odd_names=("" "a b" "a/b" "../etc" "-x" ".hidden" $'a\nb' $'a\x01b' "ä" "a'b" 'a"b' "a;b" 'a$b'
    "*")
for name in "${odd_names[@]}"; do
    refuse 2 "is not a valid name: " "the name '$(printf '%q' "$name")'" create --size 1G -- "$name"
done
refuse 2 "a size of 0" "a volume of 0" create sized --size 0
for size in 1 511 4097 1000000; do
    refuse 2 "$size bytes are not a multiple of its logical block" "a volume of $size" create sized \
        --size $size
done
for size in 10GB 1.5G -1 "" 16E; do
    refuse 2 "'$size' is not a size" "a volume of '$size'" create sized --size="$size"
done
refuse 2 "too large" "a volume of more bytes than a number has" create sized --size 99999999999999999999
refuse 2 "the most with its segments" "a volume of 8192P" create sized --size 8192P
refuse 2 "server, host, rack" "a failure domain that there isn't" dlblk volume create w --size 1G \
    --failure-domain galaxy
refuse 7 "--failure-domain server" "three copies on one host" dlblk volume create w --size 1G
refuse 7 "--replicas 3" "more copies than servers" create w --size 1G --replicas 4
refuse 2 "min_write 3 is more than its 2" "a minimum above the copies" create w --size 1G --replicas 2 --min-write 3
refuse 2 "must be a power of two" "a segment that is no power of two" create w --size 1G --segment 3M
refuse 2 "must be 512 or 4096" "a logical block of 1024" create w --size 1G --logical-block 1024
refuse 7 "nowhere" "a clique that there isn't" create w --size 1G --clique nowhere
refuse 6 "volume v exists" "a name that is taken" create v --size 1G
refuse 2 "shrink" "shrinking" dlblk volume resize v --size 8M
refuse 3 "nope" "a volume that there isn't: info" dlblk volume info nope
refuse 3 "nope" "a volume that there isn't: delete" dlblk volume delete nope
refuse 3 "nope" "a volume that there isn't: resize" dlblk volume resize nope --size 1G
refuse 3 "nope" "a volume that there isn't: rename" dlblk volume rename nope other
refuse 3 "nope" "a volume that there isn't: bench" dlblk bench nope
refuse 6 "bystander" "renaming to a name that is taken" dlblk volume rename v bystander
refuse 2 "128" "renaming to a name of 300 bytes" dlblk volume rename v "$name300"
refuse 4 "ack_writer" "deleting a volume that is attached: names the owner" \
    dlblk volume delete bystander
refuse 4 "ack_writer" "attaching it again: names the owner" dlblk bench bystander --requests 1
check "no volume came of all that" test "$(dlblk volume list --json | jq '.volumes | length')" = 2

# --- command lines and configuration ---

refuse 2 "unknown option '--frobnicate'" "dlblk: an unknown option" dlblk volume list --frobnicate
refuse 2 "no command 'explode'" "dlblk: an unknown command" dlblk volume explode v
refuse 2 "unknown option '--frobnicate'" "dlblk-meta: an unknown option" dlblk-meta serve --frobnicate
refuse 2 "unknown command 'explode'" "dlblk-meta: an unknown command" dlblk-meta explode
refuse 2 "unknown option '--frobnicate'" "dlblk-chunkserver: an unknown option" dlblk-chunkserver --frobnicate
refuse 2 "unknown command 'explode'" "dlblk-disk: an unknown command" dlblk-disk explode "$scratch/x"
printf '[cluster]\nmeta = 127.0.0.1\n[client]\nrequest_timeuot = 3s\n' >"$scratch/bad.conf"
printf '[cluster]\nmeta = 127.0.0.1\n' >"$scratch/good.conf"
refuse 2 "request_timeuot" "an unknown key" dlblk --check-config --config "$scratch/bad.conf"
refuse 2 "bad.conf:4" "with its file and line" dlblk --check-config --config "$scratch/bad.conf"
check "a good file" dlblk --check-config --config "$scratch/good.conf"
refuse 2 "request_timeuot" "dlblk-meta: an unknown key" dlblk-meta serve --check-config \
    --config "$scratch/bad.conf"
refuse 2 "request_timeuot" "dlblk-chunkserver: an unknown key" dlblk-chunkserver --check-config \
    --config "$scratch/bad.conf" "$cluster/server1.disk"

# --- nobody there ---

refuse 5 "127.0.0.1:1" "a metadata service that isn't there: names it" dlblk volume list \
    --meta 127.0.0.1:1 --timeout 500ms
refuse 5 "no-such-host.invalid:7700: no address is known" "a host name that isn't there" dlblk volume list \
    --meta no-such-host.invalid --timeout 500ms
refuse 2 "more than one colon without brackets" "an address that is none" dlblk volume list --meta 'a:b:c'
refuse 5 "this chunkserver" "a chunkserver in place of the metadata service" dlblk volume list \
    --meta 127.0.0.1:$((base_port + 1)) --timeout 1s
refuse 1 "127.0.0.1:1" "nbdkit: a metadata service that isn't there" nbdkit_with_plugin -f \
    -U "$scratch/refused.sock" "$plugin" volume=v meta=127.0.0.1:1 connect-timeout=1 --run true
refuse 1 "nope" "nbdkit: a volume that isn't there" nbdkit_with_plugin -f \
    -U "$scratch/refused.sock" "$plugin" volume=nope --run true

# --- disks ---

chunkserver_on() {
    timeout 20 dlblk-chunkserver "$@" --meta "$DLBLK_META" --listen 127.0.0.1:$((base_port + 8)) \
        --lock-wait 200ms
}
# What only the metadata service can tell: the chunkserver says so, and goes on asking.
is_not_admitted() {
    dlblk-chunkserver "$@" --meta "$DLBLK_META" --listen 127.0.0.1:$((base_port + 8)) \
        >"$scratch/refused.log" 2>&1 &
    local pid=$! refused=1
    for _ in $(seq 200); do
        grep -q ' refused this ' "$scratch/refused.log" && refused=0 && break
        sleep 0.05
    done
    kill $pid
    wait $pid || refused=1
    cat "$scratch/refused.log"
    return $refused
}
refuse 1 "No such file" "a disk that isn't there" chunkserver_on "$scratch/no-disk"
truncate -s 128M "$scratch/empty-disk"
refuse 1 "no usable superblock" "a disk without a format" chunkserver_on "$scratch/empty-disk"
head -c 100 /dev/urandom >"$scratch/tiny-disk"
refuse 1 "$scratch/tiny-disk" "a disk of 100 bytes" chunkserver_on "$scratch/tiny-disk"
refuse 1 "in use" "a disk that another server has" chunkserver_on "$cluster/server1.disk"
foreign_id=00000000-1111-4222-8333-444444444444
dlblk-disk format "$scratch/foreign" --size 128M --meta 127.0.0.1:1 --cluster-id $foreign_id --quiet
check "a disk of another cluster is not admitted" is_not_admitted "$scratch/foreign"
check "its error names its cluster" grep -q "$foreign_id" "$scratch/refused.log"
check "and the cluster it came to" grep -q "$cluster_id" "$scratch/refused.log"
refuse 5 "$foreign_id" "formatting a disk of another cluster" dlblk-disk format "$scratch/foreign" \
    --meta "$DLBLK_META"
mkfs.ext4 -q -F "$scratch/empty-disk"
refuse 5 "ext4" "formatting a disk with a filesystem: names it" dlblk-disk format \
    "$scratch/empty-disk" --meta "$DLBLK_META"
refuse 4 "in use by another process" "formatting a disk that is in use" dlblk-disk format "$cluster/server1.disk" \
    --meta "$DLBLK_META" --force

# One copy of the superblock is enough, none is too little.
local_cluster stop --only server3
cp "$cluster/server3.disk" "$scratch/server3.old"
cp -r "$cluster/server3.disk.index" "$scratch/server3.old.index"
cp "$scratch/server3.old" "$scratch/server3.older"
cp -r "$scratch/server3.old.index" "$scratch/server3.older.index"
dd if=/dev/urandom of="$cluster/server3.disk" bs=4096 count=1 conv=notrunc status=none
check "a disk with one damaged superblock starts" local_cluster start --only server3

# A copied disk is not registered a second time.
check "a copy of a disk whose server runs is not admitted" is_not_admitted "$scratch/server3.old"
check "its error says that it is a copy" grep -q "copied" "$scratch/refused.log"
sleep 2.5 # servers tell how far they are once per second
local_cluster stop --only server3
local_cluster start --only server3
local_cluster stop --only server3
cp "$cluster/server3.disk" "$scratch/server3.saved"
size=$(stat -c %s "$cluster/server3.disk")
dd if=/dev/urandom of="$cluster/server3.disk" bs=4096 count=64 conv=notrunc status=none
dd if=/dev/urandom of="$cluster/server3.disk" bs=4096 seek=$((size / 4096 - 64)) count=64 \
    conv=notrunc status=none
refuse 1 "no usable superblock" "a disk with both superblocks damaged" chunkserver_on "$cluster/server3.disk"

# An older copy of a disk whose server is gone: nothing on it is trusted, all of it comes from the
# others again.  Then the disk that was the newest has gone back, too.
went_back() {
    dlblk events --json | jq -r ".events[].text" | grep -c "is an older copy of itself"
}
healthy_again() {
    local i
    for ((i = 0; i < 300; i++)); do
        dlblk cluster status --json | jq -e '.state == "healthy" and .problems == []' >/dev/null && return
        sleep 0.1
    done
    dlblk cluster status
    return 1
}
dlblk-chunkserver "$scratch/server3.older" --meta "$DLBLK_META" \
    --listen 127.0.0.1:$((base_port + 3)) >"$scratch/older.log" 2>&1 &
older_pid=$!
check "an older copy of a disk is filled anew" healthy_again
check "the log of events says why" test "$(went_back)" -eq 1
kill $older_pid
wait $older_pid || true
cp "$scratch/server3.saved" "$cluster/server3.disk"
check "the disk that was newer starts" local_cluster start --only server3
check "and is filled anew" healthy_again
check "since it has gone back as well" test "$(went_back)" -eq 2

# --- and nobody noticed ---

check "the bystander's writer runs" kill -0 $writer_pid
kill -9 $writer_pid
wait $writer_pid 2>/dev/null || true
check "and all it wrote is there" ack_writer check bystander "$scratch/acks" --slots 3
pids_after=$(cat "$cluster"/*.pid)
check "the other daemons are the same processes" \
    test "$(head -n 3 <<<"$pids_before")" = "$(head -n 3 <<<"$pids_after")"

# --- a disk of the future, a damaged journal ---

# Written by nobody else any more, so that what the next start has to replay is still there.
ack_writer write bystander "$scratch/acks" --depth 16 --seconds 2 >"$scratch/writer.out" 2>&1 || true
local_cluster kill --only server3
disk=$cluster/server3.disk
dlblk-disk inspect --json "$disk" >"$scratch/disk.json"
bad_disk() {
    python3 "$source_dir/tests/functional/bad_disk.py" "$@" <"$scratch/disk.json"
}
cp "$disk" "$scratch/future"
cp -r "$disk.index" "$scratch/future.index"
check "both superblocks are of version 9" bad_disk version "$scratch/future" 9
refuse 1 "disk format 9 is unknown, the newest known is 1" "a disk of another format version" \
    chunkserver_on "$scratch/future"
refuse 3 "disk format 9 is unknown" "inspect says so" dlblk-disk inspect "$scratch/future"
refuse 5 "disk format 9 is unknown" "it is not formatted over" dlblk-disk format "$scratch/future" \
    --meta "$DLBLK_META" --index "$scratch/other.index"

check "a bit flips in the middle of the journal" bad_disk journal "$disk"
refuse 3 "DAMAGED: the chain does not reach" "inspect shows it" dlblk-disk inspect "$disk"
refuse 3 "journal: DAMAGED" "check says so" dlblk-disk check "$disk"
# If its journal ends before what the server had told, it is refused as an older copy would be; else
# it is known as damaged.
starts_damaged() {
    dlblk-chunkserver "$disk" --meta "$DLBLK_META" --listen 127.0.0.1:$((base_port + 3)) \
        >"$scratch/damaged.log" 2>&1 &
    local pid=$! known=1
    for _ in $(seq 400); do
        sleep 0.05
        grep -qE "registered as server 3|refused this disk: .* older copy" "$scratch/damaged.log" ||
            continue
        grep -q "problem: *server 3 " <(dlblk cluster status) && known=0 && break
    done
    kill -9 $pid
    wait $pid || true
    cat "$scratch/damaged.log"
    dlblk cluster status
    [ $known -eq 0 ] && grep -q "THE JOURNAL IS DAMAGED" "$scratch/damaged.log"
}
check "the server says so loudly, and the cluster's status has it" starts_damaged
check "the next start has not forgotten it" starts_damaged
finish 160
