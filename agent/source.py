"""The source's half of a migration on this host: pre-dump, dump and hold, release or thaw. It knows no other host.

The order in which its methods may be called is the journal's. Nothing here signals criu (DESIGN: the commit, rule 6).
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import time
from pathlib import Path
from typing import BinaryIO, Callable, Optional, cast

from agent import criu, ending, floating, freezer, images, instants, ours, process, protocol, suspension, traits
from agent.deposing import until
from agent.hold import Hold
from agent.inside import Home
from agent.journal import Journal, Record, WrongOrder, prune
from agent.lock import TaskLocks
from agent.prepared import begun
from agent.sending import Sending
from agent.settings import Settings
from agent.standing import refuse_held
from agent.streams import Jobs, Taken
from agent.tasks import Tasks, TreeChanged
from agent.throttle import Throttle

_PLAIN_IMAGES = 256 * 1024 * 1024
"""Room for the images that are no memory, ghost files apart: they take some kB a task and a mapping."""


class Vetoed(Exception):
    """The dump was given up on request."""


class Ended(process.NoSuchProcess):
    """The process ended by itself, or was killed, before it could be moved: there is nothing to run on."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.args = (f"process {pid} has ended, or was killed, before it was moved",)


class Source:
    """One migration away from this host."""

    def __init__(self, settings: Settings, begin: protocol.Begin, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._begin = begin
        self._tell = tell
        self._on_disk = begin.place.kept and not begin.place.memory
        self._images = settings.place(begin.migration, on_disk=self._on_disk, directory=begin.place.directory)
        self._tasks = Tasks()
        self._home = Home(0)
        self._locks = TaskLocks(settings.locks, begin.migration)
        self._hold: Optional[Hold] = None
        self._criu: Optional[criu.Running] = None
        self._stopped: tuple[int, ...] = ()
        self._litter = _litter()
        self._jobs = Jobs()
        self._starting = asyncio.Lock()  # held while a criu starts, so that none starts behind an abort's back
        self._journal: Journal
        self._streams = Taken()
        self._throttle: Optional[Throttle] = None
        self.files = Sending(
            begin.pid, self._images / "files", settings.rsync, self._streams, self._jobs,
            lambda: self._journal.last in (Record.BEGIN, Record.FROZEN),
        )  # fmt: skip

    @property
    def root(self) -> int:
        """PID of the tree's root."""
        return self._begin.pid

    async def begin(self) -> protocol.Prepared:
        """Lock and pin the tree, open the journal, make room. Undoes itself when it fails."""
        facts = process.tasks_of(self._begin.pid)
        if facts[0].start_time != self._begin.start_time:
            raise TreeChanged(f"process {self._begin.pid} is not the one that was inspected")
        self._locks.take(task.pid for task in facts)
        self._home = Home.of(self._begin.pid)
        try:
            refuse_held(self._settings, ((task.pid, task.start_time) for task in facts))
            self._tasks.pin(facts, running=True)
            prune(self._settings.state)
            self._journal = begun(self._settings, self._begin, facts, on_disk=self._on_disk)
        except BaseException:
            self._locks.release()
            self._tasks.close()
            raise
        try:
            room = _PLAIN_IMAGES + 2 * self._begin.options.ghost_limit
            if self._begin.place.kept:
                room = self._begin.place.memory + room if self._begin.place.memory else 0
            images.make_place(self._images, memory=room if os.geteuid() == 0 else 0)
            self._streams.listen(self._settings.socket(self._begin.migration))
            await suspension.suspend(self._journal, self._begin.unit)
        except BaseException:
            self._journal.write(Record.ABORT, reason="it could not begin")
            await suspension.give_back(self._journal, gone=False)
            self._clean()
            self._journal.write(Record.DONE)
            self._journal.close()
            raise
        return protocol.Prepared(
            str(self._settings.socket(self._begin.migration)), str(self._images), str(self._journal.directory)
        )

    async def _spawn(
        self, arguments: Callable[[Path], list[str]], log: Path, directory: Path, descriptor: Optional[int]
    ) -> criu.Running:
        """Start a criu with the arguments for the round's directory, by the path that it has where the tree lives."""
        async with self._starting:
            if self._journal.has(Record.ABORT):
                raise Vetoed("the migration was given up")
            passed = () if descriptor is None else (descriptor,)
            with self._home.view(directory) as (path, more):
                running = await criu.spawn(
                    self._settings.criu, arguments(path), log, descriptors=passed + more, way=self._home.way
                )
            self._tell(f"$ {running.command}")
            self._criu = running
            self._journal.note("criu", what=log.stem, **running.identity)
        return running

    def _new_round(self, number: int) -> Path:
        """The directory of a round that is about to be dumped. Raises WrongOrder."""
        directory = images.round_directory(self._images, number)
        if self._journal.last is not Record.BEGIN or directory.exists():
            raise WrongOrder(f"round {number} can't be dumped now: it was before, or the migration is past that")
        directory.mkdir(mode=0o700)
        if self._begin.place.kept and not self._begin.place.shared and number > 1:
            images.give_back(images.round_directory(self._images, number - 1))  # it has arrived
        return directory

    def _previous(self, number: int) -> str:
        return f"../{number - 1}" if number > 1 and self._begin.track_memory else ""

    async def pre_dump(self, request: protocol.PreDump) -> protocol.Dumped:
        """One pre-copy round. Raises CriuError or Ended; the tree runs on whatever happens."""
        stream = await self._pages(request.stream)
        directory = self._new_round(request.round)
        log = self._journal.directory / f"pre-dump-{request.round}.log"
        arguments = functools.partial(
            criu.dump_arguments,
            pid=self._home.number(self._begin.pid), socket=stream, log=log, options=self._begin.options,
            previous=self._previous(request.round), pre=True,
        )  # fmt: skip
        started = time.monotonic()
        running = await self._spawn(arguments, log, directory, stream)
        instants.at(f"round {request.round}")
        await self._end_of(running)
        seconds = time.monotonic() - started
        self._criu = None
        statistics = criu.read_statistics(directory / "stats-dump")
        size = statistics.pages * os.sysconf("SC_PAGE_SIZE")
        return protocol.Dumped(statistics.pages, size, seconds, statistics.frozen_seconds, await self._kept(directory))

    async def _pages(self, name: str) -> Optional[int]:
        """The descriptor that a dump's pages go to; None where they stay here."""
        return (await self._streams.get(name)).fileno() if name else None

    async def _kept(self, directory: Path) -> tuple[protocol.Image, ...]:
        """The images of a round that stays here."""
        if not self._begin.place.kept:
            return ()
        shared = self._begin.place.shared
        run = asyncio.get_running_loop().run_in_executor
        return await run(None, lambda: images.listed(directory, durable=shared))

    async def _end_of(self, running: criu.Running) -> None:
        """Wait for criu. Raises CriuError, or Ended where that is why."""
        try:
            await running.ended()
        except criu.CriuError:
            self._root_lives()
            raise

    def _root_lives(self) -> None:
        """Raises Ended."""
        if not process.alive(self._begin.pid, self._begin.start_time):
            raise Ended(self._begin.pid)

    async def throttle(self, request: protocol.Throttle) -> protocol.Throttled:
        """Less processor time for the tree until it is frozen. Raises ThrottleError, Ended or WrongOrder."""
        if not 0 < request.share <= 1:
            raise WrongOrder(f"a share of {request.share} is none")
        async with self._starting:
            if self._journal.last is not Record.BEGIN:
                raise WrongOrder("the migration is past being throttled")
            if self._throttle is None:
                self._throttle = Throttle(self._journal.directory, self._begin.migration)
            try:
                return protocol.Throttled(await self._throttle.limit(self._begin.pid, request.share))
            except process.NoSuchProcess:
                self._root_lives()
                raise

    async def _unthrottle(self) -> tuple[str, ...]:
        return await self._throttle.release() if self._throttle is not None else ()

    async def dump(self, request: protocol.Dump) -> protocol.Held:
        """Freeze, dump what is left, hold. Raises CriuError, Ended, TreeChanged or Vetoed: then the tree runs again."""
        stream = await self._pages(request.stream)
        directory = self._new_round(request.round)
        self._journal.write(Record.FROZEN)
        floating.shut(self._journal)
        instants.at("freeze")
        log = self._journal.directory / "dump.log"
        hold = self._hold = Hold(self._journal.directory, "post-dump", Record.COMMIT.value)
        arguments = functools.partial(
            criu.dump_arguments,
            pid=self._home.number(self._begin.pid), socket=stream, log=log, options=self._begin.options,
            previous=self._previous(request.round), track=self._begin.track_memory, script=str(hold.script),
        )  # fmt: skip
        started = time.monotonic()
        running = await self._spawn(arguments, log, directory, stream)
        instants.at("dump")
        lifting = asyncio.ensure_future(self._lift())
        reached = await hold.reached_before(running.process.wait())
        lifting.cancel()
        if not reached:
            await self._end_of(running)
            raise criu.CriuError("criu ended before its hold, without an error", str(log))
        if self._journal.has(Record.ABORT):
            raise Vetoed("the dump was given up")
        seconds = time.monotonic() - started
        if self._home.init:
            running.follow()
            self._journal.note("criu", what=log.stem, **running.identity)
        hook = ours.hook_below(running.identity["pid"], str(hold.script))
        self._journal.jot("hook", **hook)
        try:
            tasks = tuple(process.task_facts(pid) for pid in process.tree_pids(self._begin.pid))
        except process.NoSuchProcess as error:
            self._root_lives()
            raise TreeChanged(f"process {error.pid} was killed while it was held") from error
        self._tasks.forget_dead()
        self._tasks.pin(tasks)
        self._protect(directory)
        floating.locked(self._journal, directory)
        if not running.alive:
            # it may have let the tree run before there was a SIGSTOP: what was dumped is out of date
            await running.ended()
            raise criu.CriuError("criu ended in its hold, without an error", str(log))
        traits.carry(directory, tasks)
        orphaned = traits.forget_parent(directory, map(self._home.number, tasks[0].tids))
        # how many pages it took stands in stats-dump only after the hook (CRIU.md): the target counts them
        return protocol.Held(tasks, seconds, images.size(directory), await self._kept(directory), orphaned)

    async def _lift(self) -> None:
        if self._throttle is not None:
            await self._throttle.lift_when_stopped(self._begin.pid)

    def _protect(self, directory: Path) -> None:
        """Queue a SIGSTOP to every task: should criu be killed now, the kernel would let the tree run (rule 7).

        Tasks that were stopped already are left alone, so that a rollback does not continue them.
        """
        states = images.task_states(directory)
        quiet = (images.TASK_STOPPED, images.TASK_DEAD, images.TASK_ZOMBIE)
        self._stopped = tuple(pid for pid in self._tasks.pids if states.get(self._home.number(pid)) not in quiet)
        if self._hold is not None:
            stopped = (task for task in self._tasks.identities if task[0] in self._stopped)
            self._hold.will_continue(stopped, self._home.number)
        self._tasks.signal(signal.SIGSTOP, self._stopped)
        freezer.freeze(self._journal.directory, self._begin.pid, self._tasks.pids + self._home.init)

    async def send_images(self, request: protocol.SendImages) -> protocol.Moved:
        """This round's images, memory excepted, on a stream."""
        directory = images.round_directory(self._images, request.round)
        if self._hold is None or not self._hold.held or not directory.exists():
            raise WrongOrder(f"round {request.round} was not dumped to its hold")
        stream = await self._streams.get(request.stream)

        def run() -> protocol.Moved:
            with stream.makefile("wb", buffering=256 * 1024) as out:
                moved = images.send(directory, cast(BinaryIO, out))
            stream.shutdown(socket.SHUT_WR)
            return moved

        moved = await self._jobs.run(run)
        instants.at("images sent")
        return moved

    async def commit(self) -> protocol.Killed:
        """The point of no return: COMMIT on disk, criu released, every task killed for good, KILLED on disk.

        On return no thread of the tree can execute its program any more, which is all that the target has to know;
        that the kernel has taken everything apart, which takes longer the more memory there was, `finish` waits for.
        Raises WrongOrder, CriuError, Ended or TreeChanged, and then there is no COMMIT.
        """
        instants.at("commit asked")
        if self._hold is None or not self._hold.held or self._criu is None or self.committed:
            raise WrongOrder("there is no held tree to commit")
        if not self._criu.alive:
            raise criu.CriuError("criu died in its hold", str(self._criu.log))
        self._root_lives()
        if not self._tasks.living.issuperset(self._stopped):
            raise TreeChanged("a task of the tree was killed while it was held")
        started = time.monotonic()
        self._journal.write(Record.COMMIT, tasks=self._tasks.identities)
        instants.at("committed")
        self._hold.go()
        self._tasks.signal(signal.SIGKILL)
        await self._tasks.never_run_again()
        floating.leave(self._journal)
        freezer.thaw(self._journal.directory)
        self._journal.write(Record.KILLED)
        instants.at("source killed")
        return protocol.Killed(len(self._tasks), time.monotonic() - started)

    @property
    def committed(self) -> bool:
        """Whether there is no way back."""
        return self._journal.has(Record.COMMIT)

    async def abort(self, reason: str) -> protocol.Leftovers:
        """Undo: the tree runs on. Raises JournalError after COMMIT.

        A frozen migration stays unfinished in the journal until `finish`: the target may hold the tree, and waits for
        our word, which `migrate recover` brings it if nobody else does.
        """
        if self._journal.has(Record.DONE):
            return protocol.Leftovers()
        async with self._starting:
            if not self._journal.has(Record.ABORT):
                self._journal.write(Record.ABORT, reason=reason)
        if self._hold is not None:
            if self._criu is not None and not self._criu.alive:
                floating.unlock(self._journal, self._tasks.identities)
            # before the veto, or their parent sees a stop and a continue (rule 7)
            freezer.thaw(self._journal.directory)
            self._tasks.signal(signal.SIGCONT, self._stopped)
            self._hold.veto()
        self._streams.hang_up()
        if (running := self._criu) is not None:
            # a criu that hangs is not killed: before its hold that may cost the tree (DESIGN, 6)
            await until(lambda: not running.alive, f"criu (PID {running.process.pid}) does not end")
        floating.unlock(self._journal, self._tasks.identities)
        # criu killed in its hold has left them stopped, and its hook may not have been there to see
        self._tasks.signal(signal.SIGCONT, self._stopped)
        await self._jobs.ended()  # they have files open in what is to be removed
        left = await self._unthrottle() + await suspension.give_back(self._journal, gone=False) + self._clean()
        if not self._journal.has(Record.FROZEN) or self._begin.place.ice:
            self._close()
        return protocol.Leftovers(left)

    def _close(self) -> None:
        self._journal.write(Record.DONE)
        self._journal.close()

    async def finish(self) -> protocol.Leftovers:
        """After the migration: remove what is left on this host. After `abort`: the target has been told.

        Raises WrongOrder before KILLED or ABORT.
        """
        instants.at("clean")
        if self._journal.has(Record.DONE):
            return protocol.Leftovers()
        if not self._journal.may(Record.DONE):
            raise WrongOrder("the migration is not over")
        if self._journal.has(Record.ABORT):
            left = floating.over(self._journal)  # once more, the target having none any more: neighbours hear it here
            self._close()
            return protocol.Leftovers(left)
        if self._criu is not None and (stays := await ending.stays(self._criu, self._tasks)):
            # it runs on the target: no failure, and no DONE either, so that the rest can be done later
            later = f"once it has, `migrate recover {self._begin.migration}` removes what is left"
            return protocol.Leftovers((f"{stays} does not end: {later}",))
        self._streams.hang_up()
        left = await self._unthrottle() + await suspension.give_back(self._journal, gone=True) + self._clean()
        for log in self._journal.directory.glob("*.log"):
            log.unlink()
        self._close()
        return protocol.Leftovers(left)

    def _clean(self) -> tuple[str, ...]:
        self._streams.close()
        if self._hold is not None:
            self._hold.close()
        left = self._put_away()
        for path in _litter() - self._litter:
            path.unlink(missing_ok=True)
        self._locks.release()
        self._tasks.close()
        return left + floating.over(self._journal)

    def _put_away(self) -> tuple[str, ...]:
        return images.remove_place(self._images)


def _litter() -> set[Path]:
    """criu's sockets for its parasite, which stay behind when it is killed (CRIU.md)."""
    found = Path("/tmp").glob(".criu*")  # noqa: S108 - criu's choice, not ours
    return {path for path in found if path.is_socket() and path.lstat().st_uid == os.geteuid()}
