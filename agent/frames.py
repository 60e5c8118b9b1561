"""The packed form of a bulk stream, on the side that unpacks it.

Owns the frames and what is absurd about one; how zstd is unpacked is `zstd`'s. protocol.py describes the form, for both
sides; its numbers are repeated here, since a relay has no time to load it.

The frames say themselves where the stream ends, so a cut connection is no end. All memory that a frame can cost is
taken beforehand: whatever it claims, it gets no more.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.zstd import Unpack

HEAD = struct.Struct("!cII")
PLAIN, PACKED, ZEROS, END = b"P", b"Z", b"0", b"."
LARGEST = 1 << 20
"""protocol.py's."""

_NOTHING = memoryview(bytes(LARGEST))


class BadFrames(Exception):
    """The stream is truncated, damaged, or never was one of frames."""


class Frames:
    """Bytes in as they come, what they stand for out: read into `room()`, then see what `took()` gives.

    `unpack` as in `zstd`; without it only frames that are not compressed are taken.
    """

    def __init__(self, unpack: Unpack | None) -> None:
        self._unpack = unpack
        self._buffer = bytearray(2 * (LARGEST + HEAD.size))
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self.ended = False
        """Whether the frame that ends the stream has been seen."""

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._start:
            waiting = self._end - self._start
            self._view[:waiting] = self._view[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._view[self._end :]

    def took(self, count: int) -> Iterator[memoryview]:
        """So many bytes were read; 0 is the end of all. Gives pieces that are good until the next one is asked for.

        Raises BadFrames.
        """
        if not count:
            if not self.ended:
                raise BadFrames("it ends in the middle")
            return
        self._end += count
        while self._end - self._start >= HEAD.size:
            if self.ended:
                raise BadFrames("something follows its end")
            kind, size, length = HEAD.unpack_from(self._buffer, self._start)
            _check(kind, size, length)
            first = self._start + HEAD.size
            if self._end < first + length:
                return
            self._start = first + length
            yield from self._plain(kind, size, self._view[first : first + length])
        if self.ended and self._end > self._start:
            raise BadFrames("something follows its end")

    def _plain(self, kind: bytes, size: int, body: memoryview) -> Iterator[memoryview]:
        from agent.zstd import Damaged

        if kind == PLAIN:
            yield body
        elif kind == ZEROS:
            yield _NOTHING[:size]
        elif kind == END:
            self.ended = True
        elif self._unpack is None:
            raise BadFrames("it is compressed, and there is no zstd here")
        else:
            try:
                yield self._unpack(body, size)
            except Damaged as error:
                raise BadFrames(f"a piece is damaged: {error}") from None


def _check(kind: bytes, size: int, length: int) -> None:
    lengths = {PLAIN: (size, size), PACKED: (1, size), ZEROS: (0, 0), END: (0, 0)}
    if kind not in lengths:
        raise BadFrames(f"a piece is of no known kind: {kind!r}")
    low, high = lengths[kind]
    if not low <= length <= high or not (0 < size <= LARGEST) == (kind != END):
        raise BadFrames(f"a piece of absurd size: {length} bytes that stand for {size}")
