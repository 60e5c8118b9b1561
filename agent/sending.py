"""The source's half of the files that come along: rsync first, then what changed since, and again, and in the freeze.

What the target holds of each file is known here by the sums of its blocks, which the target takes itself once rsync is
done, so that a block that was torn while rsync read it is found like any other that differs. A pass sends what differs,
and knows the sums of what it has sent by the very bytes. In the freeze a file is

- passed over, where its status is that of the last pass: one lstat;
- read at its end only, where every descriptor that the tree has for writing is O_APPEND and none maps it: the tail is
  new, and of the rest the first and the last block are compared. That trusts the tree not to have opened it otherwise
  in between, and writers outside the tree to append as well;
- compared block by block else, which means to read all of it (`blocks.py` has figures).

A status is not trusted to show a change where the file changed within the second before the pass (two changes may fall
into one tick of its time stamps), or where somebody has it mapped shared and writable: then it is always compared.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Callable, Optional, cast

from agent import blocks, deltas, process, rsync, writers
from agent.deltas import Attribute, Delta, FilesError, Held
from agent.journal import WrongOrder
from agent.protocol import AddFiles, CopyFiles, Moved, Nothing, SendFiles
from agent.streams import Jobs, Taken

_SETTLED_NS = 1_000_000_000
"""A file changed less than this before a pass could change again within the same tick of its time stamps."""

_SMALL = 4 << 20
"""Bytes; so much is compared whole faster than it is found out that it was only appended to."""

_HOST_BOUND = ("security.evm", "security.ima")
"""Attributes that are signed for a host."""

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Status = tuple[int, int, int, int, int]


def _status(status: os.stat_result) -> Status:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclasses.dataclass
class _Known:
    """What the target holds of one file."""

    size: int = 0
    block: int = blocks.BLOCK
    sums: list[bytes] = dataclasses.field(default_factory=list)
    inode: writers.Key = (0, 0)  # of the file that was sent
    status: Optional[Status] = None  # as it was sent; None: not to be trusted
    gone: bool = False


class Outgoing:
    """The files of one migration, as far as they have come."""

    def __init__(self, root: int, paths: Sequence[str]) -> None:
        self._root = root
        self._paths: list[str] = []
        self._known: list[_Known] = []
        self.add(paths)
        self._mapped: set[writers.Key] = set()
        self._appended: Optional[set[writers.Key]] = None

    @property
    def begun(self) -> bool:
        """Whether any file is known."""
        return bool(self._paths)

    def add(self, paths: Sequence[str]) -> None:
        """These come along as well: whole, with the next pass."""
        self._paths += paths
        self._known += [_Known() for _ in paths]

    def learn(self, source: BinaryIO) -> None:
        """Read what the target holds. Raises FilesError, ConnectionError."""
        for held in deltas.messages(source, Held):
            if not 0 <= held.file < len(self._paths):
                raise FilesError(f"the target holds a file {held.file} that was not sent")
            if held.size < 0:
                continue
            if held.block != blocks.block_for(held.size) or held.blocks != -(-held.size // held.block):
                raise FilesError(
                    f"{self._paths[held.file]}: {held.blocks} blocks of {held.block} for {held.size} bytes"
                )
            data = deltas.exactly(source, held.blocks * blocks.SUM)
            found = [data[start : start + blocks.SUM] for start in range(0, len(data), blocks.SUM)]
            self._known[held.file] = _Known(held.size, held.block, found)

    def send(self, out: BinaryIO, *, frozen: bool) -> Moved:
        """One pass: what changed since the last one. Raises FilesError, or OSError of `out`.

        `frozen`: the tree does not run, and nobody else's mappings are looked for any more.
        """
        started = time.time_ns()
        self._mapped |= writers.mapped_to_write(process.tree_pids(self._root) if frozen else process.pids())
        self._appended = None
        count = files = size = 0
        for index, path in enumerate(self._paths):
            sent = self._send_one(out, index, path, started)
            if sent is not None:
                count += 1
                files += sent >= 0
                size += max(0, sent)
        deltas.write_end(out, count)
        return Moved(files, size)

    def _send_one(self, out: BinaryIO, index: int, path: str, started: int) -> Optional[int]:
        """Bytes of its content that went; -1 for one that is gone, None where there was nothing to say."""
        known = self._known[index]
        if known.status is not None and not known.gone:
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if _status(status) == known.status and (status.st_dev, status.st_ino) not in self._mapped:
                    return None
        descriptor = _open(path)
        if descriptor < 0:
            if known.gone:
                return None
            deltas.write(out, Delta(index, gone=True))
            known.gone = True
            return -1
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FilesError(f"{path}: is no regular file any more")
            return self._send_changed(out, index, descriptor, status, started)
        except _Unreadable as error:
            raise FilesError(f"{path}: {error}") from error
        finally:
            os.close(descriptor)

    def _send_changed(self, out: BinaryIO, index: int, descriptor: int, status: os.stat_result, started: int) -> int:
        known, size = self._known[index], status.st_size
        inode = (status.st_dev, status.st_ino)
        block = blocks.block_for(size)
        if not known.sums:
            known.block = block
        elif known.block > block:
            # it has become much smaller, or was never so large: all of it again, for a block is read as a whole
            known.size, known.block, known.sums = 0, block, [b""] * -(-size // block)
        with _reading():
            first = self._appended_from(descriptor, known, size, inode)
            if first is None:
                changed, sums = _compared(descriptor, known, size)
            else:
                sums = known.sums[:first]
                sums += [b""] * (-(-size // known.block) - first)
                changed = list(range(first, len(sums)))
            runs = list(_runs(changed, known.block, size, sums))
            attributes = tuple(_attributes(descriptor))
        parts = [number for start, length, zero in runs for number in (start, -length if zero else length)]
        deltas.write(
            out,
            Delta(
                index, False, size, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_atime_ns,
                status.st_mtime_ns, attributes, tuple(parts),
            ),
        )  # fmt: skip
        sent = 0
        for start, length, zero in runs:
            if zero:
                continue
            for offset in range(start, start + length, known.block):
                with _reading():
                    data = blocks.read(descriptor, offset, min(known.block, start + length - offset))
                sums[offset // known.block] = blocks.sum_of(data)
                out.write(data)
            sent += length
        known.size, known.sums, known.inode, known.gone = size, sums, inode, False
        settled = started - status.st_ctime_ns >= _SETTLED_NS and inode not in self._mapped
        known.status = _status(status) if settled else None
        return sent

    def _appended_from(self, descriptor: int, known: _Known, size: int, inode: writers.Key) -> Optional[int]:
        """The first block that can be new, where the file can only have grown; None where that is not known."""
        if size < max(known.size, _SMALL) or not known.size or inode != known.inode or inode in self._mapped:
            return None
        if self._appended is None:
            self._appended = writers.only_appended(process.tree_pids(self._root))
        if inode not in self._appended:
            return None
        for index in (0, len(known.sums) - 1):
            data = blocks.read(descriptor, index * known.block, blocks.extent(index, known.block, known.size))
            if blocks.sum_of(data) != known.sums[index]:
                return None  # cut off, and written anew
        return known.size // known.block


class _Unreadable(Exception):
    """What the source's file system says of a file, in words: not to be taken for an error of the stream."""


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unreadable(error.strerror or str(error)) from error


def _open(path: str) -> int:
    """A descriptor; -1 where it is gone. Never follows a link in the last component. Raises FilesError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return -1
        raise FilesError(f"{path}: {error.strerror}") from error


def _compared(descriptor: int, known: _Known, size: int) -> tuple[list[int], list[bytes]]:
    """The blocks that the target does not hold, and the sums of all. What is beyond its end is zeros there."""
    sums = blocks.sums(descriptor, size, known.block)
    changed = []
    for index, found in enumerate(sums):
        beyond = index >= len(known.sums)
        if found != (blocks.zeros(blocks.extent(index, known.block, size)) if beyond else known.sums[index]):
            changed.append(index)
    return changed, sums


def _runs(changed: Iterable[int], block: int, size: int, sums: Sequence[bytes]) -> Iterator[tuple[int, int, bool]]:
    """Runs of blocks as (offset, length, whether all of it is zeros)."""
    run: Optional[tuple[int, int, bool]] = None
    for index in changed:
        length = blocks.extent(index, block, size)
        zero = sums[index] == blocks.zeros(length)
        if run is not None and run[0] + run[1] == index * block and run[2] == zero:
            run = (run[0], run[1] + length, zero)
            continue
        if run is not None:
            yield run
        run = (index * block, length, zero)
    if run is not None:
        yield run


def _attributes(descriptor: int) -> Iterator[Attribute]:
    """Extended attributes, access control lists among them. None where the file system has none."""
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in sorted(names):
        if name in _HOST_BOUND or (name.startswith("system.") and name != "system.posix_acl_access"):
            continue
        value = os.getxattr(descriptor, name)
        yield Attribute(name, base64.b64encode(value).decode("ascii"))


class Sending:
    """The files of one migration away from this host, by its streams."""

    def __init__(
        self, root: int, farm: Path, program: str, streams: Taken, jobs: Jobs, may: Callable[[], bool]
    ) -> None:
        """`farm` is a directory of our own, for links to the files; `may`: the migration is not past sending files."""
        self._root = root
        self._farm = farm
        self._program = program
        self._streams = streams
        self._jobs = jobs
        self._may = may
        self._outgoing = Outgoing(root, ())

    async def copy(self, request: CopyFiles) -> Moved:
        """rsync the files, and learn what the target holds then. Raises FilesError, ConnectionError, WrongOrder."""
        if not self._may() or self._outgoing.begun:
            raise WrongOrder("files can't be copied now")
        outgoing = self._outgoing
        outgoing.add(request.paths)
        rsync_stream = await self._streams.get(request.rsync)
        stream = await self._streams.get(request.stream)

        def run() -> Moved:
            names = list(_make_farm(self._farm, request.paths))
            rsync.send(self._program, self._farm, names, rsync_stream)
            shutil.rmtree(self._farm)
            with stream.makefile("rb") as source:
                outgoing.learn(source)
            return Moved(len(names), 0)

        return await self._jobs.run(run)

    async def add(self, request: AddFiles) -> Nothing:
        """These come along as well. Raises WrongOrder."""
        if not self._may():
            raise WrongOrder("the migration is past sending files")
        self._outgoing.add(request.paths)
        return Nothing()

    async def send(self, request: SendFiles) -> Moved:
        """One pass; its bytes are those of the content that went. Raises FilesError, ConnectionError, WrongOrder."""
        if not self._may():
            raise WrongOrder("the migration is past sending files")
        stream, outgoing = await self._streams.get(request.stream), self._outgoing

        def run() -> Moved:
            with stream.makefile("wb", buffering=256 * 1024) as out:
                return outgoing.send(cast(BinaryIO, out), frozen=request.final)

        return await self._jobs.run(run)


def _make_farm(farm: Path, paths: Sequence[str]) -> Iterator[str]:
    """A link to each file, under its number, by which the target knows it too; those numbers. What is gone has none."""
    farm.mkdir(mode=0o700)
    for number, path in enumerate(paths):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                (farm / str(number)).symlink_to(path)
                yield str(number)
