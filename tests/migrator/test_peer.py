"""The stub: a method a row, answers in any order, and what it makes of an agent that dies or talks nonsense."""

from __future__ import annotations

import asyncio
import inspect
import json
import types
import typing
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent import protocol, wire
from agent.protocol import Fault, FaultCode
from migrator import errors
from migrator.channel import Channel
from migrator.peer import LONGEST, Peer, PeerFault, PeerLost, error_of

BUILD = "3f2a3f2a3f2a3f2a"
BANNER = b"migrate-agent protocol=1 version=0.1.0 build=3f2a3f2a3f2a3f2a python=3.13.5\n"


_ADDRESS = protocol.Address("tcp", "0.0.0.0:80")


def _file(path: str) -> protocol.FileFacts:
    return protocol.FileFacts(path, "regular", 1, 0o644, 0, 0, 0, 0, ())


class Scripted(Channel):
    """An agent whose every word is ours."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.said = ""
        self.closed = False
        self.refuses: OSError | None = None
        self._words: asyncio.Queue[bytes | OSError] = asyncio.Queue()

    def say(self, data: bytes | OSError) -> None:
        """What the agent says next; b"" is its end."""
        self._words.put_nowait(data)

    def answer(self, number: int, result: object) -> None:
        self.say(wire.encode_result(number, result))

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked so far."""
        return [json.loads(line) for line in self.sent.splitlines()[1:]]

    async def _receive(self, size: int) -> bytes:
        word = await self._words.get()
        if isinstance(word, OSError):
            raise word
        return word

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        self.sent += data

    async def write_eof(self) -> None:
        raise NotImplementedError

    async def wait(self) -> int | None:
        return None

    async def close(self) -> None:
        self.closed = True

    def stderr_tail(self) -> str:
        return self.said


@pytest.fixture
def agent() -> Scripted:
    return Scripted()


@pytest.fixture
async def peer(agent: Scripted) -> AsyncIterator[Peer]:
    """One that has said hello."""
    peer = Peer("db2", agent)
    agent.say(BANNER)
    await peer.hello(BUILD)
    yield peer
    await peer.close()
    assert agent.closed


async def ask(peer: Peer) -> protocol.Moved:
    return await peer.send_images(protocol.SendImages(1, "images"))


async def settled() -> None:
    """Let everything that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- hello -----------------------------------------------------------------------------------------------------------


async def test_hello(agent: Scripted) -> None:
    agent.say(BANNER)
    peer = Peer("db2", agent)
    banner = await peer.hello(BUILD)
    assert (banner.build, banner.rest) == (BUILD, "python=3.13.5")
    assert agent.sent == f"migrate protocol=1 version={protocol.VERSION} build={BUILD}\n".encode()
    await peer.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (b"Welcome to db2!\n", "something else answered in the agent's place: b'Welcome to db2!"),
        (b"migrate protocol=1 version=0.1.0 build=3f2a3f2a3f2a3f2a\n", "something else answered"),
        (BANNER.replace(b"protocol=1", b"protocol=2"), "its agent is protocol 2"),
        (BANNER.replace(b"build=3f2a", b"build=0000"), "build 0000"),
        (b"\xff" * 100 + b"\n", "something else answered"),
        (b"x" * 5000, "a line of more than 4096 bytes"),
        (b"", "the agent did not start: bash: python3: not found"),
        (ConnectionResetError("reset by peer"), "the agent did not start: reset by peer"),
    ],
)
async def test_who_answers_in_the_agents_place(agent: Scripted, words: bytes | OSError, message: str) -> None:
    agent.said = "motd\nbash: python3: not found\n"
    agent.say(words)
    with pytest.raises(errors.WrongAgent) as caught:
        await Peer("db2", agent).hello(BUILD)
    assert caught.value.message.startswith("db2: ")
    assert message in caught.value.message


async def test_nobody_answers(agent: Scripted) -> None:
    with pytest.raises(errors.WrongAgent, match="no agent answered within 0 s"):
        await Peer("db2", agent).hello(BUILD, seconds=0.01)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", protocol.COMMANDS, ids=lambda command: command.name)
async def test_each_row_has_a_method_of_its_types(peer: Peer, agent: Scripted, command: protocol.Command) -> None:
    method = getattr(peer, command.name)
    hints = typing.get_type_hints(method)
    assert hints.pop("return") is command.result
    arguments = _made(command.arguments)
    assert list(hints.values()) == ([command.arguments] if hints or vars(arguments) else [])
    call = asyncio.ensure_future(method(*([arguments] if hints else [])))
    await settled()
    (request,) = agent.requests()
    assert request["command"] == command.name
    assert wire.decode(command.arguments, request["arguments"]) == arguments
    result = _made(command.result)
    agent.answer(request["id"], result)
    assert await call == result


def _made(kind: type[Any]) -> Any:
    """Some value of a message's type."""
    simple: dict[Any, Any] = {str: "text", int: 7, float: 0.5, bool: True}
    values: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is tuple:
            inner = typing.get_args(hint)[0]
            values[name] = (simple.get(inner) or _made(inner),)
        elif isinstance(hint, type) and issubclass(hint, protocol.Verdict):
            values[name] = protocol.Verdict.KILL
        elif isinstance(hint, type) and issubclass(hint, protocol.Word):
            values[name] = protocol.Word.RESTORE_ANYWAY
        else:
            values[name] = simple.get(hint) or _made(hint)
    return kind(**values)


def test_no_method_is_without_a_row() -> None:
    own = {"hello", "call", "close", "log_tail"}
    names = {name for name, _ in inspect.getmembers(Peer, inspect.isfunction) if not name.startswith("_")}
    assert names - own == protocol.BY_NAME.keys()


async def test_what_is_not_in_the_table_is_not_sent(peer: Peer, agent: Scripted) -> None:
    with pytest.raises(TypeError):
        await peer.call("probe", protocol.Inspect(1), protocol.HostFacts)
    with pytest.raises(TypeError):
        await peer.call("probe", protocol.Probe(), protocol.Moved)
    with pytest.raises(KeyError):
        await peer.call("reboot", protocol.Nothing(), protocol.Nothing)
    assert agent.requests() == []


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_answers_in_another_order(peer: Peer, agent: Scripted) -> None:
    calls = [asyncio.ensure_future(ask(peer)) for _ in range(3)]
    await settled()
    for number in (3, 1, 2):
        agent.answer(number, protocol.Moved(number, number * 10))
    assert await asyncio.gather(*calls) == [protocol.Moved(n, n * 10) for n in (1, 2, 3)]


async def test_answers_in_pieces_and_in_one_piece(peer: Peer, agent: Scripted) -> None:
    calls = [asyncio.ensure_future(ask(peer)) for _ in range(2)]
    await settled()
    data = wire.encode_result(2, protocol.Moved(2, 2)) + wire.encode_result(1, protocol.Moved(1, 1))
    for index in range(0, len(data), 7):
        agent.say(data[index : index + 7])
    assert [moved.files for moved in await asyncio.gather(*calls)] == [1, 2]


async def test_a_fault(peer: Peer, agent: Scripted) -> None:
    call = asyncio.ensure_future(ask(peer))
    await settled()
    fault = Fault(FaultCode.CRIU, "no luck", "try again", "/var/log")
    agent.say(wire.encode_fault(1, fault))
    with pytest.raises(PeerFault) as caught:
        await call
    assert (caught.value.host, caught.value.command, caught.value.fault) == ("db2", "send_images", fault)
    assert str(caught.value) == "send_images on db2: no luck"


async def test_a_late_answer_to_a_call_that_was_given_up(peer: Peer, agent: Scripted) -> None:
    given_up = asyncio.ensure_future(ask(peer))
    await settled()
    given_up.cancel()
    await settled()
    agent.answer(1, protocol.Moved(1, 1))
    call = asyncio.ensure_future(ask(peer))
    await settled()
    agent.answer(2, protocol.Moved(2, 2))
    assert await call == protocol.Moved(2, 2)
    agent.answer(1, protocol.Moved(1, 1))  # but twice is once too often
    await settled()
    with pytest.raises(PeerLost, match="an answer to no question: 1"):
        await ask(peer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (b"", "the connection to its agent was lost"),
        (b'{"id": 1, "resu', "the connection to its agent was lost"),
        (ConnectionResetError("reset by peer"), "lost: reset by peer"),
        (b"Traceback (most recent call last):\n", "lost: not JSON"),
        (b"[]\n", "lost: not an object"),
        (b'{"id": 99, "result": {}}\n', "lost: an answer to no question: 99"),
        (b'{"id": 1, "result": {"files": 1}}\n', "answer is not understood: send_images: field 'bytes' is missing"),
        (b'{"id": 1, "result": {"files": 1, "bytes": "2"}}\n', "answer is not understood"),
    ],
)
async def test_an_agent_that_is_gone_or_talks_nonsense(
    peer: Peer, agent: Scripted, words: bytes | OSError, message: str
) -> None:
    call = asyncio.ensure_future(ask(peer))
    await settled()
    agent.say(words)
    if isinstance(words, bytes) and words and not words.endswith(b"\n"):
        agent.say(b"")
    with pytest.raises(PeerLost, match="db2: .*" + message):
        await call


async def test_a_line_over_the_limit(peer: Peer, agent: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINE_LIMIT", 100)
    agent.say(b'{"id": 1, "result": {"f": "')
    await settled()
    agent.say(b"x" * 200)  # the limit of the first line was read before it was lowered
    agent.say(b'"}}\n')
    await settled()
    with pytest.raises(PeerLost, match=r"is over the limit of 100|more than"):
        await ask(peer)


async def test_all_who_wait_learn_that_it_is_gone_and_later_ones_at_once(peer: Peer, agent: Scripted) -> None:
    calls = [asyncio.ensure_future(ask(peer)) for _ in range(3)]
    await settled()
    agent.say(b"")
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, PeerLost)
    with pytest.raises(PeerLost):
        await ask(peer)
    assert len(agent.requests()) == 3


async def test_a_request_that_can_not_be_sent(peer: Peer, agent: Scripted) -> None:
    agent.refuses = BrokenPipeError("Broken pipe")
    with pytest.raises(PeerLost, match="db2: the connection to its agent was lost: Broken pipe"):
        await ask(peer)


async def test_its_heart_beats_while_nothing_is_asked(agent: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEARTBEAT_SECONDS", 0.005)
    agent.say(BANNER)
    peer = Peer("db2", agent)
    await peer.hello(BUILD)
    await asyncio.sleep(0.05)
    _, *beats = agent.sent.splitlines(keepends=True)
    assert len(beats) >= 2
    assert set(beats) == {protocol.HEARTBEAT}
    agent.refuses = BrokenPipeError("Broken pipe")
    await asyncio.sleep(0.02)
    await peer.close()
    beats_then = len(agent.sent)
    await asyncio.sleep(0.02)
    assert len(agent.sent) == beats_then


async def test_an_agent_that_is_silent_too_long(peer: Peer, agent: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    row = protocol.BY_NAME["send_images"]
    hasty = types.SimpleNamespace(arguments=row.arguments, result=row.result, pace=types.SimpleNamespace(value=0.01))
    monkeypatch.setitem(protocol.BY_NAME, "send_images", hasty)
    with pytest.raises(PeerLost, match="db2: its agent did not answer send_images within 0 s"):
        await ask(peer)
    agent.answer(1, protocol.Moved(1, 1))
    await settled()
    assert peer._lost is None  # its answer came late, and that is no surprise


# --- what a fault means for the operator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "command", "kind"),
    [
        (FaultCode.NO_PROCESS, "inspect", errors.NoProcess),
        (FaultCode.NOT_ROOT, "begin", errors.NotRoot),
        (FaultCode.LOCKED, "begin", errors.Locked),
        (FaultCode.NO_SPACE, "accept_done", errors.NoSpace),
        (FaultCode.CHANGED, "begin", errors.TreeChanged),
        (FaultCode.FILES, "receive_files", errors.CopyError),
        (FaultCode.BROKEN_STREAM, "send_images", errors.LinkLost),
        (FaultCode.JOURNAL, "finish", errors.CopyError),
        (FaultCode.VETOED, "dump", errors.CopyError),
        (FaultCode.CRIU, "pre_dump", errors.DumpError),
        (FaultCode.CRIU, "dump", errors.DumpError),
        (FaultCode.CRIU, "commit", errors.DumpError),
        (FaultCode.CRIU, "restore", errors.RestoreError),
        (FaultCode.CRIU, "accept_done", errors.CopyError),
        (FaultCode.INTERNAL, "dump", None),
        (FaultCode.BAD_REQUEST, "dump", None),
    ],
)
def test_errors_of_faults(code: FaultCode, command: str, kind: type[errors.MigrateError] | None) -> None:
    error = error_of(PeerFault("db2", command, Fault(code, "no luck", "try again", "/var/log")))
    assert type(error) is (kind or type(None))
    if error is not None:
        assert "db2" in error.message
        assert "no luck" in error.message
        assert error.hint == "try again"
    if code is FaultCode.CRIU and error is not None:
        assert error.log == "/var/log on db2"


def test_every_code_is_an_error_of_ours_or_a_bug() -> None:
    bugs = {code for code in FaultCode if error_of(PeerFault("db2", "dump", Fault(code, "x"))) is None}
    assert bugs == {FaultCode.INTERNAL, FaultCode.BAD_REQUEST}


@pytest.mark.parametrize(
    "answer",
    [
        {"files": ()}, {"files": (_file("/etc/shadow"),)}, {"files": (_file("/b"), _file("/a"))},
        {"accounts": ()}, {"accounts": (protocol.Account("user", 0, "root"),)}, {"addresses": (_ADDRESS, _ADDRESS)},
    ],
    ids=str,
)  # fmt: skip
async def test_an_answer_to_what_was_not_asked(peer: Peer, agent: Scripted, answer: dict[str, Any]) -> None:
    """A target that names other files would have them looked for here."""
    asked = protocol.Check((_file("/a"), _file("/b")), (), (protocol.Account("user", 7, "x"),), (_ADDRESS,))
    good: dict[str, Any] = {"files": asked.files, "accounts": asked.accounts, "addresses": asked.addresses}
    agent.answer(1, protocol.TargetCheck(taken=(), memory_available=1, disk_available=1, **good))
    assert (await peer.check(asked)).files == asked.files
    agent.answer(2, protocol.TargetCheck(taken=(), memory_available=1, disk_available=1, **{**good, **answer}))
    with pytest.raises(PeerLost, match="what it was not asked"):
        await peer.check(asked)


async def test_a_fault_of_many_words_is_cut_short(peer: Peer, agent: Scripted) -> None:
    agent.say(wire.encode_fault(1, Fault(FaultCode.FILES, "m" * 100_000, "h" * 100_000, "l" * 100_000)))
    with pytest.raises(PeerFault) as caught:
        await peer.commit()
    fault = caught.value.fault
    assert [len(text) for text in (fault.message, fault.hint, fault.log)] == [LONGEST] * 3
