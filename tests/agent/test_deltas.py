"""agent/deltas.py: the stream of files, and what is no such stream."""

from __future__ import annotations

import io
from typing import Any

import pytest

from agent import deltas
from agent.deltas import Attribute, Delta, FilesError, Held


def stream(*messages: Delta | Held, end: int | None = None) -> io.BytesIO:
    """A pass, at its start."""
    out = io.BytesIO()
    for message in messages:
        deltas.write(out, message)
    deltas.write_end(out, len(messages) if end is None else end)
    out.seek(0)
    return out


FULL = Delta(
    3, False, 100, 0o4755, 1, 2, -3, 4, (Attribute("user.a", "AA=="), Attribute("user.\udcff", "")), (0, 5, 9, -4)
)


def test_lines_arrive_as_they_were_written() -> None:
    sent = [FULL, Delta(0, gone=True), Delta(1)]
    source = stream(*sent)
    assert list(deltas.messages(source, Delta)) == sent
    assert source.read() == b""
    assert list(FULL.pairs()) == [(0, 5), (9, -4)]
    held = [Held(0, -1), Held(1, 12, 4, 3)]
    assert list(deltas.messages(stream(*held), Held)) == held


def test_two_passes_follow_each_other_on_one_stream() -> None:
    source = io.BytesIO(stream(Delta(1)).read() + stream(Delta(2), Delta(3)).read())
    assert [delta.file for delta in deltas.messages(source, Delta)] == [1]
    assert [delta.file for delta in deltas.messages(source, Delta)] == [2, 3]


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_one_that_ends_early_is_a_broken_stream(size: int) -> None:
    with pytest.raises(ConnectionError):
        list(deltas.messages(io.BytesIO(stream(Delta(1)).read()[:size]), Delta))
    with pytest.raises(ConnectionError):
        deltas.exactly(io.BytesIO(b"x" * size), size + 1)


def test_one_that_miscounts_is_refused() -> None:
    with pytest.raises(FilesError, match="announces 2 files and has 1"):
        list(deltas.messages(stream(Delta(1), end=2), Delta))


@pytest.mark.parametrize(
    "line",
    [b"\n", b"7\n", b"[]\n", b"{}\n", b'{"file":"1"}\n', b'{"file":1,"more":1}\n', b"\xff\n", b"[" * 10**5 + b"\n"],
)
def test_what_is_no_line_of_ours_is_refused(line: bytes) -> None:
    with pytest.raises(FilesError, match="is broken"):
        list(deltas.messages(io.BytesIO(line), Delta))


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "LINE", 100)
    with pytest.raises(FilesError, match="without an end"):
        list(deltas.messages(io.BytesIO(b"{" * 1000), Delta))


@pytest.mark.parametrize("parts", [(1,), (0, 0), (-1, 5), (96, 5), (96, -5), (0, 101)])
def test_parts_that_cannot_be_are_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(FilesError):
        list(Delta(1, size=100, parts=parts).pairs())
