"""The source's link: an agent as a child that nobody kills, bulk streams as sockets, sudo where we are not root."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import protocol, wire
from migrator import bundle, errors, local
from migrator.channel import Channel
from migrator.local import LocalLink, ProcessChannel


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[LocalLink]:
    link = LocalLink(agent_arguments=("--state", str(tmp_path / "state"), "--run", str(tmp_path / "run")), sudo=False)
    yield link
    await link.close()


@pytest.fixture
def fake_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sudo that only drops the environment, as sudo does, and notes what it was asked for."""
    path = tmp_path / "bin" / "sudo"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\ntest "$1" = -n || exit 1\nshift 2\necho "$@" >>{tmp_path}/asked\nexec env -i "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


async def greeted(channel: Channel) -> None:
    """Do what Peer does first."""
    ours = protocol.Banner(protocol.PRODUCT, protocol.PROTOCOL, protocol.VERSION, bundle.build_id())
    await channel.write(ours.line().encode() + b"\n")
    line = await channel.readline(wire.BANNER_LIMIT)
    banner = protocol.Banner.parse(line.decode())
    assert banner is not None, line
    assert (banner.product, banner.build) == (protocol.AGENT_PRODUCT, bundle.build_id())


async def answer(channel: Channel) -> wire.Reply:
    await channel.write(wire.encode_request(1, "journal", protocol.ReadJournal("none")))
    return wire.decode_reply(await channel.readline(wire.LINE_LIMIT))


async def serve_one(path: Path) -> asyncio.Future[bytes]:
    """Listen as an agent does; the first bytes of the first connection."""
    first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.set_result(await reader.readline())
        writer.write(b"answer to " + await reader.read(100))
        await writer.drain()
        writer.close()

        server.close()

    server = await asyncio.start_unix_server(connected, path)
    return first


class TestAgent:
    async def test_it_answers_and_leaves_at_the_end_of_its_input(self, link: LocalLink) -> None:
        channel = await link.start_agent("source")
        await greeted(channel)
        reply = await answer(channel)
        assert reply.result is not None
        assert reply.result["role"] == ""
        await channel.close()
        assert await channel.wait() == 0
        assert link.name == socket.gethostname()

    async def test_its_arguments_reach_it(self, tmp_path: Path) -> None:
        wrong = LocalLink(agent_arguments=("--no-such-option",), sudo=False)
        channel = await wrong.start_agent("source")
        assert await channel.readline(100) == b""
        assert await channel.wait() == 2
        assert "--no-such-option" in channel.stderr_tail()
        await wrong.close()

    async def test_through_sudo_without_our_environment(
        self, fake_sudo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir("/")
        link = LocalLink(agent_arguments=("--state", str(tmp_path / "s"), "--run", str(tmp_path / "r")), sudo=True)
        channel = await link.start_agent("source")
        await greeted(channel)
        assert (await answer(channel)).result is not None
        await link.close()
        assert f" serve --build {bundle.build_id()} " in fake_sudo.read_text()

    async def test_sudo_that_refuses_is_not_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sudo = tmp_path / "sudo"
        sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
        sudo.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(errors.NotRoot, match="sudo: a password is required") as caught:
            await LocalLink(sudo=True).start_agent("source")
        assert "as root" in caught.value.hint

    async def test_no_sudo_is_not_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(errors.NotRoot, match="sudo: not found"):
            await LocalLink(sudo=True).start_agent("source")

    def test_root_needs_no_sudo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for uid, sudo in ((0, False), (1000, True)):
            monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
            assert LocalLink()._sudo is sudo


class TestChild:
    async def test_it_is_out_of_reach_of_a_terminals_signals(self) -> None:
        show = [sys.executable, "-c", "import os, sys; print(os.getsid(0), os.getpgid(0), os.getpid(), flush=True)"]
        for own_session in (True, False):
            channel = await ProcessChannel.start("here", show, own_session=own_session, patience=5)
            sid, pgid, pid = (int(word) for word in (await channel.readline(100)).split())
            assert pgid == pid, "a group of its own: Ctrl-C is sent to the terminal's foreground group"
            assert sid == (pid if own_session else os.getsid(0))
            await channel.close()

    async def test_one_that_stays_is_left_alone(self) -> None:
        stubborn = "import signal, time; print('up', flush=True); time.sleep(60)"
        channel = await ProcessChannel.start("here", [sys.executable, "-c", stubborn], patience=0.1)
        await channel.readline(100)
        await channel.close()
        os.kill(channel.pid, 0)
        os.kill(channel.pid, signal.SIGKILL)
        assert await channel.wait() == -signal.SIGKILL

    def test_the_end_of_our_loop_does_not_kill_it(self) -> None:
        """A migrator that ends badly must not take an agent with it that holds a frozen tree."""
        code = (
            "import asyncio, sys\nfrom migrator.local import ProcessChannel\n"
            "async def main():\n"
            "    words = [sys.executable, '-c', 'import sys, time; print(1, flush=True); time.sleep(60)']\n"
            "    channel = await ProcessChannel.start('here', words)\n"
            "    await channel.readline(10)\n"
            "    print(channel.pid)\n"
            "asyncio.run(main())\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=Path(local.__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(done.stdout), signal.SIGKILL)  # raises when it is gone

    async def test_one_that_floods_is_let_go(self) -> None:
        channel = await ProcessChannel.start("here", ["sh", "-c", "while echo flood; do :; done"], patience=5)
        await channel.readline(100)
        await channel.close()
        assert await channel.wait() == -signal.SIGPIPE

    async def test_writing_to_one_that_is_gone_is_an_os_error(self) -> None:
        channel = await ProcessChannel.start("here", ["true"], patience=5)
        await channel.wait()
        with pytest.raises(OSError, match=r"[Bb]roken pipe|has closed|lost"):
            for _ in range(100):
                await channel.write(b"x" * 65536)
                await asyncio.sleep(0.001)
        await channel.close()

    async def test_its_last_words_are_kept(self) -> None:
        channel = await ProcessChannel.start("here", ["sh", "-c", "echo one >&2; echo two >&2; exit 3"], patience=5)
        assert await channel.read() == b""
        assert await channel.wait() == 3
        await channel.close()
        assert channel.stderr_tail() == "one\ntwo\n"


class TestStreams:
    async def test_root_connects_by_itself(self, link: LocalLink, tmp_path: Path) -> None:
        first = await serve_one(tmp_path / "s")
        channel = await link.open_stream(str(tmp_path / "s"), "pages")
        assert await first == b"STREAM pages\n"
        await channel.write(b"question")
        assert await channel.read() == b"answer to question"
        assert await channel.read() == b""

    async def test_others_through_a_relay_that_sudo_runs(self, fake_sudo: Path, tmp_path: Path) -> None:
        link = LocalLink(sudo=True)
        first = await serve_one(tmp_path / "s")
        channel = await link.open_stream(str(tmp_path / "s"), "pages")
        assert await first == b"STREAM pages\n"
        await channel.write(b"question")
        assert await channel.read() == b"answer to question"
        assert await channel.read() == b""
        assert await channel.wait() == 0
        await link.close()
        assert f" relay {tmp_path}/s pages" in fake_sudo.read_text()

    @pytest.mark.parametrize("sudo", [False, True])
    async def test_no_agent_there_is_a_lost_link(self, sudo: bool, fake_sudo: Path, tmp_path: Path) -> None:
        assert shutil.which("sudo") != "/usr/bin/sudo"
        link = LocalLink(sudo=sudo)
        with pytest.raises(errors.LinkLost, match=r"stream pages could not be opened: .*No such file"):
            await link.open_stream(str(tmp_path / "none"), "pages")
        await link.close()
