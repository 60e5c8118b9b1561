"""What this host tells of its migrations: which there are, and one of them at length. It changes nothing."""

from __future__ import annotations

import json
import os
import signal

from agent import namespace, ours, process, protocol
from agent.journal import JournalError, Record
from agent.ledger import Ledger
from agent.leftovers import size
from agent.settings import Settings
from agent.settle import read_journal
from agent.standing import Standing, every, of

_NOT_TOLD = ("record", "time")


def migrations(settings: Settings) -> protocol.Migrations:
    """Every migration that this host remembers, newest first."""
    return protocol.Migrations(tuple(_listed(one) for one in every(settings, ours.Descriptors())))


def _listed(one: Standing) -> protocol.Listed:
    began = float(one.first.get("time", 0.0))
    changed = max([began, *(float(line.get("time", 0.0)) for line in one.lines)])
    records = tuple(record.value for record in one.records)
    root = one.facts(Record.RESUMED.value).get("pid", one.first["root"])
    return protocol.Listed(one.migration, one.role, one.first["peer"], root, records, began, changed, one.in_use)


def tell(settings: Settings, request: protocol.ReadJournal) -> protocol.Story:
    """One migration at length; with a state without a role where this host knows nothing of it."""
    state = read_journal(settings, request.migration)
    try:
        one = of(settings, state.migration, ours.Descriptors())
    except (JournalError, ValueError):
        return protocol.Story(state)
    place = one.place(settings)
    ledger = Ledger.read(one.directory / "ledger")
    locks = [settings.locks / str(pid) for pid, _ in one.tasks] if one.role == "source" else []
    return protocol.Story(
        state,
        lines=tuple(_line(line) for line in one.lines),
        living=tuple(_living(settings, one)),
        held=_held(one),
        at_work=one.in_use,
        images=str(place) if place.exists() else "",
        image_bytes=size(str(place)),
        journal=str(one.directory / "journal"),
        locks=tuple(str(path) for path in locks if path.exists()),
        placed=ledger.placed if not one.over else (),
        beside=ledger.beside,
    )


def _line(line: dict[str, object]) -> protocol.Line:
    rest = {name: value for name, value in line.items() if name not in _NOT_TOLD}
    time = line.get("time", 0.0)
    return protocol.Line(str(line["record"]), float(time) if isinstance(time, (int, float)) else 0.0, json.dumps(rest))


def _held(one: Standing) -> bool:
    """Frozen, or restored and not let go: as the journal has it, as long as something of it is there."""
    if not one.same_boot or one.records[-1] not in (Record.FROZEN, Record.HELD):
        return False
    tasks = [task for task in one.tasks if process.alive(*task)]
    return bool(tasks) and (one.role == "target" or bool(one.living("criu")) or any(map(_stands, tasks)))


def _stands(task: tuple[int, int]) -> bool:
    try:
        return process.read_stat(task[0]).state in "Tt"
    except process.NoSuchProcess:
        return False


def _living(settings: Settings, one: Standing) -> list[protocol.Living]:
    named = [("migrate", each) for each in _caller(one)]
    named += [("agent", each) for each in one.agents]
    named += [(word, each) for word in ("criu", "hook", "rsync") for each in one.living(word)]
    if one.same_boot:
        named += [(each.kind, (each.pid, each.start)) for each in _of_its_own_words(settings, one)]
        first = namespace.init_of(one.directory)
        tasks = [*one.tasks, *([first] if first is not None else [])]
        named += [("task", each) for each in tasks if process.alive(*each)]
    found, seen = [], set()
    for kind, (pid, _) in named:
        if pid in seen:
            continue
        seen.add(pid)
        try:
            about = process.read_stat(pid)
        except process.NoSuchProcess:
            continue
        found.append(protocol.Living(kind, pid, about.state, about.name))
    return found


def _of_its_own_words(settings: Settings, one: Standing) -> list[ours.Process]:
    return [each for each in ours.processes(settings) if each.migration == one.migration]


def _caller(one: Standing) -> list[tuple[int, int]]:
    """(PID, start time) of the `migrate` that runs it, if that lives."""
    noted = one.first.get("migrate") if one.same_boot else None
    return [(noted[0], noted[1])] if noted and process.alive(*noted) else []


def interrupt(settings: Settings, request: protocol.Interrupt) -> protocol.Interrupted:
    """Send the `migrate` that runs a migration a SIGTERM; one that was stopped is continued, to hear it.

    Raises JournalError when this host has no journal of it.
    """
    one = of(settings, request.migration)
    if not one.over and Record.COMMIT not in one.records:
        for pid, _ in _caller(one):
            for number in (signal.SIGTERM, signal.SIGCONT):
                os.kill(pid, number)
            return protocol.Interrupted(pid)
    return protocol.Interrupted(0)
