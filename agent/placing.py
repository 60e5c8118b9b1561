"""The target's half of the files that come along: staged beside their paths first, put in place in the freeze.

Until `place` nothing is seen of them but names of ours (`ledger.py`), and what lies at their paths is as it was. Writes
only what was announced, replaces only what was there when it was announced, never makes a directory, follows no link
that has come into a path since (`anchor`).

Content that came in the freeze is not forced to disk there: that is done when the process runs (`Ledger.keep`), before
what was replaced is let go.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ctypes
import dataclasses
import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Callable, Optional, cast

from agent import anchor, blocks, deltas, process, rsync
from agent.deltas import Delta, FilesError, Held
from agent.journal import Journal
from agent.ledger import Ledger
from agent.protocol import Incoming, Moved, Nothing, ReceiveFiles, Stage, TakeFiles
from agent.streams import Jobs, Taken

_CHUNK = 1 << 18
_PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass
class _File:
    path: str
    real: str  # without links in its directories
    staged: str
    before: Optional[os.stat_result]  # what lay at its path; None: nothing
    told: bool = False  # the source has said what it is
    gone: bool = False


class Staging:
    """The files that come along, each under a name of ours beside its path."""

    def __init__(self, ledger: Ledger, files: Sequence[Incoming]) -> None:
        """Raises FilesError where one may not be written."""
        self._ledger = ledger
        self._files: list[_File] = []
        self.add(files)

    def add(self, files: Sequence[Incoming]) -> tuple[str, ...]:
        """These as well: where each of them is written first. Raises FilesError, and then none is."""
        added = []
        for file in files:
            _plain(file.path)
        for file in files:
            with _writing(file.path):
                real = anchor.settled(file.path)
                before = _lstat(real)
                _may_replace(file, before)
                staged = self._ledger.temporary_beside(real)
                with anchor.at(staged) as here:
                    os.close(os.open(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            added.append(_File(file.path, real, staged, before))
        self._files += added
        return tuple(file.staged for file in added)

    @property
    def staged(self) -> tuple[str, ...]:
        """Where each of all files is written, in their order."""
        return tuple(file.staged for file in self._files)

    def hold(self, out: BinaryIO) -> Moved:
        """Say what is here of each, sums and all, once it is on disk; bytes of their data. Raises OSError."""
        files = size = 0
        for index, file in enumerate(self._files):
            try:
                with anchor.at(file.staged) as here:
                    descriptor = os.open(here, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                deltas.write(out, Held(index, -1))
                continue
            try:
                os.fsync(descriptor)
                status = os.fstat(descriptor)
                block = blocks.block_for(status.st_size)
                sums = blocks.sums(descriptor, status.st_size, block)
                deltas.write(out, Held(index, status.st_size, block, len(sums)))
                out.write(b"".join(sums))
            finally:
                os.close(descriptor)
            files, size = files + 1, size + min(status.st_size, status.st_blocks * 512)
        deltas.write_end(out, len(self._files))
        return Moved(files, size)

    def receive(self, source: BinaryIO) -> Moved:
        """One pass. Raises FilesError, OSError with ENOSPC, or ConnectionError when the stream ends early."""
        files = size = 0
        for delta in deltas.messages(source, Delta):
            if not 0 <= delta.file < len(self._files):
                raise FilesError(f"file {delta.file} was not to be sent")
            file = self._files[delta.file]
            file.told, file.gone = True, delta.gone
            if delta.gone:
                continue
            files, size = files + 1, size + _receive_one(file.path, file.staged, delta, source)
        try:
            self._ledger.ready([(file.staged, file.real) for file in self._files if file.told and not file.gone])
        except OSError as error:
            raise _told(error, str(error.filename or "")) from error
        return Moved(files, size)

    def place(self) -> None:
        """Put all of them in place. Raises FilesError where somebody else has been there meanwhile."""
        for file in self._files:
            if not file.told:
                raise FilesError(f"{file.path}: the source did not say what it is")
            if _identity(_lstat(file.real)) != _identity(file.before):
                raise FilesError(f"{file.path}: was changed there while it was being copied")
        for file in self._files:
            if not file.gone:
                with _writing(file.path):
                    self._ledger.place(file.real)


def _plain(path: str) -> None:
    if not path.startswith("/") or path != os.path.normpath(path) or path == "/":
        raise FilesError(f"{path}: not a plain absolute path")


def _lstat(path: str) -> Optional[os.stat_result]:
    try:
        with anchor.at(path) as here:
            return os.lstat(here)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FilesError(f"{path}: {error}") from error


def _identity(status: Optional[os.stat_result]) -> object:
    return status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _may_replace(file: Incoming, there: Optional[os.stat_result]) -> None:
    """Nothing, or what preflight has seen and the operator has agreed to, and no other file."""
    if there is None:
        return
    if not stat.S_ISREG(there.st_mode):
        raise FilesError(f"{file.path}: is there already, and is no regular file")
    if not file.replace or (there.st_size, there.st_mtime_ns) != (file.size, file.mtime_ns):
        raise FilesError(f"{file.path}: is there already and differs; move it away if it is not needed")


def _receive_one(path: str, staged: str, delta: Delta, source: BinaryIO) -> int:
    try:
        with anchor.at(staged) as here:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(here, flags, 0o600)
    except OSError as error:
        raise _told(error, path) from error
    try:
        size = _patch(descriptor, path, delta, source)
        with _writing(path):
            _dress(descriptor, delta)
        return size
    finally:
        os.close(descriptor)


def _patch(descriptor: int, path: str, delta: Delta, source: BinaryIO) -> int:
    """Make the content what it is on the source; the bytes that came."""
    with _writing(path):
        os.ftruncate(descriptor, delta.size)
    came = 0
    for offset, length in delta.pairs():
        if length < 0:
            with _writing(path):
                _clear(descriptor, offset, -length)
            continue
        came += length
        while length:
            data = deltas.exactly(source, min(length, _CHUNK))
            with _writing(path):
                _write(descriptor, data, offset)
            offset, length = offset + len(data), length - len(data)
    return came


def _clear(descriptor: int, offset: int, length: int) -> None:
    """Zeros: a hole, where the file system can make one."""
    if _libc.fallocate(descriptor, _PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length)) == 0:
        return
    while length:
        step = min(length, _CHUNK)
        _write(descriptor, bytes(step), offset)
        offset, length = offset + step, length - step


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _dress(descriptor: int, delta: Delta) -> None:
    """Owner, mode, attributes and times, in the order in which none undoes another."""
    there = os.fstat(descriptor)
    if (there.st_uid, there.st_gid) != (delta.uid, delta.gid):
        os.fchown(descriptor, delta.uid, delta.gid)
    os.fchmod(descriptor, stat.S_IMODE(delta.mode))  # after chown, which clears set-id bits and capabilities
    wanted = dict(_decoded(delta))
    for name in _attribute_names(descriptor):
        if name not in wanted and not name.startswith("security."):  # those of the host's own policy stay
            os.removexattr(descriptor, name)
    for name, value in wanted.items():
        os.setxattr(descriptor, name, value)
    os.utime(descriptor, ns=(delta.atime_ns, delta.mtime_ns))


def _attribute_names(descriptor: int) -> list[str]:
    try:
        return os.listxattr(descriptor)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def _decoded(delta: Delta) -> Iterator[tuple[str, bytes]]:
    for attribute in delta.attributes:
        try:
            yield attribute.name, base64.b64decode(attribute.value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise FilesError(f"file {delta.file}: attribute {attribute.name} is damaged") from error


class _writing:
    """What fails in here is told of this path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        if isinstance(error, (OSError, OverflowError, ValueError)):
            raise _told(error, self._path) from error


def _told(error: Exception, path: str) -> Exception:
    """An error of this host's file system, as it is told to the other side."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return OSError(errno.ENOSPC, "no room", path)
    if number == errno.ENOTSUP:
        return FilesError(f"{path}: its attributes or access control list can't be kept on this file system")
    return FilesError(f"{path}: {getattr(error, 'strerror', None) or error}")


class Placing:
    """The files of one migration to this host, by its streams."""

    def __init__(
        self,
        journal: Journal,
        images: Path,
        program: str,
        streams: Taken,
        jobs: Jobs,
        still_accepting: Callable[[], None],
    ) -> None:
        """In `images` rsync gets a directory of its own; whoever removes them removes that."""
        # read, not made: after a takeover it knows what the dead agent put here
        self.ledger = Ledger.read(journal.directory / "ledger")
        self._journal = journal
        self._room = images / "files"
        self._program = program
        self._streams = streams
        self._jobs = jobs
        self._still_accepting = still_accepting
        self._staging = Staging(self.ledger, ())

    async def stage(self, request: Stage) -> Nothing:
        """Make room for these files, beside their paths. Raises FilesError, WrongOrder."""
        self._still_accepting()
        self._staging.add(request.files)
        return Nothing()

    async def take(self, request: TakeFiles) -> Moved:
        """rsync's other half; then say what is here. Raises FilesError, ConnectionError, WrongOrder.

        Whether rsync did well, the one on the source says.
        """
        self._still_accepting()
        rsync_stream = await self._streams.get(request.rsync)
        stream = await self._streams.get(request.stream)

        def run() -> Moved:
            log = self._journal.directory / "rsync.log"
            self._room.mkdir(mode=0o700)
            with rsync.serve(self._program, rsync_stream, self._room, self._staging.staged, log) as server:
                # after a takeover its end is waited for, before what it wrote is taken back
                self._journal.note("rsync", pid=server.pid, start=process.start_time(server.pid))
            rsync.started(server, log)
            with contextlib.suppress(OSError):  # the stream is gone already
                rsync_stream.shutdown(socket.SHUT_RDWR)  # what the client waits for
            with stream.makefile("wb", buffering=_CHUNK) as out:
                return self._staging.hold(cast(BinaryIO, out))

        return await self._jobs.run(run)

    async def receive(self, request: ReceiveFiles) -> Moved:
        """One pass; the final one puts the files in place, and `abort` takes them back."""
        self._still_accepting()
        stream = await self._streams.get(request.stream)

        def run() -> Moved:
            with stream.makefile("rb", buffering=_CHUNK) as source:
                moved = self._staging.receive(cast(BinaryIO, source))
            if request.final:
                self._staging.place()
            return moved

        return await self._jobs.run(run)
