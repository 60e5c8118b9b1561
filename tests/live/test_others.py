"""Others have their hands in it as well: the tree is killed while it moves, or somebody else moves it too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, until

pytestmark = pytest.mark.long_on("vm")


@pytest.mark.parametrize("phase", ["preflight", "pre-copy", "freeze", "restore"])
def test_killed_before_it_was_moved(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, sabotage: Any, phase: str
) -> None:
    """A tree that is gone is called gone, not "running on the source"; and it does not rise again on the target."""
    pid = started.launch(
        "python3", "-c", "import threading, time; threading.Thread(target=time.sleep, args=[1e6]).start()"
    )
    until(lambda: len(alpha.run(f"ls /proc/{pid}/task").out.split()) == 2, "it has no second thread")
    run = sabotage(pid, phase, "kill-tree")
    assert run.status == 21, run.explain()
    (error,) = run.of("error")
    assert str(pid) in error["message"]
    assert "runs" not in error["where"]
    assert not alpha.alive(pid)
    assert not beta.alive(pid)


def test_a_child_killed_while_it_is_held(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, sabotage: Any
) -> None:
    """What was dumped is out of date then: undone, and the rest runs on as it would have."""
    pid = started.launch("sh", "-c", "sleep 100000; echo and on; sleep 100000")
    until(lambda: alpha.run(f"pgrep -P {pid}", check=False).status == 0, "no child")
    run = sabotage(pid, "restore", "kill-child")
    assert run.status == 36, run.explain()
    assert alpha.alive(pid)
    assert not beta.alive(pid)


@pytest.mark.parametrize("phase", ["pre-copy", "restore"])
def test_two_at_once(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, sabotage: Any, phase: str
) -> None:
    """The second one is told which migration has it, touches nothing, and the first one does not notice."""
    pid = started.launch("sleep", "100000")
    run = sabotage(pid, phase, "migrate-again", options="")
    status, _, events = alpha.read("/run/second").partition("\n")
    alpha.run("rm /run/second")
    assert status == "22", events
    said = [event for event in map(json.loads, events.splitlines()) if event["event"] in ("error", "obstacle")]
    assert str(pid) in said[-1]["message"]
    assert run.status == 0, run.explain()
    assert beta.alive(pid)
    assert not alpha.alive(pid)


FOLLOWER = """
import os, time
home = os.uname().nodename
with open("/proc/self/comm", "w") as name:
    name.write("follower")
while os.uname().nodename == home:  # no pause tells: a busy machine makes pauses of its own
    time.sleep(0.001)
"""


@pytest.mark.backends("netns")
def test_one_that_ends_as_soon_as_it_runs_there(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """It notices where it is and leaves: it did run there, so this is a migration, not a failure."""
    pid = started.launch("python3", "-c", FOLLOWER)
    until(lambda: alpha.read(f"/proc/{pid}/comm") == "follower\n", "it does not know where it is")
    run = migrate(str(pid), "beta")
    assert run.status == 0, run.explain()
    assert not alpha.alive(pid)
    until(lambda: not beta.alive(pid), "it stays there")
