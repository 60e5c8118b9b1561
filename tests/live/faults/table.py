"""Which cells a run has, and the table of what became of them: GRID.md."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.live.faults import cells
from tests.live.faults.cells import Cell
from tests.live.lab_host import PROJECT

GRID = Path(__file__).parent / "GRID.md"
HEAD = "| fault | victim | instant | backend | where the process ended | ok |"
_ROW = re.compile(r"^\| (.*) \| (.*) \| (.*) \| (netns|vm) \| (.*) \| (ok|FAIL) \|$")
_RUN = re.compile(r"^- `(netns|vm)`: ")


def seed() -> str:
    """What draws the cells that change: the commit's hash; where there is no git, the sources' own."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else sources()


def sources() -> str:
    """What was tested, by a digest that any checkout of it gives."""
    digest = hashlib.sha256()
    for package in ("agent", "migrator"):
        for path in sorted((PROJECT / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def chosen(config: pytest.Config) -> tuple[Cell, ...]:
    """The cells of this run."""
    backend = config.getoption("--backend")
    return cells.cells(backend) if config.getoption("--faults") == "all" else cells.chosen(backend, seed())


class Rows:
    """What became of the cells of this run."""

    def __init__(self, backend: str, run: str) -> None:
        self._backend = backend
        self._run = run
        self._rows: list[str] = []
        self._done: set[str] = set()
        self._failed = 0
        self._lost = 0

    def add(self, cell: Cell, place: str) -> None:
        """A cell's row."""
        failed = place == "FAIL"
        self._failed += failed
        self._lost += place == cells.CRIU_LOST
        self._done.add(cell.id)
        ended = "?" if failed else place
        row = (cell.fault, cell.victim, cell.instant, cell.backend, ended, "FAIL" if failed else "ok")
        self._rows.append(f"| {' | '.join(row)} |")

    def text(self) -> str:
        """The table of this run."""
        return "\n".join([HEAD, "|---" * 6 + "|", *self._rows])

    def summary(self) -> str:
        """What there is to say of them all."""
        return f"{len(self._rows)} cells, {self._failed} failed, {self._lost} criu-lost"

    def keep(self) -> bool:
        """Write GRID.md, if this was all of the backend's grid. Rows of the other backend stay."""
        if self._done != {cell.id for cell in cells.cells(self._backend)}:
            return False
        old = GRID.read_text().splitlines() if GRID.exists() else []
        runs = {found[1]: line for line in old if (found := _RUN.match(line))}
        others = [line for line in old if (found := _ROW.match(line)) and found[4] != self._backend]
        day = time.strftime("%Y-%m-%d", time.gmtime())
        runs[self._backend] = f"- `{self._backend}`: {day}, {self.summary()}; {self._run}"
        rows = self._rows + others if self._backend == "netns" else others + self._rows
        GRID.write_text(document(runs, rows))
        return True


def document(runs: dict[str, str], rows: list[str]) -> str:
    """GRID.md."""
    lines = [
        "# The fault grid", "",
        "Made by `vagrant/lab test --faults all`; `cells.py` says what must come of each cell, and why. `criu-lost` is",
        "CRIU's own limit: killed between seizing the tree and its hold it can take the tree with it.", "",
        *(runs[name] for name in sorted(runs)), "",
        HEAD, "|---" * 6 + "|", *rows, "",
        "Left out:", "",
        *(f"- {what}: {why}" for what, why in cells.EXCLUDED), "",
    ]  # fmt: skip
    return "\n".join(lines)
