"""The sequence of a migration; the only file that speaks to both ends.

Straight-line: a short method a phase, in the order of `phases.Phase`. Each undo is registered before its act on an
`AsyncExitStack`; `undo.pop_all()` *is* the point of no return, and it stands behind `commit`, whose outcome is always
found out before anything else happens (DESIGN: the commit, exactly).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from agent import protocol
from migrator import bundle, errors, plan, precopy, transport
from migrator.peer import Peer, PeerFault, PeerLost, error_of
from migrator.phases import Observer, Phase, Report, Round

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

RECONNECT_ATTEMPTS = 5
RECONNECT_PAUSE = 2.0
"""Seconds between attempts to reach a target that was lost."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the operator wants."""

    pid: int
    target: transport.Target
    wishes: plan.Wishes
    limits: precopy.Limits
    sudo: bool = False
    criu: str = ""


class Links(Protocol):
    """How the two hosts are reached; the target's may be asked for again when it was lost."""

    async def source(self) -> transport.Link:
        """The host we run on."""

    async def target(self) -> transport.Link:
        """The host to move to."""


class RealLinks:
    """This host, and one over SSH."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._arguments = ("--criu", order.criu) if order.criu else ()

    async def source(self) -> transport.Link:
        """The local agent."""
        return transport.LocalLink(agent_arguments=self._arguments)

    async def target(self) -> transport.Link:
        """A new SSH connection."""
        return await transport.connect(self._order.target, sudo=self._order.sudo, agent_arguments=self._arguments)


async def uncancelled(act: Coroutine[Any, Any, T], heard: Callable[[], None] = lambda: None) -> T:
    """Run to the end whatever cancels us meanwhile. A cancellation is told to `heard` and goes no further: what is run
    so must not look undone to its caller when it was done."""
    task = asyncio.ensure_future(act)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            heard()
        except Exception:
            break
    return task.result()


async def both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Two acts that belong together, one on each host: when one fails the other is not waited for."""
    one, two = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.wait({one, two}, return_when=asyncio.FIRST_EXCEPTION)
        for done in (two, one):  # the target's failure (a full disk) is the cause of the source's (a broken pipe)
            if done.done() and not done.cancelled() and (error := done.exception()) is not None:
                raise error
        return one.result(), two.result()
    finally:
        for task in (one, two):
            task.cancel()
        await asyncio.gather(one, two, return_exceptions=True)


class Stream:
    """One bulk stream, coupled from the source's agent to the target's for as long as it is open."""

    def __init__(
        self, name: str, source: transport.Channel, target: transport.Channel, on_bytes: Callable[[int], None]
    ):
        self.name = name
        self._ends = (source, target)
        self._pump = asyncio.create_task(transport.pump(source, target, on_bytes))

    async def close(self) -> None:
        """Close both ends: whoever reads or writes there fails."""
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        for end in self._ends:
            with contextlib.suppress(OSError, errors.MigrateError):
                await end.close()


class Migration:
    """One migration, once."""

    def __init__(self, order: Order, observer: Observer, links: Links) -> None:
        self.id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._order = order
        self._observer = observer
        self._links = links
        self._started = time.monotonic()
        self._rounds: list[Round] = []
        self._wire = 0
        self._round_wire = 0
        self._leftovers: list[str] = []
        self._resources = contextlib.AsyncExitStack()
        self._frozen_at = 0.0
        self._source_aborted = False
        self._source: Peer
        self._target: Peer
        self._source_link: transport.Link
        self._target_link: transport.Link
        self._plan: plan.Plan
        self._page_size = 4096

    # --- the sequence ------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Move the tree. Raises MigrateError; on CancelledError everything is undone already."""
        async with self._resources:
            try:
                async with contextlib.AsyncExitStack() as undo:
                    await self._connect()
                    await self._preflight()
                    number = await self._prepare(undo)
                    number = await self._precopy(number)
                    held = await self._freeze(number)
                    restored = await self._restore(number)
                    await self._observer.phase(Phase.COMMIT)
                    await asyncio.sleep(0)  # a signal that came before is heard here, while there is a way back
                    killed = await uncancelled(self._commit(), self._too_late)
                    undo.pop_all()
            except PeerFault as fault:
                error = error_of(fault)
                if error is None:
                    raise
                raise error from fault
            except PeerLost as lost:
                raise errors.LinkLost(str(lost), hint="the connection or an agent was lost before COMMIT") from lost
            # from here on there is no way back, and nothing may interrupt
            return await uncancelled(self._finish(held, restored, killed), self._too_late)

    def _too_late(self) -> None:
        self._observer.note("past the point of no return: finishing")

    async def _connect(self) -> None:
        await self._observer.phase(Phase.CONNECT)
        self._source_link = await self._links.source()
        self._resources.push_async_callback(self._source_link.close)
        self._source = await self._agent(self._source_link, "source")
        self._target_link = await self._links.target()
        self._resources.push_async_callback(self._target_link.close)
        self._target = await self._agent(self._target_link, "target")

    async def _agent(self, link: transport.Link, role: str) -> Peer:
        peer = Peer(link.name, await link.start_agent(role))
        self._resources.push_async_callback(peer.close)
        banner = await peer.hello(bundle.build_id())
        self._observer.detail(f"{link.name}: {banner.line()}")
        return peer

    async def _preflight(self) -> None:
        await self._observer.phase(Phase.PREFLIGHT)
        self._plan, obstacles = await self.survey()
        for note in self._plan.notes:
            self._observer.note(note)
        if any(obstacle.stops for obstacle in obstacles):
            stops = sum(obstacle.stops for obstacle in obstacles)
            raise errors.PreflightError(f"{stops} obstacle{'s' if stops != 1 else ''}", obstacles=obstacles)

    async def survey(self) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
        """Facts of both hosts and of the tree, made into a plan and every obstacle at once. Changes nothing."""
        source, tree = await both(
            self._source.probe(protocol.Probe(want_cpuinfo=True)),
            self._source.inspect(protocol.Inspect(self._order.pid)),
        )
        self._page_size = source.page_size
        target, check = await both(
            self._target.probe(protocol.Probe(cpuinfo=source.cpuinfo)),
            self._target.check(plan.questions(tree)),
        )
        return plan.make_plan(source, target, tree, check, self._order.wishes)

    async def check(self) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
        """Connect and survey, no more."""
        async with self._resources:
            try:
                await self._connect()
                await self._observer.phase(Phase.PREFLIGHT)
                return await self.survey()
            except PeerFault as fault:
                error = error_of(fault)
                if error is None:
                    raise
                raise error from fault
            except PeerLost as lost:
                raise errors.ConnectError(str(lost)) from lost

    async def _prepare(self, undo: contextlib.AsyncExitStack) -> int:
        """Both hosts ready, streams open and warm, the first page server standing. Returns the first round's number."""
        chosen = self._plan
        begin = protocol.Begin(
            self.id,
            self._order.pid,
            chosen.tree.tasks[0].start_time,
            str(self._order.target),
            chosen.criu,
            chosen.precopy,
        )
        prepare = protocol.Prepare(
            self.id, self._order.pid, socket.gethostname(), chosen.memory, chosen.on_disk, chosen.criu
        )
        undo.push_async_callback(uncancelled_callback(self._undo_target))
        undo.push_async_callback(uncancelled_callback(self._undo_source))
        here, there = await both(self._source.begin(begin), self._target.prepare(prepare))
        for name in ["pages", "images"] + (["files-1", "files-2"] if chosen.copy_files else []):
            await self._open_stream(undo, name, here.socket, there.socket)
        await self._target.accept(protocol.Accept(1, "pages"))
        return 1

    async def _open_stream(self, undo: contextlib.AsyncExitStack, name: str, here: str, there: str) -> None:
        source, target = await both(
            self._source_link.open_stream(here, name), self._target_link.open_stream(there, name)
        )
        stream = Stream(name, source, target, self._count)
        # closing it is how a criu at work is told to give up; criu is never signalled. Undone before the agents are
        undo.push_async_callback(uncancelled_callback(stream.close))
        self._resources.push_async_callback(stream.close)

    def _count(self, size: int) -> None:
        self._wire += size
        self._round_wire += size
        self._observer.transferred(self._round_wire)

    async def _precopy(self, number: int) -> int:
        """Rounds while the process runs, until the controller says freeze. Returns the final dump's number."""
        await self._observer.phase(Phase.PRECOPY)
        if self._plan.copy_files:
            await self._copy_files("files-1")
        if not self._plan.precopy:
            return number
        costs = precopy.Costs(memory=self._plan.tree.memory, restore_rate=EAGER_RATE)
        while True:
            decision = precopy.decide(self._rounds, self._order.limits, costs)
            if decision.action is precopy.Action.FREEZE:
                self._observer.detail(f"freeze: {decision.reason}")
                return number
            self._round_wire = 0
            self._observer.round_started(number, decision.predicted_bytes, False)
            started = time.monotonic()
            dumped, accepted = await both(
                self._source.pre_dump(protocol.PreDump(number, "pages")),
                self._target.accept_done(protocol.AcceptDone(number)),
            )
            seconds = time.monotonic() - started
            done = Round(dumped.pages, accepted.bytes, self._round_wire, seconds, dumped.frozen_seconds)
            self._rounds.append(done)
            self._observer.round_done(number, done, False)
            number += 1
            # the next round's page server stands before it is known whether that round is the freeze
            await self._target.accept(protocol.Accept(number, "pages"))

    async def _copy_files(self, stream: str) -> protocol.Moved:
        paths = self._plan.copy_files
        sent, _ = await both(
            self._source.send_files(protocol.SendFiles(stream, paths)),
            self._target.receive_files(protocol.ReceiveFiles(stream, paths)),
        )
        return sent

    async def _freeze(self, number: int) -> protocol.Held:
        await self._observer.phase(Phase.FREEZE)
        self._round_wire = 0
        self._observer.round_started(number, 0, True)
        self._frozen_at = time.monotonic()
        held, accepted = await both(
            self._source.dump(protocol.Dump(number, "pages")),
            self._target.accept_done(protocol.AcceptDone(number)),
        )
        acts: list[Awaitable[object]] = [
            both(
                self._source.send_images(protocol.SendImages(number, "images")),
                self._target.receive_images(protocol.ReceiveImages(number, "images")),
            )
        ]
        if self._plan.copy_files:
            acts.append(self._copy_files("files-2"))
        await all_of(acts)
        pages = accepted.bytes // self._page_size
        final = Round(pages, accepted.bytes, self._round_wire, held.freeze_seconds, held.freeze_seconds)
        self._rounds.append(final)
        self._observer.round_done(number, final, True)
        return held

    async def _restore(self, number: int) -> protocol.Restored:
        await self._observer.phase(Phase.RESTORE)
        return await self._target.restore(protocol.Restore(number))

    async def _commit(self) -> protocol.Killed:
        """COMMIT and proof of death. On return there is no way back; raises only when there is no COMMIT."""
        try:
            return await self._source.commit()
        except (PeerFault, PeerLost) as error:
            # the journal is beside us: ask it, and let it decide
            await self._settle_source(error)
            if self._source_aborted:
                raise
            return protocol.Killed(max(1, len(self._plan.tree.tasks)), 0.0)

    async def _settle_source(self, error: Exception) -> None:
        """After a commit that failed half-way: a new local agent carries out what the journal says. Raises InDoubt."""
        try:
            await self._renew_source()
            state = await self._source.journal(protocol.ReadJournal(self.id))
            verdict = protocol.Verdict.KILL if "COMMIT" in state.records else protocol.Verdict.ABORT
            await self._source.settle(protocol.Settle(self.id, verdict))
            self._source_aborted = verdict is protocol.Verdict.ABORT
        except (PeerFault, PeerLost, errors.MigrateError) as worse:
            raise errors.InDoubt(f"at COMMIT: {error}; then: {worse}", hint=f"migrate recover {self.id}") from worse

    async def _finish(self, held: protocol.Held, restored: protocol.Restored, killed: protocol.Killed) -> Report:
        await self._observer.phase(Phase.RESUME)
        pid = await self._resume(killed)
        downtime = time.monotonic() - self._frozen_at
        await self._observer.phase(Phase.CLEAN)
        await self._clean(self._target, self._reconnect)
        await self._clean(self._source, self._renew_source)
        report = self._report("migrated", held, restored, pid, downtime)
        self._observer.report(report)
        return report

    async def _resume(self, killed: protocol.Killed) -> int:
        try:
            return (await self._target.resume(protocol.Resume(killed.tasks))).pid
        except PeerFault as fault:
            raise errors.NotResumed(
                f"{fault.host}: {fault.fault.message}", hint=f"migrate recover {self.id}", log=fault.fault.log
            ) from fault
        except PeerLost as lost:
            self._observer.note(f"{lost}; connecting again")
        try:
            await self._reconnect()
            return (await self._target.settle(protocol.Settle(self.id, protocol.Verdict.RESUME))).pid
        except (PeerFault, PeerLost, errors.MigrateError) as error:
            raise errors.InDoubt(f"at RESUME: {error}", hint=f"migrate recover {self.id}") from error

    async def _clean(self, peer: Peer, renew: Callable[[], Awaitable[Peer]]) -> None:
        """An agent that does not know this migration, or is gone, leaves it to one that reads the journal."""
        settle = protocol.Settle(self.id, protocol.Verdict.CLEAN)
        try:
            try:
                left = (await peer.finish()).items
            except PeerFault:
                left = (await peer.settle(settle)).leftovers
            except PeerLost:
                left = (await (await renew()).settle(settle)).leftovers
            self._leftovers += [f"{peer.host}: {item}" for item in left]
        except (PeerFault, PeerLost, errors.MigrateError) as error:
            self._leftovers.append(f"{peer.host}: not cleaned up: {error} (migrate recover {self.id})")

    # --- undoing -----------------------------------------------------------------------------------------------------

    async def _undo_source(self) -> None:
        """The tree runs on here. A lost agent is replaced by a new one that reads the journal."""
        if self._source_aborted:
            return
        try:
            left = (await self._source.abort(protocol.Abort("undone"))).items
        except (PeerFault, PeerLost):
            try:
                await self._renew_source()
                state = await self._source.journal(protocol.ReadJournal(self.id))
                if not state.role:  # it never began
                    self._source_aborted = True
                    return
                left = (await self._source.settle(protocol.Settle(self.id, protocol.Verdict.ABORT))).leftovers
            except (PeerFault, PeerLost, errors.MigrateError) as error:
                raise errors.InDoubt(
                    f"the migration could not be undone on {self._source.host}: {error}",
                    hint=f"migrate recover {self.id}",
                ) from error
        self._source_aborted = True
        self._leftovers += [f"{self._source.host}: {item}" for item in left]

    async def _undo_target(self) -> None:
        """Nothing stays there. Runs after the source's ABORT, without which a held tree may not be discarded."""
        try:
            left = (await self._target.abort(protocol.Abort("undone", source_aborted=self._source_aborted))).items
        except (PeerFault, PeerLost) as refused:
            if not self._source_aborted:
                # COMMIT may be in the source's journal, and this the only copy: only `recover`, who sees both, may settle it
                self._observer.note(f"{refused}; left as it is: migrate recover {self.id}")
                return
            try:
                await self._reconnect()
                state = await self._target.journal(protocol.ReadJournal(self.id))
                if not state.role:
                    return
                left = (await self._target.settle(protocol.Settle(self.id, protocol.Verdict.ABORT))).leftovers
            except (PeerFault, PeerLost, errors.MigrateError) as error:
                left = (f"could not be told that it is over: {error} (`migrate recover {self.id}` does it later)",)
        self._leftovers += [f"{self._target.host}: {item}" for item in left]
        for item in self._leftovers:
            self._observer.note(f"left behind: {item}")

    async def _renew_source(self) -> Peer:
        """Another agent here, in place of one that is gone or refuses. Raises ConnectError, PeerLost."""
        self._source = await self._agent(self._source_link, "source")
        return self._source

    async def _reconnect(self) -> Peer:
        """Another connection and agent there. Raises MigrateError, PeerLost."""
        for attempt in range(RECONNECT_ATTEMPTS):
            try:
                self._target_link = await self._links.target()
                self._resources.push_async_callback(self._target_link.close)
                self._target = await self._agent(self._target_link, "target")
            except (errors.MigrateError, PeerLost):
                if attempt == RECONNECT_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(RECONNECT_PAUSE)
            else:
                break
        return self._target

    def _report(
        self, outcome: str, held: protocol.Held, restored: protocol.Restored, pid: int, downtime: float
    ) -> Report:
        return Report(
            id=self.id,
            outcome=outcome,
            pid=self._order.pid,
            target_pid=pid,
            source=socket.gethostname(),
            target=self._target.host,
            rounds=tuple(self._rounds),
            downtime_seconds=downtime,
            freeze_seconds=held.freeze_seconds,
            restore_seconds=restored.seconds,
            total_seconds=time.monotonic() - self._started,
            bytes=sum(done.bytes for done in self._rounds),
            wire_bytes=self._wire,
            leftovers=tuple(self._leftovers),
        )


EAGER_RATE = 1.0 * 1024**3
"""Bytes a second of an eager `criu restore` (0.8 to 1.3 s a GiB, DESIGN)."""


async def all_of(acts: list[Awaitable[object]]) -> None:
    """Several acts; the first failure ends the others."""
    tasks = [asyncio.ensure_future(act) for act in acts]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for pending in tasks:
            pending.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def uncancelled_callback(act: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Awaitable[None]]:
    """An undo that a second Ctrl-C does not break."""

    async def run() -> None:
        await uncancelled(act())

    return run


async def migrate(order: Order, observer: Observer) -> Report:
    """Move a process tree. Raises MigrateError, or CancelledError after everything was undone."""
    return await Migration(order, observer, RealLinks(order)).run()


async def check(order: Order, observer: Observer) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
    """Preflight alone: the plan and every obstacle. Changes nothing on either host."""
    return await Migration(order, observer, RealLinks(order)).check()
