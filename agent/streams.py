"""The bulk streams of one migration on this host: each taken once, kept under its name, hung up together.

And the work on them, in threads: it is waited for before what it works on is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from agent.bulk import Streams
from agent.journal import WrongOrder

T = TypeVar("T")

WAIT = 60.0
"""Seconds for a stream that was announced to connect."""


class Taken:
    """Streams by name. `listen` first, `close` in the end."""

    def __init__(self) -> None:
        self._listening: Optional[Streams] = None
        self._sockets: dict[str, socket.socket] = {}

    def listen(self, path: Path) -> None:
        """Let streams come. Raises BrokenStream and OSError as `bulk.Streams` does."""
        self._listening = Streams(path)

    async def get(self, name: str) -> socket.socket:
        """The connected, blocking socket of a stream; the same one whenever the name is given again."""
        if name not in self._sockets:
            if self._listening is None:
                raise WrongOrder("there are no streams to a migration that was taken over")
            self._sockets[name] = await self._listening.take(name, WAIT)
        return self._sockets[name]

    def hang_up(self) -> None:
        """End what was taken: a criu at work on one fails, which is how it is told to give up."""
        for stream in self._sockets.values():
            with contextlib.suppress(OSError):  # the other end was faster
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()
        self._sockets.clear()

    def close(self) -> None:
        """Hang up, and listen no more."""
        self.hang_up()
        if self._listening is not None:
            self._listening.close()


class Jobs:
    """Acts in threads of their own."""

    def __init__(self) -> None:
        self._jobs: set[asyncio.Future[Any]] = set()

    async def run(self, act: Callable[[], T]) -> T:
        """What an act returns or raises. Who is cancelled meanwhile leaves it at work."""
        job = asyncio.get_running_loop().run_in_executor(None, act)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.shield(job)

    async def ended(self) -> None:
        """Wait until none is at work."""
        if self._jobs:
            await asyncio.wait(self._jobs)
