"""A throttled tree: slower while it is asked for, and as it was whatever happens to whom. With this host's cgroups."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent import process, protocol, throttle
from agent.protocol import FaultCode, Verdict
from agent.throttle import Hierarchy, Throttle, ThrottleError
from tests.agent.test_server import ID, Talk, begin_of, fault
from tests.agent.test_source import PageServer
from tests.fake_hosts import Pair, Victim, eventually

pytestmark = pytest.mark.usefixtures("cgroups_of_the_host")

WHY_NOT = throttle.why_not([os.getpid()])
needs_cgroups = pytest.mark.skipif(bool(WHY_NOT), reason=f"throttling takes root and a cpu controller: {WHY_NOT}")

BUSY = """
import os, threading, time
os.fork()
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
while True:
    if os.fork() == 0:
        end = time.monotonic() + 0.02
        while time.monotonic() < end:
            pass
        os._exit(0)
    os.wait()
"""
"""Two processes that always have a thread at work, and make a child every 20 ms."""


@pytest.fixture
def busy() -> Iterator[int]:
    root = subprocess.Popen([sys.executable, "-W", "ignore", "-c", BUSY], start_new_session=True)
    eventually(lambda: len(process.tree_pids(root.pid)) > 2, "it forks")
    yield root.pid
    os.killpg(root.pid, signal.SIGKILL)
    root.wait()


def groups(root: int) -> set[Path]:
    """The cgroups of a tree."""
    return set(throttle._groups_of(throttle._here(), process.tree_pids(root)).values())


def ours() -> list[Path]:
    """Cgroups of ours that are there."""
    found = subprocess.run(
        ["find", str(throttle._here().mount), "-name", "migrating-*"], capture_output=True, text=True, check=False
    )  # rglob stumbles over a cgroup that goes meanwhile
    return [Path(line) for line in found.stdout.splitlines()]


# --- where -----------------------------------------------------------------------------------------------------------

V1 = "35 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:12 - cgroup cgroup rw,cpu,cpuacct\n"
V1_OTHER = "36 25 0:31 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory\n"
V1_INNER = "35 25 0:30 /docker/4f /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
V2 = "28 22 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
PROC = "21 20 0:19 / /proc rw - proc proc rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "found"),
    [
        (PROC + V2, Hierarchy(Path("/sys/fs/cgroup"), "/", 2)),
        (V2 + V1_OTHER + V1, Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), "/", 1)),
        (V1_INNER, Hierarchy(Path("/sys/fs/cgroup/cpu"), "/docker/4f", 1)),
        (PROC + V1_OTHER, None),
        ("", None),
        ("torn\n", None),
    ],
)
def test_the_hierarchy_with_the_cpu_controller(mountinfo: str, found: Hierarchy | None) -> None:
    assert throttle.hierarchy(mountinfo) == found


@pytest.mark.parametrize(
    ("mountinfo", "text", "group"),
    [
        (V2, "0::/system.slice/a b.service\n", "/sys/fs/cgroup/system.slice/a b.service"),
        (V2, "0::/\n", "/sys/fs/cgroup"),
        (V2, "0::/../../init.scope\n", None),
        (V2, "1:name=systemd:/x\n", None),
        (V1, "4:memory:/m\n3:cpu,cpuacct:/user.slice\n0::/other\n", "/sys/fs/cgroup/cpu,cpuacct/user.slice"),
        (V1, "5:cpuset:/s\n0::/x\n", None),
        (V1_INNER, "3:cpu:/docker/4f/a\n", "/sys/fs/cgroup/cpu/a"),
        (V1_INNER, "3:cpu:/docker/4f\n", "/sys/fs/cgroup/cpu"),
        (V1_INNER, "3:cpu:/docker/4fe\n", None),
    ],
)
def test_the_cgroup_of_a_process(mountinfo: str, text: str, group: str | None) -> None:
    where = throttle.hierarchy(mountinfo)
    assert where is not None
    assert where.group_in(text) == (Path(group) if group else None)


@pytest.mark.parametrize(
    ("processors", "quota"),
    [
        (8.0, (80_000, 10_000)),
        (0.5, (5_000, 10_000)),
        (0.1, (1_000, 10_000)),
        (0.05, (1_000, 20_000)),
        (0.0025, (1_000, 100_000)),
    ],
)
def test_the_quota_is_one_that_the_kernel_takes(processors: float, quota: tuple[int, int]) -> None:
    assert throttle.quota_of(processors) == quota


# --- the limit -------------------------------------------------------------------------------------------------------


@needs_cgroups
async def test_it_is_slowed_down_step_by_step_and_gets_all_back(tmp_path: Path, busy: int) -> None:
    before = groups(busy)
    limited = Throttle(tmp_path, "test-steps")
    used = await throttle._processors_used(busy)
    half, tenth = await limited.limit(busy, 0.5), await limited.limit(busy, 0.1)
    assert tenth == pytest.approx(half / 5, rel=0.05)
    assert {group.name for group in groups(busy)} == {"migrating-test-steps"}
    assert await throttle._processors_used(busy) < used / 3
    eventually(lambda: len(process.tree_pids(busy)) > 2, "children too")
    limited.lift()
    assert await throttle._processors_used(busy) > used / 3
    assert await limited.release() == ()
    assert groups(busy) == before
    assert list(tmp_path.iterdir()) == []
    assert ours() == []
    assert await limited.release() == (), "once more does no harm"


@needs_cgroups
async def test_an_ended_process_leaves_nothing(tmp_path: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    with pytest.raises(process.NoSuchProcess):
        await Throttle(tmp_path, "test-gone").limit(gone.pid, 0.5)
    assert (list(tmp_path.iterdir()), ours()) == ([], [])


@needs_cgroups
async def test_what_fails_half_way_is_undone(tmp_path: Path, busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = groups(busy)

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument", "cpu.max")

    monkeypatch.setattr(Throttle, "_set", refuse)
    with pytest.raises(ThrottleError, match=r"cpu\.max: Invalid argument"):
        await Throttle(tmp_path, "test-fails").limit(busy, 0.5)
    assert groups(busy) == before
    assert (list(tmp_path.iterdir()), ours()) == ([], [])


def test_no_cgroups_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "hierarchy", lambda text: None)
    assert throttle.why_not([os.getpid()]) == "no cgroups are mounted here"


def test_no_controller_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    (tmp_path / "cgroup.type").write_text("domain\n")
    monkeypatch.setattr(throttle, "hierarchy", lambda text: Hierarchy(tmp_path, "/", 2))
    monkeypatch.setattr(Hierarchy, "group_in", lambda self, text: tmp_path)
    assert throttle.why_not([os.getpid()]) == "the cgroups of this host have no cpu controller"
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert throttle.why_not([os.getpid()]) == ""


# --- in a migration --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def throttled(pair: Pair, victim: Victim) -> AsyncIterator[tuple[Talk, protocol.Prepared]]:
    """A migration that has begun, its tree limited."""
    talk = Talk(pair.source)
    await talk.start()
    begun = await talk.peer.begin(begin_of(victim.pid))
    await talk.peer.throttle(protocol.Throttle(0.5))
    assert {group.name for group in groups(victim.pid)} == {f"migrating-{ID}"}
    try:
        yield talk, begun
    finally:
        await talk.close()


@needs_cgroups
async def test_abort_gives_all_back(pair: Pair) -> None:
    victim = pair.victim(1)
    before = groups(victim.pid)
    async with throttled(pair, victim) as (talk, _):
        assert await talk.peer.abort(protocol.Abort("test")) == protocol.Leftovers()
        assert (groups(victim.pid), ours()) == (before, [])
        assert victim.runs
    assert pair.source.settle_down() == []


@needs_cgroups
async def test_a_lost_session_gives_all_back(pair: Pair) -> None:
    victim = pair.victim(1)
    before = groups(victim.pid)
    async with throttled(pair, victim):
        pass
    eventually(lambda: (groups(victim.pid), ours()) == (before, []), "it is given back")


@needs_cgroups
async def test_an_agent_that_is_killed_leaves_its_guard_to_give_all_back(pair: Pair) -> None:
    victim = pair.victim(1)
    before = groups(victim.pid)
    async with throttled(pair, victim):
        pair.source.kill_agent()
        eventually(lambda: (groups(victim.pid), ours()) == (before, []), "its guard gives it back")
        assert victim.runs


@needs_cgroups
async def test_recovery_gives_all_back_where_the_guard_was_killed_too(pair: Pair) -> None:
    victim = pair.victim(1)
    before = groups(victim.pid)
    script = str(pair.source.state / ID / throttle.SCRIPT).encode()
    async with throttled(pair, victim):
        (guard,) = [pid for pid in process.pids() if script in command_line(pid)]
        os.kill(guard, signal.SIGKILL)
        pair.source.kill_agent()
        await asyncio.sleep(0.2)
        assert {group.name for group in groups(victim.pid)} == {f"migrating-{ID}"}, "nobody is left to do it"
    again = Talk(pair.source)
    await again.start()
    settled = await again.peer.settle(protocol.Settle(ID, Verdict.ABORT))
    assert (settled.leftovers, groups(victim.pid), ours()) == ((), before, [])
    assert victim.runs
    await again.close()
    assert pair.source.settle_down() == []


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@needs_cgroups
async def test_the_limit_is_lifted_in_the_freeze_and_gone_after_the_commit(pair: Pair) -> None:
    victim = pair.victim(1)
    async with throttled(pair, victim) as (talk, begun):
        async with PageServer(begun):
            await talk.peer.dump(protocol.Dump(1, "pages"))
        late = await fault(talk.peer.throttle(protocol.Throttle(0.1)))
        assert late.code is FaultCode.BAD_REQUEST
        (group,) = groups(victim.pid)
        unlimited = {"cpu.max": "max", "cpu.cfs_quota_us": "-1"}
        found = {name: (group / name).read_text().split()[0] for name in unlimited if (group / name).exists()}
        assert found
        assert found.items() <= unlimited.items()
        await talk.peer.commit()
        assert await talk.peer.finish() == protocol.Leftovers()
        assert ours() == []
    assert pair.source.settle_down() == []


@needs_cgroups
async def test_a_share_that_is_none_is_refused(pair: Pair) -> None:
    victim = pair.victim()
    async with throttled(pair, victim) as (talk, _):
        for share in (0.0, -1.0, 1.5):
            assert (await fault(talk.peer.throttle(protocol.Throttle(share)))).code is FaultCode.BAD_REQUEST
        await talk.peer.abort(protocol.Abort("test"))
