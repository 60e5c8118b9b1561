"""Every row of `what_moves.py` goes to beta and back, and has after each hop what it had; or is refused as it says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost
from tests.live.what_moves import ANSWER, PLACE, ROWS, VERDICT, Row

KILL_ALL = f"""
for one in /proc/[0-9]*; do
    case $(readlink $one/cwd) in {PLACE}*) kill -KILL ${{one#/proc/}} ;; esac
done
while :; do
    left=
    for one in /proc/[0-9]*; do case $(readlink $one/cwd) in {PLACE}*) left=$one ;; esac; done
    [ "$left" ] || break
    sleep 0.1
done
"""
"""All of a row's processes stand in PLACE, whatever session they have made for themselves."""


@pytest.fixture
def place(nothing_behind: None, lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """An empty PLACE on both hosts; it and all who stand in it are gone afterwards."""
    for host in lab:
        host.run(f"rm -rf {PLACE}; mkdir -m 1777 {PLACE}")
    yield
    for host in lab:
        host.run(f"{KILL_ALL} rm -rf {PLACE}", check=False)


@pytest.fixture(scope="module")
def both_ways(lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """`migrate` on beta too: the lab has it on alpha only."""
    alpha, beta = lab
    where = "opt/migrate $(readlink -f $(command -v migrate)) $(command -v migrate)"
    alpha.run(f"tar -C / -c {where} 2>/dev/null | ssh beta tar -C / -x")
    yield
    beta.run("rm -rf /opt/migrate $(command -v migrate)")


def start(row: Row, alpha: LabHost, started: Started) -> int:
    """PID of what moves."""
    program = row.start or f"exec {row.under} python3 /root/programs/subject.py {VERDICT} {row.kinds}"
    return started.launch("sh", "-c", program, cwd=PLACE)


def look(row: Row, host: LabHost, pid: int, hop: int) -> None:
    """All is as it should be."""
    assert host.alive(pid), f"after hop {hop} it has ended"
    script = shlex.quote(f"cd {PLACE}; PID={pid} HOP={hop}; export PID HOP\n{row.look or ANSWER}")
    said = host.run(f"timeout {60 * host.slow} bash -c {script} || echo status $?", check=False, seconds=700)
    assert said.out + said.err == "", f"hop {hop}: {said.out}{said.err}"
    assert host.alive(pid), f"after hop {hop} it has ended when it was looked at"


def hop(row: Row, migrate: Any, pid: int, here: LabHost, there: LabHost) -> Run:
    """Move it, and remove what it leaves behind of its own."""
    if row.along:
        here.run(f"cd {PLACE}; TO={there.name}\n{row.along}")
    run: Run = migrate(*row.options.split(), str(pid), there.name, on=here)
    assert run.status == 0, run.explain()
    assert there.alive(pid), run.explain()
    assert not here.alive(pid), run.explain()
    if row.written:
        here.run(f"cd {PLACE}; rm -f {row.written}")
    return run


def marks(row: Row) -> list[pytest.MarkDecorator]:
    """Emulated, two hops take a minute or more: only what needs whole machines is always tried there."""
    return [pytest.mark.backends(*row.backends), *([pytest.mark.long_on("vm")] if "netns" in row.backends else [])]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks(row)) for row in ROWS])
def test_it_moves_and_moves_back_or_is_refused(
    row: Row, place: None, both_ways: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    try:
        for host in (alpha, beta):
            host.run(f"cd {PLACE}\n{row.prepare}")
        beta.run(f"cd {PLACE}\n{row.there}")
        pid = start(row, alpha, started)
        look(row, alpha, pid, 0)
        if row.refused:
            run = migrate(*row.options.split(), str(pid), "beta")
            assert run.status == 20, run.explain()
            assert {one["id"] for one in run.of("obstacle") if one["stops"]} == {row.refused}, run.explain()
            look(row, alpha, pid, 1)
            return
        if row.warned:
            checked = migrate("check", *row.options.split(), str(pid), "beta")
            warned = {one["id"] for one in checked.of("obstacle")} - {"no-dirty-tracking"}
            assert warned == set(row.warned), checked.explain()
        run = hop(row, migrate, pid, alpha, beta)
        assert not row.said or any(row.said in event["text"] for event in run.of("note")), run.explain()
        look(row, beta, pid, 1)
        hop(row, migrate, pid, beta, alpha)
        look(row, alpha, pid, 2)
    finally:
        started.end()
        for host in (alpha, beta):
            host.run(KILL_ALL)
            host.run(row.after or "true")
