"""`vagrant/lab bench`: a lab for each backend in turn, everything measured on it, and all of it shown side by side.

What is measured is in tests/bench; this only brings the hosts for it. One lab at a time, because two would take each
other's processor. Figures fail nothing, and results so far are shown even when a measurement breaks off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from labkit import cache
from labkit.record import Lab
from labkit.run import LabError, say

BACKENDS = ("netns", "vm")  # the quick one first
VM_MEMORY = "3G"
"""A machine's, where the largest process and its images stand side by side; quick sizes need no more than usual."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line."""

    backends: tuple[str, ...]
    quick: bool
    rows: tuple[str, ...]  # all of them, if empty
    json: bool
    picture: Path | None


def check_rows(names: Sequence[str]) -> None:
    """Raises LabError for a row that nobody knows, before anything is brought up."""
    # what is measured is the benchmark's own affair; its list of rows needs no more than we have
    sys.path.append(str(cache.REPOSITORY))
    from tests.bench.rows import ROWS

    for name in names:
        if name not in ROWS:
            raise LabError(f"no row is called {name!r}", hint=f"rows: {', '.join(map(repr, ROWS))}")


def results_file() -> Path:
    """Where results are kept until the next run."""
    return cache.place() / "bench.jsonl"


def picture_file(wanted: Wanted) -> Path:
    """Where the picture goes."""
    return (wanted.picture or cache.place() / "bench.svg").resolve()


def measure_command(python: Path, lab: str, backend: str, wanted: Wanted) -> list[str]:
    """Measures what this backend can, on a lab that is up."""
    words = [str(python), "-m", "tests.bench", "measure", "--lab", lab, "--backend", backend]
    words += ["--quick"] if wanted.quick else []
    words += ["--rows", *wanted.rows] if wanted.rows else []
    return [*words, "--", str(results_file())]


def show_command(python: Path, wanted: Wanted) -> list[str]:
    """Shows all that was measured; what none of these backends can is said as well."""
    words = [str(python), "-m", "tests.bench", "show", "--picture", str(picture_file(wanted))]
    words += ["--json"] if wanted.json else []
    words += ["--rows", *wanted.rows] if wanted.rows else []
    return [*words, "--backends", *wanted.backends, "--", str(results_file())]


def play(
    python: Path, wanted: Wanted, name: str, up: Callable[[str, str, str], Lab], down: Callable[[str], None]
) -> int:
    """The whole run; the exit status says whether all could be measured, not how good the figures are."""
    check_rows(wanted.rows)
    results_file().unlink(missing_ok=True)
    status = 0
    try:
        for backend in wanted.backends:
            lab = f"{name}-{backend}"
            with contextlib.ExitStack() as stack:
                stack.callback(down, lab)
                try:
                    up(lab, backend, VM_MEMORY if backend == "vm" and not wanted.quick else "")
                except LabError as error:
                    error.tell()
                    status = 1
                    continue
                status |= _run(measure_command(python, lab, backend, wanted))
    finally:
        status |= _run(show_command(python, wanted))
        say(f"picture: {picture_file(wanted)}")
    return status


def _run(words: Sequence[str]) -> int:
    done = subprocess.run(words, cwd=cache.REPOSITORY, stdin=subprocess.DEVNULL, check=False)
    return int(done.returncode != 0)
