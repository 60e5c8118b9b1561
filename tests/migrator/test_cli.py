"""The command line as a program: bad input, exit statuses, signals, terminals. Its engine is `fake_engine`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import api, catalogue, cli, errors, hosts
from migrator.arguments import parse
from migrator.phases import Phase
from tests.migrator import fake_engine

ROOT = Path(__file__).parents[2]
LAST = "running on db2 as pid 4711: down 0.12 s, total 3.4 s, 1.06 GiB in 361 MiB on the wire\n"


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run ended."""

    status: int
    out: str
    err: str
    journal: list[str]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Program:
    """`migrate` with a scripted engine, running."""

    def __init__(self, tmp_path: Path, scenario: str, *arguments: str, **options: Any) -> None:
        self._journal = tmp_path / "journal"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.migrator.fake_engine", scenario, *arguments],
            cwd=ROOT,
            env={**os.environ, "FAKE_ENGINE_JOURNAL": str(self._journal), "TERM": "xterm"},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )

    def journal(self) -> list[str]:
        return self._journal.read_text().split() if self._journal.exists() else []

    def wait_for(self, word: str) -> None:
        """Until the engine has noted this."""
        deadline = time.monotonic() + 30
        while word not in self.journal():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> Run:
        out, err = self.process.communicate(timeout=60)
        return Run(self.process.returncode, out or "", err or "", self.journal())


def run(tmp_path: Path, scenario: str, *arguments: str) -> Run:
    return Program(tmp_path, scenario, *arguments).end()


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "PID"),
        (["4711"], "HOST"),
        (["x", "db2"], "'x' is no process id"),
        (["0", "db2"], "'0' is no process id"),
        (["-1", "db2"], "'-1' is no process id"),
        (["4711.0", "db2"], "'4711.0' is no process id"),
        (["99999999999999999999999", "db2"], "is no process id"),
        (["٤٧١١", "db2"], "is no process id"),
        (["4711", "db2", "more"], "more"),
        (["4711", "db2", "--max-downtime", "0"], "'0' is no time"),
        (["4711", "db2", "--max-downtime", "nan"], "'nan' is no time"),
        (["4711", "db2", "--max-downtime", "soon"], "'soon' is no time"),
        (["4711", "db2", "--lease", "-1"], "'-1' is no time"),
        (["4711", "db2", "--lease", "10m"], "'10m' is no time"),
        (["4711", "db2", "--max-rounds", "-2"], "'-2' is no number of rounds"),
        (["4711", "db2", "--bandwidth", "fast"], "'fast' is no rate"),
        (["4711", "db2", "--bandwidth", "0"], "'0' is too slow"),
        (["4711", "db2", "--compress", "gzip"], "gzip"),
        (["4711", "db2", "--quiet", "--js"], "not allowed"),
        (["4711", "db2", "--no-such"], "--no-such"),
        (["check", "x", "db2"], "'x' is no process id"),
        (["check", "4711"], "HOST"),
        (["recover", "../../etc"], "is no migration's id"),
        (["recover", ""], "is no migration's id"),
        (["recover", "a", "b"], "b"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("migrate: ")
    assert err.count("\n") == 1
    assert words in err


def test_bad_input_with_json_is_an_event_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["x", "db2", "--json"]) == 2
    out, err = capsys.readouterr()
    (event,) = [json.loads(line) for line in out.splitlines()]
    assert (event["event"], event["error"], event["exit_code"]) == ("error", "UsageError", 2)
    assert "is no process id" in err


def test_a_host_that_makes_no_sense_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["4711", ""]) == 2
    assert cli.main(["4711", "-oProxyCommand=x", "--quiet"]) == 2
    assert cli.main(["check", "4711", "root@"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["check", "--help"], ["recover", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    for word in ("check", "recover", "exit status", "--max-downtime", "--copy-files", "migrate 0.1.0"):
        assert word in out


def order(options: argparse.Namespace) -> hosts.Order:
    """What the engine is asked for."""
    return api.order(options.pid, options.host, cli._ordered(options))


def test_the_order_is_what_was_asked() -> None:
    words = "4711 root@db2:2222 --copy-files --require-precopy --max-downtime 1.5 --max-rounds 3 --lease 2.5 --sudo"
    asked = order(parse([*words.split(), "--criu", "/opt/criu", "--bandwidth", "20M", "--compress", "zstd"]))
    assert (asked.bandwidth, asked.wishes.compress) == (20 << 20, "zstd")
    assert asked.pid == 4711
    assert (asked.wishes.copy_files, asked.wishes.require_precopy) == (True, True)
    assert (asked.limits.max_downtime, asked.limits.max_rounds) == (1.5, 3)
    assert (asked.sudo, asked.criu, asked.lease) == (True, "/opt/criu", 2.5)
    assert order(parse(["4711", "db2", "--lease", "0"])).lease == 0
    assert "db2" in str(asked.target)
    assert "2222" in str(asked.target)


@pytest.mark.parametrize(("words", "wish"), [
    ("-n 4711 db2", "always"), ("--namespaces 4711 db2", "always"), ("4711 db2 --namespaces=auto", "auto"),
    ("--namespaces=auto 4711 db2", "auto"), ("check -n 4711 db2", "always"), ("rehearse -n 4711 db2", "always"),
    ("4711 db2", "never"),
])  # fmt: skip
def test_the_wish_for_a_namespace_swallows_no_pid(words: str, wish: str) -> None:
    asked = order(parse(words.split()))
    assert (asked.pid, asked.wishes.namespaces) == (4711, wish)


def test_no_other_wish_for_a_namespace_is_understood() -> None:
    with pytest.raises(errors.UsageError):
        parse(["--namespaces=never", "4711", "db2"])


def test_defaults() -> None:
    asked = order(parse(["check", "4711", "db2"]))
    assert (asked.limits.max_downtime, asked.limits.max_rounds) == (0.3, 8)
    assert (asked.bandwidth, asked.wishes.compress) == (0.0, "auto")
    assert (asked.wishes.copy_files, asked.wishes.require_precopy, asked.sudo, asked.criu) == (False, False, False, "")


def test_an_option_may_stand_before_the_pid() -> None:
    assert parse(["--quiet", "4711", "db2"]).pid == 4711


# --- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "status", "last"),
    [
        ("host-key", 13, "  the process runs on the source and was not touched"),
        ("obstacles", 20, "  the process runs on the source and was not touched"),
        ("dump-fails", 32, "  undone: the process runs on the source"),
        ("in-doubt", 71, "  there is one copy at most, and the journals decide which"),
    ],
)
def test_an_error_is_a_paragraph_and_its_exit_code(tmp_path: Path, scenario: str, status: int, last: str) -> None:
    ended = run(tmp_path, scenario, "4711", "db2")
    assert ended.status == status
    assert "migrate: " in ended.err
    assert ended.err.splitlines()[-1] == last
    assert "Traceback" not in ended.err


def test_success(tmp_path: Path) -> None:
    ended = run(tmp_path, "ok", "4711", "db2")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.endswith(LAST)
    assert ended.journal == [phase.value for phase in Phase if phase is not Phase.ROLLBACK]


def test_leftovers_are_exit_3_and_named(tmp_path: Path) -> None:
    ended = run(tmp_path, "leftovers", "4711", "db2")
    assert ended.status == 3
    assert ended.err == "migrate: left behind: db1: /run/migrate/x could not be removed\n"


def test_obstacles_are_all_printed(tmp_path: Path) -> None:
    ended = run(tmp_path, "obstacles", "4711", "db2")
    for obstacle in fake_engine.obstacles():
        assert (obstacle.id in ended.err) == obstacle.stops
        assert (obstacle.remedy in ended.err) == obstacle.stops
    assert "\x1b" not in ended.err


def test_a_bug_shows_its_traceback_and_where_to_look(tmp_path: Path) -> None:
    ended = run(tmp_path, "bug", "4711", "db2", "--json")
    assert ended.status == 1
    assert "RuntimeError: a bug" in ended.err
    assert "see the journal" in ended.err
    assert [event["event"] for event in ended.events[-2:]] == ["error", "report"]
    assert ended.events[-1]["outcome"] == "unknown"


@pytest.mark.parametrize(("scenario", "outcome"), [("host-key", "undone"), ("in-doubt", "in-doubt")])
def test_with_json_the_report_comes_last_even_when_the_engine_gave_none(
    tmp_path: Path, scenario: str, outcome: str
) -> None:
    ended = run(tmp_path, scenario, "4711", "db2", "--json")
    error, report = ended.events[-2:]
    assert (error["event"], error["exit_code"]) == ("error", ended.status)
    assert (report["event"], report["outcome"], report["pid"], report["target"]) == ("report", outcome, 4711, "db2")


@pytest.mark.parametrize(("scenario", "status"), [("ok", 0), ("obstacles", 20), ("no-process", 21)])
def test_check(tmp_path: Path, scenario: str, status: int) -> None:
    people = run(tmp_path, scenario, "check", "4711", "db2")
    scripts = run(tmp_path, scenario, "check", "4711", "db2", "--json")
    assert (people.status, scripts.status) == (status, status)
    assert ("can be moved to db2" in people.out) == (status == 0)
    assert ("pid-taken" in people.out) == (status == 20)
    assert [event["event"] for event in scripts.events][-1] == ("error" if status else "checked")
    assert not {"pre-copy", "freeze"} & set(people.journal)


def test_explain(tmp_path: Path) -> None:
    one, every = run(tmp_path, "ok", "explain", "pid-taken"), run(tmp_path, "ok", "explain")
    assert (one.status, every.status) == (0, 0)
    assert one.out.startswith("pid-taken (stops a migration)\n")
    assert [line.split()[0] for line in every.out.splitlines()] == list(catalogue.KINDS)
    (event,) = run(tmp_path, "ok", "explain", "--json", "pid-taken").events
    assert (event["event"], event["id"], event["stops"]) == ("kind", "pid-taken", True)
    assert len(run(tmp_path, "ok", "explain", "--json").events) == len(catalogue.KINDS)


@pytest.mark.parametrize(("word", "hint"), [("pid-takn", "is it pid-taken"), ("pid", "pid-taken"), ("xyzzy", "lists")])
def test_what_cannot_be_explained(tmp_path: Path, word: str, hint: str) -> None:
    ended = run(tmp_path, "ok", "explain", word)
    assert ended.status == 2
    assert word in ended.err
    assert hint in ended.err


def test_recover(tmp_path: Path) -> None:
    people = run(tmp_path, "ok", "recover")
    assert (people.status, people.out.splitlines()[-1]) == (0, "undone: the process runs on the source")
    scripts = run(tmp_path, "ok", "recover", "20260704-031500-a1b2c3", "--target", "db3", "--json")
    assert scripts.events[0]["text"] == "asking db3"
    assert {"course": "undo", "host": "db1", "pid": 4711}.items() <= scripts.events[-1].items()


def test_recover_without_a_journal_does_not_say_where_the_process_is(tmp_path: Path) -> None:
    ended = run(tmp_path, "no-journal", "recover", "x")
    assert ended.status == 20
    assert ended.err.splitlines()[-1] == "  nothing was changed"


def test_python_m_migrator_is_the_same_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "migrator", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "migrate 0.1.0\n"


# --- signals ---------------------------------------------------------------------------------------------------------

BEFORE_COMMIT = ["connect", "preflight", "pre-copy", "freeze", "restore"]
AFTER_COMMIT = ["commit", "resume", "fill", "clean"]


@pytest.mark.parametrize(
    ("phase", "number"),
    [*((phase, signal.SIGINT) for phase in BEFORE_COMMIT), ("pre-copy", signal.SIGTERM), ("restore", signal.SIGHUP)],
)
def test_a_signal_before_commit_undoes(tmp_path: Path, phase: str, number: signal.Signals) -> None:
    program = Program(tmp_path, f"wait-{phase}", "4711", "db2")
    program.wait_for(phase)
    program.process.send_signal(number)
    ended = program.end()
    assert ended.status == 128 + number
    assert ended.journal[-3:] == [phase, "undo", "undone"]
    assert f"{number.name}: undoing" in ended.err
    assert ended.err.splitlines()[-1] == "  undone: the process runs on the source"
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("phase", AFTER_COMMIT)
def test_a_signal_after_commit_is_noted_and_the_migration_finishes(tmp_path: Path, phase: str) -> None:
    program = Program(tmp_path, f"wait-{phase}", "4711", "db2")
    program.wait_for(phase)
    program.process.send_signal(signal.SIGINT)
    ended = program.end()
    assert ended.status == 0
    assert ended.journal == BEFORE_COMMIT + AFTER_COMMIT
    assert ended.err == "migrate: SIGINT: past the point of no return, finishing\n"
    assert ended.out.endswith(LAST)


def test_further_signals_do_not_break_the_undo(tmp_path: Path) -> None:
    program = Program(tmp_path, "wait-freeze", "4711", "db2", "--json")
    program.wait_for("freeze")
    program.process.send_signal(signal.SIGINT)
    program.wait_for("undo")
    for number in (signal.SIGINT, signal.SIGTERM):
        program.process.send_signal(number)
    ended = program.end()
    assert ended.status == 130
    assert ended.journal[-2:] == ["undo", "undone"]
    assert "already undoing" in ended.err
    assert [event["event"] for event in ended.events[-2:]] == ["error", "report"]
    assert ended.events[-2]["error"] == "Interrupted"


def test_ctrl_z_does_not_suspend(tmp_path: Path) -> None:
    program = Program(tmp_path, "wait-freeze", "4711", "db2")
    program.wait_for("freeze")
    program.process.send_signal(signal.SIGTSTP)
    ended = program.end()
    assert ended.status == 0
    assert "cannot be suspended" in ended.err


def test_a_signal_to_recover_promises_no_undo(tmp_path: Path) -> None:
    program = Program(tmp_path, "wait-recover", "recover")
    program.wait_for("recover")
    program.process.send_signal(signal.SIGINT)
    ended = program.end()
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "  what the journals say still holds: run it again"


# --- terminals and readers -------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=theirs, check=True)
    yield ours, theirs
    os.close(ours)


def read_all(descriptor: int) -> str:
    """Everything a terminal got, until its last writer has left."""
    data = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # EIO: nobody holds the other end any more
            piece = b""
        if not piece:
            return data.decode()
        data += piece


def test_a_terminal_gets_bars(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    program = Program(tmp_path, "ok", "4711", "db2", stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = read_all(ours)
    assert program.end().status == 0
    assert re.search(r"\rpre-copy 1 .*of 1\.02 GiB", text)
    assert text.endswith(LAST.replace("\n", "\r\n"))


def test_ctrl_c_on_the_terminal(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    program = Program(tmp_path, "wait-pre-copy", "4711", "db2", stdin=theirs, stdout=theirs, stderr=theirs,
                      preexec_fn=lambda: _own_terminal(theirs))  # fmt: skip
    os.close(theirs)
    program.wait_for("pre-copy")
    os.write(ours, b"\x03")
    text = read_all(ours)
    assert program.end().status == 130
    assert text.endswith("migrate: stopped by SIGINT\r\n  undone: the process runs on the source\r\n")


def _own_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def test_a_stopped_terminal_does_not_stop_the_migration(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    program = Program(tmp_path, "ok", "4711", "db2", "-v", stdin=theirs, stdout=theirs, stderr=theirs,
                      preexec_fn=lambda: _own_terminal(theirs))  # fmt: skip
    os.close(theirs)
    os.write(ours, b"\x13")  # Ctrl-S
    program.wait_for("clean")
    os.write(ours, b"\x11")  # Ctrl-Q
    text = read_all(ours)
    assert program.end().status == 0
    assert text.endswith(LAST.replace("\n", "\r\n"))


def test_a_reader_that_leaves_does_not_stop_the_migration(tmp_path: Path) -> None:
    program = Program(tmp_path, "ok", "4711", "db2", "--json")
    assert program.process.stdout is not None
    program.process.stdout.readline()
    program.process.stdout.close()
    assert program.process.stderr is not None
    err = program.process.stderr.read()
    program.process.stderr.close()
    assert program.process.wait(60) == 0
    assert err == ""
    assert program.journal()[-1] == "clean"


def test_no_memory_for_the_end_of_the_loop_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def done(*_: object) -> int:
        return 3

    monkeypatch.setattr(asyncio.BaseEventLoop, "shutdown_default_executor", none)
    monkeypatch.setattr(cli, "_run", done)
    assert cli.main(["recover"]) == 3


def test_a_migrate_without_memory_ends_at_once_and_says_who_knows(capfd: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if not child:
        loop = asyncio.new_event_loop()
        cli._out_of_memory(loop, {"message": "", "exception": MemoryError()})
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 71
    assert "hint: migrate recover" in capfd.readouterr().err
