# SPDX-License-Identifier: Apache-2.0
# Everything the project links with, all of it in Debian: scripts/install-deps installs it.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing>=2.3)
pkg_check_modules(isal REQUIRED IMPORTED_TARGET libisal)
pkg_check_modules(protobuf_c REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(rocksdb REQUIRED IMPORTED_TARGET rocksdb>=7.8)
pkg_check_modules(inih REQUIRED IMPORTED_TARGET inih)
pkg_check_modules(jansson REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(blkid REQUIRED IMPORTED_TARGET blkid)
pkg_check_modules(libsystemd REQUIRED IMPORTED_TARGET libsystemd)
pkg_check_modules(nbdkit REQUIRED IMPORTED_TARGET nbdkit>=1.32)
if(BUILD_TESTING)
    pkg_check_modules(cmocka REQUIRED IMPORTED_TARGET cmocka)
    pkg_check_modules(libnbd REQUIRED IMPORTED_TARGET libnbd)
endif()

find_program(PROTOC_C protoc-c REQUIRED)
find_program(POD2MAN pod2man REQUIRED)
