"""Start a program to which io_uring_setup(2) says ENOSYS, as a unit's SystemCallFilter= can."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
IO_URING_SETUP, ENOSYS = 425, 38
FILTER = (
    (LOAD, 0, 0, 0),
    (EQUAL, 0, 1, IO_URING_SETUP),
    (RETURN, 0, 0, 0x00050000 | ENOSYS),
    (RETURN, 0, 0, 0x7FFF0000),
)

libc = ctypes.CDLL(None)
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in FILTER))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, struct.pack("<HxxxxxxQ", len(FILTER), ctypes.addressof(code)), 0, 0):
    sys.exit("there is no seccomp")
os.execvp(sys.argv[1], sys.argv[1:])
