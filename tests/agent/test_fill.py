"""Pager and warden, as the agent starts them, over images made by hand: a real userfaultfd, and whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from agent import process, protocol
from agent.fill import BrokenRounds, Fill, FillError, NotInstant, PagerGone
from agent.journal import Journal, Record
from agent.protocol import FaultCode
from agent.server import fault_of
from agent.settings import Settings
from agent.target import Target
from agent.warden import SOCKET, STOPPED
from tests import watched
from tests.watched import PAGE, Tree

pytestmark = watched.needs_userfaultfd

PAGES = 1500
LIVES = ["read", "write", "fork", "move", "unmap", "drop", "protect"]


class Place:
    """Where one migration's images and journal would lie."""

    def __init__(self, directory: Path) -> None:
        self.images, self.journal = directory / "images", directory / "journal"
        self.images.mkdir()
        self.journal.mkdir()
        self.trees: list[Tree] = []
        self.fill: Fill

    def tree(self, life: str, seed: int = 0, pages: int = PAGES) -> Tree:
        self.trees.append(Tree(self.images / SOCKET, life, pages, seed))
        return self.trees[-1]

    async def begin(self, pages: int = PAGES) -> None:
        """Pager and warden stand and know both rounds."""
        watched.write_images(self.images, [tree.pid for tree in self.trees], pages)
        self.fill = await Fill.start(self.images, self.journal, [])
        await self.fill.add_round(1)
        await self.fill.add_round(2)
        assert await self.fill.mark() == len(self.trees) * sum(map(bool, map(watched.round_of, range(pages)))) * PAGE

    async def restore(self, tree: Tree) -> None:
        """Until it is held, so to speak: all was told, nothing runs."""
        tree.go()
        await asyncio.to_thread(tree.greeted)

    @property
    def pair(self) -> list[int]:
        """Pager and warden, those that live."""
        found = []
        for pid in process.pids():
            try:
                stat = process.read_stat(pid)
            except process.NoSuchProcess:
                continue
            if stat.sid == self.fill.session and stat.state not in "ZX":
                found.append(pid)
        return found

    @property
    def log(self) -> str:
        return (self.journal / "pager.log").read_text()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    # a unix socket's path is short, so pytest's tmp_path is too long for it
    directory = Path(tempfile.mkdtemp(prefix="m-", dir="/dev/shm"))
    place = Place(directory)
    yield place
    for tree in place.trees:
        tree.close()
    if hasattr(place, "fill"):
        await asyncio.wait_for(place.fill.close(), 20)
        assert place.pair == []
    shutil.rmtree(directory)


@pytest.mark.parametrize("life", LIVES)
async def test_memory_is_right(place: Place, life: str) -> None:
    tree = place.tree(life)
    await place.begin()
    await place.restore(tree)
    tree.run()
    place.fill.resumed()
    filled = await place.fill.done()
    seen = await asyncio.to_thread(tree.result)
    assert seen["bad"] == 0
    assert seen["checked"] >= PAGES // 2
    assert filled.faults >= 1
    assert place.log == ""
    assert not watches(tree.pid)


def watches(pid: int) -> bool:
    """Whether any area of it is watched."""
    flags = [line.split()[1:] for line in Path(f"/proc/{pid}/smaps").read_text().splitlines() if "VmFlags" in line]
    return any("um" in line for line in flags)


async def test_an_idle_tree_is_filled_and_then_left_alone(place: Place) -> None:
    tree = place.tree("idle")
    await place.begin()
    await place.restore(tree)
    assert watches(tree.pid)
    tree.run()
    await asyncio.sleep(0.05)
    assert place.pair, "nothing is filled before RESUMED"
    place.fill.resumed()
    filled = await place.fill.done()
    assert filled.bytes == sum(map(bool, map(watched.round_of, range(PAGES)))) * PAGE
    assert not watches(tree.pid)
    left = [(place.images / str(number) / "pages-1.img").stat().st_blocks * 512 for number in (1, 2)]
    # what a later round brought again is in no piece; and a page was read before the resume, which brought the next one
    kept = sum(watched.round_of(page) == 2 for page in range(PAGES)) + 2
    assert left == [kept * PAGE, 0], "given back behind it"
    tree.run()
    assert (await asyncio.to_thread(tree.result))["bad"] == 0


async def test_faults_are_served_before_the_resume(place: Place) -> None:
    """And nothing of the images is given back: they may be needed once more."""
    tree = place.tree("read")
    await place.begin()
    await place.restore(tree)
    tree.run()
    assert (await asyncio.to_thread(tree.result))["bad"] == 0
    first = (place.images / "1" / "pages-1.img").read_bytes()
    assert first[:PAGE] != bytes(PAGE)
    assert first.count(bytes(PAGE)) == 0
    place.fill.resumed()
    await place.fill.done()


async def test_several_tasks(place: Place) -> None:
    trees = [place.tree(life, seed) for seed, life in enumerate(("read", "drop"))]
    await place.begin()
    for tree in trees:
        await place.restore(tree)
    for tree in trees:
        tree.run()
    place.fill.resumed()
    await place.fill.done()
    assert [(await asyncio.to_thread(tree.result))["bad"] for tree in trees] == [0, 0]


@pytest.mark.parametrize("life", ["leave", "idle"])
async def test_a_task_that_ends_while_its_memory_is_filled(place: Place, life: str) -> None:
    tree = place.tree(life)
    await place.begin()
    await place.restore(tree)
    if life == "idle":
        tree.close()
    tree.run() if life == "leave" else None
    place.fill.resumed()
    await asyncio.wait_for(place.fill.done(), 20)
    assert place.log == ""


# --- whoever dies ----------------------------------------------------------------------------------------------------


async def killed_while(
    place: Place, running: Callable[[], bool], choose: Callable[[list[int]], int], victim: int = 0
) -> int:
    """SIGKILL one of the two again and again, each time both stand; the last one. `victim` is the one before."""
    while running():
        pair = place.pair
        # one that was told to die may not have heard of it yet: killing the other one then would be killing both
        if len(pair) == 2 and victim not in pair and not (place.journal / STOPPED).exists():
            victim = choose(pair)
            with contextlib.suppress(ProcessLookupError):  # it has left meanwhile
                os.kill(victim, signal.SIGKILL)
            await asyncio.sleep(random.uniform(0.002, 0.02))
        await asyncio.sleep(0.002)
    return victim


@pytest.mark.parametrize("victim", ["pager", "warden", "either"])
@pytest.mark.parametrize("life", ["slow", "fork", "move", "drop"])
async def test_killed_again_and_again(place: Place, life: str, victim: str) -> None:
    tree = place.tree(life, seed=7)
    await place.begin()
    warden = place.fill.session
    (pager,) = [pid for pid in place.pair if pid != warden]
    choose: dict[str, Callable[[list[int]], int]] = {
        "pager": lambda pair: next(pid for pid in pair if pid != warden),
        "warden": lambda pair: next(pid for pid in pair if pid != pager),
        "either": random.Random(1).choice,
    }
    await place.restore(tree)
    tree.run()
    job = asyncio.ensure_future(asyncio.to_thread(tree.result))
    # the first one before the rest is filled in, which may take no longer than this process is kept from running
    killed = choose[victim](place.pair)
    os.kill(killed, signal.SIGKILL)
    place.fill.resumed()
    await asyncio.wait_for(killed_while(place, lambda: not job.done(), choose[victim], killed), 30)
    seen = await job
    assert (seen["bad"], place.log) == (0, ""), place.log
    await asyncio.wait_for(place.fill.done(), 20)
    assert not (place.journal / STOPPED).exists()
    assert place.log == ""


# --- what the agent is told ------------------------------------------------------------------------------------------


async def told(tmp_path: Path, *lines: dict[str, object]) -> Fill:
    """The agent's end, of a pair that has said this and then ended."""
    ours, theirs = socket.socketpair()
    fill = Fill(cast(asyncio.subprocess.Process, None), tmp_path)
    fill._reader, fill._writer = await asyncio.open_unix_connection(sock=ours)
    theirs.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    theirs.close()
    return fill


DONE: dict[str, object] = {"done": True, "bytes": 4096, "seconds": 0.5, "faults": 3, "longest": 0.01}


async def test_a_pager_that_dies_of_an_error_leaves_its_successor_what_a_killed_one_does(place: Place) -> None:
    """Here: criu's connection. What the dying interpreter tidied away would be gone from the one descriptor table."""
    tree = place.tree("read")
    await place.begin()
    (pager,) = set(place.pair) - {place.fill.session}
    size = int(Path(f"/proc/{pager}/statm").read_text().split()[0]) * PAGE
    resource.prlimit(pager, resource.RLIMIT_AS, (size, size))  # no room to map the images
    await place.restore(tree)
    tree.run()
    place.fill.resumed()
    await asyncio.wait_for(place.fill.done(), 20)
    assert (await asyncio.to_thread(tree.result))["bad"] == 0
    assert place.log.count("Traceback") == 1, "the first one's, which says what it lacked"
    assert "can't be mapped" in place.log


async def test_a_pager_that_fails_for_now_is_heard_and_waited_for(tmp_path: Path) -> None:
    fill = await told(tmp_path, {"failing": "it dies again and again"}, DONE)
    with pytest.raises(FillError, match="the pager: it dies again and again"):
        await fill.done()
    assert (await fill.done()).bytes == 4096
    await fill.close()
    said: list[str] = []
    fill = await told(tmp_path, {"failing": "one"}, {"failing": "two"}, DONE)
    await fill.whole(said.append, patience=600)
    assert said == ["the pager: one", "the pager: two"]
    await fill.close()


@pytest.mark.parametrize(("torn", "kind"), [(True, NotInstant), (False, BrokenRounds)])
async def test_memory_that_is_too_torn_is_told_from_broken_rounds(
    tmp_path: Path, torn: bool, kind: type[FillError]
) -> None:
    ours, theirs = socket.socketpair()
    fill = Fill(cast(asyncio.subprocess.Process, None), tmp_path)
    fill._reader, fill._writer = await asyncio.open_unix_connection(sock=ours)
    theirs.sendall(json.dumps({"order": 1, "error": "in pieces", "torn": torn}).encode() + b"\n")
    with theirs, pytest.raises(kind, match="in pieces") as caught:
        await fill.add_round(1)
    fault = fault_of(caught.value)
    wanted = (FaultCode.TOO_TORN, True) if torn else (FaultCode.BROKEN_ROUNDS, False)
    assert (fault.code, "--resume eager" in fault.hint) == wanted
    await fill.close()


async def test_when_both_are_gone_the_process_is_not_to_be_trusted(tmp_path: Path) -> None:
    fill = await told(tmp_path)
    with pytest.raises(PagerGone, match="reads as zeros; do not trust the process"):
        await fill.done()
    with pytest.raises(PagerGone, match="reads as zeros; do not trust the process"):
        await fill.whole(print, patience=600)
    await fill.close()


async def test_a_fill_that_stands_still_is_not_waited_for_without_an_end(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fill = Fill(cast(asyncio.subprocess.Process, None), tmp_path)
        fill._reader, fill._writer = await asyncio.open_unix_connection(sock=ours)
        theirs.sendall(json.dumps({"failing": "no memory"}).encode() + b"\n")
        with pytest.raises(FillError, match="no memory"):
            await fill.done()
        with pytest.raises(FillError, match="no memory"):
            await fill.whole(pytest.fail, patience=0.2)
        theirs.sendall(json.dumps(DONE).encode() + b"\n")  # it went on by itself, and may be waited for again
        await fill.whole(pytest.fail, patience=math.inf)
        assert fill.filled is not None and fill.filled.bytes == 4096
        await fill.close()


async def test_what_a_fill_that_stands_still_needs_is_left_over_until_it_has_gone_on(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state", run=tmp_path / "run")
    options = dataclasses.asdict(protocol.CriuOptions())
    journal = Journal.create(
        settings.state, "m-1", "target", peer="alpha", root=4242, boot="", on_disk=True, shared="", options=options
    )
    for record in (Record.HELD, Record.RESUMING, Record.RESUMED):
        journal.write(record)
    images = settings.place("m-1", on_disk=True, directory="")
    images.mkdir(parents=True)
    target = Target.adopt(settings, journal, print)
    ours, theirs = socket.socketpair()
    with theirs:
        fill = target._fill = Fill(cast(asyncio.subprocess.Process, None), tmp_path)
        fill._reader, fill._writer = await asyncio.open_unix_connection(sock=ours)
        theirs.sendall(json.dumps({"failing": "no memory"}).encode() + b"\n")
        left = await target.finish(patience=0.2)
        assert left.items == ("memory that is not filled in yet, and the images that it is in: the pager: no memory",)
        assert images.exists() and not journal.has(Record.DONE)
        theirs.sendall(json.dumps(DONE).encode() + b"\n")
        assert await target.finish() == protocol.Leftovers()
        assert not images.exists() and journal.has(Record.DONE)
