# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154
# filesystem.sh: the story of filesystem-ext4.sh and filesystem-xfs.sh: populate, unmount, check,
# compare, kill all, compare.
#
#     filesystem_story TYPE SIZE CHECK...    CHECK: the checker, without the device

filesystem_story() {
    local type=$1 size=$2
    shift 2
    requires_mount
    requires "mkfs.$type" "$1" nbdkit

    start_cluster --size 1G
    create_volume fs --size "$size"
    serve fs
    attach_loop
    check "mkfs.$type" "mkfs.$type" -q "$loop"
    mount_loop
    populate
    manifest_of "$scratch/mnt" >"$scratch/before"
    at_least 500 "$(find "$scratch/mnt" -type f | wc -l)" "files"
    at_least 20 "$(du -sm "$scratch/mnt" | cut -f 1)" "MiB in files"
    check "equal to the original" diff -r --no-dereference "$tree" "$scratch/mnt/tree"
    check "fstrim" fstrim "$scratch/mnt"
    check "unmount" umount "$scratch/mnt"
    check "$1 finds nothing wrong" "$@" "$loop"
    detach_loop
    stop_serving
    at_least 1 "$(counter trims)" "trims"
    at_least 1 "$(counter flushes)" "flushes"

    # The same after everything was killed at once.
    check "kill -9 of all daemons" local_cluster kill
    check "start" local_cluster start
    serve fs
    attach_loop
    check "$1 finds nothing wrong after the kill" "$@" "$loop"
    mount_loop
    manifest_of "$scratch/mnt" >"$scratch/after"
    check "every file and name is as it was" diff "$scratch/before" "$scratch/after"
    umount "$scratch/mnt"

    # And in the middle of work, with the filesystem mounted: its requests wait for the daemons.
    mount_loop
    cp -a "$tree" "$scratch/mnt/synced"
    sync -f "$scratch/mnt"
    (cp -a "$tree" "$scratch/mnt/unsynced" || true) >"$scratch/copy.log" 2>&1 &
    copy_pid=$!
    sleep 0.3
    local_cluster kill
    local_cluster start
    wait $copy_pid
    umount "$scratch/mnt"
    check "$1 finds nothing wrong after a kill in the middle" "$@" "$loop"
    mount_loop
    check "what was synced is whole" diff -r --no-dereference "$tree" "$scratch/mnt/synced"
    umount "$scratch/mnt"
    detach_loop
    stop_serving
    finish 15
}

# Headers and sources; then links, holes and sizes of all kinds.
populate() {
    tree=$scratch/tree
    mkdir "$tree"
    cp -a /usr/include/linux /usr/include/c++ "$tree" 2>/dev/null || true
    cp -a "$source_dir/tests" "$source_dir/include" "$tree"
    ln -s ../include "$tree/link"
    ln "$tree/include/dlblk/client.h" "$tree/hard-link"
    truncate -s 100M "$tree/sparse"
    printf end | dd of="$tree/sparse" bs=1 seek=50000000 conv=notrunc status=none
    head -c 10000000 /dev/urandom >"$tree/random"
    for i in $(seq 200); do
        head -c $((i * 97)) /dev/urandom >"$tree/small-$i"
    done
    cp -a "$tree" "$scratch/mnt/tree"
    sync -f "$scratch/mnt"
}
