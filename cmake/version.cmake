# SPDX-License-Identifier: Apache-2.0
# common/version_commit.h in the build directory names the commit.  It is looked at in every build
# and written only when the commit has changed, so that one file is compiled again then and none
# otherwise.
set(version_commit_header ${PROJECT_BINARY_DIR}/common/version_commit.h)
set(version_commit_command ${CMAKE_COMMAND}
    -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DOUTPUT=${version_commit_header}
    -DVERSION=${PROJECT_VERSION}
    -P ${PROJECT_SOURCE_DIR}/cmake/write-version-commit.cmake)
add_custom_target(version_commit
    COMMAND ${version_commit_command}
    BYPRODUCTS ${version_commit_header}
    VERBATIM)
