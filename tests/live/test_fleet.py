"""The Ansible role on both hosts: it installs, says what stands in the way, empties a host and brings all back.

Each of it twice: the second run changes nothing. Ansible comes in by its command alone, and drives the hosts over
OpenSSH with the lab's key and known_hosts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from labkit import cache, project
from tests.live.lab_host import PROJECT, LabHost, status_of

HOME = "/opt/migrate-fleet"
COMMAND = "/usr/local/sbin/migrate-fleet"
PIDFILE = "/run/fleet-witness.pid"
PLAN = "/etc/fleet-plan.toml"
RECAP = re.compile(r"^(\w+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+) ", re.MULTILINE)

Play = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, int]]]


def inventory(name: str, settings: dict[str, Any], user: str, processes: list[dict[str, Any]]) -> str:
    """Both hosts of the lab, in JSON, which is YAML, by its key and its known_hosts alone."""
    hosts: dict[str, dict[str, Any]] = {}
    for host, facts in status_of(name)["hosts"].items():
        hosts[host] = {
            "ansible_host": facts["control_address"],
            "ansible_port": facts["control_port"],
            "ansible_user": user,
            "ansible_become": user != "root",
            "ansible_ssh_private_key_file": facts["private_key"],
            "ansible_ssh_common_args": "-F none -o IdentitiesOnly=yes -o IdentityAgent=none "
            f"-o UserKnownHostsFile={facts['known_hosts']}",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
    hosts["alpha"]["migrate_processes"] = processes
    return json.dumps({"all": {"vars": settings, "hosts": hosts}})


@pytest.fixture
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Run the playbook as README does; the process, and how many tasks changed something on each host."""
    playbook = Path(sys.executable).with_name("ansible-playbook")
    name = request.config.getoption("--lab-name")

    def run(
        *words: str, settings: dict[str, Any], user: str = "root", processes: Sequence[dict[str, Any]] = ()
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, int]]:
        hosts = tmp_path / "hosts.yml"
        hosts.write_text(inventory(name, settings, user, list(processes)))
        done = subprocess.run(
            [playbook, "-i", hosts, "fleet.yml", *words],
            cwd=PROJECT / "vagrant" / "ansible",
            env={**os.environ, "ANSIBLE_HOME": str(tmp_path / "ansible"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        print(done.stdout, done.stderr)
        return done, {host: int(changed) for host, _, changed, _, _ in RECAP.findall(done.stdout)}

    return run


@pytest.fixture
def installing(alpha: LabHost, beta: LabHost) -> Iterator[dict[str, Any]]:
    """What an inventory says for the role to install beside what the lab has on alpha; gone afterwards."""
    with cache.lock("build"):
        wheel = project.wheel()
        wheels = project.wheelhouse(".".join(alpha.run("python3 --version").out.split()[1].split(".")[:2]))
    yield {
        "migrate_wheel": str(wheel), "migrate_wheels": str(wheels),
        "migrate_home": HOME, "migrate_command": COMMAND,
    }  # fmt: skip
    for host in (alpha, beta):
        host.run(f"rm -rf {HOME} {COMMAND}")


@pytest.fixture
def drained(alpha: LabHost) -> Iterator[dict[str, Any]]:
    """What an inventory says to drain with the `migrate` that the lab has on alpha; gone afterwards."""
    yield {"migrate_plan_file": PLAN, "migrate_return_options": ["--overwrite-files"], "migrate_batch": 2}
    alpha.run(f"rm -rf {PLAN} {PIDFILE} /var/lib/migrate/drains")


@pytest.mark.backends("netns")
def test_the_role_installs_once(play: Play, installing: dict[str, Any], alpha: LabHost, beta: LabHost) -> None:
    done, changed = play("--check", "--tags", "install", settings=installing)
    assert done.returncode == 0
    assert min(changed.values()) > 0, "--check did not say what it would do"
    for host in (alpha, beta):
        assert host.run(f"ls {HOME} {COMMAND}", check=False).out == "", "--check installed something"

    done, changed = play("--tags", "install", settings=installing)
    assert done.returncode == 0
    assert set(changed) == {"alpha", "beta"}
    assert min(changed.values()) > 0
    for host in (alpha, beta):
        assert host.run(f"{COMMAND} --version").out.startswith("migrate ")

    done, changed = play("--tags", "install", settings=installing)
    assert done.returncode == 0
    assert changed == {"alpha": 0, "beta": 0}


@pytest.mark.backends("netns")
def test_the_role_empties_a_host_and_brings_all_back(
    play: Play, witness: int, drained: dict[str, Any], alpha: LabHost, beta: LabHost
) -> None:
    alpha.put(PIDFILE, f"{witness}\n".encode())
    one = {"name": "cache", "pidfile": PIDFILE, "target": ["admin@beta"], "options": {"copy-files": True, "sudo": True}}

    def run(*words: str) -> int:
        done, changed = play(*words, settings=drained, user="admin", processes=[one])
        assert done.returncode == 0
        assert changed["beta"] == 0
        assert done.stdout.count("PLAY [Empty the hosts") == 1, "two hosts, and not in one batch"
        return changed["alpha"]

    assert run("--tags", "check") == 0
    assert run("--check", "--tags", "drain") == 1, "--check did not say that it would move something"
    assert alpha.run(f"ls {PLAN}", check=False).out == "", "--check left a plan"
    assert alpha.alive(witness)

    assert run("--tags", "drain") == 1
    assert beta.alive(witness)
    assert not alpha.alive(witness)
    assert run("--tags", "drain") == 0
    assert run("--check", "--tags", "drain,return") == 0
    assert beta.alive(witness), "--check moved something"

    assert run("--tags", "return") == 1
    assert alpha.alive(witness)
    assert not beta.alive(witness)
    assert run("--tags", "return") == 0


@pytest.mark.backends("netns")
def test_a_failure_stops_the_batches_after_it(
    play: Play, witness: int, drained: dict[str, Any], alpha: LabHost, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f'target = "beta"\n[[move]]\npid = 1\n[[move]]\npid = {witness}\nafter = ["pid 1"]\n')
    settings = {**drained, "migrate_plan": str(plan), "migrate_batch": 1}
    for tag in ("check", "drain"):
        done, changed = play("--tags", tag, settings=settings)
        assert done.returncode == 2, "an obstacle did not fail the play"
        assert "the first process of this host" in done.stdout
        assert changed == {"alpha": 0}, "the play went on to the next batch"
    assert alpha.read(PLAN) == plan.read_text()
    assert alpha.alive(witness)
