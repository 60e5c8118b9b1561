"""The sequences of `migrate save` and `migrate restore`: a migration's two halves, one after the other, on one host.

Between the two lies a directory on a disk, and any time. Only `ice_recovery` says what becomes of one that was cut off;
it is asked here too, whenever an agent is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from agent import protocol
from migrator import channel, errors, ice_plan, plan, recovery, terminals
from migrator.local import LocalLink
from migrator.obstacle import Obstacle
from migrator.peer import Peer, PeerFault, PeerLost, error_of
from migrator.phases import Observer, Phase, Round
from migrator.together import uninterrupted
from migrator.words import bytes_text

T = TypeVar("T")
_AS_THEY_WERE = "nothing runs of it; the images are as they were, and may be restored again"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A process that is on ice."""

    id: str
    directory: str  # that the tree has for itself
    pid: int  # that it had, and will have
    name: str
    bytes: int
    frozen_seconds: float  # until all of it was on disk
    leftovers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A process as it was, on ice, while it runs on."""

    id: str
    directory: str  # that it has for itself
    pid: int
    name: str
    bytes: int  # that it takes on disk
    frozen_seconds: float
    parent: str  # the id of the snapshot that it adds to; "": it is whole by itself


@dataclasses.dataclass(frozen=True)
class Revived:
    """A process that runs again."""

    id: str  # of the restore
    directory: str
    pid: int  # on this host
    inside_pid: int  # in its own PID namespace; 0 where it has none
    name: str
    restore_seconds: float
    terminal: str = ""  # the command that shows its new terminal
    leftovers: tuple[str, ...] = ()


class _Agent:
    """This host's agent, and another one in its place where it was lost."""

    def __init__(self, link: LocalLink, observer: Observer) -> None:
        self.link = link
        self.id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.observer = observer
        self.peer: Peer

    async def __aenter__(self) -> _Agent:
        try:
            await self.replace()
        except BaseException:
            await self.link.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peer.close()
        await self.link.close()

    async def replace(self) -> None:
        """A new one. Raises ConnectError and its kinds."""
        self.peer = await recovery.meet(self.link, "source")

    async def settled(self, *, undo_only: bool) -> recovery.Outcome:
        """What the journal makes of it. Raises InDoubt where that can't be found out."""
        from migrator import ice_recovery

        try:
            await self.replace()
            known = await self.peer.journal(protocol.ReadJournal(self.id, claim="source"))
            return await ice_recovery.settle(self.peer, known, undo_only=undo_only)
        except (PeerFault, PeerLost, errors.MigrateError) as error:
            raise errors.InDoubt(str(error), hint=f"migrate recover {self.id}") from error

    async def undone(self) -> tuple[str, ...]:
        """Give all of it up: what could not be removed. Raises InDoubt."""
        try:
            return (await self.peer.abort(protocol.Abort("undone"))).items
        except (PeerFault, PeerLost) as error:
            if isinstance(error, PeerFault) and error.fault.code is protocol.FaultCode.BAD_REQUEST:
                return ()  # it never began
            await self.settled(undo_only=True)
            return ()


@contextlib.asynccontextmanager
async def _agent(criu: str, observer: Observer) -> Any:
    channel.keep_memory()
    channel.no_core_dumps()
    async with _Agent(LocalLink(agent_arguments=("--criu", criu) if criu else ()), observer) as agent:
        yield agent


async def _in_our_words(act: Awaitable[T], where: str = "") -> T:
    """Faults as our errors; `where` says how things are after them, but for those that know better."""
    try:
        return await act
    except PeerFault as fault:
        error = error_of(fault)
        if error is None:
            raise
        failure: errors.MigrateError = error
        cause: BaseException = fault
    except PeerLost as lost:
        failure, cause = errors.LinkLost(str(lost)), lost
    except errors.MigrateError as error:
        failure, cause = error, error
    if where and not isinstance(failure, errors.InDoubt | errors.NotResumed):
        failure.where = where
    raise failure from (None if cause is failure else cause)


def _stop_at(obstacles: tuple[Obstacle, ...], chosen: plan.Plan, observer: Observer) -> None:
    for note in chosen.notes:
        observer.note(note)
    stops = sum(one.stops for one in obstacles)
    if stops:
        raise errors.PreflightError(f"{stops} obstacle{'s' if stops != 1 else ''}", obstacles=obstacles)


# --- save ------------------------------------------------------------------------------------------------------------


async def save(
    pid: int, directory: str, observer: Observer, *, terminal: str = "", unit: bool = False, criu: str = ""
) -> Saved:
    """Put a tree on ice in a directory of its own below this one, and end it. Raises MigrateError, or CancelledError
    after all was undone; InDoubt where `recover` has to tell."""
    wished = ice_plan.wishes(directory, terminal=terminal, unit=unit)
    async with _agent(criu, observer) as agent:
        return await _in_our_words(_save(agent, pid, wished))


async def _looked_at(
    agent: _Agent, pid: int, wished: plan.Wishes, *, stays: bool = False
) -> tuple[plan.Plan, protocol.PutOnIce]:
    """Preflight: how it goes on ice, and what is to be known of it. Raises PreflightError. `stays`: it runs on here."""
    observer = agent.observer
    observer.started(agent.id)
    await observer.phase(Phase.PREFLIGHT)
    host = await agent.peer.probe(protocol.Probe(want_cpuinfo=True))
    tree = await agent.peer.inspect(protocol.Inspect(pid))
    in_place = ice_plan.in_place(tree)
    found = await agent.peer.check(plan.questions(in_place, wished))
    ice = await agent.peer.look_at_ice(protocol.LookAtIce(wished.shared))
    chosen, obstacles = ice_plan.saving(host, in_place, found, ice, wished, stays=stays)
    _stop_at(obstacles, chosen, observer)
    return chosen, protocol.PutOnIce(host, tree, chosen.terminal, chosen.systemd.scope, chosen.systemd.logged)


async def _held(
    agent: _Agent, chosen: plan.Plan, facts: protocol.PutOnIce, unit: str, *, track: bool
) -> tuple[str, protocol.Held, float]:
    """Frozen, dumped and held: its directory, and the seconds."""
    root = facts.tree.tasks[0]
    begin = protocol.Begin(
        agent.id, root.pid, root.start_time, chosen.place.directory, chosen.criu, track, chosen.place, os.getpid(), unit
    )  # fmt: skip
    prepared = await agent.peer.begin(begin)
    await agent.observer.phase(Phase.FREEZE)
    agent.observer.round_started(1, facts.tree.memory, True)
    began = time.monotonic()
    held = await agent.peer.dump(protocol.Dump(1, ""))
    return prepared.images, held, began


def _tell_round(agent: _Agent, held: protocol.Held, page_size: int, seconds: float) -> int:
    """Say what was dumped, in so many seconds; its bytes."""
    size = sum(one.size for one in held.images)
    pages = sum(one.size for one in held.images if one.name.startswith("pages-"))
    agent.observer.round_done(1, Round(pages // page_size, size, 0, seconds, seconds), True)
    return size


async def _save(agent: _Agent, pid: int, wished: plan.Wishes) -> Saved:
    observer = agent.observer
    chosen, facts = await _looked_at(agent, pid, wished)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(uninterrupted, agent.undone, observer.note)
        place, held, began = await _held(agent, chosen, facts, chosen.systemd.suspended, track=False)
        await agent.peer.put_on_ice(facts)
        seconds = time.monotonic() - began
        size = _tell_round(agent, held, facts.source.page_size, seconds)
        await observer.phase(Phase.COMMIT)
        left = await uninterrupted(_commit(agent), observer.note)
        undo.pop_all()
    return Saved(agent.id, place, pid, facts.tree.tasks[0].name, size, seconds, left)


async def _commit(agent: _Agent) -> tuple[str, ...]:
    """The process ends. What could not be removed. Raises a fault where it runs on, InDoubt where nobody can tell."""
    try:
        await agent.peer.commit()
    except (PeerFault, PeerLost) as error:
        # the journal is beside us: ask it, and let it decide
        outcome = await agent.settled(undo_only=False)
        if outcome.course is not recovery.Course.FORWARD:
            raise errors.DumpError(f"{error}: {outcome.text}") from error
        return ()
    try:
        return (await agent.peer.finish()).items
    except (PeerFault, PeerLost):
        await agent.settled(undo_only=False)
        return ()


# --- snapshot --------------------------------------------------------------------------------------------------------


async def snapshot(pid: int, directory: str, observer: Observer, *, terminal: str = "", criu: str = "") -> Snapshot:
    """Put a tree on ice as it is, and let it run on: what it has changed since the snapshot before, where the kernel
    knows that, else all of it. Raises MigrateError, or CancelledError after all was undone."""
    wished = ice_plan.wishes(directory, terminal=terminal)
    async with _agent(criu, observer) as agent:
        return await _in_our_words(_snapshot(agent, pid, wished))


async def _snapshot(agent: _Agent, pid: int, wished: plan.Wishes) -> Snapshot:
    chosen, facts = await _looked_at(agent, pid, wished, stays=True)
    tracked = facts.source.dirty_tracking
    if not tracked:
        kernel = f"{facts.source.hostname}: kernel {facts.source.kernel} does not track dirty memory"
        agent.observer.note(f"{kernel}: each snapshot is a whole image, up to {bytes_text(facts.tree.memory)}")
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(uninterrupted, agent.undone, agent.observer.note)
        place, held, began = await _held(agent, chosen, facts, "", track=tracked)
        putting = asyncio.ensure_future(agent.peer.snapshot(facts))
        _tell_round(agent, held, facts.source.page_size, time.monotonic() - began)
        await agent.observer.phase(Phase.CLEAN)
        await uninterrupted(_result(putting), agent.observer.note)
        undo.pop_all()
    listed = await agent.peer.look_at_ice(protocol.LookAtIce(wished.shared))
    item = next(one for one in listed.items if one.id == agent.id)
    return Snapshot(agent.id, place, pid, item.name, item.size, held.freeze_seconds, item.parent)


async def _result(task: asyncio.Future[T]) -> T:
    return await task


async def snapshots(directory: str, observer: Observer, *, criu: str = "") -> tuple[protocol.Shelved, ...]:
    """All that is on ice in a directory, oldest first. Raises IceError."""
    async with _agent(criu, observer) as agent:
        found: protocol.Ice = await _in_our_words(agent.peer.look_at_ice(protocol.LookAtIce(directory)))
    return found.items


# --- restore ---------------------------------------------------------------------------------------------------------


async def newest(directory: str, *, criu: str = "", observer: Observer) -> str:
    """The id of what was put on ice last of all that is whole in a directory. Raises IceError."""
    async with _agent(criu, observer) as agent:
        found = await _in_our_words(agent.peer.look_at_ice(protocol.LookAtIce(directory)), _AS_THEY_WERE)
    if not found.items:
        raise errors.IceError(f"{directory}: nothing is on ice there")
    return str(found.items[-1].id)


async def restore(
    directory: str, name: str, observer: Observer, *, namespaces: str = "never", terminal: str = "", criu: str = "",
    show: Callable[[Revived, channel.Channel], Awaitable[None]] | None = None,
) -> Revived:  # fmt: skip
    """Restore a tree that was put on ice in `directory` under this name, on this host. Raises MigrateError, or
    CancelledError after all was undone; the images are as they were. `show`: who shows its new terminal, once it runs.
    """
    async with _agent(criu, observer) as agent:
        revived, socket_path = await _in_our_words(
            _restore(agent, directory, name, namespaces, terminal), _AS_THEY_WERE
        )
        if show is not None:
            await show(revived, await agent.link.open_stream(socket_path, protocol.TERMINAL_STREAM))
        return revived


async def _restore(
    agent: _Agent, directory: str, name: str, namespaces: str, terminal: str
) -> tuple[Revived, str]:  # fmt: skip
    """What runs, and the socket of its terminal."""
    observer = agent.observer
    observer.started(agent.id)
    await observer.phase(Phase.PREFLIGHT)
    manifest = await agent.peer.read_ice(protocol.ReadIce(directory, name))
    wished = ice_plan.wishes(directory, namespaces=namespaces, terminal=terminal)
    host = await agent.peer.probe(protocol.Probe(cpuinfo=manifest.source.cpuinfo))
    found = await agent.peer.check(plan.questions(ice_plan.in_place(manifest.tree), wished))
    chosen, obstacles = ice_plan.restoring(manifest, host, found, wished)
    _stop_at(obstacles, chosen, observer)
    if manifest.terminal:
        terminal = terminal or terminals.DETACH
    place = os.path.join(directory, name)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(uninterrupted, agent.undone, observer.note)
        prepared = await agent.peer.prepare(ice_plan.prepare(agent.id, place, manifest, chosen, terminal))
        await observer.phase(Phase.RESTORE)
        restored = await agent.peer.restore(protocol.Restore(manifest.round))
        for lost in restored.lost:
            observer.note(lost)
        await observer.phase(Phase.COMMIT)
        undo.pop_all()
    pid, left = await uninterrupted(_resume(agent, len(manifest.tree.tasks)), observer.note)
    inside = chosen.numbers[0].pid if chosen.namespaces else 0
    shown = (await agent.peer.journal(protocol.ReadJournal(agent.id))).terminal if terminal else ""
    root = manifest.tree.tasks[0].name
    return Revived(agent.id, place, pid, inside, root, restored.seconds, shown, left), prepared.terminal


async def _resume(agent: _Agent, tasks: int) -> tuple[int, tuple[str, ...]]:
    """Let it run: its PID here, and what could not be removed. Raises NotResumed, InDoubt."""
    await agent.observer.phase(Phase.RESUME)
    try:
        pid = (await agent.peer.resume(protocol.Resume(tasks))).pid
        await agent.observer.phase(Phase.CLEAN)
        return pid, (await agent.peer.finish()).items
    except PeerFault as fault:
        failure = errors.NotResumed(
            f"{socket.gethostname()}: {fault.fault.message}", hint=f"migrate recover {agent.id}", log=fault.fault.log
        )
        failure.where = f"it may not run; the images are as they were: {failure.hint}"
        raise failure from fault
    except PeerLost:
        outcome = await agent.settled(undo_only=False)
        if not outcome.pid:
            raise errors.RestoreError(outcome.text) from None
        return outcome.pid, ()
