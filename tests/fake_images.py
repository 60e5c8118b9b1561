"""Image directories made by hand, in CRIU's format: pagemaps, their pages, and the maps of a task's areas.

For the pager's tests: what is in a round is told as runs of pages, and each page's content is given or made up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.fake_criu import message, varint

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4
COMMON, PAGEMAP, MM = 0x54564319, 0x56084025, 0x57492820
PRIVATE, ANONYMOUS, LOCKED, HUGE = 0x02, 0x20, 0x2000, 0x40000
ORDINARY, VDSO = 1 << 0, 1 << 3

Runs = Iterable[tuple[int, int, int]]
"""start, pages, flags."""
Areas = Iterable[tuple[int, int, int, int]]
"""start, end, flags of the mapping, status."""


def entry(body: bytes) -> bytes:
    """One message as it stands in an image."""
    return struct.pack("<I", len(body)) + body


def image(magic: int, *bodies: bytes) -> bytes:
    """A whole image."""
    return struct.pack("<II", COMMON, magic) + b"".join(entry(body) for body in bodies)


def run(start: int, pages: int, flags: int) -> bytes:
    """One run of a pagemap, as criu 4 writes it."""
    return varint(1, start) + varint(2, pages & 0xFFFFFFFF) + varint(4, flags) + varint(5, pages)


def pagemap(runs: Runs, pages_id: int = 1) -> bytes:
    """A pagemap image."""
    return image(PAGEMAP, varint(1, pages_id), *(run(*each) for each in runs))


def mm(areas: Areas) -> bytes:
    """An mm image: so much of it as is read."""
    return image(MM, b"".join(message(14, _area(*area)) for area in areas))


def _area(start: int, end: int, flags: int, status: int) -> bytes:
    return varint(1, start) + varint(2, end) + varint(3, 0) + varint(6, flags) + varint(7, status)


def content(address: int, number: int) -> bytes:
    """The made-up content of a page in a round: another one for each address and round."""
    return struct.pack("<QQ", address, number) * (PAGE // 16)


def write_round(images: Path, number: int, tasks: Mapping[int, Runs], areas: Mapping[int, Areas] | None = None) -> None:
    """One round's directory: for each task its pagemap, its pages, and its areas if they are given."""
    directory = images / str(number)
    directory.mkdir(parents=True)
    for pages_id, (pid, given) in enumerate(tasks.items(), 1):
        runs = list(given)
        (directory / f"pagemap-{pid}.img").write_bytes(pagemap(runs, pages_id))
        with (directory / f"pages-{pages_id}.img").open("wb") as file:
            for start, pages, flags in runs:
                if flags & PRESENT:
                    for page in range(pages):
                        file.write(content(start + page * PAGE, number))
    for pid, its in (areas or {}).items():
        (directory / f"mm-{pid}.img").write_bytes(mm(its))
