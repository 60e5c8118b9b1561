"""A tree that comes from ice: the target's half of a migration whose source is a directory of this host.

What lies there is never changed, so the order of the commit is another one: until the tree was let go everything can be
given up, by whatever goes wrong, and be tried again. Of two who try at once the second is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

from agent import ice, images, process, protocol
from agent.journal import Journal, Record
from agent.settings import Settings
from agent.target import Target


class Reviving(Target):
    """One tree on its way from ice."""

    def __init__(
        self, settings: Settings, journal: Journal, options: protocol.CriuOptions, tell: Callable[[str], None]
    ) -> None:
        super().__init__(settings, journal, options, tell)
        self._place = Path(journal.first["ice"])
        self._claim = -1

    @classmethod
    async def prepare(cls, settings: Settings, request: protocol.Prepare, tell: Callable[[str], None]) -> Reviving:
        """As the target's, and the images laid out. Raises InUse, IceError."""
        claim = ice.claim(Path(request.ice))
        try:
            target = await super().prepare(settings, request, tell)
        except BaseException:
            os.close(claim)
            raise
        assert isinstance(target, Reviving)
        target._claim = claim
        try:
            number = ice.read(target._place).round
            ice.working_copy(target._place, number, images.round_directory(target._images, number))
        except BaseException:
            await target.abort("its images could not be read", source_aborted=False)
            raise
        return target

    async def resume(self, request: protocol.Resume) -> protocol.Resumed:
        """As the target's: there is word of its processes beside the images before one of them runs."""
        ice.note_restored(self._place, self._journal.facts(Record.HELD.value).get("tasks", ()))
        return await super().resume(request)

    def resumed(self) -> int:
        """As the target's."""
        ice.note_restored(self._place, filter(None, map(process.identity, self._pids())))
        return super().resumed()

    async def abort(self, reason: str, source_aborted: bool) -> protocol.Leftovers:
        """As the target's, at any time before RESUMING: the images stay as they are."""
        left = await super().abort(reason, source_aborted=True)
        self._unclaim()
        return left

    async def contact_lost(self) -> None:
        """A tree that is held is given up: its images are there for another restore."""
        if self._journal.last in (Record.PREPARED, Record.HELD):
            self._terminal.contact_lost()
            await self.abort("contact lost", source_aborted=True)
        else:
            await super().contact_lost()

    async def finish(self, **patience: float) -> protocol.Leftovers:
        """As the target's."""
        left = await super().finish(**patience)
        self._unclaim()
        return left

    def _unclaim(self) -> None:
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1


def taking(settings: Settings, journal: Journal, tell: Callable[[str], None]) -> Target:
    """Take over what a journal tells of, whose agent is gone: from another host, or from ice."""
    return (Reviving if journal.first.get("ice") else Target).adopt(settings, journal, tell)
