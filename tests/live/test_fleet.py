"""The Ansible role on both hosts: it installs, a second run changes nothing, and it says what stands in the way.

Ansible comes in by its command alone, and drives the hosts over OpenSSH with the lab's key and known_hosts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import cache, project
from tests.live.lab_host import PROJECT, LabHost, status_of

HOME = "/opt/migrate-fleet"
COMMAND = "/usr/local/sbin/migrate-fleet"
PIDFILE = "/run/fleet-witness.pid"
RECAP = re.compile(r"^(\w+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+) ", re.MULTILINE)

Play = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, int]]]


def inventory(name: str, wheels: Path, wheel: Path, processes: str = "[]") -> str:
    """Both hosts of the lab, in YAML, by its key and its known_hosts alone."""
    lines = ["all:", "  vars:", f"    migrate_wheel: {wheel}", f"    migrate_wheels: {wheels}"]
    lines += [f"    migrate_home: {HOME}", f"    migrate_command: {COMMAND}", "  hosts:"]
    for host, facts in status_of(name)["hosts"].items():
        ssh = f"-F none -o IdentitiesOnly=yes -o IdentityAgent=none -o UserKnownHostsFile={facts['known_hosts']}"
        lines += [
            f"    {host}:",
            f"      ansible_host: {facts['control_address']}",
            f"      ansible_port: {facts['control_port']}",
            f"      ansible_user: {facts['user']}",
            f"      ansible_ssh_private_key_file: {facts['private_key']}",
            f"      ansible_ssh_common_args: {ssh}",
            "      ansible_python_interpreter: /usr/bin/python3",
        ]
        if host == "alpha":
            lines.append(f"      migrate_processes: {processes}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def play(request: pytest.FixtureRequest, tmp_path: Path, alpha: LabHost, beta: LabHost) -> Iterator[Play]:
    """Run the playbook as README does; the process, and how many tasks changed something on each host."""
    with cache.lock("build"):
        wheel = project.wheel()
        wheels = project.wheelhouse(".".join(alpha.run("python3 --version").out.split()[1].split(".")[:2]))
    playbook = Path(sys.executable).with_name("ansible-playbook")

    def run(*words: str, processes: str = "[]") -> tuple[subprocess.CompletedProcess[str], dict[str, int]]:
        hosts = tmp_path / "hosts.yml"
        hosts.write_text(inventory(request.config.getoption("--lab-name"), wheels, wheel, processes))
        done = subprocess.run(
            [playbook, "-i", hosts, "fleet.yml", *words],
            cwd=PROJECT / "vagrant" / "ansible",
            env={
                **os.environ,
                "ANSIBLE_HOME": str(tmp_path / "ansible"),
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        print(done.stdout, done.stderr)
        return done, {host: int(changed) for host, _, changed, _, _ in RECAP.findall(done.stdout)}

    yield run
    for host in (alpha, beta):
        host.run(f"rm -rf {HOME} {COMMAND} {PIDFILE}")


@pytest.mark.backends("netns")
def test_the_role_installs_once_and_checks(play: Play, alpha: LabHost, beta: LabHost, witness: int) -> None:
    alpha.put(PIDFILE, f"{witness}\n".encode())
    processes = f"[{{pidfile: {PIDFILE}, target: beta, options: [--copy-files]}}]"

    done, changed = play("--check", "--tags", "install")
    assert done.returncode == 0
    assert min(changed.values()) > 0, "--check did not say what it would do"
    for host in (alpha, beta):
        assert host.run(f"ls {HOME} {COMMAND}", check=False).out == "", "--check installed something"

    done, changed = play("--tags", "install")
    assert done.returncode == 0
    assert set(changed) == {"alpha", "beta"}
    assert min(changed.values()) > 0
    for host in (alpha, beta):
        assert host.run(f"{COMMAND} --version").out.startswith("migrate ")

    done, changed = play(processes=processes)
    assert done.returncode == 0
    assert changed == {"alpha": 0, "beta": 0}

    done, changed = play("--check", "--tags", "check", processes="[{pid: 1, target: beta}]")
    assert done.returncode == 2, "an obstacle did not fail the play"
    assert "is-init" in done.stdout, "nor was it asked, under --check"
    assert changed == {"alpha": 0}, "the play went on to the next batch"
    assert alpha.alive(witness)
