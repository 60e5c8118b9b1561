"""One life of a pager, in this process: what the kernel may answer, and what is left to a successor."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import userfault
from agent.pager import Pager
from agent.record import MESSAGE, Record
from tests import watched
from tests.watched import PAGE, Tree

pytestmark = watched.needs_userfaultfd

PAGES = 700


class Life:
    """A pager that serves in a thread of its own, and a tree that it serves."""

    def __init__(self, directory: Path, life: str) -> None:
        path = directory / "lazy-pages.socket"
        self.record = Record()
        self.tree = Tree(path, life, PAGES)
        watched.write_images(directory, [self.tree.pid], PAGES)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.pager = Pager(directory, self.record, self.listener)
        for number in (1, 2):
            self.pager.add_round(number)
        self.pager.mark()
        self.pager.listen()
        self._told, self._tell = os.pipe()
        self.pager.watch(self._told)
        self.stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.tree.go()
        self.tree.greeted()

    def _serve(self) -> None:
        while not self.stopping:
            if self.pager.serve(self._told):
                os.read(self._told, 1)

    def resume(self) -> None:
        """RESUMED."""
        self.record.punching = 1
        self.record.filling = 1
        os.write(self._tell, b".")

    def until_whole(self) -> None:
        """Wait until memory is."""
        end = time.monotonic() + 20
        while not self.pager.whole:
            assert time.monotonic() < end, "never whole"
            time.sleep(0.005)

    def close(self) -> None:
        self.stopping = True
        os.write(self._tell, b".")
        self._thread.join()
        self.tree.close()
        self.pager.leave()
        self.listener.close()
        for descriptor in (self._told, self._tell):
            os.close(descriptor)


@pytest.fixture
def begin() -> Iterator[Callable[[str], Life]]:
    directory = Path(tempfile.mkdtemp(prefix="m-", dir="/dev/shm"))
    made: list[Life] = []

    def start(life: str) -> Life:
        made.append(Life(directory, life))
        return made[0]

    yield start
    for life in made:
        life.close()
    shutil.rmtree(directory)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int) -> list[int]:
    """Let an ioctl fail so often, from now on; what is left of that."""
    left = [times]
    real = getattr(userfault, name)

    def act(*words: int) -> None:
        if left[0]:
            left[0] -= 1
            raise error
        real(*words)

    monkeypatch.setattr(userfault, name, act)
    return left


@pytest.mark.parametrize("name", ["copy", "zero"])
def test_a_host_out_of_memory_is_waited_for(
    begin: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Who needs the page waits; it is never a zero, and the pager goes on hearing."""
    life = begin("read")
    left = failing(monkeypatch, name, OSError(errno.ENOMEM, "Cannot allocate memory"), 5)
    life.tree.run()
    life.resume()
    life.until_whole()
    assert life.tree.result()["bad"] == 0
    assert left == [0]


def test_out_of_memory_for_long_leaves_the_tree_waiting(
    begin: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin("read")
    left = failing(monkeypatch, "copy", OSError(errno.ENOMEM, "Cannot allocate memory"), 10**9)
    life.tree.run()
    life.resume()
    time.sleep(0.4)
    assert not life.pager.whole
    tried = 10**9 - left[0]
    assert 0 < tried < 100, "it does not spin"
    left[0] = 0
    life.until_whole()
    assert life.tree.result()["bad"] == 0


@pytest.mark.parametrize("life", ["read", "drop", "move"])
def test_a_busy_address_space_is_tried_again(
    begin: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    served = begin(life)
    left = failing(monkeypatch, "copy", userfault.Busy(0), 40)
    served.tree.run()
    served.resume()
    served.until_whole()
    assert served.tree.result()["bad"] == 0
    assert left == [0]


def test_an_area_that_is_missing_once_is_looked_for_again(
    begin: Callable[[str], Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is being moved the kernel may not find it, and its event is still to come."""
    life = begin("read")
    real, seen = userfault.copy, set[int]()

    def copy(descriptor: int, to: int, source: int, length: int) -> None:
        if length == PAGE and to not in seen:
            seen.add(to)
            raise userfault.Unmapped(0)
        real(descriptor, to, source, length)

    monkeypatch.setattr(userfault, "copy", copy)
    life.tree.run()
    life.resume()
    life.until_whole()
    assert life.tree.result()["bad"] == 0
    assert len(seen) > 100


def test_events_that_change_nothing_take_no_room(begin: Callable[[str], Life]) -> None:
    """Once memory is in, a tree may give back as much as it likes."""
    life = begin("drop")
    life.resume()
    life.until_whole()
    used = life.record.used
    life.tree.run()
    assert life.tree.result()["bad"] == 0
    assert life.record.used == used


def test_with_a_gap_in_what_was_copied_they_all_count(begin: Callable[[str], Life]) -> None:
    life = begin("drop")
    life.resume()
    life.until_whole()
    life.record.gaps = 1
    used = life.record.used
    life.tree.run()
    assert life.tree.result()["bad"] == 0
    assert life.record.used == used + 60
    assert [kind for kind, *_ in life.record.past][-60:] == [MESSAGE] * 60
