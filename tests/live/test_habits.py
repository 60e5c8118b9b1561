"""Defaults, log and Python API on real hosts: README's example moves a process, the command by its configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.lab_host import LabHost, wait_for_sweeps
from tests.live.screen import Screen
from tests.migrator.test_api import example

SYSTEM = "/etc/migrate.toml"
LOG = "/root/migrate.log"


@pytest.fixture
def configured(alpha: LabHost) -> Iterator[None]:
    """Defaults on the source, and nothing of them afterwards."""
    alpha.put(SYSTEM, f'[target.beta]\nmax-rounds = 0\nlog-file = "{LOG}"\ncopy-files = true\n'.encode())
    yield
    alpha.run(f"rm -f {SYSTEM} {LOG}")


def test_defaults_and_the_log(
    nothing_behind: None, configured: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any
) -> None:
    assert "max-rounds = 0" in alpha.run("migrate config beta").out
    run = migrate(str(witness), "beta")
    assert run.status == 0, run.explain()
    assert len(run.report["rounds"]) == 1, "there was pre-copy, or its files did not come along"
    assert wait_for_sweeps(beta, 2)
    lines = alpha.read(LOG).splitlines()
    assert [line.split("phase=")[1].split()[0] for line in lines if "event=phase" in line] == [
        event["phase"] for event in run.of("phase")
    ]
    assert f"id={run.report['id']}" in lines[0]
    assert f"pid={witness}" in lines[-1]
    assert "exit=0 outcome=migrated" in lines[-1]


@pytest.mark.long_on("vm")
def test_the_readme_example_moves_a_process(nothing_behind: None, alpha: LabHost, beta: LabHost, witness: int) -> None:
    program = example().replace("4711", str(witness)).replace('"db2"', '"beta"')
    done = alpha.run("/opt/migrate/bin/python -", stdin=program.encode())
    assert f"runs on beta as {witness}, down " in done.out
    assert beta.alive(witness)
    assert not alpha.alive(witness)
    assert wait_for_sweeps(beta, 2)


@pytest.mark.backends("netns")
@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_shows_the_phases_as_wide_as_it_is(
    nothing_behind: None,
    alpha: LabHost,
    beta: LabHost,
    witness: int,
    screen: Callable[[LabHost, str], Screen],
    columns: int,
) -> None:
    window = screen(alpha, f"stty cols {columns}; TERM=xterm-256color migrate {witness} beta --copy-files")
    assert window.status == 0, window.text
    assert beta.alive(witness)
    for phase in ("preflight", "freeze", "resume", "fill", "running on beta as pid"):
        assert phase in window.text
    assert not re.search(r"\x1b\[[0-9;]*m", window.text), "colours"
    live = [
        piece
        for line in window.text.split("\n")
        for piece in line.split("\r")
        if piece.startswith(("preflight ", "freeze "))
    ]
    assert live
    assert max(map(len, live)) < columns, "the terminal would wrap it"
    assert ("█" in "".join(live)) == (columns == 120), "a bar is what gives way first"
