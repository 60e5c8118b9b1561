"""`migrate` dies with SIGKILL at the worst moments; the journals know, and `migrate recover` finishes or undoes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.lab_host import LabHost, until, wait_for_sweeps
from tests.live.test_failures import still_right

pytestmark = pytest.mark.long_on("vm")


def settled(host: LabHost, seconds: float = 120) -> None:
    """Wait until no agent of ours is at work on a host any more."""
    agents = "pgrep -f '[s]erve --build'"
    until(lambda: host.run(agents, check=False).status != 0, f"an agent is still at work on {host.name}", seconds)


def runs_there(alpha: LabHost, beta: LabHost, pid: int) -> None:
    """One copy, on the target, whole."""
    assert not alpha.alive(pid)
    lines = wait_for_sweeps(beta, 2)
    assert beta.state(pid) in ("S", "R", "D")
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"


@pytest.mark.parametrize("phase", ["pre-copy", "freeze", "restore"])
def test_killed_before_held(
    alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any, phase: str
) -> None:
    """Both agents undo by themselves; there is nothing left to recover."""
    sabotage(witness, phase, "kill-self")
    settled(alpha)
    settled(beta)
    still_right(alpha, beta, witness)
    again = migrate("recover")
    assert again.status in (0, 20), again.explain()


def test_killed_with_the_tree_held_there(
    alpha: LabHost,
    beta: LabHost,
    witness: int,
    sabotage: Any,
    migrate: Any,
) -> None:
    """No COMMIT: the source takes it back by itself; the target keeps what it holds until it is told."""
    sabotage(witness, "commit", "kill-self")
    settled(alpha)
    wait_for_sweeps(alpha, 1)
    run = migrate("recover")
    assert run.status == 0, run.explain()
    settled(beta)
    still_right(alpha, beta, witness)


@pytest.mark.parametrize("act", ["kill-self", "kill-everything"])
def test_killed_after_commit(
    alpha: LabHost,
    beta: LabHost,
    witness: int,
    sabotage: Any,
    migrate: Any,
    act: str,
) -> None:
    """COMMIT: forward only. The held tree is let go, or restored once more from the images that were kept."""
    sabotage(witness, "resume", act)
    settled(alpha)
    # its agent killed too, the hook and criu end it in their own time
    until(lambda: not alpha.alive(witness), "it is still on the source")
    # nobody has told it: nothing of the tree runs there; held, or killed by its criu, which may still be at it
    until(lambda: beta.state(witness) in ("", "S"), "it runs on the target")
    run = migrate("recover")
    assert run.status == 0, run.explain()
    runs_there(alpha, beta, witness)


@pytest.mark.parametrize("victim", ["root", "child"])
def test_a_task_killed_in_the_hold_by_another_hand(
    alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any, victim: str
) -> None:
    """criu, let go, would wait for it for ever: it is restored once more, whole."""
    sabotage(witness, "resume", "kill-self")
    until(lambda: not alpha.alive(witness), "it is still on the source")
    assert beta.state(witness) == "S", "the target does not hold it"
    beta.run(f"kill -KILL {witness}" if victim == "root" else f"pkill -KILL -P {witness}")
    run = migrate("recover")
    assert run.status == 0, run.explain()
    runs_there(alpha, beta, witness)


def test_everybody_killed_before_commit(
    alpha: LabHost,
    beta: LabHost,
    witness: int,
    sabotage: Any,
    migrate: Any,
) -> None:
    """The hooks find no COMMIT and no RESUMING in their journals: both veto."""
    sabotage(witness, "commit", "kill-everything")
    wait_for_sweeps(alpha, 1)
    run = migrate("recover")
    assert run.status == 0, run.explain()
    still_right(alpha, beta, witness)


def test_recovered_from_the_target(
    alpha: LabHost, beta: LabHost, both_ways: None, witness: int, sabotage: Any, migrate: Any
) -> None:
    """It asks the source by the name in its journal, and decides the same."""
    sabotage(witness, "commit", "kill-everything")
    wait_for_sweeps(alpha, 1)
    run = migrate("recover", on=beta)
    assert run.status == 0, run.explain()
    assert run.of("recovered")[0]["course"] == "undo"
    still_right(alpha, beta, witness)


def test_two_recoveries_at_once_on_both_hosts(
    alpha: LabHost, beta: LabHost, both_ways: None, witness: int, sabotage: Any, migrate: Any
) -> None:
    """One does it, the other waits and finds nothing to do; or comes first in part, and the other does the rest."""
    sabotage(witness, "resume", "kill-everything")
    settled(alpha)
    until(lambda: not alpha.alive(witness), "it is still on the source")
    commands = [host.start("migrate recover --json; echo status $?") for host in (alpha, beta)]
    said = [channel.makefile().read().decode() for channel in commands]
    assert all("status 0" in each for each in said), said
    runs_there(alpha, beta, witness)
