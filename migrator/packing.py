"""Bulk streams compressed on their way to the target: whether, how strongly, and where the time for it comes from.

The only door to zstandard. The source's bytes come here plain, the target's relay unpacks them (protocol.py has the
form of the frames). Each piece is judged by itself: `Judge` is the pure part, `Packed` the channel that packs in
threads, off the event loop, and sends in order. A piece that is small goes out at once; nothing waits for more.

What a piece costs is predicted in both forms, from what the last ones have shown: packing seconds, and bytes over the
rate at which the link takes them (encryption included, and the target's pace as far as it pushes back). That is zstd's
own --adapt as a formula: on a slow link it packs strongly, on a fast one at its fastest, and where the link outruns
that or the piece does not shrink, not at all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import struct
import threading
import time
from typing import TYPE_CHECKING

from agent.protocol import FRAME_HEAD, FRAME_LARGEST
from migrator.channel import CHUNK, Channel

if TYPE_CHECKING:
    import zstandard

LEVELS = (-10, -5, -1, 1, 3)
"""zstd's levels that are worth it, the fastest first; above 3 nothing much is gained on memory."""

SPEEDS = (1300e6, 1000e6, 840e6, 680e6, 600e6)
"""Bytes a second of each on a Python heap and one idle core. Only their proportions last: how fast this machine is, and
how busy, every piece shows anew, also when none is packed, by its sample."""

GAINS = (1.0, 0.67, 0.33, 0.29, 0.28)
"""What each makes of a piece, over what the fastest makes of its sample; for a Python heap, then as it shows."""

LINK = 300e6
"""Bytes a second that SSH takes, until it has shown."""

FASTEST_LINK = 600e6
"""Bytes a second that SSH takes at most (420 to 545 MiB/s were seen): a small piece that only went into a buffer does
not tell."""

TURN = 0.0001
"""Seconds that sending any piece takes, however small: a turn of the event loop, a packet, a system call."""

SMALL = 1024
"""Bytes: a piece below it is sent as it is."""

SAMPLE, SLICES = 16384, 8
"""Bytes of a piece that are tried at the fastest level, and in how many slices: 2 % of the time of packing it all."""

WORTH = 0.9
"""A sample that is not shorter than this share of itself says that the piece does not shrink."""

MEMORY = 16 << 20
"""Bytes after which half of what was seen of link and machine is forgotten."""

_HEAD = struct.Struct(FRAME_HEAD)
_NOTHING = bytes(CHUNK)


class _Rate:
    """An amount a second, of late: sums, so that one long wait counts for what it took and not for more."""

    def __init__(self, value: float) -> None:
        self._seconds = 0.01
        self._amount = value * self._seconds

    def add(self, amount: float, seconds: float, age: float) -> None:
        """So much in so long; by `age`, what was before fades: by half for 1."""
        kept = 0.5**age
        self._amount = self._amount * kept + amount
        self._seconds = self._seconds * kept + max(seconds, 1e-9)

    @property
    def value(self) -> float:
        """The amount a second."""
        return self._amount / self._seconds


class Judge:
    """Which level for the next piece, from the pieces so far. Pure: clocks and bytes are told. Safe between threads."""

    def __init__(self, *, always: bool, workers: int) -> None:
        self._always = always
        self._workers = workers
        self._gains = list(GAINS)
        self._link = _Rate(LINK)
        self._machine = _Rate(1.0)  # seconds that packing takes by SPEEDS, over those that it took

    @property
    def link(self) -> float:
        """Bytes a second that the link takes."""
        return self._link.value

    def sent(self, size: int, seconds: float) -> None:
        """The link took so many bytes in so long."""
        self._link.add(size, seconds, size / MEMORY)

    def tried(self, level: int, size: int, seconds: float, passed: int = 0) -> None:
        """Packing so many bytes at this level took so long: of a sample, with `passed` bytes of pieces, or a piece."""
        self._machine.add(size / SPEEDS[LEVELS.index(level)], seconds, passed / MEMORY)

    def packed(self, level: int, shrink: float, size: int, length: int) -> None:
        """Packing made `length` bytes of `size`, of which the sample had promised `shrink`."""
        at = LEVELS.index(level)
        self._gains[at] += 0.1 * (length / size / shrink - self._gains[at])

    def level(self, shrink: float) -> int | None:
        """The level that carries a piece soonest whose sample shrank to this share; None: as it is."""
        if shrink >= WORTH:
            return None
        # one byte: to pack it, then to send what is left of it. Summed, not the larger of both: where cores are few
        # and the link is fast, packing and encrypting take turns
        costs = [
            1 / (speed * self._machine.value * self._workers) + min(gain * shrink, 1.0) / self.link
            for speed, gain in zip(SPEEDS, self._gains, strict=True)
        ]
        best = min(range(len(LEVELS)), key=costs.__getitem__)
        if costs[best] >= 1 / self.link and not self._always:
            return None
        return LEVELS[best]


class _Packer(threading.local):
    """zstd's contexts, which belong to one thread each."""

    def __init__(self) -> None:
        import zstandard  # late, since a check packs nothing; and before a stream is open, never in the freeze

        self._new = functools.partial(zstandard.ZstdCompressor, write_checksum=True)
        self._contexts: dict[int, zstandard.ZstdCompressor] = {}

    def at(self, level: int) -> zstandard.ZstdCompressor:
        """What packs at this level."""
        if level not in self._contexts:
            self._contexts[level] = self._new(level=level)
        return self._contexts[level]


def frame(kind: bytes, size: int, body: bytes = b"") -> bytes:
    """One frame, as it goes over the wire."""
    return _HEAD.pack(kind, size, len(body)) + body


END = frame(b".", 0)


class Packed(Channel):
    """A channel to a relay that unpacks; what is written here goes there as frames, what is read comes plain.

    `always`: compress whatever shrinks, however fast the link is. `close` ends the threads as well.

    512 MiB in one freeze over the lab's two hosts (netns: no link at all, and both hosts on the same 2 busy cores, so
    the worst case for packing), MiB/s, two runs each: `ssh cat` 325, 428; random pages plain 298, 326, auto 366, 426;
    Python objects plain 343, 360, auto 272, 361 (it gives up: 0.95 of the bytes travel), always 252, 302 (0.4 of them).
    The same objects over a link of 1 Gbit/s (tc tbf): plain 112, auto 217 (0.2 of the bytes travel).
    """

    def __init__(self, inner: Channel, *, always: bool = False, workers: int = 0) -> None:
        super().__init__()
        workers = workers or max(1, min(4, len(os.sched_getaffinity(0)) - 1))
        self._inner = inner
        self._packer = _Packer()
        self._judge = Judge(always=always, workers=workers)
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, "pack")
        self._waiting: asyncio.Queue[bytes | asyncio.Future[bytes] | None] = asyncio.Queue(workers + 1)
        self._sender = asyncio.create_task(self._send())

    async def _receive(self, size: int) -> bytes:
        return await self._inner.read(size)

    async def write(self, data: bytes) -> None:
        """Pack and send; waits while threads or link do not keep up. Raises what sending an earlier piece raised."""
        for start in range(0, len(data), FRAME_LARGEST):
            piece = data[start : start + FRAME_LARGEST]
            await self._put(self._judged(piece))

    async def write_eof(self) -> None:
        """Send the end, after all that was written."""
        if not self._sender.done():
            await self._put(END)
            await self._put(None)
        await self._sender
        await self._inner.write_eof()

    async def _put(self, item: bytes | asyncio.Future[bytes] | None) -> None:
        if not self._sender.done():
            if not self._waiting.full():
                self._waiting.put_nowait(item)
                return
            put = asyncio.ensure_future(self._waiting.put(item))
            try:
                await asyncio.wait({put, self._sender}, return_when=asyncio.FIRST_COMPLETED)
                if put.done():
                    return
            finally:
                put.cancel()
        self._sender.result()
        raise BrokenPipeError("the stream has ended")

    async def _send(self) -> None:
        while (item := await self._waiting.get()) is not None:
            data = item if isinstance(item, bytes) else await item
            started = time.perf_counter()
            await self._inner.write(data)
            seconds = time.perf_counter() - started
            self._judge.sent(len(data), max(seconds - TURN, len(data) / FASTEST_LINK))

    def _judged(self, data: bytes) -> bytes | asyncio.Future[bytes]:
        """The frame of a piece, or a thread at work on it. The sample is tried here: a thread would take longer."""
        if len(data) < SMALL:
            return frame(b"P", len(data), data)
        if data.startswith(_NOTHING[:64]) and data == _NOTHING[: len(data)]:
            return frame(b"0", len(data))
        step = len(data) // SLICES
        sample = data[:SAMPLE]
        if len(data) > SAMPLE:
            sample = b"".join(data[at : at + SAMPLE // SLICES] for at in range(0, step * SLICES, step))
        shrink = len(self._compress(LEVELS[0], sample, len(data))) / len(sample)
        level = self._judge.level(shrink)
        if level is None:
            return frame(b"P", len(data), data)
        return asyncio.get_running_loop().run_in_executor(self._threads, self._pack, level, shrink, data)

    def _pack(self, level: int, shrink: float, data: bytes) -> bytes:
        """In a thread: the frame of a piece."""
        packed = self._compress(level, data, 0)
        self._judge.packed(level, shrink, len(data), len(packed))
        packs = len(packed) < len(data)
        return frame(b"Z" if packs else b"P", len(data), packed if packs else data)

    def _compress(self, level: int, data: bytes, passed: int) -> bytes:
        packer = self._packer.at(level)
        started = time.perf_counter()
        packed = packer.compress(data)
        self._judge.tried(level, len(data), time.perf_counter() - started, passed)
        return packed

    async def wait(self) -> int | None:
        """The relay's exit status."""
        return await self._inner.wait()

    async def close(self) -> None:
        """End both directions at once."""
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self._sender
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._inner.close()

    def stderr_tail(self) -> str:
        """What the relay said."""
        return self._inner.stderr_tail()
