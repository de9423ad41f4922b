#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What cmake --install puts in place: every program, the plugin, library, header, manual pages and
# units, with the folders that they were installed to; a program of somebody else is compiled
# against it, with what pkg-config says, and works.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"

requires cmake gcc pkg-config groff systemd-analyze nbdkit nbdinfo jq

root=$scratch/root
check "cmake --install" cmake --install "$build" --prefix "$root"
for file in bin/dlblk sbin/dlblk-meta sbin/dlblk-chunkserver sbin/dlblk-disk \
    lib/libdlblk.so lib/nbdkit/plugins/nbdkit-datenlord-plugin.so \
    include/dlblk/client.h include/dlblk/error.h lib/pkgconfig/libdlblk.pc \
    lib/systemd/system/dlblk-meta.service lib/systemd/system/dlblk-chunkserver@.service; do
    check "$file is there" test -s "$root/$file"
done

# --- manual pages: one for each program, and for what it reads ---

for page in man1/dlblk.1 man1/nbdkit-datenlord-plugin.1 man5/dlblk.conf.5 man8/dlblk-meta.8 \
    man8/dlblk-chunkserver.8 man8/dlblk-disk.8 man8/dlblk-ublk.8; do
    is_rendered() {
        groff -K utf8 -Tutf8 -man -ww "$root/share/man/$page" >"$scratch/page" 2>"$scratch/warnings"
        cat "$scratch/warnings"
        [ ! -s "$scratch/warnings" ] && [ "$(wc -l <"$scratch/page")" -ge 50 ]
    }
    check "$page is rendered without warnings" is_rendered
done

# --- units: with the folder that all was installed to ---

for unit in dlblk-meta.service dlblk-chunkserver@.service dlblk-ublk@.service; do
    # The manual pages that the unit names are not where man looks.
    check "$unit is a good unit" systemd-analyze verify --man=no "$root/lib/systemd/system/$unit"
    check "$unit starts what was installed" \
        grep -q "^ExecStart=$root/sbin/dlblk-" "$root/lib/systemd/system/$unit"
    check "$unit tells when it is ready" grep -q '^Type=notify$' "$root/lib/systemd/system/$unit"
done

# --- attach.conf: its volumes are wanted at boot ---

generator=$root/lib/systemd/system-generators/dlblk-ublk-generator
printf '%s\n' '# comment' '' 'db-1 --queues 2' '  db.2# small' '../evil' '-x' >"$scratch/attach.conf"
printf 'last' >>"$scratch/attach.conf"
mkdir "$scratch/units"
DLBLK_ATTACH_CONF=$scratch/attach.conf "$generator" "$scratch/units" 2>"$scratch/generator.err"
check "the generator" test $? = 0
check "each volume's unit is wanted" test "$(cd "$scratch/units/multi-user.target.wants" && echo ./*)" = \
    "./dlblk-ublk@db-1.service ./dlblk-ublk@db.2.service ./dlblk-ublk@last.service"
for link in "$scratch"/units/multi-user.target.wants/*; do
    check "${link##*/} is there" test -s "$link"
done
check "what is no volume is named" test "$(grep -c 'not the name of a volume' "$scratch/generator.err")" = 2
check "without the file there is nothing to do" \
    env DLBLK_ATTACH_CONF="$scratch/none" "$generator" "$scratch/none"
check "nothing is made" test ! -e "$scratch/none"

# --- every program says what it is ---

for program in bin/dlblk sbin/dlblk-meta sbin/dlblk-chunkserver sbin/dlblk-disk \
    sbin/dlblk-ublk; do
    "$root/$program" --version >"$scratch/version"
    check "$program --version: commit" grep -qE '\b[0-9a-f]{7,40}\b' "$scratch/version"
    check "$program --version: versions of wire and disk" \
        grep -qiE 'wire.*[0-9].*disk.*[0-9]|disk.*[0-9].*wire.*[0-9]' <(tr '\n' ' ' <"$scratch/version")
    check "$program --help" "$root/$program" --help
done

# --- the library, used by somebody else ---

start_cluster --size 256M
create_volume v --size 16M
cat >"$scratch/consumer.c" <<'END'
#include <dlblk/client.h>
#include <stdio.h>
#include <string.h>

int
main(void)
{
    static char written[8192] = "written by a program of somebody else", found[8192];
    struct dlblk_client *client;
    struct dlblk_volume *volume;
    struct dl_error err;

    if (dlblk_client_create(&client, NULL, &err) != 0 ||
        dlblk_volume_open(client, "v", 0, &volume, &err) != 0) {
        fprintf(stderr, "%s\n%s\n", err.text, err.hint);
        return 1;
    }
    if (dlblk_write(volume, written, sizeof(written), 4096) != 0 ||
        dlblk_read(volume, found, sizeof(found), 4096) != 0)
        return 1;
    printf("%s\n", found);
    if (dlblk_volume_close(volume, &err) != 0)
        return 1;
    dlblk_client_destroy(client);
    return memcmp(written, found, sizeof(found)) != 0;
}
END
export PKG_CONFIG_PATH=$root/lib/pkgconfig
compile() {
    # shellcheck disable=SC2046
    "$@" -Wall -Wextra -Werror $(is_asan && echo -fsanitize=address,undefined) \
        "$scratch/consumer.c" -o "$scratch/consumer" $(pkg-config --cflags --libs libdlblk) \
        -Wl,-rpath,"$root/lib"
}
check "a program is compiled against it: C99" compile gcc -std=c99 -pedantic
check "and finds what it wrote" test "$("$scratch/consumer")" = "written by a program of somebody else"
check "the header is C++, too" g++ -x c++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only \
    -I"$root/include" "$root/include/dlblk/client.h"
foreign_names() {
    nm -D --defined-only "$root/lib/libdlblk.so" | awk '$2 != "A" { print $3 }' |
        grep -vE '^(dlblk|dl)_'
}
check "the library shows no names but its own" test -z "$(foreign_names)"

# --- the plugin that was installed ---

plugin=$root/lib/nbdkit/plugins/nbdkit-datenlord-plugin.so
serve v
check "the plugin serves" test "$(nbdinfo --size "$uri")" = 16777216
stop_serving
nbdkit_with_plugin "$plugin" --dump-plugin >"$scratch/dump"
check "--dump-plugin: names itself" grep -q '^name=datenlord$' "$scratch/dump"
check "--dump-plugin: thread model" grep -q '^max_thread_model=parallel$' "$scratch/dump"
check "--dump-plugin: its own lines" grep -q '^datenlord_' "$scratch/dump"

finish 52
