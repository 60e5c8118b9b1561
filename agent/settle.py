"""Recovery on one host: what a journal says, and finishing or undoing a migration whose agent is gone.

An agent that is still there gives way: it is stopped, the verdict is written, and it is killed; its hook then sees the
end of its input and asks the journal (DESIGN: the commit, rules 2 to 5).
"""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any, Callable

from agent import (
    criu,
    floating,
    freezer,
    hold,
    ice,
    images,
    lodging,
    namespace,
    ours,
    process,
    protocol,
    rules,
    strays,
    suspension,
    throttle,
)
from agent.boot import lines_of_this_boot, same_boot
from agent.deposing import at_work, depose, send, until
from agent.fill import wait_for_pager
from agent.journal import Damaged, Journal, JournalError, Record, unfinished
from agent.keeping import DRAFT, keep_beside
from agent.ledger import Ledger
from agent.lock import TaskLocks
from agent.lost import MEMORY_LOST, forget, memory_lost, stop_all
from agent.reviving import taking
from agent.settings import Settings
from agent.terminal import Terminal
from agent.warden import LOCK
from agent.whole import fail_hook


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
        first = journal.first
        this_boot = same_boot(journal)
        terminal = Terminal.of(settings, journal) if this_boot and journal.has(Record.RESUMED) else None
        return protocol.JournalState(
            migration=journal.migration,
            role=journal.role,
            records=tuple(record.value for record in journal.records),
            peer=first["peer"],
            root=journal.facts(Record.RESUMED.value).get("pid", first["root"]),
            same_boot=this_boot,
            agent_alive=at_work(journal),
            criu_alive=_criu_alive(journal),
            tasks_alive=len(_living(journal)),
            images=_images(settings, journal).exists(),
            terminal=terminal.shown_by() if terminal is not None else "",
            hangs_up=terminal is not None and terminal.hangs_up,
            memory_lost=bool(journal.facts(MEMORY_LOST)),
            address=first.get("address", ""),
            word=_word(journal),
            durable=first.get("durable", False),
            ice=first.get("ice", ""),
            on_ice=bool(first.get("ice")) and ice.whole(Path(first["ice"])),
        )
    finally:
        journal.close()


def _images(settings: Settings, journal: Journal) -> Any:
    facts = journal.first
    return settings.place(journal.migration, on_disk=facts.get("on_disk", False), directory=facts.get("directory", ""))


def _criu_alive(journal: Journal) -> bool:
    """Whether any criu of this migration lives: dump, page servers, restore."""
    return bool(_alive(journal, "criu"))


def _alive(journal: Journal, program: str) -> list[int]:
    """PIDs of the programs of that name that live."""
    lines = (line for line in lines_of_this_boot(journal) if line["record"] == program)
    return [line["pid"] for line in lines if process.alive(line["pid"], line["start"])]


async def _criu_ends(journal: Journal) -> None:
    """Raises JournalError, which names it, when it does not."""
    pids = ", ".join(map(str, _alive(journal, "criu")))
    await until(lambda: not _criu_alive(journal), f"criu (PID {pids}) does not end")


def _word(journal: Journal) -> protocol.Word:
    """By which the tree was resumed here without the source's proof of death. Raises Damaged."""
    said = journal.facts(Record.RESUMING.value).get("word", "")
    try:
        return protocol.Word(said)
    except ValueError:
        raise Damaged(f"{journal.path} is damaged: there is no word {said[:80]!r}") from None


def _living(journal: Journal) -> list[tuple[int, int]]:
    """The tree's tasks that are alive, as the newest record that lists them has them, the init that we gave it, and
    what a restore that was killed has made besides."""
    first = namespace.init_of(journal.directory)
    tasks = [] if first is None else [first]
    for record in (Record.COMMIT, Record.HELD, Record.BEGIN) if same_boot(journal) else ():
        if "tasks" in journal.facts(record.value):
            tasks += [(pid, start) for pid, start in journal.facts(record.value)["tasks"]]
            break
    if journal.role == "target":
        tasks += [task for task in strays.found(journal) if task not in tasks]
    return [(pid, start) for pid, start in tasks if process.alive(pid, start)]


async def settle(settings: Settings, request: protocol.Settle, tell: Callable[[str], None]) -> protocol.Settled:
    """Carry out a verdict on this host. Raises JournalError where the journal forbids it."""
    journal = Journal.load(settings.state, request.migration)
    try:
        verdict, here = request.verdict, protocol.Verdict
        await depose(journal, functools.partial(_decide, settings, journal, request))
        _end_relays(settings, journal)
        if verdict in (here.KILL, here.DEPOSE):
            return await _kill(journal)
        if verdict is here.RESUME:
            return await _resume(settings, journal, request.word, tell)
        undone = journal.has(Record.ABORT) and not journal.has(Record.DEPOSED)
        if verdict is here.ABORT or (verdict is here.CLEAN and undone):
            return await _abort(settings, journal, told=verdict is here.CLEAN)
        return await _clean(settings, journal)
    finally:
        journal.close()


def _end_relays(settings: Settings, journal: Journal) -> None:
    """Their agent is gone; but where the other host has lost power sshd waits on, and with it a relay, whose other end
    criu and rsync have got, and wait for."""
    for relay in ours.processes(settings):
        if (relay.kind, relay.migration) == (ours.RELAY, journal.migration):
            send((relay.pid, relay.start), signal.SIGKILL)


def _decide(settings: Settings, journal: Journal, request: protocol.Settle) -> None:
    """Write what makes the verdict this host's decision. Raises JournalError where the journal forbids it."""
    if request.word is protocol.Word.RESTORE_ANYWAY and (living := _may_run(journal)):
        raise JournalError(f"it may run here: its process {living[0][0]} lives")
    record = rules.to_write(request.verdict, _known(settings, journal, request.word))
    if record is Record.COMMIT:
        journal.write(record, tasks=journal.facts(Record.BEGIN.value)["tasks"])
    elif record is Record.DEPOSED:
        journal.write(record, word=protocol.Word.SOURCE_IS_DEAD.value)
    elif record is Record.RESUMING:
        fail_hook(journal)
        journal.write(record, reason="settled", boot=process.boot_id(), word=request.word.value)
    elif record is not None:
        journal.write(record, reason="settled")


def _may_run(journal: Journal) -> list[tuple[int, int]]:
    """Its tasks that live here, where criu had let it go when it failed."""
    let_go = criu.passed_hold(journal.directory / "restore.log")
    return _living(journal) if let_go and journal.has(Record.RESUMING) and _resuming_here(journal) else []


def _known(settings: Settings, journal: Journal, word: protocol.Word = protocol.Word.NONE) -> rules.Known:
    return rules.Known(
        journal.role, journal.records, same_boot(journal), _images(settings, journal).exists(),
        durable=journal.first.get("durable", False), resuming_here=_resuming_here(journal), word=word,
        ice=bool(journal.first.get("ice")),
    )  # fmt: skip


def _resuming_here(journal: Journal) -> bool:
    """Whether this host has not rebooted since RESUMING."""
    boot = journal.facts(Record.RESUMING.value).get("boot", journal.first["boot"])
    return bool(boot == process.boot_id())


async def _abort(settings: Settings, journal: Journal, *, told: bool) -> protocol.Settled:
    """Undo, or finish undoing. `told`: the other host knows, so that nothing is owed any more."""
    if journal.has(Record.DONE):
        return _settled(journal)
    if same_boot(journal):
        if not _criu_alive(journal):
            floating.unlock(journal, _living(journal))
        freezer.thaw(journal.directory)
        # it ends with its stream, and until then it writes
        await until(lambda: not _alive(journal, "rsync"), "rsync does not end")
        # without its agent the hook asks the journal and vetoes; a criu before its hook fails at its closed socket
        await _criu_ends(journal)
        if journal.role == "target":
            for task in _living(journal):
                send(task, signal.SIGKILL)
            await until(lambda: not _living(journal), "held tasks do not die")
        else:
            floating.unlock(journal, _living(journal))
            for task in _queued(journal):
                send(task, signal.SIGCONT)
    await wait_for_pager(journal.directory)
    left = await _unthrottle(journal) + await _give_back(journal) + _remove(settings, journal)
    if journal.role == "target":
        left += images.remove_shared(journal.facts(Record.PREPARED.value).get("shared", ""), journal.migration)
        left += Ledger.read(journal.directory / "ledger").undo()
    if told or not rules.must_tell(_known(settings, journal)):
        journal.write(Record.DONE)
    return _settled(journal, left)


def _queued(journal: Journal) -> list[tuple[int, int]]:
    """The tasks that got a SIGSTOP from us in the hold, children born after BEGIN too; others were stopped before."""
    return hold.stopped(journal.directory)


async def _kill(journal: Journal) -> protocol.Settled:
    if journal.has(Record.KILLED):
        return _settled(journal)
    if same_boot(journal):
        # COMMIT is in the journal, so the hook lets criu kill the tree; what is left we kill ourselves
        await _criu_ends(journal)
        tasks = _living(journal)
        if journal.has(Record.DEPOSED):  # it has run here meanwhile, and may have started others
            tasks += [(pid, process.start_time(pid)) for pid in stop_all(tasks)]
        for task in tasks:
            send(task, signal.SIGKILL)
        await until(lambda: not any(process.alive(*task) for task in tasks), "the tree does not die")
        floating.leave(journal)
        freezer.thaw(journal.directory)
    journal.write(Record.KILLED)
    return _settled(journal)


async def _resume(
    settings: Settings, journal: Journal, word: protocol.Word, tell: Callable[[str], None]
) -> protocol.Settled:
    """Bring the tree to run, once.

    Where criu's log says that it finished, the tree runs, and that is recorded. Where it was let go and did not finish,
    the tree may have run: nobody starts it again. Where it never left its hold, it is restored from the kept images.
    """
    if journal.has(Record.RESUMED):
        return _settled(journal)
    target = taking(settings, journal, tell)
    # a hook that still waited saw its agent gone, read RESUMING and let criu finish
    await _criu_ends(journal)
    log = journal.directory / "restore.log"
    finished, passed = criu.finished(log), criu.passed_hold(log)
    here = _resuming_here(journal)
    if rules.must_restore(same_boot=here, finished=finished, passed_hold=passed, word=word):
        await target.clear(_living(journal))
        await target.restore_again()
    target.resumed()
    return _settled(journal)


async def _clean(settings: Settings, journal: Journal) -> protocol.Settled:
    if journal.has(Record.DONE):
        return _settled(journal)
    # KILLED and RESUMED stand as soon as they are true: criu and the kernel may still have something to put away
    await _criu_ends(journal)
    await wait_for_pager(journal.directory)
    if journal.role == "target" and same_boot(journal):
        memory_lost(journal)
        lodging.hold(journal.directory)
    kept = await keep_beside(journal, _images(settings, journal)) if journal.role == "target" else ()
    left = kept + await _unthrottle(journal) + await _give_back(journal) + _remove(settings, journal)
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
    return await throttle.put_back(journal.directory) if same_boot(journal) else ()


async def _give_back(journal: Journal) -> tuple[str, ...]:
    """The tree's unit of systemd, as it was. What keeps it from reviving does not outlive a reboot."""
    return await suspension.give_back(journal, gone=journal.has(Record.KILLED)) if same_boot(journal) else ()


def _remove(settings: Settings, journal: Journal) -> tuple[str, ...]:
    words = (throttle.WORD, throttle.SCRIPT, namespace.WORD, lodging.WORD)
    for name in ("hold", "held", "verdict", "stopped", DRAFT, *words, LOCK):
        (journal.directory / name).unlink(missing_ok=True)
    forget(journal.directory)
    settings.socket(journal.migration).unlink(missing_ok=True)
    criu.keep_log(journal.directory / "restore.log")
    if journal.role == "source":
        # locks die with their holder; only the files may be left
        locks = TaskLocks(settings.locks)
        locks.sweep(pid for pid, _ in journal.facts(Record.BEGIN.value)["tasks"])
        if journal.first.get("ice"):
            return ice.put_away(_images(settings, journal), gone=journal.has(Record.KILLED)) + floating.over(journal)
    return images.remove_place(_images(settings, journal)) + floating.over(journal)


def _settled(journal: Journal, left: tuple[str, ...] = ()) -> protocol.Settled:
    pid = int(journal.facts(Record.RESUMED.value).get("pid", 0))
    undone = journal.has(Record.ABORT) and not journal.has(Record.DEPOSED)
    if journal.role == "source" and undone and same_boot(journal):
        pid = int(journal.facts(Record.BEGIN.value)["root"])
    records = tuple(record.value for record in journal.records)
    return protocol.Settled(records, pid, left, bool(journal.facts(MEMORY_LOST)))
