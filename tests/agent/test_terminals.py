"""Which terminals a tree is attached to, and under which names criu will meet them."""

from __future__ import annotations

import os
import stat

from agent import terminals
from agent.descriptors import Holdings, Opened


def opened(link: str, major: int, minor: int, fd: int = 0, master: int | None = None) -> Opened:
    """A descriptor of a process that is not there, on device 0:26."""
    numbers = (stat.S_IFCHR | 0o600, 1, 26, 1, 0, 0, 0, 0, 0, 0)
    status = os.stat_result(numbers, {"st_rdev": os.makedev(major, minor)})
    return Opened(1 << 22, fd, link, status, True, (), master)


def of(*held: Opened) -> list[terminals.Outside]:
    """What is found among these."""
    holdings = Holdings()
    holdings.opened += held
    return terminals.outside(holdings)


def test_one_terminal_however_many_descriptors() -> None:
    (one,) = of(*(opened("/dev/pts/3", 136, 3, number) for number in (0, 1, 2)))
    assert one.facts.path == "/dev/pts/3"
    assert "tty[8803:1a]" in one.facts.keys
    assert "136:3" in one.words


def test_it_may_be_opened_by_its_other_name_later() -> None:
    (one,) = of(opened("/dev/pts/3", 136, 3))
    assert f"tty[500:{os.stat('/dev/tty').st_dev:x}]" in one.facts.keys


def test_two_terminals_are_two() -> None:
    assert [one.path for one in of(opened("/dev/pts/3", 136, 3), opened("/dev/tty1", 4, 1))] == [
        "/dev/pts/3", "/dev/tty1",
    ]  # fmt: skip


def test_a_pty_whose_master_is_held_is_none_and_takes_the_other_name_with_it() -> None:
    held = (opened("/dev/ptmx", 5, 2, 3, 300), opened("/dev/pts/300", 137, 44), opened("/dev/pts/3", 136, 3))
    (one,) = of(*held)
    assert one.facts.keys == ("tty[8803:1a]",)


def test_what_is_no_terminal() -> None:
    assert of(opened("/dev/null", 1, 3), opened("/dev/ptmx", 5, 2), opened("/dev/ttyS0", 4, 64)) == []
