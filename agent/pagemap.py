"""Pagemap images, and what of a task's memory may be restored lazily. Reads CRIU's files; sets flags in one of them.

A pagemap image (criu/image.c, images/pagemap.proto) is two magic words and then entries, each a length and a protobuf:
first the head with the number of the pages image, then runs of pages in ascending order. The pages image holds the
runs that are PRESENT in this round one behind the other, and nothing else.

Whatever is absurd in a file, or cut off, ends in an ImageError; how much memory and time it takes has a limit.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.images import ImageError, fields

PAGE = 4096
IN_PARENT, LAZY, PRESENT = 1, 2, 4
"""pagemap_entry.flags (criu/include/pagemap.h)."""

MOST_PIECES = 4 * 1024 * 1024
"""Pieces that the memory of a whole tree may be in: some 110 MiB of index. More torn memory is refused."""

_LONGEST_ENTRY = 4 + 5 * 11
"""Bytes of an entry of a pagemap at most: its length, and five numbers with their keys."""
_HIGHEST = 1 << 57
"""The end of the largest address space there is (x86-64 with five levels)."""

_LARGEST_MM = 64 * 1024 * 1024
"""Bytes of an mm image at most: some 600,000 areas, ten times what a kernel allows by default."""

_COMMON_MAGIC = 0x54564319
_PAGEMAP_MAGIC = 0x56084025
_MM_MAGIC = 0x57492820

_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_LOCKED, _MAP_HUGETLB = 0x02, 0x20, 0x2000, 0x40000
_AREA_GUARD = 1 << 16
"""No area of its own but pages inside one that MADV_GUARD_INSTALL forbids, as glibc 2.42 does below a stack."""
_AREA_SPECIAL = 1 << 2 | 1 << 3 | 1 << 12  # VSYSCALL, VDSO, VVAR (criu/include/image.h)


class Map:
    """A pagemap image, read: the number of its pages image, and runs of pages, ascending and without overlap.

    Parallel arrays, here and in Index: millions of runs must not be millions of objects.
    """

    def __init__(self, pages_id: int) -> None:
        self.pages_id = pages_id
        self._starts = array("Q")
        self._ends = array("Q")
        self._flags = bytearray()

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, flags) of each run."""
        return zip(self._starts, self._ends, self._flags)

    def append(self, start: int, end: int, flags: int) -> None:
        """One more run, behind the others."""
        self._starts.append(start)
        self._ends.append(end)
        self._flags.append(flags)

    def extend(self, end: int) -> None:
        """Make the last run longer."""
        self._ends[-1] = end


def read(path: Path) -> Map:
    """A pagemap image. Raises ImageError on anything absurd, before it takes much memory or time."""
    name = _name(path)
    data = _content(path, MOST_PIECES * _LONGEST_ENTRY)
    head, position = _first(name, data, _PAGEMAP_MAGIC)
    numbers = {number: value for number, value, _ in _fields(name, head)}
    if numbers.get(1, 1 << 32) >> 32:
        raise ImageError(f"{name} has no head")
    found = Map(numbers[1])
    behind, last = 0, -1
    # this loop runs in the freeze, once for every run of pages: hence without a function call
    while position < len(data):
        stop = position + 4 + int.from_bytes(data[position : position + 4], "little")
        position += 4
        if stop > len(data) or position > len(data):
            raise ImageError(f"{name} is truncated")
        start = pages = more = parent = 0
        flags = -1
        while position < stop:
            key = data[position]
            value = shift = 0
            while True:
                position += 1
                if position >= stop or shift > 63:
                    raise ImageError(f"{name} has a broken entry")
                byte = data[position]
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
            position += 1
            if key == 1 << 3:
                start = value
            elif key == 2 << 3:
                pages = value
            elif key == 3 << 3:
                parent = value
            elif key == 4 << 3:
                flags = value
            elif key == 5 << 3:
                more = value  # nr_pages since criu 4, 64 bits wide; the older field is then what fits into it
            else:
                raise ImageError(f"{name} has an entry with a field that is not known ({key:#x})")
        if flags < 0:
            flags = IN_PARENT if parent else PRESENT
        pages = more or pages
        end = start + pages * PAGE
        if start % PAGE or start < behind or not pages or end > _HIGHEST:
            raise ImageError(f"{name} has a run of {pages} pages at {start:#x}, which cannot be there")
        if flags & ~(IN_PARENT | LAZY | PRESENT):
            raise ImageError(f"{name} has a run with flags {flags:#x}, which are not known")
        if start == behind and flags == last:
            # criu parts a run wherever its pipe was full, some MiB each: all of it is gone through again in the freeze
            found.extend(end)
        elif len(found) >= MOST_PIECES:
            raise TooTorn
        else:
            found.append(start, end, flags)
        behind, last = end, flags
    return found


class TooTorn(ImageError):
    """Memory in more pieces than an index may have. Nothing is wrong with it: it can be restored eagerly."""

    def __init__(self) -> None:
        super().__init__(f"the tree's memory is in over {MOST_PIECES} pieces, too many to fill it in behind it")


def _name(path: Path) -> str:
    """An image as it is called in messages: with its round, without the host's directory."""
    return f"{path.parent.name}/{path.name}"


def _fields(name: str, body: bytes) -> list[tuple[int, int, bytes]]:
    try:
        return fields(body)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def _content(path: Path, most: int) -> bytes:
    """Raises ImageError where there is no such file, or one that is far too large."""
    try:
        size = path.stat().st_size
        if size > most:
            raise ImageError(f"{_name(path)} has {size} bytes, more than anything sensible takes: --resume eager")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{_name(path)} is missing") from None


def _first(name: str, data: bytes, magic: int) -> tuple[bytes, int]:
    """The first entry of an image, and the position behind it. Raises ImageError."""
    if len(data) < 12:
        raise ImageError(f"{name} is truncated")
    common, own, length = struct.unpack_from("<III", data)
    if (common, own) != (_COMMON_MAGIC, magic):
        raise ImageError(f"{name} is no image of its kind")
    if 12 + length > len(data):
        raise ImageError(f"{name} is truncated")
    return data[12 : 12 + length], 12 + length


# --- what may be restored lazily -------------------------------------------------------------------------------------


Areas = list[tuple[int, int]]
"""(start, end) of areas of memory, ascending."""


def lazy_areas(mm: Path) -> Areas:
    """The areas of a task whose pages CRIU leaves to userfaultfd (criu/include/vma.h).

    Private anonymous memory, neither locked nor of huge pages. Raises ImageError.
    """
    name = _name(mm)
    data = _content(mm, _LARGEST_MM)
    entry, position = _first(name, data, _MM_MAGIC)
    if position != len(data):
        raise ImageError(f"{name} does not hold one task")
    areas: Areas = []
    behind = 0
    for number, _, body in _fields(name, entry):
        if number != 14:  # mm_entry.vmas
            continue
        area = {field: value for field, value, _ in _fields(name, body)}
        start, end, flags, status = (area.get(field, 0) for field in (1, 2, 6, 7))
        if status & _AREA_GUARD:
            continue
        if start % PAGE or end % PAGE or not behind <= start < end:
            raise ImageError(f"{name} has an area from {start:#x} to {end:#x}, which cannot be there")
        behind = end
        plain = flags & _MAP_PRIVATE and flags & _MAP_ANONYMOUS and not flags & (_MAP_LOCKED | _MAP_HUGETLB)
        if plain and not status & _AREA_SPECIAL:
            areas.append((start, end))
    return areas


def marked(newest: Map, areas: Areas) -> Map:
    """The same map with LAZY set on what lies in an earlier round and in one of these areas.

    CRIU marks what the last round holds itself, and restores what an earlier one holds eagerly unless told otherwise.
    A run is cut where an area begins or ends.
    """
    starts = [start for start, _ in areas]
    result = Map(newest.pages_id)
    for first, last, flags in newest:
        if flags & PRESENT or not flags & IN_PARENT:
            result.append(first, last, flags)
            continue
        position = first
        while position < last:
            place = bisect_right(starts, position) - 1
            inside = place >= 0 and position < areas[place][1]
            following = areas[place + 1][0] if place + 1 < len(areas) else last
            end = min(last, areas[place][1] if inside else following)
            result.append(position, end, flags | LAZY if inside else flags)
            position = end
    return result


def write(path: Path, content: Map) -> None:
    """Write a pagemap image in the place of the one that is there."""
    out = [struct.pack("<II", _COMMON_MAGIC, _PAGEMAP_MAGIC), _entry(((1, content.pages_id),))]
    for start, end, flags in content:
        pages = (end - start) // PAGE
        # nr_pages beside the older field only where that is too narrow: older criu knows only that one
        more = ((5, pages),) if pages >= 1 << 32 else ()
        out.append(_entry(((1, start), (2, pages & 0xFFFFFFFF), (4, flags), *more)))
    new = path.with_suffix(".new")
    new.write_bytes(b"".join(out))
    new.replace(path)


def _entry(values: Iterable[tuple[int, int]]) -> bytes:
    body = b"".join(_varint(number << 3) + _varint(value) for number, value in values)
    return struct.pack("<I", len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
