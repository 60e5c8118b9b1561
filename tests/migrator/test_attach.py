"""Our own terminal while it is a tree's: keys and sizes go out, what the tree writes comes in, and it is put back."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, os, signal, socket, sys
from migrator import attach
from migrator.local import _Pipe

async def main(path):
    far = socket.socket(socket.AF_UNIX)
    far.connect(path)
    print("ready", flush=True)
    if sys.argv[2] == "crash":
        attach._write = None
    print("", await attach.session(await _Pipe.of(far)), flush=True)

asyncio.run(main(sys.argv[1]))
"""


class Near:
    """A terminal with a session in it, and the far end of its channel."""

    def __init__(self, path: Path, how: str = "") -> None:
        self._come_in: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self._path = path
        self._how = how

    async def __aenter__(self) -> Self:
        """Until the session has connected."""
        self._come_in = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_unix_server(self._come, str(self._path))
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(self._path), self._how])
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 81, 0, 0))
        self.before = termios.tcgetattr(self.terminal)
        self.reader, self.writer = await asyncio.wait_for(self._come_in, 60)
        self.text = b""
        return self

    async def __aexit__(self, *_: object) -> None:
        """It has to have ended, and to have put its terminal back."""
        await self.until(lambda: os.waitpid(self.pid, os.WNOHANG)[0] == self.pid)
        after = termios.tcgetattr(self.terminal)
        os.close(self.terminal)
        self.writer.close()
        self._server.close()
        assert after == self.before

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._come_in.set_result((reader, writer))

    async def frame(self) -> tuple[bytes, int, int, bytes]:
        """The next one that is sent."""
        kind, first, second = struct.unpack("!cHH", await asyncio.wait_for(self.reader.readexactly(5), 60))
        return kind, first, second, await self.reader.readexactly(first) if kind == b"T" else b""

    async def until(self, true: Callable[[], bool]) -> None:
        """Poll, and read what the terminal shows."""
        os.set_blocking(self.terminal, False)
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, self.text
            try:
                self.text += os.read(self.terminal, 4096)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except OSError:  # the program has left the terminal
                await asyncio.sleep(0.01)

    @property
    def raw(self) -> bool:
        """Whether keys go through as they are."""
        return not termios.tcgetattr(self.terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


async def test_keys_sizes_and_output(tmp_path: Path) -> None:
    async with Near(tmp_path / "s") as near:
        assert await near.frame() == (b"W", 25, 81, b"")
        await near.until(lambda: near.raw)
        os.write(near.terminal, b"\x03x")
        assert await near.frame() == (b"T", 2, 0, b"\x03x")
        fcntl.ioctl(near.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
        assert await near.frame() == (b"W", 30, 90, b"")
        near.writer.write(b"drawn")
        await near.until(lambda: b"drawn" in near.text)
        near.writer.close()
        await near.until(lambda: b"its terminal has ended" in near.text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_leaves_it(tmp_path: Path, number: int) -> None:
    async with Near(tmp_path / "s") as near:
        await near.until(lambda: near.raw)
        os.kill(near.pid, number)
        await near.until(lambda: b"the session was left" in near.text)
        assert await near.frame() == (b"W", 25, 81, b"")
        assert await asyncio.wait_for(near.reader.read(), 60) == b""


async def test_a_bug_leaves_no_raw_terminal(tmp_path: Path) -> None:
    async with Near(tmp_path / "s", "crash") as near:
        await near.until(lambda: near.raw)
        near.writer.write(b"drawn")
        await near.until(lambda: b"TypeError" in near.text)
