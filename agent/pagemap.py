"""Pagemaps: which page lies in which round's image, newest round first. Reads CRIU's files; rewrites flags in one.

The index of one task is a list of extents, ascending and without overlap: addresses in memory, the round whose
`pages-*.img` holds them, the offset there. It is built while rounds arrive: each round's pagemap is laid over what the
rounds before gave. A page that a round expects in an earlier one and that none has means a broken chain: that is the
audit which comes before COMMIT.

A pagemap image (criu/image.c, images/pagemap.proto) is two magic words and then entries, each a length and a protobuf:
first the head with the number of the pages image, then runs of pages in ascending order. The pages image holds the
runs that are PRESENT in this round one behind the other, and nothing else.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from agent.images import ImageError, fields

PAGE = 4096
IN_PARENT, LAZY, PRESENT = 1, 2, 4
"""pagemap_entry.flags (criu/include/pagemap.h)."""

LONGEST_INDEX = 8 * 1024 * 1024
"""Extents of one task at most: some 250 MiB of index. Memory so torn is restored eagerly."""

_COMMON_MAGIC = 0x54564319
_PAGEMAP_MAGIC = 0x56084025
_MM_MAGIC = 0x57492820

_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_LOCKED, _MAP_HUGETLB = 0x02, 0x20, 0x2000, 0x40000
_AREA_SPECIAL = 1 << 2 | 1 << 3 | 1 << 12  # VSYSCALL, VDSO, VVAR (criu/include/image.h)


class BrokenChain(ImageError):
    """A page that no round holds, or an image that is shorter than its map says."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One entry of a pagemap: pages from an address on, and where they are."""

    start: int
    pages: int
    flags: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.pages * PAGE


def read(path: Path) -> tuple[int, list[Run]]:
    """The number of the pages image and the runs of a pagemap image. Raises ImageError on anything absurd."""
    data = path.read_bytes()
    entries = _entries(path.name, data, _PAGEMAP_MAGIC)
    head = {number: value for number, value, _ in fields(next(entries, b""))}
    if 1 not in head:
        raise ImageError(f"{path.name} has no head")
    runs: list[Run] = []
    behind = 0
    for body in entries:
        run = _run(body)
        if run.start % PAGE or run.start < behind or run.pages < 1 or run.end > 1 << 57:
            raise ImageError(f"{path.name} has a run of {run.pages} pages at {run.start:#x}, which cannot be there")
        if len(runs) >= LONGEST_INDEX:
            raise ImageError(f"{path.name} has more than {LONGEST_INDEX} runs")
        runs.append(run)
        behind = run.end
    return head[1], runs


def _entries(name: str, data: bytes, magic: int) -> Iterator[bytes]:
    if len(data) < 8 or struct.unpack_from("<II", data) != (_COMMON_MAGIC, magic):
        raise ImageError(f"{name} is no image of its kind")
    position = 8
    while position < len(data):
        if position + 4 > len(data):
            raise ImageError(f"{name} is truncated")
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + length > len(data):
            raise ImageError(f"{name} is truncated")
        yield data[position : position + length]
        position += length


def _run(body: bytes) -> Run:
    values = {number: value for number, value, _ in fields(body)}
    flags = values.get(4, IN_PARENT if values.get(3) else PRESENT)
    return Run(values.get(1, 0), values.get(5, values.get(2, 0)), flags)


class Index:
    """Where each page of one task lies. Parallel arrays: millions of extents must not be millions of objects."""

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
        if len(self._starts) >= LONGEST_INDEX:
            raise ImageError("the task's memory is in too many pieces for an index")
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

    def overlaid(self, number: int, runs: list[Run], size: int) -> Index:
        """The index after one more round, whose pages image has `size` bytes. Raises BrokenChain."""
        newer = Index()
        offset = 0
        for run in runs:
            if run.flags & PRESENT:
                newer._append(run.start, run.end, number, offset)
                offset += run.end - run.start
            elif run.flags & IN_PARENT:
                reached = run.start
                for start, end, older, place in self.within(run.start, run.end):
                    if start != reached:
                        break
                    newer._append(start, end, older, place)
                    reached = end
                if reached != run.end:
                    raise BrokenChain(f"round {number} expects a page at {reached:#x} in an earlier round: none has it")
        if offset != size:
            raise BrokenChain(f"round {number} holds {size} bytes of pages, its map says {offset}")
        return newer


# --- what may be restored lazily -------------------------------------------------------------------------------------


def lazy_areas(mm: Path) -> list[tuple[int, int]]:
    """The areas of a task whose pages CRIU leaves to userfaultfd, ascending (criu/include/vma.h).

    Private anonymous memory, neither locked nor of huge pages. Raises ImageError.
    """
    entries = list(_entries(mm.name, mm.read_bytes(), _MM_MAGIC))
    if len(entries) != 1:
        raise ImageError(f"{mm.name} does not hold one task")
    areas: list[tuple[int, int]] = []
    for number, _, body in fields(entries[0]):
        if number != 14:  # mm_entry.vmas
            continue
        area = {field: value for field, value, _ in fields(body)}
        flags, status = area.get(6, 0), area.get(7, 0)
        plain = flags & _MAP_PRIVATE and flags & _MAP_ANONYMOUS and not flags & (_MAP_LOCKED | _MAP_HUGETLB)
        if plain and not status & _AREA_SPECIAL:
            areas.append((area[1], area[2]))
    return areas


def mark_lazy(path: Path, areas: list[tuple[int, int]]) -> None:
    """Set LAZY on the runs that lie in an earlier round and in one of these areas.

    CRIU marks what the last round holds itself, and restores what an earlier one holds eagerly unless told otherwise.
    The file is written anew, since a run may have to be cut where an area ends.
    """
    pages_id, runs = read(path)
    starts = [start for start, _ in areas]
    marked: list[Run] = []
    for run in runs:
        if run.flags & PRESENT or not run.flags & IN_PARENT:
            marked.append(run)
            continue
        position = run.start
        while position < run.end:
            place = bisect_right(starts, position) - 1
            inside = place >= 0 and position < areas[place][1]
            following = areas[place + 1][0] if place + 1 < len(areas) else run.end
            end = min(run.end, areas[place][1] if inside else following)
            flags = run.flags | LAZY if inside else run.flags
            marked.append(Run(position, (end - position) // PAGE, flags))
            position = end
    out = [struct.pack("<II", _COMMON_MAGIC, _PAGEMAP_MAGIC), _entry(((1, pages_id),))]
    for run in marked:
        # nr_pages beside the older field, as criu 4 writes it; older ones know only that one
        more = ((5, run.pages),) if run.pages >= 1 << 32 else ()
        out.append(_entry(((1, run.start), (2, run.pages & 0xFFFFFFFF), (4, run.flags), *more)))
    new = path.with_suffix(".new")
    new.write_bytes(b"".join(out))
    new.replace(path)


def _cut(run: Run, areas: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """A run in pieces, none of which lies in two areas: userfaultfd copies into one area at a time."""
    position = run.start
    for _, end in areas[max(0, bisect_right(areas, (run.start, 1 << 63)) - 1) :]:
        if position >= run.end:
            return
        if end > position:
            yield position, min(end, run.end)
            position = end
    if position < run.end:
        yield position, run.end


def _entry(values: tuple[tuple[int, int], ...]) -> bytes:
    body = b"".join(_varint(number << 3) + _varint(value) for number, value in values)
    return struct.pack("<I", len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Memory:
    """The indexes of all tasks of a tree, round after round."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._indexes: dict[int, Index] = {}
        self._pages: dict[tuple[int, int], Path] = {}
        self._last = 0

    def add_round(self, number: int) -> None:
        """Lay a round that has arrived over the others. Raises BrokenChain and ImageError."""
        directory = self._images / str(number)
        newer: dict[int, Index] = {}
        for path in directory.glob("pagemap-[0-9]*.img"):
            pid = int(path.name[len("pagemap-") : -len(".img")])
            pages_id, runs = read(path)
            pages = directory / f"pages-{pages_id}.img"
            size = pages.stat().st_size if pages.exists() else 0
            newer[pid] = self._indexes.get(pid, Index()).overlaid(number, runs, size)
            self._pages[pid, number] = pages
        self._indexes = newer
        self._last = number

    def mark(self) -> None:
        """Mark in the last round's maps what CRIU is to leave to userfaultfd. Raises ImageError."""
        directory = self._images / str(self._last)
        for pid in self._indexes:
            mark_lazy(directory / f"pagemap-{pid}.img", lazy_areas(directory / f"mm-{pid}.img"))

    def lazy(self) -> dict[int, Index]:
        """By task, where the pages lie that CRIU leaves to userfaultfd: those marked so in the last round's maps."""
        found: dict[int, Index] = {}
        directory = self._images / str(self._last)
        for pid, index in self._indexes.items():
            areas = lazy_areas(directory / f"mm-{pid}.img")
            runs = [run for run in read(directory / f"pagemap-{pid}.img")[1] if run.flags & LAZY]
            chosen = found[pid] = Index()
            for run in runs:
                for start, end in _cut(run, areas):
                    for extent in index.within(start, end):
                        chosen._append(*extent, apart=True)
        return found

    def pages(self, pid: int, number: int) -> Path:
        """The pages image of a task in a round."""
        return self._pages[pid, number]
