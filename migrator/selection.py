"""Which processes of this host a plan means, by PID, pidfile, unit, name or user. The only door to psutil.

Looks at this host from the operator's own process, before any agent is there; whether what it finds can be moved, the
agent says in its preflight.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from migrator.runbook import Selection


class NotFound(Exception):
    """Nothing here is what was selected; the text says why."""


@dataclasses.dataclass(frozen=True)
class Found:
    """One process tree's root."""

    pid: int
    started: int
    """Clock ticks since boot: with the PID and the boot's id it names this process for ever."""
    name: str
    memory: int = 0
    """Bytes that it and what descends from it have in memory; a page that two share counts for each."""


def find(selection: Selection) -> tuple[Found, ...]:
    """The roots of the trees that are meant, oldest first; never this command or what it runs under.

    A process below another one that is meant goes with it. Raises NotFound.
    """
    if selection.by in ("pid", "pidfile", "unit"):
        number = selection.value if isinstance(selection.value, int) else _named(selection)
        try:
            return (_found(psutil.Process(number)),)
        except psutil.NoSuchProcess:
            raise NotFound(f"there is no process {number}") from None
    ours = _above(os.getpid())
    matching = {process.pid: process for process in _matching(selection) if process.pid not in ours}
    roots = [process for pid, process in matching.items() if not (_above(pid) - {pid}) & matching.keys()]
    found = [one for process in roots for one in _if_there(process)]
    if not found:
        what = "process of that name" if selection.by == "process" else "process of that user"
        raise NotFound(f"there is no {what}")
    return tuple(sorted(found, key=lambda one: (one.started, one.pid)))


def _named(selection: Selection) -> int:
    """The PID that a pidfile has, or that systemd gives as a unit's main process."""
    name = str(selection.value)
    if selection.by == "pidfile":
        try:
            with open(name, "rb") as file:
                word = file.read(64).strip()
        except OSError as error:
            raise NotFound(f"{name}: {error.strerror}") from None
        if not word.isdigit():
            raise NotFound(f"{name} has no PID in it")
        return int(word)
    try:
        # a unit's name may begin with a dash, as no option must
        command = ["systemctl", "show", "--property=MainPID", "--value", "--", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise NotFound("this host has no systemd") from None
    except subprocess.TimeoutExpired:
        raise NotFound("systemctl does not answer") from None
    if run.returncode:
        raise NotFound(f"systemctl: {run.stderr.strip() or run.returncode}")
    number = run.stdout.strip()
    if not number.isdigit() or int(number) == 0:
        raise NotFound(f"unit {name} has no main process")
    return int(number)


def _matching(selection: Selection) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            there = process.name() if selection.by == "process" else process.username()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if there == selection.value and process.ppid() != 2 and process.pid != 2:  # kthreadd and its threads
            yield process


def _above(pid: int) -> set[int]:
    """A process and all that it runs under."""
    try:
        process = psutil.Process(pid)
        return {pid, *(one.pid for one in process.parents())}
    except psutil.NoSuchProcess:
        return {pid}


def _if_there(process: psutil.Process) -> Iterable[Found]:
    try:
        return (_found(process),)
    except psutil.NoSuchProcess:
        return ()


def _found(process: psutil.Process) -> Found:
    """Raises psutil.NoSuchProcess."""
    try:
        memory = sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:  # one of the children, or itself, which is seen below
        memory = 0
    try:
        return Found(process.pid, _started(process.pid), process.name(), memory)
    except OSError:
        raise psutil.NoSuchProcess(process.pid) from None


def _started(pid: int) -> int:
    """Raises OSError. psutil's own is in seconds since the epoch: it moves with the clock."""
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
