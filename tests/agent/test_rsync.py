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
        for each in (self.here, self.there, self.farm):
            each.mkdir()
        self.programs = fake_rsync.install(str(self.here)), fake_rsync.install(str(self.there))
        self.client, self.server = socket.socketpair()
        self.failed: list[Exception] = []

    def link(self, content: bytes | None, name: str) -> str:
        """A file to be sent to this name; the name. None: it went away."""
        path = self.directory / f"content of {len(list(self.farm.rglob('*')))}"
        if content is not None:
            path.write_bytes(content)
        there = f"{self.there}/{name}"
        link = Path(f"{self.farm}{there}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        return there

    def behave(self, host: Path, behaviour: str) -> None:
        (host / "behaviour.json").write_text(json.dumps({"rsync": behaviour}))

    def send(self, *names: str) -> None:
        """Both halves, to their end."""

        def serve() -> None:
            try:
                with rsync.serve(self.programs[1], self.server, self.directory / "log"):
                    pass
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
    assert "not installed" in str(two.failed[0])


@pytest.mark.parametrize(
    "line",
    [b"x\n", b"7\n", b"[]\n", b'["rm", "-rf"]\n', b'["rsync", "/"]\n', b'["rsync", "--server", "--sender", "."]\n'],
)
def test_only_a_server_that_receives_is_started(two: Two, line: bytes) -> None:
    two.client.sendall(line)
    with pytest.raises(FilesError, match="stream of rsync"):
        rsync.serve(two.programs[1], two.server, two.directory / "log")


def test_nothing_behind_the_first_line_is_taken(two: Two) -> None:
    two.client.sendall(b'["rsync", "--server", "."]\nand more')
    assert rsync._asked(two.server) == ["rsync", "--server", "."]
    assert two.server.recv(100) == b"and more"


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
    words = [*shlex.split(rsync.shell(two.client.fileno())), "host", "/usr/bin/rsync", "--server", "."]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(two.client.fileno(),)
    ) as remote:
        assert remote.stdin is not None
        assert remote.stdout is not None
        assert rsync._asked(two.server) == ["rsync", "--server", "."]
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
