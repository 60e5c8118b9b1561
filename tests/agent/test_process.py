"""agent/process.py, on real processes: identity, life and death, trees, and what is never looked into."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import process
from tests.children import child, until

NOBODY = 4_190_000
"""A PID that no test machine reaches."""


# --- stat ------------------------------------------------------------------------------------------------------------

TAIL = "S 1 2 3 0 -1 4194560 96 0 0 0 0 0 0 0 20 0 1 0 987654 1 1"


@given(st.binary(min_size=0, max_size=15).filter(lambda name: b"\0" not in name))
def test_a_name_of_any_bytes_is_read(name: bytes) -> None:
    stat = process.parse_stat(b"4711 (" + name + b") " + TAIL.encode())
    assert os.fsencode(stat.name) == name
    assert (stat.pid, stat.state, stat.ppid, stat.pgid, stat.sid) == (4711, "S", 1, 2, 3)
    assert (stat.flags, stat.start_time) == (4194560, 987654)


@given(st.binary(max_size=200))
def test_garbage_is_a_value_error_or_a_stat(data: bytes) -> None:
    try:
        process.parse_stat(data)
    except ValueError:
        pass


def test_a_truncated_stat_is_refused() -> None:
    with pytest.raises(ValueError, match="not the content"):
        process.parse_stat(b"4711 (sleep) S 1 2 3")


# --- one process -----------------------------------------------------------------------------------------------------


def test_our_own_facts_are_those_that_the_kernel_tells_us() -> None:
    task = process.task_facts(os.getpid())
    assert (task.pid, task.ppid) == (os.getpid(), os.getppid())
    assert (task.pgid, task.sid, task.uid) == (os.getpgrp(), os.getsid(0), os.getuid())
    assert os.getpid() in task.tids
    assert task.start_time == process.start_time(os.getpid()) > 0


@pytest.mark.parametrize(
    "question", [process.start_time, process.task_facts, process.tree_pids, process.is_zombie, process.pidfd_open,
                 process.inspect, process.threads, process.read_stat],
)  # fmt: skip
def test_what_does_not_exist_is_said_so(question: object) -> None:
    assert callable(question)
    with pytest.raises(process.NoSuchProcess) as raised:
        question(NOBODY)
    assert raised.value.pid == NOBODY
    assert str(NOBODY) in str(raised.value)
    assert isinstance(raised.value, ProcessLookupError)


def test_threads_are_counted_and_an_odd_name_survives(tmp_path: Path) -> None:
    name = b"a) S 1\n\xff x"
    source = f"""
import threading
for _ in range(3):
    threading.Thread(target=time.sleep, args=(600,)).start()
open("/proc/self/comm", "wb").write({name!r})
ready()
"""
    with child(source, tmp_path) as pid:
        task = process.task_facts(pid)
        assert len(task.tids) == 4
        assert task.tids[0] == pid
        assert os.fsencode(task.name) == name
        assert task.sid == task.pgid == pid


def test_alive_means_this_number_with_this_start_time(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        started = process.start_time(pid)
        assert process.alive(pid, started)
        assert not process.alive(pid, started + 1)
    assert not process.alive(pid, started)


def test_a_zombie_is_dead() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: process.read_stat(ended.pid).state == "Z")
    try:
        assert process.is_zombie(ended.pid)
        assert not process.alive(ended.pid, process.start_time(ended.pid))
        assert process.task_facts(ended.pid).state == "Z"
        assert process.never_runs_again(ended.pid, process.start_time(ended.pid))
    finally:
        ended.wait()


def test_a_process_lives_on_without_its_first_thread(tmp_path: Path) -> None:
    source = """
import ctypes, threading
threading.Thread(target=ready).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with child(source, tmp_path) as pid:
        until(lambda: process.read_stat(pid).state == "Z")
        assert not process.is_zombie(pid)
        assert process.alive(pid, process.start_time(pid))
        assert not process.never_runs_again(pid, process.start_time(pid))


def test_what_is_killed_never_runs_again(tmp_path: Path) -> None:
    """Said of the living only once they are on their way out, of a former process of the number at once."""
    with child("import threading; threading.Thread(target=time.sleep, args=(600,)).start(); ready()", tmp_path) as pid:
        started = process.start_time(pid)
        assert not process.never_runs_again(pid, started)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: process.read_stat(pid).state == "T")
        assert not process.never_runs_again(pid, started)
        assert process.never_runs_again(pid, started - 1)
        os.kill(pid, signal.SIGKILL)
        until(lambda: process.never_runs_again(pid, started))
        until(lambda: process.is_zombie(pid))
        assert process.never_runs_again(pid, started)
    assert process.never_runs_again(NOBODY, 1)


def test_a_pidfd_means_the_process(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        descriptor = process.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
            until(lambda: process.read_stat(pid).state == "T")
        finally:
            os.close(descriptor)


def test_the_boot_id_is_one_line() -> None:
    assert process.boot_id() == process.boot_id().strip()
    assert len(process.boot_id()) == 36


# --- trees -----------------------------------------------------------------------------------------------------------

FAMILY = """
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        open("grandchild", "w").write(str(os.getpid()))
        time.sleep(600)
    time.sleep(600)
zombie = os.fork()
if zombie == 0:
    os._exit(0)
while not os.path.exists("grandchild"):
    time.sleep(0.001)
ready()
"""


@pytest.mark.parametrize("listed", [True, False])
def test_a_tree_is_found_parents_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    with child(FAMILY, tmp_path) as root:
        if listed and not process._lists_children(root):
            pytest.skip("this kernel has no task/TID/children (CONFIG_PROC_CHILDREN); the other way is tested")
        monkeypatch.setattr(process, "_lists_children", lambda pid: listed)
        os.kill(root, signal.SIGSTOP)
        tree = process.tree_pids(root)
        assert tree[0] == root
        assert len(tree) == len(set(tree)) == 4
        position = {pid: index for index, pid in enumerate(tree)}
        for pid in tree[1:]:
            assert position[process.read_stat(pid).ppid] < position[pid]


def test_children_of_other_threads_belong_to_the_tree(tmp_path: Path) -> None:
    source = """
import threading, subprocess
thread = threading.Thread(target=lambda: [subprocess.Popen(["sleep", "600"]), time.sleep(600)])
thread.start()
while not os.path.exists("go"): time.sleep(0.001)
ready()
"""
    (tmp_path / "go").touch()
    with child(source, tmp_path) as root:
        until(lambda: len(process.tree_pids(root)) == 2)
        names = [process.read_stat(pid).name for pid in process.tree_pids(root)]
        assert names[1] in ("sleep", names[0])  # before or after its exec


def test_ancestors_lead_to_init() -> None:
    line = process.ancestors(os.getpid())
    assert line[0] == os.getppid()
    assert process.ancestors(NOBODY) == []


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_a_tree_is_inspected_with_its_zombie(tmp_path: Path) -> None:
    with child(FAMILY, tmp_path) as root:
        until(lambda: "Z" in [process.read_stat(pid).state for pid in process.tree_pids(root)])
        tree = process.inspect(root)
        assert tree.root == root
        assert [task.pid for task in tree.tasks] == process.tree_pids(root)
        assert [task.state for task in tree.tasks].count("Z") == 1
        assert {str(tmp_path), os.path.realpath(sys.executable)} <= {file.path for file in tree.files}
        assert tree.memory > 1 << 20


def test_a_tree_that_changes_all_the_time_can_still_be_inspected(tmp_path: Path) -> None:
    source = """
import threading
threading.Thread(target=ready).start()
while True:
    pid = os.fork()
    if pid == 0:
        for number in range(50):
            os.close(os.dup(0))
        os._exit(0)
    os.waitpid(pid, 0)
"""
    with child(source, tmp_path) as root:
        for _ in range(15):
            tree = process.inspect(root)
            assert tree.tasks[0].pid == root


# --- what vanishes while it is looked at -----------------------------------------------------------------------------

HOLDER = """
import mmap, socket, tempfile
held = [tempfile.TemporaryFile(), socket.create_server(("127.0.0.1", 0)), *socket.socketpair(), *os.pipe()]
kept = mmap.mmap(held[0].fileno(), 0) if held[0].truncate(4096) else None
if os.fork() == 0:
    time.sleep(600)
ready()
"""


class Looks:
    """Every look at /proc of one of these processes, and an act at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pids: list[int]) -> None:
        self._roots = tuple(f"/proc/{pid}" for pid in pids)
        self._all = [str(pid) for pid in (1, os.getpid(), *pids)]  # a machine with many others takes long
        self.kinds: list[tuple[str, str]] = []
        self.at = -1
        self.act: Callable[[], None] = lambda: None
        for module, name in (
            *((os, name) for name in ("readlink", "stat", "listdir", "open", "getxattr")),
            (io, "open"), (builtins, "open"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, self._seen(name, getattr(module, name)))

    def _seen(self, name: str, look: Callable[..., Any]) -> Callable[..., Any]:
        def seen(path: Any = ".", *arguments: Any, **keywords: Any) -> Any:
            if (name, str(path)) == ("listdir", "/proc"):
                return self._all
            if str(path).startswith(self._roots):
                self.kinds.append((name, re.sub(r"[0-9a-f]{6,}|[0-9]+", "#", str(path))))
                if len(self.kinds) == self.at:
                    self.act()
            return look(path, *arguments, **keywords)

        return seen

    def turns(self) -> list[int]:
        """Where each kind of look comes first and last, counted from 1."""
        first = {kind: number for number, kind in reversed(list(enumerate(self.kinds, 1)))}
        last = {kind: number for number, kind in enumerate(self.kinds, 1)}
        return sorted({*first.values(), *last.values()})


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH])
def test_any_entry_of_proc_may_vanish(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever look finds nothing, the answer is a tree, or that there is no such process."""
    with child(HOLDER, tmp_path) as root:
        looks = Looks(monkeypatch, process.tree_pids(root))
        process.inspect(root)
        turns = looks.turns()
        assert len(turns) > 40

        def vanish() -> None:
            raise OSError(number, "vanished")

        looks.act = vanish
        for looks.at in turns:
            looks.kinds.clear()
            try:
                assert process.inspect(root).tasks[0].pid == root, looks.kinds[looks.at - 1]
            except process.NoSuchProcess as gone:
                assert gone.pid == root, looks.kinds[looks.at - 1]


@pytest.mark.parametrize("which", ["root", "child"])
def test_a_process_may_end_at_any_look(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a mock of it: the process is killed and reaped there, at every fourth of these turns."""
    at, turns = -1, [0]
    while turns:
        with child(HOLDER, tmp_path) as root, monkeypatch.context() as patched:
            (_, born) = process.tree_pids(root)
            victim = root if which == "root" else born
            looks = Looks(patched, [root, born])
            looks.at = at

            def end(victim: int = victim) -> None:
                os.kill(victim, signal.SIGKILL)
                until(lambda: process.is_zombie(victim))

            looks.act = end
            try:
                assert process.inspect(root).tasks[0].pid == root, looks.kinds[at - 1]
            except process.NoSuchProcess as gone:
                assert (which, gone.pid) == ("root", root)
            if at < 0:
                turns = looks.turns()[::4]
            with contextlib.suppress(ProcessLookupError):
                os.kill(born, signal.SIGKILL)
        at = turns.pop()


@pytest.mark.parametrize(
    ("pid", "kind"),
    [(os.getpid(), "self"), (os.getppid(), "ancestor"), (1, "init"), (2, "kernel-thread")],
    ids=["self", "ancestor", "init", "kernel-thread"],
)
def test_what_must_not_be_moved_is_named_and_not_looked_into(pid: int, kind: str) -> None:
    if pid == 2 and not (Path("/proc/2/stat").exists() and process.read_stat(2).name == "kthreadd"):
        pytest.skip("no kernel threads are seen in this PID namespace")
    if kind == "ancestor" and pid == 1:
        pytest.skip("our parent is init")
    tree = process.inspect(pid)
    assert [one.kind for one in tree.peculiarities] == [kind]
    assert tree.peculiarities[0].object == str(pid)
    assert (tree.files, tree.memory) == ((), 0)
    assert len(tree.tasks) == 1


def test_step_over_moves_the_numbering_past_ids_that_are_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "sys/kernel/ns_last_pid"
    counter.parent.mkdir(parents=True)
    counter.write_text("1000")
    monkeypatch.setattr(process, "PROC", tmp_path)
    process.step_over([1001, 1002, 2900, 900, 100000])
    assert counter.read_text() == "2900"
    process.step_over([900, 100000])
    assert counter.read_text() == "2900"
