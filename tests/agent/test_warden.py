"""The warden alone: how long it goes on, and that it never leaves a tree to zeros."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import warden
from agent.warden import LOCK, REPLACEMENTS, Pair


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    # a unix socket's path is short, so pytest's tmp_path is too long for it
    directory = Path(tempfile.mkdtemp(prefix="m-"))
    monkeypatch.setattr(warden, "REST", 0.0)
    made = Pair(directory, directory)
    yield made
    made.listener.close()
    os.close(made.lock)
    shutil.rmtree(directory)


def dead_pager() -> int:
    """The pidfd of one that ends at once."""
    pid = os.fork()
    if pid == 0:
        os._exit(1)
    return os.pidfd_open(pid)


def test_a_pager_that_dies_again_and_again_is_tried_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Said once, and with a rest in between: but what was in its way may go."""
    started: list[bool] = []

    def start_pager(_: Pair, *, again: bool) -> int:
        started.append(again)
        if len(started) == 2 * REPLACEMENTS:
            pair.record.finished = 1
        return dead_pager()

    monkeypatch.setattr(warden, "start_pager", start_pager)
    assert pair.guard(dead_pager(), child=True) == 0
    assert started == [True] * 2 * REPLACEMENTS
    assert capfd.readouterr().err.count("dies again and again") == 1
    assert (pair.images / LOCK).exists()


def test_a_warden_never_leaves_on_an_error_of_its_own(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Stays(Exception):
        """Instead of sleeping for ever."""

    def sleep(_: float) -> None:
        raise Stays

    def start_pager(_: Pair, *, again: bool) -> int:
        raise OSError("no room for a process")

    monkeypatch.setattr(warden, "start_pager", start_pager)
    monkeypatch.setattr(warden.time, "sleep", sleep)  # type: ignore[attr-defined]
    with pytest.raises(Stays):
        pair.guard(dead_pager(), child=True)
    said = capfd.readouterr().err
    assert "no room for a process" in said
    assert "the tree is stopped and its memory kept" in said
