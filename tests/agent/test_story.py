"""What a host tells of a migration; and the one thing it does: interrupt the `migrate` that runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import process, protocol, story
from agent.journal import Journal, JournalError, Record
from agent.settings import Settings

ID = "20260704-031500-a1b2c3"
OURS = [os.getpid(), process.start_time(os.getpid())]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "state", tmp_path / "run")


def begun(settings: Settings, role: str = "source", *records: str, **details: object) -> Journal:
    facts = {"peer": "db2", "root": 7, "boot": process.boot_id(), "tasks": [OURS], "agent": [2**22 + 5, 1]}
    kept = Journal.create(settings.state, ID, role, **{**facts, **details})
    for record in records:
        kept.write(Record(record), tasks=[OURS], pid=9)
    return kept


def test_the_list(settings: Settings) -> None:
    begun(settings, "target", "HELD", "RESUMING", "RESUMED").close()
    (one,) = story.migrations(settings).items
    assert (one.migration, one.role, one.peer, one.root, one.at_work) == (ID, "target", "db2", 9, False)
    assert one.records == ("PREPARED", "HELD", "RESUMING", "RESUMED")
    assert 0 < one.began <= one.changed


def test_all_of_one(settings: Settings) -> None:
    kept = begun(settings, "source", "FROZEN")
    kept.note("criu", what="dump", pid=OURS[0], start=OURS[1])
    settings.images(ID).mkdir(parents=True)
    (settings.images(ID) / "pages").write_bytes(b"x" * 9000)
    settings.locks.mkdir()
    (settings.locks / str(OURS[0])).touch()
    told = story.tell(settings, protocol.ReadJournal(ID))
    assert [line.record for line in told.lines] == ["BEGIN", "FROZEN", "criu"]
    assert all(line.time > 0 for line in told.lines)
    assert json.loads(told.lines[2].facts) == {"what": "dump", "pid": OURS[0], "start": OURS[1]}
    assert [(one.kind, one.pid) for one in told.living] == [("criu", OURS[0])]  # each process once
    assert told.held
    assert (told.images, told.locks) == (str(settings.images(ID)), (str(settings.locks / str(OURS[0])),))
    assert told.image_bytes >= 9000
    kept.close()


def test_nothing_is_held_that_runs_or_is_gone(settings: Settings) -> None:
    begun(settings, "source", "FROZEN").close()  # its criu is dead, and nobody has stopped it
    assert not story.tell(settings, protocol.ReadJournal(ID)).held


def test_one_that_is_not_there(settings: Settings) -> None:
    assert story.tell(settings, protocol.ReadJournal(ID)).state.role == ""
    with pytest.raises(JournalError):
        story.interrupt(settings, protocol.Interrupt(ID))


@pytest.fixture
def migrate() -> Iterator[subprocess.Popen[bytes]]:
    """What the journal says runs the migration; somebody has stopped it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize(("records", "told"), [([], True), (["FROZEN"], True), (["FROZEN", "COMMIT"], False)])
def test_interrupt(settings: Settings, migrate: subprocess.Popen[bytes], records: list[str], told: bool) -> None:
    """Before COMMIT, also a `migrate` that is stopped; after it, never."""
    begun(settings, "source", *records, migrate=[migrate.pid, process.start_time(migrate.pid)]).close()
    answer = story.interrupt(settings, protocol.Interrupt(ID))
    assert answer.pid == (migrate.pid if told else 0)
    if told:
        assert migrate.wait(100) == -signal.SIGTERM
    else:
        assert process.read_stat(migrate.pid).state == "T"


def test_another_process_of_its_number_is_left_alone(settings: Settings) -> None:
    begun(settings, migrate=[OURS[0], OURS[1] + 1]).close()
    assert story.interrupt(settings, protocol.Interrupt(ID)).pid == 0
