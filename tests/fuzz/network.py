"""What comes from the link, and what criu says of its lock: frames, and the inventory of a dump."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from agent import announce, duplicates, floating, guard
from tests.fuzz.rooms import room

_HARDWARE = bytes(range(2, 8))
_ADDRESSES = ("192.0.2.7", "2001:db8::7")


def neighbour(data: bytes) -> None:
    """Whoever speaks in a frame has a hardware address of six bytes, or nobody does."""
    for address in _ADDRESSES:
        his = duplicates.answer(address, data)
        assert his is None or len(his) == 6


def neighbours() -> Iterable[bytes]:
    """Announcements and questions of both families."""
    for address in _ADDRESSES:
        yield announce.frame(address, _HARDWARE)
        yield duplicates.question(address, _HARDWARE)


def inventory(data: bytes) -> None:
    """The table that it names is one of criu's, and no longer than criu makes them."""
    path = room("inventory") / "inventory.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    name = floating.lock_of(path)
    assert not name or (name.startswith(guard.LOCK_PREFIX) and len(name) <= len(guard.LOCK_PREFIX) + 21)


def inventories() -> Iterable[bytes]:
    """Two magic numbers, the entry's length, and the entry: numbers, and the id of the dump."""
    entry = b"\x08\x02\x18\x01\x25\x01\x02\x03\x04\x6a\x24" + b"01234567-89ab-cdef-0123-456789abcdef"
    yield struct.pack("<3I", 0x54564319, 0x58313116, len(entry)) + entry
