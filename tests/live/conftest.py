"""Live tests: real criu on the lab's two hosts. They run when they are named, and then never skip themselves.

`vagrant/lab test` brings the labs up and runs `pytest tests/live --backend netns|vm --lab-name NAME`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.lab_host import LOG, Done, LabHost, bring_programs, difference, start_lab, wait_for_log
from tests.live.screen import Screen


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which lab."""
    parser.addoption("--backend", default="netns", choices=("netns", "vm"), help="kind of lab")
    parser.addoption("--lab-name", default="default", help="name of a lab that is up")
    parser.addoption("--observed", type=Path, help="write what the tests saw of both hosts to this file, as JSON")
    parser.addoption("--faults", default="slice", choices=("slice", "all"), help="how much of the fault grid")


def pytest_configure(config: pytest.Config) -> None:
    """Marks."""
    config.addinivalue_line("markers", "backends(*names): runs on these backends only; elsewhere it is not collected")
    config.addinivalue_line("markers", "core: what has to work on each release of Debian; `vagrant/lab releases`")
    config.addinivalue_line("markers", "long: too long for every run; `vagrant/lab test --all` runs it")
    config.addinivalue_line("markers", "long_on(*names): is `long` on these backends")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this backend's kernel cannot do; said in the summary as deselected, not skipped."""
    backend = config.getoption("--backend")
    for item in items:
        if (mark := item.get_closest_marker("long_on")) and backend in mark.args:
            item.add_marker("long")
    out = [item for item in items if (mark := item.get_closest_marker("backends")) and backend not in mark.args]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """netns or vm."""
    return str(request.config.getoption("--backend"))


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, backend: str) -> Iterator[tuple[LabHost, LabHost]]:
    """Both hosts."""
    hosts = start_lab(request.config.getoption("--lab-name"), backend)
    bring_programs(hosts)
    yield hosts
    for host in hosts:
        host.close()


_OBSERVED: dict[str, Any] = {}


@pytest.fixture(scope="session")
def observed(lab: tuple[LabHost, LabHost]) -> dict[str, Any]:
    """What is to be kept of this run; `pytest_sessionfinish` writes it."""
    return _OBSERVED


@pytest.fixture(scope="session", autouse=True)
def _versions(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--observed"):
        for host in request.getfixturevalue("lab"):
            _OBSERVED[host.name] = host.versions()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """How many tests there were, and what they saw."""
    if file := session.config.getoption("--observed"):
        passed = session.testscollected - session.testsfailed
        file.write_text(json.dumps({**_OBSERVED, "tests": passed}, indent=1))


@pytest.fixture
def alpha(lab: tuple[LabHost, LabHost]) -> LabHost:
    """The source."""
    return lab[0]


@pytest.fixture
def beta(lab: tuple[LabHost, LabHost]) -> LabHost:
    """The target: nothing of ours on it."""
    return lab[1]


def far_from(alpha: LabHost, beta: LabHost) -> None:
    """What alpha starts next gets numbers that beta has none of, and is not about to give out."""
    theirs = int(beta.run("cat /proc/sys/kernel/ns_last_pid").out)
    taken = {int(name) for name in beta.run("ls /proc").out.split() if name.isdigit()}
    lasts = (3000 + (theirs + 8000 + further) % 24000 for further in range(0, 8000, 400))
    free = next(last for last in lasts if not taken & set(range(last, last + 400)))
    alpha.run(f"echo {free} >/proc/sys/kernel/ns_last_pid")


class Started:
    """What a test started, ended again when it is over, wherever it lives by then."""

    def __init__(self, hosts: tuple[LabHost, LabHost]) -> None:
        self._hosts = hosts
        self._pids: list[int] = []

    def launch(self, *arguments: str, **keywords: str) -> int:
        """Start a program on alpha, far from the numbers that beta is giving out."""
        far_from(*self._hosts)
        pid = self._hosts[0].launch(list(arguments), **keywords)
        self._pids.append(pid)
        return pid

    def end(self) -> None:
        """Kill the sessions that were started, on both hosts; those in a namespace have other numbers, and an init."""
        for host in self._hosts:
            host.run("pkill -KILL -x migrate-init", check=False)
            for pid in self._pids:
                host.run(f"pkill -KILL -s {pid}; kill -CONT {pid} 2>/dev/null", check=False)
                # a large one takes a while to die, and is a zombie until it is reaped
                host.run(f"for i in $(seq 600); do pgrep -s {pid} >/dev/null || break; sleep 0.1; done", check=False)
        self._pids.clear()


@pytest.fixture
def started(lab: tuple[LabHost, LabHost]) -> Iterator[Started]:
    """Start programs that are ended with the test."""
    programs = Started(lab)
    yield programs
    programs.end()


class Run:
    """One run of `migrate`, with what it printed as events."""

    def __init__(self, done: Done) -> None:
        self.status = done.status
        self.out = done.out
        self.err = done.err
        self.events: list[dict[str, Any]] = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]

    @property
    def report(self) -> dict[str, Any]:
        """The last event."""
        assert self.events, f"no events; it printed {self.out!r} {self.err!r}"
        assert self.events[-1]["event"] == "report", self.events[-3:]
        return self.events[-1]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    def explain(self) -> str:
        """For assertion messages."""
        return f"exit {self.status}\n{self.out}\n{self.err}"


@pytest.fixture
def migrate(alpha: LabHost) -> Any:
    """Run `migrate --json …` on alpha."""

    def run(*arguments: str, on: LabHost = alpha, seconds: float = 600) -> Run:
        words = list(arguments)
        words.insert(1 if words[0] in ("abort", "check", "recover", "rehearse", "restore", "status") else 0, "--json")
        return Run(on.run("migrate " + " ".join(words), check=False, seconds=seconds))

    return run


@pytest.fixture
def both_ways(lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """`migrate` on beta too: the lab has it on alpha only."""
    bring_migrate(*lab)
    yield
    lab[1].run("rm -rf /opt/migrate $(command -v migrate)")


def bring_migrate(alpha: LabHost, beta: LabHost) -> None:
    """Put `migrate` on beta as well."""
    where = "opt/migrate $(readlink -f $(command -v migrate)) $(command -v migrate)"
    alpha.run(f"tar -C / -c {where} 2>/dev/null | ssh {beta.name} tar -C / -x")


@pytest.fixture
def nothing_behind(lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """Compares both hosts before and after the test; use it before `started`, so that it looks after the end."""
    before = [host.snapshot() for host in lab]
    yield
    after = [settled_snapshot(host, old) for host, old in zip(lab, before, strict=True)]
    changes = {host.name: difference(*pair) for host, *pair in zip(lab, before, after, strict=True)}
    assert not any(changes.values()), changes


def settled_snapshot(host: LabHost, before: dict[str, set[str]], seconds: float = 30) -> dict[str, set[str]]:
    """A snapshot once no process is there that was not before: an agent whose `migrate` is dead undoes in its own time.

    What such a process has left when it ends, and a process that does not end, is in it.
    """
    deadline = time.monotonic() + seconds * host.slow
    while (after := host.snapshot())["processes"] - before["processes"] and time.monotonic() < deadline:
        time.sleep(0.1)
    return after


@pytest.fixture
def witness(nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started) -> int:
    """A witness at work on alpha."""
    for host in lab:
        host.run(f"rm -f {LOG}")
    pid = started.launch("python3", "/root/programs/witness.py", "--mib", "16", "--log", LOG)
    wait_for_log(lab[0], lines=20)
    return pid


@pytest.fixture
def sabotage(alpha: LabHost) -> Callable[..., Run]:
    """`migrate`, broken on cue."""

    def run(pid: int, at: str, act: str, delay: float = 0.0, options: str = "--copy-files", command: str = "") -> Run:
        words = f"--at '{at}' --act {act} --delay {delay} -- {command} --json {options} {pid} beta"
        return Run(alpha.run(f"/opt/migrate/bin/python /root/programs/saboteur.py {words}", check=False, seconds=600))

    return run


@pytest.fixture
def screen(nothing_behind: None, lab: tuple[LabHost, LabHost]) -> Iterator[Callable[[LabHost, str], Screen]]:
    """Open terminals, all closed at the end; beta's numbers are far from those that alpha gives out."""
    opened = []

    def open_one(host: LabHost, command: str) -> Screen:
        opened.append(Screen(host, command))
        return opened[-1]

    far_from(*lab)
    yield open_one
    for one in opened:
        one.close()
