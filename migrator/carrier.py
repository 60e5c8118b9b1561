"""How the rounds of a migration get from one host to the other, behind one interface.

A carrier knows how criu's images travel, and nothing of when: that is `rounds`' (pre-copy) and `migration`'s (the
freeze). Both halves of the final dump may be at work at once, one a host, and neither waits for the other's steps.
"""

from __future__ import annotations

from typing import Protocol

from agent import protocol
from migrator.hosts import Ends
from migrator.together import both


class Carrier(Protocol):
    """The way of one migration's rounds. What fails raises PeerFault, PeerLost or MigrateError."""

    streams: tuple[str, ...]
    """The bulk streams that it wants between the two agents."""

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
            self._ends.target.accept_done(protocol.AcceptDone(number)),
        )
        return accepted
