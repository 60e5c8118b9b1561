"""agent/rsync.py: both halves of an rsync over one stream. The program is a stand-in; live tests have the real one."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import rsync
from agent.deltas import FilesError
from tests import fake_rsync


class Two:
    """Two hosts with an rsync each, and a stream between them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.here, self.there = directory / "here", directory / "there"
        self.farm = directory / "farm"
        self.room = directory / "room"
        for each in (self.here, self.there, self.farm, self.room):
            each.mkdir()
        self.paths: list[str] = []
        self.programs = fake_rsync.install(str(self.here)), fake_rsync.install(str(self.there))
        self.client, self.server = socket.socketpair()
        self.failed: list[Exception] = []

    def link(self, content: bytes | None, name: str) -> str:
        """A file to be sent, which is to become this one there; its number. None: it went away."""
        number = str(len(self.paths))
        path = self.directory / f"content of {number}"
        if content is not None:
            path.write_bytes(content)
        (self.farm / number).symlink_to(path)
        self.paths.append(f"{self.there}/{name}")
        Path(self.paths[-1]).touch(0o600)
        return number

    def behave(self, host: Path, behaviour: str) -> None:
        (host / "behaviour.json").write_text(json.dumps({"rsync": behaviour}))

    def send(self, *names: str) -> None:
        """Both halves, to their end."""

        def serve() -> None:
            try:
                log = self.directory / "log"
                with rsync.serve(self.programs[1], self.server, self.room, self.paths, log) as server:
                    pass
                rsync.started(server, log)
            except (FilesError, ConnectionError) as error:
                self.failed.append(error)
            self.server.close()

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            rsync.send(self.programs[0], self.farm, names, self.client)
        finally:
            self.client.close()
            serving.join()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    hosts = Two(tmp_path)
    yield hosts
    hosts.client.close()
    hosts.server.close()


def test_content_arrives_under_other_names(two: Two) -> None:
    contents = {"one": b"1" * 3_000_000, "a b\n'\"": b"2", "empty": b"", "\udcff": b"3"}
    names = [two.link(content, name) for name, content in contents.items()]
    two.send(*names)
    for name, content in contents.items():
        assert (two.there / name).read_bytes() == content
    assert two.failed == []
    assert list(two.room.iterdir()) == []


def test_what_went_away_is_no_error(two: Two) -> None:
    names = [two.link(b"1", "stays"), two.link(None, "gone")]
    two.behave(two.here, "partial")  # what rsync makes of it
    two.send(*names)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("fail", "error in rsync protocol"), ("no-space", "No space left"), ("partial", "read errors")],
)
def test_what_rsync_says_is_told(two: Two, behaviour: str, said: str) -> None:
    two.behave(two.here, behaviour)
    with pytest.raises(FilesError, match=f"rsync failed: .*{said}"):
        two.send(two.link(b"1", "one"))


def test_one_that_is_not_there_is_told(two: Two) -> None:
    (two.here / "rsync").unlink()
    with pytest.raises(FilesError, match="rsync is not installed"):
        two.send(two.link(b"1", "one"))
    assert [type(error) for error in two.failed] == [ConnectionError], "nobody asked for the other half"


def test_one_that_is_not_there_on_the_target_is_told(two: Two) -> None:
    (two.there / "rsync").unlink()
    with pytest.raises(FilesError, match="rsync failed"):
        two.send(two.link(b"1", "one"))
    assert [str(error) for error in two.failed] == ["rsync is not installed"]


ASKED = ["rsync", "--server", "-WRSe.LsfxCIvu", "--inplace", "--no-implied-dirs", ".", "/"]


@pytest.mark.parametrize(
    "words",
    [
        7, [], ["rm", "-rf", "/", "/", "/"], ["rsync", "/"], ["rsync", "--server", ".", "/"],
        ["rsync", "--server", "--sender", *ASKED[2:]],
        [*ASKED[:2], "-sWRSe.LsfxCIvu", *ASKED[3:]],  # more options would come behind it
        [*ASKED[:2], "-WRSe.LsfxCIvu --daemon", *ASKED[3:]],
        [*ASKED[:2], "-WRSDe.LsfxCIvu", *ASKED[3:]],
        [*ASKED[:3], "--log-file=/etc/cron.d/x", ".", "/"], [*ASKED[:3], "--temp-dir=/etc", ".", "/"],
        [*ASKED[:3], "--backup-dir", "/etc", ".", "/"], [*ASKED[:3], "--write-devices", ".", "/"],
        [*ASKED[:3], "--delete", ".", "/"], [*ASKED[:3], "--partial-dir=/etc", ".", "/"],
        [*ASKED[:-2], "x", "/"], [*ASKED[:-2], "."],
    ],
)  # fmt: skip
def test_only_the_server_that_our_client_asks_for_is_started(two: Two, words: object) -> None:
    two.client.sendall(json.dumps(words).encode() + b"\n")
    with pytest.raises(FilesError, match="stream of rsync"):
        rsync.serve(two.programs[1], two.server, two.room, [], two.directory / "log")


def test_what_is_no_command_at_all(two: Two) -> None:
    two.client.sendall(b"x\n")
    with pytest.raises(FilesError, match="stream of rsync is broken"):
        rsync.serve(two.programs[1], two.server, two.room, [], two.directory / "log")


def test_nothing_behind_the_first_line_is_taken_and_where_it_goes_is_not_for_the_client_to_say(two: Two) -> None:
    two.client.sendall(json.dumps(ASKED).encode() + b"\nand more")
    assert rsync._asked(two.server) == [*ASKED[:-1], "."]
    assert two.server.recv(100) == b"and more"


def test_the_server_writes_to_its_files_and_to_nothing_else(two: Two) -> None:
    """Whatever a client makes it do: here it is a shell."""
    ours = [two.link(b"", name) for name in ("one", "two")]
    outside = two.directory / "outside"
    outside.write_text("as it was")
    acts = {
        "its own files": "echo x >>0",
        "another file": f"echo x >{outside}",
        "a file where ours lie": f"echo x >{two.there}/three",
        "a file of its own": "echo x >three",
        "one of them gone": "rm 0",
        "one of them another": "ln -sf /etc/passwd 1",
        "one renamed": f"mv {two.there}/one {two.there}/other",
        "another mode": f"chmod 0777 {outside}",
        "the state of the host": "echo 1 >/proc/sys/kernel/panic",
        "a device": "echo x >/dev/null",
        "writable again": "mount -o remount,rw /",
        "mounted over": f"mount -t tmpfs none {two.there}",
    }
    script = "#!/bin/sh\nexec 2>&1\necho well >0\n"
    script += "".join(f"if ({act}); then echo '{name}' >>1; fi\n" for name, act in acts.items())
    (two.there / "rsync").write_text(script)
    two.client.sendall(json.dumps(ASKED).encode() + b"\n")
    log = two.directory / "log"
    with rsync.serve(two.programs[1], two.server, two.room, two.paths, log) as server:
        pass
    rsync.started(server, log)
    assert (ours, [Path(path).read_text() for path in two.paths]) == (["0", "1"], ["well\nx\n", "its own files\n"])
    assert outside.read_text() == "as it was"
    assert sorted(path.name for path in two.there.iterdir()) == ["one", "rsync", "two"]
    assert list(two.room.iterdir()) == []


@pytest.mark.parametrize("trap", ["link", "fifo", "gone", "directory"])
def test_what_is_no_file_of_ours_any_more_is_not_written_to(two: Two, trap: str) -> None:
    two.link(b"", "one")
    path = Path(two.paths[0])
    path.unlink()
    if trap == "link":
        path.symlink_to("/etc/passwd")
    elif trap == "fifo":
        os.mkfifo(path)
    elif trap == "directory":
        two.there.rename(two.directory / "moved")
        two.there.symlink_to(two.directory / "moved")
        (two.directory / "moved" / "one").touch()
    two.client.sendall(json.dumps(ASKED).encode() + b"\n")
    log = two.directory / "log"
    with rsync.serve(two.programs[1], two.server, two.room, two.paths, log) as server:
        pass
    with pytest.raises(FilesError, match="there"):
        rsync.started(server, log)


def test_a_line_that_never_ends_is_given_up(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_LINE", 100)
    two.client.sendall(b"x" * 200)
    with pytest.raises(ConnectionError):
        rsync._asked(two.server)


def test_the_remote_shell_is_this_agent() -> None:
    words = shlex.split(rsync.shell(7))
    assert words[0] == sys.executable
    assert words[-2:] == ["shell", "7"]


def test_the_remote_shell_carries_both_directions_and_ends_with_the_stream(two: Two) -> None:
    words = [*shlex.split(rsync.shell(two.client.fileno())), "host", "/usr/bin/rsync", *ASKED[1:]]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(two.client.fileno(),)
    ) as remote:
        assert remote.stdin is not None
        assert remote.stdout is not None
        assert rsync._asked(two.server) == [*ASKED[:-1], "."]
        two.client.close()
        given = remote.stdin
        writing = threading.Thread(target=lambda: (given.write(b"there" * 100_000), given.close()))
        writing.start()
        came = b""
        while data := two.server.recv(1 << 20):
            came += data
        writing.join()
        assert came == b"there" * 100_000
        two.server.sendall(b"back")
        two.server.close()
        assert remote.stdout.read() == b"back"
        assert remote.wait() == 0


def test_the_log_keeps_what_the_server_said(two: Two) -> None:
    os.chmod(two.there / "rsync", 0o755)
    (two.there / "rsync").write_text("#!/bin/sh\necho a word >&2\n")
    with pytest.raises(FilesError):
        two.send(two.link(b"1", "one"))
    assert (two.directory / "log").read_text() == "a word\n"
