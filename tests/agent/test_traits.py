"""agent/traits.py: on real children, and on core images made by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import images, process, traits
from agent.descriptors import opened
from agent.protocol import Peculiarity
from tests.children import child
from tests.fake_criu import framed, message, varint
from tests.fuzz.limits import less_memory, less_time

BEST_EFFORT_6 = 2 << 13 | 6
UNUSUAL = """
import ctypes, threading
libc = ctypes.CDLL(None)
ioprio_set = {"x86_64": 251, "aarch64": 30}[os.uname().machine]
assert libc.syscall(ioprio_set, 1, 0, 2 << 13 | 6) == 0
libc.personality(0x0040000)
open("/proc/self/coredump_filter", "w").write("0x7f")
semaphore, plain = os.eventfd(3, os.EFD_SEMAPHORE), os.eventfd(3)
ready()
"""


@pytest.fixture
def unusual(tmp_path: Path) -> Iterator[int]:
    """A process of its own ways."""
    (tmp_path / "child").mkdir()
    with child(UNUSUAL, tmp_path / "child") as pid:
        yield pid


@pytest.mark.parametrize(("text", "numbers"), [
    ("0", {0}), ("0-3,8\n", {0, 1, 2, 3, 8}), ("1,3,5-6", {1, 3, 5, 6}), ("", set()), ("none", set()),
])  # fmt: skip
def test_lists_of_processors(text: str, numbers: set[int]) -> None:
    assert traits.cpus(text) == numbers
    if numbers:
        assert traits.cpu_list(numbers) == text.strip()


def test_this_host_knows_its_processors() -> None:
    assert traits.cpus(traits.online()) >= os.sched_getaffinity(0)


def test_nothing_is_written_of_a_process_like_any_other(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        os.sched_setaffinity(pid, range(os.cpu_count() or 1))
        traits.carry(tmp_path, process.tasks_of(pid))
    assert not (tmp_path / traits.FILE).exists()
    assert traits.bring_back(tmp_path, [os.getpid()]) == ()


def test_what_was_carried_comes_back(tmp_path: Path, unusual: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traits, "online", lambda: "0-9999")  # so that whoever may run on all of ours is bound, too
    bound = {min(os.sched_getaffinity(unusual))}
    before = os.sched_getaffinity(unusual)
    os.sched_setaffinity(unusual, bound)
    traits.carry(tmp_path, process.tasks_of(unusual))
    carried = json.loads((tmp_path / traits.FILE).read_text())
    assert carried["filters"] == {str(unusual): "0000007f"}
    thread = carried["threads"][str(unusual)]
    assert (thread["cpus"], thread["io"]) == (traits.cpu_list(bound), BEST_EFFORT_6)

    os.sched_setaffinity(unusual, before)
    Path(f"/proc/{unusual}/coredump_filter").write_text("0x33")
    traits._set_ioprio(unusual, 2 << 13 | 1)
    assert traits.bring_back(tmp_path, [unusual, 2**22 + 7]) == ()
    assert os.sched_getaffinity(unusual) == bound
    assert traits.of_thread(unusual, frozenset(bound))["io"] == BEST_EFFORT_6
    assert Path(f"/proc/{unusual}/coredump_filter").read_text() == "0000007f\n"


def test_processors_that_are_not_here_are_left_out(
    tmp_path: Path, unusual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = min(os.sched_getaffinity(unusual))
    (tmp_path / traits.FILE).write_text(json.dumps({"threads": {unusual: {"cpus": f"{first},9998"}}, "filters": {}}))
    assert traits.bring_back(tmp_path, [unusual]) == ()
    assert os.sched_getaffinity(unusual) == {first}
    (tmp_path / traits.FILE).write_text(json.dumps({"threads": {unusual: {"cpus": "9998"}}, "filters": {}}))
    assert traits.bring_back(tmp_path, [unusual]) == ()
    assert os.sched_getaffinity(unusual) == {first}


def test_what_cannot_be_set_is_said(tmp_path: Path, unusual: int) -> None:
    (tmp_path / traits.FILE).write_text(json.dumps({"threads": {unusual: {"io": 7 << 13}}, "filters": {}}))
    assert traits.bring_back(tmp_path, [unusual]) == (f"thread {unusual}: Invalid argument",)


def test_timer_slack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traits, "_PROC", tmp_path)
    me = os.getpid()
    (tmp_path / f"{me}/task/{me}").mkdir(parents=True)
    for text, found in (("50000", {}), ("0", {}), ("7000000", {"slack": 7000000})):
        (tmp_path / f"{me}/timerslack_ns").write_text(f"{text}\n")
        assert {name: one for name, one in traits.of_thread(me, frozenset()).items() if name == "slack"} == found
    (tmp_path / traits.FILE).write_text(json.dumps({"threads": {me: {"slack": 8000}}, "filters": {}}))
    assert traits.bring_back(tmp_path, [me]) == ()
    assert (tmp_path / f"{me}/timerslack_ns").read_text() == "8000"


def test_what_nobody_can_carry(unusual: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traits, "online", lambda: "0-9999")
    found = list(traits.of_tasks(process.tasks_of(unusual), opened(unusual)))
    assert Peculiarity("personality", unusual, "0x40000") in found
    assert found.count(Peculiarity("eventfd-semaphore", unusual, "eventfd")) == 1
    assert Peculiarity("affinity", unusual, traits.cpu_list(os.sched_getaffinity(unusual))) in found
    assert not [one for one in found if one.kind == "scheduling"]


def test_a_policy_that_criu_cannot_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda tid: 0x40000000 | 6)
    me = os.getpid()
    found = list(traits.of_tasks([process.task_facts(me)], []))
    assert Peculiarity("scheduling", me, "SCHED_DEADLINE") in found


def core(signal: int | None, padding: int = 0) -> bytes:
    """A core image whose thread has this parent-death signal, with other fields before and behind it."""
    thread = varint(1, 2**40) + varint(2, 24)
    thread += b"" if signal is None else varint(8, signal)
    thread += message(13, b"x" * padding)
    return framed(0x54564319, 0x55053847, varint(1, 1) + message(3, varint(1, 1)) + message(5, thread) + varint(9, 15))


@pytest.mark.parametrize("padding", [0, 1, 300])
def test_the_parent_death_signal_of_the_root_stays_behind(tmp_path: Path, padding: int) -> None:
    (tmp_path / "core-5.img").write_bytes(core(None, padding))
    (tmp_path / "core-6.img").write_bytes(core(15, padding))
    (tmp_path / "core-7.img").write_bytes(core(9, padding))
    assert traits.forget_parent(tmp_path, [5, 6, 4])
    assert (tmp_path / "core-5.img").read_bytes() == core(None, padding)
    assert (tmp_path / "core-6.img").read_bytes() == core(0, padding)
    assert (tmp_path / "core-7.img").read_bytes() == core(9, padding)  # of a child: its parent comes along
    assert not traits.forget_parent(tmp_path, [5, 6, 4])


def test_a_broken_core_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "core-5.img").write_bytes(core(15)[:-3])
    with pytest.raises(images.ImageError):
        traits.forget_parent(tmp_path, [5])


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"threads":{}}', '{"threads":[],"filters":{}}', '{"threads":{"x":{}},"filters":{}}',
        '{"threads":{"1":{"cpus":5}},"filters":{}}', '{"threads":{"1":{"more":5}},"filters":{}}',
        '{"threads":{"1":{"io":65536}},"filters":{}}', '{"threads":{},"filters":{"1":"x"}}',
        '{"threads":{},"filters":{"1":"100000000"}}', '{"threads":{},"filters":{"1":"-1"}}',
    ],
)  # fmt: skip
def test_what_was_never_carried_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / traits.FILE).write_text(text)
    with pytest.raises(images.ImageError, match=r"damaged|that is none|too large"):
        traits.bring_back(tmp_path, [])


def test_a_list_of_more_processors_than_there_can_be_costs_nothing() -> None:
    with less_memory(), less_time():
        assert traits.cpus("0-99999999999999999") == frozenset()
        assert len(traits.cpus("0-999999")) == traits.MOST_CPUS + 1
        assert traits.cpus("²,7") == {7}
