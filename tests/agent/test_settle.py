"""Verdicts over journals: what each may do, what it may not, and what becomes of the agents, criu and tasks left."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import journal, process, protocol, settle
from agent.journal import Journal, JournalError, Record
from agent.protocol import Verdict
from agent.settings import Settings
from tests.agent.test_server import ID, Talk, begin_of, prepare_of
from tests.fake_hosts import Pair, Victim, eventually, soon, state_of

ROOT = Path(__file__).parents[2]
SOURCE = {
    "BEGIN": ["BEGIN"],
    "FROZEN": ["BEGIN", "FROZEN"],
    "COMMIT": ["BEGIN", "FROZEN", "COMMIT"],
    "KILLED": ["BEGIN", "FROZEN", "COMMIT", "KILLED"],
    "ABORT": ["BEGIN", "FROZEN", "ABORT"],
    "undone": ["BEGIN", "FROZEN", "ABORT", "DONE"],
    "over": ["BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE"],
    "deposed": ["BEGIN", "FROZEN", "ABORT", "DEPOSED", "KILLED"],
    "deposed, over": ["BEGIN", "FROZEN", "ABORT", "DEPOSED", "KILLED", "DONE"],
}
TARGET = {
    "PREPARED": ["PREPARED"],
    "HELD": ["PREPARED", "HELD"],
    "RESUMING": ["PREPARED", "HELD", "RESUMING"],
    "RESUMED": ["PREPARED", "HELD", "RESUMING", "RESUMED"],
    "ABORT": ["PREPARED", "HELD", "ABORT"],
    "undone": ["PREPARED", "HELD", "ABORT", "DONE"],
    "over": ["PREPARED", "HELD", "RESUMING", "RESUMED", "DONE"],
}
A, K, R, C, D = Verdict.ABORT, Verdict.KILL, Verdict.RESUME, Verdict.CLEAN, Verdict.DEPOSE

# role, state, verdict -> what the journal ends with; everything that is not here is refused and changes nothing.
ALLOWED = {
    ("source", "BEGIN", A): "undone", ("source", "FROZEN", A): "ABORT", ("source", "ABORT", A): "ABORT",
    ("source", "undone", A): "undone", ("source", "undone", C): "undone", ("source", "ABORT", C): "undone",
    ("source", "COMMIT", K): "KILLED", ("source", "KILLED", K): "KILLED", ("source", "over", K): "over",
    ("source", "KILLED", C): "over", ("source", "over", C): "over",
    ("target", "PREPARED", A): "undone", ("target", "HELD", A): "undone", ("target", "ABORT", A): "undone",
    ("target", "undone", A): "undone", ("target", "undone", C): "undone", ("target", "ABORT", C): "undone",
    ("target", "RESUMED", R): "RESUMED", ("target", "RESUMED", C): "over", ("target", "over", C): "over",
    ("target", "over", R): "over",
    ("source", "FROZEN", D): "KILLED", ("source", "COMMIT", D): "KILLED", ("source", "KILLED", D): "KILLED",
    ("source", "over", D): "over", ("source", "ABORT", D): "deposed", ("source", "deposed", D): "deposed",
    ("source", "deposed, over", D): "deposed, over", ("source", "deposed", C): "deposed, over",
    ("source", "deposed, over", C): "deposed, over",
}  # fmt: skip
_STATES = [("source", state) for state in SOURCE] + [("target", state) for state in TARGET]
_ELSEWHERE = {("target", "HELD", R), ("target", "RESUMING", R)}  # they restore: in test_migration
_CASES = [case for case in ((*state, verdict) for state in _STATES for verdict in Verdict) if case not in _ELSEWHERE]


def _way(role: str, state: str) -> list[str]:
    return list((SOURCE if role == "source" else TARGET)[state])


def _write(settings: Settings, role: str, records: list[str], boot: str = "") -> None:
    kept = Journal.create(
        settings.state, ID, role, peer="other", root=1, boot=boot or process.boot_id(), tasks=[], on_disk=False,
        options={**dataclasses.asdict(protocol.CriuOptions()), "extra": []}, agent=[2**22 + 5, 1],
    )  # fmt: skip
    for record in records[1:]:
        kept.write(Record(record), tasks=[], pid=77)
    kept.close()
    settings.images(ID).mkdir(parents=True)
    (settings.images(ID) / "1").mkdir()


def _records(settings: Settings) -> list[str]:
    kept = Journal.load(settings.state, ID)
    found = [record.value for record in kept.records]
    kept.close()
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "state", tmp_path / "run", "no-criu")


@pytest.mark.parametrize(("role", "state", "verdict"), _CASES, ids=lambda case: getattr(case, "value", case))
async def test_what_each_verdict_does_to_each_journal(
    settings: Settings, role: str, state: str, verdict: Verdict
) -> None:
    before = _way(role, state)
    _write(settings, role, before)
    request = protocol.Settle(ID, verdict)
    expected = ALLOWED.get((role, state, verdict))
    if expected is None:
        with pytest.raises(JournalError):
            await settle.settle(settings, request, print)
        assert _records(settings) == before
        assert settings.images(ID).exists()
        return
    settled = await settle.settle(settings, request, print)
    assert settled.records == tuple(_records(settings))
    # undone from the very beginning: neither FROZEN nor HELD was ever written
    after = [*before, "ABORT", "DONE"] if len(before) == 1 else _way(role, expected)
    assert list(settled.records) == after
    over = ("undone", "over", "deposed, over")
    gone = expected in (*over, "ABORT") and state not in over
    assert settings.images(ID).exists() == (not gone)


@pytest.mark.parametrize("state", ["HELD", "RESUMING"])
async def test_a_target_that_has_rebooted(settings: Settings, state: str) -> None:
    """Its images were in memory; and whether a tree that was being resumed ran, nobody can tell."""
    _write(settings, "target", TARGET[state], boot="another")
    settings.images(ID).joinpath("1").rmdir()
    settings.images(ID).rmdir()
    with pytest.raises(JournalError, match="rebooted"):
        await settle.settle(settings, protocol.Settle(ID, R), print)
    assert _records(settings) == TARGET[state]


async def test_a_source_that_has_rebooted_after_commit(settings: Settings) -> None:
    """Another boot id is proof of death: PIDs of now have nothing to do with those of then."""
    _write(settings, "source", SOURCE["FROZEN"], boot="another")
    kept = Journal.load(settings.state, ID)
    kept.write(Record.COMMIT, tasks=[[os.getpid(), process.start_time(os.getpid())]])
    kept.close()
    settled = await settle.settle(settings, protocol.Settle(ID, K), print)
    assert settled.records == tuple(SOURCE["KILLED"])


async def test_a_source_that_has_rebooted_in_the_freeze(settings: Settings) -> None:
    """The tree died with it, and nobody undid anything: the target may go forward. After ABORT it may not."""
    _write(settings, "source", SOURCE["FROZEN"], boot="another")
    settled = await settle.settle(settings, protocol.Settle(ID, K), print)
    assert settled.records == tuple(SOURCE["KILLED"])
    other = Settings(settings.state.with_name("other"), settings.run.with_name("elsewhere"))
    _write(other, "source", SOURCE["ABORT"], boot="another")
    with pytest.raises(JournalError, match="belongs to this host"):
        await settle.settle(other, protocol.Settle(ID, K), print)
    assert (await settle.settle(other, protocol.Settle(ID, A), print)).pid == 0  # it ended with the reboot


def test_reading_journals(settings: Settings) -> None:
    nothing = settle.read_journal(settings, "")
    assert (nothing.role, nothing.records) == ("", ())
    assert settle.read_journal(settings, "never-was").role == ""
    _write(settings, "source", SOURCE["COMMIT"])
    for name in ("", ID):
        found = settle.read_journal(settings, name)
        assert (found.migration, found.role, found.records) == (ID, "source", ("BEGIN", "FROZEN", "COMMIT"))
        assert (found.peer, found.root, found.same_boot, found.images) == ("other", 1, True, True)
        assert (found.agent_alive, found.criu_alive, found.tasks_alive) == (False, False, 0)
    rebooted = Settings(settings.state.with_name("other"), settings.run.with_name("elsewhere"))
    _write(rebooted, "source", SOURCE["COMMIT"], boot="another")
    assert not settle.read_journal(rebooted, ID).same_boot


# --- with agents, criu and tasks that live ---------------------------------------------------------------------------


@pytest.fixture
async def dumped(pair: Pair) -> AsyncIterator[tuple[Talk, Victim]]:
    """A source whose tree is held."""
    victim = pair.victim(1)
    talk = Talk(pair.source)
    peer = await talk.start()
    begun = await peer.begin(begin_of(victim.pid))
    _, writer = await asyncio.open_unix_connection(begun.socket)
    writer.write(b"STREAM pages\n")
    (pair.directory / "victim.fork").touch()  # a child that is born after BEGIN
    eventually(lambda: len(process.tree_pids(victim.pid)) == 3, "the victim forks")
    victim.adopt(process.tree_pids(victim.pid))
    dump = asyncio.ensure_future(peer.dump(protocol.Dump(1, "pages")))
    reader = _page_server(_, writer)
    await asyncio.gather(dump, reader)
    yield talk, victim
    writer.close()
    await talk.close()


async def _page_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    header = await reader.readexactly(8)
    await reader.readexactly(int.from_bytes(header[4:], "little"))
    writer.write(b"\0")


def _hook(pair: Pair, victim: Victim) -> int:
    """The script in which criu waits."""
    criu = pair.source.calls("dump")[0].pid
    (hook,) = set(process.tree_pids(criu)) - {criu, *victim.pids}
    return hook


async def test_while_it_is_held_every_task_has_a_stop_queued(pair: Pair, dumped: tuple[Talk, Victim]) -> None:
    _, victim = dumped
    for pid in victim.pids:
        assert state_of(pid) == "t"
        status = Path(f"/proc/{pid}/status").read_text()
        pending = int(next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd")), 16)
        assert pending >> (signal.SIGSTOP - 1) & 1


async def test_settling_takes_over_from_a_living_agent(pair: Pair, dumped: tuple[Talk, Victim]) -> None:
    _, victim = dumped
    other = Talk(pair.source)
    settled = await (await other.start()).settle(protocol.Settle(ID, A))
    assert settled.records == ("BEGIN", "FROZEN", "ABORT")
    assert settled.pid == victim.pid
    assert not process.alive(*pair.source.agents[0])
    assert victim.runs
    # nothing is owed to the target any more
    assert (await other.peer.settle(protocol.Settle(ID, C))).records == ("BEGIN", "FROZEN", "ABORT", "DONE")
    await other.close()
    assert pair.source.settle_down() == []


async def test_an_agent_that_was_left_stopped_is_not_at_work(pair: Pair, dumped: tuple[Talk, Victim]) -> None:
    """Whoever was to take over from it died over that: `recover` may not wait for it for ever."""
    _, victim = dumped
    other = Talk(pair.source)
    peer = await other.start()
    assert (await peer.journal(protocol.ReadJournal(ID))).agent_alive
    os.kill(pair.source.agents[0][0], signal.SIGSTOP)
    eventually(lambda: state_of(pair.source.agents[0][0]) == "T", "the agent stops")
    assert not (await peer.journal(protocol.ReadJournal(ID))).agent_alive
    assert (await peer.settle(protocol.Settle(ID, A))).records == ("BEGIN", "FROZEN", "ABORT")
    assert victim.runs
    await other.close()
    assert pair.source.settle_down() == []


async def test_a_verdict_that_is_refused_leaves_the_agent_alone(pair: Pair, dumped: tuple[Talk, Victim]) -> None:
    talk, victim = dumped
    other = Talk(pair.source)
    peer = await other.start()
    for verdict in (K, C, R):
        with pytest.raises(Exception, match=r"COMMIT|not over|not for a source"):
            await peer.settle(protocol.Settle(ID, verdict))
    assert all(state_of(pid) == "t" for pid in victim.pids)
    assert (await talk.peer.commit()).tasks == 3
    assert victim.living == []
    await other.close()


async def test_a_tree_that_all_have_left_stopped(pair: Pair, dumped: tuple[Talk, Victim]) -> None:
    """criu, its hook and the agent are dead: the tree stands still, and so do children that BEGIN did not know."""
    _, victim = dumped
    hook = _hook(pair, victim)
    os.kill(pair.source.agents[0][0], signal.SIGSTOP)
    pair.source.kill_criu("dump")
    os.kill(hook, signal.SIGKILL)
    pair.source.kill_agent()
    eventually(lambda: all(state_of(pid) == "T" for pid in victim.pids), "the tree is stopped")
    other = Talk(pair.source)
    settled = await (await other.start()).settle(protocol.Settle(ID, A))
    assert settled.leftovers == ()
    assert victim.runs
    await other.close()
    assert pair.source.settle_down() == []


async def test_a_tree_that_was_committed_and_is_not_dead(pair: Pair, dumped: tuple[Talk, Victim]) -> None:
    _, victim = dumped
    hook = _hook(pair, victim)
    os.kill(pair.source.agents[0][0], signal.SIGSTOP)
    kept = Journal.load(pair.source.state, ID)
    kept.write(Record.COMMIT, tasks=[[pid, process.start_time(pid)] for pid in victim.pids])
    kept.close()
    pair.source.kill_criu("dump")  # first: a criu whose hook dies lets the tree go
    os.kill(hook, signal.SIGKILL)
    other = Talk(pair.source)
    settled = await (await other.start()).settle(protocol.Settle(ID, K))
    assert settled.records == ("BEGIN", "FROZEN", "COMMIT", "KILLED")
    assert victim.living == []
    assert (await other.peer.settle(protocol.Settle(ID, C))).records[-1] == "DONE"
    await other.close()
    assert pair.source.settle_down() == []


async def test_a_prepared_target_is_settled(pair: Pair) -> None:
    victim, talk, other = pair.victim(), Talk(pair.target), Talk(pair.target)
    await (await talk.start()).prepare(prepare_of(victim.pid))
    pair.target.kill_agent()
    settled = await (await other.start()).settle(protocol.Settle(ID, A))
    assert settled == protocol.Settled(("PREPARED", "ABORT", "DONE"), 0)
    await talk.close()
    await other.close()
    assert pair.target.settle_down() == []
    assert journal.unfinished(pair.target.state) == ()
    await soon(lambda: not any(call.alive for call in pair.target.calls()), "the warm restore leaves")


async def test_a_relay_that_has_outlived_its_agent(pair: Pair) -> None:
    """The other host has lost power, and sshd was not told: nobody ends the stream, for whose end criu waits."""
    victim, talk, other = pair.victim(), Talk(pair.target), Talk(pair.target)
    prepared = await (await talk.start()).prepare(prepare_of(victim.pid))
    code = f"import sys; sys.path.append({str(ROOT)!r}); from agent.bulk import relay; relay(*sys.argv[2:])"
    words = [sys.executable, "-IS", "-c", code, "relay", prepared.socket, "pages"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as relay:  # noqa: ASYNC220 - it is small
        await talk.peer.accept(protocol.Accept(1, "pages"))
        await soon(lambda: bool(pair.target.calls("page-server")), "the page server is there")
        pair.target.kill_agent()
        assert relay.poll() is None
        assert pair.target.calls("page-server")[0].alive
        settled = await (await other.start()).settle(protocol.Settle(ID, A))
        assert settled == protocol.Settled(("PREPARED", "ABORT", "DONE"), 0)
        assert relay.wait() == -signal.SIGKILL
    await talk.close()
    await other.close()
    assert pair.target.settle_down() == []


@pytest.mark.parametrize(
    "line",
    [
        '{"record":"BEG', "7", '{"record":7}', '{"record":"LOST"}', '{"record":"criu","pid":"x","start":1}',
        '{"record":"COMMIT","tasks":[[1,"x"]]}', '{"record":"owner","agent":[1]}', '{"record":"RESUMED","pid":true}',
        '{"record":"criu","pid":1}', '{"record":"FROZEN","time":NaN}', '{"record":"FROZEN","time":1e999}',
        '{"record":"criu","pid":1,"start":99999999999999999999}', '{"record":"x","migrate":[1]}',
        '{"record":"lock"}', '{"record":"lock","table":7}', '{"record":"address"}', '{"record":"x","floating":[[1]]}',
        '{"record":"x","floating":[["192.0.2.7","24","eth0"]]}',
    ],
)  # fmt: skip
def test_a_damaged_journal_is_told_and_not_taken_for_none(settings: Settings, line: str) -> None:
    kept = Journal.create(settings.state, "m", "source", peer="b", root=4, boot="x")
    kept.close()
    with kept.path.open("a") as file:
        file.write(f"{line}\n")
    for asked in ("m", ""):
        with pytest.raises(JournalError, match="journal is damaged in line 2"):
            settle.read_journal(settings, asked)


@pytest.mark.parametrize(
    "line",
    [
        '{"record":"BEGIN","role":"source","id":"m","peer":"b","root":4,"boot":"x"}\n{"record":"HELD"}',
        '{"record":"PREPARED","role":"target","id":"m","peer":"b","root":4,"boot":"x"}\n{"record":"FROZEN"}',
        '{"record":"PREPARED","role":"target","id":"m","peer":"b","root":4,"boot":"x"}\n'
        '{"record":"RESUMING","word":"at-will"}',
        '{"record":"FROZEN"}', '{"record":"BEGIN","role":"source","id":"other"}',
        '{"record":"BEGIN","role":"target","id":"m"}', '{"record":"BEGIN","role":"source","id":"m","peer":"b"}',
    ],
)  # fmt: skip
def test_a_journal_without_its_beginning_is_damaged(settings: Settings, line: str) -> None:
    (settings.state / "m").mkdir(parents=True)
    (settings.state / "m" / "journal").write_text(f"{line}\n")
    with pytest.raises(JournalError, match="is damaged"):
        settle.read_journal(settings, "m")
