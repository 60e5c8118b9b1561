"""What travels on the stream of files, in either direction: a line of JSON, and raw bytes after it where it says so.

From the source, a line a file that changed (`Delta`), and after it the data of its parts in their order; from the
target, once, what it holds of each file (`Held`), and after it the sums of its blocks. `{"end": N}` follows the N lines
of a pass: a stream that was cut ends without it.

Owns the form, and refuses what is not of it; what a path is, and whether a file may be written, it does not know.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import BinaryIO, TypeVar, Union

from agent import wire

LINE = 16 << 20
"""Bytes of a line at most: that of a file with 65,536 parts has 2 MiB."""

T = TypeVar("T")


class FilesError(Exception):
    """A file could not be copied; the message names it."""


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One extended attribute (xattr(7)); access control lists are two of them."""

    name: str
    value: str  # base64


@dataclasses.dataclass(frozen=True)
class Delta:
    """A file, and what of its content changed. `gone`: it is no longer there, and nothing else counts."""

    file: int  # its index among those that were staged
    gone: bool = False
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    attributes: tuple[Attribute, ...] = ()
    parts: tuple[int, ...] = ()  # offset, length, offset, length…; a negative length: so many zeros, no data follows

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Its parts as (offset, length). Raises FilesError for what can't be one."""
        if len(self.parts) % 2:
            raise FilesError(f"file {self.file}: half a part")
        for offset, length in zip(self.parts[::2], self.parts[1::2]):
            if offset < 0 or not length or offset + abs(length) > self.size:
                raise FilesError(f"file {self.file}: a part beyond its end")
            yield offset, length


@dataclasses.dataclass(frozen=True)
class Held:
    """What the target holds of a file: `blocks` sums follow, of that many blocks. Size -1: nothing."""

    file: int
    size: int
    block: int = 0
    blocks: int = 0


def write(out: BinaryIO, message: Union[Delta, Held]) -> None:
    """One line. Raises OSError."""
    out.write(json.dumps(dataclasses.asdict(message), separators=(",", ":")).encode("ascii") + b"\n")


def write_end(out: BinaryIO, count: int) -> None:
    """The end of a pass of so many lines. Raises OSError."""
    out.write(b'{"end":%d}\n' % count)
    out.flush()


def messages(source: BinaryIO, kind: type[T]) -> Iterator[T]:
    """The lines of one pass; whoever iterates reads what follows each before the next.

    Raises ConnectionError where the stream ends early, FilesError for what is no such line.
    """
    count = 0
    while True:
        line = source.readline(LINE)
        if not line.endswith(b"\n"):
            if len(line) == LINE:
                raise FilesError("the stream of files has a line without an end")
            raise ConnectionError("the stream of files ended early")
        try:
            value = wire.loads(line)
            if isinstance(value, dict) and set(value) == {"end"}:
                if value["end"] != count:
                    raise FilesError(f"the stream of files announces {value['end']} files and has {count}")
                return
            message = wire.decode(kind, value, "files")
        except wire.WireError as error:
            raise FilesError(f"the stream of files is broken: {error}") from error
        count += 1
        yield message


def exactly(source: BinaryIO, size: int) -> bytes:
    """So many bytes. Raises ConnectionError where the stream ends before."""
    data = source.read(size)
    if len(data) != size:
        raise ConnectionError("the stream of files ended early")
    return data
