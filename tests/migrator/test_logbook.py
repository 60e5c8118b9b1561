"""The log: what stands in a line, where it goes, and that it never gets in the way."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import cli, errors, events, logbook
from migrator.phases import Phase
from tests.migrator import fake_engine
from tests.migrator.test_cli import run


class Kept:
    """A way out that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, object]]] = []

    def write(self, severity: int, fields: logbook.Fields) -> None:
        self.lines.append((severity, dict(fields)))

    def close(self) -> None:
        pass


def entry(data: bytes) -> dict[str, str]:
    """An entry of journald's native protocol, every field with its length."""
    fields = {}
    while data:
        key, _, data = data.partition(b"\n")
        (size,) = struct.unpack_from("<Q", data)
        fields[key.decode()] = data[8 : 8 + size].decode()
        assert data[8 + size : 9 + size] == b"\n"
        data = data[9 + size :]
    return fields


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A socket as journald and syslogd have it."""
    path = str(tmp_path / "log")
    taker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    taker.bind(path)
    yield path, taker
    taker.close()


def test_a_line_a_phase_and_one_for_the_end() -> None:
    now, kept = [0.0], Kept()
    book = logbook.Logbook([kept], {"command": "migrate", "pid": 4711, "target": "db2"}, lambda: now[0])
    book.happened(events.Started("20260704-031500-a1b2c3"))
    for phase in (Phase.CONNECT, Phase.PRECOPY, Phase.FREEZE):
        book.happened(events.PhaseBegun(phase))
        now[0] += 0.5
        if phase is Phase.PRECOPY:
            book.happened(events.RoundDone(1, fake_engine.ROUNDS[0], False))
            book.happened(events.RoundDone(2, fake_engine.ROUNDS[1], False))
    book.happened(events.Ended(fake_engine.report_of(4711, fake_engine.ROUNDS)))
    book.ended(0, None)
    told = [fields for _, fields in kept.lines]
    assert [fields.get("phase") for fields in told] == ["connect", "pre-copy", "freeze", None]
    assert all(
        {"id": "20260704-031500-a1b2c3", "pid": 4711, "target": "db2"}.items() <= fields.items() for fields in told
    )
    assert all(fields["seconds"] == 0.5 for fields in told[:-1])
    assert (told[1]["rounds"], told[1]["bytes"]) == (2, sum(done.bytes for done in fake_engine.ROUNDS[:2]))
    assert "rounds" not in told[2]
    assert {"event": "ended", "exit": 0, "outcome": "migrated", "target_pid": 4711, "seconds": 3.4}.items() <= told[
        3
    ].items()
    assert [severity for severity, _ in kept.lines] == [6, 6, 6, 6]


def test_an_error_is_told_with_where_the_process_is() -> None:
    kept = Kept()
    logbook.Logbook([kept], {}).ended(32, errors.DumpError("db1: criu dump\nfailed"))
    ((severity, fields),) = kept.lines
    assert severity == 3
    assert (fields["exit"], fields["error"]) == (32, "DumpError")
    assert fields["where"] == "undone: the process runs on the source"
    text = logbook.line({key: str(value) for key, value in fields.items()})
    assert r'message="db1: criu dump\nfailed"' in text
    assert "\n" not in text


@pytest.mark.parametrize(("value", "shown"), [
    ("freeze", "key=freeze"), (0.25, "key=0.25"), (0.0, "key=0"), (7, "key=7"), ("two words", 'key="two words"'),
    ("", 'key=""'), ('a"b', r'key="a\"b"'), ("a=b", 'key="a=b"'), ("\x1b[31m", r"key=\x1b[31m"),
    ("a \x1b", r'key="a \u001b"'), ("\u202eab", r"key=\u202eab"), ("a\udcff", r"key=a\xff"),
])  # fmt: skip
def test_a_line_is_words(value: str | float, shown: str) -> None:
    assert logbook.line({"key": value}) == shown


def test_journald_gets_fields(
    tmp_path: Path, listening: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taker = listening
    monkeypatch.setenv("FAKE_ENGINE_JOURNALD", path)
    assert run(tmp_path, "leftovers", "4711", "db2").status == 3
    taker.setblocking(False)
    entries = []
    while True:
        try:
            entries.append(entry(taker.recv(65536)))
        except BlockingIOError:
            break
    phases = [phase.value for phase in Phase if phase is not Phase.ROLLBACK]
    assert [each.get("MIGRATE_PHASE") for each in entries] == [*phases, None]
    assert {each["SYSLOG_IDENTIFIER"] for each in entries} == {"migrate"}
    assert {each["MIGRATE_ID"] for each in entries} == {"20260704-031500-a1b2c3"}
    assert [each["PRIORITY"] for each in entries] == ["6"] * len(phases) + ["4"]
    assert entries[-1]["MESSAGE"].startswith("event=ended ")


def test_syslog_where_there_is_no_journald(
    listening: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taker = listening
    monkeypatch.setattr(logbook, "SYSLOG", path)
    (sink,) = logbook.sinks("", system=True)
    sink.write(3, {"event": "ended", "message": "two words"})
    assert taker.recv(4096).decode() == f'<27>migrate[{os.getpid()}]: event=ended message="two words"'
    sink.close()
    assert logbook.sinks("", system=False) == []


def test_a_log_that_takes_nothing_holds_up_nothing(listening: tuple[str, socket.socket]) -> None:
    path, taker = listening
    sink = logbook._Datagrams(path, logbook.for_syslog)
    for _ in range(2000):  # nobody reads: its queue is full after a few
        sink.write(6, {"event": "phase"})
    taker.close()
    sink.write(6, {"event": "phase"})
    sink.close()
    sink = logbook._Datagrams(path + "-gone", logbook.for_journald)
    sink.write(6, {"event": "phase"})
    sink.close()


def test_the_file_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "migrate.log"
    log.write_text("before\n")
    for scenario, status in (("ok", 0), ("dump-fails", 32)):
        assert run(tmp_path, scenario, "4711", "db2", "--log-file", str(log)).status == status
    before, *lines = log.read_text().splitlines()
    assert before == "before"
    pattern = (
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d migrate\[\d+\] event=(phase|ended) .*pid=4711 target=db2"
    )
    assert all(re.match(pattern, line) for line in lines)
    assert "outcome=migrated" in next(line for line in lines if "event=ended" in line)
    assert "exit=32" in lines[-1]
    assert 'where="undone: the process runs on the source"' in lines[-1]
    assert (log.stat().st_mode & 0o007, run(tmp_path, "ok", "check", "1", "db2", "--log-file", str(log)).status) == (
        4,
        0,
    )


def test_a_new_file_is_not_for_everybody(tmp_path: Path) -> None:
    log = tmp_path / "migrate.log"
    assert run(tmp_path, "ok", "4711", "db2", "--log-file", str(log)).status == 0
    assert log.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("path", ["/nonexistent/x", "/", "a\0b"])
def test_a_file_that_cannot_be_opened_is_told_before_anything_is_done(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["4711", "db2", "--log-file", path]) == 2
    assert capsys.readouterr().err.startswith("migrate: --log-file ")


def test_a_full_disk_fails_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, "ok", "4711", "db2", "--log-file", "/dev/full")
    assert (ended.status, ended.err) == (0, "")


def test_a_file_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "PATIENCE", 0.01)
    going_on = threading.Event()
    (sink,) = logbook.sinks(str(tmp_path / "log"), system=False, clock=time.time)
    monkeypatch.setattr(os, "write", lambda *_: going_on.wait(60))
    sink.write(6, {"event": "phase"})
    sink.close()  # came back, though the thread has not
    assert sink._thread.is_alive()  # type: ignore[attr-defined]
    monkeypatch.undo()
    going_on.set()
    sink._thread.join(60)  # type: ignore[attr-defined]
