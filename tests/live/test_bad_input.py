"""Bad input and bad luck: one clear line, the right exit code, never a traceback, and nothing touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost, until

pytestmark = pytest.mark.long_on("vm")


def one_clear_line(run: Run, code: int, *words: str) -> None:
    """An error event with these words, the code, and no traceback."""
    assert run.status == code, run.explain()
    assert "Traceback" not in run.out + run.err, run.explain()
    said = " ".join(event["message"] for event in run.of("error"))
    for word in words:
        assert word in said, run.explain()
    assert "\n" not in said


@pytest.fixture
def sleeper(nothing_behind: None, alpha: LabHost, started: Started) -> Iterator[int]:
    """A process that must not notice anything."""
    pid = started.launch("sleep", "100000")
    until(lambda: alpha.state(pid) == "S", "it does not sleep")
    yield pid
    assert alpha.state(pid) == "S"


def test_no_such_process(alpha: LabHost, migrate: Any) -> None:
    free = int(alpha.run("cat /proc/sys/kernel/pid_max").out) - 7
    one_clear_line(migrate(str(free), "beta"), 21, str(free))


@pytest.mark.parametrize("word", ["abc", "0", "-1", "1.5", "''", "99999999999999999999"])
def test_pid_is_no_number(migrate: Any, word: str) -> None:
    one_clear_line(migrate("--", word, "beta"), 2)


def test_host_does_not_resolve(sleeper: int, migrate: Any) -> None:
    one_clear_line(migrate(str(sleeper), "no-such-host.invalid"), 11, "no-such-host.invalid")


def test_host_refuses(sleeper: int, migrate: Any) -> None:
    one_clear_line(migrate(str(sleeper), "beta:1"), 12, "beta")


def test_unknown_host_key(sleeper: int, alpha: LabHost, migrate: Any) -> None:
    alpha.run("cp -a /root/.ssh/known_hosts /root/known_hosts.kept && : >/root/.ssh/known_hosts")
    try:
        run = migrate(str(sleeper), "beta")
    finally:
        alpha.run("mv /root/known_hosts.kept /root/.ssh/known_hosts")
    one_clear_line(run, 13, "key")
    assert "ssh" in " ".join(event.get("hint", "") for event in run.of("error"))


def test_no_key_is_accepted(sleeper: int, migrate: Any) -> None:
    one_clear_line(migrate(str(sleeper), "nobody@beta"), 14, "nobody")


def test_unreachable_agent_without_python(sleeper: int, beta: LabHost, migrate: Any) -> None:
    where = beta.run("readlink -f /usr/bin/python3").out.strip()
    beta.run(f"mv {where} {where}.away")
    try:
        run = migrate(str(sleeper), "beta")
    finally:
        beta.run(f"mv {where}.away {where}")
    one_clear_line(run, 15, "python3")


def test_login_shell_that_talks(sleeper: int, beta: LabHost, migrate: Any) -> None:
    """Something else answers in the agent's place."""
    # admin's, not root's: the test itself comes in as root
    beta.run("cd /home/admin && cp -a .bashrc bashrc.kept && sed -i '1i echo Welcome to beta; exit 0' .bashrc")
    try:
        run = migrate("--sudo", str(sleeper), "admin@beta")
    finally:
        beta.run("cd /home/admin && mv bashrc.kept .bashrc")
    one_clear_line(run, 16)


@pytest.mark.parametrize("where", ["alpha", "beta"])
def test_criu_missing(sleeper: int, alpha: LabHost, beta: LabHost, migrate: Any, where: str) -> None:
    host = alpha if where == "alpha" else beta
    path = host.run("command -v criu").out.strip()
    host.run(f"mv {path} {path}.away")
    try:
        run = migrate(str(sleeper), "beta")
    finally:
        host.run(f"mv {path}.away {path}")
    one_clear_line(run, 20)
    assert [obstacle["id"] for obstacle in run.of("obstacle")].count("criu-missing") == 1, run.explain()


@pytest.mark.parametrize(
    ("script", "obstacle"),
    [
        ("echo Version: 3.11", "criu-old"),
        (
            '[ "$1" = --version ] && echo Version: 4.1.1 || { echo "Error (x.c:1): no such luck"; exit 1; }',
            "criu-check",
        ),
    ],
)
def test_criu_unfit(sleeper: int, beta: LabHost, migrate: Any, script: str, obstacle: str) -> None:
    beta.put("/usr/local/sbin/criu", f"#!/bin/sh\n{script}\n".encode(), 0o755)
    try:
        run = migrate(str(sleeper), "beta")
    finally:
        beta.run("rm /usr/local/sbin/criu")
    one_clear_line(run, 20)
    assert obstacle in [found["id"] for found in run.of("obstacle")], run.explain()


def test_not_root_on_the_target(sleeper: int, migrate: Any) -> None:
    """An ordinary login there is no root; with --sudo it is."""
    one_clear_line(migrate(str(sleeper), "admin@beta"), 20)
    assert migrate("check", "--sudo", str(sleeper), "admin@beta").status == 0


def test_ordinary_user_with_sudo(nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started) -> None:
    """The local agent runs through `sudo -n`; keys, agent and configuration stay the user's own."""
    pid = started.launch("sleep", "100000")
    run = Run(alpha.run(f"su admin -c 'migrate --json --sudo {pid} admin@beta'", check=False))
    assert run.status == 0, run.explain()
    assert beta.alive(pid)
    assert not alpha.alive(pid)


def test_ordinary_user_without_sudo(sleeper: int, alpha: LabHost) -> None:
    run = Run(alpha.run(f"su nobody -s /bin/sh -c 'HOME=/nonexistent migrate --json {sleeper} beta'", check=False))
    assert run.status in (14, 17), run.explain()
    assert "Traceback" not in run.err


def test_itself_and_init_and_kernel_threads(alpha: LabHost, migrate: Any) -> None:
    one_clear_line(migrate("1", "beta"), 20)
    script = "migrate --json $$ beta; exit $?"
    one_clear_line(Run(alpha.run(f"bash -c '{script}'", check=False)), 20)
