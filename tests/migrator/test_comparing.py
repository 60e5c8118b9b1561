"""Two reports side by side: every figure that either has, its ratio, on any width."""

from __future__ import annotations

import pytest
from hypothesis import given

from migrator import comparing
from migrator.phases import Report
from tests.migrator import fake_reports
from tests.migrator.test_report import reports


def test_what_is_compared() -> None:
    rows = {row.name: row for row in comparing.rows(fake_reports.MOVED, fake_reports.UNDONE)}
    downtime = rows["downtime_seconds"]
    assert (downtime.a, downtime.b, downtime.unit) == (0.118, 0.34, "s")
    assert downtime.ratio == pytest.approx(0.34 / 0.118)
    assert (rows["freeze.resume"].a, rows["freeze.resume"].b, rows["freeze.resume"].ratio) == (0.015, None, None)
    assert (rows["freeze.thaw"].a, rows["freeze.thaw"].b) == (None, 0.03)
    assert rows["outcome"].b == "undone in restore"
    assert rows["phases.pre-copy"].ratio == 1


def test_the_table_has_a_column_each() -> None:
    lines = comparing.table(fake_reports.MOVED, fake_reports.UNDONE, 100).splitlines()
    assert lines[0].split() == ["A", "B", "B", "/", "A"]
    assert "downtime                              0.12 s                  0.34 s   2.9 x" in lines
    assert "  restore                              32 ms                  0.25 s   7.8 x" in lines
    assert "filled in                           1.00 GiB                       -" in lines
    assert not [line for line in lines if line.startswith("files")], "what neither has is left out"


@pytest.mark.parametrize("columns", [30, 50, 79, 80, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(columns: int) -> None:
    for one in fake_reports.ALL:
        for line in comparing.table(fake_reports.MOVED, one, columns).splitlines():
            assert len(line) <= columns or len(max(line.split(), key=len)) > columns - 4, line


@given(reports(), reports())
def test_any_two_can_be_compared(one: Report, other: Report) -> None:
    text = comparing.table(one, other)
    assert all(line.isprintable() for line in text.split("\n"))
    there, back = comparing.rows(one, other), comparing.rows(other, one)
    assert {row.name: (row.a, row.b) for row in there} == {row.name: (row.b, row.a) for row in back}
