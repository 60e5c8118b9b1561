"""What pager and warden share: a record, in shared memory, of all that a new pager must know when one has died.

A new pager can build its index from the images again, but not the past of the address spaces: which descriptor is
whose, what was forked, moved, unmapped. So the pager reads each message of a userfaultfd straight into a slot of this
record: the kernel's own write is the record, and no instant is left in which a message was read and is nowhere.
What was copied is recorded too, in its order among the events: a new pager goes on where the last one was.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Union

from agent import userfault

SLOTS = 1 << 18
"""Room for so many tasks, forks, moves and unmappings; faults take none. 12 MiB, of which only what is used exists."""

_SLOT = 48
_HEADER = 4096

TASK = 1
MESSAGE = 2
COPIED = 3
GONE = 4

_FIELDS = (
    "used", "connection", "half_read", "last_round", "complete", "filling", "punching", "finished", "faults",
    "longest_ns", "copied", "marked", "resumed_ns", "gaps",
)  # fmt: skip


class RecordFull(Exception):
    """More has happened to the address spaces than the record can hold."""


class Record:
    """The shared record. Made before the two part; every field is one 64-bit word."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _HEADER + SLOTS * _SLOT, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._map)
        self.connection = -1

    def _get(self, name: str) -> int:
        value: int = struct.unpack_from("=q", self._map, _FIELDS.index(name) * 8)[0]
        return value

    def _set(self, name: str, value: int) -> None:
        struct.pack_into("=q", self._map, _FIELDS.index(name) * 8, value)

    def __getattr__(self, name: str) -> int:
        if name in _FIELDS:
            return self._get(name)
        raise AttributeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FIELDS and isinstance(value, int):
            self._set(name, value)
        else:
            super().__setattr__(name, value)

    def _place(self) -> int:
        used = self._get("used")
        if used >= SLOTS:
            raise RecordFull(f"over {SLOTS} events of address spaces")
        return _HEADER + used * _SLOT

    @property
    def word(self) -> memoryview:
        """The four bytes of `half_read`, for a word of criu's to be received into."""
        place = _FIELDS.index("half_read") * 8
        return self._view[place : place + 4]

    def _add(self, kind: int, *words: int) -> None:
        place = self._place()
        struct.pack_into("=q", self._map, place, 0)
        struct.pack_into(f"={len(words)}q", self._map, place + 8, *words)
        struct.pack_into("=q", self._map, place, kind)
        self._set("used", self._get("used") + 1)

    def add_task(self, pid: int, descriptor: int) -> None:
        """A task's userfaultfd has come."""
        self._add(TASK, descriptor, pid)

    def add_gone(self, descriptor: int) -> None:
        """An address space has ended, and its descriptor is about to be closed: its number may come again."""
        self._add(GONE, descriptor)

    def add_copied(self, descriptor: int, start: int, end: int) -> bool:
        """A range is in place. False when half of the record is used: events need the rest, copying can be repeated."""
        used = self._get("used")
        if used:
            place = _HEADER + (used - 1) * _SLOT
            kind, whose, first, last = struct.unpack_from("=qqqq", self._map, place)
            if (kind, whose) == (COPIED, descriptor) and end == first:
                struct.pack_into("=q", self._map, place + 16, start)
                return True
            if (kind, whose) == (COPIED, descriptor) and start == last:
                struct.pack_into("=q", self._map, place + 24, end)
                return True
        if used >= SLOTS // 2:
            return False
        self._add(COPIED, descriptor, start, end)
        return True

    def read(self, descriptor: int) -> Union[userfault.Message, None]:
        """The next message of a userfaultfd, recorded if it is more than a fault. None when there is none.

        Raises OSError when the descriptor is no longer good.
        """
        place = self._place()
        # in this order: whatever a predecessor left in the slot must never look like a message
        struct.pack_into("=q", self._map, place, 0)
        message = self._view[place + 16 : place + _SLOT]
        message[:] = bytes(userfault.MESSAGE)
        struct.pack_into("=q", self._map, place + 8, descriptor)
        struct.pack_into("=q", self._map, place, MESSAGE)
        try:
            if os.readv(descriptor, [message]) != userfault.MESSAGE:
                return None
        except BlockingIOError:
            return None
        parsed = userfault.parse(bytes(message))
        if parsed.event != userfault.FAULT:
            self._set("used", self._get("used") + 1)
        return parsed

    def forget_last(self) -> None:
        """The message that was read last changed nothing: its slot is used again. Until then it may still be told."""
        self._set("used", self._get("used") - 1)

    @property
    def progress(self) -> tuple[int, int]:
        """What changes whenever something was copied or has happened."""
        return self._get("copied"), self._get("used")

    @property
    def tasks(self) -> list[int]:
        """PIDs of the tasks whose memory is filled."""
        return [pid for kind, _, pid, _ in self.past if kind == TASK and pid > 0]

    @property
    def past(self) -> Iterator[tuple[int, int, int, userfault.Message]]:
        """(kind, descriptor, pid, message) of all that has happened, the message that was being read last included.

        What was copied is told as a message from `address` to `end`.
        """
        used = self._get("used")
        for number in range(min(used + 1, SLOTS)):
            kind, descriptor, word = struct.unpack_from("=qqq", self._map, _HEADER + number * _SLOT)
            if kind == TASK and number < used:
                yield kind, descriptor, word, userfault.Message(0)
            elif kind == GONE and number < used:
                yield kind, descriptor, 0, userfault.Message(0)
            elif kind == COPIED and number < used:
                (end,) = struct.unpack_from("=q", self._map, _HEADER + number * _SLOT + 24)
                yield kind, descriptor, 0, userfault.Message(0, address=word, end=end)
            elif kind == MESSAGE:
                place = _HEADER + number * _SLOT + 16
                data = bytes(self._view[place : place + userfault.MESSAGE])
                if data[0] and (number < used or data[0] != userfault.FAULT):
                    yield kind, descriptor, 0, userfault.parse(data)

    def close_gap(self) -> None:
        """A message that its reader died over counts as read: keep it, unless it is a fault, which comes again."""
        used = self._get("used")
        place = _HEADER + used * _SLOT
        if used < SLOTS and struct.unpack_from("=q", self._map, place)[0] == MESSAGE:
            event = self._map[place + 16]
            if event and event != userfault.FAULT:
                self._set("used", used + 1)
