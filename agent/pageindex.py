"""The page index: which page of a tree lies in which round's image, newest round first. It only looks.

The index of one task is a list of extents, ascending and without overlap: addresses in memory, the round whose
`pages-*.img` holds them, the offset there. It is built while rounds arrive: each round's pagemap is laid over what the
rounds before gave. A page that a round expects in an earlier one and that none has means a broken chain: that is the
audit which comes before COMMIT.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from agent.images import ImageError
from agent.pagemap import IN_PARENT, LAZY, MOST_PIECES, PRESENT, Areas, Map, TooTorn, lazy_areas, marked, read, write


class BrokenChain(ImageError):
    """A page that no round holds, or an image that is shorter than its map says."""


class Index:
    """Where each page of one task lies: extents, ascending and without overlap."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._rounds = array("I")
        self._offsets = array("Q")

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def extents(self) -> Iterator[tuple[int, int, int, int]]:
        """(start, end, round, offset) of each, ascending."""
        return zip(self._starts, self._ends, self._rounds, self._offsets)

    def _append(self, start: int, end: int, number: int, offset: int, *, apart: bool = False) -> None:
        """One more extent, behind the others; made one with the last if it continues it, unless kept `apart`."""
        if not apart and len(self._starts) and self._ends[-1] == start and self._rounds[-1] == number:
            follows = self._offsets[-1] + self._ends[-1] - self._starts[-1] == offset
            if follows:
                self._ends[-1] = end
                return
        if len(self._starts) >= MOST_PIECES:
            raise TooTorn
        self._starts.append(start)
        self._ends.append(end)
        self._rounds.append(number)
        self._offsets.append(offset)

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The extents of a range of addresses, cut to it."""
        position = max(0, bisect_right(self._starts, start) - 1)
        while position < len(self._starts) and self._starts[position] < end:
            first, last = max(start, self._starts[position]), min(end, self._ends[position])
            if first < last:
                offset = self._offsets[position] + first - self._starts[position]
                yield first, last, self._rounds[position], offset
            position += 1

    def overlaid(self, number: int, newest: Map, size: int) -> Index:
        """The index after one more round, whose pages image has `size` bytes. Raises BrokenChain."""
        newer = Index()
        offset = 0
        for start, end, flags in newest:
            if flags & PRESENT:
                newer._append(start, end, number, offset)
                offset += end - start
            elif flags & IN_PARENT:
                reached = start
                for first, last, older, place in self.within(start, end):
                    if first != reached:
                        break
                    newer._append(first, last, older, place)
                    reached = last
                if reached != end:
                    raise BrokenChain(f"round {number} expects a page at {reached:#x} in an earlier round: none has it")
        if offset != size:
            raise BrokenChain(f"round {number} holds {size} bytes of pages, its map says {offset}")
        return newer


def _cut(first: int, last: int, areas: Areas) -> Iterator[tuple[int, int]]:
    """A run in pieces, none of which lies in two areas: userfaultfd copies into one area at a time."""
    position = first
    for _, end in areas[max(0, bisect_right(areas, (first, 1 << 63)) - 1) :]:
        if position >= last:
            return
        if end > position:
            yield position, min(end, last)
            position = end
    if position < last:
        yield position, last


class Memory:
    """The indexes of all tasks of a tree, round after round."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._indexes: dict[int, Index] = {}
        self._newest: dict[int, Map] = {}
        self._pages: dict[tuple[int, int], Path] = {}
        self._known_areas: dict[int, Areas] = {}
        self._last = 0

    def add_round(self, number: int) -> None:
        """Lay a round that has arrived over the others. Raises BrokenChain and ImageError."""
        directory = self._images / str(number)
        indexes: dict[int, Index] = {}
        newest: dict[int, Map] = {}
        pieces = 0
        for path in sorted(directory.glob("pagemap-[0-9]*.img")):
            name = path.name[len("pagemap-") : -len(".img")]
            if not (name.isascii() and name.isdigit()):
                raise ImageError(f"{number}/{path.name} is the map of no task")
            pid = int(name)
            newest[pid] = read(path)
            pages = directory / f"pages-{newest[pid].pages_id}.img"
            size = pages.stat().st_size if pages.exists() else 0
            indexes[pid] = self._indexes.get(pid, Index()).overlaid(number, newest[pid], size)
            pieces += len(indexes[pid])
            if pieces > MOST_PIECES:
                raise TooTorn
            self._pages[pid, number] = pages
        self._indexes, self._newest = indexes, newest
        self._known_areas.clear()  # those are of the last round
        self._last = number

    def mark(self) -> None:
        """Mark in the last round's maps what CRIU is to leave to userfaultfd. Raises ImageError."""
        for pid, newest in self._newest.items():
            self._newest[pid] = marked(newest, self._areas(pid))
            write(self._images / str(self._last) / f"pagemap-{pid}.img", self._newest[pid])

    def _areas(self, pid: int) -> Areas:
        if pid not in self._known_areas:
            self._known_areas[pid] = lazy_areas(self._images / str(self._last) / f"mm-{pid}.img")
        return self._known_areas[pid]

    def lazy(self) -> dict[int, Index]:
        """By task, where the pages lie that CRIU leaves to userfaultfd: those marked so in the last round's maps."""
        found: dict[int, Index] = {}
        for pid, index in self._indexes.items():
            areas = self._areas(pid)
            chosen = found[pid] = Index()
            for first, last, flags in self._newest[pid]:
                if flags & LAZY:
                    for start, end in _cut(first, last, areas):
                        for extent in index.within(start, end):
                            chosen._append(*extent, apart=True)
        return found

    def pages(self, pid: int, number: int) -> Path:
        """The pages image of a task in a round."""
        return self._pages[pid, number]
