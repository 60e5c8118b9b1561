"""The link is down for longer than the target holds a tree that nobody asks for: its images outlive it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.lab_host import LabHost, until
from tests.live.test_recover import runs_there, settled

pytestmark = pytest.mark.long_on("vm")


@pytest.fixture
def reachable_again(alpha: LabHost) -> Iterator[None]:
    """Whatever happens, the link is there again when the test is over."""
    yield
    alpha.run("nft delete table inet cut", check=False)


def records(host: LabHost) -> list[str]:
    """What the newest journal of a host has decided."""
    script = "cat $(ls -td /var/lib/migrate/*/ | head -1)journal"
    return [line.split('"')[3] for line in host.run(script).out.splitlines() if line.split('"')[3].isupper()]


def test_a_link_that_is_down_for_longer_than_the_lease(
    reachable_again: None, alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    run = sabotage(witness, "resume", "cut-link-for-good", options=f"--copy-files --lease {4 * beta.slow}")
    assert run.status == 71, run.explain()
    until(lambda: not alpha.alive(witness), "it is still on the source")
    settled(beta)
    # the lease is over: no process of it is held any more, nothing of it ran, and what it is made of is still there
    assert beta.state(witness) == ""
    assert beta.run("pgrep -x criu", check=False).out == ""
    assert records(beta) == ["PREPARED", "HELD"]
    assert beta.run("ls /run/migrate/*/*/pages-*.img").out
    alpha.run("nft delete table inet cut")
    again = migrate("recover")
    assert again.status == 0, again.explain()
    runs_there(alpha, beta, witness)


def test_without_a_lease_only_the_images_wait(
    alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    sabotage(witness, "resume", "kill-self", options="--copy-files --lease 0")
    until(lambda: not alpha.alive(witness), "it is still on the source")
    settled(beta)
    assert beta.state(witness) == ""
    assert records(beta) == ["PREPARED", "HELD"]
    again = migrate("recover")
    assert again.status == 0, again.explain()
    runs_there(alpha, beta, witness)
