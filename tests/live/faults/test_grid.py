"""Never lost, never twice: each cell of the grid, with real criu, real kills and real hosts.

CI runs the slice (cells.SLICE) and some more that the commit draws; `vagrant/lab test --faults all` runs everything and
writes the table GRID.md.
"""

from __future__ import annotations

from tests.live.faults import table
from tests.live.faults.cells import Cell
from tests.live.faults.runner import Runner


def test_cell(runner: Runner, cell: Cell, rows: table.Rows) -> None:
    place = "FAIL"
    try:
        place = runner.run(cell)
    except AssertionError:
        print(runner.log)
        raise
    finally:
        rows.add(cell, place)
