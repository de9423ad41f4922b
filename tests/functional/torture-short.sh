#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A few cycles of tests/torture/run, of each kind: daemons and clients die, hang and come back at
# random; no client sees an error but its own death, and no byte is wrong in any copy.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires fio nbdkit nbdinfo jq python3

# torture OPTION...: its last line goes on.
torture() {
    "$source_dir/tests/torture/run" --dir "$scratch" --pause 0.5 --longest 2 "$@" >"$scratch/torture.out" 2>&1 ||
        { cat "$scratch/torture.out"; return 1; }
    tail -n 1 "$scratch/torture.out"
}
for what in server client meta; do
    check "$what: $(sized 3 2) cycles" torture --what $what --cycles "$(sized 3 2)"
    sed 's/^/# /' "$scratch/check.out"
done
finish 3
