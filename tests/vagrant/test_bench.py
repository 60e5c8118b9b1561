"""The benchmark's pure parts: goals, results, table, picture, and what `vagrant/lab bench` runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labkit import bench, cli, record
from labkit.run import LabError
from tests.bench import measures, picture, rows, table
from tests.bench.rows import Result, at_least, at_most

FLAT = Result("flatness", 1.5, "x", at_most(1.2), "netns", {"256 MiB": [0.1, 0.2, 0.3], "4 GiB": [0.3]})
OURS = Result("ours", 0.5, "s", None, "vm", {"downtime": [0.5]})
HAND = Result("by hand", 40.0, "s", None, "vm", {"downtime": [40.0]})
HAUL = Result("haul", 2.0, "s", None, "vm", {"downtime": [2.0]})
STREAM = Result("stream", 0.95, "of ssh cat", at_least(0.9), "netns", {"criu, MiB/s": [400.0, 410.0]})
NOTHING = rows.not_measured("fill", "netns", "no reason")
ALL = [HAND, HAUL, OURS, FLAT, STREAM, NOTHING]


@pytest.mark.parametrize(
    ("goal", "value", "met", "part"),
    [
        (at_most(1.2), 1.2, True, 1.0),
        (at_most(1.2), 1.21, False, 1.21 / 1.2),
        (at_least(0.9), 0.9, True, 1.0),
        (at_least(0.9), 0.45, False, 2.0),
        (at_most(30), -1.0, True, 0.0),
        (at_least(2), 0.0, False, float("inf")),
    ],
)
def test_a_goal(goal: rows.Goal, value: float, met: bool, part: float) -> None:
    assert goal.met_by(value) is met
    assert goal.part(value) == pytest.approx(part)
    assert rows.Goal.parse(str(goal)) == goal


@pytest.mark.parametrize("text", ["1.2", "< 1.2", "<= x", ""])
def test_what_is_no_goal(text: str) -> None:
    with pytest.raises(ValueError, match=r"goal|float"):
        rows.Goal.parse(text)


@pytest.mark.parametrize("result", ALL)
def test_a_result_is_one_object_a_line(result: Result) -> None:
    line = json.loads(result.to_json())
    assert set(line) == {"row", "value", "unit", "goal", "met", "backend", "samples"} | (
        {"why"} if result.why else set()
    )
    assert Result.from_json(result.to_json()) == result


def test_ours_is_judged_by_the_others() -> None:
    judged = measures.judged([HAND, HAUL, OURS])
    assert judged[:3] == [HAND, HAUL, OURS]
    assert [(each.unit, each.value, each.met) for each in judged[3:]] == [
        ("of by hand", 0.0125, True),
        ("of haul", 0.25, False),
    ]


def test_ours_is_judged_by_what_there_is_and_only_where_memory_is_tracked() -> None:
    native = Result("by hand", 2.0, "s", None, "netns")
    ours = Result("ours", 1.0, "s", None, "netns")
    judged = measures.judged([native, rows.not_measured("haul", "netns", "none"), ours])
    assert [(each.unit, each.met) for each in judged[3:]] == [("of by hand", None)]
    assert measures.judged([native]) == [native]


def test_growth_is_from_the_first_size_to_the_last_by_medians() -> None:
    assert rows.growth({"small": [1.0, 2.0, 9.0], "middle": [50.0], "large": [3.0, 5.0]}) == 2.0


def test_a_ratio_is_that_of_pairs() -> None:
    assert rows.ratio([10.0, 1.0, 4.0], [5.0, 0.5, 1.0]) == 2.0


def test_rows_that_no_chosen_backend_measures_say_so() -> None:
    missing = rows.elsewhere(list(rows.ROWS), ["vm"])
    assert [each.row for each in missing] == [row for row, where in rows.ROWS.items() if "vm" not in where]
    assert missing
    assert all(each.value is None and "netns" in each.why for each in missing)
    assert rows.elsewhere(list(rows.ROWS), ["netns", "vm"]) == []


def test_the_table_s_order() -> None:
    mixed = [NOTHING, OURS, FLAT, HAND, Result("ours", 0.1, "s", None, "netns")]
    assert [(each.row, each.backend) for each in rows.in_order(mixed)] == [
        *(("by hand", "vm"), ("ours", "netns"), ("ours", "vm"), ("flatness", "netns"), ("fill", "netns"))
    ]


def test_every_row_has_a_measure() -> None:
    assert list(measures.MEASURES) == list(rows.ROWS)


def test_the_table_says_what_was_measured_and_what_not() -> None:
    lines = table.text(ALL, "2 cores").splitlines()
    assert lines[0] == "2 cores"
    flat = next(line for line in lines if line.startswith("flatness"))
    assert flat.split()[:6] == ["flatness", "netns", "1.5", "x", "≤", "1.2"]
    assert "NO" in flat
    assert "256 MiB: 0.1 0.2 0.3; 4 GiB: 0.3" in flat
    assert next(line for line in lines if line.startswith("fill")).endswith("no reason")
    assert "yes" in next(line for line in lines if line.startswith("stream"))


def test_many_samples_are_summed_up() -> None:
    many = Result("fill", 5.0, "GiB/s", None, "netns", {"rate": [float(value) for value in range(1, 10)]})
    assert table.cells(many)[5] == "rate: 1…9 (n=9)"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (0.01234, "0.0123"), (1.25, "1.25"), (999.4, "999"), (12345.6, "12346")]
)
def test_numbers_have_three_digits_that_count(value: float, shown: str) -> None:
    assert table.number(value) == shown


def test_markdown_has_a_line_for_each() -> None:
    lines = table.markdown(ALL).splitlines()
    assert len(lines) == 2 + len(ALL)
    assert "| fill | netns | no reason |  |  |" in lines


def test_the_picture_has_a_bar_for_every_downtime_and_every_goal() -> None:
    root = ElementTree.fromstring(picture.svg(ALL, "2 cores"))
    space = "{http://www.w3.org/2000/svg}"
    bars = list(root.iter(f"{space}rect"))[1:]
    assert len(bars) == 3 + 2 + 2  # by hand, haul, ours; two sizes; two goals
    assert all(float(bar.attrib["width"]) >= 1 for bar in bars)
    colours = [bar.attrib["fill"] for bar in bars[-2:]]
    assert colours == [picture.BAD, picture.GOOD]
    words = {each.text for each in root.iter(f"{space}text")}
    assert {"2 cores", "by hand (vm)", "40 s"} <= words


def test_a_picture_of_nothing() -> None:
    assert ElementTree.fromstring(picture.svg([NOTHING], "2 cores")).tag.endswith("svg")


def test_a_value_of_its_goal_s_other_side_stays_in_the_picture() -> None:
    below = Result("own share", -3.0, "ms", at_most(30), "netns")
    assert picture.distances([below])[0].value == 1e-3


LOG = """\
(00.000000) CRIU run id = 1
(00.002435) Seized task 11823, state 1
(00.002741) Seized task 11826, state 1
(00.080435) Running post-dump scripts
(00.080436) \t[/var/lib/migrate/x/hold]
(00.120000) Unfreezing tasks into 2
page-xfer without a stamp
(00.121000) Dumping finished successfully
(00.121100) Writing stats
"""


def test_criu_s_own_time_is_without_its_wait_in_the_hook() -> None:
    assert measures.criu_seconds(LOG, "Seized task", "post-dump") == pytest.approx(0.078 + 0.001)


@pytest.mark.parametrize("lost", ["Seized task", "post-dump", "Dumping finished"])
def test_a_log_that_lacks_a_line_gives_no_figure(lost: str) -> None:
    cut = "\n".join(line for line in LOG.splitlines() if lost not in line)
    with pytest.raises(ValueError, match="criu's log"):
        measures.criu_seconds(cut, "Seized task", "post-dump")


# --- vagrant/lab bench -----------------------------------------------------------------------------------------------

WANTED = bench.Wanted(("netns", "vm"), False, (), False, None)


def test_arguments() -> None:
    said = cli.parser().parse_args(["bench", "--backend", "vm", "--quick", "--json", "--rows", "by hand", "ours"])
    assert (said.backend, said.quick, said.json, said.rows) == ("vm", True, True, ["by hand", "ours"])
    assert cli.parser().parse_args(["bench"]).backend is None


def test_the_commands_are_understood_by_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench.__main__ import parser

    wanted = bench.Wanted(("netns",), True, ("by hand", "stream, compressible"), True, Path("/a/picture.svg"))
    measuring = bench.measure_command(Path("python"), "one", "netns", wanted)
    said = parser().parse_args(measuring[3:])
    assert (said.lab, said.backend, said.quick, said.rows) == ("one", "netns", True, list(wanted.rows))
    assert said.results == bench.results_file()
    said = parser().parse_args(bench.show_command(Path("python"), wanted)[3:])
    assert (said.json, said.picture, said.rows) == (True, wanted.picture, list(wanted.rows))
    assert said.backends == ["netns"]
    assert parser().parse_args(bench.show_command(Path("python"), WANTED)[3:]).rows == list(rows.ROWS)


def test_an_unknown_row_is_refused_before_anything_is_brought_up() -> None:
    with pytest.raises(LabError, match="no row is called 'by foot'") as refused:
        bench.check_rows(["by hand", "by foot"])
    assert "'stream, compressible'" in refused.value.hint


def test_a_lab_that_does_not_come_up_is_taken_down_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def up(name: str, backend: str, memory: str) -> record.Lab:
        calls.append(f"up {backend} {memory}".strip())
        if backend == "netns":
            raise LabError("needs root")
        return record.Lab(name, backend)

    def measure(python: Path, lab: str, backend: str, wanted: bench.Wanted) -> list[str]:
        bench.results_file().write_text(HAND.to_json() + "\n")
        return [str(python), "-c", f"print('measured on {backend}')"]

    monkeypatch.setattr(bench, "measure_command", measure)
    status = bench.play(Path(sys.executable), WANTED, "x", up, lambda name: calls.append(f"down {name}"))
    assert status == 1
    assert calls == ["up netns", "down x-netns", "up vm 3G", "down x-vm"]
    said = capfd.readouterr()
    assert "measured on vm" in said.out
    assert "by hand" in said.out
    assert bench.picture_file(WANTED).read_text().startswith("<svg")
