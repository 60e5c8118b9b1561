"""The source: this host, where the agent is a child process and bulk streams are unix sockets.

Owns child processes and unix connections as channels. Where we are not root, the agent (and a relay for each bulk
stream) runs through `sudo -n`; everything else stays the user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import socket
import subprocess
from collections.abc import Sequence
from typing import Self

from agent.protocol import STREAM_HEADER
from migrator import bundle
from migrator.channel import CHUNK, Channel, Tail
from migrator.errors import ConnectError, LinkLost

PATIENCE = 10.0
"""Seconds that an agent gets to leave by itself once its input has ended: it may have something to undo."""

log = logging.getLogger(__name__)


class _Pipe(Channel):
    """A connected socket, or any reader and writer of asyncio, as a channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader = reader
        self._writer = writer

    @classmethod
    async def of(cls, sock: socket.socket) -> _Pipe:
        """A stream socket that is connected."""
        return cls(*await asyncio.open_connection(sock=sock, limit=CHUNK))

    async def _receive(self, size: int) -> bytes:
        return await self._reader.read(size)

    async def write(self, data: bytes) -> None:
        """Send, waiting while the far end is not keeping up."""
        if self._writer.is_closing():
            raise BrokenPipeError("the far end has closed")
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        """End our direction."""
        if not self._writer.is_closing() and self._writer.can_write_eof():
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def wait(self) -> int | None:
        """None: a socket has no exit status."""
        return None

    async def close(self) -> None:
        """End both directions at once."""
        self._writer.transport.abort()


class _Errors(asyncio.Protocol):
    """A child's stderr on its way into the tail."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail

    def data_received(self, data: bytes) -> None:
        """More of it has come."""
        self._tail.feed(data)


class ProcessChannel(_Pipe):
    """Standard input and output of a child process, which is never signalled.

    asyncio's own subprocesses are killed with their transport, and an agent may hold a frozen tree: so Popen, and a
    pidfd for its end.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        pipes: tuple[asyncio.BaseTransport, asyncio.BaseTransport, asyncio.BaseTransport],
        tail: Tail,
        patience: float,
    ) -> None:
        super().__init__(*streams)
        self.pid = process.pid
        self._process = process
        self._pipes = pipes
        self._tail = tail
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    async def start(cls, name: str, command: Sequence[str], *, own_session: bool = True, patience: float = 0.0) -> Self:
        """Start a command; `patience` is how many seconds `close` gives it. Raises OSError when it can't be started.

        A terminal's Ctrl-C does not reach it: it gets a session of its own, or at least a process group (sudo finds the
        password that was typed a minute ago by the terminal, so it must keep the terminal).
        """
        log.debug("%s: %s", name, shlex.join(command))
        process = subprocess.Popen(  # noqa: ASYNC220 - see the class
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=own_session,
            process_group=None if own_session else 0,
        )
        # a few turns of the loop, which no cancelling may end half-way: the pipes would belong to nobody
        connecting = asyncio.ensure_future(cls._connected(name, process, patience))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await (await connecting).close()
            raise

    @classmethod
    async def _connected(cls, name: str, process: subprocess.Popen[bytes], patience: float) -> Self:
        loop = asyncio.get_running_loop()
        tail = Tail(name)
        reader = asyncio.StreamReader(limit=CHUNK)
        flow = asyncio.StreamReaderProtocol(asyncio.StreamReader())  # only its flow control is of use
        output, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        errors, _ = await loop.connect_read_pipe(lambda: _Errors(tail), process.stderr)
        given, _ = await loop.connect_write_pipe(lambda: flow, process.stdin)
        writer = asyncio.StreamWriter(given, flow, None, loop)
        return cls(process, (reader, writer), (given, output, errors), tail, patience)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(self._process.wait())

    async def wait(self) -> int | None:
        """Its exit status; negative for a signal."""
        return await asyncio.shield(self._ended)

    @property
    def ended(self) -> bool:
        """Whether it has left."""
        return self._ended.done()

    def input_fileno(self) -> int:
        """The pipe into it."""
        return int(self._pipes[0].get_extra_info("pipe").fileno())

    def terminate(self) -> None:
        """SIGTERM: for what is no agent."""
        if not self.ended:
            self._process.terminate()

    async def close(self) -> None:
        """End its input and output and give it time to leave; one that stays is left alone."""
        given, output, errors = self._pipes
        given.close()
        output.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await self.wait()
        errors.close()

    def stderr_tail(self) -> str:
        """The last that it wrote to its stderr."""
        return self._tail.text()


class LocalLink:
    """This host. `agent_arguments` are added to `serve …`; `sudo` is for tests, root or not decides otherwise."""

    def __init__(self, *, agent_arguments: Sequence[str] = (), sudo: bool | None = None) -> None:
        self.name = socket.gethostname()
        self._arguments = tuple(agent_arguments)
        self._sudo = os.geteuid() != 0 if sudo is None else sudo
        self._channels: list[Channel] = []

    async def start_agent(self, role: str) -> Channel:
        """Start the agent as a child, as root. Raises NotRoot when sudo refuses, ConnectError otherwise."""
        log.debug("%s: starting the agent as %s", self.name, role)
        return await self._run("serve", "--build", bundle.build_id(), *self._arguments, patience=PATIENCE)

    async def open_stream(self, socket: str, name: str, form: str = "plain") -> Channel:
        """Connect to the agent's bulk socket: by ourselves, or through a relay that sudo runs. Raises LinkLost."""
        through_relay = self._sudo or form != "plain"
        try:
            return await (self._relay(socket, name, form) if through_relay else self._connect(socket, name))
        except (OSError, ConnectError) as error:
            raise LinkLost(f"{self.name}: stream {name} could not be opened: {error}") from error

    async def close(self) -> None:
        """Close what is open and see the children off; agents get the end of their input."""
        for channel in self._channels:
            await channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                for channel in self._channels:
                    await channel.wait()
        self._channels.clear()

    async def _run(self, *arguments: str, patience: float = 0.0) -> ProcessChannel:
        command = bundle.local_command(arguments, sudo=self._sudo)
        try:
            channel = await ProcessChannel.start(self.name, command, own_session=not self._sudo, patience=patience)
        except FileNotFoundError:
            raise bundle.not_started(self.name, 127, f"{command[0]}: not found") from None
        except OSError as error:
            raise ConnectError(f"{self.name}: the agent could not be started: {error}") from error
        self._channels.append(channel)
        try:
            await bundle.greet(channel, self.name)
        except BaseException:
            await channel.close()
            raise
        return channel

    async def _relay(self, path: str, name: str, form: str) -> Channel:
        channel = await self._run("relay", path, name, form)
        await bundle.greet_relay(channel, name)
        return channel

    async def _connect(self, path: str, name: str) -> Channel:
        channel = _Pipe(*await asyncio.open_unix_connection(path, limit=CHUNK))
        self._channels.append(channel)
        await channel.write(f"{STREAM_HEADER} {name}\n".encode())
        return channel
