"""The target's half of a migration on this host: accept, restore and hold, resume or discard. It knows no other host.

From HELD on nothing removes the images but the source's recorded ABORT or an operator's word: no end of input, no
time-out, no dead hook (DESIGN: the commit, rule 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, Optional, Union

from agent import criu, floating, images, instants, lodging, memory, namespace, process, protocol, rules, traits
from agent.arriving import Arriving
from agent.ending import ended
from agent.fill import PATIENCE, Fill, FillError, PagerGone, wait_for_pager
from agent.hold import Hold
from agent.journal import Journal, JournalError, Record, WrongOrder, prune
from agent.lodging import Lodging
from agent.lost import forget, memory_lost, stop_tree
from agent.placing import Placing
from agent.prepared import written_down
from agent.scope import own as own_scope
from agent.settings import Settings
from agent.streams import Jobs, Taken
from agent.tasks import NotRunning, Tasks, TreeChanged, adopt_orphans
from agent.terminal import Terminal
from agent.warden import LOCK
from agent.whole import let_go, note_living


class Target:
    """One migration to this host."""

    def __init__(
        self, settings: Settings, journal: Journal, options: protocol.CriuOptions, tell: Callable[[str], None]
    ):
        self._settings = settings
        self._journal = journal
        self._options = options
        self._tell = tell
        prepared = journal.facts(Record.PREPARED.value)
        self._images = settings.place(journal.migration, on_disk=prepared["on_disk"], directory="")
        self._namespace = (prepared["root"], prepared["namespace"]) if prepared.get("namespace") else ()
        self._tasks = Tasks()
        self._jobs = Jobs()
        self._starting = asyncio.Lock()  # held while a page server starts, so that none starts behind an abort's back
        self._streams = Taken()
        self._arriving = Arriving(self._images, journal, settings.criu, self._jobs, self._streams)
        self._hold: Optional[Hold] = None
        self._restore: Optional[criu.Running] = None
        self.files = Placing(journal, self._images, settings.rsync, self._streams, self._jobs, self._still_accepting)
        self._terminal = Terminal.of(settings, journal)
        self._lodging = Lodging(journal)
        self._fill: Optional[Fill] = None

    @classmethod
    async def prepare(cls, settings: Settings, request: protocol.Prepare, tell: Callable[[str], None]) -> Target:
        """Journal PREPARED, make room, listen for streams, warm a restore up. Undoes itself when it fails."""
        prune(settings.state)
        journal = written_down(settings, request)
        target = cls(settings, journal, request.options, tell)
        try:
            images.make_place(target._images, memory=0 if request.on_disk else request.memory)
            if request.shared:
                target._arriving.look_in(Path(request.shared) / request.migration, request.source)
            settings.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not request.namespaces:
                process.step_over(request.ids)
            target._streams.listen(settings.socket(request.migration))
            if request.instant:
                pager = own_scope("pager-" + request.migration)
                target._fill = await Fill.start(target._images, journal.directory, pager)
            await target._warm(lazy=request.instant)
        except BaseException:
            await target.abort("could not be prepared", source_aborted=False)
            raise
        return target

    @classmethod
    def adopt(cls, settings: Settings, journal: Journal, tell: Callable[[str], None]) -> Target:
        """Take over a migration whose agent is gone, from its journal."""
        options = protocol.CriuOptions.of_line(journal.facts(Record.PREPARED.value)["options"])
        return cls(settings, journal, options, tell)

    @property
    def prepared(self) -> protocol.Prepared:
        """Where this migration's things are."""
        socket, log = str(self._settings.socket(self._journal.migration)), str(self._journal.directory)
        return protocol.Prepared(socket, str(self._images), log, self._terminal.path, self._lodging.name)

    async def _warm(self, *, lazy: bool = False) -> tuple[criu.Running, Hold]:
        """A restore that only waits for its images: forked, scoped and hooked before the freeze."""
        directory = self._journal.directory
        hold = self._hold = Hold(directory, "post-restore", Record.RESUMING.value)
        log = images.link_log(directory / "restore.log", self._images)
        (pidfile := self._images / "pid").unlink(missing_ok=True)
        arguments = criu.restore_arguments(
            work=self._images, log=log, options=self._options, script=str(hold.script), pidfile=pidfile, lazy=lazy
        )
        adopt_orphans()
        maker = namespace.maker(directory, *self._namespace) if self._namespace else []
        wrapper = self._terminal.around(self._lodging.around(), maker)
        with self._lodging.streams() as (streams, more):
            running = self._restore = await criu.spawn_waiting(
                self._settings.criu, arguments + more, log, wrapper=wrapper, descriptors=streams
            )
        self._tell(f"$ {running.command}")
        self._journal.note("criu", what="restore", **running.identity)
        if self._namespace:
            await namespace.made(directory, running)
        return running, hold

    async def accept(self, request: protocol.Accept) -> protocol.Nothing:
        """Start a page server for a round."""
        stream = await self._streams.get(request.stream)
        self._still_accepting()
        async with self._starting:
            self._still_accepting()
            running = await self._arriving.serve(request.round, stream.fileno())
            self._tell(f"$ {running.command}")
            self._journal.note("criu", what="page-server", **running.identity)
        return protocol.Nothing()

    def _still_accepting(self) -> None:
        """Raises WrongOrder once a restore was asked for, and when everything was given up."""
        if self._journal.last is not Record.PREPARED or self._journal.facts("round"):
            raise WrongOrder("the migration is past receiving anything, or was given up")

    async def accept_done(self, request: protocol.AcceptDone) -> protocol.Accepted:
        """Wait until a round is here whole. Raises CriuError, BrokenRounds."""
        return await self._index(request, await self._arriving.served(request.round))

    async def arrived(self, request: protocol.Arrived) -> protocol.Accepted:
        """A round has come by itself. Raises NotWhole, BrokenRounds."""
        self._still_accepting()
        return await self._index(request, await self._arriving.verified(request.round, request.images))

    async def _index(self, done: Union[protocol.AcceptDone, protocol.Arrived], size: int) -> protocol.Accepted:
        if self._fill is not None:
            await self._fill.add_round(done.round)
        return protocol.Accepted(size, 0.0 if done.final else await self._arriving.kept(done.round))

    async def receive_images(self, request: protocol.ReceiveImages) -> protocol.Moved:
        """The images that are no memory."""
        self._still_accepting()
        return await self._arriving.unpack(request.round, request.stream)

    async def restore(self, request: protocol.Restore) -> protocol.Restored:
        """Restore the tree and hold it; HELD is on disk on return. Raises CriuError: then nothing of it is left."""
        directory = images.round_directory(self._images, request.round)
        self._still_accepting()
        self._journal.note("round", number=request.round)
        running, hold, started = self._restore, self._hold, time.monotonic()
        if running is None or hold is None:
            raise JournalError("there is no restore that waits")
        if self._fill is not None:
            self._tell(f"{await self._fill.mark()} bytes are filled in after the resume")
        self._terminal.fit(directory)
        self._lodging.lift(running.process.pid)
        floating.take(self._journal)
        instants.at("restore")
        criu.go(running, directory)
        keeping = asyncio.ensure_future(self._arriving.all_kept(self.files.ledger))
        reached = await hold.reached_before(running.process.wait())
        seconds = time.monotonic() - started
        disk_seconds = await keeping
        if not reached:
            await running.ended()
            raise criu.CriuError("criu ended before its hold, without an error", str(running.log))
        try:
            lost = self._pin(directory, running)
        except (OSError, TreeChanged) as error:
            raise criu.CriuError(f"the restored tree did not stay in its hold: {error}", str(running.log)) from error
        instants.at("held")
        return protocol.Restored(seconds, self._root, lost, disk_seconds)

    def _pin(self, round_: Path, running: criu.Running) -> tuple[str, ...]:
        """HELD: all are here, and pinned: descendants of ours, for the pinned may be killed. What is lost, in words."""
        inner = sorted(images.task_states(round_))
        pids = namespace.outside(self._journal.directory, [self._root, *inner], below=running.process.pid)
        if len(pids) <= len(inner) or not set(process.tree_pids(os.getpid())).issuperset(pids[1:]):
            raise TreeChanged("one of its processes is not there")
        self._tasks.close()
        self._tasks.pin(process.task_facts(pid) for pid in pids[1:])
        lost = traits.bring_back(round_, pids[1:])
        self._terminal.foreground(round_, pids[0], pids[1:])
        note_living(self._journal, running.process.pid, self._tasks)
        self._journal.write(Record.HELD, tasks=self._tasks.identities, root=pids[0])
        if first := namespace.init_of(self._journal.directory):
            self._tasks.pin([process.task_facts(first[0])])  # it ends with them
        return lost

    @property
    def _root(self) -> int:
        """As this host has it; as the images have it before it is known."""
        held = self._journal.facts(Record.HELD.value)
        return int(held.get("root", self._journal.facts(Record.PREPARED.value)["root"]))

    async def resume(self, request: protocol.Resume) -> protocol.Resumed:
        """Let the tree run; only asked for with the source's proof of death. Raises NotRunning: the images are kept.

        A restore that failed before it detached is done once more from the images, if no task of it exists (rule 5).
        """
        started = time.monotonic()
        instants.at("resume asked")
        if request.killed_tasks < 1:
            raise JournalError("resume needs the source's proof of death")
        if not self._journal.has(Record.HELD):
            raise WrongOrder("there is no held tree to resume")
        images.spare_room(self._images)
        self._journal.write(Record.RESUMING, boot=process.boot_id())
        instants.at("resuming")
        floating.announce(self._journal)
        if not await self._release():
            self._tell("the held restore was lost: restoring once more from the images")
            await self.restore_again()
        pid = self.resumed()
        instants.at("resumed")
        return protocol.Resumed(pid, time.monotonic() - started)

    def resumed(self) -> int:
        """Write RESUMED, criu having succeeded: the tree's PID here. It may have ended by itself since."""
        pid = self._restored_pid()
        self._journal.write(Record.RESUMED, pid=pid)
        floating.opened(self._journal)
        lodging.hold(self._journal.directory)
        self._terminal.runs(self._tell)
        if self._fill is not None:
            self._fill.resumed()
        return pid

    async def fill(self) -> protocol.Filled:
        """Wait until memory is whole. Raises FillError: the tree is stopped for now, or (PagerGone) its memory lost."""
        if not self._journal.has(Record.RESUMED):
            raise WrongOrder("the tree does not run yet")
        if self._fill is None:
            return protocol.Filled(0, 0.0, 0, 0.0, memory.taken(self._images, self._pids(), shared=True))
        try:
            filled, peak = await memory.peak_until(self._fill.done(), self._images, self._pids)
        except PagerGone:
            stop_tree(self._journal)
            raise
        return dataclasses.replace(filled, peak_bytes=peak)

    def _pids(self) -> list[int]:
        """The tree's processes, those that it has started since it runs here too."""
        with contextlib.suppress(process.NoSuchProcess):
            return process.tree_pids(self._restored_pid())
        return []

    async def _release(self) -> bool:
        """Let the held criu finish. False when it failed without leaving a task."""
        if self._restore is None or self._hold is None:
            return False
        if self._restore.process.returncode is None:
            let_go(self._hold, self._journal)
        status = await ended(self._restore)
        if status == 0:
            return True
        if criu.passed_hold(self._restore.log):
            raise NotRunning(f"criu ended with status {status} after it had let the tree go; see {self._restore.log}")
        await self.clear()
        return False

    async def clear(self, tasks: Iterable[tuple[int, int]] = ()) -> None:
        """Kill these tasks, (PID, start time), and what else a killed criu has left: none of ours lives, so whatever
        descends from us is of the tree, its namespace, or a hook's script. Raises NotRunning when something stays."""
        self._tasks.pin(task for task in map(process.task_facts, (pid for pid, _ in tasks)))
        self._tasks.pin_descendants(besides=self._fill.session if self._fill is not None else 0)
        if len(self._tasks):
            await self._tasks.cleared()

    async def restore_again(self) -> None:
        """Restore from the kept images and let it run: RESUMING is on disk, no task exists. Raises NotRunning."""
        directory = images.round_directory(images.spare_room(self._images), int(self._journal.facts("round")["number"]))
        if self._hold is not None:
            self._hold.close()
        await self._close_fill()
        forget(self._journal.directory)
        running, hold = await self._warm()
        floating.take(self._journal, announced=True)
        criu.go(running, directory)
        if await hold.reached_before(running.process.wait()):  # RESUMING is on disk: this hook succeeds at once
            with contextlib.suppress(OSError):  # its holder has gone, and then its terminal
                self._terminal.foreground(directory, self._root, sorted(images.task_states(directory)))
            hold.go()
        try:
            await ended(running)
            await running.ended()
        except criu.CriuError as error:
            if not criu.passed_hold(running.log):
                await self.clear()
            raise NotRunning(f"restoring once more failed: {error.message}") from error
        traits.bring_back(directory, self._pids())

    def _restored_pid(self) -> int:
        return namespace.restored(self._journal.directory, self._images / "pid") or self._root

    async def contact_lost(self) -> None:
        """End of input. Before HELD: undo (see `abort`). After it the tree goes at the end of the lease: not images."""
        self._terminal.contact_lost()
        alone = rules.alone(self._journal.last)
        if alone is rules.Alone.DISCARD:
            await self.abort("contact lost", source_aborted=False)
        elif alone is rules.Alone.WAIT:
            await asyncio.sleep(self._journal.facts(Record.PREPARED.value)["lease"])
            # a `resume` that came with the end of input is decided meanwhile, and then it is no held tree any more
            still_held = self._journal.last is Record.HELD
            if still_held and self._hold is not None and self._restore is not None:
                self._hold.veto()
                await ended(self._restore)
                await self.clear()
        if rules.alone(self._journal.last) is rules.Alone.FINISH:
            await self.finish(patience=math.inf)

    async def abort(self, reason: str, source_aborted: bool) -> protocol.Leftovers:
        """Discard everything. Raises JournalError where that could lose the only copy, NotRunning where tasks stay."""
        if self._journal.has(Record.DONE):
            return protocol.Leftovers()
        async with self._starting:
            if not rules.may_discard(self._journal.last, source_aborted=source_aborted):
                raise JournalError("the tree is held here: only the source's recorded ABORT may discard it")
            if not self._journal.has(Record.ABORT):
                self._journal.write(Record.ABORT, reason=reason)
        self._streams.hang_up()
        if self._hold is not None:
            self._hold.veto()
        if self._fill is not None:
            # before criu is waited for, which may itself wait for a page
            await self._fill.abandon()
        if self._restore is not None:
            if self._restore.process.stdin is not None:
                self._restore.process.stdin.close()  # one that still waits for its images ends here
            await ended(self._restore)
        await self._arriving.ended()
        self._tasks.close()
        await self.clear()
        await self._close_fill()
        await self._jobs.ended()  # they have files open in what is to be removed
        shared = self._journal.facts(Record.PREPARED.value).get("shared", "")
        left = self._clean() + images.remove_shared(shared, self._journal.migration) + self.files.ledger.undo()
        self._journal.write(Record.DONE)
        self._journal.close()
        return protocol.Leftovers(left)

    async def finish(self, *, patience: float = PATIENCE) -> protocol.Leftovers:
        """After RESUMED: remove the images and all else that is ours.

        A fill that has stood still for `patience` seconds is left over, with all that it needs."""
        instants.at("clean")
        if not self._journal.may(Record.DONE):
            raise WrongOrder("the migration is not over")
        if self._fill is not None:
            try:
                await self._fill.whole(self._tell, patience=patience)
            except PagerGone:
                pass  # it is found below, as it is with a former agent's
            except FillError as error:
                return protocol.Leftovers((f"memory that is not filled in yet, and the images that it is in: {error}",))
        await self._close_fill()
        lost = memory_lost(self._journal)
        self._streams.hang_up()
        left = self._clean() + self.files.ledger.keep()
        for log in self._journal.directory.glob("*.log"):
            log.unlink()
        self._journal.write(Record.DONE)
        self._journal.close()
        return protocol.Leftovers(left, lost)

    async def _close_fill(self) -> None:
        """No pager is at work when this is done; one of a former agent is waited for as well."""
        if self._fill is not None:
            await self._fill.close()
            self._fill = None
        await wait_for_pager(self._journal.directory)

    def _clean(self) -> tuple[str, ...]:
        self._streams.close()
        if self._hold is not None:
            self._hold.close()
        forget(self._journal.directory)
        for word in (LOCK, namespace.WORD, lodging.WORD):
            (self._journal.directory / word).unlink(missing_ok=True)
        self._tasks.close()
        criu.keep_log(self._journal.directory / "restore.log")
        return images.remove_place(self._images) + floating.over(self._journal)
