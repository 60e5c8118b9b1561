"""agent/ledger.py: what we put on a host can be taken back, by us or another process, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.ledger import PREFIX, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One with a record."""
    (tmp_path / "files").mkdir()
    return Ledger(tmp_path / "record")


def put(ledger: Ledger, path: Path, content: str) -> None:
    """Place a file."""
    temporary = ledger.temporary_beside(str(path))
    Path(temporary).write_text(content)
    ledger.ready([(temporary, str(path))])
    ledger.place(str(path))


def listing(tmp_path: Path) -> dict[str, str]:
    """All files and what they hold."""
    return {path.name: path.read_text() for path in (tmp_path / "files").iterdir()}


def again(tmp_path: Path, ledger: Ledger, other: bool) -> Ledger:
    """The same ledger, or the one of a process that only has the record."""
    return Ledger.read(tmp_path / "record") if other else ledger


@pytest.mark.parametrize("other", [False, True])
def test_everything_is_as_it_was(tmp_path: Path, ledger: Ledger, other: bool) -> None:
    there = tmp_path / "files" / "there"
    there.write_text("before")
    inode = there.stat().st_ino
    put(ledger, there, "1")
    put(ledger, tmp_path / "files" / "new", "1")
    assert {listing(tmp_path)["there"], listing(tmp_path)["new"]} == {"1"}
    assert again(tmp_path, ledger, other).undo() == ()
    assert listing(tmp_path) == {"there": "before"}
    assert there.stat().st_ino == inode
    assert again(tmp_path, ledger, other).undo() == ()
    assert listing(tmp_path) == {"there": "before"}


@pytest.mark.parametrize("other", [False, True])
def test_what_is_kept_leaves_no_trace_of_what_was_saved(tmp_path: Path, ledger: Ledger, other: bool) -> None:
    there = tmp_path / "files" / "there"
    there.write_text("before")
    put(ledger, there, "after")
    Path(ledger.temporary_beside(str(there))).write_text("half")
    assert len(listing(tmp_path)) == 3
    assert again(tmp_path, ledger, other).keep() == ()
    assert listing(tmp_path) == {"there": "after"}


@pytest.mark.parametrize("other", [False, True])
def test_a_temporary_file_of_a_dead_agent_goes(tmp_path: Path, ledger: Ledger, other: bool) -> None:
    Path(ledger.temporary_beside(str(tmp_path / "files" / "x"))).write_text("half")
    assert again(tmp_path, ledger, other).undo() == ()
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("other", [False, True])
def test_what_somebody_else_put_there_since_stays(tmp_path: Path, ledger: Ledger, other: bool) -> None:
    there = tmp_path / "files" / "there"
    there.write_text("before")
    put(ledger, there, "ours")
    (tmp_path / "theirs").write_text("theirs")
    os.rename(tmp_path / "theirs", there)
    (left,) = again(tmp_path, ledger, other).undo()
    assert "somebody else replaced it" in left
    assert PREFIX in left  # where the one before lies, which must not be lost
    assert sorted(listing(tmp_path).values()) == ["before", "theirs"]


@pytest.mark.parametrize("other", [False, True])
def test_what_somebody_removed_since_is_put_back_if_it_was_there(tmp_path: Path, ledger: Ledger, other: bool) -> None:
    there, new = tmp_path / "files" / "there", tmp_path / "files" / "new"
    there.write_text("before")
    put(ledger, there, "ours")
    put(ledger, new, "ours")
    there.unlink()
    new.unlink()
    assert again(tmp_path, ledger, other).undo() == ()
    assert listing(tmp_path) == {"there": "before"}


def test_an_act_that_was_only_written_down_is_undone(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "files" / "there"
    there.write_text("before")
    monkeypatch.setattr(os, "rename", lambda *names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put(ledger, there, "ours")
    monkeypatch.undo()
    Ledger.read(tmp_path / "record").undo()
    assert listing(tmp_path) == {"there": "before"}


def test_a_torn_last_line_was_never_acted_on(tmp_path: Path, ledger: Ledger) -> None:
    put(ledger, tmp_path / "files" / "new", "ours")
    with (tmp_path / "record").open("a") as file:
        file.write('{"act": "place", "pa')
    assert Ledger.read(tmp_path / "record").undo() == ()
    assert listing(tmp_path) == {}


def test_without_a_record_there_is_nothing_to_undo(tmp_path: Path) -> None:
    ledger = Ledger.read(tmp_path / "none")
    assert (ledger.undo(), ledger.keep()) == ((), ())
    assert not (tmp_path / "none").exists()


def test_a_name_of_any_bytes_survives_the_record(tmp_path: Path, ledger: Ledger) -> None:
    path = os.fsdecode(os.fsencode(tmp_path / "files") + b"/a\n\xff")
    put(ledger, Path(path), "ours")
    assert Ledger.read(tmp_path / "record").undo() == ()
    assert listing(tmp_path) == {}


def test_what_cannot_be_taken_back_is_said(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    put(ledger, tmp_path / "files" / "new", "ours")

    def refused(path: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refused)
    (left,) = ledger.undo()
    assert left.endswith("Operation not permitted")
    monkeypatch.undo()
    assert ledger.undo() == ()
    assert listing(tmp_path) == {}


def test_many_are_recorded_at_once_and_before_the_freeze(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    for number in range(50):
        path = str(tmp_path / "files" / str(number))
        Path(path).write_text("before")
        temporary = ledger.temporary_beside(path)
        Path(temporary).write_text("ours")
        pairs.append((temporary, path))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ledger.ready(pairs)
    ledger.ready(pairs)
    assert len(synced) == 1
    for _, path in pairs:
        ledger.place(path)
    assert len(synced) == 1
    monkeypatch.undo()
    assert set(listing(tmp_path).values()) == {"ours", "before"}
    assert Ledger.read(tmp_path / "record").undo() == ()
    assert set(listing(tmp_path).values()) == {"before"}


def test_what_is_kept_is_on_disk_before_what_was_there_goes(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, acts = tmp_path / "files" / "there", []
    there.write_text("before")
    put(ledger, there, "after")
    fsync, unlink = os.fsync, os.unlink

    def noted_fsync(descriptor: int) -> None:
        acts.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def noted_unlink(path: str) -> None:
        acts.append("gone")
        unlink(path)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "unlink", noted_unlink)
    assert ledger.keep() == ()
    assert acts == [str(there), str(there.parent), "gone"]


def test_what_the_process_has_replaced_since_is_not_looked_at(tmp_path: Path, ledger: Ledger) -> None:
    new, gone = tmp_path / "files" / "new", tmp_path / "files" / "gone"
    put(ledger, new, "ours")
    put(ledger, gone, "ours")
    gone.unlink()
    new.unlink()
    os.mkfifo(new)  # opening it for good would wait for a writer
    assert ledger.keep() == ()


@pytest.mark.parametrize("other", [False, True])
def test_what_came_to_a_place_that_was_only_got_ready_is_left_alone(
    tmp_path: Path, ledger: Ledger, other: bool
) -> None:
    pairs = []
    for name in ("was there", "was not"):
        path = tmp_path / "files" / name
        if name == "was there":
            path.write_text("before")
        temporary = ledger.temporary_beside(str(path))
        Path(temporary).write_text("ours")
        pairs.append((temporary, str(path)))
    ledger.ready(pairs)
    for _, path_ in pairs:
        Path(path_).unlink(missing_ok=True)
        Path(path_).write_text("theirs")
    assert again(tmp_path, ledger, other).undo() == ()
    assert listing(tmp_path) == {"was there": "theirs", "was not": "theirs"}


@pytest.mark.parametrize("other", [False, True])
def test_what_was_got_ready_and_never_placed_leaves_nothing(tmp_path: Path, ledger: Ledger, other: bool) -> None:
    path = tmp_path / "files" / "log"
    path.write_text("before")
    temporary = ledger.temporary_beside(str(path))
    Path(temporary).write_text("ours")
    ledger.ready([(temporary, str(path))])
    assert len(listing(tmp_path)) == 3
    assert again(tmp_path, ledger, other).keep() == ()
    assert listing(tmp_path) == {"log": "before"}


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "7", "{}", '{"act":"format"}', '{"act":"temporary","name":"/etc/passwd"}',
        '{"act":"temporary","name":".migrate-1"}', '{"act":"temporary","name":7}',
        '{"act":"place","path":"/x","temporary":"/etc/passwd","saved":"","device":1,"inode":1}',
        '{"act":"place","path":"/x","temporary":"/.migrate-1","saved":"/etc/passwd","device":1,"inode":1}',
        '{"act":"place","path":"/x","temporary":"/.migrate-1","saved":"","device":"x","inode":1}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_act_of_ours_is_not_acted_on(tmp_path: Path, ledger: Ledger, line: str) -> None:
    """A disk that garbles a record must not make us remove what is not ours; the rest of it is still taken back."""
    name = Path(ledger.temporary_beside(str(tmp_path / "x")))
    name.write_text("ours")
    with (tmp_path / "record").open("a") as file:
        file.write(f"{line}\n")
    again = Ledger.read(tmp_path / "record")
    assert again.names == {str(name)}
    (left,) = again.undo()
    assert "record is damaged" in left
    assert not name.exists()
    assert Path("/etc/passwd").exists()
