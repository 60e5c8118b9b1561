"""`-n`: a tree whose PIDs are taken on the target gets a PID namespace of its own there, and can move on from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LOG, LabHost, gap, until, wait_for_log, wait_for_sweeps

SIZES = {"netns": ("--mib", "64"), "vm": ("--mib", "32", "--rate", "50", "--hot", "512", "--interval", "0.05")}
INIT = "migrate-init"
TAKER = """
import os, signal, sys, time
signal.signal(signal.SIGCONT, lambda *_: open("/run/continued", "a").write("x"))
pid = int(sys.argv[1])
for _ in range(20):  # another process that starts at the same time may get the number instead
    open("/proc/sys/kernel/ns_last_pid", "w").write(str(pid - 1))
    if (got := os.fork()) == 0:
        if os.getpid() != pid:
            os._exit(0)
        os.setsid()
        [os.dup2(os.open("/dev/null", os.O_RDWR), n) for n in (0, 1, 2)]
        while True:
            time.sleep(1000)
    if got == pid:
        sys.exit(0)
    os.wait()
sys.exit(1)
"""


@pytest.fixture
def tree(
    nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started, backend: str, request: pytest.FixtureRequest
) -> int:
    """A witness at work on alpha."""
    for host in lab:
        host.run(f"rm -f {LOG}")
    size = getattr(request, "param", SIZES[backend])
    pid = started.launch("python3", "/root/programs/witness.py", *size, "--log", LOG)
    wait_for_log(lab[0], lines=20)
    return pid


@pytest.fixture
def taken(tree: int, beta: LabHost) -> Iterator[int]:
    """The same, whose PID is taken on beta by a process that counts how often it was continued."""
    beta.run(f"rm -f /run/continued; python3 -c '{TAKER}' {tree}")
    yield tree
    assert beta.state(tree) == "S", "the process that has the PID on beta was harmed"
    assert beta.run("cat /run/continued", check=False).out == "", "it was stopped and continued"
    beta.run(f"kill -KILL {tree}")


@pytest.fixture
def resident(both_ways: None, tree: int, alpha: LabHost, beta: LabHost, migrate: Any) -> int:
    """A witness on alpha that lives in a namespace of its own there: it was on beta. Its PID as alpha has it."""
    there = migrate("-n", "--copy-files", str(tree), "beta")
    assert there.status == 0, there.explain()
    alpha.run(f"rm -f {LOG}")
    back = migrate("--copy-files", str(there.report["target_pid"]), "alpha", on=beta)
    assert back.status == 0, back.explain()
    beta.run(f"rm -f {LOG}")
    return int(back.report["target_pid"])


def works(host: LabHost, pid: int) -> list[tuple[int, float, int, int, int]]:
    """The witness works on there, and was not harmed; its log."""
    lines = wait_for_sweeps(host, 2)
    assert host.state(pid) in ("S", "R", "D")
    assert [line[0] for line in lines] == list(range(len(lines))), "the log has a gap or a repeat"
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"
    return lines


def inits(host: LabHost) -> list[int]:
    """The first processes of our namespaces that live there."""
    return [int(pid) for pid in host.run(f"pgrep -x {INIT}", check=False).out.split()]


def moved(run: Run, host: LabHost, inside: int) -> int:
    """It said so, and is there in a namespace of its own; its PID as that host has it."""
    assert run.status == 0, run.explain()
    report = run.report
    assert (report["outcome"], report["namespaces"], report["inside_pid"]) == ("migrated", True, inside)
    assert report["leftovers"] == []
    pid = int(report["target_pid"])
    assert host.run(f"awk '/^NSpid/ {{print $2, $NF}}' /proc/{pid}/status").out.split() == [str(pid), str(inside)]
    (init,) = inits(host)
    assert host.run(f"awk '/^PPid/ {{print $2}}' /proc/{pid}/status").out.split() == [str(init)]
    assert (
        host.run(
            f"grep ' tmpfs migrate ' /proc/{init}/mountinfo; grep '^migrate ' /proc/{init}/mounts", check=False
        ).out
        == ""
    )
    return pid


def test_a_taken_pid_is_no_obstacle(alpha: LabHost, beta: LabHost, taken: int, migrate: Any) -> None:
    run = migrate("-n", "--copy-files", str(taken), "beta")
    pid = moved(run, beta, taken)
    assert pid != taken
    assert not alpha.alive(taken)
    lines = works(beta, pid)
    assert gap(lines) < run.report["downtime_seconds"] + 10
    assert run.report["resume"] == "instant"


@pytest.mark.long_on("vm")
def test_auto(alpha: LabHost, beta: LabHost, taken: int, migrate: Any) -> None:
    run = migrate("--namespaces=auto", "--copy-files", str(taken), "beta")
    assert any("taken by" in event["text"] for event in run.of("note")), run.explain()
    works(beta, moved(run, beta, taken))


@pytest.mark.backends("netns")
def test_auto_is_none_where_all_is_free(beta: LabHost, tree: int, migrate: Any) -> None:
    run = migrate("--namespaces=auto", "--copy-files", str(tree), "beta")
    assert run.status == 0, run.explain()
    assert (run.report["target_pid"], run.report["inside_pid"], run.report["namespaces"]) == (tree, 0, False)
    assert inits(beta) == []


@pytest.mark.backends("netns")
def test_eager(beta: LabHost, taken: int, migrate: Any) -> None:
    works(beta, moved(migrate("-n", "--resume", "eager", "--copy-files", str(taken), "beta"), beta, taken))


@pytest.mark.long_on("vm")
def test_back_without_the_option_and_on_with_it(
    both_ways: None, alpha: LabHost, beta: LabHost, tree: int, migrate: Any
) -> None:
    """It lives in a namespace, so it gets one again, asked for or not; nothing of the former one stays."""
    pid = moved(migrate("-n", "--copy-files", str(tree), "beta"), beta, tree)
    alpha.run(f"rm -f {LOG}")  # its copy there is out of date, and in the way
    back = migrate("--copy-files", str(pid), "alpha", on=beta)
    pid = moved(back, alpha, tree)
    until(lambda: inits(beta) == [], "the namespace that it has left does not end")
    beta.run(f"rm -f {LOG}")
    again = migrate("-n", "--copy-files", str(pid), "beta")
    pid = moved(again, beta, tree)
    until(lambda: inits(alpha) == [], "the namespace that it has left does not end")
    if alpha.backend == "vm":
        for run in (back, again):
            rounds = run.report["rounds"]
            assert len(rounds) >= 2
            assert rounds[-1]["bytes"] < rounds[0]["bytes"] / 4, rounds
    works(beta, pid)


@pytest.mark.backends("netns")
def test_signals_to_its_init_reach_it_and_both_end(beta: LabHost, tree: int, migrate: Any) -> None:
    """SIGTERM ends a witness in order; its child ends with the pipe, and the init once there is nobody left."""
    pid = moved(migrate("-n", "--copy-files", str(tree), "beta"), beta, tree)
    (init,) = inits(beta)
    works(beta, pid)
    rollup = beta.run(f"awk '/^Private/ {{kb += $2}} END {{print kb}}' /proc/{init}/smaps_rollup").out
    assert int(rollup) < 8 << 10, "it is not small"
    beta.run(f"kill -USR1 {init}")  # which kills one that does not expect it
    until(lambda: not beta.alive(pid), "the signal does not reach it")
    until(lambda: inits(beta) == [], "the init does not end")


@pytest.mark.backends("netns")
def test_a_shell_job_and_back(
    both_ways: None, nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """It leads no session: it gets that of a criu, which must have one in the namespace."""
    shell = started.launch("sh", "-c", "sleep 100000; exec sleep 100000")
    until(lambda: alpha.run(f"pgrep -P {shell}", check=False).out != "", "the shell starts nothing")
    job = int(alpha.run(f"pgrep -P {shell}").out)
    pid = moved(migrate("-n", str(job), "beta"), beta, job)
    assert int(beta.run(f"awk '/^NSsid/ {{print $NF}}' /proc/{pid}/status").out) > 0
    pid = moved(migrate(str(pid), "alpha", on=beta), alpha, job)
    assert alpha.state(pid) == "S"


@pytest.mark.backends("netns")
def test_low_numbers(nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any) -> None:
    """Those that criu and its helpers would have in a new namespace."""
    for low in range(2, 60):
        if alpha.run(f"test -d /proc/{low}", check=False).status:
            alpha.run(f"echo {low - 1} >/proc/sys/kernel/ns_last_pid; setsid sleep 100000 </dev/null >/dev/null 2>&1 &")
    lowest = int(alpha.run("pgrep -x sleep | head -n 1").out)
    assert lowest < 60
    moved(migrate("-n", str(lowest), "beta"), beta, lowest)
    alpha.run("pkill -KILL -x sleep")


@pytest.mark.backends("netns")
def test_rehearsal(alpha: LabHost, beta: LabHost, taken: int, migrate: Any) -> None:
    run = migrate("rehearse", "-n", "--copy-files", str(taken), "beta")
    assert run.status == 0, run.explain()
    assert (run.report["namespaces"], run.report["inside_pid"]) == (True, 0)
    assert inits(beta) == []
    works(alpha, taken)


@pytest.mark.backends("netns")
@pytest.mark.parametrize(
    ("phase", "act"),
    [
        ("pre-copy", "kill-target-agent"),
        ("freeze", "kill-target-agent"),
        ("restore", "kill-target-agent"),
        ("freeze", "cut-link"),
        ("restore", "cut-link"),
        ("restore", "kill-source-agent"),
        ("commit", "kill-source-agent"),
        ("restore", "interrupt"),
        ("restore", "kill-source-criu"),
        ("freeze", "fill-images"),
    ],
)
def test_failures_leave_one_copy_and_no_namespace(
    alpha: LabHost, beta: LabHost, taken: int, sabotage: Any, phase: str, act: str
) -> None:
    run = sabotage(taken, phase, act, options="-n --copy-files")
    assert run.status in (*range(30, 50), 130), run.explain()
    assert run.report["outcome"] == "undone", run.explain()
    until(lambda: inits(beta) == [], "the namespace stays")
    works(alpha, taken)


@pytest.mark.backends("netns")
def test_criu_killed_in_restore(alpha: LabHost, beta: LabHost, taken: int, sabotage: Any) -> None:
    run = sabotage(taken, "freeze", "kill-restoring-criu", options="-n --copy-files")
    assert run.status == 33, run.explain()
    until(lambda: inits(beta) == [], "the namespace stays")
    works(alpha, taken)


@pytest.mark.backends("netns")
@pytest.mark.parametrize("act", ["kill-target-agent", "kill-target-criu", "kill-target-maker", "cut-link"])
def test_failures_of_the_target_while_it_is_held_go_forward(
    alpha: LabHost, beta: LabHost, taken: int, sabotage: Any, act: str
) -> None:
    """Held on the target: what dies there is replaced, restored once more if need be, and it is one copy again."""
    run = sabotage(taken, "commit", act, options="-n --copy-files")
    pid = moved(run, beta, taken)
    assert not alpha.alive(taken)
    works(beta, pid)
    beta.run(f"kill -USR1 {inits(beta)[0]}")
    until(lambda: not beta.alive(pid), "the init does not know its root")


@pytest.mark.backends("netns")
@pytest.mark.parametrize("act", ["kill-pagers", "kill-wardens"])
@pytest.mark.parametrize("tree", [("--mib", "512")], indirect=True)
def test_pager_or_warden_killed_again_and_again(
    alpha: LabHost, beta: LabHost, taken: int, sabotage: Any, act: str
) -> None:
    """They stop and continue the tree, whose tasks criu has named by other numbers than theirs on this host."""
    run = sabotage(taken, "restore", act, options="-n --copy-files")
    killed = re.search(r"saboteur: (\d+) killed", run.err)
    assert killed, run.explain()
    assert int(killed.group(1)) >= 1, run.explain()
    works(beta, moved(run, beta, taken))


@pytest.mark.backends("netns")
def test_memory_lost(beta: LabHost, taken: int, sabotage: Any) -> None:
    run = sabotage(taken, "restore", "kill-pair", options="-n --copy-files")
    assert "saboteur: 1 killed" in run.err, run.explain()
    assert run.status == 72, run.explain()
    pid = run.report["target_pid"]
    assert f"kill -KILL {pid}" in run.out, run.explain()
    assert beta.state(pid) in ("T", ""), "neither stopped nor crashed over its zeros"


@pytest.mark.backends("netns")
def test_recover(alpha: LabHost, beta: LabHost, taken: int, sabotage: Any, migrate: Any) -> None:
    """Everybody dies with the tree held: undone, and neither init nor tree stays there."""
    sabotage(taken, "commit", "kill-everything", options="-n --copy-files")
    recovered = migrate("recover")
    assert recovered.status == 0, recovered.explain()
    until(lambda: inits(beta) == [], "the namespace stays")
    works(alpha, taken)


@pytest.mark.backends("netns")
@pytest.mark.parametrize(
    ("phase", "act"),
    [
        ("restore", "kill-source-agent"),
        ("commit", "kill-source-agent"),
        ("restore", "kill-source-criu"),
        ("commit", "kill-source-criu"),
        ("commit", "kill-source-nsenter"),
        ("restore", "kill-target-agent"),
        ("restore", "interrupt"),
    ],
)
def test_failures_while_it_leaves_a_namespace(
    alpha: LabHost, beta: LabHost, resident: int, sabotage: Any, phase: str, act: str
) -> None:
    """It runs on where it was, in its namespace; no task of it stays stopped."""
    (init,) = inits(alpha)
    run = sabotage(resident, phase, act)
    assert run.status in (*range(30, 50), 130), run.explain()
    assert run.report["outcome"] == "undone", run.explain()
    works(alpha, resident)
    children = alpha.run(f"pgrep -P {resident}").out.split()
    assert {alpha.state(int(pid)) for pid in children} <= {"S", "R", "D"}
    assert inits(alpha) == [init]
    until(lambda: inits(beta) == [], "the namespace stays")


@pytest.mark.backends("netns")
def test_its_hook_alone_lets_it_run_on_in_its_namespace(
    alpha: LabHost, beta: LabHost, resident: int, sabotage: Any, migrate: Any
) -> None:
    """Every agent is dead: the script in the hook, which is in the namespace with criu, continues what was stopped."""
    sabotage(resident, "commit", "kill-everything")
    works(alpha, resident)
    recovered = migrate("recover")
    assert recovered.status == 0, recovered.explain()
    until(lambda: inits(beta) == [], "the namespace stays")
    works(alpha, resident)


@pytest.mark.backends("netns")
def test_check_of_one_that_lives_in_a_namespace(alpha: LabHost, beta: LabHost, resident: int, migrate: Any) -> None:
    run = migrate("check", "--copy-files", str(resident), "beta")
    assert run.status == 0, run.explain()
    assert [one for one in run.of("obstacle") if one["stops"]] == []
    (init,) = inits(alpha)
    refused = migrate("check", str(init), "beta")
    assert refused.status == 20, refused.explain()
    assert {one["id"] for one in refused.of("obstacle") if one["stops"]} >= {"namespace"}, refused.explain()
