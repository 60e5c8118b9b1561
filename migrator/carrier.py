"""How the rounds of a migration get from one host to the other, behind one interface.

A carrier knows how criu's images travel, and nothing of when: that is `rounds`' (pre-copy) and `migration`'s (the
freeze). Both halves of the final dump may be at work at once, one a host, and neither waits for the other's steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from agent import protocol
from migrator.hosts import Ends
from migrator.rsync import Rsync
from migrator.together import both


class Carrier(Protocol):
    """The way of one migration's rounds. What fails raises PeerFault, PeerLost or MigrateError."""

    streams: tuple[str, ...]
    """The bulk streams that it wants between the two agents."""

    def begin(self, here: protocol.Prepared, there: protocol.Prepared) -> None:
        """Both hosts are prepared, and this is where."""

    async def expect(self, number: int) -> None:
        """Be ready for this round: it may be the freeze."""

    async def round(self, number: int) -> tuple[protocol.Dumped, protocol.Accepted]:
        """A pre-copy round, dumped and arrived."""

    async def dump(self, number: int) -> protocol.Held:
        """The source's half of the final dump; on return the tree is held."""

    async def follow(self, number: int) -> None:
        """What is no memory goes after it."""

    async def receive(self, number: int) -> protocol.Accepted:
        """The target's half: on return all of it is there."""


class Streamed:
    """criu's page server: pages go from one criu to the other while they are dumped, and touch no disk on the way."""

    streams: tuple[str, ...] = ("pages", "images")

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def begin(self, here: protocol.Prepared, there: protocol.Prepared) -> None:
        """The streams are all it needs."""

    async def expect(self, number: int) -> None:
        """The page server of a round stands before it is known whether that round is the freeze."""
        await self._ends.target.accept(protocol.Accept(number, "pages"))

    async def round(self, number: int) -> tuple[protocol.Dumped, protocol.Accepted]:
        """A pre-copy round."""
        return await both(
            self._ends.source.pre_dump(protocol.PreDump(number, "pages")),
            self._ends.target.accept_done(protocol.AcceptDone(number)),
        )

    async def dump(self, number: int) -> protocol.Held:
        """Freeze, dump what is left, hold."""
        return await self._ends.source.dump(protocol.Dump(number, "pages"))

    async def follow(self, number: int) -> None:
        """The images, the memory's pages excepted."""
        await self._ends.source.send_images(protocol.SendImages(number, "images"))

    async def receive(self, number: int) -> protocol.Accepted:
        """Images and pages."""
        _, accepted = await both(
            self._ends.target.receive_images(protocol.ReceiveImages(number, "images")),
            self._ends.target.accept_done(protocol.AcceptDone(number, final=True)),
        )
        return accepted


class Directories:
    """Rounds as image directories, plain to follow by hand: criu writes them here, rsync takes them there.

    Or nobody does, where both hosts see the directory: then they are on its disk before the target looks at them.
    """

    streams: tuple[str, ...] = ()

    def __init__(
        self,
        ends: Ends,
        rsync: Rsync | None,
        bandwidth: Callable[[], float],
        went: Callable[[int], None],
        tell: Callable[[str], None],
    ) -> None:
        """`rsync` None: the storage is shared. `bandwidth` is asked before each round; `went` gets wire bytes."""
        self._ends = ends
        self._rsync = rsync
        self._bandwidth = bandwidth
        self._went = went
        self._tell = tell
        self._here = self._there = ""
        self._dumped = asyncio.Event()
        self._last: tuple[protocol.Image, ...] = ()

    def begin(self, here: protocol.Prepared, there: protocol.Prepared) -> None:
        """Where the directories lie on either host."""
        self._here, self._there = here.images, there.images

    async def expect(self, number: int) -> None:
        """Nothing has to be ready."""

    async def round(self, number: int) -> tuple[protocol.Dumped, protocol.Accepted]:
        """A pre-copy round: dumped, then sent, then looked at."""
        dumped = await self._ends.source.pre_dump(protocol.PreDump(number, ""))
        return dumped, await self._carry(number, dumped.images)

    async def dump(self, number: int) -> protocol.Held:
        """Freeze, dump what is left, hold."""
        held = await self._ends.source.dump(protocol.Dump(number, ""))
        self._last = held.images
        self._dumped.set()
        return held

    async def follow(self, number: int) -> None:
        """All images go together."""

    async def receive(self, number: int) -> protocol.Accepted:
        """Once it is dumped: sent, and looked at."""
        await self._dumped.wait()
        return await self._carry(number, self._last, final=True)

    async def _carry(
        self, number: int, images: tuple[protocol.Image, ...], *, final: bool = False
    ) -> protocol.Accepted:
        if self._rsync is not None:
            here, there = f"{self._here}/{number}", f"{self._there}/{number}"
            self._went(await self._rsync.send(here, there, bandwidth=self._bandwidth(), tell=self._tell))
        return await self._ends.target.arrived(protocol.Arrived(number, images, final))
