"""The systemd unit that a tree belongs to: what it is called, and what systemd would do when the tree has gone.

Looks only, by `systemctl show`; `suspension.py` acts. A unit is found by the cgroup that a process is in
(systemd.slice(5), systemd.scope(5)): services, scopes, and below user@UID.service those of a user's own systemd, which
the system's one knows nothing of.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

from agent.descriptors import name_of
from agent.protocol import TaskFacts, Unit

SYSTEMD = "/run/systemd/system"
"""There when systemd is the init of this host (sd_booted(3)); also where what is set until the next boot lies."""
SYSTEMCTL = "systemctl"
_SECONDS = 120.0
"""For systemctl to answer: it tells systemd to read all units again, on hosts that may be under load."""
_AT_ONCE = 10.0
"""For it to answer while somebody waits for `migrate check`."""

_NOTHING = ("", "no", "none", "infinity", "[not set]")
_LIMITS = {
    "MemoryMin": ("MemoryMin", "0"), "MemoryLow": ("MemoryLow", "0"), "MemoryHigh": ("MemoryHigh", ""),
    "MemoryMax": ("MemoryMax", ""), "MemorySwapMax": ("MemorySwapMax", ""), "CPUWeight": ("CPUWeight", ""),
    "CPUQuotaPeriodUSec": ("CPUQuotaPeriodSec", ""), "TasksMax": ("TasksMax", ""), "IOWeight": ("IOWeight", ""),
    "AllowedCPUs": ("AllowedCPUs", ""), "AllowedMemoryNodes": ("AllowedMemoryNodes", ""),
    "KillSignal": ("KillSignal", "15"), "TimeoutStopUSec": ("TimeoutStopSec", ""),
}  # fmt: skip
"""As `systemctl show` names it: as it is set, and a value that limits nothing (systemd.resource-control(5)). The last
two are what `systemctl stop` goes by (systemd.kill(5))."""
_QUOTA = "CPUQuotaPerSecUSec"
_LOCAL = ("IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax")
_ASKED = (
    "Id", "ActiveState", "MainPID", "Restart", "RestartForceExitStatus", "ExecStopPost", "OnFailure", "OnSuccess",
    "FailureAction", "TriggeredBy", "UpheldBy", "UnitFileState", "SyslogIdentifier", _QUOTA, *_LIMITS, *_LOCAL,
)  # fmt: skip
_DIGITS = 11
"""A PID has fewer."""
_NEVER = 1 << 63
_MICROSECONDS = {"us": 1, "ms": 1000, "s": 1000_000, "min": 60_000_000, "h": 3_600_000_000}


class ServiceError(Exception):
    """systemd does not do what it was asked."""


@dataclasses.dataclass(frozen=True)
class Home:
    """Where a cgroup's path says that a process belongs."""

    unit: str
    manager: str = ""  # the unit of a user's own systemd, where it is one of its units
    path: str = ""  # the unit's cgroup


def booted() -> bool:
    """Whether systemd is the init of this host."""
    return os.path.isdir(SYSTEMD)


def home(cgroup: str) -> Home:
    """The unit that a /proc/PID/cgroup names: a service or a scope; none of name "" where it names none."""
    for line in cgroup.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers not in ("", "name=systemd"):
            continue
        parts = path.split("/")
        places = [number for number, part in enumerate(parts) if part.endswith((".service", ".scope"))]
        if not places:
            continue
        outer = parts[places[0]]
        if outer.startswith("user@") and len(places) > 1:
            return Home(parts[places[1]], outer, "/".join(parts[: places[1] + 1]))
        return Home(outer, "", "/".join(parts[: places[0] + 1]))
    return Home("")


def _home_of(pid: int) -> Home:
    try:
        return home(Path(f"/proc/{pid}/cgroup").read_text(errors="replace"))
    except OSError:
        return Home("")


def units(tasks: Sequence[TaskFacts]) -> tuple[Unit, ...]:
    """The units that these tasks (root first) are in, that of the root first."""
    if not booted():
        return ()
    members: dict[Home, list[int]] = {}
    for task in tasks:
        where = _home_of(task.pid)
        if where.unit:
            members.setdefault(where, []).append(task.pid)
    names = {where.manager or where.unit for where in members}
    shown = {block.get("Id", ""): block for block in show(names, _ASKED, _AT_ONCE)}
    family = {task.pid for task in tasks}
    found = []
    for where, pids in members.items():
        others = tuple(name_of(pid) for pid in sorted(_processes(where.path) - family))
        facts = shown.get(where.manager or where.unit)
        unit = Unit(where.unit, tuple(pids), others=others, manager=where.manager)
        if where.manager:
            # of its units the system's systemd knows nothing; what it has started itself is its child
            keeper = main_of(facts or {})
            children = [task.pid for task in tasks if task.pid in pids and keeper and task.ppid == keeper]
            unit = dataclasses.replace(unit, main=next(iter(children), 0), answered=False)
        elif facts is None:
            # systemd does not answer: then the root of a tree in a service is taken for its main process
            main = tasks[0].pid if tasks[0].pid in pids and where.unit.endswith(".service") else 0
            unit = dataclasses.replace(unit, main=main, answered=False)
        else:
            unit = _described(unit, facts, family)
        found.append(unit)
    return tuple(found)


def _described(unit: Unit, facts: dict[str, str], family: Iterable[int]) -> Unit:
    main = main_of(facts)
    reacts = [
        f"{name}={facts[name]}"
        for name in ("Restart", "RestartForceExitStatus", "OnFailure", "FailureAction")
        if facts.get(name, "") not in _NOTHING
    ]
    reacts += ["ExecStopPost="] if facts.get("ExecStopPost") else []
    starters = (*facts.get("TriggeredBy", "").split(), *facts.get("UpheldBy", "").split())
    return dataclasses.replace(
        unit, main=main if main in family else 0, reacts=tuple(reacts),
        on_success=tuple(facts.get("OnSuccess", "").split()), starters=starters,
        at_boot=facts.get("UnitFileState", "").startswith("enabled"), limits=limits(facts),
        local=tuple(f"{name}={facts[name]}" for name in _LOCAL if facts.get(name, "") not in _NOTHING),
        identifier=facts.get("SyslogIdentifier", ""),
    )  # fmt: skip


def main_of(facts: dict[str, str]) -> int:
    """PID of a unit's main process; 0 where it has none, and for what is no PID."""
    word = facts.get("MainPID", "")
    return int(word) if word.isascii() and word.isdigit() and len(word) < _DIGITS else 0


def limits(facts: dict[str, str]) -> tuple[str, ...]:
    """What a unit of these properties is held to, as `systemd-run --property=` takes it."""
    found = [
        f"{name}={facts[asked]}"
        for asked, (name, none) in _LIMITS.items()
        if facts.get(asked, "") not in (*_NOTHING, none)
    ]
    quota = microseconds(facts.get(_QUOTA, ""))
    return (*found, f"CPUQuota={quota / 10_000:g}%") if quota is not None else tuple(found)


def microseconds(text: str) -> Optional[int]:
    """A time span as systemctl shows it, `1min 30s` or `800ms`; None for none."""
    total = 0.0
    for word in text.split():
        number = word.rstrip("ushmin")
        try:
            total += float(number) * _MICROSECONDS[word[len(number) :]]
        except (ValueError, KeyError):
            return None
    return round(total) if text.split() and 0 <= total < _NEVER else None


def _processes(path: str) -> set[int]:
    """Every process in a cgroup and below it, by its path as /proc/PID/cgroup has it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()]
    found: set[int] = set()
    for fields in mounts:
        if fields[2] == "cgroup2" or (fields[2] == "cgroup" and "name=systemd" in fields[3].split(",")):
            for directory, _, names in os.walk(fields[1] + path):
                if "cgroup.procs" in names:
                    try:
                        found |= {int(pid) for pid in (Path(directory) / "cgroup.procs").read_text().split()}
                    except OSError:  # of a threaded one, or one that has just gone
                        continue
    return found


def active(names: Iterable[str]) -> tuple[str, ...]:
    """Those of these units that are not inactive here."""
    asked = sorted(set(names))
    if not asked or not booted():
        return ()
    # an alias has another Id than was asked for, so by their order
    states = zip(asked, show(asked, ("Id", "ActiveState")))
    return tuple(name for name, facts in states if facts.get("ActiveState") not in (None, "inactive", "failed"))


def show(names: Iterable[str], properties: Iterable[str], seconds: float = _SECONDS) -> list[dict[str, str]]:
    """These properties of these units; nothing where systemd does not answer."""
    asked = sorted(names)
    if not asked:
        return []
    try:
        return parse_show(run("show", f"--property={','.join(properties)}", "--", *asked, seconds=seconds))
    except ServiceError:
        return []


def parse_show(output: str) -> list[dict[str, str]]:
    """`systemctl show UNIT…`: blocks of KEY=VALUE, one a unit, with an empty line between."""
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines() if line) for block in output.split("\n\n")]
    return [block for block in blocks if block]


def run(*arguments: str, seconds: float = _SECONDS) -> str:
    """What systemctl says. Raises ServiceError with its words when it fails."""
    try:
        done = subprocess.run(
            [SYSTEMCTL, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"systemctl {arguments[0]}: {error}") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise ServiceError(f"systemctl {arguments[0]}: {words[-1] if words else f'status {done.returncode}'}")
    return done.stdout.decode(errors="replace")
