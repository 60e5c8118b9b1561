"""Two small images of a dump, made fit for a tree that gets a terminal on this host from its holder (holder.py).

criu gives an external terminal only to a session's leader in the tree, and what inherits it from there must be forked
later: the tree's other tasks would have no controlling terminal, and a tree without its leader is refused ("No task
found with sid", criu/tty.c). So a session that the root leads becomes one that it does not, as a shell's job has it,
and `--shell-job` then makes all of it part of the holder's; and the external terminals forget their session.

Formats: criu/magic.h, images/pstree.proto, images/tty.proto. Written so that a second time changes nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from agent.images import ImageError, fields

_COMMON, _PSTREE, _TTY_INFO = 0x54564319, 0x50273030, 0x59453036
_PID, _SID = 1, 4
"""Fields of a pstree_entry."""
_TYPE, _TTY_SID, _TTY_PGRP, _EXTERNAL = 2, 6, 7, 5
"""Fields of a tty_info_entry, and the type of an external one."""
_NOBODY = 1
"""A session that no task of a tree leads."""


def fit(directory: Path) -> int:
    """Make the images of a dump fit; the group that was in the terminal's foreground, 0 where none was seen.

    Raises ImageError for what is no such image.
    """
    tree = list(_messages(directory / "pstree.img", _PSTREE))
    root = _values(tree[0]).get(_PID, 0) if tree else 0
    if not root:
        raise ImageError("pstree.img names no root")
    led = [_with(entry, _SID, _NOBODY) if _values(entry).get(_SID) == root else entry for entry in tree]
    _write(directory / "pstree.img", _PSTREE, led)
    terminals = list(_messages(directory / "tty-info.img", _TTY_INFO))
    groups = [_values(one).get(_TTY_PGRP, 0) for one in terminals if _values(one).get(_TYPE) == _EXTERNAL]
    free = [_with(one, _TTY_SID, 0) if _values(one).get(_TYPE) == _EXTERNAL else one for one in terminals]
    _write(directory / "tty-info.img", _TTY_INFO, free)
    return max(groups, default=0)


def _values(message: bytes) -> dict[int, int]:
    return {number: value for number, value, body in fields(message) if not body}


def _messages(path: Path, magic: int) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path.name} is missing") from None
    if data[:8] != struct.pack("<II", _COMMON, magic):
        raise ImageError(f"{path.name} is no such image")
    position = 8
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "little")
        message = data[position + 4 : position + 4 + size]
        if len(message) < size:
            raise ImageError(f"{path.name} is truncated")
        yield message
        position += 4 + size


def _write(path: Path, magic: int, messages: list[bytes]) -> None:
    parts = (struct.pack("<I", len(message)) + message for message in messages)
    new = path.with_suffix(".new")
    new.write_bytes(struct.pack("<II", _COMMON, magic) + b"".join(parts))
    os.replace(new, path)


def _with(message: bytes, number: int, value: int) -> bytes:
    """The message with another value, below 128, in a field that is a number."""
    changed = bytearray()
    position = 0
    while position < len(message):
        start = position
        key, position = _varint(message, position)
        if key & 7 == 0:
            _, position = _varint(message, position)
        elif key & 7 == 2:
            length, position = _varint(message, position)
            position += length
        else:
            position += 8 if key & 7 == 1 else 4
        changed += bytes([key, value]) if key == number << 3 else message[start:position]
    return bytes(changed)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, and where it ends. The message is known to be whole."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
