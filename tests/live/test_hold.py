"""criu on the source is killed in its hold, and everybody who knew of the migration with it: the journal decides.

Also what keeps the tree still meanwhile: a queued SIGSTOP, which a SIGCONT from elsewhere takes back, and the freezer
of cgroup v2 where the tree has a cgroup to itself, which nobody talks out of it.
"""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Iterator

import paramiko
import pytest

from tests.live.conftest import Run
from tests.live.faults.hands import ENVIRONMENT, Hand
from tests.live.lab_host import LOG, Done, LabHost, until
from tests.live.test_failures import still_right, undone
from tests.live.test_recover import runs_there, settled

pytestmark = pytest.mark.long_on("vm")

CGROUP = "/sys/fs/cgroup/held"
BEFORE, AFTER = "commit asked", "committed"
"""The instants just before COMMIT is written, and just after."""

AGENTS = "/root/.cache/migrate/agent-*.pyz"
"""The agent as a target has been sent it."""

Migrating = Callable[[int, str], paramiko.Channel]


@pytest.fixture
def hand(nothing_behind: None, alpha: LabHost) -> Iterator[Hand]:
    """Stops the source's agent where a test wants it."""
    one = Hand(alpha, stops=False)
    yield one
    one.close()


@pytest.fixture
def migrating(alpha: LabHost, hand: Hand) -> Migrating:
    """Start `migrate`, and wait until its agent stands at an instant."""

    def start(pid: int, instant: str) -> paramiko.Channel:
        hand.hold(instant)
        channel = alpha.start(f"exec env {ENVIRONMENT} migrate --json --copy-files {pid} beta")
        assert hand.held(120 * alpha.slow), f"nobody comes to {instant}"
        return channel

    return start


@pytest.fixture
def own_cgroup(witness: int, alpha: LabHost) -> Iterator[int]:
    """The witness, with a cgroup to itself."""
    alpha.run(f"mkdir {CGROUP}; for p in $(pgrep -s {witness}); do echo $p >{CGROUP}/cgroup.procs; done")
    yield witness
    alpha.run(f"echo 1 >{CGROUP}/cgroup.kill; until rmdir {CGROUP} 2>/dev/null; do sleep 0.1; done")


def end_of(channel: paramiko.Channel) -> Run:
    """`migrate`, read to its end."""
    out = channel.makefile().read().decode()
    return Run(Done(channel.recv_exit_status(), out, channel.makefile_stderr().read().decode()))


def tasks_of(host: LabHost, pid: int) -> list[int]:
    """Every process of the witness."""
    return [int(word) for word in host.run(f"pgrep -s {pid}").out.split()]


def kill_criu(hand: Hand) -> None:
    """The dump that holds the tree."""
    victims = hand.ask("victims", what="dump")
    assert victims, "no criu holds it"
    hand.ask("signal", pids=victims, number=signal.SIGKILL)
    until(lambda: not hand.ask("victims", what="dump"), "criu does not die")


def work_done(host: LabHost, pids: list[int]) -> tuple[str, str]:
    """What grows as soon as a task runs: lines of the log, processor time and context switches of each thread."""
    threads = " ".join(f"/proc/{pid}/task/*" for pid in pids)
    script = f'for t in {threads}; do cut -d" " -f14,15 $t/stat; grep ctxt $t/status; done'
    return host.run(f"wc -l <{LOG}").out, host.run(script).out


FIND_STRAYS = f"""
import glob, os, sys
from pathlib import Path
sys.path.insert(0, max(glob.glob("{AGENTS}"), key=os.path.getmtime))
from agent import strays
from agent.journal import Journal, unfinished
state = Path("/var/lib/migrate")
print(*(pid for pid, _ in strays.found(Journal.load(state, unfinished(state)[0]))))
"""


def test_what_a_restore_has_made_is_known_by_its_log_and_its_images(
    alpha: LabHost, beta: LabHost, witness: int, hand: Hand, migrating: Migrating
) -> None:
    """As recovery finds what a restore that was killed has left; real criu's log has to be of that form."""
    channel = migrating(witness, BEFORE)
    found = beta.run(f"python3 -c {shlex.quote(FIND_STRAYS)}").out.split()
    held = tasks_of(beta, witness)
    hand.ask("go")
    assert end_of(channel).report["outcome"] == "migrated"
    assert sorted(map(int, found)) == sorted(held)
    assert len(held) > 1
    runs_there(alpha, beta, witness)


def test_a_continue_from_elsewhere_does_not_wake_a_frozen_tree(
    alpha: LabHost, beta: LabHost, own_cgroup: int, hand: Hand, migrating: Migrating
) -> None:
    channel = migrating(own_cgroup, BEFORE)
    pids = tasks_of(alpha, own_cgroup)
    kill_criu(hand)
    until(lambda: "frozen 1" in alpha.read(f"{CGROUP}/cgroup.events"), "the cgroup is not frozen")
    before = work_done(alpha, pids)
    assert hand.ask("signal", pids=pids, number=signal.SIGCONT) == len(pids) > 1
    time.sleep(1)  # the witness writes a line every few milliseconds
    assert work_done(alpha, pids) == before, "it ran in the hold"
    hand.ask("go")
    undone(end_of(channel), codes=(32,))
    still_right(alpha, beta, own_cgroup)
    assert "frozen 0" in alpha.read(f"{CGROUP}/cgroup.events")


def test_without_a_cgroup_of_its_own_a_continue_wakes_it_and_nothing_is_committed(
    alpha: LabHost, beta: LabHost, witness: int, hand: Hand, migrating: Migrating
) -> None:
    """It shares its cgroup with its login session: what the target holds is out of date, and COMMIT is refused."""
    channel = migrating(witness, BEFORE)
    pids = tasks_of(alpha, witness)
    kill_criu(hand)
    until(lambda: {alpha.state(pid) for pid in pids} == {"T"}, "the queued SIGSTOP does not hold it")
    before = work_done(alpha, pids)
    hand.ask("signal", pids=pids, number=signal.SIGCONT)
    until(lambda: work_done(alpha, pids) != before, "a SIGCONT does not wake it")
    assert beta.state(witness) == "S", "the target does not hold it"
    hand.ask("go")
    undone(end_of(channel), codes=(32,))
    still_right(alpha, beta, witness)


def test_criu_killed_in_its_hold_before_commit(
    alpha: LabHost, beta: LabHost, witness: int, hand: Hand, migrating: Migrating
) -> None:
    channel = migrating(witness, BEFORE)
    kill_criu(hand)
    hand.ask("go")
    run = end_of(channel)
    undone(run, codes=(32,))
    assert "criu died in its hold" in run.of("error")[0]["message"], run.explain()
    still_right(alpha, beta, witness)


def test_criu_killed_in_its_hold_after_commit(
    alpha: LabHost, beta: LabHost, own_cgroup: int, hand: Hand, migrating: Migrating
) -> None:
    """The tree is killed by its agent, also where it is frozen."""
    channel = migrating(own_cgroup, AFTER)
    kill_criu(hand)
    hand.ask("go")
    run = end_of(channel)
    assert (run.status, run.report["outcome"]) == (0, "migrated"), run.explain()
    runs_there(alpha, beta, own_cgroup)


@pytest.mark.parametrize("instant", [BEFORE, AFTER])
def test_criu_migrate_and_agent_killed_in_the_hold(
    alpha: LabHost, beta: LabHost, own_cgroup: int, hand: Hand, migrating: Migrating, migrate: Callable[..., Run],
    instant: str,
) -> None:  # fmt: skip
    """Only the hook's script is left on the source. It thaws, and continues or kills the tree as the journal says."""
    channel = migrating(own_cgroup, instant)
    kill_criu(hand)  # first: the end of its agent would have the hook decide, and criu obey
    alpha.run("pkill -KILL -x migrate; pkill -KILL -f '[s]erve --build'", check=False)
    channel.close()
    settled(alpha)
    if instant == BEFORE:
        still_there = work_done(alpha, tasks_of(alpha, own_cgroup))
        until(lambda: work_done(alpha, tasks_of(alpha, own_cgroup)) != still_there, "the hook does not let it run")
    else:
        until(lambda: not alpha.alive(own_cgroup), "the hook does not kill it")
    run = migrate("recover")
    assert run.status == 0, run.explain()
    if instant == BEFORE:
        settled(beta)
        still_right(alpha, beta, own_cgroup)
    else:
        runs_there(alpha, beta, own_cgroup)
