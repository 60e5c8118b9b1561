"""The contract: the real stub against the real server, for every row of the table. Hosts and criu are fake."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent import process, protocol, wire
from agent.protocol import FaultCode
from agent.server import Server, fault_of
from agent.settings import Settings
from agent.tasks import NotRunning
from migrator import bundle
from migrator.bandwidth import Bucket
from migrator.channel import Channel
from migrator.hosts import Stream, Way
from migrator.peer import Peer, PeerFault
from tests.fake_hosts import FakeHost, HostLink, Pair, soon

ID = "20260101-000000-abcdef"
ANOTHER = "20260101-000000-abcdf0"
OPTIONS = protocol.CriuOptions()


class Talk:
    """A link, an agent and a stub for one host."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.link = HostLink(host)
        self.peer: Peer

    async def start(self) -> Peer:
        """An agent that has said hello."""
        self.peer = Peer(self.host.name, await self.link.start_agent("test"))
        await self.peer.hello(bundle.build_id())
        return self.peer

    async def close(self) -> None:
        """End of its input."""
        await self.peer.close()
        await self.link.close()


@pytest.fixture
async def here(pair: Pair) -> AsyncIterator[Talk]:
    """With an agent on alpha."""
    talk = Talk(pair.source)
    await talk.start()
    yield talk
    await talk.close()


@pytest.fixture
async def there(pair: Pair) -> AsyncIterator[Talk]:
    """With an agent on beta."""
    talk = Talk(pair.target)
    await talk.start()
    yield talk
    await talk.close()


@pytest.fixture
async def source(here: Talk) -> Peer:
    """A stub of an agent on alpha."""
    return here.peer


@pytest.fixture
async def target(there: Talk) -> Peer:
    """A stub of an agent on beta."""
    return there.peer


def begin_of(pid: int, migration: str = ID) -> protocol.Begin:
    return protocol.Begin(migration, pid, process.start_time(pid), "beta", OPTIONS, True)


def prepare_of(pid: int, migration: str = ID) -> protocol.Prepare:
    on_disk = os.geteuid() != 0
    return protocol.Prepare(migration, pid, "alpha", 16 << 20, on_disk, OPTIONS, ())


async def fault(call: Awaitable[object]) -> protocol.Fault:
    """The fault that a call ends with."""
    with pytest.raises(PeerFault) as caught:
        await call
    return caught.value.fault


# --- every row, in the right order -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("cgroups_of_the_host")
async def test_every_command_of_the_table_in_the_right_order(
    pair: Pair, here: Talk, there: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Peer.call` checks each argument and result against the table; here each must do its work, too."""
    called: set[str] = set()
    call = Peer.call

    async def noted(peer: Peer, name: str, arguments: object, result: type[Any]) -> Any:
        called.add(name)
        return await call(peer, name, arguments, result)

    monkeypatch.setattr(Peer, "call", noted)
    source, target = here.peer, there.peer
    victim = pair.victim(1)
    extra = pair.directory / "extra"
    extra.write_text("x" * 1000)

    facts = await source.probe(protocol.Probe(want_cpuinfo=True))
    assert (facts.criu_version, facts.criu_check, facts.uid) == ("4.1.1", "", os.geteuid())
    assert (await target.probe(protocol.Probe(cpuinfo=facts.cpuinfo))).cpu_check == ""
    tree = await source.inspect(protocol.Inspect(victim.pid))
    assert [task.pid for task in tree.tasks] == victim.pids
    found = await target.check(protocol.Check(tree.files, (victim.pid,)))
    nowhere = protocol.Floating("192.0.2.7", 24, "none0")
    assert await target.listen(protocol.Listen((nowhere,))) == protocol.Answers(())
    assert (await source.digest(protocol.Digest((str(extra), "/nowhere")))).digests == (
        hashlib.sha256(b"x" * 1000).hexdigest(), "",
    )  # fmt: skip
    assert [file.path for file in found.files] == [file.path for file in tree.files]
    assert [task.pid for task in found.taken] == victim.pids  # both fake hosts have the same processes

    begun = await source.begin(begin_of(victim.pid))
    prepared = await target.prepare(prepare_of(victim.pid))
    streams = []
    for name in ("pages", "images", "rsync", "files"):
        ends = await here.link.open_stream(begun.socket, name), await there.link.open_stream(prepared.socket, name)
        streams.append(Stream(name, *ends, Way("none", Bucket(), lambda size: None, lambda size: None)))

    there_already = protocol.Incoming(str(extra), True, 1000, extra.stat().st_mtime_ns)  # both are this host
    assert await target.stage(protocol.Stage((there_already,))) == protocol.Nothing()
    copied, taken = await asyncio.gather(
        source.copy_files(protocol.CopyFiles("rsync", "files", (str(extra),))),
        target.take_files(protocol.TakeFiles("rsync", "files")),
    )
    assert (copied.files, taken) == (1, protocol.Moved(1, 1000))
    assert await source.newly_opened() == protocol.NewFiles(())
    assert await source.add_files(protocol.AddFiles(())) == protocol.Nothing()
    for final in (False, True):
        moved = await asyncio.gather(
            source.send_files(protocol.SendFiles("files", final)),
            target.receive_files(protocol.ReceiveFiles("files", final)),
        )
        assert set(moved) == {protocol.Moved(1, 0)}  # it is too new to be trusted not to have changed

    assert await target.accept(protocol.Accept(1, "pages")) == protocol.Nothing()
    dumped, accepted = await asyncio.gather(
        source.pre_dump(protocol.PreDump(1, "pages")), target.accept_done(protocol.AcceptDone(1))
    )
    assert dumped.bytes == accepted.bytes == 3 * 4096
    await target.accept(protocol.Accept(2, "pages"))
    slowed = source.throttle(protocol.Throttle(1.0))
    if tree.no_throttle:  # without root, or a cpu controller
        assert (await fault(slowed)).code is FaultCode.THROTTLE
    else:
        assert (await slowed).processors > 0
    held, accepted = await asyncio.gather(
        source.dump(protocol.Dump(2, "pages")), target.accept_done(protocol.AcceptDone(2))
    )
    assert [task.pid for task in held.tasks] == victim.pids
    assert accepted.bytes == 2 * 4096
    sent, received = await asyncio.gather(
        source.send_images(protocol.SendImages(2, "images")), target.receive_images(protocol.ReceiveImages(2, "images"))
    )
    assert sent == received
    assert sent.bytes == held.image_bytes

    restored = await target.restore(protocol.Restore(2))
    assert restored.pid == victim.pid
    state = await target.journal(protocol.ReadJournal(ID))
    assert (state.role, state.records, state.root) == ("target", ("PREPARED", "HELD"), victim.pid)
    assert (state.agent_alive, state.criu_alive, state.tasks_alive, state.images) == (True, True, 2, True)
    assert [one.migration for one in (await source.migrations()).items] == [ID]
    story = await target.story(protocol.ReadJournal(ID))
    assert (story.state, story.held, story.at_work) == (state, True, True)
    assert {item.migration for item in (await source.remains()).items if str(pair.source.state) in item.what} == {ID}
    assert await source.interrupt(protocol.Interrupt(ID)) == protocol.Interrupted(0)  # nobody's `migrate` runs it
    killed = await source.commit()
    assert killed.tasks == 2
    resumed = await target.resume(protocol.Resume(killed.tasks))
    assert (await target.fill()).bytes == 0  # restored eagerly
    assert resumed.pid in pair.target.restored()
    for peer in (source, target):
        assert await peer.finish() == protocol.Leftovers()
        assert await peer.abort(protocol.Abort("too late")) == protocol.Leftovers()
    settled = await source.settle(protocol.Settle(ID, protocol.Verdict.CLEAN))
    assert settled.records == ("BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE")

    for stream in streams:
        await stream.close()
    # of rounds that are no stream: in test_carrier; and of a tree that has no target: in test_saving
    assert called == protocol.BY_NAME.keys() - {"arrived", "put_on_ice", "snapshot", "look_at_ice", "read_ice"}


# --- what is no request ----------------------------------------------------------------------------------------------


class Raw:
    """A control channel without a stub."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def ask(self, line: bytes) -> dict[str, Any]:
        """One line there, one line back."""
        await self.channel.write(line)
        answer: dict[str, Any] = json.loads(await self.channel.readline(1 << 20))
        return answer


@pytest.fixture
async def raw(pair: Pair) -> AsyncIterator[Raw]:
    """An agent that has said hello, to be spoken to in bytes."""
    link = HostLink(pair.source)
    channel = await link.start_agent("test")
    banner = protocol.Banner(protocol.PRODUCT, protocol.PROTOCOL, protocol.VERSION, bundle.build_id())
    await channel.write(banner.line().encode() + b"\n")
    assert (await channel.readline(4096)).startswith(b"migrate-agent protocol=1 ")
    yield Raw(channel)
    await link.close()


def _example(kind: type[Any]) -> dict[str, Any]:
    """Plain arguments of the right names and types."""

    found: list[Any] = []

    @settings(max_examples=1, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.from_type(kind))
    def remember(value: Any) -> None:
        found.append(wire.plain(value))

    remember()
    return dict(found[0])


async def test_every_command_refuses_what_is_not_in_its_dataclass(raw: Raw) -> None:
    for number, command in enumerate(protocol.COMMANDS):
        arguments = _example(command.arguments)
        wrong = [{**arguments, "more": 1}]
        wrong += [{**arguments, name: {"no": "such type"}} for name in arguments]
        wrong += [
            {name: value for name, value in arguments.items() if name != left_out}
            for left_out in arguments
            if left_out in _required(command.arguments)
        ]
        for case in wrong:
            line = json.dumps({"id": number, "command": command.name, "arguments": case}).encode() + b"\n"
            answer = await raw.ask(line)
            assert answer["id"] == number
            assert answer["fault"]["code"] == "bad-request", (command.name, case, answer)


def _required(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}


async def test_an_unknown_command(raw: Raw) -> None:
    answer = await raw.ask(b'{"id": 5, "command": "format_disk", "arguments": {}}\n')
    assert answer == {
        "id": 5,
        "fault": {
            "code": "bad-request",
            "message": "there is no command 'format_disk'",
            "hint": "",
            "log": "",
        },
    }


@pytest.mark.parametrize(
    "line",
    [
        b"hello?\n",
        b" \n",
        b"[]\n",
        b'{"id": "one", "command": "probe", "arguments": {}}\n',
        b'{"id": 1, "command": "probe"}\n',
        b"\xff\xfe\x00\n",
        b'{"id": 1, "command": "journal", "argum',
    ],
)
async def test_after_garbage_the_agent_leaves(raw: Raw, pair: Pair, line: bytes) -> None:
    await raw.channel.write(line)
    if not line.endswith(b"\n"):
        await raw.channel.close()
    await soon(lambda: not process.alive(*pair.source.agents[-1]), "the agent leaves")


async def test_heartbeats_are_heard_and_not_answered(raw: Raw) -> None:
    await raw.channel.write(protocol.HEARTBEAT * 3)
    answer = await raw.ask(b'{"id": 5, "command": "format_disk", "arguments": {}}\n')
    assert answer["id"] == 5


async def test_silence_undoes_what_had_begun(pair: Pair) -> None:
    """A host that dies says nothing: no heartbeat counts as the end of input."""
    victim = pair.victim()
    pair.source.constants = {"agent.server.SILENCE": 0.5}
    talk = Talk(pair.source)
    await (await talk.start()).begin(begin_of(victim.pid))
    # its next heartbeat would come in ten seconds, and never comes
    await soon(lambda: not process.alive(*pair.source.agents[-1]), "the agent leaves")
    assert pair.source.journal(ID) == ["BEGIN", "ABORT", "DONE"]
    assert pair.source.settle_down() == []


async def test_garbage_in_the_middle_undoes_what_had_begun(pair: Pair) -> None:
    victim = pair.victim()
    talk = Talk(pair.source)
    await (await talk.start()).begin(begin_of(victim.pid))
    await talk.peer._channel.write(b"garbage\n")
    await soon(lambda: not process.alive(*pair.source.agents[-1]), "the agent leaves")
    assert pair.source.journal(ID) == ["BEGIN", "ABORT", "DONE"]
    assert pair.source.settle_down() == []
    assert victim.runs
    await talk.close()


async def test_a_message_over_the_limit_ends_the_conversation(raw: Raw, pair: Pair) -> None:
    block = b"x" * (1 << 20)
    with pytest.raises(OSError):
        for _ in range(80):
            await raw.channel.write(block)
    await soon(lambda: not process.alive(*pair.source.agents[-1]), "the agent leaves")


@pytest.mark.parametrize(
    "banner",
    [
        b"GET / HTTP/1.1\n",
        b"migrate protocol=2 version=0.1.0 build=%s\n",
        b"migrate protocol=1 version=0.1.0 build=0000000000000000\n",
        b"\n",
        b"",
    ],
)
async def test_an_agent_does_not_talk_to_strangers(pair: Pair, banner: bytes) -> None:
    link = HostLink(pair.source)
    channel = await link.start_agent("test")
    await channel.write(banner.replace(b"%s", bundle.build_id().encode()))
    await channel.write(b'{"id": 1, "command": "journal", "arguments": {"migration": ""}}\n')
    assert (await channel.readline(4096)).startswith(b"migrate-agent")
    if not banner:
        await channel.close()
    else:
        assert await channel.readline(4096) == b""
    await link.close()


# --- the wrong order -------------------------------------------------------------------------------------------------

Act = Callable[[Peer, int], Awaitable[object]]


def facts_for_ice(pid: int) -> protocol.PutOnIce:
    """Of a tree of one process, as far as they matter."""
    task = protocol.TaskFacts(pid, 1, pid, pid, (pid,), "victim", "S", 1, 0)
    host = protocol.HostFacts(
        "alpha", "boot", "x86_64", "6.12", "3.13", 0, "criu", "4.1.1", "", True, 4096, 1 << 22, 1 << 30, False, "", ""
    )  # fmt: skip
    return protocol.PutOnIce(host, protocol.TreeFacts(pid, (task,), (), (), 4096))


_ALONE: dict[str, Act] = {
    "accept": lambda peer, pid: peer.accept(protocol.Accept(1, "pages")),
    "arrived": lambda peer, pid: peer.arrived(protocol.Arrived(1, ())),
    "accept_done": lambda peer, pid: peer.accept_done(protocol.AcceptDone(1)),
    "pre_dump": lambda peer, pid: peer.pre_dump(protocol.PreDump(1, "pages")),
    "throttle": lambda peer, pid: peer.throttle(protocol.Throttle(0.5)),
    "dump": lambda peer, pid: peer.dump(protocol.Dump(1, "pages")),
    "send_images": lambda peer, pid: peer.send_images(protocol.SendImages(1, "images")),
    "receive_images": lambda peer, pid: peer.receive_images(protocol.ReceiveImages(1, "images")),
    "newly_opened": lambda peer, pid: peer.newly_opened(),
    "add_files": lambda peer, pid: peer.add_files(protocol.AddFiles(())),
    "stage": lambda peer, pid: peer.stage(protocol.Stage(())),
    "copy_files": lambda peer, pid: peer.copy_files(protocol.CopyFiles("rsync", "files", ())),
    "take_files": lambda peer, pid: peer.take_files(protocol.TakeFiles("rsync", "files")),
    "send_files": lambda peer, pid: peer.send_files(protocol.SendFiles("files", False)),
    "receive_files": lambda peer, pid: peer.receive_files(protocol.ReceiveFiles("files", False)),
    "restore": lambda peer, pid: peer.restore(protocol.Restore(1)),
    "commit": lambda peer, pid: peer.commit(),
    "resume": lambda peer, pid: peer.resume(protocol.Resume(1)),
    "fill": lambda peer, pid: peer.fill(),
    "abort": lambda peer, pid: peer.abort(protocol.Abort("test")),
    "finish": lambda peer, pid: peer.finish(),
    "put_on_ice": lambda peer, pid: peer.put_on_ice(facts_for_ice(pid)),
    "snapshot": lambda peer, pid: peer.snapshot(facts_for_ice(pid)),
}


async def test_nothing_works_before_it_has_begun(source: Peer, pair: Pair) -> None:
    assert _ALONE.keys() == protocol.BY_NAME.keys() - {
        "probe", "inspect", "check", "listen", "digest", "begin", "prepare", "journal", "settle",
        "migrations", "story", "remains", "interrupt", "look_at_ice", "read_ice",
    }  # fmt: skip
    for name, act in _ALONE.items():
        assert (await fault(act(source, 0))).code is FaultCode.BAD_REQUEST, name
    state = await source.journal(protocol.ReadJournal(""))
    assert (state.role, state.records) == ("", ())
    assert (await source.story(protocol.ReadJournal(ID))).state.role == ""
    assert await source.migrations() == protocol.Migrations(())
    assert (await fault(source.interrupt(protocol.Interrupt(ID)))).code is FaultCode.JOURNAL
    for verdict in protocol.Verdict:
        assert (await fault(source.settle(protocol.Settle(ID, verdict)))).code is FaultCode.JOURNAL


async def test_what_a_source_does_not_do_when_it_has_just_begun(source: Peer, pair: Pair) -> None:
    victim = pair.victim()
    await source.begin(begin_of(victim.pid))
    for name in ("send_images", "commit", "finish", "accept", "accept_done", "restore", "resume", "receive_images"):
        assert (await fault(_ALONE[name](source, victim.pid))).code is FaultCode.BAD_REQUEST, name
    assert (await fault(source.begin(begin_of(victim.pid, ANOTHER)))).code is FaultCode.BAD_REQUEST
    assert (await fault(source.prepare(prepare_of(victim.pid, ANOTHER)))).code is FaultCode.BAD_REQUEST
    assert await source.abort(protocol.Abort("test")) == protocol.Leftovers()
    assert await source.abort(protocol.Abort("test again")) == protocol.Leftovers()
    for name in ("copy_files", "send_files", "send_images", "commit"):
        assert (await fault(_ALONE[name](source, victim.pid))).code is FaultCode.BAD_REQUEST, name
    assert await source.finish() == protocol.Leftovers()  # it is over, and was
    assert pair.source.left_behind() == [f"agent {pair.source.agents[0][0]} lives"]


async def test_what_a_target_does_not_do_when_it_is_just_prepared(target: Peer, pair: Pair) -> None:
    victim = pair.victim()
    await target.prepare(prepare_of(victim.pid))
    for name in ("accept_done", "receive_images", "resume", "finish", "pre_dump", "dump", "send_images", "commit"):
        assert (await fault(_ALONE[name](target, victim.pid))).code is FaultCode.BAD_REQUEST, name
    failed = await fault(target.restore(protocol.Restore(1)))
    assert failed.code is FaultCode.CRIU
    assert "inventory.img" in failed.message
    assert failed.log.endswith("restore.log")
    assert (await fault(target.restore(protocol.Restore(1)))).code is FaultCode.BAD_REQUEST
    assert await target.abort(protocol.Abort("test")) == protocol.Leftovers()
    for name in ("stage", "take_files", "receive_files", "resume", "finish", "restore"):
        assert (await fault(_ALONE[name](target, victim.pid))).code is FaultCode.BAD_REQUEST, name
    assert pair.target.left_behind() == [f"agent {pair.target.agents[0][0]} lives"]


async def test_begin_refuses(source: Peer, pair: Pair) -> None:
    victim, other = pair.victim(), Talk(pair.source)
    dead = pair.victim()
    dead_begin = begin_of(dead.pid)
    dead.close()
    good = begin_of(victim.pid)
    changed = protocol.Begin(ID, victim.pid, good.start_time + 1, "beta", OPTIONS, True)
    assert (await fault(source.begin(changed))).code is FaultCode.CHANGED
    assert (await fault(source.begin(dead_begin))).code is FaultCode.NO_PROCESS
    # the last could be the name of anybody's directory, and a migration's is removed
    for name in ("", "../escape", "a/b", "x" * 65, "ünï", f"{ID}\n", f"../{ID}", "etc"):
        assert (await fault(source.begin(begin_of(victim.pid, name)))).code is FaultCode.JOURNAL, name
    await source.begin(good)
    second = await other.start()
    assert (await fault(second.begin(begin_of(victim.pid, ANOTHER)))).code is FaultCode.LOCKED
    await source.abort(protocol.Abort("test"))
    assert (await fault(second.begin(good))).code is FaultCode.LOCKED  # this id was used
    await second.begin(begin_of(victim.pid, ANOTHER))
    await other.close()
    assert pair.source.journal(ANOTHER) == ["BEGIN", "ABORT", "DONE"]


@pytest.mark.parametrize("where", ["state", "run"])
async def test_directories_that_somebody_else_could_write_to_are_not_used(source: Peer, pair: Pair, where: str) -> None:
    """Who was there first could have left journals with processes to kill, or links."""
    victim = pair.victim()
    directory = pair.source.state if where == "state" else pair.source.run
    directory.mkdir(mode=0o700)
    directory.chmod(0o777)
    calls = (
        source.begin(begin_of(victim.pid)), source.prepare(prepare_of(victim.pid)),
        source.journal(protocol.ReadJournal("")), source.settle(protocol.Settle(ID, protocol.Verdict.ABORT)),
    )  # fmt: skip
    for call in calls:
        refused = await fault(call)
        assert refused.code is FaultCode.FILES
        assert f"{directory} is writable for others" in refused.message
    if os.geteuid() == 0:
        directory.chmod(0o700)
        os.chown(directory, 1234, 0)
        assert "belongs to user 1234" in (await fault(source.begin(begin_of(victim.pid)))).message
        os.chown(directory, 0, 0)
    directory.chmod(0o755)
    await source.begin(begin_of(victim.pid))
    assert list(directory.iterdir())


async def test_two_begins_at_once(source: Peer, pair: Pair) -> None:
    first, second = pair.victim(), pair.victim()
    results = await asyncio.gather(
        source.begin(begin_of(first.pid)), source.begin(begin_of(second.pid, ANOTHER)), return_exceptions=True
    )
    assert isinstance(results[0], protocol.Prepared)
    assert isinstance(results[1], PeerFault)
    assert results[1].fault.code is FaultCode.BAD_REQUEST
    await source.abort(protocol.Abort("test"))
    assert pair.source.journal(ANOTHER) == []


async def test_an_abort_that_overtakes_its_prepare(target: Peer, pair: Pair) -> None:
    """`both` gives up on a prepare when the begin beside it fails; what is half prepared is undone all the same."""
    results = await asyncio.gather(
        target.prepare(prepare_of(1)), target.abort(protocol.Abort("test")), return_exceptions=True
    )
    assert isinstance(results[0], protocol.Prepared)
    assert results[1] == protocol.Leftovers()
    assert pair.target.journal(ID) == ["PREPARED", "ABORT", "DONE"]
    assert pair.target.left_behind() == [f"agent {pair.target.agents[0][0]} lives"]


async def test_input_that_ends_while_it_prepares(pair: Pair) -> None:
    talk = Talk(pair.target)
    peer = await talk.start()
    waiting = asyncio.ensure_future(peer.prepare(prepare_of(1)))
    await asyncio.sleep(0.001)
    await talk.close()
    await asyncio.gather(waiting, return_exceptions=True)
    assert pair.target.settle_down() == []
    assert pair.target.journal(ID) in ([], ["PREPARED", "ABORT", "DONE"])


# --- answers in another order ----------------------------------------------------------------------------------------


async def test_a_dump_is_answered_when_it_is_held_and_others_meanwhile(source: Peer, pair: Pair) -> None:
    victim = pair.victim()
    pair.source.behave(dump="hang")
    begun = await source.begin(begin_of(victim.pid))
    _, writer = await asyncio.open_unix_connection(begun.socket)
    writer.write(b"STREAM pages\n")
    dump = asyncio.ensure_future(source.dump(protocol.Dump(1, "pages")))
    await soon(lambda: bool(pair.source.calls("dump")), "criu dump is at work")
    assert (await source.inspect(protocol.Inspect(victim.pid))).root == victim.pid
    assert not dump.done()
    assert await source.abort(protocol.Abort("changed my mind")) == protocol.Leftovers()
    assert (await fault(dump)).code in (FaultCode.CRIU, FaultCode.VETOED)
    assert victim.runs
    writer.close()
    assert pair.source.journal(ID) == ["BEGIN", "FROZEN", "ABORT"], "the target may hold it, and has to be told"
    assert await source.finish() == protocol.Leftovers()
    assert pair.source.journal(ID) == ["BEGIN", "FROZEN", "ABORT", "DONE"]


async def test_a_full_disk_has_a_code_of_its_own(source: Peer, pair: Pair) -> None:
    victim = pair.victim()
    pair.source.behave(pre_dump="no-space")
    begun = await source.begin(begin_of(victim.pid))
    _, writer = await asyncio.open_unix_connection(begun.socket)
    writer.write(b"STREAM pages\n")
    failed = await fault(source.pre_dump(protocol.PreDump(1, "pages")))
    assert failed.code is FaultCode.NO_SPACE
    assert failed.log.endswith("pre-dump-1.log")
    writer.close()


async def test_who_says_nothing_for_too_long_is_gone(pair: Pair) -> None:
    """A host that loses its power ends no connection."""
    pair.source.constants = {"agent.server.SILENCE": 0.2}
    talk, victim = Talk(pair.source), pair.victim()
    peer = await talk.start()
    assert peer._heart is not None
    peer._heart.cancel()
    await peer.begin(begin_of(victim.pid))
    await soon(lambda: not process.alive(*pair.source.agents[-1]), "the agent leaves")
    assert pair.source.journal(ID) == ["BEGIN", "ABORT", "DONE"]
    assert "nothing was heard" in peer.log_tail()
    await talk.close()


async def test_a_heartbeat_is_enough(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEARTBEAT_SECONDS", 0.02)
    pair.source.constants = {"agent.server.SILENCE": 0.3}
    talk, victim = Talk(pair.source), pair.victim()
    peer = await talk.start()
    await peer.begin(begin_of(victim.pid))
    await asyncio.sleep(0.5)
    assert pair.source.journal(ID) == ["BEGIN"]
    assert (await peer.inspect(protocol.Inspect(victim.pid))).root == victim.pid
    await talk.close()


async def test_inspecting_nobody(source: Peer) -> None:
    failed = await fault(source.inspect(protocol.Inspect(2**22 + 1)))
    assert failed.code is FaultCode.NO_PROCESS
    assert failed.message == f"there is no process {2**22 + 1}"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_an_agent_without_memory_says_so_and_is_no_bug(error: Exception) -> None:
    told = fault_of(error)
    assert told.code is FaultCode.NO_SPACE
    assert told.message == "no memory left for the agent"


async def test_what_does_not_end_after_the_contact_is_lost_is_said(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback; and what else is under way is waited for all the same."""
    server = Server(Settings(pair.directory / "state", pair.directory / "run"), asyncio.StreamReader(), 1, "test")

    async def hang() -> None:
        raise NotRunning("criu (PID 4711) does not end")

    under_way = asyncio.ensure_future(asyncio.sleep(0.01))
    server._running.add(under_way)
    monkeypatch.setattr(server, "_target", types.SimpleNamespace(contact_lost=hang))
    await server._contact_lost()
    assert capsys.readouterr().err == "criu (PID 4711) does not end: `migrate recover` undoes it once that has ended\n"
    assert under_way.done()
