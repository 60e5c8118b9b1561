"""Parsers of lines: the wire, what is said before it, and what other programs say."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import socket
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent import bulk, criu, process, protocol, rsync, service, wire
from agent.deltas import FilesError
from migrator import bundle, channel, errors, runbook, words
from migrator.channel import Channel

_WORDS = ("", "x", "/usr/lib/x.so", "20260704-031500-a1b2c3")


# --- the wire --------------------------------------------------------------------------------------------------------


def sample(kind: type[Any], number: int = 0) -> Any:
    """A message of this kind, with something in every field."""
    hints = typing.get_type_hints(kind)
    return kind(**{field.name: _value(hints[field.name], number + 1) for field in dataclasses.fields(kind)})


def _value(hint: Any, number: int) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return sample(hint, number)
    if typing.get_origin(hint) is tuple:
        return (_value(typing.get_args(hint)[0], number),)
    if hint in (protocol.FaultCode, protocol.Verdict, protocol.Word):
        return list(hint)[number % len(hint)]
    return {bool: bool(number % 2), int: number, float: number / 4, str: _WORDS[number % len(_WORDS)]}[hint]


def request(data: bytes) -> None:
    """What an agent reads. What is understood can be said again, and is the same then."""
    with contextlib.suppress(wire.WireError):
        found = wire.decode_request(data)
        command = protocol.BY_NAME.get(found.command)
        if command is not None:
            arguments = wire.decode(command.arguments, found.arguments, found.command)
            again = wire.decode_request(wire.encode_request(found.id, found.command, arguments))
            assert wire.decode(command.arguments, again.arguments) == arguments


def requests() -> Iterable[bytes]:
    """One of each command."""
    for number, command in enumerate(protocol.COMMANDS):
        yield wire.encode_request(number, command.name, sample(command.arguments))


def reply(data: bytes) -> None:
    """What the migrator reads, as the answer to the command that the first byte says; and what it makes of a fault."""
    command = protocol.COMMANDS[data[0] % len(protocol.COMMANDS)] if data else protocol.COMMANDS[0]
    with contextlib.suppress(wire.WireError):
        found = wire.decode_reply(data[1:])
        if found.result is not None:
            result = wire.decode(command.result, found.result, command.name)
            assert wire.decode(command.result, json.loads(wire.encode_result(1, result))["result"]) == result
        elif found.fault is not None:
            said = words.error_text(errors.CopyError(found.fault.message, hint=found.fault.hint, log=found.fault.log))
            assert all(line.isprintable() for line in said.split("\n"))


def replies() -> Iterable[bytes]:
    """One of each command, and a fault of each code."""
    for number, command in enumerate(protocol.COMMANDS):
        yield bytes([number]) + wire.encode_result(number, sample(command.result))
    for code in protocol.FaultCode:
        yield b"\0" + wire.encode_fault(1, protocol.Fault(code, "criu \x1b[31mfailed", "hint", "/log"))


def banner(data: bytes) -> None:
    """The first line, either way."""
    found = protocol.Banner.parse(data.decode(errors="replace"))
    assert found is None or 0 <= found.protocol < 1_000_000_000


def banners() -> Iterable[bytes]:
    """Both."""
    yield protocol.Banner("migrate", 1, "0.1.0", "3f2a").line().encode()
    yield protocol.Banner("migrate-agent", 1, "0.1.0", "3f2a", "python=3.13.5").line().encode()


def stream_header(data: bytes) -> None:
    """The line that names a bulk stream."""
    name = bulk._name(data)
    assert name is None or bulk.header(name) == data


def headers() -> Iterable[bytes]:
    """Those that there are."""
    return [bulk.header(name) for name in ("pages", "images", "files", "rsync", "terminal")]


# --- what is said before it ------------------------------------------------------------------------------------------


class Said(Channel):
    """A far end that says this, and hears everything."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    async def _receive(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data

    async def write(self, data: bytes) -> None:
        """Heard."""

    async def write_eof(self) -> None:
        """Heard."""

    async def close(self) -> None:
        """Gone."""

    async def wait(self) -> int | None:
        """How it ended."""
        return 1


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def boot(data: bytes) -> None:
    """What a host says where an agent, or a relay, was started."""
    with contextlib.suppress(errors.ConnectError):
        _loop().run_until_complete(bundle._greet(Said(data), "beta"))
    with contextlib.suppress(OSError):
        _loop().run_until_complete(bundle.greet_relay(Said(data), "pages"))


def boots() -> Iterable[bytes]:
    """Good and bad ones, behind what a login shell prints."""
    for said in (b"have /root/.cache/migrate/agent-1.pyz", b"want", b"old 3.6.8", b"failed no room"):
        yield b"Welcome!\nmigrate-boot " + said + b"\n"
    yield b"STREAM pages\n"


def rsync_server(data: bytes) -> None:
    """The command that the other host's rsync wants to be run here."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.suppress(FilesError, ConnectionError):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        words = rsync._asked(ours)
        assert words[:2] == ["rsync", "--server"]
        assert words[-2:] == [".", "."]
        assert set(words[3:-2]) <= {"--inplace", "--no-implied-dirs"}


def rsync_servers() -> Iterable[bytes]:
    """What rsync 3.2 and 3.4 ask for."""
    yield b'["rsync", "--server", "-WRSe.LsfxCIvu", "--inplace", "--no-implied-dirs", ".", "."]\n'
    yield b'["rsync", "--server", "--sender", "-e.LsfxCIvu", ".", "/etc/shadow"]\n'


# --- what others say -------------------------------------------------------------------------------------------------


def criu_log(data: bytes) -> None:
    """criu's log, in which a tree's own file names stand."""
    said = criu.in_words(criu.decisive(data.decode(errors="replace").splitlines()))
    assert "\n" not in said


def criu_logs() -> Iterable[bytes]:
    """As criu writes it."""
    yield b"(00.012) Error (criu/files-reg.c:2188): File /x has bad size 3 (expect 4)\nError: Restoring FAILED.\n"
    yield b"(00.3) pie: 12: Error (x.c:1): Can't fork for 77: File exists\nWarn  (criu/x.c:2): odd\n"


def stat(data: bytes) -> None:
    """/proc/PID/stat, in which a process's own name stands."""
    with contextlib.suppress(ValueError):
        process.parse_stat(data)


def stats() -> Iterable[bytes]:
    """Ours."""
    yield Path("/proc/self/stat").read_bytes()


def systemd(data: bytes) -> None:
    """What systemd shows of units, whose files any package has written, and a process's cgroup, which its user may have
    named; with a NUL between them."""
    output, _, cgroup = data.decode(errors="replace").partition("\0")
    where = service.home(cgroup)
    assert "/" not in where.unit
    for facts in service.parse_show(output):
        found = service._described(protocol.Unit(where.unit, (7,)), facts, {7})
        assert found.main in (0, 7)
        wire.encode_result(1, found)


def shown() -> Iterable[bytes]:
    """A service, and one of a user's own."""
    text = b"Id=x.service\nActiveState=active\nMainPID=7\nRestart=always\nMemoryMax=9\nCPUQuotaPerSecUSec=1min 55ms\n"
    yield text + b"\n" + text + b"\0" + b"0::/system.slice/x.service/a\n"
    yield text + b"\0" + b"0::/user.slice/user-7.slice/user@7.service/app.slice/y.service\n"


def target(data: bytes) -> None:
    """A host as somebody writes it. Whatever is taken for one can be no option, and be written again."""
    with contextlib.suppress(errors.UsageError):
        found = channel.parse_target(data.decode(errors="surrogateescape"))
        assert not found.host.startswith("-")
        assert not found.user.startswith("-")
        assert channel.parse_target(str(found)) == found


def targets() -> Iterable[bytes]:
    """Some."""
    return (b"root@db2:22", b"ssh://db2", b"[::1]:2222", b"fe80::1%eth0", b"-oProxyCommand=x")


def plan(data: bytes) -> None:
    """A plan of a drain. A mistake stands in a line that is there; of one without any, each move is a command line."""
    text = data.decode(errors="replace")
    try:
        book = runbook.parse(text)
    except runbook.BadPlan as bad:
        assert bad.mistakes
        assert all(0 <= mistake.line <= text.count("\n") + 1 for mistake in bad.mistakes)
        return
    for move in book.moves:
        for there in move.targets:
            assert runbook.options_of(move, there, 1).host == there


def plans() -> Iterable[bytes]:
    """Some."""
    return (
        b'target = ["db2", "db3"]\nparallel = 2\n[options]\ncopy-files = true\n[[move]]\npid = 7\n',
        b'[[move]]\nname = "a"\nuser = "x"\ntarget = "b"\nafter = ["a"]\noptions = { max-downtime = 1.5 }\n',
        b'[[move]]\nunit = "x"\ntarget = "b"\n[move.options]\nnamespaces = "auto"\ncriu-option = ["log-level=4"]\n',
    )
