"""migrator/rsync.py: its command line, and what becomes of its exit status, with a program in its place."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from migrator import errors, rsync
from migrator.channel import Target
from migrator.rsync import Rsync


@pytest.mark.parametrize(
    ("how", "bandwidth", "expected"),
    [
        (Rsync(Target("db2")), 0, ["--rsh", "ssh -o BatchMode=yes", "/a/1/", "db2:/b/1/"]),
        (
            Rsync(Target("db2", "admin", 2222), sudo=True),
            0,
            ["--rsh", "ssh -o BatchMode=yes -p 2222", "--rsync-path", "sudo -n rsync", "/a/1/", "admin@db2:/b/1/"],
        ),
        (
            Rsync(Target("::1"), "ssh -F /etc/other", compress=True),
            20 << 20,
            ["--rsh", "ssh -F /etc/other", "--compress", "--bwlimit=20480", "/a/1/", "[::1]:/b/1/"],
        ),
        (Rsync(Target("db2")), 100, ["--rsh", "ssh -o BatchMode=yes", "--bwlimit=1", "/a/1/", "db2:/b/1/"]),
    ],
)
def test_the_command(how: Rsync, bandwidth: float, expected: list[str]) -> None:
    always = ["rsync", "--archive", "--secluded-args", "--partial", "--stats", "--no-human-readable"]
    assert how.arguments("/a/1", "/b/1", bandwidth=bandwidth) == always + expected


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands where rsync does: it notes each call in `calls` and does what `act` says, a line of shell a call."""
    path = tmp_path / "rsync"
    path.write_text(f'#!/bin/sh\ncd {tmp_path}; echo $$ >>calls\nn=$(wc -l <calls)\neval "$(sed -n ${{n}}p act)"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(rsync, "PAUSE", 0.01)
    return tmp_path


def calls(program: Path) -> list[str]:
    return (program / "calls").read_text().split()


async def test_what_went_over_the_wire(program: Path) -> None:
    (program / "act").write_text("echo 'Total bytes sent: 1,234,567'\n")
    said: list[str] = []
    assert await Rsync(Target("db2")).send("/a/1", "/b 'c'/1", tell=said.append) == 1234567
    assert said == [
        "$ rsync --archive --secluded-args --partial --stats --no-human-readable --rsh 'ssh -o BatchMode=yes' /a/1/ "
        "'db2:/b '\"'\"'c'\"'\"'/1/'"
    ]


async def test_cut_off_and_taken_up_again(program: Path) -> None:
    (program / "act").write_text("exit 12\nexit 255\necho 'Total bytes sent: 10'\n")
    assert await Rsync(Target("db2")).send("/a/1", "/b/1") == 10
    assert len(calls(program)) == 3


async def test_given_up_in_the_end(program: Path) -> None:
    (program / "act").write_text("echo 'ssh: connect to host db2 port 22: No route to host' >&2; exit 255\n" * 9)
    with pytest.raises(errors.CopyError, match="rsync to db2 failed: ssh: connect to host db2") as caught:
        await Rsync(Target("db2")).send("/a/1", "/b/1")
    assert len(calls(program)) == rsync.ATTEMPTS
    assert "--dry-run" in caught.value.hint


async def test_what_will_not_get_better_is_not_tried_again(program: Path) -> None:
    (program / "act").write_text("echo 'rsync: write failed: No space left on device (28)' >&2; exit 11\n")
    with pytest.raises(errors.NoSpace, match="No space left"):
        await Rsync(Target("db2")).send("/a/1", "/b/1")
    assert len(calls(program)) == 1


async def test_no_rsync_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.CopyError, match="rsync is not installed here"):
        await Rsync(Target("db2")).send("/a/1", "/b/1")


async def test_cancelled_it_ends(program: Path) -> None:
    (program / "act").write_text("exec sleep 600\n")
    sending = asyncio.ensure_future(Rsync(Target("db2")).send("/a/1", "/b/1"))
    end = time.monotonic() + 20
    while not (program / "calls").exists() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not Path(f"/proc/{calls(program)[0]}").exists()
