"""What a process has in its memory is on no disk, in no log, in no message and on no command line of ours, whatever
becomes of its migration; and who is not root gets at nothing of it meanwhile."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost, until
from tests.live.test_recover import settled

pytestmark = pytest.mark.long_on("vm")

_WATCH = """
while [ -e /root/watching ]; do
    for p in /proc/[0-9]*; do tr '\\0\\n' '  ' <$p/cmdline 2>/dev/null; echo; done >>/dev/shm/seen.cmdlines
    sleep 0.05
done
"""


class Kept:
    """A process with a secret, and where that may not be seen."""

    def __init__(self, hosts: tuple[LabHost, LabHost], pid: int, secret: str) -> None:
        self.hosts = hosts
        self.pid = pid
        self.secret = secret

    def nowhere(self, *runs: Run, unfinished: bool = False) -> None:
        """On no disk of either host, in nothing that was said. It is searched for in halves that only here are one.

        A migration that is `unfinished` has its images, in memory and for root alone.
        """
        for run in runs:
            assert self.secret not in run.out + run.err
        first, second = self.secret[:16], self.secret[16:]
        for host in self.hosts:
            search = f"printf %s {first} {second} | grep -rlaF -f - /var /tmp /root /run /etc /home 2>/dev/null; true"
            found = [Path(line) for line in host.run(search).out.splitlines()]
            images = {path for path in found if unfinished and path.is_relative_to("/run/migrate")}
            assert not set(found) - images, f"the secret lies on {host.name}"
            for path in images:
                place = shlex.quote(str(Path(*path.parts[:4])))
                assert host.run(f"stat -c '%a %U' {place}; findmnt -no FSTYPE -T {place}").out == "700 root\ntmpfs\n"


@pytest.fixture
def kept(nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started) -> Iterator[Kept]:
    """A keeper at work on alpha, both hosts watched."""
    parts = [secrets.token_hex(8) for _ in range(4)]
    lab[0].put("/root/parts", "\n".join(parts).encode(), 0o600)
    pid = started.launch("python3", "/root/programs/secret_keeper.py", "/root/parts")
    until(lambda: lab[0].run("test -e /root/parts", check=False).status != 0, "it does not start")
    for host in lab:
        host.run("rm -f /dev/shm/seen.*; touch /root/watching")
        host.run(f"setsid sh -c {shlex.quote(_WATCH)} >/dev/null 2>&1 </dev/null &")
    try:
        yield Kept(lab, pid, "-".join(parts))
    finally:
        for host in lab:
            host.run("rm -f /root/watching; sleep 1")
            host.run("rm -f /dev/shm/seen.*")


def seen(host: LabHost, what: str) -> list[str]:
    """What the watch has seen, each once."""
    return host.run(f"sort -u /dev/shm/seen.{what} 2>/dev/null").out.splitlines()


def test_a_process_that_moves(kept: Kept, migrate: Any) -> None:
    run = migrate(str(kept.pid), "beta", "-v")
    assert run.status == 0, run.explain()
    assert kept.hosts[1].alive(kept.pid)
    kept.nowhere(run)
    for host in kept.hosts:
        assert not [line for line in seen(host, "cmdlines") if kept.secret in line]


def test_one_that_is_given_back(kept: Kept, migrate: Any) -> None:
    """Its target held it, complete."""
    run = migrate("rehearse", str(kept.pid), "beta")
    assert run.status == 0, run.explain()
    assert kept.hosts[0].alive(kept.pid)
    kept.nowhere(run)


@pytest.mark.parametrize("at", ["freeze", "resume"])
def test_one_whose_migration_is_killed_and_settled(
    kept: Kept, migrate: Any, sabotage: Callable[..., Run], at: str
) -> None:
    """Before COMMIT, and behind it: `migrate` is gone, and its agents are left to themselves."""
    killed = sabotage(kept.pid, at, "kill-self", options="")
    alpha, beta = kept.hosts
    settled(alpha)
    until(lambda: at == "freeze" or not alpha.alive(kept.pid), "it is still on the source")
    kept.nowhere(killed, unfinished=True)
    run = migrate("recover")
    assert run.status in (0, 20), run.explain()
    settled(beta)
    assert [host.alive(kept.pid) for host in kept.hosts] == [at == "freeze", at == "resume"]
    kept.nowhere(run)


def test_its_own_core_dumps_are_as_they_were(kept: Kept, migrate: Any) -> None:
    """What we forbid ourselves is not forbidden to the tree."""
    alpha, beta = kept.hosts
    ask = f"cat /proc/{kept.pid}/coredump_filter; grep 'core file' /proc/{kept.pid}/limits"
    before = alpha.run(ask).out
    run = migrate(str(kept.pid), "beta")
    assert run.status == 0, run.explain()
    assert beta.run(ask).out == before
