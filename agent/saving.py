"""A tree that goes on ice: the source's half of a migration whose target is a directory of this host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from agent import descriptors, disk, ice, inside, process, protocol
from agent.journal import Record, WrongOrder
from agent.settings import Settings
from agent.source import Source


class Saving(Source):
    """One tree on its way onto ice; its images lie where they stay.

    COMMIT comes only once all of it is on disk, so that a host that went down in between has one copy as well.
    """

    def __init__(self, settings: Settings, begin: protocol.Begin, tell: Callable[[str], None]) -> None:
        super().__init__(settings, begin, tell)
        self._directory = Path(begin.place.directory)
        self._made = False

    async def begin(self) -> protocol.Prepared:
        """As the source's. Raises NotOurs where others may write to the directory: what lies there is run as root."""
        disk.trusted(self._directory)
        self._made = not self._directory.exists()
        return await super().begin()

    async def put_on_ice(self, request: protocol.PutOnIce) -> protocol.Nothing:
        """All that a restore needs is on disk on return. Raises WrongOrder, NoRoom, OSError."""
        if self._hold is None or not self._hold.held or self.committed:
            raise WrongOrder("there is no held tree to put on ice")

        def put() -> None:
            tree = as_held(request.tree, process.tree_pids(self._begin.pid))
            _settle_files(tree)
            ice.put(self._images, ice.drafted(self._begin.migration, request, tree, self._begin.options))

        await self._jobs.run(put)
        return protocol.Nothing()

    def _put_away(self) -> tuple[str, ...]:
        gone = self._journal.has(Record.KILLED)
        left = ice.put_away(self._images, gone=gone)
        if self._made and not gone:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                self._directory.rmdir()
        return left


def _settle_files(tree: protocol.TreeFacts) -> None:
    """What it has written to its files is on disk: a restore wants them as they were. Raises OSError."""
    for file in tree.files:
        if file.kind == "regular" and "write" in file.uses and not file.deleted:
            for name in (file.path, os.path.dirname(file.path)):
                with contextlib.suppress(FileNotFoundError):  # another has removed it meanwhile
                    disk.to_disk(name)


def as_held(tree: protocol.TreeFacts, pids: Sequence[int]) -> protocol.TreeFacts:
    """The tree as it is in the images: it has started others, and written to its files, since it was inspected."""
    tasks = tuple(process.task_facts(pid) for pid in pids)
    files = descriptors.collect([task.pid for task in tasks if task.state not in "ZX"]).files()
    within = tuple(map(inside.numbers, tasks)) if inside.home_of(pids[0]) else ()
    return dataclasses.replace(tree, root=pids[0], tasks=tasks, files=tuple(files), inside=within)
