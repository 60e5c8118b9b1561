"""The only file that knows criu's arguments, log and statistics. It decides nothing about a migration.

Pure functions build argument lists; `Criu` runs the quick questions; `spawn` starts a dump or a restore that nothing of
ours ever signals: its own session, INT, TERM and HUP ignored from before exec, so that no stray Ctrl-C can catch criu
between seizing the tree and holding it, where its death can take the tree along (DESIGN: the commit, rule 6).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import shlex
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from agent.images import ImageError, fields
from agent.process import alive, start_time, tree_pids
from agent.protocol import CriuOptions

OLDEST = (3, 17)
"""criu with `--ps-socket`, `cpuinfo` and a page server that takes `--prev-images-dir`; older ones were never tried."""

# What an inherited-signal-free, unkillable-by-accident criu needs is cheaper and safer said in sh than in a
# preexec_fn, which Python runs between fork and exec of a threaded process. Ignored signals survive exec. A file that
# the environment names could tell criu to leave a second copy running, and --no-default-config does not keep it out.
_GUARD = (
    'trap "" INT TERM HUP; unset CRIU_CONFIG_FILE; { echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null; exec "$@"'
)
# A restore has to hear TERM: with it criu ends the helper that moves threads between cgroups (stop_cgroupd), which it
# starts for a tree in another cgroup than the dumping criu's, and waits for it for ever.
_GUARD_LATE = (
    'trap "" INT HUP; unset CRIU_CONFIG_FILE; { echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null; '
    'read -r images || exit 125; criu=$1 command=$2; shift 2; exec "$criu" "$command" --images-dir "$images" "$@"'
)


class CriuError(Exception):
    """criu failed. `message` is its decisive line in words, `log` the path of the whole log."""

    def __init__(self, message: str, log: str = "", status: Optional[int] = None) -> None:
        super().__init__(message)
        self.message = message
        self.log = log
        self.status = status


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What criu says of one dump or pre-dump (images/stats.proto). Times in seconds."""

    pages: int
    frozen_seconds: float
    write_seconds: float


# --- arguments -------------------------------------------------------------------------------------------------------

_ALONE = "--no-default-config"
"""criu's own configuration files could hold what breaks the commit, such as leave-running."""


def common_options(options: CriuOptions) -> list[str]:
    """Arguments that dump and restore share."""
    switches = {
        "--shell-job": options.shell_job, "--file-locks": options.file_locks, "--link-remap": options.link_remap,
        "--tcp-established": options.tcp_established, "--tcp-close": options.tcp_close,
    }  # fmt: skip
    arguments = ["--manage-cgroups=ignore", *(word for word, wanted in switches.items() if wanted)]
    if options.ghost_limit:
        arguments += ["--ghost-limit", str(options.ghost_limit)]
    return arguments + list(options.extra)


def dump_arguments(
    images: Path,
    *,
    pid: int,
    socket: Optional[int],
    log: Path,
    options: CriuOptions,
    previous: str = "",
    track: bool = True,
    pre: bool = False,
    script: str = "",
) -> list[str]:
    """`criu pre-dump` or `criu dump` with its pages going to a connected socket; without one, to `images`.

    `previous` is the directory of the round before, relative to `images` (CRIU wants it so), on *this* host: its
    inventory is what criu compares PIDs with.
    """
    arguments = ["pre-dump" if pre else "dump", _ALONE, "--tree", str(pid), "--images-dir", str(images)]
    if socket is not None:
        arguments += ["--page-server", "--ps-socket", str(socket)]
    arguments += ["-v4", "--log-file", str(log), "--work-dir", str(images)]
    if track:
        arguments.append("--track-mem")
    if previous:
        arguments += ["--prev-images-dir", previous]
    if pre:
        # pre-dump knows nothing of these but shell-job, without which it refuses the tree
        arguments += ["--shell-job"] if options.shell_job else []
    else:
        arguments += common_options(options)
    if script:
        arguments += ["--action-script", script]
    # last: one that lacks its value then takes no argument of ours for it, above all not the hook
    return arguments + list(options.for_dump)


def page_server_arguments(*, images: Path, socket: int, log: Path, previous: str = "") -> list[str]:
    """`criu page-server` on a connected socket. `--auto-dedup` frees what a newer round replaces, in the tmpfs."""
    arguments = ["page-server", _ALONE, "--images-dir", str(images), "--work-dir", str(images)]
    arguments += ["--ps-socket", str(socket), "-v2", "--log-file", str(log)]
    if previous:
        arguments += ["--prev-images-dir", previous, "--auto-dedup"]
    return arguments


def dedup_arguments(*, images: Path, log: Path) -> list[str]:
    """`criu dedup`: frees in the rounds before this one what it brought again, as the page server does on the way."""
    arguments = ["dedup", _ALONE, "--images-dir", str(images), "--work-dir", str(images)]
    return [*arguments, "-v2", "--log-file", str(log)]


def restore_arguments(
    *, work: Path, log: Path, options: CriuOptions, script: str, pidfile: Path, lazy: bool = False
) -> list[str]:
    """`criu restore`, detached; `go` gives its `--images-dir`, when the freeze knows which round was the last."""
    arguments = ["restore", _ALONE, "--restore-detached", "--work-dir", str(work), "-v4", "--log-file", str(log)]
    arguments += ["--pidfile", str(pidfile), "--action-script", script]
    if lazy:
        arguments.append("--lazy-pages")
    return arguments + common_options(options) + list(options.for_restore)


# --- running ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Running:
    """A criu at work. It is waited for, and never signalled."""

    process: asyncio.subprocess.Process
    command: str  # as an admin could paste it
    log: Path
    start: int  # its start time; 0 when it had ended before it could be asked
    worker: tuple[int, int] = (0, 0)  # PID and start time of criu itself, where `process` is what waits for it

    @classmethod
    def of(cls, process: asyncio.subprocess.Process, command: str, log: Path) -> Running:
        """One that was just started."""
        try:
            return cls(process, command, log, start_time(process.pid))
        except ProcessLookupError:
            return cls(process, command, log, 0)

    @property
    def identity(self) -> dict[str, int]:
        """What a journal keeps of it, for whoever recovers."""
        pid, start = self.worker if self.worker[0] else (self.process.pid, self.start)
        return {"pid": pid, "start": start}

    def follow(self) -> None:
        """`process` has started criu and waits for it: from now on criu itself is looked at."""
        try:
            worker = tree_pids(self.process.pid)[1]
            self.worker = (worker, start_time(worker))
        except (ProcessLookupError, IndexError):
            self.worker = (self.process.pid, 0)  # both are gone

    @property
    def alive(self) -> bool:
        """Whether it lives at this instant. `process.returncode` is learnt a little later."""
        lives = self.process.returncode is None and alive(self.process.pid, self.start)
        return lives and (not self.worker[0] or alive(*self.worker))

    async def ended(self) -> None:
        """Wait for the end. Raises CriuError unless criu says that it succeeded."""
        status = await self.process.wait()
        if status != 0:
            line = in_words(decisive_line(self.log))
            raise CriuError(line or _status_in_words(status), str(self.log), status)


def _status_in_words(status: int) -> str:
    return f"criu was killed by signal {-status}" if status < 0 else f"criu ended with status {status}"


async def spawn(
    criu: str, arguments: Sequence[str], log: Path, *, descriptors: tuple[int, ...] = (), way: Sequence[str] = ()
) -> Running:
    """Start criu guarded (see the module's docstring). `way` is the command by which it gets to where it is to run."""
    command = [*way, criu, *arguments]
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", _GUARD, "sh", *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        pass_fds=descriptors, start_new_session=True,
    )  # fmt: skip
    return Running.of(process, shlex.join(command), log)


async def spawn_waiting(
    criu: str, arguments: Sequence[str], log: Path, *, wrapper: Sequence[str] = (), descriptors: tuple[int, ...] = ()
) -> Running:
    """A warm criu: everything is forked, scoped and parsed; `go` names the images and it starts at once."""
    process = await asyncio.create_subprocess_exec(
        *wrapper, "sh", "-c", _GUARD_LATE, "sh", criu, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True, pass_fds=descriptors,
    )  # fmt: skip
    return Running.of(process, shlex.join([criu, arguments[0], "--images-dir", "…", *arguments[1:]]), log)


def go(running: Running, images: Path) -> None:
    """Let a criu of `spawn_waiting` start."""
    if running.process.stdin is None:
        raise ValueError("this criu does not wait")
    running.process.stdin.write(os.fsencode(images) + b"\n")
    running.process.stdin.close()


class Criu:
    """The quick questions. `path` is criu's name or path."""

    def __init__(self, path: str = "criu") -> None:
        self.path = path

    async def _run(self, *arguments: str) -> tuple[int, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                self.path, *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            return 127, str(error)
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace")

    async def version(self) -> str:
        """criu's version, e.g. "4.1.1"; "" where there is no criu that runs."""
        status, output = await self._run("--version")
        found = re.search(r"Version:\s*v?([0-9][0-9.]*)", output)
        return found.group(1) if status == 0 and found else ""

    async def check(self, feature: str = "") -> str:
        """`criu check`, or that of one feature: "" when content, else its decisive line."""
        arguments = ["check"] + (["--feature", feature] if feature else [])
        status, output = await self._run(*arguments)
        if status == 0:
            return ""
        return decisive(output.splitlines()) or f"criu check ended with status {status}"

    async def cpuinfo_dump(self, directory: Path) -> bool:
        """Write cpuinfo.img of this host's CPU; False where criu can't tell (neither x86, ppc64 nor s390)."""
        status, _ = await self._run("cpuinfo", "dump", "--images-dir", str(directory))
        return status == 0 and (directory / "cpuinfo.img").exists()

    async def cpuinfo_check(self, directory: Path) -> str:
        """Compare another host's cpuinfo.img with this CPU: "" when it will run here, else criu's words."""
        status, output = await self._run("cpuinfo", "check", "--images-dir", str(directory))
        if status == 0:
            return ""
        return decisive(output.splitlines()) or f"criu cpuinfo check ended with status {status}"


# --- log -------------------------------------------------------------------------------------------------------------

_LINE = re.compile(r"^\(?\s*[0-9.]*\)?\s*(?:pie: \d+: )?\s*(?:\d+: )?(Error|Warn) *(?:\(([^)]*)\))?: *(.*)$")
# Said on failing and on perfectly good runs alike (CRIU.md), or mere echoes of an earlier line
_NOISE = (
    "Can't setup RLIMIT_NOFILE",
    "Unable to create tun",
    "Iptables configuration failed",
    "Could not process rule",
    "Dumping FAILED",
    "Restoring FAILED",
    "Pre-dumping FAILED",
    "Killing processes because of failure",
    "Unable to restore",
    "exited, status=",
    "killed by signal 9",
)


_WORDS = (
    (r"Can't fork for (\d+): File exists", r"process ID \1 is taken"),  # cr-restore.c
    (r"Pid (\d+) do not match expected (\d+)", r"process ID \2 could not be had"),  # cr-restore.c
    (r"File (\S+) has bad size (\d+) \(expect (\d+)\)", r"\1 has \2 bytes, and \3 on the source"),  # files-reg.c
    (r"File (\S+) has bad mode (\S+) \(expect (\S+)\)", r"\1 has mode \2, and \3 on the source"),  # files-reg.c
    (r"Can't dump ghost file (\S+) of (\d+) size", r"the deleted file \1 of \2 bytes is over the limit"),  # files-reg.c
    (r"External socket is used|Can't dump half of stream unix|name-less external socket",
     "the other end of a unix socket belongs to a process that stays behind"),  # sk-unix.c
    (r"Connected TCP socket", "the tree has established TCP connections"),  # sk-inet.c
    (r"Pid-reuse detection failed", "the round before this one is incomplete"),  # mem.c
    (r"without the process init", "the tree lives in a PID namespace whose init is not part of it"),  # namespaces.c
    (r"is not a session leader", "the root does not lead its session"),  # pstree.c
    (r"No space left on device", "no space left on device for the images"),
)  # fmt: skip
"""criu's words for what happens most, and ours, which need none of criu's source at hand."""


def in_words(line: str) -> str:
    """A decisive line as an admin would say it, criu's own words behind it; unchanged where we know none better."""
    for pattern, words in _WORDS:
        found = re.search(pattern, line)
        if found:
            return f"{found.expand(words)} (criu: {line})"
    return line


def decisive(lines: Sequence[str]) -> str:
    """The error line that says why: the first real one, for what follows it are echoes."""
    last = ""
    for line in lines:
        found = _LINE.match(line.strip())
        if not found or found.group(1) != "Error":
            continue
        text = found.group(3).strip()
        source = (found.group(2) or "").rpartition("/")[2]
        named = f"{text} ({source})" if source else text
        if any(noise in text for noise in _NOISE):
            last = last or named
            continue
        return named
    return last


def decisive_line(log: Path) -> str:
    """`decisive` of a log file; "" where it can't be read."""
    try:
        return decisive(log.read_text(errors="replace").splitlines())
    except OSError:
        return ""


def passed_hold(log: Path) -> bool:
    """Whether a restore got past its post-restore hook, so that the tree may have run (criu/cr-restore.c: the network
    is unlocked right after it)."""
    try:
        return "Unlock network" in log.read_text(errors="replace")
    except OSError:
        return True  # nobody knows: then nobody may restore once more


def finished(log: Path) -> bool:
    """Whether a restore came to its good end: the tree runs, or did (criu/cr-restore.c says so last)."""
    try:
        return "Restore finished successfully" in log.read_text(errors="replace")
    except OSError:
        return False


def keep_log(log: Path) -> None:
    """Put the log itself where only a link to it is, before what the link points at is removed."""
    if not log.is_symlink():
        return
    try:
        text = log.read_bytes()
    except OSError:
        text = b""
    log.unlink()
    try:
        log.write_bytes(text)
    except OSError:
        log.unlink(missing_ok=True)  # the disk is full, and half a log misleads


# --- statistics ------------------------------------------------------------------------------------------------------

_STATS_MAGIC = (0x55105940, 0x57093306)


def read_statistics(path: Path) -> Statistics:
    """A `stats-dump` file: two magic words, a length, one protobuf (criu/stats.c, images/stats.proto).

    Raises ValueError on anything else.
    """
    data = path.read_bytes()
    first, second, length = struct.unpack("<III", data[:12].ljust(12, b"\0"))
    if (first, second) != _STATS_MAGIC or len(data) < 12 + length:
        raise ValueError("not criu's statistics")
    try:
        entry = {number: body for number, _, body in fields(data[12 : 12 + length])}
        # stats_entry.dump = 1; dump_stats_entry: frozen_time 2, memwrite_time 4, pages_written 7, shpages_written 13
        values = {number: value for number, value, _ in fields(entry.get(1, b""))}
    except ImageError as error:
        raise ValueError(f"criu's statistics are damaged: {error}") from error
    return Statistics(
        pages=values.get(7, 0) + values.get(13, 0),
        frozen_seconds=values.get(2, 0) / 1e6,
        write_seconds=values.get(4, 0) / 1e6,
    )
