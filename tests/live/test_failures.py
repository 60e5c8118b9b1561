"""Failures before COMMIT: the process runs on the source, its memory right, nothing behind on either host."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LOG, LabHost, gap, until, wait_for_sweeps

pytestmark = pytest.mark.long_on("vm")

BEFORE_COMMIT = ("preflight", "pre-copy", "freeze", "restore", "commit")
"""Each phase's begin; the begin of commit is the end of restore, with the tree held on the target."""


def each_of(phases: Iterable[str], core: str) -> pytest.MarkDecorator:
    """A test for each phase, of which one is what has to work on each release of Debian."""
    of_core = {core: [pytest.mark.core]}
    return pytest.mark.parametrize("phase", [pytest.param(phase, marks=of_core.get(phase, ())) for phase in phases])


def still_right(alpha: LabHost, beta: LabHost, pid: int) -> None:
    """The witness works on here, was not harmed, and is not there."""
    lines = wait_for_sweeps(alpha, 2)
    assert alpha.state(pid) in ("S", "R", "D")
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"
    # with the link or `migrate` dead, the target's agent undoes by itself, and nobody has waited for it
    until(lambda: not beta.alive(pid), "it is on the target as well")
    until(lambda: not beta.run(f"ls {LOG}", check=False).out, "the log that was copied is still on the target")


def undone(run: Run, codes: tuple[int, ...] = tuple(range(30, 50))) -> None:
    """It said so, with the right exit code, and without a traceback."""
    assert run.status in codes, run.explain()
    assert "Traceback" not in run.err, run.explain()
    assert run.report["outcome"] == "undone", run.explain()


@each_of(BEFORE_COMMIT, core="freeze")
def test_source_agent_killed(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str) -> None:
    run = sabotage(witness, phase, "kill-source-agent")
    undone(run)
    still_right(alpha, beta, witness)


@each_of(["resume", "clean"], core="resume")
def test_source_agent_killed_after_commit(
    nothing_behind: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str
) -> None:
    """The tree is dead here and its agent gone: another one cleans up, by the journal."""
    run = sabotage(witness, phase, "kill-source-agent")
    assert run.status == 0, run.explain()
    assert run.report["outcome"] == "migrated"
    assert not alpha.alive(witness)
    assert {line[3] for line in wait_for_sweeps(beta, 1)} == {0}, "bad pages"


@each_of(BEFORE_COMMIT, core="restore")
def test_target_agent_killed(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str) -> None:
    if phase == "commit":
        # the tree is held there and its agent is gone: the images are kept, and the migration goes forward
        run = sabotage(witness, phase, "kill-target-agent")
        assert run.status == 0, run.explain()
        assert beta.alive(witness)
        assert not alpha.alive(witness)
        return
    undone(sabotage(witness, phase, "kill-target-agent"))
    still_right(alpha, beta, witness)


@each_of(BEFORE_COMMIT, core="commit")
def test_connection_cut(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str) -> None:
    if phase == "commit":
        run = sabotage(witness, phase, "cut-link")
        assert run.status == 0, run.explain()
        assert beta.alive(witness)
        assert not alpha.alive(witness)
        return
    undone(sabotage(witness, phase, "cut-link"))
    still_right(alpha, beta, witness)


@each_of(("connect", *BEFORE_COMMIT[:-1]), core="pre-copy")
def test_interrupted(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str) -> None:
    run = sabotage(witness, phase, "interrupt")
    undone(run, codes=(130,))
    still_right(alpha, beta, witness)


@each_of(("pre-copy", "freeze", "restore"), core="restore")
def test_interrupted_in_the_middle(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str) -> None:
    """A little later, and a second Ctrl-C while it is being undone. It may have come too late: then it has moved."""
    run = sabotage(witness, phase, "interrupt-twice", delay=0.03)
    if run.status == 0:
        assert beta.alive(witness)
        assert not alpha.alive(witness)
        return
    undone(run, codes=(130,))
    still_right(alpha, beta, witness)


@each_of(("commit", "resume", "clean"), core="commit")
def test_interrupted_after_commit_finishes(
    alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, phase: str
) -> None:
    run = sabotage(witness, phase, "interrupt")
    assert run.status == 0, run.explain()
    assert beta.alive(witness)
    assert not alpha.alive(witness)


@pytest.mark.core
def test_source_criu_killed_in_its_hold(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any) -> None:
    undone(sabotage(witness, "restore", "kill-source-criu"))
    still_right(alpha, beta, witness)


@pytest.mark.core
def test_criu_killed_in_restore(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any) -> None:
    undone(sabotage(witness, "freeze", "kill-restoring-criu"), codes=(33,))
    still_right(alpha, beta, witness)


def test_images_full_in_the_final_dump(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any) -> None:
    undone(sabotage(witness, "freeze", "fill-images"), codes=(31,))
    still_right(alpha, beta, witness)


@pytest.mark.backends("vm")
def test_images_full_in_round_1(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any) -> None:
    undone(sabotage(witness, "pre-copy", "fill-images"), codes=(31,))
    still_right(alpha, beta, witness)


@pytest.mark.core
def test_target_pid_taken(alpha: LabHost, beta: LabHost, witness: int, migrate: Any) -> None:
    """Found by preflight: by name, with the process that has it."""
    # another process that starts there at the same time may get the number instead: then once more
    once = f"echo {witness - 1} >/proc/sys/kernel/ns_last_pid; sleep 300 >/dev/null 2>&1 </dev/null &"
    beta.run(f"for i in 1 2 3 4 5 6; do {once} [ $! = {witness} ] && exit 0; kill $!; done; exit 1")
    until(lambda: beta.run(f"cat /proc/{witness}/comm").out.strip() == "sleep", "it is a shell for ever")
    run = migrate("--copy-files", str(witness), "beta")
    beta.run(f"kill {witness}")
    assert run.status == 20, run.explain()
    taken = [obstacle for obstacle in run.of("obstacle") if obstacle["id"] == "pid-taken"]
    assert taken, run.explain()
    assert "sleep" in taken[0]["problem"]
    still_right(alpha, beta, witness)


def test_target_pid_taken_behind_our_back(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any) -> None:
    """Taken between preflight and restore: criu finds it, and everything is undone."""
    run = sabotage(witness, "freeze", "take-pid")
    beta.run(f"kill {witness}")
    undone(run, codes=(33,))
    still_right(alpha, beta, witness)


@pytest.mark.core
def test_library_missing_on_the_target(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    library = alpha.run("ldconfig -p | awk '/libm.so.6/ {print $NF; exit}'").out.strip()
    alpha.run(f"mkdir -p /opt/only && cp {library} /opt/only/libodd.so")
    pid = started.launch("python3", "-c", "import ctypes,time; ctypes.CDLL('/opt/only/libodd.so'); time.sleep(10**6)")
    mapped = f"grep -q /opt/only/libodd.so /proc/{pid}/maps"
    until(lambda: alpha.run(mapped, check=False).status == 0, "it does not load its library")
    run = migrate(str(pid), "beta")
    assert run.status == 20, run.explain()
    assert any(obstacle["object"] == "/opt/only/libodd.so" for obstacle in run.of("obstacle")), run.explain()
    copied = migrate("--copy-files", str(pid), "beta")
    assert copied.status == 20, "a library is never copied: " + copied.explain()
    assert alpha.state(pid) == "S"
    alpha.run("rm -r /opt/only")


def test_failure_is_no_long_pause(alpha: LabHost, beta: LabHost, witness: int, sabotage: Any) -> None:
    """A restore that fails costs a pause, no more."""
    undone(sabotage(witness, "freeze", "kill-restoring-criu"), codes=(33,))
    lines = wait_for_sweeps(alpha, 1)
    assert gap(lines) < 60, json.dumps(gap(lines))
