# SPDX-License-Identifier: Apache-2.0
# How every file is compiled: one interface library that all targets link.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# No -DNDEBUG: dl_assert is on in every build.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g")
set(CMAKE_C_FLAGS_DEBUG "-Og -g3")

if(DLBLK_CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER)
    find_program(CCACHE ccache)
    if(CCACHE)
        set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
    endif()
endif()

add_library(dlblk_compile INTERFACE)
target_include_directories(dlblk_compile INTERFACE
    ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR})
target_compile_definitions(dlblk_compile INTERFACE _GNU_SOURCE)
target_compile_options(dlblk_compile INTERFACE
    -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wvla
    -Wpointer-arith -Wwrite-strings -Wundef -Wformat=2 -Wredundant-decls
    -fno-common -fvisibility=hidden)
if(DLBLK_WERROR)
    target_compile_options(dlblk_compile INTERFACE -Werror)
endif()
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    target_compile_options(dlblk_compile INTERFACE
        -Wduplicated-cond -Wduplicated-branches -Wlogical-op)
endif()

if(DLBLK_EXPENSIVE_CHECKS OR CMAKE_BUILD_TYPE STREQUAL "Debug")
    target_compile_definitions(dlblk_compile INTERFACE DLBLK_EXPENSIVE_CHECKS=1)
else()
    target_compile_definitions(dlblk_compile INTERFACE DLBLK_EXPENSIVE_CHECKS=0)
endif()

set(sanitize_address -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
if(DLBLK_SANITIZE STREQUAL "")
    if(CMAKE_BUILD_TYPE STREQUAL "Release")
        target_compile_options(dlblk_compile INTERFACE
            -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong)
    endif()
elseif(DLBLK_SANITIZE STREQUAL "address")
    target_compile_options(dlblk_compile INTERFACE ${sanitize_address})
    target_link_options(dlblk_compile INTERFACE ${sanitize_address})
elseif(DLBLK_SANITIZE STREQUAL "thread")
    target_compile_options(dlblk_compile INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
    target_link_options(dlblk_compile INTERFACE -fsanitize=thread)
elseif(DLBLK_SANITIZE STREQUAL "fuzz")
    if(NOT CMAKE_C_COMPILER_ID STREQUAL "Clang")
        message(FATAL_ERROR "DLBLK_SANITIZE=fuzz needs clang: cmake --preset fuzz")
    endif()
    target_compile_options(dlblk_compile INTERFACE ${sanitize_address} -fsanitize=fuzzer-no-link)
    target_link_options(dlblk_compile INTERFACE ${sanitize_address})
else()
    message(FATAL_ERROR "DLBLK_SANITIZE is '${DLBLK_SANITIZE}', not address, thread or fuzz")
endif()
