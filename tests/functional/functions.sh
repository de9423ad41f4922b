# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# functions.sh: what the functional tests share.  A test sources it first:
#
#     . "$(dirname "$0")/functions.sh"
#     requires nbdinfo
#     start_cluster --size 256M
#     dlblk volume create v --size 64M --failure-domain server
#     serve v
#     check "the size is that of the volume" test "$(nbdinfo --size "$uri")" = 67108864
#     finish 1
#
# check prints a TAP line; finish wants at least so many.  What a command prints is shown only if it
# fails.
# Everything that is started is ended when the test ends, however it does.
set -euo pipefail

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=${DLBLK_BUILD:-build/release}
[[ $build == /* ]] || build=$source_dir/$build
export DLBLK_BUILD=$build
PATH=$build/bin:$PATH
plugin=$build/lib/nbdkit-datenlord-plugin.so
test_name=$(basename "$0" .sh)
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/dlblk-$test_name-XXXXXX")
unset DLBLK_META

case_count=0
failed_count=0
cleanups=()

# --- results ---

ok() {
    case_count=$((case_count + 1))
    echo "ok $case_count - $*"
}

not_ok() {
    case_count=$((case_count + 1))
    failed_count=$((failed_count + 1))
    echo "not ok $case_count - $*"
}

# check DESCRIPTION COMMAND...
check() {
    local description=$1 status=0
    shift
    "$@" >"$scratch/check.out" 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        ok "$description"
    else
        not_ok "$description"
        echo "# $*: status $status"
        tail -n 40 "$scratch/check.out" | sed 's/^/#   /'
    fi
}

# check_fails STATUS TEXT DESCRIPTION COMMAND...: it must end with STATUS (a pattern) and say TEXT.
check_fails() {
    local status=$1 text=$2 description=$3 seen=0
    shift 3
    "$@" >"$scratch/check.out" 2>&1 || seen=$?
    # shellcheck disable=SC2053
    if [[ $seen == $status ]] && grep -qF -- "$text" "$scratch/check.out"; then
        ok "$description"
    else
        not_ok "$description"
        echo "# $*: status $seen, expected $status and '$text'"
        tail -n 40 "$scratch/check.out" | sed 's/^/#   /'
    fi
}

# at_least MINIMUM NUMBER WHAT: a test that did too little has shown nothing.
at_least() {
    if [ "$2" -ge "$1" ]; then
        ok "$3: $2, at least $1"
    else
        not_ok "$3: $2, at least $1"
    fi
}

# finish MINIMUM: the last line of a test.
finish() {
    [ $case_count -ge "$1" ] || not_ok "$case_count cases, at least $1"
    finished=yes
    [ $failed_count -eq 0 ]
    exit
}

skip() {
    echo "1..0 # SKIP $*"
    finished=yes
    exit 77
}

# --- what a test needs ---

requires() {
    local command
    for command in "$@"; do
        command -v "$command" >/dev/null || skip "$command is missing: scripts/install-deps"
    done
}

requires_root() {
    [ "$(id -u)" -eq 0 ] || skip "must run as root"
}

# A filesystem on a volume where the kernel has neither nbd nor ublk: nbdfuse and a loop device.
requires_mount() {
    requires_root
    requires nbdfuse losetup fusermount3
    [ -c /dev/fuse ] || skip "/dev/fuse is missing"
    losetup -f >/dev/null 2>&1 || skip "no loop device is free"
}

is_asan() {
    grep -q '^DLBLK_SANITIZE:STRING=address' "$build/CMakeCache.txt"
}

# sized RELEASE ASAN: sanitizers make everything several times slower.
sized() {
    if is_asan; then echo "$2"; else echo "$1"; fi
}

# --- cleaning up ---

# cleanup_fn COMMAND...: run when the test ends, the last one first.
cleanup_fn() {
    cleanups+=("$(printf '%q ' "$@")")
}

show_logs() {
    local log
    for log in "$scratch"/*.log "$scratch"/cluster/*.log; do
        [ -s "$log" ] || continue
        echo "# --- ${log#"$scratch"/}"
        tail -n 30 "$log" | cut -c 1-300 | sed 's/^/#   /'
    done
}

at_exit() {
    local status=$? i
    set +e
    if [ -z "${finished:-}" ]; then
        not_ok "$test_name ended early, with status $status"
        status=1
    fi
    for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do
        eval "${cleanups[i]}" >>"$scratch/cleanup.log" 2>&1
    done
    sanitizers_were_quiet || status=1
    [ $status -eq 0 ] || [ $status -eq 77 ] || show_logs
    rm -rf "$scratch"
    exit $status
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A daemon that stopped on a sanitizer's report, or on an assertion, has failed the test whatever
# else was seen.
sanitizers_were_quiet() {
    local pattern='ERROR: AddressSanitizer|runtime error:|ERROR: LeakSanitizer|assertion failed'
    local log
    for log in "$scratch"/*.log "$scratch"/cluster/*.log; do
        [ ! -f "$log" ] || without_leaks_of_nbdkit <"$log" | grep -E -A 12 "$pattern"
    done >"$scratch/reports"
    if [ -s "$scratch/reports" ]; then
        not_ok "no report of a sanitizer, no failed assertion"
        head -n 60 "$scratch/reports" | sed 's/^/#   /'
        return 1
    fi
}

# nbdkit itself may leave memory behind that it has for a connection, if it is told to end while
# clients are there: frame 1, who asked for it, is in its program.  A report of nothing else is
# dropped.
without_leaks_of_nbdkit() {
    awk '
        /ERROR: LeakSanitizer/ { report = $0; others = leak = ""; next }
        report == "" { print; next }
        /^(Direct|Indirect) leak of / { leak = $0; is_own = 0; next }
        /^SUMMARY: / { if (others != "") print report others; report = ""; next }
        / #1 .*\/nbdkit\+0x/ { is_own = 1 }
        $0 != "" { leak = leak "\n" $0; next }
        { if (leak != "" && !is_own) others = others "\n" leak; leak = "" }
        END { if (report != "") print report others "\n" leak }'
}

# --- the cluster ---

cluster=$scratch/cluster

local_cluster() {
    local command=$1
    shift
    "$source_dir/scripts/local-cluster" "$command" --dir "$cluster" "$@"
}

# Below the ports that the kernel gives to clients; many tests can run at the same time.
free_port() {
    local port i taken
    while :; do
        port=$((10000 + RANDOM % 2000 * 10))
        taken=no
        for i in 0 1 2 3 4 5 6 7 8 9; do
            # In hexadecimal, as the kernel lists what is listened on.
            grep -qi ":$(printf '%04X' $((port + i))) 0*:0000 0A" /proc/net/tcp && taken=yes
        done
        [ $taken = yes ] || break
    done
    echo $port
}

# start_cluster OPTION...: options of local-cluster; sets DLBLK_META.
start_cluster() {
    local attempt
    for attempt in 1 2 3; do
        cleanup_fn "$source_dir/scripts/local-cluster" kill --dir "$cluster"
        base_port=$(free_port)
        if local_cluster start --base-port "$base_port" "$@" >"$scratch/start.log" 2>&1; then
            export DLBLK_META=127.0.0.1:$base_port
            return
        fi
        # Another test may have taken a port meanwhile.
        grep -rqi 'address already in use' "$scratch/start.log" "$cluster"/*.log || break
        local_cluster kill || true
        rm -rf "$cluster"
    done
    cat "$scratch/start.log"
    echo "# the cluster did not start (try $attempt)"
    exit 1
}

create_volume() {
    dlblk volume create "$@" --failure-domain server >"$scratch/create.log"
}

# --- nbdkit ---

# nbdkit has no sanitizer itself: their runtime must be there before it.  Leaks are looked for in
# its log, at the end.
nbdkit_words=(nbdkit)
if is_asan; then
    nbdkit_preload=$(gcc -print-file-name=libasan.so):$build/lib/libnbdkit_preload.so
    nbdkit_words=(env "LD_PRELOAD=$nbdkit_preload" LSAN_OPTIONS=exitcode=0 nbdkit)
fi

nbdkit_with_plugin() {
    "${nbdkit_words[@]}" "$@"
}

# serve NAME [WORD...]: nbdkit on a socket; sets uri, nbdkit_pid and nbdkit_log.  Words are for
# nbdkit or the plugin.
serve_count=0
serve() {
    local name=$1
    shift
    serve_count=$((serve_count + 1))
    nbdkit_log=$scratch/nbdkit-$serve_count.log
    nbdkit_socket=$scratch/$name.sock
    rm -f "$nbdkit_socket" "$scratch/nbdkit.pid"
    # Without the lines for each request, of which there are too many.
    "${nbdkit_words[@]}" -f -v -D nbdkit.backend.datapath=0 -t 16 \
        -U "$nbdkit_socket" -P "$scratch/nbdkit.pid" "$plugin" "volume=$name" "$@" \
        >"$nbdkit_log" 2>&1 &
    nbdkit_pid=$!
    cleanup_fn kill "$nbdkit_pid"
    until [ -s "$scratch/nbdkit.pid" ]; do
        if ! kill -0 "$nbdkit_pid" 2>/dev/null; then
            tail -n 5 "$nbdkit_log" | sed 's/^/# /'
            echo "# nbdkit has ended"
            exit 1
        fi
        sleep 0.02
    done
    uri="nbd+unix:///?socket=$nbdkit_socket"
}

# The clients must be gone: nbdkit waits for them.
stop_serving() {
    kill "$nbdkit_pid"
    wait "$nbdkit_pid" || not_ok "nbdkit ends with status 0, not $?"
}

# counter NAME: after stop_serving.
counter() {
    sed -n "s/.*datenlord: counters.* $1=\([0-9]*\).*/\1/p" "$nbdkit_log" | tail -n 1
}

# --- a filesystem ---

# attach_loop: the volume that is served becomes a loop device; sets loop.
attach_loop() {
    mkdir -p "$scratch/fuse"
    nbdfuse -P "$scratch/nbdfuse.pid" "$scratch/fuse/disk" "$uri" >"$scratch/nbdfuse.log" 2>&1 &
    nbdfuse_pid=$!
    cleanup_fn detach_loop
    while [ ! -s "$scratch/nbdfuse.pid" ]; do
        kill -0 "$nbdfuse_pid" || { cat "$scratch/nbdfuse.log"; exit 1; }
        sleep 0.02
    done
    loop=$(losetup -f --show --direct-io=on "$scratch/fuse/disk")
}

detach_loop() {
    [ -n "${loop:-}" ] || return 0
    losetup -d "$loop"
    # The loop device lets go of the file a moment later.
    for _ in $(seq 500); do
        ! fusermount3 -u "$scratch/fuse" 2>"$scratch/fusermount.log" || break
        sleep 0.02
    done
    loop=""
    if mountpoint -q "$scratch/fuse"; then
        cat "$scratch/fusermount.log"
        kill "$nbdfuse_pid"
    fi
    wait "$nbdfuse_pid" || true
    rm -f "$scratch/nbdfuse.pid"
}

mount_loop() {
    mkdir -p "$scratch/mnt"
    mount "$@" "$loop" "$scratch/mnt"
    cleanup_fn unmount_loop
}

unmount_loop() {
    ! mountpoint -q "$scratch/mnt" || umount "$scratch/mnt"
}

# A list of all files with their checksums, and of all names with modes and link targets.
manifest_of() {
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum &&
        find . -not -name lost+found -printf '%p %M %l\n' | sort)
}
