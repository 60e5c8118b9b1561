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
        """`run` says what was tested, and on what."""
        self._backend = backend
        self._run = run
        self._rows: dict[tuple[str, ...], str] = {}

    def add(self, cell: Cell, place: str) -> None:
        """A cell's row; the place FAIL where something was not as it must be."""
        ended = ("?", "FAIL") if place == "FAIL" else (place, "ok")
        row = (cell.fault, cell.victim, cell.instant, cell.backend, *ended)
        self._rows[row[:3]] = f"| {' | '.join(row)} |"

    def text(self) -> str:
        """The table of this run."""
        return "\n".join([HEAD, "|---" * 6 + "|", *self._rows.values()])

    def summary(self) -> str:
        """What there is to say of them all."""
        failed = sum(row.endswith("| FAIL |") for row in self._rows.values())
        lost = sum(f"| {cells.CRIU_LOST} |" in row for row in self._rows.values())
        return f"{len(self._rows)} cells, {failed} failed, {lost} criu-lost"

    def keep(self) -> bool:
        """Write GRID.md, if this was all of the backend's grid, or the rest is there from another run of the very same.

        Rows of the other backend stay.
        """
        old = GRID.read_text().splitlines() if GRID.exists() else []
        runs = {found[1]: line for line in old if (found := _RUN.match(line))}
        rows: dict[str, dict[tuple[str, ...], str]] = {"netns": {}, "vm": {}}
        for line in old:
            if found := _ROW.match(line):
                rows[found[4]][found.groups()[:3]] = line
        same = runs.get(self._backend, "").endswith(self._run)
        self._rows = (rows[self._backend] if same else {}) | self._rows
        order = [(cell.fault, cell.victim, cell.instant) for cell in cells.cells(self._backend)]
        if set(self._rows) != set(order):
            return False
        self._rows = {key: self._rows[key] for key in order}
        rows[self._backend] = self._rows
        day = time.strftime("%Y-%m-%d", time.gmtime())
        runs[self._backend] = f"- `{self._backend}`: {day}, {self.summary()}; {self._run}"
        GRID.write_text(document(runs, [row for name in sorted(rows) for row in rows[name].values()]))
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
