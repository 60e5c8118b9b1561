"""Reports drawn in characters: what stands in them, at any width, for any report."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import chart
from migrator.phases import Report
from tests.migrator import fake_reports
from tests.migrator.test_report import reports

PICTURE = """\
pid 4711 (redis-server): db1 → root@db2, 2026-07-04 03:15:00: undone in restore
paused 0.34 s (predicted 0.11 s, allowed 0.30 s), total 4.0 s, 1.03 GiB in 361
MiB on the wire
RestoreError: db2: criu restore: Can't open file srv/app.sock: No such file or
directory
id 20260704-030200-0f0f0f, instant resume

whole run      4.0 s
connect       0.41 s  █████▏
preflight     0.30 s       ███▊
pre-copy       2.6 s          ████████████████████████████████▍
freeze         60 ms                                           ▊
restore       0.25 s                                           ███▏  failed
undo          0.40 s                                               █████

nobody ran    0.34 s
dump           48 ms  ████████▎
images         12 ms          ██
restore       0.25 s            ██████████████████████████████████████████▋
thaw           30 ms                                                      █████▏

rounds           sent                                sent at      in  dirtied at
pre-copy 1   1.00 GiB  ██████████████████████████  415 MiB/s   2.5 s
pre-copy 2     38 MiB  █                           317 MiB/s  0.12 s    15 MiB/s
freeze        1.1 MiB  ▏                            23 MiB/s   48 ms   8.5 MiB/s
"""


def test_an_undone_migration_shows_what_was_reached() -> None:
    assert chart.picture(fake_reports.UNDONE, 80) == PICTURE
    assert chart.picture(fake_reports.UNDONE) == PICTURE


def test_a_migration_that_arrived() -> None:
    text = chart.picture(fake_reports.MOVED, 100)
    assert text.startswith("pid 4711 (redis-server): db1 → root@db2, 2026-07-04 03:15:00: migrated\n")
    assert "down 0.12 s (predicted 0.11 s, allowed 0.30 s), total 4.4 s, 1.03 GiB in 361 MiB on the wire\n" in text
    assert "fill: 1.00 GiB in 0.92 s, 1.08 GiB/s; 84 pages waited for, 3.1 ms at most\n" in text
    assert "failed" not in text


def test_what_never_came_to_a_round_has_its_phases_alone() -> None:
    text = chart.picture(fake_reports.REFUSED)
    assert "it was never paused" in text
    assert "PreflightError: 2 obstacles" in text
    assert "rounds" not in text
    assert "nobody ran" not in text


def test_files_namespaces_and_leftovers_are_named() -> None:
    report = dataclasses.replace(
        fake_reports.MOVED, files_bytes=4096, files_frozen_bytes=1024, files_seconds=0.02, namespaces=True,
        target_pid=812, inside_pid=4711, leftovers=("db1: /run/x",),
    )  # fmt: skip
    text = chart.picture(report, 200)
    assert "there it is pid 812 (4711 in a PID namespace of its own)\n" in text
    assert (
        "files: 4.0 KiB came along, 1.0 KiB of that in the freeze, 20 ms from the hold to the last in its place" in text
    )
    assert "left behind: db1: /run/x\n" in text


def test_names_that_others_have_chosen_cannot_move_the_cursor() -> None:
    text = chart.picture(fake_reports.WHOLE_IN_THE_FREEZE)
    assert "\x1b" not in text
    assert "weird $x_1$ \\x1b[31m" in text


@pytest.mark.parametrize("columns", [28, 40, 57, 58, 80, 200])
@pytest.mark.parametrize("report", fake_reports.ALL, ids=lambda report: str(report.id))
def test_bars_and_tables_never_wrap(report: Report, columns: int) -> None:
    for line in chart.picture(report, columns).splitlines():
        # a word that is longer than a line stays in one piece, so that it can be pasted
        assert len(line) <= columns or len(max(line.split(), key=len)) > columns - 4, line


@given(reports(), st.integers(0, 300))
def test_any_report_can_be_drawn(report: Report, columns: int) -> None:
    text = chart.picture(report, columns)
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.endswith("\n")


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 100))
def test_a_bar_lies_where_it_should_and_is_seen(offset: float, share: float, columns: int) -> None:
    drawn = chart.bar(offset, share, columns)
    blocks = drawn.lstrip(" ")
    assert len(drawn) <= columns
    assert bool(blocks) == (share > 0)
    assert abs(len(drawn) - len(blocks) - offset * columns) <= 1
    assert len(blocks) <= share * columns + 2


def test_the_list_is_a_table_or_folded() -> None:
    table = chart.reports_list(fake_reports.ALL[:3])
    assert table.splitlines() == [
        "ID                      DATE                 PID   NAME          TARGET    DOWN    OUTCOME",
        "20260704-031500-a1b2c3  2026-07-04 03:15:00  4711  redis-server  root@db2  0.12 s  migrated",
        "20260704-030200-0f0f0f  2026-07-04 03:15:00  4711  redis-server  root@db2  0.34 s  undone in restore",
        "20260704-025900-cccccc  2026-07-04 02:59:00  812   postgres      db2       -       undone in preflight",
    ]
    assert chart.reports_list(fake_reports.ALL[:1], 60).splitlines() == [
        "20260704-031500-a1b2c3  2026-07-04 03:15:00",
        "    4711  redis-server  root@db2  0.12 s  migrated",
    ]
    assert chart.reports_list([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 ms"), (0.0004, "0.4 ms"), (0.031, "31 ms"), (0.1, "0.10 s"), (3.41, "3.4 s"), (125.2, "2 min 05 s")],
)
def test_short_times(seconds: float, text: str) -> None:
    assert chart.short_time(seconds) == text


def test_a_terminal_without_such_characters_gets_others() -> None:
    assert chart.picture(fake_reports.MOVED).translate(chart.PLAIN).isascii()
