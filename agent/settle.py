"""Recovery on one host: what a journal says, and finishing or undoing a migration whose agent is gone.

An agent that is still there gives way: it is stopped, the verdict is written, and it is killed; its hook then sees the
end of its input and asks the journal (DESIGN: the commit, rules 2 to 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from typing import Any, Callable

from agent import criu, freezer, images, namespace, process, protocol, rules, throttle
from agent.fill import wait_for_pager
from agent.journal import FIRST, Damaged, Journal, JournalError, Record, unfinished
from agent.ledger import Ledger
from agent.lock import TaskLocks
from agent.lost import MEMORY_LOST, forget, memory_lost
from agent.settings import Settings
from agent.target import Target
from agent.warden import LOCK

PATIENCE = 60.0
"""Seconds for a criu that was let go to end, and for killed tasks to die."""


def read_journal(settings: Settings, migration: str) -> protocol.JournalState:
    """What this host knows of a migration; "" asks for the newest that is not finished. Raises Damaged."""
    if not migration:
        names = unfinished(settings.state)
        migration = names[0] if names else ""
    try:
        journal = Journal.load(settings.state, migration)
    except Damaged:
        raise  # that is more than nothing: there may be a tree
    except JournalError:
        return protocol.JournalState(migration, "", (), "", 0, True, False, False, 0, False)
    try:
        first = _first(journal)
        same_boot = _same_boot(journal)
        return protocol.JournalState(
            migration=journal.migration,
            role=journal.role,
            records=tuple(record.value for record in journal.records),
            peer=first["peer"],
            root=journal.facts(Record.RESUMED.value).get("pid", first["root"]),
            same_boot=same_boot,
            agent_alive=journal.owned_elsewhere and not _left_stopped(journal),
            criu_alive=same_boot and _criu_alive(journal),
            tasks_alive=len(_living(journal)) if same_boot else 0,
            images=_images(settings, journal).exists(),
            memory_lost=bool(journal.facts(MEMORY_LOST)),
        )
    finally:
        journal.close()


def _first(journal: Journal) -> dict[str, Any]:
    """What a migration began with. Raises Damaged where that is not all there."""
    facts = journal.facts(FIRST[journal.role])
    missing = [name for name in ("peer", "root", "boot") if name not in facts]
    if missing:
        raise Damaged(f"{journal.path} is damaged: its first line does not say {missing[0]}")
    return facts


def _images(settings: Settings, journal: Journal) -> Any:
    facts = _first(journal)
    return settings.place(journal.migration, on_disk=facts.get("on_disk", False), directory=facts.get("directory", ""))


def _criu_alive(journal: Journal) -> bool:
    """Whether any criu of this migration lives: dump, page servers, restore."""
    return _alive(journal, "criu")


def _alive(journal: Journal, program: str) -> bool:
    return any(process.alive(line["pid"], line["start"]) for line in journal.all_facts(program))


def _living(journal: Journal) -> list[tuple[int, int]]:
    """The tree's tasks that are alive, as the newest record that lists them has them, and the init that we gave it."""
    first = namespace.init_of(journal.directory)
    tasks = [] if first is None else [first]
    for record in (Record.COMMIT, Record.HELD, Record.BEGIN):
        if "tasks" in journal.facts(record.value):
            tasks += [(pid, start) for pid, start in journal.facts(record.value)["tasks"]]
            break
    return [(pid, start) for pid, start in tasks if process.alive(pid, start)]


async def settle(settings: Settings, request: protocol.Settle, tell: Callable[[str], None]) -> protocol.Settled:
    """Carry out a verdict on this host. Raises JournalError where the journal forbids it."""
    journal = Journal.load(settings.state, request.migration)
    try:
        verdict, here = request.verdict, protocol.Verdict
        await _depose(journal, functools.partial(_decide, settings, journal, verdict))
        if verdict is here.KILL:
            return await _kill(journal)
        if verdict is here.RESUME:
            return await _resume(settings, journal, tell)
        return await (_abort if verdict is here.ABORT else _clean)(settings, journal)
    finally:
        journal.close()


async def _depose(journal: Journal, decide: Callable[[], None]) -> None:
    """Take a migration over from its agent, and write what `decide` makes of the journal.

    An agent that lives is stopped first, so that it decides nothing more while we do; then it is killed: its hook sees
    the end of its input and asks the journal. When `decide` raises, the agent goes on as if nothing had been.
    """
    owners = _owners(journal)
    if not owners:
        journal.take_over()
        decide()
    else:
        try:
            for owner in owners:
                _signal(owner, signal.SIGSTOP)
                await _until(functools.partial(_stopped, *owner), "the former agent does not stop")
            journal.reload()
            decide()
        except BaseException:
            for owner in owners:
                _signal(owner, signal.SIGCONT)
            raise
        for owner in owners:
            _signal(owner, signal.SIGKILL)
            await _until(functools.partial(_gone, *owner), "the former agent does not die")
        journal.take_over()
    journal.note("owner", agent=[os.getpid(), process.start_time(os.getpid())])


def _owners(journal: Journal) -> list[tuple[int, int]]:
    """The agents, beside us, that have owned it and live: (PID, start time)."""
    if not _same_boot(journal):
        return []
    agents = [_first(journal).get("agent"), journal.facts("owner").get("agent")]
    known = {(pid, start) for pid, start in filter(None, agents) if pid != os.getpid()}
    return [owner for owner in known if process.alive(*owner)]


def _left_stopped(journal: Journal) -> bool:
    """Whether its agents stand still: who was to take over has stopped them, and died over it. They decide nothing."""
    owners = _owners(journal)
    return bool(owners) and all(_stopped(*owner) for owner in owners)


def _same_boot(journal: Journal) -> bool:
    return bool(_first(journal)["boot"] == process.boot_id())


def _signal(who: tuple[int, int], number: int) -> None:
    """Signal a process, (PID, start time), if it is still there."""
    if process.alive(*who):
        with contextlib.suppress(ProcessLookupError):
            os.kill(who[0], number)


def _stopped(pid: int, start: int) -> bool:
    try:
        return _gone(pid, start) or process.read_stat(pid).state == "T"
    except process.NoSuchProcess:
        return True


def _gone(pid: int, start: int) -> bool:
    return not process.alive(pid, start)


async def _until(done: Callable[[], bool], message: str) -> None:
    for _ in range(int(PATIENCE / 0.01)):
        if done():
            return
        await asyncio.sleep(0.01)
    raise JournalError(message)


def _decide(settings: Settings, journal: Journal, verdict: protocol.Verdict) -> None:
    """Write what makes the verdict this host's decision. Raises JournalError where the journal forbids it."""
    known = rules.Known(journal.role, journal.records, _same_boot(journal), _images(settings, journal).exists())
    record = rules.to_write(verdict, known)
    if record is Record.COMMIT:
        journal.write(record, tasks=journal.facts(Record.BEGIN.value)["tasks"])
    elif record is not None:
        journal.write(record, reason="settled")


async def _abort(settings: Settings, journal: Journal) -> protocol.Settled:
    if journal.has(Record.DONE):
        return _settled(journal)
    if _same_boot(journal):
        freezer.thaw(journal.directory)
        # it ends with its stream, and until then it writes
        await _until(lambda: not _alive(journal, "rsync"), "rsync does not end")
        # without its agent the hook asks the journal and vetoes; a criu before its hook fails at its closed socket
        await _until(lambda: not _criu_alive(journal), "criu does not end")
        if journal.role == "target":
            for task in _living(journal):
                _signal(task, signal.SIGKILL)
            await _until(lambda: not _living(journal), "held tasks do not die")
        else:
            for task in _queued(journal):
                _signal(task, signal.SIGCONT)
    await wait_for_pager(journal.directory)
    left = await _unthrottle(journal) + _remove(settings, journal)
    if journal.role == "target":
        left += images.remove_shared(journal.facts(Record.PREPARED.value).get("shared", ""), journal.migration)
        left += Ledger.read(journal.directory / "ledger").undo()
    journal.write(Record.DONE)
    return _settled(journal, left)


def _queued(journal: Journal) -> list[tuple[int, int]]:
    """The tasks that got a SIGSTOP from us in the hold, children born after BEGIN too; others were stopped before."""
    try:
        lines = (journal.directory / "stopped").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(pid), int(start)) for pid, start, _ in (line.split() for line in lines)]


async def _kill(journal: Journal) -> protocol.Settled:
    if journal.has(Record.KILLED):
        return _settled(journal)
    if _same_boot(journal):
        # COMMIT is in the journal, so the hook lets criu kill the tree; what is left we kill ourselves
        await _until(lambda: not _criu_alive(journal), "criu does not end")
        for task in _living(journal):
            _signal(task, signal.SIGKILL)
        await _until(lambda: not _living(journal), "the tree does not die")
        freezer.thaw(journal.directory)
    journal.write(Record.KILLED)
    return _settled(journal)


async def _resume(settings: Settings, journal: Journal, tell: Callable[[str], None]) -> protocol.Settled:
    """Bring the tree to run, once.

    Where criu's log says that it finished, the tree runs, and that is recorded. Where it was let go and did not finish,
    the tree may have run: nobody starts it again. Where it never left its hold, it is restored from the kept images.
    """
    if journal.has(Record.RESUMED):
        return _settled(journal)
    target = Target.adopt(settings, journal, tell)
    if _same_boot(journal):
        # a hook that still waited saw its agent gone, read RESUMING and let criu finish
        await _until(lambda: not _criu_alive(journal), "criu does not end")
    log = journal.directory / "restore.log"
    finished, passed = criu.finished(log), criu.passed_hold(log)
    if rules.must_restore(same_boot=_same_boot(journal), finished=finished, passed_hold=passed):
        await target.clear(_living(journal) if _same_boot(journal) else [])
        await target.restore_again()
    target.resumed()
    return _settled(journal)


async def _clean(settings: Settings, journal: Journal) -> protocol.Settled:
    if journal.has(Record.DONE):
        return _settled(journal)
    if _same_boot(journal):
        # KILLED and RESUMED stand as soon as they are true: criu and the kernel may still have something to put away
        await _until(lambda: not _criu_alive(journal), "criu does not end")
    await wait_for_pager(journal.directory)
    if journal.role == "target" and _same_boot(journal):
        memory_lost(journal)
    left = await _unthrottle(journal) + _remove(settings, journal)
    if journal.role == "target":
        left += Ledger.read(journal.directory / "ledger").keep()
    for log in journal.directory.glob("*.log"):
        log.unlink()
    journal.write(Record.DONE)
    return _settled(journal, left)


async def _unthrottle(journal: Journal) -> tuple[str, ...]:
    """A throttled tree's processor time, should the guard that gives it back have been killed together with its agent.

    After a reboot there is nothing to give back.
    """
    return await throttle.put_back(journal.directory) if _same_boot(journal) else ()


def _remove(settings: Settings, journal: Journal) -> tuple[str, ...]:
    for name in ("hold", "held", "verdict", "stopped", throttle.WORD, throttle.SCRIPT, namespace.WORD, LOCK):
        (journal.directory / name).unlink(missing_ok=True)
    forget(journal.directory)
    settings.socket(journal.migration).unlink(missing_ok=True)
    criu.keep_log(journal.directory / "restore.log")
    if journal.role == "source":
        # locks die with their holder; only the files may be left
        locks = TaskLocks(settings.locks)
        locks.sweep(pid for pid, _ in journal.facts(Record.BEGIN.value)["tasks"])
    return images.remove_place(_images(settings, journal))


def _settled(journal: Journal, left: tuple[str, ...] = ()) -> protocol.Settled:
    pid = int(journal.facts(Record.RESUMED.value).get("pid", 0))
    if journal.role == "source" and journal.has(Record.ABORT) and _same_boot(journal):
        pid = int(journal.facts(Record.BEGIN.value)["root"])
    records = tuple(record.value for record in journal.records)
    return protocol.Settled(records, pid, left, bool(journal.facts(MEMORY_LOST)))
