#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ext4 on a volume, through nbdfuse and a loop device: see filesystem.sh.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"
# shellcheck source-path=SCRIPTDIR source=filesystem.sh
. "$(dirname "$0")/filesystem.sh"

filesystem_story ext4 320M e2fsck -fn
