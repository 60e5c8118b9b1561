"""agent/sending.py and agent/placing.py: files there and back again, with everything that may go wrong on the way."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import blocks, deltas, placing, sending, writers
from agent.deltas import Delta, FilesError, Held
from agent.ledger import PREFIX, Ledger
from agent.placing import Staging
from agent.protocol import Incoming, Moved
from agent.sending import Outgoing
from tests.children import child

BIG = sending._SMALL + 3 * blocks.BLOCK + 1234


class Way:
    """A source's directory and a target's; what is sent from one arrives at the same name in the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.here, self.there = directory / "here", directory / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.ledger = Ledger(directory / "ledger")
        self.root = os.getpid()

    def write(self, content: bytes, name: str | bytes = "log", *, age: float = 60) -> Path:
        """A file on the source, last changed `age` seconds ago."""
        path = Path(os.fsdecode(os.path.join(os.fsencode(self.here), os.fsencode(name))))
        path.write_bytes(content)
        return aged(path, age)

    def begin(self, *names: str | bytes, replace: bool = False) -> Way:
        """These come along."""
        fsdecoded = [os.fsdecode(os.fsencode(name)) for name in names]
        incoming = []
        for name in fsdecoded:
            path = self.there / name
            if replace and path.exists():
                incoming.append(Incoming(str(path), True, path.stat().st_size, path.stat().st_mtime_ns))
            else:
                incoming.append(Incoming(str(path)))
        self.outgoing = Outgoing(self.root, [str(self.here / name) for name in fsdecoded])
        self.staging = Staging(self.ledger, ())
        self.staged = self.staging.add(incoming)
        self.names = fsdecoded
        return self

    def rsync(self, *, harm: Callable[[str], object] = lambda path: None) -> None:
        """What rsync does, and the target's word of it; `harm` befalls each file in between."""
        for name, staged in zip(self.names, self.staged, strict=True):
            if (self.here / name).is_file():
                shutil.copyfile(self.here / name, staged)
                harm(staged)
        said = io.BytesIO()
        self.held = self.staging.hold(said)
        said.seek(0)
        self.outgoing.learn(said)

    def send(self, *, frozen: bool = False) -> tuple[Moved, bytes]:
        """A pass that goes nowhere yet."""
        out = io.BytesIO()
        return self.outgoing.send(out, frozen=frozen), out.getvalue()

    def go(self, *, frozen: bool = False) -> Moved:
        """A pass."""
        moved, data = self.send(frozen=frozen)
        assert self.staging.receive(io.BytesIO(data)) == moved
        return moved

    def place(self) -> Moved:
        """The final pass."""
        moved = self.go(frozen=True)
        self.staging.place()
        return moved

    def undone(self) -> list[str]:
        """What is on the target when everything is taken back."""
        assert self.ledger.undo() == ()
        return sorted(os.listdir(self.there))


def aged(path: Path, age: float = 60) -> Path:
    """It was last changed so long ago."""
    changed = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(changed, changed))
    return path


@pytest.fixture
def way(tmp_path: Path) -> Way:
    """From here to there."""
    return Way(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes made by these tests count as settled at once; otherwise each would have to wait for a second."""
    monkeypatch.setattr(sending, "_SETTLED_NS", -(10**9))


# --- what arrives ----------------------------------------------------------------------------------------------------

NAMES = [b"plain", b"a b\n) (deleted)", b"\xff\xfe", "grüße".encode(), b"x" * 255, b"-rf", b"..."]


@pytest.mark.parametrize("rsynced", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_arrives_with_everything_that_it_has(way: Way, name: bytes, rsynced: bool) -> None:
    path = way.write(b"content", name)
    os.setxattr(path, "user.key", b"v\0alue\xff")
    os.chmod(path, 0o4751)
    if os.getuid() == 0:
        os.chown(path, 3_000_000, 77)
        os.chmod(path, 0o4751)
    os.utime(path, ns=(1_500_000_000_000_000_001, 1_600_000_000_123_456_789))
    before = os.stat(path)
    way.begin(name)
    if rsynced:
        way.rsync()
    assert way.go() == Moved(1, 0 if rsynced else 7)
    assert os.listdir(way.there)[0].startswith(PREFIX), "not in its place before the freeze"
    way.place()
    there = way.there / os.fsdecode(name)
    after = os.stat(there)
    assert there.read_bytes() == b"content"
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field), field
    assert {key: os.getxattr(there, key) for key in os.listxattr(there)} == {"user.key": b"v\0alue\xff"}
    assert way.ledger.keep() == ()
    assert os.listdir(way.there) == [os.path.basename(there)]


def test_an_access_control_list_arrives(way: Way) -> None:
    # version 2; owner rw, user 33 rw, group r, mask rw, others none (linux/posix_acl_xattr.h)
    entries = [(1, 6, -1), (2, 6, 33), (4, 4, -1), (16, 6, -1), (32, 0, -1)]
    acl = (2).to_bytes(4, "little")
    for tag, permissions, who in entries:
        acl += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
    path = way.write(b"x")
    os.setxattr(path, "system.posix_acl_access", acl)
    way.begin("log").rsync()
    way.place()
    assert os.getxattr(way.there / "log", "system.posix_acl_access") == acl
    assert (way.there / "log").stat().st_mode == path.stat().st_mode


def test_an_attribute_that_is_gone_again_goes_there_too(way: Way, settled: None) -> None:
    path = way.write(b"x")
    os.setxattr(path, "user.key", b"1")
    way.begin("log").rsync()
    way.go()
    os.removexattr(path, "user.key")
    assert way.place() == Moved(1, 0)
    assert os.listxattr(way.there / "log") == []


def test_holes_stay_holes(way: Way) -> None:
    path = way.here / "log"
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(50 << 20)
        file.write(b"end")
    way.begin("log")
    moved = way.place()
    assert moved.bytes <= 2 * blocks.BLOCK
    there = way.there / "log"
    assert there.stat().st_size == path.stat().st_size
    assert there.stat().st_blocks * 512 <= 4 * blocks.BLOCK
    assert there.read_bytes() == path.read_bytes()


def test_a_hole_that_is_punched_later_is_one_there_too(way: Way, settled: None) -> None:
    path = way.write(b"x" * (8 * blocks.BLOCK))
    way.begin("log").rsync()
    way.go()
    with path.open("r+b") as file:
        placing._clear(file.fileno(), blocks.BLOCK, 4 * blocks.BLOCK)
    assert way.place() == Moved(1, 0), "nothing but the word that it is zeros"
    assert (way.there / "log").read_bytes() == path.read_bytes()
    assert (way.there / "log").stat().st_blocks == path.stat().st_blocks


def test_zeros_are_written_where_no_hole_can_be_made(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way.write(bytes(100) + b"x" * blocks.BLOCK)
    monkeypatch.setattr(placing, "_PUNCH_HOLE", 0x4000)  # a mode that no kernel knows
    way.write(b"x" * blocks.BLOCK + bytes(blocks.BLOCK))
    way.begin("log").rsync(harm=lambda staged: Path(staged).write_bytes(b"?" * 2 * blocks.BLOCK))
    way.place()
    assert (way.there / "log").read_bytes() == b"x" * blocks.BLOCK + bytes(blocks.BLOCK)


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_what_did_not_change_is_not_even_opened(way: Way, settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(number) for number in range(200)]
    for name in names:
        way.write(b"content", name)
    way.begin(*names).rsync()
    assert way.go() == Moved(200, 0), "owner, mode and times"
    opened: list[str] = []
    real = sending._open
    monkeypatch.setattr(sending, "_open", lambda path: opened.append(path) or real(path))  # type: ignore[func-returns-value]
    assert way.place() == Moved(0, 0)
    assert opened == []
    assert sorted(os.listdir(way.there)) == sorted(names)


def test_only_the_blocks_that_changed_are_sent(way: Way, settled: None) -> None:
    path = way.write(os.urandom(BIG))
    way.begin("log").rsync()
    way.go()
    with path.open("r+b") as file:
        for at in (3, 4, 17):
            file.seek(at * blocks.BLOCK + 100)
            file.write(b"new")
    assert way.go() == Moved(1, 3 * blocks.BLOCK)
    assert way.go() == Moved(0, 0)
    assert way.place() == Moved(0, 0)
    assert (way.there / "log").read_bytes() == path.read_bytes()


def test_a_block_that_rsync_tore_is_healed(way: Way) -> None:
    """Its source did not change since, as far as its time stamps tell: the target's own sums are what counts."""
    path = way.write(os.urandom(BIG))

    def tear(staged: str) -> None:
        with open(staged, "r+b") as file:
            file.seek(5 * blocks.BLOCK + 7)
            file.write(b"torn")

    way.begin("log").rsync(harm=tear)
    assert way.go() == Moved(1, blocks.BLOCK)
    way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "harm", [os.unlink, lambda path: os.truncate(path, 10), lambda path: os.truncate(path, BIG + 10**6)]
)
def test_what_rsync_did_not_bring_comes_all_the_same(way: Way, harm: Callable[[str], object]) -> None:
    path = way.write(os.urandom(BIG))
    way.begin("log").rsync(harm=harm)
    way.go()
    way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


def test_a_change_of_mode_alone_is_a_change(way: Way, settled: None) -> None:
    path = way.write(b"x")
    way.begin("log").rsync()
    way.go()
    os.chmod(path, 0o600)
    assert way.place() == Moved(1, 0)
    assert stat.S_IMODE((way.there / "log").stat().st_mode) == 0o600


def test_a_change_that_leaves_size_and_mtime_alone_is_seen(way: Way, settled: None) -> None:
    path = way.write(b"one")
    stamp = os.stat(path).st_mtime_ns
    way.begin("log").rsync()
    way.go()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp, stamp))
    assert way.place() == Moved(1, 3)


def test_a_file_that_changed_just_now_is_compared_again(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    path = way.write(b"one")
    way.begin("log").rsync()
    way.go()
    # as within one tick of the clock: the status is the same
    real = os.stat(path)
    monkeypatch.setattr(sending, "_status", lambda status: (0, 0, 0, 0, 0))
    path.write_bytes(b"two")
    assert real.st_size == 3
    assert way.place() == Moved(1, 3)
    assert (way.there / "log").read_bytes() == b"two"


def test_a_file_that_is_mapped_to_write_is_always_compared(
    way: Way, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = way.write(bytes(4096))
    (way.directory / "child").mkdir()
    source = (
        f"import mmap\nheld = open({str(path)!r}, 'r+b'); area = mmap.mmap(held.fileno(), 4096); area[0] = 1\nready()"
    )
    with child(source, way.directory / "child") as pid:
        way.root = pid
        way.begin("log").rsync()
        way.go()
        assert way.outgoing._known[0].status is None
        assert way.place() == Moved(1, 0)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of the blocks that are read."""
    seen: list[int] = []
    real = blocks.read

    def read(descriptor: int, offset: int, length: int) -> memoryview:
        seen.append(offset)
        return real(descriptor, offset, length)

    monkeypatch.setattr(blocks, "read", read)
    return seen


@pytest.mark.parametrize("size", [BIG, sending._SMALL, sending._SMALL + blocks.BLOCK - 1])
def test_of_a_log_only_the_end_is_read(way: Way, settled: None, reads: list[int], size: int) -> None:
    path = way.write(os.urandom(size))
    with path.open("ab", buffering=0) as writer:
        way.begin("log").rsync()
        way.go()
        writer.write(b"one more line\n")
        reads.clear()
        moved = way.place()
    last = size // blocks.BLOCK * blocks.BLOCK
    assert moved.bytes == size + 14 - last
    assert len(reads) <= 4
    assert (way.there / "log").read_bytes() == path.read_bytes()


def rewritten(path: Path) -> None:
    """As `logrotate` with copytruncate does, and then it has grown beyond what it was."""
    path.write_bytes(os.urandom(2 * BIG))


def cut(path: Path) -> None:
    os.truncate(path, BIG // 2)


def replaced(path: Path) -> None:
    os.rename(path, f"{path}.1")
    path.write_bytes(os.urandom(2 * BIG))


@pytest.mark.parametrize("act", [rewritten, cut, replaced])
def test_a_log_that_was_not_only_appended_to_is_compared(way: Way, settled: None, act: Callable[[Path], None]) -> None:
    path = way.write(os.urandom(BIG))
    with path.open("ab", buffering=0) as writer:
        way.begin("log").rsync()
        way.go()
        act(path)
        writer.write(b"one more line\n")
        way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


def test_a_file_that_is_open_otherwise_too_is_compared(way: Way, settled: None) -> None:
    path = way.write(os.urandom(BIG))
    with path.open("ab", buffering=0) as writer, path.open("r+b", buffering=0) as other:
        way.begin("log").rsync()
        way.go()
        writer.write(b"one more line\n")
        other.seek(5 * blocks.BLOCK)
        other.write(b"in the middle")
        way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


def test_who_only_appends(way: Way) -> None:
    path = way.write(b"x")
    status = path.stat()
    key = (status.st_dev, status.st_ino)
    with path.open("rb"):
        assert key not in writers.only_appended([os.getpid()])
        with path.open("ab"):
            assert key in writers.only_appended([os.getpid()])
            with path.open("r+b"):
                assert key not in writers.only_appended([os.getpid()])


def test_a_log_that_grows_while_it_is_read_arrives_without_a_gap(way: Way) -> None:
    path = way.write(b"")
    writing, stop = threading.Event(), threading.Event()

    def write() -> None:
        with open(path, "ab", buffering=0) as file:
            number = 0
            while not stop.is_set():
                file.write(b"%08d\n" % number)
                number += 1
                writing.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        writing.wait()
        way.begin("log").rsync()
        for _ in range(5):
            way.go()
    finally:
        stop.set()
        writer.join()
    way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


def test_a_file_that_shrinks_while_it_is_read_is_healed(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    path = way.write(os.urandom(4 * blocks.BLOCK))
    way.begin("log")
    real = deltas.write

    def write(out: Any, message: Delta | Held) -> None:
        real(out, message)
        os.truncate(path, 1000)  # its data was announced, and is no longer there

    monkeypatch.setattr(deltas, "write", write)
    assert way.go() == Moved(1, 4 * blocks.BLOCK)
    monkeypatch.undo()
    way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.integers(0, 400_000), st.binary(min_size=1, max_size=9)),
                st.tuples(st.just("cut"), st.integers(0, 400_000), st.just(b"")),
                st.tuples(st.just("append"), st.just(0), st.binary(max_size=70_000)),
            ),
            max_size=4,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_whatever_happens_to_it_it_arrives(
    tmp_path: Path, passes: list[list[tuple[str, int, bytes]]], synced: bool
) -> None:
    place = tmp_path / os.urandom(8).hex()
    place.mkdir()
    way = Way(place)
    path = way.write(os.urandom(200_000))
    way.begin("log")
    if synced:
        way.rsync()
    for acts in passes:
        for what, offset, data in acts:
            if what == "cut":
                os.truncate(path, offset)
            elif what == "append":
                append(path, data)
            else:
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(data)
        way.go()
    way.place()
    assert (way.there / "log").read_bytes() == path.read_bytes()


def test_a_file_that_went_away_is_not_placed(way: Way) -> None:
    way.write(b"x", "stays")
    gone, back = way.write(b"y", "gone"), way.write(b"z", "back")
    way.begin("stays", "gone", "back").rsync()
    gone.unlink()
    back.unlink()
    way.go()
    assert way.send()[0].files == 1, "said once"
    way.write(b"z again", "back")
    way.place()
    assert sorted(name for name in os.listdir(way.there) if not name.startswith(PREFIX)) == ["back", "stays"]
    assert (way.there / "back").read_bytes() == b"z again"
    assert way.ledger.keep() == ()
    assert sorted(os.listdir(way.there)) == ["back", "stays"]


def test_what_the_source_cannot_send_is_said(way: Way) -> None:
    os.mkfifo(way.here / "fifo")
    with pytest.raises(FilesError, match="no regular file"):
        way.begin("fifo").send()


def test_a_link_is_no_file(way: Way) -> None:
    way.write(b"secret", "secret")
    (way.here / "link").symlink_to("secret")
    moved, data = way.begin("link").send()
    assert moved == Moved(0, 0)
    assert b"secret" not in data


def test_a_file_that_cannot_be_read_is_named(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way.write(b"x" * 100)
    way.begin("log")

    def broken(*words: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(FilesError, match="log: Input/output error"):
        way.send()


def test_a_broken_stream_is_no_broken_file(way: Way) -> None:
    class Broken(io.RawIOBase):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    way.write(b"x" * 1_000_000)
    way.begin("log")
    with pytest.raises(BrokenPipeError):
        way.outgoing.send(Broken(), frozen=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("held", [Held(1, 5, 10, 1), Held(-1, 5, 10, 1), Held(0, 5, 10, 2), Held(0, 5, 0, 1)])
def test_what_a_target_cannot_hold_is_refused(way: Way, held: Held) -> None:
    way.write(b"x")
    said = io.BytesIO()
    deltas.write(said, held)
    said.write(bytes(1000))
    said.seek(0)
    with pytest.raises(FilesError):
        way.begin("log").outgoing.learn(said)
