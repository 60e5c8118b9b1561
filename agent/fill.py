"""The agent's end of a pager: starts the pair, feeds it the rounds, waits until memory is whole."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

from agent import program
from agent.protocol import Filled
from agent.warden import LOCK

PATIENCE = 60.0
"""Seconds after a pager's word that it can't go on, for which an operator is kept waiting for it all the same."""


class FillError(Exception):
    """The pager could not do its part; before COMMIT everything is undone."""


class BrokenRounds(FillError):
    """The rounds do not fit together: a page is missing, or an image is damaged."""


class NotInstant(FillError):
    """This memory can't be filled in behind a running tree: it has to be restored eagerly."""


class PagerGone(FillError):
    """Neither pager nor warden is there any more."""


class Fill:
    """A pager at work for one migration."""

    def __init__(self, child: asyncio.subprocess.Process, journal: Path) -> None:
        self._child = child
        self._journal = journal
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._orders = 0
        self._failing = ""
        self._failing_since = 0.0
        self.filled: Optional[Filled] = None

    @classmethod
    async def start(cls, images: Path, journal: Path, wrapper: Sequence[str]) -> Fill:
        """Start warden and pager; on return criu may look for them."""
        ours, theirs = socket.socketpair()
        log = os.open(journal / "pager.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = await asyncio.create_subprocess_exec(
                *wrapper,
                *program.command("pager", str(images), str(journal)),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(log)
        fill = cls(child, journal)
        fill._reader, fill._writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        for _ in range(1000):
            if (images / "lazy-pages.socket").exists():
                return fill
            if child.returncode is not None:
                break
            await asyncio.sleep(0.01)
        raise FillError(f"the pager did not start: see {journal / 'pager.log'}")

    async def _ask(self, **order: object) -> dict[str, Any]:
        self._orders += 1
        self._writer.write(json.dumps({**order, "order": self._orders}).encode() + b"\n")
        answer = await self._answer("order", self._orders)
        if "error" in answer:
            raise (NotInstant if answer.get("torn") else BrokenRounds)(answer["error"])
        return answer

    async def _answer(self, name: str, value: object) -> dict[str, Any]:
        """The next answer that says so. A pager that replaces another may say again what that one has said."""
        while True:
            line = await self._reader.readline()
            if not line:
                raise PagerGone("the pager is gone")
            answer: dict[str, Any] = json.loads(line)
            if "failing" in answer:
                self._failing = self._failing or str(answer["failing"])
                self._failing_since = self._failing_since or time.monotonic()
                raise FillError(f"the pager: {answer['failing']}")
            if answer.get(name) == value:
                return answer

    async def add_round(self, number: int) -> None:
        """Index a round that has arrived. Raises BrokenRounds, NotInstant."""
        await self._ask(round=number)

    async def mark(self) -> int:
        """Mark what is lazy, now that all images are here; its bytes. Raises BrokenRounds, NotInstant."""
        return int((await self._ask(mark=True))["lazy"])

    def resumed(self) -> None:
        """The tree runs, and RESUMED is on disk: fill, and give images back behind it."""
        self._writer.write(b'{"resumed":true}\n')

    async def done(self) -> Filled:
        """Wait until memory is whole and both have left. Raises FillError when that fails for now: it may be waited for
        again; PagerGone when they left without that."""
        if self.filled is None:
            try:
                answer = await self._answer("done", True)
            except PagerGone:
                lost = "what they had not filled in reads as zeros; do not trust the process"
                raise PagerGone(f"pager and warden are both gone: {lost}") from None
            self.filled = Filled(answer["bytes"], answer["seconds"], answer["faults"], answer["longest"])
            await wait_for_pager(self._journal)
        return self.filled

    async def whole(self, tell: Callable[[str], None], *, patience: float) -> None:
        """As `done`, however often the pager fails for now. Raises PagerGone; FillError once it has been failing for
        `patience` seconds: it goes on by itself, and may be waited for again."""
        while True:
            try:
                left = self._failing_since + patience - time.monotonic() if self._failing else None
                await asyncio.wait_for(self.done(), left)
                return
            except PagerGone:
                raise
            except FillError as error:
                tell(str(error))
            except asyncio.TimeoutError:
                raise FillError(f"the pager: {self._failing}") from None

    @property
    def session(self) -> int:
        """The session that both are in, and their replacements."""
        return self._child.pid

    async def abandon(self) -> None:
        """The tree is given up and will never run: its memory is not filled, and who waits for a page gets zeros."""
        self._writer.write(b'{"leave":true}\n')
        await self.close()

    async def close(self) -> None:
        """The migration is off, or over: let them go. With a tree that runs they fill its memory first."""
        self._writer.close()
        # by the lock, not by the child: the warden that was started may long have been replaced
        await wait_for_pager(self._journal)


async def wait_for_pager(journal: Path) -> None:
    """Wait until no pager of this migration is at work any more; at once where there was none."""
    try:
        descriptor = os.open(journal / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                await asyncio.sleep(0.02)
    finally:
        os.close(descriptor)
