# SPDX-License-Identifier: Apache-2.0
# The kinds of targets that the folders' CMakeLists.txt consist of.

# dlblk_library(NAME SOURCES FILE... [LINK TARGET...])
# The static library of one folder.  What it links is seen by those who link it.
function(dlblk_library name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
    add_library(${name} STATIC ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE dlblk_compile PUBLIC ${arg_LINK})
endfunction()

# dlblk_program(NAME [SBIN] SOURCES FILE... [LINK TARGET...])
# An installed program; with SBIN one for the administrator.
function(dlblk_program name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "SBIN" "" "SOURCES;LINK")
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE dlblk_compile ${arg_LINK})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
    if(arg_SBIN)
        install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR})
    else()
        install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    endif()
endfunction()

# dlblk_tool(NAME SOURCES FILE... [LINK TARGET...])
# A program for tests and benchmarks: built, not installed.
function(dlblk_tool name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE dlblk_compile ${arg_LINK})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
endfunction()

# dlblk_nbdkit_plugin(NAME SOURCES FILE... [LINK TARGET...])
# nbdkit-NAME-plugin.so.  It goes to where nbdkit looks for plugins, unless all goes to a folder of its own.
function(dlblk_nbdkit_plugin name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
    set(target nbdkit-${name}-plugin)
    add_library(${target} MODULE ${arg_SOURCES})
    target_link_libraries(${target} PRIVATE dlblk_compile PkgConfig::nbdkit ${arg_LINK})
    set_target_properties(${target} PROPERTIES
        PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
    pkg_get_variable(plugin_dir nbdkit plugindir)
    install(CODE "
        set(plugin_dir \"${plugin_dir}\")
        if(NOT CMAKE_INSTALL_PREFIX MATCHES \"^/usr(/local)?/?$\")
            set(libdir \"${CMAKE_INSTALL_LIBDIR}\")
            cmake_path(ABSOLUTE_PATH libdir BASE_DIRECTORY \"\${CMAKE_INSTALL_PREFIX}\")
            set(plugin_dir \"\${libdir}/nbdkit/plugins\")
        endif()
        file(INSTALL DESTINATION \"\${plugin_dir}\" TYPE MODULE FILES \"$<TARGET_FILE:${target}>\")")
endfunction()

# dlblk_install_template(FILE.in DESTINATION [PROGRAMS])
# A file that names the folders of what is installed.  They are known when that happens: cmake --install takes
# another --prefix.
function(dlblk_install_template template destination)
    cmake_path(GET template STEM LAST_ONLY name)
    set(made ${CMAKE_CURRENT_BINARY_DIR}/installed/${name})
    install(CODE "
        set(PROJECT_VERSION \"${PROJECT_VERSION}\")
        set(PROJECT_DESCRIPTION \"${PROJECT_DESCRIPTION}\")
        set(SBINDIR \"${CMAKE_INSTALL_SBINDIR}\")
        set(LIBDIR \"${CMAKE_INSTALL_LIBDIR}\")
        set(INCLUDEDIR \"${CMAKE_INSTALL_INCLUDEDIR}\")
        foreach(folder SBINDIR LIBDIR INCLUDEDIR)
            cmake_path(ABSOLUTE_PATH \${folder} BASE_DIRECTORY \"\${CMAKE_INSTALL_PREFIX}\"
                OUTPUT_VARIABLE CMAKE_INSTALL_FULL_\${folder})
        endforeach()
        configure_file(\"${template}\" \"${made}\" @ONLY)")
    if(ARGC GREATER 2)
        install(PROGRAMS ${made} DESTINATION ${destination})
    else()
        install(FILES ${made} DESTINATION ${destination})
    endif()
endfunction()

# dlblk_protobuf(TARGET FILE.proto)
# Adds the C code that protoc-c makes of a file of the current folder to a library.  It is
# included as "FOLDER/FILE.pb-c.h".
function(dlblk_protobuf target proto)
    string(REGEX REPLACE "[.]proto$" ".pb-c" stem ${proto})
    set(generated ${CMAKE_CURRENT_BINARY_DIR}/${stem}.c ${CMAKE_CURRENT_BINARY_DIR}/${stem}.h)
    add_custom_command(
        OUTPUT ${generated}
        COMMAND ${PROTOC_C} --proto_path=${CMAKE_CURRENT_SOURCE_DIR}
                --c_out=${CMAKE_CURRENT_BINARY_DIR} ${proto}
        DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${proto}
        VERBATIM)
    # The generator's style is not ours to warn about.
    set_source_files_properties(${generated} PROPERTIES COMPILE_OPTIONS -w)
    target_sources(${target} PRIVATE ${generated})
    # Others include the header: it must exist before any file of theirs is compiled.
    add_custom_target(${target}_protobuf DEPENDS ${generated})
    add_dependencies(${target} ${target}_protobuf)
    target_link_libraries(${target} PUBLIC PkgConfig::protobuf_c)
endfunction()

# dlblk_unit_test(NAME SOURCES FILE... [LINK TARGET...] [TIMEOUT SECONDS] [LABELS LABEL...])
# A cmocka program test_NAME, run by ctest as NAME with the label unit (or LABELS).  With the label
# threads it belongs to the suite tsan of scripts/test.
# Its first argument filters the test cases.
function(dlblk_unit_test name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "SOURCES;LINK;LABELS")
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 60)
    endif()
    if(NOT arg_LABELS)
        set(arg_LABELS unit)
    endif()
    add_executable(test_${name} ${arg_SOURCES})
    target_link_libraries(test_${name} PRIVATE dlblk_compile ${arg_LINK} PkgConfig::cmocka)
    add_test(NAME ${name} COMMAND test_${name})
    if("threads" IN_LIST arg_LABELS)
        add_dependencies(tsan_tests test_${name})
    endif()
    set_tests_properties(${name} PROPERTIES
        LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} SKIP_RETURN_CODE 77)
endfunction()

# dlblk_functional_test(FILE.sh [TIMEOUT SECONDS])
# A script with real daemons, run by ctest as FILE with the label functional.  It prints TAP, finds
# the build directory in DLBLK_BUILD, and exits with 77 where it can't run, which CI counts as a
# failure.
function(dlblk_functional_test script)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "")
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 300)
    endif()
    string(REGEX REPLACE "[.]sh$" "" name ${script})
    add_test(NAME ${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/${script})
    set_tests_properties(${name} PROPERTIES
        LABELS functional TIMEOUT ${arg_TIMEOUT} SKIP_RETURN_CODE 77
        ENVIRONMENT "DLBLK_BUILD=${PROJECT_BINARY_DIR}")
endfunction()

# dlblk_fuzz_target(NAME SOURCES FILE... [LINK TARGET...])
# A program fuzz_NAME around LLVMFuzzerTestOneInput().  With the preset fuzz it searches; in every
# other build it replays the corpus of tests/fuzz/corpus/NAME as the unit test fuzz_NAME, so that an
# input that once failed is tried again by each compiler and sanitizer.
function(dlblk_fuzz_target name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
    add_executable(fuzz_${name} ${arg_SOURCES})
    target_link_libraries(fuzz_${name} PRIVATE dlblk_compile ${arg_LINK})
    set_target_properties(fuzz_${name} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
    if(DLBLK_SANITIZE STREQUAL "fuzz")
        target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
        add_dependencies(fuzz_targets fuzz_${name})
    else()
        target_sources(fuzz_${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.c)
        add_test(NAME fuzz_${name}
            COMMAND fuzz_${name} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
        set_tests_properties(fuzz_${name} PROPERTIES LABELS unit TIMEOUT 60)
    endif()
endfunction()

# dlblk_man_page(NAME.SECTION.pod)
function(dlblk_man_page pod)
    string(REGEX MATCH "^(.*)[.]([1-8])[.]pod$" matched ${pod})
    set(page ${CMAKE_CURRENT_BINARY_DIR}/${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
    add_custom_command(
        OUTPUT ${page}
        COMMAND ${POD2MAN} --utf8 --errors=die --name=${CMAKE_MATCH_1} --section=${CMAKE_MATCH_2}
                --center=dlblk --release=${PROJECT_VERSION}
                ${CMAKE_CURRENT_SOURCE_DIR}/${pod} ${page}
        DEPENDS ${pod}
        VERBATIM)
    add_custom_target(man-${CMAKE_MATCH_1}.${CMAKE_MATCH_2} ALL DEPENDS ${page})
    install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${CMAKE_MATCH_2})
endfunction()
