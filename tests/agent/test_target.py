"""The target's half alone: what it keeps and for how long, and who may make it let go."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import signal
import tempfile
import types
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import deposing, images, process, protocol
from agent.journal import Journal, Record, unfinished
from agent.prepared import written_down
from agent.protocol import FaultCode
from agent.settings import Settings
from agent.target import Target
from agent.tasks import NotRunning
from migrator.peer import Peer
from tests import fake_criu
from tests.agent.test_server import ANOTHER, ID, Talk, fault, prepare_of
from tests.fake_hosts import Pair, eventually, soon


@pytest.fixture
async def talk(pair: Pair) -> AsyncIterator[Talk]:
    talk = Talk(pair.target)
    await talk.start()
    yield talk
    await talk.close()


@pytest.fixture
def target(talk: Talk) -> Peer:
    return talk.peer


async def receive(target: Peer, prepared: protocol.Prepared, tasks: int = 1) -> None:
    """Round 1 of a tree of so many tasks, as the source would send it."""
    reader, writer = await asyncio.open_unix_connection(prepared.socket)
    writer.write(b"STREAM pages\n")
    await target.accept(protocol.Accept(1, "pages"))
    writer.write(b"PAGE" + (4096).to_bytes(4, "little") + b"x" * 4096)
    assert (await target.accept_done(protocol.AcceptDone(1))).bytes == 4096
    assert await reader.readexactly(1) == b"\0"
    writer.close()
    _, writer = await asyncio.open_unix_connection(prepared.socket)
    writer.write(b"STREAM images\n" + archive(tasks))
    await target.receive_images(protocol.ReceiveImages(1, "images"))
    writer.close()


def archive(tasks: int) -> bytes:
    """The images of a tree that are no memory."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(tasks):
            (Path(name) / f"core-{2**22 + number}.img").write_bytes(fake_criu.core_image(1))
        (Path(name) / "inventory.img").write_bytes(b"inventory")
        out = io.BytesIO()
        images.send(Path(name), out)
    return out.getvalue()


async def held(target: Peer, tasks: int = 1, lease: float = 600.0) -> protocol.Restored:
    """Prepare, receive and restore."""
    prepared = await target.prepare(dataclasses.replace(prepare_of(4242), lease=lease))
    await receive(target, prepared, tasks)
    return await target.restore(protocol.Restore(1))


def pages(pair: Pair) -> list[Path]:
    """Images that are still there."""
    return list(pair.target.directory.glob(f"*/{ID}/**/pages-1.img"))


async def test_prepare_makes_a_place_and_abort_takes_it_away(target: Peer, pair: Pair) -> None:
    prepared = await target.prepare(prepare_of(4242))
    assert os.stat(prepared.images).st_mode & 0o7777 == 0o700
    assert os.stat(prepared.socket).st_mode & 0o7777 == 0o600
    assert await target.abort(protocol.Abort("test")) == protocol.Leftovers()
    assert list(pair.target.run.rglob("*")) == []
    assert pair.target.journal(ID) == ["PREPARED", "ABORT", "DONE"]


async def test_prepare_without_room_leaves_nothing(target: Peer, pair: Pair) -> None:
    pair.target.run.write_text("no directory")
    failed = await fault(target.prepare(prepare_of(4242)))
    assert failed.code in (FaultCode.NO_SPACE, FaultCode.INTERNAL)
    assert pair.target.journal(ID) == ["PREPARED", "ABORT", "DONE"]
    pair.target.run.unlink()
    await target.prepare(prepare_of(4242, ANOTHER))


async def test_a_held_tree_has_not_run(target: Peer, pair: Pair) -> None:
    restored = await held(target, tasks=3)
    assert restored.pid == 4242
    assert len(pair.target.restored()) == 3
    await asyncio.sleep(0.05)
    assert pair.target.ever_ran() == set()
    resumed = await target.resume(protocol.Resume(3))
    assert resumed.pid == pair.target.restored()[0]
    assert pair.target.running() == pair.target.restored()
    assert await target.finish() == protocol.Leftovers()
    assert pages(pair) == []


async def test_without_proof_of_death_nothing_is_resumed(target: Peer, pair: Pair) -> None:
    await held(target)
    assert (await fault(target.resume(protocol.Resume(0)))).code is FaultCode.JOURNAL
    assert pair.target.journal(ID) == ["PREPARED", "HELD"]
    assert pair.target.ever_ran() == set()


async def test_only_the_sources_abort_discards_a_held_tree(target: Peer, pair: Pair) -> None:
    await held(target)
    assert (await fault(target.abort(protocol.Abort("undone")))).code is FaultCode.JOURNAL
    assert pages(pair)
    assert len(pair.target.restored()) == 1
    assert await target.abort(protocol.Abort("undone", source_aborted=True)) == protocol.Leftovers()
    assert pages(pair) == []
    assert pair.target.restored() == []
    assert pair.target.ever_ran() == set()
    assert pair.target.journal(ID) == ["PREPARED", "HELD", "ABORT", "DONE"]


async def test_once_it_is_resumed_nobody_discards_it(target: Peer, pair: Pair) -> None:
    await held(target)
    await target.resume(protocol.Resume(1))
    assert (await fault(target.abort(protocol.Abort("undone", source_aborted=True)))).code is FaultCode.JOURNAL
    assert (await fault(target.resume(protocol.Resume(1)))).code is FaultCode.JOURNAL
    assert len(pair.target.running()) == 1


async def test_the_end_of_input_before_the_hold_discards(pair: Pair) -> None:
    talk = Talk(pair.target)
    target = await talk.start()
    await receive(target, await target.prepare(prepare_of(4242)))
    assert pages(pair)
    await talk.close()
    assert pair.target.settle_down() == []
    assert pair.target.journal(ID) == ["PREPARED", "ABORT", "DONE"]


async def test_the_end_of_input_in_the_hold_keeps_everything_for_a_lease(pair: Pair) -> None:
    talk = Talk(pair.target)
    await held(await talk.start(), tasks=2, lease=1.0)
    await talk.close()
    assert process.alive(*pair.target.agents[0])
    assert len(pair.target.restored()) == 2
    eventually(lambda: not process.alive(*pair.target.agents[0]), "the lease ends")
    # the tree goes, which never ran; its images stay, and a later agent restores it from them
    assert pair.target.restored() == []
    assert pair.target.ever_ran() == set()
    assert pages(pair)
    assert pair.target.journal(ID) == ["PREPARED", "HELD"]
    talk = Talk(pair.target)
    settled = await (await talk.start()).settle(protocol.Settle(ID, protocol.Verdict.RESUME))
    assert settled.pid in pair.target.running()
    assert len(pair.target.running()) == 2
    await talk.peer.settle(protocol.Settle(ID, protocol.Verdict.CLEAN))
    await talk.close()
    assert pair.target.settle_down() == []


async def test_a_resume_that_comes_with_the_end_of_input(pair: Pair) -> None:
    """Both are read at once, so the lease has begun before the resume is heard: its end does not touch what runs."""
    talk = Talk(pair.target)
    await held(await talk.start(), tasks=2, lease=0.5)
    agent = pair.target.agents[0]
    os.kill(agent[0], signal.SIGSTOP)
    resuming = asyncio.ensure_future(talk.peer.resume(protocol.Resume(2)))
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(talk.close())
    await asyncio.sleep(0.05)
    os.kill(agent[0], signal.SIGCONT)
    await asyncio.gather(resuming, closing, return_exceptions=True)
    await soon(lambda: not process.alive(*agent), "the agent leaves")
    assert pair.target.journal(ID)[:4] == ["PREPARED", "HELD", "RESUMING", "RESUMED"]
    assert len(pair.target.running()) == 2


async def test_a_tree_that_ends_as_soon_as_it_runs_was_resumed(pair: Pair) -> None:
    """It had waited for a time that came in the freeze, say: what ran is never called not resumed."""
    talk = Talk(pair.target)
    target = await talk.start()
    await held(target)
    os.kill(pair.target.agents[0][0], signal.SIGSTOP)
    (pid,) = pair.target.restored()
    resuming = asyncio.ensure_future(target.resume(protocol.Resume(1)))
    (pair.target.state / ID / "verdict").write_text("go\n")
    await soon(lambda: pid in pair.target.ever_ran(), "it runs")
    os.kill(pid, signal.SIGKILL)
    os.kill(pair.target.agents[0][0], signal.SIGCONT)
    assert (await resuming).pid == pid
    assert (await target.finish()) == protocol.Leftovers()
    await talk.close()


async def test_a_task_that_another_hand_has_killed_in_the_hold(target: Peer, pair: Pair) -> None:
    """criu, let go, would wait for it for ever: the tree is restored once more, whole."""
    await held(target, tasks=3)
    broken = pair.target.restored()
    os.kill(broken[1], signal.SIGKILL)
    resumed = await target.resume(protocol.Resume(3))
    assert resumed.pid in pair.target.running()
    assert len(pair.target.running()) == 3
    assert not pair.target.ever_ran().intersection(broken)
    assert await target.finish() == protocol.Leftovers()


async def test_a_task_killed_in_the_hold_of_an_agent_that_is_taken_over_from(pair: Pair) -> None:
    talk = Talk(pair.target)
    await held(await talk.start(), tasks=3)
    broken = pair.target.restored()
    os.kill(broken[0], signal.SIGKILL)
    await talk.close()
    other = Talk(pair.target)
    settled = await (await other.start()).settle(protocol.Settle(ID, protocol.Verdict.RESUME))
    assert settled.pid in pair.target.running()
    assert len(pair.target.running()) == 3
    assert not pair.target.ever_ran().intersection(broken)
    await other.peer.settle(protocol.Settle(ID, protocol.Verdict.CLEAN))
    await other.close()
    assert pair.target.settle_down() == []


async def test_the_end_of_input_after_the_resume_cleans_up(pair: Pair) -> None:
    talk = Talk(pair.target)
    target = await talk.start()
    await held(target)
    await target.resume(protocol.Resume(1))
    await talk.close()
    assert pair.target.settle_down() == []
    assert pair.target.journal(ID)[-1] == "DONE"
    assert len(pair.target.running()) == 1


async def test_a_restored_tree_outlives_its_agent(pair: Pair) -> None:
    talk = Talk(pair.target)
    target = await talk.start()
    await held(target)
    await target.resume(protocol.Resume(1))
    pair.target.kill_agent()
    assert len(pair.target.running()) == 1
    await talk.close()


async def test_a_page_server_that_gets_half_a_round(target: Peer, pair: Pair) -> None:
    prepared = await target.prepare(prepare_of(4242))
    _, writer = await asyncio.open_unix_connection(prepared.socket)
    writer.write(b"STREAM pages\n")
    await target.accept(protocol.Accept(1, "pages"))
    writer.write(b"PAGE" + (4096).to_bytes(4, "little") + b"half")
    await writer.drain()
    writer.close()
    failed = await fault(target.accept_done(protocol.AcceptDone(1)))
    assert failed.code is FaultCode.CRIU
    assert failed.log.endswith("page-server-1.log")
    assert await target.abort(protocol.Abort("test")) == protocol.Leftovers()


async def test_half_an_archive_of_images_is_a_broken_stream(target: Peer, pair: Pair) -> None:
    prepared = await target.prepare(prepare_of(4242))
    _, pages_writer = await asyncio.open_unix_connection(prepared.socket)
    pages_writer.write(b"STREAM pages\n")
    await target.accept(protocol.Accept(1, "pages"))
    _, writer = await asyncio.open_unix_connection(prepared.socket)
    writer.write(b"STREAM images\n" + archive(1)[:1500])
    await writer.drain()
    writer.close()
    assert (await fault(target.receive_images(protocol.ReceiveImages(1, "images")))).code is FaultCode.BROKEN_STREAM
    assert await target.abort(protocol.Abort("test")) == protocol.Leftovers()
    pages_writer.close()


async def test_an_abort_while_images_are_on_their_way(target: Peer, pair: Pair) -> None:
    """A thread has an image open in what the abort is to remove: it is waited for."""
    prepared = await target.prepare(prepare_of(4242))
    _, pages_writer = await asyncio.open_unix_connection(prepared.socket)
    pages_writer.write(b"STREAM pages\n")
    await target.accept(protocol.Accept(1, "pages"))
    _, writer = await asyncio.open_unix_connection(prepared.socket)
    writer.write(b"STREAM images\n" + archive(1)[:700])
    receiving = asyncio.ensure_future(target.receive_images(protocol.ReceiveImages(1, "images")))
    await asyncio.sleep(0.05)
    assert await target.abort(protocol.Abort("test")) == protocol.Leftovers()
    assert (await fault(receiving)).code is FaultCode.BROKEN_STREAM
    writer.close()
    pages_writer.close()
    assert list(pair.target.run.rglob("*")) == []


class Hanging:
    """A criu that does not end, until it does."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "restore.log"
        self.end = asyncio.Event()
        self.process = types.SimpleNamespace(pid=4711, stdin=None, returncode=None, wait=self._wait)

    async def _wait(self) -> int:
        await self.end.wait()
        return 1


NO_END = r"criu \(PID 4711\) does not end"


async def _nothing() -> None:
    """There is no task."""


@pytest.fixture
def standing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> tuple[Target, Journal, Hanging]:
    """A target whose restore hangs, without an agent around it."""
    monkeypatch.setattr(deposing, "PATIENCE", 0.05)
    settings = Settings(pair.directory / "state", pair.directory / "run")
    journal = written_down(settings, dataclasses.replace(prepare_of(4242), lease=0.0))
    target, hanging = Target(settings, journal, protocol.CriuOptions(), print), Hanging(pair.directory)
    monkeypatch.setattr(target, "_restore", hanging)
    monkeypatch.setattr(target, "_hold", types.SimpleNamespace(go=list, veto=list, close=list))
    monkeypatch.setattr(target, "clear", _nothing)  # it would take our own children for the tree's
    settings.images(ID).mkdir(parents=True)
    return target, journal, hanging


async def test_an_undo_does_not_wait_for_ever(standing: tuple[Target, Journal, Hanging], pair: Pair) -> None:
    """As long as something of it is there it is not over: whoever recovers finds it."""
    target, journal, hanging = standing
    with pytest.raises(NotRunning, match=NO_END):
        await target.abort("test", source_aborted=False)
    assert journal.last is Record.ABORT
    assert (pair.directory / "run" / ID).exists()
    hanging.end.set()
    assert await target.abort("test", source_aborted=False) == protocol.Leftovers()
    assert unfinished(pair.directory / "state") == ()
    assert not (pair.directory / "run" / ID).exists()


async def test_an_undo_with_a_task_that_stays_is_not_over(
    standing: tuple[Target, Journal, Hanging], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, journal, hanging = standing
    hanging.end.set()

    async def stay() -> None:
        raise NotRunning("tasks of the tree are still here, blocked")

    with monkeypatch.context() as patch:
        patch.setattr(target, "clear", stay)
        with pytest.raises(NotRunning, match="blocked"):
            await target.abort("test", source_aborted=False)
        assert journal.last is Record.ABORT
    await target.abort("test", source_aborted=False)
    assert journal.has(Record.DONE)


async def test_a_restore_that_is_let_go_and_hangs(standing: tuple[Target, Journal, Hanging]) -> None:
    target, journal, _ = standing
    journal.write(Record.HELD, tasks=[], root=4242)
    with pytest.raises(NotRunning, match=NO_END):
        await target.resume(protocol.Resume(1))
    assert journal.last is Record.RESUMING


async def test_a_lease_that_ends_with_a_restore_that_hangs(
    standing: tuple[Target, Journal, Hanging], pair: Pair
) -> None:
    target, journal, _ = standing
    journal.write(Record.HELD, tasks=[], root=4242)
    with pytest.raises(NotRunning, match=NO_END):
        await target.contact_lost()
    assert journal.last is Record.HELD
    assert (pair.directory / "run" / ID).exists()
