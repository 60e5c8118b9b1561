"""tests/live/what_moves.py against what it names: README's table, the table of checks, and the kinds of subject.py."""

from __future__ import annotations

import ast
from pathlib import Path

from migrator import catalogue
from tests.live import what_moves
from tests.live.what_moves import ROWS

ROOT = Path(__file__).parents[1]


def test_the_readme_says_what_moves() -> None:
    table = (ROOT / "README.md").read_text().split("what_moves.py`):\n\n")[1].split("\n\n")[0]
    assert table + "\n" == what_moves.readme_table()  # what it should be: print(what_moves.readme_table())


def test_every_row_is_started_and_looked_at() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert bool(row.kinds) != bool(row.start), row.name
        assert bool(row.start) == bool(row.look), row.name
        assert bool(row.refused) != bool(row.looked_at), row.name
        assert not row.start or "exec " in row.start.splitlines()[-1], row.name
        for id_ in filter(None, (row.refused, *row.warned)):
            assert id_ in catalogue.KINDS, row.name


def test_every_kind_is_in_a_row_and_every_row_has_its_kinds() -> None:
    made = {
        node.name
        for path in (ROOT / "tests/live/programs").glob("probes_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert made == {kind for row in ROWS for kind in row.kinds.split()}
