"""OpenSSH's client as the way of memory: its arguments, and what its end means. A script stands in for ssh."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from migrator import openssh
from migrator.channel import Target
from migrator.openssh import OpenSshChannel

ECHO = """
import sys
while data := sys.stdin.buffer.read1(99):
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
"""


def words(target: Target, config: list[Path] | None = None) -> list[str]:
    return openssh.arguments(target, "exec relay", cipher="aes128-gcm@openssh.com", config=config, alive=(5, 3))


def test_it_asks_nothing_trusts_nobody_new_and_forwards_nothing() -> None:
    given = words(Target("db2", "root", 2222))
    options = dict(given[at + 1].split("=", 1) for at, word in enumerate(given) if word == "-o")
    for name in ("BatchMode", "StrictHostKeyChecking", "ClearAllForwardings"):
        assert options[name] == "yes"
    for name in ("ForwardAgent", "ForwardX11", "Compression", "ControlMaster", "PermitLocalCommand"):
        assert options[name] == "no"
    assert options["ControlPath"] == "none"
    assert options["Ciphers"] == "aes128-gcm@openssh.com"
    assert given[-7:] == ["-p", "2222", "-l", "root", "--", "db2", "exec relay"]


def test_what_the_operator_did_not_say_is_left_to_the_configuration() -> None:
    given = words(Target("db2"))
    assert given[-3:] == ["--", "db2", "exec relay"]
    assert not {"-p", "-l", "-F"} & set(given)
    assert words(Target("db2"), [Path("/a")])[2:4] == ["-F", "/a"]
    assert words(Target("db2"), [])[2:4] == ["-F", "/dev/null"]


async def script(source: str) -> OpenSshChannel:
    return await OpenSshChannel.to("db2", [sys.executable, "-c", source])


async def test_bytes_go_both_ways_and_an_end_is_an_end() -> None:
    channel = await script(ECHO)
    await channel.write(b"there and back")
    assert await channel.read() == b"there and back"
    await channel.write_eof()
    assert await channel.read() == b""
    assert await channel.wait() == 0
    await channel.close()


@pytest.mark.parametrize("source", ["import sys; sys.exit('cut')", "import os; os.kill(os.getpid(), 9)"])
async def test_a_lost_connection_is_no_end(source: str) -> None:
    source = source.replace("sys.exit('cut')", "sys.stderr.write('Connection reset'); sys.exit(255)")
    channel = await script(source)
    with pytest.raises(ConnectionResetError, match=r"ssh lost the connection: (Connection reset|without a word)"):
        await channel.read()
    await channel.close()


async def test_a_client_that_does_not_leave_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssh, "LEAVE_SECONDS", 0.05)
    channel = await script("import time; print(end='up', flush=True); time.sleep(60)")
    assert await channel.read() == b"up"
    await channel.close()
    assert await channel.wait() == -15


async def test_no_ssh_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await OpenSshChannel.to("db2", [str(tmp_path / "ssh")])
