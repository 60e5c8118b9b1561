"""Reports drawn by matplotlib: any report, into each kind of file, with nothing over anything else; and without it."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import HealthCheck, given, settings
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

from migrator import picture
from migrator.phases import Report
from tests.migrator import fake_reports
from tests.migrator.test_report import reports

BEGINNINGS = {"svg": b"<?xml", "png": b"\x89PNG\r\n", "pdf": b"%PDF-"}


def words_of(svg: bytes) -> list[str]:
    """Every text in the picture."""
    return [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")
    ]


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_each_kind_of_file(kind: str) -> None:
    assert picture.render([fake_reports.MOVED], kind).startswith(BEGINNINGS[kind])


def test_what_is_in_the_picture_of_a_migration() -> None:
    words = words_of(picture.render([fake_reports.MOVED], "svg"))
    assert "pid 4711 (redis-server): db1 → root@db2, 2026-07-04 03:15:00: migrated" in words
    assert "fill: 1.00 GiB in 0.92 s, 1.08 GiB/s; 84 pages waited for, 3.1 ms at most" in words
    assert "The freeze, enlarged: nobody ran for 0.12 s" in words
    assert {"dump", "images", "restore", "commit", "resume", "fill", "pre-copy 1", "pre-copy 2"} <= set(words)
    assert {"1.00 GiB in 2.5 s", "38 MiB in 0.12 s", "sent at", "dirtied at", "predicted 0.11 s"} <= set(words)
    assert {"runs on db1", "stands still", "runs on root@db2"} <= set(words)


def test_an_undone_one_shows_what_was_reached() -> None:
    words = words_of(picture.render([fake_reports.UNDONE], "svg"))
    assert "RestoreError: db2: criu restore: Can't open file srv/app.sock: No such file or directory" in words
    assert "0.25 s, failed here" in words
    assert {"undo", "thaw", "allowed 0.30 s"} <= set(words)
    assert "runs on root@db2" not in words


def test_what_never_came_to_a_freeze_has_no_panel_of_it() -> None:
    words = words_of(picture.render([fake_reports.REFUSED], "svg"))
    assert "0.25 s, failed here" in words
    assert not [word for word in words if word.startswith(("The freeze", "Sent"))]


def test_of_very_many_rounds_the_middle_is_left_out_and_that_is_said() -> None:
    words = words_of(picture.render([fake_reports.MANY_ROUNDS], "svg"))
    assert "Sent, log scale (34 rounds in the middle left out)" in words
    assert len([word for word in words if word.startswith("pre-copy ")]) == picture.MOST_ROUNDS - 1


def figure_of(drawn: Sequence[Report], monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure behind a picture, laid out."""
    return saved_by(lambda: picture.render(drawn, "png"), monkeypatch)


def saved_by(render: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure behind what this draws."""
    seen: list[Figure] = []
    save = Figure.savefig

    def saving(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        seen.append(figure)
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", saving)
    render()
    return seen[0]


@pytest.mark.parametrize(
    "drawn",
    [
        *((report,) for report in fake_reports.ALL),
        (fake_reports.MOVED, fake_reports.UNDONE),
        (fake_reports.REFUSED, fake_reports.MOVED),
    ],
    ids=lambda drawn: " ".join(report.id for report in drawn),
)
def test_no_words_lie_over_others_nor_leave_the_picture(
    drawn: Sequence[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_overlaps(figure_of(drawn, monkeypatch))


def nothing_overlaps(figure: Figure) -> None:
    """No text lies over another, nor leaves the picture at its sides."""
    with matplotlib.rc_context(picture.SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.draw_without_rendering()  # what was saved was laid out for another density of pixels
        boxes = [(text.get_text(), text.get_window_extent().shrunk(0.98, 0.8)) for text in texts(figure)]
    for index, (words, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0, words
        assert box.x1 <= figure.bbox.x1, words
        for others, other in boxes[:index]:
            assert not box.overlaps(other), (words, others)


def texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn: titles, words at bars, legends, and the labels of ticks between an axis's ends."""
    yield from figure.texts
    for axes in figure.axes:
        legend = axes.get_legend()
        labels = [tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in drawn_ticks(axis)] if axes.axison else []
        for text in (axes._left_title, *axes.texts, *(legend.get_texts() if legend else ()), *labels):  # type: ignore[attr-defined]
            if text.get_visible() and text.get_text().strip():
                yield text


def drawn_ticks(axis: Axis) -> list[Tick]:
    """Those between its ends."""
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@given(reports())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_can_be_drawn(report: Report) -> None:
    assert picture.render([report], "svg").startswith(BEGINNINGS["svg"])


@given(reports(), reports())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_two_can_be_drawn(one: Report, other: Report) -> None:
    assert picture.render([one, other], "svg").startswith(BEGINNINGS["svg"])


def test_two_are_on_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = dataclasses.replace(fake_reports.MOVED, total_seconds=8.0)
    figure = figure_of((shorter, fake_reports.UNDONE), monkeypatch)
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 6
    for one, other in zip(panels[:3], panels[3:], strict=True):
        assert one.get_xlim() == other.get_xlim()
        assert one.get_position().width == pytest.approx(other.get_position().width)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(picture.NoMatplotlib, match=r"pip install '\.\[plot\]'"):
        picture.render([fake_reports.MOVED], "svg")
