"""What a connection to a host is, whatever carries it: Target, Channel, Link, and the pump between two channels.

Owns these words and the coupling of two channels. Refuses to open anything: that is `local` and `transport`.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import ctypes
import dataclasses
import ipaddress
import logging
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from migrator.errors import UsageError

CHUNK = 1 << 18
"""Bytes that are moved at a time: below this the bookkeeping per piece shows, above it nothing is gained."""

MEMORY = "pages"
"""The stream to the page servers: it is worth a connection of its own."""

TAIL = 16 * 1024
"""Bytes of a far end's stderr that are kept."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""malloc.h's."""

_agent_log = logging.getLogger("migrator.agent")


@dataclasses.dataclass(frozen=True)
class Target:
    """A host as the operator wrote it; what is empty is left to ~/.ssh/config."""

    host: str
    user: str = ""
    port: int = 0

    def __str__(self) -> str:
        """As it may be written again: [USER@]HOST[:PORT]."""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    def by_hand(self, command: str, *, sudo: bool) -> str:
        """How somebody gives a command of root's there that needs a terminal."""
        return f"{self.ssh_command(terminal=True)} {'sudo ' if sudo else ''}{command}"

    def ssh_command(self, terminal: bool = False) -> str:
        """How an admin reaches it by hand, where asked for with a terminal there."""
        words = ["ssh", *(["-t"] if terminal else []), *(["-p", str(self.port)] if self.port else [])]
        return " ".join([*words, (f"{self.user}@" if self.user else "") + self.host])


def parse_target(text: str) -> Target:
    """Take `[USER@]HOST[:PORT]` apart, also with `ssh://` before it; IPv6 is `[::1]:2222` or `::1` alone.

    Raises UsageError for what can be no host.
    """

    def nonsense(why: str) -> UsageError:
        return UsageError(f"{text!r} is no host: {why}", hint="write [USER@]HOST[:PORT], for example root@db2:22")

    rest = text.removeprefix("ssh://").removesuffix("/") if text.startswith("ssh://") else text
    user, at, address = rest.rpartition("@")
    if at and not user:
        raise nonsense("there is nothing before the @")
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise nonsense("the brackets do not match")
        colon, port = port[:1], port[1:]
    elif address.count(":") > 1:
        host, colon, port = address, "", ""  # an IPv6 address
    else:
        host, colon, port = address.partition(":")
    if not host:
        raise nonsense("there is no name")
    if ":" in host and not _is_ipv6(host):
        raise nonsense(f"{host!r} is no IPv6 address")
    if host.startswith("-") or user.startswith("-"):
        raise nonsense("it looks like an option")
    if not (host + user).isprintable() or set(host + user) & set(" /\\'\"`$;&|<>()*?"):
        raise nonsense("it has characters that no name has")
    if colon and not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise nonsense(f"{port!r} is no port")
    return Target(host, user, int(port) if colon else 0)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def keep_memory() -> None:
    """Have the C library keep what pieces of bulk streams leave behind, instead of giving it back for each.

    A piece is just so large that glibc maps or trims memory for it every time, and the kernel then zeroes its pages
    anew: 1 GiB through `packing` and AES-GCM took 2.2 s of processor time with that, and 0.9 s without. mallopt(3).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library, which has its own ways
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 16 * CHUNK)
        library.mallopt(_M_TRIM_THRESHOLD, 128 * CHUNK)


def no_core_dumps() -> None:
    """Bulk streams go through our memory, and that of ssh, which keeps what is set here: no core file, and no memory
    in one that the kernel pipes into a program, whatever the limit is (core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # a kernel that writes no core dumps at all
        Path("/proc/self/coredump_filter").write_text("0")


class Tail:
    """The end of what a far end writes to its stderr; each line is also passed to the log, for -v."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept = bytearray()
        self._line = bytearray()

    def feed(self, data: bytes) -> None:
        """More of it has come."""
        self._kept += data
        del self._kept[:-TAIL]
        *lines, rest = (self._line + data).split(b"\n")
        for line in lines:
            _agent_log.debug("%s: %s", self._name, line.decode(errors="replace"))
        self._line = rest[-TAIL:]

    def text(self) -> str:
        """What is kept of it."""
        return self._kept.decode(errors="replace")


class Channel(abc.ABC):
    """Bytes each way, with an end of each. What fails raises OSError, a cut connection among it.

    One reader and one writer at a time.
    """

    def __init__(self) -> None:
        self._ahead = b""

    async def read(self, size: int = CHUNK) -> bytes:
        """Up to `size` bytes, as soon as there are any; b"" when the far end has ended its direction."""
        if not self._ahead:
            return await self._receive(size)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data

    async def readline(self, limit: int) -> bytes:
        """One line with its newline; without one where the far end stopped. Raises ValueError beyond `limit` bytes."""
        line = bytearray(self._ahead)
        searched = 0
        try:
            while True:
                end = line.find(b"\n", searched) + 1
                if (end or len(line)) > limit:
                    raise ValueError(f"a line of more than {limit} bytes: {bytes(line[:60])!r}…")
                if end:
                    self._ahead = bytes(line[end:])
                    return bytes(line[:end])
                searched = len(line)
                data = await self._receive(CHUNK)
                if not data:
                    self._ahead = b""
                    return bytes(line)
                line += data
        except BaseException:
            self._ahead = bytes(line)  # nothing is lost when a time limit cancels us
            raise

    @abc.abstractmethod
    async def _receive(self, size: int) -> bytes:
        """As read, from the far end itself."""

    @abc.abstractmethod
    async def write(self, data: bytes) -> None:
        """Send, waiting while the far end is not keeping up."""

    @abc.abstractmethod
    async def write_eof(self) -> None:
        """End our direction; the other one goes on. Does nothing where it has ended already."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End both directions at once; what was not read by the far end is lost. Never raises."""

    @abc.abstractmethod
    async def wait(self) -> int | None:
        """The far end's exit status, once it has one; None when it has none to give."""

    def stderr_tail(self) -> str:
        """The last that the far end wrote to its stderr."""
        return ""


class Link(Protocol):
    """One host. There is no way to mend a lost one: make a new one, and start an agent there again."""

    name: str

    async def start_agent(self, role: str) -> Channel:
        """Start the agent; its standard input and output. `role` is for the log. Raises ConnectError."""

    async def open_stream(self, socket: str, name: str, form: str = "plain") -> Channel:
        """Connect to the agent's bulk socket as stream `name`; it stands when this returns. Raises LinkLost.

        With the form "packed" what is written must be frames (protocol.py).
        """

    async def close(self) -> None:
        """Give up the connection with all channels. Never raises."""


async def pump(a: Channel, b: Channel, on_bytes: Callable[[int], None]) -> None:
    """Carry bytes both ways until both directions have ended; `on_bytes` is told of those that went from `a` to `b`.

    Each piece goes on as it came, so nothing waits for more. An end is passed on. When one side fails, both are closed,
    so that whoever waits at the other one learns of it, and its error is raised. Cancelling stops at once and leaves
    closing to the caller.
    """

    async def carry(source: Channel, sink: Channel, count: Callable[[int], None] | None) -> None:
        while data := await source.read(CHUNK):
            await sink.write(data)
            if count:
                count(len(data))
        await sink.write_eof()

    ways = [asyncio.ensure_future(carry(a, b, on_bytes)), asyncio.ensure_future(carry(b, a, None))]
    try:
        await asyncio.gather(*ways)
    except Exception:
        await a.close()
        await b.close()
        raise
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
