#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a program whose io_uring_setup is answered with EPERM, as a container may do.

    without_io_uring.py PROGRAM ARGUMENT...
"""
import ctypes
import os
import struct
import sys

NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ERRNO, ALLOW, EPERM = 0x00050000, 0x7FFF0000, 1
IO_URING_SETUP = 425

CODE = [
    (LOAD, 0, 0, 0),  # the number of the system call
    (JUMP_EQUAL, 0, 1, IO_URING_SETUP),
    (RETURN, 0, 0, ERRNO | EPERM),
    (RETURN, 0, 0, ALLOW),
]


class Program(ctypes.Structure):
    """struct sock_fprog."""
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in CODE))
program = Program(len(CODE), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(SECCOMP, FILTER, ctypes.byref(program), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
