"""Where migrations stand, and which trees nobody else may touch because of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import process
from agent.journal import Journal, JournalError, Record
from agent.lock import TaskLocked
from agent.settings import Settings
from agent.standing import every, of, refuse_held

OURS = (os.getpid(), process.start_time(os.getpid()))
DEAD = (2**22 + 5, 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "state", tmp_path / "run")


def begun(settings: Settings, role: str, *records: str, agent: object = DEAD, boot: str = "") -> None:
    kept = Journal.create(
        settings.state, "m", role, peer="other", root=OURS[0], boot=boot or process.boot_id(), tasks=[OURS], agent=agent
    )
    for record in records:
        kept.write(Record(record), tasks=[OURS])
    kept.close()


HELD = {
    ("source", ()): False,  # nothing is frozen: who died has left nothing that could run elsewhere
    ("source", ("FROZEN",)): True,
    ("source", ("FROZEN", "ABORT")): False,
    ("source", ("FROZEN", "ABORT", "DONE")): False,
    ("source", ("FROZEN", "COMMIT", "KILLED")): False,
    ("target", ("HELD",)): True,
    ("target", ("HELD", "RESUMING")): True,
    ("target", ("HELD", "RESUMING", "RESUMED")): False,
    ("target", ("HELD", "ABORT")): False,
}


@pytest.mark.parametrize(("role", "records"), HELD)
def test_a_tree_that_a_dead_migration_has_in_its_hands(settings: Settings, role: str, records: tuple[str, ...]) -> None:
    begun(settings, role, *records)
    if not HELD[role, records]:
        refuse_held(settings, [OURS])
        return
    with pytest.raises(TaskLocked, match=f"migration m holds process {OURS[0]}") as caught:
        refuse_held(settings, [(1, 1), OURS])
    assert caught.value.hint == "settle it first: migrate recover m"
    refuse_held(settings, [(OURS[0], OURS[1] + 1)])  # another process of the same number


def test_a_tree_that_is_being_moved(settings: Settings) -> None:
    """Also before it is frozen, and before anything is locked: it is said whose it is."""
    begun(settings, "source", agent=(os.getppid(), process.start_time(os.getppid())))
    with pytest.raises(TaskLocked) as caught:
        refuse_held(settings, [OURS])
    assert "migrate abort m" in caught.value.hint


def test_after_a_reboot_it_is_another_process(settings: Settings) -> None:
    begun(settings, "source", "FROZEN", boot="another")
    refuse_held(settings, [OURS])
    assert not of(settings, "m").same_boot


def test_journals_that_can_not_be_read(settings: Settings) -> None:
    begun(settings, "target")
    for name, text in (("empty", ""), ("damaged", "{]\n"), ("strange", '{"record":"WHO"}\n')):
        (settings.state / name).mkdir()
        (settings.state / name / "journal").write_text(text)
    assert [one.migration for one in every(settings)] == ["m"]
    with pytest.raises(JournalError):
        of(settings, "nobody")
