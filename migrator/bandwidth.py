"""What goes over the wire: counted, and held to a rate.

A token bucket of bytes that every bulk stream of a migration draws from. Pre-copy only: the freeze lifts it, since then
each byte that waits is a process that does not run.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable

from migrator.channel import Channel

BURST = 0.05
"""Seconds' worth of bytes that may go out at once."""

LEAST = 1024.0
"""Bytes a second; below it a migration would never end."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_rate(text: str) -> float:
    """Bytes a second: a number, with K, M or G (also KiB…) for 1024s or KB, MB, GB for 1000s, as rsync has them.

    Raises ValueError.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([KMG]?)(B|iB|)", text, re.ASCII | re.IGNORECASE)
    if found is None or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is no rate: write bytes a second, for example 20M")
    rate = float(found[1]) * _UNITS[found[2].upper() + ("B" if found[3].upper() == "B" else "")]
    if not (LEAST <= rate < math.inf):
        raise ValueError(f"{text!r} is too slow: {LEAST:.0f} bytes a second at least")
    return rate


class Bucket:
    """So many bytes a second, shared by whoever takes from it; 0 for no limit."""

    def __init__(self, rate: float = 0.0) -> None:
        self._rate = rate
        self._lifted = asyncio.Event()
        self._free_at = -math.inf
        if not rate:
            self.lift()

    @property
    def slice(self) -> int:
        """Bytes to take at a time at most."""
        return 0 if self._lifted.is_set() else max(1, int(self._rate * BURST))

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes may go out."""
        if self._lifted.is_set():
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - BURST) + size / self._rate
        if self._free_at > now:
            try:
                async with asyncio.timeout(self._free_at - now):
                    await self._lifted.wait()
            except TimeoutError:
                pass

    def lift(self) -> None:
        """No limit from now on; whoever waits goes on at once."""
        self._lifted.set()


class Metered(Channel):
    """A channel whose written bytes are counted, and held to a bucket."""

    def __init__(self, inner: Channel, bucket: Bucket, on_wire: Callable[[int], None]) -> None:
        super().__init__()
        self._inner = inner
        self._bucket = bucket
        self._on_wire = on_wire

    async def _receive(self, size: int) -> bytes:
        return await self._inner.read(size)

    async def write(self, data: bytes) -> None:
        """Send when it may go out."""
        at = 0
        while at < len(data):
            part = data[at : at + self._bucket.slice] if self._bucket.slice else data[at:]
            await self._bucket.take(len(part))
            await self._inner.write(part)
            self._on_wire(len(part))
            at += len(part)

    async def write_eof(self) -> None:
        """End our direction."""
        await self._inner.write_eof()

    async def wait(self) -> int | None:
        """The far end's exit status."""
        return await self._inner.wait()

    async def close(self) -> None:
        """End both directions at once."""
        await self._inner.close()

    def stderr_tail(self) -> str:
        """What the far end said."""
        return self._inner.stderr_tail()
