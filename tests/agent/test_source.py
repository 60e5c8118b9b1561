"""The source's half alone: what begin takes and gives back, what the hold protects, what a rollback leaves alone."""

from __future__ import annotations

import asyncio
import os
import signal
import types
from collections.abc import AsyncIterator

import pytest

from agent import deposing, process, protocol
from agent.journal import JournalError, Record, unfinished
from agent.protocol import FaultCode
from agent.settings import Settings
from agent.source import Source
from migrator.peer import Peer
from tests.agent.test_server import ANOTHER, ID, OPTIONS, Talk, begin_of, fault
from tests.fake_hosts import Pair, Victim, eventually, state_of


@pytest.fixture
async def talk(pair: Pair) -> AsyncIterator[Talk]:
    talk = Talk(pair.source)
    await talk.start()
    yield talk
    await talk.close()


@pytest.fixture
def source(talk: Talk) -> Peer:
    return talk.peer


class PageServer:
    """The far end of a source's page stream: takes a session, is content with it."""

    def __init__(self, begun: protocol.Prepared) -> None:
        self._begun = begun
        self.sessions: list[int] = []

    async def __aenter__(self) -> PageServer:
        self._reader, self._writer = await asyncio.open_unix_connection(self._begun.socket)
        self._writer.write(b"STREAM pages\n")
        self._serving = asyncio.ensure_future(self._serve())
        return self

    async def _serve(self) -> None:
        while header := await self._reader.read(8):
            size = int.from_bytes(header[4:], "little")
            await self._reader.readexactly(size)
            self.sessions.append(size)
            self._writer.write(b"\0")

    async def __aexit__(self, *_: object) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._writer.close()


async def held(source: Peer, victim: Victim) -> protocol.Held:
    """Begin and dump; the page stream is closed then, as criu is done with it."""
    begun = await source.begin(begin_of(victim.pid))
    async with PageServer(begun):
        return await source.dump(protocol.Dump(1, "pages"))


async def test_begin_locks_and_pins_and_abort_gives_all_back(source: Peer, pair: Pair) -> None:
    victim = pair.victim(1)
    begun = await source.begin(begin_of(victim.pid))
    assert begun.images == str(pair.source.run / ID)
    assert os.stat(begun.images).st_mode & 0o7777 == 0o700
    assert os.stat(begun.socket).st_mode & 0o7777 == 0o600
    assert {path.name for path in (pair.source.run / "locks").iterdir()} == {str(pid) for pid in victim.pids}
    assert await source.abort(protocol.Abort("test")) == protocol.Leftovers()
    assert list(pair.source.run.rglob("*")) == []
    assert victim.runs


async def test_begin_without_room_leaves_nothing(source: Peer, pair: Pair) -> None:
    victim = pair.victim()
    pair.source.run.mkdir()
    (pair.source.run / ID).mkdir()
    failed = await fault(source.begin(begin_of(victim.pid)))
    assert failed.code is FaultCode.NO_SPACE
    assert pair.source.journal(ID) == ["BEGIN", "ABORT", "DONE"]
    assert not (pair.source.run / "locks").exists()
    again = await source.begin(begin_of(victim.pid, ANOTHER))
    assert again.images.endswith(ANOTHER)


async def test_rounds_name_the_one_before(source: Peer, pair: Pair) -> None:
    victim = pair.victim()
    begun = await source.begin(begin_of(victim.pid))
    async with PageServer(begun) as server:
        for number in (1, 2):
            dumped = await source.pre_dump(protocol.PreDump(number, "pages"))
            assert (dumped.pages, dumped.bytes) == (3, 3 * 4096)
        await source.dump(protocol.Dump(3, "pages"))
        assert server.sessions == [3 * 4096, 3 * 4096, 2 * 4096]
    runs = [call.argv for call in pair.source.calls() if call.command in ("pre-dump", "dump")]
    assert ["--prev-images-dir" in run for run in runs] == [False, True, True]
    assert runs[2][runs[2].index("--prev-images-dir") + 1] == "../2"


async def test_without_tracking_no_round_names_another(source: Peer, pair: Pair) -> None:
    victim = pair.victim()
    begin = protocol.Begin(ID, victim.pid, process.start_time(victim.pid), "beta", OPTIONS, track_memory=False)
    async with PageServer(await source.begin(begin)):
        await source.dump(protocol.Dump(2, "pages"))
    (run,) = [call.argv for call in pair.source.calls("dump")]
    assert not {"--track-mem", "--prev-images-dir"} & set(run)


async def test_a_stream_that_does_not_come(pair: Pair) -> None:
    pair.source.constants = {"agent.streams.WAIT": 0.02}
    talk, victim = Talk(pair.source), pair.victim()
    source = await talk.start()
    await source.begin(begin_of(victim.pid))
    for call in (
        source.pre_dump(protocol.PreDump(1, "pages")),
        source.dump(protocol.Dump(1, "pages")),
        source.send_files(protocol.SendFiles("files", False)),
    ):
        assert (await fault(call)).code is FaultCode.BROKEN_STREAM
    assert pair.source.journal(ID) == ["BEGIN"]
    await talk.close()
    assert pair.source.settle_down() == []


async def test_commit_proves_every_task_dead(source: Peer, pair: Pair) -> None:
    victim = pair.victim(2)
    found = await held(source, victim)
    assert [task.pid for task in found.tasks] == victim.pids
    assert found.freeze_seconds > 0
    killed = await source.commit()
    assert killed.tasks == 3
    assert victim.living == []
    assert (await fault(source.commit())).code in (FaultCode.BAD_REQUEST, FaultCode.JOURNAL, FaultCode.CRIU)
    assert (await fault(source.abort(protocol.Abort("too late")))).code is FaultCode.JOURNAL
    assert await source.finish() == protocol.Leftovers()
    assert all(state_of(pid) in ("Z", "") for pid in victim.pids)
    assert pair.source.journal(ID) == ["BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE"]


async def test_a_task_that_is_killed_in_the_hold_is_no_tree_to_commit(source: Peer, pair: Pair) -> None:
    victim = pair.victim(1)
    await held(source, victim)
    os.kill(victim.pids[1], signal.SIGKILL)
    eventually(lambda: state_of(victim.pids[1]) in ("Z", ""), "the child dies")
    assert (await fault(source.commit())).code is FaultCode.CHANGED
    await source.abort(protocol.Abort("test"))
    victim.adopt([victim.pid])
    assert victim.runs


async def test_a_rollback_leaves_stopped_tasks_stopped(source: Peer, pair: Pair) -> None:
    victim = pair.victim(1)
    root, child = victim.pids
    os.kill(child, signal.SIGSTOP)
    eventually(lambda: state_of(child) == "T", "the child stops")
    await held(source, victim)
    assert (pair.source.state / ID / "stopped").read_text() == f"{root} {process.start_time(root)} {root}\n"
    await source.abort(protocol.Abort("test"))
    assert state_of(child) == "T"
    os.kill(child, signal.SIGCONT)
    assert victim.runs


async def test_a_parent_sees_nothing_of_a_rollback(source: Peer, pair: Pair) -> None:
    """We are the victim's parent: a stop or a continue would be ours to see (rule 7)."""
    victim = pair.victim()
    await held(source, victim)
    await source.abort(protocol.Abort("test"))
    assert victim.runs
    assert victim.seen_by_its_parent() is None


async def test_the_dead_are_no_part_of_it(source: Peer, pair: Pair) -> None:
    victim = pair.victim(1)
    os.kill(victim.pids[1], signal.SIGKILL)
    eventually(lambda: state_of(victim.pids[1]) == "Z", "the child is a zombie")
    found = await held(source, victim)
    assert [task.state for task in found.tasks] == ["t", "Z"]
    assert (await source.commit()).tasks >= 1
    assert victim.living == []


async def test_the_end_of_input_undoes_a_hold(pair: Pair) -> None:
    talk, victim = Talk(pair.source), pair.victim(1)
    await held(await talk.start(), victim)
    await talk.close()
    assert victim.runs
    assert pair.source.settle_down() == []
    # not DONE: the target may hold the tree, and has to be told (by `recover`)
    assert pair.source.journal(ID) == ["BEGIN", "FROZEN", "ABORT"]


async def test_the_end_of_input_before_the_freeze_is_the_end(pair: Pair) -> None:
    talk, victim = Talk(pair.source), pair.victim(1)
    await (await talk.start()).begin(begin_of(victim.pid))
    await talk.close()
    assert victim.runs
    assert pair.source.settle_down() == []
    assert pair.source.journal(ID) == ["BEGIN", "ABORT", "DONE"]


async def test_the_end_of_input_after_commit_undoes_nothing(pair: Pair) -> None:
    talk, victim = Talk(pair.source), pair.victim()
    source = await talk.start()
    await held(source, victim)
    await source.commit()
    await talk.close()
    eventually(lambda: not process.alive(*pair.source.agents[0]), "the agent leaves")
    assert victim.living == []
    assert pair.source.journal(ID) == ["BEGIN", "FROZEN", "COMMIT", "KILLED"]


async def test_sigterm_counts_as_the_end_of_input(pair: Pair) -> None:
    talk, victim = Talk(pair.source), pair.victim()
    await held(await talk.start(), victim)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(pair.source.agents[0][0], number)
    await asyncio.sleep(0.02)
    assert state_of(victim.pid) == "t"
    os.kill(pair.source.agents[0][0], signal.SIGTERM)
    eventually(lambda: not process.alive(*pair.source.agents[0]), "the agent leaves")
    assert victim.runs
    await talk.close()
    assert pair.source.settle_down() == []


class Hanging:
    """A criu that does not end, until it does."""

    def __init__(self) -> None:
        self.alive = True
        self.process = types.SimpleNamespace(pid=4711)


async def test_an_undo_does_not_wait_for_ever_for_a_criu_that_hangs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it kill it: `recover` says the same, and what that may cost is for an operator to decide."""
    victim, hanging = pair.victim(), Hanging()
    source = Source(Settings(pair.directory / "state", pair.directory / "run"), begin_of(victim.pid), print)
    await source.begin()
    monkeypatch.setattr(source, "_criu", hanging)
    monkeypatch.setattr(deposing, "PATIENCE", 0.05)
    with pytest.raises(JournalError, match=r"criu \(PID 4711\) does not end"):
        await source.abort("test")
    hanging.alive = False
    assert await source.abort("test") == protocol.Leftovers()
    assert victim.runs


@pytest.mark.parametrize("who", ["criu (PID 4711)", "a killed process of the tree"])
async def test_a_migration_that_is_over_names_who_does_not_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """The tree runs on the target: that is no failure. DONE it is when they have ended."""
    victim, hanging = pair.victim(), Hanging()
    source = Source(Settings(pair.directory / "state", pair.directory / "run"), begin_of(victim.pid), print)
    await source.begin()
    monkeypatch.setattr(source, "_criu", hanging)
    monkeypatch.setattr(deposing, "PATIENCE", 0.05)
    for record in (Record.FROZEN, Record.COMMIT, Record.KILLED):
        source._journal.write(record)
    hanging.alive = who.startswith("criu")
    (left,) = (await source.finish()).items
    assert left == f"{who} does not end: once it has, `migrate recover {ID}` removes what is left"
    assert source._journal.last is Record.KILLED
    hanging.alive = False
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: source._tasks.ended, "it is dead")
    assert await source.finish() == protocol.Leftovers()
    assert unfinished(pair.directory / "state") == ()
