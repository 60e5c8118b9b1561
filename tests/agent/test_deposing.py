"""Taking a migration over: from the dead, from the living, and two who want to at the same time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import deposing, process
from agent.journal import Journal, JournalError, Record
from tests.fake_hosts import eventually, state_of

ID = "m"
HELD = [Record.PREPARED, Record.HELD]


@pytest.fixture
def agent() -> Iterator[tuple[int, int]]:
    """A process that stands for the former agent."""
    sleeper = subprocess.Popen(["sleep", "1000"])
    yield sleeper.pid, process.start_time(sleeper.pid)
    sleeper.kill()
    sleeper.wait()


def held(state: Path, agent: tuple[int, int]) -> None:
    kept = Journal.create(state, ID, "target", peer="alpha", root=1, boot=process.boot_id(), agent=list(agent))
    kept.write(Record.HELD)
    kept.close()


def take(state: Path, act: Callable[[Journal], None], say: Callable[[], None] = lambda: None) -> None:
    """As an agent does it that is asked to resume: take over, decide, act, say so."""
    kept = Journal.load(state, ID)

    def decide() -> None:
        wanted = not kept.has(Record.RESUMING)
        act(kept)
        if wanted:
            kept.write(Record.RESUMING)
        if not kept.has(Record.RESUMED):  # here, since the other one would have killed an agent; it can't kill a thread
            kept.write(Record.RESUMED)

    try:
        asyncio.run(deposing.depose(kept, decide))
        say()
    finally:
        kept.close()


def test_of_two_at_the_same_time_the_second_decides_by_what_the_first_has_done(
    tmp_path: Path, agent: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has looked already, and not written yet, is not overtaken: RESUMING never comes after RESUMED."""
    held(tmp_path, agent)
    looked, other_is_done = threading.Event(), threading.Event()

    def dawdle(kept: Journal) -> None:
        looked.set()
        other_is_done.wait(0.5)  # it can't be, unless it has overtaken us

    first = threading.Thread(target=take, args=(tmp_path, dawdle))
    first.start()
    assert looked.wait(30)
    take(tmp_path, lambda kept: None, other_is_done.set)
    first.join()
    kept = Journal.load(tmp_path, ID)
    assert list(kept.records) == [*HELD, Record.RESUMING, Record.RESUMED]
    kept.close()


def test_who_waits_for_another_for_ever_says_so(
    tmp_path: Path, agent: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held(tmp_path, agent)
    monkeypatch.setattr(deposing, "PATIENCE", 0.05)
    other = os.open(tmp_path / ID / "journal", os.O_RDWR)
    assert deposing._locked(other)
    kept = Journal.load(tmp_path, ID)
    assert deposing.at_work(kept), "who takes over is at work"
    with pytest.raises(JournalError, match="somebody else is taking it over"):
        asyncio.run(deposing.depose(kept, lambda: None))
    os.close(other)
    kept.close()
    assert state_of(agent[0]) == "S", "nobody was touched"


def test_a_refused_verdict_lets_the_former_agent_go_on(tmp_path: Path, agent: tuple[int, int]) -> None:
    held(tmp_path, agent)
    kept = Journal.load(tmp_path, ID)
    seen: list[str] = []

    def refuse() -> None:
        seen.append(state_of(agent[0]))
        raise JournalError("no")

    with pytest.raises(JournalError, match="no"):
        asyncio.run(deposing.depose(kept, refuse))
    assert seen == ["T"]
    eventually(lambda: state_of(agent[0]) == "S", "it goes on")
    assert not kept.all_facts("owner")
    asyncio.run(deposing.depose(kept, lambda: None))
    assert not process.alive(*agent)
    assert kept.facts("owner")["agent"] == [os.getpid(), process.start_time(os.getpid())]
    kept.close()
