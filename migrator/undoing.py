"""Undoing a migration on both hosts, before COMMIT: the tree runs on here, and nothing stays there.

The source first: its recorded ABORT is what lets the target discard a tree that it holds (DESIGN: the commit, rule 3).
The source last, too: only when the target was told is its journal done, so that `recover` finds what is still owed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from agent import protocol
from migrator import errors
from migrator.hosts import Ends
from migrator.peer import PeerFault, PeerLost
from migrator.phases import Observer

T = TypeVar("T")
_LOST = (PeerFault, PeerLost, errors.MigrateError)


class Undoing:
    """What gives up one migration. Both acts may be called at any time before COMMIT, also when nothing has begun."""

    def __init__(self, migration: str, ends: Ends, observer: Observer) -> None:
        self._id = migration
        self._ends = ends
        self._observer = observer
        self.source_aborted = False
        """ABORT is on the source's disk."""
        self.leftovers: list[str] = []
        """HOST: what could not be removed."""
        self._never_began: set[str] = set()

    async def beginning(self, role: str, begin: Awaitable[T]) -> T:
        """What begins it on a host. One that is refused, somebody else having the tree or the id there, began nothing:
        then nothing is undone either, since what is there is the other's."""
        try:
            return await begin
        except PeerFault as fault:
            if fault.fault.code is protocol.FaultCode.LOCKED:
                self._never_began.add(role)
            raise

    @property
    def _recover(self) -> str:
        return f"migrate recover {self._id}"

    async def source(self) -> None:
        """The tree runs on here. A lost agent is replaced by a new one, which reads the journal. Raises InDoubt."""
        if self.source_aborted:
            return
        if "source" in self._never_began:
            self.source_aborted = True
            return
        try:
            left = (await self._ends.source.abort(protocol.Abort("undone"))).items
        except (PeerFault, PeerLost):
            try:
                await self._ends.replace_source()
                left = await self._settle("source")
            except _LOST as error:
                message = f"the migration could not be undone on {self._ends.source.host}: {error}"
                raise errors.InDoubt(message, hint=self._recover) from error
        self.source_aborted = True
        self._left(self._ends.source.host, left)

    async def target(self) -> None:
        """Nothing stays there. Called after the source's ABORT, without which a held tree may not be discarded."""
        abort = protocol.Abort("undone", source_aborted=self.source_aborted)
        try:
            left = (await self._ends.target.abort(abort)).items
        except (PeerFault, PeerLost) as refused:
            if not self.source_aborted:
                # COMMIT may be in the source's journal, and this the only copy: that only `recover` can see
                self._observer.note(f"{refused}; left as it is: {self._recover}")
                return
            if self._never_began:
                return  # nothing of ours is there, or our agent discards it by itself; and what is another's stays
            try:
                await self._ends.replace_target()
                left = await self._settle("target")
            except _LOST as error:
                left = (f"could not be told that it is over: {error} (later: {self._recover})",)
                self._left(self._ends.target.host, left)
                return
        self._left(self._ends.target.host, left)
        if self.source_aborted and "source" not in self._never_began:
            await self._told()

    async def _told(self) -> None:
        """The target knows: DONE on the source. That it can't be written harms nobody: `recover` writes it then."""
        try:
            await self._ends.source.finish()
        except (PeerFault, PeerLost):
            with contextlib.suppress(*_LOST):
                await self._ends.replace_source()
                await self._settle("source", protocol.Verdict.CLEAN)

    async def _settle(self, end: str, verdict: protocol.Verdict = protocol.Verdict.ABORT) -> tuple[str, ...]:
        peer = self._ends.source if end == "source" else self._ends.target
        state = await peer.journal(protocol.ReadJournal(self._id))
        if not state.role:  # it never began
            return ()
        return (await peer.settle(protocol.Settle(self._id, verdict))).leftovers

    def _left(self, host: str, items: tuple[str, ...]) -> None:
        for item in items:
            self.leftovers.append(f"{host}: {item}")
            self._observer.note(f"left behind on {host}: {item}")
