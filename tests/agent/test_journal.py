"""The journal: what may follow what, what survives a crash at any byte, and who owns it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import journal
from agent.journal import IdTaken, Journal, JournalError, Record

GOOD = {
    "source": [
        ["BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE"],
        ["BEGIN", "FROZEN", "ABORT", "DONE"],
        ["BEGIN", "FROZEN", "ABORT", "DEPOSED", "KILLED", "DONE"],
        ["BEGIN", "ABORT", "DONE"],
    ],
    "target": [
        ["PREPARED", "HELD", "RESUMING", "RESUMED", "DONE"],
        ["PREPARED", "HELD", "ABORT", "DONE"],
        ["PREPARED", "ABORT", "DONE"],
    ],
}


def names(kept: Journal) -> list[str]:
    return [record.value for record in kept.records]


@pytest.mark.parametrize(("role", "records"), [(role, records) for role, all_ in GOOD.items() for records in all_])
def test_the_ways_through_a_migration(tmp_path: Path, role: str, records: list[str]) -> None:
    kept = Journal.create(tmp_path, "m", role, root=1)
    for record in records[1:]:
        kept.write(Record(record))
    assert names(kept) == records
    kept.close()
    again = Journal.load(tmp_path, "m")
    assert names(again) == records
    assert (again.role, again.migration, again.facts(records[0])["root"]) == (role, "m", 1)
    again.close()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["source", "target"]), st.lists(st.sampled_from(list(Record)), max_size=8))
def test_no_order_but_those(role: str, records: list[Record]) -> None:
    """Whatever is tried: what stands in the journal is the start of a way through, COMMIT and ABORT never both."""
    with tempfile.TemporaryDirectory() as place:
        kept = Journal.create(Path(place), "m", role)
        for record in records:
            if kept.may(record):
                kept.write(record)
            else:
                with pytest.raises(JournalError, match=f"{record.value} may not follow"):
                    kept.write(record)
        found = [name for name, after in zip(names(kept), [*names(kept)[1:], ""]) if name != after or name != "HELD"]
        assert any(way[: len(found)] == found for way in GOOD[role])
        kept.close()


def test_what_was_never_frozen_cannot_be_anywhere_else(tmp_path: Path) -> None:
    """No operator's word ends a tree here of which no target ever had the last pages."""
    kept = Journal.create(tmp_path, "m", "source")
    kept.write(Record.ABORT)
    with pytest.raises(JournalError, match="DEPOSED may not follow"):
        kept.write(Record.DEPOSED)
    kept.close()


def test_a_crash_at_any_byte_leaves_whole_records(tmp_path: Path) -> None:
    kept = Journal.create(tmp_path, "m", "source", note="ü\n")
    kept.note("criu", pid=5, start=6)
    kept.write(Record.FROZEN)
    kept.write(Record.COMMIT, tasks=[[1, 2]])
    kept.close()
    data = (tmp_path / "m" / "journal").read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for length in range(ends[0], len(data) + 1):
        (tmp_path / "m" / "journal").write_bytes(data[:length])
        torn = Journal.load(tmp_path, "m")
        whole = sum(end <= length for end in ends)
        assert names(torn) == ["BEGIN", "FROZEN", "COMMIT"][: max(1, whole - 1)]
        assert (tmp_path / "m" / "journal").read_bytes() == data[:length], "reading has changed it"
        torn.take_over()
        torn.write(Record.ABORT) if not torn.has(Record.COMMIT) else torn.write(Record.KILLED)
        torn.close()
        lines = (tmp_path / "m" / "journal").read_bytes().splitlines()
        torn_lines = [line for line in lines if line.endswith(journal.TORN.encode())]
        assert len(torn_lines) == (length not in ends)
        assert len(lines) == whole + len(torn_lines) + 1
        assert all(json.loads(line) for line in lines if line not in torn_lines)


@pytest.mark.parametrize("length", [0, 10])
def test_one_that_never_began(tmp_path: Path, length: int) -> None:
    Journal.create(tmp_path, "m", "source").close()
    os.truncate(tmp_path / "m" / "journal", length)
    with pytest.raises(JournalError, match="never began"):
        Journal.load(tmp_path, "m")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a b", "a\0", "x" * 65, "ä"])
def test_what_is_no_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(JournalError, match="is not the id of a migration"):
        Journal.create(tmp_path, name, "source")
    with pytest.raises(JournalError, match="is not the id of a migration"):
        Journal.load(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_an_id_is_used_once(tmp_path: Path) -> None:
    Journal.create(tmp_path, "m", "source").close()
    with pytest.raises(IdTaken, match="was here before"):
        Journal.create(tmp_path, "m", "target")


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="has no journal"):
        Journal.load(tmp_path / "nowhere", "m")
    assert journal.unfinished(tmp_path / "nowhere") == ()


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    owner = Journal.create(tmp_path, "m", "source")
    other = Journal.load(tmp_path, "m")
    assert other.owned_elsewhere
    with pytest.raises(JournalError, match="still at work"):
        other.take_over()
    owner.write(Record.FROZEN)
    owner.close()
    assert not Journal.load(tmp_path, "m").owned_elsewhere
    other.take_over()
    assert names(other) == ["BEGIN", "FROZEN"]  # what was written since it was loaded
    third = Journal.load(tmp_path, "m")
    assert third.owned_elsewhere
    third.close()
    other.close()


def test_ownership_dies_with_the_owner(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from agent.journal import Journal, Record\n"
        "kept = Journal.create(Path(sys.argv[1]), 'm', 'source'); kept.write(Record.FROZEN)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root)
    assert done.returncode == -signal.SIGKILL
    kept = Journal.load(tmp_path, "m")
    assert names(kept) == ["BEGIN", "FROZEN"]
    kept.take_over()
    kept.close()


def test_a_torn_line_that_both_the_hook_and_a_new_owner_end(tmp_path: Path) -> None:
    """Neither knows of the other, and neither takes away what the other has written."""
    Journal.create(tmp_path, "m", "source").close()
    path = tmp_path / "m" / "journal"
    with path.open("a") as file:
        file.write('{"record":"COMMIT","time":1}')
    kept = Journal.load(tmp_path, "m")
    kept.reload = _and_then(kept.reload, lambda: _append(path, '?\n{"record":"ABORT"}\n'))  # type: ignore[method-assign]
    kept.take_over()
    kept.close()
    again = Journal.load(tmp_path, "m")
    assert names(again) == ["BEGIN", "ABORT"]
    again.close()


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _and_then(first: Callable[[], int], second: Callable[[], None]) -> Callable[[], int]:
    def both() -> int:
        result = first()
        second()
        return result

    return both


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Journal.create(tmp_path, "m", "source")
    before = (tmp_path / "m" / "journal").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    with pytest.raises(JournalError, match="disk is full"):
        kept.write(Record.FROZEN)
    monkeypatch.undo()
    assert (tmp_path / "m" / "journal").read_bytes() == before
    assert not kept.has(Record.FROZEN)
    kept.write(Record.FROZEN)
    kept.close()


def test_a_record_is_on_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    kept = Journal.create(tmp_path / "state", "m", "source")
    directory = tmp_path / "state" / "m"
    assert synced == [str(directory / "journal"), str(directory), str(tmp_path / "state")]
    kept.write(Record.FROZEN)
    kept.note("criu", pid=1)
    assert synced[3:] == [str(directory / "journal")] * 2
    kept.close()


def test_facts_are_the_newest_of_their_name(tmp_path: Path) -> None:
    kept = Journal.create(tmp_path, "m", "source")
    kept.note("criu", pid=1)
    kept.note("criu", pid=2)
    assert kept.facts("criu")["pid"] == 2
    assert [line["pid"] for line in kept.all_facts("criu")] == [1, 2]
    assert kept.facts("owner") == {}
    assert names(kept) == ["BEGIN"]
    kept.close()


def _finish(state: Path, name: str, age: int, *records: Record) -> None:
    kept = Journal.create(state, name, "source")
    for record in records:
        kept.write(record)
    kept.close()
    (state / name / "dump.log").write_text("log")
    os.utime(state / name / "journal", (age, age))


def test_the_unfinished_newest_first_and_the_finished_pruned(tmp_path: Path) -> None:
    _finish(tmp_path, "old", 100)
    _finish(tmp_path, "new", 300, Record.ABORT)
    for number in range(5):
        _finish(tmp_path, f"done-{number}", number, Record.ABORT, Record.DONE)
    (tmp_path / "stranger").mkdir()
    (tmp_path / "done-1" / "images").mkdir()
    assert journal.unfinished(tmp_path) == ("new", "old")
    journal.prune(tmp_path, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["done-1", "done-3", "done-4", "new", "old", "stranger"]
    assert [path.name for path in (tmp_path / "done-1").iterdir()] == ["images"]


def test_what_did_not_reach_the_disk_was_not_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An fsync that fails leaves no line that the hook, or another agent, could take for the decision."""

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    kept = Journal.create(tmp_path, "m", "source")
    kept.write(Record.FROZEN)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            kept.write(Record.COMMIT)
    assert not kept.has(Record.COMMIT)
    assert "COMMIT" not in (tmp_path / "m" / "journal").read_text()
    kept.write(Record.ABORT)
    kept.close()
    again = Journal.load(tmp_path, "m")
    assert names(again) == ["BEGIN", "FROZEN", "ABORT"]
    again.close()
