"""Rates as people write them, and a fake link that is held to one."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.bandwidth import Bucket, Metered, parse_rate
from migrator.channel import CHUNK, pump
from migrator.packing import Packed
from tests.migrator.test_channel import Scripted

MIB = 1 << 20


class TestRate:
    @pytest.mark.parametrize(
        ("text", "rate"),
        [
            ("5000", 5000), ("20K", 20 << 10), ("1.5m", 1.5 * MIB), ("2G", 2 << 30), ("20MiB", 20 * MIB),
            ("20KB", 20_000), ("20mb", 20_000_000), ("1GB", 10**9),
        ],
    )  # fmt: skip
    def test_what_people_write(self, text: str, rate: float) -> None:
        assert parse_rate(text) == rate

    @pytest.mark.parametrize(
        "text",
        ["", "0", "-1", "1023", "0.5K", "M", "1T", "1 M", "1e9", "inf", "nan", "20B", "1Mbit", "1M/s", "\u0661M"],
    )
    def test_what_is_none(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"is no rate|is too slow"):
            parse_rate(text)

    @given(st.text(max_size=12))
    def test_nothing_else_comes_out(self, text: str) -> None:
        try:
            assert parse_rate(text) >= 1024
        except ValueError:
            pass


class Link(Scripted):
    """Takes everything at once, and notes when."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.began = asyncio.get_running_loop().time()
        self.seconds = 0.0

    async def write(self, data: bytes) -> None:
        self.taken += len(data)
        self.seconds = asyncio.get_running_loop().time() - self.began


async def sent(rate: float, pieces: list[bytes], *, streams: int = 1) -> list[float]:
    """Bytes a second that a link saw while these pieces went over it, all streams together; and the bytes counted."""
    bucket, wire = Bucket(rate), [0]

    def on_wire(size: int) -> None:
        wire[0] += size

    links = [Link() for _ in range(streams)]
    channels = [Packed(Metered(link, bucket, on_wire)) for link in links]
    await asyncio.gather(*(pump(Scripted(*pieces), channel, lambda size: None) for channel in channels))
    for channel in channels:
        await channel.close()
    total = sum(link.taken for link in links)
    assert wire[0] == total
    return [total / max(link.seconds for link in links), total]


@pytest.mark.parametrize("rate", [300_000, 4 * MIB, 40 * MIB])
@pytest.mark.parametrize("streams", [1, 2])
async def test_a_link_is_held_to_the_rate(rate: float, streams: int) -> None:
    size = int(rate * 1.5 / streams)
    pieces = [os.urandom(min(CHUNK, size - at)) for at in range(0, size, CHUNK)]
    seen, total = await sent(rate, pieces, streams=streams)
    assert total >= size * streams
    # what may go at once beforehand counts as well, since it is no more than its share of these seconds
    assert rate * 0.95 < seen < rate * 1.05


async def test_it_is_the_bytes_on_the_wire_that_count() -> None:
    plain = [(b"the same again " * CHUNK)[:CHUNK]] * 80  # 20 MiB
    _, total = await sent(MIB, plain)
    assert total < MIB


async def test_bursts_of_small_pieces_are_held_as_well() -> None:
    seen, _ = await sent(100_000, [os.urandom(50)] * 2500)
    assert 95_000 < seen < 105_000


async def test_lifting_it_lets_everything_go_at_once() -> None:
    bucket, link = Bucket(10_000), Link()
    writing = asyncio.ensure_future(Metered(link, bucket, lambda size: None).write(bytes(10 * MIB)))
    await asyncio.wait({writing}, timeout=0.3)
    assert not writing.done()
    assert link.taken < 10_000
    bucket.lift()
    await asyncio.wait_for(writing, 5)
    assert link.taken == 10 * MIB


async def test_an_idle_link_saves_nothing_up() -> None:
    bucket, link = Bucket(MIB), Link()
    channel = Metered(link, bucket, lambda size: None)
    await channel.write(bytes(1000))
    await asyncio.sleep(0.5)
    start = asyncio.get_running_loop().time()
    await channel.write(bytes(MIB // 2))
    assert asyncio.get_running_loop().time() - start > 0.43


async def test_no_limit_is_no_wait() -> None:
    seen, _ = await sent(0, [os.urandom(CHUNK)] * 40)
    assert seen > 50 * MIB
