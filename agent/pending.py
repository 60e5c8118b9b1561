"""What is still to come of an address space, and where it comes from: pieces of memory and mapped pages images."""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_MADV_POPULATE_READ = 22
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Pages:
    """One pages image, mapped."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size
        address = _libc.mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, self.descriptor, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"{path} can't be mapped")
        self.address: int = address

    def ready(self, offset: int, length: int) -> int:
        """Our address of a piece, its pages in our tables: a copy whose source faults takes the kernel's slow way."""
        _libc.madvise(self.address + offset, length, _MADV_POPULATE_READ)
        return self.address + offset

    def punch(self, offset: int, length: int) -> None:
        """Give a piece's memory back."""
        _libc.fallocate(self.descriptor, _PUNCH, offset, length)


Piece = tuple[int, int, int, int]
"""start, end, number of the pages image, offset in it."""


class Pending:
    """What of one address space is still to come: pieces by their address there, ascending."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = list(pieces)
        self._starts = [piece[0] for piece in self._pieces]
        self.size = sum(piece[1] - piece[0] for piece in self._pieces)

    def copy(self) -> Pending:
        """The same for a forked child."""
        return Pending(self._pieces)

    def at(self, address: int) -> Optional[Piece]:
        """The piece that holds an address."""
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address < self._pieces[place][1]:
            return self._pieces[place]
        return None

    @property
    def first(self) -> Optional[Piece]:
        """The last piece of all: from the end, dropping is cheapest."""
        return self._pieces[-1] if self._pieces else None

    def drop(self, start: int, end: int) -> list[Piece]:
        """Take a range out; what of it was still to come."""
        place = max(0, bisect_right(self._starts, start) - 1)
        out: list[Piece] = []
        kept: list[Piece] = []
        stop = place
        while stop < len(self._pieces) and self._pieces[stop][0] < end:
            first, last, image, offset = self._pieces[stop]
            low, high = max(first, start), min(last, end)
            if low < high:
                out.append((low, high, image, offset + low - first))
                if first < low:
                    kept.append((first, low, image, offset))
                if high < last:
                    kept.append((high, last, image, offset + high - first))
            else:
                kept.append(self._pieces[stop])
            stop += 1
        if out:
            self._pieces[place:stop] = kept
            self._starts[place:stop] = [piece[0] for piece in kept]
            self.size -= sum(high - low for low, high, _, _ in out)
        return out

    def move(self, start: int, to: int, length: int) -> None:
        """A range has another address now."""
        moved = self.drop(start, start + length)
        self.drop(to, to + length)
        for first, last, image, offset in moved:
            self.insert((first - start + to, last - start + to, image, offset))

    def insert(self, piece: Piece) -> None:
        """One more piece, where there is none."""
        place = bisect_right(self._starts, piece[0])
        self._pieces.insert(place, piece)
        self._starts.insert(place, piece[0])
        self.size += piece[1] - piece[0]


class Space:
    """One address space: its userfaultfd, and what is still to come."""

    def __init__(self, pid: int, descriptor: int, pending: Pending, hot: list[tuple[int, int]]) -> None:
        self.pid = pid
        self.descriptor = descriptor
        self.pending = pending
        self.hot = hot
