"""`vagrant/lab test`: everything that must hold before a change may land, from nothing to one exit status."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from labkit import cache
from labkit.record import Lab
from labkit.run import LabError, say

BACKENDS = ("netns", "vm")  # the quick one first
LIVE = "tests/live"


@dataclasses.dataclass
class Outcome:
    """One check, how it ended, and how long it took."""

    name: str
    status: int
    seconds: float

    def __str__(self) -> str:
        return f"  {'ok    ' if self.status == 0 else 'FAILED'} {self.seconds:7.1f} s  {self.name}"


def static_checks(python: Path) -> list[list[str]]:
    """Lint, format and types, as pyproject.toml sets them."""
    run_module = [str(python), "-m"]
    return [
        [*run_module, "ruff", "check"],
        [*run_module, "ruff", "format", "--check"],
        [*run_module, "mypy"],
    ]


SIDE_BY_SIDE = ("-n", "auto")
"""pytest-xdist's: so many processes as there are processors. The live tests have one lab, and can't."""


def pytest_command(python: Path, arguments: Iterable[str]) -> list[str]:
    """pytest in the developer's venv."""
    return [str(python), "-m", "pytest", *arguments]


def fuzz_command(python: Path, arguments: Iterable[str]) -> list[str]:
    """The parsers against bytes that are made up, two seconds each unless the arguments say otherwise."""
    return [str(python), "-m", "tests.fuzz", *arguments]


def live_arguments(backend: str, lab: str, everything: bool, faults: str = "slice") -> list[str]:
    """pytest's arguments for the live tests on this lab. They say which tests cost most: all have to fit into CI."""
    chosen = ["--durations=20", *([] if everything else ["-m", "not long"])]
    return [*lab_arguments(backend, lab, faults), *chosen, LIVE]


def lab_arguments(backend: str, lab: str, faults: str = "slice") -> list[str]:
    """The options that tests/live/conftest.py knows."""
    return ["--backend", backend, "--lab-name", lab, *(["--faults", faults] if faults != "slice" else [])]


def needs_lab(arguments: Sequence[str]) -> bool:
    """Do these pytest arguments name live tests?"""
    return any(LIVE in argument for argument in arguments)


class Run:
    """The checks done so far. A failed one does not keep the others from running."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def command(self, name: str, words: list[str]) -> None:
        """Runs one check, its output going where ours goes."""
        say(f"{name}: {shlex.join(words)}")
        began = time.monotonic()
        status = subprocess.run(words, cwd=cache.REPOSITORY, stdin=subprocess.DEVNULL, check=False).returncode
        self.outcomes.append(Outcome(name, status, time.monotonic() - began))

    def on_lab(self, backend: str, up: Callable[[], Lab], down: Callable[[], None], words: list[str]) -> None:
        """Runs live tests on a lab that is there for them alone."""
        began = time.monotonic()
        try:
            try:
                up()
            except LabError as error:
                error.tell()
                self.outcomes.append(Outcome(f"lab up, {backend}", 1, time.monotonic() - began))
                return
            self.outcomes.append(Outcome(f"lab up, {backend}", 0, time.monotonic() - began))
            self.command(f"live tests, {backend}", words)
        finally:
            down()

    def report(self) -> int:
        """Shows how each check ended; 0 if all are good."""
        say("\n".join(["summary", *map(str, self.outcomes)]))
        return int(any(outcome.status for outcome in self.outcomes))
