"""agent/placing.py: what a target refuses, what is never written over, and how all of it is taken back."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import deltas
from agent.deltas import Attribute, Delta, FilesError
from agent.ledger import Ledger
from agent.placing import Staging
from agent.protocol import Incoming
from tests.agent.test_sending import Way, aged


@pytest.fixture
def way(tmp_path: Path) -> Way:
    """From here to there."""
    return Way(tmp_path)


def pass_of(*sent: tuple[Delta, bytes]) -> io.BytesIO:
    """One that a source would not have sent."""
    out = io.BytesIO()
    for delta, data in sent:
        deltas.write(out, delta)
        out.write(data)
    deltas.write_end(out, len(sent))
    out.seek(0)
    return out


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a//b", "/", "/a/", "/./a", ""])
def test_paths_that_are_not_plain_are_refused(path: str) -> None:
    with pytest.raises(FilesError, match="plain"):
        Staging(Ledger(), [Incoming(path)])


def test_a_file_that_was_not_announced_is_refused(way: Way) -> None:
    way.write(b"x")
    way.begin("log")
    with pytest.raises(FilesError, match="was not to be sent"):
        way.staging.receive(pass_of((Delta(1), b"")))
    assert way.undone() == []


def test_a_different_file_is_never_written_over(way: Way) -> None:
    way.write(b"new")
    (way.there / "log").write_bytes(b"old and different")
    with pytest.raises(FilesError, match="differs"):
        way.begin("log")
    assert way.undone() == ["log"]


def test_a_file_that_was_seen_is_replaced_and_put_back(way: Way) -> None:
    way.write(b"new")
    old = way.there / "log"
    old.write_bytes(b"old and different")
    before = aged(old).stat()
    way.begin("log", replace=True).rsync()
    assert old.read_bytes() == b"old and different", "until the freeze it is what it was"
    way.place()
    assert old.read_bytes() == b"new"
    assert way.undone() == ["log"]
    after = old.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)


def test_another_process_can_put_it_back(way: Way) -> None:
    way.write(b"new")
    (way.there / "log").write_bytes(b"old")
    way.write(b"fresh", "fresh")
    way.begin("log", "fresh", replace=True).rsync()
    way.place()
    assert Ledger.read(way.directory / "ledger").undo() == ()
    assert {path.name: path.read_bytes() for path in way.there.iterdir()} == {"log": b"old"}


@pytest.mark.parametrize("act", ["changed", "made", "replaced"])
def test_what_changed_there_meanwhile_is_left_alone(way: Way, act: str) -> None:
    way.write(b"new")
    path = way.there / "log"
    if act != "made":
        path.write_bytes(b"old")
    way.begin("log", replace=True).rsync()
    if act == "replaced":
        path.unlink()
    path.write_bytes(b"theirs")
    with pytest.raises(FilesError, match="changed there while"):
        way.place()
    assert way.undone() == ["log"]
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_there_and_no_file_is_never_written_over(way: Way, make: Callable[[str], None]) -> None:
    way.write(b"new")
    make(str(way.there / "log"))
    with pytest.raises(FilesError, match="no regular file"):
        way.begin("log")
    assert way.undone() == ["log"]


@pytest.mark.parametrize("when", ["before a pass", "before it is placed", "before it is taken back"])
def test_a_link_in_the_place_of_a_directory_is_not_followed(way: Way, when: str) -> None:
    """Whoever owns the directory on the target must not have root write elsewhere."""
    way.write(b"new")
    way.begin("log").rsync()
    there, moved, elsewhere = way.there, way.directory / "moved", way.directory / "elsewhere"
    elsewhere.mkdir()

    def trap() -> None:
        for path in there.iterdir():  # as if the trap knew our names
            (elsewhere / path.name).write_text("precious")
        there.rename(moved)
        there.symlink_to(elsewhere)

    if when == "before it is taken back":
        way.go()
        way.staging.place()
        trap()
        assert "could not be made what it was before" in way.ledger.undo()[0]
    elif when == "before it is placed":
        way.go()
        trap()
        with pytest.raises(FilesError, match="Not a directory"):
            way.staging.place()
    else:
        trap()
        with pytest.raises(FilesError, match="Not a directory"):
            way.go()
    assert {path.read_text() for path in elsewhere.iterdir()} <= {"precious"}
    assert {path.name for path in elsewhere.iterdir()} <= {path.name for path in moved.iterdir()}


def test_a_link_in_the_place_of_a_staged_file_is_not_followed(way: Way) -> None:
    way.write(b"new")
    (way.directory / "victim").write_bytes(b"precious")
    way.begin("log")
    os.unlink(way.staged[0])
    os.symlink(way.directory / "victim", way.staged[0])
    with pytest.raises(FilesError):
        way.go()
    assert (way.directory / "victim").read_bytes() == b"precious"


def test_a_directory_that_is_a_link_there_is_seen_through(way: Way) -> None:
    (way.here / "sub").mkdir()
    (way.directory / "real").mkdir()
    (way.there / "sub").symlink_to(way.directory / "real")
    (way.here / "sub" / "log").write_bytes(b"x")
    way.begin("sub/log")
    assert Path(way.staged[0]).parent == way.directory / "real", "rsync follows no links"
    way.rsync()
    way.place()
    assert (way.directory / "real" / "log").read_bytes() == b"x"


def test_a_missing_directory_is_named(way: Way) -> None:
    (way.here / "no").mkdir()
    (way.here / "no" / "log").write_bytes(b"x")
    with pytest.raises(FilesError, match="no/log"):
        way.begin("no/log").go()


def test_what_the_source_says_nothing_of_is_not_placed(way: Way) -> None:
    way.write(b"x")
    way.begin("log").rsync()
    way.staging.receive(pass_of())
    with pytest.raises(FilesError, match="did not say"):
        way.staging.place()
    assert way.undone() == []


@pytest.mark.parametrize("size", [0, 20, 100, 5000, 20_100])
def test_a_pass_that_ends_early_is_a_broken_stream(way: Way, size: int) -> None:
    way.write(b"x" * 20_000)
    _, data = way.begin("log").send()
    with pytest.raises(ConnectionError):
        way.staging.receive(io.BytesIO(data[:size]))
    assert way.undone() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_damaged_pass_is_refused_or_read_and_can_be_undone(tmp_path: Path, data: st.DataObject) -> None:
    place = tmp_path / os.urandom(8).hex()
    place.mkdir()
    way = Way(place)
    way.write(b"hello" * 100)
    _, sent = way.begin("log").send()
    damaged = bytearray(sent)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        way.staging.receive(io.BytesIO(bytes(damaged[: data.draw(st.integers(0, len(damaged)))])))
    except (FilesError, ConnectionError):
        pass
    assert way.undone() == []


@pytest.mark.parametrize(
    "delta",
    [
        Delta(0, size=-1), Delta(0, uid=1 << 40), Delta(0, size=1 << 62),
        Delta(0, attributes=(Attribute("nonsense", ""),)), Delta(0, attributes=(Attribute("user.x", "?"),)),
    ],
)  # fmt: skip
def test_what_no_file_can_be_is_told_of_it(way: Way, delta: Delta) -> None:
    way.write(b"x")
    way.begin("log")
    with pytest.raises((FilesError, OSError)) as raised:
        way.staging.receive(pass_of((delta, b"")))
    assert "log" in str(raised.value) or "file 0" in str(raised.value)


def test_an_attribute_that_has_no_name_is_refused(way: Way) -> None:
    way.write(b"x")
    way.begin("log")
    with pytest.raises(FilesError, match="stream of files is broken"):
        way.staging.receive(pass_of((Delta(0, attributes=(Attribute("user.x\0y", ""),)), b"")))
    assert way.undone() == []


@pytest.mark.parametrize("where", ["pwrite", "link", "rename"])
def test_a_full_disk_is_told_by_its_own_error(way: Way, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    way.write(b"x" * 100)
    (way.there / "log").write_bytes(b"old")
    way.begin("log", replace=True)

    def full(*words: object, **more: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(way.there / "log"))

    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="no room") as raised:
        way.place()
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(way.there / "log"))
    monkeypatch.undo()
    assert way.undone() == ["log"]
    assert (way.there / "log").read_bytes() == b"old"


def test_a_file_system_without_attributes_is_named(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    path = way.write(b"x")
    os.setxattr(path, "user.key", b"1")
    way.begin("log")

    def unknown(*words: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    _, data = way.send()
    monkeypatch.setattr(os, "setxattr", unknown)
    with pytest.raises(FilesError, match=r"attributes .* can't be kept"):
        way.staging.receive(io.BytesIO(data))


def test_the_freeze_does_not_wait_for_the_disk(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1", "2", "3"):
        way.write(b"x" * 100_000, name)
    way.begin("1", "2", "3").rsync()
    way.go()
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    way.place()
    assert synced == []


def test_what_is_held_was_on_disk_before_it_is_told(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way.write(b"x" * 100)
    way.begin("log")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    way.rsync()
    assert synced == [way.staged[0]]
