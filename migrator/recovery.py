"""`migrate recover ID`: what the two journals say, and the one verdict that follows. Pure decision, then the acts.

It may be run on either host; which of the two we run on only says which one has to be reached.

The table (DESIGN: the commit, exactly). S is the source's journal, T the target's:

    S has COMMIT               → kill what is left of the tree here, prove it, then T resumes from HELD
    S has no COMMIT            → S aborts and the tree runs on here; then T discards
    S rebooted without either  → the tree died with it: where T has HELD, COMMIT is written now and T resumes
    T has RESUMING, no RESUMED → T recognises a running tree; it never starts one again by itself
    T has RESUMED or DONE      → clean up on both
    T has rebooted, held it, and has no images any more → lost: both journals are closed
    T was given it by an operator's word, S undid it    → what runs of it on S is killed

Where only T can be asked: it goes on from RESUMING, discards what is less than HELD, and keeps what is held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import AsyncIterator
from typing import Protocol

from agent import protocol
from agent.protocol import Word
from migrator import bundle, errors, fencing, transport
from migrator.forward import pasteable
from migrator.peer import Peer, PeerFault, PeerLost
from migrator.phases import Observer


class Course(enum.Enum):
    """What recovery has to do."""

    NOTHING = "nothing"
    UNDO = "undo"
    FORWARD = "forward"
    CLEAN = "clean"
    DEPOSE = "depose"
    BUSY = "busy"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where the process is now."""

    course: Course
    text: str
    host: str
    pid: int
    terminal: str = ""  # the command that shows its new terminal, from here
    hangs_up_seconds: float = 0.0  # … within which it is hung up when nobody shows that; 0: it is not

    def shown(self, there: protocol.JournalState, peer: str, hosts: Hosts) -> Outcome:
        """The same with the way to its terminal, if it has one on the target: that is `peer`, or "" for this host."""
        if not (command := pasteable(there.terminal)):
            return self
        way = hosts.by_hand(peer, command) if peer else command
        soon = protocol.TERMINAL_GRACE if there.hangs_up else 0.0
        return dataclasses.replace(self, terminal=way, hangs_up_seconds=soon)


def course(source: protocol.JournalState, target: protocol.JournalState | None) -> Course:
    """The verdict over both journals; `target` is None where the target could not be reached."""
    if source.agent_alive:
        return Course.BUSY
    if target is not None and target.word is protocol.Word.SOURCE_IS_DEAD and "KILLED" not in source.records:
        return Course.DEPOSE
    if not {"COMMIT", "DEPOSED"}.intersection(source.records):
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


def lost(source: protocol.JournalState, target: protocol.JournalState) -> bool:
    """Whether the process is nowhere: gone from the source, and the target has rebooted with all that it had of it."""
    if "RESUMING" in target.records or "HELD" not in target.records or "ABORT" in source.records:
        return False
    gone = "ABORT" in target.records or not (target.same_boot or target.images)
    return gone and ("COMMIT" in source.records or died_undecided(source))


class Hosts(Protocol):
    """How an operator's command reaches the two hosts."""

    async def here(self) -> transport.Link:
        """The host we run on."""

    async def there(self, peer: str, address: str = "") -> transport.Link:
        """The other host; `peer` is what our journal calls it, `address` where it came from. Raises MigrateError."""

    async def answers(self, peer: str, address: str) -> str:
        """What says that the other host is up, by any of its names; "" when there is no sign of it."""

    def by_hand(self, peer: str, command: str) -> str:
        """How somebody gives that command on the other host."""


async def unfinished(hosts: Hosts) -> tuple[protocol.Listed, ...]:
    """The migrations here that have no end yet, oldest first. Raises ConnectError and its kinds."""
    async with agent_at(await hosts.here(), "source") as own:
        known = (await own.migrations()).items
    return tuple(one for one in reversed(known) if "DONE" not in one.records)


async def recover_over(
    migration: str, hosts: Hosts, observer: Observer, *, undo_only: bool = False, word: Word = Word.NONE
) -> Outcome:
    """Finish or undo a migration that was interrupted, from either of its hosts. The decision is the source's.

    With `undo_only` nothing goes forward. The operator's `word` counts on the target, where nothing else decides.

    Raises PreflightError when there is nothing of that name, or the word is not taken; Locked while it is at work,
    TooLate when it may only go forward and must not, InDoubt when a host that is needed can't be reached, NotResumed
    when the tree can't be brought to run, Lost when it is nowhere.
    """
    try:
        async with agent_at(await hosts.here(), "source") as own:
            # one recovery at a time: who claims the source's half has it, from whichever host; then the target's
            known = await own.journal(protocol.ReadJournal(migration, claim="source"))
            if known.ice and word is Word.NONE:
                from migrator import ice_recovery  # late: it has our words for what was done

                return await ice_recovery.settle(own, known, undo_only=undo_only)
            if word is not Word.NONE and known.role == "source":
                raise errors.PreflightError(
                    f"{fencing.option(word)}: {own.host} is the source", hint="say it on the target"
                )
            if known.role == "source":
                return await _Recovery(known.migration, observer, undo_only, word).from_source(own, known, hosts)
            if known.role == "target":
                return await _Recovery(known.migration, observer, undo_only, word).from_target(own, known, hosts)
            raise errors.PreflightError(
                f"{own.host} has no journal of a migration {migration}",
                hint="`migrate status` lists them; the journals lie in /var/lib/migrate",
            )
    except PeerLost as lost:
        raise errors.InDoubt(str(lost), hint=f"migrate recover {migration}") from lost
    except PeerFault as fault:
        raise _judged(migration, fault, word) from fault


def _judged(migration: str, fault: PeerFault, word: Word) -> errors.MigrateError:
    if word is not Word.NONE and fault.fault.code is protocol.FaultCode.JOURNAL:
        return errors.PreflightError(f"{fencing.option(word)} is not taken: {fault.host}: {fault.fault.message}")
    if fault.fault.code is protocol.FaultCode.LOCKED:
        return errors.Locked(f"{fault.host}: {fault.fault.message}", hint=f"wait for it: migrate status {migration}")
    return errors.NotResumed(
        f"{fault.host}: {fault.fault.message}", hint=f"migrate recover {migration}", log=fault.fault.log
    )


@contextlib.asynccontextmanager
async def agent_at(link: transport.Link, role: str) -> AsyncIterator[Peer]:
    """A new agent at the end of this link, for as long as the block lasts; then the link goes too. As `meet` raises."""
    try:
        peer = await meet(link, role)
        try:
            yield peer
        finally:
            await peer.close()
    finally:
        await link.close()


async def meet(link: transport.Link, role: str) -> Peer:
    """A new agent over this link. Raises WrongAgent, PeerLost."""
    peer = Peer(link.name, await link.start_agent(role))
    await peer.hello(bundle.build_id())
    return peer


class _Recovery:
    """One migration's recovery."""

    def __init__(self, migration: str, observer: Observer, undo_only: bool, word: Word) -> None:
        self._id = migration
        self._observer = observer
        self._undo_only = undo_only
        self._word = word

    async def from_source(self, source: Peer, here: protocol.JournalState, hosts: Hosts) -> Outcome:
        """Run where the tree came from."""
        self._refuse_at_work(here)
        try:
            link = await hosts.there(here.peer)
        except errors.MigrateError as error:
            return await self._without_target(source, here, error)
        async with agent_at(link, "target") as target:
            there = await target.journal(protocol.ReadJournal(self._id, claim="target"))
            outcome, there = await self._decided(source, target, here, there)
            return outcome.shown(there, here.peer, hosts)

    async def from_target(self, target: Peer, there: protocol.JournalState, hosts: Hosts) -> Outcome:
        """Run where the tree was to go: the same, with the links swapped."""
        if self._word is Word.SOURCE_IS_DEAD:
            return await self._by_word(target, there, hosts)
        try:
            link = await hosts.there(there.peer, there.address)
        except errors.MigrateError as error:
            return await self._without_source(target, error)
        async with agent_at(link, "source") as source:
            here = await source.journal(protocol.ReadJournal(self._id, claim="source"))
            if here.role != "source":
                # another host of that name, or a journal that is gone: nothing may be taken for decided there
                raise errors.InDoubt(
                    f"{source.host} knows of no migration {self._id} from there",
                    hint=f"is it the host that the process came from? migrate recover {self._id} --source HOST",
                )
            self._refuse_at_work(here)
            there = await target.journal(protocol.ReadJournal(self._id, claim="target"))
            outcome, there = await self._decided(source, target, here, there)
            return outcome.shown(there, "", hosts)

    def _refuse_at_work(self, here: protocol.JournalState) -> None:
        if here.agent_alive:
            hint = f"wait for it, or stop it: migrate abort {self._id}"
            raise errors.Locked(f"migration {self._id} is still at work", hint=hint)

    def _refuse_forward(self) -> None:
        if self._undo_only:
            raise errors.TooLate(f"migration {self._id} is past COMMIT", hint=f"migrate recover {self._id}")

    async def _without_target(self, source: Peer, here: protocol.JournalState, error: errors.MigrateError) -> Outcome:
        """The target can't be reached: only what the source's journal alone decides may be done."""
        if "COMMIT" in here.records:
            self._refuse_forward()
            await source.settle(protocol.Settle(self._id, protocol.Verdict.KILL))
            raise errors.InDoubt(
                f"{here.peer} can't be reached: {error.message}",
                hint=f"COMMIT was written: the process belongs to {here.peer}. Try again when it is back",
            ) from error
        if died_undecided(here):
            raise errors.InDoubt(
                f"{source.host} has rebooted in the freeze, and {here.peer}, which may hold the process, can't be "
                f"reached: {error.message}",
                hint=f"try again when {here.peer} is back; what it holds is kept until then",
            ) from error
        settled = await source.settle(protocol.Settle(self._id, protocol.Verdict.ABORT))
        text = f"undone: {_on_source(source, settled)}; {here.peer} could not be told ({error.message}): "
        text += "recover again when it is back"
        return Outcome(Course.UNDO, text, source.host, settled.pid)

    async def _without_source(self, target: Peer, error: errors.MigrateError) -> Outcome:
        """The source can't be reached: only what the target's journal alone decides may be done."""
        verdict, name = protocol.Verdict, self._id
        there = await target.journal(protocol.ReadJournal(name, claim="target"))
        untold = f"{there.peer} could not be asked ({error.message}): recover there when it is back"
        if "DONE" in there.records:
            return Outcome(Course.NOTHING, f"nothing to do on {target.host}: it ended there; {untold}", target.host, 0)
        if "RESUMING" in there.records:  # written with the source's proof of death in hand
            self._refuse_forward()
            await target.settle(protocol.Settle(name, verdict.RESUME, self._word))
            resumed = await target.settle(protocol.Settle(name, verdict.CLEAN))
            _trusted(target, dataclasses.replace(there, memory_lost=resumed.memory_lost))
            text = f"the process runs on {target.host}; {untold}"
            return Outcome(Course.CLEAN, text, target.host, resumed.pid)
        if "HELD" in there.records and "ABORT" not in there.records:
            raise errors.InDoubt(
                f"{there.peer} can't be reached: {error.message}. {target.host} holds the process, and only the journal"
                f" of {there.peer} tells on which of the two it may run",
                hint=f"when {there.peer} is back, or from there: migrate recover {name} (--source HOST: its address is "
                "another). What is held here is kept until then",
            ) from error
        if there.agent_alive:
            raise errors.Locked(f"migration {name} is still at work", hint=f"stop it on {there.peer}, with Ctrl-C")
        # it never held the process whole, or knows of the source's ABORT: nothing can have been committed
        await target.settle(protocol.Settle(name, verdict.ABORT))
        text = f"undone on {target.host}: the process belongs to {there.peer}; {untold}"
        return Outcome(Course.UNDO, text, there.peer, 0)

    async def _decided(
        self, source: Peer, target: Peer, here: protocol.JournalState, there: protocol.JournalState
    ) -> tuple[Outcome, protocol.JournalState]:
        """What was done, and what the target's journal said when the process ran there, if it does."""
        verdict, name = protocol.Verdict, self._id
        records = f"{source.host}: {' '.join(here.records)}; {target.host}: {' '.join(there.records) or 'nothing'}"
        self._observer.note(records)
        decision = course(here, there)
        if self._word is Word.RESTORE_ANYWAY and decision is not Course.FORWARD:
            raise errors.PreflightError(f"{fencing.option(self._word)} is not taken: the journals decide ({records})")
        if lost(here, there):
            await self._close_lost(source, target, over="DONE" in here.records and "DONE" in there.records)
        if decision is Course.DEPOSE:
            return await self._depose(source, target, here)
        if decision is Course.UNDO:
            # the source's ABORT is on disk before the target may discard what it holds
            settled = await source.settle(protocol.Settle(name, verdict.ABORT))
            if there.role and "DONE" not in there.records:
                await target.settle(protocol.Settle(name, verdict.ABORT))
            await source.settle(protocol.Settle(name, verdict.CLEAN))  # the target was told: nothing is owed any more
            return Outcome(decision, f"undone: {_on_source(source, settled)}", source.host, settled.pid), there
        if decision is not Course.NOTHING:
            self._refuse_forward()
        if decision is Course.FORWARD:
            if not there.role:
                raise errors.NotResumed(f"{target.host} knows nothing of migration {name}: its images are not there")
            await source.settle(protocol.Settle(name, verdict.KILL))
            await target.settle(protocol.Settle(name, verdict.RESUME, self._word))
            there = await target.journal(protocol.ReadJournal(name))
        if decision in (Course.FORWARD, Course.CLEAN):
            resumed = await target.settle(protocol.Settle(name, verdict.CLEAN))
            there = dataclasses.replace(there, memory_lost=resumed.memory_lost)
            await source.settle(protocol.Settle(name, verdict.CLEAN))
            _trusted(target, there)
            return Outcome(decision, f"the process runs on {target.host}", target.host, resumed.pid), there
        _trusted(target, there)
        undone = "ABORT" in here.records and "DEPOSED" not in here.records
        where = source.host if undone else target.host
        return Outcome(decision, f"nothing to do: it ended before, on {where}", where, here.root), there

    async def _by_word(self, target: Peer, there: protocol.JournalState, hosts: Hosts) -> Outcome:
        """An operator answers for it that the source is dead: what is held here goes forward without its journal."""
        verdict, name = protocol.Verdict, self._id
        if sign := await hosts.answers(there.peer, there.address):
            hint = f"then its journal decides: migrate recover {name}. If it is another machine: take the name from it"
            raise errors.PreflightError(f"{there.peer} is not dead: {sign}", hint=hint)
        await target.settle(protocol.Settle(name, verdict.RESUME, self._word))
        there = await target.journal(protocol.ReadJournal(name))
        resumed = await target.settle(protocol.Settle(name, verdict.CLEAN))
        _trusted(target, dataclasses.replace(there, memory_lost=resumed.memory_lost))
        text = f"the process runs on {target.host}, by your word that {there.peer} is dead. Should that come back: "
        text += f"`migrate recover {name}`, on either host, ends what runs of it there"
        return Outcome(Course.FORWARD, text, target.host, resumed.pid).shown(there, "", hosts)

    async def _depose(
        self, source: Peer, target: Peer, here: protocol.JournalState
    ) -> tuple[Outcome, protocol.JournalState]:
        """The target runs it by an operator's word, given while the source could not be asked: it ends here."""
        self._refuse_forward()
        verdict, name = protocol.Verdict, self._id
        await source.settle(protocol.Settle(name, verdict.DEPOSE))
        await target.settle(protocol.Settle(name, verdict.RESUME))
        there = await target.journal(protocol.ReadJournal(name))
        resumed = await target.settle(protocol.Settle(name, verdict.CLEAN))
        await source.settle(protocol.Settle(name, verdict.CLEAN))
        _trusted(target, dataclasses.replace(there, memory_lost=resumed.memory_lost))
        done = "what ran of it here, or was held, was killed" if here.tasks_alive else "nothing of it ran here any more"
        text = f"the process belongs to {target.host}: an operator gave it there with --source-is-dead, while "
        text += f"{source.host} could not be asked; on {source.host} {done.replace(' here', '')}"
        return Outcome(Course.DEPOSE, text, target.host, resumed.pid), there

    async def _close_lost(self, source: Peer, target: Peer, *, over: bool) -> None:
        """Close both journals, unless they are `over`. Raises Lost."""
        self._refuse_forward()
        verdict, name = protocol.Verdict, self._id
        if not over:
            await source.settle(protocol.Settle(name, verdict.KILL))
            await target.settle(protocol.Settle(name, verdict.ABORT))
            await source.settle(protocol.Settle(name, verdict.CLEAN))
        raise errors.Lost(
            f"{target.host} has rebooted with the only copy of the process, which was in memory",
            hint="start it anew; --durable keeps a copy on the target's disk before the process is ended on the source",
        )


def _trusted(target: Peer, there: protocol.JournalState) -> None:
    """Raises MemoryLost for a tree that was moved and must not be continued."""
    if there.memory_lost:
        raise errors.MemoryLost.on(target.host, there.root)


def _on_source(source: Peer, settled: protocol.Settled) -> str:
    """What has become of the process that was never committed."""
    if settled.pid:
        return f"the process runs on {source.host}"
    return f"the process ended when {source.host} rebooted; nothing was moved"
