"""A report as JSON, and back again. What `--json` prints last is what is kept, and what `migrate report` reads.

Reading is strict where a picture would lie or break: a field that is missing, of another type, negative or beyond all
measure is named. Unknown fields are left alone, since fields may be added to a version.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NoReturn

from agent.wire import WireError, decode
from migrator.phases import REPORT_VERSION, Report, Round, Span

LARGEST = 64 * 1024 * 1024
"""Bytes of a file; `--json -v` writes some hundred kilobytes."""
MOST = 2.0**63
"""No number in a report is larger: seconds, bytes, bytes a second."""
MOST_ITEMS = 10_000
"""Nor is a list longer."""
EVENT = "report"


class NoReport(Exception):
    """What was read is no report; the message says why, in a few words."""


def as_json(report: Report) -> str:
    """The report as one line without its end."""
    return json.dumps(rounded({"event": EVENT, **dataclasses.asdict(report)}))


def rounded(value: object) -> object:
    """Floats to the microsecond: no clock here knows more."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def parse(text: str) -> Report:
    """The report in what `--json` printed: one object, or events line by line, of which the last report counts.

    Raises NoReport.
    """
    if not text.strip():
        raise NoReport("it is empty")
    value = _object(text)
    if value.get("event", EVENT) != EVENT:
        raise NoReport(f"no report, but the event {value['event']!r}")
    version = value.get("version")
    if type(version) is int and version > REPORT_VERSION:
        raise NoReport(f"a report of version {version}, from a newer migrate: this one knows {REPORT_VERSION}")
    if version != REPORT_VERSION:
        raise NoReport("no report of a migration: it has no version")
    try:
        report = decode(Report, _known(value), "report")
    except WireError as error:
        raise NoReport(str(error)) from None
    _check(dataclasses.asdict(report), "report")
    return report


def _object(text: str) -> dict[str, Any]:
    """The whole of it as one object, or the last line that is a report; else whatever the last line is."""
    try:
        value = _json(text)
    except ValueError as whole:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) == 1 or not lines[0].startswith('{"event"'):
            raise NoReport(f"no JSON, or only a part of it: {whole}") from None
        value = _last_event(lines)
    if not isinstance(value, dict):
        raise NoReport("JSON, but no object")
    return value


def _last_event(lines: list[str]) -> object:
    value: object = None
    for number, line in reversed(list(enumerate(lines, 1))):
        try:
            event = _json(line)
        except ValueError as error:
            raise NoReport(f"no JSON, or only a part of it, in line {number}: {error}") from None
        value = value or event
        if isinstance(event, dict) and event.get("event") == EVENT:
            return event
    return value


def _json(text: str) -> object:
    """Raises ValueError, also for numbers that JSON does not have, and for what is nested without end."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _known(value: dict[str, Any]) -> dict[str, Any]:
    """The fields that this version has, those of rounds and spans as well."""
    kept = _fields_of(Report, value)
    for name, kind in (("rounds", Round), ("phases", Span), ("freeze", Span)):
        items = kept.get(name)
        if isinstance(items, list):
            kept[name] = [_fields_of(kind, item) if isinstance(item, dict) else item for item in items]
    return kept


def _fields_of(kind: type[Report] | type[Round] | type[Span], value: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: item for name, item in value.items() if name in names}


def _check(value: object, where: str) -> None:
    """Raises NoReport for a number that nothing can have measured."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        if len(value) > MOST_ITEMS:
            raise NoReport(f"{where}: {len(value)} items, which is beyond all measure")
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif isinstance(value, (int, float)) and not 0 <= value <= MOST:
        raise NoReport(f"{where} is beyond all measure")
