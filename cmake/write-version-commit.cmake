# SPDX-License-Identifier: Apache-2.0
# Run by each build: writes OUTPUT with the commit of SOURCE_DIR.  In an archive made by
# `git archive` the commit stands in cmake/archive-commit, where git put it.
execute_process(
    COMMAND git -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --match=v[0-9]*
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR NOT EXISTS ${SOURCE_DIR}/.git)
    file(STRINGS ${SOURCE_DIR}/cmake/archive-commit commit LIMIT_COUNT 1)
    if(commit MATCHES "Format")
        set(commit unknown)
    endif()
endif()

set(text "#define DLBLK_VERSION \"${VERSION}\"\n#define DLBLK_COMMIT \"${commit}\"\n")
set(old "")
if(EXISTS ${OUTPUT})
    file(READ ${OUTPUT} old)
endif()
if(NOT text STREQUAL old)
    file(WRITE ${OUTPUT} "${text}")
endif()
