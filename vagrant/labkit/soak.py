"""`vagrant/lab soak`: one process to and fro on a lab of its own; tests/live/faults/soak.py says what is looked at."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from labkit import cache
from labkit.record import Lab


def command(python: Path, lab: str, backend: str, hops: int) -> list[str]:
    """Soaks a lab that is up."""
    return [str(python), "-m", "tests.live.faults.soak", "--lab", lab, "--backend", backend, "--hops", str(hops)]


def play(python: Path, name: str, backend: str, hops: int, up: Callable[[], Lab], down: Callable[[], None]) -> int:
    """Up, all hops, down; 1 when anything grew or was missing."""
    try:
        up()
        return subprocess.run(
            command(python, name, backend, hops), cwd=cache.REPOSITORY, stdin=subprocess.DEVNULL, check=False
        ).returncode
    finally:
        down()
