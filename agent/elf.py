"""The build id of an ELF file, which criu compares on restore. Knows no more of ELF than the way to that note.

Reads a bounded number of bytes wherever the file's own numbers may point, and never fails on garbage: no id is "".
"""

from __future__ import annotations

import os
import stat
import struct

_MAGIC = b"\x7fELF"
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_OWNER = b"GNU\0"
_HEADERS = 1024
"""Program headers looked at; real files have some dozen."""
_NOTES = 1 << 16
"""Bytes of one note segment looked at; criu itself stops far earlier."""
_LONGEST = 64
"""Bytes of an id. A SHA-1 has 20."""


def build_id(path: str) -> str:
    """Build id of an ELF file in hexadecimal; "" where there is none, or no such file, or it cannot be read."""
    try:
        # a FIFO would block, and a device may act when it is opened
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return _of_descriptor(descriptor)
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _of_descriptor(descriptor: int) -> str:
    head = os.pread(descriptor, 64, 0)
    if len(head) < 52 or head[:4] != _MAGIC or head[4] not in (1, 2) or head[5] not in (1, 2):
        return ""
    order = "<" if head[5] == 1 else ">"
    if head[4] == 2:
        if len(head) < 64:
            return ""
        (table,) = struct.unpack_from(order + "Q", head, 32)
        entry_size, count = struct.unpack_from(order + "HH", head, 54)
        layout, smallest = order + "I4xQ16xQ8xQ", 56  # p_type, p_offset, p_filesz, p_align
    else:
        (table,) = struct.unpack_from(order + "I", head, 28)
        entry_size, count = struct.unpack_from(order + "HH", head, 42)
        layout, smallest = order + "II8xI8xI", 32
    if entry_size < smallest:
        return ""
    headers = _read(descriptor, entry_size * min(count, _HEADERS), table)
    for start in range(0, len(headers) - smallest + 1, entry_size):
        kind, offset, size, alignment = struct.unpack_from(layout, headers, start)
        if kind == _PT_NOTE:
            found = notes_build_id(_read(descriptor, min(size, _NOTES), offset), order, 8 if alignment == 8 else 4)
            if found:
                return found
    return ""


def _read(descriptor: int, size: int, offset: int) -> bytes:
    # offsets beyond what a file can have are garbage, and pread would raise OverflowError or EINVAL
    return os.pread(descriptor, size, offset) if offset < 1 << 62 else b""


def notes_build_id(notes: bytes, order: str = "<", alignment: int = 4) -> str:
    """Build id among the notes of one segment, in hexadecimal; "" where there is none.

    `order` is the byte order as `struct` writes it; `alignment` the segment's, 4 or 8 (elf(5), the gABI).
    """
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, position)
        name = position + 12
        body = _aligned(name + name_size, alignment)
        if (
            kind == _NT_GNU_BUILD_ID
            and notes[name : name + name_size] == _OWNER
            and 0 < size <= _LONGEST
            and body + size <= len(notes)
        ):
            return notes[body : body + size].hex()
        position = _aligned(body + size, alignment)
    return ""


def _aligned(position: int, alignment: int) -> int:
    return (position + alignment - 1) & -alignment
