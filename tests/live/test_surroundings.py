"""What a migration leaves alone and where it puts the tree: cgroups, units, ports."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost


@pytest.mark.backends("vm")
def test_outside_of_the_ssh_session(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A scope of its own, a session of its own, still there when our SSH session has long ended."""
    pid = started.launch("sleep", "100000")
    run = migrate(str(pid), "beta")
    assert run.status == 0, run.explain()
    assert "/migrated-" in beta.read(f"/proc/{pid}/cgroup"), beta.read(f"/proc/{pid}/cgroup")
    scope = beta.run(f"systemctl status {pid} | head -1").out
    assert run.report["id"] in scope
    assert beta.run(f"ps -o sid= -p {pid}").out.strip() == str(pid)
    assert beta.state(pid) == "S"


@pytest.mark.backends("vm")
def test_main_process_of_a_unit_is_refused(nothing_behind: None, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """systemd would start it again on the source."""
    alpha.run("systemd-run --unit=precious --property=Restart=always --quiet sleep 100000")
    pid = int(alpha.run("systemctl show -p MainPID --value precious").out)
    try:
        run = migrate(str(pid), "beta")
        assert alpha.state(pid) == "S"
    finally:
        alpha.run("systemctl stop precious")
    assert run.status == 20, run.explain()
    units = [obstacle for obstacle in run.of("obstacle") if obstacle["id"] == "unit"]
    assert units, run.explain()
    assert "precious" in units[0]["object"] + units[0]["problem"]


def test_nothing_listens_on_a_tcp_port(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, sabotage: Any
) -> None:
    """Looked at while the tree is held on both hosts."""
    before = [host.run("ss -Hltn | awk '{print $4}' | sort").out for host in (alpha, beta)]
    pid = started.launch("sleep", "100000")
    run = sabotage(pid, "commit", "list-ports")
    assert run.status == 0, run.explain()
    assert [alpha.read("/run/ports"), beta.read("/run/ports")] == before
    alpha.run("rm /run/ports")
    beta.run("rm /run/ports")
