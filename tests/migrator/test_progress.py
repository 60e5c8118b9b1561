"""How a migration looks: lines in a pipe, bars on a terminal, events for scripts; and that readers can't hold it up."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from migrator import errors, output, progress
from migrator.output import Printer, Progress
from migrator.phases import Phase, Round
from tests.migrator import fake_engine

PREFLIGHT = "db2: kernel 6.12, criu 4.1.1, 14 files, 3 libraries, pid free"


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stream(io.StringIO):
    """A text stream in memory that says what it can take."""

    encoding = "utf-8"


class AsciiPrinter(Printer):
    """A terminal in the C locale."""

    def __init__(self, out: io.StringIO, err: io.StringIO) -> None:
        super().__init__(out, err)
        self.encoding = "ascii"


class Stage:
    """One mode under test, with its streams and clock."""

    def __init__(self, mode: Callable[..., Progress], **options: Any) -> None:
        self.out, self.err, self.clock = Stream(), Stream(), Clock()
        self.show = mode(Printer(self.out, self.err), clock=self.clock, **options)

    def lines(self) -> list[str]:
        self.show.finish()
        return self.out.getvalue().splitlines()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


async def play(stage: Stage) -> None:
    """A whole migration as the engine would tell it."""
    show, clock = stage.show, stage.clock
    await show.phase(Phase.CONNECT)
    clock.now += 0.4
    await show.phase(Phase.PREFLIGHT)
    show.note(PREFLIGHT)
    clock.now += 0.3
    await show.phase(Phase.PRECOPY)
    show.detail("criu pre-dump --tree 4711")
    for number, done in enumerate(fake_engine.ROUNDS, 1):
        final = number == len(fake_engine.ROUNDS)
        if final:
            await show.phase(Phase.FREEZE)
        show.round_started(number, done.bytes, final)
        for step in (1, 2):
            clock.now += done.seconds / 2
            show.transferred(done.wire_bytes * step // 2)
        show.round_done(number, done, final)
    for phase in (Phase.RESTORE, Phase.COMMIT, Phase.RESUME):
        await show.phase(phase)
        clock.now += 0.01
    show.note(RESUMED)
    await show.phase(Phase.FILL)
    clock.now += 0.9
    await show.phase(Phase.CLEAN)
    clock.now += 0.01
    show.report(fake_engine.report_of(4711, fake_engine.ROUNDS))


ROUND_LINES = [
    "pre-copy 1   1.02 GiB   413 MiB/s   2.5 s",
    "pre-copy 2     38 MiB   317 MiB/s  0.12 s  dirtied in 2.5 s",
    "freeze        1.1 MiB    22 MiB/s  0.05 s  dirtied in 0.12 s",
]
RESUMED = "it runs on db2 as pid 4711, down 0.12 s"
FILL_LINES = [f"resume      {RESUMED}   ok  0.01 s", "fill        ok  0.90 s"]
LAST = "running on db2 as pid 4711: down 0.12 s, total 3.4 s, 1.06 GiB in 361 MiB on the wire"


async def test_lines_in_a_pipe() -> None:
    stage = Stage(progress.Lines)
    await play(stage)
    assert stage.lines() == [f"preflight   {PREFLIGHT}   ok  0.30 s", *ROUND_LINES, *FILL_LINES, LAST]
    assert stage.err.getvalue() == ""


async def test_verbose_lines_have_commands_measurements_and_every_phase() -> None:
    stage = Stage(progress.Lines, verbose=True)
    await play(stage)
    lines = stage.lines()
    assert "            criu pre-dump --tree 4711" in lines
    assert "            round 3: 282 pages, 1.1 MiB on the wire, frozen 0.05 s" in lines
    assert [line.split()[0] for line in lines if "ok  " in line] == [
        "connect", "preflight", "restore", "commit", "resume", "fill", "clean",
    ]  # fmt: skip


async def test_several_notes_stand_below_their_phase() -> None:
    stage = Stage(progress.Lines)
    await stage.show.phase(Phase.PREFLIGHT)
    stage.show.note("one")
    stage.show.note("two\x1b")
    stage.clock.now += 1
    await stage.show.phase(Phase.PRECOPY)
    stage.show.note("no dirty tracking")
    assert stage.lines() == [
        "preflight   one",
        "            two\\x1b   ok  1.0 s",
        "pre-copy    no dirty tracking",
    ]


async def test_a_failure_names_the_phase_and_comes_after_what_was_said() -> None:
    stage = Stage(progress.Lines)
    await stage.show.phase(Phase.RESTORE)
    stage.show.note("a note")
    stage.clock.now += 2
    stage.show.failed(errors.RestoreError("db2: no"))
    assert stage.lines() == ["restore     a note   failed  2.0 s"]
    assert stage.err.getvalue().startswith("migrate: db2: no\n")


async def test_obstacles_go_where_they_were_asked_for() -> None:
    asked, unasked = Stage(progress.Lines), Stage(progress.Lines)
    asked.show.checked(4711, "db2", fake_engine.obstacles(), ["a note", "db2: 6.1: older than the source's 6.12"])
    unasked.show.obstacles(fake_engine.obstacles(), asked=False)
    assert "a note" in asked.lines()[0]
    assert "pid-taken" in asked.lines()[1]
    assert [line.split()[2] for line in asked.lines()[1::2]] == ["stops", "stops", "warns"]
    assert "older" in asked.out.getvalue()
    assert "db2: 6.1: older" not in asked.out.getvalue()  # the table says it
    assert "older" not in unasked.out.getvalue() + unasked.err.getvalue()
    assert "pid-taken" in (unasked.lines() or unasked.err.getvalue().splitlines())[0]
    assert "can be moved" not in asked.out.getvalue()


async def test_check_says_yes_when_nothing_stops_it() -> None:
    stage = Stage(progress.Lines)
    stage.show.checked(4711, "db2", fake_engine.obstacles()[2:])
    assert stage.lines()[-1] == "pid 4711 can be moved to db2"


@pytest.mark.parametrize("mode", [output.Quiet, progress.Lines])
async def test_leftovers_are_named_on_stderr(mode: Callable[..., Progress]) -> None:
    stage = Stage(mode)
    stage.show.report(fake_engine.report_of(4711, fake_engine.ROUNDS, ("db1: /run/x",)))
    assert stage.lines() == [LAST]
    assert stage.err.getvalue() == "migrate: left behind: db1: /run/x\n"


async def test_quiet_has_the_last_line_alone() -> None:
    stage = Stage(output.Quiet)
    await play(stage)
    stage.show.note("unheard")
    assert stage.lines() == [LAST]


# --- bars ------------------------------------------------------------------------------------------------------------


def screen(raw: str, columns: int) -> list[str]:
    """What a terminal shows after these bytes: carriage returns overwrite, as tqdm counts on; nothing may wrap."""
    rows = []
    for row in raw.split("\n"):
        shown: list[str] = []
        for piece in row.split("\r"):
            assert len(piece) < columns, piece
            shown[: len(piece)] = piece
        rows.append("".join(shown).rstrip())
    return [row for row in rows if row]


@pytest.mark.parametrize("columns", [132, 80])
async def test_bars_stay_on_the_screen_full(columns: int) -> None:
    stage = Stage(progress.Bars, columns=lambda: columns)
    await play(stage)
    stage.show.finish()
    bars = [re.sub(r"  █+", "", row) for row in screen(stage.out.getvalue(), 133)[-6:]]
    assert bars == [*ROUND_LINES, *FILL_LINES, LAST]


async def test_bars_grow() -> None:
    stage = Stage(progress.Bars, columns=lambda: 100)
    await play(stage)
    stage.show.finish()
    first = [piece for piece in stage.out.getvalue().split("\r") if piece.startswith("pre-copy 1")]
    filled = [piece.count("█") for piece in first]
    assert filled == sorted(filled)
    assert (filled[0], filled[-1]) == (0, progress.BAR_COLUMNS)
    assert any("of 1.02 GiB" in piece and 0 < piece.count("█") < progress.BAR_COLUMNS for piece in first)


async def test_a_round_of_unknown_size_fills_no_bar_before_it_is_done() -> None:
    stage = Stage(progress.Bars, columns=lambda: 100)
    await stage.show.phase(Phase.FREEZE)
    stage.show.round_started(1, 0, True)
    stage.clock.now += 1
    stage.show.transferred(38 << 20)
    stage.show.round_done(1, fake_engine.ROUNDS[1], True)
    stage.show.finish()
    *running, done = [piece for piece in stage.out.getvalue().split("\r") if piece.startswith("freeze  ")]
    assert "    38 MiB  " in running[-1]
    assert "█" not in "".join(running[:-1])
    assert "█" * progress.BAR_COLUMNS in done


@pytest.mark.parametrize("columns", [12, 20, 40, 43, 60, 80, 100])
async def test_live_lines_never_wrap(columns: int) -> None:
    stage = Stage(progress.Bars, columns=lambda: columns)
    await play(stage)
    stage.show.finish()
    live = [piece for piece in re.split("[\r\n]", stage.out.getvalue()) if piece.startswith(("pre-copy ", "freeze "))]
    assert live
    assert max(map(len, live)) < columns


async def test_notes_wrap_under_their_label_and_commands_do_not() -> None:
    stage = Stage(progress.Bars, columns=lambda: 40, verbose=True)
    await stage.show.phase(Phase.PREFLIGHT)
    stage.show.note(PREFLIGHT)
    await stage.show.phase(Phase.PRECOPY)
    command = "criu pre-dump --tree 4711 --track-mem --images-dir /run/migrate/x/1"
    stage.show.detail(command)
    text = "\n".join(row.rsplit("\r", 1)[-1].rstrip() for row in stage.lines())
    assert "preflight   db2: kernel 6.12, criu\n            4.1.1, 14 files, 3\n            libraries, pid free" in text
    assert command in text


async def test_a_terminal_without_unicode_gets_bars_of_ascii() -> None:
    stage = Stage(progress.Bars, columns=lambda: 100)
    ascii_stage = Stage(progress.Bars, columns=lambda: 100)
    ascii_stage.show = progress.Bars(AsciiPrinter(ascii_stage.out, ascii_stage.err), columns=lambda: 100)
    for each in (stage, ascii_stage):
        await play(each)
        each.show.finish()
    assert not stage.out.getvalue().isascii()
    assert ascii_stage.out.getvalue().isascii()
    assert "#" * progress.BAR_COLUMNS in ascii_stage.out.getvalue()


async def test_braces_in_a_note_are_no_format() -> None:
    stage = Stage(progress.Bars, columns=lambda: 80)
    await stage.show.phase(Phase.PREFLIGHT)
    stage.show.note("/srv/{bar}/{0}")
    stage.show.finish()
    assert "/srv/{bar}/{0}" in stage.out.getvalue()


async def test_warnings_leave_the_live_line_whole() -> None:
    stage = Stage(progress.Bars, columns=lambda: 80)
    await stage.show.phase(Phase.PRECOPY)
    stage.show.round_started(1, 1000, False)
    before = stage.show._bar  # type: ignore[attr-defined]
    stage.show.warn("SIGINT: undoing")
    assert stage.show._bar is before  # type: ignore[attr-defined]
    stage.show.failed(errors.Interrupted(2, "stopped by SIGINT"))
    stage.show.finish()
    assert stage.err.getvalue().startswith("migrate: SIGINT: undoing\nmigrate: stopped by SIGINT\n")


# --- events ----------------------------------------------------------------------------------------------------------


async def test_events() -> None:
    stage = Stage(output.Events)
    await play(stage)
    events = stage.events()
    assert [event["event"] for event in events] == (
        ["phase", "phase", "note", "phase", "round", "round", "phase", "round"]
        + ["phase"] * 3
        + ["note", "phase", "phase", "report"]
    )
    assert events[0] == {"event": "phase", "at": 0.0, "phase": "connect"}
    assert events[5] == {
        "event": "round",
        "at": 3.35,
        "number": 2,
        "final": False,
        "pages": 9728,
        "bytes": 39845888,
        "wire_bytes": 39845888,
        "seconds": 0.12,
        "frozen_seconds": 0.008,
        "started_seconds": 0.0,
        "dirty_rate": 0.0,
        "disk_seconds": 0.0,
    }


async def test_the_report_has_the_documented_fields() -> None:
    stage = Stage(output.Events)
    await play(stage)
    report = stage.events()[-1]
    assert list(report) == [
        "event", "id", "outcome", "pid", "target_pid", "source", "target", "rounds", "downtime_seconds",
        "freeze_seconds", "restore_seconds", "total_seconds", "bytes", "wire_bytes", "resume", "leftovers",
        "fill_seconds", "faults", "longest_fault_seconds", "target_peak_bytes", "predicted_downtime_seconds",
        "files_bytes", "files_frozen_bytes", "files_seconds",
        "namespaces", "inside_pid",
        "terminal", "unit",
        "version", "started", "name", "error", "phases", "freeze", "max_downtime_seconds", "fill_bytes",
        "disk_seconds",
    ]  # fmt: skip
    assert list(report["rounds"][0]) == [
        "pages", "bytes", "wire_bytes", "seconds", "frozen_seconds", "started_seconds", "dirty_rate",
        "disk_seconds",
    ]  # fmt: skip
    assert report["downtime_seconds"] == 0.1123


async def test_an_error_is_an_event_before_the_report_even_when_reported_after_it() -> None:
    stage = Stage(output.Events)
    stage.show.report(fake_engine.report_of(4711, ()))
    stage.show.failed(errors.InDoubt("lost", hint="migrate recover x"))
    error, report = stage.events()
    assert report["event"] == "report"
    assert error == {
        "event": "error",
        "at": 0.0,
        "error": "InDoubt",
        "exit_code": 71,
        "message": "lost",
        "hint": "migrate recover x",
        "log": "",
        "where": "there is one copy at most, and the journals decide which",
    }
    assert stage.err.getvalue().startswith("migrate: lost\n")


async def test_details_are_events_with_v_only() -> None:
    silent, verbose = Stage(output.Events), Stage(output.Events, verbose=True)
    for stage in (silent, verbose):
        stage.show.detail("criu dump")
    assert silent.events() == []
    assert verbose.events() == [{"event": "detail", "at": 0.0, "text": "criu dump"}]


async def test_obstacles_and_any_file_name_survive_as_events() -> None:
    stage = Stage(output.Events)
    stage.show.checked(4711, "db2", fake_engine.obstacles())
    events = stage.events()
    assert events[1]["object"] == "/srv/a\udcff\x1b[31m\nb"
    assert events[-1] == {"event": "checked", "at": 0.0, "pid": 4711, "target": "db2", "stops": 2}


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as writer:
        printer = Printer(writer, io.StringIO())
        text = "x" * 1000 + "\n"
        for _ in range(1000):  # far more than a pipe holds
            printer.write(text)
        closing = threading.Thread(target=printer.close)
        closing.start()
        received = b""
        while len(received) < 1000 * len(text):
            received += os.read(reader.fileno(), 65536)
        closing.join()
    assert received == text.encode() * 1000


def test_a_reader_that_left_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    err = io.StringIO()
    with os.fdopen(writing, "w") as writer:
        printer = Printer(writer, err)
        printer.write("unheard\n")
        printer.error("heard\n")
        printer.write("unheard again\n")
        printer.close()
    assert err.getvalue() == "heard\n"


def test_a_descriptor_that_does_not_block_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w", encoding="ascii") as writer:
        printer = Printer(writer, io.StringIO())
        printer.write("é" + "x" * 300_000 + "\n")
        received = b""
        while not received.endswith(b"\n"):
            received += os.read(reader.fileno(), 65536)
        printer.close()
    assert received == b"\\xe9" + b"x" * 300_000 + b"\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "options", "mode"),
    [
        (io.StringIO(), {"terminal": "xterm"}, progress.Lines),
        (Terminal(), {"terminal": "xterm"}, progress.Bars),
        (Terminal(), {"terminal": "dumb"}, progress.Lines),
        (Terminal(), {}, progress.Lines),
        (Terminal(), {"terminal": "xterm", "quiet": True}, output.Quiet),
        (Terminal(), {"terminal": "xterm", "as_json": True}, output.Events),
    ],
)
def test_the_mode_that_fits(out: io.StringIO, options: dict[str, Any], mode: type[Progress]) -> None:
    show = progress.choose(out, io.StringIO(), **options)
    show.finish()
    assert type(show) is mode


async def test_commit_is_remembered() -> None:
    stage = Stage(output.Quiet)
    seen = []
    for phase in (phase for phase in Phase if phase is not Phase.ROLLBACK):
        await stage.show.phase(phase)
        seen.append(stage.show.committed)
    assert seen == [False] * 5 + [True] * 4
    stage.show.finish()


def test_a_round_without_a_clock_has_no_rate() -> None:
    stage = Stage(progress.Lines)
    stage.show.round_done(1, Round(1, 4096, 4096, 0.0, 0.0), False)
    assert stage.lines() == ["pre-copy 1    4.0 KiB       0 B/s  0.00 s"]
