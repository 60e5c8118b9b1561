"""The sequence of a migration. Only it, its `rounds`, `undoing` and `forward`, and `recovery` speak to both ends.

Straight-line: a short method a phase, in the order of `phases.Phase`. Each undo is registered before its act on an
`AsyncExitStack`; `undo.pop_all()` *is* the point of no return, and it stands behind `_commit`, whose outcome is always
found out before anything else happens (DESIGN: the commit, exactly).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import time
from collections.abc import Awaitable

from agent import protocol
from migrator import asking, errors, floating, history, plan, precopy
from migrator.along import Along
from migrator.bandwidth import Bucket
from migrator.carrier import Carrier, Directories, Streamed
from migrator.deciding import decide
from migrator.forward import Forward
from migrator.history import History, Measured
from migrator.hosts import Ends, Links, Order, RealLinks, Way
from migrator.latecomers import Latecomers
from migrator.peer import PeerFault, PeerLost, error_of
from migrator.phases import Observer, Phase, Report
from migrator.rounds import Rounds
from migrator.rsync import Rsync
from migrator.timeline import Timeline
from migrator.together import all_of, both, uninterrupted
from migrator.undoing import Undoing


class Migration:
    """One migration, once."""

    def __init__(
        self, order: Order, observer: Observer, links: Links, history: History | None = None, *, last: bool = True
    ) -> None:
        """`last`: no other attempt follows, whatever happens; else BrokenRounds is not reported."""
        self.id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._order = order
        self._last = last
        self._history = history or History(None)
        self._observer = Timeline(observer, self._history.reports)
        self._ends = Ends(links, self._observer)
        self._frozen_at = 0.0
        self._bucket = Bucket(order.bandwidth)
        self._carrier = self._carrier_of(order)
        self._along = Along(self._ends, self._observer, wanted=order.wishes.copy_files)
        self._late = Latecomers(self._ends, self._along, self._observer, order.wishes)
        self._rounds = Rounds(self._ends, self._carrier, self._observer, self._keep_up, self._observer.began)
        self._undoing = Undoing(self.id, self._ends, self._observer)
        self._ahead = Forward(self.id, self._ends, self._observer)
        self._downtime = 0.0
        self._freeze_seconds = self._restore_seconds = self._disk_seconds = 0.0
        self._page_size = 4096
        self._instant = self._namespaces = False
        self._terminal = self._unit = self._name = ""
        self._plan: plan.Plan
        self._here: Awaitable[protocol.HostFacts]
        self._found: Awaitable[protocol.TreeFacts]

    def _carrier_of(self, order: Order) -> Carrier:
        wishes = order.wishes
        if not (wishes.rsync or wishes.shared):
            return Streamed(self._ends)
        rsync = Rsync(order.target, order.rsh, order.sudo, wishes.compress == "zstd")
        return Directories(
            self._ends, None if wishes.shared else rsync, lambda: 0.0 if self._frozen_at else order.bandwidth,
            lambda size: self._rounds.went(size), self._observer.detail,
        )  # fmt: skip

    # --- the sequence ------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Move the tree, or rehearse it. Raises MigrateError; on that and on CancelledError all is undone already."""
        self._observer.started(self.id)
        try:
            async with contextlib.AsyncExitStack() as undo:
                await self._connect()
                await self._preflight()
                await self._prepare(undo)
                number = await self._precopy()
                await self._freeze(number)
                await self._restore(number)
                killed = await (self._roll_back() if self._order.rehearsal else self._commit())
                if killed is not None:
                    undo.pop_all()
            if killed is None:  # undone here, on both hosts
                report = self._report("rehearsed")
                self._observer.report(report)
            else:
                # from here on there is no way back, and nothing may interrupt
                report = await uninterrupted(self._forward(killed), self._observer.note)
                await self._show_terminal()
        except PeerFault as fault:
            damage = self._ends.damage()  # the cause, where a page server only saw its stream end
            error = errors.CopyError(damage) if damage else error_of(fault)
            if error is None:
                raise
            raise self._over(error) from fault
        except PeerLost as lost:
            raise self._over(errors.LinkLost(str(lost))) from lost
        except errors.MigrateError as error:
            raise self._over(error) from error.__cause__
        except asyncio.CancelledError:
            self._observer.report(self._report("undone", "stopped"))
            raise
        finally:
            await uninterrupted(self._ends.close(), self._observer.note)
        if self._observer.error is not None:
            raise self._observer.error
        if self._ahead.memory_lost:
            raise errors.MemoryLost.on(self._ends.target.host, self._ahead.pid)
        return report

    async def _show_terminal(self) -> None:
        """The session in the tree's new terminal, where one was ordered. What fails here fails nothing."""
        if self._order.show is None or self._ahead.memory_lost:
            return
        try:
            channel = await self._ends.terminal(self._terminal)
        except (OSError, errors.MigrateError) as error:
            soon = f"it gets SIGHUP within {protocol.TERMINAL_GRACE:.0f} s unless it is shown by"
            self._observer.note(f"its terminal is not reached: {error}; {soon} {self._way_back or 'nobody'}")
            return
        await self._order.show(channel)

    @property
    def _way_back(self) -> str:
        """The command that shows its terminal from here; "" where it has no new one."""
        command = self._ahead.terminal
        return self._order.target.by_hand(command, sudo=self._order.sudo) if command else ""

    def _over(self, error: errors.MigrateError) -> errors.MigrateError:
        """Report a migration that failed, and give the error back."""
        if isinstance(error, errors.BrokenRounds) and not self._last:
            return error
        outcomes = {errors.NotResumed: "not-resumed", errors.InDoubt: "in-doubt"}
        self._observer.report(self._report(outcomes.get(type(error), "undone"), f"{type(error).__name__}: {error}"))
        return error

    async def _connect(self) -> None:
        await self._observer.phase(Phase.CONNECT)
        await both(self._look_here(), self._ends.reach_target())

    async def _look_here(self) -> None:
        """Begin to look at this host and at the tree: the connection to the target takes about as long."""
        await self._ends.reach_source()
        self._here = self._ends.ahead(self._ends.source.probe(protocol.Probe(want_cpuinfo=True)))
        self._found = self._ends.ahead(self._ends.source.inspect(protocol.Inspect(self._order.pid)))

    async def _preflight(self) -> None:
        await self._observer.phase(Phase.PREFLIGHT)
        self._plan, obstacles = await self._survey()
        self._instant, self._namespaces = self._plan.instant, self._plan.namespaces
        self._name = next((task.name for task in self._plan.tree.tasks), "")
        for note in self._plan.notes:
            self._observer.note(note)
        stops = sum(obstacle.stops for obstacle in obstacles)
        if stops:
            raise errors.PreflightError(f"{stops} obstacle{'s' if stops != 1 else ''}", obstacles=obstacles)

    async def _survey(self) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
        """Facts of both hosts and of the tree, made into a plan and every obstacle at once. Changes nothing."""
        (source, target), (tree, found) = await both(self._hosts(), self._tree())
        self._page_size = source.page_size
        tree = await self._digested(tree, found)
        chosen, obstacles = plan.make_plan(source, target, tree, found, self._order.wishes)
        if chosen.floating.there:
            answers = await self._ends.target.listen(protocol.Listen(chosen.floating.there))
            obstacles += tuple(floating.elsewhere(target.hostname, source, answers.heard))
        return chosen, obstacles

    async def _hosts(self) -> tuple[protocol.HostFacts, protocol.HostFacts]:
        source = await self._here
        return source, await self._ends.target.probe(protocol.Probe(cpuinfo=source.cpuinfo))

    async def _tree(self) -> tuple[protocol.TreeFacts, protocol.TargetCheck]:
        tree = await self._found
        return tree, await self._ends.target.check(plan.questions(tree, self._order.wishes))

    async def _digested(self, tree: protocol.TreeFacts, found: protocol.TargetCheck) -> protocol.TreeFacts:
        """The tree with the digests of those files that the target has digested: the source knows which only now."""
        paths = tuple(file.path for file in found.files if file.digest)
        if not paths:
            return tree
        answer = await self._ends.source.digest(protocol.Digest(paths))
        known = dict(zip(paths, answer.digests, strict=True))
        files = (dataclasses.replace(file, digest=known.get(file.path, "")) for file in tree.files)
        return dataclasses.replace(tree, files=tuple(files))

    async def check(self) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
        """Connect and survey, no more."""
        try:
            await self._connect()
            await self._observer.phase(Phase.PREFLIGHT)
            return await self._survey()
        except PeerFault as fault:
            error = error_of(fault)
            if error is None:
                raise
            raise error from fault
        except PeerLost as lost:
            raise errors.ConnectError(str(lost)) from lost
        finally:
            await self._ends.close()

    async def _prepare(self, undo: contextlib.AsyncExitStack) -> None:
        """Both hosts ready, streams open and warm, the first page server standing."""
        chosen = self._plan
        begin = asking.begin(self.id, chosen, str(self._order.target), os.getpid())
        prepare = asking.prepare(self.id, chosen, socket.gethostname(), self._order.lease)
        # undone in the other order: streams closed (so a criu at work gives up), then the source, then the target
        undo.push_async_callback(uninterrupted, self._undoing.target, self._observer.note)
        undo.callback(self._observer.thawed)
        undo.push_async_callback(uninterrupted, self._undoing.source, self._observer.note)
        beginning = self._undoing.beginning
        if chosen.place.shared:  # the target looks for what the source has made
            source = await beginning("source", self._ends.source.begin(begin))
            prepared = await beginning("target", self._ends.target.prepare(prepare))
        else:
            source, prepared = await both(
                beginning("source", self._ends.source.begin(begin)),
                beginning("target", self._ends.target.prepare(prepare)),
            )
        self._terminal, self._unit = prepared.terminal, prepared.scope
        self._carrier.begin(source, prepared)
        if chosen.compress == "none" != self._order.wishes.compress:
            self._observer.detail(f"{self._ends.target.host}: no zstd to unpack with: nothing is compressed")
        way = Way(chosen.compress, self._bucket, self._rounds.came, self._rounds.went)
        ways = dict.fromkeys(self._carrier.streams, way)
        ways |= dict.fromkeys(self._along.streams, self._along.way(chosen.compress, self._bucket))
        for name, of_stream in ways.items():
            stream = await self._ends.stream(name, source.socket, prepared.socket, of_stream)
            undo.push_async_callback(uninterrupted, stream.close, self._observer.note)
        undo.callback(self._observer.undoing)
        await self._carrier.expect(1)

    async def _precopy(self) -> int:
        """Rounds while the process runs, until the controller says freeze. Returns the final dump's number."""
        await self._observer.phase(Phase.PRECOPY)
        await self._along.copy(self._plan.copy_files)
        await self._keep_up()  # much may have changed while rsync was at work
        limits, costs = self._order.limits, self._history.costs(str(self._order.target))
        if not self._plan.precopy:
            limits = dataclasses.replace(limits, max_rounds=0)
        restore_rate = 0.0 if self._plan.instant else costs.restore_rate or precopy.TYPICAL_RESTORE_RATE
        costs = dataclasses.replace(
            costs,
            held_back=self._order.bandwidth > 0,
            memory=self._plan.tree.memory,
            restore_rate=restore_rate,
            durable=self._plan.durable,
        )
        return await self._rounds.precopy(limits, costs)

    async def _freeze(self, number: int) -> None:
        await self._observer.phase(Phase.FREEZE)
        self._bucket.lift()
        dirty = precopy.predicted_dirty(self._rounds.done, self._plan.tree.memory)
        self._rounds.begin(number, dirty, final=True)
        self._frozen_at = self._observer.freezing()
        held, accepted = await both(self._dump(number), self._receive(number))  # neither waits for the other's steps
        self._freeze_seconds = held.freeze_seconds
        pages = accepted.bytes // self._page_size
        self._rounds.end(number, pages, accepted.bytes, held.freeze_seconds, held.freeze_seconds, final=True)

    async def _dump(self, number: int) -> protocol.Held:
        held = await self._carrier.dump(number)
        self._observer.held()
        if held.orphaned:
            self._observer.note("its parent-death signal is not taken along: the parent stays here")
        self._along.freeze()
        await all_of([self._carrier.follow(number), self._last_files()])
        return held

    async def _last_files(self) -> None:
        await self._late.admit(self._plan.tree)
        await self._along.held()

    async def _keep_up(self) -> None:
        """Beside a round: what the tree has opened meanwhile, and what changed of the files."""
        await self._late.admit(self._plan.tree)
        await self._along.again()

    async def _receive(self, number: int) -> protocol.Accepted:
        _, accepted = await both(self._along.placed(), self._carrier.receive(number))
        return accepted

    async def _restore(self, number: int) -> None:
        await self._observer.phase(Phase.RESTORE)
        restored = await self._ends.target.restore(protocol.Restore(number))
        self._restore_seconds, self._disk_seconds = restored.seconds, restored.disk_seconds
        for lost in restored.lost:
            self._observer.note(f"{self._ends.target.host}: {lost}")

    async def _roll_back(self) -> None:
        """The end of a rehearsal: the tree runs on here, before anything else is done about it."""
        await self._observer.phase(Phase.ROLLBACK)
        await uninterrupted(self._undoing.source, self._observer.note)
        self._downtime = time.monotonic() - self._frozen_at

    async def _commit(self) -> protocol.Killed:
        """COMMIT and proof of death. On return there is no way back; it raises only where there is no COMMIT."""
        await self._observer.phase(Phase.COMMIT)
        await asyncio.sleep(0)  # a signal that came meanwhile is heard here, while there is a way back
        decided = decide(self.id, self._ends, self._undoing, len(self._plan.tree.tasks))
        return await uninterrupted(decided, self._observer.note)

    async def _forward(self, killed: protocol.Killed) -> Report:
        """Behind the point of no return."""
        forward = self._ahead
        inside = self._plan.numbers[0].pid if self._plan.namespaces else 0
        await forward.run(
            killed, frozen_at=self._frozen_at, instant=self._plan.instant, inside_pid=inside,
            terminal=bool(self._plan.terminal),
        )  # fmt: skip
        self._downtime = forward.downtime
        report = self._report("memory-lost" if forward.memory_lost else "migrated")
        self._observer.report(report)
        if not self._order.bandwidth:  # else the rounds tell nothing of the link
            memory = 0 if self._plan.instant else self._plan.tree.memory
            waited = max(0.0, self._disk_seconds - self._restore_seconds)  # for the disk alone
            downtime, done = forward.downtime - waited, self._rounds.done
            measured = Measured(downtime, self._restore_seconds, memory, done, self._disk_seconds)
            self._history.learn(str(self._order.target), measured)
        return report

    def _report(self, outcome: str, error: str = "") -> Report:
        report = Report(
            id=self.id,
            outcome=outcome,
            error=error,
            name=self._name,
            pid=self._order.pid,
            target_pid=self._ahead.pid,
            inside_pid=self._ahead.inside_pid,
            namespaces=self._namespaces,
            source=socket.gethostname(),
            target=str(self._order.target),
            rounds=tuple(self._rounds.done),
            downtime_seconds=self._downtime,
            predicted_downtime_seconds=self._rounds.predicted_downtime,
            freeze_seconds=self._freeze_seconds,
            restore_seconds=self._restore_seconds,
            disk_seconds=self._disk_seconds,
            max_downtime_seconds=self._order.limits.max_downtime,
            total_seconds=time.monotonic() - self._observer.began,
            bytes=sum(done.bytes for done in self._rounds.done),
            wire_bytes=self._rounds.wire_bytes + self._along.wire_bytes,
            leftovers=(*self._undoing.leftovers, *self._ahead.leftovers),
            resume="instant" if self._instant else "eager",
            fill_seconds=self._ahead.filled.seconds,
            fill_bytes=self._ahead.filled.bytes,
            faults=self._ahead.filled.faults,
            longest_fault_seconds=self._ahead.filled.longest_fault_seconds,
            target_peak_bytes=self._ahead.filled.peak_bytes,
            files_bytes=self._along.bytes,
            files_frozen_bytes=self._along.frozen_bytes,
            files_seconds=self._along.frozen_seconds,
            terminal="" if self._order.show else self._way_back,
            unit=self._unit,
        )
        return self._observer.timed(report)


async def migrate(order: Order, observer: Observer) -> Report:
    """Move a process tree. Raises MigrateError, or CancelledError after everything was undone."""
    return await move(order, observer, RealLinks(order), history.of_user(os.environ, os.geteuid()))


async def move(order: Order, observer: Observer, links: Links, known: History) -> Report:
    """`migrate` over these links. Rounds that do not fit together are undone, and memory is dumped whole, once."""
    try:
        return await Migration(order, observer, links, known, last=False).run()
    except errors.BrokenRounds as broken:
        observer.note(f"{broken}: undone; once more without pre-copy, so that no round depends on another")
    whole = dataclasses.replace(order, limits=dataclasses.replace(order.limits, max_rounds=0))
    return await Migration(whole, observer, links, known).run()


async def check(order: Order, observer: Observer) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
    """Preflight alone: the plan and every obstacle. Changes nothing on either host."""
    return await Migration(order, observer, RealLinks(order)).check()
