"""Hosts that lose power once the process was committed: what is left of it, with --durable and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import power
from tests.live.lab_host import LOG, LabHost, until, wait_for_log
from tests.live.test_recover import runs_there, settled


@pytest.fixture
def powered(nothing_behind: None, alpha: LabHost, beta: LabHost) -> Iterator[None]:
    """Before it is looked at what is left behind, both hosts have their own boot id again."""
    yield
    for host in (alpha, beta):
        power.forget(host)


def committed(alpha: LabHost, pid: int, sabotage: Any, options: str) -> None:
    """COMMIT is written, the process dead on alpha; nobody has told beta, which holds it."""
    sabotage(pid, "resume", "kill-self", options=f"--copy-files {options}")
    settled(alpha)
    until(lambda: not alpha.alive(pid), "it is still on the source")


def images(host: LabHost) -> str:
    """Where images lie there."""
    return host.run("ls -d /run/migrate/*-* /var/lib/migrate/*/images 2>/dev/null", check=False).out


def test_the_target_loses_power_with_the_only_copy_on_its_disk(
    powered: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    """A few seconds on netns, and on vm the one test in which what was not synced is really gone."""
    committed(alpha, witness, sabotage, "--durable")
    power.cut(beta)
    assert beta.state(witness) == ""
    assert "/var/lib/migrate" in images(beta)
    run = migrate("recover")
    assert run.status == 0, run.explain()
    assert (run.of("recovered")[0]["course"], run.of("recovered")[0]["host"]) == ("forward", "beta"), run.explain()
    runs_there(alpha, beta, witness)
    assert images(beta) == ""
    assert migrate("recover").of("recovered")[0]["course"] == "nothing"


@pytest.mark.long_on("vm")
def test_the_target_loses_power_with_the_only_copy_in_memory(
    powered: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    committed(alpha, witness, sabotage, "")
    power.cut(beta)
    run = migrate("recover")
    assert run.status == 74, run.explain()
    (error,) = run.of("error")
    assert (error["error"], "runs nowhere" in error["where"]) == ("Lost", True), run.explain()
    assert not alpha.alive(witness)
    assert not beta.alive(witness)
    name = error["message"].split()[1].rstrip(":")
    again = migrate("recover", name)
    assert again.status == 74, again.explain()
    assert migrate("recover").of("recovered")[0]["course"] == "nothing"
    left = migrate("status", "--leftovers", "beta")
    assert left.status == 0, left.explain()
    beta.run(f"rm -f {LOG}")


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("on", ["alpha", "beta"])
def test_both_lose_power_after_commit(
    powered: None, both_ways: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any, on: str
) -> None:
    committed(alpha, witness, sabotage, "--durable")
    power.cut(alpha, beta)
    run = migrate("recover", on={"alpha": alpha, "beta": beta}[on])
    assert run.status == 0, run.explain()
    runs_there(alpha, beta, witness)


@pytest.mark.long_on("vm")
def test_both_lose_power_before_commit(
    powered: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    """The source dies undecided, and with it the process: what the target has on its disk is the only copy."""
    channel = alpha.start(
        "/opt/migrate/bin/python /root/programs/saboteur.py --at commit --act linger --before -- "
        f"--json --copy-files --durable {witness} beta"
    )
    until(lambda: alpha.run("test -s /run/lingers", check=False).status == 0, "it does not come so far")
    power.cut(alpha, beta)
    channel.close()
    alpha.run("rm -f /run/lingers")
    assert not alpha.alive(witness)
    run = migrate("recover")
    assert run.status == 0, run.explain()
    runs_there(alpha, beta, witness)


@pytest.mark.long_on("vm")
def test_a_restore_that_fails_after_the_reboot_is_tried_again(
    powered: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    """A PID of the process is taken when the target is back: recover names it, and is run again once it is free."""
    committed(alpha, witness, sabotage, "--durable")
    power.cut(beta)
    once = f"echo {witness - 1} >/proc/sys/kernel/ns_last_pid; sleep 300 >/dev/null 2>&1 </dev/null &"
    beta.run(f"for i in 1 2 3 4 5 6; do {once} [ $! = {witness} ] && exit 0; kill $!; done; exit 1")
    run = migrate("recover")
    assert run.status == 70, run.explain()
    beta.run(f"kill {witness}")
    again = migrate("recover")
    assert again.status == 0, again.explain()
    runs_there(alpha, beta, witness)


@pytest.mark.long_on("vm")
def test_a_durable_migration_says_what_the_disk_cost(
    nothing_behind: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any
) -> None:
    wait_for_log(alpha)
    run = migrate("--copy-files", "--durable", str(witness), "beta")
    assert run.status == 0, run.explain()
    assert run.report["disk_seconds"] > 0
    assert all(done["disk_seconds"] > 0 for done in run.report["rounds"][:-1]), run.report["rounds"]
    assert images(beta) == ""
    runs_there(alpha, beta, witness)
