"""Instant resume: the tree runs before its memory is there, and nothing that dies meanwhile costs a byte of it."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LOG, LabHost, gap, until, wait_for_log, wait_for_sweeps, whole_lines

SIZES = {"netns": ("--mib", "512"), "vm": ("--mib", "64", "--rate", "50", "--interval", "0.05", "--rest", "10")}


@pytest.fixture
def large(nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started, backend: str) -> int:
    """A witness whose memory takes a while to fill."""
    for host in lab:
        host.run(f"rm -f {LOG}")
    pid = started.launch("python3", "/root/programs/witness.py", *SIZES[backend], "--log", LOG)
    wait_for_log(lab[0], lines=20)
    return pid


def right(beta: LabHost) -> list[tuple[int, float, int, int, int]]:
    """Its whole log after it has looked at all its memory twice on the target."""
    lines = wait_for_sweeps(beta, 2)
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"
    return lines


def no_pager(beta: LabHost) -> None:
    """Pager and warden have left, and nothing watches the tree's memory."""
    assert beta.run("pgrep -f '[p]ager /run/migrate'", check=False).out == ""


def test_report(alpha: LabHost, beta: LabHost, large: int, migrate: Any, backend: str) -> None:
    run = migrate("--copy-files", str(large), "beta")
    assert run.status == 0, run.explain()
    no_pager(beta)
    right(beta)
    assert run.report["resume"] == "instant"
    assert run.report["fill_seconds"] > 0
    assert run.report["faults"] >= 0
    assert run.report["longest_fault_seconds"] < 10
    assert run.report["target_peak_bytes"] >= int(SIZES[backend][1]) << 20
    assert "um" not in re.findall(r"\bum\b", beta.read(f"/proc/{large}/smaps"))


@pytest.mark.backends("netns")
@pytest.mark.parametrize("act", ["kill-pagers", "kill-wardens"])
@pytest.mark.parametrize("phase", ["restore", "resume"])
def test_pager_or_warden_killed_again_and_again(
    alpha: LabHost, beta: LabHost, large: int, sabotage: Any, act: str, phase: str
) -> None:
    """SIGKILL every tenth of a second, from the restore or from the resume on."""
    run = sabotage(large, phase, act)
    assert run.status == 0, run.explain()
    killed = re.search(r"saboteur: (\d+) killed", run.err)
    assert killed, run.explain()
    assert int(killed.group(1)) >= 1, run.explain()
    no_pager(beta)
    lines = right(beta)
    after = [line for line in lines if line[1] > time.time() - 600]
    assert gap(after) < run.report["downtime_seconds"] + 10


@pytest.mark.backends("netns")
def test_pager_and_warden_killed_at_once(
    alpha: LabHost, beta: LabHost, large: int, sabotage: Any, migrate: Any
) -> None:
    """The one loss that nothing prevents is no success: the process is stopped, and whoever asks is told."""
    run = sabotage(large, "restore", "kill-pair")
    assert "saboteur: 1 killed" in run.err, run.explain()
    assert run.status == 72, run.explain()
    assert run.report["outcome"] == "memory-lost"
    assert run.report["target_pid"] == large
    assert f"kill -KILL {large}" in run.out, run.explain()
    assert beta.state(large) in ("T", ""), "neither stopped nor crashed over its zeros"
    assert not alpha.alive(large)
    no_pager(beta)
    again = migrate("recover", run.report["id"])
    assert again.status == 72, again.explain()
    assert beta.state(large) in ("T", ""), "neither stopped nor crashed over its zeros"


@pytest.mark.long_on("vm")
def test_eager_on_request(nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any) -> None:
    pid = started.launch("sleep", "100000")
    run = migrate("--resume", "eager", str(pid), "beta")
    assert run.status == 0, run.explain()
    assert run.report["resume"] == "eager"
    assert run.report["fill_seconds"] == 0
    assert beta.alive(pid)


PREFORK = """
import os, sys, time
mib, children = map(int, sys.argv[1:])
heap = bytearray(os.urandom(1 << 20) * mib)
for _ in range(children):
    if os.fork() == 0:
        time.sleep(10**6)
time.sleep(10**6)
"""


def test_memory_shared_since_a_fork_does_not_multiply(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """userfaultfd can't share pages again, criu can: so such a tree is restored eagerly, and that is said."""
    mib, children = (256, 8) if alpha.backend == "netns" else (64, 4)
    pid = started.launch("python3", "-c", PREFORK, str(mib), str(children))
    forked = f"pgrep -c -P {pid}"
    until(lambda: int(alpha.run(forked, check=False).out) == children, "it does not fork", 60 * alpha.slow)
    rollups = "cat /proc/{0}/smaps_rollup $(pgrep -P {0} | sed 's,.*,/proc/&/smaps_rollup,')"
    pss = rollups + " | awk '/^Pss:/ {{s+=$2}} END {{print s}}'"
    before = int(alpha.run(pss.format(pid)).out)
    run = migrate(str(pid), "beta")
    assert run.status == 0, run.explain()
    assert run.report["resume"] == "eager"
    assert any("shared" in event["text"] for event in run.of("note")), run.explain()
    assert int(beta.run(pss.format(pid)).out) <= 1.3 * before
    # the images hold the shared memory once for each of its processes, and it stands beside them once more
    assert run.report["target_peak_bytes"] >= (children + 1) * mib << 20


FORKER = """
import mmap, os, sys, time
size = 30 << 20
heap = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block = os.urandom(4096)
for at in range(0, size, 4096):
    heap[at:at + 8] = at.to_bytes(8, "little")
log = open("/root/forker.log", "ab", buffering=0)
turn = 0
while True:
    turn += 1
    child = os.fork()
    if child == 0:
        part = range((turn * 7919 * 4096) % (size // 2), size, 4096 * 64)
        os._exit(0 if all(heap[at:at + 8] == at.to_bytes(8, "little") for at in part) else 1)
    good = os.waitpid(child, 0)[1] == 0
    moved = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    moved[:8] = b"12345678"
    moved.resize(8 << 20)
    good = good and moved[:8] == b"12345678"
    moved.close()
    heap.madvise(mmap.MADV_DONTNEED, size - (1 << 20), 1 << 20)
    good = good and heap[size - 4096:size - 4088] == bytes(8)
    for at in range(size - (1 << 20), size, 4096):
        heap[at:at + 8] = at.to_bytes(8, "little")
    log.write(f"{turn} {good}\\n".encode())  # a file that is made anew each time would be open in some freezes only
    if not good:
        time.sleep(10**6)
"""


def turns(host: LabHost, more: int) -> int:
    """How many turns it has made, all of them good, once it has made so many more."""

    def made() -> int:
        lines = whole_lines(host.run("cat /root/forker.log", check=False).out).splitlines()
        assert lines == [f"{number + 1} True" for number in range(len(lines))]
        return len(lines)

    first = made()
    until(lambda: made() >= first + more, "it does not go on")
    return made()


@pytest.mark.backends("netns")
def test_forks_moves_and_removals_while_memory_fills(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A process that forks, moves, drops and unmaps memory all the time sees only what it wrote.

    It is small: should the freeze meet a child of it, the images hold its memory twice.
    """
    for host in (alpha, beta):
        host.run("rm -f /root/forker.log")
    pid = started.launch("python3", "-c", FORKER)
    turns(alpha, 20)
    run = migrate("--copy-files", str(pid), "beta")
    assert run.status == 0, run.explain()
    turns(beta, 20)
