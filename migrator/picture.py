"""Reports drawn into a file: the only door to matplotlib, which need not be there.

Owns what a picture looks like. What stands in it in words is `chart`'s. Three shades say where the process runs; they
differ in lightness too, so that a grey copy says the same.
"""

from __future__ import annotations

import io
import logging
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from migrator import chart, lanes
from migrator.lanes import Lane
from migrator.phases import Phase, Report, Round, Span
from migrator.timeline import UNDO
from migrator.words import bytes_text, seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE, NOBODY, THERE = "#a9c4e4", "#6b1f2a", "#5a9a68"
"""Where it runs: on the source, nowhere, on the target."""
INK, FAINT, GRID, SENT, DIRTY = "#222222", "#bbbbbb", "#e4e4e4", "#2f5f9e", "#e0a030"
WIDTH = 9.6
ROW, PANEL, LINE = 0.25, 0.85, 0.19
"""Inches of a row, of what is around the rows of a panel, of a line of words."""
LONGEST_LINE, LONGEST_TITLE = 130, 95
"""Characters."""
VEIL: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
"""What is behind words that may lie over a line."""
Named = tuple[str, Round]
"""A round, by name."""
MOST_ROUNDS = 30
"""So many rounds are drawn; beyond, the middle ones are left out, and that is said."""
MOST_LANES = 200
ROOM = 1.16
"""An axis is longer than its longest bar by this factor, so that the words behind it have room."""
LANE_ROOM = 1.4
"""The same where the words may be those of an error."""
SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "savefig.dpi": 130,
}


class NoMatplotlib(Exception):
    """matplotlib is not installed, or does not work; the message says what to do."""


def render(reports: Sequence[Report], kind: str) -> bytes:
    """One report as a picture, or several, one below the other, on the same scales. `kind`: svg, png, pdf.

    Raises NoMatplotlib.
    """

    def draw(figure: Figure) -> None:
        if len(reports) == 1:
            _whole(figure, reports[0])
        else:
            _compared(figure, reports)

    return _saved(draw, kind)


def render_lanes(name: str, drawn: Sequence[Lane], kind: str) -> bytes:
    """A drain of this name: each process on one time axis. `kind` as above. Raises NoMatplotlib."""
    return _saved(lambda figure: _lanes(figure, name, drawn), kind)


def ready() -> None:
    """Raises NoMatplotlib."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its cache of fonts is no news for an admin
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise NoMatplotlib(
            f"no matplotlib ({error}); it comes with the extra `plot`: pip install '.[plot]' in the checkout"
        ) from None


def _saved(draw: Callable[[Figure], None], kind: str) -> bytes:
    ready()
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a process may call itself what it likes
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # of figures that nobody has measured
        figure = Figure(layout="constrained")
        draw(figure)
        figure.savefig(file, format=kind)
    return file.getvalue()


def _lanes(figure: Figure, name: str, drawn: Sequence[Lane]) -> None:
    """A row for each migration: where it ran, and between the two the stretch in which it ran nowhere."""
    from matplotlib.patches import Patch

    whole = lanes.length(drawn)
    rows = drawn[:MOST_LANES]
    left_out = f" (the first {MOST_LANES} are drawn)" if len(drawn) > MOST_LANES else ""
    figure.set_size_inches(1.2 * WIDTH, 0.6 + PANEL + ROW * max(len(rows), 1))
    title = "\n".join(textwrap.wrap(lanes.title(name, drawn) + left_out, LONGEST_TITLE))
    figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, fontweight="bold")
    axes = figure.add_subplot()
    for row, lane in enumerate(rows):
        still, thawed = lane.frozen or (lane.ended, lane.ended)
        for begins, ends, colour in (
            (lane.began, still, HERE), (thawed, lane.ended, THERE if lane.arrived else HERE), (still, thawed, NOBODY),
        ):  # fmt: skip
            if ends > begins or (colour == NOBODY and lane.frozen):
                _bar(axes, row, begins, Span("", begins, ends - begins), colour, whole)
        words = f"down {chart.short_time(lane.downtime)}" if lane.arrived else chart.shortened(lane.outcome)
        _behind(axes, row, lane.ended, whole, words)
    _rows(axes, [lane.label for lane in rows], 1)
    _seconds(axes, whole, LANE_ROOM)
    shades = {HERE: "runs where it was", NOBODY: "frozen", THERE: "runs on the target"}
    _above(axes, [Patch(facecolor=shade, edgecolor=INK, linewidth=0.4, label=said) for shade, said in shades.items()])


def _whole(figure: Figure, report: Report) -> None:
    """One report: its figures in words, the whole run, the freeze enlarged below it, the rounds."""
    rounds, left_out = _drawn_rounds(report)
    facts = [_cut(line) for line in chart.facts(report)]
    heights = [LINE * len(facts), *(PANEL + ROW * len(rows) for rows in (report.phases, report.freeze, rounds) if rows)]
    figure.set_size_inches(WIDTH, 0.4 + sum(heights))
    title = "\n".join(textwrap.wrap(chart.title(report), LONGEST_TITLE))
    figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, fontweight="bold")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=(3, 2))
    words = figure.add_subplot(grid[0, :])
    words.axis("off")
    words.text(0, 1, "\n".join(facts), va="top", linespacing=1.35, transform=words.transAxes)
    below = 1
    if report.phases:
        whole = figure.add_subplot(grid[below, :])
        _phases(whole, report, report.total_seconds)
        hosts = map(chart.shortened, (report.source, report.target))
        source, target = (f"runs on {host}" for host in hosts)
        _legend(whole, report, source, "stands still", target)
        below += 1
        if report.freeze:
            freeze = figure.add_subplot(grid[below, :])
            start, end = chart.frozen(report)
            _freeze(freeze, report, end - start)
            freeze.set_title(f"The freeze, enlarged: nobody ran for {chart.short_time(end - start)}", bbox=VEIL)
            _enlarged(figure, whole, freeze, start, end)
            below += 1
    if rounds:
        sent = figure.add_subplot(grid[below, 0])
        _sent(sent, rounds, left_out)
        _rates(figure.add_subplot(grid[below, 1], sharey=sent), rounds)


def _compared(figure: Figure, reports: Sequence[Report]) -> None:
    """A row for each report; what stands in a column is on one scale."""
    rounds = [_drawn_rounds(report) for report in reports]
    depths = [
        max(len(report.phases), len(report.freeze), len(drawn), 1)
        for report, (drawn, _) in zip(reports, rounds, strict=True)
    ]
    heights = [height for depth in depths for height in (1.6 * LINE, PANEL + ROW * depth)]
    figure.set_size_inches(1.55 * WIDTH, sum(heights))
    total = max(report.total_seconds for report in reports)
    pauses = [end - start for start, end in (chart.frozen(report) for report in reports if report.freeze)]
    sizes = [done.bytes for drawn, _ in rounds for _, done in drawn]
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights, width_ratios=(5, 5, 4))
    for row, (report, (drawn, left_out), depth) in enumerate(zip(reports, rounds, depths, strict=True)):
        title = figure.add_subplot(grid[2 * row, :])
        title.axis("off")
        title.text(0, 0, f"{'AB'[row]}: {chart.title(report)}", fontsize=10.5, fontweight="bold")
        phases, freeze, sent = (figure.add_subplot(grid[2 * row + 1, column]) for column in range(3))
        _phases(phases, report, total, depth)
        _legend(phases, report, "on the source", "still", "on the target")
        _freeze(freeze, report, max(pauses, default=0.0), depth)
        _sent(sent, drawn, left_out, sizes, depth)


def _phases(axes: Axes, report: Report, total: float, depth: int = 0) -> None:
    """The phases of the whole run on a scale of `total` seconds."""
    axes.set_title(f"The whole run: {seconds_text(report.total_seconds)}")
    failed = chart.failed_in(report)
    for row, span in enumerate(report.phases):
        bar = _bar(axes, row, span.started_seconds, span, _shade(span.name), total)
        if span.name in (UNDO, Phase.ROLLBACK.value):
            bar.set_hatch("////")
        words = chart.short_time(span.seconds) + (", failed here" if span.name == failed else "")
        _behind(axes, row, span.started_seconds + span.seconds, total, words)
    _rows(axes, [span.name for span in report.phases], depth)
    _seconds(axes, total)


def _freeze(axes: Axes, report: Report, longest: float, depth: int = 0) -> None:
    """The steps of the freeze on a scale of `longest` seconds, and what had been expected of it."""
    if not report.freeze:
        axes.set_title("The freeze: it never came to that")
        axes.axis("off")
        return
    start, end = chart.frozen(report)
    axes.set_title(f"The freeze: {chart.short_time(end - start)}")
    for row, span in enumerate(report.freeze):
        begins = span.started_seconds - start
        bar = _bar(axes, row, begins, span, NOBODY, longest)
        if span.name == "thaw":
            bar.set_hatch("////")
        _behind(axes, row, begins + span.seconds, longest, chart.short_time(span.seconds))
    lines = (("predicted", report.predicted_downtime_seconds, "--"), ("allowed", report.max_downtime_seconds, ":"))
    for word, seconds, style in lines:
        if 0 < seconds <= longest * ROOM:
            axes.axvline(seconds, color=INK, linewidth=1, linestyle=style, label=f"{word} {chart.short_time(seconds)}")
    _above(axes)
    _rows(axes, [span.name for span in report.freeze], depth)
    _seconds(axes, longest)


def _sent(axes: Axes, rounds: Sequence[Named], left_out: int, sizes: Sequence[int] = (), depth: int = 0) -> None:
    """What each round sent. The scale is logarithmic, since rounds shrink by factors."""
    axes.set_title("Sent, log scale" + (f" ({left_out} rounds in the middle left out)" if left_out else ""))
    known = [size for size in (*sizes, *(done.bytes for _, done in rounds)) if size > 0]
    if not rounds or not known:
        axes.set_title("Sent: nothing")
        axes.axis("off")
        return
    low, high = min(known) / 4, max(known)
    for row, (_, done) in enumerate(rounds):
        if done.bytes:
            axes.barh(row, done.bytes - low, left=low, height=0.62, color=NOBODY if _is_freeze(rounds[row]) else HERE)
        words = f"{bytes_text(done.bytes)} in {chart.short_time(done.seconds)}"
        axes.text(max(done.bytes, low), row, f" {words}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.42)
    _powers(axes, low, high)
    _rows(axes, [label for label, _ in rounds], depth)


def _rates(axes: Axes, rounds: Sequence[Named]) -> None:
    """How fast each round was sent, and how fast the tree had written what it carried."""
    axes.set_title("Rate, bytes a second")
    known = [rate for _, done in rounds for rate in (chart.rate(done), done.dirty_rate) if rate > 0]
    if not known:
        axes.axis("off")
        return
    for row, (_, done) in enumerate(rounds):
        if chart.rate(done) > 0 and done.dirty_rate > 0:
            axes.plot([chart.rate(done), done.dirty_rate], [row, row], color=FAINT, linewidth=1, zorder=1)
    for label, marker, colour, rates in (
        ("sent at", "o", SENT, [chart.rate(done) for _, done in rounds]),
        ("dirtied at", "D", DIRTY, [done.dirty_rate for _, done in rounds]),
    ):
        points = [(rate, row) for row, rate in enumerate(rates) if rate > 0]
        if points:
            across, rows = zip(*points, strict=True)
            axes.scatter(across, rows, s=34, marker=marker, color=colour, label=label, edgecolors=INK, zorder=2)
    low, high = min(known), max(known)
    axes.set_xscale("log")
    axes.set_xlim(low / 2, high * 2)
    _powers(axes, low / 2, high * 2)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    _above(axes)


def _drawn_rounds(report: Report) -> tuple[list[Named], int]:
    """The rounds that are drawn, by name, and how many in the middle are not."""
    rounds = chart.labelled(report)
    if len(rounds) <= MOST_ROUNDS:
        return rounds, 0
    half = MOST_ROUNDS // 2
    return [*rounds[:half], *rounds[-half:]], len(rounds) - 2 * half


def _is_freeze(named: Named) -> bool:
    return named[0] == Phase.FREEZE.value


def _shade(phase: str) -> str:
    return NOBODY if phase in chart.NOBODY else THERE if phase in chart.THERE else HERE


def _bar(axes: Axes, row: int, begins: float, span: Span, colour: str, longest: float) -> Any:
    """A span as a bar, which is seen however short it is."""
    width = max(span.seconds, longest * 0.002)
    (bar,) = axes.barh(row, width, left=begins, height=0.62, color=colour, edgecolor=INK, linewidth=0.4)
    return bar


def _behind(axes: Axes, row: int, end: float, longest: float, words: str) -> None:
    """Words behind a bar; before the axis ends."""
    axes.text(end + longest * 0.008, row, words, va="center", fontsize=8, bbox=VEIL)


def _rows(axes: Axes, labels: Sequence[str], depth: int) -> None:
    """One row a label, the first on top; with room for at least `depth` of them."""
    axes.set_yticks(range(len(labels)), [chart.shortened(label) for label in labels])
    axes.set_ylim(max(len(labels), depth) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.6)


def _seconds(axes: Axes, longest: float, room: float = ROOM) -> None:
    """The axis in seconds, or in milliseconds where there is less than one."""
    end = longest * room if longest > 0 else 1.0
    factor, unit = (1000, "ms") if end < 1 else (1, "s")
    axes.set_xlim(0, end)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * factor:g} {unit}")


def _powers(axes: Axes, low: float, high: float) -> None:
    """Ticks at powers of two, five at most, called as people call them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    step = max(math.ceil((last - first) / 4), 1)
    ticks = [2.0**power for power in range(first, last + 1, step)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: bytes_text(value))


def _legend(axes: Axes, report: Report, here: str, nowhere: str, there: str) -> None:
    """What the shades say, of those that are there."""
    from matplotlib.patches import Patch

    shades = {HERE: here, NOBODY: nowhere, THERE: there}
    seen = {_shade(span.name) for span in report.phases}
    _above(
        axes,
        [
            Patch(facecolor=shade, edgecolor=INK, linewidth=0.4, label=words)
            for shade, words in shades.items()
            if shade in seen
        ],
    )


def _above(axes: Axes, handles: Sequence[Any] = ()) -> None:
    """The legend above the axes, where no bar can be, in one line with the title."""
    drawn = list(handles) or axes.get_legend_handles_labels()[0]
    if drawn:
        axes.legend(
            handles=drawn, loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=len(drawn), fontsize=8,
            borderaxespad=0.0, columnspacing=1.2, facecolor=VEIL["facecolor"], framealpha=VEIL["alpha"],
            edgecolor=VEIL["edgecolor"],
        )  # fmt: skip


def _enlarged(figure: Figure, whole: Axes, freeze: Axes, start: float, end: float) -> None:
    """The freeze as a band of the whole run, and lines from its ends to those of its own axis."""
    from matplotlib.patches import ConnectionPatch

    whole.axvspan(start, end, color=NOBODY, alpha=0.15, linewidth=0)
    bottom = whole.get_ylim()[0]
    for at, below in ((start, 0.0), (end, end - start)):
        line = ConnectionPatch(
            xyA=(at, bottom), coordsA=whole.transData, xyB=(below, freeze.get_ylim()[1]), coordsB=freeze.transData,
            color=NOBODY, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)),
        )  # fmt: skip
        line.set_in_layout(False)
        line.set_zorder(-1)  # below the titles
        figure.add_artist(line)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"
