"""What the other host tells `status` may be anything: nothing of it moves a cursor, or ends in a traceback."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from agent import protocol
from migrator import status, status_words

EVIL = "\x1b]0;owned\x07\n"
LINE = protocol.Line("BEGIN", 1.0, "{}")
LISTED = protocol.Listed("m", "target", "alpha", 4, ("HELD",), 1.0, 1.0, False)
REMAIN = protocol.Remain("lock", "/x", "", "m", False, "rm /x", 0)
STATE = protocol.JournalState("m", "source", ("BEGIN",), "alpha", 4, True, False, False, 0, False)


def story(**changes: Any) -> status.Told:
    fields = {field.name: _empty(str(field.type)) for field in dataclasses.fields(protocol.Story)}
    told = protocol.Story(**{**fields, "state": STATE, **changes})
    return status.Told("m", "alpha", (("beta", told),), "beta", None)


def _empty(kind: str) -> object:
    return {"str": "", "int": 0, "bool": False}.get(kind, ())


def line(**changes: Any) -> status.Told:
    return story(lines=(dataclasses.replace(LINE, **changes),))


def listed(finished: bool = False, **changes: Any) -> status.Listings:
    one = dataclasses.replace(LISTED, **changes)
    return status.Listings((status.Listing("beta", () if finished else (one,), (one,) if finished else ()),), None)


def remains(**changes: Any) -> status.HostRemains:
    return status.HostRemains("beta", (dataclasses.replace(REMAIN, **changes),))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (status_words.story_text, line(record=EVIL)),
        (status_words.story_text, line(facts='{"what": "\\u001b]0;owned\\u0007\\n"}')),
        (status_words.story_text, story(state=dataclasses.replace(STATE, role=EVIL))),
        (status_words.story_text, story(living=(protocol.Living(EVIL, 1, "S", "x"),))),
        (status_words.story_text, story(living=(protocol.Living("task", 1, EVIL, "x"),))),
        (status_words.list_text, listed(migration=EVIL)),
        (status_words.list_text, listed(records=(EVIL,))),
        (status_words.list_text, listed(True, migration=EVIL)),
        (status_words.remains_text, remains(kind=EVIL)),
        (status_words.remains_text, remains(remove=f"migrate recover {EVIL}")),
    ],
)
def test_nothing_that_another_host_says_moves_a_cursor(text: Callable[[Any], str], found: Any) -> None:
    shown = text(found)
    assert "owned" in shown
    assert all(char == "\n" or char.isprintable() for char in shown)
    assert "owned\n" not in shown.replace("\\x07\\n", ""), "nor begins a line of its own"


@pytest.mark.parametrize(
    "facts",
    ["x", "[]", "7", "[" * 100_000, '{"pid": NaN}', '{"lease": 1e999}', f'{{"pid": {"[" * 900}{"]" * 900}}}'],
)
def test_facts_that_are_none_say_nothing(facts: str) -> None:
    assert "BEGIN" in status_words.story_text(line(facts=facts))
    assert status_words.story_events(line(facts=facts))[0][1]["lines"] == [
        {"record": "BEGIN", "time": status_words.iso(1.0)}
    ]


def test_facts_do_not_pass_for_the_record() -> None:
    told = status_words.story_events(line(facts='{"record": "DONE", "time": "now"}'))[0][1]["lines"]
    assert told == [{"record": "BEGIN", "time": status_words.iso(1.0)}]


@pytest.mark.parametrize("time", [1e300, -1e18, 1e18])
def test_a_time_that_is_none_is_not_shown(time: float) -> None:
    assert status_words.iso(time) == ""


def test_a_journal_without_a_record_is_listed() -> None:
    assert "? since" in status_words.list_text(listed(records=()))


@pytest.mark.parametrize("at_work", [True, False])
def test_an_id_is_one_word_of_the_command_that_follows(at_work: bool) -> None:
    """Somebody pastes it."""
    evil = listed(migration="m; reboot", at_work=at_work)
    assert f"migrate {'abort' if at_work else 'recover'} 'm; reboot'\n" in status_words.list_text(evil)
    assert str(status_words.list_events(evil)[0][1]["follows"]).endswith(" 'm; reboot'")
