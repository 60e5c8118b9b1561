"""One process with something of everything that the kernel offers moves, and all of it is right afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, until

PLACE = "/srv/manifold"


@pytest.fixture
def place(nothing_behind: None, lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """A directory of its own on both hosts."""
    for host in lab:
        host.run(f"rm -rf {PLACE}; mkdir -m 777 {PLACE}")
    yield
    for host in lab:  # it has children in sessions of their own
        host.run(f"pkill -KILL -f programs/[m]anifold.py; rm -rf {PLACE}")


def test_everything_at_once(place: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any) -> None:
    pid = started.launch("python3", "/root/programs/manifold.py", PLACE)
    until(lambda: alpha.run(f"test -e {PLACE}/ready", check=False).status == 0 or not alpha.alive(pid), "not ready")
    assert alpha.alive(pid)
    run = migrate("--copy-files", str(pid), "beta")
    assert run.status == 0, run.explain()
    beta.run(f"touch {PLACE}/ask")
    until(lambda: beta.run(f"test -e {PLACE}/answer", check=False).status == 0 or not beta.alive(pid), "no answer")
    answer = json.loads(beta.read(f"{PLACE}/answer"))
    assert len(answer) == 30
    assert {name: said for name, said in answer.items() if said is not True} == {}
