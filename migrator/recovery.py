"""`migrate recover ID`: what the two journals say, and the one verdict that follows. Pure decision, then the acts.

The table (DESIGN: the commit, exactly). S is the source's journal, T the target's:

    S has COMMIT               → kill what is left of the tree here, prove it, then T resumes from HELD
    S has no COMMIT            → S aborts and the tree runs on here; then T discards
    S rebooted without either  → the tree died with it: where T has HELD, COMMIT is written now and T resumes
    T has RESUMING, no RESUMED → T recognises a running tree; it never starts one again by itself
    T has RESUMED or DONE      → clean up on both
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol

from agent import protocol
from migrator import bundle, errors, transport
from migrator.peer import Peer, PeerFault, PeerLost
from migrator.phases import Observer


class Course(enum.Enum):
    """What recovery has to do."""

    NOTHING = "nothing"
    UNDO = "undo"
    FORWARD = "forward"
    CLEAN = "clean"
    BUSY = "busy"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where the process is now."""

    course: Course
    text: str
    host: str
    pid: int


def course(source: protocol.JournalState, target: protocol.JournalState | None) -> Course:
    """The verdict over both journals; `target` is None where the target could not be reached."""
    if source.agent_alive:
        return Course.BUSY
    if "COMMIT" not in source.records:
        if died_undecided(source) and target is not None and "HELD" in target.records and "ABORT" not in target.records:
            return Course.FORWARD
        done = "DONE" in source.records and (target is None or not target.role or "DONE" in target.records)
        return Course.NOTHING if done else Course.UNDO
    if target is not None and ("RESUMED" in target.records or "DONE" in target.records):
        both_done = "DONE" in source.records and "DONE" in target.records
        return Course.NOTHING if both_done else Course.CLEAN
    return Course.FORWARD


def died_undecided(source: protocol.JournalState) -> bool:
    """Whether the source rebooted in the freeze, with neither COMMIT nor ABORT: the target may hold the only copy."""
    return not source.same_boot and source.records[-1:] == ("FROZEN",)


class Hosts(Protocol):
    """How recovery reaches the two hosts."""

    async def source(self) -> transport.Link:
        """The host we run on."""

    async def target(self, peer: str) -> transport.Link:
        """The target; `peer` is what the source's journal calls it."""


class RealHosts:
    """This host, and the one that the journal or the operator names."""

    def __init__(self, target: str, sudo: bool, criu: str) -> None:
        self._target = target
        self._sudo = sudo
        self._arguments = ("--criu", criu) if criu else ()

    async def source(self) -> transport.Link:
        """The local agent."""
        return transport.LocalLink(agent_arguments=self._arguments)

    async def target(self, peer: str) -> transport.Link:
        """A new SSH connection."""
        where = transport.parse_target(self._target or peer)
        return await transport.connect(where, sudo=self._sudo, agent_arguments=self._arguments)


async def recover(migration: str, target: str, observer: Observer, *, sudo: bool = False, criu: str = "") -> Outcome:
    """Finish or undo a migration that was interrupted. Run on the source, where the decision lies.

    `target` is "" for the one that the journal names. Raises PreflightError when there is nothing of that name, Locked
    while it is at work, InDoubt when a host that is needed can't be reached, NotResumed when the tree can't be brought
    to run.
    """
    return await recover_over(migration, RealHosts(target, sudo, criu), observer)


async def recover_over(migration: str, hosts: Hosts, observer: Observer) -> Outcome:
    """`recover`, over these hosts."""
    link = await hosts.source()
    try:
        source = await meet(link, "source")
        try:
            return await _recover(migration, source, hosts, observer)
        finally:
            await source.close()
    except PeerLost as lost:
        raise errors.InDoubt(str(lost), hint=f"migrate recover {migration}") from lost
    except PeerFault as fault:
        raise errors.NotResumed(
            f"{fault.host}: {fault.fault.message}", hint=f"migrate recover {migration}", log=fault.fault.log
        ) from fault
    finally:
        await link.close()


async def meet(link: transport.Link, role: str) -> Peer:
    """A new agent over this link. Raises WrongAgent, PeerLost."""
    peer = Peer(link.name, await link.start_agent(role))
    await peer.hello(bundle.build_id())
    return peer


async def _recover(migration: str, source: Peer, hosts: Hosts, observer: Observer) -> Outcome:
    here = await source.journal(protocol.ReadJournal(migration))
    if here.role != "source":
        raise errors.PreflightError(
            f"{source.host} has no journal of a migration {migration or 'that is unfinished'} from here",
            hint="run it on the host that the process came from; the journals lie in /var/lib/migrate",
        )
    if here.agent_alive:
        raise errors.Locked(f"migration {here.migration} is still at work", hint="wait for it, or stop it with Ctrl-C")
    try:
        link = await hosts.target(here.peer)
    except errors.MigrateError as error:
        return await _without_target(here.migration, source, here, error)
    try:
        target = await meet(link, "target")
        try:
            return await _with_target(here.migration, source, target, here, observer)
        finally:
            await target.close()
    finally:
        await link.close()


async def _without_target(name: str, source: Peer, here: protocol.JournalState, error: errors.MigrateError) -> Outcome:
    """The target can't be reached: only what the source's journal alone decides may be done."""
    if "COMMIT" in here.records:
        await source.settle(protocol.Settle(name, protocol.Verdict.KILL))
        raise errors.InDoubt(
            f"{here.peer} can't be reached: {error.message}",
            hint=f"COMMIT was written: the process belongs to {here.peer}. Try again when it is back",
        ) from error
    if died_undecided(here):
        raise errors.InDoubt(
            f"{source.host} has rebooted in the freeze, and {here.peer}, which may hold the process, can't be reached: "
            f"{error.message}",
            hint=f"try again when {here.peer} is back; what it holds is kept until then",
        ) from error
    settled = await source.settle(protocol.Settle(name, protocol.Verdict.ABORT))
    text = f"undone: {_on_source(source, settled)}; {here.peer} could not be told ({error.message}): "
    text += "recover again when it is back"
    return Outcome(Course.UNDO, text, source.host, settled.pid)


async def _with_target(
    name: str, source: Peer, target: Peer, here: protocol.JournalState, observer: Observer
) -> Outcome:
    there = await target.journal(protocol.ReadJournal(name))
    verdict = protocol.Verdict
    observer.note(f"{source.host}: {' '.join(here.records)}; {target.host}: {' '.join(there.records) or 'nothing'}")
    decision = course(here, there)
    if decision is Course.UNDO:
        # the source's ABORT is on disk before the target may discard what it holds
        settled = await source.settle(protocol.Settle(name, verdict.ABORT))
        if there.role and "DONE" not in there.records:
            await target.settle(protocol.Settle(name, verdict.ABORT))
        await source.settle(protocol.Settle(name, verdict.CLEAN))  # the target was told: nothing is owed any more
        return Outcome(decision, f"undone: {_on_source(source, settled)}", source.host, settled.pid)
    if decision is Course.FORWARD:
        if not there.role:
            raise errors.NotResumed(f"{target.host} knows nothing of migration {name}: its images are not there")
        await source.settle(protocol.Settle(name, verdict.KILL))
        await target.settle(protocol.Settle(name, verdict.RESUME))
        there = await target.journal(protocol.ReadJournal(name))
    if decision in (Course.FORWARD, Course.CLEAN):
        resumed = await target.settle(protocol.Settle(name, verdict.CLEAN))
        there = dataclasses.replace(there, memory_lost=resumed.memory_lost)
        await source.settle(protocol.Settle(name, verdict.CLEAN))
        _trusted(target, there)
        return Outcome(decision, f"the process runs on {target.host}", target.host, resumed.pid)
    _trusted(target, there)
    where = source.host if "ABORT" in here.records else target.host
    return Outcome(decision, f"nothing to do: it ended before, on {where}", where, here.root)


def _trusted(target: Peer, there: protocol.JournalState) -> None:
    """Raises MemoryLost for a tree that was moved and must not be continued."""
    if there.memory_lost:
        raise errors.MemoryLost.on(target.host, there.root)


def _on_source(source: Peer, settled: protocol.Settled) -> str:
    """What has become of the process that was never committed."""
    if settled.pid:
        return f"the process runs on {source.host}"
    return f"the process ended when {source.host} rebooted; nothing was moved"
