"""`migrate abort` where whoever has the migration does not undo it. The rest: tests/live/test_status.py."""

from __future__ import annotations

from typing import cast

import pytest

from agent import protocol
from migrator import aborting, errors
from migrator.aborting import _by_its_migrate
from migrator.peer import Peer
from migrator.phases import Observer
from migrator.recovery import Course

ID = "20260704-031500-a1b2c3"
MIGRATE, AGENT = protocol.Living("migrate", 11, "S", "migrate"), protocol.Living("agent", 12, "S", "python3")


def story(*living: protocol.Living, records: tuple[str, ...] = ("BEGIN",)) -> protocol.Story:
    state = protocol.JournalState(ID, "source", records, "beta", 4711, True, AGENT in living, False, 0, True)
    return protocol.Story(state, living=living)


class Source(Peer):
    """The source's agent: tells one story after the other, and the last one for ever."""

    def __init__(self, *stories: protocol.Story) -> None:
        self.host = "alpha"
        self.stories = list(stories)

    async def interrupt(self, request: protocol.Interrupt) -> protocol.Interrupted:
        return protocol.Interrupted(MIGRATE.pid)

    async def story(self, request: protocol.ReadJournal) -> protocol.Story:
        return self.stories.pop(0) if len(self.stories) > 1 else self.stories[0]


class Notes:
    """An observer of nothing else."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aborting, "PAUSE", 0.001)
    monkeypatch.setattr(aborting, "PATIENCE", 0.02)


@pytest.mark.parametrize(
    ("living", "who", "way"),
    [
        ((MIGRATE, AGENT), "migrate (pid 11) does not", f"on alpha: kill -KILL 11, then migrate recover {ID}"),
        ((AGENT,), "agent (pid 12) does not", f"on alpha: kill -KILL 12, then migrate recover {ID}"),
    ],
)
async def test_it_does_not_wait_for_ever(living: tuple[protocol.Living, ...], who: str, way: str) -> None:
    notes = Notes()
    with pytest.raises(errors.InDoubt) as caught:
        await _by_its_migrate(Source(story(*living)), ID, cast(Observer, notes))
    assert notes.texts == ["alpha: SIGTERM to migrate, pid 11: it undoes"]
    assert who in caught.value.message
    assert (caught.value.hint, caught.value.exit_code) == (way, 71)


async def test_as_long_as_it_gets_on_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a minute in all: one in which nothing happens."""
    monkeypatch.setattr(aborting, "PATIENCE", -1.0)  # a second look at the same would be one too many
    steps = [("BEGIN",), ("BEGIN", "FROZEN"), ("BEGIN", "FROZEN", "ABORT")]
    under_way = [story(MIGRATE, AGENT, records=records) for records in steps] + [story(AGENT, records=steps[-1])]
    outcome = await _by_its_migrate(
        Source(*under_way, story(records=(*steps[-1], "DONE"))), ID, cast(Observer, Notes())
    )
    assert outcome is not None
    assert (outcome.course, outcome.host, outcome.pid) == (Course.UNDO, "alpha", 4711)
