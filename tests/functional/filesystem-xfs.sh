#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# xfs on a volume, through nbdfuse and a loop device: see filesystem.sh.
# shellcheck source-path=SCRIPTDIR source=functions.sh
. "$(dirname "$0")/functions.sh"
# shellcheck source-path=SCRIPTDIR source=filesystem.sh
. "$(dirname "$0")/filesystem.sh"

filesystem_story xfs 384M xfs_repair -n
