#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A scrub finds every flipped bit and repairs it.  While all is stopped a thousand sectors of live data
# are damaged straight on the disks, each in one of its three copies; `dlblk scrub` finds and repairs
# exactly these, a second one finds nothing, and every copy has the right bytes.  What no copy has right
# is said: by the exit status, in the cluster's state, in the log; until it is written anew.  A scrub
# works beside a writer, over a server that dies, and when a server is away.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires python3 jq nbdcopy nbdkit

start_cluster --size 256M
create_volume v --size 48M --segment 4M
flips=$(sized 1000 300)

# damage COUNT COPIES SEED: while all is stopped, bits of COUNT sectors of the image flip on COPIES
# of the three disks.
damage() {
    python3 - "$scratch/image" "$1" "$2" "$3" "$cluster"/server[123].disk <<'END'
import mmap, random, sys
image = open(sys.argv[1], "rb").read()
count, copies, seed = (int(word) for word in sys.argv[2:5])
chosen = random.Random(seed)
sectors = chosen.sample(range(len(image) // 4096), count)
changed = 0
disks = []
for path in sys.argv[5:]:
    file = open(path, "r+b")
    disk = mmap.mmap(file.fileno(), 0)
    places = {}
    for at in range(0, len(disk), 4096):
        block = disk[at:at + 4096]
        if block.count(0) < 4096:
            places[block] = at
    disks.append((disk, places))
for number, sector in enumerate(sectors):
    block = image[sector * 4096:(sector + 1) * 4096]
    for copy in range(copies):
        disk, places = disks[(number + copy) % len(disks)]
        bit = chosen.randrange(4096 * 8)
        disk[places[block] + bit // 8] ^= 1 << (bit % 8)
        changed += 1
for disk, _ in disks:
    disk.flush()
print(changed)
END
}

# damaged COUNT COPIES SEED: the cluster is stopped for it, and runs again.
damaged() {
    local_cluster stop >"$scratch/stop.log"
    damage "$@"
    local_cluster start >"$scratch/start.log"
    until [ "$(dlblk cluster status --json | jq .servers_up)" = 3 ]; do sleep 0.05; done
}

# found JQ: the last scrub, in $scratch/scrub.json.
found() {
    jq -e "$1" "$scratch/scrub.json"
}
scrub() {
    dlblk scrub v --json >"$scratch/scrub.json"
}
servers_sum() {
    dlblk server list --json | jq "[.servers[].scrub.$1] | add"
}
# One line for each heartbeat or message that may take a moment.
becomes() {
    local i
    for ((i = 0; i < 150; i++)); do
        ! eval "$1" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    eval "$1"
}
copies_are_right() {
    local slot
    for slot in 0 1 2; do
        slot_reader v "$slot" >"$scratch/slot" && cmp "$scratch/image" "$scratch/slot" || return 1
    done
}
copy_in() {
    serve v
    nbdcopy "$scratch/image" "$uri"
    stop_serving
}

head -c 48M /dev/urandom >"$scratch/image"
check "an empty volume is well" scrub
copy_in
check "a volume that is well" scrub
check "three copies were read" found '.counts.sectors == 3 * 12288'
check "nothing was wrong" found '.counts.bad == 0 and .counts.mismatches == 0 and .uncompared == 0'

# --- a thousand flipped bits, one copy of each ---
at_least "$flips" "$(damaged "$flips" 1 1)" "bits flipped on the disks"
check "a scrub, and all is well" scrub
check "it has found exactly them" found ".counts.bad == $flips"
check "and repaired them" found ".counts.repaired == $flips and .counts.left_bad == 0"
check "no copies differ" found '.counts.mismatches == 0 and .uncompared == 0 and .chunks_skipped == 0'
check "a second one" scrub
check "finds nothing" found '.counts.bad == 0 and .counts.sectors == 3 * 12288'
check "every copy has the right bytes" copies_are_right
check "the servers count them" becomes "[ \$(servers_sum repaired) = $flips ]"
check "the log says it" becomes "dlblk events --json |
    jq -e '[.events[] | select(.kind == \"bad-sector\" and .volume == \"v\")] | length >= 3'"
check "in few lines" eval "dlblk events --json |
    jq -e '[.events[] | select(.kind == \"bad-sector\")] | length <= 30'"
check "the volume's state shows the last scrub" eval \
    "dlblk volume status v --json | jq -e '.scrub.state == \"done\" and .state == \"healthy\"'"

# --- read repair ---
at_least 12 "$(damaged 12 1 2)" "bits flipped on the disks"
events_before=$(dlblk events --json | jq .next)
for slot in 0 1 2; do slot_reader v $slot >/dev/null 2>"$scratch/slot-reader.log" || true; done
for _ in 1 2 3 4 5 6; do
    serve v -r
    nbdcopy "$uri" "$scratch/out"
    stop_serving
    cmp "$scratch/image" "$scratch/out" || not_ok "a reader got a wrong byte"
done
check "what readers find is in the log, too" becomes "dlblk events --after $events_before --json |
    jq -e '.events[] | select(.kind == \"bad-sector\")'"
check "a scrub after it" scrub
check "repairs what they did not" found '.counts.left_bad == 0'
check "together all of them" becomes '[ $(servers_sum repaired) = 12 ]'
check "every copy has the right bytes" copies_are_right

# --- what no copy has ---
at_least 3 "$(damaged 1 3 3)" "copies of one sector are damaged"
check_fails 1 "" "a scrub says that not all is well" dlblk scrub v
check "the next one, too" eval '! scrub'
check "it is bad in three places" found '.counts.left_bad == 3'
check "the cluster is not well" becomes "dlblk cluster status --json |
    jq -e '.state == \"degraded\" and (.problems | join(\" \") | contains(\"sectors are bad\"))'"
check "nor is the volume, which says where" becomes "dlblk volume status v --json |
    jq -e '.state == \"degraded\" and (.problems | join(\" \") |
        test(\"1 sector is bad on server . .*in every other copy.*at byte [0-9]+ of the volume\"))'"
copy_in
check "written anew it is" scrub
check "the cluster is well again" becomes '[ "$(dlblk cluster status --json | jq -r .state)" = healthy ]'

# --- beside a writer, over the death of a server ---
at_least 60 "$(damaged 60 1 4)" "bits flipped on the disks"
dlblk scrub v --no-wait
local_cluster kill --only server2 >"$scratch/kill.log"
local_cluster start --only server2 >"$scratch/start.log"
copy_in &
writer=$!
becomes '[ "$(dlblk volume status v --json | jq -r .scrub.state)" = done ]' ||
    not_ok "a scrub over the death of a server ends"
wait $writer || not_ok "the writer has finished"
becomes '[ "$(dlblk volume status v --json | jq -r .state)" = healthy ]' || not_ok "recovered"
check "a scrub when all is back" scrub
check "has left nothing" found '.counts.left_bad == 0 and .counts.mismatches == 0'
check "every copy has the right bytes" copies_are_right

# --- a server that is away ---
local_cluster stop --only server3 >"$scratch/stop.log"
check_fails 1 "is down: its copies were not looked at" "one that is away is named" dlblk scrub v

finish 31
