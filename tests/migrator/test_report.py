"""Reports as JSON and back: any report comes back as it was, and whatever else is read is refused in a few words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.phases import REPORT_VERSION, Report, Round, Span
from migrator.report import NoReport, as_json, parse
from tests.migrator import fake_reports

COUNTS = st.integers(0, 2**53)
SECONDS = st.floats(0, 1e9).map(lambda value: round(value, 6))
WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.just("\udcff"), max_size=20
)  # a byte that was no text
LISTS: dict[str, st.SearchStrategy[Any]] = {
    "rounds": st.builds(Round, COUNTS, COUNTS, COUNTS, SECONDS, SECONDS, SECONDS, SECONDS),
    "phases": st.builds(Span, WORDS, SECONDS, SECONDS),
    "freeze": st.builds(Span, WORDS, SECONDS, SECONDS),
    "leftovers": WORDS,
}
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {"int": COUNTS, "float": SECONDS, "str": WORDS, "bool": st.booleans()}


def reports() -> st.SearchStrategy[Report]:
    """Any report, whatever fields it has."""
    fields = {
        field.name: st.lists(LISTS[field.name], max_size=9).map(tuple)
        if field.name in LISTS
        else BY_TYPE[str(field.type)]
        for field in dataclasses.fields(Report)
    }
    return st.builds(Report, **{**fields, "version": st.just(REPORT_VERSION)})


@given(reports())
def test_any_report_comes_back_as_it_was(report: Report) -> None:
    text = as_json(report)
    assert text.isascii()
    assert "\n" not in text
    assert parse(text) == report


@pytest.mark.parametrize("report", fake_reports.ALL, ids=lambda report: str(report.id))
def test_the_last_report_in_a_run_s_events_counts(report: Report) -> None:
    events = '{"event": "phase", "at": 0.0, "phase": "connect"}\n{"event": "note", "at": 0.1, "text": "ok"}\n'
    rounded = parse(as_json(report))
    assert parse(events + as_json(fake_reports.REFUSED) + "\n" + as_json(report) + "\n") == rounded
    assert parse(json.dumps(json.loads(as_json(report)), indent=2)) == rounded, "a file that jq has made"


def test_fields_that_a_later_migrate_has_added_are_left_alone() -> None:
    value = json.loads(as_json(fake_reports.MOVED))
    value["colour"] = {"of": ["the", "wire"]}
    value["rounds"][0]["temperature"] = 36.6
    assert parse(json.dumps(value)) == parse(as_json(fake_reports.MOVED))


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(as_json(fake_reports.MOVED)), **fields})


WHOLE = as_json(fake_reports.MOVED)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("hello", "no JSON"),
        (WHOLE[:-20], "only a part of it"),
        ('{"event": "phase", "at": 0.0}\n' + WHOLE[:-20], "in line 2"),
        ("[1, 2]", "no object"),
        ("7", "no object"),
        ("[" * 100_000, "nested too deep"),
        ('{"event": "phase", "at": 0.0, "phase": "connect"}', "the event 'phase'"),
        ('{"event": "phase", "at": 0.0}\n{"event": "error", "at": 0.1}\n', "the event 'error'"),
        ('{"a": 1}', "it has no version"),
        (changed(version=REPORT_VERSION + 1), "from a newer migrate"),
        (changed(version="1"), "it has no version"),
        (changed(version=True), "report.version: expected int"),
        (changed(pid="4711"), "report.pid: expected int"),
        (changed(total_seconds=None), "report.total_seconds: expected float"),
        (changed(total_seconds=-1), "report.total_seconds is beyond all measure"),
        (changed(total_seconds=1e300), "beyond all measure"),
        (changed(bytes=10**400), "report.bytes: a number beyond 64 bits"),
        (WHOLE.replace("4.42", "1e999"), "report.total_seconds: inf is no number"),
        (WHOLE.replace("4.42", "NaN"), "NaN is no number"),
        (changed(rounds=[1]), "report.rounds[0]"),
        (changed(rounds=[{"pages": 1}]), "'bytes' is missing"),
        (changed(rounds=7), "report.rounds: expected a list"),
        (changed(leftovers=["x"] * 10_001), "10001 items"),
        (json.dumps({"event": "report", "version": REPORT_VERSION}), "'id' is missing"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(NoReport) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_nothing_else_is_ever_raised(text: str) -> None:
    with pytest.raises(NoReport):
        parse(text)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_torn_report_is_no_report(end: int) -> None:
    with pytest.raises(NoReport):
        parse(WHOLE[:end])
