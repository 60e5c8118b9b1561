"""Where each migration on this host stands: what its journal says, and who of those that it names lives. Reads only.

Unlike `settle` it takes no lock, not even for an instant: whoever is at work here must not notice that somebody looks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from agent import ours, process
from agent.journal import Journal, JournalError, Record, journals
from agent.lock import TaskLocked
from agent.settings import Settings


@dataclasses.dataclass(frozen=True)
class Standing:
    """One migration here."""

    migration: str
    role: str
    records: tuple[Record, ...]
    lines: tuple[dict[str, Any], ...]
    directory: Path
    same_boot: bool
    agents: tuple[tuple[int, int], ...]
    """(PID, start time) of those that have owned it and live."""
    attended: bool
    """One of them still has somebody at the other end who could speak to it."""

    @property
    def first(self) -> dict[str, Any]:
        """The record that it began with."""
        return self.lines[0]

    @property
    def over(self) -> bool:
        """Nothing follows."""
        return Record.DONE in self.records

    @property
    def in_use(self) -> bool:
        """Somebody is at work on it: an agent that is spoken to, or one that fills a running tree's memory."""
        return not self.over and bool(self.agents) and (self.attended or self.records[-1] is Record.RESUMED)

    def facts(self, name: str) -> dict[str, Any]:
        """The newest line of this name; empty when there is none."""
        return next((line for line in reversed(self.lines) if line["record"] == name), {})

    def place(self, settings: Settings) -> Path:
        """Where its images lie, or lay."""
        first = self.first
        return settings.place(self.migration, on_disk=first.get("on_disk", False), directory=first.get("directory", ""))

    @property
    def tasks(self) -> tuple[tuple[int, int], ...]:
        """(PID, start time) of the tree as the newest record that lists it has it."""
        for record in (Record.COMMIT, Record.HELD, Record.BEGIN):
            if "tasks" in (line := self.facts(record.value)):
                return tuple((pid, start) for pid, start in line["tasks"])
        return ()

    def living(self, name: str) -> list[tuple[int, int]]:
        """(PID, start time) of the programs that lines of this name tell of and that live."""
        if not self.same_boot:
            return []
        named = [(line["pid"], line["start"]) for line in self.lines if line["record"] == name]
        return [one for one in dict.fromkeys(named) if process.alive(*one)]


def of(settings: Settings, migration: str, descriptors: Optional[ours.Descriptors] = None) -> Standing:
    """Where one stands. Without `descriptors` nobody is taken to be attended.

    Raises JournalError when this host has no journal of it, ValueError when that is damaged.
    """
    journal = Journal.load(settings.state, migration)
    try:
        lines, records = journal.lines, journal.records
        same_boot = journal.first["boot"] == process.boot_id()
        named = [tuple(line["agent"]) for line in lines if "agent" in line] if same_boot else []
        agents = tuple(one for one in dict.fromkeys(named) if process.alive(*one))
        attended = descriptors is not None and any(descriptors.attended(pid) for pid, _ in agents)
        return Standing(journal.migration, journal.role, records, lines, journal.directory, same_boot, agents, attended)
    finally:
        journal.close()


def every(settings: Settings, descriptors: Optional[ours.Descriptors] = None) -> list[Standing]:
    """All of them, newest first; a journal that cannot be read is passed over."""
    found = []
    for path in journals(settings.state):
        try:
            found.append(of(settings, path.parent.name, descriptors))
        except (JournalError, ValueError, LookupError, OSError):
            continue
    return sorted(found, key=lambda one: float(one.first.get("time", 0.0)), reverse=True)


def refuse_held(settings: Settings, tasks: Iterable[tuple[int, int]]) -> None:
    """Raise TaskLocked when one of these tasks, (PID, start time), is in another migration's hands, living or dead.

    A lock dies with its holder; but a tree that was frozen may be held on another host, and after a reboot of this one
    that host might let it run. And what is held here as a target is no process yet that could be moved on.
    """
    wanted = set(tasks)
    for one in every(settings):
        is_ours = any(pid == os.getpid() for pid, _ in one.agents)
        if one.over or is_ours or not one.same_boot or not wanted.intersection(one.tasks):
            continue
        if one.records[-1] in (Record.FROZEN, Record.HELD, Record.RESUMING) or (one.role == "source" and one.agents):
            pid = min(wanted.intersection(one.tasks))[0]
            raise TaskLocked(
                pid, one.migration, "" if one.agents else f"settle it first: migrate recover {one.migration}"
            )
