"""Parsers of what `migrate` itself keeps or is configured by, on the host where it is started."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from migrator import arguments, chart, comparing, config, errors, report, standing, words
from migrator.channel import Target
from migrator.history import History, Measured
from migrator.phases import Report, Round, Span
from migrator.standing import Ledger, Standing
from tests.fuzz.rooms import room

_ROUND = Round(1 << 20, 1 << 19, 4096, 0.5, 0.01)
_SPANS = (Span("connect", 0.0, 0.5), Span("pre-copy", 0.5, 1.0), Span("freeze", 1.5, 0.1))
_REPORT = Report(
    id="20260704-031500-a1b2c3", outcome="migrated", pid=7, target_pid=8, source="alpha", target="beta",
    rounds=(_ROUND, _ROUND), downtime_seconds=0.1, freeze_seconds=0.05, restore_seconds=0.03, total_seconds=2.0,
    bytes=1 << 21, wire_bytes=1 << 20, phases=_SPANS, freeze=(Span("dump", 1.5, 0.05), Span("restore", 1.55, 0.05)),
)  # fmt: skip


def _is_shown(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def kept_report(data: bytes) -> None:
    """A report, as it was kept or as somebody has sent it: drawn, compared, and kept again as the same."""
    with contextlib.suppress(report.NoReport, UnicodeDecodeError):
        found = report.parse(data.decode())
        for text in (
            chart.picture(found), chart.picture(found, 40), chart.reports_list([found], 60),
            comparing.table(found, _REPORT), comparing.table(_REPORT, found, 40), words.summary(found),
        ):  # fmt: skip
            assert _is_shown(text)
        json.dumps([dataclasses.asdict(row) for row in comparing.rows(found, _REPORT)], allow_nan=False)
        assert report.parse(report.as_json(found)).id == found.id


def kept_reports() -> Iterable[bytes]:
    """One that arrived, one that did not, and one behind other events."""
    yield report.as_json(_REPORT).encode()
    failed = dataclasses.replace(_REPORT, outcome="undone", error="beta: no room", leftovers=("beta: x",), rounds=())
    yield report.as_json(failed).encode()
    yield b'{"event": "phase", "at": 0.1, "phase": "connect"}\n' + report.as_json(_REPORT).encode() + b"\n"


@functools.cache
def _keys() -> config.Keys:
    return config.Keys(arguments._migrate_parser())


def configuration(data: bytes) -> None:
    """A file of defaults. What is wrong is said with the file's name; what is right is shown, for any target."""
    path = room("configuration") / "migrate.toml"
    path.write_bytes(data)
    path.chmod(0o600)
    try:
        found = config.read(str(path), _keys())
    except errors.UsageError as error:
        assert error.message.startswith(str(path))
        assert _is_shown(words.error_text(error))
        return
    chosen = config.Configuration({str(path): found})
    built_in = {key: _keys().built_in(key) for key in _keys()}
    for target in (None, Target("db2"), Target("db2.example.org", user="ops")):
        assert _is_shown(words.configuration(chosen.files, built_in | chosen.in_force(target)))


def configurations() -> Iterable[bytes]:
    """What README shows, and a mistake."""
    yield b'compress = "zstd"\nmax-downtime = 0.5\n[target."*.example.org"]\nsudo = true\nuser = "ops"\n'
    yield b'[target."ops@db2"]\ncopy-files = true\ncriu-option = ["log-level=4"]\n[target.db3]\nsuod = true\n'


def drain(data: bytes) -> None:
    """What is kept of a drain: read whole or refused, and what was read is kept again as the same."""
    place = room("drain")
    plan = place / "plan.toml"
    path = Ledger.of(place, plan).path
    path.write_bytes(data)
    try:
        found = Ledger.of(place, plan)
    except errors.StateError as error:
        assert _is_shown(words.error_text(error))
        return
    for entry in found.entries:
        assert math.isfinite(entry.downtime + entry.seconds)
    if found.entries:
        found.set(found.entries[0])
        assert Ledger.of(place, plan).entries == found.entries


def drains() -> Iterable[bytes]:
    """Of three processes."""
    waiting = Standing("web", 7, 8, "b", "nginx")
    moved = dataclasses.replace(
        waiting, pid=9, stage=standing.Stage.MOVED, target="db2", target_pid=9, migration=_REPORT.id, downtime=0.1
    )
    failed = dataclasses.replace(waiting, pid=10, stage=standing.Stage.FAILED, exit_code=20, message="no room")
    content = {"version": 1, "plan": "/x", "processes": [dataclasses.asdict(one) for one in (waiting, moved, failed)]}
    yield json.dumps(content).encode()
    yield b'{"version": 1, "plan": "/x", "processes": [[7, 8]]}'


def history(data: bytes) -> None:
    """What earlier migrations cost: a memory that may be anything, and never a fault."""
    path = room("history") / "history.json"
    path.write_bytes(data)
    kept = History(path)
    costs = kept.costs("beta")
    assert all(math.isfinite(value) for value in dataclasses.asdict(costs).values() if isinstance(value, (int, float)))
    with mock.patch("migrator.history.replace", _replaced):
        kept.learn("beta", Measured(0.1, 0.02, 0, (_ROUND, _ROUND)))


def _replaced(path: Path, text: str) -> None:
    json.loads(text, parse_constant=_none_of_json)
    path.write_text(text)


def _none_of_json(word: str) -> None:
    raise AssertionError(f"{word} is kept")


def histories() -> Iterable[bytes]:
    """Of two hosts."""
    figures = {"fixed_seconds": 0.06, "restore_seconds": 0.02, "restore_rate": 1e9, "rate": 1e8, "samples": 4}
    yield json.dumps({"version": 1, "hosts": {"beta": figures, "root@db2": figures}}).encode()
