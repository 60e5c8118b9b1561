"""What is still to come of an address space, and where it comes from: pieces of memory and mapped pages images."""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
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
            os.close(self.descriptor)
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
    """What of one address space is still to come: pieces by their address there, ascending and without overlap.

    Parallel arrays: torn memory has millions of pieces.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._images = array("I")
        self._offsets = array("Q")
        self.size = 0
        for start, end, image, offset in pieces:
            self._starts.append(start)
            self._ends.append(end)
            self._images.append(image)
            self._offsets.append(offset)
            self.size += end - start

    def copy(self) -> Pending:
        """The same for a forked child."""
        twin = Pending(())
        twin._starts, twin._ends = self._starts[:], self._ends[:]
        twin._images, twin._offsets = self._images[:], self._offsets[:]
        twin.size = self.size
        return twin

    @property
    def pieces(self) -> Iterator[Piece]:
        """All of it."""
        return zip(self._starts, self._ends, self._images, self._offsets)

    def _piece(self, place: int) -> Piece:
        return self._starts[place], self._ends[place], self._images[place], self._offsets[place]

    def at(self, address: int) -> Optional[Piece]:
        """The piece that holds an address."""
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address < self._ends[place]:
            return self._piece(place)
        return None

    @property
    def first(self) -> Optional[Piece]:
        """The last piece of all: from the end, dropping is cheapest."""
        return self._piece(-1) if self._starts else None

    def drop(self, start: int, end: int) -> list[Piece]:
        """Take a range out; what of it was still to come."""
        place = max(0, bisect_right(self._starts, start) - 1)
        stop = place
        out: list[Piece] = []
        kept: list[Piece] = []
        while stop < len(self._starts) and self._starts[stop] < end:
            first, last, image, offset = self._piece(stop)
            low, high = max(first, start), min(last, end)
            if low < high:
                out.append((low, high, image, offset + low - first))
                if first < low:
                    kept.append((first, low, image, offset))
                if high < last:
                    kept.append((high, last, image, offset + high - first))
            else:
                kept.append((first, last, image, offset))
            stop += 1
        if out:
            self._replace(place, stop, kept)
            self.size -= sum(high - low for low, high, _, _ in out)
        return out

    def _replace(self, place: int, stop: int, pieces: list[Piece]) -> None:
        self._starts[place:stop] = array("Q", [piece[0] for piece in pieces])
        self._ends[place:stop] = array("Q", [piece[1] for piece in pieces])
        self._images[place:stop] = array("I", [piece[2] for piece in pieces])
        self._offsets[place:stop] = array("Q", [piece[3] for piece in pieces])

    def move(self, start: int, to: int, length: int) -> bool:
        """A range has another address now. False when that changes nothing."""
        moved = self.drop(start, start + length)
        covered = self.drop(to, to + length)
        for first, last, image, offset in moved:
            self.insert((first - start + to, last - start + to, image, offset))
        return bool(moved or covered)

    def insert(self, piece: Piece) -> None:
        """One more piece, where there is none."""
        place = bisect_right(self._starts, piece[0])
        self._replace(place, place, [piece])
        self.size += piece[1] - piece[0]


class Space:
    """One address space: its userfaultfd, and what is still to come."""

    def __init__(self, pid: int, descriptor: int, pending: Pending, hot: list[tuple[int, int]]) -> None:
        self.pid = pid
        self.descriptor = descriptor
        self.pending = pending
        self.hot = hot
