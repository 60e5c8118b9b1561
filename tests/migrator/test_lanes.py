"""A drain on one time axis, in characters and by matplotlib: what stands in it, of any drain, nothing over others."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator import cli, errors, lanes, picture
from migrator.drain import Drain, Limits
from migrator.drain_record import Attempt, Record
from migrator.lanes import Lane
from migrator.logbook import Logbook
from migrator.standing import Ledger
from tests.migrator import fake_reports
from tests.migrator.test_drain import PLAN, Hosts, Lines, moves
from tests.migrator.test_picture import BEGINNINGS, nothing_overlaps, saved_by, words_of

DRAIN = (
    Lane("database 4711 → db2", 0.0, 4.42, "moved", (3.31, 3.428), arrived=True),
    Lane("workers 4712 → db2", 4.5, 5.6, "exit 33: db2: criu restore: no such file", (5.2, 5.5)),
    Lane("workers 4713 → db3", 4.5, 4.9, "exit 20: 2 obstacles"),
    Lane("www 5000 → db2", 4.9, 6.0, "leftovers", (5.4, 5.45), arrived=True),
)
PICTURE = """\
drain p.toml: 4 migrations in 6.0 s, down 0.47 s in all, 0.30 s at most

                         in    down
database 4711 → db2   4.4 s  0.12 s  ███████████████████████░▓▓▓▓▓▓▓
workers 4712 → db2    1.1 s  0.30 s                                 █████░░░█
    exit 33: db2: criu restore: no such file
workers 4713 → db3   0.40 s       -                                 ████
    exit 20: 2 obstacles
www 5000 → db2        1.1 s   50 ms                                    ███░░▓▓▓
█ runs where it was  ░ frozen  ▓ runs on the target
"""
times = st.floats(0, 1e4)
some = st.builds(
    lambda label, began, steps, outcome, frozen, arrived: Lane(
        label, began, began + sum(steps), outcome,
        (began + steps[0], began + steps[0] + steps[1]) if frozen else None, frozen and arrived,
    ),
    st.text(max_size=60), times, st.tuples(times, times, times),
    st.sampled_from(["moved", "", "exit 33: db2: criu restore: no such file or directory"]),
    st.booleans(), st.booleans(),
)  # fmt: skip


def test_in_characters() -> None:
    assert lanes.drawn("drain p.toml", DRAIN, 79) == PICTURE


@given(st.lists(some, max_size=6), st.integers(0, 200))
def test_any_drain_fits_its_columns(drain: list[Lane], columns: int) -> None:
    text = lanes.drawn("return p.toml", drain, columns)
    assert all(len(line) <= max(columns or lanes.COLUMNS, lanes.NARROWEST) for line in text.splitlines())
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_by_matplotlib(kind: str) -> None:
    assert picture.render_lanes("drain p.toml", DRAIN, kind).startswith(BEGINNINGS[kind])


def test_what_is_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(picture.render_lanes("drain p.toml", DRAIN, "svg"))
    assert "drain p.toml: 4 migrations in 6.0 s, down 0.47 s in all, 0.30 s at most" in words
    assert {lane.label for lane in DRAIN} <= set(words)
    assert {"down 0.12 s", "exit 20: 2 obstacles", "frozen", "runs on the target"} <= set(words)
    figure = saved_by(lambda: picture.render_lanes("drain p.toml", DRAIN, "png"), monkeypatch)
    nothing_overlaps(figure)
    bars = [(round(bar.get_x(), 3), round(bar.get_width(), 3)) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert (3.31, 0.118) in bars


def test_of_very_many_the_rest_is_left_out_and_that_is_said() -> None:
    words = words_of(picture.render_lanes("drain p.toml", [DRAIN[0]] * (picture.MOST_LANES + 1), "svg"))
    assert words.count(DRAIN[0].label) == picture.MOST_LANES
    assert f"(the first {picture.MOST_LANES} are drawn)" in " ".join(words)


@given(st.lists(some, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_drain_can_be_drawn(drain: list[Lane]) -> None:
    assert picture.render_lanes("drain p.toml", drain, "svg").startswith(BEGINNINGS["svg"])


async def test_the_lanes_of_a_run(tmp_path: Path) -> None:
    hosts = Hosts(a=[1], b=[2], c=[3])
    hosts.fails[1] = errors.DumpError("no")
    now = [0.0]
    record = Record(Lines(), Logbook([], {}), returning=False, clock=lambda: now[0])

    async def takes_time(pid: int) -> None:
        now[0] += 2

    hosts.during = takes_time
    ledger = Ledger.of(tmp_path / "state", tmp_path / "plan.toml")
    await Drain(moves(PLAN), ledger, Limits(keep_going=True), hosts, record).run()
    failed, moved = record.lanes
    assert failed == Lane("a 1 → db2", 0.0, 2.0, "exit 32: no")
    assert (moved.label, moved.ended, moved.outcome, moved.arrived) == ("c 3 → db2", 4.0, "moved", True)


def test_times_are_those_of_the_drain() -> None:
    attempt = Attempt.__new__(Attempt)
    attempt.job, attempt.target = _Job(), "db2"  # type: ignore[assignment]
    attempt.report, attempt.standing, attempt.began, attempt.ended = fake_reports.MOVED, None, 9.0, 14.42
    lane = attempt.lane()
    assert lane.frozen is not None
    assert [lane.began, lane.ended, *lane.frozen] == pytest.approx([10.0, 14.42, 13.31, 13.428])
    assert (lane.outcome, lane.arrived) == ("migrated", True)
    attempt.report = dataclasses.replace(fake_reports.UNDONE, total_seconds=4.42)
    assert (attempt.lane().arrived, attempt.lane().outcome) == (False, "undone in restore")


class _Job:
    label = "a 1"


def test_a_plot_that_cannot_be_made_is_told_before_anything_moves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[[move]]\npid = 4711\ntarget = "db2"\n')
    assert cli.main(["drain", str(plan), "--plot", "x.jpg"]) == 2
    assert cli.main(["drain", str(plan), "--plot", "/nonexistent/x.txt"]) == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["drain", str(plan), "--plot", str(tmp_path / "x.svg")]) == 2
    said = capsys.readouterr().err
    assert "'x.jpg' ends in none of .svg, .png, .pdf, .txt" in said
    assert "--plot /nonexistent/x.txt: No such file or directory" in said
    assert "a FILE.txt is drawn without it" in said
