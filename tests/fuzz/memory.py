"""Parsers of images, and of the streams that memory travels on."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import zstandard

from agent import criu, images, pageindex, ttyimages, zstd
from agent import pagemap as pagemap_room
from agent import traits as traits_room
from agent.frames import HEAD, LARGEST, BadFrames, Frames
from agent.holder import _HEAD, PIECE, Holder
from agent.images import ImageError
from agent.protocol import TERMINAL_TYPED, TERMINAL_WINDOW
from migrator.unchanged import Unchanged
from tests import fake_criu, fake_images
from tests.fake_criu import message, varint
from tests.fuzz.rooms import room

PAGE = 4096
REAL = Path(__file__).parent / "seeds"
"""Images of a process that slept, as criu 4.2.1 has written them."""


def _real(pattern: str) -> Iterable[bytes]:
    found = sorted(REAL.glob(pattern))
    assert found, f"there is no {pattern} in {REAL}"
    return [path.read_bytes() for path in found]


# --- maps of memory --------------------------------------------------------------------------------------------------


def pagemap(data: bytes) -> None:
    """A pagemap, marked with areas that lie across its runs, written and read again."""
    path = room("pagemap") / "pagemap-1.img"
    path.write_bytes(data)
    with contextlib.suppress(ImageError):
        found = pagemap_room.read(path)
        areas = [(0x10000, 0x13000), (0x20000, 0x40000), (1 << 46, 1 << 47)]
        marked = pagemap_room.marked(found, areas)
        assert sum(end - start for start, end, _ in marked) == sum(end - start for start, end, _ in found)
        pagemap_room.write(path, marked)
        assert sum(end - start for start, end, _ in pagemap_room.read(path)) == sum(e - s for s, e, _ in found)


def pagemaps() -> Iterable[bytes]:
    """A real one, and one with every kind of run."""
    yield from _real("pagemap-*.img")
    yield fake_images.pagemap([(0x10000, 3, fake_images.PRESENT), (0x20000, 2, fake_images.PARENT)])


def areas(data: bytes) -> None:
    """The areas of a task."""
    path = room("areas") / "mm-1.img"
    path.write_bytes(data)
    with contextlib.suppress(ImageError):
        found = pagemap_room.lazy_areas(path)
        assert all(start < end for start, end in found)
        assert found == sorted(found)


def mms() -> Iterable[bytes]:
    """A real one, and one with every kind of area."""
    plain = fake_images.PRIVATE | fake_images.ANONYMOUS
    yield from _real("mm-*.img")
    yield fake_images.mm([(0x10000, 0x20000, plain, fake_images.ORDINARY), (0x20000, 0x21000, plain | 0x2000, 9)])


def index(data: bytes) -> None:
    """Two rounds of a task, and its areas: three pieces of the input, each with its length before it."""
    home = room("index")
    pieces: list[bytes] = []
    while len(pieces) < 3:
        length = int.from_bytes(data[:2], "big")
        pieces.append(data[2 : 2 + length])
        data = data[2 + length :]
    memory = pageindex.Memory(home)
    with contextlib.suppress(ImageError):
        for number, piece in enumerate(pieces[:2], 1):
            directory = home / str(number)
            directory.mkdir()
            (directory / "pagemap-7.img").write_bytes(piece)
            (directory / "mm-7.img").write_bytes(pieces[2])
            with contextlib.suppress(ImageError):
                os.truncate(directory / _pages(directory), _present(directory))
            memory.add_round(number)
        memory.mark()
        for one in memory.lazy().values():
            reached = 0
            for start, end, which, offset in one.extents:
                assert reached <= start < end
                assert 0 <= offset <= memory.pages(7, which).stat().st_size - (end - start)
                reached = end


def _pages(directory: Path) -> str:
    name = f"pages-{pagemap_room.read(directory / 'pagemap-7.img').pages_id}.img"
    (directory / name).touch()
    return name


def _present(directory: Path) -> int:
    runs = pagemap_room.read(directory / "pagemap-7.img")
    return min(1 << 40, sum(end - start for start, end, flags in runs if flags & fake_images.PRESENT))


def rounds() -> Iterable[bytes]:
    """A round of three pages, and one in which two of them are as they were."""
    plain = fake_images.PRIVATE | fake_images.ANONYMOUS
    first = fake_images.pagemap([(0x10000, 3, fake_images.PRESENT)])
    second = fake_images.pagemap([(0x10000, 1, fake_images.PRESENT), (0x11000, 2, fake_images.PARENT)])
    area = fake_images.mm([(0x10000, 0x20000, plain, fake_images.ORDINARY)])
    yield b"".join(len(piece).to_bytes(2, "big") + piece for piece in (first, second, area))


# --- other images ----------------------------------------------------------------------------------------------------


def core(data: bytes) -> None:
    """What is read of a task's core image, and what is changed in it."""
    place = room("core")
    (place / "core-10.img").write_bytes(data)
    with contextlib.suppress(ImageError):
        images.task_states(place)
        traits_room.forget_parent(place, [10])
    assert (place / "core-10.img").stat().st_size == len(data)


def cores() -> Iterable[bytes]:
    """A real one, and one of a task that was stopped."""
    yield from _real("core-*.img")
    yield fake_criu.core_image(3)


def terminal(data: bytes) -> None:
    """The images of a tree and of its terminals, one behind the other."""
    place = room("terminal")
    length = int.from_bytes(data[:2], "big")
    (place / "pstree.img").write_bytes(data[2 : 2 + length])
    (place / "tty-info.img").write_bytes(data[2 + length :])
    with contextlib.suppress(ImageError):
        group = ttyimages.fit(place)
        before = [path.read_bytes() for path in sorted(place.iterdir())]
        assert ttyimages.fit(place) == group
        assert [path.read_bytes() for path in sorted(place.iterdir())] == before, "a second time changes something"


def terminals() -> Iterable[bytes]:
    """A shell with a job at an external terminal; and a real tree, with a terminal made up."""
    made = fake_images.image(0x50273030, *(varint(1, pid) + varint(3, pid) + varint(4, 4000) for pid in (4000, 4001)))
    tty = fake_images.image(
        0x59453036, varint(1, 9) + varint(2, 5) + varint(6, 4000) + varint(7, 4001) + message(9, b"")
    )
    for tree in (made, *_real("pstree.img")):
        yield len(tree).to_bytes(2, "big") + tree + tty


def statistics(data: bytes) -> None:
    """criu's own figures."""
    path = room("statistics") / "stats-dump"
    path.write_bytes(data)
    with contextlib.suppress(ValueError):
        criu.read_statistics(path)


def statistics_files() -> Iterable[bytes]:
    """A real one."""
    return _real("stats-dump")


def traits(data: bytes) -> None:
    """What criu leaves behind, in a file of ours that comes with its images; for a process that is not there."""
    place = room("traits")
    (place / traits_room.FILE).write_bytes(data)
    with contextlib.suppress(ImageError):
        carried = traits_room.carried(place)
        for thread in carried.threads.values():
            assert all(number <= traits_room.MOST_CPUS for number in traits_room.cpus(thread.cpus))
        traits_room.bring_back(place, [])


def traits_files() -> Iterable[bytes]:
    """One with everything in it."""
    yield json.dumps({"threads": {"7": {"cpus": "0-3,5", "io": 4, "slack": 9}}, "filters": {"7": "00000033"}}).encode()


# --- streams ---------------------------------------------------------------------------------------------------------


@functools.cache
def _unpack() -> zstd.Unpack:
    way, unpack = zstd.find()
    assert unpack is not None, "no zstd here"
    assert way != "program", "a process for each piece is too slow for this"
    return unpack


def frames(data: bytes) -> None:
    """A packed stream, in pieces as the first byte says."""
    step = 1 + (data[0] if data else 0) * 37
    stream = memoryview(data)[1:]
    coming = Frames(_unpack())
    got = pieces = 0
    with contextlib.suppress(BadFrames):
        while stream:
            here = coming.room()
            count = min(step, len(here), len(stream))
            here[:count] = stream[:count]
            stream = stream[count:]
            for piece in coming.took(count):
                pieces, got = pieces + 1, got + len(piece)
        list(coming.took(0))
    assert got <= pieces * LARGEST
    assert pieces <= len(data) // HEAD.size


def packed_streams() -> Iterable[bytes]:
    """A frame of each kind."""
    body = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(b"memory" * 500)
    stream = HEAD.pack(b"P", 5, 5) + b"plain" + HEAD.pack(b"Z", 3000, len(body)) + body
    yield b"\xff" + stream + HEAD.pack(b"0", 1 << 20, 0) + HEAD.pack(b".", 0, 0)


def unchanged(data: bytes) -> None:
    """A stream to the page servers, in pieces: whatever it is, what goes on is no longer, and stands for the same."""
    step = 1 + (data[0] if data else 0) * 61
    sifted = Unchanged(PAGE)
    out = b"".join(sifted.feed(data[at : at + step]) for at in range(1, len(data), step)) + sifted.rest()
    assert len(out) <= len(data) + len(data) // PAGE * 32


def page_streams() -> Iterable[bytes]:
    """Three rounds of two pages, of which one changes, in both forms that criu has."""
    for form in (struct.Struct("=IIQQ"), struct.Struct("=I4xQQQ")):
        stream = b"\xff"
        for number in range(3):
            stream += form.pack(5, 0, 0, 0x701) + form.pack(4 << 16 | 6, 2, 0x10000, 0x701)
            stream += b"a" * PAGE + bytes([number]) * PAGE + form.pack(0x1024, 0, 0, 0)
        yield stream


@functools.cache
def _terminal() -> int:
    master, slave = os.openpty()
    os.dup(slave)  # as the tree has it
    return master


def typed(data: bytes) -> None:
    """What comes for a tree's new terminal: keys, and the window's size. What is neither ends whoever sent it."""
    holder = Holder.__new__(Holder)
    holder._master, holder._root, holder._stays, holder._over = _terminal(), 0, True, False
    holder._client, holder._came, holder._typed = None, bytearray(data), bytearray()
    with mock.patch("agent.holder.signal_group"):
        holder._take_apart()
    assert len(holder._typed) + len(holder._came) <= len(data)
    assert len(holder._came) < _HEAD.size + PIECE


def keys() -> Iterable[bytes]:
    """A window, then some keys, then half a frame."""
    yield _HEAD.pack(TERMINAL_WINDOW, 24, 80) + _HEAD.pack(TERMINAL_TYPED, 3, 0) + b"ls\n" + _HEAD.pack(b"T", 9, 0)
