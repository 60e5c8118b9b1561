"""`migrate report`: which one is meant, what is shown, and one line for whatever can be wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migrator import chart, cli, comparing, history
from migrator.kept import Reports
from migrator.phases import REPORT_VERSION
from migrator.report import as_json, parse
from tests.migrator import fake_reports

MOVED, UNDONE = fake_reports.MOVED, fake_reports.UNDONE


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reports:
    """Two reports that are kept, where `migrate` looks for them."""
    monkeypatch.setattr(history, "STATE_OF_ROOT", tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    reports = history.of_user(os.environ, os.geteuid()).reports
    for at, report in enumerate((MOVED, UNDONE)):
        assert reports.keep(report) == ""
        path = reports.path(report.id)
        assert path is not None
        os.utime(path, (at, at))
    monkeypatch.chdir(tmp_path)
    return reports


Said = pytest.CaptureFixture[str]


def told(capsys: Said, *arguments: str) -> str:
    """What a good run says."""
    assert cli.main(["report", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: Said, *arguments: str) -> str:
    """The one line of a run that was refused."""
    assert cli.main(["report", *arguments]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("migrate: ")
    assert err.count("\n") == 1
    return err


def test_those_that_are_kept_are_listed_newest_first(kept: Reports, capsys: Said) -> None:
    assert told(capsys) == chart.reports_list([UNDONE, MOVED])
    events = [json.loads(line) for line in told(capsys, "--json").splitlines()]
    assert [(event["event"], event["id"]) for event in events] == [("report", UNDONE.id), ("report", MOVED.id)]


def test_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(history, "STATE_OF_ROOT", tmp_path / "none")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "none"))
    assert told(capsys).startswith("no reports are kept in ")
    assert told(capsys, "--json") == ""


def test_a_damaged_one_is_named_and_the_others_are_listed(kept: Reports, capsys: Said) -> None:
    path = kept.path(MOVED.id)
    assert path is not None
    path.write_text(as_json(MOVED)[:100])
    assert cli.main(["report"]) == 0
    out, err = capsys.readouterr()
    assert out == chart.reports_list([UNDONE])
    assert err.startswith(f"migrate: {path}: no JSON, or only a part of it")
    assert err.count("\n") == 1


def test_one_by_its_id_or_in_a_file(kept: Reports, capsys: Said, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"event": "phase", "at": 0.1, "phase": "connect"}\n' + as_json(UNDONE) + "\n")
    assert told(capsys, MOVED.id) == chart.picture(MOVED)
    assert told(capsys, "run.json") == chart.picture(UNDONE)
    assert told(capsys, str(tmp_path / "run.json")) == chart.picture(UNDONE)
    assert told(capsys, MOVED.id, "--json") == as_json(MOVED) + "\n"


def test_one_through_a_pipe(kept: Reports, capfd: pytest.CaptureFixture[str]) -> None:
    text = as_json(MOVED) + "\n"
    command = [sys.executable, "-m", "migrator", "report", "/dev/stdin"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=root, env={**os.environ}, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pid {MOVED.pid} (redis-server)")


def test_a_kept_one_goes_before_a_file_of_its_name(kept: Reports, capsys: Said, tmp_path: Path) -> None:
    (tmp_path / MOVED.id).write_text("something else")
    assert told(capsys, MOVED.id) == chart.picture(MOVED)


def test_two_side_by_side(kept: Reports, capsys: Said) -> None:
    assert told(capsys, "--compare", MOVED.id, UNDONE.id) == comparing.table(MOVED, UNDONE)
    *both, compared = map(json.loads, told(capsys, "--compare", MOVED.id, UNDONE.id, "--json").splitlines())
    assert [event["id"] for event in both] == [MOVED.id, UNDONE.id]
    assert compared["event"] == "compared"
    rows: dict[str, Any] = {row["name"]: row for row in compared["rows"]}
    assert rows["downtime_seconds"] == {
        "name": "downtime_seconds", "unit": "s", "a": 0.118, "b": 0.34, "ratio": pytest.approx(2.881, abs=0.001),
    }  # fmt: skip
    assert rows["freeze.thaw"]["a"] is None


@pytest.mark.parametrize("which", [[MOVED.id], ["--compare", MOVED.id, UNDONE.id]])
def test_a_picture_in_a_file(kept: Reports, capsys: Said, tmp_path: Path, which: list[str]) -> None:
    out = told(capsys, *which, "--plot", "out.svg")
    assert out.endswith("\nthe picture is in out.svg\n")
    assert (tmp_path / "out.svg").read_bytes().startswith(b"<?xml")
    events = [json.loads(line) for line in told(capsys, *which, "--plot", "out.png", "--json").splitlines()]
    assert (events[-1]["event"], events[-1]["path"]) == ("plotted", "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_is_drawn_in_characters_and_the_extra_is_named(
    kept: Reports, capsys: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["report", MOVED.id, "--plot", "out.svg"]) == 2
    out, err = capsys.readouterr()
    assert out == chart.picture(MOVED)
    assert err.startswith("migrate: --plot: no matplotlib")
    assert "pip install '.[plot]'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.svg").exists()


FUTURE = as_json(MOVED).replace(f'"version": {REPORT_VERSION}', f'"version": {REPORT_VERSION + 1}')


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (as_json(MOVED)[:200].encode(), "only a part of it"),
        (FUTURE.encode(), "from a newer migrate"),
        (b'{"a": 1}', "it has no version"),
        (b"", "it is empty"),
        (b"\xff\xfe\x00", "no text"),
        (b"hello\n", "no JSON"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(
    kept: Reports, capsys: Said, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "file.json").write_bytes(content)
    line = refused(capsys, "file.json")
    assert line.startswith("migrate: file.json: ")
    assert words in line
    assert words in refused(capsys, "--compare", MOVED.id, "file.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["20260101-000000-ffffff"], "`migrate report` lists them"),
        (["no/such/file.json"], "no file is there"),
        (["."], "a directory"),
        (["/proc/self/mem"], "Input/output error"),
        (["/dev/zero"], "too large"),
        (["x" * 300], "File name too long"),
        ([MOVED.id, UNDONE.id], "unrecognized arguments"),
        (["--compare", MOVED.id], "expected 2 arguments"),
        ([MOVED.id, "--compare", MOVED.id, UNDONE.id], "not allowed"),
        (["--plot", "out.svg"], "say which"),
        ([MOVED.id, "--plot", "out.jpg"], ".svg, .png, .pdf"),
        ([MOVED.id, "--plot", "none/out.svg"], "none/out.svg: No such file"),
        ([MOVED.id, "--plot", ".svg"], "ends in none of"),
        ([MOVED.id, "--no-such"], "--no-such"),
    ],
)
def test_bad_input_is_one_line(kept: Reports, capsys: Said, arguments: list[str], words: str) -> None:
    assert words in refused(capsys, *arguments)


def test_what_is_kept_reads_as_what_was_printed(kept: Reports) -> None:
    path = kept.path(UNDONE.id)
    assert path is not None
    assert parse(path.read_text()) == parse(as_json(UNDONE))
