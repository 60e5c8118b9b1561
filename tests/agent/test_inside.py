"""What /proc says of a tree in a namespace of ours, from outside."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import inside, process
from agent.init import MARK
from agent.protocol import Numbers

INIT = b"/usr/bin/python3\0-IS\0-\0" + MARK.encode() + b"\x0020010\0"
PROC = {
    "/proc/700/status": b"PPid:\t1\nNSpid:\t700\n",
    "/proc/800/status": b"PPid:\t700\nNSpid:\t800\t1\n",
    "/proc/812/status": b"PPid:\t800\nNSpid:\t812\t20010\nNSpgid:\t812\t20010\nNSsid:\t640\t0\n",
    "/proc/812/task/812/status": b"NSpid:\t812\t20010\n",
    "/proc/812/task/814/status": b"NSpid:\t814\t20012\n",
    "/proc/813/status": b"PPid:\t812\nNSpid:\t813\t20011\n",
}


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A host with a tree, 812 and 813, below the first process, 800, of a namespace."""

    def be(command: bytes = INIT, programs: tuple[str, ...] = ("nsenter",)) -> None:
        files = {**PROC, "/proc/800/cmdline": command}
        monkeypatch.setattr(inside, "_read", lambda path: files.get(path, b""))
        names = {800: "pid:[2]", 812: "pid:[2]", 813: "pid:[2]"}
        monkeypatch.setattr(inside, "namespace", lambda pid, kind: names.get(pid, "pid:[1]"))
        monkeypatch.setattr(inside, "same_namespace", lambda pid, kind: names.get(pid, "pid:[1]") == "pid:[1]")
        monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)

    return be


def test_a_tree_below_our_init_lives_in_its_namespace(proc: Callable[..., None]) -> None:
    proc()
    assert [inside.home_of(pid) for pid in (812, 813)] == [800, 800]
    assert [inside.home_of(pid) for pid in (700, 800)] == [0, 0], "neither the host nor the init itself"


@pytest.mark.parametrize(
    ("command", "programs"), [(b"/sbin/init\0", ("nsenter",)), (b"sh\0-c\0" + MARK.encode() + b"x\0", ("nsenter",)),
                              (INIT, ())]
)  # fmt: skip
def test_a_namespace_of_others_and_one_that_cannot_be_entered_is_no_home(
    proc: Callable[..., None], command: bytes, programs: tuple[str, ...]
) -> None:
    proc(command, programs)
    assert inside.home_of(812) == 0


def test_numbers_are_the_innermost(proc: Callable[..., None]) -> None:
    proc()
    task = process.task_facts(os.getpid())
    found = inside.numbers(dataclasses.replace(task, pid=812, tids=(812, 814, 815)))
    assert found == Numbers(pid=20010, pgid=20010, sid=0, tids=(20010, 20012)), "a thread that has ended has none"
    home = inside.Home(800)
    assert [home.number(pid) for pid in (812, 813, 999)] == [20010, 20011, 999]
    assert home.way == ["nsenter", "-t", "800", "-m", "-p"]
    assert home.init == (800,)


def test_at_home_everything_is_as_it_is(tmp_path: Path) -> None:
    home = inside.Home.of(os.getpid())
    assert (home.init, home.way, home.number(os.getpid())) == ((), [], os.getpid())
    with home.view(tmp_path) as seen:
        assert seen == (tmp_path, ())


def test_a_directory_is_seen_by_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    with inside.Home(800).view(tmp_path) as (path, descriptors):
        assert os.listdir(path) == ["image"]
        assert path.name == str(descriptors[0])
    assert not path.exists()


def test_only_pid_and_mount_may_be_those_of_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "namespace", lambda pid, kind: f"{kind}:{'ours' if pid == 'self' else 'new'}")
    odd = {kind for kind in ("mnt", "pid", "net", "user") if inside.own_namespace(812, kind, 800)}
    assert odd == {"net", "user"}
    assert inside.own_namespace(812, "pid", 0)
