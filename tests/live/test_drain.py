"""A plan on two real hosts: what it lists leaves, in its order, and all comes back; one with mistakes moves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost

PLAN = "/root/plan.toml"
PIDFILE = "/run/witness.pid"


@pytest.fixture
def tidy(alpha: LabHost) -> Iterator[None]:
    """No plan and nothing kept of one afterwards."""
    yield
    alpha.run(f"rm -rf {PLAN} {PIDFILE} /root/drained.json /var/lib/migrate/drains")


def test_a_plan_leaves_and_comes_back(
    nothing_behind: None, tidy: None, alpha: LabHost, beta: LabHost, started: Started
) -> None:
    first, second = (
        started.launch("python3", "-c", "import time; kept = bytes(8 << 20)\nwhile True: time.sleep(0.1)") for _ in "12"
    )
    alpha.put(PIDFILE, f"{first}\n".encode())
    alpha.put(
        PLAN,
        f'target = "beta"\n[[move]]\nname = "later"\npid = {second}\nafter = ["sooner"]\n'
        f'[[move]]\nname = "sooner"\npidfile = "{PIDFILE}"\n'.encode(),
    )
    table = alpha.run(f"migrate drain {PLAN} --dry-run").out
    assert [line.split()[0] for line in table.splitlines()] == ["move", "later", "sooner"]
    assert alpha.alive(first)
    assert alpha.alive(second)
    out = alpha.run(f"migrate drain {PLAN} --parallel 2 --report /root/drained.json").out
    assert out.index("sooner") < out.index("later")
    assert "2 of 2 moved" in out
    processes = json.loads(alpha.read("/root/drained.json"))["processes"]
    assert {(each["move"], each["stage"], each["target_pid"]) for each in processes} == {
        ("sooner", "moved", first), ("later", "moved", second),
    }  # fmt: skip
    for pid in (first, second):
        assert beta.alive(pid)
        assert not alpha.alive(pid)
    assert "already on beta" in alpha.run(f"migrate drain {PLAN}").out
    assert "2 of 2 moved" in alpha.run(f"migrate return {PLAN}").out
    for pid in (first, second):
        assert alpha.alive(pid)
        assert not beta.alive(pid)


def test_a_plan_with_mistakes_moves_nothing(nothing_behind: None, tidy: None, alpha: LabHost, witness: int) -> None:
    alpha.put(PLAN, f'[[move]]\npid = {witness}\n[[move]]\ntarget = "beta"\nuser = "root"\naftre = []\n'.encode())
    done = alpha.run(f"migrate drain {PLAN}", check=False)
    assert done.status == 2
    assert f"{PLAN}:1: it has no target" in done.err
    assert f"{PLAN}:6: 'aftre' is not known: is it after?" in done.err
    assert alpha.alive(witness)
