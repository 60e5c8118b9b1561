"""A tree that goes on ice: the source's half of a migration whose target is a directory of this host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from agent import descriptors, disk, ice, images, inside, process, protocol
from agent.journal import Journal, JournalError, Record, WrongOrder, journals
from agent.settings import Settings
from agent.source import Source

_OTHERS = "others"
"""Line of a journal: what this host knew of the process when it was dumped."""


class Saving(Source):
    """One tree on its way onto ice; its images lie where they stay.

    COMMIT comes only once all of it is on disk, so that a host that went down in between has one copy as well.
    """

    def __init__(self, settings: Settings, begin: protocol.Begin, tell: Callable[[str], None]) -> None:
        super().__init__(settings, begin, tell)
        self._directory = Path(begin.place.directory)
        self._made = self._stays = False

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

    async def snapshot(self, request: protocol.PutOnIce) -> protocol.Nothing:
        """The held tree runs on, and what was dumped of it is on ice. Raises WrongOrder, NoRoom, OSError.

        By a veto, as whatever is undone: so a criu or an agent that dies in the hold leaves a tree that runs, as ever.
        """
        if self._hold is None or not self._hold.held or self.committed:
            raise WrongOrder("there is no held tree to take a snapshot of")
        tree = as_held(request.tree, process.tree_pids(self._begin.pid))
        manifest = ice.drafted(self._begin.migration, request, tree, self._begin.options)
        self._stays = True
        await self.abort("a snapshot was taken")

        def put() -> None:
            ice.put(self._images, manifest)
            ice.note_restored(self._images, ((task.pid, task.start_time) for task in tree.tasks))
            ice.seal(self._images)

        try:
            await self._jobs.run(put)
        except BaseException:
            images.remove_place(self._images)
            raise
        return protocol.Nothing()

    def _previous(self, number: int) -> str:
        """The snapshot before, if what the tree has changed since then is known: nobody has looked in between.

        Whoever dumps a tree with its memory tracked resets what the kernel knows of that (Documentation/admin-guide/mm/
        soft-dirty.rst): also a migration that was undone, whose journal is here.
        """
        others = self._others()
        self._journal.jot(_OTHERS, ids=sorted(others))
        name = ice.previous(self._directory, self._begin.pid, self._begin.start_time)
        if not (self._begin.track_memory and name and others - {name} <= _others_of(self._settings, name)):
            return ""
        return f"../../{name}/{ice.ROUND}"

    def _others(self) -> set[str]:
        """Migrations, saves and snapshots of this process that this host remembers; a damaged journal may be of one."""
        found = set()
        for path in journals(self._settings.state):
            try:
                journal = Journal.load(self._settings.state, path.parent.name)
            except (JournalError, OSError):
                found.add(path.parent.name)
                continue
            with contextlib.closing(journal):
                if journal.role == "source" and journal.first["root"] == self._begin.pid:
                    found.add(journal.migration)
        return found - {self._begin.migration}

    def _put_away(self) -> tuple[str, ...]:
        if self._stays:
            return ()
        gone = self._journal.has(Record.KILLED)
        left = ice.put_away(self._images, gone=gone)
        if self._made and not gone:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                self._directory.rmdir()
        return left


def onto_ice(source: Source) -> Saving:
    """The same one, which goes on ice. Raises WrongOrder where it goes to another host."""
    if not isinstance(source, Saving):
        raise WrongOrder("this tree goes to another host")
    return source


def _others_of(settings: Settings, snapshot: str) -> set[str]:
    """The others that were known when a snapshot was taken; none where its journal is forgotten."""
    try:
        journal = Journal.load(settings.state, snapshot)
    except (JournalError, OSError):
        return set()
    with contextlib.closing(journal):
        ids = journal.facts(_OTHERS).get("ids", [])
        return {str(one) for one in ids} if isinstance(ids, list) else set()


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
