"""`migrate rehearse`: the process pauses as long as it says and runs on, on either host nothing is behind."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.lab_host import LabHost, gap, wait_for_sweeps


def right(alpha: LabHost, beta: LabHost, pid: int, start: str) -> list[tuple[int, float, int, int, int]]:
    """The witness's log: the same process, on this host, with its memory right, and nothing of it over there."""
    lines = wait_for_sweeps(alpha, 2)
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"
    assert start_of(alpha, pid) == start
    assert not beta.alive(pid)
    return lines


def start_of(host: LabHost, pid: int) -> str:
    return host.read(f"/proc/{pid}/stat").rpartition(") ")[2].split()[19]


def test_a_rehearsal_and_then_the_move(
    nothing_behind: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any
) -> None:
    start = start_of(alpha, witness)
    run = migrate("rehearse", "--copy-files", str(witness), "beta")
    assert run.status == 0, run.explain()
    report = run.report
    assert (report["outcome"], report["target_pid"], report["leftovers"]) == ("rehearsed", 0, [])
    assert [event["phase"] for event in run.of("phase")][-2:] == ["restore", "roll back"]
    lines = right(alpha, beta, witness, start)
    assert not beta.run("ls /root/witness.log", check=False).out, "what was copied is still on the target"
    # what it says is an upper bound of what the process itself has seen
    assert gap(lines) <= report["downtime_seconds"] + 5
    assert report["freeze_seconds"] + report["restore_seconds"] <= report["downtime_seconds"]
    moved = migrate("--copy-files", str(witness), "beta")
    assert moved.status == 0, moved.explain()
    assert beta.alive(witness)
    assert not alpha.alive(witness)


@pytest.mark.backends("netns")
@pytest.mark.parametrize("act", ["kill-source-agent", "kill-target-agent", "cut-link", "interrupt"])
@pytest.mark.parametrize("phase", ["restore", "roll back"])
def test_a_rehearsal_that_breaks(
    nothing_behind: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str, act: str
) -> None:
    start = start_of(alpha, witness)
    run = sabotage(witness, phase, act, command="rehearse")
    assert "Traceback" not in run.err, run.explain()
    if phase == "roll back" or act == "kill-source-agent":  # then it is missed only when it is rolled back
        assert (run.status, run.report["outcome"]) == (0, "rehearsed"), run.explain()
    else:
        assert run.report["outcome"] == "undone", run.explain()
        assert run.status == 130 if act == "interrupt" else run.status in range(30, 50), run.explain()
    right(alpha, beta, witness, start)


@pytest.mark.backends("netns")
def test_what_only_a_restore_finds(
    nothing_behind: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any
) -> None:
    """A PID that is taken after the preflight: the rehearsal fails as the migration would."""
    start = start_of(alpha, witness)
    run = sabotage(witness, "freeze", "take-pid", command="rehearse")
    beta.run(f"kill {witness}")
    assert run.status == 33, run.explain()
    right(alpha, beta, witness, start)
