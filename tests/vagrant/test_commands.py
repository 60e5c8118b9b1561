"""`vagrant/lab demo` and `vagrant/lab test`, as far as they can be told without a lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labkit import checks, cli, demo, record
from labkit.cache import REPOSITORY
from labkit.run import LabError

PYTHON = Path("python")


def test_pytest_arguments_are_passed_on() -> None:
    known, rest = cli.parser().parse_known_args(["test", "--all", "tests/live", "-k", "redis", "-x"])
    assert known.everything
    assert rest == ["tests/live", "-k", "redis", "-x"]


def test_the_lab_is_started_for_live_tests_only() -> None:
    assert checks.needs_lab(["-x", "tests/live/test_witness.py"])
    assert checks.needs_lab(["tests/live"])
    assert not checks.needs_lab(["tests/agent", "-k", "lock"])


def test_long_tests_are_left_out_unless_asked_for() -> None:
    assert checks.live_arguments("vm", "one", False) == [
        *("--backend", "vm", "--lab-name", "one", "--durations=20", "-m", "not long", "tests/live")
    ]
    assert "-m" not in checks.live_arguments("vm", "one", True)


def test_the_whole_fault_grid_is_run_when_it_is_asked_for() -> None:
    assert "--faults" not in checks.live_arguments("netns", "one", False)
    known, rest = cli.parser().parse_known_args(["test", "--faults", "all", "tests/live/faults"])
    assert checks.lab_arguments("netns", "one", known.faults)[-2:] == ["--faults", "all"]
    assert rest == ["tests/live/faults"]


def test_one_failed_check_fails_the_run_and_the_others_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    done = checks.Run()
    for name, status in (("first", 0), ("second", 5), ("third", 0)):
        done.command(name, [sys.executable, "-c", f"raise SystemExit({status})"])
    assert done.report() == 1
    said = capsys.readouterr().err
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["ok", "FAILED", "ok"]


def test_a_lab_is_taken_down_even_if_it_did_not_come_up() -> None:
    calls: list[str] = []

    def up() -> record.Lab:
        raise LabError("no sshd answers")

    done = checks.Run()
    done.on_lab("netns", up, lambda: calls.append("down"), ["true"])
    assert calls == ["down"]
    assert [(outcome.name, outcome.status) for outcome in done.outcomes] == [("lab up, netns", 1)]


def test_a_log_tells_the_longest_pause_and_what_is_missing() -> None:
    logged = demo.read_log("1 10.000 7\n2 10.050 7\n3 12.050 7\n5 12.100 7\n")
    assert (logged.lines, logged.missing) == (4, 1)
    assert logged.longest_gap == pytest.approx(2.0)
    assert demo.read_log("") == demo.Logged(0, 0, 0.0)


def test_the_busy_program_logs_lines_that_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, demo.PROGRAM, log, "1"]) as process:
        while not log.exists() or log.read_text().count("\n") < 3:
            assert process.poll() is None
        process.kill()
    logged = demo.read_log("".join(line + "\n" for line in log.read_text().splitlines()[:3]))
    assert (logged.lines, logged.missing) == (3, 0)


def test_help_names_the_environment_variable() -> None:
    said = subprocess.run([REPOSITORY / "vagrant/lab", "--help"], capture_output=True, text=True, check=True)
    assert "$MIGRATE_LAB_DIR" in said.stdout
