"""--unit with systemd as it is: nothing revives a service that has moved, or calls it failed; it has a scope there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Started, far_from
from tests.live.lab_host import LabHost, until

on_systemd = pytest.mark.backends("vm")

UNITS = {
    "precious.service": (
        "[Unit]\nOnFailure=alarm.service\n[Service]\nExecStart=/usr/bin/python3 /root/programs/printer.py\n"
        "ExecStop=/usr/bin/touch /run/precious-stopped\nExecStopPost=/usr/bin/touch /run/precious-ended\n"
        "Restart=always\nRestartSec=100ms\nMemoryMax=200M\nCPUQuota=80%\nTasksMax=50\nIOWeight=50\n"
    ),
    "alarm.service": "[Service]\nType=oneshot\nExecStart=/usr/bin/touch /run/precious-failed\n",
}
TRACES = "ls /run/precious-* 2>/dev/null"
STATE = "systemctl show precious -p ActiveState,SubState,Result,Restart,ExecStopPost,NRestarts,DropInPaths"


@pytest.fixture
def precious(nothing_behind: None, alpha: LabHost, beta: LabHost) -> Iterator[int]:
    """The main process of a service that has all that systemd may do about its end."""
    for name, text in UNITS.items():
        alpha.put(f"/etc/systemd/system/{name}", text.encode())
    alpha.run("systemctl daemon-reload")
    far_from(alpha, beta)
    alpha.run("systemctl start precious")
    pid = main_process(alpha)
    until(lambda: printed(alpha, pid) != [], "the service does not print")
    yield pid
    beta.run("systemctl stop migrated-precious.scope", check=False)
    names = " ".join(UNITS)
    alpha.run(f"systemctl stop precious; cd /etc/systemd/system && rm {names}; rm -f /run/precious-*")
    alpha.run(f"systemctl daemon-reload; systemctl reset-failed {names}", check=False)


def main_process(host: LabHost) -> int:
    """PID; 0 for none."""
    return int(host.run("systemctl show precious -p MainPID --value").out)


def printed(host: LabHost, pid: int, unit: str = "precious.service") -> list[int]:
    """What it has printed there in the unit's name, by the journal."""
    lines = host.run(f"journalctl --unit {unit} _PID={pid} --output cat --boot --quiet", check=False).out.splitlines()
    return [int(line) for line in lines if line.isdecimal()]


def prints_on(host: LabHost, pid: int) -> None:
    """It goes on."""
    last = printed(host, pid)[-1]
    until(lambda: printed(host, pid)[-1] > last, "the service does not go on")


def restarts(alpha: LabHost, pid: int) -> None:
    """The unit is as it was: the process is its own, and systemd starts another when it dies."""
    assert "zzzz-migrate" not in alpha.run(f"{STATE}; ls -R /run/systemd/system").out
    assert main_process(alpha) == pid
    prints_on(alpha, pid)
    assert alpha.run(TRACES, check=False).out == ""
    alpha.run(f"kill -KILL {pid}")
    until(lambda: main_process(alpha) not in (0, pid), "systemd does not start it again")
    assert "/run/precious-ended" in alpha.run(TRACES).out


@on_systemd
def test_a_service_moves(alpha: LabHost, beta: LabHost, precious: int, migrate: Any) -> None:
    """Refused without --unit; with it, the source's unit just ends, and the target's scope has its limits."""
    refused = migrate("check", str(precious), "beta")
    assert refused.status == 20, refused.explain()
    (found,) = [one for one in refused.of("obstacle") if one["id"] == "unit"]
    assert found["object"] == "precious.service"
    assert "--unit" in found["remedy"]
    assert any("precious.service" in note["text"] for note in refused.of("note"))

    run = migrate("--unit", str(precious), "beta")
    assert run.status == 0, run.explain()
    assert run.report["unit"] == "migrated-precious.scope"
    state = alpha.run(STATE).out
    assert {"ActiveState=inactive", "SubState=dead", "Result=success", "Restart=always", "NRestarts=0"} <= set(
        state.splitlines()
    )
    assert "zzzz-migrate" not in state
    assert alpha.run("systemctl is-failed precious alarm", check=False).out.split() == ["inactive", "inactive"]
    assert alpha.run(TRACES, check=False).out == ""

    shown = beta.run("systemctl status migrated-precious.scope").out
    assert f"{precious} /usr/bin/python3 /root/programs/printer.py" in shown
    limits = "cpu.max pids.max memory.max io.weight"
    cgroup = "/sys/fs/cgroup/system.slice/migrated-precious.scope"
    assert beta.run(f"cd {cgroup} && cat {limits}").out.splitlines() == [
        "80000 100000", "50", "209715200", "default 50",
    ]  # fmt: skip
    until(lambda: printed(beta, precious, "migrated-precious.scope") != [], "it does not print there")
    lines = printed(alpha, precious) + printed(beta, precious, "migrated-precious.scope")
    assert lines == list(range(len(lines)))

    beta.run("systemctl stop migrated-precious.scope")
    assert not beta.alive(precious)
    assert "migrated-precious" not in beta.run("systemctl list-units --all --plain; ls /run/systemd/transient").out


@on_systemd
@pytest.mark.long
def test_ctrl_c_in_the_freeze_leaves_the_unit_as_it_was(alpha: LabHost, precious: int, sabotage: Any) -> None:
    run = sabotage(precious, "restore", "interrupt", options="--unit")
    assert run.status == 130, run.explain()
    restarts(alpha, precious)


@on_systemd
def test_recover_gives_the_unit_back(alpha: LabHost, precious: int, sabotage: Any, migrate: Any) -> None:
    """Both agents and migrate killed with the tree held: the process runs on by itself; that is all, until recover."""
    sabotage(precious, "commit", "kill-everything", options="--unit")
    until(lambda: alpha.state(precious) == "S", "it does not run on")
    assert "zzzz-migrate.conf" in alpha.run(STATE).out
    run = migrate("recover")
    assert run.status == 0, run.explain()
    restarts(alpha, precious)


@pytest.mark.backends("netns")
def test_without_systemd_it_is_said_and_the_process_moves(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """Neither host of namespaces runs one."""
    pid = started.launch("sleep", "100000")
    run = migrate("--unit", str(pid), "beta")
    assert run.status == 0, run.explain()
    assert any("alpha runs no systemd" in note["text"] for note in run.of("note")), run.explain()
    assert run.report["unit"] == ""
    assert not alpha.alive(pid)
    assert beta.state(pid) == "S"


@on_systemd
@pytest.mark.long
def test_a_plan_empties_the_host_of_a_service_and_brings_it_back(alpha: LabHost, beta: LabHost, precious: int) -> None:
    """By its unit's name. What comes back is in a scope as it was there; a unit starts its own processes."""
    alpha.put("/root/plan.toml", b'target = "beta"\n[[move]]\nunit = "precious"\noptions = { unit = true }\n')
    try:
        assert "1 of 1 moved" in alpha.run("migrate drain /root/plan.toml").out
        assert beta.alive(precious)
        assert alpha.run("systemctl is-active precious", check=False).out.strip() == "inactive"
        until(lambda: printed(beta, precious, "migrated-precious.scope") != [], "it does not print there")
        assert "1 of 1 moved" in alpha.run("migrate return /root/plan.toml").out
        assert alpha.alive(precious)
        assert not beta.alive(precious)
        assert f"{precious} /usr/bin/python3" in alpha.run("systemctl status 'migrated-*precious.scope'").out
    finally:
        alpha.run("systemctl stop 'migrated-*'; rm -rf /root/plan.toml /var/lib/migrate/drains", check=False)
