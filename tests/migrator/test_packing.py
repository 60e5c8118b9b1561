"""Bulk streams compressed: what is decided about a piece, and that what is packed is what comes out at the relay."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import frames, protocol, zstd
from migrator import packing
from migrator.channel import CHUNK
from migrator.packing import END, LEVELS, Judge, Packed
from tests.migrator.test_channel import Scripted

TEXT = b"".join(b"user%d@example.org " % number for number in range(20000))


def unpacked(stream: bytes) -> bytes:
    """What a relay would make of it."""
    coming = frames.Frames(zstd.find()[1])
    plain = bytearray()
    at = 0
    while at < len(stream):
        room = coming.room()
        count = min(len(room), len(stream) - at)
        room[:count] = stream[at : at + count]
        at += count
        for piece in coming.took(count):
            plain += piece
    assert list(coming.took(0)) == []
    return bytes(plain)


async def packed(*pieces: bytes, always: bool = False, workers: int = 2) -> bytes:
    """What goes over the wire."""
    inner = Scripted()
    channel = Packed(inner, always=always, workers=workers)
    for piece in pieces:
        await channel.write(piece)
    await channel.write_eof()
    await channel.close()
    assert inner.closed
    assert inner.written.endswith(END + b"<end>")
    return inner.written.removesuffix(b"<end>")


class TestTheWholeWay:
    @given(
        st.lists(
            st.one_of(
                st.binary(min_size=1, max_size=3000),
                st.integers(1, CHUNK).map(bytes),
                st.integers(1, CHUNK).map(lambda size: TEXT[:size]),
                st.integers(1, CHUNK).map(os.urandom),
            ),
            max_size=6,
        ),
        st.booleans(),
    )
    async def test_what_goes_in_comes_out_in_order(self, pieces: list[bytes], always: bool) -> None:
        assert unpacked(await packed(*pieces, always=always)) == b"".join(pieces)

    async def test_a_piece_beyond_the_largest_frame_is_cut(self) -> None:
        data = os.urandom(2 * protocol.FRAME_LARGEST + 1)
        assert unpacked(await packed(data)) == data

    async def test_zeros_cost_a_few_bytes(self) -> None:
        assert len(await packed(*[bytes(CHUNK)] * 100)) < 1000

    async def test_text_shrinks_and_noise_hardly_grows(self) -> None:
        assert len(await packed(*[TEXT[:CHUNK]] * 8, always=True)) < CHUNK
        noise = os.urandom(8 * CHUNK)
        assert len(noise) < len(await packed(noise, always=True)) < 1.001 * len(noise)

    async def test_the_formats_numbers_are_the_same_on_both_sides(self) -> None:
        assert frames.LARGEST == protocol.FRAME_LARGEST == zstd.LARGEST
        assert frames.HEAD.format == protocol.FRAME_HEAD


class Slow(Scripted):
    """A channel that takes its time, or fails."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.error = error
        self.go = asyncio.Event()
        self.taken: list[bytes] = []

    async def write(self, data: bytes) -> None:
        await self.go.wait()
        if self.error:
            raise self.error
        self.taken.append(data)


class TestPacked:
    async def test_a_byte_is_not_held_back(self) -> None:
        inner = Scripted()
        channel = Packed(inner)
        await channel.write(b"x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inner.written.endswith(b"x")
        await channel.close()

    async def test_who_writes_waits_for_a_link_that_does_not_keep_up(self) -> None:
        inner = Slow()
        channel = Packed(inner, workers=1)
        writing = asyncio.ensure_future(channel.write(os.urandom(16 * protocol.FRAME_LARGEST)))
        await asyncio.wait({writing}, timeout=0.2)
        assert not writing.done()
        inner.go.set()
        await writing
        await channel.write_eof()
        assert len(inner.taken) == 16 + 1
        await channel.close()

    async def test_a_link_that_fails_is_told_to_who_writes(self) -> None:
        inner = Slow(ConnectionResetError("cut"))
        channel = Packed(inner, workers=1)
        inner.go.set()
        with pytest.raises(ConnectionResetError, match="cut"):
            for _ in range(10):
                await channel.write(bytes(CHUNK))
        with pytest.raises(ConnectionResetError, match="cut"):
            await channel.write_eof()
        await channel.close()

    async def test_closing_stops_who_writes(self) -> None:
        channel = Packed(Slow(), workers=1)
        writing = asyncio.ensure_future(channel.write(os.urandom(16 * protocol.FRAME_LARGEST)))
        await asyncio.sleep(0.05)
        await channel.close()
        with pytest.raises((BrokenPipeError, asyncio.CancelledError)):
            await writing

    async def test_what_is_read_comes_plain(self) -> None:
        channel = Packed(Scripted(b"status"))
        assert await channel.read() == b"status"
        await channel.close()


def judge(link: float, *, always: bool = False, workers: int = 1) -> Judge:
    """One that has seen a link of this rate."""
    one = Judge(always=always, workers=workers)
    for _ in range(200):
        one.sent(1 << 20, (1 << 20) / link)
    return one


class TestJudge:
    def test_what_was_seen_of_the_link_counts(self) -> None:
        assert judge(10e6).link == pytest.approx(10e6, rel=0.01)

    def test_a_slow_link_gets_the_strongest_and_a_faster_one_a_weaker_level(self) -> None:
        levels = [judge(link).level(0.4) for link in (1e6, 50e6, 300e6)]
        assert levels[0] == LEVELS[-1]
        assert None not in levels
        numbers = [LEVELS.index(level) for level in levels if level is not None]
        assert numbers == sorted(numbers, reverse=True)
        assert numbers[0] > numbers[-1]

    def test_a_link_that_is_faster_than_zstd_gets_the_bytes_as_they_are(self) -> None:
        assert judge(5e9).level(0.1) is None
        assert judge(5e9, always=True).level(0.1) is not None

    @pytest.mark.parametrize("always", [True, False])
    def test_what_does_not_shrink_is_left_alone(self, always: bool) -> None:
        assert judge(1e6, always=always).level(0.95) is None

    def test_a_machine_too_slow_or_too_busy_for_zstd_does_without(self) -> None:
        one = judge(100e6)
        before = one.level(0.3)
        assert before is not None
        for _ in range(100):
            one.tried(before, 1 << 20, (1 << 20) / 5e6, 1 << 20)
        assert one.level(0.3) is None

    def test_a_machine_that_is_no_longer_busy_packs_again(self) -> None:
        one = judge(100e6)
        for _ in range(100):
            one.tried(LEVELS[0], 1 << 20, 10.0, 1 << 20)
        assert one.level(0.3) is None
        for _ in range(1000):  # by samples alone
            one.tried(LEVELS[0], 1 << 14, (1 << 14) / 1300e6, 1 << 18)
        assert one.level(0.3) is not None

    def test_what_a_level_makes_of_pieces_counts(self) -> None:
        one = judge(1e6)
        best = one.level(0.3)
        assert best is not None
        for _ in range(100):
            one.packed(best, 0.3, 1 << 20, 1 << 20)
        assert one.level(0.3) not in (best, None)

    @given(st.floats(1e3, 1e11), st.floats(1e-4, 1.0), st.integers(1, 8))
    def test_there_is_always_an_answer(self, link: float, shrink: float, workers: int) -> None:
        assert judge(link, workers=workers).level(shrink) in (None, *LEVELS)


def test_a_frame_has_a_head_of_nine_bytes() -> None:
    assert packing.frame(b"P", 3, b"abc") == b"P\0\0\0\3\0\0\0\3abc"
