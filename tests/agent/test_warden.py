"""The warden alone: how long it goes on, and that it never leaves a tree to zeros."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import pagemap, warden
from agent.pagemap import PAGE
from agent.pager import Pager
from agent.warden import LOCK, REPLACEMENTS, Life, Pair
from tests import fake_images


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


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The agent's end of the control socket."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(warden, "_CONTROL", theirs.fileno())
    with ours, theirs:
        yield ours


def heard(agent: socket.socket) -> list[str]:
    """What the agent was told of failures."""
    agent.setblocking(False)
    try:
        return [json.loads(line)["failing"] for line in agent.recv(1 << 16).splitlines()]
    except BlockingIOError:
        return []


def test_a_pager_that_dies_again_and_again_is_tried_on(
    pair: Pair, agent: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
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
    assert heard(agent) == ["it dies again and again; the process is stopped, and it is tried every 0 s"]
    assert (pair.images / LOCK).exists()


def test_a_host_without_room_for_a_process_is_asked_again(
    pair: Pair, agent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork fails, or the pager's own of a new warden: the tree stays stopped, and it is tried until it succeeds."""
    tries: list[int] = []

    def fork_sharing() -> int:
        tries.append(len(os.listdir("/proc/self/fd")))
        if len(tries) < 4:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        pair.record.finished = 1
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return pid

    monkeypatch.setattr(warden, "fork_sharing", fork_sharing)
    assert pair.guard(dead_pager(), child=True) == 0
    assert len(tries) == 4
    assert len(set(tries)) == 1, "a failed try leaves a descriptor open"
    (said,) = heard(agent)
    assert said.startswith("no process can be started (Resource temporarily unavailable); the moved one is stopped")


def test_a_warden_never_leaves_on_an_error_of_its_own(
    pair: Pair, agent: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Stays(Exception):
        """Instead of sleeping for ever."""

    def sleep(_: float) -> None:
        raise Stays

    def start_pager(_: Pair, *, again: bool) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(warden, "start_pager", start_pager)
    monkeypatch.setattr(warden.time, "sleep", sleep)  # type: ignore[attr-defined]
    with pytest.raises(Stays):
        pair.guard(dead_pager(), child=True)
    said = capfd.readouterr().err
    assert "a bug" in said
    assert heard(agent) == ["its warden failed; the process is stopped, and nobody fills its memory"]


def test_a_host_without_memory_for_long_is_told_of_once(
    pair: Pair, agent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(pair, os.pidfd_open(os.getpid()), again=False)
    short = "this host has no memory for what is still to come; the process waits wherever it needs that"
    monkeypatch.setattr(Pager, "short_of_memory", True)
    life._look_for_shortage()
    life._look_for_shortage()
    assert heard(agent) == [], "it may pass"
    monkeypatch.setattr(warden, "SHORTAGE", 0.0)
    life._look_for_shortage()
    life._look_for_shortage()
    assert heard(agent) == [short]
    monkeypatch.setattr(Pager, "short_of_memory", False)
    life._look_for_shortage()
    monkeypatch.setattr(Pager, "short_of_memory", True)
    life._look_for_shortage()
    life._look_for_shortage()
    assert heard(agent) == [short], "the next time"


def test_memory_that_is_too_torn_is_said_to_be_that(
    pair: Pair, agent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(pair, os.pidfd_open(os.getpid()), again=False)
    life._control = socket.socket(fileno=os.dup(warden._CONTROL))
    for pieces, torn in ((3, True), (4, False)):
        monkeypatch.setattr(pagemap, "MOST_PIECES", pieces)
        fake_images.write_round(
            pair.images, 1, {10: [(2 * page * PAGE, 1, fake_images.PRESENT) for page in range(1, 5)]}
        )
        life._obey({"order": 1, "round": 1})
        answer = json.loads(agent.recv(1 << 16))
        assert (answer.get("torn", False), "error" in answer) == (torn, torn)
        shutil.rmtree(pair.images / "1")
    life._control.close()
