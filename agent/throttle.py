"""Less processor time for a tree that dirties memory faster than it can be sent, and all of it back again.

Owns a cgroup of ours inside each cgroup that the tree is in, its quota, and the way back. It measures nothing but
processor time, and leaves alone every other controller, limit and member of those cgroups.

**Inside, not beside.** In cgroup v2 ours is a *threaded* child: processor time is shared out in it, while memory, PIDs
and membership of the tree still count where they did. So systemd goes on seeing its unit or session populated (an
emptied scope it would end and remove), a limit on memory still holds, and the way back needs no list of tasks: whatever
is in ours, forked meanwhile or not, belongs to the cgroup around it. In v1 it is a child as any other. Where the `cpu`
controller is not handed down to the tree's cgroup (v2, Debian's default), it is, from the top to there, and taken back.

**Back, whatever happens.** A guard, a few lines of sh in a session of its own, waits at a pipe whose other end only the
agent holds. When the agent lets go, or dies of whatever, the guard lifts the quota, moves everything back and removes
our cgroups. What it has to undo stands in a file beside the journal, written before the act: should the guard be
killed as well, recovery runs the same lines again.

Refused: a process whose threads are in different cgroups, since the way back is one for all of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Optional

from agent import process

WORD = "throttled"
"""File beside the journal: what is to be undone, a line each."""
SCRIPT = "throttle"
"""File beside it: how."""
PERIOD = 10_000
"""Microseconds in which the quota is dealt out. Short, so that criu never waits long for a task to stop."""
LONGEST_PERIOD = 100_000
LEAST_QUOTA = 1_000
"""Microseconds; the kernel's own minimum (kernel/sched/core.c)."""
MEASURED_SECONDS = 0.5
"""For so long it is watched how much processor time the tree takes, before that is cut down."""
LEAST_USE = 0.05
"""Processors; less was not worth to be measured."""
_PASSES = 100

_GUARD = """#!/bin/sh
# Gives a throttled tree its processor time back, and its tasks to the cgroups that they were taken from, as soon as the
# agent lets go of standard input or is dead. What was undone already does no harm.
trap '' HUP INT TERM
exec 2>/dev/null
(echo -1000 >/proc/$$/oom_score_adj)
read -r _
cd {directory} || exit 1
[ -f {word} ] || exit 0
left=0
while read -r what path; do
    case $what in
    cpu)
        set -- "$path"/migrating-*/
        [ -d "$1" ] || echo -cpu >"$path/cgroup.subtree_control"
        ;;
    *)
        (echo max >"$path/cpu.max" || echo -1 >"$path/cpu.cfs_quota_us")
        pass=0
        while [ -d "$path" ] && ! rmdir "$path"; do
            if [ $pass -ge {passes} ]; then left=1; break; fi
            [ $pass -lt 10 ] || sleep 0.1
            pass=$((pass + 1))
            while read -r task; do echo "$task" >"${{path%/*}}/$what"; done <"$path/$what"
        done
        ;;
    esac
done <{word}
[ $left = 1 ] || rm -f {word}
exit $left
"""


class ThrottleError(Exception):
    """The tree's processor time can't be limited. It has all of it."""


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Where cgroups that share out processor time are mounted."""

    mount: Path
    top: str
    """The cgroup that is to be seen there; another one than / in some containers."""
    version: int

    @property
    def tasks(self) -> str:
        """The file of a cgroup's threads."""
        return "cgroup.threads" if self.version == 2 else "tasks"

    def group_in(self, text: str) -> Optional[Path]:
        """The directory of the cgroup that a /proc/PID/cgroup names; None where it can't be seen from here."""
        for line in text.splitlines():
            number, controllers, path = line.split(":", 2)
            if (number == "0") if self.version == 2 else ("cpu" in controllers.split(",")):
                if self.top != "/" and not f"{path}/".startswith(f"{self.top}/"):
                    return None
                inner = path[len(self.top) :] if self.top != "/" else path
                return None if "/.." in inner else self.mount / inner.lstrip("/")
        return None


def hierarchy(mountinfo: str) -> Optional[Hierarchy]:
    """The one that has the cpu controller, from the text of /proc/PID/mountinfo: v1 if it is there, else v2."""
    found = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), [*after.split(" "), "", "", ""][:3]
        if kind == "cgroup" and "cpu" in options.split(","):
            return Hierarchy(Path(fields[4]), fields[3], 1)
        if kind == "cgroup2" and found is None:
            found = Hierarchy(Path(fields[4]), fields[3], 2)
    return found


def _here() -> Hierarchy:
    """Ours. Raises ThrottleError."""
    found = hierarchy(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    if found is None:
        raise ThrottleError("no cgroups are mounted here")
    return found


def _group_of(where: Hierarchy, pid: int) -> Optional[Path]:
    """The cgroup of a process; None when it has ended. Raises ThrottleError when it is in several, or in none."""
    texts = set()
    for tid in process.threads(pid):
        try:
            texts.add(Path(f"/proc/{pid}/task/{tid}/cgroup").read_text(errors="surrogateescape"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    groups = {where.group_in(text) for text in texts}
    if len(groups) > 1:
        raise ThrottleError(f"threads of process {pid} are in different cgroups")
    if groups == {None}:
        raise ThrottleError(f"the cgroup of process {pid} is not to be seen here")
    return groups.pop() if groups else None


def _groups_of(where: Hierarchy, pids: Iterable[int]) -> dict[int, Path]:
    """PID -> cgroup of those that live. Raises ThrottleError."""
    found = {}
    for pid in pids:
        try:
            if process.is_zombie(pid):
                continue
            group = _group_of(where, pid)
        except process.NoSuchProcess:
            continue
        if group is not None:
            found[pid] = group
    return found


def why_not(pids: Iterable[int]) -> str:
    """Why these processes can't be throttled on this host; "" when they can, as far as can be told without trying."""
    try:
        where = _here()
        for group in set(_groups_of(where, pids).values()):
            if not os.access(group, os.W_OK):
                raise ThrottleError(f"cgroup {group} can't be written to")
            if where.version == 2 and "cpu" not in _words(where.mount / "cgroup.controllers"):
                raise ThrottleError("the cgroups of this host have no cpu controller")
            if where.version == 2 and group != where.mount and "invalid" in _words(group / "cgroup.type"):
                raise ThrottleError(f"cgroup {group} is of a type that can't have one inside")
    except ThrottleError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def quota_of(processors: float) -> tuple[int, int]:
    """(quota, period) in microseconds that are so many processors, or the least that the kernel takes."""
    if processors * PERIOD >= LEAST_QUOTA:
        return round(processors * PERIOD), PERIOD
    return LEAST_QUOTA, min(LONGEST_PERIOD, round(LEAST_QUOTA / processors))


async def _processors_used(root: int) -> float:
    """How many processors a tree uses, measured for a while."""

    def ticks() -> dict[int, int]:
        found = {}
        for pid in process.tree_pids(root):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[pid] = int(fields[11]) + int(fields[12])  # utime and stime of proc_pid_stat(5)
        return found

    loop = asyncio.get_running_loop()
    before, started = ticks(), loop.time()
    await asyncio.sleep(MEASURED_SECONDS)
    spent = sum(now - before.get(pid, now) for pid, now in ticks().items())
    return spent / os.sysconf("SC_CLK_TCK") / (loop.time() - started)


class Throttle:
    """The limit on one tree. `release` it whatever happens; who dies before is released by the guard."""

    def __init__(self, directory: Path, migration: str) -> None:
        self._directory = directory
        """The journal's."""
        self._name = f"migrating-{migration}"
        self._where: Hierarchy
        self._ours: dict[Path, Path] = {}
        """The tree's cgroup -> ours in it."""
        self._used = 0.0
        self._guard: Optional[subprocess.Popen[bytes]] = None
        self._grip = -1  # while we hold it the guard waits

    async def limit(self, root: int, share: float) -> float:
        """Let a tree have this share of the processor time that it took. Returns processors.

        Raises ThrottleError when that can't be done, NoSuchProcess when it has ended; then all is as it was.
        """
        try:
            if not self._ours:
                self._where = _here()
                self._used = max(await _processors_used(root), LEAST_USE)
                self._prepare(set(_groups_of(self._where, process.tree_pids(root)).values()))
            quota, period = quota_of(self._used * share)
            for group in self._ours.values():
                self._set(group, str(quota), period)
            self._gather(root)
        except process.NoSuchProcess:
            await self.release()
            raise
        except (OSError, ThrottleError) as error:
            await self.release()
            words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise ThrottleError(words) from error
        return quota / period

    def _prepare(self, groups: Collection[Path]) -> None:
        """Write down what is to be undone, set up the guard, and only then make our cgroups."""
        where = self._where
        ours = {group: group / self._name for group in groups}
        enable: list[Path] = []
        if where.version == 2:
            for group in groups:
                line = [group, *group.parents]
                for parent in reversed(line[: line.index(where.mount) + 1]):
                    if parent not in enable and "cpu" not in _words(parent / "cgroup.subtree_control"):
                        enable.append(parent)
        lines = [f"{where.tasks} {group}" for group in ours.values()]
        lines += [f"cpu {parent}" for parent in sorted(enable, key=lambda path: -len(path.parts))]
        (self._directory / WORD).write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
        script = self._directory / SCRIPT
        script.write_text(
            _GUARD.format(directory=shlex.quote(str(self._directory)), word=WORD, passes=_PASSES),
            errors="surrogateescape",
        )
        end, self._grip = os.pipe()
        try:
            self._guard = _start(script, end)
        finally:
            os.close(end)
        self._ours = ours
        for parent in enable:
            (parent / "cgroup.subtree_control").write_text("+cpu")
        for group in ours.values():
            group.mkdir()
            if where.version == 2:
                (group / "cgroup.type").write_text("threaded")

    def _set(self, group: Path, quota: str, period: int) -> None:
        if self._where.version == 2:
            (group / "cpu.max").write_text(f"{quota} {period}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(quota)

    def _gather(self, root: int) -> None:
        """Every task of the tree into our cgroups; those that are in have children there."""
        ours = set(self._ours.values())
        for _ in range(_PASSES):
            outside = {
                pid: group
                for pid, group in _groups_of(self._where, process.tree_pids(root)).items()
                if group not in ours
            }
            if not outside:
                return
            for pid, group in outside.items():
                if group not in self._ours:
                    raise ThrottleError(f"process {pid} was moved to cgroup {group} meanwhile")
                try:
                    (self._ours[group] / "cgroup.procs").write_text(str(pid))
                except ProcessLookupError:
                    continue
        raise ThrottleError("the tree makes processes faster than they can be moved to another cgroup")

    async def lift_when_stopped(self, pid: int) -> None:
        """Give the tree all of its time back as soon as criu has stopped this process of it: its parasite needs it.

        Not before: the tree would dirty memory at full speed until then.
        """
        try:
            while process.read_stat(pid).state != "t":
                await asyncio.sleep(0.001)
        except process.NoSuchProcess:
            return
        self.lift()

    def lift(self) -> None:
        """No limit any more. Whatever fails here, `release` does it again."""
        for group in self._ours.values():
            try:
                self._set(group, "max" if self._where.version == 2 else "-1", PERIOD)
            except OSError:
                continue

    async def release(self) -> tuple[str, ...]:
        """Everything as it was. Returns what could not be undone, in words."""
        if self._grip >= 0:
            os.close(self._grip)
            self._grip = -1
        if self._guard is not None:
            await _end_of(self._guard)
            self._guard = None
        self._ours.clear()
        return await put_back(self._directory)


async def put_back(directory: Path) -> tuple[str, ...]:
    """What the guard does, in the place of one that was killed too. Returns what could not be undone, in words."""
    word, script = directory / WORD, directory / SCRIPT
    if word.exists() and script.exists():
        await _end_of(_start(script, subprocess.DEVNULL))
    left: tuple[str, ...] = ()
    if word.exists():
        groups = [line.partition(" ")[2] for line in word.read_text(errors="surrogateescape").splitlines()]
        left = tuple(f"cgroup {group}" for group in groups if Path(group).name.startswith("migrating-"))
    word.unlink(missing_ok=True)
    script.unlink(missing_ok=True)
    return left


def _start(script: Path, standard_input: int) -> subprocess.Popen[bytes]:
    """Not by asyncio, which kills its children when its loop ends."""
    return subprocess.Popen(
        ["sh", str(script)], stdin=standard_input, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd="/", start_new_session=True,
    )  # fmt: skip


async def _end_of(guard: subprocess.Popen[bytes]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, guard.wait)
