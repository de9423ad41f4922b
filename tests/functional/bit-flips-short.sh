#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Some flips of tests/torture/bit_flips: bits flip on the servers' disks, in data, leaves, journal
# and superblocks; all are found and repaired, and no user gets a wrong byte.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdcopy jq python3

# Its last line goes on.
bit_flips() {
    "$source_dir/tests/torture/bit_flips" --dir "$scratch" "$@" >"$scratch/flips.out" 2>&1 ||
        { cat "$scratch/flips.out"; return 1; }
    tail -n 1 "$scratch/flips.out"
}
check "bits flip on the disks" bit_flips --flips 50
sed 's/^/# /' "$scratch/check.out"
at_least 50 "$(sed -n 's/^\([0-9]*\) bits flipped.*all repaired.*/\1/p' "$scratch/check.out")" "flips"
finish 2
