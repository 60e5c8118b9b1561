"""A packed stream as it is taken apart: however its bytes come, and whatever is wrong with them."""

from __future__ import annotations

import struct
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent import zstd
from agent.frames import HEAD, LARGEST, BadFrames, Frames

UNPACK = zstd.find()[1]
PACKER = zstandard.ZstdCompressor(level=1, write_checksum=True)
END = HEAD.pack(b".", 0, 0)


def plain(data: bytes) -> bytes:
    return HEAD.pack(b"P", len(data), len(data)) + data


def squeezed(data: bytes) -> bytes:
    body = PACKER.compress(data)
    return HEAD.pack(b"Z", len(data), len(body)) + body


def zeros(size: int) -> bytes:
    return HEAD.pack(b"0", size, 0)


def fed(stream: bytes, step: int = 1 << 16, end: bool = True) -> bytes:
    """What comes out when it comes in such pieces."""
    coming = Frames(UNPACK)
    out = bytearray()
    at = 0
    while at < len(stream):
        room = coming.room()
        count = min(step, len(room), len(stream) - at)
        assert count > 0
        room[:count] = stream[at : at + count]
        at += count
        for piece in coming.took(count):
            out += piece
    if end:
        out += b"".join(coming.took(0))
    return bytes(out)


@given(
    st.lists(st.tuples(st.sampled_from([plain, squeezed]), st.binary(min_size=1, max_size=300)), max_size=8),
    st.integers(1, 400),
)
def test_frames_are_found_however_bytes_come(pieces: list[tuple[object, bytes]], step: int) -> None:
    stream = b"".join((squeezed if make is squeezed and len(squeezed(data)) <= len(data) + 9 else plain)(data)
                      for make, data in pieces)  # fmt: skip
    assert fed(stream + END, step) == b"".join(data for _, data in pieces)


def test_the_largest_frames_of_each_kind() -> None:
    text = (b"memory " * LARGEST)[:LARGEST]
    stream = plain(text) + squeezed(text) + zeros(LARGEST) + plain(text) + END
    assert fed(stream, 100_000) == text + text + bytes(LARGEST) + text


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", "ends in the middle"),
        (plain(b"abc"), "ends in the middle"),
        (plain(b"abc")[:-1], "ends in the middle"),
        (END[:-1], "ends in the middle"),
        (END + b"x", "follows its end"),
        (END + END, "follows its end"),
        (b"STREAM pages\n", "no known kind"),
        (HEAD.pack(b"P", LARGEST + 1, LARGEST + 1), "absurd size"),
        (HEAD.pack(b"P", 5, 4) + b"abcd", "absurd size"),
        (HEAD.pack(b"P", 0, 0), "absurd size"),
        (HEAD.pack(b"Z", 100, 101), "absurd size"),
        (HEAD.pack(b"Z", 100, 0), "absurd size"),
        (HEAD.pack(b"Z", 2**32 - 1, 9), "absurd size"),
        (HEAD.pack(b"0", LARGEST + 1, 0), "absurd size"),
        (HEAD.pack(b"0", 9, 1) + b"x", "absurd size"),
        (HEAD.pack(b".", 1, 0), "absurd size"),
        (HEAD.pack(b".", 0, 1) + b"x", "absurd size"),
        (HEAD.pack(b"Z", 100, 9) + b"no frames", "damaged"),
    ],
)
def test_what_is_no_stream_is_told(stream: bytes, why: str) -> None:
    with pytest.raises(BadFrames, match=why):
        fed(stream)


@given(st.binary(max_size=400))
def test_anything_is_told_or_taken(stream: bytes) -> None:
    try:
        fed(stream)
    except BadFrames:
        pass


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_in_a_packed_body_is_told(where: int, change: int) -> None:
    data = b"".join(struct.pack("<I", zlib.crc32(b"%d" % number)) + b"same" for number in range(400))
    stream = bytearray(squeezed(data))
    at = HEAD.size + where % (len(stream) - HEAD.size)
    stream[at] ^= change
    try:
        assert fed(bytes(stream) + END) == data  # reserved and unused bits carry nothing
    except BadFrames as error:
        assert "damaged" in str(error)


def test_without_zstd_plain_frames_pass_and_packed_ones_are_told() -> None:
    coming = Frames(None)
    for stream in (plain(b"abc"), squeezed(bytes(4096))):
        coming.room()[: len(stream)] = stream
        if stream.startswith(b"P"):
            assert [bytes(piece) for piece in coming.took(len(stream))] == [b"abc"]
        else:
            with pytest.raises(BadFrames, match="there is no zstd here"):
                list(coming.took(len(stream)))
