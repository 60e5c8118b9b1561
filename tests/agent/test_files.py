"""agent/files.py: what a host holds of what is asked, and files on their way, with everything that may go wrong."""

from __future__ import annotations

import errno
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import files, process
from agent.ledger import PREFIX
from agent.protocol import Check, FileFacts, Moved
from tests.children import child, until

NOBODY = 4_190_000


def asked(path: str | Path, kind: str = "regular", *uses: str, build_id: str = "") -> FileFacts:
    """A question."""
    return FileFacts(str(path), kind, 0, 0, 0, 0, 0, 0, uses, build_id=build_id)


# --- check -----------------------------------------------------------------------------------------------------------


def test_every_question_is_answered_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("missing")
    os.mkfifo(tmp_path / "fifo")
    paths = ["file", "link", "missing", "nowhere", "file/x", "fifo", ""]
    questions = [asked(tmp_path / path if path else tmp_path, "regular", "open") for path in paths] + [asked("/x\0y")]
    answer = files.check(Check((*questions, asked("/dev/null", "char")), ()), tmp_path)
    assert [one.path for one in answer.files[:-1]] == [one.path for one in questions]
    kinds = [one.kind for one in answer.files]
    # as criu, which opens: what a link leads to counts
    assert kinds == ["regular", "regular", "missing", "missing", "missing", "fifo", "directory", "missing", "char"]
    file = answer.files[0]
    assert (file.size, file.mode, file.uid, file.uses) == (5, 0o640, os.getuid(), ("open",))
    assert file.mtime_ns == (tmp_path / "file").stat().st_mtime_ns
    assert answer.files[-1].rdev == os.makedev(1, 3)


def test_a_link_that_is_held_itself_is_looked_at_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing")
    (found,) = files.check(Check((asked(tmp_path / "link", "link", "open"),), ()), tmp_path).files
    assert found.kind == "link"


def test_a_build_id_is_read_only_where_the_source_has_one(tmp_path: Path) -> None:
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line)
    answer = files.check(Check((asked(library, build_id="ab"), asked(library, "regular", "exec")), ()), tmp_path)
    assert len(answer.files[0].build_id) >= 16
    assert answer.files[1].build_id == ""


def test_a_socket_that_is_in_use_is_told_from_one_left_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "a socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        (used,) = files.check(Check((asked(path, "socket", "bind"),), ()), tmp_path).files
    (left,) = files.check(Check((asked(path, "socket", "bind"),), ()), tmp_path).files
    assert (used.kind, used.uses) == ("socket", ("bind", "bound"))
    assert (left.kind, left.uses) == ("socket", ("bind",))


def taken(*ids: int) -> list[int]:
    """PIDs of those that hold these numbers."""
    return [task.pid for task in files.check(Check((), ids), Path("/")).taken]


def test_numbers_that_are_in_use_are_found_with_their_owners(tmp_path: Path) -> None:
    source = """
import threading
threading.Thread(target=time.sleep, args=(600,)).start()
if os.fork() == 0:
    os.setpgid(0, 0)
    if os.fork() == 0:
        open("member", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("member") or not open("member").read():
    time.sleep(0.001)
ready()
"""
    with child(source, tmp_path) as pid:
        tid = process.threads(pid)[1]
        member = int((tmp_path / "member").read_text())
        dead_leader = process.read_stat(member).pgid
        try:
            assert pid in taken(pid)
            assert taken(tid) == [pid]
            assert taken(dead_leader) == [member]
            assert member in taken(pid)  # by its session
            assert taken(NOBODY) == taken() == []
        finally:
            os.kill(member, 9)


def test_a_zombie_holds_its_number() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    try:
        until(lambda: process.read_stat(ended.pid).state == "Z")
        assert taken(ended.pid) == [ended.pid]
    finally:
        ended.wait()


def test_room_is_told_even_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    answer = files.check(Check((), ()), tmp_path / "not" / "yet")
    status = os.statvfs(tmp_path)
    assert 0 < answer.disk_available <= status.f_blocks * status.f_frsize
    assert answer.memory_available > 1 << 20


def test_five_hundred_files_take_no_time(tmp_path: Path) -> None:
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line)
    request = Check(
        (asked(library, build_id="ab"),) * 250 + (asked("/dev/null"),) * 250, tuple(range(NOBODY, NOBODY + 99))
    )
    fastest = min(_timed(lambda: files.check(request, tmp_path)) for _ in range(3))
    assert fastest < 0.3


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


# --- there and back --------------------------------------------------------------------------------------------------


class Way:
    """A source's directory and a target's ledger; what is sent from one place arrives at the same path.

    Both sides are this host, so the source's files are put away between sending and receiving.
    """

    def __init__(self, directory: Path) -> None:
        self.here = directory / "here"
        self.here.mkdir()
        self.aside = directory / "aside"
        self.already: dict[str, tuple[int, int]] = {}
        self.ledger = files.Ledger(directory / "ledger")
        self.target: dict[str, bytes] = {}

    def path(self, name: str | bytes = "log") -> str:
        """The path of a file."""
        return os.fsdecode(os.path.join(os.fsencode(self.here), os.fsencode(name)))

    def write(self, content: bytes, name: str | bytes = "log", *, age: float = 60) -> str:
        """A file on the source, last changed `age` seconds ago."""
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(content)
        return self.aged(path, age)

    def aged(self, path: str, age: float = 60) -> str:
        """It was last changed so long ago."""
        changed = time.time_ns() - int(age * 1e9)
        os.utime(path, ns=(changed, changed))
        return path

    def send(self, *paths: str) -> tuple[Moved, bytes]:
        """An archive."""
        out = io.BytesIO()
        return files.send(paths, out, self.already), out.getvalue()

    def receive(self, archive: bytes, *paths: str) -> Moved:
        """The same archive, on a target where the source's files are not."""
        return files.receive(paths, io.BytesIO(archive), self.ledger)


@pytest.fixture
def way(tmp_path: Path) -> Way:
    """From here to there."""
    return Way(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes made by these tests count as settled at once; otherwise each would have to wait for a second."""
    monkeypatch.setattr(files, "_SETTLED_NS", 0)


def away(path: str) -> None:
    """The target has no such file."""
    os.unlink(path)


NAMES = [b"plain", b"a b\n) (deleted)", b"\xff\xfe", "grüße".encode(), b"x" * 255, b"-rf", b"..."]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_arrives_with_everything_that_it_has(way: Way, name: bytes) -> None:
    path = way.write(b"content", name)
    os.chmod(path, 0o4751)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    if os.getuid() == 0:
        os.chown(path, 3_000_000, 77)
        os.chmod(path, 0o4751)
    before = os.stat(path)
    moved, archive = way.send(path)
    assert moved == Moved(1, 7)
    away(path)
    assert way.receive(archive, path) == Moved(1, 7)
    after = os.stat(path)
    assert Path(path).read_bytes() == b"content"
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field), field
    assert os.listdir(way.here) == [os.path.basename(path)]


def test_what_did_not_change_is_not_sent_again(way: Way, settled: None) -> None:
    first, second = way.write(b"one", "1"), way.write(b"two", "2")
    assert way.send(first, second)[0] == Moved(2, 6)
    assert way.send(first, second)[0] == Moved(0, 0)
    with open(second, "ab") as file:
        file.write(b"!")
    moved, archive = way.send(first, second)
    assert moved == Moved(1, 4)
    assert way.send(first, second)[0] == Moved(1, 4)  # what changed once is not trusted again
    away(second)
    assert way.receive(archive, first, second) == Moved(1, 4)
    assert Path(second).read_bytes() == b"two!"


def test_a_change_of_mode_alone_is_a_change(way: Way, settled: None) -> None:
    path = way.write(b"x")
    way.send(path)
    os.chmod(path, 0o600)
    assert way.send(path)[0] == Moved(1, 1)


def test_a_change_that_leaves_size_and_mtime_alone_is_seen(way: Way, settled: None) -> None:
    path = way.write(b"one")
    stamp = os.stat(path).st_mtime_ns
    way.send(path)
    with open(path, "r+b") as file:
        file.write(b"two")
    os.utime(path, ns=(stamp, stamp))
    assert way.send(path)[0] == Moved(1, 3)


def test_a_file_that_changed_just_now_is_sent_again(way: Way) -> None:
    path = way.write(b"x")
    way.send(path)
    assert way.already == {}
    assert way.send(path)[0] == Moved(1, 1)


def test_a_file_that_is_mapped_to_write_is_sent_again(way: Way, settled: None, tmp_path: Path) -> None:
    path = way.write(bytes(4096))
    source = f"import mmap\nheld = open({path!r}, 'r+b'); area = mmap.mmap(held.fileno(), 4096)\nready()"
    (tmp_path / "child").mkdir()
    with child(source, tmp_path / "child"):
        way.send(path)
        assert way.send(path)[0] == Moved(1, 4096)


def test_a_log_that_grows_while_it_is_read_arrives_without_a_gap(way: Way) -> None:
    path = way.write(b"")
    writing = threading.Event()
    stop = threading.Event()

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
        archives = [way.send(path)[1] for _ in range(5)]
    finally:
        stop.set()
        writer.join()
    archives.append(way.send(path)[1])
    complete = Path(path).read_bytes()
    away(path)
    for archive in archives:
        way.receive(archive, path)
        there = Path(path).read_bytes()
        assert complete.startswith(there)
    assert there == complete


def test_a_file_that_shrinks_while_it_is_read_is_sent_once_more(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    path = way.write(b"x" * 100_000)
    real = os.read
    cut = False

    def read(descriptor: int, size: int) -> bytes:
        nonlocal cut
        data = real(descriptor, min(size, 1000))
        if not cut and len(data) == 1000:
            cut = True
            os.truncate(path, 2000)
        return data

    monkeypatch.setattr(os, "read", read)
    moved, archive = way.send(path)
    monkeypatch.undo()
    assert moved == Moved(1, 2000)
    away(path)
    assert way.receive(archive, path).files == 2
    assert Path(path).read_bytes() == b"x" * 2000


def test_a_file_that_never_stops_shrinking_is_an_error(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    path = way.write(b"x" * 100_000)
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        os.truncate(path, max(0, os.stat(path).st_size // 2))
        return real(descriptor, min(size, 1000))

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(files.FilesError, match="shrank"):
        way.send(path)


def test_a_file_that_went_away_is_taken_back_on_the_target(way: Way) -> None:
    path, gone = way.write(b"x", "stays"), way.write(b"y", "gone")
    first = way.send(path, gone)[1]
    away(gone)
    moved, second = way.send(path, gone)
    assert moved.files == 1
    away(path)
    way.receive(first, path, gone)
    assert Path(gone).exists()
    way.receive(second, path, gone)
    assert os.listdir(way.here) == ["stays"]


def test_what_the_source_cannot_send_is_said(way: Way) -> None:
    os.mkfifo(way.path("fifo"))
    for name in ("fifo", ""):
        with pytest.raises(files.FilesError, match="no regular file"):
            way.send(way.path(name).rstrip("/"))


def test_a_link_is_no_file(way: Way) -> None:
    secret = way.write(b"secret", "secret")
    os.symlink(secret, way.path("link"))
    moved, archive = way.send(way.path("link"))
    assert moved == Moved(0, 0)
    assert b"secret\n" not in archive


def test_a_broken_stream_is_no_broken_file(way: Way) -> None:
    class Broken(io.RawIOBase):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        files.send([way.write(b"x" * 1_000_000)], Broken(), {})  # type: ignore[arg-type]


# --- what a target refuses -------------------------------------------------------------------------------------------


def archive_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, count: int | None = None) -> bytes:
    """An archive that `send` would not have written."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.pax_headers = {"MIGRATE.mtime_ns": "7"}
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
        last = tarfile.TarInfo("end-of-files")
        last.pax_headers = {"MIGRATE.files": str(len(members) if count is None else count)}
        archive.addfile(last)
    return out.getvalue()


def test_a_file_that_was_not_announced_is_refused(way: Way) -> None:
    with pytest.raises(files.FilesError, match="was not to be sent"):
        way.receive(archive_of((way.path("other"), b"x")), way.path("log"))
    assert os.listdir(way.here) == []


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a//b", "/", "/a/", "/./a", ""])
def test_paths_that_are_not_plain_are_refused(way: Way, path: str) -> None:
    with pytest.raises(files.FilesError, match="plain"):
        way.receive(archive_of(), path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file_is_refused(way: Way, kind: bytes) -> None:
    with pytest.raises(files.FilesError, match="no regular file"):
        way.receive(archive_of((way.path(), b""), kind=kind), way.path())
    assert os.listdir(way.here) == []


def test_a_different_file_is_never_written_over(way: Way) -> None:
    path = way.write(b"new")
    archive = way.send(path)[1]
    way.write(b"old and different")
    with pytest.raises(files.FilesError, match="differs"):
        way.receive(archive, path)
    assert Path(path).read_bytes() == b"old and different"
    assert way.ledger.undo() == ()
    assert os.listdir(way.here) == ["log"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_there_and_no_file_is_never_written_over(way: Way, make: Callable[[str], None]) -> None:
    path = way.write(b"new")
    archive = way.send(path)[1]
    away(path)
    make(path)
    with pytest.raises(files.FilesError, match="no regular file"):
        way.receive(archive, path)
    assert os.listdir(way.here) == ["log"]


def test_a_missing_directory_is_named(way: Way) -> None:
    path = way.path("no/log")
    with pytest.raises(files.FilesError, match="no/log"):
        way.receive(archive_of((path, b"x")), path)


@pytest.mark.parametrize("cut", [0, 300, 512, 1500, 5000, 10_240])
def test_an_archive_that_ends_early_is_a_broken_stream(way: Way, cut: int) -> None:
    path = way.write(b"x" * 20_000)
    archive = way.send(path)[1]
    away(path)
    with pytest.raises(ConnectionError):
        way.receive(archive[:cut], path)
    assert way.ledger.undo() == ()
    assert os.listdir(way.here) == []


def test_an_archive_cut_between_two_files_is_a_broken_stream(way: Way) -> None:
    whole = archive_of((way.path("1"), b""), (way.path("2"), b""))
    end = whole.index(os.fsencode(way.path("2")))
    with pytest.raises((ConnectionError, files.FilesError)):
        way.receive(whole[: end // 512 * 512], way.path("1"), way.path("2"))


def test_an_archive_that_miscounts_is_refused(way: Way) -> None:
    with pytest.raises(files.FilesError, match="announces 2 files and has 1"):
        way.receive(archive_of((way.path(), b"x"), count=2), way.path())


def test_nothing_comes_after_the_end(way: Way) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        last = tarfile.TarInfo("end-of-files")
        last.pax_headers = {"MIGRATE.files": "0"}
        archive.addfile(last)
        archive.addfile(tarfile.TarInfo(way.path()))
    with pytest.raises(files.FilesError, match="after its end"):
        way.receive(out.getvalue(), way.path())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_read_and_can_be_undone(way: Way, data: st.DataObject) -> None:
    path = way.path()
    archive = bytearray(archive_of((path, b"hello")))
    for _ in range(data.draw(st.integers(1, 5))):
        archive[data.draw(st.integers(0, 4096))] = data.draw(st.integers(0, 255))
    try:
        way.receive(bytes(archive[: data.draw(st.integers(0, len(archive)))]), path)
    except (files.FilesError, ConnectionError):
        pass
    assert way.ledger.undo() == ()
    assert os.listdir(way.here) == []


def test_a_full_disk_is_told_by_its_own_error_and_leaves_nothing(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    path = way.write(b"x" * 100)
    archive = way.send(path)[1]
    away(path)

    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no room") as raised:
        way.receive(archive, path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, path)
    assert os.listdir(way.here) == []


def test_it_ends_with_the_archive_and_not_with_the_stream(way: Way) -> None:
    """A stream that stays open must not keep the receiver waiting for bytes that nobody sends."""
    path = way.write(b"x" * 30_000)
    archive = way.send(path)[1]
    away(path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        sender = threading.Thread(target=theirs.sendall, args=(archive,))
        sender.start()
        with ours.makefile("rb") as source:
            assert files.receive([path], source, way.ledger) == Moved(1, 30_000)
        sender.join()


def test_our_own_file_may_be_replaced_and_all_of_it_undone(way: Way, settled: None) -> None:
    new, same = way.write(b"1", "new"), way.write(b"same", "same")
    first = way.send(new, same)[1]
    before = os.stat(same).st_ino
    way.write(b"12", "new")
    second = way.send(new, same)[1]
    away(new)
    way.receive(first, new, same)
    way.receive(second, new, same)
    assert Path(new).read_bytes() == b"12"
    assert way.ledger.undo() == ()
    assert os.listdir(way.here) == ["same"]
    assert os.stat(same).st_ino == before
    assert not [name for name in os.listdir(way.here) if name.startswith(PREFIX)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    name=st.binary(min_size=1, max_size=60).filter(lambda name: b"/" not in name and b"\0" not in name)
    .filter(lambda name: name not in (b".", b"..")),
    content=st.binary(max_size=20_000), mtime=st.integers(-(10**18), 4 * 10**18), mode=st.integers(0, 0o7777),
)  # fmt: skip
def test_any_file_arrives_as_it_was(way: Way, name: bytes, content: bytes, mtime: int, mode: int) -> None:
    path = way.write(content, name)
    os.chmod(path, mode | 0o400)
    os.utime(path, ns=(mtime, mtime))
    before = os.stat(path)
    archive = way.send(path)[1]
    away(path)
    assert way.receive(archive, path) == Moved(1, len(content))
    after = os.stat(path)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    os.chmod(path, 0o600)
    assert Path(path).read_bytes() == content
    assert way.ledger.undo() == ()
    assert os.listdir(way.here) == []
