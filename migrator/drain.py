"""A drain: many migrations away from this host, in the order of a plan, and all of them back.

Decides what may begin when, and where to; what a migration is it does not know, nor how one looks. Everything that
touches a host is `Work`, so that the order of things can be tested without one.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol

from migrator import errors, words
from migrator.phases import Observer, Report
from migrator.plan import Obstacle
from migrator.roomiest import Targets
from migrator.runbook import Move, Runbook, Selection
from migrator.selection import Found, NotFound
from migrator.standing import Ledger, Stage, Standing

RANKS = (range(71, 72), range(70, 71), range(72, 73), range(1, 2), range(128, 256), range(30, 50), range(10, 30),
         range(2, 3), range(3, 4), range(1))  # fmt: skip
"""Exit codes, the worst first."""


def worst(codes: Sequence[int]) -> int:
    """The exit code of many migrations together."""
    return min(codes, key=lambda code: next((at for at, rank in enumerate(RANKS) if code in rank), 3), default=0)


@dataclasses.dataclass(frozen=True)
class Limits:
    """How a drain goes about it."""

    parallel: int = 1
    max_total_downtime: float = 0.0
    """Seconds, over all of them; 0: no limit."""
    keep_going: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One process of a plan."""

    move: Move
    found: Found
    standing: Standing

    @property
    def label(self) -> str:
        """How it is called."""
        return self.move.name if self.move.name.endswith(str(self.found.pid)) else f"{self.move.name} {self.found.pid}"


@dataclasses.dataclass(frozen=True)
class Checked:
    """One preflight of a dry run."""

    job: Job
    target: str
    obstacles: tuple[Obstacle, ...] = ()
    error: errors.MigrateError | None = None

    @property
    def exit_code(self) -> int:
        """That of `migrate check`."""
        if self.error is not None:
            return self.error.exit_code
        return errors.PreflightError.exit_code if any(one.stops for one in self.obstacles) else 0


class Work(Protocol):
    """What a drain does to hosts."""

    boot: str
    """Id of this host's boot."""

    def find(self, selection: Selection) -> tuple[Found, ...]:
        """Raises NotFound."""

    async def free_memory(self, target: str) -> int:
        """Bytes. Raises MigrateError."""

    async def check(self, move: Move, pid: int, target: str) -> tuple[Obstacle, ...]:
        """Raises MigrateError."""

    async def check_back(self, move: Move, pid: int, target: str) -> tuple[Obstacle, ...]:
        """As `check`, from there to here."""

    async def move(self, move: Move, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        """Raises MigrateError, or CancelledError after all was undone. `max_downtime` 0: as its options say."""

    async def bring_back(self, move: Move, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        """As `move`, from there to here."""


class Audience(Protocol):
    """Who sees a drain."""

    def observer(self, job: Job, target: str) -> Observer:
        """A migration begins; what happens in it goes to the observer."""

    def failed_to_move(self, job: Job, error: errors.MigrateError) -> None:
        """Why it did not move, or may not have."""

    def ended(self, job: Job, standing: Standing) -> None:
        """It is over, however it went."""

    def left(self, job: Job, why: str) -> None:
        """It was not tried."""

    def missing(self, move: Move, why: str) -> None:
        """The plan names it, and it is not here."""

    def already(self, job: Job) -> None:
        """A former run has moved it."""

    def note(self, text: str) -> None:
        """A line for the operator."""

    def checked_all(self, checks: Sequence[Checked]) -> None:
        """The result of a dry run."""

    expected: int
    """Processes that are to be moved."""


class Drain:
    """One run of a plan."""

    def __init__(self, runbook: Runbook, ledger: Ledger, limits: Limits, work: Work, audience: Audience) -> None:
        self._runbook = runbook
        self._ledger = ledger
        self._limits = limits
        self._work = work
        self._audience = audience
        self._targets = Targets(work)
        self.codes: list[int] = []
        """Exit code of each process, and of each move that has none."""
        self._spent = 0.0
        self._stopped = ""
        self._returning = False
        self._failed: set[str] = set()

    # --- what there is to do -----------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """The processes that are to be moved, and those that were: in the plan's order."""
        found: list[Job] = []
        for move in self._runbook.moves:
            here: dict[str, Job] = {}
            missing = ""
            try:
                for found_one in self._work.find(move.selection):
                    new = Standing(move.name, found_one.pid, found_one.started, self._work.boot, found_one.name)
                    here[new.key] = Job(move, found_one, self._ledger.get(new.key) or new)
            except NotFound as error:
                missing = str(error)
            before = [one for one in self._ledger.entries if one.move == move.name]
            for one in before:
                gone = Job(move, Found(one.pid, one.started, one.name), one)
                if one.key not in here and one.stage is Stage.MOVED:
                    here[one.key] = gone
                elif one.key not in here and one.stage is Stage.MOVING:
                    hint = "a former run was cut off in it: `migrate recover` finds out where the process is"
                    text = f"{gone.label} is not here, and not known to have moved"
                    self._failed_with(gone, errors.InDoubt(text, hint=hint))
            if missing and not here and move.name not in self._failed:
                self._audience.missing(move, missing)
                self.codes.append(errors.NoProcess.exit_code)
                self._failed.add(move.name)
            found += here.values()
        twice = collections.Counter(job.standing.key for job in found)
        for job in found:
            if twice[job.standing.key] > 1:
                raise errors.UsageError(f"pid {job.found.pid} is meant by two moves, one of them {job.move.name!r}")
        return found

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every process of the plan that is known, from former runs too."""
        return self._ledger.entries

    async def dry_run(self) -> int:
        """Every preflight, on all targets; nothing is changed. The exit code: 0 where each has a target to go to."""
        room = asyncio.Semaphore(max(self._limits.parallel, 1))

        async def check(job: Job, target: str) -> Checked:
            async with room:
                try:
                    return Checked(job, target, await self._work.check(job.move, job.found.pid, target))
                except errors.MigrateError as error:
                    return Checked(job, target, error=error)

        waiting = [job for job in self.jobs() if job.standing.stage is not Stage.MOVED]
        done = await asyncio.gather(*(check(job, target) for job in waiting for target in job.move.targets))
        by_job: dict[str, list[int]] = {}
        for one in done:
            by_job.setdefault(one.job.standing.key, []).append(one.exit_code)
        self.codes += (0 if 0 in codes else worst(codes) for codes in by_job.values())
        self._audience.checked_all(done)
        return worst(self.codes)

    # --- moving ------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Move everything; the exit code. Raises CancelledError after what was under way has been undone."""
        jobs = self.jobs()
        waiting = [job for job in jobs if job.standing.stage is not Stage.MOVED]
        for job in jobs:
            if job not in waiting:
                self._audience.already(job)
                self.codes.append(0)
        if self._failed and not self._limits.keep_going:
            self._stopped = "not all that the plan names was found"
        self._audience.expected = len(jobs)
        await self._schedule(waiting)
        return worst(self.codes)

    async def bring_back(self) -> int:
        """Bring back what has moved, the last first; the exit code."""
        moves = {move.name: move for move in self._runbook.moves}
        away = [one for one in reversed(self._ledger.entries) if one.stage is Stage.MOVED]
        waiting = []
        for one in away:
            if one.move not in moves:
                where = f"pid {one.target_pid} on {one.target}"
                self._audience.note(f"{where} was moved by {one.move!r}, which the plan no longer has: left there")
                continue
            move = moves[one.move]
            # in the other order: what it came after comes after it
            later = tuple(other.name for other in self._runbook.moves if move.name in other.after)
            back = dataclasses.replace(move, targets=(one.target,), after=later)
            waiting.append(Job(back, Found(one.target_pid, 0, one.name), one))
        self._returning = True
        self._audience.expected = len(waiting)
        await self._schedule(waiting)
        return worst(self.codes)

    async def _schedule(self, waiting: list[Job]) -> None:
        running: dict[asyncio.Task[None], list[Job]] = {}
        try:
            while True:
                for group in self._ready(waiting, [job for jobs in running.values() for job in jobs]):
                    waiting = [job for job in waiting if job not in group]
                    running[asyncio.create_task(self._begin(group))] = group
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        for job in waiting:
            self._audience.left(job, self._stopped or "what it is to come after did not move")
        if waiting and not self._failed:  # nothing failed but the budget
            self.codes.append(errors.NotConverging.exit_code)

    def _ready(self, waiting: list[Job], running: list[Job]) -> list[list[Job]]:
        """What may begin now: one by one, or all that go together."""
        ready: list[list[Job]] = []
        if self._stopped:
            return ready
        not_yet = {job.move.name for job in (*waiting, *running)} | self._failed
        taken = len(running)
        for group in _groups(waiting):
            # a group that is larger than the limit goes alone
            if not_yet.intersection(group[0].move.after) or (taken and taken + len(group) > self._limits.parallel):
                continue
            ready.append(group)
            taken += len(group)
        return ready

    async def _begin(self, group: list[Job]) -> None:
        """Move one process, or all that go together, to the first of its targets that takes them."""
        need = sum(job.found.memory for job in group)
        targets, errors_of = await self._targets.roomiest(group[0].move.targets)
        for target, error in errors_of.items():
            self._audience.note(f"{target}: {error.message}")
        last = next(iter(errors_of.values()), None)
        for target in targets:
            try:
                if len(group) > 1:
                    await self._all_checked(group, target)
                self._targets.take(target, need)
                # once some of a group are on their way no other target is tried: they go to one
                more = target != targets[-1] and len(group) == 1
                await asyncio.gather(*(self._move(job, target, more=more) for job in group))
                return
            except _NotThere as refused:
                last = refused.error
                self._targets.take(target, -need)
        for job in group:
            self._failed_with(job, last or errors.ConnectError("no target can be reached"))

    async def _all_checked(self, group: list[Job], target: str) -> None:
        """Raises _NotThere unless each of them can go there."""
        check = self._work.check_back if self._returning else self._work.check
        checks = (check(job.move, job.found.pid, target) for job in group)
        for job, found in zip(group, await asyncio.gather(*checks, return_exceptions=True), strict=True):
            if isinstance(found, errors.MigrateError):
                raise _NotThere(found)
            if isinstance(found, BaseException):
                raise found
            if stops := sum(one.stops for one in found):
                what = f"{job.label} can't go to {target}, and they go together: {words.count(stops, 'obstacle')}"
                raise _NotThere(errors.PreflightError(what, obstacles=found))

    async def _move(self, job: Job, target: str, *, more: bool) -> None:
        """Raises _NotThere, with nothing done, where there are `more` targets to try."""
        moving = dataclasses.replace(job.standing, stage=Stage.MOVING, target=target)
        self._ledger.set(moving)
        began = time.monotonic()
        observer = self._audience.observer(job, target)
        try:
            work = self._work.bring_back if self._returning else self._work.move
            report = await work(job.move, job.found.pid, target, self._downtime_left(), observer)
        except errors.MigrateError as error:
            if more and isinstance(error, (errors.ConnectError, errors.PreflightError)):
                self._ledger.set(job.standing)
                raise _NotThere(error) from error
            self._failed_with(dataclasses.replace(job, standing=moving), error, time.monotonic() - began)
            return
        except BaseException:
            self._ledger.set(job.standing)
            raise
        self._spent += report.downtime_seconds
        code = errors.EXIT_LEFTOVERS if report.leftovers else 0
        ended = dataclasses.replace(
            moving, stage=Stage.RETURNED if self._returning else Stage.MOVED, target_pid=report.target_pid,
            migration=report.id, downtime=report.downtime_seconds, seconds=time.monotonic() - began, exit_code=code,
            message="",
        )  # fmt: skip
        self._ledger.set(ended)
        self.codes.append(code)
        self._audience.ended(job, ended)
        most = self._limits.max_total_downtime
        if most and self._spent >= most:
            self._stopped = f"{words.seconds_text(self._spent)} of downtime are spent, and {most:g} s was the limit"

    def _downtime_left(self) -> float:
        """Seconds; 0: no limit."""
        most = self._limits.max_total_downtime
        return max(most - self._spent, 0.001) if most else 0.0

    def _failed_with(self, job: Job, error: errors.MigrateError, seconds: float = 0.0) -> None:
        """It did not move, or nobody knows: kept, and told."""
        stage = Stage.MOVED if self._returning and error.exit_code not in (70, 71, 72) else Stage.FAILED
        entry = dataclasses.replace(
            job.standing, stage=stage, seconds=seconds, exit_code=error.exit_code, message=error.message
        )
        self._ledger.set(entry)
        self.codes.append(error.exit_code)
        self._failed.add(job.move.name)
        self._audience.failed_to_move(job, error)
        self._audience.ended(job, entry)
        if not self._limits.keep_going:
            self._stopped = f"{job.label} failed (--keep-going goes on with the others)"


class _NotThere(Exception):
    """This target does not take it; nothing was done."""

    def __init__(self, error: errors.MigrateError) -> None:
        super().__init__(error.message)
        self.error = error


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that begin together, in their order."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.move.name if job.move.together else job.standing.key, []).append(job)
    return list(groups.values())
