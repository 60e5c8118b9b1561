"""The target's half of an instant resume: damaged rounds and a lost pager end in one clear fault, then in nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import process, protocol
from agent.protocol import FaultCode
from migrator.peer import Peer
from tests import fake_images
from tests.agent.test_server import ID, Talk, fault, prepare_of
from tests.agent.test_target import archive, receive
from tests.fake_hosts import Pair, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a pager fills the trees of others: that takes root")

BASE = 0x7F0000000000


@pytest.fixture
async def target(pair: Pair) -> AsyncIterator[Peer]:
    """A target's agent with an instant resume prepared, and a page server that stands."""
    talk = Talk(pair.target)
    peer = await talk.start()
    yield peer
    await talk.close()


async def prepared(target: Peer) -> protocol.Prepared:
    return await target.prepare(dataclasses.replace(prepare_of(4242), instant=True))


async def first_round(target: Peer, there: protocol.Prepared, pagemap: bytes) -> None:
    """A round of one page, with this map."""
    _, writer = await asyncio.open_unix_connection(there.socket)
    writer.write(b"STREAM pages\n")
    await target.accept(protocol.Accept(1, "pages"))
    (Path(there.images) / "1" / "pagemap-10.img").write_bytes(pagemap)
    writer.write(b"PAGE" + (4096).to_bytes(4, "little") + b"x" * 4096)
    try:
        await target.accept_done(protocol.AcceptDone(1))
    finally:
        writer.close()


async def nothing_is_left(target: Peer, pair: Pair) -> None:
    assert await target.abort(protocol.Abort("test")) == protocol.Leftovers()
    assert pair.target.journal(ID) == ["PREPARED", "ABORT", "DONE"]
    assert list(pair.target.run.rglob("*")) == []
    assert pair.target.restored() == []


WHOLE = fake_images.pagemap([(BASE, 1, fake_images.PRESENT)])


@pytest.mark.parametrize(
    ("pagemap", "said"),
    [
        (WHOLE[:-1], "1/pagemap-10.img is truncated"),
        (b"", "1/pagemap-10.img is truncated"),
        (fake_images.pagemap([(BASE, 2, fake_images.PRESENT)]), "round 1 holds 4096 bytes of pages, its map says 8192"),
        (
            fake_images.pagemap([(BASE, 1, fake_images.PRESENT), (BASE + 4096, 1, fake_images.PARENT)]),
            f"round 1 expects a page at {BASE + 4096:#x} in an earlier round: none has it",
        ),
        (
            fake_images.pagemap([(BASE, 1 << 60, fake_images.PRESENT)]),
            f"1/pagemap-10.img has a run of {1 << 60} pages at {BASE:#x}, which cannot be there",
        ),
    ],
    ids=["map cut", "map empty", "pages cut", "hole", "absurd"],
)
async def test_a_damaged_round(target: Peer, pair: Pair, pagemap: bytes, said: str) -> None:
    there = await prepared(target)
    failed = await fault(first_round(target, there, pagemap))
    assert (failed.code, failed.message) == (FaultCode.BROKEN_ROUNDS, said)
    await nothing_is_left(target, pair)


async def test_an_image_of_areas_that_is_missing(target: Peer, pair: Pair) -> None:
    there = await prepared(target)
    await first_round(target, there, WHOLE)
    _, writer = await asyncio.open_unix_connection(there.socket)
    writer.write(b"STREAM images\n" + archive(1))
    await target.receive_images(protocol.ReceiveImages(1, "images"))
    writer.close()
    failed = await fault(target.restore(protocol.Restore(1)))
    assert (failed.code, failed.message) == (FaultCode.BROKEN_ROUNDS, "1/mm-10.img is missing")
    await nothing_is_left(target, pair)


def pagers(pair: Pair) -> list[int]:
    """Pager and warden of this host."""
    found = []
    for pid in process.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pager" in words and any(word.startswith(os.fsencode(pair.target.directory)) for word in words):
            found.append(pid)
    return found


async def test_pager_and_warden_lost_before_commit(target: Peer, pair: Pair) -> None:
    there = await prepared(target)
    eventually(lambda: len(pagers(pair)) == 2, "pager and warden stand")
    both = pagers(pair)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: neither may replace the other in between
        for pid in both:
            os.kill(pid, number)
    failed = await fault(first_round(target, there, WHOLE))
    assert failed.code is FaultCode.CRIU
    assert "the pager is gone" in failed.message
    await nothing_is_left(target, pair)


async def test_an_instant_resume_without_lazy_memory(target: Peer, pair: Pair) -> None:
    await receive(target, await prepared(target))
    await target.restore(protocol.Restore(1))
    await target.resume(protocol.Resume(1))
    assert (await target.fill()).bytes == 0
    assert pagers(pair) == []
    assert await target.finish() == protocol.Leftovers()
    assert pair.target.running() == pair.target.restored()
