"""Image directories and their format: where a round's images lie, what is sent, what they say of the tasks.

It reads CRIU's files and never writes their contents. The page index of the instant restore will live here too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import struct
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from agent.disk import to_disk
from agent.protocol import Image, Moved

_NOT_SENT = ("pages-", "pagemap-", "stats-")
"""Pages and their maps have gone through the page server; statistics stay."""

_LAST, _COUNT = "end-of-images", "MIGRATE.images"
"""The last member and its keyword, the number of images before it: a cut stream ends just like a whole one."""

_COMMON_MAGIC = 0x54564319
_CORE_MAGIC = 0x55053847
CORE_HEAD = 12
"""Bytes of a core image before its entry."""
TASK_DEAD, TASK_STOPPED, TASK_ZOMBIE = 2, 3, 6
"""task_state of images/core.proto (compel/include/uapi/task-state.h)."""


_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\.img")
"""What criu, and we, call an image."""
_HEADERS = 64 * 1024
"""Bytes that an archive may say about a member beside its name, size and mode; `send` says some fifty, once."""


_MOST = 1 << 20
"""Images in an archive; a task has some five."""


class ImageError(Exception):
    """Images that are not what they should be."""


class NotWhole(Exception):
    """A round that came by itself is not what was dumped."""


def round_directory(images: Path, number: int) -> Path:
    """Where the images of one round lie. The first round is 1."""
    return images / str(number)


def size(directory: Path) -> int:
    """Bytes of all images of a round."""
    return sum(entry.stat().st_size for entry in directory.iterdir() if entry.is_file() and not entry.is_symlink())


def listed(directory: Path, *, durable: bool) -> tuple[Image, ...]:
    """All that criu wrote of a round. `durable`: on return another host that sees the directory finds it there."""
    found = []
    for path in sorted(directory.glob("*.img")):
        if durable:
            to_disk(path)
        found.append(Image(path.name, path.stat().st_size))
    if durable:
        to_disk(directory)
    return tuple(found)


def verify(directory: Path, expected: Iterable[Image]) -> None:
    """Raises NotWhole unless exactly these images are there, each of its size."""
    there = {path.name: path.stat().st_size for path in directory.glob("*.img")}
    for image in expected:
        size = there.pop(image.name, None)
        if size is None:
            raise NotWhole(f"round {directory.name}: {image.name} has not come")
        if size != image.size:
            raise NotWhole(f"round {directory.name}: {image.name} has {size} bytes, not {image.size}")
    if there:
        raise NotWhole(f"round {directory.name}: {min(there)} is there, and nobody sent it")


def pages_size(directory: Path) -> int:
    """Bytes of memory that a round brought."""
    return sum(path.stat().st_size for path in directory.glob("pages-*.img"))


def send(directory: Path, out: BinaryIO) -> Moved:
    """Write a round's images, the memory's pages excepted, as one archive."""
    files = total = 0
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=256 * 1024) as archive:
        for path in sorted(directory.iterdir()):
            if path.is_symlink() or not path.is_file() or path.name.startswith(_NOT_SENT) or path.suffix != ".img":
                continue
            with path.open("rb") as file:
                member = tarfile.TarInfo(path.name)
                member.size = os.fstat(file.fileno()).st_size
                member.mode = 0o600
                archive.addfile(member, file)
            files, total = files + 1, total + member.size
        last = tarfile.TarInfo(_LAST)
        last.pax_headers = {_COUNT: str(files)}
        archive.addfile(last)
    return Moved(files, total)


class _Member(tarfile.TarInfo):
    """A member of the two types that `send` writes. Others name files elsewhere, or stand for more than they have."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """As the library reads a header. Raises ImageError before anything is made of what follows it."""
        member = super().frombuf(buf, encoding, errors)
        headers = member.type == tarfile.XHDTYPE and 0 <= member.size <= _HEADERS
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) and not headers:
            raise ImageError(f"the archive of images holds a member of type {member.type!r}")
        return member


def receive(directory: Path, source: BinaryIO) -> Moved:
    """Read such an archive into a round's directory. Raises ImageError on anything that `send` does not write."""
    files = total = 0
    whole = False
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=256 * 1024, tarinfo=_Member) as archive:
            for member in archive:
                name = member.name
                if _COUNT in member.pax_headers:
                    whole = member.pax_headers[_COUNT] == str(files)
                    break
                usual = _IMAGE.fullmatch(name) and not name.startswith(_NOT_SENT) and not member.pax_headers
                if not usual or member.size < 0 or (directory / name).exists():
                    raise ImageError(f"the archive of images holds {name[:100]!r}")
                content = archive.extractfile(member)
                if content is None:
                    raise ImageError(f"image {name!r} has no content")
                with (directory / name).open("xb") as file:
                    while block := content.read(1024 * 1024):
                        file.write(block)
                files, total = files + 1, total + member.size
                if files > _MOST:
                    raise ImageError(f"the archive of images holds more than {_MOST}")
                archive.members = []  # type: ignore[attr-defined]  # documented: the library would keep all of them
    except (tarfile.TarError, ValueError, RecursionError) as error:  # a header's numbers and names may be nonsense
        raise ImageError(f"the archive of images is broken: {error}") from error
    if not whole or not files:
        raise ImageError(f"the archive of images ended early, after {files} images")
    return Moved(files, total)


class Span(NamedTuple):
    """One field of a protobuf message, and where its value lies in the message."""

    number: int
    value: int  # of a varint
    start: int
    stop: int
    varint: bool


def spans(data: bytes) -> Iterator[Span]:
    """The fields of one protobuf message.

    Raises ImageError when the message is truncated or of a wire type that CRIU does not use.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            if position >= len(data) or shift > 63:
                raise ImageError("truncated protobuf")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while position < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            start = position
            yield Span(key >> 3, varint(), start, position, True)
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if length < 0 or position + length > len(data):
            raise ImageError(f"truncated protobuf, or wire type {kind}")
        position += length
        yield Span(key >> 3, 0, position - length, position, False)


def fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of one protobuf message as (number, value, bytes): varints have a value, the rest has bytes.

    Raises ImageError as `spans` does.
    """
    return [(one.number, one.value, b"" if one.varint else data[one.start : one.stop]) for one in spans(data)]


def core_entry(path: Path) -> bytes:
    """The core_entry of a core image; two magic words and a length stand before it. Raises ImageError."""
    data = path.read_bytes()
    if len(data) >= CORE_HEAD:
        first, second, length = struct.unpack_from("<III", data)
        if (first, second) == (_COMMON_MAGIC, _CORE_MAGIC) and len(data) >= CORE_HEAD + length:
            return data[CORE_HEAD : CORE_HEAD + length]
    raise ImageError(f"{path.name} is no core image")


def task_states(directory: Path) -> dict[int, int]:
    """pid -> task_state of every process (not thread) in a dump: the core images of threads have no `tc`."""
    states: dict[int, int] = {}
    for path in directory.glob("core-*.img"):
        pid = path.name[len("core-") : -len(".img")]
        if not (pid.isascii() and pid.isdigit() and len(pid) < 11):
            raise ImageError(f"{path.name} is no core image")
        for number, _, body in fields(core_entry(path)):
            if number == 3:  # core_entry.tc
                states[int(pid)] = next((value for field, value, _ in fields(body) if field == 1), 0)
    return states


def is_image(name: str) -> bool:
    """Whether criu, or we, may have given an image this name."""
    return bool(_IMAGE.fullmatch(name))


class NoRoom(Exception):
    """There is no room for the images."""


_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32  # linux/mount.h
SPARE = 16 * 1024 * 1024
"""Bytes that criu may write beside the images at the most, and more than that."""
_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
"""mount(2) itself: minimal systems have no mount(8)."""


def make_place(path: Path, *, memory: int) -> None:
    """A 0700 directory for a migration's images: a tmpfs of its own of `memory` bytes, or with 0 a plain directory.

    Its own mount, so that a full one harms nobody else and that everything is gone with one umount. Raises NoRoom.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # `parents` alone would leave it open to all
        path.mkdir(mode=0o700)
        if memory:
            options = f"size={memory},mode=0700".encode()
            if _libc.mount(b"migrate", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
                path.rmdir()
                raise NoRoom(f"mounting a tmpfs at {path} failed: {os.strerror(ctypes.get_errno())}")
    except OSError as error:
        raise NoRoom(f"{path}: {error.strerror}") from error


def spare_room(path: Path) -> Path:
    """Our tmpfs, enlarged where it is full: criu's log and PID file lie there. Where that fails, criu will."""
    there = os.statvfs(path)
    if there.f_bavail * there.f_frsize < SPARE and os.path.ismount(path):
        options = f"size={there.f_blocks * there.f_frsize + SPARE}".encode()
        _libc.mount(b"migrate", os.fsencode(path), b"tmpfs", _MS_REMOUNT | _MS_NOSUID | _MS_NODEV, options)
    return path


def _unmounted(path: Path) -> bool:
    """Unmount, and give an rsync that was cut off from its other end a moment to leave."""
    for _ in range(40):
        if _libc.umount2(os.fsencode(path), 0) == 0:
            return True
        if ctypes.get_errno() != errno.EBUSY:
            return False
        time.sleep(0.05)
    return False


def link_log(log: Path, place: Path) -> Path:
    """A log that lies with the images, where there is room: what criu did after COMMIT is read in it, however full the
    disk is. Returns `log`, the link to it."""
    log.unlink(missing_ok=True)
    log.symlink_to(place / log.name)
    return log


def give_back(directory: Path) -> None:
    """Free the pages of a round that has been sent. Their files keep their size: criu opens those of the round before,
    and reads only their maps."""
    for path in directory.glob("pages-*.img"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _libc.fallocate(descriptor, _PUNCH, ctypes.c_long(0), ctypes.c_long(max(1, os.fstat(descriptor).st_size)))
        finally:
            os.close(descriptor)


def remove_shared(directory: str, migration: str) -> tuple[str, ...]:
    """What a source, which has given up first, could not see: what the target was still writing on shared storage.

    `directory` is "" where nothing is shared.
    """
    return remove_place(Path(directory) / migration) if directory else ()


def remove_place(path: Path) -> tuple[str, ...]:
    """Undo `make_place`, with all that lies in it. What could not be removed comes back in words."""
    if not path.exists():
        return ()
    try:
        if path.is_mount() and not _unmounted(path):
            return (f"tmpfs {path}: {os.strerror(ctypes.get_errno())}",)
        shutil.rmtree(path)
    except OSError as error:
        return (f"images {path}: {error.strerror}",)
    return ()
