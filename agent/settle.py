"""Recovery on one host: what a journal says, and finishing or undoing a migration whose agent is gone.

An agent that is still there is killed first: its hook then sees the end of its input and asks the journal, so the
record written here beforehand is the verdict (DESIGN: the commit, rules 2 to 5).
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from typing import Any, Callable

from agent import freezer, images, process, protocol
from agent.journal import Journal, JournalError, Record, unfinished
from agent.ledger import Ledger
from agent.lock import TaskLocks
from agent.settings import Settings
from agent.target import Target

PATIENCE = 60.0
"""Seconds for a criu that was let go to end, and for killed tasks to die."""


def read_journal(settings: Settings, migration: str) -> protocol.JournalState:
    """What this host knows of a migration; "" asks for the newest that is not finished."""
    if not migration:
        names = unfinished(settings.state)
        migration = names[0] if names else ""
    try:
        journal = Journal.load(settings.state, migration)
    except JournalError:
        return protocol.JournalState(migration, "", (), "", 0, True, False, False, 0, False)
    first = journal.facts(journal.records[0].value)
    same_boot = first["boot"] == process.boot_id()
    try:
        return protocol.JournalState(
            migration=journal.migration,
            role=journal.role,
            records=tuple(record.value for record in journal.records),
            peer=first["peer"],
            root=first["root"],
            same_boot=same_boot,
            agent_alive=journal.owned_elsewhere,
            criu_alive=same_boot and _criu_alive(journal),
            tasks_alive=len(_living(journal)) if same_boot else 0,
            images=_images(settings, journal).exists(),
        )
    finally:
        journal.close()


def _images(settings: Settings, journal: Journal) -> Any:
    on_disk = journal.role == "target" and journal.facts(Record.PREPARED.value)["on_disk"]
    return (settings.images_on_disk if on_disk else settings.images)(journal.migration)


def _criu_alive(journal: Journal) -> bool:
    line = journal.facts("criu")
    return bool(line) and process.alive(line["pid"], line["start"])


def _living(journal: Journal) -> list[tuple[int, int]]:
    """The tree's tasks that are alive, as the newest record that lists them has them."""
    for record in (Record.COMMIT, Record.HELD, Record.BEGIN):
        if "tasks" in journal.facts(record.value):
            tasks = [(pid, start) for pid, start in journal.facts(record.value)["tasks"]]
            return [(pid, start) for pid, start in tasks if process.alive(pid, start)]
    return []


async def settle(settings: Settings, request: protocol.Settle, tell: Callable[[str], None]) -> protocol.Settled:
    """Carry out a verdict on this host. Raises JournalError where the journal forbids it."""
    journal = Journal.load(settings.state, request.migration)
    try:
        verdict, here = request.verdict, protocol.Verdict
        if verdict is here.KILL and journal.role == "source":
            return await _kill(settings, journal)
        if verdict is here.RESUME and journal.role == "target":
            return await _resume(settings, journal, tell)
        if verdict is here.ABORT:
            return await _abort(settings, journal)
        if verdict is here.CLEAN:
            return await _clean(settings, journal)
        raise JournalError(f"{verdict.value} is not for a {journal.role}")
    finally:
        journal.close()


async def _depose(journal: Journal) -> None:
    """End the migration's agent if it lives, and own the journal."""
    line = journal.facts(journal.records[0].value)
    if line["boot"] == process.boot_id():
        for who in (line.get("agent"), journal.facts("owner").get("agent")):
            if who and who[0] != os.getpid() and process.alive(*who):
                os.kill(who[0], signal.SIGKILL)
                await _until(functools.partial(_gone, *who), "the former agent does not die")
    journal.take_over()
    journal.note("owner", agent=[os.getpid(), process.start_time(os.getpid())])


def _gone(pid: int, start: int) -> bool:
    return not process.alive(pid, start)


async def _until(done: Callable[[], bool], message: str) -> None:
    for _ in range(int(PATIENCE / 0.01)):
        if done():
            return
        await asyncio.sleep(0.01)
    raise JournalError(message)


async def _abort(settings: Settings, journal: Journal) -> protocol.Settled:
    if journal.has(Record.DONE):
        return _settled(journal)
    if journal.has(Record.COMMIT) or journal.has(Record.RESUMING):
        raise JournalError("past the point of no return: it can only go forward")
    if not journal.has(Record.ABORT):
        # on the target this record comes only with the source's ABORT in hand, or an operator's word
        journal.write(Record.ABORT, reason="settled")
    await _depose(journal)
    same_boot = journal.facts(journal.records[0].value)["boot"] == process.boot_id()
    if same_boot:
        freezer.thaw(journal.directory)
        # without its agent the hook asks the journal and vetoes; a criu before its hook fails at its closed socket
        await _until(lambda: not _criu_alive(journal), "criu does not end")
        for pid, _ in _living(journal):
            if journal.role == "target":
                os.kill(pid, signal.SIGKILL)
            elif process.task_facts(pid).state == "T" and pid in _queued(journal):
                os.kill(pid, signal.SIGCONT)
        if journal.role == "target":
            await _until(lambda: not _living(journal), "held tasks do not die")
    left = _remove(settings, journal)
    if journal.role == "target":
        left += Ledger.read(journal.directory / "ledger").undo()
    journal.write(Record.DONE)
    return _settled(journal, left)


def _queued(journal: Journal) -> set[int]:
    """The tasks that got a SIGSTOP from us."""
    try:
        return {int(line) for line in (journal.directory / "stopped").read_text().split()}
    except FileNotFoundError:
        return set()


async def _kill(settings: Settings, journal: Journal) -> protocol.Settled:
    if not journal.has(Record.COMMIT):
        raise JournalError("there is no COMMIT: the tree belongs to this host")
    if journal.has(Record.KILLED):
        return _settled(journal)
    await _depose(journal)
    if journal.facts(Record.BEGIN.value)["boot"] == process.boot_id():
        # COMMIT is in the journal, so the hook lets criu kill the tree; what is left we kill ourselves
        await _until(lambda: not _criu_alive(journal), "criu does not end")
        for pid, _ in _living(journal):
            os.kill(pid, signal.SIGKILL)
        await _until(lambda: not _living(journal), "the tree does not die")
        freezer.thaw(journal.directory)
    journal.write(Record.KILLED)
    return _settled(journal)


async def _resume(settings: Settings, journal: Journal, tell: Callable[[str], None]) -> protocol.Settled:
    if journal.has(Record.RESUMED):
        return _settled(journal)
    if not journal.has(Record.HELD):
        raise JournalError("there is no HELD: the images are not known to be whole")
    same_boot = journal.facts(Record.PREPARED.value)["boot"] == process.boot_id()
    if journal.has(Record.RESUMING):
        return await _after_resuming(journal, same_boot)
    if not _images(settings, journal).exists():
        raise JournalError("the images are gone: this host has rebooted")
    alive = same_boot and _criu_alive(journal)
    journal.write(Record.RESUMING)
    await _depose(journal)
    target = Target.adopt(settings, journal, tell)
    if alive:
        # the hook sees its agent gone, reads RESUMING and lets criu finish
        await _until(lambda: not _criu_alive(journal), "criu does not end")
    if not (alive and _running(journal)):
        await target.clear(_living(journal) if same_boot else [])
        await target.restore_again()
    pid = target.resumed()
    return protocol.Settled(tuple(record.value for record in journal.records), pid)


async def _after_resuming(journal: Journal, same_boot: bool) -> protocol.Settled:
    """RESUMING without RESUMED: the tree may have run. It is only recognised here, never started again."""
    if not same_boot:
        raise JournalError("this host rebooted while the tree was resumed: whether it ran nobody can tell")
    await _depose(journal)
    await _until(lambda: not _criu_alive(journal), "criu does not end")
    if not _running(journal):
        raise JournalError("the tree was resumed and is not here any more, or never came to run")
    journal.write(Record.RESUMED, pid=journal.facts(Record.PREPARED.value)["root"])
    return _settled(journal)


def _running(journal: Journal) -> bool:
    """Whether every task that was held lives, and none is left blocked by a criu that died."""
    held = journal.facts(Record.HELD.value).get("tasks", [])
    return bool(held) and len(_living(journal)) == len(held) and (journal.directory / "pid").exists()


async def _clean(settings: Settings, journal: Journal) -> protocol.Settled:
    if journal.has(Record.DONE):
        return _settled(journal)
    if not journal.may(Record.DONE):
        raise JournalError("the migration is not over")
    await _depose(journal)
    left = _remove(settings, journal)
    if journal.role == "target":
        left += Ledger.read(journal.directory / "ledger").keep()
    journal.write(Record.DONE)
    return _settled(journal, left)


def _remove(settings: Settings, journal: Journal) -> tuple[str, ...]:
    for name in ("hold", "held", "verdict", "stopped", "pid"):
        (journal.directory / name).unlink(missing_ok=True)
    settings.socket(journal.migration).unlink(missing_ok=True)
    if journal.role == "source":
        # locks die with their holder; only the files may be left
        locks = TaskLocks(settings.locks)
        locks.sweep(pid for pid, _ in journal.facts(Record.BEGIN.value)["tasks"])
    return images.remove_place(_images(settings, journal))


def _settled(journal: Journal, left: tuple[str, ...] = ()) -> protocol.Settled:
    pid = int(journal.facts(Record.RESUMED.value).get("pid", 0))
    if journal.role == "source" and journal.has(Record.ABORT):
        pid = int(journal.facts(Record.BEGIN.value)["root"])
    return protocol.Settled(tuple(record.value for record in journal.records), pid, left)
