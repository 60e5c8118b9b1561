"""A tree goes on ice and comes back, by the real agents; criu is fake. What a crash leaves of either is settled."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import ice, process, protocol
from agent.protocol import FaultCode
from migrator import ice_recovery
from migrator.peer import Peer
from tests.agent.test_server import OPTIONS, Talk, facts_for_ice, fault
from tests.fake_hosts import Pair, Victim

SAVE = "20260101-000000-abcdef"
RESTORE = "20260101-000001-abcdef"


@pytest.fixture
def directory(pair: Pair) -> Path:
    """Where trees go on ice: not there yet."""
    return pair.directory / "ice"


@pytest.fixture
async def agent(pair: Pair) -> AsyncIterator[Peer]:
    """The host's agent."""
    async with Talking(pair) as peer:
        yield peer


class Talking:
    """An agent for as long as the block lasts."""

    def __init__(self, pair: Pair) -> None:
        self._talk = Talk(pair.source)

    async def __aenter__(self) -> Peer:
        return await self._talk.start()

    async def __aexit__(self, *_: object) -> None:
        await self._talk.close()


async def begin(peer: Peer, victim: Victim, directory: Path, name: str = SAVE, *, track: bool = False) -> None:
    place = protocol.Place(True, 0, str(directory), shared=True, ice=True)
    start = process.start_time(victim.pid)
    await peer.begin(protocol.Begin(name, victim.pid, start, str(directory), OPTIONS, track, place))


async def hold(peer: Peer, victim: Victim, directory: Path) -> None:
    """All of it is on disk, and it is held."""
    await begin(peer, victim, directory)
    await peer.dump(protocol.Dump(1, ""))
    await peer.put_on_ice(facts_for_ice(victim.pid))


async def save(pair: Pair, victim: Victim, directory: Path) -> None:
    async with Talking(pair) as peer:
        await hold(peer, victim, directory)
        await peer.commit()
        assert await peer.finish() == protocol.Leftovers()


def prepare_of(directory: Path, migration: str = RESTORE) -> protocol.Prepare:
    on_disk = os.geteuid() != 0
    return protocol.Prepare(migration, 1, "alpha", 16 << 20, on_disk, OPTIONS, lease=0.0, ice=str(directory / SAVE))


async def recovered(pair: Pair, migration: str) -> str:
    """What `recover` makes of it: its course."""
    async with Talking(pair) as peer:
        known = await peer.journal(protocol.ReadJournal(migration, claim="source"))
        return (await ice_recovery.settle(peer, known)).course.value


async def test_it_goes_on_ice_and_comes_back(pair: Pair, directory: Path) -> None:
    victim = pair.victim(1)
    async with Talking(pair) as peer:
        assert (await peer.look_at_ice(protocol.LookAtIce(str(directory)))).items == ()
        await hold(peer, victim, directory)
        assert len(victim.living) == 2
        assert not ice.sealed(directory / SAVE)
        await peer.commit()
        assert await peer.finish() == protocol.Leftovers()
    assert victim.living == []
    assert ice.sealed(directory / SAVE)
    async with Talking(pair) as peer:
        (item,) = (await peer.look_at_ice(protocol.LookAtIce(str(directory)))).items
        assert (item.id, item.pid, item.wrong) == (SAVE, victim.pid, "")
        manifest = await peer.read_ice(protocol.ReadIce(str(directory), SAVE))
        assert [task.pid for task in manifest.tree.tasks] == victim.pids  # as it was held
        await peer.prepare(prepare_of(directory))
        await peer.restore(protocol.Restore(1))
        assert pair.source.running() == []
        resumed = await peer.resume(protocol.Resume(2))
        assert resumed.pid in pair.source.restored()
        assert await peer.finish() == protocol.Leftovers()
        state = await peer.journal(protocol.ReadJournal(RESTORE))
        assert (state.ice, state.on_ice) == (str(directory / SAVE), True)
        again = await fault(peer.read_ice(protocol.ReadIce(str(directory), SAVE)))
        assert again.code is FaultCode.LOCKED
    assert pair.source.journal(SAVE) == ["BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE"]
    assert pair.source.journal(RESTORE) == ["PREPARED", "HELD", "RESUMING", "RESUMED", "DONE"]


async def test_what_is_given_up_leaves_nothing(pair: Pair, directory: Path, agent: Peer) -> None:
    victim = pair.victim()
    await hold(agent, victim, directory)
    assert await agent.abort(protocol.Abort("test")) == protocol.Leftovers()
    assert victim.runs
    assert not directory.exists()
    assert pair.source.journal(SAVE) == ["BEGIN", "FROZEN", "ABORT", "DONE"]  # nobody has to be told


async def test_a_directory_that_others_may_write_to(pair: Pair, directory: Path, agent: Peer) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(Exception, match="writable for others"):
        await begin(agent, pair.victim(), directory)
    assert list(directory.iterdir()) == []


async def test_only_a_held_tree_is_put_on_ice(pair: Pair, directory: Path, agent: Peer) -> None:
    victim = pair.victim()
    await begin(agent, victim, directory)
    assert (await fault(agent.put_on_ice(facts_for_ice(victim.pid)))).code is FaultCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("death", "course"),
    [
        (("after", "FROZEN"), "undo"),
        (("before", "COMMIT"), "undo"),
        (("after", "COMMIT"), "forward"),
        (("after", "KILLED"), "forward"),
        (("before", "DONE"), "forward"),
    ],
)
async def test_an_agent_that_dies_in_a_save(pair: Pair, directory: Path, death: tuple[str, str], course: str) -> None:
    victim = pair.victim(1)
    pair.source.deaths = [death, None]
    with pytest.raises(Exception, match="agent"):
        await save(pair, victim, directory)
    assert await recovered(pair, SAVE) == course
    assert ice.sealed(directory / SAVE) == (course == "forward")
    assert (directory / SAVE).exists() == (course == "forward")
    assert len(victim.living) == (0 if course == "forward" else 2)
    assert course == "forward" or victim.runs
    assert await recovered(pair, SAVE) == "nothing"


@pytest.mark.parametrize(
    ("death", "course"),
    [
        (("after", "PREPARED"), "undo"),
        (("after", "HELD"), "undo"),
        (("before", "RESUMING"), "undo"),
        (("after", "RESUMING"), "forward"),
        (("after", "RESUMED"), "forward"),
    ],
)
async def test_an_agent_that_dies_in_a_restore(
    pair: Pair, directory: Path, death: tuple[str, str], course: str
) -> None:
    await save(pair, pair.victim(), directory)
    pair.source.deaths = [death, None]
    with pytest.raises(Exception, match="agent"):
        async with Talking(pair) as peer:
            await peer.prepare(prepare_of(directory))
            await peer.restore(protocol.Restore(1))
            await peer.resume(protocol.Resume(1))
    assert await recovered(pair, RESTORE) == course
    assert len(pair.source.restored()) == (course == "forward")
    assert pair.source.running() == pair.source.restored()
    assert ice.sealed(directory / SAVE)
    async with Talking(pair) as peer:
        reading = peer.read_ice(protocol.ReadIce(str(directory), SAVE))
        if course == "forward":
            assert (await fault(reading)).code is FaultCode.LOCKED
        else:
            assert (await reading).id == SAVE


async def test_contact_that_is_lost_in_the_hold_gives_it_up(pair: Pair, directory: Path) -> None:
    """No lease: the images are there for another restore."""
    await save(pair, pair.victim(), directory)
    async with Talking(pair) as peer:
        await peer.prepare(prepare_of(directory))
        await peer.restore(protocol.Restore(1))
    pair.source.wait_for_record(RESTORE, "DONE")
    assert pair.source.journal(RESTORE) == ["PREPARED", "HELD", "ABORT", "DONE"]
    assert pair.source.restored() == []


async def test_two_restores_at_once(pair: Pair, directory: Path, agent: Peer) -> None:
    await save(pair, pair.victim(), directory)
    await agent.prepare(prepare_of(directory))
    async with Talking(pair) as another:
        second = await fault(another.prepare(prepare_of(directory, "20260101-000002-abcdef")))
        assert second.code is FaultCode.LOCKED
    await agent.abort(protocol.Abort("test"))


async def snapshot(pair: Pair, victim: Victim, directory: Path, number: int, *, track: bool = True) -> str:
    """Take one: what it adds to."""
    name = f"20260101-00000{number}-abcdef"
    async with Talking(pair) as peer:
        await begin(peer, victim, directory, name, track=track)
        await peer.dump(protocol.Dump(1, ""))
        await peer.snapshot(facts_for_ice(victim.pid))
    assert pair.source.journal(name) == ["BEGIN", "FROZEN", "ABORT", "DONE"]
    assert ice.sealed(directory / name)
    called = pair.source.calls("dump")[-1].argv
    given = called[called.index("--prev-images-dir") + 1] if "--prev-images-dir" in called else ""
    assert ("--track-mem" in called) == track
    return given


async def test_a_snapshot_adds_to_the_one_before(pair: Pair, directory: Path) -> None:
    """Of the same process, if nobody has looked at what it changes in between."""
    victim = pair.victim(1)
    assert await snapshot(pair, victim, directory, 1) == ""
    assert victim.runs
    assert await snapshot(pair, victim, directory, 2) == "../../20260101-000001-abcdef/1"
    assert await snapshot(pair, victim, directory, 3) == "../../20260101-000002-abcdef/1"
    assert await snapshot(pair, victim, directory, 5, track=False) == ""
    assert await snapshot(pair, victim, directory, 6) == "../../20260101-000005-abcdef/1"
    async with Talking(pair) as peer:  # a migration that is undone
        start = process.start_time(victim.pid)
        await peer.begin(protocol.Begin(RESTORE.replace("1-a", "7-a"), victim.pid, start, "beta", OPTIONS, True))
        await peer.abort(protocol.Abort("test"))
    assert await snapshot(pair, victim, directory, 8) == ""


async def test_a_chain_is_verified_as_a_whole(pair: Pair, directory: Path, agent: Peer) -> None:
    victim = pair.victim()
    for number in (1, 2, 3):
        await snapshot(pair, victim, directory, number)
    newest = protocol.ReadIce(str(directory), "20260101-000003-abcdef")
    running = await fault(agent.read_ice(newest))
    assert (running.code, f"process {victim.pid} lives" in running.message) == (FaultCode.LOCKED, True)
    victim.close()
    assert (await agent.read_ice(newest)).id == newest.id
    first = directory / "20260101-000001-abcdef"
    image = next((first / "1").glob("pages-*.img"))
    image.write_bytes(image.read_bytes() + b"?")
    assert (await fault(agent.read_ice(newest))).code is FaultCode.ICE
    listed = (await agent.look_at_ice(protocol.LookAtIce(str(directory)))).items
    assert [one.parent for one in listed] == ["", first.name, "20260101-000002-abcdef"]
    (first / "manifest").unlink()
    listed = (await agent.look_at_ice(protocol.LookAtIce(str(directory)))).items
    assert listed[1].wrong == f"it adds to {first.name}, which is gone"


async def test_only_a_held_tree_gives_a_snapshot(pair: Pair, directory: Path, agent: Peer) -> None:
    victim = pair.victim()
    await begin(agent, victim, directory)
    assert (await fault(agent.snapshot(facts_for_ice(victim.pid)))).code is FaultCode.BAD_REQUEST
