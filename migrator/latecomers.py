"""Files that the tree has opened since preflight: they need on the target what all others do.

Looked for while the tree runs, and once more when it is held, because criu would fail to restore where one is missing.
"""

from __future__ import annotations

from agent import protocol
from migrator import errors, fileplan, plan
from migrator.along import Along
from migrator.hosts import Ends
from migrator.phases import Observer


class Latecomers:
    """Of one migration, by what its operator has allowed."""

    def __init__(self, ends: Ends, along: Along, observer: Observer, wishes: plan.Wishes) -> None:
        self._ends = ends
        self._along = along
        self._observer = observer
        self._wishes = wishes

    async def admit(self, tree: protocol.TreeFacts) -> None:
        """Let them come along, or find them on the target. Raises OpenedMeanwhile where neither can be."""
        found = (await self._ends.source.newly_opened()).files
        if not found:
            return
        late = fileplan.late(tree, found)
        answers = (await self._ends.target.check(protocol.Check(fileplan.questions(late), ()))).files
        obstacles, copies = fileplan.judge(
            self._ends.source.host, self._ends.target.host, late, answers,
            copy_files=self._wishes.copy_files, overwrite=self._wishes.overwrite_files,
        )  # fmt: skip
        for warning in obstacles:
            if not warning.stops:
                self._observer.note(warning.note)
        stops = tuple(obstacle for obstacle in obstacles if obstacle.stops)
        if stops:
            names = ", ".join(dict.fromkeys(obstacle.object for obstacle in stops[:3]))
            raise errors.OpenedMeanwhile(f"it has opened files since it was checked: {names}", obstacles=stops)
        await self._along.add(copies)
