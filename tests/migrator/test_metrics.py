"""--metrics: what is counted, and whether Prometheus reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from migrator import cli, errors
from migrator.drain import Drain, Limits
from migrator.drain_record import Record
from migrator.logbook import Logbook
from migrator.metrics import HELP, OUTCOMES, Metrics, outcome_of
from migrator.standing import Ledger
from tests.migrator import exposition
from tests.migrator.test_drain import PLAN, Hosts, Lines, moves

README = (Path(__file__).parents[2] / "README.md").read_text()


def metrics(path: Path, warned: list[str], **labels: str) -> Metrics:
    """Of a drain that ended at 1000."""
    return Metrics(str(path), labels, warned.append, clock=lambda: 1000.0)


async def test_what_is_counted(tmp_path: Path) -> None:
    warned: list[str] = []
    file = tmp_path / "drain.prom"
    file.write_text("old")
    for fails, again in ((True, False), (False, True)):
        before = file.read_text()
        hosts = Hosts(a=[] if again else [1], b=[2], c=[3])
        if fails:
            hosts.fails[2] = errors.DumpError("no")
        book = Logbook([metrics(file, warned, command="drain", plan="p")], {})
        ledger = Ledger.of(tmp_path / "state", tmp_path / "plan.toml")
        text = PLAN if again else PLAN + 'after = ["b"]\n'
        code = await Drain(moves(text), ledger, Limits(), hosts, Record(Lines(), book, returning=False)).run()
        book.ended(code, None)
        assert file.read_text() == before
        book.close()
        found = exposition.read(file.read_text())
        counts = {outcome: found["migrate_drain_processes", outcome] for outcome in OUTCOMES}
        if fails:
            assert counts == dict.fromkeys(OUTCOMES, 0) | {"moved": 1, "failed": 1, "left": 1}
            assert found["migrate_drain_exit_code", ""] == 32
            assert found["migrate_drain_downtime_seconds", ""] == 0.1
        else:
            assert counts == dict.fromkeys(OUTCOMES, 0) | {"moved": 2, "already": 1}
            assert found["migrate_drain_exit_code", ""] == 0
            assert found["migrate_drain_downtime_seconds", ""] == pytest.approx(0.2)
        assert found["migrate_drain_longest_downtime_seconds", ""] == 0.1
        assert found["migrate_drain_end_timestamp_seconds", ""] == 1000
        assert found["migrate_drain_duration_seconds", ""] > 0
        assert {name for name, _ in found} == {f"migrate_drain_{name}" for name in HELP}
    assert file.stat().st_mode & 0o777 == 0o644
    assert warned == []


def test_bytes_of_all_and_the_longest_downtime_of_those_that_moved(tmp_path: Path) -> None:
    warned: list[str] = []
    sink = metrics(tmp_path / "x", warned)
    for status, down in ((0, 0.25), (33, 9.0), (3, 0.5)):
        sink.write(
            6,
            {"event": "ended", "move": "a", "exit": status, "downtime_seconds": down, "bytes": 10, "wire_bytes": 4},
        )
    found = exposition.read(sink.text())
    assert found["migrate_drain_bytes", ""] == 30
    assert found["migrate_drain_wire_bytes", ""] == 12
    assert found["migrate_drain_longest_downtime_seconds", ""] == 0.5
    assert found["migrate_drain_downtime_seconds", ""] == 0.75
    assert found["migrate_drain_exit_code", ""] == 1  # nobody has said how it ended


@pytest.mark.parametrize("plan", ["/a b/p.toml", 'a"b', "a\\b", "a\\nb", "a\nb", 'x\\"y\\', "{a=b}", "é", "#"])
def test_any_plan_is_a_label(tmp_path: Path, plan: str) -> None:
    text = metrics(tmp_path / "x", [], plan=plan).text()
    assert {each["plan"] for each in exposition.labels(text)} == {plan}


def test_a_name_that_is_no_text_does_not_stop_it(tmp_path: Path) -> None:
    warned: list[str] = []
    sink = metrics(tmp_path / "x", warned, plan="a\udcff")
    sink.close()
    assert {each["plan"] for each in exposition.labels((tmp_path / "x").read_text())} == {"a?"}


@pytest.mark.parametrize(("code", "outcome"), [
    (0, "moved"), (3, "leftovers"), (1, "recover"), (71, "recover"), (74, "recover"), (20, "failed"), (33, "failed"),
    (130, "stopped"), (143, "stopped"),
])  # fmt: skip
def test_what_an_exit_code_says(code: int, outcome: str) -> None:
    assert outcome_of(code) == outcome


def test_a_plan_that_is_not_there_is_seen_in_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.prom"
    assert cli.main(["drain", str(tmp_path / "no.toml"), "--metrics", str(file)]) == 2
    found = exposition.read(file.read_text())
    assert found["migrate_drain_exit_code", ""] == 2
    assert {each["plan"] for each in exposition.labels(file.read_text())} == {str(tmp_path / "no.toml")}
    assert capsys.readouterr().err.count("\n") <= 2


def test_a_file_that_cannot_be_written_is_told_before_anything_moves(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["return", "/dev/null", "--metrics", "/nonexistent/x"]) == 2
    assert capsys.readouterr().err.startswith("migrate: --metrics /nonexistent/x: No such file or directory")


@pytest.mark.parametrize("option", ["--metrics", "--plot"])
def test_not_with_a_dry_run(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert cli.main(["drain", "/dev/null", "--dry-run", option, "/nonexistent/x.svg"]) == 2
    assert "--dry-run does nothing" in capsys.readouterr().err


def test_the_readme_lists_them_all() -> None:
    table = README.split("**Metrics.**")[1].split("| metric | |")[1].split("\n\n")[0]
    assert set(re.findall(r"`migrate_drain_(\w+)`", table)) == set(HELP)
    outcomes = next(line for line in table.splitlines() if "`outcome`" in line)
    assert set(re.findall(r"`(\w+)`", outcomes)) - {"migrate_drain_processes", "outcome"} == set(OUTCOMES)
